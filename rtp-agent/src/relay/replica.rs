//! The relay's table of sessions, out to the other agent of a pair and in from it.
//!
//! An agent that stands by has the same sessions on the same ports, their sockets open in advance: it
//! relays what reaches it from the first packet, whoever is in charge. Being in charge decides the rest:
//! only then sessions end by their timers, leases are prepared and the concentrators are told something.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use wire::relay_control::Side;
use wire::relay_control::standby::{Phase, SessionRecord};

use super::requests::MAX_EXPECTED;
use super::{Command, ConcentratorId, Entry, Relay, SessionId, side_index};
use crate::ports::PortPair;
use crate::session::Session;
use crate::standby::journal::Journal;

/// Octets of a call's name that are told to the other agent.
const MAX_CALL: usize = 256;

/// Why a session of the other agent cannot be kept here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// An address that is not one of `media.addresses`.
    #[error("another media address")]
    Address,
    /// Ports that are not pairs of `media.ports`, or the same pair twice.
    #[error("ports that are not of media.ports")]
    Ports,
    /// More than a concentrator may ask for.
    #[error("too many expected addresses")]
    Gate,
}

impl Relay {
    /// Another agent is in charge from now on.
    pub fn stand_by(&mut self) {
        self.standing_by = true;
        self.timers.clear();
        self.retry_refill = None;
        for entry in self.sessions.values_mut() {
            entry.armed = None;
        }
        self.recall_all();
    }

    /// This agent is in charge from now on. Numbers of new sessions begin at `fresh` or above: greater
    /// than any that another agent in charge may have given.
    pub fn take_over(&mut self, fresh: u64, now: Instant) {
        self.standing_by = false;
        let sessions = self.session_ids();
        let highest = sessions.iter().map(|id| id.0.saturating_add(1)).max();
        self.next_session = self.next_session.max(fresh).max(highest.unwrap_or(0));
        for id in sessions {
            if let Some(entry) = self.sessions.get_mut(&id) {
                entry.session.handle_take_over(now);
            }
            self.settle(id);
        }
    }

    /// The table is the one of this epoch from now on; sessions of another are closed.
    pub fn adopt(&mut self, epoch: u64, now: Instant) {
        if self.config.epoch == epoch {
            return;
        }
        self.config.epoch = epoch;
        for id in self.session_ids() {
            self.forget(id, now);
        }
    }

    /// The epoch of the table: what the concentrators are told.
    pub const fn epoch(&self) -> u64 {
        self.config.epoch
    }

    /// All sessions whose ports are open, in the order of their numbers.
    pub fn session_ids(&self) -> Vec<SessionId> {
        let open = self.sessions.iter().filter(|(_, entry)| !entry.opening);
        let mut ids: Vec<_> = open.map(|(&id, _)| id).collect();
        ids.sort_unstable();
        ids
    }

    /// A session and the concentrator that it was leased to; the record leaves the latter out.
    pub fn export(&self, id: SessionId, now: Instant) -> Option<(ConcentratorId, SessionRecord)> {
        let entry = self.sessions.get(&id).filter(|entry| !entry.opening)?;
        let statistics = entry.statistics(now);
        let record = SessionRecord {
            lease: entry.lease,
            owner: None,
            phase: entry.session.phase(),
            bound_for_ms: statistics.duration_ms,
            call: shortened(&entry.call),
            a: entry.session.export(Side::A, statistics.a, now),
            b: entry.session.export(Side::B, statistics.b, now),
        };
        Some((entry.owner, record))
    }

    /// Takes in a session as the agent in charge has it, new or changed.
    pub fn import(
        &mut self,
        owner: ConcentratorId,
        record: &SessionRecord,
        now: Instant,
    ) -> Result<(), ImportError> {
        let combination = self.combination(record)?;
        let expected = |side: &Option<wire::relay_control::Gate>| {
            side.as_ref().map_or(0, |gate| gate.expected.len())
        };
        if expected(&record.a.gate).max(expected(&record.b.gate)) > MAX_EXPECTED {
            return Err(ImportError::Gate);
        }
        let id = SessionId(record.lease.session);
        if self
            .sessions
            .get(&id)
            .is_some_and(|entry| entry.lease != record.lease)
        {
            self.forget(id, now);
        }
        if self.sessions.contains_key(&id) {
            self.replace(id, owner, record, now);
            return Ok(());
        }
        let pairs = self.take_exactly(record, now)?;
        let mut entry = Entry::new(owner, record.lease, combination, pairs, self.config.limits);
        entry.fill(record, now);
        self.count_lease(&entry);
        self.sessions.insert(id, entry);
        let (a, b) = (record.lease.a, record.lease.b);
        let session = id;
        self.commands.push_back(Command::Open { session, a, b });
        Ok(())
    }

