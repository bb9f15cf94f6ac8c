//! With which relay a flow was seen, since when, and how often that changed: the drift of its route.
//!
//! A flow that never drifts costs the two times; the first change allocates its history, of which the
//! last [`KEPT`] changes stay. [`Census`] has the sums for each edge, kept up to date change by
//! change, because nobody can walk over all flows for every look at the metrics.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use wire::gre::TunnelKey;
use wire::mark::RelayId;

/// Changes of one flow that are remembered.
pub const KEPT: usize = 8;

/// How a flow was seen last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    relay: Option<RelayId>,
    since: Instant,
    /// From then until the last message, in seconds: there are as many of these as there are phones.
    lasted_s: u32,
    drift: Option<Box<Drift>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Drift {
    changes: u64,
    recent: VecDeque<PathChange>,
}

/// A flow was seen with another relay than before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathChange {
    /// When the first message came by the new path.
    pub at: Instant,
    /// The relay before; `None`: it came without a tunnel or without a mark.
    pub from: Option<RelayId>,
    /// The relay after.
    pub to: Option<RelayId>,
}

impl Sighting {
    pub(super) const fn new(relay: Option<RelayId>, now: Instant) -> Self {
        Self {
            relay,
            since: now,
            lasted_s: 0,
            drift: None,
        }
    }

    /// It was seen again; the relay before, where that was another.
    pub(super) fn again(&mut self, relay: Option<RelayId>, now: Instant) -> Option<PathChange> {
        if self.relay == relay {
            let lasted = now.saturating_duration_since(self.since).as_secs();
            self.lasted_s = u32::try_from(lasted).unwrap_or(u32::MAX);
            return None;
        }
        let change = PathChange {
            at: now,
            from: std::mem::replace(&mut self.relay, relay),
            to: relay,
        };
        (self.since, self.lasted_s) = (now, 0);
        let drift = self.drift.get_or_insert_default();
        drift.changes += 1;
        if drift.recent.len() == KEPT {
            drift.recent.pop_front();
        }
        drift.recent.push_back(change);
        Some(change)
    }

    /// The relay that the last message named.
    pub const fn relay(&self) -> Option<RelayId> {
        self.relay
    }

    /// When a message first named it after the one before.
    pub const fn since(&self) -> Instant {
        self.since
    }

    /// When the last message came, to the second.
    pub fn last(&self) -> Instant {
        self.since + Duration::from_secs(self.lasted_s.into())
    }

    /// How often the relay changed.
    pub fn changes(&self) -> u64 {
        self.drift.as_ref().map_or(0, |drift| drift.changes)
    }

    /// The last changes, the oldest first.
    pub fn recent(&self) -> impl Iterator<Item = PathChange> {
        let drift = self.drift.iter();
        drift.flat_map(|drift| drift.recent.iter().copied())
    }
}

/// What there is of one edge.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OfEdge {
    /// Bindings that were seen by it last.
    pub bindings: usize,
    /// Bindings that came to it from another path, or from another relay of its own.
    pub arrivals: u64,
}

/// The sums of all flows, by edge.
#[derive(Debug, Default)]
pub(super) struct Census {
    /// The edges are those of the configuration, so there are few.
    edges: HashMap<Option<TunnelKey>, OfEdge>,
}

impl Census {
    pub(super) fn joined(&mut self, relay: Option<RelayId>) {
        self.of(relay).bindings += 1;
    }

    pub(super) fn left(&mut self, relay: Option<RelayId>) {
        let of = self.of(relay);
        of.bindings = of.bindings.saturating_sub(1);
    }

    /// All bindings of a flow changed their path.
    pub(super) fn moved(&mut self, change: PathChange, bindings: usize) {
        let before = self.of(change.from);
        before.bindings = before.bindings.saturating_sub(bindings);
        let after = self.of(change.to);
        after.bindings += bindings;
        after.arrivals += bindings as u64;
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Option<TunnelKey>, OfEdge)> {
        self.edges.iter().map(|(key, of)| (*key, *of))
    }

    fn of(&mut self, relay: Option<RelayId>) -> &mut OfEdge {
        self.edges.entry(relay.map(|relay| relay.key)).or_default()
    }
}
