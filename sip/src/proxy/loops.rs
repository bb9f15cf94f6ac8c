//! Loop detection (RFC 5393 section 4.2): a request that comes back unchanged goes no further.
//!
//! The branch of our Via ends in a hash of all that decides where a request goes and of what
//! tells requests apart. A request that carries a Via of ours with the same hash has been here
//! and would go the same way again. One that comes back for another Request-URI is a spiral, and
//! passes; Max-Forwards and Max-Breadth bound it.

use std::net::SocketAddr;

use super::Proxy;
use crate::message::{HeaderName, Host, Message, Via};

/// What a sent-by without a port means (RFC 3261 section 18.2.2).
const DEFAULT_PORT: u16 = 5060;

impl Proxy {
    /// True where this request was forwarded from here before.
    pub(super) fn is_loop(&self, inner: &Message) -> bool {
        let own = |via: &Via<'_>| self.sent_by(via).is_some();
        let mut vias = inner.vias().flatten().filter(own).peekable();
        if vias.peek().is_none() {
            return false;
        }
        let marks: Vec<String> = self.config.keys.loop_marks(&deciding(inner)).collect();
        vias.any(|via| {
            let branch = via.branch().unwrap_or_default();
            marks.iter().any(|mark| branch.ends_with(mark.as_bytes()))
        })
    }

    /// The address in a Via of ours.
    pub(super) fn sent_by(&self, via: &Via<'_>) -> Option<SocketAddr> {
        let address = match via.host {
            Host::V4(address) => address.into(),
            Host::V6(address) => address.into(),
            Host::Name(_) => return None,
        };
        self.is_our_address(address, via.port)
            .then(|| SocketAddr::new(address, via.port.unwrap_or(DEFAULT_PORT)))
    }
}

/// What decides where a request goes and tells it from others. The tag in To does neither, and
/// the ACK of a failure has one where its INVITE had none.
pub(super) fn deciding(inner: &Message) -> Vec<u8> {
    let mut seed = Vec::with_capacity(256);
    let from = inner.from();
    let tag = from.as_ref().ok().and_then(|from| from.tag());
    let number = inner.cseq().map_or(0, |(number, _)| number).to_be_bytes();
    let call_id = inner.call_id().unwrap_or_default();
    for part in [
        inner.request_uri(),
        call_id,
        tag.unwrap_or_default(),
        &number,
    ] {
        seed.extend_from_slice(part);
        seed.push(0);
    }
    for name in [HeaderName::Route, HeaderName::ProxyRequire] {
        for value in inner.values(name) {
            seed.extend_from_slice(&value);
            seed.push(0);
        }
    }
    seed
}
