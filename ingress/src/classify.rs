//! PURE. Is this packet ours to forward? Decided by the IP header alone.
//!
//! Ports play no part: later fragments have none, and they must take the same way as the first.
//! What the concentrator is entitled to refuse (protocols, sources) is left to it; here only what
//! cannot be tunnelled at all is dropped.

use std::net::IpAddr;

use wire::encapsulation::Entropy;
use wire::error::DecodeError;
use wire::gre::Protocol;
use wire::icmp;
use wire::ip::Packet;

/// What to do with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Mark it and send it through the tunnel.
    Forward(Passage),
    /// Drop it and count why.
    Drop(DropReason),
}

/// What is known of a packet to be forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passage {
    /// In the GRE header.
    pub protocol: Protocol,
    /// Who has sent it.
    pub source: IpAddr,
    /// Whose business it is.
    pub user_agent: IpAddr,
    /// Of its flow.
    pub entropy: Entropy,
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
    /// Its source is in `limits.deny`.
    Denied,
    /// Its source sends too fast.
    SourceLimit,
    /// All sources together send too fast.
    TotalLimit,
}

impl DropReason {
    /// All of them, in the order of the enum.
    pub const ALL: [Self; 8] = [
        Self::NotIp,
        Self::Truncated,
        Self::Malformed,
        Self::NotServiceAddress,
        Self::NestedTunnel,
        Self::Denied,
        Self::SourceLimit,
        Self::TotalLimit,
    ];

    /// The name in metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NotIp => "not_ip",
            Self::Truncated => "truncated",
            Self::Malformed => "malformed",
            Self::NotServiceAddress => "not_service_address",
            Self::NestedTunnel => "nested_tunnel",
            Self::Denied => "denied",
            Self::SourceLimit => "source_limit",
            Self::TotalLimit => "total_limit",
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
    let protocol = if packet.is_ipv4() {
        Protocol::Ipv4
    } else {
        Protocol::Ipv6
    };
    Verdict::Forward(Passage {
        protocol,
        source: packet.src(),
        user_agent: user_agent(&packet, service_addresses),
        entropy: Entropy::of(&packet),
    })
}

/// Who sent it; of an ICMP error about a packet of ours, to whom that one went: a router on the way
/// has sent the error, and it is the business of whoever has sent the packet.
fn user_agent(packet: &Packet<'_>, service_addresses: &[IpAddr]) -> IpAddr {
    let quoted = icmp::Error::parse(packet).and_then(|error| error.quoted());
    match quoted {
        Ok(quoted) if service_addresses.contains(&quoted.src) => quoted.dst,
        Ok(_) | Err(_) => packet.src(),
    }
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use wire::icmp::{Kind, Repr};
    use wire::ip;

    use super::*;

    #[test]
    fn an_error_about_our_packet_belongs_to_whom_that_went() {
        let [service, phone, router]: [IpAddr; 3] =
            ["198.51.100.1", "192.0.2.7", "203.0.113.1"].map(|text| text.parse().unwrap());
        let port = |address| SocketAddr::new(address, 5060);
        let owner = |from: IpAddr, to: IpAddr| {
            let quote = ip::udp(port(from), port(to), 0, b"SIP/2.0 200 OK").unwrap();
            let (src, dst, kind) = (router, service, Kind::TooBig { mtu: 1_400 });
            let error = Repr { src, dst, kind }.build(&quote).unwrap();
            match classify(&error, &[service]) {
                Verdict::Forward(passage) => (passage.source, passage.user_agent),
                Verdict::Drop(reason) => panic!("{reason:?}"),
            }
        };
        assert_eq!(owner(service, phone), (router, phone));
        // Not ours: whoever says so speaks for itself only.
        assert_eq!(owner(phone, router), (router, router));
    }
}
