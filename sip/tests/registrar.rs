//! The registrar, step by step through RFC 3261 section 10.3, and its bounds.
#![expect(
    clippy::unwrap_used,
    reason = "a test may panic, in its own functions as well"
)]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;
use sip::cookie::Keys;
use sip::hop::{ConnectionId, Flow, Hop, Transport};
use sip::message::{HeaderName, Message};
use sip::registrar::sighting::{KEPT, PathChange};
use sip::registrar::{AddressOfRecord, Binding, Event, Limits, Registrar, same_uri};
use wire::gre::TunnelKey;
use wire::mark::{Mark, RelayId};

/// "If there is neither, a locally-configured default value MUST be taken as the requested expiration."
/// (10.3 step 7)
#[test]
fn a_first_contact_is_bound_for_the_default_time_to_the_flow_it_came_by() {
    let mut rig = Rig::new();
    let response = rig.register(
        "a",
        1,
        &["<sip:bob@10.0.0.5:5062;ob>;+sip.instance=\"<urn:x>\""],
    );
    assert_eq!(response.status(), Some(200));
    let contacts = ["<sip:bob@10.0.0.5:5062;ob>;+sip.instance=\"<urn:x>\";expires=3600"];
    assert_eq!(contacts_of(&response), contacts);
    let binding = rig.only_binding();
    assert_eq!(binding.contact_uri, "sip:bob@10.0.0.5:5062;ob");
    assert_eq!((binding.flow, binding.relay), (udp(1), Some(relay(1))));
    assert_eq!(binding.expires_at, rig.now + secs(3600));
    assert!(matches!(
        rig.registrar.poll_event(),
        Some(Event::BindingAdded(..))
    ));
    assert!(response.to().unwrap().tag().is_some());
}

/// "The response MUST contain Contact header field values enumerating all current bindings. Each Contact
/// value MUST feature an "expires" parameter indicating its expiration interval chosen by the registrar."
/// (10.3 step 8)
#[test]
fn a_register_without_contact_tells_and_changes_nothing() {
    let mut rig = Rig::new();
    rig.register("a", 1, &["<sip:bob@10.0.0.5>;q=0.5"]);
    rig.now += Duration::from_millis(10_001);
    let response = rig.register("z", 1, &[]);
    // 3589.999 s are left: rounded up.
    assert_eq!(
        contacts_of(&response),
        ["<sip:bob@10.0.0.5>;q=0.5;expires=3590"]
    );
    assert_eq!(rig.registrar.counts().added, 1);
}

/// "If the field value has an "expires" parameter, that value MUST be taken as the requested expiration. …
/// If there is no such parameter, but the request has an Expires header field, that value MUST be taken as
/// the requested expiration." (10.3 step 7)
#[test]
fn the_contacts_own_expires_goes_before_the_header_and_that_before_the_default() {
    for (contact, header, expected) in [
        ("<sip:b@h>;expires=100", "Expires: 200\r\n", 100),
        ("<sip:b@h>", "Expires: 200\r\n", 200),
        ("<sip:b@h>", "", 3600),
        ("<sip:b@h>;expires=junk", "Expires: 200\r\n", 3600),
        ("<sip:b@h>", "Expires: junk\r\n", 3600),
        ("<sip:b@h>;expires=99999999999999", "", 7200),
    ] {
        let mut rig = Rig::new();
        let response = rig.register_with("a", 1, &[contact], header);
        assert_eq!(
            contacts_of(&response),
            [format!("<sip:b@h>;expires={expected}")]
        );
    }
}

/// "the registrar MAY reject the registration with a response of 423 (Interval Too Brief). This response
/// MUST contain a Min-Expires header field that states the minimum expiration interval the registrar is
/// willing to honor." (10.3 step 7)
#[test]
fn too_brief_an_interval_is_refused_with_the_least_and_binds_nothing() {
    let mut rig = Rig::new();
    let response = rig.register("a", 1, &["<sip:a@h>", "<sip:b@h>;expires=59"]);
    assert_eq!(response.status(), Some(423));
    assert_eq!(response.header(HeaderName::MinExpires), Some(&b"60"[..]));
    assert_eq!(rig.registrar.counts().bindings, 0);
    let response = rig.register("a", 2, &["<sip:b@h>;expires=60"]);
    assert_eq!(response.status(), Some(200));
}

