//! Responses (RFC 3261 section 8.2.6): built from whatever the request has, however broken.

use bytes::Bytes;

use super::edit::on_one_line;
use super::header_name::HeaderName;
use super::name_addr::NameAddr;
use super::scan::unfold;
use super::{Message, build};

/// A response in the making.
#[must_use]
#[derive(Debug, Clone)]
pub struct ResponseBuilder<'m> {
    request: &'m Message,
    status: u16,
    reason: String,
    to_tag: Option<String>,
    fields: Vec<u8>,
    body: Vec<u8>,
}

impl<'m> ResponseBuilder<'m> {
    pub(super) fn new(request: &'m Message, status: u16, reason: &str) -> Self {
        let reason = reason.replace(['\r', '\n', '\0'], " ");
        let status = status.clamp(100, 699);
        Self {
            request,
            status,
            reason,
            to_tag: None,
            fields: Vec::new(),
            body: Vec::new(),
        }
    }

    /// The tag to add to To where it has none yet; responses other than 100 need one.
    pub fn to_tag(mut self, tag: &str) -> Self {
        self.to_tag = Some(tag.to_owned());
        self
    }

    /// Adds a field, by a name of any header or a [`HeaderName`]; nothing for an empty name.
    pub fn header(mut self, name: impl AsRef<str>, value: &str) -> Self {
        if !name.as_ref().is_empty() {
            let value = on_one_line(value.as_bytes().to_vec());
            build::field(&mut self.fields, name.as_ref(), &value);
        }
        self
    }

    /// Sets the body and its Content-Type.
    pub fn body(mut self, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self.header(HeaderName::ContentType, content_type)
    }

    /// The response.
    pub fn build(&self) -> Message {
        Message::of_own(self.write())
    }

    /// The response as it is sent, for where nobody reads it again.
    pub fn bytes(&self) -> Bytes {
        self.write().into()
    }

    fn write(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.request.bytes().len() + self.fields.len() + 256);
        out.extend_from_slice(format!("SIP/2.0 {} {}\r\n", self.status, self.reason).as_bytes());
        for via in self.request.fields(HeaderName::Via) {
            build::field(&mut out, "Via", &clean(via));
        }
        if let Some(from) = self.request.header(HeaderName::From) {
            build::field(&mut out, "From", &clean(from));
        }
        if let Some(to) = self.request.header(HeaderName::To) {
            let mut to_out = clean(to);
            if let Some(tag) = self.to_tag.as_deref().filter(|_| !has_tag(to)) {
                to_out.extend_from_slice(b";tag=");
                to_out.extend_from_slice(&on_one_line(tag.as_bytes().to_vec()));
            }
            build::field(&mut out, "To", &to_out);
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
}

/// True also where To cannot be read but seems to hold a tag.
fn has_tag(to: &[u8]) -> bool {
    match NameAddr::parse(to) {
        Ok(to) => to.params.has("tag"),
        Err(_) => to
            .to_ascii_lowercase()
            .windows(5)
            .any(|window| window == b";tag="),
    }
}

pub(super) fn clean(value: &[u8]) -> Vec<u8> {
    on_one_line(unfold(value).into_owned())
}
