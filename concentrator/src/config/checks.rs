//! The checks of each section: the value, or the key and what to change about it.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use ipnetwork::IpNetwork;
use wire::gre::TunnelKey;
use wire::mark::Mark;

use super::file::{EdgeFile, File, SipFile, TunnelFile};
use super::relay::check_relay;
use super::routing::network;
use super::{Edge, EdgeRelay, Problem, Sip, TcpLimits, Tls, Tunnel, problem};

/// An IPv6 packet of the minimum size must pass the tunnel whole (RFC 7676 section 3).
const MIN_MTU: u16 = 1280;
/// Of nearly every path.
const DEFAULT_PATH_MTU: u16 = 1500;
/// For TLS and WebSocket: some round trips and a slow phone's arithmetic.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longer names do not fit an interface (IFNAMSIZ).
const MAX_DEVICE_NAME: usize = 15;

pub(super) fn check_service_addresses(file: &File) -> Result<(), Problem> {
    if file.service_addresses.is_empty() {
        return problem("service_addresses", "is empty; name the anycast address");
    }
    let mut known = HashSet::new();
    for (index, address) in file.service_addresses.iter().enumerate() {
        let key = format!("service_addresses[{index}]");
        if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
            return problem(key, format!("{address} cannot be an anycast address"));
        }
        if *address == file.tunnel.listen {
            return problem(
                key,
                format!("{address} is also tunnel.listen; the tunnel needs an address of its own"),
            );
        }
        if !known.insert(address) {
            return problem(key, format!("{address} is there twice; remove one"));
        }
    }
    Ok(())
}

pub(super) fn check_domains(domains: &[String]) -> Result<Vec<String>, Problem> {
    if domains.is_empty() {
        return problem("domains", "is empty; name the domain of your users");
    }
    let mut known = HashSet::new();
    for (index, domain) in domains.iter().enumerate() {
        let key = format!("domains[{index}]");
        let is_address = domain.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        if !is_address && !is_host_name(domain) {
            return problem(
                key,
                format!("{domain:?} is not a domain; write it without scheme, user and port"),
            );
        }
        if !known.insert(domain.to_ascii_lowercase()) {
            return problem(key, format!("{domain:?} is there twice; remove one"));
        }
    }
    Ok(domains.iter().map(|d| d.to_ascii_lowercase()).collect())
}

/// Letters, digits and hyphens in labels of 1 to 63 (RFC 1123 section 2.1).
pub(super) fn is_host_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

pub(super) fn check_tunnel(tunnel: &TunnelFile, edges: &[Edge]) -> Result<Tunnel, Problem> {
    let listen = tunnel.listen;
    let overheads = edges.iter();
    let overhead = overheads
        .map(|edge| edge.encapsulation.overhead(listen.is_ipv4()))
        .max();
    let mtu = tunnel
        .mtu
        .unwrap_or(DEFAULT_PATH_MTU - overhead.unwrap_or_default());
    if listen.is_unspecified() || listen.is_multicast() {
        return problem(
            "tunnel.listen",
            format!("{listen} is not one address; name the address that the edges send to"),
        );
    }
    if mtu < MIN_MTU {
        return problem(
            "tunnel.mtu",
            format!("{mtu} is below {MIN_MTU}, which IPv6 needs; raise it"),
        );
    }
    let device = &tunnel.device;
    let fits = (1..=MAX_DEVICE_NAME).contains(&device.len());
    if !fits || device.contains(['/', ' ', ':']) || device == "." || device == ".." {
        return problem(
            "tunnel.device",
            format!("{device:?} cannot name a device; use 1 to {MAX_DEVICE_NAME} letters"),
        );
    }
    if tunnel.probe_port == 0 {
        return problem(
            "tunnel.probe_port",
            "0 is not a port; name the one that the edges probe".to_owned(),
        );
    }
    Ok(Tunnel {
        listen,
        mtu,
        return_path: tunnel.return_path,
        device: device.clone(),
        probe_port: tunnel.probe_port,
    })
}

