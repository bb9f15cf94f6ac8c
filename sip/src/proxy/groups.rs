//! Groups of next hops: which member is tried first, and which is left out because it is down.
//!
//! Members of the lowest priority number come first, among equals each as often as its weight says
//! (the words and the arithmetic of SRV, RFC 2782). A member is probed with OPTIONS; after
//! [`MAX_MISSED`] probes without an answer, or answered with 5xx, it is down until it answers
//! again. When all are down all are tried: a probe may fail where a call does not.
//!
//! Pure: what is due at an instant, and what came of it. The probes themselves are in `probes`.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::routing::Network;
use crate::resolve::weighted_order;

/// Probes in a row without a good answer, after which a member is down.
pub const MAX_MISSED: u8 = 3;

/// Which of our addresses a dialog is held at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DialogAddress {
    /// The service address, as for every phone.
    #[default]
    Anycast,
    /// This concentrator's own: both sides send every later request of the dialog there.
    Unicast,
}

/// A group as the operator wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupConfig {
    /// Its name.
    pub name: String,
    /// Its members.
    pub members: Vec<MemberConfig>,
    /// Requests from here come from this group: a trunk.
    pub sources: Vec<Network>,
    /// How often each member is asked whether it is there; `None`: never.
    pub probe: Option<Duration>,
    /// The final responses after which the next member is tried; 408 stands for silence, too.
    pub fail_on: Vec<u16>,
    /// How long a member may be silent before the next is tried.
    pub timeout: Duration,
    /// Where dialogs with it are held.
    pub dialog_address: DialogAddress,
}

/// One next hop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberConfig {
    /// A sip or sips URI: host, port, transport.
    pub uri: Bytes,
    /// Its share among members of equal priority.
    pub weight: u16,
    /// Lower is tried first.
    pub priority: u16,
}

/// A member, by the indices of its group and itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberId {
    /// The group.
    pub group: usize,
    /// The member in the group.
    pub member: usize,
}

/// How a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Health {
    /// Probes in a row that had no good answer.
    pub missed: u8,
    /// Left out until it answers.
    pub down: bool,
    /// Probes with a good answer.
    pub answered: u64,
    /// Probes without one.
    pub failed: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Member {
    health: Health,
    due: Option<Instant>,
}

/// The health of all members of all groups.
#[derive(Debug, Default)]
pub struct Groups {
    config: Vec<GroupConfig>,
    members: Vec<Vec<Member>>,
}

impl Groups {
    /// All members up, the first probes due at `now`.
    pub fn new(config: Vec<GroupConfig>, now: Instant) -> Self {
        let members = config.iter().map(|group| {
            let due = group.probe.map(|_| now);
            vec![
                Member {
                    health: Health::default(),
                    due
                };
                group.members.len()
            ]
        });
        Self {
            members: members.collect(),
            config,
        }
    }

    /// What the operator wrote of a group.
    pub fn config(&self, group: usize) -> Option<&GroupConfig> {
        self.config.get(group)
    }

    /// What the operator wrote of a member.
    pub fn member(&self, id: MemberId) -> Option<&MemberConfig> {
        self.config.get(id.group)?.members.get(id.member)
    }

    /// The members of a group in the order in which they are tried; `random` decides among equals.
    /// Those that are down are left out, unless all are.
    pub fn order(&self, group: usize, random: u64) -> Vec<MemberId> {
        let (Some(config), Some(state)) = (self.config.get(group), self.members.get(group)) else {
            return Vec::new();
        };
        let items: Vec<(u16, u16)> = config
            .members
            .iter()
            .map(|member| (member.priority, member.weight))
            .collect();
        let order = weighted_order(&items, random);
        let up = |member: &usize| !state[*member].health.down;
        let any_up = order.iter().any(up);
        order
            .into_iter()
            .filter(|member| !any_up || up(member))
            .map(|member| MemberId { group, member })
            .collect()
    }

    /// When the next probe is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.members
            .iter()
            .flatten()
            .filter_map(|member| member.due)
            .min()
    }

    /// A member whose probe is due; the next is due after the group's interval.
    pub fn due(&mut self, now: Instant) -> Option<MemberId> {
        for (group, members) in self.members.iter_mut().enumerate() {
            let interval = self.config.get(group).and_then(|group| group.probe);
            for (member, state) in members.iter_mut().enumerate() {
                if state.due.is_some_and(|due| due <= now) {
                    // From now, not from when it was due: a late event loop sends no burst.
                    state.due = interval.map(|interval| now + interval);
                    return Some(MemberId { group, member });
                }
            }
        }
        None
    }

    /// What came of a probe. True where the member is up now and was down, or the other way.
    pub fn probed(&mut self, id: MemberId, good: bool) -> bool {
        let members = self.members.get_mut(id.group);
        let Some(member) = members.and_then(|members| members.get_mut(id.member)) else {
            return false;
        };
        let health = &mut member.health;
        let was_down = health.down;
        if good {
            health.answered += 1;
            health.missed = 0;
            health.down = false;
        } else {
            health.failed += 1;
            health.missed = health.missed.saturating_add(1).min(MAX_MISSED);
            health.down |= health.missed >= MAX_MISSED;
        }
        was_down != health.down
    }

    /// Every member: its group, what the operator wrote, how it is.
    pub fn health(&self) -> impl Iterator<Item = (&GroupConfig, &MemberConfig, Health)> {
        self.config
            .iter()
            .zip(&self.members)
            .flat_map(|(group, states)| {
                let members = group.members.iter().zip(states);
                members.map(move |(member, state)| (group, member, state.health))
            })
    }
}
