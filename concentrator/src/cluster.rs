//! Several concentrators that are one service: what they share.
//!
//! ```text
//! registrar ──news──► Shared ──batches──► task ──records──► NATS JetStream, bucket `sipcast`
//!     ▲                                   │  ▲                  │
//!     └──merge── records, acks, clock ────┘  └── every record ──┘
//! ```
//!
//! Each concentrator has all bindings in memory; nobody asks over the network while a call waits. The worker
//! gives every change of its own to [`Cluster::note`] and calls [`Cluster::flush`] in each turn; neither waits.
//! The [`task`] writes them into the bucket ([`backlog`]: what is written when) and hears everything that is
//! written there, by others and by itself. What it hears goes to the worker, which merges it
//! ([`sip::registrar::shared`]).
//!
//! **At the start** the worker first takes back what its own file has, then waits for the whole bucket. If nothing
//! of it comes for `start_wait_s` it serves with what it has, and says so.
//!
//! **Nothing is done for all bindings at once**: comparing goes by pages, one in each turn of the worker.
//!
//! **Without NATS** all goes on from memory and from the file. What could not be written waits, bounded; when
//! the connection is back it is written, and if too much waited, all bindings are compared with the bucket.
//! Meanwhile the others hear of it directly, where there is a link ([`crate::core_link`]): of what has changed at
//! once, since nobody knows whether they hear NATS, and of a refresh when JetStream has not acknowledged it in time.

mod backlog;
mod bucket;
mod connection;
mod members;
mod task;

pub(crate) use connection::options;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use admin::http::Health;
use serde_json::{Value, json};
use sip::cookie::Owner;
use sip::hop::ConnectionId;
use sip::proxy::Proxy;
use sip::registrar::record::{self, Clock, Record, RecordError};
use sip::registrar::shared::{Merged, PastPlace};
use sip::registrar::{AddressOfRecord, Binding, Event, News, Place, Registrar};
use tokio::sync::mpsc;

use crate::config::{Bucket, Config};

/// Batches on their way to the task.
const QUEUE: usize = 8;
/// Changes of one batch, and bindings of one page.
const BATCH: usize = 512;
/// Changes that wait for the task; more are dropped, and all bindings compared.
const MAX_WAITING: usize = 65_536;
/// What was heard and not yet merged.
const HEARD_QUEUE: usize = 4096;

/// What the worker tells the task.
#[derive(Debug)]
enum Change {
    /// A binding has changed here; whoever has this number waits for it.
    Own {
        record: Box<Record>,
        prolonged: bool,
        number: u64,
    },
    /// The bucket has an older version than this.
    Again(Box<Record>),
    /// One of all bindings, to be compared with the bucket.
    Compare(Box<Record>),
}

/// What the task tells the worker.
#[derive(Debug)]
pub enum Heard {
    /// A binding, or its end, as it is in the bucket.
    Record(Box<Record>),
    /// The change with this number is in the bucket, or may wait.
    Acknowledged(u64),
    /// The common clock; the first one or a better one.
    Clock(Clock, bool),
    /// Who is there.
    Alive(Vec<u16>),
    /// All that the bucket had has been told.
    Complete,
    /// All bindings are to be compared with the bucket.
    Compare,
    /// Records that JetStream has not acknowledged in time: the others should hear of them otherwise.
    Overdue(Vec<Vec<u8>>),
}

/// What happened so far, each count under its own name.
#[derive(Debug, Default)]
pub struct Counters {
    /// Records written and acknowledged.
    pub written: AtomicU64,
    /// Changes that went with a later one, or that wait because they moved nothing but the time.
    pub coalesced: AtomicU64,
    /// Refreshes written although they could wait, because too many wait already.
    pub not_deferred: AtomicU64,
    /// Writes that JetStream refused; they are tried again.
    pub refused: AtomicU64,
    /// Writes tried again because nothing was heard of them.
    pub retried: AtomicU64,
    /// Changes dropped because too many waited.
    pub dropped: AtomicU64,
    /// Records heard.
    pub heard: AtomicU64,
    /// Entries that are no record.
    pub unreadable: AtomicU64,
    /// Records of a newer build.
    pub newer_version: AtomicU64,
    /// Markers of somebody who deletes, and entries under names that are not ours.
    pub strange: AtomicU64,
    /// Records whose time was over when they were heard.
    pub stale: AtomicU64,
    /// Times that the bucket was listened to anew.
    pub resumed: AtomicU64,
    /// Times that all bindings were compared with the bucket.
    pub compared: AtomicU64,
    /// Rounds of all NATS servers in which none has let us in.
    pub connect_failed: AtomicU64,
    /// Entries of known bindings that somebody has overwritten with what is no record.
    pub overwritten: AtomicU64,
    /// Connections to a NATS server that were lost.
    pub disconnected: AtomicU64,
}

