//! What a user chooses and we copy into messages of our own: nothing of it starts a line, a header or
//! a message there.

use sip::hop::Transmit;
use sip::message::{HeaderName, Message};

use crate::world::{ALICE, BOB, World, answer, find, in_dialog, invite, parse, request, summary};

/// What an attacker would like to be a line of its own.
const EVIL: &str = "X-Evil: 1";

/// Ways to end a line, or to look as if.
const BREAKS: [&str; 9] = [
    "\r\n", "\n", "\r", "\0", "\r\n ", "\r\n\t", "%0d%0a", "\\\r\n", "\u{b}",
];

/// No line of what we send begins with what was injected, and each is one message.
fn must_be_clean(sent: &[Transmit], what: &str) {
    for transmit in sent {
        let message = parse(transmit);
        let injected = message.headers().any(|field| field.raw_name == b"X-Evil");
        assert!(!injected, "{what:?}: {}", transmit.bytes.escape_ascii());
        let head = transmit
            .bytes
            .windows(4)
            .position(|four| four == b"\r\n\r\n");
        let head = &transmit.bytes[..head.expect("a head")];
        let alone = head.iter().enumerate().any(|(at, byte)| match byte {
            b'\r' => head.get(at + 1) != Some(&b'\n'),
            b'\n' => at == 0 || head[at - 1] != b'\r',
            _ => false,
        });
        assert!(!alone, "{what:?}: {}", transmit.bytes.escape_ascii());
    }
}

/// Where the message itself has a line `X-Evil` of its own, it is no injection but a header: it may
/// be forwarded, but is not to be in what we make ourselves.
fn must_not_be_in_ours(sent: &[Transmit], what: &str) {
    let ours: Vec<Transmit> = sent
        .iter()
        .filter(|transmit| {
            let message = parse(transmit);
            !message.is_request() || message.method() == sip::message::Method::Cancel
        })
        .cloned()
        .collect();
    must_be_clean(&ours, what);
}

#[test]
fn no_field_of_a_request_starts_a_line_in_our_answer_to_it() {
    let plain = String::from_utf8(request(
        "INVITE",
        "sip:nobody@example.com",
        "z9hG4bKi",
        "Timestamp: 5\r\nProxy-Require: zz\r\n",
    ))
    .expect("text");
    for place in [
        "192.168.1.2",
        "z9hG4bKi",
        "rport",
        "alice@",
        "a1",
        "bob@",
        "call-1",
        "1 INVITE",
        "5\r\nP",
        "zz",
        "nobody@",
        "tag=",
    ] {
        for broken in BREAKS {
            for method in ["INVITE", "REGISTER", "OPTIONS", "CANCEL", "FROBNICATE"] {
                let injected = format!("{place}{broken}{EVIL}{broken}");
                let text = plain
                    .replace("INVITE", method)
                    .replacen(place, &injected, 1);
                let mut world = World::new();
                must_not_be_in_ours(&world.receive(ALICE, text.as_bytes()), &injected);
                world.tcp = true;
                let (sent, ..) = world.receive_stream(ALICE, text.as_bytes());
                must_not_be_in_ours(&sent, &injected);
            }
        }
    }
}

#[test]
fn no_contact_of_a_binding_starts_a_line_in_an_answer_or_a_request() {
    for broken in BREAKS {
        for contact in [
            format!("<sip:bob@h>;x=\"{broken}{EVIL}{broken}\""),
            format!("\"{broken}{EVIL}{broken}\" <sip:bob@h>"),
            format!("<sip:bob@h;x={broken}{EVIL}>"),
            format!("<sip:b{broken}{EVIL}@h>"),
            format!("<sip:bob@h?X-Evil=1{broken}{EVIL}>"),
            format!("<sip:bob@h>;+sip.instance=\"<{broken}{EVIL}>\""),
        ] {
            let mut world = World::new();
            let extra = format!("Contact: {contact}\r\n");
            let register =
                String::from_utf8(request("REGISTER", "sip:example.com", "z9hG4bKr", &extra));
            let register = register
                .expect("text")
                .replace("Contact: <sip:alice@192.168.1.2:5060>\r\n", "");
            let sent = world.receive(BOB, register.as_bytes());
            must_not_be_in_ours(&sent, &contact);
            let fetch = request("REGISTER", "sip:example.com", "z9hG4bKf", "").to_vec();
            let fetch = String::from_utf8(fetch).expect("text");
            let fetch = fetch
                .replace("Contact: <sip:alice@192.168.1.2:5060>\r\n", "")
                .replace("call-1", "fetch");
            must_be_clean(&world.receive(ALICE, fetch.as_bytes()), &contact);
            let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
            must_be_clean(&sent, &contact);
        }
    }
}

