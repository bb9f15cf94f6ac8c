//! 1,000,000 registrations that three concentrators share over three NATS servers: what a binding costs each of
//! them, how long a concentrator that joins needs until it has all, and what a refresh costs everybody.
//!
//! The records of the bucket are made by the registrar of this program and published by the lab, since a million
//! REGISTERs would take longer; refreshes are real ones, through ingress, tunnel and concentrator. While a node
//! joins, 50 new phones a second register at the others, whose longest wait shows whether anything holds them up.
//! Everything shares the machine's cores, so CPU says more than time. No peer.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{Conditions, Outcome};
use crate::nats::Usage;
use crate::registrations::{Registered, records, register};
use crate::wait;

mod phones;
pub(super) mod rig;

use phones::{Answers, Load, registers};
use rig::{Node, Rig};

const BINDINGS: u32 = 1_000_000;
const NODES: usize = 3;
const STREAM: &str = "KV_sipcast";
const PATIENCE: Duration = Duration::from_secs(300);
/// Of the bindings of the fill.
const EXPIRES_S: u32 = 7200;
/// Refreshes a second that are tried, for so long each.
const RATES: [u32; 4] = [2_000, 5_000, 10_000, 20_000];
const SECONDS: u32 = 8;
/// New phones a second that register while something else happens.
const WATCHERS_PER_S: u32 = 50;

pub(super) fn run(folder: &Path) -> Result<Vec<Outcome>> {
    let mut bench = Bench::start(folder)?;
    let mut outcomes = vec![bench.fill()?];
    outcomes.push(bench.join(false)?);
    outcomes.push(bench.join(true)?);
    outcomes.extend(bench.refresh_all()?);
    Ok(outcomes)
}

/// The fill, and then refreshes only.
pub(super) fn run_refresh(folder: &Path) -> Result<Vec<Outcome>> {
    let mut bench = Bench::start(folder)?;
    let mut outcomes = vec![bench.fill()?];
    outcomes.extend(bench.refresh_all()?);
    Ok(outcomes)
}

/// Half of them are over for so long that nothing need be known of them.
pub(super) fn run_stale(folder: &Path) -> Result<Vec<Outcome>> {
    Ok(vec![Bench::start(folder)?.stale()?])
}

struct Bench {
    rig: Rig,
    /// The first phone that has never registered.
    next_phone: u32,
    started: Instant,
}

/// What everything has used.
#[derive(Debug, Clone)]
struct Used {
    nodes: Vec<Usage>,
    nats: Vec<Usage>,
    leader: Option<usize>,
    ingress: Duration,
}

impl Used {
    /// Microseconds of CPU since then for each of so many: the nodes in order, the leader of the stream, one
    /// other NATS server, the ingress, all together.
    fn each(&self, before: &Self, count: f64) -> Value {
        let us = |later: Duration, earlier: Duration| {
            later.saturating_sub(earlier).as_secs_f64() * 1e6 / count
        };
        let all = |later: &[Usage], earlier: &[Usage]| -> Vec<f64> {
            let pairs = later.iter().zip(earlier);
            pairs
                .map(|(later, earlier)| us(later.cpu, earlier.cpu))
                .collect()
        };
        let nodes = all(&self.nodes, &before.nodes);
        let nats = all(&self.nats, &before.nats);
        let leader = self.leader.and_then(|leader| nats.get(leader).copied());
        let others = nats.iter().enumerate();
        let others: Vec<f64> = others
            .filter(|(number, _)| Some(*number) != self.leader)
            .map(|(_, us)| *us)
            .collect();
        let ingress = us(self.ingress, before.ingress);
        let sum = nodes.iter().chain(&nats).sum::<f64>() + ingress;
        json!({
            "concentrators": nodes, "nats_leader": leader, "nats_others": others,
            "ingress": ingress, "sum": sum,
        })
    }
}

impl Bench {
    fn start(folder: &Path) -> Result<Self> {
        let folder = folder.join("work");
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        std::fs::create_dir_all(&folder)?;
        Ok(Self {
            rig: Rig::start(NODES, &folder)?,
            next_phone: BINDINGS,
            started: Instant::now(),
        })
    }

