//! Whether the worker keeps up with what arrives.
//!
//! Messages come two ways, and either can fall behind:
//!
//! * The tunnel's socket, which the worker empties now and then as long as it keeps up. If that has
//!   not been so for [`PATIENCE`], messages wait longer than that in the kernel, whose buffer is next
//!   to overflow.
//! * The queue of what came by the other sockets: datagrams outside of the tunnel, fragmented ones,
//!   all of TCP, TLS and WebSocket. It is too long when it is more than half full, since a full one
//!   drops datagrams and stops connections, or when a message has waited in it for [`PATIENCE`].
//!
//! Both are judged before their messages are handled, so that those are refused already.

use std::time::{Duration, Instant};

/// How long a message may wait: longer than a busy machine keeps a process waiting, shorter than T1.
/// The socket's buffer holds a second of 12,000 messages.
const PATIENCE: Duration = Duration::from_millis(300);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    /// Since when the tunnel was never seen empty.
    tunnel_behind_since: Option<Instant>,
    /// What waited in the queue at some moment, as long as some of it still does.
    waiting_since: Option<Mark>,
    tunnel_overloaded: bool,
    queue_overloaded: bool,
}

#[derive(Debug, Clone, Copy)]
struct Mark {
    at: Instant,
    /// Messages that were there then and are still.
    left: usize,
}

impl Pressure {
    /// True when the worker is overloaded.
    pub(super) fn is_high(&self) -> bool {
        self.tunnel_overloaded || self.queue_overloaded
    }

    /// The tunnel was read, and there was more in it or not.
    pub(super) fn observe_tunnel(&mut self, more: bool, now: Instant) {
        if !more {
            self.tunnel_behind_since = None;
        }
        let since = more.then(|| *self.tunnel_behind_since.get_or_insert(now));
        self.tunnel_overloaded = is_too_long(since, now);
    }

    /// So many messages are taken from the queue, and so many of `room` stay in it.
    pub(super) fn observe_queue(&mut self, taken: usize, left: usize, room: usize, now: Instant) {
        let mark = self.waiting_since.and_then(|mark| {
            let left = mark.left.checked_sub(taken).filter(|left| *left > 0)?;
            Some(Mark { left, ..mark })
        });
        let fresh = (left > 0).then_some(Mark { at: now, left });
        self.waiting_since = mark.or(fresh);
        let since = self.waiting_since.map(|mark| mark.at);
        self.queue_overloaded = left > room / 2 || is_too_long(since, now);
    }
}

fn is_too_long(since: Option<Instant>, now: Instant) -> bool {
    since.is_some_and(|since| now.saturating_duration_since(since) > PATIENCE)
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "tests need some instant to count from"
)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_that_stands_is_overload_until_it_was_empty() {
        let mut pressure = Pressure::default();
        let start = Instant::now();
        let mut observe = |more, ms| {
            pressure.observe_tunnel(more, start + Duration::from_millis(ms));
            pressure.is_high()
        };
        assert!(!observe(true, 0));
        assert!(!observe(true, 300));
        assert!(observe(true, 301));
        assert!(!observe(false, 302));
        assert!(!observe(true, 303), "counted anew");
        assert!(!observe(true, 603));
        assert!(observe(true, 604));
    }

    #[test]
    fn a_queue_is_too_long_when_it_is_more_than_half_full() {
        let mut pressure = Pressure::default();
        let start = Instant::now();
        let mut observe = |taken, left| {
            pressure.observe_queue(taken, left, 100, start);
            pressure.is_high()
        };
        assert!(!observe(0, 50));
        assert!(observe(0, 51));
        assert!(observe(10, 90));
        assert!(!observe(64, 26));
        assert!(!observe(26, 0));
    }

    #[test]
    fn a_message_that_waits_too_long_is_overload_whatever_comes_behind_it() {
        let mut pressure = Pressure::default();
        let start = Instant::now();
        let mut observe = |taken, left, ms| {
            pressure.observe_queue(taken, left, 4096, start + Duration::from_millis(ms));
            pressure.is_high()
        };
        assert!(!observe(64, 10, 0));
        // Five of the ten, and then four, with others behind them: the tenth has waited all the time.
        assert!(!observe(5, 40, 100));
        assert!(!observe(4, 40, 300));
        assert!(observe(0, 40, 301));
        // It is taken; those that are left came after the last look at the oldest.
        assert!(!observe(1, 40, 302));
        assert!(!observe(39, 1, 602));
        assert!(observe(0, 1, 603));
        assert!(!observe(1, 0, 604));
    }

    #[test]
    fn a_queue_that_moves_is_no_overload_although_it_is_never_empty() {
        let mut pressure = Pressure::default();
        let start = Instant::now();
        for turn in 0..1000 {
            let now = start + Duration::from_millis(10 * turn);
            pressure.observe_queue(64, 100, 4096, now);
            assert!(!pressure.is_high(), "{turn}");
        }
    }

    #[test]
    fn one_of_the_two_is_enough() {
        let mut pressure = Pressure::default();
        let start = Instant::now();
        pressure.observe_queue(0, 60, 100, start);
        pressure.observe_tunnel(false, start);
        assert!(pressure.is_high());
        pressure.observe_queue(60, 0, 100, start);
        pressure.observe_tunnel(true, start);
        pressure.observe_tunnel(true, start + 2 * PATIENCE);
        pressure.observe_queue(0, 0, 100, start + 2 * PATIENCE);
        assert!(pressure.is_high());
    }
}
