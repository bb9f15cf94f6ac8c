//! A socket for every port: the open ports of all sessions, and those that rest between two sessions.
//!
//! A session has four ports at a number of its own, its place; a [`PortPoller`] tells a port as the
//! place and which of the four. [`SessionPorts`] is shared with the media thread that works with it at
//! this moment, so a port that is taken away meanwhile is not another session's yet.
//!
//! When a session ends its sockets stay bound, with a filter that drops what arrives, until a session
//! gets the same ports again: opening four sockets is most of what a session costs. There are never
//! more of them than ports in the configured range.
//!
//! A round takes one datagram from every port that has one. A port that has more comes again in the next
//! round, so a flooded port waits like all others.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tracing::warn;
use tunnel_io::media_port::{MediaPort, PortPoller, ReadyPorts};
use wire::relay_control::SideAddr;

use super::four::{NEIGHBOURS, PORTS, PortNumber, USES, across, addresses, name};
use super::media_thread::{Intake, MAX_PACKET, Packet, RECEIVE_PAUSE};
use super::{SocketCounts, lock};
use crate::relay::{RelayPort, SessionId};

/// Ports served in one round.
const MAX_ROUND: usize = 128;
/// Packets begin at such an offset in the buffer, that of a cache line.
const ALIGNMENT: usize = 64;

/// The four ports of a session.
#[derive(Debug)]
pub(super) struct SessionPorts {
    session: SessionId,
    ports: [(SocketAddr, Arc<MediaPort>); PORTS],
}

impl SessionPorts {
    /// The socket of this port.
    pub(super) fn socket(&self, number: PortNumber) -> &MediaPort {
        &self.ports[number % PORTS].1
    }

    /// The socket that what comes in on this port goes out of.
    pub(super) fn socket_across(&self, number: PortNumber) -> &MediaPort {
        &self.ports[across(number)].1
    }

    /// What the relay calls this port.
    fn name(&self, number: PortNumber) -> RelayPort {
        name(self.session, number)
    }
}

/// All of them.
#[derive(Debug)]
pub(super) struct OpenPorts {
    /// One a media thread; a session belongs to one of them.
    pollers: Arc<[PortPoller]>,
    places: HashMap<SessionId, usize>,
    sessions: Vec<Option<Arc<SessionPorts>>>,
    free: Vec<usize>,
    resting: HashMap<SocketAddr, Arc<MediaPort>>,
    freebind: bool,
}

impl OpenPorts {
    /// None. `freebind`: addresses that are not on this host yet will do.
    pub(super) fn new(pollers: Arc<[PortPoller]>, freebind: bool) -> Self {
        Self {
            pollers,
            places: HashMap::new(),
            sessions: Vec::new(),
            free: Vec::new(),
            resting: HashMap::new(),
            freebind,
        }
    }

    /// Opens a session's ports; after an error none of them is open.
    pub(super) fn open(&mut self, session: SessionId, a: SideAddr, b: SideAddr) -> io::Result<()> {
        let mut sockets = Vec::with_capacity(PORTS);
        for address in addresses(a, b) {
            match self.socket_at(address) {
                Ok(socket) => sockets.push((address, socket)),
                Err(error) => {
                    self.rest(sockets);
                    return Err(error);
                }
            }
        }
        let Ok(ports) = <[_; PORTS]>::try_from(sockets) else {
            return Err(io::Error::other("not four ports"));
        };
        self.watch(SessionPorts { session, ports })
    }

    /// A session's ports rest from now on.
    pub(super) fn close(&mut self, session: SessionId) {
        let Some(place) = self.places.remove(&session) else {
            return;
        };
        let Some(ports) = self.sessions.get_mut(place).and_then(Option::take) else {
            return;
        };
        self.free.push(place);
        self.unwatch(place, &ports);
    }

    /// The socket of a port, while its session lasts.
    pub(super) fn socket(&self, port: RelayPort) -> Option<&MediaPort> {
        let place = self.places.get(&port.session)?;
        let ports = self.sessions.get(*place)?.as_ref()?;
        let wanted = (port.side, port.component);
        let number = USES.iter().position(|of| *of == wanted)?;
        Some(ports.socket(number))
    }

    /// The port that a poller has told.
    pub(super) fn told(&self, number: u64) -> Option<(&Arc<SessionPorts>, PortNumber)> {
        let number = usize::try_from(number).ok()?;
        let ports = self.sessions.get(number / PORTS)?.as_ref()?;
        Some((ports, number % PORTS))
    }

    /// How many sockets there are.
    pub(super) fn counts(&self) -> SocketCounts {
        SocketCounts {
            open: (self.places.len() * PORTS) as u64,
            resting: self.resting.len() as u64,
        }
    }

