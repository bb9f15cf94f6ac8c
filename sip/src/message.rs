//! SIP messages: an index over bytes that stay as they came.
//!
//! [`Message::parse`] finds the start line, the header fields and the body and remembers where
//! they are; nothing is copied or decoded. Values are read on demand (`value`, `uri`), edits
//! replace the spans they are about and keep every other byte (`edit`), answers are built from
//! requests (`build`). [`Framer`] cuts messages out of a stream. [`Message::check`] says whether
//! a request or response may be passed on at all.
//!
//! Standards: RFC 3261 sections 7, 18.3, 20 and 25; RFC 3581; RFC 5118; RFC 5626 section 3.5.1.

mod build;
mod check;
mod edit;
mod framer;
mod name;
mod uri;
mod value;

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;
use memchr::memchr;
use smallvec::SmallVec;

pub use build::ResponseBuilder;
pub use check::Fault;
pub use edit::Edit;
pub use framer::{FrameError, Framer, StreamItem};
pub use name::{HeaderName, Method};
pub use uri::{Host, Uri};
pub use value::{NameAddr, Parameters, ValueError, Via};

use value::split_list;

/// The longest message that is read, in octets.
pub const MAX_MESSAGE: usize = 65_535;

/// The most header fields in one message.
pub const MAX_FIELDS: usize = 512;

/// Why bytes are no SIP message that could even be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Nothing but line ends: a keepalive.
    #[error("empty")]
    Empty,
    /// Longer than [`MAX_MESSAGE`].
    #[error("too long")]
    TooLong,
    /// The first line is neither a request line nor a status line.
    #[error("no start line")]
    StartLine,
    /// The status code is not three digits.
    #[error("bad status code")]
    StatusCode,
    /// More than [`MAX_FIELDS`] header fields.
    #[error("too many header fields")]
    TooManyFields,
    /// No empty line ends the head.
    #[error("head without end")]
    Unterminated,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Start {
    Request {
        method: Range<usize>,
        uri: Range<usize>,
        version: Range<usize>,
    },
    Response {
        status: u16,
        reason: Range<usize>,
        version: Range<usize>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct FieldSpan {
    name: HeaderName,
    /// From the first octet of the name to behind the line end.
    line: Range<usize>,
    raw_name: Range<usize>,
    value: Range<usize>,
    /// No colon, or a name with octets that no name may have.
    malformed: bool,
}

/// A header field as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    /// Which header.
    pub name: HeaderName,
    /// Its name as spelt.
    pub raw_name: &'a [u8],
    /// Its value without surrounding space; folding is still inside.
    pub value: &'a [u8],
}

/// One SIP message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    bytes: Bytes,
    start: Start,
    fields: SmallVec<[FieldSpan; 20]>,
    body: Range<usize>,
    length_fault: bool,
}

impl Message {
    /// Reads one datagram. Line ends in front of it are skipped; the body is what Content-Length
    /// says, or the rest; octets behind it are ignored (RFC 3261 section 18.3).
    pub fn parse(bytes: Bytes) -> Result<Self, ParseError> {
        if bytes.len() > MAX_MESSAGE {
            return Err(ParseError::TooLong);
        }
        let skip = bytes
            .iter()
            .take_while(|byte| matches!(byte, b'\r' | b'\n'))
            .count();
        let mut message = Self::parse_head(bytes.slice(skip..))?;
        message.find_body();
        Ok(message)
    }

    /// The whole message as it came, less what stood behind its body.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// True for a request.
    pub fn is_request(&self) -> bool {
        matches!(self.start, Start::Request { .. })
    }

