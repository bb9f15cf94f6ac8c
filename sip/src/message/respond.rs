//! Responses (RFC 3261 section 8.2.6): built from whatever the request has, however broken.

use bytes::Bytes;
use smallvec::SmallVec;

use super::edit::push_on_one_line;
use super::header_name::HeaderName;
use super::{Message, build};
use crate::text::push_number;

/// Those of our own responses have no more.
type Tag = SmallVec<[u8; 16]>;

/// A response in the making.
#[must_use]
#[derive(Debug, Clone)]
pub struct ResponseBuilder<'m> {
    request: &'m Message,
    status: u16,
    reason: &'m str,
    to_tag: Option<Tag>,
    fields: Vec<u8>,
    body: Vec<u8>,
}

/// Room for the fields that our own responses have.
const TYPICAL_FIELDS: usize = 256;

impl<'m> ResponseBuilder<'m> {
    pub(super) fn new(request: &'m Message, status: u16, reason: &'m str) -> Self {
        Self {
            request,
            status: status.clamp(100, 699),
            reason,
            to_tag: None,
            fields: Vec::new(),
            body: Vec::new(),
        }
    }

    /// The tag to add to To where it has none yet; responses other than 100 need one.
    pub fn to_tag(mut self, tag: impl AsRef<[u8]>) -> Self {
        self.to_tag = Some(Tag::from_slice(tag.as_ref()));
        self
    }

    /// Adds a field, by a name of any header or a [`HeaderName`]; nothing for an empty name.
    pub fn header(self, name: impl AsRef<str>, value: &str) -> Self {
        self.header_of_bytes(name.as_ref(), value.as_bytes())
    }

    /// The same with a value that need not be text.
    pub(crate) fn header_of_bytes(self, name: &str, value: &[u8]) -> Self {
        self.header_with(name, |out| out.extend_from_slice(value))
    }

    /// The same with a value that `write` appends.
    pub(crate) fn header_with(mut self, name: &str, write: impl FnOnce(&mut Vec<u8>)) -> Self {
        if !name.is_empty() {
            if self.fields.is_empty() {
                self.fields.reserve(TYPICAL_FIELDS);
            }
            build::field_with(&mut self.fields, name, write);
        }
        self
    }

    /// Sets the body and its Content-Type.
    pub fn body(mut self, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self.header(HeaderName::ContentType, content_type)
    }

    /// Its status code.
    pub const fn status(&self) -> u16 {
        self.status
    }

    /// The response.
    pub fn build(&self) -> Message {
        Message::of_own(self.write())
    }

    /// The response as it is sent, for where nobody reads it again.
    ///
    /// It may be kept for as long as its transaction, so it has no room to spare.
    pub fn bytes(&self) -> Bytes {
        self.write().into_boxed_slice().into()
    }

    fn write(&self) -> Vec<u8> {
        let added = self.fields.len() + self.body.len();
        let mut out = Vec::with_capacity(self.request.bytes().len() + added + 256);
        self.write_status_line(&mut out);
        for via in self.request.fields(HeaderName::Via) {
            build::copied_field(&mut out, "Via", via);
        }
        build::copy_first(&mut out, self.request, HeaderName::From);
        if let Some(to) = self.request.header(HeaderName::To) {
            self.write_to(&mut out, to);
        }
        for name in [HeaderName::CallId, HeaderName::CSeq] {
            build::copy_first(&mut out, self.request, name);
        }
        if self.status == 100 {
            build::copy_first(&mut out, self.request, HeaderName::Timestamp);
        }
        out.extend_from_slice(&self.fields);
        build::close(&mut out, &self.body);
        out
    }

    fn write_status_line(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"SIP/2.0 ");
        push_number(out, self.status);
        out.push(b' ');
        push_on_one_line(out, self.reason.as_bytes());
        out.extend_from_slice(b"\r\n");
    }

    fn write_to(&self, out: &mut Vec<u8>, to: &[u8]) {
        out.extend_from_slice(b"To: ");
        build::push_unfolded(out, to);
        if let Some(tag) = self.to_tag.as_deref().filter(|_| !self.has_tag(to)) {
            out.extend_from_slice(b";tag=");
            push_on_one_line(out, tag);
        }
        out.extend_from_slice(b"\r\n");
    }

    /// True also where To cannot be read but seems to hold a tag.
    fn has_tag(&self, to: &[u8]) -> bool {
        match self.request.to() {
            Ok(to) => to.tag.is_some(),
            Err(_) => to
                .to_ascii_lowercase()
                .windows(5)
                .any(|window| window == b";tag="),
        }
    }
}
