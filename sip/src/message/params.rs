//! Header parameters: `;name=value;flag;quoted="a;b"` (RFC 3261 section 25.1, generic-param and
//! uri-parameters).

use super::error::ValueError;
use super::scan::{
    ByteClass, TOKEN, byte_class, find, is_lws, quoted_end, trim, trim_end, trim_start,
};

/// Parameters behind a header value or in a URI, as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parameters<'a>(&'a [u8]);

/// The first parameter of some name.
#[derive(Default)]
pub(super) struct First<'a> {
    /// Its value.
    pub(super) value: Option<&'a [u8]>,
    /// There is another of that name.
    pub(super) again: bool,
}

impl<'a> Parameters<'a> {
    /// Header parameters: nothing, or `;` and well-formed parameters (RFC 3261 section 25.1). With them
    /// the value of the first one of this name, empty for a flag, and whether there is another.
    pub(super) fn of_header(raw: &'a [u8], name: &[u8]) -> Result<(Self, First<'a>), ValueError> {
        let mut rest = trim(raw);
        let parameters = Self::of_uri(rest);
        let mut first = First::default();
        while let [semicolon, after @ ..] = rest {
            if *semicolon != b';' {
                return Err(ValueError::Parameter);
            }
            let found = Parameter::of(trim_start(after))?;
            if found.name.eq_ignore_ascii_case(name) {
                first.again = first.value.is_some();
                first.value = first.value.or(Some(found.value));
            }
            rest = trim_start(found.behind);
        }
        Ok((parameters, first))
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
        named(self.0, name.as_ref())
    }

    /// True if a parameter of that name is there.
    pub fn has(&self, name: impl AsRef<[u8]>) -> bool {
        self.get(name).is_some()
    }

    /// As written, from behind the first semicolon.
    pub const fn as_bytes(&self) -> &'a [u8] {
        self.0
    }
}

/// The value of the first parameter of that name.
fn named<'a>(mut rest: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    while !rest.is_empty() {
        let end = part_end(rest);
        if let Some(value) = value_of(&rest[..end], name) {
            return Some(value);
        }
        rest = rest.get(end + 1..).unwrap_or_default();
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

/// The parameter that a text begins with.
struct Parameter<'a> {
    name: &'a [u8],
    /// Empty for a flag.
    value: &'a [u8],
    behind: &'a [u8],
}

impl<'a> Parameter<'a> {
    fn of(text: &'a [u8]) -> Result<Self, ValueError> {
        let (name, behind) = text.split_at(TOKEN.prefix(text));
        if name.is_empty() {
            return Err(ValueError::Parameter);
        }
        let (value, behind) = match trim_start(behind).strip_prefix(b"=").map(trim_start) {
            None => (b"".as_slice(), behind),
            Some(value) => value.split_at(value_end(value)?),
        };
        Ok(Self {
            name,
            value,
            behind,
        })
    }
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
