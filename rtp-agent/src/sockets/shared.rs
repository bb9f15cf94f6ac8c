//! Few sockets for all ports: a BPF program steers what comes to a media port into the socket of the thread
//! that its session belongs to, and raw sockets send out of any port.
//!
//! What is open is a table of ports here and one of pairs in the program. A datagram for a port that is in
//! neither is dropped and counted, by the program or, where the port was closed while the datagram waited,
//! here. The ports are not bound: [`SharedPorts::open`] looks whether another program listens on one, and
//! holds a port near each end of the range, so that a second agent with the same ports is noticed.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context as _, bail};
use smallvec::SmallVec;
use tracing::warn;
use tunnel_io::media_port::{MediaPort, PortPoller, ReadyPorts};
use tunnel_io::shared_ports::{Family, PortDatagram, PortSender, SharedReceiver};
use tunnel_io::steering::{self, Plan, Steering, SteeringDrops, include_bytes_aligned};
use tunnel_io::{DatagramBatch, MAX_BATCH, system};
use wire::relay_control::SideAddr;

use super::four::{NEIGHBOURS, PORTS, across, addresses, name};
use super::lock;
use super::media_thread::{Intake, MAX_PACKET, Packet, RECEIVE_PAUSE};
use crate::ports::PortRange;
use crate::relay::{RelayPort, SessionId};

/// Built by `build.rs`; empty where there was no clang.
static PROGRAM: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/ports.bpf.o"));
/// Datagrams a second to one side of a session; video of the best quality has some 2,000.
pub(crate) const PAIR_LIMIT: u32 = 10_000;

/// What the sockets and the program dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SharedDrops {
    /// Came to a port that no session has open.
    pub unopened: u64,
    /// Came too fast to one side of a session.
    pub flood: u64,
    /// Came while a receive queue was full, or with a wrong checksum.
    pub queue: u64,
}

/// All of it.
#[derive(Debug)]
pub(super) struct SharedPorts {
    table: RwLock<Table>,
    steering: Mutex<Steering>,
    threads: Vec<Thread>,
    /// For packets that were held.
    senders: Senders,
    unopened: AtomicU64,
    _claims: Vec<MediaPort>,
}

/// What a media thread waits for.
#[derive(Debug)]
struct Thread {
    receivers: Vec<SharedReceiver>,
    poller: PortPoller,
}

/// The open ports.
#[derive(Debug)]
struct Table {
    first: u16,
    /// By port, from the first on.
    ports: Vec<Option<OpenPort>>,
    sessions: HashMap<SessionId, Open>,
    /// Sessions of each thread.
    load: Vec<usize>,
}

#[derive(Debug)]
struct Open {
    addresses: [SocketAddr; PORTS],
    thread: usize,
}

#[derive(Debug, Clone, Copy)]
struct OpenPort {
    name: RelayPort,
    local: IpAddr,
    /// Where what comes in goes out.
    exit: SocketAddr,
}

impl SharedPorts {
    /// Attaches the program and opens the sockets; an error says why that is not possible here. No
    /// port is open. `freebind`: the addresses may come later.
    pub(super) fn open(
        local: &[IpAddr],
        range: PortRange,
        threads: usize,
        freebind: bool,
    ) -> anyhow::Result<Self> {
        let plan = Plan {
            addresses: local.to_vec(),
            ports: range.bounds(),
            pair_limit: PAIR_LIMIT,
        };
        let (first, last) = range.bounds();
        if let Err(error) = system::reserve_local_ports(first, last) {
            warn!(%error, "media.ports are not reserved");
        }
        check_free(&plan)?;
        let claims = claim(local, range, freebind)?;
        let senders = Senders::open(local)?;
        let receivers = (0..threads)
            .map(|_| receivers(local))
            .collect::<io::Result<Vec<_>>>()
            .context(
                "no local port is left for our sockets; leave some of net.ipv4.ip_local_port_range \
                 out of media.ports",
            )?;
        let steering = Steering::attach(PROGRAM, &plan, &receivers)?;
        let threads = receivers.into_iter().map(Thread::new);
        Ok(Self {
            table: RwLock::new(Table::new(range, threads.len())),
            steering: Mutex::new(steering),
            threads: threads.collect::<io::Result<_>>()?,
            senders,
            unopened: AtomicU64::new(0),
            _claims: claims,
        })
    }

