//! Request forwarding (RFC 3261 section 16.6): the copy, Record-Route, Via, media, and the client
//! transaction of each branch.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::fork::{Breadth, Rest, groups};
use super::loops::deciding;
use super::media::{CallMessage, Media, NewCall, Party, Placement, Refusal, SessionRef};
use super::route::Routed;
use super::{Branch, Context, Progress, Proxy, Target, sips, validate};
use crate::cookie::{BranchOf, DialogCookie, Role, ViaCookie};
use crate::hop::{Flow, Hop, Transmit, Transport};
use crate::message::{Edit, HeaderName, Message, Method, Uri};
use crate::sdp::MediaAddress;
use crate::text::{digits, push_address};
use crate::transaction::{ClientId, ServerId};

/// Max-Forwards where a request has none (RFC 3261 section 16.6 step 3).
const MAX_FORWARDS: u8 = 70;

/// The Via parameter that holds the [`ViaCookie`].
pub(super) const VIA_COOKIE: &str = "sc";

/// A request that is ready for its targets.
pub(super) struct Outbound<'a> {
    /// As it came: what our own answers are made from.
    pub(super) original: Message,
    /// Less our own Route values: what is copied.
    pub(super) inner: Message,
    pub(super) hop: &'a Hop,
    pub(super) targets: Vec<Target>,
    pub(super) dialog: Option<(DialogCookie, Party)>,
    /// The failures after which the next target is tried; `None`: any.
    pub(super) fail_on: Option<Vec<u16>>,
    /// The 100 has been sent.
    pub(super) said_trying: bool,
    /// It has waited for its relay already.
    pub(super) waited: bool,
}

impl<'a> Outbound<'a> {
    /// One that begins something.
    pub(super) const fn new(
        original: Message,
        inner: Message,
        hop: &'a Hop,
        targets: Vec<Target>,
    ) -> Self {
        Self {
            original,
            inner,
            hop,
            targets,
            dialog: None,
            fail_on: None,
            said_trying: false,
            waited: false,
        }
    }
}

/// Why there is no branch to a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotStarted {
    /// The transaction table has no room.
    Full,
    /// Its media cannot be what they should be.
    Refused(Refusal),
}

