//! Request validation (RFC 3261 section 16.3) and the source of a request (18.2.1, RFC 3581).

use bytes::Bytes;

use crate::hop::Hop;
use crate::message::{HeaderName, Message, Method};

/// Why a well-formed request may not be forwarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rejection {
    status: u16,
    reason: &'static str,
    unsupported: Option<String>,
}

impl Rejection {
    const fn plain(status: u16, reason: &'static str) -> Self {
        Self {
            status,
            reason,
            unsupported: None,
        }
    }

    /// The response and its status code.
    pub(super) fn response(&self, request: &Message, to_tag: [u8; 8]) -> (Bytes, u16) {
        let mut response = request.respond(self.status, self.reason).to_tag(to_tag);
        if let Some(unsupported) = &self.unsupported {
            response = response.header("Unsupported", unsupported);
        }
        (response.bytes(), self.status)
    }
}

/// Steps 2, 3 and 5 of section 16.3; step 1 is [`Message::check`].
pub(super) fn forwardable(request: &Message) -> Result<(), Rejection> {
    let known_scheme = request.uri().is_ok_and(|uri| uri.is_sip());
    if !known_scheme {
        return Err(Rejection::plain(416, "Unsupported URI Scheme"));
    }
    let hops = request
        .max_forwards()
        .map_err(|_| Rejection::plain(400, "Bad Max-Forwards"))?;
    if hops == Some(0) && !may_end_here(request) {
        return Err(Rejection::plain(483, "Too Many Hops"));
    }
    let unsupported: Vec<String> = request
        .values(HeaderName::ProxyRequire)
        .map(|tag| String::from_utf8_lossy(&tag).into_owned())
        .collect();
    if !unsupported.is_empty() {
        let unsupported = Some(unsupported.join(", "));
        return Err(Rejection {
            status: 420,
            reason: "Bad Extension",
            unsupported,
        });
    }
    Ok(())
}

/// With no hop left: OPTIONS, which we answer whomever it is for, and REGISTER, which goes no further.
fn may_end_here(request: &Message) -> bool {
    matches!(request.method(), Method::Options | Method::Register)
}

/// True for OPTIONS on its last hop: "the element MAY act as the final recipient and respond per
/// Section 11" (step 3).
pub(super) fn is_traceroute(request: &Message) -> bool {
    request.method() == Method::Options && request.max_forwards() == Ok(Some(0))
}

/// The request with its real source in the top Via: `received` where it is not what the UA
/// believes, `rport` where that is asked for (RFC 3261 section 18.2.1, RFC 3581 section 4).
pub(super) fn with_source(request: Message, hop: &Hop) -> Message {
    request.stamped(hop.flow.peer)
}
