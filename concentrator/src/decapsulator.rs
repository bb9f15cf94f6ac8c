//! The tunnel's end: packets come out of GRE, and those that are accepted go to the worker or into
//! the kernel.
//!
//! What passes the acceptance table is noted in the flow table. A whole UDP datagram for a SIP
//! socket goes to the worker at once ([`crate::shortcut`]). All else is written to the TUN device
//! as it came, mark included, and from there it is the kernel's: it reassembles fragments,
//! terminates TCP and shows the mark of each datagram to the SIP sockets on the service addresses.
//! A sender's datagrams keep their order: one task does all of it, and those behind a fragmented
//! one take its way.
//!
//! The edges' probes end here: [`crate::probes`] makes their answers, which leave after each batch.
//!
//! [`TunnelEnd::open`] changes the machine: the device, its reverse path filter, and the service
//! addresses on `lo`, which are taken away again when it is dropped unless they were there before.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Instant;

use prometheus_client::metrics::counter::Counter;
use tunnel_io::gre_socket::{GrePacket, GreSocket};
use tunnel_io::routes::{LoopbackAddress, RouteError};
use tunnel_io::system::{self, SystemError, thread_cpu_time};
use tunnel_io::tun::{TunDevice, TunError};
use wire::core_link::ConnectionRecord;
use wire::encapsulation::{Encapsulation, Entropy, Header};
use wire::gre;
use wire::ip::{self, protocol};

use crate::acceptance::{Acceptance, Accepted, Refusal};
use crate::config::{Config, ReturnPath};
use crate::core_link::connections::ConnectionMap;
use crate::edge_keys::AllKeys;
use crate::flows::{FlowProtocol, FlowTable};
use crate::metrics::{Metrics, edge, event, reason};
use crate::probes::{Answers, Outcome, Standing};
use crate::return_path::{Carriers, ReturnError, Returner};
use crate::shortcut::{self, Detours};
use crate::transport::{Incoming, udp};

mod inlet;

pub use inlet::Arrived;
use inlet::{BATCH, Inlet};

/// Why the tunnel's end cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The TUN device.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// A setting of the machine is in the way.
    #[error(transparent)]
    System(#[from] SystemError),
    /// A service address.
    #[error(transparent)]
    Address(#[from] RouteError),
    /// The GRE socket.
    #[error(
        "cannot receive GRE on {address}: {error}; is tunnel.listen an address of this machine, and has the program CAP_NET_RAW?"
    )]
    Gre {
        /// The tunnel's address.
        address: IpAddr,
        /// What the system said.
        error: io::Error,
    },
    /// The socket that answers probes.
    #[error("cannot answer probes from {address}: {error}; change tunnel.probe_port")]
    Probes {
        /// The tunnel's address and the port.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
}

/// The open devices, and what happens to the packets.
#[derive(Debug)]
pub struct TunnelEnd {
    tun: Arc<TunDevice>,
    inlet: Inlet,
    /// For what other concentrators get.
    gre: GreSocket,
    answers: UdpSocket,
    decapsulator: Decapsulator,
}

/// The service addresses that we have put on `lo`; dropping it takes them away.
#[derive(Debug)]
pub struct ServiceAddresses {
    /// Held for their drop.
    _addresses: Vec<LoopbackAddress>,
}

impl ServiceAddresses {
    /// Makes the service addresses this machine's.
    pub fn add(config: &Config) -> Result<Self, RouteError> {
        let addresses = config.service_addresses.iter();
        let added: Result<_, _> = addresses
            .map(|address| LoopbackAddress::add(*address))
            .collect();
        Ok(Self { _addresses: added? })
    }
}

impl TunnelEnd {
    /// Opens the devices. Needs CAP_NET_ADMIN, CAP_NET_RAW and a tokio runtime.
    pub fn open(config: &Config, decapsulator: Decapsulator) -> Result<Self, OpenError> {
        let tunnel = &config.tunnel;
        system::require_no_tos_reflection()?;
        let tun = TunDevice::open(&tunnel.device, tunnel.mtu)?;
        if config.service_addresses.iter().any(IpAddr::is_ipv4) {
            system::switch_reverse_path_filter_off(tun.name())?;
        }
        let failed = |error| OpenError::Gre {
            address: tunnel.listen,
            error,
        };
        let inlet = Inlet::open(config).map_err(failed)?;
        let gre = GreSocket::bind_to_send(tunnel.listen, 0, Encapsulation::Gre).map_err(failed)?;
        let answers = probe_socket(SocketAddr::new(tunnel.listen, tunnel.probe_port))?;
        Ok(Self {
            tun: Arc::new(tun),
            inlet,
            gre,
            answers,
            decapsulator,
        })
    }