/// "If not, the registrar checks whether the Call-ID agrees with the value stored for each binding. If not,
/// it MUST remove the binding." (10.3 step 6)
#[test]
fn a_wildcard_with_zero_expires_removes_all_bindings() {
    let mut rig = Rig::new();
    rig.register("a", 1, &["<sip:a@h>", "<sip:b@h>"]);
    let response = rig.register_with("b", 1, &["*"], "Expires: 0\r\n");
    assert_eq!(
        (response.status(), contacts_of(&response).len()),
        (Some(200), 0)
    );
    assert_eq!(rig.registrar.counts().removed, 2);
    assert_empty(&rig.registrar);
}

/// "If the request has additional Contact fields or an expiration time other than zero, the request is
/// invalid, and the server MUST return a 400 (Invalid Request) and skip the remaining steps." (10.3 step 6)
#[test]
fn a_wildcard_with_another_contact_or_another_time_is_refused() {
    for (contacts, header) in [
        (&["*"][..], ""),
        (&["*"], "Expires: 1\r\n"),
        (&["*", "<sip:b@h>"], "Expires: 0\r\n"),
        (&["<sip:b@h>", "*"], "Expires: 0\r\n"),
        (&["*", "*"], "Expires: 0\r\n"),
    ] {
        let mut rig = Rig::new();
        rig.register("a", 1, &["<sip:a@h>"]);
        assert_eq!(
            rig.register_with("a", 2, contacts, header).status(),
            Some(400)
        );
        assert_eq!(rig.registrar.counts().bindings, 1);
    }
}

/// "If the value is higher than that of the existing binding, it MUST update or remove the binding as
/// above. If not, the update MUST be aborted and the request fails." (10.3 step 7)
#[test]
fn within_one_call_id_an_older_or_equal_cseq_is_refused_and_changes_nothing() {
    let mut rig = Rig::new();
    rig.register("a", 5, &["<sip:a@h>"]);
    for cseq in [4, 5] {
        let contacts = ["<sip:new@h>", "<sip:a@h>;expires=0"];
        assert_eq!(rig.register("a", cseq, &contacts).status(), Some(500));
        assert_eq!(
            rig.register_with("a", cseq, &["*"], "Expires: 0\r\n")
                .status(),
            Some(500)
        );
    }
    assert_eq!(rig.only_binding().contact_uri, "sip:a@h");
    assert_eq!(rig.register("a", 6, &["<sip:a@h>"]).status(), Some(200));
    // Another Call-ID: the user agent has restarted and counts from the start.
    assert_eq!(rig.register("b", 1, &["<sip:a@h>"]).status(), Some(200));
    assert_eq!(rig.only_binding().cseq, 1);
}

/// "If the Call-ID value in the existing binding differs from the Call-ID value in the request, the binding
/// MUST be removed if the expiration time is zero and updated otherwise." (10.3 step 7)
#[test]
fn a_refresh_moves_the_deadline_and_the_flow_and_replaces_the_parameters() {
    let mut rig = Rig::new();
    rig.register("a", 1, &["<sip:a@h>;q=0.1;expires=100"]);
    rig.now += secs(99);
    rig.hop = Hop {
        flow: udp(2),
        relay: Some(relay(2)),
    };
    rig.register("a", 2, &["<sip:a@H>;expires=100"]);
    rig.now += secs(99);
    rig.registrar.handle_timeout(rig.now);
    let binding = rig.only_binding();
    assert_eq!((binding.flow, binding.relay), (udp(2), Some(relay(2))));
    assert_eq!((binding.q_thousandths, binding.parameters.len()), (1000, 0));
    assert_eq!(rig.registrar.counts().flows, 1);
}

