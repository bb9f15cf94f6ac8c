//! `sipcast-lab run`: scenarios, each locked in on its own, each with one line of result.
//!
//! To add one, write a function `fn(&Path) -> Result<String>` in a file of `scenario/` (its error
//! says what fell short, its value are the figures) and add a line to [`SCENARIOS`].

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::sandbox::{self, EXIT_SKIP};

mod alternate;
mod anchor_both;
mod bad_config;
pub(crate) mod baresip;
mod calls;
mod cdr;
mod cluster_bad_input;
mod cluster_nats_tls;
mod cluster_registrations;
mod cluster_without_nats;
pub(crate) mod core_link;
mod core_link_cut;
mod digest;
mod dispatch;
mod fragmented_invite;
mod gre_udp;
mod gre_udp6;
mod hostile_packets;
pub(crate) mod internet;
mod ipv6;
mod kamailio_registrar;
mod key_rotation;
mod large_requests;
mod lease_burst;
mod linphone;
mod media_attacks;
mod media_timeout;
mod message_order;
mod mtu;
mod nat_rebind;
mod ng_kamailio;
mod offer_answer;
mod packet_corpus;
mod ping;
mod probes;
mod relay_fallback;
mod relay_killed_ringing;
pub(crate) mod restart;
mod return_path;
mod rig;
mod rolling_upgrade;
mod rtpengine_relay;
pub(crate) mod second_concentrator;
mod shared_sockets;
mod standby;
mod stranger_rtp;
mod torture;
mod websocket;
mod xdp_ingress;
mod xdp_relay;

/// How the word of a scenario begins that could not show anything here.
const SKIPPED: &str = "skipped: ";

/// Characters of what fell short that are shown again at the end.
const SUMMARY: usize = 600;

/// A scenario: name, what it shows, how. The folder is its own and empty.
struct Scenario {
    name: &'static str,
    about: &'static str,
    run: fn(&Path) -> Result<String>,
}

