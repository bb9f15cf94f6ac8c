//! User agents whose connection went with its concentrator: what is for them waits until they are back.
//!
//! A user agent on TCP, TLS or WebSocket whose connection breaks opens another one, to whichever concentrator it
//! then reaches, and registers again: a matter of a second or a few. Until then nothing can be sent to it. So a
//! request that is for such a connection alone waits, at most [`PATIENCE`]; it has its 100. When the user
//! agent has registered the request goes there, else it is answered 480.
//!
//! What was on its way to that connection when its concentrator was lost, and had no answer yet, goes to
//! the new one as well, in the same transaction: a branch is made of what names the user agent and not of its
//! address ([`super::forward::branch_of`]), so one that got both takes the second for a retransmission.
//!
//! Only connections of other concentrators wait: of one of our own that closed we know that its binding went
//! with it.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use super::forward::Outbound;
use super::media::{Media, Party};
use super::route::Routed;
use super::{Progress, Proxy, Target};
use crate::cookie::{DialogCookie, Owner};
use crate::hop::{ConnectionId, Hop, Transmit};
use crate::message::{Message, Method};
use crate::transaction::{ClientId, ServerId};

/// How long a request waits. A phone that has lost its connection has come back by then.
const PATIENCE: Duration = Duration::from_secs(12);
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

/// Who and what waits.
#[derive(Debug, Default)]
pub(super) struct Returning {
    requests: BTreeMap<ServerId, Waiting>,
    /// Requests that were under way to a connection that is lost.
    under_way: BTreeMap<ClientId, Instant>,
    look_at: Option<Instant>,
}

impl Returning {
    pub(super) fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        Some((self.look_at?, "returning"))
    }

    fn look_again(&mut self, now: Instant) {
        let nobody = self.requests.is_empty() && self.under_way.is_empty();
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
        if !outbound.said_trying && outbound.original.method() == Method::Invite {
            self.respond(id, &outbound.original, 100, "Trying", now);
        }
        self.counters.waited_for_return += 1;
        let request = Waiting {
            original: outbound.original,
            inner: outbound.inner,
            hop: *outbound.hop,
            targets: gone,
            dialog: outbound.dialog,
            deadline: now + PATIENCE,
        };
        self.returning.requests.insert(id, request);
        self.returning.look_again(now);
        None
    }

    /// A request that waited, which it does no longer.
    pub(super) fn stop_waiting_for_return(&mut self, id: ServerId) -> Option<Message> {
        let request = self.returning.requests.remove(&id)?;
        Some(request.original)
    }

    /// Other concentrators are gone, and their connections with them.
    pub(super) fn connections_lost(&mut self, owners: &HashSet<Owner>, now: Instant) {
        let deadline = now + PATIENCE;
        for context in self.contexts.values() {
            for branch in &context.branches {
                let owner = branch.flow.connection.map(ConnectionId::owner);
                let silent = matches!(branch.progress, Progress::Calling { .. });
                if silent && branch.name != 0 && owner.is_some_and(|owner| owners.contains(&owner))
                {
                    self.returning.under_way.insert(branch.client, deadline);
                }
            }
        }
        self.returning.look_again(now);
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
        let clients: Vec<ClientId> = self.returning.under_way.keys().copied().collect();
        for client in clients {
            self.send_to_returned(client, now);
        }
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
    fn send_to_returned(&mut self, client: ClientId, now: Instant) {
        let deadline = self.returning.under_way.get(&client).copied();
        let branch = self
            .by_client
            .get(&client)
            .and_then(|(server, index)| self.contexts.get_mut(server)?.branches.get_mut(*index));
        let silent = branch.filter(|branch| matches!(branch.progress, Progress::Calling { .. }));
        let Some(branch) = silent else {
            self.returning.under_way.remove(&client);
            return;
        };
        let moved = self.registrar.moved(branch.name, &branch.flow);
        let flow = moved.filter(|flow| flow.transport == branch.flow.transport);
        if let Some(flow) = flow {
            branch.flow = flow;
            let bytes = branch.request.bytes().clone();
            self.transmits.push_back(Transmit { flow, bytes });
            self.counters.sent_after_return += 1;
            self.returning.under_way.remove(&client);
        } else if deadline.is_none_or(|deadline| deadline <= now) {
            // Its transaction's timer tells the caller.
            self.returning.under_way.remove(&client);
        }
    }
}
