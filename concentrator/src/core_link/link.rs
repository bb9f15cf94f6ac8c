//! One connection with another concentrator, and how it is kept up.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use admin::credentials::Credentials;
use anyhow::Context as _;
use rustls::pki_types::ServerName;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ServerConfig};
use sip::cookie::Owner;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tracing::{info, warn};
use wire::core_link::{CoreMessage, Hello, VERSION};
use wire::relay_control::{Framer, MAX_FRAME_LEN, MessageError, decode, encode_frame};

use super::connections::{ConnectionMap, Telling};
use super::{Outlet, PeerInput};
use crate::config::CoreLink;
use crate::metrics::{Metrics, event};

/// How often both ends of a link show that they live.
pub const HEARTBEAT: Duration = Duration::from_millis(100);
/// A link whose other end has said nothing for so long is down.
pub const LOST: Duration = Duration::from_millis(400);

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that may be in their handshake at once.
const HANDSHAKES: usize = 16;
/// How long a write may wait for the other end.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);
const REDIAL: Duration = Duration::from_millis(500);
const READ_BUFFER: usize = 16 * 1024;

/// What every link needs.
#[derive(Debug, Clone)]
struct Shared {
    hello: Hello,
    inputs: mpsc::Sender<PeerInput>,
    map: Arc<ConnectionMap>,
    metrics: Arc<Metrics>,
}

/// Listens and dials; the links come up and go down by themselves.
pub async fn start(
    config: &CoreLink,
    name: &str,
    owner: Owner,
    map: &Arc<ConnectionMap>,
    inputs: mpsc::Sender<PeerInput>,
    metrics: &Arc<Metrics>,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let (connector, acceptor) = tls(config)?;
    let listener = TcpListener::bind(config.listen).await.with_context(|| {
        format!(
            "cannot listen on {}; change listen in [core_link]",
            config.listen
        )
    })?;
    let shared = Shared {
        hello: Hello {
            version: VERSION,
            name: name.to_owned(),
            owner: owner.0,
            heartbeat_ms: HEARTBEAT.as_millis() as u32,
            software: concat!("sipcast-concentrator ", env!("CARGO_PKG_VERSION")).to_owned(),
        },
        inputs,
        map: Arc::clone(map),
        metrics: Arc::clone(metrics),
    };
    let names = config.peers.iter().map(|peer| peer.name.clone()).zip(0..);
    let names: Arc<HashMap<String, usize>> = Arc::new(names.collect());
    let accepting = accept_forever(listener, acceptor, names, shared.clone());
    tasks.spawn(async move {
        accepting.await;
        anyhow::bail!("the core link's listener ended")
    });
    for (place, peer) in config.peers.iter().enumerate() {
        let name = ServerName::try_from(peer.name.clone())?;
        let dialling = dial_forever(connector.clone(), name, peer.address, place, shared.clone());
        tasks.spawn(async move {
            dialling.await;
            anyhow::bail!("a core link's dialler ended")
        });
    }
    Ok(())
}

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("closed by the other end")]
    Closed,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("nothing was heard for {} ms", LOST.as_millis())]
    Silent,
    #[error("the other end does not read")]
    DoesNotRead,
    #[error("it could not follow our connections, and begins anew")]
    Overrun,
    #[error("bad frame")]
    BadFrame,
    #[error("no Hello at the beginning")]
    NoHello,
    #[error("it speaks version {0}, and this build speaks 1 to {VERSION}")]
    Version(u16),
    #[error("it calls itself {0:?}, which its certificate or [core_link] does not")]
    WrongName(String),
    #[error("both have drawn the number {0} for their cookies; start one of the two again")]
    SameOwner(u16),
    #[error("the worker has ended")]
    NobodyListens,
}

async fn dial_forever(
    connector: TlsConnector,
    name: ServerName<'static>,
    address: SocketAddr,
    peer: usize,
    shared: Shared,
) {
    // Of attempts in a row only the first one that fails is worth a line, and every link that ends.
    let mut failed = false;
    loop {
        let dial = async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            connector.connect(name.clone(), stream).await
        };
        let dialled = timeout(HANDSHAKE_TIMEOUT, dial).await;
        let ended = match dialled {
            Ok(Ok(stream)) => {
                let up = || failed = false;
                speak(stream, peer, &name, &shared, up).await
            }
            Ok(Err(error)) => error.into(),
            Err(_) => Ended::Silent,
        };
        if !std::mem::replace(&mut failed, true) {
            warn!(peer = %name.to_str(), %address, %ended, "core link down");
        }
        tokio::time::sleep(REDIAL).await;
    }
}

