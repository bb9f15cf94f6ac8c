//! Request targets.

use crate::world::{ALICE, BOB, BOB_DESK, World, invite, parse, request, summary};

/// "When accessing the location service constructed by a registrar, the Request-URI MUST first be
/// canonicalized as described in Section 10.3 before being used as an index."
#[test]
fn users_are_found_by_the_canonical_form_of_the_request_uri() {
    for uri in [
        "sip:bob@EXAMPLE.COM",
        "sip:%62o%62@example.com",
        "sip:bob@example.com;user=phone;x=y",
        "sip:bob@example.com:5060",
        "SIP:bob@Example.com",
    ] {
        let mut world = World::with_bob();
        let sent = world.receive(ALICE, &invite(uri));
        assert_eq!(summary(&sent), ["100 -> alice", "INVITE -> bob"], "{uri}");
    }
    let mut world = World::with_bob();
    let sent = world.receive(ALICE, &invite("sip:BOB@example.com"));
    assert_eq!(summary(&sent), ["404 -> alice"], "the user's case counts");
}

/// "Targets can only be placed in the target set once. If a target URI is already present in the
/// set (based on the definition of equality for the URI type), it MUST NOT be added again."
#[test]
fn equal_contacts_are_one_target() {
    let mut world = World::with_bob();
    world.register(BOB_DESK, "sip:bob@192.168.1.2:5060;x=1", "again");
    world.register(BOB, "sip:b%6Fb@192.168.1.2:5060", "third");
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    assert_eq!(sent.len(), 2, "a 100 and one INVITE: {:?}", summary(&sent));
}

/// "If the Request-URI indicates a resource at this proxy that does not exist, the proxy MUST return
/// a 404 (Not Found) response." A user without a binding cannot be told from one that does not exist.
#[test]
fn an_unknown_user_is_a_404_for_every_method() {
    for method in ["INVITE", "MESSAGE", "SUBSCRIBE", "OPTIONS", "FROBNICATE"] {
        let mut world = World::with_bob();
        let message = request(method, "sip:nobody@example.com", "z9hG4bKn", "");
        assert_eq!(summary(&world.receive(ALICE, &message)), ["404 -> alice"]);
        assert_eq!(world.proxy.counters().not_found, 1);
        world.assert_all_forgotten();
    }
}

/// "The Request-URI in the copy's start line MUST be replaced with the URI for this target. If the
/// URI contains any parameters not allowed in a Request-URI, they MUST be removed." (16.6 step 2;
/// table 1 of 19.1.1: `method` and header fields)
#[test]
fn what_no_request_uri_may_have_is_removed_from_a_contact() {
    for (contact, uri) in [
        ("sip:bob@192.168.1.2;method=INVITE", "sip:bob@192.168.1.2"),
        (
            "sip:bob@192.168.1.2?Route=%3Csip:x%3E",
            "sip:bob@192.168.1.2",
        ),
        (
            "sip:bob@192.168.1.2;a=1;METHOD=BYE;lr;b?Subject=x",
            "sip:bob@192.168.1.2;a=1;lr;b",
        ),
        (
            "sip:bob;method=x@192.168.1.2;methodic=1",
            "sip:bob;method=x@192.168.1.2;methodic=1",
        ),
    ] {
        let mut world = World::new();
        world.register(BOB, contact, "bob");
        let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
        let forwarded = parse(&sent[1]);
        assert_eq!(String::from_utf8_lossy(forwarded.request_uri()), uri);
    }
}
