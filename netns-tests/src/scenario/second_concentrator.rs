//! Two concentrators, the second one a standby. The first is killed in mid-call: the ingresses send
//! everything to the second, the media go on, the BYE finds its way by the cookie, and the session
//! ends. Phones that register again can be called. The first starts again and gets everything back.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::restart::{KEY, write_key};
use crate::link::{self, End, Shape};
use crate::namespace::Namespace;
use crate::phone::{self, Script, Transport};
use crate::process::Process;
use crate::service::{FOLDER, Program, Service, start_program};
use crate::topology::two_edges::{CONCENTRATOR, SERVICE, TwoEdges};
use crate::wait;

const SECOND: &str = "10.0.10.2";
/// Of audio in the call that outlives the first concentrator.
const SECONDS: u32 = 8;
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn run(folder: &Path) -> Result<String> {
    let net = TwoEdges::build()?;
    let second = wire_second(&net)?;
    write_key(folder)?;
    let mut service = Service::start_edited(&net, folder, KEY, |config| with_both(&config))?;
    let mut other = start_second(&second, folder)?;
    let first = CONCENTRATOR.to_string();
    wait_for_choice(&net, &service, &first)?;

    let mut callee = phone::callee(&net.ua2, Transport::Udp, Script::Plain, SECONDS, folder)?;
    wait_for_binding(&service.concentrator, &net.concentrator, &mut callee)?;
    let mut caller = phone::caller(&net.ua1, Transport::Udp, Script::Plain, SECONDS, 0, folder)?;
    let relayed = |service: &Service| {
        let name = "sipcast_relay_rtp_packets_sent_total";
        service.relay1.gauge(&net.edge1, name)
    };
    wait::until("RTP through relay 1", PATIENCE, || {
        caller.check_alive()?;
        Ok((relayed(&service)? > 50).then_some(()))
    })?;
    let killed = Instant::now();
    service.concentrator.process.kill()?;
    wait_for_choice(&net, &service, SECOND)?;
    let moved = killed.elapsed();
    let before = relayed(&service)?;
    ensure!(
        caller.ended()?.is_none(),
        "the call was over before the edges had moved"
    );
    let ended = caller.wait(PATIENCE)?;
    let complaints = std::fs::read_to_string(folder.join("ua1/errors.txt")).unwrap_or_default();
    ensure!(ended.success(), "the call failed: {complaints}");
    let after = relayed(&service)? - before;
    ensure!(after > 50, "{after} RTP packets passed after the kill");
    wait::until("the session to end", PATIENCE, || {
        Ok((service.sessions(&net)? == [0, 0]).then_some(()))
    })?;
    callee.stop()?;

    let again = folder.join("again");
    let mut callee = phone::callee(&net.ua2, Transport::Udp, Script::Plain, 1, &again)?;
    wait_for_binding(&other, &second, &mut callee)?;
    call(&net, &again).context("through the second concentrator")?;
    callee.stop()?;

    service.concentrator.process = Process::start(
        &net.concentrator,
        "concentrator-again",
        &crate::service::binary("sipcast-concentrator")?.to_string_lossy(),
        &["--config", "concentrator.toml"],
        service.folder(),
    )?;
    wait_for_choice(&net, &service, &first)?;
    let back = folder.join("back");
    let mut callee = phone::callee(&net.ua2, Transport::Udp, Script::Plain, 1, &back)?;
    wait_for_binding(&service.concentrator, &net.concentrator, &mut callee)?;
    call(&net, &back).context("through the first concentrator again")?;
    callee.stop()?;
    other.process.check_alive()?;
    service.check_alive()?;
    Ok(format!(
        "both edges moved within {} ms of the kill; {after} RTP packets after it, the BYE was answered, \
         the session ended; calls through the second, and through the first again",
        moved.as_millis()
    ))
}

