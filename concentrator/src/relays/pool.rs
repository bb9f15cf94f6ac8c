//! The relays as the concentrator sees them: leases in stock, sessions in use, requests under way.
//!
//! A [`RelayId`] is served by one rtp-agent, known by the name in its certificate. Each agent has
//! at most one link; a new one replaces it. While it is linked, the agent keeps our stock of leases
//! filled, so [`RelayPool::take_lease`] answers from memory; how large the stock is follows the rate
//! of calls (`demand`). What a lease is for travels after the fact as a request, which is sent again when the agent comes back and given up after
//! [`REQUEST_DEADLINE`]. An agent that comes back with another epoch has forgotten its sessions:
//! each becomes a [`RelayEvent::SessionLost`]. An agent that was not heard of for [`QUIET_AFTER`]
//! heartbeats gives no leases until it is heard again, well before its link is given up. One that comes
//! back as it was is asked about each session in use (`resync`), since others may have ended them; one that
//! names addresses or ports that cannot be its own (`checks`) loses its link.
//!
//! Pure: [`RelayPool::poll_command`] and [`RelayPool::poll_event`] say what has to be done.

mod chain;
mod checks;
mod counters;
mod demand;
mod lease;
mod liveness;
mod resync;
mod stock;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use sip::proxy::media::SessionRef;
use wire::mark::RelayId;
use wire::relay_control::{
    ErrorCode, FromAgent, Gate, GateMode, Lease, SessionStatistics, Side, Silence, ToAgent, VERSION,
};

use checks::{Bounds, Lie};
pub use counters::Counters;
use demand::Demand;
pub use lease::{FarSession, LeasedSession, NoLease};

/// A request that has no answer by then is given up.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// Heartbeat intervals of silence after which an agent gives no leases.
pub const QUIET_AFTER: u32 = 2;

/// An agent that has closed its link and is not back by then has ended.
pub const GONE_AFTER: Duration = Duration::from_secs(5);

/// One connection of an agent, unique for the life of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(pub u64);

/// How many leases to keep and how often to ask whether an agent is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Unbound leases wanted from each agent while there are few calls.
    pub stock: u32,
    /// The most of them, however many calls there are.
    pub max_stock: u32,
    /// The interval of heartbeats.
    pub heartbeat: Duration,
    /// The number of the first request. An agent remembers the answers to recent requests, so a
    /// concentrator that restarts must not begin where it began before.
    pub first_request: u64,
    /// How strictly relays take the addresses that media are expected from.
    pub gate_mode: GateMode,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            stock: 64,
            max_stock: 256,
            heartbeat: Duration::from_millis(500),
            first_request: 1,
            gate_mode: GateMode::Exact,
        }
    }
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Send this on the link.
    Send(LinkId, ToAgent),
    /// Close the link, for the reason named.
    Close(LinkId, &'static str),
}

/// What became of agents and sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RelayEvent {
    /// An agent is ready.
    AgentUp(String),
    /// An agent's link is gone.
    AgentDown(String),
    /// The first packet of a side.
    MediaStarted(SessionRef, Side),
    /// A session saw no media for too long; its end follows.
    MediaTimeout(SessionRef, Silence),
    /// A session is over, and what it did.
    Ended(SessionRef, Box<SessionStatistics>),
    /// The agent does not know the session any more.
    SessionLost(SessionRef),
    /// A session is over, and we were away when it ended.
    EndedUnheard(SessionRef),
    /// An agent has closed its link, as one does that ends, and has not come back.
    AgentGone(String),
}

#[derive(Debug)]
struct Link {
    id: LinkId,
    /// The agent has said who it is.
    greeted: bool,
    last_heard: Instant,
    next_heartbeat: Instant,
}

#[derive(Debug)]
struct Request {
    message: ToAgent,
    session: u64,
    deadline: Instant,
}

/// A session in use.
#[derive(Debug, Clone, Copy)]
struct InUse {
    /// The relay that it was taken for.
    relay: RelayId,
    /// The agent knows what it is for.
    bound: bool,
}

