//! The programs under test in the topology `internet`: three edges with ingress and relay, one
//! concentrator.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::certs;
use crate::process::Process;
use crate::service::{Program, start_program};
use crate::topology::internet::{EDGES, Internet, TUNNEL_END};
use crate::topology::two_edges::SERVICE;
use crate::wait;

const READY: Duration = Duration::from_secs(20);

/// All seven programs, running.
#[derive(Debug)]
pub(crate) struct Edges {
    pub(crate) concentrator: Program,
    pub(crate) ingresses: Vec<Program>,
    pub(crate) relays: Vec<Program>,
}

impl Edges {
    /// Starts everything and waits until all edges announce and all relays have leases. `announcement`
    /// are keys of that section of ingress.toml.
    pub(crate) fn start(net: &Internet, announcement: &str, folder: &Path) -> Result<Self> {
        let folder = folder.join("service");
        let names = ["c1", "relay1", "relay2", "relay3"];
        let mut certificates: Vec<_> = names
            .iter()
            .map(|name| (*name, vec![(*name).to_owned()]))
            .collect();
        certificates.push(("sip", vec!["example.com".to_owned(), SERVICE.to_string()]));
        certs::write_all(&folder, &certificates)?;
        let concentrator = start_program(
            &net.concentrator,
            "concentrator",
            "sipcast-concentrator",
            9102,
            &concentrator_config(),
            &folder,
        )?;
        let (mut ingresses, mut relays) = (Vec::new(), Vec::new());
        for ((number, namespace), address) in (1..).zip(&net.edges).zip(EDGES) {
            ingresses.push(start_program(
                namespace,
                &format!("ingress{number}"),
                "sipcast-ingress",
                9101,
                &ingress_config(number, address, announcement),
                &folder,
            )?);
            relays.push(start_program(
                namespace,
                &format!("relay{number}"),
                "sipcast-rtp-agent",
                9103,
                &relay_config(number, address),
                &folder,
            )?);
        }
        let mut edges = Self {
            concentrator,
            ingresses,
            relays,
        };
        edges.wait_until_ready(net)?;
        Ok(edges)
    }

    /// Waits until all is as it should be.
    pub(crate) fn wait_until_ready(&mut self, net: &Internet) -> Result<()> {
        self.concentrator.wait_until_healthy(&net.concentrator)?;
        for (place, ingress) in self.ingresses.iter_mut().enumerate() {
            ingress.wait_until_healthy(&net.edges[place])?;
        }
        let mut last = Value::Null;
        wait::until("three relays to have leases", READY, || {
            last = self.concentrator.status(&net.concentrator)?;
            let relays = last.get("relays").and_then(Value::as_array);
            let with_leases = relays
                .into_iter()
                .flatten()
                .filter(|relay| relay.get("leases").and_then(Value::as_u64) > Some(0));
            Ok((with_leases.count() == 3).then_some(()))
        })
        .with_context(|| last.to_string())
    }

    /// Starts the ingress of edge 1 again, which was killed.
    pub(crate) fn restart_ingress1(&mut self, net: &Internet, folder: &Path) -> Result<()> {
        let program = crate::service::binary("sipcast-ingress")?;
        self.ingresses[0].process = Process::start(
            &net.edges[0],
            "ingress1-again",
            &program.to_string_lossy(),
            &["--config", "ingress1.toml"],
            folder,
        )?;
        Ok(())
    }

    /// Fails when one of them has ended.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        let programs = self.ingresses.iter_mut().chain(&mut self.relays);
        for program in programs.chain([&mut self.concentrator]) {
            program.process.check_alive()?;
        }
        Ok(())
    }

    /// Packets that each ingress has forwarded so far.
    pub(crate) fn forwarded(&self, net: &Internet) -> Result<[u64; 3]> {
        let mut counts = [0; 3];
        for (count, (ingress, namespace)) in
            counts.iter_mut().zip(self.ingresses.iter().zip(&net.edges))
        {
            let status = ingress.status(namespace)?;
            let forwarded = status.pointer("/counters/forwarded_packets");
            *count = forwarded
                .and_then(Value::as_u64)
                .context("no forwarded_packets")?;
        }
        Ok(counts)
    }

    /// What an ingress says of its announcement.
    pub(crate) fn announcement(&self, net: &Internet, edge: usize) -> Result<String> {
        let status = self.ingresses[edge - 1].status(&net.edges[edge - 1])?;
        let state = status
            .pointer("/announcement/state")
            .and_then(Value::as_str);
        Ok(state.context("no announcement in /status")?.to_owned())
    }
}

fn ingress_config(number: u32, address: Ipv4Addr, announcement: &str) -> String {
    // IPv6 between edge and provider is there at the first two.
    let (service6, mtu) = if number <= 2 {
        (", \"2001:db8:5060::1\"", 1472)
    } else {
        ("", 1472)
    };
    format!(
        r#"
service_addresses = ["{SERVICE}"{service6}]
mark = {number}
[tunnel]
key = {:#x}
source = "{address}"
concentrators = ["{TUNNEL_END}"]
mtu = {mtu}
[announcement]
{announcement}
"#,
        0x1000 + number
    )
}

fn relay_config(number: u32, address: Ipv4Addr) -> String {
    crate::service::relay_config(&format!("relay{number}"), address)
}

fn concentrator_config() -> String {
    let edges: String = (1..)
        .zip(EDGES)
        .map(|(number, address): (u32, Ipv4Addr)| {
            let (key, other) = (0x1000 + number, number % 3 + 1);
            format!(
                r#"
[[edges]]
name = "edge{number}"
sources = ["{address}/32"]
key = {key:#x}
fallback = ["relay{other}"]
[[edges.relays]]
mark = {number}
agent = "relay{number}"
"#
            )
        })
        .collect();
    format!(
        r#"
name = "c1"
service_addresses = ["{SERVICE}", "2001:db8:5060::1"]
domains = ["example.com"]
[tunnel]
listen = "{TUNNEL_END}"
mtu = 1472
[registrar]
ping_interval_s = 0
[sip]
reveal_edge_to = ["100.64.0.0/15"]
[sip.tls]
certificate = "sip.pem"
private_key = "sip.key"
{edges}
[relay_control]
listen = "{TUNNEL_END}:7060"
certificate = "c1.pem"
private_key = "c1.key"
ca = "ca.pem"
"#
    )
}
