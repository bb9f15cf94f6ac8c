//! Two agents of a pair in virtual time, joined by a wire that can be cut; messages pass through their
//! frames. `a` is the one that has the addresses first.

use wire::relay_control::{
    FRAME_HEADER_LEN, FromAgent, Gate, GateMode, Lease, Side, ToAgent, VERSION, decode,
    encode_frame,
};

use super::*;
use crate::clock;
use crate::ports::PortRange;
use crate::relay::{Command, RelayConfig, RelayPort};
use crate::session::{Component, Limits};

const C1: ConcentratorId = ConcentratorId(0);
const CALLER: &str = "192.0.2.10:4000";
const CALLEE: &str = "198.51.100.20:5000";
const TEN: Duration = Duration::from_millis(10);

#[test]
fn the_other_agent_relays_from_the_first_packet_without_learning_anything_anew() {
    let mut net = Net::started();
    let lease = net.a.connect(3)[0];
    net.call(lease);
    net.pass();
    assert!(net.a.pair.is_in_step() && net.b.pair.is_in_step());

    net.cut();
    // Before the agent itself has noticed that the addresses are here.
    let (now, session) = (net.now, lease.session);
    assert_eq!(
        net.b.packet(session, Side::A, CALLER, 7, now),
        sent(session, Side::B, CALLEE)
    );
    assert_eq!(
        net.b.packet(session, Side::B, CALLEE, 8, now),
        sent(session, Side::A, CALLER)
    );
    // And nobody else can take the call, though the caller was silent here for long.
    assert_eq!(
        net.b.packet(session, Side::A, "192.0.2.10:6000", 7, now),
        None
    );
    net.b.addresses(true, net.now);
    assert!(net.b.pair.is_active());
    assert_eq!(
        net.b
            .packet(session, Side::A, "192.0.2.10:6000", 7, net.now),
        None
    );
}

#[test]
fn the_time_to_learn_a_source_goes_on_at_the_other_agent_and_does_not_begin_anew() {
    let mut net = Net::started();
    let leases = net.a.connect(2);
    let bound = net.now;
    for lease in &leases {
        net.bind(*lease);
        net.a.packet(lease.session, Side::A, CALLER, 7, net.now);
    }
    net.wait(Duration::from_secs(7));
    net.cut();
    net.b.addresses(true, net.now);
    let in_time = bound + Duration::from_secs(239);
    let (first, second) = (leases[0].session, leases[1].session);
    assert_eq!(
        net.b.packet(first, Side::B, CALLEE, 8, in_time),
        sent(first, Side::A, CALLER)
    );
    let late = bound + Duration::from_secs(241);
    assert_eq!(net.b.packet(second, Side::B, CALLEE, 8, late), None);
    assert_eq!(net.b.relay.totals(late).rejected.late, 1);
}

#[test]
fn the_concentrator_finds_its_sessions_leases_and_epoch_again_at_the_other_agent() {
    let mut net = Net::started();
    let leases = net.a.connect(3);
    net.call(leases[0]);
    net.wait(Duration::from_secs(59));
    net.cut();
    net.b.addresses(true, net.now);
    net.b.relay.handle_connected(C1, net.now);
    let said = net.b.said();
    assert!(
        matches!(said[..], [FromAgent::Hello { epoch: 1_000, .. }]),
        "{said:?}"
    );

    let said = net.b.control(welcome(3), net.now);
    let offered: Vec<u64> = said
        .iter()
        .flat_map(leases_of)
        .map(|lease| lease.session)
        .collect();
    assert_eq!(offered.len(), 3, "no more than were wanted: {said:?}");
    assert!(
        leases[1..]
            .iter()
            .all(|lease| offered.contains(&lease.session))
    );
    assert!(!offered.contains(&leases[0].session), "it is a call's");

    let session = leases[0].session;
    let said = net.b.control(
        ToAgent::Release {
            request: 9,
            session,
        },
        net.now,
    );
    assert_eq!(said, [FromAgent::Done { request: 9 }]);
    let said = net.b.timeout(net.now + Duration::from_secs(3));
    let ended = said.iter().find_map(|message| {
        let FromAgent::Ended {
            session: ended,
            stats,
        } = message
        else {
            return None;
        };
        (*ended == session).then_some(stats)
    });
    let stats = ended.expect("the end is reported");
    assert!(stats.duration_ms >= 59_000, "{}", stats.duration_ms);
    assert_eq!(
        stats.a.rtp.packets_in, 1,
        "what the first agent has counted"
    );
}

