//! Overload (RFC 3261 section 21.5.4): what is new is refused, what is in progress goes on.

#![expect(clippy::expect_used, reason = "a test may panic")]

use sip::message::{HeaderName, Message};

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
