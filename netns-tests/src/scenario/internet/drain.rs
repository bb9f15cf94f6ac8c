//! An edge is asked to go: nothing gets lost.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use super::{PATIENCE, Rig};
use crate::capture::Capture;
use crate::frame::{Packet, Rtp};
use crate::phone::{self, Place, Transport};
use crate::process::Process;
use crate::topology::internet::address_of;
use crate::topology::two_edges::SERVICE;
use crate::wait;

/// Of audio.
const SECONDS: u32 = 12;

/// An edge is drained at 100 calls a second. Beside them one call's audio passes its relay, and goes on
/// there, and another one's passes that of another edge.
pub(crate) fn drain(folder: &Path) -> Result<String> {
    let mut rig = Rig::start(folder)?;
    let at_drained = Talk::start(&rig, [2, 5])?;
    let elsewhere = Talk::start(&rig, [6, 4])?;
    for relay in [0, 1] {
        let edge = &rig.net.edges[relay];
        let sessions = rig.edges.relays[relay].gauge(edge, "sipcast_relay_sessions")?;
        ensure!(sessions == 1, "{} has {sessions} sessions", edge.name());
    }
    let figures = under_load(&mut rig, Transport::Udp, 800, 100)?;
    let mut talks = [at_drained, elsewhere];
    for talk in &mut talks {
        let ended = talk.caller.ended()?;
        ensure!(
            ended.is_none(),
            "a call was over before the edge was drained"
        );
    }
    let [at_drained, elsewhere] = talks;
    Ok(format!(
        "{figures}; RTP through the drained edge: {}; through another: {}",
        at_drained.judge()?,
        elsewhere.judge()?
    ))
}

pub(crate) fn drain_tcp(folder: &Path) -> Result<String> {
    under_load(&mut Rig::start(folder)?, Transport::Tcp, 300, 50)
}

pub(crate) fn drain_tls(folder: &Path) -> Result<String> {
    under_load(&mut Rig::start(folder)?, Transport::Tls, 300, 50)
}

/// Edge 1, which the callers reach, is drained after two seconds, and comes back.
fn under_load(rig: &mut Rig, transport: Transport, calls: u32, rate: u32) -> Result<String> {
    let load = rig.load(transport, calls, rate)?;
    std::thread::sleep(Duration::from_secs(2));
    let ingress = &rig.edges.ingresses[0].process;
    ingress.signal(Signal::SIGUSR1)?;
    rig.wait_for_way(&rig.net.t1, Some("t2"))?;
    rig.wait_for_announcement(1, "drained")?;
    rig.judge(load)?;
    ensure!(rig.probe(1)?.0 == 2, "ua1 still reaches edge 1");
    rig.edges.ingresses[0].process.signal(Signal::SIGUSR2)?;
    rig.wait_for_way(&rig.net.t1, Some("edge"))?;
    Ok(format!(
        "{calls} calls over {transport} at {rate} a second, 0 failed"
    ))
}

/// Two edges are drained one after the other, by BIRD and by FRR; the third one's ingress ends.
pub(crate) fn drain_two(folder: &Path) -> Result<String> {
    let mut rig = Rig::start(folder)?;
    let service = format!("{SERVICE}/32");
    let (t1, t2) = (&rig.net.t1, &rig.net.t2);
    rig.edges.ingresses[0].process.signal(Signal::SIGUSR1)?;
    // Asked to go elsewhere first, while its route still stands.
    wait::until("GRACEFUL_SHUTDOWN at t1", PATIENCE, || {
        let route = rig.speakers.route(t1, &service)?;
        Ok(route.contains("(65535,0)").then_some(()))
    })?;
    rig.wait_for_way(t1, Some("t2"))?;
    rig.wait_for_announcement(1, "drained")?;
    wait::until("t1 to know one way only", PATIENCE, || {
        let route = rig.speakers.route(t1, &service)?;
        Ok((!route.contains("(65535,0)")).then_some(()))
    })?;
    rig.edges.ingresses[0].process.signal(Signal::SIGUSR2)?;
    rig.wait_for_way(t1, Some("edge"))?;

    rig.edges.ingresses[1].process.signal(Signal::SIGUSR1)?;
    wait::until("GRACEFUL_SHUTDOWN at t2, from FRR", PATIENCE, || {
        let route = rig.speakers.route(t2, &service)?;
        Ok(route.contains("(65535,0)").then_some(()))
    })?;
    rig.wait_for_way(t2, Some("t1"))?;
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
    Ok(format!("without edge 2: {catchments:?}"))
}

/// A call with audio between two access networks.
struct Talk {
    caller: Process,
    callee: Process,
    addresses: [Ipv4Addr; 2],
    captures: [Capture; 2],
}

impl Talk {
    /// Registers both, calls, and waits for audio.
    fn start(rig: &Rig, [from, to]: [usize; 2]) -> Result<Self> {
        let uas = [from, to].map(|access| &rig.net.uas[access - 1]);
        let addresses = [from, to].map(address_of);
        let [near, far] = addresses.map(|own| Place {
            own: own.into(),
            service: SERVICE.into(),
        });
        let captures = [
            Capture::start(uas[0], "eth0", &rig.folder)?,
            Capture::start(uas[1], "eth0", &rig.folder)?,
        ];
        let users = [format!("talker{from}"), format!("talker{to}")];
        let users = users.each_ref().map(String::as_str);
        let mut callee = phone::named_callee(uas[1], far, users[1], SECONDS, &rig.folder)?;
        rig.wait_for_user(users[1], &mut callee)?;
        let mut caller = phone::named_caller(uas[0], near, users, SECONDS, &rig.folder)?;
        wait::until("audio", PATIENCE, || {
            caller.check_alive()?;
            Ok((sent(&captures[0].so_far()?, addresses[0]).len() > 10).then_some(()))
        })?;
        Ok(Self {
            caller,
            callee,
            addresses,
            captures,
        })
    }

    /// Waits for its end; all that was sent must have arrived.
    fn judge(mut self) -> Result<String> {
        let status = self.caller.wait(Duration::from_secs(60))?;
        ensure!(status.success(), "the caller ended with {status}");
        self.callee.stop()?;
        let [near, far] = self.captures;
        let (near, far) = (near.stop()?, far.stop()?);
        let [from, to] = self.addresses;
        let mut figures = Vec::new();
        for (sent, received) in [
            (sent(&near, from), received(&far, to)),
            (sent(&far, to), received(&near, from)),
        ] {
            let arrived = received.intersection(&sent).count();
            ensure!(
                !sent.is_empty() && arrived == sent.len(),
                "{arrived} of {} RTP packets arrived",
                sent.len()
            );
            figures.push(format!("{arrived} of {}", sent.len()));
        }
        Ok(figures.join(" and "))
    }
}

fn sent(packets: &[Packet], phone: Ipv4Addr) -> BTreeSet<Rtp> {
    let ours = packets.iter().filter(|packet| packet.source == phone);
    ours.filter_map(|packet| packet.udp()?.rtp()).collect()
}

fn received(packets: &[Packet], phone: Ipv4Addr) -> BTreeSet<Rtp> {
    let theirs = packets.iter().filter(|packet| packet.destination == phone);
    theirs.filter_map(|packet| packet.udp()?.rtp()).collect()
}
