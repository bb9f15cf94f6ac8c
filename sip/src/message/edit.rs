//! Edited copies: spans are replaced, every other byte stays.

use bytes::Bytes;

use super::value::split_list;
use super::{HeaderName, Message, Start};

/// Edits of one message, carried out by [`Edit::finish`].
///
/// Edits of the same header add up in the order in which they were asked for.
#[derive(Debug, Clone)]
pub struct Edit<'m> {
    message: &'m Message,
    request_uri: Option<Vec<u8>>,
    body: Option<Vec<u8>>,
    /// What becomes of each field of the original, by index; `None` keeps it.
    fields: Vec<Change>,
    /// New fields before the one at that index, or at the end of the head.
    inserted: Vec<(usize, HeaderName, Vec<u8>)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    Keep,
    Remove,
    Replace(Vec<u8>),
}

impl<'m> Edit<'m> {
    pub(super) fn new(message: &'m Message) -> Self {
        let fields = vec![Change::Keep; message.fields.len()];
        Self {
            message,
            request_uri: None,
            body: None,
            fields,
            inserted: Vec::new(),
        }
    }

    /// Replaces the Request-URI; of a response, nothing.
    pub fn set_request_uri(&mut self, uri: impl Into<Vec<u8>>) -> &mut Self {
        self.request_uri = Some(uri.into());
        self
    }

    /// Puts a field in front of the first of that name, or on top of the head.
    pub fn push_front(&mut self, name: HeaderName, value: impl Into<Vec<u8>>) -> &mut Self {
        let position = self
            .message
            .fields
            .iter()
            .position(|field| field.name == name);
        let position = position.unwrap_or(0);
        let before = self.inserted.iter().position(|(at, _, _)| *at == position);
        self.inserted.insert(
            before.unwrap_or(self.inserted.len()),
            (position, name, value.into()),
        );
        self
    }

    /// Puts a field at the end of the head.
    pub fn append(&mut self, name: HeaderName, value: impl Into<Vec<u8>>) -> &mut Self {
        self.inserted
            .push((self.message.fields.len(), name, value.into()));
        self
    }

    /// Takes off the first value of a list header, and its field if it was the only one there.
    pub fn remove_first_value(&mut self, name: HeaderName) -> &mut Self {
        if let Some((index, first, rest)) = self.first_value(name) {
            let current = self.current(index);
            let mut kept = current[..first.start].to_vec();
            kept.extend_from_slice(rest.map_or(b"".as_slice(), |rest| &current[rest..]));
            self.fields[index] = if rest.is_none() {
                Change::Remove
            } else {
                Change::Replace(kept)
            };
        }
        self
    }

    /// Replaces the first value of a list header.
    pub fn replace_first_value(&mut self, name: HeaderName, value: impl AsRef<[u8]>) -> &mut Self {
        if let Some((index, first, _)) = self.first_value(name) {
            let current = self.current(index);
            let replaced = [
                &current[..first.start],
                value.as_ref(),
                &current[first.end..],
            ]
            .concat();
            self.fields[index] = Change::Replace(replaced);
        }
        self
    }

    /// Takes off every field of that name.
    pub fn remove_all(&mut self, name: HeaderName) -> &mut Self {
        for (field, change) in self.message.fields.iter().zip(&mut self.fields) {
            if field.name == name {
                *change = Change::Remove;
            }
        }
        self
    }

    /// Replaces the value of the first field of that name, or appends one.
    pub fn set(&mut self, name: HeaderName, value: impl Into<Vec<u8>>) -> &mut Self {
        match self
            .message
            .fields
            .iter()
            .position(|field| field.name == name)
        {
            Some(index) => self.fields[index] = Change::Replace(value.into()),
            None => return self.append(name, value),
        }
        self
    }

    /// Replaces the body and corrects Content-Length.
    pub fn set_body(&mut self, body: impl Into<Vec<u8>>) -> &mut Self {
        let body = body.into();
        self.set(HeaderName::ContentLength, body.len().to_string());
        self.body = Some(body);
        self
    }

    /// The edited message.
    pub fn finish(&self) -> Message {
        let added: usize = self
            .inserted
            .iter()
            .map(|(_, _, value)| value.len() + 32)
            .sum();
        let mut out = Vec::with_capacity(self.message.bytes.len() + added + 64);
        self.write_start_line(&mut out);
        for index in 0..=self.message.fields.len() {
            for (_, name, value) in self.inserted.iter().filter(|(at, _, _)| *at == index) {
                write_field(&mut out, name.full().as_bytes(), value);
            }
            let Some(field) = self.message.fields.get(index) else {
                break;
            };
            match &self.fields[index] {
                Change::Keep => out.extend_from_slice(&self.message.bytes[field.line.clone()]),
                Change::Remove => {}
                Change::Replace(value) => {
                    let before = field.line.start..field.value.start;
                    out.extend_from_slice(&self.message.bytes[before]);
                    out.extend_from_slice(value);
                    out.extend_from_slice(&self.message.bytes[field.value.end..field.line.end]);
                }
            }
        }
        self.write_end(&mut out);
        let bytes = Bytes::from(out);
        // An edit keeps the shape of a head, so reading it again cannot fail; should it, the
        // unedited message is the safe answer.
        Message::parse(bytes).unwrap_or_else(|_| self.message.clone())
    }

    /// The empty line as it came, and the body.
    fn write_end(&self, out: &mut Vec<u8>) {
        let head_end = self.message.fields.last().map_or(0, |field| field.line.end);
        let empty_line = &self.message.bytes[head_end..self.message.body.start];
        let empty_line = if self.message.fields.is_empty() {
            b"\r\n"
        } else {
            empty_line
        };
        out.extend_from_slice(empty_line);
        out.extend_from_slice(self.body.as_deref().unwrap_or_else(|| self.message.body()));
    }

    fn write_start_line(&self, out: &mut Vec<u8>) {
        let bytes = &self.message.bytes;
        let end = match self.message.fields.first() {
            Some(field) => field.line.start,
            None => memchr::memchr(b'\n', bytes).map_or(bytes.len(), |newline| newline + 1),
        };
        match (&self.message.start, &self.request_uri) {
            (Start::Request { uri, .. }, Some(new)) => {
                out.extend_from_slice(&bytes[..uri.start]);
                out.extend_from_slice(new);
                out.extend_from_slice(&bytes[uri.end..end]);
            }
            (Start::Request { .. }, None) | (Start::Response { .. }, _) => {
                out.extend_from_slice(&bytes[..end]);
            }
        }
    }

    fn current(&self, index: usize) -> Vec<u8> {
        match &self.fields[index] {
            Change::Replace(value) => value.clone(),
            Change::Keep => self.message.bytes[self.message.fields[index].value.clone()].to_vec(),
            Change::Remove => Vec::new(),
        }
    }

    /// The field that holds the first value, where that value is, and where the next begins.
    fn first_value(
        &self,
        name: HeaderName,
    ) -> Option<(usize, std::ops::Range<usize>, Option<usize>)> {
        for (index, field) in self.message.fields.iter().enumerate() {
            if field.name != name || self.fields[index] == Change::Remove {
                continue;
            }
            let current = self.current(index);
            let mut values = split_list(&current);
            if let Some(first) = values.next() {
                let next = values.next().map(|next| next.start);
                return Some((index, first, next));
            }
        }
        None
    }
}

pub(super) fn write_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}
