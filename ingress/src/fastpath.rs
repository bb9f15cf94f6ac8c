//! IO. The XDP program: opens it, tells it what the forwarder knows, and shows what it has done.
//!
//! It does on its own what [`crate::forwarder`] does, for the packets that are plain; the rest comes to the
//! TUN device as ever. Here it is told when other concentrators are chosen ([`FastPath::follow`]), and once
//! a second its counters are read and the devices of the machine looked at ([`FastPath::sample`]). Where
//! it does not run, the reason stands in the log and in `/status`, and nothing else is different.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};
use tokio::time::{Interval, MissedTickBehavior, interval};
pub use tunnel_io::steering::include_bytes_aligned;
use tunnel_io::xdp::Xdp;
use tunnel_io::xdp::interfaces::{Interfaces, XdpMode};
use tunnel_io::xdp::tables::{Candidate, Count, MAX_CANDIDATES, Outcome, Settings};
use tunnel_io::{links, system};
use wire::gre::TunnelKey;

use crate::choice::Choice;
use crate::choice::score::LOGARITHMS;
use crate::config::{Config, MAX_CONCENTRATORS};
use crate::metrics::fastpath::FastPathMetrics;

/// The program, or nothing where there was no clang to build it.
pub static PROGRAM: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/ingress.bpf.o"));

const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

const _: () = assert!(MAX_CONCENTRATORS <= MAX_CANDIDATES);

/// See the module.
#[derive(Debug)]
pub struct FastPath {
    running: Option<Running>,
    mode: XdpMode,
    why_not: Option<String>,
    metrics: FastPathMetrics,
    page: FastPathPage,
    tick: Interval,
}

#[derive(Debug)]
struct Running {
    xdp: Xdp,
    interfaces: Interfaces,
    settings: Settings,
    counts: [Count; Outcome::ALL.len()],
    sent: [u64; MAX_CANDIDATES],
}

/// What `/status` shows of it; clones share it.
#[derive(Debug, Clone, Default)]
pub struct FastPathPage(Arc<Mutex<Value>>);

impl FastPathPage {
    /// The object.
    pub fn get(&self) -> Value {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set(&self, value: Value) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = value;
    }
}

