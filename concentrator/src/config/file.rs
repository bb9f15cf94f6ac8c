//! `concentrator.toml` as it is written: every key with its default, nothing checked yet.
//!
//! [`super::Config`] is what the program works with; this is only what serde reads. An unknown
//! key is an error, so that a misspelt limit does not silently stay at its default.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use admin::config::{AdminSection, LogSection};
use ipnetwork::IpNetwork;
use serde::Deserialize;
use wire::encapsulation::Encapsulation;

pub use super::authentication::{AuthenticationFile, TrustedFile};
pub use super::core_link::CoreLinkFile;
use super::routing::{DnsFile, GroupFile, RouteFile};

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// The name of this concentrator.
    pub name: String,
    /// The anycast addresses.
    pub service_addresses: Vec<IpAddr>,
    /// The domains that this service is the registrar of.
    pub domains: Vec<String>,
    /// The tunnel's end.
    pub tunnel: TunnelFile,
    /// The edges and their relays.
    #[serde(default)]
    pub edges: Vec<EdgeFile>,
    /// SIP transports.
    #[serde(default)]
    pub sip: SipFile,
    /// Registrar limits.
    #[serde(default)]
    pub registrar: RegistrarFile,
    /// Who must authenticate; nobody where absent.
    pub authentication: Option<AuthenticationFile>,
    /// Where bindings are kept over a restart; in memory only where absent.
    pub location: Option<LocationFile>,
    /// Several concentrators that are one service; alone where absent.
    pub cluster: Option<ClusterFile>,
    /// Which relay carries media, and when.
    #[serde(default)]
    pub media: MediaFile,
    /// A record of each call; none without.
    pub cdr: Option<CdrFile>,
    /// The key of the signed state.
    #[serde(default)]
    pub cookie: CookieFile,
    /// Where requests go that the registrar does not serve.
    #[serde(default)]
    pub routes: Vec<RouteFile>,
    /// Next hops.
    #[serde(default)]
    pub groups: Vec<GroupFile>,
    /// Who resolves names.
    #[serde(default)]
    pub dns: DnsFile,
    /// Where the rtp-agents connect to.
    pub relay_control: Option<RelayControlFile>,
    /// The other concentrators; none without.
    pub core_link: Option<CoreLinkFile>,
    /// The operator's HTTP listener.
    #[serde(default)]
    pub admin: AdminSection,
    /// Logs.
    #[serde(default)]
    pub log: LogSection,
}

/// `[tunnel]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TunnelFile {
    /// The address that the edges send the tunnel to.
    pub listen: IpAddr,
    /// The largest inner packet; what the headers leave of 1,500 where absent.
    pub mtu: Option<u16>,
    /// How replies get to user agents.
    #[serde(default)]
    pub return_path: ReturnPath,
    /// The name of the TUN device.
    #[serde(default = "default_device")]
    pub device: String,
    /// The UDP port that the edges' probes are for.
    #[serde(default = "default_probe_port")]
    pub probe_port: u16,
}

fn default_probe_port() -> u16 {
    wire::probe::DEFAULT_PORT
}

fn default_device() -> String {
    "sipcast0".to_owned()
}

/// How replies get to user agents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReturnPath {
    /// From here, with the service address as their source.
    #[default]
    Direct,
    /// Through the tunnel of the edge that last carried the flow.
    Tunnel,
}

/// How an edge wraps its packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EncapsulationName {
    /// GRE.
    #[default]
    Gre,
    /// GRE in UDP.
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

/// `[[edges]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EdgeFile {
    /// The name in logs and metrics.
    pub name: String,
    /// The outer source addresses.
    pub sources: Vec<IpNetwork>,
    /// The tunnel key.
    pub key: u32,
    /// The key before a rotation.
    pub old_key: Option<u32>,
    /// How its packets are wrapped.
    #[serde(default)]
    pub encapsulation: EncapsulationName,
    /// Which user agents may come through this edge; all where absent.
    #[serde(default)]
    pub allowed_sources: Vec<IpNetwork>,
    /// The edge's relays, in the order in which they stand in for each other.
    #[serde(default)]
    pub relays: Vec<RelayFile>,
    /// Agents of other edges that stand in after those.
    #[serde(default)]
    pub fallback: Vec<String>,
}

/// `[[edges.relays]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelayFile {
    /// The mark, 1..=63.
    pub mark: u8,
    /// The name in the rtp-agent's certificate.
    pub agent: Option<String>,
    /// Instead: where an rtpengine listens for `ng`.
    pub rtpengine: Option<String>,
    /// One of the names in that rtpengine's `interface`.
    pub interface: Option<String>,
    /// The agents that stand in for it, instead of the edge's others and the edge's `fallback`.
    pub fallback: Option<Vec<String>>,
    /// Where its media may be; any address but our own and loopback where absent.
    pub media_addresses: Option<Vec<IpNetwork>>,
}

