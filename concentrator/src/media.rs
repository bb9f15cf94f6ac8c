//! A call's media: whether it needs a relay, which one, and what its SDP says.
//!
//! [`Calls`] answers the proxy from memory. A new call takes one lease per media line from the
//! stock of the relay that the anchor's mark names; the offer that goes on to the callee carries
//! the lease's B side, the answer that goes back to the caller its A side, and the relay learns
//! the details afterwards. A call is keyed by its first lease ([`SessionRef`]), which travels in
//! the dialog cookie, so every later message finds it whatever edge brought it.
//!
//! Pure: no socket, no clock. Commands for the relays leave through [`RelayPool`].

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use sip::message::{HeaderName, Message};
use sip::proxy::media::{CallMessage, Media, NewCall, Party, Placement, SessionRef};
use sip::sdp::{self, MediaAddress, Sdp, find_sdp};
use wire::mark::RelayId;
use wire::relay_control::{Gate, GateMode, Side, SideAddr};

use crate::config::{Anchor, RelayPolicy};
use crate::relays::pool::{LeasedSession, RelayPool};

/// The most media lines of one call that are relayed; further ones stay as they came.
const MAX_STREAMS: usize = 8;

/// What happened to calls' media.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Calls whose media were placed on a relay.
    pub relayed: u64,
    /// Calls that need no relay by policy.
    pub direct: u64,
    /// Calls that went on without a relay although policy wanted one.
    pub unplaced: u64,
    /// Calls placed on the other party's relay, because the anchor's had none to give.
    pub fallback: u64,
    /// Further media lines of relayed calls that found no lease.
    pub lines_unplaced: u64,
    /// Bodies that claim to be SDP and are not.
    pub bad_sdp: u64,
}

/// What carries one media line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    /// Nothing has had to: the line was never one that a relay can carry.
    Unused,
    /// This lease.
    Relayed(LeasedSession),
    /// Nothing, because there was no lease when it was first wanted; so it stays for the call,
    /// since a line must not be relayed in one direction only.
    Direct,
}

/// One call on a relay.
#[derive(Debug, Clone)]
pub struct Call {
    /// The lease that names the call, until a line uses it.
    spare: Option<LeasedSession>,
    /// The media lines, in the order of the SDP.
    lines: Vec<Line>,
    /// The Call-ID, for logs and `/status`.
    pub call_id: String,
    /// When its INVITE came.
    pub started: Instant,
    /// True from its 2xx on.
    pub answered: bool,
    caller: IpAddr,
    callee: IpAddr,
}

impl Call {
    fn leases(&self) -> impl Iterator<Item = LeasedSession> {
        let used = self.lines.iter().filter_map(|line| match line {
            Line::Relayed(lease) => Some(*lease),
            Line::Unused | Line::Direct => None,
        });
        self.spare.into_iter().chain(used)
    }
}

/// The calls whose media are on relays, and the relays.
#[derive(Debug)]
pub struct Calls {
    anchor: Anchor,
    policy: RelayPolicy,
    /// The relays' leases and connections.
    pub relays: RelayPool,
    calls: HashMap<SessionRef, Call>,
    /// The call of every further lease, by that lease.
    call_of: HashMap<SessionRef, SessionRef>,
    counters: Counters,
}

impl Calls {
    /// No calls yet.
    pub fn new(anchor: Anchor, policy: RelayPolicy, relays: RelayPool) -> Self {
        Self {
            anchor,
            policy,
            relays,
            calls: HashMap::new(),
            call_of: HashMap::new(),
            counters: Counters::default(),
        }
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The calls with a session, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&SessionRef, &Call)> {
        self.calls.iter()
    }

    /// The relay ended or lost a session. With the first of a call the call's other sessions end
    /// too; without a further one its line is no longer relayed.
    pub fn session_gone(&mut self, session: SessionRef, now: Instant) {
        if self.calls.contains_key(&session) {
            return self.give_back(session, Some(session), now);
        }
        let Some(call) = self
            .call_of
            .remove(&session)
            .and_then(|call| self.calls.get_mut(&call))
        else {
            return;
        };
        for line in &mut call.lines {
            if matches!(line, Line::Relayed(lease) if lease.session == session) {
                *line = Line::Direct;
            }
        }
    }

