//! Route processing and the choice of targets (RFC 3261 sections 16.4 and 16.5).

use std::net::IpAddr;
use std::time::Instant;

use bytes::Bytes;

use super::media::Party;
use super::next_hop::Way;
use super::routing::{Decision, Destination, Facts, Sender};
use super::{Proxy, Target, sips};
use crate::cookie::{CookieError, DialogCookie};
use crate::hop::Hop;
use crate::message::{HeaderName, Host, Message, Method, Uri, same_name};
use crate::registrar::{AddressOfRecord, Binding};

/// What becomes of a request.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "it lives for one call")]
pub(super) enum Routed {
    /// It is for the registrar.
    Register(AddressOfRecord),
    /// It asks for our own capabilities.
    Options,
    /// It would have to go by another scheme.
    WrongScheme,
    /// It is for a user agent that has lost its connection and may be back until then.
    Awaited { request: Message, until: Instant },
    /// It goes nowhere.
    Refused { status: u16, reason: &'static str },
    /// It goes to next hops whose addresses may have to be found, less our own Route values.
    Onward {
        request: Message,
        way: Way,
        /// The new Request-URI, if any.
        uri: Option<Bytes>,
    },
    /// It goes on, less our own Route values.
    Forward {
        request: Message,
        targets: Vec<Target>,
        dialog: Option<(DialogCookie, Party)>,
    },
}

impl Proxy {
    /// The request less our own Route values, and what they name.
    pub(super) fn take_own_routes(&mut self, request: &Message) -> (Message, Option<Named>) {
        if request.header(HeaderName::Route).is_none() {
            return (request.clone(), None);
        }
        let request = self.undo_strict_route(request);
        self.pop_own_routes(&request)
    }

    /// Decides where a valid request goes that has its own Route values off.
    pub(super) fn route(
        &mut self,
        request: Message,
        named: Option<Named>,
        hop: &Hop,
        now: Instant,
    ) -> Routed {
        match named {
            Some(Named::Dialog(cookie)) => return self.route_in_dialog(request, cookie),
            Some(Named::Path(flow)) => return route_by_path(request, &flow),
            Some(Named::Forged) => {
                self.counters.routing.forged_paths += 1;
                return refused(403, "Forged Flow Token");
            }
            None => {}
        }
        let Ok(uri) = request.uri() else {
            return Routed::Refused {
                status: 400,
                reason: "Bad Request-URI",
            };
        };
        let own = self.is_ours(&uri) && self.is_maddr_ours(&uri);
        if own && request.method() == Method::Options && uri.user.is_none() {
            return Routed::Options;
        }
        match self.decide(&uri, own, &request, hop) {
            Ok(None) => {}
            Ok(Some((way, uri))) => return Routed::Onward { request, way, uri },
            Err(Denied) => return refused(403, "Relaying Denied"),
        }
        if request.method() == Method::Register {
            self.address_of_record(&request)
        } else {
            self.look_up(request, now)
        }
    }

    /// What the operator's routes say of a request outside of our dialogs: a way, or nothing, which
    /// is the registrar.
    fn decide(
        &mut self,
        uri: &Uri<'_>,
        own: bool,
        from: &Message,
        hop: &Hop,
    ) -> Result<Option<(Way, Option<Bytes>)>, Denied> {
        let domain = uri.host.text();
        let source = hop.flow.peer.ip();
        let facts = Facts {
            domain: &domain,
            user: uri.user.unwrap_or_default(),
            own,
            source,
            sender: self.sender(from, hop),
        };
        let way = match self.config.routing.decide(&facts) {
            Decision::Go(route) => {
                let new = route.new_user(facts.user);
                let uri = new.and_then(|user| with_user(uri, &user));
                match route.to {
                    Destination::Group(group) => Some((Way::Group(group), uri)),
                    Destination::Dns if !own => Some((Way::Dns, uri)),
                    Destination::Dns | Destination::Registrar => None,
                }
            }
            Decision::Refused => {
                self.counters.routing.relay_denied += 1;
                return Err(Denied);
            }
            Decision::NoRoute => None,
        };
        if way.is_none() && !own {
            self.counters.foreign += 1;
            return Err(Denied);
        }
        Ok(way)
    }

    /// What is known of the sender: the operator has named its address, its password was right, or,
    /// where nobody has a password, it has registered by the same flow.
    fn sender(&self, request: &Message, hop: &Hop) -> Sender {
        let routing = &self.config.routing;
        if routing.routes.is_empty() {
            Sender::Stranger
        } else if routing.is_trunk(hop.flow.peer.ip()) || self.is_trusted(hop) {
            Sender::Trunk
        } else if match self.digest() {
            Some(_) => self.is_authenticated(request),
            None => self.registrar.has_flow(&hop.flow),
        } {
            Sender::User
        } else {
            Sender::Stranger
        }
    }

