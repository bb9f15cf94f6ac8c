//! Connections that we open, to configured next hops: trunks, registrars, servers behind us.
//!
//! A message for a flow without a connection number goes over the connection that was opened for
//! this flow before. Where there is none one is opened, and what is sent in the meantime waits in
//! its queue, which is bounded like any other. Once open it is a connection as those of phones
//! are: what comes in on it has its number in the flow, and the same limits hold.
//!
//! Connections leave from the concentrator's own address, since answers to the anycast address
//! would arrive at the nearest edge. [`Flow::local`] is what we call ourselves in Via and
//! Record-Route; it may be another one.
//!
//! Whoever sends decides what a next hop is. A phone is none: behind its NAT nobody answers.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls::pki_types::ServerName;
use sip::hop::{ConnectionId, Flow, Transmit, Transport};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::connections::{Admission, Connections, SendRefusal};
use super::listener::prepare;
use super::stream::{End, SipFraming, converse};
use super::tls::{Identity, verified_names};
use super::{Inlet, TransportEvent};
use crate::metrics::{reason, transport};

/// From the first segment to the end of the TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// Attempts under way at once.
const MAX_CONNECTING: usize = 64;
/// Connections that we have opened, the attempts included.
const MAX_OPENED: usize = 1024;
/// Next hops whose name in certificates is known.
const MAX_NAMES: usize = 4096;

/// What we have opened.
pub(super) struct Dialler {
    from: Vec<IpAddr>,
    identity: Option<Arc<Identity>>,
    names: HashMap<SocketAddr, String>,
    connections: Arc<Connections>,
    inlet: Inlet,
    opened: Arc<Mutex<Opened>>,
    tasks: JoinSet<()>,
}

impl std::fmt::Debug for Dialler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Dialler").field(&self.opened).finish()
    }
}

#[derive(Debug, Default)]
struct Opened {
    flows: HashMap<Flow, ConnectionId>,
    connecting: usize,
}

impl Dialler {
    pub(super) fn new(
        from: Vec<IpAddr>,
        identity: Option<Arc<Identity>>,
        connections: Arc<Connections>,
        inlet: Inlet,
    ) -> Self {
        Self {
            from,
            identity,
            names: HashMap::new(),
            connections,
            inlet,
            opened: Arc::default(),
            tasks: JoinSet::new(),
        }
    }

    /// The name that a next hop's certificate must have; without one it must have the address.
    pub(super) fn expect_name(&mut self, peer: SocketAddr, name: String) {
        if self.names.len() < MAX_NAMES || self.names.contains_key(&peer) {
            self.names.insert(peer, name);
        }
    }

    /// Sends over the connection of this flow, and opens it first if there is none. The error is
    /// the reason in metrics; that a connection could not be opened comes as an event.
    pub(super) fn send(&mut self, transmit: Transmit) -> Result<(), &'static str> {
        while self.tasks.try_join_next().is_some() {}
        let Transmit { flow, bytes } = transmit;
        let known = lock(&self.opened).flows.get(&flow).copied();
        if let Some(id) = known {
            match self.connections.send(id, flow.peer, bytes.clone()) {
                // It has just ended, and its task has not said so yet.
                Err(SendRefusal::Gone) => {}
                sent => return sent.map_err(SendRefusal::reason),
            }
        }
        let id = self.open(flow)?;
        let sent = self.connections.send(id, flow.peer, bytes);
        sent.map_err(SendRefusal::reason)
    }

    fn open(&mut self, flow: Flow) -> Result<ConnectionId, &'static str> {
        let secured = match flow.transport {
            Transport::Tcp => None,
            Transport::Tls => Some(self.connector(flow.peer)?),
            Transport::Udp | Transport::Ws | Transport::Wss => return Err("no_connection"),
        };
        let mut opened = lock(&self.opened);
        if opened.connecting >= MAX_CONNECTING {
            return Err("too_many_connecting");
        }
        if opened.flows.len() >= MAX_OPENED {
            return Err("too_many_opened");
        }
        let admission = self.connections.admit_ours(flow.peer);
        let id = admission.id;
        opened.connecting += 1;
        opened.flows.insert(flow, id);
        drop(opened);
        let from = self
            .from
            .iter()
            .find(|ip| ip.is_ipv4() == flow.peer.is_ipv4());
        let attempt = Attempt {
            flow,
            from: from.copied(),
            secured,
            opened: Arc::clone(&self.opened),
            inlet: self.inlet.clone(),
        };
        self.tasks.spawn(attempt.run(admission));
        Ok(id)
    }

    fn connector(&self, peer: SocketAddr) -> Result<Secured, &'static str> {
        let identity = self.identity.as_ref();
        let connector = identity.and_then(|identity| identity.connector());
        let connector = connector.ok_or("tls_not_configured")?;
        let name = match self.names.get(&peer) {
            Some(name) => ServerName::try_from(name.clone()).map_err(|_| "bad_server_name")?,
            None => peer.ip().into(),
        };
        Ok(Secured { connector, name })
    }
}

