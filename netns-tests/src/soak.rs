//! `sipcast-lab soak`: calls over UDP and TCP and registrations, for as long as one likes, while one accident
//! after another happens to the rig of two concentrators and three NATS servers; and an account of it.
//!
//! * UDP: SIPp calls SIPp, which registers every five seconds. TCP: phones of [`crate::tcp_phone`].
//! * Accidents come one at a time, drawn from a seed that is printed, the next when all is well again.
//! * A call that fails must be explained: an accident that the call's life touched, and of a kind that such calls may
//!   notice ([`explained`]). So a seed does not repeat what happens, only in which order.
//! * At the end every binding that was acknowledged must be at both concentrators, and there must be no session, call
//!   or open file more than before.
//!
//! `soak/load.rs` has the load, `soak/account.rs` the account, [`crate::failures`] the accidents.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};

use crate::failures::{Accident, Way};
use crate::link::SplitMix;
use crate::two_concentrators::{Setup, TwoConcentrators, Which};

mod account;
mod inventory;
mod load;

use account::Account;
use inventory::Inventory;
use load::Load;

/// Sections of both concentrators. Registrations outlive the run, connections of phones that are no more
/// do not.
const SETTINGS: &str = "[registrar]\nping_interval_s = 0\nmax_expires_s = 90000\n";
const SIP: &str = "tcp_idle_timeout_s = 20\n";
/// How long a thing stays broken, at least and at most.
const BROKEN_MS: std::ops::Range<u64> = 1_000..6_000;
/// Nothing happens for so long after all is well again.
const QUIET: Duration = Duration::from_secs(3);
/// No accident begins so shortly before the last call.
const LAST: Duration = Duration::from_secs(15);

/// What is to be done.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// How long calls are offered, in hours
    #[arg(long, conflicts_with = "minutes")]
    hours: Option<f64>,
    /// The same in minutes
    #[arg(long)]
    minutes: Option<f64>,
    /// Repeats the order of the accidents of another run
    #[arg(long)]
    seed: Option<u64>,
    /// Calls a second over UDP
    #[arg(long, default_value_t = 25)]
    calls_per_s: u32,
    /// Calls a second over TCP
    #[arg(long, default_value_t = 5)]
    tcp_calls_per_s: u32,
    /// Only accidents whose name begins so, as `cut-concentrator` or `kill-nats0`
    #[arg(long)]
    only: Option<String>,
}

/// The same, decided.
#[derive(Debug, Clone)]
struct Plan {
    seconds: u32,
    seed: u64,
    calls_per_s: u32,
    tcp_calls_per_s: u32,
    accidents: Vec<Accident>,
}

/// Something that has happened.
#[derive(Debug, Clone, Copy)]
struct Happened {
    what: Accident,
    at: SystemTime,
    /// When all was well again.
    well: SystemTime,
}

/// Runs one, prints its account and fails where it must be 0 and is not.
pub(crate) fn run(options: &Options, out: &Path) -> Result<()> {
    let minutes = options.minutes.or_else(|| Some(options.hours? * 60.0));
    let minutes = minutes.context("how long? --hours or --minutes")?;
    ensure!(
        (0.5..=24.0 * 60.0).contains(&minutes),
        "half a minute to a day, not {minutes} minutes"
    );
    let mut accidents = every_accident();
    if let Some(only) = &options.only {
        accidents.retain(|accident| accident.to_string().starts_with(only));
    }
    ensure!(!accidents.is_empty(), "there is no such accident");
    let plan = Plan {
        seconds: (minutes * 60.0) as u32,
        seed: options.seed.unwrap_or_else(any_seed),
        calls_per_s: options.calls_per_s.clamp(1, 200),
        tcp_calls_per_s: options.tcp_calls_per_s.clamp(1, 100),
        accidents,
    };
    let folder = out.join("soak");
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(&folder)?;
    let account = soak(&plan, &folder.canonicalize()?)?;
    print!("{account}");
    println!("{}", serde_json::to_string(&account)?);
    account.verdict()
}

/// Two minutes of it. How many calls an accident costs depends on how busy the machine is on which the tests run:
/// that is told here and judged by [`run`] only.
pub(crate) fn scenario(folder: &Path) -> Result<String> {
    let plan = Plan {
        seconds: 120,
        seed: any_seed(),
        calls_per_s: 20,
        tcp_calls_per_s: 5,
        accidents: every_accident(),
    };
    let account = soak(&plan, folder)?;
    std::fs::write(folder.join("account.txt"), account.to_string())?;
    account.nothing_is_lost()?;
    Ok(account.summary())
}

fn any_seed() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    SplitMix(now.unwrap_or_default().as_nanos() as u64).next() % 1_000_000
}

fn soak(plan: &Plan, folder: &Path) -> Result<Account> {
    eprintln!("soak: {} s, seed {}", plan.seconds, plan.seed);
    let setup = Setup {
        more: SETTINGS,
        sip: SIP,
        ..Setup::default()
    };
    let mut rig = TwoConcentrators::start_with(&setup, folder)?;
    rig.wait_until_well()?;
    let before = Inventory::of_idle(&mut rig)?;
    let mut load = Load::start(&rig, plan, folder)?;
    let happened = accidents(&mut rig, &mut load, plan)?;
    let calls = load.finish()?;
    let (bindings, after) = (
        load::bindings_lost(&rig, &calls.acknowledged)?,
        Inventory::when_idle(&mut rig, &before)?,
    );
    Ok(Account::of(
        plan,
        &happened,
        calls,
        bindings,
        (&before, &after),
    ))
}

