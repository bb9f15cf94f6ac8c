//! What to ask rtpengine and what to tell the pool.
//!
//! The story of a session: `offer` and `answer` prepare it, and it is a lease. Every [`RENEW`] it is
//! offered and answered again, because rtpengine ends what is silent; should the ports in the answer be
//! others, rtpengine had forgotten it, and all leases are void. A Bind makes it a call's: `offer` and
//! `answer` once more, with the parties. While it is a call's, a `query` every [`CHECK`] finds out that
//! rtpengine has ended it for want of media. A Release becomes `delete`, whose statistics are the
//! session's.
//!
//! rtpengine is up while it answers: a `ping` goes out with every heartbeat, and after
//! [`MISSED_HEARTBEATS`] without an answer the link is closed, which voids the leases; calls take the
//! next relay. Every other heartbeat is a `query` for a lease instead, so that a restart is noticed by
//! the next one, not by the next call.
//!
//! Pure: feed it with `handle_…`, then empty [`Client::poll_output`] and [`Client::poll_transmit`].

mod calls;
mod stock;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use wire::relay_control::{FromAgent, Side, ToAgent, VERSION};

use super::exchange::{Exchange, Patience};
use super::message::{self, Outcome};
use super::session::{COMBINATIONS, Phase, Session};

/// A lease is prepared anew so often: rtpengine's `silent-timeout`, 3600 s unless set, must be longer.
pub const RENEW: Duration = Duration::from_secs(45);
/// A call's session is looked at so often.
pub const CHECK: Duration = Duration::from_secs(20);
/// The first look at it, for its first packets.
const FIRST_CHECK: Duration = Duration::from_secs(3);
/// Heartbeats that may go unanswered.
const MISSED_HEARTBEATS: u32 = 3;
/// Before the pool has said how often.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// An answer to a ping that takes longer is a miss.
const PING_PATIENCE: Patience = Patience {
    again: None,
    deadline: Duration::from_secs(1),
};
const PATIENCE: Patience = Patience {
    again: Some(Duration::from_millis(300)),
    deadline: Duration::from_secs(3),
};
/// After rtpengine could not or would not.
const RETRY: Duration = Duration::from_secs(1);
/// Sessions that are being prepared at once.
const PREPARING: usize = 32;
/// Requests under way, above which renewing and looking waits.
const BUSY: usize = 256;
/// Sessions in all.
const MAX_SESSIONS: usize = 65_536;
/// Requests of the pool that wait for one answer of rtpengine.
const MAX_WAITING: usize = 16;
/// Sessions to be deleted that nobody waits for.
const MAX_ORPHANS: usize = 4096;
/// How often a `delete` without an answer is tried.
const DELETES: u8 = 3;

/// What to do, in this order.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "statistics are large and rare; the rest is small"
)]
pub enum Output {
    /// rtpengine answers: open a link to the pool.
    Connected,
    /// Close the link, for the reason named.
    Closed(&'static str),
    /// Say this to the pool.
    Say(FromAgent),
}

/// What happened, each count under its own name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    unanswered: [u64; 5],
    unknown: u64,
    full: u64,
    refused: u64,
    bad_sdp: u64,
    bad_address: u64,
    wrong_family: u64,
    other_ports: u64,
    down: u64,
    unreachable: u64,
    too_many_sessions: u64,
    orphans_left: u64,
}

/// What a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    Ping,
    /// Does rtpengine still know this lease?
    Fence(u64),
    Describe(u64, Side),
    Query(u64),
    Delete(u64),
    /// A `delete` whose result nobody waits for.
    Forget,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It does not answer, or has not yet.
    Down,
    /// The pool wants that many leases.
    Up(u32),
}

/// Who we are.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The agent's name in the pool.
    pub name: String,
    /// The interface of rtpengine that media use.
    pub interface: Option<String>,
    /// Of this start; also what cookies begin with.
    pub epoch: u64,
    /// The number of the first session; no other start and no other concentrator may use the same
    /// numbers, since they name the calls at rtpengine.
    pub first_session: u64,
}

/// One rtpengine.
#[derive(Debug)]
pub struct Client {
    identity: Identity,
    exchange: Exchange<Ask>,
    state: State,
    heartbeat: Duration,
    next_heartbeat: Instant,
    heartbeats: u64,
    missed: u32,
    sessions: BTreeMap<u64, Session>,
    next_session: u64,
    /// Sessions by what is next for them.
    due: BTreeSet<(Instant, u64)>,
    /// Leases and those that become leases, by combination of families.
    stocked: [u32; COMBINATIONS.len()],
    /// Whether rtpengine has addresses of these families; absent until it was asked.
    usable: [Option<bool>; COMBINATIONS.len()],
    preparing: usize,
    /// No preparation before.
    refill_at: Instant,
    orphans: VecDeque<u64>,
    outputs: VecDeque<Output>,
    counters: Counters,
}

