//! Who of the two agents is active.
//!
//! The media addresses decide, and it is not for the agents to move them: an agent whose host gets them
//! takes over, with a greater *term*; one whose host loses them stands by.
//!
//! ```text
//!                address, and the table is ours ──────────────┐
//!   JOINING ──── address, the other is active ──► FENCED      ▼
//!   (start)                                        │  ▲     ACTIVE
//!      │                  the other stands by or   │  └─ the other one is active too, with
//!      │                  is lost: TAKE OVER ──────┼───► a greater term
//!      └── no address ──► STANDBY ◄── no address ──┴──────── no address ─┘
//!                             └──── address arrives: TAKE OVER ──────────►
//! ```
//!
//! Both hosts may have the addresses for a time (VRRP packets are lost, or keepalived was killed and left
//! them). Then the greater term is in charge, that is the agent that took over last. The other is
//! *fenced*: it does not speak with the concentrators, and goes on relaying what reaches its host. Where
//! the agents do not hear each other either, both are active, and neither can know it.
//!
//! An agent that starts on a host with the addresses waits for the other one for [`GRACE`]: a restart
//! shall find the calls that the other still knows.

use std::time::{Duration, Instant};

use wire::relay_control::standby::Standing;

/// How long after its start an agent waits for the other one's table.
pub const GRACE: Duration = Duration::from_secs(2);

/// What an agent is to its pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It has just started.
    Joining,
    /// The addresses are not on its host.
    Standby,
    /// It has the addresses and is in charge.
    Active,
    /// It has the addresses, and the other one is in charge.
    Fenced,
}

impl Role {
    /// For logs and the status page.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Standby => "standby",
            Self::Active => "active",
            Self::Fenced => "fenced",
        }
    }
}

/// What the agent knows of both.
#[derive(Debug)]
pub struct Duty {
    role: Role,
    term: u64,
    epoch: u64,
    has_addresses: bool,
    other: Option<Standing>,
    /// Its table is a whole one.
    is_whole: bool,
    /// The other one's table is on its way.
    is_receiving: bool,
    grace_ends: Instant,
}

impl Duty {
    /// An agent that has just started, with an empty table of this epoch.
    pub fn new(epoch: u64, now: Instant) -> Self {
        Self {
            role: Role::Joining,
            term: 0,
            epoch,
            has_addresses: false,
            other: None,
            is_whole: false,
            is_receiving: false,
            grace_ends: now + GRACE,
        }
    }

    /// The addresses are on this host now, or not; `true` when that is new.
    pub fn handle_addresses(&mut self, here: bool) -> bool {
        std::mem::replace(&mut self.has_addresses, here) != here
    }

    /// What the other agent has said of itself; `None` when it is not connected.
    pub fn handle_other(&mut self, other: Option<Standing>) {
        self.other = other;
        let Some(other) = other else {
            self.is_receiving = false;
            return;
        };
        let another_table = other.term == self.term && other.epoch != self.epoch;
        if self.role == Role::Active && !other.active && (other.term > self.term || another_table) {
            // It has an old table: ours shall replace it.
            self.term = other.term + 1;
        }
    }

    /// The other one's table begins to replace ours.
    pub fn handle_table(&mut self, of: Standing) {
        self.term = of.term;
        self.epoch = of.epoch;
        self.is_receiving = true;
    }

    /// That table is complete.
    pub fn handle_whole(&mut self) {
        self.is_whole = true;
        self.is_receiving = false;
    }

    /// Looks at all of it again, after anything new and now and then. `Some`: the role has changed to this one.
    pub fn decide(&mut self, now: Instant) -> Option<Role> {
        let next = self.next(now);
        if next == self.role {
            return None;
        }
        self.role = next;
        if next == Role::Active {
            let others = self.other.map_or(0, |other| other.term);
            self.term = self.term.max(others).saturating_add(1);
            self.is_whole = true;
        }
        Some(next)
    }

