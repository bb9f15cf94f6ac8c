//! The calls in progress, and which of them have become records.
//!
//! [`Ledger`] hears what happens to calls ([`CallEvent`]) and to the sessions of their media, and turns
//! each call into one [`Record`]. A call that fails is a record at once. One that has ended waits for its
//! relays to tell what they have done, until [`PATIENCE`] is over, and for [`SETTLING`] in any case,
//! because the same call may pass here twice and so be ended twice.
//!
//! Bounds: `max_calls` calls; the further ones go without a record and are counted. A call of which
//! no end is heard is recorded as lost after `max_duration`.
//!
//! Pure: times are arguments, records leave through [`Ledger::poll_record`].

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use sip::proxy::calls::{CallEvent, CallKey, CallProgress};
use sip::proxy::media::{Party, SessionRef};
use wire::relay_control::{SessionStatistics, Side, Silence};

use super::record::{EndedBy, FirstPackets, Record};

/// A BYE may be without an answer for 32 s, after which relays let a call linger.
pub(super) const PATIENCE: Duration = Duration::from_secs(45);
/// How long an ended call is kept in any case.
pub(super) const SETTLING: Duration = Duration::from_secs(1);

/// What the ledger counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LedgerCounters {
    /// Calls that went without a record because there were too many.
    pub untracked: u64,
    /// Calls challenged by somebody behind us; the attempt with credentials is the call.
    pub challenged: u64,
    /// BYEs of calls that are not known and began after this program did.
    pub unknown: u64,
    /// Calls of which no end was heard.
    pub lost: u64,
}

/// The calls in progress.
#[derive(Debug)]
pub(super) struct Ledger {
    max_calls: usize,
    max_duration: Duration,
    /// Seconds since 1970 when the program began.
    began: u64,
    calls: HashMap<CallKey, Record>,
    of_session: HashMap<SessionRef, CallKey>,
    /// In the order of their beginning; those that are over stay until their time comes.
    oldest: VecDeque<(Instant, CallKey)>,
    closing: BTreeSet<(Instant, CallKey)>,
    closes: HashMap<CallKey, Instant>,
    /// Media of calls that are not answered yet, as far as is known here.
    early: HashMap<SessionRef, FirstPackets>,
    records: VecDeque<Record>,
    counters: LedgerCounters,
}

impl Ledger {
    pub(super) fn new(max_calls: usize, max_duration: Duration, began: u64) -> Self {
        Self {
            max_calls,
            max_duration,
            began,
            calls: HashMap::new(),
            of_session: HashMap::new(),
            oldest: VecDeque::new(),
            closing: BTreeSet::new(),
            closes: HashMap::new(),
            early: HashMap::new(),
            records: VecDeque::new(),
            counters: LedgerCounters::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.calls.len()
    }

    pub(super) const fn counters(&self) -> LedgerCounters {
        self.counters
    }

    /// Something has happened to a call; `sessions` are those that a call has, by its first.
    pub(super) fn handle_call<I>(
        &mut self,
        event: CallEvent,
        sessions: impl FnOnce(SessionRef) -> I,
        unix: Duration,
        now: Instant,
    ) where
        I: Iterator<Item = SessionRef>,
    {
        let CallEvent { key, what } = event;
        match what {
            CallProgress::Begun { invite, from } => {
                self.begin(key, || Record::begun(&invite, &from, now))
            }
            CallProgress::Ringing => {
                if let Some(call) = self.calls.get_mut(&key) {
                    call.ringing.get_or_insert(now);
                }
            }
            CallProgress::Answered {
                response,
                by,
                session,
            } => {
                let Some(call) = self.calls.get_mut(&key) else {
                    return;
                };
                call.passes = call.passes.saturating_sub(1);
                call.answer(&response, by.as_ref(), now);
                if let Some(first) = session {
                    for session in std::iter::once(first).chain(sessions(first)) {
                        self.add_session(key, session);
                    }
                }
            }
            CallProgress::Failed { status, cancelled } => {
                let by = if cancelled {
                    EndedBy::Cancelled
                } else {
                    EndedBy::Failed
                };
                self.fail(key, status, by, now);
            }
            CallProgress::CallerGone => self.fail(key, 0, EndedBy::CallerGone, now),
            CallProgress::HungUp { bye, by, cookie } => {
                if !self.calls.contains_key(&key) {
                    let started = u64::from(cookie.started);
                    if started >= self.began {
                        self.counters.unknown += 1;
                        return;
                    }
                    let age = unix.saturating_sub(Duration::from_secs(started));
                    self.begin(key, || Record::of_bye(&bye, by, age, now));
                }
                let by = match by {
                    Party::Caller => EndedBy::Caller,
                    Party::Callee => EndedBy::Callee,
                };
                self.end(key, by, now);
            }
            CallProgress::RelayLost => self.end(key, EndedBy::RelayLost, now),
        }
    }

    fn end(&mut self, key: CallKey, by: EndedBy, now: Instant) {
        if let Some(call) = self.calls.get_mut(&key) {
            call.end(by, now);
            self.close(key, now);
        }
    }

    /// The first packet of a side; `call` is the first session of its call.
    pub(super) fn media_started(
        &mut self,
        session: SessionRef,
        call: Option<SessionRef>,
        side: Side,
        now: Instant,
    ) {
        if let Some(key) = call.and_then(|call| self.of_session.get(&call).copied()) {
            self.add_session(key, session);
        }
        let mut first = [None; 2];
        first[usize::from(side == Side::B)] = Some(now);
        let key = self.of_session.get(&session);
        if let Some(call) = key.and_then(|key| self.calls.get_mut(key)) {
            call.media_started(session, first);
        } else if self.early.len() < self.max_calls {
            let early = self.early.entry(session).or_default();
            for (known, new) in early.iter_mut().zip(first) {
                *known = known.or(new);
            }
        }
    }

    /// A call has no media any more and is over.
    pub(super) fn fall_silent(&mut self, session: SessionRef, silence: Silence, now: Instant) {
        let Some(&key) = self.of_session.get(&session) else {
            return;
        };
        if let Some(call) = self.calls.get_mut(&key) {
            call.fall_silent(silence, now);
            self.close(key, now);
        }
    }

    /// The relay says that a call is over, whose BYE another concentrator has got.
    pub(super) fn ended_elsewhere(&mut self, session: SessionRef, now: Instant) {
        if let Some(&key) = self.of_session.get(&session) {
            self.end(key, EndedBy::Elsewhere, now);
        }
    }

    /// A session is over; without statistics where its relay has forgotten it.
    pub(super) fn session_ended(
        &mut self,
        session: SessionRef,
        stats: Option<Box<SessionStatistics>>,
        now: Instant,
    ) {
        self.early.remove(&session);
        let Some(&key) = self.of_session.get(&session) else {
            return;
        };
        let Some(call) = self.calls.get_mut(&key) else {
            return;
        };
        if stats.is_none() {
            self.of_session.remove(&session);
        }
        call.session_ended(session, stats);
        if call.ended.is_some() {
            self.close(key, now);
        }
    }

    /// Records what is due.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        while let Some(&(at, key)) = self.closing.first()
            && at <= now
        {
            self.finish(key);
        }
        while let Some(&(started, key)) = self.oldest.front() {
            let same = self.calls.get(&key).filter(|call| call.started == started);
            let over = started + self.max_duration <= now;
            match same {
                Some(_) if !over => break,
                Some(_) => {
                    self.counters.lost += 1;
                    if let Some(call) = self.calls.get_mut(&key) {
                        call.end(EndedBy::Lost, now);
                    }
                    self.finish(key);
                }
                None => {}
            }
            self.oldest.pop_front();
        }
    }

