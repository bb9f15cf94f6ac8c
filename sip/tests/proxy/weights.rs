//! Groups whose members have different weights: calls are shared out accordingly, and each call keeps its
//! member.

#![expect(clippy::expect_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use sip::hop::Transport;
use sip::proxy::groups::{DialogAddress, GroupConfig, MemberConfig};
use sip::proxy::routing::{Audience, Config, Destination, Route};

use crate::world::{ALICE, World, answer, parse, request};

const ROUNDS: usize = 20;
const CALLS_OF_A_ROUND: usize = 100;

/// Everything goes to members of these priorities and weights, the first at 10.0.9.1.
fn world(members: &[(u16, u16)]) -> World {
    let members = members
        .iter()
        .zip(1..)
        .map(|(&(priority, weight), number)| MemberConfig {
            uri: Bytes::from(format!("sip:10.0.9.{number}")),
            weight,
            priority,
        });
    let group = GroupConfig {
        name: "pstn".into(),
        members: members.collect(),
        sources: Vec::new(),
        probe: None,
        fail_on: vec![408, 503],
        timeout: Duration::from_secs(6),
        dialog_address: DialogAddress::Anycast,
    };
    let route = Route {
        domain: None,
        prefix: None,
        sources: Vec::new(),
        audience: Audience::Anyone,
        to: Destination::Group(0),
        strip: 0,
        prepend: String::new(),
    };
    World::configured(|config| {
        config.routing = Config {
            routes: vec![route],
            groups: vec![group],
            transports: vec![Transport::Udp],
            ..Config::default()
        };
    })
}

/// The requests of 2,000 calls; which members they went to.
fn shares(world: &mut World) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for number in 0..ROUNDS * CALLS_OF_A_ROUND {
        let sent = world.receive(ALICE, &message(number));
        let to = sent[0].flow.peer;
        *shares.entry(to.ip().to_string()).or_default() += 1;
        world.receive(&to.to_string(), &answer(&parse(&sent[0]), 200, "OK", "b"));
        if number % CALLS_OF_A_ROUND == 0 {
            world.advance(Duration::from_secs(33));
        }
    }
    shares
}

fn message(number: usize) -> Vec<u8> {
    let branch = format!("z9hG4bK{number}");
    let message = request("MESSAGE", "sip:+4930@example.com", &branch, "");
    let message = String::from_utf8(message).expect("text");
    message
        .replace("call-1", &format!("call-{number}"))
        .into_bytes()
}

/// "Larger weights SHOULD be given a proportionately higher probability of being selected" (RFC 2782), which
/// holds for the members of a group as well. The keys are fixed, and so is what comes of them.
#[test]
fn calls_are_shared_out_by_weight_among_the_members_of_the_best_priority() {
    let shares = shares(&mut world(&[(0, 1), (0, 3), (0, 6), (1, 100)]));
    let share = |member: &str| shares.get(member).copied().unwrap_or(0);
    let (small, middle, large) = (share("10.0.9.1"), share("10.0.9.2"), share("10.0.9.3"));
    assert_eq!(
        small + middle + large,
        ROUNDS * CALLS_OF_A_ROUND,
        "{shares:?}"
    );
    assert!((150..250).contains(&small), "a tenth: {shares:?}");
    assert!((540..660).contains(&middle), "three tenths: {shares:?}");
    assert!((1130..1270).contains(&large), "six tenths: {shares:?}");
}

#[test]
fn the_requests_of_a_call_go_to_one_member() {
    for number in 0..50 {
        let mut world = world(&[(0, 1), (0, 1), (0, 1)]);
        let first = world.receive(ALICE, &message(number))[0].flow.peer;
        let again = String::from_utf8(message(number)).expect("text");
        let again = again.replace("branch=z9hG4bK", "branch=z9hG4bKagain");
        let second = world.receive(ALICE, again.as_bytes())[0].flow.peer;
        assert_eq!(first, second);
    }
}

/// What a silent member would have had goes to the others.
#[test]
fn the_share_of_a_member_that_fails_goes_to_the_others() {
    let mut world = world(&[(0, 9), (0, 1)]);
    let mut reached = 0;
    for number in 0..50 {
        let sent = world.receive(ALICE, &message(number));
        let to = sent[0].flow.peer.to_string();
        let sent = if to.starts_with("10.0.9.1:") {
            world.receive(&to, &answer(&parse(&sent[0]), 503, "Busy", "b"))
        } else {
            sent
        };
        reached += usize::from(sent[0].flow.peer.to_string().starts_with("10.0.9.2:"));
    }
    assert_eq!(reached, 50);
}
