//! Attacks on a call's media, from two places: a stranger in the core, who knows the relay's ports, and a
//! neighbour who has the phone's public address, as one behind the same NAT has.
//!
//! * before the call both spray RTP at every port that the relay has open for leases; where ports share
//!   sockets nobody can see from outside which those are, so at all ports of the range
//! * while the phones speak both send RTP and RTCP to the four ports of the call; the neighbour has
//!   even learnt the caller's SSRC
//! * when the phones have fallen silent the neighbour tries to take the call over
//!
//! Nobody may hear them, they may hear nothing, the call may not suffer, and the relay's `/status` says
//! for the session why it has refused what.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::calls;
use crate::call::{self, Middle, Plan};
use crate::capture::Capture;
use crate::frame::Packet;
use crate::http;
use crate::namespace::Namespace;
use crate::phone::{Script, Transport};
use crate::service::{RELAY_PORTS, Service};
use crate::topology::two_edges::{EDGE1, NAT_A, TwoEdges};

/// Half of it is over when the attack begins; two seconds of silence follow.
const SECONDS: u32 = 4;
/// The attack lasts until the phones have been silent for more than a second.
const ATTACK: Duration = Duration::from_millis(3400);
const STRANGERS_SSRC: u32 = 0x0bad_5eed;
const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9103);

pub(super) fn run(folder: &Path) -> Result<String> {
    let net = TwoEdges::build()?;
    let mut service = Service::start(&net, folder)?;
    let sprayed = spray_leases(&net)?;
    let reflected = Capture::start(&net.core, "r1", folder)?;
    let plan = Plan {
        transport: Transport::Udp,
        script: Script::Plain,
        seconds: SECONDS,
        padding: 0,
        middle: Middle::Intruder(attack),
    };
    let record = call::place(&net, &mut service, plan, folder, &|_| {})?;
    for (place, packets) in [("ua1", &record.seen.ua1), ("ua2", &record.seen.ua2)] {
        let heard = packets.iter().filter(|packet| is_attackers(packet)).count();
        ensure!(heard == 0, "{place} heard {heard} packets of the attackers");
    }
    let arrived = record
        .seen
        .edge1
        .iter()
        .filter(|packet| is_attackers(packet));
    let arrived = arrived.count();
    ensure!(
        arrived > 400,
        "only {arrived} packets of the attackers reached the relay"
    );
    let to_stranger = reflected.stop()?;
    let to_stranger = to_stranger.iter().filter(|packet| {
        packet.source == EDGE1 && packet.udp().is_some_and(|udp| udp.rtp().is_some())
    });
    ensure!(to_stranger.count() == 0, "media went into the core");
    let figures = calls::judge(&record)?;
    let rejected = rejected(&service, &net)?;
    Ok(format!(
        "{sprayed} packets before the call, {arrived} in it, none heard; rejected {rejected}; {figures}"
    ))
}

/// Sends to each open port of the relay, from both places. Nothing of it may be kept for the call.
fn spray_leases(net: &TwoEdges) -> Result<usize> {
    let ports = open_ports(&net.edge1)?;
    ensure!(
        ports.len() >= 200,
        "the relay has {} ports open",
        ports.len()
    );
    for from in [&net.core, &net.nat_a] {
        from.inside(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            for port in &ports {
                socket.send_to(&rtp(STRANGERS_SSRC, 1), SocketAddr::from((EDGE1, *port)))?;
            }
            Ok(())
        })?;
    }
    // What came before a call is held for a second; the call is to begin after that, because before its
    // first packet nothing tells the phone from its neighbour (docs/sip.md).
    std::thread::sleep(Duration::from_millis(1200));
    Ok(ports.len() * 2)
}

/// The UDP ports that are open in a namespace at the edge's address, or that may be.
fn open_ports(edge: &Namespace) -> Result<Vec<u16>> {
    let page: Value = serde_json::from_str(&http::get(edge, ADMIN, "/status")?)?;
    if page["media_sockets"] == "shared" {
        return Ok(RELAY_PORTS.collect());
    }
    let table = edge.inside(|| Ok(std::fs::read_to_string("/proc/thread-self/net/udp")?))?;
    let ports = table.lines().skip(1).filter_map(|line| {
        let local = line.split_whitespace().nth(1)?;
        let port = u16::from_str_radix(local.split(':').nth(1)?, 16).ok()?;
        RELAY_PORTS.contains(&port).then_some(port)
    });
    Ok(ports.collect())
}

