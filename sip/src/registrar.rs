//! The registrar of RFC 3261 section 10.3: which contacts a user has, and how to reach each.
//!
//! [`Registrar::handle_register`] takes a REGISTER and gives its answer; [`Registrar::lookup`]
//! gives the [`Binding`]s of an [`AddressOfRecord`], the best first. A binding keeps the flow that
//! its REGISTER came by, and requests go there, not to what the Contact claims. The mark belongs
//! to the flow: [`Registrar::seen`] notes it for all bindings of a flow at once, so that a trunk
//! with ten thousand users on one flow costs no more than one phone.
//!
//! The caller has done steps 1 to 5: it serves the domain, has checked Require and the user's
//! credentials, and made the address-of-record from To. Here are steps 6 to 8. An update is all
//! or nothing: whatever fails, no binding has changed.
//!
//! A binding on a connection goes when the connection does: nothing else leads to a user agent
//! behind a NAT, and it will register again over its next connection.
//!
//! Not done: Date in the answer (no wall clock here), display names of contacts, Path (RFC 3327),
//! outbound and GRUU (RFC 5626, 5627): their contact parameters are kept and echoed only. Events
//! nobody polls for are dropped, the oldest first, and counted.
//!
//! Standards: RFC 3261 sections 10.3, 19.1.4, 20.10; RFC 5630 (sips and sip name one user).

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hasher as _};
use std::time::{Duration, Instant};

use bytes::Bytes;
use wire::mark::RelayId;

use crate::hop::{ConnectionId, Flow, Hop};
use crate::message::Message;

mod address;
mod bindings;
mod contact;
mod update;

pub use address::{AddressOfRecord, same_uri};

use bindings::{Bindings, Entry};
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
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            min_expires_s: 60,
            default_expires_s: 3600,
            max_expires_s: 7200,
            max_contacts_per_user: 10,
            max_bindings: 100_000,
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
    /// The preference, 0..=1000; 1000 where the Contact gives none.
    pub q_thousandths: u16,
    /// From this instant on the binding is gone.
    pub expires_at: Instant,
    /// The Call-ID of the REGISTER that last changed it.
    pub call_id: Bytes,
    /// The CSeq of that REGISTER.
    pub cseq: u32,
    /// How to reach the user agent.
    pub flow: Flow,
    /// The relay that the flow was last seen with.
    pub relay: Option<RelayId>,
}

/// What happened to a binding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A new contact.
    BindingAdded(AddressOfRecord, Binding),
    /// A contact that was there, with new lifetime, parameters or flow.
    BindingRefreshed(AddressOfRecord, Binding),
    /// Removed by its user agent or with its connection.
    BindingRemoved(AddressOfRecord, Binding),
    /// Its time was over.
    BindingExpired(AddressOfRecord, Binding),
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
    /// Events dropped because nobody polled for them.
    pub events_lost: u64,
}

/// Events kept for [`Registrar::poll_event`].
const MAX_EVENTS: usize = 4096;

/// All bindings of the domains that we serve.
#[derive(Debug)]
pub struct Registrar {
    limits: Limits,
    bindings: Bindings,
    events: VecDeque<Event>,
    totals: Counts,
}

