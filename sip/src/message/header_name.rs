//! Header names: case does not matter, and some have a one-letter form (RFC 3261 sections 7.3.1
//! and 7.3.3, and the registry of header fields that it began).

/// A header this crate has a name for; only those that something here reads, writes or that a
/// response, a log or a test wants to name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each variant is the header of its name")]
pub enum HeaderName {
    Accept,
    AlertInfo,
    Allow,
    AllowEvents,
    AuthenticationInfo,
    Authorization,
    CallId,
    CallInfo,
    Contact,
    ContentDisposition,
    ContentEncoding,
    ContentLength,
    ContentType,
    CSeq,
    Date,
    Diversion,
    ErrorInfo,
    Event,
    Expires,
    From,
    HistoryInfo,
    MaxBreadth,
    MaxForwards,
    MinExpires,
    MinSe,
    PAssertedIdentity,
    PPreferredIdentity,
    Path,
    Privacy,
    ProxyAuthenticate,
    ProxyAuthorization,
    ProxyRequire,
    RAck,
    Reason,
    RecordRoute,
    ReferTo,
    ReferredBy,
    Replaces,
    ReplyTo,
    Require,
    RetryAfter,
    Route,
    RSeq,
    Server,
    ServiceRoute,
    SessionExpires,
    SipEtag,
    SipIfMatch,
    Subject,
    SubscriptionState,
    Supported,
    Timestamp,
    To,
    Unsupported,
    UserAgent,
    Via,
    Warning,
    WwwAuthenticate,
    /// Any header not listed here.
    Other,
}

const LONGEST: usize = 20;

/// Some of the headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct NameSet(u64);

const _: () = assert!(HeaderName::COUNT <= 64, "a bit for each");

impl NameSet {
    pub(super) const fn contains(self, name: HeaderName) -> bool {
        self.0 & 1 << name as u64 != 0
    }

    pub(super) const fn insert(&mut self, name: HeaderName) {
        self.0 |= 1 << name as u64;
    }
}

impl HeaderName {
    /// How many there are, [`HeaderName::Other`] included.
    pub(super) const COUNT: usize = Self::Other as usize + 1;

    /// The header that a name as written means.
    pub fn from_bytes(name: &[u8]) -> Self {
        if let Some(usual) = Self::from_usual_case(name) {
            return usual;
        }
        let mut lower = [0; LONGEST];
        let Some(lower) = lower.get_mut(..name.len()) else {
            return Self::Other;
        };
        lower.copy_from_slice(name);
        lower.make_ascii_lowercase();
        Self::from_lower_case(lower)
    }

    /// Those that most messages have, spelled as in the standard: nearly all lines begin so.
    const fn from_usual_case(name: &[u8]) -> Option<Self> {
        Some(match name {
            b"Via" => Self::Via,
            b"Max-Forwards" => Self::MaxForwards,
            b"From" => Self::From,
            b"To" => Self::To,
            b"Call-ID" => Self::CallId,
            b"CSeq" => Self::CSeq,
            b"Contact" => Self::Contact,
            b"Route" => Self::Route,
            b"Record-Route" => Self::RecordRoute,
            b"Authorization" => Self::Authorization,
            b"Proxy-Authorization" => Self::ProxyAuthorization,
            b"Expires" => Self::Expires,
            b"Allow" => Self::Allow,
            b"Supported" => Self::Supported,
            b"User-Agent" => Self::UserAgent,
            b"Content-Type" => Self::ContentType,
            b"Content-Length" => Self::ContentLength,
            _ => return None,
        })
    }

