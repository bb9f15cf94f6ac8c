//! When it pays to let packets gather: waking for each of them costs more than to handle it.
//!
//! As the interrupts of a network card are moderated, so is the worker: while packets, or messages of other
//! concentrators, come in quick succession it sleeps between two reads, deaf to all, and then reads what has
//! come. It sleeps as long as it takes until [`ENOUGH`] of them are there, by how many came since the last
//! read: with more of them a wake-up costs each one little. A lone packet is read at once. The price is at most
//! [`LONGEST`] for a message, of the 500 ms that SIP reckons with for a round trip (T1, RFC 3261
//! section 17.1.1.1).

use std::time::{Duration, Instant};

/// Packets that are worth a wake-up.
const ENOUGH: u32 = 16;
/// However few come.
const LONGEST: Duration = Duration::from_millis(4);
/// However many come: a sleep costs a wake-up.
const SHORTEST: Duration = Duration::from_micros(500);
/// Packets closer to each other than this are a quick succession; the first sleep is as long.
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
        let last = self.last.replace(now);
        let since = last.map(|last| now.saturating_duration_since(last));
        if !self.on {
            self.on = since.is_some_and(|since| since < CLOSE);
            return self.on.then_some(CLOSE);
        }
        self.on = packets > 1;
        let packets = u32::try_from(packets).unwrap_or(u32::MAX).max(1);
        let until_enough = since.unwrap_or(CLOSE) * ENOUGH / packets;
        self.on.then_some(until_enough.clamp(SHORTEST, LONGEST))
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
        assert_eq!(gathering.observe(1, false, at(11)), Some(CLOSE));
        assert_eq!(gathering.observe(5, false, at(13)), Some(LONGEST));
        assert_eq!(gathering.observe(64, true, at(17)), None, "read on at once");
        assert_eq!(gathering.observe(2, false, at(17)), Some(LONGEST));
        assert_eq!(
            gathering.observe(1, false, at(21)),
            None,
            "it was not worth it"
        );
        assert_eq!(gathering.observe(1, false, at(30)), None);
    }

    #[test]
    fn the_more_packets_come_the_shorter_they_wait() {
        let sleep_after = |packets| {
            let mut gathering = Gathering::default();
            let start = Instant::now();
            gathering.observe(1, false, start);
            gathering.observe(1, false, start + Duration::from_millis(1));
            gathering.observe(packets, false, start + Duration::from_millis(3))
        };
        assert_eq!(sleep_after(2), Some(LONGEST));
        assert_eq!(sleep_after(16), Some(Duration::from_millis(2)));
        assert_eq!(sleep_after(32), Some(Duration::from_millis(1)));
        assert_eq!(sleep_after(10_000), Some(SHORTEST));
    }
}
