//! What the proxy counts.

use super::{authenticate, routing};

/// What happened to messages, each count under its own name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes that were no SIP message at all.
    pub unparsable: u64,
    /// Requests answered 400, 416, 420, 483 or 505 at validation.
    pub rejected: u64,
    /// Malformed responses, dropped.
    pub malformed_responses: u64,
    /// Responses that matched no transaction of ours and carry no cookie of another core,
    /// dropped (RFC 6026 section 7.3).
    pub unmatched_responses: u64,
    /// Responses that matched no transaction and whose Via cookie we did not sign, dropped.
    pub forged_responses: u64,
    /// Responses to requests that another core had forwarded, passed on by their Via cookie.
    pub stateless_responses: u64,
    /// Responses to requests that another core had forwarded, dropped, because only that core
    /// could pass them on: one failure of several branches, or a connection that is not here.
    pub stateless_dropped: u64,
    /// Messages that another concentrator got from us, because they were its.
    pub handed_over: u64,
    /// Messages that were ours and had come to another concentrator.
    pub handed_over_to_us: u64,
    /// CANCELs for INVITEs that are not known here, sent along the branches those would have.
    pub stateless_cancels: u64,
    /// ACKs of failures that were not sent from here, sent along the branches of their INVITE.
    pub stateless_acks: u64,
    /// INVITEs whose answer another concentrator has passed on, as their ACK shows.
    pub answered_elsewhere: u64,
    /// INVITEs that were still in progress when another concentrator had ended their call.
    pub ended_elsewhere: u64,
    /// Requests that waited for a user agent whose connection went with another concentrator.
    pub waited_for_return: u64,
    /// Those, and requests that were under way, whose user agent did not come back in time, answered 480.
    pub not_returned: u64,
    /// Requests under way to a connection that is gone, or seemed so, that were sent again over the next one.
    pub sent_after_return: u64,
    /// CANCELs from elsewhere than their INVITE, refused.
    pub foreign_cancels: u64,
    /// Requests for a domain that is not ours.
    pub foreign: u64,
    /// Requests for a user who has no binding.
    pub not_found: u64,
    /// Requests refused with 480, because no TLS leads where their `sips:` URI does, or a `sip:` one
    /// to a `sips:` contact.
    pub wrong_scheme: u64,
    /// Requests refused because a table was full.
    pub overload: u64,
    /// New requests refused with 503 and Retry-After so that calls in progress go on.
    pub shed: u64,
    /// Requests refused with 503 because their source has too many transactions.
    pub source_shed: u64,
    /// Route values with a cookie that we did not sign.
    pub bad_cookies: u64,
    /// REGISTERs and OPTIONS that came to us by several ways, answered 482 (8.2.2.2).
    pub merged: u64,
    /// ACK requests that belong to no call of ours, dropped.
    pub stray_acks: u64,
    /// In-dialog requests that came by another edge than the call began with.
    pub path_drift: u64,
    /// Targets that were cancelled because their relay has failed.
    pub media_lost: u64,
    /// In-dialog requests that went to another flow than the dialog began with, because the
    /// user agent has registered from there since.
    pub followed_flows: u64,
    /// Beyond our own phones.
    pub routing: routing::Counters,
    /// INVITEs forwarded.
    pub calls: u64,
    /// INVITEs answered with 2xx.
    pub answered: u64,
    /// Calls ended here, by a BYE to each party.
    pub hung_up: u64,
    /// Calls that cannot be ended here, because too many are remembered for that.
    pub not_remembered: u64,
    /// Calls that waited until their relay had sessions again.
    pub media_waits: u64,
    /// Those that waited too long and went on without it.
    pub media_waits_expired: u64,
    /// Who was let in, and who was not.
    pub authentication: authenticate::Counters,
}
