//! The config file as checked types: whoever holds a [`Config`] need not check again.

mod announcement;
mod limits;
mod probes;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use admin::config::{AdminSection, ConfigError, LogSection};
use serde::Deserialize;
use tunnel_io::tun::is_device_name;
use tunnel_io::xdp::interfaces::{XdpConfig, XdpSection};
use wire::gre::TunnelKey;
use wire::mark::{Mark, RelayId};

pub use announcement::AnnouncementConfig;
use announcement::AnnouncementSection;
pub use limits::Limits;
use limits::LimitsSection;
pub use probes::Probes;
use probes::ProbesSection;

/// The weight of a concentrator that has none of its own.
const DEFAULT_WEIGHT: u16 = 100;
/// More would make every packet's choice long.
pub(crate) const MAX_CONCENTRATORS: usize = 16;
/// The port of the admin pages when the file names none.
const DEFAULT_ADMIN_PORT: u16 = 9101;
/// Every IPv4 link carries this much (RFC 791 section 3.1).
const MIN_MTU_IPV4: u16 = 576;
/// A tunnel must carry IPv6 packets of this size (RFC 7676 section 3).
const MIN_MTU_IPV6: u16 = 1_280;
/// What GRE with a key leaves of 1,500 bytes, with an outer IPv4 or IPv6 header.
const DEFAULT_MTU: (u16, u16) = (1_472, 1_452);

/// The ingress's checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
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

/// The tunnel's end at this edge.
#[derive(Debug, Clone)]
pub struct Tunnel {
    /// Our outer address.
    pub source: IpAddr,
    /// The far ends; there is one at least.
    pub concentrators: Vec<Concentrator>,
    /// The same on every edge; of no importance with one concentrator.
    pub hash_key: HashKey,
    /// The largest inner packet.
    pub mtu: u16,
    /// The DSCP of the outer header, 0..=63.
    pub outer_dscp: u8,
    /// The TUN device's name.
    pub device: String,
}

/// A far end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Concentrator {
    /// The outer destination.
    pub address: IpAddr,
    /// Its share of the user agents; 0 is a standby.
    pub weight: u16,
}

/// What keeps strangers from choosing addresses that all go to one concentrator.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct HashKey(pub [u8; 16]);

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashKey")
    }
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

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TunnelSection {
    key: u32,
    source: IpAddr,
    concentrators: Vec<ConcentratorEntry>,
    hash_key: Option<String>,
    mtu: Option<u16>,
    #[serde(default)]
    outer_dscp: u8,
    #[serde(default = "default_device")]
    device: String,
}

