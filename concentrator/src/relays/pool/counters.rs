//! What the relay pool counts.

/// What happened, each count under its own name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Leases taken.
    pub leases_taken: u64,
    /// Calls that found no agent linked.
    pub not_connected: u64,
    /// Calls that found an agent that was not heard of for a while.
    pub quiet_relay: u64,
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
    /// Times that an agent was not heard of for two heartbeats.
    pub quiet: u64,
    /// Links closed because the agent named an address that cannot be a relay's.
    pub bad_addresses: u64,
    /// Links closed because the agent named a port that cannot be a relay's.
    pub bad_ports: u64,
    /// Leases that an agent offered beyond what a stock may hold.
    pub surplus_leases: u64,
    /// Requests for a larger or smaller stock.
    pub stock_changes: u64,
    /// Those that an agent could not fulfil.
    pub stock_refused: u64,
    /// Of these: it has no ports left.
    pub no_ports: u64,
    /// Of these: its ports cannot be opened.
    pub bind_failed: u64,
    /// Of these: it has as many sessions as it may have.
    pub limit_reached: u64,
    /// Leases given back because the stock has become smaller.
    pub leases_returned: u64,
    /// Pairs of leases taken for chains of two relays.
    pub chains: u64,
    /// Agents that have closed their link and have not come back.
    pub gone: u64,
    /// Sessions that ended with their agent.
    pub sessions_lost: u64,
    /// Sessions that ended while their agent's link was down, and of whose end nothing else was heard.
    pub unheard: u64,
}
