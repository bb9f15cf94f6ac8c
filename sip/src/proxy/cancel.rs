//! CANCEL processing (RFC 3261 section 16.10) and Timer C (16.8).

use std::time::Instant;

use super::media::Media;
use super::route::Named;
use super::{Progress, Proxy};
use crate::hop::Hop;
use crate::message::{Message, Method};
use crate::transaction::{ClientId, ServerId};

impl Proxy {
    /// A CANCEL for an INVITE of ours, or for none.
    pub(super) fn handle_cancel(
        &mut self,
        request: &Message,
        hop: &Hop,
        cancel: ServerId,
        invite: Option<ServerId>,
        now: Instant,
    ) {
        let Some(invite) = invite else {
            return self.cancel_statelessly(request, hop, cancel, now);
        };
        if !self.may_cancel(request, hop, invite) {
            self.counters.foreign_cancels += 1;
            self.respond(cancel, request, 481, "Call/Transaction Does Not Exist", now);
            // A stranger's must not stand in the way of the caller's own, which has the same key.
            self.transactions.abandon_server(cancel);
            return;
        }
        self.respond(cancel, request, 200, "OK", now);
        self.journal_cancel(invite);
        self.cancel_all(invite, now);
    }

    /// A CANCEL cannot be challenged (section 22.1), so it is believed by where it comes from: the
    /// address that the INVITE came from, on whatever port and by whatever edge, as a NAT may have
    /// bound it anew; or from anywhere with the cookie of the dialog that the INVITE belongs to.
    fn may_cancel(&mut self, request: &Message, hop: &Hop, invite: ServerId) -> bool {
        let came_from = self.transactions.server_flow(invite);
        if came_from.is_some_and(|flow| flow.peer.ip() == hop.flow.peer.ip()) {
            return true;
        }
        let Some((dialog, _)) = self
            .contexts
            .get(&invite)
            .and_then(|context| context.dialog)
        else {
            return false;
        };
        let (_, named) = self.take_own_routes(request);
        matches!(named, Some(Named::Dialog(found)) if found == dialog)
    }

    /// Cancels every branch that still waits for a final response; targets that were not tried
    /// yet will not be.
    pub(super) fn cancel_all(&mut self, server: ServerId, now: Instant) {
        if let Some(request) = self.stop_waiting(server) {
            self.respond(server, &request, 487, "Request Terminated", now);
            return;
        }
        let Some(context) = self.contexts.get_mut(&server) else {
            return;
        };
        context.rest = None;
        for index in 0..context.branches.len() {
            self.cancel_branch(server, index, now);
        }
    }

    /// Cancels one branch: at once if it has answered provisionally, else as soon as it does
    /// (section 9.1).
    pub(super) fn cancel_branch(&mut self, server: ServerId, index: usize, now: Instant) {
        let Some(context) = self.contexts.get_mut(&server) else {
            return;
        };
        let Some(branch) = context.branches.get_mut(index) else {
            return;
        };
        if branch.request.method() != Method::Invite {
            return;
        }
        match branch.progress {
            Progress::Calling { .. } => branch.progress = Progress::Calling { cancel: true },
            Progress::Proceeding { cancelled: false } => {
                branch.progress = Progress::Proceeding { cancelled: true };
                let (client, flow) = (branch.client, branch.flow);
                let cancel = branch.request.cancel_for();
                // Its answer is of no interest: the INVITE's own final response decides.
                let _ = self.transactions.send_request(&cancel, flow, now);
                // "the client … SHOULD consider the original transaction cancelled" after 64*T1.
                self.restart_timer_c(client, now + 64 * self.config.timers.t1);
            }
            Progress::Proceeding { cancelled: true } | Progress::Done => {}
        }
    }

    /// A branch that rang and did not even confirm its CANCEL may be a call by now.
    fn leave_session(
        &mut self,
        server: ServerId,
        index: usize,
        media: &mut dyn Media,
        now: Instant,
    ) {
        let context = self.contexts.get_mut(&server);
        let Some(context) = context.filter(|context| context.dialog.is_none()) else {
            return;
        };
        let branch = context.branches.get_mut(index);
        if let Some(session) = branch.and_then(|branch| branch.session.take()) {
            media.unsettled(session, now);
        }
    }

    pub(super) fn start_timer_c(&mut self, client: ClientId, at: Instant) {
        self.timer_c.insert((at, client));
        self.timer_c_of.insert(client, at);
    }

    /// Moves Timer C of a branch that has one.
    pub(super) fn restart_timer_c(&mut self, client: ClientId, at: Instant) {
        if self.stop_timer_c(client) {
            self.start_timer_c(client, at);
        }
    }

    /// True if it was running.
    pub(super) fn stop_timer_c(&mut self, client: ClientId) -> bool {
        match self.timer_c_of.remove(&client) {
            Some(at) => self.timer_c.remove(&(at, client)),
            None => false,
        }
    }

    /// A branch that rings is cancelled; one that is silent, or stays silent after its CANCEL, is
    /// given up as if it had answered 408.
    pub(super) fn fire_timer_c(&mut self, media: &mut dyn Media, now: Instant) {
        while let Some(&(at, client)) = self.timer_c.first() {
            if at > now {
                return;
            }
            let Some(&(server, index)) = self.by_client.get(&client) else {
                self.stop_timer_c(client);
                continue;
            };
            let progress = self
                .contexts
                .get(&server)
                .and_then(|context| context.branches.get(index))
                .map(|branch| branch.progress);
            if progress == Some(Progress::Proceeding { cancelled: false }) {
                self.cancel_branch(server, index, now);
            } else {
                if progress == Some(Progress::Proceeding { cancelled: true }) {
                    self.leave_session(server, index, media, now);
                }
                self.stop_timer_c(client);
                self.transactions.abandon(client);
                if self.retry_over_udp(client, now) {
                    continue;
                }
                self.branch_failed(client, 408, "Request Timeout", media, now);
            }
        }
    }
}
