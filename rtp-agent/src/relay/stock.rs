//! The stock of leases: sessions whose ports are open before a call needs them.
//!
//! A welcome says how many a concentrator wants, and a later request that it wants more or fewer;
//! [`Relay::refill`] opens as many as are missing, and each is offered once its ports are open. A
//! lease leaves the stock by a bind, by a release, by its expiry or because its ports cannot be
//! opened: each calls [`Relay::count_used`].
//!
//! An agent with an address of each family joins parties of different families: a lease has one of
//! four combinations of addresses, side A's and side B's. Half of the stock and more has the first
//! address on both sides, the other combinations have a sixth each. So a concentrator that joins many
//! such calls wants a larger stock.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use wire::relay_control::{ErrorCode, FromAgent, Lease, SideAddr};

use super::{Command, ConcentratorId, Entry, Relay, SessionId};
use crate::ports::{PortPair, PortPool};

/// The most combinations of two sides' addresses.
pub(super) const COMBINATIONS: usize = 4;
/// Leases in one message.
const MAX_LEASES: usize = 256;
/// After ports could not be opened.
const OPEN_RETRY: Duration = Duration::from_millis(200);
/// After there was no room for a session.
const ROOM_RETRY: Duration = Duration::from_secs(1);

impl Relay {
    /// The ports of a session are open.
    pub fn handle_opened(&mut self, session: SessionId, now: Instant) {
        let Some(entry) = self.sessions.get_mut(&session) else {
            return;
        };
        entry.opening = false;
        self.open_fails = false;
        let (owner, lease) = (entry.owner, entry.lease);
        let Some(stocked) = self.links.get_mut(owner.0) else {
            return;
        };
        if stocked.link.is_up() {
            let leases = vec![lease];
            stocked.link.notify(FromAgent::Leases { leases });
        } else {
            entry.session.handle_owner_lost(now);
        }
        self.settle(session);
        self.flush_link(owner);
    }

    /// A port of a session could not be opened; those that could are closed again.
    pub fn handle_open_failed(&mut self, session: SessionId, now: Instant) {
        let Some(entry) = self.sessions.remove(&session) else {
            return;
        };
        self.troubles.open_failed += 1;
        self.open_fails = true;
        for pair in entry.pairs {
            self.ports.release_foreign(pair, now);
        }
        if entry.session.is_lease() {
            self.count_used(entry.owner, entry.combination);
        }
        // Not at once: where no socket can be opened at all, the next ports would fail as well, and
        // all of them would be taken for another program's.
        self.retry_refill_at(now + OPEN_RETRY);
    }

    pub(super) fn welcomed(&mut self, concentrator: ConcentratorId, wanted: u32, now: Instant) {
        let leases: Vec<Lease> = self
            .leases_of(concentrator)
            .into_iter()
            .filter_map(|session| {
                let entry = self.sessions.get_mut(&session)?;
                entry.session.handle_owner_back();
                (!entry.opening).then_some(entry.lease)
            })
            .collect();
        let stocked = &mut self.links[concentrator.0];
        stocked.wanted = wanted.min(self.config.max_stock);
        for leases in leases.chunks(MAX_LEASES) {
            let leases = leases.to_vec();
            stocked.link.notify(FromAgent::Leases { leases });
        }
        if self.draining {
            stocked.link.notify(FromAgent::Draining);
        }
        self.refill(concentrator, now);
    }

    /// A concentrator wants another number of leases than before. Fewer are used up or given back
    /// by the concentrator, not taken from it: it may have given one to a call by now.
    pub(super) fn set_stock(
        &mut self,
        concentrator: ConcentratorId,
        wanted: u32,
        now: Instant,
    ) -> Result<(), ErrorCode> {
        if self.draining {
            return Err(ErrorCode::Draining);
        }
        self.links[concentrator.0].wanted = wanted.min(self.config.max_stock);
        match self.refill(concentrator, now) {
            Some(lack) => Err(lack),
            // Others are being tried, and may fail in the same way.
            None if self.open_fails && self.is_opening(concentrator) => Err(ErrorCode::BindFailed),
            None => Ok(()),
        }
    }

    fn is_opening(&self, concentrator: ConcentratorId) -> bool {
        let mut entries = self.sessions.values();
        entries.any(|entry| entry.opening && entry.owner == concentrator)
    }

