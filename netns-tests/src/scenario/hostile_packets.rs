//! Bad input from inside and outside of the tunnel: each kind raises its own counter at the
//! concentrator, and after all of it a call still works.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::calls;
use crate::call::{self, Middle, Plan};
use crate::frame::{GRE, UDP};
use crate::namespace::Namespace;
use crate::phone::{Script, Transport};
use crate::raw;
use crate::service::{KEY1, MARK1, Service, relay_config, start_program};
use crate::topology::two_edges::{CONCENTRATOR, EDGE1, SERVICE, TwoEdges};
use crate::{certs, wait};

const NOT_OURS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 77);
const SOMEBODY: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 77);
const TO_SIP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(SERVICE), 5060);

/// More than the kernel keeps.
const FRAGMENTS: u16 = 20_000;

/// One kind of bad input: the counter that must rise, and how to send it.
struct Probe {
    name: &'static str,
    /// Part of the sample's name or of one of its labels.
    counter: &'static str,
    send: fn(&TwoEdges) -> Result<()>,
}

const PROBES: [Probe; 14] = [
    Probe {
        name: "truncated GRE",
        counter: "\"malformed_gre\"",
        send: |net| tunnel(&net.edge1, EDGE1, &[0x20, 0, 8]),
    },
    Probe {
        name: "wrong key",
        counter: "\"wrong_key\"",
        send: |net| tunnel(&net.edge1, EDGE1, &raw::gre(0xbad, &inner(MARK1))),
    },
    Probe {
        name: "another edge's key",
        counter: "\"wrong_key\"",
        send: |net| tunnel(&net.edge1, EDGE1, &raw::gre(0x1002, &inner(2))),
    },
    Probe {
        name: "foreign outer source",
        counter: "\"foreign_outer_source\"",
        send: |net| tunnel(&net.core, SOMEBODY, &raw::gre(KEY1, &inner(MARK1))),
    },
    Probe {
        name: "foreign mark",
        counter: "\"foreign_mark\"",
        send: |net| tunnel(&net.edge1, EDGE1, &raw::gre(KEY1, &inner(9))),
    },
    Probe {
        name: "nested tunnel",
        counter: "\"nested_tunnel\"",
        send: |net| tunnel(&net.edge1, EDGE1, &raw::gre(KEY1, &nested())),
    },
    Probe {
        name: "inner destination not ours",
        counter: "\"inner_destination\"",
        send: |net| tunnel(&net.edge1, EDGE1, &raw::gre(KEY1, &elsewhere())),
    },
    Probe {
        name: "inner source is ours",
        counter: "\"source_ours\"",
        send: |net| tunnel(&net.edge1, EDGE1, &raw::gre(KEY1, &from_ourselves())),
    },
    Probe {
        name: "truncated inner packet",
        counter: "\"malformed_inner\"",
        send: |net| tunnel(&net.edge1, EDGE1, &raw::gre(KEY1, &inner(MARK1)[..15])),
    },
    Probe {
        name: "garbage instead of SIP, UDP",
        counter: "\"unparsable_message\"",
        send: |net| datagram(net, b"\x16\x03\x01 neither SIP nor anything else\r\n\r\n"),
    },
    Probe {
        name: "Content-Length beyond the datagram",
        counter: "\"request_rejected\"",
        send: |net| datagram(net, &options("Content-Length: 4000\r\n", 10)),
    },
    Probe {
        name: "garbage instead of SIP, TCP",
        counter: "\"not_sip\"",
        send: |net| stream(net, b"GET / HTTP/1.1\r\nHost: sip\r\n\r\n"),
    },
    Probe {
        name: "Content-Length that is no number, TCP",
        counter: "\"bad_content_length\"",
        send: |net| stream(net, &options("Content-Length: -1\r\n", 0)),
    },
    Probe {
        name: "a message of more than 64 KiB, TCP",
        counter: "\"message_too_long\"",
        send: |net| stream(net, &options(&"X: y\r\n".repeat(20_000), 0)),
    },
];

pub(super) fn run(folder: &Path) -> Result<String> {
    let net = TwoEdges::build()?;
    let mut service = Service::start(&net, folder)?;
    for probe in &PROBES {
        let send = || (probe.send)(&net);
        expect_count(&service, &net, probe.name, probe.counter, send)?;
    }
    largest_datagram(&service, &net)?;
    let held = fragment_flood(&net)?;
    unknown_certificate(&service, &net, folder)?;
    service.check_alive()?;
    let plan = Plan {
        transport: Transport::Udp,
        script: Script::Plain,
        seconds: 2,
        padding: 0,
        middle: Middle::Nothing,
    };
    let record = call::place(&net, &mut service, plan, folder, &|_| {})?;
    let figures = calls::judge(&record).context("a call after all that")?;
    Ok(format!(
        "{} kinds counted, {FRAGMENTS} fragments without an end hold {held} bytes, then a call: {figures}",
        PROBES.len() + 2
    ))
}

/// Sends, and waits until a sample with this counter in its name has risen.
fn expect_count(
    service: &Service,
    net: &TwoEdges,
    name: &str,
    counter: &str,
    send: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let total = || -> Result<f64> {
        let metrics = service.concentrator.metrics(&net.concentrator)?;
        let samples = metrics
            .iter()
            .filter(|(sample, _)| sample.contains(counter));
        Ok(samples.map(|(_, value)| value).sum())
    };
    let before = total()?;
    send().with_context(|| format!("{name}: cannot send it"))?;
    wait::until(
        &format!("{counter} to rise"),
        Duration::from_secs(5),
        || Ok((total()? > before).then_some(())),
    )
    .with_context(|| format!("{name} is not counted"))
}

