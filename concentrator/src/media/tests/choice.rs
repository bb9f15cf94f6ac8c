//! Which relays a call gets: stand-ins, pins, one or two of them, and the wait for leases.

use wire::relay_control::GateMode;

use super::*;
use crate::media::choice::{Pin, Pinned};

const AUDIO: &str = "audio 6000 RTP/AVP 0";
const ANSWER: &str = "audio 7000 RTP/AVP 0";
/// No session.
const NONE: [u64; 0] = [];

/// Three relays: 1 with the leases 100 and up, 2 with 500 and up, 3 with 900 and up.
fn three(anchor: Anchor, leases: [u64; 3]) -> World {
    let mut world = World::with_leases(RelayPolicy::Always, 0);
    world.calls.set_plan(Plan::new(anchor, RelayPolicy::Always));
    for (index, count) in leases.into_iter().enumerate() {
        let first = 100 + 400 * index as u64;
        let link = LinkId(1 + index as u64);
        if index > 0 {
            world.link(link, &format!("relay{}", index + 1));
        }
        world.offer_leases(link, first..first + count);
    }
    world.said();
    world
}

fn chosen(world: &mut World) -> Option<u64> {
    let placed = world.place(&offer(&[AUDIO]));
    placed.session.map(|session| session.session)
}

fn with_plan(world: &mut World, change: impl FnOnce(&mut Plan)) {
    let mut plan = Plan::new(Anchor::Caller, RelayPolicy::Always);
    change(&mut plan);
    world.calls.set_plan(plan);
}

#[test]
fn stand_ins_are_tried_in_their_order_before_the_other_partys_relay() {
    let mut world = three(Anchor::Caller, [0, 1, 1]);
    with_plan(&mut world, |plan| {
        plan.stand_ins.insert(relay(1), vec![relay(9), relay(3)]);
    });
    assert_eq!(chosen(&mut world), Some(900), "9 is nobody's, 3 has one");
    assert_eq!(chosen(&mut world), Some(500), "the callee's relay at last");
    assert_eq!(chosen(&mut world), None);
    assert_eq!(world.calls.counters().fallback, 2);
    assert_eq!(world.calls.counters().unplaced, 1);
}

#[test]
fn a_relay_that_is_down_or_drains_costs_a_call_nothing_but_its_place() {
    let mut world = three(Anchor::Caller, [4, 4, 4]);
    with_plan(&mut world, |plan| {
        plan.stand_ins.insert(relay(1), vec![relay(3)]);
    });
    assert_eq!(chosen(&mut world), Some(100));
    let pool = &mut world.calls.relays;
    pool.handle_message(LinkId(1), FromAgent::Draining, world.now);
    assert_eq!(chosen(&mut world), Some(900));
    world.calls.relays.handle_closed(LinkId(3));
    assert_eq!(chosen(&mut world), Some(500));
}

#[test]
fn a_pin_of_an_account_names_its_relay_whatever_the_mark() {
    for (account, expected) in [
        ("alice@example.com", 900),
        ("bob@example.com", 100),
        ("Alice@example.com", 100),
        ("alice@example.net", 100),
    ] {
        let mut world = three(Anchor::Caller, [1, 1, 1]);
        with_plan(&mut world, |plan| {
            let pin = Pin {
                relay: Some(relay(3)),
                ..Pin::default()
            };
            plan.pins.insert(Pinned::Account(account.to_owned()), pin);
        });
        assert_eq!(chosen(&mut world), Some(expected), "{account}");
    }
    // Bob is called: his pin counts where the callee's relay carries the call.
    let mut world = three(Anchor::Callee, [1, 1, 1]);
    with_plan(&mut world, |plan| {
        let pin = Pin {
            relay: Some(relay(3)),
            anchor: Some(Anchor::Callee),
            ..Pin::default()
        };
        plan.pins
            .insert(Pinned::Account("bob@example.com".to_owned()), pin);
    });
    assert_eq!(chosen(&mut world), Some(900));
    assert_eq!(world.calls.counters().pinned, 1);
}

