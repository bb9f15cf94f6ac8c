//! What an agent may say of its own addresses and ports.
//!
//! Phones, and in a chain other relays, send to where a lease says. An agent whose certificate is
//! good may still be wrongly configured or taken over, so a lease must be at an address that media
//! can come from and go to, that is not ours, that the agent's Hello has named, and that the
//! configuration allows where it says so. A single bad lease closes the link: calls then take
//! another relay at once instead of being sent somewhere else.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use wire::ip::is_host;
use wire::relay_control::{Lease, SideAddr};

/// Ports below are for services (RFC 6335 section 6).
const FIRST_PORT: u16 = 1024;

/// Why an agent is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lie {
    /// About an address.
    Address(&'static str),
    /// About a port.
    Port(&'static str),
}

/// Which addresses agents may have.
#[derive(Debug, Default)]
pub(super) struct Bounds {
    /// Ours: the service addresses and the tunnel's end.
    pub(super) own: Vec<IpNetwork>,
    /// By the agent's name; one that is not here may have any that is possible at all.
    pub(super) allowed: HashMap<String, Vec<IpNetwork>>,
}

impl Bounds {
    /// Judges one address of an agent.
    pub(super) fn check_address(&self, agent: &str, address: IpAddr) -> Result<(), Lie> {
        if !is_host(address) || address.to_canonical() != address {
            return Err(Lie::Address("a relay at an address that no host can have"));
        }
        if self.own.iter().any(|own| own.contains(address)) {
            return Err(Lie::Address("a relay at our own address"));
        }
        match self.allowed.get(agent) {
            Some(allowed) if allowed.iter().any(|network| network.contains(address)) => Ok(()),
            Some(_) => Err(Lie::Address(
                "a relay at an address that its media_addresses do not allow",
            )),
            None if address.is_loopback() => Err(Lie::Address("a relay on loopback")),
            None => Ok(()),
        }
    }

    /// Judges a lease of an agent whose Hello has named `named`; an agent that named none has not
    /// said where it is.
    pub(super) fn check_lease(
        &self,
        agent: &str,
        named: &[IpAddr],
        lease: &Lease,
    ) -> Result<(), Lie> {
        for side in [lease.a, lease.b] {
            self.check_address(agent, side.addr)?;
            if !named.is_empty() && !named.contains(&side.addr) {
                return Err(Lie::Address(
                    "a lease at an address that the Hello has not named",
                ));
            }
        }
        check_ports(lease.a, lease.b)
    }
}

/// Judges a lease by those that its agent has offered besides.
pub(super) fn check_unique<'l>(
    lease: &Lease,
    mut others: impl Iterator<Item = &'l Lease>,
) -> Result<(), Lie> {
    let shares = |other: &Lease| {
        other.session != lease.session
            && [lease.a, lease.b].iter().any(|one| {
                [other.a, other.b]
                    .iter()
                    .any(|side| share_a_port(*one, *side))
            })
    };
    if others.any(shares) {
        return Err(Lie::Port("two leases with one port"));
    }
    Ok(())
}

fn share_a_port(one: SideAddr, other: SideAddr) -> bool {
    one.addr == other.addr
        && [one.rtp, one.rtcp]
            .iter()
            .any(|port| [other.rtp, other.rtcp].contains(port))
}

fn check_ports(a: SideAddr, b: SideAddr) -> Result<(), Lie> {
    let ports = [a.rtp, a.rtcp, b.rtp, b.rtcp];
    if ports.iter().any(|port| *port < FIRST_PORT) {
        return Err(Lie::Port("a lease with a port below 1024"));
    }
    if a.rtp == a.rtcp || b.rtp == b.rtcp || share_a_port(a, b) {
        return Err(Lie::Port("a lease with one port twice"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_address_that_can_be_the_agents_is_believed() {
        let bounds = Bounds {
            own: vec![network("198.51.100.1/32"), network("2001:db8::1/128")],
            allowed: HashMap::from([("strict".to_owned(), vec![network("10.0.1.0/24")])]),
        };
        for (agent, address, good) in [
            ("any", "10.0.1.2", true),
            ("any", "2001:db8:1::2", true),
            ("any", "198.51.100.1", false),
            ("any", "2001:db8::1", false),
            ("any", "127.0.0.1", false),
            ("any", "::1", false),
            ("any", "0.0.0.0", false),
            ("any", "0.1.2.3", false),
            ("any", "::", false),
            ("any", "224.0.0.1", false),
            ("any", "ff02::1", false),
            ("any", "255.255.255.255", false),
            ("any", "::ffff:10.0.1.2", false),
            ("strict", "10.0.1.2", true),
            ("strict", "10.0.2.2", false),
            ("strict", "2001:db8:1::2", false),
            ("strict", "127.0.0.1", false),
        ] {
            let judged = bounds.check_address(agent, address.parse().unwrap());
            assert_eq!(judged.is_ok(), good, "{agent} {address}: {judged:?}");
        }
    }

    #[test]
    fn a_lease_has_four_ports_of_its_own_above_1023_at_an_address_of_the_hello() {
        let bounds = Bounds::default();
        let named = ["10.0.1.2".parse().unwrap()];
        let judge = |lease: Lease| bounds.check_lease("any", &named, &lease);
        let good = lease("10.0.1.2", [30_000, 30_001, 30_002, 30_003]);
        assert_eq!(judge(good), Ok(()));
        for ports in [
            [0, 30_001, 30_002, 30_003],
            [30_000, 1023, 30_002, 30_003],
            [30_000, 30_001, 53, 30_003],
            [30_000, 30_000, 30_002, 30_003],
            [30_000, 30_001, 30_000, 30_003],
            [30_000, 30_001, 30_002, 30_001],
        ] {
            let judged = judge(lease("10.0.1.2", ports));
            assert!(matches!(judged, Err(Lie::Port(_))), "{ports:?}: {judged:?}");
        }
        let elsewhere = judge(lease("10.0.2.2", [30_000, 30_001, 30_002, 30_003]));
        assert!(matches!(elsewhere, Err(Lie::Address(_))), "{elsewhere:?}");
    }

    #[test]
    fn two_leases_have_no_port_in_common_but_a_lease_may_be_named_again() {
        let good = lease("10.0.1.2", [30_000, 30_001, 30_002, 30_003]);
        let judge = |session, address, ports| {
            let other = Lease {
                session,
                ..lease(address, ports)
            };
            check_unique(&other, [good].iter())
        };
        let (free, taken) = (
            [30_004, 30_005, 30_006, 30_007],
            [30_004, 30_005, 30_006, 30_001],
        );
        assert_eq!(judge(2, "10.0.1.2", free), Ok(()));
        assert!(judge(2, "10.0.1.2", taken).is_err());
        assert_eq!(judge(2, "10.0.1.3", taken), Ok(()), "at another address");
        assert_eq!(judge(1, "10.0.1.2", taken), Ok(()), "the same session");
    }

    fn lease(address: &str, [a, a_rtcp, b, b_rtcp]: [u16; 4]) -> Lease {
        let side = |rtp, rtcp| SideAddr {
            addr: address.parse().unwrap(),
            rtp,
            rtcp,
        };
        Lease {
            session: 1,
            a: side(a, a_rtcp),
            b: side(b, b_rtcp),
        }
    }

    fn network(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }
}
