//! RFC 5658: Record-Route where the transports of the two sides differ.

use sip::message::HeaderName;

use crate::text::values;
use crate::world::{ALICE, BOB, World, answer, find, in_dialog, invite, parse, summary};

/// Double Record-Routing: a value for each side, the one for the callee's side on top (section 5).
///
/// "implementors can choose that a proxy MAY remove two Route headers instead of one when using the double
/// Record-Routing." (section 5)
#[test]
fn two_transports_make_two_record_routes_and_both_are_taken_off_again() {
    let mut world = World::with_bob();
    world.tcp = true;
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let to_bob = find(&sent, BOB);
    let routes = values(&to_bob, HeaderName::RecordRoute);
    assert_eq!(routes.len(), 2);
    assert!(
        !routes[0].contains("transport"),
        "the callee's side is on top: {routes:?}"
    );
    assert!(routes[1].contains("transport=tcp"), "{routes:?}");
    world.tcp = false;
    let sent = world.receive(BOB, &answer(&to_bob, 200, "OK", "b1"));
    let ok = parse(&sent[0]);
    world.tcp = true;
    let sent = world.receive(ALICE, &in_dialog("ACK", 1, &ok, true));
    assert_eq!(summary(&sent), ["ACK -> bob"]);
    assert_eq!(parse(&sent[0]).count(HeaderName::Route), 0);
    world.tcp = false;
    let sent = world.receive(BOB, &in_dialog("BYE", 1, &ok, false));
    assert_eq!(summary(&sent), ["BYE -> alice"]);
    assert_eq!(parse(&sent[0]).count(HeaderName::Route), 0);
}

#[test]
fn one_transport_makes_one() {
    let mut world = World::with_bob();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    assert_eq!(find(&sent, BOB).values(HeaderName::RecordRoute).count(), 1);
}