    /// True where a URI names a served domain or one of our addresses.
    pub(super) fn is_ours(&self, uri: &Uri<'_>) -> bool {
        match &uri.host {
            Host::Name(name) => self
                .config
                .domains
                .iter()
                .any(|domain| same_name(name, domain.as_bytes())),
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
        let own = self.config.service.iter();
        own.chain(&self.config.routing.unicast).any(|service| {
            service.ip() == address && port.is_none_or(|port| port == service.port())
        })
    }

    /// "If the Request-URI … was placed in a Record-Route by this proxy": a strict router before
    /// us moved the real Request-URI to the end of Route (16.4).
    fn undo_strict_route(&self, request: &Message) -> Message {
        let ours = request
            .uri()
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
    /// two sides differ (RFC 5658), more where a request has passed here more than once and nobody
    /// in between wants to see the rest of the dialog. The last of them says where it goes.
    pub(super) fn pop_own_routes(&mut self, request: &Message) -> (Message, Option<Named>) {
        let mut named = None;
        let mut popped = 0;
        for value in request.values(HeaderName::Route) {
            let Ok(uri) = Uri::parse(uri_of(&value)) else {
                break;
            };
            if !self.is_ours(&uri) {
                break;
            }
            if let Some(user) = uri.user {
                match self.named(user) {
                    Some(found) => named = Some(found),
                    None => self.counters.bad_cookies += 1,
                }
            }
            popped += 1;
        }
        if popped == 0 {
            return (request.clone(), named);
        }
        let mut edit = request.edit();
        for _ in 0..popped {
            edit.remove_first_value(HeaderName::Route);
        }
        (edit.finish(), named)
    }

    /// What the user part of a URI of ours stands for.
    pub(super) fn named(&self, user: &[u8]) -> Option<Named> {
        let keys = &self.config.keys;
        if let Ok(cookie) = keys.open(user) {
            return Some(Named::Dialog(cookie));
        }
        match keys.open_path(user) {
            Ok(hop) => Some(Named::Path(hop)),
            Err(CookieError::Signature) => Some(Named::Forged),
            Err(CookieError::NotACookie | CookieError::Version(_) | CookieError::Malformed) => None,
        }
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
        Routed::Forward {
            request,
            targets: vec![Target {
                name,
                ..Target::of(flow)
            }],
            dialog: Some((cookie, party)),
        }
    }

    /// "If the address-of-record is not valid for the domain in the Request-URI, the registrar MUST
    /// send a 404 (Not Found) response" (10.3 step 5).
    fn address_of_record(&self, request: &Message) -> Routed {
        let uri = request.to().and_then(|to| to.parse_uri()).ok();
        let Some(aor) = uri.and_then(|uri| AddressOfRecord::of(&uri)) else {
            return Routed::Refused {
                status: 400,
                reason: "Bad Address-of-Record",
            };
        };
        if !uri.is_some_and(|uri| self.is_ours(&uri)) {
            return Routed::Refused {
                status: 404,
                reason: "Not Found",
            };
        }
        Routed::Register(aor)
    }

    /// The bindings of the user in the Request-URI.
    pub(super) fn look_up(&mut self, request: Message, now: Instant) -> Routed {
        let uri = request.uri().ok();
        let named = uri.and_then(|uri| Some((uri, AddressOfRecord::of(&uri)?)));
        let Some((uri, aor)) = named else {
            return refused(404, "Not Found");
        };
        let bindings = self.registrar.lookup_named(&aor, now);
        let targets: Vec<Target> = bindings
            .iter()
            .filter_map(|(name, binding)| {
                let contact = request_uri_of(&binding.contact_uri);
                let uri = sips::request_uri_for(binding, contact, &uri)?;
                Some((name, binding, uri))
            })
            .map(|(name, binding, uri)| Target {
                uri: Some(uri),
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
                ..Target::of(binding.flow)
            })
            .collect();
        if targets.is_empty() && !bindings.is_empty() {
            return Routed::WrongScheme;
        }
        if targets.is_empty()
            && let Some(until) = self.registrar.awaited(&aor, now)
        {
            return Routed::Awaited { request, until };
        }
        if targets.is_empty() {
            self.counters.not_found += 1;
            return refused(404, "Not Found");
        }
        Routed::Forward {
            request,
            targets,
            dialog: None,
        }
    }
}

/// What a Route value of ours says.
#[derive(Debug)]
pub(super) enum Named {
    /// A dialog.
    Dialog(DialogCookie),
    /// A flow, by way of a registrar behind us.
    Path(Hop),
    /// It looks like a flow, and is not signed by us.
    Forged,
}

/// We are no relay for this sender.
#[derive(Debug)]
struct Denied;

const fn refused(status: u16, reason: &'static str) -> Routed {
    Routed::Refused { status, reason }
}

/// A request from a registrar behind us goes to the flow that our Path names; its Request-URI is
/// the contact already (RFC 3327 section 5.4).
fn route_by_path(request: Message, hop: &Hop) -> Routed {
    let target = Target {
        relay: hop.relay,
        by_path: true,
        ..Target::of(hop.flow)
    };
    Routed::Forward {
        request,
        targets: vec![target],
        dialog: None,
    }
}

/// The URI with another user part; one without a user stays as it is.
fn with_user(uri: &Uri<'_>, user: &[u8]) -> Option<Bytes> {
    let rest = uri.opaque.get(uri.user?.len()..)?;
    let uri = [uri.scheme, b":", user, rest].concat();
    Uri::parse(&uri).is_ok().then(|| Bytes::from(uri))
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
pub(super) fn uri_of(value: &[u8]) -> &[u8] {
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
pub(super) fn request_uri_of(contact: &Bytes) -> Bytes {
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