    fn socket_at(&mut self, address: SocketAddr) -> io::Result<Arc<MediaPort>> {
        if let Some(rested) = self.resting.remove(&address)
            && rested.wake().is_ok()
        {
            return Ok(rested);
        }
        let bind = if self.freebind {
            MediaPort::bind_in_advance
        } else {
            MediaPort::bind
        };
        bind(address).map(Arc::new)
    }

    fn watch(&mut self, ports: SessionPorts) -> io::Result<()> {
        let place = self.free.pop().unwrap_or_else(|| {
            self.sessions.push(None);
            self.sessions.len() - 1
        });
        let ports = Arc::new(ports);
        for (number, (_, socket)) in ports.ports.iter().enumerate() {
            if let Err(error) = self.poller(place).add(socket, told_as(place, number)) {
                self.free.push(place);
                self.unwatch(place, &ports);
                return Err(error);
            }
        }
        self.places.insert(ports.session, place);
        if let Some(entry) = self.sessions.get_mut(place) {
            *entry = Some(ports);
        }
        Ok(())
    }

    fn unwatch(&mut self, place: usize, ports: &SessionPorts) {
        for (_, socket) in &ports.ports {
            // One that was never added, after a failure, is not there to be removed.
            let _absent = self.poller(place).remove(socket);
        }
        self.rest(ports.ports.iter().cloned());
    }

    fn rest(&mut self, sockets: impl IntoIterator<Item = (SocketAddr, Arc<MediaPort>)>) {
        for (address, socket) in sockets {
            match socket.rest() {
                Ok(()) => {
                    self.resting.insert(address, socket);
                }
                Err(error) => warn!(%address, %error, "a media socket is closed, not kept"),
            }
        }
    }

    fn poller(&self, place: usize) -> &PortPoller {
        &self.pollers[place / NEIGHBOURS % self.pollers.len()]
    }
}

/// The media thread's side of it.
pub(super) struct PerPortIntake {
    ports: Arc<Mutex<OpenPorts>>,
    thread: usize,
    pollers: Arc<[PortPoller]>,
    ready: ReadyPorts,
    bytes: Box<[u8]>,
}

/// Where a packet came in and lies.
pub(super) struct Place {
    ports: Arc<SessionPorts>,
    number: PortNumber,
    bytes: Range<usize>,
}

impl PerPortIntake {
    /// That of this thread.
    pub(super) fn new(ports: &Arc<Mutex<OpenPorts>>, thread: usize) -> Self {
        let pollers = Arc::clone(&lock(ports).pollers);
        Self {
            ports: Arc::clone(ports),
            thread,
            pollers,
            ready: ReadyPorts::new(MAX_ROUND),
            bytes: vec![0; MAX_ROUND * (MAX_PACKET + ALIGNMENT)].into(),
        }
    }

    fn find_ports(&self, packets: &mut Vec<Packet<Place>>) {
        let open = lock(&self.ports);
        for told in self.ready.iter() {
            // A session may have ended since.
            let Some((ports, number)) = open.told(told) else {
                continue;
            };
            packets.push(Packet {
                port: ports.name(number),
                from: SocketAddr::from(([0; 4], 0)),
                to: None,
                place: Place {
                    ports: Arc::clone(ports),
                    number,
                    bytes: 0..0,
                },
            });
        }
    }
}

impl Intake for PerPortIntake {
    type Place = Place;

    fn wait(&mut self, at_once: bool) -> io::Result<Option<bool>> {
        let limit = at_once.then_some(Duration::ZERO);
        let ready = self.pollers[self.thread].wait(&mut self.ready, limit)?;
        Ok(ready.map(|ready| ready > 0))
    }

    /// One datagram from each port, one behind the other in the buffer.
    fn receive(&mut self, packets: &mut Vec<Packet<Place>>) -> u64 {
        self.find_ports(packets);
        let (mut start, mut oversize) = (0, 0);
        let mut failure = None;
        packets.retain_mut(|packet| {
            let room = &mut self.bytes[start..start + MAX_PACKET];
            let place = &mut packet.place;
            match place.ports.socket(place.number).receive(room) {
                Ok(None) => false,
                Ok(Some(arrival)) if arrival.length > MAX_PACKET => {
                    oversize += 1;
                    false
                }
                Ok(Some(arrival)) => {
                    packet.from = arrival.from;
                    place.bytes = start..start + arrival.length;
                    start = place.bytes.end.next_multiple_of(ALIGNMENT);
                    true
                }
                Err(error) => {
                    failure = Some(error);
                    false
                }
            }
        });
        if let Some(error) = failure {
            warn!(%error, "a media socket failed");
            std::thread::sleep(RECEIVE_PAUSE);
        }
        oversize
    }

    fn bytes(&self, place: &Place) -> &[u8] {
        &self.bytes[place.bytes.clone()]
    }

