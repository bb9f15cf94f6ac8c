//! What stands between the outer IP header and the inner packet: GRE alone, or GRE in UDP (RFC 8086).
//!
//! ```text
//! gre        | outer IP, protocol 47 |                                        | GRE | inner packet |
//! gre-udp    | outer IP, protocol 17 | UDP: 49152-65535 to 4754, checksum     | GRE | inner packet |
//! ```
//!
//! The UDP source port is the [`Entropy`] of the inner flow, by which routers and network cards that do
//! not look into GRE spread packets over links and queues. Plain GRE has no such field; there the entropy
//! may choose one of several outer source addresses.
//!
//! The UDP checksum is left 0 here. Over IPv4 that is no checksum, which RFC 8086 section 5.1 allows: the
//! inner packet has its own. Over IPv6 it must be there (RFC 8086 section 5.2), and the kernel fills it in.

use crate::gre;
use crate::ip::{self, protocol};

/// The UDP port that GRE in UDP is sent to.
pub const GRE_UDP_PORT: u16 = 4754;
/// The first of the UDP ports that it is sent from.
pub const FIRST_ENTROPY_PORT: u16 = 49_152;
/// The octets of a UDP header (RFC 768).
pub const UDP_HEADER_LEN: usize = 8;

/// The longest header.
const MOST: usize = UDP_HEADER_LEN + gre::HEADER_LEN;
/// An odd number without a pattern (2^32 over the golden ratio).
const MULTIPLIER: u32 = 0x9e37_79b1;

/// How inner packets are wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Encapsulation {
    /// GRE as an IP protocol.
    #[default]
    Gre,
    /// GRE in UDP.
    GreUdp,
}

impl Encapsulation {
    /// As in configuration files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gre => "gre",
            Self::GreUdp => "gre-udp",
        }
    }

    /// The octets of [`Self::header`].
    pub const fn header_len(self) -> usize {
        match self {
            Self::Gre => gre::HEADER_LEN,
            Self::GreUdp => MOST,
        }
    }

    /// What it takes off an MTU, with an outer IPv4 or IPv6 header.
    pub const fn overhead(self, outer_is_ipv4: bool) -> u16 {
        let outer = if outer_is_ipv4 { 20 } else { 40 };
        outer + self.header_len() as u16
    }

    /// The header of an inner packet of this length, no longer than a UDP datagram carries.
    pub fn header(self, gre: gre::Repr, entropy: Entropy, inner_length: usize) -> Header {
        let mut octets = [0; MOST];
        let length = self.header_len();
        let (before, after) = octets[..length].split_at_mut(length - gre::HEADER_LEN);
        after.copy_from_slice(&gre.header());
        if self == Self::GreUdp {
            let datagram = u16::try_from(MOST + inner_length).unwrap_or(u16::MAX);
            before[..2].copy_from_slice(&entropy.port().to_be_bytes());
            before[2..4].copy_from_slice(&GRE_UDP_PORT.to_be_bytes());
            before[4..6].copy_from_slice(&datagram.to_be_bytes());
        }
        Header { octets, length }
    }
}

/// The octets that go before an inner packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    octets: [u8; MOST],
    length: usize,
}

impl Header {
    /// UDP, if any, and GRE.
    pub fn bytes(&self) -> &[u8] {
        &self.octets[..self.length]
    }
}

/// A number that the packets of one inner flow have in common: of addresses and protocol, and of the ports
/// in whole packets of UDP and TCP. Fragments have no ports but the first, so all of them go without.
///
/// It is no secret and chooses nothing but a way through the core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Entropy(u32);

impl Entropy {
    /// That of this packet.
    pub fn of(packet: &ip::Packet<'_>) -> Self {
        let bytes = packet.bytes();
        let addresses = if packet.is_ipv4() {
            bytes.get(12..20)
        } else {
            bytes.get(8..40)
        };
        let has_ports = matches!(packet.protocol(), protocol::UDP | protocol::TCP)
            && packet.fragment().is_none();
        let ports = packet.payload().get(..4).filter(|_| has_ports);
        let words = addresses.into_iter().chain([ports.unwrap_or(&[0; 4])]);
        let words = words.flat_map(|octets| octets.as_chunks::<4>().0);
        // As they lie in memory, which is how the XDP program has them.
        let sum = words.fold(0, |sum, word| mix(sum, u32::from_ne_bytes(*word)));
        Self(mix(sum, packet.protocol().into()))
    }