/// `[sip]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SipFile {
    /// The port on every service address.
    pub port: u16,
    /// The address that only this concentrator has: next hops are written to from it.
    pub unicast_address: Option<IpAddr>,
    /// Listen on UDP.
    pub udp: bool,
    /// Listen on TCP.
    pub tcp: bool,
    /// Longer requests go to next hops over TCP (RFC 3261 section 18.1.1).
    pub udp_request_max_bytes: usize,
    /// Transactions that the requests of one source address may have made, unless it is a trunk's.
    pub max_transactions_per_source: usize,
    /// Connections in all.
    pub max_tcp_connections: usize,
    /// Connections of one source address.
    pub max_tcp_connections_per_source: usize,
    /// A connection that says nothing for so long is closed.
    pub tcp_idle_timeout_s: u64,
    /// A message that is not complete after so long closes its connection.
    pub tcp_message_timeout_s: u64,
    /// How long phones keep their connections while we drain; 0: not at all.
    pub drain_grace_s: u64,
    /// The port for TLS, where there is a `[sip.tls]`.
    pub tls_port: u16,
    /// The port for WebSocket; none when missing.
    pub ws_port: Option<u16>,
    /// The port for secure WebSocket; none when missing.
    pub wss_port: Option<u16>,
    /// Where connections to next hops leave from; `tunnel.listen` when missing.
    pub outbound_address: Option<IpAddr>,
    /// TLS; none when missing.
    pub tls: Option<TlsFile>,
    /// Who is told by which edge an OPTIONS came.
    pub reveal_edge_to: Vec<IpNetwork>,
}

/// `[sip.tls]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFile {
    /// PEM, the certificate that phones are shown, and its chain.
    pub certificate: PathBuf,
    /// PEM, its private key.
    pub private_key: PathBuf,
    /// PEM, the authorities whose client certificates are believed.
    pub client_ca: Option<PathBuf>,
    /// PEM, the authorities whose next hops are believed.
    pub server_ca: Option<PathBuf>,
}

impl Default for SipFile {
    fn default() -> Self {
        Self {
            port: 5060,
            unicast_address: None,
            udp: true,
            tcp: true,
            udp_request_max_bytes: 1300,
            // An eighth of both tables. A call makes four over UDP, for 32 s each, so these are some
            // 700 calls a second of one address.
            max_transactions_per_source: 100_000,
            max_tcp_connections: 10_000,
            max_tcp_connections_per_source: 200,
            // Longer than the default registration, so that a phone without keepalives keeps
            // its connection from one REGISTER to the next.
            tcp_idle_timeout_s: 3900,
            tcp_message_timeout_s: 15,
            drain_grace_s: 30,
            tls_port: 5061,
            ws_port: None,
            wss_port: None,
            outbound_address: None,
            tls: None,
            reveal_edge_to: Vec::new(),
        }
    }
}

/// `[registrar]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistrarFile {
    /// A shorter registration is answered 423 (RFC 3261 section 10.3).
    pub min_expires_s: u32,
    /// Where the phone names none.
    pub default_expires_s: u32,
    /// A longer one is shortened.
    pub max_expires_s: u32,
    /// Bindings in all.
    pub max_bindings: usize,
    /// Contacts of one address-of-record.
    pub max_contacts_per_user: usize,
    /// Take a Path that the phone's Supported does not speak of (RFC 3327 section 5.3).
    pub path_without_support: bool,
    /// The Flow-Timer for phones on a connection (RFC 5626 section 4.4).
    pub flow_timer_s: u32,
    /// How often a UDP phone behind a NAT is pinged; 0 is never.
    pub ping_interval_s: u32,
    /// Pings without an answer that end a phone's bindings; 0: none does.
    pub ping_misses: u8,
}

impl Default for RegistrarFile {
    fn default() -> Self {
        Self {
            min_expires_s: 60,
            default_expires_s: 3600,
            max_expires_s: 7200,
            max_bindings: 500_000,
            max_contacts_per_user: 10,
            path_without_support: false,
            flow_timer_s: 120,
            // NATs may forget a UDP mapping after 30 s; most keep it longer once it is in use.
            ping_interval_s: 30,
            ping_misses: 3,
        }
    }
}

/// `[location]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocationFile {
    /// The file.
    pub file: PathBuf,
    /// `fail` or `empty`.
    #[serde(default = "default_on_corrupt")]
    pub on_corrupt: String,
}