#[test]
fn numbers_of_new_sessions_are_greater_than_any_of_the_agent_before() {
    let mut net = Net::started();
    let before = net.a.connect(3);
    net.pass();
    net.cut();
    net.b.addresses(true, net.now);
    let after = net.b.connect(8);
    let highest = before.iter().map(|lease| lease.session).max();
    let fresh = after.iter().filter(|lease| !before.contains(lease));
    assert_eq!(fresh.clone().count(), 5);
    assert!(
        fresh
            .clone()
            .all(|lease| Some(lease.session) > highest && lease.session >= FRESH)
    );
}

#[test]
fn an_agent_that_stands_by_ends_no_session_and_one_that_took_over_does() {
    let mut net = Net::started();
    let lease = net.a.connect(1)[0];
    net.call(lease);
    net.pass();
    net.cut();
    let later = net.now + Duration::from_secs(3_600);
    assert!(net.b.timeout(later).is_empty());
    assert_eq!(net.b.relay.gauges().sessions, 1);
    net.b.addresses(true, later);
    net.b.timeout(later + Duration::from_secs(59));
    assert_eq!(net.b.relay.gauges().sessions, 1);
    net.b.timeout(later + Duration::from_secs(60));
    assert_eq!(net.b.relay.gauges().sessions, 0);
}

#[test]
fn what_is_over_at_one_agent_is_over_at_the_other_and_its_ports_come_back() {
    let mut net = Net::started();
    let lease = net.a.connect(1)[0];
    net.call(lease);
    net.pass();
    let session = lease.session;
    net.a.control(
        ToAgent::Release {
            request: 9,
            session,
        },
        net.now,
    );
    net.wait(Duration::from_secs(3));
    assert_eq!(net.b.relay.gauges().sessions, 0);
    assert_eq!(net.b.closed, [SessionId(session)]);
    // The same while the wire is cut: the next snapshot does not name it.
    let lease = net.a.leases[1];
    net.call(lease);
    net.pass();
    assert_eq!(net.b.relay.gauges().sessions, 1);
    net.cut();
    let session = lease.session;
    net.a.control(
        ToAgent::Release {
            request: 10,
            session,
        },
        net.now,
    );
    net.now += Duration::from_secs(3);
    net.a.timeout(net.now);
    net.plug();
    net.pass();
    assert_eq!(net.b.relay.gauges().sessions, 0);
    assert_eq!(net.a.relay.gauges().leases, net.b.relay.gauges().leases);
}

#[test]
fn a_hundred_sessions_come_in_a_snapshot_to_an_agent_that_has_just_started() {
    let mut net = Net::started();
    net.cut();
    net.a.connect(100);
    net.plug();
    net.pass();
    assert_eq!(net.b.relay.gauges().leases, 100);
    assert_eq!(net.b.pair.counters().snapshots_received, 2);
    let of_b: Vec<_> = net.b.relay.session_ids();
    assert_eq!(of_b, net.a.relay.session_ids());
}

#[test]
fn after_a_take_over_the_agent_before_is_fenced_and_its_word_counts_no_more() {
    let mut net = Net::started();
    let lease = net.a.connect(1)[0];
    net.call(lease);
    net.pass();
    // Both hosts have the addresses; the agents still hear each other.
    net.b.addresses(true, net.now);
    assert!(net.a.pair.is_active() && net.b.pair.is_active());
    net.pass();
    assert_eq!(
        (net.a.pair.role(), net.b.pair.role()),
        (Role::Fenced, Role::Active)
    );
    assert_eq!(net.a.relay.gauges().sessions, 1);
    // It goes on relaying what reaches it.
    let session = lease.session;
    assert_eq!(
        net.a.packet(session, Side::A, CALLER, 7, net.now),
        sent(session, Side::B, CALLEE)
    );
    // A late snapshot of its own is refused.
    let old = Standing {
        term: 1,
        epoch: 1_000,
        active: true,
    };
    net.b
        .hear(PeerMessage::SnapshotBegin { standing: old }, net.now);
    net.b.hear(PeerMessage::SnapshotEnd, net.now);
    assert_eq!(net.b.pair.counters().fenced, 2);
    assert_eq!(net.b.relay.gauges().sessions, 1);
}

