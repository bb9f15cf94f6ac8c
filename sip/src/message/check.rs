//! Reasonable syntax (RFC 3261 section 16.3 step 1): may this message be forwarded?
//!
//! Refused is what the next hop could read differently: a header it may take for another, a
//! value that several fields give, a length that lies, brackets and quotes that do not match.
//! What a proxy has no use for is not looked at.

use super::Message;
use super::error::ValueError;
use super::header_name::HeaderName;
use super::method::Method;
use super::name_addr::NameAddr;
use super::via::{MAGIC_COOKIE, Via};

/// Why a message is refused; a request is answered with it, a response is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fault {
    /// 400, 501 or 505.
    pub status: u16,
    /// The reason phrase, which also names the counter.
    pub reason: &'static str,
}

const fn bad(reason: &'static str) -> Fault {
    Fault {
        status: 400,
        reason,
    }
}

/// Without one of these there is no message (RFC 3261 section 8.1.1). Max-Forwards is left out:
/// RFC 2543 did not have it, and a proxy adds it (section 16.6 step 3).
const MANDATORY: [(HeaderName, &str); 5] = [
    (HeaderName::Via, "Missing Via"),
    (HeaderName::From, "Missing From"),
    (HeaderName::To, "Missing To"),
    (HeaderName::CallId, "Missing Call-ID"),
    (HeaderName::CSeq, "Missing CSeq"),
];

/// More than one of these and nobody knows which one counts (RFC 4475 section 3.3.8).
const SINGLE: [(HeaderName, &str); 6] = [
    (HeaderName::From, "Several From"),
    (HeaderName::To, "Several To"),
    (HeaderName::CallId, "Several Call-ID"),
    (HeaderName::CSeq, "Several CSeq"),
    (HeaderName::MaxForwards, "Several Max-Forwards"),
    (HeaderName::ContentLength, "Several Content-Length"),
];

impl Message {
    /// Says whether the message may be processed and forwarded, or with what it is to be refused.
    pub fn check(&self) -> Result<(), Fault> {
        if !self.version_ok() {
            return Err(Fault {
                status: 505,
                reason: "Version Not Supported",
            });
        }
        self.check_head()?;
        if self.is_request() {
            self.check_request_uri()?;
        }
        self.check_vias()?;
        self.check_parties()?;
        self.check_numbers()?;
        self.check_routes()?;
        self.check_contacts()
    }

    fn check_head(&self) -> Result<(), Fault> {
        use super::HeadFault as H;
        match self.head_fault() {
            None => {}
            Some(H::StartLineSpacing) => return Err(bad("Bad Spacing In Request Line")),
            Some(H::NoColon) => return Err(bad("Header Line Without Colon")),
            Some(H::FieldName) => return Err(bad("Bad Header Name")),
            Some(H::BareCr) => return Err(bad("Bare CR In Header")),
            Some(H::Unterminated) => return Err(bad("Header Section Not Ended")),
        }
        for (name, reason) in MANDATORY {
            if !self.index.there.contains(name) {
                return Err(bad(reason));
            }
        }
        for (name, reason) in SINGLE {
            if self.index.several.contains(name) {
                return Err(bad(reason));
            }
        }
        use super::ContentLengthFault as C;
        match self.content_length_error() {
            None => Ok(()),
            Some(C::Unusable) => Err(bad("Bad Content-Length")),
            Some(C::TooLarge) => Err(bad("Content-Length Too Large")),
            Some(C::Conflicting) => Err(bad("Conflicting Content-Length")),
            Some(C::Truncated) => Err(bad("Content-Length Exceeds Body")),
        }
    }

    /// A scheme that we do not route is not refused here: that is 416 and the proxy's business.
    fn check_request_uri(&self) -> Result<(), Fault> {
        let uri = self.uri().map_err(|_| bad("Bad Request-URI"))?;
        match uri.headers {
            // RFC 3261 table 1: no header fields in a Request-URI.
            Some(_) => Err(bad("Header Fields In Request-URI")),
            None => Ok(()),
        }
    }

    fn check_vias(&self) -> Result<(), Fault> {
        let is_bad = |via: Result<Via<'_>, ValueError>| via.map_or(true, |via| via.branch_again);
        let top = self.top_via();
        let mut others = self.raw_values(HeaderName::Via).skip(1).map(Via::parse);
        if is_bad(top) || others.any(is_bad) {
            return Err(bad("Bad Via"));
        }
        let top_branch = top.ok().and_then(|via| via.branch());
        // Two such requests would be one transaction (RFC 4475 section 3.2.1).
        if top_branch.is_some_and(|branch| branch.eq_ignore_ascii_case(MAGIC_COOKIE)) {
            return Err(bad("Empty Via Branch"));
        }
        Ok(())
    }

    fn check_parties(&self) -> Result<(), Fault> {
        let is_bad = |party: Result<NameAddr<'_>, ValueError>| {
            party.map_or(true, |party| {
                party.tag_again || party.tag.is_some_and(<[u8]>::is_empty)
            })
        };
        if is_bad(self.from()) {
            return Err(bad("Bad From"));
        }
        if is_bad(self.to()) {
            return Err(bad("Bad To"));
        }
        self.call_id().map(|_| ()).map_err(|_| bad("Bad Call-ID"))
    }

    fn check_numbers(&self) -> Result<(), Fault> {
        let (_, cseq_method) = self.cseq().map_err(|_| bad("Bad CSeq"))?;
        self.max_forwards().map_err(|_| bad("Bad Max-Forwards"))?;
        if !self.is_request() || cseq_method == self.method() {
            return Ok(());
        }
        match self.method() {
            // RFC 4475 section 3.1.2.18: 501 for a method that we do not know either.
            Method::Other(_) => Err(Fault {
                status: 501,
                reason: "Not Implemented",
            }),
            Method::Invite
            | Method::Ack
            | Method::Bye
            | Method::Cancel
            | Method::Register
            | Method::Options
            | Method::Prack
            | Method::Update
            | Method::Info
            | Method::Message
            | Method::Subscribe
            | Method::Notify
            | Method::Refer
            | Method::Publish => Err(bad("CSeq Method Mismatch")),
        }
    }

    fn check_routes(&self) -> Result<(), Fault> {
        if self.routes().any(|route| route.is_err()) {
            return Err(bad("Bad Route"));
        }
        if self.record_routes().any(|route| route.is_err()) {
            return Err(bad("Bad Record-Route"));
        }
        Ok(())
    }

    /// `*` stands alone and in a REGISTER (RFC 3261 section 10.2.2).
    fn check_contacts(&self) -> Result<(), Fault> {
        let (mut count, mut star, mut unreadable) = (0, false, false);
        for value in self.raw_values(HeaderName::Contact) {
            count += 1;
            match value {
                b"*" => star = true,
                _ => unreadable |= NameAddr::parse(value).is_err(),
            }
        }
        if star {
            let alone = count == 1;
            let register = self.is_request() && self.method() == Method::Register;
            return if alone && register {
                Ok(())
            } else {
                Err(bad("Bad Contact"))
            };
        }
        if unreadable {
            return Err(bad("Bad Contact"));
        }
        Ok(())
    }
}
