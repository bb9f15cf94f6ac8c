//! What signalling costs: sipcast-concentrator behind its tunnel, and Kamailio, one after the other
//! in the same network, with the same SIPp at the same rates.
//!
//! ```text
//!                 10.0.1.2 edge 10.0.9.1 ---- 10.0.9.2
//!                /         sipcast-ingress            \
//!    phones 10.0.1.1                                  proxy   sipcast-concentrator: 198.51.100.1
//!    SIPp           \                                /        or Kamailio: 10.0.8.2
//!                 10.0.8.1 ------------------ 10.0.8.2
//! ```
//!
//! What the phones send to the concentrator goes through the ingress and its tunnel; its answers,
//! and all of Kamailio's traffic, take the direct link. Both are registrars and proxies that stay
//! in the path, neither touches the SDP. Decapsulation is part of our figure; the ingress's share
//! stands in the conditions.
//!
//! The parts: CPU a call at several rates, rounds alternating so that whatever else the machine
//! does falls on both; the same for an authenticated REGISTER; our memory for a call that has just
//! been answered and for one that has lasted; the highest rate without a failed call, for a minute.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Map, json};

use super::load::{self, Calls};
use super::{Conditions, Outcome};
use crate::{command, kamailio};

mod network;
mod servers;

use network::Network;
use servers::Server;

/// Calls a second at which the cost of one is measured.
const RATES: [u32; 3] = [200, 1_000, 2_000];
/// The one whose ratio is the bench's figure.
const HEADLINE_RATE: u32 = 1_000;
const SECONDS: u32 = 5;
const ROUNDS: usize = 3;
/// Rates that are tried, until one has no failed call.
const LADDER: [u32; 6] = [2_000, 1_750, 1_500, 1_250, 1_000, 500];
const LADDER_SECONDS: u32 = 60;
/// REGISTERs a second; each is sent twice, the second time with credentials.
const REGISTER_RATES: [u32; 3] = [1_000, 2_000, 4_000];
const USERS: usize = 1_000;
/// Calls that are in progress at a time when memory is measured.
const HELD_CALLS: u32 = 20_000;
const HELD_RATE: u32 = 1_000;
/// Over UDP a transaction lives for 64 * T1.
const AFTER_TRANSACTIONS: Duration = Duration::from_secs(35);
/// SDP of the INVITE; the messages are 350 to 750 octets.
const PAYLOAD_BYTES: usize = 190;
const PEER: &str = "Kamailio, tm + rr + usrloc, two workers";

/// All parts, one after the other.
pub(super) fn run(folder: &Path) -> Result<Vec<Outcome>> {
    let parts = [run_calls, run_registrations, run_memory, run_highest_rate];
    let mut outcomes = Vec::new();
    for part in parts {
        outcomes.extend(part(folder)?);
    }
    Ok(outcomes)
}

pub(super) fn run_calls(folder: &Path) -> Result<Vec<Outcome>> {
    let net = network()?;
    let rates = RATES.iter();
    rates.map(|rate| calls_at(&net, *rate, folder)).collect()
}

pub(super) fn run_registrations(folder: &Path) -> Result<Vec<Outcome>> {
    let net = network()?;
    let rates = REGISTER_RATES.iter();
    rates
        .map(|rate| registrations_at(&net, *rate, folder))
        .collect()
}

pub(super) fn run_memory(folder: &Path) -> Result<Vec<Outcome>> {
    Ok(vec![memory(&network()?, folder)?])
}

pub(super) fn run_highest_rate(folder: &Path) -> Result<Vec<Outcome>> {
    Ok(vec![highest_rate(&network()?, folder)?])
}

fn network() -> Result<Network> {
    for (program, package) in [("kamailio", "kamailio"), ("sipp", "sip-tester")] {
        ensure!(
            command::found(program),
            "{program} is missing; install the Debian package {package}"
        );
    }
    Network::build()
}

/// One round of one side.
struct Round {
    /// Microseconds of CPU a unit of work.
    server_us: f64,
    ingress_us: f64,
    calls: Calls,
}

/// Rounds of both sides at one rate.
fn calls_at(net: &Network, rate: u32, folder: &Path) -> Result<Outcome> {
    let mut rounds = (Vec::new(), Vec::new());
    for number in 1..=ROUNDS {
        let place = folder
            .join(format!("calls-{rate}"))
            .join(number.to_string());
        let ours = round(net, servers::SIPCAST, rate, &place)?;
        let peer = round(net, servers::KAMAILIO, rate, &place)?;
        eprintln!(
            "bench signalling: {rate} calls/s, round {number} of {ROUNDS}: sipcast {}; Kamailio {}",
            ours.summary(),
            peer.summary()
        );
        rounds.0.push(ours);
        rounds.1.push(peer);
    }
    Ok(outcome(rate, &rounds.0, &rounds.1))
}

