//! What a packet costs an edge: by XDP, on the TUN path, and in the kernel's plain forwarding, which only
//! routes it back over the same link.
//!
//! A generator at r1 sends datagrams of some thousand sources to the service address; what comes back is
//! counted and dropped at r1, at the first place where that can be. CPU is that of the whole machine: all
//! that its CPUs were not idle ([`super::idle_time`]), soft interrupts included, which nobody may be charged
//! for. From a run's CPU is taken what the machine uses with the same programs and no packets, and from that
//! what a run costs, by the same account, in which edge 1 drops all packets as they come in: the generator's
//! own cost and that of the link. So nothing else may run on the machine.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use super::idle_time::IdleTime;
use super::{Conditions, Outcome};
use crate::raw;
use crate::service::{KEY1, MARK1, Program, ingress_config, start_program};
use crate::topology::two_edges::{EDGE1, SERVICE, TwoEdges};
use crate::{wait, xdp};

/// Octets of the IP packets.
const SIZES: [usize; 4] = [64, 200, 600, 1_400];
const SOURCES: [u32; 2] = [1, 10_000];
const PACKETS: u32 = 16_384;
/// How long the machine is looked at without packets, before each run.
const IDLE: Duration = Duration::from_millis(150);
/// Of all ways and cases, one after the other; medians count.
const ROUNDS: usize = 3;
const RATE: u32 = 40_000;
/// Every veth has a queue of 256 frames.
const BATCH: u32 = 32;
/// The first of the sources.
const FIRST_SOURCE: u32 = 0x6440_0001;

/// At r1: counts what comes back, and drops it.
const SINK: &str = r#"
table netdev sink {
    chain back {
        type filter hook ingress device "edge" priority 0
        ip protocol gre counter drop
        ip daddr 198.51.100.1 counter drop
    }
}
"#;
/// At edge 1.
const DROP: &str = r#"
table netdev sink {
    chain arrive {
        type filter hook ingress device "eth0" priority 0
        ip daddr 198.51.100.1 drop
    }
}
"#;

/// What edge 1 does with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Drops,
    Routes,
    Tun,
    Xdp,
}

/// Nanoseconds for each packet that was sent, and how many came back.
#[derive(Debug, Clone, Copy)]
struct Cost {
    ns: f64,
    came_back: u64,
    duration: Duration,
}

