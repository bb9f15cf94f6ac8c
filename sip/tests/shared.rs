//! Bindings that several concentrators share: whatever the order in which they hear of what the others did,
//! and however often, they agree in the end; and what the user agent did last is what they agree on.
#![expect(
    clippy::unwrap_used,
    reason = "a test may panic, in its own functions as well"
)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;
use sip::cookie::{Keys, Owner};
use sip::hop::{ConnectionId, Flow, Hop, Transport};
use sip::message::Message;
use sip::registrar::record::{Clock, Record, encode_version};
use sip::registrar::shared::{Merged, RESTART};
use sip::registrar::{AddressOfRecord, Binding, Event, Limits, Registrar};

const START_MS: u64 = 1_800_000_000_000;

#[test]
fn a_binding_that_one_has_taken_all_have_with_who_took_it() {
    let mut net = Net::new([0; 3]);
    assert_eq!(net.register(0, "x", 1, 3600), 200);
    net.exchange();
    for replica in &net.replicas {
        let found = replica.lookup(net.now);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].origin.handler, 1);
        assert_eq!(found[0].flow, flow(0));
        assert_eq!(found[0].expires_at, net.now + secs(3600));
    }
}

#[test]
fn a_removal_at_one_is_a_removal_at_all_and_an_old_record_revives_nothing() {
    let mut net = Net::new([0; 3]);
    net.register(0, "x", 1, 3600);
    let old = net.sent[0].clone();
    net.exchange();
    net.wait(10);
    assert_eq!(net.register(1, "x", 2, 0), 200);
    net.exchange();
    net.wait(1000);
    for at in 0..3 {
        assert!(net.replicas[at].lookup(net.now).is_empty());
        let merged = net.deliver(at, &old);
        assert!(matches!(merged, Merged::Older(record) if record.removed));
        assert!(net.replicas[at].lookup(net.now).is_empty());
    }
}

#[test]
fn a_binding_that_was_shortened_and_ran_out_is_not_revived_by_its_longer_past() {
    let mut net = Net::new([0; 3]);
    net.register(0, "x", 1, 3600);
    let long = net.sent[0].clone();
    net.exchange();
    net.register(0, "x", 2, 60);
    net.exchange();
    net.wait(61);
    assert!(matches!(net.deliver(2, &long), Merged::Older(_)));
    assert!(net.replicas[2].lookup(net.now).is_empty());
}

#[test]
fn the_call_id_of_a_restarted_phone_wins_although_its_concentrator_is_minutes_behind() {
    // The second one's clock is ten minutes behind that of the first.
    let mut net = Net::new([0, -600_000, 0]);
    net.register(0, "before", 70, 3600);
    net.exchange();
    net.wait(5);
    assert_eq!(net.register(1, "after", 1, 3600), 200);
    net.exchange();
    for replica in &net.replicas {
        assert_eq!(replica.lookup(net.now)[0].call_id, "after");
    }
}

#[test]
fn a_refresh_is_right_by_its_cseq_although_its_concentrator_is_behind_and_had_not_heard() {
    let mut net = Net::new([0, -600_000, 0]);
    net.register(0, "x", 1, 3600);
    let first = std::mem::take(&mut net.sent);
    net.wait(5);
    assert_eq!(net.register(1, "x", 2, 3600), 200);
    net.sent.extend(first);
    net.exchange();
    for replica in &net.replicas {
        assert_eq!(replica.lookup(net.now)[0].cseq, 2);
    }
}

#[test]
fn a_connection_that_ends_does_not_take_away_what_was_registered_elsewhere_meanwhile() {
    let mut net = Net::new([0; 3]);
    let connection = ConnectionId::first(1, Owner(9));
    net.register_on(0, "x", 1, 3600, tcp(connection));
    net.exchange();
    net.wait(5);
    // The phone restarts and comes to the second; the first has not heard of it when it loses the connection.
    net.register(1, "y", 1, 3600);
    net.wait(5);
    net.replicas[0]
        .registrar
        .connection_closed(connection, net.now);
    net.collect(0);
    net.exchange();
    for replica in &net.replicas {
        assert_eq!(replica.lookup(net.now)[0].call_id, "y");
    }
}

