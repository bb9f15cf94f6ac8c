use std::net::SocketAddr;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::*;

fn sockets() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
    prop_oneof![
        any::<([u8; 4], u16, [u8; 4], u16)>()
            .prop_map(|(src, sp, dst, dp)| ((src, sp).into(), (dst, dp).into())),
        any::<([u8; 16], u16, [u8; 16], u16)>()
            .prop_map(|(src, sp, dst, dp)| ((src, sp).into(), (dst, dp).into())),
    ]
}

prop_compose! {
    fn repr()(
        (src, dst) in sockets(), protocol in any::<u8>(), tos in any::<u8>(), ttl in any::<u8>(),
        dont_fragment in any::<bool>(),
        fragment in prop::option::of((any::<u16>(), 0_u16..8000, any::<bool>())),
    ) -> Repr {
        let v4 = src.is_ipv4();
        // An IPv4 packet is no fragment with neither; an IPv6 extension is no upper protocol.
        let fragment = fragment
            .map(|(id, units, more)| Fragment { id: u32::from(id), offset: units * 8, more })
            .filter(|fragment| !v4 || fragment.more || fragment.offset != 0);
        let extension = matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS);
        Repr {
            src: src.ip(), dst: dst.ip(), tos, ttl, fragment,
            protocol: if extension { 17 } else { protocol },
            dont_fragment: v4 && dont_fragment,
        }
    }
}

proptest! {
    #[test]
    fn a_header_comes_back_as_it_was(
        repr in repr(), payload in prop::collection::vec(any::<u8>(), 0..80)
    ) {
        let mut bytes = repr.build(&payload).unwrap();
        let len = bytes.len();
        bytes.extend_from_slice(&[0xee; 6]);
        let packet = Packet::parse(&bytes).unwrap();
        prop_assert_eq!(Repr::of(&packet), repr);
        prop_assert_eq!(packet.payload(), &payload[..]);
        prop_assert_eq!(packet.total_len(), len);
        prop_assert!(packet.header_checksum_is_right());
    }

    #[test]
    fn every_truncation_is_an_error_and_no_panic(
        repr in repr(), payload in prop::collection::vec(any::<u8>(), 0..80)
    ) {
        let bytes = repr.build(&payload).unwrap();
        for len in 0..bytes.len() {
            prop_assert!(Packet::parse(&bytes[..len]).is_err());
            if let Ok(quoted) = Packet::parse_quoted(&bytes[..len]) {
                let _ = (quoted.ports(), quoted.udp_payload(), quoted.payload());
            }
        }
    }

    #[test]
    fn garbage_never_panics(mut bytes in prop::collection::vec(any::<u8>(), 1..200), v6: bool) {
        bytes[0] = bytes[0] & 0x0f | if v6 { 0x60 } else { 0x40 };
        for packet in [Packet::parse(&bytes), Packet::parse_quoted(&bytes)].into_iter().flatten() {
            let _ = (packet.tos(), packet.ttl(), packet.ports(), packet.udp_payload());
            let _ = (packet.payload(), packet.header_checksum_is_right());
        }
    }

    #[test]
    fn another_decoder_reads_the_same(
        (src, dst) in sockets(), tos: u8, use_tcp: bool,
        payload in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let bytes = if use_tcp {
            tcp(src, dst, tos, TcpRepr::default(), &payload).unwrap()
        } else {
            udp(src, dst, tos, &payload).unwrap()
        };
        let ours = Packet::parse(&bytes).unwrap();
        let theirs = SlicedPacket::from_ip(&bytes).unwrap();
        let ports = match theirs.transport.unwrap() {
            TransportSlice::Udp(udp) => {
                prop_assert_eq!(ours.udp_payload().unwrap(), udp.payload());
                (udp.source_port(), udp.destination_port())
            }
            TransportSlice::Tcp(tcp) => (tcp.source_port(), tcp.destination_port()),
            other @ (TransportSlice::Icmpv4(_)
            | TransportSlice::Icmpv6(_)
            | TransportSlice::Igmp(_)) => panic!("{other:?}"),
        };
        prop_assert_eq!(ports, (src.port(), dst.port()));
        prop_assert_eq!(ours.ports(), Some(Ports { source: ports.0, destination: ports.1 }));
        let theirs_tos = match theirs.net.unwrap() {
            NetSlice::Ipv4(v4) => {
                let header = v4.header();
                prop_assert_eq!(header.to_header().calc_header_checksum(), header.header_checksum());
                header.dcp().value() << 2 | header.ecn().value()
            }
            NetSlice::Ipv6(v6) => v6.header().traffic_class(),
            NetSlice::Arp(_) => panic!("not IP"),
        };
        prop_assert_eq!(ours.tos(), theirs_tos);
        let segment_sum = checksum::transport(src.ip(), dst.ip(), ours.protocol(), ours.payload());
        prop_assert_eq!(segment_sum, 0);
    }
}

fn v4(payload: &[u8]) -> Vec<u8> {
    udp(
        "192.0.2.1:1".parse().unwrap(),
        "192.0.2.2:2".parse().unwrap(),
        0,
        payload,
    )
    .unwrap()
}

/// An IPv6 packet with these octets after the fixed header, the first of them of type `next`.
fn v6(next: u8, rest: &[u8]) -> Vec<u8> {
    let one: IpAddr = "2001:db8::1".parse().unwrap();
    let mut bytes = Repr::new(one, one, 17).build(rest).unwrap();
    bytes[6] = next;
    bytes
}

