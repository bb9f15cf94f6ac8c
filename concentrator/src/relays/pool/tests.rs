use std::net::Ipv4Addr;

use wire::gre::TunnelKey;
use wire::mark::Mark;
use wire::relay_control::SideAddr;

use super::*;

const LINK: LinkId = LinkId(1);

#[test]
fn a_lease_comes_from_memory_and_is_bound_afterwards() {
    let mut world = World::linked();
    let lease = world
        .pool
        .take_lease(relay(1), [None; 2])
        .expect("a lease in stock");
    assert_eq!(
        lease.session,
        SessionRef {
            relay: relay(1),
            session: 10
        }
    );
    assert_eq!(world.commands(), [], "taking a lease asks nobody");
    world.pool.bind(
        lease.session,
        Gate::default(),
        Gate::default(),
        "call-1",
        world.now,
    );
    let [
        Command::Send(
            LINK,
            ToAgent::Bind {
                session: 10,
                request,
                call,
                ..
            },
        ),
    ] = &world.commands()[..]
    else {
        panic!("expected a Bind");
    };
    assert_eq!(call, "call-1");
    let request = *request;
    world.say(FromAgent::Done { request });
    world.say(FromAgent::Done { request });
    assert_eq!(world.pool.counters().stray, 1, "one answer for one request");
}

#[test]
fn the_reason_for_having_no_lease_is_told() {
    let mut world = World::new();
    assert_eq!(
        world.pool.take_lease(relay(9), [None; 2]),
        Err(NoLease::Unknown)
    );
    assert_eq!(
        world.pool.take_lease(relay(1), [None; 2]),
        Err(NoLease::NotConnected)
    );
    world.link(LINK, 1);
    assert_eq!(
        world.pool.take_lease(relay(1), [None; 2]),
        Err(NoLease::StockEmpty)
    );
    world.say(FromAgent::Draining);
    assert_eq!(
        world.pool.take_lease(relay(1), [None; 2]),
        Err(NoLease::Draining)
    );
    let counters = world.pool.counters();
    let seen = (
        counters.unknown_relay,
        counters.not_connected,
        counters.stock_empty,
        counters.draining,
    );
    assert_eq!(seen, (1, 1, 1, 1));
}

#[test]
fn an_agent_that_no_relay_names_is_closed() {
    let mut world = World::new();
    world.pool.handle_connected(LINK, "stranger", world.now);
    assert_eq!(world.commands(), [Command::Close(LINK, "unknown agent")]);
    assert_eq!(world.pool.counters().unknown_agent, 1);
}

#[test]
fn messages_out_of_order_close_the_link() {
    let mut world = World::new();
    world.pool.handle_connected(LINK, "relay1", world.now);
    world.say(FromAgent::Leases {
        leases: vec![lease(10)],
    });
    assert_eq!(
        world.commands(),
        [Command::Close(LINK, "the first message was not Hello")]
    );
    world.say(hello("relay1", 1));
    assert_eq!(world.commands(), [], "nothing more is heard on it");
    world.pool.handle_connected(LINK, "relay1", world.now);
    world.say(hello("relay2", 1));
    assert_eq!(world.commands(), [Command::Close(LINK, "unexpected Hello")]);
    assert_eq!(world.pool.counters().violations, 2);
    assert_eq!(
        world.pool.take_lease(relay(1), [None; 2]),
        Err(NoLease::NotConnected)
    );
}

#[test]
fn requests_without_an_answer_are_sent_again_to_the_same_agent() {
    let mut world = World::linked();
    let lease = world.pool.take_lease(relay(1), [None; 2]).expect("a lease");
    world.pool.bind(
        lease.session,
        Gate::default(),
        Gate::default(),
        "call-1",
        world.now,
    );
    let sent = world.commands();
    world.pool.handle_closed(LINK);
    world.link(LinkId(2), 1);
    let again: Vec<Command> = world.commands();
    let [Command::Send(LINK, first)] = &sent[..] else {
        panic!("one request")
    };
    assert!(
        again.contains(&Command::Send(LinkId(2), first.clone())),
        "{again:?}"
    );
}

