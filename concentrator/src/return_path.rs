//! The return path `tunnel`: replies go back through the edge that last carried the flow.
//!
//! For networks whose core may not send packets from the service address. A rule has the kernel route what
//! it sends from a service address into the TUN device: datagrams, segments and fragments of them, made for
//! the device's MTU, so what fits one way fits the other. [`Carriers`] knows by which edge, and from which
//! outer address, the packets of a flow came last; later fragments have no ports and go by what is known
//! of their host. What belongs to no known flow or host is dropped and counted: it must not leave
//! by itself.
//!
//! The edge takes it out of the tunnel and forwards it. With which key it is sent is what the edge itself
//! used last, in probes, too; so keys may change.

use std::hash::{BuildHasher as _, Hash, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use prometheus_client::metrics::counter::Counter;
use tunnel_io::gre_socket::{GrePacket, GreSocket};
use tunnel_io::packet_batch::PacketBatch;
use tunnel_io::routes::{Marking, ReturnedSource, RouteError};
use tunnel_io::tun::TunDevice;
use wire::encapsulation::{Encapsulation, Entropy, Header};
use wire::gre::{Protocol, Repr, TunnelKey};
use wire::ip::{Packet, protocol};

use crate::acceptance::Accepted;
use crate::config::Config;
use crate::flows::FlowProtocol;
use crate::metrics::{Metrics, edge, reason};

/// Flows and hosts that are remembered: some 10 MB.
const FLOWS: usize = 1 << 17;
const HOSTS: usize = 1 << 16;
/// Entries that share one hash value.
const WAYS: usize = 8;
/// Addresses that are remembered of one edge.
const ENDS: usize = 16;
/// Packets of one wake-up.
const BATCH: usize = 64;
/// Who made our routes (rtm_protocol), and the table that they are in; the ingress has the same.
const MARKING: Marking = Marking {
    protocol: 60,
    table: 5_061,
};

/// By which edge, and where that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Carrier {
    edge: usize,
    outer: IpAddr,
}

/// One outer address of an edge.
#[derive(Debug, Clone, Copy)]
struct End {
    outer: IpAddr,
    /// What it sent with last.
    key: TunnelKey,
    at: Instant,
}

/// Where a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// The edge, by its place in the configuration.
    pub edge: usize,
    /// The outer destination.
    pub outer: IpAddr,
    /// In the GRE header.
    pub key: TunnelKey,
    /// What the edge reads.
    pub encapsulation: Encapsulation,
}

/// See the module. Of fixed size: where it is full, who was silent for longest is forgotten.
#[derive(Debug)]
pub struct Carriers {
    encapsulations: Vec<Encapsulation>,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    flows: Table<(FlowProtocol, SocketAddr)>,
    hosts: Table<IpAddr>,
    ends: Vec<Vec<End>>,
}

impl Carriers {
    /// Nothing is known.
    pub fn new(config: &Config) -> Self {
        let edges = config.edges.iter();
        Self {
            encapsulations: edges.map(|edge| edge.encapsulation).collect(),
            known: Mutex::new(Known {
                flows: Table::new(FLOWS),
                hosts: Table::new(HOSTS),
                ends: vec![Vec::new(); config.edges.len()],
            }),
        }
    }

    /// This packet was accepted from this outer source.
    pub fn note(&self, accepted: &Accepted<'_>, outer: IpAddr, now: Instant) {
        let mut known = self.lock();
        let Some(ends) = known.ends.get_mut(accepted.edge) else {
            return;
        };
        // What another concentrator sends on tells nothing of where the edge is but who it is.
        if !accepted.from_peer {
            note_end(ends, outer, accepted.wire_key, now);
        }
        let latest = ends.iter().max_by_key(|end| end.at);
        let outer = if accepted.from_peer {
            latest.map(|end| end.outer)
        } else {
            Some(outer)
        };
        let (Some(outer), false) = (outer, accepted.is_probe) else {
            return;
        };
        let carrier = Carrier {
            edge: accepted.edge,
            outer,
        };
        let upper = match accepted.protocol {
            protocol::UDP => FlowProtocol::Udp,
            protocol::TCP => FlowProtocol::Tcp,
            // An ICMP error is from a router, not from the host that it is about.
            _ => return,
        };
        if let Some(ports) = accepted.ports {
            let peer = SocketAddr::new(accepted.source, ports.source);
            known.flows.put((upper, peer), carrier, now);
        }
        known.hosts.put(accepted.source, carrier, now);
    }

