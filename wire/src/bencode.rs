//! Bencode, the encoding of rtpengine's `ng` messages: integers, byte strings, lists, dictionaries.
//!
//! ```text
//! i-42e            the integer -42
//! 4:ping           the byte string "ping"
//! l1:a1:be         the list ["a", "b"]
//! d7:command4:pinge    the dictionary {"command": "ping"}
//! ```
//!
//! [`Value::parse`] judges a message once, from end to end; what it gives are views of the bytes where
//! they lie, so reading allocates nothing. A sender chooses neither how deep we go ([`MAX_DEPTH`]) nor how
//! much we look at ([`MAX_LEN`]). The keys of a dictionary may come in any order, as those of rtpengine and
//! of the proxies do; of equal keys the first counts.
//!
//! ```
//! use wire::bencode::{self, Value};
//!
//! let mut message = Vec::new();
//! bencode::write_dictionary(&mut message, |request| {
//!     request.bytes("command", "offer");
//!     request.list("received-from", |list| {
//!         list.bytes("IP4").bytes("192.0.2.7");
//!     });
//! });
//! let parsed = Value::parse(&message)?;
//! let request = parsed.dictionary().ok_or(bencode::Error::Kind(b' '))?;
//! assert_eq!(request.bytes("command"), Some(b"offer".as_slice()));
//! assert_eq!(request.list("received from").map(|list| list.iter().count()), Some(2));
//! # Ok::<(), bencode::Error>(())
//! ```

use thiserror::Error;

mod write;

pub use write::{DictionaryWriter, ListWriter, write_dictionary};

/// How many lists and dictionaries may be inside each other. rtpengine's statistics have about 10.
pub const MAX_DEPTH: usize = 24;

/// The longest message that is looked at: more than a UDP datagram holds.
pub const MAX_LEN: usize = 64 * 1024;

/// Why bytes are not one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum Error {
    /// The bytes end before the value does.
    #[error("truncated")]
    Truncated,
    /// Longer than [`MAX_LEN`].
    #[error("longer than 65536 octets")]
    TooLong,
    /// More than [`MAX_DEPTH`] lists and dictionaries inside each other.
    #[error("nested too deeply")]
    TooDeep,
    /// No value begins with this octet.
    #[error("no value begins with octet {0}")]
    Kind(u8),
    /// Not an integer of 64 bits in its shortest form.
    #[error("bad integer")]
    Integer,
    /// Not the length of a byte string in its shortest form, or a length beyond [`MAX_LEN`].
    #[error("bad length")]
    Length,
    /// A key that is not a byte string.
    #[error("a key is not a byte string")]
    Key,
    /// A key without a value.
    #[error("a key has no value")]
    NoValue,
    /// Octets after the value.
    #[error("octets after the value")]
    TrailingBytes,
}

impl Error {
    /// A name to count it under.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::TooLong => "too_long",
            Self::TooDeep => "too_deep",
            Self::Kind(_) => "unknown_kind",
            Self::Integer => "bad_integer",
            Self::Length => "bad_length",
            Self::Key => "bad_key",
            Self::NoValue => "key_without_value",
            Self::TrailingBytes => "trailing_bytes",
        }
    }
}

/// One value; a view of the bytes it was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// An integer.
    Integer(i64),
    /// A byte string, of whatever octets.
    Bytes(&'a [u8]),
    /// A list.
    List(List<'a>),
    /// A dictionary.
    Dictionary(Dictionary<'a>),
}

impl<'a> Value<'a> {
    /// Reads bytes that are one value and nothing else.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        if bytes.len() > MAX_LEN {
            return Err(Error::TooLong);
        }
        match value(bytes, 0)? {
            (value, []) => Ok(value),
            _ => Err(Error::TrailingBytes),
        }
    }

    /// The integer, if it is one.
    pub const fn integer(self) -> Option<i64> {
        match self {
            Self::Integer(integer) => Some(integer),
            Self::Bytes(_) | Self::List(_) | Self::Dictionary(_) => None,
        }
    }

    /// The byte string, if it is one.
    pub const fn bytes(self) -> Option<&'a [u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Integer(_) | Self::List(_) | Self::Dictionary(_) => None,
        }
    }

    /// The list, if it is one.
    pub const fn list(self) -> Option<List<'a>> {
        match self {
            Self::List(list) => Some(list),
            Self::Integer(_) | Self::Bytes(_) | Self::Dictionary(_) => None,
        }
    }

    /// The dictionary, if it is one.
    pub const fn dictionary(self) -> Option<Dictionary<'a>> {
        match self {
            Self::Dictionary(dictionary) => Some(dictionary),
            Self::Integer(_) | Self::Bytes(_) | Self::List(_) => None,
        }
    }
}

/// A list that has been judged already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct List<'a>(&'a [u8]);

impl<'a> List<'a> {
    /// Its values, in order.
    pub fn iter(self) -> impl Iterator<Item = Value<'a>> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (next, after) = value(rest, 1).ok()?;
            rest = after;
            Some(next)
        })
    }
}

/// A dictionary that has been judged already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dictionary<'a>(&'a [u8]);

