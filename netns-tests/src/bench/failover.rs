//! What calls notice of an accident to one of two concentrators, or to the NATS server that leads.
//!
//! One phone calls another at a constant rate for [`SECONDS`], each call with a ring and some talk, so
//! that at the moment of the accident there are calls in every state. The accident is that of the
//! concentrator which has the caller's calls. A call has failed that SIPp does not count as successful; the
//! gap is the longest time without a first answer to any INVITE. Over TCP SIPp ends with its connection,
//! so what it offers later counts as failed. No peer: what others have published is in
//! `docs/benchmarks.md`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use serde::Serialize;
use serde_json::json;

use super::sipp_trace::{self, Call};
use super::{Conditions, Outcome};
use crate::phone::{self, Transport};
use crate::scenario::internet::accidents::DEAD;
use crate::two_concentrators::{TwoConcentrators, Which};

/// Of calls.
const SECONDS: u32 = 16;
/// After the first call.
const ACCIDENT: Duration = Duration::from_secs(6);
const RING_MS: u32 = 500;
const TALK_MS: u32 = 1_500;
const RATES: [u32; 5] = [50, 100, 200, 300, 400];
/// Calls begun so long before the accident, or after it, are those around it.
const AROUND_S: f64 = 1.0;

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Event {
    Nothing,
    KillConcentrator,
    StopConcentrator,
    CutConcentrator,
    DrainConcentrator,
    KillNatsLeader,
}

impl Event {
    const ALL: [Self; 6] = [
        Self::Nothing,
        Self::KillConcentrator,
        Self::StopConcentrator,
        Self::CutConcentrator,
        Self::DrainConcentrator,
        Self::KillNatsLeader,
    ];

    fn happen(self, rig: &mut TwoConcentrators, victim: Which) -> Result<()> {
        match self {
            Self::Nothing => Ok(()),
            Self::KillConcentrator => rig.program(victim).process.kill(),
            Self::StopConcentrator => rig.program(victim).process.signal(Signal::SIGSTOP),
            Self::CutConcentrator => rig.namespace(victim).nft(DEAD),
            Self::DrainConcentrator => rig.program(victim).process.signal(Signal::SIGUSR1),
            Self::KillNatsLeader => {
                let leader = rig.nats.kill_leader(&rig.net.core, "KV_sipcast")?;
                eprintln!("  {leader} led");
                Ok(())
            }
        }
    }
}

pub(super) fn run(folder: &Path) -> Result<Vec<Outcome>> {
    all(&RATES, Transport::Udp, folder)
}

pub(super) fn run_short(folder: &Path) -> Result<Vec<Outcome>> {
    all(&[100, 400], Transport::Udp, folder)
}

pub(super) fn run_tcp(folder: &Path) -> Result<Vec<Outcome>> {
    all(&[100], Transport::Tcp, folder)
}

fn all(rates: &[u32], transport: Transport, folder: &Path) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    for event in Event::ALL {
        for rate in rates {
            let name = serde_json::to_value(event)?;
            let name = name.as_str().unwrap_or_default();
            eprintln!("failover: {name} at {rate} calls/s over {transport}");
            let folder = folder.join(format!("{name}-{rate}-{transport}"));
            fs::create_dir_all(&folder)?;
            let seen = accident(event, *rate, transport, &folder.canonicalize()?)?;
            eprintln!("  {}", serde_json::to_string(&seen)?);
            outcomes.push(outcome(event, *rate, transport, &seen)?);
        }
    }
    Ok(outcomes)
}

/// What the caller has seen.
#[derive(Debug, Serialize)]
struct Seen {
    offered_calls: usize,
    failed_calls: usize,
    /// Answered, and its end is not known: SIPp takes the 200 that comes again for that of its BYE.
    not_hung_up: usize,
    longest_gap_ms: f64,
    retransmitted_invites: usize,
    /// From the INVITE to the first 180 or 200, of calls begun around the accident and of all others.
    around_p50_ms: f64,
    around_p99_ms: f64,
    around_max_ms: f64,
    else_p50_ms: f64,
    else_p99_ms: f64,
    bindings_lost: usize,
}