impl Client {
    /// Nothing is known yet; the first ping goes out at once.
    pub fn new(identity: Identity, now: Instant) -> Self {
        Self {
            exchange: Exchange::new(&format!("sc{:x}", identity.epoch)),
            state: State::Down,
            heartbeat: HEARTBEAT,
            next_heartbeat: now,
            heartbeats: 0,
            missed: 0,
            sessions: BTreeMap::new(),
            next_session: identity.first_session,
            due: BTreeSet::new(),
            stocked: [0; COMBINATIONS.len()],
            usable: [None; COMBINATIONS.len()],
            preparing: 0,
            refill_at: now,
            orphans: VecDeque::new(),
            outputs: VecDeque::new(),
            counters: Counters::default(),
            identity,
        }
    }

    /// What the pool says.
    pub fn handle_message(&mut self, message: ToAgent, now: Instant) {
        match message {
            ToAgent::Welcome {
                stock,
                heartbeat_ms,
                ..
            } => {
                self.heartbeat = Duration::from_millis(u64::from(heartbeat_ms.max(100)));
                if matches!(self.state, State::Up(_)) {
                    self.state = State::Up(stock);
                }
            }
            ToAgent::Bind {
                request,
                session,
                a,
                b,
                ..
            } => self.bind(request, session, [(Side::A, a), (Side::B, b)], now),
            ToAgent::Update {
                request,
                session,
                side,
                gate,
            } => self.bind(request, session, [(side, gate)], now),
            ToAgent::Release { request, session } => self.release(request, session, now),
            ToAgent::Query { request, session } => self.show(request, session, now),
            ToAgent::Heartbeat { seq } => self.say(FromAgent::HeartbeatAck { seq }),
            ToAgent::HeartbeatAck { .. } => {}
        }
        self.refill(now);
    }

    /// The pool has closed the link; it comes back with the next answer to a ping.
    pub fn handle_link_closed(&mut self, now: Instant) {
        if self.state != State::Down {
            self.go_down("closed by the worker", now);
        }
    }

    /// A datagram from rtpengine's address.
    pub fn handle_datagram(&mut self, datagram: &[u8], now: Instant) {
        let Some((ask, answer)) = self.exchange.handle_datagram(datagram) else {
            return;
        };
        self.missed = 0;
        let outcome = message::outcome(answer);
        match outcome {
            Outcome::Done => {}
            Outcome::Unknown => self.counters.unknown += 1,
            Outcome::Full => self.counters.full += 1,
            Outcome::Refused => self.counters.refused += 1,
        }
        if self.state == State::Down {
            self.go_up(now);
        }
        match ask {
            Ask::Ping | Ask::Forget => {}
            Ask::Fence(session) => self.fenced(session, outcome, now),
            Ask::Describe(session, side) => self.described(session, side, outcome, answer, now),
            Ask::Query(session) => self.queried(session, outcome, answer, now),
            Ask::Delete(session) => self.deleted(session, Some(answer), now),
        }
        self.refill(now);
    }

    /// The kernel says that nobody listens there.
    pub fn handle_unreachable(&mut self, now: Instant) {
        self.counters.unreachable += 1;
        if self.state == State::Down {
            return;
        }
        self.miss(now);
        if self.state != State::Down {
            // Not at the next heartbeat: calls are waiting for the truth.
            self.ask_for_life(now);
        }
    }

    /// Heartbeats, retransmissions, deadlines, and what is due for sessions.
    pub fn handle_timeout(&mut self, now: Instant) {
        for ask in self.exchange.handle_timeout(now) {
            self.unanswered(ask, now);
        }
        if self.next_heartbeat <= now {
            self.next_heartbeat = now + self.heartbeat;
            self.ask_for_life(now);
        }
        if self.state == State::Down {
            return;
        }
        while let Some(&(at, session)) = self.due.first()
            && at <= now
            && self.exchange.len() < BUSY
        {
            self.due.pop_first();
            self.attend(session, now);
        }
        self.refill(now);
    }

    /// When to call [`Client::handle_timeout`].
    pub fn poll_timeout(&self) -> Instant {
        let mut at = self.next_heartbeat;
        if let Some(exchange) = self.exchange.poll_timeout() {
            at = at.min(exchange);
        }
        if let (State::Up(_), Some((due, _))) = (self.state, self.due.first())
            && self.exchange.len() < BUSY
        {
            at = at.min(*due);
        }
        at
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The next datagram for rtpengine.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.exchange.poll_transmit()
    }

    /// What happened so far, by name.
    pub fn counted(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let (counters, exchange) = (self.counters, self.exchange.counted);
        let [ping, describe, query, delete, forget] = counters.unanswered;
        [
            ("request", exchange.requests),
            ("retransmission", exchange.retransmissions),
            ("answer", exchange.answers),
            ("late_answer", exchange.late),
            ("strange_cookie", exchange.strange_cookie),
            ("malformed_answer", exchange.malformed),
            ("unanswered_ping", ping),
            ("unanswered_offer_or_answer", describe),
            ("unanswered_query", query),
            ("unanswered_delete", delete + forget),
            ("unknown_call", counters.unknown),
            ("full", counters.full),
            ("refused", counters.refused),
            ("bad_sdp", counters.bad_sdp),
            ("bad_address", counters.bad_address),
            ("wrong_family", counters.wrong_family),
            ("other_ports", counters.other_ports),
            ("down", counters.down),
            ("unreachable", counters.unreachable),
            ("too_many_sessions", counters.too_many_sessions),
            ("orphan_left", counters.orphans_left),
        ]
        .into_iter()
    }

