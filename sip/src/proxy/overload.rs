//! Overload: new requests are refused before calls in progress suffer (RFC 3261 section 21.5.4).
//!
//! A request that begins nothing new (it has a To tag, or is a BYE, CANCEL or ACK) always passes, as
//! long as there is room at all. The refusal costs no transaction, and its Retry-After is
//! spread over some seconds, so that those refused together do not come back together.
//!
//! No source can fill the tables: the transactions that its requests have made, copies included, are
//! bounded too, the last tenth again for what is in progress. Trunks have no such bound, since they
//! bring the calls of many.

use super::Proxy;
use crate::hop::{Hop, Transmit};
use crate::message::{HeaderName, Message, Method};

/// The part of the transaction table that new requests may fill; the rest is for calls in
/// progress.
const SHARE_OF_NEW: (usize, usize) = (9, 10);
/// Retry-After is at least this.
const RETRY_AFTER_S: u32 = 5;
/// And less than this much more.
const RETRY_SPREAD_S: u32 = 10;

impl Proxy {
    /// True where a request that makes a transaction, or would, must not be taken, whoever sent it, and
    /// whoever else is served.
    pub(super) fn must_shed(&mut self, request: &Message, hop: &Hop) -> bool {
        if (self.overloaded || self.is_nearly_full()) && begins_something(request) {
            self.counters.shed += 1;
            return true;
        }
        let crowded = self.is_crowded(request, hop);
        self.counters.source_shed += u64::from(crowded);
        crowded
    }

    /// True where the source of a request has too many transactions, this one included.
    pub(super) fn is_crowded(&self, request: &Message, hop: &Hop) -> bool {
        let limit = self.config.limits.max_of_source;
        let (share, of) = SHARE_OF_NEW;
        let some = |count: usize| count * of > limit.saturating_mul(share);
        let all = self.transactions.counts();
        if !some(all.server + all.client) {
            return false;
        }
        let source = hop.flow.peer.ip();
        let count = self.transactions.count_of(source);
        let crowded = count > limit || some(count) && begins_something(request);
        crowded && !self.config.routing.is_trunk(source) && !self.is_trusted(hop)
    }

    fn is_nearly_full(&self) -> bool {
        let (share, of) = SHARE_OF_NEW;
        let (counts, limits) = (self.transactions.counts(), self.config.limits);
        counts.server * of > limits.max_server * share
            || counts.client * of > limits.max_client * share
    }

    /// 503 with Retry-After, without a transaction; an ACK is never answered.
    pub(super) fn refuse_for_now(&mut self, request: &Message, hop: &Hop) {
        if request.method() == Method::Ack {
            return;
        }
        let call = request.call_id().unwrap_or_default();
        let spread = self.config.keys.tag_hash(call) % RETRY_SPREAD_S;
        let response = request
            .respond(503, "Service Unavailable")
            .to_tag(self.to_tag(request))
            .header(
                HeaderName::RetryAfter,
                &(RETRY_AFTER_S + spread).to_string(),
            )
            .bytes();
        self.transmits.push_back(Transmit {
            flow: hop.flow,
            bytes: response,
        });
    }
}

fn begins_something(request: &Message) -> bool {
    let has_tag = request.to().is_ok_and(|to| to.tag().is_some());
    !has_tag && !matches!(request.method(), Method::Bye | Method::Cancel | Method::Ack)
}