    /// Has replies go back through the edges, where the configuration wants that; the task is the
    /// caller's to run.
    pub fn open_return_path(
        &mut self,
        config: &Config,
        metrics: &Metrics,
    ) -> Result<Option<Returner>, ReturnError> {
        if config.tunnel.return_path == ReturnPath::Direct {
            return Ok(None);
        }
        let carriers = Arc::new(Carriers::new(config));
        self.decapsulator.carriers = Some(Arc::clone(&carriers));
        Returner::open(config, Arc::clone(&self.tun), carriers, metrics).map(Some)
    }

    /// Waits for packets: how many were read. Fails when the socket does; may be dropped at any
    /// time without a loss.
    pub async fn receive(&mut self) -> io::Result<usize> {
        self.inlet.receive().await
    }

    /// The same without waiting: `None` where there is none.
    pub fn receive_now(&mut self) -> io::Result<Option<usize>> {
        self.inlet.receive_now()
    }

    /// True when there may be more packets than the `received` ones.
    pub const fn has_more(received: usize) -> bool {
        received == BATCH
    }

    /// What happens to the packets received last: SIP datagrams go to `deliver`.
    pub fn handle_packets(&mut self, now: Instant, mut deliver: impl FnMut(Incoming)) {
        let Self {
            tun,
            inlet,
            gre,
            answers,
            decapsulator,
        } = self;
        decapsulator.learn_keys();
        for packet in inlet.packets() {
            let write = |inner: &[u8]| tun.write(inner);
            let incoming = decapsulator.handle_packet(packet, now, write);
            if let Some(incoming) = incoming {
                deliver(incoming);
            }
        }
        for forward in decapsulator.second_chances.drain(..) {
            // What is not taken is lost, as on any link; TCP repeats it.
            gre.send_batch(&[GrePacket {
                to: forward.to,
                header: forward.header,
                inner: &forward.inner,
            }]);
        }
        while let Some((edge, answer)) = decapsulator.answers.poll_answer() {
            if let Err(error) = answers.send_to(&answer, edge) {
                tracing::debug!(%edge, %error, "a probe is not answered");
                decapsulator.count_probe("unsent");
            }
        }
    }

    /// Drops the packets received last: they are too old to be anybody's.
    pub fn drop_packets(&self) {
        let packets = self.inlet.packets().count() as u64;
        let label = reason("stood_still");
        let undelivered = &self.decapsulator.metrics.tunnel_undelivered;
        undelivered.get_or_create(&label).inc_by(packets);
    }

    /// Brings the flow table's totals to the metrics.
    pub fn publish(&self) {
        self.decapsulator.publish();
    }
}

/// What the decapsulator shares with others.
#[derive(Debug)]
pub struct Tables {
    /// It keeps this fresh.
    pub flows: Arc<FlowTable>,
    /// SIGHUP changes these.
    pub keys: AllKeys,
}

impl Tables {
    /// These two.
    pub const fn new(flows: Arc<FlowTable>, keys: AllKeys) -> Self {
        Self { flows, keys }
    }
}

