//! Calls that come faster than their relay can prepare sessions wait for it, for a while; calls on two
//! relays.

#![expect(clippy::expect_used, reason = "a test may panic")]

use std::time::Duration;

use sip::hop::Transmit;
use sip::message::Message;

use crate::world::{ALICE, BOB, World, answer, find, in_dialog, invite, parse};

const PATIENCE: Duration = Duration::from_millis(300);

/// Bob is registered, and Alice's relay has no sessions.
fn short() -> World {
    let mut world = World::with_bob();
    world.media.short = Some((PATIENCE, world.hop(ALICE).relay.expect("a relay")));
    world
}

fn relay_has_sessions(world: &mut World) -> Vec<Transmit> {
    world.media.short = None;
    let now = world.now;
    world.proxy.handle_media_ready(&mut world.media, now);
    std::iter::from_fn(|| world.proxy.poll_transmit()).collect()
}

#[test]
fn a_call_waits_with_a_100_and_goes_on_when_the_relay_has_sessions() {
    let mut world = short();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    assert_eq!(sent.len(), 1);
    assert_eq!(find(&sent, ALICE).status(), Some(100));
    assert_eq!(world.proxy.waiting_for_media(), 1);
    assert_eq!(world.media.count("place"), 0, "nothing is taken yet");
    let again = world.receive(ALICE, &invite("sip:bob@example.com"));
    assert_eq!(
        find(&again, ALICE).status(),
        Some(100),
        "as for every INVITE"
    );

    let sent = relay_has_sessions(&mut world);
    assert_eq!(sent.len(), 1, "and no second 100");
    let to_bob = find(&sent, BOB);
    assert_eq!(world.media.count("place"), 1);
    let ok = world.receive(BOB, &answer(&to_bob, 200, "OK", "b1"));
    assert_eq!(find(&ok, ALICE).status(), Some(200));
    let counters = world.proxy.counters();
    assert_eq!((counters.media_waits, counters.media_waits_expired), (1, 0));
    assert_eq!(counters.calls, 1);
}

#[test]
fn past_its_deadline_a_call_goes_on_with_what_there_is() {
    let mut world = short();
    world.receive(ALICE, &invite("sip:bob@example.com"));
    let early = world.advance(PATIENCE - Duration::from_millis(1));
    assert!(early.is_empty());
    let sent = world.advance(Duration::from_millis(1));
    find(&sent, BOB);
    assert_eq!(world.media.count("place"), 1);
    assert_eq!(world.proxy.counters().media_waits_expired, 1);
    assert_eq!(world.proxy.waiting_for_media(), 0);
}

#[test]
fn a_relay_that_is_still_short_is_asked_once_for_all_who_wait() {
    let mut world = short();
    for number in 0..5 {
        let invite = String::from_utf8(invite("sip:bob@example.com")).expect("text");
        let other = invite
            .replace("branch=z9hG4bK", &format!("branch=z9hG4bK{number}"))
            .replace("Call-ID: ", &format!("Call-ID: {number}"));
        world.receive(ALICE, other.as_bytes());
    }
    assert_eq!(world.proxy.waiting_for_media(), 5);
    assert_eq!(world.media.count("wait 1 false"), 5);
    let now = world.now;
    world.proxy.handle_media_ready(&mut world.media, now);
    assert_eq!(world.media.count("wait 1 true"), 1);
    assert_eq!(relay_has_sessions(&mut world).len(), 5);
}

#[test]
fn a_cancel_ends_the_wait() {
    let mut world = short();
    let invite = invite("sip:bob@example.com");
    world.receive(ALICE, &invite);
    let cancel = Message::parse(invite.into())
        .expect("a message")
        .cancel_for();
    let sent = world.receive(ALICE, cancel.bytes());
    let mut statuses: Vec<_> = sent
        .iter()
        .filter_map(|sent| parse(sent).status())
        .collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 487]);
    assert!(relay_has_sessions(&mut world).is_empty());
    assert_eq!(world.media.count("place"), 0);
    world.assert_all_forgotten();
}

#[test]
fn nothing_but_a_new_call_waits() {
    let mut world = World::with_bob();
    let (ok, _) = world.call();
    world.media.short = Some((PATIENCE, world.hop(ALICE).relay.expect("a relay")));
    for method in ["INVITE", "OPTIONS", "BYE"] {
        let sent = world.receive(ALICE, &in_dialog(method, 2, &ok, true));
        find(&sent, BOB);
    }
    assert_eq!(world.proxy.waiting_for_media(), 0);
}

/// The core that sees the BYE may not have seen the call: the cookie is all that it knows.
#[test]
fn the_bye_of_a_call_on_two_relays_names_both_sessions() {
    let mut world = World::with_bob();
    world.media.far = world.hop(BOB).relay;
    let (ok, _) = world.call();
    let sent = world.receive(ALICE, &in_dialog("BYE", 2, &ok, true));
    let bye = find(&sent, BOB);
    assert_eq!(world.media.count("far 1001"), 0);
    world.receive(BOB, &answer(&bye, 200, "OK", "x"));
    let end = &world.media.log[world.media.log.len() - 2..];
    assert_eq!(end, ["far 1001", "ended"]);
}
