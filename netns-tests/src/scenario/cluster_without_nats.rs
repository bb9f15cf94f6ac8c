//! Two concentrators with a link between them, and NATS is away for both of them, or for one that cannot say so or
//! does not hear: phones on TCP register meanwhile, and whoever is called, by a phone that reaches the other
//! concentrator, is found there. When NATS is back, all that was registered is in the bucket.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::failures::{Accident, STREAM, Way};
use crate::tcp_phone::{Habits, Phones, callee_name};
use crate::two_concentrators::{TwoConcentrators, Which};
use crate::wait;

const PATIENCE: Duration = Duration::from_secs(40);
/// So many that some of them are parted.
const PAIRS: u32 = 10;
const HABITS: Habits = Habits {
    first: 0,
    pairs: PAIRS,
    calls_per_s: 20,
    ring: Duration::from_millis(100),
    talk: Duration::from_millis(300),
};
/// Ways in which NATS is away.
const ROUNDS: usize = 4;
/// Of calls.
const CALLS: Duration = Duration::from_secs(2);
/// Less than it takes to notice that NATS is silent.
const AT_ONCE: Duration = Duration::from_millis(1_500);

pub(super) fn run(folder: &Path) -> Result<String> {
    let mut rig = TwoConcentrators::start("", &folder.canonicalize()?)?;
    let mut figures = Vec::new();
    let ways = [("deaf", Way::Deaf), ("mute", Way::Mute), ("cut", Way::Both)];
    for (round, (name, way)) in (0..).zip(ways) {
        let cut = Accident::CutFromNats(Which::First, way);
        cut.happen(&mut rig)?;
        let calls = registered_and_called(&rig, round).with_context(|| name.to_owned())?;
        cut.repair(&mut rig)?;
        wait_for_state(&rig, "connected")?;
        figures.push(format!("{name}: {calls}"));
    }
    rig.nats.kill_all()?;
    wait_for_state(&rig, "degraded")?;
    let calls = registered_and_called(&rig, 3).context("without any NATS")?;
    figures.push(format!("without any NATS: {calls}"));
    rig.nats.start_missing(&rig.net.core)?;
    wait_for_state(&rig, "connected")?;
    let told = rig.core_link_events("registration_heard")?;
    wait::until("all registrations in the bucket", PATIENCE, || {
        let subjects = rig.nats.subjects(&rig.net.core, STREAM)?;
        let bindings = subjects.iter().filter(|subject| subject.contains(".b."));
        Ok((bindings.count() >= ROUNDS * 2 * PAIRS as usize).then_some(()))
    })?;
    Ok(format!(
        "{}; {told} registrations told directly",
        figures.join(", ")
    ))
}

/// Phones that come anew register and are called, all of them; gives how many calls there were.
fn registered_and_called(rig: &TwoConcentrators, round: u32) -> Result<String> {
    let habits = Habits {
        first: round * PAIRS,
        ..HABITS
    };
    let mut phones = Phones::called(&rig.net.ua1, &rig.net.ua2, habits)?;
    for which in [Which::First, Which::Second] {
        wait::until("the phones to be known there", AT_ONCE, || {
            let users = rig.users(which)?;
            let known = |pair| {
                let name = format!("{}@", callee_name(pair));
                users.iter().any(|user| user.starts_with(&name))
            };
            Ok(habits.numbers().all(known).then_some(()))
        })
        .with_context(|| format!("{which:?}"))?;
    }
    phones.call()?;
    thread::sleep(CALLS);
    let heard = phones.finish()?;
    let failed: Vec<&str> = heard
        .ended
        .iter()
        .filter_map(|call| call.failed.as_deref())
        .collect();
    ensure!(failed.is_empty(), "of {} calls {failed:?}", heard.offered);
    Ok(format!("{} calls, 0 failed", heard.offered))
}

fn wait_for_state(rig: &TwoConcentrators, state: &str) -> Result<()> {
    for which in [Which::First, Which::Second] {
        wait::until("the state of the cluster", PATIENCE, || {
            Ok((rig.status(which)?["cluster"]["state"] == state).then_some(()))
        })
        .with_context(|| format!("{which:?} is not {state}"))?;
    }
    Ok(())
}
