//! Two hosts with an rtp-agent and a keepalived each, on one LAN with a router.
//!
//! ```text
//!     router (the caller's) 10.0.3.1
//!        |
//!      lan  (bridge)
//!        |________________
//!     relay-a 10.0.3.11   relay-b 10.0.3.12       media address 10.0.3.10, moved by keepalived
//!      sipcast-rtp-agent   sipcast-rtp-agent
//!      keepalived          keepalived             the file of `configs/`, with this address
//! ```
//!
//! A shell plays systemd's part: it says in a file whether the agent runs, and keepalived reads it.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::command;
use crate::http;
use crate::namespace::Namespace;
use crate::process::Process;
use crate::service::{binary, with_media_sockets};
use crate::wait;

/// The name of the pair.
pub(crate) const NAME: &str = "relay1";
/// Where phones send media.
pub(crate) const MEDIA: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 10);
/// The router of the LAN.
pub(crate) const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 1);

const KEEPALIVED: &str = include_str!("../../configs/keepalived.conf");
const READY: Duration = Duration::from_secs(20);

/// As systemd does with ExecStartPost and ExecStopPost; the files are those of an agent with thousands
/// of calls.
const UNIT: &str = r#"
ulimit -n 262144 2>/dev/null
failed=$1; pid_file=$2; shift 2
"$@" &
pid=$!
trap 'kill $pid' TERM
echo $pid > "$pid_file"
echo 0 > "$failed"
wait $pid
wait $pid
echo 1 > "$failed"
"#;

/// Both hosts.
pub(crate) struct RelayPair {
    pub(crate) a: Host,
    pub(crate) b: Host,
    _lan: Namespace,
}

/// One of them.
pub(crate) struct Host {
    pub(crate) namespace: Namespace,
    name: &'static str,
    own: Ipv4Addr,
    folder: PathBuf,
    config: String,
    agent: Option<Process>,
    keepalived: Option<Process>,
    starts: u32,
}

impl RelayPair {
    /// Builds the LAN, with the router's end as its device `media`. Certificates of [`NAME`] are in the
    /// folder. Nothing is started.
    pub(crate) fn build(
        router: &Namespace,
        folder: &Path,
        concentrator: SocketAddr,
        media: &str,
    ) -> Result<Self> {
        let lan = Namespace::new("lan")?;
        lan.run("ip link add br0 type bridge forward_delay 0")?;
        lan.run("ip link set dev br0 up")?;
        plug(&lan, router, "media", "to-router", ROUTER)?;
        let host = |name, number, other| {
            let own = Ipv4Addr::new(10, 0, 3, number);
            let namespace = Namespace::new(name)?;
            // The relays may have all ports above these.
            namespace.sysctl("net.ipv4.ip_local_port_range", "10000 19999")?;
            plug(&lan, &namespace, "eth0", name, own)?;
            namespace.run(&format!("ip route add default via {ROUTER}"))?;
            let other = Ipv4Addr::new(10, 0, 3, other);
            let host = Host {
                namespace,
                name,
                own,
                folder: folder.to_owned(),
                config: agent_config(own, other, concentrator, media),
                agent: None,
                keepalived: None,
                starts: 0,
            };
            anyhow::Ok(host)
        };
        Ok(Self {
            a: host("relay-a", 11, 12)?,
            b: host("relay-b", 12, 11)?,
            _lan: lan,
        })
    }

    /// Starts all four programs, `a` first: it gets the address.
    pub(crate) fn start(&mut self) -> Result<()> {
        self.a.start()?;
        self.a.wait_for("active")?;
        self.b.start()?;
        self.b.wait_for("standby")
    }
}

impl Host {
    /// Starts the agent, then keepalived.
    pub(crate) fn start(&mut self) -> Result<()> {
        self.start_agent()?;
        self.start_keepalived()
    }

    /// Starts the agent.
    pub(crate) fn start_agent(&mut self) -> Result<()> {
        self.starts += 1;
        let file = self.folder.join(format!("{}.toml", self.name));
        fs::write(&file, with_media_sockets(&self.config))?;
        let program = binary("sipcast-rtp-agent")?;
        let (failed, pid) = (self.failed(), self.pid_file());
        let arguments = [&failed, &pid, &program].map(|path| path.to_string_lossy().into_owned());
        let mut line = vec!["-c", UNIT, "unit"];
        line.extend(arguments.iter().map(String::as_str));
        let config = file.to_string_lossy();
        line.extend(["--config", &config]);
        let name = format!("{}-agent-{}", self.name, self.starts);
        let process = Process::start(&self.namespace, &name, "sh", &line, &self.folder)?;
        self.agent = Some(process);
        Ok(())
    }

    /// Starts keepalived.
    pub(crate) fn start_keepalived(&mut self) -> Result<()> {
        let failed = self.failed();
        let config = KEEPALIVED
            .replace("/run/sipcast/rtp-agent.failed", &failed.to_string_lossy())
            .replace("10.0.1.2/24", &format!("{MEDIA}/24"));
        let file = self.path("keepalived.conf");
        fs::write(&file, config)?;
        let of = |option: &str, path: PathBuf| format!("--{option}={}", path.display());
        let arguments = [
            "--dont-fork".to_owned(),
            "--log-console".to_owned(),
            "--log-detail".to_owned(),
            "--vrrp".to_owned(),
            of("use-file", file),
            of("pid", self.path("keepalived.pid")),
            of("vrrp_pid", self.path("vrrp.pid")),
        ];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let name = format!("{}-keepalived-{}", self.name, self.starts);
        let process = Process::start(
            &self.namespace,
            &name,
            "keepalived",
            &arguments,
            &self.folder,
        )?;
        wait::until("keepalived to take part", READY, || {
            Ok(process.log().contains(" STATE").then_some(()))
        })?;
        self.keepalived = Some(process);
        Ok(())
    }

