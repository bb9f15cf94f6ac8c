//! The mark: the relay of an edge, in the DSCP bits of the inner ToS or Traffic Class.

use std::fmt;

use crate::gre::TunnelKey;

/// Which relay of an edge, 1..=63; 0 means unmarked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Mark(u8);

impl Mark {
    /// No relay of its own.
    pub const UNMARKED: Self = Self(0);
    /// The largest mark: the DSCP field has six bits (RFC 2474 section 3).
    pub const MAX: u8 = 63;

    /// The mark of this number; `None` above [`Mark::MAX`].
    pub const fn new(number: u8) -> Option<Self> {
        if number <= Self::MAX {
            Some(Self(number))
        } else {
            None
        }
    }

    /// The mark in a ToS or Traffic Class octet, whatever its ECN bits.
    pub const fn from_tos(tos: u8) -> Self {
        Self(tos >> 2)
    }

    /// The number, 0..=63.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// True for mark 0.
    pub const fn is_unmarked(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One relay, world-wide: the edge by its tunnel key, the relay by its mark there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelayId {
    /// The edge.
    pub key: TunnelKey,
    /// The relay on that edge.
    pub mark: Mark,
}

impl fmt::Display for RelayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.key, self.mark)
    }
}
