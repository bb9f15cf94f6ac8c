//! Bytes in, verdict, bytes out, counter. The bytes were worked out by another program than ours.

use std::net::IpAddr;

use tunnel_io::links::{Link, Vlan};
use tunnel_io::xdp::tables::Outcome;

use crate::network::{CORE_MAC, Rig, config, in_own_namespace};
use crate::{counted, verdict_of};

const NEAR: &str = "\"10.0.9.2\"";
const ACROSS: &str = "\"10.0.8.2\"";

/// A datagram of 192.0.2.7 with DSCP EF and ECT(0), TTL 63.
const IPV4: &str = "
    02000000 01020200 00000909 0800
    45ba0023 12340000 3f117ca0 c0000207 c6336401 9c4013c4 000f0000 4f505449 4f4e53";
const IPV4_OUT: &str = "
    02000000 01010200 00000102 0800
    4568003f 00004000 402f1c25 0a000102 0a000902
    20000800 a1b2c3d4
    45960023 12340000 3e117dc4 c0000207 c6336401 9c4013c4 000f0000 4f505449 4f4e53";
const IPV6: &str = "
    02000000 01020200 00000909 86dd
    6b9abcde 0014063f 20010db8 00000000 00000000 00000007 20010db8 50600000 00000000 00000001
    9c4013c4 00000001 00000002 50102000 abcd0000";
const IPV6_OUT: &str = "
    02000000 01010200 00000102 0800
    45680058 00004000 402f1c0c 0a000102 0a000902
    200086dd a1b2c3d4
    695abcde 0014063e 20010db8 00000000 00000000 00000007 20010db8 50600000 00000000 00000001
    9c4013c4 00000001 00000002 50102000 abcd0000";
/// What comes at octet 1480 of a datagram.
const FRAGMENT: &str = "
    02000000 01020200 00000909 0800
    45000019 123400b9 3f117cab c0000207 c6336401 01020304 05";
const FRAGMENT_OUT: &str = "
    02000000 01010200 00000102 0800
    45680035 00004000 402f1c2f 0a000102 0a000902
    20000800 a1b2c3d4
    45940019 123400b9 3e117d17 c0000207 c6336401 01020304 05";
/// Priority 5, VLAN 100.
const TAGGED: &str = "
    02000000 02020200 00000909 8100a064 0800
    45000023 12340000 3f117d5a c0000207 c6336401 9c4013c4 000f0000 4f505449 4f4e53";
const TAGGED_OUT: &str = "
    02000000 01010200 00000102 0800
    4568003f 00004000 402f1c25 0a000102 0a000902
    20000800 a1b2c3d4
    45940023 12340000 3e117dc6 c0000207 c6336401 9c4013c4 000f0000 4f505449 4f4e53";
const OUT_TAGGED: &str = "
    02000000 02010200 00000202 81000064 0800
    4568003f 00004000 402f1d25 0a000102 0a000802
    20000800 a1b2c3d4
    45960023 12340000 3e117dc4 c0000207 c6336401 9c4013c4 000f0000 4f505449 4f4e53";

/// [`IPV4`] in UDP, from a port of its flow, without a checksum.
const IPV4_IN_UDP: &str = "
    02000000 01010200 00000102 0800
    45680047 00004000 40111c3b 0a000102 0a000902
    PORT 1292 0033 0000 20000800 a1b2c3d4
    45960023 12340000 3e117dc4 c0000207 c6336401 9c4013c4 000f0000 4f505449 4f4e53";

/// The same over IPv6.
const IPV4_IN_UDP_OVER_IPV6: &str = "
    02000000 01010200 00000102 86dd
    66LABEL 0033 11 40 fd000001 00000000 00000000 00000002 fd000009 00000000 00000000 00000002
    PORT 1292 0033 SUM 20000800 a1b2c3d4
    45960023 12340000 3e117dc4 c0000207 c6336401 9c4013c4 000f0000 4f505449 4f4e53";
/// Its checksum if the port were 0.
const WITHOUT_PORT: u16 = 0x6f63;

