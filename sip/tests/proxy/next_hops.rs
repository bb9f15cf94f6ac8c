//! Routes, groups, DNS and Path: where requests go that no phone of ours is asked for.

#![expect(clippy::expect_used, reason = "a test may panic")]

use std::time::Duration;

use bytes::Bytes;
use sip::hop::{ConnectionId, Flow, Hop, Transport};
use sip::message::{HeaderName, Message};
use sip::proxy::groups::{DialogAddress, GroupConfig, MemberConfig};
use sip::proxy::routing::{Audience, Config, Destination, Network, Route};
use sip::resolve::Answer;

use crate::world::{ALICE, BOB, World, answer, find, in_dialog, invite, parse, request, summary};

const TRUNK: &str = "10.0.9.20:5060";
const SPARE: &str = "10.0.9.21:5060";
const UNICAST: &str = "10.0.9.2:5060";

fn group(members: &[&str]) -> GroupConfig {
    GroupConfig {
        name: "pstn".into(),
        members: members
            .iter()
            .enumerate()
            .map(|(index, uri)| MemberConfig {
                uri: Bytes::copy_from_slice(uri.as_bytes()),
                weight: 1,
                priority: index as u16,
            })
            .collect(),
        sources: vec![Network {
            address: [10, 0, 9, 0].into(),
            prefix: 24,
        }],
        probe: None,
        fail_on: vec![408, 503],
        timeout: Duration::from_secs(6),
        dialog_address: DialogAddress::Anycast,
    }
}

fn route(to: Destination) -> Route {
    Route {
        domain: None,
        prefix: None,
        sources: Vec::new(),
        audience: Audience::Known,
        to,
        strip: 0,
        prepend: String::new(),
    }
}

fn config(group: GroupConfig, route: Route) -> Config {
    Config {
        routes: vec![route],
        groups: vec![group],
        unicast: vec![UNICAST.parse().expect("address")],
        transports: vec![Transport::Udp, Transport::Tcp],
        max_udp_request: None,
    }
}

/// +49 goes to two members, the second of which stands in for the first.
fn pstn() -> Config {
    let members = ["sip:10.0.9.20", "sip:10.0.9.21:5060;transport=udp"];
    let prefix = Some("+49".into());
    let route = Route {
        prefix,
        ..route(Destination::Group(0))
    };
    config(group(&members), route)
}

fn configured(routing: Config) -> World {
    World::configured(|config| config.routing = routing)
}

/// A world in which Alice's flow has registered.
fn world(config: Config) -> World {
    let mut world = configured(config);
    world.register(ALICE, "sip:alice@192.168.1.2:5060", "alice");
    world
}

fn names(sent: &[sip::hop::Transmit]) -> Vec<String> {
    summary(sent)
        .into_iter()
        .map(|line| line.replace(TRUNK, "trunk").replace(SPARE, "spare"))
        .collect()
}

const CALL: &str = "sip:+4930123@example.com";

#[test]
fn a_route_sends_a_users_call_to_the_first_member_and_the_dialog_goes_there() {
    let mut world = world(pstn());
    let sent = world.receive(ALICE, &invite(CALL));
    assert_eq!(names(&sent), ["100 -> alice", "INVITE -> trunk"]);
    let to_trunk = parse(&sent[1]);
    assert_eq!(to_trunk.request_uri(), CALL.as_bytes());
    assert_eq!(sent[1].flow.local.to_string(), UNICAST);
    let via = to_trunk.top_via().expect("Via");
    assert_eq!(via.sent_by, UNICAST.as_bytes());
    // Each side is told an address that it can answer (RFC 5658).
    let record_routes: Vec<String> = to_trunk
        .record_routes()
        .map(|value| {
            value
                .expect("value")
                .parse_uri()
                .expect("URI")
                .host
                .to_string()
        })
        .collect();
    assert_eq!(record_routes, ["10.0.9.2", "198.51.100.1"]);

    let ok = parse(&world.receive(TRUNK, &answer(&to_trunk, 200, "OK", "t1"))[0]);
    let sent = world.receive(ALICE, &in_dialog("ACK", 1, &ok, true));
    assert_eq!(names(&sent), ["ACK -> trunk"]);
    let sent = world.receive(TRUNK, &in_dialog("BYE", 1, &ok, false));
    assert_eq!(names(&sent), ["BYE -> alice"]);
    let bye = parse(&sent[0]);
    world.receive(ALICE, &answer(&bye, 200, "OK", ""));
    assert_eq!(world.proxy.counters().routing.routed, 1);
    world.assert_all_forgotten();
}

