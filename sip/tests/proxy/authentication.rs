//! Digest authentication at the proxy and the registrar (RFC 3261 sections 10.3, 16, 22).
#![expect(clippy::expect_used, reason = "a test may panic")]

use std::time::Duration;

use bytes::Bytes;
use md5::{Digest as _, Md5};
use sip::digest::Users;
use sip::hop::ConnectionId;
use sip::message::{HeaderName, Message};
use sip::proxy::authenticate::{
    Authentication, Counters, ForeignCallers, MAX_GROWTH, Network, Trunk,
};

use super::world::{ALICE, BOB, World, answer, find, in_dialog, invite, parse, request, summary};

const REALM: &str = "example.com";
/// Where the trunk sends from.
const TRUNK: &str = "203.0.113.99:5060";

/// What comes in over TCP uses this one.
const CONNECTION: ConnectionId = ConnectionId(9);

/// Every method that has a name, and one that nobody knows.
const METHODS: [&str; 15] = [
    "INVITE",
    "ACK",
    "BYE",
    "CANCEL",
    "REGISTER",
    "OPTIONS",
    "PRACK",
    "UPDATE",
    "INFO",
    "MESSAGE",
    "SUBSCRIBE",
    "NOTIFY",
    "REFER",
    "PUBLISH",
    "JUGGLE",
];

/// Bob is registered; from now on everybody must say who they are.
fn guarded() -> World {
    guarded_with(ForeignCallers::Refuse)
}

fn guarded_with(foreign_callers: ForeignCallers) -> World {
    let mut world = World::with_bob();
    // Until the transaction of Bob's REGISTER is over.
    world.advance(Duration::from_secs(40));
    let users = format!("{}\n{}", line("alice", "secret"), line("bob", "hidden"));
    let address = TRUNK.split(':').next().unwrap_or_default();
    let trunk = Trunk {
        name: String::from("carrier"),
        networks: vec![Network {
            address: address.parse().expect("address"),
            prefix: 32,
        }],
        certificates: vec![String::from("sip.carrier.net")],
    };
    let authentication = Authentication {
        realm: String::from(REALM),
        users: Users::parse(users.as_bytes(), REALM).expect("users"),
        nonce_lifetime: Duration::from_secs(300),
        foreign_callers,
        trunks: vec![trunk],
    };
    let now = world.now;
    world.proxy.require_authentication(authentication, now);
    world
}

fn line(user: &str, password: &str) -> String {
    let ha1 = md5(&format!("{user}:{REALM}:{password}"));
    format!("{user}:{REALM}:{ha1}")
}

