//! The relay: composes ports, sessions and the links to the concentrators.
//!
//! Pure. The event loop calls `handle_*`, carries out what [`Relay::poll_command`] says until it is
//! empty, and calls [`Relay::handle_timeout`] when [`Relay::poll_timeout`] is due. For each packet it
//! calls [`Relay::forward`], which answers at once and does not allocate while media flow.
//!
//! Every concentrator has a stock of leases here: sessions whose ports are open. A bind takes one out
//! of the stock, and the stock is filled again. Leases of a concentrator that stays away expire; bound
//! sessions live on, and when a concentrator of the same name comes back it controls them again.
//!
//! Known weak spots: all sessions use one media address; a session's control belongs to the one
//! concentrator it was leased to.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use wire::relay_control::{FromAgent, Lease, SessionStatistics, Side, SideAddr, ToAgent, VERSION};

use crate::control::{Fault, Link, Work};
use crate::hold::HoldBudget;
use crate::ports::{PortPair, PortPool, PortRange};
use crate::session::offload::Route;
use crate::session::{Component, Context, Expiry, Limits, Output, Packet, Session};
use crate::standby::journal::Journal;

mod local;
pub mod offload;
pub mod replica;
pub mod report;
mod requests;
mod stock;

/// Names a session in all messages; never used twice by one run of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// A concentrator, by its place in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConcentratorId(pub usize);

/// One open port, by its use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RelayPort {
    /// The session.
    pub session: SessionId,
    /// The side.
    pub side: Side,
    /// Which port of the side.
    pub component: Component,
}

/// What the relay is told at its start.
#[derive(Debug, Clone)]
pub struct RelayConfig {
    /// The agent's name, as in its certificate.
    pub name: String,
    /// Greater than at every start before.
    pub epoch: u64,
    /// Where media come and go: one address, or one of each family. The first is used most.
    pub addresses: Vec<IpAddr>,
    /// Ports for media.
    pub ports: PortRange,
    /// How long a closed port rests.
    pub quarantine: Duration,
    /// Times after which sessions end.
    pub limits: Limits,
    /// Leases kept a concentrator at most, whatever it asks for.
    pub max_stock: u32,
    /// Sessions at a time, those that are only prepared included; `usize::MAX` is no limit.
    pub max_sessions: usize,
    /// Packets held by all sessions together.
    pub max_held: usize,
    /// Decides the order of ports.
    pub seed: u64,
    /// Names of the concentrators.
    pub concentrators: Vec<String>,
}

/// What the event loop must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Open these four ports, then call [`Relay::handle_opened`] or [`Relay::handle_open_failed`].
    Open {
        /// The session.
        session: SessionId,
        /// Ports towards the caller.
        a: SideAddr,
        /// Ports towards the callee.
        b: SideAddr,
    },
    /// Close the session's ports.
    Close {
        /// The session.
        session: SessionId,
    },
    /// Send a packet that was held.
    Transmit {
        /// Out of this port.
        port: RelayPort,
        /// To this address.
        to: SocketAddr,
        /// The UDP payload.
        bytes: Box<[u8]>,
    },
    /// Have the fast path relay the RTP that comes to this port from now on, or call
    /// [`Relay::handle_not_offloaded`].
    Offload {
        /// The port.
        port: RelayPort,
        /// Its address.
        local: SocketAddr,
        /// The address that the packets leave from.
        exit: SocketAddr,
        /// Whence, where to, and the figures of the stream.
        route: Box<Route>,
    },
    /// Take the stream back from the fast path, and call [`Relay::handle_carried`] with what it has relayed.
    Recall {
        /// The port.
        port: RelayPort,
    },
    /// Send a message.
    Send {
        /// To this concentrator.
        concentrator: ConcentratorId,
        /// The message.
        message: Box<FromAgent>,
    },
    /// Close the connection; [`Relay::handle_disconnected`] has been dealt with already.
    CloseLink {
        /// Of this concentrator.
        concentrator: ConcentratorId,
        /// Why.
        fault: Fault,
    },
}

/// What went wrong, by name; packets are counted in the sessions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Troubles {
    /// A lease could not be prepared because all ports are in use or resting.
    pub no_ports: u64,
    /// A port could not be opened.
    pub open_failed: u64,
    /// A session was not prepared because there are as many as are allowed.
    pub limit_reached: u64,
    /// A connection was closed for what the concentrator sent or did not send.
    pub links_closed: u64,
    /// A request could not be carried out.
    pub requests_failed: u64,
    /// Messages that this version does not understand.
    pub not_understood: u64,
    /// A packet came on a port whose session is gone.
    pub no_session: u64,
}

