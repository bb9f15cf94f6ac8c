//! Who may do what: digest authentication of users, trunks known by their address or certificate
//! (RFC 3261 sections 22 and 26.3.2).
//!
//! A request that is no retransmission comes here before anything is looked up for it. In this
//! order:
//!
//! * ACK and CANCEL never come here: they "MUST NOT" be challenged (22.1, 16.10).
//! * A request of a dialog, with To tag and a Route cookie that we signed, passes: only who has
//!   seen the dialog's messages has the cookie, and it leads nowhere but to the other party.
//!   OPTIONS to ourselves passes: it changes nothing and says what everybody may know.
//! * What a trunk sends passes, whomever it claims to be from.
//! * REGISTER is challenged by the registrar (401), and registers the user that its credentials
//!   name, nobody else.
//! * A request From one of our domains is challenged by the proxy (407), whatever its method; its
//!   From must be the user that its credentials name. One From `anonymous.invalid` (RFC 3323) may
//!   be any user's.
//! * Everybody else is foreign, and is refused or may reach our own users.
//!
//! **No reflection.** What was not let in is answered without a transaction: nothing is kept for it
//! and nothing is sent again, whatever it was. Over UDP, whose sources can be forged, an answer of
//! more than [`MAX_GROWTH`] times its request is not sent.
//!
//! Known limits. An address proves little over UDP unless the edges drop forged sources. User
//! names are one space for all domains. The other party of a dialog need not be who it claims.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Proxy, validate};
use crate::cookie::Keys;
use crate::digest::{Credentials, Digest, Malformed, Users, Verdict, is_user};
use crate::hop::{ConnectionId, Hop, Transmit, Transport};
use crate::message::{Edit, HeaderName, Host, Message, Method, NameAddr, Uri};
use crate::registrar::same_uri;
use crate::text::hex;
use crate::transaction::ServerId;

/// An answer over UDP to somebody unknown is at most so many times as long as the request with
/// its source stamped into Via. Three challenges double the request of a real phone.
pub const MAX_GROWTH: usize = 3;

/// The host of a From that hides its user (RFC 3323 section 4.1.1.3).
const ANONYMOUS: Host<'static> = Host::Name(b"anonymous.invalid");

/// What the proxy must know to authenticate.
#[derive(Debug)]
pub struct Authentication {
    /// The realm of the challenges; it has no quotes, backslashes or control characters.
    pub realm: String,
    /// Its users.
    pub users: Users,
    /// How long a nonce may be used.
    pub nonce_lifetime: Duration,
    /// What may be done by those who claim no domain of ours and come from no trunk.
    pub foreign_callers: ForeignCallers,
    /// Who needs no digest.
    pub trunks: Vec<Trunk>,
}

/// What may be done by those who claim no domain of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForeignCallers {
    /// They reach our own users.
    Allow,
    /// They reach nobody.
    Refuse,
}

/// A peer that is believed for its address or its certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trunk {
    /// Its name.
    pub name: String,
    /// Where it sends from.
    pub networks: Vec<Network>,
    /// The DNS names and SIP domains of which its certificate has one (RFC 5922 section 7.1).
    pub certificates: Vec<String>,
}

impl Trunk {
    fn sends_from(&self, peer: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(peer))
    }

    fn is_one_of(&self, names: &[String]) -> bool {
        let mut ours = self.certificates.iter();
        ours.any(|ours| names.iter().any(|name| name.eq_ignore_ascii_case(ours)))
    }
}

/// Addresses with a common prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// One of them.
    pub address: IpAddr,
    /// The length of the prefix in bits.
    pub prefix: u8,
}

