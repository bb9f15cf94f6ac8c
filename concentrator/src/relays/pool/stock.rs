//! The stock of leases of each agent: taken, filled, and made larger or smaller.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use sip::proxy::media::SessionRef;
use wire::mark::RelayId;
use wire::relay_control::{Lease, ToAgent};

use super::checks::check_unique;
use super::lease::reaches;
use super::{Agent, Command, InUse, LeasedSession, LinkId, NoLease, RelayEvent, RelayPool};

/// The version of the protocol that knows [`ToAgent::Stock`].
const STOCK_SINCE: u16 = 2;
/// Leases that suffice for any call of few branches.
const LOW: usize = 32;

impl RelayPool {
    /// Takes a lease of this relay from the stock, with an address of the caller's family on side A
    /// and one of the callee's on side B, where those are known.
    pub fn take_lease(
        &mut self,
        relay: RelayId,
        parties: [Option<IpAddr>; 2],
    ) -> Result<LeasedSession, NoLease> {
        let found = self.find(relay, parties);
        let (name, position) = match found {
            Ok((name, position)) => (name.to_owned(), position),
            Err(why) => {
                self.count_refusal(why);
                if why == NoLease::StockEmpty {
                    self.expect(relay, 1);
                    self.ask_why_empty(relay);
                }
                return Err(why);
            }
        };
        let lease = self
            .agents
            .get_mut(&name)
            .and_then(|agent| agent.leases.remove(position));
        let Some(lease) = lease else {
            return Err(NoLease::StockEmpty);
        };
        Ok(self.taken(relay, &name, lease))
    }

    /// Leases of this relay that suit the parties, counted up to `most`.
    pub fn available(&self, relay: RelayId, parties: [Option<IpAddr>; 2], most: usize) -> usize {
        let agent = self
            .agent_of
            .get(&relay)
            .and_then(|name| self.agents.get(name));
        agent.map_or(0, |agent| {
            let leases = agent.leases.iter();
            let suitable = leases.filter(|lease| reaches(lease, parties));
            suitable.take(most).count()
        })
    }

    /// True where a stock is so small that a call might find it empty: else nobody need look further.
    pub fn any_is_low(&self) -> bool {
        let mut agents = self.agents.values();
        agents.any(|agent| agent.is_up() && agent.leases.len() < LOW)
    }

    /// True where a relay that has no lease for these parties now will soon have one.
    pub fn is_refilling(&self, relay: RelayId, parties: [Option<IpAddr>; 2]) -> bool {
        let agent = self
            .agent_of
            .get(&relay)
            .and_then(|name| self.agents.get(name));
        agent.is_some_and(|agent| {
            agent.is_up()
                && !(agent.draining || agent.quiet || agent.short)
                && agent.reaches(parties)
        })
    }

    /// Calls want so many leases of this relay: its stock follows.
    pub fn expect(&mut self, relay: RelayId, leases: u32) {
        let Some(name) = self.agent_of.get(&relay).cloned() else {
            return;
        };
        let agent = self.agents.get_mut(&name);
        if let Some(stock) = agent.and_then(|agent| agent.demand.note(leases)) {
            self.ask_for_stock(&name, stock);
        }
    }

    /// True where an agent has one of these addresses for its media.
    pub fn is_relay_address(&self, address: IpAddr) -> bool {
        let mut agents = self.agents.values();
        agents.any(|agent| agent.addresses.contains(&address))
    }

    /// The agent of a relay and the lease that suits the parties.
    pub(super) fn find(
        &self,
        relay: RelayId,
        parties: [Option<IpAddr>; 2],
    ) -> Result<(&str, usize), NoLease> {
        let name = self.agent_of.get(&relay).ok_or(NoLease::Unknown)?;
        let agent = self.agents.get(name).ok_or(NoLease::Unknown)?;
        if !agent.is_up() {
            return Err(NoLease::NotConnected);
        }
        if agent.draining {
            return Err(NoLease::Draining);
        }
        if agent.quiet {
            return Err(NoLease::Quiet);
        }
        if agent.leases.is_empty() {
            return Err(NoLease::StockEmpty);
        }
        let mut leases = agent.leases.iter();
        let position = leases.position(|lease| reaches(lease, parties));
        let position = position.ok_or(NoLease::WrongFamily)?;
        Ok((name, position))
    }

    pub(super) const fn count_refusal(&mut self, why: NoLease) {
        let counters = &mut self.counters;
        let counter = match why {
            NoLease::Unknown => &mut counters.unknown_relay,
            NoLease::NotConnected => &mut counters.not_connected,
            NoLease::Quiet => &mut counters.quiet_relay,
            NoLease::Draining => &mut counters.draining,
            NoLease::StockEmpty => &mut counters.stock_empty,
            NoLease::WrongFamily => &mut counters.wrong_family,
        };
        *counter += 1;
    }

    /// Notes that a call has a lease from now on.
    pub(super) fn taken(&mut self, relay: RelayId, name: &str, lease: Lease) -> LeasedSession {
        self.counters.leases_taken += 1;
        if let Some(agent) = self.agents.get_mut(name) {
            let in_use = InUse {
                relay,
                bound: false,
            };
            agent.sessions.insert(lease.session, in_use);
        }
        self.expect(relay, 1);
        LeasedSession {
            session: SessionRef {
                relay,
                session: lease.session,
            },
            a: lease.a,
            b: lease.b,
            far: None,
        }
    }