const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "rig",
        about: "the network is what its drawing says: NAT kinds, delays, routes, the flip",
        run: rig::run,
    },
    Scenario {
        name: "bad-config",
        about: "a wrong config: a message that says what to change, exit code 2, nothing started",
        run: bad_config::run,
    },
    Scenario {
        name: "demo-udp",
        about: "a call over UDP, the caller's route flips, BYE through the other edge",
        run: calls::udp,
    },
    Scenario {
        name: "demo-tcp",
        about: "the same over TCP, on one connection",
        run: calls::tcp,
    },
    Scenario {
        name: "fragmented-invite",
        about: "a 4,000-byte INVITE in fragments, half of them through each edge",
        run: fragmented_invite::run,
    },
    Scenario {
        name: "mtu",
        about: "SIP of 200 to 9,000 bytes through a path of 1,500, with DF and without, IPv4 and IPv6; a narrow access",
        run: mtu::run,
    },
    Scenario {
        name: "gre-udp",
        about: "the tunnel in UDP (RFC 8086): a call, an INVITE in fragments, a port for each flow",
        run: gre_udp::run,
    },
    Scenario {
        name: "gre-udp6",
        about: "the same over IPv6, where the outer datagram has a checksum",
        run: gre_udp6::run,
    },
    Scenario {
        name: "return-path",
        about: "a core that drops what the service address sends: replies go through the edges, UDP, TCP, TLS, IPv6",
        run: return_path::run,
    },
    Scenario {
        name: "packet-corpus",
        about: "some hundred packets that no honest sender makes: the same end on the TUN path and by XDP",
        run: packet_corpus::run,
    },
    Scenario {
        name: "key-rotation",
        about: "the tunnels' keys change while phones call: no packet is refused or lost",
        run: key_rotation::run,
    },
    Scenario {
        name: "nat-rebind",
        about: "the callee's NAT forgets it in mid-call; it registers again, and the BYE finds it",
        run: nat_rebind::run,
    },
    Scenario {
        name: "ping",
        about: "a phone behind a NAT is pinged; it stays while it answers, and goes when it does not",
        run: ping::run,
    },
    Scenario {
        name: "probes",
        about: "the ingress sees its concentrator drain, fall silent, come back; forged answers; a narrow path",
        run: probes::run,
    },
    Scenario {
        name: "restart",
        about: "the concentrator crashes and starts again; a phone is called that has not registered since",
        run: restart::run,
    },
    Scenario {
        name: "anchor-both",
        about: "media pass the relays of both edges; each phone knows its own edge's only; the route flips",
        run: anchor_both::run,
    },
    Scenario {
        name: "relay-fallback",
        about: "relay killed, its control link cut, concentrator killed: at set-up and in mid-call",
        run: relay_fallback::run,
    },
    Scenario {
        name: "relay-killed-ringing",
        about: "relay killed while the callee rings, once for good and once restarted: cancelled, 503, and the next call",
        run: relay_killed_ringing::run,
    },
    Scenario {
        name: "shared-sockets",
        about: "relays whose ports share sockets: side by side, killed, refused, beside a foreign listener",
        run: shared_sockets::run,
    },
    Scenario {
        name: "standby",
        about: "a relay's host dies, then its agent, then its address is moved back, in one call",
        run: standby::run,
    },
    Scenario {
        name: "restart-in-call",
        about: "the concentrator crashes and starts again in mid-call; the media go on, the BYE arrives",
        run: restart::in_mid_call,
    },
    Scenario {
        name: "cluster-registrations",
        about: "two concentrators share registrations over NATS; its leader dies, all of it, an empty disk",
        run: cluster_registrations::run,
    },
    Scenario {
        name: "cluster-bad-input",
        about: "a start without NATS, a bucket of nonsense, a slow clock, another cookie key, strange certificates",
        run: cluster_bad_input::run,
    },
    Scenario {
        name: "cluster-nats-tls",
        about: "NATS servers with TLS, certificates, passwords; a concentrator that lacks one of them",
        run: cluster_nats_tls::run,
    },
    Scenario {
        name: "cluster-without-nats",
        about: "NATS is away, for one concentrator or both: who registers at one is called through the other",
        run: cluster_without_nats::run,
    },
    Scenario {
        name: "second-concentrator",
        about: "the concentrator is killed in mid-call; a standby takes the rest of the call and new ones",
        run: second_concentrator::run,
    },
    Scenario {
        name: "second-concentrator-rings",
        about: "it is killed while the callee rings; answered and hung up through the standby",
        run: second_concentrator::ringing,
    },
    Scenario {
        name: "core-link",
        about: "two concentrators, the first drains while the callee rings: one hop, over UDP, TCP, TLS",
        run: core_link::run,
    },
    Scenario {
        name: "core-link-cut",
        about: "the link of two concentrators is cut, one way, the other, both: calls over TCP go by NATS, and back",
        run: core_link_cut::run,
    },
    Scenario {
        name: "rolling-upgrade",
        about: "under load one concentrator after the other is drained, ended and started again: 0 failed over UDP",
        run: rolling_upgrade::run,
    },
    Scenario {
        name: "soak",
        about: "two minutes of calls over UDP and TCP while one accident after another happens to two concentrators",
        run: crate::soak::scenario,
    },
    Scenario {
        name: "lease-burst",
        about: "60 calls at once on a relay with 4 leases: they wait for more, or take the next relay",
        run: lease_burst::run,
    },
    Scenario {
        name: "message-order",
        about: "500 calls without a pause: no message of a call overtakes another",
        run: message_order::run,
    },
    Scenario {
        name: "stranger-rtp",
        about: "RTP from a stranger to a relay in mid-call reaches nobody and is counted",
        run: stranger_rtp::run,
    },
    Scenario {
        name: "media-attacks",
        about: "RTP and RTCP of strangers, of a neighbour behind the phone's NAT, before, in and after its audio",
        run: media_attacks::run,
    },
    Scenario {
        name: "media-timeout",
        about: "both phones fall silent: the concentrator hangs up with both, the record says so",
        run: media_timeout::run,
    },
    Scenario {
        name: "cdr",
        about: "records of calls: answered, failed, over a restart; the file renamed and opened anew",
        run: cdr::run,
    },
    Scenario {
        name: "offer-answer",
        about: "a late offer, hold, resume, and a re-INVITE refused with 488: the media go on",
        run: offer_answer::run,
    },
    Scenario {
        name: "hostile-packets",
        about: "each kind of bad input is counted by its reason, and the service still works",
        run: hostile_packets::run,
    },
    Scenario {
        name: "torture",
        about: "the torture messages of RFC 4475 and RFC 5118 over UDP and TCP through the tunnel",
        run: torture::run,
    },
    Scenario {
        name: "digest",
        about: "passwords to register and to call; wrong, replayed, reloaded by SIGHUP",
        run: digest::run,
    },
    Scenario {
        name: "baresip",
        about: "baresip calls over UDP, TCP and TLS; the caller's route flips in each call",
        run: baresip::run,
    },
    Scenario {
        name: "linphone",
        about: "linphone over TCP calls baresip over UDP",
        run: linphone::run,
    },
    Scenario {
        name: "websocket",
        about: "calls between a WebSocket phone and baresip, in both directions, WS and WSS",
        run: websocket::run,
    },
    Scenario {
        name: "kamailio-registrar",
        about: "the service as the edge proxy of a stock Kamailio registrar: Path, a call, the flip",
        run: kamailio_registrar::run,
    },
    Scenario {
        name: "ng-kamailio",
        about: "a stock Kamailio drives the relay over ng, with its own flags and without any",
        run: ng_kamailio::run,
    },
    Scenario {
        name: "rtpengine-relay",
        about: "a stock rtpengine as edge 1's relay: a call, its end, and a call after it was killed",
        run: rtpengine_relay::run,
    },
    Scenario {
        name: "dispatch",
        about: "two trunk servers: fail-over by OPTIONS, 503 and SRV; dialogs at the unicast address",
        run: dispatch::run,
    },
    Scenario {
        name: "xdp-ingress",
        about: "an edge forwards by XDP: UDP, TCP, an INVITE in fragments; the program taken away in mid-call",
        run: xdp_ingress::run,
    },
    Scenario {
        name: "xdp-relay",
        about: "RTP past the relay's program by XDP, the program taken away in mid-call, a new port of the NAT",
        run: xdp_relay::run,
    },
    Scenario {
        name: "large-requests",
        about: "requests over 1,300 bytes to a trunk: TCP; UDP where that is refused or silent",
        run: large_requests::run,
    },
    Scenario {
        name: "ipv6",
        about: "calls over IPv6 through the tunnel, UDP and TCP, with a flip, and to and from IPv4",
        run: ipv6::run,
    },
    Scenario {
        name: "alternate-udp",
        about: "a router sends every second packet of the caller to the other edge: all of a call over UDP",
        run: alternate::udp,
    },
    Scenario {
        name: "alternate-tcp",
        about: "the same over TCP",
        run: alternate::tcp,
    },
    Scenario {
        name: "alternate-tls",
        about: "the same over TLS",
        run: alternate::tls,
    },
    Scenario {
        name: "alternate-ws",
        about: "the same over WebSocket, with a re-INVITE; and a call that is given up while it rings",
        run: alternate::ws,
    },
    Scenario {
        name: "alternate-cancel",
        about: "the same, and each call is given up while it rings: CANCEL by another edge than its INVITE",
        run: alternate::cancel,
    },
    Scenario {
        name: "internet-catchments",
        about: "BGP by BIRD and FRR: which edge each of six access networks reaches; a local node; IPv6",
        run: internet::catchments,
    },
    Scenario {
        name: "internet-catchment-tool",
        about: "`sipcast-lab catchment` asks from six access networks, UDP and TCP; strangers; it watches a drain",
        run: internet::catchment_tool,
    },
    Scenario {
        name: "internet-drain",
        about: "an edge is drained at 100 calls a second and two with audio: 0 failed, no RTP lost",
        run: internet::drain,
    },
    Scenario {
        name: "internet-drain-tcp",
        about: "an edge is drained at 50 calls a second over TCP",
        run: internet::drain_tcp,
    },
    Scenario {
        name: "internet-drain-tls",
        about: "the same over TLS",
        run: internet::drain_tls,
    },
    Scenario {
        name: "internet-drain-two",
        about: "GRACEFUL_SHUTDOWN from BIRD and from FRR, withdrawn, back; an ingress that ends",
        run: internet::drain_two,
    },
    Scenario {
        name: "internet-power-off",
        about: "an edge loses its power; BFD finds out; calls begun meanwhile succeed by retransmission",
        run: internet::power_off,
    },
    Scenario {
        name: "internet-power-off-tcp",
        about: "the same with calls over TCP, on connections that last",
        run: internet::power_off_tcp,
    },
    Scenario {
        name: "internet-power-off-tls",
        about: "the same over TLS",
        run: internet::power_off_tls,
    },
    Scenario {
        name: "internet-slow-5",
        about: "the same without BFD: packets vanish for about 5 s, until the hold time is over",
        run: internet::slow_5,
    },
    Scenario {
        name: "internet-slow-5-tcp",
        about: "the same with calls over TCP",
        run: internet::slow_5_tcp,
    },
    Scenario {
        name: "internet-slow-5-tls",
        about: "the same with calls over TLS",
        run: internet::slow_5_tls,
    },
    Scenario {
        name: "internet-slow-10",
        about: "the same for about 10 s",
        run: internet::slow_10,
    },
    Scenario {
        name: "internet-slow-10-tcp",
        about: "the same with calls over TCP",
        run: internet::slow_10_tcp,
    },
    Scenario {
        name: "internet-slow-10-tls",
        about: "the same with calls over TLS",
        run: internet::slow_10_tls,
    },
    Scenario {
        name: "internet-slow-20",
        about: "the same for about 20 s",
        run: internet::slow_20,
    },
    Scenario {
        name: "internet-slow-20-tcp",
        about: "the same with calls over TCP",
        run: internet::slow_20_tcp,
    },
    Scenario {
        name: "internet-slow-20-tls",
        about: "the same with calls over TLS",
        run: internet::slow_20_tls,
    },
    Scenario {
        name: "internet-concentrator-loss",
        about: "the concentrator hangs: every edge withdraws, and announces again when it is back",
        run: internet::concentrator_loss,
    },
    Scenario {
        name: "internet-concentrator-loss-tcp",
        about: "the same with calls over TCP",
        run: internet::concentrator_loss_tcp,
    },
    Scenario {
        name: "internet-concentrator-loss-tls",
        about: "the same over TLS",
        run: internet::concentrator_loss_tls,
    },
    Scenario {
        name: "internet-flapping",
        about: "the tunnel of an edge is cut every other two seconds; the hold-down calms the route",
        run: internet::flapping,
    },
    Scenario {
        name: "internet-flapping-tcp",
        about: "the same with calls over TCP",
        run: internet::flapping_tcp,
    },
    Scenario {
        name: "internet-flapping-tls",
        about: "the same with calls over TLS",
        run: internet::flapping_tls,
    },
    Scenario {
        name: "internet-bad-hands",
        about: "the route removed by hand, BIRD killed, the ingress killed, a foreign route in the way",
        run: internet::bad_hands,
    },
    Scenario {
        name: "internet-ecmp",
        about: "t1 hashes flows over two equal ways; one of them goes under load, over UDP, and comes back",
        run: internet::ecmp,
    },
    Scenario {
        name: "internet-ecmp-tcp",
        about: "the same over TCP",
        run: internet::ecmp_tcp,
    },
    Scenario {
        name: "internet-ecmp-tls",
        about: "the same over TLS",
        run: internet::ecmp_tls,
    },
    Scenario {
        name: "internet-relay-loss",
        about: "the relay of an edge that announces is killed: the relay that stands in, and back",
        run: internet::relay_loss,
    },
    Scenario {
        name: "internet-attributes",
        about: "the recipes' PREPEND, MED, communities and FRR's lines move who reaches which edge",
        run: internet::attributes,
    },
    Scenario {
        name: "internet-ibgp",
        about: "edges in their providers' networks: iBGP by BIRD and FRR, local preference, drained",
        run: internet::ibgp,
    },
    Scenario {
        name: "internet-two-of-a-kind",
        about: "an edge with another's tunnel key, then with its mark: refused, counted, not announced",
        run: internet::two_of_a_kind,
    },
];

