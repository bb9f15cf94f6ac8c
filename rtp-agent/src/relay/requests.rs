//! What a concentrator asks of a session: bind, update, release, query; and how many leases it wants.
//!
//! [`carry_out`](Relay::carry_out) gets each request once, since [`crate::control::Link`] has answered
//! repetitions. A session obeys only the concentrator it was leased to; a request that cannot be carried
//! out changes nothing and is answered by its error code.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use wire::relay_control::{ErrorCode, FromAgent, Gate, GateMode, Side, ToAgent};

use super::{ConcentratorId, Entry, Relay, SessionId, Stocked};
use crate::latch::other_relay;
use crate::session::Context;

/// Addresses in one gate.
pub(super) const MAX_EXPECTED: usize = 16;

impl Relay {
    pub(super) fn carry_out(&mut self, concentrator: ConcentratorId, asked: ToAgent, now: Instant) {
        let (request, outcome) = match asked.clone() {
            ToAgent::Bind {
                request,
                session,
                a,
                b,
                call,
            } => (
                request,
                self.bind(concentrator, SessionId(session), [a, b], call, now),
            ),
            ToAgent::Update {
                request,
                session,
                side,
                gate,
            } => (
                request,
                self.update(concentrator, SessionId(session), side, gate, now),
            ),
            ToAgent::Release { request, session } => {
                (request, self.release(concentrator, SessionId(session), now))
            }
            ToAgent::Stock { request, stock } => {
                (request, self.set_stock(concentrator, stock, now))
            }
            ToAgent::Query { request, session } => {
                return self.query(concentrator, request, SessionId(session), now);
            }
            // The link has dealt with these.
            ToAgent::Welcome { .. } | ToAgent::Heartbeat { .. } | ToAgent::HeartbeatAck { .. } => {
                return;
            }
        };
        let answer = match outcome {
            Ok(()) => FromAgent::Done { request },
            Err(code) => {
                self.troubles.requests_failed += 1;
                failed(request, code)
            }
        };
        self.links[concentrator.0]
            .link
            .answer(request, asked, answer);
    }

    /// A gate of bounded length that, where it is for another relay, names one that may be written
    /// to: not this host itself, unless all of it is a test on loopback.
    fn is_usable(&self, gate: &Gate) -> bool {
        if gate.mode != GateMode::Relay {
            return gate.expected.len() <= MAX_EXPECTED;
        }
        let own = &self.config.addresses;
        other_relay(gate).is_some_and(|relay| {
            let on_loopback = own.iter().all(IpAddr::is_loopback);
            on_loopback || !(own.contains(&relay.ip()) || relay.ip().is_loopback())
        })
    }

    pub(super) fn bind(
        &mut self,
        concentrator: ConcentratorId,
        session: SessionId,
        [a, b]: [Gate; 2],
        call: String,
        now: Instant,
    ) -> Result<(), ErrorCode> {
        if !(self.is_usable(&a) && self.is_usable(&b)) {
            return Err(ErrorCode::BadRequest);
        }
        let entry = usable(&mut self.sessions, &self.links, concentrator, session)?;
        let was_lease = entry.session.is_lease();
        let mut context = Context {
            hold: &mut self.hold,
            out: &mut self.outputs,
        };
        entry.session.handle_bind(a, b, now, &mut context);
        entry.bound_at.get_or_insert(now);
        entry.call = call;
        let combination = entry.combination;
        self.settle(session);
        if was_lease {
            self.count_used(concentrator, combination);
            self.refill(concentrator, now);
        }
        Ok(())
    }

    pub(super) fn update(
        &mut self,
        concentrator: ConcentratorId,
        session: SessionId,
        side: Side,
        gate: Gate,
        now: Instant,
    ) -> Result<(), ErrorCode> {
        if !self.is_usable(&gate) {
            return Err(ErrorCode::BadRequest);
        }
        let entry = usable(&mut self.sessions, &self.links, concentrator, session)?;
        if entry.session.is_lease() {
            return Err(ErrorCode::BadRequest);
        }
        entry.session.handle_update(side, gate, now);
        self.settle(session);
        Ok(())
    }

    pub(super) fn release(
        &mut self,
        concentrator: ConcentratorId,
        session: SessionId,
        now: Instant,
    ) -> Result<(), ErrorCode> {
        let entry = changeable(&mut self.sessions, &self.links, concentrator, session)?;
        let was_lease = entry.session.is_lease();
        entry.session.handle_release(now);
        let combination = entry.combination;
        self.settle(session);
        if was_lease {
            self.count_used(concentrator, combination);
        }
        Ok(())
    }

    fn query(
        &mut self,
        concentrator: ConcentratorId,
        request: u64,
        session: SessionId,
        now: Instant,
    ) {
        let answer = match self.sessions.get_mut(&session) {
            Some(entry) if entry.owner == concentrator || !entry.session.is_lease() => {
                if entry.owner != concentrator {
                    entry.tell_also(concentrator);
                }
                FromAgent::Statistics {
                    request,
                    session: session.0,
                    stats: entry.statistics(now),
                }
            }
            Some(_) => failed(request, ErrorCode::NotYourSession),
            None => failed(request, ErrorCode::UnknownSession),
        };
        self.links[concentrator.0].link.notify(answer);
    }
}

/// A session that this concentrator may change: its own, or one in use. All concentrators are believed
/// alike, and who has the session's number has it from a call. When its owner is away the session is
/// this one's from now on, and both hear of its end.
fn changeable<'s>(
    sessions: &'s mut HashMap<SessionId, Entry>,
    links: &[Stocked],
    concentrator: ConcentratorId,
    session: SessionId,
) -> Result<&'s mut Entry, ErrorCode> {
    let entry = sessions
        .get_mut(&session)
        .ok_or(ErrorCode::UnknownSession)?;
    if entry.owner == concentrator {
        return Ok(entry);
    }
    if entry.session.is_lease() {
        return Err(ErrorCode::NotYourSession);
    }
    if !links
        .get(entry.owner.0)
        .is_some_and(|owner| owner.link.is_up())
    {
        entry.hand_over(concentrator);
    }
    Ok(entry)
}

/// The same, open and not released.
fn usable<'s>(
    sessions: &'s mut HashMap<SessionId, Entry>,
    links: &[Stocked],
    concentrator: ConcentratorId,
    session: SessionId,
) -> Result<&'s mut Entry, ErrorCode> {
    let entry = changeable(sessions, links, concentrator, session)?;
    if entry.opening || entry.session.is_lingering() {
        return Err(ErrorCode::UnknownSession);
    }
    Ok(entry)
}

pub(super) fn failed(request: u64, code: ErrorCode) -> FromAgent {
    FromAgent::Failed {
        request,
        code,
        text: code.to_string(),
    }
}
