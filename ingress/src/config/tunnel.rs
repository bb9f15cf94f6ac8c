//! `[tunnel]`: its ends, and how packets are wrapped.

use std::fmt;
use std::net::IpAddr;

use serde::Deserialize;
use tunnel_io::tun::is_device_name;
use tunnel_io::xdp::tables::MAX_SOURCES;
use wire::encapsulation::Encapsulation;
use wire::gre::TunnelKey;

use super::is_unicast;

/// The weight of a concentrator that has none of its own.
const DEFAULT_WEIGHT: u16 = 100;
/// More would make every packet's choice long.
pub(crate) const MAX_CONCENTRATORS: usize = 16;
/// Every IPv4 link carries this much (RFC 791 section 3.1).
const MIN_MTU_IPV4: u16 = 576;
/// A tunnel must carry IPv6 packets of this size (RFC 7676 section 3).
const MIN_MTU_IPV6: u16 = 1_280;
/// Of nearly every path.
const DEFAULT_PATH_MTU: u16 = 1_500;

/// The tunnel's end at this edge.
#[derive(Debug, Clone)]
pub struct Tunnel {
    /// Our outer address, which probes leave from, too.
    pub source: IpAddr,
    /// More addresses of ours: with them a packet's flow chooses the one that it leaves from.
    pub extra_sources: Vec<IpAddr>,
    /// The key before a rotation: what comes back with it is still taken.
    pub old_key: Option<TunnelKey>,
    /// How packets are wrapped.
    pub encapsulation: Encapsulation,
    /// How replies get to user agents.
    pub return_path: ReturnPath,
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

impl Tunnel {
    /// The outer source addresses, `source` first.
    pub fn sources(&self) -> impl Iterator<Item = IpAddr> + '_ {
        std::iter::once(self.source).chain(self.extra_sources.iter().copied())
    }
}

/// How replies get to user agents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReturnPath {
    /// From the concentrator, past the edge.
    #[default]
    Direct,
    /// Back through the tunnel and out of this edge.
    Tunnel,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum EncapsulationName {
    #[default]
    Gre,
    GreUdp,
}

impl From<EncapsulationName> for Encapsulation {
    fn from(name: EncapsulationName) -> Self {
        match name {
            EncapsulationName::Gre => Self::Gre,
            EncapsulationName::GreUdp => Self::GreUdp,
        }
    }
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
pub(super) struct TunnelSection {
    pub(super) key: u32,
    old_key: Option<u32>,
    source: IpAddr,
    #[serde(default)]
    extra_sources: Vec<IpAddr>,
    #[serde(default)]
    encapsulation: EncapsulationName,
    #[serde(default)]
    return_path: ReturnPath,
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

impl Tunnel {
    pub(super) fn check(
        section: TunnelSection,
        service_addresses: &[IpAddr],
    ) -> Result<Self, (&'static str, String)> {
        let source = section.source;
        check_end("tunnel.source", source, service_addresses)?;
        let concentrators: Vec<Concentrator> = section
            .concentrators
            .iter()
            .copied()
            .map(Concentrator::from)
            .collect();
        check_concentrators(&concentrators, source, service_addresses)?;
        let hash_key = check_hash_key(section.hash_key.as_deref(), &concentrators)?;
        let encapsulation = Encapsulation::from(section.encapsulation);
        check_extra_sources(&section, encapsulation, service_addresses)?;
        if section.old_key == Some(section.key) {
            let message = "is tunnel.key; name the one before it, or none".to_owned();
            return Err(("tunnel.old_key", message));
        }
        let overhead = encapsulation.overhead(source.is_ipv4());
        let mtu = section.mtu.unwrap_or(DEFAULT_PATH_MTU - overhead);
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
            extra_sources: section.extra_sources,
            old_key: section.old_key.map(TunnelKey),
            encapsulation,
            return_path: section.return_path,
            concentrators,
            hash_key,
            mtu,
            outer_dscp: section.outer_dscp,
            device: section.device,
        })
    }
}

fn check_extra_sources(
    section: &TunnelSection,
    encapsulation: Encapsulation,
    service_addresses: &[IpAddr],
) -> Result<(), (&'static str, String)> {
    let (key, source, extra) = (
        "tunnel.extra_sources",
        section.source,
        &section.extra_sources,
    );
    if encapsulation == Encapsulation::GreUdp && !extra.is_empty() {
        let message = "are of no use with encapsulation \"gre-udp\", which has ports for that";
        return Err((key, message.to_owned()));
    }
    if extra.len() >= MAX_SOURCES {
        let most = MAX_SOURCES - 1;
        return Err((
            key,
            format!("there are {}; name {most} at most", extra.len()),
        ));
    }
    for (index, address) in extra.iter().enumerate() {
        check_end(key, *address, service_addresses)?;
        if address.is_ipv4() != source.is_ipv4() {
            let message = format!("{address} and tunnel.source, {source}, differ in IP version");
            return Err((key, message));
        }
        if *address == source || extra[..index].contains(address) {
            return Err((key, format!("{address} is named twice; remove one")));
        }
    }
    Ok(())
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
