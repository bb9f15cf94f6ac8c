//! A call is ended from the middle: what the BYEs look like, to whom they go, what is kept for them
//! and how long. RFC 3261 sections 12.2.1.1 and 15.

#![expect(clippy::expect_used, reason = "a test may panic")]

#[path = "common/world.rs"]
mod world;

use std::collections::HashSet;
use std::time::Duration;

use sip::hop::Transmit;
use sip::message::{HeaderName, Message};
use sip::proxy::calls::CallProgress;
use sip::proxy::media::SessionRef;
use world::{ALICE, BOB, World, answer, find, in_dialog, invite, parse, request, summary};

#[test]
fn each_party_gets_a_bye_of_the_other_one_s_with_the_next_number() {
    let mut world = remembering();
    let (ok, _) = world.call();
    let (to_alice, to_bob) = end(&mut world);

    assert_eq!(to_alice.request_uri(), b"sip:alice@192.168.1.2:5060");
    assert_eq!(text(&to_alice, HeaderName::From), text(&ok, HeaderName::To));
    assert_eq!(text(&to_alice, HeaderName::To), text(&ok, HeaderName::From));
    assert_eq!(text(&to_alice, HeaderName::CSeq), "1 BYE");
    assert_eq!(text(&to_alice, HeaderName::CallId), "call-1");

    assert_eq!(to_bob.request_uri(), b"sip:bob@192.168.1.2:5060");
    assert_eq!(text(&to_bob, HeaderName::From), text(&ok, HeaderName::From));
    assert_eq!(text(&to_bob, HeaderName::To), text(&ok, HeaderName::To));
    assert_eq!(
        text(&to_bob, HeaderName::CSeq),
        "2 BYE",
        "after Alice's INVITE"
    );

    for bye in [to_alice, to_bob] {
        assert_eq!(bye.check().map_err(|fault| fault.reason), Ok(()));
        assert_eq!(bye.count(HeaderName::Route), 0, "we are the only proxy");
        assert_eq!(bye.vias().count(), 1);
        assert!(String::from_utf8_lossy(bye.bytes()).contains("Reason: Q.850;cause=102"));
    }
}

#[test]
fn the_parties_answers_end_here_and_nothing_is_left() {
    let mut world = remembering();
    world.call();
    let (to_alice, to_bob) = end(&mut world);
    assert_eq!(world.proxy.counters().hung_up, 1);
    assert_eq!(
        summary(&world.receive(ALICE, &answer(&to_alice, 200, "OK", ""))),
        [""; 0]
    );
    let gone = answer(&to_bob, 481, "Call/Transaction Does Not Exist", "");
    assert_eq!(summary(&world.receive(BOB, &gone)), [""; 0]);
    assert_eq!(world.proxy.counters().unmatched_responses, 0);
    assert_eq!(world.proxy.remembered(), 0);
    world.assert_all_forgotten();
}

#[test]
fn a_party_that_does_not_answer_is_asked_again_and_then_left_alone() {
    let mut world = remembering();
    world.call();
    end(&mut world);
    let sent = world.advance(Duration::from_secs(40));
    let again = summary(&sent);
    assert!(
        again.iter().filter(|line| *line == "BYE -> bob").count() >= 5,
        "{again:?}"
    );
    assert!(
        again.iter().all(|line| line.starts_with("BYE")),
        "{again:?}"
    );
    world.assert_all_forgotten();
}

