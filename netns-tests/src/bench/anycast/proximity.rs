//! Whether anycast leads to the nearest edge: round trips to the edge that it leads to, beside those to
//! every edge's own address, as the routes are, without each of the edges, and with a provider that
//! prefers another's route.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde::Serialize;
use serde_json::json;

use super::plot::{self, Series};
use super::{Outcome, outcome, path};
use crate::namespace::Namespace;
use crate::scenario::internet::{PATIENCE, Rig};
use crate::topology::internet::EDGES;
use crate::wait;

/// Round trips vary by that much from one measurement to the next.
const SAME_MS: f64 = 1.0;

/// One access network.
#[derive(Debug, Serialize)]
struct Row {
    access: usize,
    /// 1 to 3.
    edge: usize,
    to_edge_ms: f64,
    to_service_ms: f64,
    /// To each edge's own address.
    unicast_ms: [f64; 3],
    nearest: usize,
    gap_ms: f64,
}

#[derive(Debug, Serialize)]
struct Variant {
    name: String,
    rows: Vec<Row>,
}

impl Variant {
    fn at_nearest(&self) -> usize {
        let rows = self.rows.iter();
        rows.filter(|row| row.gap_ms < SAME_MS).count()
    }

    fn largest_gap(&self) -> f64 {
        self.rows.iter().map(|row| row.gap_ms).fold(0.0, f64::max)
    }
}

pub(crate) fn run(folder: &Path) -> Result<Vec<Outcome>> {
    let rig = Rig::start(folder)?;
    for (namespace, address) in rig.net.edges.iter().zip(EDGES) {
        path::echo(namespace, address)?;
        // A router that tells of every packet that dies there.
        namespace.sysctl("net.ipv4.icmp_ratelimit", "0")?;
    }
    for router in [&rig.net.t1, &rig.net.t2, &rig.net.r3] {
        router.sysctl("net.ipv4.icmp_ratelimit", "0")?;
    }
    let mut variants = vec![measure(&rig, "all edges", &[1, 2, 3])?];
    let routers = [&rig.net.t1, &rig.net.t2, &rig.net.r3];
    for (edge, router) in (1..=3).zip(routers) {
        let ingress = &rig.edges.ingresses[edge - 1].process;
        ingress.signal(Signal::SIGUSR1)?;
        rig.wait_for_announcement(edge, "drained")?;
        wait_until_left(&rig, edge)?;
        let serving: Vec<usize> = (1..=3).filter(|other| *other != edge).collect();
        let name = format!("without edge {edge}");
        variants.push(measure(&rig, &name, &serving)?);
        ingress.signal(Signal::SIGUSR2)?;
        rig.wait_for_way(router, Some("edge"))?;
    }
    prefer_the_peer(&rig)?;
    let name = "t1 prefers t2's route";
    variants.push(measure(&rig, name, &[1, 2, 3])?);
    write(&variants, folder)?;
    Ok(variants
        .iter()
        .map(|variant| {
            outcome(
                "anycast/proximity",
                "access networks of six at their nearest serving edge",
                variant.at_nearest() as f64,
                6,
                json!({ "variant": variant.name, "largest_gap_ms": variant.largest_gap(),
                        "rows": variant.rows }),
            )
        })
        .collect())
}

/// Waits until nobody reaches an edge any more.
fn wait_until_left(rig: &Rig, edge: usize) -> Result<()> {
    let of = format!("edge{edge}");
    for ua in &rig.net.uas {
        wait::until(&format!("{} to leave {of}", ua.name()), PATIENCE, || {
            Ok((path::to_service(ua)?.0.name != of).then_some(()))
        })?;
    }
    Ok(())
}