    /// The method of a request; of a response, that of its CSeq.
    pub fn method(&self) -> Method<'_> {
        match &self.start {
            Start::Request { method, .. } => Method::from_bytes(&self.bytes[method.clone()]),
            Start::Response { .. } => self.cseq().map_or(Method::Other(b""), |(_, method)| method),
        }
    }

    /// The Request-URI as it came; empty for a response.
    pub fn request_uri(&self) -> &[u8] {
        match &self.start {
            Start::Request { uri, .. } => &self.bytes[uri.clone()],
            Start::Response { .. } => b"",
        }
    }

    /// The status code of a response.
    pub fn status(&self) -> Option<u16> {
        match &self.start {
            Start::Request { .. } => None,
            Start::Response { status, .. } => Some(*status),
        }
    }

    /// The reason phrase of a response.
    pub fn reason(&self) -> &[u8] {
        match &self.start {
            Start::Request { .. } => b"",
            Start::Response { reason, .. } => &self.bytes[reason.clone()],
        }
    }

    /// True for SIP/2.0.
    pub fn version_ok(&self) -> bool {
        let (Start::Request { version, .. } | Start::Response { version, .. }) = &self.start;
        self.bytes[version.clone()].eq_ignore_ascii_case(b"SIP/2.0")
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        &self.bytes[self.body.clone()]
    }

    /// True where Content-Length is unusable, contradicts itself or is more than there is.
    pub fn content_length_fault(&self) -> bool {
        self.length_fault
    }

    /// The header fields in their order.
    pub fn headers(&self) -> impl Iterator<Item = Field<'_>> {
        self.fields.iter().map(|span| Field {
            name: span.name,
            raw_name: &self.bytes[span.raw_name.clone()],
            value: &self.bytes[span.value.clone()],
        })
    }

    /// The value of the first field of that name.
    pub fn header(&self, name: HeaderName) -> Option<&[u8]> {
        self.spans(name)
            .next()
            .map(|span| &self.bytes[span.value.clone()])
    }

    /// How many fields have that name.
    pub fn count(&self, name: HeaderName) -> usize {
        self.spans(name).count()
    }

    /// The values of a list header, across fields and commas, unfolded, in order.
    pub fn values(&self, name: HeaderName) -> impl Iterator<Item = Cow<'_, [u8]>> {
        self.raw_values(name)
            .map(|span| value::unfold(&self.bytes[span]))
    }

    /// The topmost Via.
    pub fn top_via(&self) -> Result<Via<'_>, ValueError> {
        self.vias().next().unwrap_or(Err(ValueError::Missing))
    }

    /// All Via values, the topmost first.
    pub fn vias(&self) -> impl Iterator<Item = Result<Via<'_>, ValueError>> {
        self.raw_values(HeaderName::Via)
            .map(|span| Via::parse(&self.bytes[span]))
    }

    /// From.
    pub fn from(&self) -> Result<NameAddr<'_>, ValueError> {
        NameAddr::parse(self.header(HeaderName::From).ok_or(ValueError::Missing)?)
    }

    /// To.
    pub fn to(&self) -> Result<NameAddr<'_>, ValueError> {
        NameAddr::parse(self.header(HeaderName::To).ok_or(ValueError::Missing)?)
    }

    /// The contacts, without `*`.
    pub fn contacts(&self) -> impl Iterator<Item = Result<NameAddr<'_>, ValueError>> {
        self.name_addrs(HeaderName::Contact)
    }

    /// The Route values.
    pub fn routes(&self) -> impl Iterator<Item = Result<NameAddr<'_>, ValueError>> {
        self.name_addrs(HeaderName::Route)
    }

    /// The Record-Route values.
    pub fn record_routes(&self) -> impl Iterator<Item = Result<NameAddr<'_>, ValueError>> {
        self.name_addrs(HeaderName::RecordRoute)
    }

    /// True for `Contact: *`.
    pub fn contact_is_star(&self) -> bool {
        self.header(HeaderName::Contact) == Some(b"*")
    }

    /// CSeq: the number (below 2^31, RFC 3261 section 8.1.1.5) and the method.
    pub fn cseq(&self) -> Result<(u32, Method<'_>), ValueError> {
        let value = self.header(HeaderName::CSeq).ok_or(ValueError::Missing)?;
        let digits = value
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .count();
        let number = value::decimal(&value[..digits]).filter(|number| *number < 1 << 31);
        let number = u32::try_from(number.ok_or(ValueError::Number)?);
        let rest = &value[digits..];
        let method = value::trim(rest);
        if method.len() == rest.len() || method.is_empty() || !method.iter().all(is_token) {
            return Err(ValueError::Syntax);
        }
        Ok((
            number.map_err(|_| ValueError::Number)?,
            Method::from_bytes(method),
        ))
    }

    /// Call-ID.
    pub fn call_id(&self) -> Result<&[u8], ValueError> {
        match self.header(HeaderName::CallId) {
            None => Err(ValueError::Missing),
            Some(value) if value.is_empty() || value.iter().any(u8::is_ascii_whitespace) => {
                Err(ValueError::Syntax)
            }
            Some(value) => Ok(value),
        }
    }

    /// Max-Forwards, if present.
    pub fn max_forwards(&self) -> Result<Option<u8>, ValueError> {
        let Some(value) = self.header(HeaderName::MaxForwards) else {
            return Ok(None);
        };
        let number = value::decimal(value).and_then(|number| u8::try_from(number).ok());
        number.map(Some).ok_or(ValueError::Number)
    }

    /// Expires, in seconds; a malformed value counts as absent (RFC 3261 section 20.19).
    pub fn expires(&self) -> Option<u32> {
        let number = value::decimal(self.header(HeaderName::Expires)?)?;
        u32::try_from(number).ok()
    }

    /// Content-Type.
    pub fn content_type(&self) -> Option<&[u8]> {
        self.header(HeaderName::ContentType)
    }

    /// Begins an edited copy.
    pub fn edit(&self) -> Edit<'_> {
        Edit::new(self)
    }

    fn name_addrs(
        &self,
        name: HeaderName,
    ) -> impl Iterator<Item = Result<NameAddr<'_>, ValueError>> {
        self.raw_values(name)
            .filter(|span| &self.bytes[span.clone()] != b"*")
            .map(|span| NameAddr::parse(&self.bytes[span]))
    }

    fn spans(&self, name: HeaderName) -> impl Iterator<Item = &FieldSpan> {
        self.fields.iter().filter(move |span| span.name == name)
    }

    fn raw_values(&self, name: HeaderName) -> impl Iterator<Item = Range<usize>> {
        self.spans(name).flat_map(|span| {
            let base = span.value.start;
            split_list(&self.bytes[span.value.clone()])
                .map(move |value| base + value.start..base + value.end)
        })
    }

    /// The start line and the fields; the body is everything behind.
    fn parse_head(bytes: Bytes) -> Result<Self, ParseError> {
        if bytes.is_empty() {
            return Err(ParseError::Empty);
        }
        let first = line_end(&bytes, 0).ok_or(ParseError::StartLine)?;
        let start = parse_start_line(&bytes, 0..first.text_end)?;
        let mut fields: SmallVec<[FieldSpan; 20]> = SmallVec::new();
        let mut at = first.next;
        loop {
            let Some(line) = line_end(&bytes, at) else {
                return Err(ParseError::Unterminated);
            };
            if line.text_end == at {
                at = line.next;
                break;
            }
            let folded = matches!(bytes[at], b' ' | b'\t');
            match fields.last_mut() {
                Some(last) if folded => {
                    last.line.end = line.next;
                    last.value = trim_span(&bytes, last.value.start..line.text_end);
                }
                _ => {
                    if fields.len() == MAX_FIELDS {
                        return Err(ParseError::TooManyFields);
                    }
                    fields.push(parse_field(&bytes, at, &line));
                }
            }
            at = line.next;
        }
        let body = at..bytes.len();
        Ok(Self {
            bytes,
            start,
            fields,
            body,
            length_fault: false,
        })
    }

    /// Cuts the body to Content-Length, or notes why that cannot be done.
    fn find_body(&mut self) {
        match self.declared_length() {
            Ok(None) => {}
            Ok(Some(length)) if length <= self.body.len() => {
                self.body.end = self.body.start + length;
                self.bytes.truncate(self.body.end);
            }
            Ok(Some(_)) | Err(_) => self.length_fault = true,
        }
    }

    /// What the Content-Length fields say, if they agree.
    fn declared_length(&self) -> Result<Option<usize>, ValueError> {
        let mut declared = None;
        for span in self.spans(HeaderName::ContentLength) {
            let number = value::decimal(&self.bytes[span.value.clone()]);
            let number = number.and_then(|number| usize::try_from(number).ok());
            let number = number.ok_or(ValueError::Number)?;
            if declared.is_some_and(|before| before != number) {
                return Err(ValueError::Number);
            }
            declared = Some(number);
        }
        Ok(declared)
    }
}

