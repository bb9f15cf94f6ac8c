//! What calls notice while one edge is flooded by one source, at the full rate of a generator.
//!
//! The flood comes out of r1 with the address of one host: SIP requests, TCP handshakes that nobody ends, or
//! octets without a meaning. Beside it ua1 calls ua2 through the same edge at a constant rate. The edge
//! limits each source. `ours` is the goodput by XDP: calls that succeeded for each that was offered; `peer`
//! is that of our own TUN path, where the flood has to be read and dropped by the program.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

use super::sipp_trace;
use super::{Conditions, Outcome};
use crate::phone;
use crate::raw;
use crate::scenario::baresip::bindings;
use crate::service::Service;
use crate::topology::two_edges::{SERVICE, TwoEdges};
use crate::{wait, xdp};

/// Of the one that floods; nobody else has it.
const FLOODER: Ipv4Addr = Ipv4Addr::new(203, 0, 115, 66);
const CALLS: u32 = 300;
/// A second.
const RATE: u32 = 20;
/// More than ua1 sends with all its calls.
const LIMITS: &str = "[limits]\nsource_packets_per_s = 1000\nsource_burst = 1000\n";
/// Octets of the IP packets.
const LONG: usize = 600;
const SHORT: usize = 64;
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy)]
enum Flood {
    None,
    Sip,
    Syn,
    Random,
}

impl Flood {
    const ALL: [Self; 4] = [Self::None, Self::Sip, Self::Syn, Self::Random];

    const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Sip => "sip",
            Self::Syn => "syn",
            Self::Random => "random",
        }
    }

    fn packet(self) -> Vec<u8> {
        let (protocol, payload) = match self {
            Self::None => (raw::UDP, Vec::new()),
            Self::Sip => {
                let mut request = format!(
                    "OPTIONS sip:example.com SIP/2.0\r\nVia: SIP/2.0/UDP {FLOODER}:5060;\
                     branch=z9hG4bKflood\r\nMax-Forwards: 70\r\nFrom: <sip:f@b.c>;tag=1\r\n\
                     To: <sip:example.com>\r\nCall-ID: flood\r\nCSeq: 1 OPTIONS\r\n\
                     Content-Length: 0\r\nX: "
                );
                request.extend(std::iter::repeat_n(
                    'x',
                    LONG.saturating_sub(32 + request.len()),
                ));
                request.push_str("\r\n\r\n");
                (raw::UDP, raw::udp(5060, 5060, request.as_bytes()))
            }
            Self::Syn => {
                let mut segment = vec![0x13, 0xc4, 0x13, 0xc4, 0, 0, 0, 1, 0, 0, 0, 0];
                // A header of 20 octets, SYN; the checksum is wrong, which is not looked at before the limit.
                segment.extend([0x50, 0x02, 0x10, 0, 0, 0, 0, 0]);
                (6, segment)
            }
            Self::Random => (raw::UDP, raw::udp(40_000, 5060, &[0xa5; SHORT - 28])),
        };
        raw::ipv4(FLOODER, SERVICE, 0, protocol, &payload)
    }
}

/// What was seen of a flood.
#[derive(Debug)]
struct Seen {
    successful: u32,
    repeated_invites: u32,
    flood_packets: u64,
    flood_per_s: f64,
    dropped: u64,
    took: Duration,
}

pub(super) fn run(folder: &Path) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    for flood in Flood::ALL {
        let [fast, slow] = [("native", "xdp"), ("off", "tun")].map(|(mode, name)| {
            eprintln!("bench flood: {}, {name}", flood.name());
            let seen = one(
                flood,
                mode,
                &folder.join(format!("{}-{name}", flood.name())),
            );
            if let Ok(seen) = &seen {
                eprintln!("  {seen:?}");
            }
            seen
        });
        let (fast, slow) = (fast?, slow?);
        let goodput = |seen: &Seen| f64::from(seen.successful) / f64::from(CALLS);
        let mut conditions = Conditions::of(CALLS.into(), fast.successful.into(), fast.took, LONG);
        let show = |seen: &Seen| {
            json!({
                "calls_failed": CALLS - seen.successful,
                "repeated_invites": seen.repeated_invites,
                "flood_packets": seen.flood_packets,
                "flood_packets_per_s": seen.flood_per_s,
                "flood_packets_dropped_at_the_edge": seen.dropped,
            })
        };
        conditions.more = json!({
            "flood": flood.name(),
            "calls_per_s": RATE,
            "source_packets_per_s": 1_000,
            "xdp": show(&fast),
            "tun": show(&slow),
        });
        outcomes.push(Outcome {
            bench: "flood",
            unit: "goodput_of_other_sources",
            ours: goodput(&fast),
            peer: Some(goodput(&slow)),
            peer_name: Some("sipcast-ingress, TUN path"),
            ratio: Some(goodput(&fast) / goodput(&slow)),
            beside: serde_json::Map::new(),
            conditions,
        });
    }
    Ok(outcomes)
}

