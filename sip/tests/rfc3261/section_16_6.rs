//! Request forwarding.

use std::collections::BTreeSet;

use sip::hop::{ConnectionId, Flow, Hop, Transport};
use sip::message::{HeaderName, Message, Uri};

use crate::text::{branch, values, with, with_lines};
use crate::world::{
    ALICE, BOB, BOB_DESK, SERVICE, World, answer, find, in_dialog, invite, parse, request, summary,
};

fn forwarded(message: &[u8]) -> Message {
    let mut world = World::with_bob();
    find(&world.receive(ALICE, message), BOB)
}

/// "Fields not detailed in the processing described below MUST NOT be removed. The copy SHOULD
/// maintain the ordering of the header fields as in the received request. The proxy MUST NOT reorder
/// field values with a common field name." (step 1)
#[test]
fn every_other_field_stays_in_its_place() {
    let lines = "X-One: 1\r\nAccept: a\r\nX-One: 2, 3\r\nRequire: x\r\nAccept: b\r\nx-one: 4\r\n";
    let came = with_lines(&invite("sip:bob@example.com"), lines);
    let fields = |message: &Message| -> Vec<(Vec<u8>, Vec<u8>)> {
        let ours = [
            HeaderName::Via,
            HeaderName::MaxForwards,
            HeaderName::RecordRoute,
        ];
        let kept = message
            .headers()
            .filter(|field| !ours.contains(&field.name));
        kept.map(|field| (field.raw_name.to_vec(), field.value.to_vec()))
            .collect()
    };
    let before = fields(&Message::parse(came.clone().into()).expect("a message"));
    assert_eq!(fields(&forwarded(&came)), before);
}

