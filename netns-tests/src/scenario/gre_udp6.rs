//! GRE in UDP (RFC 8086) over IPv6: calls with a plain INVITE, with one in fragments, and over TCP, whose route
//! flips in the middle. All that the edges and the concentrator send each other is UDP over IPv6 with a checksum, since none is
//! allowed only where both ends are told so (RFC 6935).

use std::collections::{HashMap, HashSet};
use std::net::Ipv6Addr;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::gre_udp;
use crate::call::CallRecord;
use crate::service::{KEY1, KEY2};
use crate::topology::dual_stack::{self, CONCENTRATOR};
use crate::topology::two_edges;
use crate::{audio, tshark, verdict};

pub(super) fn run(folder: &Path) -> Result<String> {
    gre_udp::place_calls(folder, &dual_stack::add, over_ipv6, &|record| {
        judge_call(record).context(record.complaints.clone())?;
        judge_outer(record.files.last().context("no capture")?)
    })
}

/// The programs' configs with GRE in UDP and IPv6 outside, which has 20 bytes more than IPv4.
fn over_ipv6(config: String) -> String {
    let mut config = gre_udp::in_udp(config).replace("mtu = 1464", "mtu = 1444");
    for key in ["concentrators = [", "listen = "] {
        config = config.replace(
            &format!("{key}\"{}\"", two_edges::CONCENTRATOR),
            &format!("{key}\"{CONCENTRATOR}\""),
        );
    }
    for (v4, v6) in [
        (two_edges::EDGE1, dual_stack::EDGE1),
        (two_edges::EDGE2, dual_stack::EDGE2),
    ] {
        config = config
            .replace(&format!("source = \"{v4}\""), &format!("source = \"{v6}\""))
            .replace(&format!("[\"{v4}/32\"]"), &format!("[\"{v6}/128\"]"));
    }
    config
}

/// The phones' end of it; [`verdict::criteria`] reads tunnels over IPv4 only.
fn judge_call(record: &CallRecord) -> Result<()> {
    ensure!(record.caller.success(), "the caller failed");
    let (during, after) = (record.during, record.after);
    ensure!(
        (during.calls, during.sessions1, during.sessions2) == (1, 1, 0)
            && (after.calls, after.sessions1, after.sessions2) == (0, 0, 0),
        "during the call {during}; after it {after}"
    );
    let figures = verdict::figures(record);
    let expected = (gre_udp::SECONDS * audio::PACKETS_PER_SECOND) as usize;
    for way in [&figures.to_callee, &figures.to_caller] {
        ensure!(
            way.sent == expected && way.received == expected,
            "RTP {}/{} of {expected}",
            way.received,
            way.sent
        );
    }
    Ok(())
}

/// What the concentrator sees of the tunnel: how many packets.
fn judge_outer(capture: &Path) -> Result<usize> {
    let plain = tshark::rows(capture, "ipv6.nxt==47||ip.proto==47", &["frame.number"])?;
    ensure!(plain.is_empty(), "there is plain GRE too: {plain:?}");
    let mut packets = 0;
    // Before the flip, and after it.
    for (edge, key) in [(dual_stack::EDGE1, KEY1), (dual_stack::EDGE2, KEY2)] {
        packets += judge_edge(capture, edge, key)?;
    }
    let back = format!("ipv6.src=={CONCENTRATOR}&&udp.dstport==4754&&gre");
    for row in tshark::rows(capture, &back, &["udp.checksum"])? {
        ensure_checksum(&row)?;
        packets += 1;
    }
    Ok(packets)
}

/// Each flow of the edge has one port, and no two the same.
fn judge_edge(capture: &Path, edge: Ipv6Addr, key: u32) -> Result<usize> {
    let filter = format!(
        "ipv6.src=={edge}&&ipv6.dst=={CONCENTRATOR}&&udp.dstport==4754&&gre.key=={key:#x}&&ip.src"
    );
    let fields = [
        "udp.checksum",
        "udp.srcport",
        "ip.src",
        "tcp.srcport",
        "ip.flags.mf",
        "ip.frag_offset",
    ];
    let rows = tshark::rows(capture, &filter, &fields)?;
    let mut ports: HashMap<(String, String), HashSet<u16>> = HashMap::new();
    let mut with_requests = 0;
    for row in &rows {
        ensure_checksum(row)?;
        let [_, udp, from, tcp, more, offset] = &row[..] else {
            anyhow::bail!("{row:?}");
        };
        let mut udp = udp.split(',');
        let port: u16 = udp.next().context("no port")?.parse()?;
        ensure!(port >= 49_152, "from port {port}");
        let is_fragment = matches!(&**more, "1" | "True") || offset != "0";
        let inner = if is_fragment {
            "fragment"
        } else {
            udp.next().unwrap_or(tcp)
        };
        with_requests += usize::from(!inner.is_empty());
        let flow = (from.clone(), inner.to_owned());
        ports.entry(flow).or_default().insert(port);
    }
    let one_each = ports.values().all(|ports| ports.len() == 1);
    let all: HashSet<u16> = ports.values().flatten().copied().collect();
    ensure!(
        with_requests > 0 && one_each && all.len() == ports.len(),
        "{edge}: ports by flow: {ports:?}"
    );
    Ok(rows.len())
}

/// That of the outer UDP header, which comes first. Whether it is right is seen elsewhere.
fn ensure_checksum(row: &[String]) -> Result<()> {
    let first = row.first().and_then(|sums| sums.split(',').next());
    ensure!(
        first.is_some_and(|sum| sum.starts_with("0x") && sum != "0x0000"),
        "no checksum: {row:?}"
    );
    Ok(())
}
