//! SIP messages: an index over the bytes that came in, typed access to what a proxy reads, edits
//! that leave every other byte as it was (RFC 3261 sections 7 and 25).
//!
//! A proxy forwards what it does not understand, so nothing here is ever written back from a typed
//! form. [`Message::parse`] finds the lines of the head once and remembers where they are; typed
//! values ([`Via`], [`NameAddr`], [`Uri`]) are read from those spans when somebody asks; those that
//! every step asks for are noted then, and the copies that edits make take the notes over. An
//! [`Edit`] replaces spans and copies the rest: order, spelling, folding, unknown headers.
//!
//! Parsing is tolerant: whatever can still be answered becomes a `Message`. Whether it may be
//! forwarded is a separate question, and [`Message::check`] answers it with the status to send.
//!
//! Bounds: [`MAX_MESSAGE`] octets, [`MAX_FIELDS`] header fields. Every scan is linear in the
//! message: quotes and angle brackets that never close swallow the rest of their field.

mod build;
mod check;
mod edit;
mod error;
mod framer;
mod header_name;
mod host;
mod index;
mod method;
mod name_addr;
mod noted;
mod params;
mod respond;
pub(crate) mod scan;
mod stamp;
mod uri;
mod via;

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;

pub(crate) use build::Bye;
pub use check::Fault;
pub use edit::Edit;
pub use error::{ContentLengthFault, HeadFault, ParseError, ValueError};
pub use framer::{FrameError, Framer, StreamItem};
pub use header_name::HeaderName;
pub use host::Host;
pub(crate) use host::same_name;
pub use index::{MAX_FIELDS, MAX_MESSAGE};
pub use method::Method;
pub use name_addr::NameAddr;
pub use params::Parameters;
pub use respond::ResponseBuilder;
pub use uri::Uri;
pub(crate) use uri::is_sips;
pub use via::Via;

use index::{Index, StartLine};
use scan::{ByteClass, ListValues, byte_class, trim, unfold};

/// One SIP message: its bytes and where things are in them. A clone shares both.
#[derive(Clone)]
pub struct Message {
    bytes: Bytes,
    index: Arc<Index>,
}

/// One header field, as it stands in the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    /// Which header it is; [`HeaderName::Other`] for those this crate does not know.
    pub name: HeaderName,
    /// The name as it was written.
    pub raw_name: &'a [u8],
    /// The value without the white space around it; line folding is still inside.
    pub value: &'a [u8],
}

impl Message {
    /// Reads one datagram (RFC 3261 sections 7 and 18.3).
    ///
    /// CRLFs ahead of the start line are skipped. The body is as long as Content-Length says, else
    /// the rest; octets behind it are ignored. A Content-Length that cannot be obeyed keeps the
    /// message, with the rest as its body; [`Message::content_length_fault`] tells.
    pub fn parse(bytes: Bytes) -> Result<Self, ParseError> {
        if bytes.len() > MAX_MESSAGE {
            return Err(ParseError::TooLong);
        }
        Self::parse_unbounded(bytes)
    }

    /// A message whose index is known.
    fn indexed(mut bytes: Bytes, index: Index) -> Self {
        bytes.truncate(index.body.end as usize);
        Self {
            bytes,
            index: Arc::new(index),
        }
    }

    fn parse_unbounded(mut bytes: Bytes) -> Result<Self, ParseError> {
        let start = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n'));
        let bytes = bytes.split_off(start.ok_or(ParseError::Empty)?);
        let mut index = Index::of_nothing(500);
        index.read(&bytes)?;
        Ok(Self::indexed(bytes, index))
    }

    /// A message that this crate wrote. Should it not parse, which no input is known to bring
    /// about, the least that is a message takes its place.
    fn of_own(bytes: Vec<u8>) -> Self {
        let parsed = Self::parse_unbounded(bytes.into());
        parsed.unwrap_or_else(|_| Self {
            bytes: Bytes::from_static(b"SIP/2.0 500 \r\n\r\n"),
            index: Arc::new(Index::of_nothing(500)),
        })
    }

    /// What stands where a message has been let go of; all of them share it.
    pub(crate) fn nothing() -> Self {
        static NOTHING: LazyLock<Message> = LazyLock::new(|| Message::of_own(Vec::new()));
        NOTHING.clone()
    }

    /// The whole message.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// True for a request, false for a response.
    pub fn is_request(&self) -> bool {
        matches!(self.index.start, StartLine::Request { .. })
    }

