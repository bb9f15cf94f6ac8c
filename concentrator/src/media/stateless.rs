//! The answer to an INVITE that another concentrator has sent on, which is gone: it had the call, and its
//! cookie says where the relay faces the caller.
//!
//! The first line that a relay carries gets that address; any other line of such a call goes end to end.
//! The relay is told from where the callee's media may come, as far as the answer says more than the
//! signalling did when the lease was bound.

use std::time::Instant;

use sip::message::Method;
use sip::proxy::media::{CallMessage, Party};
use wire::relay_control::Side;

use super::Calls;
use super::addresses::{gate, may_send};
use super::description::{Body, relayable};

impl Calls {
    /// The body for the caller; nothing where this is no such answer.
    pub(super) fn answer_by_cookie(
        &mut self,
        message: &CallMessage<'_>,
        body: &Body<'_>,
        now: Instant,
    ) -> Option<Vec<u8>> {
        let side = message.caller_side?;
        let answers = message
            .message
            .cseq()
            .is_ok_and(|(_, method)| method == Method::Invite);
        if !answers || message.message.is_request() || message.party != Party::Callee {
            return None;
        }
        let first = body.sdp.media().iter().position(relayable)?;
        let replacements: Vec<_> = (0..body.sdp.media().len())
            .map(|number| (number == first).then_some(side))
            .collect();
        let rewritten = body.sdp.rewrite(&replacements).ok()?;
        let media = body.sdp.media().get(first)?;
        let claimed = media.address.filter(|address| {
            may_send(*address, &self.own) && !self.relays.is_relay_address(*address)
        });
        let mut expected = vec![message.from.flow.peer.ip()];
        expected.extend(claimed.filter(|address| *address != expected[0]));
        let gate = gate(expected, media.payload());
        self.relays.update_gate(message.session, Side::B, gate, now);
        self.counters.answered_by_cookie += 1;
        Some(body.with(rewritten))
    }
}