/// "The proxy MUST NOT add to, modify, or remove the message body." (step 1) What relaying must
/// change in a session description is the exception, and none is relayed here.
#[test]
fn the_body_stays_as_it_is() {
    let body = "\0\x01\r\n\r\nINVITE sip:x SIP/2.0\r\n\r\n";
    let came = with(
        &invite("sip:bob@example.com"),
        "Content-Length: 0\r\n\r\n",
        &format!(
            "Content-Type: x/y\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ),
    );
    assert_eq!(forwarded(&came).body(), body.as_bytes());
}

/// "The Request-URI in the copy's start line MUST be replaced with the URI for this target." (step 2)
#[test]
fn each_target_gets_its_own_request_uri() {
    let mut world = World::with_bob();
    world.register(BOB_DESK, "sip:desk@192.168.1.3:5060;x=y", "desk");
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    assert_eq!(find(&sent, BOB).request_uri(), b"sip:bob@192.168.1.2:5060");
    assert_eq!(
        find(&sent, BOB_DESK).request_uri(),
        b"sip:desk@192.168.1.3:5060;x=y"
    );
}

/// "If the copy contains a Max-Forwards header field, the proxy MUST decrement its value by one (1).
/// If the copy does not contain a Max-Forwards header field, the proxy MUST add one with a field
/// value, which SHOULD be 70." (step 3)
#[test]
fn max_forwards_counts_down_or_begins_at_70() {
    for (came, left) in [
        ("Max-Forwards: 70\r\n", 69),
        ("Max-Forwards: 0001\r\n", 0),
        ("max-forwards  :\r\n 255\r\n", 254),
        ("", 70),
    ] {
        let message = with(&invite("sip:bob@example.com"), "Max-Forwards: 70\r\n", came);
        let sent = forwarded(&message);
        assert_eq!(sent.max_forwards(), Ok(Some(left)), "{came}");
        assert_eq!(sent.count(HeaderName::MaxForwards), 1);
    }
}

/// "it MUST insert a Record-Route header field value into the copy before any existing Record-Route
/// header field values, even if a Route header field is already present." "The URI placed in the
/// Record-Route header field value MUST be a SIP or SIPS URI. This URI MUST contain an lr
/// parameter." (step 4)
#[test]
fn our_record_route_stands_first_and_is_a_loose_router() {
    let lines = "Record-Route: <sip:p2.example;lr>, <sip:p1.example;lr>\r\n\
                 Route: <sip:198.51.100.1;lr>\r\n";
    let routes = values(
        &forwarded(&with_lines(&invite("sip:bob@example.com"), lines)),
        HeaderName::RecordRoute,
    );
    assert_eq!(routes[1..], ["<sip:p2.example;lr>", "<sip:p1.example;lr>"]);
    let ours = routes[0].trim_matches(['<', '>']);
    let uri = Uri::parse(ours.as_bytes()).expect("a URI");
    assert!(uri.is_sip() && uri.param("lr").is_some(), "{ours}");
    assert_eq!(
        (uri.host.to_string(), uri.port),
        ("198.51.100.1".into(), Some(5060))
    );
}

/// "If a proxy needs to be in the path of any type of dialog (such as one straddling a firewall), it
/// SHOULD add a Record-Route header field value to every request with a method it does not
/// understand since that method may have dialog semantics." (step 4)
#[test]
fn what_may_make_a_dialog_is_record_routed() {
    for (method, recorded) in [
        ("INVITE", true),
        ("SUBSCRIBE", true),
        ("REFER", true),
        ("NOTIFY", true),
        ("FROBNICATE", true),
        ("MESSAGE", false),
        ("OPTIONS", false),
        ("PUBLISH", false),
    ] {
        let sent = forwarded(&request(method, "sip:bob@example.com", "z9hG4bKm", ""));
        assert_eq!(
            sent.count(HeaderName::RecordRoute) > 0,
            recorded,
            "{method}"
        );
    }
}

/// "If the copy contains a Route header field, the proxy MUST inspect the URI in its first value. If
/// that URI does not contain an lr parameter, … The proxy MUST place the Request-URI into the Route
/// header field as the last value. The proxy MUST then place the first Route header field value into
/// the Request-URI and remove that value from the Route header field." (step 6)
#[test]
fn a_strict_router_behind_us_gets_its_own_uri() {
    let mut world = World::with_bob();
    let (ok, _) = world.call();
    let bye = in_dialog("BYE", 2, &ok, true);
    let strict = with_lines(
        &bye,
        "Route: <sip:strict.example;x=1>, <sip:loose.example;lr>\r\n",
    );
    let sent = world.receive(ALICE, &strict);
    assert_eq!(summary(&sent), ["BYE -> bob"]);
    let bye = parse(&sent[0]);
    assert_eq!(bye.request_uri(), b"sip:strict.example;x=1");
    assert_eq!(
        values(&bye, HeaderName::Route),
        ["<sip:loose.example;lr>", "<sip:bob@192.168.1.2:5060>"]
    );
}

#[test]
fn a_loose_router_behind_us_leaves_the_request_uri_alone() {
    let mut world = World::with_bob();
    let (ok, _) = world.call();
    let bye = in_dialog("BYE", 2, &ok, true);
    let loose = with_lines(
        &bye,
        "Route: <sip:loose.example;lr>, <sip:strict.example>\r\n",
    );
    let sent = world.receive(ALICE, &loose);
    let bye = parse(&sent[0]);
    assert_eq!(bye.request_uri(), b"sip:bob@192.168.1.2:5060");
    assert_eq!(
        values(&bye, HeaderName::Route),
        ["<sip:loose.example;lr>", "<sip:strict.example>"]
    );
}

/// "The proxy MUST insert a Via header field value into the copy before the existing Via header field
/// values. … the proxy will compute its own branch parameter, which will be globally unique for that
/// branch, and contain the requisite magic cookie." (step 8)
#[test]
fn our_via_stands_first_and_its_branch_is_unique_for_its_target() {
    let mut world = World::with_bob();
    world.register(BOB_DESK, "sip:bob@192.168.1.3:5060", "desk");
    let mut branches = BTreeSet::new();
    for (call, came) in ["z9hG4bKone", "z9hG4bKtwo"].into_iter().enumerate() {
        let sent = world.receive(ALICE, &request("INVITE", "sip:bob@example.com", came, ""));
        for phone in [BOB, BOB_DESK] {
            let message = find(&sent, phone);
            assert_eq!(message.vias().count(), 2);
            let top = message.top_via().expect("a Via");
            assert_eq!(top.sent_by, SERVICE.as_bytes());
            assert!(top.has_magic_branch());
            branches.insert(branch(&message));
        }
        assert_eq!(branches.len(), 2 * (call + 1), "{branches:?}");
    }
}

/// "the branch parameter will be different for different instances of a spiraled or looped request
/// through a proxy." (step 8)
#[test]
fn a_spiralling_request_gets_another_branch_each_time() {
    let mut world = World::with_bob();
    let message = request("MESSAGE", "sip:bob@example.com", "z9hG4bKm1", "");
    let first = parse(&world.receive(ALICE, &message)[0]);
    let mut edit = first.edit();
    edit.set_request_uri("sip:bob@example.com;again")
        .push_front(
            HeaderName::Via,
            "SIP/2.0/UDP 192.168.1.2;branch=z9hG4bKback",
        );
    let second = parse(&world.receive(BOB, edit.finish().bytes())[0]);
    assert_ne!(branch(&first), branch(&second));
    assert_eq!(second.vias().count(), 4);
}

/// "The request method MUST NOT be included in the calculation of the branch parameter. In
/// particular, CANCEL and ACK requests (for non-2xx responses) MUST have the same branch value as
/// the corresponding request they cancel or acknowledge." (step 8)
#[test]
fn cancel_and_ack_have_the_branch_of_their_invite() {
    let mut world = World::with_bob();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let to_bob = find(&sent, BOB);
    world.receive(BOB, &answer(&to_bob, 180, "Ringing", "b1"));
    let cancel = request("CANCEL", "sip:bob@example.com", "z9hG4bKalice1", "");
    let sent = world.receive(ALICE, &cancel);
    assert_eq!(summary(&sent), ["200 -> alice", "CANCEL -> bob"]);
    assert_eq!(branch(&parse(&sent[1])), branch(&to_bob));
    let sent = world.receive(BOB, &answer(&to_bob, 487, "Request Terminated", "b1"));
    assert_eq!(summary(&sent), ["ACK -> bob", "487 -> alice"]);
    assert_eq!(branch(&parse(&sent[0])), branch(&to_bob));
}

/// "If the request will be sent to the next hop using a stream-based transport and the copy contains
/// no Content-Length header field, the proxy MUST insert one with the correct value for the body of
/// the request" (step 9), and the same of a response (section 20.14).
#[test]
fn what_goes_out_on_a_stream_has_a_content_length() {
    let mut world = World::new();
    world.tcp = true;
    world.register(BOB, "sip:bob@192.168.1.2:5060;transport=tcp", "bob");
    world.tcp = false;
    let body = "Content-Type: text/plain\r\n\r\nhello";
    let came = with(
        &invite("sip:bob@example.com"),
        "Content-Length: 0\r\n\r\n",
        body,
    );
    let sent = world.receive(ALICE, &came);
    let to_bob = find(&sent, BOB);
    assert_eq!(values(&to_bob, HeaderName::ContentLength), ["5"]);
    assert_eq!(to_bob.body(), b"hello");

    let mut world = World::with_bob();
    let caller = Hop {
        flow: Flow {
            transport: Transport::Tcp,
            peer: ALICE.parse().expect("address"),
            local: SERVICE.parse().expect("address"),
            connection: Some(ConnectionId(3)),
        },
        relay: None,
    };
    let sent = world.receive_from(&caller, &invite("sip:bob@example.com"));
    let to_bob = find(&sent, BOB);
    for status in [180, 200] {
        let response = answer(&to_bob, status, "Any", "b1");
        let response = with(&response, "Content-Length: 0\r\n\r\n", body);
        let sent = world.receive(BOB, &response);
        let response = find(&sent, ALICE);
        assert_eq!(
            values(&response, HeaderName::ContentLength),
            ["5"],
            "{status}"
        );
        assert_eq!(response.body(), b"hello");
    }
}

/// "A stateful proxy MUST create a new client transaction for this request" (step 10): it is sent
/// again until it is answered, and the answer is absorbed when it comes again.
#[test]
fn a_forwarded_request_has_a_transaction_of_its_own() {
    let mut world = World::with_bob();
    let message = request("MESSAGE", "sip:bob@example.com", "z9hG4bKm1", "");
    let sent = world.receive(ALICE, &message);
    let to_bob = parse(&sent[0]);
    let again = world.advance(std::time::Duration::from_millis(500));
    assert_eq!(summary(&again), ["MESSAGE -> bob"]);
    assert_eq!(again[0].bytes, sent[0].bytes);
    let ok = answer(&to_bob, 200, "OK", "b1");
    assert_eq!(summary(&world.receive(BOB, &ok)), ["200 -> alice"]);
    assert_eq!(summary(&world.receive(BOB, &ok)), [""; 0]);
    world.assert_all_forgotten();
}