impl Proxy {
    /// Sends a request to the first of its targets.
    pub(super) fn start(
        &mut self,
        id: ServerId,
        outbound: Outbound<'_>,
        media: &mut dyn Media,
        now: Instant,
    ) {
        let targets = sips::permitted(&outbound.inner, outbound.targets);
        let outbound = Outbound {
            targets,
            ..outbound
        };
        if outbound.targets.is_empty() {
            return self.refuse_scheme(id, &outbound.original, outbound.hop, now);
        }
        let breadth = Breadth::of(&outbound.inner);
        if breadth.is_exhausted() {
            self.counters.rejected += 1;
            self.respond(id, &outbound.original, 440, "Max-Breadth Exceeded", now);
            return;
        }
        if self.is_loop(&outbound.inner) {
            self.counters.rejected += 1;
            self.respond(id, &outbound.original, 482, "Loop Detected", now);
            return;
        }
        let Some(outbound) = self.wait_for_return(id, outbound, now) else {
            return;
        };
        let Some(outbound) = self.wait_for_media(id, outbound, media, now) else {
            return;
        };
        let Outbound {
            original,
            inner,
            hop,
            targets,
            dialog,
            fail_on,
            said_trying,
            waited: _,
        } = outbound;
        if original.method() == Method::Invite {
            if !said_trying {
                self.respond(id, &original, 100, "Trying", now);
            }
            self.counters.calls += u64::from(dialog.is_none());
        }
        self.count_drift(hop, dialog.as_ref());
        if let Some((cookie, party)) = &dialog {
            if original.method() == Method::Bye {
                self.answered_elsewhere(&original, cookie, media, now);
            }
            self.note_request(&original, cookie, *party);
            self.journal_in_dialog(&original, cookie, *party);
        }
        self.note_invite(id, &original);
        let context = Context {
            invite: original.method() == Method::Invite,
            request: original,
            branches: Vec::with_capacity(targets.len()),
            best: None,
            challenges: Vec::new(),
            decided: false,
            orphan: false,
            rest: Some(Rest {
                inner,
                hop: *hop,
                groups: groups(targets, breadth),
                breadth,
                fail_on,
            }),
            dialog,
        };
        self.contexts.insert(id, Box::new(context));
        if !self.next_group(id, media, now)
            && let Some(context) = self.contexts.remove(&id)
        {
            if let Some((_, refusal)) = context.best {
                return self.respond_with(id, &refusal, now);
            }
            self.counters.overload += 1;
            self.respond(id, &context.request, 503, "Service Unavailable", now);
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "all that one copy of a request depends on"
    )]
    pub(super) fn start_branch(
        &mut self,
        inner: &Message,
        hop: &Hop,
        target: &Target,
        dialog: Option<(DialogCookie, Party)>,
        (role, share): (Role, Option<usize>),
        media: &mut dyn Media,
        now: Instant,
    ) -> Result<Branch, NotStarted> {
        let earlier = self.earlier_session(inner, dialog.is_none());
        let passes_again = self.passes_again(inner, dialog.as_ref());
        let placement = self.place(inner, hop, target, dialog, earlier, media, now);
        if let Some(refusal) = placement.refusal {
            return Err(NotStarted::Refused(refusal));
        }
        let session = placement.session;
        let mut request = self.copy(inner, hop, target, role, placement, now);
        if let Some(share) = share {
            let mut edit = request.edit();
            edit.set(HeaderName::MaxBreadth, digits(share as u64));
            request = edit.finish();
        }
        let (request, flow) = self.by_length(request, target, now);
        let source = hop.flow.peer.ip();
        let sent = self
            .transactions
            .send_request_of(source, &request, flow, now);
        let Some(client) = sent else {
            match (session, dialog) {
                (Some(session), None) if earlier.is_none() => media.ended(session, now),
                (Some(session), Some((_, party))) => media.refused(inner, party, session, now),
                (Some(_), None) | (None, _) => {}
            }
            return Err(NotStarted::Full);
        };
        let patience = target.next_hop.map(|rules| rules.timeout);
        self.start_patience(client, &request, patience, now);
        let progress = Progress::Calling { cancel: false };
        self.note_sent(client, target.name, &flow, now);
        Ok(Branch {
            client,
            request,
            flow,
            name: target.name,
            progress,
            session,
            instance: target.instance.clone(),
            reached: false,
            borrowed: earlier.is_some(),
            passes_again,
            patience,
            instead_of_udp: flow.transport != target.flow.transport,
            by_path: target.by_path,
            media_lost: false,
        })
    }

    /// A next hop must say something soon, a phone that rings has Timer C.
    pub(super) fn start_patience(
        &mut self,
        client: ClientId,
        request: &Message,
        patience: Option<Duration>,
        now: Instant,
    ) {
        if let Some(patience) = patience {
            self.start_timer_c(client, now + patience);
        } else if request.method() == Method::Invite {
            self.start_timer_c(client, now + self.config.timer_c);
        }
    }

