//! What is counted, by name. Cloning gives another handle to the same counters.

pub mod announcement;
pub mod fastpath;
pub mod paths;
pub mod return_path;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use serde_json::{Map, Value, json};
use tunnel_io::send_report::{SendFailure, SendReport};

use crate::classify::DropReason;
use crate::forwarder::Counts;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PacketLabels {
    verdict: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabels {
    kind: &'static str,
}

/// The counters of the ingress.
#[derive(Debug, Clone)]
pub struct Metrics {
    forwarded_packets: Counter,
    forwarded_bytes: Counter,
    dropped: [Counter; DropReason::ALL.len()],
    sent: Counter,
    send_failed: [Counter; SendFailure::ALL.len()],
}

impl Metrics {
    /// Makes the counters, all at 0 and all visible from the start, and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let packets = Family::<PacketLabels, Counter>::default();
        let packet_counter = |verdict, reason| {
            packets
                .get_or_create(&PacketLabels { verdict, reason })
                .clone()
        };
        let failures = Family::<FailureLabels, Counter>::default();
        let metrics = Self {
            forwarded_packets: packet_counter("forward", ""),
            forwarded_bytes: Counter::default(),
            dropped: DropReason::ALL.map(|reason| packet_counter("drop", reason.label())),
            sent: Counter::default(),
            send_failed: SendFailure::ALL.map(|failure| {
                failures
                    .get_or_create(&FailureLabels {
                        kind: failure.label(),
                    })
                    .clone()
            }),
        };
        registry.register(
            "sipcast_ingress_packets",
            "Packets captured, by verdict and reason",
            packets,
        );
        registry.register(
            "sipcast_ingress_bytes",
            "Bytes of the packets to be forwarded, without tunnel headers",
            metrics.forwarded_bytes.clone(),
        );
        registry.register(
            "sipcast_ingress_sent_packets",
            "Packets that the kernel took for the tunnel",
            metrics.sent.clone(),
        );
        registry.register(
            "sipcast_ingress_send_errors",
            "Packets that the kernel did not take for the tunnel, by kind of error",
            failures,
        );
        metrics
    }

    /// Adds what happened in one wake-up.
    pub fn add(&self, counts: &Counts, report: &SendReport) {
        self.forwarded_packets.inc_by(counts.forwarded_packets);
        self.forwarded_bytes.inc_by(counts.forwarded_bytes);
        for (counter, (_, dropped)) in self.dropped.iter().zip(counts.dropped()) {
            counter.inc_by(dropped);
        }
        self.sent.inc_by(report.sent);
        for (counter, (_, failed)) in self.send_failed.iter().zip(report.failures()) {
            counter.inc_by(failed);
        }
    }

    /// The counters for the status page.
    pub fn status(&self) -> Value {
        let dropped: Map<_, _> = DropReason::ALL
            .iter()
            .zip(&self.dropped)
            .map(|(reason, counter)| (reason.label().to_owned(), counter.get().into()))
            .collect();
        let failed: Map<_, _> = SendFailure::ALL
            .iter()
            .zip(&self.send_failed)
            .map(|(failure, counter)| (failure.label().to_owned(), counter.get().into()))
            .collect();
        json!({
            "forwarded_packets": self.forwarded_packets.get(),
            "forwarded_bytes": self.forwarded_bytes.get(),
            "dropped_packets": dropped,
            "sent_packets": self.sent.get(),
            "send_errors": failed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_and_error_is_visible_from_the_start() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let mut counts = Counts::default();
        (counts.forwarded_packets, counts.forwarded_bytes) = (2, 80);
        let mut report = SendReport::default();
        report.sent = 2;
        metrics.add(&counts, &report);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "sipcast_ingress_packets_total{verdict=\"forward\",reason=\"\"} 2",
            "sipcast_ingress_packets_total{verdict=\"drop\",reason=\"truncated\"} 0",
            "sipcast_ingress_bytes_total 80",
            "sipcast_ingress_sent_packets_total 2",
            "sipcast_ingress_send_errors_total{kind=\"too_big\"} 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert_eq!(metrics.status()["dropped_packets"]["not_ip"], 0);
    }
}
