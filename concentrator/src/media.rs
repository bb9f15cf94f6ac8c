//! A call's media: whether it needs a relay, which one, and what its SDP says.
//!
//! [`Calls`] answers the proxy from memory. `choice` says which relays a new call may use; it takes
//! one lease per media line from the stock of the first that has one, or one on the relays of both
//! edges, which then pass the media on to each other. Where that relay will soon have more, the call
//! waits for a while ([`Media::wait_until`]); nothing else does. The offer that goes on to the callee carries
//! the lease's B side, the answer that goes back to the caller its A side, and the relay learns
//! the details afterwards. A call is keyed by its first lease ([`SessionRef`]), which travels in
//! the dialog cookie, so every later message finds it whatever edge brought it.
//!
//! `call` follows the offers and answers of one call (RFC 3264, 6337): what an offer that fails has
//! changed is undone, what a party has given up is given back. A line that has lost its session,
//! because its relay has restarted or saw no media, has a new one from the next offer on. So has a
//! call that we do not know, because we have restarted: its cookie says that it was relayed.
//!
//! Pure: no socket, no clock. Commands for the relays leave through [`RelayPool`].

use std::collections::HashMap;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use sip::message::{Message, Method};
use sip::proxy::media::{CallMessage, Media, NewCall, Party, Placement, Refusal, SessionRef};
use sip::sdp::{self, MediaAddress};
use wire::gre::TunnelKey;
use wire::mark::RelayId;
use wire::relay_control::{Gate, Payload, Side, SideAddr};

use crate::config::{Anchor, RelayPolicy};
use crate::relays::pool::{LeasedSession, RelayPool};
use addresses::{gate, gate_for_relay, may_send};
pub use call::Call;
use call::{Description, Turn};
use choice::Plan;
pub use counters::Counters;
use description::{Body, MAX_STREAMS, carried, read, relayable};
use placement::{claimed_address, parties};

mod addresses;
mod call;
pub mod choice;
mod counters;
mod description;
mod placement;
mod sessions;
mod stateless;

/// The most leases of one call: lines that an offer replaces keep theirs until it is agreed.
const MAX_LEASES: usize = 2 * MAX_STREAMS;

/// The calls whose media are on relays, and the relays.
#[derive(Debug)]
pub struct Calls {
    plan: Plan,
    /// How long a call waits for its relay to have leases again.
    patience: Duration,
    /// Our own addresses, which no media come from.
    own: Vec<IpNetwork>,
    /// The relays' leases and connections.
    pub relays: RelayPool,
    calls: HashMap<SessionRef, Call>,
    /// The call of every lease, by that lease.
    call_of: HashMap<SessionRef, SessionRef>,
    counters: Counters,
}

impl Calls {
    /// No calls yet. `own` are our own addresses, which no media come from.
    pub fn new(
        anchor: Anchor,
        policy: RelayPolicy,
        own: Vec<IpNetwork>,
        relays: RelayPool,
    ) -> Self {
        Self {
            plan: Plan::new(anchor, policy),
            patience: Duration::ZERO,
            own,
            relays,
            calls: HashMap::new(),
            call_of: HashMap::new(),
            counters: Counters::default(),
        }
    }

    /// Which relays stand in for which, and what is different for some accounts and trunks.
    pub fn set_plan(&mut self, plan: Plan) {
        self.plan = plan;
    }

    /// A relay has one more name, by another key of its edge.
    pub fn know_as(&mut self, key: TunnelKey, relay: RelayId) {
        let alias = RelayId { key, ..relay };
        self.relays.know_as(alias, relay);
        let stand_ins = self.plan.stand_ins.get(&relay).cloned();
        self.plan
            .stand_ins
            .entry(alias)
            .or_insert(stand_ins.unwrap_or_default());
    }

