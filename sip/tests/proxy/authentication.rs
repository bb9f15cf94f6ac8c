//! Who is let in: users, other identities, trunks, foreign callers; and what strangers get back. The
//! text of RFC 3261 section 22 is tested in `rfc3261/section_22.rs` beside this crate.

use std::time::Duration;

use sip::digest::Users;
use sip::message::HeaderName;
use sip::proxy::authenticate::{ForeignCallers, MAX_GROWTH, Network};

use crate::phones::{
    CONNECTION, METHODS, REALM, TRUNK, challenge, counters, guarded, guarded_with, line, register,
    register_to,
};
use crate::world::{ALICE, BOB, World, answer, find, in_dialog, invite, parse, request, summary};

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
