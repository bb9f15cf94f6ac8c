//! Answers to the sender of a request: those that we make ourselves, and those that others have made
//! and that leave here. Either way the records of calls hear of it.

use std::time::Instant;

use super::{Proxy, reveal};
use crate::hop::{Hop, Transmit};
use crate::message::{Message, Method, ResponseBuilder};
use crate::text::hex;
use crate::transaction::ServerId;

impl Proxy {
    pub(super) fn answer_options(
        &mut self,
        id: ServerId,
        request: &Message,
        hop: &Hop,
        now: Instant,
    ) {
        let response = request
            .respond(200, "OK")
            .to_tag(self.to_tag(request))
            .header("Accept", "application/sdp")
            .header("Allow", "INVITE, ACK, CANCEL, BYE, OPTIONS, REGISTER");
        let response = match self.revealed(hop) {
            Some(edge) => response.header(reveal::HEADER, &edge),
            None => response,
        };
        // It came from anybody, and is answered as often as it comes.
        if self.authentication.is_some() {
            return self.answer_stranger(id, request, hop, response.bytes());
        }
        self.answer(id, &response, now);
    }

    /// Answers a request in its transaction.
    pub(super) fn respond(
        &mut self,
        id: ServerId,
        request: &Message,
        status: u16,
        reason: &str,
        now: Instant,
    ) {
        let response = request.respond(status, reason);
        let response = if status > 100 {
            response.to_tag(self.to_tag(request))
        } else {
            response
        };
        self.answer(id, &response, now);
    }

    /// Sends a response of our own, which nobody here reads again.
    pub(super) fn answer(&mut self, id: ServerId, response: &ResponseBuilder<'_>, now: Instant) {
        let status = response.status();
        if status >= 300 {
            self.journal_refusal(id, status);
        }
        self.transactions.respond(id, response.bytes(), status, now);
    }

    /// Sends a response that others have made.
    pub(super) fn respond_with(&mut self, id: ServerId, response: &Message, now: Instant) {
        self.journal_response(id, response);
        let status = response.status().unwrap_or(500);
        self.transactions
            .respond(id, response.bytes().clone(), status, now);
    }

    /// Answers without a transaction; an ACK is never answered (RFC 3261 section 17).
    pub(super) fn refuse_statelessly(
        &mut self,
        request: &Message,
        hop: &Hop,
        status: u16,
        reason: &str,
    ) {
        if request.method() == Method::Ack {
            return;
        }
        let response = request
            .respond(status, reason)
            .to_tag(self.to_tag(request))
            .bytes();
        self.transmits.push_back(Transmit {
            flow: hop.flow,
            bytes: response,
        });
    }

    /// The To tag of our own answers: the same for a retransmission (RFC 3261 section 8.2.6.2).
    pub(super) fn to_tag(&self, request: &Message) -> [u8; 8] {
        hex(self.answer_tag(request))
    }

    pub(super) fn answer_tag(&self, request: &Message) -> u32 {
        let branch = request.top_via().ok().and_then(|via| via.branch());
        let call_id = request.call_id().unwrap_or_default();
        let seed = [call_id, branch.unwrap_or_default()];
        self.config.keys.tag_hash_of(&seed)
    }
}
