//! The protocol with the other agent of the pair, as `docs/standby.md` says it.
//!
//! Pure. The link calls `handle_*` and, after each, sends what [`Pair::poll_message`] gives until there
//! is nothing more. Messages with sessions are made when they are asked for: a slow connection makes
//! the other agent's table older and nothing here longer.
//!
//! Which agent copies its table to the other follows from [`Duty::is_source`]: a snapshot, then what
//! the relay's journal has, and in between every session again within [`REFRESH`], for what changes
//! with every packet (counters) and is not worth a message of its own.

use std::collections::{HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use serde::Serialize;
use tracing::{info, warn};
use wire::relay_control::standby::{PeerMessage, STANDBY_VERSION, SessionRecord, Standing};

use super::duty::{Duty, Role};
use crate::relay::{ConcentratorId, Relay, SessionId};

/// Sessions in one message; the wire crate tests that so many fit.
const MAX_SESSIONS: usize = 32;
/// Numbers of sessions in one message.
const MAX_OVER: usize = 256;
/// Every session is told again within this time.
pub const REFRESH: Duration = Duration::from_secs(5);
/// How often a part of them is.
const REFRESH_STEP: Duration = Duration::from_millis(100);
/// How long the other agent may take to say Hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Intervals without a message after which the other agent is lost.
const SILENT_INTERVALS: u32 = 4;
/// No faster and no slower than this, whatever the Hello says.
const HEARTBEAT_RANGE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(60));

/// What both agents must have the same, and the pace.
#[derive(Debug, Clone)]
pub struct PairConfig {
    /// Of the pair.
    pub name: String,
    /// Which move between the hosts.
    pub media_addresses: Vec<IpAddr>,
    /// The first and the last media port.
    pub ports: (u16, u16),
    /// How often this agent shows that it lives.
    pub heartbeat: Duration,
    /// Where the concentrators take connections; names the owners of sessions.
    pub concentrators: Vec<SocketAddr>,
}

/// Why the connection must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum PairFault {
    /// Something came before the Hello, or a second one.
    #[error("a message out of order")]
    OutOfOrder,
    /// No Hello in time.
    #[error("no Hello")]
    NoHello,
    /// Version 0.
    #[error("an unknown version of the protocol")]
    WrongVersion,
    /// It is of another pair.
    #[error("an agent with another name")]
    WrongName,
    /// Its sessions could not be kept here.
    #[error(
        "an agent with other media addresses or ports; the two files must have the same [media]"
    )]
    OtherMedia,
    /// Nothing came for four intervals.
    #[error("no heartbeat")]
    Silent,
}

/// What happened so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PairCounters {
    /// Times this agent became active.
    pub take_overs: u64,
    /// Snapshots begun.
    pub snapshots_sent: u64,
    /// Snapshots received to their end.
    pub snapshots_received: u64,
    /// Snapshots made necessary by a journal that was full.
    pub journal_overflows: u64,
    /// Sessions told, repetitions included.
    pub sessions_sent: u64,
    /// Sessions heard and kept.
    pub sessions_received: u64,
    /// Sessions heard that could not be kept.
    pub sessions_refused: u64,
    /// Messages with sessions from an agent that is not in charge.
    pub fenced: u64,
    /// Messages that this version does not understand.
    pub not_understood: u64,
    /// Connections closed for what came or did not come on them.
    pub links_closed: u64,
}

/// For the status page.
#[derive(Debug, Serialize)]
pub struct PairStatus {
    role: &'static str,
    term: u64,
    has_addresses: bool,
    connected: bool,
    /// The other agent's role, as far as it says.
    other: Option<&'static str>,
    in_step: bool,
    #[serde(flatten)]
    counters: PairCounters,
}

/// This agent as one of a pair.
#[derive(Debug)]
pub struct Pair {
    config: PairConfig,
    duty: Duty,
    link: Option<Link>,
    counters: PairCounters,
}

#[derive(Debug)]
struct Link {
    outgoing: VecDeque<PeerMessage>,
    greeted: bool,
    heard: Instant,
    patience: Duration,
    next_beat: Instant,
    feed: Feed,
}

/// Which way the table goes on a connection.
#[derive(Debug)]
enum Feed {
    None,
    Out(Out),
    /// Numbers named since the begin of a snapshot, until its end.
    In(Option<HashSet<u64>>),
}

#[derive(Debug)]
struct Out {
    /// Not sent yet; `None` when the snapshot is complete.
    snapshot: Option<VecDeque<SessionId>>,
    refresh: VecDeque<SessionId>,
    refresh_due: Instant,
    /// Sessions that may be told again now.
    refresh_quota: usize,
    refresh_share: usize,
}

