//! The agent's end of the relay-control protocol with one concentrator: order, duplicates, heartbeats.
//!
//! A [`Link`] outlives its connections. Each connection begins with our Hello and the concentrator's
//! Welcome; anything else first ends it. Requests carry numbers, and a concentrator that reconnects
//! sends those again that it has no answer for: the same number with the same content gets the
//! remembered answer and is not carried out twice. Events for a concentrator that is away wait, within
//! a bound, until it is back. What a request means is not known here: [`crate::relay::Relay`] carries
//! out the [`Work`].

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use wire::relay_control::{ErrorCode, FromAgent, ToAgent, VERSION};

/// How long the concentrator may take to answer the Hello.
pub const WELCOME_TIMEOUT: Duration = Duration::from_secs(5);
/// Heartbeats that may go unanswered; one interval after the last the concentrator is lost.
const MISSED_HEARTBEATS: u32 = 3;
/// No faster and no slower than this, whatever the Welcome says.
const HEARTBEAT_RANGE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(60));
/// Answers remembered a concentrator.
const MAX_ANSWERS: usize = 1024;
/// Events kept for a concentrator that is away.
const MAX_BACKLOG: usize = 4096;

/// What a concentrator wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// It has welcomed us and wants this many unused leases.
    Stock(u32),
    /// Carry it out and call [`Link::answer`].
    Request(ToAgent),
}

/// Why the connection must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Fault {
    /// Something came before the Welcome, or a second Welcome.
    #[error("a message out of order")]
    OutOfOrder,
    /// No Welcome in time.
    #[error("no answer to the Hello")]
    NoWelcome,
    /// It calls itself something else than its certificate does.
    #[error("a concentrator with another name than configured")]
    WrongName,
    /// It speaks a version that we do not.
    #[error("an unknown version of the protocol")]
    WrongVersion,
    /// Nothing came for four intervals: three heartbeats went unanswered.
    #[error("no heartbeat")]
    Silent,
}

/// One concentrator, whether it is connected or not.
#[derive(Debug)]
pub struct Link {
    name: String,
    phase: Phase,
    outgoing: VecDeque<FromAgent>,
    answers: Answers,
    backlog: VecDeque<FromAgent>,
    backlog_lost: u64,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Away,
    Greeting { deadline: Instant },
    Up(Up),
}

#[derive(Debug, Clone, Copy)]
struct Up {
    heard: Instant,
    heartbeat: Duration,
    next_beat: Instant,
    seq: u64,
}

/// The last answers, by the number of their request, with what was asked.
#[derive(Debug, Default)]
struct Answers {
    by_request: HashMap<u64, (ToAgent, FromAgent)>,
    order: VecDeque<u64>,
}

impl Link {
    /// A concentrator that is not connected; `name` is the one in its certificate.
    pub fn new(name: String) -> Self {
        Self {
            name,
            phase: Phase::Away,
            outgoing: VecDeque::new(),
            answers: Answers::default(),
            backlog: VecDeque::new(),
            backlog_lost: 0,
        }
    }

    /// A new connection is up: the Hello goes out first.
    pub fn handle_connected(&mut self, hello: FromAgent, now: Instant) {
        self.outgoing.clear();
        self.outgoing.push_back(hello);
        self.phase = Phase::Greeting {
            deadline: now + WELCOME_TIMEOUT,
        };
    }

    /// The connection is gone.
    pub fn handle_disconnected(&mut self) {
        // Events that were not written wait; answers are asked for again.
        for message in std::mem::take(&mut self.outgoing) {
            if is_event(&message) {
                self.keep(message);
            }
        }
        self.phase = Phase::Away;
    }