#[test]
fn no_field_of_a_response_starts_a_line_in_our_ack_or_in_the_answer_that_we_choose() {
    for broken in BREAKS {
        for (from, to) in [
            ("tag=b1", format!("tag=b1{broken}{EVIL}")),
            ("Nothing", format!("Nothing{broken}{EVIL}")),
            ("tag=b1", format!("x=\"{broken}{EVIL}{broken}\";tag=b1")),
            ("<sip:bob@192", format!("\"{broken}{EVIL}\" <sip:bob@192")),
        ] {
            let mut world = World::with_bob();
            let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
            let failure = answer(&find(&sent, BOB), 486, "Nothing", "b1");
            let failure = String::from_utf8(failure).expect("text");
            assert!(failure.contains(from));
            let sent = world.receive(BOB, failure.replacen(from, &to, 1).as_bytes());
            let acks: Vec<Transmit> = sent
                .iter()
                .filter(|transmit| parse(transmit).is_request())
                .cloned()
                .collect();
            must_be_clean(&acks, &to);
            world.assert_all_forgotten();
        }
    }
}

#[test]
fn the_sent_by_and_branch_of_a_caller_stay_in_their_via() {
    for via in [
        "SIP/2.0/UDP h;branch=z9hG4bKx;y=\"a, SIP/2.0/UDP evil\"",
        "SIP/2.0/UDP h;branch=z9hG4bKx;received=\"x\r\n Y: z\"",
        "SIP/2.0/UDP h;branch=\"z9hG4bKx;received=1\";rport",
    ] {
        let plain = String::from_utf8(invite("sip:bob@example.com")).expect("text");
        let line = "SIP/2.0/UDP 192.168.1.2:5060;branch=z9hG4bKalice1;rport";
        let mut world = World::with_bob();
        let sent = world.receive(ALICE, plain.replace(line, via).as_bytes());
        for transmit in &sent {
            let message = parse(transmit);
            let vias = if message.is_request() { 2 } else { 1 };
            assert_eq!(message.vias().count(), vias, "{via}: {:?}", summary(&sent));
        }
        must_be_clean(&sent, via);
    }
}

/// The cookie in our Route is opened or refused whole: no octet of it may change.
#[test]
fn a_cookie_with_one_octet_changed_routes_nothing_and_is_counted() {
    let mut world = World::with_bob();
    let (ok, _) = world.call();
    let bye = in_dialog("BYE", 2, &ok, true);
    let message = Message::parse(bye.clone().into()).expect("a message");
    let route = message.header(HeaderName::Route).expect("a Route");
    let route = String::from_utf8_lossy(route).into_owned();
    let user = route.find('@').expect("a user");
    let mut refused = 0;
    for at in "<sip:".len()..user {
        for with in ["A", "z", "0", "%", ""] {
            let changed = format!("{}{with}{}", &route[..at], &route[at + 1..]);
            if changed == route {
                continue;
            }
            let text = String::from_utf8_lossy(&bye).replace(&route, &changed);
            let text = text.replace("z9hG4bKBYE2true", &format!("z9hG4bKforged{refused}"));
            let sent = world.receive(ALICE, text.as_bytes());
            for transmit in &sent {
                assert!(
                    !parse(transmit).is_request(),
                    "{changed}: {:?}",
                    summary(&sent)
                );
            }
            refused += 1;
        }
        if refused >= 600 {
            break;
        }
    }
    assert_eq!(world.proxy.counters().bad_cookies, refused);
    assert_eq!(world.media.open.len(), 1, "the call goes on");
    assert_eq!(summary(&world.receive(ALICE, &bye)), ["BYE -> bob"]);
}

/// A response is known by a branch that only its request carried: a stranger guesses none, and what he
/// sends is counted.
#[test]
fn responses_of_strangers_are_dropped_and_counted() {
    let mut world = World::with_bob();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let to_bob = find(&sent, BOB);
    let ok = String::from_utf8(answer(&to_bob, 200, "OK", "b1")).expect("text");
    let via = to_bob.top_via().expect("a Via");
    let branch = String::from_utf8_lossy(via.branch().expect("a branch")).into_owned();
    let mut strange = 0;
    for guess in [
        "z9hG4bK",
        "z9hG4bKalice1",
        "",
        &branch[..branch.len() - 1],
        &format!("{branch}0"),
        &format!("z9hG4bK{}", &branch[8..]),
    ] {
        let response = ok.replace(&branch, guess);
        let sent = world.receive("192.0.2.66:5060", response.as_bytes());
        assert_eq!(summary(&sent), [""; 0], "{guess}");
        strange += 1;
    }
    for (from, to) in [("1 INVITE", "1 BYE"), ("1 INVITE", "1 CANCEL")] {
        world.receive("192.0.2.66:5060", ok.replace(from, to).as_bytes());
        strange += 1;
    }
    let counters = world.proxy.counters();
    assert_eq!(
        counters.unmatched_responses + counters.forged_responses + counters.malformed_responses,
        strange
    );
    let sent = world.receive(BOB, ok.as_bytes());
    assert_eq!(summary(&sent), ["200 -> alice"]);
}
