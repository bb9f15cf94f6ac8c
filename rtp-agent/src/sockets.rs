//! The moving set of media sockets, and the commands of the relay carried out.
//!
//! [`SharedEngine`] joins the pure [`Relay`] to its sockets and links. One lock guards it. Media have
//! threads of their own (`media_thread`), each of which waits for all ports of its sessions at once,
//! takes the lock to ask the relay about a round of packets, and receives and sends without it. Held
//! packets are sent under the lock, before the packet after them, because commands are carried out as
//! soon as there are any.
//!
//! There are two ways to have ports, [`MediaPorts`]: few sockets for all of them (`shared`), which needs
//! privileges, or a socket for each (`per_port`), which needs as many open files.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};
use tracing::{debug, error, warn};
use tunnel_io::media_port::PortPoller;
use wire::relay_control::{FromAgent, SideAddr};

use crate::fastpath::{FastPath, Figures};
use crate::ports::PortRange;
use crate::relay::{Command, ConcentratorId, Relay, RelayPort, SessionId};

mod four;
mod media_thread;
mod per_port;
mod shared;

pub(crate) use media_thread::MAX_PACKET;
use per_port::{OpenPorts, PerPortIntake};
pub(crate) use shared::PAIR_LIMIT;
pub use shared::SharedDrops;
use shared::{SharedIntake, SharedPorts};

/// How often the fast path's figures are read.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// Streams whose figures are read at once.
const SAMPLES: usize = 256;
/// Figures that are told are no older than this.
const FRESH: Duration = Duration::from_millis(200);

/// How media are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MediaThreads {
    /// How many threads, at least one.
    pub threads: usize,
    /// How long packets that come in quick succession may gather; zero: not at all.
    pub gather: Duration,
}

/// Where the ports are.
#[derive(Debug, Clone, Copy)]
pub struct Location<'a> {
    /// The media addresses.
    pub addresses: &'a [IpAddr],
    /// The ports of each.
    pub ports: PortRange,
    /// The addresses may not be on this host yet.
    pub freebind: bool,
}

/// How the media ports are had; clones are the same ports.
#[derive(Debug, Clone)]
pub struct MediaPorts(Way);

#[derive(Debug, Clone)]
enum Way {
    PerPort(Arc<Mutex<OpenPorts>>, Arc<[PortPoller]>),
    Shared(Arc<SharedPorts>),
}

impl MediaPorts {
    /// A socket for every port that is open.
    pub fn per_port(threads: usize, freebind: bool) -> io::Result<Self> {
        let pollers = (0..threads.max(1)).map(|_| PortPoller::new());
        let pollers: Arc<[PortPoller]> = pollers.collect::<io::Result<_>>()?;
        let ports = OpenPorts::new(Arc::clone(&pollers), freebind);
        Ok(Self(Way::PerPort(Arc::new(Mutex::new(ports)), pollers)))
    }

    /// Few sockets for all ports. An error says what of it is not possible here.
    pub fn shared(at: Location<'_>, threads: usize) -> anyhow::Result<Self> {
        let Location {
            addresses,
            ports,
            freebind,
        } = at;
        let shared = SharedPorts::open(addresses, ports, threads.max(1), freebind)?;
        Ok(Self(Way::Shared(Arc::new(shared))))
    }

    /// As in the configuration.
    pub const fn name(&self) -> &'static str {
        match self.0 {
            Way::PerPort(..) => "per-port",
            Way::Shared(_) => "shared",
        }
    }

    /// True where all ports share few sockets.
    pub const fn are_shared(&self) -> bool {
        matches!(self.0, Way::Shared(_))
    }

    /// How many sockets there are.
    pub fn counts(&self) -> SocketCounts {
        match &self.0 {
            Way::PerPort(ports, _) => lock(ports).counts(),
            Way::Shared(ports) => SocketCounts {
                open: ports.receivers() as u64,
                resting: 0,
            },
        }
    }

    /// What shared sockets have dropped; `None` where there are none.
    pub fn drops(&self) -> Option<SharedDrops> {
        match &self.0 {
            Way::PerPort(..) => None,
            Way::Shared(ports) => Some(ports.drops()),
        }
    }

    fn threads(&self) -> usize {
        match &self.0 {
            Way::PerPort(_, pollers) => pollers.len(),
            Way::Shared(ports) => ports.threads(),
        }
    }

    fn open(&self, session: SessionId, a: SideAddr, b: SideAddr) -> io::Result<()> {
        match &self.0 {
            Way::PerPort(ports, _) => lock(ports).open(session, a, b),
            Way::Shared(ports) => ports.open_session(session, a, b),
        }
    }

    fn close(&self, session: SessionId) {
        match &self.0 {
            Way::PerPort(ports, _) => lock(ports).close(session),
            Way::Shared(ports) => ports.close_session(session),
        }
    }

    /// False when the packet was not taken.
    fn send(&self, port: RelayPort, to: std::net::SocketAddr, bytes: &[u8]) -> bool {
        match &self.0 {
            Way::PerPort(ports, _) => {
                let ports = lock(ports);
                let socket = ports.socket(port);
                socket.is_none_or(|socket| socket.send(to, bytes).is_ok())
            }
            Way::Shared(ports) => ports.send(port, to, bytes),
        }
    }

    /// Runs a media thread, until the end.
    fn run(&self, engine: &SharedEngine, thread: usize) -> io::Result<()> {
        match &self.0 {
            Way::PerPort(ports, _) => media_thread::run(engine, PerPortIntake::new(ports, thread)),
            Way::Shared(ports) => media_thread::run(engine, SharedIntake::new(ports, thread)?),
        }
    }

    /// Ends all media threads.
    fn end(&self) -> io::Result<()> {
        match &self.0 {
            Way::PerPort(_, pollers) => pollers.iter().try_for_each(PortPoller::close),
            Way::Shared(ports) => ports.close(),
        }
    }
}

