//! The relays as the concentrator sees them: leases in stock, sessions in use, requests under way.
//!
//! A [`RelayId`] is served by one rtp-agent, known by the name in its certificate. Each agent has
//! at most one link; a new one replaces it. While it is linked, the agent keeps our stock of leases
//! filled, so [`RelayPool::take_lease`] answers from memory. What a lease is for travels after
//! the fact as a request, which is sent again when the agent comes back and given up after
//! [`REQUEST_DEADLINE`]. An agent that comes back with another epoch has forgotten its sessions:
//! each becomes a [`RelayEvent::SessionLost`].
//!
//! Pure: [`RelayPool::poll_command`] and [`RelayPool::poll_event`] say what has to be done.

mod counters;
mod lease;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use sip::proxy::media::SessionRef;
use wire::mark::RelayId;
use wire::relay_control::{
    ErrorCode, FromAgent, Gate, GateMode, Lease, SessionStatistics, Side, Silence, ToAgent, VERSION,
};

pub use counters::Counters;
use lease::reaches;
pub use lease::{LeasedSession, NoLease};

/// A request that has no answer by then is given up.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// Heartbeats that may go unanswered.
const MISSED_HEARTBEATS: u32 = 3;

/// One connection of an agent, unique for the life of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(pub u64);

/// How many leases to keep and how often to ask whether an agent is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Unbound leases wanted from each agent.
    pub stock: u32,
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

#[derive(Debug, Default)]
struct Agent {
    link: Option<Link>,
    epoch: Option<u64>,
    draining: bool,
    leases: VecDeque<Lease>,
    /// Sessions in use, and the relay each was taken for.
    sessions: HashMap<u64, RelayId>,
    requests: BTreeMap<u64, Request>,
}

impl Agent {
    fn is_up(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.greeted)
    }

    /// A request about this session has no answer yet.
    fn asks_about(&self, session: u64) -> bool {
        self.requests
            .values()
            .any(|request| request.session == session)
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
    /// Leases in stock.
    pub leases: usize,
    /// Sessions in use.
    pub sessions: usize,
}