    fn say(&mut self, message: FromAgent) {
        if self.state != State::Down {
            self.outputs.push_back(Output::Say(message));
        }
    }

    fn go_up(&mut self, now: Instant) {
        self.state = State::Up(0);
        self.missed = 0;
        self.usable = [None; COMBINATIONS.len()];
        self.refill_at = now;
        self.outputs.push_back(Output::Connected);
        self.say(FromAgent::Hello {
            version: VERSION,
            name: self.identity.name.clone(),
            epoch: self.identity.epoch,
            media_addresses: Vec::new(),
            software: "rtpengine".to_owned(),
        });
        // Which of the calls' sessions has it kept?
        let bound: Vec<u64> = self.sessions.keys().copied().collect();
        for session in bound {
            self.schedule(session, now);
        }
        while let Some(orphan) = self.orphans.pop_front() {
            self.forget(orphan, now);
        }
    }

    /// The leases are void; calls keep their sessions for as long as rtpengine does.
    fn go_down(&mut self, why: &'static str, now: Instant) {
        self.counters.down += 1;
        self.state = State::Down;
        self.outputs.push_back(Output::Closed(why));
        self.exchange.clear();
        self.next_heartbeat = now + self.heartbeat;
        self.preparing = 0;
        self.stocked = [0; COMBINATIONS.len()];
        let (orphans, due) = (&mut self.orphans, &mut self.due);
        self.sessions.retain(|number, session| {
            session.changed |= session.asking && session.phase == Phase::Bound;
            session.asking = false;
            // The pool asks again when we are back.
            session.waiting.clear();
            let keep = matches!(session.phase, Phase::Bound | Phase::Ending);
            if !keep {
                due.remove(&(session.due, *number));
                orphans.push_back(*number);
            }
            keep
        });
        while self.orphans.len() > MAX_ORPHANS {
            self.orphans.pop_front();
            self.counters.orphans_left += 1;
        }
    }

    /// rtpengine lives and has forgotten leases: all of them are void, and calls are looked at.
    fn start_over(&mut self, now: Instant) {
        self.go_down("rtpengine has forgotten a lease", now);
        self.go_up(now);
    }

    fn ask_for_life(&mut self, now: Instant) {
        self.heartbeats += 1;
        let lease = self.sessions.iter().find_map(|(number, session)| {
            (session.phase == Phase::Stocked && !session.asking).then_some(*number)
        });
        match lease {
            Some(lease) if self.heartbeats.is_multiple_of(2) => {
                self.exchange
                    .ask(Ask::Fence(lease), PING_PATIENCE, now, |request| {
                        message::query(request, lease);
                    });
            }
            _ => self
                .exchange
                .ask(Ask::Ping, PING_PATIENCE, now, message::ping),
        }
    }

    fn miss(&mut self, now: Instant) {
        self.missed += 1;
        if self.missed >= MISSED_HEARTBEATS && self.state != State::Down {
            self.go_down("rtpengine does not answer", now);
        }
    }

    fn schedule(&mut self, number: u64, at: Instant) {
        if let Some(session) = self.sessions.get_mut(&number) {
            self.due.remove(&(session.due, number));
            session.due = at;
            self.due.insert((at, number));
        }
    }

    fn remove(&mut self, number: u64) -> Option<Session> {
        let session = self.sessions.remove(&number)?;
        self.due.remove(&(session.due, number));
        self.leave(session.phase, session.combination);
        Some(session)
    }

    fn fenced(&mut self, number: u64, outcome: Outcome, now: Instant) {
        let session = self.sessions.get(&number);
        let lease = session.is_some_and(|session| session.phase == Phase::Stocked);
        if lease && outcome == Outcome::Unknown {
            self.start_over(now);
        }
    }

    /// A request is past its deadline.
    fn unanswered(&mut self, ask: Ask, now: Instant) {
        let [ping, describe, query, delete, forget] = &mut self.counters.unanswered;
        match ask {
            Ask::Ping | Ask::Fence(_) => {
                *ping += 1;
                self.miss(now);
            }
            Ask::Describe(number, _) => {
                *describe += 1;
                self.undescribed(number, now);
            }
            Ask::Query(number) => {
                *query += 1;
                if let Some(session) = self.sessions.get_mut(&number) {
                    session.asking = false;
                    self.schedule(number, now + RETRY);
                }
            }
            Ask::Delete(number) => {
                *delete += 1;
                let session = self.sessions.get_mut(&number);
                if session.is_some_and(|session| session.deletes < DELETES) {
                    self.delete(number, now);
                } else {
                    self.deleted(number, None, now);
                }
            }
            Ask::Forget => *forget += 1,
        }
    }
}
