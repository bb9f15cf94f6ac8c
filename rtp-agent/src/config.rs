//! `rtp-agent.toml` as checked types.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use admin::config::{AdminSection, ConfigError, LogSection};
use admin::credentials::{Credentials, Files};
use rustls::pki_types::ServerName;
use serde::Deserialize;
use tunnel_io::xdp::interfaces::{XdpConfig, XdpSection};

use crate::ng;
use crate::ports::PortRange;
use crate::session::Limits;
use crate::sockets::MediaThreads;

mod standby;

pub use standby::Standby;
use standby::StandbyFile;

const ADMIN_PORT: u16 = 9103;
/// Media threads: they share one lock.
const MAX_THREADS: u16 = 64;
/// Longer would be heard as jitter.
const MAX_GATHER_US: u32 = 5000;

/// The checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The agent's name, as in its certificate.
    pub name: String,
    /// Where and how media are relayed.
    pub media: Media,
    /// The concentrators and how both ends prove who they are; without it only `ng` controls the relay.
    pub control: Option<Control>,
    /// rtpengine's protocol.
    pub ng: ng::settings::Settings,
    /// The fast path.
    pub xdp: XdpConfig,
    /// The other agent, where this one is half of a pair.
    pub standby: Option<Standby>,
    /// Where the admin pages are.
    pub admin_listen: SocketAddr,
    /// Logs.
    pub log: LogSection,
}

/// The `[media]` section.
#[derive(Debug, Clone)]
pub struct Media {
    /// One address for media, or one of each family; the first is used most.
    pub addresses: Vec<IpAddr>,
    /// The ports for media.
    pub ports: PortRange,
    /// When sessions end.
    pub limits: Limits,
    /// How long a closed port rests.
    pub quarantine: Duration,
    /// Leases kept a concentrator at most.
    pub max_stock: u32,
    /// Sessions at a time, leases included; `usize::MAX` where only the ports are a limit.
    pub max_sessions: usize,
    /// Packets held by all sessions together.
    pub max_held: usize,
    /// How packets are waited for.
    pub threads: MediaThreads,
    /// How ports are had.
    pub sockets: Sockets,
}

/// `media.sockets`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sockets {
    /// Shared where that is possible, else one for every port.
    #[default]
    Auto,
    /// Few for all ports, or the program does not start.
    Shared,
    /// One for every port.
    PerPort,
}

/// The `[control]` section.
#[derive(Debug, Clone)]
pub struct Control {
    /// Whom to dial.
    pub concentrators: Vec<Concentrator>,
    /// PEM, this agent's certificate and its chain.
    pub certificate: PathBuf,
    /// PEM, its private key.
    pub private_key: PathBuf,
    /// PEM, the authorities whose concentrators are believed.
    pub ca: PathBuf,
}

