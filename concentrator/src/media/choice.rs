//! Which relays a call may use, in which order, by mark, pin and configuration.
//!
//! Each party has a relay: the one that its pin names, else the one that the mark of its packets
//! names. `anchor` says whose relay carries the media, or that both do, one after the other. Each
//! relay has stand-ins, which are tried in their order when it is down, full or draining; when none
//! of them has a lease either, the other party's relay and its stand-ins are tried.
//!
//! The choice is made once for a call and then kept: nothing here looks at a later mark.

use std::collections::HashMap;

use sip::message::{Message, Uri};
use sip::proxy::media::{NewCall, Party};
use wire::mark::RelayId;

use crate::config::{Anchor, RelayPolicy};

/// Whose calls a pin is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Pinned {
    /// `user@domain`, as caller (From) or callee (Request-URI); the domain in lower case.
    Account(String),
    /// Calls from and to this group of next hops or trusted trunk.
    Trunk(String),
}

/// What is laid down for an account or a trunk; what is `None` is as for everybody.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pin {
    /// Its relay, whatever mark its packets have.
    pub relay: Option<RelayId>,
    /// Whose relay carries its calls.
    pub anchor: Option<Anchor>,
    /// When its calls are relayed.
    pub policy: Option<RelayPolicy>,
}

/// What the operator wants.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Whose relay carries a call.
    pub anchor: Anchor,
    /// When a call is relayed.
    pub policy: RelayPolicy,
    /// The relays that stand in for each, the first to be tried first.
    pub stand_ins: HashMap<RelayId, Vec<RelayId>>,
    /// What is different for some.
    pub pins: HashMap<Pinned, Pin>,
}

/// What the plan says about one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) anchor: Anchor,
    pub(super) policy: RelayPolicy,
    /// The caller's relay and the callee's.
    pub(super) relays: [Option<RelayId>; 2],
    /// A pin has decided something of it.
    pub(super) pinned: bool,
}

impl Choice {
    /// The relays that should carry the call.
    pub(super) fn firsts(&self) -> Vec<RelayId> {
        let [caller, callee] = self.relays;
        let firsts = match self.anchor {
            Anchor::Caller => [caller.or(callee), None],
            Anchor::Callee => [callee.or(caller), None],
            Anchor::Both => [caller, callee.filter(|callee| caller != Some(*callee))],
        };
        firsts.into_iter().flatten().collect()
    }

    /// True where the media should pass two relays.
    pub(super) fn is_of_two_relays(&self) -> bool {
        self.anchor == Anchor::Both && self.firsts().len() == 2
    }
}

impl Plan {
    /// The same for everybody, and nobody stands in for anybody.
    pub fn new(anchor: Anchor, policy: RelayPolicy) -> Self {
        Self {
            anchor,
            policy,
            stand_ins: HashMap::new(),
            pins: HashMap::new(),
        }
    }

    /// What holds for a call. Where both parties have a pin, the caller's decides about anchor and
    /// policy.
    pub(super) fn choose(&self, call: &NewCall<'_>) -> Choice {
        let pins = [Party::Caller, Party::Callee].map(|party| self.pin(call, party));
        let [caller, callee] = pins;
        let relay = |pin: Option<&Pin>, marked| pin.and_then(|pin| pin.relay).or(marked);
        let mut pins = pins.into_iter().flatten();
        Choice {
            anchor: pins
                .clone()
                .find_map(|pin| pin.anchor)
                .unwrap_or(self.anchor),
            policy: pins
                .clone()
                .find_map(|pin| pin.policy)
                .unwrap_or(self.policy),
            relays: [relay(caller, call.from.relay), relay(callee, call.to_relay)],
            pinned: pins.next().is_some(),
        }
    }

    /// A relay and those that stand in for it.
    pub(super) fn order(&self, relay: RelayId) -> impl Iterator<Item = RelayId> + '_ {
        let stand_ins = self.stand_ins.get(&relay).into_iter().flatten().copied();
        std::iter::once(relay).chain(stand_ins)
    }

    /// All relays that may carry a call alone, each once.
    pub(super) fn candidates(&self, choice: &Choice) -> Vec<RelayId> {
        let [caller, callee] = choice.relays;
        let first = match choice.anchor {
            Anchor::Caller | Anchor::Both => [caller, callee],
            Anchor::Callee => [callee, caller],
        };
        let mut candidates = Vec::new();
        for relay in first
            .into_iter()
            .flatten()
            .flat_map(|relay| self.order(relay))
        {
            if !candidates.contains(&relay) {
                candidates.push(relay);
            }
        }
        candidates
    }

    fn pin(&self, call: &NewCall<'_>, party: Party) -> Option<&Pin> {
        if self.pins.is_empty() {
            return None;
        }
        let trunk = match party {
            Party::Caller => call.trunks[0],
            Party::Callee => call.trunks[1],
        };
        let account = account(call.request, party).map(Pinned::Account);
        let trunk = trunk.map(|trunk| Pinned::Trunk(trunk.to_owned()));
        let mut keys = account.into_iter().chain(trunk);
        keys.find_map(|key| self.pins.get(&key))
    }
}

/// Who calls, or who is called, as `user@domain`.
fn account(request: &Message, party: Party) -> Option<String> {
    let from = request.from();
    let uri = match party {
        Party::Caller => from.as_ref().ok()?.parse_uri().ok()?,
        Party::Callee => Uri::parse(request.request_uri()).ok()?,
    };
    let user = std::str::from_utf8(uri.user?).ok()?;
    let domain = uri.host.to_string().to_ascii_lowercase();
    Some(format!("{user}@{domain}"))
}
