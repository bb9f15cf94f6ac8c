//! Messages in and out of a stream that must not fall silent.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};
use wire::core_link::{CoreMessage, Hello};
use wire::relay_control::{Framer, MAX_FRAME_LEN, MessageError, decode, encode_frame};

use super::{Ended, HANDSHAKE_TIMEOUT, HEARTBEAT, LOST, QUIET, Shared, WRITE_TIMEOUT};
use crate::core_link::unheard::Unheard;
use crate::metrics::event;

/// How much later than it should a timer fires on a busy machine.
const STOOD_STILL: Duration = Duration::from_millis(100);
const READ_BUFFER: usize = 16 * 1024;

/// What a link goes over.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// How a link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    /// As it should be.
    Well,
    /// One of its ends has heard nothing for [`QUIET`].
    Quiet,
    /// It has ended.
    Over,
}

/// The reading end.
pub(super) struct Reader<R> {
    stream: R,
    framer: Framer,
    buffer: Vec<u8>,
    /// How long a silence ends it.
    lost: Duration,
    /// Who takes the messages says when it is well again.
    health: watch::Sender<Health>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(super) fn new(stream: R) -> Self {
        Self {
            stream,
            framer: Framer::default(),
            buffer: vec![0; READ_BUFFER],
            lost: LOST,
            health: watch::Sender::new(Health::Well),
        }
    }

    pub(super) fn health(&self) -> watch::Sender<Health> {
        self.health.clone()
    }

    pub(super) async fn hello(&mut self, shared: &Shared) -> Result<Hello, Ended> {
        // A way that is only made ready says nothing until it is needed.
        self.lost = HANDSHAKE_TIMEOUT;
        let first = timeout(HANDSHAKE_TIMEOUT, self.next(shared)).await;
        self.lost = LOST;
        let CoreMessage::Hello { hello } = first.unwrap_or(Err(Ended::Silent))? else {
            return Err(Ended::NoHello);
        };
        // A later build speaks this version too, for one release.
        if hello.version == 0 {
            return Err(Ended::Version(hello.version));
        }
        if hello.owner == shared.hello.owner {
            return Err(Ended::SameOwner(hello.owner));
        }
        Ok(hello)
    }

    /// The next message that this build knows.
    pub(super) async fn next(&mut self, shared: &Shared) -> Result<CoreMessage, Ended> {
        loop {
            while let Some(frame) = self.framer.next_frame().map_err(|_| Ended::BadFrame)? {
                match decode::<CoreMessage>(frame) {
                    Ok(message) => return Ok(message),
                    // The frames are whole, the next may be good.
                    Err(MessageError::UnknownMessage(_) | MessageError::Malformed(_)) => {
                        let skipped = event("skipped_not_understood");
                        shared.metrics.core_link.get_or_create(&skipped).inc();
                    }
                    Err(MessageError::NotAMessage | MessageError::TrailingBytes) => {
                        return Err(Ended::BadFrame);
                    }
                }
            }
            let length = self.read().await?;
            let pushed = self.framer.push(&self.buffer[..length]);
            pushed.map_err(|_| Ended::BadFrame)?;
        }
    }

    async fn read(&mut self) -> Result<usize, Ended> {
        let begun = Instant::now();
        let read = match timeout(QUIET, self.stream.read(&mut self.buffer)).await {
            Ok(read) => read,
            Err(_) => {
                set(&self.health, Health::Quiet);
                let rest = self.lost.saturating_sub(QUIET);
                let read = timeout(rest, self.stream.read(&mut self.buffer)).await;
                read.map_err(|_| Ended::Silent)?
            }
        };
        match read? {
            0 => Err(Ended::Closed),
            // It was there in time, and we were not: the other end has given us up, and says it again if it still matters.
            _ if begun.elapsed() > self.lost + STOOD_STILL => Err(Ended::StoodStill),
            length => Ok(length),
        }
    }
}

pub(super) fn set(health: &watch::Sender<Health>, to: Health) {
    health.send_if_modified(|health| std::mem::replace(health, to) != to);
}

pub(super) async fn write_frame(
    writer: &mut (impl AsyncWrite + Unpin),
    message: &CoreMessage,
) -> Result<(), Ended> {
    write_bytes(writer, &encode_frame(message).unwrap_or_default()).await
}

