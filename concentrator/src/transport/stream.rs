//! One connection of a stream transport, from its first octet to its end.
//!
//! One task serves a connection: a reading and a writing half, and whichever ends first ends it. A
//! reader that finds the worker's queue full waits, so that TCP slows the phone down. Transports
//! differ in what carries the octets and in their [`Framing`]; the rest is the same for all.
//!
//! The relay of a message is asked of the flow table when the message is complete, not when the
//! connection was made: a route flip in between moves the connection to another edge.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::ready;
use std::time::Duration;

use bytes::Bytes;
use sip::hop::{Flow, Hop};
use sip::message::{FrameError, Framer, MAX_MESSAGE, Message, StreamItem};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

use super::connections::{Admission, Outbound, Queued};
use super::{Incoming, Inlet, Payload};
use crate::flows::FlowProtocol;
use crate::metrics::transport;

/// A phone that takes nothing for so long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// For the last words of a connection, which nobody waits for.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);
/// Read in one system call.
const READ_SIZE: usize = 16 << 10;
/// The answer to a ping (RFC 5626 section 3.5.1).
const PONG: &[u8] = b"\r\n";

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Peer,
    Broken,
    Idle,
    SlowMessage,
    SlowReader,
    Drained,
    SlowHandshake,
    Handshake,
    ConnectFailed,
    ConnectTimeout,
    TooLong,
    BadLength,
    NotSip,
    BadFrame,
    Ours,
}