#[test]
fn an_agent_of_another_epoch_has_lost_its_sessions() {
    let mut world = World::linked();
    let lease = world.pool.take_lease(relay(1), [None; 2]).expect("a lease");
    world.pool.bind(
        lease.session,
        Gate::default(),
        Gate::default(),
        "call-1",
        world.now,
    );
    world.commands();
    world.pool.handle_closed(LINK);
    world.events();
    world.link(LinkId(2), 2);
    assert_eq!(
        world.events(),
        [
            RelayEvent::SessionLost(lease.session),
            RelayEvent::AgentUp(String::from("relay1"))
        ]
    );
    let bound_again = world
        .commands()
        .iter()
        .any(|command| matches!(command, Command::Send(_, ToAgent::Bind { .. })));
    assert!(
        !bound_again,
        "a request of another epoch means nothing to it"
    );
}

#[test]
fn leases_of_a_closed_link_are_void() {
    let mut world = World::linked();
    world.pool.handle_closed(LINK);
    world.link(LinkId(2), 1);
    assert_eq!(
        world.pool.take_lease(relay(1), [None; 2]),
        Err(NoLease::StockEmpty)
    );
}

#[test]
fn a_lease_in_use_that_is_offered_again_stays_in_use() {
    let mut world = World::linked();
    let taken = world.pool.take_lease(relay(1), [None; 2]).expect("a lease");
    let (a, b) = (Gate::default(), Gate::default());
    world.pool.bind(taken.session, a, b, "call", world.now);
    world.pool.handle_closed(LINK);
    world.link(LinkId(2), 1);
    world.say(FromAgent::Leases {
        leases: vec![lease(10), lease(11)],
    });
    let next = world
        .pool
        .take_lease(relay(1), [None; 2])
        .expect("the other lease");
    assert_ne!(next.session, taken.session);
    assert_eq!(
        world.pool.take_lease(relay(1), [None; 2]),
        Err(NoLease::StockEmpty)
    );
}

#[test]
fn a_lease_that_is_offered_twice_is_given_out_once() {
    let mut world = World::linked();
    world.say(FromAgent::Leases {
        leases: vec![lease(10), lease(11), lease(11)],
    });
    assert!(world.pool.take_lease(relay(1), [None; 2]).is_ok());
    assert!(world.pool.take_lease(relay(1), [None; 2]).is_ok());
    assert_eq!(
        world.pool.take_lease(relay(1), [None; 2]),
        Err(NoLease::StockEmpty)
    );
}

#[test]
fn a_bind_that_a_lost_link_swallowed_is_counted_and_its_lease_is_used_again() {
    let mut world = World::linked();
    let taken = world.pool.take_lease(relay(1), [None; 2]).expect("a lease");
    let (a, b) = (Gate::default(), Gate::default());
    world.pool.bind(taken.session, a, b, "call", world.now);
    world.pool.handle_closed(LINK);
    world.now += REQUEST_DEADLINE;
    assert!(
        world
            .pool
            .poll_timeout()
            .is_some_and(|(at, _)| at <= world.now)
    );
    world.pool.handle_timeout(world.now);
    assert_eq!(world.pool.counters().expired, 1);
    world.events();

    world.link(LinkId(9), 1);
    world.say(FromAgent::Leases {
        leases: vec![lease(10)],
    });
    let lost = RelayEvent::SessionLost(taken.session);
    assert!(world.events().contains(&lost));
    assert_eq!(world.pool.counters().sessions_lost, 1);
    assert!(world.pool.take_lease(relay(1), [None; 2]).is_ok());
}