    /// The UDP source port: the upper bits, which all octets have had a say in.
    pub const fn port(self) -> u16 {
        FIRST_ENTROPY_PORT | (self.0 >> 18) as u16
    }

    /// One of so many, below 2^16.
    pub const fn choose(self, among: usize) -> usize {
        ((self.0 >> 16) as usize * among) >> 16
    }
}

const fn mix(sum: u32, word: u32) -> u32 {
    let mixed = (sum ^ word).wrapping_mul(MULTIPLIER);
    mixed ^ mixed >> 15
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::SocketAddr;

    use super::*;
    use crate::gre::{Protocol, Repr, TunnelKey};
    use crate::ip::{Fragment, Packet};

    const REPR: Repr = Repr {
        key: TunnelKey(0x1001),
        protocol: Protocol::Ipv4,
    };

    fn entropy(from: &str, to: &str) -> Entropy {
        let [from, to] = [from, to].map(|text| text.parse::<SocketAddr>().unwrap());
        let packet = ip::udp(from, to, 0, b"OPTIONS").unwrap();
        Entropy::of(&Packet::parse(&packet).unwrap())
    }

    #[test]
    fn the_header_of_gre_is_that_of_gre_alone() {
        let header = Encapsulation::Gre.header(REPR, Entropy(7), 100);
        assert_eq!(header.bytes(), REPR.header());
    }

    #[test]
    fn gre_in_udp_has_the_port_of_the_flow_and_a_length_over_all() {
        let header = Encapsulation::GreUdp.header(REPR, Entropy(0xffff_ffff), 100);
        let (udp, gre) = header.bytes().split_at(UDP_HEADER_LEN);
        assert_eq!(udp, [0xff, 0xff, 0x12, 0x92, 0, 116, 0, 0]);
        assert_eq!(gre, REPR.header());
    }

    #[test]
    fn the_overheads_are_those_of_the_headers() {
        let all = [Encapsulation::Gre, Encapsulation::GreUdp];
        assert_eq!(all.map(|one| one.overhead(true)), [28, 36]);
        assert_eq!(all.map(|one| one.overhead(false)), [48, 56]);
        assert_eq!(all.map(Encapsulation::name), ["gre", "gre-udp"]);
    }

    #[test]
    fn flows_are_spread_over_all_ports_and_a_flow_has_one() {
        let mut ports = HashSet::new();
        let mut chosen = [0; 5];
        for port in 1_024..3_072 {
            let flow = entropy(&format!("192.0.2.7:{port}"), "198.51.100.1:5060");
            assert_eq!(
                flow,
                entropy(&format!("192.0.2.7:{port}"), "198.51.100.1:5060")
            );
            assert!(flow.port() >= FIRST_ENTROPY_PORT);
            ports.insert(flow.port());
            chosen[flow.choose(5)] += 1;
        }
        // Of 2,048 balls in 16,384 boxes some 120 share one.
        assert!(ports.len() > 1_800, "{}", ports.len());
        assert!(
            chosen.iter().all(|count| (350..470).contains(count)),
            "{chosen:?}"
        );
        let (one, other) = (
            entropy("[2001:db8::7]:5060", "[2001:db8:5060::1]:5060"),
            entropy("[2001:db8::8]:5060", "[2001:db8:5060::1]:5060"),
        );
        assert_ne!(one.port(), other.port());
    }

    #[test]
    fn all_fragments_of_a_datagram_have_one() {
        for (from, to) in [
            ("192.0.2.7:40000", "198.51.100.1:5060"),
            ("[2001:db8::7]:40000", "[2001:db8:5060::1]:5060"),
        ] {
            let [from, to] = [from, to].map(|text| text.parse::<SocketAddr>().unwrap());
            let of = |offset, payload: &[u8]| {
                let mut repr = ip::Repr::new(from.ip(), to.ip(), protocol::UDP);
                repr.fragment = Some(Fragment {
                    id: 9,
                    offset,
                    more: offset == 0,
                });
                let packet = repr.build(payload).unwrap();
                Entropy::of(&Packet::parse(&packet).unwrap())
            };
            assert_eq!(of(0, &[1; 64]), of(64, &[2; 64]));
        }
    }
}
