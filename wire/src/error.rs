//! Why bytes were not understood, or could not be made: one variant a reason, no allocation.

use thiserror::Error;

/// Why bytes are not what they should be. Programs count each variant under its own name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum DecodeError {
    /// The bytes end before the header does.
    #[error("truncated")]
    Truncated,

    /// The first four bits are neither 4 nor 6.
    #[error("neither IPv4 nor IPv6")]
    IpVersion,
    /// An IPv4 header length below 5 words.
    #[error("bad IPv4 header length")]
    IpHeaderLength,
    /// The length in the IP header is less than the header or more than the packet.
    #[error("bad IP length")]
    IpLength,
    /// More IPv6 extension headers than anybody sends.
    #[error("too many IPv6 extension headers")]
    Ipv6ExtensionChain,
    /// The fragment would reach beyond the largest packet (RFC 791, RFC 8200 section 4.5).
    #[error("fragment beyond 65535 octets")]
    FragmentTooFar,

    /// A GRE version that is not 0 (RFC 2784 section 2.2).
    #[error("GRE version is not 0")]
    GreVersion,
    /// A checksum is present; this tunnel has none.
    #[error("GRE checksum present")]
    GreChecksum,
    /// A sequence number is present; this tunnel has none.
    #[error("GRE sequence number present")]
    GreSequence,
    /// No key is present; this tunnel needs one.
    #[error("GRE key missing")]
    GreKeyMissing,
    /// A reserved bit is set that means RFC 1701 (RFC 2784 section 2.3).
    #[error("GRE reserved bit set")]
    GreReserved,
    /// Neither IPv4 nor IPv6 inside.
    #[error("GRE protocol type is not IP")]
    GreProtocol,
    /// The packet inside is not of the IP version that the protocol type says.
    #[error("GRE protocol type contradicts the packet inside")]
    GreProtocolMismatch,

    /// Not ICMP or ICMPv6, not the first fragment, or not one of its errors.
    #[error("not an ICMP error")]
    NotIcmpError,
    /// The ICMP checksum is wrong.
    #[error("bad ICMP checksum")]
    IcmpChecksum,

    /// The UDP length contradicts the packet.
    #[error("bad UDP length")]
    UdpLength,

    /// Not a probe.
    #[error("not a probe")]
    ProbeMagic,
    /// A probe of another version.
    #[error("probe version")]
    ProbeVersion,
    /// A kind of probe that this version does not know.
    #[error("probe kind")]
    ProbeKind,
    /// A state that this version does not know.
    #[error("probe state")]
    ProbeState,

    /// An RTP or RTCP version that is not 2.
    #[error("RTP version is not 2")]
    RtpVersion,
    /// The RTP padding is longer than what is padded, or of length 0.
    #[error("bad RTP padding")]
    RtpPadding,
    /// An RTCP length that goes beyond the datagram.
    #[error("bad RTCP length")]
    RtcpLength,

    /// Not STUN: the first bits, the cookie or the length are not its own (RFC 8489 section 5).
    #[error("not STUN")]
    NotStun,
}

/// Why a packet could not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum BuildError {
    /// Source and destination are not of one IP version.
    #[error("source and destination differ in IP version")]
    MixedFamilies,
    /// The packet would be longer than its length field can say.
    #[error("packet too long")]
    TooLong,
    /// A fragment offset that is no multiple of 8.
    #[error("fragment offset is no multiple of 8")]
    FragmentOffset,
}