fn one(flood: Flood, mode: &str, folder: &Path) -> Result<Seen> {
    let net = TwoEdges::build()?;
    if xdp::wanted().is_none() {
        xdp::let_pass(&net.r1, "edge")?;
    }
    let limited = |config: String| {
        if !config.contains("mark = 1\n[tunnel]") {
            return config;
        }
        let section = xdp::section(mode);
        let known = xdp::wanted().map(|mode| xdp::section(&mode));
        let config = config.replace(&known.unwrap_or_default(), "");
        format!("{config}{section}{LIMITS}")
    };
    let mut service = Service::start_edited(&net, folder, "", limited)?;
    let mut callee = phone::quick_callee(&net.ua2, folder)?;
    wait::until("the callee to register", PATIENCE, || {
        Ok((!bindings(&net, &service)?.is_empty()).then_some(()))
    })?;
    let stop = AtomicBool::new(false);
    let start = Instant::now();
    let (flooded, status) = thread::scope(|scope| {
        let flooding = scope.spawn(|| send(&net, flood, &stop));
        let called = call(&net, folder);
        stop.store(true, Ordering::Relaxed);
        let flooded = flooding.join();
        let flooded = flooded.map_err(|_| anyhow::anyhow!("the flood's thread panicked"));
        (flooded, called)
    });
    let took = start.elapsed();
    let (flooded, (successful, repeated_invites)) = (flooded??, status?);
    callee.stop()?;
    service.check_alive()?;
    Ok(Seen {
        successful,
        repeated_invites,
        flood_packets: flooded,
        flood_per_s: flooded as f64 / took.as_secs_f64(),
        dropped: dropped(&net, &service, flooded)?,
        took,
    })
}

/// As fast as one CPU can, until it is told to stop.
fn send(net: &TwoEdges, flood: Flood, stop: &AtomicBool) -> Result<u64> {
    net.r1.inside(|| {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)))?;
        let to = SocketAddr::from((SERVICE, 0)).into();
        let packet = flood.packet();
        let mut sent = 0;
        while !stop.load(Ordering::Relaxed) {
            if matches!(flood, Flood::None) {
                thread::sleep(Duration::from_millis(10));
                continue;
            }
            // A full queue is the generator's limit.
            sent += u64::from(socket.send_to(&packet, &to).is_ok());
        }
        Ok(sent)
    })
}

/// Calls that succeeded, and INVITEs that were repeated.
fn call(net: &TwoEdges, folder: &Path) -> Result<(u32, u32)> {
    let mut caller = phone::patient_caller(&net.ua1, phone::Transport::Udp, CALLS, RATE, folder)?;
    caller.wait(Duration::from_secs(u64::from(CALLS / RATE) + 60))?;
    let screen = fs::read_to_string(folder.join("ua1/sipp.log")).unwrap_or_default();
    let last = |name: &str| {
        let mut lines = screen.lines().rev();
        let line = lines.find(|line| line.trim_start().starts_with(name))?;
        line.rsplit('|').next()?.trim().parse::<u32>().ok()
    };
    let successful = last("Successful call").context("SIPp counts no successful calls")?;
    // SIPp's screen does not tell retransmissions by method, its trace does.
    let trace = folder.join("ua1/messages.txt");
    let trace = fs::read_to_string(&trace).with_context(|| trace.display().to_string())?;
    let repeated = sipp_trace::read(&trace)
        .iter()
        .map(|call| call.repeated)
        .sum();
    Ok((successful, repeated))
}

/// At the edge, by either way.
fn dropped(net: &TwoEdges, service: &Service, flooded: u64) -> Result<u64> {
    let mut last = 0;
    // The XDP counters are read once a second.
    let read = wait::until("the drops", Duration::from_secs(5), || {
        let status = service.ingress1.status(&net.edge1)?;
        let count = |pointer: &str| status.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
        last = count("/xdp/counters/drop_source_limit")
            + count("/counters/dropped_packets/source_limit");
        Ok((last * 10 >= flooded * 9).then_some(last))
    });
    ensure!(flooded == 0 || last > 0, "nothing of the flood was dropped");
    Ok(read.unwrap_or(last))
}