    /// A message came. `Err`: close the connection.
    pub fn handle_message(
        &mut self,
        message: ToAgent,
        now: Instant,
    ) -> Result<Option<Work>, Fault> {
        let up = match &mut self.phase {
            Phase::Away => return Err(Fault::OutOfOrder),
            Phase::Greeting { .. } => return self.welcome(message, now).map(Some),
            Phase::Up(up) => up,
        };
        up.heard = now;
        match message {
            ToAgent::Welcome { .. } => Err(Fault::OutOfOrder),
            ToAgent::Heartbeat { seq } => {
                self.outgoing.push_back(FromAgent::HeartbeatAck { seq });
                Ok(None)
            }
            ToAgent::HeartbeatAck { .. } => Ok(None),
            ToAgent::Bind { request, .. }
            | ToAgent::Update { request, .. }
            | ToAgent::Release { request, .. } => {
                if let Some(answer) = self.answers.find(request, &message) {
                    self.outgoing.push_back(answer);
                    return Ok(None);
                }
                Ok(Some(Work::Request(message)))
            }
            ToAgent::Query { .. } => Ok(Some(Work::Request(message))),
        }
    }

    /// The outcome of a request, to be sent now and remembered.
    pub fn answer(&mut self, request: u64, asked: ToAgent, answer: FromAgent) {
        self.outgoing.push_back(answer.clone());
        self.answers.remember(request, asked, answer);
    }

    /// A request came that this version does not understand: it is answered all the same. `None` is
    /// a message that wants no answer.
    pub fn handle_not_understood(&mut self, request: Option<u64>, now: Instant) {
        if let Phase::Up(up) = &mut self.phase {
            up.heard = now;
            self.outgoing
                .extend(request.map(|request| FromAgent::Failed {
                    request,
                    code: ErrorCode::BadRequest,
                    text: ErrorCode::BadRequest.to_string(),
                }));
        }
    }

    /// Sends an event, now or when the concentrator is back.
    pub fn notify(&mut self, event: FromAgent) {
        if self.is_up() {
            self.outgoing.push_back(event);
        } else {
            self.keep(event);
        }
    }

    /// Sends heartbeats and notices silence. `Err`: close the connection.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), Fault> {
        match &mut self.phase {
            Phase::Away => Ok(()),
            Phase::Greeting { deadline } if *deadline <= now => Err(Fault::NoWelcome),
            Phase::Greeting { .. } => Ok(()),
            Phase::Up(up) => {
                if up.lost_at() <= now {
                    return Err(Fault::Silent);
                }
                if up.next_beat <= now {
                    up.next_beat = now + up.heartbeat;
                    up.seq += 1;
                    let seq = up.seq;
                    self.outgoing.push_back(FromAgent::Heartbeat { seq });
                }
                Ok(())
            }
        }
    }

    /// When to call [`Link::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Away => None,
            Phase::Greeting { deadline } => Some(*deadline),
            Phase::Up(up) => Some(up.next_beat.min(up.lost_at())),
        }
    }

    /// The next message to send on the current connection.
    pub fn poll_message(&mut self) -> Option<FromAgent> {
        self.outgoing.pop_front()
    }

    /// True between the Welcome and the end of the connection.
    pub const fn is_up(&self) -> bool {
        matches!(self.phase, Phase::Up(_))
    }

    /// The concentrator's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Events that found no room while the concentrator was away.
    pub const fn backlog_lost(&self) -> u64 {
        self.backlog_lost
    }

    fn welcome(&mut self, message: ToAgent, now: Instant) -> Result<Work, Fault> {
        let ToAgent::Welcome {
            version,
            name,
            stock,
            heartbeat_ms,
        } = message
        else {
            return Err(Fault::OutOfOrder);
        };
        if version != VERSION {
            return Err(Fault::WrongVersion);
        }
        if name != self.name {
            return Err(Fault::WrongName);
        }
        let (least, most) = HEARTBEAT_RANGE;
        let heartbeat = Duration::from_millis(heartbeat_ms.into()).clamp(least, most);
        self.phase = Phase::Up(Up {
            heard: now,
            heartbeat,
            next_beat: now + heartbeat,
            seq: 0,
        });
        self.outgoing.append(&mut self.backlog);
        Ok(Work::Stock(stock))
    }

    fn keep(&mut self, event: FromAgent) {
        if self.backlog.len() >= MAX_BACKLOG {
            self.backlog.pop_front();
            self.backlog_lost += 1;
        }
        self.backlog.push_back(event);
    }
}

