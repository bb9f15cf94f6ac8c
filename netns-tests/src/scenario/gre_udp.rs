//! The tunnel as GRE in UDP (RFC 8086): calls with a plain INVITE and with one in fragments. All that leaves
//! edge 1 for the concentrator is UDP to port 4754, from a port of its inner flow.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::calls;
use crate::call::{self, CallRecord, Middle, Plan};
use crate::frame::{GRE, Packet};
use crate::phone::{Script, Transport};
use crate::service::{KEY1, Service};
use crate::topology::two_edges::{CONCENTRATOR, EDGE1, TwoEdges};
use crate::tshark;

pub(super) const SECONDS: u32 = 4;
/// Makes the INVITE three fragments.
const PADDING: usize = 3_560;

pub(super) fn run(folder: &Path) -> Result<String> {
    place_calls(folder, &|_| Ok(()), in_udp, &|record| {
        calls::judge(record)?;
        let packets = judge_outer(&record.seen.concentrator)?;
        let decoded = record.files.last().context("no capture")?;
        let filter = format!("ip.src=={EDGE1}&&udp.dstport==4754&&gre.key=={KEY1:#x}");
        let decoded = tshark::rows(decoded, &filter, &["udp.srcport"])?.len();
        ensure!(
            decoded == packets,
            "{packets} packets of edge 1, tshark decodes {decoded}"
        );
        Ok(packets)
    })
}

/// The calls, each in a network of its own, with the programs' configs edited; `judge` says how many packets
/// the tunnel had.
pub(super) fn place_calls(
    folder: &Path,
    prepare: &dyn Fn(&TwoEdges) -> Result<()>,
    edit: fn(String) -> String,
    judge: &dyn Fn(&CallRecord) -> Result<usize>,
) -> Result<String> {
    tshark::require()?;
    let mut shown = Vec::new();
    for (name, transport, padding) in [
        ("udp", Transport::Udp, 0),
        ("tcp", Transport::Tcp, 0),
        ("fragments", Transport::Udp, PADDING),
    ] {
        let folder = folder.join(name);
        let net = TwoEdges::build()?;
        prepare(&net)?;
        let mut service = Service::start_edited(&net, &folder, "", edit)?;
        let plan = Plan {
            transport,
            script: Script::Plain,
            seconds: SECONDS,
            padding,
            middle: Middle::Flip,
        };
        let record = call::place(&net, &mut service, plan, &folder, &|_| {})?;
        let packets = judge(&record).with_context(|| format!("the call {name:?}"))?;
        let checked = tshark::check_checksums(&record.files)?;
        shown.push(format!(
            "{name}: {packets} packets, {checked} right checksums"
        ));
    }
    Ok(shown.join("; "))
}

/// The programs' configs with GRE in UDP, which leaves 8 bytes less.
pub(super) fn in_udp(config: String) -> String {
    const UDP: &str = "encapsulation = \"gre-udp\"\n";
    let config = config.replace("mtu = 1472", "mtu = 1464");
    if config.contains("[announcement]") {
        return config.replace("[tunnel]\n", &format!("[tunnel]\n{UDP}"));
    }
    config.replace("fallback = ", &format!("{UDP}fallback = "))
}

/// The packets of edge 1: each flow has one port, and no two the same.
fn judge_outer(seen: &[Packet]) -> Result<usize> {
    ensure!(
        seen.iter().all(|packet| packet.protocol != GRE),
        "there is plain GRE too"
    );
    let mut ports: HashMap<(Ipv4Addr, u16, u8), HashSet<u16>> = HashMap::new();
    let mut packets = 0;
    for packet in seen.iter().filter(|packet| packet.source == EDGE1) {
        let Some((_, inner)) = packet.gre() else {
            continue;
        };
        ensure!(
            packet.dont_fragment && packet.destination == CONCENTRATOR,
            "{packet:?}"
        );
        packets += 1;
        let port = u16::from_be_bytes([packet.payload[0], packet.payload[1]]);
        ensure!(port >= 49_152, "from port {port}");
        let source = u16::from_be_bytes([inner.payload[0], inner.payload[1]]);
        let source = if inner.is_fragment() { 0 } else { source };
        let flow = (inner.source, source, inner.protocol);
        ports.entry(flow).or_default().insert(port);
    }
    let one_each = ports.values().all(|ports| ports.len() == 1);
    let all: HashSet<u16> = ports.values().flatten().copied().collect();
    ensure!(
        one_each && all.len() == ports.len() && ports.len() > 1,
        "ports by flow: {ports:?}"
    );
    Ok(packets)
}
