//! What a packet costs an edge: by XDP, on the TUN path, and in the kernel's plain forwarding, which only
//! routes it back over the same link.
//!
//! A generator at r1 sends datagrams of some thousand sources to the service address; what comes back is
//! counted and dropped at r1, at the first place where that can be. Frames come as from a network card's driver
//! ([`super::driver`]): in pages and in batches. In a second series (`ingress/socket`) they come from a raw socket ([`socket`]), and
//! veth copies each into a page wherever XDP is to have it, which no card does.
//!
//! CPU is that of the whole machine: all that its CPUs were not idle ([`super::idle_time`]), soft interrupts
//! included, which nobody may be charged for. From a run's CPU is taken what the machine uses with the same
//! programs and no packets, and from that what a run costs, by the same account, in which edge 1 drops all
//! packets as they come in: the generator's own cost and that of the link. There sipcast-ingress runs too where it does in
//! the other run: what it does without packets costs more on a machine that sleeps. The figures with generator and link left
//! in are bounds from above, and are reported beside.
//!
//! So nothing else may run on the machine: where it is busy without packets the bench ends.

mod flood;
mod program;
mod socket;

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::driver::Attached;
use super::idle_time::{IdleTime, at_rest};
use super::{Conditions, Outcome};
use crate::service::{KEY1, MARK1, Program, ingress_config, start_program};
use crate::topology::two_edges::{EDGE1, SERVICE, TwoEdges};
use crate::{wait, xdp};

/// Octets of the IP packets.
const SIZES: [usize; 4] = [64, 200, 600, 1_400];
const SOURCES: [u32; 2] = [1, 10_000];
const PACKETS: u32 = 65_536;
/// How long the machine is looked at without packets, before each run.
const LOOK: Duration = Duration::from_millis(300);
/// Of all ways and cases, one after the other; medians count.
const ROUNDS: usize = 3;
const RATE: u32 = 80_000;
/// The first of the sources.
const FIRST_SOURCE: u32 = 0x6440_0001;

/// Where frames come from and where they end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wire {
    Driver,
    Socket,
}

/// What edge 1 does with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Drops,
    Routes,
    /// Drops, with sipcast-ingress running.
    DropsBeside,
    Tun,
    Xdp,
}

impl Way {
    const ALL: [Self; 5] = [
        Self::Drops,
        Self::Routes,
        Self::DropsBeside,
        Self::Tun,
        Self::Xdp,
    ];

    const fn is_drop(self) -> bool {
        matches!(self, Self::Drops | Self::DropsBeside)
    }

    /// What it is held against.
    const fn baseline(self) -> Self {
        match self {
            Self::Drops | Self::Routes => Self::Drops,
            Self::DropsBeside | Self::Tun | Self::Xdp => Self::DropsBeside,
        }
    }
}

/// Nanoseconds for each packet that was sent, and how many came back.
#[derive(Debug, Clone, Copy)]
struct Cost {
    ns: f64,
    came_back: u64,
    duration: Duration,
    /// By XDP: how long the program itself ran for each.
    program_ns: Option<f64>,
}

/// Frames as from a driver.
pub(super) fn run(folder: &Path) -> Result<Vec<Outcome>> {
    run_on(Wire::Driver, "ingress", folder)
}

/// Frames from a socket.
pub(super) fn run_socket(folder: &Path) -> Result<Vec<Outcome>> {
    run_on(Wire::Socket, "ingress/socket", folder)
}

