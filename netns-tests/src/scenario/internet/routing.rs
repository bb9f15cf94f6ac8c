//! What the routers do by rule, and what is configured wrongly: equal ways, attributes, iBGP, a relay
//! that dies while its edge announces, two edges that call themselves by one name.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::{PATIENCE, Rig, options};
use crate::bgp::{Timers, changed};
use crate::namespace::Namespace;
use crate::phone::{self, Transport};
use crate::process::Process;
use crate::service::binary;
use crate::topology::internet::{CATCHMENTS, address_of};
use crate::topology::two_edges::SERVICE;
use crate::wait;

/// Source ports of one phone that ask: that a fair hash sends all of them one way has a chance of one
/// in four thousand million.
const PORTS: std::ops::Range<u16> = 20_000..20_033;

/// t1 has two equally good ways and its kernel hashes flows over both; one way goes, under load.
pub(crate) fn ecmp(folder: &Path) -> Result<String> {
    two_ways(folder, Transport::Udp)
}

pub(crate) fn ecmp_tcp(folder: &Path) -> Result<String> {
    two_ways(folder, Transport::Tcp)
}

pub(crate) fn ecmp_tls(folder: &Path) -> Result<String> {
    two_ways(folder, Transport::Tls)
}

fn two_ways(folder: &Path, transport: Transport) -> Result<String> {
    // Edge 1 makes its path as long as the one to edge 2 is.
    let edit = |name: &str, config: String| match name {
        "edge1" => changed(config, &[("PREPEND = 0;", "PREPEND = 1;")]),
        "t1" => changed(config, &[("kernel4 {", "kernel4 { merge paths on;")]),
        _ => Ok(config),
    };
    let mut rig = Rig::start_edited(Timers::FAST, &edit, folder)?;
    rig.net
        .t1
        .sysctl("net.ipv4.fib_multipath_hash_policy", "1")?;
    rig.wait_for_ways(&["edge", "t2"])?;
    let split = rig.split()?;
    ensure!(split[0] > 0 && split[1] > 0, "one way has all: {split:?}");

    let mut load = rig.load(transport, 120, 20)?;
    let (ua2, before) = (&rig.net.uas[1], rig.edges.forwarded(&rig.net)?);
    let mut second = phone::patient_caller(ua2, transport, 120, 20, folder)?;
    std::thread::sleep(Duration::from_secs(2));
    // The callee is always at edge 2: what passes edge 1 is a caller's. That way goes, if it has one.
    let after = rig.edges.forwarded(&rig.net)?;
    let (gone, stays, device) = if after[0] > before[0] {
        (1, 2, "t2")
    } else {
        (2, 1, "edge")
    };
    let ingress = &rig.edges.ingresses[gone - 1].process;
    ingress.signal(Signal::SIGUSR1)?;
    rig.wait_for_ways(&[device])?;
    rig.wait_for_announcement(gone, "drained")?;
    let still_calling = load.caller.ended()?.is_none() && second.ended()?.is_none();
    ensure!(still_calling, "the calls were over before the way was");
    let status = second.wait(Duration::from_secs(120))?;
    ensure!(status.success(), "of the calls of ua2 some failed");
    rig.judge(load)?;
    let one = rig.split()?;
    ensure!(
        one[gone - 1] == 0 && one[stays - 1] > 0,
        "without edge {gone}: {one:?}"
    );
    let ingress = &rig.edges.ingresses[gone - 1].process;
    ingress.signal(Signal::SIGUSR2)?;
    rig.wait_for_ways(&["edge", "t2"])?;
    let again = rig.split()?;
    ensure!(again[0] > 0 && again[1] > 0, "one way has all: {again:?}");
    Ok(format!(
        "{} ports of ua1 and of ua2: {split:?} by edge, without edge {gone} {one:?}, then {again:?}; \
         2 x 120 calls over {transport}, 0 failed",
        PORTS.len()
    ))
}