async fn write_bytes(writer: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<(), Ended> {
    let written = async {
        writer.write_all(bytes).await?;
        writer.flush().await
    };
    match timeout(WRITE_TIMEOUT, written).await {
        Ok(written) => Ok(written?),
        Err(_) => Err(Ended::DoesNotRead),
    }
}

fn beat() -> Interval {
    let mut beat = interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beat
}

/// What a link that speaks has to say.
pub(super) struct Speech<'a> {
    /// Of the worker: SIP.
    pub(super) outgoing: &'a mut mpsc::Receiver<CoreMessage>,
    /// Where it is kept until it was heard.
    pub(super) unheard: &'a Mutex<Unheard>,
    /// The number of the first one that is to be said.
    pub(super) next: u64,
    /// The other end says what it has heard.
    pub(super) acknowledged: bool,
    /// Our connections.
    pub(super) told: mpsc::Receiver<CoreMessage>,
}

impl Speech<'_> {
    /// What waits, as much as there is in one write, and a heartbeat when nothing has been written for so long.
    pub(super) async fn write_all(mut self, mut writer: impl AsyncWrite + Unpin) -> Ended {
        let mut beat = beat();
        loop {
            let (kept, next) = lock(self.unheard).from(self.next, MAX_FRAME_LEN);
            let bytes = if !kept.is_empty() {
                kept
            } else {
                tokio::select! {
                    message = self.outgoing.recv() => match message {
                        Some(message) => {
                            self.keep(&message);
                            continue;
                        }
                        None => return Ended::NobodyListens,
                    },
                    message = self.told.recv() => match message {
                        Some(message) => self.all_told(&message),
                        None => return Ended::NobodyListens,
                    },
                    _ = beat.tick() => encode_frame(&CoreMessage::Heartbeat).unwrap_or_default(),
                }
            };
            if let Err(ended) = write_bytes(&mut writer, &bytes).await {
                return ended;
            }
            self.next = next;
            if !self.acknowledged {
                lock(self.unheard).heard(next);
            }
            beat.reset();
        }
    }

    /// This one and those behind it. One that is too long for a frame is lost, and its sender repeats it or
    /// gives up.
    fn keep(&mut self, first: &CoreMessage) {
        let mut unheard = lock(self.unheard);
        let mut octets = 0;
        let mut keep = |message: &CoreMessage| {
            if let Ok(frame) = encode_frame(message) {
                octets += frame.len();
                unheard.push(frame, is_provisional(message));
            }
            octets < MAX_FRAME_LEN
        };
        let mut room = keep(first);
        while room && let Ok(message) = self.outgoing.try_recv() {
            room = keep(&message);
        }
    }

    fn all_told(&mut self, first: &CoreMessage) -> Vec<u8> {
        let mut bytes = encode_frame(first).unwrap_or_default();
        while bytes.len() < MAX_FRAME_LEN
            && let Ok(message) = self.told.try_recv()
        {
            bytes.extend(encode_frame(&message).unwrap_or_default());
        }
        bytes
    }
}

/// What the end that hears says: how much it has heard, and at once when it hears nothing.
pub(super) async fn acknowledge(
    mut writer: impl AsyncWrite + Unpin,
    mut health: watch::Receiver<Health>,
    count: impl Fn() -> u64,
) -> Ended {
    let mut beat = beat();
    let mut said = None;
    loop {
        tokio::select! {
            _ = beat.tick() => {}
            Ok(()) = health.changed() => {}
        }
        let silent = *health.borrow_and_update() == Health::Quiet;
        let count = count();
        let message = if silent || said != Some(count) {
            said = Some(count);
            CoreMessage::Heard { count, silent }
        } else {
            CoreMessage::Heartbeat
        };
        if let Err(ended) = write_frame(&mut writer, &message).await {
            return ended;
        }
        beat.reset();
    }
}

/// A response that came in here and that others will follow.
fn is_provisional(message: &CoreMessage) -> bool {
    matches!(message, CoreMessage::Received { message, .. } if message.starts_with(b"SIP/2.0 1"))
}

pub(super) fn lock(unheard: &Mutex<Unheard>) -> MutexGuard<'_, Unheard> {
    unheard.lock().unwrap_or_else(PoisonError::into_inner)
}
