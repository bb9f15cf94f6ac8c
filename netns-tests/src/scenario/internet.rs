//! Accidents of routing in the topology `internet`, whose routes are BGP's.
//!
//! Each scenario has all edges announced first, breaks something, and asks for the same at the end: no
//! call failed, whatever it took, and the routes are what they should be.

use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::bgp::{Speakers, Timers};
use crate::edges::Edges;
use crate::namespace::Namespace;
use crate::phone::{self, Transport};
use crate::process::Process;
use crate::topology::internet::{CATCHMENTS, Internet, address_of};
use crate::topology::two_edges::SERVICE;
use crate::wait;

const PATIENCE: Duration = Duration::from_secs(30);
/// Short, so that a scenario is; the ratios are those of the defaults.
const ANNOUNCEMENT: &str =
    "withdraw_after_ms = 500\nhold_down_s = 1\ngraceful_s = 1\nlinger_s = 1\n";
/// What nft does to a host that has lost its power: it is there, and neither hears nor speaks.
const DEAD: &str = r#"
table inet dead {
    chain in { type filter hook input priority -300; policy drop; }
    chain through { type filter hook forward priority -300; policy drop; }
    chain out { type filter hook output priority -300; policy drop; }
}
"#;

struct Rig {
    net: Internet,
    speakers: Speakers,
    edges: Edges,
    folder: PathBuf,
}

impl Rig {
    fn start(folder: &Path) -> Result<Self> {
        Self::start_with(Timers::FAST, folder)
    }

    fn start_with(timers: Timers, folder: &Path) -> Result<Self> {
        let net = Internet::build()?;
        let speakers = Speakers::start(&net, timers, folder)?;
        let edges = Edges::start(&net, ANNOUNCEMENT, folder)?;
        let rig = Self {
            net,
            speakers,
            edges,
            folder: folder.to_owned(),
        };
        rig.wait_for_way(&rig.net.t1, Some("edge"))?;
        rig.wait_for_way(&rig.net.t2, Some("edge"))?;
        rig.wait_for_way(&rig.net.r3, Some("edge"))?;
        Ok(rig)
    }

    /// The device that a router sends the service address to.
    fn way(&self, router: &Namespace) -> Result<Option<String>> {
        let route = router.run(&format!("ip route show {SERVICE}/32"))?;
        let mut words = route.split_whitespace().skip_while(|word| *word != "dev");
        Ok(words.nth(1).map(str::to_owned))
    }

    fn wait_for_way(&self, router: &Namespace, device: Option<&str>) -> Result<Duration> {
        let (start, mut last) = (Instant::now(), None);
        wait::until(
            &format!(
                "{} to send the service address to {device:?}",
                router.name()
            ),
            PATIENCE,
            || {
                last = self.way(router)?;
                Ok((last.as_deref() == device).then_some(()))
            },
        )
        .with_context(|| format!("it goes to {last:?}"))?;
        Ok(start.elapsed())
    }

    fn wait_for_announcement(&self, edge: usize, state: &str) -> Result<()> {
        let what = format!("edge {edge} to be {state}");
        wait::until(&what, PATIENCE, || {
            Ok((self.edges.announcement(&self.net, edge)? == state).then_some(()))
        })
    }

    /// The edge that an access network reaches now, and how long an answer of the service takes.
    fn probe(&self, access: usize) -> Result<(usize, Duration)> {
        let ua = &self.net.uas[access - 1];
        let mut passed = Vec::new();
        // A phone that has just ended may still say goodbye on its connection.
        for _ in 0..10 {
            let before = self.edges.forwarded(&self.net)?;
            let round_trip = options(ua, SocketAddr::from((address_of(access), 0)))?;
            let after = self.edges.forwarded(&self.net)?;
            passed = (1..=3)
                .filter(|edge| after[edge - 1] > before[edge - 1])
                .collect();
            if let [edge] = passed[..] {
                return Ok((edge, round_trip));
            }
        }
        anyhow::bail!("a packet of ua{access} passed the edges {passed:?}")
    }

    fn catchments(&self) -> Result<Vec<usize>> {
        (1..=6).map(|access| Ok(self.probe(access)?.0)).collect()
    }

