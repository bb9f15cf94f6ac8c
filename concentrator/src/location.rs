//! The location service's memory: bindings in a file, so that they survive a restart.
//!
//! ```text
//! registrar ──events──► Location ──batches, 4 at most──► writer thread ──one transaction──► file
//!                          │ what does not fit waits here, bounded
//! ```
//!
//! [`Opened::restore`] reads the file before anything is served. From then on the worker gives every event of
//! the registrar to [`Location::note`], and calls [`Location::flush`] in each turn. Nothing here
//! waits: what the writer does not take yet is kept, and when too much of it is kept, it is dropped
//! and counted, and the writer gets all bindings anew, a page in each turn.
//!
//! **What a crash loses.** A change is on the disk within 200 ms ([`writer::WINDOW`] and the
//! commit) as long as the disk keeps up; a refresh that moved nothing but the time within
//! [`writer::PROLONG_WINDOW`], so that such a binding is restored with the time before. A binding
//! over a connection is not kept: its connection ends with the program.

mod store;
mod writer;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sip::registrar::record::Record;
use sip::registrar::{AddressOfRecord, Binding, Event, Place, Registrar};
use tokio::sync::watch;

use crate::config::{Location as Config, OnCorrupt};
use store::Store;
use writer::{Batch, Change};

pub use store::LocationError;

/// Batches on their way to the writer.
const QUEUE: usize = 4;
/// Changes of one batch.
const BATCH: usize = 1024;
/// Changes that wait for the writer; more are dropped, and all bindings written anew.
const MAX_WAITING: usize = 65_536;

/// What happened so far, each count under its own name.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bindings written.
    pub written: AtomicU64,
    /// Bindings taken out.
    pub forgotten: AtomicU64,
    /// Changes that a later one of the same binding made needless.
    pub coalesced: AtomicU64,
    /// Transactions.
    pub commits: AtomicU64,
    /// Transactions that failed; what they held is tried again.
    pub failed: AtomicU64,
    /// Changes dropped because too many waited.
    pub dropped: AtomicU64,
    /// Times that all bindings were written anew.
    pub rewrites: AtomicU64,
}

/// What the worker and the writer share.
#[derive(Debug, Default)]
struct Shared {
    counters: Counters,
    /// The writer has lost something: everything must be written anew.
    incomplete: AtomicBool,
}

/// All that the worker knows of the file.
#[derive(Debug)]
pub struct Location {
    file: PathBuf,
    batches: Option<SyncSender<Batch>>,
    waiting: VecDeque<Change>,
    /// Where the writing anew has got to; `None` when none is under way.
    rewrite: Option<Option<Place>>,
    /// What was dropped is not written anew yet: more of the kind is to come.
    held: bool,
    events_lost: u64,
    shared: Arc<Shared>,
    restored: [usize; 3],
    /// The number of the last event that was noted, and of the last one that the writer was told.
    noted: u64,
    marked: u64,
    kept: watch::Receiver<u64>,
    writer: Option<JoinHandle<()>>,
}

/// The file, open and not read yet.
#[derive(Debug)]
pub struct Opened {
    store: Store,
    config: Config,
    window: Duration,
}

/// Opens the file.
pub fn open(config: &Config) -> Result<Opened, LocationError> {
    let store = Store::open(&config.file).or_else(|error| start_empty(config, error))?;
    let config = config.clone();
    let window = writer::WINDOW;
    Ok(Opened {
        store,
        config,
        window,
    })
}

/// A damaged file is moved away where the operator has said so; else the start ends here.
fn start_empty(config: &Config, error: LocationError) -> Result<Store, LocationError> {
    if config.on_corrupt != OnCorrupt::Empty || !error.is_damage() {
        return Err(error);
    }
    let aside = store::move_aside(&config.file)?;
    tracing::error!(%error, kept_as = %aside.display(), "starting without bindings");
    Store::open(&config.file)
}

impl Opened {
    /// Somebody waits for what is written: it is written sooner.
    pub fn hurry(&mut self) {
        self.window = writer::SHORT_WINDOW;
    }

    /// Gives the bindings that were kept and are not over to `take`, and starts the writer.
    pub fn restore(self, mut take: impl FnMut(Record)) -> Result<Location, LocationError> {
        let Self {
            store,
            config,
            window,
        } = self;
        let (store, found) = match store.read(&writer::clock(), &mut take) {
            Ok(found) => (store, found),
            Err(error) => {
                drop(store);
                (start_empty(&config, error)?, store::Found::default())
            }
        };
        let restored = [found.restored, found.expired.len(), found.unreadable];
        let (batches, receiver) = sync_channel(QUEUE);
        let shared = Arc::new(Shared::default());
        let (told, kept) = watch::channel(0);
        let outcome = writer::Outcome {
            shared: Arc::clone(&shared),
            kept: told,
        };
        let writer = writer::start(store, found.expired, receiver, window, outcome)
            .map_err(|error| LocationError::Thread(config.file.display().to_string(), error))?;
        Ok(Location {
            file: config.file,
            batches: Some(batches),
            waiting: VecDeque::new(),
            rewrite: None,
            held: false,
            events_lost: 0,
            shared,
            restored,
            noted: 0,
            marked: 0,
            kept,
            writer: Some(writer),
        })
    }
}

