//! Client-initiated connections, "outbound" (RFC 5626): the registrar's part of it.

#[path = "common/world.rs"]
mod world;

use sip::message::{HeaderName, Message};
use world::{ALICE, BOB, BOB_DESK, World, answer, find, in_dialog, invite, parse, summary};

const INSTANCE: &str = "+sip.instance=\"<urn:uuid:00000000-0000-1000-8000-AABBCCDDEEFF>\"";
const SUPPORTED: &str = "Supported: path, outbound\r\n";

/// "the corresponding binding is between an AOR and the combination of the instance-id (from the
/// "+sip.instance" Contact header parameter) and the value of "reg-id" Contact header field parameter"
/// (section 6)
#[test]
fn instance_and_reg_id_name_a_binding_whatever_its_contact() {
    // "If a Contact header field value contains both a "+sip.instance" and a "reg-id" parameter …
    // the registrar … stores the binding by AOR, instance-id and reg-id" (section 6).
    let mut world = World::new();
    register(&mut world, BOB, &contact("10.0.0.1", 1), SUPPORTED);
    let ok = register(&mut world, BOB_DESK, &contact("10.0.0.2", 1), SUPPORTED);
    let contacts = values(&ok, HeaderName::Contact);
    assert_eq!(contacts.len(), 1, "{contacts:?}");
    assert!(contacts[0].starts_with("<sip:bob@10.0.0.2>"));
    // Another reg-id is another flow to the same instance.
    let ok = register(&mut world, BOB, &contact("10.0.0.2", 2), SUPPORTED);
    assert_eq!(values(&ok, HeaderName::Contact).len(), 2);
    let gone = format!("{};expires=0", contact("10.9.9.9", 1));
    let ok = register(&mut world, BOB, &gone, SUPPORTED);
    let contacts = values(&ok, HeaderName::Contact);
    assert_eq!(contacts.len(), 1, "{contacts:?}");
    assert!(contacts[0].contains("reg-id=2"));
}

/// "the registrar MUST include the outbound option-tag in a Require header field value in its response to
/// that REGISTER request. … If the Contact header did not contain a "reg-id" Contact header field parameter
/// or if that parameter was ignored (as described above), the registrar MUST NOT include the outbound
/// option-tag in the Require header field of its response." (section 6)
#[test]
fn the_answer_says_that_outbound_is_in_use_and_only_then() {
    // "the registrar MUST … include the 'outbound' option-tag in a Require header field value in
    // its response" (section 6).
    let mut world = World::new();
    let ok = register(&mut world, BOB, &contact("10.0.0.1", 1), SUPPORTED);
    assert_eq!(values(&ok, HeaderName::Require), ["outbound"]);
    assert_eq!(
        ok.header_spelled("Flow-Timer"),
        None,
        "over UDP the default, 24 to 29 s, is what NATs need"
    );
    let ok = register(
        &mut world,
        BOB,
        &contact("10.0.0.1", 1),
        "Supported: path\r\n",
    );
    assert_eq!(values(&ok, HeaderName::Require).len(), 0);
    let plain = format!("<sip:bob@10.0.0.7>;{INSTANCE}");
    let ok = register(&mut world, BOB, &plain, SUPPORTED);
    assert_eq!(values(&ok, HeaderName::Require).len(), 0);
    world.tcp = true;
    let ok = register(&mut world, BOB, &contact("10.0.0.1", 1), SUPPORTED);
    assert_eq!(ok.header_spelled("Flow-Timer"), Some(&b"120"[..]));
}

/// "If the Contact header field does not contain a "+sip.instance" Contact header field parameter, the
/// registrar processes the request using the Contact binding rules in [RFC3261]." (section 6)
#[test]
fn without_the_option_tag_or_the_instance_a_reg_id_means_nothing() {
    for (contacts, supported) in [
        ([contact("10.0.0.1", 1), contact("10.0.0.2", 1)], ""),
        (
            ["<sip:bob@10.0.0.1>;reg-id=1", "<sip:bob@10.0.0.2>;reg-id=1"].map(str::to_owned),
            SUPPORTED,
        ),
        ([contact("10.0.0.1", 0), contact("10.0.0.2", 0)], SUPPORTED),
    ] {
        let mut world = World::new();
        register(&mut world, BOB, &contacts[0], supported);
        let ok = register(&mut world, BOB, &contacts[1], supported);
        assert_eq!(values(&ok, HeaderName::Contact).len(), 2, "{contacts:?}");
        assert_eq!(values(&ok, HeaderName::Require).len(), 0);
    }
}

