//! What may come out of a tunnel: the acceptance table.
//!
//! GRE authenticates nobody (CVE-2020-10136, CVE-2024-7595), so a packet must pass every test in
//! [`Acceptance::accept`] before the kernel sees it: the outer source belongs to an edge, the key
//! and the mark are that edge's, and what is inside is for a service address, from somebody who
//! can be a user agent, and nothing but UDP, TCP or an ICMP error. A packet that fails is dropped
//! and counted under the name of the first test that it failed ([`Refusal::name`]).
//!
//! The key is no secret that protects anything: who can send to the tunnel address with an edge's
//! source address and reads or guesses the key gets in. Where that is possible the tunnel belongs
//! inside IPsec or WireGuard.
//!
//! Pure; the decapsulator calls it once for each packet.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use wire::encapsulation::Encapsulation;
use wire::error::DecodeError;
use wire::gre::{self, TunnelKey};
use wire::icmp;
use wire::ip::{self, Ports, protocol};
use wire::mark::{Mark, RelayId};

use crate::config::{Config, Edge};
use crate::edge_keys::EdgeKeys;
use crate::flows::Path;

/// A packet that passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted<'a> {
    /// The edge, by its place in the configuration.
    pub edge: usize,
    /// The key that names the edge, whichever of its keys the packet carried, and the mark.
    pub path: Path,
    /// The key that the packet carried.
    pub wire_key: TunnelKey,
    /// The inner packet, whole, with its mark.
    pub inner: &'a [u8],
    /// UDP, TCP, ICMP or ICMPv6.
    pub protocol: u8,
    /// The user agent's address, or that of the router that reports an error.
    pub source: IpAddr,
    /// The ports; none in an ICMP error and in later fragments.
    pub ports: Option<Ports>,
    /// It is for our probe port, and not for a service address.
    pub is_probe: bool,
    /// Another concentrator has got it from the edge and sent it on.
    pub from_peer: bool,
}

impl Accepted<'_> {
    /// The relay that the path names; `None` when unmarked.
    pub fn relay(&self) -> Option<RelayId> {
        self.path.relay()
    }
}

/// The test that a packet failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// The outer source is no edge's.
    #[error("the outer source belongs to no edge")]
    ForeignOuterSource,
    /// In GRE alone from an edge with GRE in UDP, or the other way round.
    #[error("that edge wraps its packets in another way")]
    OtherEncapsulation,
    /// Truncated, another version, flags or protocol that this tunnel does not have.
    #[error("malformed GRE: {0}")]
    MalformedGre(DecodeError),
    /// The key is not that edge's, old or new.
    #[error("the key is not that edge's")]
    WrongKey,
    /// The packet inside cannot be read.
    #[error("malformed packet inside: {0}")]
    MalformedInner(DecodeError),
    /// The mark is neither 0 nor a relay of that edge.
    #[error("the mark is no relay of that edge")]
    ForeignMark,
    /// The inner destination is not a service address.
    #[error("the inner destination is not a service address")]
    InnerDestination,
    /// A tunnel inside the tunnel.
    #[error("another tunnel is inside")]
    NestedTunnel,
    /// Neither UDP nor TCP nor an ICMP error.
    #[error("neither UDP nor TCP nor an ICMP error is inside")]
    InnerProtocol,
    /// The inner source is a loopback address.
    #[error("the inner source is a loopback address")]
    SourceLoopback,
    /// The inner source is the unspecified address or in 0.0.0.0/8.
    #[error("the inner source is unspecified")]
    SourceUnspecified,
    /// The inner source is a multicast group.
    #[error("the inner source is a multicast group")]
    SourceMulticast,
    /// The inner source is the broadcast address.
    #[error("the inner source is the broadcast address")]
    SourceBroadcast,
    /// The inner source is IPv4 in the clothes of IPv6 (RFC 4291 section 2.5.5.2), never on a wire.
    #[error("the inner source is an IPv4-mapped address")]
    SourceMapped,
    /// The inner source is a service address or the tunnel's.
    #[error("the inner source is an address of ours")]
    SourceOurs,
    /// The inner source is not in the edge's allow-list.
    #[error("the inner source is not in the edge's allow-list")]
    SourceNotAllowed,
    /// A probe whose answer would not go to the edge that sent it.
    #[error("the probe's inner source is not its outer source")]
    ProbeSource,
}

