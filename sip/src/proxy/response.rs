//! Response processing (RFC 3261 section 16.7): which of the branches' answers reach the caller.

use std::net::SocketAddr;
use std::time::Instant;

use super::media::{CallMessage, Media, Party, Refusal, SessionRef};
use super::{Progress, Proxy};
use crate::hop::{Flow, Hop};
use crate::message::{HeaderName, Message, Method};
use crate::registrar::ping::is_ping;
use crate::text::digits;
use crate::transaction::{ClientId, Outgoing, ServerId};

/// A challenge of one branch: whose it is, the header and its value.
pub(super) type Challenge = (usize, HeaderName, Vec<u8>);

/// Challenges that one response may add to another; a phone has no use for more.
const MAX_CHALLENGES: usize = 8;

impl Proxy {
    /// A copy of a matched response goes on from here.
    pub(super) fn handle_response(
        &mut self,
        response: &Message,
        hop: &Hop,
        media: &mut dyn Media,
        now: Instant,
    ) {
        if response.check().is_err() {
            self.counters.malformed_responses += 1;
            return;
        }
        if let Some(branch) = ping_branch(response) {
            return self.registrar.handle_ping_answer(&branch, hop, now);
        }
        // "If the value of the "sent-by" parameter … does not correspond to a value that the client
        // transport is configured to insert into requests, the response MUST be silently discarded"
        // (18.1.2).
        if !self.is_sent_by_us(response, hop.flow.local) {
            self.counters.unmatched_responses += 1;
            return;
        }
        match self.transactions.handle_response(response, now) {
            Outgoing::Pass(client) => self.pass_response(client, response, hop, media, now),
            Outgoing::Absorbed => {}
            Outgoing::Unmatched => self.pass_statelessly(response, hop, media, now),
        }
    }

    /// True where the top Via is one of ours: the address that the response came to, or, over a
    /// connection that we opened from a port of its own, one that we listen at.
    fn is_sent_by_us(&self, response: &Message, local: SocketAddr) -> bool {
        response.top_via().is_ok_and(|via| {
            let port = via.port.unwrap_or(5060);
            via.host.ip().is_some_and(|ip| {
                SocketAddr::new(ip, port) == local || self.is_our_address(ip, Some(port))
            })
        })
    }

    /// A response that its client transaction passes up.
    pub(super) fn pass_response(
        &mut self,
        client: ClientId,
        response: &Message,
        hop: &Hop,
        media: &mut dyn Media,
        now: Instant,
    ) {
        // A CANCEL of ours has no context: its answer ends here, as that of a probe does.
        let Some(&(server, index)) = self.by_client.get(&client) else {
            self.probe_answered(client, response.status().unwrap_or_default());
            return;
        };
        // Without the caller's Via there is nobody to send it to (16.7 step 3). The branch is over
        // when its target has said its last word, however badly.
        if !response.has_several_vias() {
            self.counters.malformed_responses += 1;
            if response.status().is_some_and(|status| status >= 200) {
                self.branch_failed(client, 502, "Bad Gateway", media, now);
            }
            return;
        }
        self.note_heard_over_tcp(server, index, now);
        self.adopt_session(server, index, response, media, now);
        match response.status().unwrap_or_default() {
            100..=199 => self.pass_provisional(server, index, response, hop, media, now),
            200..=299 => self.pass_success(server, index, response, hop, media, now),
            _ => {
                self.note_reached(server, index, response.status());
                let response =
                    without_own_via(response, None, self.transactions.server_flow(server));
                self.finish_branch(server, index, response, media, now);
            }
        }
    }

    /// A next hop that answers what it got over TCP for its length takes TCP.
    fn note_heard_over_tcp(&mut self, server: ServerId, index: usize, now: Instant) {
        let context = self.contexts.get(&server);
        let branch = context.and_then(|context| context.branches.get(index));
        if let Some(branch) = branch.filter(|branch| branch.instead_of_udp) {
            self.note_tcp_works(branch.flow.peer, now);
        }
    }

    /// A branch that ended without an answer from its target.
    pub(super) fn branch_failed(
        &mut self,
        client: ClientId,
        status: u16,
        reason: &str,
        media: &mut dyn Media,
        now: Instant,
    ) {
        let Some(&(server, index)) = self.by_client.get(&client) else {
            return;
        };
        let Some(context) = self.contexts.get(&server) else {
            return;
        };
        let tag = self.to_tag(&context.request);
        let response = context.request.respond(status, reason).to_tag(tag).build();
        self.finish_branch(server, index, response, media, now);
    }