    /// Opens a session's ports.
    pub(super) fn open_session(
        &self,
        session: SessionId,
        a: SideAddr,
        b: SideAddr,
    ) -> io::Result<()> {
        let addresses = addresses(a, b);
        let thread = self.write().open(session, addresses)?;
        let mut steering = lock(&self.steering);
        let given = steering
            .give(a.rtp, thread)
            .and_then(|()| steering.give(b.rtp, thread));
        drop(steering);
        if given.is_err() {
            self.close_session(session);
        }
        given
    }

    /// Closes them.
    pub(super) fn close_session(&self, session: SessionId) {
        let Some(open) = self.write().close(session) else {
            return;
        };
        let mut steering = lock(&self.steering);
        for address in open.addresses.iter().step_by(PORTS / 2) {
            if let Err(error) = steering.take_back(address.port()) {
                // What comes is dropped by the table, then.
                warn!(%address, %error, "the BPF program keeps a port open");
            }
        }
    }

    /// Sends one packet; false when it was not taken.
    pub(super) fn send(&self, port: RelayPort, to: SocketAddr, bytes: &[u8]) -> bool {
        let Some(exit) = self.read().address_of(port) else {
            return true;
        };
        let mut taken = true;
        let packet = PortDatagram {
            port: exit.port(),
            to,
            bytes,
        };
        if let Some(sender) = self.senders.of(exit.ip()) {
            sender.send([packet], |_, _| taken = false);
        }
        taken
    }

    /// What was dropped so far.
    pub(super) fn drops(&self) -> SharedDrops {
        let steered = lock(&self.steering).drops();
        let SteeringDrops { unopened, flood } = steered.unwrap_or_default();
        let receivers = self.threads.iter().flat_map(|thread| &thread.receivers);
        SharedDrops {
            unopened: unopened + self.unopened.load(Ordering::Relaxed),
            flood,
            queue: receivers
                .map(|receiver| receiver.drops().unwrap_or(0))
                .sum(),
        }
    }

    /// How many media threads.
    pub(super) fn threads(&self) -> usize {
        self.threads.len()
    }

    /// Sockets that receive.
    pub(super) fn receivers(&self) -> usize {
        let receivers = self.threads.iter().map(|thread| thread.receivers.len());
        receivers.sum()
    }

    /// Ends the threads.
    pub(super) fn close(&self) -> io::Result<()> {
        let mut pollers = self.threads.iter().map(|thread| &thread.poller);
        pollers.try_for_each(PortPoller::close)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Thread {
    fn new(receivers: Vec<SharedReceiver>) -> io::Result<Self> {
        let poller = PortPoller::new()?;
        for (number, receiver) in (0..).zip(&receivers) {
            poller.add(receiver, number)?;
        }
        Ok(Self { receivers, poller })
    }
}

impl Table {
    fn new(range: PortRange, threads: usize) -> Self {
        let (first, last) = range.bounds();
        Self {
            first,
            ports: vec![None; usize::from(last - first) + 1],
            sessions: HashMap::new(),
            load: vec![0; threads],
        }
    }

    /// The thread that the session belongs to from now on.
    fn open(&mut self, session: SessionId, addresses: [SocketAddr; PORTS]) -> io::Result<usize> {
        let is_free = |address: &SocketAddr| matches!(self.slot(address.port()), Some(None));
        if !addresses.iter().all(is_free) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let loads = self.load.iter().enumerate();
        let (thread, _) = loads
            .min_by_key(|&(_, load)| load / NEIGHBOURS)
            .ok_or_else(|| io::Error::other("no media thread"))?;
        self.load[thread] += 1;
        for (number, address) in addresses.iter().enumerate() {
            let open = OpenPort {
                name: name(session, number),
                local: address.ip(),
                exit: addresses[across(number)],
            };
            let index = usize::from(address.port() - self.first);
            self.ports[index] = Some(open);
        }
        self.sessions.insert(session, Open { addresses, thread });
        Ok(thread)
    }

    fn close(&mut self, session: SessionId) -> Option<Open> {
        let open = self.sessions.remove(&session)?;
        self.load[open.thread] -= 1;
        for address in open.addresses {
            let index = usize::from(address.port() - self.first);
            self.ports[index] = None;
        }
        Some(open)
    }

    /// `None`: not in the range.
    fn slot(&self, port: u16) -> Option<&Option<OpenPort>> {
        let index = port.checked_sub(self.first)?;
        self.ports.get(usize::from(index))
    }

    fn find(&self, to: SocketAddr) -> Option<&OpenPort> {
        let open = self.slot(to.port())?.as_ref()?;
        (open.local == to.ip()).then_some(open)
    }

    fn address_of(&self, port: RelayPort) -> Option<SocketAddr> {
        let open = self.sessions.get(&port.session)?;
        let mut numbers = 0..PORTS;
        let number = numbers.find(|&number| name(port.session, number) == port)?;
        Some(open.addresses[number])
    }
}

/// The media thread's side of it.
pub(super) struct SharedIntake {
    ports: Arc<SharedPorts>,
    thread: usize,
    senders: Senders,
    ready: ReadyPorts,
    /// One a receiver.
    batches: Vec<DatagramBatch>,
    /// The last batch was full, so there may be more.
    more: bool,
}

/// Where a packet lies and where it goes out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    batch: usize,
    index: usize,
    exit: SocketAddr,
}

impl SharedIntake {
    /// That of this thread.
    pub(super) fn new(ports: &Arc<SharedPorts>, thread: usize) -> io::Result<Self> {
        let receivers = &ports.threads[thread].receivers;
        let batch = |_: &SharedReceiver| DatagramBatch::new(MAX_BATCH, MAX_PACKET);
        let local: Vec<IpAddr> = ports.senders.0.iter().map(PortSender::local).collect();
        Ok(Self {
            thread,
            senders: Senders::open(&local)?,
            ready: ReadyPorts::new(receivers.len() + 1),
            batches: receivers.iter().map(batch).collect(),
            more: false,
            ports: Arc::clone(ports),
        })
    }
}

impl Intake for SharedIntake {
    type Place = Place;