/// No open relay: neither to a foreign domain nor through a trunk of ours.
#[test]
fn strangers_use_no_route_and_trunks_do() {
    let mut config = pstn();
    config.routes.push(Route {
        domain: Some("carrier.example".into()),
        ..route(Destination::Group(0))
    });
    let mut world = configured(config);
    for uri in [CALL, "sip:bob@Carrier.example", "sip:bob@elsewhere.example"] {
        let sent = world.receive(
            ALICE,
            &request("INVITE", uri, &format!("z9hG4bK{}", uri.len()), ""),
        );
        assert_eq!(names(&sent), ["403 -> alice"], "{uri}");
    }
    assert_eq!(world.proxy.counters().routing.relay_denied, 2);
    assert_eq!(world.proxy.counters().foreign, 1);
    let sent = world.receive("10.0.9.77:5060", &invite("sip:bob@Carrier.example"));
    assert_eq!(names(&sent)[1], "INVITE -> trunk");
}

#[test]
fn the_user_part_can_be_rewritten_and_nothing_else() {
    let mut config = pstn();
    config.routes[0].strip = 3;
    config.routes[0].prepend = "0".into();
    let mut world = world(config);
    let sent = world.receive(
        ALICE,
        &invite("sip:+4930123;ext=1:pw@example.com:5060;user=phone"),
    );
    let uri = parse(&sent[1]).request_uri().to_vec();
    assert_eq!(uri, b"sip:030123;ext=1:pw@example.com:5060;user=phone");
}

/// RFC 3263 4.3: "a failure … SHOULD be treated as … 503"; "the client SHOULD create a new request
/// … the next element of the ordered list".
#[test]
fn after_a_503_or_silence_the_next_member_is_tried_and_after_a_busy_it_is_not() {
    let mut fresh = world(pstn());
    let sent = fresh.receive(ALICE, &invite(CALL));
    let to_trunk = find(&sent, TRUNK);
    let sent = fresh.receive(TRUNK, &answer(&to_trunk, 503, "Service Unavailable", "t"));
    assert_eq!(names(&sent), ["ACK -> trunk", "INVITE -> spare"]);
    assert_eq!(
        fresh.media.count("ended"),
        1,
        "the first try's media are given back"
    );
    let to_spare = find(&sent, SPARE);
    assert_ne!(
        to_trunk.top_via().expect("Via").branch(),
        to_spare.top_via().expect("Via").branch(),
        "a new branch for a new try"
    );
    let sent = fresh.receive(SPARE, &answer(&to_spare, 486, "Busy Here", "s"));
    assert_eq!(names(&sent), ["ACK -> spare", "486 -> alice"]);
    assert_eq!(fresh.proxy.counters().routing.fail_overs, 1);
    fresh.assert_all_forgotten();

    let mut silent = world(pstn());
    silent.receive(ALICE, &invite(CALL));
    let sent = silent.advance(Duration::from_secs(6));
    assert_eq!(
        names(&sent).last().map(String::as_str),
        Some("INVITE -> spare")
    );
    // One that rings has all the time of Timer C.
    let to_spare = parse(sent.last().expect("the INVITE"));
    silent.receive(SPARE, &answer(&to_spare, 100, "Trying", ""));
    let sent = silent.advance(Duration::from_secs(60));
    assert_eq!(names(&sent), [""; 0]);
    let sent = silent.receive(SPARE, &answer(&to_spare, 200, "OK", "s"));
    assert_eq!(names(&sent), ["200 -> alice"]);

    let mut busy = world(pstn());
    let sent = busy.receive(ALICE, &invite(CALL));
    let to_trunk = find(&sent, TRUNK);
    let sent = busy.receive(TRUNK, &answer(&to_trunk, 486, "Busy Here", "t"));
    assert_eq!(names(&sent), ["ACK -> trunk", "486 -> alice"]);
    busy.assert_all_forgotten();
}

