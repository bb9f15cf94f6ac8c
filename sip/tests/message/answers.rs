//! Responses, CANCEL and ACK (RFC 3261 sections 8.2.6, 9.1, 17.1.1.3).

use sip::message::{HeaderName, Method};

use super::{INVITE, invite_with, parse, refusal};

#[test]
fn an_answer_copies_what_section_8_2_6_names() {
    let request = parse(INVITE);
    let answer = request
        .respond(404, "Not Found")
        .to_tag("t1")
        .header(HeaderName::Allow, "INVITE")
        .build();
    assert_eq!(
        answer.bytes(),
        "SIP/2.0 404 Not Found\r\n\
         Via: SIP/2.0/TCP client.atlanta.example.com:5060;branch=z9hG4bK74bf9\r\n\
         Via: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1 , SIP/2.0/UDP [2001:db8::1]:5070;rport\r\n\
         From: \"Alice, \\\"A\\\"\" <sip:alice@atlanta.example.com>;tag=9fxced76sl\r\n\
         To: Bob <sip:bob@biloxi.example.com>;tag=t1\r\n\
         Call-ID: 3848276298220188511@atlanta.example.com\r\n\
         CSeq: 1 INVITE\r\n\
         Allow: INVITE\r\n\
         Content-Length: 0\r\n\r\n"
    );
    assert_eq!(
        (answer.status(), answer.method(), answer.reason()),
        (Some(404), Method::Invite, b"Not Found".as_slice())
    );
    assert_eq!(refusal(&answer), None);
}

#[test]
fn a_tag_that_is_there_stays() {
    let request = invite_with(
        "To: Bob <sip:bob@biloxi.example.com>",
        "t: <sip:bob@h>;x=1;TAG=old",
    );
    let answer = request.respond(200, "OK").to_tag("new").build();
    assert_eq!(
        answer.header(HeaderName::To),
        Some(b"<sip:bob@h>;x=1;TAG=old".as_slice())
    );
}

#[test]
fn a_tag_is_added_behind_a_tag_parameter_of_the_uri() {
    let request = invite_with(
        "To: Bob <sip:bob@biloxi.example.com>",
        "To: <sip:bob@h;tag=uri>",
    );
    let answer = request.respond(200, "OK").to_tag("new").build();
    assert_eq!(answer.to().unwrap().tag(), Some(b"new".as_slice()));
}

#[test]
fn a_100_copies_the_timestamp_and_others_do_not() {
    let request = invite_with("Max-Forwards: 70", "Timestamp: 54");
    let trying = request.respond(100, "Trying").build();
    assert_eq!(trying.header(HeaderName::Timestamp), Some(b"54".as_slice()));
    assert_eq!(trying.to().unwrap().tag(), None);
    assert_eq!(
        request
            .respond(180, "Ringing")
            .build()
            .count(HeaderName::Timestamp),
        0
    );
}

#[test]
fn an_answer_has_a_body_of_its_own() {
    let answer = parse(INVITE)
        .respond(200, "OK")
        .body("application/sdp", "v=0\r\n")
        .build();
    assert_eq!(
        (answer.content_type(), answer.body()),
        (Some(b"application/sdp".as_slice()), b"v=0\r\n".as_slice())
    );
    assert!(!answer.content_length_fault());
}

#[test]
fn the_cancel_of_an_invite_is_its_shadow() {
    let invite = parse(INVITE);
    let cancel = invite.cancel_for();
    assert_eq!(
        (cancel.method(), cancel.request_uri()),
        (Method::Cancel, invite.request_uri())
    );
    assert_eq!(cancel.cseq(), Ok((1, Method::Cancel)));
    assert_eq!(cancel.vias().count(), 1);
    assert_eq!(cancel.top_via(), invite.top_via());
    for name in [HeaderName::From, HeaderName::To, HeaderName::CallId] {
        assert_eq!(cancel.header(name), invite.header(name));
    }
    assert!(
        cancel
            .values(HeaderName::Route)
            .eq(invite.values(HeaderName::Route))
    );
    assert_eq!(
        (
            cancel.count(HeaderName::Contact),
            cancel.body().len(),
            refusal(&cancel)
        ),
        (0, 0, None)
    );
}

#[test]
fn the_ack_of_a_failure_takes_to_from_the_response() {
    let invite = parse(INVITE);
    let response = invite.respond(486, "Busy Here").to_tag("busy").build();
    let ack = invite.ack_for(&response);
    assert_eq!(
        (ack.method(), ack.cseq()),
        (Method::Ack, Ok((1, Method::Ack)))
    );
    assert_eq!(ack.to().unwrap().tag(), Some(b"busy".as_slice()));
    assert_eq!(
        (ack.vias().count(), ack.routes().count(), refusal(&ack)),
        (1, 2, None)
    );
}
