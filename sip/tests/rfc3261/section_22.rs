//! Usage of HTTP authentication: digest at the registrar and the proxy. Users, identities, trunks and
//! bounds are in `proxy/authentication.rs` beside this crate; hashes and nonces in `sip::digest`.
#![expect(clippy::expect_used, reason = "a test may panic")]

use std::time::Duration;

use bytes::Bytes;
use sip::message::{HeaderName, Message};
use sip::proxy::authenticate::Counters;

use crate::phones::{METHODS, challenge, counters, credentials, guarded, register};
use crate::world::{ALICE, BOB, find, invite, parse, request, summary};

/// "Servers MUST NOT attempt to challenge an ACK. … servers MUST NOT attempt to challenge CANCEL
/// requests since these requests cannot be resubmitted." (22.1) "the UAS can challenge the
/// originator to provide credentials by rejecting the request with a 401" (22.2), "the proxy can
/// challenge the originator … with a 407" (22.3).
#[test]
fn every_method_is_challenged_but_ack_and_cancel() {
    for method in METHODS {
        let mut world = guarded();
        let bare = request(method, "sip:bob@example.com", "z9hG4bKm1", "");
        let sent = world.receive(ALICE, &bare);
        let expected: &[&str] = match method {
            "ACK" => &[],
            "CANCEL" => &["481 -> alice"],
            "REGISTER" => &["401 -> alice"],
            _ => &["407 -> alice"],
        };
        assert_eq!(summary(&sent), expected, "{method}");
        world.assert_all_forgotten();
        if matches!(method, "ACK" | "CANCEL") {
            assert_eq!(counters(&world), Counters::default(), "{method}");
            continue;
        }
        let user = if method == "REGISTER" { "bob" } else { "alice" };
        let password = if method == "REGISTER" {
            "hidden"
        } else {
            "secret"
        };
        let with = credentials(
            &parse(&sent[0]),
            user,
            password,
            method,
            "sip:bob@example.com",
        );
        let mut world = guarded();
        let again = request(method, "sip:bob@example.com", "z9hG4bKm2", &with);
        let sent = world.receive(ALICE, &again);
        let expected: &[&str] = match method {
            "REGISTER" => &["200 -> alice"],
            "INVITE" => &["100 -> alice", "INVITE -> bob"],
            other => &[&format!("{other} -> bob")],
        };
        assert_eq!(summary(&sent), expected, "{method}");
        let ok = Counters {
            ok: 1,
            ..Counters::default()
        };
        assert_eq!(counters(&world), ok, "{method}");
        world.assert_all_forgotten();
    }
}

/// "Once credentials have been located, any UA that wishes to authenticate itself with a UAS or registrar
/// -- usually, but not necessarily, after receiving a 401 (Unauthorized) response -- MAY do so by including
/// an Authorization header field with the request." (22.2)
#[test]
fn a_phone_registers_with_its_password() {
    let mut world = guarded();
    let sent = world.receive(ALICE, &register("alice", "z9hG4bK1", ""));
    let challenged = parse(&sent[0]);
    assert_eq!(challenged.status(), Some(401));
    assert_eq!(challenged.count(HeaderName::WwwAuthenticate), 1);
    let with = credentials(
        &challenged,
        "alice",
        "secret",
        "REGISTER",
        "sip:example.com",
    );
    let sent = world.receive(ALICE, &register("alice", "z9hG4bK2", &with));
    assert_eq!(summary(&sent), ["200 -> alice"]);
    assert_eq!(world.proxy.registrar().counts().bindings, 2);
    let expected = Counters {
        challenged: 1,
        ok: 1,
        ..Counters::default()
    };
    assert_eq!(counters(&world), expected);
}

/// RFC 7616 section 5.5: a nonce count that was seen before is a replay. A retransmission is not.
#[test]
fn a_replayed_register_is_refused_and_a_retransmitted_one_is_answered_again() {
    let mut world = guarded();
    let with = challenge(
        &mut world,
        &register("alice", "z9hG4bK1", ""),
        "alice",
        "secret",
    );
    let whole = register("alice", "z9hG4bK2", &with);
    assert_eq!(summary(&world.receive(ALICE, &whole)), ["200 -> alice"]);
    assert_eq!(summary(&world.receive(ALICE, &whole)), ["200 -> alice"]);
    assert_eq!(counters(&world).replayed, 0);
    // After the transaction, and under another branch before that.
    let sent = world.receive("192.0.2.66:5060", &register("alice", "z9hG4bK3", &with));
    assert_eq!(parse(&sent[0]).status(), Some(401));
    world.advance(Duration::from_secs(40));
    let sent = world.receive("192.0.2.66:5060", &whole);
    assert_eq!(parse(&sent[0]).status(), Some(401));
    assert_eq!(counters(&world).replayed, 2);
    assert_eq!(counters(&world).ok, 1);
}

