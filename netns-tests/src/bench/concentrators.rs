//! CPU per call of one, two and three concentrators that share the phones out, at the same rate of calls.
//!
//! SIPp calls SIPp over UDP, without media. The callers have [`CALLERS`] addresses, so the ingress spreads them; the
//! callee has one, so its answers come to one concentrator, and those of calls that another one has go over the core
//! link: with n concentrators (n - 1) / n of the calls. What a call costs in all must not grow beyond that one hop,
//! and each concentrator has a share of the calls; so what the busiest one spends on a call of all says up to which
//! rate its worker, one thread, has time left. No peer.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::cluster::rig::{Node, Rig};
use super::load::{self, Phones};
use super::{Conditions, Outcome};
use crate::topology::two_edges::SERVICE;

/// All together, however many concentrators there are.
const RATES: [u32; 2] = [500, 1_500];
const SECONDS: u32 = 8;
const ROUNDS: usize = 2;
/// Addresses that call.
const CALLERS: u8 = 240;
const PHONES: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);

pub(super) fn run(folder: &Path) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    for concentrators in 1..=3 {
        let folder = folder.join(format!("with-{concentrators}"));
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        outcomes.extend(with(concentrators, &folder)?);
    }
    Ok(outcomes)
}

/// A run of calls.
struct Round {
    /// Microseconds of CPU for each call of all, by concentrator.
    us: Vec<f64>,
    /// Calls by concentrator, by the counter of each.
    calls: Vec<u64>,
    handed_over: u64,
    failed: u32,
}

fn with(concentrators: usize, folder: &Path) -> Result<Vec<Outcome>> {
    let rig = Rig::start(concentrators, folder)?;
    let phones = Phones {
        namespace: rig.phones,
        address: PHONES,
    };
    load::register_callee(&phones, SERVICE)?;
    let _callee = load::callee(&phones, SERVICE, folder)?;
    let callers: Vec<Ipv4Addr> = (1..=CALLERS).map(|n| Ipv4Addr::new(10, 1, 0, n)).collect();
    let mut outcomes = Vec::new();
    for rate in RATES {
        let folder = folder.join(rate.to_string());
        let rounds = rounds(&rig.nodes, &phones, &callers, rate, &folder)?;
        outcomes.push(outcome(concentrators, rate, rounds)?);
    }
    Ok(outcomes)
}

fn rounds(
    nodes: &[Node],
    phones: &Phones,
    callers: &[Ipv4Addr],
    rate: u32,
    folder: &Path,
) -> Result<Vec<Round>> {
    let count = rate * SECONDS;
    let mut rounds = Vec::new();
    for number in 0..=ROUNDS {
        let of_nodes = |what: &dyn Fn(&Node) -> Result<u64>| -> Result<Vec<u64>> {
            nodes.iter().map(what).collect()
        };
        let cpu = |node: &Node| -> Result<u64> {
            Ok(u64::try_from(node.program.process.cpu_time()?.as_micros())?)
        };
        let calls = |node: &Node| node.events("call");
        let handed = |node: &Node| {
            node.sample("sipcast_concentrator_core_link_total{event=\"handed_over\"}")
        };
        let before = (of_nodes(&cpu)?, of_nodes(&calls)?, of_nodes(&handed)?);
        let place = folder.join(format!("round-{number}"));
        fs::create_dir_all(&place)?;
        let seen = load::calls_from(phones, SERVICE, (rate, count), callers, &place)?;
        let after = of_nodes(&cpu)?;
        // The pages lag behind a little.
        std::thread::sleep(Duration::from_millis(600));
        let grown = |after: Vec<u64>, before: &[u64]| -> Vec<u64> {
            after.iter().zip(before).map(|(a, b)| a - b).collect()
        };
        let us = grown(after, &before.0);
        let round = Round {
            us: us.iter().map(|us| *us as f64 / f64::from(count)).collect(),
            calls: grown(of_nodes(&calls)?, &before.1),
            handed_over: grown(of_nodes(&handed)?, &before.2).iter().sum(),
            failed: seen.failed(),
        };
        eprintln!(
            "bench concentrators: {}, {rate} calls/s: {:.0?} us a call, calls {:?}, {} messages over the core, {} failed",
            nodes.len(),
            round.us,
            round.calls,
            round.handed_over,
            round.failed
        );
        // The first one warms up.
        if number > 0 {
            rounds.push(round);
        }
    }
    Ok(rounds)
}

fn outcome(concentrators: usize, rate: u32, mut rounds: Vec<Round>) -> Result<Outcome> {
    let sum = |round: &Round| round.us.iter().sum::<f64>();
    rounds.sort_by(|a, b| sum(a).total_cmp(&sum(b)));
    let count = f64::from(rate * SECONDS);
    let failed: u32 = rounds.iter().map(|round| round.failed).sum();
    let sums: Vec<f64> = rounds.iter().map(sum).collect();
    let middle = rounds.get(rounds.len() / 2).context("no round")?;
    let busiest = middle.us.iter().copied().fold(0.0, f64::max);
    let offered = u64::from(rate * SECONDS) * rounds.len() as u64;
    let seconds = Duration::from_secs(u64::from(SECONDS) * rounds.len() as u64);
    let beside = json!({
        "concentrators": concentrators,
        "calls_per_s": rate,
        "us_cpu_by_concentrator": middle.us,
        "calls_by_concentrator": middle.calls,
        "us_cpu_of_busiest": busiest,
        "calls_per_s_that_fill_a_core_of_the_busiest": 1e6 / busiest,
        "messages_over_the_core_per_call": middle.handed_over as f64 / count,
        "us_cpu_per_call_of_each_round": sums,
        "failed_calls": failed,
    });
    Ok(Outcome {
        bench: "concentrators",
        unit: "us_cpu_per_call_of_all",
        ours: sum(middle),
        peer: None,
        peer_name: None,
        ratio: None,
        beside: beside.as_object().cloned().unwrap_or_default(),
        conditions: Conditions::of(offered, offered - u64::from(failed), seconds, 190),
    })
}