struct Line {
    /// Behind the last octet of the text.
    text_end: usize,
    /// Behind the line end.
    next: usize,
}

/// The line that begins at `from`; lone LF counts as a line end.
fn line_end(bytes: &[u8], from: usize) -> Option<Line> {
    let newline = from + memchr(b'\n', &bytes[from..])?;
    let text_end = if newline > from && bytes[newline - 1] == b'\r' {
        newline - 1
    } else {
        newline
    };
    Some(Line {
        text_end,
        next: newline + 1,
    })
}

fn parse_start_line(bytes: &[u8], line: Range<usize>) -> Result<Start, ParseError> {
    let text = &bytes[line.clone()];
    let first_space = memchr(b' ', text).ok_or(ParseError::StartLine)?;
    if text.len() > 4 && text[..4].eq_ignore_ascii_case(b"SIP/") {
        return parse_status_line(text, &line, first_space);
    }
    let last_space = text
        .iter()
        .rposition(|byte| *byte == b' ')
        .ok_or(ParseError::StartLine)?;
    let trimmed = text.trim_ascii_end().len();
    // A trailing space leaves no version behind the last one: look before it (4475 3.1.2.10).
    let last_space = if last_space + 1 >= text.len() {
        text[..trimmed]
            .iter()
            .rposition(|byte| *byte == b' ')
            .ok_or(ParseError::StartLine)?
    } else {
        last_space
    };
    let looks_like_sip = text[last_space + 1..]
        .get(..4)
        .is_some_and(|start| start.eq_ignore_ascii_case(b"SIP/"));
    if first_space == 0 || last_space <= first_space || !looks_like_sip {
        return Err(ParseError::StartLine);
    }
    Ok(Start::Request {
        method: line.start..line.start + first_space,
        uri: line.start + first_space + 1..line.start + last_space,
        version: line.start + last_space + 1..line.end,
    })
}