/// All relays of all edges.
#[derive(Debug)]
pub struct RelayPool {
    name: String,
    settings: Settings,
    agents: BTreeMap<String, Agent>,
    agent_of: HashMap<RelayId, String>,
    links: HashMap<LinkId, String>,
    next_request: u64,
    commands: VecDeque<Command>,
    events: VecDeque<RelayEvent>,
    counters: Counters,
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
            .map(|name| (name.clone(), Agent::default()))
            .collect();
        Self {
            name: name.to_owned(),
            settings,
            agents,
            agent_of,
            links: HashMap::new(),
            next_request: settings.first_request,
            commands: VecDeque::new(),
            events: VecDeque::new(),
            counters: Counters::default(),
        }
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
        if was_up {
            self.events.push_back(RelayEvent::AgentDown(name));
        }
    }

    /// A message from an agent.
    pub fn handle_message(&mut self, link: LinkId, message: FromAgent, now: Instant) {
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
        let greeted = state.greeted;
        match message {
            FromAgent::Hello {
                name: claimed,
                epoch,
                version,
                ..
            } => {
                if greeted || claimed != name || version == 0 {
                    return self.violation(link, "unexpected Hello");
                }
                self.greet(link, &name, epoch);
            }
            _ if !greeted => self.violation(link, "the first message was not Hello"),
            FromAgent::Leases { leases } => self.stock(&name, leases),
            FromAgent::Done { request } => {
                if agent.requests.remove(&request).is_none() {
                    self.counters.stray += 1;
                }
            }
            FromAgent::Failed { request, code, .. } => self.handle_failed(&name, request, code),
            FromAgent::Statistics { request, .. } => {
                agent.requests.remove(&request);
            }
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
            FromAgent::Ended { session, stats } => {
                self.report(&name, session, |session| {
                    RelayEvent::Ended(session, Box::new(stats))
                });
                if let Some(agent) = self.agents.get_mut(&name) {
                    agent.sessions.remove(&session);
                }
            }
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

    /// Takes a lease of this relay from the stock, with an address of the caller's family on side A
    /// and one of the callee's on side B, where those are known.
    pub fn take_lease(
        &mut self,
        relay: RelayId,
        parties: [Option<IpAddr>; 2],
    ) -> Result<LeasedSession, NoLease> {
        let Some(agent) = self
            .agent_of
            .get(&relay)
            .and_then(|name| self.agents.get_mut(name))
        else {
            self.counters.unknown_relay += 1;
            return Err(NoLease::Unknown);
        };
        if !agent.is_up() {
            self.counters.not_connected += 1;
            return Err(NoLease::NotConnected);
        }
        if agent.draining {
            self.counters.draining += 1;
            return Err(NoLease::Draining);
        }
        if agent.leases.is_empty() {
            self.counters.stock_empty += 1;
            return Err(NoLease::StockEmpty);
        }
        let mut leases = agent.leases.iter();
        let first = leases.position(|lease| reaches(lease, parties));
        let Some(lease) = first.and_then(|first| agent.leases.remove(first)) else {
            self.counters.wrong_family += 1;
            return Err(NoLease::WrongFamily);
        };
        self.counters.leases_taken += 1;
        agent.sessions.insert(lease.session, relay);
        let session = SessionRef {
            relay,
            session: lease.session,
        };
        Ok(LeasedSession {
            session,
            a: lease.a,
            b: lease.b,
        })
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

    /// Sends heartbeats, closes silent links, gives up old requests.
    pub fn handle_timeout(&mut self, now: Instant) {
        let silence = self.settings.heartbeat * (MISSED_HEARTBEATS + 1);
        for agent in self.agents.values_mut() {
            let before = agent.requests.len();
            agent.requests.retain(|_, request| request.deadline > now);
            self.counters.expired += (before - agent.requests.len()) as u64;
            let Some(link) = agent.link.as_mut() else {
                continue;
            };
            if link.last_heard + silence <= now {
                self.counters.silent += 1;
                link.last_heard = now;
                self.commands.push_back(Command::Close(link.id, "silent"));
            } else if link.greeted && link.next_heartbeat <= now {
                link.next_heartbeat = now + self.settings.heartbeat;
                let seq = self.next_request;
                self.next_request += 1;
                self.commands
                    .push_back(Command::Send(link.id, ToAgent::Heartbeat { seq }));
            }
        }
    }

    /// When to call [`RelayPool::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let silence = self.settings.heartbeat * (MISSED_HEARTBEATS + 1);
        let deadlines = self.agents.values().flat_map(|agent| {
            let link = agent.link.as_ref();
            let heartbeat = link
                .filter(|link| link.greeted)
                .map(|link| link.next_heartbeat);
            let silent = link.map(|link| link.last_heard + silence);
            let request = agent
                .requests
                .values()
                .next()
                .map(|request| request.deadline);
            [heartbeat, silent, request].into_iter().flatten()
        });
        deadlines.min().map(|at| (at, "relay control"))
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
            leases: agent.leases.len(),
            sessions: agent.sessions.len(),
        })
    }

    /// True where an agent of that name is configured.
    pub fn knows(&self, name: &str) -> bool {
        self.agents.contains_key(name)
    }

    fn greet(&mut self, link: LinkId, name: &str, epoch: u64) {
        let Some(agent) = self.agents.get_mut(name) else {
            return;
        };
        if agent.epoch.is_some_and(|before| before != epoch) {
            agent.requests.clear();
            self.counters.sessions_lost += agent.sessions.len() as u64;
            let lost = agent.sessions.drain();
            self.events.extend(
                lost.map(|(session, relay)| RelayEvent::SessionLost(SessionRef { relay, session })),
            );
        }
        agent.epoch = Some(epoch);
        agent.draining = false;
        if let Some(state) = agent.link.as_mut() {
            state.greeted = true;
        }
        self.commands.push_back(Command::Send(
            link,
            ToAgent::Welcome {
                version: VERSION,
                name: self.name.clone(),
                stock: self.settings.stock,
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
    }

    /// Adds what an agent offers, each lease once and no more than there is room for.
    ///
    /// After a lost link the agent names again what it holds unbound. A lease that a call has taken
    /// stays the call's while its Bind is still being asked for; if that was given up, the agent has
    /// never heard of the call, whose session is lost, and the lease is as good as new.
    fn stock(&mut self, name: &str, leases: Vec<Lease>) {
        let Some(agent) = self.agents.get_mut(name) else {
            return;
        };
        let most = self.settings.stock as usize * 2;
        for lease in leases {
            let known = agent.leases.iter().any(|l| l.session == lease.session);
            if known || agent.leases.len() >= most || agent.draining {
                continue;
            }
            if agent.sessions.contains_key(&lease.session) {
                if agent.asks_about(lease.session) {
                    continue;
                }
                self.counters.sessions_lost += 1;
                let relay = agent.sessions.remove(&lease.session);
                let lost = relay.map(|relay| SessionRef {
                    relay,
                    session: lease.session,
                });
                self.events.extend(lost.map(RelayEvent::SessionLost));
            }
            agent.leases.push_back(lease);
        }
    }

    fn handle_failed(&mut self, name: &str, request: u64, code: ErrorCode) {
        let Some(agent) = self.agents.get_mut(name) else {
            return;
        };
        let Some(request) = agent.requests.remove(&request) else {
            self.counters.stray += 1;
            return;
        };
        let released = matches!(request.message, ToAgent::Release { .. });
        let gone = matches!(code, ErrorCode::UnknownSession | ErrorCode::NotYourSession);
        self.counters.failed += u64::from(!(released && gone));
        if gone && let Some(relay) = agent.sessions.remove(&request.session) {
            let session = SessionRef {
                relay,
                session: request.session,
            };
            self.events.push_back(RelayEvent::SessionLost(session));
        }
    }

    fn report(&mut self, name: &str, session: u64, event: impl FnOnce(SessionRef) -> RelayEvent) {
        let relay = self
            .agents
            .get(name)
            .and_then(|agent| agent.sessions.get(&session));
        match relay {
            Some(&relay) => self.events.push_back(event(SessionRef { relay, session })),
            None => self.counters.stray += 1,
        }
    }

    fn violation(&mut self, link: LinkId, why: &'static str) {
        self.counters.violations += 1;
        self.commands.push_back(Command::Close(link, why));
    }

    fn request(&mut self, session: SessionRef, now: Instant, make: impl FnOnce(u64) -> ToAgent) {
        let number = self.next_request;
        self.next_request += 1;
        let Some(agent) = self
            .agent_of
            .get(&session.relay)
            .and_then(|name| self.agents.get_mut(name))
        else {
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
                session: session.session,
                deadline,
            },
        );
    }
}

#[cfg(test)]
mod tests;
