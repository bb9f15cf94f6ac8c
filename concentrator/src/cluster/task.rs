//! The task that talks to NATS.
//!
//! It has one client, which finds a server by itself whenever there is none. Each time that there is one again,
//! [`prepare`] sees that the stream is there and as it must be, and asks for two deliveries: heartbeats, and
//! bindings. A delivery that misses a message, or falls silent, is asked for again from where it was.
//!
//! A record is published with a reply subject of ours, whose last token tells which one JetStream
//! acknowledges. Nothing here waits for an answer but [`prepare`], beside which everything else goes on.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_nats::{Client, Message, StatusCode, Subscriber};
use futures_util::StreamExt as _;
use sip::registrar::record::{Clock, Record, RecordError};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use super::backlog::Backlog;
use super::bucket::{Delivered, IDLE, Names, Refusal, Subject, reply};
use super::connection::{
    Delivery, PUBLISH, Place, Prepared, Resume, note_connection, options, prepare,
};
use super::members::{self, Members};
use super::{Change, Heard, Shared};
use crate::config::Bucket;

/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(50);
/// Before a preparation that has failed is tried again.
const AGAIN: Duration = Duration::from_millis(500);
/// A delivery that says nothing for longer is dead.
const SILENT: Duration = IDLE.saturating_mul(4);
/// How often it is looked for what the bucket has forgotten.
const PRUNE: Duration = Duration::from_secs(600);

/// Between two comparisons because somebody overwrites entries.
const REPAIR: Duration = Duration::from_secs(10);

/// Who we are.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) id: u16,
    pub(super) life: u16,
    pub(super) name: String,
    /// Of its cookie keys ([`members::key_marks`]).
    pub(super) keys: Vec<String>,
}

type Preparing = JoinHandle<Result<Prepared, Refusal>>;

struct Task {
    client: Client,
    names: Names,
    identity: Identity,
    replicas: u8,
    max_age: Duration,
    inbox: String,
    acks: Subscriber,
    connected: watch::Receiver<bool>,
    from_worker: mpsc::Receiver<Vec<Change>>,
    to_worker: mpsc::Sender<Heard>,
    shared: Arc<Shared>,
    backlog: Backlog,
    members: Members,
    alive: Vec<u16>,
    preparing: Option<Preparing>,
    prepare_at: Instant,
    heartbeats: Option<Delivery>,
    bindings: Option<Delivery>,
    resume: Option<Resume>,
    next_heartbeat: Instant,
    next_prune: Instant,
    clock_told: bool,
    /// For logs: it is said once.
    troubled: bool,
    /// Somebody has put what is no record in the place of one.
    overwritten: bool,
    next_repair: Instant,
    /// Changes that the backlog has dropped, as far as they are counted.
    dropped: u64,
}

/// Connects in the background and goes on until the worker ends.
pub(super) fn start(
    bucket: &Bucket,
    identity: Identity,
    max_age: Duration,
    from_worker: mpsc::Receiver<Vec<Change>>,
    to_worker: mpsc::Sender<Heard>,
    shared: Arc<Shared>,
) -> anyhow::Result<()> {
    let (up, connected) = watch::channel(false);
    let counted = Arc::clone(&shared);
    let name = format!("sipcast-concentrator {} ({})", identity.name, identity.id);
    let options = options(bucket, &name)?.event_callback(move |event| {
        note_connection(&event, &up, &counted);
        std::future::ready(())
    });
    let bucket = bucket.clone();
    tokio::spawn(async move {
        let client = match options.connect(bucket.servers.as_slice()).await {
            Ok(client) => client,
            Err(error) => return error!(%error, "cluster: registrations are not shared"),
        };
        let inbox = client.new_inbox();
        let acks = match client.subscribe(format!("{inbox}.*")).await {
            Ok(acks) => acks,
            Err(error) => return error!(%error, "cluster: registrations are not shared"),
        };
        let now = now();
        let task = Task {
            names: Names::new(&bucket.name),
            members: Members::new(identity.id, identity.life, identity.keys.clone()),
            alive: Vec::new(),
            client,
            identity,
            replicas: bucket.replicas,
            max_age,
            inbox,
            acks,
            connected,
            from_worker,
            to_worker,
            shared,
            backlog: Backlog::new(bucket.coalesce_percent),
            preparing: None,
            prepare_at: now,
            heartbeats: None,
            bindings: None,
            resume: None,
            next_heartbeat: now,
            next_prune: now + PRUNE,
            clock_told: false,
            troubled: false,
            overwritten: false,
            next_repair: now,
            dropped: 0,
        };
        task.run().await;
    });
    Ok(())
}

