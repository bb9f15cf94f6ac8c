//! RFC 5630: `sips:` URIs. Sections 5.2 and 5.3, and RFC 3261 section 16.6 step 4.

use std::time::Duration;

use sip::hop::{ConnectionId, Flow, Hop, Transmit, Transport};
use sip::message::{HeaderName, Message};
use sip::proxy::groups::{DialogAddress, GroupConfig, MemberConfig};
use sip::proxy::routing::{Audience, Destination, Route};

use crate::world::{
    ALICE, BOB, BOB_DESK, SERVICE, World, answer, find, in_dialog, parse, request, summary,
};

fn hop(peer: &str, transport: Transport) -> Hop {
    let peer: std::net::SocketAddr = peer.parse().expect("address");
    Hop {
        flow: Flow {
            transport,
            peer,
            local: SERVICE.parse().expect("address"),
            connection: transport
                .is_reliable()
                .then(|| ConnectionId(peer.port().into())),
        },
        relay: None,
    }
}

/// A REGISTER for bob with this Request-URI, contact and Path.
fn register(world: &mut World, from: &Hop, uri: &str, contact: &str, more: &str) -> Message {
    let id = from.flow.peer.port();
    let text = format!(
        "REGISTER {uri} SIP/2.0\r\nVia: SIP/2.0/TLS 192.168.1.2;branch=z9hG4bKr{id}\r\n\
         From: <sip:bob@example.com>;tag=r{id}\r\nTo: <sip:bob@example.com>\r\nCall-ID: reg-{id}\r\n\
         CSeq: 1 REGISTER\r\nMax-Forwards: 70\r\nContact: {contact}\r\n{more}Expires: 600\r\n\
         Content-Length: 0\r\n\r\n"
    );
    parse(&world.receive_from(from, text.as_bytes())[0])
}

/// Bob's phone, registered with this contact by this transport.
fn with_bob(contact: &str, transport: Transport) -> World {
    let mut world = World::new();
    let uri = if contact.starts_with("<sips") {
        "sips:example.com"
    } else {
        "sip:example.com"
    };
    let answer = register(&mut world, &hop(BOB, transport), uri, contact, "");
    assert_eq!(answer.status(), Some(200), "{answer:?}");
    world
}

fn call(world: &mut World, uri: &str) -> Vec<Transmit> {
    let invite = request("INVITE", uri, "z9hG4bKcall", "");
    world.receive_from(&hop(ALICE, Transport::Tls), &invite)
}

fn warning(message: &Message) -> String {
    let warning = message.header_spelled("Warning").unwrap_or_default();
    String::from_utf8_lossy(warning).into_owned()
}

const SECURE: &str = "<sips:bob@192.168.1.2:5061>";
const PLAIN: &str = "<sip:bob@192.168.1.2:5061;transport=tls>";

/// "when a proxy receives a request with a SIPS Request-URI, the proxy MUST only forward or retarget the
/// request to a SIPS Request-URI" (5.3). "If the Request-URI contains a SIPS URI … the URI placed into the
/// Record-Route header field MUST be a SIPS URI" (RFC 3261 section 16.6 step 4). "proxies MUST NOT use the
/// "transport=tls" parameter" (5.3).
#[test]
fn a_sips_call_goes_over_tls_from_end_to_end() {
    let mut world = with_bob(SECURE, Transport::Tls);
    let sent = call(&mut world, "sips:bob@example.com");
    assert_eq!(summary(&sent), ["100 -> alice", "INVITE -> bob"]);
    let to_bob = find(&sent, BOB);
    assert_eq!(to_bob.request_uri(), b"sips:bob@192.168.1.2:5061");
    let record_route = to_bob
        .header(HeaderName::RecordRoute)
        .expect("Record-Route");
    let record_route = String::from_utf8_lossy(record_route).into_owned();
    assert!(record_route.starts_with("<sips:"), "{record_route}");
    assert!(!record_route.contains("transport"), "{record_route}");

    let bob = hop(BOB, Transport::Tls);
    let sent = world.receive_from(&bob, &answer(&to_bob, 200, "OK", "b1"));
    let ok = parse(&sent[0]);
    for (method, wanted) in [("ACK", "ACK -> bob"), ("BYE", "BYE -> bob")] {
        let text = String::from_utf8(in_dialog(method, 2, &ok, true)).expect("text");
        let text = text.replace(&format!("{method} sip:"), &format!("{method} sips:"));
        let sent = world.receive_from(&hop(ALICE, Transport::Tls), text.as_bytes());
        assert_eq!(summary(&sent), [wanted]);
        assert_eq!(sent[0].flow.transport, Transport::Tls);
    }
    world.assert_all_forgotten();
}

