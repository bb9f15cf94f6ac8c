//! The tables of `rtp-agent/bpf/tables.h`, laid out as in C.
//!
//! Words that are compared with octets of packets are in the order in which those come.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;

use aya::Pod;

use super::tables::octets;

/// What became of a packet. The program counts each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Relayed, out of the interface that it came in by.
    ForwardBack,
    /// Relayed, out of another interface.
    ForwardAcross,
    /// Dropped: too many in too short a time for one stream.
    Flood,
    /// Dropped: the packet was not what it had been; never seen.
    Broken,
    /// Left to the kernel, as all below: no IP, or more than two VLAN tags.
    NotIp,
    /// To another Ethernet address, or of a VLAN that this machine does not have.
    NotForUs,
    /// No UDP, or not to a media port.
    NotMedia,
    /// The headers contradict themselves or the length of the packet.
    Malformed,
    /// A fragment.
    Fragment,
    /// UDP behind IPv4 options or IPv6 extension headers.
    Options,
    /// No entry: nobody is latched, or somebody else; and RTCP ports.
    Unknown,
    /// A wrong IPv4 header checksum, or no UDP checksum where IPv6 wants one.
    Checksum,
    /// From a latched source, and no RTP: STUN, DTLS, anything.
    NotRtp,
    /// RTCP on the RTP port.
    Rtcp,
    /// Another SSRC than the latched one.
    Ssrc,
    /// A sequence number so far away that the sender may have begun anew.
    Sequence,
    /// Longer than the link to the next hop, or than the program takes.
    TooBig,
    /// No route to the other side, or out of an interface that is not ours.
    NoRoute,
    /// The next hop's Ethernet address is not known.
    NoNeighbour,
    /// The driver has left no room in front of the packet.
    NoRoom,
}

impl Outcome {
    /// All of them, in the order of the enum and of the program.
    pub const ALL: [Self; 20] = [
        Self::ForwardBack,
        Self::ForwardAcross,
        Self::Flood,
        Self::Broken,
        Self::NotIp,
        Self::NotForUs,
        Self::NotMedia,
        Self::Malformed,
        Self::Fragment,
        Self::Options,
        Self::Unknown,
        Self::Checksum,
        Self::NotRtp,
        Self::Rtcp,
        Self::Ssrc,
        Self::Sequence,
        Self::TooBig,
        Self::NoRoute,
        Self::NoNeighbour,
        Self::NoRoom,
    ];

    /// `forward`, `drop` or `pass`, and why.
    pub const fn labels(self) -> (&'static str, &'static str) {
        match self {
            Self::ForwardBack => ("forward", "back"),
            Self::ForwardAcross => ("forward", "across"),
            Self::Flood => ("drop", "flood"),
            Self::Broken => ("drop", "broken"),
            Self::NotIp => ("pass", "not_ip"),
            Self::NotForUs => ("pass", "not_for_us"),
            Self::NotMedia => ("pass", "not_media"),
            Self::Malformed => ("pass", "malformed"),
            Self::Fragment => ("pass", "fragment"),
            Self::Options => ("pass", "options"),
            Self::Unknown => ("pass", "unknown"),
            Self::Checksum => ("pass", "checksum"),
            Self::NotRtp => ("pass", "not_rtp"),
            Self::Rtcp => ("pass", "rtcp"),
            Self::Ssrc => ("pass", "ssrc"),
            Self::Sequence => ("pass", "sequence"),
            Self::TooBig => ("pass", "too_big"),
            Self::NoRoute => ("pass", "no_route"),
            Self::NoNeighbour => ("pass", "no_neighbour"),
            Self::NoRoom => ("pass", "no_room"),
        }
    }

    /// True when the packet was relayed.
    pub const fn is_forwarded(self) -> bool {
        matches!(self, Self::ForwardBack | Self::ForwardAcross)
    }
}

/// From whom to which port of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// Our media address and RTP port.
    pub local: SocketAddr,
    /// The latched source.
    pub remote: SocketAddr,
}

/// What becomes of the RTP that fits a [`Key`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Our address and port towards the other side.
    pub source: SocketAddr,
    /// The other side, of the same IP version.
    pub destination: SocketAddr,
    /// The only SSRC.
    pub ssrc: u32,
    /// TTL or hop limit.
    pub hop_limit: u8,
}

/// What is known of a stream: `struct stream`, which the program continues. The names are those of
/// RFC 3550 appendix A; bursts as the relay counts them.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stream {
    /// Relayed since the entry was made.
    pub packets: u64,
    /// Of their UDP payloads.
    pub bytes: u64,
    /// When the last packet came, by CLOCK_MONOTONIC.
    pub last_ns: u64,
    /// The program's: which 2^27 ns it counts in.
    pub window: u64,
    /// Packets received of the stream.
    pub received: u64,
    /// Received since the last loss.
    pub burst_since_loss: u64,
    /// Lost since the last gap.
    pub burst_lost: u64,
    /// Received in gaps.
    pub burst_gap_received: u64,
    /// Lost alone.
    pub burst_alone: u64,
    /// Bursts.
    pub burst_count: u64,
    /// Received in bursts.
    pub burst_received: u64,
    /// Lost.
    pub burst_losses: u64,
    /// Runs of losses.
    pub burst_runs: u64,
    /// The program's: packets in these.
    pub window_count: u32,
    /// Times that the sequence number has wrapped.
    pub cycles: u32,
    /// RTP timestamp of the last packet.
    pub last_timestamp: u32,
    /// Scaled by 16, in timestamp units.
    pub jitter_x16: u32,
    /// 0: not known.
    pub clock_hz: u32,
    /// The highest sequence number.
    pub highest: u16,
    /// Of the last packet.
    pub payload_type: u8,
    /// 0.
    pub unused: u8,
}