/// All sessions and links of one agent.
#[derive(Debug)]
pub struct Relay {
    config: RelayConfig,
    links: Vec<Stocked>,
    sessions: HashMap<SessionId, Entry>,
    next_session: u64,
    ports: PortPool,
    hold: HoldBudget,
    /// A session's `armed` is its entry here.
    timers: BTreeSet<(Instant, SessionId)>,
    outputs: Vec<Output>,
    commands: VecDeque<Command>,
    /// When to try again after ports ran out.
    retry_refill: Option<Instant>,
    /// The ports that were tried last could not be opened.
    open_fails: bool,
    draining: bool,
    ended: report::Totals,
    ended_silent: report::Silences,
    troubles: Troubles,
    /// Another agent is in charge of the sessions: none ends here by itself.
    standing_by: bool,
    /// What the other agent of the pair has not been told yet.
    journal: Journal,
    /// Something else may relay what needs no judgement.
    has_fast_path: bool,
}

/// A link and the leases its concentrator has not used yet.
#[derive(Debug)]
struct Stocked {
    link: Link,
    wanted: u32,
    /// By the addresses of their sides, see `stock`.
    unused: [u32; stock::COMBINATIONS],
}

#[derive(Debug)]
struct Entry {
    owner: ConcentratorId,
    /// Who hears of its end as well: owners before this one, and who has asked about it.
    listeners: Vec<ConcentratorId>,
    lease: Lease,
    /// Which addresses its sides have, see `stock`.
    combination: usize,
    pairs: [PortPair; 2],
    session: Session,
    opening: bool,
    armed: Option<Instant>,
    bound_at: Option<Instant>,
    call: String,
    send_failed: [u64; 2],
    offload: [offload::Offload; 2],
}

impl Entry {
    /// A session whose ports are about to be opened.
    fn new(
        owner: ConcentratorId,
        lease: Lease,
        combination: usize,
        pairs: [PortPair; 2],
        limits: Limits,
    ) -> Self {
        Self {
            owner,
            listeners: Vec::new(),
            lease,
            combination,
            pairs,
            session: Session::new(limits),
            opening: true,
            armed: None,
            bound_at: None,
            call: String::new(),
            send_failed: [0; 2],
            offload: Default::default(),
        }
    }
}

impl Relay {
    /// No concentrator connected, no session.
    pub fn new(config: RelayConfig) -> Self {
        let links = config.concentrators.iter().map(|name| Stocked {
            link: Link::new(name.clone()),
            wanted: 0,
            unused: [0; stock::COMBINATIONS],
        });
        Self {
            links: links.collect(),
            sessions: HashMap::new(),
            // Cookies of calls outlive us: no number comes again after a restart.
            next_session: config.epoch.max(1),
            ports: PortPool::new(config.ports, config.quarantine, config.seed),
            hold: HoldBudget::new(config.max_held),
            timers: BTreeSet::new(),
            outputs: Vec::new(),
            commands: VecDeque::new(),
            retry_refill: None,
            open_fails: false,
            draining: false,
            ended: report::Totals::default(),
            ended_silent: report::Silences::default(),
            troubles: Troubles::default(),
            standing_by: false,
            journal: Journal::default(),
            has_fast_path: false,
            config,
        }
    }

    /// A packet came in on a port. `Some`: send it out of that port to that address.
    pub fn forward(
        &mut self,
        port: RelayPort,
        from: SocketAddr,
        bytes: &[u8],
        now: Instant,
    ) -> Option<(RelayPort, SocketAddr)> {
        let Some(entry) = self.sessions.get_mut(&port.session) else {
            self.troubles.no_session += 1;
            return None;
        };
        let packet = Packet {
            side: port.side,
            component: port.component,
            from,
            bytes,
        };
        let mut context = Context {
            hold: &mut self.hold,
            out: &mut self.outputs,
        };
        let to = entry.session.handle_packet(packet, now, &mut context);
        let earlier = |due| entry.armed.is_none_or(|armed| due < armed);
        let nearer = || entry.session.poll_timeout().is_some_and(earlier);
        if !self.outputs.is_empty()
            || entry.session.has_changed()
            || (!self.standing_by && nearer())
        {
            self.settle(port.session);
        }
        if self.has_fast_path && to.is_some() {
            self.offload(port, now);
        }
        let side = port.side.other();
        to.map(|to| (RelayPort { side, ..port }, to))
    }