    /// Prepares leases until the concentrator has as many as it wants; `Some`: why it has not.
    pub(super) fn refill(
        &mut self,
        concentrator: ConcentratorId,
        now: Instant,
    ) -> Option<ErrorCode> {
        if self.draining || concentrator == super::local::LOCAL {
            return None;
        }
        loop {
            let addresses = &self.config.addresses;
            let stocked = &mut self.links[concentrator.0];
            let shares = shares(stocked.wanted, addresses.len());
            let mut wanting = (0..COMBINATIONS).filter(|at| stocked.unused[*at] < shares[*at]);
            let (true, Some(combination)) = (stocked.link.is_up(), wanting.next()) else {
                return None;
            };
            let (Some(&of_a), Some(&of_b)) = (
                addresses.get(combination / 2),
                addresses.get(combination % 2),
            ) else {
                return None;
            };
            let pairs = match self.take_room(now) {
                Ok(pairs) => pairs,
                Err(lack) => {
                    // Sessions end, released pairs come back by themselves, foreign ones too.
                    self.retry_refill_at(now + ROOM_RETRY);
                    return Some(lack);
                }
            };
            self.links[concentrator.0].unused[combination] += 1;
            self.begin(concentrator, [of_a, of_b], combination, pairs);
        }
    }

    /// The ports of one more session.
    pub(super) fn take_room(&mut self, now: Instant) -> Result<[PortPair; 2], ErrorCode> {
        if self.sessions.len() >= self.config.max_sessions {
            self.troubles.limit_reached += 1;
            return Err(ErrorCode::LimitReached);
        }
        match take_two(&mut self.ports, now) {
            Some(pairs) => Ok(pairs),
            // They rest because they could not be opened.
            None if self.open_fails => Err(ErrorCode::BindFailed),
            None => {
                self.troubles.no_ports += 1;
                Err(ErrorCode::NoPorts)
            }
        }
    }

    /// Begins to open a new session with these ports.
    pub(super) fn begin(
        &mut self,
        owner: ConcentratorId,
        [of_a, of_b]: [IpAddr; 2],
        combination: usize,
        pairs: [PortPair; 2],
    ) -> &mut Entry {
        let session = SessionId(self.next_session);
        self.next_session += 1;
        let side = |addr, pair: PortPair| SideAddr {
            addr,
            rtp: pair.rtp(),
            rtcp: pair.rtcp(),
        };
        let (a, b) = (side(of_a, pairs[0]), side(of_b, pairs[1]));
        let lease = Lease {
            session: session.0,
            a,
            b,
        };
        self.commands.push_back(Command::Open { session, a, b });
        let entry = Entry::new(owner, lease, combination, pairs, self.config.limits);
        self.sessions.entry(session).insert_entry(entry).into_mut()
    }

    fn retry_refill_at(&mut self, at: Instant) {
        self.retry_refill = Some(self.retry_refill.map_or(at, |earlier| earlier.min(at)));
    }

    pub(super) fn count_used(&mut self, owner: ConcentratorId, combination: usize) {
        let stocked = self.links.get_mut(owner.0);
        if let Some(unused) = stocked.and_then(|stocked| stocked.unused.get_mut(combination)) {
            *unused = unused.saturating_sub(1);
        }
    }

    pub(super) fn leases_of(&self, concentrator: ConcentratorId) -> Vec<SessionId> {
        let mut leases: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(_, entry)| entry.owner == concentrator && entry.session.is_lease())
            .map(|(&session, _)| session)
            .collect();
        leases.sort_unstable();
        leases
    }
}

/// How many unused leases each combination of addresses shall have.
fn shares(wanted: u32, addresses: usize) -> [u32; COMBINATIONS] {
    if addresses < 2 {
        return [wanted, 0, 0, 0];
    }
    let other = wanted / 6;
    [wanted - 3 * other, other, other, other]
}

fn take_two(ports: &mut PortPool, now: Instant) -> Option<[PortPair; 2]> {
    let first = ports.take(now)?;
    match ports.take(now) {
        Some(second) => Some([first, second]),
        None => {
            ports.put_back(first);
            None
        }
    }
}
