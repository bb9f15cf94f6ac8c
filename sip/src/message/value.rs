//! Header values: lists, parameters, name-addr, Via.

use std::borrow::Cow;
use std::ops::Range;

use super::uri::Host;
use super::{is_space, is_token};

/// Why a header value is not what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// The header is not there.
    #[error("missing")]
    Missing,
    /// It does not follow its grammar.
    #[error("bad syntax")]
    Syntax,
    /// A quoted string or an angle bracket is not closed.
    #[error("unbalanced")]
    Unbalanced,
    /// A number is out of its range.
    #[error("bad number")]
    Number,
    /// A host is neither an address nor a name.
    #[error("bad host")]
    Host,
}

/// The octets less surrounding space, folding included.
pub(super) fn trim(value: &[u8]) -> &[u8] {
    let start = value
        .iter()
        .position(|byte| !is_space(*byte))
        .unwrap_or(value.len());
    let end = value
        .iter()
        .rposition(|byte| !is_space(*byte))
        .map_or(start, |last| last + 1);
    &value[start..end]
}

/// Digits and nothing else, as a number; leading zeros are fine, 20 digits are not.
pub(super) fn decimal(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 19 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(
        value
            .iter()
            .fold(0, |number, digit| number * 10 + u64::from(digit - b'0')),
    )
}

/// A folded value on one line: line ends become spaces.
pub(super) fn unfold(value: &[u8]) -> Cow<'_, [u8]> {
    if value.iter().any(|byte| matches!(byte, b'\r' | b'\n')) {
        let spaced = value
            .iter()
            .map(|byte| if is_space(*byte) { b' ' } else { *byte });
        Cow::Owned(spaced.collect())
    } else {
        Cow::Borrowed(value)
    }
}

/// Where the values of a comma-separated list are, trimmed; empty ones are left out.
pub(super) fn split_list(value: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < value.len() {
            let end = find_unquoted(value, at, |byte, angle| byte == b',' && !angle);
            let item = trimmed_span(value, at..end);
            at = end + 1;
            if !item.is_empty() {
                return Some(item);
            }
        }
        None
    })
}

fn trimmed_span(value: &[u8], span: Range<usize>) -> Range<usize> {
    let inner = &value[span.clone()];
    let lead = inner
        .iter()
        .position(|byte| !is_space(*byte))
        .unwrap_or(inner.len());
    span.start + lead..span.start + lead + trim(inner).len()
}

/// The first octet from `from` on that is outside of quotes and satisfies `wanted`, which is
/// also told whether it stands between angle brackets; the length if there is none.
fn find_unquoted(value: &[u8], from: usize, wanted: impl Fn(u8, bool) -> bool) -> usize {
    let (mut quoted, mut escaped, mut angle) = (false, false, false);
    for (index, byte) in value.iter().enumerate().skip(from) {
        if quoted {
            quoted = escaped || *byte != b'"';
            escaped = *byte == b'\\' && !escaped;
            continue;
        }
        if wanted(*byte, angle) {
            return index;
        }
        match byte {
            b'"' => quoted = true,
            b'<' => angle = true,
            b'>' => angle = false,
            _ => {}
        }
    }
    value.len()
}

/// The `;name=value` parameters behind a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parameters<'a>(&'a [u8]);

impl<'a> Parameters<'a> {
    pub(super) const fn new(text: &'a [u8]) -> Self {
        Self(text)
    }

    /// Name and value of each, in order; a parameter without `=` has no value.
    pub fn iter(&self) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + use<'a> {
        let text = self.0;
        let mut at = 0;
        std::iter::from_fn(move || {
            while at < text.len() {
                let end = find_unquoted(text, at, |byte, _| byte == b';');
                let item = trim(&text[at..end]);
                at = end + 1;
                if !item.is_empty() {
                    return Some(split_parameter(item));
                }
            }
            None
        })
    }

    /// The value of the first parameter of that name; empty for one without `=`.
    pub fn get(&self, name: &[u8]) -> Option<&'a [u8]> {
        self.iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.unwrap_or_default())
    }

    /// The text, from behind the first semicolon on.
    pub const fn as_bytes(&self) -> &'a [u8] {
        self.0
    }
}

fn split_parameter(item: &[u8]) -> (&[u8], Option<&[u8]>) {
    match item.iter().position(|byte| *byte == b'=') {
        Some(equals) => (trim(&item[..equals]), Some(trim(&item[equals + 1..]))),
        None => (item, None),
    }
}

/// `"Display" <uri>;params` or `uri;params` (RFC 3261 section 20.10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NameAddr<'a> {
    /// The display name with its quotes; empty if there is none.
    pub display: &'a [u8],
    /// The URI without its brackets.
    pub uri: &'a [u8],
    /// The parameters of the header, not of the URI.
    pub params: Parameters<'a>,
}

impl<'a> NameAddr<'a> {
    /// Reads one value.
    pub fn parse(value: &'a [u8]) -> Result<Self, ValueError> {
        let value = trim(value);
        if !balanced(value) {
            return Err(ValueError::Unbalanced);
        }
        let open = find_unquoted(value, 0, |byte, _| byte == b'<');
        let parsed = if open < value.len() {
            Self::parse_bracketed(value, open)?
        } else {
            Self::parse_bare(value)?
        };
        let broken = parsed.uri.is_empty()
            || parsed
                .uri
                .iter()
                .any(|byte| is_space(*byte) || byte.is_ascii_control());
        if broken {
            Err(ValueError::Syntax)
        } else {
            Ok(parsed)
        }
    }

