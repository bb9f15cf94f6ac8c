//! One to three concentrators behind one ingress, with a link between each two of them and one location service
//! on three NATS servers.
//!
//! ```text
//!                 10.0.1.2 edge 10.0.91.2 --- 10.0.91.1      .9.2  c1
//!                /         sipcast-ingress             \    /
//!    phones 10.0.1.1                                    core --.10.2 c2    each with the service address
//!    and 100.64.0.0/10, 10.1.0.0/16                    /  |  \
//!                 10.0.8.1 ------------------- 10.0.8.2   |   .11.2  c3
//!                                                   nats-server, three times
//! ```
//!
//! What the phones send goes through the ingress, which shares them out by their addresses; answers take the direct
//! link. No wire has a delay. The phones are in a namespace that takes whatever is sent to their networks.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::link::{self, End, Shape};
use crate::namespace::Namespace;
use crate::nats::Nats;
use crate::process::Process;
use crate::scenario::restart::{KEY, write_key};
use crate::service::{
    FOLDER, KEY1, MARK1, Program, binary, concentrator_config, ingress_config, start_program,
};
use crate::topology::two_edges::{CONCENTRATOR, EDGE1, SERVICE};
use crate::{certs, wait};

/// On the core.
const NATS: Ipv4Addr = Ipv4Addr::new(10, 0, 91, 1);
const PATIENCE: Duration = Duration::from_secs(60);
/// All load comes from few addresses, and 1,000,000 bindings must find room.
const LIMITS: &str = "[sip]\nmax_transactions_per_source = 1000000\n[media]\nrelay = \"never\"\n";

/// All of it, running.
pub(in crate::bench) struct Rig {
    pub(in crate::bench) phones: Namespace,
    pub(in crate::bench) edge: Namespace,
    pub(in crate::bench) core: Namespace,
    pub(in crate::bench) nodes: Vec<Node>,
    pub(in crate::bench) ingress: Program,
    pub(in crate::bench) nats: Nats,
}

/// One concentrator.
pub(in crate::bench) struct Node {
    pub(in crate::bench) namespace: Namespace,
    pub(in crate::bench) program: Program,
    folder: PathBuf,
    name: String,
}

impl Rig {
    /// Starts so many concentrators and waits until all are whole and the ingress shares the phones out.
    pub(in crate::bench) fn start(concentrators: usize, folder: &Path) -> Result<Self> {
        let (phones, edge, core) = wire()?;
        let namespaces = (0..concentrators)
            .map(|number| wire_node(&core, number))
            .collect::<Result<Vec<_>>>()?;
        let nats = Nats::start(&core, NATS, folder)?;
        write_key(folder)?;
        let folder = folder.join(FOLDER);
        let names: Vec<String> = (1..=concentrators).map(|n| format!("c{n}")).collect();
        certs::write(&folder, &names)?;
        let mut nodes = Vec::new();
        for (number, namespace) in namespaces.into_iter().enumerate() {
            let config = config(number, concentrators, &nats);
            let program = start_program(
                &namespace,
                &names[number],
                "sipcast-concentrator",
                9102,
                &config,
                &folder,
            )?;
            nodes.push(Node {
                namespace,
                program,
                folder: folder.clone(),
                name: names[number].clone(),
            });
        }
        let addresses: Vec<String> = (0..concentrators)
            .map(|number| format!("\"{}\"", address(number)))
            .collect();
        let config = ingress_config(KEY1, MARK1, EDGE1).replace(
            &format!("concentrators = [\"{CONCENTRATOR}\"]"),
            &format!(
                "concentrators = [{}]\nhash_key = \"00112233445566778899aabbccddeeff\"",
                addresses.join(", ")
            ),
        );
        let ingress = start_program(&edge, "ingress1", "sipcast-ingress", 9101, &config, &folder)?;
        let mut rig = Self {
            phones,
            edge,
            core,
            nodes,
            ingress,
            nats,
        };
        for node in &mut rig.nodes {
            node.wait_until_whole(concentrators - 1, PATIENCE)?;
        }
        rig.wait_for_shares(concentrators)?;
        Ok(rig)
    }

    /// Waits until the ingress shares the phones out among so many.
    pub(in crate::bench) fn wait_for_shares(&self, among: usize) -> Result<()> {
        wait::until("the ingress to share the phones out", PATIENCE, || {
            let status = self.ingress.status(&self.edge)?;
            let paths = status.get("paths").and_then(Value::as_array);
            let chosen = |path: &&Value| path.get("chosen") == Some(&Value::Bool(true));
            let count = paths.into_iter().flatten().filter(chosen).count();
            Ok((count == among).then_some(()))
        })
    }
}

impl Node {
    /// Waits until it shares registrations and has its links.
    pub(in crate::bench) fn wait_until_whole(
        &mut self,
        peers: usize,
        patience: Duration,
    ) -> Result<()> {
        let mut last = Value::Null;
        wait::until("a concentrator to be whole", patience, || {
            self.program.process.check_alive()?;
            let Ok(status) = self.program.status(&self.namespace) else {
                return Ok(None);
            };
            last = status;
            let links = last.pointer("/core_link/peers").and_then(Value::as_array);
            let up = |link: &&Value| link.get("up") == Some(&Value::Bool(true));
            let linked = links.map_or(0, |links| links.iter().filter(up).count());
            let shares = last["cluster"]["state"] == "connected";
            Ok((linked == peers && shares).then_some(()))
        })
        .with_context(|| format!("{}: {} {}", self.name, last["cluster"], last["core_link"]))
    }