#[test]
fn options_of_ipv4_are_walked_over() {
    let mut bytes = v4(b"hello");
    bytes[0] = 0x47;
    bytes.splice(20..20, [1, 1, 1, 1, 1, 1, 1, 0]);
    bytes[3] += 8;
    let packet = Packet::parse(&bytes).unwrap();
    assert_eq!(packet.header_len(), 28);
    assert_eq!(
        packet.ports(),
        Some(Ports {
            source: 1,
            destination: 2
        })
    );
    assert_eq!(packet.udp_payload(), Ok(&b"hello"[..]));
}

#[test]
fn lengths_that_contradict_the_packet_are_refused() {
    let mut short = v4(b"");
    short[0] = 0x44;
    assert_eq!(
        Packet::parse(&short).err(),
        Some(DecodeError::IpHeaderLength)
    );
    let mut less = v4(b"");
    less[3] = 19;
    assert_eq!(Packet::parse(&less).err(), Some(DecodeError::IpLength));
    let mut more = v4(b"");
    more[3] += 1;
    assert_eq!(Packet::parse(&more).err(), Some(DecodeError::IpLength));
    let mut far = v4(&[0; 100]);
    far[6..8].copy_from_slice(&0x1fff_u16.to_be_bytes());
    assert_eq!(Packet::parse(&far).err(), Some(DecodeError::FragmentTooFar));
    let mut datagram = v4(b"abc");
    datagram[25] = 12;
    assert_eq!(
        Packet::parse(&datagram).unwrap().udp_payload(),
        Err(DecodeError::UdpLength)
    );
}

#[test]
fn extension_headers_are_walked_to_the_ports() {
    let hop_by_hop = [DESTINATION_OPTIONS, 0, 1, 4, 0, 0, 0, 0];
    let options = [17, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let datagram = [0, 1, 0, 2, 0, 8, 0, 0];
    let bytes = v6(HOP_BY_HOP, &[&hop_by_hop[..], &options, &datagram].concat());
    let packet = Packet::parse(&bytes).unwrap();
    assert_eq!((packet.header_len(), packet.protocol()), (64, 17));
    assert_eq!(
        packet.ports(),
        Some(Ports {
            source: 1,
            destination: 2
        })
    );
}

#[test]
fn a_chain_of_extension_headers_has_an_end() {
    let endless: Vec<u8> = std::iter::repeat_n([DESTINATION_OPTIONS, 0, 1, 4, 0, 0, 0, 0], 20)
        .flatten()
        .collect();
    let error = Packet::parse(&v6(DESTINATION_OPTIONS, &endless)).err();
    assert_eq!(error, Some(DecodeError::Ipv6ExtensionChain));
}

#[test]
fn a_later_fragment_shows_no_ports_and_no_headers() {
    let one: IpAddr = "2001:db8::1".parse().unwrap();
    let fragment = Some(Fragment {
        id: 7,
        offset: 1448,
        more: false,
    });
    let looks_like_headers = [0; 32];
    for protocol in [17, DESTINATION_OPTIONS] {
        let repr = Repr {
            fragment,
            ..Repr::new(one, one, protocol)
        };
        let bytes = repr.build(&looks_like_headers).unwrap();
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!((packet.header_len(), packet.protocol()), (48, protocol));
        assert_eq!((packet.ports(), packet.fragment()), (None, fragment));
    }
}

#[test]
fn what_cannot_be_said_is_not_built() {
    let (v4, v6): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "::1".parse().unwrap());
    assert_eq!(
        Repr::new(v4, v6, 17).build(&[]),
        Err(BuildError::MixedFamilies)
    );
    assert_eq!(
        Repr::new(v4, v4, 17).build(&[0; 65_516]),
        Err(BuildError::TooLong)
    );
    let fragment = Some(Fragment {
        id: 1,
        offset: 4,
        more: true,
    });
    let odd = Repr {
        fragment,
        ..Repr::new(v4, v4, 17)
    };
    assert_eq!(odd.build(&[]), Err(BuildError::FragmentOffset));
}

#[test]
fn tunnels_are_known_by_their_number() {
    for number in [4, 41, 47, 94, 97, 115, 137] {
        assert!(protocol::is_tunnel(number));
    }
    assert!(!protocol::is_tunnel(protocol::UDP));
}

#[test]
fn addresses_that_no_host_has_are_told_from_others_however_they_are_written() {
    let judge = |text: &str| {
        let address = text.parse().unwrap();
        (is_host(address), is_another_host(address))
    };
    for text in [
        "1.0.0.1",
        "10.0.0.1",
        "223.255.255.255",
        "2001:db8::1",
        "::ffff:10.0.0.1",
    ] {
        assert_eq!(judge(text), (true, true), "{text}");
    }
    for text in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
        assert_eq!(judge(text), (true, false), "{text}");
    }
    for text in [
        "0.0.0.0",
        "0.1.2.3",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "ff02::1",
        "::ffff:0.0.0.0",
        "::ffff:224.0.0.1",
    ] {
        assert_eq!(judge(text), (false, false), "{text}");
    }
}

#[test]
fn only_a_syn_without_ack_opens_a_connection() {
    let (from, to) = (
        "192.0.2.1:4000".parse().unwrap(),
        "192.0.2.2:5060".parse().unwrap(),
    );
    let opens = |flags| {
        let header = TcpRepr {
            seq: 1,
            ack: 0,
            flags,
            window: 1000,
        };
        let segment = tcp(from, to, 4, header, b"").unwrap();
        Packet::parse(&segment).unwrap().opens_connection()
    };
    assert!(opens(0x02));
    assert!(opens(0xc2), "with ECN (RFC 3168 section 6.1.1)");
    assert!(!opens(0x12) && !opens(0x10) && !opens(0x04));
    let datagram = udp(from, to, 4, &[0x02; 32]).unwrap();
    assert!(!Packet::parse(&datagram).unwrap().opens_connection());
}
