//! Changing a message: every octet that no edit is about stays as it was.
//!
//! An [`Edit`] is the list of the message's lines, each either a span of the original or new text.
//! Edits take effect in the order they are made. CR, LF and NUL inside a new value become spaces,
//! so that no value can end its line. Edits of [`HeaderName::Other`] do nothing: it names no header.

use std::net::SocketAddr;

use bytes::Bytes;
use smallvec::SmallVec;

use super::Message;
use super::header_name::HeaderName;
use super::index::{FieldSpan, Index, IndexBuilder, Span, StartLine};
use super::scan::value_end;
use super::stamp::push_stamped;
use crate::text::digits;

/// A changed copy in the making.
#[must_use]
#[derive(Debug, Clone)]
pub struct Edit<'m> {
    message: &'m Message,
    request_uri: Option<Vec<u8>>,
    lines: SmallVec<[Line; 32]>,
    body: Option<Vec<u8>>,
    changed: bool,
}

#[derive(Debug, Clone)]
struct Line {
    name: HeaderName,
    text: Text,
}

#[derive(Debug, Clone)]
enum Text {
    /// As it was.
    Kept(FieldSpan),
    /// As it was, but for the value.
    Revalued(FieldSpan, Vec<u8>),
    /// A value under the header's usual name.
    New(Vec<u8>),
}

/// What [`Edit::write`] gives.
struct Written {
    bytes: Bytes,
    index: Option<Index>,
}

impl<'m> Edit<'m> {
    pub(super) fn of(message: &'m Message) -> Self {
        let fields = message.index.fields.iter();
        let lines = fields.map(|&field| Line {
            name: field.name,
            text: Text::Kept(field),
        });
        Self {
            message,
            request_uri: None,
            lines: lines.collect(),
            body: None,
            changed: false,
        }
    }

    /// Replaces the Request-URI; nothing happens to a response.
    pub fn set_request_uri(&mut self, uri: impl Into<Vec<u8>>) -> &mut Self {
        self.request_uri = Some(on_one_line(uri.into()));
        self.changed = true;
        self
    }

    /// Inserts a field of its own ahead of the first one of that name, or at the top of the head.
    pub fn push_front(&mut self, name: HeaderName, value: impl Into<Vec<u8>>) -> &mut Self {
        let at = self.first(name).unwrap_or(self.top());
        self.insert(at, name, value.into())
    }

    /// Adds a field behind all others.
    pub fn append(&mut self, name: HeaderName, value: impl Into<Vec<u8>>) -> &mut Self {
        self.insert(self.lines.len(), name, value.into())
    }

    /// Removes the first value of that name: the field if it holds no other, else only the value.
    pub fn remove_first_value(&mut self, name: HeaderName) -> &mut Self {
        let Some(at) = self.first(name) else {
            return self;
        };
        self.changed = true;
        let value = self.value(at);
        match value.get(value_end(value) + 1..) {
            Some(rest) => {
                let rest = super::scan::trim_start(rest).to_vec();
                self.revalue(at, rest);
            }
            None => {
                self.lines.remove(at);
            }
        }
        self
    }

    /// Replaces the first value of that name and leaves the others of its field; without any,
    /// does what [`Edit::push_front`] does.
    pub fn replace_first_value(&mut self, name: HeaderName, value: impl AsRef<[u8]>) -> &mut Self {
        let Some(at) = self.first(name) else {
            return self.push_front(name, value.as_ref());
        };
        self.changed = true;
        let old = self.value(at);
        let mut new = on_one_line(value.as_ref().to_vec());
        new.extend_from_slice(&old[value_end(old)..]);
        self.revalue(at, new);
        self
    }

    /// Removes all fields of that name.
    pub fn remove_all(&mut self, name: HeaderName) -> &mut Self {
        if self.first(name).is_some() {
            self.changed = true;
            self.lines.retain(|line| line.name != name);
        }
        self
    }

    /// Removes the fields of that name whose whole value is `unwanted`.
    pub fn remove_fields(
        &mut self,
        name: HeaderName,
        unwanted: impl Fn(&[u8]) -> bool,
    ) -> &mut Self {
        if name != HeaderName::Other {
            let old = &self.message.bytes;
            let before = self.lines.len();
            self.lines
                .retain(|line| line.name != name || !unwanted(line.text.value(old)));
            self.changed |= self.lines.len() != before;
        }
        self
    }

