//! The listener that the rtp-agents dial: TLS 1.3, both ends with a certificate.
//!
//! Each link has one task. What an agent says goes to the worker as a [`RelayInput`]; what the
//! worker says goes through the sender that came with [`RelayInput::Connected`]. Dropping that
//! sender closes the link. Who an agent is, its certificate says: the first of its DNS names that
//! the configuration knows.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use admin::credentials::Credentials;
use anyhow::Context;
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};
use wire::relay_control::{Framer, FromAgent, MessageError, ToAgent, decode, encode_frame};

use super::pool::LinkId;
use crate::config::RelayControl;
use crate::metrics::Metrics;

/// Messages that may wait for an agent that reads slowly; past that the link is closed.
const QUEUE: usize = 1024;

/// Connections that may be in their handshake at once.
const HANDSHAKES: usize = 64;

/// A handshake that takes longer is given up.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a write may wait for the agent.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// What the worker hears of relays.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "statistics are large and rare; the rest is small"
)]
pub enum RelayInput {
    /// An agent has connected.
    Connected {
        /// The link.
        link: LinkId,
        /// The agent's name, from its certificate.
        agent: String,
        /// What the worker wants to say; dropping it closes the link.
        sender: mpsc::Sender<ToAgent>,
    },
    /// An agent has said something.
    Message {
        /// The link.
        link: LinkId,
        /// What it said.
        message: FromAgent,
    },
    /// The link is gone.
    Closed {
        /// The link.
        link: LinkId,
    },
}

/// The bound listener.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    acceptor: Acceptor,
    names: Arc<HashSet<String>>,
    inputs: mpsc::Sender<RelayInput>,
    metrics: Arc<Metrics>,
    handshake_timeout: Duration,
}

#[derive(Clone)]
struct Acceptor(TlsAcceptor);

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acceptor")
    }
}

impl Server {
    /// Reads the certificates and binds; `names` are the agents of the configuration.
    pub async fn bind(
        config: &RelayControl,
        names: HashSet<String>,
        inputs: mpsc::Sender<RelayInput>,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let tls = tls_config(config)?;
        let listener = TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("cannot listen for relay control on {}", config.listen))?;
        let acceptor = Acceptor(TlsAcceptor::from(Arc::new(tls)));
        Ok(Self {
            listener,
            acceptor,
            names: Arc::new(names),
            inputs,
            metrics,
            handshake_timeout: HANDSHAKE_TIMEOUT,
        })
    }

    /// Where it listens; tells the port when the config said 0.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Accepts links until the task is dropped.
    pub async fn run(self) {
        let mut next_link = 1;
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
        loop {
            let (stream, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "relay control: accept failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&handshakes).try_acquire_owned() else {
                self.metrics.relay_refused("too_many_handshakes");
                continue;
            };
            let link = LinkId(next_link);
            next_link += 1;
            let (acceptor, names) = (self.acceptor.clone(), Arc::clone(&self.names));
            let (inputs, metrics) = (self.inputs.clone(), Arc::clone(&self.metrics));
            let limit = self.handshake_timeout;
            tokio::spawn(async move {
                let greeted = tokio::time::timeout(limit, greet(stream, &acceptor, &names));
                let greeted = greeted.await.unwrap_or(Err(Refused::Timeout));
                drop(permit);
                match greeted {
                    Ok((stream, agent)) => {
                        info!(%peer, agent, "relay control: agent connected");
                        serve(stream, link, agent, &inputs, &metrics).await;
                    }
                    Err(refused) => {
                        warn!(%peer, %refused, "relay control: connection refused");
                        metrics.relay_refused(refused.name());
                    }
                }
            });
        }
    }
}

/// Why a connection was not taken.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("TLS: {0}")]
    Tls(io::Error),
    #[error("its certificate names no agent of the configuration")]
    UnknownAgent,
    #[error("the handshake took too long")]
    Timeout,
}

impl Refused {
    const fn name(&self) -> &'static str {
        match self {
            Self::Tls(_) => "certificate_or_tls",
            Self::UnknownAgent => "unknown_agent",
            Self::Timeout => "handshake_timeout",
        }
    }
}

