//! Registrations of the last minute, for a peer that is back: it cannot have heard of them directly, and it
//! takes seconds until it hears the cluster again. Meanwhile it would send to connections that are no more.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long one is kept. Whoever was away for longer hears of the rest from the cluster.
const KEPT: Duration = Duration::from_secs(60);
/// The oldest give way.
const MAX_RECORDS: usize = 4_096;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Told(VecDeque<(Instant, Vec<u8>)>);

impl Told {
    pub(super) fn note(&mut self, record: &[u8], now: Instant) {
        self.forget(now);
        if self.0.len() >= MAX_RECORDS {
            self.0.pop_front();
        }
        self.0.push_back((now, record.to_vec()));
    }

    /// In the order in which they were told.
    pub(super) fn lately(&mut self, now: Instant) -> impl Iterator<Item = &[u8]> {
        self.forget(now);
        self.0.iter().map(|(_, record)| record.as_slice())
    }

    fn forget(&mut self, now: Instant) {
        while self.0.front().is_some_and(|(at, _)| *at + KEPT <= now) {
            self.0.pop_front();
        }
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
    fn a_minute_is_kept_in_its_order() {
        let (mut told, start) = (Told::default(), Instant::now());
        told.note(b"a", start);
        told.note(b"b", start + KEPT / 2);
        let kept = |told: &mut Told, now| told.lately(now).map(<[u8]>::to_vec).collect::<Vec<_>>();
        assert_eq!(kept(&mut told, start + KEPT / 2), [b"a", b"b"]);
        assert_eq!(kept(&mut told, start + KEPT), [b"b"]);
        assert_eq!(kept(&mut told, start + KEPT * 2), [b""; 0]);
    }

    #[test]
    fn so_many_and_no_more() {
        let (mut told, now) = (Told::default(), Instant::now());
        for number in 0..=MAX_RECORDS {
            told.note(number.to_string().as_bytes(), now);
        }
        assert_eq!(told.lately(now).count(), MAX_RECORDS);
        assert_eq!(told.lately(now).next(), Some(b"1".as_slice()));
    }
}
