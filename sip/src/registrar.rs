//! The registrar of RFC 3261 section 10.3: which contacts a user has, and how to reach each.
//!
//! [`Registrar::handle_register`] takes a REGISTER and gives its answer; [`Registrar::lookup`]
//! gives the [`Binding`]s of an [`AddressOfRecord`], the best first. A binding keeps the flow that
//! its REGISTER came by, and requests go there, not to what the Contact claims. The mark belongs
//! to the flow: [`Registrar::seen`] notes it for all bindings of a flow at once, so that a trunk
//! with ten thousand users on one flow costs no more than one phone; [`sighting`] is how it drifts.
//!
//! The caller has done steps 1 to 5: it serves the domain, has checked Require and the user's
//! credentials, and made the address-of-record from To. Here are steps 6 to 8. An update is all
//! or nothing: whatever fails, no binding has changed.
//!
//! A binding on a connection goes when the connection does: nothing else leads to a user agent
//! behind a NAT, and it will register again over its next connection. Until then its user is
//! [`Registrar::awaited`].
//!
//! What happens to bindings is told by [`Registrar::poll_event`], for a store that lets them
//! survive a restart: [`record`] is a binding as bytes, [`Registrar::restore`] takes one back.
//! Events nobody polls for are dropped, the oldest first, and counted; who finds that some were
//! lost starts over from [`Registrar::page`]. Where nobody ever will, [`Registrar::tell_nobody`]
//! spares making them.
//!
//! Several concentrators may have one set of bindings, each a whole copy: [`shared`].
//!
//! Not done: Date in the answer (no wall clock here), display names of contacts, GRUU (RFC 5627):
//! its contact parameters are kept and echoed only.
//!
//! Standards: RFC 3261 sections 10.3, 19.1.4, 20.10; RFC 3327 (Path); RFC 5626 section 6
//! (outbound); RFC 5630 (sips and sip name one user).

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use wire::gre::TunnelKey;
use wire::mark::RelayId;

use crate::cookie::Keys;
use crate::hop::{ConnectionId, Flow, Hop, Transmit};
use crate::message::{Message, ResponseBuilder};

mod address;
mod answer;
mod bindings;
mod contact;
mod ids;
pub(crate) mod partings;
mod path;
pub(crate) mod ping;
pub mod record;
pub mod shared;
pub mod sighting;
mod update;

pub use address::{AddressOfRecord, same_uri};
pub use path::Path;

use answer::Refusal;
use bindings::{Bindings, Entry};
use partings::Partings;
use ping::Wheel;
use shared::Sharing;
use sighting::{OfEdge, Sighting};
use update::{Change, Update};

/// Lifetimes and bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// A shorter wish, other than 0, is answered 423.
    pub min_expires_s: u32,
    /// For a contact that says nothing.
    pub default_expires_s: u32,
    /// A longer wish gets this.
    pub max_expires_s: u32,
    /// Bindings of one user.
    pub max_contacts_per_user: usize,
    /// Bindings in all.
    pub max_bindings: usize,
    /// Take a Path that the user agent's Supported does not speak of; else 420, as RFC 3327
    /// section 5.3 recommends.
    pub path_without_support: bool,
    /// The Flow-Timer of RFC 5626 section 4.4: how often a user agent on a connection has to send
    /// a keepalive.
    pub flow_timer_s: u32,
    /// How often a UDP flow behind a NAT is pinged; 0 is never.
    pub ping_interval_s: u32,
    /// Pings without an answer that end a flow's bindings; 0: none does.
    pub ping_misses: u8,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            min_expires_s: 60,
            default_expires_s: 3600,
            max_expires_s: 7200,
            max_contacts_per_user: 10,
            max_bindings: 500_000,
            path_without_support: false,
            flow_timer_s: 120,
            ping_interval_s: 0,
            ping_misses: 3,
        }
    }
}

