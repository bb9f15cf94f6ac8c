//! Names of users, and when two URIs are the same (RFC 3261 section 19.1.4).

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;

use crate::message::{Host, Uri};
use crate::text::push_ip;

/// A user of ours in canonical form: `user@host`, or `host` alone.
///
/// Of the URI only user and host count (RFC 3261 section 10.3 step 5): parameters, password and
/// port are dropped, `sips` and `sip` name the same user (RFC 5630), the host is in lower case,
/// the user keeps its case and loses needless escapes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AddressOfRecord(Bytes);

impl AddressOfRecord {
    /// The user that a `sip:` or `sips:` URI names; `None` for any other scheme and for what is
    /// no URI.
    pub fn from_uri(uri: &[u8]) -> Option<Self> {
        Self::of(&Uri::parse(uri).ok()?)
    }

    /// The user that a URI names; `None` unless it is `sip:` or `sips:`.
    pub(crate) fn of(uri: &Uri<'_>) -> Option<Self> {
        if !uri.is_sip() {
            return None;
        }
        let mut name = Vec::with_capacity(uri.opaque.len());
        if let Some(user) = uri.user {
            name.extend_from_slice(&unescape(user));
            name.push(b'@');
        }
        push_canonical_host(&mut name, &uri.host);
        Some(Self(Bytes::from(name)))
    }

    /// The user whose name in canonical form was written down before.
    pub(super) fn from_canonical(name: &[u8]) -> Self {
        Self(Bytes::copy_from_slice(name))
    }

    /// `user@host`; the user may hold any octet.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for AddressOfRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

/// True where two URIs are the same by RFC 3261 section 19.1.4.
///
/// Simplified in this: the values of URI headers are compared octet by octet after unescaping,
/// not by the rules of each header; URIs of other schemes are compared octet by octet but for the
/// case of the scheme. Not transitive, as the RFC says of its own rules: a parameter that only
/// one of two URIs has may be ignored.
pub fn same_uri(a: &[u8], b: &[u8]) -> bool {
    if a == b {
        return true;
    }
    let (Ok(left), Ok(right)) = (Uri::parse(a), Uri::parse(b)) else {
        return false;
    };
    if !left.scheme.eq_ignore_ascii_case(right.scheme) {
        return false;
    }
    if !left.is_sip() {
        return a[left.scheme.len()..] == b[right.scheme.len()..];
    }
    left.user.map(unescape) == right.user.map(unescape)
        && left.password.map(unescape) == right.password.map(unescape)
        && canonical_host(&left.host) == canonical_host(&right.host)
        && left.port == right.port
        && params_agree(&left, &right)
        && params_agree(&right, &left)
        && headers(&left) == headers(&right)
}

/// "A user, ttl, or method uri-parameter appearing in only one URI never matches", nor does
/// maddr; the section's examples say the same of transport.
const NEVER_IGNORED: [&[u8]; 5] = [b"user", b"ttl", b"method", b"maddr", b"transport"];

/// True where no parameter of `a` speaks against `b`.
fn params_agree(a: &Uri<'_>, b: &Uri<'_>) -> bool {
    a.params.iter().all(|(name, value)| match b.param(name) {
        Some(other) => unescape(value.unwrap_or_default()).eq_ignore_ascii_case(&unescape(other)),
        None => !NEVER_IGNORED
            .iter()
            .any(|special| name.eq_ignore_ascii_case(special)),
    })
}

/// The header components in an order of their own; they are never ignored.
fn headers(uri: &Uri<'_>) -> Vec<(Vec<u8>, Vec<u8>)> {
    let text = uri.headers.unwrap_or_default();
    let mut headers: Vec<_> = text
        .split(|byte| *byte == b'&')
        .filter(|header| !header.is_empty())
        .map(|header| {
            let equals = header
                .iter()
                .position(|byte| *byte == b'=')
                .unwrap_or(header.len());
            let (name, value) = header.split_at(equals);
            (
                unescape(name).to_ascii_lowercase(),
                unescape(value).into_owned(),
            )
        })
        .collect();
    headers.sort();
    headers
}

fn canonical_host(host: &Host<'_>) -> Vec<u8> {
    let mut name = Vec::new();
    push_canonical_host(&mut name, host);
    name
}

fn push_canonical_host(out: &mut Vec<u8>, host: &Host<'_>) {
    match host {
        Host::Name(name) => out.extend(name.iter().map(u8::to_ascii_lowercase)),
        Host::V4(address) => push_ip(out, (*address).into()),
        Host::V6(_) => out.extend_from_slice(host.to_string().as_bytes()),
    }
}

/// One form for equal texts: "Characters other than those in the "reserved" set are equivalent to
/// their ""%" HEX HEX" encoding". What must be escaped stays so, in upper case; an octet such as
/// NUL therefore never appears bare.
fn unescape(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'%') {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, tail)) = rest.split_first() {
        rest = tail;
        match (byte, tail) {
            (b'%', [high, low, after @ ..]) => match (hex(*high), hex(*low)) {
                (Some(upper), Some(lower)) if is_unreserved(upper << 4 | lower) => {
                    out.push(upper << 4 | lower);
                    rest = after;
                }
                (Some(_), Some(_)) => {
                    out.push(b'%');
                    out.extend([high.to_ascii_uppercase(), low.to_ascii_uppercase()]);
                    rest = after;
                }
                (None, _) | (_, None) => out.push(b'%'),
            },
            _ => out.push(*byte),
        }
    }
    Cow::Owned(out)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

/// `unreserved` of RFC 3261 section 25.1.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.!~*'()".contains(&byte)
}
