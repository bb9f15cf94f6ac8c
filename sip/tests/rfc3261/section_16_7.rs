//! Response processing.

use sip::message::{HeaderName, Message};

use crate::text::{values, with, with_lines};
use crate::world::{ALICE, BOB, BOB_DESK, World, answer, find, invite, parse, request, summary};

/// Alice calls Bob's two phones: what each of them got.
fn two_phones() -> (World, Message, Message) {
    let mut world = World::with_bob();
    world.register(BOB_DESK, "sip:bob@192.168.1.3:5060", "desk");
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let (to_bob, to_desk) = (find(&sent, BOB), find(&sent, BOB_DESK));
    (world, to_bob, to_desk)
}

/// "The proxy removes the topmost Via header field value from the response." (step 3) "In particular,
/// the proxy MUST NOT remove any "received" parameter it may have added to the next Via header field
/// value while processing the request associated with this response." (step 9)
#[test]
fn a_response_loses_our_via_and_nothing_else() {
    let mut world = World::with_bob();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let to_bob = find(&sent, BOB);
    let lines = "X-Odd:  kept,  as\r\n\t it is\r\nServer: a\r\n";
    let came = with_lines(&answer(&to_bob, 183, "Session  Progress", "b1"), lines);
    let sent = world.receive(BOB, &came);
    let went = parse(&sent[0]);
    let came = Message::parse(came.into()).expect("a message");
    let rest = |message: &Message| -> Vec<Vec<u8>> {
        let fields = message.headers();
        let rest = fields.filter(|field| field.name != HeaderName::Via);
        rest.map(|field| [field.raw_name, field.value].concat())
            .collect()
    };
    assert_eq!(rest(&went), rest(&came));
    assert_eq!(went.reason(), came.reason());
    assert_eq!(
        values(&went, HeaderName::Via),
        values(&came, HeaderName::Via)[1..]
    );
    assert!(went.top_via().expect("a Via").received().is_some());
}

/// "If no Via header field values remain in the response, the response was meant for this element and
/// MUST NOT be forwarded." (step 3)
#[test]
fn a_response_with_our_via_alone_is_not_forwarded() {
    let mut world = World::with_bob();
    let message = request("MESSAGE", "sip:bob@example.com", "z9hG4bKm1", "");
    let to_bob = parse(&world.receive(ALICE, &message)[0]);
    let ok = Message::parse(answer(&to_bob, 200, "OK", "b1").into()).expect("a message");
    let ours = values(&ok, HeaderName::Via).remove(0);
    let mut edit = ok.edit();
    edit.set(HeaderName::Via, ours);
    let sent = world.receive(BOB, edit.finish().bytes());
    assert!(!summary(&sent).contains(&"200 -> alice".into()));
    assert_eq!(world.proxy.counters().malformed_responses, 1);
    world.assert_all_forgotten();
}

/// "Until a final response has been sent on the server transaction, the following responses MUST be
/// forwarded immediately: Any provisional response other than 100 (Trying). Any 2xx response" (step 5)
#[test]
fn provisional_responses_and_a_2xx_pass_at_once() {
    let mut world = World::with_bob();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let to_bob = find(&sent, BOB);
    assert_eq!(
        summary(&world.receive(BOB, &answer(&to_bob, 100, "Trying", ""))),
        [""; 0]
    );
    for status in [101, 180, 181, 182, 183, 199, 204, 200] {
        let sent = world.receive(BOB, &answer(&to_bob, status, "Any", "b1"));
        assert_eq!(summary(&sent), [format!("{status} -> alice")]);
    }
    world.assert_all_forgotten();
}

/// "If a 6xx response is received, it is not immediately forwarded, but the stateful proxy SHOULD
/// cancel all client pending transactions as described in Section 10, and it MUST NOT create any new
/// branches in this context." (step 5)
#[test]
fn a_6xx_cancels_the_other_branches_and_wins() {
    let (mut world, to_bob, to_desk) = two_phones();
    world.receive(BOB_DESK, &answer(&to_desk, 180, "Ringing", "b2"));
    let sent = world.receive(BOB, &answer(&to_bob, 603, "Decline", "b1"));
    assert_eq!(summary(&sent), ["ACK -> bob", "CANCEL -> desk"]);
    let sent = world.receive(BOB_DESK, &answer(&to_desk, 487, "Request Terminated", "b2"));
    assert_eq!(summary(&sent), ["ACK -> desk", "603 -> alice"]);
    world.assert_all_forgotten();
}

#[test]
fn a_2xx_that_crosses_the_cancel_of_a_6xx_wins() {
    let (mut world, to_bob, to_desk) = two_phones();
    world.receive(BOB_DESK, &answer(&to_desk, 180, "Ringing", "b2"));
    world.receive(BOB, &answer(&to_bob, 600, "Busy Everywhere", "b1"));
    let sent = world.receive(BOB_DESK, &answer(&to_desk, 200, "OK", "b2"));
    assert_eq!(summary(&sent), ["200 -> alice"], "and no 600 after it");
    world.assert_all_forgotten();
}