/// One contact of one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The URI of the Contact as it came, without its brackets.
    pub contact_uri: Bytes,
    /// The Contact's parameters less `expires`, as `;name=value...`.
    pub parameters: Bytes,
    /// The value of `+sip.instance`, quotes included; empty without one.
    pub instance: Bytes,
    /// The reg-id (RFC 5626), where outbound is in use; else 0.
    pub reg_id: u32,
    /// The preference, 0..=1000; 1000 where the Contact gives none.
    pub q_thousandths: u16,
    /// When the REGISTER that last changed it came.
    pub registered_at: Instant,
    /// From this instant on the binding is gone.
    pub expires_at: Instant,
    /// The Call-ID of the REGISTER that last changed it.
    pub call_id: Bytes,
    /// The CSeq of that REGISTER.
    pub cseq: u32,
    /// How to reach the user agent, or the first proxy of its path.
    pub flow: Flow,
    /// The relay that the flow was last seen with.
    pub relay: Option<RelayId>,
    /// The proxies on the way (RFC 3327), which a request to it must name in Route.
    pub path: Path,
    /// Who took its REGISTER, where several may.
    pub origin: Origin,
}

/// What orders the versions of a binding that concentrators share, beside Call-ID and CSeq; all zero where
/// they are not shared. See [`shared`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Origin {
    /// When it was made, in milliseconds since 1970 on the clock that the concentrators have in
    /// common; always later than the version that it took the place of.
    pub stamp_ms: u64,
    /// The concentrator that took the REGISTER.
    pub handler: u16,
    /// How often the user agent has begun to count anew within one Call-ID.
    pub epoch: u16,
}

impl Binding {
    /// True where it differs from `before` in nothing but when it was registered, and does not end earlier.
    fn only_later_than(&self, before: &Self) -> bool {
        self.expires_at >= before.expires_at
            && self.contact_uri == before.contact_uri
            && self.parameters == before.parameters
            && self.reg_id == before.reg_id
            && self.call_id == before.call_id
            && self.flow == before.flow
            && self.relay == before.relay
            && self.path == before.path
            && self.origin.handler == before.origin.handler
    }
}

/// What happened to a binding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A new contact.
    BindingAdded(AddressOfRecord, Binding),
    /// A contact that was there, with new parameters or another flow.
    BindingRefreshed(AddressOfRecord, Binding),
    /// A contact that was there, as it was, for longer.
    BindingProlonged(AddressOfRecord, Binding),
    /// What follows is about the same binding, but under another [`record::key`] than this one.
    BindingRenamed(AddressOfRecord, Binding),
    /// Removed by its user agent or with its connection.
    BindingRemoved(AddressOfRecord, Binding),
    /// Its time was over.
    BindingExpired(AddressOfRecord, Binding),
    /// Its user agent has not answered pings.
    BindingUnreachable(AddressOfRecord, Binding),
}

/// How much there is now, and what happened so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Users with a binding.
    pub users: usize,
    /// Bindings.
    pub bindings: usize,
    /// Flows with a binding.
    pub flows: usize,
    /// Bindings made.
    pub added: u64,
    /// Bindings renewed.
    pub refreshed: u64,
    /// Bindings removed by request or with their connection.
    pub removed: u64,
    /// Bindings whose time was over.
    pub expired: u64,
    /// REGISTERs answered otherwise than by 200.
    pub refused: u64,
    /// Bindings taken back from a store.
    pub restored: u64,
    /// Bindings whose user agent has not answered pings.
    pub unreachable: u64,
    /// Pings sent.
    pub pings: u64,
    /// Pings answered.
    pub pings_answered: u64,
    /// Answers to pings that were not ours, or came from elsewhere than they went.
    pub pings_strange: u64,
    /// Events dropped because nobody polled for them.
    pub events_lost: u64,
    /// Of shared bindings.
    pub shared: shared::Counts,
}

/// Something that happened, with its place among all that did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    /// What.
    pub event: Event,
    /// The how many-th event this is, those that were lost included.
    pub number: u64,
    /// Another concentrator did it.
    pub foreign: bool,
}

/// Events kept for [`Registrar::poll_event`].
const MAX_EVENTS: usize = 4096;
/// Bindings that are removed in one turn when they are over, so that a million which end at once hold nobody up;
/// nobody finds them meanwhile.
const EXPIRED_PER_TURN: usize = 512;

