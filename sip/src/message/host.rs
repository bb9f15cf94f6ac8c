//! Hosts in URIs and Via: a name, an IPv4 address, an IPv6 reference (RFC 3261 section 25.1, RFC
//! 5118).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::error::ValueError;
use super::scan::decimal;

/// A host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Host<'a> {
    /// A domain name as written; compare without regard to case.
    Name(&'a [u8]),
    /// An IPv4 address.
    V4(Ipv4Addr),
    /// An IPv6 address; brackets around it in a message.
    V6(Ipv6Addr),
}

impl<'a> Host<'a> {
    /// Reads a host; an IPv6 address with or without its brackets.
    pub fn parse(text: &'a [u8]) -> Result<Self, ValueError> {
        if let Some(inner) = text.strip_prefix(b"[") {
            let inner = inner.strip_suffix(b"]").ok_or(ValueError::Host)?;
            return ipv6(inner).map(Self::V6).ok_or(ValueError::Host);
        }
        if memchr::memchr(b':', text).is_some() {
            return ipv6(text).map(Self::V6).ok_or(ValueError::Host);
        }
        if text
            .iter()
            .all(|byte| byte.is_ascii_digit() || *byte == b'.')
        {
            let text = str::from_utf8(text).map_err(|_| ValueError::Host)?;
            return text.parse().map(Self::V4).map_err(|_| ValueError::Host);
        }
        // An underscore is no host character, yet names with one are in use.
        let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(byte);
        if text.iter().all(is_name) && text[0] != b'.' {
            return Ok(Self::Name(text));
        }
        Err(ValueError::Host)
    }

    /// The address, if it is one.
    pub const fn ip(self) -> Option<IpAddr> {
        match self {
            Self::Name(_) => None,
            Self::V4(ip) => Some(IpAddr::V4(ip)),
            Self::V6(ip) => Some(IpAddr::V6(ip)),
        }
    }

    /// True if both mean the same host: names without regard to case.
    pub fn same_as(self, other: Host<'_>) -> bool {
        match (self, other) {
            (Self::Name(a), Host::Name(b)) => a.eq_ignore_ascii_case(b),
            (a, b) => a.ip().is_some() && a.ip() == b.ip(),
        }
    }
}

/// As it is written in a URI or Via.
impl fmt::Display for Host<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "{}", name.escape_ascii()),
            Self::V4(ip) => write!(f, "{ip}"),
            Self::V6(ip) => write!(f, "[{ip}]"),
        }
    }
}

fn ipv6(text: &[u8]) -> Option<Ipv6Addr> {
    let text = str::from_utf8(text).ok()?;
    // RFC 5118 section 4.10: the grammar of RFC 3261 allows three colons ahead of an IPv4 part,
    // and "implementations MUST be liberal" about them.
    text.parse()
        .ok()
        .or_else(|| text.replacen(":::", "::", 1).parse().ok())
}

/// Splits `host[:port]`.
pub(super) fn host_and_port(text: &[u8]) -> Result<(Host<'_>, Option<u16>), ValueError> {
    let host_end = match text.first() {
        Some(b'[') => memchr::memchr(b']', text).ok_or(ValueError::Host)? + 1,
        _ => memchr::memchr(b':', text).unwrap_or(text.len()),
    };
    let (host, rest) = text.split_at(host_end);
    if host.is_empty() {
        return Err(ValueError::Host);
    }
    let port = match rest.split_first() {
        None => None,
        Some((b':', digits)) => Some(port(digits)?),
        Some(_) => return Err(ValueError::Host),
    };
    Ok((Host::parse(host)?, port))
}

/// A port, 1 to 65535.
pub(super) fn port(digits: &[u8]) -> Result<u16, ValueError> {
    let number = decimal(digits).and_then(|number| u16::try_from(number).ok());
    number.filter(|number| *number != 0).ok_or(ValueError::Port)
}