impl Network {
    /// True for an address of the network; one of IPv4 within IPv6 counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(ours), IpAddr::V4(other)) => {
                let differ = u32::from(ours) ^ u32::from(other);
                differ.leading_zeros() >= u32::from(self.prefix.min(32))
            }
            (IpAddr::V6(ours), IpAddr::V6(other)) => {
                let differ = u128::from(ours) ^ u128::from(other);
                differ.leading_zeros() >= u32::from(self.prefix.min(128))
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

/// What became of requests, each under its own name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests of authenticated users.
    pub ok: u64,
    /// Requests of trunks.
    pub trusted: u64,
    /// Requests of foreign callers to our users.
    pub foreign: u64,
    /// Requests without credentials for us, challenged.
    pub challenged: u64,
    /// Right answers to a nonce that is too old or not ours, challenged again.
    pub stale: u64,
    /// Wrong passwords and users that do not exist, challenged again.
    pub wrong: u64,
    /// Answers that were used before, challenged again.
    pub replayed: u64,
    /// Credentials that cannot be read, refused.
    pub malformed: u64,
    /// Credentials for another URI than the request's, refused.
    pub wrong_uri: u64,
    /// Requests From, or REGISTERs for, somebody else than the authenticated user, refused.
    pub refused_identity: u64,
    /// Requests of foreign callers, refused.
    pub refused_foreign: u64,
    /// Answers that were not sent because they are too long for their request.
    pub unanswered: u64,
}

/// Authentication in operation.
#[derive(Debug)]
pub(super) struct State {
    digest: Digest,
    foreign_callers: ForeignCallers,
    trunks: Vec<Trunk>,
    /// Connections whose other end has proved to be a trunk; they go when they close.
    connections: HashSet<ConnectionId>,
}

impl State {
    pub(super) fn new(authentication: Authentication, keys: &Keys, now_s: u32) -> Self {
        let Authentication {
            realm,
            users,
            nonce_lifetime,
            foreign_callers,
            trunks,
        } = authentication;
        Self {
            digest: Digest::new(realm, users, keys, nonce_lifetime, now_s),
            foreign_callers,
            trunks,
            connections: HashSet::new(),
        }
    }

    /// True where a request came from a trunk.
    fn is_trunk(&self, hop: &Hop) -> bool {
        let peer = hop.flow.peer.ip();
        let connection = hop.flow.connection;
        connection.is_some_and(|connection| self.connections.contains(&connection))
            || self.trunks.iter().any(|trunk| trunk.sends_from(peer))
    }

    pub(super) fn connection_closed(&mut self, connection: ConnectionId) {
        self.connections.remove(&connection);
    }
}

/// Whom a request claims to be from, as far as it matters here.
enum Claim {
    /// It needs no credentials.
    Nobody,
    /// A trunk.
    Trunk,
    /// The user whose contacts it changes.
    Registrant,
    /// A user of ours.
    Caller,
    /// Any user of ours.
    Anonymous,
    /// Somebody of another domain.
    Foreign,
}

/// Why a request goes no further.
enum Refusal {
    Challenge { stale: bool },
    Final(u16, &'static str),
}

impl Refusal {
    const fn malformed(fault: Malformed) -> Self {
        Self::Final(400, fault.reason())
    }
}

const FORBIDDEN: Refusal = Refusal::Final(403, "Forbidden");

impl Proxy {
    /// From now on users must authenticate.
    pub fn require_authentication(&mut self, authentication: Authentication, now: Instant) {
        let now_s = self.seconds(now);
        let state = State::new(authentication, &self.config.keys, now_s);
        self.authentication = Some(state);
    }

    /// True for a party whose messages may go on although they cannot be challenged: everybody
    /// where nobody authenticates, else trunks and registered phones.
    pub(super) fn is_known(&self, hop: &Hop) -> bool {
        let Some(state) = &self.authentication else {
            return true;
        };
        state.is_trunk(hop) || self.registrar.knows(&hop.flow)
    }

    /// Puts other users in the place of those there are; gives back those from before, or the new
    /// ones where nobody authenticates.
    pub fn replace_users(&mut self, users: Users) -> Users {
        match &mut self.authentication {
            Some(state) => state.digest.replace_users(users),
            None => users,
        }
    }

    /// True where a trunk is known by its certificate, so that it matters who is at the other end
    /// of a connection.
    pub fn asks_for_certificates(&self) -> bool {
        let state = self.authentication.as_ref();
        state.is_some_and(|state| {
            state
                .trunks
                .iter()
                .any(|trunk| !trunk.certificates.is_empty())
        })
    }

