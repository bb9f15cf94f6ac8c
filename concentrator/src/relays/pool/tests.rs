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
    assert_eq!(leases, Some(Settings::default().stock as usize * 2));
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

fn lease(session: u64) -> Lease {
    let side = |rtp| SideAddr {
        addr: IpAddr::V4(Ipv4Addr::LOCALHOST),
        rtp,
        rtcp: rtp + 1,
    };
    Lease {
        session,
        a: side(30_000),
        b: side(30_002),
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
