//! Users with passwords, and phones that know them.

#![allow(
    dead_code,
    clippy::expect_used,
    reason = "each test crate uses a part of it; a test may panic"
)]

use std::time::Duration;

use bytes::Bytes;
use md5::{Digest as _, Md5};
use sip::digest::Users;
use sip::hop::ConnectionId;
use sip::message::{HeaderName, Message};
use sip::proxy::authenticate::{Authentication, Counters, ForeignCallers, Network, Trunk};

use crate::world::{ALICE, World, parse};

pub(crate) const REALM: &str = "example.com";
/// Where the trunk sends from.
pub(crate) const TRUNK: &str = "203.0.113.99:5060";

/// What comes in over TCP uses this one.
pub(crate) const CONNECTION: ConnectionId = ConnectionId(9);

/// Every method that has a name, and one that nobody knows.
pub(crate) const METHODS: [&str; 15] = [
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
pub(crate) fn guarded() -> World {
    guarded_with(ForeignCallers::Refuse)
}

pub(crate) fn guarded_with(foreign_callers: ForeignCallers) -> World {
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

pub(crate) fn line(user: &str, password: &str) -> String {
    let ha1 = md5(&format!("{user}:{REALM}:{password}"));
    format!("{user}:{REALM}:{ha1}")
}

pub(crate) fn md5(text: &str) -> String {
    let hash = Md5::digest(text.as_bytes());
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a phone answers to the first challenge of a 401 or 407: the whole header field.
pub(crate) fn credentials(
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

pub(crate) fn quoted(challenge: &str, name: &str) -> String {
    let from = challenge.find(&format!("{name}=\"")).expect("parameter") + name.len() + 2;
    challenge[from..]
        .split('"')
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// A REGISTER of a user's, from Alice's address.
pub(crate) fn register(user: &str, branch: &str, extra: &str) -> Vec<u8> {
    register_to(&format!("sip:{user}@example.com"), branch, extra)
}

pub(crate) fn register_to(aor: &str, branch: &str, extra: &str) -> Vec<u8> {
    format!(
        "REGISTER sip:example.com SIP/2.0\r\nVia: SIP/2.0/UDP 192.168.1.2:5060;branch={branch};rport\r\n\
         From: <{aor}>;tag=a1\r\nTo: <{aor}>\r\nCall-ID: reg-1\r\nCSeq: 1 REGISTER\r\n\
         Max-Forwards: 70\r\nContact: <sip:alice@192.168.1.2:5060>\r\n{extra}Content-Length: 0\r\n\r\n"
    )
    .into_bytes()
}

/// Sends a request without credentials, and gives what it is to be sent again with.
pub(crate) fn challenge(world: &mut World, bare: &[u8], user: &str, password: &str) -> String {
    let sent = world.receive(ALICE, bare);
    let bare = Message::parse(Bytes::copy_from_slice(bare)).expect("a request");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (method, uri) = (text(bare.method().as_bytes()), text(bare.request_uri()));
    credentials(&parse(&sent[0]), user, password, &method, &uri)
}

pub(crate) fn counters(world: &World) -> Counters {
    world.proxy.counters().authentication
}
