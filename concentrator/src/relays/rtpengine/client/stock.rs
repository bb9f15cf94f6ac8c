//! Sessions become leases: preparing and renewing them, and what may be wrong with the answers.

use std::time::Instant;

use wire::bencode::Dictionary;
use wire::relay_control::{ErrorCode, FromAgent, Side, SideAddr};

use super::super::message::{self, BadSide, Outcome};
use super::super::session::{COMBINATIONS, Phase, Session, index};
use super::{Ask, Client, FIRST_CHECK, MAX_SESSIONS, PATIENCE, PREPARING, RENEW, RETRY, State};

/// What is wrong with a side as rtpengine names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    Sdp,
    Address,
    Family,
    OtherPorts,
}

impl Client {
    /// How many leases of a combination are wanted: one until rtpengine has shown that it can, then
    /// a share of the stock, of which the first that may be has half and more.
    pub(super) fn wanted(&self, combination: usize) -> u32 {
        let State::Up(stock) = self.state else {
            return 0;
        };
        let mut possible = (0..COMBINATIONS.len()).filter(|at| self.usable[*at] != Some(false));
        let (first, others) = (possible.next(), possible.map(|_| 1).sum::<u32>());
        match self.usable[combination] {
            Some(false) => 0,
            None => stock.min(1),
            Some(true) if first == Some(combination) => stock - others * (stock / 6),
            Some(true) => stock / 6,
        }
    }

    /// Prepares leases until the pool has as many as it wants.
    pub(super) fn refill(&mut self, now: Instant) {
        if self.refill_at > now {
            return;
        }
        for combination in 0..COMBINATIONS.len() {
            while self.stocked[combination] < self.wanted(combination) {
                if self.preparing >= PREPARING {
                    return;
                }
                if self.sessions.len() >= MAX_SESSIONS {
                    self.counters.too_many_sessions += 1;
                    self.refill_at = now + RETRY;
                    return;
                }
                let number = self.next_session;
                self.next_session = self.next_session.wrapping_add(1);
                self.sessions.insert(number, Session::new(combination, now));
                self.stocked[combination] += 1;
                self.preparing += 1;
                self.describe(number, Side::A, now);
            }
        }
    }

    /// Side A is an `offer`, after whose answer side B follows.
    pub(super) fn describe(&mut self, number: u64, side: Side, now: Instant) {
        let Some(session) = self.sessions.get_mut(&number) else {
            return;
        };
        if side == Side::A {
            session.changed = false;
        }
        session.asking = true;
        let (description, towards) = (session.description(side), session.towards(side));
        let interface = self.identity.interface.as_deref();
        self.exchange
            .ask(Ask::Describe(number, side), PATIENCE, now, |request| {
                message::describe(request, number, side, description, towards, interface);
            });
    }

    pub(super) fn described(
        &mut self,
        number: u64,
        side: Side,
        outcome: Outcome,
        answer: Dictionary<'_>,
        now: Instant,
    ) {
        let Some(session) = self.sessions.get_mut(&number) else {
            return;
        };
        session.asking = false;
        if outcome != Outcome::Done {
            return self.not_described(number, outcome, now);
        }
        // What the offer goes on with names the ports that face side B.
        match (self.check_side(number, side.other(), answer), side) {
            (Ok(()), Side::A) => self.describe(number, Side::B, now),
            (Ok(()), Side::B) => self.complete(number, now),
            (Err(trouble), _) => self.misplaced(number, trouble, now),
        }
    }

    /// The side as rtpengine names it is the one that the lease promises.
    pub(super) fn check_side(
        &mut self,
        number: u64,
        side: Side,
        answer: Dictionary<'_>,
    ) -> Result<(), Trouble> {
        let Some(session) = self.sessions.get_mut(&number) else {
            return Err(Trouble::Sdp);
        };
        let told: SideAddr = message::side(answer).map_err(|bad| match bad {
            BadSide::Sdp => Trouble::Sdp,
            BadSide::Address => Trouble::Address,
        })?;
        if told.addr.is_ipv4() != COMBINATIONS[session.combination][index(side)] {
            return Err(Trouble::Family);
        }
        match session.sides[index(side)] {
            Some(promised) if promised != told => Err(Trouble::OtherPorts),
            _ => {
                session.sides[index(side)] = Some(told);
                Ok(())
            }
        }
    }

