//! Registrations that several concentrators share: what the others and the disk have is told here, and
//! until then the answer to a REGISTER waits, but never longer than a given time.
//!
//! A REGISTER changes bindings; each change is an event of the registrar with a number. The shell says
//! which numbers the others have ([`Proxy::acknowledge`]) and up to which number all is on the disk
//! ([`Proxy::kept`]). An answer leaves when both hold for all its changes, or when its time is over; then it
//! is counted, because what it says could still be lost with this machine. The transaction is not answered
//! meanwhile, so that retransmissions of the REGISTER are absorbed as always.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Proxy;
use crate::hop::ConnectionId;
use crate::message::ResponseBuilder;
use crate::registrar::News;
use crate::registrar::record::{Clock, Record};
use crate::registrar::shared::Merged;
use crate::transaction::ServerId;

/// Answers that wait at a time; further ones do not wait.
const MAX_HELD: usize = 20_000;

/// What became of answers that waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// The others had it in time.
    pub acknowledged: u64,
    /// It was answered before the others had it.
    pub unacknowledged: u64,
    /// It was answered before the disk had it.
    pub unkept: u64,
    /// It did not wait because too many did.
    pub crowded: u64,
}

/// Answers that wait, in the order of their numbers, which is that of their ends.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// None: answers do not wait.
    patience: Option<Duration>,
    answers: VecDeque<Answer>,
    /// All numbers up to this are on the disk; none where there is no disk.
    kept: Option<u64>,
    counters: Counters,
}

#[derive(Debug)]
struct Answer {
    id: ServerId,
    /// None: it has left.
    bytes: Option<Bytes>,
    last: u64,
    /// Changes that the others do not have.
    missing: u64,
    until: Instant,
}

impl Proxy {
    /// From now on registrations are shared ([`crate::registrar::shared`]): this concentrator has that
    /// number, and answers to REGISTERs wait for so long at most; with a disk for that, too.
    pub fn share_registrations(&mut self, id: u16, clock: Clock, patience: Duration, disk: bool) {
        self.registrar.share(id, clock);
        self.held.patience = Some(patience);
        self.held.kept = disk.then_some(0);
    }

    /// What happened to a binding, with its number.
    pub fn poll_news(&mut self) -> Option<News> {
        self.registrar.poll_news()
    }

    /// Takes a record of another concentrator.
    pub fn merge(&mut self, record: Record, now: Instant) -> Merged {
        self.registrar.merge(record, now)
    }

    /// The common clock is better known; see [`crate::registrar::Registrar::set_shared_clock`].
    pub fn set_shared_clock(&mut self, clock: Clock, unheard_since: Option<Instant>) {
        self.registrar.set_shared_clock(clock, unheard_since);
    }

    /// Which concentrators are there.
    pub fn set_alive(&mut self, ids: Vec<u16>) {
        self.registrar.set_alive(ids);
    }

    /// Ends the bindings of connections of an earlier life; gives their number.
    pub fn drop_former_connections(&mut self, current: ConnectionId, now: Instant) -> usize {
        self.registrar.drop_former_connections(current, now)
    }

    /// The others have the change with this number, or need not have it.
    pub fn acknowledge(&mut self, number: u64, now: Instant) {
        let answers = &mut self.held.answers;
        // Those before it end before it.
        let at = answers.partition_point(|answer| answer.last < number);
        let Some(answer) = answers.get_mut(at) else {
            return;
        };
        answer.missing = answer.missing.saturating_sub(1);
        if answer.missing == 0 && self.held.kept.is_none_or(|kept| kept >= answer.last) {
            self.held.counters.acknowledged += 1;
            self.release(at, now);
        }
    }

    /// All changes up to this number are on the disk.
    pub fn kept(&mut self, up_to: u64, now: Instant) {
        let Some(kept) = &mut self.held.kept else {
            return;
        };
        *kept = up_to.max(*kept);
        let ready = self
            .held
            .answers
            .partition_point(|answer| answer.last <= up_to);
        for at in 0..ready {
            let answer = self.held.answers.get(at);
            if answer.is_some_and(|answer| answer.missing == 0 && answer.bytes.is_some()) {
                self.held.counters.acknowledged += 1;
                self.send_held(at, now);
            }
        }
        self.forget_sent();
    }

    /// What became of answers that waited.
    pub fn held_counters(&self) -> Counters {
        self.held.counters
    }

    /// Answers that wait.
    pub fn held(&self) -> usize {
        self.held.answers.len()
    }

    /// Sends the answer to a REGISTER when the changes with the numbers behind `before` are safe.
    pub(super) fn answer_register(
        &mut self,
        id: ServerId,
        response: &ResponseBuilder<'_>,
        (before, last): (u64, u64),
        now: Instant,
    ) {
        let Some(patience) = self.held.patience.filter(|_| last > before) else {
            return self.answer(id, response, now);
        };
        if response.status() != 200 {
            return self.answer(id, response, now);
        }
        if self.held.answers.len() >= MAX_HELD {
            self.held.counters.crowded += 1;
            return self.answer(id, response, now);
        }
        self.held.answers.push_back(Answer {
            id,
            bytes: Some(response.bytes()),
            last,
            missing: last - before,
            until: now + patience,
        });
    }

    pub(super) fn next_held(&self) -> Option<(Instant, &'static str)> {
        let first = self.held.answers.front()?;
        Some((first.until, "answer to a REGISTER"))
    }

    /// Sends what has waited long enough.
    pub(super) fn release_held(&mut self, now: Instant) {
        while let Some(answer) = self.held.answers.front()
            && answer.until <= now
        {
            let counters = &mut self.held.counters;
            if answer.bytes.is_some() {
                counters.unacknowledged += u64::from(answer.missing > 0);
                let kept = self.held.kept.is_none_or(|kept| kept >= answer.last);
                counters.unkept += u64::from(!kept);
            }
            self.release(0, now);
        }
    }

    fn release(&mut self, at: usize, now: Instant) {
        self.send_held(at, now);
        self.forget_sent();
    }

    fn send_held(&mut self, at: usize, now: Instant) {
        let answer = self.held.answers.get_mut(at);
        if let Some((id, bytes)) = answer.and_then(|answer| Some((answer.id, answer.bytes.take()?)))
        {
            self.transactions.respond(id, bytes, 200, now);
            while let Some(transmit) = self.transactions.poll_transmit() {
                self.transmits.push_back(transmit);
            }
        }
    }

    /// In front; those in the middle go with what is before them.
    fn forget_sent(&mut self) {
        while let Some(answer) = self.held.answers.front()
            && answer.bytes.is_none()
        {
            self.held.answers.pop_front();
        }
    }
}
