//! The session description in a message: whether it can be read, and whether a relay can carry what
//! it describes.
//!
//! An offer that cannot be read cannot be rewritten either: sent on as it is, it would have one party
//! send to the relay and the other past it. One with more live lines than are relayed would do the same
//! to those beyond. Where media are relayed such an offer is refused.

use std::ops::Range;
use std::time::Instant;

use sip::message::{Message, Method};
use sip::proxy::media::{CallMessage, Refusal};
use sip::sdp::{Media, Sdp, SdpError, session_description};

use super::Calls;

/// The most media lines of one call that are relayed at a time.
pub(super) const MAX_STREAMS: usize = 8;

/// The description in a message.
#[derive(Debug)]
pub(super) struct Body<'a> {
    bytes: &'a [u8],
    range: Range<usize>,
    pub(super) sdp: Sdp<'a>,
}

/// The description in a message, where there is one.
pub(super) fn read(message: &Message) -> Option<Result<Body<'_>, SdpError>> {
    let range = session_description(message)?;
    let bytes = message.body();
    let sdp = Sdp::parse(&bytes[range.clone()]);
    Some(sdp.map(|sdp| Body { bytes, range, sdp }))
}

/// The same, if it is one whose media can all be relayed.
pub(super) fn carried(read: Result<Body<'_>, SdpError>) -> Result<Body<'_>, Refusal> {
    let body = read.map_err(Refusal::Unreadable)?;
    if body.live_lines() > MAX_STREAMS {
        return Err(Refusal::TooManyLines { most: MAX_STREAMS });
    }
    Ok(body)
}

/// A media line that a relay can carry.
pub(super) fn relayable(media: &Media<'_>) -> bool {
    media.is_udp() && !media.is_rejected()
}

impl Calls {
    pub(super) const fn count_bad(&mut self, refusal: &Refusal) {
        match refusal {
            Refusal::TooManyLines { .. } => self.counters.too_many_lines += 1,
            Refusal::Unreadable(_) => self.counters.bad_sdp += 1,
            Refusal::Incompatible => {}
        }
    }

    /// True where a message has an offer that may be answered with a failure.
    pub(super) fn may_refuse(&self, message: &CallMessage<'_>) -> bool {
        let sip = message.message;
        let method = sip.method();
        let by_prack = || {
            let call = self.calls.get(&message.session);
            method == Method::Prack && call.is_some_and(|call| !call.waits_for(message.party))
        };
        sip.is_request() && (matches!(method, Method::Invite | Method::Update) || by_prack())
    }

    /// An answer that no relay can be put into, or an offer in a response, goes on as it came. Where it
    /// is the party's only word about the call's media, they are not relayed, and the session is given
    /// back; else they stay as they were.
    pub(super) fn pass_unchanged(&mut self, message: &CallMessage<'_>, now: Instant) {
        self.counters.answers_unchanged += 1;
        let (sip, key) = (message.message, message.session);
        let call_id = sip.call_id().unwrap_or_default();
        let call = self.calls.get(&key);
        let Some(call) = call.filter(|call| call.call_id.as_bytes() == call_id) else {
            return;
        };
        let answers_invite = sip.cseq().is_ok_and(|(_, method)| method == Method::Invite)
            && matches!(sip.status(), Some(200..=299));
        let is_last_word = answers_invite || sip.is_request() && sip.method() == Method::Ack;
        if is_last_word && !call.has_spoken(message.party) {
            self.give_back(key, now);
        }
    }
}

impl Body<'_> {
    /// Lines that need a relay session each.
    pub(super) fn live_lines(&self) -> usize {
        let media = self.sdp.media().iter();
        media.filter(|media| relayable(media)).count()
    }

    /// The message's body with another description in place of this one.
    pub(super) fn with(&self, description: Vec<u8>) -> Vec<u8> {
        let (before, after) = (
            &self.bytes[..self.range.start],
            &self.bytes[self.range.end..],
        );
        if before.is_empty() && after.is_empty() {
            return description;
        }
        [before, &description, after].concat()
    }
}
