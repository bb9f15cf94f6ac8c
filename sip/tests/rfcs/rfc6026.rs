//! RFC 6026: correct transaction handling for 2xx responses to INVITE, as a proxy sees it. The states
//! themselves are in the test crate `transaction`.

use std::time::Duration;

use crate::world::{ALICE, BOB, World, answer, find, in_dialog, invite, parse, summary};

/// In Accepted a retransmitted INVITE is absorbed and nobody hears of it (section 7.1).
///
/// "any retransmissions of the INVITE received will match this transaction state machine and will be
/// absorbed by the machine without changing its state. These retransmissions are not passed onto the TU."
/// (RFC 6026 section 7.1)
#[test]
fn a_copy_of_an_accepted_invite_is_absorbed() {
    let mut world = World::with_bob();
    world.call();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    assert_eq!(summary(&sent), [""; 0]);
    assert_eq!(world.proxy.counters().calls, 1);
    world.assert_all_forgotten();
}

/// In Accepted every 2xx goes up from the client transaction (section 7.2) and down to the transport from the
/// server transaction (7.1), for 64*T1.
///
/// "Any retransmission of the 2xx response passed from the TU to the transaction while in the "Accepted"
/// state MUST be passed to the transport layer for transmission." (7.1)
#[test]
fn every_copy_of_a_2xx_passes_until_timer_m() {
    let mut world = World::with_bob();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let ok = answer(&find(&sent, BOB), 200, "OK", "b1");
    let passes = |world: &mut World| summary(&world.receive(BOB, &ok)) == ["200 -> alice"];
    assert!(passes(&mut world));
    world.advance(Duration::from_millis(31_900));
    assert!(passes(&mut world));
    world.advance(Duration::from_millis(100));
    assert!(!passes(&mut world));
    assert_eq!(world.proxy.counters().unmatched_responses, 1);
    world.assert_all_forgotten();
}

/// A proxy does not forward a response that matches no client transaction (section 7.3), which RFC 3261
/// section 16.7 wanted forwarded statelessly.
///
/// "The proxy MUST NOT forward the response if there is no matching transaction state machine." (section 6)
#[test]
fn stray_responses_are_dropped_and_counted() {
    for status in [100, 180, 200, 302, 486, 603] {
        let mut world = World::with_bob();
        let (_, to_bob) = world.call();
        world.assert_all_forgotten();
        let sent = world.receive(BOB, &answer(&to_bob, status, "Any", "b1"));
        assert_eq!(summary(&sent), [""; 0], "{status}");
        assert_eq!(world.proxy.counters().unmatched_responses, 1);
    }
}

/// In Accepted every ACK is handed on, and so goes end to end (section 7.1).
///
/// "Any ACKs received from the network while in the "Accepted" state MUST be passed directly to the TU and
/// not absorbed." (7.1)
#[test]
fn every_ack_of_a_2xx_goes_end_to_end() {
    let mut world = World::with_bob();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let sent = world.receive(BOB, &answer(&find(&sent, BOB), 200, "OK", "b1"));
    let ack = in_dialog("ACK", 1, &parse(&sent[0]), true);
    for _ in 0..3 {
        assert_eq!(summary(&world.receive(ALICE, &ack)), ["ACK -> bob"]);
    }
    assert_eq!(world.proxy.counters().stray_acks, 0);
    world.assert_all_forgotten();
}