    /// The role.
    pub const fn role(&self) -> Role {
        self.role
    }

    /// The addresses are on this host.
    pub const fn has_addresses(&self) -> bool {
        self.has_addresses
    }

    /// What the other one has said of itself; `None` when it is not connected.
    pub const fn other(&self) -> Option<Standing> {
        self.other
    }

    /// What to tell the other one.
    pub fn standing(&self) -> Standing {
        Standing {
            term: self.term,
            epoch: self.epoch,
            active: self.role == Role::Active,
        }
    }

    /// True when the table to be copied is ours: it is in charge, or neither is and ours is newer.
    pub fn is_source(&self) -> bool {
        let ours = self.standing();
        ours.term > 0 && self.other.is_some_and(|other| rank(ours) > rank(other))
    }

    /// True when a table of this standing may replace ours.
    pub fn yields_to(&self, table: Standing) -> bool {
        table.term > 0 && rank(table) > rank(self.standing())
    }

    fn next(&self, now: Instant) -> Role {
        if !self.has_addresses {
            let joins = self.role == Role::Joining && !self.is_whole && now < self.grace_ends;
            return if joins { Role::Joining } else { Role::Standby };
        }
        let rival = self.other.filter(|other| other.active);
        match (self.role, rival) {
            (Role::Active, Some(rival)) if rank(rival) > rank(self.standing()) => Role::Fenced,
            (Role::Active, _) => Role::Active,
            (Role::Standby, _) => Role::Active,
            (Role::Joining | Role::Fenced, Some(_)) => Role::Fenced,
            (waiting @ (Role::Joining | Role::Fenced), None) => {
                if self.is_whole || now >= self.grace_ends || self.has_nothing_to_wait_for() {
                    Role::Active
                } else {
                    waiting
                }
            }
        }
    }

    /// The other one is there and has no table that is newer than ours.
    fn has_nothing_to_wait_for(&self) -> bool {
        !self.is_receiving && self.other.is_some_and(|other| other.term <= self.term)
    }
}