/// What the worker, the task and the pages share.
#[derive(Debug, Default)]
struct Shared {
    counters: Counters,
    connected: AtomicBool,
    /// What is written comes back.
    live: AtomicBool,
    complete: AtomicBool,
    /// The worker serves.
    serving: AtomicBool,
    backlog: AtomicU64,
    deferred: AtomicU64,
    oldest_ms: AtomicU64,
    /// Concentrators that have none of our cookie keys.
    other_keys: AtomicU64,
    /// What is to be added to this machine's clock to have the common one.
    clock_offset_ms: AtomicI64,
    members: Mutex<Value>,
    trouble: Mutex<Option<String>>,
}

/// A write that waits for longer is a sign that nobody leads the stream.
const SLOW: Duration = Duration::from_secs(2);

impl Shared {
    fn state(&self) -> &'static str {
        let on = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
        let slow = self.oldest_ms.load(Ordering::Relaxed) > SLOW.as_millis() as u64;
        if on(&self.connected) && on(&self.live) && on(&self.complete) && !slow {
            "connected"
        } else if !on(&self.serving) {
            "loading"
        } else {
            "degraded"
        }
    }
}

/// Where the comparing of all bindings with the bucket has got to, a page in each turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparing {
    Nothing,
    Bindings(Option<Place>),
    /// Then what is remembered of those that were removed.
    Ends(Option<PastPlace>),
}

/// All that the worker knows of the others.
#[derive(Debug)]
pub struct Cluster {
    id: u16,
    first_connection: ConnectionId,
    bucket: Bucket,
    shared: Arc<Shared>,
    started: Instant,
    changes: Option<mpsc::Sender<Vec<Change>>>,
    waiting: VecDeque<Change>,
    comparing: Comparing,
    events_lost: u64,
    alive: Vec<u16>,
    clock: Option<Clock>,
    /// The worker has merged all that the bucket had.
    joined: bool,
}

impl Cluster {
    /// Where registrations are shared; `owner` differs from that of the last start.
    pub fn new(config: &Config, owner: Owner, now: Instant) -> Option<Self> {
        let cluster = config.cluster.as_ref()?;
        Some(Self {
            id: cluster.id,
            first_connection: ConnectionId::first(cluster.id, owner),
            bucket: cluster.bucket.clone()?,
            shared: Arc::default(),
            started: now,
            changes: None,
            waiting: VecDeque::new(),
            comparing: Comparing::Nothing,
            events_lost: 0,
            alive: vec![cluster.id],
            clock: None,
            joined: false,
        })
    }

    /// The first connection of this life.
    pub fn first_connection(&self) -> ConnectionId {
        self.first_connection
    }

    /// How long an answer to a REGISTER waits.
    pub fn ack_wait(&self) -> Duration {
        self.bucket.ack_wait
    }

    /// How long the start waits for all bindings.
    pub fn start_wait(&self) -> Duration {
        self.bucket.start_wait
    }

    /// The number of this concentrator.
    pub fn id(&self) -> u16 {
        self.id
    }