    /// Makes that the one field of its name: in the first one's place, or behind all others.
    pub fn set(&mut self, name: HeaderName, value: impl Into<Vec<u8>>) -> &mut Self {
        let Some(at) = self.first(name) else {
            return self.append(name, value);
        };
        self.changed = true;
        self.revalue(at, on_one_line(value.into()));
        let mut place = 0;
        self.lines.retain(|line| {
            place += 1;
            line.name != name || place == at + 1
        });
        self
    }

    /// Replaces the body and makes Content-Length say its length.
    pub fn set_body(&mut self, body: impl Into<Vec<u8>>) -> &mut Self {
        let body = body.into();
        self.set(HeaderName::ContentLength, digits(body.len() as u64));
        self.body = Some(body);
        self
    }

    /// Writes where a request came from into its top Via: `received` if sent-by is not that
    /// address (RFC 3261 section 18.2.1) or `rport` asks, and `rport` if it asks (RFC 3581 section
    /// 4). Values that the sender put there itself are overwritten.
    pub fn stamp_top_via(&mut self, peer: SocketAddr) -> &mut Self {
        let Some(at) = self.first(HeaderName::Via) else {
            return self;
        };
        let field = self.value(at);
        let Ok(via) = super::Via::parse(&field[..value_end(field)]) else {
            return self;
        };
        let mut value = Vec::with_capacity(field.len() + 64);
        if !push_stamped(&mut value, &via, peer) {
            return self;
        }
        self.replace_first_value(HeaderName::Via, value)
    }

    /// The changed message.
    pub fn finish(&self) -> Message {
        if !self.changed {
            return self.message.clone();
        }
        let Written { bytes, index } = self.write();
        if let Some(index) = index {
            return Message::indexed(bytes, index);
        }
        // What came out of the parser has a start line and its edits cannot break it, so the
        // fallback is for a message whose last field was removed.
        Message::parse_unbounded(bytes).unwrap_or_else(|_| self.message.clone())
    }

    /// The bytes, and where things are in them if that can be told without reading all of it
    /// again: what was kept has moved, and only what is new is looked at.
    fn write(&self) -> Written {
        let old = &self.message.bytes;
        let index = &self.message.index;
        let added: usize = self.lines.iter().map(|line| line.text.added()).sum();
        let body = self.body.as_deref().unwrap_or_else(|| self.message.body());
        let uri = self.request_uri.as_deref().unwrap_or_default();
        let mut out = Vec::with_capacity(old.len() + added + uri.len() + body.len() + 64);
        let head = index.fields_start as usize;
        match (&self.request_uri, index.start) {
            (Some(new), StartLine::Request { uri, .. }) => {
                out.extend_from_slice(&old[..uri.start as usize]);
                out.extend_from_slice(new);
                out.extend_from_slice(&old[uri.end as usize..head]);
            }
            _ => out.extend_from_slice(&old[..head]),
        }
        let mut builder = match self.request_uri {
            None => IndexBuilder::behind(index),
            Some(_) => IndexBuilder::behind_new_start(index, &out),
        };
        for line in &self.lines {
            let start = out.len();
            line.write(old, &mut out);
            match line.text {
                Text::Kept(field) => builder.add_kept(field, start),
                Text::Revalued(..) | Text::New(_) => builder.add_new(&out, start),
            }
        }
        let last_line = index
            .fields
            .last()
            .map_or(head, |field| field.line.end as usize);
        match &old[last_line..index.body.start as usize] {
            // The head did not end.
            [] => out.extend_from_slice(b"\r\n"),
            empty_line => out.extend_from_slice(empty_line),
        }
        let body_start = out.len();
        out.extend_from_slice(body);
        let index = builder.finish(&out, body_start);
        Written {
            bytes: out.into(),
            index,
        }
    }

    fn first(&self, name: HeaderName) -> Option<usize> {
        if name == HeaderName::Other {
            return None;
        }
        self.lines.iter().position(|line| line.name == name)
    }