/// The names, one a line with what it shows.
pub(crate) fn list() -> String {
    SCENARIOS
        .iter()
        .map(|scenario| format!("{:<31}{}\n", scenario.name, scenario.about))
        .collect()
}

/// These offer more calls than half a machine carries in a debug build: nothing runs beside them.
const ALONE: &[&str] = &[
    "lease-burst",
    "message-order",
    "hostile-packets",
    "internet-drain",
    "internet-drain-tcp",
    "internet-drain-tls",
    "rolling-upgrade",
    "soak",
];

/// Outside: runs one or all of them, `jobs` at a time, each in a sandbox of its own, and counts.
pub(crate) fn run_locked_in(
    name: &str,
    out: &Path,
    verbose: bool,
    jobs: usize,
) -> Result<ExitCode> {
    let chosen: Vec<&str> = SCENARIOS
        .iter()
        .map(|scenario| scenario.name)
        .filter(|candidate| {
            let is_internet = ["internet-", "alternate-"]
                .iter()
                .any(|kind| candidate.starts_with(kind));
            name == "all" || name == *candidate || name == "internet-all" && is_internet
        })
        .collect();
    anyhow::ensure!(
        !chosen.is_empty(),
        "there is no scenario {name:?}; there are:\n{}",
        list()
    );
    let run = |name: &str| {
        let mut arguments = vec!["--out".to_owned(), out.to_string_lossy().into_owned()];
        arguments.extend(verbose.then(|| "--verbose".to_owned()));
        arguments.extend(["run".to_owned(), name.to_owned()]);
        sandbox::enter(Some(&arguments), false)
    };
    let (alone, together): (Vec<_>, Vec<_>) = chosen.iter().partition(|name| ALONE.contains(name));
    let mut codes = several(&together, jobs, run)?;
    codes.extend(several(&alone, 1, run)?);

    let with_code = |wanted: ExitCode| codes.iter().filter(move |(_, code)| *code == wanted);
    let skipped = with_code(ExitCode::from(EXIT_SKIP)).count();
    for (name, _) in with_code(ExitCode::from(EXIT_SKIP)) {
        println!("{name:<31}skipped");
    }
    let ran = |name: &str| !was_skipped(out, name);
    let passed = with_code(ExitCode::SUCCESS)
        .filter(|(name, _)| ran(name))
        .count();
    // What it needs is not part of this repository: no error, and no success either.
    let not_run = with_code(ExitCode::SUCCESS).count() - passed;
    println!(
        "{passed} passed, {} failed, {} skipped",
        codes.len() - passed - skipped - not_run,
        skipped + not_run
    );
    // Again, where whoever looks at the end of a long output sees it.
    for (name, code) in &codes {
        if *code != ExitCode::SUCCESS && *code != ExitCode::from(EXIT_SKIP) {
            let why = fs::read_to_string(verdict_file(out, name)).unwrap_or_default();
            let beginning: String = why.trim_end().chars().take(SUMMARY).collect();
            println!("failed: {name}: {beginning}");
        }
    }
    let in_ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    let good = passed + skipped + not_run == codes.len() && (skipped == 0 || !in_ci);
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs all of them, `jobs` at a time, in their order.
fn several<'a>(
    names: &[&'a str],
    jobs: usize,
    run: impl Fn(&str) -> io::Result<ExitCode> + Sync,
) -> Result<Vec<(&'a str, ExitCode)>> {
    let (next, codes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        let work = || -> Result<()> {
            while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                let code = run(name)?;
                let mut codes = codes.lock().unwrap_or_else(|broken| broken.into_inner());
                codes.push((*name, code));
            }
            Ok(())
        };
        let workers: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| {
            worker
                .join()
                .map_err(|_| anyhow::anyhow!("a scenario's thread panicked"))?
        })
    })?;
    Ok(codes
        .into_inner()
        .unwrap_or_else(|broken| broken.into_inner()))
}

