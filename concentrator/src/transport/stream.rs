//! One connection of a stream transport, from its first octet to its end.
//!
//! One task serves a connection: a reading and a writing half, and whichever ends first ends it. A
//! reader that finds the worker's queue full waits, so that TCP slows the phone down.
//!
//! The relay of a message is asked of the flow table when the message is complete, not when the
//! connection was made: a route flip in between moves the connection to another edge.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use sip::hop::{Flow, Hop, Transport};
use sip::message::{FrameError, Framer, MAX_MESSAGE, StreamItem};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, timeout, timeout_at};

use super::connections::{Admission, Outgoing};
use super::tcp::prepare;
use super::{Incoming, Inlet, Payload, TransportEvent};
use crate::flows::FlowProtocol;
use crate::metrics::{reason, transport};

/// A phone that takes nothing for so long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Read in one system call.
const READ_SIZE: usize = 16 << 10;
/// The answer to a ping (RFC 5626 section 3.5.1).
const PONG: &[u8] = b"\r\n";

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Peer,
    Broken,
    Idle,
    SlowMessage,
    SlowReader,
    TooLong,
    BadLength,
    NotSip,
    Ours,
}

impl End {
    const fn reason(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Broken => "broken",
            Self::Idle => "idle",
            Self::SlowMessage => "slow_message",
            Self::SlowReader => "slow_reader",
            Self::TooLong => "message_too_long",
            Self::BadLength => "bad_content_length",
            Self::NotSip => "not_sip",
            Self::Ours => "ours",
        }
    }
}

impl From<FrameError> for End {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::TooLong => Self::TooLong,
            FrameError::ContentLength => Self::BadLength,
            FrameError::Parse(_) => Self::NotSip,
        }
    }
}

pub(super) async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    mut admission: Admission,
    inlet: Inlet,
) {
    let id = admission.id;
    inlet.metrics.tcp_connections.inc();
    let end = match (prepare(&stream), admission.outgoing.take()) {
        (Ok(local), Some(outgoing)) => {
            let flow = Flow {
                transport: Transport::Tcp,
                peer,
                local,
                connection: Some(id),
            };
            let (reader, writer) = stream.into_split();
            tokio::select! {
                end = read(reader, flow, &admission, &inlet) => end,
                end = write(writer, outgoing, &inlet) => end,
            }
        }
        (Ok(_) | Err(_), _) => End::Broken,
    };
    tracing::debug!(%peer, reason = end.reason(), "connection closed");
    inlet.metrics.tcp_connections.dec();
    inlet
        .metrics
        .tcp_closed
        .get_or_create(&reason(end.reason()))
        .inc();
    drop(admission);
    // An error means that the worker has ended.
    let _ = inlet.events.send(TransportEvent::Closed(id)).await;
}

async fn read(reader: OwnedReadHalf, flow: Flow, admission: &Admission, inlet: &Inlet) -> End {
    let via = transport(Transport::Tcp);
    let received = inlet.metrics.sip_received.get_or_create_owned(&via);
    let keepalives = inlet.metrics.sip_keepalives.get_or_create_owned(&via);
    let limits = &admission.connections.limits;
    let mut framer = Framer::new(MAX_MESSAGE);
    // When the message that is still incomplete began.
    let mut begun: Option<Instant> = None;
    let mut active = Instant::now();
    loop {
        let (deadline, end) = match begun {
            Some(begun) => (begun + limits.message, End::SlowMessage),
            None => (active + limits.idle, End::Idle),
        };
        match timeout_at(deadline, reader.readable()).await {
            Err(_) => return end,
            Ok(Err(_)) => return End::Broken,
            Ok(Ok(())) => {}
        }
        match receive_into(&mut framer, &reader) {
            Ok(0) => return End::Peer,
            Ok(_) => active = Instant::now(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => return End::Broken,
        }
        loop {
            match framer.next() {
                Err(error) => return error.into(),
                Ok(None) => break,
                Ok(Some(StreamItem::Ping)) => {
                    keepalives.inc();
                    let pong = Bytes::from_static(PONG);
                    if admission.connections.send(admission.id, pong).is_err() {
                        return End::SlowReader;
                    }
                }
                Ok(Some(StreamItem::Message(message))) => {
                    received.inc();
                    let hop = Hop {
                        flow,
                        relay: inlet.flows.relay_of(FlowProtocol::Tcp, flow.peer, None),
                    };
                    let payload = Payload::Message(Box::new(message));
                    let incoming = Incoming { hop, payload };
                    if inlet.incoming.send(incoming).await.is_err() {
                        return End::Ours;
                    }
                }
            }
            begun = None;
        }
        begun = framer.is_partial().then(|| begun.unwrap_or(active));
    }
}

/// Not async, so that the buffer is on the stack and not in every connection's task.
fn receive_into(framer: &mut Framer, reader: &OwnedReadHalf) -> io::Result<usize> {
    let mut buffer = [0; READ_SIZE];
    let length = reader.try_read(&mut buffer)?;
    framer.push(&buffer[..length]);
    Ok(length)
}

async fn write(mut writer: OwnedWriteHalf, mut outgoing: Outgoing, inlet: &Inlet) -> End {
    let sent = inlet
        .metrics
        .sip_sent
        .get_or_create_owned(&transport(Transport::Tcp));
    while let Some(bytes) = outgoing.queue.recv().await {
        match timeout(WRITE_TIMEOUT, writer.write_all(&bytes)).await {
            Err(_) => return End::SlowReader,
            Ok(Err(_)) => return End::Broken,
            Ok(Ok(())) => {}
        }
        outgoing.queued.fetch_sub(bytes.len(), Ordering::Relaxed);
        if bytes != PONG {
            sent.inc();
        }
    }
    // Only a full queue takes the sender away while the connection lives.
    End::SlowReader
}