#[test]
fn later_requests_move_the_numbers_and_the_targets() {
    let mut world = remembering();
    let (ok, _) = world.call();
    let sent = world.receive(BOB, &in_dialog("INFO", 70, &ok, false));
    world.receive(ALICE, &answer(&find(&sent, ALICE), 200, "OK", ""));
    // A re-INVITE with another Contact; the refusal of one before it moves nothing.
    for (cseq, status, contact) in [
        (8, 488, "sip:lost@10.0.0.9"),
        (9, 200, "sip:alice@10.0.0.1"),
    ] {
        let reinvite = String::from_utf8(in_dialog("INVITE", cseq, &ok, true)).expect("text");
        let reinvite = reinvite.replace(
            "Max-Forwards: 70",
            &format!("Contact: <{contact}>\r\nMax-Forwards: 70"),
        );
        let sent = world.receive(ALICE, reinvite.as_bytes());
        world.receive(BOB, &answer(&find(&sent, BOB), status, "Whatever", ""));
    }
    let (to_alice, to_bob) = end(&mut world);
    assert_eq!(to_alice.request_uri(), b"sip:alice@10.0.0.1");
    assert_eq!(text(&to_alice, HeaderName::CSeq), "71 BYE");
    assert_eq!(text(&to_bob, HeaderName::CSeq), "10 BYE");
}

/// RFC 3261 section 12.1: the route set of the caller is the Record-Route of the 2xx in reverse
/// order, the callee's the one of the INVITE in order.
#[test]
fn other_proxies_on_the_way_are_in_the_route() {
    let mut world = remembering();
    let before =
        "Record-Route: <sip:p2.example.net;lr>\r\nRecord-Route: <sip:p1.example.net;lr>\r\n";
    let sent = world.receive(
        ALICE,
        &request("INVITE", "sip:bob@example.com", "z9hG4bKalice1", before),
    );
    let to_bob = find(&sent, BOB);
    let ok = String::from_utf8(answer(&to_bob, 200, "OK", "b1")).expect("text");
    let behind =
        "Record-Route: <sip:p4.example.org;lr>\r\nRecord-Route: <sip:p3.example.org;lr>\r\n";
    let ok = ok.replacen("Record-Route:", &format!("{behind}Record-Route:"), 1);
    world.receive(BOB, ok.as_bytes());
    let (to_alice, to_bob) = end(&mut world);
    assert_eq!(
        text(&to_alice, HeaderName::Route),
        "<sip:p2.example.net;lr>, <sip:p1.example.net;lr>"
    );
    assert_eq!(
        text(&to_bob, HeaderName::Route),
        "<sip:p3.example.org;lr>, <sip:p4.example.org;lr>"
    );
}

#[test]
fn a_phone_that_has_registered_from_another_port_since_gets_its_bye_there() {
    let mut world = remembering();
    world.call();
    let elsewhere = "203.0.113.20:55555";
    let register = "REGISTER sip:example.com SIP/2.0\r\nVia: SIP/2.0/UDP 192.168.1.2;branch=z9hG4bKagain\r\n\
         From: <sip:bob@example.com>;tag=r\r\nTo: <sip:bob@example.com>\r\nCall-ID: reg-bob\r\n\
         CSeq: 2 REGISTER\r\nMax-Forwards: 70\r\nContact: <sip:bob@192.168.1.2:5060>\r\nExpires: 600\r\n\
         Content-Length: 0\r\n\r\n";
    world.receive(elsewhere, register.as_bytes());
    let sent = hang_up(&mut world);
    assert_eq!(
        summary(&sent),
        ["BYE -> alice", &format!("BYE -> {elsewhere}")]
    );
}

#[test]
fn each_dialog_of_a_forked_call_is_ended() {
    let mut world = remembering();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let to_bob = find(&sent, BOB);
    for tag in ["b1", "b2", "b1"] {
        world.receive(BOB, &answer(&to_bob, 200, "OK", tag));
    }
    let sent = hang_up(&mut world);
    let tags: Vec<String> = sent
        .iter()
        .filter(|transmit| transmit.flow.peer.to_string() == BOB)
        .map(|transmit| text(&parse(transmit), HeaderName::To))
        .collect();
    assert_eq!(
        tags,
        [
            "<sip:bob@example.com>;tag=b1",
            "<sip:bob@example.com>;tag=b2"
        ]
    );
    assert_eq!(sent.len(), 4, "and Alice for each of them");
}

