//! What a call takes from the stock, and why it may get nothing.

use std::net::IpAddr;

use sip::proxy::media::SessionRef;
use wire::relay_control::{Lease, SideAddr};

/// A lease that was taken for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeasedSession {
    /// The relay and its number for the session.
    pub session: SessionRef,
    /// The side that faces the caller.
    pub a: SideAddr,
    /// The side that faces the callee.
    pub b: SideAddr,
}

/// Why there is no lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoLease {
    /// No relay is configured for that edge and mark.
    Unknown,
    /// Its agent has no link.
    NotConnected,
    /// Its agent takes no new calls.
    Draining,
    /// Calls come faster than leases.
    StockEmpty,
    /// No lease has an address of each party's family.
    WrongFamily,
}

/// True where each side's address is of its party's family.
pub(super) fn reaches(lease: &Lease, parties: [Option<IpAddr>; 2]) -> bool {
    let mut sides = [lease.a.addr, lease.b.addr].into_iter().zip(parties);
    sides.all(|(side, party)| party.is_none_or(|party| party.is_ipv4() == side.is_ipv4()))
}
