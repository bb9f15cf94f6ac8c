//! Two concentrators, the second one a standby. The first is killed in mid-call: the ingresses send
//! everything to the second, the media go on, the BYE finds its way by the cookie, and the session
//! ends. Phones that register again can be called. The first starts again and gets everything back.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::restart::{KEY, write_key};
use crate::capture::Capture;
use crate::frame::Packet;
use crate::link::{self, End, Shape};
use crate::namespace::Namespace;
use crate::phone::{self, Script, Transport};
use crate::process::Process;
use crate::service::{FOLDER, Program, Service, start_program};
use crate::topology::two_edges::{CONCENTRATOR, SERVICE, TwoEdges};
use crate::wait;

pub(crate) const SECOND: &str = "10.0.10.2";
/// Of audio in the call that outlives the first concentrator.
const SECONDS: u32 = 8;
/// Of audio in the call that rang when it died.
const SECONDS_AFTER_RINGING: u32 = 3;
const PATIENCE: Duration = Duration::from_secs(20);

struct Rig {
    net: TwoEdges,
    service: Service,
    other: Program,
    second: Namespace,
}

impl Rig {
    /// With both, and the first one chosen.
    fn start(folder: &Path) -> Result<Self> {
        let net = TwoEdges::build()?;
        let second = wire_second(&net)?;
        write_key(folder)?;
        let service = Service::start_edited(&net, folder, KEY, |config| with_both(&config))?;
        let other = start_second(&second, folder, |config| config)?;
        wait_for_choice(&net, &service, &CONCENTRATOR.to_string())?;
        Ok(Self {
            net,
            service,
            other,
            second,
        })
    }

    /// Kills the first one, and waits until the edges send everything to the second.
    fn kill_first(&mut self) -> Result<Duration> {
        let killed = Instant::now();
        self.service.concentrator.process.kill()?;
        wait_for_choice(&self.net, &self.service, SECOND)?;
        Ok(killed.elapsed())
    }

    fn wait_for_the_end(&self) -> Result<()> {
        wait::until("the session to end", PATIENCE, || {
            Ok((self.service.sessions(&self.net)? == [0, 0]).then_some(()))
        })
    }
}

/// The callee rings, the first concentrator is killed, and then the callee answers. The second one reads
/// in the cookie where the relay faces the caller.
pub(super) fn ringing(folder: &Path) -> Result<String> {
    const RING_MS: u32 = 4_000;
    let mut rig = Rig::start(folder)?;
    let (ua1, ua2) = (&rig.net.ua1, &rig.net.ua2);
    let mut callee =
        phone::slow_callee(ua2, Transport::Udp, RING_MS, SECONDS_AFTER_RINGING, folder)?;
    wait_for_binding(
        &rig.service.concentrator,
        &rig.net.concentrator,
        &mut callee,
    )?;
    let capture = Capture::start(ua1, "eth0", folder)?;
    let mut caller = phone::caller(
        ua1,
        Transport::Udp,
        Script::Plain,
        SECONDS_AFTER_RINGING,
        0,
        folder,
    )?;
    wait::until("the caller to hear 180", PATIENCE, || {
        caller.check_alive()?;
        Ok(answers(&capture.so_far()?, "SIP/2.0 180")
            .gt(&0)
            .then_some(()))
    })?;
    let moved = rig.kill_first()?;
    ensure!(
        answers(&capture.so_far()?, "SIP/2.0 200 OK") == 1,
        "more than the REGISTER was answered before the edges had moved"
    );
    let ended = caller.wait(PATIENCE)?;
    let complaints = std::fs::read_to_string(folder.join("ua1/errors.txt")).unwrap_or_default();
    ensure!(ended.success(), "the call failed: {complaints}");
    let packets = u64::from(SECONDS_AFTER_RINGING) * 50 * 2;
    let mut passed = 0;
    wait::until("the audio of both to be counted", PATIENCE, || {
        let name = "sipcast_relay_rtp_packets_sent_total";
        passed = rig.service.relay1.gauge(&rig.net.edge1, name)?;
        Ok((passed * 10 >= packets * 9).then_some(()))
    })
    .with_context(|| format!("{passed} of {packets} RTP packets passed"))?;
    rig.wait_for_the_end()?;
    callee.stop()?;
    rig.other.process.check_alive()?;
    Ok(format!(
        "killed while the callee rang, both edges moved within {} ms; answered, {passed} of {packets} RTP \
         packets, hung up, the session ended",
        moved.as_millis()
    ))
}