    /// The other end of a connection has proved to have these names. If one is a trunk's, all that
    /// comes by the connection is the trunk's, until it closes.
    pub fn handle_verified_peer(&mut self, connection: ConnectionId, names: &[String]) {
        if let Some(state) = &mut self.authentication
            && state.trunks.iter().any(|trunk| trunk.is_one_of(names))
        {
            state.connections.insert(connection);
        }
    }

    /// What authenticates, to look at; `None` where everybody may do everything.
    pub fn digest(&self) -> Option<&Digest> {
        self.authentication.as_ref().map(|state| &state.digest)
    }

    /// The trunk that a request comes from, where its address says which.
    pub(super) fn trusted_name(&self, hop: &Hop) -> Option<&str> {
        let mut trunks = self.authentication.as_ref()?.trunks.iter();
        let trunk = trunks.find(|trunk| trunk.sends_from(hop.flow.peer.ip()))?;
        Some(&trunk.name)
    }

    /// True where a request comes from a trunk that needs no digest.
    pub(super) fn is_trusted(&self, hop: &Hop) -> bool {
        let state = self.authentication.as_ref();
        state.is_some_and(|state| state.is_trunk(hop))
    }

    /// True where a request that was let in has shown a password: one From us, and one From nobody
    /// where foreign callers reach nobody.
    pub(super) fn is_authenticated(&self, request: &Message) -> bool {
        let Some(state) = &self.authentication else {
            return false;
        };
        let from = request.from();
        from.and_then(|from| from.parse_uri()).is_ok_and(|from| {
            self.is_ours(&from)
                || from.host.same_as(ANONYMOUS) && state.foreign_callers == ForeignCallers::Refuse
        })
    }

    /// True where a new request may go on. Where not, it is answered, and its transaction is gone.
    ///
    /// `inner` is the request less our own Route values; `in_dialog` where one of those had a
    /// cookie of ours.
    pub(super) fn let_in(
        &mut self,
        id: ServerId,
        request: &Message,
        inner: &Message,
        in_dialog: bool,
        hop: &Hop,
        now: Instant,
    ) -> bool {
        if self.authentication.is_none() {
            return true;
        }
        let claim = self.claim(inner, in_dialog, hop);
        let Err(refusal) = self.judge(inner, &claim, now) else {
            return true;
        };
        let response = match refusal {
            Refusal::Final(status, reason) => self.refusal(request, status, reason),
            Refusal::Challenge { stale } => self.challenge(request, stale, now),
        };
        self.answer_stranger(id, request, hop, response);
        false
    }

    /// Challenges the first REGISTER of a phone, as most are, before anything is set up for it; false for any
    /// other request. "Stateless UASs are used primarily when handling unauthenticated requests for which
    /// a challenge response is issued" (RFC 3261 section 8.2.7).
    pub(super) fn challenge_at_once(&mut self, request: &Message, hop: &Hop, now: Instant) -> bool {
        let plain = request.method() == Method::Register
            && request.header(HeaderName::Authorization).is_none()
            && request.header(HeaderName::Route).is_none()
            && request.uri().is_ok_and(|uri| uri.user.is_none());
        if self.authentication.is_none()
            || !plain
            || !matches!(self.claim(request, false, hop), Claim::Registrant)
            || validate::forwardable(request).is_err()
        {
            return false;
        }
        if self.must_shed(request, hop) {
            self.refuse_for_now(request, hop);
            return true;
        }
        self.counters.authentication.challenged += 1;
        let response = self.challenge(request, false, now);
        self.send_to_stranger(request, hop, response);
        true
    }

    /// True where nobody authenticates, and nothing but an address that anybody can write says where
    /// a request comes from. It is refused without a transaction: the answer to an INVITE would be
    /// sent eleven times to whoever has that address (RFC 3261 section 17.2.1).
    pub(super) fn may_be_forged(&self, hop: &Hop) -> bool {
        self.authentication.is_none()
            && hop.flow.transport == Transport::Udp
            && !self.registrar.knows(&hop.flow)
            && !self.config.routing.is_trunk(hop.flow.peer.ip())
    }

    /// Answers a request that was not let in, and forgets it.
    pub(super) fn answer_stranger(
        &mut self,
        id: ServerId,
        request: &Message,
        hop: &Hop,
        response: Bytes,
    ) {
        self.transactions.abandon_server(id);
        self.send_to_stranger(request, hop, response);
    }