    /// An ACK for a 2xx goes on without a transaction (RFC 3261 section 17.1.1.3).
    pub(super) fn forward_ack(
        &mut self,
        request: &Message,
        hop: &Hop,
        media: &mut dyn Media,
        now: Instant,
    ) {
        if self.is_ack_of_refusal(request) {
            return;
        }
        let routed = match validate::forwardable(request) {
            Ok(()) => {
                let (inner, named) = self.take_own_routes(request);
                self.route(inner, named, hop, now)
            }
            Err(_) => Routed::Options,
        };
        let Routed::Forward {
            request: inner,
            targets,
            dialog,
        } = routed
        else {
            self.counters.stray_acks += 1;
            return;
        };
        let Some((_, party)) = dialog else {
            return self.acknowledge_statelessly(&inner, hop, &targets, now);
        };
        for target in &sips::permitted(&inner, targets) {
            let placement = self.place(&inner, hop, target, dialog, None, media, now);
            let copy = self.copy(&inner, hop, target, role_of(party), placement, now);
            let (copy, flow) = self.by_length(copy, target, now);
            self.transmits.push_back(Transmit {
                flow,
                bytes: copy.bytes().clone(),
            });
        }
        if let Some((cookie, party)) = &dialog {
            self.answered_elsewhere(request, cookie, media, now);
            self.note_ack(request, cookie, *party, now);
        }
    }

    /// The copy of a request for one target.
    pub(super) fn copy(
        &mut self,
        inner: &Message,
        hop: &Hop,
        target: &Target,
        role: Role,
        placement: Placement,
        now: Instant,
    ) -> Message {
        let mut edit = inner.edit();
        self.strip_credentials(&mut edit);
        if let Some(uri) = &target.uri {
            edit.set_request_uri(uri.to_vec());
        }
        // "the home proxy … pushes the path vector onto the Route" (RFC 3327 section 5.3).
        for route in target.path.values().iter().rev() {
            edit.push_front(HeaderName::Route, route.to_vec());
        }
        if target.path.values().is_empty() {
            suit_strict_router(inner, target.uri.as_deref(), &mut edit);
        }
        // "the proxy MUST insert one with the correct value for the body" (step 9).
        if target.flow.transport.is_reliable() && inner.count(HeaderName::ContentLength) == 0 {
            edit.set(HeaderName::ContentLength, digits(inner.body().len() as u64));
        }
        let hops = inner.max_forwards().ok().flatten();
        let hops = hops.map_or(MAX_FORWARDS, |hops| hops.saturating_sub(1));
        edit.set(HeaderName::MaxForwards, digits(hops));
        if !role.is_in_dialog() && begins_dialog(inner) {
            let sessions = [placement.session, placement.far];
            let cookie = self.cookie(inner, hop, target, sessions, now);
            let (caller, callee) = self.dialog_flows(hop, target);
            for value in record_routes(&caller, &callee, &cookie, sips::asks_for_sips(inner)) {
                edit.push_front(HeaderName::RecordRoute, value);
            }
        }
        if target.next_hop.is_some() && inner.method() == Method::Register {
            edit.push_front(HeaderName::Path, self.path(hop, &target.flow));
        }
        let branch = self.config.keys.branch(&branch_of(inner, target));
        let media = (placement.session, placement.caller_side);
        let via = self.via(&branch, hop, target, role, media, now);
        edit.push_front(HeaderName::Via, via);
        if let Some(body) = placement.body {
            edit.set_body(body);
        }
        edit.finish()
    }

    fn cookie(
        &self,
        inner: &Message,
        hop: &Hop,
        target: &Target,
        [session, far]: [Option<SessionRef>; 2],
        now: Instant,
    ) -> String {
        let caller_tag = inner.from().ok().and_then(|from| from.tag());
        let contact = inner.contacts().next().and_then(Result::ok);
        let contact = contact.map(|contact| contact.uri).unwrap_or_default();
        let caller_name = self.registrar.name_of(&hop.flow, contact);
        self.config.keys.seal(&DialogCookie {
            names: [caller_name.unwrap_or(0), target.name],
            caller: hop.flow,
            callee: target.flow,
            caller_tag: self.config.keys.tag_hash(caller_tag.unwrap_or_default()),
            session: session.map(|session| (session.session, session.relay)),
            far: far.map(|far| (far.session, far.relay)),
            owner: self.config.clustered.then_some(self.config.owner),
            caller_relay: hop.relay.filter(|_| session.is_some()),
            started: self.seconds(now),
        })
    }

