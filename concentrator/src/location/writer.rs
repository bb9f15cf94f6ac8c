//! The thread that writes: collects what comes for a while, keeps the last word about each binding
//! and puts it on the disk in one transaction.
//!
//! What a transaction could not do stays and is tried with the next one. Writing anew begins with
//! [`Change::Begin`]: from then on the keys that are written are noted, and at [`Change::End`]
//! what is in the file under any other key goes.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sip::registrar::record::{self, Clock};
use sip::registrar::{AddressOfRecord, Binding};
use tokio::sync::watch;

use super::store::{Store, Writes};
use super::{Shared, now};

/// What comes within this time is one transaction.
pub(super) const WINDOW: Duration = Duration::from_millis(100);
/// The same where somebody waits for it.
pub(super) const SHORT_WINDOW: Duration = Duration::from_millis(20);
/// A refresh that moved only the time may wait so long for company.
pub(super) const PROLONG_WINDOW: Duration = Duration::from_secs(5);
/// Bindings that wait for a disk that does not take them.
const MAX_HELD: usize = 262_144;

/// What happened to one binding.
#[derive(Debug)]
pub(super) enum Change {
    /// It is new, or another than before.
    Keep(AddressOfRecord, Binding),
    /// It is as before, for longer.
    Prolong(AddressOfRecord, Binding),
    /// It is no more.
    Forget(AddressOfRecord, Binding),
    /// All that came before has numbers up to this.
    UpTo(u64),
    /// From here on all bindings come.
    Begin,
    /// All bindings have come.
    End,
}

pub(super) type Batch = Vec<Change>;

/// Where the thread says what it has done.
pub(super) struct Outcome {
    pub(super) shared: Arc<Shared>,
    /// Up to which number all is on the disk, but for refreshes that wait for company.
    pub(super) kept: watch::Sender<u64>,
}

/// Starts the thread; it takes `dead` out first, and ends when nobody can send any more.
pub(super) fn start(
    store: Store,
    dead: Vec<Vec<u8>>,
    batches: Receiver<Batch>,
    window: Duration,
    Outcome { shared, kept }: Outcome,
) -> std::io::Result<JoinHandle<()>> {
    let writer = Writer {
        store,
        soon: dead.into_iter().map(|key| (key, None)).collect(),
        later: Writes::new(),
        anew: None,
        hasher: RandomState::new(),
        shared,
        failing: false,
        lost: false,
        window,
        up_to: 0,
        kept,
    };
    std::thread::Builder::new()
        .name("location".into())
        .spawn(move || writer.run(&batches))
}

struct Writer {
    store: Store,
    /// For the next transaction.
    soon: Writes,
    /// Refreshes that wait for company.
    later: Writes,
    /// Keys written since the writing anew began, as hashes.
    anew: Option<HashSet<u64>>,
    hasher: RandomState,
    shared: Arc<Shared>,
    failing: bool,
    /// Something was dropped while the disk failed: everything must come anew once it works.
    lost: bool,
    window: Duration,
    /// The last number that came.
    up_to: u64,
    kept: watch::Sender<u64>,
}

