//! How far media go: from each access network to each other one, through the relay at the caller's edge as
//! the service places it, beside a relay next to the concentrator and no relay at all.
//!
//! The first is measured with calls, by the times at which each RTP packet passed both phones' interfaces
//! (one machine, one clock). The others are sums of half round trips between the same places; the same sum
//! for the caller's relay says how well that agrees with what the packets needed.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::json;

use super::plot::{self, Series};
use super::{Outcome, outcome, path, percentile, sorted};
use crate::capture::Capture;
use crate::frame::{Packet, Rtp};
use crate::phone::{self, Place, Transport};
use crate::scenario::internet::Rig;
use crate::topology::internet::{CATCHMENTS, EDGES, TUNNEL_END, address_of};
use crate::topology::two_edges::SERVICE;

const SECONDS: u32 = 1;

/// One way, in milliseconds.
#[derive(Debug, Serialize)]
struct Pair {
    caller: usize,
    callee: usize,
    /// The median of all packets of the call, both ways.
    rtp_ms: f64,
    packets: usize,
    /// The sum that should be the same.
    relay_at_edge_ms: f64,
    relay_at_core_ms: f64,
    direct_ms: f64,
}

/// Half round trips from each access network.
struct Distances {
    edge: Vec<[f64; 3]>,
    core: Vec<f64>,
    /// From the NAT of one to that of the other: nothing gets into them unasked.
    direct: Vec<[f64; 6]>,
}

pub(crate) fn run(folder: &Path) -> Result<Vec<Outcome>> {
    let mut rig = Rig::start(folder)?;
    let distances = distances(&rig)?;
    let mut pairs = Vec::new();
    for caller in 1..=6 {
        for callee in (1..=6).filter(|callee| *callee != caller) {
            let pair = call(&mut rig, &distances, caller, callee)?;
            eprintln!("bench anycast/media: {pair:?}");
            pairs.push(pair);
        }
    }
    write(&pairs, folder)?;
    let (edge, core) = (
        column(&pairs, |p| p.rtp_ms),
        column(&pairs, |p| p.relay_at_core_ms),
    );
    let direct = column(&pairs, |p| p.direct_ms);
    Ok(vec![outcome(
        "anycast/media",
        "ms one way through the relay at the caller's edge, median of 30 pairs",
        percentile(&edge, 50),
        pairs.len() as u64,
        json!({
            "max_ms": percentile(&edge, 100),
            "relay_at_core_median_ms": percentile(&core, 50),
            "relay_at_core_max_ms": percentile(&core, 100),
            "direct_median_ms": percentile(&direct, 50),
            "direct_max_ms": percentile(&direct, 100),
        }),
    )])
}

fn distances(rig: &Rig) -> Result<Distances> {
    for (namespace, address) in rig.net.edges.iter().zip(EDGES) {
        path::echo(namespace, address)?;
    }
    path::echo(&rig.net.concentrator, TUNNEL_END)?;
    let wan = |number: u8| Ipv4Addr::new(100, 64, number, 2);
    for (number, nat) in (1..).zip(&rig.net.nats) {
        path::echo(nat, wan(number))?;
    }
    let mut distances = Distances {
        edge: Vec::new(),
        core: Vec::new(),
        direct: Vec::new(),
    };
    for (ua, nat) in rig.net.uas.iter().zip(&rig.net.nats) {
        let (mut edge, mut direct) = ([0.0; 3], [0.0; 6]);
        for (time, address) in edge.iter_mut().zip(EDGES) {
            *time = path::round_trip(ua, address)? / 2.0;
        }
        for (time, number) in direct.iter_mut().zip(1..) {
            *time = path::round_trip(nat, wan(number))? / 2.0;
        }
        distances.edge.push(edge);
        distances.core.push(path::round_trip(ua, TUNNEL_END)? / 2.0);
        distances.direct.push(direct);
    }
    Ok(distances)
}

