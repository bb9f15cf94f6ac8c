//! One call's offers and answers: what each party has said about each media line.
//!
//! A relay lets a party in from where its SDP says, so it must be told what is agreed *and* what is
//! on offer: a party may send as soon as it has made an offer (RFC 3264 section 5.1), and when the
//! offer fails the session goes on as it was (RFC 3261 section 14.1). So each side of a line has
//! three places:
//!
//! * `agreed`: by the last offer and answer that nothing can undo
//! * `early`: by an exchange in PRACK or UPDATE while an INVITE is under way; the end of that
//!   INVITE decides about it (RFC 6337 section 3.4)
//! * `offered`: said, and not yet concluded
//!
//! The gate is open for all three. Only an offer may take or give back a lease; an answer takes
//! what its offer took, because a line must not be relayed in one direction only.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::time::Instant;

use sip::message::{Message, Method};
use sip::proxy::media::{Party, SessionRef};
use sip::sdp::Direction;
use wire::mark::RelayId;
use wire::relay_control::{Gate, Payload};

use super::addresses::gate;
use crate::relays::pool::LeasedSession;

/// The most dialogs of one call that are told apart (a phone behind us that forks).
const MAX_DIALOGS: usize = 8;

/// One call on a relay. It has at least one lease, or it is forgotten.
#[derive(Debug, Clone)]
pub struct Call {
    /// The Call-ID, for logs and `/status`, and to tell calls apart.
    pub call_id: String,
    /// When its INVITE came.
    pub started: Instant,
    /// True from its 2xx on.
    pub answered: bool,
    /// A relay has heard one of its sides, since its answer or before.
    pub(super) media_started: bool,
    /// The lease that was taken before there was an offer.
    pub(super) spare: Option<LeasedSession>,
    /// The second relay that the call is pinned to, where its media pass two.
    pub(super) far: Option<RelayId>,
    /// The media lines, in the order of the SDP.
    pub(super) lines: Vec<Line>,
    /// Where each party's signalling comes from; `None` before the first message of it.
    signalling: [Option<IpAddr>; 2],
    exchange: Exchange,
    /// The dialogs by the hash of the callee's tag, and whether each is over.
    dialogs: Vec<(u64, bool)>,
}

/// One media line.
#[derive(Debug, Clone, Default)]
pub(super) struct Line {
    pub(super) lease: Option<LeasedSession>,
    /// The lease was taken for an offer that may still fail.
    fresh: bool,
    /// The relay knows what the lease is for.
    bound: bool,
    /// What two relays in a chain let through between them.
    between: Between,
    sides: [Said; 2],
}

/// What one party has said about a line, and what the relay knows of it.
#[derive(Debug, Clone, Default)]
struct Said {
    agreed: Option<Description>,
    early: Option<Description>,
    offered: Option<Description>,
    told: Gate,
}

/// A media line of an SDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Description {
    /// Where the party says it is, if media may come from there.
    pub(super) address: Option<IpAddr>,
    /// Port 0, or nothing that a relay can carry.
    pub(super) off: bool,
    /// What comes, if anything does.
    pub(super) payload: Payload,
    /// Whether it sends, and whether it wants to hear anything.
    pub(super) direction: Direction,
}

/// How far an offer and its answer have come.
#[derive(Debug, Clone, Copy, Default)]
struct Exchange {
    /// Whose offer waits for its answer.
    open: Option<Party>,
    /// Who was sent an INVITE without an offer, and so makes it.
    late: Option<Party>,
    /// Whose INVITE is under way.
    inviting: [bool; 2],
}

/// What a message means for the media.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Turn {
    /// Its SDP is an offer.
    pub(super) offer: bool,
    /// Its sender may start its stream anew: the relay is told although nothing has changed.
    pub(super) renews: bool,
    conclusion: Conclusion,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Conclusion {
    /// Nothing is agreed by this message.
    #[default]
    Open,
    /// Agreed, as far as the INVITE that is under way succeeds.
    Early,
    /// Agreed.
    Final,
}

impl Call {
    pub(super) fn new(call_id: String, now: Instant) -> Self {
        Self {
            call_id,
            started: now,
            answered: false,
            media_started: false,
            spare: None,
            far: None,
            lines: Vec::new(),
            signalling: [None; 2],
            exchange: Exchange::default(),
            dialogs: Vec::new(),
        }
    }

    pub(super) fn leases(&self) -> impl Iterator<Item = LeasedSession> {
        let used = self.lines.iter().filter_map(|line| line.lease);
        self.spare.into_iter().chain(used)
    }

    /// The second relay that the call is pinned to, where its media pass two.
    pub const fn far_relay(&self) -> Option<RelayId> {
        self.far
    }

    /// Takes away the leases that a session belongs to.
    pub(super) fn take_lease_of(&mut self, session: SessionRef) -> Vec<LeasedSession> {
        let has_it = |lease: &mut LeasedSession| lease.sessions().any(|own| own == session);
        let lines = self.lines.iter_mut().map(|line| &mut line.lease);
        let leases = std::iter::once(&mut self.spare).chain(lines);
        leases.filter_map(|lease| lease.take_if(has_it)).collect()
    }

