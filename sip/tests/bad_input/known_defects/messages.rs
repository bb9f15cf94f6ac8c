//! Messages that are read, answered and rewritten, whatever is wrong with them.

use bytes::Bytes;
use sip::message::{HeaderName, Message};

use super::FULL;
use crate::judge::{Row, Seen, finish, judge, world_for};
use crate::world::{ALICE, BOB, World, answer, find, in_dialog, invite, parse, request, summary};

/// What may become of a request that is refused by nobody knows whom: never more than one answer.
const ANY: &str = "forward|400|403|404|416|420|481|482|483|501|505|nothing";

/// Through the proxy over both transports, alive and empty afterwards.
fn survive(text: impl Into<Vec<u8>>, outcome: &'static str) -> Seen {
    let bytes = Bytes::from(text.into());
    let mut world = world_for(&bytes);
    let sent = world.receive(ALICE, &bytes);
    let seen = Seen { world, sent };
    if outcome != ANY {
        let row = Row {
            name: "a message of this test",
            udp: outcome,
            tcp: outcome,
        };
        finish(judge(&row, &bytes), &bytes, row.name);
    }
    seen
}

/// The same, where nothing is known of the outcome but that it ends well.
fn survive_any(text: impl Into<Vec<u8>>) {
    let bytes = Bytes::from(text.into());
    finish(survive(bytes.to_vec(), ANY), &bytes, "any");
    let mut world = world_for(&bytes);
    world.tcp = true;
    let (sent, ..) = world.receive_stream(ALICE, &bytes);
    finish(Seen { world, sent }, &bytes, "any over TCP");
}

/// The CSeq method has no length of its own (CVE-2017-9372).
#[test]
fn a_long_cseq_method_is_a_mismatch() {
    let long = FULL.replace("CSeq: 1 INVITE", &format!("CSeq: 1 {}", "A".repeat(10_000)));
    survive(long, "400");
}

/// Tags, branches and Call-IDs of every length go through a whole call, its CANCEL and its ACKs
/// (CVE-2018-8828).
#[test]
fn keys_of_every_length_carry_a_call() {
    for length in (190..310).chain([1, 4_000, 12_000]) {
        let long = "k".repeat(length);
        let lengthen = |bytes: Vec<u8>| {
            let text = String::from_utf8(bytes).expect("text");
            let text = text.replace("z9hG4bKalice1", &format!("z9hG4bKalice1{long}"));
            let text = text.replace("tag=a1", &format!("tag=a1{long}"));
            text.replace("call-1", &format!("call-1{long}"))
                .into_bytes()
        };
        let mut world = World::with_bob();
        let sent = world.receive(ALICE, &lengthen(invite("sip:bob@example.com")));
        let to_bob = find(&sent, BOB);
        world.receive(BOB, &answer(&to_bob, 180, "Ringing", &long));
        let cancel = request("CANCEL", "sip:bob@example.com", "z9hG4bKalice1", "");
        let sent = world.receive(ALICE, &lengthen(cancel));
        assert_eq!(
            summary(&sent),
            ["200 -> alice", "CANCEL -> bob"],
            "{length}"
        );
        let sent = world.receive(BOB, &answer(&to_bob, 487, "Terminated", &long));
        assert_eq!(summary(&sent), ["ACK -> bob", "487 -> alice"], "{length}");
        let ack = parse(&sent[0]);
        assert_eq!(
            ack.from().expect("From").tag().expect("a tag").len(),
            length + 2
        );
        assert_eq!(ack.to().expect("To").tag().expect("a tag").len(), length);
        world.assert_all_forgotten();
    }
}

/// No header field that there must be once is there twice, wherever the second stands and whatever is
/// in the first (CVE-2018-14767, CVE-2020-27507).
#[test]
fn doubled_header_fields_are_refused_also_in_a_cancel() {
    for name in [
        "From",
        "To",
        "Call-ID",
        "CSeq",
        "Max-Forwards",
        "Content-Length",
    ] {
        let line = FULL
            .lines()
            .find(|line| line.starts_with(name))
            .expect("a line");
        for double in [
            FULL.replace(line, &format!("{line}\r\n{line}")),
            FULL.replace(line, &format!("{name}: \r\n{line}")),
            FULL.replace("Expires: 120", line),
        ] {
            let row = if name == "Content-Length" {
                "400|400 closed|forward"
            } else {
                "400"
            };
            survive(double.replace("INVITE", "OPTIONS"), row);
            survive(double.replace("INVITE", "CANCEL"), row);
            survive(double, row);
        }
    }
}

/// A Via that is cut anywhere, on top or below, in a request that is answered locally
/// (CVE-2018-16657, CVE-2023-27598).
#[test]
fn a_via_cut_anywhere_is_answered_or_forwarded_whole() {
    for via in [
        "SIP/2.0/UDP 192.168.1.2:5060;branch=z9hG4bKfull;rport",
        "SIP/2.0/TCP p1.example;branch=z9hG4bKp1;received=192.0.2.1;ttl=1",
    ] {
        for end in 0..via.len() {
            survive_any(FULL.replace(via, &via[..end]));
            survive_any(FULL.replace(via, &via[end..]));
            let unknown = FULL.replace("callee@", "nobody-");
            survive_any(unknown.replace(via, &via[..end]));
        }
    }
}

