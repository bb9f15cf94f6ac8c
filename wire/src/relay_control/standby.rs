//! The messages between the two rtp-agents of a pair, of which one relays and the other stands by.
//!
//! Both ends say the same messages ([`PeerMessage`]); frames and encoding are those of relay control.
//! The story of a connection: both send [`PeerMessage::Hello`]. The one whose table is the newer one
//! sends a snapshot of it ([`PeerMessage::SnapshotBegin`], [`PeerMessage::Sessions`],
//! [`PeerMessage::SnapshotEnd`]), and from then on every session that has changed, whole, and every one
//! that is over. When an agent's role changes it says so ([`PeerMessage::Standing`]).
//! `docs/standby.md` writes the protocol down for other implementers.

use std::net::{IpAddr, SocketAddr};

use minicbor::{Decode, Encode};

use super::{Gate, Lease, Message, SideStatistics};

/// The version of the standby protocol that this file speaks.
pub const STANDBY_VERSION: u16 = 1;

/// What one agent of a pair says to the other.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum PeerMessage {
    /// The first message on a connection, from both ends.
    #[n(0)]
    Hello {
        /// The highest version that the sender speaks.
        #[n(0)]
        version: u16,
        /// The name of the pair, which must be in the sender's certificate.
        #[n(1)]
        name: String,
        /// Where the sender stands.
        #[n(2)]
        standing: Standing,
        /// The media addresses that the pair shares, as configured.
        #[cbor(n(3), with = "super::address::ips")]
        media_addresses: Vec<IpAddr>,
        /// The first media port, as configured.
        #[n(4)]
        first_port: u16,
        /// The last media port.
        #[n(5)]
        last_port: u16,
        /// How often the sender will show that it lives, in milliseconds; four of them without a message
        /// mean that it is lost.
        #[n(6)]
        heartbeat_ms: u32,
        /// Program and version, for people.
        #[n(7)]
        software: String,
    },
    /// The sender's role has changed.
    #[n(1)]
    Standing {
        /// The new one.
        #[n(0)]
        standing: Standing,
    },
    /// All sessions of the sender's table follow; what is not named before the end is over.
    #[n(2)]
    SnapshotBegin {
        /// Which table, and its term.
        #[n(0)]
        standing: Standing,
    },
    /// Sessions that are new or have changed, whole.
    #[n(3)]
    Sessions {
        /// The sessions.
        #[n(0)]
        sessions: Vec<SessionRecord>,
    },
    /// The snapshot is complete.
    #[n(4)]
    SnapshotEnd,
    /// These sessions are over.
    #[n(5)]
    Over {
        /// Their numbers.
        #[n(0)]
        sessions: Vec<u64>,
    },
    /// Still here.
    #[n(6)]
    Heartbeat,
}

impl Message for PeerMessage {
    const LAST: u32 = 6;
}

/// Which table of sessions an agent has, and whether it is in charge of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
pub struct Standing {
    /// Grows with every take-over; 0 before the agent has had a table.
    #[n(0)]
    pub term: u64,
    /// The epoch that the agent which began the table has told the concentrators.
    #[n(1)]
    pub epoch: u64,
    /// The agent is in charge: it has the media addresses, and it speaks with the concentrators.
    #[n(2)]
    pub active: bool,
}

/// What a session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Encode, Decode)]
#[cbor(index_only)]
pub enum Phase {
    /// No call yet.
    #[n(0)]
    #[default]
    Lease,
    /// A call.
    #[n(1)]
    Bound,
    /// A call that is over; packets in flight still pass.
    #[n(2)]
    Lingering,
}

/// A session with all that another agent needs to go on with it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct SessionRecord {
    /// Its number and its ports.
    #[n(0)]
    pub lease: Lease,
    /// Where the concentrator that it was leased to takes connections.
    #[cbor(n(1), with = "super::address::socket", has_nil)]
    pub owner: Option<SocketAddr>,
    /// What it is for.
    #[n(2)]
    pub phase: Phase,
    /// How long it has been bound.
    #[n(3)]
    pub bound_for_ms: u64,
    /// The call, for logs.
    #[n(4)]
    pub call: String,
    /// The side of the caller.
    #[n(5)]
    pub a: SideRecord,
    /// The side of the callee.
    #[n(6)]
    pub b: SideRecord,
}

/// One side of a session.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct SideRecord {
    /// From whom it may learn; absent before the bind.
    #[n(0)]
    pub gate: Option<Gate>,
    /// What the RTP port has learnt.
    #[n(1)]
    pub rtp: LatchRecord,
    /// What the RTCP port has learnt.
    #[n(2)]
    pub rtcp: LatchRecord,
    /// The concentrator has been told of this side's first packet.
    #[n(3)]
    pub started: bool,
    /// What it has counted; some seconds old.
    #[n(4)]
    pub statistics: SideStatistics,
}

