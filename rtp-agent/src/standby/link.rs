//! The connection with the other agent, and the watch for the media addresses.
//!
//! TCP and TLS 1.3 with the credentials of relay control; both agents' certificates have the pair's name.
//! Of the two addresses in `[standby]` the smaller one dials, so that there is one connection. A new
//! connection replaces the one before.

use std::cmp::Ordering;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use admin::credentials::{Credentials, Files};
use anyhow::Context as _;
use rustls::ServerConfig;
use rustls::pki_types::ServerName;
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{info, warn};
use tunnel_io::address_watch::{AddressWatch, are_local};
use wire::relay_control::standby::PeerMessage;
use wire::relay_control::{
    FRAME_HEADER_LEN, Framer, MAX_FRAME_LEN, MessageError, decode, encode_frame,
};

use super::duty::Role;
use super::pair::{Pair, PairFault};
use crate::config::{Config, Control, Standby};
use crate::control_link::Dialler;
use crate::relay::Relay;
use crate::sockets::{SharedEngine, now};

/// How long a change may wait that no request has made, such as a source learnt from a packet.
const TICK: Duration = Duration::from_millis(10);
/// How often an agent that waits looks again.
const REVIEW: Duration = Duration::from_millis(100);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that may be in their handshake at once.
const HANDSHAKES: usize = 8;
/// How long a write may wait for the other end.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
const REDIAL: Duration = Duration::from_millis(500);
const READ_BUFFER: usize = 16 * 1024;

/// The [`Pair`] with the relay that it is about.
#[derive(Debug, Clone)]
pub struct SharedPair {
    pair: Arc<Mutex<Pair>>,
    engine: SharedEngine,
    active: Arc<watch::Sender<bool>>,
}

impl SharedPair {
    /// Not active yet.
    pub fn new(pair: Pair, engine: SharedEngine) -> Self {
        Self {
            pair: Arc::new(Mutex::new(pair)),
            engine,
            active: Arc::new(watch::Sender::new(false)),
        }
    }

    /// True while this agent is in charge.
    pub fn active(&self) -> watch::Receiver<bool> {
        self.active.subscribe()
    }

