//! Which addresses of an SDP are believed, and whether a party is behind a NAT.
//!
//! A relay never sends to an address because an SDP names it: it sends to where packets have come
//! from, and the addresses here only decide from where packets may come. So an address that no
//! media can honestly come from, or that is one of our own, is left out (CVE-2020-26262 is a relay
//! that was talked into its own loopback).

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use sip::message::{Host, Uri};
use wire::ip::is_another_host;
use wire::relay_control::{Gate, GateMode, Payload, SideAddr};

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

/// A gate for exactly this side of another relay.
pub(super) fn gate_for_relay(other: SideAddr, payload: Payload, held: bool) -> Gate {
    Gate {
        expected: vec![other.addr],
        port: Some(other.rtp),
        mode: GateMode::Relay,
        payload,
        held,
    }
}

/// True where media may come from an address that an SDP names; `own` are our own networks.
pub(super) fn may_send(address: IpAddr, own: &[IpNetwork]) -> bool {
    let address = address.to_canonical();
    is_another_host(address) && !own.iter().any(|network| network.contains(address))
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