/// An address, or an address with its weight.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(
    untagged,
    expecting = "an address such as \"10.0.9.2\", or { address = \"10.0.9.2\", weight = 100 }"
)]
enum ConcentratorEntry {
    Address(IpAddr),
    Weighted(WeightedEntry),
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct WeightedEntry {
    address: IpAddr,
    weight: u16,
}

impl From<ConcentratorEntry> for Concentrator {
    fn from(entry: ConcentratorEntry) -> Self {
        match entry {
            ConcentratorEntry::Address(address) => Self {
                address,
                weight: DEFAULT_WEIGHT,
            },
            ConcentratorEntry::Weighted(WeightedEntry { address, weight }) => {
                Self { address, weight }
            }
        }
    }
}

fn default_device() -> String {
    "sipcast0".to_owned()
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

impl Tunnel {
    fn check(
        section: TunnelSection,
        service_addresses: &[IpAddr],
    ) -> Result<Self, (&'static str, String)> {
        let source = section.source;
        check_end("tunnel.source", source, service_addresses)?;
        let concentrators: Vec<Concentrator> = section
            .concentrators
            .into_iter()
            .map(Concentrator::from)
            .collect();
        check_concentrators(&concentrators, source, service_addresses)?;
        let hash_key = check_hash_key(section.hash_key.as_deref(), &concentrators)?;
        let (ipv4, ipv6) = DEFAULT_MTU;
        let mtu = section
            .mtu
            .unwrap_or(if source.is_ipv4() { ipv4 } else { ipv6 });
        check_mtu(mtu, service_addresses)?;
        if section.outer_dscp > 63 {
            let message = format!("{} is not a DSCP; use 0 to 63", section.outer_dscp);
            return Err(("tunnel.outer_dscp", message));
        }
        if !is_device_name(&section.device) {
            let message = format!(
                "{:?} is not a device name; use 1 to 15 letters and digits",
                section.device
            );
            return Err(("tunnel.device", message));
        }
        Ok(Self {
            source,
            concentrators,
            hash_key,
            mtu,
            outer_dscp: section.outer_dscp,
            device: section.device,
        })
    }
}

fn check_concentrators(
    concentrators: &[Concentrator],
    source: IpAddr,
    service_addresses: &[IpAddr],
) -> Result<(), (&'static str, String)> {
    let wrong = |message: String| Err(("tunnel.concentrators", message));
    if !(1..=MAX_CONCENTRATORS).contains(&concentrators.len()) {
        let count = concentrators.len();
        return wrong(format!(
            "name 1 to {MAX_CONCENTRATORS} concentrators, there are {count}"
        ));
    }
    for (index, Concentrator { address, .. }) in concentrators.iter().enumerate() {
        check_end("tunnel.concentrators", *address, service_addresses)?;
        if source.is_ipv4() != address.is_ipv4() || source == *address {
            return wrong(format!(
                "{address} must be another machine's address of the same IP version as \
                 tunnel.source, {source}"
            ));
        }
        let before = &concentrators[..index];
        if before.iter().any(|other| other.address == *address) {
            return wrong(format!("{address} is named twice; remove one"));
        }
    }
    if concentrators.iter().all(|one| one.weight == 0) {
        return wrong("all are standbys; give one a weight of more than 0".to_owned());
    }
    Ok(())
}

/// 32 hexadecimal digits, needed where packets are shared out.
fn check_hash_key(
    text: Option<&str>,
    concentrators: &[Concentrator],
) -> Result<HashKey, (&'static str, String)> {
    let key = "tunnel.hash_key";
    let Some(text) = text else {
        if concentrators.len() < 2 {
            return Ok(HashKey::default());
        }
        let message = "name 32 hexadecimal digits, the same on every edge (openssl rand -hex 16), \
                       since there are several concentrators";
        return Err((key, message.to_owned()));
    };
    let number = u128::from_str_radix(text, 16);
    match number {
        Ok(number) if text.len() == 32 => Ok(HashKey(number.to_be_bytes())),
        Ok(_) | Err(_) => Err((
            key,
            "not 32 hexadecimal digits; make some with openssl rand -hex 16".to_owned(),
        )),
    }
}

fn check_end(
    key: &'static str,
    end: IpAddr,
    service_addresses: &[IpAddr],
) -> Result<(), (&'static str, String)> {
    if !is_unicast(end) {
        return Err((
            key,
            format!("{end} is not an address that hosts can send to"),
        ));
    }
    if service_addresses.contains(&end) {
        let message = format!(
            "{end} is a service address; a tunnel needs an address that only one machine has"
        );
        return Err((key, message));
    }
    Ok(())
}

fn check_mtu(mtu: u16, service_addresses: &[IpAddr]) -> Result<(), (&'static str, String)> {
    let (minimum, reason) = if service_addresses.iter().any(IpAddr::is_ipv6) {
        (MIN_MTU_IPV6, "there is an IPv6 service address")
    } else {
        (MIN_MTU_IPV4, "IPv4 asks for it")
    };
    if mtu < minimum {
        let message = format!("{mtu} is too small; use at least {minimum}, because {reason}");
        return Err(("tunnel.mtu", message));
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
