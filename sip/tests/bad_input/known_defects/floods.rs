//! Floods and reflection: what a stranger may cost us, and what we may cost somebody whose address he
//! has forged.

use std::time::Duration;

use sip::message::HeaderName;

use crate::text::with;
use crate::world::{ALICE, World, parse, request, summary};

const METHODS: [&str; 8] = [
    "INVITE",
    "REGISTER",
    "OPTIONS",
    "MESSAGE",
    "SUBSCRIBE",
    "PUBLISH",
    "NOTIFY",
    "FROBNICATE",
];

/// Of every method there are only so many transactions, and what is too much is answered 503 and
/// counted (CVE-2021-41145).
#[test]
fn a_flood_of_any_method_meets_a_bound() {
    for method in METHODS {
        let mut world = World::configured(|config| {
            config.limits.max_server = 50;
            config.limits.max_client = 50;
        });
        world.register("203.0.113.20:41000", "sip:bob@192.168.1.2:5060", "bob");
        for number in 0..500 {
            let branch = format!("z9hG4bKflood{number}");
            let user = if method == "REGISTER" { "" } else { "bob@" };
            let message = request(method, &format!("sip:{user}example.com"), &branch, "");
            let message = String::from_utf8(message).expect("text");
            let message = message.replace("call-1", &format!("call-{number}"));
            world.receive(ALICE, message.as_bytes());
            let counts = world.proxy.transactions().counts();
            assert!(
                counts.server <= 50 && counts.client <= 50,
                "{method}: {counts:?}"
            );
        }
        assert!(world.proxy.contexts() <= 50, "{method}");
        // What begins something new is refused while there is still room for calls in progress.
        let counters = world.proxy.counters();
        assert!(counters.overload + counters.shed > 0, "{method}");
        world.assert_all_forgotten();
    }
}

/// Reflection over UDP: a request that goes nowhere is answered once, of about its own length: a forged
/// address brings its owner one small answer. That holds for an INVITE too, whose transaction would repeat the answer until
/// it is acknowledged: a stranger's has none.
#[test]
fn a_refused_request_reflects_one_answer() {
    for method in METHODS {
        for (uri, extra) in [
            ("sip:nobody@example.com", ""),
            ("sip:bob@elsewhere.example", ""),
            ("tel:+15551234", ""),
            ("sip:bob@example.com", "Proxy-Require: x\r\n"),
            ("sip:bob@example.com", "Content-Length: 7\r\n"),
        ] {
            let mut world = World::configured(|config| config.registrar.max_bindings = 0);
            let message = request(method, uri, "z9hG4bKspoofed", extra);
            let mut sent = world.receive(ALICE, &message);
            sent.extend(world.advance(Duration::from_secs(64)));
            assert_eq!(sent.len(), 1, "{method} {uri}: {:?}", summary(&sent));
            let octets = sent[0].bytes.len();
            assert!(
                octets <= message.len() + 100,
                "{method} {uri}: {octets} for {}",
                message.len()
            );
            world.assert_all_forgotten();
        }
    }
}

/// Who has registered from its address, and who is connected, has shown where it is: its INVITE has a
/// transaction, and the refusal of it is repeated until it is acknowledged.
#[test]
fn a_refusal_is_repeated_to_whom_we_know() {
    let invite = request("INVITE", "sip:nobody@example.com", "z9hG4bKknown", "");
    let mut world = World::new();
    world.register(ALICE, "sip:alice@192.168.1.2:5060", "alice");
    assert_eq!(summary(&world.receive(ALICE, &invite)), ["404 -> alice"]);
    let sent = world.advance(Duration::from_secs(32));
    assert_eq!(summary(&sent), ["404 -> alice"; 10]);

    // A stranger's is answered as often as it asks, and its ACK ends here.
    let mut world = World::new();
    for _ in 0..3 {
        assert_eq!(summary(&world.receive(ALICE, &invite)), ["404 -> alice"]);
    }
    assert_eq!(world.proxy.transactions().counts().server, 0);
    let refused = parse(&world.receive(ALICE, &invite)[0]);
    let to = String::from_utf8_lossy(refused.header(HeaderName::To).expect("To")).into_owned();
    let ack = request("ACK", "sip:nobody@example.com", "z9hG4bKknown", "");
    let ack = with(&ack, "<sip:bob@example.com>", &to);
    assert_eq!(world.receive(ALICE, &ack), []);
    assert_eq!(world.proxy.counters().stray_acks, 0);
}
