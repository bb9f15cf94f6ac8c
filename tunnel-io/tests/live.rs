//! The devices and sockets against the real kernel, in a network namespace of the test's own.
//! Needs root; otherwise it says SKIP, which is a failure where CI=true.

#![expect(clippy::unwrap_used, reason = "a failed set-up fails the test")]
use std::net::IpAddr;
use std::process::Command;

use tunnel_io::DatagramBatch;
use tunnel_io::device_drops::DeviceDrops;
use tunnel_io::gre_socket::{GreBatch, GrePacket, GreSocket};
use tunnel_io::routes::{AnnouncedRoute, CapturedAddress, LoopbackAddress, Marking, RouteError};
use tunnel_io::system;
use tunnel_io::tun::TunDevice;
use tunnel_io::udp_socket::{BatchSocket, UdpOptions};
use wire::encapsulation::{Encapsulation, Entropy, Header};
use wire::gre::{Packet, Protocol, Repr, TunnelKey};
use wire::mark::{Mark, stamp};

const SERVICE: &str = "198.51.100.1";
const GRE: Encapsulation = Encapsulation::Gre;

/// Runs the test on a thread that is alone in a new network namespace, which vanishes with it.
fn in_own_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        assert_ne!(
            std::env::var("CI").as_deref(),
            Ok("true"),
            "SKIP is an error in CI"
        );
        eprintln!("SKIP: needs root for a network namespace");
        return;
    }
    let body = move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let up = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status();
        assert!(up.unwrap().success());
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let limit = std::time::Duration::from_secs(10);
        runtime
            .enable_all()
            .build()
            .unwrap()
            .block_on(async { tokio::time::timeout(limit, test()).await })
            .unwrap();
    };
    std::thread::spawn(body).join().unwrap();
}

fn marked_udp_packet() -> Vec<u8> {
    let from = "192.0.2.7:40000".parse().unwrap();
    let to = format!("{SERVICE}:5060").parse().unwrap();
    let mut packet = wire::ip::udp(from, to, 0, b"OPTIONS").unwrap();
    stamp(&mut packet, Mark::new(7).unwrap()).unwrap();
    packet
}

/// Sends the packet through GRE and returns what came out with its outer source.
async fn through_gre(sender: &GreSocket, receiver: &GreSocket, inner: &[u8]) -> (IpAddr, Vec<u8>) {
    through(Encapsulation::Gre, sender, receiver, inner).await
}

fn header(encapsulation: Encapsulation, inner: &[u8]) -> Header {
    let repr = Repr {
        key: TunnelKey(0x1001),
        protocol: Protocol::Ipv4,
    };
    let packet = wire::ip::Packet::parse(inner).unwrap();
    encapsulation.header(repr, Entropy::of(&packet), inner.len())
}

async fn through(
    encapsulation: Encapsulation,
    sender: &GreSocket,
    receiver: &GreSocket,
    inner: &[u8],
) -> (IpAddr, Vec<u8>) {
    let header = header(encapsulation, inner);
    let report = sender.send_batch(&[GrePacket {
        to: receiver.local(),
        header,
        inner,
    }]);
    assert_eq!(report.sent, 1, "{report:?}");
    let mut batch = GreBatch::new(8, 2_000);
    assert_eq!(receiver.recv_batch(&mut batch).await.unwrap(), 1);
    let datagram = batch.iter().next().unwrap();
    let packet = Packet::parse(datagram.payload).unwrap();
    assert_eq!(packet.key(), TunnelKey(0x1001));
    (datagram.from, packet.payload().to_vec())
}

