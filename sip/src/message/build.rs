//! Messages made from other messages: the CANCEL and the ACK of an INVITE that was sent, and the BYE of
//! a dialog that others have made.

use super::Message;
use super::edit::{is_one_line, make_one_line, on_one_line, push_on_one_line};
use super::header_name::HeaderName;
use super::scan::{ListValues, unfold};
use crate::text::push_number;

impl Message {
    /// The CANCEL of this request as it was sent (RFC 3261 section 9.1): the same Request-URI, top
    /// Via, From, To, Call-ID, Route and CSeq number.
    pub fn cancel_for(&self) -> Self {
        hop_by_hop(b"CANCEL", self, self)
    }

    /// The ACK of a final response other than 2xx to this INVITE as it was sent (RFC 3261
    /// section 17.1.1.3): as the CANCEL, but for To, which is the response's.
    pub fn ack_for(&self, response: &Self) -> Self {
        hop_by_hop(b"ACK", self, response)
    }
}

/// What a BYE is made of; header values as they were found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bye<'a> {
    pub(crate) uri: &'a [u8],
    pub(crate) via: &'a [u8],
    /// What is left of the route set; empty for none.
    pub(crate) routes: &'a [u8],
    pub(crate) from: &'a [u8],
    pub(crate) to: &'a [u8],
    pub(crate) call_id: &'a [u8],
    pub(crate) cseq: u32,
    /// The value of a Reason (RFC 3326).
    pub(crate) reason: &'a [u8],
}

impl Bye<'_> {
    pub(crate) fn build(&self) -> Message {
        let mut out = Vec::with_capacity(512);
        out.extend_from_slice(b"BYE ");
        out.extend_from_slice(&on_one_line(self.uri.to_vec()));
        out.extend_from_slice(b" SIP/2.0\r\n");
        field(&mut out, "Via", self.via);
        field(&mut out, "Max-Forwards", b"70");
        if !self.routes.is_empty() {
            copied_field(&mut out, "Route", self.routes);
        }
        copied_field(&mut out, "From", self.from);
        copied_field(&mut out, "To", self.to);
        copied_field(&mut out, "Call-ID", self.call_id);
        field(&mut out, "CSeq", format!("{} BYE", self.cseq).as_bytes());
        field(&mut out, "Reason", self.reason);
        finish(out, b"")
    }
}

fn hop_by_hop(method: &[u8], sent: &Message, to: &Message) -> Message {
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(method);
    out.push(b' ');
    out.extend_from_slice(&on_one_line(sent.request_uri().to_vec()));
    out.extend_from_slice(b" SIP/2.0\r\n");
    let top_via = sent
        .header(HeaderName::Via)
        .and_then(|field| ListValues::of(field).next());
    if let Some(via) = top_via {
        copied_field(&mut out, "Via", via);
    }
    field(&mut out, "Max-Forwards", b"70");
    for route in sent.fields(HeaderName::Route) {
        copied_field(&mut out, "Route", route);
    }
    copy_first(&mut out, sent, HeaderName::From);
    copy_first(&mut out, to, HeaderName::To);
    copy_first(&mut out, sent, HeaderName::CallId);
    if let Some(cseq) = sent.header(HeaderName::CSeq) {
        let digits = cseq.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let mut value = cseq[..digits].to_vec();
        value.push(b' ');
        value.extend_from_slice(method);
        field(&mut out, "CSeq", &value);
    }
    finish(out, b"")
}

/// A field with its value on one line, as far as only line ends and NULs stand against that.
pub(super) fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    field_with(out, name, |out| out.extend_from_slice(value));
}

/// The same with a value that `write` appends.
pub(super) fn field_with(out: &mut Vec<u8>, name: &str, write: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    let start = out.len();
    write(out);
    make_one_line(&mut out[start..]);
    out.extend_from_slice(b"\r\n");
}

/// A field with a value of another message, less its folding.
pub(super) fn copied_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    push_unfolded(out, value);
    out.extend_from_slice(b"\r\n");
}

/// Appends a value of another message, less its folding; nearly none has any.
pub(super) fn push_unfolded(out: &mut Vec<u8>, value: &[u8]) {
    if is_one_line(value) {
        out.extend_from_slice(value);
    } else {
        push_on_one_line(out, &unfold(value));
    }
}

pub(super) fn copy_first(out: &mut Vec<u8>, from: &Message, name: HeaderName) {
    if let Some(value) = from.header(name) {
        copied_field(out, name.full(), value);
    }
}

/// Adds Content-Length and the body, and indexes the whole.
fn finish(mut out: Vec<u8>, body: &[u8]) -> Message {
    close(&mut out, body);
    Message::of_own(out)
}

/// Adds Content-Length and the body.
pub(super) fn close(out: &mut Vec<u8>, body: &[u8]) {
    out.extend_from_slice(b"Content-Length: ");
    push_number(out, body.len() as u64);
    out.extend_from_slice(b"\r\n\r\n");
    out.extend_from_slice(body);
}
