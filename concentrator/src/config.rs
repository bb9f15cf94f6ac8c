//! The configuration: `concentrator.toml` as checked types.
//!
//! `Config::load` reads the file ([`file::File`] is its shape) and then judges what TOML cannot:
//! that (key, mark) names one relay world-wide, that an outer source belongs to one edge, that
//! certificates can be used. An error names file, line and key and says what to change; the program
//! then ends with exit code 2 and has opened nothing.
//!
//! Relative paths in the file start at the folder of the file.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use admin::config::{ConfigError, LogSection};
use admin::credentials::{Credentials, Files};
use ipnetwork::IpNetwork;
use sip::proxy::routing::Network;
use wire::encapsulation::Encapsulation;
use wire::gre::TunnelKey;
use wire::mark::{Mark, RelayId};
use wire::relay_control::GateMode;

use crate::edge_keys::EdgeKeys;
use crate::media::choice::{Pin, Pinned, Plan};
use crate::relays::rtpengine::Target;
use crate::transport::tls::Identity;

mod authentication;
mod cdr;
mod checks;
mod cluster;
mod core_link;
pub mod file;
mod media;
mod registrar;
mod relay;
mod routing;

pub use authentication::Authentication;
pub use cluster::{Access, Bucket, BucketTls, Cluster};
pub use core_link::{CoreLink, Peer};

use authentication::check_authentication;
use cdr::check_cdr;
use checks::{check_domains, check_edges, check_service_addresses, check_sip, check_tunnel};
use cluster::check_cluster;
use core_link::check_core_link;
use file::File;
pub use file::ReturnPath;
use media::{check_fallbacks, check_media, check_pins, check_relay_control};
use registrar::{check_location, check_registrar};
use routing::{check_dns, check_routing};

/// Where the admin pages are when the file does not say.
const DEFAULT_ADMIN_PORT: u16 = 9102;
/// A cookie key that is shorter is no match for HMAC-SHA-256.
const MIN_COOKIE_KEY: usize = 32;

/// Everything the program was told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it came from.
    pub file: PathBuf,
    /// The name of this concentrator.
    pub name: String,
    /// The anycast addresses.
    pub service_addresses: Vec<IpAddr>,
    /// The domains that this service is the registrar of, in lower case.
    pub domains: Vec<String>,
    /// The tunnel's end.
    pub tunnel: Tunnel,
    /// The edges.
    pub edges: Vec<Edge>,
    /// SIP transports.
    pub sip: Sip,
    /// Registrar limits.
    pub registrar: Registrar,
    /// Who must authenticate; `None`: nobody.
    pub authentication: Option<Authentication>,
    /// Where bindings are kept over a restart.
    pub location: Option<Location>,
    /// Several concentrators that are one service; `None`: alone.
    pub cluster: Option<Cluster>,
    /// Which relay carries media, and when.
    pub media: Media,
    /// What is different for some accounts and trunks.
    pub pins: HashMap<Pinned, Pin>,
    /// Where a record of each call goes; `None`: nowhere.
    pub cdr: Option<Cdr>,
    /// The other concentrators.
    pub core_link: Option<CoreLink>,
    /// The key of the signed state; `None`: make one at the start.
    pub cookie_key: Option<CookieKey>,
    /// A second key whose signatures are accepted, while the keys rotate.
    pub previous_cookie_key: Option<CookieKey>,
    /// Where requests go that the registrar does not serve, and our unicast address.
    pub routing: sip::proxy::routing::Config,
    /// Who resolves names; empty: whom the system asks.
    pub dns_servers: Vec<SocketAddr>,
    /// Where the rtp-agents connect to; always there when an edge has one.
    pub relay_control: Option<RelayControl>,
    /// How many leases its agents keep ready for us.
    pub leases: Option<Leases>,
    /// The operator's HTTP listener.
    pub admin_listen: SocketAddr,
    /// Logs.
    pub log: LogSection,
}

/// The concentrator's end of the tunnels.
#[derive(Debug, Clone)]
pub struct Tunnel {
    /// The address that the edges send to.
    pub listen: IpAddr,
    /// The largest inner packet.
    pub mtu: u16,
    /// How replies get to user agents.
    pub return_path: ReturnPath,
    /// The name of the TUN device.
    pub device: String,
    /// The UDP port that the edges' probes are for, and their answers come from.
    pub probe_port: u16,
}