/// How many sockets there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SocketCounts {
    /// Of sessions and leases, or those that all of them share.
    pub open: u64,
    /// Kept for the next session with the same port.
    pub resting: u64,
}

/// The relay with its sockets and links, shared by tasks and threads.
#[derive(Debug, Clone)]
pub struct SharedEngine {
    core: Arc<Mutex<Core>>,
    ports: MediaPorts,
    gather: Duration,
    /// Wakes the timer when a deadline has come nearer.
    deadline_moved: Arc<Notify>,
    /// Wakes who tells the other agent of a pair.
    news: Arc<Notify>,
}

/// Packets that were dropped before or after the relay saw them, however the ports are had.
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
    ports: MediaPorts,
    links: Vec<Option<mpsc::Sender<FromAgent>>>,
    /// What the timer task sleeps towards.
    armed: Option<Instant>,
    drops: SocketDrops,
    fast: FastPath,
    /// When the figures of all offloaded streams were read.
    sampled_at: Option<Instant>,
}

impl SharedEngine {
    /// No port open, no link connected. `gather`: see [`MediaThreads`].
    pub fn new(relay: Relay, concentrators: usize, ports: MediaPorts, gather: Duration) -> Self {
        let core = Core {
            relay,
            ports: ports.clone(),
            links: (0..concentrators).map(|_| None).collect(),
            armed: None,
            drops: SocketDrops::default(),
            fast: FastPath::off(),
            sampled_at: None,
        };
        Self {
            core: Arc::new(Mutex::new(core)),
            ports,
            gather,
            deadline_moved: Arc::new(Notify::new()),
            news: Arc::new(Notify::new()),
        }
    }

    /// Does something to the relay and carries out what follows from it.
    pub fn with<T>(&self, work: impl FnOnce(&mut Relay) -> T) -> T {
        let mut core = self.lock();
        let outcome = work(&mut core.relay);
        core.perform();
        self.wake_tasks(&mut core);
        outcome
    }

    /// The same, with figures of offloaded streams that are no older than a fifth of a second.
    pub fn with_figures<T>(&self, work: impl FnOnce(&mut Relay) -> T) -> T {
        self.sample_all(FRESH);
        self.with(work)
    }

    /// Reads the figures of all offloaded streams, unless that was done no longer ago than this. The media
    /// threads have the lock in between.
    fn sample_all(&self, fresh: Duration) {
        let ports = {
            let mut core = self.lock();
            let now = now();
            let is_fresh = |at: Instant| now.saturating_duration_since(at) < fresh;
            if core.sampled_at.is_some_and(is_fresh) {
                return;
            }
            core.sampled_at = Some(now);
            core.fast.ports()
        };
        for ports in ports.chunks(SAMPLES) {
            let mut core = self.lock();
            for port in ports {
                core.sample(*port);
            }
        }
    }

    /// From now on this relays what needs no judgement.
    pub fn set_fast_path(&self, fast: FastPath) {
        let mut core = self.lock();
        let is_running = fast.is_running();
        core.fast = fast;
        core.relay.set_fast_path(is_running);
    }

    /// What the fast path does; `None` where there is none.
    pub fn fast_path_figures(&self) -> Option<Figures> {
        self.lock().fast.figures()
    }

    /// The fast path, for the status page.
    pub fn fast_path_status(&self) -> serde_json::Value {
        self.lock().fast.status()
    }