#[test]
fn a_pin_of_a_trunk_decides_about_anchor_and_policy() {
    let pinned = |pin: Pin| {
        let mut world = three(Anchor::Caller, [1, 1, 1]);
        with_plan(&mut world, |plan| {
            plan.pins.insert(Pinned::Trunk("carrier".to_owned()), pin);
        });
        let (request, from, to) = (message(&offer(&[AUDIO])), hop(CALLER, 1), hop(CALLEE, 2));
        let call = NewCall {
            request: &request,
            from: &from,
            to: &to.flow,
            to_relay: to.relay,
            contact: b"",
            trunks: [None, Some("carrier")],
        };
        world.calls.place(&call, world.now)
    };
    let callee = pinned(Pin {
        anchor: Some(Anchor::Callee),
        ..Pin::default()
    });
    assert_eq!(callee.session.map(|session| session.session), Some(500));
    let never = pinned(Pin {
        policy: Some(RelayPolicy::Never),
        ..Pin::default()
    });
    assert_eq!(never, Placement::default());
}

#[test]
fn with_both_each_party_is_told_its_own_edges_relay() {
    let mut world = three(Anchor::Both, [2, 2, 0]);
    let placed = world.place(&offer(&[AUDIO]));
    let session = placed.session.expect("a session");
    let far = placed.far.expect("a second session");
    assert_eq!((session.session, session.relay), (100, relay(1)));
    assert_eq!((far.session, far.relay), (500, relay(2)));
    let offered = text(placed.body.expect("a new body"));
    assert!(
        offered.contains("m=audio 31602 "),
        "side B of 500: {offered}"
    );
    let answer = world.rewrite(session, Party::Callee, &offer(&[ANSWER]));
    let answer = text(answer.expect("a new body"));
    assert!(answer.contains("m=audio 30000 "), "side A of 100: {answer}");
    assert_eq!(world.calls.counters().chained, 1);
}

#[test]
fn between_two_relays_each_gate_is_for_exactly_the_other() {
    let mut world = three(Anchor::Both, [2, 2, 0]);
    let session = world.place(&offer(&[AUDIO])).session.expect("a session");
    let binds: Vec<(u64, Gate, Gate)> = world
        .said()
        .into_iter()
        .filter_map(|message| match message {
            ToAgent::Bind { session, a, b, .. } => Some((session, a, b)),
            _ => None,
        })
        .collect();
    let [(100, near_a, near_b), (500, far_a, far_b)] = &binds[..] else {
        panic!("{binds:?}");
    };
    let other = |port| Gate {
        expected: vec![ip("10.0.1.2")],
        port: Some(port),
        mode: GateMode::Relay,
        payload: Payload::Rtp,
        held: false,
    };
    assert_eq!((near_b, far_a), (&other(31_600), &other(30_002)));
    assert_eq!(near_a.expected, [ip(CALLER), ip("192.168.1.10")]);
    assert_eq!(far_b.expected, [ip(CALLEE)]);

    world.rewrite(session, Party::Callee, &offer(&[ANSWER]));
    let said = world.said();
    let [
        ToAgent::Update {
            session: 500,
            side: Side::B,
            ..
        },
    ] = &said[..]
    else {
        panic!("only the callee's side has news: {said:?}");
    };
}

#[test]
fn a_fax_opens_the_way_between_two_relays_too() {
    let mut world = three(Anchor::Both, [2, 2, 0]);
    let session = world.place(&offer(&[AUDIO])).session.expect("a session");
    world.rewrite(session, Party::Callee, &offer(&[ANSWER]));
    world.said();
    world.rewrite(session, Party::Caller, &offer(&["image 6000 udptl t38"]));
    let opened: Vec<(u64, Side)> = world
        .said()
        .into_iter()
        .filter_map(|message| match message {
            ToAgent::Update {
                session,
                side,
                gate,
                ..
            } if gate.payload == Payload::Datagrams => Some((session, side)),
            _ => None,
        })
        .collect();
    let all = [
        (100, Side::A),
        (500, Side::B),
        (100, Side::B),
        (500, Side::A),
    ];
    assert_eq!(opened, all);
}