/// A place in the order of [`Registrar::page`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place((Instant, u64));

/// All bindings of the domains that we serve.
#[derive(Debug)]
pub struct Registrar {
    limits: Limits,
    keys: Keys,
    bindings: Bindings,
    partings: Partings,
    /// None: nobody wants to know.
    events: Option<VecDeque<(Event, bool)>>,
    /// Events so far.
    told: u64,
    transmits: VecDeque<Transmit>,
    totals: Counts,
    /// None: the bindings are ours alone.
    sharing: Option<Sharing>,
}

impl Registrar {
    /// A registrar without bindings; the keys name user agents ([`Registrar::name_of`]).
    pub fn new(limits: Limits, keys: Keys) -> Self {
        Self {
            limits,
            keys,
            bindings: Bindings::new(Wheel::new(limits.ping_interval_s, limits.ping_misses)),
            partings: Partings::default(),
            events: Some(VecDeque::new()),
            told: 0,
            transmits: VecDeque::new(),
            totals: Counts::default(),
            sharing: None,
        }
    }

    /// Answers a REGISTER for `aor` that came by `hop`.
    ///
    /// 200 with all contacts and their remaining seconds, 400, 403 (too many contacts), 420 (Path
    /// without support), 423 with Min-Expires, 439 (no outbound at the first hop), 500 (not in
    /// CSeq order), 503 (no room).
    pub fn handle_register(
        &mut self,
        request: &Message,
        aor: &AddressOfRecord,
        hop: &Hop,
        now: Instant,
    ) -> Message {
        self.register(request, aor, hop, now).build()
    }