pub(super) fn run(folder: &Path) -> Result<Vec<Outcome>> {
    let net = TwoEdges::build()?;
    net.r1.nft(SINK)?;
    let mut rounds = Vec::new();
    for round in 1..=ROUNDS {
        let mut costs = Vec::new();
        for way in [Way::Drops, Way::Routes, Way::Tun, Way::Xdp] {
            eprintln!("bench ingress: round {round} of {ROUNDS}, edge 1 {way:?}");
            costs.push(measure(&net, way, &folder.join(format!("{way:?}{round}")))?);
        }
        rounds.push(costs);
    }
    let mut outcomes = Vec::new();
    for (case, (size, sources)) in cases().enumerate() {
        // What a round has beyond its own run in which all is dropped.
        let of = |way: Way| {
            let costs = rounds.iter();
            median(costs.map(|costs| costs[way as usize][case].ns - costs[0][case].ns))
        };
        let ours = of(Way::Xdp);
        for (unit, name, peer) in [
            (
                "ns_cpu_per_packet_xdp_vs_tun",
                "sipcast-ingress, TUN path",
                of(Way::Tun),
            ),
            (
                "ns_cpu_per_packet_xdp_vs_kernel_forwarding",
                "the kernel's forwarding",
                of(Way::Routes),
            ),
        ] {
            let last = rounds.last().context("no round")?;
            let fast = last[Way::Xdp as usize][case];
            let mut conditions =
                Conditions::of(PACKETS.into(), fast.came_back, fast.duration, size);
            conditions.more = json!({
                "rounds": ROUNDS,
                "sources": sources,
                "generator_ns": median(rounds.iter().map(|costs| costs[0][case].ns)),
            });
            outcomes.push(Outcome {
                bench: "ingress",
                unit,
                ours,
                peer: Some(peer),
                peer_name: Some(name),
                ratio: Some(ours / peer),
                beside: serde_json::Map::new(),
                conditions,
            });
        }
    }
    Ok(outcomes)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn cases() -> impl Iterator<Item = (usize, u32)> {
    SIZES
        .into_iter()
        .flat_map(|size| SOURCES.map(|sources| (size, sources)))
}

/// All cases, once.
fn measure(net: &TwoEdges, way: Way, folder: &Path) -> Result<Vec<Cost>> {
    fs::create_dir_all(folder)?;
    let to_r1 = format!("{SERVICE}/32 via 10.0.1.1");
    let mut ingress = None;
    match way {
        Way::Drops => net.edge1.nft(DROP)?,
        Way::Routes => net.edge1.run(&format!("ip route add {to_r1}")).map(drop)?,
        Way::Tun => ingress = Some(start(net, "off", folder)?),
        Way::Xdp => {
            xdp::let_pass(&net.r1, "edge")?;
            ingress = Some(start(net, "native", folder)?);
        }
    }
    let one = |(size, sources)| once(net, way, size, sources);
    let costs = cases().map(one).collect::<Result<_>>()?;
    if let Some(mut ingress) = ingress {
        ingress.process.stop()?;
    }
    match way {
        Way::Drops => net.edge1.run("nft delete table netdev sink").map(drop)?,
        Way::Routes => net.edge1.run(&format!("ip route del {to_r1}")).map(drop)?,
        Way::Tun => {}
        Way::Xdp => net.r1.run("ip link set dev edge xdp off").map(drop)?,
    }
    Ok(costs)
}

fn once(net: &TwoEdges, way: Way, size: usize, sources: u32) -> Result<Cost> {
    // For the caches, of the kernel's neighbours too.
    flood(net, size, sources, PACKETS / 10)?;
    let came_back = settled(net)?;
    let before = IdleTime::now()?;
    thread::sleep(IDLE);
    let start = IdleTime::now()?;
    let at_rest = start.busy_since(&before) as f64 / start.since(&before) as f64;
    let duration = flood(net, size, sources, PACKETS)?;
    let end = IdleTime::now()?;
    let all = end.busy_since(&start) as f64 - at_rest * end.since(&start) as f64;
    let came_back = settled(net)? - came_back;
    if way != Way::Drops {
        let lost = u64::from(PACKETS).saturating_sub(came_back);
        let packets = u64::from(PACKETS);
        ensure!(lost * 50 < packets, "{way:?} lost {lost} packets");
    }
    Ok(Cost {
        ns: all / f64::from(PACKETS),
        came_back,
        duration,
    })
}

fn start(net: &TwoEdges, mode: &str, folder: &Path) -> Result<Program> {
    let mut config = ingress_config(KEY1, MARK1, EDGE1);
    if xdp::wanted().is_none() && mode != "off" {
        config += &xdp::section(mode);
    }
    let name = "sipcast-ingress";
    let mut ingress = start_program(&net.edge1, "ingress1", name, 9101, &config, folder)?;
    // There is no concentrator, so it is not healthy.
    ingress.wait_until_started(&net.edge1)?;
    Ok(ingress)
}

/// Sends, and says how long it took.
fn flood(net: &TwoEdges, size: usize, sources: u32, packets: u32) -> Result<Duration> {
    net.r1.inside(|| {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)))?;
        let to = SocketAddr::from((SERVICE, 0)).into();
        let payload = raw::udp(5060, 5060, &vec![b'x'; size - 28]);
        let mut packet = raw::ipv4(Ipv4Addr::UNSPECIFIED, SERVICE, 0, raw::UDP, &payload);
        let start = Instant::now();
        for batch in 0..packets / BATCH {
            for number in batch * BATCH..(batch + 1) * BATCH {
                let source = FIRST_SOURCE + number % sources;
                packet[12..16].copy_from_slice(&source.to_be_bytes());
                // The kernel makes the header's checksum.
                socket.send_to(&packet, &to)?;
            }
            let due = start + Duration::from_secs(1) * (batch + 1) * BATCH / RATE;
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        Ok(start.elapsed())
    })
}

/// Packets that have come back so far, when no more come.
fn settled(net: &TwoEdges) -> Result<u64> {
    let mut last = counted(net)?;
    wait::until("the last packets", Duration::from_secs(5), || {
        thread::sleep(Duration::from_millis(20));
        let now = counted(net)?;
        // Probes come all the time.
        let is_quiet = now - last < 10;
        last = now;
        Ok(is_quiet.then_some(now))
    })
}

fn counted(net: &TwoEdges) -> Result<u64> {
    let listing = net.r1.run("nft list table netdev sink")?;
    let words: Vec<&str> = listing.split_whitespace().collect();
    let counts = words.windows(2).filter(|pair| pair[0] == "packets");
    let counts: Vec<u64> = counts.filter_map(|pair| pair[1].parse().ok()).collect();
    ensure!(counts.len() == 2, "no counters in {listing}");
    Ok(counts.iter().sum())
}
