//! Calls that are ended from here: a BYE to each party, as if the other had sent it.
//!
//! A proxy keeps no dialogs, and for a BYE it must know what only the parties know: where each wants
//! its requests (Contact), the proxies on the way there (Record-Route), and how far its numbers have
//! come (CSeq). So that much is kept of a call with a media session, and only where
//! [`Proxy::remember_dialogs`] has asked for it, from its 2xx to its BYE. Whoever owns the media says
//! when they are gone: [`Proxy::end_call`].
//!
//! The BYEs have transactions and no context, so that the parties' answers end here. What a party has
//! sent meanwhile goes its way, and the other, who has hung up, answers 481.
//!
//! Known limits. A call that another core has seen answered, or this one before it was started
//! anew, is not known here. A first proxy on the way that is a strict router is not served.
//!
//! Standards: RFC 3261 sections 12.2.1.1, 12.2.2 (target refresh), 15; RFC 3326 (Reason).

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::Proxy;
use super::media::{Media, Party, SessionRef};
use super::route::request_uri_of;
use crate::cookie::{BranchOf, DialogCookie};
use crate::hop::Flow;
use crate::message::{Bye, HeaderName, Message, Method, NameAddr};
use crate::text::push_address;
use crate::transaction::ServerId;

/// Dialogs of one call: more than one where a phone behind us has forked it.
const MAX_DIALOGS: usize = 4;
/// The longest header value that is kept; a call with a longer one is not ended from here.
const MAX_VALUE: usize = 2048;

/// How long a callee waits for the ACK of its 2xx, after which it hangs up by itself (64 * T1, RFC 3261 sections
/// 13.3.1.4 and 15).
const NO_ACK: Duration = Duration::from_secs(32);

/// What is remembered of calls.
#[derive(Debug, Default)]
pub(super) struct Dialogs {
    /// Calls; none where nothing is to be remembered.
    limit: usize,
    by_session: HashMap<SessionRef, Vec<Dialog>>,
    /// Calls that end with their ACK, and until when it may come.
    ending: VecDeque<(Instant, SessionRef)>,
}

#[derive(Debug)]
struct Dialog {
    caller: Caller,
    /// To of what the caller sends, with its tag.
    to: Box<[u8]>,
    callee: End,
    /// The 2xx was acknowledged.
    acknowledged: bool,
    /// It ends as soon as it is.
    ends: bool,
}

/// Why a call is ended from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// Its relay has heard nothing for too long.
    MediaTimeout,
    /// Its relay has failed before there were any media.
    RelayLost,
}

impl Ending {
    /// A Reason (RFC 3326), with causes of ITU-T Q.850: "recovery on timer expiry", "temporary failure".
    const fn reason(self) -> &'static [u8] {
        match self {
            Self::MediaTimeout => b"Q.850;cause=102;text=\"media timeout\"",
            Self::RelayLost => b"Q.850;cause=41;text=\"media relay lost\"",
        }
    }
}

/// What all dialogs of a call have in common.
#[derive(Debug, Clone)]
struct Caller {
    cookie: DialogCookie,
    call_id: Box<[u8]>,
    /// From of what the caller sends.
    from: Box<[u8]>,
    end: End,
    /// Record-Route values of the INVITE as we sent it.
    recorded: usize,
}

/// One party.
#[derive(Debug, Clone)]
struct End {
    /// Where it wants requests.
    target: Box<[u8]>,
    /// The proxies between us and it, as one Route value.
    routes: Box<[u8]>,
    /// Of its last request; 0 before the first.
    cseq: u32,
}

impl Dialogs {
    pub(super) fn len(&self) -> usize {
        self.by_session.len()
    }

    fn find(&mut self, session: SessionRef, callee_tag: &[u8]) -> Option<&mut Dialog> {
        let dialogs = self.by_session.get_mut(&session)?;
        dialogs.iter_mut().find(|dialog| dialog.is(callee_tag))
    }

