//! Route processing and the choice of targets (RFC 3261 sections 16.4 and 16.5).

use std::net::IpAddr;
use std::time::Instant;

use bytes::Bytes;

use super::media::Party;
use super::{Proxy, Target};
use crate::cookie::DialogCookie;
use crate::message::{HeaderName, Host, Message, Method, Uri};
use crate::registrar::{AddressOfRecord, Binding, Path};

/// What becomes of a request.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "it lives for one call")]
pub(super) enum Routed {
    /// It is for the registrar.
    Register(AddressOfRecord),
    /// It asks for our own capabilities.
    Options,
    /// It goes nowhere.
    Refused { status: u16, reason: &'static str },
    /// It goes on, less our own Route values.
    Forward {
        request: Message,
        targets: Vec<Target>,
        dialog: Option<(DialogCookie, Party)>,
    },
}

impl Proxy {
    /// The request less our own Route values, and the cookie in them.
    pub(super) fn take_own_routes(&mut self, request: &Message) -> (Message, Option<DialogCookie>) {
        let request = self.undo_strict_route(request);
        self.pop_own_routes(&request)
    }

    /// Decides where a valid request goes that has its own Route values off.
    pub(super) fn route(
        &mut self,
        request: Message,
        cookie: Option<DialogCookie>,
        now: Instant,
    ) -> Routed {
        if let Some(cookie) = cookie {
            return self.route_in_dialog(request, cookie);
        }
        let Ok(uri) = Uri::parse(request.request_uri()) else {
            return Routed::Refused {
                status: 400,
                reason: "Bad Request-URI",
            };
        };
        if !self.is_ours(&uri) || !self.is_maddr_ours(&uri) {
            self.counters.foreign += 1;
            return Routed::Refused {
                status: 403,
                reason: "Relaying Denied",
            };
        }
        match (request.method(), uri.user.is_some()) {
            (Method::Register, _) => self.address_of_record(&request),
            (Method::Options, false) => Routed::Options,
            _ => self.look_up(request, now),
        }
    }

    /// True where a URI names a served domain or one of our addresses.
    pub(super) fn is_ours(&self, uri: &Uri<'_>) -> bool {
        match &uri.host {
            Host::Name(name) => self
                .config
                .domains
                .iter()
                .any(|domain| name.eq_ignore_ascii_case(domain.as_bytes())),
            Host::V4(address) => self.is_our_address(IpAddr::V4(*address), uri.port),
            Host::V6(address) => self.is_our_address(IpAddr::V6(*address), uri.port),
        }
    }

    /// False where `maddr` sends a request of our domain to somebody else (16.4, 16.5).
    fn is_maddr_ours(&self, uri: &Uri<'_>) -> bool {
        let Some(maddr) = uri.maddr() else {
            return true;
        };
        Host::parse(maddr).is_ok_and(|host| {
            let uri = Uri { host, ..*uri };
            self.is_ours(&uri)
        })
    }

    pub(super) fn is_our_address(&self, address: IpAddr, port: Option<u16>) -> bool {
        self.config.service.iter().any(|service| {
            service.ip() == address && port.is_none_or(|port| port == service.port())
        })
    }

    /// "If the Request-URI … was placed in a Record-Route by this proxy": a strict router before
    /// us moved the real Request-URI to the end of Route (16.4).
    fn undo_strict_route(&self, request: &Message) -> Message {
        let ours = Uri::parse(request.request_uri())
            .is_ok_and(|uri| uri.param(b"lr").is_some() && self.is_ours(&uri));
        if !ours {
            return request.clone();
        }
        let values: Vec<Vec<u8>> = request
            .values(HeaderName::Route)
            .map(std::borrow::Cow::into_owned)
            .collect();
        let Some((last, rest)) = values.split_last() else {
            return request.clone();
        };
        let target = uri_of(last).to_vec();
        // As a Request-URI it must stand the check that the first one passed.
        if Uri::parse(&target).is_ok_and(|uri| uri.headers.is_some()) {
            return request.clone();
        }
        let own = [b"<".as_slice(), request.request_uri(), b">"].concat();
        let mut edit = request.edit();
        edit.remove_all(HeaderName::Route);
        for value in rest {
            edit.append(HeaderName::Route, value.clone());
        }
        // Our own value goes back to the front, where `pop_own_routes` finds its cookie.
        edit.push_front(HeaderName::Route, own);
        edit.set_request_uri(target);
        edit.finish()
    }

    /// Takes off every leading Route value that is ours: two of them where the transports of the
    /// two sides differ (RFC 5658).
    pub(super) fn pop_own_routes(&mut self, request: &Message) -> (Message, Option<DialogCookie>) {
        let mut cookie = None;
        let mut popped = 0;
        for value in request.values(HeaderName::Route) {
            let Ok(uri) = Uri::parse(uri_of(&value)) else {
                break;
            };
            if !self.is_ours(&uri) {
                break;
            }
            if let (None, Some(user)) = (cookie, uri.user) {
                match self.config.keys.open(user) {
                    Ok(opened) => cookie = Some(opened),
                    Err(_) => self.counters.bad_cookies += 1,
                }
            }
            popped += 1;
        }
        if popped == 0 {
            return (request.clone(), cookie);
        }
        let mut edit = request.edit();
        for _ in 0..popped {
            edit.remove_first_value(HeaderName::Route);
        }
        (edit.finish(), cookie)
    }

