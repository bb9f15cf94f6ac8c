//! Trunks: a group of two servers with fail-over by OPTIONS, by 503 and by what the DNS says, and
//! dialogs that are held at the unicast address from both sides.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::capture::Capture;
use crate::frame::Packet;
use crate::namespace::Namespace;
use crate::phone;
use crate::process::Process;
use crate::service::Service;
use crate::topology::two_edges::{CONCENTRATOR, NAT_A, SERVICE, TwoEdges};
use crate::{command, wait};

const TRUNK1: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 21);
const TRUNK2: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 22);
/// Named by the DNS, and there is nobody.
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 23);
const DNS: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 53);

pub(super) const TRUNK: &str = include_str!("../../scenarios/trunk.xml");
const BUSY: &str = include_str!("../../scenarios/trunk-busy.xml");
/// How a call ends at the trunk: by the caller or by the trunk itself.
pub(super) const CALLER_HANGS_UP: &str = r#"<recv request="ACK"/>
<recv request="BYE"/>
<send><![CDATA[
SIP/2.0 200 OK
[last_Via:]
[last_From:]
[last_To:]
[last_Call-ID:]
[last_CSeq:]
Content-Length: 0

]]></send>
"#;
const TRUNK_HANGS_UP: &str = r#"<recv request="ACK"><action>
<ereg regexp=".*" search_in="hdr" header="From:" assign_to="from"/>
<ereg regexp=".*" search_in="hdr" header="To:" assign_to="to"/>
</action></recv>
<pause milliseconds="200"/>
<send retrans="500"><![CDATA[
BYE [next_url] SIP/2.0
Via: SIP/2.0/UDP [local_ip]:[local_port];rport;branch=[branch]
Max-Forwards: 70
[routes]
From:[$to]
To:[$from]
[last_Call-ID:]
CSeq: 1 BYE
Content-Length: 0

]]></send>
<recv response="200"/>
"#;

pub(super) fn run(folder: &Path) -> Result<String> {
    ensure!(
        command::found("dnsmasq"),
        "dnsmasq is missing (Debian package dnsmasq-base); scripts/setup.sh installs it"
    );
    let net = TwoEdges::build()?;
    for address in [TRUNK1, TRUNK2, DNS] {
        net.core
            .run(&format!("ip addr add {address}/32 dev down"))?;
    }
    let _dns = start_dns(&net, folder)?;
    let mut first = trunk(&net.core, TRUNK1, TRUNK, CALLER_HANGS_UP, folder)?;
    let _second = trunk(&net.core, TRUNK2, TRUNK, CALLER_HANGS_UP, folder)?;
    let service = Service::start_with(&net, folder, &config())?;
    let world = World {
        net: &net,
        service: &service,
        folder,
    };

    world.wait_for_members([true, true])?;
    let seen = world.call("both", "+4930", "example.com")?;
    ensure!(
        invites(&seen, TRUNK1) > 0 && invites(&seen, TRUNK2) == 0,
        "not the first member"
    );
    judge_phone(&seen)?;
    first.stop()?;
    let mut first = trunk(&net.core, TRUNK1, TRUNK, TRUNK_HANGS_UP, folder)?;
    world.wait_for_members([true, true])?;
    let seen = world.call_and(true, "hung-up", "+4930", "example.com")?;
    judge_trunk(&seen)?;

    first.stop()?;
    let mut busy = trunk(&net.core, TRUNK1, BUSY, "", folder)?;
    let seen = world.call("busy", "+4931", "example.com")?;
    ensure!(
        invites(&seen, TRUNK1) > 0 && invites(&seen, TRUNK2) > 0,
        "no fail-over after 503"
    );

    busy.stop()?;
    world.wait_for_members([false, true])?;
    let seen = world.call("down", "+4932", "example.com")?;
    ensure!(
        invites(&seen, TRUNK1) == 0,
        "a member that is down was called"
    );
    ensure!(
        invites(&seen, TRUNK2) > 0,
        "the member that is up was not called"
    );

    let _back = trunk(&net.core, TRUNK1, TRUNK, CALLER_HANGS_UP, folder)?;
    world.wait_for_members([true, true])?;
    let seen = world.call("dns", "bob", "carrier.example")?;
    ensure!(
        invites(&seen, TRUNK2) > 0,
        "the second server of the SRV records was not called"
    );
    let routed = world.events("fail_over")?;
    ensure!(routed >= 2.0, "{routed} fail-overs were counted, not 2");
    Ok("first member, 503, down by OPTIONS, SRV: each call reached who was left; ACK and BYE, the \
        phone's and the trunk's, went to the unicast address"
        .to_owned())
}

