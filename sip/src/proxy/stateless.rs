//! Messages of transactions that this core never saw: another core with the same keys forwarded
//! the request, and is gone.
//!
//! * A response finds its way by the signed cookie in our Via (RFC 3261 section 16.11). RFC 6026
//!   section 7.3 forbids to pass on what no transaction waits for; so a response to a request
//!   that this very core forwarded and has done with is dropped, as is one whose cookie is
//!   missing, forged or old.
//! * A CANCEL and the ACK of a failure go to the targets that their INVITE went to, with the
//!   branches that it had there: both follow from the message, the keys and the bindings ("It MUST
//!   statelessly forward the CANCEL request", section 16.10).
//! * A request that is retransmitted to another core has the branch that it had before, so its
//!   target sees a copy. The first core's media session counts then, and [`Proxy::adopt_session`]
//!   takes it over.
//!
//! Neither CANCEL nor ACK can be challenged. Where users authenticate, those of trunks, of
//! registered phones and of dialogs are sent on, and all others end here.
//!
//! Known limits. One failure of several branches says nothing about the others, and nobody here
//! waits for those: it is dropped, and the caller hears of an answer, of a 6xx, or nothing. A
//! response to a caller on a connection of a core that is gone cannot be delivered.

use std::time::Instant;

use super::forward::{VIA_COOKIE, branch_of, has_to_tag, role_of};
use super::media::{CallMessage, Media, Party, Placement, SessionRef};
use super::response::without_own_via;
use super::route::{Named, Routed};
use super::{Progress, Proxy, Target, validate};
use crate::cookie::{DialogCookie, Role, ViaCookie};
use crate::hop::{Hop, Transmit};
use crate::message::{HeaderName, Message, Method};
use crate::transaction::ServerId;

/// A cookie this old is not used any more: no request waits for its answer for so long.
const MAX_AGE_MINUTES: i16 = 180;
/// How far the clocks of two concentrators may be apart.
const CLOCK_SKEW_MINUTES: i16 = 2;

impl Proxy {
    /// A response that matched no transaction.
    pub(super) fn pass_statelessly(
        &mut self,
        response: &Message,
        hop: &Hop,
        media: &mut dyn Media,
        now: Instant,
    ) {
        let Some(cookie) = self.cookie_of(response) else {
            return;
        };
        let age = self.minutes(now).wrapping_sub(cookie.sent_minutes);
        let fresh = (-CLOCK_SKEW_MINUTES..=MAX_AGE_MINUTES).contains(&age.cast_signed());
        if cookie.owner == self.config.owner || !fresh {
            self.counters.unmatched_responses += 1;
            return;
        }
        if self.hand_over(cookie.owner, response, hop) {
            return;
        }
        let status = response.status().unwrap_or_default();
        if let Some((party, session)) = settle_media(&cookie, response, media, now) {
            self.forget_dialog(response, party, session);
        }
        if !goes_upstream(response.method(), status) {
            return;
        }
        let undecided = cookie.role == Role::Forked && (300..600).contains(&status);
        let connection = cookie.upstream.connection;
        let unreachable = connection.is_some_and(|connection| !self.has_or_reaches(connection));
        if undecided || unreachable || response.vias().nth(1).is_none() {
            self.counters.stateless_dropped += 1;
            return;
        }
        self.counters.stateless_responses += 1;
        let party = match cookie.role {
            Role::Initial | Role::Forked | Role::ByCaller => Party::Callee,
            Role::ByCallee => Party::Caller,
        };
        let body = session_of(&cookie).and_then(|session| {
            let message = CallMessage {
                message: response,
                from: hop,
                party,
                session,
                caller_side: cookie.caller_side,
            };
            media.rewrite(&message, now).unwrap_or_default()
        });
        self.transmits.push_back(Transmit {
            flow: cookie.upstream,
            bytes: without_own_via(response, body, Some(cookie.upstream))
                .bytes()
                .clone(),
        });
    }

    /// The cookie in the top Via of a response; counts why there is none.
    fn cookie_of(&mut self, response: &Message) -> Option<ViaCookie> {
        let via = response.top_via().ok();
        let parts = via.as_ref().and_then(|via| {
            let sent_by = self.sent_by(via)?;
            Some((via.params.get(VIA_COOKIE)?, sent_by, via.branch()?))
        });
        let Some((text, sent_by, branch)) = parts else {
            self.counters.unmatched_responses += 1;
            return None;
        };
        let opened = self.config.keys.open_via(text, sent_by, branch);
        self.counters.forged_responses += u64::from(opened.is_err());
        opened.ok()
    }