    /// The host loses its link, and all its programs die.
    pub(crate) fn crash(&mut self) -> Result<()> {
        self.namespace.run("ip link set dev eth0 down")?;
        self.kill_agent()?;
        if let Some(mut keepalived) = self.keepalived.take() {
            for file in ["vrrp.pid", "keepalived.pid"] {
                kill_by(&self.path(file))?;
            }
            keepalived.wait(READY)?;
        }
        // What a host that starts again does not have either; keepalived may have been quicker.
        let _left = self
            .namespace
            .run(&format!("ip addr del {MEDIA}/24 dev eth0"));
        Ok(())
    }

    /// It starts again.
    pub(crate) fn revive(&mut self) -> Result<()> {
        self.namespace.run("ip link set dev eth0 up")?;
        self.namespace
            .run(&format!("ip route replace default via {ROUTER}"))?;
        self.start()
    }

    /// The agent dies, as by SIGKILL.
    pub(crate) fn kill_agent(&mut self) -> Result<()> {
        kill_by(&self.pid_file())?;
        if let Some(mut unit) = self.agent.take() {
            unit.wait(READY)?;
        }
        Ok(())
    }

    /// keepalived is stopped as an operator does it.
    pub(crate) fn stop_keepalived(&mut self) -> Result<()> {
        if let Some(mut keepalived) = self.keepalived.take() {
            keepalived.stop()?;
        }
        Ok(())
    }

    /// Waits until the agent says this of itself in `/status`, and is in step with the other one unless
    /// that one is gone.
    pub(crate) fn wait_for(&self, role: &str) -> Result<()> {
        let mut last = String::new();
        let what = format!("{} to be {role}", self.name);
        wait::until(&what, READY, || {
            let Ok(status) = self.status() else {
                return Ok(None);
            };
            let standby = &status["standby"];
            last = standby.to_string();
            let in_step = standby["in_step"] == true || standby["connected"] == false;
            Ok((standby["role"] == *role && in_step).then_some(()))
        })
        .with_context(|| format!("{last}\n{}", self.log()))
    }

    /// Waits until both agents have the same table, as this one sees it.
    pub(crate) fn wait_until_in_step(&self) -> Result<()> {
        let what = format!("{} to be in step", self.name);
        wait::until(&what, READY, || {
            let status = self.status().unwrap_or_default();
            Ok((status["standby"]["in_step"] == true).then_some(()))
        })
        .with_context(|| self.log())
    }

    /// `/status` of the agent.
    pub(crate) fn status(&self) -> Result<Value> {
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, 9103));
        let body = http::get(&self.namespace, admin, "/status")?;
        serde_json::from_str(&body).with_context(|| format!("/status is not JSON: {body}"))
    }

    /// Sessions with a call that has not ended.
    pub(crate) fn sessions(&self) -> Result<u64> {
        let status = self.status()?;
        let sessions = status["sessions_bound"].as_u64();
        sessions.with_context(|| format!("no sessions_bound in {status}"))
    }

    /// Memory that the agent has resident.
    pub(crate) fn resident_bytes(&self) -> Result<u64> {
        let pid = fs::read_to_string(self.pid_file())?;
        let status = fs::read_to_string(format!("/proc/{}/status", pid.trim()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = line.and_then(|line| line.split_whitespace().next());
        Ok(kibibytes.context("no VmRSS")?.parse::<u64>()? * 1024)
    }

    /// The end of the log of the agent.
    fn log(&self) -> String {
        let log = self.agent.as_ref().map(|agent| agent.last_lines(15));
        format!("{} {}: {}", self.name, self.own, log.unwrap_or_default())
    }

    fn path(&self, what: &str) -> PathBuf {
        self.folder.join(format!("{}-{what}", self.name))
    }

    fn failed(&self) -> PathBuf {
        self.path("agent.failed")
    }

    fn pid_file(&self) -> PathBuf {
        self.path("agent.pid")
    }
}

fn kill_by(pid_file: &Path) -> Result<()> {
    let text = fs::read_to_string(pid_file).with_context(|| pid_file.display().to_string())?;
    let pid = Pid::from_raw(text.trim().parse()?);
    command::echo("lab", &format!("kill -9 {pid}"));
    kill(pid, Signal::SIGKILL).with_context(|| format!("kill -9 {pid}"))
}

/// A cable from a namespace to the bridge.
fn plug(
    lan: &Namespace,
    namespace: &Namespace,
    device: &str,
    port: &str,
    address: Ipv4Addr,
) -> Result<()> {
    command::run(&format!(
        "ip link add name {device} netns {} type veth peer name {port} netns {}",
        namespace.name(),
        lan.name()
    ))?;
    // Otherwise captures see half-made checksums.
    namespace.run(&format!("ethtool -K {device} tx off"))?;
    lan.run(&format!("ip link set dev {port} master br0"))?;
    lan.run(&format!("ip link set dev {port} up"))?;
    namespace.run(&format!("ip addr add {address}/24 dev {device}"))?;
    namespace
        .run(&format!("ip link set dev {device} up"))
        .map(drop)
}

/// `media`: more lines of that section.
fn agent_config(own: Ipv4Addr, other: Ipv4Addr, concentrator: SocketAddr, media: &str) -> String {
    format!(
        r#"
name = "{NAME}"
[media]
addresses = ["{MEDIA}"]
{media}
[control]
concentrators = ["{concentrator}"]
server_name = "c1"
certificate = "{NAME}.pem"
private_key = "{NAME}.key"
ca = "ca.pem"
[standby]
listen = "{own}:7070"
peer = "{other}:7070"
[admin]
listen = "127.0.0.1:9103"
"#
    )
}
