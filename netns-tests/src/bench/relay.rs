//! What a relayed packet costs: sipcast-rtp-agent in user space and by XDP (`xdp`), and rtpengine without
//! its kernel module, one after the other in the same network, with the same streams.
//!
//! ```text
//!    phones 10.0.1.1  ------------------------  10.0.1.2 relay
//!    both phones of every call                  sipcast-rtp-agent or rtpengine
//!    who controls the relay
//! ```
//!
//! A call is 50 packets of 172 octets a second each way (`streams`). Our agent is controlled by the
//! lab in the concentrator's place (`control`), rtpengine by its `ng` protocol (`ng`).
//!
//! The parts: CPU a packet, loss and delay with several numbers of calls, rounds alternating so that
//! whatever else the machine does falls on both; how fast sessions are set up and what memory they
//! take; 10,000 sessions at once (rtpengine as many as there may be sockets), each with little traffic; the
//! highest rate without a lost packet.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Map, json};

use super::{Conditions, Outcome};
use crate::{command, rtpengine};

mod control;
mod network;
mod ng;
mod servers;
mod streams;
mod xdp;
mod xdp_socket;

use network::Network;
use servers::{Kind, Memory, Server};
use streams::{PACKET, Phones, Plan, Seen};

/// Calls in progress while the cost of a packet is measured.
const CALLS: [usize; 3] = [100, 500, 1_000];
/// The one whose ratio is the bench's figure.
const HEADLINE: usize = 1_000;
const ROUNDS: usize = 3;
const PACKET_TIME: Duration = Duration::from_millis(20);
const TALK: Plan = Plan {
    period: PACKET_TIME,
    warm_up: Duration::from_secs(2),
    measured: Duration::from_secs(5),
};
/// Many sessions with a packet a second each way; fewer of a relay with a socket a port where the limit of
/// open files forbids them.
const MANY: usize = 10_000;
const TRICKLE: Plan = Plan {
    period: Duration::from_secs(1),
    warm_up: Duration::from_secs(3),
    measured: Duration::from_secs(5),
};
/// Calls of the search for the highest rate: from, to, step.
const LADDER: (usize, usize, usize) = (1_000, 4_000, 250);
const PEER: &str = "rtpengine in user space (no kernel module)";

/// All parts.
pub(super) fn run(folder: &Path) -> Result<Vec<Outcome>> {
    let bench = Bench::new(folder)?;
    let mut outcomes = bench.costs()?;
    outcomes.extend(bench.many()?);
    outcomes.extend(bench.fast_path()?);
    outcomes.push(bench.highest_rate()?);
    Ok(outcomes)
}

/// CPU a packet, delay, and how fast sessions are set up.
pub(super) fn run_cost(folder: &Path) -> Result<Vec<Outcome>> {
    Bench::new(folder)?.costs()
}

/// CPU a packet by XDP.
pub(super) fn run_xdp(folder: &Path) -> Result<Vec<Outcome>> {
    Bench::new(folder)?.fast_path()
}

/// The same with packets of sockets.
pub(super) fn run_xdp_socket(folder: &Path) -> Result<Vec<Outcome>> {
    Bench::new(folder)?.fast_path_by_socket()
}

/// Memory of very many sessions.
pub(super) fn run_sessions(folder: &Path) -> Result<Vec<Outcome>> {
    Bench::new(folder)?.many()
}

/// The highest rate without a lost packet.
pub(super) fn run_highest_rate(folder: &Path) -> Result<Vec<Outcome>> {
    Ok(vec![Bench::new(folder)?.highest_rate()?])
}

struct Bench<'a> {
    net: Network,
    phones: Phones,
    folder: &'a Path,
}

/// One run of one relay.
struct Round {
    ns_per_packet: f64,
    sessions_per_s: f64,
    resident_per_session: f64,
    kernel_per_session: f64,
    seen: Seen,
}

impl<'a> Bench<'a> {
    fn new(folder: &'a Path) -> Result<Self> {
        ensure!(
            command::found("rtpengine"),
            "rtpengine is missing; install the Debian package rtpengine-daemon"
        );
        let net = Network::build()?;
        let phones = net.phones.inside(Phones::open)?;
        Ok(Self {
            net,
            phones,
            folder,
        })
    }

