//! The concentrator's end of relay control, as far as this bench needs it: takes leases, binds them.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use admin::credentials::{Credentials, Files};
use anyhow::{Context as _, Result, bail, ensure};
use rustls::server::WebPkiClientVerifier;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use wire::relay_control::{Framer, FromAgent, Gate, Lease, ToAgent, VERSION, decode, encode_frame};

use super::network::PHONES;
use super::servers::IN_FLIGHT;

const PATIENCE: Duration = Duration::from_secs(10);
/// Longer than a run, so that no heartbeat falls into a measurement.
const HEARTBEAT_MS: u32 = 60_000;

/// A link to the agent.
pub(super) struct Control {
    stream: StreamOwned<ServerConnection, TcpStream>,
    framer: Framer,
    leases: VecDeque<Lease>,
    requests: u64,
    done: u64,
}

impl Control {
    /// Greets the agent that has connected; `name` is ours, as in the certificate in `folder`.
    pub(super) fn greet(stream: TcpStream, name: &str, folder: &Path) -> Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let connection = ServerConnection::new(Arc::new(tls(name, folder)?))?;
        let mut control = Self {
            stream: StreamOwned::new(connection, stream),
            framer: Framer::default(),
            leases: VecDeque::new(),
            requests: 0,
            done: 0,
        };
        let hello = control.read()?;
        ensure!(
            matches!(hello.as_slice(), [FromAgent::Hello { .. }]),
            "no Hello: {hello:?}"
        );
        Ok(control)
    }

    /// Asks for a stock of leases.
    pub(super) fn welcome(&mut self, name: &str, stock: u32) -> Result<()> {
        let welcome = ToAgent::Welcome {
            version: VERSION,
            name: name.to_owned(),
            stock,
            heartbeat_ms: HEARTBEAT_MS,
        };
        self.stream.write_all(&encode_frame(&welcome)?)?;
        Ok(self.stream.flush()?)
    }

    /// Binds this many sessions, some at a time, and waits until the agent has done it.
    pub(super) fn bind(&mut self, count: usize) -> Result<Vec<Lease>> {
        let mut bound = Vec::with_capacity(count);
        let goal = self.done + count as u64;
        while self.done < goal {
            let mut bytes = Vec::new();
            while bound.len() < count
                && ((self.requests - self.done) as usize) < IN_FLIGHT
                && let Some(lease) = self.leases.pop_front()
            {
                bytes.extend(encode_frame(&self.bind_of(&lease))?);
                bound.push(lease);
            }
            self.stream.write_all(&bytes)?;
            self.stream.flush()?;
            for message in self.read()? {
                self.note(message)?;
            }
        }
        Ok(bound)
    }

    fn bind_of(&mut self, lease: &Lease) -> ToAgent {
        self.requests += 1;
        let gate = Gate {
            expected: vec![IpAddr::from(PHONES)],
            ..Gate::default()
        };
        ToAgent::Bind {
            request: self.requests,
            session: lease.session,
            a: gate.clone(),
            b: gate,
            call: format!("call-{}@bench", lease.session),
        }
    }

    fn note(&mut self, message: FromAgent) -> Result<()> {
        match message {
            FromAgent::Leases { leases } => self.leases.extend(leases),
            FromAgent::Done { .. } => self.done += 1,
            FromAgent::Failed { code, text, .. } => bail!("the agent: {code:?}: {text}"),
            FromAgent::Ended { session, .. } => bail!("session {session} has ended"),
            FromAgent::Hello { .. }
            | FromAgent::MediaStarted { .. }
            | FromAgent::MediaTimeout { .. }
            | FromAgent::Statistics { .. }
            | FromAgent::Heartbeat { .. }
            | FromAgent::HeartbeatAck { .. }
            | FromAgent::Draining => {}
        }
        Ok(())
    }

    /// Waits for at least one message.
    fn read(&mut self) -> Result<Vec<FromAgent>> {
        let mut messages = Vec::new();
        let mut buffer = [0; 16_384];
        while messages.is_empty() {
            let length = self.stream.read(&mut buffer).context("relay control")?;
            ensure!(length > 0, "the agent has closed its link");
            self.framer.push(&buffer[..length])?;
            while let Some(frame) = self.framer.next_frame()? {
                messages.push(decode(frame)?);
            }
        }
        Ok(messages)
    }
}

fn tls(name: &str, folder: &Path) -> Result<ServerConfig> {
    let (certificate, private_key, ca) = (
        folder.join(format!("{name}.pem")),
        folder.join(format!("{name}.key")),
        folder.join("ca.pem"),
    );
    let files = Files {
        certificate: &certificate,
        private_key: &private_key,
        ca: &ca,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let credentials = Credentials::load(&files, &provider)?;
    let authorities = Arc::new(credentials.authorities);
    let clients = WebPkiClientVerifier::builder_with_provider(authorities, Arc::clone(&provider));
    Ok(ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(clients.build()?)
        .with_single_cert(credentials.certificates, credentials.private_key)?)
}