fn call(rig: &mut Rig, distances: &Distances, caller: usize, callee: usize) -> Result<Pair> {
    let folder = rig.folder.join(format!("ua{caller}-ua{callee}"));
    fs::create_dir_all(&folder)?;
    let place = |number| Place {
        own: IpAddr::V4(address_of(number)),
        service: IpAddr::V4(SERVICE),
    };
    let (near, far) = (&rig.net.uas[caller - 1], &rig.net.uas[callee - 1]);
    let near_capture = Capture::start(near, "eth0", &folder)?;
    let far_capture = Capture::start(far, "eth0", &folder)?;
    let mut answering = phone::callee_at(far, place(callee), Transport::Udp, SECONDS, &folder)?;
    rig.wait_for_binding_at(&mut answering, callee)?;
    let mut calling = phone::caller_at(near, place(caller), Transport::Udp, SECONDS, &folder)?;
    let status = calling.wait(Duration::from_secs(60))?;
    ensure!(status.success(), "ua{caller} to ua{callee}: {status}");
    answering.stop()?;
    far.inside(|| forget(address_of(callee)))?;
    let (near, far) = (near_capture.stop()?, far_capture.stop()?);
    let (from, to) = (address_of(caller), address_of(callee));
    let mut times = delays(&near, from, &far, to);
    let there = times.len();
    times.extend(delays(&far, to, &near, from));
    ensure!(
        there > 0 && times.len() > there,
        "ua{caller} to ua{callee}: media one way only"
    );
    let edge = CATCHMENTS[caller - 1] - 1;
    let sum = |of: fn(&Distances, usize, usize) -> f64| {
        of(distances, caller - 1, edge) + of(distances, callee - 1, edge)
    };
    Ok(Pair {
        caller,
        callee,
        packets: times.len(),
        rtp_ms: percentile(&sorted(times), 50),
        relay_at_edge_ms: sum(|distances, of, edge| distances.edge[of][edge]),
        relay_at_core_ms: sum(|distances, of, _| distances.core[of]),
        direct_ms: distances.direct[caller - 1][callee - 1],
    })
}

/// Takes the callee's bindings away: the next call is for another phone of that name.
fn forget(own: Ipv4Addr) -> Result<()> {
    let socket = UdpSocket::bind((own, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let via = socket.local_addr()?;
    let request = format!(
        "REGISTER sip:example.com SIP/2.0\r\nVia: SIP/2.0/UDP {via};rport;branch=z9hG4bK{via}\r\n\
         Max-Forwards: 70\r\nFrom: <sip:ua2@example.com>;tag=1\r\nTo: <sip:ua2@example.com>\r\n\
         Call-ID: forget-{via}\r\nCSeq: 1 REGISTER\r\nContact: *\r\nExpires: 0\r\n\
         Content-Length: 0\r\n\r\n"
    );
    socket.send_to(request.as_bytes(), (SERVICE, 5060))?;
    let mut answer = [0; 2048];
    let length = socket.recv(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer[..length]);
    ensure!(
        answer.starts_with("SIP/2.0 200 "),
        "not forgotten: {answer}"
    );
    Ok(())
}

/// How long each packet needed that left one phone and reached the other.
fn delays(sender: &[Packet], own: Ipv4Addr, receiver: &[Packet], peer: Ipv4Addr) -> Vec<f64> {
    let rtp = |packet: &Packet| -> Option<(Rtp, u64)> {
        let rtp = packet.udp()?.rtp()?;
        Some((rtp, packet.at))
    };
    let sent = sender.iter().filter(|packet| packet.source == own);
    let sent: HashMap<Rtp, u64> = sent.filter_map(rtp).collect();
    let arrived = receiver.iter().filter(|packet| packet.destination == peer);
    arrived
        .filter_map(rtp)
        .filter_map(|(rtp, at)| Some(at.checked_sub(*sent.get(&rtp)?)? as f64 / 1000.0))
        .collect()
}

fn column(pairs: &[Pair], value: fn(&Pair) -> f64) -> Vec<f64> {
    sorted(pairs.iter().map(value).collect())
}

fn write(pairs: &[Pair], folder: &Path) -> Result<()> {
    let mut table = String::from(
        "| caller, callee | RTP, median, ms | caller's edge | at the core | direct |\n|---|---|---|---|---|\n",
    );
    for pair in pairs {
        writeln!(
            table,
            "| ua{}, ua{} | {:.1} | {:.1} | {:.1} | {:.1} |",
            pair.caller,
            pair.callee,
            pair.rtp_ms,
            pair.relay_at_edge_ms,
            pair.relay_at_core_ms,
            pair.direct_ms
        )?;
    }
    fs::write(folder.join("media.md"), &table)?;
    fs::write(
        folder.join("media.json"),
        serde_json::to_string_pretty(pairs)?,
    )?;
    eprintln!("{table}");
    let series = |name: &str, value: fn(&Pair) -> f64| Series {
        name: name.to_owned(),
        values: column(pairs, value),
    };
    let svg = plot::distribution(
        "Media paths of 30 pairs of access networks",
        "one way, ms",
        &[
            series("direct", |pair| pair.direct_ms),
            series("relay at the caller's edge", |pair| pair.rtp_ms),
            series("relay at the core", |pair| pair.relay_at_core_ms),
        ],
    );
    let file = folder.join("media.svg");
    fs::write(&file, svg).with_context(|| file.display().to_string())
}