#[test]
fn whoever_has_lost_a_connection_is_awaited_everywhere_and_whoever_has_gone_is_not() {
    let connection = ConnectionId::first(1, Owner(9));
    for ends in ["connection", "restart", "request"] {
        let mut net = Net::new([0; 3]);
        net.register_on(0, "x", 1, 3600, tcp(connection));
        net.exchange();
        net.wait(5);
        let (registrar, now) = (&mut net.replicas[0].registrar, net.now);
        match ends {
            "connection" => registrar.connection_closed(connection, now),
            "restart" => {
                let current = ConnectionId::first(1, Owner(10));
                assert_eq!(registrar.drop_former_connections(current, now), 1);
            }
            _ => assert_eq!(net.register_on(0, "x", 2, 0, tcp(connection)), 200),
        }
        net.collect(0);
        net.exchange();
        for replica in &net.replicas {
            assert!(replica.lookup(net.now).is_empty());
            assert_eq!(replica.is_awaited(net.now), ends != "request", "{ends}");
        }
        net.wait(1);
        net.register_on(1, "x", 3, 3600, tcp(ConnectionId::first(2, Owner(3))));
        net.exchange();
        for replica in &net.replicas {
            assert!(!replica.is_awaited(net.now));
        }
    }
}

#[test]
fn after_a_restart_the_connections_of_the_life_before_are_no_bindings() {
    let mut net = Net::new([0; 3]);
    let before = ConnectionId::first(1, Owner(9));
    net.register_on(0, "x", 1, 3600, tcp(before));
    net.exchange();
    let current = ConnectionId::first(1, Owner(10));
    assert_eq!(
        net.replicas[0]
            .registrar
            .drop_former_connections(current, net.now),
        1
    );
    assert_eq!(
        net.replicas[1]
            .registrar
            .drop_former_connections(ConnectionId::first(2, Owner(1)), net.now),
        0
    );
    net.collect(0);
    net.exchange();
    for replica in &net.replicas {
        assert!(replica.lookup(net.now).is_empty());
    }
}

#[test]
fn a_phone_that_counts_anew_is_refused_at_first_and_then_begins_an_epoch() {
    let mut net = Net::new([0; 3]);
    net.register(0, "x", 5, 3600);
    net.register(0, "x", 6, 0);
    net.exchange();
    net.wait(1);
    assert_eq!(
        net.register(1, "x", 5, 3600),
        500,
        "a request that comes late"
    );
    net.wait(RESTART.as_secs());
    assert_eq!(net.register(1, "x", 1, 3600), 200);
    net.exchange();
    for replica in &net.replicas {
        let found = replica.lookup(net.now);
        assert_eq!((found[0].cseq, found[0].origin.epoch), (1, 1));
    }
}

#[test]
fn a_binding_that_was_restored_by_a_wrong_clock_ends_when_it_does_for_all() {
    for wrong_s in [420, -420] {
        let mut net = Net::new([0; 3]);
        net.register(0, "x", 1, 3600);
        let bytes = net.sent[0].clone();
        let mut wrong = net.clock;
        wrong.unix_ms = wrong.unix_ms.saturating_add_signed(wrong_s * 1000);
        let Record { user, binding, .. } = Record::decode(&bytes, &wrong).unwrap();
        let registrar = &mut net.replicas[1].registrar;
        assert!(registrar.restore(&user, binding, net.now));
        assert_ne!(
            net.replicas[1].lookup(net.now)[0].expires_at,
            net.now + secs(3600)
        );
        assert_eq!(net.deliver(1, &bytes), Merged::Known);
        net.wait(3599);
        assert_eq!(
            net.replicas[1].state(net.now),
            net.replicas[0].state(net.now)
        );
        assert_eq!(net.replicas[1].lookup(net.now).len(), 1);
        net.wait(1);
        assert!(net.replicas[1].state(net.now).is_empty());
    }
}

