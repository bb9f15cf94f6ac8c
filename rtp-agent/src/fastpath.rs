//! IO. The XDP program that relays RTP of latched sides: opens it, makes and takes its entries, reads what it
//! has done.
//!
//! [`crate::relay::offload`] says which streams; here a stream becomes an entry of the program and its
//! figures come back as a [`Carried`]. All of it belongs to the engine and is used under its lock; once a
//! second [`crate::sockets::SharedEngine`] reads the figures of all streams and looks at the devices of the
//! machine. Where the program does not run, the reason stands in the log and in `/status`, and every packet
//! takes the way through the sockets.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Map, Value, json};
use tracing::{error, warn};
use tunnel_io::links::Link;
use tunnel_io::steering::include_bytes_aligned;
use tunnel_io::system;
use tunnel_io::xdp::interfaces::{Interfaces, XdpConfig, XdpMode};
use tunnel_io::xdp::relay::{Plan, RelayXdp, allow_lookups, monotonic_ns};
use tunnel_io::xdp::relay_tables::{Entry, Key, Outcome, Stream};
use tunnel_io::xdp::tables::Count;
use wire::ip::UdpHeaders;

use crate::bursts::Bursts;
use crate::reception::Progress;
use crate::relay::RelayPort;
use crate::session::offload::{Carried, Route};
use crate::sockets::{MAX_PACKET, PAIR_LIMIT, now};

/// Built by `build.rs`; empty where there was no clang.
pub static PROGRAM: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/relay.bpf.o"));

/// Where the media are.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The media addresses.
    pub addresses: &'a [IpAddr],
    /// First and last media port.
    pub ports: (u16, u16),
    /// All ports share few sockets, whose packets have a TTL of their own.
    pub is_shared: bool,
}

/// See the module.
#[derive(Debug)]
pub struct FastPath {
    mode: XdpMode,
    running: Option<Running>,
    why_not: Option<String>,
}

#[derive(Debug)]
struct Running {
    xdp: RelayXdp,
    interfaces: Interfaces,
    hop_limit: [u8; 2],
    entries: HashMap<RelayPort, Offloaded>,
}

/// A stream that has an entry.
#[derive(Debug)]
struct Offloaded {
    key: Key,
    ssrc: u32,
    /// What the relay knows of already.
    packets: u64,
    bytes: u64,
}

impl FastPath {
    /// Loads and attaches it as the configuration wants; fails where that is impossible and the
    /// configuration insists.
    pub fn open(config: &XdpConfig, place: Place<'_>) -> anyhow::Result<Self> {
        let mode = config.mode;
        let without = |why_not: String| Self {
            mode,
            running: None,
            why_not: Some(why_not),
        };
        if mode == XdpMode::Off {
            return Ok(without("xdp.mode is \"off\"".to_owned()));
        }
        match Running::open(config, place) {
            Ok(running) => Ok(Self {
                mode,
                running: Some(running),
                why_not: None,
            }),
            Err(error) if mode == XdpMode::Auto => {
                let reason = format!("{error:#}");
                warn!(
                    reason,
                    "every packet takes the way through the sockets: no XDP here"
                );
                Ok(without(reason))
            }
            Err(error) => Err(error.context(format!(
                "xdp.mode is {:?}, and that is not possible here; \"auto\" does without",
                mode.name()
            ))),
        }
    }

    /// One that is off.
    pub fn off() -> Self {
        Self {
            mode: XdpMode::Off,
            running: None,
            why_not: None,
        }
    }

    /// Whether it relays anything.
    pub const fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Relays the RTP that comes to this port from now on; false where that is not possible.
    pub fn insert(
        &mut self,
        port: RelayPort,
        local: SocketAddr,
        exit: SocketAddr,
        route: &Route,
    ) -> bool {
        let Some(running) = &mut self.running else {
            return false;
        };
        let inserted = running.insert(port, local, exit, route);
        if let Err(error) = &inserted {
            let reason = format!("{error:#}");
            warn!(%local, reason, "XDP does not take a stream");
        }
        inserted.is_ok()
    }

