//! Control messages and packets in, exact commands out.

use super::requests::failed;
use super::*;
use crate::clock;
use crate::session::offload::Carried;
use wire::relay_control::{ErrorCode, Gate, GateMode, Silence};

mod offload;

const C1: ConcentratorId = ConcentratorId(0);
const C2: ConcentratorId = ConcentratorId(1);
const CALLER: &str = "192.0.2.10:4000";
const CALLEE: &str = "198.51.100.20:5000";

#[test]
fn a_welcome_fills_the_stock_and_each_bind_refills_it() {
    let mut rig = Rig::new();
    let leases = rig.connect(C1, 2);
    assert_eq!(leases.len(), 2);
    assert_ne!(leases[0].a.rtp, leases[0].b.rtp);
    assert_eq!(leases[0].a.rtcp, leases[0].a.rtp + 1);

    let answer = rig.control(C1, bind(1, leases[0].session));

    assert_eq!(
        answer[0],
        FromAgent::Done { request: 1 },
        "before the new lease"
    );
    assert!(matches!(&answer[1], FromAgent::Leases { leases } if leases.len() == 1));
    assert_eq!(rig.relay.gauges().leases, 2);
    assert_eq!(rig.relay.gauges().sessions, 1);
}

#[test]
fn a_bound_session_relays_and_tells_that_media_started() {
    let mut rig = Rig::new();
    let lease = rig.connect(C1, 1)[0];
    rig.control(C1, bind(1, lease.session));
    let (sent, said) = rig.packet(lease.session, Side::A, CALLER, 1);
    assert_eq!((sent, said.len()), (None, 1));
    let (sent, _) = rig.packet(lease.session, Side::B, CALLEE, 2);
    let out = port(lease.session, Side::A);
    assert_eq!(sent, Some((out, at(CALLER))));
    assert_eq!(
        rig.transmitted,
        [(port(lease.session, Side::B), at(CALLEE))]
    );
}

#[test]
fn a_repeated_request_is_answered_again_and_carried_out_once() {
    let mut rig = Rig::new();
    let lease = rig.connect(C1, 1)[0];
    rig.control(C1, bind(1, lease.session));
    rig.relay.handle_disconnected(C1, rig.now);
    rig.connect(C1, 1);
    assert_eq!(
        rig.control(C1, bind(1, lease.session)),
        [FromAgent::Done { request: 1 }]
    );
    assert_eq!(rig.relay.gauges().leases, 1);
}

#[test]
fn a_session_in_use_is_every_concentrators_and_goes_over_when_its_owner_is_away() {
    let mut rig = Rig::new();
    let lease = rig.connect(C1, 1)[0];
    rig.control(C1, bind(1, lease.session));
    rig.connect(C2, 1);
    let query = |request| ToAgent::Query {
        request,
        session: lease.session,
    };
    let said = rig.control(C2, query(1));
    assert!(
        matches!(said[..], [FromAgent::Statistics { .. }]),
        "{said:?}"
    );
    let release = |request| ToAgent::Release {
        request,
        session: lease.session,
    };
    rig.relay.handle_disconnected(C1, rig.now);
    assert_eq!(
        rig.control(C2, release(2)),
        [FromAgent::Done { request: 2 }]
    );
    rig.advance(2_000);
    assert_eq!(rig.ended_to, [C2]);
    // Who had it may still count the call.
    rig.connect(C1, 1);
    assert_eq!(rig.ended_to, [C2, C1]);
}

#[test]
fn who_asks_about_a_session_hears_of_its_end() {
    let mut rig = Rig::new();
    let lease = rig.connect(C1, 1)[0];
    rig.control(C1, bind(1, lease.session));
    rig.connect(C2, 1);
    for request in 2..4 {
        let session = lease.session;
        rig.control(C2, ToAgent::Query { request, session });
    }
    let release = ToAgent::Release {
        request: 4,
        session: lease.session,
    };
    rig.control(C1, release);
    rig.advance(2_000);
    assert_eq!(rig.ended_to, [C1, C2], "each once");
}

