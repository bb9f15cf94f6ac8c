//! The connections of all stream transports: who is admitted, and the queue to each.
//!
//! [`Connections`] is keyed by [`ConnectionId`] and shared by the listeners, which add to it, by
//! the connections' tasks and by the worker, which sends.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use sip::hop::ConnectionId;
use tokio::sync::mpsc;
use wire::core_link::ConnectionRecord;

use crate::config::TcpLimits;
use crate::core_link::connections::{ConnectionMap, Here};

/// Bytes that may wait for a slow reader. A trunk's connection carries many calls: after a second
/// in which packets were lost, all that came meanwhile goes to it at once.
const QUEUE_BYTES: usize = 1 << 20;
/// The same while more than [`TOTAL_BYTES`] wait for all.
const CROWDED_QUEUE_BYTES: usize = 64 << 10;
const TOTAL_BYTES: usize = 256 << 20;
/// What a message in a queue takes beside its bytes.
const OVERHEAD: usize = 128;

/// Why a message was not taken for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SendRefusal {
    /// The connection is gone.
    Gone,
    /// The phone does not read; the connection is being closed.
    Full,
}

impl SendRefusal {
    /// The name in metrics.
    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::Gone => "connection_gone",
            Self::Full => "connection_full",
        }
    }
}

/// What waits for a connection's writing half.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) what: Outbound,
    pub(super) weight: Weight,
}

/// What goes out.
#[derive(Debug)]
pub(super) enum Outbound {
    /// A SIP message, still to be framed.
    Message(Bytes),
    /// The answer to a keepalive, as it goes out.
    Answer(Bytes),
    /// Nothing more: the connection ends here.
    Close,
}

impl Outbound {
    fn len(&self) -> usize {
        match self {
            Self::Message(bytes) | Self::Answer(bytes) => bytes.len(),
            Self::Close => 0,
        }
    }
}

/// Bytes that wait, for one connection and for all.
#[derive(Debug, Clone, Default)]
struct Waiting {
    own: Arc<AtomicUsize>,
    total: Arc<AtomicUsize>,
}

impl Waiting {
    /// Adds to both, unless that is too much.
    fn add(&self, bytes: usize) -> Option<Weight> {
        let limit = if self.total.load(Ordering::Relaxed) > TOTAL_BYTES {
            CROWDED_QUEUE_BYTES
        } else {
            QUEUE_BYTES
        };
        let before = self.own.fetch_add(bytes, Ordering::Relaxed);
        self.total.fetch_add(bytes, Ordering::Relaxed);
        let weight = Weight {
            bytes,
            waiting: self.clone(),
        };
        // A message that is longer than that has to go out on its own.
        (before + bytes <= limit.max(bytes)).then_some(weight)
    }
}

/// The share of one message, until it is written or given up.
#[derive(Debug)]
pub(super) struct Weight {
    bytes: usize,
    waiting: Waiting,
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.waiting.own.fetch_sub(self.bytes, Ordering::Relaxed);
        self.waiting.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Why a connection was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Crowded {
    Total,
    Source,
}

/// All open connections.
#[derive(Debug)]
pub(crate) struct Connections {
    limits: TcpLimits,
    next: AtomicU64,
    /// Where other concentrators learn which connections are here.
    map: Arc<ConnectionMap>,
    /// Bytes that wait in all queues.
    waiting: Arc<AtomicUsize>,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    outlets: HashMap<ConnectionId, Outlet>,
    per_source: HashMap<IpAddr, usize>,
    /// Admitted, which is until their task ends; a connection that we gave up on is still one.
    admitted: usize,
}

#[derive(Debug)]
struct Outlet {
    peer: SocketAddr,
    names: Option<Arc<[String]>>,
    queue: mpsc::UnboundedSender<Queued>,
    waiting: Waiting,
    /// The other end has opened it.
    accepted: bool,
}

impl Connections {
    pub(crate) fn new(
        limits: TcpLimits,
        first: ConnectionId,
        map: Arc<ConnectionMap>,
    ) -> Arc<Self> {
        Arc::new(Self {
            limits,
            next: AtomicU64::new(first.0),
            map,
            waiting: Arc::default(),
            open: Mutex::default(),
        })
    }

    /// Open connections.
    pub(crate) fn len(&self) -> usize {
        self.lock().admitted
    }

    /// Queues a message for a connection. One whose queue is full is closed: the phone has stopped
    /// reading, and a stream cannot leave a message out. The peer must be the connection's, since
    /// a flow from before a restart may carry a number that is in use again.
    pub(crate) fn send(
        &self,
        id: ConnectionId,
        peer: SocketAddr,
        message: Bytes,
    ) -> Result<(), SendRefusal> {
        self.queue(id, Some(peer), Outbound::Message(message))
    }

