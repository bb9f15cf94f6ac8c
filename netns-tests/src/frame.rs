//! Reading what a capture holds: Ethernet, IPv4, UDP, TCP, GRE with a key, RTP.
//!
//! Written apart from the programs' own parsers on purpose: it is what they are checked against.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Result, bail, ensure};

const ETHERNET: usize = 14;
pub(crate) const GRE: u8 = 47;
pub(crate) const UDP: u8 = 17;
pub(crate) const TCP: u8 = 6;

/// An IPv4 packet as it was seen.
#[derive(Debug, Clone)]
pub(crate) struct Packet {
    /// Microseconds since 1970.
    pub(crate) at: u64,
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    pub(crate) tos: u8,
    pub(crate) protocol: u8,
    /// In units of 8 bytes.
    pub(crate) fragment_offset: u16,
    pub(crate) more_fragments: bool,
    pub(crate) dont_fragment: bool,
    pub(crate) payload: Vec<u8>,
}

/// Where a transport's packet goes and what it carries.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment<'a> {
    pub(crate) destination: SocketAddrV4,
    /// Zero for UDP.
    pub(crate) tcp_flags: u8,
    pub(crate) payload: &'a [u8],
}

/// What identifies an RTP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Rtp {
    pub(crate) ssrc: u32,
    pub(crate) sequence: u16,
}

/// The IPv4 packets of a pcap file in the form that dumpcap writes on this machine. What is still
/// being written at the end is left out.
pub(crate) fn read_pcap(bytes: &[u8]) -> Result<Vec<Packet>> {
    if bytes.len() < 24 {
        return Ok(Vec::new());
    }
    let word =
        |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    ensure!(
        word(0) == 0xa1b2_c3d4,
        "not a little-endian microsecond pcap file"
    );
    if word(20) != 1 {
        bail!("link type {} is not Ethernet", word(20));
    }
    let mut packets = Vec::new();
    let mut at = 24;
    while at + 16 <= bytes.len() {
        let time = u64::from(word(at)) * 1_000_000 + u64::from(word(at + 4));
        let length = word(at + 8) as usize;
        let Some(frame) = bytes.get(at + 16..at + 16 + length) else {
            break;
        };
        if frame.get(12..ETHERNET) == Some(&[0x08, 0x00]) {
            packets.extend(Packet::parse(time, &frame[ETHERNET..]));
        }
        at += 16 + length;
    }
    Ok(packets)
}

impl Packet {
    /// An IPv4 packet; `None` when its lengths do not fit.
    pub(crate) fn parse(at: u64, bytes: &[u8]) -> Option<Self> {
        let first = *bytes.first()?;
        let header = usize::from(first & 0x0f) * 4;
        let total = usize::from(pair(bytes, 2)?);
        if first >> 4 != 4 || header < 20 || total < header {
            return None;
        }
        let fragment = pair(bytes, 6)?;
        Some(Self {
            at,
            source: address(bytes, 12)?,
            destination: address(bytes, 16)?,
            tos: bytes[1],
            protocol: *bytes.get(9)?,
            fragment_offset: fragment & 0x1fff,
            more_fragments: fragment & 0x2000 != 0,
            dont_fragment: fragment & 0x4000 != 0,
            payload: bytes.get(header..total)?.to_vec(),
        })
    }

