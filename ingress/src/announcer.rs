//! IO. Has the announced routes in the kernel's main table as [`crate::announcement`] wants them.
//!
//! Once a second they are put there again, so that one which somebody has removed comes back and one
//! that the kernel refused is tried anew. An error is logged when it appears and when it is gone;
//! forwarding goes on in any case, since its routes are others.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tunnel_io::routes::AnnouncedRoute;
use tunnel_io::tun::TunDevice;

use crate::announcement::{Announcement, Route};
use crate::config::{AnnouncementConfig, Config};
use crate::metrics::announcement::AnnouncementMetrics;

/// How often the table is looked after.
const CHECK: Duration = Duration::from_secs(1);

/// See the module. Dropping it withdraws.
#[derive(Debug)]
pub struct Announcer {
    config: AnnouncementConfig,
    core: Announcement,
    routes: Vec<AnnouncedRoute>,
    next_check: Instant,
    applied: Option<Route>,
    errors: BTreeMap<IpAddr, String>,
    ends_at: Option<Instant>,
    metrics: AnnouncementMetrics,
    page: AnnouncementPage,
}

/// What `/status` shows of the announcement; clones share it.
#[derive(Debug, Clone, Default)]
pub struct AnnouncementPage(Arc<Mutex<Value>>);

impl AnnouncementPage {
    /// The section.
    pub fn get(&self) -> Value {
        let page = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        page.clone()
    }

    fn set(&self, value: Value) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = value;
    }
}

impl Announcer {
    /// Nothing is announced before the first [`Announcer::step`].
    pub fn new(
        config: &Config,
        device: &TunDevice,
        metrics: AnnouncementMetrics,
        page: AnnouncementPage,
        now: Instant,
    ) -> Self {
        let protocol = config.announcement.marking.protocol;
        let prefixes = config.announcement.prefixes.iter();
        Self {
            config: config.announcement.clone(),
            core: Announcement::new(config.announcement.settings),
            routes: prefixes
                .map(|prefix| AnnouncedRoute::new(prefix.ip(), prefix.prefix(), device, protocol))
                .collect(),
            next_check: now,
            applied: None,
            errors: BTreeMap::new(),
            ends_at: None,
            metrics,
            page,
        }
    }

    /// Waits until [`Announcer::step`] has something to do. May be dropped at any time.
    pub async fn wait(&self, now: Instant) {
        let deadlines = [
            Some(self.next_check),
            self.core.poll_timeout(now),
            self.ends_at,
        ];
        let deadline = deadlines.into_iter().flatten().min();
        tokio::time::sleep_until(deadline.unwrap_or(self.next_check).into()).await;
    }

    /// Drains, or serves again.
    pub fn set_draining(&mut self, draining: bool, now: Instant) {
        if self.ends_at.is_none() {
            self.core.set_draining(draining, now);
        }
    }

    /// Drains for good. What is announced still is for some seconds, and forwarding lasts longer.
    pub fn end(&mut self, now: Instant) {
        let lasts = match self.core.route(now) {
            Route::Normal => self.config.settings.graceful + self.config.linger,
            Route::Draining => self.config.linger,
            Route::Absent => Duration::ZERO,
        };
        self.core.set_draining(true, now);
        self.ends_at = Some(now + lasts);
        if !lasts.is_zero() {
            tracing::info!(seconds = lasts.as_secs_f64(), "withdrawing, then ending");
        }
    }

    /// The end is requested.
    pub fn is_ending(&self) -> bool {
        self.ends_at.is_some()
    }

    /// The time has come to end.
    pub fn is_over(&self, now: Instant) -> bool {
        self.ends_at.is_some_and(|at| now >= at)
    }

    /// Brings the table up to date.
    pub fn step(&mut self, serving: bool, now: Instant) {
        self.core.update(serving, now);
        let route = self.core.route(now);
        if self.applied != Some(route) {
            if self.applied.is_some() {
                self.metrics.count_change();
                tracing::info!(state = self.core.state(now), "the announcement changes");
            }
            self.applied = Some(route);
        } else if now < self.next_check {
            return;
        }
        self.next_check = now + CHECK;
        self.apply(route);
        self.publish(now);
    }

    fn apply(&mut self, route: Route) {
        let metric = match route {
            Route::Absent => None,
            Route::Normal => Some(self.config.metric),
            Route::Draining => Some(self.config.drain_metric),
        };
        for route in &mut self.routes {
            let address = route.destination();
            let stood = route.metric() == metric && metric.is_some();
            match route.set(metric) {
                Ok(changed) => {
                    if changed && stood {
                        tracing::warn!(%address, "somebody had removed the announced route");
                        self.metrics.count_restored();
                    }
                    if self.errors.remove(&address).is_some() {
                        tracing::info!(%address, "the announced route is in order again");
                    }
                }
                Err(error) => {
                    self.metrics.count_error();
                    let error = error.to_string();
                    let before = self.errors.insert(address, error.clone());
                    if before.as_ref() != Some(&error) {
                        tracing::error!("the announcement is not as it should be: {error}");
                    }
                }
            }
            self.metrics
                .set_announced(address, route.metric().is_some());
        }
    }

    fn publish(&self, now: Instant) {
        let routes = self.routes.iter().map(|route| {
            json!({
                "address": route.destination(),
                "metric": route.metric(),
                "error": self.errors.get(&route.destination()),
            })
        });
        self.page.set(json!({
            "state": self.core.state(now),
            "protocol": self.config.marking.protocol,
            "ending": self.ends_at.is_some(),
            "routes": routes.collect::<Vec<_>>(),
        }));
    }
}
