//! Calls that wait for their relay to have sessions again.
//!
//! More calls may come at once than a relay has prepared sessions for. [`Media::wait_until`] then
//! says so before anything is sent, and the INVITE waits: the caller has its 100, nothing is held up
//! behind it. When the relay may have more, [`Proxy::handle_media_ready`] asks again for those that
//! wait, the oldest first; past its deadline a call goes on all the same, and
//! [`Media::place`] takes what there is, on another relay or on none. A CANCEL, or the end of the
//! caller's connection, ends the wait.
//!
//! Known limit: only the first group of targets waits; targets that are tried after those have failed
//! take what there is.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Instant;

use wire::mark::RelayId;

use super::Proxy;
use super::fork::{Breadth, groups};
use super::forward::{Outbound, new_call};
use super::media::{MAX_PATIENCE, Media};
use crate::hop::Hop;
use crate::message::{Message, Method};
use crate::proxy::Target;
use crate::transaction::ServerId;

/// Calls that may wait at a time; the next takes what there is.
const MAX_WAITING: usize = 2000;

/// An INVITE with all that [`Proxy::start`] needs.
#[derive(Debug)]
struct Waiting {
    original: Message,
    inner: Message,
    hop: Hop,
    targets: Vec<Target>,
    fail_on: Option<Vec<u16>>,
    deadline: Instant,
    relay: RelayId,
}

/// The calls that wait, in the order of their deadlines: that in which they came, but for those of one
/// instant.
#[derive(Debug, Default)]
pub(super) struct WaitingForMedia {
    calls: HashMap<ServerId, Waiting>,
    order: BTreeSet<(Instant, ServerId)>,
}

impl WaitingForMedia {
    pub(super) fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let (at, _) = self.order.first()?;
        Some((*at, "relay"))
    }

    pub(super) fn len(&self) -> usize {
        self.calls.len()
    }

    fn insert(&mut self, id: ServerId, call: Waiting) {
        self.order.insert((call.deadline, id));
        self.calls.insert(id, call);
    }

    fn remove(&mut self, id: ServerId) -> Option<Waiting> {
        let call = self.calls.remove(&id)?;
        self.order.remove(&(call.deadline, id));
        Some(call)
    }
}

impl Proxy {
    /// The relays may have sessions for calls that wait for one.
    pub fn handle_media_ready(&mut self, media: &mut dyn Media, now: Instant) {
        if self.waiting_for_media.calls.is_empty() {
            return;
        }
        let waiting: Vec<ServerId> = self
            .waiting_for_media
            .order
            .iter()
            .map(|(_, id)| *id)
            .collect();
        let mut still_short = HashSet::new();
        for id in waiting {
            let Some(call) = self.waiting_for_media.calls.get(&id) else {
                continue;
            };
            if still_short.contains(&call.relay) {
                continue;
            }
            match self.must_wait(&call.inner, &call.hop, &call.targets, true, media, now) {
                Some((_, relay)) => {
                    still_short.insert(relay);
                }
                None => self.end_wait(id, media, now),
            }
        }
        self.drain(media, now);
    }

    /// Calls that wait for their relay.
    pub fn waiting_for_media(&self) -> usize {
        self.waiting_for_media.len()
    }

    /// Those who have waited long enough go on with what there is.
    pub(super) fn fire_media_deadlines(&mut self, media: &mut dyn Media, now: Instant) {
        while let Some(&(at, id)) = self.waiting_for_media.order.first()
            && at <= now
        {
            self.counters.media_waits_expired += 1;
            self.end_wait(id, media, now);
        }
    }

    /// Lets a new call wait where it has to; gives it back where it need not.
    pub(super) fn wait_for_media<'a>(
        &mut self,
        id: ServerId,
        outbound: Outbound<'a>,
        media: &mut dyn Media,
        now: Instant,
    ) -> Option<Outbound<'a>> {
        let invite = outbound.original.method() == Method::Invite;
        let full = self.waiting_for_media.calls.len() >= MAX_WAITING;
        if !invite || full || outbound.waited || outbound.dialog.is_some() {
            return Some(outbound);
        }
        let (inner, targets) = (&outbound.inner, &outbound.targets);
        let must = self.must_wait(inner, outbound.hop, targets, false, media, now);
        let Some((deadline, relay)) = must else {
            return Some(outbound);
        };
        let deadline = deadline.min(now + MAX_PATIENCE);
        if !outbound.said_trying {
            self.respond(id, &outbound.original, 100, "Trying", now);
        }
        self.counters.media_waits += 1;
        let call = Waiting {
            original: outbound.original,
            inner: outbound.inner,
            hop: *outbound.hop,
            targets: outbound.targets,
            fail_on: outbound.fail_on,
            deadline,
            relay,
        };
        self.waiting_for_media.insert(id, call);
        None
    }

    /// The INVITE of a call that waited, which it does no longer.
    pub(super) fn stop_waiting_for_media(&mut self, id: ServerId) -> Option<Message> {
        self.waiting_for_media.remove(id).map(|call| call.original)
    }

    fn end_wait(&mut self, id: ServerId, media: &mut dyn Media, now: Instant) {
        let Some(call) = self.waiting_for_media.remove(id) else {
            return;
        };
        let outbound = Outbound {
            original: call.original,
            inner: call.inner,
            hop: &call.hop,
            targets: call.targets,
            dialog: None,
            fail_on: call.fail_on,
            said_trying: true,
            waited: true,
        };
        self.start(id, outbound, media, now);
    }

    /// Until when a new call has to wait, and for which relay.
    fn must_wait(
        &self,
        inner: &Message,
        hop: &Hop,
        targets: &[Target],
        again: bool,
        media: &mut dyn Media,
        now: Instant,
    ) -> Option<(Instant, RelayId)> {
        if !media.may_wait() || self.earlier_session(inner, true).is_some() {
            return None;
        }
        let first = groups(targets.to_vec(), Breadth::of(inner)).pop_front()?;
        let branches = first.len();
        first.iter().find_map(|target| {
            let contact = target.contact();
            let call = new_call(self, inner, hop, target, &contact);
            media.wait_until(&call, branches, again, now)
        })
    }
}
