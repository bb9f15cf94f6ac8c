//! User agents whose connection went with its concentrator: what is for them waits until they are back.
//!
//! A user agent on TCP, TLS or WebSocket whose connection breaks opens another one, to whichever concentrator it
//! then reaches, and registers again: a matter of a second or a few. Until then nothing can be sent to it. So a
//! request that is for such a connection alone waits, at most [`PATIENCE`]; it has its 100. When the user
//! agent has registered the request goes there, else it is answered 480. So does a request for a user whose last
//! connection has just ended ([`crate::registrar::Registrar::awaited`]), here or at another concentrator.
//!
//! What is on its way to a connection goes to the next one as well, in the same transaction, where its user agent
//! has registered by another: when the concentrator of the first is lost, when nothing can be sent on it, and
//! when nothing has been heard for [`SILENCE`], since a concentrator that was cut off itself does not know which of
//! its connections are dead. A branch is made of what names the user agent and not of its address
//! ([`super::forward::branch_of`]), so one that got both takes the second for a retransmission. When the concentrator
//! is back first, and the connection has outlived that, it goes there again: what was said in between is lost.
//!
//! Over UDP a NAT that has forgotten a phone is noticed when the phone registers by another flow: what is under way to
//! the one before is sent there as well, within [`LOOK`].
//!
//! The same for callers: what came by a connection that is gone waits for its request to come again by the next, which
//! its answers then go by ([`crate::transaction`]). A caller that does not come back is one who has hung up, and one
//! that has registered elsewhere has repeated its request there.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use super::forward::Outbound;
use super::media::{Media, Party};
use super::route::Routed;
use super::{Progress, Proxy, Target};
use crate::cookie::{DialogCookie, Owner};
use crate::hop::{ConnectionId, Flow, Hop, Transmit};
use crate::message::{Message, Method};
use crate::registrar::partings::RETURN;
use crate::transaction::{ClientId, ServerId};

/// How long a request waits. A phone that has lost its connection has come back by then.
const PATIENCE: Duration = RETURN;
/// A request on a connection that has no answer for so long may have gone nowhere.
const SILENCE: Duration = Duration::from_secs(1);
/// How often it is looked whether somebody has come back.
const LOOK: Duration = Duration::from_millis(100);
/// Requests that may wait at a time; the next one fails at once.
const MAX_WAITING: usize = 2000;

/// A request with all that [`Proxy::start`] needs.
#[derive(Debug)]
struct Waiting {
    original: Message,
    inner: Message,
    hop: Hop,
    targets: Vec<Target>,
    dialog: Option<(DialogCookie, Party)>,
    deadline: Instant,
}

/// A request that was sent on a connection which is lost, or may be.
#[derive(Debug, Clone, Copy)]
struct UnderWay {
    deadline: Instant,
    /// Nothing can be sent there, so nothing but a return can bring an answer.
    adrift: bool,
    /// Its concentrator could not be reached.
    cut_off: bool,
}

/// Who has sent a request, and by what.
#[derive(Debug, Clone, Copy)]
struct Caller {
    name: u64,
    flow: Flow,
    deadline: Instant,
}

/// Who and what waits.
#[derive(Debug, Default)]
pub(super) struct Returning {
    requests: BTreeMap<ServerId, Waiting>,
    /// Requests that were under way to a connection that is lost, or may be.
    under_way: BTreeMap<ClientId, UnderWay>,
    /// What was sent on connections within [`SILENCE`].
    sent: VecDeque<(Instant, ClientId)>,
    /// Requests whose connection is gone.
    callers: BTreeMap<ServerId, Caller>,
    look_at: Option<Instant>,
}

impl Returning {
    pub(super) fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        Some((self.look_at?, "returning"))
    }

    fn look_again(&mut self, now: Instant) {
        let nobody = self.requests.is_empty()
            && self.under_way.is_empty()
            && self.sent.is_empty()
            && self.callers.is_empty();
        self.look_at = (!nobody).then(|| now + LOOK);
    }
}

impl Proxy {
    /// Requests that wait for a user agent to come back.
    pub fn waiting_for_return(&self) -> usize {
        self.returning.requests.len()
    }

