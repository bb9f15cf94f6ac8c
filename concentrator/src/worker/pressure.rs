//! Whether the worker keeps up with what arrives.
//!
//! It does as long as it empties the tunnel's socket now and then. If that has not been so for
//! [`PATIENCE`], messages wait longer than that in the kernel, whose buffer is next to overflow.

use std::time::{Duration, Instant};

/// How long a queue may stand: longer than a busy machine keeps a process waiting, shorter than T1.
/// The socket's buffer holds a second of 12,000 messages.
const PATIENCE: Duration = Duration::from_millis(300);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    /// Since when the queue was never seen empty.
    behind_since: Option<Instant>,
}

impl Pressure {
    /// The queue was read, and there was more in it or not. True when the worker is overloaded.
    pub(super) fn observe(&mut self, more: bool, now: Instant) -> bool {
        if !more {
            self.behind_since = None;
            return false;
        }
        let since = *self.behind_since.get_or_insert(now);
        now.saturating_duration_since(since) > PATIENCE
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
    fn a_queue_that_stands_is_overload_until_it_was_empty() {
        let mut pressure = Pressure::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert!(!pressure.observe(true, at(0)));
        assert!(!pressure.observe(true, at(300)));
        assert!(pressure.observe(true, at(301)));
        assert!(!pressure.observe(false, at(302)));
        assert!(!pressure.observe(true, at(303)), "counted anew");
        assert!(!pressure.observe(true, at(603)));
        assert!(pressure.observe(true, at(604)));
    }
}
