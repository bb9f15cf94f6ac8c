//! The store: users with their bindings, indexed by deadline and by flow.
//!
//! Every binding has one number; the indexes hold numbers, and one map leads from a number to its
//! user. All indexes are written in [`Bindings::index`] and [`Bindings::unindex`] and nowhere
//! else, so none can outgrow the bindings.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use wire::mark::RelayId;

use super::{AddressOfRecord, Binding};
use crate::hop::{ConnectionId, Flow};

/// A binding with its number; `None` before it is stored.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) id: Option<u64>,
    pub(super) binding: Binding,
}

#[derive(Debug, Default)]
pub(super) struct Bindings {
    users: HashMap<AddressOfRecord, Vec<Entry>>,
    owners: HashMap<u64, AddressOfRecord>,
    deadlines: BTreeSet<(Instant, u64)>,
    flows: HashMap<FlowKey, FlowState>,
    last_id: u64,
}

/// A connection is one flow whatever its addresses; datagrams have nothing but those.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum FlowKey {
    Connection(ConnectionId),
    Datagrams(Flow),
}

impl FlowKey {
    fn of(flow: &Flow) -> Self {
        flow.connection
            .map_or(Self::Datagrams(*flow), Self::Connection)
    }
}

#[derive(Debug, Default)]
struct FlowState {
    relay: Option<RelayId>,
    bindings: BTreeSet<u64>,
}

impl Bindings {
    pub(super) fn len(&self) -> usize {
        self.owners.len()
    }

    pub(super) fn users(&self) -> usize {
        self.users.len()
    }

    pub(super) fn flows(&self) -> usize {
        self.flows.len()
    }

    pub(super) fn of(&self, aor: &AddressOfRecord) -> &[Entry] {
        self.users.get(aor).map_or(&[], Vec::as_slice)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&AddressOfRecord, &Entry)> {
        self.users
            .iter()
            .flat_map(|(aor, entries)| entries.iter().map(move |entry| (aor, entry)))
    }

    /// The binding with the relay that its flow was last seen with.
    pub(super) fn current(&self, entry: &Entry) -> Binding {
        let flow = self.flows.get(&FlowKey::of(&entry.binding.flow));
        let relay = flow.map_or(entry.binding.relay, |flow| flow.relay);
        Binding {
            relay,
            ..entry.binding.clone()
        }
    }

    /// Gives a user these bindings instead of those it has.
    pub(super) fn replace(&mut self, aor: &AddressOfRecord, mut entries: Vec<Entry>) {
        // A flow is forgotten with its last binding, so what stays takes its mark along.
        for entry in &mut entries {
            entry.binding = self.current(entry);
        }
        for entry in self.users.remove(aor).unwrap_or_default() {
            self.unindex(&entry);
        }
        for entry in &mut entries {
            self.index(aor, entry);
        }
        if !entries.is_empty() {
            self.users.insert(aor.clone(), entries);
        }
    }

    pub(super) fn seen(&mut self, flow: &Flow, relay: Option<RelayId>) {
        if let Some(state) = self.flows.get_mut(&FlowKey::of(flow)) {
            state.relay = relay;
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Removes one binding that is over.
    pub(super) fn take_expired(&mut self, now: Instant) -> Option<(AddressOfRecord, Binding)> {
        let (_, id) = *self
            .deadlines
            .first()
            .filter(|(deadline, _)| *deadline <= now)?;
        self.take(id)
    }

    /// Removes the bindings of a connection.
    pub(super) fn close(&mut self, connection: ConnectionId) -> Vec<(AddressOfRecord, Binding)> {
        let Some(state) = self.flows.get(&FlowKey::Connection(connection)) else {
            return Vec::new();
        };
        let ids: Vec<u64> = state.bindings.iter().copied().collect();
        ids.into_iter().filter_map(|id| self.take(id)).collect()
    }

    fn take(&mut self, id: u64) -> Option<(AddressOfRecord, Binding)> {
        let aor = self.owners.get(&id)?.clone();
        let entries = self.users.get_mut(&aor)?;
        let at = entries.iter().position(|entry| entry.id == Some(id))?;
        let entry = entries.remove(at);
        if entries.is_empty() {
            self.users.remove(&aor);
        }
        let binding = self.current(&entry);
        self.unindex(&entry);
        Some((aor, binding))
    }

    fn index(&mut self, aor: &AddressOfRecord, entry: &mut Entry) {
        let id = *entry.id.get_or_insert_with(|| {
            self.last_id += 1;
            self.last_id
        });
        self.owners.insert(id, aor.clone());
        self.deadlines.insert((entry.binding.expires_at, id));
        let flow = self
            .flows
            .entry(FlowKey::of(&entry.binding.flow))
            .or_insert_with(|| FlowState {
                relay: entry.binding.relay,
                bindings: BTreeSet::new(),
            });
        flow.bindings.insert(id);
    }

    fn unindex(&mut self, entry: &Entry) {
        let Some(id) = entry.id else {
            return;
        };
        self.owners.remove(&id);
        self.deadlines.remove(&(entry.binding.expires_at, id));
        let key = FlowKey::of(&entry.binding.flow);
        if let Some(flow) = self.flows.get_mut(&key) {
            flow.bindings.remove(&id);
            if flow.bindings.is_empty() {
                self.flows.remove(&key);
            }
        }
    }
}