    /// How long a new call waits for its relay when calls have come faster than leases; zero: none
    /// waits, and it takes the next relay at once.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The calls with a session, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&SessionRef, &Call)> {
        self.calls.iter()
    }

    /// The relay ended or lost a session. Its line is not relayed until the next offer; a call
    /// without any session is forgotten.
    pub fn session_gone(&mut self, session: SessionRef) {
        let Some(key) = self.call_of.remove(&session) else {
            return;
        };
        let Some(call) = self.calls.get_mut(&key) else {
            return;
        };
        for lease in call.take_lease_of(session) {
            for other in lease.sessions().filter(|other| *other != session) {
                self.call_of.remove(&other);
                self.relays.release_other_half(other);
            }
        }
        self.forget_if_bare(key);
    }

    /// Ends a call and releases its sessions.
    fn give_back(&mut self, key: SessionRef, now: Instant) {
        if let Some(call) = self.calls.remove(&key) {
            self.release(call.leases(), now);
        }
    }

    fn release(&mut self, leases: impl IntoIterator<Item = LeasedSession>, now: Instant) {
        for lease in leases {
            for session in lease.sessions() {
                self.call_of.remove(&session);
                self.relays.release(session, now);
            }
        }
    }

    fn forget_if_bare(&mut self, key: SessionRef) {
        let bare = |call: &Call| call.leases().next().is_none();
        if self.calls.get(&key).is_some_and(bare) {
            self.calls.remove(&key);
        }
    }

    /// Notes what a party says about each line, and rewrites it for the other.
    fn exchange(
        &mut self,
        key: SessionRef,
        party: Party,
        body: &Body<'_>,
        turn: Turn,
    ) -> Option<Vec<u8>> {
        let mut replacements = Vec::with_capacity(body.sdp.media().len());
        for (number, media) in body.sdp.media().iter().enumerate() {
            let lease = self.line(key, party, number, media, turn);
            replacements.push(lease.map(|lease| media_address(facing(party.other(), &lease))));
        }
        if replacements.iter().all(Option::is_none) {
            return None;
        }
        let Ok(rewritten) = body.sdp.rewrite(&replacements) else {
            self.counters.bad_sdp += 1;
            return None;
        };
        Some(body.with(rewritten))
    }

    /// The lease that carries a line from now on: an offer may take one, an answer has what its
    /// offer had.
    fn line(
        &mut self,
        key: SessionRef,
        party: Party,
        number: usize,
        media: &sdp::Media<'_>,
        turn: Turn,
    ) -> Option<LeasedSession> {
        let off = !relayable(media);
        let call = self.calls.get_mut(&key)?;
        if off && number >= call.lines.len() {
            return None;
        }
        let believed = media.address.filter(|_| !off && !media.is_held());
        let address = believed
            .filter(|address| may_send(*address, &self.own))
            .filter(|address| !self.relays.is_relay_address(*address));
        self.counters.hostile_addresses += u64::from(address != believed);
        let parties = [Party::Caller, Party::Callee].map(|party| call.signalling(party));
        let far = call.far;
        let full = call.leases().count() >= MAX_LEASES;
        let payload = media.payload();
        let line = call.line(number);
        line.describe(
            party,
            Description {
                address,
                off,
                payload,
                direction: media.direction_with_hold(),
            },
        );
        if off {
            return None;
        }
        if line.lease.is_some() || !turn.offer {
            return line.lease;
        }
        let lease = match call.spare.take() {
            None if !full => self.take_for_line(key, far, parties),
            spare => spare,
        };
        self.counters.lines_unplaced += u64::from(lease.is_none());
        let lease = lease?;
        for session in lease.sessions() {
            self.call_of.insert(session, key);
        }
        self.calls.get_mut(&key)?.line(number).take(lease);
        Some(lease)
    }

    /// Tells the relay that a lease is a call's although no line uses it yet.
    fn bind_spare(&mut self, key: SessionRef, now: Instant) {
        let Some(call) = self.calls.get(&key) else {
            return;
        };
        let Some(spare) = call.spare else { return };
        let [a, b] = [Party::Caller, Party::Callee].map(|party| {
            let expected = call.signalling(party).into_iter().collect();
            gate(expected, Payload::Rtp)
        });
        bind(&mut self.relays, &spare, [a, b], &call.call_id, now);
    }

    /// Carries out what a message has concluded, and tells the relays what is new.
    fn settle(&mut self, key: SessionRef, party: Party, turn: Turn, now: Instant) {
        let Some(call) = self.calls.get_mut(&key) else {
            return;
        };
        let unused = call.conclude(turn);
        self.release(unused, now);
        self.tell(key, turn.renews.then_some(party), now);
        self.forget_if_bare(key);
    }

    /// Tells the relays from where each party's media may come; about `again` also where nothing
    /// has changed.
    fn tell(&mut self, key: SessionRef, again: Option<Party>, now: Instant) {
        let Some(call) = self.calls.get_mut(&key) else {
            return;
        };
        let signalling = [Party::Caller, Party::Callee].map(|party| call.signalling(party));
        for line in &mut call.lines {
            let Some(lease) = line.lease else {
                continue;
            };
            let binds = line.binds();
            let [a, b] = [Party::Caller, Party::Callee].map(|party| {
                let signalling = signalling[usize::from(party == Party::Callee)];
                let again = binds || again == Some(party);
                line.gate(party, signalling, again)
            });
            if let (true, Some(a), Some(b)) = (binds, a.clone(), b.clone()) {
                bind(&mut self.relays, &lease, [a, b], &call.call_id, now);
                continue;
            }
            for (side, gate) in [(Side::A, a), (Side::B, b)] {
                if let Some(gate) = gate {
                    let session = session_facing(side, &lease);
                    self.relays.update_gate(session, side, gate, now);
                }
            }
            if let (Some(far), Some(between)) = (lease.far, line.new_between()) {
                let (near, payload) = (lease.session, between.payload);
                let [caller_held, callee_held] = between.held;
                let b = gate_for_relay(far.a, payload, callee_held);
                let a = gate_for_relay(lease.b, payload, caller_held);
                self.relays.update_gate(near, Side::B, b, now);
                self.relays.update_gate(far.session, Side::A, a, now);
            }
        }
    }

    /// True where the call of a message is known, or is known again because this is an offer.
    fn find_or_adopt(&mut self, message: &CallMessage<'_>, described: bool, now: Instant) -> bool {
        let call_id = message.message.call_id().unwrap_or_default();
        if let Some(call) = self.calls.get(&message.session) {
            return call.call_id.as_bytes() == call_id;
        }
        let method = message.message.method();
        let is_offer = message.message.is_request()
            && matches!(method, Method::Invite | Method::Update)
            && described;
        if is_offer {
            let call_id = String::from_utf8_lossy(call_id).into_owned();
            let mut call = Call::new(call_id, now);
            (call.answered, call.media_started) = (true, true);
            self.calls.insert(message.session, call);
            self.counters.adopted += 1;
        }
        is_offer
    }
}

