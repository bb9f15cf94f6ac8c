//! From where a party's media may come, judged by what its proxy tells.
//!
//! Signalling names up to two addresses: that of the SDP, and `received-from`, where the SIP message came
//! from. Media may come from
//!
//! * `received-from` alone with the flag `SIP-source-address`: then the SDP is known to be wrong;
//! * else both, but not from a private address in the SDP of a party that is seen at a public one: it is
//!   behind a NAT;
//! * anywhere, by configuration, where no address is left: in its daemon-parsed mode Kamailio sends no
//!   `received-from`, and a phone behind a NAT would never be heard. The first source that sends is learnt
//!   then and kept to ([`crate::latch`]), and such gates are counted.
//!
//! An address that no media can honestly come from (loopback, multicast, reserved, one of our own) is never
//! among them (CVE-2020-26262).

use std::net::{IpAddr, Ipv4Addr};

use sip::sdp::{Direction, Media};
use wire::ip::is_another_host;
use wire::relay_control::{Gate, GateMode, Payload};

use super::request::Request;
use super::settings::UnknownSource;

/// From where a party's media may come, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// These addresses.
    pub expected: Vec<IpAddr>,
    /// Or any.
    pub open: bool,
    /// What may pass.
    pub payload: Payload,
    /// The SDP names an address that no media can come from.
    pub hostile: bool,
    /// Whether the party sends, and whether it wants to hear anything.
    pub direction: Direction,
}

impl Sources {
    /// Of one m-line; `own` are our addresses.
    pub fn of(
        media: &Media<'_>,
        request: &Request,
        own: &[IpAddr],
        unknown: UnknownSource,
    ) -> Self {
        let believed = media.address.map(|address| address.to_canonical());
        let believed = believed.filter(|_| !media.is_held() && !media.is_rejected());
        let in_sdp = believed.filter(|address| may_send(*address, own));
        let seen = request
            .received_from
            .filter(|address| may_send(*address, own));
        let mut sources = Self {
            expected: Vec::new(),
            open: false,
            payload: media.payload(),
            hostile: in_sdp != believed,
            direction: media.direction_with_hold(),
        };
        match (in_sdp, seen) {
            (Some(in_sdp), Some(seen)) => {
                let behind_nat = is_private(in_sdp) && !is_private(seen);
                if !request.sip_source_address && !behind_nat {
                    sources.expected.push(in_sdp);
                }
                sources.add(seen);
            }
            (None, Some(seen)) => sources.expected.push(seen),
            (Some(in_sdp), None) => {
                sources.expected.push(in_sdp);
                sources.open = is_private(in_sdp) && unknown == UnknownSource::Any;
            }
            (None, None) => sources.open = !sources.hostile && unknown == UnknownSource::Any,
        }
        sources
    }

    /// The gate that lets these in, and those of `before`, which may still hold.
    pub fn gate(&self, before: Option<&Self>) -> Gate {
        let mut all = self.clone();
        for address in before.iter().flat_map(|before| &before.expected) {
            all.add(*address);
        }
        let open = self.open || before.is_some_and(|before| before.open);
        let payload = before.map_or(self.payload, |before| before.payload.max(self.payload));
        Gate {
            expected: all.expected,
            port: None,
            mode: if open { GateMode::Any } else { GateMode::Exact },
            payload,
            held: false,
        }
    }

    fn add(&mut self, address: IpAddr) {
        if !self.expected.contains(&address) {
            self.expected.push(address);
        }
    }
}

fn may_send(address: IpAddr, own: &[IpAddr]) -> bool {
    is_another_host(address) && !own.contains(&address.to_canonical())
}

/// RFC 1918, RFC 6598, RFC 4193, link-local.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_private() || v4.is_link_local() || is_shared(v4),
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

/// 100.64.0.0/10, behind a carrier's NAT.
const fn is_shared(address: Ipv4Addr) -> bool {
    let [first, second, ..] = address.octets();
    first == 100 && second & 0xc0 == 64
}
