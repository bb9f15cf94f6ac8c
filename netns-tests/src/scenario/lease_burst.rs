//! More calls at once than a relay has leases, with the relay 20 ms from the concentrator. With time to
//! wait, those beyond the stock get leases that are made meanwhile, all of the caller's edge. With less
//! time than a round trip, they take the next relay. Nothing is left of any of them.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::baresip::bindings;
use crate::capture::Capture;
use crate::frame::Packet;
use crate::phone;
use crate::service::Service;
use crate::topology::two_edges::{EDGE1, EDGE2, SERVICE, TwoEdges};
use crate::wait;

/// How fast a burst's INVITEs follow each other, a second: many are there before the first new lease.
const RATE: u32 = 6_000;

/// A burst and the stocks that it meets.
struct Burst {
    name: &'static str,
    calls: u32,
    min_stock: u32,
    max_stock: u32,
    wait_ms: u32,
}

const PATIENT: Burst = Burst {
    name: "patient",
    calls: 60,
    min_stock: 4,
    max_stock: 8,
    wait_ms: 3_000,
};

/// The other relay's stock has a lease for each that the first has none for.
const IMPATIENT: Burst = Burst {
    name: "impatient",
    calls: 16,
    min_stock: 8,
    max_stock: 8,
    wait_ms: 10,
};

/// What the concentrator has counted, and through which relays the calls went.
#[derive(Debug, PartialEq, Eq)]
struct Counts {
    waited: u32,
    expired: u32,
    fallback: u32,
    relayed: u32,
    leases: u32,
    edge1: u32,
    edge2: u32,
}

pub(super) fn run(folder: &Path) -> Result<String> {
    let net = TwoEdges::build()?;
    let patient = burst(&net, &PATIENT, folder)?;
    let Counts {
        waited, edge1: all, ..
    } = patient;
    let of_all = PATIENT.calls;
    ensure!(
        (patient.expired, patient.fallback, all) == (0, 0, of_all),
        "a burst with time to wait: {patient:?}"
    );
    ensure!(
        waited > 0 && waited < of_all,
        "{waited} of {of_all} calls waited"
    );

    let impatient = burst(&net, &IMPATIENT, folder)?;
    let Counts {
        expired, fallback, ..
    } = impatient;
    ensure!(
        fallback > 0 && fallback <= expired && expired <= impatient.waited,
        "a burst without time to wait: {impatient:?}"
    );
    ensure!(
        impatient.edge2 == fallback && impatient.edge1 + fallback == IMPATIENT.calls,
        "a burst without time to wait: {impatient:?}"
    );
    Ok(format!(
        "{of_all} calls on {} leases: {waited} waited, none fell back; {} calls on {} leases and {} ms \
         to wait: {} waited, {fallback} took the next relay",
        PATIENT.min_stock,
        IMPATIENT.calls,
        IMPATIENT.min_stock,
        IMPATIENT.wait_ms,
        impatient.waited
    ))
}