    /// The names in the certificate that the peer has proved to hold; `None` where it showed none.
    pub(crate) fn verified_names(&self, id: ConnectionId) -> Option<Arc<[String]>> {
        self.lock().outlets.get(&id)?.names.clone()
    }

    fn queue(
        &self,
        id: ConnectionId,
        peer: Option<SocketAddr>,
        what: Outbound,
    ) -> Result<(), SendRefusal> {
        let mut open = self.lock();
        let outlet = open.outlets.get(&id).ok_or(SendRefusal::Gone)?;
        if peer.is_some_and(|peer| peer != outlet.peer) {
            return Err(SendRefusal::Gone);
        }
        let weight = outlet.waiting.add(what.len() + OVERHEAD);
        let taken = weight.map(|weight| outlet.queue.send(Queued { what, weight }));
        match taken {
            Some(Ok(())) => return Ok(()),
            // Its task is ending.
            Some(Err(_)) => return Err(SendRefusal::Gone),
            None => {}
        }
        // Without a sender the writing half ends, and with it the connection.
        open.outlets.remove(&id);
        Err(SendRefusal::Full)
    }

    /// Those that the other end has opened.
    pub(super) fn accepted(&self) -> Vec<ConnectionId> {
        let open = self.lock();
        let accepted = open.outlets.iter().filter(|(_, outlet)| outlet.accepted);
        accepted.map(|(id, _)| *id).collect()
    }

    /// Ends one when all that waits for it is written.
    pub(super) fn close(&self, id: ConnectionId) {
        // An error means that it ends already.
        if self.queue(id, None, Outbound::Close).is_ok() {
            self.lock().outlets.remove(&id);
        }
    }

    /// Takes a place for a connection.
    pub(super) fn admit(self: &Arc<Self>, peer: SocketAddr) -> Result<Admission, Crowded> {
        let source = source_group(peer.ip());
        let mut open = self.lock();
        if open.admitted >= self.limits.connections {
            return Err(Crowded::Total);
        }
        let of_source = open.per_source.get(&source).copied().unwrap_or(0);
        if of_source >= self.limits.connections_per_source {
            return Err(Crowded::Source);
        }
        Ok(self.take(&mut open, peer))
    }

    /// The same for a connection that we open, which no phone can prevent.
    pub(super) fn admit_ours(self: &Arc<Self>, peer: SocketAddr) -> Admission {
        self.take(&mut self.lock(), peer)
    }

    fn take(self: &Arc<Self>, open: &mut Open, peer: SocketAddr) -> Admission {
        let source = source_group(peer.ip());
        open.admitted += 1;
        *open.per_source.entry(source).or_default() += 1;
        let id = ConnectionId(self.next.fetch_add(1, Ordering::Relaxed));
        let (queue, outgoing) = mpsc::unbounded_channel();
        let outlet = Outlet {
            peer,
            names: None,
            queue,
            waiting: Waiting {
                own: Arc::default(),
                total: Arc::clone(&self.waiting),
            },
            accepted: false,
        };
        open.outlets.insert(id, outlet);
        Admission {
            connections: Arc::clone(self),
            id,
            peer,
            source,
            outgoing: Some(outgoing),
            here: None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Addresses that one subscriber is likely to have: an IPv4 address, an IPv6 /64.
fn source_group(peer: IpAddr) -> IpAddr {
    match peer {
        IpAddr::V4(_) => peer,
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
    }
}

/// A place among the connections, given back on drop.
#[derive(Debug)]
pub(super) struct Admission {
    connections: Arc<Connections>,
    pub(super) id: ConnectionId,
    pub(super) peer: SocketAddr,
    source: IpAddr,
    /// Bounded by the weight of what is in it.
    pub(super) outgoing: Option<mpsc::UnboundedReceiver<Queued>>,
    here: Option<Here>,
}

impl Admission {
    pub(super) fn limits(&self) -> &TcpLimits {
        &self.connections.limits
    }

    /// The connection was accepted at this address.
    pub(super) fn accepted_at(&mut self, local: SocketAddr) {
        let peer = self.peer;
        let record = ConnectionRecord { peer, local };
        if let Some(outlet) = self.connections.lock().outlets.get_mut(&self.id) {
            outlet.accepted = true;
        }
        self.here = Some(self.connections.map.opened(record));
    }

    /// The peer has proved to be all of these.
    pub(super) fn verified(&self, names: Vec<String>) {
        if let Some(outlet) = self.connections.lock().outlets.get_mut(&self.id) {
            outlet.names = Some(names.into());
        }
    }

    /// Queues the answer to a keepalive.
    pub(super) fn answer(&self, bytes: Bytes) -> Result<(), SendRefusal> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.connections
            .queue(self.id, None, Outbound::Answer(bytes))
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut open = self.connections.lock();
        open.outlets.remove(&self.id);
        open.admitted -= 1;
        if let Some(count) = open.per_source.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                open.per_source.remove(&self.source);
            }
        }
    }
}
