//! Forking: challenges of several branches (RFC 3261 section 16.7 step 7), targets by q (16.6),
//! loops and breadth (RFC 5393).

#![expect(clippy::expect_used, reason = "a test may panic")]

use std::time::Duration;

use sip::message::{HeaderName, Message};

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

fn with_header(bytes: Vec<u8>, name: HeaderName, value: &str) -> Vec<u8> {
    let message = Message::parse(bytes.into()).expect("a message");
    let mut edit = message.edit();
    edit.append(name, value);
    edit.finish().bytes().to_vec()
}

fn all(message: &Message, name: HeaderName) -> Vec<String> {
    message
        .headers()
        .filter(|field| field.name == name)
        .map(|field| String::from_utf8_lossy(field.value).into_owned())
        .collect()
}

#[test]
fn the_caller_gets_the_challenges_of_all_branches() {
    let mut world = World::with_bob();
    world.register(BOB_DESK, "sip:bob@192.168.1.3:5060", "desk");
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let (to_bob, to_desk) = (find(&sent, BOB), find(&sent, BOB_DESK));
    let first = with_header(
        answer(&to_bob, 401, "Unauthorized", "b1"),
        HeaderName::WwwAuthenticate,
        "Digest realm=\"a\", nonce=\"1\"",
    );
    let second = with_header(
        answer(&to_desk, 407, "Proxy Authentication Required", "b2"),
        HeaderName::ProxyAuthenticate,
        "Digest realm=\"b\", nonce=\"2\"",
    );
    world.receive(BOB, &first);
    let sent = world.receive(BOB_DESK, &second);
    assert_eq!(summary(&sent), ["ACK -> desk", "401 -> alice"]);
    let best = parse(&sent[1]);
    assert_eq!(
        all(&best, HeaderName::WwwAuthenticate),
        ["Digest realm=\"a\", nonce=\"1\""]
    );
    assert_eq!(
        all(&best, HeaderName::ProxyAuthenticate),
        ["Digest realm=\"b\", nonce=\"2\""]
    );
}

#[test]
fn a_challenge_of_a_branch_that_did_not_win_stays_out_of_other_failures() {
    let mut world = World::with_bob();
    world.register(BOB_DESK, "sip:bob@192.168.1.3:5060", "desk");
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let challenge = with_header(
        answer(&find(&sent, BOB), 401, "Unauthorized", "b1"),
        HeaderName::WwwAuthenticate,
        "Digest realm=\"a\"",
    );
    world.receive(BOB, &challenge);
    let sent = world.receive(
        BOB_DESK,
        &answer(&find(&sent, BOB_DESK), 603, "Decline", "b2"),
    );
    assert_eq!(summary(&sent), ["ACK -> desk", "603 -> alice"]);
    assert_eq!(parse(&sent[1]).count(HeaderName::WwwAuthenticate), 0);
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

#[test]
fn a_request_that_comes_back_unchanged_is_a_loop() {
    let mut world = World::new();
    // A phone that claims the service's own address of record as its contact.
    world.register(BOB, "sip:bob@example.com", "bob");
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let back = parse(&sent[1]);
    assert_eq!(back.request_uri(), b"sip:bob@example.com");
    let mut edit = back.edit();
    edit.push_front(
        HeaderName::Via,
        "SIP/2.0/UDP 192.168.1.2;branch=z9hG4bKhairpin",
    );
    let sent = world.receive(BOB, edit.finish().bytes());
    assert_eq!(summary(&sent), ["482 -> bob"]);
}

#[test]
fn a_request_that_comes_back_for_somebody_else_is_a_spiral_and_passes() {
    let mut world = World::with_bob();
    let sent = world.receive(
        ALICE,
        &request("MESSAGE", "sip:bob@example.com", "z9hG4bKm1", ""),
    );
    let mut edit = parse(&sent[0]).edit().finish();
    let mut changed = edit.edit();
    changed
        .set_request_uri("sip:bob@EXAMPLE.com;x=1")
        .push_front(
            HeaderName::Via,
            "SIP/2.0/UDP 192.168.1.2;branch=z9hG4bKspiral",
        );
    edit = changed.finish();
    let sent = world.receive(BOB, edit.bytes());
    assert_eq!(summary(&sent), ["MESSAGE -> bob"]);
}

#[test]
fn max_breadth_is_shared_by_the_branches() {
    let mut world = three_phones();
    let breadth = |value: &str, branch: &str| {
        request(
            "INVITE",
            "sip:bob@example.com",
            branch,
            &format!("Max-Breadth: {value}\r\n"),
        )
    };
    let sent = world.receive(ALICE, &breadth("5", "z9hG4bKw5"));
    let shares: Vec<Vec<String>> = sent[1..]
        .iter()
        .map(|transmit| all(&parse(transmit), HeaderName::MaxBreadth))
        .collect();
    assert_eq!(shares, [["3"], ["2"]]);

    let sent = world.receive(ALICE, &breadth("0", "z9hG4bKw0"));
    assert_eq!(summary(&sent), ["440 -> alice"]);

    let sent = world.receive(ALICE, &breadth("1", "z9hG4bKw1"));
    assert_eq!(sent.len(), 2, "one at a time: {:?}", summary(&sent));
    let first = parse(&sent[1]);
    let sent = world.receive(
        &sent[1].flow.peer.to_string(),
        &answer(&first, 486, "Busy", "b1"),
    );
    assert_eq!(sent.len(), 2, "{:?}", summary(&sent));
    assert!(parse(&sent[1]).is_request(), "the other one of that q");
    world.assert_all_forgotten();
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