    /// True where there is room for this dialog, which is not there yet.
    fn takes(&self, session: SessionRef, callee_tag: &[u8]) -> bool {
        match self.by_session.get(&session) {
            Some(known) => {
                known.len() < MAX_DIALOGS && !known.iter().any(|known| known.is(callee_tag))
            }
            None => self.by_session.len() < self.limit,
        }
    }
}

impl Dialog {
    /// The dialog that a 2xx makes.
    fn new(caller: Caller, response: &Message) -> Option<Self> {
        // The caller's route set is the Record-Route in reverse order (12.1.2); what the proxies
        // behind us have put before ours is our way to the callee.
        let all = record_routes(response);
        let behind = all.len().checked_sub(caller.recorded)?;
        let mut routes = all.get(..behind)?.to_vec();
        routes.reverse();
        Some(Self {
            to: kept(response.header(HeaderName::To)?)?,
            callee: End {
                target: target(response, &caller.cookie.callee)?,
                routes: kept(&routes.join(&b", "[..]))?,
                cseq: 0,
            },
            caller,
            acknowledged: false,
            ends: false,
        })
    }

    fn is(&self, callee_tag: &[u8]) -> bool {
        NameAddr::parse(&self.to).is_ok_and(|to| to.tag() == Some(callee_tag))
    }

    const fn end(&mut self, party: Party) -> &mut End {
        match party {
            Party::Caller => &mut self.caller.end,
            Party::Callee => &mut self.callee,
        }
    }
}

impl Proxy {
    /// Keeps what [`Proxy::end_call`] needs to know of at most so many calls with a media session.
    pub fn remember_dialogs(&mut self, calls: usize) {
        self.dialogs.limit = calls;
    }

    /// Calls that could be ended from here.
    pub fn remembered(&self) -> usize {
        self.dialogs.len()
    }

    /// Ends a call: a BYE to each of its parties. False where it is not known.
    pub fn end_call(&mut self, session: SessionRef, media: &mut dyn Media, now: Instant) -> bool {
        let ended = self.hang_up(session, Ending::MediaTimeout, now);
        self.drain(media, now);
        ended
    }

    fn hang_up(&mut self, session: SessionRef, why: Ending, now: Instant) -> bool {
        let Some(dialogs) = self.dialogs.by_session.remove(&session) else {
            return false;
        };
        for dialog in &dialogs {
            for party in [Party::Caller, Party::Callee] {
                self.send_bye(dialog, party, why, now);
            }
        }
        if let (Ending::RelayLost, Some(Dialog { caller, .. })) = (why, dialogs.first()) {
            self.journal_relay_lost(&caller.call_id, &caller.from);
        }
        self.counters.hung_up += 1;
        true
    }

    /// A call that has lost its relay ends: now, or when its 2xx is acknowledged, before which the
    /// callee must not hang up (section 15). An ACK that does not come by here ends nothing, so a time does.
    pub(super) fn end_after_ack(&mut self, session: SessionRef, now: Instant) {
        let Some(dialogs) = self.dialogs.by_session.get_mut(&session) else {
            return;
        };
        for dialog in dialogs.iter_mut() {
            dialog.ends = true;
        }
        if dialogs.iter().any(|dialog| dialog.acknowledged) {
            self.hang_up(session, Ending::RelayLost, now);
        } else {
            self.dialogs.ending.push_back((now + NO_ACK, session));
        }
    }

    /// When a call that has lost its relay ends without an ACK.
    pub(super) fn next_ending(&self) -> Option<(Instant, &'static str)> {
        let (at, _) = self.dialogs.ending.front()?;
        Some((*at, "call ends without an ACK"))
    }

    /// Ends calls whose ACK has not come.
    pub(super) fn end_without_ack(&mut self, now: Instant) {
        while let Some(&(at, session)) = self.dialogs.ending.front()
            && at <= now
        {
            self.dialogs.ending.pop_front();
            let dialogs = self.dialogs.by_session.get(&session);
            if dialogs.is_some_and(|dialogs| dialogs.iter().any(|dialog| dialog.ends)) {
                self.hang_up(session, Ending::RelayLost, now);
            }
        }
    }

