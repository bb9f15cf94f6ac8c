//! A stock Kamailio drives our relay over `ng`, without our concentrator: the configuration of Debian's
//! package with NAT and rtpengine switched on, once as it is and once with `rtpengine_manage()` without
//! flags. Two phones behind NATs, at the same private address, call each other; each must hear all that the
//! other has said, through the relay and through nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::call::wait_for_registration;
use crate::capture::Capture;
use crate::frame::{Packet, Rtp};
use crate::kamailio;
use crate::phone::{self, Script, Transport};
use crate::service::{Program, RELAY_PORTS, start_program};
use crate::topology::two_edges::{CONCENTRATOR, EDGE1, PHONE, SERVICE, TwoEdges};
use crate::wait;

const SECONDS: u32 = 4;
const NG_PORT: u16 = 2223;

pub(super) fn run(folder: &Path) -> Result<String> {
    let net = TwoEdges::build()?;
    route_to_kamailio(&net)?;
    let mut relay = start_program(
        &net.edge1,
        "relay1",
        "sipcast-rtp-agent",
        9103,
        &relay_config(),
        folder,
    )?;
    relay.wait_until_healthy(&net.edge1)?;
    let mut figures = Vec::new();
    for (name, flags) in [("stock flags", true), ("no flags", false)] {
        let folder = folder.join(name.replace(' ', "-"));
        fs::create_dir_all(&folder)?;
        let ng = SocketAddrV4::new(EDGE1, NG_PORT);
        let mut kamailio = kamailio::start_stock(&net.concentrator, SERVICE, ng, flags, &folder)?;
        let call = call(&net, &mut relay, flags, &folder)
            .with_context(|| {
                format!(
                    "{}\n{}",
                    kamailio.last_lines(15),
                    relay.process.last_lines(5)
                )
            })
            .with_context(|| name.to_owned())?;
        kamailio.check_alive()?;
        figures.push(format!("{name}: {call}"));
    }
    Ok(figures.join("; "))
}

/// Kamailio owns the service address in the core, and there is no edge that takes it.
fn route_to_kamailio(net: &TwoEdges) -> Result<()> {
    net.r1
        .run(&format!("ip route replace {SERVICE}/32 via 10.0.91.1"))?;
    net.r2
        .run(&format!("ip route replace {SERVICE}/32 via 10.0.92.1"))?;
    net.core
        .run(&format!("ip route add {SERVICE}/32 via {CONCENTRATOR}"))
        .map(drop)
}

fn relay_config() -> String {
    format!(
        r#"
name = "relay1"
[media]
addresses = ["{EDGE1}"]
ports = "{}-{}"
[ng]
listen = ["{EDGE1}:{NG_PORT}"]
allow = ["{CONCENTRATOR}/32"]
delete_delay_s = 1
"#,
        RELAY_PORTS.start(),
        RELAY_PORTS.end()
    )
}

