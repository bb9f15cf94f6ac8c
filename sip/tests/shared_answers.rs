//! Answers to REGISTERs that wait for the other concentrators and for the disk, and calls to what others have
//! registered.
#![expect(clippy::expect_used, reason = "a test may panic")]

#[path = "common/world.rs"]
mod world;

use std::time::Duration;

use sip::cookie::Owner;
use sip::hop::ConnectionId;
use sip::proxy::sharing::Counters;
use sip::registrar::record::{Clock, Record, encode_version};
use sip::registrar::{Event, News};
use world::{ALICE, BOB, World, find, invite, request, summary};

const PATIENCE: Duration = Duration::from_millis(200);

#[test]
fn a_register_is_answered_when_the_others_and_the_disk_have_it() {
    let mut world = sharing(1, true);
    assert_eq!(summary(&register(&mut world, "a", "")), [""; 0]);
    let [number] = numbers(&mut world)[..] else {
        panic!("one change")
    };
    world.proxy.acknowledge(number, world.now);
    assert_eq!(summary(&world.drain()), [""; 0], "the disk has it not");
    world.proxy.kept(number, world.now);
    assert_eq!(summary(&world.drain()), ["200 -> alice"]);
    assert_eq!(world.proxy.held(), 0);
    let counters = Counters {
        acknowledged: 1,
        ..Counters::default()
    };
    assert_eq!(world.proxy.held_counters(), counters);
    // In the other order.
    register(&mut world, "b", "");
    let number = numbers(&mut world)[0];
    world.proxy.kept(number, world.now);
    assert_eq!(summary(&world.drain()), [""; 0], "the others have it not");
    world.proxy.acknowledge(number, world.now);
    assert_eq!(summary(&world.drain()), ["200 -> alice"]);
}

#[test]
fn after_its_time_a_register_is_answered_anyway_once_and_counted() {
    let mut world = sharing(1, false);
    register(&mut world, "a", "");
    let number = numbers(&mut world)[0];
    assert_eq!(summary(&world.advance(PATIENCE - MS)), [""; 0]);
    assert_eq!(
        summary(&register(&mut world, "a", "")),
        [""; 0],
        "the same again"
    );
    assert_eq!(summary(&world.advance(MS)), ["200 -> alice"]);
    world.proxy.acknowledge(number, world.now);
    assert_eq!(summary(&world.drain()), [""; 0]);
    assert_eq!(
        summary(&register(&mut world, "a", "")),
        ["200 -> alice"],
        "a retransmission"
    );
    assert_eq!(world.proxy.held_counters().unacknowledged, 1);
}

#[test]
fn what_changes_nothing_or_is_refused_does_not_wait() {
    let mut world = sharing(1, false);
    let fetch = request("REGISTER", "sip:example.com", "z9hG4bKf", "");
    let fetch =
        String::from_utf8_lossy(&fetch).replace("Contact: <sip:alice@192.168.1.2:5060>\r\n", "");
    assert_eq!(
        summary(&world.receive(ALICE, fetch.as_bytes())),
        ["200 -> alice"]
    );
    assert_eq!(
        summary(&register(&mut world, "brief", "Expires: 5\r\n")),
        ["423 -> alice"]
    );
    assert_eq!(world.proxy.held(), 0);
}

#[test]
fn each_of_several_answers_leaves_with_its_own_change() {
    let mut world = sharing(1, false);
    for id in ["a", "b", "c"] {
        register(&mut world, id, "");
    }
    let numbers = numbers(&mut world);
    assert_eq!(numbers.len(), 3);
    world.proxy.acknowledge(numbers[2], world.now);
    world.proxy.acknowledge(numbers[0], world.now);
    assert_eq!(world.drain().len(), 2);
    assert_eq!(world.proxy.held(), 2, "a gap");
    assert_eq!(world.advance(PATIENCE).len(), 1);
    assert_eq!(world.proxy.held(), 0);
}

#[test]
fn a_phone_that_registered_with_another_concentrator_is_called_through_this_one() {
    let mut first = sharing(1, false);
    let mut second = sharing(2, false);
    register_bob(&mut first);
    hand_over(&mut first, &mut second);
    let sent = second.receive(ALICE, &invite("sip:bob@example.com"));
    assert_eq!(find(&sent, BOB).request_uri(), b"sip:bob@192.168.1.2:5060");
}

#[test]
fn a_connection_of_another_concentrator_is_none_of_ours_with_the_same_count() {
    let ours = ConnectionId::first(2, Owner(5));
    let theirs = ConnectionId::first(1, Owner(5));
    assert_ne!(ours, theirs);
    assert_eq!((ours.concentrator(), theirs.concentrator()), (2, 1));
    let mut first = sharing(1, false);
    let mut second = sharing(2, false);
    let mut hop = first.hop(BOB);
    hop.flow.transport = sip::hop::Transport::Tcp;
    hop.flow.connection = Some(theirs);
    first.receive_from(&hop, bobs_register().as_bytes());
    hand_over(&mut first, &mut second);
    second.connection_closed(ours);
    assert_eq!(second.proxy.registrar().counts().bindings, 1);
    let sent = second.receive(ALICE, &invite("sip:bob@example.com"));
    let to_bob = sent
        .iter()
        .find(|sent| sent.flow.connection == Some(theirs));
    let flow = to_bob.expect("an INVITE").flow;
    // The transport has no such connection; a 503 of a branch becomes a 500 (RFC 3261 section 16.7).
    let sent = second.transport_error(&flow);
    assert_eq!(summary(&sent), ["500 -> alice"]);
}

const MS: Duration = Duration::from_millis(1);

fn sharing(id: u16, disk: bool) -> World {
    let mut world = World::new();
    let clock = Clock {
        at: world.now,
        unix_ms: 1_800_000_000_000,
    };
    world.proxy.share_registrations(id, clock, PATIENCE, disk);
    world
}

fn register(world: &mut World, id: &str, extra: &str) -> Vec<sip::hop::Transmit> {
    let branch = format!("z9hG4bKr{id}");
    let bytes = request("REGISTER", "sip:example.com", &branch, extra);
    let text = String::from_utf8_lossy(&bytes).replace("bob@", &format!("{id}@"));
    world.receive(ALICE, text.replace("call-1", id).as_bytes())
}

fn bobs_register() -> String {
    let bytes = request("REGISTER", "sip:example.com", "z9hG4bKbob", "");
    String::from_utf8_lossy(&bytes).replace("alice", "bob")
}

fn register_bob(world: &mut World) {
    world.receive(BOB, bobs_register().as_bytes());
}

/// The numbers of our own changes.
fn numbers(world: &mut World) -> Vec<u64> {
    std::iter::from_fn(|| world.proxy.poll_news())
        .map(|news| news.number)
        .collect()
}

/// What one has done comes to the other.
fn hand_over(from: &mut World, to: &mut World) {
    let clock = |world: &World| Clock {
        at: world.now,
        unix_ms: 1_800_000_000_000,
    };
    while let Some(News { event, .. }) = from.proxy.poll_news() {
        let Event::BindingAdded(user, binding) = event else {
            panic!("{event:?}")
        };
        let bytes = encode_version(&user, &binding, false, &clock(from));
        let record = Record::decode(&bytes, &clock(to)).expect("a record");
        to.proxy.merge(record, to.now);
    }
}