/// A BYE that another concentrator has got while our link was cut.
#[test]
fn a_session_that_ended_while_its_agent_was_not_linked_is_over() {
    let mut world = World::linked();
    let gone = world.take_and_bind();
    world.say(FromAgent::Leases {
        leases: vec![lease(11)],
    });
    let kept = world.take_and_bind();
    world.pool.handle_closed(LINK);
    world.now += Duration::from_secs(240);
    world.pool.handle_timeout(world.now);
    world.events();
    world.link(LinkId(2), 1);
    let mut asked = world.questions();
    asked.sort_unstable_by_key(|(_, session)| *session);
    let [(first, 10), (second, 11)] = asked[..] else {
        panic!("a question about each: {asked:?}");
    };
    world.say(unknown(first));
    world.say(FromAgent::Statistics {
        request: second,
        session: 11,
        stats: SessionStatistics::default(),
    });
    assert_eq!(
        world.events(),
        [
            RelayEvent::AgentUp("relay1".to_owned()),
            RelayEvent::EndedUnheard(gone)
        ]
    );
    assert!(world.pool.agents().any(|agent| agent.sessions == 1));
    let counters = world.pool.counters();
    assert_eq!((counters.unheard, counters.failed), (1, 0));
    // The other one's end is told.
    world.say(FromAgent::Ended {
        session: 11,
        stats: SessionStatistics::default(),
    });
    assert!(matches!(&world.events()[..], [RelayEvent::Ended(session, _)] if *session == kept));
}

#[test]
fn a_session_that_its_agent_has_never_heard_of_is_lost() {
    let mut world = World::linked();
    let taken = world.pool.take_lease(relay(1), [None; 2]).expect("a lease");
    let (a, b) = (Gate::default(), Gate::default());
    world.pool.handle_closed(LINK);
    world.pool.bind(taken.session, a, b, "call", world.now);
    world.now += REQUEST_DEADLINE;
    world.pool.handle_timeout(world.now);
    world.link(LinkId(2), 1);
    world.events();
    let [(request, 10)] = world.questions()[..] else {
        panic!("a question about it");
    };
    world.say(unknown(request));
    assert_eq!(world.events(), [RelayEvent::SessionLost(taken.session)]);
}

#[test]
fn an_agent_is_asked_about_few_sessions_at_a_time_and_about_all() {
    let mut world = World::linked();
    for session in 100..400 {
        world.say(FromAgent::Leases {
            leases: vec![lease(session)],
        });
        world.take_and_bind();
    }
    // A link that is lost in the middle of it begins again.
    for link in 2..4 {
        world.pool.handle_closed(world.link);
        world.link(LinkId(link), 1);
        let asked = world.questions();
        assert_eq!(asked.len(), 64);
        world.say(unknown(asked[0].0));
        assert_eq!(world.questions().len(), 1, "one answer, one more question");
    }
    // What has no answer in time makes room as well.
    world.now += REQUEST_DEADLINE;
    world.say(FromAgent::HeartbeatAck { seq: 0 });
    world.pool.handle_timeout(world.now);
    let mut open = world.questions();
    assert_eq!(open.len(), 64);
    let mut answered = 0;
    while let Some((request, session)) = open.pop() {
        answered += 1;
        world.say(FromAgent::Statistics {
            request,
            session,
            stats: SessionStatistics::default(),
        });
        open.extend(world.questions());
    }
    assert_eq!(answered, 298 - 64, "all but what was asked before");
    world.say(unknown(9_999));
    assert_eq!(world.questions(), []);
}

#[test]
fn a_newer_link_replaces_the_older_one() {
    let mut world = World::linked();
    world.link(LinkId(2), 1);
    assert!(
        world
            .commands()
            .contains(&Command::Close(LINK, "replaced by a newer link"))
    );
    world.pool.handle_closed(LINK);
    assert!(
        world.pool.agents().any(|agent| agent.up),
        "the old link's end changes nothing"
    );
}

#[test]
fn a_silent_agent_is_closed_after_three_missed_heartbeats() {
    let mut world = World::linked();
    let heartbeat = Settings::default().heartbeat;
    for _ in 0..3 {
        world.now += heartbeat;
        world.pool.handle_timeout(world.now);
        assert!(matches!(
            world.commands()[..],
            [Command::Send(LINK, ToAgent::Heartbeat { .. })]
        ));
    }
    world.now += heartbeat - Duration::from_millis(1);
    world.pool.handle_timeout(world.now);
    assert_eq!(world.commands(), []);
    world.now += Duration::from_millis(1);
    world.pool.handle_timeout(world.now);
    assert_eq!(world.commands(), [Command::Close(LINK, "silent")]);
}

