//! The bytes of a cookie before its signature.
//!
//! ```text
//! version  1 byte   1
//! flags    1 byte   bit 0: a session follows, bits 1 and 2: the name of caller, of callee follows,
//!                   bit 3: a second session follows, bit 4: the caller's relay follows,
//!                   bit 5: the caller has none; without either it is that of the session,
//!                   bit 6: the owner follows
//! started  4 bytes
//! tag      4 bytes
//! caller   a flow
//! callee   a flow
//! session  8 bytes session, 4 bytes tunnel key, 1 byte mark     (if flagged)
//! name     6 bytes each                                          (if flagged)
//! far      as session: of the second relay                       (if flagged)
//! relay    4 bytes tunnel key, 1 byte mark                       (if flagged)
//! owner    2 bytes                                                (if flagged)
//!
//! flow: 1 byte: bits 0-2 transport, 3 peer is IPv6, 4 local is IPv6, 5 a connection follows,
//!               6 local is the caller's local (callee only)
//!       peer address and port, local address and port (unless bit 6), 8 bytes connection
//! ```
//!
//! A later build may append fields: bytes after the known ones are skipped, because the signature
//! already says that they are ours. IPv6 flow labels and scopes are not kept.

use std::net::{IpAddr, SocketAddr};

use wire::gre::TunnelKey;
use wire::mark::{Mark, RelayId};

use super::{CookieError, DialogCookie, Owner};
use crate::hop::{ConnectionId, Flow, Transport};

const VERSION: u8 = 1;
const HAS_SESSION: u8 = 1;
const HAS_NAME: [u8; 2] = [1 << 1, 1 << 2];
const HAS_FAR: u8 = 1 << 3;
const HAS_CALLER_RELAY: u8 = 1 << 4;
const NO_CALLER_RELAY: u8 = 1 << 5;
const HAS_OWNER: u8 = 1 << 6;

const TRANSPORT_MASK: u8 = 0b111;
const PEER_IS_V6: u8 = 1 << 3;
const LOCAL_IS_V6: u8 = 1 << 4;
const HAS_CONNECTION: u8 = 1 << 5;
const SAME_LOCAL: u8 = 1 << 6;

pub(super) fn encode(cookie: &DialogCookie) -> Vec<u8> {
    let mut out = Vec::with_capacity(96);
    out.push(VERSION);
    let mut flags = if cookie.session.is_some() {
        HAS_SESSION
    } else {
        0
    };
    for (name, flag) in cookie.names.iter().zip(HAS_NAME) {
        flags |= if *name == 0 { 0 } else { flag };
    }
    flags |= if cookie.far.is_some() { HAS_FAR } else { 0 };
    flags |= if cookie.owner.is_some() { HAS_OWNER } else { 0 };
    let other = cookie
        .caller_relay
        .filter(|relay| cookie.session.is_some_and(|(_, own)| own != *relay));
    flags |= match (cookie.session, cookie.caller_relay) {
        (Some(_), None) => NO_CALLER_RELAY,
        _ if other.is_some() => HAS_CALLER_RELAY,
        _ => 0,
    };
    out.push(flags);
    out.extend_from_slice(&cookie.started.to_be_bytes());
    out.extend_from_slice(&cookie.caller_tag.to_be_bytes());
    encode_flow(&mut out, &cookie.caller, None);
    encode_flow(&mut out, &cookie.callee, Some(cookie.caller.local));
    if let Some(session) = cookie.session {
        encode_session(&mut out, session);
    }
    for name in cookie.names.iter().filter(|name| **name != 0) {
        out.extend_from_slice(&name.to_be_bytes()[2..]);
    }
    if let Some(far) = cookie.far {
        encode_session(&mut out, far);
    }
    if let Some(relay) = other {
        encode_relay(&mut out, relay);
    }
    if let Some(Owner(owner)) = cookie.owner {
        out.extend_from_slice(&owner.to_be_bytes());
    }
    out
}

pub(super) fn decode(content: &[u8]) -> Result<DialogCookie, CookieError> {
    let mut reader = Reader(content);
    match reader.byte() {
        Some(VERSION) => decode_version_1(&mut reader).ok_or(CookieError::Malformed),
        Some(other) => Err(CookieError::Version(other)),
        None => Err(CookieError::Malformed),
    }
}

