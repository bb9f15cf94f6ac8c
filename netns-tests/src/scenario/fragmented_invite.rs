//! A 4,000-byte INVITE over UDP leaves ua1 in four fragments; r1 sends the first and third to
//! edge 1, the second and fourth to edge 2. The concentrator must put them together, mark included.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::calls;
use crate::call::{self, Middle, Plan};
use crate::phone::{Script, Transport};
use crate::service::{KEY1, KEY2, Service};
use crate::topology::two_edges::{NAT_A, PHONE, TwoEdges};

const SECONDS: u32 = 4;
/// With the rest of the INVITE this makes 4,000 bytes and some.
const PADDING: usize = 3_560;
/// The size that the issue asks for.
const WANTED: usize = 4_000;

pub(super) fn run(folder: &Path) -> Result<String> {
    let net = TwoEdges::build()?;
    // Of this size four fragments come out, at the offsets 0, 147, 294 and 441.
    net.ua1.run("ip link set eth0 mtu 1200")?;
    net.split_fragments()?;
    let mut service = Service::start(&net, folder)?;
    let plan = Plan {
        transport: Transport::Udp,
        script: Script::Plain,
        seconds: SECONDS,
        padding: PADDING,
        middle: Middle::Nothing,
    };
    let record = call::place(&net, &mut service, plan, folder, &|_| {})?;
    let length = record
        .seen
        .ua1
        .iter()
        .filter(|packet| packet.source == PHONE && packet.is_fragment())
        .filter_map(|packet| packet.udp().map(|_| packet))
        .map(|first| usize::from(u16::from_be_bytes([first.payload[4], first.payload[5]])) - 8)
        .max()
        .context("ua1 sent no fragments")?;
    ensure!(length >= WANTED, "the INVITE has {length} bytes only");
    let fragments = |key: u32| {
        record
            .seen
            .concentrator
            .iter()
            .filter_map(crate::frame::Packet::gre)
            .filter(|(of, inner)| *of == key && inner.source == NAT_A && inner.is_fragment())
            .count()
    };
    let (edge1, edge2) = (fragments(KEY1), fragments(KEY2));
    ensure!(
        edge1 > 0 && edge1 == edge2,
        "fragments: {edge1} through edge 1, {edge2} through edge 2"
    );
    let figures = calls::judge(&record)?;
    Ok(format!(
        "INVITE of {length} bytes, {edge1} fragments through edge 1 and {edge2} through edge 2; {figures}"
    ))
}