    /// Where a party's signalling comes from.
    pub(super) const fn signalling(&self, party: Party) -> Option<IpAddr> {
        self.signalling[index(party)]
    }

    /// A message of this party has come from there.
    pub(super) const fn heard(&mut self, party: Party, from: IpAddr) {
        self.signalling[index(party)] = Some(from);
    }

    /// The line of that number, made if it is not there yet.
    pub(super) fn line(&mut self, number: usize) -> &mut Line {
        if self.lines.len() <= number {
            self.lines.resize_with(number + 1, Line::default);
        }
        &mut self.lines[number]
    }

    /// What a message of `party` means; `described` where it has an SDP.
    pub(super) fn turn(&mut self, message: &Message, party: Party, described: bool) -> Turn {
        if message.is_request() {
            self.exchange.request(message.method(), party, described)
        } else {
            let method = message.cseq().map(|(_, method)| method);
            let success = message.status().is_some_and(|status| status >= 200);
            let (Ok(method), both) = (method, self.both_have_spoken(party, described)) else {
                return Turn::default();
            };
            self.exchange
                .response(method, party, described, success, both)
        }
    }

    /// True where the next description of `party` is an answer.
    pub(super) fn waits_for(&self, party: Party) -> bool {
        self.exchange.open == Some(party.other())
    }

    /// True where a description of `party` has been read.
    pub(super) fn has_spoken(&self, party: Party) -> bool {
        let mut lines = self.lines.iter();
        lines.any(|line| line.said(party).next().is_some())
    }

    /// Both parties have said something that is not concluded, the sender of this message counted.
    fn both_have_spoken(&self, party: Party, described: bool) -> bool {
        let spoken = |party: Party| {
            let mut lines = self.lines.iter();
            lines.any(|line| line.sides[index(party)].offered.is_some())
        };
        (described || spoken(party)) && spoken(party.other())
    }

    /// After the lines have been noted: what is agreed by the message. Returns the leases that no
    /// line needs any more.
    pub(super) fn conclude(&mut self, turn: Turn) -> Vec<LeasedSession> {
        let mut unused = Vec::new();
        if turn.conclusion == Conclusion::Open {
            return unused;
        }
        let fixed = turn.conclusion == Conclusion::Final;
        let mut spoken = false;
        for line in &mut self.lines {
            for side in &mut line.sides {
                side.conclude(fixed);
            }
            if !fixed {
                continue;
            }
            line.fresh = false;
            let mut agreed = line.sides.iter().filter_map(|side| side.agreed);
            spoken |= agreed.clone().next().is_some();
            // "To reject an offered stream, the port number … MUST be set to zero" (RFC 3264
            // section 6), and to remove one (8.2): by the answer or by the offer.
            if agreed.any(|description| description.off) {
                unused.extend(line.lease.take());
            }
        }
        if fixed && spoken {
            unused.extend(self.spare.take());
        }
        unused
    }

    /// A request of `party` has failed: "the session parameters MUST remain unchanged, as if no
    /// re-INVITE had been issued" (RFC 3261 section 14.1). Returns the leases that its offer took.
    pub(super) fn roll_back(&mut self, party: Party, invite: bool) -> Vec<LeasedSession> {
        let exchange = &mut self.exchange;
        if invite {
            exchange.inviting[index(party)] = false;
            exchange.late = None;
        }
        exchange.open = exchange.open.filter(|open| *open != party);
        let under_way = exchange.inviting;
        let mut unused = Vec::new();
        for line in &mut self.lines {
            for (side, inviting) in line.sides.iter_mut().zip(under_way) {
                // In a glare the other party's offer is still open, until its own 491.
                if !inviting {
                    side.offered = None;
                    side.early = side.early.filter(|_| !invite);
                }
            }
            let own = &mut line.sides[index(party)];
            own.offered = None;
            if line.fresh && !under_way.contains(&true) {
                line.fresh = false;
                unused.extend(line.lease.take());
            }
        }
        unused
    }

    /// Notes a dialog that a 2xx has made.
    pub(super) fn note_dialog(&mut self, callee_tag: &[u8]) {
        let tag = hash(callee_tag);
        let known = self.dialogs.iter().any(|(known, _)| *known == tag);
        if !known && self.dialogs.len() < MAX_DIALOGS {
            self.dialogs.push((tag, false));
        }
    }

    /// A dialog is over; true where none is left. The BYE of an early dialog leaves the call to
    /// its INVITE.
    pub(super) fn hang_up(&mut self, callee_tag: &[u8]) -> bool {
        let tag = hash(callee_tag);
        for (known, over) in &mut self.dialogs {
            *over |= *known == tag;
        }
        self.answered && self.dialogs.iter().all(|(_, over)| *over)
    }
}