async fn greet(
    stream: TcpStream,
    acceptor: &Acceptor,
    names: &HashSet<String>,
) -> Result<(tokio_rustls::server::TlsStream<TcpStream>, String), Refused> {
    stream.set_nodelay(true).map_err(Refused::Tls)?;
    let stream = acceptor.0.accept(stream).await.map_err(Refused::Tls)?;
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(<[_]>::first);
    let agent = certificate.and_then(|certificate| {
        let parsed = webpki::EndEntityCert::try_from(certificate).ok()?;
        parsed
            .valid_dns_names()
            .find(|name| names.contains(*name))
            .map(ToOwned::to_owned)
    });
    agent
        .map(|agent| (stream, agent))
        .ok_or(Refused::UnknownAgent)
}

/// One link, until either end closes it.
async fn serve<S: AsyncRead + AsyncWrite>(
    stream: S,
    link: LinkId,
    agent: String,
    inputs: &mpsc::Sender<RelayInput>,
    metrics: &Metrics,
) {
    let (sender, outgoing) = mpsc::channel(QUEUE);
    let connected = RelayInput::Connected {
        link,
        agent: agent.clone(),
        sender,
    };
    if inputs.send(connected).await.is_err() {
        return;
    }
    let (reader, writer) = tokio::io::split(stream);
    let ended = tokio::select! {
        ended = read(reader, link, inputs, metrics) => ended,
        ended = write(writer, outgoing, WRITE_TIMEOUT) => ended,
    };
    info!(agent, ended, "relay control: link closed");
    // The worker is gone only when the program ends.
    let _ = inputs.send(RelayInput::Closed { link }).await;
}

async fn read(
    mut reader: impl AsyncRead + Unpin,
    link: LinkId,
    inputs: &mpsc::Sender<RelayInput>,
    metrics: &Metrics,
) -> &'static str {
    let mut framer = Framer::default();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = match reader.read(&mut buffer).await {
            Ok(0) => return "closed by the agent",
            Ok(length) => length,
            Err(_) => return "connection failed",
        };
        if framer.push(&buffer[..length]).is_err() {
            metrics.relay_refused("bad_frame");
            return "bad frame";
        }
        loop {
            let message = match framer.next_frame() {
                Ok(None) => break,
                Ok(Some(frame)) => decode::<FromAgent>(frame),
                Err(_) => {
                    metrics.relay_refused("bad_frame");
                    return "bad frame";
                }
            };
            match message {
                Ok(message) => {
                    let input = RelayInput::Message { link, message };
                    if inputs.send(input).await.is_err() {
                        return "program ends";
                    }
                }
                // The frames are whole, the next may be good.
                Err(MessageError::UnknownMessage(_)) => metrics.relay_refused("unknown_message"),
                Err(MessageError::Malformed(_)) => metrics.relay_refused("malformed_message"),
                Err(MessageError::NotAMessage | MessageError::TrailingBytes) => {
                    metrics.relay_refused("not_a_message");
                    return "not a message";
                }
            }
        }
    }
}

async fn write(
    mut writer: impl AsyncWrite + Unpin,
    mut outgoing: mpsc::Receiver<ToAgent>,
    patience: Duration,
) -> &'static str {
    while let Some(message) = outgoing.recv().await {
        let Ok(mut frame) = encode_frame(&message) else {
            continue;
        };
        // Whatever else waits goes out in the same write.
        while let Ok(message) = outgoing.try_recv() {
            frame.extend(encode_frame(&message).unwrap_or_default());
        }
        // Else an agent that does not read would hold this task, and the link would never end.
        let written = async {
            writer.write_all(&frame).await?;
            writer.flush().await
        };
        match tokio::time::timeout(patience, written).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return "connection failed",
            Err(_) => return "the agent does not read",
        }
    }
    // The agent shall learn the end as an end, not as a cut connection.
    let _ = tokio::time::timeout(patience, writer.shutdown()).await;
    "closed by the concentrator"
}

fn tls_config(config: &RelayControl) -> anyhow::Result<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let credentials = Credentials::load(&config.files(), &provider)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(
        Arc::new(credentials.authorities),
        Arc::clone(&provider),
    )
    .build()
    .context("relay_control.ca cannot verify client certificates")?;
    Ok(ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(credentials.certificates, credentials.private_key)?)
}

#[cfg(test)]
mod tests;
