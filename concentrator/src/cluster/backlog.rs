//! What is to be written into the bucket: the last version of each binding, what is under way, and what may
//! wait. No clock, no connection.
//!
//! A refresh that moved nothing but the time may wait, if the bucket's record is not older than a given part of
//! the time that the refresh grants; it is written when the record is. So of a phone that registers often few
//! records are written, and whoever has only the bucket lets a binding end by that part too early at most.
//!
//! What nobody has acknowledged in time is given out once more, for the others to hear of it another way.
//!
//! Of one binding one record is under way at a time. One that is refused or not acknowledged in time goes
//! again, encoded anew, and the last version that there is by then.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::{Duration, Instant};

use sip::registrar::record::{Clock, Record, encode_version};

use super::bucket::Key;

/// Bindings that wait to be written; more are dropped, and all bindings compared afterwards.
const MAX_WAITING: usize = 262_144;
/// Of those, refreshes that wait for their time. Further ones are written at once: that costs more and loses nothing.
const MAX_DEFERRED: usize = MAX_WAITING / 2;
/// What was dropped can be compared again when so few wait.
const ROOM: usize = MAX_WAITING / 8;
/// Records under way at a time.
const WINDOW: usize = 1024;
/// One that is not acknowledged for so long goes again.
const PATIENCE: Duration = Duration::from_secs(2);
/// One that is not acknowledged for so long should be heard of otherwise.
const OVERDUE: Duration = Duration::from_millis(200);
/// So many of those at a time.
const OVERDUE_AT_A_TIME: usize = 512;
/// One that was refused goes again after this.
const RETRY: Duration = Duration::from_millis(250);

/// The record that is to go out.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outgoing {
    /// Its acknowledgement is known by this.
    pub(super) token: u64,
    pub(super) key: Key,
    pub(super) bytes: Vec<u8>,
}

/// What is to be written of one binding.
#[derive(Debug)]
struct Item {
    record: Record,
    /// Who waits for it.
    numbers: Vec<u64>,
    since: Instant,
    /// It was given out as overdue.
    told: bool,
}

#[derive(Debug)]
struct Flight {
    key: Key,
    item: Item,
    sent_at: Instant,
}

/// What the bucket has of one binding.
#[derive(Debug, Clone, Copy)]
struct Written {
    at: Instant,
    version: u32,
}

/// What happened so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counters {
    pub(super) written: u64,
    pub(super) coalesced: u64,
    pub(super) refused: u64,
    pub(super) retried: u64,
    pub(super) dropped: u64,
    /// Refreshes written at once although they could wait, because too many do.
    pub(super) not_deferred: u64,
}

#[derive(Debug)]
pub(super) struct Backlog {
    coalesce_percent: u32,
    waiting: HashMap<Key, Item>,
    ready: VecDeque<Key>,
    /// What was to be written at once, and when.
    begun: VecDeque<(Instant, Key)>,
    later: BTreeSet<(Instant, Key)>,
    /// The same by key.
    due: HashMap<Key, Instant>,
    flights: HashMap<u64, Flight>,
    busy: HashMap<Key, u64>,
    written: HashMap<Key, Written>,
    last_token: u64,
    /// Something was dropped.
    lost: bool,
    counters: Counters,
}

impl Backlog {
    pub(super) fn new(coalesce_percent: u8) -> Self {
        Self {
            coalesce_percent: coalesce_percent.into(),
            waiting: HashMap::new(),
            ready: VecDeque::new(),
            begun: VecDeque::new(),
            later: BTreeSet::new(),
            due: HashMap::new(),
            flights: HashMap::new(),
            busy: HashMap::new(),
            written: HashMap::new(),
            last_token: 0,
            lost: false,
            counters: Counters::default(),
        }
    }