    fn used(&self) -> Result<Used> {
        let (leader, nats) = self.rig.nats.usage(&self.rig.core, STREAM)?;
        let of = |node: &Node| {
            Ok(Usage {
                cpu: node.program.process.cpu_time()?,
                resident_bytes: node.program.process.resident_bytes()?,
            })
        };
        Ok(Used {
            nodes: self.rig.nodes.iter().map(of).collect::<Result<_>>()?,
            nats,
            leader,
            ingress: self.rig.ingress.process.cpu_time()?,
        })
    }

    /// Waits until a node has so many bindings.
    fn wait_for_bindings(&self, node: usize, count: u64) -> Result<()> {
        let mut last = 0;
        let node = &self.rig.nodes[node];
        wait::until("all bindings", PATIENCE, || {
            last = node.level("bindings")?;
            Ok((last >= count).then_some(()))
        })
        .with_context(|| format!("{last} of {count}"))
    }

    fn fill(&mut self) -> Result<Outcome> {
        eprintln!("bench cluster: {BINDINGS} records into the bucket");
        let before = self.used()?;
        let start = Instant::now();
        let when = Registered {
            ago: Duration::ZERO,
            expires_s: EXPIRES_S,
        };
        let all = records(0..BINDINGS, when);
        let published = self.rig.nats.publish(&self.rig.core, all)?;
        let took = start.elapsed();
        for node in 0..NODES {
            self.wait_for_bindings(node, BINDINGS.into())?;
        }
        let everywhere = start.elapsed();
        self.settle()?;
        let after = self.used()?;
        let each = |later: &[Usage], earlier: &[Usage]| -> Vec<f64> {
            let pairs = later.iter().zip(earlier);
            let grown = pairs.map(|(l, e)| l.resident_bytes.saturating_sub(e.resident_bytes));
            grown
                .map(|bytes| bytes as f64 / f64::from(BINDINGS))
                .collect()
        };
        let nodes = each(&after.nodes, &before.nodes);
        let file = std::fs::metadata(self.rig.nodes[0].location())?.len();
        let beside = json!({
            "part": "fill",
            "bytes_per_binding": nodes,
            "nats_bytes_per_binding": each(&after.nats, &before.nats),
            "nats_leader": after.leader,
            "published_s": took.as_secs_f64(),
            "at_all_nodes_s": everywhere.as_secs_f64(),
            "file_bytes": file,
            "us_cpu_per_record": after.each(&before, f64::from(BINDINGS)),
        });
        let ours = nodes.iter().copied().fold(0.0, f64::max);
        eprintln!("  {beside}");
        Ok(outcome(
            "bytes_per_binding",
            ours,
            published as u64,
            took,
            beside,
        ))
    }

    /// Waits until nothing is written into files or compared any more.
    fn settle(&self) -> Result<Duration> {
        let start = Instant::now();
        for node in &self.rig.nodes {
            let mut last = Value::Null;
            wait::until("the files to be whole", PATIENCE, || {
                last = node.program.status(&node.namespace)?;
                let quiet = last["location"]["rewriting"] == false
                    && last["location"]["waiting"] == 0
                    && last["cluster"]["comparing"] == false;
                Ok(quiet.then_some(()))
            })
            .with_context(|| format!("{} {}", last["location"], last["cluster"]))?;
        }
        Ok(start.elapsed())
    }