fn parse_status_line(
    text: &[u8],
    line: &Range<usize>,
    first_space: usize,
) -> Result<Start, ParseError> {
    let code = text
        .get(first_space + 1..first_space + 4)
        .ok_or(ParseError::StatusCode)?;
    let behind = text.get(first_space + 4);
    let status = value::decimal(code).and_then(|code| u16::try_from(code).ok());
    match (status, behind) {
        (Some(status @ 100..=699), None | Some(b' ')) => Ok(Start::Response {
            status,
            reason: (line.start + first_space + 5).min(line.end)..line.end,
            version: line.start..line.start + first_space,
        }),
        _ => Err(ParseError::StatusCode),
    }
}

fn parse_field(bytes: &[u8], at: usize, line: &Line) -> FieldSpan {
    let text = &bytes[at..line.text_end];
    let Some(colon) = memchr(b':', text) else {
        return FieldSpan {
            name: HeaderName::Other,
            line: at..line.next,
            raw_name: at..line.text_end,
            value: line.text_end..line.text_end,
            malformed: true,
        };
    };
    let raw = &text[..colon];
    // HCOLON allows space before the colon, and nothing else does (RFC 3261 section 25.1).
    let name_length = raw
        .iter()
        .rposition(|byte| !matches!(byte, b' ' | b'\t'))
        .map_or(0, |last| last + 1);
    let raw_name = &raw[..name_length];
    let malformed = raw_name.is_empty() || !raw_name.iter().all(is_token);
    let name = if malformed {
        HeaderName::Other
    } else {
        HeaderName::from_bytes(raw_name)
    };
    FieldSpan {
        name,
        line: at..line.next,
        raw_name: at..at + name_length,
        value: trim_span(bytes, at + colon + 1..line.text_end),
        malformed,
    }
}

fn trim_span(bytes: &[u8], mut span: Range<usize>) -> Range<usize> {
    while span.start < span.end && is_space(bytes[span.start]) {
        span.start += 1;
    }
    while span.start < span.end && is_space(bytes[span.end - 1]) {
        span.end -= 1;
    }
    span
}

const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// `token` of RFC 3261 section 25.1.
const fn is_token(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'-' | b'.' | b'!' | b'%' | b'*' | b'_' | b'+' | b'`' | b'\'' | b'~'
        )
}
