//! The network of the drawing in [`super`].

use std::net::Ipv4Addr;

use anyhow::Result;

use super::super::load::Phones;
use crate::link::{self, End, Shape};
use crate::namespace::Namespace;
use crate::topology::two_edges::{CONCENTRATOR, EDGE1, SERVICE};

const PHONES: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 1);
/// Where phones send media to.
pub(super) const MEDIA: Ipv4Addr = Ipv4Addr::new(10, 0, 6, 2);
/// Where the relay is asked for sessions.
pub(super) const CONTROL: Ipv4Addr = Ipv4Addr::new(10, 0, 7, 2);

/// Five namespaces.
pub(super) struct Network {
    pub(super) phones: Phones,
    pub(super) access: Namespace,
    pub(super) edge: Namespace,
    pub(super) server: Namespace,
    pub(super) relay: Namespace,
}

/// Who owns the service address.
#[derive(Debug, Clone, Copy)]
pub(super) enum Service {
    /// The edge takes its packets.
    BehindTheEdge,
    /// They go to the server without a detour.
    AtTheServer,
}

impl Network {
    /// With the relay this far from the server, one way, and everything else at no distance.
    pub(super) fn build(relay_delay_ms: u64, service: Service) -> Result<Self> {
        let net = Self {
            phones: Phones {
                namespace: Namespace::new("phones")?,
                address: PHONES,
            },
            access: Namespace::router("access")?,
            edge: Namespace::router("edge1")?,
            server: Namespace::new("server")?,
            relay: Namespace::new("relay")?,
        };
        net.wires(relay_delay_ms)?;
        let next_hop = match service {
            Service::BehindTheEdge => EDGE1,
            Service::AtTheServer => CONCENTRATOR,
        };
        for (namespace, route) in [
            (&net.phones.namespace, "default via 10.0.3.2".to_owned()),
            (&net.edge, "default via 10.0.1.1".to_owned()),
            (&net.server, "default via 10.0.9.1".to_owned()),
            (&net.relay, "default via 10.0.6.1".to_owned()),
            (&net.relay, format!("{CONCENTRATOR}/32 via 10.0.7.1")),
            (&net.access, format!("{SERVICE}/32 via {next_hop}")),
        ] {
            namespace.run(&format!("ip route add {route}"))?;
        }
        net.server
            .run(&format!("ip addr add {SERVICE}/32 dev lo"))?;
        Ok(net)
    }

    fn wires(&self, relay_delay_ms: u64) -> Result<()> {
        let end = |namespace, device, address| End {
            namespace,
            device,
            address,
        };
        for (a, b, shape) in [
            (
                end(&self.phones.namespace, "eth0", "10.0.3.1/24"),
                end(&self.access, "phones", "10.0.3.2/24"),
                Shape::DIRECT,
            ),
            (
                end(&self.access, "edge", "10.0.1.1/24"),
                end(&self.edge, "eth0", "10.0.1.2/24"),
                Shape::DIRECT,
            ),
            (
                end(&self.access, "server", "10.0.9.1/24"),
                end(&self.server, "eth0", "10.0.9.2/24"),
                Shape::DIRECT,
            ),
            (
                end(&self.access, "relay", "10.0.6.1/24"),
                end(&self.relay, "media", "10.0.6.2/24"),
                Shape::DIRECT,
            ),
            (
                end(&self.server, "relay", "10.0.7.1/24"),
                end(&self.relay, "control", "10.0.7.2/24"),
                Shape::delay_ms(relay_delay_ms),
            ),
        ] {
            link::connect(a, b, shape)?;
        }
        Ok(())
    }
}