/// The other end of a control link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Concentrator {
    /// Where to dial.
    pub address: SocketAddr,
    /// The name that must be in its certificate, and is its own.
    pub server_name: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    media: MediaFile,
    control: Option<ControlFile>,
    ng: Option<ng::settings::SettingsFile>,
    #[serde(default)]
    xdp: XdpSection,
    standby: Option<StandbyFile>,
    #[serde(default)]
    admin: AdminSection,
    #[serde(default)]
    log: LogSection,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MediaFile {
    addresses: Vec<IpAddr>,
    ports: String,
    #[serde(default = "idle_timeout_s")]
    idle_timeout_s: u64,
    #[serde(default = "half_open_timeout_s")]
    half_open_timeout_s: u64,
    #[serde(default = "one_way_timeout_s")]
    one_way_timeout_s: u64,
    #[serde(default = "held_timeout_s")]
    held_timeout_s: u64,
    #[serde(default = "learning_window_s")]
    learning_window_s: u64,
    #[serde(default = "lease_timeout_s")]
    lease_timeout_s: u64,
    #[serde(default = "linger_ms")]
    linger_ms: u64,
    #[serde(default = "quarantine_ms")]
    quarantine_ms: u64,
    #[serde(default = "max_stock")]
    max_stock: u32,
    max_sessions: Option<usize>,
    #[serde(default = "max_held_packets")]
    max_held_packets: usize,
    threads: Option<u16>,
    #[serde(default = "gather_us")]
    gather_us: u32,
    #[serde(default)]
    sockets: Sockets,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ControlFile {
    concentrators: Vec<ConcentratorFile>,
    server_name: Option<String>,
    certificate: PathBuf,
    private_key: PathBuf,
    ca: PathBuf,
}

/// An address, for which the section's `server_name` holds, or an address with its own.
#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "an address such as \"10.0.9.2:7060\", or { address = \"10.0.9.2:7060\", server_name = \"c1\" }"
)]
enum ConcentratorFile {
    Address(SocketAddr),
    Named(NamedFile),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedFile {
    address: SocketAddr,
    server_name: String,
}

const fn idle_timeout_s() -> u64 {
    60
}

/// Longer than a proxy lets a phone ring: Timer C is at least 3 minutes (RFC 3261 section 16.6).
const fn half_open_timeout_s() -> u64 {
    240
}

/// A phone that suppresses silence may say nothing for minutes, and still sends RTCP.
const fn one_way_timeout_s() -> u64 {
    300
}

const fn held_timeout_s() -> u64 {
    3600
}

/// A callee may think about the offer of a re-INVITE, and the offerer restart its stream only then.
const fn learning_window_s() -> u64 {
    60
}

const fn lease_timeout_s() -> u64 {
    30
}

const fn linger_ms() -> u64 {
    2000
}

const fn quarantine_ms() -> u64 {
    5000
}

const fn max_stock() -> u32 {
    256
}

const fn max_held_packets() -> usize {
    8192
}

const fn gather_us() -> u32 {
    1000
}

/// One for each core that the program may use.
fn all_cores() -> u16 {
    let cores = std::thread::available_parallelism().map_or(1, Into::into);
    u16::try_from(cores).map_or(MAX_THREADS, |cores| cores.min(MAX_THREADS))
}

impl admin::run::Config for Config {
    fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::check(path, admin::config::load(path)?)
    }

    fn log(&self) -> &LogSection {
        &self.log
    }
}

impl Config {
    fn check(path: &Path, file: File) -> Result<Self, ConfigError> {
        let wrong = |key: &str, message: String| Err(ConfigError::invalid(path, key, message));
        if file.name.is_empty() {
            return wrong(
                "name",
                "give the agent the name in its certificate".to_owned(),
            );
        }
        let media = check_media(path, &file.media)?;
        let ng = file.ng.map(|ng| ng.check(path)).transpose()?;
        let ng = ng.unwrap_or_default();
        if file.control.is_none() && !ng.is_on() {
            let message = "name the concentrators, or let proxies in by [ng]";
            return wrong("control", message.to_owned());
        }
        if file.standby.is_some() && (file.control.is_none() || ng.is_on()) {
            let message =
                "a pair is controlled by concentrators; it needs [control], and has no [ng]";
            return wrong("standby", message.to_owned());
        }
        if file.standby.is_some() && ServerName::try_from(file.name.as_str()).is_err() {
            let message = "must be a DNS name: the two agents of a pair prove it to each other";
            return wrong("name", message.to_owned());
        }
        let standby = file
            .standby
            .map(|standby| standby.check(path))
            .transpose()?;
        let control = file.control.map(|control| check_control(path, control));
        let xdp = file.xdp.check();
        let xdp = xdp.map_err(|(key, message)| ConfigError::invalid(path, key, message))?;
        Ok(Self {
            name: file.name,
            media,
            control: control.transpose()?,
            ng,
            xdp,
            standby,
            admin_listen: file.admin.listen(path, ADMIN_PORT)?,
            log: file.log,
        })
    }
}

