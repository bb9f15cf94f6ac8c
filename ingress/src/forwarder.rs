//! PURE. A packet in, a marked packet and its tunnel header out; and the counts.

use std::net::IpAddr;

use wire::gre::{HEADER_LEN, Protocol, Repr};
use wire::mark::{Mark, stamp};

use crate::choice::Choice;
use crate::classify::{DropReason, Verdict, classify};
use crate::config::Config;

/// What goes in front of a packet, and where both go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encapsulation {
    /// The outer destination.
    pub concentrator: IpAddr,
    /// The GRE header.
    pub header: [u8; HEADER_LEN],
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
    choice: Choice,
    /// Ready-made, as only the inner version varies.
    header_ipv4: [u8; HEADER_LEN],
    header_ipv6: [u8; HEADER_LEN],
    counts: Counts,
}

impl Forwarder {
    /// A forwarder for this configuration.
    pub fn new(config: &Config) -> Self {
        let key = config.relay.key;
        let header = |protocol| Repr { key, protocol }.header();
        Self {
            service_addresses: config.service_addresses.clone(),
            mark: config.relay.mark,
            choice: Choice::new(&config.tunnel.concentrators, config.tunnel.hash_key),
            header_ipv4: header(Protocol::Ipv4),
            header_ipv6: header(Protocol::Ipv6),
            counts: Counts::default(),
        }
    }

    /// Stamps the mark into the packet and says where it goes; or drops it, leaves it as it is and
    /// says why.
    pub fn forward(&mut self, packet: &mut [u8]) -> Result<Encapsulation, DropReason> {
        let verdict = classify(packet, &self.service_addresses);
        let marked = match verdict {
            // It cannot fail for a packet whose headers have been read.
            Verdict::Forward(protocol, from) => stamp(packet, self.mark)
                .map(|()| (protocol, from))
                .map_err(|_| DropReason::Truncated),
            Verdict::Drop(reason) => Err(reason),
        };
        let (protocol, from) =
            marked.inspect_err(|reason| self.counts.dropped[*reason as usize] += 1)?;
        self.counts.forwarded_packets += 1;
        self.counts.forwarded_bytes += packet.len() as u64;
        let header = match protocol {
            Protocol::Ipv4 => self.header_ipv4,
            Protocol::Ipv6 => self.header_ipv6,
        };
        Ok(Encapsulation {
            concentrator: self.choice.take(from),
            header,
        })
    }

    /// Where packets go to.
    pub fn choice(&mut self) -> &mut Choice {
        &mut self.choice
    }

    /// The counts since the last call.
    pub fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }
}
