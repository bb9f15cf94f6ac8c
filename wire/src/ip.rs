//! IPv4 and IPv6 headers, read where they lie and built for probes and tests (RFC 791, RFC 8200).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::checksum;
use crate::error::{BuildError, DecodeError};

mod build;
mod udp_headers;

pub use build::{Repr, TcpRepr, tcp, udp};
pub use udp_headers::UdpHeaders;

/// The protocol numbers that the programs tell apart.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6 without anything after the headers.
    pub const NO_NEXT_HEADER: u8 = 59;

    /// True for protocols that carry another packet: IP in IP, IPv6 in IP, GRE, NOS IP-IP,
    /// EtherIP, L2TPv3 and MPLS in IP.
    pub const fn is_tunnel(number: u8) -> bool {
        matches!(number, 4 | 41 | 47 | 94 | 97 | 115 | 137)
    }
}

const IPV4_HEADER_LEN: usize = 20;
const IPV6_HEADER_LEN: usize = 40;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
/// RFC 8200 section 4.1 knows an order in which six are possible.
const MAX_EXTENSION_HEADERS: usize = 8;
const FLAG_DF: u16 = 0x4000;
const FLAG_MF: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;

/// What part of a packet this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fragment {
    /// The same in all fragments of one packet; 16 bits in IPv4.
    pub id: u32,
    /// Where this part begins, in octets.
    pub offset: u16,
    /// More parts come after this one.
    pub more: bool,
}

impl Fragment {
    /// True for the part with the upper header.
    pub const fn is_first(&self) -> bool {
        self.offset == 0
    }
}

/// The ports of UDP or TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ports {
    /// The source port.
    pub source: u16,
    /// The destination port.
    pub destination: u16,
}

/// An IPv4 or IPv6 packet whose headers have been checked.
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    /// Ends where the packet does, by its length field.
    bytes: &'a [u8],
    src: IpAddr,
    dst: IpAddr,
    header_len: usize,
    protocol: u8,
    fragment: Option<Fragment>,
}

impl<'a> Packet<'a> {
    /// Reads the headers. Octets after the packet's own length (link padding) are cut off.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        Self::read(bytes, Cut::Never)
    }

    /// Reads the headers of a packet that an ICMP error quotes, of which the end may be missing.
    pub fn parse_quoted(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        Self::read(bytes, Cut::Allowed)
    }

    fn read(bytes: &'a [u8], cut: Cut) -> Result<Self, DecodeError> {
        match bytes.first().ok_or(DecodeError::Truncated)? >> 4 {
            4 => Self::read_v4(bytes, cut),
            6 => Self::read_v6(bytes, cut),
            _ => Err(DecodeError::IpVersion),
        }
    }

    fn read_v4(bytes: &'a [u8], cut: Cut) -> Result<Self, DecodeError> {
        let (fixed, _) = bytes
            .split_first_chunk::<IPV4_HEADER_LEN>()
            .ok_or(DecodeError::Truncated)?;
        let header_len = usize::from(fixed[0] & 0x0f) * 4;
        if header_len < IPV4_HEADER_LEN {
            return Err(DecodeError::IpHeaderLength);
        }
        let total_len = usize::from(be16(fixed, 2));
        if total_len < header_len {
            return Err(DecodeError::IpLength);
        }
        let bytes = cut.apply(bytes, total_len)?;
        if bytes.len() < header_len {
            return Err(DecodeError::Truncated);
        }
        let flags = be16(fixed, 6);
        let fragment = (flags & (FLAG_MF | OFFSET) != 0).then(|| Fragment {
            id: u32::from(be16(fixed, 4)),
            offset: (flags & OFFSET) << 3,
            more: flags & FLAG_MF != 0,
        });
        check_reach(fragment, total_len - header_len)?;
        Ok(Self {
            bytes,
            src: Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15]).into(),
            dst: Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19]).into(),
            header_len,
            protocol: fixed[9],
            fragment,
        })
    }

    fn read_v6(bytes: &'a [u8], cut: Cut) -> Result<Self, DecodeError> {
        let (fixed, _) = bytes
            .split_first_chunk::<IPV6_HEADER_LEN>()
            .ok_or(DecodeError::Truncated)?;
        let total_len = IPV6_HEADER_LEN + usize::from(be16(fixed, 4));
        let bytes = cut.apply(bytes, total_len)?;
        let (header_len, protocol, fragment) = walk_extensions(bytes, fixed[6])?;
        check_reach(fragment, total_len.saturating_sub(header_len))?;
        let mut octets = [0; 16];
        octets.copy_from_slice(&fixed[8..24]);
        let src = Ipv6Addr::from(octets).into();
        octets.copy_from_slice(&fixed[24..40]);
        let dst = Ipv6Addr::from(octets).into();
        Ok(Self {
            bytes,
            src,
            dst,
            header_len,
            protocol,
            fragment,
        })
    }

    /// The whole packet, without link padding.
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Whence.
    pub const fn src(&self) -> IpAddr {
        self.src
    }

    /// Where to.
    pub const fn dst(&self) -> IpAddr {
        self.dst
    }

    /// True for IPv4.
    pub const fn is_ipv4(&self) -> bool {
        self.src.is_ipv4()
    }

    /// The protocol after all headers read; of the whole packet if this is a fragment.
    pub const fn protocol(&self) -> u8 {
        self.protocol
    }

    /// The ToS or Traffic Class octet.
    pub fn tos(&self) -> u8 {
        if self.is_ipv4() {
            self.bytes[1]
        } else {
            self.bytes[0] << 4 | self.bytes[1] >> 4
        }
    }

    /// The ECN bits (RFC 3168 section 5).
    pub fn ecn(&self) -> u8 {
        self.tos() & 3
    }

    /// Time to live, or hop limit.
    pub fn ttl(&self) -> u8 {
        if self.is_ipv4() {
            self.bytes[8]
        } else {
            self.bytes[7]
        }
    }

    /// True if nobody on the way may fragment: DF in IPv4, always in IPv6.
    pub fn dont_fragment(&self) -> bool {
        !self.is_ipv4() || be16(self.bytes, 6) & FLAG_DF != 0
    }

    /// The octets of all headers read, options and extension headers included.
    pub const fn header_len(&self) -> usize {
        self.header_len
    }

    /// The octets of the packet.
    pub const fn total_len(&self) -> usize {
        self.bytes.len()
    }

    /// Which part this is; `None` for a whole packet.
    ///
    /// An IPv6 atomic fragment (offset 0, no more; RFC 6946) is `Some`.
    pub const fn fragment(&self) -> Option<Fragment> {
        self.fragment
    }

    /// True if the upper header is in this packet.
    pub fn has_upper_header(&self) -> bool {
        self.fragment.is_none_or(|fragment| fragment.is_first())
    }

    /// What follows the headers.
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[self.header_len..]
    }

    /// True for the TCP segment that opens a connection: SYN without ACK (RFC 9293 section 3.1).
    pub fn opens_connection(&self) -> bool {
        const SYN: u8 = 0x02;
        const ACK: u8 = 0x10;
        self.protocol == protocol::TCP
            && self.has_upper_header()
            && self
                .payload()
                .get(13)
                .is_some_and(|flags| flags & (SYN | ACK) == SYN)
    }

    /// The ports, if they are in this packet.
    pub fn ports(&self) -> Option<Ports> {
        if !self.has_upper_header() || !matches!(self.protocol, protocol::UDP | protocol::TCP) {
            return None;
        }
        let ports = self.payload().first_chunk::<4>()?;
        Some(Ports {
            source: be16(ports, 0),
            destination: be16(ports, 2),
        })
    }

    /// What a whole UDP datagram carries.
    pub fn udp_payload(&self) -> Result<&'a [u8], DecodeError> {
        let datagram = self.payload();
        let header = datagram.first_chunk::<8>().ok_or(DecodeError::Truncated)?;
        let len = usize::from(be16(header, 4));
        if len < header.len() {
            return Err(DecodeError::UdpLength);
        }
        datagram
            .get(header.len()..len)
            .ok_or(DecodeError::UdpLength)
    }

    /// True if another packet is inside; see [`protocol::is_tunnel`].
    pub const fn is_tunnel(&self) -> bool {
        protocol::is_tunnel(self.protocol)
    }

    /// True if the IPv4 header checksum is right; IPv6 has none.
    pub fn header_checksum_is_right(&self) -> bool {
        !self.is_ipv4() || checksum::internet(&self.bytes[..self.header_len]) == 0
    }
}

