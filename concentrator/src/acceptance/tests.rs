//! The truth table: one good packet, and each test made to fail alone.

use std::net::SocketAddr;
use std::path::Path as FilePath;

use proptest::prelude::*;
use wire::ip::{Fragment, Repr, TcpRepr};

use super::*;
use crate::config::file::File;

const EDGE1: &str = "10.0.1.2";
const EDGE2: &str = "10.0.2.2";
const KEY1: u32 = 0x1001;
const OLD_KEY1: u32 = 0x0f01;
const KEY2: u32 = 0x1002;
const PHONE: &str = "100.64.7.9:40000";
const SERVICE: &str = "198.51.100.1:5060";
const GRE: Encapsulation = Encapsulation::Gre;

const CONFIG: &str = r#"
name = "c1"
service_addresses = ["198.51.100.1", "2001:db8::1"]
domains = ["example.com"]
[tunnel]
listen = "10.0.9.2"
[[edges]]
name = "edge1"
sources = ["10.0.1.0/29"]
key = 0x1001
old_key = 0x0f01
[[edges.relays]]
mark = 1
agent = "relay1"
[[edges]]
name = "edge2"
sources = ["10.0.2.2/32"]
key = 0x1002
allowed_sources = ["100.64.0.0/10", "2001:db8:64::/48"]
[[edges.relays]]
mark = 2
agent = "relay2"
[[edges.relays]]
mark = 63
agent = "relay63"
[relay_control]
listen = "10.0.9.2:7060"
certificate = "c1.pem"
private_key = "c1.key"
ca = "ca.pem"
"#;

#[test]
fn a_good_packet_is_accepted_with_edge_relay_and_ports() {
    let (table, inner) = (table(), udp(PHONE, SERVICE, 1));
    let packet = gre(KEY1, &inner);
    let accepted = table.accept(address(EDGE1), GRE, &packet).unwrap();
    assert_eq!(accepted.edge, 0);
    assert_eq!(accepted.relay().unwrap().to_string(), "0x1001/1");
    assert_eq!(accepted.inner, inner);
    assert_eq!(accepted.protocol, protocol::UDP);
    assert_eq!(accepted.source, address("100.64.7.9"));
    let ports = Ports {
        source: 40_000,
        destination: 5060,
    };
    assert_eq!(accepted.ports, Some(ports));
}

#[test]
fn the_old_key_is_accepted_and_the_relay_has_the_current_one() {
    let packet = gre(OLD_KEY1, &udp(PHONE, SERVICE, 1));
    let accepted = accept(EDGE1, &packet).unwrap();
    assert_eq!(accepted.key, TunnelKey(KEY1));
}

#[test]
fn keys_that_were_read_again_are_good_and_the_edge_keeps_its_name() {
    let mut table = table();
    let keys = |key, old_key: Option<u32>| EdgeKeys {
        key: TunnelKey(key),
        old_key: old_key.map(TunnelKey),
    };
    let wire_key = |table: &Acceptance, key| {
        let packet = gre(key, &udp(PHONE, SERVICE, 1));
        let accepted = table.accept(address(EDGE1), GRE, &packet)?;
        assert_eq!(accepted.path.key, TunnelKey(KEY1), "its name");
        Ok(accepted.wire_key.0)
    };
    let edge2 = keys(KEY2, None);
    table.set_keys(&[keys(0x2001, Some(KEY1)), edge2]);
    assert_eq!(wire_key(&table, KEY1), Ok(KEY1));
    assert_eq!(wire_key(&table, 0x2001), Ok(0x2001));
    assert_eq!(wire_key(&table, OLD_KEY1), Err(Refusal::WrongKey));
    table.set_keys(&[keys(0x2001, None), edge2]);
    assert_eq!(wire_key(&table, KEY1), Err(Refusal::WrongKey));
    assert_eq!(wire_key(&table, 0x2001), Ok(0x2001));
}

