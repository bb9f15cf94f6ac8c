//! Calls whose relay fails before they have media.
//!
//! A target that rings was told the address of a relay that is no more, and an INVITE cannot be changed.
//! So it is cancelled, and counts as one that has answered 503: the next targets are tried, with a relay
//! of their own, and where there are none the caller is told at once, instead of a call in which nobody
//! hears anything. The same target is not tried again: an INVITE that differs from the first in its branch
//! alone is a merged request to it, which it answers with 482 for as long as it remembers the first (RFC
//! 3261 section 8.2.2.2).
//!
//! A 2xx that crosses the CANCEL makes a call all the same. It is ended with its ACK (`hang_up`), and so
//! is a call that was answered before its relay was known to have failed.

use std::collections::HashSet;
use std::time::Instant;

use super::media::{Media, SessionRef};
use super::{Progress, Proxy};
use crate::message::Message;
use crate::transaction::ServerId;

impl Proxy {
    /// The relays of these calls have failed, and none of them has had media since its answer.
    pub fn handle_media_lost(
        &mut self,
        lost: &HashSet<SessionRef>,
        media: &mut dyn Media,
        now: Instant,
    ) {
        let mut ringing = Vec::new();
        for (&server, context) in self.contexts.iter_mut() {
            if !context.invite || context.dialog.is_some() {
                continue;
            }
            for (index, branch) in context.branches.iter_mut().enumerate() {
                let session = branch.own_session();
                if branch.progress != Progress::Done
                    && session.is_some_and(|session| lost.contains(&session))
                {
                    branch.media_lost = true;
                    ringing.push((server, index));
                }
            }
        }
        for (server, index) in ringing {
            self.counters.media_lost += 1;
            self.cancel_branch(server, index, now);
        }
        for session in lost {
            self.end_after_ack(*session, now);
        }
        self.drain(media, now);
    }

    /// A relay says that this session is over, which another core has ended: its INVITE has been answered or
    /// given up there, and waits here for nothing.
    pub fn handle_ended_elsewhere(
        &mut self,
        session: SessionRef,
        media: &mut dyn Media,
        now: Instant,
    ) {
        self.forget_call(session);
        let mut over = Vec::new();
        for (&server, context) in self.contexts.iter_mut() {
            if !context.invite || context.dialog.is_some() || context.decided {
                continue;
            }
            let mut branches = context.branches.iter_mut();
            let found = branches.find(|branch| {
                branch.progress != Progress::Done && branch.own_session() == Some(session)
            });
            if let Some(branch) = found {
                branch.progress = Progress::Done;
                context.decided = true;
                over.push((server, branch.client));
            }
        }
        for (server, client) in over {
            self.counters.ended_elsewhere += 1;
            self.stop_timer_c(client);
            self.transactions.abandon(client);
            // Other branches are cancelled with it.
            self.transactions.abandon_server(server);
        }
        self.drain(media, now);
    }

    /// The failure of a target that was cancelled for its relay: "the server is temporarily unable to
    /// process the request" (21.5.4). One of its own stays.
    pub(super) fn as_lost(&self, server: ServerId, response: Message) -> Message {
        let context = self.contexts.get(&server);
        let Some(context) = context.filter(|_| matches!(response.status(), Some(408 | 487))) else {
            return response;
        };
        context
            .request
            .respond(503, "Service Unavailable")
            .to_tag(self.to_tag(&context.request))
            .header("Warning", "399 sipcast \"The media relay has failed\"")
            .build()
    }
}