    fn wait(&mut self, at_once: bool) -> io::Result<Option<bool>> {
        if at_once && !self.more {
            return Ok(Some(false));
        }
        let limit = at_once.then_some(Duration::ZERO);
        let poller = &self.ports.threads[self.thread].poller;
        let ready = poller.wait(&mut self.ready, limit)?;
        Ok(ready.map(|ready| ready > 0))
    }

    fn receive(&mut self, packets: &mut Vec<Packet<Place>>) -> u64 {
        let (mut oversize, mut unopened) = (0, 0);
        self.more = false;
        let receivers = &self.ports.threads[self.thread].receivers;
        let mut received: SmallVec<[(usize, usize); 2]> = SmallVec::new();
        for told in self.ready.iter() {
            let batch = usize::try_from(told).unwrap_or(usize::MAX);
            let (Some(receiver), Some(buffers)) =
                (receivers.get(batch), self.batches.get_mut(batch))
            else {
                continue;
            };
            match receiver.receive(buffers) {
                Ok(count) => {
                    self.more |= count == MAX_BATCH;
                    received.push((batch, count));
                }
                Err(error) => {
                    warn!(%error, "a media socket failed");
                    std::thread::sleep(RECEIVE_PAUSE);
                }
            }
        }
        let table = self.ports.read();
        for (batch, count) in received {
            for index in 0..count {
                let Some(datagram) = self.batches[batch].get(index) else {
                    oversize += 1;
                    continue;
                };
                let Some(open) = datagram.to.and_then(|to| table.find(to)) else {
                    unopened += 1;
                    continue;
                };
                packets.push(Packet {
                    port: open.name,
                    from: datagram.from,
                    to: None,
                    place: Place {
                        batch,
                        index,
                        exit: open.exit,
                    },
                });
            }
        }
        if unopened > 0 {
            self.ports.unopened.fetch_add(unopened, Ordering::Relaxed);
        }
        oversize
    }

    fn bytes(&self, place: &Place) -> &[u8] {
        self.batches[place.batch].payload(place.index)
    }

    fn transmit(&mut self, packets: &mut [Packet<Place>], failed: &mut Vec<RelayPort>) {
        for sender in &self.senders.0 {
            let is_its = |packet: &&Packet<Place>| {
                packet.to.is_some() && packet.place.exit.ip() == sender.local()
            };
            let outgoing = packets.iter().filter(is_its).filter_map(|packet| {
                Some(PortDatagram {
                    port: packet.place.exit.port(),
                    to: packet.to?,
                    bytes: self.bytes(&packet.place),
                })
            });
            sender.send(outgoing, |index, _| {
                let packet = packets.iter().filter(is_its).nth(index);
                failed.extend(packet.map(|packet| RelayPort {
                    side: packet.port.side.other(),
                    ..packet.port
                }));
            });
        }
        for packet in packets {
            packet.to = None;
        }
    }
}

/// One a media address.
#[derive(Debug)]
struct Senders(Vec<PortSender>);

impl Senders {
    fn open(local: &[IpAddr]) -> io::Result<Self> {
        let senders = local.iter().map(|&address| PortSender::open(address));
        senders.collect::<io::Result<_>>().map(Self)
    }

