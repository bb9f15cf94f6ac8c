//! Leases become calls' sessions: what the pool asks for, and how sessions end.

use std::time::Instant;

use wire::bencode::Dictionary;
use wire::relay_control::{ErrorCode, FromAgent, Gate, Side};

use super::super::message::{self, Outcome};
use super::super::session::{Phase, Session, index};
use super::{Ask, CHECK, Client, MAX_WAITING, PATIENCE};

impl Client {
    pub(super) fn bind<const N: usize>(
        &mut self,
        request: u64,
        number: u64,
        gates: [(Side, Gate); N],
        now: Instant,
    ) {
        let Some(session) = self
            .sessions
            .get_mut(&number)
            .filter(|session| matches!(session.phase, Phase::Stocked | Phase::Bound))
        else {
            let text = "no such session".to_owned();
            let code = ErrorCode::UnknownSession;
            return self.say(FromAgent::Failed {
                request,
                code,
                text,
            });
        };
        for (side, gate) in gates {
            session.set_gate(side, gate);
        }
        if session.waiting.len() < MAX_WAITING {
            session.waiting.push(request);
        }
        let (phase, combination) = (session.phase, session.combination);
        session.phase = Phase::Bound;
        session.bound_at.get_or_insert(now);
        let asking = session.asking;
        self.leave(phase, combination);
        if !asking {
            self.describe(number, Side::A, now);
        }
    }

    pub(super) fn release(&mut self, request: u64, number: u64, now: Instant) {
        self.say(FromAgent::Done { request });
        let Some(session) = self.sessions.get_mut(&number) else {
            // Of a call that our predecessor has placed: its number is its name.
            return self.forget(number, now);
        };
        let (phase, combination) = (session.phase, session.combination);
        session.phase = Phase::Ending;
        let asking = session.asking;
        for request in std::mem::take(&mut session.waiting) {
            self.say(FromAgent::Done { request });
        }
        self.leave(phase, combination);
        if phase != Phase::Ending && !asking {
            self.delete(number, now);
        }
    }

    pub(super) fn show(&mut self, request: u64, number: u64, now: Instant) {
        let Some(session) = self.sessions.get(&number) else {
            return self.say(FromAgent::Failed {
                request,
                code: ErrorCode::UnknownSession,
                text: "no such session".to_owned(),
            });
        };
        let stats = session.final_statistics(now);
        self.say(FromAgent::Statistics {
            request,
            session: number,
            stats,
        });
    }

    pub(super) fn delete(&mut self, number: u64, now: Instant) {
        let Some(session) = self.sessions.get_mut(&number) else {
            return;
        };
        session.asking = true;
        session.deletes += 1;
        self.exchange
            .ask(Ask::Delete(number), PATIENCE, now, |request| {
                message::delete(request, number);
            });
    }

    /// Deletes a session that is not in our table.
    pub(super) fn forget(&mut self, number: u64, now: Instant) {
        self.exchange.ask(Ask::Forget, PATIENCE, now, |request| {
            message::delete(request, number);
        });
    }

    pub(super) fn deleted(&mut self, number: u64, answer: Option<Dictionary<'_>>, now: Instant) {
        let Some(mut session) = self.remove(number) else {
            return;
        };
        if let Some(answer) = answer.filter(|answer| answer.dictionary("tags").is_some()) {
            session.statistics = message::statistics(answer);
        }
        self.ended(number, &session, now);
    }

    pub(super) fn ended(&mut self, number: u64, session: &Session, now: Instant) {
        if session.bound_at.is_some() {
            let stats = session.final_statistics(now);
            self.say(FromAgent::Ended {
                session: number,
                stats,
            });
        }
    }

    /// rtpengine does not know a call's session any more. Whether it was silent, on hold, or
    /// rtpengine was restarted cannot be told, so this is no time-out, for which a call would end.
    pub(super) fn lost(&mut self, number: u64, now: Instant) {
        let waited = self.fail_waiting(number, ErrorCode::UnknownSession, "rtpengine has lost it");
        let Some(session) = self.remove(number) else {
            return;
        };
        // The pool has it from the failure of its request already.
        if !waited {
            self.ended(number, &session, now);
        }
    }

    /// True where the pool has asked.
    pub(super) fn fail_waiting(&mut self, number: u64, code: ErrorCode, why: &str) -> bool {
        let Some(session) = self.sessions.get_mut(&number) else {
            return false;
        };
        let waiting = std::mem::take(&mut session.waiting);
        for request in &waiting {
            self.say(FromAgent::Failed {
                request: *request,
                code,
                text: why.to_owned(),
            });
        }
        !waiting.is_empty()
    }

    pub(super) fn queried(
        &mut self,
        number: u64,
        outcome: Outcome,
        answer: Dictionary<'_>,
        now: Instant,
    ) {
        let Some(session) = self.sessions.get_mut(&number) else {
            return;
        };
        session.asking = false;
        let phase = session.phase;
        match (phase, outcome) {
            (Phase::Ending, _) => return self.delete(number, now),
            (Phase::Bound, Outcome::Unknown) => return self.lost(number, now),
            (_, Outcome::Done) => session.statistics = message::statistics(answer),
            (_, Outcome::Unknown | Outcome::Full | Outcome::Refused) => {}
        }
        let mut started = Vec::new();
        for side in [Side::A, Side::B] {
            let heard = session.statistics.side(side).rtp.packets_in > 0;
            if heard && !std::mem::replace(&mut session.started[index(side)], true) {
                started.push(side);
            }
        }
        let changed = session.changed;
        for side in started {
            self.say(FromAgent::MediaStarted {
                session: number,
                side,
            });
        }
        if changed {
            self.describe(number, Side::A, now);
        } else {
            self.schedule(number, now + CHECK);
        }
    }

    /// What is due for a session.
    pub(super) fn attend(&mut self, number: u64, now: Instant) {
        let Some(session) = self.sessions.get_mut(&number) else {
            return;
        };
        if session.asking {
            return;
        }
        match session.phase {
            Phase::Preparing => {}
            Phase::Stocked => self.describe(number, Side::A, now),
            Phase::Bound if session.changed => self.describe(number, Side::A, now),
            Phase::Bound => {
                session.asking = true;
                self.exchange
                    .ask(Ask::Query(number), PATIENCE, now, |request| {
                        message::query(request, number);
                    });
            }
            Phase::Ending => self.delete(number, now),
        }
    }
}
