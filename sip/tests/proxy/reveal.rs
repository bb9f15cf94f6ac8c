//! By which edge an OPTIONS came: told to those on the list, and to nobody else.

use std::collections::HashMap;

use sip::hop::Transmit;
use sip::proxy::reveal::Reveal;
use sip::proxy::routing::Network;
use wire::gre::TunnelKey;

use crate::world::{ALICE, BOB, World, invite, parse, request};

#[test]
fn only_those_on_the_list_are_told_their_edge() {
    let listed = || reveal("edge1");
    assert_eq!(ask(Reveal::default(), ALICE, 1), None, "nobody by default");
    assert_eq!(ask(listed(), ALICE, 1).unwrap(), "edge1;mark=1");
    assert_eq!(ask(listed(), ALICE, 9).unwrap(), "edge1;mark=9");
    assert_eq!(ask(listed(), BOB, 1), None);
}

#[test]
fn other_answers_tell_nothing() {
    let mut world = World::new();
    world.proxy.reveal_edges(reveal("edge1"));
    let sent = world.receive(ALICE, &invite("sip:nobody@example.com"));
    assert!(!sent.is_empty());
    assert!(sent.iter().all(|sent| told(sent).is_none()));
}

#[test]
fn a_name_cannot_begin_a_line_of_its_own() {
    let answer = ask(reveal("edge 1\r\nX-Evil: 1"), ALICE, 1).unwrap();
    assert_eq!(answer, "edge_1__X-Evil__1;mark=1");
}

fn reveal(name: &str) -> Reveal {
    Reveal {
        to: vec![Network {
            address: World::new().hop(ALICE).flow.peer.ip(),
            prefix: 32,
        }],
        names: HashMap::from([(TunnelKey(1), name.to_owned())]),
    }
}

fn ask(reveal: Reveal, from: &str, mark: u8) -> Option<String> {
    let mut world = World::new();
    world.proxy.reveal_edges(reveal);
    world.mark = mark;
    let question = request("OPTIONS", "sip:example.com", "z9hG4bKo", "");
    let sent = world.receive(from, &question);
    assert!(parse(&sent[0]).status() == Some(200));
    told(&sent[0])
}

fn told(answer: &Transmit) -> Option<String> {
    let text = String::from_utf8_lossy(&answer.bytes).into_owned();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("X-Sipcast-Edge: "));
    line.map(str::to_owned)
}
