//! The programs under test in the topology `two-edges`: config files, start, readiness, admin pages.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use md5::{Digest as _, Md5};
use serde_json::Value;

use crate::certs;
use crate::http;
use crate::namespace::Namespace;
use crate::process::Process;
use crate::topology::two_edges::{CONCENTRATOR, EDGE1, EDGE2, SERVICE, TwoEdges};
use crate::{wait, xdp};

/// Where [`Service::start`] keeps config files, within the folder it is given.
pub(crate) const FOLDER: &str = "service";

/// The tunnel keys of the two edges; each has one relay with this mark.
pub(crate) const KEY1: u32 = 0x1001;
pub(crate) const KEY2: u32 = 0x1002;
pub(crate) const MARK1: u8 = 1;
pub(crate) const MARK2: u8 = 2;

/// The ports of [`ALL_TRANSPORTS`] for browsers.
pub(crate) const WS_PORT: u16 = 8080;
pub(crate) const WSS_PORT: u16 = 8443;

/// The ports that the relays use.
pub(crate) const RELAY_PORTS: std::ops::RangeInclusive<u16> = 30_000..=39_999;

const READY: Duration = Duration::from_secs(15);

/// All five programs, running.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) ingress1: Program,
    pub(crate) ingress2: Program,
    pub(crate) concentrator: Program,
    pub(crate) relay1: Program,
    pub(crate) relay2: Program,
    folder: PathBuf,
}

/// One program and the address of its admin pages.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) process: Process,
    admin: SocketAddr,
}

impl Service {
    /// Writes certificates and configs, starts everything and waits until it serves.
    pub(crate) fn start(net: &TwoEdges, folder: &Path) -> Result<Self> {
        Self::start_with(net, folder, "")
    }

    /// The same, with more sections in the concentrator's config.
    pub(crate) fn start_with(net: &TwoEdges, folder: &Path, more: &str) -> Result<Self> {
        Self::start_edited(net, folder, more, |config| config)
    }

    /// The same, with every config file changed by `edit`.
    pub(crate) fn start_edited(
        net: &TwoEdges,
        folder: &Path,
        more: &str,
        edit: impl Fn(String) -> String,
    ) -> Result<Self> {
        Self::start_all(net, folder, concentrator_config_with(more), edit)
    }

    /// The same, with this config of the concentrator.
    pub(crate) fn start_configured(net: &TwoEdges, folder: &Path, config: String) -> Result<Self> {
        Self::start_all(net, folder, config, |config| config)
    }

    /// With more sections in the concentrator's config, and more keys in the `[media]` of both
    /// relays.
    pub(crate) fn start_limited(
        net: &TwoEdges,
        folder: &Path,
        more: &str,
        limits: &str,
    ) -> Result<Self> {
        let media = format!("[media]\n{limits}");
        Self::start_edited(net, folder, more, |config| {
            config.replace("[media]\n", &media)
        })
    }

    fn start_all(
        net: &TwoEdges,
        folder: &Path,
        config: String,
        edit: impl Fn(String) -> String,
    ) -> Result<Self> {
        let folder = folder.join(FOLDER);
        let own = |name: &'static str| (name, vec![name.to_owned()]);
        let sip = ("sip", vec!["example.com".to_owned(), SERVICE.to_string()]);
        certs::write_all(
            &folder,
            &[own("c1"), own("c2"), own("relay1"), own("relay2"), sip],
        )?;
        let start = |namespace: &Namespace, name: &str, binary: &str, port: u16, config: String| {
            start_program(namespace, name, binary, port, &edit(config), &folder)
        };
        let mut service = Self {
            concentrator: start(
                &net.concentrator,
                "concentrator",
                "sipcast-concentrator",
                9102,
                config,
            )?,
            ingress1: start(
                &net.edge1,
                "ingress1",
                "sipcast-ingress",
                9101,
                ingress_config(KEY1, MARK1, EDGE1),
            )?,
            ingress2: start(
                &net.edge2,
                "ingress2",
                "sipcast-ingress",
                9101,
                ingress_config(KEY2, MARK2, EDGE2),
            )?,
            relay1: start(
                &net.edge1,
                "relay1",
                "sipcast-rtp-agent",
                9103,
                relay_config("relay1", EDGE1),
            )?,
            relay2: start(
                &net.edge2,
                "relay2",
                "sipcast-rtp-agent",
                9103,
                relay_config("relay2", EDGE2),
            )?,
            folder: folder.clone(),
        };
        service.wait_until_ready(net)?;
        Ok(service)
    }

