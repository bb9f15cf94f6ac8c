//! Overload (RFC 3261 section 21.5.4): what is new is refused, what is in progress goes on.

#![expect(clippy::expect_used, reason = "a test may panic")]

use std::time::Duration;

use sip::message::{HeaderName, Message};
use sip::proxy::routing::{Audience, Destination, Network, Route};

use crate::phones::{counters, guarded, register};
use crate::world::{ALICE, BOB, World, answer, find, in_dialog, invite, parse, request, summary};

fn retry_after_s(response: &Message) -> u32 {
    let value = response
        .header(HeaderName::RetryAfter)
        .expect("Retry-After");
    std::str::from_utf8(value)
        .expect("text")
        .parse()
        .expect("number")
}

/// A first REGISTER is challenged ahead of everything else, but not ahead of this, nor of what is wrong with it.
#[test]
fn a_first_register_is_refused_before_it_is_challenged() {
    let mut world = guarded();
    let sent = world.receive(
        ALICE,
        &register("alice", "z9hG4bK1", "Proxy-Require: x\r\n"),
    );
    assert_eq!(summary(&sent), ["420 -> alice"]);
    world.proxy.set_overloaded(true);
    let sent = world.receive(ALICE, &register("alice", "z9hG4bK2", ""));
    assert_eq!(summary(&sent), ["503 -> alice"]);
    assert_eq!(world.proxy.counters().shed, 1);
    assert_eq!(counters(&world).challenged, 0);
    world.proxy.set_overloaded(false);
    let sent = world.receive(ALICE, &register("alice", "z9hG4bK3", ""));
    assert_eq!(summary(&sent), ["401 -> alice"]);
    assert_eq!(counters(&world).challenged, 1);
    world.assert_all_forgotten();
}

#[test]
fn new_requests_are_refused_without_a_transaction_and_calls_in_progress_go_on() {
    let mut world = World::with_bob();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let to_bob = find(&sent, BOB);
    world.proxy.set_overloaded(true);

    let sent = world.receive(
        ALICE,
        &request("INVITE", "sip:bob@example.com", "z9hG4bKnew", ""),
    );
    assert_eq!(summary(&sent), ["503 -> alice"]);
    // "The server MAY indicate when the client should retry the request in a Retry-After header
    // field."
    assert!((5..15).contains(&retry_after_s(&parse(&sent[0]))));
    let sent = world.receive(
        ALICE,
        &request("ACK", "sip:bob@example.com", "z9hG4bKnew", ""),
    );
    assert_eq!(summary(&sent), Vec::<String>::new());
    assert_eq!(world.proxy.counters().shed, 1);

    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    assert_eq!(
        summary(&sent),
        ["100 -> alice"],
        "a retransmission is not new"
    );
    let sent = world.receive(BOB, &answer(&to_bob, 200, "OK", "b1"));
    let ok = parse(&sent[0]);
    let sent = world.receive(ALICE, &in_dialog("ACK", 1, &ok, true));
    assert_eq!(summary(&sent), ["ACK -> bob"]);
    let sent = world.receive(ALICE, &in_dialog("BYE", 2, &ok, true));
    let bye = find(&sent, BOB);
    let sent = world.receive(BOB, &answer(&bye, 200, "OK", "b1"));
    assert_eq!(summary(&sent), ["200 -> alice"]);

    world.proxy.set_overloaded(false);
    let sent = world.receive(
        ALICE,
        &request("INVITE", "sip:bob@example.com", "z9hG4bKlater", ""),
    );
    assert_eq!(summary(&sent), ["100 -> alice", "INVITE -> bob"]);
    world.assert_all_forgotten();
}

#[test]
fn the_last_tenth_of_the_table_is_for_calls_in_progress() {
    let mut world = World::with_bob();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let to_bob = find(&sent, BOB);
    let sent = world.receive(BOB, &answer(&to_bob, 200, "OK", "b1"));
    let ok = parse(&sent[0]);
    let mut refused = 0;
    for number in 0..2_000 {
        let branch = format!("z9hG4bKflood{number}");
        let sent = world.receive(ALICE, &request("OPTIONS", "sip:example.com", &branch, ""));
        refused += usize::from(summary(&sent) == ["503 -> alice"]);
    }
    let counts = world.proxy.transactions().counts();
    assert!((900..=901).contains(&counts.server), "{counts:?}");
    assert!(refused >= 1_099, "{refused}");
    let sent = world.receive(ALICE, &in_dialog("BYE", 2, &ok, true));
    assert_eq!(summary(&sent), ["BYE -> bob"]);
    world.assert_all_forgotten();
}

