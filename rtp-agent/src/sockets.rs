//! The moving set of media sockets, and the commands of the relay carried out.
//!
//! [`Engine`] joins the pure [`Relay`] to its sockets and links. One lock guards it; every port has
//! a task that waits for its socket, and with the lock held receives a batch into the one shared
//! buffer, asks the relay about each packet and sends from the same buffer. Packets that were held go
//! out before the packet after them, because commands are carried out as soon as there are any.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use smallvec::SmallVec;
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;
use tracing::{debug, warn};
use tunnel_io::udp_socket::{BatchSocket, OutgoingDatagram, UdpOptions};
use tunnel_io::{DatagramBatch, MAX_BATCH};
use wire::relay_control::{FromAgent, Side, SideAddr};

use crate::relay::{Command, ConcentratorId, Relay, RelayPort, SessionId};
use crate::session::Component;

/// A longer packet is dropped and counted; RTP keeps below the path's MTU (RFC 3550 section 11).
const MAX_PACKET: usize = 2048;

/// After a failed receive, so that a lack of memory does not become a busy loop.
const RECEIVE_PAUSE: Duration = Duration::from_millis(50);

/// The relay with its sockets and links.
#[derive(Debug)]
pub struct Engine {
    core: Core,
    batch: DatagramBatch,
}

/// An [`Engine`] that tasks share.
#[derive(Debug, Clone)]
pub struct SharedEngine {
    engine: Arc<Mutex<Engine>>,
    /// Wakes the timer when a deadline has come nearer.
    deadline_moved: Arc<Notify>,
    /// Wakes who tells the other agent of a pair.
    news: Arc<Notify>,
}

/// Packets that the sockets dropped before or after the relay saw them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SocketDrops {
    /// Longer than any media packet should be.
    pub oversize: u64,
    /// Not taken by the kernel.
    pub send_failed: u64,
}

#[derive(Debug)]
struct Core {
    relay: Relay,
    ports: HashMap<RelayPort, OpenPort>,
    links: Vec<Option<mpsc::Sender<FromAgent>>>,
    /// What the timer task sleeps towards.
    armed: Option<Instant>,
    drops: SocketDrops,
    udp: UdpOptions,
}

#[derive(Debug)]
struct OpenPort {
    socket: Arc<BatchSocket>,
    task: AbortHandle,
}

impl SharedEngine {
    /// No port open, no link connected.
    ///
    /// `freebind`: open ports though the media addresses are not on this host yet.
    pub fn new(relay: Relay, concentrators: usize, freebind: bool) -> Self {
        let core = Core {
            relay,
            ports: HashMap::new(),
            links: (0..concentrators).map(|_| None).collect(),
            armed: None,
            drops: SocketDrops::default(),
            udp: UdpOptions {
                freebind,
                ..UdpOptions::default()
            },
        };
        Self {
            engine: Arc::new(Mutex::new(Engine {
                core,
                batch: DatagramBatch::new(MAX_BATCH, MAX_PACKET),
            })),
            deadline_moved: Arc::new(Notify::new()),
            news: Arc::new(Notify::new()),
        }
    }

    /// Does something to the relay and carries out what follows from it.
    pub fn with<T>(&self, work: impl FnOnce(&mut Relay) -> T) -> T {
        let mut engine = self.lock();
        let outcome = work(&mut engine.core.relay);
        engine.core.perform(self);
        self.watch_deadline(&mut engine.core);
        if engine.core.relay.has_news() {
            self.news.notify_one();
        }
        outcome
    }

    /// Waits until the other agent of a pair should be told something.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// What the sockets have dropped.
    pub fn drops(&self) -> SocketDrops {
        self.lock().core.drops
    }

    /// A connection is up; the relay's messages go to this sender, and dropping it ends the link.
    pub fn connect(&self, concentrator: ConcentratorId, sender: mpsc::Sender<FromAgent>) {
        if let Some(link) = self.lock().core.links.get_mut(concentrator.0) {
            *link = Some(sender);
        }
        self.with(|relay| relay.handle_connected(concentrator, now()));
    }

    /// The connection is gone.
    pub fn disconnect(&self, concentrator: ConcentratorId) {
        if let Some(link) = self.lock().core.links.get_mut(concentrator.0) {
            *link = None;
        }
        self.with(|relay| relay.handle_disconnected(concentrator, now()));
    }