pub(super) fn check_edges(file: &File) -> Result<Vec<Edge>, Problem> {
    if file.edges.is_empty() {
        return problem("edges", "no edge is configured; add an [[edges]] section");
    }
    let mut names: HashMap<&str, usize> = HashMap::new();
    let mut keys: HashMap<u32, String> = HashMap::new();
    for (index, edge) in file.edges.iter().enumerate() {
        let at = format!("edges[{index}]");
        if edge.name.trim().is_empty() {
            return problem(format!("{at}.name"), "is empty; give the edge a name");
        }
        if let Some(other) = names.insert(&edge.name, index) {
            return problem(
                format!("{at}.name"),
                format!(
                    "{:?} is also the name of edges[{other}]; change one",
                    edge.name
                ),
            );
        }
        let own = [("key", Some(edge.key)), ("old_key", edge.old_key)];
        for (name, key) in own.into_iter().filter_map(|(name, key)| Some((name, key?))) {
            if let Some(other) = keys.insert(key, format!("{at}.{name}")) {
                return problem(
                    format!("{at}.{name}"),
                    format!("{key:#06x} is also {other}; a key, old or new, names one edge"),
                );
            }
        }
        check_sources(&file.edges, index, file.tunnel.listen)?;
        check_networks(&edge.allowed_sources, &format!("{at}.allowed_sources"))?;
    }
    let edges = file.edges.iter().enumerate();
    edges.map(|(index, edge)| check_edge(index, edge)).collect()
}

fn check_sources(edges: &[EdgeFile], index: usize, listen: IpAddr) -> Result<(), Problem> {
    let edge = &edges[index];
    let key = format!("edges[{index}].sources");
    if edge.sources.is_empty() {
        return problem(key, "is empty; name the address that this edge sends from");
    }
    check_networks(&edge.sources, &key)?;
    for (position, source) in edge.sources.iter().enumerate() {
        let key = format!("{key}[{position}]");
        if source.is_ipv4() != listen.is_ipv4() {
            return problem(
                key,
                format!("{source} and tunnel.listen {listen} are of different IP versions"),
            );
        }
        let earlier = edges[..index].iter().enumerate();
        for (other, earlier) in earlier {
            if let Some(same) = earlier.sources.iter().find(|s| overlap(**s, *source)) {
                return problem(
                    key,
                    format!(
                        "{source} overlaps {same} of edges[{other}]; an outer source belongs to one edge"
                    ),
                );
            }
        }
    }
    Ok(())
}

pub(super) fn check_networks(networks: &[IpNetwork], key: &str) -> Result<(), Problem> {
    for (position, network) in networks.iter().enumerate() {
        if network.ip() != network.network() {
            return problem(
                format!("{key}[{position}]"),
                format!(
                    "{network} has bits behind its prefix; write {}/{} or {}/{}",
                    network.network(),
                    network.prefix(),
                    network.ip(),
                    if network.is_ipv4() { 32 } else { 128 },
                ),
            );
        }
    }
    Ok(())
}

fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    a.contains(b.network()) || b.contains(a.network())
}

fn check_edge(index: usize, edge: &EdgeFile) -> Result<Edge, Problem> {
    let mut relays: Vec<EdgeRelay> = Vec::new();
    for (position, relay) in edge.relays.iter().enumerate() {
        let at = format!("edges[{index}].relays[{position}]");
        let mark = Mark::new(relay.mark).filter(|mark| !mark.is_unmarked());
        let Some(mark) = mark else {
            return problem(
                format!("{at}.mark"),
                format!("{} is not a mark; use 1 to {}", relay.mark, Mark::MAX),
            );
        };
        if let Some(other) = relays.iter().find(|other| other.mark == mark) {
            return problem(
                format!("{at}.mark"),
                format!(
                    "{mark} is already {:?} of this edge; give each relay its own mark",
                    other.agent
                ),
            );
        }
        relays.push(check_relay(&at, mark, relay)?);
    }
    Ok(Edge {
        name: edge.name.clone(),
        sources: edge.sources.clone(),
        key: TunnelKey(edge.key),
        old_key: edge.old_key.map(TunnelKey),
        encapsulation: edge.encapsulation.into(),
        allowed_sources: edge.allowed_sources.clone(),
        relays,
        fallback: edge.fallback.clone(),
    })
}

