//! GRE over a raw socket (protocol 47), or GRE in UDP (RFC 8086); outer IPv4 or IPv6.
//!
//! Sending: the caller gives the tunnel's header and the inner packet, the kernel makes the outer header
//! from the socket's options: DF set, so that the tunnel never fragments (RFC 7588 section 3.1);
//! DSCP as configured and ECN zero, because the far end does not merge it back (RFC 9601). GRE in UDP
//! leaves by a raw socket too, since each packet has a source port of its own; over IPv6 the kernel makes
//! the UDP checksum.
//! Receiving: outer fragments are reassembled by the kernel. An IPv4 raw socket delivers the outer
//! header too, which is cut off here; an IPv6 one does not. GRE in UDP comes in by a UDP socket, where
//! the kernel has verified the checksum, and refuses one of 0 over IPv6 (RFC 6935).
//!
//! Opening needs CAP_NET_RAW. An open socket also keeps the kernel from answering GRE with
//! "protocol unreachable", or "port unreachable".

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::libc;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use wire::encapsulation::{Encapsulation, GRE_UDP_PORT, Header};

use crate::mmsg::{self, DatagramBatch, Outgoing};
use crate::send_report::SendReport;
use crate::udp_socket::{enlarge_buffers, set_option};
use crate::watched::Watched;

/// The protocol number of GRE (RFC 2784).
const PROTOCOL_GRE: i32 = 47;
/// Where the checksum stands in a UDP header (RFC 768).
const UDP_CHECKSUM_OFFSET: i32 = 6;
/// linux/in6.h: the kernel writes the checksum over pseudo-header and payload at this offset.
const IPV6_CHECKSUM: i32 = 7;
/// Holds a burst of about 100 ms at 1 Gbit/s.
const BUFFER_SIZE: usize = 16 << 20;
/// The longest outer header that an IPv4 raw socket delivers before the payload.
pub const MAX_OUTER_HEADER: usize = 60;

/// A classic BPF program of one instruction, "return 0": the kernel keeps no byte of any packet.
pub(crate) const DROP_ALL: [SockFilter; 1] = [SockFilter::new(
    (libc::BPF_RET | libc::BPF_K) as u16,
    0,
    0,
    0,
)];

/// A packet to be sent through the tunnel.
#[derive(Debug, Clone, Copy)]
pub struct GrePacket<'a> {
    /// The outer destination.
    pub to: IpAddr,
    /// What goes before the inner packet.
    pub header: Header,
    /// The inner packet, not copied.
    pub inner: &'a [u8],
}

impl Outgoing for GrePacket<'_> {
    fn to(&self) -> SocketAddr {
        // A raw socket has no ports; IPv6 insists on 0 there.
        SocketAddr::new(self.to, 0)
    }

    fn parts(&self) -> [&[u8]; 2] {
        [self.header.bytes(), self.inner]
    }
}

/// What arrived through the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GreDatagram<'a> {
    /// The outer source.
    pub from: IpAddr,
    /// The GRE header and what follows.
    pub payload: &'a [u8],
}

/// An open tunnel end.
#[derive(Debug)]
pub struct GreSocket {
    socket: Watched<OwnedFd>,
    /// Where packets leave, if not by the one that they come in by.
    sender: Option<OwnedFd>,
    local: IpAddr,
    /// Outer headers come with the packets.
    has_headers: bool,
}

impl GreSocket {
    /// Opens the socket on this local address. `outer_dscp` is 0..=63. Needs a tokio runtime.
    pub fn bind(local: IpAddr, outer_dscp: u8, encapsulation: Encapsulation) -> io::Result<Self> {
        match encapsulation {
            Encapsulation::Gre => {
                let socket = open_raw(local, outer_dscp, encapsulation, &[])?;
                Ok(Self {
                    socket: Watched::new(socket)?,
                    sender: None,
                    local,
                    has_headers: local.is_ipv4(),
                })
            }
            Encapsulation::GreUdp => Ok(Self {
                socket: Watched::new(open_udp(local)?)?,
                sender: Some(open_raw(local, outer_dscp, encapsulation, &DROP_ALL)?),
                local,
                has_headers: false,
            }),
        }
    }

    /// The same for an end that only sends. A raw socket gets a copy of all of its protocol that reaches the
    /// address, from whomever; this one's kernel drops it before it costs memory.
    pub fn bind_to_send(
        local: IpAddr,
        outer_dscp: u8,
        encapsulation: Encapsulation,
    ) -> io::Result<Self> {
        let socket = open_raw(local, outer_dscp, encapsulation, &DROP_ALL)?;
        Ok(Self {
            socket: Watched::new(socket)?,
            sender: None,
            local,
            has_headers: local.is_ipv4(),
        })
    }

    /// The outer source address.
    pub fn local(&self) -> IpAddr {
        self.local
    }

