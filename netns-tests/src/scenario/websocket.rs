//! A phone on WebSocket calls baresip on UDP, and baresip on TLS calls a phone on secure
//! WebSocket. The phone's Contact names no host that exists: what it is sent goes to its flow.

use std::fs;
use std::path::Path;
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
/// Debian's, which has Debian's packages.
const PYTHON: &str = "/usr/bin/python3";
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn run(folder: &Path) -> Result<String> {
    let library = Command::new(PYTHON)
        .args(["-c", "import websockets"])
        .output();
    ensure!(
        library.is_ok_and(|output| output.status.success()),
        "python3-websockets is missing; scripts/setup.sh installs it"
    );
    fs::write(folder.join("phone.py"), PHONE_SCRIPT)?;
    let net = TwoEdges::build()?;
    let mut service = Service::start_with(&net, folder, ALL_TRANSPORTS)?;
    let outgoing = calls_baresip(&net, &service, folder).context("ws to udp")?;
    let incoming = is_called(&net, &service, folder).context("tls to wss")?;
    service.check_alive()?;
    Ok(format!(
        "ws to udp: RTP {outgoing} to the WebSocket phone; tls to wss: {incoming}"
    ))
}

fn calls_baresip(net: &TwoEdges, service: &Service, folder: &Path) -> Result<u64> {
    let callee = Baresip::start(&net.ua2, "ua2", Over::Udp, &service.authority(), folder)?;
    wait_for_binding(net, service, "ua2", "UDP")?;
    let url = format!("ws://{SERVICE}:{WS_PORT}");
    let mut phone = start(&net.ua1, service, &url, "ua1", &["call", "ua2"], folder)?;
    let heard = result(&mut phone).with_context(|| callee.process.last_lines(15))?;
    wait_for_the_end(net, service)?;
    Ok(heard)
}

fn is_called(net: &TwoEdges, service: &Service, folder: &Path) -> Result<u64> {
    let url = format!("wss://{SERVICE}:{WSS_PORT}");
    let mut phone = start(&net.ua2, service, &url, "ua3", &["wait"], folder)?;
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

fn start(
    namespace: &Namespace,
    service: &Service,
    url: &str,
    user: &str,
    what: &[&str],
    folder: &Path,
) -> Result<Process> {
    let authority = service.authority();
    let (authority, address) = (authority.to_string_lossy(), PHONE.to_string());
    let mut arguments = vec!["phone.py", url, &authority, user, &address];
    arguments.extend(what);
    Process::start(
        namespace,
        &format!("websocket-{user}"),
        PYTHON,
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