#[test]
fn the_end_of_a_session_is_told_to_its_owner_while_it_is_there() {
    let mut rig = Rig::new();
    let lease = rig.connect(C1, 1)[0];
    rig.control(C1, bind(1, lease.session));
    rig.connect(C2, 1);
    let release = ToAgent::Release {
        request: 2,
        session: lease.session,
    };
    assert_eq!(rig.control(C2, release), [FromAgent::Done { request: 2 }]);
    rig.advance(2_000);
    assert_eq!(rig.ended_to, [C1]);
}

#[test]
fn a_lease_of_another_concentrator_or_a_session_of_nobody_is_not_touched() {
    let mut rig = Rig::new();
    let lease = rig.connect(C1, 1)[0];
    rig.connect(C2, 1);
    let refused = rig.control(C2, bind(1, lease.session));
    assert_eq!(refused, [failed(1, ErrorCode::NotYourSession)]);
    let unknown = rig.control(C2, bind(2, 999));
    assert_eq!(unknown, [failed(2, ErrorCode::UnknownSession)]);
    assert_eq!(rig.relay.troubles().requests_failed, 2);
}

#[test]
fn a_released_session_ends_after_its_linger_with_its_figures() {
    let mut rig = Rig::new();
    let lease = rig.connect(C1, 1)[0];
    rig.control(C1, bind(1, lease.session));
    let release = ToAgent::Release {
        request: 2,
        session: lease.session,
    };
    assert_eq!(rig.control(C1, release), [FromAgent::Done { request: 2 }]);
    assert!(!ended(&rig.advance(1999), lease.session));
    assert!(ended(&rig.advance(1), lease.session));
    assert_eq!(rig.closed, [SessionId(lease.session)]);
    assert_eq!(rig.relay.gauges().sessions, 0);
}

#[test]
fn unused_leases_of_a_lost_concentrator_expire_and_bound_sessions_live_on() {
    let mut rig = Rig::new();
    let leases = rig.connect(C1, 2);
    rig.control(C1, bind(1, leases[0].session));
    rig.relay.handle_disconnected(C1, rig.now);
    rig.advance(29_999);
    assert_eq!(rig.relay.gauges().leases, 2);
    rig.advance(1);
    assert_eq!(rig.relay.gauges().leases, 0);
    assert_eq!(rig.relay.gauges().sessions, 1);
    // The same name is back and in control.
    rig.connect(C1, 2);
    let release = ToAgent::Release {
        request: 2,
        session: leases[0].session,
    };
    assert_eq!(rig.control(C1, release), [FromAgent::Done { request: 2 }]);
}

#[test]
fn a_reconnected_concentrator_hears_of_its_unused_leases_and_of_what_ended() {
    let mut rig = Rig::new();
    let leases = rig.connect(C1, 2);
    rig.control(C1, bind(1, leases[0].session));
    rig.relay.handle_disconnected(C1, rig.now);
    rig.advance(20_000);
    let again = rig.connect(C1, 2);
    assert_eq!(again[0], leases[1]);
    assert_eq!(again.len(), 2);
    rig.relay.handle_disconnected(C1, rig.now);
    rig.advance(220_000);
    rig.relay.handle_connected(C1, rig.now);
    let said = rig.control(C1, welcome(0));
    assert!(said.contains(&FromAgent::MediaTimeout {
        session: leases[0].session,
        silence: Silence::HalfOpen,
    }));
    assert!(ended(&said, leases[0].session));
}

#[test]
fn ports_that_ran_out_come_back_and_fill_the_stock() {
    let mut rig = Rig::with_ports(30_000, 30_007);
    let leases = rig.connect(C1, 64);
    assert_eq!(leases.len(), 2);
    let release = ToAgent::Release {
        request: 1,
        session: leases[0].session,
    };
    rig.control(C1, release);
    rig.advance(0);
    assert_eq!(rig.relay.gauges().leases, 1);
    rig.advance(1000);
    assert_eq!(rig.relay.gauges().leases, 1, "its ports rest");
    for _ in 0..6 {
        rig.advance(1000);
    }
    assert_eq!(rig.relay.gauges().leases, 2);
    assert!(rig.relay.troubles().no_ports > 0);
}

#[test]
fn ports_that_another_process_holds_are_passed_over() {
    let mut rig = Rig::new();
    rig.refuse_opens = 3;
    assert_eq!(rig.connect(C1, 2), []);
    assert_eq!(rig.relay.troubles().open_failed, 2, "no more at once");
    assert_eq!(rig.advance(199), []);
    rig.advance(1);
    assert_eq!(rig.relay.troubles().open_failed, 3);
    assert_eq!(rig.relay.gauges().leases, 1);
    rig.advance(200);
    assert_eq!(rig.relay.gauges().leases, 2);
}

