//! What can be wrong with a message, by who notices it.

use thiserror::Error;

/// Nothing to answer: the octets are dropped and counted under the variant's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum ParseError {
    /// No octets, or only CRLFs: a keepalive.
    #[error("nothing but line ends")]
    Empty,
    /// Longer than [`MAX_MESSAGE`](super::MAX_MESSAGE).
    #[error("longer than 65,535 octets")]
    TooLong,
    /// The first line is no start line of SIP.
    #[error("the first line is not SIP")]
    StartLine,
    /// A status line whose code is not three digits from 100 to 699.
    #[error("status code outside 100 to 699")]
    StatusCode,
    /// A start line and nothing else.
    #[error("no header fields")]
    NoFields,
    /// More than [`MAX_FIELDS`](super::MAX_FIELDS) header fields.
    #[error("more than 512 header fields")]
    TooManyFields,
}

impl ParseError {
    /// A name for a counter.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::TooLong => "too_long",
            Self::StartLine => "start_line",
            Self::StatusCode => "status_code",
            Self::NoFields => "no_fields",
            Self::TooManyFields => "too_many_fields",
        }
    }
}

/// A head that was read although its lines are not as RFC 3261 section 7 wants them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum HeadFault {
    /// Not one space between method, Request-URI and version, or white space elsewhere.
    #[error("Bad Spacing In Request Line")]
    StartLineSpacing,
    /// A line with no colon.
    #[error("Header Line Without Colon")]
    NoColon,
    /// A header name with a character that no name can have.
    #[error("Bad Header Name")]
    FieldName,
    /// A CR that no LF follows: others may take it for a line end.
    #[error("Bare CR In Header")]
    BareCr,
    /// The empty line after the head is missing.
    #[error("Header Section Not Ended")]
    Unterminated,
}

/// Why Content-Length could not be obeyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum ContentLengthFault {
    /// Not a row of digits.
    #[error("Bad Content-Length")]
    Unusable,
    /// 2^31 or more.
    #[error("Content-Length Too Large")]
    TooLarge,
    /// Two fields that differ.
    #[error("Conflicting Content-Length")]
    Conflicting,
    /// More than there is.
    #[error("Content-Length Exceeds Body")]
    Truncated,
}

/// One header value cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum ValueError {
    /// The header is not there.
    #[error("missing")]
    Missing,
    /// The value is empty.
    #[error("empty")]
    Empty,
    /// A quote or an angle bracket that is not closed.
    #[error("unbalanced quote or bracket")]
    Unbalanced,
    /// A number that is none or out of range.
    #[error("bad number")]
    Number,
    /// A character where it may not be.
    #[error("bad character")]
    Token,
    /// A parameter list that does not parse.
    #[error("bad parameter")]
    Parameter,
    /// A URI without scheme or with characters that no URI has.
    #[error("bad URI")]
    Uri,
    /// A host that is neither a name nor an address.
    #[error("bad host")]
    Host,
    /// A port that is none.
    #[error("bad port")]
    Port,
    /// `*` where an address is wanted.
    #[error("* is no address")]
    Star,
}