impl Up {
    fn lost_at(&self) -> Instant {
        self.heard + self.heartbeat * (MISSED_HEARTBEATS + 1)
    }
}

impl Answers {
    fn find(&self, request: u64, asked: &ToAgent) -> Option<FromAgent> {
        self.by_request
            .get(&request)
            .filter(|(before, _)| before == asked)
            .map(|(_, answer)| answer.clone())
    }

    /// Another content under a known number is a restarted concentrator's: it replaces the old.
    fn remember(&mut self, request: u64, asked: ToAgent, answer: FromAgent) {
        if self.by_request.insert(request, (asked, answer)).is_none() {
            self.order.push_back(request);
        }
        if self.order.len() > MAX_ANSWERS
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_request.remove(&oldest);
        }
    }
}

const fn is_event(message: &FromAgent) -> bool {
    match message {
        FromAgent::MediaStarted { .. }
        | FromAgent::MediaTimeout { .. }
        | FromAgent::Ended { .. } => true,
        FromAgent::Hello { .. }
        | FromAgent::Leases { .. }
        | FromAgent::Done { .. }
        | FromAgent::Failed { .. }
        | FromAgent::Statistics { .. }
        | FromAgent::Heartbeat { .. }
        | FromAgent::HeartbeatAck { .. }
        | FromAgent::Draining => false,
    }
}

#[cfg(test)]
mod tests {
    use wire::relay_control::Silence;

    use super::*;
    use crate::clock;

    const BEAT: Duration = Duration::from_millis(500);

    #[test]
    fn the_hello_goes_first_and_the_welcome_asks_for_a_stock() {
        let now = clock::start();
        let mut link = Link::new("c1".to_owned());
        link.handle_connected(FromAgent::Draining, now);
        assert_eq!(link.poll_message(), Some(FromAgent::Draining));
        assert_eq!(
            link.handle_message(welcome("c1"), now),
            Ok(Some(Work::Stock(64)))
        );
        assert!(link.is_up());
    }

    #[test]
    fn anything_before_the_welcome_and_a_second_welcome_end_the_connection() {
        let now = clock::start();
        let mut link = Link::new("c1".to_owned());
        assert_eq!(
            link.handle_message(welcome("c1"), now),
            Err(Fault::OutOfOrder)
        );
        link.handle_connected(FromAgent::Draining, now);
        assert_eq!(link.handle_message(release(1), now), Err(Fault::OutOfOrder));
        let mut link = up(now);
        assert_eq!(
            link.handle_message(welcome("c1"), now),
            Err(Fault::OutOfOrder)
        );
    }

    #[test]
    fn a_concentrator_with_another_name_is_refused() {
        let now = clock::start();
        let mut link = Link::new("c1".to_owned());
        link.handle_connected(FromAgent::Draining, now);
        assert_eq!(
            link.handle_message(welcome("c2"), now),
            Err(Fault::WrongName)
        );
    }

    #[test]
    fn a_missing_welcome_is_a_fault_after_five_seconds_to_the_millisecond() {
        let now = clock::start();
        let mut link = Link::new("c1".to_owned());
        link.handle_connected(FromAgent::Draining, now);
        assert_eq!(
            link.handle_timeout(now + Duration::from_millis(4999)),
            Ok(())
        );
        assert_eq!(
            link.handle_timeout(now + WELCOME_TIMEOUT),
            Err(Fault::NoWelcome)
        );
    }