/// The relay of an edge is killed while the edge announces: the route stays, calls take the relay that
/// stands in, and its own again when it is back.
pub(crate) fn relay_loss(folder: &Path) -> Result<String> {
    let mut rig = Rig::start(folder)?;
    let changes = rig.route_changes(1)?;
    let load = rig.load(Transport::Udp, 160, 20)?;
    wait::until("calls with the edge's own relay", PATIENCE, || {
        Ok((rig.event("media_relayed")? >= 20.0).then_some(()))
    })?;
    let early = rig.event("media_fallback")?;
    ensure!(
        early == 0.0,
        "{early} calls fell back with all relays there"
    );
    rig.edges.relays[0].process.kill()?;
    wait::until("calls with the relay that stands in", PATIENCE, || {
        Ok((rig.event("media_fallback")? >= 20.0).then_some(()))
    })?;
    let way = rig.way(&rig.net.t1)?;
    ensure!(way.as_deref() == Some("edge"), "t1's way is {way:?}");
    ensure!(rig.probe(1)?.0 == 1, "ua1 does not reach edge 1 any more");
    start_again(
        &mut rig.edges.relays[0].process,
        &rig.net.edges[0],
        "relay1",
        "sipcast-rtp-agent",
        folder,
    )?;
    rig.judge(load)?;
    rig.edges.wait_until_ready(&rig.net)?;
    // The pages show what was some time ago.
    let placed = |rig: &Rig, calls: f64| {
        wait::until(&format!("{calls} calls to be counted"), PATIENCE, || {
            let all = rig.event("media_relayed")? + rig.event("media_unplaced")?;
            Ok((all >= calls).then_some(()))
        })
    };
    placed(&rig, 160.0)?;
    let (fallen, relayed) = (rig.event("media_fallback")?, rig.event("media_relayed")?);
    // The few that come in the moment of the death, or of the return, may find no lease anywhere.
    let without = rig.event("media_unplaced")?;
    ensure!(
        relayed + without == 160.0 && without <= 8.0,
        "of 160 calls {relayed} had a relay and {without} none"
    );
    let load = rig.load(Transport::Udp, 40, 20)?;
    rig.judge(load)?;
    placed(&rig, 200.0)?;
    let later = rig.event("media_fallback")? - fallen;
    let own = rig.event("media_relayed")? - relayed - later;
    ensure!(
        (own, later) == (40.0, 0.0),
        "with the relay back, {own} calls took it and {later} fell back"
    );
    let changes = rig.route_changes(1)? - changes;
    ensure!(changes == 0.0, "the route has changed {changes} times");
    Ok(format!(
        "160 calls, 0 failed, {fallen} through the relay that stands in, {without} through none; 40 calls after that, all through \
         its own; the route has not changed"
    ))
}

