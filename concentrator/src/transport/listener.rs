//! The listeners of all stream transports: accept, admit, shake hands, serve.
//!
//! Each has one task that accepts and one for each of its connections. A place among the
//! connections is taken before the first octet is read, so that handshakes are bounded as well.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sip::hop::{Flow, Transport};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use tunnel_io::tcp::ListenerOptions;

use super::connections::{Admission, Connections, Crowded};
use super::stream::{End, SipFraming, converse};
use super::tls::{Identity, verified_names};
use super::ws::{self, WsFraming};
use super::{Inlet, TransportEvent};
use crate::metrics::{reason, transport};

/// After a failed accept, so that a lack of file descriptors does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a listener speaks.
#[derive(Debug, Clone)]
pub(super) enum Speaks {
    Tcp,
    Tls(Arc<Identity>),
    Ws,
    Wss(Arc<Identity>),
}

impl Speaks {
    pub(super) const fn transport(&self) -> Transport {
        match self {
            Self::Tcp => Transport::Tcp,
            Self::Tls(_) => Transport::Tls,
            Self::Ws => Transport::Ws,
            Self::Wss(_) => Transport::Wss,
        }
    }
}

/// Listens and starts to accept; gives the address, which tells the port when it was 0.
pub(super) fn listen(
    address: SocketAddr,
    speaks: Speaks,
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
    let connections = Arc::clone(connections);
    tasks.spawn(accept(listener, speaks, connections, inlet.clone()));
    Ok(local)
}

async fn accept(
    listener: TcpListener,
    speaks: Speaks,
    connections: Arc<Connections>,
    inlet: Inlet,
) {
    // Dropping the set when the listener's task is aborted closes every connection.
    let mut served = JoinSet::new();
    let refused = |why| {
        let counter = inlet
            .metrics
            .connections_refused
            .get_or_create(&reason(why));
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
        match connections.admit(peer) {
            Ok(admission) => {
                served.spawn(serve(stream, speaks.clone(), admission, inlet.clone()));
            }
            Err(Crowded::Total) => refused("too_many"),
            Err(Crowded::Source) => refused("too_many_of_source"),
        }
    }
}

async fn serve(stream: TcpStream, speaks: Speaks, admission: Admission, inlet: Inlet) {
    let (id, peer) = (admission.id, admission.peer);
    let via = transport(speaks.transport());
    let open = inlet.metrics.connections.get_or_create_owned(&via);
    open.inc();
    let ended = greet(stream, &speaks, admission, &inlet).await;
    open.dec();
    let (Ok(end) | Err(end)) = ended;
    let name = via[0].1.as_ref();
    tracing::debug!(%peer, transport = name, reason = end.reason(), "connection closed");
    let closed = &inlet.metrics.connections_closed;
    closed.get_or_create(&reason(end.reason())).inc();
    if ended.is_ok() {
        // An error means that the worker has ended.
        let _ = inlet.events.send(TransportEvent::Closed(id)).await;
    }
}

/// The handshake, if there is one, and then the conversation; an error when it came to none.
async fn greet(
    stream: TcpStream,
    speaks: &Speaks,
    mut admission: Admission,
    inlet: &Inlet,
) -> Result<End, End> {
    let Ok(local) = prepare(&stream) else {
        return Err(End::Broken);
    };
    admission.accepted_at(local);
    let flow = Flow {
        transport: speaks.transport(),
        peer: admission.peer,
        local,
        connection: Some(admission.id),
    };
    let patience = admission.limits().handshake;
    match speaks {
        Speaks::Tcp => {
            let (reader, writer) = stream.into_split();
            let framing = SipFraming::default();
            Ok(converse(reader, writer, framing, flow, admission, inlet).await)
        }
        Speaks::Tls(identity) => {
            let secured = in_time(patience, secure(stream, identity, &admission)).await?;
            let (reader, writer) = tokio::io::split(secured);
            let framing = SipFraming::default();
            Ok(converse(reader, writer, framing, flow, admission, inlet).await)
        }
        Speaks::Ws => {
            let mut stream = stream;
            in_time(patience, ws::handshake(&mut stream)).await?;
            let (reader, writer) = stream.into_split();
            let framing = WsFraming::default();
            Ok(converse(reader, writer, framing, flow, admission, inlet).await)
        }
        Speaks::Wss(identity) => {
            let both = async {
                let mut secured = secure(stream, identity, &admission).await?;
                ws::handshake(&mut secured).await?;
                Ok(secured)
            };
            let secured = in_time(patience, both).await?;
            let (reader, writer) = tokio::io::split(secured);
            let framing = WsFraming::default();
            Ok(converse(reader, writer, framing, flow, admission, inlet).await)
        }
    }
}

/// A handshake is on the heap: the conversation after it is long and needs nothing of it.
async fn in_time<T>(
    patience: Duration,
    handshake: impl Future<Output = Result<T, End>>,
) -> Result<T, End> {
    let ended = timeout(patience, Box::pin(handshake)).await;
    ended.unwrap_or(Err(End::SlowHandshake))
}

async fn secure(
    stream: TcpStream,
    identity: &Identity,
    admission: &Admission,
) -> Result<TlsStream<TcpStream>, End> {
    let accepted = identity.acceptor().accept(stream).await;
    let stream = accepted.map_err(|error| {
        tracing::debug!(peer = %admission.peer, %error, "TLS handshake failed");
        End::Handshake
    })?;
    let certificate = stream.get_ref().1.peer_certificates();
    if let Some(certificate) = certificate.and_then(<[_]>::first) {
        admission.verified(verified_names(certificate));
    }
    Ok(stream)
}

pub(super) fn prepare(stream: &TcpStream) -> io::Result<SocketAddr> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(120))
        .with_interval(Duration::from_secs(30))
        .with_retries(4);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)?;
    stream.local_addr()
}
