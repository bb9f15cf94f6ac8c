//! A router that balances packet by packet: of the caller's packets to the service every second one
//! goes through the other edge. So the route flips between any two packets of REGISTER, INVITE, ACK,
//! two re-INVITEs and BYE.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::baresip::bindings;
use super::websocket::{self, Stack};
use crate::call::{self, Middle, Plan};
use crate::capture::Capture;
use crate::frame::Packet;
use crate::phone::{self, Script, Transport};
use crate::service::{ALL_TRANSPORTS, KEY1, KEY2, Service, WS_PORT};
use crate::topology::two_edges::{NAT_A, SERVICE, TwoEdges};
use crate::verdict;
use crate::wait;

const SECONDS: u32 = 6;
/// Calls that are given up.
const CANCELLED: u32 = 30;

pub(super) fn udp(folder: &Path) -> Result<String> {
    run(folder, Transport::Udp, Script::Offers)
}

pub(super) fn tcp(folder: &Path) -> Result<String> {
    run(folder, Transport::Tcp, Script::Offers)
}

pub(super) fn tls(folder: &Path) -> Result<String> {
    run(folder, Transport::Tls, Script::Offers)
}

fn run(folder: &Path, transport: Transport, script: Script) -> Result<String> {
    let net = TwoEdges::build()?;
    let mut service = Service::start_with(&net, folder, ALL_TRANSPORTS)?;
    net.alternate_packets()?;
    let plan = Plan {
        transport,
        script,
        seconds: SECONDS,
        padding: 0,
        middle: Middle::Nothing,
    };
    let record = call::place(&net, &mut service, plan, folder, &|_| {})?;
    ensure!(
        record.caller.success(),
        "the caller's scenario failed\n{}",
        record.complaints
    );
    ensure!(
        record.after.calls == 0,
        "a call is left after the BYE: {}",
        record.after
    );
    let figures = verdict::figures(&record);
    if transport != Transport::Udp {
        ensure!(
            figures.connections == 1,
            "{} connections were opened",
            figures.connections
        );
    }
    // Over TCP a segment with a message may be anywhere among acknowledgements: any packet counts.
    let keys = keys_of(&record.seen.concentrator);
    let ways: BTreeSet<u32> = keys.iter().copied().collect();
    ensure!(
        ways == BTreeSet::from([KEY1, KEY2]),
        "ua1's packets came with the keys {ways:x?}"
    );
    let flips = enough_flips(&keys)?;
    for (name, way) in [
        ("ua1 to ua2", &figures.to_callee),
        ("ua2 to ua1", &figures.to_caller),
    ] {
        let lost = way.sent - way.received;
        ensure!(
            way.sent > 0 && lost * 100 <= way.sent,
            "{name}: {} of {} RTP packets arrived",
            way.received,
            way.sent
        );
    }
    Ok(format!(
        "{flips} flips between {} packets of the caller",
        keys.len()
    ))
}

/// Browsers' transport: a call with a re-INVITE, and one that is given up while it rings, both between
/// two phones on WebSocket.
pub(super) fn ws(folder: &Path) -> Result<String> {
    websocket::write_scripts(folder)?;
    let net = TwoEdges::build()?;
    let mut service = Service::start_with(&net, folder, ALL_TRANSPORTS)?;
    net.alternate_packets()?;
    let url = format!("ws://{SERVICE}:{WS_PORT}");
    let mut figures = Vec::new();
    for (caller_does, callee_does) in [("again", "wait"), ("cancel", "ring")] {
        let folder = folder.join(caller_does);
        std::fs::create_dir_all(&folder)?;
        let start = |namespace, user: &str, what: &[&str]| {
            let stack = Stack::Websockets;
            websocket::start(stack, namespace, &service, &url, user, what, &folder)
        };
        let mut callee = start(&net.ua2, "ua2", &[callee_does])?;
        websocket::wait_for_binding(&net, &service, "ua2", "WS")
            .with_context(|| callee.last_lines(15))?;
        let capture = Capture::start(&net.concentrator, "eth0", &folder)?;
        let mut caller = start(&net.ua1, "ua1", &[caller_does, "ua2"])?;
        for phone in [&mut caller, &mut callee] {
            let status = phone.wait(Duration::from_secs(30))?;
            ensure!(status.success(), "{caller_does}: {}", phone.last_lines(15));
        }
        websocket::wait_for_the_end(&net, &service)?;
        let keys = keys_of(&capture.stop()?);
        let flips = enough_flips(&keys)?;
        let heard = caller.last_lines(1);
        figures.push(format!(
            "{caller_does}: {flips} flips between {} packets, {heard}",
            keys.len()
        ));
    }
    service.check_alive()?;
    Ok(figures.join("; "))
}

