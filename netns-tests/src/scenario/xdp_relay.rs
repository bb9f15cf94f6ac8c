//! Relay 1 relays by XDP: a call whose RTP goes past the program once both phones have been heard, one in
//! whose middle the XDP program is taken away, and one whose caller's NAT gives it another port.
//!
//! Figures are those of the relay's `/status`: packets that XDP has relayed, and all others that came to the
//! program. What the phones sent and heard is captured, at r1 and not at the edge, where XDP is before and
//! after every capture.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::calls;
use crate::call::{self, CallRecord, Middle, Plan};
use crate::phone::{Script, Transport};
use crate::service::Service;
use crate::topology::two_edges::TwoEdges;
use crate::{wait, xdp};

/// Audio, in seconds.
const SECONDS: u32 = 8;
/// In half of the audio much has to be seen.
const PATIENCE: Duration = Duration::from_secs(4);
/// Packets that show which way a stream goes.
const SOME: u64 = 40;

pub(super) fn run(folder: &Path) -> Result<String> {
    if let Some(reason) = obstacle(folder)? {
        let in_ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
        ensure!(!in_ci, "skipped, which is an error in CI: {reason}");
        return Ok(format!("skipped: {reason}"));
    }
    let steady = place("steady", by_xdp, folder)?;
    let steady = calls::judge(&steady).context("a call by XDP")?;
    let removed = place("removed", take_away, folder)?;
    let removed = calls::judge(&removed).context("a call whose XDP program was taken away")?;
    let moved = place("moved", move_caller, folder)?;
    ensure!(
        moved.caller.success(),
        "the caller that has moved: {}",
        moved.complaints
    );
    Ok(format!(
        "{steady}; taken away in mid-call: {removed}; after a new port of the NAT by XDP again"
    ))
}

/// The service with XDP at relay 1, of which r1 hears nothing before it has a program too.
fn start(folder: &Path) -> Result<(TwoEdges, Service)> {
    let net = TwoEdges::build()?;
    let is_everywhere = xdp::relays_wanted().is_some();
    let at_relay1 = |config: String| {
        if config.contains("\nname = \"relay1\"\n") && !is_everywhere {
            config + &xdp::section("auto")
        } else {
            config
        }
    };
    let service = Service::start_edited(&net, folder, "", at_relay1)?;
    if !is_everywhere {
        xdp::let_pass(&net.r1, "edge")?;
    }
    Ok((net, service))
}

/// Why there is no native XDP here, says the relay.
fn obstacle(folder: &Path) -> Result<Option<String>> {
    let (net, service) = start(&folder.join("obstacle"))?;
    let status = service.relay1.status(&net.edge1)?;
    if let Some(reason) = status.pointer("/xdp/why_not").and_then(Value::as_str) {
        return Ok(Some(reason.to_owned()));
    }
    let mode = status.pointer("/xdp/interfaces/0/mode");
    ensure!(mode == Some(&"native".into()), "not native: {status}");
    Ok(None)
}

fn place(
    name: &str,
    middle: fn(&TwoEdges, &mut Service) -> Result<()>,
    folder: &Path,
) -> Result<CallRecord> {
    let folder = folder.join(name);
    let (net, mut service) = start(&folder)?;
    let plan = Plan {
        transport: Transport::Udp,
        script: Script::Plain,
        seconds: SECONDS,
        padding: 0,
        middle: Middle::Break(middle),
    };
    let record = call::place(&net, &mut service, plan, &folder, &|_| {})?;
    let streams = service
        .relay1
        .gauge(&net.edge1, "sipcast_relay_xdp_streams");
    // A program that has lost its last interface has no figures of XDP.
    let streams = streams.unwrap_or(0);
    ensure!(
        streams == 0,
        "{name}: {streams} streams are left after the call"
    );
    Ok(record)
}

/// What the relay says of one side of its only call.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Side {
    /// XDP relays what it sends.
    is_offloaded: bool,
    by_xdp: u64,
    by_program: u64,
    relatched: u64,
    source: String,
}

