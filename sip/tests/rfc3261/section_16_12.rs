//! Route processing as the examples of section 16.12.1 have it, seen from P2.

use sip::message::HeaderName;

use crate::text::{values, with_lines};
use crate::world::{ALICE, BOB, World, answer, find, in_dialog, invite, parse, summary};

/// "P2 gets this. It is responsible for domain.com so it runs a location service and rewrites the
/// Request-URI. It also adds a Record-Route header field value." (16.12.1.1)
#[test]
fn the_trapezoid() {
    let mut world = World::with_bob();
    let p1 = "Record-Route: <sip:p1.example.com;lr>\r\n";
    let sent = world.receive(ALICE, &with_lines(&invite("sip:bob@example.com"), p1));
    let to_bob = find(&sent, BOB);
    assert_eq!(to_bob.request_uri(), b"sip:bob@192.168.1.2:5060");
    let routes = values(&to_bob, HeaderName::RecordRoute);
    assert_eq!(routes.len(), 2);
    assert_eq!(routes[1], "<sip:p1.example.com;lr>");

    // The caller's route set is p1 and then us: p1 has taken itself off when we see the BYE.
    let sent = world.receive(BOB, &answer(&to_bob, 200, "OK", "b1"));
    let ok = parse(&sent[0]);
    assert_eq!(values(&ok, HeaderName::RecordRoute), routes);
    let bye = in_dialog("BYE", 2, &ok, true);
    let bye = String::from_utf8(bye).expect("text");
    let bye = bye.replace("Route: <sip:p1.example.com;lr>\r\n", "");
    let sent = world.receive(ALICE, bye.as_bytes());
    assert_eq!(summary(&sent), ["BYE -> bob"]);
    assert_eq!(parse(&sent[0]).count(HeaderName::Route), 0);

    // The callee's is us and then p1, to whom the rest of the route is left.
    let sent = world.receive(BOB, &in_dialog("BYE", 1, &ok, false));
    assert_eq!(summary(&sent), ["BYE -> alice"], "that flow is p1's");
    assert_eq!(
        values(&parse(&sent[0]), HeaderName::Route),
        ["<sip:p1.example.com;lr>"]
    );
}
