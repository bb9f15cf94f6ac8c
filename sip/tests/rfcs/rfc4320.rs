//! RFC 4320: problems with non-INVITE transactions.

use std::time::Duration;

use crate::world::{ALICE, BOB, World, answer, parse, request, summary};

fn message() -> Vec<u8> {
    request("MESSAGE", "sip:bob@example.com", "z9hG4bKm1", "")
}

/// "An SIP element MUST NOT send any provisional response with a Status-Code other than 100 to a non-INVITE
/// request." (section 4.1)
#[test]
fn a_provisional_response_to_a_request_other_than_invite_stays_here() {
    for status in [100, 180, 183, 199] {
        let mut world = World::with_bob();
        let to_bob = parse(&world.receive(ALICE, &message())[0]);
        let sent = world.receive(BOB, &answer(&to_bob, status, "Progress", "b1"));
        assert_eq!(summary(&sent), [""; 0], "{status}");
        let sent = world.receive(BOB, &answer(&to_bob, 200, "OK", "b1"));
        assert_eq!(summary(&sent), ["200 -> alice"]);
        world.assert_all_forgotten();
    }
}

/// "An SIP element MUST NOT respond to a non-INVITE request with a Status-Code of 100 over any unreliable
/// transport, such as UDP, before the amount of time it takes a client transaction's Timer E to be reset to
/// T2." "Without regard to transport, an SIP element MUST respond to a non-INVITE request with a Status-Code of
/// 100 if it has not otherwise responded after" that time (section 4.1): 0.5 + 1 + 2 seconds.
#[test]
fn a_slow_request_gets_one_100_when_timer_e_has_reached_t2() {
    for tcp in [false, true] {
        let mut world = World::with_bob();
        world.tcp = tcp;
        world.receive(ALICE, &message());
        world.tcp = false;
        let to_alice = |sent: &[sip::hop::Transmit]| {
            let lines = summary(sent).into_iter();
            lines
                .filter(|line| line.ends_with("alice"))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            to_alice(&world.advance(Duration::from_millis(3499))),
            [""; 0]
        );
        assert_eq!(
            to_alice(&world.advance(Duration::from_millis(1))),
            ["100 -> alice"]
        );
        assert_eq!(to_alice(&world.advance(Duration::from_secs(40))), [""; 0]);
        world.assert_all_forgotten();
    }
}

#[test]
fn an_answer_in_time_leaves_no_100() {
    let mut world = World::with_bob();
    let to_bob = parse(&world.receive(ALICE, &message())[0]);
    world.advance(Duration::from_secs(3));
    let sent = world.receive(BOB, &answer(&to_bob, 200, "OK", "b1"));
    assert_eq!(summary(&sent), ["200 -> alice"]);
    assert_eq!(summary(&world.advance(Duration::from_secs(2))), [""; 0]);
    world.assert_all_forgotten();
}

/// "A transaction-stateful SIP element MUST NOT send a response with Status-Code of 408 to a non-INVITE
/// request." (section 4.2)
#[test]
fn a_request_other_than_invite_that_nobody_answers_ends_in_silence() {
    let mut world = World::with_bob();
    world.receive(ALICE, &message());
    let sent = world.advance(Duration::from_secs(40));
    let allowed = ["MESSAGE -> bob", "100 -> alice"];
    assert!(
        summary(&sent)
            .iter()
            .all(|line| allowed.contains(&line.as_str())),
        "{:?}",
        summary(&sent)
    );
    assert_eq!(world.proxy.contexts(), 0);
    world.assert_all_forgotten();
}

/// … nor pass one on that it received: it would come too late for anybody.
#[test]
fn a_408_to_a_request_other_than_invite_is_not_forwarded() {
    let mut world = World::with_bob();
    let to_bob = parse(&world.receive(ALICE, &message())[0]);
    let sent = world.receive(BOB, &answer(&to_bob, 408, "Request Timeout", "b1"));
    assert_eq!(summary(&sent), [""; 0]);
    world.assert_all_forgotten();
}

/// A response for which there is no transaction left is not forwarded (section 4.2).
#[test]
fn a_response_after_the_end_of_the_transaction_is_dropped() {
    let mut world = World::with_bob();
    let to_bob = parse(&world.receive(ALICE, &message())[0]);
    world.advance(Duration::from_secs(33));
    let sent = world.receive(BOB, &answer(&to_bob, 200, "OK", "b1"));
    assert_eq!(summary(&sent), [""; 0]);
    assert_eq!(world.proxy.counters().unmatched_responses, 1);
}