impl Media for Calls {
    fn may_wait(&self) -> bool {
        !self.patience.is_zero() && self.relays.any_is_low()
    }

    fn wait_until(
        &mut self,
        call: &NewCall<'_>,
        branches: usize,
        again: bool,
        now: Instant,
    ) -> Option<(Instant, RelayId)> {
        let choice = self.plan.choose(call);
        let (firsts, parties) = (choice.firsts(), parties(call));
        // Before anything is read: mostly there are more than the largest offer needs.
        self.shortage(&firsts, parties, branches.saturating_mul(MAX_STREAMS))?;
        let offer = read(call.request);
        let claimed = claimed_address(call.request, offer.as_ref());
        if !Self::wanted(call, &choice, claimed) {
            return None;
        }
        // An offer that will be refused waits for nothing.
        let offer = offer.map(carried).transpose().ok()?;
        let lines = offer.map_or(0, |offer| offer.live_lines());
        let leases = branches.saturating_mul(lines.max(1));
        let short = self.shortage(&firsts, parties, leases)?;
        if !again {
            self.relays
                .expect(short, u32::try_from(leases).unwrap_or(u32::MAX));
        }
        Some((now + self.patience, short))
    }

    fn place(&mut self, call: &NewCall<'_>, now: Instant) -> Placement {
        let choice = self.plan.choose(call);
        self.counters.pinned += u64::from(choice.pinned);
        let offer = match choice.policy {
            RelayPolicy::Never => None,
            RelayPolicy::Auto | RelayPolicy::Always => read(call.request),
        };
        let claimed = claimed_address(call.request, offer.as_ref());
        if !Self::wanted(call, &choice, claimed) {
            self.counters.direct += 1;
            return Placement::default();
        }
        let body = match offer.map(carried).transpose() {
            Ok(body) => body,
            Err(refusal) => {
                self.count_bad(&refusal);
                self.counters.offers_refused += 1;
                return Placement {
                    refusal: Some(refusal),
                    ..Placement::default()
                };
            }
        };
        let Some(lease) = self.take(call, &choice) else {
            // Between two families nothing flows without a relay.
            let incompatible = call.from.flow.peer.is_ipv4() != call.to.peer.is_ipv4();
            if incompatible {
                self.counters.unbridged += 1;
            } else {
                self.counters.unplaced += 1;
            }
            return Placement {
                refusal: incompatible.then_some(Refusal::Incompatible),
                ..Placement::default()
            };
        };
        self.counters.relayed += 1;
        let key = lease.session;
        // A session's number that is used again is a call that nobody has told us the end of.
        self.give_back(key, now);
        let far = lease.far.map(|far| far.session);
        let call_id = String::from_utf8_lossy(call.request.call_id().unwrap_or_default());
        let mut entry = Call::new(call_id.into_owned(), now);
        entry.spare = Some(lease);
        entry.far = far.map(|far| far.relay);
        entry.heard(Party::Caller, call.from.flow.peer.ip());
        entry.heard(Party::Callee, call.to.peer.ip());
        let turn = entry.turn(call.request, Party::Caller, body.is_some());
        self.calls.insert(key, entry);
        for session in lease.sessions() {
            self.call_of.insert(session, key);
        }
        let body = body.and_then(|body| self.exchange(key, Party::Caller, &body, turn));
        self.bind_spare(key, now);
        self.settle(key, Party::Caller, turn, now);
        Placement {
            session: Some(key),
            far,
            caller_side: far.is_none().then(|| media_address(lease.a)),
            body,
            refusal: None,
        }
    }