/// "After a final response has been sent on the server transaction, the following responses MUST be
/// forwarded immediately: Any 2xx response to an INVITE request. A stateful proxy MUST NOT
/// immediately forward any other responses." (step 5)
#[test]
fn after_a_final_response_only_a_2xx_to_an_invite_passes() {
    for (status, passes) in [
        (180, false),
        (200, true),
        (299, true),
        (302, false),
        (486, false),
        (603, false),
    ] {
        let (mut world, to_bob, to_desk) = two_phones();
        world.receive(BOB, &answer(&to_bob, 200, "OK", "b1"));
        let sent = world.receive(BOB_DESK, &answer(&to_desk, status, "Any", "b2"));
        let passed = summary(&sent).contains(&format!("{status} -> alice"));
        assert_eq!(passed, passes, "{status}: {:?}", summary(&sent));
        world.assert_all_forgotten();
    }
    let mut world = World::with_bob();
    world.register(BOB_DESK, "sip:bob@192.168.1.3:5060", "desk");
    let message = request("MESSAGE", "sip:bob@example.com", "z9hG4bKm1", "");
    let sent = world.receive(ALICE, &message);
    let (to_bob, to_desk) = (find(&sent, BOB), find(&sent, BOB_DESK));
    world.receive(BOB, &answer(&to_bob, 200, "OK", "b1"));
    let sent = world.receive(BOB_DESK, &answer(&to_desk, 200, "OK", "b2"));
    assert_eq!(
        summary(&sent),
        [""; 0],
        "exactly one final response to a non-INVITE"
    );
}

/// "It MUST choose from the 6xx class responses if any exist in the context. If no 6xx class responses
/// are present, the proxy SHOULD choose from the lowest response class stored in the response
/// context. … The proxy SHOULD give preference to responses that provide information affecting
/// resubmission of this request, such as 401, 407, 415, 420, and 484 if the 4xx class is chosen."
/// (step 6)
#[test]
fn the_best_of_two_failures_is_sent_whichever_comes_first() {
    for (better, worse) in [
        (600, 302),
        (603, 401),
        (302, 404),
        (301, 500),
        (401, 404),
        (407, 486),
        (415, 480),
        (420, 403),
        (484, 404),
        (486, 500),
        (404, 503),
        (480, 513),
    ] {
        for (first, second) in [(better, worse), (worse, better)] {
            let (mut world, to_bob, to_desk) = two_phones();
            world.receive(BOB, &answer(&to_bob, first, "Any", "b1"));
            let sent = world.receive(BOB_DESK, &answer(&to_desk, second, "Any", "b2"));
            let wanted = ["ACK -> desk".into(), format!("{better} -> alice")];
            assert_eq!(summary(&sent), wanted, "{first}, {second}");
            world.assert_all_forgotten();
        }
    }
}

/// "If there are no final responses in the context, the proxy MUST send a 408 (Request Timeout)
/// response to the server transaction." (step 6)
#[test]
fn without_any_response_an_invite_is_a_408() {
    let (mut world, ..) = two_phones();
    let sent = world.advance(std::time::Duration::from_secs(32));
    let answers = summary(&sent);
    assert_eq!(
        answers
            .iter()
            .filter(|line| line.ends_with("alice"))
            .collect::<Vec<_>>()[..1],
        ["408 -> alice"]
    );
    world.assert_all_forgotten();
}

/// "If the only response that was received is a 503, the proxy SHOULD generate a 500 response and
/// forward that upstream." (step 6)
#[test]
fn a_503_from_the_only_target_becomes_a_500() {
    let mut world = World::with_bob();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let to_bob = find(&sent, BOB);
    let response = with_lines(
        &answer(&to_bob, 503, "Unavailable", "b1"),
        "Retry-After: 9999\r\n",
    );
    let sent = world.receive(BOB, &response);
    assert_eq!(summary(&sent), ["ACK -> bob", "500 -> alice"]);
    assert!(!String::from_utf8_lossy(&sent[1].bytes).contains("Retry-After"));
}

/// "A proxy MUST NOT insert a tag into the To header field of a 1xx or 2xx response if the request did
/// not contain one. A proxy MUST NOT modify the tag in the To header field of a 1xx or 2xx response."
/// "An element SHOULD preserve the To tag when simply forwarding a 3-6xx response" (step 6)
#[test]
fn the_to_of_a_forwarded_response_is_the_callees() {
    for status in [180, 183, 200, 302, 486, 603] {
        for tag in ["", "b1"] {
            let mut world = World::with_bob();
            let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
            let to_bob = find(&sent, BOB);
            let sent = world.receive(BOB, &answer(&to_bob, status, "Any", tag));
            let response = find(&sent, ALICE);
            let expected = (!tag.is_empty()).then_some(tag.as_bytes());
            assert_eq!(response.to().expect("To").tag(), expected, "{status}");
        }
    }
}