    /// Our Via with the cookie that brings its responses back without state.
    pub(super) fn via(
        &self,
        branch: &str,
        hop: &Hop,
        target: &Target,
        role: Role,
        (session, caller_side): (Option<SessionRef>, Option<MediaAddress>),
        now: Instant,
    ) -> Vec<u8> {
        let Flow {
            transport, local, ..
        } = target.flow;
        let cookie = ViaCookie {
            owner: self.config.owner,
            upstream: hop.flow,
            role,
            session: session.map(|session| (session.session, session.relay)),
            caller_side,
            sent_minutes: self.minutes(now),
        };
        let cookie = self.config.keys.seal_via(&cookie, local, branch);
        let mut via = Vec::with_capacity(160);
        via.extend_from_slice(b"SIP/2.0/");
        via.extend_from_slice(transport.via_name().as_bytes());
        via.push(b' ');
        push_address(&mut via, local);
        via.extend_from_slice(b";branch=");
        via.extend_from_slice(branch.as_bytes());
        for part in [";", VIA_COOKIE, "=", &cookie] {
            via.extend_from_slice(part.as_bytes());
        }
        via
    }

    /// Minutes since 1970, modulo 2^16.
    pub(super) fn minutes(&self, now: Instant) -> u16 {
        u16::try_from(self.seconds(now) / 60 % (1 << 16)).unwrap_or_default()
    }

    /// The media of a copy, unless an earlier pass through here has seen to them.
    #[expect(
        clippy::too_many_arguments,
        reason = "all that one copy of a request depends on"
    )]
    fn place(
        &self,
        inner: &Message,
        hop: &Hop,
        target: &Target,
        dialog: Option<(DialogCookie, Party)>,
        earlier: Option<SessionRef>,
        media: &mut dyn Media,
        now: Instant,
    ) -> Placement {
        let session = match &dialog {
            Some((cookie, _)) => SessionRef::of(cookie).filter(|_| self.media_done(inner)),
            None => earlier,
        };
        match session {
            // The relay is in the path already; this pass leaves the body as that one made it.
            Some(_) => Placement {
                session,
                ..Placement::default()
            },
            None => self.place_anew(inner, hop, target, dialog, media, now),
        }
    }

    /// The media of a copy: placed anew for a new call, rewritten for its relay later on.
    fn place_anew(
        &self,
        inner: &Message,
        hop: &Hop,
        target: &Target,
        dialog: Option<(DialogCookie, Party)>,
        media: &mut dyn Media,
        now: Instant,
    ) -> Placement {
        match dialog {
            None if inner.method() == Method::Invite && !has_to_tag(inner) => {
                let contact = target.contact();
                media.place(&new_call(self, inner, hop, target, &contact), now)
            }
            None => Placement::default(),
            Some((cookie, party)) => {
                let session = SessionRef::of(&cookie);
                let rewritten = session.map(|session| {
                    let message = CallMessage {
                        message: inner,
                        from: hop,
                        party,
                        session,
                        caller_side: None,
                    };
                    media.rewrite(&message, now)
                });
                let (body, refusal) = match rewritten {
                    Some(Ok(body)) => (body, None),
                    Some(Err(refusal)) => (None, Some(refusal)),
                    None => (None, None),
                };
                Placement {
                    session,
                    body,
                    refusal,
                    ..Placement::default()
                }
            }
        }
    }

    /// The group or the trusted trunk that a request comes from, by its address.
    fn trunk_of(&self, hop: &Hop) -> Option<&str> {
        let routing = &self.config.routing;
        let group = routing.group_of_source(hop.flow.peer.ip());
        let group = group.and_then(|group| routing.groups.get(group));
        group
            .map(|group| group.name.as_str())
            .or_else(|| self.trusted_name(hop))
    }

    /// The group that a target is a member of.
    fn group_of(&self, target: &Target) -> Option<&str> {
        let group = target.next_hop.as_ref()?.group?;
        Some(&self.config.routing.groups.get(group)?.name)
    }

    /// A caller whose packets now take another edge than its INVITE did keeps the relay that the call
    /// began with, whichever that is.
    fn count_drift(&mut self, hop: &Hop, dialog: Option<&(DialogCookie, Party)>) {
        let Some((cookie, Party::Caller)) = dialog else {
            return;
        };
        if let (Some(first), Some(seen)) = (cookie.caller_relay, hop.relay)
            && first != seen
        {
            self.counters.path_drift += 1;
        }
    }
}

