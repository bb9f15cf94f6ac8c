//! What we answer ourselves, as a UAS: REGISTER, OPTIONS and errors.

use sip::message::HeaderName;

use crate::text::{values, with, with_lines};
use crate::world::{ALICE, BOB, World, answer, find, invite, parse, request, summary};

fn register(branch: &str, cseq: u32, extra: &str) -> Vec<u8> {
    let message = request("REGISTER", "sip:example.com", branch, extra);
    let message = with(&message, "CSeq: 1", &format!("CSeq: {cseq}"));
    with(&message, "Call-ID: call-1", "Call-ID: reg-1")
}

fn options(branch: &str, extra: &str) -> Vec<u8> {
    request("OPTIONS", "sip:example.com", branch, extra)
}

/// "If the request has no tag in the To header field, the UAS core MUST check the request against
/// ongoing transactions. If the From tag, Call-ID, and CSeq exactly match those associated with an
/// ongoing transaction, but the request does not match that transaction (based on the matching rules
/// in Section 17.2.3), the UAS core SHOULD generate a 482 (Loop Detected) response" (8.2.2.2)
#[test]
fn a_merged_request_is_a_482_where_we_are_its_uas() {
    for first in [register("z9hG4bKa", 1, ""), options("z9hG4bKa", "")] {
        let mut world = World::new();
        assert_eq!(summary(&world.receive(ALICE, &first)), ["200 -> alice"]);
        let merged = with(&first, "z9hG4bKa", "z9hG4bKb");
        assert_eq!(summary(&world.receive(ALICE, &merged)), ["482 -> alice"]);
        assert_eq!(world.proxy.counters().merged, 1);
        // A copy is a copy: it gets the answer of its transaction.
        assert_eq!(summary(&world.receive(ALICE, &first)), ["200 -> alice"]);
        world.assert_all_forgotten();
        assert_eq!(world.proxy.merges(), 0);
        let later = with(&first, "z9hG4bKa", "z9hG4bKc");
        assert_ne!(
            summary(&world.receive(ALICE, &later)),
            ["482 -> alice"],
            "the other transaction is over"
        );
    }
}

#[test]
fn another_call_id_tag_or_cseq_is_not_merged() {
    for (from, to) in [
        ("call-1", "call-2"),
        ("tag=a1", "tag=a2"),
        ("CSeq: 1 ", "CSeq: 2 "),
    ] {
        let mut world = World::new();
        let first = options("z9hG4bKa", "");
        world.receive(ALICE, &first);
        let other = with(&with(&first, "z9hG4bKa", "z9hG4bKb"), from, to);
        assert_eq!(
            summary(&world.receive(ALICE, &other)),
            ["200 -> alice"],
            "{to}"
        );
    }
}

/// A proxy forwards merged requests: only the UAS knows what it does with both (note in 8.2.2.2: "The
/// same request has arrived at the UAS more than once, following different paths").
#[test]
fn a_merged_request_passes_where_we_are_a_proxy() {
    let mut world = World::with_bob();
    for branch in ["z9hG4bKa", "z9hG4bKb"] {
        let message = request("MESSAGE", "sip:bob@example.com", branch, "");
        assert_eq!(summary(&world.receive(ALICE, &message)), ["MESSAGE -> bob"]);
    }
}

/// "If a UAS does not understand an option-tag listed in a Require header field, it MUST respond by
/// generating a response with status code 420 (Bad Extension). The UAS MUST add an Unsupported header
/// field, and list in it those options it does not understand" (8.2.2.3)
#[test]
fn require_is_a_420_where_we_are_the_uas() {
    for message in [
        register("z9hG4bKa", 1, "Require: x-one, x-two\r\n"),
        options("z9hG4bKa", "Require: x-one\r\nRequire: x-two\r\n"),
    ] {
        let mut world = World::new();
        let sent = world.receive(ALICE, &message);
        assert_eq!(summary(&sent), ["420 -> alice"]);
        assert_eq!(
            values(&parse(&sent[0]), HeaderName::Unsupported),
            ["x-one", "x-two"]
        );
        assert_eq!(world.proxy.registrar().counts().bindings, 0);
    }
}

/// "When a 100 (Trying) response is generated, any Timestamp header field present in the request MUST
/// be copied into this 100 (Trying) response." (8.2.6.1)
#[test]
fn our_100_copies_the_timestamp() {
    let mut world = World::with_bob();
    let came = with_lines(&invite("sip:bob@example.com"), "Timestamp: 54.21\r\n");
    let sent = world.receive(ALICE, &came);
    let trying = parse(&sent[0]);
    assert_eq!(
        trying.header(HeaderName::Timestamp),
        Some(b"54.21".as_slice())
    );
    assert_eq!(trying.to().expect("To").tag(), None, "a 100 needs no tag");
}

/// "The From field of the response MUST equal the From header field of the request. The Call-ID header
/// field of the response MUST equal the Call-ID header field of the request. The CSeq header field of
/// the response MUST equal the CSeq field of the request. The Via header field values in the response
/// MUST equal the Via header field values in the request and MUST maintain the same ordering." "If a
/// request contained a To tag in the request, the To header field in the response MUST equal that of
/// the request." (8.2.6.2)
#[test]
fn our_answers_copy_what_they_must() {
    let mut world = World::new();
    let came = with_lines(
        &request("INVITE", "sip:nobody@example.com", "z9hG4bKn", ""),
        "Via: SIP/2.0/TCP two, SIP/2.0/UDP three;branch=z9hG4bK3\r\n",
    );
    let tagged = with(
        &came,
        "To: <sip:bob@example.com>",
        "To: \"B\" <sip:bob@example.com>;tag=t9",
    );
    for came in [&came, &tagged] {
        let sent = world.receive(ALICE, came);
        let answer = find(&sent, ALICE);
        let text = String::from_utf8_lossy(answer.bytes()).into_owned();
        assert!(
            text.contains("From: <sip:alice@example.com>;tag=a1\r\n"),
            "{text}"
        );
        assert!(text.contains("Call-ID: call-1\r\n") && text.contains("CSeq: 1 INVITE\r\n"));
        let vias = values(&answer, HeaderName::Via);
        assert_eq!(
            vias[1..],
            ["SIP/2.0/TCP two", "SIP/2.0/UDP three;branch=z9hG4bK3"]
        );
        let tag = answer.to().expect("To").tag().expect("a tag").to_vec();
        assert_eq!(tag == b"t9", std::ptr::eq(came, &tagged));
        world.advance(std::time::Duration::from_secs(40));
    }
}

/// "the same tag MUST be used for all responses to that request, both final and provisional (again
/// excepting the 100 (Trying))" (8.2.6.2), and the CANCEL's is the same (9.2).
#[test]
fn one_request_gets_one_tag() {
    let mut world = World::with_bob();
    let tag_of =
        |message: &sip::message::Message| message.to().expect("To").tag().expect("a tag").to_vec();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    world.receive(BOB, &answer(&find(&sent, BOB), 100, "Trying", ""));
    let cancel = request("CANCEL", "sip:bob@example.com", "z9hG4bKalice1", "");
    let sent = world.receive(ALICE, &cancel);
    let of_cancel = tag_of(&find(&sent, ALICE));
    let sent = world.advance(std::time::Duration::from_secs(33));
    let timeout = sent
        .iter()
        .map(parse)
        .find(|message| message.status() == Some(408));
    assert_eq!(tag_of(&timeout.expect("a 408")), of_cancel);
}