    /// A binding has changed. True where nobody need wait for that to be written.
    pub(super) fn add(
        &mut self,
        record: Record,
        prolonged: bool,
        number: Option<u64>,
        now: Instant,
    ) -> bool {
        let key = Key::of(&record.user, &record.binding);
        let granted = record
            .binding
            .expires_at
            .saturating_duration_since(record.binding.registered_at);
        let may_wait = granted * self.coalesce_percent / 100;
        let written = self.written.get(&key).map(|written| written.at);
        let until = written.map(|at| at + may_wait).filter(|until| *until > now);
        let mut deferred = until.filter(|_| prolonged && !self.is_urgent(key));
        if deferred.is_some() && self.due.len() >= MAX_DEFERRED && !self.due.contains_key(&key) {
            self.counters.not_deferred += 1;
            deferred = None;
        }
        if self.waiting.len() >= MAX_WAITING && !self.waiting.contains_key(&key) {
            self.counters.dropped += 1;
            self.lost = true;
            return false;
        }
        match self.waiting.entry(key) {
            Entry::Occupied(mut entry) => {
                let item = entry.get_mut();
                item.record = record;
                item.told &= number.is_none();
                self.counters.coalesced += 1;
                if deferred.is_none() {
                    item.numbers.extend(number);
                }
            }
            Entry::Vacant(entry) => {
                self.counters.coalesced += u64::from(deferred.is_some());
                entry.insert(Item {
                    record,
                    numbers: number.filter(|_| deferred.is_none()).into_iter().collect(),
                    since: now,
                    // The others have what is written again because the bucket lacks it.
                    told: number.is_none(),
                });
            }
        }
        match deferred {
            Some(until) => self.defer(key, until),
            None => self.begin(key, now),
        }
        deferred.is_some()
    }

    /// What the bucket has, as was heard from it; false where that is known.
    pub(super) fn heard(&mut self, key: Key, record: &Record, at: Instant) -> bool {
        let version = version_of(record);
        let before = self.written.insert(key, Written { at, version });
        before.is_none_or(|before| before.version != version)
    }

    /// A binding as it is; it is written where the bucket has it otherwise or not at all.
    pub(super) fn compare(&mut self, record: Record, now: Instant) -> bool {
        let key = Key::of(&record.user, &record.binding);
        let known = self.written.get(&key).map(|written| written.version);
        let missing = known != Some(version_of(&record))
            && !self.waiting.contains_key(&key)
            && !self.busy.contains_key(&key);
        if missing {
            self.add(record, false, None, now);
        }
        missing
    }

    /// The next record to send.
    pub(super) fn take(&mut self, clock: &Clock, now: Instant) -> Option<Outgoing> {
        self.ripen(now);
        while self.flights.len() < WINDOW {
            let key = self.ready.pop_front()?;
            // Another record of it is under way; its end brings this one back.
            if self.busy.contains_key(&key) {
                continue;
            }
            let Some(item) = self.waiting.remove(&key) else {
                continue;
            };
            let Record {
                user,
                binding,
                removed,
            } = &item.record;
            let bytes = encode_version(user, binding, *removed, clock);
            self.last_token += 1;
            let token = self.last_token;
            let flight = Flight {
                key,
                item,
                sent_at: now,
            };
            self.flights.insert(token, flight);
            self.busy.insert(key, token);
            return Some(Outgoing { token, key, bytes });
        }
        None
    }

    /// Records that should have been acknowledged by now, each version once. Without a clock they are nobody's.
    pub(super) fn overdue(&mut self, clock: Option<&Clock>, now: Instant) -> Vec<Vec<u8>> {
        self.ripen(now);
        let mut records = Vec::new();
        while records.len() < OVERDUE_AT_A_TIME
            && let Some((at, key)) = self.begun.front().copied()
            && at + OVERDUE <= now
        {
            self.begun.pop_front();
            // It begins again when its time has come.
            if self.due.contains_key(&key) {
                continue;
            }
            let under_way = self.busy.get(&key);
            let under_way = under_way.and_then(|token| self.flights.get_mut(token));
            let item = match self.waiting.get_mut(&key) {
                Some(item) => Some(item),
                None => under_way.map(|flight| &mut flight.item),
            };
            if let (Some(item), Some(clock)) = (item.filter(|item| !item.told), clock) {
                item.told = true;
                let Record {
                    user,
                    binding,
                    removed,
                } = &item.record;
                records.push(encode_version(user, binding, *removed, clock));
            }
        }
        records
    }

    /// It is in the bucket; gives who waited for it.
    pub(super) fn acknowledged(&mut self, token: u64, now: Instant) -> Vec<u64> {
        let Some(flight) = self.flights.remove(&token) else {
            return Vec::new();
        };
        self.busy.remove(&flight.key);
        let version = version_of(&flight.item.record);
        self.written
            .insert(flight.key, Written { at: now, version });
        self.counters.written += 1;
        if self.waiting.contains_key(&flight.key) && !self.due.contains_key(&flight.key) {
            self.ready.push_back(flight.key);
        }
        flight.item.numbers
    }

    /// It is not.
    pub(super) fn refused(&mut self, token: u64, now: Instant) {
        self.counters.refused += 1;
        if let Some(key) = self.back(token) {
            self.defer(key, now + RETRY);
        }
    }