    /// The last node is killed and starts, with its file or without; new phones register meanwhile.
    fn join(&mut self, with_file: bool) -> Result<Outcome> {
        let what = if with_file {
            "its own file"
        } else {
            "an empty disk"
        };
        eprintln!("bench cluster: a node joins with {what}");
        let last = NODES - 1;
        self.rig.nodes[last].crash_and_start(with_file)?;
        self.rig.wait_for_shares(last)?;
        let before = self.used()?;
        let start = Instant::now();
        let first = self.next_phone;
        let (answers, healthy) = {
            let rig = &self.rig;
            let node = &rig.nodes[last];
            let mut healthy = None;
            let load = Load {
                first,
                cseq: 1,
                expires_s: EXPIRES_S,
                per_s: WATCHERS_PER_S,
            };
            let answers = registers(&rig.phones, load, |_| {
                if healthy.is_none() && node.program.is_healthy(&node.namespace).is_ok() {
                    healthy = Some(start.elapsed());
                }
                // And for a while after it serves.
                let over = healthy.map_or(PATIENCE, |at| at + Duration::from_secs(3));
                start.elapsed() < over
            })?;
            (answers, healthy)
        };
        let healthy = healthy.context("it never was healthy")?;
        self.next_phone += u32::try_from(answers.sent)?;
        let bindings = self.rig.nodes[last].level("bindings")?;
        ensure!(
            bindings >= u64::from(BINDINGS),
            "it serves with {bindings} of {BINDINGS} bindings"
        );
        let node = &mut self.rig.nodes[last];
        node.wait_until_whole(last, PATIENCE)?;
        let log = node.program.process.log();
        self.rig.wait_for_shares(NODES)?;
        let file_after = self.settle()?;
        let after = self.used()?;
        let beside = json!({
            "part": if with_file { "join-with-file" } else { "join-empty" },
            "healthy_after_s": healthy.as_secs_f64(),
            "file_whole_after_s": (healthy + file_after).as_secs_f64(),
            "restored_ms": number_in(&log, "bindings restored", "took_ms"),
            "synchronised_ms": number_in(&log, "cluster: complete", "took_ms"),
            "bytes_resident": after.nodes[last].resident_bytes,
            "cpu_s": after.nodes[last].cpu.as_secs_f64(),
            "resumed": self.rig.nodes[last].events("cluster_resumed")?,
            "others_register_ms": delays(&answers),
            "us_cpu_per_record": after.each(&before, f64::from(BINDINGS)),
        });
        eprintln!("  {beside}");
        Ok(outcome(
            "s_until_it_serves",
            healthy.as_secs_f64(),
            bindings,
            healthy,
            beside,
        ))
    }

    /// Refreshes that make a binding another one (it ends earlier, at another concentrator), each of which is
    /// written; then of the same phones some that only end later, most of which wait.
    fn refresh_all(&mut self) -> Result<Vec<Outcome>> {
        let mut outcomes = Vec::new();
        for (kind, cseq, expires_s) in [("written", 2, 3600), ("coalesced", 3, EXPIRES_S)] {
            let mut first = 0;
            for rate in RATES {
                eprintln!("bench cluster: {rate} refreshes/s, {kind}");
                let load = Load {
                    first,
                    cseq,
                    expires_s,
                    per_s: rate,
                };
                outcomes.push(self.refresh(load, kind)?);
                first += rate * SECONDS;
            }
        }
        Ok(outcomes)
    }

    fn refresh(&mut self, load: Load, kind: &str) -> Result<Outcome> {
        self.settle()?;
        let rate = load.per_s;
        let count = rate * SECONDS;
        let (written, late) = (self.events("cluster_written")?, self.late()?);
        let before = self.used()?;
        let answers = registers(&self.rig.phones, load, |sent| sent < count as usize)?;
        // What is still to be written belongs to these.
        let behind = Instant::now();
        for node in &self.rig.nodes {
            wait::until("the backlog to be written", PATIENCE, || {
                Ok((node.level("cluster_backlog")? == 0).then_some(()))
            })?;
        }
        let behind = behind.elapsed();
        let after = self.used()?;
        let achieved = answers.sent as f64 / answers.took.as_secs_f64();
        let (written, late) = (
            self.events("cluster_written")? - written,
            self.late()? - late,
        );
        let carried = achieved > f64::from(rate) * 0.98
            && answers.unanswered() == 0
            && late * 1000 < answers.sent as u64;
        let beside = json!({
            "part": "refresh",
            "kind": kind,
            "refreshes_per_s": rate,
            "achieved_per_s": achieved,
            "carried": carried,
            "unanswered": answers.unanswered(),
            "answered_before_jetstream": late,
            "records_written": written,
            "backlog_written_after_s": behind.as_secs_f64(),
            "register_ms": delays(&answers),
            "us_cpu_per_refresh": after.each(&before, f64::from(count)),
            "since_start_s": self.started.elapsed().as_secs_f64(),
        });
        eprintln!("  {beside}");
        let sum = beside["us_cpu_per_refresh"]["sum"].as_f64();
        let completed = (answers.sent - answers.unanswered()) as u64;
        Ok(outcome(
            "us_cpu_per_refresh",
            sum.unwrap_or(f64::NAN),
            completed,
            answers.took,
            beside,
        ))
    }

