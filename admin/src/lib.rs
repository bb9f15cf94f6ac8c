//! What every program shows its operator: arguments, config file, logs, metrics, health, status.
//!
//! The story of a start, the same for all programs ([`run::program`]):
//!
//! 1. [`cli::Arguments`] come from the command line.
//! 2. [`config::load`] reads the TOML file; a mistake is reported with file, line and key, exit code 2.
//! 3. With `--check` the program says that the file is in order and ends here, exit code 0.
//! 4. [`logging::start`] sends logs to stderr, as text or JSON.
//! 5. The program's own `run` opens its devices and calls [`http::serve`] for `/metrics`, `/healthz`
//!    and `/status`. It ends when [`run::Shutdown`] says so (SIGINT, SIGTERM), exit code 0, or with
//!    an error, exit code 1. A second signal ends it at once, exit code 1.
#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
#[cfg(feature = "tls")]
pub mod credentials;
pub mod drain;
pub mod http;
pub mod logging;
pub mod run;
pub mod sampled;