/// "If the target UAS had registered previously using a SIP Contact header field instead of a SIPS Contact
/// header field, the proxy MUST NOT forward the request to the URI indicated in the Contact header field.
/// If the proxy needs to reject the request for that reason, the proxy MUST reject it with a 480
/// (Temporarily Unavailable) response. In this case, the proxy SHOULD include a Warning header with
/// warn-code 380 "SIPS Not Allowed"" (5.3).
#[test]
fn a_sips_request_never_leaves_in_the_clear() {
    for (contact, transport) in [
        (PLAIN, Transport::Tls),
        (PLAIN, Transport::Udp),
        (SECURE, Transport::Udp),
        (SECURE, Transport::Tcp),
        (SECURE, Transport::Ws),
    ] {
        let mut world = with_bob(contact, transport);
        let sent = call(&mut world, "sips:bob@example.com");
        assert_eq!(summary(&sent), ["480 -> alice"], "{contact} {transport:?}");
        assert_eq!(
            warning(&parse(&sent[0])),
            "380 sipcast \"SIPS Not Allowed\""
        );
        assert_eq!(world.proxy.counters().wrong_scheme, 1);
        world.assert_all_forgotten();
    }
}

#[test]
fn of_several_phones_only_those_by_tls_are_called() {
    let mut world = with_bob(SECURE, Transport::Wss);
    let desk = hop(BOB_DESK, Transport::Udp);
    let contact = "<sip:bob@192.168.1.3>";
    let ok = register(&mut world, &desk, "sip:example.com", contact, "");
    assert_eq!(ok.status(), Some(200));
    let sent = call(&mut world, "sips:bob@example.com");
    assert_eq!(summary(&sent), ["100 -> alice", "INVITE -> bob"]);
    let sent = world.receive_from(
        &hop(ALICE, Transport::Tls),
        &request("MESSAGE", "sip:bob@example.com", "z9hG4bKboth", ""),
    );
    assert_eq!(summary(&sent), ["MESSAGE -> bob", "MESSAGE -> desk"]);
}

/// "When a proxy receives a request with a SIP Request-URI, the proxy MUST NOT forward the request to a SIPS
/// Request-URI. If the target UAS had registered previously using a SIPS Contact header field, and the proxy
/// decides to forward the request, the proxy MUST replace that SIPS scheme with a SIP scheme while leaving
/// the rest of the URI as is, and use the resulting URI as the Request-URI of the forwarded request. The
/// proxy MUST use TLS to forward the request to the UAS." (5.3)
#[test]
fn a_sip_request_reaches_a_sips_contact_as_sip_over_tls() {
    let mut world = with_bob(SECURE, Transport::Tls);
    let sent = call(&mut world, "sip:bob@example.com");
    let to_bob = find(&sent, BOB);
    assert_eq!(to_bob.request_uri(), b"sip:bob@192.168.1.2:5061");
    assert_eq!(sent[1].flow.transport, Transport::Tls);
    let record_route = to_bob
        .header(HeaderName::RecordRoute)
        .expect("Record-Route");
    assert!(record_route.starts_with(b"<sip:"));

    // "… or because it is not capable of establishing a TLS connection, the proxy MAY reject it with a 480
    // (Temporarily Unavailable) response with a Warning header with warn-code 381 "SIPS Required"."
    let mut world = with_bob(SECURE, Transport::Udp);
    let sent = call(&mut world, "sip:bob@example.com");
    assert_eq!(summary(&sent), ["480 -> alice"]);
    assert_eq!(warning(&parse(&sent[0])), "381 sipcast \"SIPS Required\"");
}

