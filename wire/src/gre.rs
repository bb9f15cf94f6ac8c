//! The GRE header of the tunnel: eight octets, always with a key (RFC 2784, RFC 2890).
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |0|0|1|0|      Reserved0  | Ver |         Protocol Type         |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                              Key                              |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! ```

use std::fmt;

use crate::error::DecodeError;
use crate::ip;

/// The octets of the header.
pub const HEADER_LEN: usize = 8;

/// The protocol number of GRE in the outer IP header.
pub const IP_PROTOCOL: u8 = 47;

const CHECKSUM: u16 = 0x8000;
const KEY: u16 = 0x2000;
const SEQUENCE: u16 = 0x1000;
/// Bits 1, 4 and 5. Bits 6 to 12 are ignored on receipt (RFC 2784 section 2.3).
const RESERVED: u16 = 0x4c00;
const VERSION: u16 = 0x0007;

/// The key of a tunnel, which names the edge (RFC 2890 section 2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TunnelKey(pub u32);

impl fmt::Display for TunnelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#06x}", self.0)
    }
}

/// What is inside, by its EtherType.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// 0x0800.
    Ipv4,
    /// 0x86dd.
    Ipv6,
}

impl Protocol {
    /// The protocol of this IP packet, by its first four bits.
    pub fn of_packet(packet: &[u8]) -> Result<Self, DecodeError> {
        match packet.first().ok_or(DecodeError::Truncated)? >> 4 {
            4 => Ok(Self::Ipv4),
            6 => Ok(Self::Ipv6),
            _ => Err(DecodeError::IpVersion),
        }
    }

    /// The number on the wire.
    pub const fn ether_type(self) -> u16 {
        match self {
            Self::Ipv4 => 0x0800,
            Self::Ipv6 => 0x86dd,
        }
    }
}

/// A GRE packet as the tunnel has it: header and what is inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    repr: Repr,
    payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Reads what follows the outer IP header.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let (first, rest) = bytes
            .split_first_chunk::<4>()
            .ok_or(DecodeError::Truncated)?;
        let flags = u16::from_be_bytes([first[0], first[1]]);
        match flags {
            _ if flags & VERSION != 0 => return Err(DecodeError::GreVersion),
            _ if flags & CHECKSUM != 0 => return Err(DecodeError::GreChecksum),
            _ if flags & SEQUENCE != 0 => return Err(DecodeError::GreSequence),
            _ if flags & KEY == 0 => return Err(DecodeError::GreKeyMissing),
            _ if flags & RESERVED != 0 => return Err(DecodeError::GreReserved),
            _ => {}
        }
        let protocol = match u16::from_be_bytes([first[2], first[3]]) {
            0x0800 => Protocol::Ipv4,
            0x86dd => Protocol::Ipv6,
            _ => return Err(DecodeError::GreProtocol),
        };
        let (key, payload) = rest
            .split_first_chunk::<4>()
            .ok_or(DecodeError::Truncated)?;
        let key = TunnelKey(u32::from_be_bytes(*key));
        Ok(Self {
            repr: Repr { key, protocol },
            payload,
        })
    }

    /// The header's values.
    pub const fn repr(&self) -> Repr {
        self.repr
    }

    /// The key.
    pub const fn key(&self) -> TunnelKey {
        self.repr.key
    }

    /// What is inside, says the header.
    pub const fn protocol(&self) -> Protocol {
        self.repr.protocol
    }

    /// What is inside, unread.
    pub const fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// What is inside, read; it must be of the version that the header says.
    pub fn inner(&self) -> Result<ip::Packet<'a>, DecodeError> {
        if Protocol::of_packet(self.payload)? != self.repr.protocol {
            return Err(DecodeError::GreProtocolMismatch);
        }
        ip::Packet::parse(self.payload)
    }
}

/// The values of the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Repr {
    /// The tunnel.
    pub key: TunnelKey,
    /// What is inside.
    pub protocol: Protocol,
}

impl Repr {
    /// The header as it goes before the inner packet.
    pub const fn header(&self) -> [u8; HEADER_LEN] {
        let [f0, f1] = KEY.to_be_bytes();
        let [p0, p1] = self.protocol.ether_type().to_be_bytes();
        let [k0, k1, k2, k3] = self.key.0.to_be_bytes();
        [f0, f1, p0, p1, k0, k1, k2, k3]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: [u8; 8] = [0x20, 0, 0x08, 0, 0, 0, 0x10, 0x01];

    fn with_flags(flags: u16) -> Result<Repr, DecodeError> {
        let mut bytes = GOOD;
        bytes[..2].copy_from_slice(&flags.to_be_bytes());
        Packet::parse(&bytes).map(|packet| packet.repr())
    }

    #[test]
    fn each_refusal_has_its_own_reason() {
        assert_eq!(with_flags(0x2001), Err(DecodeError::GreVersion));
        assert_eq!(with_flags(0xa000), Err(DecodeError::GreChecksum));
        assert_eq!(with_flags(0x3000), Err(DecodeError::GreSequence));
        assert_eq!(with_flags(0x0000), Err(DecodeError::GreKeyMissing));
        for bit in [0x4000, 0x0800, 0x0400] {
            assert_eq!(with_flags(0x2000 | bit), Err(DecodeError::GreReserved));
        }
        let mut bridged = GOOD;
        bridged[2..4].copy_from_slice(&0x6558_u16.to_be_bytes());
        assert_eq!(Packet::parse(&bridged), Err(DecodeError::GreProtocol));
    }

    #[test]
    fn reserved_bits_6_to_12_are_ignored_on_receipt() {
        let repr = Repr {
            key: TunnelKey(0x1001),
            protocol: Protocol::Ipv4,
        };
        assert_eq!(with_flags(0x2000 | 0x03f8), Ok(repr));
    }

    #[test]
    fn every_truncation_of_the_header_is_an_error() {
        for len in 0..HEADER_LEN {
            assert_eq!(Packet::parse(&GOOD[..len]), Err(DecodeError::Truncated));
        }
    }

    #[test]
    fn the_packet_inside_must_be_what_the_type_says() {
        let mut bytes = GOOD.to_vec();
        bytes.push(0x60);
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!(packet.inner().err(), Some(DecodeError::GreProtocolMismatch));
    }

    proptest! {
        #[test]
        fn a_header_comes_back_as_it_was(
            key in any::<u32>(), v6 in any::<bool>(), payload in prop::collection::vec(any::<u8>(), 0..50)
        ) {
            let protocol = if v6 { Protocol::Ipv6 } else { Protocol::Ipv4 };
            let repr = Repr { key: TunnelKey(key), protocol };
            let bytes = [&repr.header()[..], &payload].concat();
            let packet = Packet::parse(&bytes).unwrap();
            prop_assert_eq!(packet.repr(), repr);
            prop_assert_eq!(packet.payload(), &payload[..]);
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(packet) = Packet::parse(&bytes) {
                let _ = packet.inner();
            }
        }
    }
}
