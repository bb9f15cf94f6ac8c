//! PURE. A packet in, a marked packet and its tunnel header out; and the counts.

use std::net::IpAddr;

use wire::encapsulation::{Encapsulation as Wrapping, Header};
use wire::gre::{Repr, TunnelKey};
use wire::mark::{Mark, stamp};

use crate::choice::Choice;
use crate::classify::{DropReason, Passage, Verdict, classify};
use crate::config::Config;
use crate::limits::Limits;

/// What goes in front of a packet, and where both go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encapsulation {
    /// The outer destination.
    pub concentrator: IpAddr,
    /// The outer source, by its place in [`crate::config::Tunnel::sources`].
    pub source: usize,
    /// UDP, if any, and GRE.
    pub header: Header,
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
    limits: Limits,
    choice: Choice,
    key: TunnelKey,
    wrapping: Wrapping,
    sources: usize,
    counts: Counts,
}

impl Forwarder {
    /// A forwarder for this configuration. `random` is known to nobody else.
    pub fn new(config: &Config, random: u64) -> Self {
        Self {
            service_addresses: config.service_addresses.clone(),
            mark: config.relay.mark,
            limits: Limits::new(&config.limits, random),
            choice: Choice::new(&config.tunnel.concentrators, config.tunnel.hash_key),
            key: config.relay.key,
            wrapping: config.tunnel.encapsulation,
            sources: config.tunnel.sources().count(),
            counts: Counts::default(),
        }
    }

    /// Stamps the mark into the packet and says where it goes; or drops it, leaves it as it is and
    /// says why. `now_ns` is the time since some moment in the past.
    pub fn forward(&mut self, packet: &mut [u8], now_ns: u64) -> Result<Encapsulation, DropReason> {
        let verdict = match classify(packet, &self.service_addresses) {
            Verdict::Forward(passage) => self.mark(packet, passage, now_ns),
            Verdict::Drop(reason) => Err(reason),
        };
        let passage = verdict.inspect_err(|reason| self.counts.dropped[*reason as usize] += 1)?;
        self.counts.forwarded_packets += 1;
        self.counts.forwarded_bytes += packet.len() as u64;
        let (key, protocol) = (self.key, passage.protocol);
        let repr = Repr { key, protocol };
        Ok(Encapsulation {
            concentrator: self.choice.take(passage.user_agent),
            source: passage.entropy.choose(self.sources),
            header: self.wrapping.header(repr, passage.entropy, packet.len()),
        })
    }

    fn mark(
        &mut self,
        packet: &mut [u8],
        passage: Passage,
        now_ns: u64,
    ) -> Result<Passage, DropReason> {
        self.limits.admit(passage.source, now_ns)?;
        // It cannot fail for a packet whose headers have been read.
        stamp(packet, self.mark).map_err(|_| DropReason::Truncated)?;
        Ok(passage)
    }

    /// From now on this is the key.
    pub fn set_key(&mut self, key: TunnelKey) {
        self.key = key;
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
