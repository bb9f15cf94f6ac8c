//! The transaction layer: RFC 3261 section 17 with RFC 6026, for a proxy.
//!
//! [`Transactions`] holds every transaction of one worker. A request that comes in goes through
//! [`handle_request`](Transactions::handle_request) and is answered with
//! [`respond`](Transactions::respond); a request to send goes through
//! [`send_request`](Transactions::send_request), and the responses to it through
//! [`handle_response`](Transactions::handle_response). After each call drain
//! [`poll_transmit`](Transactions::poll_transmit) and [`poll_event`](Transactions::poll_event),
//! and call [`handle_timeout`](Transactions::handle_timeout) when
//! [`poll_timeout`](Transactions::poll_timeout) says so. "The user" below is whoever calls this:
//! the proxy core, or the registrar in front of it.
//!
//! The four machines live in one file each and know neither messages nor flows: status codes and
//! bytes go in, bytes and verdicts come out. This layer finds the machine for a message by the
//! keys of [`crate::key`], carries out what the machine says, and forgets it when it ends. Two
//! tables, one for each side, each bounded by [`Limits`]. What the requests of one source have made
//! is counted ([`count_of`](Transactions::count_of)); the user judges it by [`Limits::max_of_source`].
//!
//! What the user can rely on:
//! * Each server transaction reports [`Event::ServerEnded`] exactly once, also when it was
//!   abandoned.
//! * Each client transaction reports exactly one last event, [`Event::Timeout`],
//!   [`Event::TransportError`] or [`Event::ClientEnded`]; the first two only while no final
//!   response has been passed.
//! * An id is never used twice; one that is no longer valid does nothing.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Instant;

use bytes::Bytes;

use crate::hop::{ConnectionId, Flow, Hop, Transmit};
use crate::key::{ClientKey, ServerKey};
use crate::message::{Message, Method};
use crate::timer::{Fired, Timers};
use crate::transaction::client::Client;
use crate::transaction::client_invite::Received;
use crate::transaction::server::Server;
use crate::transaction::server_invite::Acknowledged;
use crate::transaction::slab::SlotId;
use crate::transaction::sources::Sources;
use crate::transaction::table::Table;

mod client;
pub mod client_invite;
pub mod client_non_invite;
mod server;
pub mod server_invite;
pub mod server_non_invite;
mod slab;
mod sources;
mod table;
mod verdict;

pub use crate::transaction::verdict::{
    ClientId, Counts, Event, Incoming, Limits, Outgoing, ServerId,
};

/// Every transaction of one worker.
#[derive(Debug)]
pub struct Transactions {
    timers: Timers,
    servers: Table<ServerKey, Server>,
    clients: Table<ClientKey, Client>,
    sources: Sources,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
}

