//! SIP over TCP: connections that phones open, their limits and their ends.
//!
//! [`Connections`] is keyed by [`ConnectionId`] and shared by the listeners, which add to it, by
//! the connections' tasks and by the worker, which sends. One task serves a connection: a reading
//! and a writing half, and whichever ends first ends it. A reader that finds the worker's queue
//! full waits, so that TCP slows the phone down.
//!
//! The relay of a message is asked of the flow table when the message is complete, not when the
//! connection was made: a route flip in between moves the connection to another edge.
//!
//! Weak spot: we never open a connection, so a phone whose connection broke is unreachable until
//! it registers again.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use sip::hop::{ConnectionId, Flow, Hop, Transport};
use sip::message::{FrameError, Framer, MAX_MESSAGE, StreamItem};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tunnel_io::tcp::ListenerOptions;

use super::{Incoming, Inlet, Payload, TransportEvent};
use crate::config::TcpLimits;
use crate::flows::FlowProtocol;
use crate::metrics::{reason, transport};

/// Messages that may wait for a slow phone.
const QUEUE_MESSAGES: usize = 64;
/// Their bytes.
const QUEUE_BYTES: usize = 256 << 10;
/// A phone that takes nothing for so long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Read in one system call.
const READ_SIZE: usize = 16 << 10;
/// After a failed accept, so that a lack of file descriptors does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// The answer to a ping (RFC 5626 section 3.5.1).
const PONG: &[u8] = b"\r\n";

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

/// Why a connection was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Crowded {
    Total,
    Source,
}

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Peer,
    Broken,
    Idle,
    SlowMessage,
    SlowReader,
    TooLong,
    BadLength,
    NotSip,
    Ours,
}

impl End {
    const fn reason(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Broken => "broken",
            Self::Idle => "idle",
            Self::SlowMessage => "slow_message",
            Self::SlowReader => "slow_reader",
            Self::TooLong => "message_too_long",
            Self::BadLength => "bad_content_length",
            Self::NotSip => "not_sip",
            Self::Ours => "ours",
        }
    }
}

impl From<FrameError> for End {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::TooLong => Self::TooLong,
            FrameError::ContentLength => Self::BadLength,
            FrameError::Parse(_) => Self::NotSip,
        }
    }
}

/// All open connections.
#[derive(Debug)]
pub(crate) struct Connections {
    limits: TcpLimits,
    next: AtomicU64,
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
    queue: mpsc::Sender<Bytes>,
    queued: Arc<AtomicUsize>,
}

impl Connections {
    pub(crate) fn new(limits: TcpLimits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            next: AtomicU64::new(1),
            open: Mutex::default(),
        })
    }

    /// Open connections.
    pub(crate) fn len(&self) -> usize {
        self.lock().admitted
    }

    /// Queues bytes for a connection. One whose queue is full is closed: the phone has stopped
    /// reading, and a stream cannot leave a message out.
    pub(crate) fn send(&self, id: ConnectionId, bytes: Bytes) -> Result<(), SendRefusal> {
        let mut open = self.lock();
        let outlet = open.outlets.get(&id).ok_or(SendRefusal::Gone)?;
        let length = bytes.len();
        let queued = outlet.queued.fetch_add(length, Ordering::Relaxed);
        if queued + length <= QUEUE_BYTES.max(length) && outlet.queue.try_send(bytes).is_ok() {
            return Ok(());
        }
        // Without a sender the writing half ends, and with it the connection.
        open.outlets.remove(&id);
        Err(SendRefusal::Full)
    }

    fn admit(self: &Arc<Self>, peer: IpAddr) -> Result<Admission, Crowded> {
        let source = source_group(peer);
        let mut open = self.lock();
        if open.admitted >= self.limits.connections {
            return Err(Crowded::Total);
        }
        let of_source = open.per_source.get(&source).copied().unwrap_or(0);
        if of_source >= self.limits.connections_per_source {
            return Err(Crowded::Source);
        }
        open.admitted += 1;
        open.per_source.insert(source, of_source + 1);
        let id = ConnectionId(self.next.fetch_add(1, Ordering::Relaxed));
        let (queue, receiver) = mpsc::channel(QUEUE_MESSAGES);
        let queued = Arc::new(AtomicUsize::new(0));
        let outlet = Outlet {
            queue,
            queued: Arc::clone(&queued),
        };
        open.outlets.insert(id, outlet);
        Ok(Admission {
            connections: Arc::clone(self),
            id,
            source,
            outgoing: Some(Outgoing {
                queue: receiver,
                queued,
            }),
        })
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
struct Admission {
    connections: Arc<Connections>,
    id: ConnectionId,
    source: IpAddr,
    outgoing: Option<Outgoing>,
}

#[derive(Debug)]
struct Outgoing {
    queue: mpsc::Receiver<Bytes>,
    queued: Arc<AtomicUsize>,
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

/// Listens and starts to accept; gives the address, which tells the port when it was 0.
pub(crate) fn listen(
    address: SocketAddr,
    path_mtu: Option<u16>,
    connections: &Arc<Connections>,
    inlet: &Inlet,
    tasks: &mut JoinSet<()>,
) -> io::Result<SocketAddr> {
    let options = ListenerOptions {
        path_mtu,
        ..ListenerOptions::default()
    };
    let listener = tunnel_io::tcp::listen(address, &options)?;
    let local = listener.local_addr()?;
    tasks.spawn(accept(listener, Arc::clone(connections), inlet.clone()));
    Ok(local)
}

async fn accept(listener: TcpListener, connections: Arc<Connections>, inlet: Inlet) {
    // Dropping the set when the listener's task is aborted closes every connection.
    let mut served = JoinSet::new();
    let refused = |why| {
        let counter = inlet.metrics.tcp_refused.get_or_create(&reason(why));
        counter.inc();
    };
    loop {
        while served.try_join_next().is_some() {}
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection");
                refused("accept_failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        match connections.admit(peer.ip()) {
            Ok(admission) => {
                served.spawn(serve(stream, peer, admission, inlet.clone()));
            }
            Err(Crowded::Total) => refused("too_many"),
            Err(Crowded::Source) => refused("too_many_of_source"),
        }
    }
}

async fn serve(stream: TcpStream, peer: SocketAddr, mut admission: Admission, inlet: Inlet) {
    let id = admission.id;
    inlet.metrics.tcp_connections.inc();
    let end = match (prepare(&stream), admission.outgoing.take()) {
        (Ok(local), Some(outgoing)) => {
            let flow = Flow {
                transport: Transport::Tcp,
                peer,
                local,
                connection: Some(id),
            };
            let (reader, writer) = stream.into_split();
            tokio::select! {
                end = read(reader, flow, &admission, &inlet) => end,
                end = write(writer, outgoing, &inlet) => end,
            }
        }
        (Ok(_) | Err(_), _) => End::Broken,
    };
    tracing::debug!(%peer, reason = end.reason(), "connection closed");
    inlet.metrics.tcp_connections.dec();
    inlet
        .metrics
        .tcp_closed
        .get_or_create(&reason(end.reason()))
        .inc();
    drop(admission);
    // An error means that the worker has ended.
    let _ = inlet.events.send(TransportEvent::Closed(id)).await;
}

fn prepare(stream: &TcpStream) -> io::Result<SocketAddr> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(120))
        .with_interval(Duration::from_secs(30))
        .with_retries(4);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)?;
    stream.local_addr()
}