    /// Where a field on top goes: not ahead of a first line that starts with white space, which
    /// would then continue it.
    fn top(&self) -> usize {
        let first = self.lines.first().map(|line| &line.text);
        let Some(Text::Kept(field)) = first else {
            return 0;
        };
        let line = field.line.of(&self.message.bytes);
        usize::from(matches!(line.first(), Some(b' ' | b'\t')))
    }

    fn insert(&mut self, at: usize, name: HeaderName, value: Vec<u8>) -> &mut Self {
        if name != HeaderName::Other {
            self.changed = true;
            self.lines.insert(
                at,
                Line {
                    name,
                    text: Text::New(on_one_line(value)),
                },
            );
        }
        self
    }

    fn value(&self, at: usize) -> &[u8] {
        self.lines[at].text.value(&self.message.bytes)
    }

    fn revalue(&mut self, at: usize, value: Vec<u8>) {
        let text = &mut self.lines[at].text;
        *text = match *text {
            Text::Kept(field) | Text::Revalued(field, _) => Text::Revalued(field, value),
            Text::New(_) => Text::New(value),
        };
    }
}

impl Line {
    fn write(&self, old: &[u8], out: &mut Vec<u8>) {
        match &self.text {
            Text::Kept(field) => {
                out.extend_from_slice(field.line.of(old));
                if !out.ends_with(b"\n") {
                    out.extend_from_slice(b"\r\n");
                }
            }
            Text::Revalued(field, value) => {
                let before = Span {
                    start: field.line.start,
                    end: field.value.start,
                };
                let after = Span {
                    start: field.value.end,
                    end: field.line.end,
                };
                out.extend_from_slice(before.of(old));
                out.extend_from_slice(value);
                out.extend_from_slice(after.of(old));
                if !out.ends_with(b"\n") {
                    out.extend_from_slice(b"\r\n");
                }
            }
            Text::New(value) => {
                out.extend_from_slice(self.name.full().as_bytes());
                out.extend_from_slice(b": ");
                out.extend_from_slice(value);
                out.extend_from_slice(b"\r\n");
            }
        }
    }
}

impl Text {
    fn value<'t>(&'t self, old: &'t [u8]) -> &'t [u8] {
        match self {
            Self::Kept(field) => field.value.of(old),
            Self::Revalued(_, value) | Self::New(value) => value,
        }
    }

    fn added(&self) -> usize {
        match self {
            Self::Kept(_) => 0,
            Self::Revalued(_, value) | Self::New(value) => value.len() + 32,
        }
    }
}

/// The value with its line ends and NULs made spaces.
pub(super) fn on_one_line(mut value: Vec<u8>) -> Vec<u8> {
    make_one_line(&mut value);
    value
}

/// Appends the value with its line ends and NULs made spaces.
pub(super) fn push_on_one_line(out: &mut Vec<u8>, value: &[u8]) {
    let start = out.len();
    out.extend_from_slice(value);
    make_one_line(&mut out[start..]);
}

/// True without what [`make_one_line`] changes.
pub(super) fn is_one_line(value: &[u8]) -> bool {
    memchr::memchr3(b'\r', b'\n', 0, value).is_none()
}

