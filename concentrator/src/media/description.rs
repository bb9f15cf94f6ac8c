//! The session description in a message: whether it can be read, and whether a relay can carry what
//! it describes.
//!
//! An offer that cannot be read cannot be rewritten either: sent on as it is, it would have one party
//! send to the relay and the other past it. One with more live lines than are relayed would do the same
//! to those beyond. Where media are relayed such an offer is refused.

use std::ops::Range;

use sip::message::Message;
use sip::proxy::media::Refusal;
use sip::sdp::{Media, Sdp, SdpError, session_description};

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