#[test]
fn when_every_member_fails_the_caller_hears_of_it_once() {
    let mut world = world(pstn());
    world.receive(ALICE, &invite(CALL));
    let sent = world.advance(Duration::from_secs(20));
    let mut last: Vec<String> = names(&sent);
    last.retain(|line| line.contains("alice"));
    // Retransmitted, for nobody acknowledges it.
    last.dedup();
    assert_eq!(last, ["408 -> alice"]);
    world.assert_all_forgotten();
}

#[test]
fn a_slow_request_other_than_invite_is_not_given_up_once_it_was_heard() {
    let mut world = world(pstn());
    let sent = world.receive(ALICE, &request("MESSAGE", CALL, "z9hG4bKm", ""));
    let message = find(&sent, TRUNK);
    world.receive(TRUNK, &answer(&message, 100, "Trying", ""));
    let sent = world.advance(Duration::from_secs(20));
    // The caller is told once that it is in hand (RFC 4320 section 4.1).
    let mut lines = names(&sent);
    lines.retain(|line| line != "MESSAGE -> trunk");
    assert_eq!(lines, ["100 -> alice"]);
    let sent = world.receive(TRUNK, &answer(&message, 200, "OK", "t"));
    assert_eq!(names(&sent), ["200 -> alice"]);
}

/// "a configuration option … every later request goes to the unicast address".
#[test]
fn a_dialog_can_be_held_at_the_unicast_address_from_both_sides() {
    let mut config = pstn();
    config.groups[0].dialog_address = DialogAddress::Unicast;
    let mut world = world(config);
    let sent = world.receive(ALICE, &invite(CALL));
    let hosts = |message: &Message| -> Vec<String> {
        let values = message.record_routes();
        values
            .map(|value| {
                value
                    .expect("value")
                    .parse_uri()
                    .expect("URI")
                    .host
                    .to_string()
            })
            .collect()
    };
    assert_eq!(hosts(&find(&sent, TRUNK)), ["10.0.9.2"]);
    // The same where the trunk calls.
    world.register(BOB, "sip:bob@192.168.1.2:5060", "bob");
    let sent = world.receive(
        TRUNK,
        &request("INVITE", "sip:bob@example.com", "z9hG4bKt", ""),
    );
    assert_eq!(hosts(&find(&sent, BOB)), ["10.0.9.2"]);
}

#[test]
fn a_member_that_does_not_answer_options_is_left_out_until_it_does() {
    let mut config = pstn();
    config.groups[0].probe = Some(Duration::from_secs(10));
    let mut world = world(config);
    let sent = world.advance(Duration::ZERO);
    assert_eq!(names(&sent), ["OPTIONS -> trunk", "OPTIONS -> spare"]);
    let mut to_spare = find(&sent, SPARE);
    for _ in 0..3 {
        world.receive(SPARE, &answer(&to_spare, 404, "Not Found", "s"));
        let sent = world.advance(Duration::from_secs(10));
        let probes: Vec<_> = sent
            .into_iter()
            .filter(|t| t.flow.peer.to_string() == SPARE)
            .collect();
        to_spare = parse(probes.last().expect("the next probe"));
    }
    let down: Vec<bool> = world
        .proxy
        .groups()
        .health()
        .map(|(.., health)| health.down)
        .collect();
    assert_eq!(down, [true, false]);
    let sent = world.receive(ALICE, &invite(CALL));
    assert_eq!(names(&sent), ["100 -> alice", "INVITE -> spare"]);

    // A 5xx is no good answer either; with all of them down all are tried.
    for _ in 0..4 {
        world.receive(SPARE, &answer(&to_spare, 500, "Server Internal Error", "s"));
        let sent = world.advance(Duration::from_secs(10));
        to_spare = parse(
            sent.iter()
                .rfind(|t| t.flow.peer.to_string() == SPARE && t.bytes.starts_with(b"OPTIONS"))
                .expect("the next probe"),
        );
    }
    let down = world
        .proxy
        .groups()
        .health()
        .filter(|(.., health)| health.down)
        .count();
    assert_eq!(down, 2);
    let sent = world.receive(ALICE, &request("INVITE", CALL, "z9hG4bKagain", ""));
    assert_eq!(names(&sent), ["100 -> alice", "INVITE -> trunk"]);

    world.receive(SPARE, &answer(&to_spare, 200, "OK", "s"));
    let sent = world.receive(ALICE, &request("INVITE", CALL, "z9hG4bKthird", ""));
    assert_eq!(names(&sent), ["100 -> alice", "INVITE -> spare"]);
}

