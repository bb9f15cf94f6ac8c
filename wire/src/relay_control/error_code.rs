//! Why a request failed: a number that may be new to the reader.

use std::fmt;

use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};

/// Why an agent did not carry out a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// 1: no ports are left.
    NoPorts,
    /// 2: the kernel refused an address or port.
    BindFailed,
    /// 3: a configured limit is reached.
    LimitReached,
    /// 4: there is no such session, or not any longer.
    UnknownSession,
    /// 5: the session was leased to another concentrator.
    NotYourSession,
    /// 6: the request made no sense.
    BadRequest,
    /// 7: the agent takes no new calls.
    Draining,
    /// A reason that this version does not know.
    Other(u32),
}

impl ErrorCode {
    /// The reason with this number.
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::NoPorts,
            2 => Self::BindFailed,
            3 => Self::LimitReached,
            4 => Self::UnknownSession,
            5 => Self::NotYourSession,
            6 => Self::BadRequest,
            7 => Self::Draining,
            other => Self::Other(other),
        }
    }

    /// The number on the wire.
    pub const fn number(self) -> u32 {
        match self {
            Self::NoPorts => 1,
            Self::BindFailed => 2,
            Self::LimitReached => 3,
            Self::UnknownSession => 4,
            Self::NotYourSession => 5,
            Self::BadRequest => 6,
            Self::Draining => 7,
            Self::Other(number) => number,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPorts => f.write_str("no ports left"),
            Self::BindFailed => f.write_str("could not bind"),
            Self::LimitReached => f.write_str("limit reached"),
            Self::UnknownSession => f.write_str("unknown session"),
            Self::NotYourSession => f.write_str("session of another concentrator"),
            Self::BadRequest => f.write_str("bad request"),
            Self::Draining => f.write_str("draining"),
            Self::Other(number) => write!(f, "error {number}"),
        }
    }
}

impl<C> Encode<C> for ErrorCode {
    fn encode<W: encode::Write>(
        &self,
        encoder: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        encoder.u32(self.number())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for ErrorCode {
    fn decode(decoder: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        decoder.u32().map(Self::from_number)
    }
}