#[test]
fn an_unanswered_request_is_given_up_at_its_deadline() {
    let mut world = World::linked();
    let lease = world.pool.take_lease(relay(1), [None; 2]).expect("a lease");
    world.pool.release(lease.session, world.now);
    world
        .pool
        .handle_timeout(world.now + REQUEST_DEADLINE - Duration::from_millis(1));
    assert_eq!(world.pool.counters().expired, 0);
    world.pool.handle_timeout(world.now + REQUEST_DEADLINE);
    assert_eq!(world.pool.counters().expired, 1);
}

#[test]
fn the_stock_is_bounded_whatever_an_agent_offers() {
    let mut world = World::linked();
    world.say(FromAgent::Leases {
        leases: (100..1000).map(lease).collect(),
    });
    let leases = world.pool.agents().map(|agent| agent.leases).max();
    assert_eq!(leases, Some(Settings::default().max_stock as usize * 2));
    assert_eq!(world.pool.counters().surplus_leases, 389);
}

#[test]
fn events_of_sessions_that_are_not_ours_are_only_counted() {
    let mut world = World::linked();
    world.events();
    world.say(FromAgent::MediaStarted {
        session: 777,
        side: Side::A,
    });
    assert_eq!(world.events(), []);
    assert_eq!(world.pool.counters().stray, 1);
}

#[test]
fn the_stock_follows_the_rate_of_calls_in_both_directions() {
    let mut world = World::linked();
    world.say(FromAgent::Leases {
        leases: (100..140).map(lease).collect(),
    });
    let mut asked = Vec::new();
    for _ in 0..40 {
        assert!(world.pool.take_lease(relay(1), [None; 2]).is_ok());
        asked.extend(world.stocks());
    }
    let [(request, 128)] = asked[..] else {
        panic!("40 in a second want a stock for 80: {asked:?}");
    };
    world.say(FromAgent::Done { request });
    world.say(FromAgent::Leases {
        leases: (200..328).map(lease).collect(),
    });
    assert_eq!(
        world.pool.agents().map(|agent| agent.wanted).max(),
        Some(128)
    );

    // Nobody calls any more.
    let mut shrunk = None;
    for _ in 0..240 {
        world.now += Duration::from_millis(500);
        world.say(FromAgent::HeartbeatAck { seq: 0 });
        world.pool.handle_timeout(world.now);
        shrunk = shrunk.or(world.stocks().pop());
    }
    let Some((request, 64)) = shrunk else {
        panic!("{shrunk:?}");
    };
    assert_eq!(world.released(), 0, "not before the agent has agreed");
    world.say(FromAgent::Done { request });
    assert_eq!(world.released(), 65, "128 and one left over, less 64");
    assert_eq!(
        world.pool.agents().map(|agent| agent.leases).max(),
        Some(64)
    );
    assert_eq!(world.pool.counters().leases_returned, 65);
}

#[test]
fn an_agent_without_ports_is_asked_again_later_and_nobody_waits_for_it() {
    let mut world = World::linked();
    let parties = [None; 2];
    assert!(world.pool.is_refilling(relay(1), parties));
    world.pool.expect(relay(1), 100);
    let stocks = world.stocks();
    let [(request, 256)] = stocks[..] else {
        panic!("{stocks:?}");
    };
    world.say(FromAgent::Failed {
        request,
        code: ErrorCode::NoPorts,
        text: String::new(),
    });
    assert!(!world.pool.is_refilling(relay(1), parties));
    assert_eq!(world.pool.counters().stock_refused, 1);
    for _ in 0..4 {
        world.now += Duration::from_millis(500);
        world.say(FromAgent::HeartbeatAck { seq: 0 });
        world.pool.handle_timeout(world.now);
    }
    assert_eq!(world.stocks().len(), 1);
    assert!(world.pool.is_refilling(relay(1), parties));
}

