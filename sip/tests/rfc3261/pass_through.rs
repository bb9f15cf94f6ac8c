//! Methods that a proxy has nothing to do with but to pass them, within a dialog and outside of one:
//! PRACK (RFC 3262), UPDATE (RFC 3311), REFER (RFC 3515), SUBSCRIBE and NOTIFY (RFC 6665), MESSAGE
//! (RFC 3428), INFO (RFC 6086), PUBLISH (RFC 3903), and what nobody has heard of.
//!
//! "Future extensions may define new methods and header fields at any time. An element MUST NOT refuse
//! to proxy a request because it contains a method or header field it does not know about." (RFC 3261
//! section 16.3 step 1)

use sip::message::HeaderName;

use crate::text::{values, with_lines};
use crate::world::{ALICE, BOB, World, answer, find, in_dialog, invite, parse, request, summary};

const METHODS: [&str; 10] = [
    "PRACK",
    "UPDATE",
    "REFER",
    "SUBSCRIBE",
    "NOTIFY",
    "MESSAGE",
    "INFO",
    "PUBLISH",
    "OPTIONS",
    "FROBNICATE",
];

#[test]
fn each_passes_outside_of_a_dialog_and_its_answer_comes_back() {
    for method in METHODS {
        for status in [200, 202, 405, 489] {
            let mut world = World::with_bob();
            let message = request(method, "sip:bob@example.com", "z9hG4bKp", "Event: x\r\n");
            let sent = world.receive(ALICE, &message);
            assert_eq!(summary(&sent), [format!("{method} -> bob")]);
            let to_bob = parse(&sent[0]);
            let sent = world.receive(BOB, &answer(&to_bob, status, "Any", "b1"));
            assert_eq!(summary(&sent), [format!("{status} -> alice")], "{method}");
            world.assert_all_forgotten();
        }
    }
}

#[test]
fn each_passes_within_a_dialog_both_ways() {
    for method in METHODS {
        let mut world = World::with_bob();
        let (ok, _) = world.call();
        for (by_caller, from, to) in [(true, ALICE, "bob"), (false, BOB, "alice")] {
            let sent = world.receive(from, &in_dialog(method, 5, &ok, by_caller));
            assert_eq!(summary(&sent), [format!("{method} -> {to}")]);
            let there = parse(&sent[0]);
            assert_eq!(there.count(HeaderName::Route), 0, "our Route is taken off");
            let peer = sent[0].flow.peer.to_string();
            let sent = world.receive(&peer, &answer(&there, 200, "OK", "x"));
            assert_eq!(sent.len(), 1, "{method}");
            assert_eq!(sent[0].flow.peer.to_string(), from);
        }
        assert_eq!(world.media.open.len(), 1, "{method} does not end the call");
        world.assert_all_forgotten();
    }
}

/// A PRACK travels in the early dialog, whose route is in the provisional response (RFC 3262 section 4).
#[test]
fn a_reliable_provisional_response_and_its_prack_pass() {
    let mut world = World::with_bob();
    let came = with_lines(&invite("sip:bob@example.com"), "Supported: 100rel\r\n");
    let sent = world.receive(ALICE, &came);
    let to_bob = find(&sent, BOB);
    let lines = "Require: 100rel\r\nRSeq: 7\r\n";
    let early = with_lines(&answer(&to_bob, 183, "Progress", "b1"), lines);
    let sent = world.receive(BOB, &early);
    assert_eq!(summary(&sent), ["183 -> alice"]);
    let early = parse(&sent[0]);
    let prack = with_lines(&in_dialog("PRACK", 2, &early, true), "RAck: 7 1 INVITE\r\n");
    let sent = world.receive(ALICE, &prack);
    assert_eq!(summary(&sent), ["PRACK -> bob"]);
    let prack = parse(&sent[0]);
    assert_eq!(prack.header_spelled("RAck"), Some(b"7 1 INVITE".as_slice()));
    let sent = world.receive(BOB, &answer(&prack, 200, "OK", "b1"));
    assert_eq!(summary(&sent), ["200 -> alice"]);
    let sent = world.receive(BOB, &answer(&to_bob, 200, "OK", "b1"));
    assert_eq!(summary(&sent), ["200 -> alice"]);
    world.assert_all_forgotten();
}

/// A subscription is a dialog: the NOTIFY of its notifier comes back by the route of the SUBSCRIBE.
#[test]
fn a_notify_comes_back_by_the_route_of_its_subscribe() {
    let mut world = World::with_bob();
    let message = request(
        "SUBSCRIBE",
        "sip:bob@example.com",
        "z9hG4bKs",
        "Event: x\r\n",
    );
    let to_bob = parse(&world.receive(ALICE, &message)[0]);
    assert_eq!(values(&to_bob, HeaderName::RecordRoute).len(), 1);
    let sent = world.receive(BOB, &answer(&to_bob, 200, "OK", "b1"));
    let ok = parse(&sent[0]);
    let sent = world.receive(BOB, &in_dialog("NOTIFY", 1, &ok, false));
    assert_eq!(summary(&sent), ["NOTIFY -> alice"]);
    world.assert_all_forgotten();
}
