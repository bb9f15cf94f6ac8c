//! The tables of `ingress/bpf/tables.h`, laid out as in C.
//!
//! Words that are compared with octets of packets are in the order in which those come.

use std::net::{IpAddr, Ipv6Addr};

use aya::Pod;
use wire::encapsulation::Encapsulation;

/// Concentrators that the program can choose among.
pub const MAX_CANDIDATES: usize = 16;
/// Outer sources that it can choose among.
pub const MAX_SOURCES: usize = 8;
/// Entries of [`Settings::logarithms`].
pub const LOGARITHMS: usize = 257;

/// What became of a packet. The program counts each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Tunnelled, out of the interface that it came in by.
    ForwardBack,
    /// Tunnelled, out of another interface.
    ForwardAcross,
    /// Dropped: the source is denied.
    Denied,
    /// Dropped: the source is over its limit.
    SourceLimit,
    /// Dropped: all together are over the limit.
    TotalLimit,
    /// Dropped: the packet was not what it had been; never seen.
    Broken,
    /// Left to the kernel, as all below: no IP, or more than two VLAN tags.
    NotIp,
    /// To another Ethernet address, or of a VLAN that this machine does not have.
    NotForUs,
    /// The headers contradict themselves or the length of the packet.
    Malformed,
    /// Not to a service address.
    NotServiceAddress,
    /// No settings yet.
    NotReady,
    /// A wrong IPv4 header checksum.
    Checksum,
    /// IPv4 options.
    Options,
    /// Neither TCP nor UDP, or IPv6 extension headers other than a fragment's.
    Protocol,
    /// A TTL or hop limit of 1 or 0.
    HopLimit,
    /// A source that no other host has.
    Source,
    /// Longer than the tunnel or the link to the next hop carries.
    TooBig,
    /// No route to the concentrator, or out of an interface that is not ours.
    NoRoute,
    /// The next hop's Ethernet address is not known.
    NoNeighbour,
    /// The driver has left no room in front of the packet.
    NoRoom,
    /// The outer header needs a UDP checksum over more octets than the program adds up.
    UdpChecksum,
}

impl Outcome {
    /// All of them, in the order of the enum and of the program.
    pub const ALL: [Self; 21] = [
        Self::ForwardBack,
        Self::ForwardAcross,
        Self::Denied,
        Self::SourceLimit,
        Self::TotalLimit,
        Self::Broken,
        Self::NotIp,
        Self::NotForUs,
        Self::Malformed,
        Self::NotServiceAddress,
        Self::NotReady,
        Self::Checksum,
        Self::Options,
        Self::Protocol,
        Self::HopLimit,
        Self::Source,
        Self::TooBig,
        Self::NoRoute,
        Self::NoNeighbour,
        Self::NoRoom,
        Self::UdpChecksum,
    ];

    /// `forward`, `drop` or `pass`, and why.
    pub const fn labels(self) -> (&'static str, &'static str) {
        match self {
            Self::ForwardBack => ("forward", "back"),
            Self::ForwardAcross => ("forward", "across"),
            Self::Denied => ("drop", "denied"),
            Self::SourceLimit => ("drop", "source_limit"),
            Self::TotalLimit => ("drop", "total_limit"),
            Self::Broken => ("drop", "broken"),
            Self::NotIp => ("pass", "not_ip"),
            Self::NotForUs => ("pass", "not_for_us"),
            Self::Malformed => ("pass", "malformed"),
            Self::NotServiceAddress => ("pass", "not_service_address"),
            Self::NotReady => ("pass", "not_ready"),
            Self::Checksum => ("pass", "checksum"),
            Self::Options => ("pass", "options"),
            Self::Protocol => ("pass", "protocol"),
            Self::HopLimit => ("pass", "hop_limit"),
            Self::Source => ("pass", "source"),
            Self::TooBig => ("pass", "too_big"),
            Self::NoRoute => ("pass", "no_route"),
            Self::NoNeighbour => ("pass", "no_neighbour"),
            Self::NoRoom => ("pass", "no_room"),
            Self::UdpChecksum => ("pass", "udp_checksum"),
        }
    }

    /// True when the packet has gone into the tunnel.
    pub const fn is_forwarded(self) -> bool {
        matches!(self, Self::ForwardBack | Self::ForwardAcross)
    }
}

/// Packets of an outcome, and their octets from the IP header on (0 where that was not read).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Octets.
    pub bytes: u64,
}

/// How fast packets may come: one in `interval_ns`, ahead of that by no more than `tolerance_ns`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// From one packet to the next, never 0.
    pub interval_ns: u64,
    /// For a burst.
    pub tolerance_ns: u64,
}

/// A concentrator that packets may go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The outer destination.
    pub address: IpAddr,
    /// Its share, never 0.
    pub weight: u32,
    /// Under which its packets are counted, below [`MAX_CANDIDATES`].
    pub place: u32,
}

