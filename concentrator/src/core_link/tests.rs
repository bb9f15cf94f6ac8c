//! What the worker's end does with messages, without a network.

use std::net::SocketAddr;

use sip::hop::{ConnectionId, Hop, Transport};
use tokio::sync::mpsc::Receiver;

use super::*;

const OWN: Owner = Owner(1);
const OTHER: Owner = Owner(2);

struct Rig {
    peers: Peers,
    events: Family<Label, Counter>,
}

impl Rig {
    fn new() -> Self {
        let events = Family::default();
        let names = vec!["c2".to_owned(), "c3".to_owned()];
        let peers = Peers::new(OWN, names, &events);
        Self { peers, events }
    }

    fn up(&mut self) -> Receiver<CoreMessage> {
        let (outlet, said) = Outlet::new();
        self.peers.handle_up(0, OTHER, outlet, now());
        said
    }

    fn counted(&self, name: &'static str) -> u64 {
        self.events.get_or_create(&event(name)).get()
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "tests need some instant to count from"
)]
fn now() -> Instant {
    Instant::now()
}

fn flow(owner: Owner) -> Flow {
    let address = |text: &str| text.parse::<SocketAddr>().unwrap();
    Flow {
        transport: Transport::Tls,
        peer: address("203.0.113.7:40000"),
        local: address("198.51.100.1:5061"),
        connection: Some(ConnectionId::first(3, owner)),
    }
}

fn transmit(flow: Flow) -> Transmit {
    Transmit {
        flow,
        bytes: "OPTIONS".into(),
    }
}

#[test]
fn a_message_for_a_peers_connection_goes_to_the_peer_and_any_other_stays() {
    let mut rig = Rig::new();
    let theirs = transmit(flow(OTHER));
    assert_eq!(
        rig.peers.carry(theirs.clone()),
        Some(theirs.clone()),
        "down"
    );
    let mut said = rig.up();
    let datagram = transmit(Flow {
        transport: Transport::Udp,
        connection: None,
        ..flow(OTHER)
    });
    for stays in [transmit(flow(OWN)), transmit(flow(Owner(3))), datagram] {
        assert_eq!(rig.peers.carry(stays.clone()), Some(stays));
    }
    assert_eq!(rig.peers.carry(theirs), None);
    let message = said.try_recv().unwrap();
    assert!(said.try_recv().is_err());
    // The peer reads it as it was.
    let events = Family::default();
    let mut there = Peers::new(OTHER, Vec::new(), &events);
    let asked = there.handle_message(message.clone());
    assert_eq!(asked, Asked::Send(transmit(flow(OTHER))));
    // And we are not asked to send on what is not here.
    assert_eq!(rig.peers.handle_message(message), Asked::Nothing);
    assert_eq!(rig.counted("dropped_malformed"), 1);
}

#[test]
fn what_is_handed_over_keeps_its_flow_and_its_edge() {
    let mut rig = Rig::new();
    let mut said = rig.up();
    let relay = "0x1001/5";
    let hop = Hop {
        flow: Flow {
            transport: Transport::Udp,
            connection: None,
            ..flow(OWN)
        },
        relay: Some(wire::mark::RelayId {
            key: wire::gre::TunnelKey(0x1001),
            mark: wire::mark::Mark::new(5).unwrap(),
        }),
    };
    let handover = Handover {
        to: OTHER,
        hop,
        bytes: "BYE".into(),
    };
    rig.peers.hand_over(&handover);
    let mut there = Peers::new(OTHER, Vec::new(), &Family::default());
    let asked = there.handle_message(said.try_recv().unwrap());
    assert_eq!(asked, Asked::Handle(handover.clone()));
    assert_eq!(hop.relay.unwrap().to_string(), relay);
    rig.peers.handle_down(0);
    rig.peers.hand_over(&handover);
    assert_eq!(
        (
            rig.counted("handed_over"),
            rig.counted("dropped_queue_full")
        ),
        (1, 1)
    );
}

#[test]
fn nonsense_of_a_peer_is_counted() {
    let mut rig = Rig::new();
    let relay = Some(wire::core_link::RelayRecord { key: 1, mark: 64 });
    let mut strange = record::of_flow(&flow(OWN));
    let message = || b"BYE".to_vec();
    let bad_mark = CoreMessage::Received {
        flow: strange,
        relay,
        message: message(),
    };
    strange.transport = 9;
    let bad_transport = CoreMessage::Received {
        flow: strange,
        relay: None,
        message: message(),
    };
    for message in [
        bad_mark,
        bad_transport,
        CoreMessage::Unsent { flow: strange },
    ] {
        assert_eq!(rig.peers.handle_message(message), Asked::Nothing);
    }
    assert_eq!(rig.counted("dropped_malformed"), 3);
}

#[test]
fn a_queue_that_is_full_loses_messages_and_says_so() {
    let mut rig = Rig::new();
    let _said = rig.up();
    for _ in 0..QUEUE + 5 {
        rig.peers.carry(transmit(flow(OTHER)));
    }
    assert_eq!(rig.counted("dropped_queue_full"), 5);
    assert_eq!(rig.counted("sent_by_peer"), QUEUE as u64);
}

#[test]
fn a_peer_that_is_back_is_told_what_it_has_missed() {
    let mut rig = Rig::new();
    rig.peers.tell_record(b"first", now());
    let mut said = rig.up();
    let asked = rig.peers.handle_message(said.try_recv().unwrap());
    assert_eq!(asked, Asked::Merge(b"first".to_vec()));
    rig.peers.handle_down(0);
    rig.peers.tell_record(b"second", now());
    let mut said = rig.up();
    for record in [b"first".as_slice(), b"second"] {
        let asked = rig.peers.handle_message(said.try_recv().unwrap());
        assert_eq!(asked, Asked::Merge(record.to_vec()));
    }
    assert!(said.try_recv().is_err());
}

#[test]
fn registrations_are_told_to_all_and_leave_room_for_what_is_more_urgent() {
    let mut rig = Rig::new();
    let mut said = rig.up();
    for _ in 0..QUEUE {
        rig.peers.tell_record(b"record", now());
    }
    let told = (QUEUE / 2) as u64;
    assert_eq!(rig.counted("registration_told"), told);
    assert_eq!(rig.counted("dropped_registration_queue_full"), told);
    rig.peers.carry(transmit(flow(OTHER)));
    assert_eq!(rig.counted("dropped_queue_full"), 0);
    let asked = rig.peers.handle_message(said.try_recv().unwrap());
    assert_eq!(asked, Asked::Merge(b"record".to_vec()));
    assert_eq!(rig.counted("registration_heard"), 1);
}

#[test]
fn peers_hear_of_what_could_not_be_sent_for_them() {
    let mut rig = Rig::new();
    let mut said = rig.up();
    rig.peers.tell_failed(&flow(OTHER));
    assert!(said.try_recv().is_err(), "not ours");
    rig.peers.tell_failed(&flow(OWN));
    let message = said.try_recv().unwrap();
    assert_eq!(rig.peers.handle_message(message), Asked::Failed(flow(OWN)));
}