    /// The UDP datagram in it; `None` for later fragments.
    pub(crate) fn udp(&self) -> Option<Segment<'_>> {
        self.segment(UDP, 8, 0)
    }

    /// The TCP segment in it.
    pub(crate) fn tcp(&self) -> Option<Segment<'_>> {
        let header = usize::from(self.payload.get(12)? >> 4) * 4;
        self.segment(TCP, header, *self.payload.get(13)?)
    }

    /// UDP or TCP.
    pub(crate) fn transport(&self) -> Option<Segment<'_>> {
        self.udp().or_else(|| self.tcp())
    }

    /// Key and inner packet of a GRE packet (RFC 2784, RFC 2890), in UDP or not (RFC 8086).
    pub(crate) fn gre(&self) -> Option<(u32, Self)> {
        let bytes = self.tunnelled()?;
        if pair(bytes, 0)? != 0x2000 || pair(bytes, 2)? != 0x0800 {
            return None;
        }
        let key = u32::from(pair(bytes, 4)?) << 16 | u32::from(pair(bytes, 6)?);
        Some((key, Self::parse(self.at, bytes.get(8..)?)?))
    }

    /// The GRE header and what follows, whatever is in it.
    pub(crate) fn tunnelled(&self) -> Option<&[u8]> {
        const GRE_IN_UDP: u16 = 4754;
        match self.protocol {
            GRE => Some(&self.payload),
            UDP if pair(&self.payload, 2)? == GRE_IN_UDP => self.payload.get(8..),
            _ => None,
        }
    }

    /// The mark in the DSCP bits.
    pub(crate) fn mark(&self) -> u8 {
        self.tos >> 2
    }

    pub(crate) fn is_fragment(&self) -> bool {
        self.more_fragments || self.fragment_offset > 0
    }

    fn segment(&self, protocol: u8, header: usize, tcp_flags: u8) -> Option<Segment<'_>> {
        if self.protocol != protocol || self.fragment_offset > 0 {
            return None;
        }
        Some(Segment {
            destination: SocketAddrV4::new(self.destination, pair(&self.payload, 2)?),
            tcp_flags,
            payload: self.payload.get(header..)?,
        })
    }
}

impl Segment<'_> {
    /// The RTP packet in it, if it looks like one of the phones' (version 2, G.711).
    pub(crate) fn rtp(&self) -> Option<Rtp> {
        let bytes = self.payload;
        if self.tcp_flags != 0 || bytes.len() < 12 || bytes[0] >> 6 != 2 || bytes[1] & 0x7f != 0 {
            return None;
        }
        Some(Rtp {
            sequence: pair(bytes, 2)?,
            ssrc: u32::from(pair(bytes, 8)?) << 16 | u32::from(pair(bytes, 10)?),
        })
    }

    /// A TCP connection is being opened.
    pub(crate) fn opens_connection(&self) -> bool {
        const SYN: u8 = 0x02;
        const ACK: u8 = 0x10;
        self.tcp_flags & (SYN | ACK) == SYN
    }

    /// The SIP start line that it begins with, if any.
    pub(crate) fn sip_start_line(&self) -> Option<String> {
        let end = self.payload.iter().position(|byte| *byte == b'\r')?;
        let line = std::str::from_utf8(&self.payload[..end]).ok()?;
        (line.starts_with("SIP/2.0 ") || line.ends_with(" SIP/2.0")).then(|| line.to_owned())
    }

    /// The value of a SIP header field, in its long form.
    pub(crate) fn sip_header(&self, name: &str) -> Option<String> {
        let text = String::from_utf8_lossy(self.payload);
        text.lines().find_map(|line| {
            let (field, value) = line.split_once(':')?;
            field
                .eq_ignore_ascii_case(name)
                .then(|| value.trim().to_owned())
        })
    }

    /// Where the session description in it wants the audio: its first address and its first audio port.
    pub(crate) fn audio_address(&self) -> Option<SocketAddrV4> {
        let text = String::from_utf8_lossy(self.payload);
        let mut lines = text.lines();
        let address = lines.find_map(|line| line.strip_prefix("c=IN IP4 "))?;
        let audio = lines.find_map(|line| line.strip_prefix("m=audio "))?;
        let port = audio.split(' ').next()?;
        Some(SocketAddrV4::new(
            address.trim().parse().ok()?,
            port.parse().ok()?,
        ))
    }
}

fn pair(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

fn address(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(Ipv4Addr::from(octets))
}
