//! Which leases a call gets: whether it needs any, on which relays, and whether those will soon have
//! more.

use std::net::IpAddr;

use sip::message::Message;
use sip::proxy::media::{NewCall, SessionRef};
use sip::sdp::SdpError;
use wire::mark::RelayId;

use super::Calls;
use super::addresses::{behind_nat, contact_address};
use super::choice::Choice;
use super::description::{Body, relayable};
use crate::config::{Anchor, RelayPolicy};
use crate::relays::pool::LeasedSession;

impl Calls {
    /// Whether the parties need a relay between them; `claimed` is where the caller says it is.
    pub(super) fn wanted(call: &NewCall<'_>, choice: &Choice, claimed: Option<IpAddr>) -> bool {
        match choice.policy {
            RelayPolicy::Always => true,
            RelayPolicy::Never => false,
            RelayPolicy::Auto => {
                let (caller, callee) = (call.from.flow.peer.ip(), call.to.peer.ip());
                caller.is_ipv4() != callee.is_ipv4()
                    || behind_nat(claimed, caller)
                    || behind_nat(contact_address(call.contact), callee)
            }
        }
    }

    /// The first of these relays that has fewer leases than a call needs, and will soon have more.
    pub(super) fn shortage(
        &self,
        relays: &[RelayId],
        [caller, callee]: [Option<IpAddr>; 2],
        leases: usize,
    ) -> Option<RelayId> {
        let parties = |index| match (relays.len(), index) {
            (2, 0) => [caller, None],
            (2, _) => [None, callee],
            _ => [caller, callee],
        };
        let mut relays = relays.iter().enumerate();
        let short = relays.find(|(index, relay)| {
            let parties = parties(*index);
            self.relays.available(**relay, parties, leases) < leases
                && self.relays.is_refilling(**relay, parties)
        });
        short.map(|(_, relay)| *relay)
    }

    /// A lease for a new call, or one on each of two relays.
    pub(super) fn take(&mut self, call: &NewCall<'_>, choice: &Choice) -> Option<LeasedSession> {
        let parties = parties(call);
        if let (Anchor::Both, [Some(near), Some(far)]) = (choice.anchor, choice.relays) {
            let chained = self.take_chain([near, far], parties);
            self.counters.chained += u64::from(chained.is_some_and(|lease| lease.far.is_some()));
            if chained.is_some() {
                return chained;
            }
        }
        let candidates = self.plan.candidates(choice);
        let lease = self.take_first(&candidates, parties)?;
        self.counters.unchained += u64::from(choice.is_of_two_relays());
        Some(lease)
    }

    /// A lease on each of two relays or of those that stand in for them; a single one where one
    /// relay is in both orders.
    fn take_chain(
        &mut self,
        [near, far]: [RelayId; 2],
        parties: [Option<IpAddr>; 2],
    ) -> Option<LeasedSession> {
        let far: Vec<RelayId> = self.plan.order(far).collect();
        let near: Vec<RelayId> = self.plan.order(near).collect();
        for (near_rank, near) in near.iter().enumerate() {
            for (far_rank, far) in far.iter().enumerate() {
                let lease = if self.relays.is_same(*near, *far) {
                    self.relays.take_lease(*near, parties)
                } else {
                    self.relays.take_chain(*near, *far, parties)
                };
                if let Ok(lease) = lease {
                    self.counters.fallback += u64::from(near_rank + far_rank > 0);
                    return Some(lease);
                }
            }
        }
        None
    }

    fn take_first(
        &mut self,
        candidates: &[RelayId],
        parties: [Option<IpAddr>; 2],
    ) -> Option<LeasedSession> {
        for (rank, relay) in candidates.iter().enumerate() {
            if let Ok(lease) = self.relays.take_lease(*relay, parties) {
                self.counters.fallback += u64::from(rank > 0);
                return Some(lease);
            }
        }
        None
    }

    /// A lease for another line of a call: on the relays that the call is pinned to, else on one that
    /// stands in for them.
    pub(super) fn take_for_line(
        &mut self,
        key: SessionRef,
        far: Option<RelayId>,
        parties: [Option<IpAddr>; 2],
    ) -> Option<LeasedSession> {
        let chained = far.and_then(|far| self.take_chain([key.relay, far], parties));
        chained.or_else(|| {
            let candidates: Vec<RelayId> = self.plan.order(key.relay).collect();
            self.take_first(&candidates, parties)
        })
    }
}

/// Where each party's signalling comes from.
pub(super) fn parties(call: &NewCall<'_>) -> [Option<IpAddr>; 2] {
    [call.from.flow.peer.ip(), call.to.peer.ip()].map(Some)
}

/// Where the caller says that its media are: the first line of its offer that wants any. Of an offer that
/// cannot be read nothing is known but where its sender wants requests.
pub(super) fn claimed_address(
    invite: &Message,
    offer: Option<&Result<Body<'_>, SdpError>>,
) -> Option<IpAddr> {
    match offer? {
        Ok(body) => {
            let mut media = body.sdp.media().iter();
            media.find(|media| relayable(media))?.address
        }
        Err(_) => contact_address(invite.contacts().next()?.ok()?.uri),
    }
}
