//! IPv6 for `two-edges`: every wire gets a prefix, the service an address, and no NAT is in the way.
//! The tunnel's outer header stays IPv4 where a scenario does not say otherwise.
//!
//! ```text
//!    ua1 2001:db8:1::10                                       ua2 2001:db8:2::10
//!     | nat-a routes                                           | nat-b routes
//!    r1 ------------------ 2001:db8:12::/64 ------------------ r2
//!     |  edge1 2001:db8:e1::2                edge2 2001:db8:e2::2 |
//!     +--------------------------- core ------------------------+
//!                           concentrator 2001:db8:9::2, owner of 2001:db8:5::1 too
//! ```

use std::net::Ipv6Addr;

use anyhow::Result;

use super::two_edges::TwoEdges;
use crate::namespace::Namespace;

/// The anycast address.
pub(crate) const SERVICE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 5, 0, 0, 0, 0, 1);
/// The phones.
pub(crate) const UA1: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10);
pub(crate) const UA2: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x10);
/// Unicast addresses of the edges.
pub(crate) const EDGE1: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xe1, 0, 0, 0, 0, 2);
pub(crate) const EDGE2: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xe2, 0, 0, 0, 0, 2);

/// The concentrator's own.
pub(crate) const CONCENTRATOR: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 2);

/// Adds it to a network that has been built.
pub(crate) fn add(net: &TwoEdges) -> Result<()> {
    for (namespace, forwards) in [
        (&net.ua1, false),
        (&net.ua2, false),
        (&net.nat_a, true),
        (&net.nat_b, true),
        (&net.r1, true),
        (&net.r2, true),
        (&net.edge1, true),
        (&net.edge2, true),
        (&net.core, true),
        (&net.concentrator, false),
    ] {
        switch_on(namespace, forwards)?;
    }
    addresses(net)?;
    routes(net)
}

fn switch_on(namespace: &Namespace, forwards: bool) -> Result<()> {
    for which in ["all", "default"] {
        namespace.sysctl(&format!("net.ipv6.conf.{which}.disable_ipv6"), "0")?;
    }
    if forwards {
        namespace.sysctl("net.ipv6.conf.all.forwarding", "1")?;
    }
    Ok(())
}

fn addresses(net: &TwoEdges) -> Result<()> {
    for (namespace, device, address) in [
        (&net.ua1, "eth0", "2001:db8:1::10"),
        (&net.nat_a, "lan", "2001:db8:1::1"),
        (&net.ua2, "eth0", "2001:db8:2::10"),
        (&net.nat_b, "lan", "2001:db8:2::1"),
        (&net.nat_a, "wan", "2001:db8:a1::2"),
        (&net.r1, "access", "2001:db8:a1::1"),
        (&net.nat_b, "wan", "2001:db8:a2::2"),
        (&net.r2, "access", "2001:db8:a2::1"),
        (&net.r1, "edge", "2001:db8:e1::1"),
        (&net.edge1, "eth0", "2001:db8:e1::2"),
        (&net.r2, "edge", "2001:db8:e2::1"),
        (&net.edge2, "eth0", "2001:db8:e2::2"),
        (&net.r1, "east", "2001:db8:12::1"),
        (&net.r2, "west", "2001:db8:12::2"),
        (&net.r1, "up", "2001:db8:91::2"),
        (&net.core, "r1", "2001:db8:91::1"),
        (&net.r2, "up", "2001:db8:92::2"),
        (&net.core, "r2", "2001:db8:92::1"),
        (&net.core, "down", "2001:db8:9::1"),
        (&net.concentrator, "eth0", "2001:db8:9::2"),
    ] {
        // Without duplicate address detection it can be used at once.
        namespace.run(&format!("ip -6 addr add {address}/64 dev {device} nodad"))?;
    }
    Ok(())
}

fn routes(net: &TwoEdges) -> Result<()> {
    for (namespace, to, via) in [
        (&net.ua1, "default", "2001:db8:1::1"),
        (&net.ua2, "default", "2001:db8:2::1"),
        (&net.nat_a, "default", "2001:db8:a1::1"),
        (&net.nat_b, "default", "2001:db8:a2::1"),
        (&net.edge1, "default", "2001:db8:e1::1"),
        (&net.edge2, "default", "2001:db8:e2::1"),
        (&net.concentrator, "default", "2001:db8:9::1"),
        (&net.r1, "2001:db8:1::/64", "2001:db8:a1::2"),
        (&net.r2, "2001:db8:2::/64", "2001:db8:a2::2"),
        (&net.r1, "2001:db8:2::/64", "2001:db8:12::2"),
        (&net.r1, "2001:db8:e2::/64", "2001:db8:12::2"),
        (&net.r2, "2001:db8:1::/64", "2001:db8:12::1"),
        (&net.r2, "2001:db8:e1::/64", "2001:db8:12::1"),
        (&net.r1, "2001:db8:9::/64", "2001:db8:91::1"),
        (&net.r2, "2001:db8:9::/64", "2001:db8:92::1"),
        (&net.core, "2001:db8:e1::/64", "2001:db8:91::2"),
        (&net.core, "2001:db8:e2::/64", "2001:db8:92::2"),
        (&net.core, "2001:db8:1::/64", "2001:db8:91::2"),
        (&net.core, "2001:db8:2::/64", "2001:db8:92::2"),
    ] {
        namespace.run(&format!("ip -6 route add {to} via {via}"))?;
    }
    net.r2
        .run(&format!("ip -6 route add {SERVICE6}/128 via {EDGE2}"))?;
    unflip(net)
}

/// From now on r1 sends the service address to edge2.
pub(crate) fn flip(net: &TwoEdges) -> Result<()> {
    let route = format!("ip -6 route replace {SERVICE6}/128 via 2001:db8:12::2");
    net.r1.run(&route).map(drop)
}

/// Back to edge1.
pub(crate) fn unflip(net: &TwoEdges) -> Result<()> {
    let route = format!("ip -6 route replace {SERVICE6}/128 via {EDGE1}");
    net.r1.run(&route).map(drop)
}