fn check_control(path: &Path, file: ControlFile) -> Result<Control, ConfigError> {
    let wrong = |key: &str, message: String| Err(ConfigError::invalid(path, key, message));
    if file.concentrators.is_empty() {
        let message = "name at least one concentrator, as \"address:port\"";
        return wrong("control.concentrators", message.to_owned());
    }
    let mut concentrators: Vec<Concentrator> = Vec::new();
    for entry in file.concentrators {
        let (address, server_name) = match entry {
            ConcentratorFile::Address(address) => (address, file.server_name.clone()),
            ConcentratorFile::Named(named) => (named.address, Some(named.server_name)),
        };
        let Some(server_name) = server_name else {
            let message = format!("name the concentrator at {address}, as in its certificate");
            return wrong("control.server_name", message);
        };
        if ServerName::try_from(server_name.as_str()).is_err() {
            let message = format!(
                "{server_name:?} is no host name; use the DNS name in the concentrator's certificate"
            );
            return wrong("control.server_name", message);
        }
        if concentrators.iter().any(|other| other.address == address) {
            let message = format!("{address} is named twice; remove one");
            return wrong("control.concentrators", message);
        }
        concentrators.push(Concentrator {
            address,
            server_name,
        });
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    let certificate = folder.join(&file.certificate);
    let private_key = folder.join(&file.private_key);
    let ca = folder.join(&file.ca);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let files = Files {
        certificate: &certificate,
        private_key: &private_key,
        ca: &ca,
    };
    Credentials::load(&files, &provider).map_err(|error| error.in_section(path, "control"))?;
    Ok(Control {
        concentrators,
        certificate,
        private_key,
        ca,
    })
}

fn check_media(path: &Path, file: &MediaFile) -> Result<Media, ConfigError> {
    let wrong = |key: &str, message: String| Err(ConfigError::invalid(path, key, message));
    let usable = match *file.addresses.as_slice() {
        [_] => true,
        [first, second] => first.is_ipv4() != second.is_ipv4(),
        _ => false,
    };
    if !usable {
        let message = "give exactly one address, or one of IPv4 and one of IPv6";
        return wrong("media.addresses", message.to_owned());
    }
    let mut addresses = file.addresses.iter();
    if let Some(address) =
        addresses.find(|address| address.is_unspecified() || address.is_multicast())
    {
        let message = format!("{address} cannot be written into SDP; use an address of this host");
        return wrong("media.addresses", message);
    }
    let Some(ports) = parse_ports(&file.ports) else {
        let message = format!(
            "{:?} holds no even/odd pair of ports from 1024 up; use, for example, \"30000-39999\"",
            file.ports
        );
        return wrong("media.ports", message);
    };
    let limits = check_limits(path, file)?;
    check_range(path, "media.quarantine_ms", file.quarantine_ms)?;
    if file.max_sessions == Some(0) {
        let message =
            "0 lets no call in; use at least 1, or leave it out for as many as ports allow";
        return wrong("media.max_sessions", message.to_owned());
    }
    let threads = file.threads.unwrap_or_else(all_cores);
    if !(1..=MAX_THREADS).contains(&threads) {
        let message = format!("{threads} is out of range; use 1 to {MAX_THREADS}");
        return wrong("media.threads", message);
    }
    if file.gather_us > MAX_GATHER_US {
        let message = format!(
            "{} is out of range; use 0 to {MAX_GATHER_US} microseconds",
            file.gather_us
        );
        return wrong("media.gather_us", message);
    }
    Ok(Media {
        addresses: file.addresses.clone(),
        ports,
        limits,
        quarantine: Duration::from_millis(file.quarantine_ms),
        max_stock: file.max_stock,
        max_sessions: file.max_sessions.unwrap_or(usize::MAX),
        max_held: file.max_held_packets,
        threads: MediaThreads {
            threads: threads.into(),
            gather: Duration::from_micros(file.gather_us.into()),
        },
        sockets: file.sockets,
    })
}

fn check_limits(path: &Path, file: &MediaFile) -> Result<Limits, ConfigError> {
    for (key, value) in [
        ("media.idle_timeout_s", file.idle_timeout_s),
        ("media.half_open_timeout_s", file.half_open_timeout_s),
        ("media.held_timeout_s", file.held_timeout_s),
        ("media.learning_window_s", file.learning_window_s),
        ("media.lease_timeout_s", file.lease_timeout_s),
    ] {
        if !(1..=86_400).contains(&value) {
            let message = format!("{value} is out of range; use 1 to 86400 seconds");
            return Err(ConfigError::invalid(path, key, message));
        }
    }
    if file.one_way_timeout_s > 86_400 {
        let message = format!(
            "{} is out of range; use 1 to 86400 seconds, or 0 for no limit",
            file.one_way_timeout_s
        );
        let key = "media.one_way_timeout_s";
        return Err(ConfigError::invalid(path, key, message));
    }
    check_range(path, "media.linger_ms", file.linger_ms)?;
    Ok(Limits {
        idle: Duration::from_secs(file.idle_timeout_s),
        half_open: Duration::from_secs(file.half_open_timeout_s),
        one_way: (file.one_way_timeout_s > 0).then(|| Duration::from_secs(file.one_way_timeout_s)),
        held: Duration::from_secs(file.held_timeout_s),
        learning: Duration::from_secs(file.learning_window_s),
        lease: Duration::from_secs(file.lease_timeout_s),
        linger: Duration::from_millis(file.linger_ms),
    })
}

fn check_range(path: &Path, key: &str, milliseconds: u64) -> Result<(), ConfigError> {
    if milliseconds > 600_000 {
        let message = format!("{milliseconds} is out of range; use 0 to 600000 milliseconds");
        return Err(ConfigError::invalid(path, key, message));
    }
    Ok(())
}

fn parse_ports(text: &str) -> Option<PortRange> {
    let (first, last) = text.split_once('-')?;
    PortRange::new(first.trim().parse().ok()?, last.trim().parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_in_configs_is_in_order_but_for_its_certificates() {
        let error = check(include_str!("../../configs/rtp-agent.toml")).unwrap_err();
        assert!(
            error.contains("control.certificate: cannot read"),
            "{error}"
        );
        assert!(error.contains("sipcast-lab certs"), "{error}");
    }

    /// What stands in the example, what shall stand there instead, and what is said to that.
    const WRONG: &[(&str, &str, &str)] = &[
        ("name = \"relay1\"", "name = \"\"", "name: give the agent"),
        (
            "30000-39999",
            "30001-30002",
            "media.ports: \"30001-30002\" holds no",
        ),
        ("[\"10.0.1.2\"]", "[]", "media.addresses: give exactly one"),
        (
            "[\"10.0.1.2\"]",
            "[\"10.0.1.2\", \"10.0.1.3\"]",
            "media.addresses: give exactly one address, or one of IPv4",
        ),
        (
            "[\"10.0.1.2\"]",
            "[\"10.0.1.2\", \"::\"]",
            "media.addresses: :: cannot",
        ),
        (
            "[\"10.0.1.2\"]",
            "[\"0.0.0.0\"]",
            "media.addresses: 0.0.0.0 cannot",
        ),
        (
            "idle_timeout_s = 60",
            "idle_timeout_s = 0",
            "media.idle_timeout_s: 0 is out",
        ),
        (
            "linger_ms = 2000",
            "linger_ms = 9999999",
            "media.linger_ms: 9999999 is out",
        ),
        (
            "one_way_timeout_s = 300",
            "one_way_timeout_s = 90000",
            "media.one_way_timeout_s: 90000 is out",
        ),
        (
            "held_timeout_s = 3600",
            "held_timeout_s = 0",
            "media.held_timeout_s: 0 is out",
        ),
        (
            "[\"10.0.9.2:7060\"]",
            "[]",
            "control.concentrators: name at least",
        ),
        (
            "server_name = \"c1\"",
            "server_name = \"a b\"",
            "control.server_name: \"a b\"",
        ),
        (
            "listen = []  ",
            "listen = [\"10.0.1.2:2223\"]  ",
            "ng.allow: name the networks",
        ),
        (
            "delete_delay_s = 30",
            "delete_delay_s = 3601",
            "ng.delete_delay_s: out of range",
        ),
        (
            "sockets = \"auto\"",
            "sockets = \"many\"",
            "unknown variant `many`, expected one of `auto`, `shared`, `per-port`",
        ),
        ("linger_ms", "lingre_ms", "unknown field `lingre_ms`"),
        (
            "gather_us = 1000",
            "gather_us = 9999",
            "media.gather_us: 9999",
        ),
        (
            "gather_us = 1000",
            "gather_us = 1000\nthreads = 0",
            "media.threads: 0 is out",
        ),
        (
            "mode = \"off\"",
            "mode = \"native\"",
            "xdp.interfaces: name the interfaces",
        ),
        (
            "# max_sessions = 2000",
            "max_sessions = 0",
            "media.max_sessions: 0 lets no call in",
        ),
    ];

    #[test]
    fn what_cannot_work_is_named_with_its_key_and_what_to_change() {
        for (good, bad, expected) in WRONG {
            let text = include_str!("../../configs/rtp-agent.toml");
            assert!(text.contains(good), "{good}");
            let error = check(&text.replacen(good, bad, 1)).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn without_concentrators_only_ng_may_control_the_relay() {
        let media =
            "name = \"relay1\"\n[media]\naddresses = [\"10.0.1.2\"]\nports = \"30000-39999\"\n";
        let error = check(media).unwrap_err();
        assert!(error.contains("control: name the concentrators"), "{error}");
        let ng = "[ng]\nlisten = [\"10.0.1.2:2223\"]\nallow = [\"10.0.9.0/24\"]\n";
        let config = check(&format!("{media}{ng}")).unwrap();
        assert!(config.control.is_none());
        assert!(config.ng.allows("10.0.9.7".parse().unwrap()));
        assert!(!config.ng.allows("10.0.8.7".parse().unwrap()));
        let pair = "[standby]\nlisten = \"10.0.1.11:7070\"\npeer = \"10.0.1.12:7070\"\n";
        let error = check(&format!("{media}{ng}{pair}")).unwrap_err();
        assert!(error.contains("standby: a pair is controlled"), "{error}");
    }

    #[test]
    fn what_cannot_work_in_a_pair_is_named_with_its_key() {
        let text = include_str!("../../configs/rtp-agent.toml");
        let good: String = text
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(line) if !line.starts_with(' ') => format!("{line}\n"),
                Some(_) | None => format!("{line}\n"),
            })
            .collect();
        let error = check(&good).unwrap_err();
        assert!(error.contains("control.certificate"), "{error}");
        for (from, to, expected) in [
            ("10.0.1.11:7070", "0.0.0.0:7070", "standby.listen: 0.0.0.0"),
            (
                "10.0.1.12:7070",
                "10.0.1.11:7070",
                "standby.peer: give the other",
            ),
            (
                "heartbeat_ms = 200",
                "heartbeat_ms = 1",
                "standby.heartbeat_ms: 1 is",
            ),
            (
                "name = \"relay1\"",
                "name = \"a b\"",
                "name: must be a DNS name",
            ),
        ] {
            assert!(good.contains(from), "{from}");
            let error = check(&good.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    fn check(text: &str) -> Result<Config, String> {
        let path = Path::new("rtp-agent.toml");
        admin::config::parse(path, text)
            .and_then(|file| Config::check(path, file))
            .map_err(|error| error.to_string())
    }
}
