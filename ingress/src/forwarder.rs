//! PURE. A packet in, a marked packet and its tunnel header out; and the counts.

use std::net::IpAddr;

use wire::mark::Mark;

use crate::classify::{DropReason, IpVersion, Verdict, classify};
use crate::config::Config;
use crate::encapsulation::{gre_header, stamp};

/// What goes in front of a packet, and where both go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encapsulation {
    /// The outer destination.
    pub concentrator: IpAddr,
    /// The GRE header.
    pub header: [u8; 8],
}

/// What happened since the counts were last taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets to be sent through the tunnel.
    pub forwarded_packets: u64,
    /// Their bytes, without GRE and outer header.
    pub forwarded_bytes: u64,
    dropped: [u64; DropReason::ALL.len()],
}

impl Counts {
    /// Packets dropped, by reason.
    pub fn dropped(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.into_iter().zip(self.dropped)
    }
}

/// Everything that the ingress decides.
#[derive(Debug)]
pub struct Forwarder {
    service_addresses: Vec<IpAddr>,
    mark: Mark,
    concentrator: IpAddr,
    /// Ready-made, as only the inner version varies.
    header_ipv4: [u8; 8],
    header_ipv6: [u8; 8],
    counts: Counts,
}

impl Forwarder {
    /// A forwarder for this configuration.
    pub fn new(config: &Config) -> Self {
        Self {
            service_addresses: config.service_addresses.clone(),
            mark: config.relay.mark,
            concentrator: config.tunnel.concentrator,
            header_ipv4: gre_header(config.relay.key, IpVersion::V4),
            header_ipv6: gre_header(config.relay.key, IpVersion::V6),
            counts: Counts::default(),
        }
    }

    /// Stamps the mark into the packet and says where it goes; or drops it, leaves it as it is and
    /// says why.
    pub fn forward(&mut self, packet: &mut [u8]) -> Result<Encapsulation, DropReason> {
        let version = match classify(packet, &self.service_addresses) {
            Verdict::Forward(version) => version,
            Verdict::Drop(reason) => {
                self.counts.dropped[reason as usize] += 1;
                return Err(reason);
            }
        };
        stamp(packet, version, self.mark);
        self.counts.forwarded_packets += 1;
        self.counts.forwarded_bytes += packet.len() as u64;
        let header = match version {
            IpVersion::V4 => self.header_ipv4,
            IpVersion::V6 => self.header_ipv6,
        };
        Ok(Encapsulation {
            concentrator: self.concentrator,
            header,
        })
    }

    /// The counts since the last call.
    pub fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }
}