fn accident(event: Event, rate: u32, transport: Transport, folder: &Path) -> Result<Seen> {
    let mut rig = TwoConcentrators::start("", folder)?;
    let mut callee = phone::ringing_callee(&rig.net.ua2, transport, RING_MS, folder)?;
    rig.wait_for_user("ua2@")?;
    let calls = rate * SECONDS;
    let ua1 = &rig.net.ua1;
    let mut caller = phone::talking_caller(ua1, transport, calls, rate, TALK_MS, folder)?;
    let begun = SystemTime::now();
    let victim = rig.owner_of_calls()?;
    thread::sleep(ACCIDENT.saturating_sub(begun.elapsed().unwrap_or_default()));
    let moment = SystemTime::now();
    event.happen(&mut rig, victim)?;
    let status = caller.wait(Duration::from_secs(u64::from(SECONDS) + 75))?;
    if !status.success() {
        eprintln!("  SIPp: {status}");
    }
    callee.stop()?;
    let survivor = match event {
        Event::Nothing | Event::KillNatsLeader => victim,
        Event::KillConcentrator
        | Event::StopConcentrator
        | Event::CutConcentrator
        | Event::DrainConcentrator => victim.other(),
    };
    let known = rig.users(survivor)?;
    let trace = folder.join("ua1/messages.txt");
    let trace = fs::read_to_string(&trace).with_context(|| trace.display().to_string())?;
    let calls_seen = sipp_trace::read(&trace);
    fs::remove_file(folder.join("ua1/messages.txt"))?;
    let mut seen = judge(&calls_seen, moment, calls as usize);
    let screen = fs::read_to_string(folder.join("ua1/sipp.log")).unwrap_or_default();
    let successful = successful(&screen).context("SIPp's last screen has no number of calls")?;
    seen.failed_calls = seen.offered_calls.saturating_sub(successful);
    seen.longest_gap_ms = longest_gap_ms(&calls_seen);
    seen.bindings_lost = usize::from(!known.iter().any(|user| user.starts_with("ua2@")));
    Ok(seen)
}

/// The number of `  Successful call        |        0                  |     1600`, on the last screen.
fn successful(screens: &str) -> Option<usize> {
    let mut lines = screens.lines().rev();
    let line = lines.find(|line| line.trim_start().starts_with("Successful call"))?;
    line.rsplit('|').next()?.trim().parse().ok()
}

fn judge(calls: &[Call], moment: SystemTime, offered: usize) -> Seen {
    let around = |call: &&Call| (-AROUND_S..AROUND_S).contains(&call.begun_after(moment));
    let delays = |calls: Vec<&Call>| {
        let mut delays: Vec<f64> = calls.iter().filter_map(|call| call.post_dial_ms).collect();
        delays.sort_by(f64::total_cmp);
        delays
    };
    let (near, far): (Vec<&Call>, Vec<&Call>) = calls.iter().partition(around);
    let (near, far) = (delays(near), delays(far));
    let answered = calls.iter().filter(|call| call.answered).count();
    let hung_up = calls
        .iter()
        .filter(|call| call.answered && call.hung_up)
        .count();
    Seen {
        offered_calls: offered,
        failed_calls: offered.saturating_sub(answered),
        not_hung_up: answered - hung_up,
        longest_gap_ms: 0.0,
        retransmitted_invites: calls.iter().map(|call| call.repeated as usize).sum(),
        around_p50_ms: percentile(&near, 50),
        around_p99_ms: percentile(&near, 99),
        around_max_ms: percentile(&near, 100),
        else_p50_ms: percentile(&far, 50),
        else_p99_ms: percentile(&far, 99),
        bindings_lost: 0,
    }
}

fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let at = (sorted.len() * percent / 100).min(last);
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// Between two moments at which any INVITE was answered for the first time.
fn longest_gap_ms(calls: &[Call]) -> f64 {
    let mut answers: BTreeMap<u64, ()> = BTreeMap::new();
    for call in calls {
        if let Some(at) = call.answered_at() {
            answers.insert((at * 1e6) as u64, ());
        }
    }
    let times: Vec<u64> = answers.into_keys().collect();
    let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
    // Where the clock of the trace begins anew, the two ends are far apart.
    gaps.filter(|gap| *gap < 120_000_000).max().unwrap_or(0) as f64 / 1e3
}

fn outcome(event: Event, rate: u32, transport: Transport, seen: &Seen) -> Result<Outcome> {
    let completed = (seen.offered_calls - seen.failed_calls) as u64;
    let duration = Duration::from_secs(u64::from(SECONDS));
    let conditions = Conditions::of(seen.offered_calls as u64, completed, duration, 0);
    let mut beside = serde_json::to_value(seen)?;
    beside["event"] = serde_json::to_value(event)?;
    beside["calls_per_s"] = json!(rate);
    beside["transport"] = json!(transport.to_string());
    Ok(Outcome {
        bench: "failover",
        unit: "failed_calls",
        ours: seen.failed_calls as f64,
        peer: None,
        peer_name: None,
        ratio: None,
        beside: beside.as_object().cloned().unwrap_or_default(),
        conditions,
    })
}

#[cfg(test)]
mod tests {
    use super::{longest_gap_ms, successful};
    use crate::bench::sipp_trace::Call;

    #[test]
    fn the_last_screen_counts() {
        let screens = "  Successful call        |        0                  |        7\n\
                       x\n  Successful call        |        1                  |     1600                 \n\
                         Failed call            |        0                  |        3\n";
        assert_eq!(successful(screens), Some(1600));
        assert_eq!(successful("nothing"), None);
    }

    #[test]
    fn no_calls_have_no_gap() {
        assert_eq!(
            longest_gap_ms(&[Call::default()]).to_bits(),
            0.0_f64.to_bits()
        );
    }
}