    /// Leaves it to the sockets from now on; what it has relayed since it was asked last.
    pub fn remove(&mut self, port: RelayPort) -> Option<Carried> {
        let running = self.running.as_mut()?;
        let mut offloaded = running.entries.remove(&port)?;
        match running.xdp.remove(&offloaded.key) {
            Ok(stream) => Some(offloaded.carried(&stream)),
            Err(error) => {
                // An entry that cannot be taken would go on relaying.
                self.give_up(format!("{error:#}", error = anyhow::Error::from(error)));
                None
            }
        }
    }

    /// What it has relayed of this stream since it was asked last.
    pub fn sample(&mut self, port: RelayPort) -> Option<Carried> {
        let running = self.running.as_mut()?;
        let offloaded = running.entries.get_mut(&port)?;
        let stream = running.xdp.stream(&offloaded.key).ok()?;
        Some(offloaded.carried(&stream))
    }

    /// The ports that have entries.
    pub fn ports(&self) -> Vec<RelayPort> {
        let running = self.running.iter();
        let ports = running.flat_map(|running| running.entries.keys());
        ports.copied().collect()
    }

    /// The devices of the machine as they are now; false where the program is on none of its interfaces any
    /// more, or cannot go on.
    pub fn look_at(&mut self, links: &[Link]) -> bool {
        let Some(running) = &mut self.running else {
            return false;
        };
        match running.look_at(links) {
            Ok(is_somewhere) => is_somewhere,
            Err(error) => {
                self.give_up(format!("{error:#}"));
                false
            }
        }
    }

    /// Its tables cannot be kept up to date, so it must not go on.
    fn give_up(&mut self, reason: String) {
        error!(
            reason,
            "XDP is taken off: every packet takes the way through the sockets"
        );
        self.running = None;
        self.why_not = Some(reason);
    }

    /// What became of all packets so far, with how many entries there are; `None` where it does not run.
    pub fn figures(&self) -> Option<Figures> {
        let running = self.running.as_ref()?;
        let interfaces = running.interfaces.iter();
        Some(Figures {
            counts: running.xdp.counts().unwrap_or_default(),
            entries: running.entries.len() as u64,
            attached: interfaces
                .map(|interface| (interface.name.clone(), interface.is_attached))
                .collect(),
        })
    }

    /// For the status page.
    pub fn status(&self) -> Value {
        let running = self.running.as_ref();
        let interfaces = running
            .into_iter()
            .flat_map(|running| running.interfaces.iter());
        let interfaces: Vec<Value> = interfaces
            .map(|interface| {
                json!({
                    "name": interface.name,
                    "mode": interface.mode.name(),
                    "attached": interface.is_attached,
                })
            })
            .collect();
        let figures = self.figures().unwrap_or_default();
        let counters = Outcome::ALL.iter().zip(figures.counts);
        let counters: Map<_, _> = counters
            .map(|(outcome, count)| {
                let (verdict, reason) = outcome.labels();
                (format!("{verdict}_{reason}"), count.packets.into())
            })
            .collect();
        json!({
            "mode": self.mode.name(),
            "running": running.is_some(),
            "why_not": self.why_not,
            "interfaces": interfaces,
            "entries": figures.entries,
            "counters": counters,
        })
    }
}

/// For metrics.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// In the order of [`Outcome::ALL`].
    pub counts: [Count; Outcome::ALL.len()],
    /// Streams that it relays.
    pub entries: u64,
    /// Interfaces, and whether the program is on them.
    pub attached: Vec<(String, bool)>,
}

impl Running {
    fn open(config: &XdpConfig, place: Place<'_>) -> anyhow::Result<Self> {
        let plan = Plan {
            ports: place.ports,
            stream_limit: PAIR_LIMIT,
            largest_payload: MAX_PACKET as u32,
        };
        let mut xdp = RelayXdp::load(PROGRAM, &plan)?;
        allow_lookups(place.addresses)?;
        let hop_limit = |address: IpAddr| {
            let default = system::default_hop_limit(address);
            let default = default.unwrap_or(UdpHeaders::TTL);
            if place.is_shared {
                UdpHeaders::TTL
            } else {
                default
            }
        };
        let unspecified = |v6| -> IpAddr {
            if v6 {
                std::net::Ipv6Addr::UNSPECIFIED.into()
            } else {
                std::net::Ipv4Addr::UNSPECIFIED.into()
            }
        };
        let interfaces = Interfaces::attach(config, |name, mode| xdp.attach(name, mode))?;
        let mut running = Self {
            xdp,
            interfaces,
            hop_limit: [false, true].map(|v6| hop_limit(unspecified(v6))),
            entries: HashMap::new(),
        };
        let links = tunnel_io::links::list().context("cannot list the network devices")?;
        running.look_at(&links)?;
        Ok(running)
    }