#[test]
fn an_edge_is_heard_in_its_own_encapsulation_only() {
    let text = CONFIG.replace("key = 0x1002", "key = 0x1002\nencapsulation = \"gre-udp\"");
    let table = table_of(&text);
    let packets = [
        (EDGE1, gre(KEY1, &udp(PHONE, SERVICE, 1))),
        (EDGE2, gre(KEY2, &udp(PHONE, SERVICE, 2))),
    ];
    for (place, (edge, packet)) in packets.iter().enumerate() {
        for (wrapped, is_own) in [
            (Encapsulation::Gre, place == 0),
            (Encapsulation::GreUdp, place == 1),
        ] {
            let judged = table.accept(address(edge), wrapped, packet).map(drop);
            let expected = if is_own {
                Ok(())
            } else {
                Err(Refusal::OtherEncapsulation)
            };
            assert_eq!(judged, expected, "{edge} in {wrapped:?}");
        }
    }
}

#[test]
fn mark_0_is_accepted_and_names_no_relay() {
    let packet = gre(KEY1, &udp(PHONE, SERVICE, 0));
    assert_eq!(accept(EDGE1, &packet).unwrap().relay(), None);
}

#[test]
fn tcp_ipv6_and_the_largest_mark_are_accepted() {
    let segment = tcp(PHONE, SERVICE, 63);
    assert!(accept(EDGE2, &gre(KEY2, &segment)).is_ok());
    let datagram = udp("[2001:db8:64::7]:5060", "[2001:db8::1]:5060", 2);
    assert!(accept(EDGE2, &gre(KEY2, &datagram)).is_ok());
}

#[test]
fn all_ecn_values_pass_unchanged() {
    let mut inner = udp(PHONE, SERVICE, 1);
    for ecn in 0..4 {
        inner[1] = 1 << 2 | ecn;
        let packet = gre(KEY1, &inner);
        assert_eq!(
            table().accept(address(EDGE1), GRE, &packet).unwrap().inner[1],
            1 << 2 | ecn
        );
    }
}

#[test]
fn later_fragments_are_accepted_without_ports() {
    for offset in [0, 1448, 2896] {
        let fragment = Fragment {
            id: 7,
            offset,
            more: offset < 2896,
        };
        for (phone, service) in [(PHONE, SERVICE), ("[2001:db8:64::7]:1", "[2001:db8::1]:2")] {
            let packet = gre(KEY2, &part(phone, service, protocol::UDP, fragment));
            let table = table();
            let accepted = table.accept(address(EDGE2), GRE, &packet).unwrap();
            assert_eq!(accepted.ports.is_some(), offset == 0, "{offset}");
        }
    }
}

#[test]
fn icmp_errors_are_accepted_and_other_icmp_is_not() {
    for (kind, is_error) in [
        (3, true),
        (11, true),
        (12, true),
        (0, false),
        (8, false),
        (5, false),
    ] {
        let packet = gre(KEY1, &upper(PHONE, SERVICE, protocol::ICMP, &[kind; 36]));
        assert_eq!(accept(EDGE1, &packet).is_ok(), is_error, "ICMP {kind}");
    }
    let (phone, service) = ("[2001:db8:64::7]:1", "[2001:db8::1]:2");
    for (kind, is_error) in [(1, true), (2, true), (128, false), (135, false)] {
        let packet = gre(KEY1, &upper(phone, service, protocol::ICMPV6, &[kind; 48]));
        assert_eq!(accept(EDGE1, &packet).is_ok(), is_error, "ICMPv6 {kind}");
    }
}

type Row = (&'static str, Vec<u8>, &'static str);

#[test]
fn each_test_alone_refuses_under_its_own_name() {
    let rows = [tunnel_rows(), inner_rows(), source_rows()].concat();
    for (outer, packet, name) in &rows {
        let refusal = accept(outer, packet).unwrap_err();
        assert_eq!(refusal.name(), *name, "{outer}: {refusal}");
    }
    // The rows are all in GRE.
    let in_udp = Refusal::OtherEncapsulation.name();
    for name in Refusal::NAMES.into_iter().filter(|name| *name != in_udp) {
        assert!(rows.iter().any(|row| row.2 == name), "no row for {name}");
    }
}

