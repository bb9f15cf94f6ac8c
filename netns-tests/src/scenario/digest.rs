//! Passwords, with SIPp as phones: to register, to call; a wrong one, a replay, and users that come
//! while the service runs.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::audio;
use crate::capture::Capture;
use crate::namespace::Namespace;
use crate::process::Process;
use crate::service::{AUTHENTICATION, FOLDER, Service, write_users};
use crate::topology::two_edges::{PHONE, SERVICE, TwoEdges};
use crate::wait;

const REGISTER: &str = include_str!("../../scenarios/digest_register.xml");
const CALL: &str = include_str!("../../scenarios/digest_call.xml");
const ANSWER: &str = include_str!("../../scenarios/answer.xml");
/// The callee stays until it is stopped.
const STAY: &str = "<pause milliseconds=\"600000\"/>";

const USERS: [(&str, &str); 2] = [("alice", "secret"), ("bob", "another")];
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn run(folder: &Path) -> Result<String> {
    let net = TwoEdges::build()?;
    write_users(&folder.join(FOLDER), &USERS)?;
    let mut service = Service::start_with(&net, folder, AUTHENTICATION)?;
    let phones = Phones { net: &net, folder };
    let capture = Capture::start(&net.ua1, "eth0", folder)?;

    let mut bob = phones.start(&net.ua2, "bob", "another", "bob", STAY)?;
    phones.wait_for(&service, "\"authentication_ok\"", 1)?;
    let caller = phones.run(&net.ua1, "alice", "secret", "alice", CALL)?;
    ensure!(
        caller.success(),
        "alice: {caller}: {}",
        phones.complaints("alice")
    );
    bob.check_alive()?;

    let thief = phones.run(&net.ua1, "alice", "guess", "thief", "")?;
    ensure!(!thief.success(), "a wrong password registers");
    phones.wait_for(&service, "\"authentication_wrong\"", 1)?;

    replay(&net, &capture)?;
    phones.wait_for(&service, "\"authentication_replayed\"", 1)?;

    reload(&phones, &service)?;
    service.check_alive()?;
    capture.stop()?;
    let ok = phones.count(&service, "\"authentication_ok\"")?;
    Ok(format!(
        "{ok} requests authenticated; a wrong password and a replay refused; a user came by SIGHUP"
    ))
}

/// Carol is nobody, until the file has her; then a file that is wrong changes nothing.
fn reload(phones: &Phones<'_>, service: &Service) -> Result<()> {
    let carol = |place: &str| phones.run(&phones.net.ua1, "carol", "new", place, "");
    ensure!(
        !carol("carol-1")?.success(),
        "a user who does not exist registers"
    );
    let [alice, bob] = USERS;
    write_users(&phones.folder.join(FOLDER), &[alice, bob, ("carol", "new")])?;
    service.concentrator.process.hang_up()?;
    phones.wait_for(service, "\"users_reloaded\"", 1)?;
    let status = carol("carol-2")?;
    ensure!(
        status.success(),
        "carol: {status}: {}",
        phones.complaints("carol-2")
    );

    fs::write(
        phones.folder.join(FOLDER).join("users"),
        "carol:example.com\n",
    )?;
    service.concentrator.process.hang_up()?;
    phones.wait_for(service, "\"users_reload_failed\"", 1)?;
    let log = service.concentrator.process.log();
    ensure!(
        log.contains("users: line 1: is not user:realm:HA1"),
        "{log}"
    );
    let status = carol("carol-3")?;
    ensure!(status.success(), "carol after a bad file: {status}");
    Ok(())
}

/// Sends Alice's REGISTER again, as who has seen it on the wire could: with a branch of its own.
fn replay(net: &TwoEdges, capture: &Capture) -> Result<()> {
    let register = wait::until("alice's REGISTER in the capture", PATIENCE, || {
        let seen = capture.so_far()?;
        let mut payloads = seen.iter().filter_map(|packet| Some(packet.udp()?.payload));
        let found = payloads.find(|payload| {
            payload.starts_with(b"REGISTER") && contains(payload, "Authorization: Digest")
        });
        Ok(found.map(|payload| String::from_utf8_lossy(payload).into_owned()))
    })?;
    let replayed = register.replacen("branch=z9hG4bK", "branch=z9hG4bKreplay", 1);
    ensure!(replayed != register, "no branch in {register}");
    let answer = net.ua2.inside(|| {
        let socket = UdpSocket::bind((PHONE, 4000))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(replayed.as_bytes(), (SERVICE, 5060))?;
        let mut answer = [0; 4096];
        let length = socket.recv(&mut answer).context("no answer to a replay")?;
        Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
    })?;
    let again = answer.starts_with("SIP/2.0 401 ") && answer.contains("stale=true");
    ensure!(again, "a replayed REGISTER was answered with {answer}");
    Ok(())
}

fn contains(payload: &[u8], text: &str) -> bool {
    String::from_utf8_lossy(payload).contains(text)
}

/// The phones, each with a folder of its own.
struct Phones<'a> {
    net: &'a TwoEdges,
    folder: &'a Path,
}

impl Phones<'_> {
    /// Registers, does what `then` says, and ends.
    fn run(
        &self,
        namespace: &Namespace,
        user: &str,
        password: &str,
        place: &str,
        then: &str,
    ) -> Result<ExitStatus> {
        let mut phone = self.start(namespace, user, password, place, then)?;
        phone
            .wait(Duration::from_secs(20))
            .with_context(|| self.complaints(place))
    }

    fn start(
        &self,
        namespace: &Namespace,
        user: &str,
        password: &str,
        place: &str,
        then: &str,
    ) -> Result<Process> {
        let folder = self.folder.join(place);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("phone.xml"), REGISTER.replace("@THEN@", then))?;
        fs::write(folder.join("answer.xml"), ANSWER)?;
        fs::write(folder.join("audio.ul"), audio::speech(1, 220.0))?;
        let (address, target) = (PHONE.to_string(), format!("{SERVICE}:5060"));
        let arguments = [
            "-sf",
            "phone.xml",
            "-oocsf",
            "answer.xml",
            "-key",
            "user",
            user,
            "-au",
            user,
            "-ap",
            password,
            "-key",
            "peer",
            "bob",
            "-t",
            "u1",
            "-i",
            &address,
            "-mi",
            &address,
            "-p",
            "5060",
            "-mp",
            "20000",
            "-m",
            "1",
            "-nostdin",
            "-trace_err",
            "-trace_msg",
            "-error_file",
            "errors.txt",
            "-message_file",
            "messages.txt",
            &target,
        ];
        Process::start(namespace, "sipp", "sipp", &arguments, &folder)
    }

    fn complaints(&self, place: &str) -> String {
        let file = |name: &str| fs::read_to_string(self.folder.join(place).join(name));
        file("errors.txt")
            .or_else(|_| file("sipp.log"))
            .unwrap_or_default()
    }

    fn count(&self, service: &Service, counter: &str) -> Result<f64> {
        let metrics = service.concentrator.metrics(&self.net.concentrator)?;
        let samples = metrics.iter().filter(|(name, _)| name.contains(counter));
        Ok(samples.map(|(_, value)| value).sum())
    }

    fn wait_for(&self, service: &Service, counter: &str, least: u32) -> Result<()> {
        wait::until(&format!("{counter} to rise"), PATIENCE, || {
            Ok((self.count(service, counter)? >= f64::from(least)).then_some(()))
        })
    }
}