/// Only to send: what arrives outside of the tunnel is not read.
fn probe_socket(address: SocketAddr) -> Result<UdpSocket, OpenError> {
    let open = || {
        let socket = UdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    open().map_err(|error| OpenError::Probes { address, error })
}

/// What happens to one packet, and the counters.
#[derive(Debug)]
pub struct Decapsulator {
    acceptance: Acceptance,
    flows: Arc<FlowTable>,
    keys: AllKeys,
    carriers: Option<Arc<Carriers>>,
    metrics: Arc<Metrics>,
    inbox: udp::Inbox,
    sockets: Vec<SocketAddr>,
    detours: Detours,
    answers: Answers,
    packets: Vec<Counter>,
    refused: [Counter; Refusal::NAMES.len()],
    elsewhere: Option<Elsewhere>,
    second_chances: Vec<SecondChance>,
}

/// Connections of other concentrators.
#[derive(Debug)]
struct Elsewhere {
    map: Arc<ConnectionMap>,
    /// Their tunnels, in the order of the configuration.
    tunnels: Vec<IpAddr>,
}

/// A segment of a connection that another concentrator has.
#[derive(Debug, Clone, PartialEq, Eq)]
struct SecondChance {
    to: IpAddr,
    header: Header,
    inner: Vec<u8>,
}

impl Decapsulator {
    /// With all counters at hand. Datagrams for one of `sockets` take the short way.
    pub fn new(
        config: &Config,
        sockets: Vec<SocketAddr>,
        tables: Tables,
        metrics: Arc<Metrics>,
        standing: Standing,
    ) -> Self {
        let of_edge = |name: &str| metrics.tunnel_packets.get_or_create_owned(&edge(name));
        let packets = config
            .edges
            .iter()
            .map(|edge| of_edge(&edge.name))
            .collect();
        let refused =
            Refusal::NAMES.map(|name| metrics.tunnel_refused.get_or_create_owned(&reason(name)));
        Self {
            acceptance: Acceptance::new(config),
            flows: tables.flows,
            keys: tables.keys,
            carriers: None,
            inbox: udp::Inbox::new(&metrics),
            metrics,
            sockets,
            detours: Detours::new(),
            answers: Answers::new(standing),
            packets,
            refused,
            elsewhere: None,
            second_chances: Vec::new(),
        }
    }

    /// Segments of the connections that `map` knows of at other concentrators go there.
    pub fn send_on(&mut self, map: Arc<ConnectionMap>, tunnels: Vec<IpAddr>) {
        self.elsewhere = Some(Elsewhere { map, tunnels });
    }

    /// The keys may have been read again.
    fn learn_keys(&mut self) {
        if self.keys.has_changed().unwrap_or_default() {
            self.acceptance.set_keys(&self.keys.borrow_and_update());
        }
    }

    /// Judges one packet, notes its flow, and gives the SIP message in it or writes what is inside.
    pub fn handle_packet(
        &mut self,
        packet: Arrived<'_>,
        now: Instant,
        write: impl FnOnce(&[u8]) -> io::Result<()>,
    ) -> Option<Incoming> {
        let Arrived { from, gre, .. } = packet;
        let accepted = match self.acceptance.accept(from, packet.encapsulation, gre) {
            Ok(accepted) => accepted,
            Err(refusal) => {
                tracing::trace!(outer_source = %from, %refusal, "packet refused");
                self.refused[refusal.index()].inc();
                return None;
            }
        };
        if let Some(carriers) = &self.carriers {
            carriers.note(&accepted, from, now);
        }
        if accepted.is_probe {
            self.handle_probe(&accepted, now);
            return None;
        }
        self.packets[accepted.edge].inc();
        if let Some(second_chance) = self.second_chance(&accepted) {
            self.metrics.second_chances.inc();
            self.second_chances.push(second_chance);
            return None;
        }
        // Before the kernel has it: a socket may read it the moment it is written.
        self.note(&accepted, now);
        if !self.detours.holds(accepted.source, now)
            && let Some(datagram) = shortcut::datagram(accepted.inner, &self.sockets)
        {
            let relay = accepted.path.relay();
            let shortcut::Datagram {
                peer,
                local,
                payload,
            } = datagram;
            return self.inbox.take(peer, local, relay, payload);
        }
        if shortcut::is_fragment(accepted.inner) {
            self.detours.note(accepted.source, now);
        }
        if let Err(error) = write(accepted.inner) {
            tracing::debug!(source = %accepted.source, %error, "the kernel does not take a packet");
            let label = reason(name_of(&error));
            self.metrics.tunnel_undelivered.get_or_create(&label).inc();
        }
        None
    }

    /// The way of a segment whose connection is not in this kernel, which would reset it. One that opens
    /// a connection is ours, and what a peer has sent on is not sent on again.
    fn second_chance(&self, accepted: &Accepted<'_>) -> Option<SecondChance> {
        let elsewhere = self.elsewhere.as_ref()?;
        if accepted.protocol != protocol::TCP || accepted.from_peer {
            return None;
        }
        let ports = accepted.ports?;
        let packet = ip::Packet::parse(accepted.inner).ok()?;
        let peer = elsewhere.map.peer_of(&ConnectionRecord {
            peer: SocketAddr::new(accepted.source, ports.source),
            local: SocketAddr::new(packet.dst(), ports.destination),
        })?;
        if packet.opens_connection() {
            return None;
        }
        let header = gre::Repr {
            key: accepted.wire_key,
            protocol: gre::Protocol::of_packet(accepted.inner).ok()?,
        };
        let length = accepted.inner.len();
        Some(SecondChance {
            to: *elsewhere.tunnels.get(peer)?,
            header: Encapsulation::Gre.header(header, Entropy::default(), length),
            inner: accepted.inner.to_vec(),
        })
    }

    fn handle_probe(&mut self, probe: &Accepted<'_>, now: Instant) {
        let outcome = self.answers.handle_probe(probe, now, thread_cpu_time);
        self.count_probe(match outcome {
            Outcome::Answered => "answered",
            Outcome::Malformed => "malformed",
            Outcome::SecondIngress => {
                tracing::warn!(
                    edge = probe.edge,
                    address = %probe.source,
                    key = %probe.path.key,
                    "another ingress probes with this key; two edges need two keys"
                );
                "second_ingress"
            }
        });
    }

    fn count_probe(&self, outcome: &'static str) {
        self.metrics.probes.get_or_create(&event(outcome)).inc();
    }

    fn note(&self, accepted: &Accepted<'_>, now: Instant) {
        let Some(ports) = accepted.ports else { return };
        let protocol = if accepted.protocol == protocol::TCP {
            FlowProtocol::Tcp
        } else {
            FlowProtocol::Udp
        };
        let peer = SocketAddr::new(accepted.source, ports.source);
        self.flows.note(protocol, peer, accepted.path, now);
    }

    /// Brings the flow table's totals to the metrics.
    fn publish(&self) {
        use std::sync::atomic::Ordering::Relaxed;
        let counts = self.flows.counts();
        let flows = i64::try_from(counts.flows).unwrap_or(i64::MAX);
        self.metrics.flows.set(flows);
        self.metrics
            .path_drift
            .inner()
            .store(counts.drifts, Relaxed);
        self.metrics
            .flows_evicted
            .inner()
            .store(counts.evicted, Relaxed);
    }
}

fn name_of(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::WouldBlock {
        "device_full"
    } else {
        "device_error"
    }
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "tests need some instant to count from"
)]
mod tests {
    use std::path::Path;