/// One edge node.
#[derive(Debug, Clone)]
pub struct Edge {
    /// The name in logs and metrics.
    pub name: String,
    /// The outer source addresses.
    pub sources: Vec<IpNetwork>,
    /// The tunnel key, which names the edge.
    pub key: TunnelKey,
    /// The key before a rotation, still accepted.
    pub old_key: Option<TunnelKey>,
    /// How its packets are wrapped.
    pub encapsulation: Encapsulation,
    /// Which user agents may come through this edge; empty means all.
    pub allowed_sources: Vec<IpNetwork>,
    /// The relays, in the order in which they stand in for each other.
    pub relays: Vec<EdgeRelay>,
    /// Agents of other edges that stand in after those.
    pub fallback: Vec<String>,
}

impl Edge {
    /// The world-wide name of one of its relays.
    pub fn relay_id(&self, relay: &EdgeRelay) -> RelayId {
        RelayId {
            key: self.key,
            mark: relay.mark,
        }
    }
}

/// One relay of an edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdgeRelay {
    /// Its mark, 1..=63.
    pub mark: Mark,
    /// The name in the rtp-agent's certificate, or the one that [`Target`] makes up.
    pub agent: String,
    /// The agents that stand in for it, where it has an order of its own.
    pub fallback: Option<Vec<String>>,
    /// Where its media may be, where that is laid down.
    pub media_addresses: Option<Vec<IpNetwork>>,
    /// Where it is, if it is an rtpengine.
    pub rtpengine: Option<Target>,
}

/// SIP transports and their limits.
#[derive(Debug, Clone)]
pub struct Sip {
    /// The port on every service address.
    pub port: u16,
    /// Listen on UDP.
    pub udp: bool,
    /// Listen on TCP.
    pub tcp: bool,
    /// TLS, where there is a certificate.
    pub tls: Option<Tls>,
    /// The port for WebSocket without TLS, on every service address.
    pub ws_port: Option<u16>,
    /// Where connections to next hops leave from.
    pub outbound_address: IpAddr,
    /// Limits of the connections.
    pub limits: TcpLimits,
    /// Transactions that the requests of one source may have made, unless it is a trunk's.
    pub max_transactions_per_source: usize,
    /// Who is told by which edge an OPTIONS came.
    pub reveal_edge_to: Vec<Network>,
}

/// TLS for phones and trunks.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The port on every service address.
    pub port: u16,
    /// The port for secure WebSocket.
    pub wss_port: Option<u16>,
    /// PEM, the certificate that phones are shown, and its chain.
    pub certificate: PathBuf,
    /// PEM, its private key.
    pub private_key: PathBuf,
    /// PEM, the authorities whose client certificates are believed.
    pub client_ca: Option<PathBuf>,
    /// PEM, the authorities whose next hops are believed.
    pub server_ca: Option<PathBuf>,
}

/// What connections may cost.
#[derive(Debug, Clone)]
pub struct TcpLimits {
    /// Connections in all.
    pub connections: usize,
    /// Connections of one source address.
    pub connections_per_source: usize,
    /// A TLS or WebSocket handshake that takes longer is given up.
    pub handshake: Duration,
    /// A connection that says nothing for so long is closed.
    pub idle: Duration,
    /// A message that is not complete after so long closes its connection.
    pub message: Duration,
    /// How long phones keep their connections while we drain.
    pub drain_grace: Duration,
}

/// Registrar limits (RFC 3261 section 10.3).
#[derive(Debug, Clone)]
pub struct Registrar {
    /// A shorter registration is answered 423.
    pub min_expires: Duration,
    /// Where the phone names none.
    pub default_expires: Duration,
    /// A longer one is shortened.
    pub max_expires: Duration,
    /// Bindings in all.
    pub max_bindings: usize,
    /// Contacts of one address-of-record.
    pub max_contacts_per_user: usize,
    /// Take a Path that the phone's Supported does not speak of (RFC 3327 section 5.3).
    pub path_without_support: bool,
    /// The Flow-Timer for phones on a connection (RFC 5626 section 4.4).
    pub flow_timer: Duration,
    /// How often a UDP phone behind a NAT is pinged; zero is never.
    pub ping_interval: Duration,
    /// Pings without an answer that end a phone's bindings; 0: none does.
    pub ping_misses: u8,
}

