//! A phone on UDP calls three trunks with INVITE, ACK and BYE of more than 1,300 bytes: one takes
//! TCP, one refuses it with a reset, at one nobody answers the connection (RFC 3261 section 18.1.1).

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::dispatch::{CALLER_HANGS_UP, TRUNK, trunk_over};
use crate::capture::Capture;
use crate::frame::{Packet, Segment};
use crate::phone;
use crate::service::Service;
use crate::topology::two_edges::{CONCENTRATOR, TwoEdges};
use crate::wait;

const TAKES_TCP: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 24);
const RESETS: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 25);
const SILENT: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 26);
/// More than the limit, whatever else is in the request.
const PADDING: usize = 1500;

/// The requests of a call, in their order.
const CALL: [&str; 3] = ["INVITE", "ACK", "BYE"];

pub(super) fn run(folder: &Path) -> Result<String> {
    let net = TwoEdges::build()?;
    for address in [TAKES_TCP, RESETS, SILENT] {
        net.core
            .run(&format!("ip addr add {address}/32 dev down"))?;
    }
    net.core.nft(&format!(
        r#"
table ip silence {{
    chain in {{
        type filter hook input priority filter
        ip daddr {SILENT} tcp dport 5060 drop
    }}
}}
"#
    ))?;
    let script = TRUNK.replace("@END@", CALLER_HANGS_UP);
    let start = |address, over| trunk_over(&net.core, address, over, &script, folder);
    let _takes_tcp = start(TAKES_TCP, "t1")?;
    let _resets = start(RESETS, "u1")?;
    let _silent = start(SILENT, "u1")?;
    let service = Service::start_with(&net, folder, &config())?;
    let tcp = call(&net, folder, "tcp", "+491", TAKES_TCP)?;
    let reset = call(&net, folder, "reset", "+492", RESETS)?;
    let silent = call(&net, folder, "silent", "+493", SILENT)?;
    ensure!(
        tcp.over_tcp == CALL && tcp.over_udp.is_empty() && tcp.connections == 1,
        "the trunk that takes TCP: {tcp:?}"
    );
    for (name, got) in [("resets", &reset), ("is silent", &silent)] {
        // One attempt, which the ACK and the BYE know of.
        let attempts = got.over_udp == CALL && got.over_tcp.is_empty() && got.connections >= 1;
        ensure!(attempts, "the trunk that {name}: {got:?}");
    }
    ensure!(reset.connections == 1, "{} resets", reset.connections);
    let counted = [
        "large_request_over_tcp",
        "large_request_fell_back",
        "large_request_over_udp",
    ]
    .map(|name| events(&net, &service, name).unwrap_or(f64::NAN));
    ensure!(
        counted == [5.0, 2.0, 4.0],
        "{counted:?} were counted, not [5, 2, 4]"
    );
    Ok(format!(
        "INVITE, ACK and BYE over one TCP connection, rung after {} ms; over UDP after a reset, {} ms, \
         and after silence, {} ms",
        tcp.rung_after_ms, reset.rung_after_ms, silent.rung_after_ms
    ))
}

fn config() -> String {
    let route = |prefix: &str, to: Ipv4Addr| {
        format!("[[routes]]\nprefix = \"{prefix}\"\nto = \"sip:{to}:5060;transport=udp\"\n")
    };
    [
        format!("[sip]\nunicast_address = \"{CONCENTRATOR}\"\n"),
        route("+491", TAKES_TCP),
        route("+492", RESETS),
        route("+493", SILENT),
    ]
    .concat()
}

/// What a trunk has got.
#[derive(Debug)]
struct Got {
    /// The requests over UDP, less retransmissions.
    over_udp: Vec<String>,
    /// The same over TCP.
    over_tcp: Vec<String>,
    /// Segments that begin a connection.
    connections: usize,
    /// From the first packet for the trunk to its 180.
    rung_after_ms: u64,
}

impl Got {
    fn of(seen: &[Packet], trunk: Ipv4Addr) -> Self {
        let to_trunk = || seen.iter().filter(|packet| packet.destination == trunk);
        let mut answers = seen.iter().filter(|packet| packet.source == trunk);
        let rung = answers.find(|packet| {
            let line = packet.transport().and_then(|found| found.sip_start_line());
            line.is_some_and(|line| line.starts_with("SIP/2.0 180"))
        });
        let begun = to_trunk().next();
        let micros = begun
            .zip(rung)
            .map_or(0, |(begun, rung)| rung.at - begun.at);
        Self {
            over_udp: methods(to_trunk().filter_map(Packet::udp)),
            over_tcp: methods(to_trunk().filter_map(Packet::tcp)),
            connections: to_trunk()
                .filter_map(Packet::tcp)
                .filter(Segment::opens_connection)
                .count(),
            rung_after_ms: micros / 1000,
        }
    }
}

fn methods<'a>(segments: impl Iterator<Item = Segment<'a>>) -> Vec<String> {
    let lines = segments.filter_map(|segment| segment.sip_start_line());
    let mut methods: Vec<String> = lines
        .filter_map(|line| Some(line.split_once(' ')?.0.to_owned()))
        .collect();
    methods.dedup();
    methods
}

fn call(net: &TwoEdges, folder: &Path, name: &str, peer: &str, trunk: Ipv4Addr) -> Result<Got> {
    let folder = folder.join(name);
    fs::create_dir_all(&folder)?;
    let capture = Capture::start(&net.concentrator, "eth0", &folder)?;
    let mut caller = phone::call_at_length(&net.ua1, peer, PADDING, &folder)?;
    let complaints = || fs::read_to_string(folder.join("ua1/errors.txt")).unwrap_or_default();
    let status = caller
        .wait(Duration::from_secs(30))
        .with_context(complaints)?;
    ensure!(
        status.success(),
        "the call {name:?} failed: {}",
        complaints()
    );
    // What was seen last reaches the file last.
    wait::until("the BYE in the capture", Duration::from_secs(5), || {
        let got = Got::of(&capture.so_far()?, trunk);
        let mut all = got.over_udp.iter().chain(&got.over_tcp);
        Ok(all.any(|method| method == "BYE").then_some(()))
    })?;
    Ok(Got::of(&capture.stop()?, trunk))
}

fn events(net: &TwoEdges, service: &Service, name: &str) -> Result<f64> {
    let wanted = format!("event=\"{name}\"");
    let metrics = service.concentrator.metrics(&net.concentrator)?;
    let found = metrics.iter().find(|(sample, _)| sample.contains(&wanted));
    Ok(found.with_context(|| format!("no metric of {name}"))?.1)
}