    /// The target of an INVITE answers a copy of it that another core sent before us: what counts
    /// is the session in that one.
    pub(super) fn adopt_session(
        &mut self,
        server: ServerId,
        index: usize,
        response: &Message,
        media: &mut dyn Media,
        now: Instant,
    ) {
        let Some(context) = self.contexts.get(&server) else {
            return;
        };
        let Some(branch) = context.branches.get(index) else {
            return;
        };
        let via = response.top_via().ok();
        let echoed = via.as_ref().and_then(|via| via.params.get(VIA_COOKIE));
        let sent = branch.request.header(HeaderName::Via).unwrap_or_default();
        // Where we have put it, it comes last.
        let is_ours =
            |echoed| sent.ends_with(echoed) || memchr::memmem::find(sent, echoed).is_some();
        // An answered request is let go of; what counts was settled by then.
        let settled = context.dialog.is_some() || sent.is_empty();
        if settled || echoed.is_none_or(is_ours) {
            return;
        }
        let Some(cookie) = self.cookie_of(response) else {
            return;
        };
        let branch = self
            .contexts
            .get_mut(&server)
            .and_then(|context| context.branches.get_mut(index));
        let Some(branch) = branch else { return };
        let theirs = session_of(&cookie);
        if cookie.owner == self.config.owner || branch.session == theirs {
            return;
        }
        if let Some(own) = std::mem::replace(&mut branch.session, theirs) {
            media.ended(own, now);
        }
    }

    /// A CANCEL whose INVITE is not known here, by a party that is. Whether there are such targets
    /// is not told: that would say who is registered.
    pub(super) fn cancel_statelessly(
        &mut self,
        request: &Message,
        hop: &Hop,
        cancel: ServerId,
        now: Instant,
    ) {
        let (inner, named) = self.take_own_routes(request);
        let by_route = matches!(named, Some(Named::Dialog(_) | Named::Path(_)));
        let known = by_route || self.is_known(hop);
        let routed = match validate::forwardable(request) {
            Ok(()) if known => self.route(inner, named, hop, now),
            Ok(()) | Err(_) => Routed::Options,
        };
        let (inner, targets, dialog) = match routed {
            Routed::Forward {
                request,
                targets,
                dialog,
            } => (request, targets, dialog),
            Routed::Awaited { .. } | Routed::Refused { status: 404, .. } => {
                (request.clone(), Vec::new(), None)
            }
            // Which next hop the INVITE went to is not known either.
            Routed::Register(_)
            | Routed::Options
            | Routed::WrongScheme
            | Routed::Refused { .. }
            | Routed::Onward { .. } => {
                let response = self.refusal(request, 481, "Call/Transaction Does Not Exist");
                return self.answer_stranger(cancel, request, hop, response);
            }
        };
        self.respond(cancel, request, 200, "OK", now);
        self.counters.stateless_cancels += 1;
        let role = dialog.map_or(Role::Initial, |(_, party)| role_of(party));
        for target in &targets {
            for copy in self.copies(&inner, hop, target, role, now) {
                // Its answer is of no interest: the INVITE's own final response decides.
                let _ = self.transactions.send_request(&copy, target.flow, now);
            }
        }
    }

    /// The ACK of a failure that was not sent from here.
    pub(super) fn acknowledge_statelessly(
        &mut self,
        inner: &Message,
        hop: &Hop,
        targets: &[Target],
        now: Instant,
    ) {
        if !has_to_tag(inner) || !self.is_known(hop) {
            self.counters.stray_acks += 1;
            return;
        }
        self.counters.stateless_acks += 1;
        for target in targets {
            for copy in self.copies(inner, hop, target, Role::Initial, now) {
                self.transmits.push_back(Transmit {
                    flow: target.flow,
                    bytes: copy.bytes().clone(),
                });
            }
        }
    }

    /// The caller acknowledges a failure of an INVITE that is still in progress here: another core
    /// has passed it on. Its target waits for the ACK, and nobody for us.
    pub(super) fn failed_elsewhere(
        &mut self,
        ack: &Message,
        hop: &Hop,
        invite: ServerId,
        media: &mut dyn Media,
        now: Instant,
    ) {
        let flow = self.transactions.server_flow(invite);
        let same_source = flow.is_some_and(|flow| flow.peer.ip() == hop.flow.peer.ip());
        let Some(context) = self.contexts.get_mut(&invite) else {
            return;
        };
        if !same_source || !has_to_tag(ack) {
            self.counters.stray_acks += 1;
            return;
        }
        self.counters.stateless_acks += 1;
        let new_call = context.dialog.is_none();
        let pending = |progress| progress != Progress::Done;
        let mut waiting: Vec<_> = context
            .branches
            .iter_mut()
            .filter(|branch| pending(branch.progress))
            .collect();
        for branch in &waiting {
            self.transmits.push_back(Transmit {
                flow: branch.flow,
                bytes: branch.request.ack_for(ack).bytes().clone(),
            });
        }
        // The only branch is the one that failed. Of several, those that did not are cancelled.
        let mut failed = None;
        if let [branch] = waiting.as_mut_slice() {
            branch.progress = Progress::Done;
            failed = Some((branch.client, branch.session));
        }
        if let Some((client, session)) = failed {
            self.stop_timer_c(client);
            self.transactions.abandon(client);
            if let (Some(session), true) = (session, new_call) {
                media.ended(session, now);
            }
        }
        self.transactions.abandon_server(invite);
    }

