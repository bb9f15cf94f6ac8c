//! What a relay far from its server costs a caller: sipcast with its rtp-agent, and a stock Kamailio
//! with a stock rtpengine, one after the other in the same network, with the same SIPp.
//!
//! ```text
//!    phones 10.0.3.1 -------- access ---------- 10.0.9.2 server   sipcast-concentrator or Kamailio
//!    SIPp                     |    |                        |     198.51.100.1
//!                             |    |                        |  0, 20 or 100 ms
//!      edge 10.0.1.2 ---------+    +-- media 10.0.6.2   10.0.7.2 control
//!      sipcast-ingress                           relay            sipcast-rtp-agent or rtpengine
//! ```
//!
//! Only the wire between server and relay is slow; what there is on it is control. Packets for the
//! concentrator go by the ingress and its tunnel, those for Kamailio straight to it. The post-dial
//! delay is the time from the caller's INVITE to its 180; that of the 200 stands beside it.
//!
//! A call has half a second of audio each way. It must be complete, both phones must have been told the
//! relay's address, and both must have got audio from there; else the bench fails.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Map, Value, json};

use super::load;
use super::{Conditions, Outcome};
use crate::capture::Capture;
use crate::topology::two_edges::SERVICE;
use crate::{command, kamailio, rtpengine};

mod calls;
mod network;
mod servers;

use calls::Call;
use network::{MEDIA, Network};
use servers::{Kind, Server};

/// Of the relay from its server, one way.
const DELAYS_MS: [u64; 3] = [0, 20, 100];
const ROUNDS: usize = 3;
/// In a round. At this rate Kamailio, whose workers wait for rtpengine, always has one that is free.
const CALLS: u32 = 40;
const RATE: u32 = 5;
/// SDP of the INVITE.
const PAYLOAD_BYTES: usize = 190;
const PEER: &str = "Kamailio and rtpengine over ng, stock configuration";

/// All rounds of one server with its relay at one distance.
struct Point {
    delay_ms: u64,
    rounds: Vec<Vec<Call>>,
}

/// Runs all rounds of both, alternating.
pub(super) fn run(folder: &Path) -> Result<Vec<Outcome>> {
    for (program, package) in [
        ("kamailio", "kamailio"),
        ("rtpengine", "rtpengine-daemon"),
        ("sipp", "sip-tester"),
    ] {
        ensure!(
            command::found(program),
            "{program} is missing; install the Debian package {package}"
        );
    }
    let start = Instant::now();
    let points = || -> Vec<Point> {
        let point = |delay_ms| Point {
            delay_ms,
            rounds: Vec::new(),
        };
        DELAYS_MS.map(point).into()
    };
    let (mut ours, mut peer) = (points(), points());
    for number in 1..=ROUNDS {
        for (ours, peer) in ours.iter_mut().zip(&mut peer) {
            for (kind, point) in [(Kind::Sipcast, ours), (Kind::Kamailio, peer)] {
                let delay_ms = point.delay_ms;
                let place = folder.join(format!("{}-{delay_ms}ms-{number}", kind.name()));
                let calls = round(kind, delay_ms, &place)
                    .with_context(|| format!("{}, relay {delay_ms} ms away", kind.name()))?;
                eprintln!(
                    "bench control-delay: round {number} of {ROUNDS}: {}, relay {delay_ms} ms away: \
                     180 after {:.2} ms, 200 after {:.2} ms",
                    kind.name(),
                    quantile(&calls, ringing, 0.5),
                    quantile(&calls, answered, 0.5)
                );
                point.rounds.push(calls);
            }
        }
    }
    Ok(vec![outcome(&ours, &peer, start.elapsed())])
}