    /// Ends a call and releases its sessions, less the one that is gone already.
    fn give_back(&mut self, session: SessionRef, gone: Option<SessionRef>, now: Instant) {
        let Some(call) = self.calls.remove(&session) else {
            return;
        };
        for lease in call.leases() {
            self.call_of.remove(&lease.session);
            if gone != Some(lease.session) {
                self.relays.release(lease.session, now);
            }
        }
    }

    /// Whether the parties need a relay between them.
    fn wanted(&self, call: &NewCall<'_>) -> bool {
        match self.policy {
            RelayPolicy::Always => true,
            RelayPolicy::Never => false,
            RelayPolicy::Auto => {
                let (caller, callee) = (call.from.flow.peer.ip(), call.to.peer.ip());
                caller.is_ipv4() != callee.is_ipv4()
                    || behind_nat(offered_address(call.request), caller)
                    || behind_nat(contact_address(call.contact), callee)
            }
        }
    }

    /// The relays to try, the anchor's first.
    fn candidates(&self, call: &NewCall<'_>) -> [Option<RelayId>; 2] {
        let [first, second] = match self.anchor {
            Anchor::Caller => [call.from.relay, call.to_relay],
            Anchor::Callee => [call.to_relay, call.from.relay],
        };
        [first, second.filter(|second| first != Some(*second))]
    }

    fn take(&mut self, call: &NewCall<'_>) -> Option<LeasedSession> {
        for (rank, relay) in self.candidates(call).into_iter().enumerate() {
            let Some(relay) = relay else { continue };
            if let Ok(lease) = self.relays.take_lease(relay) {
                self.counters.fallback += u64::from(rank > 0);
                return Some(lease);
            }
        }
        None
    }

    /// The body with the addresses that the other party shall send to.
    fn rewrite_body(
        &mut self,
        message: &Message,
        session: SessionRef,
        party: Party,
        from: IpAddr,
        now: Instant,
    ) -> Option<Vec<u8>> {
        let body = message.body();
        let range = find_sdp(message.header(HeaderName::ContentType)?, body)?;
        let Ok(sdp) = Sdp::parse(&body[range.clone()]) else {
            self.counters.bad_sdp += 1;
            return None;
        };
        let mut replacements = Vec::with_capacity(sdp.media().len());
        for (index, media) in sdp.media().iter().enumerate() {
            let lease = if relayable(media) {
                self.lease_of_line(session, index, now)
            } else {
                None
            };
            if let Some(lease) = lease {
                let gate = gate(from, media.address);
                self.relays
                    .update_gate(lease.session, side_of(party), gate, now);
            }
            replacements.push(lease.map(|lease| media_address(facing(party.other(), &lease))));
        }
        let Ok(rewritten) = sdp.rewrite(&replacements) else {
            self.counters.bad_sdp += 1;
            return None;
        };
        Some([&body[..range.start], &rewritten, &body[range.end..]].concat())
    }

    /// The lease that carries a line: the call's first for its first line, a new one for each
    /// further line.
    fn lease_of_line(
        &mut self,
        session: SessionRef,
        index: usize,
        now: Instant,
    ) -> Option<LeasedSession> {
        let call = self.calls.get_mut(&session)?;
        if index >= MAX_STREAMS {
            return None;
        }
        if call.lines.len() <= index {
            call.lines.resize(index + 1, Line::Unused);
        }
        match call.lines[index] {
            Line::Relayed(lease) => return Some(lease),
            Line::Direct => return None,
            Line::Unused => {}
        }
        let lease = match call.spare.take() {
            Some(spare) => Some(spare),
            None => self.relays.take_lease(session.relay).ok().inspect(|lease| {
                let gates = (gate(call.caller, None), gate(call.callee, None));
                self.relays
                    .bind(lease.session, gates.0, gates.1, &call.call_id, now);
                self.call_of.insert(lease.session, session);
            }),
        };
        self.counters.lines_unplaced += u64::from(lease.is_none());
        call.lines[index] = lease.map_or(Line::Direct, Line::Relayed);
        lease
    }
}

