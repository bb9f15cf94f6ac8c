//! The operator's tool itself, run as a program in the access networks, against what is drawn.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{PATIENCE, Rig};
use crate::catchment::report::Report;
use crate::namespace::Namespace;
use crate::process::Process;
use crate::topology::internet::{CATCHMENTS, EDGES};
use crate::topology::two_edges::SERVICE;
use crate::wait;

/// From all access networks over UDP and TCP; the three ways in which it says why it does not know; a
/// drain as a watcher sees it, and as the concentrator counts it.
pub(crate) fn catchment_tool(folder: &Path) -> Result<String> {
    let rig = Rig::start(folder)?;
    let mut figures = Vec::new();
    for transport in ["udp", "tcp"] {
        let reports = ask_all(&rig, transport)?;
        for ((access, report), expected) in (1..).zip(&reports).zip(CATCHMENTS) {
            let edge = report.edge.as_ref().map(|edge| edge.name.clone());
            ensure!(
                edge == Some(format!("edge{expected}")) && report.error.is_none(),
                "ua{access} over {transport}: {report:?}"
            );
            let median = report.rtt_median_ms.unwrap_or(f64::NAN);
            figures.push(format!("ua{access} edge{expected} {median:.0} ms"));
        }
        figures.push(format!("over {transport}"));
    }
    refusals(&rig)?;
    watch_drain(&rig, folder)?;
    Ok(figures.join(", "))
}

fn ask_all(rig: &Rig, transport: &str) -> Result<Vec<Report>> {
    let program = program()?;
    let mut line =
        format!("{program} catchment --service {SERVICE} --transport {transport} --json");
    line += " --timeout-ms 5000 --interval-ms 50 --program";
    // Each argument apart: the commands hold spaces.
    let mut command = rig.net.t1.command("env");
    command.args(line.split_whitespace()).arg(&program);
    for ua in &rig.net.uas {
        let name = ua.name();
        command.arg(format!("--via={name}=nsenter --net=/run/netns/{name} --"));
    }
    let output = command.output()?;
    let reports: Vec<Report> = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    ensure!(reports.len() == 6, "{} of 6 reports", reports.len());
    Ok(reports)
}

fn refusals(rig: &Rig) -> Result<()> {
    // Not on the list; nothing listens; no route.
    let cases = [
        (&rig.net.t1, SERVICE.to_string(), "udp", "reveal_edge_to"),
        (&rig.net.t1, EDGES[0].to_string(), "udp", "refuses udp"),
        (&rig.net.t1, EDGES[0].to_string(), "tcp", "refuses tcp"),
        (&rig.net.t1, "203.0.113.99".to_owned(), "udp", "no answer"),
    ];
    for (namespace, address, transport, expected) in cases {
        let said = complaint(namespace, &address, transport)?;
        ensure!(
            said.contains(expected),
            "{address} over {transport}: {said}"
        );
    }
    Ok(())
}

/// What it prints where it does not find out; then its exit code says so as well.
fn complaint(namespace: &Namespace, address: &str, transport: &str) -> Result<String> {
    let mut command = namespace.command(&program()?);
    command.args(["catchment", "--count", "2", "--interval-ms", "50"]);
    command.args(["--service", address, "--transport", transport]);
    let output = command.output()?;
    ensure!(!output.status.success(), "it was content with {address}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn watch_drain(rig: &Rig, folder: &Path) -> Result<()> {
    let lines = folder.join("watch.jsonl");
    let mut command = rig.net.uas[0].command(&program()?);
    let service = SERVICE.to_string();
    command.args(["catchment", "--watch", "--json", "--interval-ms", "20"]);
    command.args(["--service", &service, "--name", "ua1"]);
    command.stdin(Stdio::null()).stdout(File::create(&lines)?);
    let mut watcher = Process::adopt("watcher", command.spawn()?, folder);
    let seen = |edge: &str, what: &str| -> Result<()> {
        wait::until(&format!("the watcher to see {edge}"), PATIENCE, || {
            let text = std::fs::read_to_string(&lines)?;
            let mut lines = text
                .lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let found = lines.any(|line| {
                let is = |key: &str, value: &str| {
                    let found = line.get(key).and_then(Value::as_str);
                    found.is_some_and(|found| found.starts_with(value))
                };
                is("edge", edge) && is("what", what)
            });
            Ok(found.then_some(()))
        })
    };
    seen("edge1", "answers")?;
    rig.edges.ingresses[0].process.signal(Signal::SIGUSR1)?;
    seen("edge2", "changed")?;
    rig.edges.ingresses[0].process.signal(Signal::SIGUSR2)?;
    seen("edge1", "changed")?;
    watcher.stop().map(drop)
}

fn program() -> Result<String> {
    Ok(std::env::current_exe()?.to_string_lossy().into_owned())
}