    /// ua3 answers all calls of ua1; these are `calls`, `rate` a second.
    fn load(&mut self, transport: Transport, calls: u32, rate: u32) -> Result<Load> {
        let mut callee = phone::patient_callee(&self.net.uas[2], transport, &self.folder)?;
        wait::until("ua3 to register", PATIENCE, || {
            callee.check_alive()?;
            let status = self.edges.concentrator.status(&self.net.concentrator)?;
            let bindings = status.get("bindings").and_then(Value::as_array);
            Ok(bindings
                .is_some_and(|bindings| !bindings.is_empty())
                .then_some(()))
        })?;
        let caller = phone::patient_caller(&self.net.uas[0], transport, calls, rate, &self.folder)?;
        Ok(Load {
            caller,
            callee,
            calls,
        })
    }

    /// Waits for the last call; none may have failed.
    fn judge(&mut self, mut load: Load) -> Result<()> {
        let errors = self.folder.join("ua1/errors.txt");
        let complaints = || std::fs::read_to_string(&errors).unwrap_or_default();
        let status = load
            .caller
            .wait(Duration::from_secs(120))
            .with_context(complaints)?;
        ensure!(
            status.success(),
            "of {} calls some failed: {}",
            load.calls,
            complaints()
        );
        load.callee.stop()?;
        self.edges.check_alive()
    }
}

struct Load {
    caller: Process,
    callee: Process,
    calls: u32,
}