    /// A failure that the user agent itself has sent. 430 says that a flow to it has failed (RFC
    /// 5626 section 11.5), 408 and 503 that somebody on the way could not reach it.
    fn note_reached(&mut self, server: ServerId, index: usize, status: Option<u16>) {
        let context = self.contexts.get_mut(&server);
        if let Some(branch) = context.and_then(|context| context.branches.get_mut(index)) {
            branch.reached = !matches!(status, Some(408 | 430 | 503));
        }
    }

    fn pass_provisional(
        &mut self,
        server: ServerId,
        index: usize,
        response: &Message,
        hop: &Hop,
        media: &mut dyn Media,
        now: Instant,
    ) {
        let Some(branch) = self
            .contexts
            .get_mut(&server)
            .and_then(|context| context.branches.get_mut(index))
        else {
            return;
        };
        let client = branch.client;
        let invite = branch.request.method() == Method::Invite;
        let cancel_now = branch.progress == Progress::Calling { cancel: true };
        let impatient = branch.patience.is_some();
        if matches!(branch.progress, Progress::Calling { .. }) {
            branch.progress = Progress::Proceeding { cancelled: false };
        }
        // The next hop is there: from now on it has the time that everybody has.
        match (impatient, invite) {
            (true, true) => self.restart_timer_c(client, now + self.config.timer_c),
            (true, false) => drop(self.stop_timer_c(client)),
            (false, _) => {}
        }
        if cancel_now {
            self.cancel_branch(server, index, now);
        }
        // "MUST NOT send any provisional response with a Status-Code other than 100 to a
        // non-INVITE request" (RFC 4320 section 4.1).
        if response.status() == Some(100) || !invite {
            return;
        }
        let progress = self
            .contexts
            .get(&server)
            .and_then(|context| context.branches.get(index))
            .map(|branch| branch.progress);
        // A branch that was cancelled has its last deadline, however long it goes on ringing.
        if progress == Some(Progress::Proceeding { cancelled: false }) {
            self.restart_timer_c(client, now + self.config.timer_c);
        }
        self.send_upstream(server, index, response, hop, media, now);
    }

    fn pass_success(
        &mut self,
        server: ServerId,
        index: usize,
        response: &Message,
        hop: &Hop,
        media: &mut dyn Media,
        now: Instant,
    ) {
        let Some(context) = self.contexts.get_mut(&server) else {
            return;
        };
        let Some(branch) = context.branches.get_mut(index) else {
            return;
        };
        let first = branch.progress != Progress::Done;
        branch.progress = Progress::Done;
        let new_call = context.dialog.is_none();
        let (client, session) = (branch.client, branch.own_session());
        let media_lost = branch.media_lost;
        let orphan = context.orphan;
        let invite = context.invite;
        let late = context.decided && !invite;
        context.decided = true;
        self.stop_timer_c(client);
        if late {
            return self.forget_if_done(server);
        }
        if orphan && invite && new_call {
            // Nobody is left who could acknowledge it.
            if let (true, Some(session)) = (first, session) {
                media.ended(session, now);
            }
            return self.forget_if_done(server);
        }
        if first && invite && new_call {
            self.counters.answered += 1;
            if let Some(session) = session {
                media.answered(session, now);
            }
        }
        if invite && new_call {
            // A 200 that is repeated may come after the BYE.
            if session.is_some_and(|session| media.holds(session)) {
                self.remember_dialog(server, index, response);
            }
            self.journal_answerer(server, hop, session);
            if let (true, Some(session)) = (media_lost, session) {
                self.end_after_ack(session, now);
            }
        } else if first {
            self.refresh_targets(server, response);
        }
        self.send_upstream(server, index, response, hop, media, now);
        if first {
            self.end_call_after_bye(server, response.status(), media, now);
            self.cancel_all(server, now);
        }
        self.forget_if_done(server);
    }