impl Task {
    async fn run(mut self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                batch = self.from_worker.recv() => match batch {
                    Some(batch) => self.take(batch).await,
                    None => return,
                },
                Some(ack) = self.acks.next() => self.handle_ack(&ack).await,
                message = next(&mut self.heartbeats) => match message {
                    Some(message) => self.handle_heartbeat(&message).await,
                    None => self.listen_again("ended"),
                },
                // Without the common clock records mean nothing.
                message = next(&mut self.bindings), if self.clock_told => match message {
                    Some(message) => self.handle_binding(&message).await,
                    None => self.listen_again("ended"),
                },
                prepared = prepared(&mut self.preparing) => self.handle_prepared(prepared),
                Ok(()) = self.connected.changed() => self.handle_connection(),
                _ = tick.tick() => self.handle_tick().await,
            }
            self.write().await;
        }
    }

    async fn tell(&mut self, heard: Heard) {
        // The worker ends before us, and then we do.
        let _ = self.to_worker.send(heard).await;
    }

    async fn take(&mut self, batch: Vec<Change>) {
        let now = now();
        for change in batch {
            match change {
                Change::Own {
                    record,
                    prolonged,
                    number,
                } => {
                    if self.backlog.add(*record, prolonged, Some(number), now) {
                        self.tell(Heard::Acknowledged(number)).await;
                    }
                }
                Change::Again(record) => {
                    self.backlog.add(*record, false, None, now);
                }
                Change::Compare(record) => {
                    self.backlog.compare(*record, now);
                }
            }
        }
    }

    /// Sends what is due, as long as there is somebody to send it to.
    async fn write(&mut self) {
        let Some(clock) = self.members.clock() else {
            return;
        };
        if !*self.connected.borrow() || self.bindings.is_none() {
            return;
        }
        let now = now();
        while let Some(outgoing) = self.backlog.take(&clock, now) {
            let to = self.names.binding(outgoing.key);
            let reply = format!("{}.{}", self.inbox, outgoing.token);
            if !self.publish(to, reply, outgoing.bytes).await {
                self.backlog.refused(outgoing.token, now);
                return;
            }
        }
    }

    async fn publish(&self, to: String, reply: String, bytes: Vec<u8>) -> bool {
        let publish = self.client.publish_with_reply(to, reply, bytes.into());
        matches!(tokio::time::timeout(PUBLISH, publish).await, Ok(Ok(())))
    }

    async fn handle_ack(&mut self, ack: &Message) {
        let token = ack.subject.rsplit('.').next().and_then(|t| t.parse().ok());
        // Heartbeats are acknowledged too, under no number.
        let Some(token) = token else { return };
        let now = now();
        let refusal = match ack.status {
            Some(status) if status != StatusCode::OK => Some(Refusal::Said(format!("{status}"))),
            Some(_) | None => reply(&ack.payload).err(),
        };
        if let Some(refusal) = refusal {
            self.say(&refusal);
            return self.backlog.refused(token, now);
        }
        for number in self.backlog.acknowledged(token, now) {
            self.tell(Heard::Acknowledged(number)).await;
        }
    }

    async fn handle_heartbeat(&mut self, message: &Message) {
        let Some(delivered) = self.accept(message, false).await else {
            return;
        };
        let Subject::Heartbeat(id) = self.names.read(&message.subject) else {
            return;
        };
        let now = now();
        let change = self
            .members
            .handle(id, &message.payload, delivered.taken_ms, now);
        match change {
            members::Change::Nothing => {}
            members::Change::Clock(clock) => {
                let offset = offset_ms(&clock);
                self.shared.clock_offset_ms.store(offset, Ordering::Relaxed);
                let first = !std::mem::replace(&mut self.clock_told, true);
                if first {
                    // All of it is compared once the bucket is known, with stamps that are right.
                    self.backlog.clear();
                    info!(offset_ms = offset, "cluster: the common clock is known");
                }
                self.tell(Heard::Clock(clock, first)).await;
            }
            members::Change::OtherKey => error!(
                id,
                "cluster: this concentrator has another cookie key, so what either sends through a phone the other \
                 cannot read; give all of them the same cookie.key_file"
            ),
            members::Change::Twin => {
                let id = self.identity.id;
                error!(
                    id,
                    "cluster.id: another concentrator has the same; change one"
                );
                self.trouble(Some("another concentrator has the same id".to_owned()));
            }
        }
    }

    async fn handle_binding(&mut self, message: &Message) {
        if self.accept(message, true).await.is_some()
            && let Some(record) = self.read(message)
        {
            self.tell(Heard::Record(Box::new(record))).await;
        }
        if self
            .bindings
            .as_ref()
            .is_some_and(|bindings| bindings.all_came)
        {
            self.complete().await;
        }
    }

    /// A record that means something, and is not over.
    fn read(&mut self, message: &Message) -> Option<Record> {
        let counters = &self.shared.counters;
        let count = |counter: &std::sync::atomic::AtomicU64| {
            counter.fetch_add(1, Ordering::Relaxed);
        };
        count(&counters.heard);
        let Subject::Binding(key) = self.names.read(&message.subject) else {
            count(&counters.strange);
            return None;
        };
        // A marker: an operator has deleted the entry by hand.
        if message.headers.is_some() && message.payload.is_empty() {
            count(&counters.strange);
            return None;
        }
        let clock = self.members.clock()?;
        match Record::decode(&message.payload, &clock) {
            Ok(record) => {
                let now = now();
                // An echo of what we wrote, or what we were sent twice.
                if !self.backlog.heard(key, &record, now) {
                    return None;
                }
                if !record.removed && record.binding.expires_at <= now {
                    count(&counters.stale);
                }
                Some(record)
            }
            Err(RecordError::Version(_)) => {
                count(&counters.newer_version);
                None
            }
            Err(RecordError::Malformed) => {
                count(&counters.unreadable);
                if self.backlog.forget(key) {
                    count(&counters.overwritten);
                    self.overwritten = true;
                }
                None
            }
        }
    }

    /// The message's place, if it is one of the stream and in its order.
    async fn accept(&mut self, message: &Message, binding: bool) -> Option<Delivered> {
        let delivery = if binding {
            &mut self.bindings
        } else {
            &mut self.heartbeats
        };
        match delivery.as_mut()?.place(message, now()) {
            Place::Message(delivered) => return Some(delivered),
            Place::Answer(to) => {
                let answer = self.client.publish(to, bytes::Bytes::new());
                let _ = tokio::time::timeout(PUBLISH, answer).await;
            }
            Place::Idle | Place::Strange => {}
            Place::Missed => {
                self.shared.counters.resumed.fetch_add(1, Ordering::Relaxed);
                self.listen_again("it missed a message");
            }
        }
        None
    }

    async fn complete(&mut self) {
        let Some(bindings) = &mut self.bindings else {
            return;
        };
        if std::mem::replace(&mut bindings.complete, true) {
            return;
        }
        self.shared.live.store(true, Ordering::Relaxed);
        self.troubled = false;
        self.trouble(None);
        if self.shared.complete.load(Ordering::Relaxed) {
            return self.compare_what_is_missing().await;
        }
        self.tell(Heard::Complete).await;
        self.shared.complete.store(true, Ordering::Relaxed);
    }

    /// From where it was, as soon as somebody is there to be asked.
    fn listen_again(&mut self, why: &'static str) {
        if let Some(bindings) = self.bindings.take() {
            tracing::debug!(why, "cluster: listening again");
            if let Some(resume) = &mut self.resume {
                // They come in the order of the stream, so up to there nothing is missing.
                resume.last_sequence = bindings.last_sequence.max(resume.last_sequence);
            }
        }
        self.heartbeats = None;
        self.shared.live.store(false, Ordering::Relaxed);
    }

    fn handle_connection(&mut self) {
        let up = *self.connected.borrow_and_update();
        self.shared.connected.store(up, Ordering::Relaxed);
        self.backlog.disconnected();
        if up {
            self.prepare_at = now();
        } else {
            self.listen_again("the connection was lost");
            if let Some(preparing) = self.preparing.take() {
                preparing.abort();
            }
        }
    }

    async fn handle_tick(&mut self) {
        let now = now();
        self.backlog.handle_timeout(now);
        let silent = |delivery: &Option<Delivery>| {
            let heard_at = delivery.as_ref().map(|delivery| delivery.heard_at);
            heard_at.is_some_and(|at| now.saturating_duration_since(at) > SILENT)
        };
        if silent(&self.bindings) || silent(&self.heartbeats) {
            self.shared.counters.resumed.fetch_add(1, Ordering::Relaxed);
            self.listen_again("it is silent");
        }
        let empty = |bindings: &Delivery| bindings.all_came && !bindings.complete;
        if self.clock_told && self.bindings.as_ref().is_some_and(empty) {
            self.complete().await;
        }
        let up = *self.connected.borrow();
        if up && self.bindings.is_none() && self.preparing.is_none() && now >= self.prepare_at {
            self.prepare(now);
        }
        if up && now >= self.next_heartbeat && self.heartbeats.is_some() {
            self.beat(now).await;
        }
        if now >= self.next_prune {
            self.next_prune = now + PRUNE;
            self.backlog.prune(self.max_age, now);
        }
        let writable = self.shared.live.load(Ordering::Relaxed);
        let alive = self.members.alive(writable, now);
        if alive != self.alive {
            self.alive.clone_from(&alive);
            self.tell(Heard::Alive(alive)).await;
        }
        self.compare_what_is_missing().await;
        let overdue = self.backlog.overdue(self.members.clock().as_ref(), now);
        if !overdue.is_empty() {
            self.tell(Heard::Overdue(overdue)).await;
        }
        self.publish_state();
        let members = self.members.status(now);
        let lock = self.shared.members.lock();
        *lock.unwrap_or_else(PoisonError::into_inner) = members;
    }

    /// Of what was dropped as soon as there is room again; of what was overwritten not too often, since whoever does
    /// that may go on.
    async fn compare_what_is_missing(&mut self) {
        let whole = self
            .bindings
            .as_ref()
            .is_some_and(|bindings| bindings.complete);
        if !whole || !self.backlog.has_room() {
            return;
        }
        let now = now();
        let repair = self.overwritten && now >= self.next_repair;
        if repair {
            self.overwritten = false;
            self.next_repair = now + REPAIR;
            warn!(
                "cluster: somebody has overwritten entries of the bucket; they are written again"
            );
        }
        if self.backlog.take_lost() || repair {
            self.tell(Heard::Compare).await;
        }
    }

    async fn beat(&mut self, now: Instant) {
        self.next_heartbeat = now + members::INTERVAL;
        let body = self.members.heartbeat(&self.identity.name, now);
        let to = self.names.heartbeat(self.identity.id);
        let reply = format!("{}.heartbeat", self.inbox);
        self.publish(to, reply, body).await;
    }

    fn prepare(&mut self, now: Instant) {
        self.prepare_at = now + AGAIN;
        self.next_heartbeat = now;
        let client = self.client.clone();
        let (names, resume) = (self.names.clone(), self.resume.clone());
        let (replicas, max_age) = (self.replicas, self.max_age);
        let prepare = prepare(client, names, replicas, max_age, resume);
        self.preparing = Some(tokio::spawn(prepare));
    }

    fn handle_prepared(&mut self, prepared: Result<Prepared, Refusal>) {
        self.preparing = None;
        self.prepare_at = now() + AGAIN;
        let Prepared {
            stream,
            heartbeats,
            bindings,
        } = match prepared {
            Ok(prepared) => prepared,
            Err(refusal) => return self.say(&refusal),
        };
        if let Some(faults) = stream.faults(self.max_age) {
            let name = self.names.stream();
            warn!(
                stream = name,
                faults, "cluster: the stream is not as it must be"
            );
            self.trouble(Some(faults));
        }
        if stream.replicas < u64::from(self.replicas) {
            let replicas = stream.replicas;
            warn!(
                replicas,
                "cluster: the stream has fewer replicas than cluster.replicas"
            );
        }
        let resume = self.resume.as_ref();
        let another = resume.is_some_and(|resume| resume.is_of_another(&stream));
        if another {
            warn!("cluster: the bucket was made anew; all registrations are written again");
            self.backlog.forget_written();
            self.shared.complete.store(false, Ordering::Relaxed);
        }
        let last_sequence = match &self.resume {
            Some(resume) if !another => resume.last_sequence,
            Some(_) | None => 0,
        };
        self.resume = Some(Resume {
            created: stream.created,
            last_sequence,
        });
        self.heartbeats = Some(heartbeats);
        self.bindings = Some(bindings);
    }

    /// Says what is wrong, once.
    fn say(&mut self, refusal: &Refusal) {
        self.trouble(Some(refusal.to_string()));
        if !std::mem::replace(&mut self.troubled, true) {
            warn!(%refusal, "cluster: registrations are not shared now");
        }
    }

    fn trouble(&self, what: Option<String>) {
        let lock = self.shared.trouble.lock();
        *lock.unwrap_or_else(PoisonError::into_inner) = what;
    }

    fn publish_state(&mut self) {
        let shared = &self.shared;
        let counters = self.backlog.counters();
        let dropped = counters.dropped - std::mem::replace(&mut self.dropped, counters.dropped);
        shared
            .counters
            .dropped
            .fetch_add(dropped, Ordering::Relaxed);
        let level = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        shared
            .backlog
            .store(level(self.backlog.len()), Ordering::Relaxed);
        shared.other_keys.store(
            level(self.members.with_other_keys(now())),
            Ordering::Relaxed,
        );
        shared
            .deferred
            .store(level(self.backlog.deferred()), Ordering::Relaxed);
        let oldest = self.backlog.oldest();
        let oldest = oldest.map_or(Duration::ZERO, |at| now().saturating_duration_since(at));
        let oldest = u64::try_from(oldest.as_millis()).unwrap_or(u64::MAX);
        shared.oldest_ms.store(oldest, Ordering::Relaxed);
        for (counter, value) in [
            (&shared.counters.written, counters.written),
            (&shared.counters.coalesced, counters.coalesced),
            (&shared.counters.refused, counters.refused),
            (&shared.counters.retried, counters.retried),
            (&shared.counters.not_deferred, counters.not_deferred),
        ] {
            counter.store(value, Ordering::Relaxed);
        }
    }
}

async fn next(delivery: &mut Option<Delivery>) -> Option<Message> {
    match delivery {
        Some(delivery) => delivery.messages.next().await,
        None => std::future::pending().await,
    }
}

async fn prepared(preparing: &mut Option<Preparing>) -> Result<Prepared, Refusal> {
    match preparing {
        Some(preparing) => match preparing.await {
            Ok(prepared) => prepared,
            Err(error) => Err(Refusal::NoReply(error.to_string())),
        },
        None => std::future::pending().await,
    }
}

/// What is to be added to this machine's clock.
#[expect(
    clippy::disallowed_methods,
    reason = "the clock that all have in common is compared with this machine's, to show it"
)]
fn offset_ms(clock: &Clock) -> i64 {
    let here = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let here = i64::try_from(here.as_millis()).unwrap_or(i64::MAX);
    let common = i64::try_from(clock.unix_ms(now())).unwrap_or(i64::MAX);
    common.saturating_sub(here)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the task is its own loop, with its own clock"
)]
pub(super) fn now() -> Instant {
    Instant::now()
}