/// A To or From that is cut anywhere (GHSA-qvj2, CVE-2023-27599).
#[test]
fn a_party_cut_anywhere_is_answered_or_forwarded_whole() {
    for party in [
        "\"B \\\"b\\\"\" <sip:bob:pw@example.com:5060;p=v>;x=\"y\"",
        "\"A\" <sip:alice@example.com;x=y>;tag=a1",
    ] {
        for end in 0..party.len() {
            survive_any(FULL.replace(party, &party[..end]));
            survive_any(FULL.replace(party, &party[end..]));
            let tagged = format!("{};tag=", &party[..end]);
            survive_any(FULL.replace(party, &tagged));
        }
    }
}

/// The Request-URI is rewritten whatever it was (GHSA-358f, CVE-2023-27597).
#[test]
fn odd_request_uris_are_rewritten_or_refused() {
    for uri in [
        "sip:",
        "sip:@",
        "sip::@h",
        "sip:a@",
        "sip:@example.com",
        "sip:callee@example.com:",
        "sip:callee@example.com:0",
        "sip:callee@example.com:65536",
        "sip:callee@[",
        "sip:callee@[]",
        "sip:callee@[::1",
        "sip:callee@[::1]:5060;",
        "sip:callee@example.com;;;;",
        "sip:%",
        "sip:callee@example.com;=",
        "sip:callee@example.com;lr=;maddr",
        "sip:callee@example.com;maddr=",
        "sip:callee@example.com?",
        "sips:callee@example.com",
        "sip:callee@example.com;transport=x",
        "tel:",
        "tel:+1;phone-context=example.com",
        "urn:service:sos",
        "*",
        "sip:%00@example.com",
        "sip:callee:::@example.com",
        "sip:a@b@example.com",
        "SIP:CALLEE@EXAMPLE.COM.",
        "sip:.",
        "sip:-",
    ] {
        survive_any(FULL.replace("sip:callee@example.com SIP", &format!("{uri} SIP")));
    }
}

/// A name that is spelled with white space before its colon, folded, compact or in another case is the
/// same header (CVE-2020-28361): what is removed on the way is removed in every spelling.
#[test]
fn our_own_route_is_removed_in_every_spelling() {
    for route in ["Route :", "ROUTE\t:", "route: \r\n ", "Route  \t :\r\n\t"] {
        let text = FULL.replace("Route: <sip:198", &format!("{route} <sip:198"));
        let seen = survive(text, ANY);
        assert_eq!(seen.forwarded().count(HeaderName::Route), 0, "{route:?}");
    }
}

/// A control character before the colon makes no header, and the message goes nowhere: the next hop
/// might take it for one (CVE-2016-9938).
#[test]
fn a_control_character_before_the_colon_is_never_forwarded() {
    for byte in (1..=31)
        .chain([127])
        .filter(|byte| !matches!(byte, b'\t' | b'\n' | b'\r'))
    {
        for name in ["To", "t", "Route", "Content-Length", "X"] {
            let line = format!("{name}{}: <sip:evil@h>;tag=1\r\nExpires:", char::from(byte));
            survive(FULL.replace("Expires:", &line), "400");
        }
    }
}

/// A carriage return alone ends a line for some and not for others. It is looked for in the message as
/// it came: in the sender's Via, which is rewritten with its source, it would be gone by then.
#[test]
fn a_carriage_return_alone_is_refused_wherever_it_stands() {
    for (at, with) in [
        (
            "SIP/2.0/UDP 192.168.1.2:5060",
            "SIP/2.0/UDP \r192.168.1.2:5060",
        ),
        (";branch=z9hG4bKfull", "\r;branch=z9hG4bKfull"),
        (";rport", ";rport\r"),
        ("Expires: 120", "Expires: 1\r20"),
        ("Call-ID: ", "Call-ID: \r"),
        ("CSeq: 1 ", "CSeq: 1\r"),
    ] {
        survive(FULL.replacen(at, with, 1), "400");
    }
}

/// Credentials of any shape are passed on unread (CVE-2023-28098): a proxy without users of its own
/// has nothing to look for in them.
#[test]
fn credentials_of_any_shape_do_no_harm() {
    let long = format!("Digest nonce=\"{}\"", "n".repeat(40_000));
    for value in [
        "Digest ",
        "Digest u",
        "Digest u=\"",
        "Digest",
        "",
        ",,,",
        "\"",
        "Digest =",
        &long,
    ] {
        for name in ["Authorization", "Proxy-Authorization"] {
            survive_any(FULL.replace("Expires: 120", &format!("{name}: {value}")));
            let register = FULL.replace("INVITE", "REGISTER").replace("callee@", "");
            survive_any(register.replace("Require: 100rel", &format!("{name}: {value}")));
        }
    }
}

