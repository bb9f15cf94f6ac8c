//! What the concentrators of one service say to each other.
//!
//! Each dials every other one and speaks on its own connection; on one that it was dialled on it says
//! [`CoreMessage::Hello`] and then [`CoreMessage::Heartbeat`] and [`CoreMessage::Heard`], nothing else. The story of a connection:
//! both ends say Hello, and know each other's [`Hello::owner`], the number that is in the cookies and in
//! the numbers of connections. The dialling end names its open connections with user agents
//! ([`CoreMessage::Opened`], then [`CoreMessage::Complete`]) and from then on every one that opens or
//! closes. Beside that go SIP messages: [`CoreMessage::Received`] has come in at the sender and is the
//! receiver's, whose cookie is in it; [`CoreMessage::Send`] is to go out on a connection that the receiver
//! has. And [`CoreMessage::Record`] is a registration, for whoever does not hear it from the cluster.
//!
//! Frames and encoding are those of [`crate::relay_control`], and so are the rules of what may change: a
//! message that a build does not know is counted and skipped, fields are added at the end.
//! `docs/core-link.md` writes the protocol down.

use std::fmt;
use std::net::SocketAddr;

use minicbor::{Decode, Encode};

use crate::relay_control::Message;

/// The version of the protocol that this file speaks.
pub const VERSION: u16 = 1;

/// Connections in one [`CoreMessage::Opened`], so that it always fits a frame.
pub const CONNECTIONS_A_MESSAGE: usize = 1_000;

/// What one concentrator says to another.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum CoreMessage {
    /// The first message of both ends.
    #[n(0)]
    Hello {
        /// Who speaks.
        #[n(0)]
        hello: Hello,
    },
    /// Still here.
    #[n(1)]
    Heartbeat,
    /// A SIP message that came in at the sender.
    #[n(2)]
    Received {
        /// By which flow.
        #[n(0)]
        flow: FlowRecord,
        /// The tunnel key and the mark that it came with.
        #[n(1)]
        relay: Option<RelayRecord>,
        /// The whole message.
        #[cbor(n(2), with = "minicbor::bytes")]
        message: Vec<u8>,
    },
    /// A SIP message for a connection that the receiver has.
    #[n(3)]
    Send {
        /// The connection.
        #[n(0)]
        flow: FlowRecord,
        /// The whole message.
        #[cbor(n(1), with = "minicbor::bytes")]
        message: Vec<u8>,
    },
    /// What was to be sent to this flow was not: its connection is gone.
    #[n(4)]
    Unsent {
        /// The flow.
        #[n(0)]
        flow: FlowRecord,
    },
    /// The sender has these connections: their packets are its.
    #[n(5)]
    Opened {
        /// At most [`CONNECTIONS_A_MESSAGE`].
        #[n(0)]
        connections: Vec<ConnectionRecord>,
    },
    /// The sender has them no more.
    #[n(6)]
    Closed {
        /// At most [`CONNECTIONS_A_MESSAGE`].
        #[n(0)]
        connections: Vec<ConnectionRecord>,
    },
    /// All connections that the sender had when this one was set up have been named.
    #[n(7)]
    Complete,
    /// What the end that was dialled has heard. Still here, too.
    #[n(8)]
    Heard {
        /// Messages with something of SIP in them ([`CoreMessage::is_numbered`]) since the other one's start.
        #[n(0)]
        count: u64,
        /// Nothing has come for longer than there should be between two messages: who hears this may not be
        /// heard.
        #[n(1)]
        silent: bool,
    },
    /// A registration that the sender took, or its end.
    #[n(9)]
    Record {
        /// As it is in the cluster's bucket.
        #[cbor(n(0), with = "minicbor::bytes")]
        record: Vec<u8>,
    },
}

impl CoreMessage {
    /// True for those that [`CoreMessage::Heard`] counts, and that a link which follows another one brings if
    /// that one has not.
    pub const fn is_numbered(&self) -> bool {
        matches!(
            self,
            Self::Received { .. } | Self::Send { .. } | Self::Unsent { .. }
        )
    }
}

impl Message for CoreMessage {
    const LAST: u32 = 9;
}

/// Who speaks.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// The highest version that the sender speaks.
    #[n(0)]
    pub version: u16,
    /// The sender's name, which must be in its certificate.
    #[n(1)]
    pub name: String,
    /// What marks the sender's cookies and connections; another one with each start.
    #[n(2)]
    pub owner: u16,
    /// How often the sender will show that it lives, in milliseconds.
    #[n(3)]
    pub heartbeat_ms: u32,
    /// Program and version, for people.
    #[n(4)]
    pub software: String,
    /// Of the end that was dialled: the count of [`CoreMessage::Heard`] so far, over all connections.
    #[n(5)]
    pub heard: Option<u64>,
}

