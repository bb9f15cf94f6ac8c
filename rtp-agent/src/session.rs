//! One media stream between two parties: latches, held packets, counters and deadlines.
//!
//! A session has two sides, A towards the caller and B towards the callee, and each side has two
//! ports, RTP and RTCP. What comes in on a port of one side goes out of the same port of the other
//! side, to the source that is latched there; so nothing is ever sent to an address that has not
//! sent first, unless it is another relay's that signalling names. Its life:
//!
//! * *lease*: the ports are open, no call uses them. What arrives is held.
//! * *bound*: signalling has set the gates. Sources latch ([`crate::latch`]), packets pass.
//! * *lingering*: the call is over; packets in flight still pass until the linger time ends.
//!
//! A bound session ends by itself when it is silent for too long, and what is too long depends on the
//! kind of silence: nothing either way (idle), a side that has never sent (half-open), a side that has
//! stopped while the other goes on (one-way), a call on hold (held), which signalling tells by the gate
//! and which is none of the others, as nobody is expected to send. [`crate::relay::Relay`] owns the sessions, calls
//! `handle_*` and carries out the [`Output`]s at once.
//!
//! What is neither RTP nor RTCP is refused, unless the gate says that SDP has declared it: DTLS beside
//! SRTP, or datagrams of any kind for T.38. Such a datagram passes the same source checks.
//!
//! RTCP is believed where it comes from the address of the RTP and, for its first packet, has the SSRC
//! of that RTP: who shares a NAT's address with the phone cannot speak for it.
//!
//! Known weak spots: RTCP counts as media, so that a phone which suppresses silence is not taken for
//! one that has gone, and a phone whose audio has failed lives as long as its RTCP; before the first
//! packet of a phone another one at the same address may be taken for it; what comes before the Bind is held only if it is RTP or RTCP.
//!
//! Standards: RFC 3550 section 11 (port pairs), RFC 4961 (symmetric RTP and RTCP), RFC 5761 section 4
//! (RTCP on the RTP port).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use wire::relay_control::{Gate, Side, Silence};

use crate::hold::{HeldPacket, Hold, HoldBudget};
use crate::latch::{Admission, Latch, Refusal, passes};
use crate::peek::{Peek, peek, peek_as};
use crate::reception::Reception;

pub mod offload;
mod replica;

/// Which of a side's two ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Component {
    /// The even port.
    Rtp,
    /// The odd port.
    Rtcp,
}

/// How long a session may be without something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Without media either way.
    pub idle: Duration,
    /// Bound, and one side has not sent yet; a side may be learnt for so long.
    pub half_open: Duration,
    /// One side has stopped and the other goes on; `None`: for as long as that goes on.
    pub one_way: Option<Duration>,
    /// On hold, without a packet either way.
    pub held: Duration,
    /// After a change by signalling, a new SSRC may take over for so long.
    pub learning: Duration,
    /// Unbound, and the concentrator it was leased to is not connected.
    pub lease: Duration,
    /// After the release.
    pub linger: Duration,
}

/// A UDP datagram that came in on a port of the session.
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    /// The side of that port.
    pub side: Side,
    /// Which port of the side.
    pub component: Component,
    /// Where it came from.
    pub from: SocketAddr,
    /// The UDP payload.
    pub bytes: &'a [u8],
}

/// What the caller of `handle_*` must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send a packet that was held.
    Transmit {
        /// Out of a port of this side,
        side: Side,
        /// this one.
        component: Component,
        /// The latched source.
        to: SocketAddr,
        /// The UDP payload.
        bytes: Box<[u8]>,
    },
    /// The first RTP packet of this side was accepted.
    MediaStarted {
        /// The side it came in on.
        side: Side,
    },
}

/// What all sessions share while one of them works.
#[derive(Debug)]
pub struct Context<'a> {
    /// The bound on held packets.
    pub hold: &'a mut HoldBudget,
    /// Where outputs go, in order.
    pub out: &'a mut Vec<Output>,
}

/// Why a session ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// It was never bound and its concentrator stayed away.
    Lease,
    /// One side never sent.
    HalfOpen,
    /// No media either way.
    Idle,
    /// One side stopped.
    OneWay,
    /// It was on hold and nothing came.
    Held,
    /// It was released and has lingered.
    Linger,
}