fn tunnel_rows() -> Vec<Row> {
    let good = udp(PHONE, SERVICE, 1);
    let whole = gre(KEY1, &good);
    vec![
        ("10.0.3.2", whole.clone(), "foreign_outer_source"),
        ("10.0.1.8", whole.clone(), "foreign_outer_source"),
        ("2001:db8::5", whole.clone(), "foreign_outer_source"),
        (EDGE1, whole[..7].to_vec(), "malformed_gre"),
        (EDGE1, vec![], "malformed_gre"),
        (EDGE1, with(&whole, 0, 0xa0), "malformed_gre"),
        (EDGE1, with(&whole, 0, 0x30), "malformed_gre"),
        (EDGE1, with(&whole, 0, 0x00), "malformed_gre"),
        (EDGE1, with(&whole, 1, 0x01), "malformed_gre"),
        (EDGE1, with(&whole, 2, 0x65), "malformed_gre"),
        (EDGE1, gre(KEY2, &good), "wrong_key"),
        (EDGE1, gre(KEY1 + 100, &good), "wrong_key"),
        (EDGE2, gre(OLD_KEY1, &udp(PHONE, SERVICE, 2)), "wrong_key"),
        (
            EDGE1,
            gre(KEY1, &udp(PHONE, "10.0.9.2:7061", 1)),
            "probe_source",
        ),
    ]
}

fn inner_rows() -> Vec<Row> {
    let good = udp(PHONE, SERVICE, 1);
    let whole = gre(KEY1, &good);
    let nested = upper(PHONE, SERVICE, 47, &whole);
    let later_icmp = Fragment {
        id: 1,
        offset: 8,
        more: false,
    };
    vec![
        (EDGE1, gre(KEY1, &[]), "malformed_inner"),
        (EDGE1, gre(KEY1, &good[..good.len() - 1]), "malformed_inner"),
        (EDGE1, with(&whole, 8, 0x65), "malformed_inner"),
        (EDGE1, with(&whole, 8, 0x44), "malformed_inner"),
        (
            EDGE1,
            gre(KEY1, &upper(PHONE, SERVICE, protocol::UDP, &[1, 2, 3])),
            "malformed_inner",
        ),
        (EDGE1, gre(KEY1, &udp(PHONE, SERVICE, 2)), "foreign_mark"),
        (EDGE2, gre(KEY2, &udp(PHONE, SERVICE, 1)), "foreign_mark"),
        (
            EDGE1,
            gre(KEY1, &udp(PHONE, "198.51.100.2:5060", 1)),
            "inner_destination",
        ),
        (
            EDGE1,
            gre(KEY1, &udp(PHONE, "10.0.9.2:5060", 1)),
            "inner_destination",
        ),
        (EDGE1, gre(KEY1, &nested), "nested_tunnel"),
        (
            EDGE1,
            gre(KEY1, &upper(PHONE, SERVICE, 4, &good)),
            "nested_tunnel",
        ),
        (
            EDGE1,
            gre(KEY1, &upper(PHONE, SERVICE, 41, &good)),
            "nested_tunnel",
        ),
        (
            EDGE1,
            gre(KEY1, &upper(PHONE, SERVICE, 132, &good)),
            "inner_protocol",
        ),
        (
            EDGE1,
            gre(KEY1, &upper(PHONE, SERVICE, protocol::ICMP, &[8; 36])),
            "inner_protocol",
        ),
        (
            EDGE1,
            gre(KEY1, &upper(PHONE, SERVICE, protocol::ICMPV6, &[1; 36])),
            "inner_protocol",
        ),
        (
            EDGE1,
            gre(KEY1, &part(PHONE, SERVICE, protocol::ICMP, later_icmp)),
            "inner_protocol",
        ),
    ]
}