impl Transactions {
    /// No transactions yet.
    pub fn new(limits: Limits, timers: Timers) -> Self {
        Self {
            timers,
            servers: Table::new(limits.max_server),
            clients: Table::new(limits.max_client),
            sources: Sources::default(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// A request has come.
    pub fn handle_request(&mut self, request: &Message, hop: &Hop, now: Instant) -> Incoming {
        let Some(key) = ServerKey::of(request) else {
            return Incoming::Unusable;
        };
        if request.method() == Method::Ack {
            return self.handle_ack(&key, now);
        }
        let hash = self.servers.hash(&key);
        if let Some(id) = self.servers.find_hashed(&key, hash) {
            self.follow(id, hop.flow);
            self.repeat_response(id);
            return Incoming::Retransmission;
        }
        let cancelled = key.invite_of_cancel();
        let server = Server::new(&key, hop.flow.transport.is_reliable(), self.timers, now);
        let source = hop.flow.peer.ip();
        let inserted = self
            .servers
            .insert_new(key, hash, hop.flow, server, Some(source));
        let Some(id) = inserted else {
            return Incoming::Full;
        };
        self.sources.add(source);
        match cancelled {
            Some(invite) => Incoming::Cancel {
                cancel: ServerId(id),
                invite: self.servers.find(&invite).map(ServerId),
            },
            None => Incoming::New(ServerId(id)),
        }
    }

    fn handle_ack(&mut self, key: &ServerKey, now: Instant) -> Incoming {
        let id = self.servers.find(key).or_else(|| {
            let untagged = key.without_to_tag()?;
            self.servers.find(&untagged)
        });
        if let Some(id) = id
            && let Some(entry) = self.servers.get(id)
            && entry.machine.is_unanswered()
        {
            return Incoming::AckUnanswered(ServerId(id));
        }
        let acknowledged = id.and_then(|id| {
            self.servers
                .update(id, |entry| entry.machine.handle_ack(now))
        });
        if let Some(id) = id {
            self.end_server_if_done(id);
        }
        match acknowledged {
            Some(Acknowledged::Here) => Incoming::AckAbsorbed,
            Some(Acknowledged::EndToEnd) | None => Incoming::AckEndToEnd,
        }
    }

    /// Who has lost its connection repeats its request over the next one: what is said to it goes there.
    fn follow(&mut self, id: SlotId, flow: Flow) {
        let moved = self.servers.get(id).is_some_and(|entry| {
            let old = entry.flow;
            let same_host = old.peer.ip() == flow.peer.ip() && old.transport == flow.transport;
            let both = old.connection.is_some() && flow.connection.is_some();
            both && old.connection != flow.connection && (entry.adrift || same_host)
        });
        if moved {
            self.servers.set_flow(id, flow);
        }
    }

    fn repeat_response(&mut self, id: SlotId) {
        let Some(entry) = self.servers.get(id) else {
            return;
        };
        if let Some(bytes) = entry.machine.handle_request() {
            let flow = entry.flow;
            self.transmits.push_back(Transmit { flow, bytes });
        }
    }

    /// Answers a request: sends the response to where the request came from (RFC 3261 section
    /// 18.2.2, RFC 3581) unless the state forbids it, as after a final response.
    pub fn respond(&mut self, id: ServerId, response: Bytes, status: u16, now: Instant) {
        let flow = self.servers.update(id.0, |entry| {
            let sent = entry.machine.respond(&response, status, now);
            sent.then_some(entry.flow)
        });
        if let Some(flow) = flow.flatten() {
            let bytes = response;
            self.transmits.push_back(Transmit { flow, bytes });
        }
        self.end_server_if_done(id.0);
    }

    /// Where the request of a transaction came from.
    pub fn server_flow(&self, id: ServerId) -> Option<Flow> {
        self.servers.get(id.0).map(|entry| entry.flow)
    }

    /// Gives up a server transaction that will not be answered.
    pub fn abandon_server(&mut self, id: ServerId) {
        self.end_server(id.0);
    }

    /// Sends a request, already with our Via on top, and waits for the responses to it. `None`
    /// when the table is full, when the branch is in use already, and for an ACK, which the user
    /// sends without a transaction.
    pub fn send_request(
        &mut self,
        request: &Message,
        flow: Flow,
        now: Instant,
    ) -> Option<ClientId> {
        self.send_charged(request, flow, None, now)
    }

    /// The same for a copy of a request that came from there, which is counted as that source's.
    pub fn send_request_of(
        &mut self,
        source: IpAddr,
        request: &Message,
        flow: Flow,
        now: Instant,
    ) -> Option<ClientId> {
        self.send_charged(request, flow, Some(source), now)
    }

    fn send_charged(
        &mut self,
        request: &Message,
        flow: Flow,
        charged: Option<IpAddr>,
        now: Instant,
    ) -> Option<ClientId> {
        if !request.is_request() || request.method() == Method::Ack {
            return None;
        }
        let key = ClientKey::of(request)?;
        let client = Client::new(request, flow.transport.is_reliable(), self.timers, now);
        self.make_way(&key);
        let id = self.clients.insert(key, flow, client, charged)?;
        if let Some(source) = charged {
            self.sources.add(source);
        }
        let bytes = request.bytes().clone();
        self.transmits.push_back(Transmit { flow, bytes });
        Some(ClientId(id))
    }

    /// A request that is repeated over another connection, when the transaction that it was repeated in is
    /// over, has the branch that it had before: what has its final response under that branch is done.
    fn make_way(&mut self, key: &ClientKey) {
        let answered = self.clients.find(key).filter(|id| {
            let entry = self.clients.get(*id);
            entry.is_some_and(|entry| !entry.machine.is_pending())
        });
        if let Some(id) = answered {
            self.end_client(id, Event::ClientEnded);
        }
    }

    /// A response has come.
    pub fn handle_response(&mut self, response: &Message, now: Instant) -> Outgoing {
        let found = ClientKey::of(response).and_then(|key| self.clients.find(&key));
        let (Some(id), Some(status)) = (found, response.status()) else {
            return Outgoing::Unmatched;
        };
        let verdict = self.clients.update(id, |entry| {
            let received = entry.machine.handle_response(response, status, now);
            (received, entry.flow)
        });
        let Some((received, flow)) = verdict else {
            return Outgoing::Unmatched;
        };
        let outgoing = match received {
            Received::Pass => Outgoing::Pass(ClientId(id)),
            Received::PassAndSend(bytes) => {
                self.transmits.push_back(Transmit { flow, bytes });
                Outgoing::Pass(ClientId(id))
            }
            Received::Send(bytes) => {
                self.transmits.push_back(Transmit { flow, bytes });
                Outgoing::Absorbed
            }
            Received::Absorb => Outgoing::Absorbed,
        };
        self.end_client_if_done(id);
        outgoing
    }

    /// Where the request of a transaction was sent.
    pub fn client_flow(&self, id: ClientId) -> Option<Flow> {
        self.clients.get(id.0).map(|entry| entry.flow)
    }

    /// Gives up a client transaction, as when Timer C fires (RFC 3261 section 16.8).
    pub fn abandon(&mut self, id: ClientId) {
        self.end_client(id.0, Event::ClientEnded);
    }

    /// A flow broke, or nothing can be sent on it: every transaction on it is over.
    pub fn handle_transport_error(&mut self, flow: &Flow, _now: Instant) {
        self.end_all(self.clients.on_flow(flow), self.servers.on_flow(flow));
    }

    /// A connection is gone: every transaction on it is over.
    pub fn handle_connection_closed(&mut self, connection: ConnectionId) {
        let clients = self.clients.on_connection(connection);
        let servers = self.servers.on_connection(connection);
        self.end_all(clients, servers);
    }

    /// Requests on a connection that have no final response.
    pub fn pending_on(&self, connection: ConnectionId) -> Vec<ClientId> {
        let mut ids = self.clients.on_connection(connection);
        ids.retain(|id| {
            let entry = self.clients.get(*id);
            entry.is_some_and(|entry| entry.machine.is_pending())
        });
        ids.into_iter().map(ClientId).collect()
    }

    /// Lets a request outlive its connection, until [`move_client`](Self::move_client) gives it another or
    /// it is given up.
    pub fn keep_client(&mut self, id: ClientId) {
        self.clients.set_adrift(id.0);
    }

    /// What is sent in the transaction goes there from now on.
    pub fn move_client(&mut self, id: ClientId, flow: Flow) {
        self.clients.set_flow(id.0, flow);
    }

    /// Lets what came by a connection outlive it, until the request comes again by another or it is given up.
    pub fn keep_servers(&mut self, connection: ConnectionId) -> Vec<ServerId> {
        let ids = self.servers.on_connection(connection);
        for id in &ids {
            self.servers.set_adrift(*id);
        }
        ids.into_iter().map(ServerId).collect()
    }

    /// True where a request's connection is gone, and it has not come by another since.
    pub fn is_adrift(&self, id: ServerId) -> bool {
        self.servers.get(id.0).is_some_and(|entry| entry.adrift)
    }

    /// True where a request that came by this connection, or went out by it, has no final answer yet.
    pub fn waits_on(&self, connection: ConnectionId) -> bool {
        let unanswered = |id: &SlotId| {
            let entry = self.servers.get(*id);
            entry.is_some_and(|entry| entry.machine.is_unanswered())
        };
        let pending = |id: &SlotId| {
            let entry = self.clients.get(*id);
            entry.is_some_and(|entry| entry.machine.is_pending())
        };
        self.servers
            .on_connection(connection)
            .iter()
            .any(unanswered)
            || self.clients.on_connection(connection).iter().any(pending)
    }

    fn end_all(&mut self, clients: Vec<SlotId>, servers: Vec<SlotId>) {
        for id in clients {
            let pending = self
                .clients
                .get(id)
                .is_some_and(|entry| entry.machine.is_pending());
            let event = if pending {
                Event::TransportError
            } else {
                Event::ClientEnded
            };
            self.end_client(id, event);
        }
        for id in servers {
            self.end_server(id);
        }
    }

    /// Retransmits and ends what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(id) = self.servers.due(now) {
            let fired = self
                .servers
                .update(id, |entry| (entry.machine.handle_timeout(now), entry.flow));
            match fired {
                Some((Fired::Send(bytes), flow)) => {
                    self.transmits.push_back(Transmit { flow, bytes })
                }
                Some((Fired::Slow, _)) => self.events.push_back(Event::Slow(ServerId(id))),
                Some((Fired::TimedOut | Fired::Ended, _)) => self.end_server(id),
                Some((Fired::Nothing, _)) | None => {}
            }
        }
        while let Some(id) = self.clients.due(now) {
            let fired = self
                .clients
                .update(id, |entry| (entry.machine.handle_timeout(now), entry.flow));
            match fired {
                Some((Fired::Send(bytes), flow)) => {
                    self.transmits.push_back(Transmit { flow, bytes })
                }
                Some((Fired::TimedOut, _)) => self.end_client(id, Event::Timeout),
                Some((Fired::Ended, _)) => self.end_client(id, Event::ClientEnded),
                Some((Fired::Slow | Fired::Nothing, _)) | None => {}
            }
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) must be called next, and for which timer.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let server = self.servers.poll_timeout();
        server.into_iter().chain(self.clients.poll_timeout()).min()
    }

    /// The next message to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// The next thing that the user must know.
    pub fn poll_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front();
        if event.is_none() {
            self.servers.settle();
            self.clients.settle();
        }
        event
    }

