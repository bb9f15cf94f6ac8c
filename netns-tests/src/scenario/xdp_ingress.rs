//! Edge 1 forwards by XDP: calls over UDP and TCP, an INVITE in fragments, and a call in whose middle the
//! program is taken away. Counters say which way packets went, and tshark that no checksum is wrong.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::calls;
use crate::call::{self, CallRecord, Middle, Plan};
use crate::frame::Packet;
use crate::phone::{Script, Transport};
use crate::service::{KEY1, Service};
use crate::topology::two_edges::{NAT_A, TwoEdges};
use crate::{tshark, wait, xdp};

/// Audio, in seconds.
const SECONDS: u32 = 4;
/// Makes the INVITE three fragments, of which two are too long for the tunnel.
const PADDING: usize = 3_560;
/// Counters are read once a second.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn run(folder: &Path) -> Result<String> {
    if let Some(reason) = obstacle(folder)? {
        let in_ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
        ensure!(!in_ci, "skipped, which is an error in CI: {reason}");
        return Ok(format!("skipped: {reason}"));
    }
    let (mut files, mut shown) = (Vec::new(), Vec::new());
    for (name, transport) in [("udp", Transport::Udp), ("tcp", Transport::Tcp)] {
        let (record, ways) = place(name, plan(transport), folder)?;
        let tunnelled = tunnelled(&record);
        ensure!(
            ways.fast >= tunnelled && ways.slow == 0 && ways.dropped == 0 && ways.is_attached,
            "{name}: {tunnelled} packets reached the concentrator: {ways:?}"
        );
        shown.push(format!("{name}: {} packets by XDP", ways.fast));
        files.extend(record.files);
    }

    let long = Plan {
        padding: PADDING,
        ..plan(Transport::Udp)
    };
    let (record, ways) = place("fragments", long, folder)?;
    ensure!(
        ways.too_big >= 2 && ways.slow > ways.too_big && ways.fast > 0,
        "the fragments that are too long are made shorter on the TUN path: {ways:?}"
    );
    shown.push(format!("{} of an INVITE by the TUN path", ways.slow));
    files.extend(record.files);

    let removed = Plan {
        middle: Middle::Break(|net, _| xdp::take_away(&net.edge1, "eth0")),
        ..plan(Transport::Udp)
    };
    let (record, ways) = place("removed", removed, folder)?;
    ensure!(
        ways.fast > 0 && ways.slow > 0 && !ways.is_attached,
        "before and after the program was taken away: {ways:?}"
    );
    files.extend(record.files);
    let checked = tshark::check_checksums(&files)?;
    Ok(format!(
        "{}; taken away in mid-call; {checked} frames with right checksums",
        shown.join(", ")
    ))
}

/// The service with XDP at edge 1, of which r1 hears nothing before it has a program too.
fn start(folder: &Path) -> Result<(TwoEdges, Service)> {
    let net = TwoEdges::build()?;
    let is_everywhere = xdp::wanted().is_some();
    let at_edge1 = |config: String| {
        if config.contains("mark = 1\n[tunnel]") && !is_everywhere {
            config + &xdp::section("auto")
        } else {
            config
        }
    };
    let service = Service::start_edited(&net, folder, "", at_edge1)?;
    Ok((net, service))
}

/// Why there is no native XDP here, says the ingress.
fn obstacle(folder: &Path) -> Result<Option<String>> {
    let (net, service) = start(&folder.join("obstacle"))?;
    let status = service.ingress1.status(&net.edge1)?;
    if let Some(reason) = status.pointer("/xdp/why_not").and_then(Value::as_str) {
        return Ok(Some(reason.to_owned()));
    }
    let mode = status.pointer("/xdp/interfaces/0/mode");
    ensure!(mode == Some(&"native".into()), "not native: {status}");
    Ok(None)
}

fn plan(transport: Transport) -> Plan {
    Plan {
        transport,
        script: Script::Plain,
        seconds: SECONDS,
        padding: 0,
        middle: Middle::Nothing,
    }
}

/// Packets of user agents at edge 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ways {
    /// Forwarded by XDP.
    fast: u64,
    /// Forwarded by the program.
    slow: u64,
    /// Left to the kernel by XDP as too long.
    too_big: u64,
    dropped: u64,
    is_attached: bool,
}

impl Ways {
    fn so_far(net: &TwoEdges, service: &Service) -> Result<Self> {
        let status = service.ingress1.status(&net.edge1)?;
        let count = |pointer: &str| {
            let value = status.pointer(pointer).and_then(Value::as_u64);
            value.with_context(|| format!("no {pointer} in {status}"))
        };
        let dropped = ["denied", "source_limit", "total_limit", "broken"]
            .map(|reason| count(&format!("/xdp/counters/drop_{reason}")));
        Ok(Self {
            fast: count("/xdp/counters/forward_back")?,
            slow: count("/counters/forwarded_packets")?,
            too_big: count("/xdp/counters/pass_too_big")?,
            dropped: dropped.into_iter().sum::<Result<u64>>()?,
            is_attached: status.pointer("/xdp/interfaces/0/attached") == Some(&true.into()),
        })
    }
}

/// Makes a call that must succeed, and says which way its packets went at edge 1: all that have reached
/// the concentrator are counted by then.
fn place(name: &str, plan: Plan, folder: &Path) -> Result<(CallRecord, Ways)> {
    let folder = folder.join(name);
    let (net, mut service) = start(&folder)?;
    if xdp::wanted().is_none() {
        xdp::let_pass(&net.r1, "edge")?;
    }
    let record = call::place(&net, &mut service, plan, &folder, &|_| {})?;
    calls::judge(&record).with_context(|| format!("the call {name:?}"))?;
    let expected = tunnelled(&record);
    let mut last = None;
    let ways = wait::until("the counters of the call", PATIENCE, || {
        let ways = Ways::so_far(&net, &service)?;
        last = Some(ways);
        Ok((ways.fast + ways.slow >= expected).then_some(ways))
    })
    .with_context(|| format!("{name}: {expected} packets, {last:?}"))?;
    Ok((record, ways))
}

/// Packets of the caller that have come through edge 1.
fn tunnelled(record: &CallRecord) -> u64 {
    let packets = record.seen.concentrator.iter().filter_map(Packet::gre);
    let of_caller = packets.filter(|(key, inner)| *key == KEY1 && inner.source == NAT_A);
    of_caller.count() as u64
}
