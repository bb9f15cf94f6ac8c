//! How long the service is away for those whose edge goes: drained by its operator, without power (BFD
//! finds out), or cut off from the concentrator (its own probes find out).
//!
//! An OPTIONS every 10 ms from each network that the edge serves; calls at 20 a second from one of them.
//! The gap is the longest time between two questions that were answered, by when they were asked: 10 ms
//! where none was lost.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, anyhow};
use nix::sys::signal::Signal;
use serde::Serialize;
use serde_json::json;

use super::plot::{self, Series};
use super::{Outcome, outcome, percentile, sorted};
use crate::bench::sipp_trace;
use crate::bgp::Timers;
use crate::catchment::prober::{self, Asked, Prober, Question};
use crate::namespace::Namespace;
use crate::phone::{self, Transport};
use crate::scenario::internet::Rig;
use crate::scenario::internet::accidents::{CUT, DEAD};
use crate::topology::two_edges::SERVICE;

/// Of each accident at each edge.
const REPETITIONS: usize = 10;
const EVERY: Duration = Duration::from_millis(10);
const CALLS: u32 = 90;
const CALLS_PER_SECOND: u32 = 20;
/// Calls begun so long after the accident are those "begun while converging".
const CONVERGING_S: f64 = 2.0;
/// The timers of the scenarios, except that an edge that comes and goes is not held down ever longer.
const ANNOUNCEMENT: &str = "withdraw_after_ms = 500\nhold_down_s = 1\nhold_down_max_s = 1\n\
                            graceful_s = 1\nlinger_s = 1\n";

/// What happens to an edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Accident {
    Drained,
    PowerOff,
    TunnelCut,
}

impl Accident {
    const ALL: [Self; 3] = [Self::Drained, Self::PowerOff, Self::TunnelCut];

    const fn name(self) -> &'static str {
        match self {
            Self::Drained => "drained",
            Self::PowerOff => "power off, BFD",
            Self::TunnelCut => "tunnel cut",
        }
    }

    fn begin(self, rig: &Rig, edge: usize) -> Result<()> {
        let ingress = &rig.edges.ingresses[edge - 1].process;
        match self {
            Self::Drained => ingress.signal(Signal::SIGUSR1),
            Self::PowerOff => rig.net.edges[edge - 1].nft(DEAD),
            Self::TunnelCut => rig.net.edges[edge - 1].nft(CUT),
        }
    }

    fn heal(self, rig: &Rig, edge: usize) -> Result<()> {
        let ingress = &rig.edges.ingresses[edge - 1].process;
        let namespace = &rig.net.edges[edge - 1];
        match self {
            Self::Drained => ingress.signal(Signal::SIGUSR2)?,
            Self::PowerOff => drop(namespace.run("nft delete table inet dead")?),
            Self::TunnelCut => drop(namespace.run("nft delete table ip cut")?),
        }
        rig.wait_for_announcement(edge, "announced")?;
        rig.wait_for_way(router_of(rig, edge), Some("edge"))?;
        Ok(())
    }
}

fn router_of(rig: &Rig, edge: usize) -> &Namespace {
    if edge == 1 { &rig.net.t1 } else { &rig.net.t2 }
}

/// The networks that reach an edge, the caller's first, and the callee's, which does not.
const fn networks_of(edge: usize) -> ([usize; 2], usize) {
    if edge == 1 { ([1, 2], 3) } else { ([3, 6], 1) }
}

/// What one network saw of one accident.
#[derive(Debug, Serialize)]
struct Seen {
    access: usize,
    gap_ms: f64,
    lost: usize,
    asked: usize,
}

#[derive(Debug, Serialize)]
struct Repetition {
    accident: Accident,
    edge: usize,
    networks: Vec<Seen>,
    /// Of calls begun while converging, sorted.
    post_dial_ms: Vec<f64>,
    calls: usize,
    /// Without a 200 to the INVITE.
    failed: usize,
    /// Answered, and without a 200 to the BYE.
    not_hung_up: usize,
}

