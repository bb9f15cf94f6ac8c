//! How branches end: in whatever order the caller, the targets, the timers and the transports
//! fail, nothing is left over and nobody is told what is not for them.

#![expect(clippy::expect_used, reason = "a test may panic")]

use std::time::Duration;

use sip::hop::{ConnectionId, Flow, Transport};
use sip::message::{HeaderName, Message};

use crate::world::{
    ALICE, BOB, BOB_DESK, SERVICE, World, answer, find, in_dialog, invite, parse, request, summary,
};

fn flow(peer: &str, connection: Option<u64>) -> Flow {
    Flow {
        transport: connection.map_or(Transport::Udp, |_| Transport::Tcp),
        peer: peer.parse().expect("address"),
        local: SERVICE.parse().expect("address"),
        connection: connection.map(ConnectionId),
    }
}

#[test]
fn a_caller_who_vanishes_before_the_first_ring_leaves_no_ringing_phone() {
    let mut world = World::with_bob();
    world.tcp = true;
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    world.tcp = false;
    let to_bob = find(&sent, BOB);
    let sent = world.connection_closed(ConnectionId(9));
    assert_eq!(summary(&sent), Vec::<String>::new(), "not rung yet");
    let sent = world.receive(BOB, &answer(&to_bob, 180, "Ringing", "b1"));
    assert_eq!(summary(&sent), ["CANCEL -> bob"]);
    let sent = world.receive(BOB, &answer(&to_bob, 487, "Request Terminated", "b1"));
    assert_eq!(summary(&sent), ["ACK -> bob"]);
    assert_eq!(world.media.count("ended"), 1);
    assert_eq!(world.proxy.contexts(), 0);
    world.assert_all_forgotten();
}

#[test]
fn a_caller_who_vanishes_is_forgotten_although_the_phone_never_confirms_the_cancel() {
    let mut world = World::with_bob();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let to_bob = find(&sent, BOB);
    world.receive(BOB, &answer(&to_bob, 180, "Ringing", "b1"));
    let sent = world.transport_error(&flow(ALICE, None));
    assert_eq!(summary(&sent), ["CANCEL -> bob"]);
    world.assert_all_forgotten();
    assert_eq!(world.media.count("unsettled"), 1);
}

#[test]
fn an_answer_for_a_caller_who_vanished_gives_the_session_back() {
    let mut world = World::with_bob();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let to_bob = find(&sent, BOB);
    world.transport_error(&flow(ALICE, None));
    let sent = world.receive(BOB, &answer(&to_bob, 200, "OK", "b1"));
    assert_eq!(summary(&sent), Vec::<String>::new());
    assert_eq!(world.media.count("answered"), 0);
    assert_eq!(world.media.count("ended"), 1);
    world.assert_all_forgotten();
}

#[test]
fn a_loser_that_rings_late_is_cancelled_after_the_callers_transaction_has_ended() {
    let mut world = World::with_bob();
    world.register(BOB_DESK, "sip:bob@192.168.1.3:5060", "desk");
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let (to_bob, to_desk) = (find(&sent, BOB), find(&sent, BOB_DESK));
    world.receive(BOB, &answer(&to_bob, 200, "OK", "b1"));
    world.advance(Duration::from_secs(31));
    let sent = world.receive(BOB_DESK, &answer(&to_desk, 180, "Ringing", "b2"));
    assert_eq!(summary(&sent), ["CANCEL -> desk"]);
    world.assert_all_forgotten();
    assert_eq!(world.media.count("unsettled"), 1, "the loser's only");
}

#[test]
fn a_cancelled_phone_that_rings_on_is_given_up_all_the_same() {
    let mut world = World::with_bob();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let to_bob = find(&sent, BOB);
    world.receive(BOB, &answer(&to_bob, 180, "Ringing", "b1"));
    let cancel = request("CANCEL", "sip:bob@example.com", "z9hG4bKalice1", "");
    world.receive(ALICE, &cancel);
    let mut sent = Vec::new();
    for _ in 0..4 {
        sent.extend(world.advance(Duration::from_secs(10)));
        sent.extend(world.receive(BOB, &answer(&to_bob, 180, "Ringing", "b1")));
    }
    assert!(
        summary(&sent).contains(&String::from("408 -> alice")),
        "64*T1 after the CANCEL: {:?}",
        summary(&sent)
    );
    world.assert_all_forgotten();
}