#[test]
fn a_message_out_of_order_closes_the_link() {
    let mut rig = Rig::new();
    rig.relay.handle_connected(C1, rig.now);
    rig.control(C1, bind(1, 1));
    assert_eq!(rig.faults, [Fault::OutOfOrder]);
    assert_eq!(rig.relay.troubles().links_closed, 1);
}

#[test]
fn a_silent_concentrator_is_left_after_four_intervals() {
    let mut rig = Rig::new();
    rig.connect(C1, 1);
    rig.advance(239_999);
    assert_eq!(rig.faults, []);
    rig.advance(1);
    assert_eq!(rig.faults, [Fault::Silent]);
}

#[test]
fn a_draining_agent_prepares_no_more_leases() {
    let mut rig = Rig::new();
    let lease = rig.connect(C1, 1)[0];
    rig.relay.handle_drain();
    assert_eq!(rig.drain(), [FromAgent::Draining]);
    assert_eq!(
        rig.control(C1, bind(1, lease.session)),
        [FromAgent::Done { request: 1 }]
    );
    assert_eq!(rig.relay.gauges().leases, 0);
}

#[test]
fn a_gate_with_too_many_addresses_is_refused() {
    let mut rig = Rig::new();
    let lease = rig.connect(C1, 1)[0];
    let update = ToAgent::Update {
        request: 1,
        session: lease.session,
        side: Side::A,
        gate: Gate {
            expected: vec![at(CALLER).ip(); 17],
            ..Gate::default()
        },
    };
    assert_eq!(rig.control(C1, update), [failed(1, ErrorCode::BadRequest)]);
}

/// A relay with an address of each family joins IPv4 and IPv6 (RFC 6157 section 4): the stock has leases for every combination, and each that is used is replaced.
#[test]
fn an_agent_with_both_families_stocks_every_combination_of_them() {
    let families = |leases: &[Lease]| {
        let mut counts = [0; 4];
        for lease in leases {
            let [a, b] = [lease.a, lease.b].map(|side| usize::from(side.addr.is_ipv6()));
            counts[2 * a + b] += 1;
        }
        counts
    };
    let v6 = "2001:db8::1".parse().expect("an address");
    let mut rig = Rig::with(30_000, 30_999, &[IpAddr::from([192, 0, 2, 1]), v6]);
    let leases = rig.connect(C1, 12);
    assert_eq!(families(&leases), [6, 2, 2, 2]);
    let bridge = leases
        .iter()
        .find(|lease| lease.a.addr.is_ipv4() && lease.b.addr == v6);
    let answers = rig.control(C1, bind(1, bridge.expect("a bridge").session));
    let fresh: Vec<Lease> = answers
        .into_iter()
        .flat_map(|message| {
            if let FromAgent::Leases { leases } = message {
                leases
            } else {
                Vec::new()
            }
        })
        .collect();
    assert_eq!(families(&fresh), [0, 1, 0, 0]);
}

#[test]
fn a_query_tells_the_figures_so_far() {
    let mut rig = Rig::new();
    let lease = rig.connect(C1, 1)[0];
    rig.control(C1, bind(1, lease.session));
    rig.packet(lease.session, Side::A, CALLER, 1);
    let query = ToAgent::Query {
        request: 2,
        session: lease.session,
    };
    let said = rig.control(C1, query);
    let [FromAgent::Statistics { stats, .. }] = said.as_slice() else {
        panic!("{said:?}");
    };
    assert_eq!(stats.a.rtp.packets_in, 1);
    assert_eq!(stats.a.latched_rtp, Some(at(CALLER)));
}

#[test]
fn a_packet_for_a_session_that_is_gone_is_counted() {
    let mut rig = Rig::new();
    assert_eq!(rig.packet(7, Side::A, CALLER, 1).0, None);
    assert_eq!(rig.relay.troubles().no_session, 1);
}

