//! What is counted and shown of the ways to the concentrators.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use wire::probe::State as Standing;

use crate::choice::Share;
use crate::probes::path::{Counts, Rejection, Report, State};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PathLabels {
    concentrator: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    concentrator: String,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProbeLabels {
    concentrator: String,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

type Ratio = Gauge<f64, AtomicU64>;

/// Of all paths.
#[derive(Debug, Clone, Default)]
pub struct PathMetrics {
    states: Family<StateLabels, Gauge>,
    round_trip: Family<PathLabels, Ratio>,
    load: Family<PathLabels, Ratio>,
    mtu_too_small: Family<PathLabels, Gauge>,
    probes: Family<ProbeLabels, Counter>,
    chosen: Family<PathLabels, Gauge>,
    packets: Family<PathLabels, Counter>,
    unsent: Counter,
    rejected: Family<ReasonLabels, Counter>,
}

impl PathMetrics {
    /// Makes them, all visible from the start, and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        for reason in Rejection::ALL {
            metrics.count_rejected(reason, 0);
        }
        registry.register(
            "sipcast_ingress_path_state",
            "1 for the state that the path to a concentrator is in",
            metrics.states.clone(),
        );
        registry.register(
            "sipcast_ingress_path_round_trip_seconds",
            "Smoothed round trip of probes",
            metrics.round_trip.clone(),
        );
        registry.register(
            "sipcast_ingress_path_load_ratio",
            "What the concentrator says of its load, 0 to 1",
            metrics.load.clone(),
        );
        registry.register(
            "sipcast_ingress_path_mtu_too_small",
            "1 where packets of full length get lost and short ones do not",
            metrics.mtu_too_small.clone(),
        );
        registry.register(
            "sipcast_ingress_path_chosen",
            "1 where packets of user agents go to this concentrator, or a share of them",
            metrics.chosen.clone(),
        );
        registry.register(
            "sipcast_ingress_path_packets",
            "Packets of user agents that have gone to this concentrator",
            metrics.packets.clone(),
        );
        registry.register(
            "sipcast_ingress_probes",
            "Probes by what became of them",
            metrics.probes.clone(),
        );
        registry.register(
            "sipcast_ingress_probes_unsent",
            "Probes that the kernel did not take",
            metrics.unsent.clone(),
        );
        registry.register(
            "sipcast_ingress_probe_answers_rejected",
            "Answers that did not count, by reason",
            metrics.rejected.clone(),
        );
        metrics
    }

    /// Counts answers that did not count.
    pub fn count_rejected(&self, reason: Rejection, count: u64) {
        let labels = ReasonLabels {
            reason: reason.label(),
        };
        self.rejected.get_or_create(&labels).inc_by(count);
    }

    /// Counts probes that were not sent.
    pub fn count_unsent(&self, count: u64) {
        self.unsent.inc_by(count);
    }

    /// Brings one path up to date.
    pub fn set(&self, share: &Share, report: &Report) {
        let concentrator = share.concentrator.address.to_string();
        let name = state_name(report);
        for state in STATES {
            let labels = StateLabels {
                concentrator: concentrator.clone(),
                state,
            };
            let gauge = self.states.get_or_create(&labels);
            gauge.set(i64::from(state == name));
        }
        for (result, total) in results(&report.counts) {
            let labels = ProbeLabels {
                concentrator: concentrator.clone(),
                result,
            };
            let counter = self.probes.get_or_create(&labels);
            counter.inner().store(total, Ordering::Relaxed);
        }
        let labels = PathLabels { concentrator };
        let chosen = self.chosen.get_or_create(&labels);
        chosen.set(share.is_chosen.into());
        let packets = self.packets.get_or_create(&labels);
        packets.inner().store(share.packets, Ordering::Relaxed);
        let too_small = report.mtu_fits == Some(false);
        let gauge = self.mtu_too_small.get_or_create(&labels);
        gauge.set(i64::from(too_small));
        if let Some(round_trip) = report.round_trip {
            let gauge = self.round_trip.get_or_create(&labels);
            gauge.set(round_trip.as_secs_f64());
        }
        if let Some((_, load)) = report.said {
            self.load.get_or_create(&labels).set(ratio(load));
        }
    }
}

