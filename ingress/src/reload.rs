//! IO. SIGHUP: the tunnel's keys are read again while packets go on.
//!
//! To change the key without losing a packet, the concentrators get it first, as `key` with the one before
//! as `old_key`, and take both; then this edge gets it and sends with it from one packet to the next. What
//! still comes back with the old one is taken while it is `tunnel.old_key`.

use std::path::{Path, PathBuf};

use admin::run::Config as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use wire::gre::TunnelKey;

use crate::config::Config;

/// What was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keys {
    /// For what is sent.
    pub key: TunnelKey,
    /// Taken beside it.
    pub old_key: Option<TunnelKey>,
}

/// Waits for SIGHUP.
#[derive(Debug)]
pub struct Reload {
    hangup: Signal,
    file: PathBuf,
}

impl Reload {
    /// Listens from now on. Needs a tokio runtime.
    pub fn new(config: &Config) -> std::io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            file: config.file.clone(),
        })
    }

    /// The keys of the file, once it has been asked for and can be used. May be dropped at any time.
    pub async fn keys(&mut self) -> Keys {
        loop {
            if self.hangup.recv().await.is_none() {
                return std::future::pending().await;
            }
            match read(&self.file) {
                Ok(keys) => return keys,
                Err(error) => tracing::error!("SIGHUP: the keys from before stay: {error}"),
            }
        }
    }
}

fn read(file: &Path) -> Result<Keys, admin::config::ConfigError> {
    let config = Config::load(file)?;
    Ok(Keys {
        key: config.relay.key,
        old_key: config.tunnel.old_key,
    })
}