#[test]
fn the_stock_grows_when_it_is_asked_for_and_shrinks_as_leases_are_used_or_given_back() {
    let mut rig = Rig::new();
    let leases = rig.connect(C1, 2);
    let said = rig.control(C1, stock(1, 5));
    assert!(said.contains(&FromAgent::Done { request: 1 }), "{said:?}");
    assert_eq!(rig.relay.gauges().leases, 5);

    assert_eq!(
        rig.control(C1, stock(2, 3)),
        [FromAgent::Done { request: 2 }]
    );
    assert_eq!(rig.relay.gauges().leases, 5, "what is lent stays lent");
    let release = |request, session| ToAgent::Release { request, session };
    rig.control(C1, release(3, leases[0].session));
    rig.control(C1, release(4, leases[1].session));
    rig.advance(1);
    assert_eq!(rig.relay.gauges().leases, 3, "and is not replaced");
}

#[test]
fn a_stock_that_ports_do_not_suffice_for_is_refused_and_bounded_by_our_own_limit() {
    let mut rig = Rig::with_ports(30_000, 30_015);
    assert_eq!(rig.connect(C1, 2).len(), 2);
    let said = rig.control(C1, stock(1, 100));
    assert!(said.contains(&failed(1, ErrorCode::NoPorts)), "{said:?}");
    assert_eq!(rig.relay.gauges().leases, 4);

    let mut rig = Rig::with_ports(30_000, 39_999);
    rig.connect(C1, 2);
    rig.control(C1, stock(1, u32::MAX));
    assert_eq!(rig.relay.gauges().leases, 256);
    rig.relay.handle_drain();
    let said = rig.control(C1, stock(2, 300));
    assert!(said.contains(&failed(2, ErrorCode::Draining)), "{said:?}");
}

#[test]
fn what_a_stock_lacks_is_told_by_its_name() {
    let mut rig = Rig::with_limit(3);
    assert_eq!(rig.connect(C1, 2).len(), 2);
    let said = rig.control(C1, stock(1, 100));
    assert!(
        said.contains(&failed(1, ErrorCode::LimitReached)),
        "{said:?}"
    );
    assert_eq!(rig.relay.gauges().leases, 3);
    let troubles = rig.relay.troubles();
    assert_eq!((troubles.limit_reached, troubles.no_ports), (1, 0));

    let mut rig = Rig::new();
    rig.refuse_opens = 3;
    assert_eq!(rig.connect(C1, 1), []);
    let said = rig.control(C1, stock(1, 2));
    assert_eq!(
        said,
        [failed(1, ErrorCode::BindFailed)],
        "neither could be opened, and another try fails too"
    );
    assert_eq!(rig.relay.troubles().no_ports, 0);
    rig.advance(200);
    assert_eq!(rig.relay.gauges().leases, 2);
    let said = rig.control(C1, stock(2, 3));
    assert!(said.contains(&FromAgent::Done { request: 2 }), "{said:?}");
}

#[test]
fn at_the_limit_a_session_that_ends_makes_room_for_one_lease() {
    let mut rig = Rig::with_limit(2);
    let leases = rig.connect(C1, 2);
    rig.control(C1, bind(1, leases[0].session));
    assert_eq!(rig.relay.gauges().leases, 1, "two sessions are all");
    rig.connect(C2, 2);
    let request = 2;
    let session = leases[0].session;
    rig.control(C1, ToAgent::Release { request, session });
    assert_eq!(rig.relay.gauges().leases, 1, "its ports linger");
    rig.advance(2_000);
    assert_eq!(rig.relay.gauges().leases, 2);
    let refused = rig
        .relay
        .open_local([IpAddr::from([192, 0, 2, 1]); 2], "ng", rig.now)
        .map(drop);
    assert_eq!(refused, Err(ErrorCode::LimitReached), "nor for a proxy");
}

#[test]
fn a_concentrator_that_never_binds_its_leases_gets_no_more_of_them() {
    let mut rig = Rig::new();
    rig.connect(C1, 8);
    for seq in 0..100 {
        let said = rig.control(C1, ToAgent::Heartbeat { seq });
        assert!(
            !said
                .iter()
                .any(|said| matches!(said, FromAgent::Leases { .. }))
        );
        rig.advance(50_000);
    }
    assert_eq!(rig.relay.gauges().leases, 8);
    // It goes, and they expire; its ports are free again.
    rig.relay.handle_disconnected(C1, rig.now);
    rig.advance(30_000);
    assert_eq!(rig.relay.gauges().leases, 0);
}