/// `struct key`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct RawKey {
    local: [u8; 16],
    remote: [u8; 16],
    local_port: [u8; 2],
    remote_port: [u8; 2],
}

/// `struct entry`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RawEntry {
    source: [u8; 16],
    destination: [u8; 16],
    source_port: [u8; 2],
    destination_port: [u8; 2],
    checksum_delta: [u8; 2],
    is_ipv6: u8,
    hop_limit: u8,
    ssrc: [u8; 4],
    stream: u32,
    number: u32,
}

const _: () = assert!(size_of::<RawKey>() == 36 && size_of::<RawEntry>() == 52);
const _: () = assert!(size_of::<Stream>() == 13 * 8 + 6 * 4);

impl From<&Key> for RawKey {
    fn from(key: &Key) -> Self {
        Self {
            local: octets(key.local.ip()),
            remote: octets(key.remote.ip()),
            local_port: key.local.port().to_be_bytes(),
            remote_port: key.remote.port().to_be_bytes(),
        }
    }
}

impl RawEntry {
    /// Whose figures are at this place of the streams. What the program has found out for an entry of another
    /// number is not for this one.
    pub(super) fn new(key: &Key, entry: &Entry, stream: u32, number: NonZeroU32) -> Self {
        Self {
            source: octets(entry.source.ip()),
            destination: octets(entry.destination.ip()),
            source_port: entry.source.port().to_be_bytes(),
            destination_port: entry.destination.port().to_be_bytes(),
            checksum_delta: checksum_delta(key, entry).to_be_bytes(),
            is_ipv6: entry.destination.is_ipv6().into(),
            hop_limit: entry.hop_limit,
            ssrc: entry.ssrc.to_be_bytes(),
            stream,
            number: number.get(),
        }
    }
}

/// What is to be added to the one's complement of a UDP checksum (RFC 1624 section 3). Length and protocol
/// are the same in the pseudo-headers of IPv4 and IPv6.
fn checksum_delta(key: &Key, entry: &Entry) -> u16 {
    let (before, after) = ([key.remote, key.local], [entry.source, entry.destination]);
    let mut sum: u32 = after.into_iter().map(words).sum();
    // The one's complement of each word that goes.
    for address in before {
        let count = if address.is_ipv4() { 3 } else { 9 };
        sum += count * 0xffff - words(address);
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(u16::MAX)
}

/// The sum of the 16-bit words of address and port.
fn words(address: SocketAddr) -> u32 {
    let sum = |octets: &[u8]| -> u32 {
        let pairs = octets.as_chunks::<2>().0.iter();
        pairs.map(|pair| u32::from(u16::from_be_bytes(*pair))).sum()
    };
    let ip = match address.ip() {
        IpAddr::V4(v4) => sum(&v4.octets()),
        IpAddr::V6(v6) => sum(&v6.octets()),
    };
    ip + u32::from(address.port())
}

// SAFETY: plain integers without padding, laid out as in C.
unsafe impl Pod for Stream {}
// SAFETY: the same.
unsafe impl Pod for RawKey {}
// SAFETY: the same.
unsafe impl Pod for RawEntry {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_have_the_order_and_the_names_of_the_program() {
        let source = include_str!("../../../rtp-agent/bpf/tables.h");
        let names = crate::xdp::outcome_names(source);
        assert_eq!(names.len(), Outcome::ALL.len());
        for (place, (outcome, name)) in Outcome::ALL.into_iter().zip(names).enumerate() {
            let (verdict, reason) = outcome.labels();
            let label = format!("{verdict}_{reason}").to_uppercase();
            assert_eq!((outcome as usize, &*label), (place, name));
        }
    }

    #[test]
    fn a_delta_makes_the_checksum_of_the_new_headers() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        for (remote, local, source, destination) in [
            (
                "192.0.2.10:4000",
                "10.0.1.2:30000",
                "10.0.1.2:30002",
                "203.0.113.5:65535",
            ),
            (
                "[2001:db8::1]:4000",
                "[fd00::2]:30000",
                "10.0.1.2:30002",
                "203.0.113.5:1",
            ),
            (
                "192.0.2.10:4000",
                "10.0.1.2:30000",
                "[fd00::2]:30002",
                "[ffff:ffff::ffff]:65535",
            ),
        ] {
            let key = Key {
                local: at(local),
                remote: at(remote),
            };
            let entry = Entry {
                source: at(source),
                destination: at(destination),
                ssrc: 0,
                hop_limit: 64,
            };
            let payload = [0x80, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
            let sum = |from, to: SocketAddr| {
                let mut udp = [0; 8];
                udp[..2].copy_from_slice(&SocketAddr::port(&from).to_be_bytes());
                udp[2..4].copy_from_slice(&to.port().to_be_bytes());
                udp[5] = 8 + payload.len() as u8;
                wire::checksum::udp_in_parts(from.ip(), to.ip(), udp, &payload)
            };
            let before = sum(key.remote, key.local);
            let sum_after = u32::from(!before) + u32::from(checksum_delta(&key, &entry));
            let folded = (sum_after & 0xffff) + (sum_after >> 16);
            let expected = sum(entry.source, entry.destination);
            assert_eq!(!(folded as u16), expected, "{source}");
        }
    }
}