fn decode_version_1(reader: &mut Reader<'_>) -> Option<DialogCookie> {
    let flags = reader.byte()?;
    let started = u32::from_be_bytes(reader.array()?);
    let caller_tag = u32::from_be_bytes(reader.array()?);
    let caller = decode_flow(reader, None)?;
    let callee = decode_flow(reader, Some(caller.local))?;
    let session = if flags & HAS_SESSION == 0 {
        None
    } else {
        Some(decode_session(reader)?)
    };
    let mut names = [0; 2];
    for (name, flag) in names.iter_mut().zip(HAS_NAME) {
        if flags & flag != 0 {
            let [a, b, c, d, e, f] = reader.array()?;
            *name = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
        }
    }
    let far = if flags & HAS_FAR == 0 {
        None
    } else {
        Some(decode_session(reader)?)
    };
    let caller_relay = if flags & HAS_CALLER_RELAY != 0 {
        Some(decode_relay(reader)?)
    } else {
        let session = session.filter(|_| flags & NO_CALLER_RELAY == 0);
        session.map(|(_, relay)| relay)
    };
    let owner = if flags & HAS_OWNER == 0 {
        None
    } else {
        Some(Owner(u16::from_be_bytes(reader.array()?)))
    };
    Some(DialogCookie {
        names,
        owner,
        far,
        caller_relay,
        caller,
        callee,
        caller_tag,
        session,
        started,
    })
}

pub(super) fn encode_session(out: &mut Vec<u8>, (session, relay): (u64, RelayId)) {
    out.extend_from_slice(&session.to_be_bytes());
    encode_relay(out, relay);
}

pub(super) fn decode_session(reader: &mut Reader<'_>) -> Option<(u64, RelayId)> {
    let session = u64::from_be_bytes(reader.array()?);
    Some((session, decode_relay(reader)?))
}

pub(super) fn encode_relay(out: &mut Vec<u8>, relay: RelayId) {
    out.extend_from_slice(&relay.key.0.to_be_bytes());
    out.push(relay.mark.number());
}

pub(super) fn decode_relay(reader: &mut Reader<'_>) -> Option<RelayId> {
    let key = TunnelKey(u32::from_be_bytes(reader.array()?));
    let mark = Mark::new(reader.byte()?)?;
    Some(RelayId { key, mark })
}

pub(super) fn encode_flow(out: &mut Vec<u8>, flow: &Flow, known_local: Option<SocketAddr>) {
    let same_local = known_local == Some(flow.local);
    let mut head = flow.transport.number();
    head |= if flow.peer.is_ipv6() { PEER_IS_V6 } else { 0 };
    head |= if same_local { SAME_LOCAL } else { 0 };
    head |= if flow.local.is_ipv6() && !same_local {
        LOCAL_IS_V6
    } else {
        0
    };
    head |= if flow.connection.is_some() {
        HAS_CONNECTION
    } else {
        0
    };
    out.push(head);
    encode_address(out, flow.peer);
    if !same_local {
        encode_address(out, flow.local);
    }
    if let Some(ConnectionId(id)) = flow.connection {
        out.extend_from_slice(&id.to_be_bytes());
    }
}

pub(super) fn decode_flow(
    reader: &mut Reader<'_>,
    known_local: Option<SocketAddr>,
) -> Option<Flow> {
    let head = reader.byte()?;
    let transport = Transport::from_number(head & TRANSPORT_MASK)?;
    let peer = decode_address(reader, head & PEER_IS_V6 != 0)?;
    let local = if head & SAME_LOCAL == 0 {
        decode_address(reader, head & LOCAL_IS_V6 != 0)?
    } else {
        known_local?
    };
    let connection = if head & HAS_CONNECTION == 0 {
        None
    } else {
        Some(ConnectionId(u64::from_be_bytes(reader.array()?)))
    };
    Some(Flow {
        transport,
        peer,
        local,
        connection,
    })
}

pub(super) fn encode_address(out: &mut Vec<u8>, address: SocketAddr) {
    match address.ip() {
        IpAddr::V4(ip) => out.extend_from_slice(&ip.octets()),
        IpAddr::V6(ip) => out.extend_from_slice(&ip.octets()),
    }
    out.extend_from_slice(&address.port().to_be_bytes());
}

pub(super) fn decode_address(reader: &mut Reader<'_>, is_v6: bool) -> Option<SocketAddr> {
    let ip = if is_v6 {
        IpAddr::from(reader.array::<16>()?)
    } else {
        IpAddr::from(reader.array::<4>()?)
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes(reader.array()?)))
}

pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) const fn of(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }
}