    /// A sample of its metrics, 0 where there is none.
    pub(in crate::bench) fn sample(&self, name: &str) -> Result<u64> {
        let metrics = self.program.metrics(&self.namespace)?;
        let sample = metrics.iter().find(|(sample, _)| sample == name);
        Ok(sample.map_or(0, |(_, value)| *value as u64))
    }

    /// How often something has happened.
    pub(in crate::bench) fn events(&self, event: &str) -> Result<u64> {
        self.sample(&format!(
            "sipcast_concentrator_events_total{{event=\"{event}\"}}"
        ))
    }

    /// A level.
    pub(in crate::bench) fn level(&self, kind: &str) -> Result<u64> {
        self.sample(&format!("sipcast_concentrator_state{{kind=\"{kind}\"}}"))
    }

    /// The file that its bindings are kept in.
    pub(in crate::bench) fn location(&self) -> PathBuf {
        self.folder.join(format!("{}.db", self.name))
    }

    /// Kills it and starts it again, with its file or without; does not wait.
    pub(in crate::bench) fn crash_and_start(&mut self, with_file: bool) -> Result<()> {
        self.program.process.kill()?;
        if !with_file {
            fs::remove_file(self.location())?;
        }
        self.start_again()
    }

    /// Starts it, which was killed.
    pub(in crate::bench) fn start_again(&mut self) -> Result<()> {
        self.program.process = Process::start(
            &self.namespace,
            &format!("{}-again", self.name),
            &binary("sipcast-concentrator")?.to_string_lossy(),
            &["--config", &format!("{}.toml", self.name)],
            &self.folder,
        )?;
        Ok(())
    }
}

fn address(number: usize) -> Ipv4Addr {
    let [a, b, c, d] = CONCENTRATOR.octets();
    Ipv4Addr::new(a, b, c + number as u8, d)
}

fn config(number: usize, concentrators: usize, nats: &Nats) -> String {
    let (own, name) = (address(number), format!("c{}", number + 1));
    let base = concentrator_config()
        .replace(&CONCENTRATOR.to_string(), &own.to_string())
        .replace("\"c1", &format!("\"{name}"))
        .replace("[registrar]\n", "[registrar]\nmax_bindings = 1200000\n");
    let others = (0..concentrators).filter(|other| *other != number);
    let peers: String = others
        .map(|other| {
            let (address, name) = (address(other), other + 1);
            format!(
                "[[core_link.peers]]\nname = \"c{name}\"\naddress = \"{address}:7063\"\n\
                 tunnel = \"{address}\"\n"
            )
        })
        .collect();
    let link = if peers.is_empty() {
        String::new()
    } else {
        format!(
            "[core_link]\nlisten = \"{own}:7063\"\ncertificate = \"{name}.pem\"\n\
             private_key = \"{name}.key\"\nca = \"ca.pem\"\n{peers}"
        )
    };
    format!(
        "{base}{KEY}{LIMITS}[location]\nfile = \"{name}.db\"\n\
         [cluster]\nid = {}\n{}{link}",
        number + 1,
        nats.keys()
    )
}

fn wire() -> Result<(Namespace, Namespace, Namespace)> {
    let phones = Namespace::new("phones")?;
    let edge = Namespace::router("edge1")?;
    let core = Namespace::router("core")?;
    for (a, b) in [
        (
            (&phones, "edge", "10.0.1.1/24"),
            (&edge, "access", "10.0.1.2/24"),
        ),
        (
            (&edge, "up", "10.0.91.2/24"),
            (&core, "edge", "10.0.91.1/24"),
        ),
        (
            (&phones, "direct", "10.0.8.1/24"),
            (&core, "direct", "10.0.8.2/24"),
        ),
    ] {
        link::connect(end(a), end(b), Shape::DIRECT)?;
    }
    // Answers come by another link than the requests took.
    for setting in ["all", "edge", "direct"] {
        let key = format!("net.ipv4.conf.{setting}.rp_filter");
        phones.sysctl(&key, "0")?;
    }
    phones.run(&format!("ip route add default via {EDGE1}"))?;
    edge.run("ip route add default via 10.0.91.1")?;
    core.run(&format!("ip route add {EDGE1}/32 via 10.0.91.2"))?;
    for network in ["10.0.1.1/32", "100.64.0.0/10", "10.1.0.0/16"] {
        core.run(&format!("ip route add {network} via 10.0.8.1"))?;
    }
    for network in ["100.64.0.0/10", "10.1.0.0/16"] {
        phones.run(&format!("ip route add local {network} dev lo"))?;
    }
    Ok((phones, edge, core))
}

fn wire_node(core: &Namespace, number: usize) -> Result<Namespace> {
    let node = Namespace::new(&format!("c{}", number + 1))?;
    let own = address(number);
    let [a, b, c, _] = own.octets();
    let gateway = Ipv4Addr::new(a, b, c, 1);
    link::connect(
        end((
            core,
            &format!("down{}", number + 1),
            &format!("{gateway}/24"),
        )),
        end((&node, "eth0", &format!("{own}/24"))),
        Shape::DIRECT,
    )?;
    node.run(&format!("ip route add default via {gateway}"))?;
    node.run(&format!("ip addr add {SERVICE}/32 dev lo"))?;
    Ok(node)
}

fn end<'a>((namespace, device, address): (&'a Namespace, &'a str, &'a str)) -> End<'a> {
    End {
        namespace,
        device,
        address,
    }
}