    /// Looks at the pair.
    pub fn look<T>(&self, at: impl FnOnce(&Pair) -> T) -> T {
        at(&self.pair.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Does something to the pair and its relay. The lock of the pair comes before that of the engine.
    fn with<T>(&self, work: impl FnOnce(&mut Pair, &mut Relay, u64, Instant) -> T) -> T {
        let mut pair = self.pair.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = microseconds_since_1970();
        let outcome = self
            .engine
            .with(|relay| work(&mut pair, relay, fresh, now()));
        let is_active = pair.is_active();
        self.active
            .send_if_modified(|active| std::mem::replace(active, is_active) != is_active);
        outcome
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the shell reads the wall clock: numbers of sessions never come again"
)]
fn microseconds_since_1970() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let since = since.map(|since| u64::try_from(since.as_micros()));
    since.ok().and_then(Result::ok).unwrap_or(0)
}

/// Follows the media addresses for ever.
pub async fn follow_addresses(shared: SharedPair, config: Config) -> anyhow::Result<()> {
    let mut watch = AddressWatch::open().context("cannot watch the addresses of this host")?;
    loop {
        // After the watch is open, or a change in between would be missed.
        match are_local(&config.media.addresses) {
            Ok(here) => shared.with(|pair, relay, fresh, now| {
                pair.handle_addresses(here, relay, fresh, now);
            }),
            Err(error) => warn!(%error, "cannot list the addresses of this host"),
        }
        loop {
            let waits = shared.look(|pair| match pair.role() {
                Role::Joining | Role::Fenced => true,
                Role::Standby | Role::Active => false,
            });
            tokio::select! {
                changed = watch.changed() => break changed.context("the watch for addresses")?,
                () = tokio::time::sleep(REVIEW), if waits => {
                    shared.with(|pair, relay, fresh, now| pair.review(relay, fresh, now));
                }
            }
        }
    }
}

/// Who dials whom.
pub enum Way {
    /// This agent dials.
    Dial(Dialler),
    /// This agent is dialled.
    Listen(TcpListener, TlsAcceptor),
}

/// Reads the certificates; listens where this agent is the one that is dialled.
pub async fn open(config: &Config, standby: &Standby) -> anyhow::Result<Way> {
    let control = config.control.as_ref().context("no [control]")?;
    if standby.listen.cmp(&standby.peer) == Ordering::Less {
        return Ok(Way::Dial(Dialler::new(control, &config.name)?));
    }
    let listener = TcpListener::bind(standby.listen).await.with_context(|| {
        format!(
            "cannot listen on {}; change listen in [standby]",
            standby.listen
        )
    })?;
    Ok(Way::Listen(listener, acceptor(control)?))
}

/// Keeps the connection with the other agent up, for ever.
pub async fn keep_up(way: Way, name: String, standby: Standby, shared: SharedPair) {
    match way {
        Way::Dial(dialler) => dial_forever(&dialler, standby.peer, &shared).await,
        Way::Listen(listener, acceptor) => {
            let (sender, streams) = mpsc::channel(1);
            tokio::join!(
                accept_forever(listener, acceptor, name, sender),
                serve_latest(streams, &shared)
            );
        }
    }
}

async fn dial_forever(dialler: &Dialler, peer: SocketAddr, shared: &SharedPair) {
    // Of attempts in a row only the first one that fails is worth a line.
    let mut failed = false;
    loop {
        let dialled = tokio::time::timeout(HANDSHAKE_TIMEOUT, dialler.dial(peer)).await;
        failed = match dialled {
            Ok(Ok(stream)) => {
                serve(stream, shared).await;
                false
            }
            Ok(Err(error)) if !failed => {
                warn!(%peer, %error, "cannot reach the other agent");
                true
            }
            Err(_) if !failed => {
                warn!(%peer, "the other agent does not answer");
                true
            }
            Ok(Err(_)) | Err(_) => true,
        };
        tokio::time::sleep(REDIAL).await;
    }
}

async fn accept_forever(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    name: String,
    sender: mpsc::Sender<TlsStream<TcpStream>>,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "standby: accept failed");
                tokio::time::sleep(REDIAL).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&handshakes).try_acquire_owned() else {
            continue;
        };
        let (acceptor, name, sender) = (acceptor.clone(), name.clone(), sender.clone());
        tokio::spawn(async move {
            let greeted = tokio::time::timeout(HANDSHAKE_TIMEOUT, greet(stream, &acceptor, &name));
            match greeted.await {
                Ok(Ok(stream)) => drop(sender.send(stream).await),
                Ok(Err(error)) => warn!(%from, error = %format!("{error:#}"), "standby: refused"),
                Err(_) => warn!(%from, "standby: the handshake took too long"),
            }
            drop(permit);
        });
    }
}

/// The handshake; the other end must be of this pair.
async fn greet(
    stream: TcpStream,
    acceptor: &TlsAcceptor,
    name: &str,
) -> anyhow::Result<TlsStream<TcpStream>> {
    stream.set_nodelay(true)?;
    let stream = acceptor.accept(stream).await?;
    let certificates = stream.get_ref().1.peer_certificates();
    let certificate = certificates.and_then(<[_]>::first);
    let certificate = certificate.context("no certificate")?;
    let name = ServerName::try_from(name.to_owned())?;
    webpki::EndEntityCert::try_from(certificate)?
        .verify_is_valid_for_subject_name(&name)
        .context("its certificate does not have the name of this pair")?;
    Ok(stream)
}

async fn serve_latest(mut streams: mpsc::Receiver<TlsStream<TcpStream>>, shared: &SharedPair) {
    let mut next = streams.recv().await;
    while let Some(stream) = next {
        next = tokio::select! {
            () = serve(stream, shared) => streams.recv().await,
            newer = streams.recv() => newer,
        };
    }
}

