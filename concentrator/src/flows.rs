//! The flow table: through which edge, and with which mark, a user agent's packets came last.
//!
//! A SIP socket learns a datagram's mark from IP_RECVTOS, but never its tunnel key; and of a TCP
//! connection the kernel remembers only the ToS of the handshake, which a route flip makes stale.
//! So the decapsulator [`note`](FlowTable::note)s each accepted packet before it hands it to the
//! kernel, and the transports ask [`relay_of`](FlowTable::relay_of) when they read the message.
//!
//! Keyed by protocol, source address and source port. The size is fixed at the start: a set of
//! [`WAYS`] entries per hash value, of which the one not seen for longest gives way. No sender can
//! make the table grow, and the hash is keyed so that none can choose its set.
//!
//! Weak spot: the entry may be newer than the datagram being read, when the route flipped in
//! between. The previous path is kept for that; where both edges use the same mark the newer one
//! is named, which is where the next packet will come from anyway.

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use wire::gre::TunnelKey;
use wire::mark::{Mark, RelayId};

/// Entries that share one hash value.
const WAYS: usize = 8;

/// The transport protocols that have ports here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FlowProtocol {
    /// User datagrams.
    Udp,
    /// TCP segments.
    Tcp,
}

/// The way that a packet took into the core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// The edge.
    pub key: TunnelKey,
    /// The mark, which may be 0.
    pub mark: Mark,
}

impl Path {
    /// The relay that this path names; `None` when unmarked.
    pub fn relay(self) -> Option<RelayId> {
        (!self.mark.is_unmarked()).then_some(RelayId {
            key: self.key,
            mark: self.mark,
        })
    }
}

/// What the table knows of one flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// The path of the last packet.
    pub path: Path,
    /// The path before the last change.
    pub previous: Option<Path>,
    /// When the last packet came.
    pub at: Instant,
    /// How often the path changed.
    pub drifts: u32,
}

/// What [`FlowTable::note`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noted {
    /// A flow that the table did not know.
    New,
    /// The same path as before.
    Same,
    /// The flow lives and its path changed: the route to it flipped.
    Drifted,
}

/// Totals for metrics and status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FlowCounts {
    /// Flows in the table.
    pub flows: u64,
    /// Path changes of live flows.
    pub drifts: u64,
    /// Flows that gave way to newer ones.
    pub evicted: u64,
}

/// See the module.
#[derive(Debug)]
pub struct FlowTable<S = RandomState> {
    hasher: S,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    slots: Vec<Option<Slot>>,
    counts: FlowCounts,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    protocol: FlowProtocol,
    peer: SocketAddr,
    seen: Seen,
}

impl FlowTable {
    /// A table of at least `capacity` flows, all allocated now.
    pub fn new(capacity: usize) -> Self {
        Self::with_hasher(capacity, RandomState::new())
    }
}

impl<S: BuildHasher> FlowTable<S> {
    /// The same with a hasher of the caller's choice.
    pub fn with_hasher(capacity: usize, hasher: S) -> Self {
        let sets = capacity.div_ceil(WAYS).max(1).next_power_of_two();
        Self {
            hasher,
            inner: Mutex::new(Inner {
                slots: vec![None; sets * WAYS],
                counts: FlowCounts::default(),
            }),
        }
    }

    /// A packet of this flow was accepted.
    pub fn note(
        &self,
        protocol: FlowProtocol,
        peer: SocketAddr,
        path: Path,
        now: Instant,
    ) -> Noted {
        let hash = self.hash(protocol, peer);
        let mut inner = self.lock();
        let Inner { slots, counts } = &mut *inner;
        let set = set_of(hash, slots);
        if let Some(slot) = find_mut(set, protocol, peer) {
            return slot.seen.advance(path, now, counts);
        }
        let fresh = Slot {
            protocol,
            peer,
            seen: Seen {
                path,
                previous: None,
                at: now,
                drifts: 0,
            },
        };
        let oldest = set.iter_mut().min_by_key(|slot| slot.map(|s| s.seen.at));
        if let Some(victim) = oldest {
            match victim.replace(fresh) {
                Some(_) => counts.evicted += 1,
                None => counts.flows += 1,
            }
        }
        Noted::New
    }

    /// What is known of this flow.
    pub fn seen(&self, protocol: FlowProtocol, peer: SocketAddr) -> Option<Seen> {
        let hash = self.hash(protocol, peer);
        let mut inner = self.lock();
        let set = set_of(hash, &mut inner.slots);
        find_mut(set, protocol, peer).map(|slot| slot.seen)
    }

    /// The relay that the flow's last message names.
    ///
    /// `mark_hint` is the mark on the datagram itself, where the socket tells; it decides between
    /// the present path and the one before. Without a hint the present path answers.
    pub fn relay_of(
        &self,
        protocol: FlowProtocol,
        peer: SocketAddr,
        mark_hint: Option<Mark>,
    ) -> Option<RelayId> {
        let seen = self.seen(protocol, peer)?;
        let Some(mark) = mark_hint else {
            return seen.path.relay();
        };
        if mark.is_unmarked() {
            return None;
        }
        let before = seen.previous.filter(|previous| previous.mark == mark);
        match before {
            Some(previous) if seen.path.mark != mark => previous.relay(),
            Some(_) | None => seen.path.relay(),
        }
    }

    /// The totals so far.
    pub fn counts(&self) -> FlowCounts {
        self.lock().counts
    }

