//! Two layers at the two ends of a link that loses, delays, reorders and duplicates datagrams,
//! in virtual time, from a seed.
//!
//! ```text
//!   caller (client transactions) ──── link ──── callee (server transactions)
//! ```
//!
//! The user above each layer is as small as it can be: the callee answers after a while and
//! repeats a 2xx until it is acknowledged (RFC 3261 section 13.3.1.4), the caller acknowledges
//! each 2xx itself and gives up an INVITE after Timer C.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};

use bytes::Bytes;
use sip::hop::{Flow, Transmit};
use sip::timer::Timers;
use sip::transaction::{
    ClientId, Counts, Event, Incoming, Limits, Outgoing, ServerId, Transactions,
};

use crate::clock::{at, since_start};
use crate::messages::{Request, first_word, header, hop, parse, response_to, udp};

const TIMER_C: u64 = 180_001;
const SIX_MINUTES: u64 = 360_000;

#[test]
fn over_a_perfect_link_each_request_is_answered_and_sent_once() {
    for seed in 0..50 {
        let mut pair = Pair::new(seed, Link::PERFECT);
        let calls = pair.run(&["INVITE", "OPTIONS", "BYE", "MESSAGE"], Answer::Quick);
        for call in calls.values() {
            assert_eq!(call.outcome, Some(Outcome::Final(call.status)));
            assert_eq!(call.seen_by_callee, 1);
        }
    }
}

#[test]
fn over_a_lossy_link_each_request_completes_or_times_out_at_32_s() {
    let mut completed = 0;
    for seed in 0..200 {
        let mut pair = Pair::new(seed, Link::loses_percent(10 + seed % 50));
        let calls = pair.run(&["INVITE", "OPTIONS", "BYE", "INVITE"], Answer::Slow);
        for call in calls.values() {
            match call.outcome {
                Some(Outcome::Final(status)) => {
                    assert_eq!(status, call.status, "it is the answer that was given");
                    completed += 1;
                }
                Some(Outcome::Timeout { after }) => assert_eq!(after, 32_000, "seed {seed}"),
                Some(Outcome::TimerC) => assert!(call.heard_provisional, "seed {seed}"),
                None => panic!("no outcome, seed {seed}: {call:?}"),
            }
            assert!(call.seen_by_callee <= 1, "one transaction, seed {seed}");
        }
    }
    assert!(completed > 700, "most of 800 complete: {completed}");
}

#[test]
fn over_a_dead_link_each_request_times_out_at_32_s_and_no_sooner() {
    let mut pair = Pair::new(1, Link::loses_percent(100));
    let calls = pair.run(&["INVITE", "OPTIONS", "REGISTER"], Answer::Quick);
    for call in calls.values() {
        assert_eq!(call.outcome, Some(Outcome::Timeout { after: 32_000 }));
        assert_eq!(call.seen_by_callee, 0);
    }
}

#[test]
fn a_request_that_the_callee_never_answers_times_out_and_leaves_nothing_behind() {
    for seed in 0..50 {
        let mut pair = Pair::new(seed, Link::loses_percent(20));
        let calls = pair.run(&["OPTIONS", "MESSAGE"], Answer::Never);
        for call in calls.values() {
            assert_eq!(call.outcome, Some(Outcome::Timeout { after: 32_000 }));
        }
    }
}

#[test]
fn a_seed_tells_the_whole_story() {
    let run = |seed| {
        let mut pair = Pair::new(seed, Link::loses_percent(40));
        let calls = pair.run(&["INVITE", "OPTIONS"], Answer::Slow);
        (format!("{calls:?}"), pair.carried)
    };
    assert_eq!(run(7), run(7));
}

#[derive(Debug, Clone, Copy)]
enum Answer {
    Quick,
    Slow,
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Final(u16),
    Timeout { after: u64 },
    TimerC,
}

/// What happened to one request.
#[derive(Debug)]
struct Call {
    sent_at: u64,
    /// What the callee answers.
    status: u16,
    seen_by_callee: u32,
    heard_provisional: bool,
    acknowledged: bool,
    outcome: Option<Outcome>,
    ended: bool,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    loss_percent: u64,
    duplicate_percent: u64,
    longest_delay: u64,
}

impl Link {
    const PERFECT: Self = Self {
        loss_percent: 0,
        duplicate_percent: 0,
        longest_delay: 100,
    };

    fn loses_percent(loss_percent: u64) -> Self {
        Self {
            loss_percent,
            duplicate_percent: 10,
            longest_delay: 700,
        }
    }
}

/// In the order in which a tie at one instant is decided.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    AtCaller(Bytes),
    AtCallee(Bytes),
    Answer {
        id: ServerId,
        request: Bytes,
        status: u16,
    },
    RepeatSuccess {
        id: ServerId,
        response: Bytes,
        interval: u64,
        until: u64,
    },
    TimerC(ClientId),
}