/// Carries messages until the connection ends.
async fn serve<S: AsyncRead + AsyncWrite>(stream: S, shared: &SharedPair) {
    info!("standby: connected with the other agent");
    shared.with(|pair, _, _, now| pair.handle_connected(now));
    let ended = carry(stream, shared).await;
    if matches!(ended, Ended::Fault(_) | Ended::BadFrame) {
        shared.with(|pair, _, _, _| pair.handle_fault());
    }
    warn!(%ended, "standby: the connection with the other agent is down");
    shared.with(|pair, relay, fresh, now| pair.handle_disconnected(relay, fresh, now));
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{0}")]
    Fault(#[from] PairFault),
    #[error("bad frame")]
    BadFrame,
    #[error("closed by the other agent")]
    Closed,
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("the other agent does not read")]
    DoesNotRead,
}

async fn carry<S: AsyncRead + AsyncWrite>(stream: S, shared: &SharedPair) -> Ended {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut framer = Framer::default();
    let mut buffer = vec![0; READ_BUFFER];
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        if let Err(ended) = write_waiting(&mut writer, shared).await {
            return ended;
        }
        let done = tokio::select! {
            read = reader.read(&mut buffer) => match read {
                Ok(0) => Err(Ended::Closed),
                Ok(length) => take_in(&mut framer, &buffer[..length], shared),
                Err(error) => Err(error.into()),
            },
            _ = tick.tick() => shared
                .with(|pair, relay, fresh, now| pair.handle_timeout(relay, fresh, now))
                .map_err(Into::into),
            () = shared.engine.news() => Ok(()),
        };
        if let Err(ended) = done {
            return ended;
        }
    }
}

/// Everything that there is to say, some frames at a time.
async fn write_waiting(
    writer: &mut (impl AsyncWrite + Unpin),
    shared: &SharedPair,
) -> Result<(), Ended> {
    loop {
        let mut bytes = Vec::new();
        while bytes.len() < MAX_FRAME_LEN
            && let Some(message) = shared.with(|pair, relay, _, now| pair.poll_message(relay, now))
        {
            bytes.extend(encode_frame(&message).unwrap_or_default());
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let written = async {
            writer.write_all(&bytes).await?;
            writer.flush().await
        };
        match tokio::time::timeout(WRITE_TIMEOUT, written).await {
            Ok(written) => written?,
            Err(_) => return Err(Ended::DoesNotRead),
        }
    }
}

fn take_in(framer: &mut Framer, bytes: &[u8], shared: &SharedPair) -> Result<(), Ended> {
    const _: () = assert!(READ_BUFFER <= MAX_FRAME_LEN + FRAME_HEADER_LEN);
    framer.push(bytes).map_err(|_| Ended::BadFrame)?;
    while let Some(frame) = framer.next_frame().map_err(|_| Ended::BadFrame)? {
        match decode::<PeerMessage>(frame) {
            Ok(message) => shared
                .with(|pair, relay, fresh, now| pair.handle_message(message, relay, fresh, now))?,
            Err(error @ (MessageError::UnknownMessage(_) | MessageError::Malformed(_))) => {
                warn!(%error, "standby: a message that this version does not understand");
                shared.with(|pair, _, _, now| pair.handle_not_understood(now));
            }
            Err(MessageError::NotAMessage | MessageError::TrailingBytes) => {
                return Err(Ended::BadFrame);
            }
        }
    }
    Ok(())
}

fn acceptor(control: &Control) -> anyhow::Result<TlsAcceptor> {
    let files = Files {
        certificate: &control.certificate,
        private_key: &control.private_key,
        ca: &control.ca,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let credentials = Credentials::load(&files, &provider)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(
        Arc::new(credentials.authorities),
        Arc::clone(&provider),
    )
    .build()
    .context("control.ca cannot verify client certificates")?;
    let tls = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(credentials.certificates, credentials.private_key)?;
    Ok(TlsAcceptor::from(Arc::new(tls)))
}

/// Does the work again and again while this agent is in charge, and drops it when it is not.
pub async fn while_active<F: Future<Output = ()>>(
    mut active: watch::Receiver<bool>,
    mut work: impl FnMut() -> F,
    stopped: impl Fn(),
) {
    while active.wait_for(|active| *active).await.is_ok() {
        tokio::select! {
            () = work() => {}
            _ = active.wait_for(|active| !*active) => stopped(),
        }
    }
    // The sender is part of what lives as long as the program.
    std::future::pending().await
}
