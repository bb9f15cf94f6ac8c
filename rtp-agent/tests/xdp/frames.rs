//! Frames of all kinds: mostly RTP of a stream that has an entry, each with something that may be wrong.

use std::net::SocketAddr;

use proptest::prelude::*;
use proptest::sample::select;
use wire::ip::UdpHeaders;

use crate::network::{EDGE_MAC, STREAMS};

/// A frame before it is built, since RTP depends on what has come before it.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    to: [u8; 6],
    tags: Vec<(u16, u16)>,
    lie: u16,
    pub(crate) stream: usize,
    pub(crate) step: u16,
    pub(crate) tick: u32,
    wrong_ssrc: bool,
    first: [u8; 2],
    other_ports: Option<(u16, u16)>,
    payload: Vec<u8>,
    flaw: Flaw,
    padding: Vec<u8>,
    cut: Option<usize>,
}

/// What is wrong with the headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    Options,
    Fragment(u16),
    IpChecksum,
    NoChecksum,
    FullChecksum,
    WrongChecksum,
    Length(u16),
    UdpLength(u16),
    Protocol(u8),
    Version(u8),
    Ttl(u8),
    Tos(u8),
}

fn flaw() -> impl Strategy<Value = Flaw> {
    prop_oneof![
        30 => Just(Flaw::None),
        1 => Just(Flaw::Options),
        2 => select(vec![1u16, 0x2000, 0x1fff, 0x8000, 0x4000]).prop_map(Flaw::Fragment),
        1 => Just(Flaw::IpChecksum),
        3 => Just(Flaw::NoChecksum),
        2 => Just(Flaw::FullChecksum),
        1 => Just(Flaw::WrongChecksum),
        2 => any::<u16>().prop_map(Flaw::Length),
        1 => (0u16..60).prop_map(Flaw::Length),
        2 => any::<u16>().prop_map(Flaw::UdpLength),
        3 => select(vec![0u8, 1, 6, 43, 44, 50, 58, 60]).prop_map(Flaw::Protocol),
        1 => any::<u8>().prop_map(Flaw::Version),
        2 => any::<u8>().prop_map(Flaw::Ttl),
        2 => any::<u8>().prop_map(Flaw::Tos),
    ]
}

/// Mostly the usual.
fn seldom<T: Clone + std::fmt::Debug + 'static>(
    usual: T,
    strange: impl Strategy<Value = T> + 'static,
) -> impl Strategy<Value = T> {
    prop_oneof![20 => Just(usual), 1 => strange]
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        12 => prop::collection::vec(any::<u8>(), 0..300),
        1 => prop::collection::vec(any::<u8>(), 1_380..1_490),
    ]
}

/// The first two octets of the UDP payload: RTP of several kinds, RTCP, STUN, DTLS, anything.
fn first() -> impl Strategy<Value = [u8; 2]> {
    prop_oneof![
        30 => select(vec![[0x80u8, 0], [0x80, 0x80], [0x80, 8], [0x80, 111], [0xa0, 0], [0x80, 34]]),
        4 => (0x80u8..=0xbf, any::<u8>()).prop_map(Into::into),
        1 => (192u8..=223).prop_map(|kind| [0x81, kind]),
        1 => any::<[u8; 2]>(),
        1 => Just([0, 1]),
        1 => Just([22, 254]),
    ]
}

/// A draft of any kind.
pub(crate) fn any_draft() -> impl Strategy<Value = Draft> {
    let link = (
        seldom(EDGE_MAC, any::<[u8; 6]>()),
        prop_oneof![
            20 => Just(Vec::new()),
            1 => Just(vec![(0x8100u16, 100u16)]),
            1 => prop::collection::vec((select(vec![0x8100u16, 0x88a8]), any::<u16>()), 1..4),
        ],
        seldom(0u16, select(vec![0x0806u16, 0x0800, 0x86dd])),
    );
    let stream = (
        0..STREAMS.len(),
        prop_oneof![
            20 => Just(1u16),
            3 => 2u16..40,
            2 => (1u16..99).prop_map(u16::wrapping_neg),
            1 => Just(0u16),
            1 => select(vec![2_999u16, 3_000, 65_435, 65_436]),
            1 => any::<u16>(),
        ],
        prop_oneof![20 => Just(160u32), 2 => 0u32..100_000, 1 => any::<u32>()],
        seldom(false, Just(true)),
        seldom(None, any::<(u16, u16)>().prop_map(Some)),
    );
    let end = (
        prop::collection::vec(any::<u8>(), 0..30),
        prop_oneof![20 => Just(None), 1 => (14usize..120).prop_map(Some)],
    );
    (link, stream, first(), payload(), flaw(), end).prop_map(
        |(
            (to, tags, lie),
            (stream, step, tick, wrong_ssrc, other_ports),
            first,
            payload,
            flaw,
            end,
        )| {
            let (padding, cut) = end;
            Draft {
                to,
                tags,
                lie,
                stream,
                step,
                tick,
                wrong_ssrc,
                first,
                other_ports,
                payload,
                flaw,
                padding,
                cut,
            }
        },
    )
}

