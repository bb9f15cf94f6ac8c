//! The relay of a call is killed while the callee rings: the callee is no longer called and the caller is
//! told, instead of a call in which nobody hears anything. Once the relay stays away, once it is started
//! again at once and has forgotten its sessions. The next call has the other relay, or the same again. A
//! callee that answers before the relay is known to be gone gets a BYE, and so does the caller.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::cdr::{CDR, next_line, registered};
use crate::capture::Capture;
use crate::frame::Packet;
use crate::phone::{self, Script, Transport};
use crate::service::Service;
use crate::topology::two_edges::TwoEdges;
use crate::wait;

const PATIENCE: Duration = Duration::from_secs(20);
const SECONDS: u32 = 1;

pub(super) fn run(folder: &Path) -> Result<String> {
    let net = TwoEdges::build()?;
    let mut service = Service::start_with(&net, folder, CDR)?;
    let mut lab = Lab {
        net: &net,
        service: &mut service,
        folder,
        records: 0,
    };
    lab.killed_while_it_rings("stays-away", |_| Ok(()))?;
    let other = lab.call("through-the-other")?;
    ensure!(other == "relay2", "the next call was relayed by {other}");
    lab.service.start_relay1(&net)?;

    lab.killed_while_it_rings("comes-back", |lab| lab.service.start_relay1(lab.net))?;
    let again = lab.call("through-the-same")?;
    ensure!(again == "relay1", "the last call was relayed by {again}");
    lab.answered_meanwhile("answered-meanwhile")?;
    lab.service.start_relay1(&net)?;
    lab.service.check_alive()?;
    let lost = lab.event("call_relay_lost")?;
    ensure!(lost == 2.0, "{lost} targets were cancelled for their relay");
    Ok("503 and a record of it for both ringing calls, whether the relay came back or not; the next calls \
        went through the other relay and through the same; a BYE to both where the callee had answered"
        .to_owned())
}

struct Lab<'a> {
    net: &'a TwoEdges,
    service: &'a mut Service,
    folder: &'a Path,
    /// Lines of the file of records.
    records: usize,
}

impl Lab<'_> {
    /// The callee rings, relay 1 is killed, something else may happen, and the call ends.
    fn killed_while_it_rings(
        &mut self,
        name: &str,
        then: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let folder = self.folder.join(name);
        let before = self.event("binding_added")? + self.event("binding_refreshed")?;
        let mut callee = phone::cancelled_callee(&self.net.ua2, Transport::Udp, &folder)?;
        wait::until("ua2 to register", PATIENCE, || {
            callee.check_alive()?;
            let now = self.event("binding_added")? + self.event("binding_refreshed")?;
            Ok((now > before).then_some(()))
        })?;
        let capture = Capture::start(&self.net.ua1, "eth0", &folder)?;
        let ua1 = &self.net.ua1;
        let mut caller = phone::caller(ua1, Transport::Udp, Script::Plain, SECONDS, 0, &folder)?;
        wait::until("the caller to hear 180", PATIENCE, || {
            caller.check_alive()?;
            Ok((answers(&capture.so_far()?, "SIP/2.0 180") > 0).then_some(()))
        })?;
        self.service.relay1.process.kill()?;
        then(self)?;
        wait::until("the caller to hear 503", PATIENCE, || {
            Ok((answers(&capture.so_far()?, "SIP/2.0 503") > 0).then_some(()))
        })?;
        let accepted = answers(&capture.so_far()?, "SIP/2.0 200");
        ensure!(accepted == 1, "more than the REGISTER was accepted");
        ensure!(
            !caller.wait(PATIENCE)?.success(),
            "the caller took it for a call"
        );
        callee.stop()?;
        self.records += 1;
        let record = next_line(self.folder, "cdr.jsonl", self.records)?;
        ensure!(
            record["status"] == 503 && record["ended_by"] == "failed",
            "it is recorded as {record}"
        );
        Ok(())
    }

    /// The callee answers when the relay has been killed for less time than it takes to be given up.
    fn answered_meanwhile(&mut self, name: &str) -> Result<()> {
        const RING_MS: u32 = 3_000;
        let folder = self.folder.join(name);
        let before = self.event("binding_added")? + self.event("binding_refreshed")?;
        let mut callee =
            phone::slow_callee(&self.net.ua2, Transport::Udp, RING_MS, SECONDS, &folder)?;
        wait::until("ua2 to register", PATIENCE, || {
            callee.check_alive()?;
            let now = self.event("binding_added")? + self.event("binding_refreshed")?;
            Ok((now > before).then_some(()))
        })?;
        let capture = Capture::start(&self.net.ua1, "eth0", &folder)?;
        // It waits for a BYE as long as there is none.
        let ua1 = &self.net.ua1;
        let mut caller = phone::call_to(ua1, "ua2", "example.com", true, false, &folder)?;
        wait::until("the caller to hear 180", PATIENCE, || {
            caller.check_alive()?;
            Ok((answers(&capture.so_far()?, "SIP/2.0 180") > 0).then_some(()))
        })?;
        self.service.relay1.process.kill()?;
        let ended = caller.wait(PATIENCE)?;
        let complaints = std::fs::read_to_string(folder.join("ua1/errors.txt")).unwrap_or_default();
        ensure!(ended.success(), "the caller got no BYE: {complaints}");
        callee.stop()?;
        self.records += 1;
        let record = next_line(self.folder, "cdr.jsonl", self.records)?;
        ensure!(
            record["status"] == 200 && record["ended_by"] == "relay_lost",
            "it is recorded as {record}"
        );
        Ok(())
    }

    /// A whole call; the agent that has relayed it.
    fn call(&mut self, name: &str) -> Result<String> {
        let folder = self.folder.join(name);
        let mut callee = registered(self.net, self.service, Script::Plain, SECONDS, &folder)?;
        let ua1 = &self.net.ua1;
        let mut caller = phone::caller(ua1, Transport::Udp, Script::Plain, SECONDS, 0, &folder)?;
        let ended = caller.wait(PATIENCE)?;
        let complaints = std::fs::read_to_string(folder.join("ua1/errors.txt")).unwrap_or_default();
        ensure!(ended.success(), "{name}: the call failed: {complaints}");
        callee.stop()?;
        self.records += 1;
        let record = next_line(self.folder, "cdr.jsonl", self.records)?;
        let relay = record["media"][0]["relay"].as_str();
        Ok(relay.unwrap_or("none").to_owned())
    }

    fn event(&self, name: &str) -> Result<f64> {
        let concentrator = &self.service.concentrator;
        let name = format!("\"{name}\"");
        let metrics = concentrator.metrics(&self.net.concentrator)?;
        let sample = metrics.iter().find(|(sample, _)| sample.contains(&name));
        Ok(sample.map_or(0.0, |(_, value)| *value))
    }
}

/// How many answers that begin so a phone has heard.
fn answers(packets: &[Packet], beginning: &str) -> usize {
    let lines = packets
        .iter()
        .filter_map(|packet| packet.transport()?.sip_start_line());
    lines.filter(|line| line.starts_with(beginning)).count()
}
