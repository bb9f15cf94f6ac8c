//! What a proxied call costs: sipcast-concentrator behind its tunnel, and Kamailio, one after the
//! other in the same network, with the same pair of SIPp at the same rate.
//!
//! ```text
//!    phones 10.0.1.1 ---- 10.0.1.2 edge 10.0.9.1 ---- 10.0.9.2 proxy
//!    SIPp caller, callee        sipcast-ingress                sipcast-concentrator: 198.51.100.1
//!                               (a mere router for Kamailio)   or Kamailio: 10.0.9.2
//! ```
//!
//! Both are registrars, both stay in the path, neither touches the SDP. Decapsulation is part of
//! our figure; the ingress's share stands in the conditions. Rounds alternate, so that whatever
//! else the machine does falls on both.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{Conditions, Outcome};
use crate::link::{self, End, Shape};
use crate::namespace::Namespace;
use crate::process::Process;
use crate::service::{KEY1, MARK1, concentrator_config, ingress_config, start_program};
use crate::topology::two_edges::{CONCENTRATOR, EDGE1, SERVICE};
use crate::{certs, command, wait};

const RATE: u32 = 200;
const SECONDS: u32 = 5;
const ROUNDS: usize = 3;
const CALLS: u32 = RATE * SECONDS;
/// SDP of the INVITE; the messages are 350 to 750 octets.
const PAYLOAD: usize = 190;
const PHONES: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
const CALLER_PORT: u16 = 5070;
const CALLEE_PORT: u16 = 5080;

const UAC: &str = include_str!("calls/uac.xml");
const UAS: &str = include_str!("calls/uas.xml");
const KAMAILIO: &str = include_str!("calls/kamailio.cfg");

/// The three namespaces of the drawing.
struct Network {
    phones: Namespace,
    edge: Namespace,
    proxy: Namespace,
}

/// One side's round: microseconds of CPU a call.
struct Round {
    proxy: f64,
    ingress: f64,
    took: Duration,
}

pub(super) fn run(folder: &Path) -> Result<Outcome> {
    for (program, package) in [("kamailio", "kamailio"), ("sipp", "sip-tester")] {
        ensure!(
            command::found(program),
            "{program} is missing; install the Debian package {package}"
        );
    }
    let net = Network::build()?;
    let mut ours = Vec::new();
    let mut peer = Vec::new();
    for round in 1..=ROUNDS {
        let place = folder.join(round.to_string());
        let mine = sipcast(&net, &place.join("sipcast"))?;
        let theirs = kamailio(&net, &place.join("kamailio"))?;
        eprintln!(
            "bench calls: round {round} of {ROUNDS}: sipcast {:.1} us (ingress {:.1} us), Kamailio {:.1} us a call",
            mine.proxy, mine.ingress, theirs.proxy
        );
        ours.push(mine);
        peer.push(theirs);
    }
    Ok(outcome(&ours, &peer))
}

/// Medians; all calls have succeeded, or there would be none.
fn outcome(ours: &[Round], peer: &[Round]) -> Outcome {
    let of = |rounds: &[Round], figure: fn(&Round) -> f64| -> Vec<f64> {
        sorted(rounds.iter().map(figure).collect())
    };
    let ratios = sorted(
        ours.iter()
            .zip(peer)
            .map(|(ours, peer)| ours.proxy / peer.proxy)
            .collect(),
    );
    let (mine, theirs) = (of(ours, |round| round.proxy), of(peer, |round| round.proxy));
    let took: Duration = ours.iter().map(|round| round.took).sum();
    let calls = u64::from(CALLS) * ours.len() as u64;
    let mut conditions = Conditions::of(calls, calls, took, PAYLOAD);
    conditions.more = json!({
        "rounds": ours.len(),
        "ours_us": mine,
        "peer_us": theirs,
        "ratios": ratios,
        "ingress_us_per_call": median(&of(ours, |round| round.ingress)),
        "relay": "never",
        "peer_version": kamailio_version(),
    });
    Outcome {
        bench: "calls",
        unit: "us_cpu_per_call",
        ours: median(&mine),
        peer: Some(median(&theirs)),
        peer_name: Some("Kamailio, tm + rr + usrloc, two workers"),
        ratio: Some(median(&ratios)),
        conditions,
    }
}

fn sorted(mut figures: Vec<f64>) -> Vec<f64> {
    figures.sort_by(f64::total_cmp);
    figures
}

