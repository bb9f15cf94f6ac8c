//! Two concentrators whose link is cut while phones call over TCP, some of whose connections are at the other one
//! than their peers'. Neither hears the other, or one is deaf to the other, or mute; both have NATS. The link goes
//! over NATS then, and no call fails; when the cut is repaired it goes directly again. Without the detour calls
//! do fail, so it is the detour that saves them. The servers have the file of `configs/`, so what a concentrator may do
//! there suffices.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::failures::{Accident, Way};
use crate::nats::Access;
use crate::tcp_phone::{Habits, Heard, Phones, callee_name};
use crate::two_concentrators::{Setup, TwoConcentrators, Which};
use crate::wait;

const PATIENCE: Duration = Duration::from_secs(40);
/// So many that some of them are parted.
const PAIRS: u32 = 20;
const HABITS: Habits = Habits {
    first: 0,
    pairs: PAIRS,
    calls_per_s: 20,
    ring: Duration::from_millis(300),
    talk: Duration::from_millis(700),
};
/// Messages that each has sent on its phones' connections for the other one.
const CARRIED: &str = "sent_for_peer";
/// Of calls, before the cut and with it.
const CALLS: Duration = Duration::from_secs(3);

pub(super) fn run(folder: &Path) -> Result<String> {
    let mut figures = Vec::new();
    for (name, way) in [
        ("deaf", Way::Deaf),
        ("mute", Way::Mute),
        ("both", Way::Both),
    ] {
        let figure = detoured(&folder.join(name), way).with_context(|| name.to_owned())?;
        figures.push(format!("{name}: {figure}"));
    }
    let figure = without(&folder.join("without"));
    figures.push(figure.context("without the detour")?);
    Ok(figures.join("; "))
}

fn detoured(folder: &Path, way: Way) -> Result<String> {
    let mut rig = started("", folder)?;
    let phones = calling(&rig)?;
    let cut = Accident::CutCore(Which::First, way);
    cut.happen(&mut rig)?;
    wait_for_way(&rig, "nats")?;
    let before = rig.core_link_events(CARRIED)?;
    thread::sleep(CALLS);
    let over_nats = rig.core_link_events(CARRIED)? - before;
    ensure!(over_nats > 0, "no message was for the other's phones");
    cut.repair(&mut rig)?;
    wait_for_way(&rig, "direct")?;
    let before = rig.core_link_events(CARRIED)?;
    thread::sleep(CALLS);
    ensure!(
        rig.core_link_events(CARRIED)? > before,
        "none was after the repair"
    );
    let heard = phones.finish()?;
    let failed = failures(&heard);
    ensure!(failed.is_empty(), "of {} calls {failed:?}", heard.offered);
    ensure!(
        heard.reconnected == 0,
        "{} phones have lost their connections",
        heard.reconnected
    );
    Ok(format!(
        "{} calls, 0 failed, {over_nats} messages for the other's phones while it was cut",
        heard.offered
    ))
}

fn without(folder: &Path) -> Result<String> {
    let mut rig = started("detour = false\n", folder)?;
    let phones = calling(&rig)?;
    Accident::CutCore(Which::First, Way::Deaf).happen(&mut rig)?;
    thread::sleep(CALLS);
    let heard = phones.finish()?;
    let failed = failures(&heard).len();
    ensure!(failed > 0, "nothing fails, so nothing was shown");
    Ok(format!(
        "without the detour {failed} of {} calls fail",
        heard.offered
    ))
}

fn started(core_link: &str, folder: &Path) -> Result<TwoConcentrators> {
    std::fs::create_dir_all(folder)?;
    let setup = Setup {
        core_link,
        nats: Access::Guarded,
        ..Setup::default()
    };
    TwoConcentrators::start_with(&setup, &folder.canonicalize()?)
}

fn calling(rig: &TwoConcentrators) -> Result<Phones> {
    wait_for_way(rig, "direct")?;
    let mut phones = Phones::called(&rig.net.ua1, &rig.net.ua2, HABITS)?;
    for pair in 0..PAIRS {
        rig.wait_for_user(&format!("{}@", callee_name(pair)))?;
    }
    phones.call()?;
    thread::sleep(CALLS);
    ensure!(
        rig.core_link_events(CARRIED)? > 0,
        "no pair of phones is parted"
    );
    Ok(phones)
}

fn failures(heard: &Heard) -> Vec<&str> {
    let failed = heard.ended.iter().filter_map(|call| call.failed.as_deref());
    failed.collect()
}

fn wait_for_way(rig: &TwoConcentrators, by: &str) -> Result<()> {
    for which in [Which::First, Which::Second] {
        let mut last = Value::Null;
        wait::until("the link to go its way", PATIENCE, || {
            last = rig.status(which)?["core_link"].clone();
            let way = last.pointer("/peers/0/by").and_then(Value::as_str);
            Ok((way == Some(by)).then_some(()))
        })
        .with_context(|| format!("{which:?} does not go by {by}: {last}"))?;
    }
    Ok(())
}
