//! Packets in, and exactly the bytes that go to the concentrator, or the reason why none do.

use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;

use admin::run::Config as _;
use ingress::classify::DropReason;
use ingress::config::Config;
use ingress::forwarder::Forwarder;
use proptest::prelude::*;

const SERVICE_V4: [u8; 4] = [198, 51, 100, 1];
const SERVICE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x5060, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const UDP: u8 = 17;

/// The forwarder of the shipped example: mark 1, key 0x1001, concentrator 10.0.9.2.
#[expect(clippy::unwrap_used, reason = "a test of its own checks the example")]
fn forwarder() -> Forwarder {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/ingress.toml");
    Forwarder::new(&Config::load(&file).unwrap(), 1)
}

/// An IPv4 packet from 192.0.2.7 with a right checksum.
fn ipv4(tos: u8, fragment: u16, protocol: u8, to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let length = (20 + payload.len()) as u16;
    let mut packet = vec![0x45, tos];
    packet.extend(length.to_be_bytes());
    packet.extend([0x12, 0x34]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([63, protocol, 0, 0, 192, 0, 2, 7]);
    packet.extend(to);
    let checksum = !sum(&packet);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(payload);
    packet
}

fn ipv6(class: u8, next_header: u8, to: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    let first = 6u32 << 28 | u32::from(class) << 20 | 0xabcde;
    let mut packet = first.to_be_bytes().to_vec();
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next_header, 63]);
    packet.extend([0x20; 16]);
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}

/// The one's complement sum of RFC 1071, worked out in full and not incrementally.
fn sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[test]
fn an_ipv4_packet_goes_out_with_mark_checksum_and_gre_header() {
    // ECN is ECT(0); the user agent's own DSCP is EF.
    let mut packet = ipv4(46 << 2 | 0b10, 0, UDP, SERVICE_V4, b"OPTIONS");
    let out = forwarder().forward(&mut packet, 0).unwrap();
    assert_eq!(out.concentrator, "10.0.9.2".parse::<IpAddr>().unwrap());
    assert_eq!(
        out.header.bytes(),
        [0x20, 0x00, 0x08, 0x00, 0x00, 0x00, 0x10, 0x01]
    );
    assert_eq!(packet, ipv4(1 << 2 | 0b10, 0, UDP, SERVICE_V4, b"OPTIONS"));
}

#[test]
fn an_ipv6_packet_goes_out_with_mark_and_gre_header() {
    let mut packet = ipv6(46 << 2 | 0b01, UDP, SERVICE_V6, b"OPTIONS");
    let out = forwarder().forward(&mut packet, 0).unwrap();
    assert_eq!(
        out.header.bytes(),
        [0x20, 0x00, 0x86, 0xdd, 0x00, 0x00, 0x10, 0x01]
    );
    assert_eq!(packet, ipv6(1 << 2 | 0b01, UDP, SERVICE_V6, b"OPTIONS"));
}

#[test]
fn all_fragments_of_a_datagram_carry_the_same_mark_and_go_the_same_way() {
    let mut forwarder = forwarder();
    let (more, second_offset) = (0x2000, 0x00b9);
    let mut first = ipv4(0, more, UDP, SERVICE_V4, &[1; 1_480]);
    let mut second = ipv4(0, second_offset, UDP, SERVICE_V4, &[2; 200]);
    assert_eq!(
        forwarder.forward(&mut first, 0),
        forwarder.forward(&mut second, 0)
    );
    assert_eq!((first[1], second[1]), (4, 4));
    assert_eq!(first[6..8], more.to_be_bytes());
    assert_eq!(second[6..8], second_offset.to_be_bytes());
}

