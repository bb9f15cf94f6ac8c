//! The names of headers and methods.

/// A request method (RFC 3261 section 7.1); names are case-sensitive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each variant is the method of that name")]
pub enum Method<'a> {
    Invite,
    Ack,
    Bye,
    Cancel,
    Register,
    Options,
    Prack,
    Update,
    Info,
    Message,
    Subscribe,
    Notify,
    Refer,
    Publish,
    /// A method that has no name here.
    Other(&'a [u8]),
}

impl<'a> Method<'a> {
    /// The method of this name.
    pub const fn from_bytes(name: &'a [u8]) -> Self {
        match name {
            b"INVITE" => Self::Invite,
            b"ACK" => Self::Ack,
            b"BYE" => Self::Bye,
            b"CANCEL" => Self::Cancel,
            b"REGISTER" => Self::Register,
            b"OPTIONS" => Self::Options,
            b"PRACK" => Self::Prack,
            b"UPDATE" => Self::Update,
            b"INFO" => Self::Info,
            b"MESSAGE" => Self::Message,
            b"SUBSCRIBE" => Self::Subscribe,
            b"NOTIFY" => Self::Notify,
            b"REFER" => Self::Refer,
            b"PUBLISH" => Self::Publish,
            other => Self::Other(other),
        }
    }

    /// Its name.
    pub const fn as_bytes(&self) -> &'a [u8] {
        match self {
            Self::Invite => b"INVITE",
            Self::Ack => b"ACK",
            Self::Bye => b"BYE",
            Self::Cancel => b"CANCEL",
            Self::Register => b"REGISTER",
            Self::Options => b"OPTIONS",
            Self::Prack => b"PRACK",
            Self::Update => b"UPDATE",
            Self::Info => b"INFO",
            Self::Message => b"MESSAGE",
            Self::Subscribe => b"SUBSCRIBE",
            Self::Notify => b"NOTIFY",
            Self::Refer => b"REFER",
            Self::Publish => b"PUBLISH",
            Self::Other(name) => name,
        }
    }
}

/// A header that this crate reads or writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each variant is the header of that name")]
pub enum HeaderName {
    Via,
    From,
    To,
    CallId,
    CSeq,
    MaxForwards,
    Contact,
    Route,
    RecordRoute,
    ContentLength,
    ContentType,
    Expires,
    MinExpires,
    ProxyRequire,
    Require,
    Supported,
    Unsupported,
    Authorization,
    ProxyAuthorization,
    WwwAuthenticate,
    ProxyAuthenticate,
    Path,
    Timestamp,
    /// Any other header: kept, never read.
    Other,
}

/// Header, full name, compact form (RFC 3261 section 7.3.3).
const NAMES: [(HeaderName, &str, Option<u8>); 23] = [
    (HeaderName::Via, "Via", Some(b'v')),
    (HeaderName::From, "From", Some(b'f')),
    (HeaderName::To, "To", Some(b't')),
    (HeaderName::CallId, "Call-ID", Some(b'i')),
    (HeaderName::CSeq, "CSeq", None),
    (HeaderName::MaxForwards, "Max-Forwards", None),
    (HeaderName::Contact, "Contact", Some(b'm')),
    (HeaderName::Route, "Route", None),
    (HeaderName::RecordRoute, "Record-Route", None),
    (HeaderName::ContentLength, "Content-Length", Some(b'l')),
    (HeaderName::ContentType, "Content-Type", Some(b'c')),
    (HeaderName::Expires, "Expires", None),
    (HeaderName::MinExpires, "Min-Expires", None),
    (HeaderName::ProxyRequire, "Proxy-Require", None),
    (HeaderName::Require, "Require", None),
    (HeaderName::Supported, "Supported", Some(b'k')),
    (HeaderName::Unsupported, "Unsupported", None),
    (HeaderName::Authorization, "Authorization", None),
    (HeaderName::ProxyAuthorization, "Proxy-Authorization", None),
    (HeaderName::WwwAuthenticate, "WWW-Authenticate", None),
    (HeaderName::ProxyAuthenticate, "Proxy-Authenticate", None),
    (HeaderName::Path, "Path", None),
    (HeaderName::Timestamp, "Timestamp", None),
];

impl HeaderName {
    /// The header of this name or compact form, in any case.
    pub fn from_bytes(name: &[u8]) -> Self {
        let compact = match name {
            [letter] => Some(letter.to_ascii_lowercase()),
            _ => None,
        };
        NAMES
            .iter()
            .find(|(_, full, short)| {
                (compact.is_some() && *short == compact)
                    || (full.len() == name.len() && name.eq_ignore_ascii_case(full.as_bytes()))
            })
            .map_or(Self::Other, |(header, _, _)| *header)
    }

    /// The full name; empty for [`HeaderName::Other`].
    pub fn full(self) -> &'static str {
        NAMES
            .iter()
            .find(|(header, _, _)| *header == self)
            .map_or("", |(_, full, _)| full)
    }
}
