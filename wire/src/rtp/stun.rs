//! The STUN header (RFC 8489 section 5).

use super::be32;
use crate::error::DecodeError;

/// The octets of the header.
pub const HEADER_LEN: usize = 20;
/// The magic cookie; without it a message is of RFC 3489 and refused.
pub const COOKIE: u32 = 0x2112_a442;
/// A binding request.
pub const BINDING_REQUEST: u16 = 0x0001;

/// A STUN message whose header has been checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Message<'a> {
    bytes: &'a [u8],
}

impl<'a> Message<'a> {
    /// Reads the header; the length must be that of the datagram.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let header = bytes
            .first_chunk::<HEADER_LEN>()
            .ok_or(DecodeError::Truncated)?;
        let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let whole = len % 4 == 0 && bytes.len() == HEADER_LEN + len;
        if header[0] >> 6 != 0 || be32(header, 4) != COOKIE || !whole {
            return Err(DecodeError::NotStun);
        }
        Ok(Self { bytes })
    }

    /// Class and method as they lie, 14 bits, such as [`BINDING_REQUEST`].
    pub const fn message_type(&self) -> u16 {
        u16::from_be_bytes([self.bytes[0], self.bytes[1]])
    }

    /// The octets of the attributes.
    pub const fn attributes_len(&self) -> usize {
        self.bytes.len() - HEADER_LEN
    }

    /// The transaction id.
    pub fn transaction_id(&self) -> [u8; 12] {
        let mut id = [0; 12];
        id.copy_from_slice(&self.bytes[8..HEADER_LEN]);
        id
    }
}

/// The values of a STUN header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Repr {
    /// Class and method, 14 bits.
    pub message_type: u16,
    /// The octets of the attributes, a multiple of 4.
    pub attributes_len: u16,
    /// The transaction id.
    pub transaction_id: [u8; 12],
}

impl Repr {
    /// The header as it goes before the attributes.
    pub fn header(&self) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        header[..2].copy_from_slice(&(self.message_type & 0x3fff).to_be_bytes());
        header[2..4].copy_from_slice(&self.attributes_len.to_be_bytes());
        header[4..8].copy_from_slice(&COOKIE.to_be_bytes());
        header[8..].copy_from_slice(&self.transaction_id);
        header
    }
}