/// "the binding MUST be removed if the expiration time is zero and updated otherwise." (10.3 step 7)
#[test]
fn zero_expires_removes_one_binding_and_is_fine_for_one_that_is_not_there() {
    let mut rig = Rig::new();
    rig.register("a", 1, &["<sip:a@h>", "<sip:b@h>"]);
    let response = rig.register("a", 2, &["<sip:a@h>;expires=0", "<sip:x@h>;expires=0"]);
    assert_eq!(contacts_of(&response), ["<sip:b@h>;expires=3600"]);
}

/// "The registrar now processes each contact address in the Contact header field in turn." (10.3 step 7)
#[test]
fn a_contact_named_twice_counts_as_it_was_named_last() {
    let mut rig = Rig::new();
    let response = rig.register("a", 1, &["<sip:a@h>;expires=100", "<sip:a@h>;expires=200"]);
    assert_eq!(contacts_of(&response), ["<sip:a@h>;expires=200"]);
}

/// "The binding updates MUST be committed (that is, made visible to the proxy or redirect server) if and
/// only if all binding updates and additions succeed." (10.3 step 7)
#[test]
fn one_bad_contact_spoils_the_whole_request() {
    let bare = "sip:user@example.com?Route=%3Csip:sip.example.com%3E";
    for bad in [
        bare,
        "<sip:b@h",
        "<>",
        "<nonsense>",
        "<sip:b@h>;x=\"",
        "<sip:b\u{7}@h>",
    ] {
        let mut rig = Rig::new();
        assert_eq!(
            rig.register("a", 1, &["<sip:a@h>", bad]).status(),
            Some(400),
            "{bad}"
        );
        assert_empty(&rig.registrar);
    }
    let mut rig = Rig::new();
    let long = format!("<sip:{}@h>", "a".repeat(2048));
    assert_eq!(rig.register("a", 1, &[&long]).status(), Some(400));
}

/// "REGISTER requests MUST also be processed atomically, meaning that a particular REGISTER request is
/// either processed completely or not at all." (10.3)
#[test]
fn too_many_contacts_of_one_user_are_refused_all_or_nothing() {
    let mut rig = Rig::new();
    rig.register("a", 1, &["<sip:1@h>", "<sip:2@h>"]);
    assert_eq!(
        rig.register("a", 2, &["<sip:3@h>", "<sip:4@h>"]).status(),
        Some(403)
    );
    assert_eq!(rig.registrar.counts().bindings, 2);
    let swap = ["<sip:1@h>;expires=0", "<sip:3@h>", "<sip:4@h>"];
    assert_eq!(rig.register("a", 3, &swap).status(), Some(200));
    let seven: Vec<String> = (0..7).map(|at| format!("<sip:{at}@h>;expires=0")).collect();
    let seven: Vec<&str> = seven.iter().map(String::as_str).collect();
    assert_eq!(rig.register("a", 4, &seven).status(), Some(403));
}

#[test]
fn a_full_registrar_refuses_new_bindings_and_still_refreshes_and_removes() {
    let mut rig = Rig::new();
    for user in ["u1", "u2", "u3", "u4"] {
        rig.user = user.to_owned();
        assert_eq!(rig.register("a", 1, &["<sip:a@h>"]).status(), Some(200));
    }
    rig.user = "u5".to_owned();
    let refused = rig.register("a", 1, &["<sip:a@h>"]);
    assert_eq!(refused.status(), Some(503));
    rig.user = "u1".to_owned();
    assert_eq!(rig.register("a", 2, &["<sip:a@h>"]).status(), Some(200));
    assert_eq!(
        rig.register("a", 3, &["<sip:a@h>;expires=0"]).status(),
        Some(200)
    );
    rig.user = "u5".to_owned();
    assert_eq!(rig.register("a", 2, &["<sip:a@h>"]).status(), Some(200));
    assert_eq!(rig.registrar.counts().refused, 1);
}

