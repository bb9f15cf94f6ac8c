//! CPU per call of one, two and three concentrators that share the phones out: with as many calls for each of them,
//! and with as many in all.
//!
//! SIPp calls SIPp over UDP, without media. The callers have [`CALLERS`] addresses, so the ingress spreads them; the
//! callee has one, so its answers come to one concentrator, and those of calls that another one has go over the core
//! link: with n concentrators (n - 1) / n of the calls. What a call costs in all must not grow beyond that one hop,
//! and each concentrator has a share of the calls; so what the busiest one spends on a call of all says up to which
//! rate its worker, one thread, has time left. No peer.
//!
//! Work comes in batches, and small ones are dearer. So whether a call costs more than that hop is told by the runs with as
//! many calls for each: by the second one a message over the core costs so much, so by the third one a call should cost
//! `us_cpu_per_call_by_the_hop`. As many calls in all show what it costs to spread a load that is small for them.
//!
//! What a concentrator spends without any calls is measured before, for as long, and printed beside. It is no part of
//! what a call costs, but each concentrator more spends it, so figures of all CPU are told with it and without.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::cluster::rig::{Node, Rig};
use super::load::{self, Phones};
use super::{Conditions, Outcome};
use crate::topology::two_edges::SERVICE;

/// Calls a second for each.
const EACH: u32 = 500;
/// Of all together, however many there are.
const ALL: u32 = 1_500;
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
    judge_hop(&mut outcomes);
    Ok(outcomes)
}

/// EACH for each of them, and ALL.
fn rates(concentrators: usize) -> Vec<u32> {
    let mut rates = vec![EACH * concentrators as u32, ALL];
    rates.dedup();
    rates
}

/// Beside the figure with most concentrators: what it would be if more of them cost nothing but the hop.
fn judge_hop(outcomes: &mut [Outcome]) {
    let number = |outcome: &Outcome, name: &str| outcome.beside.get(name).and_then(Value::as_f64);
    let of_each = |concentrators: f64| {
        let found = outcomes.iter().find(|outcome| {
            number(outcome, "concentrators") == Some(concentrators)
                && number(outcome, "calls_per_s") == Some(concentrators * f64::from(EACH))
        });
        let messages = number(found?, "messages_over_the_core_per_call")?;
        Some((found?.ours, messages))
    };
    let (Some((one, _)), Some((two, messages)), Some((three, more))) =
        (of_each(1.0), of_each(2.0), of_each(3.0))
    else {
        return;
    };
    let a_message = (two - one) / messages;
    let by_the_hop = one + a_message * more;
    eprintln!(
        "bench concentrators: {EACH} calls/s for each: {one:.0}, {two:.0}, {three:.0} us a call; a message over the core is \
         {a_message:.1}, so three would have {by_the_hop:.0}"
    );
    if let Some(last) = outcomes.last_mut() {
        let more = json!({ "us_cpu_per_message_over_the_core": a_message, "us_cpu_per_call_by_the_hop": by_the_hop });
        last.beside
            .extend(more.as_object().cloned().unwrap_or_default());
    }
}

/// A run of calls.
struct Round {
    /// Microseconds of CPU for each call of all, by concentrator.
    us: Vec<f64>,
    /// The same less what they spend without calls in that time.
    us_of_calls: Vec<f64>,
    /// How often the threads of each have waited for something, for each call of all.
    waits: Vec<f64>,
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
    let idle = idle(&rig.nodes)?;
    eprintln!("bench concentrators: {concentrators}, no calls: {idle:.0?} us of CPU a second");
    let mut outcomes = Vec::new();
    for rate in rates(concentrators) {
        let folder = folder.join(rate.to_string());
        let rounds = rounds(&rig.nodes, &phones, &callers, (rate, &idle), &folder)?;
        outcomes.push(outcome(concentrators, rate, &idle, rounds)?);
    }
    Ok(outcomes)
}

/// Microseconds of CPU that each concentrator spends in a second without calls.
fn idle(nodes: &[Node]) -> Result<Vec<f64>> {
    let before = of_nodes(nodes, &cpu)?;
    let since = Instant::now();
    std::thread::sleep(Duration::from_secs(u64::from(SECONDS)));
    let seconds = since.elapsed().as_secs_f64();
    let spent = grown(of_nodes(nodes, &cpu)?, &before);
    Ok(spent.iter().map(|us| *us as f64 / seconds).collect())
}

fn of_nodes(nodes: &[Node], what: &dyn Fn(&Node) -> Result<u64>) -> Result<Vec<u64>> {
    nodes.iter().map(what).collect()
}

fn grown(after: Vec<u64>, before: &[u64]) -> Vec<u64> {
    let pairs = after.iter().zip(before);
    pairs.map(|(after, before)| after - before).collect()
}

fn cpu(node: &Node) -> Result<u64> {
    let spent = node.program.process.exact_cpu_time()?;
    Ok(u64::try_from(spent.as_micros())?)
}

fn rounds(
    nodes: &[Node],
    phones: &Phones,
    callers: &[Ipv4Addr],
    (rate, idle): (u32, &[f64]),
    folder: &Path,
) -> Result<Vec<Round>> {
    let count = rate * SECONDS;
    let mut rounds = Vec::new();
    for number in 0..=ROUNDS {
        let of_nodes = |what: &dyn Fn(&Node) -> Result<u64>| of_nodes(nodes, what);
        let waits = |node: &Node| node.program.process.times_waited();
        let calls = |node: &Node| node.events("call");
        let handed = |node: &Node| {
            node.sample("sipcast_concentrator_core_link_total{event=\"handed_over\"}")
        };
        let before = (of_nodes(&calls)?, of_nodes(&handed)?, of_nodes(&waits)?);
        let (spent, since) = (of_nodes(&cpu)?, Instant::now());
        let place = folder.join(format!("round-{number}"));
        fs::create_dir_all(&place)?;
        let seen = load::calls_from(phones, SERVICE, (rate, count), callers, &place)?;
        let (after, seconds) = (of_nodes(&cpu)?, since.elapsed().as_secs_f64());
        let waits = grown(of_nodes(&waits)?, &before.2);
        // The pages lag behind a little.
        std::thread::sleep(Duration::from_millis(600));
        let us = grown(after, &spent);
        let a_call = |of_all: f64| of_all / f64::from(count);
        let of_calls = us.iter().zip(idle);
        let round = Round {
            us: us.iter().map(|us| a_call(*us as f64)).collect(),
            us_of_calls: of_calls
                .map(|(us, idle)| a_call(*us as f64 - idle * seconds))
                .collect(),
            waits: waits.iter().map(|waits| a_call(*waits as f64)).collect(),
            calls: grown(of_nodes(&calls)?, &before.0),
            handed_over: grown(of_nodes(&handed)?, &before.1).iter().sum(),
            failed: seen.failed(),
        };
        eprintln!(
            "bench concentrators: {}, {rate} calls/s: {:.0?} us a call, {:.0?} less what is spent without, {:.1?} waits \
             a call, calls {:?}, {} messages over the core, {} failed",
            nodes.len(),
            round.us,
            round.us_of_calls,
            round.waits,
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

fn outcome(
    concentrators: usize,
    rate: u32,
    idle: &[f64],
    mut rounds: Vec<Round>,
) -> Result<Outcome> {
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
        "us_cpu_a_second_without_calls": idle,
        "us_cpu_per_call_less_that": middle.us_of_calls.iter().sum::<f64>(),
        "waits_per_call": middle.waits.iter().sum::<f64>(),
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
