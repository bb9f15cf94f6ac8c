//! Transport: what is in the messages of it. Sockets are tested in the concentrator.

use crate::text::{branch, with};
use crate::world::{ALICE, BOB, World, answer, find, invite, parse, request, summary};

/// "If the host portion of the "sent-by" parameter contains a domain name, or if it contains an IP
/// address that differs from the packet source address, the server MUST add a "received" parameter to
/// that Via header field value. This parameter MUST contain the source address from which the packet was
/// received." (18.2.1)
#[test]
fn the_source_of_a_request_is_written_into_its_via() {
    for (sent_by, received) in [
        ("192.168.1.2:5060", true),
        ("phone.example.com", true),
        ("203.0.113.10", false),
        ("203.0.113.10:9999", false),
    ] {
        let mut world = World::with_bob();
        let message = request("MESSAGE", "sip:bob@example.com", "z9hG4bKm", "");
        let message = with(&message, "192.168.1.2:5060;", &format!("{sent_by};"));
        let message = with(&message, ";rport", "");
        let sent = world.receive(ALICE, &message);
        let there = parse(&sent[0]);
        let via = there.vias().nth(1).expect("Alice's").expect("a Via");
        let expected = received.then_some(b"203.0.113.10".as_slice());
        assert_eq!(via.received(), expected, "{sent_by}");
    }
}

/// "If the "sent-protocol" is a reliable transport protocol …, the response MUST be sent using the
/// existing connection" and "Otherwise, if the top Via has a "received" parameter, the response MUST be
/// sent to the address in the "received" parameter" (18.2.2). What the sender wrote there itself, or into
/// `maddr`, is not believed: nobody is made to hear answers to questions of others.
#[test]
fn responses_go_to_where_the_request_came_from() {
    for claim in [
        ";received=192.0.2.66",
        ";maddr=192.0.2.66",
        ";maddr=224.2.0.1;ttl=16",
        ";received=255.255.255.255;rport=7",
        ";rport=4444",
    ] {
        let mut world = World::new();
        let message = request("OPTIONS", "sip:example.com", "z9hG4bKm", "");
        let message = with(&message, ";rport", claim);
        let sent = world.receive(ALICE, &message);
        assert_eq!(summary(&sent), ["200 -> alice"], "{claim}");
    }
}

/// "the client transport examines the top Via header field value. If the value of the "sent-by" parameter
/// in that header field value does not correspond to a value that the client transport is configured to
/// insert into requests, the response MUST be silently discarded." (18.1.2)
#[test]
fn a_response_whose_top_via_is_not_ours_is_dropped() {
    let mut world = World::with_bob();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let to_bob = find(&sent, BOB);
    let foreign = with(
        &answer(&to_bob, 200, "OK", "b1"),
        "SIP/2.0/UDP 198.51.100.1:5060",
        "SIP/2.0/UDP 192.0.2.66:5060",
    );
    assert_eq!(summary(&world.receive(BOB, &foreign)), [""; 0]);
    assert_eq!(world.proxy.counters().unmatched_responses, 1);
    let sent = world.receive(BOB, &answer(&to_bob, 200, "OK", "b1"));
    assert_eq!(summary(&sent), ["200 -> alice"]);
}

/// "If there are additional bytes in the transport packet beyond the end of the body, they MUST be
/// discarded. If the transport packet ends before the end of the message body, this is considered an
/// error. If the message is a response, it MUST be discarded. If the message is a request, the element
/// SHOULD generate a 400 (Bad Request) response." (18.3)
#[test]
fn content_length_and_the_datagram_must_agree() {
    let mut world = World::with_bob();
    let longer = [invite("sip:bob@example.com"), b"more".to_vec()].concat();
    let sent = world.receive(ALICE, &longer);
    let to_bob = find(&sent, BOB);
    assert!(to_bob.bytes().ends_with(b"\r\n\r\n"));

    let short = |message: &[u8]| with(message, "Content-Length: 0", "Content-Length: 1");
    assert_eq!(
        summary(&world.receive(BOB, &short(&answer(&to_bob, 200, "OK", "b1")))),
        [""; 0]
    );
    assert_eq!(world.proxy.counters().malformed_responses, 1);
    let other = request("MESSAGE", "sip:bob@example.com", "z9hG4bKshort", "");
    assert_eq!(
        summary(&world.receive(ALICE, &short(&other))),
        ["400 -> alice"]
    );
}

/// The sent-by of what we send is an address of ours, by which its answer is known again.
#[test]
fn our_sent_by_is_the_address_that_the_phone_talks_to() {
    let mut world = World::with_bob();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let to_bob = find(&sent, BOB);
    assert_eq!(
        to_bob.top_via().expect("a Via").sent_by,
        b"198.51.100.1:5060"
    );
    assert!(branch(&to_bob).starts_with("z9hG4bK"));
}