/// What the recipes offer moves catchments: a longer path, a MED where it is compared, a community of
/// the provider; FRR's commented lines.
pub(crate) fn attributes(folder: &Path) -> Result<String> {
    // A provider that prefers its customer less where the customer says so.
    const HEARD: (&str, &str) = (
        "\tif (65535, 0)",
        "\tif (64501, 80) ~ bgp_community then bgp_local_pref = 80;\n\tif (65535, 0)",
    );
    let edit = |name: &str, config: String| match name {
        "t1" => changed(config, &[HEARD]),
        _ => Ok(config),
    };
    let rig = Rig::start_edited(Timers::FAST, &edit, folder)?;
    let (edge1, t1, t2) = (&rig.net.edges[0], &rig.net.t1, &rig.net.t2);
    rig.expect(1, t1, "edge", 1)?;

    rig.speakers
        .change(edge1, &[("PREPEND = 0;", "PREPEND = 2;")])?;
    rig.wait_for_attribute(t1, "BGP.as_path: 65001 65001 65001")?;
    rig.expect(1, t1, "t2", 2)?;

    // As long as the other one, t1 takes the one with the lower router id.
    let equal = [("PREPEND = 2;", "PREPEND = 1;"), ("MED = 0;", "MED = 50;")];
    rig.speakers.change(edge1, &equal)?;
    rig.wait_for_choice(t1, "edge1", &["BGP.med: 50", "65001 65001", "64502 65002"])?;
    // RFC 4271 section 9.1.2.2 c: of two networks, they are not compared.
    rig.expect(1, t1, "edge", 1)?;
    let always = [("error wait", "med metric on;\n\terror wait")];
    rig.speakers.change(t1, &always)?;
    // Its sessions begin anew by that: the choice counts that it makes with both before it.
    rig.wait_for_choice(t1, "t2", &["BGP.med: 50", "65001 65001", "64502 65002"])?;
    rig.expect(1, t1, "t2", 2)?;
    rig.speakers.change(edge1, &[("MED = 50;", "MED = 0;")])?;
    rig.expect(1, t1, "edge", 1)?;

    let told = [
        ("PREPEND = 1;", "PREPEND = 0;"),
        ("MARK_AS = 0;", "MARK_AS = 64501;"),
        ("MARK_VALUE = 0;", "MARK_VALUE = 80;"),
    ];
    rig.speakers.change(edge1, &told)?;
    rig.wait_for_attribute(t1, "(64501,80)")?;
    rig.expect(1, t1, "t2", 2)?;
    rig.speakers
        .change(edge1, &[("MARK_AS = 64501;", "MARK_AS = 0;")])?;
    rig.expect(1, t1, "edge", 1)?;

    const LINES: [&str; 4] = [
        "set as-path prepend 65002 65002",
        "set metric 50",
        "set community 64502:120 additive",
        "set community no-export additive",
    ];
    rig.announce_by_frr(None, LINES[0])?;
    rig.wait_for_attribute(t2, "BGP.as_path: 65002 65002 65002")?;
    rig.expect(3, t2, "t1", 1)?;
    rig.announce_by_frr(Some(LINES[0]), LINES[1])?;
    rig.wait_for_attribute(t2, "BGP.med: 50")?;
    rig.expect(3, t2, "edge", 2)?;
    rig.announce_by_frr(Some(LINES[1]), LINES[2])?;
    rig.wait_for_attribute(t2, "(64502,120)")?;
    rig.announce_by_frr(Some(LINES[2]), LINES[3])?;
    rig.wait_for_attribute(t2, "(65535,65281)")?;
    wait::until("t1 to hear nothing of edge 2", PATIENCE, || {
        let route = rig.route(t1)?;
        Ok((!route.contains("65002")).then_some(()))
    })?;
    let catchments = rig.catchments()?;
    ensure!(catchments == CATCHMENTS, "at the end: {catchments:?}");
    Ok("PREPEND, MED, community by BIRD, prepend, metric, communities by FRR: each arrives, and moves \
        those it should"
        .to_owned())
}