    fn send_to_stranger(&mut self, request: &Message, hop: &Hop, response: Bytes) {
        let forgeable = hop.flow.transport == Transport::Udp;
        if forgeable && response.len() > MAX_GROWTH * request.bytes().len() {
            self.counters.authentication.unanswered += 1;
            return;
        }
        self.transmits.push_back(Transmit {
            flow: hop.flow,
            bytes: response,
        });
    }

    /// True for the ACK of an answer that was given without a transaction: RFC 3261 section 8.2.7
    /// has a stateless UAS ignore it.
    pub(super) fn is_ack_of_refusal(&self, ack: &Message) -> bool {
        ack.header(HeaderName::Route).is_none()
            && ack.to().ok().and_then(|to| to.tag()) == Some(&self.to_tag(ack))
    }

    /// Takes the credentials that were for us out of a copy, and leaves those for others: "a
    /// Proxy-Authorization header field value MUST NOT be consumed by any proxy whose realm does
    /// not match" (RFC 3261 section 22.3).
    pub(super) fn strip_credentials(&self, edit: &mut Edit<'_>) {
        if let Some(state) = &self.authentication {
            let realm = state.digest.realm().as_bytes();
            edit.remove_fields(HeaderName::ProxyAuthorization, |value| {
                Credentials::are_for(value, realm)
            });
        }
    }

    pub(super) fn refusal(&self, request: &Message, status: u16, reason: &str) -> Bytes {
        let response = request.respond(status, reason);
        response.to_tag(self.to_tag(request)).bytes()
    }

    fn challenge(&self, request: &Message, stale: bool, now: Instant) -> Bytes {
        let (status, reason, header) = if request.method() == Method::Register {
            (401, "Unauthorized", HeaderName::WwwAuthenticate)
        } else {
            let reason = "Proxy Authentication Required";
            (407, reason, HeaderName::ProxyAuthenticate)
        };
        // The tag of the answer tells requests of one second apart, and a retransmission gets the
        // same nonce again.
        let salt = self.answer_tag(request);
        let mut response = request.respond(status, reason).to_tag(hex(salt));
        let now_s = self.seconds(now);
        let challenges = self
            .digest()
            .map(|digest| digest.challenges(salt, stale, now_s));
        for value in challenges.into_iter().flatten() {
            response = response.header(header.full(), &value);
        }
        response.bytes()
    }

    fn claim(&self, inner: &Message, in_dialog: bool, hop: &Hop) -> Claim {
        let Some(state) = &self.authentication else {
            return Claim::Nobody;
        };
        if in_dialog && inner.to().is_ok_and(|to| to.tag().is_some()) {
            return Claim::Nobody;
        }
        if state.is_trunk(hop) || self.config.routing.is_trunk(hop.flow.peer.ip()) {
            return Claim::Trunk;
        }
        let target = inner.uri();
        let to_us = target.is_ok_and(|uri| self.is_ours(&uri));
        let method = inner.method();
        let about_us = to_us && target.is_ok_and(|uri| uri.user.is_none());
        let straight = inner.count(HeaderName::Route) == 0;
        let harmless = method == Method::Options && about_us && straight;
        if harmless || matches!(method, Method::Ack | Method::Cancel) {
            return Claim::Nobody;
        }
        if method == Method::Register && to_us {
            return Claim::Registrant;
        }
        let from = inner.from();
        match from.and_then(|from| from.parse_uri()) {
            Ok(from) if self.is_ours(&from) => Claim::Caller,
            Ok(from)
                if from.host.same_as(ANONYMOUS)
                    && state.foreign_callers == ForeignCallers::Refuse =>
            {
                Claim::Anonymous
            }
            Ok(_) | Err(_) => Claim::Foreign,
        }
    }