struct Pair {
    caller: Transactions,
    callee: Transactions,
    link: Link,
    random: u64,
    now: u64,
    queue: BinaryHeap<Reverse<(u64, u64, Due)>>,
    queued: u64,
    carried: u64,
    answer: Answer,
    /// By branch.
    calls: BTreeMap<String, Call>,
    sent: HashMap<ClientId, String>,
}

impl Pair {
    fn new(seed: u64, link: Link) -> Self {
        let limits = Limits {
            max_server: 50,
            max_client: 50,
            max_of_source: 100,
        };
        Self {
            caller: Transactions::new(limits, Timers::default()),
            callee: Transactions::new(limits, Timers::default()),
            link,
            random: seed,
            now: 0,
            queue: BinaryHeap::new(),
            queued: 0,
            carried: 0,
            answer: Answer::Quick,
            calls: BTreeMap::new(),
            sent: HashMap::new(),
        }
    }

    /// Sends one request of each method and runs until nothing can happen any more.
    fn run(&mut self, methods: &[&'static str], answer: Answer) -> &BTreeMap<String, Call> {
        self.answer = answer;
        for (n, method) in methods.iter().enumerate() {
            self.send(method, &format!("z9hG4bK{n}"));
        }
        self.drain();
        while let Some(next) = self.next_time() {
            assert!(next >= self.now, "time does not go back");
            assert!(next < SIX_MINUTES, "it does not end");
            self.now = next;
            self.step();
            self.drain();
        }
        assert_eq!(self.caller.counts(), Counts::default());
        assert_eq!(self.callee.counts(), Counts::default());
        &self.calls
    }

    fn send(&mut self, method: &'static str, branch: &str) {
        let request = Request::new(method, branch);
        let status = if self.below(2) == 0 { 200 } else { 486 };
        let id = self
            .caller
            .send_request(&request.message(), callee(), at(self.now))
            .expect("there is room");
        let call = Call {
            sent_at: self.now,
            status,
            seen_by_callee: 0,
            heard_provisional: false,
            acknowledged: false,
            outcome: None,
            ended: false,
        };
        self.calls.insert(branch.to_owned(), call);
        self.sent.insert(id, branch.to_owned());
    }

    fn next_time(&self) -> Option<u64> {
        let queued = self.queue.peek().map(|Reverse((time, ..))| *time);
        let caller = self.caller.poll_timeout().map(|(due, _)| since_start(due));
        let callee = self.callee.poll_timeout().map(|(due, _)| since_start(due));
        [queued, caller, callee].into_iter().flatten().min()
    }

    fn step(&mut self) {
        self.caller.handle_timeout(at(self.now));
        self.callee.handle_timeout(at(self.now));
        let due = self
            .queue
            .peek()
            .is_some_and(|Reverse((time, ..))| *time <= self.now);
        let next = due.then(|| self.queue.pop()).flatten();
        match next.map(|Reverse((_, _, due))| due) {
            Some(Due::AtCaller(bytes)) => self.at_caller(&bytes),
            Some(Due::AtCallee(bytes)) => self.at_callee(bytes),
            Some(Due::Answer {
                id,
                request,
                status,
            }) => self.answer(id, &request, status),
            Some(Due::RepeatSuccess {
                id,
                response,
                interval,
                until,
            }) => self.repeat_success(id, response, interval, until),
            Some(Due::TimerC(id)) => self.give_up(id),
            None => {}
        }
    }

    /// Carries out what both layers want.
    fn drain(&mut self) {
        while let Some(Transmit { flow, bytes }) = self.caller.poll_transmit() {
            assert_eq!(flow, callee());
            self.carry(bytes, Due::AtCallee);
        }
        while let Some(Transmit { flow, bytes }) = self.callee.poll_transmit() {
            assert_eq!(flow, caller());
            self.carry(bytes, Due::AtCaller);
        }
        while let Some(event) = self.caller.poll_event() {
            self.note(event);
        }
        while let Some(event) = self.callee.poll_event() {
            assert!(matches!(event, Event::ServerEnded(_) | Event::Slow(_)));
        }
    }

    fn note(&mut self, event: Event) {
        let (id, timed_out) = match event {
            Event::Timeout(id) => (id, true),
            Event::ClientEnded(id) => (id, false),
            Event::TransportError(_) | Event::Slow(_) | Event::ServerEnded(_) => {
                panic!("{event:?}")
            }
        };
        let now = self.now;
        let call = self.call_of(id);
        assert!(!call.ended, "it ends once");
        call.ended = true;
        if timed_out {
            assert_eq!(call.outcome, None, "no timeout after a final response");
            call.outcome = Some(Outcome::Timeout {
                after: now - call.sent_at,
            });
        }
    }

    fn at_caller(&mut self, bytes: &Bytes) {
        let response = parse(bytes);
        let status: u16 = bytes_word(bytes, 1).parse().unwrap();
        let Outgoing::Pass(id) = self.caller.handle_response(&response, at(self.now)) else {
            return;
        };
        let invite = header(bytes, "CSeq").ends_with("INVITE");
        let call = self.call_of(id);
        if status < 200 {
            assert_eq!(call.outcome, None, "nothing provisional after the end");
            let first = !std::mem::replace(&mut call.heard_provisional, true);
            if invite && first {
                self.later(TIMER_C, Due::TimerC(id));
            }
            return;
        }
        if invite && status < 300 {
            self.acknowledge(bytes);
        } else {
            assert_eq!(call.outcome, None, "a failure passes once");
        }
        self.call_of(id)
            .outcome
            .get_or_insert(Outcome::Final(status));
    }

    /// The ACK for a 2xx is a request of its own, without a transaction.
    fn acknowledge(&mut self, response: &Bytes) {
        let of = branch_of(response);
        let ack = Request {
            to_tag: Some("bob-tag"),
            ..Request::new("ACK", &format!("z9hG4bKack-{}", &of["z9hG4bK".len()..]))
        };
        self.carry(ack.bytes(), Due::AtCallee);
    }

    fn at_callee(&mut self, bytes: Bytes) {
        let request = parse(&bytes);
        let incoming = self
            .callee
            .handle_request(&request, &hop(caller()), at(self.now));
        match incoming {
            Incoming::New(id) => self.begin_answer(id, bytes),
            Incoming::AckEndToEnd => {
                let branch = branch_of(&bytes).replace("ack-", "");
                // An ACK for a failure may come after the transaction has ended.
                if let Some(call) = self.calls.get_mut(&branch) {
                    call.acknowledged = true;
                }
            }
            Incoming::AckAbsorbed => assert_eq!(first_word(&bytes), "ACK"),
            Incoming::Retransmission => {}
            Incoming::AckUnanswered(_)
            | Incoming::Cancel { .. }
            | Incoming::Full
            | Incoming::Unusable => {
                panic!("{incoming:?}")
            }
        }
    }

    fn begin_answer(&mut self, id: ServerId, request: Bytes) {
        let call = self
            .calls
            .get_mut(&branch_of(&request))
            .expect("we sent it");
        call.seen_by_callee += 1;
        let status = call.status;
        let longest = match self.answer {
            Answer::Quick => 150,
            Answer::Slow => 20_000,
            Answer::Never => return,
        };
        if first_word(&request) == "INVITE" {
            let trying = response_to(&request, 100);
            self.callee.respond(id, trying, 100, at(self.now));
        }
        let delay = self.below(longest);
        self.later(
            delay,
            Due::Answer {
                id,
                request,
                status,
            },
        );
    }

    fn answer(&mut self, id: ServerId, request: &Bytes, status: u16) {
        let response = response_to(request, status);
        self.callee
            .respond(id, response.clone(), status, at(self.now));
        if first_word(request) == "INVITE" && status < 300 {
            let until = self.now + 32_000;
            self.later(
                500,
                Due::RepeatSuccess {
                    id,
                    response,
                    interval: 500,
                    until,
                },
            );
        }
    }

    fn repeat_success(&mut self, id: ServerId, response: Bytes, interval: u64, until: u64) {
        let acknowledged = self.calls[&branch_of(&response)].acknowledged;
        if acknowledged || self.now >= until {
            return;
        }
        self.callee.respond(id, response.clone(), 200, at(self.now));
        let interval = (interval * 2).min(4_000);
        let again = Due::RepeatSuccess {
            id,
            response,
            interval,
            until,
        };
        self.later(interval, again);
    }

    fn give_up(&mut self, id: ClientId) {
        let call = self.call_of(id);
        if call.outcome.is_none() {
            call.outcome = Some(Outcome::TimerC);
            self.caller.abandon(id);
        }
    }

    fn call_of(&mut self, id: ClientId) -> &mut Call {
        self.calls.get_mut(&self.sent[&id]).expect("we sent it")
    }

    fn carry(&mut self, bytes: Bytes, to: impl Fn(Bytes) -> Due) {
        let copies = if self.below(100) < self.link.duplicate_percent {
            2
        } else {
            1
        };
        for _ in 0..copies {
            self.carried += 1;
            let delay = 1 + self.below(self.link.longest_delay);
            if self.below(100) >= self.link.loss_percent {
                self.later(delay, to(bytes.clone()));
            }
        }
    }

    fn later(&mut self, delay: u64, due: Due) {
        self.queued += 1;
        let time = self.now + delay;
        self.queue.push(Reverse((time, self.queued, due)));
    }

    /// SplitMix64.
    fn below(&mut self, bound: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

fn caller() -> Flow {
    udp("203.0.113.9:40000")
}

fn callee() -> Flow {
    udp("203.0.113.77:5060")
}

fn branch_of(message: &Bytes) -> String {
    let via = header(message, "Via");
    via.split("branch=").nth(1).unwrap().to_owned()
}

fn bytes_word(message: &Bytes, n: usize) -> String {
    let text = std::str::from_utf8(message).unwrap();
    text.split(' ').nth(n).unwrap().to_owned()
}