async fn read(reader: OwnedReadHalf, flow: Flow, admission: &Admission, inlet: &Inlet) -> End {
    let via = transport(Transport::Tcp);
    let received = inlet.metrics.sip_received.get_or_create_owned(&via);
    let keepalives = inlet.metrics.sip_keepalives.get_or_create_owned(&via);
    let limits = &admission.connections.limits;
    let mut framer = Framer::new(MAX_MESSAGE);
    // When the message that is still incomplete began.
    let mut begun: Option<Instant> = None;
    let mut active = Instant::now();
    loop {
        let (deadline, end) = match begun {
            Some(begun) => (begun + limits.message, End::SlowMessage),
            None => (active + limits.idle, End::Idle),
        };
        match timeout_at(deadline, reader.readable()).await {
            Err(_) => return end,
            Ok(Err(_)) => return End::Broken,
            Ok(Ok(())) => {}
        }
        match receive_into(&mut framer, &reader) {
            Ok(0) => return End::Peer,
            Ok(_) => active = Instant::now(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => return End::Broken,
        }
        loop {
            match framer.next() {
                Err(error) => return error.into(),
                Ok(None) => break,
                Ok(Some(StreamItem::Ping)) => {
                    keepalives.inc();
                    let pong = Bytes::from_static(PONG);
                    if admission.connections.send(admission.id, pong).is_err() {
                        return End::SlowReader;
                    }
                }
                Ok(Some(StreamItem::Message(message))) => {
                    received.inc();
                    let hop = Hop {
                        flow,
                        relay: inlet.flows.relay_of(FlowProtocol::Tcp, flow.peer, None),
                    };
                    let payload = Payload::Message(Box::new(message));
                    let incoming = Incoming { hop, payload };
                    if inlet.incoming.send(incoming).await.is_err() {
                        return End::Ours;
                    }
                }
            }
            begun = None;
        }
        begun = framer.is_partial().then(|| begun.unwrap_or(active));
    }
}

/// Not async, so that the buffer is on the stack and not in every connection's task.
fn receive_into(framer: &mut Framer, reader: &OwnedReadHalf) -> io::Result<usize> {
    let mut buffer = [0; READ_SIZE];
    let length = reader.try_read(&mut buffer)?;
    framer.push(&buffer[..length]);
    Ok(length)
}

async fn write(mut writer: OwnedWriteHalf, mut outgoing: Outgoing, inlet: &Inlet) -> End {
    let sent = inlet
        .metrics
        .sip_sent
        .get_or_create_owned(&transport(Transport::Tcp));
    while let Some(bytes) = outgoing.queue.recv().await {
        match timeout(WRITE_TIMEOUT, writer.write_all(&bytes)).await {
            Err(_) => return End::SlowReader,
            Ok(Err(_)) => return End::Broken,
            Ok(Ok(())) => {}
        }
        outgoing.queued.fetch_sub(bytes.len(), Ordering::Relaxed);
        if bytes != PONG {
            sent.inc();
        }
    }
    // Only a full queue takes the sender away while the connection lives.
    End::SlowReader
}
