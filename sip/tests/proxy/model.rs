//! The whole proxy under random traffic: several phones, forks, duplicates, losses, closed
//! connections, time, and somebody who alters what others have sent. Each run is made from its
//! seed alone, so a failure names the seed that shows it again.
//!
//! What must hold whatever happens: no panic; the tables stay within their bounds; one final
//! response to a request, but for the 2xx of an INVITE; the session of a call that was not
//! answered is given back exactly once; what is sent back to somebody at once is in proportion to
//! what came from there; in the end nothing is left.

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test may panic, and says with which seed"
)]

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use sip::hop::{ConnectionId, Flow, Hop, Transmit, Transport};
use sip::message::{HeaderName, Message, Method};
use sip::proxy::Counters;
use sip::transaction::Limits;
use wire::gre::TunnelKey;
use wire::mark::{Mark, RelayId};

use crate::world::{SERVICE, World};

/// Runs, each of so many steps.
const RUNS: u64 = 100;
const STEPS: usize = 250;
/// Small, so that tables fill up.
const LIMITS: Limits = Limits {
    max_server: 12,
    max_client: 16,
    max_of_source: 24,
};
/// What the answers to one message may hold beyond a copy of it, twice (100 and the rest).
const ANSWER_OVERHEAD: usize = 400;

/// Callers first, then Bob's phones, then somebody who has no business here.
const PEERS: [(&str, Option<u64>); 6] = [
    ("203.0.113.10:40000", None),
    ("203.0.113.11:40001", Some(101)),
    ("203.0.113.20:41000", None),
    ("203.0.113.21:42000", None),
    ("203.0.113.22:43000", Some(102)),
    ("203.0.113.66:5060", None),
];
const CALLERS: std::ops::Range<u64> = 0..2;
const PHONES: std::ops::Range<u64> = 2..5;
const STRANGER: usize = 5;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    fn within(&mut self, range: std::ops::Range<u64>) -> usize {
        (range.start + self.below(range.end - range.start)) as usize
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        let at = self.below(from.len() as u64) as usize;
        from.get(at).cloned()
    }
}

/// The final responses to one request, as its sender got them.
#[derive(Default)]
struct Finals {
    success: Vec<Bytes>,
    failure: Vec<Bytes>,
}

struct Model {
    world: World,
    random: Random,
    /// Requests that callers and phones have sent: who, what, and when.
    sent: Vec<(usize, Message, std::time::Instant)>,
    /// Requests and final responses that have arrived at somebody.
    inbox: Vec<(usize, Message)>,
    answers: Vec<(usize, Message)>,
    finals: HashMap<(usize, Vec<u8>, Vec<u8>), Finals>,
    number: u64,
}

#[test]
fn nothing_that_happens_breaks_what_must_hold() {
    let mut reached = Counters::default();
    for seed in 0..RUNS {
        // A panic below shows the seed in the output of the test.
        println!("seed {seed}");
        let mut model = Model::new(seed);
        for _ in 0..STEPS {
            model.step();
            model.check_bounds();
        }
        let counters = model.end();
        reached.answered += counters.answered;
        reached.overload += counters.overload;
        reached.foreign_cancels += counters.foreign_cancels;
        reached.stateless_cancels += counters.stateless_cancels;
        reached.stateless_acks += counters.stateless_acks;
        reached.stray_acks += counters.stray_acks;
        reached.unmatched_responses += counters.unmatched_responses;
        reached.rejected += counters.rejected;
        reached.not_found += counters.not_found;
    }
    let Counters {
        answered,
        overload,
        foreign_cancels,
        stateless_cancels,
        stateless_acks,
        stray_acks,
        unmatched_responses,
        rejected,
        not_found,
        ..
    } = reached;
    let all = [
        answered,
        overload,
        foreign_cancels,
        stateless_cancels,
        stateless_acks,
        stray_acks,
        unmatched_responses,
        rejected,
        not_found,
    ];
    assert!(
        all.iter().all(|count| *count > 0),
        "not reached: {reached:?}"
    );
}