    /// A non-2xx final response: kept if it is the best so far, and sent when it is the last.
    fn finish_branch(
        &mut self,
        server: ServerId,
        index: usize,
        response: Message,
        media: &mut dyn Media,
        now: Instant,
    ) {
        let Some(context) = self.contexts.get_mut(&server) else {
            return;
        };
        let Some(branch) = context.branches.get_mut(index) else {
            return;
        };
        if branch.progress == Progress::Done {
            return;
        }
        branch.progress = Progress::Done;
        let (client, session) = (branch.client, branch.own_session());
        if let (Some(session), None) = (session, &context.dialog) {
            media.ended(session, now);
        }
        let response = if branch.media_lost {
            self.as_lost(server, response)
        } else {
            response
        };
        let Some(context) = self.contexts.get_mut(&server) else {
            return;
        };
        let status = response.status().unwrap_or_default();
        let declined_by_all = status >= 600;
        if let Some(rest) = &context.rest {
            if !rest.is_worth_trying_after(status) {
                context.rest = None;
            } else if rest.fail_on.is_some() {
                self.counters.routing.fail_overs += 1;
            }
        }
        context.challenges.extend(challenges(index, &response));
        if context
            .best
            .as_ref()
            .is_none_or(|(_, best)| rank(&response) < rank(best))
        {
            context.best = Some((index, response));
        }
        self.stop_timer_c(client);
        if declined_by_all {
            self.cancel_all(server, now);
        }
        self.send_best(server, media, now);
        self.forget_if_done(server);
    }

    /// A target that is sent nothing because of the media: what we say counts as its answer.
    pub(super) fn note_refusal(&mut self, server: ServerId, refusal: Refusal) {
        let Some(context) = self.contexts.get(&server) else {
            return;
        };
        let (status, reason) = refusal.status();
        let response = context
            .request
            .respond(status, reason)
            .to_tag(self.to_tag(&context.request))
            .header("Warning", &refusal.warning())
            .build();
        if let Some(context) = self.contexts.get_mut(&server)
            && context.best.is_none()
        {
            context.best = Some((usize::MAX, response));
        }
    }

    /// Once every branch is done: tries the next targets, or sends the best response (16.7 step 6).
    fn send_best(&mut self, server: ServerId, media: &mut dyn Media, now: Instant) {
        let Some(context) = self.contexts.get_mut(&server) else {
            return;
        };
        let waiting = context
            .branches
            .iter()
            .any(|branch| branch.progress != Progress::Done);
        if context.decided || waiting || self.next_group(server, media, now) {
            return;
        }
        let Some(context) = self.contexts.get_mut(&server) else {
            return;
        };
        context.decided = true;
        let Some((index, best)) = context.best.take() else {
            return;
        };
        let branch = context.branches.get(index);
        let own_flow = branch.is_some_and(|branch| !branch.instance.is_empty());
        let own_relay = branch.is_some_and(|branch| branch.media_lost);
        let best = with_challenges(&best, index, std::mem::take(&mut context.challenges));
        let status = best.status();
        self.undo_offer(server, media, now);
        self.end_call_after_bye(server, status, media, now);
        let Some(context) = self.contexts.get(&server) else {
            return;
        };
        match status {
            // A 408 to a non-INVITE comes too late for anybody to use (RFC 4320 section 4.2).
            Some(408) if !context.invite => {
                self.transactions.abandon_server(server);
            }
            // A 503 speaks of the next hop, not of us (16.7 step 6).
            Some(503) if !own_relay => {
                let request = context.request.clone();
                self.respond(server, &request, 500, "Server Internal Error", now);
            }
            // "Endpoints should never receive a 430" (RFC 5626 section 11.5): the flows that it
            // is about are ours to know.
            Some(430) if own_flow => {
                let request = context.request.clone();
                self.respond(server, &request, 480, "Temporarily Unavailable", now);
            }
            _ => self.respond_with(server, &best, now),
        }
    }