impl<'a> Dictionary<'a> {
    /// Its keys and values, in the order in which they came.
    pub fn iter(self) -> impl Iterator<Item = (&'a [u8], Value<'a>)> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (key, after) = byte_string(rest).ok()?;
            let (next, after) = value(after, 1).ok()?;
            rest = after;
            Some((key, next))
        })
    }

    /// The value of a key. Space, `-` and `_` are one and the same in a key, as in rtpengine.
    pub fn get(self, key: &str) -> Option<Value<'a>> {
        self.iter()
            .find(|(name, _)| is_key(name, key))
            .map(|(_, value)| value)
    }

    /// The integer of a key.
    pub fn integer(self, key: &str) -> Option<i64> {
        self.get(key)?.integer()
    }

    /// The byte string of a key.
    pub fn bytes(self, key: &str) -> Option<&'a [u8]> {
        self.get(key)?.bytes()
    }

    /// The byte string of a key, where it is text.
    pub fn text(self, key: &str) -> Option<&'a str> {
        std::str::from_utf8(self.bytes(key)?).ok()
    }

    /// The list of a key.
    pub fn list(self, key: &str) -> Option<List<'a>> {
        self.get(key)?.list()
    }

    /// The dictionary of a key.
    pub fn dictionary(self, key: &str) -> Option<Self> {
        self.get(key)?.dictionary()
    }
}

fn is_key(name: &[u8], key: &str) -> bool {
    let plain = |octet: &u8| match octet {
        b' ' | b'-' | b'_' => b' ',
        other => *other,
    };
    name.len() == key.len() && name.iter().map(plain).eq(key.as_bytes().iter().map(plain))
}

/// A value, and what comes after it.
type Read<'a> = Result<(Value<'a>, &'a [u8]), Error>;

/// The value at the start of `bytes`, and what comes after it.
fn value(bytes: &[u8], depth: usize) -> Read<'_> {
    match bytes.split_first().ok_or(Error::Truncated)? {
        (b'i', rest) => integer(rest).map(|(integer, rest)| (Value::Integer(integer), rest)),
        (b'0'..=b'9', _) => byte_string(bytes).map(|(bytes, rest)| (Value::Bytes(bytes), rest)),
        (b'l', rest) => {
            let (content, rest) = content(rest, depth, value)?;
            Ok((Value::List(List(content)), rest))
        }
        (b'd', rest) => {
            let (content, rest) = content(rest, depth, entry)?;
            Ok((Value::Dictionary(Dictionary(content)), rest))
        }
        (kind, _) => Err(Error::Kind(*kind)),
    }
}

/// What is inside a list or dictionary, without its `e`, and what comes after that.
fn content<'a>(
    bytes: &'a [u8],
    depth: usize,
    item: fn(&'a [u8], usize) -> Read<'a>,
) -> Result<(&'a [u8], &'a [u8]), Error> {
    if depth >= MAX_DEPTH {
        return Err(Error::TooDeep);
    }
    let mut rest = bytes;
    loop {
        match rest.split_first().ok_or(Error::Truncated)? {
            (b'e', after) => return Ok((&bytes[..bytes.len() - rest.len()], after)),
            _ => rest = item(rest, depth + 1)?.1,
        }
    }
}

fn entry(bytes: &[u8], depth: usize) -> Read<'_> {
    if !bytes.first().is_some_and(u8::is_ascii_digit) {
        return Err(Error::Key);
    }
    match byte_string(bytes)?.1 {
        [b'e', ..] => Err(Error::NoValue),
        rest => value(rest, depth),
    }
}

/// The digits before `end`, in their shortest form, and what comes after it.
fn digits(bytes: &[u8], end: u8, bad: Error) -> Result<(&str, &[u8]), Error> {
    let length = bytes.iter().take_while(|octet| octet.is_ascii_digit());
    let (digits, rest) = bytes.split_at(length.count());
    match rest.split_first() {
        None => Err(Error::Truncated),
        Some((octet, after)) if *octet == end => match digits {
            [] | [b'0', _, ..] => Err(bad),
            _ => Ok((std::str::from_utf8(digits).map_err(|_| bad)?, after)),
        },
        Some(_) => Err(bad),
    }
}

fn integer(bytes: &[u8]) -> Result<(i64, &[u8]), Error> {
    let unsigned = bytes.strip_prefix(b"-").unwrap_or(bytes);
    let (digits, rest) = digits(unsigned, b'e', Error::Integer)?;
    let magnitude: i128 = digits.parse().map_err(|_| Error::Integer)?;
    let negative = unsigned.len() < bytes.len();
    if negative && magnitude == 0 {
        return Err(Error::Integer);
    }
    let signed = if negative { -magnitude } else { magnitude };
    let integer = i64::try_from(signed).map_err(|_| Error::Integer)?;
    Ok((integer, rest))
}

fn byte_string(bytes: &[u8]) -> Result<(&[u8], &[u8]), Error> {
    let (digits, rest) = digits(bytes, b':', Error::Length)?;
    let length: usize = digits.parse().map_err(|_| Error::Length)?;
    if length > MAX_LEN {
        return Err(Error::Length);
    }
    rest.split_at_checked(length).ok_or(Error::Truncated)
}

#[cfg(test)]
mod tests;
