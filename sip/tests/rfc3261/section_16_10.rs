//! CANCEL processing.

use crate::text::with;
use crate::world::{ALICE, BOB, BOB_DESK, World, answer, find, invite, request, summary};

fn cancel() -> Vec<u8> {
    request("CANCEL", "sip:bob@example.com", "z9hG4bKalice1", "")
}

/// "A proxy MUST cancel any pending client transactions associated with a response context when it
/// receives a matching CANCEL request." "If a matching response context is found, the element MUST
/// immediately return a 200 (OK) response to the CANCEL request."
#[test]
fn a_cancel_is_answered_at_once_and_cancels_every_ringing_branch() {
    let mut world = World::with_bob();
    world.register(BOB_DESK, "sip:bob@192.168.1.3:5060", "desk");
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let (to_bob, to_desk) = (find(&sent, BOB), find(&sent, BOB_DESK));
    world.receive(BOB, &answer(&to_bob, 180, "Ringing", "b1"));
    world.receive(BOB_DESK, &answer(&to_desk, 180, "Ringing", "b2"));
    let mut lines = summary(&world.receive(ALICE, &cancel()));
    assert_eq!(lines[0], "200 -> alice");
    lines[1..].sort();
    assert_eq!(lines[1..], ["CANCEL -> bob", "CANCEL -> desk"]);
    world.receive(BOB, &answer(&to_bob, 487, "Request Terminated", "b1"));
    let sent = world.receive(BOB_DESK, &answer(&to_desk, 487, "Request Terminated", "b2"));
    assert_eq!(summary(&sent), ["ACK -> desk", "487 -> alice"]);
    world.assert_all_forgotten();
}

/// "While a CANCEL request is handled in a stateful proxy by its own server transaction, a new
/// response context is not created for it."
#[test]
fn a_cancel_makes_no_context_and_its_copy_gets_the_same_answer() {
    let mut world = World::with_bob();
    world.receive(ALICE, &invite("sip:bob@example.com"));
    let first = world.receive(ALICE, &cancel());
    let second = world.receive(ALICE, &cancel());
    assert_eq!(summary(&first), ["200 -> alice"]);
    assert_eq!(first[0].bytes, second[0].bytes);
    assert_eq!(world.proxy.contexts(), 1);
    world.assert_all_forgotten();
}

/// A CANCEL is believed by its branch, and a callee has seen the branch of its caller: one that does
/// not come from where the INVITE came from cancels nothing, and does not make the caller's own, which
/// has the same branch, a copy of it.
#[test]
fn a_cancel_from_a_stranger_cancels_nothing_and_leaves_the_callers_its_effect() {
    let mut world = World::with_bob();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let to_bob = find(&sent, BOB);
    world.receive(BOB, &answer(&to_bob, 180, "Ringing", "b1"));
    for (number, stranger) in [BOB, "192.0.2.66:5060"].into_iter().enumerate() {
        let sent = summary(&world.receive(stranger, &cancel()));
        assert!(sent.len() == 1 && sent[0].starts_with("481 "), "{sent:?}");
        let counted = world.proxy.counters().foreign_cancels;
        assert_eq!(counted, u64::try_from(number).expect("small") + 1);
    }
    let sent = world.receive(ALICE, &cancel());
    assert_eq!(summary(&sent), ["200 -> alice", "CANCEL -> bob"]);
    world.receive(BOB, &answer(&to_bob, 487, "Request Terminated", "b1"));
    world.assert_all_forgotten();
}

/// "Note that Require and Proxy-Require MUST NOT be used in a SIP CANCEL request … These header fields
/// MUST be ignored if they are present in these requests." (section 8.2.2.3)
#[test]
fn proxy_require_in_a_cancel_is_ignored() {
    let mut world = World::with_bob();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    world.receive(BOB, &answer(&find(&sent, BOB), 180, "Ringing", "b1"));
    let odd = with(
        &cancel(),
        "Contact:",
        "Proxy-Require: x\r\nRequire: y\r\nContact:",
    );
    let sent = world.receive(ALICE, &odd);
    assert_eq!(summary(&sent), ["200 -> alice", "CANCEL -> bob"]);
}
