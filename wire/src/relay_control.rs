//! The messages between a concentrator and the rtp-agents it controls, and their frames.
//!
//! The story of a connection: the agent dials, both say who they are ([`FromAgent::Hello`],
//! [`ToAgent::Welcome`]), and the agent fills the concentrator's stock with [`FromAgent::Leases`]:
//! sessions whose ports are open already. The concentrator takes a lease for a call without asking,
//! tells the agent afterwards what it is for ([`ToAgent::Bind`]), and ends it with
//! [`ToAgent::Release`]. `docs/relay-control.md` writes the protocol down for other implementers.
//!
//! What may change later: fields may be added at the end of a message or structure, and messages may
//! be added. A reader skips fields it does not know; a message that it does not know decodes to
//! [`MessageError::UnknownMessage`], which it counts and skips. The index in `#[n(..)]` never changes.

use std::net::IpAddr;

use minicbor::{Decode, Encode};

pub(crate) mod address;
mod error_code;
mod frame;
mod silence;
pub mod standby;
mod statistics;

pub use error_code::ErrorCode;
pub use frame::{
    FRAME_HEADER_LEN, FrameError, Framer, MAX_FRAME_LEN, Message, MessageError, decode,
    encode_frame, request_of,
};
pub use silence::Silence;
pub use statistics::{Counted, Quality, Rejected, SessionStatistics, SideStatistics};

/// The version of the protocol that this file speaks. 2 has brought [`ToAgent::Stock`] and
/// [`GateMode::Relay`]; either end still speaks 1.
pub const VERSION: u16 = 2;

/// One side of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
#[cbor(index_only)]
pub enum Side {
    /// Faces the caller.
    #[n(0)]
    A,
    /// Faces the callee.
    #[n(1)]
    B,
}

impl Side {
    /// The side across.
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// Where one side of a session receives media.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
pub struct SideAddr {
    /// The relay's own address.
    #[cbor(n(0), with = "address::ip")]
    pub addr: IpAddr,
    /// The port for RTP, even (RFC 3550 section 11).
    #[n(1)]
    pub rtp: u16,
    /// The port for RTCP.
    #[n(2)]
    pub rtcp: u16,
}

/// A session that the agent has prepared: its ports are open and joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Lease {
    /// The session's number, never used twice within an epoch of the agent.
    #[n(0)]
    pub session: u64,
    /// The side that faces the caller.
    #[n(1)]
    pub a: SideAddr,
    /// The side that faces the callee.
    #[n(2)]
    pub b: SideAddr,
}

impl Lease {
    /// The address and ports of this side.
    pub const fn side(&self, side: Side) -> &SideAddr {
        match side {
            Side::A => &self.a,
            Side::B => &self.b,
        }
    }
}

/// How strictly a source is compared with the expected addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Encode, Decode)]
#[cbor(index_only)]
pub enum GateMode {
    /// Only an expected address.
    #[n(0)]
    #[default]
    Exact,
    /// An address in the /24 (IPv4) or /64 (IPv6) of an expected one.
    #[n(1)]
    Subnet,
    /// Any address.
    #[n(2)]
    Any,
    /// The side of another relay, which `expected` and `port` name: packets go there from the start,
    /// and nothing else is listened to. Since version 2.
    #[n(3)]
    Relay,
}

/// What a side's RTP port lets through, besides the source's being right.
///
/// Ordered by how much it lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Encode, Decode)]
#[cbor(index_only)]
pub enum Payload {
    /// RTP and RTCP, encrypted or not.
    #[n(0)]
    #[default]
    Rtp,
    /// DTLS too, for keys (RFC 5764).
    #[n(1)]
    RtpAndDtls,
    /// Any datagram: T.38 over UDPTL and whatever else SDP has declared not to be RTP.
    #[n(2)]
    Datagrams,
}

/// From whom one side may learn its peer, and what it may send.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct Gate {
    /// Addresses that signalling knows of; with none, only [`GateMode::Any`] lets a packet in.
    #[cbor(n(0), with = "address::ips")]
    pub expected: Vec<IpAddr>,
    /// Only this source port for RTP, and the next one for RTCP; any when absent, which NATs need.
    #[n(1)]
    pub port: Option<u16>,
    /// How strictly `expected` is meant.
    #[n(2)]
    pub mode: GateMode,
    /// What may pass; RTP where an older concentrator does not say.
    #[cbor(n(3), default)]
    pub payload: Payload,
    /// By the last offer and answer this side sends nothing, so that its silence ends no session;
    /// false where an older concentrator does not say.
    #[cbor(n(4), default)]
    pub held: bool,
}

