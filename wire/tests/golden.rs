//! Packets built with `wire`, read by an independent decoder: tshark must see what we meant.
//!
//! Each test builds packets, writes them as a classic pcap file, asks tshark for fields and compares.
//! Without tshark a test says SKIP and passes; with `CI=true` in the environment it fails.

#![expect(clippy::print_stdout, reason = "a skipped test says so")]
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot build its packets has failed"
)]

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;

use wire::encapsulation::{Encapsulation, Entropy};
use wire::gre::{self, Protocol, TunnelKey};
use wire::icmp;
use wire::ip::{self, Fragment, TcpRepr};
use wire::mark::{self, Mark};
use wire::rtp::{self, rtcp, stun};

const LINKTYPE_RAW: u32 = 101;

/// A classic pcap file: 24 octets, then 16 before each packet.
fn pcap(packets: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    file.extend_from_slice(&0xa1b2_c3d4_u32.to_le_bytes());
    file.extend_from_slice(&2_u16.to_le_bytes());
    file.extend_from_slice(&4_u16.to_le_bytes());
    for word in [0, 0, 65_535, LINKTYPE_RAW] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    for (second, packet) in (0_u32..).zip(packets) {
        let len = packet.len() as u32;
        for word in [second, 0, len, len] {
            file.extend_from_slice(&word.to_le_bytes());
        }
        file.extend_from_slice(packet);
    }
    file
}

/// What tshark reads in these packets: a line a packet, a column a field, `,` between occurrences.
fn fields(
    name: &str,
    packets: &[Vec<u8>],
    options: &[&str],
    fields: &[&str],
) -> Option<Vec<Vec<String>>> {
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("{name}-{}.pcap", std::process::id()));
    std::fs::write(&file, pcap(packets)).unwrap();
    let mut tshark = Command::new("tshark");
    tshark
        .arg("-n")
        .arg("-r")
        .arg(&file)
        .args(["-T", "fields", "-E", "separator=|"]);
    for check in [
        "ip.check_checksum:TRUE",
        "udp.check_checksum:TRUE",
        "tcp.check_checksum:TRUE",
    ] {
        tshark.args(["-o", check]);
    }
    // Fragments are looked at one by one.
    tshark
        .args(["-o", "ip.defragment:FALSE", "-o", "ipv6.defragment:FALSE"])
        .args(options);
    fields.iter().for_each(|field| {
        tshark.args(["-e", field]);
    });
    let output = tshark.output();
    std::fs::remove_file(&file).unwrap();
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            assert!(
                std::env::var("CI").as_deref() != Ok("true"),
                "tshark: {error}"
            );
            // On a line of its own, whatever the test runner wrote before.
            println!("\nSKIP {name}: tshark does not run: {error}");
            return None;
        }
    };
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    Some(
        text.lines()
            .map(|line| line.split('|').map(str::to_owned).collect())
            .collect(),
    )
}

fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn ends(v6: bool) -> (SocketAddr, SocketAddr) {
    if v6 {
        (socket("[2001:db8::1]:5060"), socket("[2001:db8:a::1]:5060"))
    } else {
        (socket("192.0.2.1:5060"), socket("198.51.100.1:5060"))
    }
}

/// This packet in the tunnel, as the kernel's raw socket would complete it.
fn tunnelled(inner: &[u8], key: u32) -> Vec<u8> {
    let protocol = Protocol::of_packet(inner).unwrap();
    let header = gre::Repr {
        key: TunnelKey(key),
        protocol,
    }
    .header();
    let outer = ip::Repr {
        dont_fragment: true,
        ..ip::Repr::new(
            socket("10.0.1.2:0").ip(),
            socket("10.0.9.2:0").ip(),
            gre::IP_PROTOCOL,
        )
    };
    outer.build(&[&header[..], inner].concat()).unwrap()
}

#[test]
fn tshark_reads_the_mark_in_the_tunnel_and_finds_every_checksum_good() {
    let mut packets = Vec::new();
    let mut expected = Vec::new();
    for number in [0, 1, 42, 63] {
        for ecn in 0..=3 {
            let (src, dst) = ends(false);
            // A user agent's own DSCP, 46, which the mark replaces.
            let mut inner = ip::udp(src, dst, 46 << 2 | ecn, b"OPTIONS").unwrap();
            mark::stamp(&mut inner, Mark::new(number).unwrap()).unwrap();
            packets.push(tunnelled(&inner, 0x1001));
            let row = [
                "0x0800".to_owned(),
                "0x00001001".to_owned(),
                format!("0,{number}"),
                format!("0,{ecn}"),
                // 1 is good; outer and inner header.
                "1,1".to_owned(),
                "1".to_owned(),
                "1,0".to_owned(),
            ];
            expected.push(row.to_vec());
        }
    }
    let names = [
        "gre.proto",
        "gre.key",
        "ip.dsfield.dscp",
        "ip.dsfield.ecn",
        "ip.checksum.status",
        "udp.checksum.status",
        "ip.flags.df",
    ];
    let Some(seen) = fields("mark4", &packets, &[], &names) else {
        return;
    };
    assert_eq!(seen, expected);
}