    /// Offer and answer are through.
    pub(super) fn complete(&mut self, number: u64, now: Instant) {
        let Some(session) = self.sessions.get_mut(&number) else {
            return;
        };
        match session.phase {
            Phase::Preparing => {
                session.phase = Phase::Stocked;
                self.preparing = self.preparing.saturating_sub(1);
                self.usable[session.combination] = Some(true);
                if let Some(lease) = session.lease(number) {
                    self.say(FromAgent::Leases {
                        leases: vec![lease],
                    });
                }
                self.schedule(number, now + RENEW);
            }
            Phase::Stocked => self.schedule(number, now + RENEW),
            Phase::Bound if session.changed => self.describe(number, Side::A, now),
            Phase::Bound => {
                for request in std::mem::take(&mut session.waiting) {
                    self.say(FromAgent::Done { request });
                }
                self.schedule(number, now + FIRST_CHECK);
            }
            Phase::Ending => self.delete(number, now),
        }
    }

    /// rtpengine has refused an offer or an answer.
    pub(super) fn not_described(&mut self, number: u64, outcome: Outcome, now: Instant) {
        let Some(session) = self.sessions.get_mut(&number) else {
            return;
        };
        match session.phase {
            Phase::Preparing => {
                // After a refused answer the offer is still there.
                self.remove(number);
                self.forget(number, now);
                self.refill_at = now + RETRY;
            }
            Phase::Stocked if outcome == Outcome::Unknown => self.start_over(now),
            Phase::Stocked => self.schedule(number, now + RETRY),
            Phase::Bound if outcome == Outcome::Unknown => self.lost(number, now),
            Phase::Bound => {
                self.fail_waiting(number, ErrorCode::BadRequest, "rtpengine refuses");
                self.schedule(number, now + FIRST_CHECK);
            }
            Phase::Ending => self.delete(number, now),
        }
    }

    /// rtpengine has said yes, and its SDP is not what it has to be.
    pub(super) fn misplaced(&mut self, number: u64, trouble: Trouble, now: Instant) {
        match trouble {
            Trouble::Sdp => self.counters.bad_sdp += 1,
            Trouble::Address => self.counters.bad_address += 1,
            Trouble::Family => self.counters.wrong_family += 1,
            Trouble::OtherPorts => self.counters.other_ports += 1,
        }
        let Some(session) = self.sessions.get(&number) else {
            return;
        };
        let (phase, combination) = (session.phase, session.combination);
        match phase {
            Phase::Preparing => {
                self.remove(number);
                self.forget(number, now);
                if trouble == Trouble::Family {
                    self.usable[combination] = Some(false);
                } else {
                    self.refill_at = now + RETRY;
                }
            }
            Phase::Stocked => self.start_over(now),
            Phase::Bound => {
                self.lost(number, now);
                // It has made another session of that name.
                self.forget(number, now);
            }
            Phase::Ending => self.delete(number, now),
        }
    }

    /// Neither yes nor no: rtpengine may have done it all the same.
    pub(super) fn undescribed(&mut self, number: u64, now: Instant) {
        let Some(session) = self.sessions.get_mut(&number) else {
            return;
        };
        session.asking = false;
        match session.phase {
            Phase::Preparing => {
                self.remove(number);
                self.forget(number, now);
                self.refill_at = now + RETRY;
            }
            Phase::Stocked => self.schedule(number, now + RETRY),
            Phase::Bound => {
                session.changed = true;
                self.schedule(number, now + RETRY);
            }
            Phase::Ending => self.delete(number, now),
        }
    }

    /// A session is no longer one of the stock.
    pub(super) fn leave(&mut self, phase: Phase, combination: usize) {
        match phase {
            Phase::Preparing => {
                self.preparing = self.preparing.saturating_sub(1);
                self.stocked[combination] = self.stocked[combination].saturating_sub(1);
            }
            Phase::Stocked => {
                self.stocked[combination] = self.stocked[combination].saturating_sub(1);
            }
            Phase::Bound | Phase::Ending => {}
        }
    }
}
