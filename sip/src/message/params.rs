//! Header parameters: `;name=value;flag;quoted="a;b"` (RFC 3261 section 25.1, generic-param and
//! uri-parameters).

use super::error::ValueError;
use super::scan::{
    ByteClass, TOKEN, byte_class, find, is_lws, quoted_end, trim, trim_end, trim_start,
};

/// Parameters behind a header value or in a URI, as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parameters<'a>(&'a [u8]);

impl<'a> Parameters<'a> {
    /// Header parameters: nothing, or `;` and well-formed parameters (RFC 3261 section 25.1).
    pub(super) fn of_header(raw: &'a [u8]) -> Result<Self, ValueError> {
        let mut rest = trim(raw);
        let parameters = Self::of_uri(rest);
        while let [first, after @ ..] = rest {
            if *first != b';' {
                return Err(ValueError::Parameter);
            }
            rest = trim_start(&after[parameter_end(trim_start(after), after)?..]);
        }
        Ok(parameters)
    }

    /// URI parameters, whose bytes have been looked at: nothing, or `;` and parameters.
    pub(super) fn of_uri(raw: &'a [u8]) -> Self {
        Self(raw.strip_prefix(b";").unwrap_or_default())
    }

    /// Parameters that were read before, from behind their first semicolon.
    pub(super) const fn read(raw: &'a [u8]) -> Self {
        Self(raw)
    }

    /// Name and value of each, in order; a quoted value keeps its quotes, a flag has none.
    pub fn iter(&self) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + use<'a> {
        let mut rest = self.0;
        let parts = std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let end = part_end(rest);
            let part = trim(&rest[..end]);
            rest = rest.get(end + 1..).unwrap_or_default();
            Some(part)
        });
        parts
            .filter(|part| !part.is_empty())
            .map(|part| match find(b'=', part) {
                Some(equals) => (
                    trim_end(&part[..equals]),
                    Some(trim_start(&part[equals + 1..])),
                ),
                None => (part, None),
            })
    }

    /// The value of the first parameter of that name, in any case; empty for a flag.
    pub fn get(&self, name: impl AsRef<[u8]>) -> Option<&'a [u8]> {
        named(self.0, name.as_ref()).map(|(value, _)| value)
    }

    /// True if a parameter of that name is there.
    pub fn has(&self, name: impl AsRef<[u8]>) -> bool {
        self.get(name).is_some()
    }

    /// The value of the first parameter of that name, and whether there is another.
    pub(super) fn first(&self, name: &str) -> (Option<&'a [u8]>, bool) {
        match named(self.0, name.as_bytes()) {
            Some((value, rest)) => (Some(value), named(rest, name.as_bytes()).is_some()),
            None => (None, false),
        }
    }

    /// As written, from behind the first semicolon.
    pub const fn as_bytes(&self) -> &'a [u8] {
        self.0
    }
}

/// The value of the first parameter of that name, and what follows it.
fn named<'a>(mut rest: &'a [u8], name: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    while !rest.is_empty() {
        let after = rest.get(part_end(rest) + 1..).unwrap_or_default();
        let part = &rest[..rest.len() - after.len()];
        if let Some(value) = value_of(part.strip_suffix(b";").unwrap_or(part), name) {
            return Some((value, after));
        }
        rest = after;
    }
    None
}

/// The value of a parameter if it has this name; empty for a flag.
fn value_of<'a>(part: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let part = trim_start(part);
    let (found, rest) = part.split_at_checked(name.len())?;
    if !found.eq_ignore_ascii_case(name) {
        return None;
    }
    match trim_start(rest) {
        [] => Some(b""),
        [b'=', value @ ..] => Some(trim(value)),
        _ => None,
    }
}

/// Where a part ends: at a semicolon outside quotes, or at the end.
fn part_end(rest: &[u8]) -> usize {
    let mut at = 0;
    loop {
        let here = at + PLAIN.prefix(&rest[at..]);
        if rest.get(here) != Some(&b'"') {
            return here;
        }
        at = quoted_end(&rest[here..]).map_or(rest.len(), |end| here + end);
    }
}

const fn is_plain(byte: u8) -> bool {
    !matches!(byte, b';' | b'"')
}

/// What neither ends a part nor hides its end.
static PLAIN: ByteClass = byte_class!(is_plain);

/// Where the parameter `text`, a tail of `whole`, ends within `whole`.
fn parameter_end(text: &[u8], whole: &[u8]) -> Result<usize, ValueError> {
    let name_end = TOKEN.prefix(text);
    if name_end == 0 {
        return Err(ValueError::Parameter);
    }
    let rest = &text[name_end..];
    let rest = match trim_start(rest).strip_prefix(b"=").map(trim_start) {
        None => rest,
        Some(value) => &value[value_end(value)?..],
    };
    Ok(whole.len() - rest.len())
}

const fn belongs_to_value(byte: u8) -> bool {
    !is_lws(byte) && byte >= b' ' && !matches!(byte, b';' | b',' | b'"' | b'<' | b'>' | 0x7f)
}

static VALUE: ByteClass = byte_class!(belongs_to_value);

/// Token, host or quoted string; more than the grammar allows in a token, so that odd values pass.
fn value_end(value: &[u8]) -> Result<usize, ValueError> {
    if value.first() == Some(&b'"') {
        return quoted_end(value);
    }
    Ok(VALUE.prefix(value))
}
