//! RFC 3581: symmetric response routing.

use sip::message::Message;

use crate::text::with;
use crate::world::{ALICE, BOB, World, find, invite, summary};

/// The caller's Via as the callee sees it.
fn stamped(via: &str) -> String {
    let mut world = World::with_bob();
    let came = with(
        &invite("sip:bob@example.com"),
        "SIP/2.0/UDP 192.168.1.2:5060;branch=z9hG4bKalice1;rport",
        via,
    );
    let to_bob = find(&world.receive(ALICE, &came), BOB);
    let values = to_bob.values(sip::message::HeaderName::Via);
    let second = values
        .map(|via| String::from_utf8_lossy(&via).into_owned())
        .nth(1);
    second.expect("the caller's Via")
}

/// "When a server compliant to this specification (which can be a proxy or UAS) receives a request, it examines the topmost Via header
/// field value. If this Via header field value contains an "rport" parameter with no value, it MUST set the
/// value of the parameter to the source port of the request. … it MUST insert a "received" parameter
/// containing the source IP address that the request came from, even if it is identical to the value of the
/// "sent-by" component." (section 4)
#[test]
fn rport_and_received_are_filled_in_where_rport_asks() {
    for sent_by in ["192.168.1.2:5060", "203.0.113.10:40000", "phone"] {
        assert_eq!(
            stamped(&format!("SIP/2.0/UDP {sent_by};rport;branch=z9hG4bKx")),
            format!("SIP/2.0/UDP {sent_by};branch=z9hG4bKx;received=203.0.113.10;rport=40000")
        );
    }
}

/// A client that does not ask gets no port, and one that fills in the answer itself is corrected.
#[test]
fn rport_is_not_added_unasked_and_not_believed() {
    assert!(!stamped("SIP/2.0/UDP 192.168.1.2:5060;branch=z9hG4bKx").contains("rport"));
    let forged = stamped("SIP/2.0/UDP 192.168.1.2;branch=z9hG4bKx;rport=1;received=192.0.2.66");
    assert!(
        forged.contains("rport=40000") && forged.contains("received=203.0.113.10"),
        "{forged}"
    );
    assert!(!forged.contains("192.0.2.66"), "{forged}");
}

/// "When a server attempts to send a response, it examines the topmost Via header field value of that
/// response. If the "sent-protocol" component indicates an unreliable unicast transport protocol, such as UDP, and there
/// is no "maddr" parameter, but there is both a "received" parameter and an "rport" parameter, the response MUST be sent to the IP address listed
/// in the "received" parameter, and the port in the "rport" parameter. The response MUST be sent from the
/// same address and port that the corresponding request was received on." (section 4)
#[test]
fn the_response_goes_back_by_the_way_of_its_request() {
    let mut world = World::with_bob();
    let sent = world.receive(ALICE, &invite("sip:nobody@example.com"));
    assert_eq!(summary(&sent), ["404 -> alice"]);
    assert_eq!(sent[0].flow, world.hop(ALICE).flow);
    let text = String::from_utf8_lossy(&sent[0].bytes).into_owned();
    let message = Message::parse(sent[0].bytes.clone()).expect("a message");
    let via = message.top_via().expect("a Via");
    assert_eq!(
        (via.received(), via.rport()),
        (Some(&b"203.0.113.10"[..]), Some(&b"40000"[..])),
        "{text}"
    );
}
