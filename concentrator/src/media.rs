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
    /// Bodies that claim to be SDP and are not.
    pub bad_sdp: u64,
}

/// One call on a relay.
#[derive(Debug, Clone)]
pub struct Call {
    /// One lease per media line, in the order of the lines.
    streams: Vec<LeasedSession>,
    /// The Call-ID, for logs and `/status`.
    pub call_id: String,
    /// When its INVITE came.
    pub started: Instant,
    /// True from its 2xx on.
    pub answered: bool,
    caller: IpAddr,
    callee: IpAddr,
}

/// The calls whose media are on relays, and the relays.
#[derive(Debug)]
pub struct Calls {
    anchor: Anchor,
    policy: RelayPolicy,
    /// The relays' leases and connections.
    pub relays: RelayPool,
    calls: HashMap<SessionRef, Call>,
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

    /// The relay ended a session by itself: nothing of the call is left there.
    pub fn session_gone(&mut self, session: SessionRef) -> Option<Call> {
        self.calls.remove(&session)
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
        match self.anchor {
            Anchor::Caller => [call.from.relay, call.to_relay],
            Anchor::Callee => [call.to_relay, call.from.relay],
        }
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
        let streams = self.streams_for(session, sdp.media().len(), now)?;
        let replacements: Vec<Option<MediaAddress>> = sdp
            .media()
            .iter()
            .zip(streams.iter().map(Some).chain(std::iter::repeat(None)))
            .map(|(media, stream)| {
                let stream = stream.filter(|_| relayable(media))?;
                Some(media_address(facing(party.other(), stream)))
            })
            .collect();
        for (media, stream) in sdp.media().iter().zip(&streams) {
            if relayable(media) {
                let gate = gate(from, media.address);
                self.relays
                    .update_gate(stream.session, side_of(party), gate, now);
            }
        }
        let Ok(rewritten) = sdp.rewrite(&replacements) else {
            self.counters.bad_sdp += 1;
            return None;
        };
        Some([&body[..range.start], &rewritten, &body[range.end..]].concat())
    }

    /// The call's leases, with one more for every media line that is new.
    fn streams_for(
        &mut self,
        session: SessionRef,
        lines: usize,
        now: Instant,
    ) -> Option<Vec<LeasedSession>> {
        let call = self.calls.get_mut(&session)?;
        while call.streams.len() < lines.min(MAX_STREAMS) {
            let Ok(lease) = self.relays.take_lease(session.relay) else {
                break;
            };
            let gates = (gate(call.caller, None), gate(call.callee, None));
            self.relays
                .bind(lease.session, gates.0, gates.1, &call.call_id, now);
            call.streams.push(lease);
        }
        Some(call.streams.clone())
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
            streams: vec![lease],
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
        let Some(call) = self.calls.remove(&session) else {
            return;
        };
        for stream in &call.streams {
            self.relays.release(stream.session, now);
        }
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
