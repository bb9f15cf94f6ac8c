//! SIP over UDP: batches in, batches out, the mark of every datagram.
//!
//! The sockets receive what the kernel has reassembled and what does not come through a tunnel;
//! whole datagrams of a tunnel come from the decapsulator. Both pass an [`Inbox`].
//!
//! Receiving never waits for the worker: when its queue is full the datagram is dropped and
//! counted, as a full socket buffer would do without being seen.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prometheus_client::metrics::counter::Counter;
use sip::hop::{Flow, Hop, Transmit, Transport};
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::JoinSet;
use tunnel_io::udp_socket::{BatchSocket, OutgoingDatagram, UdpOptions};
use tunnel_io::{DatagramBatch, MAX_BATCH};
use wire::mark::{Mark, RelayId};

use super::{Incoming, Inlet, Payload};
use crate::flows::FlowProtocol;
use crate::metrics::{Metrics, reason, transport};

/// Datagrams read in one system call.
const RECEIVE_BATCH: usize = 32;
/// No UDP payload is longer, so none is cut off.
const LARGEST_DATAGRAM: usize = 65_535;
/// What the kernel may queue: a burst of some thousand messages while the worker is busy.
const BUFFER_SIZE: usize = 4 << 20;

/// After a failed receive, so that a lack of memory does not become a busy loop.
const RECEIVE_PAUSE: Duration = Duration::from_millis(50);

/// The sending side of one socket.
#[derive(Debug)]
pub(crate) struct Outlet {
    socket: Arc<BatchSocket>,
    waiting: Vec<Transmit>,
    sent: Counter,
}

/// Opens the socket and starts to receive.
pub(crate) fn open(
    address: SocketAddr,
    inlet: &Inlet,
    tasks: &mut JoinSet<()>,
) -> io::Result<Outlet> {
    let options = UdpOptions {
        receive_tos: true,
        buffer_size: Some(BUFFER_SIZE),
        ..UdpOptions::default()
    };
    let socket = Arc::new(BatchSocket::bind(address, &options)?);
    tasks.spawn(receive(Arc::clone(&socket), inlet.clone()));
    let sent = inlet
        .metrics
        .sip_sent
        .get_or_create_owned(&transport(Transport::Udp));
    Ok(Outlet {
        socket,
        waiting: Vec::with_capacity(MAX_BATCH),
        sent,
    })
}

impl Outlet {
    pub(crate) fn local(&self) -> SocketAddr {
        self.socket.local()
    }

    pub(crate) fn send(&mut self, transmit: Transmit, metrics: &Metrics) {
        self.waiting.push(transmit);
        if self.waiting.len() >= MAX_BATCH {
            self.flush(metrics);
        }
    }

    pub(crate) fn flush(&mut self, metrics: &Metrics) {
        if self.waiting.is_empty() {
            return;
        }
        let outgoing: Vec<OutgoingDatagram<'_>> = self
            .waiting
            .iter()
            .map(|transmit| OutgoingDatagram {
                to: transmit.flow.peer,
                bytes: &transmit.bytes,
            })
            .collect();
        let report = self.socket.send_batch_or_drop(&outgoing);
        self.waiting.clear();
        self.sent.inc_by(report.sent);
        if report.total_failed() > 0 {
            for (failure, count) in report.failures().filter(|(_, count)| *count > 0) {
                metrics.unsent(failure.label(), count);
            }
        }
    }
}

/// What every SIP datagram passes before the worker sees it.
#[derive(Debug)]
pub(crate) struct Inbox {
    received: Counter,
    keepalives: Counter,
    source_port_zero: Counter,
}

impl Inbox {
    /// With all counters at hand.
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let via = transport(Transport::Udp);
        let dropped = reason("source_port_zero");
        Self {
            received: metrics.sip_received.get_or_create_owned(&via),
            keepalives: metrics.sip_keepalives.get_or_create_owned(&via),
            source_port_zero: metrics.sip_dropped.get_or_create_owned(&dropped),
        }
    }

    /// The message in a datagram, unless it is a keepalive or nobody could be answered.
    pub(crate) fn take(
        &self,
        peer: SocketAddr,
        local: SocketAddr,
        relay: Option<RelayId>,
        payload: &[u8],
    ) -> Option<Incoming> {
        if is_keepalive(payload) {
            self.keepalives.inc();
            return None;
        }
        self.received.inc();
        if peer.port() == 0 {
            // Nobody can be answered there (RFC 768).
            self.source_port_zero.inc();
            return None;
        }
        let flow = Flow {
            transport: Transport::Udp,
            peer,
            local,
            connection: None,
        };
        Some(Incoming {
            hop: Hop { flow, relay },
            payload: Payload::Datagram(Bytes::copy_from_slice(payload)),
        })
    }
}

async fn receive(socket: Arc<BatchSocket>, inlet: Inlet) {
    let local = socket.local();
    let inbox = Inbox::new(&inlet.metrics);
    let mut batch = DatagramBatch::new(RECEIVE_BATCH, LARGEST_DATAGRAM);
    loop {
        if let Err(error) = socket.recv_batch(&mut batch).await {
            // Without this task the phones of this address would be deaf: it goes on.
            tracing::error!(%local, %error, "cannot receive SIP over UDP");
            inlet.metrics.dropped("receive_failed");
            tokio::time::sleep(RECEIVE_PAUSE).await;
            continue;
        }
        for _ in 0..batch.truncated() {
            inlet.metrics.dropped("truncated");
        }
        for datagram in batch.iter() {
            let mark = Mark::from_tos(datagram.tos);
            let peer = datagram.from;
            let relay = inlet.relay_of(local, FlowProtocol::Udp, peer, Some(mark));
            let incoming = inbox.take(peer, local, relay, datagram.bytes);
            if let Some(Err(reason)) = incoming.map(|incoming| hand_over(incoming, &inlet)) {
                inlet.metrics.dropped(reason);
            }
        }
    }
}

/// Phones keep their NAT open with line ends or zero bytes; nothing answers these over UDP (RFC
/// 5626 section 3.5.2 has STUN for that). The flow table has seen them already.
fn is_keepalive(datagram: &[u8]) -> bool {
    datagram.len() <= 4 && datagram.iter().all(|b| matches!(b, b'\r' | b'\n' | 0))
}

fn hand_over(incoming: Incoming, inlet: &Inlet) -> Result<(), &'static str> {
    inlet
        .incoming
        .try_send(incoming)
        .map_err(|error| match error {
            TrySendError::Full(_) => "worker_busy",
            TrySendError::Closed(_) => "shutting_down",
        })
}