    /// Adds what an agent offers, each lease once and no more than there is room for.
    ///
    /// After a lost link the agent names again what it holds unbound. A lease that a call has taken
    /// stays the call's while its Bind is still being asked for; if that was given up, the agent has
    /// never heard of the call, whose session is lost, and the lease is as good as new.
    pub(super) fn stock(&mut self, link: LinkId, name: &str, leases: Vec<Lease>) {
        let Some(agent) = self.agents.get_mut(name) else {
            return;
        };
        let mut judged = leases.iter().enumerate().map(|(index, lease)| {
            let others = agent.leases.iter().chain(&leases[..index]);
            self.bounds
                .check_lease(name, &agent.addresses, lease)
                .and_then(|()| check_unique(lease, others))
        });
        if let Some(lie) = judged.find_map(Result::err) {
            return self.catch_lie(link, lie);
        }
        let most = self.settings.stock.max(self.settings.max_stock) as usize * 2;
        for lease in leases {
            let known = agent.leases.iter().any(|l| l.session == lease.session);
            if known || agent.draining {
                continue;
            }
            if agent.leases.len() >= most {
                self.counters.surplus_leases += 1;
                continue;
            }
            if agent.sessions.contains_key(&lease.session) {
                if agent.asks_about(lease.session) {
                    continue;
                }
                self.counters.sessions_lost += 1;
                let in_use = agent.sessions.remove(&lease.session);
                let lost = in_use.map(|in_use| SessionRef {
                    relay: in_use.relay,
                    session: lease.session,
                });
                self.events.extend(lost.map(RelayEvent::SessionLost));
            }
            agent.leases.push_back(lease);
        }
    }

    /// Time has passed: stocks that are larger than the rate of calls asks for become smaller, and
    /// what an agent could not do is asked for again.
    pub(super) fn adapt_stocks(&mut self, now: Instant) {
        let mut changed = Vec::new();
        for (name, agent) in &mut self.agents {
            if !agent.demand.tick(now) {
                continue;
            }
            let again = std::mem::take(&mut agent.short).then(|| agent.demand.wanted());
            let stock = agent.demand.shrink(now).or(again);
            changed.extend(stock.map(|stock| (name.clone(), stock)));
        }
        for (name, stock) in changed {
            self.ask_for_stock(&name, stock);
        }
    }

    /// An agent whose stock is empty is asked for it again, once at a time: its answer says what it
    /// lacks, if anything.
    fn ask_why_empty(&mut self, relay: RelayId) {
        let Some(name) = self.agent_of.get(&relay).cloned() else {
            return;
        };
        let agent = self.agents.get(&name);
        let agent = agent.filter(|agent| agent.stock_request.is_none() && !agent.short);
        if let Some(stock) = agent.map(|agent| agent.demand.wanted()) {
            self.ask_for_stock(&name, stock);
        }
    }

    /// Where there is no link, its Welcome will say it.
    fn ask_for_stock(&mut self, name: &str, stock: u32) {
        let Some(agent) = self.agents.get_mut(name) else {
            return;
        };
        let Some(link) = agent.link.as_ref().filter(|link| link.greeted) else {
            return;
        };
        if agent.version < STOCK_SINCE || agent.draining {
            return;
        }
        let request = self.next_request;
        self.next_request += 1;
        agent.stock_request = Some(request);
        self.counters.stock_changes += 1;
        let message = ToAgent::Stock { request, stock };
        self.commands.push_back(Command::Send(link.id, message));
    }

    /// The agent keeps the stock that was asked for last; what we hold beyond it goes back, because
    /// only we know which leases no call has.
    pub(super) fn stock_agreed(&mut self, name: &str, now: Instant) {
        let Some(agent) = self.agents.get_mut(name) else {
            return;
        };
        (agent.stock_request, agent.lacks) = (None, None);
        let surplus = agent.surplus();
        self.counters.leases_returned += surplus.len() as u64;
        for session in surplus {
            self.ask(name, session, now, |request| ToAgent::Release {
                request,
                session,
            });
        }
    }
}

impl Agent {
    /// True where it has an address of each party's family, or has not said which it has.
    fn reaches(&self, parties: [Option<IpAddr>; 2]) -> bool {
        let has = |party: IpAddr| {
            let mut own = self.addresses.iter();
            own.any(|own| own.is_ipv4() == party.is_ipv4())
        };
        self.addresses.is_empty() || parties.into_iter().flatten().all(has)
    }

    /// Takes out the leases beyond the wanted stock, those of the combination of addresses that has
    /// the most first.
    fn surplus(&mut self) -> Vec<u64> {
        let wanted = self.demand.wanted() as usize;
        let mut surplus = Vec::new();
        let mut of_kind: HashMap<[IpAddr; 2], usize> = HashMap::new();
        let kind = |lease: &Lease| [lease.a.addr, lease.b.addr];
        for lease in &self.leases {
            *of_kind.entry(kind(lease)).or_default() += 1;
        }
        while self.leases.len() > wanted {
            let Some((&most, _)) = of_kind.iter().max_by_key(|(_, count)| **count) else {
                break;
            };
            let position = self.leases.iter().rposition(|lease| kind(lease) == most);
            let Some(lease) = position.and_then(|position| self.leases.remove(position)) else {
                break;
            };
            of_kind.entry(most).and_modify(|count| *count -= 1);
            surplus.push(lease.session);
        }
        surplus
    }
}
