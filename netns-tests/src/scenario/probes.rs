//! The ingress knows how its concentrator is: serving, draining, silent, or too narrow a path.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use wire::gre::TunnelKey;
use wire::probe::{DEFAULT_PORT, Kind, Repr, State};

use crate::raw;
use crate::service::{self, Service};
use crate::topology::two_edges::{CONCENTRATOR, EDGE1, TwoEdges};
use crate::wait;

/// Somebody in the core who is not a concentrator.
const CORE: Ipv4Addr = Ipv4Addr::new(10, 0, 91, 1);
const PATIENCE: Duration = Duration::from_secs(15);

pub(super) fn run(folder: &Path) -> Result<String> {
    let net = TwoEdges::build()?;
    let mut service = Service::start(&net, folder)?;
    let path = path_of(&net, &service)?;
    let round_trip = path.get("round_trip_ms").and_then(Value::as_f64);
    let round_trip = round_trip.context("no round trip")?;
    ensure!(
        round_trip >= 40.0,
        "the round trip is {round_trip:.1} ms, the wires take 40"
    );
    let ingresses = known_ingresses(&net, &service)?;
    ensure!(
        ingresses == [EDGE1.to_string()],
        "the concentrator knows {ingresses:?} at edge 1"
    );

    service.concentrator.process.signal(Signal::SIGUSR1)?;
    wait_for(&net, &service, "state", "draining")?;
    service.concentrator.process.signal(Signal::SIGUSR2)?;
    wait_for(&net, &service, "state", "serving")?;

    let stopped = Instant::now();
    service.concentrator.process.signal(Signal::SIGSTOP)?;
    wait_for(&net, &service, "state", "down")?;
    let detected = stopped.elapsed();
    ensure!(
        service.ingress1.is_healthy(&net.edge1).is_err(),
        "/healthz of an ingress without a concentrator is good"
    );
    service.concentrator.process.signal(Signal::SIGCONT)?;
    wait_for(&net, &service, "state", "serving")?;

    forge_answers(&net)?;
    for reason in ["stranger", "unknown_sequence", "wrong_key", "malformed"] {
        wait::until(&format!("a forged answer as {reason}"), PATIENCE, || {
            Ok((rejected(&net, &service, reason)? == 1.0).then_some(()))
        })?;
    }

    wait_for(&net, &service, "mtu", "fits")?;
    net.r1.run("ip link set dev up mtu 1400")?;
    wait_for(&net, &service, "mtu", "too small")?;
    let narrow = path_of(&net, &service)?;
    ensure!(
        narrow.get("state").and_then(Value::as_str) == Some("serving"),
        "a narrow path is down: {narrow}"
    );
    service.check_alive()?;
    Ok(format!(
        "round trip {round_trip:.1} ms, silence seen after {} ms, a narrow path told from it",
        detected.as_millis()
    ))
}

/// What edge 1 shows of its path.
fn path_of(net: &TwoEdges, service: &Service) -> Result<Value> {
    let status = service.ingress1.status(&net.edge1)?;
    let path = status.pointer("/paths/0").cloned();
    path.with_context(|| format!("/status shows no path: {status}"))
}

fn wait_for(net: &TwoEdges, service: &Service, key: &str, value: &str) -> Result<()> {
    let mut last = Value::Null;
    wait::until(&format!("{key} {value}"), PATIENCE, || {
        last = path_of(net, service)?;
        Ok((last.get(key).and_then(Value::as_str) == Some(value)).then_some(()))
    })
    .with_context(|| last.to_string())
}

/// One answer of each kind that does not count; all but the first claim to be the concentrator's.
fn forge_answers(net: &TwoEdges) -> Result<()> {
    let answer = |key, sequence| {
        let kind = Kind::Answer {
            state: State::NotReady,
            load: 0,
        };
        let key = TunnelKey(key);
        let sent_us = 1;
        Repr {
            kind,
            key,
            sequence,
            sent_us,
        }
        .build(0)
    };
    for (source, payload) in [
        (CORE, answer(service::KEY1, 0)),
        (CONCENTRATOR, answer(service::KEY1, 0)),
        (CONCENTRATOR, answer(service::KEY2, 0)),
        (CONCENTRATOR, b"not a probe".to_vec()),
    ] {
        let datagram = raw::udp(DEFAULT_PORT, DEFAULT_PORT, &payload);
        let packet = raw::ipv4(source, EDGE1, 0, raw::UDP, &datagram);
        raw::send(&net.core, &packet)?;
    }
    Ok(())
}

fn known_ingresses(net: &TwoEdges, service: &Service) -> Result<Vec<String>> {
    let status = service.concentrator.status(&net.concentrator)?;
    let ingresses = status.pointer("/edges/0/ingresses");
    let ingresses = ingresses.and_then(Value::as_array);
    let ingresses = ingresses.context("/status shows no ingresses")?;
    let addresses = ingresses
        .iter()
        .filter_map(|ingress| ingress.get("address"));
    Ok(addresses
        .filter_map(|address| Some(address.as_str()?.to_owned()))
        .collect())
}

fn rejected(net: &TwoEdges, service: &Service, reason: &str) -> Result<f64> {
    let metrics = service.ingress1.metrics(&net.edge1)?;
    let name = format!("sipcast_ingress_probe_answers_rejected_total{{reason=\"{reason}\"}}");
    let sample = metrics.iter().find(|(sample, _)| *sample == name);
    Ok(sample.with_context(|| format!("no metric {name}"))?.1)
}
