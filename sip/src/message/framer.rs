//! Messages out of a stream (RFC 3261 section 18.3, keepalive of RFC 5626 section 3.5.1).

use bytes::{Buf, Bytes, BytesMut};
use memchr::memmem;

use super::{Message, ParseError};

/// What a stream carries.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "nearly every item is a message")]
pub enum StreamItem {
    /// A whole message.
    Message(Message),
    /// A double line end, to be answered with a single one.
    Ping,
}

/// Why a stream cannot be read any further: it must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A message is longer than allowed.
    #[error("message too long")]
    TooLong,
    /// Content-Length is unusable, so the next message cannot be found.
    #[error("unusable Content-Length")]
    ContentLength,
    /// A head is no SIP message.
    #[error("{0}")]
    Parse(#[from] ParseError),
}

/// Cuts messages out of a stream, in linear time however its bytes arrive.
#[derive(Debug)]
pub struct Framer {
    buffer: BytesMut,
    /// The head's end is not before this.
    searched: usize,
    /// The length of the message at the front, once its head has been read.
    length: Option<usize>,
    max_message: usize,
}

impl Framer {
    /// A stream whose messages are at most this long, in octets.
    pub fn new(max_message: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            searched: 0,
            length: None,
            max_message,
        }
    }

    /// Takes what was received.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// True in the middle of a message; a line end that may become a ping is not one.
    pub fn is_partial(&self) -> bool {
        !b"\r\n\r\n".starts_with(&self.buffer)
    }

    /// The next item; `None` until more is received.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator would end at None"
    )]
    pub fn next(&mut self) -> Result<Option<StreamItem>, FrameError> {
        if self.length.is_none() && self.skip_line_ends() {
            return Ok(Some(StreamItem::Ping));
        }
        let Some(length) = self.message_length()? else {
            return Ok(None);
        };
        if self.buffer.len() < length {
            return Ok(None);
        }
        self.searched = 0;
        self.length = None;
        let message = Message::parse(self.buffer.split_to(length).freeze())?;
        Ok(Some(StreamItem::Message(message)))
    }

    /// Line ends between messages; true if they were a ping.
    fn skip_line_ends(&mut self) -> bool {
        loop {
            if self.buffer.starts_with(b"\r\n\r\n") {
                self.buffer.advance(4);
                return true;
            }
            match self.buffer.first() {
                // One line end may be the first half of a ping: wait for the octets behind it.
                Some(b'\r' | b'\n') if b"\r\n\r\n".starts_with(&self.buffer) => return false,
                Some(b'\r' | b'\n') => self.buffer.advance(1),
                _ => return false,
            }
        }
    }

    /// The length of the message at the front, head and body.
    fn message_length(&mut self) -> Result<Option<usize>, FrameError> {
        if let Some(length) = self.length {
            return Ok(Some(length));
        }
        let Some(head_end) = self.head_end() else {
            let full = self.buffer.len() > self.max_message;
            return if full {
                Err(FrameError::TooLong)
            } else {
                Ok(None)
            };
        };
        if matches!(self.buffer.first(), None | Some(b'\r' | b'\n')) {
            return Ok(None);
        }
        let head = Message::parse_head(Bytes::copy_from_slice(&self.buffer[..head_end]))?;
        // Without Content-Length there is no body (RFC 3261 section 20.14 wants one on a stream;
        // reading on as if it said 0 loses nothing).
        let body = head
            .declared_length()
            .map_err(|_| FrameError::ContentLength)?;
        let length = head_end.saturating_add(body.unwrap_or(0));
        if length > self.max_message {
            return Err(FrameError::TooLong);
        }
        self.length = Some(length);
        Ok(Some(length))
    }

    fn head_end(&mut self) -> Option<usize> {
        let from = self.searched.saturating_sub(3);
        let text = &self.buffer[from..];
        let crlf = memmem::find(text, b"\r\n\r\n").map(|at| from + at + 4);
        let lf = memmem::find(text, b"\n\n").map(|at| from + at + 2);
        let mixed = memmem::find(text, b"\n\r\n").map(|at| from + at + 3);
        self.searched = self.buffer.len();
        [crlf, lf, mixed].into_iter().flatten().min()
    }
}