fn run_on(wire: Wire, bench: &'static str, folder: &Path) -> Result<Vec<Outcome>> {
    at_rest(LOOK).context("before anything was started")?;
    let net = TwoEdges::build()?;
    let mut rounds = Vec::new();
    for round in 1..=ROUNDS {
        let mut costs = Vec::new();
        for way in Way::ALL {
            eprintln!("bench {bench}: round {round} of {ROUNDS}, edge 1 {way:?}");
            costs.push(measure(
                &net,
                wire,
                way,
                &folder.join(format!("{way:?}{round}")),
            )?);
        }
        rounds.push(costs);
    }
    let mut outcomes = Vec::new();
    for (case, (size, sources)) in cases().enumerate() {
        // What a round has beyond its own run in which all is dropped.
        let of = |way: Way| {
            let costs = rounds.iter();
            median(costs.map(|costs| {
                costs[way as usize][case].ns - costs[way.baseline() as usize][case].ns
            }))
        };
        let ours = of(Way::Xdp);
        // Without anything taken off but what the machine does at rest.
        let whole = |way: Way| median(rounds.iter().map(|costs| costs[way as usize][case].ns));
        let bound = whole(Way::Xdp);
        eprintln!(
            "bench {bench}: {size} octets, {sources} sources: XDP {ours:.0} ns, TUN path {:.0}, kernel {:.0}; with generator \
             and link {bound:.0}, {:.0}, {:.0}; these alone {:.0} beside sipcast-ingress, {:.0} without",
            of(Way::Tun),
            of(Way::Routes),
            whole(Way::Tun),
            whole(Way::Routes),
            whole(Way::DropsBeside),
            whole(Way::Drops),
        );
        for (unit, name, way) in [
            (
                "ns_cpu_per_packet_xdp_vs_tun",
                "sipcast-ingress, TUN path",
                Way::Tun,
            ),
            (
                "ns_cpu_per_packet_xdp_vs_kernel_forwarding",
                "the kernel's forwarding",
                Way::Routes,
            ),
        ] {
            let peer = of(way);
            let last = rounds.last().context("no round")?;
            let fast = last[Way::Xdp as usize][case];
            let mut conditions =
                Conditions::of(PACKETS.into(), fast.came_back, fast.duration, size);
            conditions.more = json!({
                "rounds": ROUNDS,
                "sources": sources,
                "generator_ns": whole(Way::DropsBeside),
                "with_generator": { "ours": bound, "peer": whole(way), "ratio": bound / whole(way) },
                "program_ns": fast.program_ns,
            });
            outcomes.push(Outcome {
                bench,
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
fn measure(net: &TwoEdges, wire: Wire, way: Way, folder: &Path) -> Result<Vec<Cost>> {
    fs::create_dir_all(folder)?;
    let to_r1 = format!("{SERVICE}/32 via 10.0.1.1");
    let (mut ingress, mut dropping) = (None, None);
    // Before the program of the ingress, without which it would not send anything.
    let ends = Ends::new(net, wire, way)?;
    match (way, wire) {
        (Way::Drops | Way::DropsBeside, Wire::Driver) => {
            dropping = Some(Attached::new("drop", &net.edge1, "eth0", SERVICE)?);
        }
        (Way::Drops | Way::DropsBeside, Wire::Socket) => socket::drop_at_edge(net)?,
        (Way::Routes, _) => net.edge1.run(&format!("ip route add {to_r1}")).map(drop)?,
        (Way::Tun, _) => ingress = Some(start(net, "off", folder)?),
        (Way::Xdp, _) => ingress = Some(start(net, "native", folder)?),
    }
    if way == Way::DropsBeside {
        ingress = Some(start(net, "off", folder)?);
    }
    let one = |(size, sources)| once(net, &ends, size, sources);
    let costs = cases().map(one).collect::<Result<_>>()?;
    if let Some(mut ingress) = ingress {
        ingress.process.stop()?;
    }
    if dropping.is_none() && way.is_drop() {
        socket::drop_no_more_at_edge(net)?;
    }
    if way == Way::Routes {
        net.edge1.run(&format!("ip route del {to_r1}"))?;
    }
    ends.take_away()?;
    Ok(costs)
}

/// Both ends of the wire, for one way.
struct Ends<'a> {
    net: &'a TwoEdges,
    wire: Wire,
    way: Way,
    /// What counts at r1; skbs are counted by nftables.
    sink: Option<Attached>,
}

impl<'a> Ends<'a> {
    fn new(net: &'a TwoEdges, wire: Wire, way: Way) -> Result<Self> {
        let mut sink = None;
        match (wire, way) {
            (Wire::Driver, Way::Xdp) => {
                sink = Some(Attached::new("sink", &net.r1, "edge", SERVICE)?);
            }
            (Wire::Driver, Way::Routes | Way::Tun) => {
                // Without a program, this is what makes the end take frames in pages.
                net.edge1.run("ethtool -K eth0 gro on")?;
            }
            (Wire::Socket, Way::Xdp) => xdp::let_pass(&net.r1, "edge")?,
            (_, Way::Drops | Way::DropsBeside) | (Wire::Socket, Way::Routes | Way::Tun) => {}
        }
        if sink.is_none() {
            socket::count_at_r1(net)?;
        }
        Ok(Self {
            net,
            wire,
            way,
            sink,
        })
    }

    fn counted(&self) -> Result<u64> {
        match &self.sink {
            Some(sink) => sink.taken(),
            None => socket::counted(self.net),
        }
    }

    /// Packets that have come back so far, when no more come.
    fn settled(&self) -> Result<u64> {
        let mut last = self.counted()?;
        wait::until("the last packets", Duration::from_secs(5), || {
            thread::sleep(Duration::from_millis(20));
            let now = self.counted()?;
            // Probes come all the time.
            let is_quiet = now - last < 10;
            last = now;
            Ok(is_quiet.then_some(now))
        })
    }

    fn take_away(self) -> Result<()> {
        match (self.wire, self.way) {
            (Wire::Driver, Way::Routes | Way::Tun) => {
                self.net.edge1.run("ethtool -K eth0 gro off")?;
            }
            (Wire::Socket, Way::Xdp) => {
                self.net.r1.run("ip link set dev edge xdp off")?;
            }
            (_, Way::Drops | Way::DropsBeside) | (Wire::Driver, Way::Xdp) | (Wire::Socket, _) => {}
        }
        if self.sink.is_none() {
            socket::count_no_more_at_r1(self.net)?;
        }
        Ok(())
    }
}

fn once(net: &TwoEdges, ends: &Ends<'_>, size: usize, sources: u32) -> Result<Cost> {
    let mut generator = match ends.wire {
        Wire::Driver => Some(flood::generator(net, size, sources)?),
        Wire::Socket => None,
    };
    let mut flood = |packets| match &mut generator {
        Some(generator) => generator.send(packets),
        None => socket::flood(net, size, sources, packets),
    };
    // For the caches, of the kernel's neighbours too.
    flood(PACKETS / 16)?;
    let came_back = ends.settled()?;
    let (at_rest, start) = at_rest(LOOK)?;
    let duration = flood(PACKETS)?;
    let end = IdleTime::now()?;
    let all = end.busy_since(&start) as f64 - at_rest * end.since(&start) as f64;
    let came_back = ends.settled()? - came_back;
    let way = ends.way;
    if !way.is_drop() {
        let lost = u64::from(PACKETS).saturating_sub(came_back);
        let packets = u64::from(PACKETS);
        ensure!(lost * 50 < packets, "{way:?} lost {lost} packets");
    }
    let mut program_ns = None;
    if way == Way::Xdp {
        let more = || flood(PACKETS / 16).map(drop);
        program_ns = Some(program::time_of(&net.edge1, "eth0", more)?);
    }
    if let Some(generator) = generator {
        generator.end()?;
    }
    Ok(Cost {
        ns: all / f64::from(PACKETS),
        came_back,
        duration,
        program_ns,
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
