//! `sipcast-lab bench`: progress on standard error, one JSON line a result on standard output.
//!
//! Every line has `bench`, `unit`, `ours`, `peer`, `peer_name` and `ratio` (ours / peer; null where
//! the bench has no peer yet) and the conditions of its run. To add a bench, add a line to
//! [`BENCHES`] and a file in `bench/`.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

mod anycast;
mod bindings;
mod cluster;
mod concentrators;
mod control_delay;
mod driver;
mod failover;
mod flood;
mod idle_time;
mod ingress;
mod ingress_tun;
mod load;
mod relay;
mod signalling;
mod sip_core;
pub(crate) mod sipp_trace;
mod standby;
mod tables;

/// A bench: name, what it measures, how.
struct Bench {
    name: &'static str,
    about: &'static str,
    run: fn(&Path) -> Result<Vec<Outcome>>,
}

const BENCHES: &[Bench] = &[
    Bench {
        name: "anycast",
        about: "in the topology `internet`: nearest edge or not, media paths, convergence; no peer; 15 minutes",
        run: anycast::run,
    },
    Bench {
        name: "anycast/proximity",
        about: "its parts apart: round trips by anycast beside those to each edge, with and without each edge",
        run: anycast::run_proximity,
    },
    Bench {
        name: "anycast/media",
        about: "one-way delay of media between all access networks, by the relay at the edge and otherwise",
        run: anycast::run_media,
    },
    Bench {
        name: "anycast/convergence",
        about: "how long nobody answers when an edge is drained, loses power, is cut off: 60 accidents",
        run: anycast::run_convergence,
    },
    Bench {
        name: "bindings",
        about: "memory per binding at 200,000, and how long they take to be restored; no peer yet",
        run: |folder| Ok(vec![bindings::run(folder)?]),
    },
    Bench {
        name: "cluster",
        about: "1,000,000 bindings in three concentrators over NATS: memory, joining, refreshes; 10 minutes, 8 GB",
        run: cluster::run,
    },
    Bench {
        name: "cluster/refresh",
        about: "its parts apart: CPU per refresh, and the rate that this machine carries",
        run: cluster::run_refresh,
    },
    Bench {
        name: "cluster/stale",
        about: "1,000,000 registrations that are over, and a concentrator that starts with them",
        run: cluster::run_stale,
    },
    Bench {
        name: "concentrators",
        about: "CPU per call of 1, 2 and 3 concentrators that share the phones out; no peer",
        run: concentrators::run,
    },
    Bench {
        name: "control-delay",
        about: "post-dial delay with the relay 0, 20 and 100 ms away; Kamailio and rtpengine beside it",
        run: control_delay::run,
    },
    Bench {
        name: "failover",
        about: "failed calls and gaps when a concentrator, an ingress or a NATS server dies, hangs, is cut off, drains; 50 to 400 calls/s",
        run: failover::run,
    },
    Bench {
        name: "failover/short",
        about: "the same at 100 and 400 calls/s",
        run: failover::run_short,
    },
    Bench {
        name: "failover/tcp",
        about: "the same over TCP at 100 calls/s, with phones that open another connection",
        run: failover::run_tcp,
    },
    Bench {
        name: "flood",
        about: "goodput of calls while one source floods their edge: SIP, SYN, random; by XDP and on the TUN path",
        run: flood::run,
    },
    Bench {
        name: "ingress",
        about: "CPU per packet at an edge: XDP beside the TUN path and the kernel's plain forwarding",
        run: ingress::run,
    },
    Bench {
        name: "ingress/socket",
        about: "the same with frames from a socket over veth, which copies each for XDP",
        run: ingress::run_socket,
    },
    Bench {
        name: "ingress-tun",
        about: "CPU of sipcast-ingress per packet on the TUN path; no peer yet",
        run: ingress_tun::run,
    },
    Bench {
        name: "relay",
        about: "CPU per relayed packet in user space and by XDP, loss, delay, sessions; rtpengine beside it",
        run: relay::run,
    },
    Bench {
        name: "relay/cost",
        about: "its parts apart: CPU per packet, delay, sessions set up",
        run: relay::run_cost,
    },
    Bench {
        name: "relay/xdp",
        about: "CPU of the whole machine per packet relayed by XDP; frames come as from a card's driver",
        run: relay::run_xdp,
    },
    Bench {
        name: "relay/xdp-socket",
        about: "the same with packets of sockets, and their delay",
        run: relay::run_xdp_socket,
    },
    Bench {
        name: "relay/sessions",
        about: "memory of 10,000 sessions at once, where the limit of open files allows them",
        run: relay::run_sessions,
    },
    Bench {
        name: "relay/highest-rate",
        about: "the highest rate without a lost packet",
        run: relay::run_highest_rate,
    },
    Bench {
        name: "signalling",
        about: "CPU per proxied call, highest rate, post-dial delay; Kamailio beside it",
        run: signalling::run,
    },
    Bench {
        name: "signalling/calls",
        about: "its parts apart: CPU per proxied call",
        run: signalling::run_calls,
    },
    Bench {
        name: "signalling/register",
        about: "CPU per authenticated REGISTER",
        run: signalling::run_registrations,
    },
    Bench {
        name: "signalling/memory",
        about: "our memory per call in progress",
        run: signalling::run_memory,
    },
    Bench {
        name: "signalling/highest-rate",
        about: "the highest rate without a failed call in a minute",
        run: signalling::run_highest_rate,
    },
    Bench {
        name: "sip-core",
        about: "time of the SIP core alone per proxied call and REGISTER; no peer",
        run: sip_core::run,
    },
    Bench {
        name: "sip-core/calls",
        about: "its parts apart: a proxied call",
        run: sip_core::run_calls,
    },
    Bench {
        name: "sip-core/register",
        about: "an authenticated REGISTER",
        run: sip_core::run_registrations,
    },
    Bench {
        name: "standby",
        about: "how long media stop when a relay's host dies, at 20 to 5,000 sessions; no peer",
        run: standby::run,
    },
    Bench {
        name: "tables",
        about: "what papers on this subject tabulate: time per INVITE, set-up, choice at the edge, take-over, availability",
        run: tables::run,
    },
];