#[derive(Debug)]
struct Agent {
    link: Option<Link>,
    epoch: Option<u64>,
    /// The version of the protocol spoken on the link.
    version: u16,
    /// Where its media are; empty where its Hello has not said.
    addresses: Vec<IpAddr>,
    draining: bool,
    /// It was not heard of for a while.
    quiet: bool,
    /// We have closed its link, because it was silent.
    given_up: bool,
    /// When it has ended, unless it comes back.
    gone_at: Option<Instant>,
    /// It could not prepare the stock that was asked for.
    short: bool,
    /// Why not, until it can.
    lacks: Option<ErrorCode>,
    demand: Demand,
    /// The request for another stock that has no answer yet.
    stock_request: Option<u64>,
    leases: VecDeque<Lease>,
    sessions: HashMap<u64, InUse>,
    /// Sessions that it is still to be asked about.
    unsure: Vec<u64>,
    /// Questions about sessions that have no answer yet.
    questions: usize,
    requests: BTreeMap<u64, Request>,
}

impl Agent {
    fn new(settings: &Settings) -> Self {
        Self {
            link: None,
            epoch: None,
            version: 0,
            addresses: Vec::new(),
            draining: false,
            quiet: false,
            given_up: false,
            gone_at: None,
            short: false,
            lacks: None,
            demand: Demand::new(settings.stock, settings.max_stock),
            stock_request: None,
            leases: VecDeque::new(),
            sessions: HashMap::new(),
            unsure: Vec::new(),
            questions: 0,
            requests: BTreeMap::new(),
        }
    }

    fn is_up(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.greeted)
    }

    /// It has done what it was asked for; false where it was not.
    fn has_done(&mut self, request: u64) -> bool {
        let Some(request) = self.requests.remove(&request) else {
            return false;
        };
        if let ToAgent::Bind { session, .. } = request.message
            && let Some(session) = self.sessions.get_mut(&session)
        {
            session.bound = true;
        }
        true
    }

    /// A request for a change of this session has no answer yet.
    fn asks_about(&self, session: u64) -> bool {
        let mut requests = self.requests.values();
        requests.any(|request| request.session == session && !request.is_question())
    }
}

/// One agent, to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentStatus<'a> {
    /// Its name.
    pub name: &'a str,
    /// It is linked and has said who it is.
    pub up: bool,
    /// It takes no new calls.
    pub draining: bool,
    /// It was not heard of for a while, and gives no leases until it is.
    pub quiet: bool,
    /// Why it could not prepare the stock that was asked for last.
    pub lacks: Option<ErrorCode>,
    /// Leases in stock.
    pub leases: usize,
    /// Leases that the stock should have by the rate of calls.
    pub wanted: usize,
    /// Sessions in use.
    pub sessions: usize,
}

/// All relays of all edges.
#[derive(Debug)]
pub struct RelayPool {
    name: String,
    settings: Settings,
    bounds: Bounds,
    agents: BTreeMap<String, Agent>,
    agent_of: HashMap<RelayId, String>,
    links: HashMap<LinkId, String>,
    next_request: u64,
    commands: VecDeque<Command>,
    events: VecDeque<RelayEvent>,
    counters: Counters,
    /// When something was last handled.
    clock: Option<Instant>,
}

impl RelayPool {
    /// The relays of the configuration, each with the name of its agent; `name` is our own.
    pub fn new(
        name: &str,
        relays: impl IntoIterator<Item = (RelayId, String)>,
        settings: Settings,
    ) -> Self {
        let agent_of: HashMap<RelayId, String> = relays.into_iter().collect();
        let names: HashSet<&String> = agent_of.values().collect();
        let agents = names
            .into_iter()
            .map(|name| (name.clone(), Agent::new(&settings)))
            .collect();
        Self {
            name: name.to_owned(),
            settings,
            bounds: Bounds::default(),
            agents,
            agent_of,
            links: HashMap::new(),
            next_request: settings.first_request,
            commands: VecDeque::new(),
            events: VecDeque::new(),
            counters: Counters::default(),
            clock: None,
        }
    }

    /// A relay has one more name.
    pub fn know_as(&mut self, alias: RelayId, relay: RelayId) {
        if let Some(name) = self.agent_of.get(&relay).cloned() {
            self.agent_of.entry(alias).or_insert(name);
        }
    }

