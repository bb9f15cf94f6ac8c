//! What the media side counts.

/// What happened to calls' media.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Calls whose media were placed on a relay.
    pub relayed: u64,
    /// Calls that need no relay by policy.
    pub direct: u64,
    /// Calls that went on without a relay although policy wanted one.
    pub unplaced: u64,
    /// Branches refused because no relay had an address of each party's family.
    pub unbridged: u64,
    /// Calls placed on another relay than the first that they should have, because that one had no
    /// lease to give.
    pub fallback: u64,
    /// Calls whose media pass the relays of both edges.
    pub chained: u64,
    /// Calls that should pass two relays and pass one.
    pub unchained: u64,
    /// Calls about which a pin has decided something.
    pub pinned: u64,
    /// Sessions of calls that we do not know, given back because a cookie has named them.
    pub released_by_cookie: u64,
    /// Media lines of relayed calls that found no lease.
    pub lines_unplaced: u64,
    /// Descriptions that cannot be read.
    pub bad_sdp: u64,
    /// Descriptions with more live lines than are relayed.
    pub too_many_lines: u64,
    /// Offers refused for either.
    pub offers_refused: u64,
    /// Answers, and offers in a response, that passed unchanged for either.
    pub answers_unchanged: u64,
    /// Media addresses that nothing may come from: loopback, multicast, our own.
    pub hostile_addresses: u64,
    /// Offers and answers undone because their request failed.
    pub rolled_back: u64,
    /// Calls that had lost their sessions, or that we had forgotten, relayed anew.
    pub adopted: u64,
    /// Answers to INVITEs of another concentrator that lead to the relay as its cookie says.
    pub answered_by_cookie: u64,
}
