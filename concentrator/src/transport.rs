//! SIP over UDP, TCP, TLS and WebSocket on the service addresses.
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

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use admin::credentials::CredentialsError;
use bytes::Bytes;
use sip::cookie::Owner;
use sip::hop::{ConnectionId, Flow, Hop, Transmit, Transport};
use sip::message::Message;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use wire::mark::{Mark, RelayId};

use crate::config::{Config, TcpLimits};
use crate::core_link::connections::ConnectionMap;
use crate::flows::{FlowProtocol, FlowTable};
use crate::metrics::Metrics;

use connect::Dialler;
use listener::Speaks;
use tls::Identity;

mod connect;
mod connections;
mod listener;
mod stream;
mod stun;
pub mod tls;
pub mod udp;
mod ws;

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
    /// A TLS listener on each.
    pub tls: Vec<SocketAddr>,
    /// A WebSocket listener on each.
    pub ws: Vec<SocketAddr>,
    /// A secure WebSocket listener on each.
    pub wss: Vec<SocketAddr>,
    /// What TLS shows; without it nothing listens on `tls` and `wss`.
    pub identity: Option<Arc<Identity>>,
    /// Where connections to next hops leave from: at most one address of each IP version.
    pub outbound: Vec<IpAddr>,
    /// Those of them that are not behind the tunnel: what arrives there has no mark.
    pub unicast: Vec<SocketAddr>,
    /// What the segments of a connection must fit; the interface decides when `None`.
    pub path_mtu: Option<u16>,
    /// What connections may cost.
    pub limits: TcpLimits,
    /// The first connection gets this number.
    pub first_connection: ConnectionId,
}

impl Listen {
    /// Every service address, on the configured ports. Reads the certificate.
    pub fn configured(config: &Config) -> Result<Self, CredentialsError> {
        let sip = &config.sip;
        let on = |port: Option<u16>| -> Vec<SocketAddr> {
            let addresses = config.service_addresses.iter();
            port.map(|port| addresses.map(|ip| SocketAddr::new(*ip, port)).collect())
                .unwrap_or_default()
        };
        let unicast = &config.routing.unicast;
        // Where a transport is on, it is on at the unicast address too.
        let with_unicast = |mut service: Vec<SocketAddr>| {
            if !service.is_empty() {
                service.extend(unicast);
            }
            service
        };
        Ok(Self {
            udp: with_unicast(on(sip.udp.then_some(sip.port))),
            tcp: with_unicast(on(sip.tcp.then_some(sip.port))),
            unicast: unicast.clone(),
            tls: on(sip.tls.as_ref().map(|tls| tls.port)),
            ws: on(sip.ws_port),
            wss: on(sip.tls.as_ref().and_then(|tls| tls.wss_port)),
            identity: sip
                .tls
                .as_ref()
                .map(|tls| Identity::load(tls).map(Arc::new))
                .transpose()?,
            outbound: vec![sip.outbound_address],
            path_mtu: Some(config.tunnel.mtu),
            limits: config.sip.limits.clone(),
            first_connection: ConnectionId::first(0, Owner(0)),
        })
    }