    /// A connection to this concentrator is up, its certificate is the right one.
    pub fn handle_connected(&mut self, concentrator: ConcentratorId, now: Instant) {
        let hello = FromAgent::Hello {
            version: VERSION,
            name: self.config.name.clone(),
            epoch: self.config.epoch,
            media_addresses: self.config.addresses.clone(),
            software: concat!("sipcast-rtp-agent/", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        if let Some(stocked) = self.links.get_mut(concentrator.0) {
            stocked.link.handle_connected(hello, now);
        }
        self.flush_link(concentrator);
    }

    /// The connection is gone.
    pub fn handle_disconnected(&mut self, concentrator: ConcentratorId, now: Instant) {
        let Some(stocked) = self.links.get_mut(concentrator.0) else {
            return;
        };
        stocked.link.handle_disconnected();
        for session in self.leases_of(concentrator) {
            if let Some(entry) = self.sessions.get_mut(&session) {
                entry.session.handle_owner_lost(now);
            }
            self.settle(session);
        }
    }

    /// A concentrator has sent a message.
    pub fn handle_control(&mut self, concentrator: ConcentratorId, message: ToAgent, now: Instant) {
        let Some(stocked) = self.links.get_mut(concentrator.0) else {
            return;
        };
        match stocked.link.handle_message(message, now) {
            Ok(None) => {}
            Ok(Some(Work::Stock(wanted))) => self.welcomed(concentrator, wanted, now),
            Ok(Some(Work::Request(request))) => self.carry_out(concentrator, request, now),
            Err(fault) => self.close_link(concentrator, fault, now),
        }
        self.flush_link(concentrator);
    }

    /// The kernel did not take packets that [`Relay::forward`] had let out of this port.
    pub fn handle_send_failed(&mut self, port: RelayPort, packets: u64) {
        if let Some(entry) = self.sessions.get_mut(&port.session) {
            entry.send_failed[side_index(port.side)] += packets;
        }
    }

    /// No more leases from now on; sessions in use live on.
    pub fn handle_drain(&mut self) {
        self.draining = true;
        for index in 0..self.links.len() {
            if self.links[index].link.is_up() {
                self.links[index].link.notify(FromAgent::Draining);
            }
            self.flush_link(ConcentratorId(index));
        }
    }

    /// A concentrator has sent a message that [`wire::relay_control::decode`] refused, in a frame that
    /// was a message; `request` is its number, if it has one.
    pub fn handle_not_understood(
        &mut self,
        concentrator: ConcentratorId,
        request: Option<u64>,
        now: Instant,
    ) {
        self.troubles.not_understood += 1;
        if let Some(stocked) = self.links.get_mut(concentrator.0) {
            stocked.link.handle_not_understood(request, now);
        }
        self.flush_link(concentrator);
    }

    /// A connection ended for what came on it, which was no message of this protocol.
    pub fn handle_bad_frame(&mut self) {
        self.troubles.links_closed += 1;
    }

    /// Deadlines have come.
    pub fn handle_timeout(&mut self, now: Instant) {
        for index in 0..self.links.len() {
            let concentrator = ConcentratorId(index);
            if let Err(fault) = self.links[index].link.handle_timeout(now) {
                self.close_link(concentrator, fault, now);
            }
            self.flush_link(concentrator);
        }
        while let Some(&(at, session)) = self.timers.first()
            && at <= now
        {
            self.session_due(session, now);
        }
        if self.retry_refill.is_some_and(|at| at <= now) {
            self.retry_refill = None;
            for index in 0..self.links.len() {
                self.refill(ConcentratorId(index), now);
            }
        }
    }

    /// When to call [`Relay::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let links = self
            .links
            .iter()
            .filter_map(|stocked| stocked.link.poll_timeout());
        let session = self.timers.first().map(|&(at, _)| at);
        links.chain(session).chain(self.retry_refill).min()
    }

    /// What to do next, in order.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// True while [`Relay::poll_command`] has something.
    pub fn has_commands(&self) -> bool {
        !self.commands.is_empty()
    }

    /// After a session has worked: turns its outputs into commands and sets its timer.
    fn settle(&mut self, id: SessionId) {
        let Some(entry) = self.sessions.get_mut(&id) else {
            return;
        };
        let mut notified = false;
        for output in self.outputs.drain(..) {
            match output {
                Output::Transmit {
                    side,
                    component,
                    to,
                    bytes,
                } => {
                    let port = RelayPort {
                        session: id,
                        side,
                        component,
                    };
                    self.commands
                        .push_back(Command::Transmit { port, to, bytes });
                }
                Output::MediaStarted { side } => {
                    let event = FromAgent::MediaStarted {
                        session: id.0,
                        side,
                    };
                    if let Some(stocked) = self.links.get_mut(entry.owner.0) {
                        stocked.link.notify(event);
                        notified = true;
                    }
                }
            }
        }
        if entry.session.take_changed() {
            self.journal.note_changed(id);
            let is_wanted = self.has_fast_path && !self.standing_by;
            let recalls = entry.recall_stale(is_wanted, id);
            self.commands.extend(recalls.into_iter().flatten());
        }
        // A deadline that has moved to a later time is found out when the earlier one comes.
        let due = entry.session.poll_timeout().filter(|_| !self.standing_by);
        if due.is_some_and(|due| entry.armed.is_none_or(|armed| due < armed)) {
            if let Some(armed) = entry.armed.take() {
                self.timers.remove(&(armed, id));
            }
            self.timers.extend(due.map(|due| (due, id)));
            entry.armed = due;
        }
        if notified {
            let owner = entry.owner;
            self.flush_link(owner);
        }
    }

    fn session_due(&mut self, id: SessionId, now: Instant) {
        self.timers.pop_first();
        let Some(entry) = self.sessions.get_mut(&id) else {
            return;
        };
        entry.armed = None;
        let mut context = Context {
            hold: &mut self.hold,
            out: &mut self.outputs,
        };
        match entry.session.handle_timeout(now, &mut context) {
            Some(expiry) => self.close(id, expiry, now),
            None => self.settle(id),
        }
    }

    fn close(&mut self, id: SessionId, expiry: Expiry, now: Instant) {
        let Some(mut entry) = self.sessions.remove(&id) else {
            return;
        };
        self.journal.note_over(id);
        entry.session.handle_close(&mut self.hold);
        let stats = entry.statistics(now);
        self.ended.add(&stats);
        if entry.session.is_lease() {
            self.count_used(entry.owner, entry.combination);
        }
        for pair in entry.pairs {
            self.ports.release(pair, now);
        }
        self.commands.extend(entry.recalls(id));
        self.commands.push_back(Command::Close { session: id });
        let silence = expiry.silence();
        if let Some(silence) = silence {
            self.ended_silent.count(silence);
        }
        for concentrator in std::iter::once(entry.owner).chain(entry.listeners) {
            let Some(Stocked { link, .. }) = self.links.get_mut(concentrator.0) else {
                continue;
            };
            let session = id.0;
            if let Some(silence) = silence {
                link.notify(FromAgent::MediaTimeout { session, silence });
            }
            if entry.bound_at.is_some() {
                let stats = stats.clone();
                link.notify(FromAgent::Ended { session, stats });
            }
            self.flush_link(concentrator);
        }
        self.refill(entry.owner, now);
        self.flush_link(entry.owner);
    }

    fn close_link(&mut self, concentrator: ConcentratorId, fault: Fault, now: Instant) {
        self.troubles.links_closed += 1;
        self.handle_disconnected(concentrator, now);
        self.commands.push_back(Command::CloseLink {
            concentrator,
            fault,
        });
    }

    fn flush_link(&mut self, concentrator: ConcentratorId) {
        let Some(stocked) = self.links.get_mut(concentrator.0) else {
            return;
        };
        while let Some(message) = stocked.link.poll_message() {
            self.commands.push_back(Command::Send {
                concentrator,
                message: Box::new(message),
            });
        }
    }
}

impl Entry {
    /// Who is not the owner hears of its end as well.
    fn tell_also(&mut self, concentrator: ConcentratorId) {
        if !self.listeners.contains(&concentrator) {
            self.listeners.push(concentrator);
        }
    }

    /// It is another's, and who has had it still hears of its end.
    fn hand_over(&mut self, to: ConcentratorId) {
        let before = std::mem::replace(&mut self.owner, to);
        self.listeners.retain(|listener| *listener != to);
        self.tell_also(before);
    }

    fn statistics(&self, now: Instant) -> SessionStatistics {
        let duration = self
            .bound_at
            .map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let side =
            |side| report::side_statistics(&self.session, side, self.send_failed[side_index(side)]);
        SessionStatistics {
            duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
            a: side(Side::A),
            b: side(Side::B),
        }
    }
}

const fn side_index(side: Side) -> usize {
    match side {
        Side::A => 0,
        Side::B => 1,
    }
}

#[cfg(test)]
mod tests;
