//! `anchor = "both"`: the caller's edge relays to the callee's edge, which relays to the callee. Each
//! phone sends to the relay of its own edge and hears from nobody else, and a route flip in mid-call
//! changes nothing of it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Result, ensure};

use crate::call::{self, CallRecord, Middle, Plan};
use crate::frame::{Packet, Rtp};
use crate::phone::{Script, Transport};
use crate::service::Service;
use crate::topology::two_edges::{EDGE1, EDGE2, NAT_A, NAT_B, PHONE, TwoEdges};

const SECONDS: u32 = 6;
const BOTH: &str = "\n[media]\nanchor = \"both\"\n";
/// The share of RTP packets that must arrive.
const ARRIVED: f64 = 0.999;

pub(super) fn run(folder: &Path) -> Result<String> {
    let net = TwoEdges::build()?;
    let mut service = Service::start_with(&net, folder, BOTH)?;
    let plan = Plan {
        transport: Transport::Udp,
        script: Script::Plain,
        seconds: SECONDS,
        padding: 0,
        middle: Middle::Flip,
    };
    let record = call::place(&net, &mut service, plan, folder, &|_| {})?;
    ensure!(
        record.caller.success(),
        "the call failed: {}",
        record.complaints
    );
    let (during, after) = (record.during, record.after);
    ensure!(
        (during.calls, during.sessions1, during.sessions2) == (1, 1, 1),
        "during the call: {during}"
    );
    ensure!(
        (after.calls, after.sessions1, after.sessions2) == (0, 0, 0),
        "after the call: {after}"
    );
    let there = follow(&record, [EDGE1, EDGE2], NAT_B)?;
    let back = follow(&record, [EDGE2, EDGE1], NAT_A)?;
    for (phone, packets, edge) in [
        ("ua1", &record.seen.ua1, EDGE1),
        ("ua2", &record.seen.ua2, EDGE2),
    ] {
        let strangers = rtp(packets, |packet| {
            let other = if packet.source == PHONE {
                packet.destination
            } else {
                packet.source
            };
            other != edge
        });
        ensure!(
            strangers.is_empty(),
            "{phone} has RTP with somebody else than {edge}: {}",
            strangers.len()
        );
    }
    Ok(format!(
        "RTP through both relays {there} and {back}, the route flipped"
    ))
}

/// Follows one direction: sent by a phone, from the first relay to the second, from there to the
/// other phone's NAT, heard by the other phone.
fn follow(record: &CallRecord, [first, second]: [Ipv4Addr; 2], nat: Ipv4Addr) -> Result<String> {
    let seen = &record.seen;
    let (from, to, at_first, at_second) = if first == EDGE1 {
        (&seen.ua1, &seen.ua2, &seen.edge1, &seen.edge2)
    } else {
        (&seen.ua2, &seen.ua1, &seen.edge2, &seen.edge1)
    };
    let sent = rtp(from, |packet| packet.source == PHONE);
    let way = |packets: &[Packet], source, destination| {
        rtp(packets, |packet| {
            packet.source == source && packet.destination == destination
        })
        .intersection(&sent)
        .count()
    };
    let counts = [
        way(at_first, first, second),
        way(at_second, second, nat),
        rtp(to, |packet| packet.destination == PHONE)
            .intersection(&sent)
            .count(),
    ];
    for count in counts {
        ensure!(
            count as f64 >= ARRIVED * sent.len() as f64 && !sent.is_empty(),
            "of {} packets from behind {first}: {} to the second relay, {} to the NAT, {} heard",
            sent.len(),
            counts[0],
            counts[1],
            counts[2]
        );
    }
    Ok(format!("{}/{}", counts[2], sent.len()))
}

fn rtp(packets: &[Packet], which: impl Fn(&Packet) -> bool) -> BTreeSet<Rtp> {
    packets
        .iter()
        .filter(|packet| which(packet))
        .filter_map(|packet| packet.udp()?.rtp())
        .collect()
}