/// What an agent says.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum FromAgent {
    /// The first message on a connection.
    #[n(0)]
    Hello {
        /// The highest version of the protocol that the agent speaks.
        #[n(0)]
        version: u16,
        /// The agent's name, which must be in its certificate.
        #[n(1)]
        name: String,
        /// Grows with each start of the agent; sessions of a smaller epoch are gone.
        #[n(2)]
        epoch: u64,
        /// The addresses that media may use.
        #[cbor(n(3), with = "address::ips")]
        media_addresses: Vec<IpAddr>,
        /// Program and version, for people.
        #[n(4)]
        software: String,
    },
    /// Sessions for the concentrator's stock.
    #[n(1)]
    Leases {
        /// The new ones; those named before stay.
        #[n(0)]
        leases: Vec<Lease>,
    },
    /// The request was carried out, now or before.
    #[n(2)]
    Done {
        /// The request.
        #[n(0)]
        request: u64,
    },
    /// The request was not carried out.
    #[n(3)]
    Failed {
        /// The request.
        #[n(0)]
        request: u64,
        /// Why, for the program.
        #[n(1)]
        code: ErrorCode,
        /// Why, for people.
        #[n(2)]
        text: String,
    },
    /// The first media packet of this side went through its gate.
    #[n(4)]
    MediaStarted {
        /// The session.
        #[n(0)]
        session: u64,
        /// The side.
        #[n(1)]
        side: Side,
    },
    /// A session ends for want of media; an [`FromAgent::Ended`] follows.
    #[n(5)]
    MediaTimeout {
        /// The session.
        #[n(0)]
        session: u64,
        /// Which limit it reached.
        #[cbor(n(1), default)]
        silence: Silence,
    },
    /// A bound session is over; its ports are closed.
    #[n(6)]
    Ended {
        /// The session.
        #[n(0)]
        session: u64,
        /// What it did.
        #[n(1)]
        stats: SessionStatistics,
    },
    /// The answer to [`ToAgent::Query`].
    #[n(7)]
    Statistics {
        /// The request.
        #[n(0)]
        request: u64,
        /// The session.
        #[n(1)]
        session: u64,
        /// What it has done so far.
        #[n(2)]
        stats: SessionStatistics,
    },
    /// Still there?
    #[n(8)]
    Heartbeat {
        /// Returned in the answer.
        #[n(0)]
        seq: u64,
    },
    /// Still here.
    #[n(9)]
    HeartbeatAck {
        /// The number of the heartbeat answered.
        #[n(0)]
        seq: u64,
    },
    /// The agent gives no new leases and takes no new binds; sessions in use go on.
    #[n(10)]
    Draining,
}

/// What a concentrator says to an agent.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum ToAgent {
    /// The answer to [`FromAgent::Hello`].
    #[n(0)]
    Welcome {
        /// The version to speak, at most the one that the agent offered.
        #[n(0)]
        version: u16,
        /// The concentrator's name.
        #[n(1)]
        name: String,
        /// How many unbound leases the concentrator wants to hold.
        #[n(2)]
        stock: u32,
        /// How often each end sends a heartbeat; three unanswered mean that the other is lost.
        #[n(3)]
        heartbeat_ms: u32,
    },
    /// This lease is now a call's; a second bind of one session by its owner replaces the first.
    #[n(1)]
    Bind {
        /// Returned in the answer.
        #[n(0)]
        request: u64,
        /// The session.
        #[n(1)]
        session: u64,
        /// From whom side A may learn.
        #[n(2)]
        a: Gate,
        /// From whom side B may learn.
        #[n(3)]
        b: Gate,
        /// The call, for logs.
        #[n(4)]
        call: String,
    },
    /// One side's gate changes.
    #[n(2)]
    Update {
        /// Returned in the answer.
        #[n(0)]
        request: u64,
        /// The session.
        #[n(1)]
        session: u64,
        /// The side.
        #[n(2)]
        side: Side,
        /// The new gate.
        #[n(3)]
        gate: Gate,
    },
    /// The session is over; a [`FromAgent::Ended`] follows if it was bound.
    #[n(3)]
    Release {
        /// Returned in the answer.
        #[n(0)]
        request: u64,
        /// The session.
        #[n(1)]
        session: u64,
    },
    /// What has this session done?
    #[n(4)]
    Query {
        /// Returned in the answer.
        #[n(0)]
        request: u64,
        /// The session.
        #[n(1)]
        session: u64,
    },
    /// Still there?
    #[n(5)]
    Heartbeat {
        /// Returned in the answer.
        #[n(0)]
        seq: u64,
    },
    /// Still here.
    #[n(6)]
    HeartbeatAck {
        /// The number of the heartbeat answered.
        #[n(0)]
        seq: u64,
    },
    /// From now on so many unbound leases, in place of what the Welcome said. Since version 2.
    #[n(7)]
    Stock {
        /// Returned in the answer.
        #[n(0)]
        request: u64,
        /// How many unbound leases the concentrator wants to hold.
        #[n(1)]
        stock: u32,
    },
}

#[cfg(test)]
mod tests;