#[test]
fn a_first_proxy_that_does_not_keep_its_flow_is_439() {
    // Section 6 and 11.6: "the first hop lacks outbound support": it has not put "ob" into Path.
    let mut world = World::new();
    for (headers, status) in [
        ("Via: SIP/2.0/UDP 10.0.0.1;branch=z9hG4bKx\r\n", 439),
        (
            "Via: SIP/2.0/UDP 10.0.0.1;branch=z9hG4bKx\r\nPath: <sip:192.0.2.1;lr>\r\n",
            439,
        ),
        // The proxy next to the phone is the last of the path.
        (
            "Via: SIP/2.0/UDP 10.0.0.1;branch=z9hG4bKx\r\nPath: <sip:192.0.2.1;lr;ob>, <sip:192.0.2.2;lr>\r\n",
            439,
        ),
        (
            "Via: SIP/2.0/UDP 10.0.0.1;branch=z9hG4bKx\r\nPath: <sip:192.0.2.1;lr>, <sip:192.0.2.2;lr;ob>\r\n",
            200,
        ),
    ] {
        let headers = format!("{SUPPORTED}{headers}");
        let answer = register(&mut world, BOB, &contact("10.0.0.1", 1), &headers);
        assert_eq!(answer.status(), Some(status), "{headers}");
        if status == 439 {
            assert_eq!(answer.reason(), b"First Hop Lacks Outbound Support");
        }
    }
}

#[test]
fn one_register_makes_one_flow() {
    let mut world = World::new();
    let two = format!("{}, <sip:bob@10.0.0.2>", contact("10.0.0.1", 1));
    let answer = register(&mut world, BOB, &two, SUPPORTED);
    assert_eq!(answer.status(), Some(400));
    let swap = format!("{}, <sip:bob@10.0.0.2>;expires=0", contact("10.0.0.1", 1));
    assert_eq!(
        register(&mut world, BOB, &swap, SUPPORTED).status(),
        Some(200)
    );
}

/// "The proxy MUST NOT populate the target set with more than one contact with the same AOR and instance-id
/// at a time." (section 7)
#[test]
fn the_flows_of_one_instance_are_tried_one_after_the_other_the_newest_first() {
    // "the proxy MUST NOT populate the target set with more than one contact with the same AOR and
    // instance-id at a time" (section 7); 430: "Other flows to the same instance could still
    // succeed" (section 11.5).
    for (status, reason) in [(430, "Flow Failed"), (503, "No"), (408, "No")] {
        let mut world = two_flows();
        let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
        assert_eq!(summary(&sent), ["100 -> alice", "INVITE -> desk"]);
        let first = find(&sent, BOB_DESK);
        let sent = world.receive(BOB_DESK, &answer(&first, status, reason, "e"));
        assert_eq!(summary(&sent), ["ACK -> desk", "INVITE -> bob"]);
        let second = find(&sent, BOB);
        let sent = world.receive(BOB, &answer(&second, 200, "OK", "b"));
        assert_eq!(summary(&sent), ["200 -> alice"]);
        world.assert_all_forgotten();
    }
}

/// "If the proxy receives a final response from a branch other than a 408 (Request Timeout) or a 430 (Flow
/// Failed) response, the proxy MUST NOT forward the same request to another target representing the same
/// AOR and instance-id. The targeted instance has already provided its response." (section 7)
#[test]
fn an_instance_that_has_answered_is_not_asked_again_over_its_other_flow() {
    let mut world = two_flows();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let first = find(&sent, BOB_DESK);
    let sent = world.receive(BOB_DESK, &answer(&first, 486, "Busy Here", "b"));
    assert_eq!(summary(&sent), ["ACK -> desk", "486 -> alice"]);
    world.assert_all_forgotten();
}