fn bytes(hex: &str) -> Vec<u8> {
    let digits: String = hex.split_whitespace().collect();
    let pairs = digits.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    pairs.map(byte).collect()
}

/// [`IPV4`] with some octets of its IP header changed, and a right checksum.
fn changed(changes: &[(usize, u8)]) -> Vec<u8> {
    let mut frame = bytes(IPV4);
    for (at, octet) in changes {
        frame[14 + at] = *octet;
    }
    frame[24..26].fill(0);
    let checksum = wire::checksum::internet(&frame[14..34]).to_be_bytes();
    frame[24..26].copy_from_slice(&checksum);
    frame
}

fn rig(name: &str, concentrators: &str, more: &str) -> Rig {
    Rig::new(&config(name, "10.0.1.2", concentrators, more))
}

/// Runs a frame; what leaves must be these bytes, and what does not must be as it was.
fn check(rig: &Rig, frame: &[u8], outcome: Outcome, out: Option<&str>) {
    let before = rig.xdp.counts().unwrap();
    let (verdict, left, _) = rig.xdp.run(frame, rig.edge).unwrap();
    assert_eq!(counted(rig, &before).0, outcome);
    assert_eq!(verdict, verdict_of(outcome));
    assert_eq!(left, out.map_or(frame.to_vec(), bytes), "{outcome:?}");
}

#[test]
fn what_is_tunnelled() {
    in_own_namespace(|| {
        let rig = rig("plain", NEAR, "");
        let forward = Outcome::ForwardBack;
        check(&rig, &bytes(IPV4), forward, Some(IPV4_OUT));
        check(&rig, &bytes(IPV6), forward, Some(IPV6_OUT));
        check(&rig, &bytes(FRAGMENT), forward, Some(FRAGMENT_OUT));
        let padded = [&bytes(IPV4)[..], &[0xee; 11]].concat();
        check(&rig, &padded, forward, Some(IPV4_OUT));
        let before = rig.xdp.counts().unwrap();
        rig.xdp.run(&padded, rig.edge).unwrap();
        assert_eq!(counted(&rig, &before), (forward, 35));
    });
}

#[test]
fn in_udp_each_flow_has_a_port_of_its_own() {
    in_own_namespace(|| {
        let rig = rig("in-udp", NEAR, "encapsulation = \"gre-udp\"");
        let port_of = |frame: &[u8]| {
            let (_, out, _) = rig.xdp.run(frame, rig.edge).unwrap();
            u16::from_be_bytes([out[34], out[35]])
        };
        let port = port_of(&bytes(IPV4));
        assert!(port >= 49_152);
        let expected = IPV4_IN_UDP.replace("PORT", &format!("{port:04x}"));
        check(&rig, &bytes(IPV4), Outcome::ForwardBack, Some(&expected));
        let ports: std::collections::HashSet<u16> = (1..100)
            .map(|last| port_of(&changed(&[(21, last)])))
            .collect();
        assert!(ports.len() > 90, "{} ports of 99 flows", ports.len());
        let first = changed(&[(6, 0x20)]);
        let second = changed(&[(7, 0xb9), (21, 9)]);
        assert_eq!(port_of(&first), port_of(&second), "of one datagram");
    });
}

#[test]
fn udp_over_ipv6_has_a_checksum() {
    in_own_namespace(|| {
        let more = "encapsulation = \"gre-udp\"";
        let rig = Rig::new(&config("udp-ipv6", "fd00:1::2", "\"fd00:9::2\"", more));
        let (_, out, _) = rig.xdp.run(&bytes(IPV4), rig.edge).unwrap();
        let port = u16::from_be_bytes([out[54], out[55]]);
        // What the port adds to the rest is taken from its complement.
        let sum = wire::checksum::update(WITHOUT_PORT, 0, port);
        let label: String = out[15..18]
            .iter()
            .map(|octet| format!("{octet:02x}"))
            .collect();
        let expected = IPV4_IN_UDP_OVER_IPV6
            .replace("LABEL", &label)
            .replace("PORT", &format!("{port:04x}"))
            .replace("SUM", &format!("{sum:04x}"));
        check(&rig, &bytes(IPV4), Outcome::ForwardBack, Some(&expected));
        // Of all lengths, all pieces that the sum is made of.
        for length in 0..=200 {
            let mut frame = changed(&[(3, 28 + length as u8)]);
            frame.resize(14 + 28, 0);
            frame.extend((0..length).map(|octet| octet as u8 ^ 0xa5));
            let (_, out, _) = rig.xdp.run(&frame, rig.edge).unwrap();
            let (from, to) = ("fd00:1::2".parse().unwrap(), "fd00:9::2".parse().unwrap());
            let sum = wire::checksum::transport(from, to, 17, &out[54..]);
            assert_eq!((out.len(), sum), (14 + 40 + 16 + 28 + length, 0));
        }
    });
}

