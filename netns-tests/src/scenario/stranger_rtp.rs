//! In the middle of a call somebody in the core sends RTP to the relay's port that faces the
//! caller. Nobody may hear it, the call may not suffer, and the relay counts it.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::calls;
use crate::call::{self, Middle, Plan};
use crate::frame::Packet;
use crate::phone::{Script, Transport};
use crate::service::Service;
use crate::topology::two_edges::{EDGE1, NAT_A, TwoEdges};

const SECONDS: u32 = 5;
const PACKETS: u16 = 100;
const SSRC: u32 = 0x0bad_5eed;

pub(super) fn run(folder: &Path) -> Result<String> {
    let net = TwoEdges::build()?;
    let mut service = Service::start(&net, folder)?;
    let before = rejected(&service, &net)?;
    let plan = Plan {
        transport: Transport::Udp,
        script: Script::Plain,
        seconds: SECONDS,
        padding: 0,
        middle: Middle::Intruder(intrude),
    };
    let record = call::place(&net, &mut service, plan, folder, &|_| {})?;
    let counted = rejected(&service, &net)? - before;
    for (place, packets) in [("ua1", &record.seen.ua1), ("ua2", &record.seen.ua2)] {
        let heard = packets.iter().filter(|packet| is_intruders(packet)).count();
        ensure!(heard == 0, "{place} heard {heard} packets of the stranger");
    }
    let arrived = record
        .seen
        .edge1
        .iter()
        .filter(|packet| is_intruders(packet))
        .count();
    ensure!(
        arrived == usize::from(PACKETS),
        "only {arrived} packets reached the relay"
    );
    ensure!(
        counted >= f64::from(PACKETS),
        "the relay rejected {counted} packets, the stranger sent {PACKETS}"
    );
    let figures = calls::judge(&record)?;
    Ok(format!(
        "{PACKETS} packets of a stranger, {counted} rejected, none heard; {figures}"
    ))
}

fn is_intruders(packet: &Packet) -> bool {
    packet
        .udp()
        .and_then(|segment| segment.rtp())
        .is_some_and(|rtp| rtp.ssrc == SSRC)
}

/// Sends to the port that the caller's audio goes to.
fn intrude(net: &TwoEdges, at_edge1: &[Packet]) -> Result<()> {
    let port = at_edge1
        .iter()
        .filter(|packet| packet.source == NAT_A && packet.destination == EDGE1)
        .find_map(|packet| {
            let segment = packet.udp()?;
            segment.rtp().map(|_| segment.destination.port())
        })
        .context("the caller sends no RTP to the relay")?;
    net.core.inside(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        for sequence in 0..PACKETS {
            let mut packet = vec![0x80, 0];
            packet.extend_from_slice(&sequence.to_be_bytes());
            packet.extend_from_slice(&(u32::from(sequence) * 160).to_be_bytes());
            packet.extend_from_slice(&SSRC.to_be_bytes());
            packet.extend_from_slice(&[0xff; 160]);
            socket.send_to(&packet, SocketAddr::from((EDGE1, port)))?;
        }
        Ok(())
    })
}

/// What the relay of edge 1 has rejected so far.
fn rejected(service: &Service, net: &TwoEdges) -> Result<f64> {
    let metrics = service.relay1.metrics(&net.edge1)?;
    Ok(metrics
        .iter()
        .filter(|(name, _)| name.contains("reject"))
        .map(|(_, value)| value)
        .sum())
}
