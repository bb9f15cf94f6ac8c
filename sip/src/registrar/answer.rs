//! The answers to a REGISTER: 200 with what is bound now (RFC 3261 section 10.3 step 8), or why
//! not.

use std::hash::{DefaultHasher, Hasher as _};
use std::time::{Duration, Instant};

use super::bindings::Entry;
use super::{AddressOfRecord, Binding, Limits, Registrar};
use crate::hop::Hop;
use crate::message::{HeaderName, Message, ResponseBuilder};
use crate::text::{hex, push_number};

/// Why a REGISTER is not answered 200.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    Malformed(&'static str),
    TooManyContacts,
    /// A proxy added Path, and the user agent does not know of it (RFC 3327 section 5.3).
    PathUnsupported,
    TooBrief,
    /// The user agent wants outbound, the proxy that it spoke to cannot (RFC 5626 section 6).
    FirstHopLacksOutbound,
    OutOfOrder,
    NoRoom,
}

impl Refusal {
    pub(super) fn answer<'m>(self, request: &'m Message, limits: &Limits) -> ResponseBuilder<'m> {
        let (status, reason) = match self {
            Self::Malformed(reason) => (400, reason),
            Self::TooManyContacts => (403, "Too Many Contacts"),
            Self::PathUnsupported => (420, "Bad Extension"),
            Self::TooBrief => (423, "Interval Too Brief"),
            Self::FirstHopLacksOutbound => (439, "First Hop Lacks Outbound Support"),
            Self::OutOfOrder => (500, "Register Out Of Order"),
            Self::NoRoom => (503, "Registrar Full"),
        };
        let mut response = request.respond(status, reason).to_tag(to_tag(request));
        match self {
            Self::TooBrief => {
                response = response.header("Min-Expires", &limits.min_expires_s.to_string());
            }
            Self::PathUnsupported => response = response.header("Unsupported", "path"),
            Self::NoRoom => response = response.header("Retry-After", "60"),
            Self::Malformed(_)
            | Self::TooManyContacts
            | Self::FirstHopLacksOutbound
            | Self::OutOfOrder => {}
        }
        response
    }
}

impl Registrar {
    /// "The response MUST contain Contact header field values enumerating all current bindings.
    /// Each Contact value MUST feature an "expires" parameter". "The registrar copies the Path
    /// header field values into a Path header field in the successful (200) REGISTER response"
    /// (RFC 3327 section 5.3).
    pub(super) fn answer_ok<'m>(
        &self,
        request: &'m Message,
        aor: &AddressOfRecord,
        outbound: bool,
        hop: &Hop,
        now: Instant,
    ) -> ResponseBuilder<'m> {
        let mut response = request.respond(200, "OK").to_tag(to_tag(request));
        for Entry { binding, .. } in self.bindings.of(aor) {
            response = response.header_with("Contact", |out| write_contact(out, binding, now));
        }
        for value in request.values(HeaderName::Path) {
            response = response.header("Path", &String::from_utf8_lossy(&value));
        }
        response = response.header("Supported", "path, outbound");
        if outbound {
            response = response.header("Require", "outbound");
            // Over UDP the default of 24 to 29 s is what NATs need (RFC 5626 section 4.4.2).
            let direct = !request.has_several_vias();
            if direct && hop.flow.connection.is_some() {
                response = response.header("Flow-Timer", &self.limits.flow_timer_s.to_string());
            }
        }
        response
    }
}

/// A tag that a retransmission gets again; it makes no dialog, so nobody gains by guessing it.
fn to_tag(request: &Message) -> [u8; 16] {
    let mut hash = DefaultHasher::new();
    hash.write(request.call_id().unwrap_or_default());
    hash.write_u32(request.cseq().map_or(0, |(number, _)| number));
    let hash = hash.finish();
    let mut tag = [0; 16];
    tag[..8].copy_from_slice(&hex((hash >> 32) as u32));
    tag[8..].copy_from_slice(&hex(hash as u32));
    tag
}

/// Appends what others have written, which need not be UTF-8.
fn push_text(out: &mut Vec<u8>, text: &[u8]) {
    if text.is_ascii() {
        out.extend_from_slice(text);
    } else {
        out.extend_from_slice(String::from_utf8_lossy(text).as_bytes());
    }
}

/// `<uri>;parameters;expires=seconds`.
fn write_contact(out: &mut Vec<u8>, binding: &Binding, now: Instant) {
    out.push(b'<');
    push_text(out, &binding.contact_uri);
    out.push(b'>');
    push_text(out, &binding.parameters);
    out.extend_from_slice(b";expires=");
    push_number(
        out,
        whole_seconds(binding.expires_at.saturating_duration_since(now)),
    );
}

/// Rounded up, so that a user agent that refreshes by it is never late by our rounding alone.
fn whole_seconds(remaining: Duration) -> u64 {
    remaining.as_secs() + u64::from(remaining.subsec_nanos() > 0)
}