#[test]
fn tshark_reads_the_mark_of_ipv6_and_tcp() {
    let (src, dst) = ends(true);
    let header = TcpRepr {
        seq: 77,
        ack: 0,
        flags: 0x02,
        window: 1000,
    };
    let mut inner = ip::tcp(src, dst, 0xff, header, b"").unwrap();
    mark::stamp(&mut inner, Mark::new(21).unwrap()).unwrap();
    let names = [
        "gre.proto",
        "ipv6.tclass.dscp",
        "ipv6.tclass.ecn",
        "tcp.checksum.status",
        "tcp.seq_raw",
        "tcp.flags.syn",
        "tcp.dstport",
    ];
    let Some(seen) = fields("mark6", &[tunnelled(&inner, 1)], &[], &names) else {
        return;
    };
    assert_eq!(seen, [["0x86dd", "21", "3", "1", "77", "1", "5060"]]);
}

/// The same in UDP (RFC 8086), with outer IPv4 or IPv6.
fn tunnelled_in_udp(inner: &[u8], key: u32, v6: bool) -> Vec<u8> {
    let gre = gre::Repr {
        key: TunnelKey(key),
        protocol: Protocol::of_packet(inner).unwrap(),
    };
    let entropy = Entropy::of(&ip::Packet::parse(inner).unwrap());
    let header = Encapsulation::GreUdp.header(gre, entropy, inner.len());
    let (from, to) = if v6 {
        ("[fd00:1::2]:0", "[fd00:9::2]:0")
    } else {
        ("10.0.1.2:0", "10.0.9.2:0")
    };
    let (from, to) = (socket(from).ip(), socket(to).ip());
    let mut datagram = [header.bytes(), inner].concat();
    if v6 {
        // As the kernel does it.
        let sum = wire::checksum::udp(from, to, &datagram);
        datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    }
    let outer = ip::Repr {
        dont_fragment: !v6,
        ..ip::Repr::new(from, to, ip::protocol::UDP)
    };
    outer.build(&datagram).unwrap()
}

#[test]
fn tshark_reads_gre_in_udp() {
    let mut packets = Vec::new();
    let mut expected = Vec::new();
    for (outer_v6, inner_v6) in [(false, false), (false, true), (true, false), (true, true)] {
        let (src, dst) = ends(inner_v6);
        let inner = ip::udp(src, dst, 1 << 2, b"OPTIONS").unwrap();
        let packet = ip::Packet::parse(&inner).unwrap();
        let port = Entropy::of(&packet).port();
        packets.push(tunnelled_in_udp(&inner, 0x1001, outer_v6));
        let length = 16 + inner.len();
        let row = [
            format!("{port},5060"),
            "4754,5060".to_owned(),
            format!("{length},15"),
            // 3 is "none", which is for IPv4 only; 1 is good.
            if outer_v6 { "1,1" } else { "3,1" }.to_owned(),
            "0x00001001".to_owned(),
            if inner_v6 { "0x86dd" } else { "0x0800" }.to_owned(),
        ];
        expected.push(row.to_vec());
    }
    let names = [
        "udp.srcport",
        "udp.dstport",
        "udp.length",
        "udp.checksum.status",
        "gre.key",
        "gre.proto",
    ];
    let Some(seen) = fields("in-udp", &packets, &[], &names) else {
        return;
    };
    assert_eq!(seen, expected);
}