/// Calls through one server with its relay so far away.
fn round(kind: Kind, delay_ms: u64, folder: &Path) -> Result<Vec<Call>> {
    fs::create_dir_all(folder)?;
    let net = Network::build(delay_ms, kind.service())?;
    let mut server = Server::start(&net, kind, folder)?;
    load::register_callee(&net.phones, SERVICE)?;
    let _callee = load::talking_callee(&net.phones, SERVICE, folder)?;
    let capture = Capture::start(&net.phones.namespace, "eth0", folder)?;
    let sipp = load::talking_calls(&net.phones, SERVICE, RATE, CALLS, folder)?;
    let packets = capture.stop()?;
    server.check_alive()?;
    ensure!(
        sipp.failed() == 0,
        "{} of {CALLS} calls failed",
        sipp.failed()
    );
    let calls = calls::of(&packets, net.phones.address, MEDIA)?;
    ensure!(
        calls.len() == CALLS as usize,
        "{} of {CALLS} calls were seen",
        calls.len()
    );
    Ok(calls)
}

const fn ringing(call: &Call) -> f64 {
    call.ringing_ms
}

const fn answered(call: &Call) -> f64 {
    call.answered_ms
}

/// Of all calls of some rounds; the nearest rank.
fn quantile<'a>(
    calls: impl IntoIterator<Item = &'a Call>,
    figure: fn(&Call) -> f64,
    quantile: f64,
) -> f64 {
    let mut figures: Vec<f64> = calls.into_iter().map(figure).collect();
    figures.sort_unstable_by(f64::total_cmp);
    let rank = (figures.len() as f64 * quantile).ceil() as usize;
    let at = rank.clamp(1, figures.len().max(1)) - 1;
    figures.get(at).copied().unwrap_or(f64::NAN)
}

impl Point {
    fn calls(&self) -> impl Iterator<Item = &Call> {
        self.rounds.iter().flatten()
    }

    fn shown(&self) -> Value {
        let of = |figure: fn(&Call) -> f64| {
            let rounds = self.rounds.iter();
            let medians = rounds.map(|round| quantile(round, figure, 0.5));
            json!({
                "p50": quantile(self.calls(), figure, 0.5),
                "p99": quantile(self.calls(), figure, 0.99),
                "round_p50": medians.collect::<Vec<f64>>(),
            })
        };
        let least = self.calls().flat_map(|call| call.heard).min();
        json!({
            "relay_one_way_ms": self.delay_ms,
            "calls": self.calls().count(),
            "ms_to_180": of(ringing),
            "ms_to_200": of(answered),
            "rtp_heard_p50": quantile(self.calls(), |call| call.heard[0].min(call.heard[1]) as f64, 0.5),
            "rtp_heard_least": least,
        })
    }
}

/// What the farthest relay adds over the nearest.
fn added(points: &[Point], figure: fn(&Call) -> f64, at: f64) -> f64 {
    let of =
        |point: Option<&Point>| point.map_or(f64::NAN, |point| quantile(point.calls(), figure, at));
    of(points.last()) - of(points.first())
}

fn outcome(ours: &[Point], peer: &[Point], took: Duration) -> Outcome {
    let sent = ours.iter().map(|point| point.calls().count() as u64).sum();
    let mut conditions = Conditions::of(sent, sent, took, PAYLOAD_BYTES);
    conditions.rate_per_second = f64::from(RATE);
    let shown = |points: &[Point]| points.iter().map(Point::shown).collect::<Vec<Value>>();
    let more = |points: &[Point]| {
        json!({
            "to_180_p99": added(points, ringing, 0.99),
            "to_200_p50": added(points, answered, 0.5),
            "to_200_p99": added(points, answered, 0.99),
        })
    };
    conditions.more = json!({
        "rounds": ROUNDS,
        "ours": shown(ours),
        "peer": shown(peer),
        "added_ms": { "ours": more(ours), "peer": more(peer) },
        "peer_versions": [kamailio::version(), rtpengine::version()],
    });
    let (ours, peer) = (added(ours, ringing, 0.5), added(peer, ringing, 0.5));
    Outcome {
        bench: "control-delay",
        unit: "added_ms_at_100ms",
        ours,
        peer: Some(peer),
        peer_name: Some(PEER),
        ratio: Some(ours / peer),
        beside: Map::new(),
        conditions,
    }
}