#[test]
fn a_packet_goes_through_gre_and_tun_to_a_socket_that_reads_its_mark() {
    in_own_namespace(|| async {
        let service: IpAddr = SERVICE.parse().unwrap();
        let address = LoopbackAddress::add(service).unwrap();
        let tun = TunDevice::open("sipcast0", 1_472).unwrap();
        system::switch_reverse_path_filter_off(tun.name()).unwrap();
        let options = UdpOptions {
            receive_tos: true,
            ..UdpOptions::default()
        };
        let sip = BatchSocket::bind((service, 5060).into(), &options).unwrap();
        let edge = GreSocket::bind("127.0.0.2".parse().unwrap(), 0, GRE).unwrap();
        let concentrator = GreSocket::bind("127.0.0.1".parse().unwrap(), 0, GRE).unwrap();

        let sent = marked_udp_packet();
        let (from, inner) = through_gre(&edge, &concentrator, &sent).await;
        assert_eq!((from, &inner), (edge.local(), &sent));
        tun.write(&inner).unwrap();
        let mut batch = DatagramBatch::new(8, 65_535);
        sip.recv_batch(&mut batch).await.unwrap();
        let datagram = batch.iter().next().unwrap();
        assert_eq!(datagram.from.to_string(), "192.0.2.7:40000");
        assert_eq!(
            (datagram.bytes, Mark::from_tos(datagram.tos).number()),
            (&b"OPTIONS"[..], 7)
        );

        drop((sip, address));
        assert!(!system::is_local_address(service).unwrap());
    });
}

#[test]
fn an_ipv6_tunnel_delivers_the_payload_without_the_outer_header() {
    in_own_namespace(|| async {
        let end = GreSocket::bind("::1".parse().unwrap(), 24, GRE).unwrap();
        let sent = marked_udp_packet();
        assert_eq!(through_gre(&end, &end, &sent).await, (end.local(), sent));
    });
}

#[test]
fn gre_in_udp_comes_out_as_it_went_in_and_has_a_checksum_over_ipv6() {
    in_own_namespace(|| async {
        for address in ["127.0.0.1", "::1"] {
            let end = GreSocket::bind(address.parse().unwrap(), 24, Encapsulation::GreUdp).unwrap();
            let sent = marked_udp_packet();
            let received = through(Encapsulation::GreUdp, &end, &end, &sent).await;
            assert_eq!(received, (end.local(), sent));
        }
    });
}

#[test]
fn gre_in_udp_without_a_checksum_is_refused_over_ipv6_and_taken_over_ipv4() {
    in_own_namespace(|| async {
        for (address, is_taken) in [("127.0.0.1", true), ("::1", false)] {
            let address: IpAddr = address.parse().unwrap();
            let end = GreSocket::bind(address, 0, Encapsulation::GreUdp).unwrap();
            // A sender of protocol 17 whose kernel makes no checksum.
            let domain = socket2::Domain::for_address((address, 0).into());
            let raw =
                socket2::Socket::new(domain, socket2::Type::RAW, Some(socket2::Protocol::UDP));
            let inner = marked_udp_packet();
            let bytes = [header(Encapsulation::GreUdp, &inner).bytes(), &inner].concat();
            let to = std::net::SocketAddr::new(address, 0).into();
            raw.unwrap().send_to(&bytes, &to).unwrap();
            let mut batch = GreBatch::new(8, 2_000);
            let wait = std::time::Duration::from_millis(200);
            let received = tokio::time::timeout(wait, end.recv_batch(&mut batch)).await;
            assert_eq!(received.is_ok(), is_taken, "{address}");
        }
    });
}

#[test]
fn a_route_is_taken_back_and_an_address_that_was_there_stays() {
    in_own_namespace(|| async {
        let tun = TunDevice::open("sipcast0", 1_472).unwrap();
        for text in [SERVICE, "2001:db8:5060::1"] {
            let service: IpAddr = text.parse().unwrap();
            let captured = CapturedAddress::add(service, &tun, MARKING).unwrap();
            assert!(ip("rule", service).contains("lookup 5060"));
            // As left by an earlier run on a persistent device.
            std::mem::forget(captured);
            drop(CapturedAddress::add(service, &tun, MARKING).unwrap());
            assert!(!ip("rule", service).contains("lookup 5060"));
            drop(CapturedAddress::add(service, &tun, MARKING).unwrap());

            let first = LoopbackAddress::add(service).unwrap();
            drop(LoopbackAddress::add(service).unwrap());
            assert!(system::is_local_address(service).unwrap());
            drop(first);
            assert!(!system::is_local_address(service).unwrap());
        }
    });
}