/// "Each Contact value MUST feature an "expires" parameter indicating its expiration interval chosen by the
/// registrar." (10.3 step 8)
#[test]
fn a_binding_is_there_one_millisecond_before_its_time_and_gone_at_it() {
    let mut rig = Rig::new();
    let deadline = rig.now + secs(100);
    rig.register("a", 1, &["<sip:a@h>;expires=100"]);
    assert_eq!(
        rig.registrar.poll_timeout(),
        Some((deadline, "binding expires"))
    );
    let before = deadline - Duration::from_millis(1);
    rig.registrar.handle_timeout(before);
    assert_eq!(rig.registrar.lookup(&bob(), before).len(), 1);
    assert_eq!(rig.registrar.lookup(&bob(), deadline).len(), 0);
    rig.registrar.poll_event();
    rig.registrar.handle_timeout(deadline);
    assert!(matches!(
        rig.registrar.poll_event(),
        Some(Event::BindingExpired(..))
    ));
    assert_empty(&rig.registrar);
}

#[test]
fn lookup_gives_the_best_q_first_and_keeps_the_order_of_equals() {
    let mut rig = Rig {
        limits: Limits {
            max_contacts_per_user: 9,
            ..limits()
        },
        ..Rig::new()
    };
    rig.registrar = Registrar::new(rig.limits, Keys::new([7; 32], None));
    let contacts = [
        "<sip:a@h>;q=0.5",
        "<sip:b@h>",
        "<sip:c@h>;q=0.501",
        "<sip:d@h>;Q=1.0",
    ];
    rig.register("a", 1, &contacts);
    let order = rig.registrar.lookup(&bob(), rig.now);
    let order: Vec<_> = order
        .iter()
        .map(|binding| binding.contact_uri.clone())
        .collect();
    assert_eq!(order, ["sip:b@h", "sip:d@h", "sip:c@h", "sip:a@h"]);
}

#[test]
fn a_later_message_of_the_flow_refreshes_the_mark_of_its_bindings_only() {
    let mut rig = Rig::new();
    rig.register("a", 1, &["<sip:a@h>"]);
    rig.hop = Hop {
        flow: udp(2),
        relay: Some(relay(2)),
    };
    rig.register("b", 1, &["<sip:b@h>"]);
    rig.registrar.seen(&udp(1), Some(relay(7)), rig.now);
    // A refresh by the other phone of the user does not bring the old mark back.
    rig.register("b", 2, &["<sip:b@h>"]);
    let relays = |rig: &Rig| -> Vec<_> {
        rig.registrar
            .lookup(&bob(), rig.now)
            .iter()
            .map(|binding| binding.relay)
            .collect()
    };
    assert_eq!(relays(&rig), [Some(relay(7)), Some(relay(2))]);
    rig.registrar.seen(&udp(1), None, rig.now);
    assert_eq!(relays(&rig), [None, Some(relay(2))]);
}

#[test]
fn a_flow_that_is_seen_by_another_edge_has_drifted_and_the_last_changes_are_known() {
    let mut rig = Rig::new();
    rig.register("a", 1, &["<sip:a@h>", "<sip:b@h>"]);
    let start = rig.now;
    rig.now += secs(5);
    rig.registrar.seen(&udp(1), Some(relay(1)), rig.now);
    let seen = rig.registrar.sighting(&udp(1)).unwrap();
    assert_eq!((seen.since(), seen.last()), (start, rig.now));
    assert_eq!((seen.changes(), seen.recent().count()), (0, 0));
    for round in 0..10 {
        rig.now += secs(1);
        let next = [edge(2, 3), relay(1)][round % 2];
        rig.registrar.seen(&udp(1), Some(next), rig.now);
    }
    let seen = rig.registrar.sighting(&udp(1)).unwrap();
    assert_eq!((seen.relay(), seen.since()), (Some(relay(1)), rig.now));
    assert_eq!(seen.changes(), 10);
    let recent: Vec<_> = seen.recent().collect();
    assert_eq!(recent.len(), KEPT);
    let last = PathChange {
        at: rig.now,
        from: Some(edge(2, 3)),
        to: Some(relay(1)),
    };
    assert_eq!(recent.last(), Some(&last));
    assert_eq!(recent[0].at, rig.now - secs(7));
    // Two bindings, five times each way.
    assert_eq!(rig.edges(), [(Some(0x1001), 2, 10), (Some(2), 0, 10)]);
}