/// How a user agent is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct FlowRecord {
    /// The transport: 0 UDP, 1 TCP, 2 TLS, 3 WebSocket, 4 secure WebSocket.
    #[n(0)]
    pub transport: u8,
    /// The user agent.
    #[cbor(n(1), with = "crate::relay_control::address::plain_socket")]
    pub peer: SocketAddr,
    /// The service address and port.
    #[cbor(n(2), with = "crate::relay_control::address::plain_socket")]
    pub local: SocketAddr,
    /// The number of the connection.
    #[n(3)]
    pub connection: Option<u64>,
}

/// Tunnel key and mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct RelayRecord {
    /// The tunnel key.
    #[n(0)]
    pub key: u32,
    /// The mark, 1..=63.
    #[n(1)]
    pub mark: u8,
}

/// The two ends of a TCP connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
pub struct ConnectionRecord {
    /// The user agent.
    #[cbor(n(0), with = "crate::relay_control::address::plain_socket")]
    pub peer: SocketAddr,
    /// The service address and port.
    #[cbor(n(1), with = "crate::relay_control::address::plain_socket")]
    pub local: SocketAddr,
}

impl fmt::Debug for ConnectionRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.peer, self.local)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay_control::{
        FRAME_HEADER_LEN, MAX_FRAME_LEN, MessageError, decode, encode_frame,
    };

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
                assert!(decode::<CoreMessage>(&frame[FRAME_HEADER_LEN..end]).is_err());
            }
        }
    }

    #[test]
    fn a_message_of_a_later_version_is_named() {
        assert_eq!(
            decode::<CoreMessage>(&[0x82, 10, 0x80]),
            Err(MessageError::UnknownMessage(10))
        );
    }

    /// One release of difference: a Hello without what this one has appended.
    #[test]
    fn a_hello_of_the_build_before_is_understood() {
        let frame = [0x82, 0, 0x81, 0x85, 1, 0x61, b'c', 9, 0x18, 100, 0x60];
        let hello = Hello {
            version: 1,
            name: "c".to_owned(),
            owner: 9,
            heartbeat_ms: 100,
            software: String::new(),
            heard: None,
        };
        assert_eq!(decode(&frame), Ok(CoreMessage::Hello { hello }));
    }

    /// One release of difference: what the next one appends to a message must not make it unreadable.
    #[test]
    fn fields_of_a_later_version_are_skipped() {
        for message in every_message() {
            let mut payload = encode_frame(&message).unwrap()[FRAME_HEADER_LEN..].to_vec();
            // [number, [fields]], the fields at the end.
            let fields = payload
                .get(2)
                .copied()
                .filter(|head| (0x80..0x97).contains(head));
            let Some(head) = fields else {
                panic!("{message:?} has no short array of fields");
            };
            payload[2] = head + 1;
            payload.push(7);
            assert_eq!(decode(&payload), Ok(message));
        }
    }

    #[test]
    fn as_many_connections_as_are_allowed_fit_into_a_frame() {
        let connections = vec![connection("[2001:db8::ffff]:65535"); CONNECTIONS_A_MESSAGE];
        let frame = encode_frame(&CoreMessage::Opened { connections }).unwrap();
        assert!(frame.len() <= MAX_FRAME_LEN, "{}", frame.len());
    }

    fn every_message() -> Vec<CoreMessage> {
        let flow = FlowRecord {
            transport: 2,
            peer: "203.0.113.7:40000".parse().unwrap(),
            local: "[2001:db8::1]:5061".parse().unwrap(),
            connection: Some(u64::MAX),
        };
        let connections = vec![connection("203.0.113.7:40000"), connection("[::1]:1")];
        vec![
            CoreMessage::Hello {
                hello: Hello {
                    version: VERSION,
                    name: "concentrator1".to_owned(),
                    owner: u16::MAX,
                    heartbeat_ms: 100,
                    software: "test".to_owned(),
                    heard: Some(7),
                },
            },
            CoreMessage::Heartbeat,
            CoreMessage::Heard {
                count: u64::MAX,
                silent: true,
            },
            CoreMessage::Received {
                flow: FlowRecord {
                    connection: None,
                    ..flow
                },
                relay: Some(RelayRecord {
                    key: 0x1001,
                    mark: 63,
                }),
                message: b"BYE sip:x SIP/2.0\r\n\r\n".to_vec(),
            },
            CoreMessage::Received {
                flow,
                relay: None,
                message: Vec::new(),
            },
            CoreMessage::Send {
                flow,
                message: b"SIP/2.0 200 OK\r\n\r\n".to_vec(),
            },
            CoreMessage::Unsent { flow },
            CoreMessage::Opened {
                connections: connections.clone(),
            },
            CoreMessage::Closed { connections },
            CoreMessage::Complete,
            CoreMessage::Record {
                record: vec![0x81, 1],
            },
        ]
    }

    fn connection(peer: &str) -> ConnectionRecord {
        ConnectionRecord {
            peer: peer.parse().unwrap(),
            local: "[2001:db8::1]:5060".parse().unwrap(),
        }
    }
}