#[test]
fn what_ends_at_once_is_found_by_nobody_and_goes_some_in_each_turn() {
    let mut net = Net::new([0; 3]);
    let users: Vec<String> = (0..1500).map(|number| format!("user{number}")).collect();
    for user in users {
        net.user = Box::leak(user.into_boxed_str());
        net.register(0, "x", 1, 60);
    }
    net.user = "bob";
    let registrar = &mut net.replicas[0].registrar;
    assert_eq!(registrar.counts().bindings, 1500);
    let end = net.now + secs(60);
    let mut turns = 0;
    while registrar.poll_timeout().is_some_and(|(at, _)| at <= end) {
        let before = registrar.counts().bindings;
        registrar.handle_timeout(end);
        let gone = before - registrar.counts().bindings;
        assert!(gone > 0 && gone < 1000, "{gone} in one turn");
        turns += 1;
    }
    assert_eq!(registrar.counts().bindings, 0);
    assert!(turns > 1);
}

#[test]
fn removals_are_told_a_page_at_a_time_and_what_only_ran_out_is_none() {
    let mut net = Net::new([0; 3]);
    for (user, expires_s) in [("a", 0), ("b", 0), ("c", 60), ("d", 0)] {
        net.user = user;
        net.register(0, user, 1, 3600);
        net.register(0, user, 2, expires_s);
    }
    net.wait(61);
    let registrar = &mut net.replicas[0].registrar;
    registrar.handle_timeout(net.now);
    let (mut users, mut after) = (Vec::new(), None);
    loop {
        let (page, last) = registrar.removals(after, 1);
        assert!(page.len() <= 1);
        users.extend(page.into_iter().map(|record| record.user.to_string()));
        let Some(last) = last else { break };
        after = Some(last);
    }
    users.sort();
    assert_eq!(users, ["a@example.com", "b@example.com", "d@example.com"]);
}

#[test]
fn what_has_been_over_for_too_long_to_matter_is_not_remembered() {
    let mut net = Net::new([0; 3]);
    net.register(0, "x", 1, 60);
    let old = net.sent[0].clone();
    net.wait(7200 + 600 + 1);
    net.deliver(1, &old);
    assert_eq!(net.replicas[1].registrar.counts().shared.past, 0);
    net.register(0, "y", 1, 60);
    let newer = net.sent[1].clone();
    net.wait(61);
    net.deliver(1, &newer);
    assert_eq!(net.replicas[1].registrar.counts().shared.past, 1);
}

#[test]
fn there_is_no_more_room_for_what_others_have_and_what_is_over_is_bounded_too() {
    let mut net = Net::new([0; 3]);
    let mut small = Replica::new(
        9,
        0,
        net.now,
        Limits {
            max_bindings: 2,
            ..limits()
        },
    );
    for user in ["a", "b", "c"] {
        net.user = user;
        net.register(0, user, 1, 3600);
    }
    let outcomes: Vec<Merged> = net
        .sent
        .iter()
        .map(|bytes| small.merge(bytes, &net.clock, net.now))
        .collect();
    assert_eq!(outcomes, [Merged::Taken, Merged::Taken, Merged::NoRoom]);
    net.sent.clear();
    for user in ["a", "b", "c", "d", "e"] {
        net.user = user;
        net.register(0, user, 2, 0);
    }
    for bytes in &net.sent {
        small.merge(bytes, &net.clock, net.now);
    }
    let counts = small.registrar.counts();
    assert!(counts.shared.past <= 2, "{counts:?}");
    assert!(counts.shared.forgotten > 0);
}