    /// The same, with an answer that is yet to be written.
    pub(crate) fn register<'m>(
        &mut self,
        request: &'m Message,
        aor: &AddressOfRecord,
        hop: &Hop,
        now: Instant,
    ) -> ResponseBuilder<'m> {
        // What is over must neither count against a limit nor keep an order of CSeq numbers.
        self.remove_expired(now);
        let update = Update::plan(request, self.bindings.of(aor), hop, &self.limits, now)
            .and_then(|update| self.check_room(aor, update))
            .and_then(|update| self.check_past(aor, update, now));
        match update {
            Ok(Update { changes, outbound }) => {
                self.commit(request, aor, changes, now);
                self.bindings.seen(&hop.flow, hop.relay, now);
                self.answer_ok(request, aor, outbound, hop, now)
            }
            Err(refusal) => {
                self.totals.refused += 1;
                refusal.answer(request, &self.limits)
            }
        }
    }

    /// Takes a binding back from a store, as it is; false where there is no room or it is over.
    pub fn restore(&mut self, aor: &AddressOfRecord, mut binding: Binding, now: Instant) -> bool {
        let user = self.bindings.of(aor).len();
        if binding.expires_at <= now
            || self.bindings.len() >= self.limits.max_bindings
            || user >= self.limits.max_contacts_per_user
        {
            return false;
        }
        if binding.origin.stamp_ms == 0 {
            let registered_at = binding.registered_at;
            self.stamp(aor, &mut binding, registered_at);
        }
        let name = self.name(aor, &binding);
        self.bindings.add(aor, binding, name);
        self.totals.restored += 1;
        true
    }

    /// The unexpired bindings of a user, the best q first, among equals the oldest first.
    pub fn lookup(&self, aor: &AddressOfRecord, now: Instant) -> Vec<Binding> {
        let found = self.lookup_named(aor, now).into_iter();
        found.map(|(_, binding)| binding).collect()
    }

    /// The same with what names the user agent of each; 0 without.
    pub(crate) fn lookup_named(&self, aor: &AddressOfRecord, now: Instant) -> Vec<(u64, Binding)> {
        let unexpired = |entry: &&Entry| entry.binding.expires_at > now;
        let entries = self.bindings.of(aor).iter().filter(unexpired);
        let mut found: Vec<(u64, Binding)> = entries
            .map(|entry| (entry.name, self.bindings.current(entry)))
            .collect();
        found.sort_by_key(|(_, binding)| std::cmp::Reverse(binding.q_thousandths));
        found
    }

    /// True where a binding has this flow: whoever uses it has registered.
    pub fn has_flow(&self, flow: &Flow) -> bool {
        self.bindings.has_flow(flow)
    }

    /// A message came by this flow: its bindings now have this relay.
    pub fn seen(&mut self, flow: &Flow, relay: Option<RelayId>, now: Instant) {
        self.bindings.seen(flow, relay, now);
    }

    /// How a flow was seen last, and how its path has drifted; `None` where no binding has it. A
    /// binding that moves to another flow takes this along, unless others stay behind.
    pub fn sighting(&self, flow: &Flow) -> Option<&Sighting> {
        self.bindings.sighting(flow)
    }

    /// How many bindings were seen by each edge last and how many came to it from elsewhere. The key
    /// is `None` for those that came without a tunnel or without a mark.
    pub fn edges(&self) -> impl Iterator<Item = (Option<TunnelKey>, OfEdge)> {
        self.bindings.edges()
    }

    /// True for a flow that some binding uses.
    pub fn knows(&self, flow: &Flow) -> bool {
        self.bindings.knows(flow)
    }

    /// Removes the bindings that only this connection could reach.
    pub fn connection_closed(&mut self, connection: ConnectionId, now: Instant) {
        for (aor, binding) in self.bindings.close_connection(connection) {
            self.remember(&aor, &binding, true);
            self.note_parting(&aor, now);
            self.event(Event::BindingRemoved(aor, binding));
        }
    }

    /// Until when a user without a contact may come back, whose last one went with its connection.
    pub fn awaited(&self, aor: &AddressOfRecord, now: Instant) -> Option<Instant> {
        self.partings.until(aor, now)
    }

    fn note_parting(&mut self, aor: &AddressOfRecord, now: Instant) {
        if self.bindings.of(aor).is_empty() {
            self.partings.parted(aor, now);
        }
    }

    /// Removes what is over, and pings whose turn it is.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.remove_expired(now);
        self.forget_past(now);
        let pingers = self.sharing.as_ref().map(Sharing::pingers);
        let Some((pings, lost)) = self.bindings.turn(pingers, now) else {
            return;
        };
        for flow in lost {
            for (aor, binding) in self.bindings.close(&flow) {
                self.event(Event::BindingUnreachable(aor, binding));
            }
        }
        for flow in pings {
            if let Some((user, binding)) = self.bindings.any_on_flow(&flow) {
                let round = self.bindings.round();
                let ping = ping::options(&self.keys, user, binding, round);
                self.totals.pings += 1;
                self.transmits.push_back(ping);
            }
        }
    }

    /// An answer to a ping, by its branch: whatever it says, somebody is there.
    pub fn handle_ping_answer(&mut self, branch: &[u8], hop: &Hop, now: Instant) {
        if ping::is_own(&self.keys, branch, &hop.flow, self.bindings.round()) {
            self.totals.pings_answered += 1;
            self.bindings.seen(&hop.flow, hop.relay, now);
        } else {
            self.totals.pings_strange += 1;
        }
    }

    /// The next ping to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// When to call [`Registrar::handle_timeout`], and for whom.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let expires = self.bindings.next_deadline();
        let expires = expires.map(|at| (at, "binding expires"));
        let ping = self.bindings.next_tick().map(|at| (at, "ping"));
        let past = self.next_to_forget().map(|at| (at, "past forgotten"));
        [expires, ping, past]
            .into_iter()
            .flatten()
            .min_by_key(|(at, _)| *at)
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.poll_news().map(|news| news.event)
    }

    /// The same, with who did it and its number.
    pub fn poll_news(&mut self) -> Option<News> {
        let events = self.events.as_mut()?;
        let number = self.told + 1 - events.len() as u64;
        let (event, foreign) = events.pop_front()?;
        Some(News {
            event,
            number,
            foreign,
        })
    }

    /// Events so far; the last one has this number.
    pub fn told(&self) -> u64 {
        self.told
    }

    /// From now on what happens is counted and not told.
    pub fn tell_nobody(&mut self) {
        self.events = None;
    }

    /// How much there is, and what happened so far.
    pub fn counts(&self) -> Counts {
        Counts {
            users: self.bindings.users(),
            bindings: self.bindings.len(),
            flows: self.bindings.flows(),
            shared: self.shared_counts(),
            ..self.totals
        }
    }

    /// All bindings, in no order; those that are over and not yet removed included.
    pub fn iter(&self) -> impl Iterator<Item = (&AddressOfRecord, Binding)> {
        self.bindings
            .iter()
            .map(|(aor, entry)| (aor, self.bindings.current(entry)))
    }

    /// Some of the bindings, in the order in which they end: those behind `after`, which is the
    /// place of the last one of the page before. An empty page is behind the last.
    ///
    /// What changes between two pages moves to a later one or tells so by an event.
    pub fn page(
        &self,
        after: Option<Place>,
        count: usize,
    ) -> Vec<(Place, AddressOfRecord, Binding)> {
        self.bindings
            .page(after.map(|place| place.0), count)
            .map(|(place, aor, entry)| (Place(place), aor.clone(), self.bindings.current(entry)))
            .collect()
    }

    /// What names the user agent at the other end of a flow: the one that has registered over it
    /// with this Contact, or the only one that has registered over it. It is told by its instance,
    /// else by its Contact and Call-ID, and stays the same over its registrations, restarts and
    /// concentrators with the same keys.
    pub fn name_of(&self, flow: &Flow, contact_uri: &[u8]) -> Option<u64> {
        let mut all = self.bindings.on_flow(flow);
        let first = all.next()?;
        let chosen = match all.next() {
            None => first,
            Some(_) => self
                .bindings
                .on_flow(flow)
                .find(|entry| entry.binding.contact_uri == contact_uri)?,
        };
        Some(chosen.name).filter(|name| *name != 0)
    }

    /// Where the user agent of this name is now, if it is not still at `flow`: over the flow that
    /// it registered by last.
    pub fn moved(&self, name: u64, flow: &Flow) -> Option<Flow> {
        let mut newest: Option<&Binding> = None;
        for Entry { binding, .. } in self.bindings.named(name) {
            if binding.flow == *flow {
                return None;
            }
            if newest.is_none_or(|newest| newest.registered_at < binding.registered_at) {
                newest = Some(binding);
            }
        }
        newest.map(|binding| binding.flow)
    }

    /// Since when there are flows for [`Self::take_left`].
    pub(crate) const fn left_since(&self) -> Option<Instant> {
        self.bindings.left_since()
    }

    /// The flows of datagrams that user agents have registered away from since this was asked.
    pub(crate) fn take_left(&mut self) -> Vec<Flow> {
        self.bindings.take_left()
    }

    /// User agents that have a name.
    pub fn names(&self) -> usize {
        self.bindings.names()
    }

    fn remove_expired(&mut self, now: Instant) {
        for _ in 0..EXPIRED_PER_TURN {
            let Some((aor, binding)) = self.bindings.take_expired(now) else {
                return;
            };
            self.remember(&aor, &binding, false);
            self.event(Event::BindingExpired(aor, binding));
        }
    }

    /// What names the user agent of a binding ([`Registrar::name_of`]); 0 where it is behind a
    /// proxy, which has means of its own to reach it.
    fn name(&self, aor: &AddressOfRecord, binding: &Binding) -> u64 {
        if !binding.path.is_empty() {
            return 0;
        }
        // Two phones of a user may have the same private address. A user agent keeps its Call-ID
        // from one registration to the next (RFC 3261 section 10.2.4), and no other has it.
        let identity: [&[u8]; 3] = if binding.instance.is_empty() {
            [&binding.contact_uri, b"\0", &binding.call_id]
        } else {
            [&binding.instance, b"", b""]
        };
        let [first, second, third] = identity;
        let hash = |half: u8| {
            // No tag holds a 0, so no hash of a tag is half of a name. The length first: moving a
            // byte from one part to the other must change the name.
            let length = (aor.as_bytes().len() as u32).to_be_bytes();
            let of: [&[u8]; 6] = [&[0, half], &length, aor.as_bytes(), first, second, third];
            u64::from(self.keys.tag_hash_of(&of))
        };
        // 48 bits: few enough for two in every Record-Route.
        (hash(0) << 16 | hash(1) >> 16).max(1)
    }

    fn check_room(&self, aor: &AddressOfRecord, update: Update) -> Result<Update, Refusal> {
        let (mut added, mut removed) = (0, 0);
        for change in &update.changes {
            match change {
                Change::Add(_) => added += 1,
                Change::Remove(_) => removed += 1,
                Change::Refresh(..) => {}
            }
        }
        let after = |before: usize| before + added - removed;
        let user = after(self.bindings.of(aor).len());
        if added > 0 && user > self.limits.max_contacts_per_user {
            Err(Refusal::TooManyContacts)
        } else if added > removed && after(self.bindings.len()) > self.limits.max_bindings {
            Err(Refusal::NoRoom)
        } else {
            Ok(update)
        }
    }

    fn commit(
        &mut self,
        request: &Message,
        aor: &AddressOfRecord,
        changes: Vec<Change>,
        now: Instant,
    ) {
        for change in changes {
            match change {
                Change::Add(mut binding) => {
                    self.stamp(aor, &mut binding, now);
                    let name = self.name(aor, &binding);
                    self.bindings.add(aor, binding.clone(), name);
                    self.event(Event::BindingAdded(aor.clone(), binding));
                }
                Change::Refresh(id, binding) => self.refresh(aor, id, binding, now),
                Change::Remove(id) => {
                    if let Some((aor, binding)) = self.bindings.take(id) {
                        let binding = self.stamp_removed(request, &aor, binding, now);
                        self.event(Event::BindingRemoved(aor, binding));
                    }
                }
            }
        }
    }

    fn refresh(&mut self, aor: &AddressOfRecord, id: u64, mut binding: Binding, now: Instant) {
        self.stamp_refreshed(aor, id, &mut binding, now);
        self.replace(aor, id, binding, false);
    }

    /// Puts a binding in the place of another.
    fn replace(&mut self, aor: &AddressOfRecord, id: u64, binding: Binding, foreign: bool) {
        let Some(entry) = self.bindings.of(aor).iter().find(|entry| entry.id == id) else {
            return;
        };
        let before = &entry.binding;
        let same_agent = before.instance == binding.instance
            && (!binding.instance.is_empty()
                || before.contact_uri == binding.contact_uri && before.call_id == binding.call_id)
            && before.path.is_empty() == binding.path.is_empty();
        let name = if same_agent {
            entry.name
        } else {
            self.name(aor, &binding)
        };
        if self.events.is_none() {
            self.totals.refreshed += u64::from(!foreign);
            return self.bindings.refresh(aor, id, binding, name);
        }
        let before = self.bindings.current(entry);
        self.bindings.refresh(aor, id, binding.clone(), name);
        let aor = aor.clone();
        if binding.only_later_than(&before) {
            return self.happened(Event::BindingProlonged(aor, binding), foreign);
        }
        if !shared::same_key(&before, &binding) {
            self.happened(Event::BindingRenamed(aor.clone(), before), foreign);
        }
        self.happened(Event::BindingRefreshed(aor, binding), foreign);
    }

    fn event(&mut self, event: Event) {
        self.happened(event, false);
    }

    /// What others did is told and not counted as ours.
    fn happened(&mut self, event: Event, foreign: bool) {
        if let Event::BindingAdded(aor, _) = &event {
            self.partings.returned(aor);
        }
        match event {
            _ if foreign => {}
            Event::BindingAdded(..) => self.totals.added += 1,
            Event::BindingRefreshed(..) | Event::BindingProlonged(..) => self.totals.refreshed += 1,
            Event::BindingRenamed(..) => {}
            Event::BindingRemoved(..) => self.totals.removed += 1,
            Event::BindingExpired(..) => self.totals.expired += 1,
            Event::BindingUnreachable(..) => self.totals.unreachable += 1,
        }
        let Some(events) = &mut self.events else {
            return;
        };
        self.told += 1;
        if events.len() == MAX_EVENTS {
            events.pop_front();
            self.totals.events_lost += 1;
        }
        events.push_back((event, foreign));
    }
}
