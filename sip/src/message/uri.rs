//! URIs and hosts (RFC 3261 section 19.1, RFC 5118).

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::value::{Parameters, ValueError, decimal, trim};

/// The host of a URI or of a sent-by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Host<'a> {
    /// An IPv4 address.
    V4(Ipv4Addr),
    /// An IPv6 reference, without its brackets.
    V6(Ipv6Addr),
    /// A name, as spelt.
    Name(&'a [u8]),
}

impl<'a> Host<'a> {
    /// Reads a host without a port.
    pub fn parse(text: &'a [u8]) -> Result<Self, ValueError> {
        if let Some(inner) = text.strip_prefix(b"[") {
            return inner
                .strip_suffix(b"]")
                .and_then(v6)
                .map(Self::V6)
                .ok_or(ValueError::Host);
        }
        let name = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        if text.is_empty() || text.len() > 255 || !text.iter().all(name) {
            return Err(ValueError::Host);
        }
        let address = std::str::from_utf8(text)
            .ok()
            .and_then(|text| text.parse().ok());
        Ok(address.map_or(Self::Name(text), Self::V4))
    }

    /// Reads `host[:port]`, with space allowed around the colon.
    pub fn parse_with_port(text: &'a [u8]) -> Result<(Self, Option<u16>), ValueError> {
        let host_end = match text.first() {
            Some(b'[') => text
                .iter()
                .position(|byte| *byte == b']')
                .map(|close| close + 1),
            _ => Some(
                text.iter()
                    .position(|byte| *byte == b':')
                    .unwrap_or(text.len()),
            ),
        };
        let (host, rest) = text.split_at(host_end.ok_or(ValueError::Host)?);
        let host = Self::parse(trim(host))?;
        match trim(rest).strip_prefix(b":") {
            None if trim(rest).is_empty() => Ok((host, None)),
            None => Err(ValueError::Host),
            Some(port) => {
                let port = decimal(trim(port)).and_then(|port| u16::try_from(port).ok());
                Ok((
                    host,
                    Some(port.filter(|port| *port > 0).ok_or(ValueError::Number)?),
                ))
            }
        }
    }
}

/// An IPv6 address; three colons are read as two (RFC 5118 section 4.10).
fn v6(text: &[u8]) -> Option<Ipv6Addr> {
    let text = std::str::from_utf8(text).ok()?;
    text.parse()
        .ok()
        .or_else(|| text.replacen(":::", "::", 1).parse().ok())
}

impl fmt::Display for Host<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(address) => address.fmt(f),
            Self::V6(address) => write!(f, "[{address}]"),
            Self::Name(name) => f.write_str(&String::from_utf8_lossy(name)),
        }
    }
}

/// A `sip:` or `sips:` URI, or the scheme of any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uri<'a> {
    /// The scheme as spelt.
    pub scheme: &'a [u8],
    /// The user part, still escaped.
    pub user: Option<&'a [u8]>,
    /// The password, still escaped.
    pub password: Option<&'a [u8]>,
    /// The host; of another scheme than SIP, an empty name.
    pub host: Host<'a>,
    /// The port.
    pub port: Option<u16>,
    /// The parameters.
    pub params: Parameters<'a>,
    /// What stands behind the question mark.
    pub headers: Option<&'a [u8]>,
}

impl<'a> Uri<'a> {
    /// Reads a URI; what is not `sip:` or `sips:` is only read up to its scheme.
    pub fn parse(text: &'a [u8]) -> Result<Self, ValueError> {
        let colon = text
            .iter()
            .position(|byte| *byte == b':')
            .ok_or(ValueError::Syntax)?;
        let (scheme, rest) = (&text[..colon], &text[colon + 1..]);
        let scheme_byte =
            |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
        let begins_well = scheme.first().is_some_and(u8::is_ascii_alphabetic);
        if !begins_well || !scheme.iter().all(scheme_byte) {
            return Err(ValueError::Syntax);
        }
        let other = Self {
            scheme,
            user: None,
            password: None,
            host: Host::Name(b""),
            port: None,
            params: Parameters::default(),
            headers: None,
        };
        if other.is_sip() {
            other.parse_sip(rest)
        } else {
            Ok(other)
        }
    }

    fn parse_sip(mut self, rest: &'a [u8]) -> Result<Self, ValueError> {
        let bad = |byte: &u8| {
            byte.is_ascii_whitespace()
                || byte.is_ascii_control()
                || matches!(byte, b'<' | b'>' | b'"')
        };
        if rest.iter().any(bad) {
            return Err(ValueError::Syntax);
        }
        // No host, parameter or header holds an "@", so the last one ends the user part.
        let host_and_more = match rest.iter().rposition(|byte| *byte == b'@') {
            Some(at) => {
                let userinfo = &rest[..at];
                let colon = userinfo.iter().position(|byte| *byte == b':');
                let user = &userinfo[..colon.unwrap_or(userinfo.len())];
                if user.is_empty() || user.contains(&b'@') {
                    return Err(ValueError::Syntax);
                }
                self.user = Some(user);
                self.password = colon.map(|colon| &userinfo[colon + 1..]);
                &rest[at + 1..]
            }
            None => rest,
        };
        let question = host_and_more.iter().position(|byte| *byte == b'?');
        self.headers = question.map(|question| &host_and_more[question + 1..]);
        let before = &host_and_more[..question.unwrap_or(host_and_more.len())];
        let semicolon = before
            .iter()
            .position(|byte| *byte == b';')
            .unwrap_or(before.len());
        self.params = Parameters::new(before.get(semicolon + 1..).unwrap_or_default());
        (self.host, self.port) = Host::parse_with_port(&before[..semicolon])?;
        Ok(self)
    }

    /// True for `sip:` and `sips:`.
    pub const fn is_sip(&self) -> bool {
        self.scheme.eq_ignore_ascii_case(b"sip") || self.scheme.eq_ignore_ascii_case(b"sips")
    }

    /// The value of a parameter; empty for one without a value.
    pub fn param(&self, name: &[u8]) -> Option<&'a [u8]> {
        self.params.get(name)
    }

    /// The `transport` parameter.
    pub fn transport(&self) -> Option<&'a [u8]> {
        self.param(b"transport")
    }
}