/// Makes the calls and waits until nothing is left of them.
fn burst(net: &TwoEdges, burst: &Burst, folder: &Path) -> Result<Counts> {
    let Burst {
        name,
        calls,
        min_stock,
        max_stock,
        wait_ms,
    } = burst;
    let folder = folder.join(name);
    fs::create_dir_all(&folder)?;
    let stocks =
        format!("min_stock = {min_stock}\nmax_stock = {max_stock}\nlease_wait_ms = {wait_ms}\n");
    let mut service = Service::start_edited(net, &folder, "", |config| {
        config.replace("[relay_control]\n", &format!("[relay_control]\n{stocks}"))
    })?;
    let mut callee = phone::quick_callee(&net.ua2, &folder)?;
    wait::until("ua2 to register", Duration::from_secs(10), || {
        callee.check_alive()?;
        Ok((!bindings(net, &service)?.is_empty()).then_some(()))
    })?;
    wait_for_stock(net, &service, u64::from(*min_stock))?;
    let ua1 = Capture::start(&net.ua1, "eth0", &folder)?;
    let ua2 = Capture::start(&net.ua2, "eth0", &folder)?;
    let mut caller = phone::quick_caller(&net.ua1, *calls, RATE, &folder)?;
    let complaints = || fs::read_to_string(folder.join("ua1/errors.txt")).unwrap_or_default();
    let status = caller
        .wait(Duration::from_secs(60))
        .with_context(complaints)?;
    ensure!(status.success(), "{name}: calls failed: {}", complaints());
    wait_for_nothing(net, &service).context(*name)?;
    callee.stop()?;
    service.check_alive()?;
    let answers = told(&ua1.stop()?, "SIP/2.0 200 ")?;
    let offers = told(&ua2.stop()?, "INVITE ")?;
    ensure!(
        answers == offers,
        "{name}: the caller was told {answers:?} and the callee {offers:?}"
    );
    let of = |edge: Ipv4Addr| answers.values().filter(|told| **told == edge).count() as u32;
    let metrics = service.concentrator.metrics(&net.concentrator)?;
    let event = |name: &str| {
        let label = format!("\"{name}\"");
        let sample = metrics.iter().find(|(sample, _)| sample.contains(&label));
        sample.map_or(0, |(_, value)| *value as u32)
    };
    let counts = Counts {
        waited: event("media_wait"),
        expired: event("media_wait_expired"),
        fallback: event("media_fallback"),
        relayed: event("media_relayed"),
        leases: event("lease_taken"),
        edge1: of(EDGE1),
        edge2: of(EDGE2),
    };
    ensure!(
        (counts.relayed, counts.leases) == (*calls, *calls)
            && counts.edge1 + counts.edge2 == *calls
            && answers.len() == *calls as usize,
        "{name}: of {calls} calls: {counts:?}"
    );
    Ok(counts)
}

fn wait_for_stock(net: &TwoEdges, service: &Service, leases: u64) -> Result<()> {
    wait::until("full stocks", Duration::from_secs(10), || {
        let status = service.concentrator.status(&net.concentrator)?;
        let relays = status["relays"].as_array().map_or(&[][..], Vec::as_slice);
        let full = |relay: &serde_json::Value| relay["leases"].as_u64() >= Some(leases);
        Ok((relays.len() == 2 && relays.iter().all(full)).then_some(()))
    })
}

/// No call, no session, nobody who waits.
fn wait_for_nothing(net: &TwoEdges, service: &Service) -> Result<()> {
    let mut last = String::new();
    let ended = wait::until("the calls to end", Duration::from_secs(12), || {
        let sessions = service.sessions(net)?;
        let calls = service.calls(net)?;
        let metrics = service.concentrator.metrics(&net.concentrator)?;
        let waiting = metrics
            .iter()
            .find(|(sample, _)| sample.contains("waiting_for_relay"))
            .context("no waiting_for_relay")?
            .1;
        last = format!("{calls} calls, sessions {sessions:?}, {waiting} waiting");
        Ok((calls == 0 && sessions == [0, 0] && waiting == 0.0).then_some(()))
    });
    ended.with_context(|| last)
}

/// By Call-ID, the address that messages of this kind from the service told a phone for its audio.
fn told(packets: &[Packet], start: &str) -> Result<BTreeMap<String, Ipv4Addr>> {
    let mut told = BTreeMap::new();
    for packet in packets.iter().filter(|packet| packet.source == SERVICE) {
        let Some(segment) = packet.udp() else {
            continue;
        };
        let line = segment.sip_start_line().unwrap_or_default();
        let sequence = segment.sip_header("CSeq").unwrap_or_default();
        if !line.starts_with(start) || !sequence.ends_with(" INVITE") {
            continue;
        }
        let call = segment.sip_header("Call-ID").context("no Call-ID")?;
        let audio = segment.audio_address();
        let audio = audio.with_context(|| format!("{call}: {line:?} without a description"))?;
        told.insert(call, *audio.ip());
    }
    Ok(told)
}
