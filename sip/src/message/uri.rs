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
        if !URI.holds_all(text) {
            return Err(ValueError::Uri);
        }
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
        // Neither parameters nor headers may hold an `@`, so the only one ends the user.
        let rest = match find(b'@', self.opaque) {
            None => self.opaque,
            Some(at) => {
                let (user, password) = split_before(&self.opaque[..at], b':');
                if user.is_empty() || find(b'@', &self.opaque[at + 1..]).is_some() {
                    return Err(ValueError::Uri);
                }
                self.user = Some(user);
                self.password = password.get(1..);
                &self.opaque[at + 1..]
            }
        };
        let (rest, headers) = split_before(rest, b'?');
        let (host, params) = split_before(rest, b';');
        self.headers = headers.get(1..);
        self.params = Parameters::of_uri(params);
        (self.host, self.port) = host_and_port(host)?;
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

/// Where the scheme ends: at the colon (RFC 3986 section 3.1).
pub(super) fn scheme_end(uri: &[u8]) -> Option<usize> {
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