/// How a connection is secured, and who must be at the other end.
struct Secured {
    connector: TlsConnector,
    name: ServerName<'static>,
}

struct Attempt {
    flow: Flow,
    from: Option<IpAddr>,
    secured: Option<Secured>,
    opened: Arc<Mutex<Opened>>,
    inlet: Inlet,
}

impl Attempt {
    async fn run(self, admission: Admission) {
        let (id, peer) = (admission.id, self.flow.peer);
        let open = &self.inlet.metrics.connections;
        let open = open.get_or_create_owned(&transport(self.flow.transport));
        open.inc();
        let (Ok(end) | Err(end)) = self.converse(admission).await;
        open.dec();
        tracing::debug!(%peer, reason = end.reason(), "connection that we opened has ended");
        let closed = &self.inlet.metrics.connections_closed;
        closed.get_or_create(&reason(end.reason())).inc();
        self.forget(id);
        // An error means that the worker has ended.
        let events = &self.inlet.events;
        let _ = events.send(TransportEvent::Closed(id)).await;
        if !matches!(end, End::Idle | End::Ours) {
            // What waits for an answer on it gets none (RFC 3261 section 18.4).
            let _ = events.send(TransportEvent::Failed(self.flow)).await;
        }
    }

    /// Opens the connection and serves it; an error when it could not be opened.
    async fn converse(&self, admission: Admission) -> Result<End, End> {
        let flow = Flow {
            connection: Some(admission.id),
            ..self.flow
        };
        let (framing, inlet) = (SipFraming::default(), &self.inlet);
        let Some(secured) = &self.secured else {
            let stream = self.in_time(connect(self.from, flow.peer)).await?;
            let (reader, writer) = stream.into_split();
            return Ok(converse(reader, writer, framing, flow, admission, inlet).await);
        };
        let stream = self.in_time(async {
            let stream = connect(self.from, flow.peer).await?;
            secure(secured, stream).await
        });
        let stream = stream.await?;
        let certificate = stream.get_ref().1.peer_certificates();
        if let Some(certificate) = certificate.and_then(<[_]>::first) {
            admission.verified(verified_names(certificate));
        }
        let (reader, writer) = tokio::io::split(stream);
        Ok(converse(reader, writer, framing, flow, admission, inlet).await)
    }

    async fn in_time<T>(&self, connect: impl Future<Output = Result<T, End>>) -> Result<T, End> {
        let connected = timeout(CONNECT_TIMEOUT, Box::pin(connect)).await;
        lock(&self.opened).connecting -= 1;
        connected.unwrap_or(Err(End::ConnectTimeout))
    }

    /// The next message for this flow opens another one.
    fn forget(&self, id: ConnectionId) {
        let mut opened = lock(&self.opened);
        if opened.flows.get(&self.flow) == Some(&id) {
            opened.flows.remove(&self.flow);
        }
    }
}

async fn connect(from: Option<IpAddr>, to: SocketAddr) -> Result<TcpStream, End> {
    let open = async {
        let socket = match to {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        if let Some(from) = from {
            socket.bind(SocketAddr::new(from, 0))?;
        }
        let stream = socket.connect(to).await?;
        prepare(&stream)?;
        Ok::<_, io::Error>(stream)
    };
    open.await.map_err(|error| {
        tracing::debug!(%to, %error, "cannot connect");
        End::ConnectFailed
    })
}

async fn secure(how: &Secured, stream: TcpStream) -> Result<TlsStream<TcpStream>, End> {
    let name = how.name.clone();
    how.connector.connect(name, stream).await.map_err(|error| {
        tracing::debug!(name = ?how.name, %error, "TLS handshake failed");
        End::Handshake
    })
}

fn lock(opened: &Mutex<Opened>) -> MutexGuard<'_, Opened> {
    opened.lock().unwrap_or_else(PoisonError::into_inner)
}
