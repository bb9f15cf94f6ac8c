//! URIs: sip and sips in full (RFC 3261 section 19.1, RFC 5118), others as far as their scheme.

use super::error::ValueError;
use super::host::{Host, host_and_port};
use super::params::Parameters;
use super::scan::{ByteClass, byte_class, find};

/// A URI. For schemes other than sip and sips only `scheme`, `opaque` and `tel`'s parameters mean
/// anything; the host is then an empty name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uri<'a> {
    /// The scheme as written, without its colon.
    pub scheme: &'a [u8],
    /// All that follows the scheme's colon.
    pub opaque: &'a [u8],
    /// The user as written, escapes and all.
    pub user: Option<&'a [u8]>,
    /// The password.
    pub password: Option<&'a [u8]>,
    /// The host.
    pub host: Host<'a>,
    /// The port.
    pub port: Option<u16>,
    /// The parameters.
    pub params: Parameters<'a>,
    /// What follows the question mark.
    pub headers: Option<&'a [u8]>,
}

impl<'a> Uri<'a> {
    /// Reads a URI without brackets around it.
    pub fn parse(text: &'a [u8]) -> Result<Self, ValueError> {
        let end = scheme_end(text).ok_or(ValueError::Uri)?;
        let uri = Self {
            scheme: &text[..end],
            opaque: &text[end + 1..],
            user: None,
            password: None,
            host: Host::Name(b""),
            port: None,
            params: Parameters::default(),
            headers: None,
        };
        if uri.is_sip() {
            return uri.with_sip_parts();
        }
        if !URI.holds_all(uri.opaque) {
            return Err(ValueError::Uri);
        }
        if uri.scheme.eq_ignore_ascii_case(b"tel") {
            let (number, params) = split_before(uri.opaque, b';');
            return Ok(Self {
                user: Some(number),
                params: Parameters::of_uri(params),
                ..uri
            });
        }
        Ok(uri)
    }

    fn with_sip_parts(mut self) -> Result<Self, ValueError> {
        let opaque = self.opaque;
        let marks = Marks::of(opaque)?;
        let mut host_start = 0;
        if let Some(at) = marks.at {
            let user_end = marks.password.unwrap_or(at);
            if user_end == 0 {
                return Err(ValueError::Uri);
            }
            self.user = Some(&opaque[..user_end]);
            self.password = opaque[user_end..at].get(1..);
            host_start = at + 1;
        }
        let headers_start = marks.headers.unwrap_or(opaque.len());
        let params_start = marks.params.unwrap_or(headers_start);
        self.headers = opaque[headers_start..].get(1..);
        self.params = Parameters::of_uri(&opaque[params_start..headers_start]);
        (self.host, self.port) = host_and_port(&opaque[host_start..params_start])?;
        Ok(self)
    }

    /// True for sip and sips.
    pub fn is_sip(&self) -> bool {
        self.scheme.eq_ignore_ascii_case(b"sip") || self.is_sips()
    }

    /// True for sips.
    pub fn is_sips(&self) -> bool {
        self.scheme.eq_ignore_ascii_case(b"sips")
    }

    /// The value of a URI parameter; empty for a flag.
    pub fn param(&self, name: impl AsRef<[u8]>) -> Option<&'a [u8]> {
        self.params.get(name)
    }

    /// The `transport` parameter.
    pub fn transport(&self) -> Option<&'a [u8]> {
        self.param("transport")
    }

    /// The `maddr` parameter.
    pub fn maddr(&self) -> Option<&'a [u8]> {
        self.param("maddr")
    }
}

/// What ends the parts of a sip URI, found in one pass: the message has some ten URIs to read.
#[derive(Default)]
struct Marks {
    /// The colon before the password.
    password: Option<usize>,
    /// The end of user and password.
    at: Option<usize>,
    /// The first semicolon behind the host.
    params: Option<usize>,
    /// The question mark.
    headers: Option<usize>,
}

impl Marks {
    /// Of what follows the scheme; an error where something stands there that may not.
    fn of(opaque: &[u8]) -> Result<Self, ValueError> {
        let mut marks = Self::default();
        let mut colon = None;
        for (here, byte) in opaque.iter().enumerate() {
            match MEANING[usize::from(*byte)] {
                Meaning::Text => {}
                Meaning::Alien => return Err(ValueError::Uri),
                // Neither parameters nor headers may hold an `@`, so the only one ends the user.
                Meaning::At if marks.at.is_some() => return Err(ValueError::Uri),
                Meaning::At => {
                    marks = Self {
                        at: Some(here),
                        password: colon,
                        ..Self::default()
                    };
                }
                Meaning::Colon => colon = colon.or(Some(here)),
                Meaning::Semicolon if marks.headers.is_none() => {
                    marks.params = marks.params.or(Some(here));
                }
                Meaning::Semicolon => {}
                Meaning::Question => marks.headers = marks.headers.or(Some(here)),
            }
        }
        Ok(marks)
    }
}

#[derive(Clone, Copy)]
enum Meaning {
    Text,
    Alien,
    At,
    Colon,
    Semicolon,
    Question,
}

static MEANING: [Meaning; 256] = {
    let mut meanings = [Meaning::Alien; 256];
    let mut byte = 0;
    while byte < 256 {
        meanings[byte] = match byte as u8 {
            b'@' => Meaning::At,
            b':' => Meaning::Colon,
            b';' => Meaning::Semicolon,
            b'?' => Meaning::Question,
            other if belongs_to_uri(other) => Meaning::Text,
            _ => Meaning::Alien,
        };
        byte += 1;
    }
    meanings
};

/// True for a URI of this scheme, which may be unreadable otherwise.
pub(crate) fn is_sips(uri: &[u8]) -> bool {
    uri.get(..5)
        .is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"sips:"))
}

/// Where the scheme ends: at the colon (RFC 3986 section 3.1).
pub(super) fn scheme_end(uri: &[u8]) -> Option<usize> {
    if let [b's', b'i', b'p', b':', _, ..] = uri {
        return Some(3);
    }
    let end = SCHEME.prefix(uri);
    let starts_well = uri.first().is_some_and(u8::is_ascii_alphabetic);
    (starts_well && uri.get(end) == Some(&b':') && end + 1 < uri.len()).then_some(end)
}

const fn belongs_to_scheme(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.')
}

static SCHEME: ByteClass = byte_class!(belongs_to_scheme);

/// Not white space, not a control character, and no bracket or quote around it.
const fn belongs_to_uri(byte: u8) -> bool {
    byte > b' ' && !matches!(byte, b'<' | b'>' | b'"' | 0x7f)
}

/// The bytes that may stand in a URI.
pub(super) static URI: ByteClass = byte_class!(belongs_to_uri);

fn split_before(text: &[u8], byte: u8) -> (&[u8], &[u8]) {
    text.split_at(find(byte, text).unwrap_or(text.len()))
}
