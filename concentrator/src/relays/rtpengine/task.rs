//! The socket of one rtpengine, and its link to the worker.
//!
//! The socket is connected: the kernel drops what comes from another address, and says so when nobody
//! listens there. The worker sees an agent like any other, through the same queues.

use std::borrow::Cow;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tracing::{info, warn};
use wire::relay_control::ToAgent;

use super::Target;
use super::client::{Client, Identity, Output};
use crate::metrics::Metrics;
use crate::relays::pool::LinkId;
use crate::relays::server::RelayInput;

/// Messages of the worker that may wait; past that it closes the link.
const QUEUE: usize = 1024;
/// Before a socket that could not be made is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often the counters are brought up to date.
const PUBLISH: Duration = Duration::from_millis(250);
/// Session numbers fit a JSON number.
const SESSION_BITS: u32 = 52;
/// The links of an rtpengine have numbers above those of connections: this bit, and then its own.
const LINKS: u64 = 1 << 63;

struct Link {
    id: LinkId,
    worker: mpsc::Receiver<ToAgent>,
}

/// One rtpengine, for the life of the program.
pub struct Task {
    target: Target,
    /// Its place in the configuration, which makes its links' numbers its own.
    place: u32,
    inputs: mpsc::Sender<RelayInput>,
    metrics: Arc<Metrics>,
    link: Option<Link>,
    links: u32,
    published: Instant,
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Task({})", self.target)
    }
}

impl Task {
    /// `place` must differ between the rtpengines of one program.
    pub fn new(
        target: Target,
        place: u32,
        inputs: mpsc::Sender<RelayInput>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            target,
            place,
            inputs,
            metrics,
            link: None,
            links: 0,
            published: now(),
        }
    }

    /// Runs until the worker is gone.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let identity = Identity {
            name: self.target.to_string(),
            interface: self.target.interface.clone(),
            epoch: u64::try_from(unix_time().as_micros())?,
            first_session: random()? >> (u64::BITS - SESSION_BITS),
        };
        let socket = self.connect().await;
        let mut client = Client::new(identity, now());
        let mut buffer = vec![0; 64 * 1024];
        while self.carry_away(&mut client, &socket).await {
            tokio::select! {
                received = socket.recv(&mut buffer) => match received {
                    Ok(length) => client.handle_datagram(&buffer[..length], now()),
                    Err(error) => unreachable(&mut client, &error).await,
                },
                message = hear(&mut self.link) => match message {
                    Some(message) => client.handle_message(message, now()),
                    None => client.handle_link_closed(now()),
                },
                () = tokio::time::sleep_until(client.poll_timeout().into()) => {}
            }
            client.handle_timeout(now());
        }
        Ok(())
    }

    async fn connect(&self) -> UdpSocket {
        let address = self.target.address;
        let any = match address {
            std::net::SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            std::net::SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        loop {
            let connected = async {
                let socket = UdpSocket::bind((any, 0)).await?;
                socket.connect(address).await?;
                io::Result::Ok(socket)
            };
            match connected.await {
                Ok(socket) => return socket,
                Err(error) => warn!(rtpengine = %address, %error, "cannot reach it"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// False when the worker is gone.
    async fn carry_away(&mut self, client: &mut Client, socket: &UdpSocket) -> bool {
        loop {
            while let Some(output) = client.poll_output() {
                let input = match output {
                    Output::Connected => Some(self.open_link()),
                    Output::Closed(why) => self.close_link(why),
                    Output::Say(message) => self.link.as_ref().map(|link| RelayInput::Message {
                        link: link.id,
                        message,
                    }),
                };
                if let Some(input) = input
                    && self.inputs.send(input).await.is_err()
                {
                    return false;
                }
            }
            let Some(datagram) = client.poll_transmit() else {
                break;
            };
            if let Err(error) = socket.send(&datagram).await {
                unreachable(client, &error).await;
            }
        }
        self.publish(client);
        true
    }

    fn open_link(&mut self) -> RelayInput {
        let (sender, worker) = mpsc::channel(QUEUE);
        self.links = self.links.wrapping_add(1);
        let id = LinkId(LINKS | u64::from(self.place) << 32 | u64::from(self.links));
        self.link = Some(Link { id, worker });
        info!(relay = %self.target, "rtpengine answers");
        RelayInput::Connected {
            link: id,
            agent: self.target.to_string(),
            sender,
        }
    }

    fn close_link(&mut self, why: &'static str) -> Option<RelayInput> {
        let link = self.link.take()?;
        warn!(relay = %self.target, why, "rtpengine: link closed");
        Some(RelayInput::Closed { link: link.id })
    }

    fn publish(&mut self, client: &Client) {
        let now = now();
        if now < self.published + PUBLISH {
            return;
        }
        self.published = now;
        for (event, total) in client.counted() {
            let labels = [
                ("relay", Cow::Owned(self.target.to_string())),
                ("event", Cow::Borrowed(event)),
            ];
            let counter = self.metrics.rtpengine.get_or_create_owned(&labels);
            counter.inc_by(total.saturating_sub(counter.get()));
        }
    }
}

/// What the worker says, `None` once it has closed the link; waits for ever where there is none.
async fn hear(link: &mut Option<Link>) -> Option<ToAgent> {
    match link {
        Some(link) => link.worker.recv().await,
        None => std::future::pending().await,
    }
}

async fn unreachable(client: &mut Client, error: &io::Error) {
    client.handle_unreachable(now());
    if error.kind() != io::ErrorKind::ConnectionRefused {
        // A socket that fails again and again shall not keep a core busy.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    let mut random = std::fs::File::open("/dev/urandom")?;
    io::Read::read_exact(&mut random, &mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}

#[expect(
    clippy::disallowed_methods,
    reason = "the task's clock is read here and handed on"
)]
fn now() -> Instant {
    Instant::now()
}

#[expect(
    clippy::disallowed_methods,
    reason = "the task's clock is read here and handed on"
)]
fn unix_time() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
