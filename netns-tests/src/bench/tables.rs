//! What papers on SIP clusters tabulate, measured here: processing time per INVITE at 50 to 200 calls a second,
//! call set-up time, the time of choosing and forwarding a request at the edge, take-over time, and availability by
//! number of nodes. Failed calls at 100 to 400 calls a second are those of `bench failover`.
//!
//! Times are between the kernel's time stamps of captures, all of one machine: an INVITE is processed from its
//! arrival in the tunnel at the concentrator to its departure towards the callee; a call is set up from the caller's
//! INVITE to its 200; the edge has a request from its arrival to its departure in the tunnel. No wire has a delay.
//! Availability is computed: one node is away for as long as it takes to start again after a crash, two and more
//! only until the edge has noticed, and each fails once in [`MTBF_H`] hours on average.

use std::collections::HashMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::cluster::rig::Rig;
use super::load::{self, CALLER_PORT, Phones};
use super::{Conditions, Outcome};
use crate::capture::Capture;
use crate::frame::Packet;
use crate::topology::two_edges::SERVICE;
use crate::wait;

const RATES: [u32; 4] = [50, 100, 150, 200];
const SECONDS: u32 = 10;
const PHONES: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
/// Take-overs and starts that are measured; the median counts.
const ROUNDS: usize = 5;
/// Mean time between two failures of one node: an assumption, no measurement.
const MTBF_H: f64 = 1_000.0;
const PATIENCE: Duration = Duration::from_secs(30);
/// Until a capture has written what it has seen.
const CAPTURE_LAG: Duration = Duration::from_secs(2);

pub(super) fn run(folder: &Path) -> Result<Vec<Outcome>> {
    if folder.join("work").exists() {
        fs::remove_dir_all(folder.join("work"))?;
    }
    let place = |name: &str| -> Result<_> {
        let place = folder.join("work").join(name);
        fs::create_dir_all(&place)?;
        Ok(place.canonicalize()?)
    };
    let mut outcomes = times(&place("times")?)?;
    let restart_s = restart(&place("restart")?)?;
    let take_over_s = take_over(&place("take-over")?)?;
    outcomes.push(availability(restart_s, take_over_s));
    Ok(outcomes)
}

/// When what was seen at one place, in microseconds.
type Seen = HashMap<String, u64>;

/// The first time that each request of `method`, or answer of that status, was there.
fn first_seen(packets: &[Packet], beginning: &str, of: impl Fn(&Packet) -> bool) -> Seen {
    let mut seen = Seen::new();
    for packet in packets {
        let inner = packet.gre().map(|(_, inner)| inner);
        if !of(packet) {
            continue;
        }
        let segment = inner.as_ref().unwrap_or(packet).udp();
        let Some(segment) = segment else { continue };
        let line = segment.sip_start_line().unwrap_or_default();
        let cseq = segment.sip_header("CSeq").unwrap_or_default();
        if line.starts_with(beginning)
            && cseq.ends_with(" INVITE")
            && let Some(id) = segment.sip_header("Call-ID")
        {
            seen.entry(id).or_insert(packet.at);
        }
    }
    seen
}

/// From the first to the second, of what was seen at both, sorted.
fn between_ms(first: &Seen, second: &Seen) -> Vec<f64> {
    let both = first.iter().filter_map(|(id, at)| {
        let later = second.get(id)?;
        Some((*later as f64 - *at as f64) / 1e3)
    });
    let mut times: Vec<f64> = both.collect();
    times.sort_by(f64::total_cmp);
    times
}

fn percentiles(times: &[f64]) -> Value {
    let at = |percent: usize| {
        let last = times.len().saturating_sub(1);
        times.get((times.len() * percent / 100).min(last)).copied()
    };
    json!({ "count": times.len(), "p50": at(50), "p99": at(99), "max": at(100) })
}

