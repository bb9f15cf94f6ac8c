//! The store: users with their bindings, indexed by deadline, by flow and by name.
//!
//! Every binding has one number; the indexes hold numbers, and one map leads from a number to its
//! user. A binding enters all indexes in [`Bindings::index`] and leaves them in
//! [`Bindings::unindex`], so none can outgrow the bindings; [`Bindings::refresh`] touches those that
//! a change concerns, which is mostly that of the deadlines alone.
//!
//! Only who may register gets into the maps, so their hashes need not withstand a flood of strangers.
//! A name is a keyed hash of who the user agent is ([`super::Registrar::name_of`]); requests of a
//! dialog find its newest flow by it. 0 is no name.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::time::Instant;

use hashbrown::HashMap;
use wire::gre::TunnelKey;
use wire::mark::RelayId;

use super::ids::IdSet;
use super::ping::{Health, Turn, Wheel, needs_ping};
use super::shared::Pingers;
use super::sighting::{Census, OfEdge, Sighting};
use super::{AddressOfRecord, Binding, Origin};
use crate::hop::{ConnectionId, Flow};
use crate::own_id::OwnIdMap;

/// A stored binding with its number and the name of its user agent.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: u64,
    pub(super) name: u64,
    pub(super) binding: Binding,
}

#[derive(Debug, Default)]
pub(super) struct Bindings {
    users: HashMap<AddressOfRecord, Vec<Entry>>,
    owners: OwnIdMap<u64, AddressOfRecord>,
    deadlines: BTreeSet<(Instant, u64)>,
    flows: HashMap<FlowKey, FlowState>,
    names: HashMap<u64, IdSet>,
    wheel: Option<Wheel>,
    census: Census,
    left: Left,
    last_id: u64,
}

/// Flows of datagrams that user agents have registered away from, as when their NAT has forgotten them.
#[derive(Debug, Default)]
struct Left {
    flows: Vec<Flow>,
    since: Option<Instant>,
}

/// Flows that are kept until somebody asks for them; what is under way to the others waits for its timers.
const MAX_LEFT: usize = 1_000;

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

#[derive(Debug)]
struct FlowState {
    sighting: Sighting,
    bindings: IdSet,
    health: Health,
}

impl Bindings {
    /// A store without bindings, which pings its flows by this wheel.
    pub(super) fn new(wheel: Option<Wheel>) -> Self {
        Self {
            wheel,
            ..Self::default()
        }
    }

    pub(super) fn len(&self) -> usize {
        self.owners.len()
    }

    pub(super) fn users(&self) -> usize {
        self.users.len()
    }

    pub(super) fn flows(&self) -> usize {
        self.flows.len()
    }

    pub(super) fn names(&self) -> usize {
        self.names.len()
    }

    pub(super) fn of(&self, aor: &AddressOfRecord) -> &[Entry] {
        self.users.get(aor).map_or(&[], Vec::as_slice)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&AddressOfRecord, &Entry)> {
        self.users
            .iter()
            .flat_map(|(aor, entries)| entries.iter().map(move |entry| (aor, entry)))
    }