impl FastPath {
    /// Loads and attaches it as the configuration wants; fails where that is impossible and the
    /// configuration insists. Needs a tokio runtime.
    pub fn open(
        config: &Config,
        choice: &Choice,
        metrics: FastPathMetrics,
        page: FastPathPage,
    ) -> anyhow::Result<Self> {
        let mode = config.xdp.mode;
        let (running, why_not) = match (mode, mode != XdpMode::Off) {
            (_, false) => (None, Some("xdp.mode is \"off\"".to_owned())),
            (XdpMode::Auto, true) => match Running::open(config, choice) {
                Ok(running) => (Some(running), None),
                Err(error) => {
                    let reason = format!("{error:#}");
                    tracing::warn!(reason, "every packet takes the TUN path: no XDP here");
                    (None, Some(reason))
                }
            },
            (_, true) => {
                let running = Running::open(config, choice);
                let running = running.with_context(|| {
                    format!(
                        "xdp.mode is {:?}, and that is not possible here; \"auto\" does without",
                        mode.name()
                    )
                })?;
                (Some(running), None)
            }
        };
        let mut tick = interval(SAMPLE_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let path = Self {
            running,
            mode,
            why_not,
            metrics,
            page,
            tick,
        };
        path.publish();
        Ok(path)
    }

    /// Waits for the next sample to be due; for ever where there is nothing to sample.
    pub async fn wait(&mut self) {
        if self.running.is_none() {
            return std::future::pending().await;
        }
        self.tick.tick().await;
    }

    /// Tells it who is chosen, if that has changed.
    pub fn follow(&mut self, choice: &Choice) {
        let Some(running) = &mut self.running else {
            return;
        };
        let candidates = candidates(choice);
        if candidates == running.settings.candidates {
            return;
        }
        running.settings.candidates = candidates;
        if let Err(error) = running.xdp.set_settings(&running.settings) {
            self.give_up(error.into());
        }
    }

    /// From now on this is the key.
    pub fn set_key(&mut self, key: TunnelKey) {
        let Some(running) = &mut self.running else {
            return;
        };
        running.settings.tunnel_key = key.0;
        if let Err(error) = running.xdp.set_settings(&running.settings) {
            self.give_up(error.into());
        }
    }

    /// Reads the counters, and looks at the devices.
    pub fn sample(&mut self, choice: &mut Choice) {
        let Some(running) = &mut self.running else {
            return;
        };
        let before = running.counts;
        match running.sample(choice) {
            Ok(()) => self.metrics.add(&before, &running.counts),
            Err(error) => self.give_up(error),
        }
        self.publish();
    }

    /// Its tables cannot be kept up to date, so it must not go on.
    fn give_up(&mut self, error: anyhow::Error) {
        let reason = format!("{error:#}");
        tracing::error!(reason, "XDP is taken off: every packet takes the TUN path");
        self.running = None;
        self.why_not = Some(reason);
        self.publish();
    }

    fn publish(&self) {
        let running = self.running.as_ref();
        let interfaces: Vec<Value> = running
            .into_iter()
            .flat_map(|running| running.interfaces.iter())
            .map(|interface| {
                self.metrics
                    .set_attached(&interface.name, interface.is_attached);
                json!({
                    "name": interface.name,
                    "mode": interface.mode.name(),
                    "attached": interface.is_attached,
                })
            })
            .collect();
        self.page.set(json!({
            "mode": self.mode.name(),
            "running": running.is_some(),
            "why_not": self.why_not,
            "interfaces": interfaces,
            "counters": self.metrics.status(),
        }));
    }
}

impl Running {
    fn open(config: &Config, choice: &Choice) -> anyhow::Result<Self> {
        let mut xdp = Xdp::load(PROGRAM)?;
        let settings = settings(config, choice)?;
        xdp.set_services(&config.service_addresses)?;
        xdp.set_rules(config.limits.rules.iter().copied())?;
        xdp.set_settings(&settings)?;
        let attach = |name: &str, mode| xdp.attach(name, mode);
        let interfaces = Interfaces::attach(&config.xdp, attach)?;
        let mut running = Self {
            xdp,
            interfaces,
            settings,
            counts: Default::default(),
            sent: Default::default(),
        };
        running.look_at_devices()?;
        Ok(running)
    }

    fn sample(&mut self, choice: &mut Choice) -> anyhow::Result<()> {
        let (counts, sent) = (self.xdp.counts()?, self.xdp.sent()?);
        for (place, (now, before)) in sent.iter().zip(&self.sent).enumerate() {
            choice.count(place, now.saturating_sub(*before));
        }
        (self.counts, self.sent) = (counts, sent);
        self.look_at_devices()
    }

    fn look_at_devices(&mut self) -> anyhow::Result<()> {
        let links = links::list().context("cannot list the network devices")?;
        let (interfaces, xdp) = (&mut self.interfaces, &mut self.xdp);
        let otherwise = "what comes here takes the TUN path";
        let attached = interfaces.look(&links, |link| xdp.is_attached(link), otherwise);
        Ok(xdp.set_links(&links, &attached)?)
    }
}

/// What the program needs to forward as this configuration wants it.
pub fn settings(config: &Config, choice: &Choice) -> anyhow::Result<Settings> {
    let tunnel = &config.tunnel;
    let outer_hop_limit =
        system::default_hop_limit(tunnel.source).context("cannot read the default TTL")?;
    Ok(Settings {
        sources: tunnel.sources().collect(),
        encapsulation: tunnel.encapsulation,
        tunnel_key: config.relay.key.0,
        mtu: tunnel.mtu,
        mark: config.relay.mark.number(),
        outer_dscp: tunnel.outer_dscp,
        outer_hop_limit,
        hash_key: tunnel.hash_key.0,
        logarithms: LOGARITHMS,
        candidates: candidates(choice),
        source_limit: config.limits.source,
        total_limit: config.limits.total,
        has_rules: !config.limits.rules.is_empty(),
    })
}

fn candidates(choice: &Choice) -> Vec<Candidate> {
    let chosen = choice.chosen();
    let candidate = |(place, one): (usize, crate::config::Concentrator)| Candidate {
        address: one.address,
        weight: one.weight.max(1).into(),
        place: u32::try_from(place).unwrap_or(u32::MAX),
    };
    chosen.map(candidate).collect()
}