impl Pair {
    /// Not connected, and nothing is known of the addresses.
    pub fn new(config: PairConfig, epoch: u64, now: Instant) -> Self {
        Self {
            config,
            duty: Duty::new(epoch, now),
            link: None,
            counters: PairCounters::default(),
        }
    }

    /// The media addresses are on this host, or not. `fresh`: see [`Relay::take_over`].
    pub fn handle_addresses(&mut self, here: bool, relay: &mut Relay, fresh: u64, now: Instant) {
        if self.duty.handle_addresses(here) {
            info!(here, "media addresses");
        }
        self.arrange(relay, fresh, now);
    }

    /// A connection with the other agent is up; it replaces the one before.
    pub fn handle_connected(&mut self, now: Instant) {
        let (first_port, last_port) = self.config.ports;
        let hello = PeerMessage::Hello {
            version: STANDBY_VERSION,
            name: self.config.name.clone(),
            standing: self.duty.standing(),
            media_addresses: self.config.media_addresses.clone(),
            first_port,
            last_port,
            heartbeat_ms: u32::try_from(self.config.heartbeat.as_millis()).unwrap_or(u32::MAX),
            software: concat!("sipcast-rtp-agent/", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        self.link = Some(Link {
            outgoing: VecDeque::from([hello]),
            greeted: false,
            heard: now,
            patience: HELLO_TIMEOUT,
            next_beat: now + self.config.heartbeat,
            feed: Feed::None,
        });
    }

    /// The connection is gone.
    pub fn handle_disconnected(&mut self, relay: &mut Relay, fresh: u64, now: Instant) {
        self.link = None;
        relay.journal().close();
        self.duty.handle_other(None);
        self.arrange(relay, fresh, now);
    }

    /// A message came. `Err`: close the connection.
    pub fn handle_message(
        &mut self,
        message: PeerMessage,
        relay: &mut Relay,
        fresh: u64,
        now: Instant,
    ) -> Result<(), PairFault> {
        let Some(link) = &mut self.link else {
            return Err(PairFault::OutOfOrder);
        };
        link.heard = now;
        match message {
            PeerMessage::Hello { .. } if link.greeted => return Err(PairFault::OutOfOrder),
            PeerMessage::Hello { .. } => {
                let standing = self.greet(message)?;
                self.duty.handle_other(Some(standing));
                self.arrange(relay, fresh, now);
            }
            _ if !link.greeted => return Err(PairFault::OutOfOrder),
            PeerMessage::Standing { standing } => {
                self.duty.handle_other(Some(standing));
                self.arrange(relay, fresh, now);
            }
            PeerMessage::SnapshotBegin { standing } => self.begin(standing, relay, now),
            PeerMessage::Sessions { sessions } => self.take_in(&sessions, relay, now),
            PeerMessage::SnapshotEnd => self.end(relay, fresh, now),
            PeerMessage::Over { sessions } => self.over(&sessions, relay, now),
            PeerMessage::Heartbeat => {}
        }
        Ok(())
    }

    /// A message came that this version does not understand.
    pub fn handle_not_understood(&mut self, now: Instant) {
        self.counters.not_understood += 1;
        if let Some(link) = &mut self.link {
            link.heard = now;
        }
    }

    /// The connection was closed for a fault.
    pub fn handle_fault(&mut self) {
        self.counters.links_closed += 1;
    }

    /// Time has passed, without a connection.
    pub fn review(&mut self, relay: &mut Relay, fresh: u64, now: Instant) {
        self.arrange(relay, fresh, now);
    }

    /// Time has passed: heartbeats, silence, a part of all sessions again. To be called a hundred times a
    /// second while connected. `Err`: close the connection.
    pub fn handle_timeout(
        &mut self,
        relay: &mut Relay,
        fresh: u64,
        now: Instant,
    ) -> Result<(), PairFault> {
        self.arrange(relay, fresh, now);
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        if link.heard + link.patience <= now {
            let silent = if link.greeted {
                PairFault::Silent
            } else {
                PairFault::NoHello
            };
            return Err(silent);
        }
        if link.greeted && link.next_beat <= now {
            link.next_beat = now + self.config.heartbeat;
            link.outgoing.push_back(PeerMessage::Heartbeat);
        }
        if let Feed::Out(out) = &mut link.feed {
            out.handle_timeout(relay, now);
        }
        Ok(())
    }

    /// The next message to send.
    pub fn poll_message(&mut self, relay: &mut Relay, now: Instant) -> Option<PeerMessage> {
        let link = self.link.as_mut()?;
        if let Some(message) = link.outgoing.pop_front() {
            return Some(message);
        }
        let Feed::Out(out) = &mut link.feed else {
            return None;
        };
        if relay.journal().has_overflowed() {
            self.counters.journal_overflows += 1;
            self.counters.snapshots_sent += 1;
            *out = Out::new(relay, now);
            let standing = self.duty.standing();
            return Some(PeerMessage::SnapshotBegin { standing });
        }
        let message = out.next(relay, &self.config.concentrators, now);
        if let Some(PeerMessage::Sessions { sessions }) = &message {
            self.counters.sessions_sent += sessions.len() as u64;
        }
        message
    }

    /// True when this agent is in charge.
    pub fn is_active(&self) -> bool {
        self.duty.role() == Role::Active
    }

    /// The role.
    pub const fn role(&self) -> Role {
        self.duty.role()
    }

    /// True when the other agent is connected and one of both has a whole copy of the other's table.
    pub fn is_in_step(&self) -> bool {
        let link = self.link.as_ref().filter(|link| link.greeted);
        link.is_some_and(|link| match &link.feed {
            Feed::None => false,
            Feed::Out(out) => out.snapshot.is_none(),
            Feed::In(named) => named.is_none(),
        })
    }

    /// True when the other agent is connected and has said Hello.
    pub fn is_connected(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.greeted)
    }

    /// What happened so far.
    pub const fn counters(&self) -> PairCounters {
        self.counters
    }

    /// The term of the table.
    pub fn term(&self) -> u64 {
        self.duty.standing().term
    }

    /// For the status page.
    pub fn status(&self) -> PairStatus {
        PairStatus {
            role: self.role().name(),
            term: self.term(),
            has_addresses: self.duty.has_addresses(),
            connected: self.is_connected(),
            other: self
                .duty
                .other()
                .map(|other| if other.active { "active" } else { "not active" }),
            in_step: self.is_in_step(),
            counters: self.counters,
        }
    }

    fn greet(&mut self, hello: PeerMessage) -> Result<Standing, PairFault> {
        let PeerMessage::Hello {
            version,
            name,
            standing,
            media_addresses,
            first_port,
            last_port,
            heartbeat_ms,
            ..
        } = hello
        else {
            return Err(PairFault::OutOfOrder);
        };
        if version == 0 {
            return Err(PairFault::WrongVersion);
        }
        if name != self.config.name {
            return Err(PairFault::WrongName);
        }
        let same_media = media_addresses == self.config.media_addresses
            && (first_port, last_port) == self.config.ports;
        if !same_media {
            return Err(PairFault::OtherMedia);
        }
        if let Some(link) = &mut self.link {
            let (least, most) = HEARTBEAT_RANGE;
            let heartbeat = Duration::from_millis(heartbeat_ms.into()).clamp(least, most);
            link.greeted = true;
            link.patience = heartbeat * SILENT_INTERVALS;
        }
        Ok(standing)
    }

    /// Role and direction of the table, after anything that may change them.
    fn arrange(&mut self, relay: &mut Relay, fresh: u64, now: Instant) {
        let before = self.duty.standing();
        if let Some(role) = self.duty.decide(now) {
            info!(role = role.name(), term = self.term(), "standby");
            match role {
                Role::Active => {
                    self.counters.take_overs += 1;
                    relay.take_over(fresh, now);
                }
                Role::Joining | Role::Standby | Role::Fenced => relay.stand_by(),
            }
        }
        let standing = self.duty.standing();
        let is_source = self.duty.is_source();
        let Some(link) = self.link.as_mut().filter(|link| link.greeted) else {
            return;
        };
        let changed = before != standing;
        if changed {
            link.outgoing.push_back(PeerMessage::Standing { standing });
        }
        match (&link.feed, is_source) {
            (Feed::Out(_), true) if !changed => {}
            (Feed::Out(_) | Feed::None | Feed::In(_), true) => {
                self.counters.snapshots_sent += 1;
                link.outgoing
                    .push_back(PeerMessage::SnapshotBegin { standing });
                link.feed = Feed::Out(Out::new(relay, now));
            }
            (Feed::Out(_), false) => {
                relay.journal().close();
                link.feed = Feed::None;
            }
            (Feed::None | Feed::In(_), false) => {}
        }
    }

    fn begin(&mut self, table: Standing, relay: &mut Relay, now: Instant) {
        let refused = !self.duty.yields_to(table);
        let Some(link) = &mut self.link else { return };
        if refused {
            self.counters.fenced += 1;
            if matches!(link.feed, Feed::In(_)) {
                link.feed = Feed::None;
            }
            return;
        }
        self.duty.handle_table(table);
        relay.adopt(table.epoch, now);
        link.feed = Feed::In(Some(HashSet::new()));
    }

    fn take_in(&mut self, sessions: &[SessionRecord], relay: &mut Relay, now: Instant) {
        let Some(Link {
            feed: Feed::In(named),
            ..
        }) = &mut self.link
        else {
            self.counters.fenced += 1;
            return;
        };
        for record in sessions {
            let owner = owner_of(record, &self.config.concentrators);
            match relay.import(owner, record, now) {
                Ok(()) => {
                    self.counters.sessions_received += 1;
                    named.iter_mut().for_each(|named| {
                        named.insert(record.lease.session);
                    });
                }
                Err(error) => {
                    self.counters.sessions_refused += 1;
                    warn!(session = record.lease.session, %error, "a session of the other agent is refused");
                }
            }
        }
    }

    fn end(&mut self, relay: &mut Relay, fresh: u64, now: Instant) {
        let Some(Link {
            feed: Feed::In(named),
            ..
        }) = &mut self.link
        else {
            self.counters.fenced += 1;
            return;
        };
        if let Some(named) = named.take() {
            info!(
                sessions = named.len(),
                "standby: the table of the other agent is here"
            );
            relay.retain(&named, now);
            self.counters.snapshots_received += 1;
            self.duty.handle_whole();
            let standing = self.duty.standing();
            if let Some(link) = &mut self.link {
                link.outgoing.push_back(PeerMessage::Standing { standing });
            }
        }
        self.arrange(relay, fresh, now);
    }

    fn over(&mut self, sessions: &[u64], relay: &mut Relay, now: Instant) {
        if !matches!(
            &self.link,
            Some(Link {
                feed: Feed::In(_),
                ..
            })
        ) {
            self.counters.fenced += 1;
            return;
        }
        for &session in sessions {
            relay.forget(SessionId(session), now);
        }
    }
}

impl Out {
    fn new(relay: &mut Relay, now: Instant) -> Self {
        relay.journal().open();
        Self {
            snapshot: Some(relay.session_ids().into()),
            refresh: VecDeque::new(),
            refresh_due: now + REFRESH_STEP,
            refresh_quota: 0,
            refresh_share: 0,
        }
    }

