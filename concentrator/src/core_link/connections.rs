//! Which TCP connections there are, and at which concentrator.
//!
//! The ends that are here are told to every peer, all of them when its link comes up and then each one
//! that opens or closes; those of the peers are remembered, so that a segment that an edge has sent here
//! can go where its connection is. Who opens a connection here has it, whatever a peer has said before.
//!
//! Bounded: ours by the limit of connections, a peer's by [`MAX_OF_A_PEER`].

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wire::core_link::{CONNECTIONS_A_MESSAGE, ConnectionRecord, CoreMessage};

use super::Outlet;

/// Connections of one peer that are remembered; the segments of any other are refused by our kernel.
pub const MAX_OF_A_PEER: usize = 250_000;

/// See the module.
#[derive(Debug, Default)]
pub struct ConnectionMap {
    inner: Mutex<Inner>,
    /// Connections at the peers: where there is none, nothing is looked up.
    elsewhere: AtomicUsize,
}

#[derive(Debug, Default)]
struct Inner {
    /// Ends that are here. The same addresses may be there twice while the earlier one is taken down.
    here: HashMap<ConnectionRecord, usize>,
    outlets: HashMap<u64, Outlet>,
    elsewhere: HashMap<ConnectionRecord, usize>,
    /// For each peer the link that speaks for it, and how many connections it has.
    of_peer: HashMap<usize, (u64, usize)>,
    next: u64,
}

/// A link that tells of a peer's connections; they are forgotten with it.
#[derive(Debug)]
pub struct Telling {
    map: Arc<ConnectionMap>,
    peer: usize,
    number: u64,
}

/// A connection that is here, until this is dropped.
#[derive(Debug)]
pub struct Here {
    map: Arc<ConnectionMap>,
    record: ConnectionRecord,
}

/// A link that is told of ours, until this is dropped.
#[derive(Debug)]
pub struct Told {
    map: Arc<ConnectionMap>,
    number: u64,
}

impl ConnectionMap {
    /// The peer that has this connection.
    pub fn peer_of(&self, record: &ConnectionRecord) -> Option<usize> {
        if self.elsewhere.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.lock().elsewhere.get(record).copied()
    }

