//! The proxy of RFC 3261 section 16 and its registrar, fed with whole messages: what comes in,
//! what goes out, in virtual time.

mod authentication;
mod branches;
mod forks;
#[path = "../common/world.rs"]
mod world;

use std::time::Duration;

use sip::message::{HeaderName, Method};
use sip::proxy::TIMER_C;
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
fn the_first_answer_of_two_contacts_wins_and_the_other_is_cancelled() {
    let mut world = World::with_bob();
    world.register(BOB_DESK, "sip:bob@192.168.1.3:5060", "desk");
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    assert_eq!(sent.len(), 3);
    let (to_bob, to_desk) = (world::find(&sent, BOB), world::find(&sent, BOB_DESK));
    world.receive(BOB, &answer(&to_bob, 180, "Ringing", "b1"));
    world.receive(BOB_DESK, &answer(&to_desk, 180, "Ringing", "b2"));
    let sent = world.receive(BOB, &answer(&to_bob, 200, "OK", "b1"));
    assert_eq!(summary(&sent), ["200 -> alice", "CANCEL -> desk"]);
    let cancel = parse(&sent[1]);
    assert_eq!(
        cancel.top_via().expect("Via").branch(),
        to_desk.top_via().expect("Via").branch(),
        "a CANCEL carries the branch of its INVITE"
    );
    world.receive(BOB_DESK, &answer(&cancel, 200, "OK", "b2"));
    let sent = world.receive(BOB_DESK, &answer(&to_desk, 487, "Request Terminated", "b2"));
    assert_eq!(
        summary(&sent),
        ["ACK -> desk"],
        "the caller has its answer already"
    );
    assert_eq!(
        world.media.count("ended"),
        1,
        "the loser's session is given back"
    );
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
fn a_503_from_the_only_target_becomes_a_500() {
    let mut world = World::with_bob();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let to_bob = world::find(&sent, BOB);
    let sent = world.receive(BOB, &answer(&to_bob, 503, "Service Unavailable", "b1"));
    assert_eq!(summary(&sent), ["ACK -> bob", "500 -> alice"]);
}

#[test]
fn a_6xx_cancels_the_other_branches_and_wins() {
    let mut world = World::with_bob();
    world.register(BOB_DESK, "sip:bob@192.168.1.3:5060", "desk");
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let (to_bob, to_desk) = (world::find(&sent, BOB), world::find(&sent, BOB_DESK));
    world.receive(BOB_DESK, &answer(&to_desk, 180, "Ringing", "b2"));
    let sent = world.receive(BOB, &answer(&to_bob, 603, "Decline", "b1"));
    assert_eq!(summary(&sent), ["ACK -> bob", "CANCEL -> desk"]);
    let sent = world.receive(BOB_DESK, &answer(&to_desk, 487, "Request Terminated", "b2"));
    assert_eq!(summary(&sent), ["ACK -> desk", "603 -> alice"]);
}

#[test]
fn a_cancel_waits_for_the_first_provisional_response() {
    let mut world = World::with_bob();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let to_bob = world::find(&sent, BOB);
    let cancel = request("CANCEL", "sip:bob@example.com", "z9hG4bKalice1", "");
    let sent = world.receive(ALICE, &cancel);
    assert_eq!(summary(&sent), ["200 -> alice"]);
    let sent = world.receive(BOB, &answer(&to_bob, 100, "Trying", ""));
    assert_eq!(summary(&sent), ["CANCEL -> bob"]);
    let sent = world.receive(BOB, &answer(&to_bob, 487, "Request Terminated", "b1"));
    assert_eq!(summary(&sent), ["ACK -> bob", "487 -> alice"]);
    assert_eq!(world.media.count("ended"), 1);
}

#[test]
fn a_cancel_without_its_invite_is_answered_481() {
    let mut world = World::with_bob();
    let cancel = request("CANCEL", "sip:bob@example.com", "z9hG4bKnobody", "");
    assert_eq!(summary(&world.receive(ALICE, &cancel)), ["481 -> alice"]);
}

#[test]
fn timer_c_cancels_a_branch_that_rings_too_long() {
    let mut world = World::with_bob();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let to_bob = world::find(&sent, BOB);
    world.advance(Duration::from_secs(1));
    world.receive(BOB, &answer(&to_bob, 180, "Ringing", "b1"));
    let sent = world.advance(TIMER_C - Duration::from_millis(1));
    assert_eq!(summary(&sent), Vec::<String>::new());
    let sent = world.advance(Duration::from_millis(1));
    assert_eq!(summary(&sent)[..1], ["CANCEL -> bob"]);
    let sent = world.advance(Duration::from_secs(32));
    assert!(
        summary(&sent).contains(&String::from("408 -> alice")),
        "{:?}",
        summary(&sent)
    );
    assert_eq!(world.media.count("ended"), 1);
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
        summary(&sent).iter().all(|line| line == "MESSAGE -> bob"),
        "RFC 4320: no 408"
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
fn two_transports_make_two_record_routes_and_both_are_taken_off_again() {
    let mut world = World::with_bob();
    world.tcp = true;
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let to_bob = world::find(&sent, BOB);
    let routes: Vec<String> = to_bob
        .values(HeaderName::RecordRoute)
        .map(|value| String::from_utf8_lossy(&value).into_owned())
        .collect();
    assert_eq!(routes.len(), 2);
    assert!(
        !routes[0].contains("transport"),
        "the callee's side is on top: {routes:?}"
    );
    assert!(routes[1].contains("transport=tcp"), "{routes:?}");
    world.tcp = false;
    let sent = world.receive(BOB, &answer(&to_bob, 200, "OK", "b1"));
    let ok = parse(&sent[0]);
    world.tcp = true;
    let sent = world.receive(ALICE, &in_dialog("ACK", 1, &ok, true));
    assert_eq!(summary(&sent), ["ACK -> bob"]);
    assert_eq!(parse(&sent[0]).count(HeaderName::Route), 0);
}

#[test]
fn a_strict_router_before_us_is_undone() {
    let mut world = World::with_bob();
    let (ok, _) = world.call();
    let route = ok
        .values(HeaderName::RecordRoute)
        .next()
        .expect("our Record-Route")
        .into_owned();
    let own = String::from_utf8_lossy(&route)
        .trim_matches(['<', '>'])
        .to_owned();
    let text = String::from_utf8(in_dialog("BYE", 2, &ok, true).to_vec()).expect("text");
    let contact = "sip:bob@192.168.1.2:5060";
    let strict = text
        .replace(&format!("BYE {contact} "), &format!("BYE {own} "))
        .replace(&format!("Route: <{own}>"), &format!("Route: <{contact}>"));
    assert_ne!(strict, text);
    let sent = world.receive(ALICE, strict.as_bytes());
    assert_eq!(summary(&sent), ["BYE -> bob"]);
    assert_eq!(parse(&sent[0]).request_uri(), contact.as_bytes());
}

#[test]
fn an_unknown_method_passes_and_what_is_not_understood_stays_as_it_was() {
    let mut world = World::with_bob();
    let odd = "X-Folded: one\r\n  two\r\nx-ODD-Case:   kept  \r\n";
    let sent = world.receive(
        ALICE,
        &request("FROBNICATE", "sip:bob@example.com", "z9hG4bKo", odd),
    );
    assert_eq!(summary(&sent), ["FROBNICATE -> bob"]);
    let text = String::from_utf8_lossy(&sent[0].bytes).into_owned();
    assert!(text.contains(odd), "{text}");
}

#[test]
fn a_dead_flow_is_answered_500_and_gives_its_session_back() {
    let mut world = World::with_bob();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let flow = sent[1].flow;
    let sent = world.transport_error(&flow);
    assert_eq!(summary(&sent), ["500 -> alice"]);
    assert_eq!(world.media.count("ended"), 1);
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
