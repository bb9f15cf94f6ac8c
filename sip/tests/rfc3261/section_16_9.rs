//! Transport errors.

use crate::world::{ALICE, BOB, BOB_DESK, World, answer, find, invite, summary};

/// "If the transport layer notifies a proxy of an error when it tries to forward a request (see Section 18.4),
/// the proxy MUST behave as if the forwarded request received a 503 (Service Unavailable) response."
/// "If the only response that was received is a 503, the proxy SHOULD generate a 500 response."
#[test]
fn a_dead_flow_is_a_503_of_its_branch() {
    let mut world = World::with_bob();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let flow = sent[1].flow;
    let sent = world.transport_error(&flow);
    assert_eq!(summary(&sent), ["500 -> alice"]);
    assert_eq!(world.media.count("ended"), 1);
    world.assert_all_forgotten();
}

#[test]
fn a_dead_flow_does_not_end_the_other_branches() {
    let mut world = World::with_bob();
    world.register(BOB_DESK, "sip:bob@192.168.1.3:5060", "desk");
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let to_desk = find(&sent, BOB_DESK);
    let dead = sent.iter().find(|one| one.flow.peer.to_string() == BOB);
    let dead = dead.expect("a branch to Bob").flow;
    assert_eq!(summary(&world.transport_error(&dead)), [""; 0]);
    let sent = world.receive(BOB_DESK, &answer(&to_desk, 200, "OK", "d1"));
    assert_eq!(summary(&sent), ["200 -> alice"]);
    world.assert_all_forgotten();
}