    fn wait_until_ready(&mut self, net: &TwoEdges) -> Result<()> {
        for (program, namespace) in [
            (&mut self.ingress1, &net.edge1),
            (&mut self.ingress2, &net.edge2),
            (&mut self.concentrator, &net.concentrator),
            (&mut self.relay1, &net.edge1),
            (&mut self.relay2, &net.edge2),
        ] {
            program.wait_until_healthy(namespace)?;
        }
        let mut last = Value::Null;
        wait::until("both relays to have prepared leases", READY, || {
            last = self.concentrator.status(&net.concentrator)?;
            Ok((relays_with_leases(&last) >= 2).then_some(()))
        })
        .with_context(|| {
            let (relay1, relay2) = (&self.relay1.process, &self.relay2.process);
            format!("{last}\n{}\n{}", relay1.last_lines(5), relay2.last_lines(5))
        })
    }

    /// Kills the concentrator as a crash would, starts it again and waits until it serves.
    pub(crate) fn crash_concentrator(&mut self, net: &TwoEdges, folder: &Path) -> Result<()> {
        self.concentrator.process.kill()?;
        self.concentrator.process = Process::start(
            &net.concentrator,
            "concentrator-again",
            &binary("sipcast-concentrator")?.to_string_lossy(),
            &["--config", "concentrator.toml"],
            &folder.join("service"),
        )?;
        self.wait_until_ready(net)
    }

    /// The same where the folder is not at hand.
    pub(crate) fn crash_and_start_concentrator(&mut self, net: &TwoEdges) -> Result<()> {
        let folder = self.folder.parent().map(Path::to_owned);
        self.crash_concentrator(net, &folder.context("the service has a folder")?)
    }

    /// Starts the relay of edge 1 again, which was killed, and waits until it has leases.
    pub(crate) fn start_relay1(&mut self, net: &TwoEdges) -> Result<()> {
        self.relay1.process = Process::start(
            &net.edge1,
            "relay1-again",
            &binary("sipcast-rtp-agent")?.to_string_lossy(),
            &["--config", "relay1.toml"],
            &self.folder,
        )?;
        self.wait_until_ready(net)
    }

    /// Fails when one of them has ended.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        for program in [
            &mut self.ingress1,
            &mut self.ingress2,
            &mut self.concentrator,
            &mut self.relay1,
            &mut self.relay2,
        ] {
            program.process.check_alive()?;
        }
        Ok(())
    }
}

impl Service {
    /// Where its config files are.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The PEM file of who signed all certificates.
    pub(crate) fn authority(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// Calls that the concentrator lists.
    pub(crate) fn calls(&self, net: &TwoEdges) -> Result<u64> {
        let status = self.concentrator.status(&net.concentrator)?;
        let calls = status.get("calls").and_then(Value::as_array);
        let calls = calls.with_context(|| format!("/status lists no calls: {status}"))?;
        Ok(calls.len() as u64)
    }

    /// Sessions of calls on the relays of edge 1 and edge 2.
    pub(crate) fn sessions(&self, net: &TwoEdges) -> Result<[u64; 2]> {
        Ok([
            self.relay1.gauge(&net.edge1, "sipcast_relay_sessions")?,
            self.relay2.gauge(&net.edge2, "sipcast_relay_sessions")?,
        ])
    }
}

impl Program {
    /// Waits for `/healthz` to answer 200.
    pub(crate) fn wait_until_healthy(&mut self, namespace: &Namespace) -> Result<()> {
        let mut last = String::new();
        wait::until("a program to be healthy", READY, || {
            self.process.check_alive()?;
            match http::get(namespace, self.admin, "/healthz") {
                Ok(_) => Ok(Some(())),
                Err(error) => {
                    last = format!("{error:#}");
                    Ok(None)
                }
            }
        })
        .with_context(|| format!("{last}\n{}", self.process.last_lines(15)))
    }