/// Our own connection: everything that there is to say goes over it. Ends with the connection.
async fn speak<S: AsyncRead + AsyncWrite>(
    stream: S,
    peer: usize,
    name: &ServerName<'_>,
    shared: &Shared,
    is_up: impl FnOnce(),
) -> Ended {
    let (reader, mut writer) = tokio::io::split(stream);
    let mut reader = Reader::new(reader);
    let greeted = async {
        let hello = shared.hello.clone();
        write_frame(&mut writer, &CoreMessage::Hello { hello }).await?;
        reader.hello(shared).await
    };
    let theirs = match greeted.await {
        Ok(theirs) => theirs,
        Err(ended) => return ended,
    };
    if theirs.name != name.to_str() {
        return Ended::WrongName(theirs.name);
    }
    is_up();
    let owner = Owner(theirs.owner);
    info!(
        peer = theirs.name,
        owner = owner.0,
        software = theirs.software,
        "core link up"
    );
    let (outlet, outgoing) = Outlet::new();
    let overrun = Arc::clone(&outlet.overrun);
    let _told = shared.map.tell(outlet.clone());
    let up = PeerInput::Up {
        peer,
        owner,
        outlet,
    };
    if shared.inputs.send(up).await.is_err() {
        return Ended::NobodyListens;
    }
    let ended = tokio::select! {
        ended = reader.skip_all() => ended,
        ended = write_all(writer, outgoing) => ended,
        () = overrun.notified() => Ended::Overrun,
    };
    let down = PeerInput::Down { peer };
    match shared.inputs.send(down).await {
        Ok(()) => ended,
        Err(_) => Ended::NobodyListens,
    }
}

async fn accept_forever(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    names: Arc<HashMap<String, usize>>,
    shared: Shared,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    // One that is refused dials again and again; a line says why when it is another one, or another reason.
    let last_refused = Arc::new(Mutex::new(None));
    let mut served = JoinSet::new();
    loop {
        while served.try_join_next().is_some() {}
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "core link: accept failed");
                tokio::time::sleep(REDIAL).await;
                continue;
            }
        };
        let refused = |why| shared.metrics.core_link.get_or_create(&event(why)).inc();
        let Ok(permit) = Arc::clone(&handshakes).try_acquire_owned() else {
            refused("refused_too_many_handshakes");
            continue;
        };
        let (acceptor, names, shared) = (acceptor.clone(), Arc::clone(&names), shared.clone());
        let last_refused = Arc::clone(&last_refused);
        served.spawn(async move {
            let greeted = timeout(HANDSHAKE_TIMEOUT, greet(stream, &acceptor, &names)).await;
            drop(permit);
            let ended = match greeted {
                Ok(Ok((stream, peer, name))) => listen(stream, peer, &name, &shared).await,
                Ok(Err(error)) => {
                    let refused = shared
                        .metrics
                        .core_link
                        .get_or_create_owned(&event("refused"));
                    refused.inc();
                    let refusal = Some((from.ip(), format!("{error:#}")));
                    let lock = last_refused.lock();
                    let mut last = lock.unwrap_or_else(PoisonError::into_inner);
                    if *last != refusal {
                        let error = refusal.as_ref().map(|(_, error)| error.as_str());
                        warn!(%from, error, "core link: refused");
                        *last = refusal;
                    }
                    return;
                }
                Err(_) => Ended::Silent,
            };
            warn!(%from, %ended, "core link: a peer's connection is over");
        });
    }
}

/// The handshake; the other end's certificate must have a peer's name.
async fn greet(
    stream: TcpStream,
    acceptor: &TlsAcceptor,
    names: &HashMap<String, usize>,
) -> anyhow::Result<(tokio_rustls::server::TlsStream<TcpStream>, usize, String)> {
    stream.set_nodelay(true)?;
    let stream = acceptor.accept(stream).await?;
    let certificates = stream.get_ref().1.peer_certificates();
    let certificate = certificates.and_then(<[_]>::first);
    let certificate = webpki::EndEntityCert::try_from(certificate.context("no certificate")?)?;
    let known = certificate
        .valid_dns_names()
        .find_map(|name| Some((*names.get(name)?, name.to_owned())));
    let (peer, name) = known.context("its certificate names no peer of [core_link]")?;
    Ok((stream, peer, name))
}