    fn look_at(&mut self, links: &[Link]) -> anyhow::Result<bool> {
        let (interfaces, xdp) = (&mut self.interfaces, &mut self.xdp);
        let otherwise = "what comes here takes the way through the sockets";
        let attached = interfaces.look(links, |link| xdp.is_attached(link), otherwise);
        xdp.set_links(links, &attached)?;
        Ok(!attached.is_empty())
    }

    fn insert(
        &mut self,
        port: RelayPort,
        local: SocketAddr,
        exit: SocketAddr,
        route: &Route,
    ) -> anyhow::Result<()> {
        anyhow::ensure!(
            local.is_ipv4() == route.from.is_ipv4() && exit.is_ipv4() == route.to.is_ipv4(),
            "a peer of another IP version than its port"
        );
        let key = Key {
            local,
            remote: route.from,
        };
        let entry = Entry {
            source: exit,
            destination: route.to,
            ssrc: route.progress.ssrc,
            hop_limit: self.hop_limit[usize::from(exit.is_ipv6())],
        };
        self.xdp.insert(&key, &entry, &to_stream(&route.progress))?;
        let offloaded = Offloaded {
            key,
            ssrc: entry.ssrc,
            packets: 0,
            bytes: 0,
        };
        self.entries.insert(port, offloaded);
        Ok(())
    }
}

impl Offloaded {
    fn carried(&mut self, stream: &Stream) -> Carried {
        let carried = Carried {
            packets: stream.packets.saturating_sub(self.packets),
            bytes: stream.bytes.saturating_sub(self.bytes),
            progress: to_progress(self.ssrc, stream),
        };
        (self.packets, self.bytes) = (stream.packets, stream.bytes);
        carried
    }
}

/// What the program continues.
pub fn to_stream(progress: &Progress) -> Stream {
    let age = now().saturating_duration_since(progress.last);
    let age = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
    let bursts = &progress.bursts;
    Stream {
        last_ns: monotonic_ns().saturating_sub(age),
        received: progress.received,
        burst_since_loss: bursts.received,
        burst_lost: bursts.lost,
        burst_gap_received: bursts.gap_received,
        burst_alone: bursts.alone,
        burst_count: bursts.bursts,
        burst_received: bursts.burst_received,
        burst_losses: bursts.losses,
        burst_runs: bursts.runs,
        cycles: progress.cycles,
        last_timestamp: progress.timestamp,
        jitter_x16: progress.jitter_x16,
        clock_hz: progress.clock_hz.unwrap_or(0),
        highest: progress.highest,
        payload_type: progress.payload_type,
        ..Stream::default()
    }
}

/// What has become of it.
pub fn to_progress(ssrc: u32, stream: &Stream) -> Progress {
    let age = Duration::from_nanos(monotonic_ns().saturating_sub(stream.last_ns));
    let now: Instant = now();
    Progress {
        ssrc,
        highest: stream.highest,
        cycles: stream.cycles,
        received: stream.received,
        bursts: Bursts {
            received: stream.burst_since_loss,
            lost: stream.burst_lost,
            gap_received: stream.burst_gap_received,
            alone: stream.burst_alone,
            bursts: stream.burst_count,
            burst_received: stream.burst_received,
            losses: stream.burst_losses,
            runs: stream.burst_runs,
        },
        jitter_x16: stream.jitter_x16,
        clock_hz: Some(stream.clock_hz).filter(|hz| *hz > 0),
        last: now.checked_sub(age).unwrap_or(now),
        timestamp: stream.last_timestamp,
        payload_type: stream.payload_type,
    }
}
