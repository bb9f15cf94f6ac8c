//! The relay of the caller's edge is killed, its control link is cut, and the concentrator is killed,
//! each before a call and in the middle of one. A call that begins then takes the other relay without
//! being delayed; a call in progress keeps its media where its relay lives, and its end releases them.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::call::{self, CallRecord, Middle, Plan};
use crate::phone::{Script, Transport};
use crate::service::{FOLDER, Service};
use crate::topology::two_edges::TwoEdges;
use crate::verdict::{self, Direction};
use crate::wait;

const SECONDS: u32 = 8;
/// The share of RTP packets that must arrive.
const ARRIVED: f64 = 0.999;
/// A phone that rings this much later than with its own relay has waited for a relay that is gone.
const LATER_MS: f64 = 200.0;
/// So that the cookies of a concentrator are good after its restart.
const KEY: &str = "\n[cookie]\nkey_file = \"cookie.key\"\n";
const CUT: &str = "add table inet cut
add chain inet cut out { type filter hook output priority 0; }
add chain inet cut in { type filter hook input priority 0; }
add rule inet cut out tcp dport 7060 drop
add rule inet cut in tcp sport 7060 drop";
const MEND: &str = "delete table inet cut";

pub(super) fn run(folder: &Path) -> Result<String> {
    let net = TwoEdges::build()?;
    std::fs::create_dir_all(folder.join(FOLDER))?;
    std::fs::write(folder.join(FOLDER).join("cookie.key"), [7; 32])?;
    let mut lab = Lab {
        service: Service::start_with(&net, folder, KEY)?,
        net: &net,
        folder,
    };
    let usual = lab.call("usual", Middle::Nothing)?;
    let usual_ms = judge(&usual, 0)?;

    lab.service.relay1.process.kill()?;
    let killed = lab.call("killed-before", Middle::Break(start_relay1_again))?;
    let killed_ms = judge(&killed, 1)?;

    let record = lab.call("killed-in-mid-call", Middle::Break(kill_relay1))?;
    // Its audio is gone with the relay, until a re-INVITE; all else must go on.
    ensure!(
        record.caller.success(),
        "the call failed: {}",
        record.complaints
    );

    let quiet_before = lab.event("relay_quiet")?;
    net.edge1.nft(CUT)?;
    lab.wait_until_quiet(quiet_before)?;
    let cut = lab.call("cut-before", Middle::Break(|net, _| mend(net)))?;
    let cut_ms = judge(&cut, 1)?;

    lab.wait_until_leases()?;
    judge(
        &lab.call("cut-in-mid-call", Middle::Break(cut_for_three_seconds))?,
        0,
    )?;

    lab.wait_until_leases()?;
    let record = lab.call("concentrator-killed", Middle::Break(crash_concentrator))?;
    judge(&record, 0)?;
    let released = lab.event("media_released_by_cookie")?;
    ensure!(
        released >= 1.0,
        "the session was not released by the cookie of the BYE"
    );

    for later in [killed_ms, cut_ms] {
        ensure!(
            later <= usual_ms + LATER_MS,
            "post-dial delay {later:.1} ms instead of {usual_ms:.1} ms"
        );
    }
    Ok(format!(
        "post-dial delay {usual_ms:.1} ms; relay killed {killed_ms:.1} ms, link cut {cut_ms:.1} ms; \
         media went on over a cut link and a killed concentrator"
    ))
}

struct Lab<'a> {
    service: Service,
    net: &'a TwoEdges,
    folder: &'a Path,
}

impl Lab<'_> {
    fn call(&mut self, name: &str, middle: Middle) -> Result<CallRecord> {
        let plan = Plan {
            transport: Transport::Udp,
            script: Script::Plain,
            seconds: SECONDS,
            padding: 0,
            middle,
        };
        let folder = self.folder.join(name);
        call::place(self.net, &mut self.service, plan, &folder, &|_| {})
            .with_context(|| name.to_owned())
    }

    fn event(&self, name: &str) -> Result<f64> {
        let concentrator = &self.service.concentrator;
        let name = format!("\"{name}\"");
        let metrics = concentrator.metrics(&self.net.concentrator)?;
        let sample = metrics.iter().find(|(sample, _)| sample.contains(&name));
        Ok(sample.map_or(0.0, |(_, value)| *value))
    }

    /// The concentrator has noticed that relay 1 says nothing; its link may still be up.
    fn wait_until_quiet(&self, before: f64) -> Result<()> {
        wait::until("relay 1 to be quiet", Duration::from_secs(10), || {
            Ok((self.event("relay_quiet")? > before).then_some(()))
        })
    }

    fn wait_until_leases(&self) -> Result<()> {
        wait::until(
            "both relays to have leases",
            Duration::from_secs(15),
            || {
                let status = self.service.concentrator.status(&self.net.concentrator)?;
                let relays = status.get("relays").and_then(|relays| relays.as_array());
                let ready = |relay: &serde_json::Value| {
                    relay["up"] == true
                        && relay["quiet"] == false
                        && relay["leases"].as_u64() > Some(0)
                };
                Ok(relays
                    .is_some_and(|relays| relays.len() == 2 && relays.iter().all(ready))
                    .then_some(()))
            },
        )
    }
}

/// All audio went through the relay of one edge and of no other. Gives the post-dial delay.
fn judge(record: &CallRecord, edge: usize) -> Result<f64> {
    ensure!(
        record.caller.success(),
        "the call failed: {}",
        record.complaints
    );
    let figures = verdict::figures(record);
    for way in [&figures.to_callee, &figures.to_caller] {
        let Direction {
            sent,
            received,
            relayed,
            ..
        } = way;
        ensure!(
            relayed[1 - edge] == 0 && relayed[edge] > 0,
            "relayed by edge 1: {}, by edge 2: {}",
            relayed[0],
            relayed[1]
        );
        ensure!(
            *received as f64 >= ARRIVED * *sent as f64,
            "{received} of {sent} RTP packets arrived"
        );
    }
    let after = record.after;
    ensure!(
        (after.calls, after.sessions1, after.sessions2) == (0, 0, 0),
        "after the call: {after}"
    );
    figures.post_dial_ms.context("the phone did not ring")
}

fn start_relay1_again(net: &TwoEdges, service: &mut Service) -> Result<()> {
    service.start_relay1(net)
}

fn kill_relay1(net: &TwoEdges, service: &mut Service) -> Result<()> {
    service.relay1.process.kill()?;
    service.start_relay1(net)
}

fn mend(net: &TwoEdges) -> Result<()> {
    net.edge1.nft(MEND)
}

/// Longer than either end waits for a heartbeat: both give the link up.
fn cut_for_three_seconds(net: &TwoEdges, _: &mut Service) -> Result<()> {
    net.edge1.nft(CUT)?;
    thread::sleep(Duration::from_secs(3));
    mend(net)
}

fn crash_concentrator(net: &TwoEdges, service: &mut Service) -> Result<()> {
    service.crash_and_start_concentrator(net)
}