    fn parse_bracketed(value: &'a [u8], open: usize) -> Result<Self, ValueError> {
        let display = trim(&value[..open]);
        let quoted = display.first() == Some(&b'"');
        let bad = |byte: &u8| matches!(byte, b',' | b';' | b':' | b'@' | b'>' | b'"');
        let unquoted_end = quoted.then(|| closing_quote(display)).flatten();
        if (quoted && unquoted_end != Some(display.len())) || (!quoted && display.iter().any(bad)) {
            return Err(ValueError::Syntax);
        }
        let close = value[open..]
            .iter()
            .position(|byte| *byte == b'>')
            .ok_or(ValueError::Unbalanced)?;
        let rest = trim(&value[open + close + 1..]);
        if !rest.is_empty() && rest[0] != b';' {
            return Err(ValueError::Syntax);
        }
        let uri = &value[open + 1..open + close];
        Ok(Self {
            display,
            uri,
            params: Parameters::new(rest.get(1..).unwrap_or_default()),
        })
    }

    /// "If the URI … contains a comma, question mark or semicolon, the URI MUST be enclosed in
    /// angle brackets" (section 20.10): so a semicolon here begins header parameters.
    fn parse_bare(value: &'a [u8]) -> Result<Self, ValueError> {
        let end = value
            .iter()
            .position(|byte| *byte == b';')
            .unwrap_or(value.len());
        let uri = trim(&value[..end]);
        if uri
            .iter()
            .any(|byte| matches!(byte, b',' | b'?' | b'"' | b'>'))
        {
            return Err(ValueError::Syntax);
        }
        Ok(Self {
            display: b"",
            uri,
            params: Parameters::new(value.get(end + 1..).unwrap_or_default()),
        })
    }

    /// The `tag` parameter.
    pub fn tag(&self) -> Option<&'a [u8]> {
        self.params.get(b"tag").filter(|tag| !tag.is_empty())
    }
}

fn closing_quote(quoted: &[u8]) -> Option<usize> {
    let mut escaped = false;
    for (index, byte) in quoted.iter().enumerate().skip(1) {
        if *byte == b'"' && !escaped {
            return Some(index + 1);
        }
        escaped = *byte == b'\\' && !escaped;
    }
    None
}

/// True where every quoted string is closed.
fn balanced(value: &[u8]) -> bool {
    let (mut quoted, mut escaped) = (false, false);
    for byte in value {
        if *byte == b'"' && !escaped {
            quoted = !quoted;
        }
        escaped = quoted && *byte == b'\\' && !escaped;
    }
    !quoted
}

/// One Via value (RFC 3261 section 20.42).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Via<'a> {
    /// The transport's name as spelt.
    pub transport: &'a [u8],
    /// The host of sent-by.
    pub host: Host<'a>,
    /// The port of sent-by.
    pub port: Option<u16>,
    /// The parameters.
    pub params: Parameters<'a>,
}

impl<'a> Via<'a> {
    /// Reads one value; space is allowed around its slashes and its colon.
    pub fn parse(value: &'a [u8]) -> Result<Self, ValueError> {
        if !balanced(value) {
            return Err(ValueError::Unbalanced);
        }
        let (protocol, rest) = split_once(value, b'/')?;
        let (version, rest) = split_once(rest, b'/')?;
        if !trim(protocol).eq_ignore_ascii_case(b"SIP") || trim(version) != b"2.0" {
            return Err(ValueError::Syntax);
        }
        let rest = trim(rest);
        let length = rest.iter().take_while(|byte| is_token(byte)).count();
        let (transport, rest) = rest.split_at(length);
        let spaced = rest.first().is_some_and(|byte| is_space(*byte));
        if transport.is_empty() || !spaced {
            return Err(ValueError::Syntax);
        }
        let end = rest
            .iter()
            .position(|byte| *byte == b';')
            .unwrap_or(rest.len());
        let (host, port) = Host::parse_with_port(trim(&rest[..end]))?;
        let params = Parameters::new(rest.get(end + 1..).unwrap_or_default());
        Ok(Self {
            transport,
            host,
            port,
            params,
        })
    }

    /// The `branch` parameter.
    pub fn branch(&self) -> Option<&'a [u8]> {
        self.params
            .get(b"branch")
            .filter(|branch| !branch.is_empty())
    }

    /// The `received` parameter.
    pub fn received(&self) -> Option<&'a [u8]> {
        self.params.get(b"received")
    }

    /// The `rport` parameter; empty where its value is asked for (RFC 3581).
    pub fn rport(&self) -> Option<&'a [u8]> {
        self.params.get(b"rport")
    }
}

fn split_once(value: &[u8], separator: u8) -> Result<(&[u8], &[u8]), ValueError> {
    let at = value
        .iter()
        .position(|byte| *byte == separator)
        .ok_or(ValueError::Syntax)?;
    Ok((&value[..at], &value[at + 1..]))
}