#[test]
fn a_call_that_its_parties_end_is_forgotten_and_cannot_be_ended_again() {
    let mut world = remembering();
    let (ok, _) = world.call();
    assert_eq!(world.proxy.remembered(), 1);
    let sent = world.receive(BOB, &in_dialog("BYE", 1, &ok, false));
    world.receive(ALICE, &answer(&find(&sent, ALICE), 200, "OK", ""));
    assert_eq!(world.proxy.remembered(), 0);
    assert_eq!(summary(&hang_up(&mut world)), [""; 0]);
    assert_eq!(world.proxy.counters().hung_up, 0);
}

#[test]
fn a_call_that_only_rings_or_has_no_session_is_not_remembered() {
    let mut world = remembering();
    world.receive(ALICE, &invite("sip:bob@example.com"));
    assert_eq!(world.proxy.remembered(), 0);
    let mut world = World::with_bob();
    world.call();
    assert_eq!(world.proxy.remembered(), 0, "nobody has asked for it");
}

#[test]
fn no_more_calls_are_remembered_than_asked_for() {
    let mut world = World::with_bob();
    world.proxy.remember_dialogs(1);
    world.call();
    let second = String::from_utf8(invite("sip:bob@example.com")).expect("text");
    let second = second
        .replace("call-1", "call-2")
        .replace("alice1", "alice2");
    let sent = world.receive(ALICE, second.as_bytes());
    world.receive(BOB, &answer(&find(&sent, BOB), 200, "OK", "b2"));
    assert_eq!(world.proxy.remembered(), 1);
    assert_eq!(world.proxy.counters().not_remembered, 1);
}

#[test]
fn a_header_that_is_too_long_to_keep_costs_the_call_its_end_and_nothing_else() {
    let mut world = remembering();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let ok = String::from_utf8(answer(&find(&sent, BOB), 200, "OK", "b1")).expect("text");
    let long = format!("<sip:{}@192.168.1.2>", "b".repeat(3000));
    let ok = ok.replace("<sip:bob@192.168.1.2:5060>", &long);
    assert_eq!(
        summary(&world.receive(BOB, ok.as_bytes())),
        ["200 -> alice"]
    );
    assert_eq!(
        (
            world.proxy.remembered(),
            world.proxy.counters().not_remembered
        ),
        (0, 1)
    );
}

/// The callee has the address of a relay that is no more.
#[test]
fn a_target_whose_relay_fails_while_it_rings_is_cancelled_and_the_caller_told() {
    let mut world = remembering();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let to_bob = find(&sent, BOB);
    world.receive(BOB, &answer(&to_bob, 180, "Ringing", "b1"));
    assert_eq!(summary(&lose_relay(&mut world)), ["CANCEL -> bob"]);
    assert_eq!(summary(&lose_relay(&mut world)), [""; 0], "once");
    let terminated = answer(&to_bob, 487, "Request Terminated", "b1");
    let sent = world.receive(BOB, &terminated);
    assert_eq!(summary(&sent), ["ACK -> bob", "503 -> alice"]);
    let warning = text(&parse(&sent[1]), HeaderName::Warning);
    assert_eq!(warning, "399 sipcast \"The media relay has failed\"");
    assert_eq!(world.media.count("ended"), 1);
    world.assert_all_forgotten();
}

#[test]
fn the_next_target_has_a_relay_of_its_own() {
    let mut world = World::new();
    world.register_with_q(BOB, "sip:bob@192.168.1.2:5060", "bob", "1");
    world.register_with_q(world::BOB_DESK, "sip:bob@192.168.1.3:5060", "desk", "0.5");
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let to_bob = find(&sent, BOB);
    world.receive(BOB, &answer(&to_bob, 180, "Ringing", "b1"));
    lose_relay(&mut world);
    let sent = world.receive(BOB, &answer(&to_bob, 487, "Request Terminated", "b1"));
    assert_eq!(summary(&sent), ["ACK -> bob", "INVITE -> desk"]);
    assert_eq!(world.media.count("place"), 2);
}