impl Refusal {
    /// Every name that [`Refusal::name`] gives.
    pub const NAMES: [&str; 17] = [
        "foreign_outer_source",
        "malformed_gre",
        "wrong_key",
        "malformed_inner",
        "foreign_mark",
        "inner_destination",
        "nested_tunnel",
        "inner_protocol",
        "source_loopback",
        "source_unspecified",
        "source_multicast",
        "source_broadcast",
        "source_mapped",
        "source_ours",
        "source_not_allowed",
        "probe_source",
        "other_encapsulation",
    ];

    /// The place of its name in [`Refusal::NAMES`].
    pub const fn index(self) -> usize {
        match self {
            Self::ForeignOuterSource => 0,
            Self::MalformedGre(_) => 1,
            Self::WrongKey => 2,
            Self::MalformedInner(_) => 3,
            Self::ForeignMark => 4,
            Self::InnerDestination => 5,
            Self::NestedTunnel => 6,
            Self::InnerProtocol => 7,
            Self::SourceLoopback => 8,
            Self::SourceUnspecified => 9,
            Self::SourceMulticast => 10,
            Self::SourceBroadcast => 11,
            Self::SourceMapped => 12,
            Self::SourceOurs => 13,
            Self::SourceNotAllowed => 14,
            Self::ProbeSource => 15,
            Self::OtherEncapsulation => 16,
        }
    }

    /// The name in metrics.
    pub const fn name(self) -> &'static str {
        Self::NAMES[self.index()]
    }
}

/// The table; see the module.
#[derive(Debug, Clone)]
pub struct Acceptance {
    edges: Vec<EdgeRule>,
    /// The tunnel addresses of other concentrators.
    peers: Vec<IpAddr>,
    service_addresses: Vec<IpAddr>,
    tunnel_address: IpAddr,
    probe_port: u16,
}

#[derive(Debug, Clone)]
struct EdgeRule {
    sources: Vec<IpNetwork>,
    /// That of the start, which everybody else knows it by.
    name: TunnelKey,
    keys: EdgeKeys,
    encapsulation: Encapsulation,
    /// Bit n: mark n is a relay of this edge, or 0.
    marks: u64,
    allowed_sources: Vec<IpNetwork>,
}

impl EdgeRule {
    fn of(edge: &Edge) -> Self {
        let unmarked = 1;
        let marks = edge.relays.iter().map(|relay| bit(relay.mark));
        Self {
            sources: edge.sources.clone(),
            name: edge.key,
            keys: EdgeKeys::of(edge),
            encapsulation: edge.encapsulation,
            marks: marks.fold(unmarked, |all, one| all | one),
            allowed_sources: edge.allowed_sources.clone(),
        }
    }
}

fn bit(mark: Mark) -> u64 {
    1 << mark.number()
}

impl Acceptance {
    /// The table of this configuration.
    pub fn new(config: &Config) -> Self {
        Self {
            edges: config.edges.iter().map(EdgeRule::of).collect(),
            peers: config.tunnels_of_peers(),
            service_addresses: config.service_addresses.clone(),
            tunnel_address: config.tunnel.listen,
            probe_port: config.tunnel.probe_port,
        }
    }

    /// The edges' keys from now on, in the order of the configuration.
    pub fn set_keys(&mut self, keys: &[EdgeKeys]) {
        for (edge, keys) in self.edges.iter_mut().zip(keys) {
            edge.keys = *keys;
        }
    }