/// What a bench measured.
#[derive(Debug, Serialize)]
struct Outcome {
    bench: &'static str,
    unit: &'static str,
    ours: f64,
    peer: Option<f64>,
    peer_name: Option<&'static str>,
    ratio: Option<f64>,
    /// Figures with names of their own.
    #[serde(flatten)]
    beside: serde_json::Map<String, serde_json::Value>,
    conditions: Conditions,
}

/// Under which conditions.
#[derive(Debug, Serialize)]
struct Conditions {
    rate_per_second: f64,
    sent: u64,
    completed: u64,
    duration_s: f64,
    payload_bytes: usize,
    version: &'static str,
    build: &'static str,
    kernel: String,
    cores: usize,
    /// What only this bench has.
    #[serde(skip_serializing_if = "serde_json::Value::is_null")]
    more: serde_json::Value,
}

impl Conditions {
    fn of(sent: u64, completed: u64, duration: Duration, payload_bytes: usize) -> Self {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            rate_per_second: sent as f64 / duration.as_secs_f64(),
            sent,
            completed,
            duration_s: duration.as_secs_f64(),
            payload_bytes,
            version: env!("CARGO_PKG_VERSION"),
            build: if cfg!(debug_assertions) {
                "debug"
            } else {
                "release"
            },
            kernel: kernel.trim().to_owned(),
            cores: std::thread::available_parallelism().map_or(0, Into::into),
            more: serde_json::Value::Null,
        }
    }
}

/// The names, one a line with what it measures.
pub(crate) fn list() -> String {
    BENCHES
        .iter()
        .map(|bench| format!("{:<25}{}\n", bench.name, bench.about))
        .collect()
}

/// Runs one.
pub(crate) fn run(name: &str, out: &Path) -> Result<()> {
    let bench = BENCHES
        .iter()
        .find(|bench| bench.name == name)
        .with_context(|| format!("there is no bench {name:?}; there are:\n{}", list()))?;
    let folder = out.join("bench").join(name);
    std::fs::create_dir_all(&folder)?;
    for outcome in (bench.run)(&folder.canonicalize()?)? {
        println!("{}", serde_json::to_string(&outcome)?);
    }
    Ok(())
}
