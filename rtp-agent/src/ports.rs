//! The pool of media ports: even/odd pairs, one RTP and one RTCP port each.
//!
//! A pair is free, in use, or in quarantine. A released pair waits before it is given out again, so
//! that late packets of the call before do not arrive in the middle of the next one. Pairs come out
//! in an order that the seed decides: a stranger cannot tell which port the next call will use.
//! [`crate::relay::Relay`] owns one pool for its media address.
//!
//! Standards: RFC 3550 section 11 (RTP on an even port, RTCP on the next higher odd one).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long a pair that another process holds stays out of the pool.
const FOREIGN_QUARANTINE: Duration = Duration::from_secs(60);

/// An even RTP port and, above it, its RTCP port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortPair {
    rtp: u16,
}

impl PortPair {
    /// The even port.
    pub const fn rtp(self) -> u16 {
        self.rtp
    }

    /// The odd port above it.
    pub const fn rtcp(self) -> u16 {
        self.rtp + 1
    }
}

/// The first and the last port of the pool, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// This range; `None` when no even/odd pair fits or it touches the privileged ports.
    pub fn new(first: u16, last: u16) -> Option<Self> {
        let range = Self { first, last };
        (first >= 1024 && range.pairs().next().is_some()).then_some(range)
    }

    /// The first and the last port.
    pub const fn bounds(self) -> (u16, u16) {
        (self.first, self.last)
    }

    /// How many ports its pairs have.
    pub fn count(self) -> usize {
        self.pairs().count() * 2
    }

    /// The RTCP ports of the first and of the last pair, which may be the same.
    pub(crate) fn rtcp_at_the_ends(self) -> impl Iterator<Item = u16> {
        let rtcp = (self.first.next_multiple_of(2) + 1, (self.last - 1) | 1);
        let other = (rtcp.1 > rtcp.0).then_some(rtcp.1);
        std::iter::once(rtcp.0).chain(other)
    }

    fn pairs(self) -> impl Iterator<Item = PortPair> {
        let first_even = u32::from(self.first).next_multiple_of(2);
        (first_even..u32::from(self.last))
            .step_by(2)
            .filter_map(|port| u16::try_from(port).ok())
            .map(|rtp| PortPair { rtp })
    }
}

/// Hands out port pairs and takes them back.
#[derive(Debug)]
pub struct PortPool {
    free: VecDeque<PortPair>,
    /// In the order of release, which is almost the order of their deadlines.
    quarantined: VecDeque<(Instant, PortPair)>,
    quarantine: Duration,
    in_use: usize,
}

impl PortPool {
    /// All pairs of `range`, in an order decided by `seed`.
    pub fn new(range: PortRange, quarantine: Duration, seed: u64) -> Self {
        let mut pairs: Vec<PortPair> = range.pairs().collect();
        shuffle(&mut pairs, seed);
        Self {
            free: pairs.into(),
            quarantined: VecDeque::new(),
            quarantine,
            in_use: 0,
        }
    }

    /// One pair, or `None` while all are in use or in quarantine.
    pub fn take(&mut self, now: Instant) -> Option<PortPair> {
        self.end_quarantines(now);
        let pair = self.free.pop_front()?;
        self.in_use += 1;
        Some(pair)
    }

    /// Exactly this pair, though it may be resting; `None` when it is in use or not of this pool.
    pub fn take_exact(&mut self, rtp: u16) -> Option<PortPair> {
        let wanted = PortPair { rtp };
        if let Some(at) = self.free.iter().position(|&pair| pair == wanted) {
            self.free.remove(at);
        } else {
            let mut resting = self.quarantined.iter();
            let at = resting.position(|&(_, pair)| pair == wanted)?;
            self.quarantined.remove(at);
        }
        self.in_use += 1;
        Some(wanted)
    }

    /// The pair was not used after all.
    pub fn put_back(&mut self, pair: PortPair) {
        self.in_use -= 1;
        self.free.push_front(pair);
    }

    /// The pair is closed; it may be taken again after the quarantine.
    pub fn release(&mut self, pair: PortPair, now: Instant) {
        self.in_use -= 1;
        self.quarantined.push_back((now + self.quarantine, pair));
    }

    /// The pair was never open because another process holds one of its ports.
    pub fn release_foreign(&mut self, pair: PortPair, now: Instant) {
        self.in_use -= 1;
        let wait = self.quarantine.max(FOREIGN_QUARANTINE);
        self.quarantined.push_back((now + wait, pair));
    }

    /// When the next pair comes out of quarantine.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.quarantined.iter().map(|&(until, _)| until).min()
    }

    /// Pairs that could be taken now, those whose quarantine has ended but was not yet noticed aside.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Pairs taken and not released.
    pub const fn in_use(&self) -> usize {
        self.in_use
    }

    /// Pairs waiting out their quarantine.
    pub fn quarantined(&self) -> usize {
        self.quarantined.len()
    }

    fn end_quarantines(&mut self, now: Instant) {
        let free = &mut self.free;
        self.quarantined.retain(|&(until, pair)| {
            let over = until <= now;
            if over {
                free.push_back(pair);
            }
            !over
        });
    }
}

