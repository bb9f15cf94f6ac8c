//! The mark: the relay of an edge, in the DSCP bits of the inner ToS or Traffic Class.
//!
//! The ECN bits beside it belong to the connection's ends and are never touched (RFC 9601
//! section 5). IPv6 has no checksum over the octet; that of IPv4 is updated in place.

use std::fmt;

use crate::checksum;
use crate::error::DecodeError;
use crate::gre::TunnelKey;

/// Which relay of an edge, 1..=63; 0 means unmarked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Mark(u8);

impl Mark {
    /// No relay of its own.
    pub const UNMARKED: Self = Self(0);
    /// The largest mark: the DSCP field has six bits (RFC 2474 section 3).
    pub const MAX: u8 = 63;

    /// The mark of this number; `None` above [`Mark::MAX`].
    pub const fn new(number: u8) -> Option<Self> {
        if number <= Self::MAX {
            Some(Self(number))
        } else {
            None
        }
    }

    /// The mark in a ToS or Traffic Class octet, whatever its ECN bits.
    pub const fn from_tos(tos: u8) -> Self {
        Self(tos >> 2)
    }

    /// The number, 0..=63.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// True for mark 0.
    pub const fn is_unmarked(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One relay, world-wide: the edge by its tunnel key, the relay by its mark there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelayId {
    /// The edge.
    pub key: TunnelKey,
    /// The relay on that edge.
    pub mark: Mark,
}

impl fmt::Display for RelayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.key, self.mark)
    }
}

/// Overwrites the DSCP bits of this IPv4 or IPv6 packet, whatever they were.
///
/// Only the fixed header is looked at, so it serves whole packets and fragments alike. A header
/// checksum that was wrong stays wrong by as much.
pub fn stamp(packet: &mut [u8], mark: Mark) -> Result<(), DecodeError> {
    match version(packet)? {
        Version::V4 => {
            let old = u16::from_be_bytes([packet[0], packet[1]]);
            packet[1] = mark.0 << 2 | packet[1] & 0x03;
            let new = u16::from_be_bytes([packet[0], packet[1]]);
            let sum = checksum::update(u16::from_be_bytes([packet[10], packet[11]]), old, new);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        Version::V6 => {
            packet[0] = packet[0] & 0xf0 | mark.0 >> 2;
            packet[1] = mark.0 << 6 | packet[1] & 0x3f;
        }
    }
    Ok(())
}

/// The mark of this IPv4 or IPv6 packet.
pub fn read(packet: &[u8]) -> Result<Mark, DecodeError> {
    Ok(Mark::from_tos(match version(packet)? {
        Version::V4 => packet[1],
        Version::V6 => packet[0] << 4 | packet[1] >> 4,
    }))
}

enum Version {
    V4,
    V6,
}

/// The version of a packet whose fixed header is all there.
fn version(packet: &[u8]) -> Result<Version, DecodeError> {
    match packet.first().ok_or(DecodeError::Truncated)? >> 4 {
        4 if packet.len() >= 20 => Ok(Version::V4),
        6 if packet.len() >= 40 => Ok(Version::V6),
        4 | 6 => Err(DecodeError::Truncated),
        _ => Err(DecodeError::IpVersion),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::ip;

    fn packet(v6: bool, tos: u8, payload: &[u8]) -> Vec<u8> {
        let (src, dst): (SocketAddr, SocketAddr) = if v6 {
            (
                "[2001:db8::1]:5060".parse().unwrap(),
                "[2001:db8::2]:5060".parse().unwrap(),
            )
        } else {
            (
                "192.0.2.1:5060".parse().unwrap(),
                "198.51.100.1:5060".parse().unwrap(),
            )
        };
        ip::udp(src, dst, tos, payload).unwrap()
    }

    proptest! {
        #[test]
        fn a_stamp_changes_the_mark_and_the_checksum_and_nothing_else(
            v6 in any::<bool>(), tos in any::<u8>(), number in 0..=Mark::MAX,
            payload in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let mark = Mark::new(number).unwrap();
            let mut stamped = packet(v6, tos, &payload);
            stamp(&mut stamped, mark).unwrap();
            prop_assert_eq!(read(&stamped), Ok(mark));
            // Built from scratch it is the same, to the last bit of the checksum.
            prop_assert_eq!(stamped, packet(v6, number << 2 | tos & 3, &payload));
        }

        #[test]
        fn garbage_never_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = read(&bytes);
            let _ = stamp(&mut bytes, Mark::UNMARKED);
        }
    }

    #[test]
    fn a_wrong_checksum_stays_wrong() {
        let mut bytes = packet(false, 0, b"x");
        bytes[10] ^= 1;
        stamp(&mut bytes, Mark(63)).unwrap();
        assert!(
            !ip::Packet::parse(&bytes)
                .unwrap()
                .header_checksum_is_right()
        );
    }

    #[test]
    fn a_header_that_is_not_whole_is_left_alone() {
        for (v6, fixed) in [(false, 20), (true, 40)] {
            let whole = packet(v6, 0, b"");
            for len in 1..fixed {
                let mut cut = whole[..len].to_vec();
                assert_eq!(stamp(&mut cut, Mark(9)), Err(DecodeError::Truncated));
                assert_eq!(cut, whole[..len]);
            }
        }
        assert_eq!(read(&[0x55; 60]), Err(DecodeError::IpVersion));
        assert_eq!(read(&[]), Err(DecodeError::Truncated));
    }
}
