//! RTP of this session that a fast path relays: when it may, and what is known of it here afterwards.
//!
//! It may where nothing is left to judge: both sides have latched, the sender's SSRC is that of its stream,
//! nobody is on hold, and what may pass is RTP. The fast path gets the stream's figures and continues them;
//! until they come back ([`Session::handle_carried`]) those here are old, and whoever judges a packet of the
//! same stream, or another's that would take its place, must have them back first.

use std::net::SocketAddr;
use std::time::Instant;

use wire::relay_control::{Payload, Side};

use super::{Session, State};
use crate::latch::passes;
use crate::peek::Peek;
use crate::reception::Progress;
use crate::session::Component;

/// What the RTP of one side is, and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The latched source.
    pub from: SocketAddr,
    /// The other side's.
    pub to: SocketAddr,
    /// How far the stream has come; its SSRC is the only one.
    pub progress: Progress,
}

/// What a fast path has relayed since it last told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried {
    /// Packets.
    pub packets: u64,
    /// Of their UDP payloads.
    pub bytes: u64,
    /// How far the stream has come.
    pub progress: Progress,
}

impl Session {
    /// The route of the RTP from this side, if it may be relayed without being judged here.
    pub fn route(&self, side: Side) -> Option<Route> {
        let (sender, receiver) = (self.party(side), self.party(side.other()));
        let is_open = matches!(self.state, State::Bound { .. })
            && !self.is_held(Side::A)
            && !self.is_held(Side::B);
        let payload = sender.gates.as_ref()?.rtp.payload;
        let progress = sender.reception.progress()?;
        let is_rtp = payload != Payload::Datagrams && sender.rtp.ssrc() == Some(progress.ssrc);
        let (from, to) = (sender.rtp.peer()?, receiver.rtp.peer()?);
        (is_open && is_rtp && is_routable(from) && is_routable(to)).then_some(Route {
            from,
            to,
            progress,
        })
    }

    /// The fast path has relayed this from this side.
    pub fn handle_carried(&mut self, side: Side, carried: &Carried) {
        if carried.packets == 0 {
            return;
        }
        let at = carried.progress.last;
        let sender = self.party_mut(side);
        sender.counters.rtp_in.packets += carried.packets;
        sender.counters.rtp_in.bytes += carried.bytes;
        sender.counters.rtp_by_xdp += carried.packets;
        sender.heard = sender.heard.max(Some(at));
        sender.rtp.handle_heard(at);
        sender.reception.go_on(&carried.progress);
        let receiver = self.party_mut(side.other());
        receiver.counters.rtp_out.packets += carried.packets;
        receiver.counters.rtp_out.bytes += carried.bytes;
    }

    /// Whether this packet on the RTP port of an offloaded side cannot be judged before the figures of its
    /// stream are here: RTP of the latched source, or of one that would take its place if that is silent.
    pub fn concerns_offloaded(
        &self,
        side: Side,
        from: SocketAddr,
        bytes: &[u8],
        now: Instant,
    ) -> bool {
        let party = self.party(side);
        let is_rtp = || matches!(party.peek(Component::Rtp, bytes), Some(Peek::Rtp(_)));
        if party.rtp.peer() == Some(from) {
            return is_rtp();
        }
        let gates = party.gates.as_ref();
        // While it was heard within that time as far as is known here, others are refused in any case.
        party.rtp.is_silent(now) && gates.is_some_and(|gates| passes(&gates.rtp, from))
    }
}

/// False for what needs an interface beside its address.
const fn is_routable(address: SocketAddr) -> bool {
    match address {
        SocketAddr::V4(_) => true,
        SocketAddr::V6(v6) => !v6.ip().is_unicast_link_local(),
    }
}
