//! Sending requests: those that are too large for a datagram.

#![expect(clippy::expect_used, reason = "a test may panic")]

use std::time::Duration;

use bytes::Bytes;
use sip::hop::{Flow, Hop, Transmit, Transport};
use sip::message::{HeaderName, Message};
use sip::proxy::groups::{DialogAddress, GroupConfig, MemberConfig};
use sip::proxy::routing::{Audience, Config, Destination, Network, Route};

use crate::text::{branch, values, with_lines};
use crate::world::{ALICE, BOB, World, answer, find, in_dialog, parse, request, summary};

const TRUNK: &str = "10.0.9.20:5060";
const UNICAST: &str = "10.0.9.2:5060";
const CALL: &str = "sip:+4930123@example.com";
const LIMIT: usize = 1300;

/// +49 leads to one next hop over UDP.
fn trunk(max_udp_request: Option<usize>) -> Config {
    let member = MemberConfig {
        uri: Bytes::from_static(b"sip:10.0.9.20;transport=udp"),
        weight: 1,
        priority: 0,
    };
    let group = GroupConfig {
        name: "pstn".into(),
        members: vec![member],
        sources: vec![Network {
            address: [10, 0, 9, 0].into(),
            prefix: 24,
        }],
        probe: None,
        fail_on: vec![408, 503],
        timeout: Duration::from_secs(6),
        dialog_address: DialogAddress::Anycast,
    };
    let route = Route {
        domain: None,
        prefix: Some("+49".into()),
        sources: Vec::new(),
        audience: Audience::Known,
        to: Destination::Group(0),
        strip: 0,
        prepend: String::new(),
    };
    Config {
        routes: vec![route],
        groups: vec![group],
        unicast: vec![UNICAST.parse().expect("address")],
        transports: vec![Transport::Udp, Transport::Tcp],
        max_udp_request,
    }
}

fn world(routing: Config) -> World {
    let mut world = World::configured(|config| config.routing = routing);
    world.register(ALICE, "sip:alice@192.168.1.2:5060", "alice");
    world
}

fn padded(bytes: &[u8], octets: usize) -> Vec<u8> {
    with_lines(bytes, &format!("X-Padding: {}\r\n", "p".repeat(octets)))
}

fn large(method: &str, branch: &str) -> Vec<u8> {
    padded(&request(method, CALL, branch, ""), LIMIT)
}

/// What went to the trunk: the transport that it went over and the one in its top Via.
fn ways(sent: &[Transmit]) -> Vec<(Transport, String)> {
    let to_trunk = sent.iter().filter(|t| t.flow.peer.to_string() == TRUNK);
    let way = |transmit: &Transmit| {
        let message = parse(transmit);
        let via = message.top_via().expect("Via");
        let name = String::from_utf8_lossy(via.transport).into_owned();
        (transmit.flow.transport, name)
    };
    to_trunk.map(way).collect()
}

fn over_tcp() -> (Transport, String) {
    (Transport::Tcp, "TCP".into())
}

fn over_udp() -> (Transport, String) {
    (Transport::Udp, "UDP".into())
}

/// Where what comes back over the connection comes from.
fn tcp_hop(world: &mut World) -> Hop {
    world.tcp = true;
    let mut hop = world.hop(TRUNK);
    world.tcp = false;
    hop.flow.local = UNICAST.parse().expect("address");
    hop.relay = None;
    hop
}

fn tcp_flow(sent: &[Transmit]) -> Flow {
    let mut flows = sent.iter().map(|transmit| transmit.flow);
    let flow = flows.find(|flow| flow.transport == Transport::Tcp);
    flow.expect("something over TCP")
}

/// "If a request is within 200 bytes of the path MTU, or if it is larger than 1300 bytes and the path MTU
/// is unknown, the request MUST be sent using an RFC 2914 congestion controlled transport protocol, such
/// as TCP. If this causes a change in the transport protocol from the one indicated in the top Via, the
/// value in the top Via MUST be changed."
#[test]
fn a_request_of_more_than_1300_bytes_goes_to_a_next_hop_over_tcp() {
    let mut found = [0, 0];
    for octets in 1..1000 {
        let mut world = world(trunk(Some(LIMIT)));
        let invite = padded(&request("INVITE", CALL, "z9hG4bKa", ""), octets);
        let sent = world.receive(ALICE, &invite);
        let way = ways(&sent);
        let length = sent
            .iter()
            .find(|t| t.flow.peer.to_string() == TRUNK)
            .map(|t| t.bytes.len())
            .expect("the INVITE");
        let expected = if length > LIMIT {
            over_tcp()
        } else {
            over_udp()
        };
        assert_eq!(way, [expected], "{length} octets");
        found[usize::from(length > LIMIT)] += 1;
    }
    assert!(found.iter().all(|count| *count > 100), "{found:?}");
}

