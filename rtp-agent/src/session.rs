//! One media stream between two parties: latches, held packets, counters and deadlines.
//!
//! A session has two sides, A towards the caller and B towards the callee, and each side has two
//! ports, RTP and RTCP. What comes in on a port of one side goes out of the same port of the other
//! side, to the source that is latched there; so nothing is ever sent to an address that has not
//! sent first. Its life:
//!
//! * *lease*: the ports are open, no call uses them. What arrives is held.
//! * *bound*: signalling has set the gates. Sources latch ([`crate::latch`]), packets pass.
//! * *lingering*: the call is over; packets in flight still pass until the linger time ends.
//!
//! A bound session ends by itself when no media came either way for the idle time, or when after
//! the half-open time one side has still not sent. [`crate::relay::Relay`] owns the sessions, calls
//! `handle_*` and carries out the [`Output`]s at once.
//!
//! What is neither RTP nor RTCP is refused, unless the gate says that SDP has declared it: DTLS beside
//! SRTP, or datagrams of any kind for T.38. Such a datagram passes the same source checks.
//!
//! Known weak spots: RTCP counts as media for the idle time, so that calls on hold live as long as
//! their RTCP; what comes before the Bind is held only if it is RTP or RTCP.
//!
//! Standards: RFC 3550 section 11 (port pairs), RFC 4961 (symmetric RTP and RTCP), RFC 5761 section 4
//! (RTCP on the RTP port).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use wire::relay_control::{Gate, Side};

use crate::hold::{HeldPacket, Hold, HoldBudget};
use crate::latch::{Admission, Latch, Refusal};
use crate::peek::{Peek, peek, peek_as};
use crate::reception::Reception;

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
    /// Bound, and one side has not sent yet.
    pub half_open: Duration,
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
    /// It was released and has lingered.
    Linger,
}

/// What a side has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// RTP accepted from this side, and other datagrams that signalling has declared.
    pub rtp_in: Traffic,
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
    /// Refused: another source, another SSRC.
    pub rejected_ssrc: u64,
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
    last_media: Option<Instant>,
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
            last_media: None,
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
        self.a.set_gate(a);
        self.b.set_gate(b);
        if was_lease {
            self.replay(now, context);
        }
    }

    /// Signalling expects somebody else on this side, or the same party in a new dialogue state.
    pub fn handle_update(&mut self, side: Side, gate: Gate, now: Instant) {
        self.changed = true;
        self.party_mut(side).set_gate(gate);
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
            State::Bound { since } => {
                let both = self.a.rtp.peer().is_some() && self.b.rtp.peer().is_some();
                Some(match self.last_media.filter(|_| both) {
                    Some(last) => (last.max(since) + self.limits.idle, Expiry::Idle),
                    None => (since + self.limits.half_open, Expiry::HalfOpen),
                })
            }
        }
    }

    /// Accepts and counts a packet, or refuses and counts it. A new source frees what waits for it.
    fn admit(
        &mut self,
        packet: Packet<'_>,
        peeked: Peek,
        now: Instant,
        context: &mut Context<'_>,
    ) -> Option<()> {
        let party = self.party_mut(packet.side);
        match party.judge(packet.component, packet.from, peeked, now) {
            Ok(admission) => {
                party.count_in(peeked, packet.bytes.len(), now);
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
                self.last_media = Some(now);
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
    fn set_gate(&mut self, gate: Gate) {
        let gates = Gates {
            // RFC 3550 section 11: RTCP comes from the next higher port.
            rtcp: Gate {
                port: gate.port.map(|port| port.saturating_add(1)),
                ..gate.clone()
            },
            rtp: gate,
        };
        self.rtp.handle_gate(&gates.rtp);
        self.rtcp.handle_gate(&gates.rtcp);
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
    ) -> Result<Admission, Refusal> {
        let gates = self.gates.as_ref().ok_or(Refusal::Gate)?;
        match (component, peeked) {
            (Component::Rtp, Peek::Rtp(fields)) => {
                let admission = self.rtp.admit(&gates.rtp, from, fields.ssrc, now)?;
                // RTP is the better witness: RTCP from another host was not from this party.
                if self.rtcp.peer().is_some_and(|peer| peer.ip() != from.ip()) {
                    self.rtcp.forget();
                }
                Ok(admission)
            }
            (Component::Rtp, Peek::Datagram) => self.rtp.admit(&gates.rtp, from, None, now),
            (Component::Rtp, Peek::Rtcp { .. }) => self
                .rtp
                .admit_companion(&gates.rtp, from, now)
                .map(|()| Admission::Known),
            (Component::Rtcp, peeked) => {
                if self.rtp.peer().is_some_and(|peer| peer.ip() != from.ip()) {
                    return Err(Refusal::Stranger);
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
        }
    }
}

#[cfg(test)]
mod tests;