#[test]
fn what_an_agent_lacks_is_counted_by_its_name_and_shown_until_it_has_it() {
    let lacks = |world: &World| {
        let mut agents = world.pool.agents();
        agents
            .find(|agent| agent.name == "relay1")
            .and_then(|agent| agent.lacks)
    };
    for code in [
        ErrorCode::NoPorts,
        ErrorCode::BindFailed,
        ErrorCode::LimitReached,
        ErrorCode::Other(99),
    ] {
        let mut world = World::new();
        world.link(LINK, 1);
        world.commands();
        for _ in 0..3 {
            let refused = world.pool.take_lease(relay(1), [None; 2]);
            assert_eq!(refused, Err(NoLease::StockEmpty));
        }
        let stocks = world.stocks();
        let [(request, 64)] = stocks[..] else {
            panic!("it is asked once: {stocks:?}");
        };
        let text = String::new();
        world.say(FromAgent::Failed {
            request,
            code,
            text,
        });
        assert_eq!(lacks(&world), Some(code));
        let counters = world.pool.counters();
        let seen = [
            counters.no_ports,
            counters.bind_failed,
            counters.limit_reached,
        ];
        let number = code.number() as usize;
        let expected = [1, 2, 3].map(|of| u64::from(of == number));
        assert_eq!((seen, counters.stock_refused), (expected, 1));
        assert_eq!(
            world.pool.take_lease(relay(1), [None; 2]),
            Err(NoLease::StockEmpty)
        );
        assert_eq!(world.stocks(), [], "not before some time has passed");
        for _ in 0..4 {
            world.now += Duration::from_millis(500);
            world.say(FromAgent::HeartbeatAck { seq: 0 });
            world.pool.handle_timeout(world.now);
        }
        let stocks = world.stocks();
        let [(request, 64)] = stocks[..] else {
            panic!("{stocks:?}");
        };
        assert_eq!(lacks(&world), Some(code), "it has not said otherwise");
        world.say(FromAgent::Done { request });
        assert_eq!(lacks(&world), None);
    }
}

#[test]
fn an_agent_of_version_1_is_spoken_to_as_such() {
    let mut world = World::new();
    world.pool.handle_connected(LINK, "relay1", world.now);
    let FromAgent::Hello { name, epoch, .. } = hello("relay1", 1) else {
        panic!("a Hello");
    };
    world.say(FromAgent::Hello {
        version: 1,
        name,
        epoch,
        media_addresses: Vec::new(),
        software: String::new(),
    });
    let [Command::Send(LINK, ToAgent::Welcome { version: 1, .. })] = &world.commands()[..] else {
        panic!("a Welcome of version 1");
    };
    world.pool.expect(relay(1), 1000);
    assert_eq!(world.commands(), []);
}

#[test]
fn an_agent_that_lies_about_its_address_or_ports_loses_its_link() {
    let service: IpAddr = "198.51.100.1".parse().unwrap();
    let (good, elsewhere) = (lease(50), "10.0.9.9".parse().unwrap());
    let moved = |addr| Lease {
        a: SideAddr { addr, ..good.a },
        ..good
    };
    let low = Lease {
        b: SideAddr { rtp: 53, ..good.b },
        ..good
    };
    // Another session with the ports of the first.
    let twin = Lease {
        session: 51,
        ..good
    };
    for (bad, addresses, ports) in [
        (moved(service), 1, 0),
        (moved(IpAddr::V4(Ipv4Addr::LOCALHOST)), 1, 0),
        (moved("239.1.2.3".parse().unwrap()), 1, 0),
        (moved(elsewhere), 1, 0),
        (low, 0, 1),
        (twin, 0, 1),
    ] {
        let mut world = World::linked();
        world.pool.refuse_addresses(vec![service.into()]);
        let allowed = "10.0.1.0/24".parse().unwrap();
        world.pool.allow_addresses("relay1", vec![allowed]);
        world.events();
        world.say(FromAgent::Leases {
            leases: vec![good, bad],
        });
        assert!(
            matches!(world.commands()[..], [Command::Close(LINK, _)]),
            "{bad:?}"
        );
        let counters = world.pool.counters();
        assert_eq!(
            (counters.bad_addresses, counters.bad_ports),
            (addresses, ports)
        );
        assert_eq!(world.events(), [RelayEvent::AgentDown("relay1".to_owned())]);
        assert_eq!(
            world.pool.take_lease(relay(1), [None; 2]),
            Err(NoLease::NotConnected),
            "not even those before it"
        );
        world.say(FromAgent::Leases {
            leases: vec![lease(60)],
        });
        assert!(world.pool.agents().all(|agent| agent.leases == 0));
    }
}

