//! What has changed in the table of sessions and is still to be told to the other agent.
//!
//! Only which sessions, each once: what is told is the session as it is then. So the journal is no
//! longer than the table, however slowly the other agent reads. Of sessions that are over their numbers
//! are kept, up to a bound; past it the journal is given up, and the other agent gets a new snapshot.

use std::collections::{HashSet, VecDeque};

use crate::relay::SessionId;

/// Sessions noted at most, changed and over together.
const MAX_NOTED: usize = 65_536;

/// Which sessions have changed and which are over; empty while nobody wants to know.
#[derive(Debug, Default)]
pub struct Journal {
    open: bool,
    changed: VecDeque<SessionId>,
    noted: HashSet<SessionId>,
    over: VecDeque<SessionId>,
    overflowed: bool,
}

impl Journal {
    /// Begins anew: the other agent is about to get a snapshot.
    pub fn open(&mut self) {
        *self = Self {
            open: true,
            ..Self::default()
        };
    }

    /// Nobody wants to know any more.
    pub fn close(&mut self) {
        *self = Self::default();
    }

    /// A session is new, or different from what was told of it.
    pub fn note_changed(&mut self, session: SessionId) {
        if self.open && self.has_room() && self.noted.insert(session) {
            self.changed.push_back(session);
        }
    }

    /// A session is over.
    pub fn note_over(&mut self, session: SessionId) {
        if self.open && self.has_room() {
            self.over.push_back(session);
        }
    }

    /// The next session that has changed.
    pub fn take_changed(&mut self) -> Option<SessionId> {
        let session = self.changed.pop_front()?;
        self.noted.remove(&session);
        Some(session)
    }

    /// The next session that is over.
    pub fn take_over(&mut self) -> Option<SessionId> {
        self.over.pop_front()
    }

    /// Too much was noted: only a snapshot helps, which must begin with [`Journal::open`].
    pub const fn has_overflowed(&self) -> bool {
        self.overflowed
    }

    /// True when there is something to tell.
    pub fn is_waiting(&self) -> bool {
        self.overflowed || !self.changed.is_empty() || !self.over.is_empty()
    }

    fn has_room(&mut self) -> bool {
        if self.changed.len() + self.over.len() < MAX_NOTED {
            return true;
        }
        self.changed = VecDeque::new();
        self.noted = HashSet::new();
        self.over = VecDeque::new();
        self.overflowed = true;
        self.open = false;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_changes_often_is_told_once() {
        let mut journal = Journal::default();
        journal.open();
        for session in [1, 2, 1, 1] {
            journal.note_changed(SessionId(session));
        }
        assert_eq!(journal.take_changed(), Some(SessionId(1)));
        journal.note_changed(SessionId(1));
        assert_eq!(journal.take_changed(), Some(SessionId(2)));
        assert_eq!(journal.take_changed(), Some(SessionId(1)));
        assert_eq!(journal.take_changed(), None);
        assert!(!journal.is_waiting());
    }

    #[test]
    fn nothing_is_noted_while_nobody_wants_to_know() {
        let mut journal = Journal::default();
        journal.note_changed(SessionId(1));
        journal.note_over(SessionId(1));
        assert!(!journal.is_waiting());
        journal.open();
        journal.note_over(SessionId(1));
        assert_eq!(journal.take_over(), Some(SessionId(1)));
        journal.note_over(SessionId(2));
        journal.close();
        assert!(!journal.is_waiting());
    }

    #[test]
    fn too_much_is_given_up_for_a_snapshot() {
        let mut journal = Journal::default();
        journal.open();
        for session in 0..MAX_NOTED as u64 {
            journal.note_over(SessionId(session));
        }
        assert!(!journal.has_overflowed());
        journal.note_changed(SessionId(0));
        assert!(journal.has_overflowed() && journal.is_waiting());
        assert_eq!((journal.take_over(), journal.take_changed()), (None, None));
        journal.open();
        assert!(!journal.has_overflowed());
    }
}