/// In mid-call, knowing what edge 1 has seen.
fn attack(net: &TwoEdges, at_edge1: &[Packet]) -> Result<()> {
    let (ports, ssrc) = call_of(at_edge1)?;
    let stranger = bind(&net.core, "0.0.0.0:0")?;
    let neighbour = bind(&net.nat_a, &format!("{NAT_A}:45000"))?;
    let end = Instant::now() + ATTACK;
    let mut sequence = 0_u16;
    while Instant::now() < end {
        sequence = sequence.wrapping_add(1);
        for port in &ports {
            let to = SocketAddr::from((EDGE1, *port));
            for socket in [&stranger, &neighbour] {
                socket.send_to(&rtp(STRANGERS_SSRC, sequence), to)?;
                socket.send_to(&goodbye(STRANGERS_SSRC), to)?;
            }
        }
        if sequence < 50 {
            // With the caller's own SSRC, while it speaks.
            let to = SocketAddr::from((EDGE1, ports[0]));
            neighbour.send_to(&rtp(ssrc, sequence), to)?;
            // STUN, of which RFC 7983 says what it is.
            neighbour.send_to(&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 0, 0, 0, 0], to)?;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    check_session(net)?;
    for (name, socket) in [("stranger", &stranger), ("neighbour", &neighbour)] {
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let heard = socket.recv_from(&mut [0; 2048]);
        ensure!(heard.is_err(), "the {name} was sent something: {heard:?}");
    }
    Ok(())
}

fn bind(namespace: &Namespace, address: &str) -> Result<UdpSocket> {
    namespace.inside(|| Ok(UdpSocket::bind(address)?))
}

/// The four ports of the call, the one that faces the caller first, and the caller's SSRC.
fn call_of(at_edge1: &[Packet]) -> Result<(Vec<u16>, u32)> {
    let to_relay = at_edge1.iter().filter(|packet| packet.destination == EDGE1);
    let mut callers = None;
    let mut ports = BTreeSet::new();
    for packet in to_relay {
        let Some(segment) = packet.udp() else {
            continue;
        };
        // What was sprayed before is RTP as well.
        let Some(rtp) = segment.rtp().filter(|rtp| rtp.ssrc != STRANGERS_SSRC) else {
            continue;
        };
        let port = segment.destination.port();
        if packet.source == NAT_A {
            callers = Some((port, rtp.ssrc));
        }
        ports.insert(port);
    }
    let (first, ssrc) = callers.context("the caller sends no RTP to the relay")?;
    ensure!(ports.len() == 2, "the call has the ports {ports:?}");
    let others = ports.into_iter().filter(|port| *port != first);
    let rtp: Vec<u16> = std::iter::once(first).chain(others).collect();
    Ok((
        rtp.iter().flat_map(|port| [*port, port + 1]).collect(),
        ssrc,
    ))
}

/// The session's own figures, while it lives.
fn check_session(net: &TwoEdges) -> Result<()> {
    let page: Value = serde_json::from_str(&http::get(&net.edge1, ADMIN, "/status")?)?;
    let session = &page["sessions"][0];
    let count = |side: &str, reason: &str| session[side][reason].as_u64().unwrap_or_default();
    for (side, reason, least, what) in [
        (
            "a",
            "rejected_gate",
            100,
            "the stranger, at the caller's side",
        ),
        ("b", "rejected_gate", 200, "both, at the callee's side"),
        (
            "a",
            "rejected_stranger",
            60,
            "the neighbour, while the caller spoke",
        ),
        (
            "a",
            "rejected_ssrc",
            10,
            "the neighbour, when the caller was silent",
        ),
        (
            "a",
            "rejected_not_rtp",
            10,
            "STUN, and RTP at the RTCP port",
        ),
    ] {
        let seen = count(side, reason);
        ensure!(
            seen >= least,
            "{what}: {reason} is {seen}, not {least} or more: {session}"
        );
    }
    ensure!(
        count("a", "relatched") + count("b", "relatched") == 0,
        "a side has moved: {session}"
    );
    let latched = &session["a"]["latched_rtp"];
    let still = latched
        .as_str()
        .is_some_and(|latched| !latched.ends_with(":45000"));
    ensure!(still, "the caller's side listens to {latched}");
    for side in ["a", "b"] {
        let rtcp = &session[side]["latched_rtcp"];
        ensure!(rtcp.is_null(), "somebody's RTCP was believed: {rtcp}");
    }
    Ok(())
}

/// RTP or RTCP with the attackers' SSRC, or to the neighbour's port.
fn is_attackers(packet: &Packet) -> bool {
    packet.udp().is_some_and(|segment| {
        let ssrc = STRANGERS_SSRC.to_be_bytes();
        let rtp = segment.payload.get(8..12) == Some(&ssrc[..]);
        let rtcp = segment.payload.get(4..8) == Some(&ssrc[..]);
        rtp || rtcp
    })
}

fn rtp(ssrc: u32, sequence: u16) -> Vec<u8> {
    let mut packet = vec![0x80, 0];
    packet.extend_from_slice(&sequence.to_be_bytes());
    packet.extend_from_slice(&(u32::from(sequence) * 160).to_be_bytes());
    packet.extend_from_slice(&ssrc.to_be_bytes());
    packet.extend_from_slice(&[0xff; 160]);
    packet
}

/// An RTCP BYE.
fn goodbye(ssrc: u32) -> Vec<u8> {
    [&[0x81, 203, 0, 1], &ssrc.to_be_bytes()[..]].concat()
}

/// What the relay of edge 1 has rejected, by reason.
fn rejected(service: &Service, net: &TwoEdges) -> Result<String> {
    let metrics = service.relay1.metrics(&net.edge1)?;
    let rejected: Vec<String> = metrics
        .iter()
        .filter(|(name, count)| name.contains("packets_rejected") && *count > 0.0)
        .map(|(name, count)| {
            let reason = name.split('"').nth(1).unwrap_or_default();
            format!("{reason} {count}")
        })
        .collect();
    Ok(rejected.join(", "))
}