#[test]
fn an_agent_whose_hello_names_an_address_that_is_not_its_own_is_not_taken() {
    let mut world = World::new();
    world
        .pool
        .refuse_addresses(vec!["198.51.100.1/32".parse().unwrap()]);
    world.pool.handle_connected(LINK, "relay1", world.now);
    world.say(FromAgent::Hello {
        version: VERSION,
        name: "relay1".to_owned(),
        epoch: 1,
        media_addresses: vec!["10.0.1.2".parse().unwrap(), "198.51.100.1".parse().unwrap()],
        software: String::new(),
    });
    assert!(matches!(world.commands()[..], [Command::Close(LINK, _)]));
    assert!(world.pool.agents().all(|agent| !agent.up));
    assert_eq!(world.pool.counters().bad_addresses, 1);
}

#[test]
fn a_quiet_agent_gives_no_leases_until_it_is_heard_again() {
    let mut world = World::linked();
    world.now += Settings::default().heartbeat * QUIET_AFTER;
    assert!(
        world
            .pool
            .poll_timeout()
            .is_some_and(|(at, _)| at <= world.now)
    );
    world.pool.handle_timeout(world.now);
    let taken = world.pool.take_lease(relay(1), [None; 2]);
    assert_eq!(taken, Err(NoLease::Quiet));
    world.say(FromAgent::HeartbeatAck { seq: 1 });
    assert!(world.pool.take_lease(relay(1), [None; 2]).is_ok());
    let counters = world.pool.counters();
    assert_eq!((counters.quiet, counters.quiet_relay), (1, 1));
}

/// TLS keeps others from replaying; an agent may still do it by mistake.
#[test]
fn what_an_agent_says_twice_or_in_the_wrong_order_changes_nothing() {
    let mut world = World::linked();
    let taken = world.pool.take_lease(relay(1), [None; 2]).expect("a lease");
    let (a, b) = (Gate::default(), Gate::default());
    world.pool.bind(taken.session, a, b, "call", world.now);
    let [Command::Send(_, ToAgent::Bind { request, .. })] = world.commands()[..] else {
        panic!("a Bind");
    };
    world.events();
    let ended = FromAgent::Ended {
        session: 10,
        stats: SessionStatistics::default(),
    };
    // The end before the answer to the Bind; then all of it again.
    world.say(ended.clone());
    world.say(FromAgent::Done { request });
    world.say(FromAgent::Done { request });
    world.say(ended);
    world.say(FromAgent::MediaTimeout {
        session: 10,
        silence: Silence::Idle,
    });
    assert!(matches!(world.events()[..], [RelayEvent::Ended(..)]));
    assert_eq!(world.pool.counters().stray, 3);
    assert!(world.pool.agents().all(|agent| agent.sessions == 0));
}