fn median(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn kamailio_version() -> String {
    let version = command::run("kamailio -v").unwrap_or_default();
    version.lines().next().unwrap_or_default().to_owned()
}

impl Network {
    fn build() -> Result<Self> {
        let net = Self {
            phones: Namespace::new("phones")?,
            edge: Namespace::router("edge1")?,
            proxy: Namespace::new("proxy")?,
        };
        let end = |namespace, device, address| End {
            namespace,
            device,
            address,
        };
        link::connect(
            end(&net.phones, "eth0", "10.0.1.1/24"),
            end(&net.edge, "access", "10.0.1.2/24"),
            Shape::DIRECT,
        )?;
        link::connect(
            end(&net.edge, "up", "10.0.9.1/24"),
            end(&net.proxy, "eth0", "10.0.9.2/24"),
            Shape::DIRECT,
        )?;
        net.phones
            .run(&format!("ip route add default via {EDGE1}"))?;
        net.proxy.run("ip route add default via 10.0.9.1")?;
        net.proxy.run(&format!("ip addr add {SERVICE}/32 dev lo"))?;
        Ok(net)
    }
}

fn sipcast(net: &Network, folder: &Path) -> Result<Round> {
    certs::write(folder, &["c1".into()])?;
    let config = concentrator_config() + "[media]\nrelay = \"never\"\n";
    let mut concentrator = start_program(
        &net.proxy,
        "concentrator",
        "sipcast-concentrator",
        9102,
        &config,
        folder,
    )?;
    concentrator.wait_until_healthy(&net.proxy)?;
    let config = ingress_config(KEY1, MARK1, EDGE1);
    let mut ingress = start_program(
        &net.edge,
        "ingress1",
        "sipcast-ingress",
        9101,
        &config,
        folder,
    )?;
    ingress.wait_until_healthy(&net.edge)?;
    measure(
        net,
        SERVICE,
        &concentrator.process,
        Some(&ingress.process),
        folder,
    )
}

fn kamailio(net: &Network, folder: &Path) -> Result<Round> {
    fs::create_dir_all(folder)?;
    fs::write(folder.join("kamailio.cfg"), KAMAILIO)?;
    let here = folder.to_string_lossy();
    let listen = format!("udp:{CONCENTRATOR}:5060");
    let arguments = [
        "-f",
        "kamailio.cfg",
        "-DD",
        "-E",
        "-l",
        &listen,
        "-m",
        "64",
        "-M",
        "8",
        "-w",
        &here,
        "-Y",
        &here,
        "-P",
        "kamailio.pid",
    ];
    let mut kamailio = Process::start(&net.proxy, "kamailio", "kamailio", &arguments, folder)?;
    measure(net, CONCENTRATOR, &kamailio, None, folder).with_context(|| {
        let alive = kamailio.check_alive();
        format!("{alive:?}: {}", kamailio.last_lines(15))
    })
}

/// Registers the callee and lets SIPp make all calls of a round.
fn measure(
    net: &Network,
    proxy: Ipv4Addr,
    process: &Process,
    ingress: Option<&Process>,
    folder: &Path,
) -> Result<Round> {
    net.phones.inside(|| register(proxy))?;
    fs::write(folder.join("uas.xml"), UAS)?;
    fs::write(folder.join("uac.xml"), UAC)?;
    let _callee = sipp(net, "uas", CALLEE_PORT, proxy, &["-nostdin"], folder)?;
    thread::sleep(Duration::from_millis(500));
    let (rate, calls) = (RATE.to_string(), CALLS.to_string());
    let load = ["-nostdin", "-r", &rate, "-m", &calls];
    let cpu = || -> Result<(Duration, Duration)> {
        let ingress = ingress.map_or(Ok(Duration::ZERO), Process::cpu_time)?;
        Ok((process.cpu_time_of_tree()?, ingress))
    };
    let before = cpu()?;
    let start = Instant::now();
    let mut caller = sipp(net, "uac", CALLER_PORT, proxy, &load, folder)?;
    let limit = Duration::from_secs(u64::from(SECONDS) + 20);
    let status = caller.wait(limit)?;
    let took = start.elapsed();
    let after = cpu()?;
    ensure!(
        status.success(),
        "not every call succeeded ({status}): {}",
        caller.last_lines(12)
    );
    let per_call = |cpu: Duration| cpu.as_secs_f64() * 1e6 / f64::from(CALLS);
    Ok(Round {
        proxy: per_call(after.0.saturating_sub(before.0)),
        ingress: per_call(after.1.saturating_sub(before.1)),
        took,
    })
}

fn sipp(
    net: &Network,
    scenario: &str,
    port: u16,
    proxy: Ipv4Addr,
    more: &[&str],
    folder: &Path,
) -> Result<Process> {
    let (file, port) = (format!("{scenario}.xml"), port.to_string());
    let (address, target) = (PHONES.to_string(), format!("{proxy}:5060"));
    let mut arguments = vec!["-sf", &file, "-t", "u1", "-i", &address, "-p", &port];
    arguments.extend(more);
    arguments.push(&target);
    Process::start(&net.phones, scenario, "sipp", &arguments, folder)
}

/// Registers the callee from the callee's port, again until the proxy says 200.
fn register(proxy: Ipv4Addr) -> Result<()> {
    let socket = UdpSocket::bind((PHONES, CALLEE_PORT))?;
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    let proxy = SocketAddr::from((proxy, 5060));
    let mut try_number = 0;
    wait::until(
        "the callee to be registered",
        Duration::from_secs(5),
        || {
            try_number += 1;
            socket.send_to(register_request(try_number).as_bytes(), proxy)?;
            let mut answer = [0; 2048];
            let Ok(length) = socket.recv(&mut answer) else {
                return Ok(None);
            };
            Ok(answer[..length].starts_with(b"SIP/2.0 200 ").then_some(()))
        },
    )
}

fn register_request(number: u32) -> String {
    format!(
        "REGISTER sip:example.com SIP/2.0\r\n\
         Via: SIP/2.0/UDP {PHONES}:{CALLEE_PORT};rport;branch=z9hG4bKreg{number}\r\n\
         Max-Forwards: 70\r\n\
         From: <sip:callee@example.com>;tag=r{number}\r\n\
         To: <sip:callee@example.com>\r\n\
         Call-ID: register@{PHONES}\r\n\
         CSeq: {number} REGISTER\r\n\
         Contact: <sip:callee@{PHONES}:{CALLEE_PORT}>\r\n\
         Expires: 3600\r\n\
         Content-Length: 0\r\n\r\n"
    )
}