#[test]
fn two_relays_in_a_chain_pass_the_first_packet_on_without_having_heard_of_each_other() {
    let mut rig = Rig::new();
    let lease = rig.connect(C1, 1)[0];
    let other = "192.0.2.200:41000";
    rig.control(C1, chained(1, lease.session, other));
    let (sent, _) = rig.packet(lease.session, Side::A, CALLER, 1);
    assert_eq!(sent, Some((port(lease.session, Side::B), at(other))));
    let (refused, _) = rig.packet(lease.session, Side::B, "192.0.2.200:41002", 1);
    assert_eq!(refused, None);
    let (back, _) = rig.packet(lease.session, Side::B, other, 1);
    assert_eq!(back, Some((port(lease.session, Side::A), at(CALLER))));
}

#[test]
fn what_came_before_the_bind_goes_on_to_the_other_relay() {
    let mut rig = Rig::new();
    let lease = rig.connect(C1, 1)[0];
    rig.packet(lease.session, Side::A, CALLER, 1);
    let other = "192.0.2.200:41000";
    rig.control(C1, chained(1, lease.session, other));
    assert_eq!(rig.transmitted, [(port(lease.session, Side::B), at(other))]);
}

#[test]
fn a_chain_to_ourselves_or_to_no_host_is_refused() {
    let mut rig = Rig::new();
    let lease = rig.connect(C1, 1)[0];
    for (request, other) in [
        "192.0.2.1:30000",
        "127.0.0.1:22",
        "224.0.0.1:5004",
        "255.255.255.255:5004",
        "192.0.2.200:0",
    ]
    .into_iter()
    .enumerate()
    {
        let request = request as u64;
        assert_eq!(
            rig.control(C1, chained(request, lease.session, other)),
            [failed(request, ErrorCode::BadRequest)],
            "{other}"
        );
    }
    assert_eq!(rig.relay.gauges().sessions, 0);
}

/// The relay with a shell that opens ports at once.
struct Rig {
    relay: Relay,
    now: Instant,
    refuse_opens: u32,
    transmitted: Vec<(RelayPort, SocketAddr)>,
    closed: Vec<SessionId>,
    faults: Vec<Fault>,
    /// Who was told of the end of each session.
    ended_to: Vec<ConcentratorId>,
    offloaded: Vec<(RelayPort, SocketAddr, SocketAddr, Route)>,
    recalled: Vec<RelayPort>,
    /// What the fast path will say when a stream is recalled.
    carried: HashMap<RelayPort, Carried>,
}

impl Rig {
    fn new() -> Self {
        Self::with_ports(30_000, 30_999)
    }

    fn with_ports(first: u16, last: u16) -> Self {
        Self::with(first, last, &[IpAddr::from([192, 0, 2, 1])])
    }

    /// An agent that has so many sessions at most.
    fn with_limit(max_sessions: usize) -> Self {
        let mut rig = Self::new();
        rig.relay.config.max_sessions = max_sessions;
        rig
    }

    fn with(first: u16, last: u16, addresses: &[IpAddr]) -> Self {
        let seconds = Duration::from_secs;
        let relay = Relay::new(RelayConfig {
            name: "relay1".to_owned(),
            epoch: 1,
            addresses: addresses.to_vec(),
            ports: PortRange::new(first, last).expect("a range"),
            quarantine: seconds(5),
            limits: Limits {
                idle: seconds(60),
                half_open: seconds(240),
                one_way: Some(Duration::from_secs(300)),
                held: Duration::from_secs(3600),
                learning: Duration::from_secs(60),
                lease: seconds(30),
                linger: seconds(2),
            },
            max_stock: 256,
            max_sessions: 100_000,
            max_held: 100,
            seed: 1,
            concentrators: vec!["c1".to_owned(), "c1".to_owned()],
        });
        Self {
            relay,
            now: clock::start(),
            refuse_opens: 0,
            transmitted: Vec::new(),
            closed: Vec::new(),
            faults: Vec::new(),
            ended_to: Vec::new(),
            offloaded: Vec::new(),
            recalled: Vec::new(),
            carried: HashMap::new(),
        }
    }