    /// The connection is at a concentrator that is gone.
    fn is_lost(&self, connection: Option<ConnectionId>) -> bool {
        connection.is_some_and(|connection| !self.has_or_reaches(connection))
    }

    /// Lets a request wait where none of its targets can be reached now; gives it back where one can.
    pub(super) fn wait_for_return<'a>(
        &mut self,
        id: ServerId,
        mut outbound: Outbound<'a>,
        now: Instant,
    ) -> Option<Outbound<'a>> {
        if !self.config.clustered {
            return Some(outbound);
        }
        let lost = |target: &Target| self.is_lost(target.flow.connection) && target.name != 0;
        let (gone, there): (Vec<_>, Vec<_>) = outbound.targets.into_iter().partition(lost);
        let nobody = there.is_empty() && !gone.is_empty();
        if !nobody || self.returning.requests.len() >= MAX_WAITING {
            outbound.targets = if nobody { gone } else { there };
            return Some(outbound);
        }
        outbound.targets = gone;
        self.hold(id, outbound, now + PATIENCE, now);
        None
    }

    /// Lets a request wait for a user that has lost its connection.
    pub(super) fn await_return(
        &mut self,
        id: ServerId,
        outbound: Outbound<'_>,
        until: Instant,
        now: Instant,
    ) {
        if self.returning.requests.len() < MAX_WAITING {
            return self.hold(id, outbound, until, now);
        }
        self.counters.not_returned += 1;
        let reason = "Temporarily Unavailable";
        self.respond(id, &outbound.original, 480, reason, now);
    }

    fn hold(&mut self, id: ServerId, outbound: Outbound<'_>, deadline: Instant, now: Instant) {
        if !outbound.said_trying && outbound.original.method() == Method::Invite {
            self.respond(id, &outbound.original, 100, "Trying", now);
        }
        self.counters.waited_for_return += 1;
        let request = Waiting {
            original: outbound.original,
            inner: outbound.inner,
            hop: *outbound.hop,
            targets: outbound.targets,
            dialog: outbound.dialog,
            deadline,
        };
        self.returning.requests.insert(id, request);
        self.returning.look_again(now);
    }

    /// A request that waited, which it does no longer.
    pub(super) fn stop_waiting_for_return(&mut self, id: ServerId) -> Option<Message> {
        let request = self.returning.requests.remove(&id)?;
        Some(request.original)
    }

    /// Other concentrators are gone, and their connections with them.
    pub(super) fn connections_lost(&mut self, owners: &HashSet<Owner>, now: Instant) {
        let lost = UnderWay {
            deadline: now + PATIENCE,
            adrift: false,
            cut_off: true,
        };
        for context in self.contexts.values() {
            for branch in &context.branches {
                let owner = branch.flow.connection.map(ConnectionId::owner);
                let silent = matches!(branch.progress, Progress::Calling { .. });
                if silent && branch.name != 0 && owner.is_some_and(|owner| owners.contains(&owner))
                {
                    self.returning.under_way.insert(branch.client, lost);
                }
            }
        }
        self.returning.look_again(now);
    }

    /// A copy of a request has been sent.
    pub(super) fn note_sent(&mut self, client: ClientId, name: u64, flow: &Flow, now: Instant) {
        if self.config.clustered && name != 0 && flow.connection.is_some() {
            self.returning.sent.push_back((now + SILENCE, client));
            if self.returning.look_at.is_none() {
                self.returning.look_again(now);
            }
        }
    }

    /// A connection is gone, or nothing can be sent on it: what waits on it waits for who had it.
    pub(super) fn connection_lost(&mut self, connection: ConnectionId, now: Instant) {
        if !self.config.clustered {
            return;
        }
        let deadline = now + PATIENCE;
        for client in self.transactions.pending_on(connection) {
            if self.may_return(client) {
                self.transactions.keep_client(client);
                let adrift = UnderWay {
                    deadline,
                    adrift: true,
                    cut_off: false,
                };
                self.returning.under_way.insert(client, adrift);
            }
        }
        for server in self.transactions.keep_servers(connection) {
            let flow = self.transactions.server_flow(server);
            if let Some(flow) = flow {
                let context = self.contexts.get(&server);
                let contact = context.and_then(|context| context.request.contacts().next()?.ok());
                let contact = contact.map(|contact| contact.uri).unwrap_or_default();
                let name = self.registrar.name_of(&flow, contact);
                let caller = Caller {
                    name: name.unwrap_or(0),
                    flow,
                    deadline,
                };
                self.returning.callers.insert(server, caller);
            }
        }
        self.returning.look_again(now);
    }

    /// True where the target of a request is a user agent that can come back, and there is nobody else to try.
    fn may_return(&self, client: ClientId) -> bool {
        let found = self.by_client.get(&client).and_then(|(server, index)| {
            let context = self.contexts.get(server)?;
            Some((context, context.branches.get(*index)?))
        });
        found.is_some_and(|(context, branch)| {
            let rest = context.rest.as_ref();
            let last = rest.is_none_or(|rest| rest.groups.is_empty());
            last && branch.name != 0 && !branch.by_path && !context.orphan
        })
    }

    /// Sends to those who have come back, and gives up those who have not.
    pub(super) fn fire_returning(&mut self, media: &mut dyn Media, now: Instant) {
        if self.returning.look_at.is_none_or(|at| at > now) {
            return;
        }
        let waiting: Vec<ServerId> = self.returning.requests.keys().copied().collect();
        for id in waiting {
            self.look_for(id, media, now);
        }
        while let Some(&(at, client)) = self.returning.sent.front()
            && at <= now
        {
            self.returning.sent.pop_front();
            let silent = UnderWay {
                deadline: now + PATIENCE,
                adrift: false,
                cut_off: false,
            };
            self.returning.under_way.entry(client).or_insert(silent);
        }
        let clients: Vec<ClientId> = self.returning.under_way.keys().copied().collect();
        for client in clients {
            self.send_to_returned(client, media, now);
        }
        self.end_those_left(media, now);
        self.returning.look_again(now);
    }

    fn look_for(&mut self, id: ServerId, media: &mut dyn Media, now: Instant) {
        let Some(waiting) = self.returning.requests.get(&id) else {
            return;
        };
        let deadline = waiting.deadline;
        let (inner, in_dialog) = (waiting.inner.clone(), waiting.dialog.is_some());
        let mut targets = waiting.targets.clone();
        if in_dialog {
            for target in &mut targets {
                let moved = self.registrar.moved(target.name, &target.flow);
                target.flow = moved.unwrap_or(target.flow);
            }
        } else if let Routed::Forward { targets: found, .. } = self.look_up(inner, now) {
            targets = found;
        }
        targets.retain(|target| !self.is_lost(target.flow.connection));
        if targets.is_empty() && now < deadline {
            return;
        }
        let Some(request) = self.returning.requests.remove(&id) else {
            return;
        };
        if targets.is_empty() {
            self.counters.not_returned += 1;
            let reason = "Temporarily Unavailable";
            return self.respond(id, &request.original, 480, reason, now);
        }
        let outbound = Outbound {
            original: request.original,
            inner: request.inner,
            hop: &request.hop,
            targets,
            dialog: request.dialog,
            fail_on: None,
            said_trying: true,
            waited: false,
        };
        self.start(id, outbound, media, now);
    }

    /// The request of a branch goes to where its user agent is now, in its transaction.
    fn send_to_returned(&mut self, client: ClientId, media: &mut dyn Media, now: Instant) {
        let Some(under_way) = self.returning.under_way.get(&client).copied() else {
            return;
        };
        let branch = self
            .by_client
            .get(&client)
            .and_then(|(server, index)| self.contexts.get_mut(server)?.branches.get_mut(*index));
        let waits = branch.filter(|branch| match branch.progress {
            Progress::Calling { .. } => true,
            Progress::Proceeding { .. } => under_way.adrift,
            Progress::Done => false,
        });
        let Some(branch) = waits else {
            self.returning.under_way.remove(&client);
            return;
        };
        let moved = self.registrar.moved(branch.name, &branch.flow);
        let moved = moved.filter(|flow| flow.transport == branch.flow.transport);
        let there = moved.filter(|flow| {
            let owner = flow.connection.map(ConnectionId::owner);
            owner.is_none_or(|owner| owner == self.config.owner || self.peers.is_alive(owner))
        });
        let owner = branch.flow.connection.map(ConnectionId::owner);
        let is_back = under_way.cut_off && owner.is_some_and(|owner| self.peers.is_alive(owner));
        if let Some(flow) = there.or_else(|| is_back.then_some(branch.flow)) {
            let bytes = branch.request.bytes().clone();
            branch.flow = flow;
            self.send_again(client, Transmit { flow, bytes });
            self.returning.under_way.remove(&client);
        } else if under_way.deadline <= now {
            self.returning.under_way.remove(&client);
            // Of one that is not adrift its transaction's timer tells the caller.
            if under_way.adrift {
                self.counters.not_returned += 1;
                self.branch_failed(client, 480, "Temporarily Unavailable", media, now);
                self.transactions.abandon(client);
            }
        }
    }

    fn send_again(&mut self, client: ClientId, transmit: Transmit) {
        self.transactions.move_client(client, transmit.flow);
        self.transmits.push_back(transmit);
        self.counters.sent_after_return += 1;
    }

    /// When to look for what is under way to flows that were left. All contexts are looked through, so whoever
    /// registers by another flow all the time must not have it done each time.
    pub(super) fn next_rebound(&self) -> Option<(Instant, &'static str)> {
        Some((self.registrar.left_since()? + LOOK, "rebound"))
    }

    /// Sends what is under way to flows that were left to where their user agents are now.
    pub(super) fn follow_rebound(&mut self, now: Instant) {
        if self.next_rebound().is_none_or(|(at, _)| at > now) {
            return;
        }
        let left: HashSet<Flow> = self.registrar.take_left().into_iter().collect();
        let mut again = Vec::new();
        for context in self.contexts.values_mut() {
            for branch in &mut context.branches {
                let waits = branch.progress != Progress::Done && left.contains(&branch.flow);
                if !waits || branch.name == 0 || branch.by_path {
                    continue;
                }
                let moved = self.registrar.moved(branch.name, &branch.flow);
                let transport = branch.flow.transport;
                let Some(flow) = moved.filter(|flow| flow.transport == transport) else {
                    continue;
                };
                branch.flow = flow;
                let bytes = branch.request.bytes().clone();
                again.push((branch.client, Transmit { flow, bytes }));
            }
        }
        for (client, transmit) in again {
            self.send_again(client, transmit);
        }
    }

    /// Ends the requests of callers that have not come back.
    fn end_those_left(&mut self, media: &mut dyn Media, now: Instant) {
        let waiting: Vec<(ServerId, Caller)> = self
            .returning
            .callers
            .iter()
            .map(|(server, caller)| (*server, *caller))
            .collect();
        for (server, caller) in waiting {
            if !self.transactions.is_adrift(server) {
                self.returning.callers.remove(&server);
            } else if caller.deadline <= now {
                self.returning.callers.remove(&server);
                if self.registrar.moved(caller.name, &caller.flow).is_some() {
                    self.leave_to_others(server, media, now);
                }
                self.transactions.abandon_server(server);
            }
        }
    }

    /// Lets go of a request that its sender has repeated to another concentrator: a CANCEL from here would
    /// end it there as well.
    fn leave_to_others(&mut self, server: ServerId, media: &mut dyn Media, now: Instant) {
        let Some(context) = self.contexts.get_mut(&server) else {
            return;
        };
        let new_call = context.dialog.is_none();
        let mut left = Vec::new();
        for branch in &mut context.branches {
            if branch.progress != Progress::Done {
                branch.progress = Progress::Done;
                left.push((branch.client, branch.own_session()));
            }
        }
        context.decided = true;
        for (client, session) in left {
            self.stop_timer_c(client);
            self.transactions.abandon(client);
            if let (Some(session), true) = (session, new_call) {
                media.ended(session, now);
            }
        }
    }
}