    fn transmit(&mut self, packets: &mut [Packet<Place>], failed: &mut Vec<RelayPort>) {
        for packet in packets {
            let Some(to) = packet.to.take() else {
                continue;
            };
            let Place { ports, number, .. } = &packet.place;
            let bytes = &self.bytes[packet.place.bytes.clone()];
            if ports.socket_across(*number).send(to, bytes).is_err() {
                failed.push(ports.name(across(*number)));
            }
        }
    }
}

const fn told_as(place: usize, number: PortNumber) -> u64 {
    (place * PORTS + number) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Component;
    use std::net::{IpAddr, Ipv4Addr};
    use wire::relay_control::Side;

    const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn a_packet_is_told_with_its_session_and_port() {
        let mut open = open_ports();
        let (a, b) = sides(42_100);
        open.open(SessionId(1), a, b).unwrap();
        open.open(SessionId(2), sides(42_110).0, sides(42_110).1)
            .unwrap();
        let sender = MediaPort::bind(SocketAddr::new(LOCAL, 0)).unwrap();
        sender
            .send(SocketAddr::new(LOCAL, b.rtcp), b"packet")
            .unwrap();

        let told = told(&open);
        let (ports, number) = open.told(told[0]).unwrap();
        let name = ports.name(number);
        assert_eq!(name.session, SessionId(1));
        assert_eq!((name.side, name.component), (Side::B, Component::Rtcp));
        assert!(ports.socket(number).receive(&mut [0; 8]).unwrap().is_some());
        let across = ports.socket_across(number).local().unwrap();
        assert_eq!(across.port(), a.rtcp);
    }

    #[test]
    fn a_closed_session_leaves_its_sockets_to_the_next_with_the_same_ports() {
        let mut open = open_ports();
        let (a, b) = sides(42_120);
        open.open(SessionId(1), a, b).unwrap();
        open.close(SessionId(1));
        let counts = open.counts();
        assert_eq!((counts.open, counts.resting), (0, 4));

        let sender = MediaPort::bind(SocketAddr::new(LOCAL, 0)).unwrap();
        sender.send(SocketAddr::new(LOCAL, a.rtp), b"late").unwrap();
        open.open(SessionId(2), a, b).unwrap();
        let counts = open.counts();
        assert_eq!((counts.open, counts.resting), (4, 0));
        assert!(told(&open).is_empty());
        sender.send(SocketAddr::new(LOCAL, a.rtp), b"new").unwrap();
        assert_eq!(told(&open).len(), 1);
    }

    #[test]
    fn after_a_failure_no_port_of_the_session_is_open() {
        let mut open = open_ports();
        let (a, b) = sides(42_130);
        let foreign = MediaPort::bind(SocketAddr::new(LOCAL, b.rtp)).unwrap();
        assert!(open.open(SessionId(1), a, b).is_err());
        assert!(open.socket(rtp_of_a(1)).is_none());
        assert_eq!(open.counts().open, 0);
        drop(foreign);
        open.open(SessionId(2), a, b).unwrap();
        assert_eq!(open.counts().open, 4);
        let socket = open.socket(rtp_of_a(2)).unwrap();
        assert_eq!(socket.local().unwrap().port(), a.rtp);
    }

    #[test]
    fn ports_of_an_address_that_is_elsewhere_open_and_open_again_only_in_advance() {
        let elsewhere = |mut side: SideAddr| {
            side.addr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
            side
        };
        let (a, b) = sides(42_140);
        let (a, b) = (elsewhere(a), elsewhere(b));
        assert!(open_ports().open(SessionId(1), a, b).is_err());

        let mut open = open_ports();
        open.freebind = true;
        open.open(SessionId(1), a, b).unwrap();
        open.close(SessionId(1));
        assert_eq!(open.counts().resting, 4);
        open.open(SessionId(2), a, b).unwrap();
        assert_eq!(open.counts().open, 4);
    }

    fn rtp_of_a(session: u64) -> RelayPort {
        RelayPort {
            session: SessionId(session),
            side: Side::A,
            component: Component::Rtp,
        }
    }

    fn open_ports() -> OpenPorts {
        let pollers = [PortPoller::new().unwrap(), PortPoller::new().unwrap()];
        OpenPorts::new(Arc::new(pollers), false)
    }

    fn told(open: &OpenPorts) -> Vec<u64> {
        let mut ready = ReadyPorts::new(8);
        let mut numbers = Vec::new();
        for poller in open.pollers.iter() {
            poller.wait(&mut ready, Some(Duration::ZERO)).unwrap();
            numbers.extend(ready.iter());
        }
        numbers
    }

    fn sides(first: u16) -> (SideAddr, SideAddr) {
        let side = |rtp| SideAddr {
            addr: LOCAL,
            rtp,
            rtcp: rtp + 1,
        };
        (side(first), side(first + 2))
    }
}
