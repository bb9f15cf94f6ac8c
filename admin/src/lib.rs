//! What every program shows its operator: config file, logs, metrics, status.