#[test]
fn the_history_of_a_binding_goes_along_to_its_next_flow() {
    let mut rig = Rig::new();
    rig.register("a", 1, &["<sip:a@h>"]);
    rig.registrar.seen(&udp(1), Some(relay(2)), rig.now);
    rig.hop = Hop {
        flow: udp(2),
        relay: Some(edge(2, 3)),
    };
    rig.now += secs(9);
    rig.register("a", 2, &["<sip:a@h>"]);
    assert_eq!(rig.registrar.sighting(&udp(1)), None);
    let seen = rig.registrar.sighting(&udp(2)).unwrap();
    assert_eq!((seen.changes(), seen.since()), (2, rig.now));
    assert_eq!(rig.edges(), [(Some(0x1001), 0, 1), (Some(2), 1, 1)]);
    rig.register_with("a", 3, &["*"], "Expires: 0\r\n");
    assert_eq!(rig.edges(), [(Some(0x1001), 0, 1), (Some(2), 0, 1)]);
}

#[test]
fn bindings_go_with_their_connection_and_no_others() {
    let mut rig = Rig::new();
    rig.register("a", 1, &["<sip:a@h>"]);
    let connection = ConnectionId(9);
    let flow = Flow {
        transport: Transport::Tcp,
        connection: Some(connection),
        ..udp(1)
    };
    rig.hop = Hop { flow, relay: None };
    rig.register("b", 1, &["<sip:b@h;transport=tcp>"]);
    rig.registrar.connection_closed(ConnectionId(8), rig.now);
    assert_eq!(rig.registrar.counts().bindings, 2);
    rig.registrar.connection_closed(connection, rig.now);
    assert_eq!(rig.only_binding().contact_uri, "sip:a@h");
    assert_eq!(
        (rig.registrar.counts().removed, rig.registrar.counts().flows),
        (1, 1)
    );
}

/// "The URI MUST then be converted to a canonical form. To do that, all URI parameters MUST be removed
/// (including the user-param), and any escaped characters MUST be converted to their unescaped form." (10.3
/// step 5)
#[test]
fn an_address_of_record_is_canonical() {
    let name = |uri: &str| AddressOfRecord::from_uri(uri.as_bytes()).map(|aor| aor.to_string());
    for uri in [
        "sip:bob@Example.COM",
        "SIPS:bob@example.com:5061;transport=tls",
        "sip:%62ob:secret@example.com?Subject=x",
    ] {
        assert_eq!(name(uri).as_deref(), Some("bob@example.com"), "{uri}");
    }
    assert_eq!(
        name("sip:Bob@example.com").as_deref(),
        Some("Bob@example.com")
    );
    assert_eq!(name("sip:a%2fb%00@h").as_deref(), Some("a%2Fb%00@h"));
    assert_eq!(
        name("sip:b@[2001:DB8:0::1]").as_deref(),
        Some("b@[2001:db8::1]")
    );
    assert_eq!(name("sip:example.com").as_deref(), Some("example.com"));
    assert_eq!((name("tel:+1"), name("bob"), name("")), (None, None, None));
}

#[test]
fn uris_are_the_same_as_the_examples_of_section_19_1_4_say() {
    for (a, b) in [
        (
            "sip:%61lice@atlanta.com;transport=TCP",
            "sip:alice@AtLanTa.CoM;Transport=tcp",
        ),
        ("sip:carol@chicago.com", "sip:carol@chicago.com;newparam=5"),
        ("sip:carol@chicago.com", "sip:carol@chicago.com;security=on"),
        (
            "sip:biloxi.com;transport=tcp;method=REGISTER?to=sip:bob%40biloxi.com",
            "sip:biloxi.com;method=REGISTER;transport=tcp?to=sip:bob%40biloxi.com",
        ),
        (
            "sip:alice@atlanta.com?subject=project%20x&priority=urgent",
            "sip:alice@atlanta.com?priority=urgent&subject=project%20x",
        ),
        ("TEL:+1", "tel:+1"),
    ] {
        assert!(
            same_uri(a.as_bytes(), b.as_bytes()) && same_uri(b.as_bytes(), a.as_bytes()),
            "{a}"
        );
    }
    for (a, b) in [
        (
            "SIP:ALICE@AtLanTa.CoM;Transport=udp",
            "sip:alice@AtLanTa.CoM;Transport=UDP",
        ),
        ("sip:bob@biloxi.com", "sip:bob@biloxi.com:5060"),
        ("sip:bob@biloxi.com", "sip:bob@biloxi.com;transport=udp"),
        (
            "sip:bob@biloxi.com",
            "sip:bob@biloxi.com:6000;transport=tcp",
        ),
        (
            "sip:carol@chicago.com",
            "sip:carol@chicago.com?Subject=next%20meeting",
        ),
        ("sip:bob@phone21.boxesbybob.com", "sip:bob@192.0.2.4"),
        (
            "sip:carol@chicago.com;security=on",
            "sip:carol@chicago.com;security=off",
        ),
        ("sip:a@h", "sips:a@h"),
        ("sip:a:x@h", "sip:a@h"),
        ("sip:%00@h", "sip:%00%00@h"),
        ("sip:a@h;maddr=1.2.3.4", "sip:a@h"),
        ("tel:+1", "tel:+2"),
    ] {
        assert!(
            !same_uri(a.as_bytes(), b.as_bytes()) && !same_uri(b.as_bytes(), a.as_bytes()),
            "{a}"
        );
    }
}