#[test]
fn what_cannot_be_tunnelled_is_dropped_untouched_and_counted_by_reason() {
    let cut_ipv4 = ipv4(0, 0, UDP, SERVICE_V4, b"abc")[..22].to_vec();
    let mut short_header = ipv4(0, 0, UDP, SERVICE_V4, b"");
    short_header[0] = 0x44;
    let mut long_header = ipv4(0, 0, UDP, SERVICE_V4, b"");
    long_header[0] = 0x46;
    let cut_ipv6 = ipv6(0, UDP, SERVICE_V6, b"abc")[..42].to_vec();
    let cases = [
        (vec![], DropReason::NotIp),
        (vec![0x15; 40], DropReason::NotIp),
        (vec![0x45], DropReason::Truncated),
        (cut_ipv4, DropReason::Malformed),
        (short_header, DropReason::Malformed),
        (long_header, DropReason::Malformed),
        (cut_ipv6, DropReason::Malformed),
        (
            ipv4(0, 0, UDP, [198, 51, 100, 2], b""),
            DropReason::NotServiceAddress,
        ),
        (
            ipv6(0, UDP, ALL_ROUTERS, b""),
            DropReason::NotServiceAddress,
        ),
        (ipv4(0, 0, 47, SERVICE_V4, b""), DropReason::NestedTunnel),
        (ipv4(0, 0, 4, SERVICE_V4, b""), DropReason::NestedTunnel),
        (ipv6(0, 41, SERVICE_V6, b""), DropReason::NestedTunnel),
    ];
    let mut forwarder = forwarder();
    for (original, reason) in &cases {
        let mut packet = original.clone();
        assert_eq!(
            forwarder.forward(&mut packet, 0),
            Err(*reason),
            "{original:02x?}"
        );
        assert_eq!(packet, *original);
    }
    let counts = forwarder.take_counts();
    assert_eq!((counts.forwarded_packets, counts.forwarded_bytes), (0, 0));
    for (reason, count) in counts.dropped() {
        let expected = cases.iter().filter(|case| case.1 == reason).count();
        assert_eq!(count, expected as u64, "{reason:?}");
    }
    assert_eq!(forwarder.take_counts(), Default::default());
}

#[test]
fn icmp_errors_to_the_service_address_are_tunnelled() {
    let mut packet = ipv4(0, 0, 1, SERVICE_V4, &[3, 4, 0, 0, 0, 0, 5, 0]);
    assert!(forwarder().forward(&mut packet, 0).is_ok());
}

proptest! {
    #[test]
    fn an_ipv4_packet_comes_out_as_it_went_in_but_for_dscp_and_checksum(
        tos: u8, flags in 0u16..8, offset in 0u16..8_000, ttl: u8, options in 0usize..=10,
        payload in proptest::collection::vec(any::<u8>(), 0..1_400),
    ) {
        let mut packet = ipv4(tos, flags << 13 | offset, UDP, SERVICE_V4, &payload);
        packet.splice(20..20, vec![1; options * 4]);
        packet[0] = 0x45 + options as u8;
        packet[8] = ttl;
        let length = (packet.len() as u16).to_be_bytes();
        packet[2..4].copy_from_slice(&length);
        packet[10..12].fill(0);
        let header = 20 + options * 4;
        let checksum = (!sum(&packet[..header])).to_be_bytes();
        packet[10..12].copy_from_slice(&checksum);

        let mut out = packet.clone();
        prop_assert!(forwarder().forward(&mut out, 0).is_ok());
        prop_assert_eq!(out[1], 1 << 2 | tos & 3);
        prop_assert_eq!(sum(&out[..header]), 0xffff);
        out[1] = packet[1];
        out[10..12].copy_from_slice(&packet[10..12]);
        prop_assert_eq!(out, packet);
    }

    #[test]
    fn an_ipv6_packet_comes_out_as_it_went_in_but_for_dscp(
        class: u8, next_header in prop::sample::select(vec![6u8, 17, 50, 58]),
        payload in proptest::collection::vec(any::<u8>(), 0..1_400),
    ) {
        let mut out = ipv6(class, next_header, SERVICE_V6, &payload);
        prop_assert!(forwarder().forward(&mut out, 0).is_ok());
        prop_assert_eq!(out, ipv6(1 << 2 | class & 3, next_header, SERVICE_V6, &payload));
    }

    #[test]
    fn no_bytes_whatever_make_it_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..100), version in 0u8..=2,
    ) {
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = match version { 0 => *first, 1 => 0x45, _ => 0x60 };
        }
        let _ = forwarder().forward(&mut bytes, 0);
    }
}
