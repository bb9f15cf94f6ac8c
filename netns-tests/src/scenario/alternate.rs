//! A router that balances packet by packet: of the caller's packets to the service every second one
//! goes through the other edge. So the route flips between any two packets of REGISTER, INVITE, ACK,
//! two re-INVITEs and BYE.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, ensure};

use crate::call::{self, Middle, Plan};
use crate::phone::{Script, Transport};
use crate::service::{KEY1, KEY2, Service};
use crate::topology::two_edges::{NAT_A, TwoEdges};
use crate::verdict;

const SECONDS: u32 = 6;

pub(super) fn udp(folder: &Path) -> Result<String> {
    run(folder, Transport::Udp, Script::Offers)
}

pub(super) fn tcp(folder: &Path) -> Result<String> {
    run(folder, Transport::Tcp, Script::Plain)
}

fn run(folder: &Path, transport: Transport, script: Script) -> Result<String> {
    let net = TwoEdges::build()?;
    let mut service = Service::start(&net, folder)?;
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
    if transport == Transport::Tcp {
        ensure!(
            figures.connections == 1,
            "{} connections were opened",
            figures.connections
        );
    }
    // Over TCP a segment with a message may be anywhere among acknowledgements: any packet counts.
    let packets = record.seen.concentrator.iter().filter_map(|packet| {
        let (key, inner) = packet.gre()?;
        (inner.source == NAT_A).then_some(key)
    });
    let keys: Vec<u32> = packets.collect();
    let ways: BTreeSet<u32> = keys.iter().copied().collect();
    ensure!(
        ways == BTreeSet::from([KEY1, KEY2]),
        "ua1's packets came with the keys {ways:x?}"
    );
    let flips = keys.windows(2).filter(|pair| pair[0] != pair[1]).count();
    ensure!(
        flips * 2 > keys.len(),
        "{flips} flips between {} packets",
        keys.len()
    );
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
