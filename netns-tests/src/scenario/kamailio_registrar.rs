//! The service as the edge proxy of a stock Kamailio registrar in the core: two phones behind NATs
//! register through it and call each other, with the flip of the demo. Everything that holds for a
//! call through our own registrar must hold here. The call passes the concentrator twice and is one record.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::calls;
use super::cdr::{CDR, lines};
use crate::call::{self, CallRecord, Middle, Plan};
use crate::frame::Packet;
use crate::kamailio;
use crate::phone::{Script, Transport};
use crate::process::Process;
use crate::service::Service;
use crate::topology::two_edges::{CONCENTRATOR, EDGE1, EDGE2, REGISTRAR, SERVICE, TwoEdges};
use crate::{command, wait};

const SECONDS: u32 = 6;
const PATIENCE: Duration = Duration::from_secs(10);
const KAMAILIO: &str = include_str!("../../scenarios/registrar.cfg");
/// As it is shipped; the lab has the addresses of the example.
const EDGE_CONFIG: &str = include_str!("../../../configs/edge-of-kamailio.toml");

pub(super) fn run(folder: &Path) -> Result<String> {
    ensure!(
        command::found("kamailio"),
        "kamailio is missing (Debian package kamailio); scripts/setup.sh installs it"
    );
    let net = TwoEdges::build()?;
    net.core
        .run(&format!("ip addr add {REGISTRAR}/32 dev down"))?;
    let mut kamailio = start_kamailio(&net, folder)?;
    let config = edge_config()? + CDR;
    let mut service = Service::start_configured(&net, folder, config)?;
    wait_until_up(&service, &net).with_context(|| kamailio.last_lines(15))?;
    let plan = Plan {
        transport: Transport::Udp,
        script: Script::Plain,
        seconds: SECONDS,
        padding: 0,
        middle: Middle::Flip,
    };
    let record = call::place(&net, &mut service, plan, folder, &|_| {})
        .with_context(|| kamailio.last_lines(15))?;
    kamailio.check_alive()?;
    let bindings = judge_path(&record)?;
    let figures = calls::judge(&record)?;
    check_record(folder)?;
    Ok(format!(
        "{bindings} REGISTERs with our Path; one record; {figures}"
    ))
}

/// Both passes are one line, with the places of the phones and not of the registrar.
fn check_record(folder: &Path) -> Result<()> {
    wait::until("the record of the call", PATIENCE, || {
        Ok((!lines(folder, "cdr.jsonl")?.is_empty()).then_some(()))
    })?;
    // A second one would come as late as this.
    std::thread::sleep(Duration::from_secs(2));
    let lines = lines(folder, "cdr.jsonl")?;
    let [line] = &lines[..] else {
        anyhow::bail!("{} records of one call", lines.len());
    };
    ensure!(
        line["ended_by"] == "caller"
            && line["caller_place"]["edge"] == "edge1"
            && line["callee_place"]["edge"] == "edge2",
        "the record says {line}"
    );
    let sessions = line["media"].as_array().map_or(0, Vec::len);
    ensure!(sessions == 1, "{sessions} sessions: {line}");
    Ok(())
}

/// The shipped configuration, with probes in quick succession and without the pings that are another
/// scenario's.
fn edge_config() -> Result<String> {
    for address in [SERVICE, CONCENTRATOR, REGISTRAR, EDGE1, EDGE2] {
        ensure!(
            EDGE_CONFIG.contains(&address.to_string()),
            "configs/edge-of-kamailio.toml does not name {address}"
        );
    }
    let probe = "probe = \"options\"\n";
    ensure!(EDGE_CONFIG.contains(probe), "it does not probe Kamailio");
    let probes = format!("{probe}probe_interval_s = 1\n");
    Ok(EDGE_CONFIG.replace(probe, &probes) + "\n[registrar]\nping_interval_s = 0\n")
}

fn start_kamailio(net: &TwoEdges, folder: &Path) -> Result<Process> {
    let folder = folder.join("kamailio");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("kamailio.cfg"), KAMAILIO)?;
    let listen = format!("udp:{REGISTRAR}:5060");
    kamailio::start(&net.core, &listen, kamailio::SMALL, None, &folder)
}

/// Kamailio answers OPTIONS, and the concentrator says so.
fn wait_until_up(service: &Service, net: &TwoEdges) -> Result<()> {
    wait::until(
        "Kamailio to answer OPTIONS",
        Duration::from_secs(10),
        || {
            let status = service.concentrator.status(&net.concentrator)?;
            let member = &status["groups"][0];
            let answered = member["probes_answered"].as_u64().unwrap_or_default();
            Ok((member["up"] == true && answered > 0).then_some(()))
        },
    )
}

/// REGISTERs reach the registrar with our Path and their own Contact; its requests come back to the
/// unicast address by that Path.
fn judge_path(record: &CallRecord) -> Result<usize> {
    let messages = |method: &'static str, to_registrar: bool| {
        let (source, destination) = if to_registrar {
            (CONCENTRATOR, REGISTRAR)
        } else {
            (REGISTRAR, CONCENTRATOR)
        };
        record
            .seen
            .concentrator
            .iter()
            .filter(move |packet: &&Packet| {
                let line = packet
                    .transport()
                    .and_then(|segment| segment.sip_start_line());
                packet.source == source
                    && packet.destination == destination
                    && line.is_some_and(|line| line.starts_with(method))
            })
    };
    let header = |packet: &Packet, name: &str| {
        let segment = packet.transport();
        segment
            .and_then(|segment| segment.sip_header(name))
            .unwrap_or_default()
    };
    let mut registers = 0;
    for packet in messages("REGISTER", true) {
        registers += 1;
        let path = header(packet, "Path");
        ensure!(
            path.ends_with(&format!("@{CONCENTRATOR}:5060;lr>")),
            "a REGISTER has the Path {path:?}"
        );
        let contact = header(packet, "Contact");
        ensure!(
            contact.contains("@192.168.1.10:"),
            "a Contact became {contact:?}"
        );
    }
    ensure!(
        registers == 2,
        "{registers} REGISTERs reached the registrar, not 2"
    );
    let invite = messages("INVITE", false).next();
    let invite = invite.context("no INVITE came back from the registrar")?;
    let route = header(invite, "Route");
    ensure!(
        route.contains(&format!("@{CONCENTRATOR}:5060;lr>")),
        "the INVITE came back with Route {route:?}"
    );
    for method in ["ACK", "BYE"] {
        ensure!(
            messages(method, true).count() > 0 && messages(method, false).count() > 0,
            "the {method} did not pass the registrar, which record-routes"
        );
    }
    Ok(registers)
}
