//! A look into media packets without a copy: what kind, whose, which (RFC 3550, RFC 5761, RFC 7983).
//!
//! [`classify`] tells apart what may share a port; [`Packet`], [`rtcp::Packet`] and [`stun::Message`]
//! then read the headers. Nothing here decrypts or changes anything.

use crate::error::DecodeError;

pub mod rtcp;
pub mod stun;

/// The octets of the fixed RTP header.
pub const HEADER_LEN: usize = 12;

/// What a UDP datagram on a media port is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// First octet 0 to 3.
    Stun,
    /// First octet 16 to 19, with the cookie of RFC 6189.
    Zrtp,
    /// First octet 20 to 63.
    Dtls,
    /// First octet 64 to 79.
    TurnChannel,
    /// First octet 128 to 191, payload type outside of RTCP's.
    Rtp,
    /// First octet 128 to 191, packet type 192 to 223.
    Rtcp,
    /// None of these, or too short for the header of what it seems to be.
    Unknown,
}

/// Tells what a datagram is by its first octets (RFC 7983 section 7, RFC 5761 section 4).
pub fn classify(datagram: &[u8]) -> Kind {
    let (Some(first), len) = (datagram.first(), datagram.len()) else {
        return Kind::Unknown;
    };
    match *first {
        0..=3 if len >= stun::HEADER_LEN => Kind::Stun,
        16..=19 if len >= HEADER_LEN && datagram[4..8] == *b"ZRTP" => Kind::Zrtp,
        20..=63 if len >= 13 => Kind::Dtls,
        64..=79 if len >= 4 => Kind::TurnChannel,
        128..=191 if len >= rtcp::HEADER_LEN && rtcp::is_packet_type(datagram[1]) => Kind::Rtcp,
        128..=191 if len >= HEADER_LEN && !rtcp::is_packet_type(datagram[1]) => Kind::Rtp,
        _ => Kind::Unknown,
    }
}

/// An RTP packet whose header has been checked (RFC 3550 section 5.1, appendix A.1).
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    bytes: &'a [u8],
    payload_offset: usize,
    padding: usize,
}

impl<'a> Packet<'a> {
    /// Reads the header, CSRCs and extension included.
    ///
    /// SRTP leaves all this in the clear but encrypts padding (RFC 3711 section 3.1); for it, use
    /// [`Packet::parse_encrypted`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let packet = Self::parse_encrypted(bytes)?;
        if bytes[0] & 0x20 == 0 {
            return Ok(packet);
        }
        let room = bytes.len() - packet.payload_offset;
        match bytes.last() {
            Some(&padding) if padding != 0 && usize::from(padding) <= room => Ok(Self {
                padding: usize::from(padding),
                ..packet
            }),
            _ => Err(DecodeError::RtpPadding),
        }
    }

    /// Like [`Packet::parse`], but takes padding for payload.
    pub fn parse_encrypted(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let fixed = bytes
            .first_chunk::<HEADER_LEN>()
            .ok_or(DecodeError::Truncated)?;
        if fixed[0] >> 6 != 2 {
            return Err(DecodeError::RtpVersion);
        }
        let mut payload_offset = HEADER_LEN + usize::from(fixed[0] & 0x0f) * 4;
        if fixed[0] & 0x10 != 0 {
            let extension = bytes
                .get(payload_offset..)
                .and_then(|rest| rest.first_chunk::<4>())
                .ok_or(DecodeError::Truncated)?;
            let words = u16::from_be_bytes([extension[2], extension[3]]);
            payload_offset += 4 + usize::from(words) * 4;
        }
        if bytes.len() < payload_offset {
            return Err(DecodeError::Truncated);
        }
        Ok(Self {
            bytes,
            payload_offset,
            padding: 0,
        })
    }

    /// The payload type, 0..=127.
    pub const fn payload_type(&self) -> u8 {
        self.bytes[1] & 0x7f
    }

    /// The marker bit.
    pub const fn marker(&self) -> bool {
        self.bytes[1] & 0x80 != 0
    }

    /// The sequence number.
    pub const fn sequence(&self) -> u16 {
        u16::from_be_bytes([self.bytes[2], self.bytes[3]])
    }

    /// The timestamp.
    pub fn timestamp(&self) -> u32 {
        be32(self.bytes, 4)
    }

    /// The synchronization source.
    pub fn ssrc(&self) -> u32 {
        be32(self.bytes, 8)
    }

    /// How many contributing sources are listed.
    pub const fn csrc_count(&self) -> u8 {
        self.bytes[0] & 0x0f
    }

    /// Where the payload begins.
    pub const fn payload_offset(&self) -> usize {
        self.payload_offset
    }

    /// The payload, without padding.
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[self.payload_offset..self.bytes.len() - self.padding]
    }

    /// The header's values; its CSRCs and extension are not kept.
    pub fn repr(&self) -> Repr {
        Repr {
            payload_type: self.payload_type(),
            marker: self.marker(),
            sequence: self.sequence(),
            timestamp: self.timestamp(),
            ssrc: self.ssrc(),
        }
    }
}

/// The values of an RTP header without CSRCs, extension and padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Repr {
    /// 0..=127; the eighth bit is not sent.
    pub payload_type: u8,
    /// The marker bit.
    pub marker: bool,
    /// The sequence number.
    pub sequence: u16,
    /// The timestamp.
    pub timestamp: u32,
    /// The synchronization source.
    pub ssrc: u32,
}

impl Repr {
    /// The header as it goes before the payload.
    pub fn header(&self) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        header[0] = 0x80;
        header[1] = self.payload_type & 0x7f | u8::from(self.marker) << 7;
        header[2..4].copy_from_slice(&self.sequence.to_be_bytes());
        header[4..8].copy_from_slice(&self.timestamp.to_be_bytes());
        header[8..].copy_from_slice(&self.ssrc.to_be_bytes());
        header
    }
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests;
