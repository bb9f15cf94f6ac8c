//! Users whose last contact went with its connection: a user agent that has lost its connection opens another one and
//! registers again, so for a while they are not gone but on their way back.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use hashbrown::HashMap;

use super::AddressOfRecord;

/// How long one that has lost its connection may take to register again.
pub(crate) const RETURN: Duration = Duration::from_secs(12);
/// Users that are remembered; of more the first are forgotten.
const MAX_USERS: usize = 65_536;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Partings {
    /// Until when each may come back.
    users: HashMap<AddressOfRecord, Instant>,
    /// The same in order, with those that have come back.
    order: VecDeque<(Instant, AddressOfRecord)>,
}

impl Partings {
    /// A user has no contact any more.
    pub(super) fn parted(&mut self, user: &AddressOfRecord, now: Instant) {
        let over = |(until, _): &(Instant, AddressOfRecord)| *until <= now;
        while self.order.front().is_some_and(over) || self.order.len() >= MAX_USERS {
            let Some((until, first)) = self.order.pop_front() else {
                break;
            };
            if self.users.get(&first) == Some(&until) {
                self.users.remove(&first);
            }
        }
        let until = now + RETURN;
        self.users.insert(user.clone(), until);
        self.order.push_back((until, user.clone()));
    }

    /// A user has a contact again.
    pub(super) fn returned(&mut self, user: &AddressOfRecord) {
        self.users.remove(user);
    }

    /// Until when a user that has no contact may come back.
    pub(super) fn until(&self, user: &AddressOfRecord, now: Instant) -> Option<Instant> {
        self.users.get(user).copied().filter(|until| *until > now)
    }
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "tests need some instant to count from"
)]
mod tests {
    use super::*;

    fn user(name: usize) -> AddressOfRecord {
        let uri = format!("sip:u{name}@example.com");
        AddressOfRecord::from_uri(uri.as_bytes()).unwrap()
    }

    #[test]
    fn a_user_is_awaited_until_it_is_back_or_has_been_away_for_too_long() {
        let (start, mut partings) = (Instant::now(), Partings::default());
        partings.parted(&user(1), start);
        assert_eq!(partings.until(&user(1), start), Some(start + RETURN));
        assert_eq!(partings.until(&user(2), start), None);
        assert_eq!(partings.until(&user(1), start + RETURN), None);
        partings.returned(&user(1));
        assert_eq!(partings.until(&user(1), start), None);
        // Again, and what is over of the first time is not over of the second.
        let later = start + RETURN / 2;
        partings.parted(&user(1), later);
        partings.parted(&user(2), start + RETURN);
        let until = partings.until(&user(1), start + RETURN);
        assert_eq!(until, Some(later + RETURN));
    }

    #[test]
    fn so_many_are_remembered_and_no_more() {
        let (start, mut partings) = (Instant::now(), Partings::default());
        for name in 0..=MAX_USERS {
            partings.parted(&user(name), start);
        }
        assert_eq!(partings.users.len(), MAX_USERS);
        assert_eq!(partings.order.len(), MAX_USERS);
        assert_eq!(partings.until(&user(0), start), None);
        assert!(partings.until(&user(1), start).is_some());
        partings.parted(&user(0), start + RETURN);
        assert_eq!(partings.users.len(), 1, "the others are over");
    }
}
