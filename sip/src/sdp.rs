//! An editor for session descriptions that changes addresses and ports and nothing else.
//!
//! [`Sdp::parse`] indexes the lines that matter for relaying media; [`Sdp::rewrite`] makes a copy
//! in which chosen m-lines point to a relay. Every line that need not change keeps its bytes:
//! unknown lines, LF line ends, text in any character set. [`session_description`] finds the
//! description within a message's body.
//!
//! What a replacement of one m-line changes:
//! * its port; a port count (`49170/2`) goes, because a relay session is one pair of ports;
//! * the `c=` that applies to it: the session's, where all live m-lines that share it go to the
//!   same address, else a `c=` of its own. `0.0.0.0` and `::` (hold as in RFC 2543) stay
//!   unspecified, in the family of the replacement;
//! * `a=rtcp` (RFC 3605): fixed where present, added where the RTCP port is neither muxed nor
//!   RTP + 1;
//! * its ICE lines (`a=candidate`, `a=remote-candidates`, `a=end-of-candidates`, `a=ice-*`) are
//!   removed: with them the parties would find a path round the relay. Those of the session go
//!   when no live m-line is left alone. So the parties see a peer without ICE (RFC 8839 section
//!   5.4 calls that a valid outcome); an endpoint that insists on ICE, such as a browser, cannot
//!   be relayed this way;
//! * the session's `a=group:BUNDLE` lines (RFC 9143) are removed where any m-line is replaced:
//!   each m-line has a relay session of its own, and what is sent over one is not seen in another.
//!   The parties then do as with a peer that does not bundle; an m-line that is `bundle-only` has
//!   port 0 and is rejected. Other groups (RFC 5888) stay.
//!
//! An m-line with port 0 is rejected (RFC 3264 section 6) and stays as it is. `o=` is never
//! changed: no medium is sent there, and its fields together name the session (RFC 8866 section
//! 5.2), so that a party would take a changed one for another session.
//!
//! Known weak spots: a session-level `a=rtcp`, which RFC 3605 does not allow, is left alone; an
//! m-line of a later offer that goes on with the transport of a bundle agreed before we relayed
//! the call (RFC 9143 section 7.3) is taken for one of its own.
//!
//! Standards: RFC 8866 (4566), RFC 3264, RFC 3605, RFC 5761, RFC 8839, RFC 9143.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use smallvec::SmallVec;
use thiserror::Error;
use wire::relay_control::Payload;

mod body;
mod edit;
mod parse;

pub use body::{find_sdp, session_description};

/// More m-lines than this are refused.
pub const MAX_MEDIA: usize = 64;
/// A longer description is refused.
pub const MAX_LEN: usize = 65_535;

/// Why a description was not understood, or not rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SdpError {
    /// The first line is not a version.
    #[error("does not begin with v=")]
    NoVersion,
    /// More than [`MAX_LEN`] bytes.
    #[error("longer than {MAX_LEN} bytes")]
    TooLong,
    /// More than [`MAX_MEDIA`] m-lines.
    #[error("more than {MAX_MEDIA} m-lines")]
    TooManyMedia,
    /// An m-line without kind, port (0..=65535) and protocol.
    #[error("m-line {0} has no kind, port and protocol")]
    BadMedia(usize),
    /// [`Sdp::rewrite`] was not given one entry for each m-line.
    #[error("{given} replacements for {media} m-lines")]
    ReplacementCount {
        /// How many m-lines there are.
        media: usize,
        /// How many entries were given.
        given: usize,
    },
}

/// Whether media flow, seen from the party that wrote the description (RFC 8866 section 6.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Direction {
    /// Both ways, also when nothing is said.
    #[default]
    SendRecv,
    /// The writer only sends.
    SendOnly,
    /// The writer only receives.
    RecvOnly,
    /// Neither.
    Inactive,
}

/// The port, and perhaps the address, of an `a=rtcp` line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RtcpAttribute {
    /// The port.
    pub port: u16,
    /// The address, where the line has one.
    pub address: Option<IpAddr>,
}

/// One m-line and what applies to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Media<'a> {
    /// `audio`, `video`, `image`, ...
    pub kind: &'a [u8],
    /// The RTP port; 0 = rejected or disabled.
    pub port: u16,
    /// The number of port pairs, 1 unless written `port/count`.
    pub port_count: u16,
    /// `RTP/AVP`, `udptl`, ...
    pub protocol: &'a [u8],
    /// The rest of the line, unread.
    pub formats: &'a [u8],
    /// The address of the `c=` that applies, own or inherited; `None` where there is none or it
    /// names a host.
    pub address: Option<IpAddr>,
    /// The first `a=rtcp` line that could be read.
    pub rtcp: Option<RtcpAttribute>,
    /// `a=rtcp-mux` is there.
    pub rtcp_mux: bool,
    /// The direction, own or the session's.
    pub direction: Direction,
}