#[test]
fn the_addresses_go_back_to_an_agent_that_was_started_again_and_the_call_with_them() {
    let mut net = Net::started();
    let lease = net.a.connect(1)[0];
    net.call(lease);
    net.pass();
    net.cut();
    net.b.addresses(true, net.now);
    net.a = Agent::new(2_000, net.now);
    net.a.addresses(false, net.now);
    net.plug();
    net.pass();
    assert_eq!(net.a.relay.gauges().sessions, 1);
    net.b.addresses(false, net.now);
    net.a.addresses(true, net.now);
    net.pass();
    assert_eq!(
        (net.a.pair.role(), net.b.pair.role()),
        (Role::Active, Role::Standby)
    );
    assert_eq!(net.a.relay.epoch(), 1_000);
    assert!(net.a.pair.is_in_step() && net.b.pair.is_in_step());
    let session = lease.session;
    assert_eq!(
        net.a.packet(session, Side::B, CALLEE, 8, net.now),
        sent(session, Side::A, CALLER)
    );
}

#[test]
fn a_restart_so_quick_that_the_addresses_stayed_finds_the_calls_at_the_other_agent() {
    let mut net = Net::started();
    let lease = net.a.connect(1)[0];
    net.call(lease);
    net.pass();
    net.cut();
    net.a = Agent::new(2_000, net.now);
    net.a.addresses(true, net.now);
    assert!(!net.a.pair.is_active());
    net.plug();
    net.pass();
    assert!(net.a.pair.is_active());
    assert_eq!(
        (net.a.relay.gauges().sessions, net.a.relay.epoch()),
        (1, 1_000)
    );
    assert_eq!(net.b.pair.role(), Role::Standby);
}

#[test]
fn counters_follow_within_five_seconds() {
    let mut net = Net::started();
    let lease = net.a.connect(1)[0];
    net.call(lease);
    net.pass();
    for sequence in 2..102 {
        net.a
            .packet(lease.session, Side::A, CALLER, sequence, net.now);
    }
    net.pass();
    assert_eq!(
        net.b.relay.totals(net.now).rtp.packets_in,
        2,
        "not worth a message"
    );
    net.wait(REFRESH);
    net.wait(REFRESH_STEP);
    assert_eq!(net.b.relay.totals(net.now).rtp.packets_in, 102);
}

#[test]
fn silence_ends_a_connection_and_heartbeats_keep_it() {
    let mut net = Net::started();
    net.wait(Duration::from_secs(2));
    assert!(net.a.pair.is_connected());
    let last = net.now;
    net.a
        .pair
        .handle_timeout(&mut net.a.relay, FRESH, last + Duration::from_millis(799))
        .unwrap();
    let silent =
        net.a
            .pair
            .handle_timeout(&mut net.a.relay, FRESH, last + Duration::from_millis(800));
    assert_eq!(silent, Err(PairFault::Silent));
}

#[test]
fn an_agent_of_another_pair_or_with_other_media_or_out_of_order_is_refused() {
    type Edit = fn(&mut PairConfig);
    let edits: [(Edit, PairFault); 3] = [
        (
            |config| config.name = "relay2".to_owned(),
            PairFault::WrongName,
        ),
        (|config| config.ports.1 = 31_001, PairFault::OtherMedia),
        (
            |config| config.media_addresses.push([1; 4].into()),
            PairFault::OtherMedia,
        ),
    ];
    for (edit, fault) in edits {
        let mut net = Net::started();
        net.cut();
        edit(&mut net.b.pair.config);
        net.plug();
        let hello = net.b.pair.poll_message(&mut net.b.relay, net.now).unwrap();
        assert_eq!(net.a.try_hear(hello.clone(), net.now), Err(fault));
    }
    let mut net = Net::started();
    assert_eq!(
        net.a.try_hear(net.b.hello(), net.now),
        Err(PairFault::OutOfOrder)
    );
    net.cut();
    net.plug();
    assert_eq!(
        net.a.try_hear(PeerMessage::Heartbeat, net.now),
        Err(PairFault::OutOfOrder)
    );
}