pub(crate) fn run(folder: &Path) -> Result<Vec<Outcome>> {
    let rig = Rig::start_announcing(Timers::FAST, ANNOUNCEMENT, folder)?;
    let mut repetitions = Vec::new();
    for accident in Accident::ALL {
        for edge in [1, 2] {
            let name = format!("{}-edge{edge}", accident.name().replace([' ', ','], "-"));
            let folder = folder.join(name);
            fs::create_dir_all(&folder)?;
            let callee = networks_of(edge).1;
            let mut answering =
                phone::patient_callee(&rig.net.uas[callee - 1], Transport::Udp, &folder)?;
            rig.wait_for_binding_at(&mut answering, callee)?;
            for number in 1..=REPETITIONS {
                let folder = folder.join(number.to_string());
                let repetition = once(&rig, accident, edge, &folder)?;
                eprintln!("bench anycast/convergence: {number}: {}", repetition.line());
                repetitions.push(repetition);
            }
            answering.stop()?;
        }
    }
    write(&repetitions, folder)?;
    Ok(Accident::ALL
        .into_iter()
        .map(|accident| summary(accident, &repetitions))
        .collect())
}

fn once(rig: &Rig, accident: Accident, edge: usize, folder: &Path) -> Result<Repetition> {
    let (networks, _) = networks_of(edge);
    fs::create_dir_all(folder)?;
    let caller = &rig.net.uas[networks[0] - 1];
    let mut calling =
        phone::patient_caller(caller, Transport::Udp, CALLS, CALLS_PER_SECOND, folder)?;
    let stop = AtomicBool::new(false);
    let (asked, moment) = std::thread::scope(|scope| {
        let watchers = networks.map(|access| {
            let (ua, stop) = (&rig.net.uas[access - 1], &stop);
            scope.spawn(move || ua.inside(|| watch(stop)))
        });
        let mut happening = || -> Result<(Instant, SystemTime)> {
            std::thread::sleep(Duration::from_secs(1));
            let moment = (Instant::now(), SystemTime::now());
            accident.begin(rig, edge)?;
            // Whether its calls were good is judged by its trace.
            calling.wait(Duration::from_secs(90))?;
            Ok(moment)
        };
        let moment = happening();
        stop.store(true, Ordering::Relaxed);
        let asked = watchers.map(|watcher| {
            let asked = watcher.join();
            asked.map_err(|_| anyhow!("a watcher panicked"))?
        });
        let asked: Result<Vec<Vec<Asked>>> = asked.into_iter().collect();
        anyhow::Ok((asked?, moment?))
    })?;
    accident.heal(rig, edge)?;
    let trace = folder.join(caller.name()).join("messages.txt");
    let trace = fs::read_to_string(&trace).with_context(|| trace.display().to_string())?;
    let calls = sipp_trace::read(&trace);
    let converging = calls.iter().filter(|call| {
        let after = call.begun_after(moment.1);
        (0.0..CONVERGING_S).contains(&after)
    });
    Ok(Repetition {
        accident,
        edge,
        networks: networks
            .into_iter()
            .zip(asked)
            .map(|(access, asked)| seen(access, &asked, moment.0))
            .collect(),
        post_dial_ms: sorted(converging.filter_map(|call| call.post_dial_ms).collect()),
        calls: calls.len(),
        failed: calls.iter().filter(|call| !call.answered).count(),
        not_hung_up: calls
            .iter()
            .filter(|call| call.answered && !call.hung_up)
            .count(),
    })
}

fn watch(stop: &AtomicBool) -> Result<Vec<Asked>> {
    let question = Question {
        service: SocketAddr::new(IpAddr::V4(SERVICE), 5060),
        transport: prober::Transport::Udp,
        from: None,
        interval: EVERY,
        timeout: Duration::from_secs(2),
    };
    let mut all = Vec::new();
    Prober::new(question)?.run(
        |_| !stop.load(Ordering::Relaxed),
        |asked| {
            all.push(asked);
            Ok(())
        },
    )?;
    Ok(all)
}

fn seen(access: usize, asked: &[Asked], moment: Instant) -> Seen {
    let is_lost = |asked: &&Asked| matches!(asked.outcome, prober::Outcome::Lost);
    let mut answered: Vec<Instant> = asked
        .iter()
        .filter(|asked| !is_lost(asked))
        .map(|asked| asked.sent)
        .collect();
    answered.sort();
    let gaps = answered.windows(2).filter(|pair| pair[1] >= moment);
    let longest = gaps.map(|pair| pair[1] - pair[0]).max();
    Seen {
        access,
        gap_ms: longest.map_or(f64::NAN, |gap| gap.as_secs_f64() * 1000.0),
        lost: asked.iter().filter(is_lost).count(),
        asked: asked.len(),
    }
}

