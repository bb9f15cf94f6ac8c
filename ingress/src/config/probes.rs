//! `[probes]`: how the ways to the concentrators are watched.

use std::time::Duration;

use serde::Deserialize;

use crate::probes::path::Settings;

/// The shortest interval: answers of a second must fit what is remembered.
const MIN_INTERVAL_MS: u64 = 20;
const MAX_INTERVAL_MS: u64 = 10_000;

/// The checked section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probes {
    /// When and how often.
    pub settings: Settings,
    /// The UDP port here and at the concentrator.
    pub port: u16,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ProbesSection {
    interval_ms: u64,
    misses: u32,
    answers: u32,
    pad_every: u32,
    port: u16,
}

impl Default for ProbesSection {
    fn default() -> Self {
        Self {
            interval_ms: 100,
            misses: 3,
            answers: 5,
            pad_every: 10,
            port: wire::probe::DEFAULT_PORT,
        }
    }
}

impl ProbesSection {
    pub(super) fn check(&self) -> Result<Probes, (&'static str, String)> {
        if !(MIN_INTERVAL_MS..=MAX_INTERVAL_MS).contains(&self.interval_ms) {
            let message = format!(
                "{} is not between {MIN_INTERVAL_MS} and {MAX_INTERVAL_MS}",
                self.interval_ms
            );
            return Err(("probes.interval_ms", message));
        }
        for (key, value, minimum, why) in [
            // Else a padded probe that gets lost would be an outage.
            (
                "probes.misses",
                self.misses,
                2,
                "one lost packet is no outage",
            ),
            (
                "probes.answers",
                self.answers,
                1,
                "none would be up at once",
            ),
            (
                "probes.pad_every",
                self.pad_every,
                3,
                "a padded probe stands between two short ones",
            ),
        ] {
            if !(minimum..=1_000).contains(&value) {
                let message = format!("{value} is not between {minimum} and 1000: {why}");
                return Err((key, message));
            }
        }
        if self.port == 0 {
            return Err((
                "probes.port",
                "0 is not a port that can be written to".to_owned(),
            ));
        }
        Ok(Probes {
            settings: Settings {
                interval: Duration::from_millis(self.interval_ms),
                misses: self.misses,
                answers: self.answers,
                pad_every: self.pad_every,
            },
            port: self.port,
        })
    }
}
