//! The connections with other concentrators: those that come here, and who dials ([`dial`]).

use std::collections::HashMap;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use admin::credentials::Credentials;
use anyhow::Context as _;
use futures_util::StreamExt as _;
use rustls::pki_types::ServerName;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ServerConfig};
use sip::cookie::Owner;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tracing::warn;
use wire::core_link::{CoreMessage, Hello, VERSION};

use super::PeerInput;
use super::connections::{ConnectionMap, Telling};
use super::detour::{Detour, NoStream};
use super::unheard::{Ears, Hearing};
use crate::config::CoreLink;
use crate::metrics::{Metrics, event};

mod dial;
mod stream;

use dial::Dialler;
use stream::{Health, Reader, acknowledge, set, write_frame};

/// How often both ends of a link show that they live.
pub const HEARTBEAT: Duration = Duration::from_millis(100);
/// A link whose other end has said nothing for so long may be lost soon: another way is made ready.
const QUIET: Duration = Duration::from_millis(250);
/// A link whose other end has said nothing for so long is down.
pub const LOST: Duration = Duration::from_millis(400);

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that may be in their handshake at once.
const HANDSHAKES: usize = 16;
/// How long a write may wait for the other end.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);
const REDIAL: Duration = Duration::from_millis(500);

/// What every link needs.
#[derive(Debug, Clone)]
struct Shared {
    hello: Hello,
    inputs: mpsc::Sender<PeerInput>,
    map: Arc<ConnectionMap>,
    ears: Arc<Ears>,
    metrics: Arc<Metrics>,
}

/// What the links of a concentrator are made of.
#[derive(Debug)]
pub struct Parts<'a> {
    /// The peers, and who is believed.
    pub config: &'a CoreLink,
    /// This concentrator's name.
    pub name: &'a str,
    /// What its cookies and connections have.
    pub owner: Owner,
    /// Which connections there are.
    pub map: &'a Arc<ConnectionMap>,
    /// Where the worker hears of its peers.
    pub inputs: mpsc::Sender<PeerInput>,
    /// The way round, where there is one.
    pub detour: Option<Detour>,
    /// What is counted.
    pub metrics: &'a Arc<Metrics>,
}

