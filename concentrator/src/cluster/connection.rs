//! The connection to the NATS servers, and what is asked of them each time that there is one.

use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_nats::{Client, ConnectOptions, Event, Message, Subscriber};
use serde_json::Value;
use tokio::sync::watch;
use tracing::{info, warn};

use super::Shared;
use super::bucket::{Delivered, Names, Refusal, Stream, reply};
use super::task::now;
use crate::config::{Access, Bucket};

/// A request of JetStream that is not answered.
const REQUEST: Duration = Duration::from_secs(3);
/// How long the client may take a message of ours.
pub(super) const PUBLISH: Duration = Duration::from_millis(100);

/// Messages that have come and wait for us. A server sends 32 MiB ahead at most, and none of ours is shorter than
/// 256 octets with its subject and its place.
const AHEAD: usize = 131_072;

/// Messages that a server was asked for.
pub(super) struct Delivery {
    pub(super) messages: Subscriber,
    next: u64,
    pub(super) last_sequence: u64,
    /// The last one that the stream had when this began: while others write, there is always one to come.
    until: u64,
    pub(super) heard_at: Instant,
    /// All that there was when it began has come.
    pub(super) all_came: bool,
    /// And that was told.
    pub(super) complete: bool,
}

/// What [`prepare`] gives.
pub(super) struct Prepared {
    pub(super) stream: Stream,
    pub(super) heartbeats: Delivery,
    pub(super) bindings: Delivery,
}

/// Where the delivery of bindings was when it ended.
#[derive(Debug, Clone, Default)]
pub(super) struct Resume {
    pub(super) created: String,
    pub(super) last_sequence: u64,
}

impl Resume {
    /// True where the stream is not the one that was listened to.
    pub(super) fn is_of_another(&self, stream: &Stream) -> bool {
        self.created != stream.created || self.last_sequence > stream.last_sequence
    }
}

/// What a message of a delivery is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// One of the stream, in its order.
    Message(Delivered),
    /// The server wants to hear that we have come so far.
    Answer(String),
    /// It only says that it is there.
    Idle,
    /// One before it is missing.
    Missed,
    /// Nothing that a server sends.
    Strange,
}

impl Delivery {
    /// Takes a message in.
    pub(super) fn place(&mut self, message: &Message, now: Instant) -> Place {
        self.heard_at = now;
        if message.status.is_none() {
            let reply = message.reply.as_ref();
            let Some(delivered) = reply.and_then(|reply| Delivered::read(reply.as_str())) else {
                return Place::Strange;
            };
            if delivered.delivery != self.next {
                return Place::Missed;
            }
            self.next += 1;
            self.last_sequence = delivered.stream_sequence;
            self.all_came |= delivered.pending == 0 || delivered.stream_sequence >= self.until;
            return Place::Message(delivered);
        }
        let header = |name: &str| {
            let headers = message.headers.as_ref()?;
            Some(headers.get(name)?.as_str().to_owned())
        };
        let stalled = header("Nats-Consumer-Stalled");
        let answer = message
            .reply
            .as_ref()
            .map(|reply| reply.as_str().to_owned());
        if let Some(to) = answer.or(stalled) {
            return Place::Answer(to);
        }
        let last = header("Nats-Last-Consumer").and_then(|last| last.parse::<u64>().ok());
        if last.is_some_and(|last| last >= self.next) {
            return Place::Missed;
        }
        // It would not idle while there is something to send.
        self.all_came = true;
        Place::Idle
    }
}

/// How a connection is made and kept; `name` is for whoever looks at the servers.
pub(crate) fn options(bucket: &Bucket, name: &str) -> anyhow::Result<ConnectOptions> {
    let mut options = match &bucket.access {
        Access::Open => ConnectOptions::new(),
        Access::Password(user, password) => {
            ConnectOptions::with_user_and_password(user.clone(), password.clone())
        }
        Access::Token(token) => ConnectOptions::with_token(token.clone()),
        Access::Credentials(file) => credentials(file)?,
    };
    if let Some(tls) = &bucket.tls {
        options = options
            .add_root_certificates(tls.ca.clone())
            .require_tls(true);
        if let Some((certificate, key)) = &tls.identity {
            options = options.add_client_certificate(certificate.clone(), key.clone());
        }
    }
    Ok(options
        .name(name)
        .retry_on_initial_connect()
        .max_reconnects(None)
        .connection_timeout(Duration::from_secs(2))
        .subscription_capacity(AHEAD)
        .ping_interval(Duration::from_secs(2))
        .request_timeout(Some(REQUEST))
        .reconnect_delay_callback(|attempts| {
            Duration::from_millis(if attempts == 0 { 0 } else { 250 })
        }))
}

