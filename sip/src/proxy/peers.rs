//! The other concentrators of the service that are alive: what is theirs is handed over.
//!
//! A response belongs to who has the transaction, as the cookie in our Via says; a request of a dialog
//! to who began it, as the cookie in our Record-Route does. Where that is another one with which we have
//! a link, the message goes there as it came, with the flow and the edge that it came by
//! ([`Proxy::poll_handover`]), and is handled there as if it had come there
//! ([`Proxy::handle_handed_over`]). It is one hop: what was handed over stays. Where the owner is gone,
//! we do what [`super::stateless`] can.
//!
//! A request that begins something stays where it comes in, and so do a CANCEL and the ACK of a failure,
//! which carry no cookie.

use std::collections::{HashSet, VecDeque};
use std::time::Instant;

use bytes::Bytes;

use super::Proxy;
use super::media::Media;
use super::route::{Named, uri_of};
use crate::cookie::{DialogCookie, Owner};
use crate::hop::{ConnectionId, Hop};
use crate::message::{HeaderName, Message, Uri};

/// A message that is another concentrator's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handover {
    /// Whose it is.
    pub to: Owner,
    /// Where it came from.
    pub hop: Hop,
    /// The message as it came.
    pub bytes: Bytes,
}

/// What is known of them.
#[derive(Debug, Default)]
pub(super) struct Peers {
    alive: HashSet<Owner>,
    handovers: VecDeque<Handover>,
    /// The message in hand has been handed over to us.
    handed_over: bool,
}

impl Peers {
    pub(super) fn is_alive(&self, owner: Owner) -> bool {
        self.alive.contains(&owner)
    }
}

impl Proxy {
    /// These other concentrators can be reached now.
    pub fn set_peers(&mut self, alive: impl IntoIterator<Item = Owner>, now: Instant) {
        let alive: HashSet<Owner> = alive.into_iter().collect();
        let lost: HashSet<Owner> = self.peers.alive.difference(&alive).copied().collect();
        self.peers.alive = alive;
        if !lost.is_empty() {
            self.connections_lost(&lost, now);
        }
    }

    /// The next message for another concentrator.
    pub fn poll_handover(&mut self) -> Option<Handover> {
        self.peers.handovers.pop_front()
    }

    /// Takes a message that another concentrator has received and that is ours.
    pub fn handle_handed_over(
        &mut self,
        bytes: Bytes,
        hop: &Hop,
        media: &mut dyn Media,
        now: Instant,
    ) {
        self.counters.handed_over_to_us += 1;
        self.peers.handed_over = true;
        self.handle_message(bytes, hop, media, now);
        self.peers.handed_over = false;
    }

    /// True where `owner` gets this message.
    pub(super) fn hand_over(&mut self, owner: Owner, message: &Message, hop: &Hop) -> bool {
        if self.peers.handed_over || !self.peers.alive.contains(&owner) {
            return false;
        }
        self.counters.handed_over += 1;
        self.peers.handovers.push_back(Handover {
            to: owner,
            hop: *hop,
            bytes: message.bytes().clone(),
        });
        true
    }

    /// True where the owner of its dialog gets this request.
    pub(super) fn hand_over_dialog(&mut self, request: &Message, hop: &Hop) -> bool {
        if self.peers.alive.is_empty() {
            return false;
        }
        let owner = self.own_dialog(request).and_then(|cookie| cookie.owner);
        owner.is_some_and(|owner| self.hand_over(owner, request, hop))
    }

    /// What the Route values of ours at the front say, the last of which counts. Of a strict router's
    /// request nothing is said: it is handled here.
    fn own_dialog(&self, request: &Message) -> Option<DialogCookie> {
        let mut found = None;
        for value in request.values(HeaderName::Route) {
            let uri = Uri::parse(uri_of(&value)).ok();
            let Some(uri) = uri.filter(|uri| self.is_ours(uri)) else {
                break;
            };
            if let Some(Named::Dialog(cookie)) = uri.user.and_then(|user| self.named(user)) {
                found = Some(cookie);
            }
        }
        found
    }

    /// True where a message for this connection finds it: here, or at a concentrator that is alive.
    pub(super) fn has_or_reaches(&self, connection: ConnectionId) -> bool {
        let owner = connection.owner();
        owner == self.config.owner || self.peers.alive.contains(&owner)
    }
}