/// All that the program is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The outer sources, one to [`MAX_SOURCES`] of one IP version; a packet's flow chooses.
    pub sources: Vec<IpAddr>,
    /// How packets are wrapped.
    pub encapsulation: Encapsulation,
    /// In the GRE header.
    pub tunnel_key: u32,
    /// The largest inner packet.
    pub mtu: u16,
    /// 0..=63, in the inner DSCP bits.
    pub mark: u8,
    /// 0..=63.
    pub outer_dscp: u8,
    /// The outer TTL or hop limit.
    pub outer_hop_limit: u8,
    /// Of SipHash.
    pub hash_key: [u8; 16],
    /// Of 1 + n/256 to the base of 2, times 2^30.
    pub logarithms: [u32; LOGARITHMS],
    /// To choose among, [`MAX_CANDIDATES`] at most. Without one all packets are left to the kernel.
    pub candidates: Vec<Candidate>,
    /// For each source.
    pub source_limit: Option<Rate>,
    /// For all together.
    pub total_limit: Option<Rate>,
    /// There are [`Rule`]s.
    pub has_rules: bool,
}

/// What is to become of the packets of some sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// No limit is for them.
    Allow,
    /// Dropped.
    Deny,
}

/// An IPv4 address as ::ffff:a.b.c.d.
pub(super) fn octets(address: IpAddr) -> [u8; 16] {
    let mapped: Ipv6Addr = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    mapped.octets()
}

/// `struct candidate`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct RawCandidate {
    address: [u8; 16],
    weight: u32,
    place: u32,
}

/// `struct settings`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct RawSettings {
    hash_key: [u64; 2],
    source_interval_ns: u64,
    source_tolerance_ns: u64,
    total_interval_ns: u64,
    total_tolerance_ns: u64,
    tunnel_key: [u8; 4],
    mtu: u32,
    count: u32,
    is_outer_ipv6: u8,
    outer_tos: u8,
    outer_hop_limit: u8,
    mark_tos: u8,
    candidates: [RawCandidate; MAX_CANDIDATES],
    logarithms: [u32; LOGARITHMS],
    has_rules: u32,
    zero: u32,
    is_gre_udp: u32,
    sources: [[u8; 16]; MAX_SOURCES],
    source_count: u32,
    outer_protocol: u32,
    generation: u32,
    unused: u32,
}

const _: () = assert!(std::mem::offset_of!(RawSettings, candidates) == 64);
const _: () = assert!(
    size_of::<RawSettings>()
        == 64 + MAX_CANDIDATES * 24 + LOGARITHMS * 4 + 12 + MAX_SOURCES * 16 + 16
);

impl RawSettings {
    /// What the program has found out with another `generation` holds no longer.
    pub(super) fn new(settings: &Settings, generation: u32) -> Self {
        let mut candidates = [RawCandidate::default(); MAX_CANDIDATES];
        let mut count = 0;
        for (raw, candidate) in candidates.iter_mut().zip(&settings.candidates) {
            *raw = RawCandidate {
                address: octets(candidate.address),
                weight: candidate.weight,
                place: candidate.place,
            };
            count += 1;
        }
        let [low, high] = [0, 8].map(|at| {
            let half = settings.hash_key.get(at..at + 8);
            let half = half.and_then(|half| half.first_chunk().copied());
            u64::from_le_bytes(half.unwrap_or_default())
        });
        let mut sources = [[0; 16]; MAX_SOURCES];
        let mut source_count = 0;
        for (raw, source) in sources.iter_mut().zip(&settings.sources) {
            *raw = octets(*source);
            source_count += 1;
        }
        let parts =
            |rate: Option<Rate>| rate.map_or((0, 0), |rate| (rate.interval_ns, rate.tolerance_ns));
        let (source_interval_ns, source_tolerance_ns) = parts(settings.source_limit);
        let (total_interval_ns, total_tolerance_ns) = parts(settings.total_limit);
        Self {
            hash_key: [low, high],
            source_interval_ns,
            source_tolerance_ns,
            total_interval_ns,
            total_tolerance_ns,
            tunnel_key: settings.tunnel_key.to_be_bytes(),
            mtu: settings.mtu.into(),
            count,
            is_outer_ipv6: settings.sources.iter().any(IpAddr::is_ipv6).into(),
            outer_tos: settings.outer_dscp << 2,
            outer_hop_limit: settings.outer_hop_limit,
            mark_tos: settings.mark << 2,
            candidates,
            logarithms: settings.logarithms,
            has_rules: settings.has_rules.into(),
            zero: 0,
            is_gre_udp: (settings.encapsulation == Encapsulation::GreUdp).into(),
            sources,
            source_count,
            outer_protocol: match settings.encapsulation {
                Encapsulation::Gre => wire::gre::IP_PROTOCOL,
                Encapsulation::GreUdp => wire::ip::protocol::UDP,
            }
            .into(),
            generation,
            unused: 0,
        }
    }
}

// SAFETY: plain integers without padding, laid out as in C.
unsafe impl Pod for Count {}
// SAFETY: the same.
unsafe impl Pod for RawSettings {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_have_the_order_and_the_names_of_the_program() {
        let source = include_str!("../../../ingress/bpf/tables.h");
        let names = crate::xdp::outcome_names(source);
        assert_eq!(names.len(), Outcome::ALL.len());
        for (place, (outcome, name)) in Outcome::ALL.into_iter().zip(names).enumerate() {
            let (verdict, reason) = outcome.labels();
            let label = format!("{verdict}_{reason}").to_uppercase();
            let label = label.replace("PASS_NOT_SERVICE_ADDRESS", "PASS_NOT_SERVICE");
            assert_eq!((outcome as usize, &*label), (place, name));
        }
    }
}
