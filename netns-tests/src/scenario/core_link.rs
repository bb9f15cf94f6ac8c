//! Two concentrators that speak with each other. The callee rings when the first one drains, and the
//! edges send everything to the second: the answer and the rest of the call go back over the core in one
//! hop, to the one that has the call, and so do the segments of TCP connections, whose other end is in
//! its kernel. The call has audio, one record, and connections that last.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::restart::{KEY, write_key};
use super::second_concentrator::{
    SECOND, start_second, wait_for_binding, wait_for_choice, wire_second, with_both,
};
use crate::namespace::Namespace;
use crate::phone::{self, Script, Transport};
use crate::service::{ALL_TRANSPORTS, Program, Service};
use crate::topology::two_edges::{CONCENTRATOR, TwoEdges};
use crate::wait;

const PATIENCE: Duration = Duration::from_secs(20);
const RING_MS: u32 = 4_000;
/// Of audio.
const SECONDS: u32 = 3;
const RECORDS: &str = "[cdr]\nfile = \"calls.json\"\n";

pub(super) fn run(folder: &Path) -> Result<String> {
    let mut figures = Vec::new();
    for transport in [Transport::Udp, Transport::Tcp, Transport::Tls] {
        let folder = folder.join(transport.to_string());
        let done = drained(&folder, transport).with_context(|| format!("over {transport}"))?;
        figures.push(format!("{transport}: {done}"));
    }
    Ok(figures.join("; "))
}

fn drained(folder: &Path, transport: Transport) -> Result<String> {
    let net = TwoEdges::build()?;
    let second = wire_second(&net)?;
    write_key(folder)?;
    let of_first = section("c1", CONCENTRATOR, "c2", second_address()?);
    let of_second = section("c2", second_address()?, "c1", CONCENTRATOR);
    let more = format!("{KEY}{ALL_TRANSPORTS}{RECORDS}{of_first}");
    let mut service = Service::start_edited(&net, folder, &more, |config| with_both(&config))?;
    let mut other = start_second(&second, folder, |config| {
        config
            .replace(&of_first, &of_second)
            .replace("calls.json", "calls2.json")
    })?;
    wait_for_choice(&net, &service, &CONCENTRATOR.to_string())?;
    wait_for_links(&net, &service, &second, &other)?;

    let mut callee = phone::slow_callee(&net.ua2, transport, RING_MS, SECONDS, folder)?;
    wait_for_binding(&service.concentrator, &net.concentrator, &mut callee)?;
    let mut caller = phone::caller(&net.ua1, transport, Script::Plain, SECONDS, 0, folder)?;
    wait::until("the callee to ring", PATIENCE, || {
        caller.check_alive()?;
        Ok((service.calls(&net)? == 1).then_some(()))
    })?;
    service.concentrator.process.signal(Signal::SIGUSR1)?;
    wait_for_choice(&net, &service, SECOND)?;
    let relayed = |service: &Service| {
        let name = "sipcast_relay_rtp_packets_sent_total";
        service.relay1.gauge(&net.edge1, name)
    };
    ensure!(relayed(&service)? == 0, "the callee has answered too early");
    let complaints = || std::fs::read_to_string(folder.join("ua1/errors.txt")).unwrap_or_default();
    let ended = caller.wait(PATIENCE).with_context(complaints)?;
    ensure!(ended.success(), "the call failed: {}", complaints());
    let packets = u64::from(SECONDS) * 50 * 2;
    let mut passed = 0;
    wait::until("the audio of both to be counted", PATIENCE, || {
        passed = relayed(&service)?;
        Ok((passed * 10 >= packets * 9).then_some(()))
    })
    .with_context(|| format!("{passed} of {packets} RTP packets passed"))?;
    wait::until("the session to end", PATIENCE, || {
        Ok((service.sessions(&net)? == [0, 0]).then_some(()))
    })?;
    callee.stop()?;

    let (what, count) = match transport {
        Transport::Udp => (
            "messages handed over",
            event(&other, &second, "handed_over")?,
        ),
        Transport::Tcp | Transport::Tls => (
            "segments sent on",
            other.gauge(&second, "sipcast_concentrator_second_chances_total")?,
        ),
    };
    ensure!(count >= 3, "{count} {what}");
    // It is written when the relay has told what the session did.
    let mut records = String::new();
    wait::until("the record of the call", PATIENCE, || {
        records = std::fs::read_to_string(service.folder().join("calls.json"))?;
        Ok((!records.is_empty()).then_some(()))
    })?;
    let answered = records
        .lines()
        .filter(|line| line.contains("\"status\":200"));
    ensure!(
        records.lines().count() == 1 && answered.count() == 1,
        "the first concentrator's records: {records}"
    );
    let there = std::fs::read_to_string(service.folder().join("calls2.json"))?;
    ensure!(there.is_empty(), "the second's records: {there}");
    other.process.check_alive()?;
    service.check_alive()?;
    Ok(format!("{count} {what}, {passed} of {packets} RTP packets"))
}

fn second_address() -> Result<Ipv4Addr> {
    SECOND.parse().context("an address")
}

/// `[core_link]` of one of the two.
pub(crate) fn section(name: &str, own: Ipv4Addr, peer: &str, address: Ipv4Addr) -> String {
    format!(
        "[core_link]\nlisten = \"{own}:7063\"\ncertificate = \"{name}.pem\"\n\
         private_key = \"{name}.key\"\nca = \"ca.pem\"\n[[core_link.peers]]\nname = \"{peer}\"\n\
         address = \"{address}:7063\"\ntunnel = \"{address}\"\n"
    )
}

/// Waits until each can reach the other.
fn wait_for_links(
    net: &TwoEdges,
    service: &Service,
    second: &Namespace,
    other: &Program,
) -> Result<()> {
    for (program, namespace) in [(&service.concentrator, &net.concentrator), (other, second)] {
        wait::until("the link between the concentrators", PATIENCE, || {
            let status = program.status(namespace)?;
            let up = status.pointer("/core_link/peers/0/up");
            Ok((up == Some(&serde_json::Value::Bool(true))).then_some(()))
        })?;
    }
    Ok(())
}

fn event(program: &Program, namespace: &Namespace, name: &str) -> Result<u64> {
    let metrics = program.metrics(namespace)?;
    let sample = format!("sipcast_concentrator_core_link_total{{event=\"{name}\"}}");
    let found = metrics.iter().find(|(of, _)| *of == sample);
    Ok(found.with_context(|| format!("there is no {sample}"))?.1 as u64)
}
