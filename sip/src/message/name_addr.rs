//! Addresses in From, To, Contact, Route and Record-Route: name-addr or addr-spec with header
//! parameters (RFC 3261 sections 20.10 and 25.1).

use super::error::ValueError;
use super::params::Parameters;
use super::scan::{quoted_end, trim, trim_start};
use super::uri::{URI, Uri, scheme_end};

/// One address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NameAddr<'a> {
    /// The display name as written, quotes included; empty if there is none.
    pub display: &'a [u8],
    /// The URI, without angle brackets.
    pub uri: &'a [u8],
    /// The header parameters, behind the URI.
    pub params: Parameters<'a>,
    pub(super) tag: Option<&'a [u8]>,
    /// There is another tag behind the first.
    pub(super) tag_again: bool,
}

impl<'a> NameAddr<'a> {
    /// Reads one value.
    pub fn parse(value: &'a [u8]) -> Result<Self, ValueError> {
        let value = trim(value);
        match value.first() {
            None => Err(ValueError::Empty),
            Some(b'"') => {
                let (display, rest) = value.split_at(quoted_end(value)?);
                let rest = trim_start(rest)
                    .strip_prefix(b"<")
                    .ok_or(ValueError::Token)?;
                Self::in_brackets(display, rest)
            }
            Some(b'<') => Self::in_brackets(b"", &value[1..]),
            Some(_) if value == b"*" => Err(ValueError::Star),
            Some(_) => match memchr::memchr3(b'<', b';', b'"', value) {
                Some(at) if value[at] == b'<' => {
                    let display = trim(&value[..at]);
                    // A comma must be quoted (RFC 4475 section 3.1.2.15).
                    if display.iter().any(|&byte| byte == b',' || byte == 0x7f) {
                        return Err(ValueError::Token);
                    }
                    Self::in_brackets(display, &value[at + 1..])
                }
                Some(_) | None => Self::bare(value),
            },
        }
    }

    fn in_brackets(display: &'a [u8], rest: &'a [u8]) -> Result<Self, ValueError> {
        let end = memchr::memchr(b'>', rest).ok_or(ValueError::Unbalanced)?;
        let (uri, rest) = (&rest[..end], &rest[end + 1..]);
        Self::checked(display, uri, rest)
    }

    /// Without brackets what follows a semicolon belongs to the header, and comma and question
    /// mark may not be there (RFC 3261 section 20.10).
    fn bare(value: &'a [u8]) -> Result<Self, ValueError> {
        let end = value
            .iter()
            .position(|&byte| byte == b';' || super::scan::is_lws(byte));
        let (uri, rest) = value.split_at(end.unwrap_or(value.len()));
        if memchr::memchr2(b'?', b',', uri).is_some() {
            return Err(ValueError::Uri);
        }
        Self::checked(b"", uri, rest)
    }

    fn checked(display: &'a [u8], uri: &'a [u8], rest: &'a [u8]) -> Result<Self, ValueError> {
        if scheme_end(uri).is_none() || !URI.holds_all(uri) {
            return Err(ValueError::Uri);
        }
        let (params, tag) = Parameters::of_header(rest, b"tag")?;
        Ok(Self {
            display,
            uri,
            params,
            tag: tag.value,
            tag_again: tag.again,
        })
    }

    /// The tag; `None` if absent or empty.
    pub fn tag(&self) -> Option<&'a [u8]> {
        self.tag.filter(|tag| !tag.is_empty())
    }

    /// The URI, read.
    pub fn parse_uri(&self) -> Result<Uri<'a>, ValueError> {
        Uri::parse(self.uri)
    }
}