    fn handle_timeout(&mut self, relay: &Relay, now: Instant) {
        if self.refresh_due > now || self.snapshot.is_some() {
            return;
        }
        self.refresh_due = now + REFRESH_STEP;
        if self.refresh.is_empty() {
            self.refresh = relay.session_ids().into();
            let steps = REFRESH.as_millis() / REFRESH_STEP.as_millis();
            self.refresh_share = self.refresh.len() / usize::try_from(steps).unwrap_or(1) + 1;
        }
        self.refresh_quota = self.refresh_share;
    }

    fn next(
        &mut self,
        relay: &mut Relay,
        concentrators: &[SocketAddr],
        now: Instant,
    ) -> Option<PeerMessage> {
        if let Some(waiting) = &mut self.snapshot {
            let sessions = collect(relay, concentrators, now, |_| waiting.pop_front());
            if sessions.is_empty() {
                self.snapshot = None;
                return Some(PeerMessage::SnapshotEnd);
            }
            return Some(PeerMessage::Sessions { sessions });
        }
        let over = std::iter::from_fn(|| relay.journal().take_over());
        let over: Vec<u64> = over.map(|id| id.0).take(MAX_OVER).collect();
        if !over.is_empty() {
            return Some(PeerMessage::Over { sessions: over });
        }
        let sessions = collect(relay, concentrators, now, |relay| {
            relay.journal().take_changed()
        });
        if !sessions.is_empty() {
            return Some(PeerMessage::Sessions { sessions });
        }
        let sessions = collect(relay, concentrators, now, |_| {
            self.refresh_quota = self.refresh_quota.checked_sub(1)?;
            self.refresh.pop_front()
        });
        (!sessions.is_empty()).then_some(PeerMessage::Sessions { sessions })
    }
}

/// The records of the next sessions that are still there, as many as a message carries.
fn collect(
    relay: &mut Relay,
    concentrators: &[SocketAddr],
    now: Instant,
    mut next: impl FnMut(&mut Relay) -> Option<SessionId>,
) -> Vec<SessionRecord> {
    let mut records = Vec::new();
    while records.len() < MAX_SESSIONS {
        let Some(id) = next(relay) else { break };
        if let Some((owner, record)) = relay.export(id, now) {
            let owner = concentrators.get(owner.0).copied();
            records.push(SessionRecord { owner, ..record });
        }
    }
    records
}

/// A concentrator that is not configured here cannot be spoken with: the first one is as good.
fn owner_of(record: &SessionRecord, concentrators: &[SocketAddr]) -> ConcentratorId {
    let mut known = concentrators.iter();
    let at = known.position(|&known| Some(known) == record.owner);
    ConcentratorId(at.unwrap_or(0))
}

#[cfg(test)]
mod tests;