#[test]
fn what_is_left_to_the_kernel() {
    in_own_namespace(|| {
        let rig = rig("left", NEAR, "");
        let pass = |frame: &[u8], outcome| check(&rig, frame, outcome, None);
        let mut arp = bytes(IPV4);
        arp[12..14].copy_from_slice(&[8, 6]);
        pass(&arp, Outcome::NotIp);
        let mut to_all = bytes(IPV4);
        to_all[..6].fill(0xff);
        pass(&to_all, Outcome::NotForUs);
        pass(&bytes(TAGGED), Outcome::NotForUs);
        pass(&bytes(IPV4)[..48], Outcome::Malformed);
        pass(&changed(&[(19, 2)]), Outcome::NotServiceAddress);
        let mut damaged = bytes(IPV4);
        damaged[25] ^= 1;
        pass(&damaged, Outcome::Checksum);
        pass(&changed(&[(0, 0x46)]), Outcome::Options);
        for protocol in [1, 4, 47, 50] {
            pass(&changed(&[(9, protocol)]), Outcome::Protocol);
        }
        pass(&changed(&[(8, 1)]), Outcome::HopLimit);
        pass(&changed(&[(12, 127)]), Outcome::Source);
        let own = [(12, 10), (13, 0), (14, 1), (15, 2)];
        pass(&changed(&own), Outcome::Source);
        let mut long = changed(&[(2, 5), (3, 0x79)]);
        long.resize(14 + 0x579, 0);
        pass(&long, Outcome::TooBig);
    });
}

#[test]
fn where_the_way_is_not_clear_the_kernel_looks() {
    in_own_namespace(|| {
        let unknown = rig("no-neighbour", "\"10.0.7.2\"", "");
        check(&unknown, &bytes(IPV4), Outcome::NoNeighbour, None);
        let nowhere = rig("no-route", "\"10.99.0.1\"", "");
        check(&nowhere, &bytes(IPV4), Outcome::NoRoute, None);
        let mut across = rig("across", ACROSS, "");
        let (_, out, _) = across.xdp.run(&bytes(IPV4), across.edge).unwrap();
        assert_eq!(out[6..12], CORE_MAC);
        // From now on the other interface is not one that takes what we send.
        let links = across.links.clone();
        across.xdp.set_links(&links, &["edge0".to_owned()]).unwrap();
        check(&across, &bytes(IPV4), Outcome::NoRoute, None);
        across.settings.candidates.clear();
        across.xdp.set_settings(&across.settings).unwrap();
        check(&across, &bytes(IPV4), Outcome::NotReady, None);
    });
}

/// This kernel may have no VLAN devices: `core0` stands in for VLAN 100 on `edge0`.
fn with_vlan(rig: &mut Rig) {
    let edge = rig.edge;
    let as_vlan = |link: &Link| {
        let vlan = (link.name == "core0").then_some(Vlan {
            parent: edge,
            protocol: 0x8100,
            id: 100,
        });
        Link {
            vlan,
            ..link.clone()
        }
    };
    let links: Vec<Link> = rig.links.iter().map(as_vlan).collect();
    rig.xdp.set_links(&links, &["edge0".to_owned()]).unwrap();
}