#[test]
fn an_announced_route_changes_its_metric_comes_back_and_leaves_others_alone() {
    in_own_namespace(|| async {
        let tun = TunDevice::open("sipcast0", 1_472).unwrap();
        for (text, length) in [
            (SERVICE, 32),
            ("198.51.100.0", 24),
            ("2001:db8:5060::1", 128),
        ] {
            let service: IpAddr = text.parse().unwrap();
            let shown = || ip("route show proto 60", service);
            let mut route = AnnouncedRoute::new(service, length, &tun, MARKING.protocol);
            assert!(route.set(Some(100)).unwrap());
            assert!(!route.set(Some(100)).unwrap(), "it is there already");
            assert!(route.set(Some(200)).unwrap());
            let table = shown();
            assert!(
                table.contains("metric 200") && !table.contains("metric 100"),
                "{table}"
            );
            // Somebody flushes our routes.
            ip("route flush proto 60", service);
            assert!(route.set(Some(200)).unwrap());
            assert!(shown().contains("metric 200"));
            assert!(route.set(None).unwrap());
            assert_eq!(shown().trim(), "");

            let foreign = format!("{text}/{length} dev lo metric 100");
            ip(&format!("route add {foreign}"), service);
            let taken = route.set(Some(100));
            assert!(matches!(taken, Err(RouteError::Taken { .. })), "{taken:?}");
            assert_eq!(route.metric(), None);
            ip(&format!("route del {foreign}"), service);
            assert!(route.set(Some(100)).unwrap());
            drop(route);
            assert_eq!(shown().trim(), "");
        }
    });
}

const MARKING: Marking = Marking {
    protocol: 60,
    table: 5_060,
};

/// What `ip` says, in the family of the address.
fn ip(arguments: &str, family_of: IpAddr) -> String {
    let family = if family_of.is_ipv4() { "-4" } else { "-6" };
    let output = Command::new("ip")
        .arg(family)
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "ip {family} {arguments}: {output:?}"
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_socket_that_only_sends_keeps_nothing_of_the_gre_that_reaches_it() {
    in_own_namespace(|| async {
        let sender = GreSocket::bind_to_send("127.0.0.2".parse().unwrap(), 0, GRE).unwrap();
        let far_end = GreSocket::bind("127.0.0.1".parse().unwrap(), 0, GRE).unwrap();
        let sent = marked_udp_packet();
        // It sends as before,
        assert_eq!(through_gre(&sender, &far_end, &sent).await.1, sent);
        // and what comes back is gone.
        let header = header(GRE, &sent);
        let back = GrePacket {
            to: sender.local(),
            header,
            inner: &sent,
        };
        assert_eq!(far_end.send_batch(&[back]).sent, 1);
        let mut batch = GreBatch::new(8, 2_000);
        let wait = std::time::Duration::from_millis(200);
        let received = tokio::time::timeout(wait, sender.recv_batch(&mut batch)).await;
        assert!(received.is_err(), "{received:?}");
    });
}

#[test]
fn packets_that_do_not_fit_the_queue_of_a_device_are_counted_by_the_kernel() {
    in_own_namespace(|| async {
        let tun = TunDevice::open("sipcast0", 1_472).unwrap();
        let service: IpAddr = SERVICE.parse().unwrap();
        let _captured = CapturedAddress::add(service, &tun, MARKING).unwrap();
        let lo = LoopbackAddress::add("192.0.2.1".parse().unwrap()).unwrap();
        let phone = std::net::UdpSocket::bind("192.0.2.1:0").unwrap();
        let drops = || DeviceDrops::of("sipcast0").unwrap().unwrap();
        assert_eq!(drops().sent, 0);
        for _ in 0..6_000 {
            // Nobody reads the device: the queue of 4,096 fills. The sender is not told.
            let _ = phone.send_to(b"x", (service, 5060));
        }
        assert!(drops().sent > 0, "{:?}", drops());
        drop(lo);
    });
}
