//! UDP in batches, with the ToS octet of every datagram received.
//!
//! The concentrator reads the mark of SIP messages with it; the rtp-agent has one a port. The
//! buffers ([`DatagramBatch`]) are not part of the socket, so that thousands of sockets can share
//! one.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::task::{Context, Poll};

use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

use crate::mmsg::{self, DatagramBatch, Outgoing};
use crate::send_report::SendReport;
use crate::watched::Watched;

/// How a [`BatchSocket`] is opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct UdpOptions {
    /// Ask for the ToS octet of every datagram (IP_RECVTOS, IPV6_RECVTCLASS).
    pub receive_tos: bool,
    /// The ToS octet of what is sent.
    pub send_tos: u8,
    /// Bind even if the address is not on this machine yet (IP_FREEBIND).
    pub freebind: bool,
    /// Let several sockets share the address (SO_REUSEPORT).
    pub reuse_port: bool,
    /// Bytes that the kernel may queue each way; its default when `None`.
    pub buffer_size: Option<usize>,
}

/// A datagram to be sent.
#[derive(Debug, Clone, Copy)]
pub struct OutgoingDatagram<'a> {
    /// To whom.
    pub to: SocketAddr,
    /// The payload.
    pub bytes: &'a [u8],
}

impl Outgoing for OutgoingDatagram<'_> {
    fn to(&self) -> SocketAddr {
        self.to
    }

    fn parts(&self) -> [&[u8]; 2] {
        [self.bytes, &[]]
    }
}

/// A UDP socket that receives and sends many datagrams in one system call.
#[derive(Debug)]
pub struct BatchSocket {
    socket: Watched<OwnedFd>,
    local: SocketAddr,
}

impl BatchSocket {
    /// Opens and binds the socket; an IPv6 one takes no IPv4. Needs a tokio runtime.
    pub fn bind(local: SocketAddr, options: &UdpOptions) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(local), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        socket.set_reuse_port(options.reuse_port)?;
        match local {
            SocketAddr::V4(_) => {
                socket.set_recv_tos_v4(options.receive_tos)?;
                socket.set_tos_v4(u32::from(options.send_tos))?;
                socket.set_freebind_v4(options.freebind)?;
            }
            SocketAddr::V6(_) => {
                socket.set_only_v6(true)?;
                socket.set_recv_tclass_v6(options.receive_tos)?;
                socket.set_tclass_v6(u32::from(options.send_tos))?;
                socket.set_freebind_v6(options.freebind)?;
            }
        }
        if let Some(size) = options.buffer_size {
            enlarge_buffers(&socket, size)?;
        }
        socket.bind(&local.into())?;
        Self::from_socket(socket.into())
    }

    /// Takes over a bound, non-blocking UDP socket.
    pub fn from_socket(socket: OwnedFd) -> io::Result<Self> {
        let local = socket2::SockRef::from(&socket)
            .local_addr()?
            .as_socket()
            .ok_or_else(|| io::Error::other("not an IP socket"))?;
        Ok(Self {
            socket: Watched::new(socket)?,
            local,
        })
    }

    /// The address it is bound to.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Waits for datagrams and receives as many as there are and fit; `Ok(0)` is possible.
    pub async fn recv_batch(&self, batch: &mut DatagramBatch) -> io::Result<usize> {
        let capacity = batch.capacity();
        self.socket
            .read_until_empty(
                |socket| batch.receive(socket.as_fd()),
                // None received is an ICMP error, behind which there may be more.
                |received| (1..capacity).contains(received),
            )
            .await
    }

    /// The same for hand-written futures.
    pub fn poll_recv_batch(
        &self,
        cx: &mut Context<'_>,
        batch: &mut DatagramBatch,
    ) -> Poll<io::Result<usize>> {
        self.socket
            .poll_read(cx, |socket| batch.receive(socket.as_fd()))
    }

    /// Sends all datagrams, waiting where the socket is full.
    pub async fn send_batch(&self, datagrams: &[OutgoingDatagram<'_>]) -> io::Result<SendReport> {
        let mut report = SendReport::default();
        let mut done = 0;
        self.socket
            .writable(|socket| {
                let rest = &datagrams[done..];
                done += mmsg::send_until_full(socket.as_fd(), rest, &mut report);
                if done == datagrams.len() {
                    return Ok(());
                }
                Err(io::ErrorKind::WouldBlock.into())
            })
            .await?;
        Ok(report)
    }

    /// Sends all datagrams without waiting; what a full socket does not take is dropped and
    /// counted as [`crate::send_report::SendFailure::NotReady`].
    pub fn send_batch_or_drop(&self, datagrams: &[OutgoingDatagram<'_>]) -> SendReport {
        mmsg::send_or_drop(self.socket.get().as_fd(), datagrams)
    }
}

/// Sets the socket's buffers, beyond the system's limit where the program may do that.
pub(crate) fn enlarge_buffers(socket: &Socket, size: usize) -> io::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};
    if setsockopt(socket, sockopt::RcvBufForce, &size).is_err() {
        socket.set_recv_buffer_size(size)?;
    }
    if setsockopt(socket, sockopt::SndBufForce, &size).is_err() {
        socket.set_send_buffer_size(size)?;
    }
    Ok(())
}

