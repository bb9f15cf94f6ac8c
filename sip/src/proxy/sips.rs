//! `sips:` URIs: what they ask of every hop, and what they must not be turned into (RFC 3261 section
//! 26.2.2, RFC 5630).
//!
//! A request to a `sips:` URI leaves here by TLS or secure WebSocket only, and for a user of ours only
//! to contacts that are `sips:` themselves: RFC 5630 took the exception for the last hop away. One to
//! a `sip:` URI whose user has registered a `sips:` contact goes there as `sip:`, over TLS all the same.
//! Where nothing is left it gets 480 with a warning that says which scheme to use instead.
//!
//! Not looked at is how a request came: a `sips:` URI that arrives over UDP was not protected before
//! it came here, and nothing here can mend that.

use std::time::Instant;

use bytes::Bytes;

use super::{Proxy, Target};
use crate::hop::Hop;
use crate::message::{Message, Uri, is_sips};
use crate::registrar::Binding;
use crate::transaction::ServerId;

/// The Warning of a 480 to a `sips:` request (RFC 5630 section 5.3).
const NOT_ALLOWED: &str = "380 sipcast \"SIPS Not Allowed\"";
/// That of one to a `sip:` request.
const REQUIRED: &str = "381 sipcast \"SIPS Required\"";

/// True where our Record-Route must be a `sips:` URI: "If the Request-URI contains a SIPS URI, or the
/// topmost Route header field value (after the post processing of bullet 6) contains a SIPS URI"
/// (RFC 3261 section 16.6 step 4).
pub(super) fn asks_for_sips(inner: &Message) -> bool {
    let mut routes = inner.routes();
    is_sips(inner.request_uri()) || matches!(routes.next(), Some(Ok(route)) if is_sips(route.uri))
}

/// The Request-URI for a binding, if a request to a URI of this scheme may go there.
pub(super) fn request_uri_for(binding: &Binding, uri: Bytes, wanted: &Uri<'_>) -> Option<Bytes> {
    let secure = binding.flow.transport.is_secure();
    match (wanted.is_sips(), is_sips(&uri)) {
        (true, true) => secure.then_some(uri),
        (true, false) => None,
        (false, false) => Some(uri),
        // "the proxy MUST replace that SIPS scheme with a SIP scheme while leaving the rest of the URI
        // as is … The proxy MUST use TLS" (RFC 5630 section 5.3).
        (false, true) => {
            let rest = uri.get(4..)?;
            secure.then(|| [b"sip", rest].concat().into())
        }
    }
}

/// The targets that a request may be sent to.
pub(super) fn permitted(inner: &Message, mut targets: Vec<Target>) -> Vec<Target> {
    if is_sips(inner.request_uri()) {
        targets.retain(|target| target.flow.transport.is_secure());
    }
    targets
}

impl Proxy {
    /// "the proxy MUST reject it with a 480 (Temporarily Unavailable) response. In this case, the proxy
    /// SHOULD include a Warning header with warn-code 380 "SIPS Not Allowed"" (RFC 5630 section 5.3).
    pub(super) fn refuse_scheme(
        &mut self,
        id: ServerId,
        request: &Message,
        hop: &Hop,
        now: Instant,
    ) {
        self.counters.wrong_scheme += 1;
        let warning = if is_sips(request.request_uri()) {
            NOT_ALLOWED
        } else {
            REQUIRED
        };
        let response = request
            .respond(480, "Temporarily Unavailable")
            .to_tag(self.to_tag(request))
            .header("Warning", warning);
        if self.may_be_forged(hop) {
            self.journal_refusal(id, response.status());
            return self.answer_stranger(id, request, hop, response.bytes());
        }
        self.answer(id, &response, now);
    }
}
