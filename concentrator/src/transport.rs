//! SIP over UDP and TCP on the service addresses.
//!
//! Every message that arrives becomes an [`Incoming`] on one bounded channel to the worker, with
//! the [`Hop`] it came by: the flow from the socket, the relay from the flow table. The worker
//! gives [`Transmit`]s back to [`Transports::send`] and, once its queue is empty, calls
//! [`Transports::flush`]. Neither waits: what a socket or a slow phone does not take is dropped
//! and counted, and the transactions retransmit or give up. What the worker must know about, a
//! closed connection or a flow that cannot be used, comes back as a [`TransportEvent`].
//!
//! Replies are sent from the service address that the request came to, and go directly to the
//! phone, not back through the tunnel.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use sip::hop::{ConnectionId, Flow, Hop, Transmit, Transport};
use sip::message::Message;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::config::{Config, TcpLimits};
use crate::flows::FlowTable;
use crate::metrics::Metrics;

mod connections;
mod stream;
mod tcp;
pub mod udp;

/// Messages that may wait for the worker.
const INCOMING_QUEUE: usize = 4096;
/// Events that may wait for the worker.
const EVENT_QUEUE: usize = 4096;

/// A message from a phone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming {
    /// Where it came from.
    pub hop: Hop,
    /// The message.
    pub payload: Payload,
}

/// What arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// A datagram, whatever it holds.
    Datagram(Bytes),
    /// A message that was cut out of a stream, and so had to be parsed.
    Message(Box<Message>),
}

/// What happened to a transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransportEvent {
    /// The connection is gone; nothing can be sent to it any more.
    Closed(ConnectionId),
    /// A message to this flow was not sent (RFC 3261 section 18.4).
    Failed(Flow),
}

/// Where to listen.
#[derive(Debug, Clone)]
pub struct Listen {
    /// A UDP socket on each.
    pub udp: Vec<SocketAddr>,
    /// A TCP listener on each.
    pub tcp: Vec<SocketAddr>,
    /// What the segments of a connection must fit; the interface decides when `None`.
    pub path_mtu: Option<u16>,
    /// What connections may cost.
    pub limits: TcpLimits,
}

impl Listen {
    /// Every service address, on the configured port.
    pub fn configured(config: &Config) -> Self {
        let port = config.sip.port;
        let sockets = config.service_addresses.iter();
        let sockets: Vec<SocketAddr> = sockets.map(|ip| SocketAddr::new(*ip, port)).collect();
        let only_if = |wanted: bool| if wanted { sockets.clone() } else { Vec::new() };
        Self {
            udp: only_if(config.sip.udp),
            tcp: only_if(config.sip.tcp),
            path_mtu: Some(config.tunnel.mtu),
            limits: config.sip.limits.clone(),
        }
    }
}

/// A socket that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for SIP on {}/{address}: {error}", transport.via_name())]
pub struct ListenError {
    transport: Transport,
    address: SocketAddr,
    error: std::io::Error,
}

/// What every receiving task needs.
#[derive(Debug, Clone)]
pub(crate) struct Inlet {
    pub(crate) incoming: mpsc::Sender<Incoming>,
    pub(crate) events: mpsc::Sender<TransportEvent>,
    pub(crate) flows: Arc<FlowTable>,
    pub(crate) metrics: Arc<Metrics>,
}

/// The open sockets; dropping it closes them and all connections.
#[derive(Debug)]
pub struct Transports {
    udp: Vec<udp::Outlet>,
    connections: Arc<connections::Connections>,
    tcp: Vec<SocketAddr>,
    events: mpsc::Sender<TransportEvent>,
    metrics: Arc<Metrics>,
    /// The receiving tasks, which end with it.
    _tasks: JoinSet<()>,
}

/// What [`Transports::open`] gives.
#[derive(Debug)]
pub struct Opened {
    /// To send with.
    pub transports: Transports,
    /// Messages from phones.
    pub incoming: mpsc::Receiver<Incoming>,
    /// Closed connections and flows that failed.
    pub events: mpsc::Receiver<TransportEvent>,
}

impl Transports {
    /// Opens all sockets and starts to receive. Needs a tokio runtime.
    pub fn open(
        listen: &Listen,
        flows: Arc<FlowTable>,
        metrics: Arc<Metrics>,
    ) -> Result<Opened, ListenError> {
        let (incoming, incoming_receiver) = mpsc::channel(INCOMING_QUEUE);
        let (events, events_receiver) = mpsc::channel(EVENT_QUEUE);
        let inlet = Inlet {
            incoming,
            events: events.clone(),
            flows,
            metrics: Arc::clone(&metrics),
        };
        let mut tasks = JoinSet::new();
        let mut udp = Vec::new();
        for address in &listen.udp {
            let outlet = udp::open(*address, &inlet, &mut tasks)
                .map_err(failed(Transport::Udp, *address))?;
            udp.push(outlet);
        }
        let connections = connections::Connections::new(listen.limits.clone());
        let mut tcp = Vec::new();
        for address in &listen.tcp {
            let local = tcp::listen(*address, listen.path_mtu, &connections, &inlet, &mut tasks)
                .map_err(failed(Transport::Tcp, *address))?;
            tcp.push(local);
        }
        let transports = Self {
            udp,
            connections,
            tcp,
            events,
            metrics,
            _tasks: tasks,
        };
        Ok(Opened {
            transports,
            incoming: incoming_receiver,
            events: events_receiver,
        })
    }

    /// Takes a message to send. Datagrams wait for [`Transports::flush`].
    pub fn send(&mut self, transmit: Transmit) {
        match transmit.flow.transport {
            Transport::Udp => self.send_datagram(transmit),
            Transport::Tcp => self.send_on_connection(transmit),
            Transport::Tls | Transport::Ws | Transport::Wss => {
                self.fail(transmit.flow, "transport_not_open");
            }
        }
    }

    /// Sends the datagrams that wait, in as few system calls as possible.
    pub fn flush(&mut self) {
        for outlet in &mut self.udp {
            outlet.flush(&self.metrics);
        }
    }

    /// Open connections.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// The addresses that listen on UDP.
    pub fn udp_addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.udp.iter().map(udp::Outlet::local)
    }

    /// The addresses that listen on TCP.
    pub fn tcp_addresses(&self) -> &[SocketAddr] {
        &self.tcp
    }

    fn send_datagram(&mut self, transmit: Transmit) {
        let local = transmit.flow.local;
        match self.udp.iter_mut().find(|outlet| outlet.local() == local) {
            Some(outlet) => outlet.send(transmit, &self.metrics),
            None => self.fail(transmit.flow, "no_such_local_address"),
        }
    }

    fn send_on_connection(&mut self, transmit: Transmit) {
        // A phone behind a NAT cannot be connected to, so a flow without connection is dead.
        let Some(id) = transmit.flow.connection else {
            return self.fail(transmit.flow, "no_connection");
        };
        if let Err(refusal) = self.connections.send(id, transmit.bytes) {
            self.fail(transmit.flow, refusal.reason());
        }
    }

    fn fail(&self, flow: Flow, why: &'static str) {
        self.metrics.unsent(why, 1);
        // A full queue means that the worker is far behind; its timers will tell it as well.
        let _ = self.events.try_send(TransportEvent::Failed(flow));
    }
}

fn failed(transport: Transport, address: SocketAddr) -> impl FnOnce(std::io::Error) -> ListenError {
    move |error| ListenError {
        transport,
        address,
        error,
    }
}

#[cfg(test)]
mod tests;
