//! RFC 5393: loops and breadth.

use sip::message::{HeaderName, Message};

use crate::text::{values, with};
use crate::world::{ALICE, BOB, BOB_DESK, World, answer, invite, parse, request, summary};

const BOB_MOBILE: &str = "203.0.113.22:43000";

/// Two phones at q 0.9, one at q 0.2.
fn three_phones() -> World {
    let mut world = World::new();
    world.register_with_q(BOB_MOBILE, "sip:bob@192.168.1.4:5060", "mobile", "0.2");
    world.register_with_q(BOB, "sip:bob@192.168.1.2:5060", "bob", "0.9");
    world.register_with_q(BOB_DESK, "sip:bob@192.168.1.3:5060", "desk", "0.9");
    world
}

/// What a phone that forks to the service sends: the request it got, with its Via on top.
fn sent_back(message: &Message, uri: Option<&str>, branch: &str) -> Vec<u8> {
    let mut edit = message.edit();
    if let Some(uri) = uri {
        edit.set_request_uri(uri);
    }
    edit.push_front(
        HeaderName::Via,
        format!("SIP/2.0/UDP 192.168.1.2;branch={branch}"),
    );
    edit.finish().bytes().to_vec()
}

/// A proxy that forks must look for loops, and reject a request that has looped with 482 (section 4.2).
///
/// "If these values are equal, the request has looped and the proxy MUST reject the request with a 482
/// (Loop Detected) response." (4.2.2)
#[test]
fn a_request_that_comes_back_unchanged_is_a_loop() {
    let mut world = World::new();
    // A phone that claims the service's own address of record as its contact.
    world.register(BOB, "sip:bob@example.com", "bob");
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let back = parse(&sent[1]);
    assert_eq!(back.request_uri(), b"sip:bob@example.com");
    let sent = world.receive(BOB, &sent_back(&back, None, "z9hG4bKhairpin"));
    assert_eq!(summary(&sent), ["482 -> bob"]);
}

/// "If the values differ, the request is spiraling and processing continues to the next step." (4.2.2)
#[test]
fn a_request_that_comes_back_for_somebody_else_is_a_spiral_and_passes() {
    let mut world = World::with_bob();
    let message = request("MESSAGE", "sip:bob@example.com", "z9hG4bKm1", "");
    let first = parse(&world.receive(ALICE, &message)[0]);
    let back = sent_back(&first, Some("sip:bob@EXAMPLE.com;x=1"), "z9hG4bKspiral");
    assert_eq!(summary(&world.receive(BOB, &back)), ["MESSAGE -> bob"]);
}

/// The attack of section 3: two users whose phones forward every call to both of them again. Without loop
/// detection and Max-Breadth one INVITE becomes 2 to the power of Max-Forwards.
///
/// "When a SIP proxy forks a particular request to more than one location, it MUST ensure that request is
/// not looping through this proxy." (4.1)
#[test]
fn two_users_who_fork_to_each_other_cost_a_bounded_number_of_messages() {
    let mut world = World::new();
    for (number, (phone, contact)) in [
        (BOB, "sip:bob@example.com"),
        (BOB_DESK, "sip:bob@example.com;x"),
    ]
    .into_iter()
    .enumerate()
    {
        world.register(phone, contact, &format!("fork{number}"));
    }
    let mut waiting = vec![(ALICE.to_owned(), invite("sip:bob@example.com"))];
    let mut invites = 0;
    while let Some((from, message)) = waiting.pop() {
        for transmit in world.receive(&from, &message) {
            let message = parse(&transmit);
            if message.is_request() && message.method() == sip::message::Method::Invite {
                invites += 1;
                assert!(invites < 1000, "it does not end");
                let branch = format!("z9hG4bKfork{invites}");
                let back = sent_back(&message, None, &branch);
                waiting.push((transmit.flow.peer.to_string(), back));
            }
        }
    }
    assert!(
        invites <= 60,
        "{invites} INVITEs for one: more than Max-Breadth"
    );
    world.assert_all_forgotten();
}

/// The branches of a request together have no more breadth than it had (section 5.3.3.1).
///
/// "SIP proxies MUST NOT allow the Outgoing Max-Breadth to exceed the Incoming Max-Breadth in a given
/// response context. If a SIP proxy determines a response context has insufficient Incoming Max-Breadth to
/// carry out a desired parallel fork, and the proxy is unwilling/unable to compensate by forking serially
/// or sending a redirect, that proxy MUST return a 440 (Max-Breadth Exceeded) response." (5.3.3)
#[test]
fn max_breadth_is_shared_by_the_branches() {
    let mut world = three_phones();
    let breadth = |value: &str, branch: &str| {
        let line = format!("Max-Breadth: {value}\r\n");
        request("INVITE", "sip:bob@example.com", branch, &line)
    };
    let sent = world.receive(ALICE, &breadth("5", "z9hG4bKw5"));
    let shares: Vec<Vec<String>> = sent[1..]
        .iter()
        .map(|transmit| values(&parse(transmit), HeaderName::MaxBreadth))
        .collect();
    assert_eq!(shares, [["3"], ["2"]]);

    let sent = world.receive(ALICE, &breadth("0", "z9hG4bKw0"));
    assert_eq!(summary(&sent), ["440 -> alice"]);

    let sent = world.receive(ALICE, &breadth("1", "z9hG4bKw1"));
    assert_eq!(sent.len(), 2, "one at a time: {:?}", summary(&sent));
    let first = parse(&sent[1]);
    let sent = world.receive(
        &sent[1].flow.peer.to_string(),
        &answer(&first, 486, "Busy", "b1"),
    );
    assert_eq!(sent.len(), 2, "{:?}", summary(&sent));
    assert!(parse(&sent[1]).is_request(), "the other one of that q");
    world.assert_all_forgotten();
}

/// A request without Max-Breadth is taken for one with 60, which it gets where it is forked (section 5.3.3).
/// What cannot be read is one: nobody gains by writing nonsense.
///
/// "If a SIP proxy receives a request with no Max-Breadth header field value, it MUST add one, with a value
/// that is RECOMMENDED to be 60." (5.3.3)
#[test]
fn max_breadth_begins_at_60_and_nonsense_is_one() {
    let sent = three_phones().receive(ALICE, &invite("sip:bob@example.com"));
    let shares: usize = sent[1..]
        .iter()
        .map(|transmit| values(&parse(transmit), HeaderName::MaxBreadth)[0].parse::<usize>())
        .map(|share| share.expect("a number"))
        .sum();
    assert_eq!(shares, 60);
    for nonsense in ["x", "-1", "", "99999999999999999999999999"] {
        let line = format!("Max-Breadth: {nonsense}\r\nContent-Length:");
        let came = with(&invite("sip:bob@example.com"), "Content-Length:", &line);
        let sent = three_phones().receive(ALICE, &came);
        assert_eq!(sent.len(), 2, "{nonsense}: {:?}", summary(&sent));
    }
}