/// The dialog stays at UDP: its short requests go as they would have gone without the large one.
///
/// "If a request is within 200 bytes of the path MTU, or if it is larger than 1300 bytes and the path MTU
/// is unknown" (18.1.1)
#[test]
fn only_the_large_request_changes_its_transport() {
    let mut world = world(trunk(Some(LIMIT)));
    let sent = world.receive(ALICE, &large("INVITE", "z9hG4bKa"));
    assert_eq!(ways(&sent), [over_tcp()]);
    assert_eq!(summary(&sent)[0], "100 -> alice");
    let to_trunk = find(&sent, TRUNK);
    for value in values(&to_trunk, HeaderName::RecordRoute) {
        assert!(!value.contains("transport"), "{value}");
    }
    assert_eq!(to_trunk.count(HeaderName::ContentLength), 1);
    assert_eq!(
        to_trunk.top_via().expect("Via").sent_by,
        UNICAST.as_bytes(),
        "the address that listens, not that of the connection"
    );
    // Nothing is retransmitted over TCP.
    assert_eq!(ways(&world.advance(Duration::from_secs(5))).len(), 0);

    let hop = tcp_hop(&mut world);
    let sent = world.receive_from(&hop, &answer(&to_trunk, 200, "OK", "t1"));
    assert_eq!(summary(&sent), ["200 -> alice"]);
    let ok = parse(&sent[0]);
    let sent = world.receive(ALICE, &in_dialog("ACK", 1, &ok, true));
    assert_eq!(ways(&sent), [over_udp()]);
    let again = padded(&in_dialog("INVITE", 2, &ok, true), LIMIT);
    let sent = world.receive(ALICE, &again);
    assert_eq!(ways(&sent), [over_tcp()]);
    let again = find(&sent, TRUNK);
    world.receive_from(&hop, &answer(&again, 200, "OK", ""));
    let sent = world.receive(ALICE, &padded(&in_dialog("ACK", 2, &ok, true), LIMIT));
    assert_eq!(ways(&sent), [over_tcp()], "it has answered over TCP before");
    let sent = world.receive(ALICE, &in_dialog("BYE", 3, &ok, true));
    assert_eq!(ways(&sent), [over_udp()]);
    world.receive(TRUNK, &answer(&find(&sent, TRUNK), 200, "OK", ""));
    assert_eq!(world.proxy.counters().routing.large_over_tcp, 3);
    world.assert_all_forgotten();
}

/// "If an element sends a request over TCP because of these message size constraints, and that request
/// would have otherwise been sent over UDP, if the attempt to establish the connection generates either
/// an ICMP Protocol Not Supported, or results in a TCP reset, the element SHOULD retry the request, using
/// UDP."
#[test]
fn where_the_connection_is_refused_the_request_is_sent_again_over_udp() {
    let mut world = world(trunk(Some(LIMIT)));
    let sent = world.receive(ALICE, &large("INVITE", "z9hG4bKa"));
    let first = find(&sent, TRUNK);
    let sent = world.transport_error(&tcp_flow(&sent));
    assert_eq!(summary(&sent), [format!("INVITE -> {TRUNK}")]);
    assert_eq!(ways(&sent), [over_udp()]);
    let second = find(&sent, TRUNK);
    assert_eq!(
        branch(&first),
        branch(&second),
        "whoever has read the first one takes this for a retransmission"
    );
    assert!(without_via(&first) == without_via(&second));
    // It is a request over UDP from now on, with all its time.
    assert_eq!(
        ways(&world.advance(Duration::from_millis(600))),
        [over_udp()]
    );
    let sent = world.advance(Duration::from_millis(5300));
    assert!(summary(&sent).iter().all(|line| line.starts_with("INVITE")));
    let sent = world.receive(TRUNK, &answer(&second, 486, "Busy Here", "t"));
    assert_eq!(
        summary(&sent),
        [format!("ACK -> {TRUNK}"), "486 -> alice".into()]
    );
    assert_eq!(world.media.count("place"), 1, "the media are placed once");
    assert_eq!(world.media.count("ended"), 1);

    // Who has refused is not asked again at once, and is after ten minutes.
    let sent = world.receive(ALICE, &large("MESSAGE", "z9hG4bKb"));
    assert_eq!(ways(&sent), [over_udp()]);
    let counters = world.proxy.counters().routing;
    assert_eq!(
        (
            counters.large_over_tcp,
            counters.large_fell_back,
            counters.large_over_udp
        ),
        (1, 1, 1)
    );
    world.assert_all_forgotten();
    world.register(ALICE, "sip:alice@192.168.1.2:5060", "alice-again");
    let sent = world.receive(ALICE, &large("MESSAGE", "z9hG4bKc"));
    assert_eq!(ways(&sent), [over_tcp()]);
}

fn without_via(message: &Message) -> Vec<u8> {
    let mut edit = message.edit();
    edit.remove_first_value(HeaderName::Via);
    edit.finish().bytes().to_vec()
}