    fn of(&self, local: IpAddr) -> Option<&PortSender> {
        self.0.iter().find(|sender| sender.local() == local)
    }
}

fn receivers(local: &[IpAddr]) -> io::Result<Vec<SharedReceiver>> {
    let families = local.iter().map(|&address| Family::of(address));
    families.map(SharedReceiver::open).collect()
}

/// Another program's socket in the range would hear nothing any more.
fn check_free(plan: &Plan) -> anyhow::Result<()> {
    let taken = steering::listeners(plan).context("cannot read /proc/net/udp")?;
    let Some(first) = taken.first() else {
        return Ok(());
    };
    bail!(
        "another program listens in media.ports: {first} and {} more; see `ss -uanp`, and keep those \
         ports free by net.ipv4.ip_local_reserved_ports",
        taken.len() - 1
    )
}

/// The RTCP ports of the first and the last pair, where nothing is ever too long for its path, which is
/// the only use that a bound port has here.
fn claim(local: &[IpAddr], range: PortRange, freebind: bool) -> anyhow::Result<Vec<MediaPort>> {
    let bind = if freebind {
        MediaPort::bind_in_advance
    } else {
        MediaPort::bind
    };
    let mut claims = Vec::new();
    for &address in local {
        for port in range.rtcp_at_the_ends() {
            let port = SocketAddr::new(address, port);
            claims.push(bind(port).with_context(|| format!("cannot bind {port}"))?);
        }
    }
    Ok(claims)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Component;
    use wire::relay_control::Side;

    fn local() -> IpAddr {
        IpAddr::from([192, 0, 2, 1])
    }

    fn table() -> Table {
        Table::new(PortRange::new(30_000, 31_999).unwrap(), 2)
    }

    fn ports(first: u16) -> [SocketAddr; PORTS] {
        [0, 1, 2, 3].map(|number| SocketAddr::new(local(), first + number))
    }

    #[test]
    fn a_port_is_found_with_its_session_and_the_way_out() {
        let mut table = table();
        table.open(SessionId(7), ports(30_004)).unwrap();
        let open = table.find(SocketAddr::new(local(), 30_005)).unwrap();
        assert_eq!(open.name, name(SessionId(7), 1));
        assert_eq!(
            (open.name.side, open.name.component),
            (Side::A, Component::Rtcp)
        );
        assert_eq!(open.exit, SocketAddr::new(local(), 30_007));
        assert_eq!(table.address_of(open.name).unwrap().port(), 30_005);
    }

    #[test]
    fn another_address_another_port_and_a_closed_one_are_not_found() {
        let mut table = table();
        table.open(SessionId(7), ports(30_004)).unwrap();
        let elsewhere = IpAddr::from([192, 0, 2, 2]);
        for to in [
            SocketAddr::new(elsewhere, 30_005),
            SocketAddr::new(local(), 30_003),
            SocketAddr::new(local(), 29_999),
            SocketAddr::new(local(), 32_000),
        ] {
            assert!(table.find(to).is_none(), "{to}");
        }
        assert!(table.close(SessionId(7)).is_some());
        assert!(table.close(SessionId(7)).is_none());
        assert!(table.find(SocketAddr::new(local(), 30_005)).is_none());
        assert_eq!(table.load, [0, 0]);
    }

    #[test]
    fn ports_of_another_session_or_outside_of_the_range_are_not_opened() {
        let mut table = table();
        table.open(SessionId(7), ports(30_004)).unwrap();
        for first in [30_004, 30_006, 29_998, 31_998] {
            assert!(table.open(SessionId(8), ports(first)).is_err(), "{first}");
        }
        assert_eq!(
            (table.sessions.len(), table.load.as_slice()),
            (1, &[1, 0][..])
        );
    }

    #[test]
    fn the_first_thread_fills_up_before_the_next_gets_sessions() {
        let mut table = table();
        let threads = (0..500).map(|number| {
            let first = 30_000 + number * 4;
            table.open(SessionId(number.into()), ports(first)).unwrap()
        });
        let threads: Vec<_> = threads.collect();
        assert!(threads[..NEIGHBOURS].iter().all(|&thread| thread == 0));
        assert!(threads[NEIGHBOURS..].iter().all(|&thread| thread == 1));
    }
}
