//! Messages out of a byte stream (RFC 3261 sections 7.5 and 18.3, keepalives of RFC 5626 section
//! 3.5.1).
//!
//! Content-Length is the only border between two messages, so a stream whose length cannot be
//! trusted is over: the message that spoilt it comes out, for its 400, and then the error, again
//! and again. No octet is looked at twice, however the stream is cut. A caller that takes all
//! items after each push never holds more than one unfinished message and one push.

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;

use super::index::{FieldSpan, Index};
use super::{HeaderName, Message, ParseError};

/// What a stream carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamItem {
    /// A message.
    Message(Message),
    /// A double CRLF, to be answered with a single one.
    Ping,
}

/// The stream is of no more use: close it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum FrameError {
    /// A message longer than allowed, or a head that does not end.
    #[error("message too long")]
    TooLong,
    /// What came is no message.
    #[error("{0}")]
    Parse(#[from] ParseError),
    /// Where the message ends cannot be known.
    #[error("unusable Content-Length")]
    ContentLength,
}

/// Cuts one stream into messages.
#[derive(Debug)]
pub struct Framer {
    max_message: usize,
    buffer: BytesMut,
    state: State,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Between messages; `half_ping` after one CRLF.
    Between {
        half_ping: bool,
    },
    /// In a head whose octets before `scanned` hold no end.
    Head {
        scanned: usize,
    },
    /// In a body; the message has `length` octets.
    Body {
        length: usize,
    },
    Broken(FrameError),
}

impl Framer {
    /// A framer that gives up on messages longer than `max_message`, at most
    /// [`MAX_MESSAGE`](super::MAX_MESSAGE).
    pub fn new(max_message: usize) -> Self {
        let max_message = max_message.min(super::MAX_MESSAGE);
        Self {
            max_message,
            buffer: BytesMut::new(),
            state: State::Between { half_ping: false },
        }
    }

    /// Takes what was read. Take all items out with [`Framer::next`] before the next push.
    pub fn push(&mut self, bytes: &[u8]) {
        if !matches!(self.state, State::Broken(_)) {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// True in the middle of a message; half a line end is not one.
    pub fn is_partial(&self) -> bool {
        !matches!(*self.buffer, [] | [b'\r'])
    }

    /// The next item, `None` until more octets come.
    #[expect(clippy::should_implement_trait, reason = "None here means: not yet")]
    pub fn next(&mut self) -> Result<Option<StreamItem>, FrameError> {
        loop {
            let step = match self.state {
                State::Between { half_ping } => self.skip_line_ends(half_ping),
                State::Head { scanned } => self.find_head(scanned),
                State::Body { length } => return self.take(length),
                State::Broken(error) => return Err(error),
            };
            match step {
                Step::Go(state) => self.state = state,
                Step::Item(item, state) => {
                    self.state = state;
                    return Ok(Some(item));
                }
                Step::Wait(state) => {
                    self.state = state;
                    return Ok(None);
                }
            }
        }
    }

    fn skip_line_ends(&mut self, half_ping: bool) -> Step {
        match *self.buffer {
            [b'\r', b'\n', ..] => {
                self.buffer.advance(2);
                let between = State::Between {
                    half_ping: !half_ping,
                };
                if half_ping {
                    Step::Item(StreamItem::Ping, between)
                } else {
                    Step::Go(between)
                }
            }
            [b'\n', ..] => {
                self.buffer.advance(1);
                Step::Go(State::Between { half_ping: false })
            }
            [] | [b'\r'] => Step::Wait(State::Between { half_ping }),
            _ => Step::Go(State::Head { scanned: 0 }),
        }
    }

    fn find_head(&mut self, scanned: usize) -> Step {
        match head_end(&self.buffer, scanned) {
            Ok(length) if length > self.max_message => Step::Go(State::Broken(FrameError::TooLong)),
            Ok(length) => self.measure(length),
            Err(_) if self.buffer.len() > self.max_message => {
                Step::Go(State::Broken(FrameError::TooLong))
            }
            Err(scanned) => Step::Wait(State::Head { scanned }),
        }
    }

    /// The head is complete: how long is the message?
    fn measure(&mut self, head: usize) -> Step {
        let index = match Index::of(&self.buffer[..head]) {
            Ok(index) => index,
            Err(error) => return Step::Go(State::Broken(FrameError::Parse(error))),
        };
        let typed = |field: &FieldSpan| field.name == HeaderName::ContentType;
        let length = match index.content_length(&self.buffer) {
            Ok(Some(length)) => head.saturating_add(length),
            // "The Content-Length header field MUST be used with stream oriented transports" (18.3).
            // Without a type there is no body, and nothing to lose; with one its end is unknown.
            Ok(None) if !index.fields.iter().any(typed) => head,
            Ok(None) => return Step::Go(State::Broken(FrameError::ContentLength)),
            Err(_) => return self.last_message(head, FrameError::ContentLength),
        };
        if length > self.max_message {
            return self.last_message(head, FrameError::TooLong);
        }
        Step::Go(State::Body { length })
    }

    /// The head of the message that spoils the stream, so that it can be answered.
    fn last_message(&mut self, head: usize, error: FrameError) -> Step {
        let head = self.buffer.split_to(head).freeze();
        self.buffer = BytesMut::new();
        match Message::parse(head) {
            Ok(message) => Step::Item(StreamItem::Message(message), State::Broken(error)),
            Err(_) => Step::Go(State::Broken(error)),
        }
    }

    fn take(&mut self, length: usize) -> Result<Option<StreamItem>, FrameError> {
        if self.buffer.len() < length {
            return Ok(None);
        }
        let bytes: Bytes = self.buffer.split_to(length).freeze();
        match Message::parse(bytes) {
            Ok(message) => {
                self.state = State::Between { half_ping: false };
                Ok(Some(StreamItem::Message(message)))
            }
            Err(error) => {
                self.state = State::Broken(FrameError::Parse(error));
                Err(FrameError::Parse(error))
            }
        }
    }
}

enum Step {
    Go(State),
    Item(StreamItem, State),
    Wait(State),
}

/// Where the head ends, its empty line included; `Err` with how far it need not be looked at again.
fn head_end(bytes: &[u8], scanned: usize) -> Result<usize, usize> {
    let mut at = scanned;
    while let Some(found) = memchr::memchr(b'\n', &bytes[at..]) {
        let line_end = at + found;
        match &bytes[line_end + 1..] {
            [b'\n', ..] => return Ok(line_end + 2),
            [b'\r', b'\n', ..] => return Ok(line_end + 3),
            [] | [b'\r'] => return Err(line_end),
            _ => at = line_end + 1,
        }
    }
    Err(bytes.len())
}
