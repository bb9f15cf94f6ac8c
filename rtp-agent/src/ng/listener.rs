//! The sockets: one task for each address, one lock around the server.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::UdpSocket;
use tracing::{debug, info, warn};

use super::server::{Server, Step};
use crate::sockets::{SharedEngine, now};

/// How often calls that are over are looked for.
const SWEEP: Duration = Duration::from_millis(500);
/// After a failed receive, so that a lack of memory does not become a busy loop.
const RECEIVE_PAUSE: Duration = Duration::from_millis(50);
/// The largest datagram.
const BUFFER: usize = 65_536;

/// The server and the relay that it drives.
#[derive(Debug, Clone)]
pub struct SharedServer {
    server: Arc<Mutex<Server>>,
    engine: SharedEngine,
}

impl SharedServer {
    /// Joins them.
    pub fn new(server: Server, engine: SharedEngine) -> Self {
        Self {
            server: Arc::new(Mutex::new(server)),
            engine,
        }
    }

    /// Reads something of the server.
    pub fn with<T>(&self, work: impl FnOnce(&Server) -> T) -> T {
        work(&self.lock())
    }

    /// Opens the sockets.
    pub async fn bind(addresses: &[SocketAddr]) -> anyhow::Result<Vec<UdpSocket>> {
        let mut sockets = Vec::with_capacity(addresses.len());
        for address in addresses {
            let socket = UdpSocket::bind(address).await.with_context(|| {
                format!("cannot listen for ng on {address}; change listen in [ng]")
            })?;
            info!(%address, "listening for ng");
            sockets.push(socket);
        }
        Ok(sockets)
    }

    /// Answers what comes in on one socket, for ever.
    pub async fn serve(self, socket: UdpSocket) {
        let mut buffer = vec![0; BUFFER];
        loop {
            let (length, from) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    warn!(%error, "the ng socket failed");
                    tokio::time::sleep(RECEIVE_PAUSE).await;
                    continue;
                }
            };
            let Some(reply) = self.answer(&buffer[..length], from) else {
                continue;
            };
            if let Err(error) = socket.send_to(&reply, from).await {
                debug!(%error, %from, "cannot send an ng reply");
            }
        }
    }

    /// Ends what is due, for ever.
    pub async fn sweep(self) {
        loop {
            tokio::time::sleep(SWEEP).await;
            let mut server = self.lock();
            self.engine.with(|relay| server.sweep(relay, now()));
        }
    }

    fn answer(&self, datagram: &[u8], from: SocketAddr) -> Option<Arc<[u8]>> {
        let mut server = self.lock();
        let step = self
            .engine
            .with(|relay| server.handle(datagram, from, relay, now()));
        match step {
            Step::Dropped => None,
            Step::Again(reply) => Some(reply),
            Step::Fresh(fresh) => Some(
                self.engine
                    .with(|relay| server.finish(*fresh, relay, now())),
            ),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Server> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