#[test]
fn the_torture_contacts_are_kept_apart_and_told_as_they_came() {
    // RFC 4475 sections 3.3.13, 3.3.14 (cparam01, cparam02), 3.3.15 (regescrt), 3.1.1.4 (escnull).
    let route = "<sip:user@example.com?Route=%3Csip:sip.example.com%3E>";
    for (contacts, expected) in [
        (
            &["sip:+1@gw1.example.net;unknownparam"][..],
            &["<sip:+1@gw1.example.net>;unknownparam"][..],
        ),
        (
            &["<sip:+1@gw1.example.net;unknownparam>"],
            &["<sip:+1@gw1.example.net;unknownparam>"],
        ),
        (&[route], &[route]),
        (
            &["<sip:%00@h>", "<sip:%00%00@h>"],
            &["<sip:%00@h>", "<sip:%00%00@h>"],
        ),
    ] {
        let mut rig = Rig::new();
        let response = rig.register("a", 1, contacts);
        let expected: Vec<_> = expected
            .iter()
            .map(|contact| format!("{contact};expires=3600"))
            .collect();
        assert_eq!(contacts_of(&response), expected);
    }
}

#[test]
fn a_folded_contact_parameter_cannot_start_a_line_of_its_own() {
    let mut rig = Rig::new();
    let response = rig.register("a", 1, &["<sip:a@h>;x=\"1\r\n Evil: 2\";\r\n\ty=3"]);
    let text = String::from_utf8(response.bytes().to_vec()).unwrap();
    assert_eq!(contacts_of(&response).len(), 1);
    assert!(
        !text
            .lines()
            .any(|line| line.trim_start().starts_with("Evil")),
        "{text}"
    );
}

#[test]
fn events_that_nobody_takes_are_bounded_and_counted() {
    let mut rig = Rig::new();
    for cseq in 1..=5000 {
        rig.register("a", cseq, &["<sip:a@h>"]);
    }
    assert_eq!(rig.registrar.counts().events_lost, 5000 - 4096);
}