fn default_on_corrupt() -> String {
    "fail".to_owned()
}

/// `[cluster]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterFile {
    /// The number of this concentrator, which no other of the cluster has.
    pub id: u16,
    /// NATS servers with JetStream, which registrations are shared over; not shared where empty.
    #[serde(default)]
    pub nats: Vec<String>,
    /// Who we are to them: a name and its password,
    pub user: Option<String>,
    /// the file of the password,
    pub password_file: Option<PathBuf>,
    /// or a token,
    pub token_file: Option<PathBuf>,
    /// or a credentials file.
    pub credentials_file: Option<PathBuf>,
    /// PEM, the authorities whose NATS servers are believed.
    pub nats_ca: Option<PathBuf>,
    /// PEM, our certificate to them.
    pub nats_certificate: Option<PathBuf>,
    /// PEM, its private key.
    pub nats_private_key: Option<PathBuf>,
    /// The name of the bucket.
    #[serde(default = "default_bucket")]
    pub bucket: String,
    /// On how many servers it is kept, where we make it.
    #[serde(default = "default_replicas")]
    pub replicas: u8,
    /// How long the answer to a REGISTER waits for JetStream.
    #[serde(default = "default_ack_wait_ms")]
    pub ack_wait_ms: u64,
    /// In how much of the granted time a refresh that moved only the time is written.
    #[serde(default = "default_coalesce_percent")]
    pub coalesce_percent: u8,
    /// How long the start waits for more of a replica that is not complete.
    #[serde(default = "default_start_wait_s")]
    pub start_wait_s: u64,
}

fn default_bucket() -> String {
    "sipcast".to_owned()
}

const fn default_replicas() -> u8 {
    3
}

const fn default_ack_wait_ms() -> u64 {
    200
}

const fn default_coalesce_percent() -> u8 {
    10
}

const fn default_start_wait_s() -> u64 {
    10
}

/// `[media]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MediaFile {
    /// `caller`, `callee` or `both`.
    pub anchor: String,
    /// `auto`, `always` or `never`.
    pub relay: String,
    /// `exact`, `subnet` or `any`.
    pub source: String,
    /// End a call whose relay has seen no media for too long.
    pub end_on_timeout: bool,
    /// What is different for some accounts and trunks.
    pub pins: Vec<PinFile>,
}

/// `[[media.pins]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinFile {
    /// `user@domain`; or else
    pub account: Option<String>,
    /// a group of next hops or a trusted trunk, by its name.
    pub trunk: Option<String>,
    /// The rtp-agent of its calls, whatever the mark.
    pub agent: Option<String>,
    /// As in `[media]`.
    pub anchor: Option<String>,
    /// As in `[media]`.
    pub relay: Option<String>,
}

impl Default for MediaFile {
    fn default() -> Self {
        Self {
            anchor: "caller".to_owned(),
            relay: "auto".to_owned(),
            source: "exact".to_owned(),
            end_on_timeout: true,
            pins: Vec::new(),
        }
    }
}

/// `[cdr]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CdrFile {
    /// The file that a line is added to for each call.
    pub file: PathBuf,
    /// Calls in progress that are kept in mind.
    #[serde(default = "default_max_calls")]
    pub max_calls: usize,
    /// A call that is older is recorded as lost.
    #[serde(default = "default_max_duration_s")]
    pub max_duration_s: u64,
}

fn default_max_calls() -> usize {
    100_000
}

fn default_max_duration_s() -> u64 {
    86_400
}

/// `[cookie]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CookieFile {
    /// A file of 32 bytes or more: what is signed from now on.
    pub key_file: Option<PathBuf>,
    /// Another such file, whose signatures are accepted as well.
    pub previous_key_file: Option<PathBuf>,
}

/// `[relay_control]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelayControlFile {
    /// Where the rtp-agents connect to.
    pub listen: SocketAddr,
    /// PEM, this concentrator's certificate and its chain.
    pub certificate: PathBuf,
    /// PEM, its private key.
    pub private_key: PathBuf,
    /// PEM, the authorities whose rtp-agents are believed.
    pub ca: PathBuf,
    /// Leases that each agent keeps ready while there are few calls.
    #[serde(default = "default_min_stock")]
    pub min_stock: u32,
    /// The most that it keeps ready, however many calls there are.
    #[serde(default = "default_max_stock")]
    pub max_stock: u32,
    /// How long a call waits for its relay when calls come faster than leases.
    #[serde(default = "default_lease_wait_ms")]
    pub lease_wait_ms: u64,
}

const fn default_min_stock() -> u32 {
    64
}

const fn default_max_stock() -> u32 {
    256
}

const fn default_lease_wait_ms() -> u64 {
    300
}
