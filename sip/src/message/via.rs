//! Via (RFC 3261 section 20.42, `rport` of RFC 3581).

use super::error::ValueError;
use super::host::{Host, host_and_port, port};
use super::params::Parameters;
use super::scan::{ByteClass, TOKEN, byte_class, is_lws, trim, trim_start};

/// The branches of RFC 3261 start so (section 8.1.1.7).
pub(super) const MAGIC_COOKIE: &[u8] = b"z9hG4bK";

/// One Via value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Via<'a> {
    /// The transport as written: `UDP`, `TCP`, or one that we do not know.
    pub transport: &'a [u8],
    /// The host of sent-by.
    pub host: Host<'a>,
    /// The port of sent-by.
    pub port: Option<u16>,
    /// The parameters.
    pub params: Parameters<'a>,
    /// Sent-by as written, as far as one piece: `host`, `host:port`, `[v6]:port`.
    pub sent_by: &'a [u8],
    pub(super) branch: Option<&'a [u8]>,
    /// There is another branch behind the first.
    pub(super) branch_again: bool,
}

const fn belongs_to_sent_by(byte: u8) -> bool {
    !is_lws(byte) && byte != b';'
}

/// What stands in one piece between the white space and the parameters.
static SENT_BY: ByteClass = byte_class!(belongs_to_sent_by);

impl<'a> Via<'a> {
    /// Reads one value of a Via header.
    pub fn parse(value: &'a [u8]) -> Result<Self, ValueError> {
        let value = trim(value);
        if value.is_empty() {
            return Err(ValueError::Empty);
        }
        let (protocol, rest) = token(value)?;
        let (_version, rest) = token(slash(rest)?)?;
        let (transport, rest) = token(slash(rest)?)?;
        if !protocol.eq_ignore_ascii_case(b"SIP") || !rest.first().is_some_and(|&b| is_lws(b)) {
            return Err(ValueError::Token);
        }
        let rest = trim_start(rest);
        let (mut sent_by, mut rest) = rest.split_at(SENT_BY.prefix(rest));
        // COLON allows white space on both sides of it.
        let spaced_port = trim_start(rest).strip_prefix(b":").map(trim_start);
        let spaced_port = spaced_port.or_else(|| sent_by.ends_with(b":").then(|| trim_start(rest)));
        let mut late_port = None;
        if let Some(after) = spaced_port {
            let end = after
                .iter()
                .position(|byte| !byte.is_ascii_digit())
                .unwrap_or(after.len());
            late_port = Some(port(&after[..end])?);
            sent_by = sent_by.strip_suffix(b":").unwrap_or(sent_by);
            rest = &after[end..];
        }
        let (host, near_port) = host_and_port(sent_by)?;
        if near_port.is_some() && late_port.is_some() {
            return Err(ValueError::Port);
        }
        let (params, branch) = Parameters::of_header(rest, b"branch")?;
        Ok(Self {
            transport,
            host,
            port: near_port.or(late_port),
            branch: branch.value,
            branch_again: branch.again,
            params,
            sent_by,
        })
    }

    /// False where white space stands before or behind the port's colon.
    pub(super) fn sent_by_holds_port(&self) -> bool {
        !self.sent_by.ends_with(b"]") && memchr::memchr(b':', self.sent_by).is_some()
    }

    /// The branch parameter; `None` if absent or empty.
    pub fn branch(&self) -> Option<&'a [u8]> {
        self.branch.filter(|branch| !branch.is_empty())
    }

    /// True if the branch is one of RFC 3261: the magic cookie and something behind it.
    pub fn has_magic_branch(&self) -> bool {
        self.branch().is_some_and(|branch| {
            let cookie = branch.get(..MAGIC_COOKIE.len());
            cookie.is_some_and(|cookie| cookie.eq_ignore_ascii_case(MAGIC_COOKIE))
                && branch.len() > MAGIC_COOKIE.len()
        })
    }

    /// The `received` parameter as written; an IPv6 address with or without brackets (RFC 5118
    /// section 4.5): [`Host::parse`] reads both.
    pub fn received(&self) -> Option<&'a [u8]> {
        self.params.get("received")
    }

    /// The `rport` parameter as written; empty where its value is asked for (RFC 3581).
    pub fn rport(&self) -> Option<&'a [u8]> {
        self.params.get("rport")
    }
}

fn token(bytes: &[u8]) -> Result<(&[u8], &[u8]), ValueError> {
    match TOKEN.prefix(bytes) {
        0 => Err(ValueError::Token),
        end => Ok(bytes.split_at(end)),
    }
}

fn slash(rest: &[u8]) -> Result<&[u8], ValueError> {
    trim_start(rest)
        .strip_prefix(b"/")
        .map(trim_start)
        .ok_or(ValueError::Token)
}