impl Repetition {
    fn line(&self) -> String {
        let networks = self.networks.iter();
        let networks: Vec<String> = networks
            .map(|seen| {
                let Seen {
                    access,
                    gap_ms,
                    lost,
                    asked,
                } = seen;
                format!("ua{access} {gap_ms:.0} ms, {lost} of {asked} lost")
            })
            .collect();
        format!(
            "edge {} {}: {}; post-dial delay of {} calls at most {:.0} ms; {} of {} failed, {} not hung up",
            self.edge,
            self.accident.name(),
            networks.join("; "),
            self.post_dial_ms.len(),
            percentile(&self.post_dial_ms, 100),
            self.failed,
            self.calls,
            self.not_hung_up
        )
    }
}

/// The repetitions of an accident, at one edge or at all.
struct Group<'a>(Vec<&'a Repetition>);

impl<'a> Group<'a> {
    fn of(all: &'a [Repetition], accident: Accident, edge: Option<usize>) -> Self {
        let is_of =
            |of: &&Repetition| of.accident == accident && edge.is_none_or(|edge| of.edge == edge);
        Self(all.iter().filter(is_of).collect())
    }

    fn gaps(&self) -> Vec<f64> {
        let seen = self.0.iter().flat_map(|of| &of.networks);
        sorted(seen.map(|seen| seen.gap_ms).collect())
    }

    fn lost(&self) -> Vec<f64> {
        let seen = self.0.iter().flat_map(|of| &of.networks);
        sorted(seen.map(|seen| seen.lost as f64).collect())
    }

    fn post_dial(&self) -> Vec<f64> {
        sorted(
            self.0
                .iter()
                .flat_map(|of| of.post_dial_ms.clone())
                .collect(),
        )
    }

    fn sum(&self, value: fn(&Repetition) -> usize) -> usize {
        self.0.iter().map(|of| value(of)).sum()
    }
}

/// Least, median, 90 % and most.
fn figures(values: &[f64]) -> [f64; 4] {
    [0, 50, 90, 100].map(|percent| percentile(values, percent))
}

fn summary(accident: Accident, repetitions: &[Repetition]) -> Outcome {
    let group = Group::of(repetitions, accident, None);
    let gaps = group.gaps();
    outcome(
        "anycast/convergence",
        "ms without an answer, median over networks and repetitions",
        percentile(&gaps, 50),
        group.0.len() as u64,
        json!({
            "accident": accident,
            "gap_ms_min_median_p90_max": figures(&gaps),
            "lost_min_median_p90_max": figures(&group.lost()),
            "post_dial_ms_min_median_p90_max": figures(&group.post_dial()),
            "calls_while_converging": group.post_dial().len(),
            "calls": group.sum(|of| of.calls),
            "failed": group.sum(|of| of.failed),
            "not_hung_up": group.sum(|of| of.not_hung_up),
            "interval_ms": EVERY.as_millis(),
        }),
    )
}

fn write(repetitions: &[Repetition], folder: &Path) -> Result<()> {
    let mut table = String::from(
        "| accident | edge | gap, ms: min / median / 90 % / max | lost of those at 100/s | \
         post-dial delay, ms | calls failed | not hung up |\n|---|---|---|---|---|---|---|\n",
    );
    let cell = |values: &[f64]| {
        let words = figures(values).map(|value| format!("{value:.0}"));
        words.join(" / ")
    };
    for accident in Accident::ALL {
        for edge in [1, 2] {
            let group = Group::of(repetitions, accident, Some(edge));
            writeln!(
                table,
                "| {} | {edge} | {} | {} | {} ({} calls) | {} of {} | {} |",
                accident.name(),
                cell(&group.gaps()),
                cell(&group.lost()),
                cell(&group.post_dial()),
                group.post_dial().len(),
                group.sum(|of| of.failed),
                group.sum(|of| of.calls),
                group.sum(|of| of.not_hung_up),
            )?;
        }
    }
    fs::write(folder.join("convergence.md"), &table)?;
    let raw = serde_json::to_string_pretty(repetitions)?;
    fs::write(folder.join("convergence.json"), raw)?;
    eprintln!("{table}");
    let all = |values: fn(&Group<'_>) -> Vec<f64>| {
        Accident::ALL.map(|accident| Series {
            name: accident.name().to_owned(),
            values: values(&Group::of(repetitions, accident, None)),
        })
    };
    let gaps = plot::distribution(
        "The longest gap in which nothing is answered",
        "ms (10: nothing was lost)",
        &all(|group| group.gaps()),
    );
    fs::write(folder.join("convergence.svg"), gaps)?;
    let delays = plot::distribution(
        "Post-dial delay of calls begun within 2 s of the accident",
        "ms",
        &all(|group| group.post_dial()),
    );
    Ok(fs::write(folder.join("post-dial.svg"), delays)?)
}
