//! The corpus: frames, each with what must become of it.

use wire::checksum;
use wire::ip::protocol;

use crate::topology::dual_stack::SERVICE6;
use crate::topology::two_edges::SERVICE;

const EDGE_MAC: [u8; 6] = [2, 0, 0, 0, 1, 2];
const OUR_MAC: [u8; 6] = [2, 0, 0, 0, 9, 9];
const PHONE: [u8; 4] = [203, 0, 113, 7];
const PHONE6: [u8; 16] = [
    0x20, 1, 0x0d, 0xb8, 0xbe, 0xef, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7,
];

/// What must become of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    /// Into the tunnel, in so many pieces.
    Tunnelled(usize),
    /// An ICMP error is sent to its source.
    Answered,
    Dropped,
    /// What the kernel thinks right, the same on both ways.
    TheSame,
}

use Expected::{Answered, Dropped, TheSame, Tunnelled};

/// One of them.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
    /// Stands in the packet.
    pub(super) tag: String,
    pub(super) expected: Expected,
}

/// All of them, the same each time.
pub(super) fn corpus() -> Vec<Frame> {
    let mut all = Corpus::default();
    plain(&mut all);
    headers_ipv4(&mut all);
    sources(&mut all);
    fragments(&mut all);
    sizes(&mut all);
    ipv6(&mut all);
    links(&mut all);
    all.0
}

/// A good packet with an option, and so for the TUN path.
pub(super) fn sentinel(text: &str) -> Vec<u8> {
    let mut packet = Ipv4::new(text);
    packet.options = vec![1; 4];
    ethernet(&packet.build(), 0x0800)
}

#[derive(Default)]
struct Corpus(Vec<Frame>);

impl Corpus {
    fn tag(&self) -> String {
        format!("packet-{:04}", self.0.len())
    }

    fn ipv4(&mut self, name: &str, expected: Expected, change: impl FnOnce(&mut Ipv4)) {
        let mut packet = Ipv4::new(&self.tag());
        change(&mut packet);
        self.frame(name, expected, ethernet(&packet.build(), 0x0800));
    }

    /// Changed when it is built and its checksum is right.
    fn damaged(&mut self, name: &str, expected: Expected, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = Ipv4::new(&self.tag()).build();
        change(&mut bytes);
        self.frame(name, expected, ethernet(&bytes, 0x0800));
    }

    fn ipv6(&mut self, name: &str, expected: Expected, change: impl FnOnce(&mut Ipv6)) {
        let mut packet = Ipv6::new(&self.tag());
        change(&mut packet);
        self.frame(name, expected, ethernet(&packet.build(), 0x86dd));
    }

    fn frame(&mut self, name: &str, expected: Expected, bytes: Vec<u8>) {
        let tag = self.tag();
        self.0.push(Frame {
            name: name.to_owned(),
            bytes,
            tag,
            expected,
        });
    }
}

/// A datagram to the service with a text in it.
struct Ipv4 {
    options: Vec<u8>,
    tos: u8,
    /// Flags and offset.
    fragment: u16,
    ttl: u8,
    protocol: u8,
    source: [u8; 4],
    payload: Vec<u8>,
}

impl Ipv4 {
    fn new(text: &str) -> Self {
        Self {
            options: Vec::new(),
            tos: 0xb8,
            fragment: 0,
            ttl: 64,
            protocol: protocol::UDP,
            source: PHONE,
            payload: udp(text.as_bytes()),
        }
    }

    fn build(&self) -> Vec<u8> {
        let header = 20 + self.options.len();
        let total = (header + self.payload.len()) as u16;
        let mut packet = vec![0x40 | (header / 4) as u8, self.tos];
        packet.extend(total.to_be_bytes());
        packet.extend([0x12, 0x34]);
        packet.extend(self.fragment.to_be_bytes());
        packet.extend([self.ttl, self.protocol, 0, 0]);
        packet.extend(self.source);
        packet.extend(SERVICE.octets());
        packet.extend(&self.options);
        right(&mut packet);
        packet.extend(&self.payload);
        packet
    }
}

struct Ipv6 {
    next: u8,
    hop_limit: u8,
    source: [u8; 16],
    payload: Vec<u8>,
    /// What the length field has less than there is.
    short: u16,
}

impl Ipv6 {
    fn new(text: &str) -> Self {
        Self {
            next: protocol::UDP,
            hop_limit: 64,
            source: PHONE6,
            payload: udp(text.as_bytes()),
            short: 0,
        }
    }

    /// Puts a header of this type before what there is.
    fn extend(&mut self, kind: u8, mut header: Vec<u8>) {
        header[0] = self.next;
        header.extend(&self.payload);
        (self.next, self.payload) = (kind, header);
    }

    fn build(&self) -> Vec<u8> {
        let length = (self.payload.len() as u16).wrapping_sub(self.short);
        let mut packet = vec![0x6b, 0x80, 0, 0];
        packet.extend(length.to_be_bytes());
        packet.extend([self.next, self.hop_limit]);
        packet.extend(self.source);
        packet.extend(SERVICE6.octets());
        packet.extend(&self.payload);
        packet
    }
}

