//! What the relay pool counts.

/// What happened, each count under its own name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Leases taken.
    pub leases_taken: u64,
    /// Calls that found no agent linked.
    pub not_connected: u64,
    /// Calls that found the stock empty.
    pub stock_empty: u64,
    /// Calls that found no lease with an address of each party's family.
    pub wrong_family: u64,
    /// Calls that found the agent draining.
    pub draining: u64,
    /// Calls with a mark that no relay is configured for.
    pub unknown_relay: u64,
    /// Links refused because the certificate names no agent of ours.
    pub unknown_agent: u64,
    /// Links closed because a message came out of order or from the wrong name.
    pub violations: u64,
    /// Links closed because the agent fell silent.
    pub silent: u64,
    /// Requests that an agent refused.
    pub failed: u64,
    /// Requests that had no answer in time.
    pub expired: u64,
    /// Answers to no request of ours.
    pub stray: u64,
    /// Sessions that ended with their agent.
    pub sessions_lost: u64,
}
