//! A concentrator with a script: it binds sessions of an agent and asks for them again.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use wire::relay_control::{
    Framer, FromAgent, Gate, GateMode, Lease, ToAgent, VERSION, decode, encode_frame,
};

use crate::namespace::Namespace;

const PATIENCE: Duration = Duration::from_secs(20);
/// Longer than any bench, so that no heartbeat is owed.
const HEARTBEAT_MS: u32 = 60_000;
/// Requests under way.
const WINDOW: usize = 32;

/// Waits for agents.
pub(super) struct Controller {
    listener: TcpListener,
    tls: Arc<ServerConfig>,
}

/// An agent that has said Hello.
pub(super) struct Link {
    stream: StreamOwned<ServerConnection, TcpStream>,
    framer: Framer,
    pub(super) epoch: u64,
}

impl Controller {
    /// Listens in a namespace; certificates of `c1` are in the folder.
    pub(super) fn listen(
        namespace: &Namespace,
        address: SocketAddr,
        folder: &Path,
    ) -> Result<Self> {
        let listener = namespace.inside(|| Ok(TcpListener::bind(address)?))?;
        listener.set_nonblocking(true)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(folder.join("ca.pem"))?)?;
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let certificate = CertificateDer::from_pem_file(folder.join("c1.pem"))?;
        let key = PrivateKeyDer::from_pem_slice(&fs::read(folder.join("c1.key"))?)?;
        let tls = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier.build()?)
            .with_single_cert(vec![certificate], key)?;
        Ok(Self {
            listener,
            tls: Arc::new(tls),
        })
    }

    /// The next agent.
    pub(super) fn accept(&self) -> Result<Link> {
        let end = Instant::now() + PATIENCE;
        let stream = loop {
            match self.listener.accept() {
                Ok((stream, _)) => break stream,
                Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
                Err(error) => return Err(error).context("no agent connects"),
            }
        };
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let connection = ServerConnection::new(Arc::clone(&self.tls))?;
        let mut link = Link {
            stream: StreamOwned::new(connection, stream),
            framer: Framer::default(),
            epoch: 0,
        };
        let FromAgent::Hello { epoch, .. } = link.hear()? else {
            bail!("the first message was no Hello");
        };
        link.epoch = epoch;
        link.say(&ToAgent::Welcome {
            version: VERSION,
            name: "c1".to_owned(),
            stock: 64,
            heartbeat_ms: HEARTBEAT_MS,
        })?;
        Ok(link)
    }
}

impl Link {
    /// Binds so many sessions, both sides to this address.
    pub(super) fn bind(&mut self, count: usize, phones: IpAddr) -> Result<Vec<Lease>> {
        let gate = Gate {
            expected: vec![phones],
            mode: GateMode::Exact,
            ..Gate::default()
        };
        let (mut bound, mut done) = (Vec::with_capacity(count), 0);
        while done < count {
            match self.hear()? {
                FromAgent::Leases { leases } => {
                    for lease in leases.into_iter().take(count - bound.len()) {
                        bound.push(lease);
                        self.say(&ToAgent::Bind {
                            request: lease.session,
                            session: lease.session,
                            a: gate.clone(),
                            b: gate.clone(),
                            call: format!("call {}", bound.len()),
                        })?;
                    }
                }
                FromAgent::Done { .. } => done += 1,
                FromAgent::Failed { text, .. } => bail!("a Bind failed: {text}"),
                other @ (FromAgent::Hello { .. }
                | FromAgent::MediaStarted { .. }
                | FromAgent::MediaTimeout { .. }
                | FromAgent::Ended { .. }
                | FromAgent::Statistics { .. }
                | FromAgent::Heartbeat { .. }
                | FromAgent::HeartbeatAck { .. }
                | FromAgent::Draining) => ensure!(!is_answer(&other), "unexpected: {other:?}"),
            }
        }
        Ok(bound)
    }

    /// Releases these sessions: how many of them the agent does not know.
    pub(super) fn release(&mut self, leases: &[Lease]) -> Result<usize> {
        let mut unknown = 0;
        for window in leases.chunks(WINDOW) {
            for lease in window {
                let session = lease.session;
                let request = session.wrapping_add(1 << 62);
                self.say(&ToAgent::Release { request, session })?;
            }
            let mut answers = 0;
            while answers < window.len() {
                match self.hear()? {
                    FromAgent::Done { .. } => answers += 1,
                    FromAgent::Failed { .. } => {
                        answers += 1;
                        unknown += 1;
                    }
                    FromAgent::Hello { .. }
                    | FromAgent::Leases { .. }
                    | FromAgent::MediaStarted { .. }
                    | FromAgent::MediaTimeout { .. }
                    | FromAgent::Ended { .. }
                    | FromAgent::Statistics { .. }
                    | FromAgent::Heartbeat { .. }
                    | FromAgent::HeartbeatAck { .. }
                    | FromAgent::Draining => {}
                }
            }
        }
        Ok(unknown)
    }

    fn say(&mut self, message: &ToAgent) -> Result<()> {
        self.stream.write_all(&encode_frame(message)?)?;
        Ok(self.stream.flush()?)
    }

    fn hear(&mut self) -> Result<FromAgent> {
        let mut buffer = [0; 16 * 1024];
        loop {
            if let Some(frame) = self.framer.next_frame()? {
                return Ok(decode(frame)?);
            }
            let length = self.stream.read(&mut buffer)?;
            ensure!(length > 0, "the agent has closed the connection");
            self.framer.push(&buffer[..length])?;
        }
    }
}

fn is_answer(message: &FromAgent) -> bool {
    matches!(
        message,
        FromAgent::Hello { .. } | FromAgent::Statistics { .. }
    )
}
