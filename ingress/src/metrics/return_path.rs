//! What is counted of the replies that come through the tunnel.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use crate::return_path::{Counts, Refusal};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PacketLabels {
    verdict: &'static str,
    reason: &'static str,
}

/// Of the return path.
#[derive(Debug, Clone)]
pub struct ReturnMetrics {
    forwarded: Counter,
    refused: [Counter; Refusal::ALL.len()],
}

impl ReturnMetrics {
    /// Makes them, all at 0 and all visible from the start, and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let packets = Family::<PacketLabels, Counter>::default();
        let counter = |verdict, reason| {
            let labels = PacketLabels { verdict, reason };
            packets.get_or_create_owned(&labels)
        };
        let metrics = Self {
            forwarded: counter("forward", ""),
            refused: Refusal::ALL.map(|refusal| counter("drop", refusal.label())),
        };
        registry.register(
            "sipcast_ingress_return_packets",
            "Packets that came back through the tunnel, by verdict and reason",
            packets,
        );
        metrics
    }

    /// Adds what happened in one wake-up.
    pub fn add(&self, counts: &Counts) {
        self.forwarded.inc_by(counts.forwarded);
        for (counter, refused) in self.refused.iter().zip(counts.refused) {
            counter.inc_by(refused);
        }
    }
}