    use wire::gre::{Protocol, Repr, TunnelKey};
    use wire::ip;

    use super::*;
    use crate::config::file::File;
    use crate::edge_keys;
    use crate::transport::Payload;

    const CONFIG: &str = r#"
name = "c1"
service_addresses = ["198.51.100.1"]
domains = ["example.com"]
tunnel = { listen = "10.0.9.2" }
edges = [
    { name = "edge1", sources = ["10.0.1.2/32"], key = 0x1001, relays = [{ mark = 1, agent = "r1" }] },
    { name = "edge2", sources = ["10.0.2.2/32"], key = 0x1002, relays = [{ mark = 2, agent = "r2" }] },
]
[relay_control]
listen = "10.0.9.2:7060"
certificate = "c1.pem"
private_key = "c1.key"
ca = "ca.pem"
"#;
    const PHONE: &str = "100.64.7.9:40000";
    const SIP: &str = "198.51.100.1:5060";

    #[test]
    fn a_datagram_for_a_sip_socket_goes_to_the_worker_with_its_relay() {
        let mut rig = rig();
        let (phone, sip) = (PHONE.parse().unwrap(), SIP.parse().unwrap());
        let inner = ip::udp(phone, sip, 1 << 2, b"hello").unwrap();
        let packet = tunnelled(0x1001, &inner);
        let write = |_: &[u8]| panic!("it went to the kernel as well");
        let incoming = rig
            .handle_packet(arrived("10.0.1.2", &packet), Instant::now(), write)
            .unwrap();
        assert_eq!(
            (incoming.hop.flow.peer, incoming.hop.flow.local),
            (phone, sip)
        );
        let relay = incoming.hop.relay.unwrap();
        assert_eq!(relay.to_string(), "0x1001/1");
        assert_eq!(incoming.payload, Payload::Datagram("hello".into()));
        assert_eq!(relay_of(&rig).as_deref(), Some("0x1001/1"), "noted too");
    }

    #[test]
    fn an_accepted_packet_is_noted_counted_and_written_as_it_came() {
        let mut rig = rig();
        let inner = datagram(PHONE, 1);
        let written = handle(&mut rig, "10.0.1.2", 0x1001, &inner);
        assert_eq!(written, Some(inner));
        assert_eq!(relay_of(&rig).as_deref(), Some("0x1001/1"));
        assert_eq!(
            rig.metrics
                .tunnel_packets
                .get_or_create(&edge("edge1"))
                .get(),
            1
        );
    }

    #[test]
    fn a_route_flip_is_seen_in_the_flow_table_and_counted() {
        let mut rig = rig();
        handle(&mut rig, "10.0.1.2", 0x1001, &datagram(PHONE, 1));
        handle(&mut rig, "10.0.2.2", 0x1002, &datagram(PHONE, 2));
        rig.publish();
        assert_eq!(relay_of(&rig).as_deref(), Some("0x1002/2"));
        assert_eq!(
            (rig.metrics.path_drift.get(), rig.metrics.flows.get()),
            (1, 1)
        );
    }

