//! The four ports of a session, by number.

use std::net::SocketAddr;

use wire::relay_control::{Side, SideAddr};

use crate::relay::{RelayPort, SessionId};
use crate::session::Component;

/// Which of a session's ports: 0 to 3.
pub(super) type PortNumber = usize;

/// A session's ports, in the order of their numbers.
pub(super) const PORTS: usize = 4;
pub(super) const USES: [(Side, Component); PORTS] = [
    (Side::A, Component::Rtp),
    (Side::A, Component::Rtcp),
    (Side::B, Component::Rtp),
    (Side::B, Component::Rtcp),
];

/// Sessions that share a thread before the next thread gets some: few sessions on many threads would
/// wake them all for a packet or two.
pub(super) const NEIGHBOURS: usize = 256;

/// The port of the other side with the same use: what comes in on the one goes out of the other.
pub(super) const fn across(number: PortNumber) -> PortNumber {
    (number + PORTS / 2) % PORTS
}

/// What the relay calls this port.
pub(super) fn name(session: SessionId, number: PortNumber) -> RelayPort {
    let (side, component) = USES[number % PORTS];
    RelayPort {
        session,
        side,
        component,
    }
}

/// The addresses of the ports of these sides.
pub(super) fn addresses(a: SideAddr, b: SideAddr) -> [SocketAddr; PORTS] {
    USES.map(|(side, component)| {
        let addr = match side {
            Side::A => a,
            Side::B => b,
        };
        let port = match component {
            Component::Rtp => addr.rtp,
            Component::Rtcp => addr.rtcp,
        };
        SocketAddr::new(addr.addr, port)
    })
}
