//! A way to another concentrator over the NATS servers, for when the direct one is gone.
//!
//! It is a stream of octets like that of a TCP connection, and the same TLS goes over it, with the same certificates:
//! NATS can lose, repeat and forge, and so end a stream, but it can neither read nor change one. Each
//! concentrator listens on a subject of its name. Who dials sends a number there that it has drawn, on whose
//! subjects, one for each direction, the stream then goes ([`piece`]):
//!
//! ```text
//! sipcast.link.BUCKET.open.NAME       the number, 16 octets
//! sipcast.link.BUCKET.data.NUMBER.d   to who has dialled
//! sipcast.link.BUCKET.data.NUMBER.l   to who was dialled
//! ```
//!
//! It has a connection to NATS of its own: on that of the registrations a million of them may be under way. Core
//! NATS only, nothing is stored. A stream whose octets nobody takes loses messages in the client, which keeps
//! [`AHEAD`] of them, and ends; no other one waits for it.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, Event, Message, StatusCode, Subscriber};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf};
use tokio::time::timeout;
use tracing::warn;

use crate::config::Bucket;
use crate::metrics::{Label, event};
use crate::worker::random;

mod piece;

use piece::{CHUNK, Fault, Numbers, Piece};

/// Messages of a subscription that have come and wait for us.
const AHEAD: usize = 64;
/// What we say and NATS has not taken yet.
const BEHIND: usize = 256;
/// Octets of a stream that wait on this side.
const BUFFER: usize = 64 * 1024;
/// How long whoever is dialled may take to answer.
const ANSWER: Duration = Duration::from_secs(1);
/// How long the last message of a stream may take.
const LAST: Duration = Duration::from_millis(100);

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoStream {
    /// We are cut off.
    #[error("there is no connection to NATS")]
    NotConnected,
    /// NATS knows of nobody.
    #[error("nobody listens there over NATS")]
    NobodyListens,
    /// Whoever listens is silent.
    #[error("no answer over NATS")]
    NoAnswer,
    /// What came is no answer.
    #[error("{0}")]
    Fault(#[from] Fault),
    /// The client refuses.
    #[error("NATS: {0}")]
    Nats(String),
}

/// The connection to NATS.
#[derive(Debug, Clone)]
pub struct Detour {
    client: Client,
    /// Of all subjects of this service.
    prefix: String,
    events: Family<Label, Counter>,
}

/// Where a direction of a stream goes.
#[derive(Debug, Clone, Copy)]
enum To {
    Dialler,
    Listener,
}

impl Detour {
    /// Connects in the background, and goes on trying for ever.
    pub async fn connect(
        bucket: &Bucket,
        name: &str,
        events: &Family<Label, Counter>,
    ) -> anyhow::Result<Self> {
        let name = format!("sipcast-concentrator {name}, core links");
        // The cluster says whether NATS is there; this one is refused for reasons of its own.
        let said = AtomicBool::new(false);
        let options = crate::cluster::options(bucket, &name)?
            .subscription_capacity(AHEAD)
            .client_capacity(BEHIND)
            .event_callback(move |event| {
                if let Event::ServerError(error) = event
                    && !said.swap(true, Ordering::Relaxed)
                {
                    warn!(%error, "core link: NATS refuses the detour");
                }
                std::future::ready(())
            });
        Ok(Self {
            client: options.connect(bucket.servers.as_slice()).await?,
            prefix: format!("sipcast.link.{}", bucket.name),
            events: events.clone(),
        })
    }

    /// A stream to this concentrator.
    pub(super) async fn dial(&self, name: &str) -> Result<DuplexStream, NoStream> {
        if self.client.connection_state() != State::Connected {
            return Err(NoStream::NotConnected);
        }
        let number = random::<16>().map_err(|error| NoStream::Nats(error.to_string()))?;
        let answers = self.data(&number, To::Dialler);
        let mut incoming = self.subscribe(answers.clone()).await?;
        let opening = Bytes::copy_from_slice(&number);
        let sent = self
            .client
            .publish_with_reply(self.open(name), answers, opening);
        sent.await
            .map_err(|error| NoStream::Nats(error.to_string()))?;
        let Ok(Some(answer)) = timeout(ANSWER, incoming.next()).await else {
            return Err(NoStream::NoAnswer);
        };
        if answer.status == Some(StatusCode::NO_RESPONDERS) {
            return Err(NoStream::NobodyListens);
        }
        let mut numbers = Numbers::default();
        if numbers.unwrap(&answer.payload)? != Piece::Accepted {
            return Err(Fault::Strange.into());
        }
        let outgoing = self.data(&number, To::Listener);
        Ok(self.carry(incoming, numbers, outgoing, Numbers::default()))
    }

    /// Those who dial this concentrator.
    pub(super) async fn listen(&self, name: &str) -> Result<Subscriber, NoStream> {
        self.subscribe(self.open(name)).await
    }

    /// The stream of one of them.
    pub(super) async fn accept(&self, opening: &Message) -> Result<DuplexStream, NoStream> {
        let number = opening.payload.as_ref();
        let number = number.try_into().map_err(|_| Fault::Strange)?;
        let incoming = self.subscribe(self.data(number, To::Listener)).await?;
        let (outgoing, mut numbers) = (self.data(number, To::Dialler), Numbers::default());
        let accepted = numbers.wrap(&Piece::Accepted);
        let sent = self.client.publish(outgoing.clone(), accepted);
        sent.await
            .map_err(|error| NoStream::Nats(error.to_string()))?;
        Ok(self.carry(incoming, Numbers::default(), outgoing, numbers))
    }

    async fn subscribe(&self, subject: String) -> Result<Subscriber, NoStream> {
        let subscribed = self.client.subscribe(subject).await;
        subscribed.map_err(|error| NoStream::Nats(error.to_string()))
    }

    /// Names are DNS names: their points would part a subject, and they have no `_`.
    fn open(&self, name: &str) -> String {
        format!("{}.open.{}", self.prefix, name.replace('.', "_"))
    }

    fn data(&self, number: &[u8; 16], to: To) -> String {
        let mut subject = format!("{}.data.", self.prefix);
        for octet in number {
            // A String takes all.
            let _ = write!(subject, "{octet:02x}");
        }
        subject.push_str(match to {
            To::Dialler => ".d",
            To::Listener => ".l",
        });
        subject
    }

    /// Carries a stream until either end of it ends, or NATS has lost some of it.
    fn carry(
        &self,
        incoming: Subscriber,
        expected: Numbers,
        outgoing: String,
        mut numbers: Numbers,
    ) -> DuplexStream {
        let (far, near) = tokio::io::duplex(BUFFER);
        let (client, events) = (self.client.clone(), self.events.clone());
        tokio::spawn(async move {
            let (reader, writer) = tokio::io::split(near);
            let incoming = incoming.map(|message| message.payload);
            let ended = tokio::select! {
                ended = bring(incoming, expected, writer) => ended,
                () = take(reader, &client, &outgoing, &mut numbers) => Ok(()),
            };
            if let Err(fault) = ended {
                let name = match fault {
                    Fault::Missing => "detour_missing",
                    Fault::Repeated => "detour_repeated",
                    Fault::TooLong => "detour_too_long",
                    Fault::Strange => "detour_strange",
                };
                events.get_or_create_owned(&event(name)).inc();
            }
            // Without it the other end notices the silence.
            let last = client.publish(outgoing, numbers.wrap(&Piece::End));
            let _ = timeout(LAST, last).await;
        });
        far
    }
}

/// What comes over NATS into the stream.
async fn bring(
    mut incoming: impl Stream<Item = Bytes> + Unpin,
    mut expected: Numbers,
    mut stream: WriteHalf<DuplexStream>,
) -> Result<(), Fault> {
    while let Some(message) = incoming.next().await {
        match expected.unwrap(&message)? {
            Piece::Data(octets) => {
                if stream.write_all(&octets).await.is_err() {
                    break;
                }
            }
            Piece::End => break,
            Piece::Accepted => return Err(Fault::Strange),
        }
    }
    Ok(())
}

/// What the stream has to say out over NATS.
async fn take(
    mut stream: ReadHalf<DuplexStream>,
    client: &Client,
    to: &str,
    numbers: &mut Numbers,
) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        let octets = Bytes::copy_from_slice(&buffer[..length]);
        let message = numbers.wrap(&Piece::Data(octets));
        if client.publish(to.to_owned(), message).await.is_err() {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    /// What comes out of a stream that these messages were brought into, and how it ended.
    async fn brought(messages: Vec<Bytes>) -> (Vec<u8>, Result<(), Fault>) {
        let (mut far, near) = tokio::io::duplex(16);
        let (_reader, writer) = tokio::io::split(near);
        let mut octets = Vec::new();
        let bringing = bring(stream::iter(messages), Numbers::default(), writer);
        let reading = async {
            let mut buffer = [0; 7];
            while let Ok(length @ 1..) = far.read(&mut buffer).await {
                octets.extend_from_slice(&buffer[..length]);
            }
        };
        // The reading half is held, so the stream does not end by itself.
        let ended = tokio::select! {
            ended = bringing => ended,
            () = reading => Ok(()),
        };
        (octets, ended)
    }

    fn data(octets: &[u8]) -> Piece {
        Piece::Data(Bytes::copy_from_slice(octets))
    }

    #[tokio::test]
    async fn octets_go_through_a_stream_that_is_smaller_than_a_message_until_it_ends() {
        let mut numbers = Numbers::default();
        let long: Vec<u8> = (0..=255).cycle().take(CHUNK).collect();
        let messages = [data(&long), data(b"end"), Piece::End, data(b"after")];
        let messages = messages.iter().map(|piece| numbers.wrap(piece)).collect();
        let (octets, ended) = brought(messages).await;
        assert_eq!(ended, Ok(()));
        let whole = [&long[..], b"end"].concat();
        assert!(octets.len() >= whole.len() - 16 && whole.starts_with(&octets));
    }

    /// As when the client has dropped some because nobody took them.
    #[tokio::test]
    async fn a_stream_that_lacks_a_message_ends() {
        let mut numbers = Numbers::default();
        let messages = (0..3_u8).map(|octet| numbers.wrap(&data(&[octet])));
        let mut messages: Vec<Bytes> = messages.collect();
        messages.remove(1);
        let (_, ended) = brought(messages).await;
        assert_eq!(ended, Err(Fault::Missing));
        let accepted = Numbers::default().wrap(&Piece::Accepted);
        assert_eq!(brought(vec![accepted]).await.1, Err(Fault::Strange));
    }
}