/// One after the other, until the load is about to end.
fn accidents(rig: &mut TwoConcentrators, load: &mut Load, plan: &Plan) -> Result<Vec<Happened>> {
    let mut random = SplitMix(plan.seed);
    let (start, mut happened) = (Instant::now(), Vec::new());
    let end = start + Duration::from_secs(u64::from(plan.seconds)).saturating_sub(LAST);
    let mut all = Bag::of(&plan.accidents);
    std::thread::sleep(QUIET);
    while Instant::now() < end {
        let what = all.draw(&mut random);
        let broken = random.next() % (BROKEN_MS.end - BROKEN_MS.start) + BROKEN_MS.start;
        let (at, since) = (SystemTime::now(), Instant::now());
        let name = what.to_string();
        what.happen(rig).with_context(|| name.clone())?;
        std::thread::sleep(Duration::from_millis(broken));
        what.repair(rig)
            .with_context(|| format!("repairing {name}"))?;
        let repaired = since.elapsed();
        rig.wait_until_well()
            .with_context(|| format!("after {name}"))?;
        load.wait_until_well(rig)
            .with_context(|| format!("after {name}"))?;
        let well = SystemTime::now();
        eprintln!(
            "[{:>5} s] {name}: repaired after {:.1} s, well after {:.1} s; {}",
            start.elapsed().as_secs(),
            repaired.as_secs_f64(),
            since.elapsed().as_secs_f64(),
            load.so_far()?
        );
        happened.push(Happened { what, at, well });
        std::thread::sleep(QUIET);
    }
    Ok(happened)
}

/// All accidents, each drawn once before any comes again.
#[derive(Debug)]
struct Bag<'a> {
    all: &'a [Accident],
    left: Vec<Accident>,
}

impl<'a> Bag<'a> {
    const fn of(all: &'a [Accident]) -> Self {
        Self {
            all,
            left: Vec::new(),
        }
    }

    fn draw(&mut self, random: &mut SplitMix) -> Accident {
        if self.left.is_empty() {
            self.left = self.all.to_vec();
        }
        let place = random.next() as usize % self.left.len();
        self.left.swap_remove(place)
    }
}

fn every_accident() -> Vec<Accident> {
    let both = [Which::First, Which::Second];
    let ways = [Way::Both, Way::Deaf, Way::Mute];
    let mut all = Vec::new();
    for which in both {
        all.extend([
            Accident::KillConcentrator(which),
            Accident::StopConcentrator(which),
            Accident::CutConcentrator(which),
            Accident::DrainConcentrator(which),
            Accident::KillIngress(which),
            Accident::StopIngress(which),
            Accident::CutEdge(which),
            Accident::DrainIngress(which),
            Accident::KillRelay(which),
            Accident::StopRelay(which),
            Accident::RebindNat(which),
            Accident::FlipRoute(which),
        ]);
        for way in ways {
            all.extend([
                Accident::CutCore(which, way),
                Accident::CutFromNats(which, way),
            ]);
        }
    }
    for server in 0..3 {
        all.extend([
            Accident::KillNats(server),
            Accident::StopNats(server),
            Accident::CutNats(server),
        ]);
    }
    all
}

/// True where an accident of this kind may make a call fail: media that were lost with their relay, a phone that
/// nobody can reach because its NAT has forgotten it.
const fn explained(what: Accident) -> bool {
    match what {
        Accident::KillRelay(_)
        | Accident::StopRelay(_)
        | Accident::CutEdge(_)
        | Accident::RebindNat(_) => true,
        Accident::KillConcentrator(_)
        | Accident::StopConcentrator(_)
        | Accident::CutConcentrator(_)
        | Accident::DrainConcentrator(_)
        | Accident::KillIngress(_)
        | Accident::StopIngress(_)
        | Accident::DrainIngress(_)
        | Accident::KillNats(_)
        | Accident::StopNats(_)
        | Accident::CutNats(_)
        | Accident::CutFromNats(..)
        | Accident::CutCore(..)
        | Accident::FlipRoute(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_draws_the_same_accidents_each_once() {
        let drawn = |seed| {
            let all = every_accident();
            let (mut bag, mut random) = (Bag::of(&all), SplitMix(seed));
            let names = (0..all.len()).map(|_| bag.draw(&mut random).to_string());
            names.collect::<Vec<_>>()
        };
        assert_eq!(drawn(7), drawn(7));
        assert_ne!(drawn(7), drawn(8));
        let mut once = drawn(7);
        once.sort();
        once.dedup();
        assert_eq!(once.len(), every_accident().len());
    }

    #[test]
    fn what_calls_may_notice() {
        let first = Which::First;
        assert!(explained(Accident::KillRelay(first)));
        assert!(!explained(Accident::KillConcentrator(first)));
        assert!(!explained(Accident::CutCore(first, Way::Deaf)));
    }
}