    /// `/healthz` answers 200 now.
    pub(crate) fn is_healthy(&self, namespace: &Namespace) -> Result<()> {
        http::get(namespace, self.admin, "/healthz").map(drop)
    }

    /// Waits for the admin pages, whatever they say of its health.
    pub(crate) fn wait_until_started(&mut self, namespace: &Namespace) -> Result<()> {
        wait::until("a program's pages", READY, || {
            self.process.check_alive()?;
            Ok(http::get(namespace, self.admin, "/metrics").ok())
        })
        .with_context(|| self.process.last_lines(15))
        .map(drop)
    }

    /// `/status`.
    pub(crate) fn status(&self, namespace: &Namespace) -> Result<Value> {
        let body = http::get(namespace, self.admin, "/status")?;
        serde_json::from_str(&body).with_context(|| format!("/status is not JSON: {body}"))
    }

    /// The value of a gauge without labels.
    pub(crate) fn gauge(&self, namespace: &Namespace, name: &str) -> Result<u64> {
        let metrics = self.metrics(namespace)?;
        let sample = metrics.iter().find(|(sample, _)| sample == name);
        Ok(sample
            .with_context(|| format!("there is no metric {name}"))?
            .1 as u64)
    }

    /// `/metrics`: every sample, as name with labels and value.
    pub(crate) fn metrics(&self, namespace: &Namespace) -> Result<Vec<(String, f64)>> {
        let body = http::get(namespace, self.admin, "/metrics")?;
        Ok(body
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| {
                let (name, value) = line.rsplit_once(' ')?;
                Some((name.to_owned(), value.parse().ok()?))
            })
            .collect())
    }
}

/// Relays that the concentrator can use at once.
fn relays_with_leases(concentrator: &Value) -> usize {
    let relays = concentrator.get("relays").and_then(Value::as_array);
    relays.map_or(0, |relays| {
        relays
            .iter()
            .filter(|relay| relay.get("leases").and_then(Value::as_u64) > Some(0))
            .count()
    })
}

/// Where one of our programs is: beside this one.
pub(crate) fn binary(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    ensure!(
        path.is_file(),
        "{} is not built: cargo build --workspace",
        path.display()
    );
    Ok(path)
}

/// Starts one of our programs with this config.
pub(crate) fn start_program(
    namespace: &Namespace,
    name: &str,
    program: &str,
    admin_port: u16,
    config: &str,
    folder: &Path,
) -> Result<Program> {
    let file = folder.join(format!("{name}.toml"));
    let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, admin_port));
    let config = match program {
        "sipcast-rtp-agent" => with_media_sockets(config),
        _ => config.to_owned(),
    };
    fs::write(&file, format!("{config}\n[admin]\nlisten = \"{admin}\"\n"))?;
    let program = binary(program)?;
    let arguments = ["--config", &file.to_string_lossy()];
    let process = Process::start(
        namespace,
        name,
        &program.to_string_lossy(),
        &arguments,
        folder,
    )?;
    Ok(Program { process, admin })
}

/// Which `media.sockets` the relays of the lab have: those of this variable, if it is set.
pub(crate) const MEDIA_SOCKETS: &str = "SIPCAST_LAB_MEDIA_SOCKETS";

/// The file of a relay with [`MEDIA_SOCKETS`], unless it has its own.
pub(crate) fn with_media_sockets(config: &str) -> String {
    let Ok(sockets) = std::env::var(MEDIA_SOCKETS) else {
        return config.to_owned();
    };
    if config.contains("\nsockets = ") {
        return config.to_owned();
    }
    let with = format!("[media]\nsockets = \"{sockets}\"\n");
    config.replacen("[media]\n", &with, 1)
}