fn source_rows() -> Vec<Row> {
    let v6 = |phone| udp(phone, "[2001:db8::1]:5060", 1);
    let from = |phone| gre(KEY1, &udp(phone, SERVICE, 1));
    vec![
        (EDGE1, from("127.0.0.1:5060"), "source_loopback"),
        (EDGE1, gre(KEY1, &v6("[::1]:5060")), "source_loopback"),
        (EDGE1, from("0.0.0.0:5060"), "source_unspecified"),
        (EDGE1, from("0.1.2.3:5060"), "source_unspecified"),
        (EDGE1, gre(KEY1, &v6("[::]:5060")), "source_unspecified"),
        (EDGE1, from("224.0.1.75:5060"), "source_multicast"),
        (EDGE1, gre(KEY1, &v6("[ff02::1]:5060")), "source_multicast"),
        (EDGE1, from("255.255.255.255:5060"), "source_broadcast"),
        (
            EDGE1,
            gre(KEY1, &v6("[::ffff:127.0.0.1]:5060")),
            "source_mapped",
        ),
        (EDGE1, from("198.51.100.1:40000"), "source_ours"),
        (EDGE1, from("10.0.9.2:40000"), "source_ours"),
        (EDGE1, gre(KEY1, &v6("[2001:db8::1]:5060")), "source_ours"),
        (
            EDGE2,
            gre(KEY2, &udp("192.0.2.5:5060", SERVICE, 2)),
            "source_not_allowed",
        ),
    ]
}

#[test]
fn private_sources_are_user_agents_too() {
    for phone in ["10.9.8.7:5060", "192.168.1.2:5060", "172.16.3.4:5060"] {
        assert!(accept(EDGE1, &gre(KEY1, &udp(phone, SERVICE, 1))).is_ok());
    }
}

proptest! {
    #[test]
    fn garbage_from_an_edge_is_not_accepted_by_accident(
        bytes in prop::collection::vec(any::<u8>(), 0..200)
    ) {
        prop_assert!(accept(EDGE1, &bytes).is_err());
    }

    #[test]
    fn garbage_behind_a_good_gre_header_is_not_accepted(
        bytes in prop::collection::vec(any::<u8>(), 0..200)
    ) {
        prop_assert!(accept(EDGE1, &gre(KEY1, &bytes)).is_err());
    }

    #[test]
    fn no_change_of_a_good_packet_panics_or_gets_past_the_rules(
        changes in prop::collection::vec((0_usize..60, any::<u8>()), 1..4)
    ) {
        let mut packet = gre(KEY1, &udp(PHONE, SERVICE, 1));
        for (at, value) in changes {
            if let Some(octet) = packet.get_mut(at) {
                *octet = value;
            }
        }
        if let Ok(path) = accept(EDGE1, &packet) {
            prop_assert_eq!(path.key, TunnelKey(KEY1));
            prop_assert!(path.mark.number() <= 1);
            prop_assert_eq!(&packet[24..28], &[198, 51, 100, 1]);
        }
    }
}

fn table() -> Acceptance {
    table_of(CONFIG)
}

fn table_of(text: &str) -> Acceptance {
    let path = FilePath::new("concentrator.toml");
    let file: File = admin::config::parse(path, text).unwrap();
    Acceptance::new(&Config::check(path, &file).unwrap())
}

fn accept(outer: &str, packet: &[u8]) -> Result<Path, Refusal> {
    table()
        .accept(address(outer), GRE, packet)
        .map(|accepted| accepted.path)
}

fn gre(key: u32, inner: &[u8]) -> Vec<u8> {
    let is_v6 = inner.first().is_some_and(|first| first >> 4 == 6);
    let protocol = if is_v6 {
        gre::Protocol::Ipv6
    } else {
        gre::Protocol::Ipv4
    };
    let header = gre::Repr {
        key: TunnelKey(key),
        protocol,
    };
    [&header.header()[..], inner].concat()
}

