//! Where things are in a message: found once, by looking for line ends and colons.

use smallvec::SmallVec;

use super::error::{ContentLengthFault, HeadFault, ParseError};
use super::header_name::{HeaderName, NameSet};
use super::noted::{Noted, ViaSpans};
use super::scan::{TOKEN, decimal, is_token, trim, trim_end, trim_start};

/// The longest message that is read, in octets. A UDP datagram cannot be longer.
pub const MAX_MESSAGE: usize = 65_535;

/// The most header fields that are read in one message.
pub const MAX_FIELDS: usize = 512;

/// Room in the index itself; most messages need no more, so that parsing allocates once.
const TYPICAL_FIELDS: usize = 28;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u32,
    pub(super) end: u32,
}

impl Span {
    pub(super) fn new(start: usize, end: usize) -> Self {
        Self {
            start: offset(start),
            end: offset(end),
        }
    }

    /// The span of `part`, which is a piece of `whole`.
    pub(super) fn within(whole: &[u8], part: &[u8]) -> Self {
        let start = part.as_ptr().addr() - whole.as_ptr().addr();
        Self::new(start, start + part.len())
    }

    const fn is_empty(self) -> bool {
        self.start == self.end
    }

    pub(super) fn of(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.start as usize..self.end as usize]
    }
}

