//! UDP ports by the ten thousand: one epoll for many sockets, one plain call a datagram.
//!
//! A media stream has a packet in 20 ms, so a batch for one socket would hold one datagram and cost
//! the set-up of a batch. What can be shared is the waiting: a [`PortPoller`] tells which of all its
//! sockets have something, and a [`MediaPort`] receives and sends with `recvfrom` and `sendto`, the
//! cheapest calls there are for one datagram. Nothing here needs a runtime.
//!
//! The poller is level-triggered: a socket from which not everything was read is told again, so the
//! caller reads one datagram from each and a flooded port cannot keep it from the others.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::gre_socket::DROP_ALL;
use crate::mmsg::{RawAddress, no_datagram_because};
use crate::send_report::SendFailure;

/// A bound UDP socket that never waits.
#[derive(Debug)]
pub struct MediaPort {
    socket: OwnedFd,
}

/// What one call has received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Who sent it.
    pub from: SocketAddr,
    /// The length of the datagram, which may be more than the buffer has taken.
    pub length: usize,
}

impl MediaPort {
    /// Opens and binds the socket; an IPv6 one takes no IPv4.
    pub fn bind(local: SocketAddr) -> io::Result<Self> {
        Self::open(local, false)
    }

    /// The same, though the address may not be on this host yet (`IP_FREEBIND`): what is sent to it
    /// arrives once it is.
    pub fn bind_in_advance(local: SocketAddr) -> io::Result<Self> {
        Self::open(local, true)
    }

    fn open(local: SocketAddr, freebind: bool) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(local), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        match local {
            SocketAddr::V4(_) => socket.set_freebind_v4(freebind)?,
            SocketAddr::V6(_) => {
                socket.set_only_v6(true)?;
                socket.set_freebind_v6(freebind)?;
            }
        }
        socket.bind(&local.into())?;
        Ok(Self {
            socket: socket.into(),
        })
    }

    /// The address it is bound to.
    pub fn local(&self) -> io::Result<SocketAddr> {
        let local = SockRef::from(&self.socket).local_addr()?;
        local
            .as_socket()
            .ok_or_else(|| io::Error::other("not an IP socket"))
    }

    /// Receives one datagram; `None` when there is none. An ICMP error about something that was sent
    /// earlier counts as none.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<Arrival>> {
        let mut address = RawAddress::zeroed();
        let mut length = size_of::<RawAddress>() as libc::socklen_t;
        // SAFETY: buffer, address and length are valid for writes of the lengths that are passed, and
        // are borrowed or owned here until the call returns.
        let received = unsafe {
            libc::recvfrom(
                self.socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                // With MSG_TRUNC the result is the length of the datagram, not of what was copied.
                libc::MSG_DONTWAIT | libc::MSG_TRUNC,
                (&raw mut address).cast(),
                &raw mut length,
            )
        };
        let Ok(received) = usize::try_from(received) else {
            let errno = Errno::last();
            if errno != Errno::EAGAIN {
                no_datagram_because(errno)?;
            }
            return Ok(None);
        };
        Ok(address.read(length).map(|from| Arrival {
            from,
            length: received,
        }))
    }

    /// Sends one datagram, or says why the kernel does not take it now.
    pub fn send(&self, to: SocketAddr, bytes: &[u8]) -> Result<(), SendFailure> {
        let (address, length) = RawAddress::of(to);
        loop {
            // SAFETY: bytes and address are valid for reads of the lengths that are passed.
            let sent = unsafe {
                libc::sendto(
                    self.socket.as_raw_fd(),
                    bytes.as_ptr().cast(),
                    bytes.len(),
                    libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
                    (&raw const address).cast(),
                    length,
                )
            };
            if sent >= 0 {
                return Ok(());
            }
            let errno = Errno::last();
            if errno != Errno::EINTR {
                return Err(SendFailure::of(errno));
            }
        }
    }

    /// From now on the kernel drops what arrives; the port stays ours. Take it out of its poller too.
    pub fn rest(&self) -> io::Result<()> {
        SockRef::from(&self.socket).attach_filter(&DROP_ALL)
    }

    /// The end of [`MediaPort::rest`]: what had arrived before it is thrown away.
    pub fn wake(&self) -> io::Result<()> {
        while self.receive(&mut [])?.is_some() {}
        SockRef::from(&self.socket).detach_filter()
    }
}

impl AsFd for MediaPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The numbers of ports that have something; a buffer for [`PortPoller::wait`].
pub struct ReadyPorts {
    events: Box<[EpollEvent]>,
    count: usize,
}

impl ReadyPorts {
    /// Room for this many, at least one.
    pub fn new(capacity: usize) -> Self {
        Self {
            events: vec![EpollEvent::empty(); capacity.max(1)].into(),
            count: 0,
        }
    }

    /// The numbers that were given to [`PortPoller::add`].
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        self.events.iter().take(self.count).map(EpollEvent::data)
    }
}

impl std::fmt::Debug for ReadyPorts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Waits for many ports at once.
#[derive(Debug)]
pub struct PortPoller {
    epoll: Epoll,
    closed: AtomicBool,
    closing: EventFd,
}