fn credentials(file: &Path) -> anyhow::Result<ConnectOptions> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("cluster.credentials_file: {}", file.display()))?;
    ConnectOptions::with_credentials(&text)
        .with_context(|| format!("cluster.credentials_file: {}", file.display()))
}

pub(super) fn note_connection(event: &Event, up: &watch::Sender<bool>, shared: &Shared) {
    match event {
        Event::Connected => {
            up.send_replace(true);
            info!("cluster: connected to NATS");
        }
        Event::Disconnected | Event::Closed => {
            if up.send_replace(false) {
                shared.counters.disconnected.fetch_add(1, Ordering::Relaxed);
                warn!("cluster: the connection to NATS is lost; registrations are not shared");
            }
        }
        Event::ServerError(error) => warn!(%error, "cluster: NATS"),
        Event::ClientError(error) if *up.borrow() => tracing::debug!(%error, "cluster: NATS"),
        Event::ClientError(error) => note_failure(&error.to_string(), shared),
        Event::SlowConsumer(_) | Event::LameDuckMode | Event::Draining => {
            tracing::debug!(%event, "cluster: NATS");
        }
    }
}

/// None of the servers has let us in. It is tried again for ever, and said again when it is another reason.
fn note_failure(error: &str, shared: &Shared) {
    shared
        .counters
        .connect_failed
        .fetch_add(1, Ordering::Relaxed);
    let trouble = Some(format!("no NATS server lets us in: {error}"));
    let lock = shared.trouble.lock();
    let mut said = lock.unwrap_or_else(PoisonError::into_inner);
    if *said != trouble {
        warn!(
            error,
            "cluster: no NATS server lets us in; registrations are not shared"
        );
        *said = trouble;
    }
}

/// Makes the stream where there is none, and asks for both deliveries: heartbeats first.
pub(super) async fn prepare(
    client: Client,
    names: Names,
    replicas: u8,
    max_age: Duration,
    resume: Option<Resume>,
) -> Result<Prepared, Refusal> {
    let info = match request(&client, names.info(), Vec::new()).await {
        Err(Refusal::NoStream) => {
            let (subject, body) = names.create(replicas, max_age);
            request(&client, subject, body.to_string().into_bytes()).await?
        }
        info => info?,
    };
    let Some(stream) = Stream::read(&info) else {
        return Err(Refusal::Said(format!("of the stream: {info}")));
    };
    let same = resume.filter(|resume| !resume.is_of_another(&stream));
    let since = same
        .map(|resume| resume.last_sequence + 1)
        .filter(|since| *since > 1);
    let mut heartbeats = listen(&client, &names, names.all_heartbeats(), None).await?;
    let mut bindings = listen(&client, &names, names.all_bindings(), since).await?;
    heartbeats.until = stream.last_sequence;
    bindings.until = stream.last_sequence;
    Ok(Prepared {
        stream,
        heartbeats,
        bindings,
    })
}

async fn listen(
    client: &Client,
    names: &Names,
    filter: String,
    since: Option<u64>,
) -> Result<Delivery, Refusal> {
    let inbox = client.new_inbox();
    let subscribed = client.subscribe(inbox.clone()).await;
    let messages = subscribed.map_err(|error| Refusal::NoReply(error.to_string()))?;
    let (subject, body) = names.consume(&filter, &inbox, since);
    let consumer = request(client, subject, body.to_string().into_bytes()).await?;
    let pending = consumer.get("num_pending").and_then(Value::as_u64);
    Ok(Delivery {
        messages,
        next: 1,
        last_sequence: since.map_or(0, |since| since - 1),
        until: u64::MAX,
        heard_at: now(),
        all_came: pending == Some(0),
        complete: false,
    })
}

async fn request(client: &Client, subject: String, body: Vec<u8>) -> Result<Value, Refusal> {
    match client.request(subject, body.into()).await {
        Ok(message) => reply(&message.payload),
        Err(error) => Err(Refusal::NoReply(error.to_string())),
    }
}