#[test]
fn the_end_of_a_call_or_of_one_half_releases_both_relays() {
    let mut world = three(Anchor::Both, [2, 2, 0]);
    let lines = [AUDIO, "video 6002 RTP/AVP 96"];
    let session = world.place(&offer(&lines)).session.expect("a session");
    world.said();
    let far_video = SessionRef {
        relay: relay(2),
        session: 501,
    };
    // An event is what tells of it.
    let started = FromAgent::MediaStarted {
        session: 501,
        side: Side::B,
    };
    world
        .calls
        .relays
        .handle_message(LinkId(2), started, world.now);
    world.calls.session_gone(far_video);
    assert_eq!(world.released(), [101], "its other half, and nothing else");
    world.calls.ended(session, world.now);
    assert_eq!(world.released(), [100, 500]);
    assert!(world.calls.calls.is_empty() && world.calls.call_of.is_empty());
}

#[test]
fn with_both_a_call_passes_one_relay_where_there_is_only_one() {
    // The callee's is down, the caller's is down, both parties have the same.
    for (leases, expected, same) in [
        ([1, 0, 0], 100, false),
        ([0, 1, 0], 500, false),
        ([1, 0, 0], 100, true),
    ] {
        let mut world = three(Anchor::Both, leases);
        if same {
            let mut plan = Plan::new(Anchor::Both, RelayPolicy::Always);
            let pin = Pin {
                relay: Some(relay(1)),
                ..Pin::default()
            };
            plan.pins
                .insert(Pinned::Account("bob@example.com".to_owned()), pin);
            world.calls.set_plan(plan);
        }
        let placed = world.place(&offer(&[AUDIO]));
        assert_eq!(
            placed.session.map(|session| session.session),
            Some(expected)
        );
        assert_eq!(placed.far, None);
        assert_eq!(world.calls.counters().unchained, u64::from(!same));
        assert_eq!(world.calls.relays.counters().leases_taken, 1);
    }
}

#[test]
fn a_stand_in_takes_its_place_in_a_chain() {
    let mut world = three(Anchor::Both, [1, 0, 1]);
    let mut plan = Plan::new(Anchor::Both, RelayPolicy::Always);
    plan.stand_ins.insert(relay(2), vec![relay(3)]);
    world.calls.set_plan(plan);
    let placed = world.place(&offer(&[AUDIO]));
    assert_eq!(placed.session.map(|session| session.session), Some(100));
    assert_eq!(placed.far.map(|far| far.session), Some(900));
    assert_eq!(world.calls.counters().fallback, 1);
}

#[test]
fn later_lines_of_a_chained_call_pass_the_same_two_relays() {
    let mut world = three(Anchor::Both, [2, 2, 2]);
    let session = world.place(&offer(&[AUDIO])).session.expect("a session");
    let lines = [AUDIO, "video 6002 RTP/AVP 96"];
    let body = world.rewrite(session, Party::Caller, &offer(&lines));
    let body = text(body.expect("a new body"));
    assert!(body.contains("m=video 31606 "), "side B of 501: {body}");
}

/// The session lives on at the relay; the cookie in the BYE is all that is left of the call here.
#[test]
fn after_a_restart_the_bye_releases_what_its_cookie_names() {
    let mut world = three(Anchor::Both, [1, 1, 0]);
    let bye = sip_message("BYE sip:x@example.com SIP/2.0", "BYE", b"");
    let of = |mark, session| SessionRef {
        relay: relay(mark),
        session,
    };
    world.calls.hung_up_far(of(2, 77), world.now);
    world
        .calls
        .hung_up(&bye, Party::Caller, of(1, 66), world.now);
    assert_eq!(world.released(), [66, 77]);
    assert_eq!(world.calls.counters().released_by_cookie, 2);

    let placed = world.place(&offer(&[AUDIO]));
    let (session, far) = (placed.session.expect("one"), placed.far.expect("two"));
    world.calls.answered(session, world.now);
    world.said();
    world.calls.hung_up_far(far, world.now);
    world.calls.hung_up(&bye, Party::Caller, session, world.now);
    assert_eq!(world.released(), [100, 500], "each once, where it is known");
}