    /// A 2xx of an INVITE that is still in progress here is acknowledged, or its caller hangs up: another core has
    /// passed it on, which had no way to us. So the call is or was up, and its INVITE need be neither repeated nor
    /// given up.
    pub(super) fn answered_elsewhere(
        &mut self,
        request: &Message,
        cookie: &DialogCookie,
        media: &mut dyn Media,
        now: Instant,
    ) {
        let Some(invite) = self.invite_of(request) else {
            return;
        };
        let context = self.contexts.get_mut(&invite);
        let Some(context) = context.filter(|context| !context.decided) else {
            return;
        };
        let session = SessionRef::of(cookie);
        let new_call = context.dialog.is_none();
        let found = context.branches.iter_mut().find(|branch| {
            let is_it = match session.filter(|_| new_call) {
                Some(session) => branch.own_session() == Some(session),
                None => true,
            };
            is_it && branch.progress != Progress::Done
        });
        let Some(branch) = found else {
            return;
        };
        branch.progress = Progress::Done;
        let client = branch.client;
        context.decided = true;
        self.counters.answered_elsewhere += 1;
        self.stop_timer_c(client);
        self.transactions.abandon(client);
        if new_call {
            self.counters.answered += 1;
            if let Some(session) = session {
                media.answered(session, now);
            }
        }
        // The other branches are cancelled with it.
        self.transactions.abandon_server(invite);
    }

    /// The copies of a request that must find the transaction of an earlier one: one for each key
    /// that may have made that one's branch. None where the request is in a loop.
    fn copies(
        &mut self,
        inner: &Message,
        hop: &Hop,
        target: &Target,
        role: Role,
        now: Instant,
    ) -> Vec<Message> {
        if self.is_loop(inner) {
            return Vec::new();
        }
        let copy = self.copy(inner, hop, target, role, Placement::default(), now);
        let of = branch_of(inner, target);
        let with = |branch: String| {
            let mut edit = copy.edit();
            let via = self.via(&branch, hop, target, role, (None, None), now);
            edit.replace_first_value(HeaderName::Via, via);
            edit.finish()
        };
        self.config.keys.branches(&of).map(with).collect()
    }
}

fn session_of(cookie: &ViaCookie) -> Option<SessionRef> {
    cookie
        .session
        .map(|(session, relay)| SessionRef { relay, session })
}

/// False for what ends at each hop, and for what RFC 4320 keeps from the sender of a non-INVITE.
fn goes_upstream(method: Method<'_>, status: u16) -> bool {
    match method {
        Method::Invite => status > 100,
        Method::Cancel => false,
        Method::Ack
        | Method::Bye
        | Method::Register
        | Method::Options
        | Method::Prack
        | Method::Update
        | Method::Info
        | Method::Message
        | Method::Subscribe
        | Method::Notify
        | Method::Refer
        | Method::Publish
        | Method::Other(_) => status >= 200 && status != 408,
    }
}

/// What a final response means for the media of its call. Copies of it say the same again. Returns whose BYE
/// it has ended a dialog of what call with.
fn settle_media(
    cookie: &ViaCookie,
    response: &Message,
    media: &mut dyn Media,
    now: Instant,
) -> Option<(Party, SessionRef)> {
    let session = session_of(cookie)?;
    let status = response.status().unwrap_or_default();
    let sender = match cookie.role {
        Role::Initial | Role::Forked => {
            match (response.method(), status) {
                (Method::Invite, 200..300) => media.answered(session, now),
                (Method::Invite, 300..) => media.ended(session, now),
                _ => {}
            }
            return None;
        }
        Role::ByCaller => Party::Caller,
        Role::ByCallee => Party::Callee,
    };
    // A request that is challenged comes again with credentials.
    if response.method() == Method::Bye {
        if status >= 200 && !matches!(status, 401 | 407) {
            media.hung_up(response, sender, session, now);
            return Some((sender, session));
        }
    } else if status >= 300 {
        media.refused(response, sender, session, now);
    }
    None
}