    /// Connects and returns the leases that were offered.
    fn connect(&mut self, concentrator: ConcentratorId, stock: u32) -> Vec<Lease> {
        self.relay.handle_connected(concentrator, self.now);
        let hello = self.drain();
        assert!(
            matches!(hello.as_slice(), [FromAgent::Hello { .. }]),
            "{hello:?}"
        );
        self.control(concentrator, welcome(stock))
            .into_iter()
            .flat_map(|message| {
                if let FromAgent::Leases { leases } = message {
                    leases
                } else {
                    Vec::new()
                }
            })
            .collect()
    }

    fn control(&mut self, concentrator: ConcentratorId, message: ToAgent) -> Vec<FromAgent> {
        self.relay.handle_control(concentrator, message, self.now);
        self.drain()
    }

    fn packet(
        &mut self,
        session: u64,
        side: Side,
        from: &str,
        sequence: u8,
    ) -> (Option<(RelayPort, SocketAddr)>, Vec<FromAgent>) {
        let rtp = [0x80, 0, 0, sequence, 0, 0, 0, 0, 0, 0, 0, 1];
        let (port, from) = (port(session, side), at(from));
        let mut said = Vec::new();
        if self.relay.prepare(port, from, &rtp, self.now) {
            said = self.drain();
        }
        let sent = self.relay.forward(port, from, &rtp, self.now);
        said.extend(self.drain());
        (sent, said)
    }

    fn advance(&mut self, milliseconds: u64) -> Vec<FromAgent> {
        self.now += Duration::from_millis(milliseconds);
        self.relay.handle_timeout(self.now);
        self.drain()
    }

    fn drain(&mut self) -> Vec<FromAgent> {
        let mut said = Vec::new();
        while let Some(command) = self.relay.poll_command() {
            match command {
                Command::Open { session, .. } if self.refuse_opens > 0 => {
                    self.refuse_opens -= 1;
                    self.relay.handle_open_failed(session, self.now);
                }
                Command::Open { session, .. } => self.relay.handle_opened(session, self.now),
                Command::Close { session } => self.closed.push(session),
                Command::Transmit { port, to, .. } => self.transmitted.push((port, to)),
                Command::Send {
                    concentrator,
                    message,
                } => {
                    if matches!(*message, FromAgent::Ended { .. }) {
                        self.ended_to.push(concentrator);
                    }
                    said.push(*message);
                }
                Command::CloseLink { fault, .. } => self.faults.push(fault),
                Command::Offload {
                    port,
                    local,
                    exit,
                    route,
                } => self.offloaded.push((port, local, exit, *route)),
                Command::Recall { port } => {
                    self.recalled.push(port);
                    if let Some(carried) = self.carried.remove(&port) {
                        self.relay.handle_carried(port, &carried);
                    }
                }
            }
        }
        said
    }
}

fn ended(said: &[FromAgent], expected: u64) -> bool {
    said.iter()
        .any(|message| matches!(message, FromAgent::Ended { session, .. } if *session == expected))
}

fn welcome(stock: u32) -> ToAgent {
    ToAgent::Welcome {
        version: VERSION,
        name: "c1".to_owned(),
        stock,
        heartbeat_ms: 60_000,
    }
}

fn bind(request: u64, session: u64) -> ToAgent {
    let gate = |address: &str| Gate {
        expected: vec![at(address).ip()],
        mode: GateMode::Exact,
        ..Gate::default()
    };
    ToAgent::Bind {
        request,
        session,
        a: gate(CALLER),
        b: gate(CALLEE),
        call: "call".to_owned(),
    }
}

/// A bind whose side B faces another relay.
fn chained(request: u64, session: u64, other: &str) -> ToAgent {
    let (mut bind, other) = (bind(request, session), at(other));
    if let ToAgent::Bind { b, .. } = &mut bind {
        *b = Gate {
            expected: vec![other.ip()],
            port: Some(other.port()),
            mode: GateMode::Relay,
            ..Gate::default()
        };
    }
    bind
}

const fn stock(request: u64, stock: u32) -> ToAgent {
    ToAgent::Stock { request, stock }
}

fn port(session: u64, side: Side) -> RelayPort {
    RelayPort {
        session: SessionId(session),
        side,
        component: Component::Rtp,
    }
}

fn at(address: &str) -> SocketAddr {
    address.parse().expect("an address")
}