/// What the branch of a copy is made of: the incoming transaction and the target, so that the same
/// request through another concentrator is the same transaction at the UAS; the end of it is what
/// [`Proxy::is_loop`] looks for.
pub(super) fn branch_of(inner: &Message, target: &Target) -> BranchOf {
    let mut incoming = Vec::with_capacity(256);
    if let Ok(via) = inner.top_via() {
        incoming.extend_from_slice(via.branch().unwrap_or_default());
        incoming.push(0);
        incoming.extend_from_slice(via.host.text().as_bytes());
        incoming.extend_from_slice(&via.port.unwrap_or_default().to_be_bytes());
    }
    incoming.extend_from_slice(inner.call_id().unwrap_or_default());
    incoming.push(0);
    if let Ok((number, _)) = inner.cseq() {
        incoming.extend_from_slice(&number.to_be_bytes());
    }
    let mut to = target.flow.transport.via_name().as_bytes().to_vec();
    let is_named = target.name != 0 && target.instance.is_empty();
    if is_named && target.flow.transport.is_reliable() {
        // One that opens another connection is still the same, and gets the same transaction.
        to.extend_from_slice(&target.name.to_be_bytes());
    } else {
        push_address(&mut to, target.flow.peer);
    }
    to.extend_from_slice(target.uri.as_deref().unwrap_or_default());
    BranchOf {
        incoming,
        target: to,
        route: deciding(inner),
    }
}

/// What a request of a dialog is by who sent it.
pub(super) const fn role_of(sender: Party) -> Role {
    match sender {
        Party::Caller => Role::ByCaller,
        Party::Callee => Role::ByCallee,
    }
}

impl Target {
    /// Its own idea of its address. A next hop is where it says: nothing of it is behind a NAT.
    pub(super) fn contact(&self) -> Vec<u8> {
        match (&self.next_hop, &self.uri) {
            (Some(_), _) => format!("sip:{}", self.flow.peer).into_bytes(),
            (None, Some(uri)) => uri.to_vec(),
            (None, None) => Vec::new(),
        }
    }
}

/// A call on its way to a target, as the media side sees it.
pub(super) fn new_call<'a>(
    proxy: &'a Proxy,
    inner: &'a Message,
    hop: &'a Hop,
    target: &'a Target,
    contact: &'a [u8],
) -> NewCall<'a> {
    NewCall {
        request: inner,
        from: hop,
        to: &target.flow,
        to_relay: target.relay,
        contact,
        trunks: [proxy.trunk_of(hop), proxy.group_of(target)],
    }
}

pub(super) fn has_to_tag(request: &Message) -> bool {
    request.to().is_ok_and(|to| to.tag().is_some())
}

/// Requests that make a dialog (RFC 3261 section 12, RFC 6665), and those of which we do not know it:
/// they need us in their route set.
fn begins_dialog(request: &Message) -> bool {
    let makes_one = matches!(
        request.method(),
        Method::Invite | Method::Subscribe | Method::Notify | Method::Refer | Method::Other(_)
    );
    makes_one && !has_to_tag(request)
}

