//! What is counted of the announced routes.

use std::net::IpAddr;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AddressLabels {
    address: String,
}

/// Of all announced routes.
#[derive(Debug, Clone, Default)]
pub struct AnnouncementMetrics {
    announced: Family<AddressLabels, Gauge>,
    changes: Counter,
    restored: Counter,
    errors: Counter,
}

impl AnnouncementMetrics {
    /// Makes them and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "sipcast_ingress_announced",
            "1 while the route that announces a service address is in the kernel's table",
            metrics.announced.clone(),
        );
        registry.register(
            "sipcast_ingress_announcement_changes",
            "Changes between announced, draining and withdrawn",
            metrics.changes.clone(),
        );
        registry.register(
            "sipcast_ingress_routes_restored",
            "Announced routes that somebody else had removed",
            metrics.restored.clone(),
        );
        registry.register(
            "sipcast_ingress_route_errors",
            "Changes of announced routes that the kernel refused, one a second while it lasts",
            metrics.errors.clone(),
        );
        metrics
    }

    /// An address is announced or not.
    pub fn set_announced(&self, address: IpAddr, announced: bool) {
        let address = address.to_string();
        let gauge = self.announced.get_or_create(&AddressLabels { address });
        gauge.set(i64::from(announced));
    }

    /// Announced, draining, withdrawn: one after the other.
    pub fn count_change(&self) {
        self.changes.inc();
    }

    /// A route was missing and is there again.
    pub fn count_restored(&self) {
        self.restored.inc();
    }

    /// The kernel said no.
    pub fn count_error(&self) {
        self.errors.inc();
    }
}