    /// Judges one packet: who sent it here, how it was wrapped, and what follows the outer headers.
    pub fn accept<'a>(
        &self,
        outer_source: IpAddr,
        encapsulation: Encapsulation,
        gre_payload: &'a [u8],
    ) -> Result<Accepted<'a>, Refusal> {
        let from_peer = self.peers.contains(&outer_source);
        let of_source = self.edge_of(outer_source);
        // Concentrators know each other's plain GRE only.
        let expected = match of_source {
            Some((_, edge)) => edge.encapsulation,
            None if from_peer => Encapsulation::Gre,
            None => return Err(Refusal::ForeignOuterSource),
        };
        if encapsulation != expected {
            return Err(Refusal::OtherEncapsulation);
        }
        let outer = gre::Packet::parse(gre_payload).map_err(Refusal::MalformedGre)?;
        // A peer sends on what any edge has sent it, under that edge's key.
        let mut edges = of_source
            .into_iter()
            .chain(self.edges.iter().enumerate().filter(|_| from_peer));
        let of_key = edges.find(|(_, edge)| edge.keys.has(outer.key()));
        let (index, edge) = of_key.ok_or(Refusal::WrongKey)?;
        let inner = outer.inner().map_err(Refusal::MalformedInner)?;
        let mark = Mark::from_tos(inner.tos());
        if edge.marks & bit(mark) == 0 {
            return Err(Refusal::ForeignMark);
        }
        let is_probe = self.is_probe(&inner);
        if is_probe {
            // The answer leaves the tunnel: it goes to who can have sent the probe, and to nobody else.
            if inner.src() != outer_source {
                return Err(Refusal::ProbeSource);
            }
        } else {
            if !self.service_addresses.contains(&inner.dst()) {
                return Err(Refusal::InnerDestination);
            }
            check_protocol(&inner)?;
            self.check_source(inner.src(), edge)?;
        }
        Ok(Accepted {
            edge: index,
            path: Path {
                key: edge.name,
                mark,
            },
            wire_key: outer.key(),
            inner: inner.bytes(),
            protocol: inner.protocol(),
            source: inner.src(),
            ports: inner.ports(),
            is_probe,
            from_peer,
        })
    }

    fn is_probe(&self, inner: &ip::Packet<'_>) -> bool {
        inner.dst() == self.tunnel_address
            && inner.protocol() == protocol::UDP
            && inner.fragment().is_none()
            && inner
                .ports()
                .is_some_and(|ports| ports.destination == self.probe_port)
    }

    fn edge_of(&self, outer_source: IpAddr) -> Option<(usize, &EdgeRule)> {
        // Some tens of prefixes at most; they do not overlap.
        let belongs = |edge: &EdgeRule| edge.sources.iter().any(|net| net.contains(outer_source));
        self.edges
            .iter()
            .enumerate()
            .find(|(_, edge)| belongs(edge))
    }

    fn check_source(&self, source: IpAddr, edge: &EdgeRule) -> Result<(), Refusal> {
        match source {
            IpAddr::V4(v4) if v4.is_loopback() => return Err(Refusal::SourceLoopback),
            // "This network" (RFC 791 section 3.2).
            IpAddr::V4(v4) if v4.octets()[0] == 0 => return Err(Refusal::SourceUnspecified),
            IpAddr::V4(v4) if v4.is_multicast() => return Err(Refusal::SourceMulticast),
            IpAddr::V4(v4) if v4.is_broadcast() => return Err(Refusal::SourceBroadcast),
            IpAddr::V4(_) => {}
            IpAddr::V6(v6) if v6.is_loopback() => return Err(Refusal::SourceLoopback),
            IpAddr::V6(v6) if v6.is_unspecified() => return Err(Refusal::SourceUnspecified),
            IpAddr::V6(v6) if v6.is_multicast() => return Err(Refusal::SourceMulticast),
            IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => return Err(Refusal::SourceMapped),
            IpAddr::V6(_) => {}
        }
        if source == self.tunnel_address || self.service_addresses.contains(&source) {
            return Err(Refusal::SourceOurs);
        }
        let allowed = &edge.allowed_sources;
        if !allowed.is_empty() && !allowed.iter().any(|net| net.contains(source)) {
            return Err(Refusal::SourceNotAllowed);
        }
        Ok(())
    }
}

fn check_protocol(inner: &ip::Packet<'_>) -> Result<(), Refusal> {
    if inner.is_tunnel() {
        return Err(Refusal::NestedTunnel);
    }
    match inner.protocol() {
        // A part that should show the ports and is too short for them (RFC 1858 section 3).
        protocol::UDP | protocol::TCP if inner.has_upper_header() && inner.ports().is_none() => {
            Err(Refusal::MalformedInner(DecodeError::Truncated))
        }
        protocol::UDP | protocol::TCP => Ok(()),
        // Also refuses later fragments of ICMP, of which nobody can tell what they belong to.
        protocol::ICMP | protocol::ICMPV6 if icmp::is_error(inner) => Ok(()),
        _ => Err(Refusal::InnerProtocol),
    }
}

#[cfg(test)]
mod tests;