/// "A registrar MUST accept a binding to a SIPS Contact header field only if all the appropriate URIs are of
/// the SIPS scheme; otherwise, there could be an inadvertent binding of a secure resource (SIPS) to an
/// unsecured one (SIP). This includes the Request-URI and the Contacts and all the Path header fields, but
/// does not include the From and To header fields. If the URIs are not of the proper SIPS scheme, the
/// registrar MUST reject the REGISTER with a 400 (Bad Request)." (5.2)
#[test]
fn a_sips_contact_is_bound_by_a_sips_register_only() {
    let both = format!("{SECURE}, <sip:bob@192.168.1.3>");
    let path = |scheme| format!("Supported: path\r\nPath: <{scheme}:192.0.2.7;lr>\r\n");
    for (uri, contact, more, status) in [
        ("sip:example.com", SECURE, String::new(), 400),
        ("sips:example.com", &both, String::new(), 400),
        ("sips:example.com", SECURE, path("sip"), 400),
        ("sips:example.com", SECURE, path("sips"), 200),
        ("sips:example.com", PLAIN, String::new(), 200),
    ] {
        let mut world = World::new();
        let bob = hop(BOB, Transport::Tls);
        let answer = register(&mut world, &bob, uri, contact, &more);
        assert_eq!(answer.status(), Some(status), "{uri} {contact} {more}");
        let bindings = world.proxy.registrar().counts().bindings;
        assert_eq!(bindings, usize::from(status == 200));
    }
    // One that is there may go by any request.
    let mut world = with_bob(SECURE, Transport::Tls);
    let gone = format!("{SECURE};expires=0");
    let desk = hop(BOB_DESK, Transport::Udp);
    let answer = register(&mut world, &desk, "sip:example.com", &gone, "");
    assert_eq!(answer.status(), Some(200));
    assert_eq!(world.proxy.registrar().counts().bindings, 0);
}

/// "The registrar MUST consider AORs that are identical except for one having the SIP scheme and the other
/// having the SIPS scheme to be equivalent" (5.2).
#[test]
fn sip_and_sips_name_the_same_user() {
    let mut world = World::new();
    let bob = hop(BOB, Transport::Tls);
    let text = format!(
        "REGISTER sips:example.com SIP/2.0\r\nVia: SIP/2.0/TLS 192.168.1.2;branch=z9hG4bKr\r\n\
         From: <sips:bob@example.com>;tag=r\r\nTo: <sips:bob@example.com>\r\nCall-ID: reg\r\n\
         CSeq: 1 REGISTER\r\nMax-Forwards: 70\r\nContact: {SECURE}\r\nContent-Length: 0\r\n\r\n"
    );
    let sent = world.receive_from(&bob, text.as_bytes());
    assert_eq!(parse(&sent[0]).status(), Some(200));
    for uri in ["sip:bob@example.com", "sips:bob@example.com"] {
        let message = request("MESSAGE", uri, &format!("z9hG4bK{}", &uri[..5]), "");
        let sent = world.receive_from(&hop(ALICE, Transport::Tls), &message);
        assert_eq!(summary(&sent), ["MESSAGE -> bob"], "{uri}");
    }
}

/// A next hop is no exception: "each hop over which the request is forwarded, until the request reaches the
/// SIP entity responsible for the domain portion of the Request-URI, must be secured with TLS" (RFC 3261
/// section 26.2.2).
#[test]
fn a_next_hop_of_a_sips_request_is_reached_by_tls_or_not_at_all() {
    let mut world = World::configured(|config| {
        config.routing.transports = vec![Transport::Udp, Transport::Tls];
        config.routing.routes.push(to_first_group());
        config
            .routing
            .groups
            .push(group(&["sip:192.0.2.9", "sips:192.0.2.10"]));
    });
    let sent = call(&mut world, "sips:bob@example.com");
    assert_eq!(
        summary(&sent),
        ["100 -> alice", "INVITE -> 192.0.2.10:5061"]
    );
    let plain = request("MESSAGE", "sip:carol@example.com", "z9hG4bKplain", "");
    let sent = world.receive_from(&hop(ALICE, Transport::Tls), &plain);
    assert_eq!(summary(&sent), ["MESSAGE -> 192.0.2.9:5060"]);

    let mut world = World::configured(|config| {
        config.routing.transports = vec![Transport::Udp, Transport::Tls];
        config.routing.routes.push(to_first_group());
        config.routing.groups.push(group(&["sip:192.0.2.9"]));
    });
    let sent = call(&mut world, "sips:bob@example.com");
    assert_eq!(summary(&sent), ["480 -> alice"]);
}

fn to_first_group() -> Route {
    Route {
        domain: Some(String::from("example.com")),
        prefix: None,
        sources: Vec::new(),
        audience: Audience::Anyone,
        to: Destination::Group(0),
        strip: 0,
        prepend: String::new(),
    }
}

fn group(members: &[&'static str]) -> GroupConfig {
    let members = members.iter().zip(0..).map(|(uri, priority)| MemberConfig {
        uri: uri.as_bytes().into(),
        weight: 1,
        priority,
    });
    GroupConfig {
        name: String::from("registrars"),
        members: members.collect(),
        sources: Vec::new(),
        probe: None,
        fail_on: vec![408, 503],
        timeout: Duration::from_secs(6),
        dialog_address: DialogAddress::Anycast,
    }
}