impl Writer {
    fn run(mut self, batches: &Receiver<Batch>) {
        // What waits is due then: after a window with changes, or when refreshes have waited.
        let mut due: Option<Instant> = None;
        let mut later_due: Option<Instant> = None;
        loop {
            let next = [due, later_due].into_iter().flatten().min();
            let received = match next {
                Some(at) => batches.recv_timeout(at.saturating_duration_since(now())),
                None => batches.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match received {
                Ok(batch) => {
                    let clock = clock();
                    for change in batch {
                        self.absorb(change, &clock);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.commit(true);
                    return;
                }
            }
            if self.soon.is_empty() {
                self.tell();
            }
            let now = now();
            let all = later_due.is_some_and(|at| at <= now);
            if all || due.is_some_and(|at| at <= now) {
                self.commit(all);
                due = None;
            }
            due = due.or_else(|| (!self.soon.is_empty()).then(|| now + self.window));
            later_due = (!self.later.is_empty()).then(|| {
                later_due
                    .filter(|at| *at > now)
                    .unwrap_or(now + PROLONG_WINDOW)
            });
        }
    }

    fn absorb(&mut self, change: Change, clock: &Clock) {
        match change {
            Change::Keep(user, binding) => {
                let key = record::key(&user, &binding);
                self.note_written(&key);
                if self.later.remove(&key).is_some() {
                    self.count_coalesced();
                }
                let record = record::encode(&user, &binding, clock);
                if self.soon.insert(key, Some(record)).is_some() {
                    self.count_coalesced();
                }
            }
            Change::Prolong(user, binding) => {
                let key = record::key(&user, &binding);
                self.note_written(&key);
                let record = record::encode(&user, &binding, clock);
                let before = match self.soon.get_mut(&key) {
                    Some(soon) => soon.replace(record),
                    None => self.later.insert(key, Some(record)).flatten(),
                };
                if before.is_some() {
                    self.count_coalesced();
                }
            }
            Change::Forget(user, binding) => {
                let key = record::key(&user, &binding);
                let hash = self.hasher.hash_one(key.as_slice());
                if let Some(anew) = &mut self.anew {
                    anew.remove(&hash);
                }
                self.later.remove(&key);
                self.soon.insert(key, None);
            }
            Change::UpTo(number) => self.up_to = number,
            Change::Begin => self.anew = Some(HashSet::new()),
            Change::End => self.finish_anew(),
        }
        if self.soon.len() + self.later.len() > MAX_HELD {
            self.give_up();
        }
    }

    fn note_written(&mut self, key: &[u8]) {
        let hash = self.hasher.hash_one(key);
        if let Some(anew) = &mut self.anew {
            anew.insert(hash);
        }
    }

    fn commit(&mut self, all: bool) {
        if all {
            self.soon.extend(self.later.drain());
        }
        if self.soon.is_empty() {
            return;
        }
        match self.store.commit(&self.soon) {
            Ok(()) => {
                let forgotten = self.soon.values().filter(|record| record.is_none()).count();
                let counters = &self.shared.counters;
                add(&counters.forgotten, forgotten);
                add(&counters.written, self.soon.len() - forgotten);
                add(&counters.commits, 1);
                self.soon.clear();
                self.tell();
                if std::mem::take(&mut self.failing) {
                    tracing::info!("bindings are kept again");
                }
                if std::mem::take(&mut self.lost) {
                    self.shared.incomplete.store(true, Ordering::Relaxed);
                }
            }
            Err(error) => self.failed(&error),
        }
    }

    fn tell(&self) {
        if !self.lost && *self.kept.borrow() < self.up_to {
            self.kept.send_replace(self.up_to);
        }
    }

    /// Takes out what was not written since the beginning.
    fn finish_anew(&mut self) {
        self.commit(true);
        let Some(anew) = self.anew.take() else {
            return;
        };
        let keep = |key: &[u8]| anew.contains(&self.hasher.hash_one(key));
        match self.store.retain(keep) {
            Ok(removed) => {
                let counters = &self.shared.counters;
                counters.forgotten.fetch_add(removed, Ordering::Relaxed);
            }
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&mut self, error: &redb::Error) {
        add(&self.shared.counters.failed, 1);
        if !std::mem::replace(&mut self.failing, true) {
            tracing::error!(%error, "bindings cannot be kept: they would not survive a restart");
        }
    }

    /// More waits than memory is for: it is dropped, and everything comes anew.
    fn give_up(&mut self) {
        add(
            &self.shared.counters.dropped,
            self.soon.len() + self.later.len(),
        );
        self.soon.clear();
        self.later.clear();
        self.anew = None;
        self.lost = true;
    }

    fn count_coalesced(&self) {
        add(&self.shared.counters.coalesced, 1);
    }
}

fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}

/// Now, on both clocks.
#[expect(
    clippy::disallowed_methods,
    reason = "records hold the time of the wall clock, which may be set at any time"
)]
pub(super) fn clock() -> Clock {
    let unix = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Clock {
        at: now(),
        unix_ms: u64::try_from(unix.as_millis()).unwrap_or(u64::MAX),
    }
}