/// Of two tables the one to keep has the greater.
const fn rank(standing: Standing) -> (bool, u64, u64) {
    (standing.active, standing.term, standing.epoch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn the_first_agent_is_active_when_the_other_has_no_table_and_begins_term_1() {
        let now = clock::start();
        let mut duty = started(now, true);
        assert_eq!(duty.decide(now), None);
        duty.handle_other(Some(standing(0, 7, false)));
        assert_eq!(duty.decide(now), Some(Role::Active));
        assert_eq!(duty.standing(), standing(1, 5, true));
        assert!(duty.is_source());
    }

    #[test]
    fn alone_it_waits_for_two_seconds_to_the_millisecond() {
        let now = clock::start();
        let mut duty = started(now, true);
        assert_eq!(duty.decide(now + Duration::from_millis(1999)), None);
        assert_eq!(duty.decide(now + GRACE), Some(Role::Active));
    }

    #[test]
    fn when_the_addresses_arrive_it_takes_over_at_once_with_the_epoch_of_the_table() {
        let now = clock::start();
        let mut duty = standing_by(now);
        assert_eq!(duty.standing(), standing(3, 9, false));
        assert!(duty.handle_addresses(true));
        // Though the other one still says that it is active.
        assert_eq!(duty.decide(now), Some(Role::Active));
        assert_eq!(duty.standing(), standing(4, 9, true));
        assert!(duty.is_source());
    }

    #[test]
    fn an_agent_that_hears_of_a_greater_term_is_fenced_until_the_other_gives_up() {
        let now = clock::start();
        let mut old = active(now);
        old.handle_other(Some(standing(2, 5, true)));
        assert_eq!(old.decide(now), Some(Role::Fenced));
        assert!(!old.is_source() && old.yields_to(standing(2, 5, true)));
        old.handle_table(standing(2, 5, true));
        assert_eq!(old.decide(now), None);
        old.handle_other(None);
        assert_eq!(old.decide(now), Some(Role::Active));
        assert_eq!(old.standing(), standing(3, 5, true));
    }

    #[test]
    fn an_agent_that_is_active_is_not_disturbed_by_a_smaller_term_nor_by_an_old_table() {
        let now = clock::start();
        let mut duty = active(now);
        assert!(!duty.yields_to(standing(9, 4, false)));
        duty.handle_other(Some(standing(9, 4, false)));
        assert_eq!(duty.decide(now), None);
        assert_eq!(duty.standing(), standing(10, 5, true));
        assert!(duty.is_source());
        duty.handle_other(Some(standing(9, 4, true)));
        assert_eq!(duty.decide(now), None);
        assert!(!duty.yields_to(standing(9, 4, true)));
    }

    #[test]
    fn a_restarted_agent_waits_for_the_table_that_the_other_still_has() {
        let now = clock::start();
        let mut duty = started(now, true);
        duty.handle_other(Some(standing(3, 9, false)));
        assert_eq!(duty.decide(now), None);
        assert!(!duty.is_source() && duty.yields_to(standing(3, 9, false)));
        duty.handle_table(standing(3, 9, false));
        assert_eq!(duty.decide(now), None);
        duty.handle_whole();
        assert_eq!(duty.decide(now), Some(Role::Active));
        assert_eq!(duty.standing(), standing(4, 9, true));
    }

    #[test]
    fn an_agent_that_starts_with_the_addresses_does_not_push_an_active_one_aside() {
        let now = clock::start();
        let mut duty = started(now, true);
        duty.handle_other(Some(standing(3, 9, true)));
        assert_eq!(duty.decide(now), Some(Role::Fenced));
        assert_eq!(duty.decide(now + GRACE), None);
    }

    #[test]
    fn the_addresses_leave_and_it_stands_by() {
        let now = clock::start();
        let mut duty = active(now);
        assert!(duty.handle_addresses(false));
        assert_eq!(duty.decide(now), Some(Role::Standby));
        assert_eq!(duty.standing(), standing(1, 5, false));
    }

    #[test]
    fn of_two_agents_exactly_one_is_the_source_unless_their_tables_are_the_same() {
        for ours in all_standings() {
            for theirs in all_standings() {
                let mut duty = Duty::new(ours.epoch, clock::start());
                duty.term = ours.term;
                duty.role = if ours.active {
                    Role::Active
                } else {
                    Role::Standby
                };
                duty.other = Some(theirs);
                let source = duty.is_source();
                assert!(!(source && duty.yields_to(theirs)), "{ours:?} {theirs:?}");
                if ours != theirs && ours.term > 0 && theirs.term > 0 {
                    assert!(source || duty.yields_to(theirs), "{ours:?} {theirs:?}");
                }
            }
        }
    }

    fn all_standings() -> impl Iterator<Item = Standing> {
        (0..12).map(|n| standing(n % 3, n / 3 % 2, n >= 6))
    }

    const fn standing(term: u64, epoch: u64, active: bool) -> Standing {
        Standing {
            term,
            epoch,
            active,
        }
    }

    fn started(now: Instant, has_addresses: bool) -> Duty {
        let mut duty = Duty::new(5, now);
        duty.handle_addresses(has_addresses);
        duty
    }

    fn active(now: Instant) -> Duty {
        let mut duty = started(now, true);
        duty.handle_other(Some(standing(0, 7, false)));
        assert_eq!(duty.decide(now), Some(Role::Active));
        duty
    }

    fn standing_by(now: Instant) -> Duty {
        let mut duty = started(now, false);
        duty.handle_other(Some(standing(3, 9, true)));
        duty.handle_table(standing(3, 9, true));
        duty.handle_whole();
        assert_eq!(duty.decide(now), Some(Role::Standby));
        duty
    }
}
