//! The proxy of RFC 3261 section 16 and its registrar, fed with whole messages: what comes in,
//! what goes out, in virtual time.

mod authentication;
mod branches;
mod forks;
mod next_hops;
mod order;
mod overload;
#[path = "../common/phones.rs"]
mod phones;
mod reconnects;
mod refusals;
mod relay_wait;
mod reveal;
mod weights;
#[path = "../common/world.rs"]
mod world;

mod model;
mod two_cores;

use std::time::Duration;

use sip::message::{HeaderName, Method};
use wire::mark::{Mark, RelayId};
use world::{ALICE, BOB, BOB_DESK, World, answer, in_dialog, invite, parse, request, summary};

#[test]
fn a_call_is_set_up_and_ended_through_the_flows_that_the_cookie_carries() {
    let mut world = World::with_bob();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    assert_eq!(summary(&sent), ["100 -> alice", "INVITE -> bob"]);
    let forwarded = parse(&sent[1]);
    assert_eq!(forwarded.request_uri(), b"sip:bob@192.168.1.2:5060");
    assert_eq!(forwarded.max_forwards(), Ok(Some(69)));
    assert_eq!(forwarded.vias().count(), 2);
    assert_eq!(forwarded.values(HeaderName::RecordRoute).count(), 1);

    let sent = world.receive(BOB, &answer(&forwarded, 180, "Ringing", "b1"));
    assert_eq!(summary(&sent), ["180 -> alice"]);
    let sent = world.receive(BOB, &answer(&forwarded, 200, "OK", "b1"));
    assert_eq!(summary(&sent), ["200 -> alice"]);
    let ok = parse(&sent[0]);
    assert_eq!(ok.vias().count(), 1);

    let sent = world.receive(ALICE, &in_dialog("ACK", 1, &ok, true));
    assert_eq!(summary(&sent), ["ACK -> bob"]);
    assert_eq!(parse(&sent[0]).count(HeaderName::Route), 0);

    let sent = world.receive(BOB, &in_dialog("BYE", 1, &ok, false));
    assert_eq!(summary(&sent), ["BYE -> alice"]);
    let bye = parse(&sent[0]);
    let sent = world.receive(ALICE, &answer(&bye, 200, "OK", "x"));
    assert_eq!(summary(&sent), ["200 -> bob"]);
    assert_eq!(
        world.media.log,
        [
            "place",
            "rewrite by Callee",
            "answered",
            "rewrite by Callee",
            "rewrite by Caller",
            "rewrite by Callee",
            "rewrite by Caller",
            "ended",
        ]
    );
}

#[test]
fn a_retransmitted_invite_is_absorbed_and_its_media_placed_once() {
    let mut world = World::with_bob();
    world.receive(ALICE, &invite("sip:bob@example.com"));
    let again = world.receive(ALICE, &invite("sip:bob@example.com"));
    assert_eq!(summary(&again), ["100 -> alice"]);
    assert_eq!(world.media.count("place"), 1);
}

#[test]
fn the_best_of_several_failures_reaches_the_caller_once_all_have_failed() {
    let mut world = World::with_bob();
    world.register(BOB_DESK, "sip:bob@192.168.1.3:5060", "desk");
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let (to_bob, to_desk) = (world::find(&sent, BOB), world::find(&sent, BOB_DESK));
    let sent = world.receive(BOB, &answer(&to_bob, 503, "Service Unavailable", "b1"));
    assert_eq!(summary(&sent), ["ACK -> bob"]);
    let sent = world.receive(BOB_DESK, &answer(&to_desk, 486, "Busy Here", "b2"));
    assert_eq!(summary(&sent), ["ACK -> desk", "486 -> alice"]);
}

#[test]
fn a_cancel_without_its_invite_goes_where_that_would_have_gone() {
    let mut world = World::with_bob();
    let cancel = request("CANCEL", "sip:bob@example.com", "z9hG4bKnobody", "");
    let sent = world.receive(ALICE, &cancel);
    assert_eq!(
        summary(&sent),
        ["200 -> alice", "CANCEL -> bob"],
        "\"It MUST statelessly forward the CANCEL request\" (RFC 3261 section 16.10)"
    );
    assert_eq!(world.proxy.counters().stateless_cancels, 1);
    world.assert_all_forgotten();
}

/// A CANCEL cannot be challenged, so whoever knows a branch could end a call that only rings.
#[test]
fn a_cancel_from_elsewhere_than_its_invite_is_refused() {
    let mut world = World::with_bob();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let to_bob = world::find(&sent, BOB);
    world.receive(BOB, &answer(&to_bob, 180, "Ringing", "b1"));
    let cancel = request("CANCEL", "sip:bob@example.com", "z9hG4bKalice1", "");
    let sent = world.receive("203.0.113.66:40000", &cancel);
    assert_eq!(summary(&sent), ["481 -> 203.0.113.66:40000"]);
    assert_eq!(world.proxy.counters().foreign_cancels, 1);
    world.advance(Duration::from_secs(40));
    world.mark = 2;
    let sent = world.receive("203.0.113.10:40999", &cancel);
    assert_eq!(
        summary(&sent),
        ["200 -> 203.0.113.10:40999", "CANCEL -> bob"],
        "another port of the same NAT, by another edge"
    );
}

