//! What calls notice of an accident to one of two concentrators, to an edge's ingress, to the NATS server that leads,
//! or to the links between them.
//!
//! One phone calls another at a constant rate for [`SECONDS`], each call with a ring and some talk, so
//! that at the moment of the accident there are calls in every state. The accident is that of the
//! concentrator which has the caller's calls, or of the caller's edge; where that withdraws its route, or its
//! neighbours notice that it is gone, the lab moves the route ([`crate::failures`]). A call has failed that SIPp
//! does not count as successful; the gap is the longest time without a first answer to any INVITE. Over TCP the
//! phones are those of [`crate::tcp_phone`], [`PAIRS`] pairs of them, since SIPp ends with its connection. No
//! peer: what others have published is in `docs/benchmarks.md`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::json;

use super::sipp_trace::{self, Call};
use super::{Conditions, Outcome};
use crate::failures::{Accident, STREAM, Way};
use crate::phone::{self, Transport};
use crate::tcp_phone::{Ended, Habits, Phones, callee_name};
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
/// Only these events, separated by commas, where it is set.
const EVENTS: &str = "SIPCAST_LAB_EVENTS";
/// Of phones over TCP.
const PAIRS: u32 = 20;

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Event {
    Nothing,
    KillConcentrator,
    StopConcentrator,
    CutConcentrator,
    DrainConcentrator,
    KillIngress,
    StopIngress,
    CutIngress,
    DrainIngress,
    KillNatsLeader,
    StopNatsLeader,
    CutNatsLeader,
    /// It hears nothing of the other concentrator.
    DeafToConcentrator,
    /// The other concentrator hears nothing of it.
    MuteToConcentrator,
    DeafToNats,
    MuteToNats,
}

impl Event {
    const ALL: [Self; 16] = [
        Self::Nothing,
        Self::KillConcentrator,
        Self::StopConcentrator,
        Self::CutConcentrator,
        Self::DrainConcentrator,
        Self::KillIngress,
        Self::StopIngress,
        Self::CutIngress,
        Self::DrainIngress,
        Self::KillNatsLeader,
        Self::StopNatsLeader,
        Self::CutNatsLeader,
        Self::DeafToConcentrator,
        Self::MuteToConcentrator,
        Self::DeafToNats,
        Self::MuteToNats,
    ];

    /// The accident to the concentrator that has the calls, to the caller's edge, to the leader.
    const fn accident(self, victim: Which, leader: usize) -> Option<Accident> {
        Some(match self {
            Self::Nothing => return None,
            Self::KillConcentrator => Accident::KillConcentrator(victim),
            Self::StopConcentrator => Accident::StopConcentrator(victim),
            Self::CutConcentrator => Accident::CutConcentrator(victim),
            Self::DrainConcentrator => Accident::DrainConcentrator(victim),
            Self::KillIngress => Accident::KillIngress(Which::First),
            Self::StopIngress => Accident::StopIngress(Which::First),
            Self::CutIngress => Accident::CutEdge(Which::First),
            Self::DrainIngress => Accident::DrainIngress(Which::First),
            Self::KillNatsLeader => Accident::KillNats(leader),
            Self::StopNatsLeader => Accident::StopNats(leader),
            Self::CutNatsLeader => Accident::CutNats(leader),
            Self::DeafToConcentrator => Accident::CutCore(victim, Way::Deaf),
            Self::MuteToConcentrator => Accident::CutCore(victim, Way::Mute),
            Self::DeafToNats => Accident::CutFromNats(victim, Way::Deaf),
            Self::MuteToNats => Accident::CutFromNats(victim, Way::Mute),
        })
    }

    fn happen(self, rig: &mut TwoConcentrators, victim: Which) -> Result<()> {
        let leader = rig.nats.leader_of(&rig.net.core, STREAM)?;
        match self.accident(victim, leader) {
            Some(accident) => accident.happen(rig),
            None => Ok(()),
        }
    }

