//! Two leases for one stream, on the relays of both edges: caller, first relay, second relay, callee.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use wire::mark::RelayId;
use wire::relay_control::SideAddr;

use super::{FarSession, LeasedSession, NoLease, RelayPool};

/// The version of the protocol that knows a gate for another relay.
const CHAIN_SINCE: u16 = 2;

impl RelayPool {
    /// Takes a lease on each of two relays that can send to each other, over the family of the
    /// caller if possible. None is taken where either has none.
    pub fn take_chain(
        &mut self,
        near: RelayId,
        far: RelayId,
        [caller, callee]: [Option<IpAddr>; 2],
    ) -> Result<LeasedSession, NoLease> {
        if !(self.can_be_chained(near) && self.can_be_chained(far)) || self.is_same(near, far) {
            return Err(NoLease::WrongFamily);
        }
        let mut why = NoLease::WrongFamily;
        for between in families(caller) {
            let wanted = [[caller, Some(between)], [Some(between), callee]];
            let missing = [near, far].into_iter().zip(wanted);
            let mut missing =
                missing.filter_map(|(relay, parties)| self.find(relay, parties).err());
            if let Some(missing) = missing.next() {
                why = missing;
                continue;
            }
            let first = self.take_lease(near, wanted[0])?;
            let second = self.take_lease(far, wanted[1])?;
            self.counters.chains += 1;
            return Ok(LeasedSession {
                far: Some(FarSession {
                    session: second.session,
                    a: second.a,
                    b: second.b,
                }),
                ..first
            });
        }
        Err(why)
    }

    /// True where one agent serves both.
    pub fn is_same(&self, one: RelayId, other: RelayId) -> bool {
        let agent = |relay| self.agent_of.get(&relay);
        agent(one).is_some() && agent(one) == agent(other)
    }

    fn can_be_chained(&self, relay: RelayId) -> bool {
        let agent = self
            .agent_of
            .get(&relay)
            .and_then(|name| self.agents.get(name));
        agent.is_some_and(|agent| {
            let mut leases = agent.leases.iter().take(1);
            agent.version >= CHAIN_SINCE && leases.all(|lease| is_pair(lease.a) && is_pair(lease.b))
        })
    }
}

/// A gate names the port for RTP, and RTCP is the next one (RFC 3550 section 11).
const fn is_pair(side: SideAddr) -> bool {
    side.rtcp == side.rtp.wrapping_add(1)
}

/// An address of each family, only to be compared by it.
fn families(first: Option<IpAddr>) -> [IpAddr; 2] {
    let (v4, v6) = (Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into());
    match first {
        Some(IpAddr::V6(_)) => [v6, v4],
        Some(IpAddr::V4(_)) | None => [v4, v6],
    }
}
