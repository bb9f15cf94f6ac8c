//! Nobody is asked: power is lost, programs hang and are killed, tunnels are cut.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::{PATIENCE, Rig};
use crate::bgp::Timers;
use crate::namespace::Namespace;
use crate::phone::Transport;
use crate::topology::internet::{CATCHMENTS, address_of};
use crate::topology::two_edges::SERVICE;
use crate::wait;

/// What nft does to a host that has lost its power: it is there, and neither hears nor speaks.
pub(crate) const DEAD: &str = r#"
table inet dead {
    chain in { type filter hook input priority -300; policy drop; }
    chain through { type filter hook forward priority -300; policy drop; }
    chain out { type filter hook output priority -300; policy drop; }
}
"#;

/// The tunnel of an edge.
pub(crate) const CUT: &str = "table ip cut {\n chain out {\n type filter hook output priority filter\n \
                              ip protocol gre drop\n }\n}\n";

/// An edge loses its power: nobody withdraws, BFD finds out.
pub(crate) fn power_off(folder: &Path) -> Result<String> {
    dead_edge(folder, Transport::Udp, Timers::FAST)
}

pub(crate) fn power_off_tcp(folder: &Path) -> Result<String> {
    dead_edge(folder, Transport::Tcp, Timers::FAST)
}

pub(crate) fn power_off_tls(folder: &Path) -> Result<String> {
    dead_edge(folder, Transport::Tls, Timers::FAST)
}

/// The same with a neighbour that does without BFD: packets vanish until the hold time is over.
const fn without_bfd(hold_s: u32) -> Timers {
    Timers { bfd: false, hold_s }
}

pub(crate) fn slow_5(folder: &Path) -> Result<String> {
    dead_edge(folder, Transport::Udp, without_bfd(6))
}

pub(crate) fn slow_5_tcp(folder: &Path) -> Result<String> {
    dead_edge(folder, Transport::Tcp, without_bfd(6))
}

pub(crate) fn slow_5_tls(folder: &Path) -> Result<String> {
    dead_edge(folder, Transport::Tls, without_bfd(6))
}

pub(crate) fn slow_10(folder: &Path) -> Result<String> {
    dead_edge(folder, Transport::Udp, without_bfd(12))
}

pub(crate) fn slow_10_tcp(folder: &Path) -> Result<String> {
    dead_edge(folder, Transport::Tcp, without_bfd(12))
}

pub(crate) fn slow_10_tls(folder: &Path) -> Result<String> {
    dead_edge(folder, Transport::Tls, without_bfd(12))
}

pub(crate) fn slow_20(folder: &Path) -> Result<String> {
    dead_edge(folder, Transport::Udp, without_bfd(24))
}

pub(crate) fn slow_20_tcp(folder: &Path) -> Result<String> {
    dead_edge(folder, Transport::Tcp, without_bfd(24))
}

pub(crate) fn slow_20_tls(folder: &Path) -> Result<String> {
    dead_edge(folder, Transport::Tls, without_bfd(24))
}

/// Calls begin before, while and after packets vanish.
fn dead_edge(folder: &Path, transport: Transport, timers: Timers) -> Result<String> {
    const RATE: u32 = 10;
    let calls = RATE * (timers.hold_s + 4);
    let mut rig = Rig::start_with(timers, folder)?;
    let load = rig.load(transport, calls, RATE)?;
    let own = SocketAddr::from((address_of(1), 5070));
    let (edge1, ua1) = (&rig.net.edges[0], &rig.net.uas[0]);
    let watched = Duration::from_secs(6) + Duration::from_secs(u64::from(timers.hold_s));
    let gap = longest_gap(ua1, own, watched, || edge1.nft(DEAD))?;
    rig.wait_for_way(&rig.net.t1, Some("t2"))?;
    rig.judge(load)?;
    rig.net.edges[0].run("nft delete table inet dead")?;
    rig.wait_for_way(&rig.net.t1, Some("edge"))?;
    Ok(format!(
        "{calls} calls over {transport}, 0 failed; the longest gap of ua1 was {} ms ({timers:?})",
        gap.as_millis()
    ))
}

/// The concentrator is gone for a while: all edges withdraw, and come back with it.
pub(crate) fn concentrator_loss(folder: &Path) -> Result<String> {
    hung_concentrator(folder, Transport::Udp)
}

pub(crate) fn concentrator_loss_tcp(folder: &Path) -> Result<String> {
    hung_concentrator(folder, Transport::Tcp)
}

pub(crate) fn concentrator_loss_tls(folder: &Path) -> Result<String> {
    hung_concentrator(folder, Transport::Tls)
}

fn hung_concentrator(folder: &Path, transport: Transport) -> Result<String> {
    let mut rig = Rig::start(folder)?;
    let load = rig.load(transport, 100, 20)?;
    std::thread::sleep(Duration::from_secs(1));
    rig.edges.concentrator.process.signal(Signal::SIGSTOP)?;
    let withdrawn = rig.wait_for_way(&rig.net.t1, None)?;
    for router in [&rig.net.t2, &rig.net.r3] {
        rig.wait_for_way(router, None)?;
    }
    rig.edges.concentrator.process.signal(Signal::SIGCONT)?;
    let back = rig.wait_for_way(&rig.net.t1, Some("edge"))?;
    for router in [&rig.net.t2, &rig.net.r3] {
        rig.wait_for_way(router, Some("edge"))?;
    }
    rig.judge(load)?;
    ensure!(
        rig.catchments()? == CATCHMENTS,
        "the catchments are others now"
    );
    Ok(format!(
        "withdrawn everywhere after {} ms, back after {} ms (hold-down 1 s); 100 calls over {transport}, 0 failed",
        withdrawn.as_millis(),
        back.as_millis()
    ))
}

