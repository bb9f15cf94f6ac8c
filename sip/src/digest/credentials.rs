//! The value of Authorization and Proxy-Authorization, read as hostile input (RFC 7616 section
//! 3.4, RFC 3261 section 25.1).
//!
//! One pass over the value and no copy, unless a name has an escape in it. A quote that never
//! closes, a parameter that is there twice and a number that is none make the value malformed;
//! parameters that nobody knows are passed over.

use std::borrow::Cow;

use thiserror::Error;

use super::{Algorithm, Hash, hex_digit, unescaped};
use crate::message::scan::{TOKEN, is_lws, quoted_end, trim, trim_start};

/// Names and client nonces that are longer are not ours and not looked up.
const MAX_TEXT: usize = 256;

/// The longest name of a parameter that means something: `algorithm`.
const LONGEST_NAME: usize = 9;

/// Why credentials for our realm cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{}", self.reason())]
pub enum Malformed {
    /// Not `name=value, name="value"`.
    Syntax,
    /// A parameter that is there twice.
    Twice,
    /// One of `username`, `nonce`, `uri`, `response`, `cnonce` and `nc` is not there.
    Missing,
    /// No `qop`, or another than `auth` (RFC 2069 had none).
    Qop,
    /// An `nc` that is not eight hexadecimal digits, or a `response` of another length than the
    /// algorithm's.
    Number,
}

impl Malformed {
    /// The reason phrase of a 400.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Syntax => "Malformed Credentials",
            Self::Twice => "Credentials Name A Parameter Twice",
            Self::Missing => "Incomplete Credentials",
            Self::Qop => "Credentials Without qop=auth",
            Self::Number => "Bad Number In Credentials",
        }
    }
}

/// What a user agent answers to a challenge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials<'a> {
    /// The user.
    pub username: Cow<'a, [u8]>,
    /// The nonce as it was sent.
    pub nonce: &'a [u8],
    /// The URI that the hash is about.
    pub uri: Cow<'a, [u8]>,
    /// The algorithm; MD5 where none is named (RFC 7616 section 3.3).
    pub algorithm: Algorithm,
    /// The nonce count.
    pub nc: u32,
    pub(super) nc_text: &'a [u8],
    pub(super) cnonce: &'a [u8],
    pub(super) response: Hash,
}

/// The parameters, each at most once; quoted ones without their quotes, escapes still inside.
#[derive(Default)]
struct Raw<'a> {
    username: Option<&'a [u8]>,
    realm: Option<&'a [u8]>,
    nonce: Option<&'a [u8]>,
    uri: Option<&'a [u8]>,
    response: Option<&'a [u8]>,
    algorithm: Option<&'a [u8]>,
    cnonce: Option<&'a [u8]>,
    qop: Option<&'a [u8]>,
    nc: Option<&'a [u8]>,
}

impl<'a> Raw<'a> {
    /// `None` for another scheme than Digest.
    fn of(value: &'a [u8]) -> Option<Result<Self, Malformed>> {
        let value = trim(value);
        let end = value.iter().position(|&byte| is_lws(byte));
        let (scheme, rest) = value.split_at(end.unwrap_or(value.len()));
        scheme
            .eq_ignore_ascii_case(b"Digest")
            .then(|| Self::read(rest))
    }

    fn parameter(&mut self, name: &[u8]) -> Option<&mut Option<&'a [u8]>> {
        // Nearly all write them in lower case.
        let mut lower = [0; LONGEST_NAME];
        let lower = if name.iter().any(u8::is_ascii_uppercase) {
            let lower = lower.get_mut(..name.len())?;
            lower.copy_from_slice(name);
            lower.make_ascii_lowercase();
            lower
        } else {
            name
        };
        match lower {
            b"username" => Some(&mut self.username),
            b"realm" => Some(&mut self.realm),
            b"nonce" => Some(&mut self.nonce),
            b"uri" => Some(&mut self.uri),
            b"response" => Some(&mut self.response),
            b"algorithm" => Some(&mut self.algorithm),
            b"cnonce" => Some(&mut self.cnonce),
            b"qop" => Some(&mut self.qop),
            b"nc" => Some(&mut self.nc),
            _ => None,
        }
    }

    fn read(mut rest: &'a [u8]) -> Result<Self, Malformed> {
        let mut raw = Self::default();
        loop {
            // A list may have empty elements (RFC 7230 section 7, which RFC 7616 builds on).
            rest = trim_start(rest);
            while let [b',', after @ ..] = rest {
                rest = trim_start(after);
            }
            if rest.is_empty() {
                return Ok(raw);
            }
            let (Parameter { name, value }, after) = parameter(rest)?;
            if let Some(place) = raw.parameter(name)
                && place.replace(value).is_some()
            {
                return Err(Malformed::Twice);
            }
            rest = trim_start(after);
            if !matches!(rest, [] | [b',', ..]) {
                return Err(Malformed::Syntax);
            }
        }
    }
}