    fn costs(&self) -> Result<Vec<Outcome>> {
        let mut outcomes = Vec::new();
        for calls in CALLS {
            outcomes.extend(self.cost(calls)?);
        }
        Ok(outcomes)
    }

    fn round(&self, kind: Kind, calls: usize, plan: Plan) -> Result<Round> {
        let mut server = Server::start(&self.net, kind, self.folder)?;
        let before = server.memory()?;
        let overflow = self.overflows()?;
        let (sessions, took) = server.set_up(calls, self.phones.ports())?;
        let mark = || server.cpu_ns();
        let (seen, from, to) = self.phones.run(&sessions, plan, mark)?;
        let memory = server.memory()?;
        server.check_alive()?;
        ensure!(
            self.overflows()? == overflow,
            "the load generator itself has lost packets"
        );
        ensure!(seen.received > 0, "{} relays nothing", kind.name());
        let per_session = |part: fn(&Memory) -> u64| {
            part(&memory).saturating_sub(part(&before)) as f64 / calls as f64
        };
        let round = Round {
            ns_per_packet: to.saturating_sub(from) as f64 / seen.received as f64,
            sessions_per_s: calls as f64 / took.as_secs_f64(),
            resident_per_session: per_session(|memory| memory.resident),
            kernel_per_session: per_session(|memory| memory.kernel),
            seen,
        };
        eprintln!(
            "bench relay: {calls} calls, {}: {}",
            kind.name(),
            round.summary()
        );
        Ok(round)
    }

    /// Datagrams that found a full socket in the phones' namespace.
    fn overflows(&self) -> Result<u64> {
        let table = self.net.phones.run("cat /proc/net/snmp")?;
        let mut lines = table.lines().filter_map(|line| line.strip_prefix("Udp: "));
        let (names, values) = (lines.next(), lines.next());
        let at = names
            .and_then(|names| names.split(' ').position(|name| name == "RcvbufErrors"))
            .context("no RcvbufErrors")?;
        let value = values.and_then(|values| values.split(' ').nth(at));
        Ok(value.unwrap_or("0").parse()?)
    }

    /// Rounds of both relays with this many calls.
    fn cost(&self, calls: usize) -> Result<Vec<Outcome>> {
        let mut ours = Vec::new();
        let mut peer = Vec::new();
        for _ in 0..ROUNDS {
            ours.push(self.round(Kind::Sipcast, calls, TALK)?);
            peer.push(self.round(Kind::Rtpengine, calls, TALK)?);
        }
        let both = Both {
            calls,
            peer_calls: calls,
            ours,
            peer,
        };
        let mut outcomes =
            vec![both.outcome("ns_cpu_per_packet_portable", |round| round.ns_per_packet)];
        for (unit, quantile) in [
            ("delay_us_p50", 0.5),
            ("delay_us_p99", 0.99),
            ("delay_us_p99_9", 0.999),
        ] {
            outcomes.push(both.outcome(unit, |round| round.seen.delay_us(quantile)));
        }
        if calls == HEADLINE {
            outcomes.push(both.outcome("sessions_set_up_per_second", |round| round.sessions_per_s));
        }
        Ok(outcomes)
    }

    /// Very many sessions at once.
    fn many(&self) -> Result<Vec<Outcome>> {
        let most = |kind| anyhow::Ok(MANY.min(servers::most_sessions(kind)?));
        let (calls, peer_calls) = (most(Kind::Sipcast)?, most(Kind::Rtpengine)?);
        let both = Both {
            calls,
            peer_calls,
            ours: vec![self.round(Kind::Sipcast, calls, TRICKLE)?],
            peer: vec![self.round(Kind::Rtpengine, peer_calls, TRICKLE)?],
        };
        Ok(vec![
            both.outcome("resident_bytes_per_session", |round| {
                round.resident_per_session
            }),
            both.outcome("kernel_bytes_per_session", |round| round.kernel_per_session),
        ])
    }