    /// A request of a dialog goes to the other party's flow. Who sent it is told by the From
    /// tag, which no NAT changes.
    fn route_in_dialog(&mut self, request: Message, cookie: DialogCookie) -> Routed {
        let from = request.from();
        // A UA of RFC 2543 may have none, and the cookie says so.
        let tag = from.as_ref().ok().and_then(|from| from.tag());
        let keys = &self.config.keys;
        let from_caller = keys.is_tag(cookie.caller_tag, tag.unwrap_or_default());
        let [caller_name, callee_name] = cookie.names;
        let (party, flow, name) = if from_caller {
            (Party::Caller, cookie.callee, callee_name)
        } else {
            (Party::Callee, cookie.caller, caller_name)
        };
        // A NAT may have given the phone another port since; it has registered from there.
        let moved = self.registrar.moved(name, &flow);
        self.counters.followed_flows += u64::from(moved.is_some());
        let flow = moved.unwrap_or(flow);
        let target = Target {
            uri: None,
            flow,
            relay: None,
            q_thousandths: 1000,
            path: Path::default(),
            instance: Bytes::new(),
            alternative: 0,
            name: 0,
        };
        Routed::Forward {
            request,
            targets: vec![target],
            dialog: Some((cookie, party)),
        }
    }

    /// "If the address-of-record is not valid for the domain in the Request-URI, the registrar MUST
    /// send a 404 (Not Found) response" (10.3 step 5).
    fn address_of_record(&self, request: &Message) -> Routed {
        let to = request.to().ok();
        let Some(aor) = to.and_then(|to| AddressOfRecord::from_uri(to.uri)) else {
            return Routed::Refused {
                status: 400,
                reason: "Bad Address-of-Record",
            };
        };
        let uri = to.and_then(|to| to.parse_uri().ok());
        if !uri.is_some_and(|uri| self.is_ours(&uri)) {
            return Routed::Refused {
                status: 404,
                reason: "Not Found",
            };
        }
        Routed::Register(aor)
    }

    /// The bindings of the user in the Request-URI.
    fn look_up(&mut self, request: Message, now: Instant) -> Routed {
        let Some(aor) = AddressOfRecord::from_uri(request.request_uri()) else {
            return Routed::Refused {
                status: 404,
                reason: "Not Found",
            };
        };
        let bindings = self.registrar.lookup_named(&aor, now);
        let targets: Vec<Target> = bindings
            .iter()
            .map(|(name, binding)| Target {
                uri: Some(request_uri_of(&binding.contact_uri)),
                flow: binding.flow,
                relay: binding.relay,
                q_thousandths: binding.q_thousandths,
                path: binding.path.clone(),
                instance: if binding.reg_id == 0 {
                    Bytes::new()
                } else {
                    binding.instance.clone()
                },
                alternative: newer_flows(&bindings, binding),
                name: *name,
            })
            .collect();
        if targets.is_empty() {
            self.counters.not_found += 1;
            return Routed::Refused {
                status: 404,
                reason: "Not Found",
            };
        }
        Routed::Forward {
            request,
            targets,
            dialog: None,
        }
    }
}

/// How many flows of the same instance have registered after this one: "the proxy MUST NOT populate
/// the target set with more than one contact with the same AOR and instance-id at a time" (RFC 5626
/// section 7).
fn newer_flows(bindings: &[(u64, Binding)], this: &Binding) -> usize {
    if this.reg_id == 0 {
        return 0;
    }
    let order = |binding: &Binding| (binding.registered_at, binding.reg_id);
    let others = bindings.iter().map(|(_, other)| other);
    let others = others.filter(|other| other.reg_id != 0);
    others
        .filter(|other| other.instance == this.instance && order(other) > order(this))
        .count()
}

/// The URI of a Route value: what stands between the angle brackets.
fn uri_of(value: &[u8]) -> &[u8] {
    let inner = value
        .iter()
        .position(|byte| *byte == b'<')
        .map_or(value, |at| &value[at + 1..]);
    inner
        .iter()
        .position(|byte| *byte == b'>')
        .map_or(inner, |at| &inner[..at])
}

/// A contact as a Request-URI: header fields and the `method` parameter are not allowed there (19.1.1
/// table 1).
fn request_uri_of(contact: &Bytes) -> Bytes {
    // A question mark in the user part is none that begins header fields.
    let host = contact.iter().position(|byte| *byte == b'@').unwrap_or(0);
    let headers = contact[host..].iter().position(|byte| *byte == b'?');
    let uri = contact.slice(..headers.map_or(contact.len(), |at| host + at));
    let has_method = Uri::parse(&uri).is_ok_and(|uri| uri.param(b"method").is_some());
    if !has_method {
        return uri;
    }
    let is_method = |part: &[u8]| {
        let name = part.split(|byte| *byte == b'=').next();
        name.is_some_and(|name| name.eq_ignore_ascii_case(b"method"))
    };
    let mut kept = uri[..host].to_vec();
    for (index, part) in uri[host..].split(|byte| *byte == b';').enumerate() {
        if index > 0 && is_method(part) {
            continue;
        }
        if index > 0 {
            kept.push(b';');
        }
        kept.extend_from_slice(part);
    }
    kept.into()
}
