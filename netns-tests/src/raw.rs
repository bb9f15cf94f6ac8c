//! Sending packets that no honest sender would: a raw socket with our own IPv4 header.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};

use crate::namespace::Namespace;

/// The protocol number of UDP.
pub(crate) const UDP: u8 = 17;

/// Sends a whole IPv4 packet out of a namespace. The kernel fills in its checksum.
pub(crate) fn send(namespace: &Namespace, packet: &[u8]) -> Result<()> {
    send_all(namespace, [packet.to_vec()])
}

/// The same for many, one after the other.
pub(crate) fn send_all(
    namespace: &Namespace,
    packets: impl IntoIterator<Item = Vec<u8>> + Send,
) -> Result<()> {
    namespace.inside(|| {
        let socket = socket(
            AddressFamily::Inet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::Raw,
        )
        .context("raw socket")?;
        for packet in packets {
            let destination = Ipv4Addr::new(packet[16], packet[17], packet[18], packet[19]);
            let to = SockaddrIn::from(SocketAddrV4::new(destination, 0));
            sendto(socket.as_raw_fd(), &packet, &to, MsgFlags::empty()).context("sendto")?;
        }
        Ok(())
    })
}

/// An IPv4 packet with this mark. The header checksum is made here, because an inner packet needs
/// one too.
pub(crate) fn ipv4(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    mark: u8,
    protocol: u8,
    payload: &[u8],
) -> Vec<u8> {
    let total = (20 + payload.len()) as u16;
    let mut packet = vec![0x45, mark << 2, 0, 0, 0, 1, 0, 0, 64, protocol, 0, 0];
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet.extend_from_slice(&source.octets());
    packet.extend_from_slice(&destination.octets());
    let sum = packet
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    packet.extend_from_slice(payload);
    packet
}

/// A UDP datagram without a checksum, which IPv4 allows (RFC 768).
pub(crate) fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    let mut datagram = Vec::new();
    for field in [source, destination, length, 0] {
        datagram.extend_from_slice(&field.to_be_bytes());
    }
    datagram.extend_from_slice(payload);
    datagram
}

/// A GRE header with a key (RFC 2890) before an inner packet.
pub(crate) fn gre(key: u32, inner: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x20, 0, 0x08, 0];
    packet.extend_from_slice(&key.to_be_bytes());
    packet.extend_from_slice(inner);
    packet
}
