//! PURE. Is this packet ours to forward? Decided by the IP header alone.
//!
//! Ports play no part: later fragments have none, and they must take the same way as the first.
//! What the concentrator is entitled to refuse (protocols, sources) is left to it; here only what
//! cannot be tunnelled at all is dropped.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Protocols that carry IP again: IPIP, IPv6 in IP, GRE, EtherIP, MPLS in IP. A packet that would
/// be unwrapped a second time could hide anything.
const TUNNEL_PROTOCOLS: [u8; 5] = [4, 41, 47, 97, 137];

/// What to do with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Mark it and send it through the tunnel.
    Forward(IpVersion),
    /// Drop it and count why.
    Drop(DropReason),
}

/// The version of the inner packet; decides the protocol type of the GRE header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpVersion {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Why a packet is not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// The version field is neither 4 nor 6, or there is no byte at all.
    NotIp,
    /// Shorter than its headers say.
    Truncated,
    /// To somebody else: a route other than ours leads into the device.
    NotServiceAddress,
    /// It is a tunnel packet itself.
    NestedTunnel,
}

impl DropReason {
    /// All of them, in the order of the enum.
    pub const ALL: [Self; 4] = [
        Self::NotIp,
        Self::Truncated,
        Self::NotServiceAddress,
        Self::NestedTunnel,
    ];

    /// The name in metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NotIp => "not_ip",
            Self::Truncated => "truncated",
            Self::NotServiceAddress => "not_service_address",
            Self::NestedTunnel => "nested_tunnel",
        }
    }
}

/// Looks at the header only.
pub fn classify(packet: &[u8], service_addresses: &[IpAddr]) -> Verdict {
    let header = match packet.first().map(|first| first >> 4) {
        Some(4) => ipv4(packet),
        Some(6) => ipv6(packet),
        Some(_) | None => Err(DropReason::NotIp),
    };
    let header = match header {
        Ok(header) => header,
        Err(reason) => return Verdict::Drop(reason),
    };
    if !service_addresses.contains(&header.destination) {
        return Verdict::Drop(DropReason::NotServiceAddress);
    }
    if TUNNEL_PROTOCOLS.contains(&header.protocol) {
        return Verdict::Drop(DropReason::NestedTunnel);
    }
    Verdict::Forward(header.version)
}

struct Header {
    version: IpVersion,
    destination: IpAddr,
    protocol: u8,
}

/// RFC 791 section 3.1.
fn ipv4(packet: &[u8]) -> Result<Header, DropReason> {
    let fixed: &[u8; 20] = packet.first_chunk().ok_or(DropReason::Truncated)?;
    let header_length = usize::from(fixed[0] & 0x0f) * 4;
    let total_length = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
    if header_length < fixed.len() || total_length < header_length || packet.len() < total_length {
        return Err(DropReason::Truncated);
    }
    Ok(Header {
        version: IpVersion::V4,
        destination: Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19]).into(),
        protocol: fixed[9],
    })
}

/// RFC 8200 section 3. Extension headers are the concentrator's affair.
fn ipv6(packet: &[u8]) -> Result<Header, DropReason> {
    let fixed: &[u8; 40] = packet.first_chunk().ok_or(DropReason::Truncated)?;
    let payload_length = usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
    if packet.len() < fixed.len() + payload_length {
        return Err(DropReason::Truncated);
    }
    let destination: [u8; 16] = fixed.last_chunk().copied().unwrap_or_default();
    Ok(Header {
        version: IpVersion::V6,
        destination: Ipv6Addr::from(destination).into(),
        protocol: fixed[6],
    })
}