#[test]
fn one_of_them_pings_and_another_when_that_one_is_gone() {
    let limits = Limits {
        ping_interval_s: 256,
        ..limits()
    };
    let mut net = Net::with([0; 3], limits);
    net.register(0, "x", 1, 3600);
    net.exchange();
    let pings = |net: &mut Net, seconds: u64| {
        let mut pings = [0; 3];
        for _ in 0..seconds {
            net.wait(1);
            for (at, replica) in net.replicas.iter_mut().enumerate() {
                replica.registrar.handle_timeout(net.now);
                while replica.registrar.poll_transmit().is_some() {
                    pings[at] += 1;
                }
            }
        }
        pings
    };
    for replica in &mut net.replicas {
        replica.registrar.set_alive(vec![1, 2, 3]);
    }
    // None answers, and yet it goes on.
    assert_eq!(pings(&mut net, 256 * 5), [5, 0, 0]);
    for replica in &mut net.replicas {
        replica.registrar.set_alive(vec![2, 3]);
    }
    net.replicas.remove(0);
    let [second, third, _] = pings(&mut net, 256);
    assert_eq!(second + third, 1);
}

#[test]
fn a_refresh_that_ends_the_binding_earlier_is_more_than_a_later_time() {
    let mut net = Net::new([0; 3]);
    net.register(0, "x", 1, 3600);
    let mut prolongs = |cseq, expires_s| {
        net.wait(10);
        let before = net.prolonged;
        net.register(0, "x", cseq, expires_s);
        net.prolonged > before
    };
    assert!(prolongs(2, 3600));
    assert!(!prolongs(3, 600), "the others must know");
    assert!(prolongs(4, 600));
}

#[test]
fn events_of_others_are_told_as_such_and_numbered_like_our_own() {
    let mut net = Net::new([0; 3]);
    net.register(0, "x", 1, 3600);
    let bytes = net.sent[0].clone();
    net.deliver(1, &bytes);
    let news = net.replicas[1].registrar.poll_news().unwrap();
    assert!(news.foreign && matches!(news.event, Event::BindingAdded(..)));
    assert_eq!((news.number, net.replicas[1].registrar.told()), (1, 1));
    assert_eq!(net.replicas[1].registrar.counts().added, 0);
}