#[test]
fn tshark_puts_the_fragments_together_again() {
    for v6 in [false, true] {
        let (src, dst) = ends(v6);
        let whole = ip::udp(src, dst, 0, &[0x55; 4000]).unwrap();
        let datagram = ip::Packet::parse(&whole).unwrap().payload();
        let parts = (0_u16..).step_by(1400).zip(datagram.chunks(1400));
        let packets: Vec<_> = parts
            .map(|(offset, part)| {
                let more = part.len() == 1400;
                let fragment = Some(Fragment {
                    id: 0xbeef,
                    offset,
                    more,
                });
                ip::Repr {
                    fragment,
                    ..ip::Repr::new(src.ip(), dst.ip(), 17)
                }
                .build(part)
                .unwrap()
            })
            .collect();
        let options = ["-o", "ip.defragment:TRUE", "-o", "ipv6.defragment:TRUE"];
        let names = if v6 {
            [
                "ipv6.fraghdr.ident",
                "ipv6.fraghdr.more",
                "ipv6.reassembled.length",
            ]
        } else {
            ["ip.id", "ip.flags.mf", "ip.reassembled.length"]
        };
        let names = [&names[..], &["udp.checksum.status", "udp.length"]].concat();
        let Some(seen) = fields("fragments", &packets, &options, &names) else {
            return;
        };
        let id = if v6 { "0x0000beef" } else { "0xbeef" };
        assert_eq!(
            seen,
            [
                [id, "1", "", "", ""],
                [id, "1", "", "", ""],
                [id, "0", "4008", "1", "4008"]
            ]
        );
    }
}

#[test]
fn tshark_reads_the_icmp_errors_and_what_they_quote() {
    let build = |v6, router: &str| {
        let (agent, service) = ends(v6);
        let quote = ip::udp(service, agent, 4, &[0; 1300]).unwrap();
        let kind = icmp::Kind::TooBig { mtu: 1400 };
        let src: IpAddr = router.parse().unwrap();
        icmp::Repr {
            src,
            dst: service.ip(),
            kind,
        }
        .build(&quote[..68])
        .unwrap()
    };
    let names = [
        "icmp.type",
        "icmp.code",
        "icmp.mtu",
        "icmp.checksum.status",
        "ip.dst",
        "udp.srcport",
    ];
    let packets = [build(false, "203.0.113.9")];
    let Some(seen) = fields("icmp4", &packets, &[], &names) else {
        return;
    };
    assert_eq!(
        seen,
        [["3", "4", "1400", "1", "198.51.100.1,192.0.2.1", "5060"]]
    );

    let names = [
        "icmpv6.type",
        "icmpv6.code",
        "icmpv6.mtu",
        "icmpv6.checksum.status",
        "ipv6.dst",
        "udp.dstport",
    ];
    let packets = [build(true, "2001:db8:9::1")];
    let Some(seen) = fields("icmp6", &packets, &[], &names) else {
        return;
    };
    assert_eq!(
        seen,
        [["2", "0", "1400", "1", "2001:db8:a::1,2001:db8::1", "5060"]]
    );
}

#[test]
fn tshark_reads_the_media() {
    let media = |payload: &[u8]| {
        ip::udp(
            socket("10.0.1.2:30000"),
            socket("192.0.2.1:4000"),
            0,
            payload,
        )
        .unwrap()
    };
    let audio = rtp::Repr {
        payload_type: 8,
        marker: true,
        sequence: 65_535,
        timestamp: 160,
        ssrc: 0xdead_beef,
    };
    let names = [
        "rtp.version",
        "rtp.p_type",
        "rtp.marker",
        "rtp.seq",
        "rtp.timestamp",
        "rtp.ssrc",
    ];
    let packets = [media(&[&audio.header()[..], &[0xd5; 160]].concat())];
    let options = ["-d", "udp.port==30000,rtp"];
    let Some(seen) = fields("rtp", &packets, &options, &names) else {
        return;
    };
    assert_eq!(seen, [["2", "8", "1", "65535", "160", "0xdeadbeef"]]);

    let report = rtcp::Report {
        ssrc: 0xdead_beef,
        fraction_lost: 64,
        lost: -3,
        highest_sequence: 0x0001_0002,
        jitter: 99,
        last_sender_report: 5,
        delay: 6,
    };
    let names = [
        "rtcp.pt",
        "rtcp.senderssrc",
        "rtcp.ssrc.identifier",
        "rtcp.ssrc.fraction",
        "rtcp.ssrc.cum_nr",
        "rtcp.ssrc.jitter",
        "rtcp.length_check",
    ];
    let packets = [media(&rtcp::receiver_report(0x0102_0304, &[report]))];
    let options = ["-d", "udp.port==30000,rtcp"];
    let Some(seen) = fields("rtcp", &packets, &options, &names) else {
        return;
    };
    assert_eq!(
        seen,
        [["201", "0x01020304", "0xdeadbeef", "64", "-3", "99", "1"]]
    );

    let binding = stun::Repr {
        message_type: stun::BINDING_REQUEST,
        attributes_len: 0,
        transaction_id: [0xab; 12],
    };
    let names = ["stun.type", "stun.length", "stun.cookie", "stun.id"];
    let Some(seen) = fields("stun", &[media(&binding.header())], &[], &names) else {
        return;
    };
    assert_eq!(
        seen,
        [["0x0001", "0", "2112a442", "abababababababababababab"]]
    );
}
