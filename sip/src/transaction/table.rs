//! A bounded table of transactions, found by key, by id, by deadline and by connection.
//!
//! The server side and the client side are one [`Table`] each. Every change of a machine goes
//! through [`Table::update`], which keeps the deadline in step with the machine's state.
//!
//! A table grows to hundreds of thousands of entries while calls are waiting, so growing must not
//! take long: the index holds a hash and a place for each key, and the key itself is in the entry.
//!
//! Most transactions are answered or given up by the very call that has made them, and their first
//! deadline is then far from the right one. So a new one is put among the deadlines only by
//! [`Table::settle`], unless it has been changed or removed before.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::net::IpAddr;
use std::time::Instant;

use hashbrown::HashTable;

use crate::hop::{ConnectionId, Flow};
use crate::timer::Deadlines;
use crate::transaction::slab::{Slab, SlotId};

/// What the table asks of a transaction.
pub(crate) trait Machine {
    fn poll_timeout(&self) -> Option<(Instant, &'static str)>;
    fn is_terminated(&self) -> bool;
}

#[derive(Debug)]
pub(crate) struct Entry<K, M> {
    pub(crate) key: K,
    pub(crate) flow: Flow,
    pub(crate) machine: M,
    /// Whose request made it, where that is counted.
    pub(crate) charged: Option<IpAddr>,
    /// Its connection is gone, and it waits for another.
    pub(crate) adrift: bool,
    hash: u64,
}

/// Where the entry of a key is, and the key's hash.
#[derive(Debug, Clone, Copy)]
struct Named {
    hash: u64,
    id: SlotId,
}

#[derive(Debug)]
pub(crate) struct Table<K, M> {
    entries: Slab<Entry<K, M>>,
    by_key: HashTable<Named>,
    hasher: RandomState,
    deadlines: Deadlines,
    /// New ones, whose deadlines have not been set.
    fresh: Vec<SlotId>,
    /// Only connections: they end often, and each end must not cost a walk through the table.
    by_connection: HashMap<ConnectionId, HashSet<SlotId>>,
}

impl<K: Hash + Eq, M: Machine> Table<K, M> {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            entries: Slab::new(limit),
            by_key: HashTable::new(),
            hasher: RandomState::new(),
            deadlines: Deadlines::default(),
            fresh: Vec::new(),
            by_connection: HashMap::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn find(&self, key: &K) -> Option<SlotId> {
        self.find_hashed(key, self.hash(key))
    }

    /// For [`find_hashed`](Self::find_hashed) and [`insert_new`](Self::insert_new), of the same key.
    pub(crate) fn hash(&self, key: &K) -> u64 {
        self.hasher.hash_one(key)
    }

    pub(crate) fn find_hashed(&self, key: &K, hash: u64) -> Option<SlotId> {
        let is_it = |named: &Named| {
            let entry = self.entries.get(named.id);
            named.hash == hash && entry.is_some_and(|entry| entry.key == *key)
        };
        self.by_key.find(hash, is_it).map(|named| named.id)
    }

    pub(crate) fn get(&self, id: SlotId) -> Option<&Entry<K, M>> {
        self.entries.get(id)
    }

    /// `None` when the table is full or the key is in use.
    pub(crate) fn insert(
        &mut self,
        key: K,
        flow: Flow,
        machine: M,
        charged: Option<IpAddr>,
    ) -> Option<SlotId> {
        let hash = self.hash(&key);
        if self.find_hashed(&key, hash).is_some() {
            return None;
        }
        self.insert_new(key, hash, flow, machine, charged)
    }

    /// `None` when the table is full. The key is not in use.
    pub(crate) fn insert_new(
        &mut self,
        key: K,
        hash: u64,
        flow: Flow,
        machine: M,
        charged: Option<IpAddr>,
    ) -> Option<SlotId> {
        let id = self.entries.insert(Entry {
            key,
            flow,
            machine,
            charged,
            adrift: false,
            hash,
        })?;
        let named = Named { hash, id };
        self.by_key.insert_unique(hash, named, |named| named.hash);
        self.fresh.push(id);
        if let Some(connection) = flow.connection {
            self.by_connection.entry(connection).or_default().insert(id);
        }
        Some(id)
    }

    /// Lets `change` work on a transaction; `None` when the id is stale.
    pub(crate) fn update<R>(
        &mut self,
        id: SlotId,
        change: impl FnOnce(&mut Entry<K, M>) -> R,
    ) -> Option<R> {
        let entry = self.entries.get_mut(id)?;
        let result = change(entry);
        let due = entry.machine.poll_timeout().map(|(at, _)| at);
        self.deadlines.set(id.slot, due);
        Some(result)
    }

    /// True when the machine has nothing left to do.
    pub(crate) fn has_ended(&self, id: SlotId) -> bool {
        let entry = self.entries.get(id);
        entry.is_some_and(|entry| entry.machine.is_terminated())
    }

    pub(crate) fn remove(&mut self, id: SlotId) -> Option<Entry<K, M>> {
        let entry = self.entries.remove(id)?;
        if let Ok(named) = self.by_key.find_entry(entry.hash, |named| named.id == id) {
            named.remove();
        }
        self.deadlines.set(id.slot, None);
        self.leave_connection(id, &entry.flow);
        Some(entry)
    }