#[derive(Debug, Clone)]
enum Step {
    Register {
        at: usize,
        call: u8,
        cseq: u32,
        tcp: bool,
        expires_s: u32,
    },
    Close {
        at: usize,
    },
    /// A record is delivered, which stays for another time.
    Deliver {
        which: usize,
        to: usize,
    },
    Wait {
        seconds: u64,
    },
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (
            (0_usize..3, 0_u8..4, 1_u32..6, any::<bool>()),
            prop::sample::select(vec![0_u32, 60, 600, 7200]),
        )
            .prop_map(|((at, call, cseq, tcp), expires_s)| Step::Register { at, call, cseq, tcp, expires_s }),
        1 => (0_usize..3).prop_map(|at| Step::Close { at }),
        6 => (any::<usize>(), 0_usize..3).prop_map(|(which, to)| Step::Deliver { which, to }),
        2 => (0_u64..400).prop_map(|seconds| Step::Wait { seconds }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// Histories of one user at three replicas with clocks that differ by up to ten minutes; every record
    /// comes to everybody in the end, in an order of each one's own, some of them twice.
    #[test]
    fn whoever_has_heard_the_same_has_the_same(
        clocks in prop::array::uniform3(-600_000_i64..600_000),
        steps in prop::collection::vec(steps(), 1..40),
        order in prop::collection::vec(any::<u64>(), 3 * 40),
    ) {
        let mut net = Net::new(clocks);
        for step in steps {
            match step {
                Step::Register { at, call, cseq, tcp: false, expires_s } => {
                    net.register(at, &format!("c{call}"), cseq, expires_s);
                }
                Step::Register { at, call, cseq, tcp: true, expires_s } => {
                    let on = tcp(ConnectionId::first(u16::try_from(at).unwrap() + 1, Owner(1)));
                    net.register_on(at, &format!("c{call}"), cseq, expires_s, on);
                }
                Step::Close { at } => {
                    let on = ConnectionId::first(u16::try_from(at).unwrap() + 1, Owner(1));
                    net.replicas[at].registrar.connection_closed(on, net.now);
                    net.collect(at);
                }
                Step::Deliver { which, to } => {
                    if let Some(bytes) = net.sent.get(which % net.sent.len().max(1)).cloned() {
                        net.deliver(to, &bytes);
                    }
                }
                Step::Wait { seconds } => net.wait(seconds),
            }
        }
        let mut keys = order.into_iter().cycle();
        for at in 0..3 {
            let mut sent: Vec<(u64, Vec<u8>)> =
                net.sent.iter().map(|bytes| (keys.next().unwrap(), bytes.clone())).collect();
            sent.sort();
            for (key, bytes) in sent {
                net.deliver(at, &bytes);
                if key % 3 == 0 {
                    net.deliver(at, &bytes);
                }
            }
        }
        for _ in 0..20 {
            let [first, second, third] = [0, 1, 2].map(|at| net.replicas[at].state(net.now));
            prop_assert_eq!(&first, &second);
            prop_assert_eq!(&first, &third);
            net.wait(400);
        }
    }

    /// The clocks differ and the link is cut now and then; but each REGISTER comes to a concentrator that
    /// has heard of the one before, as it is when a phone goes from one to another that is connected.
    #[test]
    fn the_last_word_of_the_user_agent_is_what_all_have(
        clocks in prop::array::uniform3(-600_000_i64..600_000),
        words in prop::collection::vec((0_usize..3, any::<bool>(), 1_u64..50, any::<bool>()), 1..30),
    ) {
        let mut net = Net::new(clocks);
        let (mut boot, mut last) = (0_u32, None);
        for (number, (at, restarts, seconds, removes)) in words.into_iter().enumerate() {
            boot += u32::from(restarts);
            let cseq = u32::try_from(number).unwrap() + 1;
            net.wait(seconds);
            let expires_s = if removes { 0 } else { 3600 };
            let call_id = format!("boot{boot}");
            let known = net.replicas[at].lookup(net.now).len();
            prop_assert_eq!(net.register(at, &call_id, cseq, expires_s), 200);
            // A removal of what is not there changes nothing.
            if !removes || known > 0 {
                last = (!removes).then_some((call_id, cseq, flow(at)));
            }
            net.exchange();
        }
        for replica in &net.replicas {
            let found = replica.lookup(net.now);
            let found = found.first().map(|binding| {
                let call_id = String::from_utf8(binding.call_id.to_vec()).unwrap();
                (call_id, binding.cseq, binding.flow)
            });
            prop_assert_eq!(&found, &last);
        }
    }
}

/// Three concentrators, and the records that they have sent.
struct Net {
    replicas: Vec<Replica>,
    sent: Vec<Vec<u8>>,
    /// Of those, how many were told as only later.
    prolonged: usize,
    user: &'static str,
    now: Instant,
    /// The one that they have in common, as it is.
    clock: Clock,
}

struct Replica {
    registrar: Registrar,
}

impl Replica {
    fn new(id: u16, behind_ms: i64, now: Instant, limits: Limits) -> Self {
        let mut registrar = Registrar::new(limits, Keys::new([7; 32], None));
        // What it takes for the common clock.
        let unix_ms = START_MS.saturating_add_signed(behind_ms);
        registrar.share(id, Clock { at: now, unix_ms });
        Self { registrar }
    }

    fn lookup(&self, now: Instant) -> Vec<Binding> {
        let bob = AddressOfRecord::from_uri(b"sip:bob@example.com").unwrap();
        self.registrar.lookup(&bob, now)
    }

    fn is_awaited(&self, now: Instant) -> bool {
        let bob = AddressOfRecord::from_uri(b"sip:bob@example.com").unwrap();
        self.registrar.awaited(&bob, now).is_some()
    }

    fn merge(&mut self, bytes: &[u8], clock: &Clock, now: Instant) -> Merged {
        let record = Record::decode(bytes, clock).unwrap();
        self.registrar.merge(record, now)
    }

    /// What matters of the bindings.
    fn state(&mut self, now: Instant) -> Vec<(Bytes, u32, Flow, Instant, u64)> {
        self.registrar.handle_timeout(now);
        let found = self.lookup(now).into_iter();
        found
            .map(|b| {
                (
                    b.call_id.clone(),
                    b.cseq,
                    b.flow,
                    b.expires_at,
                    b.origin.stamp_ms,
                )
            })
            .collect()
    }
}

impl Net {
    fn new(clocks: [i64; 3]) -> Self {
        Self::with(clocks, limits())
    }

