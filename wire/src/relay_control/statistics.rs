//! What a session did, counted per side.

use std::net::SocketAddr;

use minicbor::{Decode, Encode};

use super::Side;

/// Packets and their UDP payload bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
pub struct Counted {
    /// Packets received from the peer and taken.
    #[n(0)]
    pub packets_in: u64,
    /// Their bytes.
    #[n(1)]
    pub bytes_in: u64,
    /// Packets sent to the peer.
    #[n(2)]
    pub packets_out: u64,
    /// Their bytes.
    #[n(3)]
    pub bytes_out: u64,
}

/// Packets refused, by reason; each packet counts once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
pub struct Rejected {
    /// The source is not one that the gate lets in.
    #[cbor(n(0), default)]
    pub gate: u64,
    /// The gate would let the source in, but the side has latched to another.
    #[cbor(n(1), default)]
    pub latched: u64,
    /// Neither RTP nor RTCP nor anything else that is relayed (RFC 7983).
    #[cbor(n(2), default)]
    pub malformed: u64,
    /// The other side's peer is not known, and there was no room or no time left to wait for it.
    #[cbor(n(3), default)]
    pub no_peer: u64,
    /// Over a rate limit.
    #[cbor(n(4), default)]
    pub limit: u64,
    /// The session is not bound, or is over.
    #[cbor(n(5), default)]
    pub unbound: u64,
    /// The kernel refused to send.
    #[cbor(n(6), default)]
    pub send_failed: u64,
    /// The latched source is silent, but this other one has another SSRC.
    #[cbor(n(7), default)]
    pub ssrc: u64,
    /// The gate would let the source in, but the time for learning one is over.
    #[cbor(n(8), default)]
    pub late: u64,
}

impl Rejected {
    /// All of them.
    pub const fn total(&self) -> u64 {
        self.gate
            .saturating_add(self.latched)
            .saturating_add(self.malformed)
            .saturating_add(self.no_peer)
            .saturating_add(self.limit)
            .saturating_add(self.unbound)
            .saturating_add(self.send_failed)
            .saturating_add(self.ssrc)
            .saturating_add(self.late)
    }
}

/// How well what one side has sent came here, as RFC 3611 section 4.7 puts it.
///
/// Seen from the relay: of the path between the sender and the relay, with what a receiver would
/// make of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
pub struct Quality {
    /// RTP packets that should have come.
    #[n(0)]
    pub expected: u64,
    /// The R factor of the E-model, 0..=100 (ITU-T G.107).
    #[n(1)]
    pub r_factor: u8,
    /// The mean opinion score that follows from it, 100..=450.
    #[n(2)]
    pub mos_x100: u16,
    /// Interarrival jitter in microseconds; 0 where the clock rate is not known.
    #[n(3)]
    pub jitter_us: u32,
    /// Packets lost within bursts, in 256ths.
    #[n(4)]
    pub burst_density: u8,
    /// Packets lost between bursts, in 256ths.
    #[n(5)]
    pub gap_density: u8,
    /// The mean length of a burst in milliseconds.
    #[n(6)]
    pub burst_ms: u16,
    /// The mean length of what is between them in milliseconds.
    #[n(7)]
    pub gap_ms: u16,
}

/// What one side did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct SideStatistics {
    /// RTP, and all else that came to the RTP port and is not RTCP.
    #[n(0)]
    pub rtp: Counted,
    /// RTCP, on either port.
    #[n(1)]
    pub rtcp: Counted,
    /// RTP packets missing by their sequence numbers (RFC 3550 appendix A.3); never below 0 here.
    #[cbor(n(2), default)]
    pub lost: u64,
    /// Interarrival jitter in timestamp units (RFC 3550 section 6.4.1).
    #[cbor(n(3), default)]
    pub jitter: u32,
    /// What was refused.
    #[cbor(n(4), default)]
    pub rejected: Rejected,
    /// Where the peer's RTP comes from.
    #[cbor(n(5), with = "super::address::socket", has_nil)]
    pub latched_rtp: Option<SocketAddr>,
    /// Where the peer's RTCP comes from, if it is not multiplexed.
    #[cbor(n(6), with = "super::address::socket", has_nil)]
    pub latched_rtcp: Option<SocketAddr>,
    /// How often the side latched anew after it had latched once.
    #[cbor(n(7), default)]
    pub relatched: u32,
    /// The call holds this side, so that silence is no timeout.
    #[cbor(n(8), default)]
    pub held: bool,
    /// Packets from this side that waited until the other side's peer was known.
    #[cbor(n(9), default)]
    pub waited: u64,
    /// How well it came; none where no RTP did.
    #[n(10)]
    pub quality: Option<Quality>,
}

/// What a session did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct SessionStatistics {
    /// From bind to now or to the end.
    #[n(0)]
    pub duration_ms: u64,
    /// The side of the caller.
    #[n(1)]
    pub a: SideStatistics,
    /// The side of the callee.
    #[n(2)]
    pub b: SideStatistics,
}

impl SessionStatistics {
    /// What this side did.
    pub const fn side(&self, side: Side) -> &SideStatistics {
        match side {
            Side::A => &self.a,
            Side::B => &self.b,
        }
    }
}