impl Expiry {
    /// The kind of silence, where it was that.
    pub const fn silence(self) -> Option<Silence> {
        match self {
            Self::HalfOpen => Some(Silence::HalfOpen),
            Self::Idle => Some(Silence::Idle),
            Self::OneWay => Some(Silence::OneWay),
            Self::Held => Some(Silence::Held),
            Self::Lease | Self::Linger => None,
        }
    }
}

/// What a side has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// RTP accepted from this side, and other datagrams that signalling has declared.
    pub rtp_in: Traffic,
    /// RTP of that which the fast path has relayed, since this agent has the session.
    pub rtp_by_xdp: u64,
    /// RTCP accepted from this side.
    pub rtcp_in: Traffic,
    /// The same, sent to this side.
    pub rtp_out: Traffic,
    /// RTCP sent to this side.
    pub rtcp_out: Traffic,
    /// Packets from this side that had to wait.
    pub held: u64,
    /// Packets from this side that found the hold full, or waited too long.
    pub hold_overflow: u64,
    /// Times another source took over.
    pub moved: u64,
    /// Refused: not let in by the gate.
    pub rejected_gate: u64,
    /// Refused: another source is latched and sends.
    pub rejected_stranger: u64,
    /// Refused: another source, another SSRC; or RTCP whose SSRC is not that of the RTP.
    pub rejected_ssrc: u64,
    /// Refused: the time to learn a source was over.
    pub rejected_late: u64,
    /// Refused: neither RTP nor RTCP nor declared, or RTP on the RTCP port.
    pub rejected_not_rtp: u64,
}

/// Packets and the bytes of their UDP payloads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// How many.
    pub packets: u64,
    /// How long together.
    pub bytes: u64,
}

impl Traffic {
    fn count(&mut self, bytes: usize) {
        self.packets += 1;
        self.bytes += bytes as u64;
    }
}

/// One media stream between two parties.
#[derive(Debug)]
pub struct Session {
    state: State,
    limits: Limits,
    a: Party,
    b: Party,
    /// Since [`Session::take_changed`].
    changed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// `expires_at` is set while the concentrator is away.
    Lease {
        expires_at: Option<Instant>,
    },
    /// `since`: when signalling last changed something.
    Bound {
        since: Instant,
    },
    Lingering {
        until: Instant,
    },
}

/// One side: what signalling expects there and what has been learnt.
#[derive(Debug, Default)]
struct Party {
    gates: Option<Gates>,
    rtp: Latch,
    rtcp: Latch,
    reception: Reception,
    counters: Counters,
    /// Packets from this side, waiting.
    hold: Hold,
    started: bool,
    /// When the last packet was accepted.
    heard: Option<Instant>,
}

#[derive(Debug)]
struct Gates {
    rtp: Gate,
    rtcp: Gate,
}

impl Session {
    /// A lease whose concentrator is connected.
    pub fn new(limits: Limits) -> Self {
        Self {
            state: State::Lease { expires_at: None },
            limits,
            a: Party::default(),
            b: Party::default(),
            changed: true,
        }
    }

    /// Judges a packet. `Some`: send it now out of the same component of the other side, to this
    /// address. `None`: it was refused and counted, or is held.
    pub fn handle_packet(
        &mut self,
        packet: Packet<'_>,
        now: Instant,
        context: &mut Context<'_>,
    ) -> Option<SocketAddr> {
        let peeked = self.party(packet.side).peek(packet.component, packet.bytes);
        let peeked = match (peeked, packet.component) {
            (Some(Peek::Rtp(_)), Component::Rtcp) | (None, _) => {
                self.party_mut(packet.side).counters.rejected_not_rtp += 1;
                return None;
            }
            (Some(peeked), _) => peeked,
        };
        if matches!(self.state, State::Lease { .. }) {
            self.party_mut(packet.side).hold(packet, now, context);
            return None;
        }
        self.admit(packet, peeked, now, context)?;
        let receiver = self.party_mut(packet.side.other());
        if let Some(to) = receiver.latch(packet.component).peer() {
            receiver.count_out(peeked, packet.bytes.len());
            return Some(to);
        }
        self.party_mut(packet.side).hold(packet, now, context);
        None
    }