    #[test]
    fn a_refused_packet_leaves_no_trace_but_its_counter() {
        let mut rig = rig();
        assert_eq!(
            handle(&mut rig, "10.0.1.2", 0x1002, &datagram(PHONE, 1)),
            None
        );
        assert_eq!(relay_of(&rig), None);
        let counter = rig
            .metrics
            .tunnel_refused
            .get_or_create(&reason("wrong_key"))
            .get();
        assert_eq!(counter, 1);
    }

    #[test]
    fn a_packet_that_the_kernel_does_not_take_is_counted() {
        let mut rig = rig();
        let packet = tunnelled(0x1001, &datagram(PHONE, 1));
        let full = |_: &[u8]| Err(io::ErrorKind::WouldBlock.into());
        rig.handle_packet(arrived("10.0.1.2", &packet), Instant::now(), full);
        let label = reason("device_full");
        assert_eq!(
            rig.metrics.tunnel_undelivered.get_or_create(&label).get(),
            1
        );
    }

    #[test]
    fn a_segment_goes_where_its_connection_is_unless_it_opens_one_or_was_sent_on() {
        let mut rig = rig();
        let map: Arc<ConnectionMap> = Arc::default();
        let telling = map.listen_to(0);
        let (phone, service) = (PHONE.parse().unwrap(), "198.51.100.1:5060".parse().unwrap());
        telling.opened(&[ConnectionRecord {
            peer: phone,
            local: service,
        }]);
        rig.send_on(Arc::clone(&map), vec!["10.0.10.2".parse().unwrap()]);
        let segment = |flags| {
            let header = ip::TcpRepr {
                seq: 1,
                ack: 1,
                flags,
                window: 1000,
            };
            ip::tcp(phone, service, 1 << 2, header, b"x").unwrap()
        };
        let (syn, ack) = (segment(0x02), segment(0x10));
        assert_eq!(handle(&mut rig, "10.0.1.2", 0x1001, &ack), None);
        let sent_on = rig.second_chances.pop().unwrap();
        assert_eq!(sent_on.to, IpAddr::from([10, 0, 10, 2]));
        assert_eq!(
            [sent_on.header.bytes(), &ack].concat(),
            tunnelled(0x1001, &ack)
        );
        assert_eq!(sent_on.inner, ack);
        let written = handle(&mut rig, "10.0.1.2", 0x1001, &syn);
        assert_eq!(
            written,
            Some(syn),
            "who opens a connection here has it here"
        );
        drop(telling);
        let written = handle(&mut rig, "10.0.1.2", 0x1001, &ack);
        assert_eq!(written, Some(ack), "nobody else has it");
        assert_eq!(rig.second_chances, []);
        assert_eq!(rig.metrics.second_chances.get(), 1);
    }

    fn rig() -> Decapsulator {
        let path = Path::new("concentrator.toml");
        let file: File = admin::config::parse(path, CONFIG).unwrap();
        let config = Config::check(path, &file).unwrap();
        let sockets = vec![SIP.parse().unwrap()];
        let tables = Tables {
            flows: Arc::new(FlowTable::new(64)),
            keys: edge_keys::fixed(&config),
        };
        let standing = Standing::new(2);
        Decapsulator::new(&config, sockets, tables, Arc::default(), standing)
    }

    fn arrived<'a>(from: &str, gre: &'a [u8]) -> Arrived<'a> {
        Arrived {
            from: from.parse().unwrap(),
            encapsulation: Encapsulation::Gre,
            gre,
        }
    }

    fn handle(rig: &mut Decapsulator, from: &str, key: u32, inner: &[u8]) -> Option<Vec<u8>> {
        let mut written = None;
        let write = |inner: &[u8]| {
            written = Some(inner.to_vec());
            Ok(())
        };
        let packet = tunnelled(key, inner);
        let incoming = rig.handle_packet(arrived(from, &packet), Instant::now(), write);
        assert_eq!(incoming, None);
        written
    }

    fn relay_of(rig: &Decapsulator) -> Option<String> {
        let peer = PHONE.parse().unwrap();
        let relay = rig.flows.relay_of(FlowProtocol::Udp, peer, None);
        relay.map(|relay| relay.to_string())
    }

    fn datagram(phone: &str, mark: u8) -> Vec<u8> {
        let service = "198.51.100.1:5062".parse().unwrap();
        ip::udp(phone.parse().unwrap(), service, mark << 2, b"hello").unwrap()
    }

    fn tunnelled(key: u32, inner: &[u8]) -> Vec<u8> {
        let header = Repr {
            key: TunnelKey(key),
            protocol: Protocol::Ipv4,
        };
        [&header.header()[..], inner].concat()
    }
}