impl Exchange {
    fn request(&mut self, method: Method<'_>, party: Party, described: bool) -> Turn {
        let mut turn = Turn {
            renews: described,
            ..Turn::default()
        };
        if method == Method::Invite {
            self.inviting[index(party)] = true;
            self.late = (!described).then_some(party.other());
        }
        if method == Method::Ack {
            // An ACK that gets here is that of a 2xx; it has an SDP where the 2xx had the offer
            // (RFC 3261 section 13.2.2.4).
            if described || self.inviting[index(party)] {
                turn.conclusion = self.close(party);
            }
            return turn;
        }
        // In PRACK an answer, if the response that it acknowledges made an offer (RFC 3262
        // section 5); everything else in a request is an offer.
        let answers = method == Method::Prack && self.open == Some(party.other());
        if described && !answers {
            self.open = Some(party);
            turn.offer = true;
        }
        turn
    }

    fn response(
        &mut self,
        method: Method<'_>,
        party: Party,
        described: bool,
        success: bool,
        both_have_spoken: bool,
    ) -> Turn {
        let invite = method == Method::Invite;
        let mut turn = Turn {
            renews: described && success,
            ..Turn::default()
        };
        if described && invite && self.late == Some(party) {
            self.open = Some(party);
            turn.offer = true;
        }
        if !success {
            return turn;
        }
        if invite {
            // The answer to an offer in a 2xx comes in the ACK.
            if self.late != Some(party) {
                turn.conclusion = self.close(party.other());
            }
        } else if both_have_spoken && matches!(method, Method::Update | Method::Prack) {
            self.open = None;
            self.late = None;
            turn.conclusion = if self.inviting.contains(&true) {
                Conclusion::Early
            } else {
                Conclusion::Final
            };
        }
        turn
    }

    /// The INVITE of `party` has succeeded, and all that was said is agreed.
    const fn close(&mut self, party: Party) -> Conclusion {
        self.inviting[index(party)] = false;
        self.open = None;
        self.late = None;
        Conclusion::Final
    }
}

impl Line {
    pub(super) const fn take(&mut self, lease: LeasedSession) {
        self.lease = Some(lease);
        self.fresh = true;
        self.bound = false;
    }

    /// True the first time: the relay must be told what the lease is for.
    pub(super) fn binds(&mut self) -> bool {
        let binds = !std::mem::replace(&mut self.bound, true);
        if binds {
            self.between = self.between_now();
        }
        binds
    }

    /// What the two relays of a chain must now let through between them, if that has changed.
    pub(super) fn new_between(&mut self) -> Option<Between> {
        let between = self.between_now();
        let before = std::mem::replace(&mut self.between, between);
        (before != between).then_some(between)
    }

    fn between_now(&self) -> Between {
        Between {
            payload: self.payload(),
            held: [Party::Caller, Party::Callee].map(|party| self.is_silent(party)),
        }
    }

    /// What `party` says about the line.
    pub(super) fn describe(&mut self, party: Party, description: Description) {
        self.sides[index(party)].offered = Some(description);
    }

    /// What is said on this side and may still hold.
    fn said(&self, party: Party) -> impl Iterator<Item = &Description> {
        let Said {
            agreed,
            early,
            offered,
            ..
        } = &self.sides[index(party)];
        [offered, early, agreed].into_iter().flatten()
    }

    /// True where `party` is not to send: it only listens, or the other one does not want to hear it.
    fn is_silent(&self, party: Party) -> bool {
        let newest = |party| self.said(party).next().map(|said| said.direction);
        let (own, other) = (newest(party), newest(party.other()));
        matches!(own, Some(Direction::RecvOnly | Direction::Inactive))
            || matches!(other, Some(Direction::SendOnly | Direction::Inactive))
    }

    /// What may pass: the most that is said on either side, as the stream goes on while another is
    /// on offer.
    fn payload(&self) -> Payload {
        let said = self.said(Party::Caller).chain(self.said(Party::Callee));
        let payloads = said.filter(|said| !said.off).map(|said| said.payload);
        payloads.max().unwrap_or_default()
    }

    /// The gate of a party's side; `None` where the relay knows it and need not be told again.
    pub(super) fn gate(
        &mut self,
        party: Party,
        signalling: Option<IpAddr>,
        again: bool,
    ) -> Option<Gate> {
        let mut expected: Vec<IpAddr> = signalling.into_iter().collect();
        for address in self.said(party).filter_map(|said| said.address) {
            if !expected.contains(&address) {
                expected.push(address);
            }
        }
        let mut gate = gate(expected, self.payload());
        gate.held = self.is_silent(party);
        let side = &mut self.sides[index(party)];
        if !again && side.told == gate {
            return None;
        }
        side.told.clone_from(&gate);
        Some(gate)
    }
}

/// What two relays in a chain know of what passes between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Between {
    pub(super) payload: Payload,
    /// Whether the caller is not to send, and the callee.
    pub(super) held: [bool; 2],
}

impl Said {
    fn conclude(&mut self, fixed: bool) {
        let newest = self.offered.take().or(self.early.take());
        if fixed {
            self.agreed = newest.or(self.agreed);
        } else {
            self.early = newest;
        }
    }
}

const fn index(party: Party) -> usize {
    match party {
        Party::Caller => 0,
        Party::Callee => 1,
    }
}

fn hash(tag: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    tag.hash(&mut hasher);
    hasher.finish()
}
