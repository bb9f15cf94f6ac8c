//! What is counted of the XDP program's packets.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde_json::{Map, Value};
use tunnel_io::xdp::tables::{Count, Outcome};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PacketLabels {
    verdict: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InterfaceLabels {
    interface: String,
}

/// Cloning gives another handle to the same counters.
#[derive(Debug, Clone)]
pub struct FastPathMetrics {
    packets: [Counter; Outcome::ALL.len()],
    forwarded_bytes: Counter,
    attached: Family<InterfaceLabels, Gauge>,
}

impl FastPathMetrics {
    /// Makes them, all at 0 and all visible from the start, and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let packets = Family::<PacketLabels, Counter>::default();
        let metrics = Self {
            packets: Outcome::ALL.map(|outcome| {
                let (verdict, reason) = outcome.labels();
                packets
                    .get_or_create(&PacketLabels { verdict, reason })
                    .clone()
            }),
            forwarded_bytes: Counter::default(),
            attached: Family::default(),
        };
        registry.register(
            "sipcast_ingress_xdp_packets",
            "Packets that the XDP program has seen, by verdict and reason",
            packets,
        );
        registry.register(
            "sipcast_ingress_xdp_bytes",
            "Bytes of the packets that the XDP program has forwarded, without tunnel headers",
            metrics.forwarded_bytes.clone(),
        );
        registry.register(
            "sipcast_ingress_xdp_attached",
            "1 while the XDP program is on this interface",
            metrics.attached.clone(),
        );
        metrics
    }

    /// Adds what has happened from one sample to the next.
    pub fn add(&self, before: &[Count], now: &[Count]) {
        let counters = Outcome::ALL.into_iter().zip(&self.packets);
        for ((outcome, counter), (before, now)) in counters.zip(before.iter().zip(now)) {
            counter.inc_by(now.packets.saturating_sub(before.packets));
            if outcome.is_forwarded() {
                let bytes = now.bytes.saturating_sub(before.bytes);
                self.forwarded_bytes.inc_by(bytes);
            }
        }
    }

    /// Is it on this interface?
    pub fn set_attached(&self, interface: &str, is_attached: bool) {
        let interface = interface.to_owned();
        let gauge = self.attached.get_or_create(&InterfaceLabels { interface });
        gauge.set(is_attached.into());
    }

    /// Packets by `verdict_reason`, for the status page.
    pub fn status(&self) -> Value {
        let counters = Outcome::ALL.iter().zip(&self.packets);
        let counters: Map<_, _> = counters
            .map(|(outcome, counter)| {
                let (verdict, reason) = outcome.labels();
                (format!("{verdict}_{reason}"), counter.get().into())
            })
            .collect();
        Value::Object(counters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_since_the_last_sample_is_added() {
        let mut registry = Registry::default();
        let metrics = FastPathMetrics::register(&mut registry);
        let count = |packets, bytes| [Count { packets, bytes }; Outcome::ALL.len()];
        metrics.add(&count(1, 100), &count(4, 900));
        metrics.set_attached("eth0", true);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "sipcast_ingress_xdp_packets_total{verdict=\"forward\",reason=\"back\"} 3",
            "sipcast_ingress_xdp_packets_total{verdict=\"pass\",reason=\"too_big\"} 3",
            "sipcast_ingress_xdp_bytes_total 1600",
            "sipcast_ingress_xdp_attached{interface=\"eth0\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert_eq!(metrics.status()["drop_denied"], 3);
    }
}