impl<'a> Credentials<'a> {
    /// Reads the value of a header field; `None` for another scheme or another realm.
    pub fn parse(value: &'a [u8], realm: &[u8]) -> Result<Option<Self>, Malformed> {
        let Some(raw) = Raw::of(value) else {
            return Ok(None);
        };
        let raw = raw?;
        let named = raw.realm.ok_or(Malformed::Missing)?;
        if *unescaped(named) != *realm {
            return Ok(None);
        }
        let algorithm = match raw.algorithm {
            None => Algorithm::Md5,
            // One that we do not know is none that we have asked for.
            Some(token) => match Algorithm::from_token(token) {
                Some(algorithm) => algorithm,
                None => return Ok(None),
            },
        };
        Self::complete(&raw, algorithm).map(Some)
    }

    /// True where the value of a header field is for this realm, and can be read so far.
    pub fn are_for(value: &[u8], realm: &[u8]) -> bool {
        let raw = Raw::of(value).and_then(Result::ok);
        let named = raw.and_then(|raw| raw.realm);
        named.is_some_and(|named| *unescaped(named) == *realm)
    }

    fn complete(raw: &Raw<'a>, algorithm: Algorithm) -> Result<Self, Malformed> {
        if !raw.qop.is_some_and(|qop| qop.eq_ignore_ascii_case(b"auth")) {
            return Err(Malformed::Qop);
        }
        let short = |text: Option<&'a [u8]>| {
            let text = text.ok_or(Malformed::Missing)?;
            if text.len() > MAX_TEXT {
                return Err(Malformed::Syntax);
            }
            Ok(text)
        };
        let nc_text = raw.nc.ok_or(Malformed::Missing)?;
        let response = raw.response.ok_or(Malformed::Missing)?;
        // "LHEX": yet some write it in capitals.
        let response = Hash::from_hex(response, algorithm).ok_or(Malformed::Number)?;
        Ok(Self {
            username: unescaped(short(raw.username)?),
            nonce: short(raw.nonce)?,
            uri: unescaped(raw.uri.ok_or(Malformed::Missing)?),
            algorithm,
            nc: count(nc_text).ok_or(Malformed::Number)?,
            nc_text,
            cnonce: short(raw.cnonce)?,
            response,
        })
    }
}

/// One parameter; the quotes around its value are gone.
struct Parameter<'a> {
    name: &'a [u8],
    value: &'a [u8],
}

/// The first parameter, and what follows.
fn parameter(text: &[u8]) -> Result<(Parameter<'_>, &[u8]), Malformed> {
    let (name, rest) = text.split_at(TOKEN.prefix(text));
    let rest = trim_start(rest).strip_prefix(b"=").map(trim_start);
    let rest = rest.filter(|_| !name.is_empty()).ok_or(Malformed::Syntax)?;
    if rest.first() == Some(&b'"') {
        let end = quoted_end(rest).map_err(|_| Malformed::Syntax)?;
        let value = &rest[1..end - 1];
        return Ok((Parameter { name, value }, &rest[end..]));
    }
    let end = rest
        .iter()
        .position(|&byte| is_lws(byte) || matches!(byte, b',' | b'"'))
        .unwrap_or(rest.len());
    match rest.split_at(end) {
        ([], _) => Err(Malformed::Syntax),
        (value, after) => Ok((Parameter { name, value }, after)),
    }
}

/// `nc-value = 8LHEX`, above 0.
fn count(text: &[u8]) -> Option<u32> {
    if text.len() != 8 {
        return None;
    }
    let number = text.iter().try_fold(0_u32, |number, &digit| {
        Some(number << 4 | u32::from(hex_digit(digit)?))
    })?;
    (number > 0).then_some(number)
}