    /// The session is over at the agent in charge, which has told the concentrator.
    pub fn forget(&mut self, id: SessionId, now: Instant) {
        let Some(mut entry) = self.sessions.remove(&id) else {
            return;
        };
        if let Some(armed) = entry.armed.take() {
            self.timers.remove(&(armed, id));
        }
        entry.session.handle_replaced(&mut self.hold);
        if entry.session.is_lease() {
            self.count_used(entry.owner, entry.combination);
        }
        for pair in entry.pairs {
            self.ports.release(pair, now);
        }
        self.commands.extend(entry.recalls(id));
        self.commands.push_back(Command::Close { session: id });
    }

    /// Forgets all sessions but these.
    pub fn retain(&mut self, named: &HashSet<u64>, now: Instant) {
        let gone = self.sessions.keys().filter(|id| !named.contains(&id.0));
        for id in gone.copied().collect::<Vec<_>>() {
            self.forget(id, now);
        }
    }

    /// What the other agent has not been told yet.
    pub const fn journal(&mut self) -> &mut Journal {
        &mut self.journal
    }

    /// True when the other agent should be told something.
    pub fn has_news(&self) -> bool {
        self.journal.is_waiting()
    }

    fn replace(
        &mut self,
        id: SessionId,
        owner: ConcentratorId,
        record: &SessionRecord,
        now: Instant,
    ) {
        let Some(mut entry) = self.sessions.remove(&id) else {
            return;
        };
        if entry.session.is_lease() {
            self.count_used(entry.owner, entry.combination);
        }
        entry.session.handle_replaced(&mut self.hold);
        self.commands.extend(entry.recalls(id));
        entry.offload = Default::default();
        entry.owner = owner;
        entry.session = Session::new(self.config.limits);
        entry.fill(record, now);
        self.count_lease(&entry);
        self.sessions.insert(id, entry);
    }

    fn count_lease(&mut self, entry: &Entry) {
        let stocked = self.links.get_mut(entry.owner.0);
        let unused = stocked.and_then(|stocked| stocked.unused.get_mut(entry.combination));
        if let Some(unused) = unused.filter(|_| entry.session.is_lease()) {
            *unused += 1;
        }
    }

    fn combination(&self, record: &SessionRecord) -> Result<usize, ImportError> {
        let place = |addr| {
            let mut addresses = self.config.addresses.iter();
            addresses.position(|&own| own == addr)
        };
        let (a, b) = (place(record.lease.a.addr), place(record.lease.b.addr));
        let combination = a.zip(b).map(|(a, b)| a * 2 + b);
        combination
            .filter(|&at| at < super::stock::COMBINATIONS)
            .ok_or(ImportError::Address)
    }

    /// Both sides' pairs. A session here that has one of them is one that is over.
    fn take_exactly(
        &mut self,
        record: &SessionRecord,
        now: Instant,
    ) -> Result<[PortPair; 2], ImportError> {
        let (a, b) = (record.lease.a, record.lease.b);
        if a.rtp == b.rtp
            || [a, b]
                .iter()
                .any(|side| side.rtp.checked_add(1) != Some(side.rtcp))
        {
            return Err(ImportError::Ports);
        }
        let first = self.take_from_whom_it_may(a.rtp, now)?;
        match self.take_from_whom_it_may(b.rtp, now) {
            Ok(second) => Ok([first, second]),
            Err(error) => {
                self.ports.put_back(first);
                Err(error)
            }
        }
    }

    fn take_from_whom_it_may(&mut self, rtp: u16, now: Instant) -> Result<PortPair, ImportError> {
        if let Some(pair) = self.ports.take_exact(rtp) {
            return Ok(pair);
        }
        let mut sessions = self.sessions.iter();
        let has_it = |entry: &Entry| entry.pairs.iter().any(|pair| pair.rtp() == rtp);
        let holder = sessions.find_map(|(&id, entry)| has_it(entry).then_some(id));
        if let Some(holder) = holder {
            self.forget(holder, now);
        }
        self.ports.take_exact(rtp).ok_or(ImportError::Ports)
    }
}

impl Entry {
    /// Everything that may change in the life of a session.
    fn fill(&mut self, record: &SessionRecord, now: Instant) {
        let limits = self.session.limits();
        self.session = Session::restore(record.phase, &record.a, &record.b, limits, now);
        let bound_for = Duration::from_millis(record.bound_for_ms);
        self.bound_at = match record.phase {
            Phase::Lease => None,
            Phase::Bound | Phase::Lingering => Some(now.checked_sub(bound_for).unwrap_or(now)),
        };
        self.call = shortened(&record.call);
        for side in [Side::A, Side::B] {
            let record = match side {
                Side::A => &record.a,
                Side::B => &record.b,
            };
            self.send_failed[side_index(side)] = record.statistics.rejected.send_failed;
        }
    }
}

fn shortened(call: &str) -> String {
    let end = call.floor_char_boundary(MAX_CALL);
    call.get(..end).unwrap_or_default().to_owned()
}