impl Draft {
    /// The frame, of 14 octets at least; `sequence` and `timestamp` are where its stream is.
    pub(crate) fn build(&self, ssrc: u32, sequence: u16, timestamp: u32) -> Vec<u8> {
        let (remote, local, ..) = STREAMS[self.stream];
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (mut remote, mut local) = (at(remote), at(local));
        if let Some((from, to)) = self.other_ports {
            remote.set_port(from);
            local.set_port(if to % 2 == 0 { local.port() } else { to });
        }
        let ssrc = if self.wrong_ssrc { !ssrc } else { ssrc };
        let rtp = [
            &self.first[..],
            &sequence.wrapping_add(self.step).to_be_bytes(),
            &timestamp.wrapping_add(self.tick).to_be_bytes(),
            &ssrc.to_be_bytes(),
            &self.payload,
        ]
        .concat();
        let headers = UdpHeaders::new(remote, local, &rtp).unwrap();
        let mut packet = [headers.bytes(), &rtp].concat();
        self.spoil(&mut packet, headers.bytes().len());
        let is_ipv4 = remote.is_ipv4();
        let ether_type: u16 = match (self.lie, is_ipv4) {
            (0, true) => 0x0800,
            (0, false) => 0x86dd,
            (lie, _) => lie,
        };
        let mut frame = [&self.to[..], &[2, 0, 0, 0, 9, 9]].concat();
        for (protocol, tag) in &self.tags {
            frame.extend(protocol.to_be_bytes());
            frame.extend(tag.to_be_bytes());
        }
        frame.extend(ether_type.to_be_bytes());
        frame.extend(packet);
        frame.extend(&self.padding);
        frame.truncate(self.cut.unwrap_or(frame.len()).max(14));
        frame
    }

    fn spoil(&self, packet: &mut Vec<u8>, headers: usize) {
        let is_ipv4 = headers == 28;
        let udp = headers - 8;
        match self.flaw {
            Flaw::Options if is_ipv4 => {
                packet[0] = 0x46;
                packet.splice(20..20, [1, 1, 1, 0]);
                let length = u16::from_be_bytes([packet[2], packet[3]]) + 4;
                packet[2..4].copy_from_slice(&length.to_be_bytes());
            }
            Flaw::Fragment(bits) if is_ipv4 => packet[6..8].copy_from_slice(&bits.to_be_bytes()),
            Flaw::NoChecksum => packet[udp + 6..udp + 8].fill(0),
            Flaw::FullChecksum => packet[udp + 6..udp + 8].fill(0xff),
            Flaw::WrongChecksum => packet[udp + 7] ^= 0x55,
            Flaw::Length(length) => {
                let at = if is_ipv4 { 2 } else { 4 };
                packet[at..at + 2].copy_from_slice(&length.to_be_bytes());
            }
            Flaw::UdpLength(length) => {
                packet[udp + 4..udp + 6].copy_from_slice(&length.to_be_bytes())
            }
            Flaw::Protocol(number) => packet[if is_ipv4 { 9 } else { 6 }] = number,
            Flaw::Version(octet) => packet[0] = octet,
            Flaw::Ttl(ttl) => packet[if is_ipv4 { 8 } else { 7 }] = ttl,
            Flaw::Tos(tos) if is_ipv4 => packet[1] = tos,
            Flaw::None | Flaw::Options | Flaw::Fragment(_) | Flaw::IpChecksum | Flaw::Tos(_) => {}
        }
        if is_ipv4 {
            packet[10..12].fill(0);
            let header = usize::from(packet[0] & 0x0f) * 4;
            let header = header.clamp(20, packet.len());
            let mut sum = wire::checksum::internet(&packet[..header]);
            if self.flaw == Flaw::IpChecksum {
                sum = sum.wrapping_add(1);
            }
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
    }
}