/// Offsets fit in 32 bits: what is parsed has 64 KiB, and edits add little.
fn offset(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StartLine {
    Request {
        method: Span,
        uri: Span,
        version_ok: bool,
    },
    Status {
        code: u16,
        reason: Span,
        version_ok: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FieldSpan {
    pub(super) name: HeaderName,
    /// Where the name ends; it starts with the line.
    pub(super) name_end: u32,
    pub(super) value: Span,
    /// The whole field with its folded lines and its line end.
    pub(super) line: Span,
}

impl FieldSpan {
    pub(super) fn raw_name<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[self.line.start as usize..self.name_end as usize]
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Index {
    pub(super) start: StartLine,
    pub(super) fields: SmallVec<[FieldSpan; TYPICAL_FIELDS]>,
    /// The headers that are there.
    pub(super) there: NameSet,
    /// Those that are there in several fields.
    pub(super) several: NameSet,
    /// Where the first field starts.
    pub(super) fields_start: u32,
    pub(super) body: Span,
    pub(super) head_fault: Option<HeadFault>,
    pub(super) content_length_fault: Option<ContentLengthFault>,
    pub(super) noted: Noted,
}

impl Index {
    /// Indexes the message at the start of `bytes`, which is not a line end.
    pub(super) fn of(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut index = Self::of_nothing(500);
        index.read(bytes)?;
        Ok(index)
    }

    /// The same in the place of one of nothing: a kilobyte that need not be moved.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<(), ParseError> {
        let mut lines = Lines::from(bytes, 0);
        let first = lines.next().ok_or(ParseError::StartLine)?;
        (self.start, self.head_fault) = start_line(bytes, lines.text(first))?;
        self.fields_start = first.end;
        let mut ended = false;
        while let Some(line) = lines.next() {
            if lines.text(line).is_empty() {
                ended = true;
                break;
            }
            self.add_line(bytes, line)?;
        }
        if self.fields.is_empty() {
            return Err(ParseError::NoFields);
        }
        self.find_faults(bytes);
        let late = if ended {
            None
        } else {
            Some(HeadFault::Unterminated)
        };
        self.head_fault = self.head_fault.or(lines.head_fault).or(late);
        self.find_body(bytes, lines.at);
        Ok(())
    }

    /// The fields of that name.
    pub(super) fn fields(&self, name: HeaderName) -> impl Iterator<Item = &FieldSpan> {
        let some = if self.there.contains(name) {
            self.fields.as_slice()
        } else {
            &[]
        };
        some.iter().filter(move |field| field.name == name)
    }

    fn push(&mut self, field: FieldSpan) {
        if self.there.contains(field.name) {
            self.several.insert(field.name);
        }
        self.there.insert(field.name);
        self.fields.push(field);
    }

    /// The index of a status line and an empty line, 16 octets.
    pub(super) fn of_nothing(code: u16) -> Self {
        Self {
            start: StartLine::Status {
                code,
                reason: Span::new(12, 12),
                version_ok: true,
            },
            fields: SmallVec::new(),
            there: NameSet::default(),
            several: NameSet::default(),
            fields_start: 14,
            body: Span::new(16, 16),
            head_fault: None,
            content_length_fault: None,
            noted: Noted::default(),
        }
    }

    /// The top Via, in field `at`, is now `via`, if that is known: what ended at `old_end` ends at `new_end`.
    pub(super) fn replace_top_via(
        &mut self,
        at: usize,
        (old_end, new_end): (usize, usize),
        via: Option<ViaSpans>,
    ) {
        let old_end = offset(old_end);
        let by = offset(new_end).wrapping_sub(old_end);
        let moved = |at: u32| at.wrapping_add(by);
        let moved_span = |span: Span| Span {
            start: moved(span.start),
            end: moved(span.end),
        };
        let mut behind = self.fields.iter_mut().skip(at);
        if let Some(field) = behind.next() {
            field.value.end = moved(field.value.end);
            field.line.end = moved(field.line.end);
        }
        for field in behind {
            field.name_end = moved(field.name_end);
            field.value = moved_span(field.value);
            field.line = moved_span(field.line);
        }
        self.body = moved_span(self.body);
        self.noted.moved(via, |span| {
            if span.is_empty() || span.start < old_end {
                span
            } else {
                moved_span(span)
            }
        });
    }

    /// One line: a new field, or the continuation of the last one.
    fn add_line(&mut self, bytes: &[u8], line: Span) -> Result<(), ParseError> {
        let text = line.of(bytes);
        if matches!(text.first(), Some(b' ' | b'\t'))
            && let Some(last) = self.fields.last_mut()
        {
            last.line.end = line.end;
            let more = trim(text);
            if !more.is_empty() {
                let more = Span::within(bytes, more);
                let start = if last.value.is_empty() {
                    more.start
                } else {
                    last.value.start
                };
                last.value = Span {
                    start,
                    end: more.end,
                };
            }
            return Ok(());
        }
        if self.fields.len() == MAX_FIELDS {
            return Err(ParseError::TooManyFields);
        }
        let token = TOKEN.prefix(text);
        let plain = token > 0 && text.get(token) == Some(&b':');
        let colon = if plain {
            Some(token)
        } else {
            memchr::memchr(b':', text)
        };
        let raw_name = match colon {
            Some(colon) if plain => &text[..colon],
            Some(colon) => without_spaces_behind(&text[..colon]),
            None => trim_end(text),
        };
        let value_start = colon.map_or(raw_name.len(), |colon| colon + 1);
        let value = match trim(&text[value_start..]) {
            // Where a value would stand, should an edit give it one.
            [] => &text[value_start..value_start],
            value => value,
        };
        let known = plain || colon.is_some() && is_token(raw_name);
        self.push(FieldSpan {
            name: if known {
                HeaderName::from_bytes(raw_name)
            } else {
                HeaderName::Other
            },
            name_end: line.start + offset(raw_name.len()),
            value: Span::within(bytes, value),
            line,
        });
        Ok(())
    }

    fn find_faults(&mut self, bytes: &[u8]) {
        let bad = |field: &FieldSpan| {
            let line = field.line.of(bytes);
            match memchr::memchr(b':', line) {
                None => Some(HeadFault::NoColon),
                Some(_) if !is_token(field.raw_name(bytes)) => Some(HeadFault::FieldName),
                Some(_) => None,
            }
        };
        let fault = || self.fields(HeaderName::Other).find_map(bad);
        self.head_fault = self.head_fault.or_else(fault);
    }

    fn find_body(&mut self, bytes: &[u8], body_start: usize) {
        let rest = bytes.len() - body_start;
        let length = self.content_length(bytes).and_then(|length| match length {
            Some(length) if length > rest => Err(ContentLengthFault::Truncated),
            Some(length) => Ok(length),
            None => Ok(rest),
        });
        self.content_length_fault = length.err();
        self.body = Span::new(body_start, body_start + length.unwrap_or(rest));
    }

    /// What Content-Length says, if it is there.
    pub(super) fn content_length(&self, bytes: &[u8]) -> Result<Option<usize>, ContentLengthFault> {
        let mut length = None;
        for field in self.fields(HeaderName::ContentLength) {
            let value = content_length(field.value.of(bytes))?;
            if length.is_some_and(|length| length != value) {
                return Err(ContentLengthFault::Conflicting);
            }
            length = Some(value);
        }
        Ok(length)
    }
}

/// The index of a message that is being made from an indexed one.
pub(super) struct IndexBuilder<'m> {
    old: &'m Index,
    /// Nothing as soon as only reading the whole will tell.
    index: Option<Index>,
}

impl<'m> IndexBuilder<'m> {
    /// Behind the same start line.
    pub(super) fn behind(old: &'m Index) -> Self {
        let start = (old.start, old.fields_start);
        // What is wrong with a head may have been removed, or not.
        let mut builder = Self::new(old, old.head_fault.is_none().then_some(start));
        if let Some(index) = &mut builder.index {
            index.noted.keep_uri(&old.noted);
        }
        builder
    }

    /// Behind a start line of which the Request-URI has changed.
    pub(super) fn behind_new_start(old: &'m Index, head: &[u8]) -> Self {
        let mut lines = Lines::from(head, 0);
        let read = lines
            .next()
            .and_then(|line| Some((start_line(head, lines.text(line)).ok()?, line.end)))
            .filter(|((_, fault), _)| fault.is_none() && lines.head_fault.is_none());
        let start = read.map(|((start, _), end)| (start, end));
        Self::new(old, start.filter(|_| old.head_fault.is_none()))
    }

    fn new(old: &'m Index, start: Option<(StartLine, u32)>) -> Self {
        let index = start.map(|(start, fields_start)| Index {
            start,
            fields: SmallVec::new(),
            there: NameSet::default(),
            several: NameSet::default(),
            fields_start,
            body: Span::default(),
            head_fault: None,
            content_length_fault: None,
            noted: Noted::default(),
        });
        Self { old, index }
    }

    /// A field as it was, now at `start`.
    pub(super) fn add_kept(&mut self, field: FieldSpan, start: usize) {
        let Some(index) = &mut self.index else { return };
        if index.fields.len() == MAX_FIELDS {
            self.index = None;
            return;
        }
        let old_start = field.line.start;
        let moved = |at: u32| at - old_start + offset(start);
        let moved_span = |span: Span| Span {
            start: moved(span.start),
            end: moved(span.end),
        };
        if Noted::is_about(field.name)
            && !index.there.contains(field.name)
            && self.old.fields(field.name).next() == Some(&field)
        {
            index.noted.keep(field.name, &self.old.noted, |span| {
                if span.is_empty() {
                    span
                } else {
                    moved_span(span)
                }
            });
        }
        index.push(FieldSpan {
            name: field.name,
            name_end: moved(field.name_end),
            value: moved_span(field.value),
            line: moved_span(field.line),
        });
    }

    /// What was written from `start` on: the lines of a field.
    pub(super) fn add_new(&mut self, written: &[u8], start: usize) {
        let Some(index) = &mut self.index else { return };
        let mut lines = Lines::from(written, start);
        while let Some(line) = lines.next() {
            if lines.text(line).is_empty() || index.add_line(written, line).is_err() {
                self.index = None;
                return;
            }
        }
        if lines.head_fault.is_some() {
            self.index = None;
        }
    }

    /// With the body where it is now.
    pub(super) fn finish(self, bytes: &[u8], body_start: usize) -> Option<Index> {
        let mut index = self.index.filter(|index| !index.fields.is_empty())?;
        index.find_body(bytes, body_start);
        Some(index)
    }
}

/// HCOLON allows spaces and tabs before the colon, and nothing else.
fn without_spaces_behind(name: &[u8]) -> &[u8] {
    let end = name
        .iter()
        .rposition(|byte| !matches!(byte, b' ' | b'\t'))
        .map_or(0, |last| last + 1);
    &name[..end]
}

fn content_length(value: &[u8]) -> Result<usize, ContentLengthFault> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(ContentLengthFault::Unusable);
    }
    let length = decimal(value).and_then(|length| i32::try_from(length).ok());
    length
        .and_then(|length| usize::try_from(length).ok())
        .ok_or(ContentLengthFault::TooLarge)
}