/// The edges are in their providers' networks: iBGP, and the local preference decides.
pub(crate) fn ibgp(folder: &Path) -> Result<String> {
    let edit = |name: &str, config: String| match name {
        "edge1" => changed(
            config,
            &[
                ("OUR_AS = 65001;", "OUR_AS = 64501;"),
                ("PREFERENCE = 100;", "PREFERENCE = 150;"),
            ],
        ),
        "edge2" => inner_frr(config),
        "edge3" => changed(config, &[("OUR_AS = 65003;", "OUR_AS = 64503;")]),
        "t1" => Ok(config.replace("as 65001;", "as 64501;")),
        "t2" => Ok(config.replace("as 65002;", "as 64502;")),
        "r3" => Ok(config.replace("as 65003;", "as 64503;")),
        _ => Ok(config),
    };
    let mut rig = Rig::start_edited(Timers::FAST, &edit, folder)?;
    rig.wait_for_attribute(&rig.net.t1, "BGP.local_pref: 150")?;
    for (router, edge) in [
        (&rig.net.t1, "10.0.1.2"),
        (&rig.net.t2, "10.0.2.2"),
        (&rig.net.r3, "10.0.3.2"),
    ] {
        rig.wait_for_bfd(router, edge)?;
    }
    let catchments = rig.catchments()?;
    ensure!(catchments == CATCHMENTS, "by iBGP: {catchments:?}");

    let edge1 = &rig.net.edges[0];
    let less = [("PREFERENCE = 150;", "PREFERENCE = 50;")];
    rig.speakers.change(edge1, &less)?;
    rig.expect(1, &rig.net.t1, "t2", 2)?;
    let more = [("PREFERENCE = 50;", "PREFERENCE = 150;")];
    rig.speakers.change(edge1, &more)?;
    rig.expect(1, &rig.net.t1, "edge", 1)?;

    let load = rig.load(Transport::Udp, 160, 20)?;
    for (edge, elsewhere) in [(1, "t2"), (2, "t1")] {
        let router = [&rig.net.t1, &rig.net.t2][edge - 1];
        let ingress = &rig.edges.ingresses[edge - 1].process;
        ingress.signal(Signal::SIGUSR1)?;
        rig.wait_for_attribute(router, "(65535,0)")?;
        rig.wait_for_way(router, Some(elsewhere))?;
        rig.wait_for_announcement(edge, "drained")?;
        wait::until("the route of a drained edge to go", PATIENCE, || {
            Ok((!rig.route(router)?.contains("(65535,0)")).then_some(()))
        })?;
        ingress.signal(Signal::SIGUSR2)?;
        rig.wait_for_way(router, Some("edge"))?;
    }
    rig.judge(load)?;
    let catchments = rig.catchments()?;
    ensure!(catchments == CATCHMENTS, "at the end: {catchments:?}");
    Ok("BIRD and FRR; PREFERENCE moves ua1; both drained in turn, 160 calls, 0 failed".to_owned())
}

/// frr.conf for an edge in its provider's network, as its head says.
fn inner_frr(config: String) -> Result<String> {
    let mut config = changed(config, &[("router bgp 65002", "router bgp 64502")])?;
    for neighbour in ["10.0.2.1", "2001:db8:e2::1"] {
        let activate = format!("  neighbor {neighbour} activate\n");
        let own = format!("{activate}  neighbor {neighbour} next-hop-self\n");
        config = changed(config, &[(&activate, &own)])?;
    }
    Ok(config)
}

/// Two edges with one tunnel key, then with one mark: the second one is refused and counted by name, it
/// does not announce, and nobody else notices.
pub(crate) fn two_of_a_kind(folder: &Path) -> Result<String> {
    let mut rig = Rig::start(folder)?;
    refused_at_start(&rig.net.concentrator, &folder.join("service"))?;
    let file = folder.join("service/ingress2.toml");
    let right = fs::read_to_string(&file)?;
    let load = rig.load(Transport::Udp, 300, 20)?;
    let mut figures = Vec::new();
    for (reason, change) in [
        ("wrong_key", ("key = 0x1002", "key = 0x1001")),
        ("foreign_mark", ("mark = 2", "mark = 1")),
    ] {
        rig.configure_ingress2(changed(right.clone(), &[change])?)?;
        let before = rig.refused(reason)?;
        // Three seconds of probes, six times what it takes to announce.
        wait::until(&format!("30 packets with {reason}"), PATIENCE, || {
            Ok((rig.refused(reason)? >= before + 30.0).then_some(()))
        })?;
        let state = rig.edges.announcement(&rig.net, 2)?;
        ensure!(
            state == "waiting for a concentrator",
            "{reason}: edge 2 is {state}"
        );
        rig.wait_for_way(&rig.net.t2, Some("t1"))?;
        // It has begun with this config, and nothing has come to it.
        let forwarded = rig.edges.forwarded(&rig.net)?[1];
        ensure!(forwarded == 0, "{reason}: edge 2 has forwarded {forwarded}");
        let refused = rig.refused(reason)? - before;
        figures.push(format!("{reason} counted {refused} times"));
    }
    rig.judge(load)?;
    let catchments = rig.catchments()?;
    ensure!(
        catchments == [1, 1, 1, 3, 3, 1],
        "without edge 2: {catchments:?}"
    );
    rig.configure_ingress2(right)?;
    rig.wait_for_way(&rig.net.t2, Some("edge"))?;
    let catchments = rig.catchments()?;
    ensure!(catchments == CATCHMENTS, "at the end: {catchments:?}");
    Ok(format!("{}; 300 calls, 0 failed", figures.join("; ")))
}