    /// Lets one outlive its connection: what ends that one no longer ends it.
    pub(crate) fn set_adrift(&mut self, id: SlotId) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.adrift = true;
            let flow = entry.flow;
            self.leave_connection(id, &flow);
        }
    }

    /// Gives one another flow.
    pub(crate) fn set_flow(&mut self, id: SlotId, flow: Flow) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        entry.adrift = false;
        let old = std::mem::replace(&mut entry.flow, flow);
        self.leave_connection(id, &old);
        if let Some(connection) = flow.connection {
            self.by_connection.entry(connection).or_default().insert(id);
        }
    }

    fn leave_connection(&mut self, id: SlotId, flow: &Flow) {
        if let Some(connection) = flow.connection
            && let Some(ids) = self.by_connection.get_mut(&connection)
        {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_connection.remove(&connection);
            }
        }
    }

    /// Sets the deadlines of new transactions.
    pub(crate) fn settle(&mut self) {
        while let Some(id) = self.fresh.pop() {
            if let Some(entry) = self.entries.get(id) {
                let due = entry.machine.poll_timeout().map(|(at, _)| at);
                self.deadlines.set(id.slot, due);
            }
        }
    }

    /// A transaction whose deadline has come.
    pub(crate) fn due(&mut self, now: Instant) -> Option<SlotId> {
        self.settle();
        let (at, slot) = self.deadlines.next()?;
        (at <= now).then(|| self.entries.id_at(slot)).flatten()
    }

    pub(crate) fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let first = self.deadlines.next();
        let settled = first.and_then(|(_, slot)| self.entries.id_at(slot));
        let ids = settled.into_iter().chain(self.fresh.iter().copied());
        ids.filter_map(|id| self.entries.get(id)?.machine.poll_timeout())
            .min_by_key(|(at, _)| *at)
    }

    /// The transactions on a flow, in the order of their places. For datagrams this walks the
    /// whole table: the shell must not call it for every ICMP error that a stranger can forge.
    pub(crate) fn on_flow(&self, flow: &Flow) -> Vec<SlotId> {
        if let Some(connection) = flow.connection {
            return self.on_connection(connection);
        }
        let entries = self.entries.iter();
        let on_flow = entries.filter(|(_, entry)| entry.flow == *flow);
        on_flow.map(|(id, _)| id).collect()
    }

    /// The transactions on a connection, in the order of their places.
    pub(crate) fn on_connection(&self, connection: ConnectionId) -> Vec<SlotId> {
        let ids = self.by_connection.get(&connection);
        let mut ids: Vec<_> = ids.into_iter().flatten().copied().collect();
        ids.sort_unstable();
        ids
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::hop::Transport;

    #[derive(Debug)]
    struct Until(Instant);

    impl Machine for Until {
        fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
            Some((self.0, "end"))
        }

        fn is_terminated(&self) -> bool {
            false
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "an Instant cannot be made from nothing"
    )]
    fn now() -> Instant {
        Instant::now()
    }

    #[derive(Debug)]
    struct Idle;

    impl Machine for Idle {
        fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
            None
        }

        fn is_terminated(&self) -> bool {
            false
        }
    }

    #[test]
    fn nothing_is_left_of_transactions_and_connections_that_have_gone() {
        let mut table = Table::new(10);
        for n in 0..1_000 {
            let first = table.insert((n, 1), on_connection(n), Idle, None).unwrap();
            let second = table.insert((n, 2), on_connection(n), Idle, None).unwrap();
            let mut both = [first, second];
            both.sort_unstable();
            assert_eq!(table.on_flow(&on_connection(n)), both);
            table.remove(first);
            assert_eq!(table.on_flow(&on_connection(n)), [second]);
            table.remove(second);
        }
        assert_eq!(table.len(), 0);
        assert!(table.by_key.is_empty());
        assert!(table.by_connection.is_empty());
        assert!(table.deadlines.is_empty());
        table.settle();
        assert!(table.deadlines.is_empty() && table.fresh.is_empty());
    }

    #[test]
    fn one_outlives_its_connection_and_gets_another() {
        let mut table = Table::new(10);
        let id = table.insert("one", on_connection(1), Idle, None).unwrap();
        table.set_adrift(id);
        assert!(table.on_flow(&on_connection(1)).is_empty());
        assert!(table.get(id).unwrap().adrift);
        table.set_flow(id, on_connection(2));
        assert_eq!(table.on_flow(&on_connection(2)), [id]);
        assert!(!table.get(id).unwrap().adrift);
        table.remove(id);
        assert!(table.by_connection.is_empty());
    }

    #[test]
    fn a_new_transaction_is_due_before_and_after_it_has_its_place() {
        let mut table = Table::new(10);
        let [soon, late] = [1, 2].map(|s| now() + Duration::from_secs(s));
        table.insert("late", on_connection(1), Until(late), None);
        let id = table.insert("soon", on_connection(1), Until(soon), None);
        for _ in 0..2 {
            assert_eq!(table.poll_timeout(), Some((soon, "end")));
            table.settle();
        }
        assert_eq!(table.due(soon), id);
        table.update(id.unwrap(), |entry| entry.machine = Until(late));
        assert_eq!(table.due(soon), None);
    }

    #[test]
    fn a_key_in_use_is_refused_and_stays_with_its_owner() {
        let mut table = Table::new(10);
        let first = table.insert("key", on_connection(1), Idle, None).unwrap();
        assert_eq!(table.insert("key", on_connection(2), Idle, None), None);
        assert_eq!(table.find(&"key"), Some(first));
        assert!(table.on_flow(&on_connection(2)).is_empty());
    }

    fn on_connection(number: u64) -> Flow {
        Flow {
            transport: Transport::Tcp,
            peer: "192.0.2.1:5060".parse().unwrap(),
            local: "198.51.100.1:5060".parse().unwrap(),
            connection: Some(ConnectionId(number)),
        }
    }
}
