//! The config file as checked types: whoever holds a [`Config`] need not check again.

mod announcement;
mod limits;
mod probes;
mod tunnel;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use admin::config::{AdminSection, ConfigError, LogSection};
use serde::Deserialize;
use tunnel_io::xdp::interfaces::{XdpConfig, XdpSection};
use wire::gre::TunnelKey;
use wire::mark::{Mark, RelayId};

pub use announcement::AnnouncementConfig;
use announcement::AnnouncementSection;
pub use limits::Limits;
use limits::LimitsSection;
pub use probes::Probes;
use probes::ProbesSection;
pub(crate) use tunnel::MAX_CONCENTRATORS;
use tunnel::TunnelSection;
pub use tunnel::{Concentrator, HashKey, ReturnPath, Tunnel};

/// The port of the admin pages when the file names none.
const DEFAULT_ADMIN_PORT: u16 = 9101;

/// The ingress's checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it came from.
    pub file: PathBuf,
    /// The anycast addresses whose packets are captured.
    pub service_addresses: Vec<IpAddr>,
    /// What is stamped (the mark) and written into the GRE header (the key).
    pub relay: RelayId,
    /// The tunnel.
    pub tunnel: Tunnel,
    /// Who may send, and how fast.
    pub limits: Limits,
    /// The fast path.
    pub xdp: XdpConfig,
    /// How the concentrators are watched.
    pub probes: Probes,
    /// The routes that the BGP speaker redistributes.
    pub announcement: AnnouncementConfig,
    /// Where the admin pages are served.
    pub admin_listen: SocketAddr,
    /// What is logged, and how.
    pub log: LogSection,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    service_addresses: Vec<IpAddr>,
    mark: u8,
    tunnel: TunnelSection,
    #[serde(default)]
    limits: LimitsSection,
    #[serde(default)]
    xdp: XdpSection,
    #[serde(default)]
    probes: ProbesSection,
    #[serde(default)]
    announcement: AnnouncementSection,
    #[serde(default)]
    admin: AdminSection,
    #[serde(default)]
    log: LogSection,
}

impl admin::run::Config for Config {
    fn load(path: &Path) -> Result<Self, ConfigError> {
        let file: File = admin::config::load(path)?;
        Self::check(path, file)
    }

    fn log(&self) -> &LogSection {
        &self.log
    }
}

impl Config {
    fn check(path: &Path, file: File) -> Result<Self, ConfigError> {
        let invalid = |key: &str, message: String| Err(ConfigError::invalid(path, key, message));
        if let Err((key, message)) = check_service_addresses(&file.service_addresses) {
            return invalid(&key, message);
        }
        let mark = match Mark::new(file.mark) {
            Some(mark) if !mark.is_unmarked() => mark,
            Some(_) | None => {
                let message = format!("{} is not a mark; use 1 to {}", file.mark, Mark::MAX);
                return invalid("mark", message);
            }
        };
        let key = TunnelKey(file.tunnel.key);
        let admin_listen = file.admin.listen(path, DEFAULT_ADMIN_PORT)?;
        let probes = match file.probes.check() {
            Ok(probes) => probes,
            Err((key, message)) => return invalid(key, message),
        };
        let limits = match file.limits.check() {
            Ok(limits) => limits,
            Err((key, message)) => return invalid(key, message),
        };
        let xdp = match file.xdp.check() {
            Ok(xdp) => xdp,
            Err((key, message)) => return invalid(key, message),
        };
        let announcement = match file.announcement.check(&file.service_addresses) {
            Ok(announcement) => announcement,
            Err((key, message)) => return invalid(key, message),
        };
        match Tunnel::check(file.tunnel, &file.service_addresses) {
            Err((key, message)) => invalid(key, message),
            Ok(tunnel) => Ok(Self {
                file: path.to_owned(),
                service_addresses: file.service_addresses,
                relay: RelayId { key, mark },
                tunnel,
                limits,
                xdp,
                probes,
                announcement,
                admin_listen,
                log: file.log,
            }),
        }
    }
}

fn check_service_addresses(addresses: &[IpAddr]) -> Result<(), (String, String)> {
    if addresses.is_empty() {
        let message = "name at least one service address, such as \"198.51.100.1\"";
        return Err(("service_addresses".to_owned(), message.to_owned()));
    }
    for (index, address) in addresses.iter().enumerate() {
        let key = format!("service_addresses[{index}]");
        if !is_unicast(*address) {
            return Err((
                key,
                format!("{address} is not an address that hosts can send to"),
            ));
        }
        if addresses[..index].contains(address) {
            return Err((key, format!("{address} is named twice; remove one")));
        }
    }
    Ok(())
}

fn is_unicast(address: IpAddr) -> bool {
    let is_broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !address.is_unspecified() && !address.is_loopback() && !address.is_multicast() && !is_broadcast
}

/// What the shipped example says.
#[cfg(test)]
pub(crate) fn example() -> Config {
    let text = include_str!("../../configs/ingress.toml");
    let path = Path::new("ingress.toml");
    let checked = admin::config::parse(path, text).and_then(|file| Config::check(path, file));
    checked.unwrap_or_else(|error| panic!("{error}"))
}

#[cfg(test)]
mod tests;