impl Media for Calls {
    fn place(&mut self, call: &NewCall<'_>, now: Instant) -> Placement {
        if !self.wanted(call) {
            self.counters.direct += 1;
            return Placement::default();
        }
        let Some(lease) = self.take(call) else {
            self.counters.unplaced += 1;
            return Placement::default();
        };
        self.counters.relayed += 1;
        let session = lease.session;
        let call_id = String::from_utf8_lossy(call.request.call_id().unwrap_or_default());
        let (caller, callee) = (call.from.flow.peer.ip(), call.to.peer.ip());
        let gates = (gate(caller, None), gate(callee, None));
        self.relays
            .bind(lease.session, gates.0, gates.1, &call_id, now);
        let entry = Call {
            spare: Some(lease),
            lines: Vec::new(),
            call_id: call_id.into_owned(),
            started: now,
            answered: false,
            caller,
            callee,
        };
        self.calls.insert(session, entry);
        let body = self.rewrite_body(call.request, session, Party::Caller, caller, now);
        Placement {
            session: Some(session),
            body,
        }
    }

    fn rewrite(&mut self, message: &CallMessage<'_>, now: Instant) -> Option<Vec<u8>> {
        let from = message.from.flow.peer.ip();
        self.rewrite_body(message.message, message.session, message.party, from, now)
    }

    fn answered(&mut self, session: SessionRef, _: Instant) {
        if let Some(call) = self.calls.get_mut(&session) {
            call.answered = true;
        }
    }

    fn ended(&mut self, session: SessionRef, now: Instant) {
        self.give_back(session, None, now);
    }
}

/// A media line that a relay can carry.
fn relayable(media: &sdp::Media<'_>) -> bool {
    media.is_udp() && !media.is_rejected()
}

/// The side of a session that faces a party.
const fn side_of(party: Party) -> Side {
    match party {
        Party::Caller => Side::A,
        Party::Callee => Side::B,
    }
}

const fn facing(party: Party, stream: &LeasedSession) -> SideAddr {
    match side_of(party) {
        Side::A => stream.a,
        Side::B => stream.b,
    }
}

const fn media_address(side: SideAddr) -> MediaAddress {
    MediaAddress {
        addr: side.addr,
        rtp: side.rtp,
        rtcp: side.rtcp,
    }
}

/// Media of a party may come from where its signalling comes from, or from where its SDP says.
fn gate(signalling: IpAddr, described: Option<IpAddr>) -> Gate {
    let mut expected = vec![signalling];
    expected.extend(described.filter(|address| *address != signalling && may_send(*address)));
    Gate {
        expected,
        port: None,
        mode: GateMode::Exact,
    }
}

/// Addresses that no media can honestly come from.
const fn may_send(address: IpAddr) -> bool {
    let broadcast = match address {
        IpAddr::V4(v4) => v4.is_broadcast(),
        IpAddr::V6(_) => false,
    };
    !(address.is_loopback() || address.is_unspecified() || address.is_multicast() || broadcast)
}

/// True where a party believes in an address that its packets do not come from.
fn behind_nat(claimed: Option<IpAddr>, seen: IpAddr) -> bool {
    claimed.is_none_or(|claimed| claimed != seen)
}

/// The media address of an offer: of its first line that wants media.
fn offered_address(request: &Message) -> Option<IpAddr> {
    let body = request.body();
    let range = find_sdp(request.header(HeaderName::ContentType)?, body)?;
    let sdp = Sdp::parse(&body[range]).ok()?;
    sdp.media().iter().find(|media| relayable(media))?.address
}

fn contact_address(contact: &[u8]) -> Option<IpAddr> {
    let uri = sip::message::Uri::parse(contact).ok()?;
    match uri.host {
        sip::message::Host::V4(address) => Some(IpAddr::V4(address)),
        sip::message::Host::V6(address) => Some(IpAddr::V6(address)),
        sip::message::Host::Name(_) => None,
    }
}

#[cfg(test)]
mod tests;
