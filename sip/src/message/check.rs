//! "Reasonable syntax" (RFC 3261 section 16.3 step 1): what may be passed on at all.
//!
//! A message is refused where the next hop could read it differently from us, or where it lacks
//! what a transaction needs. Headers that are not ours to understand are not looked at.

use super::value::{NameAddr, ValueError};
use super::{HeaderName, Message, Method, Start, Uri, is_token};

/// Why a message is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// The status code of the answer.
    pub status: u16,
    /// Its reason phrase.
    pub reason: &'static str,
}

const fn fault(reason: &'static str) -> Fault {
    Fault {
        status: 400,
        reason,
    }
}

/// Headers that may stand in a message only once (section 7.3.1).
const SINGLE: [(HeaderName, &str); 6] = [
    (HeaderName::From, "Several From"),
    (HeaderName::To, "Several To"),
    (HeaderName::CallId, "Several Call-ID"),
    (HeaderName::CSeq, "Several CSeq"),
    (HeaderName::MaxForwards, "Several Max-Forwards"),
    (HeaderName::ContentType, "Several Content-Type"),
];

impl Message {
    /// Whether the message may be passed on.
    pub fn check(&self) -> Result<(), Fault> {
        self.check_start_line()?;
        if self.fields.iter().any(|field| field.malformed) {
            return Err(fault("Bad Header Field"));
        }
        for (name, reason) in SINGLE {
            if self.count(name) > 1 {
                return Err(fault(reason));
            }
        }
        if self.content_length_fault() {
            return Err(fault("Bad Content-Length"));
        }
        self.check_mandatory()?;
        self.check_addresses()
    }

    fn check_start_line(&self) -> Result<(), Fault> {
        let (Start::Request { version, .. } | Start::Response { version, .. }) = &self.start;
        if !self.version_ok() {
            let spaced = self.bytes[version.clone()]
                .trim_ascii()
                .eq_ignore_ascii_case(b"SIP/2.0");
            return Err(if spaced {
                fault("Bad Request Line")
            } else {
                Fault {
                    status: 505,
                    reason: "Version Not Supported",
                }
            });
        }
        let Start::Request { method, .. } = &self.start else {
            return Ok(());
        };
        if !self.bytes[method.clone()].iter().all(is_token) {
            return Err(fault("Bad Method"));
        }
        let text = self.request_uri();
        if text.iter().any(|byte| byte.is_ascii_whitespace()) {
            return Err(fault("Bad Request Line"));
        }
        match Uri::parse(text) {
            Ok(uri) if uri.headers.is_none() => Ok(()),
            Ok(_) | Err(_) => Err(fault("Bad Request-URI")),
        }
    }

    fn check_mandatory(&self) -> Result<(), Fault> {
        for via in self.vias() {
            via.map_err(|_| fault("Bad Via"))?;
        }
        self.top_via().map_err(|_| fault("Bad Via"))?;
        self.call_id().map_err(|_| fault("Bad Call-ID"))?;
        self.max_forwards().map_err(|_| fault("Bad Max-Forwards"))?;
        let (_, method) = self.cseq().map_err(|_| fault("Bad CSeq"))?;
        if self.is_request() && method != self.method() {
            return Err(fault("CSeq Does Not Match Method"));
        }
        Ok(())
    }

    fn check_addresses(&self) -> Result<(), Fault> {
        self.from().and_then(sound).map_err(|_| fault("Bad From"))?;
        self.to().and_then(sound).map_err(|_| fault("Bad To"))?;
        let star = self.contact_is_star();
        if star && self.is_request() && self.method() != Method::Register {
            return Err(fault("Bad Contact"));
        }
        for contact in self.contacts() {
            contact.and_then(sound).map_err(|_| fault("Bad Contact"))?;
        }
        for route in self.routes() {
            route.and_then(sound).map_err(|_| fault("Bad Route"))?;
        }
        for route in self.record_routes() {
            route
                .and_then(sound)
                .map_err(|_| fault("Bad Record-Route"))?;
        }
        Ok(())
    }
}

fn sound(address: NameAddr<'_>) -> Result<(), ValueError> {
    Uri::parse(address.uri).map(|_| ())
}