    /// What has been under way for too long goes again.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        let late = |flight: &Flight| now.saturating_duration_since(flight.sent_at) >= PATIENCE;
        self.again(late);
    }

    /// What was under way is lost: it goes again.
    pub(super) fn disconnected(&mut self) {
        self.again(|_| true);
    }

    /// Everything is to be compared anew; nobody waits any more.
    pub(super) fn clear(&mut self) {
        let Self {
            coalesce_percent,
            last_token,
            counters,
            ..
        } = *self;
        *self = Self::new(0);
        (self.coalesce_percent, self.last_token) = (coalesce_percent, last_token);
        self.counters = counters;
    }

    /// The bucket does not have this any more. True where it had.
    pub(super) fn forget(&mut self, key: Key) -> bool {
        self.written.remove(&key).is_some()
    }

    /// The bucket is another one, and has nothing of what was written.
    pub(super) fn forget_written(&mut self) {
        self.written.clear();
    }

    /// True where few enough wait for more to be added.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() - self.due.len() <= ROOM
    }

    /// True once after something was dropped.
    pub(super) fn take_lost(&mut self) -> bool {
        std::mem::take(&mut self.lost)
    }

    /// Forgets what the bucket has had for so long that it has no more.
    pub(super) fn prune(&mut self, max_age: Duration, now: Instant) {
        self.written
            .retain(|_, written| now.saturating_duration_since(written.at) < max_age);
    }

    /// Records that are to be written at once, and those under way.
    pub(super) fn len(&self) -> usize {
        (self.waiting.len() - self.due.len()) + self.flights.len()
    }

    /// Since when the oldest of those waits.
    pub(super) fn oldest(&self) -> Option<Instant> {
        let under_way = self.flights.values().map(|flight| flight.item.since);
        let first = self.ready.front().and_then(|key| self.waiting.get(key));
        under_way.chain(first.map(|item| item.since)).min()
    }

    pub(super) fn deferred(&self) -> usize {
        self.due.len()
    }

    pub(super) fn counters(&self) -> Counters {
        self.counters
    }

    fn is_urgent(&self, key: Key) -> bool {
        self.waiting.contains_key(&key) && !self.due.contains_key(&key)
    }

    fn defer(&mut self, key: Key, until: Instant) {
        // The earlier time stays: it is that of the bucket's record.
        if let Entry::Vacant(entry) = self.due.entry(key) {
            entry.insert(until);
            self.later.insert((until, key));
        }
    }

    /// What has waited for its time is to be written.
    fn ripen(&mut self, now: Instant) {
        while let Some((at, key)) = self.later.first().copied()
            && at <= now
        {
            self.begin(key, now);
        }
    }

    fn begin(&mut self, key: Key, now: Instant) {
        self.make_ready(key);
        if self.begun.len() >= MAX_WAITING {
            self.begun.pop_front();
        }
        self.begun.push_back((now, key));
    }

    fn make_ready(&mut self, key: Key) {
        if let Some(at) = self.due.remove(&key) {
            self.later.remove(&(at, key));
        }
        self.ready.push_back(key);
    }

    /// Puts what was under way back, unless there is something newer.
    fn back(&mut self, token: u64) -> Option<Key> {
        let Flight { key, item, .. } = self.flights.remove(&token)?;
        self.busy.remove(&key);
        match self.waiting.entry(key) {
            Entry::Occupied(mut entry) => {
                let newer = entry.get_mut();
                newer.since = item.since;
                newer.numbers.extend(item.numbers);
            }
            Entry::Vacant(entry) => drop(entry.insert(item)),
        }
        Some(key)
    }

    fn again(&mut self, which: impl Fn(&Flight) -> bool) {
        let flights = self.flights.iter();
        let mut tokens: Vec<u64> = flights
            .filter(|(_, flight)| which(flight))
            .map(|(token, _)| *token)
            .collect();
        tokens.sort_unstable();
        for token in tokens {
            self.counters.retried += 1;
            if let Some(key) = self.back(token) {
                self.make_ready(key);
            }
        }
    }
}

fn version_of(record: &Record) -> u32 {
    let binding = &record.binding;
    let mut hash = DefaultHasher::new();
    let origin = binding.origin;
    (origin.stamp_ms, origin.handler, origin.epoch).hash(&mut hash);
    (binding.cseq, &binding.call_id, record.removed).hash(&mut hash);
    hash.finish() as u32
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "tests need some instant to count from"
)]
mod tests;
