//! ICMP and ICMPv6 errors and the packet that they quote (RFC 792, RFC 1191, RFC 4443).
//!
//! The edge tunnels these and no other ICMP: an error about a direct reply lands on whichever edge is
//! nearest to the router that sends it, and path MTU discovery at the concentrator needs it.

use std::net::IpAddr;

use crate::checksum;
use crate::error::{BuildError, DecodeError};
use crate::ip::{self, Ports, protocol};

const HEADER_LEN: usize = 8;

const V4_UNREACHABLE: u8 = 3;
const V4_TIME_EXCEEDED: u8 = 11;
const V4_PARAMETER_PROBLEM: u8 = 12;
const V4_FRAGMENTATION_NEEDED: u8 = 4;
const V6_UNREACHABLE: u8 = 1;
const V6_TOO_BIG: u8 = 2;
const V6_TIME_EXCEEDED: u8 = 3;
const V6_PARAMETER_PROBLEM: u8 = 4;

/// True if this packet begins an ICMP error; cheap, for sorting.
pub fn is_error(packet: &ip::Packet<'_>) -> bool {
    let Some(kind) = packet.payload().first() else {
        return false;
    };
    packet.has_upper_header()
        && match (packet.protocol(), packet.is_ipv4()) {
            (protocol::ICMP, true) => {
                matches!(
                    *kind,
                    V4_UNREACHABLE | V4_TIME_EXCEEDED | V4_PARAMETER_PROBLEM
                )
            }
            (protocol::ICMPV6, false) => (V6_UNREACHABLE..=V6_PARAMETER_PROBLEM).contains(kind),
            _ => false,
        }
}

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Destination unreachable, for any other reason than size.
    Unreachable {
        /// The reason; its numbers differ between the IP versions.
        code: u8,
    },
    /// Fragmentation needed and DF set, or packet too big.
    TooBig {
        /// The MTU of the next hop; 0 from routers older than RFC 1191.
        mtu: u32,
    },
    /// Time exceeded: in transit (0) or in reassembly (1).
    TimeExceeded {
        /// Which.
        code: u8,
    },
    /// Parameter problem.
    ParameterProblem {
        /// The reason.
        code: u8,
        /// The octet at fault; 8 bits wide in IPv4.
        pointer: u32,
    },
}

/// Who sent the packet that the error is about, and to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Quoted {
    /// Its source: here, the service address.
    pub src: IpAddr,
    /// Its destination: here, the user agent.
    pub dst: IpAddr,
    /// Its protocol.
    pub protocol: u8,
    /// Its ports, if the quote reaches so far.
    pub ports: Option<Ports>,
}

/// The values of an ICMP error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Repr {
    /// Who says so.
    pub src: IpAddr,
    /// To whom.
    pub dst: IpAddr,
    /// What went wrong.
    pub kind: Kind,
}

impl Repr {
    /// The error with as much of the packet at fault as the caller gives it.
    pub fn build(&self, quote: &[u8]) -> Result<Vec<u8>, BuildError> {
        let v4 = self.src.is_ipv4();
        let number = if v4 { protocol::ICMP } else { protocol::ICMPV6 };
        let (kind, code, word) = if v4 {
            self.fields_v4()
        } else {
            self.fields_v6()
        };
        let mut message = vec![kind, code, 0, 0];
        message.extend_from_slice(&word.to_be_bytes());
        message.extend_from_slice(quote);
        let checksum = if v4 {
            checksum::internet(&message)
        } else {
            checksum::transport(self.src, self.dst, number, &message)
        };
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        ip::Repr::new(self.src, self.dst, number).build(&message)
    }

    const fn fields_v4(&self) -> (u8, u8, u32) {
        match self.kind {
            Kind::Unreachable { code } => (V4_UNREACHABLE, code, 0),
            // The field has 16 bits (RFC 1191 section 4).
            Kind::TooBig { mtu } => (V4_UNREACHABLE, V4_FRAGMENTATION_NEEDED, mtu & 0xffff),
            Kind::TimeExceeded { code } => (V4_TIME_EXCEEDED, code, 0),
            Kind::ParameterProblem { code, pointer } => (V4_PARAMETER_PROBLEM, code, pointer << 24),
        }
    }