/// The tunnel of an edge comes and goes every two seconds: the hold-down keeps the route away.
pub(crate) fn flapping(folder: &Path) -> Result<String> {
    flaps(folder, Transport::Udp)
}

pub(crate) fn flapping_tcp(folder: &Path) -> Result<String> {
    flaps(folder, Transport::Tcp)
}

pub(crate) fn flapping_tls(folder: &Path) -> Result<String> {
    flaps(folder, Transport::Tls)
}

fn flaps(folder: &Path, transport: Transport) -> Result<String> {
    let mut rig = Rig::start(folder)?;
    let load = rig.load(transport, 280, 20)?;
    for _ in 0..3 {
        rig.net.edges[0].nft(CUT)?;
        std::thread::sleep(Duration::from_secs(2));
        rig.net.edges[0].run("nft delete table ip cut")?;
        std::thread::sleep(Duration::from_secs(2));
    }
    let metrics = rig.edges.ingresses[0].metrics(&rig.net.edges[0])?;
    let changes = metrics
        .iter()
        .find(|(name, _)| name.contains("announcement_changes_total"));
    let changes = changes.context("no announcement_changes_total")?.1;
    // Withdrawn, back once or twice, and then held down for longer than it is up.
    ensure!(
        changes <= 5.0,
        "the route has changed {changes} times in three flaps"
    );
    rig.wait_for_way(&rig.net.t1, Some("edge"))?;
    rig.judge(load)?;
    Ok(format!(
        "three flaps, {changes} changes of the route; 280 calls over {transport}, 0 failed"
    ))
}

/// Somebody's hand in the table, a daemon that crashes, a killed ingress and what it leaves.
pub(crate) fn bad_hands(folder: &Path) -> Result<String> {
    let mut rig = Rig::start(folder)?;
    let edge1 = rig.net.edges[0].name().to_owned();
    // Somebody removes the route: it comes back.
    rig.net.edges[0].run(&format!("ip route del {SERVICE}/32 proto 60 metric 100"))?;
    wait::until("the route to come back", PATIENCE, || {
        let routes = rig.net.edges[0].run("ip route show proto 60")?;
        Ok(routes.contains(&SERVICE.to_string()).then_some(()))
    })?;
    rig.wait_for_way(&rig.net.t1, Some("edge"))?;
    // BIRD crashes and starts again: it learns the route anew.
    rig.speakers.birds[0].kill()?;
    rig.wait_for_way(&rig.net.t1, Some("t2"))?;
    rig.speakers.restart_bird1(&rig.net)?;
    rig.wait_for_way(&rig.net.t1, Some("edge"))?;
    // The ingress is killed: the route goes with its device, the rule stays and harms nobody.
    rig.edges.ingresses[0].process.kill()?;
    rig.wait_for_way(&rig.net.t1, Some("t2"))?;
    let rules = rig.net.edges[0].run("ip rule")?;
    ensure!(rules.contains("lookup 5060"), "no rule is left: {rules}");
    // Somebody else's route with our metric is in the way when it starts again.
    let foreign = format!("blackhole {SERVICE}/32 metric 100");
    rig.net.edges[0].run(&format!("ip route add {foreign}"))?;
    rig.edges
        .restart_ingress1(&rig.net, &folder.join("service"))?;
    wait::until("the foreign route to be reported", PATIENCE, || {
        let log = rig.edges.ingresses[0].process.log();
        Ok(log.contains("somebody else's route").then_some(()))
    })?;
    ensure!(
        rig.probe(1)?.0 == 2,
        "ua1 reaches {edge1}, which cannot announce"
    );
    rig.net.edges[0].run(&format!("ip route del {foreign}"))?;
    rig.wait_for_way(&rig.net.t1, Some("edge"))?;
    ensure!(
        rig.catchments()? == CATCHMENTS,
        "the catchments are others now"
    );
    rig.edges.check_alive()?;
    Ok(
        "route removed, BIRD killed, ingress killed, foreign route: each reported and healed"
            .to_owned(),
    )
}

/// The longest time without an answer, of a question every 50 ms, while `accident` happens.
fn longest_gap(
    namespace: &Namespace,
    own: SocketAddr,
    watched: Duration,
    accident: impl FnOnce() -> Result<()>,
) -> Result<Duration> {
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| namespace.inside(|| gaps(own, watched)));
        std::thread::sleep(Duration::from_secs(1));
        accident()?;
        watcher
            .join()
            .map_err(|_| anyhow::anyhow!("the watcher panicked"))?
    })
}

fn gaps(own: SocketAddr, watched: Duration) -> Result<Duration> {
    const EVERY: Duration = Duration::from_millis(50);
    let socket = UdpSocket::bind(own)?;
    socket.set_read_timeout(Some(Duration::from_millis(5)))?;
    let start = Instant::now();
    let (mut longest, mut last, mut number) = (Duration::ZERO, start, 0_u32);
    while start.elapsed() < watched {
        if start.elapsed() >= EVERY * number {
            number += 1;
            let request = format!(
                "OPTIONS sip:{SERVICE} SIP/2.0\r\nVia: SIP/2.0/UDP {own};rport;branch=z9hG4bKg{number}\r\n\
                 Max-Forwards: 70\r\nFrom: <sip:gap@example.com>;tag=1\r\nTo: <sip:{SERVICE}>\r\n\
                 Call-ID: gap{number}\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n"
            );
            // Nobody there yet, or no more.
            let _lost = socket.send_to(request.as_bytes(), (SERVICE, 5060));
        }
        let mut answer = [0; 2_048];
        if socket.recv_from(&mut answer).is_ok() {
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
    }
    ensure!(
        last.elapsed() < Duration::from_secs(1),
        "no answers at the end"
    );
    Ok(longest)
}
