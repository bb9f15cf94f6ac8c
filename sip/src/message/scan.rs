//! The lexical ground of RFC 3261 section 25.1: white space, tokens, quoted strings, lists.

use std::borrow::Cow;

use super::error::ValueError;

/// Linear white space, with the CR and LF of a folded line.
pub(crate) const fn is_lws(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// For each byte whether it belongs to a class: one load instead of a row of comparisons.
pub(crate) struct ByteClass([bool; 256]);

impl ByteClass {
    /// The class of the bytes whose entry is true.
    pub(super) const fn of(class: [bool; 256]) -> Self {
        Self(class)
    }

    const fn contains(&self, byte: u8) -> bool {
        self.0[byte as usize]
    }

    /// How many bytes at the start belong to it.
    pub(crate) fn prefix(&self, bytes: &[u8]) -> usize {
        let mut rest = bytes;
        while let Some((eight, after)) = rest.split_first_chunk::<8>()
            && self.holds_all(eight)
        {
            rest = after;
        }
        let last = rest.iter().take_while(|&&byte| self.contains(byte)).count();
        bytes.len() - rest.len() + last
    }

    /// True where all bytes belong to it.
    pub(super) fn holds_all(&self, bytes: &[u8]) -> bool {
        // No early end: nearly all texts are well-formed, and this goes several bytes at a time.
        bytes
            .iter()
            .fold(true, |all, &byte| all & self.contains(byte))
    }
}

/// Makes a [`ByteClass`] of a const predicate.
macro_rules! byte_class {
    ($belongs:path) => {{
        let mut class = [false; 256];
        let mut byte = 0;
        while byte < 256 {
            class[byte] = $belongs(byte as u8);
            byte += 1;
        }
        $crate::message::scan::ByteClass::of(class)
    }};
}
pub(super) use byte_class;

const fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'-' | b'.' | b'!' | b'%' | b'*' | b'_' | b'+' | b'`' | b'\'' | b'~'
        )
}

/// The bytes of a token.
pub(crate) static TOKEN: ByteClass = byte_class!(is_token_byte);

pub(super) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && TOKEN.holds_all(bytes)
}

pub(crate) fn trim_start(bytes: &[u8]) -> &[u8] {
    let start = bytes
        .iter()
        .position(|&byte| !is_lws(byte))
        .unwrap_or(bytes.len());
    &bytes[start..]
}

pub(super) fn trim_end(bytes: &[u8]) -> &[u8] {
    let end = bytes
        .iter()
        .rposition(|&byte| !is_lws(byte))
        .map_or(0, |last| last + 1);
    &bytes[..end]
}

pub(crate) fn trim(bytes: &[u8]) -> &[u8] {
    trim_end(trim_start(bytes))
}

/// Longer texts are worth the preparations of a vectorized search.
const SHORT: usize = 32;

/// Where a byte is first.
pub(super) fn find(byte: u8, text: &[u8]) -> Option<usize> {
    if text.len() < SHORT {
        text.iter().position(|&other| other == byte)
    } else {
        memchr::memchr(byte, text)
    }
}

/// A row of digits as a number; `None` for anything else, a number above 2^64 included.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |sum, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

/// Where the quoted string that starts at the first byte ends, its closing quote included.
pub(crate) fn quoted_end(bytes: &[u8]) -> Result<usize, ValueError> {
    let mut at = 1;
    while let Some(found) = bytes
        .get(at..)
        .and_then(|rest| memchr::memchr2(b'"', b'\\', rest))
    {
        match bytes[at + found] {
            b'"' => return Ok(at + found + 1),
            _ => at += found + 2,
        }
    }
    Err(ValueError::Unbalanced)
}

/// The values of one field of a list header, trimmed: split at commas outside quotes and angle
/// brackets. A quote or bracket that never closes takes the rest of the field with it.
pub(super) struct ListValues<'a> {
    rest: Option<&'a [u8]>,
}

impl<'a> ListValues<'a> {
    pub(super) const fn of(field: &'a [u8]) -> Self {
        Self { rest: Some(field) }
    }
}

impl<'a> Iterator for ListValues<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.rest.take()?;
        let end = value_end(rest);
        self.rest = rest.get(end + 1..);
        Some(trim(&rest[..end]))
    }
}

/// Where the first value of a list ends: at its comma or at the end.
pub(super) fn value_end(list: &[u8]) -> usize {
    if memchr::memchr(b',', list).is_none() {
        return list.len();
    }
    let mut at = 0;
    while let Some(found) = memchr::memchr3(b',', b'"', b'<', &list[at..]) {
        let here = at + found;
        at = match list[here] {
            b',' => return here,
            b'"' => quoted_end(&list[here..]).map_or(list.len(), |end| here + end),
            _ => memchr::memchr(b'>', &list[here..]).map_or(list.len(), |end| here + end + 1),
        };
    }
    list.len()
}

/// The value on one line: each fold becomes one space (RFC 3261 section 7.3.1), and so does a CR
/// or LF that is none.
pub(super) fn unfold(value: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr2(b'\r', b'\n', value).is_none() {
        return Cow::Borrowed(value);
    }
    let mut line = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some(fold) = memchr::memchr2(b'\r', b'\n', rest) {
        line.extend_from_slice(trim_end(&rest[..fold]));
        line.push(b' ');
        rest = trim_start(&rest[fold..]);
    }
    line.extend_from_slice(rest);
    Cow::Owned(line)
}