fn times(folder: &Path) -> Result<Vec<Outcome>> {
    let rig = Rig::start(1, folder)?;
    let phones = Phones {
        namespace: rig.phones,
        address: PHONES,
    };
    load::register_callee(&phones, SERVICE)?;
    let _callee = load::callee(&phones, SERVICE, folder)?;
    let mut outcomes = Vec::new();
    for rate in RATES {
        let place = folder.join(rate.to_string());
        let capture = |name: &str, namespace, device| -> Result<Capture> {
            let place = place.join(name);
            fs::create_dir_all(&place)?;
            Capture::start(namespace, device, &place)
        };
        let node = capture("node", &rig.nodes[0].namespace, "eth0")?;
        let access = capture("access", &rig.edge, "access")?;
        let up = capture("up", &rig.edge, "up")?;
        let to = capture("to", &phones.namespace, "edge")?;
        let from = capture("from", &phones.namespace, "direct")?;
        let calls = load::calls(&phones, SERVICE, rate, rate * SECONDS, &place)?;
        thread::sleep(CAPTURE_LAG);
        let node = node.stop()?;
        let is_tunnelled = |packet: &Packet| packet.gre().is_some();
        let is_bare = |packet: &Packet| packet.gre().is_none();
        let arrived = first_seen(&node, "INVITE ", is_tunnelled);
        let left = first_seen(&node, "INVITE ", is_bare);
        let processing = between_ms(&arrived, &left);
        let at_edge = between_ms(
            &first_seen(&access.stop()?, "INVITE ", is_bare),
            &first_seen(&up.stop()?, "INVITE ", is_tunnelled),
        );
        let to_caller = |packet: &Packet| {
            let port = packet.udp().map(|segment| segment.destination.port());
            port == Some(CALLER_PORT)
        };
        let set_up = between_ms(
            &first_seen(&to.stop()?, "INVITE ", is_bare),
            &first_seen(&from.stop()?, "SIP/2.0 200 ", to_caller),
        );
        ensure!(
            [&processing, &at_edge, &set_up]
                .iter()
                .all(|times| times.len() * 100 >= (rate * SECONDS) as usize * 98),
            "captures of {} calls are not whole: {}, {}, {}",
            rate * SECONDS,
            processing.len(),
            at_edge.len(),
            set_up.len()
        );
        let p50 = processing.get(processing.len() / 2).copied();
        let beside = json!({
            "table": "times",
            "calls_per_s": rate,
            "processing_ms": percentiles(&processing),
            "choice_and_forwarding_ms": percentiles(&at_edge),
            "set_up_ms": percentiles(&set_up),
            "failed_calls": calls.failed(),
        });
        eprintln!("bench tables: {beside}");
        let count = u64::from(rate * SECONDS);
        outcomes.push(outcome(
            "ms_per_invite",
            p50.unwrap_or(f64::NAN),
            count,
            beside,
        ));
    }
    Ok(outcomes)
}

fn median(mut figures: Vec<f64>) -> Result<f64> {
    figures.sort_by(f64::total_cmp);
    let middle = figures.get(figures.len() / 2).copied();
    middle.context("nothing was measured")
}

/// The only concentrator is killed and started at once: until the edge sends to it again.
fn restart(folder: &Path) -> Result<f64> {
    let mut rig = Rig::start(1, folder)?;
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        rig.nodes[0].crash_and_start(true)?;
        // It may not even have been noticed.
        let node = &mut rig.nodes[0];
        wait::until("it to serve", PATIENCE, || {
            node.program.process.check_alive()?;
            Ok(node.program.is_healthy(&node.namespace).ok())
        })?;
        rig.wait_for_shares(1)?;
        times.push(start.elapsed().as_secs_f64());
        rig.nodes[0].wait_until_whole(0, PATIENCE)?;
    }
    eprintln!("bench tables: started again after {times:.3?} s");
    median(times)
}

/// One of two is killed: until the edge sends everything to the other.
fn take_over(folder: &Path) -> Result<f64> {
    let mut rig = Rig::start(2, folder)?;
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        rig.nodes[1].program.process.kill()?;
        rig.wait_for_shares(1)?;
        times.push(start.elapsed().as_secs_f64());
        rig.nodes[1].start_again()?;
        rig.wait_for_shares(2)?;
        rig.nodes[1].wait_until_whole(1, PATIENCE)?;
    }
    eprintln!("bench tables: taken over after {times:.3?} s");
    median(times)
}

/// Of one node: what it is away for. Of more: a failure of any is noticed by its share of the phones until the edge
/// has moved them, and by all while all are away at once.
fn availability(restart_s: f64, take_over_s: f64) -> Outcome {
    let mtbf_s = MTBF_H * 3600.0;
    let of = |nodes: i32| {
        let all_away = (restart_s / mtbf_s).powi(nodes);
        let moving = if nodes > 1 { take_over_s / mtbf_s } else { 0.0 };
        1.0 - all_away - moving
    };
    let by_nodes: Vec<f64> = (1..=3).map(of).collect();
    let beside = json!({
        "table": "availability",
        "restart_s": restart_s,
        "take_over_s": take_over_s,
        "assumed_mtbf_h": MTBF_H,
        "by_nodes": by_nodes,
    });
    eprintln!("bench tables: {beside}");
    outcome("s_until_taken_over", take_over_s, ROUNDS as u64, beside)
}

fn outcome(unit: &'static str, ours: f64, count: u64, beside: Value) -> Outcome {
    let seconds = Duration::from_secs(u64::from(SECONDS));
    Outcome {
        bench: "tables",
        unit,
        ours,
        peer: None,
        peer_name: None,
        ratio: None,
        beside: beside.as_object().cloned().unwrap_or_default(),
        conditions: Conditions::of(count, count, seconds, 190),
    }
}