impl End {
    pub(super) const fn reason(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Broken => "broken",
            Self::Idle => "idle",
            Self::SlowMessage => "slow_message",
            Self::SlowReader => "slow_reader",
            Self::Drained => "drained",
            Self::SlowHandshake => "slow_handshake",
            Self::Handshake => "handshake_failed",
            Self::ConnectFailed => "connect_failed",
            Self::ConnectTimeout => "connect_timeout",
            Self::TooLong => "message_too_long",
            Self::BadLength => "bad_content_length",
            Self::NotSip => "not_sip",
            Self::BadFrame => "bad_frame",
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

/// What a stream carries.
pub(super) enum Item {
    /// A message that had to be read to find its end.
    Message(Message),
    /// A message whose end the framing tells.
    Datagram(Bytes),
    /// With its answer, which goes out as it is.
    Keepalive(Bytes),
    /// The peer says goodbye; with the answer.
    Farewell(Bytes),
}

/// How messages lie in a stream of octets.
pub(super) trait Framing: Send {
    /// Takes what was read; all items are taken out before the next push.
    fn push(&mut self, bytes: &[u8]);
    /// The next item, `None` until more octets come.
    fn next(&mut self) -> Result<Option<Item>, End>;
    /// True in the middle of a message.
    fn is_partial(&self) -> bool;
    /// A message as it goes out.
    fn frame(message: Bytes) -> Bytes;
}

/// Content-Length, and line ends in between (RFC 3261 section 18.3).
pub(super) struct SipFraming(Framer);

impl Default for SipFraming {
    fn default() -> Self {
        Self(Framer::new(MAX_MESSAGE))
    }
}

impl Framing for SipFraming {
    fn push(&mut self, bytes: &[u8]) {
        self.0.push(bytes);
    }

    fn next(&mut self) -> Result<Option<Item>, End> {
        Ok(self.0.next()?.map(|item| match item {
            StreamItem::Message(message) => Item::Message(message),
            StreamItem::Ping => Item::Keepalive(Bytes::from_static(PONG)),
        }))
    }

    fn is_partial(&self) -> bool {
        self.0.is_partial()
    }

    fn frame(message: Bytes) -> Bytes {
        message
    }
}

/// Serves a connection until it ends.
pub(super) async fn converse<F: Framing>(
    reader: impl AsyncRead + Unpin,
    writer: impl AsyncWrite + Unpin,
    framing: F,
    flow: Flow,
    mut admission: Admission,
    inlet: &Inlet,
) -> End {
    let Some(outgoing) = admission.outgoing.take() else {
        return End::Broken;
    };
    let mut writer = Writer {
        to: writer,
        outgoing,
        in_message: false,
    };
    let end = tokio::select! {
        end = read(reader, framing, flow, &admission, inlet) => end,
        end = writer.run::<F>(flow, inlet) => end,
    };
    // From here on nobody finds it any more.
    drop(admission);
    // An end that the peer can tell from a cut; what it does with it is its own affair.
    let _ = timeout(FAREWELL_TIMEOUT, writer.farewell::<F>()).await;
    end
}

async fn read(
    mut reader: impl AsyncRead + Unpin,
    mut framing: impl Framing,
    flow: Flow,
    admission: &Admission,
    inlet: &Inlet,
) -> End {
    let via = transport(flow.transport);
    let received = inlet.metrics.sip_received.get_or_create_owned(&via);
    let keepalives = inlet.metrics.sip_keepalives.get_or_create_owned(&via);
    let limits = admission.limits();
    // When the message that is still incomplete began.
    let mut begun: Option<Instant> = None;
    let mut active = Instant::now();
    loop {
        let (deadline, end) = match begun {
            Some(begun) => (begun + limits.message, End::SlowMessage),
            None => (active + limits.idle, End::Idle),
        };
        match timeout_at(deadline, receive_into(&mut framing, &mut reader)).await {
            Err(_) => return end,
            Ok(Ok(0)) => return End::Peer,
            Ok(Ok(_)) => active = Instant::now(),
            Ok(Err(_)) => return End::Broken,
        }
        loop {
            match framing.next() {
                Err(end) => return end,
                Ok(None) => break,
                Ok(Some(Item::Keepalive(answer))) => {
                    keepalives.inc();
                    if admission.answer(answer).is_err() {
                        return End::SlowReader;
                    }
                }
                Ok(Some(Item::Farewell(answer))) => {
                    // It ends now in any case.
                    let _ = admission.answer(answer);
                }
                Ok(Some(Item::Message(message))) => {
                    received.inc();
                    let message = Payload::Message(Box::new(message));
                    if hand_over(message, flow, inlet).await.is_err() {
                        return End::Ours;
                    }
                }
                Ok(Some(Item::Datagram(bytes))) => {
                    received.inc();
                    if hand_over(Payload::Datagram(bytes), flow, inlet)
                        .await
                        .is_err()
                    {
                        return End::Ours;
                    }
                }
            }
            begun = None;
        }
        begun = framing.is_partial().then(|| begun.unwrap_or(active));
    }
}

/// Waits while the worker is busy; an error means that it has ended.
async fn hand_over(payload: Payload, flow: Flow, inlet: &Inlet) -> Result<(), ()> {
    let hop = Hop {
        flow,
        relay: inlet.relay_of(flow.local, FlowProtocol::Tcp, flow.peer, None),
    };
    let sent = inlet.incoming.send(Incoming { hop, payload }).await;
    sent.map_err(drop)
}

/// The buffer is on the stack while something is read, and not in every connection's task.
async fn receive_into(
    framing: &mut impl Framing,
    reader: &mut (impl AsyncRead + Unpin),
) -> io::Result<usize> {
    poll_fn(|context| {
        let mut buffer = [MaybeUninit::uninit(); READ_SIZE];
        let mut buffer = ReadBuf::uninit(&mut buffer);
        ready!(Pin::new(&mut *reader).poll_read(context, &mut buffer))?;
        framing.push(buffer.filled());
        std::task::Poll::Ready(Ok(buffer.filled().len()))
    })
    .await
}

struct Writer<W> {
    to: W,
    outgoing: mpsc::UnboundedReceiver<Queued>,
    /// A message is partly written: nothing else may follow but its rest.
    in_message: bool,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    async fn run<F: Framing>(&mut self, flow: Flow, inlet: &Inlet) -> End {
        let via = transport(flow.transport);
        let sent = inlet.metrics.sip_sent.get_or_create_owned(&via);
        while let Some(queued) = self.outgoing.recv().await {
            if matches!(queued.what, Outbound::Close) {
                return End::Drained;
            }
            let is_message = matches!(queued.what, Outbound::Message(_));
            match timeout(WRITE_TIMEOUT, self.write::<F>(queued)).await {
                Err(_) => return End::SlowReader,
                Ok(Err(_)) => return End::Broken,
                Ok(Ok(())) => sent.inc_by(u64::from(is_message)),
            };
        }
        // Only a full queue takes the sender away while the connection lives.
        End::SlowReader
    }

    async fn write<F: Framing>(&mut self, queued: Queued) -> io::Result<()> {
        let Queued { what, weight } = queued;
        let bytes = match what {
            Outbound::Message(message) => F::frame(message),
            Outbound::Answer(bytes) => bytes,
            Outbound::Close => return Ok(()),
        };
        self.in_message = true;
        self.to.write_all(&bytes).await?;
        // TLS may hold something back.
        self.to.flush().await?;
        self.in_message = false;
        drop(weight);
        Ok(())
    }

    /// What was queued before the end, and the end itself.
    async fn farewell<F: Framing>(&mut self) -> io::Result<()> {
        while !self.in_message
            && let Ok(queued) = self.outgoing.try_recv()
        {
            self.write::<F>(queued).await?;
        }
        self.to.shutdown().await
    }
}