    /// Who is asked afterwards what it knows.
    const fn survivor(self, victim: Which) -> Which {
        if matches!(
            self,
            Self::KillConcentrator
                | Self::StopConcentrator
                | Self::CutConcentrator
                | Self::DrainConcentrator
        ) {
            victim.other()
        } else {
            victim
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
    let chosen = std::env::var(EVENTS).ok();
    for event in Event::ALL {
        let name = serde_json::to_value(event)?;
        let name = name.as_str().unwrap_or_default();
        if chosen
            .as_ref()
            .is_some_and(|chosen| !chosen.split(',').any(|one| one == name))
        {
            continue;
        }
        for rate in rates {
            eprintln!("failover: {name} at {rate} calls/s over {transport}");
            let folder = folder.join(format!("{name}-{rate}-{transport}"));
            fs::create_dir_all(&folder)?;
            let folder = folder.canonicalize()?;
            let seen = match transport {
                Transport::Tcp => accident_over_tcp(event, *rate, &folder)?,
                Transport::Udp | Transport::Tls => accident(event, *rate, transport, &folder)?,
            };
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
    let known = rig.users(event.survivor(victim))?;
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

/// The same with phones that open another connection when theirs breaks.
fn accident_over_tcp(event: Event, rate: u32, folder: &Path) -> Result<Seen> {
    let mut rig = TwoConcentrators::start("", folder)?;
    let habits = Habits {
        first: 0,
        pairs: PAIRS,
        calls_per_s: rate,
        ring: Duration::from_millis(u64::from(RING_MS)),
        talk: Duration::from_millis(u64::from(TALK_MS)),
    };
    let mut phones = Phones::called(&rig.net.ua1, &rig.net.ua2, habits)?;
    for pair in 0..PAIRS {
        rig.wait_for_user(&format!("{}@", callee_name(pair)))?;
    }
    phones.call()?;
    let begun = SystemTime::now();
    let victim = rig.owner_of_calls()?;
    thread::sleep(ACCIDENT.saturating_sub(begun.elapsed().unwrap_or_default()));
    let moment = SystemTime::now();
    event.happen(&mut rig, victim)?;
    let whole = Duration::from_secs(u64::from(SECONDS));
    thread::sleep(whole.saturating_sub(begun.elapsed().unwrap_or_default()));
    let heard = phones.finish()?;
    let mut reasons: BTreeMap<&str, u32> = BTreeMap::new();
    for why in heard.ended.iter().filter_map(|call| call.failed.as_deref()) {
        *reasons.entry(why).or_default() += 1;
    }
    eprintln!(
        "  {} new connections; failed: {reasons:?}",
        heard.reconnected
    );
    let known = rig.users(event.survivor(victim))?;
    let lost = (0..PAIRS).map(callee_name).filter(|user| {
        let user = format!("{user}@");
        !known.iter().any(|known| known.starts_with(&user))
    });
    let mut seen = judge_tcp(&heard.ended, moment);
    seen.offered_calls = heard.offered as usize;
    seen.retransmitted_invites = heard.repeated as usize;
    seen.bindings_lost = lost.count();
    Ok(seen)
}

fn judge_tcp(calls: &[Ended], moment: SystemTime) -> Seen {
    let after = |time: SystemTime| match time.duration_since(moment) {
        Ok(after) => after.as_secs_f64(),
        Err(before) => -before.duration().as_secs_f64(),
    };
    let around = |call: &&Ended| (-AROUND_S..AROUND_S).contains(&after(call.begun));
    let delays = |calls: Vec<&Ended>| {
        let delays = calls.iter().filter_map(|call| call.post_dial);
        let mut delays: Vec<f64> = delays.map(|delay| delay.as_secs_f64() * 1e3).collect();
        delays.sort_by(f64::total_cmp);
        delays
    };
    let (near, far): (Vec<&Ended>, Vec<&Ended>) = calls.iter().partition(around);
    let (near, far) = (delays(near), delays(far));
    let answers = calls
        .iter()
        .filter_map(|call| Some(call.begun + call.post_dial?));
    let mut answers: Vec<f64> = answers.map(after).collect();
    answers.sort_by(f64::total_cmp);
    let gaps = answers.windows(2).map(|pair| pair[1] - pair[0]);
    let failed = calls.iter().filter_map(|call| call.failed.as_deref());
    Seen {
        offered_calls: calls.len(),
        failed_calls: failed.clone().count(),
        not_hung_up: failed.filter(|why| why.starts_with("BYE")).count(),
        longest_gap_ms: gaps.fold(0.0, f64::max) * 1e3,
        retransmitted_invites: 0,
        around_p50_ms: percentile(&near, 50),
        around_p99_ms: percentile(&near, 99),
        around_max_ms: percentile(&near, 100),
        else_p50_ms: percentile(&far, 50),
        else_p99_ms: percentile(&far, 99),
        bindings_lost: 0,
    }
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
