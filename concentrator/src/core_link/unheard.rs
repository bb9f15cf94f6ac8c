//! What a peer may not have heard, and how often it was heard.
//!
//! A link may end with messages under way, and the next one comes up before anybody has missed anything. So the
//! end that speaks keeps what it has said until the other one says how much it has heard
//! ([`wire::core_link::CoreMessage::Heard`]), and the next link begins where that one ended. The end that hears
//! counts over all links of one life of its peer, and no link counts once a later one has begun.
//!
//! While its peer counts as gone, everybody does without it: a final response that comes then goes on to the caller
//! without state. So a provisional one from before is not said when the peer is back: it would come after it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Messages that are kept; the oldest ones give way.
const MAX_KEPT: usize = 8_192;
/// And their octets.
const MAX_OCTETS: usize = 8 * 1024 * 1024;

/// Nobody has heard more than this.
const MAX_NUMBER: u64 = u64::MAX / 2;

/// Frames in the order in which they are said, of which the first ones may have been heard.
#[derive(Debug, Default)]
pub(super) struct Unheard {
    /// The number of the first one that is kept: so many are before it.
    first: u64,
    frames: VecDeque<Frame>,
    octets: usize,
}

#[derive(Debug)]
struct Frame {
    bytes: Vec<u8>,
    /// A response that others follow.
    provisional: bool,
}

impl Unheard {
    /// The next one, and whether it is a provisional response.
    pub(super) fn push(&mut self, bytes: Vec<u8>, provisional: bool) {
        self.octets += bytes.len();
        self.frames.push_back(Frame { bytes, provisional });
        while self.frames.len() > MAX_KEPT || self.octets > MAX_OCTETS {
            self.forget_first();
        }
    }

    /// The number of the first one that is kept.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// How many are kept.
    pub(super) fn len(&self) -> usize {
        self.frames.len()
    }

    /// Keeps none.
    pub(super) fn clear(&mut self) {
        while !self.frames.is_empty() {
            self.forget_first();
        }
    }

    /// The other end has heard so many.
    pub(super) fn heard(&mut self, count: u64) {
        while self.first < count && !self.frames.is_empty() {
            self.forget_first();
        }
    }

    /// A link begins, whose other end has heard so many: what is kept and was not heard has the numbers from
    /// there on.
    pub(super) fn begin(&mut self, count: u64) {
        self.heard(count);
        self.first = count.min(MAX_NUMBER);
    }

    /// Forgets provisional responses; only where a link [`begins`](Self::begin) may numbers change.
    pub(super) fn forget_provisional(&mut self) {
        self.frames.retain(|frame| !frame.provisional);
        self.octets = self.frames.iter().map(|frame| frame.bytes.len()).sum();
    }

    /// Frames from this number on, as many as there are in so many octets and one more, and the number of the
    /// next one.
    pub(super) fn from(&self, number: u64, octets: usize) -> (Vec<u8>, u64) {
        let skipped = number.saturating_sub(self.first);
        let mut bytes = Vec::new();
        let mut next = self.first + skipped;
        let skipped = usize::try_from(skipped).unwrap_or(usize::MAX);
        for frame in self.frames.iter().skip(skipped) {
            if bytes.len() >= octets {
                break;
            }
            bytes.extend_from_slice(&frame.bytes);
            next += 1;
        }
        (bytes, next)
    }

    fn forget_first(&mut self) {
        if let Some(frame) = self.frames.pop_front() {
            self.octets -= frame.bytes.len();
            self.first += 1;
        }
    }
}

/// How much of each peer was heard.
#[derive(Debug)]
pub(super) struct Ears(Vec<Mutex<Ear>>);

#[derive(Debug, Default)]
struct Ear {
    /// Of whose cookies; another life of the peer has another.
    owner: u16,
    link: u64,
    count: u64,
}

/// A link that is heard, until the next one begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hearing {
    peer: usize,
    link: u64,
}

impl Ears {
    /// For so many peers.
    pub(super) fn new(peers: usize) -> Self {
        Self((0..peers).map(|_| Mutex::default()).collect())
    }

    /// A link begins; gives how much was heard before.
    pub(super) fn begin(&self, peer: usize, owner: u16) -> Option<(Hearing, u64)> {
        let mut ear = self.lock(peer)?;
        ear.link += 1;
        if ear.owner != owner {
            ear.owner = owner;
            ear.count = 0;
        }
        let link = ear.link;
        Some((Hearing { peer, link }, ear.count))
    }

