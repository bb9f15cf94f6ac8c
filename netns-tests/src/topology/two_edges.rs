//! Two edges that announce one service address, one concentrator, a phone behind a NAT near each.
//!
//! ```text
//!    ua1 192.168.1.10                                         ua2 192.168.1.10   (they overlap)
//!     | eth0                                                   | eth0
//!     | lan 192.168.1.1                                        | lan 192.168.1.1
//!    nat-a  port-restricted cone                              nat-b  symmetric
//!     | wan 203.0.113.2                                        | wan 192.0.2.2
//!     | 5 ms                                                   | 5 ms
//!     | access 203.0.113.1      10.0.12.1 east    west .2      | access 192.0.2.1
//!    r1 ------------------------- 15 ms --------------------- r2
//!     | | edge 10.0.1.1                                        | | edge 10.0.2.1
//!     | |___ 10.0.1.2 edge1                     edge2 10.0.2.2 |_|
//!     |      sipcast-ingress                    sipcast-ingress |
//!     |      sipcast-rtp-agent                  sipcast-rtp-agent
//!     | up 10.0.91.2                                up 10.0.92.2|
//!     | 20 ms                                             20 ms |
//!     | r1 10.0.91.1                                10.0.92.1 r2|
//!     +------------------------- core --------------------------+
//!                                 | down 10.0.9.1
//!                                 | eth0 10.0.9.2
//!                           concentrator  (owns 198.51.100.1 too, and answers from it directly)
//! ```
//!
//! The service address 198.51.100.1 is anycast: r1 routes it to edge1, r2 to edge2, and the core
//! has no route to it. [`TwoEdges::flip`] makes r1 send it to edge2 by way of r2.

use std::net::Ipv4Addr;

use anyhow::Result;

use crate::link::{self, End, Shape};
use crate::namespace::Namespace;
use crate::xdp;

/// The anycast address.
pub(crate) const SERVICE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// Both phones.
pub(crate) const PHONE: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 10);
/// The first phone as the world sees it.
pub(crate) const NAT_A: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
/// The second phone as the world sees it.
pub(crate) const NAT_B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// Unicast addresses.
pub(crate) const EDGE1: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
pub(crate) const EDGE2: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub(crate) const CONCENTRATOR: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 2);
/// A registrar behind the service, on `core`; the scenario that wants it gives it its address.
pub(crate) const REGISTRAR: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 20);

/// The namespaces of the drawing.
#[derive(Debug)]
pub(crate) struct TwoEdges {
    pub(crate) ua1: Namespace,
    pub(crate) ua2: Namespace,
    pub(crate) nat_a: Namespace,
    pub(crate) nat_b: Namespace,
    pub(crate) r1: Namespace,
    pub(crate) r2: Namespace,
    pub(crate) edge1: Namespace,
    pub(crate) edge2: Namespace,
    pub(crate) core: Namespace,
    pub(crate) concentrator: Namespace,
}

impl TwoEdges {
    /// Builds it.
    pub(crate) fn build() -> Result<Self> {
        let net = Self {
            ua1: Namespace::new("ua1")?,
            ua2: Namespace::new("ua2")?,
            nat_a: Namespace::router("nat-a")?,
            nat_b: Namespace::router("nat-b")?,
            r1: Namespace::router("r1")?,
            r2: Namespace::router("r2")?,
            // The edges forward: that is how the kernel hands a packet to the ingress' TUN device.
            edge1: Namespace::router("edge1")?,
            edge2: Namespace::router("edge2")?,
            core: Namespace::router("core")?,
            concentrator: Namespace::new("concentrator")?,
        };
        net.wires()?;
        net.routes()?;
        net.nats()?;
        Ok(net)
    }

    fn wires(&self) -> Result<()> {
        const DIRECT: Shape = Shape::DIRECT;
        const ACCESS: Shape = Shape::delay_ms(5);
        const TRANSIT: Shape = Shape::delay_ms(15);
        const BACKBONE: Shape = Shape::delay_ms(20);
        let end = |namespace, device, address| End {
            namespace,
            device,
            address,
        };
        for (a, b, shape) in [
            (
                end(&self.ua1, "eth0", "192.168.1.10/24"),
                end(&self.nat_a, "lan", "192.168.1.1/24"),
                DIRECT,
            ),
            (
                end(&self.ua2, "eth0", "192.168.1.10/24"),
                end(&self.nat_b, "lan", "192.168.1.1/24"),
                DIRECT,
            ),
            (
                end(&self.nat_a, "wan", "203.0.113.2/24"),
                end(&self.r1, "access", "203.0.113.1/24"),
                ACCESS,
            ),
            (
                end(&self.nat_b, "wan", "192.0.2.2/24"),
                end(&self.r2, "access", "192.0.2.1/24"),
                ACCESS,
            ),
            (
                end(&self.r1, "edge", "10.0.1.1/24"),
                end(&self.edge1, "eth0", "10.0.1.2/24"),
                DIRECT,
            ),
            (
                end(&self.r2, "edge", "10.0.2.1/24"),
                end(&self.edge2, "eth0", "10.0.2.2/24"),
                DIRECT,
            ),
            (
                end(&self.r1, "east", "10.0.12.1/24"),
                end(&self.r2, "west", "10.0.12.2/24"),
                TRANSIT,
            ),
            (
                end(&self.r1, "up", "10.0.91.2/24"),
                end(&self.core, "r1", "10.0.91.1/24"),
                BACKBONE,
            ),
            (
                end(&self.r2, "up", "10.0.92.2/24"),
                end(&self.core, "r2", "10.0.92.1/24"),
                BACKBONE,
            ),
            (
                end(&self.core, "down", "10.0.9.1/24"),
                end(&self.concentrator, "eth0", "10.0.9.2/24"),
                DIRECT,
            ),
        ] {
            link::connect(a, b, shape)?;
        }
        if xdp::wanted().is_some() || xdp::relays_wanted().is_some() {
            xdp::let_pass(&self.r1, "edge")?;
            xdp::let_pass(&self.r2, "edge")?;
        }
        Ok(())
    }