    /// How many transactions exist now.
    pub fn counts(&self) -> Counts {
        Counts {
            server: self.servers.len(),
            client: self.clients.len(),
        }
    }

    /// How many of them the requests of a source have made, on both sides. All addresses of an IPv6
    /// /64 are one source.
    pub fn count_of(&self, source: IpAddr) -> usize {
        self.sources.count(source)
    }

    /// Sources that have transactions.
    pub fn sources(&self) -> usize {
        self.sources.len()
    }

    fn end_server_if_done(&mut self, id: SlotId) {
        if self.servers.has_ended(id) {
            self.end_server(id);
        }
    }

    fn end_server(&mut self, id: SlotId) {
        if let Some(entry) = self.servers.remove(id) {
            self.discharge(entry.charged);
            self.events.push_back(Event::ServerEnded(ServerId(id)));
        }
    }

    fn end_client_if_done(&mut self, id: SlotId) {
        if self.clients.has_ended(id) {
            self.end_client(id, Event::ClientEnded);
        }
    }

    fn end_client(&mut self, id: SlotId, event: impl FnOnce(ClientId) -> Event) {
        if let Some(entry) = self.clients.remove(id) {
            self.discharge(entry.charged);
            self.events.push_back(event(ClientId(id)));
        }
    }

    fn discharge(&mut self, charged: Option<IpAddr>) {
        if let Some(source) = charged {
            self.sources.remove(source);
        }
    }
}
