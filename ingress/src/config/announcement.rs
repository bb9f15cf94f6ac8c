//! `[announcement]`: the routes that the BGP speaker redistributes.

use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;
use serde::Deserialize;
use tunnel_io::routes::Marking;

use crate::announcement::Settings;

/// Up to 4 the kernel gives them a meaning; 196 and the like are routing daemons'.
const MIN_PROTOCOL: u8 = 5;
/// Tables that the kernel has itself: 253 default, 254 main, 255 local.
const KERNEL_TABLES: std::ops::RangeInclusive<u32> = 253..=255;
/// The upper byte is a distance to FRR.
const MAX_METRIC: u32 = 0xff_ffff;

/// The checked section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnnouncementConfig {
    /// What is announced; together they hold all service addresses.
    pub prefixes: Vec<IpNetwork>,
    /// When there is a route.
    pub settings: Settings,
    /// How ours are told from others.
    pub marking: Marking,
    /// The metric of an announced route.
    pub metric: u32,
    /// The metric of one that is about to go.
    pub drain_metric: u32,
    /// How long packets are still forwarded after the end is requested and the routes are gone.
    pub linger: Duration,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AnnouncementSection {
    prefixes: Option<Vec<IpNetwork>>,
    protocol: u8,
    table: u32,
    metric: u32,
    drain_metric: u32,
    withdraw_after_ms: u64,
    hold_down_s: u64,
    hold_down_max_s: u64,
    graceful_s: u64,
    linger_s: u64,
    fail_open: bool,
}

impl Default for AnnouncementSection {
    fn default() -> Self {
        Self {
            prefixes: None,
            protocol: 60,
            table: 5_060,
            metric: 100,
            drain_metric: 200,
            withdraw_after_ms: 1_000,
            hold_down_s: 10,
            hold_down_max_s: 300,
            graceful_s: 5,
            linger_s: 10,
            fail_open: false,
        }
    }
}

impl AnnouncementSection {
    pub(super) fn check(
        &self,
        service_addresses: &[IpAddr],
    ) -> Result<AnnouncementConfig, (&'static str, String)> {
        let prefixes = self.check_prefixes(service_addresses)?;
        if self.protocol < MIN_PROTOCOL {
            let message = format!("{} is the kernel's own; use 5 to 255", self.protocol);
            return Err(("announcement.protocol", message));
        }
        if self.table == 0 || KERNEL_TABLES.contains(&self.table) {
            let message = format!("{} is the kernel's own table; use another", self.table);
            return Err(("announcement.table", message));
        }
        for (key, metric) in [
            ("announcement.metric", self.metric),
            ("announcement.drain_metric", self.drain_metric),
        ] {
            if !(1..=MAX_METRIC).contains(&metric) {
                let message = format!("{metric} is not between 1 and {MAX_METRIC}");
                return Err((key, message));
            }
        }
        if self.metric == self.drain_metric {
            let message =
                "it must differ from announcement.metric: that is what the BGP speaker sees";
            return Err(("announcement.drain_metric", message.to_owned()));
        }
        for (key, seconds) in [
            (
                "announcement.withdraw_after_ms",
                self.withdraw_after_ms / 1_000,
            ),
            ("announcement.hold_down_s", self.hold_down_s),
            ("announcement.hold_down_max_s", self.hold_down_max_s),
            ("announcement.graceful_s", self.graceful_s),
            ("announcement.linger_s", self.linger_s),
        ] {
            if seconds > 86_400 {
                return Err((key, "it is longer than a day".to_owned()));
            }
        }
        if self.hold_down_max_s < self.hold_down_s {
            let message = "it must not be less than announcement.hold_down_s";
            return Err(("announcement.hold_down_max_s", message.to_owned()));
        }
        Ok(AnnouncementConfig {
            prefixes,
            settings: Settings {
                withdraw_after: Duration::from_millis(self.withdraw_after_ms),
                hold_down: Duration::from_secs(self.hold_down_s),
                hold_down_max: Duration::from_secs(self.hold_down_max_s),
                graceful: Duration::from_secs(self.graceful_s),
                fail_open: self.fail_open,
            },
            marking: Marking {
                protocol: self.protocol,
                table: self.table,
            },
            metric: self.metric,
            drain_metric: self.drain_metric,
            linger: Duration::from_secs(self.linger_s),
        })
    }

    /// Each address by itself where nothing else is said.
    fn check_prefixes(
        &self,
        service_addresses: &[IpAddr],
    ) -> Result<Vec<IpNetwork>, (&'static str, String)> {
        const KEY: &str = "announcement.prefixes";
        let Some(prefixes) = &self.prefixes else {
            return Ok(service_addresses
                .iter()
                .map(|address| (*address).into())
                .collect());
        };
        for (place, prefix) in prefixes.iter().enumerate() {
            if prefix.ip() != prefix.network() {
                let message = format!("{prefix} has bits behind its length; {}?", prefix.network());
                return Err((KEY, message));
            }
            if prefixes[..place].contains(prefix) {
                return Err((KEY, format!("{prefix} is named twice; remove one")));
            }
            if !service_addresses
                .iter()
                .any(|address| prefix.contains(*address))
            {
                return Err((KEY, format!("there is no service address in {prefix}")));
            }
        }
        let is_announced = |address: &&IpAddr| prefixes.iter().any(|of| of.contains(**address));
        match service_addresses
            .iter()
            .find(|address| !is_announced(address))
        {
            Some(address) => Err((KEY, format!("{address} is in none of them"))),
            None => Ok(prefixes.clone()),
        }
    }
}