pub(super) fn check_sip(file: &File, folder: &Path) -> Result<Sip, Problem> {
    let sip = &file.sip;
    if sip.port == 0 {
        return problem("sip.port", "0 is not a port; use 5060");
    }
    if !sip.udp && !sip.tcp {
        return problem("sip", "udp and tcp are both off; switch one on");
    }
    for (name, value) in [
        (
            "max_transactions_per_source",
            sip.max_transactions_per_source as u64,
        ),
        ("max_tcp_connections", sip.max_tcp_connections as u64),
        (
            "max_tcp_connections_per_source",
            sip.max_tcp_connections_per_source as u64,
        ),
        ("tcp_idle_timeout_s", sip.tcp_idle_timeout_s),
        ("tcp_message_timeout_s", sip.tcp_message_timeout_s),
    ] {
        if value == 0 {
            return problem(format!("sip.{name}"), "is 0; use 1 or more");
        }
    }
    check_stream_ports(sip)?;
    check_networks(&sip.reveal_edge_to, "sip.reveal_edge_to")?;
    Ok(Sip {
        port: sip.port,
        udp: sip.udp,
        tcp: sip.tcp,
        tls: check_tls(sip, folder)?,
        ws_port: sip.ws_port,
        outbound_address: check_outbound_address(file)?,
        reveal_edge_to: sip.reveal_edge_to.iter().map(network).collect(),
        max_transactions_per_source: sip.max_transactions_per_source,
        limits: TcpLimits {
            connections: sip.max_tcp_connections,
            connections_per_source: sip.max_tcp_connections_per_source,
            handshake: HANDSHAKE_TIMEOUT,
            idle: Duration::from_secs(sip.tcp_idle_timeout_s),
            message: Duration::from_secs(sip.tcp_message_timeout_s),
            drain_grace: Duration::from_secs(sip.drain_grace_s),
        },
    })
}

/// Answers to the anycast address would arrive at any edge.
fn check_outbound_address(file: &File) -> Result<IpAddr, Problem> {
    let key = "sip.outbound_address";
    let address = file.sip.outbound_address.unwrap_or(file.tunnel.listen);
    if address.is_unspecified() || address.is_multicast() {
        return problem(key, format!("{address} is not one address of this host"));
    }
    if file.service_addresses.contains(&address) {
        return problem(
            key,
            format!("{address} is a service address; name one that is this host's alone"),
        );
    }
    Ok(address)
}

/// No two stream transports can have one port.
fn check_stream_ports(sip: &SipFile) -> Result<(), Problem> {
    let mut taken = HashMap::new();
    for (key, port) in [
        ("sip.port", sip.tcp.then_some(sip.port)),
        ("sip.tls_port", sip.tls.as_ref().map(|_| sip.tls_port)),
        ("sip.ws_port", sip.ws_port),
        ("sip.wss_port", sip.wss_port),
    ] {
        let Some(port) = port else {
            continue;
        };
        if port == 0 {
            return problem(key, "0 is not a port; take another, or leave it out");
        }
        if let Some(other) = taken.insert(port, key) {
            return problem(key, format!("{port} is also {other}; take another"));
        }
    }
    Ok(())
}

fn check_tls(sip: &SipFile, folder: &Path) -> Result<Option<Tls>, Problem> {
    let Some(tls) = &sip.tls else {
        if sip.wss_port.is_some() {
            return problem("sip.wss_port", "needs a certificate; add [sip.tls]");
        }
        return Ok(None);
    };
    Ok(Some(Tls {
        port: sip.tls_port,
        wss_port: sip.wss_port,
        certificate: folder.join(&tls.certificate),
        private_key: folder.join(&tls.private_key),
        client_ca: tls.client_ca.as_ref().map(|ca| folder.join(ca)),
        server_ca: tls.server_ca.as_ref().map(|ca| folder.join(ca)),
    }))
}
