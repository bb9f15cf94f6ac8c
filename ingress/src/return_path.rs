//! The return path: replies that come back through the tunnel, to leave this edge for the user agents.
//!
//! Where the core may not send packets from the service address, the concentrator puts its replies into
//! the tunnel of the edge that last carried the flow. Here they come out, pass [`Acceptance`] and go into
//! the TUN device: for the kernel they have arrived there, and it forwards them by its own routes, which
//! takes a hop, makes fragments and answers with "fragmentation needed" as any router would; those answers
//! are to the service address, so they go back to the concentrator.
//!
//! An edge must not become a way for others to send from the service address, so it is checked who has
//! sent the tunnel packet, its key, and that what is inside is nothing but a reply.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tunnel_io::gre_socket::{GreBatch, GreSocket};
use tunnel_io::tun::TunDevice;
use wire::gre::{self, TunnelKey};
use wire::icmp;
use wire::ip::{self, protocol};

use crate::config::{Config, ReturnPath as Configured};

/// Packets read in one system call.
const BATCH: usize = 64;
/// No packet is longer, whatever MTU the concentrator thinks the tunnel has.
const LARGEST_PAYLOAD: usize = 65_535;

/// Why a packet out of the tunnel is not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Its outer source is no concentrator of ours.
    Stranger,
    /// Truncated, or flags, version or protocol that this tunnel does not have.
    MalformedGre,
    /// Neither our key nor the one before it.
    WrongKey,
    /// The packet inside cannot be read.
    MalformedInner,
    /// It is not from a service address.
    NotServiceSource,
    /// To a service address, to this edge, or to nobody: it would come back, or stay.
    Destination,
    /// A tunnel inside the tunnel.
    NestedTunnel,
    /// Neither UDP nor TCP nor an ICMP error.
    Protocol,
    /// The kernel does not take it.
    Undelivered,
}

impl Refusal {
    /// All of them, in the order of the enum.
    pub const ALL: [Self; 9] = [
        Self::Stranger,
        Self::MalformedGre,
        Self::WrongKey,
        Self::MalformedInner,
        Self::NotServiceSource,
        Self::Destination,
        Self::NestedTunnel,
        Self::Protocol,
        Self::Undelivered,
    ];

    /// The name in metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Stranger => "stranger",
            Self::MalformedGre => "malformed_gre",
            Self::WrongKey => "wrong_key",
            Self::MalformedInner => "malformed_inner",
            Self::NotServiceSource => "not_service_source",
            Self::Destination => "destination",
            Self::NestedTunnel => "nested_tunnel",
            Self::Protocol => "protocol",
            Self::Undelivered => "undelivered",
        }
    }
}

/// What may come back. Pure.
#[derive(Debug, Clone)]
pub struct Acceptance {
    concentrators: Vec<IpAddr>,
    key: TunnelKey,
    old_key: Option<TunnelKey>,
    service_addresses: Vec<IpAddr>,
    own: Vec<IpAddr>,
}

impl Acceptance {
    /// That of this configuration.
    pub fn new(config: &Config) -> Self {
        let concentrators = config.tunnel.concentrators.iter();
        Self {
            concentrators: concentrators.map(|one| one.address).collect(),
            key: config.relay.key,
            old_key: config.tunnel.old_key,
            service_addresses: config.service_addresses.clone(),
            own: config.tunnel.sources().collect(),
        }
    }

    /// These keys from now on.
    pub fn set_keys(&mut self, key: TunnelKey, old_key: Option<TunnelKey>) {
        (self.key, self.old_key) = (key, old_key);
    }

    /// The packet to be forwarded, out of what follows the outer header.
    pub fn accept<'a>(&self, outer_source: IpAddr, payload: &'a [u8]) -> Result<&'a [u8], Refusal> {
        if !self.concentrators.contains(&outer_source) {
            return Err(Refusal::Stranger);
        }
        let outer = gre::Packet::parse(payload).map_err(|_| Refusal::MalformedGre)?;
        if outer.key() != self.key && Some(outer.key()) != self.old_key {
            return Err(Refusal::WrongKey);
        }
        let inner = outer.inner().map_err(|_| Refusal::MalformedInner)?;
        if !self.service_addresses.contains(&inner.src()) {
            return Err(Refusal::NotServiceSource);
        }
        let to = inner.dst();
        if !ip::is_another_host(to)
            || self.own.contains(&to)
            || self.service_addresses.contains(&to)
        {
            return Err(Refusal::Destination);
        }
        if inner.is_tunnel() {
            return Err(Refusal::NestedTunnel);
        }
        match inner.protocol() {
            protocol::UDP | protocol::TCP => Ok(inner.bytes()),
            protocol::ICMP | protocol::ICMPV6 if icmp::is_error(&inner) => Ok(inner.bytes()),
            _ => Err(Refusal::Protocol),
        }
    }
}

/// What has happened since the counts were last taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets handed to the kernel.
    pub forwarded: u64,
    /// Packets refused, in the order of [`Refusal::ALL`].
    pub refused: [u64; Refusal::ALL.len()],
}

/// IO. The open end of it.
#[derive(Debug)]
pub struct ReturnPath {
    socket: GreSocket,
    batch: GreBatch,
    acceptance: Acceptance,
}