    fn rewrite(
        &mut self,
        message: &CallMessage<'_>,
        now: Instant,
    ) -> Result<Option<Vec<u8>>, Refusal> {
        let CallMessage {
            message: sip,
            party,
            session: key,
            ..
        } = *message;
        let body = match read(sip).map(carried).transpose() {
            Ok(body) => body,
            Err(refusal) => {
                self.count_bad(&refusal);
                if self.may_refuse(message) {
                    self.counters.offers_refused += 1;
                    return Err(refusal);
                }
                self.pass_unchanged(message, now);
                None
            }
        };
        if !self.find_or_adopt(message, body.is_some(), now) {
            return Ok(body.and_then(|body| self.answer_by_cookie(message, &body, now)));
        }
        let Some(call) = self.calls.get_mut(&key) else {
            return Ok(None);
        };
        call.heard(party, message.from.flow.peer.ip());
        let turn = call.turn(sip, party, body.is_some());
        if let (Party::Callee, Some(200..=299)) = (party, sip.status())
            && let (Ok((_, Method::Invite)), Ok(to)) = (sip.cseq(), sip.to())
        {
            call.note_dialog(to.tag().unwrap_or_default());
        }
        let body = body.and_then(|body| self.exchange(key, party, &body, turn));
        self.settle(key, party, turn, now);
        Ok(body)
    }

