//! Who dials, and what it has to say on the link that there is.
//!
//! A link goes directly over TCP, or over NATS ([`Detour`]) where the direct way does not come up or is lost.
//! Whichever TLS handshake is the first has it; only there Hello is said, since it makes every earlier link of
//! ours void. When a link is quiet, which is before it is lost, another way is made ready beside it, and one over NATS
//! is left as soon as the direct way is there. The worker hears nothing of that: it has one outlet as long as
//! there is some link to the same life of the peer, and what one link has not brought the next one does
//! ([`Unheard`]).

use std::future::pending;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustls::pki_types::ServerName;
use sip::cookie::Owner;
use tokio::io::{ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use tracing::{debug, info, warn};
use wire::core_link::{CoreMessage, Hello};

use super::stream::{Health, Reader, Speech, Stream, lock, set, write_frame};
use super::{Ended, HANDSHAKE_TIMEOUT, LOST, QUIET, REDIAL, Shared};
use crate::core_link::detour::Detour;
use crate::core_link::unheard::Unheard;
use crate::core_link::{By, Outlet, PeerInput};
use crate::metrics::event;

/// How long the other end's kernel may take to answer.
const CONNECT: Duration = Duration::from_secs(1);
/// How long the direct way alone is tried at first.
const HEAD_START: Duration = Duration::from_millis(200);
/// How long the way that follows a link that is over may take to be ready, before the peer is gone.
const GRACE: Duration = Duration::from_millis(100);
/// How long a way that is ready is held beside a link that stays quiet.
const HOLD: Duration = LOST.saturating_sub(QUIET);
/// For how long what a link has not brought is worth saying on the next one.
const WORTH_SAYING: Duration = Duration::from_secs(2);

/// One peer, as it is dialled.
pub(super) struct Dialler {
    pub(super) connector: TlsConnector,
    pub(super) name: ServerName<'static>,
    pub(super) address: SocketAddr,
    /// Its place in the configuration.
    pub(super) peer: usize,
    pub(super) shared: Shared,
    pub(super) detour: Option<Detour>,
    /// Of attempts in a row only the first one that fails is worth a line, and every link that ends.
    pub(super) failed: AtomicBool,
}

/// A connection whose TLS handshake is done.
struct Way {
    stream: Box<dyn Stream>,
    by: By,
}

/// A link whose both ends have said Hello.
struct Link {
    reader: Reader<ReadHalf<Box<dyn Stream>>>,
    writer: WriteHalf<Box<dyn Stream>>,
    theirs: Hello,
    by: By,
}

/// What is for one life of the peer.
struct Queue {
    owner: Owner,
    outlet: Outlet,
    outgoing: mpsc::Receiver<CoreMessage>,
    unheard: Mutex<Unheard>,
    /// The worker has the outlet.
    is_up: bool,
    down_at: Instant,
}

impl Queue {
    fn new(owner: Owner) -> Self {
        let (outlet, outgoing) = Outlet::new();
        Self {
            owner,
            outlet,
            outgoing,
            unheard: Mutex::default(),
            is_up: false,
            down_at: Instant::now(),
        }
    }

    fn goes_on(&self, owner: Owner) -> bool {
        self.owner == owner && (self.is_up || self.down_at.elapsed() < WORTH_SAYING)
    }

    /// Gives the number of the first message that is to be said, and how many of those there are already.
    fn begin(&self, heard: Option<u64>) -> (u64, u64) {
        let mut unheard = lock(&self.unheard);
        match heard {
            Some(heard) => unheard.begin(heard),
            None => unheard.clear(),
        }
        if !self.is_up {
            unheard.forget_provisional();
        }
        (unheard.first(), unheard.len() as u64)
    }
}

impl Dialler {
    /// Goes on until the worker ends.
    pub(super) async fn run(self) {
        let mut queue = None;
        let mut again = false;
        loop {
            let way = self.first(again).await;
            let ended = self.keep_up(way, &mut queue).await;
            if matches!(ended, Ended::NobodyListens) {
                return;
            }
            self.say("down", &ended);
            if let Some(queue) = &mut queue
                && std::mem::take(&mut queue.is_up)
            {
                queue.down_at = Instant::now();
                let down = PeerInput::Down { peer: self.peer };
                if self.shared.inputs.send(down).await.is_err() {
                    return;
                }
            }
            again = true;
        }
    }

    /// The first way: at once where there was none yet, the direct one a little later where one has just ended.
    async fn first(&self, again: bool) -> Way {
        let [direct, nats] = if again {
            [REDIAL, Duration::ZERO]
        } else {
            [Duration::ZERO, HEAD_START]
        };
        tokio::select! {
            way = self.reach(By::Direct, direct) => way,
            way = self.reach(By::Nats, nats) => way,
        }
    }

    /// Carries what there is to say, by this way and those that follow it without a pause. Gives why the last
    /// link has ended.
    async fn keep_up(&self, mut way: Way, queue: &mut Option<Queue>) -> Ended {
        loop {
            let by = way.by;
            let greeted = timeout(HANDSHAKE_TIMEOUT, self.greet(way)).await;
            let mut link = match greeted.unwrap_or(Err(Ended::Silent)) {
                Ok(link) => link,
                Err(ended) => return ended,
            };
            let Some(carried) = self.take_over(&link.theirs, by, queue).await else {
                return Ended::NobodyListens;
            };
            let health = link.reader.health();
            let mut next = pin!(self.next(by, health.subscribe()));
            let ended = tokio::select! {
                ended = link.carry(carried, &self.shared) => ended,
                next = &mut next => {
                    way = next;
                    continue;
                }
            };
            set(&health, Health::Over);
            if self.detour.is_none() {
                return ended;
            }
            match timeout(GRACE, &mut next).await {
                Ok(next) => way = next,
                Err(_) => return ended,
            }
            let peer = self.name.to_str();
            info!(%peer, by = by.name(), %ended, "core link: this way is over");
        }
    }

    /// What a link carries: what the one before has not brought, and what comes.
    async fn take_over<'a>(
        &self,
        theirs: &Hello,
        by: By,
        queue: &'a mut Option<Queue>,
    ) -> Option<(&'a mut Queue, u64)> {
        let owner = Owner(theirs.owner);
        let before = queue.take().filter(|queue| queue.goes_on(owner));
        let queue = queue.insert(before.unwrap_or_else(|| Queue::new(owner)));
        let count = |name, times| {
            let counter = self
                .shared
                .metrics
                .core_link
                .get_or_create_owned(&event(name));
            counter.inc_by(times);
        };
        let (next, again) = queue.begin(theirs.heard);
        count("said_again", again);
        queue.outlet.set_way(by);
        match by {
            By::Direct => {
                self.failed.store(false, Ordering::Relaxed);
                count("direct_up", 1);
            }
            By::Nats => count("detour_up", 1),
        }
        let peer = self.name.to_str();
        let software = &theirs.software;
        info!(%peer, owner = owner.0, by = by.name(), software, "core link up");
        if !std::mem::replace(&mut queue.is_up, true) {
            let up = PeerInput::Up {
                peer: self.peer,
                owner,
                outlet: queue.outlet.clone(),
            };
            self.shared.inputs.send(up).await.ok()?;
        }
        Some((queue, next))
    }

    /// What follows a link that goes this way: another one over NATS when it is over, or the direct one.
    async fn next(&self, by: By, mut health: watch::Receiver<Health>) -> Way {
        let beside = async {
            loop {
                if health.wait_for(|is| *is != Health::Well).await.is_err() {
                    return pending().await;
                }
                let ready = tokio::select! {
                    way = self.reach(By::Nats, Duration::ZERO) => way,
                    _ = health.wait_for(|is| *is == Health::Well) => continue,
                };
                let turned = timeout(HOLD, health.wait_for(|is| *is != Health::Quiet)).await;
                match turned {
                    // Quiet all along: it is over, though its end may not come through.
                    Err(_) => return ready,
                    Ok(Ok(is)) if *is == Health::Over => return ready,
                    Ok(_) => {}
                }
            }
        };
        match by {
            By::Direct => beside.await,
            By::Nats => tokio::select! {
                way = self.reach(By::Direct, REDIAL) => way,
                way = beside => way,
            },
        }
    }

    /// Tries until the peer is reached.
    async fn reach(&self, by: By, wait: Duration) -> Way {
        sleep(wait).await;
        loop {
            let reached = timeout(HANDSHAKE_TIMEOUT, self.dial(by)).await;
            match reached.unwrap_or(Err(Ended::Silent)) {
                Ok(stream) => return Way { stream, by },
                Err(ended) if by == By::Direct => self.say("not reached directly", &ended),
                Err(ended) => {
                    let peer = self.name.to_str();
                    debug!(%peer, %ended, "core link: not reached over NATS");
                }
            }
            sleep(REDIAL).await;
        }
    }

    fn say(&self, what: &str, ended: &Ended) {
        if !self.failed.swap(true, Ordering::Relaxed) {
            let (peer, address) = (self.name.to_str(), self.address);
            warn!(%peer, %address, %ended, "core link {what}");
        }
    }

    async fn dial(&self, by: By) -> Result<Box<dyn Stream>, Ended> {
        let name = self.name.clone();
        Ok(match (by, &self.detour) {
            (By::Direct, _) => {
                let connecting = timeout(CONNECT, TcpStream::connect(self.address));
                let stream = connecting.await.map_err(|_| Ended::NoConnection)??;
                stream.set_nodelay(true)?;
                Box::new(self.connector.connect(name, stream).await?)
            }
            (By::Nats, Some(detour)) => {
                let stream = detour.dial(&self.name.to_str()).await?;
                Box::new(self.connector.connect(name, stream).await?)
            }
            (By::Nats, None) => return pending().await,
        })
    }

    async fn greet(&self, way: Way) -> Result<Link, Ended> {
        let Way { stream, by } = way;
        let (reader, mut writer) = tokio::io::split(stream);
        let mut reader = Reader::new(reader);
        let hello = self.shared.hello.clone();
        write_frame(&mut writer, &CoreMessage::Hello { hello }).await?;
        let theirs = reader.hello(&self.shared).await?;
        if theirs.name != self.name.to_str() {
            return Err(Ended::WrongName(theirs.name));
        }
        set(&reader.health(), Health::Well);
        Ok(Link {
            reader,
            writer,
            theirs,
            by,
        })
    }
}

impl Link {
    /// Says what there is to say, until the link ends.
    async fn carry(&mut self, (queue, next): (&mut Queue, u64), shared: &Shared) -> Ended {
        let (telling, told) = Outlet::new();
        // The packets of our connections could not follow over NATS: a peer that sends none here resets them.
        let _told = (self.by == By::Direct).then(|| shared.map.tell(telling.clone()));
        let (unheard, health) = (&queue.unheard, self.reader.health());
        let hear = async {
            loop {
                let is = match self.reader.next(shared).await {
                    Ok(CoreMessage::Heard { count, silent }) => {
                        lock(unheard).heard(count);
                        match silent {
                            false => Health::Well,
                            true => Health::Quiet,
                        }
                    }
                    Ok(_) => Health::Well,
                    Err(ended) => return ended,
                };
                set(&health, is);
            }
        };
        let speech = Speech {
            outgoing: &mut queue.outgoing,
            unheard,
            next,
            acknowledged: self.theirs.heard.is_some(),
            told,
        };
        tokio::select! {
            ended = hear => ended,
            ended = speech.write_all(&mut self.writer) => ended,
            () = telling.overrun.notified() => Ended::Overrun,
        }
    }
}