fn sides(net: &TwoEdges, service: &Service) -> Result<[Side; 2]> {
    let status = service.relay1.status(&net.edge1)?;
    let side = |name: &str| {
        let of = status.pointer(&format!("/sessions/0/{name}"));
        let of = of.with_context(|| format!("no session in {status}"))?;
        let count = |key: &str| {
            let value = of.get(key).and_then(Value::as_u64);
            value.with_context(|| format!("no {key} in {of}"))
        };
        let (all, by_xdp) = (count("rtp_packets_in")?, count("rtp_packets_xdp")?);
        anyhow::Ok(Side {
            is_offloaded: of.get("xdp") == Some(&true.into()),
            by_xdp,
            by_program: all - by_xdp,
            relatched: count("relatched")?,
            source: of["latched_rtp"].as_str().unwrap_or_default().to_owned(),
        })
    };
    Ok([side("a")?, side("b")?])
}

/// Waits until both sides have sent this many more packets as `count` counts them.
fn wait_for(
    what: &str,
    net: &TwoEdges,
    service: &Service,
    count: fn(&Side) -> u64,
) -> Result<[Side; 2]> {
    let before = sides(net, service)?;
    let mut last = before.clone();
    wait::until(what, PATIENCE, || {
        last = sides(net, service)?;
        let mut pairs = before.iter().zip(&last);
        let is_enough = pairs.all(|(before, now)| count(now) >= count(before) + SOME);
        Ok(is_enough.then(|| last.clone()))
    })
    .with_context(|| format!("{before:?}, {last:?}"))
}

/// Both streams go by XDP, and nothing of them comes to the program.
fn by_xdp(net: &TwoEdges, service: &mut Service) -> Result<()> {
    let before = sides(net, service)?;
    let after = wait_for("RTP by XDP", net, service, |side| side.by_xdp)?;
    for (before, after) in before.iter().zip(&after) {
        ensure!(
            before.is_offloaded && after.is_offloaded && before.by_program == after.by_program,
            "RTP came to the program: {before:?}, {after:?}"
        );
        // The first packets have, until the other phone was heard; all that the call had by then is half.
        ensure!(after.by_program < SOME, "it came late: {after:?}");
    }
    Ok(())
}

fn take_away(net: &TwoEdges, service: &mut Service) -> Result<()> {
    by_xdp(net, service)?;
    xdp::take_away(&net.edge1, "eth0")?;
    let after = wait_for("RTP by the program", net, service, |side| side.by_program)?;
    wait::until("the relay to notice", PATIENCE, || {
        let status = service.relay1.status(&net.edge1)?;
        let attached = status.pointer("/xdp/interfaces/0/attached");
        let streams = status.pointer("/xdp/entries");
        let is_noticed = attached == Some(&false.into()) && streams == Some(&0.into());
        Ok(is_noticed.then_some(()))
    })
    .with_context(|| format!("{after:?}"))
}

/// The caller's NAT forgets its mappings and gives other ports from now on.
fn move_caller(net: &TwoEdges, service: &mut Service) -> Result<()> {
    by_xdp(net, service)?;
    for line in [
        "nft insert rule ip nat out oifname wan udp dport 30000-39999 masquerade to :50000-50999",
        "ip addr del 203.0.113.2/24 dev wan",
        "ip addr add 203.0.113.2/24 dev wan",
        "ip route add default via 203.0.113.1",
    ] {
        net.nat_a.run(line)?;
    }
    let mut last = sides(net, service)?;
    wait::until("the new source by XDP", PATIENCE, || {
        last = sides(net, service)?;
        let [a, b] = &last;
        let has_moved = a.relatched == 1 && a.source.contains(":50");
        Ok((has_moved && a.is_offloaded && b.is_offloaded).then_some(()))
    })
    .with_context(|| format!("{last:?}"))?;
    wait_for("RTP from and to it by XDP", net, service, |side| {
        side.by_xdp
    })?;
    Ok(())
}