/// Where bindings are kept over a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The file.
    pub file: PathBuf,
    /// What to do at the start when the file makes no sense.
    pub on_corrupt: OnCorrupt,
}

/// What to do at the start when the location file makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnCorrupt {
    /// Say so and end.
    Fail,
    /// Rename the file and start without bindings.
    Empty,
}

/// Which relay carries the media of a call, and when one does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Media {
    /// Whose edge gives the relay.
    pub anchor: Anchor,
    /// When a relay is used.
    pub relay: RelayPolicy,
    /// How strictly relays take the addresses that media are expected from.
    pub source: GateMode,
    /// Whether a call ends when its relay has seen no media for too long.
    pub end_on_timeout: bool,
}

/// Records of calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cdr {
    /// The file, one line a call.
    pub file: PathBuf,
    /// Calls in progress that are kept in mind.
    pub max_calls: usize,
    /// A call that is older is recorded as lost.
    pub max_duration: Duration,
}

/// Whose edge gives the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// The edge that the caller's INVITE came through.
    Caller,
    /// The edge that the callee's registration came through.
    Callee,
    /// Both: media pass the relay of one edge, then that of the other.
    Both,
}

/// When a relay is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayPolicy {
    /// When a party is behind NAT or the address families differ.
    Auto,
    /// For every call.
    Always,
    /// Never: media go directly.
    Never,
}

/// A secret; printing it prints nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct CookieKey(pub Vec<u8>);

impl fmt::Debug for CookieKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CookieKey({} bytes)", self.0.len())
    }
}

/// Where the rtp-agents connect to.
#[derive(Debug, Clone)]
pub struct RelayControl {
    /// The listener.
    pub listen: SocketAddr,
    /// PEM, this concentrator's certificate and its chain.
    pub certificate: PathBuf,
    /// PEM, its private key.
    pub private_key: PathBuf,
    /// PEM, the authorities whose rtp-agents are believed.
    pub ca: PathBuf,
}

/// How many leases are kept ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leases {
    /// By each agent while there are few calls.
    pub min_stock: u32,
    /// By each agent at most.
    pub max_stock: u32,
    /// How long a call waits for its relay when calls come faster than leases.
    pub wait: Duration,
}

impl RelayControl {
    /// The PEM files.
    pub fn files(&self) -> Files<'_> {
        Files {
            certificate: &self.certificate,
            private_key: &self.private_key,
            ca: &self.ca,
        }
    }
}

impl admin::run::Config for Config {
    fn load(path: &Path) -> Result<Self, ConfigError> {
        let file: File = admin::config::load(path)?;
        let mut config = Self::check(path, &file)?;
        config.read_files(path, &file)?;
        Ok(config)
    }

    fn log(&self) -> &LogSection {
        &self.log
    }
}

impl Config {
    /// Judges the values; touches no other file.
    pub fn check(path: &Path, file: &File) -> Result<Self, ConfigError> {
        let place = |problem: Problem| ConfigError::invalid(path, &problem.key, problem.message);
        let admin_listen = file.admin.listen(path, DEFAULT_ADMIN_PORT)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut config = Self::from_file(file, admin_listen, folder).map_err(place)?;
        config.file = path.to_owned();
        Ok(config)
    }