    /// What every stream transport listens on.
    fn streams(&self) -> Vec<(Speaks, SocketAddr)> {
        let mut streams = Vec::new();
        streams.extend(self.tcp.iter().map(|address| (Speaks::Tcp, *address)));
        streams.extend(self.ws.iter().map(|address| (Speaks::Ws, *address)));
        if let Some(identity) = &self.identity {
            let identity = || Arc::clone(identity);
            let tls = self.tls.iter();
            streams.extend(tls.map(|address| (Speaks::Tls(identity()), *address)));
            let wss = self.wss.iter();
            streams.extend(wss.map(|address| (Speaks::Wss(identity()), *address)));
        }
        streams
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
    pub(crate) unicast: Arc<[SocketAddr]>,
}

impl Inlet {
    /// The relay of a flow; none where it did not come through a tunnel.
    pub(crate) fn relay_of(
        &self,
        local: SocketAddr,
        protocol: FlowProtocol,
        peer: SocketAddr,
        mark: Option<Mark>,
    ) -> Option<RelayId> {
        if self.unicast.contains(&local) {
            return None;
        }
        self.flows.relay_of(protocol, peer, mark)
    }
}

/// The open sockets; dropping it closes them and all connections.
#[derive(Debug)]
pub struct Transports {
    udp: Vec<udp::Outlet>,
    connections: Arc<connections::Connections>,
    streams: Vec<(Transport, SocketAddr)>,
    dialler: Dialler,
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
    /// Opens all sockets and starts to receive. Needs a tokio runtime. `map` shows
    /// which connections there are.
    pub fn open(
        listen: &Listen,
        map: &Arc<ConnectionMap>,
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
            unicast: listen.unicast.clone().into(),
        };
        let mut tasks = JoinSet::new();
        let mut udp = Vec::new();
        for address in &listen.udp {
            let outlet = udp::open(*address, &inlet, &mut tasks)
                .map_err(failed(Transport::Udp, *address))?;
            udp.push(outlet);
        }
        let connections = connections::Connections::new(
            listen.limits.clone(),
            listen.first_connection,
            Arc::clone(map),
        );
        let mut streams = Vec::new();
        for (speaks, address) in listen.streams() {
            let (transport, mtu) = (speaks.transport(), listen.path_mtu);
            let local = listener::listen(address, speaks, mtu, &connections, &inlet, &mut tasks)
                .map_err(failed(transport, address))?;
            streams.push((transport, local));
        }
        let dialler = Dialler::new(
            listen.outbound.clone(),
            listen.identity.clone(),
            Arc::clone(&connections),
            inlet,
        );
        let transports = Self {
            dialler,
            udp,
            connections,
            streams,
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

    /// The name that the certificate of a next hop must have, for connections that we open to it
    /// over TLS. Without one the certificate must have its address.
    pub fn expect_name(&mut self, peer: SocketAddr, name: String) {
        self.dialler.expect_name(peer, name);
    }

    /// Takes a message to send. A flow of TCP or TLS without a connection means a next hop, to
    /// which a connection is opened where there is none; see [`connect`]. A flow with a connection
    /// that has ended is dead: it was a phone's.
    /// Datagrams wait for [`Transports::flush`].
    pub fn send(&mut self, transmit: Transmit) {
        match transmit.flow.transport {
            Transport::Udp => self.send_datagram(transmit),
            Transport::Tcp | Transport::Tls | Transport::Ws | Transport::Wss => {
                self.send_on_connection(transmit);
            }
        }
    }

    /// Answers a datagram that is STUN and not SIP (RFC 5626 section 3.5.2); false for all others.
    pub fn answer_stun(&mut self, flow: &Flow, datagram: &[u8]) -> bool {
        if flow.transport != Transport::Udp || !stun::is_stun(datagram) {
            return false;
        }
        match stun::answer(datagram, flow.peer) {
            Some(bytes) => {
                self.metrics.stun_answered.inc();
                self.send(Transmit { flow: *flow, bytes });
            }
            None => self.metrics.dropped("stun_not_understood"),
        }
        true
    }

    /// Sends the datagrams that wait, in as few system calls as possible.
    pub fn flush(&mut self) {
        for outlet in &mut self.udp {
            outlet.flush(&self.metrics);
        }
    }

    /// The connections that the other end has opened.
    pub fn phones(&self) -> Vec<ConnectionId> {
        self.connections.accepted()
    }

    /// Ends a connection when all that waits for it is written.
    pub fn close(&self, connection: ConnectionId) {
        self.connections.close(connection);
    }

    /// Open connections.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// The addresses that listen on UDP.
    pub fn udp_addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.udp.iter().map(udp::Outlet::local)
    }

    /// The addresses that listen for connections of this transport.
    pub fn addresses(&self, of: Transport) -> impl Iterator<Item = SocketAddr> {
        let streams = self.streams.iter();
        streams.filter_map(move |(transport, local)| (*transport == of).then_some(*local))
    }

    /// The SIP domains that the other end of a connection has proved to be, by the certificate
    /// that it showed (RFC 5922 section 7.1); `None` where it showed none.
    pub fn verified_names(&self, connection: ConnectionId) -> Option<Arc<[String]>> {
        self.connections.verified_names(connection)
    }

    fn send_datagram(&mut self, transmit: Transmit) {
        let local = transmit.flow.local;
        match self.udp.iter_mut().find(|outlet| outlet.local() == local) {
            Some(outlet) => outlet.send(transmit, &self.metrics),
            None => self.fail(transmit.flow, "no_such_local_address"),
        }
    }

    fn send_on_connection(&mut self, transmit: Transmit) {
        let Some(id) = transmit.flow.connection else {
            let flow = transmit.flow;
            if let Err(why) = self.dialler.send(transmit) {
                self.fail(flow, why);
            }
            return;
        };
        if let Err(refusal) = self
            .connections
            .send(id, transmit.flow.peer, transmit.bytes)
        {
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
pub(crate) mod tests;