    /// The ACK of a 2xx has passed.
    pub(super) fn note_ack(
        &mut self,
        ack: &Message,
        cookie: &DialogCookie,
        party: Party,
        now: Instant,
    ) {
        let Some(session) = SessionRef::of(cookie) else {
            return;
        };
        let tag = callee_tag(ack, party);
        let Some(dialog) = self.dialogs.find(session, &tag) else {
            return;
        };
        dialog.acknowledged = true;
        if dialog.ends {
            self.hang_up(session, Ending::RelayLost, now);
        }
    }

    /// The call is not ended from here any more.
    pub fn forget_call(&mut self, session: SessionRef) {
        self.dialogs.by_session.remove(&session);
    }

    /// A 2xx makes a call that has a session.
    pub(super) fn remember_dialog(&mut self, server: ServerId, index: usize, response: &Message) {
        if self.dialogs.limit == 0 {
            return;
        }
        let Some(context) = self.contexts.get(&server) else {
            return;
        };
        let branch = context.branches.get(index);
        let Some((branch, session)) =
            branch.and_then(|branch| Some((branch, branch.own_session()?)))
        else {
            return;
        };
        let tag = response
            .to()
            .ok()
            .and_then(|to| to.tag().map(<[u8]>::to_vec));
        let Some(tag) = tag else { return };
        if !self.dialogs.takes(session, &tag) {
            self.counters.not_remembered +=
                u64::from(!self.dialogs.by_session.contains_key(&session));
            return;
        }
        let first = self
            .dialogs
            .by_session
            .get(&session)
            .and_then(|known| known.first());
        let caller = match first {
            Some(dialog) => Some(dialog.caller.clone()),
            None => self.caller_of(&context.request, &branch.request),
        };
        match caller.and_then(|caller| Dialog::new(caller, response)) {
            Some(dialog) => {
                let dialogs = self.dialogs.by_session.entry(session);
                // Nearly every call has one.
                dialogs
                    .or_insert_with(|| Vec::with_capacity(1))
                    .push(dialog);
            }
            None => self.counters.not_remembered += 1,
        }
    }

    /// The caller's half of a dialog, of the INVITE as it came and as it was sent.
    fn caller_of(&self, came: &Message, sent: &Message) -> Option<Caller> {
        let own = sent.values(HeaderName::RecordRoute).next()?;
        let own = NameAddr::parse(&own).ok()?.parse_uri().ok()?.user?.to_vec();
        let cookie = self.config.keys.open(&own).ok()?;
        let (cseq, _) = came.cseq().ok()?;
        Some(Caller {
            call_id: kept(came.header(HeaderName::CallId)?)?,
            from: kept(came.header(HeaderName::From)?)?,
            end: End {
                target: target(came, &cookie.caller)?,
                // The callee's route set is the Record-Route in order (12.1.1); ours is first in it.
                routes: kept(&record_routes(came).join(&b", "[..]))?,
                cseq,
            },
            recorded: record_routes(sent).len(),
            cookie,
        })
    }

    /// A request of a dialog passes.
    pub(super) fn note_request(&mut self, request: &Message, cookie: &DialogCookie, party: Party) {
        let Some(session) = SessionRef::of(cookie) else {
            return;
        };
        let Ok((number, _)) = request.cseq() else {
            return;
        };
        let tag = callee_tag(request, party);
        if let Some(dialog) = self.dialogs.find(session, &tag) {
            let end = dialog.end(party);
            end.cseq = end.cseq.max(number);
        }
    }

