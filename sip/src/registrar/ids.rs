//! A set of binding numbers that costs nothing extra while it has one member, as nearly all have.

use std::collections::BTreeSet;

/// The numbers of some bindings, the oldest first.
#[derive(Debug, Default)]
pub(super) enum IdSet {
    #[default]
    Empty,
    One(u64),
    Many(BTreeSet<u64>),
}

impl IdSet {
    pub(super) fn insert(&mut self, id: u64) {
        match self {
            Self::Empty => *self = Self::One(id),
            Self::One(one) if *one == id => {}
            Self::One(one) => *self = Self::Many(BTreeSet::from([*one, id])),
            Self::Many(many) => drop(many.insert(id)),
        }
    }

    /// True if nothing is left.
    pub(super) fn remove(&mut self, id: u64) -> bool {
        match self {
            Self::Empty => {}
            Self::One(one) if *one == id => *self = Self::Empty,
            Self::One(_) => return false,
            Self::Many(many) => {
                many.remove(&id);
                return many.is_empty();
            }
        }
        true
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::One(_) => 1,
            Self::Many(many) => many.len(),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u64> {
        let (one, many) = match self {
            Self::Empty => (None, None),
            Self::One(one) => (Some(*one), None),
            Self::Many(many) => (None, Some(many.iter().copied())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}