/// Routing that is not about distance: t1 would rather hand over to t2 than to its customer.
fn prefer_the_peer(rig: &Rig) -> Result<()> {
    let file = rig.folder.join("bgp/t1.conf");
    let config = fs::read_to_string(&file)?;
    let neighbour = "neighbor 10.0.1.2 as 65001; }";
    ensure!(config.contains(neighbour), "t1 has no edge 1");
    let reluctant = "neighbor 10.0.1.2 as 65001; ipv4 { import filter { \
                     if net = 198.51.100.1/32 then bgp_local_pref = 50; accept; }; export all; }; }";
    fs::write(&file, config.replace(neighbour, reluctant))?;
    rig.speakers.ask(&rig.net.t1, "configure")?;
    rig.wait_for_way(&rig.net.t1, Some("t2"))?;
    Ok(())
}

fn measure(rig: &Rig, name: &str, serving: &[usize]) -> Result<Variant> {
    eprintln!("bench anycast/proximity: {name}");
    let uas = (1..).zip(&rig.net.uas);
    let rows = uas.map(|(access, ua)| row(access, ua, serving));
    Ok(Variant {
        name: name.to_owned(),
        rows: rows.collect::<Result<_>>()?,
    })
}

fn row(access: usize, ua: &Namespace, serving: &[usize]) -> Result<Row> {
    let (told, to_service_ms) = path::to_service(ua)?;
    let (router, to_edge_ms) = path::to_edge(ua, &EDGES)?;
    let edge = EDGES.iter().position(|address| *address == router);
    let edge = edge.context("no edge")? + 1;
    ensure!(
        told.name == format!("edge{edge}"),
        "ua{access}: packets pass {router}, and the service names {told}"
    );
    let mut unicast_ms = [0.0; 3];
    for (time, address) in unicast_ms.iter_mut().zip(EDGES) {
        *time = path::round_trip(ua, address)?;
    }
    let time = |edge: &usize| unicast_ms[edge - 1];
    let nearest = serving.iter().min_by(|a, b| time(a).total_cmp(&time(b)));
    let nearest = *nearest.context("no edge serves")?;
    Ok(Row {
        access,
        edge,
        to_edge_ms,
        to_service_ms,
        nearest,
        gap_ms: to_edge_ms - time(&nearest),
        unicast_ms,
    })
}

fn write(variants: &[Variant], folder: &Path) -> Result<()> {
    let mut table = String::from(
        "| | access network | anycast leads to | RTT to it, ms | RTT to edge 1 / 2 / 3, ms | nearest | gap, ms | RTT to the service, ms |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for variant in variants {
        for row in &variant.rows {
            let [a, b, c] = row.unicast_ms;
            writeln!(
                table,
                "| {} | ua{} | edge {} | {:.1} | {a:.1} / {b:.1} / {c:.1} | edge {} | {:.1} | {:.1} |",
                variant.name,
                row.access,
                row.edge,
                row.to_edge_ms,
                row.nearest,
                // Not -0.0.
                (row.gap_ms * 10.0).round() / 10.0 + 0.0,
                row.to_service_ms,
            )?;
        }
    }
    fs::write(folder.join("proximity.md"), &table)?;
    fs::write(
        folder.join("proximity.json"),
        serde_json::to_string_pretty(variants)?,
    )?;
    eprintln!("{table}");
    let column = |name: &str, value: fn(&Row) -> f64| Series {
        name: name.to_owned(),
        values: variants
            .iter()
            .flat_map(|variant| variant.rows.iter().map(value))
            .collect(),
    };
    let groups: Vec<String> = variants
        .iter()
        .flat_map(|variant| variant.rows.iter().map(|row| row.access.to_string()))
        .collect();
    let names: Vec<&str> = variants.iter().map(|v| v.name.as_str()).collect();
    let title = "Round trips from ua1 to ua6 to the edge";
    let series = [
        column("by anycast", |row| row.to_edge_ms),
        column("nearest serving edge", |row| {
            row.unicast_ms[row.nearest - 1]
        }),
    ];
    let svg = plot::bars([title, "RTT, ms"], &names, &groups, &series);
    Ok(fs::write(folder.join("proximity.svg"), svg)?)
}