/// "If that URI does not contain an lr parameter": the next hop reads its own URI in the Request-URI
/// and passes on the last Route value (step 6).
fn suit_strict_router(inner: &Message, target: Option<&[u8]>, edit: &mut Edit<'_>) {
    let Some(Ok(route)) = inner.routes().next() else {
        return;
    };
    let is_strict = |uri: &Uri<'_>| uri.param("lr").is_none() && uri.headers.is_none();
    if !route.parse_uri().is_ok_and(|uri| is_strict(&uri)) {
        return;
    }
    let request_uri = target.unwrap_or(inner.request_uri());
    edit.append(HeaderName::Route, [b"<", request_uri, b">"].concat())
        .remove_first_value(HeaderName::Route)
        .set_request_uri(route.uri);
}

/// Record-Route values in the order in which they are put on top: one where both sides use the
/// same transport, else one for each side (RFC 5658). Of a `sips` dialog they are `sips:` where the
/// side is, which is both unless its first request came without TLS.
fn record_routes(caller: &Flow, callee: &Flow, cookie: &str, sips: bool) -> Vec<String> {
    let side = |transport: Transport, local: SocketAddr| {
        let scheme = if sips && transport.is_secure() {
            "<sips:"
        } else {
            "<sip:"
        };
        let parameter = match transport {
            Transport::Udp => "",
            Transport::Tcp => ";transport=tcp",
            // "proxies MUST NOT use the "transport=tls" parameter" (RFC 5630 section 5.3): where the
            // scheme does not say it, nothing else would.
            Transport::Tls if sips => "",
            Transport::Tls => ";transport=tls",
            // There is no value of its own for WebSocket over TLS (RFC 7118 section 5.1).
            Transport::Ws | Transport::Wss => ";transport=ws",
        };
        let mut address = Vec::with_capacity(48);
        push_address(&mut address, local);
        let address = String::from_utf8_lossy(&address);
        [scheme, cookie, "@", &address, parameter, ";lr>"].concat()
    };
    let mut values = vec![side(caller.transport, caller.local)];
    if (caller.transport, caller.local) != (callee.transport, callee.local) {
        values.push(side(callee.transport, callee.local));
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_where_both_sides_are_the_same_and_one_for_each_where_they_are_not() {
        let udp = flow(Transport::Udp, "198.51.100.1:5060");
        let v6 = flow(Transport::Udp, "[2001:db8::1]:5060");
        let tls = flow(Transport::Tls, "198.51.100.1:5061");
        let wss = flow(Transport::Wss, "198.51.100.1:8443");
        assert_eq!(
            record_routes(&udp, &udp, "C", false),
            ["<sip:C@198.51.100.1:5060;lr>"]
        );
        // "the proxy … inserts two Record-Route header field values" (RFC 5658 section 3.1); the
        // last one that is put on top is for the callee.
        assert_eq!(
            record_routes(&tls, &udp, "C", false),
            [
                "<sip:C@198.51.100.1:5061;transport=tls;lr>",
                "<sip:C@198.51.100.1:5060;lr>"
            ]
        );
        assert_eq!(
            record_routes(&udp, &wss, "C", false)[1],
            "<sip:C@198.51.100.1:8443;transport=ws;lr>"
        );
        assert_eq!(
            record_routes(&udp, &v6, "C", false)[1],
            "<sip:C@[2001:db8::1]:5060;lr>"
        );
        assert_eq!(
            record_routes(&tls, &wss, "C", true),
            [
                "<sips:C@198.51.100.1:5061;lr>",
                "<sips:C@198.51.100.1:8443;transport=ws;lr>"
            ]
        );
        assert_eq!(
            record_routes(&udp, &tls, "C", true),
            [
                "<sip:C@198.51.100.1:5060;lr>",
                "<sips:C@198.51.100.1:5061;lr>"
            ]
        );
    }

    fn flow(transport: Transport, local: &str) -> Flow {
        Flow {
            transport,
            peer: "203.0.113.7:40000".parse().unwrap(),
            local: local.parse().unwrap(),
            connection: None,
        }
    }
}