    fn routes(&self) -> Result<()> {
        for (namespace, to, via) in [
            (&self.ua1, "default", "192.168.1.1"),
            (&self.ua2, "default", "192.168.1.1"),
            (&self.nat_a, "default", "203.0.113.1"),
            (&self.nat_b, "default", "192.0.2.1"),
            (&self.edge1, "default", "10.0.1.1"),
            (&self.edge2, "default", "10.0.2.1"),
            (&self.concentrator, "default", "10.0.9.1"),
            // r1 and r2 know each other's access networks and edges over the direct wire, ...
            (&self.r1, "192.0.2.0/24", "10.0.12.2"),
            (&self.r1, "10.0.2.0/24", "10.0.12.2"),
            (&self.r2, "203.0.113.0/24", "10.0.12.1"),
            (&self.r2, "10.0.1.0/24", "10.0.12.1"),
            // ... and the concentrator over the core.
            (&self.r1, "10.0.9.0/24", "10.0.91.1"),
            (&self.r2, "10.0.9.0/24", "10.0.92.1"),
            (&self.core, "203.0.113.0/24", "10.0.91.2"),
            (&self.core, "10.0.1.0/24", "10.0.91.2"),
            (&self.core, "192.0.2.0/24", "10.0.92.2"),
            (&self.core, "10.0.2.0/24", "10.0.92.2"),
        ] {
            namespace.run(&format!("ip route add {to} via {via}"))?;
        }
        self.r2
            .run(&format!("ip route add {SERVICE}/32 via {EDGE2}"))?;
        self.unflip()?;
        self.concentrator
            .run(&format!("ip addr add {SERVICE}/32 dev lo"))
            .map(drop)
    }

    /// Linux keeps a source port where it can and lets in only answers of whom was written to:
    /// that is a port-restricted cone. `fully-random` gives each flow a port of its own.
    fn nats(&self) -> Result<()> {
        for (nat, how) in [
            (&self.nat_a, "masquerade"),
            (&self.nat_b, "masquerade fully-random"),
        ] {
            nat.nft(&format!(
                r#"
table ip nat {{
    chain out {{
        type nat hook postrouting priority srcnat
        oifname "wan" {how}
    }}
}}
table ip filter {{
    chain forward {{
        type filter hook forward priority filter; policy drop
        iifname "lan" accept
        ct state established,related accept
    }}
    chain input {{
        type filter hook input priority filter
        iifname "wan" ct state new drop
    }}
}}
"#
            ))?;
        }
        Ok(())
    }

    /// From now on r1 sends the service address to edge2: what BGP does when edge1 withdraws.
    pub(crate) fn flip(&self) -> Result<()> {
        self.r1
            .run(&format!("ip route replace {SERVICE}/32 via 10.0.12.2"))
            .map(drop)
    }

    /// Back to edge1.
    pub(crate) fn unflip(&self) -> Result<()> {
        self.r1
            .run(&format!("ip route replace {SERVICE}/32 via {EDGE1}"))
            .map(drop)
    }

    /// From now on r1 sends every second packet to the service address to edge2, as a router that
    /// balances packet by packet would.
    pub(crate) fn alternate_packets(&self) -> Result<()> {
        self.r1.nft(&format!(
            r#"
table ip alternate {{
    chain pre {{
        type filter hook prerouting priority raw
        ip daddr {SERVICE} numgen inc mod 2 1 meta mark set 1
    }}
}}
"#
        ))?;
        self.r1.run(&format!(
            "ip route add {SERVICE}/32 via 10.0.12.2 table 100"
        ))?;
        self.r1.run("ip rule add fwmark 1 table 100").map(drop)
    }

    /// From now on r1 sends every second fragment of 8-byte units to edge2, as a router that
    /// balances packet by packet would.
    pub(crate) fn split_fragments(&self) -> Result<()> {
        self.r1.nft(
            r#"
table ip split {
    chain pre {
        type filter hook prerouting priority raw
        ip frag-off & 0x1 == 1 meta mark set 1
    }
}
"#,
        )?;
        self.r1.run(&format!(
            "ip route add {SERVICE}/32 via 10.0.12.2 table 100"
        ))?;
        self.r1.run("ip rule add fwmark 1 table 100").map(drop)
    }
}