/// The concentrator's own config does not take one key for two edges.
fn refused_at_start(namespace: &Namespace, folder: &Path) -> Result<()> {
    let config = fs::read_to_string(folder.join("concentrator.toml"))?;
    let twice = changed(config, &[("key = 0x1002", "key = 0x1001")])?;
    fs::write(folder.join("twice.toml"), twice)?;
    let program = binary("sipcast-concentrator")?;
    let arguments = ["--config", "twice.toml", "--check"];
    let mut check = Process::start(
        namespace,
        "twice",
        &program.to_string_lossy(),
        &arguments,
        folder,
    )?;
    let status = check.wait(PATIENCE)?;
    ensure!(status.code() == Some(2), "a key twice: {status}");
    let log = check.log();
    ensure!(
        log.contains("0x1001 is also edges[0].key"),
        "a key twice: {log}"
    );
    Ok(())
}

/// A line of frr.conf without its values.
fn command_of(line: &str) -> &str {
    let values = line.find(|letter: char| letter.is_ascii_digit());
    let values = values.or_else(|| line.find("no-export"));
    line[..values.unwrap_or(line.len())].trim_end()
}

fn start_again(
    process: &mut Process,
    namespace: &Namespace,
    name: &str,
    program: &str,
    folder: &Path,
) -> Result<()> {
    *process = Process::start(
        namespace,
        &format!("{name}-again"),
        &binary(program)?.to_string_lossy(),
        &["--config", &format!("{name}.toml")],
        &folder.join("service"),
    )?;
    Ok(())
}

impl Rig {
    /// Waits until t1 sends the service address to all of these devices.
    fn wait_for_ways(&self, devices: &[&str]) -> Result<()> {
        let mut last = String::new();
        wait::until(&format!("t1's ways to be {devices:?}"), PATIENCE, || {
            last = self.net.t1.run(&format!("ip route show {SERVICE}/32"))?;
            let words: Vec<&str> = last.split_whitespace().collect();
            let after_dev = words.windows(2).filter(|pair| pair[0] == "dev");
            let ways: BTreeSet<&str> = after_dev.map(|pair| pair[1]).collect();
            Ok((ways == devices.iter().copied().collect()).then_some(()))
        })
        .with_context(|| last)
    }

    /// Packets through each edge when ua1 and ua2 ask from [`PORTS`], one each.
    fn split(&self) -> Result<[u64; 3]> {
        let before = self.edges.forwarded(&self.net)?;
        for access in [1, 2] {
            for port in PORTS {
                // Both phones have one address: with one port their requests would be one transaction.
                let port = if access == 1 { port } else { port + 1_000 };
                let own = SocketAddr::from((address_of(access), port));
                options(&self.net.uas[access - 1], own)?;
            }
        }
        let after = self.edges.forwarded(&self.net)?;
        Ok([0, 1, 2].map(|edge| after[edge] - before[edge]))
    }

    fn route(&self, router: &Namespace) -> Result<String> {
        self.speakers.route(router, &format!("{SERVICE}/32"))
    }

    /// Waits until some route of a router for the service address has this attribute.
    fn wait_for_attribute(&self, router: &Namespace, attribute: &str) -> Result<()> {
        let (mut last, what) = (String::new(), format!("{attribute} at {}", router.name()));
        wait::until(&what, PATIENCE, || {
            last = self.route(router).unwrap_or_else(|error| error.to_string());
            Ok(last.contains(attribute).then_some(()))
        })
        .with_context(|| last)
    }