fn round(net: &Network, kind: servers::Kind, rate: u32, folder: &Path) -> Result<Round> {
    let server = Server::start(net, kind, folder)?;
    load::register_callee(&net.phones, server.address())?;
    let callee = load::callee(&net.phones, server.address(), server.folder())?;
    let before = server.cpu_time()?;
    let calls = load::calls(
        &net.phones,
        server.address(),
        rate,
        rate * SECONDS,
        server.folder(),
    )?;
    let cpu = server.cpu_time()?.since(before);
    drop(callee);
    Ok(Round::of(cpu, calls))
}

impl Round {
    fn of(cpu: servers::Cpu, calls: Calls) -> Self {
        let per_call = |seconds: f64| seconds * 1e6 / f64::from(calls.offered);
        Self {
            server_us: per_call(cpu.server_s),
            ingress_us: per_call(cpu.ingress_s),
            calls,
        }
    }

    fn summary(&self) -> String {
        let Self {
            server_us, calls, ..
        } = self;
        format!(
            "{server_us:.0} us a call, {} failed, ringing after {:.1} ms (99 %: {:.1} ms)",
            calls.failed(),
            calls.ringing_ms(50),
            calls.ringing_ms(99)
        )
    }
}

fn outcome(rate: u32, ours: &[Round], peer: &[Round]) -> Outcome {
    let of = |rounds: &[Round], figure: &dyn Fn(&Round) -> f64| -> Vec<f64> {
        sorted(rounds.iter().map(figure).collect())
    };
    let pairs = ours.iter().zip(peer);
    let ratios = sorted(
        pairs
            .map(|(ours, peer)| ours.server_us / peer.server_us)
            .collect(),
    );
    let cost = |rounds: &[Round]| of(rounds, &|round| round.server_us);
    let ringing =
        |rounds: &[Round], percent| median(&of(rounds, &|round| round.calls.ringing_ms(percent)));
    let failed = |rounds: &[Round]| rounds.iter().map(|round| round.calls.failed()).sum::<u32>();
    let retransmissions = |rounds: &[Round]| {
        rounds
            .iter()
            .map(|round| round.calls.retransmissions)
            .sum::<u32>()
    };
    let sent: u64 = ours
        .iter()
        .map(|round| u64::from(round.calls.offered))
        .sum();
    let completed = sent - u64::from(failed(ours));
    let took = ours.iter().map(|round| round.calls.took).sum();
    let mut conditions = Conditions::of(sent, completed, took, PAYLOAD_BYTES);
    conditions.more = json!({
        "calls_per_s": rate,
        "headline": rate == HEADLINE_RATE,
        "ours_us": cost(ours),
        "peer_us": cost(peer),
        "ratios": ratios,
        "ingress_us_per_call": median(&of(ours, &|round| round.ingress_us)),
        "failed": { "ours": failed(ours), "peer": failed(peer) },
        "retransmissions": { "ours": retransmissions(ours), "peer": retransmissions(peer) },
        "ringing_ms": {
            "ours_p50": ringing(ours, 50), "ours_p99": ringing(ours, 99),
            "peer_p50": ringing(peer, 50), "peer_p99": ringing(peer, 99),
        },
        "relay": "never",
        "peer_version": kamailio::version(),
    });
    Outcome {
        bench: "signalling",
        unit: "us_cpu_per_call",
        ours: median(&cost(ours)),
        peer: Some(median(&cost(peer))),
        peer_name: Some(PEER),
        ratio: Some(median(&ratios)),
        beside: Map::new(),
        conditions,
    }
}

/// CPU of an authenticated REGISTER: challenged, then with credentials; rounds of both sides.
fn registrations_at(net: &Network, rate: u32, folder: &Path) -> Result<Outcome> {
    let names: Vec<String> = (0..USERS)
        .map(|number| format!("user{number:04}"))
        .collect();
    let users: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "secret")).collect();
    let round = |kind: servers::Kind, place: &Path| -> Result<Round> {
        let server = Server::start_for(net, kind, &users, place)?;
        let address = server.address();
        load::wait_for_answers(&net.phones, address)?;
        let before = server.cpu_time()?;
        let count = rate * SECONDS;
        let calls =
            load::registrations(&net.phones, address, &users, rate, count, server.folder())?;
        Ok(Round::of(server.cpu_time()?.since(before), calls))
    };
    let mut rounds = (Vec::new(), Vec::new());
    for number in 1..=ROUNDS {
        let place = folder
            .join(format!("register-{rate}"))
            .join(number.to_string());
        let ours = round(servers::SIPCAST, &place)?;
        let peer = round(servers::KAMAILIO, &place)?;
        eprintln!(
            "bench signalling: {rate} REGISTERs/s, round {number} of {ROUNDS}: sipcast {:.0} us, {} failed; Kamailio {:.0} us, {} failed",
            ours.server_us,
            ours.calls.failed(),
            peer.server_us,
            peer.calls.failed(),
        );
        rounds.0.push(ours);
        rounds.1.push(peer);
    }
    let mut outcome = outcome(rate, &rounds.0, &rounds.1);
    outcome.unit = "us_cpu_per_register";
    outcome.peer_name = Some("Kamailio, auth + usrloc, two workers");
    Ok(outcome)
}