#[test]
fn nothing_is_left_of_requests_that_nobody_answers() {
    let mut world = World::with_bob();
    for number in 0..20 {
        let branch = format!("z9hG4bKm{number}");
        world.receive(
            ALICE,
            &request("MESSAGE", "sip:bob@example.com", &branch, ""),
        );
    }
    world.assert_all_forgotten();
}

#[test]
fn a_bye_ends_the_session_by_its_answer_its_rejection_or_its_silence() {
    for status in [200, 481, 408, 500, 603] {
        let mut world = World::with_bob();
        let (ok, _) = world.call();
        let sent = world.receive(ALICE, &in_dialog("BYE", 2, &ok, true));
        world.receive(BOB, &answer(&find(&sent, BOB), status, "Any", "b1"));
        assert!(world.media.open.is_empty(), "{status}");
        world.assert_all_forgotten();
    }
    let mut world = World::with_bob();
    let (ok, _) = world.call();
    world.receive(ALICE, &in_dialog("BYE", 2, &ok, true));
    world.advance(Duration::from_secs(33));
    assert!(world.media.open.is_empty(), "no answer at all");
    world.assert_all_forgotten();
}

#[test]
fn a_bye_whose_sender_hangs_up_its_connection_still_ends_the_session() {
    let mut world = World::with_bob();
    let (ok, _) = world.call();
    world.tcp = true;
    let sent = world.receive(ALICE, &in_dialog("BYE", 2, &ok, true));
    world.connection_closed(ConnectionId(9));
    world.tcp = false;
    world.receive(BOB, &answer(&find(&sent, BOB), 200, "OK", "b1"));
    assert!(world.media.open.is_empty());
    world.assert_all_forgotten();
}

#[test]
fn a_bye_that_must_be_sent_again_with_credentials_leaves_the_session() {
    for status in [401, 407] {
        let mut world = World::with_bob();
        let (ok, _) = world.call();
        let sent = world.receive(ALICE, &in_dialog("BYE", 2, &ok, true));
        world.receive(BOB, &answer(&find(&sent, BOB), status, "Who", "b1"));
        assert_eq!(world.media.open.len(), 1, "{status}");
    }
}

/// "If a UA receives a non-2xx final response to a re-INVITE, the session parameters MUST remain
/// unchanged" (RFC 3261 section 14.1): by its answer, by silence, by a dead flow.
#[test]
fn a_re_invite_that_fails_leaves_the_session() {
    let mut world = World::with_bob();
    let (ok, _) = world.call();
    let sent = world.receive(ALICE, &in_dialog("INVITE", 2, &ok, true));
    let sent = world.receive(BOB, &answer(&find(&sent, BOB), 488, "Not Here", "b1"));
    assert_eq!(summary(&sent), ["ACK -> bob", "488 -> alice"]);
    world.receive(BOB, &in_dialog("INVITE", 3, &ok, false));
    world.advance(Duration::from_secs(40));
    world.transport_error(&flow(ALICE, None));
    assert_eq!(world.media.open.len(), 1);
    assert_eq!(world.media.count("ended"), 0);
    assert_eq!(world.media.count("refused Invite of Caller"), 1);
    world.assert_all_forgotten();
    assert_eq!(world.media.count("refused Invite of Callee"), 1);
}

#[test]
fn a_connection_that_closes_fails_what_was_sent_on_it() {
    let mut world = World::new();
    world.tcp = true;
    world.register(BOB, "sip:bob@192.168.1.2:5060", "bob");
    world.tcp = false;
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    assert_eq!(summary(&sent), ["100 -> alice", "INVITE -> bob"]);
    let sent = world.connection_closed(ConnectionId(9));
    assert_eq!(summary(&sent), ["500 -> alice"]);
    assert_eq!(world.media.count("ended"), 1);
    world.assert_all_forgotten();
}

#[test]
fn a_cancel_after_the_answer_changes_nothing() {
    let mut world = World::with_bob();
    world.call();
    let cancel = request("CANCEL", "sip:bob@example.com", "z9hG4bKalice1", "");
    assert_eq!(summary(&world.receive(ALICE, &cancel)), ["200 -> alice"]);
    assert_eq!(world.media.open.len(), 1);
    world.assert_all_forgotten();
}