    /// Fires the relay's deadlines, for ever.
    pub async fn run_timers(self) {
        loop {
            let deadline = {
                let mut engine = self.lock();
                engine.core.armed = engine.core.relay.poll_timeout();
                engine.core.armed
            };
            let due = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => self.with(|relay| relay.handle_timeout(now())),
                () = self.deadline_moved.notified() => {}
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Engine> {
        // A panic elsewhere leaves the relay consistent enough to end calls in an orderly way.
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch_deadline(&self, core: &mut Core) {
        let due = core.relay.poll_timeout();
        if due.is_some_and(|due| core.armed.is_none_or(|armed| due < armed)) {
            core.armed = due;
            self.deadline_moved.notify_one();
        }
    }

    /// Relays what comes in on one port until the port is closed.
    async fn run_port(self, port: RelayPort, socket: Arc<BatchSocket>) {
        loop {
            let received = poll_fn(|cx| {
                let mut engine = self.lock();
                let Engine { core, batch } = &mut *engine;
                let received = socket.poll_recv_batch(cx, batch);
                if matches!(received, Poll::Ready(Ok(1..))) {
                    core.relay_batch(port, batch, &self);
                    self.watch_deadline(core);
                }
                received
            })
            .await;
            if let Err(error) = received {
                warn!(session = port.session.0, %error, "a media socket failed");
                tokio::time::sleep(RECEIVE_PAUSE).await;
            }
        }
    }
}

impl Core {
    fn relay_batch(&mut self, port: RelayPort, batch: &DatagramBatch, shared: &SharedEngine) {
        self.drops.oversize += batch.truncated() as u64;
        let now = now();
        let out = RelayPort {
            side: port.side.other(),
            ..port
        };
        let mut outgoing: SmallVec<[OutgoingDatagram<'_>; MAX_BATCH]> = SmallVec::new();
        for datagram in batch.iter() {
            let bytes = datagram.bytes;
            let verdict = self.relay.forward(port, datagram.from, bytes, now);
            if self.relay.has_commands() {
                self.send(out, &outgoing);
                outgoing.clear();
                self.perform(shared);
            }
            if let Some((_, to)) = verdict {
                outgoing.push(OutgoingDatagram { to, bytes });
            }
        }
        self.send(out, &outgoing);
    }

    fn send(&mut self, port: RelayPort, outgoing: &[OutgoingDatagram<'_>]) {
        if outgoing.is_empty() {
            return;
        }
        let Some(open) = self.ports.get(&port) else {
            return;
        };
        let failed = open.socket.send_batch_or_drop(outgoing).total_failed();
        if failed > 0 {
            self.drops.send_failed += failed;
            self.relay.handle_send_failed(port, failed);
        }
    }

    /// Carries out commands until there are none.
    fn perform(&mut self, shared: &SharedEngine) {
        while let Some(command) = self.relay.poll_command() {
            match command {
                Command::Open { session, a, b } => match self.open(session, a, b, shared) {
                    Ok(()) => self.relay.handle_opened(session, now()),
                    Err(error) => {
                        warn!(session = session.0, %error, "cannot open media ports");
                        self.close(session);
                        self.relay.handle_open_failed(session, now());
                    }
                },
                Command::Close { session } => self.close(session),
                Command::Transmit { port, to, bytes } => {
                    self.send(port, &[OutgoingDatagram { to, bytes: &bytes }]);
                }
                Command::Send {
                    concentrator,
                    message,
                } => self.send_control(concentrator, *message),
                Command::CloseLink {
                    concentrator,
                    fault,
                } => {
                    warn!(concentrator = concentrator.0, %fault, "closing the control link");
                    self.links[concentrator.0] = None;
                }
            }
        }
    }

    fn send_control(&mut self, concentrator: ConcentratorId, message: FromAgent) {
        let Some(link) = self.links.get_mut(concentrator.0) else {
            return;
        };
        if link
            .as_ref()
            .is_some_and(|sender| sender.try_send(message).is_err())
        {
            warn!(
                concentrator = concentrator.0,
                "the control link is too slow, closing it"
            );
            *link = None;
        }
    }

    fn open(
        &mut self,
        session: SessionId,
        a: SideAddr,
        b: SideAddr,
        shared: &SharedEngine,
    ) -> io::Result<()> {
        for port in ports_of(session) {
            let addr = match port.side {
                Side::A => a,
                Side::B => b,
            };
            let number = match port.component {
                Component::Rtp => addr.rtp,
                Component::Rtcp => addr.rtcp,
            };
            let local = SocketAddr::new(addr.addr, number);
            let socket = Arc::new(BatchSocket::bind(local, &self.udp)?);
            let task = tokio::spawn(shared.clone().run_port(port, Arc::clone(&socket)));
            let task = task.abort_handle();
            self.ports.insert(port, OpenPort { socket, task });
        }
        Ok(())
    }

    fn close(&mut self, session: SessionId) {
        debug!(session = session.0, "closing media ports");
        for port in ports_of(session) {
            if let Some(open) = self.ports.remove(&port) {
                open.task.abort();
            }
        }
    }
}

fn ports_of(session: SessionId) -> impl Iterator<Item = RelayPort> {
    [
        (Side::A, Component::Rtp),
        (Side::A, Component::Rtcp),
        (Side::B, Component::Rtp),
        (Side::B, Component::Rtcp),
    ]
    .into_iter()
    .map(move |(side, component)| RelayPort {
        session,
        side,
        component,
    })
}

/// The clock of all IO here.
#[expect(
    clippy::disallowed_methods,
    reason = "the shell around the pure relay reads the clock here, and only here"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}
