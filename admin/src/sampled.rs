//! Counters that somebody else keeps, such as the kernel: read at each scrape of `/metrics`.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Registry;

/// Adds a counter to the registry. `sample` reads it; where it has no figure, the page shows none.
pub fn register_counter(
    registry: &mut Registry,
    name: &'static str,
    help: &'static str,
    sample: impl Fn() -> Option<u64> + Send + Sync + 'static,
) {
    registry.register_collector(Box::new(Sampled { name, help, sample }));
}

struct Sampled<F> {
    name: &'static str,
    help: &'static str,
    sample: F,
}

impl<F> fmt::Debug for Sampled<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sampled({})", self.name)
    }
}

impl<F: Fn() -> Option<u64> + Send + Sync + 'static> Collector for Sampled<F> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(value) = (self.sample)() else {
            return Ok(());
        };
        let counter = ConstCounter::new(value);
        counter.encode(encoder.encode_descriptor(
            self.name,
            self.help,
            None,
            counter.metric_type(),
        )?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_read_at_each_scrape_and_absent_while_there_is_no_figure() {
        let mut registry = Registry::default();
        register_counter(&mut registry, "sipcast_kernel_drops", "Drops", || Some(17));
        register_counter(&mut registry, "sipcast_nothing", "Nothing", || None);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("sipcast_kernel_drops_total 17"), "{text}");
        assert!(!text.contains("sipcast_nothing"), "{text}");
    }
}