    /// The way of a packet to a user agent.
    pub fn way(&self, packet: &Packet<'_>) -> Option<Way> {
        let mut known = self.lock();
        let upper = match packet.protocol() {
            protocol::UDP => Some(FlowProtocol::Udp),
            protocol::TCP => Some(FlowProtocol::Tcp),
            _ => None,
        };
        let whole = packet.ports().filter(|_| packet.fragment().is_none());
        let flow = upper.zip(whole).map(|(upper, ports)| {
            let peer = SocketAddr::new(packet.dst(), ports.destination);
            (upper, peer)
        });
        let of_flow = flow.and_then(|flow| known.flows.get(&flow));
        let carrier = of_flow.or_else(|| known.hosts.get(&packet.dst()))?;
        let ends = known.ends.get(carrier.edge)?;
        let end = ends.iter().find(|end| end.outer == carrier.outer);
        Some(Way {
            edge: carrier.edge,
            outer: carrier.outer,
            key: end?.key,
            encapsulation: *self.encapsulations.get(carrier.edge)?,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn note_end(ends: &mut Vec<End>, outer: IpAddr, key: TunnelKey, at: Instant) {
    let new = End { outer, key, at };
    if let Some(end) = ends.iter_mut().find(|end| end.outer == outer) {
        *end = new;
        return;
    }
    if ends.len() < ENDS {
        ends.push(new);
    } else if let Some(oldest) = ends.iter_mut().min_by_key(|end| end.at) {
        *oldest = new;
    }
}

/// A set-associative table of fixed size, with a keyed hash.
#[derive(Debug)]
struct Table<K> {
    hasher: RandomState,
    slots: Vec<Option<(K, Carrier, Instant)>>,
}

impl<K: Hash + Eq + Copy> Table<K> {
    fn new(capacity: usize) -> Self {
        let sets = capacity.div_ceil(WAYS).next_power_of_two();
        Self {
            hasher: RandomState::new(),
            slots: vec![None; sets * WAYS],
        }
    }

    fn set_of(&mut self, key: &K) -> &mut [Option<(K, Carrier, Instant)>] {
        let sets = self.slots.len() / WAYS;
        let first = self.hasher.hash_one(key) as usize % sets * WAYS;
        &mut self.slots[first..first + WAYS]
    }

    fn get(&mut self, key: &K) -> Option<Carrier> {
        let set = self.set_of(key).iter().flatten();
        let found = set.into_iter().find(|(known, ..)| known == key);
        found.map(|(_, carrier, _)| *carrier)
    }

    fn put(&mut self, key: K, carrier: Carrier, now: Instant) {
        let set = self.set_of(&key);
        let same = |slot: &Option<(K, Carrier, Instant)>| {
            slot.as_ref().is_some_and(|(known, ..)| *known == key)
        };
        let place = set.iter().position(same).or_else(|| {
            let slots = set.iter().enumerate();
            let oldest = slots.min_by_key(|(_, slot)| slot.as_ref().map(|(.., at)| *at));
            oldest.map(|(place, _)| place)
        });
        if let Some(slot) = place.and_then(|place| set.get_mut(place)) {
            *slot = Some((key, carrier, now));
        }
    }
}

/// Why a reply does not leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// Not from a service address: another route leads into the device.
    Source,
    /// No packet from there is remembered.
    NoWay,
    /// The kernel does not send it.
    Unsent,
}

impl Loss {
    const ALL: [Self; 3] = [Self::Source, Self::NoWay, Self::Unsent];

    const fn name(self) -> &'static str {
        match self {
            Self::Source => "not_service_source",
            Self::NoWay => "no_way",
            Self::Unsent => "unsent",
        }
    }
}

/// IO. The task that sends replies into the tunnels.
#[derive(Debug)]
pub struct Returner {
    device: Arc<TunDevice>,
    carriers: Arc<Carriers>,
    service_addresses: Vec<IpAddr>,
    plain: Option<GreSocket>,
    in_udp: Option<GreSocket>,
    slot: usize,
    sent: Vec<Counter>,
    lost: [Counter; Loss::ALL.len()],
    /// Held for their drop.
    _routes: Vec<ReturnedSource>,
}

impl Returner {
    /// Has replies routed into the device. Needs CAP_NET_ADMIN, CAP_NET_RAW and a tokio runtime.
    pub fn open(
        config: &Config,
        device: Arc<TunDevice>,
        carriers: Arc<Carriers>,
        metrics: &Metrics,
    ) -> Result<Self, ReturnError> {
        let open = |encapsulation| {
            let used = config.edges.iter();
            let mut used = used.filter(|edge| edge.encapsulation == encapsulation);
            let socket = || GreSocket::bind_to_send(config.tunnel.listen, 0, encapsulation);
            used.next().map(|_| socket()).transpose()
        };
        let routes = config.service_addresses.iter();
        let routes = routes.map(|address| ReturnedSource::add(*address, &device, MARKING));
        let edges = config.edges.iter();
        let of_edge = |name: &str| metrics.tunnel_returned.get_or_create_owned(&edge(name));
        let lost = |loss: Loss| {
            metrics
                .tunnel_unreturned
                .get_or_create_owned(&reason(loss.name()))
        };
        Ok(Self {
            plain: open(Encapsulation::Gre)?,
            in_udp: open(Encapsulation::GreUdp)?,
            service_addresses: config.service_addresses.clone(),
            slot: usize::from(config.tunnel.mtu) + 1,
            sent: edges.map(|edge| of_edge(&edge.name)).collect(),
            lost: Loss::ALL.map(lost),
            _routes: routes.collect::<Result<_, _>>()?,
            device,
            carriers,
        })
    }

    /// Sends what the kernel routes into the device, until that is lost.
    pub async fn run(self) -> io::Result<()> {
        let mut batch = PacketBatch::new(BATCH, self.slot);
        loop {
            self.device.read_batch(&mut batch).await?;
            self.send(&batch);
        }
    }

    fn send(&self, batch: &PacketBatch) {
        let (mut plain, mut in_udp) = (Vec::with_capacity(BATCH), Vec::new());
        for bytes in batch.iter() {
            let (way, header) = match self.wrap(bytes) {
                Ok(wrapped) => wrapped,
                Err(loss) => {
                    self.lost[loss as usize].inc();
                    continue;
                }
            };
            self.sent[way.edge].inc();
            let packets = match way.encapsulation {
                Encapsulation::Gre => &mut plain,
                Encapsulation::GreUdp => &mut in_udp,
            };
            packets.push(GrePacket {
                to: way.outer,
                header,
                inner: bytes,
            });
        }
        for (socket, packets) in [(&self.plain, plain), (&self.in_udp, in_udp)] {
            let sent = socket
                .as_ref()
                .map_or(0, |socket| socket.send_batch(&packets).sent);
            self.lost[Loss::Unsent as usize].inc_by(packets.len() as u64 - sent);
        }
    }

    fn wrap(&self, bytes: &[u8]) -> Result<(Way, Header), Loss> {
        let packet = Packet::parse(bytes).map_err(|_| Loss::Source)?;
        if !self.service_addresses.contains(&packet.src()) {
            return Err(Loss::Source);
        }
        let way = self.carriers.way(&packet).ok_or(Loss::NoWay)?;
        let protocol = if packet.is_ipv4() {
            Protocol::Ipv4
        } else {
            Protocol::Ipv6
        };
        let gre = Repr {
            key: way.key,
            protocol,
        };
        let header = way
            .encapsulation
            .header(gre, Entropy::of(&packet), bytes.len());
        Ok((way, header))
    }
}

/// Why replies cannot go through the tunnel.
#[derive(Debug, thiserror::Error)]
pub enum ReturnError {
    /// A socket.
    #[error("cannot send replies through the tunnel: {0}")]
    Socket(#[from] io::Error),
    /// A rule or a route.
    #[error(transparent)]
    Route(#[from] RouteError),
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "tests need some instant to count from"
)]
mod tests {
    use std::path::Path as FilePath;
    use std::time::Duration;

    use wire::ip;
    use wire::mark::Mark;

    use super::*;
    use crate::flows::Path;

    const PHONE: &str = "100.64.7.9:40000";
    const SERVICE: &str = "198.51.100.1:5060";

    fn carriers() -> Carriers {
        let text = include_str!("../../configs/concentrator.toml");
        let path = FilePath::new("concentrator.toml");
        let file = admin::config::parse(path, text).unwrap();
        Carriers::new(&Config::check(path, &file).unwrap())
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// A datagram of the phone, through this edge.
    fn note(
        carriers: &Carriers,
        edge: usize,
        outer: &str,
        key: u32,
        change: impl Fn(&mut Accepted<'_>),
    ) {
        let inner = ip::udp(PHONE.parse().unwrap(), SERVICE.parse().unwrap(), 0, b"x").unwrap();
        let packet = Packet::parse(&inner).unwrap();
        let mut accepted = Accepted {
            edge,
            path: Path {
                key: TunnelKey(0x1001),
                mark: Mark::new(0).unwrap(),
            },
            wire_key: TunnelKey(key),
            inner: &inner,
            protocol: packet.protocol(),
            source: packet.src(),
            ports: packet.ports(),
            is_probe: false,
            from_peer: false,
        };
        change(&mut accepted);
        carriers.note(&accepted, address(outer), Instant::now());
    }

    fn way_to(carriers: &Carriers, to: &str) -> Option<(usize, String, u32)> {
        let reply = ip::udp(SERVICE.parse().unwrap(), to.parse().unwrap(), 0, b"x").unwrap();
        let way = carriers.way(&Packet::parse(&reply).unwrap())?;
        Some((way.edge, way.outer.to_string(), way.key.0))
    }

    #[test]
    fn a_reply_goes_by_the_edge_that_last_carried_its_flow() {
        let carriers = carriers();
        assert_eq!(way_to(&carriers, PHONE), None);
        note(&carriers, 0, "10.0.1.2", 0x1001, |_| {});
        assert_eq!(
            way_to(&carriers, PHONE),
            Some((0, "10.0.1.2".into(), 0x1001))
        );
        note(&carriers, 1, "10.0.2.2", 0x1002, |_| {});
        assert_eq!(
            way_to(&carriers, PHONE),
            Some((1, "10.0.2.2".into(), 0x1002))
        );
        assert_eq!(way_to(&carriers, "100.64.7.10:40000"), None);
    }

    #[test]
    fn a_flow_of_another_port_goes_its_own_way_and_fragments_go_by_the_host() {
        let carriers = carriers();
        note(&carriers, 0, "10.0.1.2", 0x1001, |_| {});
        let other_port = |accepted: &mut Accepted<'_>| {
            accepted.ports = Some(ip::Ports {
                source: 50_000,
                destination: 5060,
            });
        };
        note(&carriers, 1, "10.0.2.2", 0x1002, other_port);
        assert_eq!(way_to(&carriers, PHONE).unwrap().0, 0);
        assert_eq!(way_to(&carriers, "100.64.7.9:50000").unwrap().0, 1);
        let [from, to] = ["198.51.100.1", "100.64.7.9"].map(address);
        let mut repr = ip::Repr::new(from, to, protocol::UDP);
        for offset in [0, 1_448] {
            repr.fragment = Some(ip::Fragment {
                id: 1,
                offset,
                more: offset == 0,
            });
            let fragment = repr.build(&[0x9c, 0x40, 0x13, 0xc4, 0, 0, 0, 0]).unwrap();
            let way = carriers.way(&Packet::parse(&fragment).unwrap());
            assert_eq!(way.unwrap().edge, 1, "all fragments go one way");
        }
    }

    #[test]
    fn the_key_is_the_one_that_the_edge_used_last_in_probes_too() {
        let carriers = carriers();
        note(&carriers, 0, "10.0.1.2", 0x1001, |_| {});
        note(&carriers, 0, "10.0.1.2", 0x2001, |accepted| {
            accepted.is_probe = true
        });
        assert_eq!(
            way_to(&carriers, PHONE),
            Some((0, "10.0.1.2".into(), 0x2001))
        );
    }

    #[test]
    fn what_a_peer_has_sent_on_goes_back_to_the_edge_and_not_to_the_peer() {
        let carriers = carriers();
        note(&carriers, 0, "10.0.10.2", 0x1001, |accepted| {
            accepted.from_peer = true
        });
        assert_eq!(
            way_to(&carriers, PHONE),
            None,
            "where the edge is nobody knows yet"
        );
        note(&carriers, 0, "10.0.1.2", 0x1001, |accepted| {
            accepted.is_probe = true
        });
        note(&carriers, 0, "10.0.10.2", 0x1001, |accepted| {
            accepted.from_peer = true
        });
        assert_eq!(
            way_to(&carriers, PHONE),
            Some((0, "10.0.1.2".into(), 0x1001))
        );
    }

    #[test]
    fn a_flood_of_new_flows_takes_no_more_room() {
        let mut table = Table::<u32>::new(64);
        let carrier = Carrier {
            edge: 0,
            outer: address("10.0.1.2"),
        };
        let start = Instant::now();
        for number in 0..10_000 {
            table.put(
                number,
                carrier,
                start + Duration::from_millis(number.into()),
            );
        }
        assert_eq!(table.slots.len(), 64);
        assert_eq!(table.get(&9_999), Some(carrier));
        assert_eq!(table.get(&0), None);
    }
}