#[test]
fn both_of_two_answers_reach_the_caller_and_each_keeps_its_own_session() {
    let mut world = World::with_bob();
    world.register(BOB_DESK, "sip:bob@192.168.1.3:5060", "desk");
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let (to_bob, to_desk) = (find(&sent, BOB), find(&sent, BOB_DESK));
    let first = world.receive(BOB, &answer(&to_bob, 200, "OK", "b1"));
    let second = world.receive(BOB_DESK, &answer(&to_desk, 200, "OK", "b2"));
    assert_eq!(summary(&first), ["200 -> alice"]);
    assert_eq!(summary(&second), ["200 -> alice"]);
    let again = world.receive(BOB_DESK, &answer(&to_desk, 200, "OK", "b2"));
    assert_eq!(summary(&again), ["200 -> alice"], "RFC 6026: a copy passes");
    assert_eq!(world.media.count("answered"), 2);
    assert_eq!(world.media.open.len(), 2);
    let sent = world.receive(ALICE, &in_dialog("BYE", 2, &parse(&second[0]), true));
    assert_eq!(summary(&sent), ["BYE -> desk"]);
    world.receive(BOB_DESK, &answer(&parse(&sent[0]), 200, "OK", "b2"));
    assert_eq!(world.media.open.len(), 1, "the other call goes on");
}

/// RFC 4320 section 4.1: a 100 is forbidden until Timer E of the sender has grown to T2, and due
/// then.
#[test]
fn the_sender_of_a_slow_request_is_told_after_3_5_s_that_it_is_being_worked_on() {
    let mut world = World::with_bob();
    let message = request("MESSAGE", "sip:bob@example.com", "z9hG4bKm1", "");
    let to_bob = find(&world.receive(ALICE, &message), BOB);
    world.receive(BOB, &answer(&to_bob, 100, "Trying", ""));
    let mut sent = world.advance(Duration::from_millis(3_499));
    sent.retain(|transmit| transmit.flow.peer.to_string() == ALICE);
    assert_eq!(summary(&sent), Vec::<String>::new());
    let sent = world.advance(Duration::from_millis(1));
    assert!(summary(&sent).contains(&String::from("100 -> alice")));
    let again = world.receive(ALICE, &message);
    assert_eq!(summary(&again), ["100 -> alice"], "a copy gets it again");
    let sent = world.receive(BOB, &answer(&to_bob, 200, "OK", "b1"));
    assert_eq!(summary(&sent), ["200 -> alice"]);
    world.assert_all_forgotten();
}

#[test]
fn an_answer_without_the_callers_via_is_a_502() {
    let mut world = World::with_bob();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let to_bob = find(&sent, BOB);
    let stripped = |status| {
        let text = answer(&to_bob, status, "Any", "b1");
        let message = Message::parse(text.into()).expect("a response");
        let own = message
            .values(HeaderName::Via)
            .next()
            .expect("our Via")
            .into_owned();
        let mut edit = message.edit();
        edit.set(HeaderName::Via, own);
        edit.finish().bytes().to_vec()
    };
    let sent = world.receive(BOB, &stripped(180));
    assert_eq!(summary(&sent), Vec::<String>::new());
    let sent = world.receive(BOB, &stripped(486));
    assert_eq!(summary(&sent), ["ACK -> bob", "502 -> alice"]);
    world.assert_all_forgotten();
}

#[test]
fn a_caller_of_rfc_2543_without_a_tag_reaches_the_callee_in_its_dialog() {
    let mut world = World::with_bob();
    let untagged = |bytes: Vec<u8>| {
        String::from_utf8(bytes)
            .expect("text")
            .replace(";tag=a1", "")
            .into_bytes()
    };
    let sent = world.receive(ALICE, &untagged(invite("sip:bob@example.com")));
    let sent = world.receive(BOB, &answer(&find(&sent, BOB), 200, "OK", "b1"));
    let ok = parse(&sent[0]);
    let sent = world.receive(ALICE, &in_dialog("BYE", 2, &ok, true));
    assert_eq!(summary(&sent), ["BYE -> bob"]);
}

#[test]
fn header_fields_in_a_route_do_not_become_a_request_uri() {
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
    let text = String::from_utf8(in_dialog("BYE", 2, &ok, true)).expect("text");
    let strict = text
        .replace("BYE sip:bob@192.168.1.2:5060 ", &format!("BYE {own} "))
        .replace(
            &format!("Route: <{own}>"),
            "Route: <sip:bob@192.168.1.2?Route=%3Csip:evil.example%3E>",
        );
    let sent = world.receive(ALICE, strict.as_bytes());
    for transmit in &sent {
        assert!(!parse(transmit).is_request(), "{:?}", summary(&sent));
    }
}