    fn from_file(file: &File, admin_listen: SocketAddr, folder: &Path) -> Result<Self, Problem> {
        if file.name.trim().is_empty() {
            return problem("name", "is empty; give this concentrator a name");
        }
        check_service_addresses(file)?;
        let edges = check_edges(file)?;
        check_fallbacks(&edges)?;
        check_relay_control(file.relay_control.as_ref(), &edges)?;
        let domains = check_domains(&file.domains)?;
        let authentication = file.authentication.as_ref();
        let authentication = authentication
            .map(|section| check_authentication(section, &domains, &file.sip, folder));
        Ok(Self {
            name: file.name.clone(),
            service_addresses: file.service_addresses.clone(),
            routing: check_routing(file, &domains)?,
            dns_servers: check_dns(&file.dns)?,
            domains,
            authentication: authentication.transpose()?,
            tunnel: check_tunnel(&file.tunnel, &edges)?,
            file: PathBuf::new(),
            sip: check_sip(file, folder)?,
            registrar: check_registrar(&file.registrar)?,
            location: check_location(file.location.as_ref(), folder)?,
            cluster: check_cluster(file.cluster.as_ref(), folder)?,
            media: check_media(&file.media)?,
            cdr: check_cdr(file.cdr.as_ref(), folder)?,
            pins: check_pins(file, &edges)?,
            core_link: check_core_link(
                file.core_link.as_ref(),
                &file.name,
                file.tunnel.listen,
                &edges,
                folder,
            )?,
            edges,
            cookie_key: None,
            previous_cookie_key: None,
            relay_control: file.relay_control.as_ref().map(|control| RelayControl {
                listen: control.listen,
                certificate: folder.join(&control.certificate),
                private_key: folder.join(&control.private_key),
                ca: folder.join(&control.ca),
            }),
            leases: file.relay_control.as_ref().map(|control| Leases {
                min_stock: control.min_stock,
                max_stock: control.max_stock,
                wait: Duration::from_millis(control.lease_wait_ms),
            }),
            admin_listen,
            log: file.log.clone(),
        })
    }

    /// Reads the cookie keys, and sees that the certificates and the users can be used.
    fn read_files(&mut self, path: &Path, file: &File) -> Result<(), ConfigError> {
        let place = |problem: Problem| ConfigError::invalid(path, &problem.key, problem.message);
        let folder = path.parent().unwrap_or(Path::new(""));
        let keys = &file.cookie;
        if keys.key_file.is_none() && keys.previous_key_file.is_some() {
            let message = "is of no use without cookie.key_file, which signs";
            return Err(place(Problem {
                key: "cookie.previous_key_file".to_owned(),
                message: message.to_owned(),
            }));
        }
        let read = |key, file: &Option<PathBuf>| {
            let file = file.as_deref();
            file.map(|file| cookie_key(key, folder, file)).transpose()
        };
        self.cookie_key = read("cookie.key_file", &keys.key_file).map_err(place)?;
        let previous = read("cookie.previous_key_file", &keys.previous_key_file);
        self.previous_cookie_key = previous.map_err(place)?;
        if let Some(authentication) = &self.authentication {
            let key = "authentication.users_file";
            let users = authentication.load_users();
            users.map_err(|message| ConfigError::invalid(path, key, message))?;
        }
        if let Some(control) = &self.relay_control {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            Credentials::load(&control.files(), &provider)
                .map_err(|error| error.in_section(path, "relay_control"))?;
        }
        if let Some(link) = &self.core_link {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            Credentials::load(&link.files(), &provider)
                .map_err(|error| error.in_section(path, "core_link"))?;
        }
        if let Some(tls) = &self.sip.tls {
            Identity::load(tls).map_err(|error| error.in_section(path, "sip.tls"))?;
        }
        Ok(())
    }

    /// The ports that phones and trunks send to, on every service address.
    pub fn sip_ports(&self) -> impl Iterator<Item = u16> {
        let tls = self.sip.tls.as_ref();
        [
            Some(self.sip.port),
            tls.map(|tls| tls.port),
            self.sip.ws_port,
            tls.and_then(|tls| tls.wss_port),
        ]
        .into_iter()
        .flatten()
    }

    /// Our own addresses, which no phone's media can come from.
    pub fn own_networks(&self) -> Vec<IpNetwork> {
        let own = self.service_addresses.iter().chain([&self.tunnel.listen]);
        own.map(|address| IpNetwork::from(*address)).collect()
    }

    /// The names of the other concentrators.
    pub fn names_of_peers(&self) -> Vec<String> {
        let links = self.core_link.iter();
        let peers = links.flat_map(|link| link.peers.iter());
        peers.map(|peer| peer.name.clone()).collect()
    }