/// How many requests of a source are answered 200 before it gets 503.
fn until_refused(world: &mut World, from: &str, prefix: &str) -> Option<usize> {
    (0..500).find(|number| {
        let branch = format!("z9hG4bK{prefix}{number}");
        let message = request("OPTIONS", "sip:example.com", &branch, "");
        let message = String::from_utf8(message).expect("text");
        let message = message.replace("call-1", &format!("{prefix}-{number}"));
        let sent = world.receive(from, message.as_bytes());
        let status = parse(&sent[0]).status();
        assert!(matches!(status, Some(200 | 503)), "{status:?}");
        status == Some(503)
    })
}

fn limited(max_of_source: usize) -> World {
    let mut world = World::configured(|config| config.limits.max_of_source = max_of_source);
    world.register(BOB, "sip:bob@192.168.1.2:5060", "bob");
    world
}

/// A flood from one address leaves the table to the others (CVE-2021-41145).
#[test]
fn a_source_that_floods_is_refused_and_nobody_else_is() {
    let mut world = limited(100);
    let (ok, _) = world.call();
    assert_eq!(
        until_refused(&mut world, ALICE, "flood"),
        Some(88),
        "nine tenths, less the two of the call"
    );
    let sent = world.receive(
        ALICE,
        &request("OPTIONS", "sip:example.com", "z9hG4bKno", ""),
    );
    assert!((5..15).contains(&retry_after_s(&parse(&sent[0]))));
    let counters = world.proxy.counters();
    assert_eq!((counters.source_shed, counters.shed), (2, 0));
    // Another port is the same source; what is in progress goes on; others are served.
    let other_port = "203.0.113.10:40001";
    assert_eq!(until_refused(&mut world, other_port, "port"), Some(0));
    let sent = world.receive(ALICE, &in_dialog("BYE", 2, &ok, true));
    assert_eq!(summary(&sent), ["BYE -> bob"]);
    assert_eq!(
        until_refused(&mut world, BOB, "bob"),
        Some(89),
        "one of his REGISTER"
    );

    // Each transaction ends 64 * T1 after it began.
    world.advance(Duration::from_secs(33));
    assert_eq!(until_refused(&mut world, ALICE, "later"), Some(90));
    world.assert_all_forgotten();
}

/// A BYE or CANCEL needs a place as well, so there is an end for those who send them without a call.
#[test]
fn what_looks_like_a_dialog_has_a_bound_too() {
    let mut world = limited(100);
    let mut answers = Vec::new();
    for number in 0..150 {
        let method = if number % 2 == 0 { "BYE" } else { "CANCEL" };
        let uri = "sip:nobody@example.com";
        let message = request(
            method,
            uri,
            &format!("z9hG4bKf{number}"),
            "Proxy-Require: x\r\n",
        );
        answers.extend(world.receive(ALICE, &message));
        assert!(world.proxy.transactions().counts().server <= 101);
    }
    assert_eq!(answers.len(), 150);
    world.assert_all_forgotten();
}

/// The copies of a request count, so that few requests to many phones are not many for free.
#[test]
fn copies_of_a_request_are_its_sources() {
    let mut world = limited(100);
    for number in 0..9 {
        let desk = format!("sip:bob@192.168.1.{}", 3 + number);
        world.register(BOB, &desk, &format!("desk{number}"));
    }
    let mut forwarded = 0;
    for number in 0..20 {
        let branch = format!("z9hG4bKfork{number}");
        let sent = world.receive(
            ALICE,
            &request("INVITE", "sip:bob@example.com", &branch, ""),
        );
        forwarded += usize::from(sent.len() > 1);
    }
    assert_eq!(
        forwarded, 9,
        "eleven each; the ninth found less than ninety"
    );
    let source = ALICE.parse::<std::net::SocketAddr>().expect("address").ip();
    assert_eq!(world.proxy.transactions().count_of(source), 99);
    world.assert_all_forgotten();
}

#[test]
fn a_subscriber_of_ipv6_has_many_addresses_and_is_one_source() {
    let mut world = limited(50);
    assert_eq!(
        until_refused(&mut world, "[2001:db8::1]:5060", "one"),
        Some(45)
    );
    assert_eq!(
        until_refused(&mut world, "[2001:db8::2]:5060", "two"),
        Some(0)
    );
    let next = "[2001:db8:0:1::1]:5060";
    assert_eq!(until_refused(&mut world, next, "next"), Some(45));
}

#[test]
fn a_trunk_brings_the_calls_of_many() {
    let mut world = World::configured(|config| {
        config.limits.max_of_source = 50;
        config.routing.routes.push(Route {
            domain: None,
            prefix: Some(String::from("+")),
            sources: vec![Network {
                address: "203.0.113.10".parse().expect("address"),
                prefix: 32,
            }],
            audience: Audience::Known,
            to: Destination::Registrar,
            strip: 0,
            prepend: String::new(),
        });
    });
    assert_eq!(until_refused(&mut world, ALICE, "trunk"), None);
    assert_eq!(until_refused(&mut world, BOB, "other"), Some(45));
}