    /// What `/healthz` says.
    pub fn health(&self) -> impl Fn() -> Health + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        move || match shared.serving.load(Ordering::Relaxed) {
            true => Health::Healthy,
            false => Health::Unhealthy("waiting for the registrations of the cluster".to_owned()),
        }
    }

    /// Starts the task; gives where it is heard. Needs a tokio runtime.
    pub fn start(&mut self, config: &Config) -> anyhow::Result<mpsc::Receiver<Heard>> {
        let (changes, from_worker) = mpsc::channel(QUEUE);
        let (to_worker, heard) = mpsc::channel(HEARD_QUEUE);
        self.changes = Some(changes);
        let Owner(life) = self.first_connection.owner();
        let max_age = max_age(config.registrar.max_expires);
        let keys = [&config.cookie_key, &config.previous_cookie_key];
        let keys = keys.into_iter().flatten().map(|key| key.0.as_slice());
        let identity = task::Identity {
            id: self.id,
            life,
            name: config.name.clone(),
            keys: members::key_marks(keys),
        };
        let shared = Arc::clone(&self.shared);
        task::start(
            &self.bucket,
            identity,
            max_age,
            from_worker,
            to_worker,
            shared,
        )?;
        Ok(heard)
    }

    /// Notes what happened to a binding. True where nobody need wait for the others to have it. What has changed but for
    /// its time is told at once, as long as the common clock is known, without which a record means nothing.
    pub fn note(&mut self, news: News, tell: impl FnOnce(Vec<u8>)) -> bool {
        let News {
            event,
            number,
            foreign,
        } = news;
        if foreign {
            return true;
        }
        let (user, binding, removed, prolonged) = match event {
            Event::BindingAdded(user, binding) | Event::BindingRefreshed(user, binding) => {
                (user, binding, false, false)
            }
            Event::BindingProlonged(user, binding) => (user, binding, false, true),
            Event::BindingRenamed(user, binding)
            | Event::BindingRemoved(user, binding)
            | Event::BindingUnreachable(user, binding) => (user, binding, true, false),
            // Everybody sees that for himself.
            Event::BindingExpired(..) => return true,
        };
        if let Some(clock) = self.clock.filter(|_| !prolonged) {
            tell(record::encode_version(&user, &binding, removed, &clock));
        }
        let record = Box::new(Record {
            user,
            binding,
            removed,
        });
        self.push(Change::Own {
            record,
            prolonged,
            number,
        });
        false
    }

    fn push(&mut self, change: Change) {
        if self.waiting.len() < MAX_WAITING {
            self.waiting.push_back(change);
        } else {
            self.shared.counters.dropped.fetch_add(1, Ordering::Relaxed);
            // What was dropped is among all that is known.
            self.comparing = Comparing::Bindings(None);
        }
    }

    /// Hands on what waits, as far as the task takes it.
    pub fn flush(&mut self, proxy: &Proxy) {
        let registrar = proxy.registrar();
        let lost = registrar.counts().events_lost;
        if std::mem::replace(&mut self.events_lost, lost) != lost {
            self.compare();
        }
        if self.waiting.len() < BATCH {
            self.compare_some(registrar);
        }
        let Some(changes) = &self.changes else { return };
        while !self.waiting.is_empty() {
            let Ok(permit) = changes.try_reserve() else {
                return;
            };
            let count = self.waiting.len().min(BATCH);
            permit.send(self.waiting.drain(..count).collect());
        }
    }

    /// True while bindings are compared, some in each turn: the next turn should not wait long.
    pub fn is_comparing(&self) -> bool {
        !matches!(self.comparing, Comparing::Nothing)
    }

    /// The next page of what is to be compared with the bucket.
    fn compare_some(&mut self, registrar: &Registrar) {
        match self.comparing {
            Comparing::Nothing => {}
            Comparing::Bindings(after) => {
                let page = registrar.page(after, BATCH);
                let last = page.last().map(|(place, ..)| *place);
                self.comparing = match last {
                    Some(last) => Comparing::Bindings(Some(last)),
                    None => Comparing::Ends(None),
                };
                for (_, user, binding) in page {
                    self.compare_one(Record {
                        user,
                        binding,
                        removed: false,
                    });
                }
            }
            Comparing::Ends(after) => {
                let (removals, last) = registrar.removals(after, BATCH);
                self.comparing = match last {
                    Some(last) => Comparing::Ends(Some(last)),
                    None => Comparing::Nothing,
                };
                for record in removals {
                    self.compare_one(record);
                }
            }
        }
    }

    fn compare_one(&mut self, record: Record) {
        if self.is_ours_to_write(record.binding.origin.handler) {
            self.waiting.push_back(Change::Compare(Box::new(record)));
        }
    }

    /// Takes what the task has heard.
    pub fn handle(&mut self, heard: Heard, proxy: &mut Proxy, now: Instant) {
        match heard {
            Heard::Record(record) => self.merge(*record, proxy, now),
            Heard::Acknowledged(number) => proxy.acknowledge(number, now),
            Heard::Clock(clock, first) => {
                // Nobody has heard of what we took by our own clock.
                let unheard = first && self.clock.is_none();
                self.clock = Some(clock);
                proxy.set_shared_clock(clock, unheard.then_some(self.started));
            }
            Heard::Alive(ids) => {
                self.alive.clone_from(&ids);
                proxy.set_alive(ids);
            }
            Heard::Complete => {
                self.joined = true;
                let dropped = proxy.drop_former_connections(self.first_connection, now);
                let bindings = proxy.registrar().counts().bindings;
                tracing::info!(
                    bindings,
                    dropped,
                    "all registrations of the cluster are here"
                );
                self.compare();
            }
            Heard::Compare => self.compare(),
            // For whoever has the links.
            Heard::Overdue(_) => {}
        }
    }

    fn merge(&mut self, record: Record, proxy: &mut Proxy, now: Instant) {
        if let Merged::Older(right) = proxy.merge(record, now)
            && self.is_ours_to_write(right.binding.origin.handler)
        {
            self.push(Change::Again(right));
        }
    }

    /// Takes what another one has told.
    pub fn handle_told(&mut self, record: &[u8], proxy: &mut Proxy, now: Instant) {
        let Some(clock) = self.clock else { return };
        let counters = &self.shared.counters;
        let failed = match Record::decode(record, &clock) {
            Ok(record) => return self.merge(record, proxy, now),
            Err(RecordError::Version(_)) => &counters.newer_version,
            Err(RecordError::Malformed) => &counters.unreadable,
        };
        failed.fetch_add(1, Ordering::Relaxed);
    }

    /// True once the worker has all that the bucket had.
    pub fn is_joined(&self) -> bool {
        self.joined
    }

    /// The worker serves from now on.
    pub fn serve(&self) {
        self.shared.serving.store(true, Ordering::Relaxed);
    }

    /// Whether this one writes what the bucket lacks: who took the REGISTER does, and for one that is gone
    /// everybody, since one too many does no harm.
    fn is_ours_to_write(&self, handler: u16) -> bool {
        handler == self.id || !self.alive.contains(&handler)
    }

    fn compare(&mut self) {
        self.shared
            .counters
            .compared
            .fetch_add(1, Ordering::Relaxed);
        self.comparing = Comparing::Bindings(None);
    }

    /// What happened so far.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Levels, by name.
    pub fn levels(&self) -> [(&'static str, i64); 6] {
        let shared = &self.shared;
        let load = |of: &AtomicU64| i64::try_from(of.load(Ordering::Relaxed)).unwrap_or(i64::MAX);
        let waiting = i64::try_from(self.waiting.len()).unwrap_or(i64::MAX);
        [
            (
                "cluster_connected",
                i64::from(shared.state() == "connected"),
            ),
            ("cluster_complete", i64::from(self.joined)),
            (
                "cluster_backlog",
                load(&shared.backlog).saturating_add(waiting),
            ),
            ("cluster_deferred", load(&shared.deferred)),
            ("cluster_other_keys", load(&shared.other_keys)),
            (
                "cluster_members",
                i64::try_from(self.alive.len()).unwrap_or(i64::MAX),
            ),
        ]
    }

    /// For `/status`.
    pub fn status(&self) -> Value {
        let shared = &self.shared;
        let load = |of: &AtomicU64| of.load(Ordering::Relaxed);
        let members = shared
            .members
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let trouble = shared
            .trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        json!({
            "id": self.id,
            "state": shared.state(),
            "connected": shared.connected.load(Ordering::Relaxed),
            "complete": self.joined,
            "trouble": *trouble,
            "bucket": self.bucket.name,
            "backlog": load(&shared.backlog) + self.waiting.len() as u64,
            "deferred": load(&shared.deferred),
            "oldest_ms": load(&shared.oldest_ms),
            "comparing": self.is_comparing(),
            "clock_offset_ms": shared.clock_offset_ms.load(Ordering::Relaxed),
            "alive": self.alive,
            "others": *members,
            "written": load(&shared.counters.written),
            "heard": load(&shared.counters.heard),
            "unreadable": load(&shared.counters.unreadable),
            "newer_version": load(&shared.counters.newer_version),
        })
    }
}

/// The subject of a binding in a bucket of this name: for who fills one beforehand.
pub fn subject_of(bucket: &str, user: &AddressOfRecord, binding: &Binding) -> String {
    bucket::Names::new(bucket).binding(bucket::Key::of(user, binding))
}

/// How long the bucket keeps what nobody writes again: longer than any binding and than its end must be known.
fn max_age(max_expires: Duration) -> Duration {
    max_expires * 2 + Duration::from_secs(1200)
}