fn by_dns() -> Config {
    let route = Route {
        domain: Some("carrier.example".into()),
        ..route(Destination::Dns)
    };
    config(group(&["sip:10.0.9.20"]), route)
}

const AWAY: &str = "sip:bob@carrier.example;transport=udp";

#[test]
fn a_request_waits_for_the_dns_and_goes_on_with_its_answer() {
    let mut world = world(by_dns());
    let sent = world.receive(ALICE, &invite(AWAY));
    assert_eq!(names(&sent), ["100 -> alice"]);
    assert_eq!(world.proxy.waiting(), 1);
    let (asked, sent) = world.answer_query(Answer::Nothing);
    assert_eq!(
        (asked.as_str(), sent.len()),
        ("Srv _sip._udp.carrier.example", 0)
    );
    let addresses = Answer::Addresses(vec![[10, 0, 9, 20].into(), [10, 0, 9, 21].into()]);
    let (asked, sent) = world.answer_query(addresses);
    assert_eq!(asked, "A carrier.example");
    assert_eq!(names(&sent), ["INVITE -> trunk"]);
    let to_trunk = find(&sent, TRUNK);
    let sent = world.receive(TRUNK, &answer(&to_trunk, 503, "Service Unavailable", "t"));
    assert_eq!(names(&sent), ["ACK -> trunk", "INVITE -> spare"]);
    assert_eq!(world.proxy.waiting(), 0);
    world.assert_all_forgotten();
}

#[test]
fn a_name_without_an_address_is_a_500_and_so_is_a_dns_that_is_silent() {
    let mut fresh = world(by_dns());
    fresh.receive(ALICE, &invite(AWAY));
    fresh.answer_query(Answer::Nothing);
    let (_, sent) = fresh.answer_query(Answer::Nothing);
    assert_eq!(names(&sent), ["500 -> alice"]);
    assert_eq!(fresh.proxy.counters().routing.unresolved, 1);
    fresh.assert_all_forgotten();

    let mut silent = world(by_dns());
    silent.receive(ALICE, &invite(AWAY));
    let (id, _) = silent.proxy.poll_query().expect("a question");
    let sent = silent.advance(Duration::from_secs(4));
    assert_eq!(names(&sent), ["500 -> alice"]);
    assert_eq!(silent.proxy.waiting(), 0);
    // The answer comes too late.
    silent
        .proxy
        .handle_answer(id, Answer::Nothing, &mut silent.media, silent.now);
    assert_eq!(silent.proxy.waiting(), 0);
    silent.assert_all_forgotten();
}

#[test]
fn a_call_that_waits_for_the_dns_can_be_cancelled() {
    let mut world = world(by_dns());
    world.receive(ALICE, &invite(AWAY));
    let cancel = request("CANCEL", AWAY, "z9hG4bKalice1", "");
    let sent = world.receive(ALICE, &cancel);
    assert_eq!(names(&sent), ["200 -> alice", "487 -> alice"]);
    assert_eq!(world.proxy.waiting(), 0);
    let (_, sent) = world.answer_query(Answer::Nothing);
    assert_eq!(names(&sent), [""; 0]);
    world.assert_all_forgotten();
}

/// The edge of another registrar: our own domain, for anyone.
fn edge() -> Config {
    let route = Route {
        domain: Some("example.com".into()),
        audience: Audience::Anyone,
        ..route(Destination::Group(0))
    };
    config(group(&["sip:10.0.9.20"]), route)
}

const REGISTRAR: &str = TRUNK;

fn register_away(world: &mut World, hop: &Hop, user: &str) -> String {
    let text = format!(
        "REGISTER sip:example.com SIP/2.0\r\nVia: SIP/2.0/UDP 192.168.1.2;branch=z9hG4bKr{user}\r\n\
         From: <sip:{user}@example.com>;tag=r\r\nTo: <sip:{user}@example.com>\r\nCall-ID: reg-{user}\r\n\
         CSeq: 1 REGISTER\r\nMax-Forwards: 70\r\nSupported: path\r\n\
         Contact: <sip:{user}@192.168.1.2:5060>\r\nContent-Length: 0\r\n\r\n"
    );
    let sent = world.receive_from(hop, text.as_bytes());
    assert_eq!(names(&sent), ["REGISTER -> trunk"]);
    let register = parse(&sent[0]);
    assert_eq!(
        register.header(HeaderName::Contact),
        Some(format!("<sip:{user}@192.168.1.2:5060>").as_bytes()),
        "no Contact is rewritten"
    );
    assert_eq!(register.count(HeaderName::RecordRoute), 0);
    let ok = register.respond(200, "OK").to_tag("k").build();
    let sent = world.receive(REGISTRAR, ok.bytes());
    assert_eq!(sent[0].flow, hop.flow);
    String::from_utf8_lossy(register.header(HeaderName::Path).expect("Path")).into_owned()
}

