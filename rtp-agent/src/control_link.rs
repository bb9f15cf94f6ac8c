//! The connection to one concentrator: dial, TLS 1.3 with a certificate at both ends, frames, redial.
//!
//! [`dial_forever`] keeps one connection up; [`serve`] works on any byte stream, so that another
//! transport can take the place of TCP and TLS. What the messages mean is not known here.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use admin::credentials::{Credentials, Files};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tracing::{info, warn};
use wire::relay_control::{
    Framer, FromAgent, MessageError, ToAgent, decode, encode_frame, request_of,
};

use crate::config::Control;
use crate::relay::{ConcentratorId, Relay};
use crate::sockets::{SharedEngine, now};

/// Messages that may wait for a concentrator that reads slowly; past that the link is closed.
const QUEUE: usize = 8192;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a write may wait for the other end.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
const READ_BUFFER: usize = 16 * 1024;

/// Dials with these credentials.
#[derive(Clone)]
pub struct Dialler {
    connector: TlsConnector,
    server_name: ServerName<'static>,
}

impl std::fmt::Debug for Dialler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialler")
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}

impl Dialler {
    /// Reads the certificates; the other end must have this name.
    pub fn new(control: &Control, server_name: &str) -> anyhow::Result<Self> {
        let files = Files {
            certificate: &control.certificate,
            private_key: &control.private_key,
            ca: &control.ca,
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let credentials = Credentials::load(&files, &provider)?;
        let tls = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(credentials.authorities)
            .with_client_auth_cert(credentials.certificates, credentials.private_key)?;
        Ok(Self {
            connector: TlsConnector::from(Arc::new(tls)),
            server_name: ServerName::try_from(server_name.to_owned())?,
        })
    }

    pub(crate) async fn dial(&self, address: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        self.connector
            .connect(self.server_name.clone(), stream)
            .await
    }
}

/// Keeps a connection to this concentrator up.
pub async fn dial_forever(
    dialler: Dialler,
    address: SocketAddr,
    concentrator: ConcentratorId,
    engine: SharedEngine,
) {
    let mut backoff = BACKOFF_MIN;
    loop {
        match tokio::time::timeout(CONNECT_TIMEOUT, dialler.dial(address)).await {
            Ok(Ok(stream)) => {
                info!(%address, "control link up");
                let began = now();
                let ended = serve(stream, concentrator, &engine).await;
                warn!(%address, ended, "control link down");
                // In TLS 1.3 a refused certificate shows only after the handshake.
                if began.elapsed() > BACKOFF_MAX {
                    backoff = BACKOFF_MIN;
                }
            }
            Ok(Err(error)) => warn!(%address, %error, "cannot reach the concentrator"),
            Err(_) => warn!(%address, "the concentrator does not answer"),
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

/// Carries messages between the relay and one connection until it ends; says why it did.
pub async fn serve<S: AsyncRead + AsyncWrite>(
    stream: S,
    concentrator: ConcentratorId,
    engine: &SharedEngine,
) -> &'static str {
    let (sender, outgoing) = mpsc::channel(QUEUE);
    engine.connect(concentrator, sender);
    let (reader, writer) = tokio::io::split(stream);
    let ended = tokio::select! {
        ended = read(reader, concentrator, engine) => ended,
        ended = write(writer, outgoing, WRITE_TIMEOUT) => ended,
    };
    engine.disconnect(concentrator);
    ended
}

async fn read(
    mut reader: impl AsyncRead + Unpin,
    concentrator: ConcentratorId,
    engine: &SharedEngine,
) -> &'static str {
    let mut framer = Framer::default();
    let mut buffer = vec![0; READ_BUFFER];
    loop {
        let length = match reader.read(&mut buffer).await {
            Ok(0) => return "closed by the concentrator",
            Ok(length) => length,
            Err(error) => {
                warn!(%error, "control link");
                return "connection failed";
            }
        };
        if framer.push(&buffer[..length]).is_err() {
            return bad_frame(engine);
        }
        loop {
            let frame = match framer.next_frame() {
                Ok(None) => break,
                Ok(Some(frame)) => frame,
                Err(_) => return bad_frame(engine),
            };
            match decode::<ToAgent>(frame) {
                Ok(message) => {
                    let is_query = matches!(message, ToAgent::Query { .. });
                    let handle =
                        |relay: &mut Relay| relay.handle_control(concentrator, message, now());
                    if is_query {
                        engine.with_figures(handle);
                    } else {
                        engine.with(handle);
                    }
                }
                // Of a later version of the protocol: the frames are whole, the next may be good.
                Err(error @ (MessageError::UnknownMessage(_) | MessageError::Malformed(_))) => {
                    warn!(%error, "a control message that this version does not understand");
                    let request = request_of(frame);
                    engine.with(|relay| relay.handle_not_understood(concentrator, request, now()));
                }
                Err(MessageError::NotAMessage | MessageError::TrailingBytes) => {
                    return bad_frame(engine);
                }
            }
        }
    }
}

fn bad_frame(engine: &SharedEngine) -> &'static str {
    engine.with(Relay::handle_bad_frame);
    "bad frame"
}

async fn write(
    mut writer: impl AsyncWrite + Unpin,
    mut outgoing: mpsc::Receiver<FromAgent>,
    patience: Duration,
) -> &'static str {
    while let Some(message) = outgoing.recv().await {
        let mut bytes = encode_frame(&message).unwrap_or_default();
        // Whatever else waits goes out in the same write.
        while let Ok(message) = outgoing.try_recv() {
            bytes.extend(encode_frame(&message).unwrap_or_default());
        }
        // Else an end that does not read would hold this task, and the link would never end.
        let written = async {
            writer.write_all(&bytes).await?;
            writer.flush().await
        };
        match tokio::time::timeout(patience, written).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return "connection failed",
            Err(_) => return "the concentrator does not read",
        }
    }
    // The other end shall learn the end as an end, not as a cut connection.
    let _ = tokio::time::timeout(patience, writer.shutdown()).await;
    "closed by the relay"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_link_whose_concentrator_does_not_read_ends() {
        let (ours, _theirs) = tokio::io::duplex(16);
        let (sender, outgoing) = mpsc::channel(8);
        for seq in 0..8 {
            sender.try_send(FromAgent::Heartbeat { seq }).unwrap();
        }
        let ended = write(ours, outgoing, Duration::from_millis(50)).await;
        assert_eq!(ended, "the concentrator does not read");
    }
}