/// Which source a port has latched to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
pub struct LatchRecord {
    /// The source.
    #[cbor(n(0), with = "super::address::socket", has_nil)]
    pub peer: Option<SocketAddr>,
    /// The SSRC of its last packet that had one.
    #[n(1)]
    pub ssrc: Option<u32>,
    /// Signalling has set a new gate since: another SSRC may take over once.
    #[n(2)]
    pub relearn: bool,
    /// A source may be learnt, or taken over by another SSRC, for so long from now on; absent: no more.
    #[n(3)]
    pub learn_for_ms: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::super::{
        Counted, FRAME_HEADER_LEN, GateMode, MAX_FRAME_LEN, MessageError, Payload, Quality,
        SideAddr, decode, encode_frame,
    };
    use super::*;

    #[test]
    fn every_message_comes_back_as_it_went() {
        for message in every_message() {
            let frame = encode_frame(&message).unwrap();
            assert_eq!(decode(&frame[FRAME_HEADER_LEN..]), Ok(message));
        }
    }

    #[test]
    fn no_truncation_of_a_message_decodes_or_panics() {
        for message in every_message() {
            let frame = encode_frame(&message).unwrap();
            for end in FRAME_HEADER_LEN..frame.len() {
                assert!(decode::<PeerMessage>(&frame[FRAME_HEADER_LEN..end]).is_err());
            }
        }
    }

    #[test]
    fn a_message_of_a_later_version_is_named_and_a_later_field_skipped() {
        assert_eq!(
            decode::<PeerMessage>(&[0x82, 7, 0x80]),
            Err(MessageError::UnknownMessage(7))
        );
        // Standing with a fourth field in it.
        let longer = [0x82, 1, 0x81, 0x84, 3, 9, 0xf5, 0x18, 99];
        let standing = Standing {
            term: 3,
            epoch: 9,
            active: true,
        };
        assert_eq!(decode(&longer), Ok(PeerMessage::Standing { standing }));
    }

    #[test]
    fn thirty_two_sessions_of_the_largest_kind_fit_into_a_frame() {
        let sessions = vec![largest(); 32];
        let frame = encode_frame(&PeerMessage::Sessions { sessions }).unwrap();
        assert!(frame.len() <= MAX_FRAME_LEN, "{}", frame.len());
    }

    fn every_message() -> Vec<PeerMessage> {
        let standing = Standing {
            term: 3,
            epoch: 1_700_000_000_000_000,
            active: true,
        };
        let lease = SessionRecord {
            owner: None,
            phase: Phase::Lease,
            bound_for_ms: 0,
            call: String::new(),
            a: SideRecord::default(),
            b: SideRecord::default(),
            ..largest()
        };
        vec![
            PeerMessage::Hello {
                version: STANDBY_VERSION,
                name: "relay1".to_owned(),
                standing,
                media_addresses: vec![[192, 0, 2, 1].into(), IpAddr::from([1_u16; 8])],
                first_port: 30_000,
                last_port: 39_999,
                heartbeat_ms: 500,
                software: "test".to_owned(),
            },
            PeerMessage::Standing { standing },
            PeerMessage::SnapshotBegin { standing },
            PeerMessage::Sessions {
                sessions: vec![largest(), lease],
            },
            PeerMessage::SnapshotEnd,
            PeerMessage::Over {
                sessions: vec![1, u64::MAX],
            },
            PeerMessage::Heartbeat,
        ]
    }

    fn largest() -> SessionRecord {
        let address = IpAddr::from([0x2001_u16; 8]);
        let socket = Some(SocketAddr::new(address, 65_535));
        let latch = LatchRecord {
            peer: socket,
            ssrc: Some(u32::MAX),
            relearn: true,
            learn_for_ms: Some(u64::MAX),
        };
        let counted = Counted {
            packets_in: u64::MAX,
            bytes_in: u64::MAX,
            packets_out: u64::MAX,
            bytes_out: u64::MAX,
        };
        let side = SideRecord {
            gate: Some(Gate {
                expected: vec![address; 16],
                port: Some(65_535),
                mode: GateMode::Subnet,
                payload: Payload::Datagrams,
                held: true,
            }),
            rtp: latch,
            rtcp: latch,
            started: true,
            statistics: SideStatistics {
                rtp: counted,
                rtcp: counted,
                lost: u64::MAX,
                jitter: u32::MAX,
                latched_rtp: socket,
                latched_rtcp: socket,
                waited: u64::MAX,
                quality: Some(Quality {
                    expected: u64::MAX,
                    r_factor: u8::MAX,
                    mos_x100: u16::MAX,
                    jitter_us: u32::MAX,
                    burst_density: u8::MAX,
                    gap_density: u8::MAX,
                    burst_ms: u16::MAX,
                    gap_ms: u16::MAX,
                }),
                ..SideStatistics::default()
            },
        };
        let of_side = SideAddr {
            addr: address,
            rtp: 65_534,
            rtcp: 65_535,
        };
        SessionRecord {
            lease: Lease {
                session: u64::MAX,
                a: of_side,
                b: of_side,
            },
            owner: socket,
            phase: Phase::Bound,
            bound_for_ms: u64::MAX,
            call: "c".repeat(256),
            a: side.clone(),
            b: side,
        }
    }
}