#[derive(Debug, Clone)]
enum Step {
    Register {
        user: u8,
        call: u8,
        contacts: Vec<(u8, u32)>,
        peer: u8,
        tcp: bool,
    },
    RemoveAll {
        user: u8,
    },
    Seen {
        peer: u8,
        mark: u8,
    },
    Close {
        peer: u8,
    },
    Wait {
        millis: u64,
    },
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// A model of deadlines by user and contact beside the registrar.
    #[test]
    fn bindings_never_exceed_the_limits_and_expire_exactly_on_time(
        steps in prop::collection::vec(steps(), 1..60),
    ) {
        let mut rig = Rig::new();
        let mut model: HashMap<(u8, u8), (Instant, Flow)> = HashMap::new();
        for (number, step) in steps.into_iter().enumerate() {
            let cseq = u32::try_from(number).unwrap() + 1;
            match step {
                Step::Register { user, call, contacts, peer, tcp } => {
                    rig.user = format!("u{user}");
                    let flow = if tcp { tcp_flow(peer) } else { udp(peer) };
                    rig.hop = Hop { flow, relay: Some(relay(peer)) };
                    let texts: Vec<_> = contacts
                        .iter()
                        .map(|(contact, expires)| format!("<sip:{contact}@h>;expires={expires}"))
                        .collect();
                    let texts: Vec<_> = texts.iter().map(String::as_str).collect();
                    let response = rig.register(&format!("c{call}"), cseq, &texts);
                    if response.status() == Some(200) {
                        let named: HashMap<_, _> = contacts.into_iter().collect();
                        for (contact, expires) in named {
                            let at = rig.now + secs(expires.min(7200).into());
                            model.insert((user, contact), (at, flow));
                            if expires == 0 {
                                model.remove(&(user, contact));
                            }
                        }
                    }
                }
                Step::RemoveAll { user } => {
                    rig.user = format!("u{user}");
                    let response = rig.register_with("star", cseq, &["*"], "Expires: 0\r\n");
                    prop_assert_eq!(response.status(), Some(200));
                    model.retain(|(owner, _), _| *owner != user);
                }
                Step::Seen { peer, mark } => {
                    let relay = edge(mark.into(), mark);
                    rig.registrar.seen(&udp(peer), Some(relay), rig.now);
                }
                Step::Close { peer } => {
                    rig.registrar.connection_closed(ConnectionId(peer.into()), rig.now);
                    model.retain(|_, (_, flow)| *flow != tcp_flow(peer));
                }
                Step::Wait { millis } => {
                    rig.now += Duration::from_millis(millis);
                    rig.registrar.handle_timeout(rig.now);
                }
            }
            let now = rig.now;
            model.retain(|_, (at, _)| *at > now);
            prop_assert_eq!(rig.found(), model.clone());
            let counts = rig.registrar.counts();
            prop_assert!(counts.bindings <= limits().max_bindings);
            let by_edge: usize = rig.registrar.edges().map(|(_, of)| of.bindings).sum();
            prop_assert_eq!(by_edge, counts.bindings);
            let next = model.values().map(|(at, _)| *at).min();
            if rig.registrar.poll_timeout().is_some_and(|(at, _)| at > now) || next.is_none() {
                prop_assert_eq!(rig.registrar.poll_timeout().map(|(at, _)| at), next);
            }
        }
        rig.registrar.handle_timeout(rig.now + secs(7200));
        assert_empty(&rig.registrar);
    }
}

fn steps() -> impl Strategy<Value = Step> {
    let interval = prop::sample::select(vec![0_u32, 30, 60, 61, 100, 3600, 9999]);
    let contacts = prop::collection::vec((0_u8..4, interval), 0..4);
    prop_oneof![
        4 => (0_u8..4, 0_u8..3, contacts, 0_u8..4, any::<bool>()).prop_map(
            |(user, call, contacts, peer, tcp)| Step::Register { user, call, contacts, peer, tcp },
        ),
        1 => (0_u8..4).prop_map(|user| Step::RemoveAll { user }),
        1 => (0_u8..4, 0_u8..64).prop_map(|(peer, mark)| Step::Seen { peer, mark }),
        1 => (0_u8..4).prop_map(|peer| Step::Close { peer }),
        2 => (0_u64..100_000).prop_map(|millis| Step::Wait { millis }),
    ]
}

/// A registrar, a user, a phone's hop and a clock.
struct Rig {
    registrar: Registrar,
    limits: Limits,
    user: String,
    hop: Hop,
    now: Instant,
}

impl Rig {
    #[expect(clippy::disallowed_methods, reason = "virtual time starts somewhere")]
    fn new() -> Self {
        Self {
            registrar: Registrar::new(limits(), Keys::new([7; 32], None)),
            limits: limits(),
            user: "bob".to_owned(),
            hop: Hop {
                flow: udp(1),
                relay: Some(relay(1)),
            },
            now: Instant::now(),
        }
    }

    fn register(&mut self, call_id: &str, cseq: u32, contacts: &[&str]) -> Message {
        self.register_with(call_id, cseq, contacts, "")
    }

