//! A phone on WebSocket calls baresip on UDP, and baresip on TLS calls a phone on secure
//! WebSocket. The phone's Contact names no host that exists: what it is sent goes to its flow. Once
//! with a phone of our own on `websockets` of PyPI, and once with JsSIP of npm.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::baresip::{bindings, wait_for_audio};
use crate::audio;
use crate::baresip::{Baresip, Over};
use crate::capture::Capture;
use crate::namespace::Namespace;
use crate::process::Process;
use crate::service::{ALL_TRANSPORTS, Service, WS_PORT, WSS_PORT};
use crate::topology::two_edges::{PHONE, SERVICE, TwoEdges};
use crate::wait;

const PHONE_SCRIPT: &str = include_str!("../../scenarios/websocket_phone.py");
const JSSIP_SCRIPT: &str = include_str!("../../scenarios/jssip_phone.cjs");
/// Debian's, which has Debian's packages.
const PYTHON: &str = "/usr/bin/python3";

/// What the phone is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stack {
    /// `websockets` of PyPI, with SIP of our own.
    Websockets,
    /// JsSIP and `ws` of npm.
    JsSip,
}

impl Stack {
    const fn name(self) -> &'static str {
        match self {
            Self::Websockets => "websockets",
            Self::JsSip => "JsSIP",
        }
    }
}

/// Where `scripts/setup.sh` puts packages of npm: beside the builds.
fn npm_modules() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program.ancestors().nth(2).context("no target folder")?;
    Ok(target.join("npm/node_modules"))
}
const PATIENCE: Duration = Duration::from_secs(20);

/// Writes the phones' scripts into the folder above theirs.
pub(super) fn write_scripts(folder: &Path) -> Result<()> {
    let library = Command::new(PYTHON)
        .args(["-c", "import websockets"])
        .output();
    ensure!(
        library.is_ok_and(|output| output.status.success()),
        "python3-websockets is missing; scripts/setup.sh installs it"
    );
    ensure!(
        npm_modules()?.join("jssip").is_dir(),
        "JsSIP is missing (npm packages jssip and ws); scripts/setup.sh installs it"
    );
    fs::write(folder.join("phone.py"), PHONE_SCRIPT)?;
    Ok(fs::write(folder.join("phone.cjs"), JSSIP_SCRIPT)?)
}

pub(super) fn run(folder: &Path) -> Result<String> {
    write_scripts(folder)?;
    let net = TwoEdges::build()?;
    let mut service = Service::start_with(&net, folder, ALL_TRANSPORTS)?;
    let mut figures = Vec::new();
    for stack in [Stack::Websockets, Stack::JsSip] {
        let name = stack.name();
        let folder = folder.join(name);
        fs::create_dir_all(&folder)?;
        let outgoing = calls_baresip(&net, &service, stack, &folder)
            .with_context(|| format!("{name}, ws to udp"))?;
        let incoming = is_called(&net, &service, stack, &folder)
            .with_context(|| format!("{name}, tls to wss"))?;
        figures.push(format!(
            "{name}: RTP {outgoing}, ws to udp, and {incoming}, tls to wss"
        ));
    }
    service.check_alive()?;
    Ok(figures.join("; "))
}

fn calls_baresip(net: &TwoEdges, service: &Service, stack: Stack, folder: &Path) -> Result<u64> {
    let callee = Baresip::start(&net.ua2, "ua2", Over::Udp, &service.authority(), folder)?;
    wait_for_binding(net, service, "ua2", "UDP")?;
    let url = format!("ws://{SERVICE}:{WS_PORT}");
    let what = ["call", "ua2"];
    let mut phone = start(stack, &net.ua1, service, &url, "ua1", &what, folder)?;
    let heard = result(&mut phone).with_context(|| callee.process.last_lines(15))?;
    wait_for_the_end(net, service)?;
    Ok(heard)
}

fn is_called(net: &TwoEdges, service: &Service, stack: Stack, folder: &Path) -> Result<u64> {
    let url = format!("wss://{SERVICE}:{WSS_PORT}");
    let mut phone = start(stack, &net.ua2, service, &url, "ua3", &["wait"], folder)?;
    wait_for_binding(net, service, "ua3", "WSS").with_context(|| phone.last_lines(15))?;
    let caller = Baresip::start(&net.ua1, "ua1", Over::Tls, &service.authority(), folder)?;
    wait_for_binding(net, service, "ua1", "TLS")?;
    let capture = Capture::start(&net.ua1, "eth0", folder)?;
    caller.call("ua3")?;
    wait_for_audio(&capture, audio::PACKETS_PER_SECOND as usize)
        .with_context(|| phone.last_lines(15))?;
    caller.hang_up()?;
    let heard = result(&mut phone)?;
    wait_for_the_end(net, service)?;
    capture.stop()?;
    Ok(heard)
}

pub(super) fn start(
    stack: Stack,
    namespace: &Namespace,
    service: &Service,
    url: &str,
    user: &str,
    what: &[&str],
    folder: &Path,
) -> Result<Process> {
    let authority = service.authority();
    let (authority, address) = (authority.to_string_lossy(), PHONE.to_string());
    let modules = npm_modules()?;
    let modules = modules.to_string_lossy();
    let (program, mut arguments) = match stack {
        Stack::Websockets => (PYTHON, vec!["../phone.py"]),
        Stack::JsSip => ("node", vec!["../phone.cjs", &*modules]),
    };
    arguments.extend([url, &*authority, user, &*address]);
    arguments.extend(what);
    Process::start(
        namespace,
        &format!("websocket-{user}"),
        program,
        &arguments,
        folder,
    )
}

/// What the phone has heard, when it has ended well.
fn result(phone: &mut Process) -> Result<u64> {
    let status = phone.wait(PATIENCE).with_context(|| phone.last_lines(15))?;
    ensure!(
        status.success(),
        "the phone failed:\n{}",
        phone.last_lines(15)
    );
    let last: Value = serde_json::from_str(&phone.last_lines(1))?;
    let heard = last.get("heard").and_then(Value::as_u64).unwrap_or(0);
    ensure!(
        heard > 0,
        "the phone has heard nothing:\n{}",
        phone.last_lines(15)
    );
    Ok(heard)
}

pub(super) fn wait_for_binding(
    net: &TwoEdges,
    service: &Service,
    user: &str,
    over: &str,
) -> Result<()> {
    wait::until(&format!("{user} to register over {over}"), PATIENCE, || {
        let bindings = bindings(net, service)?;
        let there = |(aor, flow): &(String, String)| {
            aor.contains(user) && flow.split(':').next() == Some(over)
        };
        Ok(bindings.iter().any(there).then_some(()))
    })
}

pub(super) fn wait_for_the_end(net: &TwoEdges, service: &Service) -> Result<()> {
    wait::until("the session to end", PATIENCE, || {
        Ok((service.sessions(net)? == [0, 0]).then_some(()))
    })
}
