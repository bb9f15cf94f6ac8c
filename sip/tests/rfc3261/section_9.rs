//! Canceling a request: the CANCELs that we send.

use sip::message::{HeaderName, Message};

use crate::text::{values, with_lines};
use crate::world::{ALICE, BOB, World, answer, find, invite, parse, request, summary};

fn cancelled() -> (World, Message, Message) {
    let mut world = World::with_bob();
    let lines = "Require: x\r\nX-Other: y\r\nSupported: z\r\n";
    let sent = world.receive(ALICE, &with_lines(&invite("sip:bob@example.com"), lines));
    let to_bob = find(&sent, BOB);
    world.receive(BOB, &answer(&to_bob, 180, "Ringing", "b1"));
    let cancel = request("CANCEL", "sip:bob@example.com", "z9hG4bKalice1", "");
    let cancel = find(&world.receive(ALICE, &cancel), BOB);
    (world, to_bob, cancel)
}

/// "The Request-URI, Call-ID, To, the numeric part of CSeq, and From header fields in the CANCEL request
/// MUST be identical to those in the request being cancelled, including tags. A CANCEL constructed by a
/// client MUST have only a single Via header field value matching the top Via value in the request being
/// cancelled. … However, the method part of the CSeq header field MUST have a value of CANCEL." (9.1)
#[test]
fn a_cancel_is_the_shadow_of_its_invite() {
    let (_, invite, cancel) = cancelled();
    assert_eq!(cancel.request_uri(), invite.request_uri());
    for name in [HeaderName::CallId, HeaderName::To, HeaderName::From] {
        assert_eq!(cancel.header(name), invite.header(name), "{name:?}");
    }
    assert_eq!(
        values(&cancel, HeaderName::Via),
        values(&invite, HeaderName::Via)[..1]
    );
    assert_eq!(
        cancel.header(HeaderName::CSeq),
        Some(b"1 CANCEL".as_slice())
    );
}

/// "The CANCEL request MUST NOT contain any Require or Proxy-Require header fields." (9.1)
#[test]
fn a_cancel_requires_nothing() {
    let (_, _, cancel) = cancelled();
    assert_eq!(cancel.header_spelled("Require"), None);
    assert_eq!(cancel.count(HeaderName::ProxyRequire), 0);
}

/// "If no provisional response has been received, the CANCEL request MUST NOT be sent; rather, the client
/// MUST wait for the arrival of a provisional response before sending the request." (9.1)
#[test]
fn a_cancel_waits_for_the_first_provisional_response() {
    let mut world = World::with_bob();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let to_bob = find(&sent, BOB);
    let cancel = request("CANCEL", "sip:bob@example.com", "z9hG4bKalice1", "");
    let sent = world.receive(ALICE, &cancel);
    assert_eq!(summary(&sent), ["200 -> alice"]);
    let sent = world.receive(BOB, &answer(&to_bob, 100, "Trying", ""));
    assert_eq!(summary(&sent), ["CANCEL -> bob"]);
    let sent = world.receive(BOB, &answer(&to_bob, 487, "Request Terminated", "b1"));
    assert_eq!(summary(&sent), ["ACK -> bob", "487 -> alice"]);
    assert_eq!(world.media.count("ended"), 1);
    world.assert_all_forgotten();
}

/// "If the original request has generated a final response, the CANCEL SHOULD NOT be sent, as it is an
/// effective no-op" (9.1)
#[test]
fn nothing_is_cancelled_after_its_final_response() {
    let mut world = World::with_bob();
    world.call();
    let cancel = request("CANCEL", "sip:bob@example.com", "z9hG4bKalice1", "");
    assert_eq!(summary(&world.receive(ALICE, &cancel)), ["200 -> alice"]);
}

/// "If there is no final response for the original request in 64*T1 seconds, … the client SHOULD then
/// consider the original transaction cancelled and SHOULD destroy the client transaction handling the
/// original request." (9.1)
#[test]
fn a_cancelled_branch_is_given_up_after_64_t1() {
    let (mut world, ..) = cancelled();
    let sent = world.advance(std::time::Duration::from_millis(31_999));
    assert!(!summary(&sent).contains(&"408 -> alice".into()));
    let sent = world.advance(std::time::Duration::from_millis(1));
    assert!(
        summary(&sent).contains(&"408 -> alice".into()),
        "{:?}",
        summary(&sent)
    );
    world.assert_all_forgotten();
}

/// "CANCEL requests are … hop-by-hop": the answer to ours ends here.
#[test]
fn the_answer_to_our_cancel_stays_here() {
    let (mut world, _, cancel) = cancelled();
    for status in [200, 481] {
        let sent = world.receive(BOB, &answer(&cancel, status, "Any", "b1"));
        assert_eq!(summary(&sent), [""; 0]);
    }
    let sent = world.advance(std::time::Duration::from_secs(1));
    assert_eq!(summary(&sent), [""; 0], "and it is not sent again");
    assert_eq!(
        parse(&world.receive(ALICE, &invite("sip:bob@example.com"))[0]).status(),
        Some(180)
    );
}