    fn stale(&mut self) -> Result<Outcome> {
        eprintln!("bench cluster: {BINDINGS} registrations that are over, into the bucket");
        let hours = |ago_s, expires_s| Registered {
            ago: Duration::from_secs(ago_s),
            expires_s,
        };
        let live = records(0..1, hours(0, EXPIRES_S));
        let over = records(1..BINDINGS / 2, hours(5400, 3600));
        let long_over = records(BINDINGS / 2..BINDINGS, hours(3 * 3600, 3600));
        let all = live.chain(over).chain(long_over);
        let count = self.rig.nats.publish(&self.rig.core, all)? as u64;
        let last = NODES - 1;
        self.rig.nodes[last].crash_and_start(false)?;
        let start = Instant::now();
        let node = &mut self.rig.nodes[last];
        wait::until("it to serve", PATIENCE, || {
            node.program.process.check_alive()?;
            Ok(node.program.is_healthy(&node.namespace).ok())
        })?;
        let healthy = start.elapsed();
        node.wait_until_whole(last, PATIENCE)?;
        let node = &self.rig.nodes[last];
        wait::until("all to be counted", PATIENCE, || {
            Ok((node.events("cluster_stale")? == count - 1).then_some(()))
        })?;
        let bindings = node.level("bindings")?;
        ensure!(bindings == 1, "{bindings} bindings, and 1 is live");
        let beside = json!({
            "part": "stale",
            "healthy_after_s": healthy.as_secs_f64(),
            "stale": count - 1,
            "remembered": node.level("bindings_past")?,
            "bytes_resident": node.program.process.resident_bytes()?,
            "cpu_s": node.program.process.cpu_time()?.as_secs_f64(),
        });
        eprintln!("  {beside}");
        let s = healthy.as_secs_f64();
        Ok(outcome("s_until_it_serves", s, count, healthy, beside))
    }

    fn events(&self, event: &str) -> Result<u64> {
        let nodes = self.rig.nodes.iter();
        nodes.map(|node| node.events(event)).sum()
    }

    /// REGISTERs that were answered before the others, or the disk, had them.
    fn late(&self) -> Result<u64> {
        Ok(self.events("register_unacknowledged")? + self.events("register_crowded")?)
    }
}

fn delays(answers: &Answers) -> Value {
    json!({
        "sent": answers.sent, "unanswered": answers.unanswered(),
        "p50": answers.delay_ms(50), "p99": answers.delay_ms(99), "max": answers.delay_ms(100),
    })
}

/// A field of a line of a program's log.
fn number_in(log: &str, line: &str, field: &str) -> Option<f64> {
    let line = log.lines().rev().find(|of| of.contains(line))?;
    let value = line.split(&format!("{field}=")).nth(1)?;
    value.split_whitespace().next()?.parse().ok()
}

fn outcome(unit: &'static str, ours: f64, count: u64, took: Duration, beside: Value) -> Outcome {
    Outcome {
        bench: "cluster",
        unit,
        ours,
        peer: None,
        peer_name: None,
        ratio: None,
        beside: beside.as_object().cloned().unwrap_or_default(),
        conditions: Conditions::of(count, count, took, register(0, 1, EXPIRES_S).len()),
    }
}