/// ingress.toml of an edge.
pub(crate) fn ingress_config(key: u32, mark: u8, source: Ipv4Addr) -> String {
    format!(
        r#"
service_addresses = ["{SERVICE}"]
mark = {mark}
[tunnel]
key = {key:#x}
source = "{source}"
concentrators = ["{CONCENTRATOR}"]
mtu = 1472
[announcement]
linger_s = 0
graceful_s = 0
{}"#,
        xdp::wanted().map_or_else(String::new, |mode| xdp::section(&mode))
    )
}

/// SIPp takes an OPTIONS that it does not expect for a failed call.
const NO_PINGS: &str = "[registrar]\nping_interval_s = 0\n";

/// concentrator.toml with more sections, of which its own `[registrar]` gives way.
fn concentrator_config_with(more: &str) -> String {
    let config = concentrator_config();
    if more.contains("[registrar]") {
        return config.replace(NO_PINGS, "") + more;
    }
    config + more
}

/// Sections of concentrator.toml: TLS and both kinds of WebSocket, on their usual ports and on
/// [`WS_PORT`] and [`WSS_PORT`].
pub(crate) const ALL_TRANSPORTS: &str = "[sip]\nws_port = 8080\nwss_port = 8443\n\
    [sip.tls]\ncertificate = \"sip.pem\"\nprivate_key = \"sip.key\"\n";

/// concentrator.toml.
pub(crate) fn concentrator_config() -> String {
    let edge = |number: u8, source: Ipv4Addr, key: u32, mark: u8| {
        let other = 3 - number;
        format!(
            r#"
[[edges]]
name = "edge{number}"
sources = ["{source}/32"]
key = {key:#x}
fallback = ["relay{other}"]
[[edges.relays]]
mark = {mark}
agent = "relay{number}"
"#
        )
    };
    format!(
        r#"
name = "c1"
service_addresses = ["{SERVICE}"]
domains = ["example.com"]
[tunnel]
listen = "{CONCENTRATOR}"
mtu = 1472
{NO_PINGS}{}{}
[relay_control]
listen = "{CONCENTRATOR}:7060"
certificate = "c1.pem"
private_key = "c1.key"
ca = "ca.pem"
"#,
        edge(1, EDGE1, KEY1, MARK1),
        edge(2, EDGE2, KEY2, MARK2)
    )
}

/// A section of concentrator.toml: whoever registers or calls needs a password. [`write_users`] makes
/// its file.
pub(crate) const AUTHENTICATION: &str = "[authentication]\nusers_file = \"users\"\n";

/// Writes the users' file into the folder of the config file, with name and password of each; the realm
/// is `example.com`.
pub(crate) fn write_users(folder: &Path, users: &[(&str, &str)]) -> Result<()> {
    fs::create_dir_all(folder)?;
    let lines: String = users
        .iter()
        .map(|(user, password)| {
            let whole = format!("{user}:example.com:{password}");
            let ha1: String = Md5::digest(whole)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            format!("{user}:example.com:{ha1}\n")
        })
        .collect();
    Ok(fs::write(folder.join("users"), lines)?)
}

/// rtp-agent.toml of an edge.
pub(crate) fn relay_config(name: &str, address: Ipv4Addr) -> String {
    format!(
        r#"
name = "{name}"
[media]
addresses = ["{address}"]
ports = "{}-{}"
[control]
concentrators = ["{CONCENTRATOR}:7060"]
server_name = "c1"
certificate = "{name}.pem"
private_key = "{name}.key"
ca = "ca.pem"
{}"#,
        RELAY_PORTS.start(),
        RELAY_PORTS.end(),
        xdp::relays_wanted().map_or_else(String::new, |mode| xdp::section(&mode))
    )
}