    /// Signalling has given the session to a call.
    pub fn handle_bind(&mut self, a: Gate, b: Gate, now: Instant, context: &mut Context<'_>) {
        let was_lease = matches!(self.state, State::Lease { .. });
        self.changed = true;
        self.state = State::Bound { since: now };
        self.a.set_gate(a, now, &self.limits);
        self.b.set_gate(b, now, &self.limits);
        if was_lease {
            self.replay(now, context);
        }
    }

    /// Signalling expects somebody else on this side, or the same party in a new dialogue state.
    pub fn handle_update(&mut self, side: Side, gate: Gate, now: Instant) {
        self.changed = true;
        let limits = self.limits;
        self.party_mut(side).set_gate(gate, now, &limits);
        if let State::Bound { since } = &mut self.state {
            *since = now;
        }
    }

    /// The call is over. A lease ends at once; a bound session lingers.
    pub fn handle_release(&mut self, now: Instant) {
        self.changed = true;
        match self.state {
            State::Lease { .. } => self.state = State::Lingering { until: now },
            State::Bound { .. } => {
                self.state = State::Lingering {
                    until: now + self.limits.linger,
                }
            }
            State::Lingering { .. } => {}
        }
    }

    /// The concentrator it was leased to has gone; bound sessions do not mind.
    pub fn handle_owner_lost(&mut self, now: Instant) {
        if let State::Lease { expires_at } = &mut self.state {
            *expires_at = Some(now + self.limits.lease);
        }
    }

    /// The concentrator is back.
    pub fn handle_owner_back(&mut self) {
        if let State::Lease { expires_at } = &mut self.state {
            *expires_at = None;
        }
    }

    /// Drops what was held too long. `Some`: the session is over; close its ports.
    pub fn handle_timeout(&mut self, now: Instant, context: &mut Context<'_>) -> Option<Expiry> {
        for party in [&mut self.a, &mut self.b] {
            party.counters.hold_overflow += party.hold.expire(now, context.hold);
        }
        self.deadline()
            .filter(|&(at, _)| at <= now)
            .map(|(_, expiry)| expiry)
    }

    /// The session will be dropped: gives back its share of the hold budget.
    pub fn handle_close(&mut self, hold: &mut HoldBudget) {
        for party in [&mut self.a, &mut self.b] {
            party.counters.hold_overflow += party.hold.take_all(hold).len() as u64;
        }
    }