impl ReturnPath {
    /// Opens it, where the configuration has one. Needs a tokio runtime.
    pub fn open(config: &Config) -> io::Result<Option<Self>> {
        let tunnel = &config.tunnel;
        if tunnel.return_path == Configured::Direct {
            return Ok(None);
        }
        // Packets may have left from several addresses of ours, and come back to each.
        let any: IpAddr = match tunnel.source {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Ok(Some(Self {
            socket: GreSocket::bind(any, tunnel.outer_dscp, tunnel.encapsulation)?,
            batch: GreBatch::new(BATCH, LARGEST_PAYLOAD),
            acceptance: Acceptance::new(config),
        }))
    }

    /// These keys from now on.
    pub fn set_keys(&mut self, key: TunnelKey, old_key: Option<TunnelKey>) {
        self.acceptance.set_keys(key, old_key);
    }

    /// Waits for packets. May be dropped at any time without a loss.
    pub async fn receive(&mut self) -> io::Result<usize> {
        self.socket.recv_batch(&mut self.batch).await
    }

    /// Hands what was received last to the kernel.
    pub fn forward(&mut self, device: &TunDevice) -> Counts {
        let mut counts = Counts::default();
        for packet in self.batch.iter() {
            let accepted = self.acceptance.accept(packet.from, packet.payload);
            let written = accepted.and_then(|inner| {
                let written = device.write(inner);
                written.map_err(|error| {
                    tracing::debug!(%error, "the kernel does not take a reply");
                    Refusal::Undelivered
                })
            });
            match written {
                Ok(()) => counts.forwarded += 1,
                Err(refusal) => counts.refused[refusal as usize] += 1,
            }
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::gre::{Protocol, Repr};

    const PHONE: &str = "192.0.2.7:40000";
    const SERVICE: &str = "198.51.100.1:5060";

    fn reply(from: &str, to: &str) -> Vec<u8> {
        ip::udp(
            from.parse().unwrap(),
            to.parse().unwrap(),
            0,
            b"SIP/2.0 200 OK",
        )
        .unwrap()
    }

    fn tunnelled(key: u32, inner: &[u8]) -> Vec<u8> {
        let protocol = Protocol::of_packet(inner).unwrap();
        let key = TunnelKey(key);
        [&Repr { key, protocol }.header()[..], inner].concat()
    }

    /// The shipped example's: key 0x1001, concentrator 10.0.9.2, source 10.0.1.2.
    fn judged(from: &str, payload: &[u8]) -> Result<usize, Refusal> {
        let mut acceptance = Acceptance::new(&crate::config::example());
        acceptance.set_keys(TunnelKey(0x1001), Some(TunnelKey(0x0f01)));
        let accepted = acceptance.accept(from.parse().unwrap(), payload);
        accepted.map(<[u8]>::len)
    }

    #[test]
    fn a_reply_comes_out_whole_with_either_key_and_in_both_families() {
        for (from, to) in [
            (SERVICE, PHONE),
            ("[2001:db8:5060::1]:5060", "[2001:db8::7]:40000"),
        ] {
            let inner = reply(from, to);
            for key in [0x1001, 0x0f01] {
                let got = judged("10.0.9.2", &tunnelled(key, &inner));
                assert_eq!(got, Ok(inner.len()));
            }
        }
    }

    #[test]
    fn a_later_fragment_of_a_reply_passes() {
        let [from, to] = ["198.51.100.1", "192.0.2.7"].map(|text| text.parse().unwrap());
        let mut repr = ip::Repr::new(from, to, protocol::UDP);
        repr.fragment = Some(ip::Fragment {
            id: 7,
            offset: 1_448,
            more: false,
        });
        let inner = repr.build(&[1; 100]).unwrap();
        assert!(judged("10.0.9.2", &tunnelled(0x1001, &inner)).is_ok());
    }

    #[test]
    fn all_else_is_refused_under_its_name() {
        let good = reply(SERVICE, PHONE);
        let tunnel = |inner: &[u8]| tunnelled(0x1001, inner);
        let of_protocol = |number: u8, payload: &[u8]| {
            let [from, to] = ["198.51.100.1", "192.0.2.7"].map(|text| text.parse().unwrap());
            tunnel(&ip::Repr::new(from, to, number).build(payload).unwrap())
        };
        for (from, payload, expected) in [
            ("10.0.9.3", tunnel(&good), Refusal::Stranger),
            ("10.0.9.2", vec![0x20, 0, 8], Refusal::MalformedGre),
            ("10.0.9.2", tunnelled(0x1002, &good), Refusal::WrongKey),
            ("10.0.9.2", tunnel(&good[..25]), Refusal::MalformedInner),
            (
                "10.0.9.2",
                tunnel(&reply("198.51.100.2:5060", PHONE)),
                Refusal::NotServiceSource,
            ),
            (
                "10.0.9.2",
                tunnel(&reply(SERVICE, SERVICE)),
                Refusal::Destination,
            ),
            (
                "10.0.9.2",
                tunnel(&reply(SERVICE, "10.0.1.2:5060")),
                Refusal::Destination,
            ),
            (
                "10.0.9.2",
                tunnel(&reply(SERVICE, "127.0.0.1:5060")),
                Refusal::Destination,
            ),
            (
                "10.0.9.2",
                tunnel(&reply(SERVICE, "224.0.0.1:5060")),
                Refusal::Destination,
            ),
            ("10.0.9.2", of_protocol(4, &good), Refusal::NestedTunnel),
            (
                "10.0.9.2",
                of_protocol(1, &[8, 0, 0, 0, 0, 0, 0, 0]),
                Refusal::Protocol,
            ),
            ("10.0.9.2", of_protocol(50, &[1; 20]), Refusal::Protocol),
        ] {
            assert_eq!(judged(from, &payload), Err(expected));
        }
    }
}