    /// Our own addresses, which no relay can have.
    pub fn refuse_addresses(&mut self, own: Vec<IpNetwork>) {
        self.bounds.own = own;
    }

    /// The only addresses that this agent's media may have; loopback is believed only if named here.
    pub fn allow_addresses(&mut self, agent: &str, allowed: Vec<IpNetwork>) {
        self.bounds.allowed.insert(agent.to_owned(), allowed);
    }

    /// An agent with that name in its certificate has connected.
    pub fn handle_connected(&mut self, link: LinkId, name: &str, now: Instant) {
        let Some(agent) = self.agents.get_mut(name) else {
            self.counters.unknown_agent += 1;
            self.commands
                .push_back(Command::Close(link, "unknown agent"));
            return;
        };
        if let Some(old) = agent.link.take() {
            self.links.remove(&old.id);
            self.commands
                .push_back(Command::Close(old.id, "replaced by a newer link"));
        }
        agent.leases.clear();
        agent.quiet = false;
        agent.given_up = false;
        agent.stock_request = None;
        agent.forget_questions();
        let next_heartbeat = now + self.settings.heartbeat;
        agent.link = Some(Link {
            id: link,
            greeted: false,
            last_heard: now,
            next_heartbeat,
        });
        self.links.insert(link, name.to_owned());
    }

    /// A link is gone. Its leases are void; sessions in use live on at the agent.
    pub fn handle_closed(&mut self, link: LinkId) {
        let Some(name) = self.links.remove(&link) else {
            return;
        };
        let Some(agent) = self.agents.get_mut(&name) else {
            return;
        };
        let was_up = agent.is_up();
        agent.link = None;
        agent.leases.clear();
        agent.stock_request = None;
        if was_up {
            let clock = self.clock.filter(|_| !agent.given_up);
            agent.gone_at = clock.map(|now| now + GONE_AFTER);
            self.events.push_back(RelayEvent::AgentDown(name));
        }
    }

    /// A message from an agent.
    pub fn handle_message(&mut self, link: LinkId, message: FromAgent, now: Instant) {
        self.clock = Some(now);
        let Some(name) = self.links.get(&link).cloned() else {
            return;
        };
        let Some(agent) = self.agents.get_mut(&name) else {
            return;
        };
        let Some(state) = agent.link.as_mut() else {
            return;
        };
        state.last_heard = now;
        agent.quiet = false;
        let greeted = state.greeted;
        match message {
            FromAgent::Hello {
                name: claimed,
                epoch,
                version,
                media_addresses,
                ..
            } => {
                if greeted || claimed != name || version == 0 {
                    return self.violation(link, "unexpected Hello");
                }
                for address in &media_addresses {
                    if let Err(lie) = self.bounds.check_address(&name, *address) {
                        return self.catch_lie(link, lie);
                    }
                }
                agent.addresses = media_addresses;
                agent.version = version.min(VERSION);
                self.greet(link, &name, epoch, now);
            }
            _ if !greeted => self.violation(link, "the first message was not Hello"),
            FromAgent::Leases { leases } => self.stock(link, &name, leases),
            FromAgent::Done { request } if agent.stock_request == Some(request) => {
                self.stock_agreed(&name, now);
            }
            FromAgent::Done { request } => {
                let known = agent.has_done(request);
                self.counters.stray += u64::from(!known);
            }
            FromAgent::Failed { request, code, .. } => {
                self.handle_failed(&name, request, code, now)
            }
            FromAgent::Statistics { request, .. } => self.handle_known(&name, request, now),
            FromAgent::MediaStarted { session, side } => {
                self.report(&name, session, |session| {
                    RelayEvent::MediaStarted(session, side)
                });
            }
            FromAgent::MediaTimeout { session, silence } => {
                self.report(&name, session, |session| {
                    RelayEvent::MediaTimeout(session, silence)
                });
            }
            FromAgent::Ended { session, stats } => self.handle_ended(&name, session, stats),
            FromAgent::Heartbeat { seq } => {
                self.commands
                    .push_back(Command::Send(link, ToAgent::HeartbeatAck { seq }));
            }
            FromAgent::HeartbeatAck { .. } => {}
            FromAgent::Draining => {
                agent.draining = true;
                agent.leases.clear();
            }
        }
    }