/// Fisher-Yates with a splitmix64 generator: not a secret, only not a sequence.
fn shuffle(pairs: &mut [PortPair], mut seed: u64) {
    for last in (1..pairs.len()).rev() {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let bound = last as u64 + 1;
        let other = usize::try_from(mixed % bound).unwrap_or(0);
        pairs.swap(last, other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const QUARANTINE: Duration = Duration::from_secs(5);

    #[test]
    fn a_range_holds_only_whole_pairs_that_start_even() {
        let pairs: Vec<_> = PortRange::new(30_001, 30_006)
            .expect("two pairs fit")
            .pairs()
            .map(|pair| (pair.rtp(), pair.rtcp()))
            .collect();
        assert_eq!(pairs, [(30_002, 30_003), (30_004, 30_005)]);
    }

    #[test]
    fn the_rtcp_ports_at_the_ends_are_those_of_pairs() {
        let ends = |first, last| {
            let range = PortRange::new(first, last).expect("a pair");
            range.rtcp_at_the_ends().collect::<Vec<_>>()
        };
        assert_eq!(ends(30_000, 39_999), [30_001, 39_999]);
        assert_eq!(ends(30_001, 30_006), [30_003, 30_005]);
        assert_eq!(ends(65_534, 65_535), [65_535]);
    }

    #[test]
    fn the_last_pair_below_65536_is_usable() {
        let range = PortRange::new(65_534, 65_535).expect("one pair fits");
        assert_eq!(
            range.pairs().map(PortPair::rtcp).collect::<Vec<_>>(),
            [65_535]
        );
    }

    #[test]
    fn a_range_without_a_pair_or_with_privileged_ports_is_refused() {
        assert_eq!(PortRange::new(30_001, 30_002), None);
        assert_eq!(PortRange::new(30_010, 30_000), None);
        assert_eq!(PortRange::new(1022, 2000), None);
    }

    #[test]
    fn a_released_pair_comes_back_only_after_its_quarantine_to_the_millisecond() {
        let now = clock::start();
        let mut pool = pool(30_000, 30_001);
        let pair = pool.take(now).expect("one pair");
        assert_eq!(pool.take(now), None);

        pool.release(pair, now);

        assert_eq!(pool.poll_timeout(), Some(now + QUARANTINE));
        assert_eq!(pool.take(now + QUARANTINE - Duration::from_millis(1)), None);
        assert_eq!(pool.take(now + QUARANTINE), Some(pair));
        assert_eq!((pool.free(), pool.in_use(), pool.quarantined()), (0, 1, 0));
    }

    #[test]
    fn a_pair_held_by_another_process_waits_longer_and_does_not_delay_the_others() {
        let now = clock::start();
        let mut pool = pool(30_000, 30_003);
        let foreign = pool.take(now).expect("two pairs");
        let ours = pool.take(now).expect("two pairs");
        pool.release_foreign(foreign, now);
        pool.release(ours, now);

        assert_eq!(pool.take(now + QUARANTINE), Some(ours));
        assert_eq!(pool.take(now + QUARANTINE), None);
        assert_eq!(pool.take(now + FOREIGN_QUARANTINE), Some(foreign));
    }

    #[test]
    fn the_seed_decides_the_order_and_no_pair_is_lost() {
        let take_all = |seed| {
            let now = clock::start();
            let range = PortRange::new(30_000, 30_099).expect("a range");
            let mut pool = PortPool::new(range, QUARANTINE, seed);
            std::iter::from_fn(|| pool.take(now)).collect::<Vec<_>>()
        };
        assert_eq!(take_all(1), take_all(1));
        assert_ne!(take_all(1), take_all(2));
        let mut sorted = take_all(3);
        sorted.sort();
        assert_eq!(sorted.len(), 50);
        sorted.dedup();
        assert_eq!(sorted.len(), 50);
    }

    #[test]
    fn a_certain_pair_is_taken_out_of_the_pool_or_its_quarantine_but_not_from_its_user() {
        let now = clock::start();
        let mut pool = pool(30_000, 30_003);
        let pair = pool.take_exact(30_002).expect("it is free");
        assert_eq!(pair.rtp(), 30_002);
        assert_eq!(pool.take_exact(30_002), None);
        assert_eq!(pool.take_exact(30_004), None);
        assert_eq!(pool.take_exact(30_001), None);
        pool.release(pair, now);
        assert_eq!(pool.take_exact(30_002), Some(pair));
        assert_eq!((pool.free(), pool.in_use(), pool.quarantined()), (1, 1, 0));
    }

    fn pool(first: u16, last: u16) -> PortPool {
        PortPool::new(PortRange::new(first, last).expect("a range"), QUARANTINE, 7)
    }
}
