//! Datagrams of one length to the service address, as from a network card's driver.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use aya::EbpfLoader;

use super::{FIRST_SOURCE, RATE};
use crate::bench::driver::{Generator, Pace, device};
use crate::raw;
use crate::topology::two_edges::{SERVICE, TwoEdges};

const PACE: Pace = Pace {
    batch: 64,
    rate: RATE,
};
/// Octets of Ethernet and IPv4 header.
const HEADERS: usize = 14 + 20;

/// Sends them from so many addresses in turn, out of r1's end of the wire.
pub(super) fn generator(net: &TwoEdges, size: usize, sources: u32) -> Result<Generator<'_>> {
    let (_, to) = device(&net.edge1, "eth0")?;
    let (interface, from) = device(&net.r1, "edge")?;
    let payload = raw::udp(5060, 5060, &vec![b'x'; size - 28]);
    let mut packet = raw::ipv4(Ipv4Addr::UNSPECIFIED, SERVICE, 0, raw::UDP, &payload);
    // The program puts in the checksum, too.
    packet[10..12].fill(0);
    let frame = [&to[..], &from[..], &[8, 0], &packet].concat();
    let headers: [u8; HEADERS] = *frame.first_chunk().context("a frame without headers")?;
    let mut loader = EbpfLoader::new();
    loader
        .override_global("interface", &interface, true)
        .override_global("first_source", &FIRST_SOURCE, true)
        .override_global("sources", &sources, true)
        .override_global("headers", &headers, true);
    Generator::new(&net.r1, ("generate", &mut loader), frame, PACE)
}
