//! Which addresses of an SDP are believed, and whether a party is behind a NAT.
//!
//! A relay never sends to an address because an SDP names it: it sends to where packets have come
//! from, and the addresses here only decide from where packets may come. So an address that no
//! media can honestly come from, or that is one of our own, is left out (CVE-2020-26262 is a relay
//! that was talked into its own loopback).

use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;
use sip::message::{Host, Uri};
use sip::sdp::{Direction, Media};
use wire::relay_control::{Gate, GateMode, Payload};

/// A gate for exactly these addresses, from any port, because a NAT chooses the port.
pub(super) const fn gate(expected: Vec<IpAddr>, payload: Payload) -> Gate {
    Gate {
        expected,
        port: None,
        mode: GateMode::Exact,
        payload,
        held: false,
    }
}

/// What a media line of this protocol carries (RFC 8866 section 5.14): what is not RTP, such as
/// T.38's `udptl`, passes as it is.
pub(super) fn payload_of(media: &Media<'_>) -> Payload {
    if !media.is_rtp() {
        Payload::Datagrams
    } else if media.is_over_dtls() {
        Payload::RtpAndDtls
    } else {
        Payload::Rtp
    }
}

/// Whether the writer of a media line sends, and whether it wants to hear anything: its direction, and
/// the unspecified address that means hold in RFC 2543.
pub(super) fn direction_of(media: &Media<'_>) -> Direction {
    match (media.is_held(), media.direction) {
        (false, direction) => direction,
        (true, Direction::SendRecv | Direction::SendOnly) => Direction::SendOnly,
        (true, Direction::RecvOnly | Direction::Inactive) => Direction::Inactive,
    }
}

/// True where media may come from an address that an SDP names; `own` are our own networks.
pub(super) fn may_send(address: IpAddr, own: &[IpNetwork]) -> bool {
    let address = address.to_canonical();
    let special = match address {
        IpAddr::V4(v4) => v4.octets()[0] == 0 || is_reserved(v4),
        IpAddr::V6(_) => false,
    };
    !(special
        || address.is_loopback()
        || address.is_unspecified()
        || address.is_multicast()
        || own.iter().any(|network| network.contains(address)))
}

/// 240.0.0.0/4 (RFC 1112 section 4), the broadcast address included.
const fn is_reserved(address: Ipv4Addr) -> bool {
    address.octets()[0] >= 240
}

/// True where a party believes in an address that its packets do not come from.
pub(super) fn behind_nat(claimed: Option<IpAddr>, seen: IpAddr) -> bool {
    claimed.is_none_or(|claimed| claimed != seen)
}

/// The address in the URI of a contact, if it is one.
pub(super) fn contact_address(contact: &[u8]) -> Option<IpAddr> {
    match Uri::parse(contact).ok()?.host {
        Host::V4(address) => Some(IpAddr::V4(address)),
        Host::V6(address) => Some(IpAddr::V6(address)),
        Host::Name(_) => None,
    }
}
