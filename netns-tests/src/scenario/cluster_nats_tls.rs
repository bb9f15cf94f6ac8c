//! Registrations shared over NATS servers with the file of `configs/`, which want TLS, a certificate of ours, name and
//! password, and let us do nothing that we need not. A concentrator that lacks one of them serves alone, says why, and goes on trying; with all of them it has what the
//! other has.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::restart::{KEY, write_key};
use super::second_concentrator::{SECOND, call, start_second, wire_second, with_both};
use crate::namespace::Namespace;
use crate::nats::{Access, Nats};
use crate::phone::{self, Script, Transport};
use crate::process::Process;
use crate::service::{Program, Service, binary};
use crate::topology::two_edges::TwoEdges;
use crate::wait;

const NATS: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 1);
const PATIENCE: Duration = Duration::from_secs(40);
/// What the second one lacks, by name, and how its config is changed for that.
type Lack = (&'static str, fn(&str) -> String);

const LACKS: [Lack; 3] = [
    ("wrong-password", |config| {
        config.replace("nats/password", "nats/wrong-password")
    }),
    ("no-certificate", |config| {
        let lines = config.lines().filter(|line| {
            !line.starts_with("nats_certificate") && !line.starts_with("nats_private_key")
        });
        lines.map(|line| format!("{line}\n")).collect()
    }),
    ("other-authority", |config| {
        config.replace("../nats/ca.pem", "ca.pem")
    }),
];

pub(super) fn run(folder: &Path) -> Result<String> {
    let net = TwoEdges::build()?;
    let second = wire_second(&net)?;
    write_key(folder)?;
    let mut nats = Nats::prepare(NATS, Access::Guarded, folder)?;
    nats.start_missing(&net.core)?;
    let config = format!(
        "{KEY}[location]\nfile = \"location.db\"\n[cluster]\nid = 1\nstart_wait_s = 2\n{}",
        nats.keys()
    );
    let mut service = Service::start_edited(&net, folder, &config, |config| with_both(&config))?;
    let mut callee = phone::callee(&net.ua2, Transport::Udp, Script::Plain, 1, folder)?;
    let (first, first_at) = (&service.concentrator, &net.concentrator);
    wait_for(first, first_at, "connected", |_| true)?;

    let mut other = start_second(&second, folder, |config| config)?;
    let good = std::fs::read_to_string(service.folder().join("concentrator2.toml"))?;
    let mut said = Vec::new();
    for (name, lack) in LACKS {
        let config = lack(&good);
        ensure!(config != good, "{name} changes nothing");
        start_again(&mut other, &second, name, &config, service.folder())?;
        let why = serves_alone(&other, &second).with_context(|| name.to_owned())?;
        said.push(format!("{name}: {why}"));
    }
    start_again(&mut other, &second, "right", &good, service.folder())?;
    let has_callee = |status: &Value| {
        let bindings = status["bindings"].as_array();
        let users = bindings.into_iter().flatten();
        let mut users = users.filter_map(|binding| binding["user"].as_str());
        users.any(|user| user.starts_with("ua2@"))
    };
    wait_for(&other, &second, "connected", has_callee)?;
    service.concentrator.process.kill()?;
    super::second_concentrator::wait_for_choice(&net, &service, SECOND)?;
    call(&net, folder).context("through the other concentrator")?;
    callee.stop()?;
    other.process.check_alive()?;
    Ok(format!(
        "TLS, certificate and password: shared, and ua2 called through the other; {}",
        said.join(", ")
    ))
}

/// It serves, says why it is alone, and tries again; gives the reason.
fn serves_alone(program: &Program, namespace: &Namespace) -> Result<String> {
    let failed = |status: &Value| status["cluster"]["trouble"].is_string();
    let status = wait_for(program, namespace, "degraded", failed)?;
    let trouble = status["cluster"]["trouble"].as_str().unwrap_or_default();
    ensure!(trouble.contains("lets us in"), "it says {trouble}");
    let counter = "sipcast_concentrator_events_total{event=\"cluster_connect_failed\"}";
    wait::until("failures to be counted", PATIENCE, || {
        let metrics = program.metrics(namespace)?;
        let sample = metrics.iter().find(|(sample, _)| sample == counter);
        Ok(sample.filter(|(_, value)| *value >= 8.0).map(drop))
    })?;
    let log = program.process.log();
    let lines = log.matches("no NATS server lets us in").count();
    ensure!((1..4).contains(&lines), "{lines} lines say why");
    program.is_healthy(namespace)?;
    Ok(trouble.rsplit(": ").next().unwrap_or_default().to_owned())
}

/// Waits until it is in this state and more.
fn wait_for(
    program: &Program,
    namespace: &Namespace,
    state: &str,
    more: impl Fn(&Value) -> bool,
) -> Result<Value> {
    let mut last = Value::Null;
    wait::until("the state of the cluster", PATIENCE, || {
        last = program.status(namespace)?;
        let there = last["cluster"]["state"] == state && more(&last);
        Ok(there.then(|| last.clone()))
    })
    .with_context(|| {
        format!(
            "not {state}: {}\n{}",
            last["cluster"],
            program.process.last_lines(5)
        )
    })
}

fn start_again(
    program: &mut Program,
    namespace: &Namespace,
    name: &str,
    config: &str,
    folder: &Path,
) -> Result<()> {
    program.process.kill()?;
    let file = format!("concentrator2-{name}.toml");
    std::fs::write(folder.join(&file), config)?;
    program.process = Process::start(
        namespace,
        &format!("concentrator2-{name}"),
        &binary("sipcast-concentrator")?.to_string_lossy(),
        &["--config", &file],
        folder,
    )?;
    program.wait_until_healthy(namespace)
}
