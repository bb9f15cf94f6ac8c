//! Frames: a 32-bit length in network order, then one message in CBOR.

use minicbor::{Decode, Decoder, Encode};
use thiserror::Error;

use super::{FromAgent, ToAgent};

/// The octets before the message.
pub const FRAME_HEADER_LEN: usize = 4;

/// The longest message; a longer one ends the connection.
pub const MAX_FRAME_LEN: usize = 64 * 1024;

/// With every frame taken after every push, a push of [`MAX_FRAME_LEN`] always fits.
const CAPACITY: usize = FRAME_HEADER_LEN + 2 * MAX_FRAME_LEN;

/// Why the connection cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The peer claims, or the caller made, a message longer than [`MAX_FRAME_LEN`].
    #[error("a message of {0} octets is longer than 65536")]
    TooLong(usize),
    /// More was pushed than [`Framer::next_frame`] was asked to take.
    #[error("frames were pushed and not taken")]
    NotDrained,
    /// The message did not encode.
    #[error("the message could not be encoded")]
    Encode,
}

/// Why one message is skipped; the next may be good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MessageError {
    /// A message of a later version of the protocol: count and skip.
    #[error("message {0} is not known")]
    UnknownMessage(u32),
    /// Not a message: no array of a number and its fields.
    #[error("not a message")]
    NotAMessage,
    /// A known message with fields that are missing, of a wrong type or of an unknown value.
    #[error("message {0} is malformed")]
    Malformed(u32),
    /// Octets after the end of the message.
    #[error("octets after the message")]
    TrailingBytes,
}

/// What may be in a frame: [`FromAgent`] or [`ToAgent`].
pub trait Message: Encode<()> + for<'b> Decode<'b, ()> {
    /// The highest number of a message in this direction.
    const LAST: u32;
}

impl Message for FromAgent {
    const LAST: u32 = 10;
}

impl Message for ToAgent {
    const LAST: u32 = 7;
}

/// The frame of this message, header included.
pub fn encode_frame<M: Message>(message: &M) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; FRAME_HEADER_LEN];
    minicbor::encode(message, &mut frame).map_err(|_| FrameError::Encode)?;
    let len = frame.len() - FRAME_HEADER_LEN;
    if len > MAX_FRAME_LEN {
        return Err(FrameError::TooLong(len));
    }
    let header = u32::try_from(len).map_err(|_| FrameError::TooLong(len))?;
    frame[..FRAME_HEADER_LEN].copy_from_slice(&header.to_be_bytes());
    Ok(frame)
}

/// The message in a frame from [`Framer::next_frame`].
pub fn decode<M: Message>(frame: &[u8]) -> Result<M, MessageError> {
    let number = number_of(&mut Decoder::new(frame)).ok_or(MessageError::NotAMessage)?;
    if number > M::LAST {
        return Err(MessageError::UnknownMessage(number));
    }
    let mut decoder = Decoder::new(frame);
    let message = decoder
        .decode()
        .map_err(|_| MessageError::Malformed(number))?;
    if decoder.position() != frame.len() {
        return Err(MessageError::TrailingBytes);
    }
    Ok(message)
}

/// The id of a request that [`decode`] refused, so that it can be answered all the same.
///
/// Every message to the agent with an id has it as its first field; this holds for later ones too.
/// Heartbeats and `Welcome` have no id.
pub fn request_of(frame: &[u8]) -> Option<u64> {
    let mut decoder = Decoder::new(frame);
    // 0 is Welcome, 5 and 6 are heartbeats.
    if matches!(number_of(&mut decoder)?, 0 | 5 | 6) {
        return None;
    }
    decoder.array().ok()?;
    decoder.u64().ok()
}

fn number_of(decoder: &mut Decoder<'_>) -> Option<u32> {
    match decoder.array() {
        Ok(Some(2)) => decoder.u32().ok(),
        _ => None,
    }
}

/// Cuts what a connection delivers into frames; holds no more than two frames.
///
/// ```
/// # use wire::relay_control::{Framer, FromAgent, decode, encode_frame};
/// # let received = encode_frame(&FromAgent::Draining)?;
/// # let mut framer = Framer::default();
/// framer.push(&received)?;
/// while let Some(frame) = framer.next_frame()? {
///     let message: Result<FromAgent, _> = decode(frame);
///     assert_eq!(message, Ok(FromAgent::Draining));
/// }
/// # Ok::<(), wire::relay_control::FrameError>(())
/// ```
#[derive(Debug, Default)]
pub struct Framer {
    buffer: Vec<u8>,
    /// Octets at the front that belong to frames already given out.
    taken: usize,
}

impl Framer {
    /// Adds what was received: at most [`MAX_FRAME_LEN`] octets, after all frames were taken.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), FrameError> {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        if bytes.len() > CAPACITY - self.buffer.len() {
            return Err(FrameError::NotDrained);
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// The next whole frame without its header, `None` while it is not whole yet.
    ///
    /// An error is for good: the stream has lost its borders and the connection must end.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, FrameError> {
        let rest = &self.buffer[self.taken..];
        let Some((header, rest)) = rest.split_first_chunk::<FRAME_HEADER_LEN>() else {
            return Ok(None);
        };
        let len = u32::from_be_bytes(*header) as usize;
        if len > MAX_FRAME_LEN {
            return Err(FrameError::TooLong(len));
        }
        let Some(frame) = rest.get(..len) else {
            return Ok(None);
        };
        self.taken += FRAME_HEADER_LEN + len;
        Ok(Some(frame))
    }
}
