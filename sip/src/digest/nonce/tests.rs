use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

fn nonce(issued_s: u32, salt: u32) -> Nonce {
    Nonce { issued_s, salt }
}

#[test]
fn counts_may_come_out_of_order_and_only_once() {
    let mut replays = Replays::new(10, 0);
    let mut admit = |nc| replays.admit(nonce(100, 1), nc, 0) == Verdict::Valid;
    assert!(admit(2));
    assert!(admit(1));
    assert!(!admit(2));
    assert!(admit(66));
    assert!(admit(3));
    assert!(!admit(2), "64 below the highest, too far back to tell");
    assert!(admit(u32::MAX));
    assert!(!admit(66));
    assert!(!admit(u32::MAX));
}

proptest! {
    /// Whatever the order, no count is admitted twice.
    #[test]
    fn no_count_is_admitted_twice(counts in prop::collection::vec(1_u32..200, 1..300)) {
        let mut replays = Replays::new(10, 0);
        let mut admitted = HashSet::new();
        for nc in counts {
            if replays.admit(nonce(100, 1), nc, 0) == Verdict::Valid {
                prop_assert!(admitted.insert(nc), "{} twice", nc);
            }
        }
    }

    /// A table that is too small refuses more than it must, and never admits a replay.
    #[test]
    fn a_full_table_opens_no_replay(
        uses in prop::collection::vec((0_u32..20, 0_u32..3, 1_u32..4), 1..400),
        limit in 1_usize..8,
    ) {
        let mut replays = Replays::new(limit, 0);
        let mut admitted = HashSet::new();
        for (issued_s, salt, nc) in uses {
            if replays.admit(nonce(issued_s, salt), nc, 0) == Verdict::Valid {
                prop_assert!(admitted.insert((issued_s, salt, nc)));
            }
            prop_assert!(replays.len() <= limit);
            prop_assert_eq!(replays.len(), replays.order.len());
        }
    }
}

#[test]
fn newer_nonces_find_room_in_a_full_table() {
    let mut replays = Replays::new(2, 0);
    for issued_s in 100..200 {
        assert_eq!(replays.admit(nonce(issued_s, 0), 1, 0), Verdict::Valid);
    }
    assert_eq!(replays.admit(nonce(100, 0), 1, 0), Verdict::Stale);
    assert_eq!(replays.admit(nonce(199, 0), 1, 0), Verdict::Replayed);
}

#[test]
fn expired_nonces_are_forgotten() {
    let mut replays = Replays::new(1000, 0);
    for salt in 0..1000 {
        replays.admit(nonce(100, salt), 1, 0);
    }
    for salt in 0..200 {
        replays.admit(nonce(500, salt), 1, 200);
    }
    assert_eq!(replays.len(), 200);
}

#[test]
fn a_nonce_of_the_future_is_none() {
    let nonces = Nonces::new(Keys::new([1; 32], None), "example.com", 300);
    let text = nonces.issue(1, 1000);
    let standing = |now_s| nonces.standing(text.as_bytes(), now_s);
    assert_eq!(
        standing(1000 - CLOCK_SKEW_S),
        Standing::Fresh(nonce(1000, 1))
    );
    assert_eq!(standing(1000 - CLOCK_SKEW_S - 1), Standing::Expired);
    assert_eq!(standing(1300), Standing::Fresh(nonce(1000, 1)));
    assert_eq!(standing(1301), Standing::Expired);
}
