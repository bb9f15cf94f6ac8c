//! Many calls without a pause in them: 180 and 200 leave the callee in one breath, ACK and BYE the
//! caller. They must leave the concentrator in the order in which they came to it, call by call.

use std::collections::HashMap;
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
use crate::topology::two_edges::{NAT_A, NAT_B, SERVICE, TwoEdges};
use crate::wait;

const CALLS: u32 = 500;
const RATE: u32 = 100;

pub(super) fn run(folder: &Path) -> Result<String> {
    let net = TwoEdges::build()?;
    let mut service = Service::start_with(&net, folder, "[media]\nrelay = \"never\"\n")?;
    let mut callee = phone::quick_callee(&net.ua2, folder)?;
    wait::until("ua2 to register", Duration::from_secs(10), || {
        callee.check_alive()?;
        Ok((!bindings(&net, &service)?.is_empty()).then_some(()))
    })?;
    let capture = Capture::start(&net.concentrator, "eth0", folder)?;
    let mut caller = phone::quick_caller(&net.ua1, CALLS, RATE, folder)?;
    let complaints = || fs::read_to_string(folder.join("ua1/errors.txt")).unwrap_or_default();
    let status = caller
        .wait(Duration::from_secs(60))
        .with_context(complaints)?;
    ensure!(status.success(), "calls failed: {}", complaints());
    callee.stop()?;
    service.check_alive()?;
    let seen = capture.stop()?;
    let to_caller = judge(&seen, NAT_A, &["SIP/2.0 180", "SIP/2.0 200"])?;
    let to_callee = judge(&seen, NAT_B, &["INVITE", "ACK", "BYE"])?;
    ensure!(
        [to_caller, to_callee] == [CALLS as usize; 2],
        "{to_caller} calls were seen to the caller and {to_callee} to the callee, not {CALLS}"
    );
    Ok(format!(
        "{CALLS} calls at {RATE} a second: 180 before 200, and INVITE, ACK, BYE, in each of them"
    ))
}

/// How many calls had messages for this phone; each must have had these, the first of each kind in this
/// order.
fn judge(seen: &[Packet], phone: Ipv4Addr, order: &[&str]) -> Result<usize> {
    let mut calls: HashMap<String, Vec<String>> = HashMap::new();
    let ours = seen.iter().filter(|packet| packet.source == SERVICE);
    for packet in ours.filter(|packet| packet.destination == phone) {
        let Some(segment) = packet.udp() else {
            continue;
        };
        if let (Some(line), Some(call)) = (segment.sip_start_line(), segment.sip_header("Call-ID"))
        {
            calls.entry(call).or_default().push(line);
        }
    }
    for (call, lines) in &calls {
        let first = |kind: &&str| lines.iter().position(|line| line.starts_with(*kind));
        let places: Option<Vec<usize>> = order.iter().map(first).collect();
        let in_order = places.is_some_and(|places| places.is_sorted());
        ensure!(in_order, "{call}: {lines:?} are not {order:?}");
    }
    Ok(calls.len())
}
