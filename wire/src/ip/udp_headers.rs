//! The headers of a UDP packet, for a payload that is not copied.

use std::net::{IpAddr, SocketAddr};

use super::{BuildError, FLAG_DF, IPV4_HEADER_LEN, IPV6_HEADER_LEN, checksum, protocol};

const UDP_HEADER_LEN: usize = 8;
const MOST: usize = IPV6_HEADER_LEN + UDP_HEADER_LEN;

/// An IPv4 or IPv6 header without options and the UDP header after it, checksums included; ToS 0, TTL 64, DF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpHeaders {
    bytes: [u8; MOST],
    length: usize,
}

impl UdpHeaders {
    /// The TTL or hop limit.
    pub const TTL: u8 = 64;

    /// Those of this payload. An error where the families differ or the payload is too long.
    pub fn new(src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> Result<Self, BuildError> {
        let length =
            |before: usize| u16::try_from(before + payload.len()).map_err(|_| BuildError::TooLong);
        let udp_length = length(UDP_HEADER_LEN)?;
        let mut udp = [0; UDP_HEADER_LEN];
        udp[..2].copy_from_slice(&src.port().to_be_bytes());
        udp[2..4].copy_from_slice(&dst.port().to_be_bytes());
        udp[4..6].copy_from_slice(&udp_length.to_be_bytes());
        let sum = checksum::udp_in_parts(src.ip(), dst.ip(), udp, payload);
        udp[6..].copy_from_slice(&sum.to_be_bytes());

        let mut bytes = [0; MOST];
        let ip = match (src.ip(), dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let header = &mut bytes[..IPV4_HEADER_LEN];
                header[0] = 0x45;
                header[2..4].copy_from_slice(&length(MOST - IPV4_HEADER_LEN)?.to_be_bytes());
                header[6..8].copy_from_slice(&FLAG_DF.to_be_bytes());
                header[8..10].copy_from_slice(&[Self::TTL, protocol::UDP]);
                header[12..16].copy_from_slice(&src.octets());
                header[16..20].copy_from_slice(&dst.octets());
                let sum = checksum::internet(header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                IPV4_HEADER_LEN
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let header = &mut bytes[..IPV6_HEADER_LEN];
                header[0] = 0x60;
                header[4..6].copy_from_slice(&udp_length.to_be_bytes());
                header[6..8].copy_from_slice(&[protocol::UDP, Self::TTL]);
                header[8..24].copy_from_slice(&src.octets());
                header[24..40].copy_from_slice(&dst.octets());
                IPV6_HEADER_LEN
            }
            _ => return Err(BuildError::MixedFamilies),
        };
        bytes[ip..ip + UDP_HEADER_LEN].copy_from_slice(&udp);
        Ok(Self {
            bytes,
            length: ip + UDP_HEADER_LEN,
        })
    }

    /// The octets that go before the payload.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// The ports: whence, where to.
    pub fn ports(&self) -> (u16, u16) {
        let port = |back: usize| {
            let at = self.length - back;
            u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]])
        };
        (port(8), port(6))
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    use super::*;
    use crate::ip::Packet;

    /// The packet as an independent parser sees it, with its checksums verified.
    fn judge(src: SocketAddr, dst: SocketAddr, payload: &[u8]) {
        let headers = UdpHeaders::new(src, dst, payload).unwrap();
        let packet = [headers.bytes(), payload].concat();
        let ours = Packet::parse(&packet).unwrap();
        assert_eq!((ours.src(), ours.dst()), (src.ip(), dst.ip()));
        assert_eq!((ours.ttl(), ours.tos()), (64, 0));
        assert_eq!(headers.ports(), (src.port(), dst.port()));
        if ours.is_ipv4() {
            assert!(ours.header_checksum_is_right() && ours.dont_fragment());
        }
        let sliced = SlicedPacket::from_ip(&packet).unwrap();
        let Some(TransportSlice::Udp(udp)) = sliced.transport else {
            panic!("no UDP");
        };
        assert_eq!(udp.source_port(), src.port());
        assert_eq!(udp.destination_port(), dst.port());
        assert_eq!(udp.payload(), payload);
        assert_ne!(udp.checksum(), 0);
        let zero = checksum::transport(src.ip(), dst.ip(), 17, ours.payload());
        assert_eq!(zero, 0, "a datagram with its right checksum sums up to 0");
    }

    proptest! {
        #[test]
        fn an_independent_parser_agrees(
            payload in prop::collection::vec(any::<u8>(), 0..400),
            ports in any::<[u16; 2]>(), v4 in any::<[[u8; 4]; 2]>(), v6 in any::<[[u8; 16]; 2]>(),
        ) {
            judge((v4[0], ports[0]).into(), (v4[1], ports[1]).into(), &payload);
            judge((v6[0], ports[0]).into(), (v6[1], ports[1]).into(), &payload);
        }
    }

    #[test]
    fn different_families_and_payloads_that_are_too_long_are_refused() {
        let v4 = "192.0.2.1:30000".parse().unwrap();
        let v6 = "[2001:db8::1]:30000".parse().unwrap();
        assert_eq!(UdpHeaders::new(v4, v6, b""), Err(BuildError::MixedFamilies));
        let longest = vec![0; 65_507];
        assert!(UdpHeaders::new(v4, v4, &longest).is_ok());
        assert_eq!(
            UdpHeaders::new(v4, v4, &vec![0; 65_508]),
            Err(BuildError::TooLong)
        );
    }
}