#[test]
fn sessions_that_cannot_be_kept_are_counted_and_harm_no_other() {
    let mut net = Net::started();
    let lease = net.a.connect(1)[0];
    net.call(lease);
    net.pass();
    let (_, good) = net
        .a
        .relay
        .export(SessionId(lease.session), net.now)
        .unwrap();
    let of = |session, change: fn(&mut SessionRecord)| {
        let mut record = good.clone();
        record.lease.session = session;
        change(&mut record);
        record
    };
    let sessions = vec![
        of(1, |record| record.lease.a.addr = [192, 0, 2, 99].into()),
        of(2, |record| record.lease.a.rtp = 1),
        of(3, |record| record.lease.b = record.lease.a),
        of(4, |record| record.lease.a.rtcp = record.lease.a.rtp),
        of(5, |record| {
            record.a.gate = Some(Gate {
                expected: vec![[1; 4].into(); 17],
                ..Gate::default()
            });
        }),
    ];
    net.b.hear(PeerMessage::Sessions { sessions }, net.now);
    assert_eq!(net.b.pair.counters().sessions_refused, 5);
    assert_eq!(net.b.relay.gauges().sessions, 1);
    // The same ports under another number: the one before is over.
    let sessions = vec![of(6, |_| {})];
    net.b.hear(PeerMessage::Sessions { sessions }, net.now);
    let gauges = net.b.relay.gauges();
    assert_eq!((gauges.sessions, net.b.closed.len()), (1, 1));
}

/// What [`Relay::take_over`] gets here.
const FRESH: u64 = 5_000;

struct Net {
    a: Agent,
    b: Agent,
    now: Instant,
    plugged: bool,
}

struct Agent {
    relay: Relay,
    pair: Pair,
    leases: Vec<Lease>,
    closed: Vec<SessionId>,
}

impl Net {
    /// Both have started; `a` has the addresses and is active.
    fn started() -> Self {
        let now = clock::start();
        let mut net = Self {
            a: Agent::new(1_000, now),
            b: Agent::new(900, now),
            now,
            plugged: false,
        };
        net.a.addresses(true, now);
        net.b.addresses(false, now);
        net.plug();
        net.pass();
        assert_eq!(
            (net.a.pair.role(), net.b.pair.role()),
            (Role::Active, Role::Standby)
        );
        net
    }

    fn plug(&mut self) {
        self.plugged = true;
        for agent in [&mut self.a, &mut self.b] {
            agent.pair.handle_connected(self.now);
        }
    }

    fn cut(&mut self) {
        self.plugged = false;
        for agent in [&mut self.a, &mut self.b] {
            agent
                .pair
                .handle_disconnected(&mut agent.relay, FRESH, self.now);
            agent.said();
        }
    }

    /// Time passes, ten milliseconds at a time.
    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += TEN;
            self.a.timeout(self.now);
            self.b.timeout(self.now);
            self.pass();
        }
    }

    /// Everything that is to be said, until there is nothing more.
    fn pass(&mut self) {
        for agent in [&mut self.a, &mut self.b] {
            agent
                .pair
                .handle_timeout(&mut agent.relay, FRESH, self.now)
                .unwrap();
        }
        for _ in 0..1_000 {
            let to_b = self.a.pair.poll_message(&mut self.a.relay, self.now);
            let to_a = self.b.pair.poll_message(&mut self.b.relay, self.now);
            if to_a.is_none() && to_b.is_none() {
                return;
            }
            to_b.into_iter()
                .for_each(|message| self.b.hear(message, self.now));
            to_a.into_iter()
                .for_each(|message| self.a.hear(message, self.now));
        }
        panic!("they never stop");
    }

    /// A call whose parties have both sent a packet through `a`.
    fn call(&mut self, lease: Lease) {
        self.bind(lease);
        let session = lease.session;
        assert_eq!(self.a.packet(session, Side::A, CALLER, 7, self.now), None);
        let back = self.a.packet(session, Side::B, CALLEE, 8, self.now);
        assert_eq!(back, sent(session, Side::A, CALLER));
    }

    fn bind(&mut self, lease: Lease) {
        let gate = |address: &str| Gate {
            expected: vec![at(address).ip()],
            mode: GateMode::Exact,
            ..Gate::default()
        };
        let session = lease.session;
        let bind = ToAgent::Bind {
            request: session,
            session,
            a: gate(CALLER),
            b: gate(CALLEE),
            call: "call".to_owned(),
        };
        self.a.control(bind, self.now);
    }
}