/// One path for the status page.
pub fn status(share: &Share, report: &Report, now: Instant) -> Value {
    let results = results(&report.counts).map(|(name, total)| (name.to_owned(), total.into()));
    let milliseconds = |round_trip: std::time::Duration| round_trip.as_secs_f64() * 1000.0;
    json!({
        "concentrator": share.concentrator.address,
        "weight": share.concentrator.weight,
        "chosen": share.is_chosen,
        "packets": share.packets,
        "state": state_name(report),
        "for_s": now.saturating_duration_since(report.since).as_secs_f64(),
        "round_trip_ms": report.round_trip.map(milliseconds),
        "load": report.said.map(|(_, load)| ratio(load)),
        "mtu": match report.mtu_fits {
            None => "unknown",
            Some(true) => "fits",
            Some(false) => "too small",
        },
        "probes": Value::Object(results.into_iter().collect()),
    })
}

const STATES: [&str; 5] = ["starting", "down", "serving", "draining", "not_ready"];

/// One word for whether answers come and what they say.
pub fn state_name(report: &Report) -> &'static str {
    match (report.state, report.said) {
        (State::Starting, _) => "starting",
        (State::Down, _) => "down",
        (State::Up, None | Some((Standing::Serving, _))) => "serving",
        (State::Up, Some((Standing::Draining, _))) => "draining",
        (State::Up, Some((Standing::NotReady, _))) => "not_ready",
    }
}

fn results(counts: &Counts) -> [(&'static str, u64); 4] {
    [
        ("sent", counts.sent),
        ("answered", counts.answered),
        ("missed", counts.missed),
        ("padded_missed", counts.padded_missed),
    ]
}

fn ratio(load: u16) -> f64 {
    f64::from(load) / f64::from(u16::MAX)
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "tests need some instant to count from"
)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Concentrator;

    #[test]
    fn a_path_shows_its_state_and_its_figures() {
        let mut registry = Registry::default();
        let metrics = PathMetrics::register(&mut registry);
        let report = Report {
            state: State::Up,
            since: Instant::now(),
            said: Some((Standing::Draining, u16::MAX)),
            round_trip: Some(Duration::from_millis(40)),
            mtu_fits: Some(false),
            counts: Counts {
                sent: 9,
                answered: 7,
                missed: 1,
                padded_missed: 1,
            },
        };
        let share = Share {
            concentrator: Concentrator {
                address: "10.0.9.2".parse().unwrap(),
                weight: 100,
            },
            is_chosen: true,
            packets: 12,
        };
        metrics.set(&share, &report);
        metrics.count_rejected(Rejection::Duplicate, 2);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "path_state{concentrator=\"10.0.9.2\",state=\"draining\"} 1",
            "path_state{concentrator=\"10.0.9.2\",state=\"down\"} 0",
            "path_round_trip_seconds{concentrator=\"10.0.9.2\"} 0.04",
            "path_load_ratio{concentrator=\"10.0.9.2\"} 1.0",
            "path_mtu_too_small{concentrator=\"10.0.9.2\"} 1",
            "path_chosen{concentrator=\"10.0.9.2\"} 1",
            "path_packets_total{concentrator=\"10.0.9.2\"} 12",
            "probes_total{concentrator=\"10.0.9.2\",result=\"answered\"} 7",
            "probe_answers_rejected_total{reason=\"duplicate\"} 2",
            "probe_answers_rejected_total{reason=\"stranger\"} 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        let page = status(&share, &report, report.since);
        assert_eq!(page["state"], "draining");
        assert_eq!(page["mtu"], "too small");
        assert_eq!(page["round_trip_ms"], 40.0);
        assert_eq!(page["probes"]["missed"], 1);
    }
}
