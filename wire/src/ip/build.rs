//! Building IP packets, for probes, ICMP errors and tests; not for the forwarding path.

use std::net::{IpAddr, SocketAddr};

use super::{
    BuildError, FLAG_DF, FLAG_MF, FRAGMENT, Fragment, IPV4_HEADER_LEN, IPV6_HEADER_LEN, Packet,
    checksum, protocol,
};

/// The values of an IP header without options; with a fragment header if it is a fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Repr {
    /// Whence.
    pub src: IpAddr,
    /// Where to, of the same version.
    pub dst: IpAddr,
    /// What follows.
    pub protocol: u8,
    /// The ToS or Traffic Class octet.
    pub tos: u8,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// DF in IPv4; without meaning in IPv6.
    pub dont_fragment: bool,
    /// Which part of a packet it is.
    pub fragment: Option<Fragment>,
}

impl Repr {
    /// A whole packet with ToS 0, TTL 64 and no DF.
    pub const fn new(src: IpAddr, dst: IpAddr, protocol: u8) -> Self {
        Self {
            src,
            dst,
            protocol,
            tos: 0,
            ttl: 64,
            dont_fragment: false,
            fragment: None,
        }
    }

    /// The values of this packet; its options and extension headers are not kept.
    pub fn of(packet: &Packet<'_>) -> Self {
        Self {
            src: packet.src(),
            dst: packet.dst(),
            protocol: packet.protocol(),
            tos: packet.tos(),
            ttl: packet.ttl(),
            dont_fragment: packet.is_ipv4() && packet.dont_fragment(),
            fragment: packet.fragment(),
        }
    }

    /// The packet with this after its headers.
    pub fn build(&self, payload: &[u8]) -> Result<Vec<u8>, BuildError> {
        if self
            .fragment
            .is_some_and(|fragment| fragment.offset % 8 != 0)
        {
            return Err(BuildError::FragmentOffset);
        }
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                self.build_v4(src.octets(), dst.octets(), payload)
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                self.build_v6(src.octets(), dst.octets(), payload)
            }
            _ => Err(BuildError::MixedFamilies),
        }
    }

    fn build_v4(&self, src: [u8; 4], dst: [u8; 4], payload: &[u8]) -> Result<Vec<u8>, BuildError> {
        let total_len = length(IPV4_HEADER_LEN + payload.len())?;
        let mut flags = if self.dont_fragment { FLAG_DF } else { 0 };
        let mut id = 0;
        if let Some(fragment) = self.fragment {
            flags |= fragment.offset >> 3 | if fragment.more { FLAG_MF } else { 0 };
            id = fragment.id as u16;
        }
        let mut packet = Vec::with_capacity(usize::from(total_len));
        packet.extend_from_slice(&[0x45, self.tos]);
        packet.extend_from_slice(&total_len.to_be_bytes());
        packet.extend_from_slice(&id.to_be_bytes());
        packet.extend_from_slice(&flags.to_be_bytes());
        packet.extend_from_slice(&[self.ttl, self.protocol, 0, 0]);
        packet.extend_from_slice(&src);
        packet.extend_from_slice(&dst);
        let checksum = checksum::internet(&packet);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        packet.extend_from_slice(payload);
        Ok(packet)
    }

    fn build_v6(
        &self,
        src: [u8; 16],
        dst: [u8; 16],
        payload: &[u8],
    ) -> Result<Vec<u8>, BuildError> {
        let extension = if self.fragment.is_some() { 8 } else { 0 };
        let payload_len = length(extension + payload.len())?;
        let mut packet = Vec::with_capacity(IPV6_HEADER_LEN + usize::from(payload_len));
        packet.extend_from_slice(&[0x60 | self.tos >> 4, self.tos << 4, 0, 0]);
        packet.extend_from_slice(&payload_len.to_be_bytes());
        let next = if self.fragment.is_some() {
            FRAGMENT
        } else {
            self.protocol
        };
        packet.extend_from_slice(&[next, self.ttl]);
        packet.extend_from_slice(&src);
        packet.extend_from_slice(&dst);
        if let Some(fragment) = self.fragment {
            packet.extend_from_slice(&[self.protocol, 0]);
            packet.extend_from_slice(&(fragment.offset | u16::from(fragment.more)).to_be_bytes());
            packet.extend_from_slice(&fragment.id.to_be_bytes());
        }
        packet.extend_from_slice(payload);
        Ok(packet)
    }
}

/// A UDP packet with this ToS, checksums included.
pub fn udp(
    src: SocketAddr,
    dst: SocketAddr,
    tos: u8,
    payload: &[u8],
) -> Result<Vec<u8>, BuildError> {
    let len = length(8 + payload.len())?;
    let mut datagram = Vec::with_capacity(usize::from(len));
    datagram.extend_from_slice(&src.port().to_be_bytes());
    datagram.extend_from_slice(&dst.port().to_be_bytes());
    datagram.extend_from_slice(&len.to_be_bytes());
    datagram.extend_from_slice(&[0, 0]);
    datagram.extend_from_slice(payload);
    let checksum = checksum::udp(src.ip(), dst.ip(), &datagram);
    datagram[6..8].copy_from_slice(&checksum.to_be_bytes());
    Repr {
        tos,
        ..Repr::new(src.ip(), dst.ip(), protocol::UDP)
    }
    .build(&datagram)
}

/// The values of a TCP header without options (RFC 9293 section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct TcpRepr {
    /// The sequence number.
    pub seq: u32,
    /// The acknowledgement number.
    pub ack: u32,
    /// The flags: 0x02 is SYN, 0x10 ACK, 0x01 FIN, 0x04 RST, 0x08 PSH.
    pub flags: u8,
    /// The window.
    pub window: u16,
}

/// A TCP packet with this ToS, checksums included.
pub fn tcp(
    src: SocketAddr,
    dst: SocketAddr,
    tos: u8,
    header: TcpRepr,
    payload: &[u8],
) -> Result<Vec<u8>, BuildError> {
    let mut segment = Vec::with_capacity(20 + payload.len());
    segment.extend_from_slice(&src.port().to_be_bytes());
    segment.extend_from_slice(&dst.port().to_be_bytes());
    segment.extend_from_slice(&header.seq.to_be_bytes());
    segment.extend_from_slice(&header.ack.to_be_bytes());
    segment.extend_from_slice(&[5 << 4, header.flags]);
    segment.extend_from_slice(&header.window.to_be_bytes());
    segment.extend_from_slice(&[0; 4]);
    segment.extend_from_slice(payload);
    let checksum = checksum::transport(src.ip(), dst.ip(), protocol::TCP, &segment);
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
    Repr {
        tos,
        ..Repr::new(src.ip(), dst.ip(), protocol::TCP)
    }
    .build(&segment)
}

fn length(len: usize) -> Result<u16, BuildError> {
    u16::try_from(len).map_err(|_| BuildError::TooLong)
}