    fn judge(&mut self, inner: &Message, claim: &Claim, now: Instant) -> Result<(), Refusal> {
        match claim {
            Claim::Nobody => Ok(()),
            Claim::Trunk => {
                self.counters.authentication.trusted += 1;
                Ok(())
            }
            Claim::Foreign => self.judge_foreign(inner),
            Claim::Anonymous => {
                self.verify(inner, now)?;
                self.counters.authentication.ok += 1;
                Ok(())
            }
            Claim::Registrant => {
                let credentials = self.verify(inner, now)?;
                self.judge_identity(inner.to().ok(), &credentials)
            }
            Claim::Caller => {
                let credentials = self.verify(inner, now)?;
                self.judge_identity(inner.from().ok(), &credentials)
            }
        }
    }

    /// Foreign callers reach our users by the straight way, or nobody.
    fn judge_foreign(&mut self, inner: &Message) -> Result<(), Refusal> {
        let allowed = self
            .authentication
            .as_ref()
            .is_some_and(|state| state.foreign_callers == ForeignCallers::Allow);
        let to_us = inner.uri().is_ok_and(|uri| self.is_ours(&uri));
        let register = inner.method() == Method::Register;
        if allowed && to_us && !register && inner.count(HeaderName::Route) == 0 {
            self.counters.authentication.foreign += 1;
            return Ok(());
        }
        self.counters.authentication.refused_foreign += 1;
        Err(FORBIDDEN)
    }

    /// "the proxy … MAY … reject the request" of a user who claims to be another.
    fn judge_identity(
        &mut self,
        claimed: Option<NameAddr<'_>>,
        credentials: &Credentials<'_>,
    ) -> Result<(), Refusal> {
        let uri = claimed.and_then(|claimed| claimed.parse_uri().ok());
        let user = uri.and_then(|uri| uri.user);
        if user.is_some_and(|user| is_user(user, &credentials.username)) {
            self.counters.authentication.ok += 1;
            return Ok(());
        }
        self.counters.authentication.refused_identity += 1;
        Err(FORBIDDEN)
    }

    fn verify<'m>(&mut self, inner: &'m Message, now: Instant) -> Result<Credentials<'m>, Refusal> {
        let name = if inner.method() == Method::Register {
            HeaderName::Authorization
        } else {
            HeaderName::ProxyAuthorization
        };
        let now_s = self.seconds(now);
        let credentials = match &self.authentication {
            Some(state) => state.digest.find(inner.fields_of(name)),
            None => Ok(None),
        };
        let credentials = credentials.map_err(|fault| {
            self.counters.authentication.malformed += 1;
            Refusal::malformed(fault)
        })?;
        let Some(credentials) = credentials else {
            self.counters.authentication.challenged += 1;
            return Err(Refusal::Challenge { stale: false });
        };
        // RFC 7616 section 3.4.6: if the two "do not match, the server MAY … 400 (Bad Request)".
        if !self.is_about(&credentials.uri, inner.request_uri()) {
            self.counters.authentication.wrong_uri += 1;
            return Err(Refusal::Final(400, "Credentials For Another URI"));
        }
        let Some(state) = &mut self.authentication else {
            return Err(FORBIDDEN);
        };
        let verdict = state
            .digest
            .verify(inner.method().as_bytes(), &credentials, now_s);
        let counters = &mut self.counters.authentication;
        let stale = match verdict {
            Verdict::Valid => return Ok(credentials),
            Verdict::Stale => {
                counters.stale += 1;
                true
            }
            // To an honest phone this is a count that came twice; it may try again.
            Verdict::Replayed => {
                counters.replayed += 1;
                true
            }
            Verdict::Wrong => {
                counters.wrong += 1;
                false
            }
        };
        Err(Refusal::Challenge { stale })
    }

    /// True where the `uri` of credentials is the Request-URI, or names one of our hosts: a proxy
    /// on the way may have changed the Request-URI.
    fn is_about(&self, uri: &[u8], request_uri: &[u8]) -> bool {
        uri == request_uri
            || Uri::parse(uri).is_ok_and(|uri| self.is_ours(&uri))
            || same_uri(uri, request_uri)
    }

    /// Seconds since 1970.
    pub(super) fn seconds(&self, now: Instant) -> u32 {
        let (instant, unix) = self.config.epoch;
        let seconds = unix + now.saturating_duration_since(instant).as_secs();
        u32::try_from(seconds).unwrap_or(u32::MAX)
    }
}