fn md5(text: &str) -> String {
    let hash = Md5::digest(text.as_bytes());
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a phone answers to the first challenge of a 401 or 407: the whole header field.
fn credentials(
    challenged: &Message,
    user: &str,
    password: &str,
    method: &str,
    uri: &str,
) -> String {
    let (name, challenge) = match challenged.header(HeaderName::WwwAuthenticate) {
        Some(challenge) => ("Authorization", challenge),
        None => (
            "Proxy-Authorization",
            challenged
                .header(HeaderName::ProxyAuthenticate)
                .expect("a challenge"),
        ),
    };
    let challenge = String::from_utf8_lossy(challenge).into_owned();
    let nonce = quoted(&challenge, "nonce");
    let ha1 = md5(&format!("{user}:{REALM}:{password}"));
    let ha2 = md5(&format!("{method}:{uri}"));
    let response = md5(&format!("{ha1}:{nonce}:00000001:0a4f113b:auth:{ha2}"));
    format!(
        "{name}: Digest username=\"{user}\", realm=\"{REALM}\", nonce=\"{nonce}\", uri=\"{uri}\", \
         response=\"{response}\", algorithm=MD5, cnonce=\"0a4f113b\", qop=auth, nc=00000001\r\n"
    )
}

fn quoted(challenge: &str, name: &str) -> String {
    let from = challenge.find(&format!("{name}=\"")).expect("parameter") + name.len() + 2;
    challenge[from..]
        .split('"')
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// A REGISTER of a user's, from Alice's address.
fn register(user: &str, branch: &str, extra: &str) -> Vec<u8> {
    register_to(&format!("sip:{user}@example.com"), branch, extra)
}

fn register_to(aor: &str, branch: &str, extra: &str) -> Vec<u8> {
    format!(
        "REGISTER sip:example.com SIP/2.0\r\nVia: SIP/2.0/UDP 192.168.1.2:5060;branch={branch};rport\r\n\
         From: <{aor}>;tag=a1\r\nTo: <{aor}>\r\nCall-ID: reg-1\r\nCSeq: 1 REGISTER\r\n\
         Max-Forwards: 70\r\nContact: <sip:alice@192.168.1.2:5060>\r\n{extra}Content-Length: 0\r\n\r\n"
    )
    .into_bytes()
}

/// Sends a request without credentials, and gives what it is to be sent again with.
fn challenge(world: &mut World, bare: &[u8], user: &str, password: &str) -> String {
    let sent = world.receive(ALICE, bare);
    let bare = Message::parse(Bytes::copy_from_slice(bare)).expect("a request");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (method, uri) = (text(bare.method().as_bytes()), text(bare.request_uri()));
    credentials(&parse(&sent[0]), user, password, &method, &uri)
}

fn counters(world: &World) -> Counters {
    world.proxy.counters().authentication
}

/// RFC 3261 section 22.1: "a server MUST NOT attempt to challenge" an ACK; 22.3: "the proxy …
/// MAY challenge the initiator of the request … 407"; 10.3 step 3: the registrar, by 22.2, 401.
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

#[test]
fn options_to_ourselves_is_answered_to_anybody_and_leaves_nothing() {
    let mut world = guarded();
    let sent = world.receive(
        ALICE,
        &request("OPTIONS", "sip:example.com", "z9hG4bKo", ""),
    );
    assert_eq!(summary(&sent), ["200 -> alice"]);
    assert_eq!(world.proxy.transactions().counts().server, 0);
}

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

#[test]
fn nobody_registers_or_calls_as_somebody_else() {
    let mut world = guarded();
    let with = challenge(
        &mut world,
        &register("bob", "z9hG4bK1", ""),
        "alice",
        "secret",
    );
    let sent = world.receive(ALICE, &register("bob", "z9hG4bK2", &with));
    assert_eq!(summary(&sent), ["403 -> alice"]);

    let bare = invite("sip:bob@example.com");
    let with = challenge(&mut world, &bare, "bob", "hidden");
    let as_alice = request("INVITE", "sip:bob@example.com", "z9hG4bKx", &with);
    assert_eq!(summary(&world.receive(ALICE, &as_alice)), ["403 -> alice"]);
    assert_eq!(counters(&world).refused_identity, 2);
    assert_eq!(world.proxy.registrar().counts().bindings, 1);
    world.assert_all_forgotten();
}

/// RFC 3261 section 10.3 step 5: "If the address-of-record is not valid for the domain in the
/// Request-URI, the registrar MUST send a 404 (Not Found) response".
#[test]
fn a_user_of_a_foreign_domain_cannot_be_registered_here() {
    let mut world = World::new();
    let foreign = register_to("sip:alice@elsewhere.net", "z9hG4bK1", "");
    assert_eq!(summary(&world.receive(ALICE, &foreign)), ["404 -> alice"]);
    assert_eq!(world.proxy.registrar().counts().bindings, 0);

    let mut world = guarded();
    let with = challenge(&mut world, &foreign, "alice", "secret");
    let foreign = register_to("sip:alice@elsewhere.net", "z9hG4bK2", &with);
    assert_eq!(summary(&world.receive(ALICE, &foreign)), ["404 -> alice"]);
    assert_eq!(world.proxy.registrar().counts().bindings, 1);
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

#[test]
fn requests_of_a_dialog_need_no_credentials_and_those_that_only_seem_so_do() {
    let mut world = guarded();
    let with = challenge(
        &mut world,
        &invite("sip:bob@example.com"),
        "alice",
        "secret",
    );
    let sent = world.receive(
        ALICE,
        &request("INVITE", "sip:bob@example.com", "z9hG4bKx", &with),
    );
    let to_bob = find(&sent, BOB);
    let sent = world.receive(BOB, &answer(&to_bob, 200, "OK", "b1"));
    let ok = parse(&sent[0]);
    let sent = world.receive(ALICE, &in_dialog("ACK", 1, &ok, true));
    assert_eq!(summary(&sent), ["ACK -> bob"]);
    // Without a To tag it begins something new.
    let begins = String::from_utf8_lossy(&in_dialog("INVITE", 3, &ok, true)).replace(";tag=b1", "");
    let sent = world.receive(ALICE, begins.as_bytes());
    assert_eq!(summary(&sent), ["407 -> alice"]);
    // Without the cookie anybody could have made it.
    let bye = String::from_utf8_lossy(&in_dialog("BYE", 4, &ok, true)).into_owned();
    let route = bye.lines().find(|line| line.starts_with("Route"));
    let without = bye.replace(&format!("{}\r\n", route.expect("Route")), "");
    let sent = world.receive(ALICE, without.as_bytes());
    assert_eq!(summary(&sent), ["407 -> alice"]);
    let sent = world.receive(BOB, &in_dialog("BYE", 1, &ok, false));
    assert_eq!(summary(&sent), ["BYE -> alice"]);
}

#[test]
fn a_trunk_is_believed_for_its_address() {
    let mut world = guarded();
    let call = String::from_utf8_lossy(&invite("sip:bob@example.com"))
        .replace("alice@example.com", "+15551234@carrier.net");
    let sent = world.receive(TRUNK, call.as_bytes());
    assert_eq!(sent.len(), 2, "100 to the trunk, INVITE to Bob");
    assert_eq!(counters(&world).trusted, 1);
    let sent = world.receive("203.0.113.98:5060", call.replace("alice1", "x").as_bytes());
    assert_eq!(parse(&sent[0]).status(), Some(403));
    assert_eq!(counters(&world).refused_foreign, 1);
}

#[test]
fn a_trunk_is_believed_for_its_certificate_until_its_connection_closes() {
    let mut world = guarded();
    assert!(world.proxy.asks_for_certificates());
    world.tcp = true;
    let call = |branch: &str| {
        String::from_utf8_lossy(&request("INVITE", "sip:bob@example.com", branch, ""))
            .replace("alice@example.com", "+15551234@carrier.net")
            .into_bytes()
    };
    let others = [String::from("sip.other.net"), String::from("carrier.net")];
    world.proxy.handle_verified_peer(CONNECTION, &others);
    let sent = world.receive(ALICE, &call("z9hG4bK1"));
    assert_eq!(summary(&sent), ["403 -> alice"]);
    let names = [String::from("carrier.net"), String::from("SIP.carrier.net")];
    world.proxy.handle_verified_peer(CONNECTION, &names);
    let sent = world.receive(ALICE, &call("z9hG4bK2"));
    assert_eq!(summary(&sent), ["100 -> alice", "INVITE -> bob"]);
    assert_eq!(counters(&world).trusted, 1);
    world.connection_closed(CONNECTION);
    let sent = world.receive(ALICE, &call("z9hG4bK3"));
    assert_eq!(summary(&sent), ["403 -> alice"]);
}

#[test]
fn foreign_callers_reach_our_users_only_and_only_where_they_may() {
    let foreign = |method: &str, uri: &str, branch: &str, extra: &str| {
        String::from_utf8_lossy(&request(method, uri, branch, extra))
            .replace("alice@example.com", "alice@elsewhere.net")
            .into_bytes()
    };
    let call = foreign("INVITE", "sip:bob@example.com", "z9hG4bK1", "");
    let mut world = guarded_with(ForeignCallers::Refuse);
    assert_eq!(summary(&world.receive(ALICE, &call)), ["403 -> alice"]);
    let mut world = guarded_with(ForeignCallers::Allow);
    assert_eq!(
        summary(&world.receive(ALICE, &call)),
        ["100 -> alice", "INVITE -> bob"]
    );
    for (number, (method, uri, extra)) in [
        ("INVITE", "sip:bob@elsewhere.org", ""),
        ("REGISTER", "sip:elsewhere.org", ""),
        (
            "INVITE",
            "sip:bob@example.com",
            "Route: <sip:192.0.2.1;lr>\r\n",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let branch = format!("z9hG4bKf{number}");
        let sent = world.receive(ALICE, &foreign(method, uri, &branch, extra));
        assert_eq!(summary(&sent), ["403 -> alice"], "{method} {uri} {extra}");
    }
    assert_eq!(counters(&world).foreign, 1);
    assert_eq!(counters(&world).refused_foreign, 3);
}

/// RFC 3323 section 4.1.1.3: the From of an anonymous caller is `sip:anonymous@anonymous.invalid`.
#[test]
fn an_anonymous_caller_is_let_in_by_the_password_of_any_user() {
    let mut world = guarded();
    let anonymous = |branch: &str, extra: &str| {
        String::from_utf8_lossy(&request("INVITE", "sip:bob@example.com", branch, extra))
            .replace("alice@example.com", "anonymous@anonymous.invalid")
            .into_bytes()
    };
    let with = challenge(&mut world, &anonymous("z9hG4bK1", ""), "alice", "secret");
    let sent = world.receive(ALICE, &anonymous("z9hG4bK2", &with));
    assert_eq!(summary(&sent), ["100 -> alice", "INVITE -> bob"]);
    assert_eq!(counters(&world).ok, 1);
}

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

#[test]
fn users_that_are_reloaded_count_at_once_and_no_call_is_lost() {
    let mut world = guarded();
    let with = challenge(
        &mut world,
        &register("carol", "z9hG4bK1", ""),
        "carol",
        "new",
    );
    let sent = world.receive(ALICE, &register("carol", "z9hG4bK2", &with));
    assert_eq!(summary(&sent), ["401 -> alice"]);
    let users = format!("{}\n{}", line("alice", "secret"), line("carol", "new"));
    let users = Users::parse(users.as_bytes(), REALM).expect("users");
    let old = world.proxy.replace_users(users);
    assert_eq!(old.len(), 2);
    let sent = world.receive(ALICE, &register("carol", "z9hG4bK3", &with));
    assert_eq!(summary(&sent), ["200 -> alice"]);
    assert_eq!(
        world.proxy.registrar().counts().bindings,
        2,
        "Bob's is still there"
    );
}

/// The shortest REGISTER that there can be would be answered by more than it is.
const SHORT: &str = "REGISTER sip:example.com SIP/2.0\r\nv:SIP/2.0/UDP a;branch=z9hG4bKa\r\n\
                     f:<sip:a@b>;tag=1\r\nt:<sip:a@b>\r\ni:1\r\nCSeq:1 REGISTER\r\n\r\n";

#[test]
fn strangers_get_no_more_back_than_a_small_multiple_of_what_they_send() {
    let mut world = guarded();
    let all = ["MD5", "SHA-256", "SHA-512-256"].map(|algorithm| {
        let digits = if algorithm == "MD5" { 32 } else { 64 };
        format!("alice:{REALM}:{}:{algorithm}\n", "0".repeat(digits))
    });
    let users = Users::parse(all.concat().as_bytes(), REALM).expect("users");
    world.proxy.replace_users(users);
    assert_eq!(world.receive(ALICE, SHORT.as_bytes()), []);
    assert_eq!(counters(&world).unanswered, 1);
    // What a phone sends is longer.
    let sent = world.receive(ALICE, &register("alice", "z9hG4bK1", ""));
    assert_eq!(parse(&sent[0]).count(HeaderName::WwwAuthenticate), 3);
    // The source of a connection is not forged.
    world.tcp = true;
    assert_eq!(world.receive(ALICE, SHORT.as_bytes()).len(), 1);
}

/// Requests of strangers, changed at random: nothing that comes back is longer than it may be,
/// nothing is sent by itself, nothing is left.
#[test]
fn mutated_requests_of_strangers_are_not_amplified_and_leave_nothing() {
    /// What `received` and `rport` add to the top Via.
    const STAMP: usize = 64;
    let mut world = guarded();
    let mut random = 0x5eed_u64;
    let mut next = |below: usize| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(random >> 33).unwrap_or_default() % below
    };
    let junk = b"\r\n \":;,<>=%@\\0Azq\x00\xff";
    for round in 0..4000 {
        let method = METHODS[next(METHODS.len())];
        let mut bytes = request(
            method,
            "sip:bob@example.com",
            &format!("z9hG4bK{round}"),
            "Proxy-Authorization: Digest username=\"alice\", realm=\"example.com\", nonce=\"x\"\r\n",
        );
        for _ in 0..next(6) {
            let at = next(bytes.len());
            match next(3) {
                0 => bytes[at] = junk[next(junk.len())],
                1 => bytes.insert(at, junk[next(junk.len())]),
                _ => bytes.truncate(at.max(1)),
            }
        }
        let sent = world.receive(ALICE, &bytes);
        let out: usize = sent.iter().map(|transmit| transmit.bytes.len()).sum();
        assert!(sent.len() <= 1);
        assert!(
            out <= MAX_GROWTH * (bytes.len() + STAMP),
            "{out} for {}",
            bytes.len()
        );
        assert_eq!(world.proxy.transactions().counts().server, 0);
    }
    assert_eq!(world.advance(Duration::from_secs(60)), []);
    assert_eq!(
        world.proxy.digest().map(|digest| digest.nonces_in_use()),
        Some(0)
    );
    world.assert_all_forgotten();
}

#[test]
fn networks_are_compared_by_their_prefix() {
    let network = |address: &str, prefix| Network {
        address: address.parse().expect("address"),
        prefix,
    };
    let contains =
        |network: Network, address: &str| network.contains(address.parse().expect("address"));
    assert!(contains(network("192.0.2.0", 24), "192.0.2.255"));
    assert!(contains(network("192.0.2.0", 24), "::ffff:192.0.2.1"));
    assert!(!contains(network("192.0.2.0", 24), "192.0.3.0"));
    assert!(contains(network("0.0.0.0", 0), "203.0.113.1"));
    assert!(!contains(network("0.0.0.0", 0), "2001:db8::1"));
    assert!(contains(network("2001:db8::", 32), "2001:db8:ffff::1"));
    assert!(!contains(network("2001:db8::", 128), "2001:db8::1"));
}
