//! Loop detection (RFC 5393 section 4.2): a request that comes back unchanged goes no further.
//!
//! The branch of our Via ends in a hash of all that decides where a request goes and of what
//! tells requests apart. A request that carries a Via of ours with the same hash has been here
//! and would go the same way again. One that comes back for another Request-URI is a spiral, and
//! passes; Max-Forwards and Max-Breadth bound it.

use super::Proxy;
use crate::message::{HeaderName, Host, Message, Via};
use crate::text::push_hex;

impl Proxy {
    /// True where this request was forwarded from here before.
    pub(super) fn is_loop(&self, inner: &Message) -> bool {
        let mut mark = None;
        inner.vias().flatten().any(|via| {
            self.is_own_via(&via)
                && via.branch().is_some_and(|branch| {
                    branch.ends_with(mark.get_or_insert_with(|| self.loop_mark(inner)).as_bytes())
                })
        })
    }

    /// What the branch of a forwarded request ends in.
    pub(super) fn loop_mark(&self, inner: &Message) -> String {
        let mut seed = Vec::with_capacity(256);
        let tags = [inner.from(), inner.to()]
            .map(|party| party.ok().and_then(|party| party.tag()).unwrap_or_default());
        let number = inner.cseq().map_or(0, |(number, _)| number).to_be_bytes();
        let call_id = inner.call_id().unwrap_or_default();
        for part in [inner.request_uri(), call_id, tags[0], tags[1], &number] {
            seed.extend_from_slice(part);
            seed.push(0);
        }
        for name in [HeaderName::Route, HeaderName::ProxyRequire] {
            for value in inner.values(name) {
                seed.extend_from_slice(&value);
                seed.push(0);
            }
        }
        let mut mark = String::from(".");
        push_hex(&mut mark, self.config.keys.tag_hash(&seed));
        mark
    }

    fn is_own_via(&self, via: &Via<'_>) -> bool {
        let address = match via.host {
            Host::V4(address) => address.into(),
            Host::V6(address) => address.into(),
            Host::Name(_) => return false,
        };
        self.is_our_address(address, via.port)
    }
}