    fn handle_ended(&mut self, name: &str, session: u64, stats: SessionStatistics) {
        self.report(name, session, |session| {
            RelayEvent::Ended(session, Box::new(stats))
        });
        if let Some(agent) = self.agents.get_mut(name) {
            agent.sessions.remove(&session);
        }
    }

    /// Tells the agent what a lease is for.
    pub fn bind(&mut self, session: SessionRef, a: Gate, b: Gate, call: &str, now: Instant) {
        let call = call.to_owned();
        let number = session.session;
        let [a, b] = [a, b].map(|gate| self.as_strict(gate));
        self.request(session, now, |request| ToAgent::Bind {
            request,
            session: number,
            a,
            b,
            call,
        });
    }

    /// Changes from whom a side may learn.
    pub fn update_gate(&mut self, session: SessionRef, side: Side, gate: Gate, now: Instant) {
        let number = session.session;
        let gate = self.as_strict(gate);
        self.request(session, now, |request| ToAgent::Update {
            request,
            session: number,
            side,
            gate,
        });
    }

    /// A gate for a phone is as strict as the operator wants it.
    fn as_strict(&self, mut gate: Gate) -> Gate {
        if gate.mode == GateMode::Exact {
            gate.mode = self.settings.gate_mode;
        }
        gate
    }

    /// Gives a session back. Its end is still reported.
    pub fn release(&mut self, session: SessionRef, now: Instant) {
        let number = session.session;
        self.request(session, now, |request| ToAgent::Release {
            request,
            session: number,
        });
    }

    /// Gives back the other half of a chain whose first or second session has just ended: an event
    /// has said so, and it was handled at the time that counts here.
    pub fn release_other_half(&mut self, session: SessionRef) {
        if let Some(now) = self.clock {
            self.release(session, now);
        }
    }

