//! Phones and a relay, one wire between them.

use std::net::Ipv4Addr;

use anyhow::Result;

use crate::link::{self, End, Shape};
use crate::namespace::Namespace;

/// All phones, and who controls the relay.
pub(super) const PHONES: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
/// The relay.
pub(super) const RELAY: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);

/// Two namespaces.
pub(super) struct Network {
    pub(super) phones: Namespace,
    pub(super) relay: Namespace,
}

impl Network {
    pub(super) fn build() -> Result<Self> {
        let net = Self {
            phones: Namespace::new("phones")?,
            relay: Namespace::new("relay")?,
        };
        let end = |namespace, device, address| End {
            namespace,
            device,
            address,
        };
        link::connect(
            end(&net.phones, "relay", "10.0.1.1/24"),
            end(&net.relay, "phones", "10.0.1.2/24"),
            Shape::DIRECT,
        )?;
        // The relay has all ports above these.
        net.relay
            .sysctl("net.ipv4.ip_local_port_range", "10000 19999")?;
        Ok(net)
    }
}