fn call(net: &TwoEdges, folder: &Path) -> Result<()> {
    let mut caller = phone::caller(&net.ua1, Transport::Udp, Script::Plain, 1, 0, folder)?;
    let ended = caller.wait(PATIENCE)?;
    let complaints = std::fs::read_to_string(folder.join("ua1/errors.txt")).unwrap_or_default();
    ensure!(ended.success(), "the call failed: {complaints}");
    Ok(())
}

/// Another host beside the first one, with the service address as well.
fn wire_second(net: &TwoEdges) -> Result<Namespace> {
    let second = Namespace::new("second")?;
    let end = |namespace, device, address| End {
        namespace,
        device,
        address,
    };
    link::connect(
        end(&net.core, "down2", "10.0.10.1/24"),
        end(&second, "eth0", "10.0.10.2/24"),
        Shape::DIRECT,
    )?;
    second.run("ip route add default via 10.0.10.1")?;
    second.run(&format!("ip addr add {SERVICE}/32 dev lo"))?;
    net.r1.run("ip route add 10.0.10.0/24 via 10.0.91.1")?;
    net.r2.run("ip route add 10.0.10.0/24 via 10.0.92.1")?;
    Ok(second)
}

/// What both ingresses and both relays know of the second one.
fn with_both(config: &str) -> String {
    config
        .replace(
            &format!("concentrators = [\"{CONCENTRATOR}\"]"),
            &format!(
                "concentrators = [\"{CONCENTRATOR}\", {{ address = \"{SECOND}\", weight = 0 }}]\n\
                 hash_key = \"00112233445566778899aabbccddeeff\""
            ),
        )
        .replace(
            &format!("concentrators = [\"{CONCENTRATOR}:7060\"]"),
            &format!("concentrators = [\"{CONCENTRATOR}:7060\", {{ address = \"{SECOND}:7060\", server_name = \"c2\" }}]"),
        )
}

/// With the first one's config, less its name and address.
fn start_second(second: &Namespace, folder: &Path) -> Result<Program> {
    let folder = folder.join(FOLDER);
    let config = std::fs::read_to_string(folder.join("concentrator.toml"))?;
    let config = config.split("\n[admin]").next().unwrap_or_default();
    let config = config
        .replace("name = \"c1\"", "name = \"c2\"")
        .replace(&CONCENTRATOR.to_string(), SECOND)
        .replace("\"c1.", "\"c2.");
    let mut program = start_program(
        second,
        "concentrator2",
        "sipcast-concentrator",
        9102,
        &config,
        &folder,
    )?;
    program.wait_until_healthy(second)?;
    Ok(program)
}

/// Waits until both ingresses send to this one and no other.
fn wait_for_choice(net: &TwoEdges, service: &Service, concentrator: &str) -> Result<()> {
    for (ingress, namespace) in [
        (&service.ingress1, &net.edge1),
        (&service.ingress2, &net.edge2),
    ] {
        let mut chosen = Vec::new();
        let what = format!("{} to choose {concentrator}", namespace.name());
        wait::until(&what, PATIENCE, || {
            let status = ingress.status(namespace)?;
            let paths = status.get("paths").and_then(Value::as_array);
            chosen = paths
                .into_iter()
                .flatten()
                .filter(|path| path.get("chosen") == Some(&Value::Bool(true)))
                .filter_map(|path| path.get("concentrator")?.as_str().map(str::to_owned))
                .collect();
            Ok((chosen == [concentrator]).then_some(()))
        })
        .with_context(|| format!("it has chosen {chosen:?}"))?;
    }
    Ok(())
}

fn wait_for_binding(
    concentrator: &Program,
    namespace: &Namespace,
    callee: &mut Process,
) -> Result<()> {
    wait::until("ua2 to register", PATIENCE, || {
        callee.check_alive()?;
        let status = concentrator.status(namespace)?;
        let bindings = status.get("bindings").and_then(Value::as_array);
        let is_there = bindings.is_some_and(|bindings| !bindings.is_empty());
        Ok(is_there.then_some(()))
    })
}