    /// Sends all packets without waiting; what is not taken is dropped and counted.
    pub fn send_batch(&self, packets: &[GrePacket<'_>]) -> SendReport {
        let sender = self.sender.as_ref();
        mmsg::send_or_drop(sender.unwrap_or(self.socket.get()).as_fd(), packets)
    }

    /// Waits for packets and receives as many as there are and fit.
    pub async fn recv_batch(&self, batch: &mut GreBatch) -> io::Result<usize> {
        let capacity = batch.datagrams.capacity();
        self.socket
            .read_until_empty(
                |socket| batch.receive(self.has_headers, socket.as_fd()),
                // None received is an ICMP error, behind which there may be more.
                |received| (1..capacity).contains(received),
            )
            .await
    }

    /// Receives what is there without waiting: `None` where there is nothing.
    pub fn recv_batch_now(&self, batch: &mut GreBatch) -> io::Result<Option<usize>> {
        match batch.receive(self.has_headers, self.socket.get().as_fd()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            received => received.map(Some),
        }
    }
}

fn open_raw(
    local: IpAddr,
    outer_dscp: u8,
    encapsulation: Encapsulation,
    filter: &[SockFilter],
) -> io::Result<OwnedFd> {
    let address = SocketAddr::new(local, 0);
    let protocol = match encapsulation {
        Encapsulation::Gre => PROTOCOL_GRE,
        Encapsulation::GreUdp => libc::IPPROTO_UDP,
    };
    let socket = Socket::new(
        Domain::for_address(address),
        Type::RAW,
        Some(Protocol::from(protocol)),
    )?;
    socket.set_nonblocking(true)?;
    if !filter.is_empty() {
        socket.attach_filter(filter)?;
    }
    let outer_tos = u32::from(outer_dscp.min(63)) << 2;
    match local {
        IpAddr::V4(_) => {
            socket.set_tos_v4(outer_tos)?;
            let (level, name) = (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER);
            set_option(&socket, level, name, libc::IP_PMTUDISC_DO)?;
        }
        IpAddr::V6(_) => {
            socket.set_tclass_v6(outer_tos)?;
            let (level, name) = (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER);
            set_option(&socket, level, name, libc::IPV6_PMTUDISC_DO)?;
            if encapsulation == Encapsulation::GreUdp {
                set_option(&socket, level, IPV6_CHECKSUM, UDP_CHECKSUM_OFFSET)?;
            }
        }
    }
    enlarge_buffers(&socket, BUFFER_SIZE)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Where GRE in UDP arrives.
fn open_udp(local: IpAddr) -> io::Result<OwnedFd> {
    let address = SocketAddr::new(local, GRE_UDP_PORT);
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    socket.set_nonblocking(true)?;
    enlarge_buffers(&socket, BUFFER_SIZE)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Buffers for one receive call.
#[derive(Debug)]
pub struct GreBatch {
    datagrams: DatagramBatch,
    has_headers: bool,
}

impl GreBatch {
    /// Room for `capacity` packets whose GRE header and inner packet have at most `payload_size`
    /// bytes.
    pub fn new(capacity: usize, payload_size: usize) -> Self {
        Self {
            datagrams: DatagramBatch::new(capacity, payload_size + MAX_OUTER_HEADER),
            has_headers: false,
        }
    }

    /// Packets received by the last call that were too long for the buffers.
    pub fn truncated(&self) -> usize {
        self.datagrams.truncated()
    }

    fn receive(&mut self, has_headers: bool, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.has_headers = has_headers;
        self.datagrams.receive(socket)
    }

    /// The packets of the last call.
    pub fn iter(&self) -> impl Iterator<Item = GreDatagram<'_>> {
        self.datagrams.iter().filter_map(|datagram| {
            let payload = if self.has_headers {
                strip_ipv4_header(datagram.bytes)?
            } else {
                datagram.bytes
            };
            let from = datagram.from.ip();
            Some(GreDatagram { from, payload })
        })
    }
}

/// What follows an IPv4 header with any options (RFC 791 section 3.1: IHL counts 32-bit words).
fn strip_ipv4_header(packet: &[u8]) -> Option<&[u8]> {
    let first = *packet.first()?;
    let header = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header < 20 {
        return None;
    }
    packet.get(header..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outer_header_is_cut_off_with_its_options() {
        let mut packet = [0u8; 32];
        packet[0] = 0x45;
        assert_eq!(strip_ipv4_header(&packet).unwrap().len(), 12);
        packet[0] = 0x47;
        assert_eq!(strip_ipv4_header(&packet).unwrap().len(), 4);
    }

    #[test]
    fn a_lying_outer_header_yields_nothing() {
        assert_eq!(strip_ipv4_header(&[]), None);
        assert_eq!(strip_ipv4_header(&[0x44; 40]), None);
        assert_eq!(strip_ipv4_header(&[0x65; 40]), None);
        assert_eq!(strip_ipv4_header(&[0x4f; 40]), None);
    }
}