    fn register_with(
        &mut self,
        call_id: &str,
        cseq: u32,
        contacts: &[&str],
        headers: &str,
    ) -> Message {
        let user = &self.user;
        let contacts: String = contacts
            .iter()
            .map(|contact| format!("Contact: {contact}\r\n"))
            .collect();
        let text = format!(
            "REGISTER sip:example.com SIP/2.0\r\nVia: SIP/2.0/UDP 10.0.0.5;branch=z9hG4bK{cseq}\r\n\
             From: <sip:{user}@example.com>;tag=1\r\nTo: <sip:{user}@example.com>\r\n\
             Call-ID: {call_id}\r\nCSeq: {cseq} REGISTER\r\n{contacts}{headers}\
             Content-Length: 0\r\n\r\n"
        );
        let request = Message::parse(Bytes::from(text)).unwrap();
        let aor = AddressOfRecord::from_uri(request.to().unwrap().uri).unwrap();
        self.registrar
            .handle_register(&request, &aor, &self.hop, self.now)
    }

    /// Key, bindings and arrivals of each edge.
    fn edges(&self) -> Vec<(Option<u32>, usize, u64)> {
        let edges = self.registrar.edges();
        let mut edges: Vec<_> = edges
            .map(|(key, of)| (key.map(|key| key.0), of.bindings, of.arrivals))
            .collect();
        edges.sort_by_key(|(key, ..)| std::cmp::Reverse(*key));
        edges
    }

    fn only_binding(&self) -> Binding {
        let mut found = self.registrar.lookup(&bob(), self.now);
        assert_eq!(found.len(), 1);
        found.remove(0)
    }

    /// What lookup gives for the users `u0` to `u3`, as deadlines and flows.
    fn found(&self) -> HashMap<(u8, u8), (Instant, Flow)> {
        let mut found = HashMap::new();
        for user in 0..4 {
            let uri = format!("sip:u{user}@example.com");
            let aor = AddressOfRecord::from_uri(uri.as_bytes()).unwrap();
            let bindings = self.registrar.lookup(&aor, self.now);
            assert!(bindings.len() <= self.limits.max_contacts_per_user);
            for binding in bindings {
                let contact = binding.contact_uri[4] - b'0';
                found.insert((user, contact), (binding.expires_at, binding.flow));
            }
        }
        found
    }
}

fn limits() -> Limits {
    Limits {
        min_expires_s: 60,
        default_expires_s: 3600,
        max_expires_s: 7200,
        max_contacts_per_user: 3,
        max_bindings: 4,
        ..Limits::default()
    }
}

fn assert_empty(registrar: &Registrar) {
    let counts = registrar.counts();
    assert_eq!((counts.users, counts.bindings, counts.flows), (0, 0, 0));
    assert_eq!(registrar.names(), 0);
    assert_eq!(
        (registrar.poll_timeout(), registrar.iter().count()),
        (None, 0)
    );
}

fn contacts_of(response: &Message) -> Vec<String> {
    let values = response.values(HeaderName::Contact);
    values
        .map(|value| String::from_utf8(value.into_owned()).unwrap())
        .collect()
}

fn bob() -> AddressOfRecord {
    AddressOfRecord::from_uri(b"sip:bob@example.com").unwrap()
}

fn udp(peer: u8) -> Flow {
    Flow {
        transport: Transport::Udp,
        peer: SocketAddr::from(([192, 0, 2, peer], 40_000)),
        local: SocketAddr::from(([198, 51, 100, 1], 5060)),
        connection: None,
    }
}

fn tcp_flow(peer: u8) -> Flow {
    let connection = Some(ConnectionId(peer.into()));
    Flow {
        transport: Transport::Tcp,
        connection,
        ..udp(peer)
    }
}

fn relay(mark: u8) -> RelayId {
    RelayId {
        key: TunnelKey(0x1001),
        mark: Mark::new(mark).unwrap(),
    }
}

fn edge(key: u32, mark: u8) -> RelayId {
    RelayId {
        key: TunnelKey(key),
        mark: Mark::new(mark).unwrap(),
    }
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
