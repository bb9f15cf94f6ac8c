//! Timer C.

use std::time::Duration;

use sip::proxy::TIMER_C;

use crate::world::{ALICE, BOB, World, answer, find, invite, summary};

/// "The timer MUST be larger than 3 minutes." (16.6 step 11)
#[test]
fn timer_c_is_larger_than_three_minutes() {
    assert!(TIMER_C > Duration::from_secs(180));
}

/// "If the client transaction has received a provisional response, the proxy MUST generate a CANCEL
/// request matching that transaction."
#[test]
fn timer_c_cancels_a_branch_that_rings_too_long() {
    let mut world = World::with_bob();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let to_bob = find(&sent, BOB);
    world.advance(Duration::from_secs(1));
    world.receive(BOB, &answer(&to_bob, 180, "Ringing", "b1"));
    let sent = world.advance(TIMER_C - Duration::from_millis(1));
    assert_eq!(summary(&sent), [""; 0]);
    let sent = world.advance(Duration::from_millis(1));
    assert_eq!(summary(&sent)[..1], ["CANCEL -> bob"]);
    let sent = world.advance(Duration::from_secs(32));
    assert!(
        summary(&sent).contains(&String::from("408 -> alice")),
        "{:?}",
        summary(&sent)
    );
    world.assert_all_forgotten();
}

/// "if the response is a provisional response with status codes 101 to 199 inclusive (i.e.,
/// anything but 100), the proxy MUST reset timer C for that client transaction." (16.7 step 2)
#[test]
fn every_provisional_response_but_100_resets_timer_c() {
    for (status, resets) in [
        (100, false),
        (101, true),
        (180, true),
        (183, true),
        (199, true),
    ] {
        let mut world = World::with_bob();
        let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
        let to_bob = find(&sent, BOB);
        world.receive(BOB, &answer(&to_bob, 180, "Ringing", "b1"));
        world.advance(TIMER_C / 2);
        world.receive(BOB, &answer(&to_bob, status, "Still", "b1"));
        let sent = world.advance(TIMER_C * 3 / 4);
        assert_eq!(
            summary(&sent).is_empty(),
            resets,
            "{status}: {:?}",
            summary(&sent)
        );
    }
}
