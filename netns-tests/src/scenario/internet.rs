//! Accidents of routing in the topology `internet`, whose routes are BGP's.
//!
//! Each scenario has all edges announced first, breaks something, and asks for the same at the end: no
//! call failed, whatever it took, and the routes are what they should be.

use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

pub(crate) mod accidents;
mod catchment_tool;
mod drain;
mod routing;

pub(super) use accidents::{
    bad_hands, concentrator_loss, concentrator_loss_tcp, concentrator_loss_tls, flapping,
    flapping_tcp, flapping_tls, power_off, power_off_tcp, power_off_tls, slow_5, slow_5_tcp,
    slow_5_tls, slow_10, slow_10_tcp, slow_10_tls, slow_20, slow_20_tcp, slow_20_tls,
};
pub(super) use catchment_tool::catchment_tool;
pub(super) use drain::{drain, drain_tcp, drain_tls, drain_two};
pub(super) use routing::{attributes, ecmp, ecmp_tcp, ecmp_tls, ibgp, relay_loss, two_of_a_kind};

use crate::bgp::{Edit, Speakers, Timers};
use crate::edges::Edges;
use crate::namespace::Namespace;
use crate::phone::{self, Transport};
use crate::process::Process;
use crate::topology::internet::{CATCHMENTS, Internet, address_of};
use crate::topology::two_edges::SERVICE;
use crate::wait;

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Short, so that a scenario is; the ratios are those of the defaults.
const ANNOUNCEMENT: &str =
    "withdraw_after_ms = 500\nhold_down_s = 1\ngraceful_s = 1\nlinger_s = 1\n";

/// All of the topology, with everything announced.
#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) net: Internet,
    pub(crate) speakers: Speakers,
    pub(crate) edges: Edges,
    pub(crate) folder: PathBuf,
}

impl Rig {
    pub(crate) fn start(folder: &Path) -> Result<Self> {
        Self::start_with(Timers::FAST, folder)
    }

    fn start_with(timers: Timers, folder: &Path) -> Result<Self> {
        Self::start_announcing(timers, ANNOUNCEMENT, folder)
    }

    /// With other keys of the section `[announcement]`.
    pub(crate) fn start_announcing(
        timers: Timers,
        announcement: &str,
        folder: &Path,
    ) -> Result<Self> {
        Self::start_all(timers, &|_, config| Ok(config), announcement, folder)
    }

    /// With changed configs of the speakers.
    fn start_edited(timers: Timers, edit: Edit<'_>, folder: &Path) -> Result<Self> {
        Self::start_all(timers, edit, ANNOUNCEMENT, folder)
    }

    fn start_all(
        timers: Timers,
        edit: Edit<'_>,
        announcement: &str,
        folder: &Path,
    ) -> Result<Self> {
        let net = Internet::build()?;
        let speakers = Speakers::start(&net, timers, edit, folder)?;
        let edges = Edges::start(&net, announcement, folder)?;
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

    pub(crate) fn wait_for_way(
        &self,
        router: &Namespace,
        device: Option<&str>,
    ) -> Result<Duration> {
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

    pub(crate) fn wait_for_announcement(&self, edge: usize, state: &str) -> Result<()> {
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
        self.wait_for_user("ua2@", &mut callee)?;
        let caller = phone::patient_caller(&self.net.uas[0], transport, calls, rate, &self.folder)?;
        Ok(Load {
            caller,
            callee,
            calls,
        })
    }

    /// Waits until this user is registered.
    fn wait_for_user(&self, user: &str, callee: &mut Process) -> Result<()> {
        wait::until(&format!("{user} to register"), PATIENCE, || {
            callee.check_alive()?;
            let status = self.edges.concentrator.status(&self.net.concentrator)?;
            let bindings = status.get("bindings").and_then(Value::as_array);
            let mut users = bindings
                .into_iter()
                .flatten()
                .filter_map(|binding| binding.get("user")?.as_str());
            Ok(users.any(|found| found.contains(user)).then_some(()))
        })
    }

    /// Waits until the phone of an access network is the one who is registered.
    pub(crate) fn wait_for_binding_at(&self, callee: &mut Process, access: usize) -> Result<()> {
        // As the concentrator sees it: the NAT's, or its own where there is none.
        let network = if access == 4 { "100.65" } else { "100.64" };
        let wanted = format!("UDP:{network}.{access}.");
        wait::until(&format!("ua{access} to register"), PATIENCE, || {
            callee.check_alive()?;
            let status = self.edges.concentrator.status(&self.net.concentrator)?;
            let bindings = status.get("bindings").and_then(Value::as_array);
            let mut flows = bindings
                .into_iter()
                .flatten()
                .filter_map(|binding| binding.get("flow").and_then(Value::as_str));
            Ok(flows.any(|flow| flow.starts_with(&wanted)).then_some(()))
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
