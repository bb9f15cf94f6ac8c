//! The cookie in our Via: what a concentrator that never saw the request must know to pass a
//! response on (RFC 3261 section 16.11).
//!
//! ```text
//! upstream a flow as in a dialog cookie, but for bit 7 of its first byte: a session follows
//! role     1 byte; bit 7: the caller's side follows, bit 6: that is IPv6
//! owner    2 bytes
//! sent     2 bytes  minutes since 1970, modulo 2^16
//! session  8 bytes session, 4 bytes tunnel key, 1 byte mark     (if flagged)
//! side     4 or 16 bytes address, 2 bytes RTP port, 2 bytes RTCP port (if flagged)
//! ```
//!
//! The signature also covers the branch, so that a cookie cannot be moved to another Via. The
//! local address is left out where it is the sent-by of the Via. Over UDP and IPv4 that makes 30
//! characters of text, 47 with a session, 58 where it begins a call with one.
//! A later layout takes another `Purpose`, so it needs no version here.

use std::net::SocketAddr;

use wire::mark::RelayId;

use super::layout::{
    Reader, decode_address, decode_flow, decode_session, encode_address, encode_flow,
    encode_session,
};
use super::{CookieError, Keys, MAGIC_COOKIE, Purpose};
use crate::hop::Flow;
use crate::sdp::MediaAddress;

const HAS_SESSION: u8 = 1 << 7;
/// In the byte of the role.
const HAS_SIDE: u8 = 1 << 7;
const SIDE_IS_V6: u8 = 1 << 6;

/// Which running concentrator has the state of a request: drawn when its process starts, so that
/// one that was started again is another owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner(pub u16);

/// What a request was to the call it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Outside of a dialog, to one target.
    Initial,
    /// Outside of a dialog, to several targets at once: a failure of one says nothing yet.
    Forked,
    /// Within a dialog, by the party that began the call.
    ByCaller,
    /// Within a dialog, by the party that was called.
    ByCallee,
}

impl Role {
    /// True within a dialog.
    pub const fn is_in_dialog(self) -> bool {
        match self {
            Self::Initial | Self::Forked => false,
            Self::ByCaller | Self::ByCallee => true,
        }
    }

    const fn number(self) -> u8 {
        match self {
            Self::Initial => 0,
            Self::Forked => 1,
            Self::ByCaller => 2,
            Self::ByCallee => 3,
        }
    }

    fn of(number: u8) -> Option<Self> {
        [Self::Initial, Self::Forked, Self::ByCaller, Self::ByCallee]
            .into_iter()
            .find(|role| role.number() == number)
    }
}

/// What our Via says about the request that it was put on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ViaCookie {
    /// Who has the transaction.
    pub owner: Owner,
    /// Where the request came from, and its responses go.
    pub upstream: Flow,
    /// What the request was.
    pub role: Role,
    /// The media session of its call and the relay that has it.
    pub session: Option<(u64, RelayId)>,
    /// Where that session faces the caller, of an INVITE that begins a call through one relay: what its
    /// answer must say.
    pub caller_side: Option<MediaAddress>,
    /// When it was forwarded: minutes since 1970, modulo 2^16.
    pub sent_minutes: u16,
}

impl Keys {
    /// The cookie as the value of a Via parameter, for the Via with that sent-by and branch.
    pub fn seal_via(&self, cookie: &ViaCookie, sent_by: SocketAddr, branch: &str) -> String {
        let mut content = Vec::with_capacity(64);
        encode_flow(&mut content, &cookie.upstream, Some(sent_by));
        let role_at = content.len();
        let mut fixed = [cookie.role.number(), 0, 0, 0, 0];
        fixed[1..3].copy_from_slice(&cookie.owner.0.to_be_bytes());
        fixed[3..5].copy_from_slice(&cookie.sent_minutes.to_be_bytes());
        content.extend_from_slice(&fixed);
        if let Some(session) = cookie.session {
            content[0] |= HAS_SESSION;
            encode_session(&mut content, session);
        }
        if let Some(side) = cookie.caller_side {
            content[role_at] |= HAS_SIDE | if side.addr.is_ipv6() { SIDE_IS_V6 } else { 0 };
            encode_address(&mut content, SocketAddr::new(side.addr, side.rtp));
            content.extend_from_slice(&side.rtcp.to_be_bytes());
        }
        self.sign(Purpose::Via, content, beside(branch.as_bytes()))
    }

    /// Reads the cookie of a Via that these keys sealed.
    pub fn open_via(
        &self,
        text: &[u8],
        sent_by: SocketAddr,
        branch: &[u8],
    ) -> Result<ViaCookie, CookieError> {
        let content = self.verify(Purpose::Via, text, beside(branch))?;
        decode(&content, sent_by).ok_or(CookieError::Malformed)
    }
}

/// The part of a branch that says something.
fn beside(branch: &[u8]) -> &[u8] {
    branch.get(MAGIC_COOKIE.len()..).unwrap_or_default()
}

fn decode(content: &[u8], sent_by: SocketAddr) -> Option<ViaCookie> {
    let head = *content.first()?;
    let mut reader = Reader(content);
    let upstream = decode_flow(&mut reader, Some(sent_by))?;
    let role_and_flags = reader.byte()?;
    let role = Role::of(role_and_flags & !(HAS_SIDE | SIDE_IS_V6))?;
    let owner = Owner(u16::from_be_bytes(reader.array()?));
    let sent_minutes = u16::from_be_bytes(reader.array()?);
    let session = if head & HAS_SESSION == 0 {
        None
    } else {
        Some(decode_session(&mut reader)?)
    };
    let caller_side = if role_and_flags & HAS_SIDE == 0 {
        None
    } else {
        let rtp = decode_address(&mut reader, role_and_flags & SIDE_IS_V6 != 0)?;
        Some(MediaAddress {
            addr: rtp.ip(),
            rtp: rtp.port(),
            rtcp: u16::from_be_bytes(reader.array()?),
        })
    };
    Some(ViaCookie {
        owner,
        upstream,
        role,
        session,
        caller_side,
        sent_minutes,
    })
}
