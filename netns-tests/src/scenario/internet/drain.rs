//! An edge is asked to go: nothing gets lost.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use super::{PATIENCE, Rig};
use crate::capture::Capture;
use crate::frame::{Packet, Rtp};
use crate::phone::{self, Place, Transport};
use crate::topology::two_edges::{PHONE, SERVICE};
use crate::wait;

/// Of audio.
const SECONDS: u32 = 8;

/// An edge is drained by signal under load, by BIRD and by FRR, and comes back.
pub(crate) fn drain(folder: &Path) -> Result<String> {
    let mut rig = Rig::start(folder)?;
    let load = rig.load(Transport::Udp, 800, 100)?;
    std::thread::sleep(Duration::from_secs(2));
    let ingress = &rig.edges.ingresses[0].process;
    ingress.signal(Signal::SIGUSR1)?;
    let service = format!("{SERVICE}/32");
    // Asked to go elsewhere first, while its route still stands.
    wait::until("GRACEFUL_SHUTDOWN at t1", PATIENCE, || {
        let route = rig.speakers.route(&rig.net.t1, &service)?;
        Ok(route.contains("(65535,0)").then_some(()))
    })?;
    rig.wait_for_way(&rig.net.t1, Some("t2"))?;
    rig.wait_for_announcement(1, "drained")?;
    wait::until("t1 to know one way only", PATIENCE, || {
        let route = rig.speakers.route(&rig.net.t1, &service)?;
        Ok((!route.contains("(65535,0)")).then_some(()))
    })?;
    rig.judge(load)?;
    ensure!(rig.probe(1)?.0 == 2, "ua1 still reaches edge 1");
    rig.edges.ingresses[0].process.signal(Signal::SIGUSR2)?;
    rig.wait_for_way(&rig.net.t1, Some("edge"))?;

    rig.edges.ingresses[1].process.signal(Signal::SIGUSR1)?;
    wait::until("GRACEFUL_SHUTDOWN at t2, from FRR", PATIENCE, || {
        let route = rig.speakers.route(&rig.net.t2, &service)?;
        Ok(route.contains("(65535,0)").then_some(()))
    })?;
    rig.wait_for_way(&rig.net.t2, Some("t1"))?;
    rig.wait_for_announcement(2, "drained")?;
    let catchments = rig.catchments()?;
    ensure!(
        catchments == [1, 1, 1, 3, 3, 1],
        "without edge 2: {catchments:?}"
    );
    // The end: it withdraws first, and then it is gone with its rule.
    let status = rig.edges.ingresses[2].process.stop()?;
    ensure!(
        status.success(),
        "the ingress of edge 3 ended with {status}"
    );
    rig.wait_for_way(&rig.net.r3, Some("t2"))?;
    let rules = rig.net.edges[2].run("ip rule")?;
    ensure!(
        !rules.contains(&SERVICE.to_string()),
        "a rule is left: {rules}"
    );
    Ok(format!(
        "800 calls at 100 a second, 0 failed; without edge 2: {catchments:?}"
    ))
}

/// An edge is drained while a call's audio passes its relay: the call goes on there, and its BYE takes
/// the other edge.
pub(crate) fn drain_audio(folder: &Path) -> Result<String> {
    let mut rig = Rig::start(folder)?;
    let uas = &rig.net.uas;
    let near = Capture::start(&uas[0], "eth0", folder)?;
    let far = Capture::start(&uas[2], "eth0", folder)?;
    let place = Place::IPV4;
    let mut callee = phone::callee_at(&uas[2], place, Transport::Udp, SECONDS, folder)?;
    rig.wait_for_binding(&mut callee)?;
    let mut caller = phone::caller_at(&uas[0], place, Transport::Udp, SECONDS, folder)?;
    wait::until("two seconds of audio", PATIENCE, || {
        caller.check_alive()?;
        Ok((sent(&near.so_far()?).len() > 100).then_some(()))
    })?;
    let sessions = rig.edges.relays[0].gauge(&rig.net.edges[0], "sipcast_relay_sessions")?;
    ensure!(sessions == 1, "the relay of edge 1 has {sessions} sessions");
    rig.edges.ingresses[0].process.signal(Signal::SIGUSR1)?;
    rig.wait_for_way(&rig.net.t1, Some("t2"))?;
    rig.wait_for_announcement(1, "drained")?;
    let ended = caller.ended()?;
    ensure!(
        ended.is_none(),
        "the call was over before the edge was drained"
    );
    let status = caller.wait(Duration::from_secs(60))?;
    ensure!(status.success(), "the caller ended with {status}");
    callee.stop()?;
    rig.edges.check_alive()?;
    let (near, far) = (near.stop()?, far.stop()?);
    let mut figures = Vec::new();
    for (name, from, into) in [("ua1 to ua3", &near, &far), ("ua3 to ua1", &far, &near)] {
        let sent = sent(from);
        let arrived = received(into).intersection(&sent).count();
        ensure!(
            !sent.is_empty() && (sent.len() - arrived) * 1_000 <= sent.len(),
            "{name}: {arrived} of {} RTP packets arrived",
            sent.len()
        );
        figures.push(format!("{name}: {arrived} of {} RTP packets", sent.len()));
    }
    Ok(figures.join(", "))
}

fn sent(packets: &[Packet]) -> BTreeSet<Rtp> {
    let ours = packets.iter().filter(|packet| packet.source == PHONE);
    ours.filter_map(|packet| packet.udp()?.rtp()).collect()
}

fn received(packets: &[Packet]) -> BTreeSet<Rtp> {
    let theirs = packets.iter().filter(|packet| packet.destination == PHONE);
    theirs.filter_map(|packet| packet.udp()?.rtp()).collect()
}