/// Each mandatory item is missing once: branch, Expires, option tag, ttl and the like are nowhere
/// taken for granted (Kamailio 112c506d56, bf135ccbdc, 976f4ef1bd, 007f866b1c).
#[test]
fn every_line_and_every_parameter_may_be_missing() {
    for line in FULL.split_inclusive("\r\n").filter(|line| line.len() > 2) {
        survive_any(FULL.replacen(line, "", 1));
        if let Some((name, _)) = line.split_once(':') {
            survive_any(FULL.replacen(line, &format!("{name}:\r\n"), 1));
        }
    }
    for part in [
        ";branch=z9hG4bKfull",
        "z9hG4bKfull",
        "=z9hG4bKfull",
        ";rport",
        ";received=192.0.2.1",
        "=192.0.2.1",
        ";ttl=1",
        "=1",
        ";tag=a1",
        "=a1",
        "a1",
        "100rel",
        "path",
        "120",
        ";expires=60",
        "=60",
        ";lr",
        "1 INVITE",
        " INVITE\r\nC",
        "70",
        "application/sdp",
        "5\r\n\r\n",
        "SIP/2.0/UDP ",
        "192.168.1.2:5060",
        "\"B \\\"b\\\"\" ",
        "sip:bob:pw@example.com:5060;p=v",
        "<",
        ">",
    ] {
        assert!(FULL.contains(part), "{part}");
        survive_any(FULL.replacen(part, "", 1));
        survive_any(FULL.replace(part, ""));
        let register = FULL.replace("INVITE", "REGISTER").replace("callee@", "");
        survive_any(register.replacen(part, "", 1));
    }
}

/// `*` is a contact in a REGISTER only (OpenSIPS 3803): elsewhere the message is refused, and a
/// response with it is dropped.
#[test]
fn a_star_is_no_contact_outside_of_a_register() {
    for method in ["INVITE", "UPDATE", "SUBSCRIBE", "NOTIFY", "FROBNICATE"] {
        let text = FULL.replace("INVITE", method);
        survive(
            text.replace("<sip:alice@192.168.1.2>;expires=60", "*"),
            "400",
        );
    }
    let mut world = World::with_bob();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let ok = String::from_utf8(answer(&find(&sent, BOB), 200, "OK", "b1")).expect("text");
    let star = ok.replace("<sip:bob@192.168.1.2:5060>", "*");
    assert_ne!(star, ok);
    assert_eq!(summary(&world.receive(BOB, star.as_bytes())), [""; 0]);
    assert_eq!(world.proxy.counters().malformed_responses, 1);
    world.assert_all_forgotten();
}

/// A quote behind a contact's bracket, as scanners send it (OpenSIPS 2285).
#[test]
fn a_quote_behind_a_contact_is_refused() {
    for contact in [
        "<sip:alice@192.168.1.2>\"",
        "\"<sip:alice@192.168.1.2>",
        "<sip:a@h>;x=\"",
        "<sip:a",
    ] {
        survive(
            FULL.replace("<sip:alice@192.168.1.2>;expires=60", contact),
            "400",
        );
    }
}

/// A challenge of the callee is the caller's to answer: the proxy passes it on and never puts
/// credentials of its own into anything (CVE-2021-41158).
#[test]
fn a_challenge_of_the_callee_is_passed_and_not_answered() {
    for (status, name) in [(401, "WWW-Authenticate"), (407, "Proxy-Authenticate")] {
        let mut world = World::with_bob();
        let (ok, _) = world.call();
        for message in [
            in_dialog("INVITE", 2, &ok, true),
            request("MESSAGE", "sip:bob@example.com", "z9hG4bKm", ""),
        ] {
            let sent = world.receive(ALICE, &message);
            let to_bob = find(&sent, BOB);
            let line = format!("{name}: Digest realm=\"example.com\", nonce=\"x\"\r\nContact");
            let text = String::from_utf8(answer(&to_bob, status, "Who", "b1")).expect("text");
            let sent = world.receive(BOB, text.replace("Contact", &line).as_bytes());
            for transmit in &sent {
                let message = parse(transmit);
                assert!(message.method() == sip::message::Method::Ack || !message.is_request());
                assert_eq!(message.header_spelled("Authorization"), None);
            }
            assert!(find(&sent, ALICE).header_spelled(name).is_some());
        }
    }
}

/// A message whose parts are all at their limits is no more than a message.
#[test]
fn the_largest_messages_are_answered() {
    for part in [
        "Via: SIP/2.0/UDP h\r\n",
        "X: y\r\n",
        "Route: <sip:198.51.100.1;lr>\r\n",
        "m: <sip:a@b>\r\n",
    ] {
        let room = 60_000 / part.len();
        for count in [room.min(200), room.min(3_000)] {
            let many = part.repeat(count);
            let bytes = Bytes::from(FULL.replace("Expires: 120\r\n", &many));
            let mut world = world_for(&bytes);
            let sent = world.receive(ALICE, &bytes);
            assert!(sent.len() <= 2, "{:?}", summary(&sent));
            world.assert_all_forgotten();
        }
    }
    assert!(Message::parse(Bytes::from(FULL)).is_ok());
}