    /// The tunnel addresses of the other concentrators.
    pub fn tunnels_of_peers(&self) -> Vec<IpAddr> {
        let links = self.core_link.iter();
        let peers = links.flat_map(|link| link.peers.iter());
        peers.map(|peer| peer.tunnel).collect()
    }

    /// Where the media of each agent may be, for those of which it is laid down.
    pub fn media_addresses(&self) -> HashMap<&str, Vec<IpNetwork>> {
        let mut allowed: HashMap<&str, Vec<IpNetwork>> = HashMap::new();
        for (_, relay, _) in self.relays() {
            if let Some(networks) = &relay.media_addresses {
                allowed.entry(&relay.agent).or_default().extend(networks);
            }
        }
        allowed
    }

    /// Which relay carries a call, who stands in for it, and for whom that is different.
    pub fn media_plan(&self) -> Plan {
        Plan {
            stand_ins: media::stand_ins(&self.edges),
            pins: self.pins.clone(),
            ..Plan::new(self.media.anchor, self.media.relay)
        }
    }

    /// The names of the edges, by their keys, old ones included.
    pub fn edge_names(&self) -> HashMap<TunnelKey, String> {
        let edges = self.edges.iter();
        let keys = edges.flat_map(|edge| {
            let keys = [Some(edge.key), edge.old_key].into_iter().flatten();
            keys.map(|key| (key, edge.name.clone()))
        });
        keys.collect()
    }

    /// The agents of all relays, by all names of these: those with the key before a rotation, too, which
    /// what was written before it knows them by.
    pub fn agents(&self) -> impl Iterator<Item = (RelayId, String)> + '_ {
        self.relays().flat_map(|(id, relay, edge)| {
            let keys = EdgeKeys::of(edge).all();
            keys.map(move |key| (RelayId { key, ..id }, relay.agent.clone()))
        })
    }

    /// What else an edge is called by these keys, beside what it was called at the start.
    pub fn aliases(&self, keys: &[EdgeKeys]) -> impl Iterator<Item = (TunnelKey, &Edge)> {
        let edges = self.edges.iter().zip(keys.to_vec());
        edges.flat_map(|(edge, keys)| {
            let other = move |key: &TunnelKey| *key != edge.key;
            keys.all().filter(other).map(move |key| (key, edge))
        })
    }

    /// The relays of all edges, with the index of their edge.
    pub fn relays(&self) -> impl Iterator<Item = (RelayId, &EdgeRelay, &Edge)> {
        self.edges.iter().flat_map(|edge| {
            let relays = edge.relays.iter();
            relays.map(move |relay| (edge.relay_id(relay), relay, edge))
        })
    }
}

impl Config {
    /// The relays that are an rtpengine, each once.
    pub fn rtpengines(&self) -> Vec<Target> {
        let mut targets: Vec<Target> = Vec::new();
        for (_, relay, _) in self.relays() {
            let known = |target: &&Target| !targets.contains(target);
            targets.extend(relay.rtpengine.iter().find(known).cloned());
        }
        targets
    }
}

/// One value that cannot be used.
#[derive(Debug)]
struct Problem {
    key: String,
    message: String,
}

fn problem<T>(key: impl Into<String>, message: impl Into<String>) -> Result<T, Problem> {
    Err(Problem {
        key: key.into(),
        message: message.into(),
    })
}

fn cookie_key(key: &str, folder: &Path, file: &Path) -> Result<CookieKey, Problem> {
    let bytes = read(key, &folder.join(file))?;
    if bytes.len() >= MIN_COOKIE_KEY {
        return Ok(CookieKey(bytes));
    }
    let (file, length) = (file.display(), bytes.len());
    problem(
        key,
        format!(
            "{file} has {length} bytes; make one of {MIN_COOKIE_KEY} or more, for example with \
             `openssl rand -out {file} 32`"
        ),
    )
}

fn read(key: &str, path: &Path) -> Result<Vec<u8>, Problem> {
    match std::fs::read(path) {
        Ok(bytes) if bytes.is_empty() => problem(key, format!("{} is empty", path.display())),
        Ok(bytes) => Ok(bytes),
        Err(error) => problem(key, format!("cannot read {}: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests;