    const fn fields_v6(&self) -> (u8, u8, u32) {
        match self.kind {
            Kind::Unreachable { code } => (V6_UNREACHABLE, code, 0),
            Kind::TooBig { mtu } => (V6_TOO_BIG, 0, mtu),
            Kind::TimeExceeded { code } => (V6_TIME_EXCEEDED, code, 0),
            Kind::ParameterProblem { code, pointer } => (V6_PARAMETER_PROBLEM, code, pointer),
        }
    }
}

/// An ICMP error, read where it lies.
#[derive(Debug, Clone, Copy)]
pub struct Error<'a> {
    repr: Repr,
    quote: &'a [u8],
}

impl<'a> Error<'a> {
    /// Reads an unfragmented ICMP error.
    pub fn parse(packet: &ip::Packet<'a>) -> Result<Self, DecodeError> {
        if !is_error(packet) || packet.fragment().is_some_and(|fragment| fragment.more) {
            return Err(DecodeError::NotIcmpError);
        }
        let message = packet.payload();
        let (header, quote) = message
            .split_first_chunk::<HEADER_LEN>()
            .ok_or(DecodeError::Truncated)?;
        let (src, dst) = (packet.src(), packet.dst());
        let checksum = if packet.is_ipv4() {
            checksum::internet(message)
        } else {
            checksum::transport(src, dst, protocol::ICMPV6, message)
        };
        if checksum != 0 {
            return Err(DecodeError::IcmpChecksum);
        }
        let kind = if packet.is_ipv4() {
            kind_v4(header)
        } else {
            kind_v6(header)
        };
        Ok(Self {
            repr: Repr { src, dst, kind },
            quote,
        })
    }

    /// The error's values.
    pub const fn repr(&self) -> Repr {
        self.repr
    }

    /// What went wrong.
    pub const fn kind(&self) -> Kind {
        self.repr.kind
    }

    /// The MTU that a too-big error tells.
    pub const fn mtu(&self) -> Option<u32> {
        match self.repr.kind {
            Kind::TooBig { mtu } => Some(mtu),
            Kind::Unreachable { .. }
            | Kind::TimeExceeded { .. }
            | Kind::ParameterProblem { .. } => None,
        }
    }

    /// The begin of the packet at fault.
    pub const fn quote(&self) -> &'a [u8] {
        self.quote
    }

    /// The packet at fault, as far as it is quoted.
    pub fn quoted(&self) -> Result<Quoted, DecodeError> {
        let packet = ip::Packet::parse_quoted(self.quote)?;
        if packet.is_ipv4() != self.repr.src.is_ipv4() {
            return Err(DecodeError::IpVersion);
        }
        Ok(Quoted {
            src: packet.src(),
            dst: packet.dst(),
            protocol: packet.protocol(),
            ports: packet.ports(),
        })
    }
}

const fn kind_v4(header: &[u8; HEADER_LEN]) -> Kind {
    let code = header[1];
    match header[0] {
        V4_UNREACHABLE if code == V4_FRAGMENTATION_NEEDED => Kind::TooBig {
            mtu: u16::from_be_bytes([header[6], header[7]]) as u32,
        },
        V4_UNREACHABLE => Kind::Unreachable { code },
        V4_TIME_EXCEEDED => Kind::TimeExceeded { code },
        _ => Kind::ParameterProblem {
            code,
            pointer: header[4] as u32,
        },
    }
}

