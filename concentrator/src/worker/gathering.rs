//! When it pays to let packets gather: waking for each of them costs more than to handle it.
//!
//! As the interrupts of a network card are moderated, so is the worker: while packets come in quick
//! succession it sleeps for [`PAUSE`] between two reads, deaf to all, and then reads what has come.
//! A lone packet is read at once. The price is at most [`PAUSE`] for a message, of the 500 ms that
//! SIP reckons with for a round trip (T1, RFC 3261 section 17.1.1.1).

use std::time::{Duration, Instant};

/// How long packets may gather; at 12,000 a second some two dozen.
const PAUSE: Duration = Duration::from_millis(2);
/// Packets closer to each other than this are a quick succession.
const CLOSE: Duration = Duration::from_millis(2);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    last: Option<Instant>,
    on: bool,
}

impl Gathering {
    /// So many packets were read, and there were more or not; how long to sleep before the next
    /// read, if at all.
    pub(super) fn observe(&mut self, packets: usize, more: bool, now: Instant) -> Option<Duration> {
        if more {
            return None;
        }
        let close = |last: Instant| now.saturating_duration_since(last) < CLOSE;
        self.on = if self.on {
            packets > 1
        } else {
            self.last.is_some_and(close)
        };
        self.last = Some(now);
        self.on.then_some(PAUSE)
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
    fn packets_gather_while_they_come_in_quick_succession() {
        let mut gathering = Gathering::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(gathering.observe(1, false, at(0)), None, "a lone packet");
        assert_eq!(gathering.observe(1, false, at(10)), None, "another");
        assert_eq!(gathering.observe(1, false, at(11)), Some(PAUSE));
        assert_eq!(gathering.observe(5, false, at(13)), Some(PAUSE));
        assert_eq!(gathering.observe(64, true, at(15)), None, "read on at once");
        assert_eq!(gathering.observe(2, false, at(16)), Some(PAUSE));
        assert_eq!(
            gathering.observe(1, false, at(18)),
            None,
            "it was not worth it"
        );
        assert_eq!(gathering.observe(1, false, at(30)), None);
    }
}