/// A peer's connection: what it says is heard. Ends with the connection.
async fn listen<S: AsyncRead + AsyncWrite>(
    stream: S,
    peer: usize,
    name: &str,
    shared: &Shared,
) -> Ended {
    let (reader, mut writer) = tokio::io::split(stream);
    let mut reader = Reader::new(reader);
    let greeted = async {
        let theirs = reader.hello(shared).await?;
        if theirs.name != name {
            return Err(Ended::WrongName(theirs.name));
        }
        let hello = shared.hello.clone();
        write_frame(&mut writer, &CoreMessage::Hello { hello }).await
    };
    if let Err(ended) = greeted.await {
        return ended;
    }
    let telling = shared.map.listen_to(peer);
    let hear = async {
        loop {
            match reader.next(shared).await {
                Ok(message) => {
                    if let Err(ended) = heard(message, peer, &telling, shared).await {
                        return ended;
                    }
                }
                Err(ended) => return ended,
            }
        }
    };
    // Only for the heartbeats.
    let (_nobody, nothing) = mpsc::channel(1);
    tokio::select! {
        ended = hear => ended,
        ended = write_all(writer, nothing) => ended,
    }
}

async fn heard(
    message: CoreMessage,
    peer: usize,
    telling: &Telling,
    shared: &Shared,
) -> Result<(), Ended> {
    match message {
        CoreMessage::Opened { connections } => {
            if !telling.opened(&connections) {
                let full = event("connections_of_peer_full");
                shared.metrics.core_link.get_or_create(&full).inc();
            }
        }
        CoreMessage::Closed { connections } => telling.closed(&connections),
        CoreMessage::Hello { .. } | CoreMessage::Heartbeat | CoreMessage::Complete => {}
        CoreMessage::Received { .. } | CoreMessage::Send { .. } | CoreMessage::Unsent { .. } => {
            let input = PeerInput::Message { peer, message };
            let sent = shared.inputs.send(input).await;
            return sent.map_err(|_| Ended::NobodyListens);
        }
    }
    Ok(())
}

/// Messages out of a stream that must not fall silent.
struct Reader<R> {
    stream: R,
    framer: Framer,
    buffer: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    fn new(stream: R) -> Self {
        Self {
            stream,
            framer: Framer::default(),
            buffer: vec![0; READ_BUFFER],
        }
    }

    async fn hello(&mut self, shared: &Shared) -> Result<Hello, Ended> {
        let first = timeout(HANDSHAKE_TIMEOUT, self.next(shared)).await;
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
    async fn next(&mut self, shared: &Shared) -> Result<CoreMessage, Ended> {
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
            let read = timeout(LOST, self.stream.read(&mut self.buffer)).await;
            let length = read.map_err(|_| Ended::Silent)??;
            if length == 0 {
                return Err(Ended::Closed);
            }
            let pushed = self.framer.push(&self.buffer[..length]);
            pushed.map_err(|_| Ended::BadFrame)?;
        }
    }

    /// Heartbeats, until there are none.
    async fn skip_all(&mut self) -> Ended {
        loop {
            match timeout(LOST, self.stream.read(&mut self.buffer)).await {
                Ok(Ok(0)) => return Ended::Closed,
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return error.into(),
                Err(_) => return Ended::Silent,
            }
        }
    }
}

async fn write_frame(
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

/// What waits, as much as there is in one write, and a heartbeat when nothing has been written for so long.
async fn write_all(
    mut writer: impl AsyncWrite + Unpin,
    mut outgoing: mpsc::Receiver<CoreMessage>,
) -> Ended {
    let start = Instant::now() + HEARTBEAT;
    let mut beat = tokio::time::interval_at(start, HEARTBEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let message = tokio::select! {
            message = outgoing.recv() => match message {
                Some(message) => message,
                None => return Ended::NobodyListens,
            },
            _ = beat.tick() => CoreMessage::Heartbeat,
        };
        // One that is too long for a frame is lost, and its sender repeats it or gives up.
        let mut bytes = encode_frame(&message).unwrap_or_default();
        while bytes.len() < MAX_FRAME_LEN
            && let Ok(message) = outgoing.try_recv()
        {
            bytes.extend(encode_frame(&message).unwrap_or_default());
        }
        if let Err(ended) = write_bytes(&mut writer, &bytes).await {
            return ended;
        }
        beat.reset();
    }
}

fn tls(config: &CoreLink) -> anyhow::Result<(TlsConnector, TlsAcceptor)> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let credentials = Credentials::load(&config.files(), &provider)?;
    let authorities = Arc::new(credentials.authorities);
    let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(Arc::clone(&authorities))
        .with_client_auth_cert(
            credentials.certificates.clone(),
            credentials.private_key.clone_key(),
        )?;
    let verifier = WebPkiClientVerifier::builder_with_provider(authorities, Arc::clone(&provider))
        .build()
        .context("core_link.ca cannot verify certificates")?;
    let server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(credentials.certificates, credentials.private_key)?;
    let connector = TlsConnector::from(Arc::new(client));
    Ok((connector, TlsAcceptor::from(Arc::new(server))))
}

#[cfg(test)]
mod tests;
