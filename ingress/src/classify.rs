//! PURE. Is this packet ours to forward? Decided by the IP header alone.
//!
//! Ports play no part: later fragments have none, and they must take the same way as the first.
//! What the concentrator is entitled to refuse (protocols, sources) is left to it; here only what
//! cannot be tunnelled at all is dropped.

use std::net::IpAddr;

use wire::error::DecodeError;
use wire::gre::Protocol;
use wire::ip::Packet;

/// What to do with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Mark it and send it through the tunnel, with this protocol type in the GRE header.
    Forward(Protocol),
    /// Drop it and count why.
    Drop(DropReason),
}

/// Why a packet is not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// The version field is neither 4 nor 6, or there is no byte at all.
    NotIp,
    /// It ends before its headers do.
    Truncated,
    /// The headers contradict themselves or the length of the packet.
    Malformed,
    /// To somebody else: another route leads into the device, or the kernel speaks for itself.
    NotServiceAddress,
    /// A tunnel packet itself: unwrapped a second time it could be anything.
    NestedTunnel,
}

impl DropReason {
    /// All of them, in the order of the enum.
    pub const ALL: [Self; 5] = [
        Self::NotIp,
        Self::Truncated,
        Self::Malformed,
        Self::NotServiceAddress,
        Self::NestedTunnel,
    ];

    /// The name in metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NotIp => "not_ip",
            Self::Truncated => "truncated",
            Self::Malformed => "malformed",
            Self::NotServiceAddress => "not_service_address",
            Self::NestedTunnel => "nested_tunnel",
        }
    }
}

/// Looks at the headers only.
pub fn classify(bytes: &[u8], service_addresses: &[IpAddr]) -> Verdict {
    if bytes.is_empty() {
        return Verdict::Drop(DropReason::NotIp);
    }
    let packet = match Packet::parse(bytes) {
        Ok(packet) => packet,
        Err(error) => return Verdict::Drop(reason_of(error)),
    };
    if !service_addresses.contains(&packet.dst()) {
        return Verdict::Drop(DropReason::NotServiceAddress);
    }
    if packet.is_tunnel() {
        return Verdict::Drop(DropReason::NestedTunnel);
    }
    Verdict::Forward(if packet.is_ipv4() {
        Protocol::Ipv4
    } else {
        Protocol::Ipv6
    })
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the other variants are not about IP headers"
)]
fn reason_of(error: DecodeError) -> DropReason {
    match error {
        DecodeError::IpVersion => DropReason::NotIp,
        DecodeError::Truncated => DropReason::Truncated,
        _ => DropReason::Malformed,
    }
}
