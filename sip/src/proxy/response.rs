//! Response processing (RFC 3261 section 16.7): which of the branches' answers reach the caller.

use std::time::Instant;

use super::media::{CallMessage, Media, Party, SessionRef};
use super::{Progress, Proxy};
use crate::hop::Hop;
use crate::message::{HeaderName, Message, Method};
use crate::transaction::{ClientId, ServerId};

impl Proxy {
    /// A response that its client transaction passes up.
    pub(super) fn pass_response(
        &mut self,
        client: ClientId,
        response: &Message,
        hop: &Hop,
        media: &mut dyn Media,
        now: Instant,
    ) {
        // A CANCEL of ours has no context: its answer ends here.
        let Some(&(server, index)) = self.by_client.get(&client) else {
            return;
        };
        match response.status().unwrap_or_default() {
            100..=199 => self.pass_provisional(server, index, response, hop, media, now),
            200..=299 => self.pass_success(server, index, response, hop, media, now),
            _ => {
                let response = without_own_via(response, None);
                self.finish_branch(server, index, response, media, now);
            }
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
        let response = context.request.respond(status, reason).to_tag(&tag).build();
        self.finish_branch(server, index, response, media, now);
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
        let cancel_now = branch.progress == Progress::Calling { cancel: true };
        if matches!(branch.progress, Progress::Calling { .. }) {
            branch.progress = Progress::Proceeding { cancelled: false };
        }
        if cancel_now {
            self.cancel_branch(server, index, now);
        }
        if response.status() == Some(100) {
            return;
        }
        if !cancel_now {
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
        let (client, session, new_call) = (branch.client, branch.session, context.dialog.is_none());
        let invite = context.request.method() == Method::Invite;
        if context.decided && !invite {
            return;
        }
        context.decided = true;
        self.stop_timer_c(client);
        if first && invite && new_call {
            self.counters.answered += 1;
            if let Some(session) = session {
                media.answered(session, now);
            }
        }
        self.send_upstream(server, index, response, hop, media, now);
        if first {
            self.end_call_after_bye(server, response.status(), media, now);
            self.cancel_all(server, now);
        }
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
        let (client, session) = (branch.client, branch.session);
        if let (Some(session), None) = (session, &context.dialog) {
            media.ended(session, now);
        }
        let declined_by_all = response.status().is_some_and(|status| status >= 600);
        if context
            .best
            .as_ref()
            .is_none_or(|best| rank(&response) < rank(best))
        {
            context.best = Some(response);
        }
        self.stop_timer_c(client);
        if declined_by_all {
            self.cancel_all(server, now);
        }
        self.send_best(server, media, now);
    }

    /// Sends the best response once every branch is done (16.7 step 6).
    fn send_best(&mut self, server: ServerId, media: &mut dyn Media, now: Instant) {
        let Some(context) = self.contexts.get_mut(&server) else {
            return;
        };
        let waiting = context
            .branches
            .iter()
            .any(|branch| branch.progress != Progress::Done);
        if context.decided || waiting {
            return;
        }
        context.decided = true;
        let Some(best) = context.best.take() else {
            return;
        };
        let status = best.status();
        self.end_call_after_bye(server, status, media, now);
        let Some(context) = self.contexts.get(&server) else {
            return;
        };
        match status {
            // A 408 to a non-INVITE comes too late for anybody to use (RFC 4320 section 4.2).
            Some(408) if context.request.method() != Method::Invite => {
                self.transactions.abandon_server(server);
                self.contexts.remove(&server);
            }
            // A 503 speaks of the next hop, not of us (16.7 step 6).
            Some(503) => {
                let request = context.request.clone();
                self.respond(server, &request, 500, "Server Internal Error", now);
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
        let session = context
            .branches
            .get(index)
            .and_then(|branch| branch.session);
        let body = session.and_then(|session| {
            media.rewrite(
                &CallMessage {
                    message: response,
                    from: hop,
                    party,
                    session,
                },
                now,
            )
        });
        let response = without_own_via(response, body);
        self.respond_with(server, &response, now);
    }

    /// A BYE ends the call whatever its answer, unless it must be sent again with credentials.
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
        if let Some((cookie, _)) = &context.dialog
            && let Some(session) = SessionRef::of(cookie)
        {
            media.ended(session, now);
        }
    }
}

fn without_own_via(response: &Message, body: Option<Vec<u8>>) -> Message {
    let mut edit = response.edit();
    edit.remove_first_value(HeaderName::Via);
    if let Some(body) = body {
        edit.set_body(body);
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