    #[expect(clippy::disallowed_methods, reason = "virtual time starts somewhere")]
    fn with(clocks: [i64; 3], limits: Limits) -> Self {
        let now = Instant::now() + secs(100_000);
        let replicas = (1..).zip(clocks);
        Self {
            replicas: replicas
                .map(|(id, behind)| Replica::new(id, behind, now, limits))
                .collect(),
            sent: Vec::new(),
            prolonged: 0,
            user: "bob",
            now,
            clock: Clock {
                at: now,
                unix_ms: START_MS,
            },
        }
    }

    fn wait(&mut self, seconds: u64) {
        self.now += secs(seconds);
    }

    fn register(&mut self, at: usize, call_id: &str, cseq: u32, expires_s: u32) -> u16 {
        self.register_on(at, call_id, cseq, expires_s, flow(at))
    }

    fn register_on(
        &mut self,
        at: usize,
        call_id: &str,
        cseq: u32,
        expires_s: u32,
        flow: Flow,
    ) -> u16 {
        let user = self.user;
        let text = format!(
            "REGISTER sip:example.com SIP/2.0\r\nVia: SIP/2.0/UDP 10.0.0.5;branch=z9hG4bK{cseq}\r\n\
             From: <sip:{user}@example.com>;tag=1\r\nTo: <sip:{user}@example.com>\r\n\
             Call-ID: {call_id}\r\nCSeq: {cseq} REGISTER\r\nContact: <sip:{user}@10.0.0.5>\r\n\
             Expires: {expires_s}\r\nContent-Length: 0\r\n\r\n"
        );
        let request = Message::parse(Bytes::from(text)).unwrap();
        let aor = AddressOfRecord::from_uri(request.to().unwrap().uri).unwrap();
        let hop = Hop { flow, relay: None };
        let registrar = &mut self.replicas[at].registrar;
        let response = registrar.handle_register(&request, &aor, &hop, self.now);
        self.collect(at);
        response.status().unwrap()
    }

    /// Sends what one has done itself.
    fn collect(&mut self, at: usize) {
        while let Some(news) = self.replicas[at].registrar.poll_news() {
            if news.foreign {
                continue;
            }
            self.prolonged += usize::from(matches!(news.event, Event::BindingProlonged(..)));
            let (user, binding, removed) = match news.event {
                Event::BindingAdded(user, binding)
                | Event::BindingRefreshed(user, binding)
                | Event::BindingProlonged(user, binding) => (user, binding, false),
                Event::BindingRenamed(user, binding) | Event::BindingRemoved(user, binding) => {
                    (user, binding, true)
                }
                Event::BindingExpired(..) | Event::BindingUnreachable(..) => continue,
            };
            // The times are right: who sends has the common clock by then.
            self.sent
                .push(encode_version(&user, &binding, removed, &self.clock));
        }
    }

    /// Everything to everybody, in the order in which it was sent.
    fn exchange(&mut self) {
        for bytes in self.sent.clone() {
            for at in 0..self.replicas.len() {
                self.deliver(at, &bytes);
            }
        }
    }

    fn deliver(&mut self, at: usize, bytes: &[u8]) -> Merged {
        let now = self.now;
        self.replicas[at].merge(bytes, &self.clock, now)
    }
}

/// Where all user agents are that come to this one.
fn flow(at: usize) -> Flow {
    Flow {
        transport: Transport::Udp,
        peer: SocketAddr::from(([192, 0, 2, u8::try_from(at).unwrap()], 40_000)),
        local: SocketAddr::from(([198, 51, 100, 1], 5060)),
        connection: None,
    }
}

fn tcp(connection: ConnectionId) -> Flow {
    Flow {
        transport: Transport::Tcp,
        connection: Some(connection),
        ..flow(0)
    }
}

fn limits() -> Limits {
    Limits::default()
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
