//! Hosts in URIs and Via: a name, an IPv4 address, an IPv6 reference (RFC 3261 section 25.1, RFC
//! 5118).

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::error::ValueError;
use super::scan::{ByteClass, byte_class, decimal, find};
use crate::text::push_ip;

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
        if text.contains(&b':') {
            return ipv6(text).map(Self::V6).ok_or(ValueError::Host);
        }
        Self::without_colon(text)
    }

    fn without_colon(text: &'a [u8]) -> Result<Self, ValueError> {
        match text {
            [] | [b'.', ..] => Err(ValueError::Host),
            [b'0'..=b'9', ..] if NUMERIC.holds_all(text) => {
                ipv4(text).map(Self::V4).ok_or(ValueError::Host)
            }
            _ if NAME.holds_all(text) => Ok(Self::Name(text)),
            _ => Err(ValueError::Host),
        }
    }

    /// The address, if it is one.
    pub const fn ip(self) -> Option<IpAddr> {
        match self {
            Self::Name(_) => None,
            Self::V4(ip) => Some(IpAddr::V4(ip)),
            Self::V6(ip) => Some(IpAddr::V6(ip)),
        }
    }

    /// As [`Display`](fmt::Display) writes it, without its machinery where that is not needed.
    pub(crate) fn text(self) -> Cow<'a, str> {
        match self {
            Self::Name(name) if NAME.holds_all(name) => String::from_utf8_lossy(name),
            Self::V4(address) => {
                let mut text = Vec::with_capacity(15);
                push_ip(&mut text, address.into());
                Cow::Owned(String::from_utf8_lossy(&text).into_owned())
            }
            Self::Name(_) | Self::V6(_) => Cow::Owned(self.to_string()),
        }
    }

    /// True if both mean the same host: names without regard to case.
    pub fn same_as(self, other: Host<'_>) -> bool {
        match (self, other) {
            (Self::Name(a), Host::Name(b)) => same_name(a, b),
            (a, b) => a.ip().is_some() && a.ip() == b.ip(),
        }
    }
}

/// Two domain names, most of which are written in the same case.
pub(crate) fn same_name(a: &[u8], b: &[u8]) -> bool {
    a == b || a.eq_ignore_ascii_case(b)
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

const fn is_numeric(byte: u8) -> bool {
    byte.is_ascii_digit() || byte == b'.'
}

/// An underscore is no host character, yet names with one are in use.
const fn belongs_to_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_')
}

static NUMERIC: ByteClass = byte_class!(is_numeric);
static NAME: ByteClass = byte_class!(belongs_to_name);

/// Four numbers up to 255 without leading zeros, as the standard library reads them; a message has
/// some ten of these.
fn ipv4(text: &[u8]) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut rest = text;
    for (index, octet) in octets.iter_mut().enumerate() {
        if index > 0 {
            rest = rest.strip_prefix(b".")?;
        }
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if !(1..=3).contains(&digits) || (digits > 1 && rest[0] == b'0') {
            return None;
        }
        let number = rest[..digits]
            .iter()
            .fold(0_u16, |sum, digit| sum * 10 + u16::from(digit - b'0'));
        *octet = u8::try_from(number).ok()?;
        rest = &rest[digits..];
    }
    rest.is_empty().then(|| octets.into())
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
    let in_brackets = text.first() == Some(&b'[');
    let host_end = if in_brackets {
        find(b']', text).ok_or(ValueError::Host)? + 1
    } else {
        find(b':', text).unwrap_or(text.len())
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
    let host = if in_brackets {
        Host::parse(host)?
    } else {
        Host::without_colon(host)?
    };
    Ok((host, port))
}

/// A port, 1 to 65535.
pub(super) fn port(digits: &[u8]) -> Result<u16, ValueError> {
    let number = decimal(digits).and_then(|number| u16::try_from(number).ok());
    number.filter(|number| *number != 0).ok_or(ValueError::Port)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_ipv4_address_is_read_as_the_standard_library_does(
            text in "[0-9]{0,4}(\\.[0-9]{0,4}){0,4}\\.?"
        ) {
            prop_assert_eq!(ipv4(text.as_bytes()), text.parse().ok());
        }

        #[test]
        fn every_ipv4_address_is_read(address: Ipv4Addr) {
            prop_assert_eq!(ipv4(address.to_string().as_bytes()), Some(address));
        }
    }
}