/// Sets an integer socket option that has no safe wrapper.
pub(crate) fn set_option(
    socket: &Socket,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: `value` is an int on this stack frame and its true size is passed.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::send_report::SendFailure;

    fn loopback(text: &str, send_tos: u8) -> BatchSocket {
        let options = UdpOptions {
            receive_tos: true,
            send_tos,
            ..UdpOptions::default()
        };
        BatchSocket::bind(text.parse().unwrap(), &options).unwrap()
    }

    async fn tos_arrives(address: &str) {
        let sender = loopback(address, 0x04 | 0x02);
        let receiver = loopback(address, 0);
        let to = receiver.local();
        let long = vec![7; 4_000];
        let datagrams = [
            OutgoingDatagram { to, bytes: b"one" },
            OutgoingDatagram { to, bytes: &long },
            OutgoingDatagram { to, bytes: b"" },
        ];
        let report = sender.send_batch(&datagrams).await.unwrap();
        assert_eq!((report.sent, report.total_failed()), (3, 0));

        let mut batch = DatagramBatch::new(8, 65_535);
        assert_eq!(receiver.recv_batch(&mut batch).await.unwrap(), 3);
        let received: Vec<_> = batch.iter().collect();
        assert_eq!(received.len(), 3);
        assert_eq!(received[0].bytes, b"one");
        assert_eq!(received[1].bytes, &long[..]);
        assert!(
            received
                .iter()
                .all(|d| d.from == sender.local() && d.tos == 0x06)
        );
    }

    #[tokio::test]
    async fn the_tos_octet_of_each_datagram_arrives_over_ipv4() {
        tos_arrives("127.0.0.1:0").await;
    }

    #[tokio::test]
    async fn the_traffic_class_of_each_datagram_arrives_over_ipv6() {
        tos_arrives("[::1]:0").await;
    }

    #[tokio::test]
    async fn a_datagram_longer_than_a_slot_is_counted_and_left_out() {
        let (sender, receiver) = (loopback("127.0.0.1:0", 0), loopback("127.0.0.1:0", 0));
        let to = receiver.local();
        let long = [1; 101];
        sender.send_batch_or_drop(&[
            OutgoingDatagram { to, bytes: &long },
            OutgoingDatagram {
                to,
                bytes: &long[..100],
            },
        ]);
        let mut batch = DatagramBatch::new(8, 100);
        receiver.recv_batch(&mut batch).await.unwrap();
        assert_eq!(
            (batch.len(), batch.truncated(), batch.iter().count()),
            (2, 1, 1)
        );
    }

    #[tokio::test]
    async fn one_impossible_datagram_does_not_stop_the_others() {
        let (sender, receiver) = (loopback("127.0.0.1:0", 0), loopback("127.0.0.1:0", 0));
        let to = receiver.local();
        let huge = vec![0; 65_535];
        let report = sender
            .send_batch(&[
                OutgoingDatagram { to, bytes: b"a" },
                OutgoingDatagram { to, bytes: &huge },
                OutgoingDatagram {
                    to: "[::1]:9".parse().unwrap(),
                    bytes: b"wrong family",
                },
                OutgoingDatagram { to, bytes: b"b" },
            ])
            .await
            .unwrap();
        assert_eq!((report.sent, report.total_failed()), (2, 2));
        assert_eq!(report.failed(SendFailure::TooBig), 1);
        let mut batch = DatagramBatch::new(8, 100);
        receiver.recv_batch(&mut batch).await.unwrap();
        assert_eq!(
            batch.iter().map(|d| d.bytes).collect::<Vec<_>>(),
            [b"a", b"b"]
        );
    }

    #[tokio::test]
    async fn more_datagrams_than_one_call_carries_all_arrive() {
        let (sender, receiver) = (loopback("127.0.0.1:0", 0), loopback("127.0.0.1:0", 0));
        let datagrams = vec![
            OutgoingDatagram {
                to: receiver.local(),
                bytes: b"x"
            };
            150
        ];
        assert_eq!(sender.send_batch(&datagrams).await.unwrap().sent, 150);
        let mut batch = DatagramBatch::new(1_000, 10);
        let mut total = 0;
        while total < 150 {
            total += receiver.recv_batch(&mut batch).await.unwrap();
        }
        assert_eq!(total, 150);
    }
}
