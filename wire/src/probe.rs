//! The probe with which an edge asks a concentrator for its state, and the answer.
//!
//! Both are the payload of a UDP datagram that goes through the tunnel itself, so that an answer says
//! that the tunnel works. Padding makes a probe as long as the longest packet; the answer is never
//! longer than the probe, so a forged source address gains nothing.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                        magic "SCPB"                           |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |  version = 1  |     kind      |     state     |       0       |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                          tunnel key                           |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                           sequence                            |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                                                               |
//! +            sent, microseconds, the edge's own clock           +
//! |                                                               |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |             load              |               0               |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                    padding, all 0 ...
//! ```

use crate::error::DecodeError;
use crate::gre::TunnelKey;

/// The octets of a probe without padding, and of an answer.
pub const LEN: usize = 28;

/// The UDP port that a concentrator takes probes on where no other is configured.
pub const DEFAULT_PORT: u16 = 7061;

const MAGIC: [u8; 4] = *b"SCPB";
const VERSION: u8 = 1;
const KIND_PROBE: u8 = 1;
const KIND_ANSWER: u8 = 2;

/// Whether a concentrator takes traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Send here.
    Serving,
    /// Send here only what has nowhere else to go.
    Draining,
    /// Do not send here.
    NotReady,
}

impl State {
    const fn number(self) -> u8 {
        match self {
            Self::Serving => 1,
            Self::Draining => 2,
            Self::NotReady => 3,
        }
    }

    const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Serving),
            2 => Some(Self::Draining),
            3 => Some(Self::NotReady),
            _ => None,
        }
    }
}

/// Question or answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// How are you?
    Probe,
    /// Like this.
    Answer {
        /// The concentrator's state.
        state: State,
        /// How busy it is: 0 idle, 65535 full.
        load: u16,
    },
}

/// The values of a probe or an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Repr {
    /// Which of the two.
    pub kind: Kind,
    /// The edge's tunnel.
    pub key: TunnelKey,
    /// Grows by one with each probe; returned in the answer.
    pub sequence: u32,
    /// The edge's clock when it sent the probe; returned in the answer.
    pub sent_us: u64,
}

impl Repr {
    /// Reads a UDP payload; padding is not looked at.
    pub fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        let bytes = bytes.first_chunk::<LEN>().ok_or(DecodeError::Truncated)?;
        if bytes[..4] != MAGIC {
            return Err(DecodeError::ProbeMagic);
        }
        if bytes[4] != VERSION {
            return Err(DecodeError::ProbeVersion);
        }
        let kind = match bytes[5] {
            KIND_PROBE => Kind::Probe,
            KIND_ANSWER => Kind::Answer {
                state: State::from_number(bytes[6]).ok_or(DecodeError::ProbeState)?,
                load: u16::from_be_bytes([bytes[24], bytes[25]]),
            },
            _ => return Err(DecodeError::ProbeKind),
        };
        let word = |at: usize| {
            u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Ok(Self {
            kind,
            key: TunnelKey(word(8)),
            sequence: word(12),
            sent_us: u64::from(word(16)) << 32 | u64::from(word(20)),
        })
    }

    /// The UDP payload, padded to `len` if that is longer than [`LEN`].
    pub fn build(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len.max(LEN)];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = VERSION;
        bytes[5] = KIND_PROBE;
        if let Kind::Answer { state, load } = self.kind {
            bytes[5] = KIND_ANSWER;
            bytes[6] = state.number();
            bytes[24..26].copy_from_slice(&load.to_be_bytes());
        }
        bytes[8..12].copy_from_slice(&self.key.0.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.sent_us.to_be_bytes());
        bytes
    }

    /// The answer to this probe; `None` if it is an answer itself.
    pub fn answer(&self, state: State, load: u16) -> Option<Self> {
        (self.kind == Kind::Probe).then_some(Self {
            kind: Kind::Answer { state, load },
            ..*self
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    prop_compose! {
        fn repr()(
            state in prop_oneof![Just(State::Serving), Just(State::Draining), Just(State::NotReady)],
            load: u16, answer: bool, key: u32, sequence: u32, sent_us: u64,
        ) -> Repr {
            let kind = if answer { Kind::Answer { state, load } } else { Kind::Probe };
            Repr { kind, key: TunnelKey(key), sequence, sent_us }
        }
    }

    proptest! {
        #[test]
        fn a_probe_comes_back_as_it_was_at_any_length(repr in repr(), len in 0_usize..2000) {
            let bytes = repr.build(len);
            prop_assert_eq!(bytes.len(), len.max(LEN));
            prop_assert_eq!(Repr::parse(&bytes), Ok(repr));
        }

        #[test]
        fn every_truncation_is_an_error(repr in repr()) {
            let bytes = repr.build(0);
            for len in 0..LEN {
                prop_assert_eq!(Repr::parse(&bytes[..len]), Err(DecodeError::Truncated));
            }
        }
    }

    #[test]
    fn each_refusal_has_its_own_reason() {
        let kind = Kind::Answer {
            state: State::Serving,
            load: 0,
        };
        let good = Repr {
            kind,
            key: TunnelKey(1),
            sequence: 2,
            sent_us: 3,
        }
        .build(0);
        let refusals = [
            (0, DecodeError::ProbeMagic),
            (4, DecodeError::ProbeVersion),
            (5, DecodeError::ProbeKind),
            (6, DecodeError::ProbeState),
        ];
        for (at, error) in refusals {
            let mut bytes = good.clone();
            bytes[at] = 99;
            assert_eq!(Repr::parse(&bytes), Err(error));
        }
    }

    #[test]
    fn an_answer_is_not_answered() {
        let probe = Repr {
            kind: Kind::Probe,
            key: TunnelKey(1),
            sequence: 2,
            sent_us: 3,
        };
        let answer = probe.answer(State::Draining, 7).unwrap();
        assert_eq!((answer.sequence, answer.sent_us), (2, 3));
        assert_eq!(answer.answer(State::Serving, 0), None);
    }
}
