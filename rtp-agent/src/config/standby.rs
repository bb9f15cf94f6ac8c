//! The `[standby]` section.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use admin::config::ConfigError;
use serde::Deserialize;

/// The other agent of the pair.
#[derive(Debug, Clone)]
pub struct Standby {
    /// Where this agent takes the other one's connection.
    pub listen: SocketAddr,
    /// The same of the other agent.
    pub peer: SocketAddr,
    /// How often this agent shows that it lives.
    pub heartbeat: Duration,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StandbyFile {
    listen: SocketAddr,
    peer: SocketAddr,
    #[serde(default = "heartbeat_ms")]
    heartbeat_ms: u64,
}

const fn heartbeat_ms() -> u64 {
    200
}

impl StandbyFile {
    pub(super) fn check(&self, path: &Path) -> Result<Standby, ConfigError> {
        let wrong = |key: &str, message: String| Err(ConfigError::invalid(path, key, message));
        for (key, address) in [("listen", self.listen), ("peer", self.peer)] {
            if address.ip().is_unspecified() || address.port() == 0 {
                let message = format!(
                    "{address} must be the agent's own address and port: the two agents compare them"
                );
                return wrong(&format!("standby.{key}"), message);
            }
        }
        if self.listen == self.peer {
            let message = "give the other agent's address, not this one's";
            return wrong("standby.peer", message.to_owned());
        }
        if !(50..=10_000).contains(&self.heartbeat_ms) {
            let message = format!(
                "{} is out of range; use 50 to 10000 milliseconds",
                self.heartbeat_ms
            );
            return wrong("standby.heartbeat_ms", message);
        }
        Ok(Standby {
            listen: self.listen,
            peer: self.peer,
            heartbeat: Duration::from_millis(self.heartbeat_ms),
        })
    }
}
