//! A small internet: two transit networks and a regional one with BIRD, three edges in autonomous
//! systems of their own, six access networks, one concentrator.
//!
//! ```text
//!  ua1 2 ms ─┐                                                   ┌─ ua3 8 ms
//!  ua2 5 ms ─┤ t1 AS 64501 ───────── 12 ms ───────── t2 AS 64502 ┤
//!            │  │ └─ edge1 AS 65001     edge2 AS 65002 ─┘ │ │    └─ ua6 15 ms
//!               │       BIRD                FRR           │ │ 6 ms
//!         10 ms │                                   10 ms │ r3 AS 64503 ── ua4 3 ms, ua5 10 ms
//!               └────────── core AS 65010 ────────────────┘ │
//!                              │                            edge3 AS 65003, BIRD, a local node:
//!                     concentrator 10.0.9.2                        r3 keeps its route to itself
//! ```
//!
//! Every phone is 192.168.1.10 behind a router of its own: ua1, ua3 and ua6 behind a port-restricted
//! cone, ua2 and ua5 behind a symmetric NAT; ua4's address is its own, 100.65.4.10.
//!
//! Who is nearest to whom is [`CATCHMENTS`]. The edges' speakers run the files of `configs/`
//! ([`crate::bgp`]).

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};

use super::two_edges::{CONCENTRATOR, PHONE};
use crate::link::{self, End, Shape};
use crate::namespace::Namespace;

/// The edges, by number less one.
pub(crate) const EDGES: [Ipv4Addr; 3] = [
    Ipv4Addr::new(10, 0, 1, 2),
    Ipv4Addr::new(10, 0, 2, 2),
    Ipv4Addr::new(10, 0, 3, 2),
];

/// The edge (1 to 3) that each access network reaches when all three announce.
pub(crate) const CATCHMENTS: [usize; 6] = [1, 1, 2, 3, 3, 2];

