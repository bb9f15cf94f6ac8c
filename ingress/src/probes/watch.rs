//! IO. Sends the probes, reads the answers, and says what has changed.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::Value;
use tunnel_io::gre_socket::{GrePacket, GreSocket};
use wire::gre::TunnelKey;

use super::path::Event;
use super::paths::Paths;
use super::socket::AnswerSocket;
use crate::choice::Choice;
use crate::config::Config;
use crate::metrics::paths::{PathMetrics, status};

/// All paths, with their socket.
#[derive(Debug)]
pub struct Watch {
    paths: Paths,
    socket: AnswerSocket,
    started: Instant,
    metrics: PathMetrics,
    page: Page,
}

/// What `/status` shows of the paths; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Page(Arc<Mutex<Shown>>);

#[derive(Debug, Default)]
struct Shown {
    paths: Vec<Value>,
    is_any_serving: bool,
}

impl Page {
    /// One object for each concentrator.
    pub fn paths(&self) -> Vec<Value> {
        self.lock().paths.clone()
    }

    /// Some concentrator serves.
    pub fn is_any_serving(&self) -> bool {
        self.lock().is_any_serving
    }

    fn set(&self, shown: Shown) {
        *self.lock() = shown;
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    /// Opens the socket; probing begins with the first [`Watch::step`].
    pub async fn open(
        config: &Config,
        metrics: PathMetrics,
        page: Page,
        now: Instant,
    ) -> anyhow::Result<Self> {
        let own = SocketAddr::new(config.tunnel.source, config.probes.port);
        let socket = AnswerSocket::bind(own).await.with_context(|| {
            format!("cannot receive answers to probes on {own}; change probes.port")
        })?;
        // The keys of a RandomState are the standard library's randomness.
        let random = || RandomState::new().build_hasher().finish() as u32;
        Ok(Self {
            paths: Paths::new(config, random, now),
            socket,
            started: now,
            metrics,
            page,
        })
    }

    /// Probes carry this key from now on.
    pub fn set_key(&mut self, key: TunnelKey) {
        self.paths.set_key(key);
    }

    /// Waits for an answer or the next deadline. May be dropped at any time.
    pub async fn wait(&self) {
        let Some(deadline) = self.paths.poll_timeout() else {
            return self.socket.readable().await;
        };
        tokio::select! {
            () = self.socket.readable() => {}
            () = tokio::time::sleep_until(deadline.into()) => {}
        }
    }

    /// Handles what has come and what is due, and tells `choice` what is known of each. True while some concentrator serves.
    pub fn step(&mut self, tunnel: &GreSocket, choice: &mut Choice, now: Instant) -> bool {
        let Self {
            paths,
            socket,
            metrics,
            ..
        } = self;
        socket.drain(|from, payload| {
            if let Err(reason) = paths.handle_datagram(from, payload, now) {
                tracing::debug!(%from, reason = reason.label(), "an answer that does not count");
                metrics.count_rejected(reason, 1);
            }
        });
        let mut due = false;
        if paths.poll_timeout().is_some_and(|at| at <= now) {
            let clock = now.saturating_duration_since(self.started).as_micros();
            let probes = paths.handle_timeout(now, u64::try_from(clock).unwrap_or(u64::MAX));
            let packets: Vec<_> = probes
                .iter()
                .map(|probe| GrePacket {
                    to: probe.concentrator,
                    header: probe.header,
                    inner: &probe.inner,
                })
                .collect();
            let report = tunnel.send_batch(&packets);
            metrics.count_unsent(packets.len() as u64 - report.sent);
            due = true;
        }
        while let Some((concentrator, event)) = self.paths.poll_event() {
            self.log(concentrator, event);
            due = true;
        }
        for (concentrator, report) in self.paths.reports() {
            choice.set(concentrator, report.fitness());
        }
        if due {
            self.publish(choice, now);
        }
        self.paths.is_any_serving()
    }

    fn publish(&self, choice: &Choice, now: Instant) {
        // Both are in the order of the config.
        let paths = self.paths.reports().zip(choice.shares());
        let paths = paths.map(|((_, report), share)| {
            self.metrics.set(&share, &report);
            status(&share, &report, now)
        });
        self.page.set(Shown {
            paths: paths.collect(),
            is_any_serving: self.paths.is_any_serving(),
        });
    }

    fn log(&self, concentrator: IpAddr, event: Event) {
        let mut reports = self.paths.reports();
        let report = reports.find(|(of, _)| *of == concentrator);
        let round_trip = report.and_then(|(_, report)| report.round_trip);
        match event {
            Event::Up => tracing::info!(
                %concentrator,
                round_trip_ms = round_trip.as_ref().map(Duration::as_millis),
                "the concentrator answers"
            ),
            Event::Down => tracing::warn!(
                %concentrator,
                "the concentrator does not answer: it or the way to it is down, or it does not know \
                 our tunnel.source, key or mark"
            ),
            Event::Standing(standing) => {
                tracing::warn!(%concentrator, ?standing, "the concentrator's state changed");
            }
            Event::MtuTooSmall => tracing::warn!(
                %concentrator,
                "packets of tunnel.mtu get lost, short ones do not: the path's MTU is too small"
            ),
            Event::MtuFits => tracing::info!(%concentrator, "packets of tunnel.mtu arrive"),
        }
    }
}