/// "If the selected response is a 401 (Unauthorized) or 407 (Proxy Authentication Required), the proxy
/// MUST collect any WWW-Authenticate and Proxy-Authenticate header field values from all other 401
/// (Unauthorized) and 407 (Proxy Authentication Required) responses received so far in this response
/// context and add them to this response without modification before forwarding." (step 7)
#[test]
fn the_caller_gets_the_challenges_of_all_branches() {
    let (mut world, to_bob, to_desk) = two_phones();
    let one = "WWW-Authenticate: Digest realm=\"a\", nonce=\"1\"\r\n";
    let two = "Proxy-Authenticate: Digest realm=\"b\", nonce=\"2\"\r\n";
    world.receive(
        BOB,
        &with_lines(&answer(&to_bob, 401, "Unauthorized", "b1"), one),
    );
    let second = with_lines(&answer(&to_desk, 407, "Authenticate", "b2"), two);
    let sent = world.receive(BOB_DESK, &second);
    assert_eq!(summary(&sent), ["ACK -> desk", "401 -> alice"]);
    let best = String::from_utf8_lossy(&sent[1].bytes).into_owned();
    assert!(best.contains(one) && best.contains(two), "{best}");
}

#[test]
fn a_challenge_of_a_branch_that_did_not_win_stays_out_of_other_failures() {
    let (mut world, to_bob, to_desk) = two_phones();
    let one = "WWW-Authenticate: Digest realm=\"a\"\r\n";
    world.receive(
        BOB,
        &with_lines(&answer(&to_bob, 401, "Unauthorized", "b1"), one),
    );
    let sent = world.receive(BOB_DESK, &answer(&to_desk, 603, "Decline", "b2"));
    assert_eq!(summary(&sent), ["ACK -> desk", "603 -> alice"]);
    assert_eq!(parse(&sent[1]).count(HeaderName::WwwAuthenticate), 0);
}

/// "If the response does contain a Record-Route header field, it will contain the value the proxy
/// added." (step 8) It is left as it is: both sides are named by a value of their own (RFC 5658).
#[test]
fn record_route_comes_back_as_it_went() {
    let mut world = World::with_bob();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let to_bob = find(&sent, BOB);
    let sent = world.receive(BOB, &answer(&to_bob, 200, "OK", "b1"));
    assert_eq!(
        values(&parse(&sent[0]), HeaderName::RecordRoute),
        values(&to_bob, HeaderName::RecordRoute)
    );
}

/// "The proxy MUST NOT add to, modify, or remove the message body." (step 9)
#[test]
fn the_body_of_a_response_stays_as_it_is() {
    let mut world = World::with_bob();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let to_bob = find(&sent, BOB);
    let body = "Content-Type: x/y\r\nContent-Length: 8\r\n\r\n\0\r\n\r\n\x01ab";
    let ok = with(
        &answer(&to_bob, 200, "OK", "b1"),
        "Content-Length: 0\r\n\r\n",
        body,
    );
    let sent = world.receive(BOB, &ok);
    assert_eq!(parse(&sent[0]).body(), b"\0\r\n\r\n\x01ab");
}

/// "If the forwarded response was a final response, the proxy MUST generate a CANCEL request for all
/// pending client transactions associated with this response context." (step 10)
#[test]
fn the_first_answer_of_two_contacts_wins_and_the_other_is_cancelled() {
    let (mut world, to_bob, to_desk) = two_phones();
    world.receive(BOB, &answer(&to_bob, 180, "Ringing", "b1"));
    world.receive(BOB_DESK, &answer(&to_desk, 180, "Ringing", "b2"));
    let sent = world.receive(BOB, &answer(&to_bob, 200, "OK", "b1"));
    assert_eq!(summary(&sent), ["200 -> alice", "CANCEL -> desk"]);
    let cancel = parse(&sent[1]);
    assert_eq!(
        cancel.top_via().expect("Via").branch(),
        to_desk.top_via().expect("Via").branch(),
        "a CANCEL carries the branch of its INVITE"
    );
    world.receive(BOB_DESK, &answer(&cancel, 200, "OK", "b2"));
    let sent = world.receive(BOB_DESK, &answer(&to_desk, 487, "Request Terminated", "b2"));
    assert_eq!(
        summary(&sent),
        ["ACK -> desk"],
        "the caller has its answer already"
    );
    assert_eq!(
        world.media.count("ended"),
        1,
        "the loser's session is given back"
    );
    world.assert_all_forgotten();
}

/// "A pending client transaction is one that has received a provisional response, but no final response
/// … and has not had an associated CANCEL generated for it." (step 10)
#[test]
fn a_branch_is_cancelled_once() {
    let (mut world, to_bob, to_desk) = two_phones();
    world.receive(BOB_DESK, &answer(&to_desk, 180, "Ringing", "b2"));
    let cancel = request("CANCEL", "sip:bob@example.com", "z9hG4bKalice1", "");
    let sent = world.receive(ALICE, &cancel);
    assert_eq!(summary(&sent), ["200 -> alice", "CANCEL -> desk"]);
    let sent = world.receive(BOB, &answer(&to_bob, 200, "OK", "b1"));
    assert_eq!(summary(&sent), ["200 -> alice"], "and no second CANCEL");
    let sent = world.receive(BOB_DESK, &answer(&to_desk, 183, "Progress", "b2"));
    assert!(!summary(&sent).contains(&"CANCEL -> desk".into()));
    world.assert_all_forgotten();
}