const fn kind_v6(header: &[u8; HEADER_LEN]) -> Kind {
    let code = header[1];
    let word = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
    match header[0] {
        V6_UNREACHABLE => Kind::Unreachable { code },
        V6_TOO_BIG => Kind::TooBig { mtu: word },
        V6_TIME_EXCEEDED => Kind::TimeExceeded { code },
        _ => Kind::ParameterProblem {
            code,
            pointer: word,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use proptest::prelude::*;

    use super::*;

    fn ends(v6: bool) -> (SocketAddr, SocketAddr) {
        if v6 {
            (
                "[2001:db8::1]:5060".parse().unwrap(),
                "[2001:db8::2]:40000".parse().unwrap(),
            )
        } else {
            (
                "198.51.100.1:5060".parse().unwrap(),
                "192.0.2.1:40000".parse().unwrap(),
            )
        }
    }

    fn kind() -> impl Strategy<Value = Kind> {
        let code = any::<u8>().prop_filter("4 is too big in IPv4", |code| *code != 4);
        prop_oneof![
            code.prop_map(|code| Kind::Unreachable { code }),
            any::<u16>().prop_map(|mtu| Kind::TooBig {
                mtu: u32::from(mtu)
            }),
            any::<u8>().prop_map(|code| Kind::TimeExceeded { code }),
            any::<(u8, u8)>().prop_map(|(code, pointer)| Kind::ParameterProblem {
                code,
                pointer: u32::from(pointer)
            }),
        ]
    }

    fn error(v6: bool, kind: Kind, quote: &[u8]) -> Vec<u8> {
        let (src, _) = ends(v6);
        let router = if v6 { "2001:db8:9::1" } else { "203.0.113.9" }
            .parse()
            .unwrap();
        Repr {
            src: router,
            dst: src.ip(),
            kind,
        }
        .build(quote)
        .unwrap()
    }

    proptest! {
        #[test]
        fn an_error_comes_back_as_it_was_with_the_quoted_ends(v6: bool, kind in kind()) {
            let (src, dst) = ends(v6);
            let quote = ip::udp(src, dst, 0, &[7; 1200]).unwrap();
            let bytes = error(v6, kind, &quote[..60]);
            let packet = ip::Packet::parse(&bytes).unwrap();
            prop_assert!(is_error(&packet));
            let error = Error::parse(&packet).unwrap();
            prop_assert_eq!(error.repr().build(error.quote()).unwrap(), bytes.clone());
            prop_assert_eq!(error.kind(), kind);
            let ports = Some(Ports { source: src.port(), destination: dst.port() });
            let quoted = Quoted { src: src.ip(), dst: dst.ip(), protocol: 17, ports };
            prop_assert_eq!(error.quoted(), Ok(quoted));
        }

        #[test]
        fn garbage_never_panics(mut bytes in prop::collection::vec(any::<u8>(), 40..120), v6: bool) {
            bytes[0] = if v6 { 0x60 } else { 0x45 };
            bytes[if v6 { 6 } else { 9 }] = if v6 { 58 } else { 1 };
            if let Ok(packet) = ip::Packet::parse_quoted(&bytes) {
                let _ = Error::parse(&packet).map(|error| (error.mtu(), error.quoted()));
            }
        }
    }

    #[test]
    fn every_truncation_of_message_and_quote_is_no_panic() {
        for v6 in [false, true] {
            let (src, dst) = ends(v6);
            let quote = ip::udp(src, dst, 0, b"12345678").unwrap();
            let full = if v6 { 48 } else { 28 };
            for len in 0..quote.len() {
                let bytes = error(v6, Kind::TooBig { mtu: 1280 }, &quote[..len]);
                let packet = ip::Packet::parse(&bytes).unwrap();
                let error = Error::parse(&packet).unwrap();
                assert_eq!(error.mtu(), Some(1280));
                assert_eq!(error.quoted().is_ok(), len >= full - 8);
                assert_eq!(
                    error.quoted().is_ok_and(|q| q.ports.is_some()),
                    len >= full - 4
                );
            }
            let repr =
                ip::Repr::of(&ip::Packet::parse(&error(v6, Kind::TooBig { mtu: 1 }, &[])).unwrap());
            for len in 0..HEADER_LEN {
                let mut message = vec![0; len];
                message.iter_mut().take(1).for_each(|kind| *kind = 3);
                let bytes = repr.build(&message).unwrap();
                assert!(Error::parse(&ip::Packet::parse(&bytes).unwrap()).is_err());
            }
        }
    }

    #[test]
    fn a_ping_is_no_error_and_a_flipped_bit_is_seen() {
        let mut bytes = error(false, Kind::TooBig { mtu: 1400 }, b"quote");
        bytes[27] ^= 1;
        let packet = ip::Packet::parse(&bytes).unwrap();
        assert_eq!(Error::parse(&packet).err(), Some(DecodeError::IcmpChecksum));
        bytes[20] = 8;
        let ping = ip::Packet::parse(&bytes).unwrap();
        assert!(!is_error(&ping));
        assert_eq!(Error::parse(&ping).err(), Some(DecodeError::NotIcmpError));
    }
}