#[test]
fn tags_come_and_go_as_the_devices_have_them() {
    in_own_namespace(|| {
        let mut near = rig("vlan-in", NEAR, "");
        with_vlan(&mut near);
        check(
            &near,
            &bytes(TAGGED),
            Outcome::ForwardBack,
            Some(TAGGED_OUT),
        );
        let mut other = bytes(TAGGED);
        other[15] = 101;
        check(&near, &other, Outcome::NotForUs, None);
        let mut service_tag = bytes(TAGGED);
        service_tag[12..14].copy_from_slice(&[0x88, 0xa8]);
        check(&near, &service_tag, Outcome::NotForUs, None);
        let mut across = rig("vlan-out", ACROSS, "");
        with_vlan(&mut across);
        check(
            &across,
            &bytes(IPV4),
            Outcome::ForwardBack,
            Some(OUT_TAGGED),
        );
    });
}

#[test]
fn who_sends_too_much_is_dropped_and_nobody_else() {
    in_own_namespace(|| {
        let limits = "[limits]\nallow = [\"192.0.2.9/32\"]\ndeny = [\"192.0.2.10/32\"]";
        let mut rig = rig("limits", NEAR, limits);
        let from = |last: u8| changed(&[(15, last)]);
        // So slow that the test ends before the next packet is due.
        let rate = |burst: u64| {
            let interval_ns = 3_600_000_000_000;
            let tolerance_ns = (burst - 1) * interval_ns;
            Some(ingress::limits::Rate {
                interval_ns,
                tolerance_ns,
            })
        };
        rig.settings.source_limit = rate(2);
        rig.xdp.set_settings(&rig.settings).unwrap();
        let outcome = |rig: &Rig, frame: &[u8]| {
            let before = rig.xdp.counts().unwrap();
            rig.xdp.run(frame, rig.edge).unwrap();
            counted(rig, &before).0
        };
        let outcomes = [7, 7, 7, 7, 8, 9, 9, 9, 10].map(|last| outcome(&rig, &from(last)));
        let (forward, over) = (Outcome::ForwardBack, Outcome::SourceLimit);
        let expected = [
            forward, forward, over, over, forward, forward, forward, forward,
        ];
        assert_eq!(outcomes[..8], expected);
        assert_eq!(outcomes[8], Outcome::Denied);
        // What is odd counts too: else a flood of it would reach the program.
        let ping = changed(&[(9, 1), (15, 20)]);
        let outcomes = [(); 3].map(|()| outcome(&rig, &ping));
        assert_eq!(outcomes, [Outcome::Protocol, Outcome::Protocol, over]);
        // A /64 is one source, whatever comes behind it.
        let outcomes = [1, 2, 3].map(|last| {
            let mut frame = bytes(IPV6);
            frame[37] = last;
            outcome(&rig, &frame)
        });
        assert_eq!(outcomes, [forward, forward, over]);

        rig.settings.source_limit = None;
        rig.settings.total_limit = rate(3);
        rig.xdp.set_settings(&rig.settings).unwrap();
        let outcomes = [30, 31, 32, 33, 9].map(|last| outcome(&rig, &from(last)));
        let expected = [forward, forward, forward, Outcome::TotalLimit, forward];
        assert_eq!(outcomes, expected);
    });
}

#[test]
fn fragments_of_a_datagram_go_to_one_concentrator_and_user_agents_to_several() {
    in_own_namespace(|| {
        let rig = rig("shared", "\"10.0.9.2\", \"10.0.9.3\", \"10.0.9.4\"", "");
        let to = |frame: &[u8]| {
            let (_, out, _) = rig.xdp.run(frame, rig.edge).unwrap();
            IpAddr::from(*out[30..34].first_chunk::<4>().unwrap())
        };
        let mut all = std::collections::HashSet::new();
        for last in 1..=60 {
            let first = changed(&[(15, last), (6, 0x20)]);
            let second = changed(&[(15, last), (7, 0xb9)]);
            let tcp = changed(&[(15, last), (9, 6)]);
            assert_eq!((to(&first), to(&second)), (to(&tcp), to(&tcp)));
            all.insert(to(&first));
        }
        assert_eq!(all.len(), 3);
    });
}
