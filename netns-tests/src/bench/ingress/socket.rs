//! Frames from a raw socket at r1, and the counting of what comes back as skbs.

use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use super::{FIRST_SOURCE, RATE};
use crate::raw;
use crate::topology::two_edges::{SERVICE, TwoEdges};

/// Every veth has a queue of 256 frames.
const BATCH: u32 = 32;

/// At r1: counts what comes back, and drops it.
const SINK: &str = r#"
table netdev sink {
    chain back {
        type filter hook ingress device "edge" priority 0
        ip protocol gre counter drop
        ip daddr 198.51.100.1 counter drop
    }
}
"#;
/// At edge 1.
const DROP: &str = r#"
table netdev sink {
    chain arrive {
        type filter hook ingress device "eth0" priority 0
        ip daddr 198.51.100.1 drop
    }
}
"#;

const NO_MORE: &str = "nft delete table netdev sink";

pub(super) fn count_at_r1(net: &TwoEdges) -> Result<()> {
    net.r1.nft(SINK)
}

pub(super) fn count_no_more_at_r1(net: &TwoEdges) -> Result<()> {
    net.r1.run(NO_MORE).map(drop)
}

pub(super) fn drop_at_edge(net: &TwoEdges) -> Result<()> {
    net.edge1.nft(DROP)
}

pub(super) fn drop_no_more_at_edge(net: &TwoEdges) -> Result<()> {
    net.edge1.run(NO_MORE).map(drop)
}

/// Sends datagrams to the service address and says how long it took.
pub(super) fn flood(net: &TwoEdges, size: usize, sources: u32, packets: u32) -> Result<Duration> {
    net.r1.inside(|| {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)))?;
        let to = SocketAddr::from((SERVICE, 0)).into();
        let payload = raw::udp(5060, 5060, &vec![b'x'; size - 28]);
        let mut packet = raw::ipv4(Ipv4Addr::UNSPECIFIED, SERVICE, 0, raw::UDP, &payload);
        let start = Instant::now();
        for batch in 0..packets / BATCH {
            for number in batch * BATCH..(batch + 1) * BATCH {
                let source = FIRST_SOURCE + number % sources;
                packet[12..16].copy_from_slice(&source.to_be_bytes());
                // The kernel makes the header's checksum.
                socket.send_to(&packet, &to)?;
            }
            let due = start + Duration::from_secs(1) * (batch + 1) * BATCH / RATE;
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        Ok(start.elapsed())
    })
}

/// Packets that have come back so far.
pub(super) fn counted(net: &TwoEdges) -> Result<u64> {
    let listing = net.r1.run("nft list table netdev sink")?;
    let words: Vec<&str> = listing.split_whitespace().collect();
    let counts = words.windows(2).filter(|pair| pair[0] == "packets");
    let counts: Vec<u64> = counts.filter_map(|pair| pair[1].parse().ok()).collect();
    ensure!(counts.len() == 2, "no counters in {listing}");
    Ok(counts.iter().sum())
}
