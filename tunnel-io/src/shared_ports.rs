//! Sockets that serve all media ports of an address: one that receives, one that sends.
//!
//! A [`SharedReceiver`] is given its datagrams by [`crate::steering`]; where each was sent to comes with it.
//! A [`PortSender`] is a raw socket to which whole packets are given, so that they can leave from any port;
//! one `sendmmsg` carries those of many ports. It behaves as a UDP socket does: DF is set, and what is too
//! long for its path goes out of a UDP socket made for it, which the kernel fragments. Nothing here needs a
//! runtime. Sending needs CAP_NET_RAW.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use nix::libc;
use smallvec::SmallVec;
use socket2::{Domain, Protocol, Socket, Type};
use wire::ip::UdpHeaders;

use crate::gre_socket::DROP_ALL;
use crate::media_port::MediaPort;
use crate::mmsg::{self, DatagramBatch, MAX_BATCH, Outgoing};
use crate::send_report::SendFailure;
use crate::udp_socket::{enlarge_buffers, set_option};

/// Of each socket. A NIC's driver may take 4 KiB for a packet of any length, so this holds 8,192 of them,
/// 40 ms of 200,000 packets a second.
const BUFFER_SIZE: usize = 32 << 20;
/// `SO_MEMINFO` and the place of the drops in what it tells (linux/sock_diag.h).
const MEMINFO_DROPS: usize = 8;

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// That of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    const fn loopback(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Self::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
        }
    }
}

/// A UDP socket that is given datagrams for other addresses and ports than its own.
#[derive(Debug)]
pub struct SharedReceiver {
    socket: OwnedFd,
    family: Family,
}

impl SharedReceiver {
    /// Opens one. Its own address is a port of the loopback, which it needs to be in a BPF map.
    pub fn open(family: Family) -> io::Result<Self> {
        let socket = bind_to_loopback(family)?;
        match family {
            Family::V4 => set_option(&socket, libc::IPPROTO_IP, libc::IP_RECVORIGDSTADDR, 1)?,
            Family::V6 => set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVORIGDSTADDR, 1)?,
        }
        enlarge_buffers(&socket, BUFFER_SIZE)?;
        Ok(Self {
            socket: socket.into(),
            family,
        })
    }

    /// One that keeps nothing of what it is given.
    pub(crate) fn open_sink(family: Family) -> io::Result<Self> {
        let socket = bind_to_loopback(family)?;
        socket.attach_filter(&DROP_ALL)?;
        Ok(Self {
            socket: socket.into(),
            family,
        })
    }

    /// What it receives.
    pub const fn family(&self) -> Family {
        self.family
    }

    /// Receives what is there and fits, without waiting; each has [`crate::Datagram::to`].
    pub fn receive(&self, batch: &mut DatagramBatch) -> io::Result<usize> {
        match batch.receive(self.socket.as_fd()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            outcome => outcome,
        }
    }

    /// Datagrams that the kernel dropped because nobody took those before them in time.
    pub fn drops(&self) -> io::Result<u64> {
        let mut info = [0_u32; MEMINFO_DROPS + 1];
        let mut length = size_of_val(&info) as libc::socklen_t;
        // SAFETY: `info` is valid for writes of the length that is passed.
        let outcome = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_MEMINFO,
                info.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        if outcome != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(u64::from(info[MEMINFO_DROPS]))
    }
}

impl AsFd for SharedReceiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn bind_to_loopback(family: Family) -> io::Result<Socket> {
    let local = SocketAddr::new(family.loopback(), 0);
    let socket = Socket::new(Domain::for_address(local), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if family == Family::V6 {
        socket.set_only_v6(true)?;
        // Where IPv6 has been switched off for `lo`, ::1 is not there.
        socket.set_freebind_v6(true)?;
    }
    socket.bind(&local.into())?;
    Ok(socket)
}

/// A datagram to be sent out of any port.
#[derive(Debug, Clone, Copy)]
pub struct PortDatagram<'a> {
    /// Out of this port of the sender's address.
    pub port: u16,
    /// To whom.
    pub to: SocketAddr,
    /// The payload.
    pub bytes: &'a [u8],
}

/// Sends out of all ports of one address.
#[derive(Debug)]
pub struct PortSender {
    socket: OwnedFd,
    local: IpAddr,
}

struct RawPacket<'a> {
    to: IpAddr,
    headers: UdpHeaders,
    bytes: &'a [u8],
    /// In what was to be sent.
    index: usize,
}

impl Outgoing for RawPacket<'_> {
    fn to(&self) -> SocketAddr {
        // A raw socket has no ports; IPv6 insists on 0 there.
        SocketAddr::new(self.to, 0)
    }

    fn parts(&self) -> [&[u8]; 2] {
        [self.headers.bytes(), self.bytes]
    }
}

impl PortSender {
    /// Opens one. The address need not be on this host yet; nothing can be received.
    pub fn open(local: IpAddr) -> io::Result<Self> {
        let address = SocketAddr::new(local, 0);
        // No packet has the protocol number IPPROTO_RAW, so none is copied to this socket.
        let protocol = Protocol::from(libc::IPPROTO_RAW);
        let socket = Socket::new(Domain::for_address(address), Type::RAW, Some(protocol))?;
        socket.set_nonblocking(true)?;
        match local {
            IpAddr::V4(_) => socket.set_freebind_v4(true)?,
            IpAddr::V6(_) => socket.set_freebind_v6(true)?,
        }
        enlarge_buffers(&socket, BUFFER_SIZE)?;
        // Rules of routing that look at the source see this one.
        socket.bind(&address.into())?;
        Ok(Self {
            socket: socket.into(),
            local,
        })
    }

    /// The address.
    pub const fn local(&self) -> IpAddr {
        self.local
    }

