//! Path (RFC 3327): a phone registers through an edge proxy that is not ours, and is called through
//! it.

#[path = "common/world.rs"]
mod world;

use sip::message::{HeaderName, Message};
use world::{ALICE, World, answer, in_dialog, invite, parse, summary};

/// The edge proxy, as it sends, and as its Path says.
const EDGE: &str = "192.0.2.66:5070";
const PATH: &str = "<sip:token@192.0.2.66:5060;lr>";
const FAR: &str = "<sip:p1.example.net;lr>";

/// "The registrar copies the Path header field values into a Path header field in the successful (200
/// class) REGISTER response. … With the addition of Path, the home proxy also copies the stored path vector
/// associated with the specific contact in the registrar database into the Route header field of the
/// outgoing request as a preloaded route." (5.3, 5.4)
#[test]
fn the_path_is_told_in_the_200_and_is_the_route_of_a_call() {
    // "The registrar then stores this path vector in association with the contact … The registrar
    // copies the Path header field values into a Path header field in the successful (200)
    // REGISTER response" (section 5.3).
    let mut world = World::new();
    let ok = register(
        &mut world,
        &format!("Supported: path\r\nPath: {PATH}, {FAR}\r\n"),
    );
    assert_eq!(ok.status(), Some(200));
    assert_eq!(values(&ok, HeaderName::Path), [PATH, FAR]);
    assert!(values(&ok, HeaderName::Supported).contains(&"path".to_owned()));

    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    assert_eq!(
        summary(&sent),
        ["100 -> alice", "INVITE -> 192.0.2.66:5060"]
    );
    let to_bob = parse(&sent[1]);
    assert_eq!(to_bob.request_uri(), b"sip:bob@192.168.1.2:5060");
    assert_eq!(values(&to_bob, HeaderName::Route), [PATH, FAR]);

    let sent = world.receive("192.0.2.66:5060", &answer(&to_bob, 200, "OK", "b1"));
    let ok = parse(&sent[0]);
    let sent = world.receive(ALICE, &in_dialog("ACK", 1, &ok, true));
    assert_eq!(summary(&sent), ["ACK -> 192.0.2.66:5060"]);
    world.assert_all_forgotten();
}

/// "This causes the outgoing request to transit the proxies that were included in the Path header field of
/// the REGISTER request." (5.4)
#[test]
fn a_proxy_on_a_connection_is_reached_by_it() {
    let mut world = World::new();
    world.tcp = true;
    let path = "Supported: path\r\nPath: <sip:192.0.2.66;transport=tcp;lr>\r\n";
    assert_eq!(register(&mut world, path).status(), Some(200));
    world.tcp = false;
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    assert_eq!(summary(&sent)[1], format!("INVITE -> {EDGE}"));
    assert!(sent[1].flow.connection.is_some());
}

#[test]
fn of_a_proxy_that_is_a_name_we_know_where_it_is() {
    let mut world = World::new();
    let path = format!("Supported: path\r\nPath: {FAR}\r\n");
    assert_eq!(register(&mut world, &path).status(), Some(200));
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    assert_eq!(summary(&sent)[1], format!("INVITE -> {EDGE}"));
}

/// "The recommended policy is for the registrar to reject the request with a 420 "Bad Extension" response
/// indicating the Path extension. … However, the Path mechanism should technically work in the absence of
/// UA support (at some compromise to security), so some registrars MAY choose to support the extension in
/// the absence of a Supported header field value in the request." (5.3)
#[test]
fn a_path_that_the_phone_knows_nothing_of_is_refused() {
    // "If a registrar receives a REGISTER request containing a Path header field and there is no
    // indication of support for the extension in the UA … The recommended policy is for the
    // registrar to reject the request with a 420 "Bad Extension" response indicating the Path
    // extension."
    let mut world = World::new();
    for supported in ["", "Supported: pathology, timer\r\n"] {
        let refused = register(&mut world, &format!("{supported}Path: {PATH}\r\n"));
        assert_eq!(refused.status(), Some(420));
        assert_eq!(values(&refused, HeaderName::Unsupported), ["path"]);
    }
    assert_eq!(world.proxy.registrar().counts().bindings, 0);
}

#[test]
fn a_phone_that_requires_path_gets_it() {
    // "Require: path": the registrar is to understand it (section 4).
    let mut world = World::new();
    let both = format!("Require: path\r\nSupported: path\r\nPath: {PATH}\r\n");
    let ok = register(&mut world, &both);
    assert_eq!(ok.status(), Some(200));
    assert_eq!(values(&ok, HeaderName::Path), [PATH]);
}

#[test]
fn a_path_that_is_no_route_or_too_long_is_refused() {
    let mut world = World::new();
    let long = format!("<sip:{}@192.0.2.66;lr>", "a".repeat(2048));
    let many = [PATH; 9].join(", ");
    for path in [
        &long,
        &many,
        "<tel:+1>",
        "sip:192.0.2.66;lr",
        "<sip:192.0.2.66;lr?a=b>",
    ] {
        let refused = register(&mut world, &format!("Supported: path\r\nPath: {path}\r\n"));
        assert_eq!(refused.status(), Some(400), "{path}");
    }
    assert_eq!(world.proxy.registrar().counts().bindings, 0);
    let most = [PATH; 8].join(", ");
    let ok = register(&mut world, &format!("Supported: path\r\nPath: {most}\r\n"));
    assert_eq!(ok.status(), Some(200));
}

/// "The registrar then stores this path vector in association with that contact and the address-of-record
/// indicated in the REGISTER request" (5.3)
#[test]
fn a_refresh_by_another_way_replaces_the_path() {
    let mut world = World::new();
    register(&mut world, &format!("Supported: path\r\nPath: {PATH}\r\n"));
    register(&mut world, "");
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    assert_eq!(parse(&sent[1]).count(HeaderName::Route), 0);
    assert_eq!(summary(&sent)[1], format!("INVITE -> {EDGE}"));
}

/// Bob's REGISTER, as the edge proxy forwards it.
fn register(world: &mut World, headers: &str) -> Message {
    let number = world.proxy.registrar().counts();
    let number = number.added + number.refreshed + number.refused;
    let text = format!(
        "REGISTER sip:example.com SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.66;branch=z9hG4bKe{number}\r\n\
         Via: SIP/2.0/UDP 192.168.1.2;branch=z9hG4bKr{number}\r\n\
         From: <sip:bob@example.com>;tag=r\r\nTo: <sip:bob@example.com>\r\nCall-ID: reg\r\n\
         CSeq: {} REGISTER\r\nMax-Forwards: 69\r\nContact: <sip:bob@192.168.1.2:5060>\r\n\
         Expires: 600\r\n{headers}Content-Length: 0\r\n\r\n",
        number + 1
    );
    let sent = world.receive(EDGE, text.as_bytes());
    parse(&sent[0])
}

fn values(message: &Message, name: HeaderName) -> Vec<String> {
    let values = message.values(name);
    values
        .map(|value| String::from_utf8_lossy(&value).into_owned())
        .collect()
}