/// "the element SHOULD retry the request, using UDP." (18.1.1)
#[test]
fn a_next_hop_that_is_silent_over_tcp_is_tried_over_udp_before_it_counts_as_silent() {
    let mut world = world(trunk(Some(LIMIT)));
    let sent = world.receive(ALICE, &large("INVITE", "z9hG4bKa"));
    let flow = tcp_flow(&sent);
    let sent = world.advance(Duration::from_secs(6));
    assert_eq!(ways(&sent), [over_udp()]);
    // That the connection has failed as well is said later, and concerns nobody.
    assert_eq!(world.transport_error(&flow).len(), 0);
    let sent = world.advance(Duration::from_secs(7));
    let lines = summary(&sent);
    assert_eq!(
        lines
            .iter()
            .filter(|line| line.as_str() == "408 -> alice")
            .count(),
        2,
        "with one retransmission: {lines:?}"
    );
    world.assert_all_forgotten();
}

/// A CANCEL goes to the same address by the same transport as its INVITE, with its Via (9.1).
///
/// "The destination address, port, and transport for the CANCEL MUST be identical to those used to send the
/// original request." (9.1)
#[test]
fn a_cancel_goes_the_way_of_its_invite() {
    let mut world = world(trunk(Some(LIMIT)));
    let sent = world.receive(ALICE, &large("INVITE", "z9hG4bKa"));
    let to_trunk = find(&sent, TRUNK);
    let hop = tcp_hop(&mut world);
    world.receive_from(&hop, &answer(&to_trunk, 180, "Ringing", "t"));
    let sent = world.receive(ALICE, &request("CANCEL", CALL, "z9hG4bKa", ""));
    assert_eq!(ways(&sent), [over_tcp()]);
    let cancel = find(&sent, TRUNK);
    assert_eq!(branch(&cancel), branch(&to_trunk));
    let sent = world.receive_from(&hop, &answer(&to_trunk, 487, "Request Terminated", "t"));
    assert_eq!(ways(&sent), [over_tcp()], "the ACK");
    world.assert_all_forgotten();
}

/// A caller that has hung up is not called again over UDP.
///
/// "The CANCEL method requests that the TU at the server side cancel a pending transaction." (9.2)
#[test]
fn a_cancelled_call_is_not_tried_again() {
    let mut world = world(trunk(Some(LIMIT)));
    let sent = world.receive(ALICE, &large("INVITE", "z9hG4bKa"));
    let flow = tcp_flow(&sent);
    world.receive(ALICE, &request("CANCEL", CALL, "z9hG4bKa", ""));
    let sent = world.transport_error(&flow);
    assert!(ways(&sent).is_empty(), "{:?}", summary(&sent));
    world.assert_all_forgotten();
}

/// "This is only to provide backwards compatibility": it must be possible not to want it, and where TCP is
/// off there is nothing to want.
#[test]
fn without_tcp_or_without_a_limit_everything_goes_over_udp() {
    let unlimited = trunk(None);
    let mut udp_only = trunk(Some(LIMIT));
    udp_only.transports = vec![Transport::Udp];
    for (routing, counted) in [(unlimited, 0), (udp_only, 1)] {
        let mut world = world(routing);
        let sent = world.receive(ALICE, &large("INVITE", "z9hG4bKa"));
        assert_eq!(ways(&sent), [over_udp()]);
        assert_eq!(world.proxy.counters().routing.large_over_udp, counted);
    }
}

/// Nobody connects to a phone, whatever the size: behind its NAT nobody answers.
///
/// "However, implementations MUST be able to handle messages up to the maximum datagram packet size."
/// (18.1.1)
#[test]
fn a_large_request_to_a_phone_keeps_its_flow() {
    let mut world = World::configured(|config| config.routing = trunk(Some(LIMIT)));
    world.register(BOB, "sip:bob@192.168.1.2:5060", "bob");
    let invite = padded(
        &request("INVITE", "sip:bob@example.com", "z9hG4bKa", ""),
        LIMIT,
    );
    let sent = world.receive(ALICE, &invite);
    let to_bob = sent
        .iter()
        .find(|t| t.flow.peer.to_string() == BOB)
        .expect("the INVITE");
    assert_eq!(to_bob.flow.transport, Transport::Udp);
    assert_eq!(world.proxy.counters().routing.large_over_udp, 1);
    let to_bob = parse(to_bob);
    let ok = parse(&world.receive(BOB, &answer(&to_bob, 200, "OK", "b"))[0]);
    let sent = world.receive(ALICE, &padded(&in_dialog("ACK", 1, &ok, true), LIMIT));
    assert_eq!(sent[0].flow.transport, Transport::Udp);
    let sent = world.receive(BOB, &padded(&in_dialog("INFO", 1, &ok, false), LIMIT));
    assert_eq!(sent[0].flow.peer.to_string(), ALICE);
    assert_eq!(sent[0].flow.transport, Transport::Udp);
}