    /// Waits until a router knows ways with all of these attributes and has chosen that of this session.
    fn wait_for_choice(&self, router: &Namespace, session: &str, all: &[&str]) -> Result<()> {
        let (mut last, what) = (String::new(), format!("{session} to be chosen of {all:?}"));
        wait::until(&what, PATIENCE, || {
            last = self.route(router).unwrap_or_else(|error| error.to_string());
            let knows_all = all.iter().all(|attribute| last.contains(attribute));
            let chosen = last.lines().find(|line| line.contains("] * ("));
            let is_it = chosen.is_some_and(|line| line.contains(&format!("[{session} ")));
            Ok((knows_all && is_it).then_some(()))
        })
        .with_context(|| last)
    }

    fn wait_for_bfd(&self, router: &Namespace, neighbour: &str) -> Result<()> {
        let (mut last, what) = (String::new(), format!("BFD with {neighbour}"));
        wait::until(&what, PATIENCE, || {
            last = self.speakers.ask(router, "show bfd sessions")?;
            let up = |line: &str| line.starts_with(neighbour) && line.contains(" Up ");
            Ok(last.lines().any(up).then_some(()))
        })
        .with_context(|| last)
    }

    /// Waits for the way of a router; the phone of an access network reaches this edge then.
    fn expect(&self, access: usize, router: &Namespace, device: &str, edge: usize) -> Result<()> {
        self.wait_for_way(router, Some(device))
            .with_context(|| self.route(router).unwrap_or_default())?;
        let reached = self.probe(access)?.0;
        ensure!(reached == edge, "ua{access} reaches edge {reached}");
        Ok(())
    }

    /// Takes one of the commented lines of frr.conf into its route-map, in place of another.
    fn announce_by_frr(&self, before: Option<&str>, line: &str) -> Result<()> {
        const MAP: &str = "route-map ANNOUNCE permit 10\n";
        let commented = format!("!  {line}\n");
        let (from, to) = match before {
            None => (MAP.to_owned(), format!("{MAP} {line}\n")),
            // It takes no values behind a `no`.
            Some(before) => (
                format!("\n {before}\n"),
                format!("\n no {}\n {line}\n", command_of(before)),
            ),
        };
        let changes = [(commented.as_str(), ""), (from.as_str(), to.as_str())];
        self.speakers.change_frr(&self.net, &changes)
    }

    /// An event that the concentrator counts.
    fn event(&self, name: &str) -> Result<f64> {
        self.counted(&format!("\"{name}\""))
    }

    /// Packets that were refused at the tunnel's end for this reason.
    fn refused(&self, reason: &str) -> Result<f64> {
        self.counted(&format!("tunnel_refused_total{{reason=\"{reason}\"}}"))
    }

    fn counted(&self, name: &str) -> Result<f64> {
        let concentrator = &self.edges.concentrator;
        let metrics = concentrator.metrics(&self.net.concentrator)?;
        let sample = metrics.iter().find(|(sample, _)| sample.contains(name));
        Ok(sample.map_or(0.0, |(_, value)| *value))
    }

    fn route_changes(&self, edge: usize) -> Result<f64> {
        let metrics = self.edges.ingresses[edge - 1].metrics(&self.net.edges[edge - 1])?;
        let changes = metrics
            .iter()
            .find(|(name, _)| name.contains("announcement_changes_total"));
        Ok(changes.context("no announcement_changes_total")?.1)
    }

    /// Ends the ingress of edge 2 and starts it with this config.
    fn configure_ingress2(&mut self, config: String) -> Result<()> {
        let ingress = &mut self.edges.ingresses[1];
        ingress.process.stop()?;
        fs::write(self.folder.join("service/ingress2.toml"), config)?;
        let edge2 = &self.net.edges[1];
        start_again(
            &mut ingress.process,
            edge2,
            "ingress2",
            "sipcast-ingress",
            &self.folder,
        )?;
        ingress.wait_until_started(edge2)
    }
}
