//! What a packet costs an edge: by XDP, on the TUN path, and in the kernel's plain forwarding, which only
//! routes it back over the same link.
//!
//! A generator at r1 sends datagrams of some thousand sources to the service address; what comes back is
//! counted and dropped at r1, at the first place where that can be. CPU is the scheduler's time
//! (nanoseconds) of all that works here: the generator's thread, in which the kernel also does the soft
//! interrupts of what it sends, and the ingress. From that the cost of a run is taken in which edge 1 drops
//! all packets as they come in, which is the generator's own and that of the link.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::time::{ClockId, clock_gettime};
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use super::{Conditions, Outcome};
use crate::raw;
use crate::service::{KEY1, MARK1, Program, ingress_config, start_program};
use crate::topology::two_edges::{EDGE1, SERVICE, TwoEdges};
use crate::{wait, xdp};

/// Octets of the IP packets.
const SIZES: [usize; 4] = [64, 200, 600, 1_400];
const SOURCES: [u32; 2] = [1, 10_000];
const PACKETS: u32 = 10_240;
/// Of all cases, one after the other; medians count.
const ROUNDS: usize = 5;
const RATE: u32 = 40_000;
/// Every veth has a queue of 256 frames.
const BATCH: u32 = 32;
/// The first of the sources.
const FIRST_SOURCE: u32 = 0x6440_0001;

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
    let mut costs = Vec::new();
    for way in [Way::Drops, Way::Routes, Way::Tun, Way::Xdp] {
        eprintln!("bench ingress: edge 1 {way:?}");
        costs.push(measure(way, &folder.join(format!("{way:?}")))?);
    }
    let [drops, routes, tun, fast] = &costs[..] else {
        anyhow::bail!("four ways");
    };
    let mut outcomes = Vec::new();
    for (place, (size, sources)) in cases().enumerate() {
        let net = |cost: &[Cost]| cost[place].ns - drops[place].ns;
        let ours = net(fast);
        for (unit, name, peer) in [
            (
                "ns_cpu_per_packet_xdp_vs_tun",
                "sipcast-ingress, TUN path",
                tun,
            ),
            (
                "ns_cpu_per_packet_xdp_vs_kernel_forwarding",
                "the kernel's forwarding",
                routes,
            ),
        ] {
            let Cost {
                came_back,
                duration,
                ..
            } = fast[place];
            let mut conditions = Conditions::of(PACKETS.into(), came_back, duration, size);
            conditions.more = json!({
                "sources": sources,
                "generator_ns": drops[place].ns,
                "peer_completed": peer[place].came_back,
            });
            outcomes.push(Outcome {
                bench: "ingress",
                unit,
                ours,
                peer: Some(net(peer)),
                peer_name: Some(name),
                ratio: Some(ours / net(peer)),
                conditions,
            });
        }
    }
    Ok(outcomes)
}

fn cases() -> impl Iterator<Item = (usize, u32)> {
    SIZES
        .into_iter()
        .flat_map(|size| SOURCES.map(|sources| (size, sources)))
}

/// All cases, in a network of their own.
fn measure(way: Way, folder: &Path) -> Result<Vec<Cost>> {
    fs::create_dir_all(folder)?;
    let net = TwoEdges::build()?;
    net.r1.nft(
        r#"
table netdev sink {
    chain back {
        type filter hook ingress device "edge" priority 0
        ip protocol gre counter drop
        ip daddr 198.51.100.1 counter drop
    }
}
"#,
    )?;
    let ingress = match way {
        Way::Drops => {
            net.edge1.nft(
                r#"
table netdev sink {
    chain arrive {
        type filter hook ingress device "eth0" priority 0
        ip daddr 198.51.100.1 drop
    }
}
"#,
            )?;
            None
        }
        Way::Routes => {
            net.edge1
                .run(&format!("ip route add {SERVICE}/32 via 10.0.1.1"))?;
            None
        }
        Way::Tun => Some(start(&net, "off", folder)?),
        Way::Xdp => {
            xdp::let_pass(&net.r1, "edge")?;
            Some(start(&net, "native", folder)?)
        }
    };
    let mut rounds = vec![Vec::new(); cases().count()];
    for _ in 0..ROUNDS {
        for ((size, sources), costs) in cases().zip(&mut rounds) {
            costs.push(once(&net, way, ingress.as_ref(), size, sources)?);
        }
    }
    let median = |mut costs: Vec<Cost>| {
        costs.sort_by(|a, b| a.ns.total_cmp(&b.ns));
        costs[ROUNDS / 2]
    };
    Ok(rounds.into_iter().map(median).collect())
}

fn once(
    net: &TwoEdges,
    way: Way,
    ingress: Option<&Program>,
    size: usize,
    sources: u32,
) -> Result<Cost> {
    // For the caches, of the kernel's neighbours too.
    flood(net, size, sources, PACKETS / 10)?;
    let came_back = settled(net)?;
    let before = cpu_ns(ingress)?;
    let (generator, duration) = flood(net, size, sources, PACKETS)?;
    let came_back = settled(net)? - came_back;
    let all = generator + (cpu_ns(ingress)? - before);
    if way != Way::Drops {
        let lost = u64::from(PACKETS).saturating_sub(came_back);
        let packets = u64::from(PACKETS);
        ensure!(lost * 50 < packets, "{way:?} lost {lost} packets");
    }
    Ok(Cost {
        ns: all as f64 / f64::from(PACKETS),
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

/// Sends, and gives the CPU time of the sending thread and how long it took.
fn flood(net: &TwoEdges, size: usize, sources: u32, packets: u32) -> Result<(u64, Duration)> {
    net.r1.inside(|| {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)))?;
        let to = SocketAddr::from((SERVICE, 0)).into();
        let payload = raw::udp(5060, 5060, &vec![b'x'; size - 28]);
        let mut packet = raw::ipv4(Ipv4Addr::UNSPECIFIED, SERVICE, 0, raw::UDP, &payload);
        let start = Instant::now();
        let before = thread_ns()?;
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
        Ok((thread_ns()? - before, start.elapsed()))
    })
}

fn thread_ns() -> Result<u64> {
    let used = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(u64::try_from(Duration::from(used).as_nanos())?)
}

/// CPU time of all threads of a program.
fn cpu_ns(program: Option<&Program>) -> Result<u64> {
    let Some(program) = program else {
        return Ok(0);
    };
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{}/task", program.process.id()))? {
        let statistics = fs::read_to_string(task?.path().join("schedstat"))?;
        let first = statistics.split_whitespace().next();
        sum += first.context("an empty schedstat")?.parse::<u64>()?;
    }
    Ok(sum)
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