pub(super) fn make_one_line(value: &mut [u8]) {
    for byte in value {
        let ends_line = matches!(byte, b'\r' | b'\n' | 0);
        *byte = if ends_line { b' ' } else { *byte };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NAMES: [HeaderName; 5] = [
        HeaderName::Via,
        HeaderName::Route,
        HeaderName::To,
        HeaderName::ContentLength,
        HeaderName::Subject,
    ];

    #[derive(Debug, Clone)]
    enum Step {
        Uri(String),
        PushFront(usize, String),
        Append(usize, String),
        RemoveFirstValue(usize),
        ReplaceFirstValue(usize, String),
        RemoveAll(usize),
        Set(usize, String),
        Body(String),
        Stamp,
    }

    fn step() -> impl Strategy<Value = Step> {
        let name = || 0..NAMES.len();
        let value = || "[ -~\r\n\t]{0,20}";
        prop_oneof![
            value().prop_map(Step::Uri),
            (name(), value()).prop_map(|(name, value)| Step::PushFront(name, value)),
            (name(), value()).prop_map(|(name, value)| Step::Append(name, value)),
            name().prop_map(Step::RemoveFirstValue),
            (name(), value()).prop_map(|(name, value)| Step::ReplaceFirstValue(name, value)),
            name().prop_map(Step::RemoveAll),
            (name(), value()).prop_map(|(name, value)| Step::Set(name, value)),
            value().prop_map(Step::Body),
            Just(Step::Stamp),
        ]
    }

    fn line() -> impl Strategy<Value = String> {
        let value = "[ -~]{0,20}(\r\n[ \t][ -~]{0,10})?";
        let name = prop_oneof![
            Just("Via"),
            Just("v"),
            Just("Route"),
            Just("To"),
            Just("l"),
            Just("Content-Length"),
            Just("Subject"),
            Just("X-Odd"),
            Just("bad name"),
            Just(""),
        ];
        (name, prop_oneof![Just(": "), Just(":"), Just(" : ")], value)
            .prop_map(|(name, colon, value)| format!("{name}{colon}{value}"))
    }

    fn message() -> impl Strategy<Value = String> {
        let start = prop_oneof![
            Just("INVITE sip:a@b SIP/2.0"),
            Just("SIP/2.0 200 OK"),
            Just("BYE  sip:a SIP/2.0")
        ];
        let good = Just(String::from(
            "Via: SIP/2.0/UDP 192.0.2.1;rport;branch=z9hG4bK1, SIP/2.0/TCP b",
        ));
        let lines = prop::collection::vec(prop_oneof![line(), good], 1..6);
        let end = prop_oneof![Just("\r\n\r\n"), Just("\n\n"), Just("\r\n"), Just("")];
        (start, lines, end, "[a-z]{0,5}").prop_map(|(start, lines, end, body)| {
            format!("{start}\r\n{}{end}{body}", lines.join("\r\n"))
        })
    }

    fn apply(edit: &mut Edit<'_>, step: &Step) {
        match step {
            Step::Uri(uri) => edit.set_request_uri(uri.clone()),
            Step::PushFront(name, value) => edit.push_front(NAMES[*name], value.clone()),
            Step::Append(name, value) => edit.append(NAMES[*name], value.clone()),
            Step::RemoveFirstValue(name) => edit.remove_first_value(NAMES[*name]),
            Step::ReplaceFirstValue(name, value) => edit.replace_first_value(NAMES[*name], value),
            Step::RemoveAll(name) => edit.remove_all(NAMES[*name]),
            Step::Set(name, value) => edit.set(NAMES[*name], value.clone()),
            Step::Body(body) => edit.set_body(body.clone()),
            Step::Stamp => edit.stamp_top_via(SocketAddr::from(([203, 0, 113, 1], 5060))),
        };
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn an_edited_message_is_indexed_as_if_it_had_been_read_anew(
            text in message(), steps in prop::collection::vec(step(), 1..5)
        ) {
            let Ok(message) = Message::parse(text.into()) else { return Ok(()) };
            // What is noted now must be right in the edited message.
            let _ = (message.uri(), message.top_via(), message.from(), message.to());
            let mut edit = message.edit();
            for step in &steps {
                apply(&mut edit, step);
            }
            let edited = edit.finish();
            if let Ok(read) = Message::parse(edited.bytes.clone()) {
                prop_assert_eq!(edited.uri(), read.uri());
                prop_assert_eq!(edited.top_via(), read.top_via());
                prop_assert_eq!(edited.from(), read.from());
                prop_assert_eq!(edited.to(), read.to());
            }
            let Written { bytes, index } = edit.write();
            if let Some(index) = index {
                let read = Index::of(&bytes);
                prop_assert_eq!(read.as_ref().ok(), Some(&index), "{}", bytes.escape_ascii());
            }
        }
    }

    #[test]
    fn a_well_formed_message_is_never_read_twice() {
        let text = "INVITE sip:a@b SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.1;rport\r\nTo: x\r\n\r\n";
        let message = Message::parse(text.into()).unwrap();
        let mut edit = message.edit();
        edit.set_request_uri("sip:c@d")
            .push_front(HeaderName::Via, "SIP/2.0/UDP x");
        edit.set(HeaderName::MaxForwards, "69").set_body("abc");
        assert!(edit.write().index.is_some());
    }
}