    /// Reads the fast path's figures once a second and tells it of the machine's devices, for as long as
    /// there is one.
    pub async fn run_fast_path(self) {
        let mut tick = tokio::time::interval(SAMPLE_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while self.lock().fast.is_running() {
            tick.tick().await;
            let links = tunnel_io::links::list();
            self.sample_all(Duration::ZERO);
            let mut core = self.lock();
            let is_somewhere = match links {
                Ok(links) => core.fast.look_at(&links),
                Err(error) => {
                    warn!(%error, "cannot list the network devices");
                    true
                }
            };
            drop(core);
            if !is_somewhere {
                break;
            }
        }
        self.with(|relay| relay.set_fast_path(false));
        std::future::pending().await
    }

    /// Waits until the other agent of a pair should be told something.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// What the sockets have dropped.
    pub fn drops(&self) -> SocketDrops {
        self.lock().drops
    }

    /// How its ports are had.
    pub const fn ports(&self) -> &MediaPorts {
        &self.ports
    }

    /// A connection is up; the relay's messages go to this sender, and dropping it ends the link.
    pub fn connect(&self, concentrator: ConcentratorId, sender: mpsc::Sender<FromAgent>) {
        if let Some(link) = self.lock().links.get_mut(concentrator.0) {
            *link = Some(sender);
        }
        self.with(|relay| relay.handle_connected(concentrator, now()));
    }

    /// The connection is gone.
    pub fn disconnect(&self, concentrator: ConcentratorId) {
        if let Some(link) = self.lock().links.get_mut(concentrator.0) {
            *link = None;
        }
        self.with(|relay| relay.handle_disconnected(concentrator, now()));
    }

    /// Fires the relay's deadlines, for ever.
    pub async fn run_timers(self) {
        loop {
            let deadline = {
                let mut core = self.lock();
                core.armed = core.relay.poll_timeout();
                core.armed
            };
            let due = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {
                    self.lock().sample_due();
                    self.with(|relay| relay.handle_timeout(now()));
                }
                () = self.deadline_moved.notified() => {}
            }
        }
    }

    /// Relays media in threads of their own, which end when this future is dropped; returns when one
    /// has ended before, which none should.
    pub async fn run_media(self) {
        let (alive, mut ended) = mpsc::channel(1);
        let _closing = Closing(self.ports.clone());
        for number in 0..self.ports.threads() {
            let (engine, ending) = (self.clone(), Ending(alive.clone()));
            let thread = std::thread::Builder::new().name(format!("media-{number}"));
            let started = thread.spawn(move || {
                let _ending = ending;
                if let Err(error) = engine.ports.run(&engine, number) {
                    error!(%error, "media cannot be waited for");
                }
            });
            if let Err(error) = started {
                error!(%error, "cannot start a media thread");
                return;
            }
        }
        ended.recv().await;
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        lock(&self.core)
    }

    /// After a change of the relay: a nearer deadline, something that the other agent should know.
    fn wake_tasks(&self, core: &mut Core) {
        let due = core.relay.poll_timeout();
        if due.is_some_and(|due| core.armed.is_none_or(|armed| due < armed)) {
            core.armed = due;
            self.deadline_moved.notify_one();
        }
        if core.relay.has_news() {
            self.news.notify_one();
        }
    }
}

/// Ends the media threads.
struct Closing(MediaPorts);

impl Drop for Closing {
    fn drop(&mut self) {
        if let Err(error) = self.0.end() {
            error!(%error, "a media thread does not end");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves things consistent enough to end calls in an orderly way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells that a media thread has ended, by a panic too.
struct Ending(mpsc::Sender<()>);

impl Drop for Ending {
    fn drop(&mut self) {
        // Full: another one has told it.
        let _told = self.0.try_send(());
    }
}

impl Core {
    fn sample(&mut self, port: RelayPort) {
        if let Some(carried) = self.fast.sample(port) {
            self.relay.handle_carried(port, &carried);
        }
    }

    fn sample_due(&mut self) {
        for port in self.relay.offloaded_and_due(now()) {
            self.sample(port);
        }
    }

    fn count_failed(&mut self, port: RelayPort) {
        self.drops.send_failed += 1;
        self.relay.handle_send_failed(port, 1);
    }

    /// Carries out commands until there are none.
    fn perform(&mut self) {
        while let Some(command) = self.relay.poll_command() {
            match command {
                Command::Open { session, a, b } => match self.ports.open(session, a, b) {
                    Ok(()) => self.relay.handle_opened(session, now()),
                    Err(error) => {
                        warn!(session = session.0, %error, "cannot open media ports");
                        self.relay.handle_open_failed(session, now());
                    }
                },
                Command::Close { session } => {
                    debug!(session = session.0, "closing media ports");
                    self.ports.close(session);
                }
                Command::Transmit { port, to, bytes } => {
                    if !self.ports.send(port, to, &bytes) {
                        self.count_failed(port);
                    }
                }
                Command::Offload {
                    port,
                    local,
                    exit,
                    route,
                } => {
                    if !self.fast.insert(port, local, exit, &route) {
                        self.relay.handle_not_offloaded(port, now());
                    }
                }
                Command::Recall { port } => {
                    if let Some(carried) = self.fast.remove(port) {
                        self.relay.handle_carried(port, &carried);
                    }
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
}

/// The clock of all IO here.
#[expect(
    clippy::disallowed_methods,
    reason = "the shell around the pure relay reads the clock here, and only here"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}