/// The largest datagram that UDP has: some request fields and then padding.
fn largest_datagram(service: &Service, net: &TwoEdges) -> Result<()> {
    let message = options(&format!("X: {}\r\n", "y".repeat(64_800)), 0);
    let send = || datagram(net, &message);
    expect_count(
        service,
        net,
        "a message of 64 KiB, UDP",
        "sip_received",
        send,
    )
}

/// First fragments of datagrams whose rest never comes, through the tunnel: what the kernel keeps of them is
/// bounded (net.ipv4.ipfrag_high_thresh). Gives how much that is.
fn fragment_flood(net: &TwoEdges) -> Result<u64> {
    let fragment = |number: u16| {
        let datagram = raw::udp(5060, 5060, &[0x55; 1_400]);
        let mut inner = raw::ipv4(SOMEBODY, SERVICE, MARK1, UDP, &datagram);
        inner[4..6].copy_from_slice(&number.to_be_bytes());
        inner[6] = 0x20;
        inner[10..12].fill(0);
        let sum = wire::checksum::internet(&inner[..20]);
        inner[10..12].copy_from_slice(&sum.to_be_bytes());
        raw::ipv4(EDGE1, CONCENTRATOR, 0, GRE, &raw::gre(KEY1, &inner))
    };
    raw::send_all(&net.edge1, (1..=FRAGMENTS).map(fragment))?;
    let number = |file: &str, after: &str| -> Result<u64> {
        let text = net.concentrator.run(&format!("cat {file}"))?;
        let (_, rest) = text.split_once(after).with_context(|| text.clone())?;
        let word = rest.split_whitespace().next().unwrap_or_default();
        word.parse().with_context(|| format!("{file}: {text}"))
    };
    let most = number("/proc/sys/net/ipv4/ipfrag_high_thresh", "")?;
    let mut held = 0;
    wait::until("fragments to be kept", Duration::from_secs(5), || {
        held = number("/proc/net/sockstat", "FRAG: inuse ")?;
        Ok((held > 0).then_some(()))
    })?;
    let held = number("/proc/net/sockstat", "memory ")?.max(held);
    anyhow::ensure!(
        held <= most + 65_536,
        "fragments hold {held} bytes, of {most}"
    );
    Ok(held)
}

/// An rtp-agent whose certificate another authority has signed.
fn unknown_certificate(service: &Service, net: &TwoEdges, folder: &Path) -> Result<()> {
    let folder = folder.join("stranger");
    certs::write(&folder, &["relay1".into()])?;
    let config = relay_config("relay1", EDGE1).replace("30000-39999", "20000-20999");
    let mut agent = None;
    let start = || {
        let started = start_program(
            &net.edge1,
            "relay1",
            "sipcast-rtp-agent",
            9104,
            &config,
            &folder,
        )?;
        agent = Some(started);
        Ok(())
    };
    expect_count(
        service,
        net,
        "a certificate of another authority",
        "relay_control_refused",
        start,
    )
}

/// Sends what is to be in a GRE packet.
fn tunnel(namespace: &Namespace, source: Ipv4Addr, gre: &[u8]) -> Result<()> {
    raw::send(namespace, &raw::ipv4(source, CONCENTRATOR, 0, GRE, gre))
}

fn inner(mark: u8) -> Vec<u8> {
    raw::ipv4(
        SOMEBODY,
        SERVICE,
        mark,
        UDP,
        &raw::udp(5060, 5060, b"\r\n\r\n"),
    )
}

fn nested() -> Vec<u8> {
    raw::ipv4(
        SOMEBODY,
        SERVICE,
        MARK1,
        GRE,
        &raw::gre(KEY1, &inner(MARK1)),
    )
}

fn elsewhere() -> Vec<u8> {
    raw::ipv4(
        SOMEBODY,
        NOT_OURS,
        MARK1,
        UDP,
        &raw::udp(5060, 5060, b"\r\n\r\n"),
    )
}

fn from_ourselves() -> Vec<u8> {
    raw::ipv4(
        SERVICE,
        SERVICE,
        MARK1,
        UDP,
        &raw::udp(5060, 5060, b"\r\n\r\n"),
    )
}

/// A request with these fields, which end in a line end each, and a body of this length.
fn options(fields: &str, body: usize) -> Vec<u8> {
    let mut message = format!(
        "OPTIONS sip:example.com SIP/2.0\r\nVia: SIP/2.0/UDP 192.168.1.10:4000;rport;\
         branch=z9hG4bKhostile{}\r\nMax-Forwards: 70\r\nFrom: <sip:x@example.com>;tag=1\r\n\
         To: <sip:example.com>\r\nCall-ID: hostile\r\nCSeq: 1 OPTIONS\r\n{fields}\r\n",
        fields.len()
    )
    .into_bytes();
    message.resize(message.len() + body, b'x');
    message
}

fn datagram(net: &TwoEdges, bytes: &[u8]) -> Result<()> {
    net.ua1.inside(|| {
        let socket = UdpSocket::bind("0.0.0.0:4000")?;
        socket.send_to(bytes, TO_SIP)?;
        Ok(())
    })
}

/// Sends and waits for the other end to close.
fn stream(net: &TwoEdges, bytes: &[u8]) -> Result<()> {
    net.ua1.inside(|| {
        let mut stream = TcpStream::connect_timeout(&TO_SIP, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        // The other end may close before it has read everything, which is an error here.
        let _sent = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _closed = stream.read_to_end(&mut answer);
        Ok(())
    })
}