    /// How many are here, and how many elsewhere.
    pub fn counts(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.here.len(), inner.elsewhere.len())
    }

    /// A connection was accepted.
    pub fn opened(self: &Arc<Self>, record: ConnectionRecord) -> Here {
        let mut inner = self.lock();
        *inner.here.entry(record).or_default() += 1;
        if let Some(peer) = inner.elsewhere.remove(&record) {
            inner.count(peer, |count| count.saturating_sub(1));
            self.publish(&inner);
        }
        inner.tell(|| CoreMessage::Opened {
            connections: vec![record],
        });
        Here {
            map: Arc::clone(self),
            record,
        }
    }

    /// Tells a peer of all connections here, and from now on of every change.
    pub fn tell(self: &Arc<Self>, outlet: Outlet) -> Told {
        let mut inner = self.lock();
        let here: Vec<ConnectionRecord> = inner.here.keys().copied().collect();
        for connections in here.chunks(CONNECTIONS_A_MESSAGE) {
            let connections = connections.to_vec();
            outlet.say_surely(CoreMessage::Opened { connections });
        }
        outlet.say_surely(CoreMessage::Complete);
        let number = inner.next();
        inner.outlets.insert(number, outlet);
        Told {
            map: Arc::clone(self),
            number,
        }
    }

    /// A peer's link is up: what was said of it before is void.
    pub fn listen_to(self: &Arc<Self>, peer: usize) -> Telling {
        let mut inner = self.lock();
        let number = inner.next();
        inner.elsewhere.retain(|_, of| *of != peer);
        inner.of_peer.insert(peer, (number, 0));
        self.publish(&inner);
        Telling {
            map: Arc::clone(self),
            peer,
            number,
        }
    }

    fn publish(&self, inner: &Inner) {
        self.elsewhere
            .store(inner.elsewhere.len(), Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn tell(&self, message: impl Fn() -> CoreMessage) {
        for outlet in self.outlets.values() {
            outlet.say_surely(message());
        }
    }

    fn count(&mut self, peer: usize, change: impl FnOnce(usize) -> usize) {
        if let Some((_, count)) = self.of_peer.get_mut(&peer) {
            *count = change(*count);
        }
    }

    /// The number of connections of a peer, where this link speaks for it.
    fn count_by(&self, peer: usize, number: u64) -> Option<usize> {
        let (speaks, count) = self.of_peer.get(&peer)?;
        (*speaks == number).then_some(*count)
    }
}

impl Telling {
    /// The peer has these connections. False where it has too many.
    pub fn opened(&self, connections: &[ConnectionRecord]) -> bool {
        let mut inner = self.map.lock();
        let Some(mut count) = inner.count_by(self.peer, self.number) else {
            return true;
        };
        let mut all = true;
        for record in connections {
            if inner.here.contains_key(record) {
                continue;
            }
            if count >= MAX_OF_A_PEER {
                all = false;
                break;
            }
            match inner.elsewhere.insert(*record, self.peer) {
                Some(before) if before == self.peer => {}
                Some(before) => {
                    inner.count(before, |count| count.saturating_sub(1));
                    count += 1;
                }
                None => count += 1,
            }
        }
        inner.count(self.peer, |_| count);
        self.map.publish(&inner);
        all
    }

    /// It has them no more.
    pub fn closed(&self, connections: &[ConnectionRecord]) {
        let mut inner = self.map.lock();
        let Some(mut count) = inner.count_by(self.peer, self.number) else {
            return;
        };
        for record in connections {
            if inner.elsewhere.get(record) == Some(&self.peer) {
                inner.elsewhere.remove(record);
                count = count.saturating_sub(1);
            }
        }
        inner.count(self.peer, |_| count);
        self.map.publish(&inner);
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        let mut inner = self.map.lock();
        if inner.count_by(self.peer, self.number).is_some() {
            inner.of_peer.remove(&self.peer);
            let peer = self.peer;
            inner.elsewhere.retain(|_, of| *of != peer);
            self.map.publish(&inner);
        }
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        let mut inner = self.map.lock();
        if let Some(count) = inner.here.get_mut(&self.record) {
            *count -= 1;
            if *count == 0 {
                inner.here.remove(&self.record);
                let connections = vec![self.record];
                inner.tell(|| CoreMessage::Closed {
                    connections: connections.clone(),
                });
            }
        }
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.map.lock().outlets.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_told_of_what_there_is_and_of_what_changes() {
        let map = Arc::new(ConnectionMap::default());
        let first = map.opened(record(1));
        let (outlet, mut told) = Outlet::new();
        let _told = map.tell(outlet);
        let second = map.opened(record(2));
        drop(first);
        drop(second);
        let said: Vec<_> = std::iter::from_fn(|| told.try_recv().ok()).collect();
        let opened = |record| CoreMessage::Opened {
            connections: vec![record],
        };
        let closed = |record| CoreMessage::Closed {
            connections: vec![record],
        };
        let expected = [
            opened(record(1)),
            CoreMessage::Complete,
            opened(record(2)),
            closed(record(1)),
            closed(record(2)),
        ];
        assert_eq!(said, expected);
    }

    #[test]
    fn a_peers_connections_are_known_until_they_close_or_its_link_ends() {
        let map = Arc::new(ConnectionMap::default());
        let telling = map.listen_to(7);
        assert!(telling.opened(&[record(1), record(2), record(3)]));
        telling.closed(&[record(1)]);
        assert_eq!(map.peer_of(&record(1)), None);
        assert_eq!(map.peer_of(&record(2)), Some(7));
        let here = map.opened(record(2));
        assert_eq!(map.peer_of(&record(2)), None, "who opens it has it");
        assert!(telling.opened(&[record(2)]));
        assert_eq!(map.peer_of(&record(2)), None);
        drop(here);
        drop(telling);
        assert_eq!(map.counts(), (0, 0));
        assert_eq!(map.peer_of(&record(3)), None);
    }

    #[test]
    fn the_newest_link_speaks_for_its_peer() {
        let map = Arc::new(ConnectionMap::default());
        let old = map.listen_to(0);
        old.opened(&[record(1)]);
        let new = map.listen_to(0);
        new.opened(&[record(2)]);
        old.opened(&[record(3)]);
        old.closed(&[record(2)]);
        drop(old);
        let known = [1, 2, 3].map(|port| map.peer_of(&record(port)));
        assert_eq!(known, [None, Some(0), None]);
    }

    #[test]
    fn a_peer_cannot_make_the_table_grow_for_ever() {
        let map = Arc::new(ConnectionMap::default());
        let telling = map.listen_to(0);
        let mut all = true;
        for address in 0..10 {
            let records: Vec<_> = (0..30_000).map(|port| of(address, port)).collect();
            all &= telling.opened(&records);
        }
        assert!(!all);
        assert_eq!(map.counts(), (0, MAX_OF_A_PEER));
    }

    #[test]
    fn a_link_that_cannot_follow_begins_anew() {
        let map = Arc::new(ConnectionMap::default());
        let (outlet, told) = Outlet::new();
        let overrun = Arc::clone(&outlet.overrun);
        let _told = map.tell(outlet);
        for port in 0..super::super::QUEUE as u16 + 1 {
            drop(map.opened(record(port)));
        }
        drop(told);
        let noted = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap()
            .block_on(async {
                tokio::time::timeout(std::time::Duration::from_secs(5), overrun.notified()).await
            });
        assert!(noted.is_ok());
    }

    fn record(port: u16) -> ConnectionRecord {
        of(7, port)
    }

    fn of(host: u8, port: u16) -> ConnectionRecord {
        ConnectionRecord {
            peer: ([203, 0, 113, host], port).into(),
            local: ([198, 51, 100, 1], 5060).into(),
        }
    }
}