    /// Sends all that is given, in its order, without waiting; `failed` hears the index and the reason of
    /// each that the kernel did not take.
    pub fn send<'a>(
        &self,
        datagrams: impl IntoIterator<Item = PortDatagram<'a>>,
        mut failed: impl FnMut(usize, SendFailure),
    ) {
        let mut batch: SmallVec<[RawPacket<'a>; MAX_BATCH]> = SmallVec::new();
        for (index, datagram) in datagrams.into_iter().enumerate() {
            let from = SocketAddr::new(self.local, datagram.port);
            let Ok(headers) = UdpHeaders::new(from, datagram.to, datagram.bytes) else {
                failed(index, SendFailure::Other);
                continue;
            };
            batch.push(RawPacket {
                to: datagram.to.ip(),
                headers,
                bytes: datagram.bytes,
                index,
            });
            if batch.len() == MAX_BATCH {
                self.send_batch(&batch, &mut failed);
                batch.clear();
            }
        }
        self.send_batch(&batch, &mut failed);
    }

    fn send_batch(&self, batch: &[RawPacket<'_>], failed: &mut impl FnMut(usize, SendFailure)) {
        let done = mmsg::send_telling(self.socket.as_fd(), batch, |at, failure| {
            let packet = &batch[at];
            let outcome = match failure {
                SendFailure::TooBig => packet.send_in_fragments(self.local),
                SendFailure::NoBuffers
                | SendFailure::NotReady
                | SendFailure::NotPermitted
                | SendFailure::Unreachable
                | SendFailure::Other => Err(failure),
            };
            if let Err(failure) = outcome {
                failed(packet.index, failure);
            }
        });
        for packet in &batch[done..] {
            failed(packet.index, SendFailure::NotReady);
        }
    }
}

impl RawPacket<'_> {
    /// A UDP socket for this packet, since the kernel fragments only what it has built itself.
    fn send_in_fragments(&self, local: IpAddr) -> Result<(), SendFailure> {
        let (from, to) = self.headers.ports();
        let socket = MediaPort::bind(SocketAddr::new(local, from));
        let socket = socket.map_err(|_| SendFailure::TooBig)?;
        socket.send(SocketAddr::new(self.to, to), self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Raw sockets want CAP_NET_RAW; a machine that runs the tests without it is told.
    fn sender(local: &str) -> Option<PortSender> {
        match PortSender::open(local.parse().unwrap()) {
            Ok(sender) => Some(sender),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "SKIP in CI");
                eprintln!("SKIP: needs CAP_NET_RAW");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn arrives_from_any_port(local: &str) {
        let Some(sender) = sender(local) else {
            return;
        };
        let receiver = MediaPort::bind(SocketAddr::new(sender.local(), 0)).unwrap();
        let to = receiver.local().unwrap();
        // The last two are longer than the MTU of `lo`, and than any packet.
        let payloads = [
            vec![1; 3],
            vec![],
            vec![2; 172],
            vec![3; 65_500],
            vec![4; 65_530],
        ];
        let datagrams = payloads
            .iter()
            .zip(41_000..)
            .map(|(bytes, port)| PortDatagram { port, to, bytes });
        let mut failures = Vec::new();
        sender.send(datagrams, |index, failure| failures.push((index, failure)));
        assert_eq!(failures.len(), 1, "{failures:?}");
        assert_eq!(failures[0].0, 4);
        let mut buffer = vec![0; 70_000];
        for (payload, port) in payloads.iter().zip(41_000..).take(4) {
            let arrival = receiver.receive(&mut buffer).unwrap().unwrap();
            assert_eq!(arrival.from, SocketAddr::new(sender.local(), port));
            assert_eq!(buffer[..arrival.length], payload[..]);
        }
        assert_eq!(receiver.receive(&mut buffer).unwrap(), None);
    }

    #[test]
    fn datagrams_leave_from_any_port_over_ipv4() {
        arrives_from_any_port("127.0.0.1");
    }

    #[test]
    fn datagrams_leave_from_any_port_over_ipv6() {
        arrives_from_any_port("::1");
    }

    #[test]
    fn another_family_is_refused_and_the_rest_is_sent() {
        let Some(sender) = sender("127.0.0.1") else {
            return;
        };
        let receiver = MediaPort::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let to = ["[::1]:9".parse().unwrap(), receiver.local().unwrap()];
        let datagrams = to.map(|to| PortDatagram {
            port: 41_100,
            to,
            bytes: b"x",
        });
        let mut failed = Vec::new();
        sender.send(datagrams, |index, _| failed.push(index));
        assert_eq!(failed, [0]);
        assert!(receiver.receive(&mut [0; 8]).unwrap().is_some());
    }

    #[test]
    fn a_receiver_tells_where_a_datagram_was_sent_to_and_a_sink_keeps_none() {
        for family in [Family::V4, Family::V6] {
            let sender = MediaPort::bind(SocketAddr::new(family.loopback(), 0)).unwrap();
            let mut batch = DatagramBatch::new(8, 64);
            for (open, kept) in [
                (SharedReceiver::open as fn(_) -> _, 1),
                (SharedReceiver::open_sink, 0),
            ] {
                let receiver: SharedReceiver = open(family).unwrap();
                let to = socket2::SockRef::from(&receiver.socket)
                    .local_addr()
                    .unwrap();
                let to = to.as_socket().unwrap();
                sender.send(to, b"one").unwrap();
                assert_eq!(receiver.receive(&mut batch).unwrap(), kept);
                let seen = batch.get(0);
                assert_eq!(
                    seen.and_then(|datagram| datagram.to),
                    (kept == 1).then_some(to)
                );
                assert_eq!(receiver.drops().unwrap(), 1 - kept as u64);
            }
        }
    }
}