/// "If a request for a particular AOR and instance-id fails with a 430 (Flow Failed) response, the proxy
/// SHOULD replace the failed branch with another target (if one is available) with the same AOR and
/// instance-id, but a different reg-id." (section 7)
#[test]
fn a_caller_never_sees_that_flows_have_failed() {
    // "Endpoints should never receive a 430 response" (section 11.5).
    let mut world = two_flows();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let first = find(&sent, BOB_DESK);
    let sent = world.receive(BOB_DESK, &answer(&first, 430, "Flow Failed", "e"));
    let second = find(&sent, BOB);
    let sent = world.receive(BOB, &answer(&second, 430, "Flow Failed", "e"));
    assert_eq!(summary(&sent), ["ACK -> bob", "480 -> alice"]);
}

#[test]
fn a_dialog_follows_a_phone_that_registers_from_elsewhere() {
    // A NAT that forgot its mapping, or another network: the same instance, or the same Contact in
    // the same series of registrations.
    for contact in [
        format!("<sip:bob@192.168.1.2>;{INSTANCE}"),
        "<sip:bob@192.168.1.2>".to_owned(),
    ] {
        let mut world = World::new();
        register(&mut world, BOB, &contact, "");
        let (ok, _) = world.call();
        register(&mut world, BOB_DESK, &contact, "");
        let sent = world.receive(ALICE, &in_dialog("BYE", 2, &ok, true));
        assert_eq!(summary(&sent), ["BYE -> desk"], "{contact}");
        assert_eq!(world.proxy.counters().followed_flows, 1);
    }
}

#[test]
fn a_dialog_follows_the_caller_as_well() {
    let mut world = World::with_bob();
    let alice = "<sip:alice@192.168.1.2:5060>";
    register_as(&mut world, "alice", ALICE, alice, "");
    let (ok, _) = world.call();
    register_as(&mut world, "alice", BOB_DESK, alice, "");
    let sent = world.receive(BOB, &in_dialog("BYE", 1, &ok, false));
    assert_eq!(summary(&sent), ["BYE -> desk"]);
}

#[test]
fn a_dialog_stays_with_its_flow_while_that_is_registered_and_when_another_phone_comes() {
    let mut world = two_flows();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let invite = find(&sent, BOB_DESK);
    let sent = world.receive(BOB_DESK, &answer(&invite, 200, "OK", "b1"));
    let ok = parse(&sent[0]);
    register(&mut world, BOB, &contact("10.0.0.1", 1), SUPPORTED);
    let sent = world.receive(ALICE, &in_dialog("BYE", 2, &ok, true));
    assert_eq!(summary(&sent), ["BYE -> desk"]);

    // Another phone of the user, at the same private address behind another NAT.
    let mut world = World::with_bob();
    let (ok, _) = world.call();
    world.register(BOB_DESK, "sip:bob@192.168.1.2:5060", "another");
    let sent = world.receive(ALICE, &in_dialog("BYE", 2, &ok, true));
    assert_eq!(summary(&sent), ["BYE -> bob"]);
}

/// Bob, one instance with two flows; the one to the desk is newer.
fn two_flows() -> World {
    let mut world = World::new();
    register(&mut world, BOB, &contact("10.0.0.1", 1), SUPPORTED);
    world.now += std::time::Duration::from_secs(1);
    register(&mut world, BOB_DESK, &contact("10.0.0.1", 2), SUPPORTED);
    world
}

fn contact(host: &str, reg_id: u32) -> String {
    format!("<sip:bob@{host}>;{INSTANCE};reg-id={reg_id}")
}

fn register(world: &mut World, from: &str, contact: &str, headers: &str) -> Message {
    register_as(world, "bob", from, contact, headers)
}

fn register_as(world: &mut World, user: &str, from: &str, contact: &str, headers: &str) -> Message {
    let number = world.proxy.registrar().counts();
    let number = number.added + number.refreshed + number.removed + number.refused;
    let text = format!(
        "REGISTER sip:example.com SIP/2.0\r\nVia: SIP/2.0/UDP 192.168.1.2;branch=z9hG4bKr{number}\r\n\
         From: <sip:{user}@example.com>;tag=r\r\nTo: <sip:{user}@example.com>\r\nCall-ID: reg\r\n\
         CSeq: {} REGISTER\r\nMax-Forwards: 69\r\nContact: {contact}\r\n{headers}\
         Content-Length: 0\r\n\r\n",
        number + 1
    );
    let sent = world.receive(from, text.as_bytes());
    parse(&sent[0])
}

fn values(message: &Message, name: HeaderName) -> Vec<String> {
    let values = message.values(name);
    values
        .map(|value| String::from_utf8_lossy(&value).into_owned())
        .collect()
}