#[test]
fn a_target_that_has_failed_by_itself_has_the_last_word() {
    let mut world = remembering();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let to_bob = find(&sent, BOB);
    world.receive(BOB, &answer(&to_bob, 180, "Ringing", "b1"));
    lose_relay(&mut world);
    let sent = world.receive(BOB, &answer(&to_bob, 486, "Busy Here", "b1"));
    assert_eq!(summary(&sent), ["ACK -> bob", "486 -> alice"]);
}

/// "the callee's UA MUST NOT send a BYE on a confirmed dialog until it has received an ACK" (RFC 3261
/// section 15).
#[test]
fn a_2xx_that_crosses_the_cancel_makes_a_call_that_ends_with_its_ack() {
    let mut world = remembering();
    world.proxy.report_calls();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let to_bob = find(&sent, BOB);
    world.receive(BOB, &answer(&to_bob, 180, "Ringing", "b1"));
    lose_relay(&mut world);
    let sent = world.receive(BOB, &answer(&to_bob, 200, "OK", "b1"));
    assert_eq!(summary(&sent), ["200 -> alice"]);
    let ok = parse(&sent[0]);
    let sent = world.receive(ALICE, &in_dialog("ACK", 1, &ok, true));
    assert_eq!(summary(&sent), ["ACK -> bob", "BYE -> alice", "BYE -> bob"]);
    assert!(String::from_utf8_lossy(&sent[1].bytes).contains("Reason: Q.850;cause=41"));
    let told: Vec<_> = std::iter::from_fn(|| world.proxy.poll_call())
        .map(|event| (event.key, matches!(event.what, CallProgress::RelayLost)))
        .collect();
    assert_eq!(told.last(), Some(&(told[0].0, true)), "of the same call");
    assert_eq!(world.proxy.remembered(), 0);
}

/// The ACK may pass another core: after 64 * T1 the callee does not wait for it any more either.
#[test]
fn where_no_ack_comes_such_a_call_ends_after_32_s() {
    let mut world = remembering();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    world.receive(BOB, &answer(&find(&sent, BOB), 200, "OK", "b1"));
    assert_eq!(summary(&lose_relay(&mut world)), [""; 0]);
    world.advance(Duration::from_millis(31_900));
    assert_eq!(world.proxy.remembered(), 1);
    let sent = world.advance(Duration::from_millis(200));
    let byes = summary(&sent)
        .into_iter()
        .filter(|sent| sent.starts_with("BYE"));
    assert_eq!(byes.collect::<Vec<_>>(), ["BYE -> alice", "BYE -> bob"]);
    assert_eq!(world.proxy.remembered(), 0);
}

#[test]
fn a_call_that_was_answered_meanwhile_is_ended_at_once() {
    let mut world = remembering();
    world.call();
    let sent = lose_relay(&mut world);
    assert_eq!(summary(&sent), ["BYE -> alice", "BYE -> bob"]);
    assert_eq!(summary(&lose_relay(&mut world)), [""; 0]);
}

fn lose_relay(world: &mut World) -> Vec<Transmit> {
    let relay = world.hop(ALICE).relay.expect("a relay");
    let lost = HashSet::from([SessionRef { relay, session: 1 }]);
    let now = world.now;
    world.proxy.handle_media_lost(&lost, &mut world.media, now);
    world.drain()
}

fn remembering() -> World {
    let mut world = World::with_bob();
    world.proxy.remember_dialogs(100);
    world
}

/// Ends the one call; the BYEs to Alice and to Bob.
fn end(world: &mut World) -> (Message, Message) {
    let sent = hang_up(world);
    assert_eq!(summary(&sent), ["BYE -> alice", "BYE -> bob"]);
    (parse(&sent[0]), parse(&sent[1]))
}

fn hang_up(world: &mut World) -> Vec<Transmit> {
    let relay = world.hop(ALICE).relay.expect("a relay");
    let session = SessionRef { relay, session: 1 };
    let now = world.now;
    world.proxy.end_call(session, &mut world.media, now);
    std::iter::from_fn(|| world.proxy.poll_transmit()).collect()
}

fn text(message: &Message, name: HeaderName) -> String {
    String::from_utf8_lossy(message.header(name).expect("a header")).into_owned()
}