    /// Counts a message. False where a later link has begun, which brings it again.
    pub(super) fn hear(&self, hearing: Hearing) -> bool {
        let ear = self.lock(hearing.peer);
        ear.is_some_and(|mut ear| {
            let current = ear.link == hearing.link;
            ear.count += u64::from(current);
            current
        })
    }

    /// How many were heard.
    pub(super) fn count(&self, peer: usize) -> u64 {
        self.lock(peer).map_or(0, |ear| ear.count)
    }

    fn lock(&self, peer: usize) -> Option<MutexGuard<'_, Ear>> {
        let ear = self.0.get(peer)?;
        Some(ear.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(frames: std::ops::Range<u8>) -> Unheard {
        let mut unheard = Unheard::default();
        frames.for_each(|frame| unheard.push(vec![frame], false));
        unheard
    }

    #[test]
    fn a_link_begins_with_what_the_one_before_has_not_brought() {
        let mut unheard = kept(0..6);
        unheard.heard(2);
        // It has heard one more than it could say.
        unheard.begin(3);
        assert_eq!((unheard.first(), unheard.len()), (3, 3));
        assert_eq!(unheard.from(3, 100), (vec![3, 4, 5], 6));
        assert_eq!(unheard.from(3, 1), (vec![3], 4));
        assert_eq!(unheard.from(6, 100), (vec![], 6));
        unheard.heard(6);
        assert_eq!((unheard.first(), unheard.len(), unheard.octets), (6, 0, 0));
    }

    #[test]
    fn provisional_responses_are_forgotten_and_the_rest_has_the_numbers_from_where_the_other_end_is()
     {
        let mut unheard = Unheard::default();
        for (frame, provisional) in [(0, true), (1, false), (2, true), (3, false)] {
            unheard.push(vec![frame], provisional);
        }
        unheard.begin(1);
        unheard.forget_provisional();
        assert_eq!(unheard.from(1, 100), (vec![1, 3], 3));
        assert_eq!((unheard.len(), unheard.octets), (2, 2));
        unheard.heard(2);
        assert_eq!(unheard.from(2, 100), (vec![3], 3));
    }

    #[test]
    fn a_peer_that_has_heard_nothing_gets_all_of_it_under_its_own_numbers() {
        let mut unheard = kept(0..4);
        unheard.heard(2);
        unheard.begin(0);
        assert_eq!(unheard.from(0, 100), (vec![2, 3], 2));
        // And one that claims more than there was gets what is said from now on.
        unheard.begin(u64::MAX);
        let first = unheard.first();
        unheard.push(vec![9], false);
        assert_eq!(unheard.from(first, 100), (vec![9], first + 1));
        unheard.clear();
        assert_eq!((unheard.len(), unheard.octets), (0, 0));
    }

    #[test]
    fn what_is_kept_is_bounded_by_number_and_by_octets() {
        let mut unheard = Unheard::default();
        for _ in 0..=MAX_KEPT {
            unheard.push(vec![1], false);
        }
        assert_eq!((unheard.first(), unheard.len()), (1, MAX_KEPT));
        for _ in 0..3 {
            unheard.push(vec![0; MAX_OCTETS / 2], false);
        }
        assert_eq!((unheard.frames.len(), unheard.octets), (2, MAX_OCTETS));
        // Who asks for what is gone gets the first that there is.
        let (bytes, next) = unheard.from(0, 1);
        assert_eq!((bytes.len(), next), (MAX_OCTETS / 2, unheard.first + 1));
    }

    #[test]
    fn a_message_is_counted_by_the_newest_link_of_its_peers_life() {
        let ears = Ears::new(1);
        let (old, count) = ears.begin(0, 5).unwrap();
        assert_eq!(count, 0);
        assert!(ears.hear(old) && ears.hear(old));
        let (new, count) = ears.begin(0, 5).unwrap();
        assert_eq!(count, 2);
        assert!(!ears.hear(old));
        assert!(ears.hear(new));
        assert_eq!(ears.count(0), 3);
        assert_eq!(ears.begin(0, 6).unwrap().1, 0, "another life");
        assert!(ears.begin(1, 5).is_none());
    }
}