    /// At most `count` bindings behind a place in the order of their deadlines, and the place of
    /// the last of them.
    pub(super) fn page(
        &self,
        after: Option<(Instant, u64)>,
        count: usize,
    ) -> impl Iterator<Item = ((Instant, u64), &AddressOfRecord, &Entry)> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.deadlines
            .range((start, Bound::Unbounded))
            .take(count)
            .filter_map(|&place| {
                let (aor, entry) = self.find(place.1)?;
                Some((place, aor, entry))
            })
    }

    /// The binding with the relay that its flow was last seen with.
    pub(super) fn current(&self, entry: &Entry) -> Binding {
        let flow = self.flows.get(&FlowKey::of(&entry.binding.flow));
        let relay = flow.map_or(entry.binding.relay, |flow| flow.sighting.relay());
        Binding {
            relay,
            ..entry.binding.clone()
        }
    }

    /// A new binding of a user.
    pub(super) fn add(&mut self, aor: &AddressOfRecord, binding: Binding, name: u64) {
        self.last_id += 1;
        let entry = Entry {
            id: self.last_id,
            name,
            binding,
        };
        self.owners.insert(entry.id, aor.clone());
        self.index(&entry);
        match self.users.get_mut(aor) {
            Some(entries) => entries.push(entry),
            // Most users have one binding, and a growing vector would take room for four.
            None => drop(self.users.insert(aor.clone(), vec![entry])),
        }
    }

    /// Puts `binding` in the place of the one with this number.
    pub(super) fn refresh(&mut self, aor: &AddressOfRecord, id: u64, binding: Binding, name: u64) {
        let Self {
            users,
            deadlines,
            names,
            ..
        } = self;
        let mut entries = users.get_mut(aor).into_iter().flatten();
        let Some(entry) = entries.find(|entry| entry.id == id) else {
            return;
        };
        if entry.binding.expires_at != binding.expires_at {
            deadlines.remove(&(entry.binding.expires_at, id));
            deadlines.insert((binding.expires_at, id));
        }
        if entry.name != name {
            forget_name(names, entry.name, id);
            note_name(names, name, id);
            entry.name = name;
        }
        let before = std::mem::replace(&mut entry.binding, binding);
        if before.flow != entry.binding.flow {
            let (old, new) = (before.flow, entry.binding.clone());
            if old.connection.is_none() && self.left.flows.len() < MAX_LEFT {
                self.left.flows.push(old);
                self.left.since.get_or_insert(new.registered_at);
            }
            let before = self.leave_flow(&old, id);
            self.join_flow(&new, id, before);
        }
    }

    /// Puts the times of the binding with this number right.
    pub(super) fn retime(
        &mut self,
        aor: &AddressOfRecord,
        id: u64,
        registered_at: Instant,
        expires_at: Instant,
    ) {
        let mut entries = self.users.get_mut(aor).into_iter().flatten();
        let Some(entry) = entries.find(|entry| entry.id == id) else {
            return;
        };
        let binding = &mut entry.binding;
        self.deadlines.remove(&(binding.expires_at, id));
        self.deadlines.insert((expires_at, id));
        (binding.registered_at, binding.expires_at) = (registered_at, expires_at);
    }

    /// When the first flow was left that nobody has asked for.
    pub(super) const fn left_since(&self) -> Option<Instant> {
        self.left.since
    }

    pub(super) fn take_left(&mut self) -> Vec<Flow> {
        std::mem::take(&mut self.left).flows
    }

    pub(super) fn knows(&self, flow: &Flow) -> bool {
        self.flows.contains_key(&FlowKey::of(flow))
    }

    pub(super) fn seen(&mut self, flow: &Flow, relay: Option<RelayId>, now: Instant) {
        if let Some(state) = self.flows.get_mut(&FlowKey::of(flow)) {
            state.health.alive();
            if let Some(change) = state.sighting.again(relay, now) {
                self.census.moved(change, state.bindings.len());
            }
        }
    }

    /// How a flow was seen last.
    pub(super) fn sighting(&self, flow: &Flow) -> Option<&Sighting> {
        let state = self.flows.get(&FlowKey::of(flow));
        state.map(|state| &state.sighting)
    }

    /// The sums by edge.
    pub(super) fn edges(&self) -> impl Iterator<Item = (Option<TunnelKey>, OfEdge)> {
        self.census.iter()
    }

    /// When the next flows are to be pinged.
    pub(super) fn next_tick(&self) -> Option<Instant> {
        self.wheel.as_ref()?.next_tick()
    }

    /// The round of pings that is under way.
    pub(super) fn round(&self) -> u32 {
        self.wheel.as_ref().map_or(0, Wheel::round)
    }

    /// The flows whose turn it is: those to ping, and those to give up.
    pub(super) fn turn(
        &mut self,
        pingers: Option<Pingers<'_>>,
        now: Instant,
    ) -> Option<(Vec<Flow>, Vec<Flow>)> {
        let (slot, mut flows) = self.wheel.as_mut()?.turn(now)?;
        let mut others = Vec::new();
        if let Some(pingers) = pingers {
            let is_ours = |flow: &Flow| {
                let known = self.any_on_flow(flow);
                known.is_none_or(|(_, binding)| pingers.is_ours(binding.origin.handler, flow))
            };
            (flows, others) = flows.into_iter().partition(is_ours);
        }
        let wheel = self.wheel.as_mut()?;
        let (mut pings, mut lost) = (Vec::new(), Vec::new());
        flows.retain(|flow| {
            let mut state = self.flows.get_mut(&FlowKey::of(flow));
            if let Some(state) = &mut state
                && !Wheel::has_room(pings.len())
            {
                wheel.postpone(*flow, slot, &mut state.health);
                return false;
            }
            match wheel.judge(slot, state.map(|state| &mut state.health)) {
                Turn::Forget => false,
                Turn::Ping => {
                    pings.push(*flow);
                    true
                }
                Turn::GiveUp => {
                    lost.push(*flow);
                    false
                }
            }
        });
        flows.extend(others);
        wheel.keep(slot, flows);
        Some((pings, lost))
    }

    /// A flow that does not answer keeps its bindings, from now on.
    pub(super) fn never_give_up(&mut self) {
        if let Some(wheel) = &mut self.wheel {
            wheel.never_give_up();
        }
    }

    /// Changes where bindings come from, in place.
    pub(super) fn origins_mut(&mut self) -> impl Iterator<Item = (Instant, &mut Origin)> {
        let entries = self.users.values_mut().flatten();
        entries.map(|entry| (entry.binding.registered_at, &mut entry.binding.origin))
    }

    /// One of the bindings of a flow, and whose it is.
    pub(super) fn any_on_flow(&self, flow: &Flow) -> Option<(&AddressOfRecord, &Binding)> {
        let state = self.flows.get(&FlowKey::of(flow))?;
        let (aor, entry) = self.find(state.bindings.iter().next()?)?;
        Some((aor, &entry.binding))
    }

    /// Removes the bindings of a flow.
    pub(super) fn close(&mut self, flow: &Flow) -> Vec<(AddressOfRecord, Binding)> {
        self.take_all(FlowKey::of(flow))
    }

    /// The bindings of a flow.
    pub(super) fn on_flow(&self, flow: &Flow) -> impl Iterator<Item = &Entry> {
        let state = self.flows.get(&FlowKey::of(flow));
        state
            .into_iter()
            .flat_map(|state| state.bindings.iter())
            .filter_map(|id| self.find(id).map(|(_, entry)| entry))
    }

    /// The bindings of a name.
    pub(super) fn named(&self, name: u64) -> impl Iterator<Item = &Entry> {
        self.names
            .get(&name)
            .into_iter()
            .flat_map(IdSet::iter)
            .filter_map(|id| self.find(id).map(|(_, entry)| entry))
    }

    pub(super) fn has_flow(&self, flow: &Flow) -> bool {
        self.flows.contains_key(&FlowKey::of(flow))
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
    pub(super) fn close_connection(
        &mut self,
        connection: ConnectionId,
    ) -> Vec<(AddressOfRecord, Binding)> {
        self.take_all(FlowKey::Connection(connection))
    }

    fn take_all(&mut self, key: FlowKey) -> Vec<(AddressOfRecord, Binding)> {
        let Some(state) = self.flows.get(&key) else {
            return Vec::new();
        };
        let ids: Vec<u64> = state.bindings.iter().collect();
        ids.into_iter().filter_map(|id| self.take(id)).collect()
    }

    /// Removes one binding.
    pub(super) fn take(&mut self, id: u64) -> Option<(AddressOfRecord, Binding)> {
        let aor = self.owners.remove(&id)?;
        let entries = self.users.get_mut(&aor)?;
        let at = entries.iter().position(|entry| entry.id == id)?;
        let entry = entries.remove(at);
        if entries.is_empty() {
            self.users.remove(&aor);
        }
        let binding = self.current(&entry);
        self.unindex(&entry);
        Some((aor, binding))
    }

    fn find(&self, id: u64) -> Option<(&AddressOfRecord, &Entry)> {
        let aor = self.owners.get(&id)?;
        let entry = self.of(aor).iter().find(|entry| entry.id == id)?;
        Some((aor, entry))
    }

    fn index(&mut self, entry: &Entry) {
        let Entry { id, name, binding } = entry;
        self.deadlines.insert((binding.expires_at, *id));
        self.join_flow(binding, *id, None);
        note_name(&mut self.names, *name, *id);
    }

    fn unindex(&mut self, entry: &Entry) {
        let Entry { id, name, binding } = entry;
        self.deadlines.remove(&(binding.expires_at, *id));
        drop(self.leave_flow(&binding.flow, *id));
        forget_name(&mut self.names, *name, *id);
    }

    /// `history` is that of a binding that had another flow until now.
    fn join_flow(&mut self, binding: &Binding, id: u64, history: Option<Sighting>) {
        let (relay, at) = (binding.relay, binding.registered_at);
        let mut change = None;
        let flow = self.flows.entry(FlowKey::of(&binding.flow));
        let flow = flow.or_insert_with(|| {
            let mut sighting = history.unwrap_or_else(|| Sighting::new(relay, at));
            change = sighting.again(relay, at);
            FlowState {
                sighting,
                bindings: IdSet::default(),
                health: Health::default(),
            }
        });
        flow.bindings.insert(id);
        match change {
            Some(change) => {
                self.census.joined(change.from);
                self.census.moved(change, 1);
            }
            None => self.census.joined(flow.sighting.relay()),
        }
        if let Some(wheel) = &mut self.wheel
            && !flow.health.is_pinged()
            && needs_ping(binding)
        {
            wheel.add(binding.flow, &mut flow.health, at);
        }
    }

    /// The flow's history, where this was its last binding.
    fn leave_flow(&mut self, flow: &Flow, id: u64) -> Option<Sighting> {
        let key = FlowKey::of(flow);
        let state = self.flows.get_mut(&key)?;
        self.census.left(state.sighting.relay());
        if !state.bindings.remove(id) {
            return None;
        }
        self.flows.remove(&key).map(|state| state.sighting)
    }
}

fn note_name(names: &mut HashMap<u64, IdSet>, name: u64, id: u64) {
    if name != 0 {
        names.entry(name).or_default().insert(id);
    }
}

fn forget_name(names: &mut HashMap<u64, IdSet>, name: u64, id: u64) {
    if let Some(ids) = names.get_mut(&name)
        && ids.remove(id)
    {
        names.remove(&name);
    }
}
