//! The network of the drawing in [`super`].

use std::net::Ipv4Addr;

use anyhow::Result;

use super::super::load::Phones;
use crate::link::{self, End, Shape};
use crate::namespace::Namespace;
use crate::topology::two_edges::{EDGE1, SERVICE};

const PHONES: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
/// The proxy's address on the direct link.
pub(super) const DIRECT: Ipv4Addr = Ipv4Addr::new(10, 0, 8, 2);

/// Three namespaces.
pub(super) struct Network {
    pub(super) phones: Phones,
    pub(super) edge: Namespace,
    pub(super) proxy: Namespace,
}

impl Network {
    pub(super) fn build() -> Result<Self> {
        let net = Self {
            phones: Phones {
                namespace: Namespace::new("phones")?,
                address: PHONES,
            },
            edge: Namespace::router("edge1")?,
            proxy: Namespace::new("proxy")?,
        };
        let connect = |a: (&Namespace, &str, &str), b: (&Namespace, &str, &str)| {
            let end = |(namespace, device, address)| End {
                namespace,
                device,
                address,
            };
            link::connect(end(a), end(b), Shape::DIRECT)
        };
        connect(
            (&net.phones.namespace, "edge", "10.0.1.1/24"),
            (&net.edge, "access", "10.0.1.2/24"),
        )?;
        connect(
            (&net.edge, "up", "10.0.9.1/24"),
            (&net.proxy, "core", "10.0.9.2/24"),
        )?;
        connect(
            (&net.phones.namespace, "direct", "10.0.8.1/24"),
            (&net.proxy, "direct", "10.0.8.2/24"),
        )?;
        link::receive_by_thread(&net.phones.namespace, "direct")?;
        // Answers come by another link than the requests took.
        for setting in ["all", "edge", "direct"] {
            let key = format!("net.ipv4.conf.{setting}.rp_filter");
            net.phones.namespace.sysctl(&key, "0")?;
        }
        net.phones
            .namespace
            .run(&format!("ip route add default via {EDGE1}"))?;
        net.proxy.run("ip route add default via 10.0.9.1")?;
        net.proxy
            .run(&format!("ip route add {PHONES}/32 via 10.0.8.1"))?;
        net.proxy.run(&format!("ip addr add {SERVICE}/32 dev lo"))?;
        Ok(net)
    }
}
