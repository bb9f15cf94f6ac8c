//! Messages of our own: answers, CANCEL and ACK.

use bytes::Bytes;

use super::edit::write_field;
use super::{HeaderName, Message, Start, value};

/// An answer in the making (RFC 3261 section 8.2.6).
#[derive(Debug, Clone)]
pub struct ResponseBuilder<'m> {
    request: &'m Message,
    status: u16,
    reason: String,
    to_tag: Option<String>,
    extra: Vec<u8>,
    body: Option<(String, Vec<u8>)>,
}

impl Message {
    /// Begins an answer to this request. It copies what is there and needs nothing to be there.
    pub fn respond(&self, status: u16, reason: &str) -> ResponseBuilder<'_> {
        ResponseBuilder {
            request: self,
            status,
            reason: reason.to_owned(),
            to_tag: None,
            extra: Vec::new(),
            body: None,
        }
    }

    /// The CANCEL of this INVITE as it was sent (section 9.1).
    pub fn cancel_for(&self) -> Self {
        self.derived("CANCEL", self.header(HeaderName::To))
    }

    /// The ACK of a non-2xx final response to this INVITE as it was sent (section 17.1.1.3).
    pub fn ack_for(&self, response: &Self) -> Self {
        self.derived("ACK", response.header(HeaderName::To))
    }

    fn derived(&self, method: &str, to: Option<&[u8]>) -> Self {
        let mut out = Vec::with_capacity(512);
        out.extend_from_slice(method.as_bytes());
        out.push(b' ');
        out.extend_from_slice(self.request_uri());
        out.extend_from_slice(b" SIP/2.0\r\n");
        if let Some(via) = self.values(HeaderName::Via).next() {
            write_field(&mut out, b"Via", &via);
        }
        for (name, value) in [
            (HeaderName::From, self.header(HeaderName::From)),
            (HeaderName::To, to),
            (HeaderName::CallId, self.header(HeaderName::CallId)),
        ] {
            write_field(
                &mut out,
                name.full().as_bytes(),
                &value::unfold(value.unwrap_or_default()),
            );
        }
        let number = self.cseq().map_or(0, |(number, _)| number);
        write_field(&mut out, b"CSeq", format!("{number} {method}").as_bytes());
        for route in self.values(HeaderName::Route) {
            write_field(&mut out, b"Route", &route);
        }
        write_field(&mut out, b"Max-Forwards", b"70");
        write_field(&mut out, b"Content-Length", b"0");
        out.extend_from_slice(b"\r\n");
        Self::parse(Bytes::from(out)).unwrap_or_else(|_| self.clone())
    }
}

impl ResponseBuilder<'_> {
    /// The tag that To gets if it has none.
    #[must_use]
    pub fn to_tag(mut self, tag: &str) -> Self {
        self.to_tag = Some(tag.to_owned());
        self
    }

    /// One more header field.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        write_field(&mut self.extra, name.as_bytes(), value.as_bytes());
        self
    }

    /// The body and its Content-Type.
    #[must_use]
    pub fn body(mut self, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        self.body = Some((content_type.to_owned(), body.into()));
        self
    }

    /// The answer.
    pub fn build(self) -> Message {
        let mut out = Vec::with_capacity(512 + self.extra.len());
        out.extend_from_slice(format!("SIP/2.0 {} {}\r\n", self.status, self.reason).as_bytes());
        for via in self.request.values(HeaderName::Via) {
            write_field(&mut out, b"Via", &via);
        }
        for name in [
            HeaderName::From,
            HeaderName::To,
            HeaderName::CallId,
            HeaderName::CSeq,
        ] {
            let Some(value) = self.request.header(name) else {
                continue;
            };
            let mut value = value::unfold(value).into_owned();
            if name == HeaderName::To {
                self.add_tag(&mut value);
            }
            write_field(&mut out, name.full().as_bytes(), &value);
        }
        if let (100, Some(timestamp)) = (self.status, self.request.header(HeaderName::Timestamp)) {
            write_field(&mut out, b"Timestamp", &value::unfold(timestamp));
        }
        out.extend_from_slice(&self.extra);
        let (content_type, body) = self.body.unwrap_or_default();
        if !content_type.is_empty() {
            write_field(&mut out, b"Content-Type", content_type.as_bytes());
        }
        write_field(
            &mut out,
            b"Content-Length",
            body.len().to_string().as_bytes(),
        );
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(&body);
        finished(Bytes::from(out), self.status)
    }

    fn add_tag(&self, to: &mut Vec<u8>) {
        let tagged = self.request.to().is_ok_and(|to| to.tag().is_some());
        if let (Some(tag), false) = (&self.to_tag, tagged) {
            to.extend_from_slice(format!(";tag={tag}").as_bytes());
        }
    }
}

/// What was built always parses; the empty answer stands in for what cannot happen.
fn finished(bytes: Bytes, status: u16) -> Message {
    Message::parse(bytes).unwrap_or_else(|_| Message {
        bytes: Bytes::from_static(b"SIP/2.0 500 E\r\n\r\n"),
        start: Start::Response {
            status,
            reason: 12..13,
            version: 0..7,
        },
        fields: smallvec::SmallVec::new(),
        body: 17..17,
        length_fault: false,
    })
}
