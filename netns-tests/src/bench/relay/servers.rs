//! The two relays, what they use, and sessions set up on them.

use std::fs;
use std::net::{SocketAddrV4, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use wire::relay_control::Lease;

use super::control::Control;
use super::network::{Network, PHONES, RELAY};
use super::ng::Client;
use crate::process::Process;
use crate::service::{MEDIA_SOCKETS, start_program};
use crate::{certs, rtpengine, wait};

/// Sessions whose set-up is under way at a time.
pub(super) const IN_FLIGHT: usize = 64;
/// Leases that our agent holds ready.
const STOCK: u32 = 256;
const NG_PORT: u16 = 2223;
const READY: Duration = Duration::from_secs(10);
const FIRST_PORT: u16 = 20_000;
const MAX_PORTS: u64 = 45_000;
/// Files of a relay that are not media sockets.
const OTHER_FILES: u64 = 500;

/// The ports of the phones' sockets, by side.
#[derive(Debug, Clone, Copy)]
pub(super) struct PhonePorts(pub(super) [[u16; 2]; 2]);

impl PhonePorts {
    /// The caller's.
    pub(super) const fn a(&self, session: usize) -> u16 {
        self.0[0][session % 2]
    }

    /// The callee's.
    pub(super) const fn b(&self, session: usize) -> u16 {
        self.0[1][session % 2]
    }
}

/// The RTP ports of a session at the relay.
#[derive(Debug, Clone, Copy)]
pub(super) struct RelaySession {
    /// Where the caller sends to.
    pub(super) a: u16,
    /// Where the callee sends to.
    pub(super) b: u16,
}

/// Which relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Sipcast,
    SipcastXdp,
    Rtpengine,
}

impl Kind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Sipcast => "sipcast",
            Self::SipcastXdp => "sipcast-xdp",
            Self::Rtpengine => "rtpengine",
        }
    }
}

/// One of them, running.
pub(super) struct Server {
    process: Process,
    control: Controller,
}

enum Controller {
    Relay(Box<Control>),
    Ng(Client),
}

/// Memory in use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory {
    /// Of the process, resident.
    pub(super) resident: u64,
    /// Slabs of the kernel, of the whole machine: sockets are there.
    pub(super) kernel: u64,
}