    /// "When a UAC … receives a 2xx response to a target refresh request, it MUST replace the
    /// dialog's remote target URI" (12.2.1.2), and so does the UAS (12.2.2).
    pub(super) fn refresh_targets(&mut self, server: ServerId, response: &Message) {
        let Some(context) = self.contexts.get(&server) else {
            return;
        };
        let Some((cookie, party)) = &context.dialog else {
            return;
        };
        let refreshes = matches!(context.request.method(), Method::Invite | Method::Update);
        let Some(session) = SessionRef::of(cookie).filter(|_| refreshes) else {
            return;
        };
        let tag = callee_tag(&context.request, *party);
        let Some(dialog) = self.dialogs.find(session, &tag) else {
            return;
        };
        for (message, party) in [(&context.request, *party), (response, party.other())] {
            if let Some(contact) = contact(message) {
                dialog.end(party).target = contact;
            }
        }
    }

    /// A BYE of `party` has ended its dialog.
    pub(super) fn forget_dialog(&mut self, bye: &Message, party: Party, session: SessionRef) {
        let tag = callee_tag(bye, party);
        if let Some(dialogs) = self.dialogs.by_session.get_mut(&session) {
            dialogs.retain(|dialog| !dialog.is(&tag));
            if dialogs.is_empty() {
                self.dialogs.by_session.remove(&session);
            }
        }
    }

    /// A BYE to `party`, in the name of the other.
    fn send_bye(&mut self, dialog: &Dialog, party: Party, why: Ending, now: Instant) {
        let Dialog {
            caller, to, callee, ..
        } = dialog;
        let DialogCookie {
            names: [caller_name, callee_name],
            ..
        } = caller.cookie;
        let (flow, name, receiver, sender) = match party {
            Party::Caller => (caller.cookie.caller, caller_name, &caller.end, callee),
            Party::Callee => (caller.cookie.callee, callee_name, callee, &caller.end),
        };
        let flow = self.registrar.moved(name, &flow).unwrap_or(flow);
        let (local, remote) = match party {
            Party::Caller => (to, &caller.from),
            Party::Callee => (&caller.from, to),
        };
        let cseq = sender.cseq.saturating_add(1);
        let branch = self.config.keys.branch(&BranchOf {
            incoming: [
                b"bye ".as_slice(),
                &caller.call_id,
                local,
                remote,
                &cseq.to_be_bytes(),
            ]
            .concat(),
            target: receiver.target.to_vec(),
            route: Vec::new(),
        });
        let mut via = format!("SIP/2.0/{} ", flow.transport.via_name()).into_bytes();
        push_address(&mut via, flow.local);
        via.extend_from_slice(b";rport;branch=");
        via.extend_from_slice(branch.as_bytes());
        let bye = Bye {
            uri: &receiver.target,
            via: &via,
            routes: &receiver.routes,
            from: local,
            to: remote,
            call_id: &caller.call_id,
            cseq,
            reason: why.reason(),
        };
        // Its answer is of no interest, and where the table is full the party finds out by itself.
        let _ = self.transactions.send_request(&bye.build(), flow, now);
    }
}

fn record_routes(message: &Message) -> Vec<Vec<u8>> {
    let values = message.values(HeaderName::RecordRoute);
    values.map(std::borrow::Cow::into_owned).collect()
}

/// A copy, of what is not too long to be kept.
fn kept(value: &[u8]) -> Option<Box<[u8]>> {
    (value.len() <= MAX_VALUE).then(|| value.into())
}

fn contact(message: &Message) -> Option<Box<[u8]>> {
    let contact = message.contacts().next()?.ok()?;
    kept(&request_uri_of(&bytes::Bytes::copy_from_slice(contact.uri)))
}

/// Where a party wants requests: its Contact, or where it is if it has not given one.
fn target(message: &Message, flow: &Flow) -> Option<Box<[u8]>> {
    if message.contacts().next().is_some() {
        return contact(message);
    }
    kept(format!("sip:{}", flow.peer).as_bytes())
}

/// The callee's tag in a request of `party`.
fn callee_tag(request: &Message, party: Party) -> Vec<u8> {
    let callee = match party {
        Party::Caller => request.to(),
        Party::Callee => request.from(),
    };
    let callee = callee.as_ref().ok().and_then(|callee| callee.tag());
    callee.unwrap_or_default().to_vec()
}