/// Answers that a phone has received.
fn answers(packets: &[Packet], beginning: &str) -> usize {
    let received = packets.iter().filter(|packet| packet.source == SERVICE);
    received
        .filter_map(|packet| packet.transport()?.sip_start_line())
        .filter(|line| line.starts_with(beginning))
        .count()
}

pub(super) fn run(folder: &Path) -> Result<String> {
    let mut rig = Rig::start(folder)?;
    let mut callee = phone::callee(&rig.net.ua2, Transport::Udp, Script::Plain, SECONDS, folder)?;
    wait_for_binding(
        &rig.service.concentrator,
        &rig.net.concentrator,
        &mut callee,
    )?;
    let ua1 = &rig.net.ua1;
    let mut caller = phone::caller(ua1, Transport::Udp, Script::Plain, SECONDS, 0, folder)?;
    let relayed = |rig: &Rig| {
        let name = "sipcast_relay_rtp_packets_sent_total";
        rig.service.relay1.gauge(&rig.net.edge1, name)
    };
    wait::until("RTP through relay 1", PATIENCE, || {
        caller.check_alive()?;
        Ok((relayed(&rig)? > 50).then_some(()))
    })?;
    let moved = rig.kill_first()?;
    let before = relayed(&rig)?;
    ensure!(
        caller.ended()?.is_none(),
        "the call was over before the edges had moved"
    );
    let ended = caller.wait(PATIENCE)?;
    let complaints = std::fs::read_to_string(folder.join("ua1/errors.txt")).unwrap_or_default();
    ensure!(ended.success(), "the call failed: {complaints}");
    let after = relayed(&rig)? - before;
    ensure!(after > 50, "{after} RTP packets passed after the kill");
    rig.wait_for_the_end()?;
    callee.stop()?;

    let Rig {
        net,
        mut service,
        mut other,
        second,
    } = rig;
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
    wait_for_choice(&net, &service, &CONCENTRATOR.to_string())?;
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

pub(super) fn call(net: &TwoEdges, folder: &Path) -> Result<()> {
    let mut caller = phone::caller(&net.ua1, Transport::Udp, Script::Plain, 1, 0, folder)?;
    let ended = caller.wait(PATIENCE)?;
    let complaints = std::fs::read_to_string(folder.join("ua1/errors.txt")).unwrap_or_default();
    ensure!(ended.success(), "the call failed: {complaints}");
    Ok(())
}

/// Another host beside the first one, with the service address as well.
pub(crate) fn wire_second(net: &TwoEdges) -> Result<Namespace> {
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
pub(crate) fn with_both(config: &str) -> String {
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
pub(crate) fn start_second(
    second: &Namespace,
    folder: &Path,
    edit: impl Fn(String) -> String,
) -> Result<Program> {
    let folder = folder.join(FOLDER);
    let config = std::fs::read_to_string(folder.join("concentrator.toml"))?;
    let config = config.split("\n[admin]").next().unwrap_or_default();
    // What names both is the editor's.
    let (own, link) = config.split_at(config.find("[core_link]").unwrap_or(config.len()));
    let own = own
        .replace("name = \"c1\"", "name = \"c2\"")
        .replace(&CONCENTRATOR.to_string(), SECOND)
        .replace("\"c1.", "\"c2.")
        .replace("id = 1\n", "id = 2\n")
        .replace("\"location.db\"", "\"location2.db\"");
    let config = edit(own + link);
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
pub(super) fn wait_for_choice(net: &TwoEdges, service: &Service, concentrator: &str) -> Result<()> {
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

pub(super) fn wait_for_binding(
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
