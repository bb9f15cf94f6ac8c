//! Both phones speak for a second and then say nothing any more, and neither hangs up. The relay says so, the
//! concentrator sends each a BYE in its dialog, both answer, and the record of the call says why it ended. A
//! call on hold (a=sendonly) is as silent for longer, and goes on until the caller ends it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::cdr::{CDR, lines, registered};
use crate::capture::Capture;
use crate::frame::Packet;
use crate::phone::{self, Script, Transport};
use crate::service::Service;
use crate::topology::two_edges::{PHONE, TwoEdges};
use crate::wait;

const IDLE_S: u64 = 3;
const PATIENCE: Duration = Duration::from_secs(20);
/// The phones' second of audio begins some time after the answer and ends before it is over.
const LEAST_TALK_MS: u64 = IDLE_S * 1000;
const MOST_TALK_MS: u64 = IDLE_S * 1000 + 4000;

pub(super) fn run(folder: &Path) -> Result<String> {
    let net = TwoEdges::build()?;
    let limits = format!("idle_timeout_s = {IDLE_S}\n");
    let mut service = Service::start_limited(&net, folder, CDR, &limits)?;
    let (ua1, ua2) = (
        Capture::start(&net.ua1, "eth0", folder)?,
        Capture::start(&net.ua2, "eth0", folder)?,
    );
    let mut callee = registered(&net, &service, Script::Plain, 1, folder)?;
    // It waits for a BYE as long as there is none.
    let mut caller = phone::call_to(&net.ua1, "ua2", "example.com", true, false, folder)?;
    let ended = caller.wait(PATIENCE)?;
    let complaints = std::fs::read_to_string(folder.join("ua1/errors.txt")).unwrap_or_default();
    ensure!(ended.success(), "the caller got no BYE: {complaints}");
    let line = wait::until("the record of the call", PATIENCE, || {
        Ok(lines(folder, "cdr.jsonl")?.pop())
    })?;
    ensure!(
        line["ended_by"] == "media_timeout" && line["silence"] == "idle",
        "the record says {line}"
    );
    let talk = line["duration_ms"].as_u64().context("no duration")?;
    ensure!(
        (LEAST_TALK_MS..MOST_TALK_MS).contains(&talk),
        "the call lasted {talk} ms"
    );
    for party in ["caller", "callee"] {
        let packets = line["media"][0][party]["packets"].as_u64();
        ensure!(
            packets >= Some(40),
            "{party} has sent {packets:?} packets: {line}"
        );
    }
    let metrics = service.relay1.metrics(&net.edge1)?;
    let timed_out = metrics
        .iter()
        .find(|(name, _)| name.contains("sessions_timed_out") && name.contains("\"idle\""));
    ensure!(
        timed_out.is_some_and(|(_, count)| *count == 1.0),
        "the relay has counted {timed_out:?}"
    );
    callee.stop()?;
    for (name, packets) in [("ua1", ua1.stop()?), ("ua2", ua2.stop()?)] {
        check_bye(&packets).with_context(|| name.to_owned())?;
    }
    let held = hold(&net, &service, folder)?;
    service.check_alive()?;
    Ok(format!(
        "a BYE to each phone, {talk} ms after the answer, with 1 s of audio and {IDLE_S} s of patience; \
         on hold {held} ms"
    ))
}

/// A call that is silent on hold for twice as long as one may be that is not; how long it lasted.
fn hold(net: &TwoEdges, service: &Service, folder: &Path) -> Result<u64> {
    const SILENCE_S: u32 = 6;
    let place = folder.join("held");
    let mut callee = registered(net, service, Script::Hold, 1, &place)?;
    let seconds = SILENCE_S - 2;
    let mut caller = phone::caller(&net.ua1, Transport::Udp, Script::Hold, seconds, 0, &place)?;
    let ended = caller.wait(PATIENCE)?;
    let complaints = std::fs::read_to_string(place.join("ua1/errors.txt")).unwrap_or_default();
    ensure!(ended.success(), "the call on hold failed: {complaints}");
    let line = wait::until("the record of the call on hold", PATIENCE, || {
        let mut lines = lines(folder, "cdr.jsonl")?;
        Ok((lines.len() == 2).then(|| lines.pop()).flatten())
    })?;
    ensure!(line["ended_by"] == "caller", "the record says {line}");
    callee.stop()?;
    let talk = line["duration_ms"].as_u64().context("no duration")?;
    ensure!(talk >= u64::from(SILENCE_S) * 1000, "it lasted {talk} ms");
    Ok(talk)
}

/// One BYE came, with its reason and in the dialog, and was answered.
fn check_bye(packets: &[Packet]) -> Result<()> {
    let start = |packet: &Packet| packet.udp().and_then(|segment| segment.sip_start_line());
    let header = |packet: &Packet, name: &str| {
        let segment = packet.udp();
        segment
            .and_then(|segment| segment.sip_header(name))
            .unwrap_or_default()
    };
    let to_phone = packets.iter().filter(|packet| packet.destination == PHONE);
    let byes: Vec<&Packet> = to_phone
        .filter(|packet| start(packet).is_some_and(|line| line.starts_with("BYE ")))
        .collect();
    let [bye] = byes[..] else {
        anyhow::bail!("{} BYEs came, not one", byes.len());
    };
    ensure!(
        header(bye, "Reason").contains("cause=102"),
        "the BYE has no reason"
    );
    let cseq = header(bye, "CSeq");
    let answered = packets
        .iter()
        .filter(|packet| packet.source == PHONE)
        .any(|packet| {
            let ok = start(packet).is_some_and(|line| line.starts_with("SIP/2.0 200"));
            ok && header(packet, "CSeq") == cseq
        });
    ensure!(answered, "the phone has not answered the BYE");
    Ok(())
}
