//! Where a message came from and where one goes.
//!
//! A [`Flow`] is how to reach a user agent: for UDP the pair of addresses, for a stream transport
//! the connection as well. A [`Hop`] is a flow together with the relay that the edge's mark named
//! on the way in. A [`Transmit`] is what the machines of this crate produce: bytes for a flow.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;

use bytes::Bytes;
use wire::mark::RelayId;

use crate::cookie::Owner;

/// A SIP transport (RFC 3261 section 18, RFC 7118).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// Datagrams.
    Udp,
    /// A TCP connection.
    Tcp,
    /// TLS over TCP.
    Tls,
    /// WebSocket over TCP.
    Ws,
    /// WebSocket over TLS.
    Wss,
}

impl Transport {
    /// True where the transport retransmits by itself, so that the transaction timers that
    /// retransmit stay off (RFC 3261 section 17).
    pub const fn is_reliable(self) -> bool {
        match self {
            Self::Udp => false,
            Self::Tcp | Self::Tls | Self::Ws | Self::Wss => true,
        }
    }

    /// True for TLS, alone or under WebSocket: what a `sips:` URI asks of every hop.
    pub const fn is_secure(self) -> bool {
        match self {
            Self::Tls | Self::Wss => true,
            Self::Udp | Self::Tcp | Self::Ws => false,
        }
    }

    /// The name in a Via header: `UDP`, `TCP`, `TLS`, `WS`, `WSS`.
    pub const fn via_name(self) -> &'static str {
        match self {
            Self::Udp => "UDP",
            Self::Tcp => "TCP",
            Self::Tls => "TLS",
            Self::Ws => "WS",
            Self::Wss => "WSS",
        }
    }

    /// Its number in cookies and on the links between concentrators.
    pub const fn number(self) -> u8 {
        match self {
            Self::Udp => 0,
            Self::Tcp => 1,
            Self::Tls => 2,
            Self::Ws => 3,
            Self::Wss => 4,
        }
    }

    /// The transport of this number.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Udp, Self::Tcp, Self::Tls, Self::Ws, Self::Wss]
            .into_iter()
            .find(|transport| transport.number() == number)
    }

    /// The transport that a name in a Via header or a `transport` parameter means, in any case.
    pub fn from_name(name: &[u8]) -> Option<Self> {
        [Self::Udp, Self::Tcp, Self::Tls, Self::Ws, Self::Wss]
            .into_iter()
            .find(|transport| name.eq_ignore_ascii_case(transport.via_name().as_bytes()))
    }
}

/// One accepted connection, unique among all concentrators that share registrations and among their
/// lives: the number of the concentrator that has it in the upper 16 bits, the number that its process has drawn in the next 16, then a
/// count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

impl ConnectionId {
    /// The first connection of this concentrator, 0 where it is alone, in the life that has drawn `owner`.
    pub const fn first(concentrator: u16, owner: Owner) -> Self {
        Self((concentrator as u64) << 48 | (owner.0 as u64) << 32 | 1)
    }

    /// What its process has drawn, which is in its cookies too.
    pub const fn owner(self) -> Owner {
        Owner((self.0 >> 32) as u16)
    }

    /// The number of the concentrator that has it; 0 where that is alone.
    pub const fn concentrator(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// True where both are of the same concentrator, in the same life of it.
    pub const fn is_of_the_life_of(self, other: Self) -> bool {
        self.0 >> 32 == other.0 >> 32
    }
}

/// How to reach a user agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// The transport.
    pub transport: Transport,
    /// The user agent's address as we see it: behind a NAT, the NAT's.
    pub peer: SocketAddr,
    /// The service address and port it talks to.
    pub local: SocketAddr,
    /// The connection, for every transport but UDP.
    pub connection: Option<ConnectionId>,
}

/// In few pieces: every message is looked up by its flow.
impl Hash for Flow {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash_address(self.peer, self.transport as u16, state);
        hash_address(self.local, 0, state);
        if let Some(ConnectionId(connection)) = self.connection {
            state.write_u64(connection);
        }
    }
}

fn hash_address<H: Hasher>(address: SocketAddr, beside: u16, state: &mut H) {
    let ports = u64::from(beside) << 16 | u64::from(address.port());
    match address {
        SocketAddr::V4(v4) => state.write_u64(ports << 32 | u64::from(v4.ip().to_bits())),
        SocketAddr::V6(v6) => {
            state.write(&v6.ip().octets());
            state.write_u64(ports);
        }
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.transport.via_name(), self.peer)
    }
}

/// Where a message came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hop {
    /// The flow that the message used.
    pub flow: Flow,
    /// The relay of the edge that carried it; `None` when it did not come through a tunnel or
    /// the edge has no relay of its own.
    pub relay: Option<RelayId>,
}

/// A message to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub flow: Flow,
    /// The whole message.
    pub bytes: Bytes,
}