impl Model {
    fn new(seed: u64) -> Self {
        let world = World::configured(|config| config.limits = LIMITS);
        let mut model = Self {
            world,
            random: Random(seed),
            sent: Vec::new(),
            inbox: Vec::new(),
            answers: Vec::new(),
            finals: HashMap::new(),
            number: 0,
        };
        for phone in PHONES {
            model.register(phone as usize);
        }
        model
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..22 => self.answer(),
            22..40 => self.begin(),
            40..48 => self.repeat(),
            48..56 => self.cancel(),
            56..68 => self.acknowledge(),
            68..78 => self.continue_dialog(),
            78..82 => {
                let phone = self.random.within(PHONES);
                self.register(phone);
            }
            82..90 => self.interfere(),
            90..92 => self.lose_a_flow(),
            _ => self.wait(),
        }
    }

    fn check_bounds(&self) {
        let counts = self.world.proxy.transactions().counts();
        assert!(counts.server <= LIMITS.max_server && counts.client <= LIMITS.max_client);
        let (branches, timers) = self.world.proxy.branches_and_timers();
        assert!(branches <= LIMITS.max_client && timers <= LIMITS.max_client);
        assert!(self.world.proxy.contexts() <= LIMITS.max_server + LIMITS.max_client);
    }

    fn end(mut self) -> Counters {
        for (_, connection) in PEERS {
            if let Some(connection) = connection {
                let sent = self.world.connection_closed(ConnectionId(connection));
                self.observe(sent);
            }
        }
        self.world.assert_all_forgotten();
        let media = &self.world.media;
        assert!(
            media.open.is_subset(&media.in_doubt),
            "sessions left that no call needs: {:?} of {:?}",
            media.open,
            media.in_doubt
        );
        self.world.proxy.counters()
    }

    /// A request of a caller's outside of a dialog.
    fn begin(&mut self) {
        let who = self.random.within(CALLERS);
        let methods = [
            "INVITE",
            "INVITE",
            "INVITE",
            "MESSAGE",
            "SUBSCRIBE",
            "OPTIONS",
        ];
        let method = self.random.pick(&methods).unwrap_or("INVITE");
        let users = [
            "bob",
            "bob",
            "bob",
            "bob",
            "nobody",
            "x@elsewhere.example;y=",
        ];
        let user = self.random.pick(&users).unwrap_or("bob");
        let extra = match self.random.below(12) {
            0 => "Max-Breadth: 1\r\n",
            1 => "Proxy-Require: nosuch\r\n",
            2 => "Route: <sip:198.51.100.1;lr>\r\n",
            _ => "",
        };
        self.number += 1;
        let (number, via) = (self.number, self.via(who));
        let text = format!(
            "{method} sip:{user}@example.com SIP/2.0\r\n{via}From: <sip:u{who}@example.com>;tag=f{number}\r\n\
             To: <sip:bob@example.com>\r\nCall-ID: call-{number}\r\nCSeq: 1 {method}\r\n\
             Max-Forwards: 70\r\nContact: <sip:u{who}@192.168.1.2>\r\n{extra}Content-Length: 0\r\n\r\n"
        );
        self.send_request(who, text.as_bytes());
    }

    /// A Via with a branch that was not used before.
    fn via(&mut self, who: usize) -> String {
        self.number += 1;
        let transport = if PEERS[who].1.is_some() { "TCP" } else { "UDP" };
        format!(
            "Via: SIP/2.0/{transport} 192.168.1.2;branch=z9hG4bKm{};rport\r\n",
            self.number
        )
    }

    fn send_request(&mut self, who: usize, bytes: &[u8]) {
        if let Ok(message) = Message::parse(Bytes::copy_from_slice(bytes)) {
            self.sent.push((who, message, self.world.now));
        }
        self.receive(who, bytes);
    }

    /// A datagram comes twice. Only soon after the first, and not when the request is known to be
    /// over: then it would be a new request.
    fn repeat(&mut self) {
        let now = self.world.now;
        let Some((who, message, at)) = self.random.pick(&self.sent) else {
            return;
        };
        let over = self.finals.contains_key(&key_of(who, &message));
        let ack = message.method() == Method::Ack;
        let early = now.saturating_duration_since(at) < Duration::from_secs(3);
        if PEERS[who].1.is_none() && early && (ack || !over) {
            self.receive(who, message.bytes());
        }
    }

    /// Somebody answers a request, for the first time or not.
    fn answer(&mut self) {
        let Some((who, request)) = self.random.pick(&self.inbox) else {
            return;
        };
        if request.method() == Method::Ack {
            return;
        }
        let statuses = [
            100, 180, 180, 183, 200, 200, 200, 202, 302, 401, 404, 407, 408, 486, 487, 503, 603,
        ];
        let status = self.random.pick(&statuses).unwrap_or(200);
        let mut response = request.respond(status, "Any");
        let tag = format!("t{who}{}", self.random.below(8) / 7);
        if status > 100 {
            response = response.to_tag(&tag);
        }
        for value in request.values(HeaderName::RecordRoute) {
            response = response.header("Record-Route", &String::from_utf8_lossy(&value));
        }
        let response = response.header("Contact", "<sip:bob@192.168.1.3>").build();
        self.receive(who, response.bytes());
    }

    fn cancel(&mut self) {
        let Some((who, message, _)) = self.random.pick(&self.sent) else {
            return;
        };
        if message.method() == Method::Invite {
            let from = if self.random.one_in(6) { STRANGER } else { who };
            self.receive(from, message.cancel_for().bytes());
        }
    }

    /// An ACK for a final response to an INVITE.
    fn acknowledge(&mut self) {
        let Some((who, response)) = self.random.pick(&self.answers) else {
            return;
        };
        if response.method() != Method::Invite {
            return;
        }
        if response.status().is_some_and(|status| status < 300) {
            return self.in_dialog(who, &response, "ACK", true);
        }
        let invite = self.sent.iter().find(|(sender, message, _)| {
            *sender == who && key_of(who, message) == key_of(who, &response)
        });
        if let Some((_, invite, _)) = invite {
            let ack = invite.ack_for(&response);
            self.receive(who, ack.bytes());
        }
    }

    fn continue_dialog(&mut self) {
        let Some((who, response)) = self.random.pick(&self.answers) else {
            return;
        };
        let success = response.status().is_some_and(|status| status < 300);
        if success && response.method() == Method::Invite {
            let methods = ["BYE", "BYE", "INVITE", "UPDATE"];
            let method = self.random.pick(&methods).unwrap_or("BYE");
            let by_caller = self.random.one_in(2);
            let who = if by_caller {
                who
            } else {
                self.random.within(PHONES)
            };
            self.in_dialog(who, &response, method, by_caller);
        }
    }

    fn in_dialog(&mut self, who: usize, ok: &Message, method: &str, by_caller: bool) {
        let text = |name| String::from_utf8_lossy(ok.header(name).unwrap_or_default()).into_owned();
        let (mut from, mut to) = (text(HeaderName::From), text(HeaderName::To));
        if !by_caller {
            std::mem::swap(&mut from, &mut to);
        }
        let routes: String = ok
            .values(HeaderName::RecordRoute)
            .map(|value| format!("Route: {}\r\n", String::from_utf8_lossy(&value)))
            .collect();
        let (call_id, via) = (text(HeaderName::CallId), self.via(who));
        self.number += 1;
        let cseq = if method == "ACK" { 1 } else { self.number };
        let text = format!(
            "{method} sip:peer@192.168.1.3 SIP/2.0\r\n{via}From: {from}\r\nTo: {to}\r\n\
             Call-ID: {call_id}\r\nCSeq: {cseq} {method}\r\nMax-Forwards: 70\r\n{routes}\
             Content-Length: 0\r\n\r\n"
        );
        self.send_request(who, text.as_bytes());
    }

    /// The stranger alters something that somebody sent or got, or only sends it from elsewhere.
    fn interfere(&mut self) {
        let seen: Vec<Message> = self
            .inbox
            .iter()
            .map(|(_, message)| message.clone())
            .collect();
        let sent: Vec<Message> = self
            .sent
            .iter()
            .map(|(_, message, _)| message.clone())
            .collect();
        let pool = if self.random.one_in(2) { seen } else { sent };
        let Some(message) = self.random.pick(&pool) else {
            return;
        };
        self.number += 1;
        let mut bytes = message.bytes().to_vec();
        if message.is_request() {
            // As it is it would be a copy, and after its transaction's end a new request.
            let mut edit = message.edit();
            let branch = format!("SIP/2.0/UDP 192.0.2.66;branch=z9hG4bKx{}", self.number);
            edit.replace_first_value(HeaderName::Via, branch);
            bytes = edit.finish().bytes().to_vec();
        }
        for _ in 0..self.random.below(4) {
            let at = self.random.below(bytes.len() as u64) as usize;
            match self.random.below(4) {
                0 => bytes.truncate(at.max(1)),
                1 => bytes.insert(at, b";,<>\"\r\n @:="[self.random.below(11) as usize]),
                2 => bytes[at] ^= 1 << self.random.below(8),
                _ => {
                    bytes.remove(at);
                }
            }
            if bytes.is_empty() {
                return;
            }
        }
        let is_request = Message::parse(bytes.clone().into()).is_ok_and(|m| m.is_request());
        if is_request == message.is_request() {
            self.receive(STRANGER, &bytes);
        }
    }

    fn register(&mut self, phone: usize) {
        self.number += 1;
        let via = self.via(phone);
        let (q, expires) = (
            self.random.below(3),
            if self.random.one_in(9) { 0 } else { 600 },
        );
        let text = format!(
            "REGISTER sip:example.com SIP/2.0\r\n{via}From: <sip:bob@example.com>;tag=r\r\n\
             To: <sip:bob@example.com>\r\nCall-ID: reg-{phone}\r\nCSeq: {} REGISTER\r\n\
             Max-Forwards: 70\r\nContact: <sip:bob@192.168.1.{phone}>;q=0.{q}\r\n\
             Expires: {expires}\r\nContent-Length: 0\r\n\r\n",
            self.number
        );
        self.receive(phone, text.as_bytes());
    }

    fn lose_a_flow(&mut self) {
        // The flow of a caller with datagrams stays: a copy of its INVITE would be a new call, and
        // an answer to the first one would name that one's session.
        let who = self.random.within(1..STRANGER as u64);
        let sent = match PEERS[who].1 {
            Some(connection) => self.world.connection_closed(ConnectionId(connection)),
            None => self.world.transport_error(&hop(who).flow),
        };
        self.observe(sent);
    }

    fn wait(&mut self) {
        let scale = [50, 600, 5_000, 40_000, 200_000];
        let scale = self.random.pick(&scale).unwrap_or(50);
        let sent = self
            .world
            .advance(Duration::from_millis(self.random.below(scale)));
        self.observe(sent);
    }

    fn receive(&mut self, who: usize, bytes: &[u8]) {
        let sent = self.world.receive_from(&hop(who), bytes);
        let back = sent
            .iter()
            .filter(|transmit| transmit.flow == hop(who).flow);
        let back: usize = back
            .filter(|transmit| !transmit.bytes.starts_with(b"ACK ") && is_response(transmit))
            .map(|transmit| transmit.bytes.len())
            .sum();
        assert!(
            back <= 2 * (bytes.len() + ANSWER_OVERHEAD),
            "{back} bytes at once for {}",
            bytes.len()
        );
        self.observe(sent);
    }

    /// What was sent arrives, or is lost.
    fn observe(&mut self, sent: Vec<Transmit>) {
        for transmit in sent {
            let message = Message::parse(transmit.bytes.clone()).expect("a message");
            let to = (0..PEERS.len()).find(|who| hop(*who).flow == transmit.flow);
            let to = to.expect("sent to a flow that exists");
            if message.is_request() {
                if !self.random.one_in(8) {
                    self.inbox.push((to, message));
                }
                continue;
            }
            // What the stranger spoils may be refused without a transaction, each copy anew.
            // And here an INVITE may be cancelled again when its first CANCEL is forgotten.
            let checked = to != STRANGER && message.method() != Method::Cancel;
            if checked && message.status().is_some_and(|status| status >= 200) {
                self.check_final(to, &message);
                self.answers.push((to, message));
            }
        }
    }

    /// "a proxy MUST NOT … forward more than one final response" but for 2xx to INVITE (16.7).
    fn check_final(&mut self, to: usize, response: &Message) {
        let finals = self.finals.entry(key_of(to, response)).or_default();
        let success = response.status().is_some_and(|status| status < 300);
        let list = if success {
            &mut finals.success
        } else {
            &mut finals.failure
        };
        if !list.contains(response.bytes()) {
            list.push(response.bytes().clone());
        }
        let (success, failure) = (finals.success.len(), finals.failure.len());
        let many_allowed = response.method() == Method::Invite && failure == 0;
        assert!(
            success + failure == 1 || many_allowed,
            "{success} successes and {failure} failures for one {:?}: {}",
            response.method(),
            String::from_utf8_lossy(response.bytes())
        );
    }
}

fn is_response(transmit: &Transmit) -> bool {
    transmit.bytes.starts_with(b"SIP/2.0 ")
}

/// What a request and the responses to it have in common.
fn key_of(who: usize, message: &Message) -> (usize, Vec<u8>, Vec<u8>) {
    let branch = message.top_via().ok().and_then(|via| via.branch());
    let method = message.cseq().map(|(_, method)| method.as_bytes().to_vec());
    let branch = branch.unwrap_or_default().to_vec();
    (who, branch, method.unwrap_or_default())
}

fn hop(who: usize) -> Hop {
    let (peer, connection) = PEERS[who];
    Hop {
        flow: Flow {
            transport: connection.map_or(Transport::Udp, |_| Transport::Tcp),
            peer: peer.parse().expect("address"),
            local: SERVICE.parse().expect("address"),
            connection: connection.map(ConnectionId),
        },
        relay: Mark::new(1).map(|mark| RelayId {
            key: TunnelKey(1),
            mark,
        }),
    }
}