    fn hash(&self, protocol: FlowProtocol, peer: SocketAddr) -> u64 {
        self.hasher.hash_one((protocol, peer.ip(), peer.port()))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every state of the table is a valid one, also after a panic elsewhere.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn advance(&mut self, path: Path, now: Instant, counts: &mut FlowCounts) -> Noted {
        self.at = now;
        if self.path == path {
            return Noted::Same;
        }
        self.previous = Some(self.path);
        self.path = path;
        self.drifts = self.drifts.saturating_add(1);
        counts.drifts += 1;
        Noted::Drifted
    }
}

fn set_of(hash: u64, slots: &mut [Option<Slot>]) -> &mut [Option<Slot>] {
    let sets = (slots.len() / WAYS) as u64;
    // The number of sets is a power of two that fits usize, so the cast keeps every bit.
    let first = (hash & (sets - 1)) as usize * WAYS;
    &mut slots[first..first + WAYS]
}

fn find_mut(
    set: &mut [Option<Slot>],
    protocol: FlowProtocol,
    peer: SocketAddr,
) -> Option<&mut Slot> {
    set.iter_mut().flatten().find(|slot| {
        slot.protocol == protocol && slot.peer.port() == peer.port() && slot.peer.ip() == peer.ip()
    })
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "tests need some instant to count from"
)]
mod tests {
    use std::hash::{BuildHasherDefault, DefaultHasher};
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_last_packet_names_the_relay() {
        let (table, t0) = (FlowTable::new(64), Instant::now());
        table.note(FlowProtocol::Tcp, peer(1), path(0x1001, 1), t0);
        assert_eq!(
            table.relay_of(FlowProtocol::Tcp, peer(1), None),
            path(0x1001, 1).relay()
        );
        table.note(FlowProtocol::Tcp, peer(1), path(0x1002, 2), t0);
        assert_eq!(
            table.relay_of(FlowProtocol::Tcp, peer(1), None),
            path(0x1002, 2).relay()
        );
    }

    #[test]
    fn a_path_change_of_a_live_flow_is_drift() {
        let (table, t0) = (FlowTable::new(64), Instant::now());
        let note = |key, mark| table.note(FlowProtocol::Udp, peer(1), path(key, mark), t0);
        assert_eq!(note(1, 1), Noted::New);
        assert_eq!(note(1, 1), Noted::Same);
        assert_eq!(note(2, 1), Noted::Drifted);
        assert_eq!(note(2, 2), Noted::Drifted);
        assert_eq!(table.counts().drifts, 2);
        assert_eq!(table.seen(FlowProtocol::Udp, peer(1)).unwrap().drifts, 2);
    }

    #[test]
    fn udp_and_tcp_of_one_port_are_two_flows() {
        let (table, t0) = (FlowTable::new(64), Instant::now());
        table.note(FlowProtocol::Udp, peer(1), path(1, 1), t0);
        assert_eq!(table.relay_of(FlowProtocol::Tcp, peer(1), None), None);
        assert_eq!(table.counts().flows, 1);
    }

    #[test]
    fn the_datagrams_own_mark_picks_the_path_it_came_by() {
        let (table, t0) = (FlowTable::new(64), Instant::now());
        table.note(FlowProtocol::Udp, peer(1), path(0x1001, 1), t0);
        table.note(FlowProtocol::Udp, peer(1), path(0x1002, 2), t0);
        let relay_of = |mark| table.relay_of(FlowProtocol::Udp, peer(1), Mark::new(mark));
        assert_eq!(relay_of(1), path(0x1001, 1).relay());
        assert_eq!(relay_of(2), path(0x1002, 2).relay());
        assert_eq!(relay_of(0), None, "an unmarked datagram names no relay");
    }

    #[test]
    fn an_unmarked_path_names_no_relay() {
        let (table, t0) = (FlowTable::new(64), Instant::now());
        table.note(FlowProtocol::Tcp, peer(1), path(1, 0), t0);
        assert_eq!(table.relay_of(FlowProtocol::Tcp, peer(1), None), None);
    }

    #[test]
    fn a_full_set_forgets_the_flow_not_seen_for_longest() {
        let hasher = BuildHasherDefault::<DefaultHasher>::default();
        let (table, t0) = (FlowTable::with_hasher(WAYS, hasher), Instant::now());
        for port in 0..WAYS as u16 {
            let at = t0 + Duration::from_secs(u64::from(port));
            table.note(FlowProtocol::Udp, peer(port), path(1, 1), at);
        }
        let later = t0 + Duration::from_secs(60);
        table.note(FlowProtocol::Udp, peer(0), path(1, 1), later);
        table.note(FlowProtocol::Udp, peer(99), path(1, 1), later);
        assert!(table.seen(FlowProtocol::Udp, peer(0)).is_some());
        assert!(table.seen(FlowProtocol::Udp, peer(1)).is_none());
        let counts = table.counts();
        assert_eq!((counts.flows, counts.evicted), (WAYS as u64, 1));
    }

    #[test]
    fn a_flood_of_sources_does_not_make_the_table_grow() {
        let (table, t0) = (FlowTable::new(256), Instant::now());
        for port in 0..10_000 {
            table.note(FlowProtocol::Udp, peer(port), path(1, 1), t0);
        }
        let counts = table.counts();
        assert!(counts.flows <= 256);
        assert_eq!(counts.flows + counts.evicted, 10_000);
    }

    fn peer(port: u16) -> SocketAddr {
        SocketAddr::from(([203, 0, 113, 7], port))
    }

    fn path(key: u32, mark: u8) -> Path {
        Path {
            key: TunnelKey(key),
            mark: Mark::new(mark).unwrap(),
        }
    }
}