/// RFC 7616 section 3.3, stale: "the client may wish to simply retry the request with a new
/// encrypted response, without reprompting the user".
#[test]
fn an_answer_to_an_old_nonce_is_asked_for_again_as_stale() {
    let mut world = guarded();
    let with = challenge(
        &mut world,
        &register("alice", "z9hG4bK1", ""),
        "alice",
        "secret",
    );
    world.advance(Duration::from_secs(301));
    let sent = world.receive(ALICE, &register("alice", "z9hG4bK2", &with));
    let again = parse(&sent[0]);
    let value = again
        .header(HeaderName::WwwAuthenticate)
        .expect("challenge");
    assert!(value.ends_with(b", stale=true"), "{again:?}");
    assert_eq!(counters(&world).stale, 1);
    let with = credentials(&again, "alice", "secret", "REGISTER", "sip:example.com");
    let sent = world.receive(ALICE, &register("alice", "z9hG4bK3", &with));
    assert_eq!(summary(&sent), ["200 -> alice"]);
}

/// "In this instance a server may repeat its challenge, or it may respond with a 403 Forbidden." (22.1)
#[test]
fn a_wrong_password_and_an_unknown_user_get_the_same_answer() {
    let answer_to = |user: &str| {
        let mut world = guarded();
        let bare = register("alice", "z9hG4bK1", "");
        let with = challenge(&mut world, &bare, user, "guess");
        let sent = world.receive(ALICE, &register("alice", "z9hG4bK2", &with));
        assert_eq!(counters(&world).wrong, 1);
        assert_eq!(world.proxy.registrar().counts().bindings, 1);
        sent[0].bytes.clone()
    };
    let wrong = answer_to("alice");
    assert_eq!(parse_bytes(&wrong).status(), Some(401));
    assert!(!String::from_utf8_lossy(&wrong).contains("stale"));
    assert_eq!(wrong, answer_to("mallory"));
}

fn parse_bytes(bytes: &Bytes) -> Message {
    Message::parse(bytes.clone()).expect("a message")
}

/// RFC 3261 section 22.3: "When multiple proxies are used in a chain, a Proxy-Authorization header
/// field value MUST NOT be consumed by any proxy whose realm does not match".
#[test]
fn our_credentials_are_taken_out_and_those_for_others_go_on() {
    let mut world = guarded();
    let ours = challenge(
        &mut world,
        &invite("sip:bob@example.com"),
        "alice",
        "secret",
    );
    let others = "Proxy-Authorization: Digest username=\"a, b\", realm=\"other.net\", nonce=\"x\"\r\n\
                  Authorization: Digest username=\"alice\", realm=\"bob's phone\", nonce=\"y\"\r\n";
    let extra = format!("{others}{ours}");
    let sent = world.receive(
        ALICE,
        &request("INVITE", "sip:bob@example.com", "z9hG4bKx", &extra),
    );
    let to_bob = find(&sent, BOB);
    let text = String::from_utf8_lossy(to_bob.bytes()).into_owned();
    assert!(text.contains(others), "{text}");
    assert_eq!(to_bob.count(HeaderName::ProxyAuthorization), 1);
    assert!(!text.contains("realm=\"example.com\""), "{text}");
}

/// "When a proxy server issues a challenge in response to a request, it will not proxy the request until
/// the UAC has retried the request with valid credentials." (22.3)
#[test]
fn a_challenged_invite_leaves_nothing_and_is_never_answered_twice() {
    let mut world = guarded();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let challenged = parse(&sent[0]);
    assert_eq!(world.proxy.transactions().counts().server, 0);
    assert_eq!(world.advance(Duration::from_secs(60)), []);
    // The same again in the same second: the same answer, so a phone may answer either.
    let again = world.receive(ALICE, &invite("sip:bob@example.com"));
    assert_eq!(
        parse(&again[0]).to().expect("To").tag(),
        challenged.to().expect("To").tag()
    );
    // RFC 3261 section 8.2.7: a stateless UAS "MUST ignore ACK requests".
    let to = challenged.header(HeaderName::To).expect("To");
    let ack = String::from_utf8_lossy(&request("ACK", "sip:bob@example.com", "z9hG4bKalice1", ""))
        .replace("<sip:bob@example.com>", &String::from_utf8_lossy(to));
    assert_eq!(world.receive(ALICE, ack.as_bytes()), []);
    assert_eq!(world.proxy.counters().stray_acks, 0);
    world.assert_all_forgotten();
}

#[test]
fn credentials_that_cannot_be_read_or_are_about_another_uri_are_400() {
    let mut world = guarded();
    let with = challenge(
        &mut world,
        &register("alice", "z9hG4bK1", ""),
        "alice",
        "secret",
    );
    for (number, bad) in [
        with.replace("qop=auth, ", ""),
        with.replace("nc=00000001", "nc=1"),
        with.replace("username", "username=\"a\", username"),
        String::from("Authorization: Digest u\r\n"),
        String::from("Authorization: Digest realm=\"example.com\r\n"),
    ]
    .iter()
    .enumerate()
    {
        let branch = format!("z9hG4bKb{number}");
        let sent = world.receive(ALICE, &register("alice", &branch, bad));
        assert_eq!(summary(&sent), ["400 -> alice"], "{bad}");
        assert_eq!(counters(&world).malformed, number as u64 + 1);
    }
    let elsewhere = with.replace("uri=\"sip:example.com\"", "uri=\"sip:elsewhere.net\"");
    let sent = world.receive(ALICE, &register("alice", "z9hG4bKu", &elsewhere));
    assert_eq!(summary(&sent), ["400 -> alice"]);
    assert_eq!(counters(&world).wrong_uri, 1);
    world.assert_all_forgotten();
}
