//! How many leases an agent's stock should have, by what calls have taken lately.
//!
//! A lease that is taken is replaced one round trip later, and a burst must find enough until then.
//! So the stock covers [`COVER_SECONDS`] of the busiest second that is remembered: it grows with the
//! take that exceeds it, and forgets the busy second slowly, by a 32nd in each second. Sizes are
//! powers of two within the configured bounds, and shrink at most every [`SHRINK_AFTER`], so that few
//! messages are spent on them.
//!
//! Pure: `note` for each lease that a call asks for, `tick` about every second.

use std::time::{Duration, Instant};

/// Seconds of the busiest rate that a full stock covers: more than any round trip and the opening of
/// the ports.
const COVER_SECONDS: u32 = 2;
/// Takes are counted over this time.
const WINDOW: Duration = Duration::from_secs(1);
/// A stock that was changed stays as it is for this long before it shrinks.
const SHRINK_AFTER: Duration = Duration::from_secs(30);
/// How much of the busiest second is forgotten in each second: a half in 22 s.
const FORGETS: u32 = 32;
/// The unit of the busiest second.
const UNIT: u64 = 1024;

/// The recent rate of one agent's calls, and the stock that follows from it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Demand {
    least: u32,
    most: u32,
    wanted: u32,
    /// Leases asked for since the window began.
    taken: u32,
    /// Of the busiest second, in 1024ths.
    busiest: u64,
    window: Option<Instant>,
    changed: Option<Instant>,
}

impl Demand {
    /// Nobody has called yet.
    pub(super) const fn new(least: u32, most: u32) -> Self {
        Self {
            least,
            most: if most > least { most } else { least },
            wanted: least,
            taken: 0,
            busiest: 0,
            window: None,
            changed: None,
        }
    }

    /// The stock to ask for.
    pub(super) const fn wanted(&self) -> u32 {
        self.wanted
    }

    /// Calls ask for so many leases. `Some`: the stock should now be larger.
    pub(super) fn note(&mut self, leases: u32) -> Option<u32> {
        self.taken = self.taken.saturating_add(leases);
        let size = self.size(self.taken.max(self.busiest()));
        if size <= self.wanted {
            return None;
        }
        self.wanted = size;
        // From the next tick on.
        self.changed = None;
        Some(size)
    }

    /// Time passes; true where a window has ended. What the stock should be then is in
    /// [`Demand::shrink`].
    pub(super) fn tick(&mut self, now: Instant) -> bool {
        let start = *self.window.get_or_insert(now);
        self.changed.get_or_insert(now);
        let elapsed = now.saturating_duration_since(start);
        if elapsed < WINDOW {
            return false;
        }
        let seconds = u32::try_from(elapsed.as_secs()).unwrap_or(u32::MAX).max(1);
        let rate = self.taken.div_ceil(seconds);
        // Longer than that and nothing would be left anyway.
        for _ in 0..seconds.min(10 * FORGETS) {
            self.busiest -= self.busiest / u64::from(FORGETS);
        }
        self.busiest = self.busiest.max(u64::from(rate) * UNIT);
        self.taken = 0;
        self.window = Some(now);
        true
    }

    /// `Some`: the stock should now be smaller.
    pub(super) fn shrink(&mut self, now: Instant) -> Option<u32> {
        let size = self.size(self.busiest());
        let rested = self
            .changed
            .is_some_and(|changed| changed + SHRINK_AFTER <= now);
        if size >= self.wanted || !rested {
            return None;
        }
        self.wanted = size;
        self.changed = Some(now);
        Some(size)
    }

    fn busiest(&self) -> u32 {
        u32::try_from(self.busiest.div_ceil(UNIT)).unwrap_or(u32::MAX)
    }

    fn size(&self, rate: u32) -> u32 {
        let cover = rate.saturating_mul(COVER_SECONDS);
        let size = cover.checked_next_power_of_two().unwrap_or(self.most);
        size.clamp(self.least, self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stock_grows_with_the_take_that_exceeds_it_and_only_then() {
        let mut demand = Demand::new(64, 256);
        assert_eq!(demand.note(32), None, "64 cover two seconds of 32");
        assert_eq!(demand.note(1), Some(128));
        assert_eq!(demand.note(31), None);
        assert_eq!(demand.note(1000), Some(256), "and no further");
        assert_eq!(demand.note(u32::MAX), None);
        assert_eq!(demand.wanted(), 256);
    }

    #[test]
    fn it_shrinks_when_the_busy_second_is_forgotten_not_before_and_not_below_its_floor() {
        let mut demand = Demand::new(64, 256);
        let start = start();
        demand.tick(start);
        demand.note(100);
        let mut sizes = Vec::new();
        for second in 1..=200 {
            let now = start + Duration::from_secs(second);
            assert!(demand.tick(now));
            sizes.extend(demand.shrink(now).map(|size| (second, size)));
        }
        let [(first, 128), (second, 64)] = sizes[..] else {
            panic!("{sizes:?}");
        };
        assert!(first >= 30 && second >= first + 30, "{sizes:?}");
    }

    #[test]
    fn a_steady_rate_changes_nothing_once_its_stock_is_there() {
        let mut demand = Demand::new(64, 256);
        let start = start();
        let mut changes = 0;
        for second in 0..300 {
            let now = start + Duration::from_secs(second);
            demand.tick(now);
            changes += usize::from(demand.note(50).is_some());
            changes += usize::from(demand.shrink(now).is_some());
        }
        assert_eq!((changes, demand.wanted()), (1, 128));
    }

    #[test]
    fn a_long_silence_of_the_clock_is_many_seconds_without_a_call() {
        let mut demand = Demand::new(1, 256);
        let start = start();
        demand.tick(start);
        demand.note(100);
        let later = start + Duration::from_secs(3600);
        demand.tick(later);
        assert_eq!(demand.shrink(later), None, "it has only just grown");
        demand.tick(later + SHRINK_AFTER);
        assert_eq!(demand.shrink(later + SHRINK_AFTER), Some(2));
    }

    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    fn start() -> Instant {
        Instant::now()
    }
}
