//! Logs: to stderr, as text or JSON, as much as the config or `RUST_LOG` asks for.

use std::io::IsTerminal;

use serde::Deserialize;
use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, LogSection};

/// A filter in the notation of `RUST_LOG`, known to be well-formed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Filter(String);

impl Default for Filter {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

impl TryFrom<String> for Filter {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match EnvFilter::try_new(&text) {
            Ok(_) => Ok(Self(text)),
            Err(error) => Err(format!(
                "{text:?} is not a log filter ({error}); use error, warn, info, debug or trace, \
                 or the notation of RUST_LOG such as \"info,sip=debug\""
            )),
        }
    }
}

/// Why logging could not start.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The environment variable is not a filter.
    #[error("the environment variable RUST_LOG is not a log filter: {0}")]
    Environment(#[from] tracing_subscriber::filter::FromEnvError),
    /// A subscriber is already installed in this process.
    #[error("logging was started twice")]
    Twice,
}

/// Starts logging to stderr. Call it once.
pub fn start(section: &LogSection) -> Result<(), LoggingError> {
    let filter = match std::env::var_os(EnvFilter::DEFAULT_ENV) {
        Some(text) if !text.is_empty() => EnvFilter::try_from_default_env()?,
        Some(_) | None => EnvFilter::new(&section.level.0),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let started = match section.format {
        LogFormat::Text => builder
            .with_ansi(std::io::stderr().is_terminal())
            .try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|_| LoggingError::Twice)
}