#[test]
fn a_relays_own_address_in_an_sdp_opens_no_gate() {
    let mut world = World::with_leases(RelayPolicy::Always, 0);
    world.calls.relays.handle_closed(LinkId(1));
    world
        .calls
        .relays
        .handle_connected(LinkId(1), "relay1", world.now);
    let hello = FromAgent::Hello {
        version: VERSION,
        name: "relay1".to_owned(),
        epoch: 1,
        media_addresses: vec![ip("10.0.1.2")],
        software: String::new(),
    };
    world
        .calls
        .relays
        .handle_message(LinkId(1), hello, world.now);
    world.offer_leases(LinkId(1), 100..101);
    world.said();
    let hostile = text(offer(&[AUDIO])).replace("192.168.1.10", "10.0.1.2");
    world.place(hostile.as_bytes()).session.expect("a session");
    let said = world.said();
    let Some(ToAgent::Bind { a, .. }) = said.last() else {
        panic!("{said:?}");
    };
    assert_eq!(a.expected, [ip(CALLER)]);
    assert_eq!(world.calls.counters().hostile_addresses, 1);
}

/// Asks whether a call of this many lines must wait for its relay; the first time.
fn must_wait(world: &mut World, lines: &[&str], branches: usize) -> Option<(Instant, RelayId)> {
    let (request, from, to) = (message(&offer(lines)), hop(CALLER, 1), hop(CALLEE, 2));
    let call = NewCall {
        request: &request,
        from: &from,
        to: &to.flow,
        to_relay: to.relay,
        contact: b"",
        trunks: [None; 2],
    };
    world.calls.wait_until(&call, branches, false, world.now)
}

#[test]
fn a_call_waits_for_its_relay_while_that_has_too_few_leases_and_will_have_more() {
    let mut world = three(Anchor::Caller, [3, 4, 0]);
    assert!(!world.calls.may_wait(), "unless it shall");
    world.calls.set_patience(Duration::from_millis(300));
    assert!(world.calls.may_wait());
    let until = Some((world.now + Duration::from_millis(300), relay(1)));
    let two = [AUDIO, "video 6002 RTP/AVP 96"];
    assert_eq!(must_wait(&mut world, &two, 1), None);
    assert_eq!(
        must_wait(&mut world, &two, 2),
        until,
        "each branch takes its own"
    );
    world.offer_leases(LinkId(1), 103..104);
    assert_eq!(must_wait(&mut world, &two, 2), None);
    world
        .calls
        .relays
        .handle_message(LinkId(1), FromAgent::Draining, world.now);
    assert_eq!(must_wait(&mut world, &two, 2), None, "it will have no more");
    assert_eq!(world.released(), NONE);
}

#[test]
fn nobody_waits_for_a_relay_that_is_not_there_or_not_needed() {
    let mut world = three(Anchor::Caller, [0, 4, 0]);
    world.calls.set_patience(Duration::from_millis(300));
    assert!(must_wait(&mut world, &[AUDIO], 1).is_some());
    with_plan(&mut world, |plan| plan.policy = RelayPolicy::Never);
    assert_eq!(must_wait(&mut world, &[AUDIO], 1), None);
    with_plan(&mut world, |_| {});
    world.calls.relays.handle_closed(LinkId(1));
    assert_eq!(must_wait(&mut world, &[AUDIO], 1), None);
    assert_eq!(chosen(&mut world), Some(500));
}

#[test]
fn with_both_a_call_waits_for_whichever_relay_is_short() {
    for (leases, short) in [([0, 4, 0], 1), ([4, 0, 0], 2)] {
        let mut world = three(Anchor::Both, leases);
        world.calls.set_patience(Duration::from_millis(300));
        let waits = must_wait(&mut world, &[AUDIO], 1);
        assert_eq!(waits.map(|(_, relay)| relay), Some(relay(short)));
    }
}