impl PortPoller {
    /// No port yet.
    pub fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let closing = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&closing, EpollEvent::new(EpollFlags::EPOLLIN, u64::MAX))?;
        Ok(Self {
            epoll,
            closed: AtomicBool::new(false),
            closing,
        })
    }

    /// Ends [`PortPoller::wait`], now and in future.
    pub fn close(&self) -> io::Result<()> {
        self.closed.store(true, Ordering::Release);
        self.closing.write(1)?;
        Ok(())
    }

    /// Watches this port under this number, not `u64::MAX`, also while another thread waits.
    pub fn add(&self, port: &impl AsFd, number: u64) -> io::Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, number);
        Ok(self.epoll.add(port, event)?)
    }

    /// Watches it no longer.
    pub fn remove(&self, port: &impl AsFd) -> io::Result<()> {
        Ok(self.epoll.delete(port)?)
    }

    /// Waits until a port has something, or for this long (whole milliseconds); how many have. `None`
    /// after [`PortPoller::close`].
    pub fn wait(
        &self,
        ready: &mut ReadyPorts,
        limit: Option<Duration>,
    ) -> io::Result<Option<usize>> {
        let limit = match limit {
            Some(limit) => EpollTimeout::try_from(limit).unwrap_or(EpollTimeout::MAX),
            None => EpollTimeout::NONE,
        };
        ready.count = 0;
        ready.count = match self.epoll.wait(&mut ready.events, limit) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        let closed = self.closed.load(Ordering::Acquire);
        Ok((!closed).then_some(ready.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(address: &str) -> (MediaPort, SocketAddr) {
        let port = MediaPort::bind(address.parse().unwrap()).unwrap();
        let local = port.local().unwrap();
        (port, local)
    }

    fn arrives(address: &str) {
        let ((sender, from), (receiver, to)) = (port(address), port(address));
        sender.send(to, b"one").unwrap();
        sender.send(to, b"").unwrap();
        let mut buffer = [0; 16];
        let first = receiver.receive(&mut buffer).unwrap();
        assert_eq!(first, Some(Arrival { from, length: 3 }));
        assert_eq!(&buffer[..3], b"one");
        let second = receiver.receive(&mut buffer).unwrap();
        assert_eq!(second, Some(Arrival { from, length: 0 }));
        assert_eq!(receiver.receive(&mut buffer).unwrap(), None);
    }

    #[test]
    fn datagrams_arrive_in_order_over_ipv4() {
        arrives("127.0.0.1:0");
    }

    #[test]
    fn datagrams_arrive_in_order_over_ipv6() {
        arrives("[::1]:0");
    }

    #[test]
    fn an_address_that_is_not_here_is_bound_only_in_advance() {
        for elsewhere in ["192.0.2.1:42150", "[2001:db8::1]:42150"] {
            let elsewhere = elsewhere.parse().unwrap();
            assert!(MediaPort::bind(elsewhere).is_err());
            let port = MediaPort::bind_in_advance(elsewhere).unwrap();
            assert_eq!(port.local().unwrap(), elsewhere);
        }
    }

    #[test]
    fn a_datagram_longer_than_the_buffer_says_its_length() {
        let ((sender, from), (receiver, to)) = (port("127.0.0.1:0"), port("127.0.0.1:0"));
        sender.send(to, &[7; 100]).unwrap();
        let mut buffer = [0; 10];
        let arrival = receiver.receive(&mut buffer).unwrap();
        assert_eq!(arrival, Some(Arrival { from, length: 100 }));
        assert_eq!(buffer, [7; 10]);
    }

    #[test]
    fn what_cannot_be_sent_is_refused_by_its_reason() {
        let ((sender, _), (_receiver, to)) = (port("127.0.0.1:0"), port("127.0.0.1:0"));
        assert_eq!(sender.send(to, &[0; 65_535]), Err(SendFailure::TooBig));
        assert!(sender.send("[::1]:9".parse().unwrap(), b"x").is_err());
        assert_eq!(sender.send(to, b"x"), Ok(()));
    }

    #[test]
    fn a_port_is_told_until_it_has_been_emptied() {
        let poller = PortPoller::new().unwrap();
        let mut ready = ReadyPorts::new(8);
        let ((sender, _), (receiver, to)) = (port("127.0.0.1:0"), port("127.0.0.1:0"));
        poller.add(&receiver, 42).unwrap();
        assert_eq!(
            poller.wait(&mut ready, Some(Duration::ZERO)).unwrap(),
            Some(0)
        );
        sender.send(to, b"1").unwrap();
        sender.send(to, b"2").unwrap();
        for _ in 0..2 {
            assert_eq!(poller.wait(&mut ready, None).unwrap(), Some(1));
            assert_eq!(ready.iter().collect::<Vec<_>>(), [42]);
            assert!(receiver.receive(&mut [0; 8]).unwrap().is_some());
        }
        assert_eq!(
            poller.wait(&mut ready, Some(Duration::ZERO)).unwrap(),
            Some(0)
        );
        poller.remove(&receiver).unwrap();
        sender.send(to, b"3").unwrap();
        assert_eq!(
            poller.wait(&mut ready, Some(Duration::ZERO)).unwrap(),
            Some(0)
        );
    }

    #[test]
    fn a_closed_poller_ends_the_wait_of_another_thread() {
        let poller = PortPoller::new().unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| poller.wait(&mut ReadyPorts::new(1), None).unwrap());
            poller.close().unwrap();
            assert_eq!(waiting.join().unwrap(), None);
        });
    }

    #[test]
    fn a_port_at_rest_keeps_its_number_and_drops_what_arrives() {
        let ((sender, _), (receiver, to)) = (port("127.0.0.1:0"), port("127.0.0.1:0"));
        sender.send(to, b"before").unwrap();
        receiver.rest().unwrap();
        sender.send(to, b"meanwhile").unwrap();
        assert!(MediaPort::bind(to).is_err());
        receiver.wake().unwrap();
        sender.send(to, b"after").unwrap();
        let mut buffer = [0; 16];
        let arrival = receiver.receive(&mut buffer).unwrap().unwrap();
        assert_eq!(&buffer[..arrival.length], b"after");
        assert_eq!(receiver.receive(&mut buffer).unwrap(), None);
    }
}