fn udp(phone: &str, service: &str, mark: u8) -> Vec<u8> {
    ip::udp(socket(phone), socket(service), mark << 2, b"hello").unwrap()
}

fn tcp(phone: &str, service: &str, mark: u8) -> Vec<u8> {
    ip::tcp(
        socket(phone),
        socket(service),
        mark << 2,
        TcpRepr::default(),
        b"hello",
    )
    .unwrap()
}

fn upper(phone: &str, service: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let (src, dst) = (socket(phone).ip(), socket(service).ip());
    Repr {
        tos: 1 << 2,
        ..Repr::new(src, dst, protocol)
    }
    .build(payload)
    .unwrap()
}

fn part(phone: &str, service: &str, protocol: u8, fragment: Fragment) -> Vec<u8> {
    let (src, dst) = (socket(phone).ip(), socket(service).ip());
    let repr = Repr {
        fragment: Some(fragment),
        ..Repr::new(src, dst, protocol)
    };
    repr.build(&[3; 64]).unwrap()
}

fn with(packet: &[u8], at: usize, value: u8) -> Vec<u8> {
    let mut packet = packet.to_vec();
    packet[at] = value;
    packet
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn a_probe_of_an_edge_itself_is_accepted_and_nobody_elses() {
    let table = table();
    let probe = |from: &str, to: &str| gre(KEY2, &udp(from, to, 2));
    let accepted = |packet: &[u8]| {
        let accepted = table.accept(address(EDGE2), GRE, packet);
        accepted.map(|accepted| (accepted.edge, accepted.is_probe))
    };
    // Also where the edge's own address is not among the sources that it may carry.
    assert_eq!(
        accepted(&probe("10.0.2.2:7061", "10.0.9.2:7061")),
        Ok((1, true))
    );
    assert_eq!(
        accepted(&probe("203.0.113.7:7061", "10.0.9.2:7061")),
        Err(Refusal::ProbeSource)
    );
    assert_eq!(
        accepted(&probe("10.0.2.2:7061", "10.0.9.2:7062")),
        Err(Refusal::InnerDestination)
    );
}

#[test]
fn a_peer_sends_on_under_the_key_of_any_edge_and_probes_nobody() {
    const PEER: &str = "10.0.10.2";
    let link = "[core_link]\nlisten = \"10.0.9.2:7063\"\ncertificate = \"a\"\nprivate_key = \"b\"\n\
                ca = \"c\"\npeers = [{ name = \"c2\", address = \"10.0.10.2:7063\", tunnel = \"10.0.10.2\" }]\n";
    let file: File = admin::config::parse(FilePath::new("c"), &format!("{CONFIG}{link}")).unwrap();
    let table = Acceptance::new(&Config::check(FilePath::new("c"), &file).unwrap());
    for (key, mark, edge) in [(KEY1, 1, 0), (KEY2, 2, 1)] {
        let packet = gre(key, &udp(PHONE, SERVICE, mark));
        let accepted = table.accept(address(PEER), GRE, &packet).unwrap();
        assert_eq!((accepted.edge, accepted.from_peer), (edge, true));
    }
    let from_edge = gre(KEY1, &udp(PHONE, SERVICE, 1));
    assert!(
        !table
            .accept(address(EDGE1), GRE, &from_edge)
            .unwrap()
            .from_peer
    );
    let refused = |key, mark| {
        let packet = gre(key, &udp(PHONE, SERVICE, mark));
        table.accept(address(PEER), GRE, &packet).map(drop)
    };
    assert_eq!(refused(KEY1, 2), Err(Refusal::ForeignMark));
    assert_eq!(refused(0x9999, 1), Err(Refusal::WrongKey));
    let not_ours = gre(KEY1, &udp(PHONE, SERVICE, 1));
    let stranger = table.accept(address("10.0.10.3"), GRE, &not_ours);
    assert_eq!(stranger.map(drop), Err(Refusal::ForeignOuterSource));
}
