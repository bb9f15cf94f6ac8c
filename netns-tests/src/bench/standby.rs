//! How long media stop when the host of a relay dies and its pair takes over.
//!
//! ```text
//!     phones 10.0.3.1: RTP both ways through every session, and a concentrator with a script
//!        |
//!      lan ──── relay-a, relay-b: sipcast-rtp-agent and keepalived each (`relay_pair`)
//! ```
//!
//! The host with the media address loses its link and its programs at one moment. The gap of the relay is
//! the time between the last packet that came out of the old one and the first out of the new one; a
//! stream's gap has up to its packet interval more. A session is lost if media do not go on in both
//! directions, or if the new agent does not know it when the concentrator releases it.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{Resource, setrlimit};
use serde_json::{Map, json};

use super::{Conditions, Outcome};
use crate::certs;
use crate::namespace::Namespace;
use crate::relay_pair::{Host, NAME, ROUTER, RelayPair};
use crate::wait;

mod controller;
mod streams;

use controller::Controller;
use streams::Streams;

/// Sessions and packets a second of each side.
const RUNS: [(usize, u32); 5] = [(20, 50), (50, 50), (100, 50), (150, 50), (5_000, 10)];
/// Media before the host dies, for the latches to be told; and after.
const BEFORE: Duration = Duration::from_secs(3);
const AFTER: Duration = Duration::from_secs(4);
const SOCKETS: u16 = 20_000;
const PATIENCE: Duration = Duration::from_secs(30);
/// What has been published for the same: not measured here.
const PUBLISHED: &str = "5.1-7.1 s at 20-150 sessions, 4.5 s configured minimum";

pub(super) fn run(folder: &Path) -> Result<Vec<Outcome>> {
    raise_file_limit();
    certs::write(folder, &["c1".to_owned(), NAME.to_owned()])?;
    let opening = opening_sockets();
    eprintln!("bench standby: published: {PUBLISHED}");
    eprintln!("sessions  relay gap ms  stream gap ms p50 / max  lost  standby in step after ms");
    RUNS.into_iter()
        .map(|(sessions, rate)| one(folder, sessions, rate, opening))
        .collect()
}

fn one(folder: &Path, sessions: usize, rate: u32, opening: Option<Duration>) -> Result<Outcome> {
    let phones = Namespace::new("phones")?;
    let address = SocketAddr::from((ROUTER, 7060));
    let media = "ports = \"20000-65000\"\nmax_stock = 64";
    let mut pair = RelayPair::build(&phones, folder, address, media)?;
    let controller = Controller::listen(&phones, address, folder)?;
    pair.a.start()?;
    let mut link = controller.accept()?;
    let leases = link.bind(sessions, IpAddr::V4(ROUTER))?;
    let before = (link.epoch, Instant::now());

    pair.b.start()?;
    pair.b.wait_for("standby")?;
    wait_for_sessions(&pair.b, sessions)?;
    let in_step = before.1.elapsed();
    let interval = Duration::from_secs(1) / rate;
    let streams = Streams::start(&phones, ROUTER, &leases, interval)?;
    thread::sleep(BEFORE);
    pair.b.wait_until_in_step()?;
    let moment = streams.now();
    pair.a.crash()?;
    thread::sleep(AFTER);
    let end = streams.now();
    let heard = streams.stop(sessions)?;
    let mut link = controller.accept().context("after the take-over")?;
    ensure!(link.epoch == before.0, "the new agent has another epoch");
    let resident = pair.b.resident_bytes()?;
    let unknown = link.release(&leases)?;

    let gaps = heard.gaps(moment, end);
    let lost = gaps.silent_sessions.max(unknown);
    let at = |part: usize| {
        let place = gaps.streams.len() * part / 100;
        let gap = gaps.streams.get(place).or(gaps.streams.last());
        gap.map_or(f64::NAN, |gap| milliseconds(*gap))
    };
    let relay = milliseconds(gaps.relay);
    eprintln!(
        "{sessions:>8}  {relay:>12.0}  {:>10.0} / {:<10.0}  {lost:>4}  {:>10.0}",
        at(50),
        at(100),
        milliseconds(in_step)
    );
    let mut conditions = Conditions::of(heard.sent, heard.received(), end, 172);
    conditions.more = json!({
        "sessions": sessions,
        "packets_per_second_and_side": rate,
        "stream_gap_ms_p50": at(50),
        "stream_gap_ms_max": at(100),
        "sessions_lost": lost,
        "sessions_silent": gaps.silent_sessions,
        "sessions_unknown_to_the_new_agent": unknown,
        "standby_in_step_ms": milliseconds(in_step),
        "standby_resident_bytes": resident,
        "open_20000_sockets_ms": opening.map(milliseconds),
        "published": PUBLISHED,
    });
    Ok(Outcome {
        bench: "standby",
        unit: "takeover_gap_ms",
        ours: relay,
        peer: None,
        peer_name: None,
        ratio: None,
        beside: Map::new(),
        conditions,
    })
}

fn wait_for_sessions(host: &Host, sessions: usize) -> Result<()> {
    let mut there = 0;
    wait::until("all sessions at the other agent", PATIENCE, || {
        there = host.sessions()?;
        Ok((there == sessions as u64).then_some(()))
    })
    .with_context(|| format!("{there} of {sessions}"))
}

/// What it would take to open the sockets of 5,000 sessions only when the address arrives.
fn opening_sockets() -> Option<Duration> {
    let start = Instant::now();
    let sockets: Result<Vec<_>, _> = (20_000..20_000 + SOCKETS)
        .map(|port| UdpSocket::bind(("127.0.0.1", port)))
        .collect();
    sockets.ok().map(|_| start.elapsed())
}

fn raise_file_limit() {
    let most = 262_144;
    // Without root the limit stays, and only `opening_sockets` minds.
    let _refused = setrlimit(Resource::RLIMIT_NOFILE, most, most);
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
