//! The `[ng]` section of the configuration.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use admin::config::ConfigError;
use ipnetwork::IpNetwork;
use serde::Deserialize;

/// From where media of a party may come whose address signalling does not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownSource {
    /// From anywhere: the first source is learnt and kept to.
    #[default]
    Any,
    /// From nowhere but the private address in the SDP.
    Exact,
}

/// The checked section.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// Where requests are heard; nowhere when the protocol is off.
    pub listen: Vec<SocketAddr>,
    /// Whose requests are heard.
    pub allow: Vec<IpNetwork>,
    /// Calls at a time.
    pub max_sessions: usize,
    /// Between a `delete` and the end, unless the request says otherwise.
    pub delete_delay: Duration,
    /// See [`UnknownSource`].
    pub unknown_source: UnknownSource,
}

/// The section as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SettingsFile {
    #[serde(default)]
    listen: Vec<SocketAddr>,
    #[serde(default)]
    allow: Vec<IpNetwork>,
    #[serde(default = "max_sessions")]
    max_sessions: usize,
    #[serde(default = "delete_delay_s")]
    delete_delay_s: u64,
    #[serde(default)]
    unknown_source: UnknownSource,
}

const fn max_sessions() -> usize {
    10_000
}

/// As in rtpengine: a call that forks serially is deleted after each branch and goes on.
const fn delete_delay_s() -> u64 {
    30
}

impl SettingsFile {
    /// Checks it.
    pub fn check(self, path: &Path) -> Result<Settings, ConfigError> {
        let wrong =
            |key: &str, message: &str| Err(ConfigError::invalid(path, key, message.to_owned()));
        if !self.listen.is_empty() && self.allow.is_empty() {
            let message =
                "name the networks of your proxies; ng has no passwords, so nobody else is heard";
            return wrong("ng.allow", message);
        }
        if self.listen.iter().any(|address| address.port() == 0) {
            return wrong(
                "ng.listen",
                "port 0 cannot be configured in a proxy; rtpengine's is 2223",
            );
        }
        if self.max_sessions == 0 {
            return wrong(
                "ng.max_sessions",
                "0 calls would never work; leave it out or use 1 or more",
            );
        }
        if self.delete_delay_s > 3600 {
            return wrong("ng.delete_delay_s", "out of range; use 0 to 3600 seconds");
        }
        Ok(Settings {
            listen: self.listen,
            allow: self.allow,
            max_sessions: self.max_sessions,
            delete_delay: Duration::from_secs(self.delete_delay_s),
            unknown_source: self.unknown_source,
        })
    }
}

impl Settings {
    /// True where the protocol is on.
    pub const fn is_on(&self) -> bool {
        !self.listen.is_empty()
    }

    /// True where this source is heard.
    pub fn allows(&self, source: IpAddr) -> bool {
        let source = source.to_canonical();
        self.allow.iter().any(|network| network.contains(source))
    }
}