/// The lines of a head, each with its line end: LF, tolerated, or CRLF.
struct Lines<'a> {
    bytes: &'a [u8],
    at: usize,
    head_fault: Option<HeadFault>,
}

impl<'a> Lines<'a> {
    const fn from(bytes: &'a [u8], at: usize) -> Self {
        Self {
            bytes,
            at,
            head_fault: None,
        }
    }

    fn next(&mut self) -> Option<Span> {
        let rest = &self.bytes[self.at..];
        if rest.is_empty() {
            return None;
        }
        let length = match memchr::memchr2(b'\r', b'\n', rest) {
            None => rest.len(),
            Some(end) if rest[end] == b'\n' => end + 1,
            Some(end) if rest.get(end + 1) == Some(&b'\n') => end + 2,
            Some(bare) => {
                self.head_fault = self.head_fault.or(Some(HeadFault::BareCr));
                let end = memchr::memchr(b'\n', &rest[bare..]);
                end.map_or(rest.len(), |end| bare + end + 1)
            }
        };
        let line = Span::new(self.at, self.at + length);
        self.at += length;
        Some(line)
    }

    /// A line without its line end.
    fn text(&self, line: Span) -> &[u8] {
        let text = line.of(self.bytes);
        let Some(text) = text.strip_suffix(b"\n") else {
            return text;
        };
        text.strip_suffix(b"\r").unwrap_or(text)
    }
}

