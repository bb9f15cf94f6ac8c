//! Forking by q (RFC 3261 section 16.6).

use std::time::Duration;

use sip::message::HeaderName;

use crate::world::{ALICE, BOB, BOB_DESK, World, answer, find, invite, parse, request, summary};

const BOB_MOBILE: &str = "203.0.113.22:43000";

/// Two phones at q 0.9, one at q 0.2.
fn three_phones() -> World {
    let mut world = World::new();
    world.register_with_q(BOB_MOBILE, "sip:bob@192.168.1.4:5060", "mobile", "0.2");
    world.register_with_q(BOB, "sip:bob@192.168.1.2:5060", "bob", "0.9");
    world.register_with_q(BOB_DESK, "sip:bob@192.168.1.3:5060", "desk", "0.9");
    world
}

#[test]
fn targets_of_lower_q_are_tried_when_all_of_higher_q_have_failed() {
    let mut world = three_phones();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    assert_eq!(sent.len(), 3, "{:?}", summary(&sent));
    let (to_bob, to_desk) = (find(&sent, BOB), find(&sent, BOB_DESK));
    let sent = world.receive(BOB, &answer(&to_bob, 486, "Busy Here", "b1"));
    assert_eq!(summary(&sent), ["ACK -> bob"]);
    let sent = world.receive(BOB_DESK, &answer(&to_desk, 480, "Not Now", "b2"));
    assert_eq!(
        summary(&sent),
        ["ACK -> desk", "INVITE -> 203.0.113.22:43000"]
    );
    assert_eq!(world.media.count("ended"), 2);
    let to_mobile = parse(&sent[1]);
    let sent = world.receive(BOB_MOBILE, &answer(&to_mobile, 200, "OK", "b3"));
    assert_eq!(summary(&sent), ["200 -> alice"]);
    world.assert_all_forgotten();
    assert_eq!(world.media.open.len(), 1);
}

#[test]
fn the_best_failure_of_all_groups_is_sent_once_the_last_has_failed() {
    let mut world = three_phones();
    world.receive(ALICE, &invite("sip:bob@example.com"));
    let sent = world.advance(Duration::from_secs(33));
    let to_mobile = find(&sent, BOB_MOBILE);
    let sent = world.receive(BOB_MOBILE, &answer(&to_mobile, 503, "No", "b3"));
    assert_eq!(
        summary(&sent),
        ["ACK -> 203.0.113.22:43000", "408 -> alice"]
    );
    world.assert_all_forgotten();
}

#[test]
fn a_caller_who_cancelled_and_a_target_who_declined_end_the_search() {
    for declined in [false, true] {
        let mut world = three_phones();
        let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
        let (to_bob, to_desk) = (find(&sent, BOB), find(&sent, BOB_DESK));
        let status = if declined { 603 } else { 487 };
        if !declined {
            let cancel = request("CANCEL", "sip:bob@example.com", "z9hG4bKalice1", "");
            world.receive(ALICE, &cancel);
        }
        world.receive(BOB, &answer(&to_bob, status, "No", "b1"));
        let sent = world.receive(BOB_DESK, &answer(&to_desk, 487, "No", "b2"));
        assert_eq!(
            summary(&sent),
            [String::from("ACK -> desk"), format!("{status} -> alice")]
        );
        world.assert_all_forgotten();
    }
}

/// "301 Incompatible network address formats" (RFC 3261 section 20.43) in a 488: from a target that
/// media cannot reach, as its answer, while the others are tried.
#[test]
fn a_target_of_the_other_address_family_fails_cleanly_where_nothing_joins_them() {
    const BOB_V6: &str = "[2001:db8::20]:41000";
    let mut world = World::new();
    world.register_with_q(BOB_V6, "sip:bob@[2001:db8::20]", "v6", "1");
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let refused = find(&sent[1..], ALICE);
    assert_eq!(refused.status(), Some(488));
    let warning = refused.header(HeaderName::Warning).unwrap_or_default();
    assert!(warning.starts_with(b"301 "), "{refused:?}");
    assert_eq!(sent.len(), 2, "100 and 488 only");
    world.assert_all_forgotten();

    let mut world = World::with_bob();
    world.register_with_q(BOB_V6, "sip:bob@[2001:db8::20]", "v6", "1");
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let to_bob = find(&sent, BOB);
    let sent = world.receive(BOB, &answer(&to_bob, 200, "OK", "b1"));
    assert_eq!(find(&sent, ALICE).status(), Some(200));
}