/// Access networks: the router, one way in milliseconds, and what its NAT does.
const ACCESS: [(&str, u64, Nat); 6] = [
    ("t1", 2, Nat::Cone),
    ("t1", 5, Nat::Symmetric),
    ("t2", 8, Nat::Cone),
    ("r3", 3, Nat::None),
    ("r3", 10, Nat::Symmetric),
    ("t2", 15, Nat::Cone),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nat {
    Cone,
    Symmetric,
    None,
}

/// The namespaces of the drawing.
#[derive(Debug)]
pub(crate) struct Internet {
    pub(crate) uas: Vec<Namespace>,
    pub(crate) nats: Vec<Namespace>,
    pub(crate) t1: Namespace,
    pub(crate) t2: Namespace,
    pub(crate) r3: Namespace,
    pub(crate) core: Namespace,
    pub(crate) edges: Vec<Namespace>,
    pub(crate) concentrator: Namespace,
}

impl Internet {
    /// Builds it, without a route between the autonomous systems.
    pub(crate) fn build() -> Result<Self> {
        let numbered = |kind: &str, count: usize| -> Vec<String> {
            (1..=count)
                .map(|number| format!("{kind}{number}"))
                .collect()
        };
        let net = Self {
            uas: numbered("ua", 6)
                .iter()
                .map(|name| Namespace::new(name))
                .collect::<Result<_>>()?,
            nats: numbered("nat", 6)
                .iter()
                .map(|name| Namespace::router(name))
                .collect::<Result<_>>()?,
            t1: Namespace::router("t1")?,
            t2: Namespace::router("t2")?,
            r3: Namespace::router("r3")?,
            core: Namespace::router("core")?,
            edges: numbered("edge", 3)
                .iter()
                .map(|name| Namespace::router(name))
                .collect::<Result<_>>()?,
            concentrator: Namespace::new("concentrator")?,
        };
        for namespace in [
            &net.t1,
            &net.t2,
            &net.edges[0],
            &net.edges[1],
            &net.concentrator,
        ] {
            for which in ["all", "default"] {
                namespace.sysctl(&format!("net.ipv6.conf.{which}.disable_ipv6"), "0")?;
            }
            namespace.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        }
        net.backbone()?;
        for number in 1..=6 {
            net.access(number)?;
        }
        Ok(net)
    }

    fn router(&self, name: &str) -> Result<&Namespace> {
        [&self.t1, &self.t2, &self.r3, &self.core]
            .into_iter()
            .find(|namespace| namespace.name() == name)
            .with_context(|| format!("no router {name}"))
    }

    fn backbone(&self) -> Result<()> {
        for (a, b, milliseconds) in [
            (
                (&self.t1, "t2", "10.1.12.1/24"),
                (&self.t2, "t1", "10.1.12.2/24"),
                12,
            ),
            (
                (&self.t2, "r3", "10.1.23.2/24"),
                (&self.r3, "t2", "10.1.23.3/24"),
                6,
            ),
            (
                (&self.t1, "core", "10.1.91.1/24"),
                (&self.core, "t1", "10.1.91.9/24"),
                10,
            ),
            (
                (&self.t2, "core", "10.1.92.2/24"),
                (&self.core, "t2", "10.1.92.9/24"),
                10,
            ),
            (
                (&self.core, "down", "10.0.9.1/24"),
                (&self.concentrator, "eth0", "10.0.9.2/24"),
                0,
            ),
            (
                (&self.t1, "edge", "10.0.1.1/24"),
                (&self.edges[0], "eth0", "10.0.1.2/24"),
                0,
            ),
            (
                (&self.t2, "edge", "10.0.2.1/24"),
                (&self.edges[1], "eth0", "10.0.2.2/24"),
                0,
            ),
            (
                (&self.r3, "edge", "10.0.3.1/24"),
                (&self.edges[2], "eth0", "10.0.3.2/24"),
                0,
            ),
        ] {
            wire(a, b, milliseconds)?;
        }
        for (number, router) in [(1, &self.t1), (2, &self.t2)] {
            let edge = &self.edges[number - 1];
            // Without duplicate address detection they can be used at once.
            router.run(&format!(
                "ip -6 addr add 2001:db8:e{number}::1/64 dev edge nodad"
            ))?;
            edge.run(&format!(
                "ip -6 addr add 2001:db8:e{number}::2/64 dev eth0 nodad"
            ))?;
        }
        for (number, edge) in (1..).zip(&self.edges) {
            edge.run(&format!("ip route add default via 10.0.{number}.1"))?;
        }
        self.concentrator.run("ip route add default via 10.0.9.1")?;
        Ok(())
    }

    fn access(&self, number: usize) -> Result<()> {
        let (ua, nat) = (&self.uas[number - 1], &self.nats[number - 1]);
        let (router, milliseconds, kind) = ACCESS[number - 1];
        let router = self.router(router)?;
        let (phone, gateway) = match kind {
            Nat::None => (format!("100.65.{number}.10"), format!("100.65.{number}.1")),
            Nat::Cone | Nat::Symmetric => (PHONE.to_string(), "192.168.1.1".to_owned()),
        };
        wire(
            (ua, "eth0", &format!("{phone}/24")),
            (nat, "lan", &format!("{gateway}/24")),
            0,
        )?;
        wire(
            (nat, "wan", &format!("100.64.{number}.2/24")),
            (
                router,
                &format!("a{number}"),
                &format!("100.64.{number}.1/24"),
            ),
            milliseconds,
        )?;
        ua.run(&format!("ip route add default via {gateway}"))?;
        nat.run(&format!("ip route add default via 100.64.{number}.1"))?;
        let how = match kind {
            Nat::None => {
                let to = format!("100.65.{number}.0/24 via 100.64.{number}.2");
                return router.run(&format!("ip route add {to}")).map(drop);
            }
            Nat::Cone => "masquerade",
            Nat::Symmetric => "masquerade fully-random",
        };
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
}}
"#
        ))
    }
}

/// The phone of an access network, 1 to 6.
pub(crate) fn address_of(number: usize) -> Ipv4Addr {
    if number == 4 {
        Ipv4Addr::new(100, 65, 4, 10)
    } else {
        PHONE
    }
}

type Plug<'a> = (&'a Namespace, &'a str, &'a str);

fn wire(a: Plug<'_>, b: Plug<'_>, milliseconds: u64) -> Result<()> {
    let end = |(namespace, device, address)| End {
        namespace,
        device,
        address,
    };
    link::connect(end(a), end(b), Shape::delay_ms(milliseconds))
}

/// Where the tunnels of all edges end.
pub(crate) const TUNNEL_END: Ipv4Addr = CONCENTRATOR;