fn folder_of(out: &Path, name: &str) -> PathBuf {
    out.join("run").join(name)
}

/// True where a scenario has said that what it needs is not there, such as messages that lie beside the
/// project: that is shown, and is no failure in CI either.
fn was_skipped(out: &Path, name: &str) -> bool {
    let verdict = fs::read_to_string(verdict_file(out, name));
    verdict.is_ok_and(|verdict| verdict.starts_with(SKIPPED))
}

/// The figures of a scenario, or what fell short.
fn verdict_file(out: &Path, name: &str) -> PathBuf {
    folder_of(out, name).join("verdict.txt")
}

/// Inside: runs one and prints its line.
pub(crate) fn run(name: &str, out: &Path) -> Result<()> {
    let scenario = SCENARIOS
        .iter()
        .find(|scenario| scenario.name == name)
        .with_context(|| format!("there is no scenario {name:?}"))?;
    let folder = folder_of(out, name);
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let start = Instant::now();
    let result = (scenario.run)(&folder.canonicalize()?);
    let seconds = start.elapsed().as_secs_f64();
    let (verdict, figures) = match &result {
        Ok(why) if why.starts_with(SKIPPED) => ("skipped", why.clone()),
        Ok(figures) => ("passed", figures.clone()),
        Err(error) => ("failed", format!("{error:#}")),
    };
    let shown = figures.strip_prefix(SKIPPED).unwrap_or(&figures);
    println!("{name:<31}{verdict} in {seconds:.1} s: {shown}");
    fs::write(verdict_file(out, name), format!("{figures}\n"))?;
    result
        .map(drop)
        .map_err(|_| anyhow::anyhow!("{name} failed; its files are in {}", folder.display()))
}
