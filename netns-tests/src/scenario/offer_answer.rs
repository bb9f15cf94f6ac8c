//! A call whose callee makes the offer, in the 200 (RFC 3261 section 13.2.1); then hold and resume; then
//! an offer that moves the audio and adds video, and is refused with 488. "The session parameters MUST
//! remain unchanged" (section 14.1): the audio goes on through the relay both ways, on one session.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::call::{self, CallRecord, Holdings, Middle, Plan};
use crate::frame::Packet;
use crate::phone::{Script, Transport};
use crate::service::Service;
use crate::topology::two_edges::{EDGE1, PHONE, TwoEdges};

/// More than the call lasts. Half of it is over after the 488 and before the BYE.
const SECONDS: u32 = 6;
/// Packets before the BYE that may still be under way then, in microseconds.
const MARGIN_US: u64 = 300_000;
/// RTP packets each way after the 488, of two seconds.
const ENOUGH: usize = 80;

pub(super) fn run(folder: &Path) -> Result<String> {
    let net = TwoEdges::build()?;
    let mut service = Service::start(&net, folder)?;
    let plan = Plan {
        transport: Transport::Udp,
        script: Script::Offers,
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
    // The session of the refused video still lingers when this is counted.
    ensure!(
        record.during.calls == 1 && record.during.sessions2 == 0,
        "after the 488: {}",
        record.during
    );
    let metrics = service.concentrator.metrics(&net.concentrator)?;
    let undone = metrics
        .iter()
        .find(|(name, _)| name.contains("\"media_offer_rolled_back\""));
    ensure!(
        undone.is_some_and(|(_, count)| *count == 1.0),
        "the concentrator has undone no offer: {undone:?}"
    );
    let none = Holdings {
        calls: 0,
        sessions1: 0,
        sessions2: 0,
    };
    ensure!(record.after == none, "after the BYE: {}", record.after);
    let seen = &record.seen;
    let to_callee = after_the_488(&record, &seen.ua1, &seen.ua2).context("ua1 to ua2")?;
    let to_caller = after_the_488(&record, &seen.ua2, &seen.ua1).context("ua2 to ua1")?;
    Ok(format!(
        "after the 488 {to_callee} RTP packets to the callee and {to_caller} to the caller, none lost"
    ))
}

/// Packets of one way that were sent between 488 and BYE, all of which must have arrived from the
/// relay of edge 1.
fn after_the_488(record: &CallRecord, from: &[Packet], to: &[Packet]) -> Result<usize> {
    let refused = when(&record.seen.ua1, "SIP/2.0 488").context("ua1 saw no 488")?;
    let bye = when(&record.seen.ua1, "BYE ").context("ua1 sent no BYE")?;
    let sent = rtp(from, |packet| {
        packet.source == PHONE && packet.at > refused && packet.at + MARGIN_US < bye
    });
    let heard = rtp(to, |packet| {
        packet.destination == PHONE && packet.source == EDGE1
    });
    ensure!(
        sent.len() >= ENOUGH,
        "only {} packets were sent",
        sent.len()
    );
    let lost = sent.iter().filter(|rtp| !heard.contains(rtp)).count();
    ensure!(lost == 0, "{lost} of {} packets were lost", sent.len());
    let described = Ipv4Addr::new(192, 168, 1, 77);
    let strayed = from
        .iter()
        .chain(to)
        .any(|packet| packet.destination == described);
    ensure!(
        !strayed,
        "something was sent to {described}, which was refused"
    );
    Ok(sent.len())
}

/// When a phone first saw a message that begins like this.
fn when(packets: &[Packet], start: &str) -> Option<u64> {
    let mut packets = packets.iter();
    let first = packets.find(|packet| {
        let line = packet.udp().and_then(|segment| segment.sip_start_line());
        line.is_some_and(|line| line.starts_with(start))
    });
    first.map(|packet| packet.at)
}

fn rtp(packets: &[Packet], chosen: impl Fn(&Packet) -> bool) -> Vec<crate::frame::Rtp> {
    packets
        .iter()
        .filter(|packet| chosen(packet))
        .filter_map(|packet| packet.udp()?.rtp())
        .collect()
}
