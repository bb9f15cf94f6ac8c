//! Timer values, and the table that knows which deadline comes next.
//!
//! [`Timers`] holds the base values of RFC 3261 table 4; the transactions derive timers A to M
//! from them. [`Repeat`] is a retransmission schedule that a transaction state carries. [`Fired`]
//! is what a transaction answers when one of its deadlines has come. [`Deadlines`] maps a small
//! slot number to one instant each and finds the earliest; it holds at most one entry for each
//! slot, so its size is bounded by the table that it serves.

use std::time::{Duration, Instant};

use bytes::Bytes;

/// The base values (RFC 3261 section 17.1.1.1 and table 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timers {
    /// Estimate of the round-trip time.
    pub t1: Duration,
    /// Longest interval between retransmissions of a non-INVITE request or an INVITE response.
    pub t2: Duration,
    /// Longest time that a message stays in the network.
    pub t4: Duration,
    /// Timer D: how long an INVITE client waits for retransmitted failures over an unreliable
    /// transport. RFC 3261 section 17.1.1.2 asks for at least 32 s whatever T1 is.
    pub d: Duration,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            t1: Duration::from_millis(500),
            t2: Duration::from_secs(4),
            t4: Duration::from_secs(5),
            d: Duration::from_secs(32),
        }
    }
}

impl Timers {
    /// How long Timer E, which begins at T1 and doubles, takes to be reset to T2: 3.5 s by default.
    /// RFC 4320 section 4.1 forbids a 100 to a non-INVITE over UDP before then, and demands one
    /// afterwards.
    pub fn until_t2(&self) -> Duration {
        let mut interval = self.t1.max(Duration::from_millis(1));
        let mut elapsed = Duration::ZERO;
        while interval < self.t2 {
            elapsed += interval;
            interval *= 2;
        }
        elapsed
    }

    /// 64*T1, the life of a transaction: timers B, F, H, J (RFC 3261) and L, M (RFC 6026).
    pub fn lifetime(&self) -> Duration {
        self.t1 * 64
    }
}

/// When to send a message again: never over a reliable transport, else at growing intervals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// The transport retransmits by itself.
    Never,
    /// Over datagrams.
    At {
        /// The next retransmission.
        at: Instant,
        /// The time between the last transmission and the next.
        interval: Duration,
    },
}

impl Repeat {
    /// A schedule whose first retransmission comes after `interval`.
    pub fn starting(reliable: bool, interval: Duration, now: Instant) -> Self {
        if reliable {
            return Self::Never;
        }
        // A zero interval would fire for ever at one instant.
        let interval = interval.max(Duration::from_millis(1));
        Self::At {
            at: now + interval,
            interval,
        }
    }

    /// True when a retransmission is due. The next one then comes after what `next` makes of the
    /// interval that has passed, counted from `now`: a late event loop sends once, not a burst.
    pub fn fire(&mut self, now: Instant, next: impl FnOnce(Duration) -> Duration) -> bool {
        match *self {
            Self::At { at, interval } if at <= now => {
                *self = Self::starting(false, next(interval), now);
                true
            }
            Self::At { .. } | Self::Never => false,
        }
    }

    /// The earlier of the next retransmission and the end of the state, with their names.
    pub fn or_end(
        &self,
        repeat: &'static str,
        expires_at: Instant,
        end: &'static str,
    ) -> (Instant, &'static str) {
        match *self {
            Self::At { at, .. } if at < expires_at => (at, repeat),
            Self::At { .. } | Self::Never => (expires_at, end),
        }
    }
}

/// What a transaction does at a deadline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fired {
    /// No deadline had come yet.
    Nothing,
    /// Send this again.
    Send(Bytes),
    /// Nobody has answered a non-INVITE for so long that its sender must hear of it.
    Slow,
    /// The other side did not answer in time, and the transaction has ended.
    TimedOut,
    /// The transaction has done its duty and has ended.
    Ended,
}

/// One instant for each slot, and which slot is due next: a binary heap that knows where in it
/// each slot lies, so that a deadline can be moved or forgotten at once.
#[derive(Debug, Default)]
pub struct Deadlines {
    heap: Vec<(Instant, u32)>,
    /// Slot -> place in `heap`.
    place: Vec<Option<u32>>,
}

impl Deadlines {
    /// The slot that is due first; of several at one instant the lowest.
    pub fn next(&self) -> Option<(Instant, u32)> {
        self.heap.first().copied()
    }

    /// How many slots have a deadline.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// True when nothing is due, ever.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    /// Gives the slot this deadline, whatever it had before; `None` forgets it.
    pub fn set(&mut self, slot: u32, at: Option<Instant>) {
        let place = self.place.get(slot as usize).copied().flatten();
        match (place, at) {
            (None, None) => {}
            (None, Some(at)) => self.add(slot, at),
            (Some(place), None) => self.remove(place as usize),
            (Some(place), Some(at)) => {
                self.heap[place as usize].0 = at;
                self.settle(place as usize);
            }
        }
    }

    fn add(&mut self, slot: u32, at: Instant) {
        if self.place.len() <= slot as usize {
            self.place.resize(slot as usize + 1, None);
        }
        self.heap.push((at, slot));
        self.settle(self.heap.len() - 1);
    }

    fn remove(&mut self, place: usize) {
        let (_, slot) = self.heap.swap_remove(place);
        self.place[slot as usize] = None;
        if place < self.heap.len() {
            self.settle(place);
        }
    }

    /// Moves the entry at `place` up or down to where it belongs.
    fn settle(&mut self, mut place: usize) {
        while place > 0 && self.heap[place] < self.heap[(place - 1) / 2] {
            let parent = (place - 1) / 2;
            self.swap(place, parent);
            place = parent;
        }
        loop {
            let left = 2 * place + 1;
            let Some(child) = (left..self.heap.len().min(left + 2)).min_by_key(|&c| self.heap[c])
            else {
                break;
            };
            if self.heap[place] <= self.heap[child] {
                break;
            }
            self.swap(place, child);
            place = child;
        }
        self.note(place);
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.note(a);
        self.note(b);
    }

    fn note(&mut self, place: usize) {
        let (_, slot) = self.heap[place];
        self.place[slot as usize] = u32::try_from(place).ok();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_table_agrees_with_a_sorted_list(
            changes in prop::collection::vec((0..20_u32, prop::option::of(0..50_u64)), 1..300),
        ) {
            let start = start();
            let mut table = Deadlines::default();
            let mut model = BTreeMap::new();
            for (slot, milliseconds) in changes {
                let at = milliseconds.map(|ms| start + Duration::from_millis(ms));
                table.set(slot, at);
                match at {
                    Some(at) => model.insert(slot, at),
                    None => model.remove(&slot),
                };
                let first = model.iter().map(|(&slot, &at)| (at, slot)).min();
                prop_assert_eq!(table.next(), first);
                prop_assert_eq!(table.len(), model.len());
            }
            let mut order = Vec::new();
            while let Some((at, slot)) = table.next() {
                order.push((at, slot));
                table.set(slot, None);
            }
            let mut expected: Vec<_> = model.into_iter().map(|(slot, at)| (at, slot)).collect();
            expected.sort_unstable();
            prop_assert_eq!(order, expected);
        }
    }

    #[test]
    fn a_deadline_that_moves_a_million_times_takes_one_place() {
        let mut table = Deadlines::default();
        for n in 0..1_000_000 {
            table.set(3, Some(start() + Duration::from_nanos(n)));
        }
        assert_eq!(table.len(), 1);
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "an Instant cannot be made from nothing"
    )]
    fn start() -> Instant {
        Instant::now()
    }
}