/// Calls that are cancelled while they ring.
pub(super) fn cancel(folder: &Path) -> Result<String> {
    let mut figures = Vec::new();
    for transport in [Transport::Udp, Transport::Tcp, Transport::Tls] {
        figures.push(cancelled(&folder.join(transport.to_string()), transport)?);
    }
    Ok(figures.join("; "))
}

fn cancelled(folder: &Path, transport: Transport) -> Result<String> {
    std::fs::create_dir_all(folder)?;
    let net = TwoEdges::build()?;
    let mut service = Service::start_with(&net, folder, ALL_TRANSPORTS)?;
    net.alternate_packets()?;
    let mut callee = phone::cancelled_callee(&net.ua2, transport, folder)?;
    wait::until("ua2 to register", Duration::from_secs(10), || {
        callee.check_alive()?;
        Ok((!bindings(&net, &service)?.is_empty()).then_some(()))
    })?;
    let capture = Capture::start(&net.concentrator, "eth0", folder)?;
    let mut caller = phone::cancelling_caller(&net.ua1, transport, CANCELLED, 10, folder)?;
    let complaints = || std::fs::read_to_string(folder.join("ua1/errors.txt")).unwrap_or_default();
    let status = caller
        .wait(Duration::from_secs(60))
        .with_context(complaints)?;
    ensure!(status.success(), "calls failed: {}", complaints());
    callee.stop()?;
    service.check_alive()?;
    wait::until("no call to be left", Duration::from_secs(12), || {
        Ok((service.calls(&net)? == 0).then_some(()))
    })?;
    let packets = capture.stop()?;
    if transport == Transport::Tls {
        let keys = keys_of(&packets);
        let flips = enough_flips(&keys)?;
        return Ok(format!(
            "{transport}: {CANCELLED} calls cancelled, {flips} flips between {} packets",
            keys.len()
        ));
    }
    let crossed = crossed(&packets);
    ensure!(crossed > 0, "every CANCEL came by the edge of its INVITE");
    Ok(format!(
        "{transport}: {CANCELLED} calls cancelled, {crossed} by another edge than their INVITE"
    ))
}

/// The edges that ua1's packets came by.
fn keys_of(packets: &[Packet]) -> Vec<u32> {
    let tunnelled = packets.iter().filter_map(Packet::gre);
    tunnelled
        .filter(|(_, inner)| inner.source == NAT_A)
        .map(|(key, _)| key)
        .collect()
}

/// How often a packet came by another edge than the one before it, which must be most times.
fn enough_flips(keys: &[u32]) -> Result<usize> {
    let flips = keys.windows(2).filter(|pair| pair[0] != pair[1]).count();
    ensure!(
        flips * 2 > keys.len(),
        "{flips} flips between {} packets",
        keys.len()
    );
    Ok(flips)
}

/// CANCELs that came by another edge than their INVITE.
fn crossed(packets: &[Packet]) -> usize {
    let (mut invites, mut crossed) = (HashMap::new(), 0);
    for (key, inner) in packets.iter().filter_map(Packet::gre) {
        let Some(segment) = inner.transport() else {
            continue;
        };
        let (Some(line), Some(call)) = (segment.sip_start_line(), segment.sip_header("Call-ID"))
        else {
            continue;
        };
        if line.starts_with("INVITE") {
            invites.insert(call, key);
        } else if line.starts_with("CANCEL") && invites.get(&call).is_some_and(|of| *of != key) {
            crossed += 1;
        }
    }
    crossed
}
