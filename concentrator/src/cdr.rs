//! Records of calls (CDRs): one JSON object a line for each call, added to a file.
//!
//! ```text
//! proxy ──what happens to calls──┐
//! relays ──what sessions did─────┴► Ledger ──records──► queue, bounded ──► writer thread ──► file
//! ```
//!
//! The ledger and the lines are made in the worker; nothing there waits for a disk. When the queue is
//! full records are dropped and counted. SIGHUP has the file opened anew, for logrotate.
//!
//! **What a restart loses.** The ledger is in memory. A call that is in progress when the program ends
//! gets its record when its BYE comes to the program that is started after it, with what the BYE
//! and the dialog's signed cookie say: who, when it began, who hung up; `"partial": true` marks it. Its times of
//! ringing and answer, its places and its media figures are lost. A call that only rings then, or
//! never gets a BYE, has no record.

mod ledger;
mod record;
mod time;
mod writer;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sip::proxy::calls::CallEvent;
use sip::proxy::media::SessionRef;
use tokio::signal::unix::{Signal, SignalKind, signal};
use wire::mark::RelayId;
use wire::relay_control::{SessionStatistics, Side, Silence};

use crate::config::Config;
use crate::edge_keys::EdgeKeys;
use crate::media::Calls;
use ledger::Ledger;
pub use ledger::LedgerCounters;
pub use time::rfc3339;
use writer::Job;

/// Records on their way to the writer: some 8 MB at most.
const QUEUE: usize = 8192;

/// What became of records, each count under its own name.
#[derive(Debug, Default)]
pub struct Counters {
    /// In the file.
    pub written: AtomicU64,
    /// Dropped because the queue was full.
    pub dropped: AtomicU64,
    /// Not taken by the disk.
    pub failed: AtomicU64,
}

#[derive(Debug, Default)]
struct Shared {
    counters: Counters,
    reopen: AtomicBool,
}

/// All that the worker knows of records.
#[derive(Debug)]
pub struct Cdr {
    name: String,
    file: PathBuf,
    names: Names,
    ledger: Ledger,
    jobs: Option<SyncSender<Job>>,
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

/// What the configuration calls edges and relays.
#[derive(Debug)]
struct Names {
    /// Edge and agent.
    relays: HashMap<RelayId, (String, String)>,
}

impl record::Names for Names {
    fn edge(&self, relay: RelayId) -> Option<&str> {
        self.relays.get(&relay).map(|(edge, _)| edge.as_str())
    }

    fn agent(&self, relay: RelayId) -> Option<&str> {
        self.relays.get(&relay).map(|(_, agent)| agent.as_str())
    }
}

/// Opens the file and starts the writer; `None` where no records are wanted. `unix` is the time
/// since 1970.
pub fn open(config: &Config, unix: Duration) -> anyhow::Result<Option<Cdr>> {
    let Some(wanted) = &config.cdr else {
        return Ok(None);
    };
    let file = wanted.file.clone();
    let opened = writer::open(&file)
        .map_err(|error| anyhow::anyhow!("cdr.file: cannot open {}: {error}", file.display()))?;
    let (jobs, receiver) = sync_channel(QUEUE);
    let shared = Arc::new(Shared::default());
    let writer = writer::start(file.clone(), opened, receiver, Arc::clone(&shared))?;
    let hangup = signal(SignalKind::hangup())?;
    tokio::spawn(reopen_on_hangup(hangup, jobs.clone(), Arc::clone(&shared)));
    let relays = config.relays().flat_map(|(id, relay, edge)| {
        let names = (edge.name.clone(), relay.agent.clone());
        let keys = EdgeKeys::of(edge).all();
        keys.map(move |key| (RelayId { key, ..id }, names.clone()))
    });
    Ok(Some(Cdr {
        name: config.name.clone(),
        file,
        names: Names {
            relays: relays.collect(),
        },
        ledger: Ledger::new(wanted.max_calls, wanted.max_duration, unix.as_secs()),
        jobs: Some(jobs),
        shared,
        writer: Some(writer),
    }))
}

async fn reopen_on_hangup(mut hangup: Signal, jobs: SyncSender<Job>, shared: Arc<Shared>) {
    while hangup.recv().await.is_some() {
        shared.reopen.store(true, Ordering::Relaxed);
        // A full queue has the writer look soon anyway.
        if let Err(TrySendError::Disconnected(_)) = jobs.try_send(Job::Look) {
            return;
        }
    }
}

impl Cdr {
    /// Something has happened to a call.
    pub fn handle_call(&mut self, event: CallEvent, calls: &Calls, unix: Duration, now: Instant) {
        let sessions = |call| calls.sessions_of(call);
        self.ledger.handle_call(event, sessions, unix, now);
    }

    /// The first packet of a side.
    pub fn media_started(&mut self, session: SessionRef, side: Side, calls: &Calls, now: Instant) {
        let call = calls.call_of(session);
        self.ledger.media_started(session, call, side, now);
    }

    /// A call has no media any more, and is ended for that.
    pub fn fall_silent(&mut self, session: SessionRef, silence: Silence, now: Instant) {
        self.ledger.fall_silent(session, silence, now);
    }

    /// A call's last session was ended by another concentrator: it had the BYE.
    pub fn ended_elsewhere(&mut self, session: SessionRef, now: Instant) {
        self.ledger.ended_elsewhere(session, now);
    }

    /// A session is over; `None`: its relay has forgotten it.
    pub fn session_ended(
        &mut self,
        session: SessionRef,
        stats: Option<Box<SessionStatistics>>,
        now: Instant,
    ) {
        self.ledger.session_ended(session, stats, now);
    }

    /// Sends what is due to the writer.
    pub fn flush(&mut self, unix: Duration, now: Instant) {
        self.ledger.handle_timeout(now);
        self.send(unix, now);
    }

    /// The program ends: what waits for its relays does not wait any longer.
    pub fn finish(&mut self, unix: Duration, now: Instant) {
        self.ledger.handle_end();
        self.send(unix, now);
    }

    fn send(&mut self, unix: Duration, now: Instant) {
        while let Some(record) = self.ledger.poll_record() {
            let line = record.line(&self.name, &self.names, now, unix);
            let sent = self
                .jobs
                .as_ref()
                .map(|jobs| jobs.try_send(Job::Line(line)));
            if !matches!(sent, Some(Ok(()))) {
                self.shared.counters.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// What became of records.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// What became of calls.
    pub fn ledger_counters(&self) -> LedgerCounters {
        self.ledger.counters()
    }

    /// Calls in progress.
    pub fn calls(&self) -> usize {
        self.ledger.len()
    }

    /// For `/status`.
    pub fn status(&self) -> Value {
        let counters = self.counters();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        json!({
            "file": self.file.display().to_string(),
            "calls_in_progress": self.calls(),
            "written": count(&counters.written),
            "dropped": count(&counters.dropped),
            "failed": count(&counters.failed),
        })
    }
}

impl Drop for Cdr {
    /// Waits until what was sent is written.
    fn drop(&mut self) {
        if let Some(jobs) = self.jobs.take() {
            // The task that waits for SIGHUP can send as well, so that the queue has no end by itself.
            let _ = jobs.send(Job::End);
        }
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the writer of call records has panicked");
        }
    }
}