    fn send_upstream(
        &mut self,
        server: ServerId,
        index: usize,
        response: &Message,
        hop: &Hop,
        media: &mut dyn Media,
        now: Instant,
    ) {
        let Some(context) = self.contexts.get(&server) else {
            return;
        };
        let party = context
            .dialog
            .as_ref()
            .map_or(Party::Callee, |(_, party)| party.other());
        let branch = context.branches.get(index);
        let session = branch.and_then(|branch| branch.session);
        let seen = match (session, branch) {
            (Some(session), Some(branch)) => {
                branch.passes_again
                    || context.dialog.is_none() && self.passed_here(server, response, session)
            }
            _ => true,
        };
        let body = session.filter(|_| !seen).and_then(|session| {
            let message = CallMessage {
                message: response,
                from: hop,
                party,
                session,
                caller_side: None,
            };
            // No response is refused.
            media.rewrite(&message, now).unwrap_or_default()
        });
        let to = self.transactions.server_flow(server);
        let response = without_own_via(response, body, to);
        self.respond_with(server, &response, now);
    }

    /// A request within a dialog has failed, and with it its offer.
    fn undo_offer(&self, server: ServerId, media: &mut dyn Media, now: Instant) {
        if let Some(context) = self.contexts.get(&server)
            && let Some((cookie, party)) = &context.dialog
            && let Some(session) = SessionRef::of(cookie)
            && !self.media_done(&context.request)
        {
            media.refused(&context.request, *party, session, now);
        }
    }

    /// A BYE ends its dialog whatever its answer, unless it must be sent again with credentials.
    fn end_call_after_bye(
        &mut self,
        server: ServerId,
        status: Option<u16>,
        media: &mut dyn Media,
        now: Instant,
    ) {
        let Some(context) = self.contexts.get(&server) else {
            return;
        };
        let challenged = matches!(status, Some(401 | 407));
        if context.request.method() != Method::Bye || challenged {
            return;
        }
        if let Some((cookie, party)) = &context.dialog
            && let Some(session) = SessionRef::of(cookie)
        {
            if let Some(far) = SessionRef::far_of(cookie) {
                media.hung_up_far(far, now);
            }
            media.hung_up(&context.request, *party, session, now);
            let (bye, party) = (context.request.clone(), *party);
            self.forget_dialog(&bye, party, session);
        }
    }
}

/// The branch of a response to a ping.
fn ping_branch(response: &Message) -> Option<Vec<u8>> {
    let via = response.top_via().ok()?;
    let branch = via.branch().filter(|branch| is_ping(branch))?;
    Some(branch.to_vec())
}

/// The response as its receiver at `to` gets it: on a stream it needs a length (18.3).
pub(super) fn without_own_via(
    response: &Message,
    body: Option<Vec<u8>>,
    to: Option<Flow>,
) -> Message {
    let mut edit = response.edit();
    edit.remove_first_value(HeaderName::Via);
    let on_stream = to.is_some_and(|to| to.transport.is_reliable());
    if let Some(body) = body {
        edit.set_body(body);
    } else if on_stream && response.count(HeaderName::ContentLength) == 0 {
        edit.set(
            HeaderName::ContentLength,
            digits(response.body().len() as u64),
        );
    }
    edit.finish()
}

/// The challenges of a 401 or 407.
fn challenges(index: usize, response: &Message) -> Vec<Challenge> {
    if !matches!(response.status(), Some(401 | 407)) {
        return Vec::new();
    }
    let names = [HeaderName::WwwAuthenticate, HeaderName::ProxyAuthenticate];
    response
        .headers()
        .filter(|field| names.contains(&field.name))
        .map(|field| (index, field.name, field.value.to_vec()))
        .take(MAX_CHALLENGES)
        .collect()
}

/// "the proxy MUST collect any WWW-Authenticate and Proxy-Authenticate header field values from
/// all other 401 (Unauthorized) and 407 (Proxy Authentication Required) responses" (16.7 step 7).
fn with_challenges(best: &Message, index: usize, challenges: Vec<Challenge>) -> Message {
    let mut others = challenges
        .into_iter()
        .filter(|(branch, ..)| *branch != index)
        .peekable();
    if !matches!(best.status(), Some(401 | 407)) || others.peek().is_none() {
        return best.clone();
    }
    let mut edit = best.edit();
    for (_, name, value) in others.take(MAX_CHALLENGES) {
        edit.append(name, value);
    }
    edit.finish()
}

/// Which final response is best: smaller is better (16.7 step 6).
fn rank(response: &Message) -> u16 {
    match response.status().unwrap_or(500) {
        600.. => 0,
        300..=399 => 1,
        // Answers that tell the caller how to try again.
        401 | 407 | 415 | 420 | 484 => 2,
        400..=499 => 3,
        _ => 4,
    }
}
