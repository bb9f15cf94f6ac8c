//! SIP over TCP: connections that phones open.
//!
//! Weak spot: we never open a connection, so a phone whose connection broke is unreachable until
//! it registers again.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tunnel_io::tcp::ListenerOptions;

use super::Inlet;
use super::connections::{Connections, Crowded};
use super::stream::serve;
use crate::metrics::reason;

/// After a failed accept, so that a lack of file descriptors does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

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

pub(super) fn prepare(stream: &TcpStream) -> io::Result<SocketAddr> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(120))
        .with_interval(Duration::from_secs(30))
        .with_retries(4);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)?;
    stream.local_addr()
}