impl Registrar {
    /// A registrar without bindings.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            bindings: Bindings::default(),
            events: VecDeque::new(),
            totals: Counts::default(),
        }
    }

    /// Answers a REGISTER for `aor` that came by `hop`.
    ///
    /// 200 with all contacts and their remaining seconds, 400, 403 (too many contacts), 423 with
    /// Min-Expires, 500 (not in CSeq order), 503 (no room).
    pub fn handle_register(
        &mut self,
        request: &Message,
        aor: &AddressOfRecord,
        hop: &Hop,
        now: Instant,
    ) -> Message {
        // What is over must neither count against a limit nor keep an order of CSeq numbers.
        self.handle_timeout(now);
        let update = Update::plan(request, self.bindings.of(aor), hop, &self.limits, now)
            .and_then(|update| self.check_room(aor, update));
        match update {
            Ok(update) => {
                self.commit(aor, update);
                self.bindings.seen(&hop.flow, hop.relay);
                self.answer_ok(request, aor, now)
            }
            Err(refusal) => {
                self.totals.refused += 1;
                refusal.answer(request, &self.limits)
            }
        }
    }

    /// The unexpired bindings of a user, the best q first, among equals the oldest first.
    pub fn lookup(&self, aor: &AddressOfRecord, now: Instant) -> Vec<Binding> {
        let unexpired = |entry: &&Entry| entry.binding.expires_at > now;
        let entries = self.bindings.of(aor).iter().filter(unexpired);
        let mut found: Vec<Binding> = entries.map(|entry| self.bindings.current(entry)).collect();
        found.sort_by_key(|binding| std::cmp::Reverse(binding.q_thousandths));
        found
    }

    /// A message came by this flow: its bindings now have this relay.
    pub fn seen(&mut self, flow: &Flow, relay: Option<RelayId>) {
        self.bindings.seen(flow, relay);
    }

    /// Removes the bindings that only this connection could reach.
    pub fn connection_closed(&mut self, connection: ConnectionId) {
        for (aor, binding) in self.bindings.close(connection) {
            self.event(Event::BindingRemoved(aor, binding));
        }
    }

    /// Removes what is over.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((aor, binding)) = self.bindings.take_expired(now) {
            self.event(Event::BindingExpired(aor, binding));
        }
    }

    /// When to call [`Registrar::handle_timeout`], and for whom.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        Some((self.bindings.next_deadline()?, "binding expires"))
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// How much there is, and what happened so far.
    pub fn counts(&self) -> Counts {
        Counts {
            users: self.bindings.users(),
            bindings: self.bindings.len(),
            flows: self.bindings.flows(),
            ..self.totals
        }
    }

    /// All bindings, in no order; those that are over and not yet removed included.
    pub fn iter(&self) -> impl Iterator<Item = (&AddressOfRecord, Binding)> {
        self.bindings
            .iter()
            .map(|(aor, entry)| (aor, self.bindings.current(entry)))
    }

    fn check_room(&self, aor: &AddressOfRecord, update: Update) -> Result<Update, Refusal> {
        let others = self.bindings.len() - self.bindings.of(aor).len();
        let grows = update.entries.len() > self.bindings.of(aor).len();
        if update.entries.len() > self.limits.max_contacts_per_user {
            Err(Refusal::TooManyContacts)
        } else if grows && others + update.entries.len() > self.limits.max_bindings {
            Err(Refusal::NoRoom)
        } else {
            Ok(update)
        }
    }

    fn commit(&mut self, aor: &AddressOfRecord, update: Update) {
        let Update { entries, changes } = update;
        if changes.is_empty() {
            return;
        }
        self.bindings.replace(aor, entries);
        for (change, binding) in changes {
            let event = match change {
                Change::Added => Event::BindingAdded(aor.clone(), binding),
                Change::Refreshed => Event::BindingRefreshed(aor.clone(), binding),
                Change::Removed => Event::BindingRemoved(aor.clone(), binding),
            };
            self.event(event);
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::BindingAdded(..) => self.totals.added += 1,
            Event::BindingRefreshed(..) => self.totals.refreshed += 1,
            Event::BindingRemoved(..) => self.totals.removed += 1,
            Event::BindingExpired(..) => self.totals.expired += 1,
        }
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
            self.totals.events_lost += 1;
        }
        self.events.push_back(event);
    }

    /// Step 8: "The response MUST contain Contact header field values enumerating all current
    /// bindings. Each Contact value MUST feature an "expires" parameter".
    fn answer_ok(&self, request: &Message, aor: &AddressOfRecord, now: Instant) -> Message {
        let mut response = request.respond(200, "OK").to_tag(&to_tag(request));
        for Entry { binding, .. } in self.bindings.of(aor) {
            let contact = format!(
                "<{}>{};expires={}",
                String::from_utf8_lossy(&binding.contact_uri),
                String::from_utf8_lossy(&binding.parameters),
                whole_seconds(binding.expires_at.saturating_duration_since(now)),
            );
            response = response.header("Contact", &contact);
        }
        response.build()
    }
}

/// Why a REGISTER is not answered 200.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Malformed(&'static str),
    TooManyContacts,
    TooBrief,
    OutOfOrder,
    NoRoom,
}

impl Refusal {
    fn answer(self, request: &Message, limits: &Limits) -> Message {
        let (status, reason) = match self {
            Self::Malformed(reason) => (400, reason),
            Self::TooManyContacts => (403, "Too Many Contacts"),
            Self::TooBrief => (423, "Interval Too Brief"),
            Self::OutOfOrder => (500, "Register Out Of Order"),
            Self::NoRoom => (503, "Registrar Full"),
        };
        let mut response = request.respond(status, reason).to_tag(&to_tag(request));
        match self {
            Self::TooBrief => {
                response = response.header("Min-Expires", &limits.min_expires_s.to_string());
            }
            Self::NoRoom => response = response.header("Retry-After", "60"),
            Self::Malformed(_) | Self::TooManyContacts | Self::OutOfOrder => {}
        }
        response.build()
    }
}

/// A tag that a retransmission gets again; it makes no dialog, so nobody gains by guessing it.
fn to_tag(request: &Message) -> String {
    let mut hash = DefaultHasher::new();
    hash.write(request.call_id().unwrap_or_default());
    hash.write_u32(request.cseq().map_or(0, |(number, _)| number));
    format!("{:016x}", hash.finish())
}

/// Rounded up, so that a user agent that refreshes by it is never late by our rounding alone.
fn whole_seconds(remaining: Duration) -> u64 {
    remaining.as_secs() + u64::from(remaining.subsec_nanos() > 0)
}