#[test]
fn gates_for_phones_are_as_strict_as_the_operator_wants_and_no_others() {
    for mode in [GateMode::Exact, GateMode::Subnet, GateMode::Any] {
        let mut world = World::linked();
        world.pool.settings.gate_mode = mode;
        let taken = world.pool.take_lease(relay(1), [None; 2]).expect("a lease");
        let phone = Gate {
            expected: vec!["192.0.2.1".parse().unwrap()],
            ..Gate::default()
        };
        let other_relay = Gate {
            mode: GateMode::Relay,
            ..phone.clone()
        };
        let (session, now) = (taken.session, world.now);
        world
            .pool
            .bind(session, phone.clone(), other_relay, "call", now);
        world.pool.update_gate(session, Side::A, phone, now);
        let commands = world.commands();
        let [
            Command::Send(_, ToAgent::Bind { a, b, .. }),
            Command::Send(_, ToAgent::Update { gate, .. }),
        ] = &commands[..]
        else {
            panic!("{commands:?}");
        };
        assert_eq!([a.mode, b.mode, gate.mode], [mode, GateMode::Relay, mode]);
    }
}

#[test]
fn an_agent_that_closes_its_link_and_stays_away_has_ended() {
    let gone = |world: &mut World| {
        let events = world.events();
        let gone = RelayEvent::AgentGone("relay1".to_owned());
        events.contains(&gone)
    };
    let mut world = World::linked();
    world.pool.handle_closed(LINK);
    world.now += GONE_AFTER - Duration::from_millis(1);
    world.pool.handle_timeout(world.now);
    assert!(!gone(&mut world));
    world.now += Duration::from_millis(1);
    assert_eq!(world.pool.poll_timeout().map(|(at, _)| at), Some(world.now));
    world.pool.handle_timeout(world.now);
    assert!(gone(&mut world));
    world.now += GONE_AFTER;
    world.pool.handle_timeout(world.now);
    assert!(!gone(&mut world), "it is said once");

    let mut back = World::linked();
    back.pool.handle_closed(LINK);
    back.link(LinkId(2), 1);
    back.now += GONE_AFTER;
    back.say(FromAgent::HeartbeatAck { seq: 0 });
    back.pool.handle_timeout(back.now);
    assert!(!gone(&mut back), "it has come back");

    // Nobody knows whether an agent lives that is not heard of.
    let mut cut = World::linked();
    cut.now += Duration::from_secs(10);
    cut.pool.handle_timeout(cut.now);
    cut.pool.handle_closed(LINK);
    cut.now += Duration::from_secs(60);
    cut.pool.handle_timeout(cut.now);
    assert!(!gone(&mut cut));
}

#[test]
fn two_relays_are_chained_over_a_family_that_both_have() {
    let mut world = World::linked();
    world.pool.handle_connected(LinkId(2), "relay2", world.now);
    world
        .pool
        .handle_message(LinkId(2), hello("relay2", 1), world.now);
    let v6 = |side: SideAddr, addr: &str| SideAddr {
        addr: addr.parse().unwrap(),
        ..side
    };
    let far = |session, a: bool, b: bool| {
        let lease = lease(session);
        let address = |v6| if v6 { "2001:db8:2::2" } else { "10.0.2.2" };
        Lease {
            session,
            a: v6(lease.a, address(a)),
            b: v6(lease.b, address(b)),
        }
    };
    let leases = vec![
        far(20, true, true),
        far(21, true, false),
        far(22, false, true),
    ];
    world
        .pool
        .handle_message(LinkId(2), FromAgent::Leases { leases }, world.now);
    let parties = ["192.0.2.1", "2001:db8::9"].map(|party| party.parse().ok());
    let chain = world
        .pool
        .take_chain(relay(1), relay(2), parties)
        .expect("a chain");
    assert_eq!(chain.session.session, 10);
    assert_eq!(chain.far.map(|far| far.session.session), Some(22));
    assert_eq!(
        chain.callee_side().addr,
        "2001:db8:2::2".parse::<IpAddr>().unwrap()
    );

    world.say(FromAgent::Leases {
        leases: vec![lease(11)],
    });
    let none = world.pool.take_chain(relay(1), relay(2), parties);
    assert_eq!(none, Err(NoLease::WrongFamily), "the first has IPv4 only");
    assert!(
        world.pool.take_lease(relay(1), [None; 2]).is_ok(),
        "and keeps its lease"
    );
    let same = world.pool.take_chain(relay(2), relay(2), parties);
    assert!(same.is_err(), "nobody is chained to itself");
}