    /// When `handle_timeout` must be called; it may turn out later than this by then.
    pub fn poll_timeout(&self) -> Option<Instant> {
        [
            self.deadline().map(|(at, _)| at),
            self.a.hold.poll_timeout(),
            self.b.hold.poll_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// True before the bind.
    pub const fn is_lease(&self) -> bool {
        matches!(self.state, State::Lease { .. })
    }

    /// True after the release.
    pub const fn is_lingering(&self) -> bool {
        matches!(self.state, State::Lingering { .. })
    }

    /// The source latched on this port.
    pub fn latched(&self, side: Side, component: Component) -> Option<SocketAddr> {
        self.party(side).latch(component).peer()
    }

    /// What this side has counted.
    pub fn counters(&self, side: Side) -> &Counters {
        &self.party(side).counters
    }

    /// Losses and jitter of what this side sends.
    pub fn reception(&self, side: Side) -> &Reception {
        &self.party(side).reception
    }

    fn deadline(&self) -> Option<(Instant, Expiry)> {
        match self.state {
            State::Lease { expires_at } => expires_at.map(|at| (at, Expiry::Lease)),
            State::Lingering { until } => Some((until, Expiry::Linger)),
            State::Bound { since } => Some(self.silence(since)),
        }
    }

    /// When a bound session has been silent for too long if it stays so; a change by signalling
    /// breaks a silence as a packet does.
    fn silence(&self, since: Instant) -> (Instant, Expiry) {
        let [a, b] = [&self.a, &self.b].map(|party| party.heard.map_or(since, |at| at.max(since)));
        if self.is_held(Side::A) || self.is_held(Side::B) {
            return (a.max(b) + self.limits.held, Expiry::Held);
        }
        if self.a.rtp.peer().is_none() || self.b.rtp.peer().is_none() {
            return (since + self.limits.half_open, Expiry::HalfOpen);
        }
        let idle = (a.max(b) + self.limits.idle, Expiry::Idle);
        match self.limits.one_way.map(|limit| a.min(b) + limit) {
            Some(at) if at < idle.0 => (at, Expiry::OneWay),
            Some(_) | None => idle,
        }
    }

    /// True where signalling has said that this side sends nothing.
    pub fn is_held(&self, side: Side) -> bool {
        let gates = self.party(side).gates.as_ref();
        gates.is_some_and(|gates| gates.rtp.held)
    }

    /// Accepts and counts a packet, or refuses and counts it. A new source frees what waits for it.
    fn admit(
        &mut self,
        packet: Packet<'_>,
        peeked: Peek,
        now: Instant,
        context: &mut Context<'_>,
    ) -> Option<()> {
        let window = self.limits.learning;
        let party = self.party_mut(packet.side);
        match party.judge(packet.component, packet.from, peeked, now, window) {
            Ok(admission) => {
                party.count_in(peeked, packet.bytes.len(), now);
                party.heard = Some(now);
                let fresh = match admission {
                    Admission::Known => false,
                    Admission::Latched => true,
                    Admission::Moved => {
                        party.counters.moved += 1;
                        true
                    }
                };
                if packet.component == Component::Rtp && !party.started {
                    party.started = true;
                    context.out.push(Output::MediaStarted { side: packet.side });
                }
                self.changed |= fresh;
                if fresh {
                    self.flush_to(packet.side, packet.component, now, context);
                }
                Some(())
            }
            Err(refusal) => {
                party.counters.count_refusal(refusal);
                None
            }
        }
    }

    /// Sends what the other side has sent for this newly latched source.
    fn flush_to(
        &mut self,
        side: Side,
        component: Component,
        now: Instant,
        context: &mut Context<'_>,
    ) {
        let Some(to) = self.party(side).latch(component).peer() else {
            return;
        };
        let sender = self.party_mut(side.other());
        sender.counters.hold_overflow += sender.hold.expire(now, context.hold);
        let waiting = sender.hold.take(component, context.hold);
        for held in waiting {
            let peeked = self.party(side.other()).peek(component, &held.bytes);
            if let Some(peeked) = peeked {
                self.party_mut(side).count_out(peeked, held.bytes.len());
            }
            context.out.push(Output::Transmit {
                side,
                component,
                to,
                bytes: held.bytes,
            });
        }
    }

    /// Judges what came before the bind as if it came now, in its order.
    fn replay(&mut self, now: Instant, context: &mut Context<'_>) {
        let mut waiting: Vec<(Side, HeldPacket)> = Vec::new();
        for side in [Side::A, Side::B] {
            let party = self.party_mut(side);
            party.counters.hold_overflow += party.hold.expire(now, context.hold);
            let held = party.hold.take_all(context.hold);
            party.counters.held -= held.len() as u64;
            waiting.extend(held.into_iter().map(|held| (side, held)));
        }
        waiting.sort_by_key(|(_, held)| held.arrived);
        for (side, held) in waiting {
            let packet = Packet {
                side,
                component: held.component,
                from: held.from,
                bytes: &held.bytes,
            };
            if let Some(to) = self.handle_packet(packet, held.arrived, context) {
                context.out.push(Output::Transmit {
                    side: side.other(),
                    component: held.component,
                    to,
                    bytes: held.bytes,
                });
            }
        }
    }

    const fn party(&self, side: Side) -> &Party {
        match side {
            Side::A => &self.a,
            Side::B => &self.b,
        }
    }

    const fn party_mut(&mut self, side: Side) -> &mut Party {
        match side {
            Side::A => &mut self.a,
            Side::B => &mut self.b,
        }
    }
}

impl Party {
    fn set_gate(&mut self, gate: Gate, now: Instant, limits: &Limits) {
        let gates = Gates {
            // RFC 3550 section 11: RTCP comes from the next higher port.
            rtcp: Gate {
                port: gate.port.map(|port| port.saturating_add(1)),
                ..gate.clone()
            },
            rtp: gate,
        };
        for (latch, gate) in [(&mut self.rtp, &gates.rtp), (&mut self.rtcp, &gates.rtcp)] {
            latch.handle_gate(gate, now, limits.half_open, limits.learning);
        }
        self.gates = Some(gates);
    }

    /// What a packet on a port of this side is; `None` where nothing of the kind may pass.
    fn peek(&self, component: Component, bytes: &[u8]) -> Option<Peek> {
        match (component, &self.gates) {
            (Component::Rtp, Some(gates)) => peek_as(gates.rtp.payload, bytes),
            (Component::Rtp, None) | (Component::Rtcp, _) => peek(bytes),
        }
    }

    fn judge(
        &mut self,
        component: Component,
        from: SocketAddr,
        peeked: Peek,
        now: Instant,
        window: Duration,
    ) -> Result<Admission, Refusal> {
        let gates = self.gates.as_ref().ok_or(Refusal::Gate)?;
        match (component, peeked) {
            (Component::Rtp, Peek::Rtp(fields)) => {
                let admission = self.rtp.admit(&gates.rtp, from, fields.ssrc, now)?;
                // RTP is the better witness: RTCP from another host was not from this party.
                if self.rtcp.peer().is_some_and(|peer| peer.ip() != from.ip()) {
                    self.rtcp.forget(now + window);
                }
                Ok(admission)
            }
            (Component::Rtp, Peek::Datagram) => self.rtp.admit(&gates.rtp, from, None, now),
            (Component::Rtp, Peek::Rtcp { .. }) => self
                .rtp
                .admit_companion(&gates.rtp, from, now)
                .map(|()| Admission::Known),
            (Component::Rtcp, peeked) => {
                if !passes(&gates.rtcp, from) {
                    return Err(Refusal::Gate);
                }
                if self.rtp.peer().is_some_and(|peer| peer.ip() != from.ip()) {
                    return Err(Refusal::Stranger);
                }
                // A participant has one SSRC in both (RFC 3550 section 6.4.1).
                let known = self.rtcp.peer() == Some(from);
                let (media, control) = (self.rtp.ssrc(), peeked.ssrc());
                if !known && media.is_some() && media != control {
                    return Err(Refusal::Ssrc);
                }
                self.rtcp.admit(&gates.rtcp, from, peeked.ssrc(), now)
            }
        }
    }

    fn hold(&mut self, packet: Packet<'_>, now: Instant, context: &mut Context<'_>) {
        self.counters.held += 1;
        let held = HeldPacket {
            component: packet.component,
            from: packet.from,
            arrived: now,
            bytes: packet.bytes.into(),
        };
        self.counters.hold_overflow += self.hold.push(held, context.hold);
    }

    fn count_in(&mut self, peeked: Peek, bytes: usize, now: Instant) {
        match peeked {
            Peek::Rtp(fields) => {
                self.counters.rtp_in.count(bytes);
                self.reception.record(fields, now);
            }
            Peek::Rtcp { .. } => self.counters.rtcp_in.count(bytes),
            Peek::Datagram => self.counters.rtp_in.count(bytes),
        }
    }

    fn count_out(&mut self, peeked: Peek, bytes: usize) {
        match peeked {
            Peek::Rtp(_) | Peek::Datagram => self.counters.rtp_out.count(bytes),
            Peek::Rtcp { .. } => self.counters.rtcp_out.count(bytes),
        }
    }

    const fn latch(&self, component: Component) -> &Latch {
        match component {
            Component::Rtp => &self.rtp,
            Component::Rtcp => &self.rtcp,
        }
    }
}

impl Counters {
    fn count_refusal(&mut self, refusal: Refusal) {
        match refusal {
            Refusal::Gate => self.rejected_gate += 1,
            Refusal::Stranger => self.rejected_stranger += 1,
            Refusal::Ssrc => self.rejected_ssrc += 1,
            Refusal::Late => self.rejected_late += 1,
        }
    }
}

#[cfg(test)]
mod tests;