    /// A request's method; for a response the method of its CSeq, `Other("")` if that is unusable.
    pub fn method(&self) -> Method<'_> {
        match self.index.start {
            StartLine::Request { method, .. } => Method::from_bytes(method.of(&self.bytes)),
            StartLine::Status { .. } => {
                self.cseq().map_or(Method::Other(b""), |(_, method)| method)
            }
        }
    }

    /// A request's Request-URI as it was written; empty for a response.
    pub fn request_uri(&self) -> &[u8] {
        match self.index.start {
            StartLine::Request { uri, .. } => uri.of(&self.bytes),
            StartLine::Status { .. } => b"",
        }
    }

    /// The Request-URI, read; an error for a response.
    pub fn uri(&self) -> Result<Uri<'_>, ValueError> {
        let read = || Uri::parse(self.request_uri());
        self.index.noted.uri(&self.bytes, read)
    }

    /// A response's status code, 100 to 699.
    pub fn status(&self) -> Option<u16> {
        match self.index.start {
            StartLine::Request { .. } => None,
            StartLine::Status { code, .. } => Some(code),
        }
    }

    /// A response's reason phrase; empty for a request.
    pub fn reason(&self) -> &[u8] {
        match self.index.start {
            StartLine::Request { .. } => b"",
            StartLine::Status { reason, .. } => reason.of(&self.bytes),
        }
    }

    /// True if the start line says SIP/2.0.
    pub fn version_ok(&self) -> bool {
        match self.index.start {
            StartLine::Request { version_ok, .. } | StartLine::Status { version_ok, .. } => {
                version_ok
            }
        }
    }

    /// The first thing wrong with the lines of the head, if anything.
    pub fn head_fault(&self) -> Option<HeadFault> {
        self.index.head_fault
    }

    /// True where Content-Length is unusable, contradicts itself or is more than there is.
    pub fn content_length_fault(&self) -> bool {
        self.content_length_error().is_some()
    }

    /// Why Content-Length could not be obeyed, if it could not.
    pub fn content_length_error(&self) -> Option<ContentLengthFault> {
        self.index.content_length_fault
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        self.index.body.of(&self.bytes)
    }

    /// All header fields in order.
    pub fn headers(&self) -> impl Iterator<Item = Field<'_>> {
        self.index.fields.iter().map(|field| Field {
            name: field.name,
            raw_name: field.raw_name(&self.bytes),
            value: field.value.of(&self.bytes),
        })
    }

    fn fields(&self, name: HeaderName) -> impl Iterator<Item = &[u8]> {
        let fields = self.index.fields(name);
        fields.map(|field| field.value.of(&self.bytes))
    }

    /// The values of all fields of that name, each whole, folding inside: for headers that are no
    /// lists though they have commas, as credentials (RFC 3261 section 7.3.1).
    pub fn fields_of(&self, name: HeaderName) -> impl Iterator<Item = &[u8]> {
        self.fields(name)
    }

    /// The value of the first field of that name, folding inside.
    pub fn header(&self, name: HeaderName) -> Option<&[u8]> {
        self.fields(name).next()
    }

    /// The value of the first field whose name is spelled so, in any case: for headers that
    /// [`HeaderName`] does not list.
    pub fn header_spelled(&self, name: &str) -> Option<&[u8]> {
        let mut fields = self.headers();
        fields
            .find(|field| field.raw_name.eq_ignore_ascii_case(name.as_bytes()))
            .map(|f| f.value)
    }

    /// How many fields have that name.
    pub fn count(&self, name: HeaderName) -> usize {
        self.index.fields(name).count()
    }

    /// The values of a list header, in order and across fields, unfolded; split at commas outside
    /// quotes and angle brackets. Empty values are left out.
    pub fn values(&self, name: HeaderName) -> impl Iterator<Item = Cow<'_, [u8]>> {
        self.raw_values(name)
            .filter(|value| !value.is_empty())
            .map(unfold)
    }

    /// As [`Message::values`], with folding and empty values left in.
    fn raw_values(&self, name: HeaderName) -> impl Iterator<Item = &[u8]> {
        self.fields(name).flat_map(ListValues::of)
    }

    /// The topmost Via value.
    pub fn top_via(&self) -> Result<Via<'_>, ValueError> {
        let first = || self.raw_values(HeaderName::Via).next();
        let read = || Via::parse(first().ok_or(ValueError::Missing)?);
        self.index.noted.top_via(&self.bytes, read)
    }

    /// All Via values, topmost first.
    pub fn vias(&self) -> impl Iterator<Item = Result<Via<'_>, ValueError>> {
        self.raw_values(HeaderName::Via).map(Via::parse)
    }

    /// True with another Via value below the top one.
    pub fn has_several_vias(&self) -> bool {
        self.raw_values(HeaderName::Via).nth(1).is_some()
    }

    /// The From header.
    pub fn from(&self) -> Result<NameAddr<'_>, ValueError> {
        let read = || NameAddr::parse(self.header(HeaderName::From).ok_or(ValueError::Missing)?);
        self.index.noted.from(&self.bytes, read)
    }

    /// The To header.
    pub fn to(&self) -> Result<NameAddr<'_>, ValueError> {
        let read = || NameAddr::parse(self.header(HeaderName::To).ok_or(ValueError::Missing)?);
        self.index.noted.to(&self.bytes, read)
    }

    /// The Contact values but for `*`, see [`Message::contact_is_star`].
    pub fn contacts(&self) -> impl Iterator<Item = Result<NameAddr<'_>, ValueError>> {
        let contacts = self
            .raw_values(HeaderName::Contact)
            .filter(|value| *value != b"*");
        contacts.map(NameAddr::parse)
    }

    /// True if one of the Contact values is `*` (RFC 3261 section 10.2.2).
    pub fn contact_is_star(&self) -> bool {
        self.raw_values(HeaderName::Contact)
            .any(|value| value == b"*")
    }

    /// The Route values, next hop first.
    pub fn routes(&self) -> impl Iterator<Item = Result<NameAddr<'_>, ValueError>> {
        self.raw_values(HeaderName::Route).map(NameAddr::parse)
    }

    /// The Record-Route values, latest first.
    pub fn record_routes(&self) -> impl Iterator<Item = Result<NameAddr<'_>, ValueError>> {
        self.raw_values(HeaderName::RecordRoute)
            .map(NameAddr::parse)
    }

    /// CSeq: the number, below 2^31 (RFC 3261 section 8.1.1.5), and the method.
    pub fn cseq(&self) -> Result<(u32, Method<'_>), ValueError> {
        let value = self.header(HeaderName::CSeq).ok_or(ValueError::Missing)?;
        let gap = value.iter().position(|&byte| scan::is_lws(byte));
        let (number, method) = value.split_at(gap.ok_or(ValueError::Number)?);
        let number = scan::decimal(number).filter(|number| *number < 1 << 31);
        let number = number.and_then(|number| u32::try_from(number).ok());
        let method = trim(method);
        if !scan::is_token(method) {
            return Err(ValueError::Token);
        }
        Ok((
            number.ok_or(ValueError::Number)?,
            Method::from_bytes(method),
        ))
    }

    /// Call-ID: compared octet by octet (RFC 3261 section 8.1.1.4).
    pub fn call_id(&self) -> Result<&[u8], ValueError> {
        let value = self.header(HeaderName::CallId).ok_or(ValueError::Missing)?;
        match value {
            [] => Err(ValueError::Empty),
            _ if !CALL_ID.holds_all(value) => Err(ValueError::Token),
            _ => Ok(value),
        }
    }

    /// Max-Forwards, `None` if absent, an error above 255 (RFC 3261 section 20.22).
    pub fn max_forwards(&self) -> Result<Option<u8>, ValueError> {
        let Some(value) = self.header(HeaderName::MaxForwards) else {
            return Ok(None);
        };
        let number = scan::decimal(value).and_then(|number| u8::try_from(number).ok());
        number.map(Some).ok_or(ValueError::Number)
    }

    /// Expires in seconds; `None` if absent or malformed, which mean the same (RFC 3261 section
    /// 10.2.1.1: "treated as equivalent to 3600" is the caller's default).
    pub fn expires(&self) -> Option<u32> {
        scan::decimal(self.header(HeaderName::Expires)?).and_then(|n| u32::try_from(n).ok())
    }

    /// The media type without its parameters, as written: `application/sdp`.
    pub fn content_type(&self) -> Option<&[u8]> {
        let value = self.header(HeaderName::ContentType)?;
        let end = memchr::memchr(b';', value).unwrap_or(value.len());
        Some(trim(&value[..end]))
    }

    /// Starts a changed copy.
    pub fn edit(&self) -> Edit<'_> {
        Edit::of(self)
    }

    /// Starts a response to this request (RFC 3261 section 8.2.6).
    pub fn respond<'m>(&'m self, status: u16, reason: &'m str) -> ResponseBuilder<'m> {
        ResponseBuilder::new(self, status, reason)
    }
}

const fn belongs_to_call_id(byte: u8) -> bool {
    byte > b' ' && byte != 0x7f
}

static CALL_ID: ByteClass = byte_class!(belongs_to_call_id);

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message({})", self.bytes.escape_ascii())
    }
}

impl PartialEq for Message {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Message {}
