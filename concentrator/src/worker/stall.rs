//! When this process has stood still while others went on: a hypervisor or a debugger had stopped it, or the
//! machine had no time for it.
//!
//! Edges move their phones to another concentrator when one has said nothing for 300 ms. So what has waited
//! in the tunnel for longer than that is old: the other one has had what came after it, and a 180 sent on now
//! would come after its own 200. Everything in it is repeated by its sender or needed by nobody, so it is dropped,
//! which a concentrator without others never does.

use std::time::{Duration, Instant};

use super::SNAPSHOT_INTERVAL;

/// The silence after which edges send elsewhere.
const SILENCE: Duration = Duration::from_millis(300);
/// How long it may take to drop what has waited.
const WHILE: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Stall {
    /// When the loop last turned, which it does at every snapshot.
    turned: Option<Instant>,
    until: Option<Instant>,
}

impl Stall {
    /// The loop turns.
    pub(super) fn turn(&mut self, now: Instant) {
        let last = self.turned.replace(now);
        let still = last.map(|last| now.saturating_duration_since(last));
        if still.is_some_and(|still| still > SNAPSHOT_INTERVAL + SILENCE) {
            self.until = Some(now + WHILE);
        }
    }

    /// True where packets that were read now are old; there are more of them or not.
    pub(super) fn are_old(&mut self, more: bool, now: Instant) -> bool {
        let old = self.until.is_some_and(|until| now < until);
        if !old || !more {
            self.until = None;
        }
        old
    }
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "tests need some instant to count from"
)]
mod tests {
    use super::*;

    #[test]
    fn what_has_waited_while_we_stood_still_is_old_and_what_comes_later_is_not() {
        let (mut stall, start) = (Stall::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        stall.turn(at(0));
        stall.turn(at(500));
        assert!(!stall.are_old(false, at(500)), "a busy machine");
        stall.turn(at(1_500));
        stall.turn(at(1_501));
        assert!(stall.are_old(true, at(1_501)));
        assert!(stall.are_old(false, at(1_502)), "the last of them");
        assert!(!stall.are_old(false, at(1_503)));
    }

    #[test]
    fn a_tunnel_that_never_empties_is_read_again() {
        let (mut stall, start) = (Stall::default(), Instant::now());
        stall.turn(start);
        let after = start + Duration::from_secs(1);
        stall.turn(after);
        assert!(stall.are_old(true, after));
        assert!(!stall.are_old(true, after + WHILE));
    }
}
