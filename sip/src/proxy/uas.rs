//! What is answered here, as a UAS: REGISTER and OPTIONS (RFC 3261 section 8.2).
//!
//! A request that reaches us by several ways, as through a forking proxy before us, is answered once
//! and its twins get 482 (8.2.2.2). To tell a twin, the ongoing transactions are known by what all
//! copies have in common. There are no more entries than server transactions, and each goes with its
//! transaction. What is forwarded is not looked at: its UAS will see all copies.

use super::Proxy;
use crate::cookie::Keys;
use crate::message::{HeaderName, Message, Method, ResponseBuilder};
use crate::own_id::OwnIdMap;
use crate::transaction::ServerId;

/// Option tags that a REGISTER or OPTIONS may require of us.
const SUPPORTED: [&str; 2] = ["path", "outbound"];

const INVITE: &[u8] = b"INVITE";

/// The requests that we are answering or have answered a moment ago.
#[derive(Debug, Default)]
pub(super) struct Requests {
    by_identity: OwnIdMap<u128, ServerId>,
    identity_of: OwnIdMap<ServerId, u128>,
}

impl Requests {
    pub(super) fn len(&self) -> usize {
        self.by_identity.len().max(self.identity_of.len())
    }

    /// Notes a request; false where another transaction has brought it already.
    fn note(&mut self, id: ServerId, identity: u128) -> bool {
        if self.by_identity.contains_key(&identity) {
            return false;
        }
        self.by_identity.insert(identity, id);
        self.identity_of.insert(id, identity);
        true
    }

    pub(super) fn forget(&mut self, id: ServerId) {
        if let Some(identity) = self.identity_of.remove(&id) {
            self.by_identity.remove(&identity);
        }
    }
}

/// A keyed hash of "From tag, Call-ID, and CSeq", the method included.
fn identity(keys: &Keys, request: &Message, method: &[u8]) -> u128 {
    let number = request.cseq().map_or(0, |(number, _)| number);
    identity_of(keys, request, number, method)
}

/// The same with another number.
fn identity_of(keys: &Keys, request: &Message, number: u32, method: &[u8]) -> u128 {
    let from = request.from();
    let tag = from.as_ref().ok().and_then(|from| from.tag());
    let call_id = request.call_id().unwrap_or_default();
    let tag = tag.unwrap_or_default();
    // None of these holds a space.
    keys.identity_hash(&[&number.to_be_bytes(), method, b" ", call_id, b" ", tag])
}

impl Proxy {
    /// Where there are others who may pass its answer on without us, an INVITE must be found by its ACK. Of
    /// twins the first one is.
    pub(super) fn note_invite(&mut self, id: ServerId, request: &Message) {
        if self.config.clustered && request.method() == Method::Invite {
            self.uas
                .note(id, identity(&self.config.keys, request, INVITE));
        }
    }

    /// The INVITE in progress that this is the ACK of, or whose caller hangs up with this BYE, if it follows the
    /// INVITE.
    pub(super) fn invite_of(&self, request: &Message) -> Option<ServerId> {
        let (number, method) = request.cseq().ok()?;
        let number = number.checked_sub(u32::from(method == Method::Bye))?;
        let identity = identity_of(&self.config.keys, request, number, INVITE);
        self.uas.by_identity.get(&identity).copied()
    }

    /// The refusal of a request that is for us, if one of its own makes it impossible to answer.
    pub(super) fn refused_as_uas<'m>(
        &mut self,
        id: ServerId,
        request: &'m Message,
    ) -> Option<ResponseBuilder<'m>> {
        let in_dialog = request.to().is_ok_and(|to| to.tag().is_some());
        let identity = identity(&self.config.keys, request, request.method().as_bytes());
        if !in_dialog && !self.uas.note(id, identity) {
            self.counters.merged += 1;
            let response = request.respond(482, "Loop Detected");
            return Some(response.to_tag(self.to_tag(request)));
        }
        let unknown: Vec<String> = request
            .values(HeaderName::Require)
            .map(|tag| String::from_utf8_lossy(&tag).into_owned())
            .filter(|tag| !SUPPORTED.contains(&tag.as_str()))
            .collect();
        if unknown.is_empty() {
            return None;
        }
        self.counters.rejected += 1;
        let response = request
            .respond(420, "Bad Extension")
            .to_tag(self.to_tag(request))
            .header("Unsupported", &unknown.join(", "));
        Some(response)
    }
}