/// Listens and dials; the links come up and go down by themselves.
pub async fn start(
    parts: Parts<'_>,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let Parts { config, name, .. } = parts;
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
            owner: parts.owner.0,
            heartbeat_ms: HEARTBEAT.as_millis() as u32,
            software: concat!("sipcast-concentrator ", env!("CARGO_PKG_VERSION")).to_owned(),
            heard: None,
        },
        inputs: parts.inputs,
        map: Arc::clone(parts.map),
        ears: Arc::new(Ears::new(config.peers.len())),
        metrics: Arc::clone(parts.metrics),
    };
    let names = config.peers.iter().map(|peer| peer.name.clone()).zip(0..);
    let acceptor = Acceptor {
        tls: acceptor,
        names: Arc::new(names.collect()),
        shared: shared.clone(),
        last_refused: Arc::default(),
    };
    if let Some(detour) = &parts.detour {
        let accepting = acceptor
            .clone()
            .accept_detours(detour.clone(), name.to_owned());
        tasks.spawn(async move {
            accepting.await;
            anyhow::bail!("the core link's listener on NATS ended")
        });
    }
    tasks.spawn(async move {
        acceptor.accept_direct(listener).await;
        anyhow::bail!("the core link's listener ended")
    });
    for (place, peer) in config.peers.iter().enumerate() {
        let dialler = Dialler {
            connector: connector.clone(),
            name: ServerName::try_from(peer.name.clone())?,
            address: peer.address,
            peer: place,
            shared: shared.clone(),
            detour: parts.detour.clone(),
            failed: AtomicBool::new(false),
        };
        tasks.spawn(async move {
            dialler.run().await;
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
    #[error("this program has stood still for longer than {} ms", LOST.as_millis())]
    StoodStill,
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
    #[error("the peer has come by another link")]
    Superseded,
    #[error("its host does not answer")]
    NoConnection,
    #[error("{0}")]
    NoStream(#[from] NoStream),
    #[error("the worker has ended")]
    NobodyListens,
}

/// Takes the connections of peers.
#[derive(Clone)]
struct Acceptor {
    tls: TlsAcceptor,
    /// Where each name is in the configuration.
    names: Arc<HashMap<String, usize>>,
    shared: Shared,
    /// One that is refused dials again and again; a line says why when it is another one, or another reason.
    last_refused: Arc<Mutex<Option<(String, String)>>>,
}

impl Acceptor {
    async fn accept_direct(self, listener: TcpListener) {
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
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
            let Ok(permit) = Arc::clone(&handshakes).try_acquire_owned() else {
                self.count("refused_too_many_handshakes");
                continue;
            };
            let acceptor = self.clone();
            served.spawn(async move {
                let stream = async move {
                    stream.set_nodelay(true)?;
                    Ok(stream)
                };
                acceptor.serve(stream, &from.ip().to_string(), permit).await;
            });
        }
    }

    /// Whoever may write to NATS can open as many as it likes; those who come directly have their own room.
    async fn accept_detours(self, detour: Detour, name: String) {
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
        let mut served = JoinSet::new();
        loop {
            match detour.listen(&name).await {
                Ok(mut opened) => {
                    while let Some(opening) = opened.next().await {
                        while served.try_join_next().is_some() {}
                        let Ok(permit) = Arc::clone(&handshakes).try_acquire_owned() else {
                            self.count("detour_refused_too_many_handshakes");
                            continue;
                        };
                        let (acceptor, detour) = (self.clone(), detour.clone());
                        served.spawn(async move {
                            let stream = async { Ok(detour.accept(&opening).await?) };
                            acceptor.serve(stream, "NATS", permit).await;
                        });
                    }
                }
                Err(error) => warn!(%error, "core link: nobody can come over NATS"),
            }
            tokio::time::sleep(REDIAL).await;
        }
    }

    /// One connection, until it ends.
    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
        self,
        stream: impl Future<Output = anyhow::Result<S>>,
        from: &str,
        permit: OwnedSemaphorePermit,
    ) {
        let greeted = timeout(HANDSHAKE_TIMEOUT, self.greet(stream)).await;
        drop(permit);
        let ended = match greeted {
            Ok(Ok((stream, peer, name))) => listen(stream, peer, &name, &self.shared).await,
            Ok(Err(error)) => return self.refuse(from, &format!("{error:#}")),
            Err(_) => Ended::Silent,
        };
        warn!(from, %ended, "core link: a peer's connection is over");
    }

    /// The handshake; the other end's certificate must have a peer's name.
    async fn greet<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: impl Future<Output = anyhow::Result<S>>,
    ) -> anyhow::Result<(tokio_rustls::server::TlsStream<S>, usize, String)> {
        let stream = self.tls.accept(stream.await?).await?;
        let certificates = stream.get_ref().1.peer_certificates();
        let certificate = certificates.and_then(<[_]>::first);
        let certificate = webpki::EndEntityCert::try_from(certificate.context("no certificate")?)?;
        let known = certificate
            .valid_dns_names()
            .find_map(|name| Some((*self.names.get(name)?, name.to_owned())));
        let (peer, name) = known.context("its certificate names no peer of [core_link]")?;
        Ok((stream, peer, name))
    }

    fn refuse(&self, from: &str, error: &str) {
        self.count("refused");
        let refusal = Some((from.to_owned(), error.to_owned()));
        let lock = self.last_refused.lock();
        let mut last = lock.unwrap_or_else(PoisonError::into_inner);
        if *last != refusal {
            warn!(from, error, "core link: refused");
            *last = refusal;
        }
    }

    fn count(&self, name: &'static str) {
        self.shared
            .metrics
            .core_link
            .get_or_create(&event(name))
            .inc();
    }
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
    let health = reader.health();
    let greeted = async {
        let theirs = reader.hello(shared).await?;
        if theirs.name != name {
            return Err(Ended::WrongName(theirs.name));
        }
        let begun = shared.ears.begin(peer, theirs.owner);
        let (hearing, count) = begun.ok_or(Ended::Closed)?;
        let mut hello = shared.hello.clone();
        hello.heard = Some(count);
        write_frame(&mut writer, &CoreMessage::Hello { hello }).await?;
        Ok(hearing)
    };
    let hearing = match greeted.await {
        Ok(hearing) => hearing,
        Err(ended) => return ended,
    };
    let telling = shared.map.listen_to(peer);
    let hear = async {
        loop {
            match reader.next(shared).await {
                Ok(message) => {
                    set(&health, Health::Well);
                    if let Err(ended) = heard(message, peer, hearing, &telling, shared).await {
                        return ended;
                    }
                }
                Err(ended) => return ended,
            }
        }
    };
    tokio::select! {
        ended = hear => ended,
        ended = acknowledge(writer, health.subscribe(), || shared.ears.count(peer)) => ended,
    }
}

async fn heard(
    message: CoreMessage,
    peer: usize,
    hearing: Hearing,
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
        CoreMessage::Hello { .. }
        | CoreMessage::Heartbeat
        | CoreMessage::Complete
        | CoreMessage::Heard { .. } => {}
        // One that comes twice, or by a link that another has followed, does no harm.
        CoreMessage::Record { .. } => {
            let sent = shared.inputs.send(PeerInput::Message { peer, message });
            sent.await.map_err(|_| Ended::NobodyListens)?;
        }
        CoreMessage::Received { .. } | CoreMessage::Send { .. } | CoreMessage::Unsent { .. } => {
            // What is counted is handed on: the wait for room may be cut short.
            let room = shared.inputs.reserve().await;
            let room = room.map_err(|_| Ended::NobodyListens)?;
            if !shared.ears.hear(hearing) {
                return Err(Ended::Superseded);
            }
            room.send(PeerInput::Message { peer, message });
        }
    }
    Ok(())
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