fn hop(peer: &str, connection: Option<u64>) -> Hop {
    let transport = if connection.is_some() {
        Transport::Tcp
    } else {
        Transport::Udp
    };
    Hop {
        flow: Flow {
            transport,
            peer: peer.parse().expect("address"),
            local: crate::world::SERVICE.parse().expect("address"),
            connection: connection.map(ConnectionId),
        },
        relay: None,
    }
}

/// RFC 3327 5.2: "the proxy inserts a URI for that proxy as the topmost value in the Path header
/// field"; the requests of the registrar come back by Route.
#[test]
fn a_register_goes_on_with_our_path_and_the_path_leads_back_to_the_flow() {
    let mut world = configured(edge());
    let bob = hop(BOB, None);
    let path = register_away(&mut world, &bob, "bob");
    assert!(path.ends_with("@10.0.9.2:5060;lr>"), "{path}");
    assert_eq!(world.proxy.registrar().counts().bindings, 0);

    let text = request(
        "INVITE",
        "sip:bob@192.168.1.2:5060",
        "z9hG4bKk1",
        &format!("Route: {path}\r\nRecord-Route: <sip:10.0.9.20;lr>\r\n"),
    );
    let sent = world.receive(REGISTRAR, &text);
    assert_eq!(names(&sent), ["100 -> trunk", "INVITE -> bob"]);
    let to_bob = find(&sent, BOB);
    assert_eq!(to_bob.request_uri(), b"sip:bob@192.168.1.2:5060");
    assert_eq!(to_bob.count(HeaderName::Route), 0);
    let ok = parse(&world.receive(BOB, &answer(&to_bob, 200, "OK", "b"))[0]);
    let sent = world.receive(BOB, &in_dialog("BYE", 2, &ok, false));
    assert_eq!(names(&sent), ["BYE -> trunk"]);
}

#[test]
fn a_forged_path_is_a_403_and_one_of_a_dead_connection_a_430() {
    let mut world = configured(edge());
    let phone = hop(BOB, Some(5));
    let path = register_away(&mut world, &phone, "bob");
    let with = |path: &str, branch: &str| {
        request(
            "MESSAGE",
            "sip:bob@192.168.1.2",
            branch,
            &format!("Route: {path}\r\n"),
        )
    };
    let middle = 12;
    let mut forged = path.clone().into_bytes();
    forged[middle] = if forged[middle] == b'A' { b'B' } else { b'A' };
    let forged = String::from_utf8(forged).expect("text");
    let sent = world.receive(REGISTRAR, &with(&forged, "z9hG4bK1"));
    assert_eq!(names(&sent), ["403 -> trunk"]);
    assert_eq!(world.proxy.counters().routing.forged_paths, 1);

    let sent = world.receive(REGISTRAR, &with(&path, "z9hG4bK2"));
    assert_eq!(names(&sent), ["MESSAGE -> bob"]);
    let sent = world.transport_error(&phone.flow);
    assert_eq!(names(&sent), ["430 -> trunk"]);
    assert_eq!(world.proxy.counters().routing.dead_flows, 1);
    world.assert_all_forgotten();
}

/// A proxy in between that stays in the dialog: what comes to it goes back to us.
fn through_registrar(message: &Message, path: Option<&str>) -> Vec<u8> {
    let mut edit = message.edit();
    if message.status().is_some() {
        edit.remove_first_value(HeaderName::Via);
        return edit.finish().bytes().to_vec();
    }
    let via = message.top_via().expect("Via");
    let branch = String::from_utf8_lossy(via.branch().expect("branch")).into_owned();
    let via = format!("SIP/2.0/UDP 10.0.9.20;branch={branch}.kam");
    edit.push_front(HeaderName::Via, via);
    match path {
        Some(path) => {
            edit.push_front(HeaderName::RecordRoute, "<sip:10.0.9.20;lr>");
            edit.push_front(HeaderName::Route, path);
            edit.set_request_uri("sip:bob@192.168.1.2:5060");
        }
        None => {
            edit.remove_first_value(HeaderName::Route);
        }
    }
    edit.finish().bytes().to_vec()
}