impl Location {
    /// Up to which number what was noted is on the disk.
    pub fn kept(&self) -> watch::Receiver<u64> {
        self.kept.clone()
    }

    /// Notes what happened to a binding, under a number that grows.
    pub fn note(&mut self, event: Event, number: u64) {
        self.noted = number;
        let change = match event {
            Event::BindingAdded(user, binding) | Event::BindingRefreshed(user, binding) => {
                kept(user, binding, false)
            }
            Event::BindingProlonged(user, binding) => kept(user, binding, true),
            Event::BindingRenamed(user, binding)
            | Event::BindingRemoved(user, binding)
            | Event::BindingExpired(user, binding)
            | Event::BindingUnreachable(user, binding) => Change::Forget(user, binding),
        };
        if self.waiting.len() < MAX_WAITING && !self.is_all_to_come() {
            self.waiting.push_back(change);
        } else {
            self.shared.counters.dropped.fetch_add(1, Ordering::Relaxed);
            self.shared.incomplete.store(true, Ordering::Relaxed);
        }
    }

    /// While held, all bindings are not written anew, so that it is done once when more bindings come at once than
    /// the disk takes, and not again and again.
    pub fn hold(&mut self, held: bool) {
        self.held = held;
    }

    /// True while all bindings are written anew, some in each turn: the next turn should not wait long.
    pub fn is_rewriting(&self) -> bool {
        self.rewrite.is_some()
    }

    fn is_all_to_come(&self) -> bool {
        self.held && self.shared.incomplete.load(Ordering::Relaxed)
    }

    /// Hands on what waits, as far as the writer takes it.
    pub fn flush(&mut self, registrar: &Registrar) {
        let lost = registrar.counts().events_lost;
        if std::mem::replace(&mut self.events_lost, lost) != lost {
            self.shared.incomplete.store(true, Ordering::Relaxed);
        }
        if !self.held && self.shared.incomplete.swap(false, Ordering::Relaxed) {
            self.waiting.clear();
            self.waiting.push_back(Change::Begin);
            self.rewrite = Some(None);
            self.shared
                .counters
                .rewrites
                .fetch_add(1, Ordering::Relaxed);
        }
        if self.waiting.len() < BATCH
            && let Some(after) = self.rewrite
        {
            self.next_page(registrar, after);
        }
        if self.noted > self.marked {
            self.marked = self.noted;
            self.waiting.push_back(Change::UpTo(self.noted));
        }
        while !self.waiting.is_empty() {
            let count = self.waiting.len().min(BATCH);
            let batch: Batch = self.waiting.drain(..count).collect();
            let Some(batches) = &self.batches else { return };
            if let Err(TrySendError::Full(batch) | TrySendError::Disconnected(batch)) =
                batches.try_send(batch)
            {
                // In front of what came since, in its order.
                for change in batch.into_iter().rev() {
                    self.waiting.push_front(change);
                }
                return;
            }
        }
    }

    /// What happened so far.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Changes that the writer has not taken yet.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// For `/status`.
    pub fn status(&self) -> Value {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.shared.counters;
        let [restored, expired, unreadable] = self.restored;
        json!({
            "file": self.file.display().to_string(),
            "restored": restored,
            "expired_at_start": expired,
            "unreadable_at_start": unreadable,
            "written": count(&counters.written),
            "forgotten": count(&counters.forgotten),
            "commits": count(&counters.commits),
            "failed_commits": count(&counters.failed),
            "rewrites": count(&counters.rewrites),
            "rewriting": self.rewrite.is_some(),
            "waiting": self.waiting.len(),
        })
    }

    fn next_page(&mut self, registrar: &Registrar, after: Option<Place>) {
        let page = registrar.page(after, BATCH);
        self.rewrite = page.last().map(|(place, ..)| Some(*place));
        let changes = page
            .into_iter()
            .map(|(_, user, binding)| kept(user, binding, false));
        self.waiting.extend(changes);
        if self.rewrite.is_none() {
            self.waiting.push_back(Change::End);
        }
    }
}

/// Lets the writer finish: what was handed on is on the disk afterwards.
impl Drop for Location {
    fn drop(&mut self) {
        if let Some(batches) = self.batches.take() {
            // The writer is alive until the sender is gone, so this wait ends with a commit.
            let _ = batches.send(self.waiting.drain(..).collect());
        }
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

/// A binding that a restart cannot bring back is not kept, whatever was kept of it before.
fn kept(user: AddressOfRecord, binding: Binding, prolonged: bool) -> Change {
    match (binding.flow.connection, prolonged) {
        (Some(_), _) => Change::Forget(user, binding),
        (None, true) => Change::Prolong(user, binding),
        (None, false) => Change::Keep(user, binding),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the writer is its own loop, with its own clock"
)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests;