#[test]
fn a_re_invite_is_cancelled_from_anywhere_with_the_cookie_of_its_dialog() {
    let mut world = World::with_bob();
    let (ok, _) = world.call();
    let again = in_dialog("INVITE", 2, &ok, true);
    let sent = world.receive(ALICE, &again);
    world.receive(BOB, &answer(&parse(&sent[1]), 180, "Ringing", "b1"));
    let cancel = String::from_utf8(again).expect("text");
    let cancel = cancel
        .replace("INVITE sip", "CANCEL sip")
        .replace("2 INVITE", "2 CANCEL");
    let moved = "203.0.113.77:40000";
    let sent = world.receive(moved, cancel.as_bytes());
    assert_eq!(
        summary(&sent),
        ["200 -> 203.0.113.77:40000", "CANCEL -> bob"]
    );
}

#[test]
fn an_invite_that_nobody_answers_is_a_408_and_a_message_is_silence() {
    let mut world = World::with_bob();
    world.receive(ALICE, &invite("sip:bob@example.com"));
    let sent = world.advance(Duration::from_secs(32));
    assert!(summary(&sent).contains(&String::from("408 -> alice")));

    let mut world = World::with_bob();
    world.receive(
        ALICE,
        &request("MESSAGE", "sip:bob@example.com", "z9hG4bKm1", ""),
    );
    let sent = world.advance(Duration::from_secs(40));
    assert!(
        !summary(&sent).contains(&String::from("408 -> alice")),
        "RFC 4320"
    );
    assert_eq!(world.proxy.contexts(), 0);
}

#[test]
fn requests_that_may_not_be_forwarded_are_answered_by_their_fault() {
    let mut world = World::with_bob();
    let cases = [
        ("sip:bob@example.com", "Proxy-Require: nosuch\r\n", "420"),
        ("sip:nobody@example.com", "", "404"),
        ("sip:bob@elsewhere.example", "", "403"),
        ("tel:+15551234", "", "416"),
    ];
    for (index, (uri, extra, status)) in cases.into_iter().enumerate() {
        let branch = format!("z9hG4bKcase{index}");
        let sent = world.receive(ALICE, &request("INVITE", uri, &branch, extra));
        assert_eq!(summary(&sent), [format!("{status} -> alice")], "{uri}");
    }
    let text =
        String::from_utf8(request("INVITE", "sip:bob@example.com", "z9hG4bKmf", "").to_vec())
            .expect("text")
            .replace("Max-Forwards: 70", "Max-Forwards: 0");
    assert_eq!(
        summary(&world.receive(ALICE, text.as_bytes())),
        ["483 -> alice"]
    );
}

#[test]
fn a_forged_cookie_routes_nothing() {
    let mut world = World::with_bob();
    let forged = "Route: <sip:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA@198.51.100.1:5060;lr>\r\n";
    let sent = world.receive(
        ALICE,
        &request("BYE", "sip:x@192.0.2.9", "z9hG4bKforged", forged),
    );
    assert_eq!(summary(&sent), ["403 -> alice"]);
    assert_eq!(world.proxy.counters().bad_cookies, 1);
}

#[test]
fn a_bye_by_another_edge_reaches_the_callee_and_is_counted_as_drift() {
    let mut world = World::with_bob();
    let (ok, _) = world.call();
    world.mark = 2;
    let sent = world.receive(ALICE, &in_dialog("BYE", 2, &ok, true));
    assert_eq!(summary(&sent), ["BYE -> bob"]);
    assert_eq!(world.proxy.counters().path_drift, 1);
}

#[test]
fn a_call_on_another_relay_than_its_callers_drifts_only_when_its_path_does() {
    let mut world = World::with_bob();
    world.media.elsewhere = world.hop(BOB).relay.map(|relay| RelayId {
        mark: Mark::new(9).expect("a mark"),
        ..relay
    });
    let (ok, _) = world.call();
    world.receive(ALICE, &in_dialog("INFO", 2, &ok, true));
    assert_eq!(world.proxy.counters().path_drift, 0);
    world.mark = 2;
    world.receive(ALICE, &in_dialog("BYE", 3, &ok, true));
    assert_eq!(world.proxy.counters().path_drift, 1);
}

#[test]
fn the_caller_is_known_by_its_tag_after_its_nat_rebinds() {
    let mut world = World::with_bob();
    let (ok, _) = world.call();
    let rebound = "203.0.113.10:40999";
    let sent = world.receive(rebound, &in_dialog("BYE", 2, &ok, true));
    assert_eq!(summary(&sent), ["BYE -> bob"]);
    let bye = parse(&sent[0]);
    let sent = world.receive(BOB, &answer(&bye, 200, "OK", "b1"));
    assert_eq!(
        sent[0].flow.peer.to_string(),
        rebound,
        "the answer goes where the request was from"
    );
}

#[test]
fn options_to_the_service_is_answered_here_and_promises_no_extension() {
    let mut world = World::with_bob();
    let sent = world.receive(
        ALICE,
        &request("OPTIONS", "sip:example.com", "z9hG4bKopt", ""),
    );
    assert_eq!(summary(&sent), ["200 -> alice"]);
    let answer = parse(&sent[0]);
    assert_eq!(answer.method(), Method::Options);
    assert_eq!(answer.count(HeaderName::Supported), 0);
}

#[test]
fn every_request_of_a_phone_refreshes_the_mark_of_its_binding() {
    let mut world = World::with_bob();
    assert_eq!(world.marks(), [1]);
    world.mark = 2;
    world.receive(
        BOB,
        &request("OPTIONS", "sip:example.com", "z9hG4bKopt", ""),
    );
    assert_eq!(world.marks(), [2]);
}