/// Memory of the concentrator with many calls in progress: as they have just been answered, and
/// when their transactions are over.
fn memory(net: &Network, folder: &Path) -> Result<Outcome> {
    let place = folder.join("memory");
    let server = Server::start(net, servers::SIPCAST, &place)?;
    load::register_callee(&net.phones, server.address())?;
    let _callee = load::callee(&net.phones, server.address(), server.folder())?;
    // What a first few calls make is not theirs.
    load::calls(
        &net.phones,
        server.address(),
        HELD_RATE,
        HELD_RATE,
        server.folder(),
    )?;
    thread::sleep(AFTER_TRANSACTIONS);
    let before = server.resident_bytes()?;
    let start = Instant::now();
    let mut caller = load::held_calls(
        &net.phones,
        server.address(),
        HELD_RATE,
        HELD_CALLS,
        server.folder(),
    )?;
    thread::sleep(Duration::from_secs(u64::from(HELD_CALLS / HELD_RATE)) + Duration::from_secs(1));
    let answered = server.resident_bytes()?;
    let in_progress = server
        .answered_calls(net)?
        .saturating_sub(u64::from(HELD_RATE));
    thread::sleep(AFTER_TRANSACTIONS);
    let lasting = server.resident_bytes()?;
    let took = start.elapsed();
    caller.stop()?;
    ensure!(
        in_progress == u64::from(HELD_CALLS),
        "{in_progress} of {HELD_CALLS} calls"
    );
    let per_call = |bytes: u64| bytes.saturating_sub(before) as f64 / f64::from(HELD_CALLS);
    eprintln!(
        "bench signalling: {HELD_CALLS} calls: {:.0} bytes each when answered, {:.0} after their transactions",
        per_call(answered),
        per_call(lasting)
    );
    let mut conditions = Conditions::of(u64::from(HELD_CALLS), in_progress, took, PAYLOAD_BYTES);
    conditions.more = json!({
        "calls_in_progress": HELD_CALLS,
        "resident_before_bytes": before,
        "resident_answered_bytes": answered,
        "resident_after_transactions_bytes": lasting,
        "bytes_per_call_after_transactions": per_call(lasting),
        "relay": "never",
    });
    Ok(Outcome {
        bench: "signalling",
        unit: "bytes_per_call_in_progress",
        ours: per_call(answered),
        peer: None,
        peer_name: None,
        ratio: None,
        beside: Map::new(),
        conditions,
    })
}

/// The highest rate of the ladder at which no call fails in a minute.
fn highest_rate(net: &Network, folder: &Path) -> Result<Outcome> {
    let mut tried = Vec::new();
    let mut highest = |kind: servers::Kind| -> Result<u32> {
        for rate in LADDER {
            let place = folder.join(format!("highest-{rate}"));
            let server = Server::start(net, kind, &place)?;
            load::register_callee(&net.phones, server.address())?;
            let callee = load::callee(&net.phones, server.address(), server.folder())?;
            let calls = load::calls(
                &net.phones,
                server.address(),
                rate,
                rate * LADDER_SECONDS,
                server.folder(),
            )?;
            drop(callee);
            let achieved = f64::from(calls.offered) / calls.took.as_secs_f64();
            eprintln!(
                "bench signalling: {} at {rate} calls/s for {LADDER_SECONDS} s: {} of {} calls failed, {} retransmissions, {achieved:.0} calls/s achieved",
                kind.name(),
                calls.failed(),
                calls.offered,
                calls.retransmissions,
            );
            tried.push(json!({
                "server": kind.name(), "calls_per_s": rate, "achieved_calls_per_s": achieved,
                "failed": calls.failed(), "retransmissions": calls.retransmissions,
            }));
            if calls.failed() == 0 {
                return Ok(rate);
            }
        }
        Ok(0)
    };
    let ours = highest(servers::SIPCAST)?;
    let peer = highest(servers::KAMAILIO)?;
    let mut conditions = Conditions::of(0, 0, Duration::from_secs(1), PAYLOAD_BYTES);
    conditions.more = json!({ "tried": tried, "seconds": LADDER_SECONDS });
    Ok(Outcome {
        bench: "signalling",
        unit: "highest_calls_per_s_without_failure",
        ours: f64::from(ours),
        peer: Some(f64::from(peer)),
        peer_name: Some(PEER),
        ratio: (peer > 0).then(|| f64::from(ours) / f64::from(peer)),
        beside: Map::new(),
        conditions,
    })
}

fn sorted(mut figures: Vec<f64>) -> Vec<f64> {
    figures.sort_by(f64::total_cmp);
    figures
}

fn median(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