/// One OPTIONS and its answer.
fn options(namespace: &Namespace, own: SocketAddr) -> Result<Duration> {
    namespace.inside(|| {
        let socket = UdpSocket::bind(own)?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        let own = socket.local_addr()?;
        let request = format!(
            "OPTIONS sip:{SERVICE} SIP/2.0\r\nVia: SIP/2.0/UDP {own};rport;branch=z9hG4bK{own}\r\n\
             Max-Forwards: 70\r\nFrom: <sip:probe@example.com>;tag=1\r\nTo: <sip:{SERVICE}>\r\n\
             Call-ID: {own}\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n"
        );
        let start = Instant::now();
        socket.send_to(request.as_bytes(), (SERVICE, 5060))?;
        let mut answer = [0; 2_048];
        socket
            .recv_from(&mut answer)
            .context("the service does not answer")?;
        Ok(start.elapsed())
    })
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

/// Who reaches which edge; what the routers have been told; IPv6.
pub(super) fn catchments(folder: &Path) -> Result<String> {
    let rig = Rig::start(folder)?;
    let mut figures = Vec::new();
    for (access, expected) in (1..).zip(CATCHMENTS) {
        let (edge, round_trip) = rig.probe(access)?;
        ensure!(
            edge == expected,
            "ua{access} reaches edge {edge}, not {expected}"
        );
        figures.push(format!(
            "ua{access} edge {edge} {:.0} ms",
            round_trip.as_secs_f64() * 1000.0
        ));
    }
    let local = rig.speakers.route(&rig.net.r3, &format!("{SERVICE}/32"))?;
    for community in ["(65535,65281)", "(64503,120)"] {
        ensure!(local.contains(community), "no {community} at r3: {local}");
    }
    let elsewhere = rig.speakers.route(&rig.net.t2, &format!("{SERVICE}/32"))?;
    ensure!(
        !elsewhere.contains("65003"),
        "t2 has heard of the local node: {elsewhere}"
    );
    for router in [&rig.net.t1, &rig.net.t2] {
        wait::until(&format!("IPv6 at {}", router.name()), PATIENCE, || {
            let route = rig.speakers.route(router, "2001:db8:5060::1/128")?;
            Ok(route.contains("BGP.as_path: 6500").then_some(()))
        })?;
    }
    Ok(figures.join(", "))
}

/// An edge is drained by signal under load, by BIRD and by FRR, and comes back.
pub(super) fn drain(folder: &Path) -> Result<String> {
    let mut rig = Rig::start(folder)?;
    let load = rig.load(Transport::Udp, 800, 100)?;
    std::thread::sleep(Duration::from_secs(2));
    let ingress = &rig.edges.ingresses[0].process;
    ingress.signal(Signal::SIGUSR1)?;
    let service = format!("{SERVICE}/32");
    // Asked to go elsewhere first, while its route still stands.
    wait::until("GRACEFUL_SHUTDOWN at t1", PATIENCE, || {
        let route = rig.speakers.route(&rig.net.t1, &service)?;
        Ok(route.contains("(65535,0)").then_some(()))
    })?;
    rig.wait_for_way(&rig.net.t1, Some("t2"))?;
    rig.wait_for_announcement(1, "drained")?;
    wait::until("t1 to know one way only", PATIENCE, || {
        let route = rig.speakers.route(&rig.net.t1, &service)?;
        Ok((!route.contains("(65535,0)")).then_some(()))
    })?;
    rig.judge(load)?;
    ensure!(rig.probe(1)?.0 == 2, "ua1 still reaches edge 1");
    rig.edges.ingresses[0].process.signal(Signal::SIGUSR2)?;
    rig.wait_for_way(&rig.net.t1, Some("edge"))?;

    rig.edges.ingresses[1].process.signal(Signal::SIGUSR1)?;
    wait::until("GRACEFUL_SHUTDOWN at t2, from FRR", PATIENCE, || {
        let route = rig.speakers.route(&rig.net.t2, &service)?;
        Ok(route.contains("(65535,0)").then_some(()))
    })?;
    rig.wait_for_way(&rig.net.t2, Some("t1"))?;
    rig.wait_for_announcement(2, "drained")?;
    let catchments = rig.catchments()?;
    ensure!(
        catchments == [1, 1, 1, 3, 3, 1],
        "without edge 2: {catchments:?}"
    );
    // The end: it withdraws first, and then it is gone with its rule.
    let status = rig.edges.ingresses[2].process.stop()?;
    ensure!(
        status.success(),
        "the ingress of edge 3 ended with {status}"
    );
    rig.wait_for_way(&rig.net.r3, Some("t2"))?;
    let rules = rig.net.edges[2].run("ip rule")?;
    ensure!(
        !rules.contains(&SERVICE.to_string()),
        "a rule is left: {rules}"
    );
    Ok(format!(
        "800 calls at 100 a second, 0 failed; without edge 2: {catchments:?}"
    ))
}

/// An edge loses its power: nobody withdraws, BFD finds out.
pub(super) fn power_off(folder: &Path) -> Result<String> {
    dead_edge(folder, Transport::Udp, Timers::FAST)
}

pub(super) fn power_off_tcp(folder: &Path) -> Result<String> {
    dead_edge(folder, Transport::Tcp, Timers::FAST)
}

/// The same with a neighbour that does without BFD: packets vanish until the hold time is over.
pub(super) fn slow(folder: &Path) -> Result<String> {
    dead_edge(
        folder,
        Transport::Udp,
        Timers {
            bfd: false,
            hold_s: 12,
        },
    )
}

fn dead_edge(folder: &Path, transport: Transport, timers: Timers) -> Result<String> {
    let mut rig = Rig::start_with(timers, folder)?;
    let load = rig.load(transport, 200, 20)?;
    let own = SocketAddr::from((address_of(1), 5070));
    let (edge1, ua1) = (&rig.net.edges[0], &rig.net.uas[0]);
    let watched = Duration::from_secs(6) + Duration::from_secs(u64::from(timers.hold_s));
    let gap = longest_gap(ua1, own, watched, || edge1.nft(DEAD))?;
    rig.wait_for_way(&rig.net.t1, Some("t2"))?;
    rig.judge(load)?;
    rig.net.edges[0].run("nft delete table inet dead")?;
    rig.wait_for_way(&rig.net.t1, Some("edge"))?;
    Ok(format!(
        "200 calls over {transport}, 0 failed; the longest gap of ua1 was {} ms ({timers:?})",
        gap.as_millis()
    ))
}

/// The concentrator is gone for a while: all edges withdraw, and come back with it.
pub(super) fn concentrator_loss(folder: &Path) -> Result<String> {
    hung_concentrator(folder, Transport::Udp)
}

pub(super) fn concentrator_loss_tcp(folder: &Path) -> Result<String> {
    hung_concentrator(folder, Transport::Tcp)
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
pub(super) fn flapping(folder: &Path) -> Result<String> {
    const CUT: &str = "table ip cut {\n chain out {\n type filter hook output priority filter\n \
                       ip protocol gre drop\n }\n}\n";
    let mut rig = Rig::start(folder)?;
    let load = rig.load(Transport::Udp, 280, 20)?;
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
        "three flaps, {changes} changes of the route; 280 calls, 0 failed"
    ))
}

/// Somebody's hand in the table, a daemon that crashes, a killed ingress and what it leaves.
pub(super) fn bad_hands(folder: &Path) -> Result<String> {
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