struct World {
    pool: RelayPool,
    now: Instant,
    link: LinkId,
}

impl World {
    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    fn new() -> Self {
        let relays = [
            (relay(1), String::from("relay1")),
            (relay(2), String::from("relay2")),
        ];
        let pool = RelayPool::new("c1", relays, Settings::default());
        Self {
            pool,
            now: Instant::now(),
            link: LINK,
        }
    }

    /// One agent with one lease.
    fn linked() -> Self {
        let mut world = Self::new();
        world.link(LINK, 1);
        world.say(FromAgent::Leases {
            leases: vec![lease(10)],
        });
        world.commands();
        world
    }

    fn link(&mut self, link: LinkId, epoch: u64) {
        self.pool.handle_connected(link, "relay1", self.now);
        self.link = link;
        self.say(hello("relay1", epoch));
    }

    fn say(&mut self, message: FromAgent) {
        self.pool.handle_message(self.link, message, self.now);
    }

    fn commands(&mut self) -> Vec<Command> {
        std::iter::from_fn(|| self.pool.poll_command()).collect()
    }

    /// Stocks that were asked for, with the number of the request.
    fn stocks(&mut self) -> Vec<(u64, u32)> {
        let commands = self.commands().into_iter();
        commands
            .filter_map(|command| match command {
                Command::Send(_, ToAgent::Stock { request, stock }) => Some((request, stock)),
                Command::Send(..) | Command::Close(..) => None,
            })
            .collect()
    }

    /// Releases that were asked for.
    fn released(&mut self) -> usize {
        let commands = self.commands().into_iter();
        commands
            .filter(|command| matches!(command, Command::Send(_, ToAgent::Release { .. })))
            .count()
    }

    /// The next lease, in use.
    fn take_and_bind(&mut self) -> SessionRef {
        let taken = self.pool.take_lease(relay(1), [None; 2]).expect("a lease");
        let (a, b) = (Gate::default(), Gate::default());
        self.commands();
        self.pool.bind(taken.session, a, b, "call", self.now);
        let [Command::Send(_, ToAgent::Bind { request, .. })] = self.commands()[..] else {
            panic!("a Bind");
        };
        self.say(FromAgent::Done { request });
        taken.session
    }

    /// Sessions that were asked about, each with the number of its request.
    fn questions(&mut self) -> Vec<(u64, u64)> {
        let commands = self.commands().into_iter();
        commands
            .filter_map(|command| match command {
                Command::Send(_, ToAgent::Query { request, session }) => Some((request, session)),
                Command::Send(..) | Command::Close(..) => None,
            })
            .collect()
    }

    fn events(&mut self) -> Vec<RelayEvent> {
        std::iter::from_fn(|| self.pool.poll_event()).collect()
    }
}

fn relay(mark: u8) -> RelayId {
    RelayId {
        key: TunnelKey(1),
        mark: Mark::new(mark).expect("a mark"),
    }
}

/// Four ports of its own for each session.
fn lease(session: u64) -> Lease {
    let first = 30_000 + 4 * u16::try_from(session % 5_000).expect("a small number");
    let side = |rtp| SideAddr {
        addr: IpAddr::V4(Ipv4Addr::new(10, 0, 1, 2)),
        rtp,
        rtcp: rtp + 1,
    };
    Lease {
        session,
        a: side(first),
        b: side(first + 2),
    }
}

fn unknown(request: u64) -> FromAgent {
    FromAgent::Failed {
        request,
        code: ErrorCode::UnknownSession,
        text: String::new(),
    }
}

fn hello(name: &str, epoch: u64) -> FromAgent {
    FromAgent::Hello {
        version: VERSION,
        name: name.to_owned(),
        epoch,
        media_addresses: Vec::new(),
        software: String::new(),
    }
}