fn config() -> String {
    format!(
        r#"
[sip]
unicast_address = "{CONCENTRATOR}"
[dns]
servers = ["{DNS}"]
[[groups]]
name = "pstn"
members = [
    {{ uri = "sip:{TRUNK1}:5060;transport=udp", priority = 0 }},
    {{ uri = "sip:{TRUNK2}:5060;transport=udp", priority = 1 }},
]
source = ["{TRUNK1}/32", "{TRUNK2}/32"]
probe = "options"
probe_interval_s = 1
dialog_address = "unicast"
[[groups]]
name = "carrier"
members = [{{ uri = "sip:carrier.example" }}]
timeout_ms = 1000
[[routes]]
prefix = "+49"
to = "pstn"
[[routes]]
domain = "carrier.example"
to = "carrier"
"#
    )
}

/// carrier.example: NAPTR says UDP, SRV says first a server that is not there, then the second trunk.
fn start_dns(net: &TwoEdges, folder: &Path) -> Result<Process> {
    let arguments = [
        "--keep-in-foreground",
        "--log-facility=-",
        "--conf-file=/dev/null",
        "--pid-file=",
        "--user=root",
        "--group=root",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
        &format!("--listen-address={DNS}"),
        "--local=/carrier.example/",
        "--naptr-record=carrier.example,10,10,s,SIP+D2U,,_sip._udp.carrier.example",
        "--srv-host=_sip._udp.carrier.example,sbc1.carrier.example,5060,10,1",
        "--srv-host=_sip._udp.carrier.example,sbc2.carrier.example,5060,20,1",
        &format!("--host-record=sbc1.carrier.example,{NOBODY}"),
        &format!("--host-record=sbc2.carrier.example,{TRUNK2}"),
    ];
    Process::start(&net.core, "dnsmasq", "dnsmasq", &arguments, folder)
}

fn trunk(
    core: &Namespace,
    address: Ipv4Addr,
    scenario: &str,
    end: &str,
    folder: &Path,
) -> Result<Process> {
    let scenario = scenario.replace("@END@", end);
    trunk_over(core, address, "u1", &scenario, folder)
}

/// A trunk's server; `over` is SIPp's name of a transport.
pub(super) fn trunk_over(
    core: &Namespace,
    address: Ipv4Addr,
    over: &str,
    scenario: &str,
    folder: &Path,
) -> Result<Process> {
    let name = format!("trunk-{address}");
    let folder = folder.join(&name);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("trunk.xml"), scenario)?;
    let address = address.to_string();
    let arguments = [
        "-sf",
        "trunk.xml",
        "-t",
        over,
        "-i",
        &address,
        "-p",
        "5060",
        "-nostdin",
        "-trace_err",
        "-error_file",
        "errors.txt",
        "-trace_msg",
        "-message_file",
        "messages.txt",
    ];
    Process::start(core, &name, "sipp", &arguments, &folder)
}

struct World<'a> {
    net: &'a TwoEdges,
    service: &'a Service,
    folder: &'a Path,
}