    fn from_lower_case(name: &[u8]) -> Self {
        match name {
            b"accept" => Self::Accept,
            b"alert-info" => Self::AlertInfo,
            b"allow" => Self::Allow,
            b"allow-events" | b"u" => Self::AllowEvents,
            b"authentication-info" => Self::AuthenticationInfo,
            b"authorization" => Self::Authorization,
            b"call-id" | b"i" => Self::CallId,
            b"call-info" => Self::CallInfo,
            b"contact" | b"m" => Self::Contact,
            b"content-disposition" => Self::ContentDisposition,
            b"content-encoding" | b"e" => Self::ContentEncoding,
            b"content-length" | b"l" => Self::ContentLength,
            b"content-type" | b"c" => Self::ContentType,
            b"cseq" => Self::CSeq,
            b"date" => Self::Date,
            b"diversion" => Self::Diversion,
            b"error-info" => Self::ErrorInfo,
            b"event" | b"o" => Self::Event,
            b"expires" => Self::Expires,
            b"from" | b"f" => Self::From,
            b"history-info" => Self::HistoryInfo,
            b"max-breadth" => Self::MaxBreadth,
            b"max-forwards" => Self::MaxForwards,
            b"min-expires" => Self::MinExpires,
            b"min-se" => Self::MinSe,
            b"p-asserted-identity" => Self::PAssertedIdentity,
            b"p-preferred-identity" => Self::PPreferredIdentity,
            b"path" => Self::Path,
            b"privacy" => Self::Privacy,
            b"proxy-authenticate" => Self::ProxyAuthenticate,
            b"proxy-authorization" => Self::ProxyAuthorization,
            b"proxy-require" => Self::ProxyRequire,
            b"rack" => Self::RAck,
            b"reason" => Self::Reason,
            b"record-route" => Self::RecordRoute,
            b"refer-to" | b"r" => Self::ReferTo,
            b"referred-by" | b"b" => Self::ReferredBy,
            b"replaces" => Self::Replaces,
            b"reply-to" => Self::ReplyTo,
            b"require" => Self::Require,
            b"retry-after" => Self::RetryAfter,
            b"route" => Self::Route,
            b"rseq" => Self::RSeq,
            b"server" => Self::Server,
            b"service-route" => Self::ServiceRoute,
            b"session-expires" | b"x" => Self::SessionExpires,
            b"sip-etag" => Self::SipEtag,
            b"sip-if-match" => Self::SipIfMatch,
            b"subject" | b"s" => Self::Subject,
            b"subscription-state" => Self::SubscriptionState,
            b"supported" | b"k" => Self::Supported,
            b"timestamp" => Self::Timestamp,
            b"to" | b"t" => Self::To,
            b"unsupported" => Self::Unsupported,
            b"user-agent" => Self::UserAgent,
            b"via" | b"v" => Self::Via,
            b"warning" => Self::Warning,
            b"www-authenticate" => Self::WwwAuthenticate,
            _ => Self::Other,
        }
    }

    /// The full name as RFC 3261 spells it; empty for [`HeaderName::Other`].
    pub const fn full(self) -> &'static str {
        match self {
            Self::Accept => "Accept",
            Self::AlertInfo => "Alert-Info",
            Self::Allow => "Allow",
            Self::AllowEvents => "Allow-Events",
            Self::AuthenticationInfo => "Authentication-Info",
            Self::Authorization => "Authorization",
            Self::CallId => "Call-ID",
            Self::CallInfo => "Call-Info",
            Self::Contact => "Contact",
            Self::ContentDisposition => "Content-Disposition",
            Self::ContentEncoding => "Content-Encoding",
            Self::ContentLength => "Content-Length",
            Self::ContentType => "Content-Type",
            Self::CSeq => "CSeq",
            Self::Date => "Date",
            Self::Diversion => "Diversion",
            Self::ErrorInfo => "Error-Info",
            Self::Event => "Event",
            Self::Expires => "Expires",
            Self::From => "From",
            Self::HistoryInfo => "History-Info",
            Self::MaxBreadth => "Max-Breadth",
            Self::MaxForwards => "Max-Forwards",
            Self::MinExpires => "Min-Expires",
            Self::MinSe => "Min-SE",
            Self::PAssertedIdentity => "P-Asserted-Identity",
            Self::PPreferredIdentity => "P-Preferred-Identity",
            Self::Path => "Path",
            Self::Privacy => "Privacy",
            Self::ProxyAuthenticate => "Proxy-Authenticate",
            Self::ProxyAuthorization => "Proxy-Authorization",
            Self::ProxyRequire => "Proxy-Require",
            Self::RAck => "RAck",
            Self::Reason => "Reason",
            Self::RecordRoute => "Record-Route",
            Self::ReferTo => "Refer-To",
            Self::ReferredBy => "Referred-By",
            Self::Replaces => "Replaces",
            Self::ReplyTo => "Reply-To",
            Self::Require => "Require",
            Self::RetryAfter => "Retry-After",
            Self::Route => "Route",
            Self::RSeq => "RSeq",
            Self::Server => "Server",
            Self::ServiceRoute => "Service-Route",
            Self::SessionExpires => "Session-Expires",
            Self::SipEtag => "SIP-ETag",
            Self::SipIfMatch => "SIP-If-Match",
            Self::Subject => "Subject",
            Self::SubscriptionState => "Subscription-State",
            Self::Supported => "Supported",
            Self::Timestamp => "Timestamp",
            Self::To => "To",
            Self::Unsupported => "Unsupported",
            Self::UserAgent => "User-Agent",
            Self::Via => "Via",
            Self::Warning => "Warning",
            Self::WwwAuthenticate => "WWW-Authenticate",
            Self::Other => "",
        }
    }
}

impl AsRef<str> for HeaderName {
    fn as_ref(&self) -> &str {
        self.full()
    }
}