    fn refused(&mut self, request: &Message, party: Party, session: SessionRef, now: Instant) {
        let method = request.method();
        if !matches!(method, Method::Invite | Method::Update | Method::Prack) {
            return;
        }
        let Some(call) = self.calls.get_mut(&session) else {
            return;
        };
        self.counters.rolled_back += 1;
        let unused = call.roll_back(party, method == Method::Invite);
        self.release(unused, now);
        self.tell(session, None, now);
        self.forget_if_bare(session);
    }

    fn answered(&mut self, session: SessionRef, _: Instant) {
        if let Some(call) = self.calls.get_mut(&session) {
            call.answered = true;
            // What it has heard while the call rang does not say that it lives.
            call.media_started &= self.relays.is_up(session.relay);
        }
    }

    fn hung_up_far(&mut self, session: SessionRef, now: Instant) {
        if !self.call_of.contains_key(&session) {
            self.counters.released_by_cookie += 1;
            self.relays.release(session, now);
        }
    }

    fn hung_up(&mut self, bye: &Message, party: Party, session: SessionRef, now: Instant) {
        let Some(call) = self.calls.get_mut(&session) else {
            // We have restarted, and the relay has not: nobody else would tell it.
            self.counters.released_by_cookie += 1;
            self.relays.release(session, now);
            return;
        };
        if bye.call_id().unwrap_or_default() != call.call_id.as_bytes() {
            return;
        }
        let callee = match party {
            Party::Caller => bye.to(),
            Party::Callee => bye.from(),
        };
        let callee = callee.as_ref().ok().and_then(|callee| callee.tag());
        if call.hang_up(callee.unwrap_or_default()) {
            self.give_back(session, now);
        } else {
            // The party that is left may take the place of the one that has gone.
            self.tell(session, Some(Party::Callee), now);
        }
    }

    fn ended(&mut self, session: SessionRef, now: Instant) {
        self.give_back(session, now);
    }

    fn holds(&self, session: SessionRef) -> bool {
        self.is_relayed(session)
    }

    /// The relay's own limits end it if no media flow, and say so.
    fn unsettled(&mut self, _: SessionRef, _: Instant) {}
}

/// The side of a session that faces a party.
const fn side_of(party: Party) -> Side {
    match party {
        Party::Caller => Side::A,
        Party::Callee => Side::B,
    }
}

fn facing(party: Party, stream: &LeasedSession) -> SideAddr {
    match side_of(party) {
        Side::A => stream.a,
        Side::B => stream.callee_side(),
    }
}

/// The session whose port on this side a party sends to.
fn session_facing(side: Side, lease: &LeasedSession) -> SessionRef {
    match (side, lease.far) {
        (Side::B, Some(far)) => far.session,
        (Side::A, _) | (Side::B, None) => lease.session,
    }
}

/// Tells the relays what a lease is for. Between two relays each lets in the other and nobody else.
fn bind(
    relays: &mut RelayPool,
    lease: &LeasedSession,
    [a, b]: [Gate; 2],
    call_id: &str,
    now: Instant,
) {
    let Some(far) = lease.far else {
        return relays.bind(lease.session, a, b, call_id, now);
    };
    let to_far = gate_for_relay(far.a, a.payload, b.held);
    let to_near = gate_for_relay(lease.b, b.payload, a.held);
    relays.bind(lease.session, a, to_far, call_id, now);
    relays.bind(far.session, to_near, b, call_id, now);
}

const fn media_address(side: SideAddr) -> MediaAddress {
    MediaAddress {
        addr: side.addr,
        rtp: side.rtp,
        rtcp: side.rtcp,
    }
}

#[cfg(test)]
mod tests;