fn start_line(bytes: &[u8], line: &[u8]) -> Result<(StartLine, Option<HeadFault>), ParseError> {
    if is_version(line) {
        return Ok((status_line(bytes, line)?, None));
    }
    let method_end = memchr::memchr2(b' ', b'\t', line).ok_or(ParseError::StartLine)?;
    let (method, rest) = line.split_at(method_end);
    let rest = trim(rest);
    let version_start = rest.iter().rposition(|byte| matches!(byte, b' ' | b'\t'));
    let (uri, version) = rest.split_at(version_start.map_or(0, |gap| gap + 1));
    let uri = trim_end(uri);
    if !is_token(method) || !is_version(version) {
        return Err(ParseError::StartLine);
    }
    let start = StartLine::Request {
        method: Span::within(bytes, method),
        uri: Span::within(bytes, uri),
        version_ok: version.eq_ignore_ascii_case(b"SIP/2.0"),
    };
    let well_spaced = line.len() == method.len() + uri.len() + version.len() + 2
        && memchr::memchr2(b' ', b'\t', uri).is_none();
    Ok((
        start,
        (!well_spaced || uri.is_empty()).then_some(HeadFault::StartLineSpacing),
    ))
}

fn status_line(bytes: &[u8], line: &[u8]) -> Result<StartLine, ParseError> {
    let version_end = memchr::memchr(b' ', line).ok_or(ParseError::StatusCode)?;
    let (version, rest) = line.split_at(version_end);
    let rest = &rest[1..];
    let code_end = memchr::memchr(b' ', rest).unwrap_or(rest.len());
    let (code, reason) = rest.split_at(code_end);
    let code = decimal(code)
        .filter(|_| code.len() == 3)
        .and_then(|code| u16::try_from(code).ok());
    Ok(StartLine::Status {
        code: code
            .filter(|code| (100..700).contains(code))
            .ok_or(ParseError::StatusCode)?,
        reason: Span::within(
            bytes,
            reason.strip_prefix(b" ").unwrap_or(trim_start(reason)),
        ),
        version_ok: version.eq_ignore_ascii_case(b"SIP/2.0"),
    })
}

fn is_version(text: &[u8]) -> bool {
    text.get(..4)
        .is_some_and(|start| start.eq_ignore_ascii_case(b"SIP/"))
}