/// Without a checksum.
fn udp(payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    let mut datagram = vec![0x9c, 0x40, 0x13, 0xc4];
    datagram.extend(length.to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    datagram
}

/// Makes the header's checksum right; the header is all that is there.
fn right(header: &mut [u8]) {
    header[10..12].fill(0);
    let sum = checksum::internet(header).to_be_bytes();
    header[10..12].copy_from_slice(&sum);
}

fn ethernet(packet: &[u8], kind: u16) -> Vec<u8> {
    tagged(packet, &[], kind)
}

fn tagged(packet: &[u8], tags: &[[u8; 4]], kind: u16) -> Vec<u8> {
    let mut frame = [EDGE_MAC, OUR_MAC].concat();
    frame.extend(tags.concat());
    frame.extend(kind.to_be_bytes());
    frame.extend(packet);
    frame
}

fn plain(all: &mut Corpus) {
    all.ipv4("UDP", Tunnelled(1), |_| {});
    all.ipv4("UDP with ECN", Tunnelled(1), |packet| packet.tos = 0x03);
    all.ipv4("TCP", Tunnelled(1), |packet| {
        packet.protocol = protocol::TCP
    });
    all.ipv4("a UDP checksum that is wrong", Tunnelled(1), |packet| {
        packet.payload[7] = 9
    });
    all.ipv4(
        "SCTP, which the concentrator refuses",
        Tunnelled(1),
        |packet| packet.protocol = 132,
    );
    for (name, number) in [
        ("IP in IP", 4),
        ("IPv6 in IP", 41),
        ("GRE", 47),
        ("L2TP", 115),
    ] {
        all.ipv4(&format!("{name} in it"), Dropped, |packet| {
            packet.protocol = number
        });
    }
}

fn headers_ipv4(all: &mut Corpus) {
    for words in 0..5 {
        all.damaged(&format!("a header of {words} words"), Dropped, |packet| {
            packet[0] = 0x40 | words;
            right(&mut packet[..20]);
        });
    }
    for words in 1..=10 {
        all.ipv4(
            &format!("{words} words of options"),
            Tunnelled(1),
            |packet| {
                packet.options = vec![1; words * 4];
            },
        );
    }
    all.ipv4("a source route", Dropped, |packet| {
        packet.options = vec![131, 7, 4, 10, 0, 9, 9, 0];
    });
    all.ipv4("an option longer than the header", TheSame, |packet| {
        packet.options = vec![7, 40, 4, 0];
    });
    all.damaged("a wrong checksum", Dropped, |packet| packet[10] ^= 0x40);
    all.damaged("version 5", Dropped, |packet| {
        packet[0] = 0x55;
        right(&mut packet[..20]);
    });
    all.damaged("a length beyond the frame", Dropped, |packet| {
        packet[2] = 0x40;
        right(&mut packet[..20]);
    });
    all.damaged("a length below the header", Dropped, |packet| {
        packet[2..4].copy_from_slice(&[0, 19]);
        right(&mut packet[..20]);
    });
    all.damaged("octets after the packet", Tunnelled(1), |packet| {
        packet.extend([0xee; 40])
    });
    for ttl in [0, 1] {
        all.ipv4(&format!("TTL {ttl}"), Answered, |packet| packet.ttl = ttl);
    }
    all.ipv4("TTL 2", Tunnelled(1), |packet| packet.ttl = 2);
    for length in [1, 10, 19, 20, 24] {
        all.damaged(&format!("cut after {length} octets"), Dropped, |packet| {
            packet.truncate(length)
        });
    }
}

fn sources(all: &mut Corpus) {
    for (source, expected) in [
        ([127, 0, 0, 1], Dropped),
        ([0, 0, 0, 0], Dropped),
        ([224, 0, 0, 1], Dropped),
        ([255, 255, 255, 255], Dropped),
        ([240, 0, 0, 1], TheSame),
        (SERVICE.octets(), TheSame),
        ([10, 0, 1, 2], TheSame),
        ([169, 254, 0, 1], Tunnelled(1)),
        ([192, 168, 1, 1], Tunnelled(1)),
    ] {
        all.ipv4(&format!("from {source:?}"), expected, |packet| {
            packet.source = source
        });
    }
}

fn fragments(all: &mut Corpus) {
    const MORE: u16 = 0x2000;
    for (name, fragment, expected) in [
        ("the first fragment", MORE, Tunnelled(1)),
        ("a later fragment", MORE | 185, Tunnelled(1)),
        ("the last fragment", 185, Tunnelled(1)),
        ("one that overlaps it", 184, Tunnelled(1)),
        ("one that ends at the last octet", 0x1ffc, Tunnelled(1)),
        ("one beyond the last octet", 0x1fff, Dropped),
        ("the reserved flag", 0x8000, Tunnelled(1)),
    ] {
        all.ipv4(name, expected, |packet| packet.fragment = fragment);
    }
    all.ipv4("a fragment of 8 octets", Tunnelled(1), |packet| {
        packet.fragment = MORE;
        packet.payload.truncate(8);
    });
    all.ipv4("a fragment of nothing", TheSame, |packet| {
        packet.fragment = MORE;
        packet.payload.clear();
    });
}

fn sizes(all: &mut Corpus) {
    const DF: u16 = 0x4000;
    for (length, flags, expected) in [
        (1_472, DF, Tunnelled(1)),
        (1_473, DF, Answered),
        (1_500, DF, Answered),
        (1_472, 0, Tunnelled(1)),
        (1_473, 0, Tunnelled(2)),
        (1_500, 0, Tunnelled(2)),
    ] {
        all.ipv4(
            &format!("{length} octets, flags {flags:#x}"),
            expected,
            |packet| {
                packet.payload.resize(length - 20, b'x');
                packet.payload[4..6].copy_from_slice(&((length - 20) as u16).to_be_bytes());
                packet.fragment = flags;
            },
        );
    }
}

fn ipv6(all: &mut Corpus) {
    const FRAGMENT: u8 = 44;
    const DESTINATION: u8 = 60;
    all.ipv6("UDP over IPv6", Tunnelled(1), |_| {});
    all.ipv6("TCP over IPv6", Tunnelled(1), |packet| {
        packet.next = protocol::TCP
    });
    for hop_limit in [0, 1] {
        all.ipv6(&format!("hop limit {hop_limit}"), Answered, |packet| {
            packet.hop_limit = hop_limit
        });
    }
    all.ipv6("a length below what there is", Tunnelled(1), |packet| {
        packet.short = 4
    });
    all.ipv6("a length beyond the frame", Dropped, |packet| {
        packet.short = 0xff00
    });
    let address = |first: u8, last: u8| {
        let mut address = [0; 16];
        (address[0], address[15]) = (first, last);
        address
    };
    all.ipv6("from nobody", Dropped, |packet| packet.source = [0; 16]);
    all.ipv6("from the loopback", Dropped, |packet| {
        packet.source = address(0, 1)
    });
    all.ipv6("from a group", Dropped, |packet| {
        packet.source = address(0xff, 1)
    });
    all.ipv6("from a mapped address", TheSame, |packet| {
        packet.source[..12].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
    });
    all.ipv6("no next header", Tunnelled(1), |packet| {
        packet.next = protocol::NO_NEXT_HEADER
    });
    all.ipv6("IPv4 in IPv6", Dropped, |packet| packet.next = 4);
    for (name, offset, expected) in [
        ("a whole packet as one fragment", 0, Tunnelled(1)),
        ("a first fragment of IPv6", 1, Tunnelled(1)),
        ("a later fragment of IPv6", 0x05a8, Tunnelled(1)),
        ("a fragment of IPv6 beyond the end", 0xfff8, Dropped),
    ] {
        all.ipv6(name, expected, |packet| {
            let mut header = vec![0; 8];
            header[2..4].copy_from_slice(&u16::to_be_bytes(offset));
            packet.extend(FRAGMENT, header);
        });
    }
    for count in [1, 7, 9] {
        let expected = if count == 9 { Dropped } else { Tunnelled(1) };
        all.ipv6(&format!("{count} headers of options"), expected, |packet| {
            for _ in 0..count {
                packet.extend(DESTINATION, vec![0, 0, 1, 4, 0, 0, 0, 0]);
            }
        });
    }
    all.ipv6("hop-by-hop options", TheSame, |packet| {
        packet.extend(0, vec![0, 0, 1, 4, 0, 0, 0, 0])
    });
    all.ipv6("a jumbogram, it says", TheSame, |packet| {
        packet.extend(0, vec![0, 0, 0xc2, 4, 0, 1, 0, 0]);
        packet.short = packet.payload.len() as u16;
    });
    all.ipv6("1,473 octets of IPv6", Answered, |packet| {
        packet.payload.resize(1_433, b'x')
    });
    all.ipv6("1,472 octets of IPv6", Tunnelled(1), |packet| {
        packet.payload.resize(1_432, b'x')
    });
}

fn links(all: &mut Corpus) {
    let packet = |all: &Corpus| Ipv4::new(&all.tag()).build();
    let tag = |kind: u16, id: u16| {
        let ([a, b], [c, d]) = (kind.to_be_bytes(), id.to_be_bytes());
        [a, b, c, d]
    };
    let (inner, outer) = (tag(0x8100, 100), tag(0x88a8, 7));
    for (name, tags) in [
        ("a VLAN that is not here", vec![inner]),
        ("a VLAN in a VLAN", vec![outer, inner]),
        ("three tags", vec![outer, inner, inner]),
    ] {
        let bytes = tagged(&packet(all), &tags, 0x0800);
        all.frame(name, Dropped, bytes);
    }
    let bytes = ethernet(&packet(all), 0x86dd);
    all.frame("IPv4 that is said to be IPv6", Dropped, bytes);
    let bytes = ethernet(&packet(all), 0x88cc);
    all.frame("no IP at all", Dropped, bytes);
    let mut bytes = ethernet(&packet(all), 0x0800);
    bytes[5] = 77;
    all.frame("Ethernet to somebody else", Dropped, bytes);
    all.frame("a frame of 14 octets", Dropped, ethernet(&[], 0x0800));
}