/// Each message of a call through two passes is shown to the media once, by the pass that hears its
/// sender: from elsewhere, the relay would be told to let in the registrar and not the phone.
#[test]
fn the_media_see_each_message_of_a_call_that_passes_twice_once() {
    let mut world = configured(edge());
    let path = register_away(&mut world, &hop(BOB, None), "bob");
    let invite = find(
        &world.receive(ALICE, &invite("sip:bob@example.com")),
        REGISTRAR,
    );
    let sent = world.receive(REGISTRAR, &through_registrar(&invite, Some(&path)));
    let to_bob = find(&sent, BOB);
    let ok = parse(&world.receive(BOB, &answer(&to_bob, 200, "OK", "b"))[0]);
    assert_eq!(ok.status(), Some(200));
    let ok = parse(&world.receive(REGISTRAR, &through_registrar(&ok, None))[0]);
    assert_eq!(world.media.log, ["place", "rewrite by Callee", "answered"]);

    world.media.log.clear();
    let ack = find(
        &world.receive(ALICE, &in_dialog("ACK", 1, &ok, true)),
        REGISTRAR,
    );
    let sent = world.receive(REGISTRAR, &through_registrar(&ack, None));
    assert_eq!(names(&sent), ["ACK -> bob"]);
    assert_eq!(world.media.log, ["rewrite by Caller"]);

    for (by_caller, from, to) in [(true, ALICE, BOB), (false, BOB, ALICE)] {
        world.media.log.clear();
        let request = in_dialog("INVITE", 7, &ok, by_caller);
        let first = find(&world.receive(from, &request), REGISTRAR);
        let second = find(
            &world.receive(REGISTRAR, &through_registrar(&first, None)),
            to,
        );
        let sent = world.receive(to, &answer(&second, 200, "OK", "b"));
        let sent = world.receive(REGISTRAR, &through_registrar(&find(&sent, REGISTRAR), None));
        assert_eq!(sent[0].flow.peer.to_string(), from);
        let asker = if by_caller { "Caller" } else { "Callee" };
        let other = if by_caller { "Callee" } else { "Caller" };
        assert_eq!(
            world.media.log,
            [format!("rewrite by {asker}"), format!("rewrite by {other}")],
            "the re-INVITE of the {asker}"
        );
    }
}

/// Both phones are behind us and the registrar in between: the second pass uses the relay session
/// of the first, and neither its failure nor its answer is counted twice.
#[test]
fn a_call_that_passes_twice_has_one_media_session() {
    let mut world = configured(edge());
    let path = register_away(&mut world, &hop(BOB, None), "bob");
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let first = find(&sent, REGISTRAR);
    assert_eq!(world.media.count("place"), 1);
    let mut edit = first.edit();
    edit.push_front(HeaderName::Via, "SIP/2.0/UDP 10.0.9.20;branch=z9hG4bKkam");
    edit.push_front(HeaderName::RecordRoute, "<sip:10.0.9.20;lr>");
    edit.push_front(HeaderName::Route, path);
    edit.set_request_uri("sip:bob@192.168.1.2:5060");
    let sent = world.receive(REGISTRAR, edit.finish().bytes());
    let second = find(&sent, BOB);
    assert_eq!(world.media.count("place"), 1, "not placed again");

    let sent = world.receive(BOB, &answer(&second, 486, "Busy Here", "b"));
    assert_eq!(
        world.media.count("ended"),
        0,
        "the session is the first pass's"
    );
    assert_eq!(names(&sent), ["ACK -> bob", "486 -> trunk"]);
    let refusal = find(&sent, REGISTRAR);
    let mut edit = refusal.edit();
    edit.remove_first_value(HeaderName::Via);
    let back = edit.finish();
    let sent = world.receive(REGISTRAR, back.bytes());
    assert_eq!(names(&sent), ["ACK -> trunk", "486 -> alice"]);
    assert_eq!(world.media.count("ended"), 1);
    world.assert_all_forgotten();
}