    /// The program ends: records every call that has ended, whatever it waits for.
    pub(super) fn handle_end(&mut self) {
        while let Some(&(_, key)) = self.closing.first() {
            self.finish(key);
        }
    }

    /// A call that is over.
    pub(super) fn poll_record(&mut self) -> Option<Record> {
        self.records.pop_front()
    }

    fn begin(&mut self, key: CallKey, make: impl FnOnce() -> Record) {
        if let Some(call) = self.calls.get_mut(&key).filter(|call| call.ended.is_none()) {
            call.passes = call.passes.saturating_add(1);
            return;
        }
        if self.calls.contains_key(&key) {
            return;
        }
        if self.calls.len() >= self.max_calls {
            self.counters.untracked += 1;
            return;
        }
        let record = make();
        self.oldest.push_back((record.started, key));
        self.calls.insert(key, record);
        self.shrink();
    }

    /// Calls that are over leave their places in `oldest` behind, for as long as the longest lasts.
    fn shrink(&mut self) {
        if self.oldest.len() > 2 * self.calls.len() + 64 {
            let calls = &self.calls;
            self.oldest.retain(|(started, key)| {
                calls.get(key).is_some_and(|call| call.started == *started)
            });
        }
    }

    /// One INVITE of a call has failed; the call has if it was the last.
    fn fail(&mut self, key: CallKey, status: u16, by: EndedBy, now: Instant) {
        let Some(call) = self.calls.get_mut(&key) else {
            return;
        };
        call.passes = call.passes.saturating_sub(1);
        if call.passes > 0 || call.answered.is_some() {
            return;
        }
        if matches!(status, 401 | 407) {
            self.counters.challenged += 1;
            self.forget(key);
            return;
        }
        call.fail(status, by, now);
        self.finish(key);
    }

    fn add_session(&mut self, key: CallKey, session: SessionRef) {
        if let Some(call) = self.calls.get_mut(&key)
            && call.add_session(session)
        {
            self.of_session.insert(session, key);
            if let Some(first) = self.early.remove(&session) {
                call.media_started(session, first);
            }
        }
    }

    /// A call has ended: when it becomes a record.
    fn close(&mut self, key: CallKey, now: Instant) {
        let Some(call) = self.calls.get(&key) else {
            return;
        };
        let ended = call.ended.map_or(now, |(at, _)| at);
        let due = ended + if call.waits() { PATIENCE } else { SETTLING };
        if let Some(before) = self.closes.insert(key, due) {
            self.closing.remove(&(before, key));
        }
        self.closing.insert((due, key));
    }

    fn finish(&mut self, key: CallKey) {
        let record = self.forget(key);
        self.records.extend(record);
    }

    fn forget(&mut self, key: CallKey) -> Option<Record> {
        if let Some(due) = self.closes.remove(&key) {
            self.closing.remove(&(due, key));
        }
        let call = self.calls.remove(&key)?;
        for media in &call.sessions {
            self.of_session.remove(&media.session);
        }
        Some(call)
    }
}

#[cfg(test)]
mod tests;