    #[test]
    fn the_same_request_again_gets_the_same_answer_and_is_no_work() {
        let now = clock::start();
        let mut link = up(now);
        let work = link.handle_message(release(7), now);
        assert_eq!(work, Ok(Some(Work::Request(release(7)))));
        link.answer(7, release(7), FromAgent::Done { request: 7 });
        assert_eq!(link.poll_message(), Some(FromAgent::Done { request: 7 }));

        link.handle_disconnected();
        link.handle_connected(FromAgent::Draining, now);
        link.poll_message();
        assert_eq!(
            link.handle_message(welcome("c1"), now),
            Ok(Some(Work::Stock(64)))
        );
        assert_eq!(link.handle_message(release(7), now), Ok(None));
        assert_eq!(link.poll_message(), Some(FromAgent::Done { request: 7 }));
    }

    #[test]
    fn the_same_number_with_another_content_is_new_work() {
        let now = clock::start();
        let mut link = up(now);
        link.answer(7, release(7), FromAgent::Done { request: 7 });
        let other = ToAgent::Release {
            request: 7,
            session: 99,
        };
        let work = link.handle_message(other.clone(), now);
        assert_eq!(work, Ok(Some(Work::Request(other))));
    }

    #[test]
    fn remembered_answers_are_bounded() {
        let now = clock::start();
        let mut link = up(now);
        for request in 0..5000 {
            link.answer(request, release(request), FromAgent::Done { request });
        }
        assert_eq!(link.answers.by_request.len(), MAX_ANSWERS);
        assert_eq!(link.answers.order.len(), MAX_ANSWERS);
    }

    #[test]
    fn events_wait_for_a_concentrator_that_is_away_within_a_bound() {
        let now = clock::start();
        let mut link = Link::new("c1".to_owned());
        for session in 0..=MAX_BACKLOG as u64 {
            link.notify(timeout(session));
        }
        assert_eq!((link.poll_message(), link.backlog_lost()), (None, 1));
        link.handle_connected(FromAgent::Draining, now);
        link.poll_message();
        link.handle_message(welcome("c1"), now).expect("welcome");
        assert_eq!(link.poll_message(), Some(timeout(1)));
    }

    #[test]
    fn a_request_that_is_not_understood_is_answered_with_bad_request() {
        let now = clock::start();
        let mut link = up(now);
        link.handle_not_understood(Some(9), now);
        link.handle_not_understood(None, now);
        let answer = link.poll_message();
        assert!(
            matches!(
                answer,
                Some(FromAgent::Failed {
                    request: 9,
                    code: ErrorCode::BadRequest,
                    ..
                })
            ),
            "{answer:?}"
        );
        assert_eq!(link.poll_message(), None);
    }

    #[test]
    fn heartbeats_go_out_every_interval_and_four_of_silence_are_a_fault() {
        let now = clock::start();
        let mut link = up(now);
        assert_eq!(link.poll_timeout(), Some(now + BEAT));
        assert_eq!(link.handle_timeout(now + BEAT), Ok(()));
        assert_eq!(link.poll_message(), Some(FromAgent::Heartbeat { seq: 1 }));
        let just_before = now + 4 * BEAT - Duration::from_millis(1);
        assert_eq!(link.handle_timeout(just_before), Ok(()));
        assert_eq!(link.handle_timeout(now + 4 * BEAT), Err(Fault::Silent));
        link.handle_message(ToAgent::HeartbeatAck { seq: 1 }, just_before)
            .expect("in order");
        assert_eq!(link.handle_timeout(now + 4 * BEAT), Ok(()));
    }

    fn timeout(session: u64) -> FromAgent {
        FromAgent::MediaTimeout {
            session,
            silence: Silence::Idle,
        }
    }

    fn up(now: Instant) -> Link {
        let mut link = Link::new("c1".to_owned());
        link.handle_connected(FromAgent::Draining, now);
        link.poll_message();
        link.handle_message(welcome("c1"), now).expect("welcome");
        link
    }

    fn welcome(name: &str) -> ToAgent {
        ToAgent::Welcome {
            version: VERSION,
            name: name.to_owned(),
            stock: 64,
            heartbeat_ms: 500,
        }
    }

    fn release(request: u64) -> ToAgent {
        ToAgent::Release {
            request,
            session: 1,
        }
    }
}
