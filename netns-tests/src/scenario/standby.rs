//! The relay near the caller is a pair of hosts. In one call the media address moves three times: the
//! host that has it dies, then the agent that has it, then it is moved back by hand. The parties hear
//! each other again each time, and the BYE ends the session where it is then.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::capture::Capture;
use crate::frame::Packet;
use crate::phone::{self, Script, Transport};
use crate::process::Process;
use crate::relay_pair::{MEDIA, RelayPair};
use crate::service::{FOLDER, Service};
use crate::topology::two_edges::{CONCENTRATOR, PHONE, TwoEdges};
use crate::wait;

const SECONDS: u32 = 24;
const PATIENCE: Duration = Duration::from_secs(20);
/// Packets each way between one move of the address and the next.
const BETWEEN: usize = 150;
/// No silence is longer: the parties would have hung up. How long it is, is a benchmark's question.
const PATIENCE_OF_PARTIES_MS: u64 = 5_000;

pub(super) fn run(folder: &Path) -> Result<String> {
    let net = TwoEdges::build()?;
    let mut service = Service::start(&net, folder)?;
    let mut pair = relays(&net, &mut service, folder)?;
    let capture = [
        Capture::start(&net.ua1, "eth0", folder)?,
        Capture::start(&net.ua2, "eth0", folder)?,
    ];
    let mut callee = phone::callee(&net.ua2, Transport::Udp, Script::Plain, SECONDS, folder)?;
    wait::until("ua2 to register", PATIENCE, || {
        callee.check_alive()?;
        let seen = capture[1].so_far()?;
        Ok(seen.iter().any(is_ok_to_register).then_some(()))
    })?;
    let mut caller = phone::caller(&net.ua1, Transport::Udp, Script::Plain, SECONDS, 0, folder)?;
    let gaps = moves(&mut pair, &capture, &mut caller)?;
    let ended = caller.wait(Duration::from_secs(u64::from(SECONDS) + 10))?;
    let complaints = std::fs::read_to_string(folder.join("ua1/errors.txt")).unwrap_or_default();
    ensure!(ended.success(), "the BYE was not answered: {complaints}");
    for (host, name) in [(&pair.a, "a"), (&pair.b, "b")] {
        wait::until("the session to be over at both agents", PATIENCE, || {
            Ok((host.sessions()? == 0).then_some(()))
        })
        .with_context(|| format!("relay-{name}"))?;
    }
    wait::until("the concentrator to hear of the end", PATIENCE, || {
        Ok((service.calls(&net)? == 0).then_some(()))
    })?;
    callee.stop()?;
    let [died, agent_died, by_hand] = gaps;
    Ok(format!(
        "silence {died} ms when the host died, {agent_died} ms when its agent died, {by_hand} ms when \
         the address was moved back; the BYE found the session"
    ))
}

/// The pair in place of the relay on edge 1, with its leases at the concentrator.
fn relays(net: &TwoEdges, service: &mut Service, folder: &Path) -> Result<RelayPair> {
    service.relay1.process.stop()?;
    let concentrator = (CONCENTRATOR, 7060).into();
    let media = "ports = \"30000-39999\"";
    let mut pair = RelayPair::build(&net.r1, &folder.join(FOLDER), concentrator, media)?;
    for (namespace, via) in [(&net.r2, "10.0.12.1"), (&net.core, "10.0.91.2")] {
        namespace.run(&format!("ip route add 10.0.3.0/24 via {via}"))?;
    }
    pair.start()?;
    wait::until("the pair's leases at the concentrator", PATIENCE, || {
        let status = service.concentrator.status(&net.concentrator)?;
        let relays = status["relays"].as_array().cloned().unwrap_or_default();
        let ready = relays
            .iter()
            .filter(|relay| relay["leases"].as_u64() > Some(0));
        Ok((ready.count() == 2).then_some(()))
    })?;
    Ok(pair)
}

/// The three moves; how long each kept the parties from hearing each other, in milliseconds.
fn moves(pair: &mut RelayPair, capture: &[Capture; 2], caller: &mut Process) -> Result<[u64; 3]> {
    wait_for_audio(capture, caller, 0)?;
    ensure!(pair.a.sessions()? == 1, "the call is not at the pair");
    pair.b.wait_until_in_step()?;
    let died = gap(capture, caller, || pair.a.crash())?;
    pair.b.wait_for("active")?;

    pair.a.revive()?;
    pair.a.wait_for("standby")?;
    ensure!(
        pair.a.sessions()? == 1,
        "the agent that came back has no session"
    );
    let agent_died = gap(capture, caller, || pair.b.kill_agent())?;
    pair.a.wait_for("active")?;

    pair.b.start_agent()?;
    pair.b.wait_for("standby")?;
    let by_hand = gap(capture, caller, || pair.a.stop_keepalived())?;
    pair.b.wait_for("active")?;
    pair.a.wait_for("standby")?;
    Ok([died, agent_died, by_hand])
}

/// Does something in mid-call and waits until audio has gone on for some time.
fn gap(
    capture: &[Capture; 2],
    caller: &mut Process,
    act: impl FnOnce() -> Result<()>,
) -> Result<u64> {
    let before = [heard(&capture[0])?.len(), heard(&capture[1])?.len()];
    act()?;
    wait_for_audio(capture, caller, before[0].max(before[1]))?;
    let mut longest = 0;
    for (capture, before) in capture.iter().zip(before) {
        let times = heard(capture)?;
        let window = &times[before.saturating_sub(1)..];
        let gaps = window.windows(2).map(|pair| pair[1] - pair[0]);
        longest = longest.max(gaps.max().unwrap_or(0) / 1000);
    }
    ensure!(
        longest <= PATIENCE_OF_PARTIES_MS,
        "the parties did not hear each other for {longest} ms"
    );
    Ok(longest)
}

/// Until each party has heard more packets than this by [`BETWEEN`].
fn wait_for_audio(capture: &[Capture; 2], caller: &mut Process, before: usize) -> Result<()> {
    wait::until("audio both ways", PATIENCE, || {
        caller.check_alive()?;
        let enough = |capture| anyhow::Ok(heard(capture)?.len() >= before + BETWEEN);
        Ok((enough(&capture[0])? && enough(&capture[1])?).then_some(()))
    })
}

/// When a phone heard RTP, in microseconds.
fn heard(capture: &Capture) -> Result<Vec<u64>> {
    let to_phone =
        |packet: &Packet| packet.destination == PHONE && packet.source == MEDIA && is_rtp(packet);
    let packets = capture.so_far()?;
    Ok(packets
        .iter()
        .filter(|packet| to_phone(packet))
        .map(|packet| packet.at)
        .collect())
}

fn is_rtp(packet: &Packet) -> bool {
    packet.udp().is_some_and(|segment| segment.rtp().is_some())
}

fn is_ok_to_register(packet: &Packet) -> bool {
    let segment = packet.udp().filter(|_| packet.destination == PHONE);
    segment.is_some_and(|segment| {
        let text = String::from_utf8_lossy(segment.payload);
        text.starts_with("SIP/2.0 200") && text.contains("REGISTER")
    })
}