impl Agent {
    fn new(epoch: u64, now: Instant) -> Self {
        let seconds = Duration::from_secs;
        let ports = PortRange::new(30_000, 30_999).unwrap();
        let addresses = vec![IpAddr::from([203, 0, 113, 1])];
        let mut relay = Relay::new(RelayConfig {
            name: "relay1".to_owned(),
            epoch,
            addresses: addresses.clone(),
            ports,
            quarantine: seconds(5),
            limits: Limits {
                idle: seconds(60),
                half_open: seconds(240),
                one_way: Some(seconds(300)),
                held: seconds(3600),
                learning: seconds(60),
                lease: seconds(30),
                linger: seconds(2),
            },
            max_stock: 256,
            max_sessions: 100_000,
            max_held: 100,
            seed: epoch,
            concentrators: vec!["c1".to_owned()],
        });
        relay.stand_by();
        let config = PairConfig {
            name: "relay1".to_owned(),
            media_addresses: addresses,
            ports: ports.bounds(),
            heartbeat: Duration::from_millis(200),
            concentrators: vec![at("10.0.9.2:7060")],
        };
        Self {
            relay,
            pair: Pair::new(config, epoch, now),
            leases: Vec::new(),
            closed: Vec::new(),
        }
    }

    fn addresses(&mut self, here: bool, now: Instant) {
        self.pair
            .handle_addresses(here, &mut self.relay, FRESH, now);
        if here && self.pair.role() == Role::Standby {
            panic!("it has the addresses");
        }
    }

    fn hello(&mut self) -> PeerMessage {
        let mut other = Self::new(1, clock::start());
        other.pair.handle_connected(clock::start());
        other
            .pair
            .poll_message(&mut other.relay, clock::start())
            .unwrap()
    }

    fn hear(&mut self, message: PeerMessage, now: Instant) {
        self.try_hear(message, now).unwrap();
    }

    fn try_hear(&mut self, message: PeerMessage, now: Instant) -> Result<(), PairFault> {
        let frame = encode_frame(&message).unwrap();
        let message = decode(&frame[FRAME_HEADER_LEN..]).unwrap();
        let heard = self
            .pair
            .handle_message(message, &mut self.relay, FRESH, now);
        self.said();
        heard
    }

    fn connect(&mut self, stock: u32) -> Vec<Lease> {
        let now = clock::start();
        self.relay.handle_connected(C1, now);
        self.said();
        self.control(welcome(stock), now);
        self.leases.clone()
    }

    fn control(&mut self, message: ToAgent, now: Instant) -> Vec<FromAgent> {
        self.relay.handle_control(C1, message, now);
        self.said()
    }

    fn timeout(&mut self, now: Instant) -> Vec<FromAgent> {
        self.relay.handle_timeout(now);
        self.said()
    }

    fn packet(
        &mut self,
        session: u64,
        side: Side,
        from: &str,
        ssrc: u8,
        now: Instant,
    ) -> Option<(RelayPort, SocketAddr)> {
        let ssrc = if ssrc > 8 { 7 } else { ssrc };
        let rtp = [0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, ssrc];
        let to = self.relay.forward(port(session, side), at(from), &rtp, now);
        self.said();
        to
    }

    fn said(&mut self) -> Vec<FromAgent> {
        let mut said = Vec::new();
        while let Some(command) = self.relay.poll_command() {
            match command {
                Command::Open { session, .. } => {
                    self.relay.handle_opened(session, clock::start());
                }
                Command::Close { session } => self.closed.push(session),
                Command::Transmit { .. } | Command::Offload { .. } | Command::Recall { .. } => {}
                Command::Send { message, .. } => said.push(*message),
                Command::CloseLink { fault, .. } => panic!("{fault}"),
            }
        }
        self.leases.extend(said.iter().flat_map(leases_of));
        said
    }
}

fn leases_of(message: &FromAgent) -> Vec<Lease> {
    if let FromAgent::Leases { leases } = message {
        leases.clone()
    } else {
        Vec::new()
    }
}

fn welcome(stock: u32) -> ToAgent {
    ToAgent::Welcome {
        version: VERSION,
        name: "c1".to_owned(),
        stock,
        heartbeat_ms: 60_000,
    }
}

#[expect(clippy::unnecessary_wraps, reason = "it is compared with an Option")]
fn sent(session: u64, side: Side, to: &str) -> Option<(RelayPort, SocketAddr)> {
    Some((port(session, side), at(to)))
}

fn port(session: u64, side: Side) -> RelayPort {
    RelayPort {
        session: SessionId(session),
        side,
        component: Component::Rtp,
    }
}

fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}
