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
    /// The side that faces the callee, or the second relay.
    pub b: SideAddr,
    /// The session on the callee's relay, where two relays are chained.
    pub far: Option<FarSession>,
}

/// The second session of a chain: side A faces the first relay, side B the callee.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FarSession {
    /// The relay and its number for the session.
    pub session: SessionRef,
    /// The side that faces the first relay.
    pub a: SideAddr,
    /// The side that faces the callee.
    pub b: SideAddr,
}

impl LeasedSession {
    /// Where the callee sends.
    pub fn callee_side(&self) -> SideAddr {
        self.far.map_or(self.b, |far| far.b)
    }

    /// All sessions of it: one, or two in a chain.
    pub fn sessions(&self) -> impl Iterator<Item = SessionRef> + use<> {
        let far = self.far.map(|far| far.session);
        std::iter::once(self.session).chain(far)
    }
}

/// Why there is no lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoLease {
    /// No relay is configured for that edge and mark.
    Unknown,
    /// Its agent has no link.
    NotConnected,
    /// Its agent was not heard of for a while.
    Quiet,
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