fn call(net: &TwoEdges, relay: &mut Program, flags: bool, folder: &Path) -> Result<String> {
    let ua1 = Capture::start(&net.ua1, "eth0", folder)?;
    let ua2 = Capture::start(&net.ua2, "eth0", folder)?;
    let edge1 = Capture::start(&net.edge1, "eth0", folder)?;
    let open_gates = relay.gauge(&net.edge1, "sipcast_ng_open_gates_total")?;
    let mut callee = phone::callee(&net.ua2, Transport::Udp, Script::Plain, SECONDS, folder)?;
    wait_for_registration(&ua2, &mut callee).context("ua2 does not register")?;
    let mut caller = phone::caller(&net.ua1, Transport::Udp, Script::Plain, SECONDS, 0, folder)?;
    wait::until(
        "the call to be on the relay",
        Duration::from_secs(15),
        || {
            caller.check_alive()?;
            let status = relay.status(&net.edge1)?;
            Ok((status["ng"]["calls"] == 1 && has_media(&status)).then_some(()))
        },
    )?;
    let ended = caller.wait(Duration::from_secs(u64::from(SECONDS) + 30))?;
    ensure!(ended.success(), "the caller's SIPp ended with {ended}");
    wait::until(
        "the relay to have forgotten the call",
        Duration::from_secs(8),
        || {
            let sessions = relay.gauge(&net.edge1, "sipcast_relay_sessions")?;
            Ok((sessions == 0 && relay.status(&net.edge1)?["ng"]["calls"] == 0).then_some(()))
        },
    )?;
    callee.stop()?;
    relay.process.check_alive()?;
    let opened = relay.gauge(&net.edge1, "sipcast_ng_open_gates_total")? - open_gates;
    // Kamailio 5.6 tells where the phones are even when it has no flags.
    ensure!(opened == 0, "{opened} gates let in any source");
    let (ua1, ua2, edge1) = (ua1.stop()?, ua2.stop()?, edge1.stop()?);
    let to_callee = heard("ua2", &ua1, &ua2)?;
    let to_caller = heard("ua1", &ua2, &ua1)?;
    if flags {
        judge_origin(&ua1, &ua2)?;
    }
    let requests = ng_requests(&edge1);
    Ok(format!(
        "RTP {to_callee} and {to_caller}, all heard; {requests} ng requests"
    ))
}

/// Both sides are latched: media have come from both.
fn has_media(status: &Value) -> bool {
    let session = &status["sessions"][0];
    ["a", "b"]
        .iter()
        .all(|side| session[side]["latched_rtp"].is_string())
}

/// How many packets `into` has heard of what the phone at the other end has said; all of them.
fn heard(name: &str, from: &[Packet], into: &[Packet]) -> Result<usize> {
    let sent = rtp(from, |packet| packet.source == PHONE);
    let received = rtp(into, |packet| {
        packet.destination == PHONE && packet.source == EDGE1
    });
    let elsewhere = rtp(into, |packet| {
        packet.destination == PHONE && packet.source != EDGE1
    });
    let heard = sent.intersection(&received).count();
    ensure!(sent.len() > 100, "only {} packets for {name}", sent.len());
    ensure!(
        heard == sent.len(),
        "{name} heard {heard} of {} packets",
        sent.len()
    );
    ensure!(
        elsewhere.is_empty(),
        "{name} heard {} packets past the relay",
        elsewhere.len()
    );
    Ok(heard)
}

fn rtp(packets: &[Packet], which: impl Fn(&Packet) -> bool) -> BTreeSet<Rtp> {
    packets
        .iter()
        .filter(|packet| which(packet))
        .filter_map(|packet| packet.udp()?.rtp())
        .collect()
}

/// Each phone has got a description with the relay's address in `o=` and `c=`, as the flags ask.
fn judge_origin(ua1: &[Packet], ua2: &[Packet]) -> Result<()> {
    for (name, packets, start) in [("ua1", ua1, "SIP/2.0 200"), ("ua2", ua2, "INVITE")] {
        let origin = format!(
            "o={} 1 1 IN IP4 {EDGE1}\r\n",
            if name == "ua1" { "ua2" } else { "ua1" }
        );
        let found = packets.iter().any(|packet| {
            let Some(segment) = packet.udp().filter(|_| packet.source == SERVICE) else {
                return false;
            };
            let text = String::from_utf8_lossy(segment.payload);
            text.starts_with(start)
                && text.contains(&origin)
                && text.contains(&format!("c=IN IP4 {EDGE1}\r\n"))
        });
        ensure!(found, "{name} got no description with {origin:?}");
    }
    Ok(())
}

fn ng_requests(packets: &[Packet]) -> usize {
    let from_kamailio = |packet: &&Packet| {
        let to: Option<(Ipv4Addr, u16)> = packet
            .udp()
            .map(|segment| (*segment.destination.ip(), segment.destination.port()));
        packet.source == CONCENTRATOR && to == Some((EDGE1, NG_PORT))
    };
    packets.iter().filter(from_kamailio).count()
}
