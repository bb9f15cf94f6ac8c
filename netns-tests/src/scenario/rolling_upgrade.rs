//! One concentrator after the other is drained, ended and started again, as in an upgrade, while calls go on: SIPp
//! over UDP, phones that open another connection over TCP. A drained one gets nothing new, its calls end, its
//! phones on TCP are asked to go; one that returns is healthy only when it has all registrations.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::phone;
use crate::tcp_phone::{Habits, Phones, callee_name};
use crate::two_concentrators::{Setup, TwoConcentrators, Which};
use crate::wait;

const PATIENCE: Duration = Duration::from_secs(60);
const RATE: u32 = 40;
/// Of calls: for two of these.
const SECONDS: u32 = 60;
const RING_MS: u32 = 500;
const TALK_MS: u32 = 1_500;
const HABITS: Habits = Habits {
    first: 0,
    pairs: 8,
    calls_per_s: 8,
    ring: Duration::from_millis(500),
    talk: Duration::from_millis(1_500),
};
/// Of both concentrators' `[sip]`.
const GRACE: &str = "drain_grace_s = 3\n";

pub(super) fn run(folder: &Path) -> Result<String> {
    let setup = Setup {
        sip: GRACE,
        ..Setup::default()
    };
    let mut rig = TwoConcentrators::start_with(&setup, folder)?;
    let (ua1, ua2) = (&rig.net.ua1, &rig.net.ua2);
    let mut callee = phone::lasting_callee(ua2, RING_MS, 5_000, folder)?;
    let mut phones = Phones::called(ua1, ua2, HABITS)?;
    rig.wait_for_user("ua2@")?;
    for pair in 0..HABITS.pairs {
        rig.wait_for_user(&format!("{}@", callee_name(pair)))?;
    }
    let calls = RATE * SECONDS;
    let mut caller = phone::lasting_caller(ua1, calls, RATE, TALK_MS, folder)?;
    phones.call()?;
    rig.owner_of_calls()?;
    let mut closed = 0;
    for which in [Which::First, Which::Second] {
        closed += upgrade(&mut rig, which).with_context(|| format!("{which:?}"))?;
        caller
            .check_alive()
            .context("the upgrade took longer than the calls")?;
    }
    let ended = caller.wait(PATIENCE * 2)?;
    let complaints = std::fs::read_to_string(folder.join("ua1/errors.txt")).unwrap_or_default();
    let complaints: String = complaints.chars().take(2_000).collect();
    ensure!(
        ended.success(),
        "of {calls} calls some failed: {complaints}"
    );
    let heard = phones.finish()?;
    let failed = heard.ended.iter().filter_map(|call| call.failed.as_deref());
    let failed: Vec<&str> = failed.collect();
    ensure!(
        closed > 0 && heard.reconnected > 0,
        "draining closed {closed} connections, {} were opened again",
        heard.reconnected
    );
    callee.stop()?;
    Ok(format!(
        "{calls} calls over UDP at {RATE} a second, 0 failed; {} over TCP, {} failed {failed:?}; {closed} connections \
         closed by draining, {} opened again",
        heard.offered,
        failed.len(),
        heard.reconnected
    ))
}

/// Gives how many connections draining has closed.
fn upgrade(rig: &mut TwoConcentrators, which: Which) -> Result<u64> {
    rig.program(which).process.signal(Signal::SIGUSR1)?;
    rig.wait_for_shares(1)?;
    let mut last = (0, 0);
    wait::until("it to have no calls and no connections", PATIENCE, || {
        let calls = sample(
            rig,
            which,
            "sipcast_concentrator_state{kind=\"relayed_calls\"}",
        )?;
        let open = sample(
            rig,
            which,
            "sipcast_concentrator_connections{transport=\"tcp\"}",
        )?;
        last = (calls, open);
        Ok((last == (0, 0)).then_some(()))
    })
    .with_context(|| format!("(calls, connections) are {last:?}"))?;
    let closed = sample(
        rig,
        which,
        "sipcast_concentrator_connections_closed_total{reason=\"drained\"}",
    )?;
    let ended = rig.program(which).process.stop()?;
    ensure!(ended.success(), "it ended with {ended}");
    rig.start_concentrator(which)?;
    match which {
        Which::First => {
            let concentrator = &mut rig.service.concentrator;
            concentrator.wait_until_healthy(&rig.net.concentrator)?;
        }
        Which::Second => rig.other.wait_until_healthy(&rig.second)?,
    }
    let status = rig.status(which)?;
    ensure!(
        status.pointer("/cluster/complete") == Some(&Value::Bool(true)),
        "it serves and has not all: {}",
        status["cluster"]
    );
    rig.wait_until_well()?;
    Ok(closed)
}

fn sample(rig: &TwoConcentrators, which: Which, name: &str) -> Result<u64> {
    let metrics = rig.metrics(which)?;
    let found = metrics.iter().find(|(sample, _)| sample == name);
    Ok(found.map_or(0, |(_, value)| *value as u64))
}