/// Media ports that a relay may have on this machine. Where each takes a socket, and so a file, the limit
/// of open files is theirs too.
fn ports(kind: Kind) -> Result<u64> {
    let is_per_port = std::env::var(MEDIA_SOCKETS).is_ok_and(|sockets| sockets == "per-port");
    if kind != Kind::Rtpengine && !is_per_port {
        return Ok(MAX_PORTS);
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // Who may raise the limit does so.
    let raised = setrlimit(Resource::RLIMIT_NOFILE, hard.max(65_536), hard.max(65_536)).is_ok();
    let files = if raised { hard.max(65_536) } else { hard };
    Ok(MAX_PORTS.min(files.saturating_sub(OTHER_FILES)) & !3)
}

/// Sessions that it can have here, beside our agent's stock.
pub(super) fn most_sessions(kind: Kind) -> Result<usize> {
    Ok(usize::try_from(ports(kind)? / 4)?.saturating_sub(STOCK as usize))
}

/// First and last.
fn port_range(kind: Kind) -> Result<(u16, u16)> {
    Ok((FIRST_PORT, FIRST_PORT + (u16::try_from(ports(kind)?)? - 1)))
}

impl Server {
    /// Starts it and waits until it can be asked for sessions.
    pub(super) fn start(net: &Network, kind: Kind, folder: &Path) -> Result<Self> {
        let folder = folder.join(kind.name());
        fs::create_dir_all(&folder)?;
        match kind {
            Kind::Sipcast => sipcast(net, &folder, ""),
            Kind::SipcastXdp => {
                let section = "[xdp]\nmode = \"native\"\ninterfaces = [\"phones\"]\n";
                sipcast(net, &folder, section)
            }
            Kind::Rtpengine => start_rtpengine(net, &folder),
        }
    }

    /// Sets up this many sessions; how long it took, from none.
    pub(super) fn set_up(
        &mut self,
        count: usize,
        phones: PhonePorts,
    ) -> Result<(Vec<RelaySession>, Duration)> {
        let start = Instant::now();
        let sessions = match &mut self.control {
            Controller::Relay(control) => {
                control.welcome("c1", STOCK)?;
                control.bind(count)?.iter().map(session_of).collect()
            }
            Controller::Ng(client) => client.set_up(count, phones)?,
        };
        let took = start.elapsed();
        ensure!(
            sessions.len() == count,
            "{} of {count} sessions",
            sessions.len()
        );
        Ok((sessions, took))
    }

    /// CPU used so far by all of its threads, user and system, in nanoseconds of the scheduler.
    pub(super) fn cpu_ns(&self) -> Result<u64> {
        let mut total = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.process.id()))? {
            let statistics = fs::read_to_string(task?.path().join("schedstat"))?;
            let run = statistics.split(' ').next().unwrap_or_default();
            total += run.parse::<u64>()?;
        }
        Ok(total)
    }

    pub(super) fn memory(&self) -> Result<Memory> {
        let meminfo = fs::read_to_string("/proc/meminfo")?;
        let slab = meminfo.lines().find_map(|line| line.strip_prefix("Slab:"));
        let slab = slab.and_then(|line| line.split_whitespace().next());
        Ok(Memory {
            resident: self.process.resident_bytes()?,
            kernel: slab.unwrap_or("0").parse::<u64>()? * 1024,
        })
    }

    pub(super) fn check_alive(&mut self) -> Result<()> {
        self.process.check_alive()
    }
}

fn session_of(lease: &Lease) -> RelaySession {
    RelaySession {
        a: lease.a.rtp,
        b: lease.b.rtp,
    }
}

fn sipcast(net: &Network, folder: &Path, more: &str) -> Result<Server> {
    certs::write(folder, &["c1".into(), "relay1".into()])?;
    let listener = net
        .phones
        .inside(|| Ok(TcpListener::bind((PHONES, 7060))?))?;
    listener.set_nonblocking(true)?;
    let mut program = start_program(
        &net.relay,
        "relay1",
        "sipcast-rtp-agent",
        9103,
        &(agent_config()? + more),
        folder,
    )?;
    let stream = wait::until("the agent to connect", READY, || {
        program.process.check_alive()?;
        Ok(listener.accept().ok().map(|(stream, _)| stream))
    })?;
    let control = Control::greet(stream, "c1", folder)?;
    Ok(Server {
        process: program.process,
        control: Controller::Relay(Box::new(control)),
    })
}

fn agent_config() -> Result<String> {
    let (first, last) = port_range(Kind::Sipcast)?;
    Ok(format!(
        r#"
name = "relay1"
[media]
addresses = ["{RELAY}"]
ports = "{first}-{last}"
max_stock = {STOCK}
[control]
concentrators = ["{PHONES}:7060"]
server_name = "c1"
certificate = "relay1.pem"
private_key = "relay1.key"
ca = "ca.pem"
"#
    ))
}

fn start_rtpengine(net: &Network, folder: &Path) -> Result<Server> {
    let (first, last) = port_range(Kind::Rtpengine)?;
    let ng = SocketAddrV4::new(RELAY, NG_PORT);
    let settings = rtpengine::Settings {
        media: RELAY,
        ng,
        ports: first..=last,
        log_level: 3,
    };
    let mut process = rtpengine::start(&net.relay, &settings, folder)?;
    let client = net.phones.inside(|| Client::new(ng))?;
    wait::until("rtpengine to answer", READY, || {
        process.check_alive()?;
        Ok(client.ping().then_some(()))
    })?;
    Ok(Server {
        process,
        control: Controller::Ng(client),
    })
}
