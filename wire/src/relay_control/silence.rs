//! Which kind of silence ended a session: a number that may be new to the reader.

use std::fmt;

use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};

/// Which limit a session without media has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Silence {
    /// 0: nothing came either way; also where an older agent does not say.
    #[default]
    Idle,
    /// 1: a side has not sent anything since the session was bound.
    HalfOpen,
    /// 2: a side that had sent fell silent while the other went on.
    OneWay,
    /// 3: a call on hold was not resumed.
    Held,
    /// A limit that this version does not know.
    Other(u32),
}

impl Silence {
    /// The limit with this number.
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Idle,
            1 => Self::HalfOpen,
            2 => Self::OneWay,
            3 => Self::Held,
            other => Self::Other(other),
        }
    }

    /// The number on the wire.
    pub const fn number(self) -> u32 {
        match self {
            Self::Idle => 0,
            Self::HalfOpen => 1,
            Self::OneWay => 2,
            Self::Held => 3,
            Self::Other(number) => number,
        }
    }
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle => f.write_str("idle"),
            Self::HalfOpen => f.write_str("half-open"),
            Self::OneWay => f.write_str("one-way"),
            Self::Held => f.write_str("held"),
            Self::Other(number) => write!(f, "limit {number}"),
        }
    }
}

impl<C> Encode<C> for Silence {
    fn encode<W: encode::Write>(
        &self,
        encoder: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        encoder.u32(self.number())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Silence {
    fn decode(decoder: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        decoder.u32().map(Self::from_number)
    }
}