impl World<'_> {
    fn wait_for_members(&self, wanted: [bool; 2]) -> Result<()> {
        let mut last = Value::Null;
        wait::until(
            &format!("members to be {wanted:?}"),
            Duration::from_secs(12),
            || {
                last = self.service.concentrator.status(&self.net.concentrator)?["groups"].take();
                let is = |index: usize| {
                    let member = &last[index];
                    let probed = ["probes_answered", "probes_failed"]
                        .iter()
                        .any(|count| member[*count].as_u64() > Some(0));
                    probed && member["up"] == wanted[index]
                };
                Ok((is(0) && is(1)).then_some(()))
            },
        )
        .with_context(|| last.to_string())
    }

    /// A call of ua1; what the concentrator has seen of it.
    fn call(&self, name: &str, peer: &str, domain: &str) -> Result<Vec<Packet>> {
        self.call_and(false, name, peer, domain)
    }

    fn call_and(
        &self,
        peer_hangs_up: bool,
        name: &str,
        peer: &str,
        domain: &str,
    ) -> Result<Vec<Packet>> {
        let folder = self.folder.join(name);
        fs::create_dir_all(&folder)?;
        let capture = Capture::start(&self.net.concentrator, "eth0", &folder)?;
        let mut caller = phone::call_to(
            &self.net.ua1,
            peer,
            domain,
            peer_hangs_up,
            // Where both sides are at one address there is one Record-Route.
            domain == "example.com",
            &folder,
        )?;
        let status = caller.wait(Duration::from_secs(20));
        let complaints = || {
            let errors = folder.join("ua1/errors.txt");
            fs::read_to_string(errors).unwrap_or_else(|_| caller_log(&folder))
        };
        // What was seen last reaches the file last.
        let bye = || {
            let seen = capture.so_far()?;
            Ok(seen.iter().any(|packet| is(packet, "BYE")).then_some(()))
        };
        let complete = wait::until("the BYE in the capture", Duration::from_secs(5), bye);
        let seen = capture.stop()?;
        let status = status.with_context(complaints)?;
        complete?;
        ensure!(
            status.success(),
            "the call {name:?} failed: {}",
            complaints()
        );
        Ok(seen)
    }

    fn events(&self, name: &str) -> Result<f64> {
        let wanted = format!("event=\"{name}\"");
        let metrics = self.service.concentrator.metrics(&self.net.concentrator)?;
        let found = metrics.iter().find(|(sample, _)| sample.contains(&wanted));
        Ok(found.with_context(|| format!("no metric of {name}"))?.1)
    }
}

fn is(packet: &Packet, method: &str) -> bool {
    let line = packet
        .transport()
        .and_then(|segment| segment.sip_start_line());
    line.is_some_and(|line| line.starts_with(method))
}

/// Every request of the phone after its INVITE went to the unicast address, past the tunnel.
fn judge_phone(seen: &[Packet]) -> Result<()> {
    for method in ["ACK", "BYE"] {
        let direct = seen
            .iter()
            .filter(|p| p.source == NAT_A && p.destination == CONCENTRATOR && is(p, method))
            .count();
        let tunnelled = seen
            .iter()
            .filter_map(Packet::gre)
            .filter(|(_, inner)| inner.destination == SERVICE && is(inner, method))
            .count();
        ensure!(
            direct > 0 && tunnelled == 0,
            "{method}: {direct} to the unicast address, {tunnelled} to the service address"
        );
    }
    Ok(())
}

/// And so did the trunk's BYE, of whose INVITE no Record-Route named another address.
fn judge_trunk(seen: &[Packet]) -> Result<()> {
    let of_trunk = |method: &'static str| {
        let byes = seen
            .iter()
            .filter(move |p| p.source == TRUNK1 && is(p, method));
        byes.map(|packet| packet.destination)
    };
    ensure!(
        of_trunk("BYE").count() > 0 && of_trunk("BYE").all(|to| to == CONCENTRATOR),
        "the trunk's BYE went to {:?}",
        of_trunk("BYE").collect::<Vec<_>>()
    );
    let to_trunk = seen.iter().filter(|p| p.destination == TRUNK1);
    for packet in to_trunk.filter(|packet| is(packet, "INVITE")) {
        let Some(segment) = packet.transport() else {
            continue;
        };
        let text = String::from_utf8_lossy(segment.payload);
        let mut routes = text.lines().filter(|line| line.starts_with("Record-Route"));
        ensure!(
            routes.all(|line| line.contains(&format!("@{CONCENTRATOR}:5060"))),
            "the trunk was told of another address: {text}"
        );
    }
    Ok(())
}

fn caller_log(folder: &Path) -> String {
    fs::read_to_string(folder.join("ua1/sipp.log")).unwrap_or_default()
}

fn invites(seen: &[Packet], to: Ipv4Addr) -> usize {
    seen.iter()
        .filter(|packet| packet.destination == to)
        .filter_map(|packet| packet.transport()?.sip_start_line())
        .filter(|line| line.starts_with("INVITE"))
        .count()
}