    /// The most calls of the ladder with which the phones send at their rate and no packet is lost; a
    /// rung may be tried twice. Where relay and phones together need more than the machine has, the
    /// phones are late: then nothing is lost either, but the rate was not reached.
    fn highest_rate(&self) -> Result<Outcome> {
        let (first, last, step) = LADDER;
        let highest = |kind: Kind| -> Result<Option<Round>> {
            let mut highest = None;
            for calls in (first..=last).step_by(step) {
                let mut round = self.round(kind, calls, TALK)?;
                if !round.holds(calls) {
                    round = self.round(kind, calls, TALK)?;
                }
                if !round.holds(calls) {
                    break;
                }
                highest = Some(round);
            }
            Ok(highest)
        };
        let ours = highest(Kind::Sipcast)?.context("we lose packets at the lowest rate")?;
        let peer =
            highest(Kind::Rtpengine)?.context("rtpengine loses packets at the lowest rate")?;
        let calls_of = |round: &Round| {
            (round.seen.sent as f64 / (TALK.measured.as_secs_f64() * 100.0)).round() as usize
        };
        let both = Both {
            calls: calls_of(&ours),
            peer_calls: calls_of(&peer),
            ours: vec![ours],
            peer: vec![peer],
        };
        Ok(both.outcome("loss_free_packets_per_second", |round| {
            round.seen.sent as f64 / TALK.measured.as_secs_f64()
        }))
    }
}

impl Round {
    /// True when all that these calls have to send was sent, 1 % aside, and relayed.
    fn holds(&self, calls: usize) -> bool {
        let planned = calls as f64 * 2.0 * TALK.measured.as_secs_f64() / PACKET_TIME.as_secs_f64();
        self.seen.lost() == 0 && self.seen.sent as f64 >= 0.99 * planned
    }

    fn summary(&self) -> String {
        let Self { seen, .. } = self;
        format!(
            "{:.0} ns a packet, {} of {} lost, {} out of order, {} strays; delay {:.0}, {:.0}, {:.0} us \
             (50, 99, 99.9 %); {:.0} sessions/s, {:.0} + {:.0} bytes a session",
            self.ns_per_packet,
            seen.lost(),
            seen.sent,
            seen.out_of_order,
            seen.strays,
            seen.delay_us(0.5),
            seen.delay_us(0.99),
            seen.delay_us(0.999),
            self.sessions_per_s,
            self.resident_per_session,
            self.kernel_per_session,
        )
    }
}

/// The rounds of both relays.
struct Both {
    calls: usize,
    peer_calls: usize,
    ours: Vec<Round>,
    peer: Vec<Round>,
}

impl Both {
    fn outcome(&self, unit: &'static str, figure: impl Fn(&Round) -> f64) -> Outcome {
        let of = |rounds: &[Round]| sorted(rounds.iter().map(&figure).collect());
        let pairs = self.ours.iter().zip(&self.peer);
        let ratios = sorted(
            pairs
                .map(|(ours, peer)| figure(ours) / figure(peer))
                .collect(),
        );
        let sum = |rounds: &[Round], figure: fn(&Seen) -> u64| -> u64 {
            rounds.iter().map(|round| figure(&round.seen)).sum()
        };
        let (ours, peer) = (of(&self.ours), of(&self.peer));
        let mut conditions = Conditions::of(
            sum(&self.ours, |seen| seen.sent),
            sum(&self.ours, |seen| seen.received),
            TALK.measured * self.ours.len() as u32,
            PACKET,
        );
        conditions.more = json!({
            "calls": self.calls,
            "peer_calls": self.peer_calls,
            "headline": self.calls == HEADLINE,
            "ours_rounds": ours,
            "peer_rounds": peer,
            "ratios": ratios,
            "sent": { "ours": sum(&self.ours, |seen| seen.sent), "peer": sum(&self.peer, |seen| seen.sent) },
            "lost": { "ours": sum(&self.ours, Seen::lost), "peer": sum(&self.peer, Seen::lost) },
            "out_of_order": {
                "ours": sum(&self.ours, |seen| seen.out_of_order),
                "peer": sum(&self.peer, |seen| seen.out_of_order),
            },
            "peer_version": rtpengine::version(),
        });
        Outcome {
            bench: "relay",
            unit,
            ours: median(&ours),
            peer: Some(median(&peer)),
            peer_name: Some(PEER),
            ratio: Some(median(&ratios)),
            beside: Map::new(),
            conditions,
        }
    }
}

fn sorted(mut figures: Vec<f64>) -> Vec<f64> {
    figures.sort_unstable_by(f64::total_cmp);
    figures
}

fn median(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}
