//! What a packet costs the ingress on its TUN path: ua1 floods the service address at a fixed rate
//! with datagrams; what leaves the edge as GRE is counted by nftables.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::{Conditions, Outcome};
use crate::service::{KEY1, MARK1, ingress_config, start_program};
use crate::topology::two_edges::{EDGE1, SERVICE, TwoEdges};

const RATE: u32 = 20_000;
const SECONDS: u32 = 5;
const PAYLOAD: usize = 400;

pub(super) fn run(folder: &Path) -> Result<Vec<Outcome>> {
    eprintln!("bench ingress-tun: building the network");
    let net = TwoEdges::build()?;
    net.edge1.nft(
        r#"
table ip count {
    chain out {
        type filter hook output priority filter
        ip protocol gre counter
    }
}
"#,
    )?;
    let config = ingress_config(KEY1, MARK1, EDGE1);
    let mut ingress = start_program(
        &net.edge1,
        "ingress1",
        "sipcast-ingress",
        9101,
        &config,
        folder,
    )?;
    // There is no concentrator, so it is not healthy.
    ingress.wait_until_started(&net.edge1)?;
    eprintln!("bench ingress-tun: {RATE} datagrams a second for {SECONDS} s");
    let before = ingress.process.cpu_time()?;
    // From r1: a phone's NAT would be the bottleneck.
    let duration = net.r1.inside(flood)?;
    let cpu = ingress.process.cpu_time()?.saturating_sub(before);
    let forwarded = counted(&net)?;
    let conditions = Conditions::of(u64::from(RATE * SECONDS), forwarded, duration, PAYLOAD);
    Ok(vec![Outcome {
        bench: "ingress-tun",
        unit: "microseconds of CPU per packet",
        ours: cpu.as_secs_f64() * 1e6 / forwarded.max(1) as f64,
        peer: None,
        peer_name: None,
        ratio: None,
        beside: serde_json::Map::new(),
        conditions,
    }])
}

fn flood() -> Result<Duration> {
    const BATCH: u32 = 20;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(SocketAddr::from((SERVICE, 5060)))?;
    let start = Instant::now();
    for batch in 0..RATE * SECONDS / BATCH {
        for _ in 0..BATCH {
            socket.send(&[b'x'; PAYLOAD])?;
        }
        let due = start + Duration::from_secs(1) * (batch + 1) * BATCH / RATE;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(start.elapsed())
}

fn counted(net: &TwoEdges) -> Result<u64> {
    let listing = net.edge1.run("nft list table ip count")?;
    let mut words = listing
        .split_whitespace()
        .skip_while(|word| *word != "packets");
    words
        .nth(1)
        .and_then(|word| word.parse().ok())
        .context("no counter")
}