impl Media<'_> {
    /// True for port 0.
    pub const fn is_rejected(&self) -> bool {
        self.port == 0
    }

    /// True where the address is `0.0.0.0` or `::`: on hold, in the way of RFC 2543.
    pub fn is_held(&self) -> bool {
        self.address.is_some_and(|address| address.is_unspecified())
    }

    /// Whether the writer sends, and whether it wants to hear anything: the direction, and the
    /// unspecified address that means hold.
    pub fn direction_with_hold(&self) -> Direction {
        match (self.is_held(), self.direction) {
            (false, direction) => direction,
            (true, Direction::SendRecv | Direction::SendOnly) => Direction::SendOnly,
            (true, Direction::RecvOnly | Direction::Inactive) => Direction::Inactive,
        }
    }

    /// What a relay must let through for the line.
    pub fn payload(&self) -> Payload {
        if !self.is_rtp() {
            Payload::Datagrams
        } else if self.is_over_dtls() {
            Payload::RtpAndDtls
        } else {
            Payload::Rtp
        }
    }

    /// True for RTP straight over UDP or over DTLS: it comes with RTCP.
    pub fn is_rtp(&self) -> bool {
        starts_with(self.protocol, b"RTP/") || starts_with(self.protocol, b"UDP/TLS/RTP/")
    }

    /// True for RTP whose keys come by DTLS on the same port (RFC 5764).
    pub fn is_over_dtls(&self) -> bool {
        starts_with(self.protocol, b"UDP/TLS/")
    }

    /// True for whatever travels in UDP datagrams, so that a relay can carry it: RTP in all its
    /// profiles, T.38 (`udptl`), `UDP/...`.
    pub fn is_udp(&self) -> bool {
        self.is_rtp()
            || starts_with(self.protocol, b"UDP/")
            || self.protocol.eq_ignore_ascii_case(b"udp")
            || self.protocol.eq_ignore_ascii_case(b"udptl")
    }

    /// Where RTP is to be sent; `None` when rejected, or the address is not known.
    pub fn rtp_address(&self) -> Option<SocketAddr> {
        if self.is_rejected() {
            None
        } else {
            Some(SocketAddr::new(self.address?, self.port))
        }
    }

    /// Where RTCP is to be sent, muxing aside: as `a=rtcp` says, else one port above RTP.
    pub fn rtcp_address(&self) -> Option<SocketAddr> {
        let rtp = self.rtp_address()?;
        match self.rtcp {
            Some(rtcp) => Some(SocketAddr::new(rtcp.address.unwrap_or(rtp.ip()), rtcp.port)),
            None => Some(SocketAddr::new(rtp.ip(), rtp.port().checked_add(1)?)),
        }
    }
}

/// Where an m-line shall point to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MediaAddress {
    /// The relay's address.
    pub addr: IpAddr,
    /// Its RTP port, not 0.
    pub rtp: u16,
    /// Its RTCP port.
    pub rtcp: u16,
}

/// A session description, indexed.
#[derive(Debug, Clone)]
pub struct Sdp<'a> {
    bytes: &'a [u8],
    origin: Option<Line>,
    session: Section,
    session_address: Option<IpAddr>,
    /// Groups of m-lines that share a transport.
    bundles: SmallVec<[Line; 1]>,
    media: Vec<Media<'a>>,
    /// One for each of `media`.
    sections: Vec<Section>,
}

impl<'a> Sdp<'a> {
    /// Indexes a description. Lines end in LF or CRLF; the last may lack its end.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, SdpError> {
        parse::parse(bytes)
    }

    /// The m-lines in order.
    pub fn media(&self) -> &[Media<'a>] {
        &self.media
    }

    /// The value of the `o=` line.
    pub fn origin(&self) -> Option<&'a [u8]> {
        self.origin.map(|line| &self.bytes[line.value()])
    }

    /// The address of the session's own `c=` line.
    pub fn session_address(&self) -> Option<IpAddr> {
        self.session_address
    }

    /// A copy in which each m-line with a replacement points there; see the module's page for
    /// what that changes. One entry for each m-line; `None` leaves it as it is.
    pub fn rewrite(&self, replacements: &[Option<MediaAddress>]) -> Result<Vec<u8>, SdpError> {
        if replacements.len() != self.media.len() {
            let (media, given) = (self.media.len(), replacements.len());
            return Err(SdpError::ReplacementCount { media, given });
        }
        Ok(edit::rewrite(self, replacements))
    }
}

/// Where a line is: `start..content_end` without and `start..end` with its line end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Line {
    start: usize,
    content_end: usize,
    end: usize,
}

impl Line {
    /// What follows `x=`.
    fn value(self) -> Range<usize> {
        self.start + 2..self.content_end
    }
}

/// The lines of one section, the session's or that of an m-line, which a rewrite may touch.
#[derive(Debug, Clone)]
struct Section {
    /// The port of the m-line with its count; empty in the session's.
    port: Range<usize>,
    /// A new `c=` goes after this line.
    before_connection: Line,
    /// A new attribute goes after this line.
    before_attributes: Line,
    connections: SmallVec<[Line; 1]>,
    rtcp: SmallVec<[Line; 1]>,
    ice: Vec<Line>,
}

fn starts_with(text: &[u8], prefix: &[u8]) -> bool {
    text.get(..prefix.len())
        .is_some_and(|head| head.eq_ignore_ascii_case(prefix))
}