    /// The next thing to do.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<RelayEvent> {
        self.events.pop_front()
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Every configured agent, by name.
    pub fn agents(&self) -> impl Iterator<Item = AgentStatus<'_>> {
        self.agents.iter().map(|(name, agent)| AgentStatus {
            name,
            up: agent.is_up(),
            draining: agent.draining,
            quiet: agent.quiet,
            lacks: agent.lacks,
            leases: agent.leases.len(),
            wanted: agent.demand.wanted() as usize,
            sessions: agent.sessions.len(),
        })
    }

    /// True where the agent of a relay is linked.
    pub fn is_up(&self, relay: RelayId) -> bool {
        let name = self.agent_of.get(&relay);
        let agent = name.and_then(|name| self.agents.get(name));
        agent.is_some_and(Agent::is_up)
    }

    /// The agent that serves a relay.
    pub fn agent_of(&self, relay: RelayId) -> Option<&str> {
        self.agent_of.get(&relay).map(String::as_str)
    }

    /// True where this agent serves a relay.
    pub fn serves(&self, agent: &str, relay: RelayId) -> bool {
        self.agent_of(relay) == Some(agent)
    }

    /// True where an agent of that name is configured.
    pub fn knows(&self, name: &str) -> bool {
        self.agents.contains_key(name)
    }

    fn greet(&mut self, link: LinkId, name: &str, epoch: u64, now: Instant) {
        let Some(agent) = self.agents.get_mut(name) else {
            return;
        };
        if agent.epoch.is_some_and(|before| before != epoch) {
            agent.requests.clear();
            self.counters.sessions_lost += agent.sessions.len() as u64;
            self.events
                .extend(agent.sessions.drain().map(|(session, in_use)| {
                    let relay = in_use.relay;
                    RelayEvent::SessionLost(SessionRef { relay, session })
                }));
        }
        agent.epoch = Some(epoch);
        agent.draining = false;
        (agent.short, agent.lacks) = (false, None);
        agent.gone_at = None;
        if let Some(state) = agent.link.as_mut() {
            state.greeted = true;
        }
        self.commands.push_back(Command::Send(
            link,
            ToAgent::Welcome {
                version: agent.version,
                name: self.name.clone(),
                stock: agent.demand.wanted(),
                heartbeat_ms: u32::try_from(self.settings.heartbeat.as_millis()).unwrap_or(500),
            },
        ));
        let again = agent
            .requests
            .values()
            .map(|request| request.message.clone());
        self.commands
            .extend(again.map(|message| Command::Send(link, message)));
        self.events.push_back(RelayEvent::AgentUp(name.to_owned()));
        self.ask_about_all(name, now);
    }

    fn handle_failed(&mut self, name: &str, request: u64, code: ErrorCode, now: Instant) {
        let Some(agent) = self.agents.get_mut(name) else {
            return;
        };
        if agent.stock_request == Some(request) {
            agent.stock_request = None;
            agent.short = true;
            agent.lacks = Some(code);
            self.counters.stock_refused += 1;
            match code {
                ErrorCode::NoPorts => self.counters.no_ports += 1,
                ErrorCode::BindFailed => self.counters.bind_failed += 1,
                ErrorCode::LimitReached => self.counters.limit_reached += 1,
                ErrorCode::UnknownSession
                | ErrorCode::NotYourSession
                | ErrorCode::BadRequest
                | ErrorCode::Draining
                | ErrorCode::Other(_) => {}
            }
            return;
        }
        let Some(request) = agent.requests.remove(&request) else {
            self.counters.stray += 1;
            return;
        };
        let asked = request.is_question();
        let released = matches!(request.message, ToAgent::Release { .. });
        let gone = matches!(code, ErrorCode::UnknownSession | ErrorCode::NotYourSession);
        self.counters.failed += u64::from(!((released || asked) && gone));
        if gone && let Some(InUse { relay, bound }) = agent.sessions.remove(&request.session) {
            let session = SessionRef {
                relay,
                session: request.session,
            };
            self.events.push_back(if asked && bound {
                self.counters.unheard += 1;
                RelayEvent::EndedUnheard(session)
            } else {
                RelayEvent::SessionLost(session)
            });
        }
        if asked {
            self.question_over(name, now);
        }
    }

    fn report(&mut self, name: &str, session: u64, event: impl FnOnce(SessionRef) -> RelayEvent) {
        let relay = self
            .agents
            .get(name)
            .and_then(|agent| agent.sessions.get(&session));
        match relay {
            Some(&InUse { relay, .. }) => {
                self.events.push_back(event(SessionRef { relay, session }))
            }
            None => self.counters.stray += 1,
        }
    }

    /// Closes a link for what its agent has said; nothing more is heard from it.
    fn violation(&mut self, link: LinkId, why: &'static str) {
        self.counters.violations += 1;
        self.commands.push_back(Command::Close(link, why));
        self.handle_closed(link);
    }

    fn catch_lie(&mut self, link: LinkId, lie: Lie) {
        let (counter, why) = match lie {
            Lie::Address(why) => (&mut self.counters.bad_addresses, why),
            Lie::Port(why) => (&mut self.counters.bad_ports, why),
        };
        *counter += 1;
        self.violation(link, why);
    }

    fn request(&mut self, session: SessionRef, now: Instant, make: impl FnOnce(u64) -> ToAgent) {
        if let Some(name) = self.agent_of.get(&session.relay).cloned() {
            self.ask(&name, session.session, now, make);
        }
    }

    fn ask(&mut self, name: &str, session: u64, now: Instant, make: impl FnOnce(u64) -> ToAgent) {
        let number = self.next_request;
        self.next_request += 1;
        let Some(agent) = self.agents.get_mut(name) else {
            return;
        };
        let message = make(number);
        if let Some(link) = agent.link.as_ref().filter(|link| link.greeted) {
            self.commands
                .push_back(Command::Send(link.id, message.clone()));
        }
        let deadline = now + REQUEST_DEADLINE;
        agent.requests.insert(
            number,
            Request {
                message,
                session,
                deadline,
            },
        );
    }
}

#[cfg(test)]
mod tests;