/// May the end of the packet be missing?
#[derive(Debug, Clone, Copy)]
enum Cut {
    Never,
    Allowed,
}

impl Cut {
    fn apply(self, bytes: &[u8], total_len: usize) -> Result<&[u8], DecodeError> {
        match (bytes.get(..total_len), self) {
            (Some(whole), _) => Ok(whole),
            (None, Self::Allowed) => Ok(bytes),
            (None, Self::Never) => Err(DecodeError::IpLength),
        }
    }
}

fn check_reach(fragment: Option<Fragment>, len: usize) -> Result<(), DecodeError> {
    match fragment {
        Some(fragment) if usize::from(fragment.offset) + len > usize::from(u16::MAX) => {
            Err(DecodeError::FragmentTooFar)
        }
        _ => Ok(()),
    }
}

/// Header octets, upper protocol and fragment of an IPv6 packet.
fn walk_extensions(bytes: &[u8], first: u8) -> Result<(usize, u8, Option<Fragment>), DecodeError> {
    let mut at = IPV6_HEADER_LEN;
    let mut next = first;
    let mut fragment = None;
    for _ in 0..MAX_EXTENSION_HEADERS {
        if !matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS) {
            return Ok((at, next, fragment));
        }
        let header = bytes
            .get(at..)
            .and_then(|rest| rest.first_chunk::<8>())
            .ok_or(DecodeError::Truncated)?;
        let len = if next == FRAGMENT {
            8
        } else {
            (usize::from(header[1]) + 1) * 8
        };
        if bytes.len() < at + len {
            return Err(DecodeError::Truncated);
        }
        at += len;
        if next == FRAGMENT {
            let part = read_fragment_header(header);
            fragment = Some(part);
            // What follows in a later part is not a header, whatever it looks like.
            if !part.is_first() {
                return Ok((at, header[0], fragment));
            }
        }
        next = header[0];
    }
    Err(DecodeError::Ipv6ExtensionChain)
}

fn read_fragment_header(header: &[u8; 8]) -> Fragment {
    let offset = be16(header, 2);
    Fragment {
        id: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
        offset: offset & 0xfff8,
        more: offset & 1 != 0,
    }
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// True for an address that one host may have: not "this network", multicast or reserved (RFC 6890),
/// whichever way an IPv4 address is written.
pub fn is_host(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => (1..224).contains(&v4.octets()[0]),
        IpAddr::V6(v6) => !v6.is_unspecified() && !v6.is_multicast(),
    }
}

/// True for an address that a host other than this one may have.
pub fn is_another_host(address: IpAddr) -> bool {
    is_host(address) && !address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests;
