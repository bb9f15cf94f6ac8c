//! Route information preprocessing.

use sip::message::HeaderName;

use crate::text::{values, with};
use crate::world::{ALICE, World, in_dialog, invite, parse, request, summary};

/// "If the Request-URI of the request contains a value this proxy previously placed into a
/// Record-Route header field (see Section 16.6 item 4), the proxy MUST replace the Request-URI in the request with the last
/// value from the Route header field, and remove that value from the Route header field."
#[test]
fn a_strict_router_before_us_is_undone() {
    let mut world = World::with_bob();
    let (ok, _) = world.call();
    let own = values(&ok, HeaderName::RecordRoute)[0]
        .trim_matches(['<', '>'])
        .to_owned();
    let contact = "sip:bob@192.168.1.2:5060";
    let bye = in_dialog("BYE", 2, &ok, true);
    let strict = with(&bye, &format!("BYE {contact} "), &format!("BYE {own} "));
    let strict = with(
        &strict,
        &format!("Route: <{own}>"),
        &format!("Route: <{contact}>"),
    );
    let sent = world.receive(ALICE, &strict);
    assert_eq!(summary(&sent), ["BYE -> bob"]);
    let bye = parse(&sent[0]);
    assert_eq!(bye.request_uri(), contact.as_bytes());
    assert_eq!(bye.count(HeaderName::Route), 0);
}

/// "If the first value in the Route header field indicates this proxy, the proxy MUST remove that
/// value from the request."
#[test]
fn our_own_route_value_is_removed_by_address_and_by_domain() {
    for route in [
        "<sip:198.51.100.1:5060;lr>",
        "<sip:198.51.100.1;lr>",
        "<sip:example.com;lr>",
        "\"us\" <sip:EXAMPLE.com;lr;x=y>;z",
    ] {
        let mut world = World::with_bob();
        let lines = format!("Route: {route}\r\n");
        let message = request("MESSAGE", "sip:bob@example.com", "z9hG4bKr", &lines);
        let sent = world.receive(ALICE, &message);
        assert_eq!(summary(&sent), ["MESSAGE -> bob"], "{route}");
        assert_eq!(parse(&sent[0]).count(HeaderName::Route), 0, "{route}");
    }
}

/// "If the Request-URI has a maddr parameter with a value the proxy is responsible for, … the proxy
/// MUST strip the maddr … and continue processing as if those values had not been present in the
/// request."
#[test]
fn a_maddr_that_is_ours_changes_nothing() {
    for maddr in ["198.51.100.1", "example.com", "EXAMPLE.COM"] {
        let mut world = World::with_bob();
        let sent = world.receive(
            ALICE,
            &invite(&format!("sip:bob@example.com;maddr={maddr}")),
        );
        assert_eq!(summary(&sent), ["100 -> alice", "INVITE -> bob"], "{maddr}");
        assert_eq!(parse(&sent[1]).request_uri(), b"sip:bob@192.168.1.2:5060");
    }
}

/// "If the Request-URI of the request contains an maddr parameter, the Request-URI MUST be placed
/// into the target set as the only target URI" (16.5): it is not for our own users, and where it
/// goes is routing to others.
#[test]
fn a_maddr_that_is_not_ours_does_not_reach_our_users() {
    for maddr in ["192.0.2.1", "elsewhere.example", "-", "198.51.100.1x"] {
        let mut world = World::with_bob();
        let sent = world.receive(
            ALICE,
            &invite(&format!("sip:bob@example.com;maddr={maddr}")),
        );
        let lines = summary(&sent);
        assert!(
            !lines.contains(&"INVITE -> bob".into()),
            "{maddr}: {lines:?}"
        );
    }
}
