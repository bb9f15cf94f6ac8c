//! The edge of somebody else's registrar (RFC 3327, RFC 5626 section 5): Path, the flows that it
//! names, and calls that pass here twice.
//!
//! A REGISTER that a route sends on gets a Path whose user part is a signed token of the flow that
//! it came by. The registrar behind us puts it into Route, and the request goes to that flow: no
//! Contact is rewritten, none is believed. A call between two phones of such a registrar passes
//! here twice, once from each side. Both passes share the media session that the first one made;
//! the second finds it in the Record-Route of the first. The media are told of each message once, by
//! the pass that hears its sender: a request's first pass, an answer's last branch.
//!
//! The UA's Supported and the registrar's Require pass as they are: whether a REGISTER with Path and
//! without "Supported: path" is taken is the registrar's policy (RFC 3327 section 5.3).

use super::forward::VIA_COOKIE;
use super::groups::DialogAddress;
use super::media::{Party, SessionRef};
use super::{Branch, Proxy, Target};
use crate::cookie::DialogCookie;
use crate::hop::{Flow, Hop, Transport};
use crate::message::{Message, Method, NameAddr, ValueError};
use crate::transaction::{ClientId, ServerId};

/// Record-Route values that are looked at; a request that has passed more hops is looked at no
/// further.
const MAX_RECORD_ROUTES: usize = 16;

impl Proxy {
    /// Our Path value for a REGISTER that came by `hop` and goes to `to`.
    pub(super) fn path(&mut self, hop: &Hop, to: &Flow) -> String {
        self.counters.routing.paths += 1;
        let token = self.config.keys.seal_path(hop);
        let transport = match to.transport {
            Transport::Udp => "",
            Transport::Tcp => ";transport=tcp",
            Transport::Tls => ";transport=tls",
            Transport::Ws => ";transport=ws",
            Transport::Wss => ";transport=wss",
        };
        format!("<sip:{token}@{}{transport};lr>", to.local)
    }

    /// What a transport error on a branch is to the caller. "If the flow … is no longer valid … the
    /// proxy … returns a 430 (Flow Failed)" (RFC 5626 section 5.3.1); elsewhere a 503 (RFC 3261
    /// section 16.9).
    pub(super) fn flow_failed(&mut self, client: ClientId) -> (u16, &'static str) {
        let branch = self
            .by_client
            .get(&client)
            .and_then(|(server, index)| self.contexts.get(server)?.branches.get(*index));
        if branch.is_some_and(|branch| branch.by_path) {
            self.counters.routing.dead_flows += 1;
            return (430, "Flow Failed");
        }
        (503, "Service Unavailable")
    }

    /// The two sides of a dialog as Record-Route names them: at the addresses that they use, or both
    /// at our unicast address where the other party must stay with this concentrator.
    pub(super) fn dialog_flows(&self, hop: &Hop, target: &Target) -> (Flow, Flow) {
        let (caller, callee) = (hop.flow, target.flow);
        let to_unicast = target
            .next_hop
            .is_some_and(|rules| rules.dialog_address == DialogAddress::Unicast);
        let from_unicast = || {
            let source = hop.flow.peer.ip();
            let group = self.config.routing.group_of_source(source);
            group
                .and_then(|group| self.groups.config(group))
                .is_some_and(|group| group.dialog_address == DialogAddress::Unicast)
        };
        if !to_unicast && !from_unicast() {
            return (caller, callee);
        }
        (self.at_unicast(caller), self.at_unicast(callee))
    }

    fn at_unicast(&self, flow: Flow) -> Flow {
        let listens = matches!(flow.transport, Transport::Udp | Transport::Tcp);
        let unicast = self.config.routing.unicast_of(flow.peer.ip());
        match unicast.filter(|_| listens) {
            Some(local) => Flow { local, ..flow },
            None => flow,
        }
    }

    /// The media session that an earlier pass of a new INVITE through here has made.
    pub(super) fn earlier_session(&self, inner: &Message, new: bool) -> Option<SessionRef> {
        if !new || inner.method() != Method::Invite {
            return None;
        }
        let from = inner.from().ok()?;
        let tag = from.tag().unwrap_or_default();
        self.own_cookies(inner.record_routes())
            .filter(|cookie| self.config.keys.is_tag(cookie.caller_tag, tag))
            .find_map(|cookie| SessionRef::of(&cookie))
    }

    /// True where a request has been here before and its media are seen to: the cookie in a Via of
    /// ours names their session.
    pub(super) fn media_done(&self, inner: &Message) -> bool {
        inner.vias().flatten().any(|via| {
            let opened = self.sent_by(&via).and_then(|sent_by| {
                let (text, branch) = (via.params.get(VIA_COOKIE)?, via.branch()?);
                self.config.keys.open_via(text, sent_by, branch).ok()
            });
            opened.is_some_and(|cookie| cookie.session.is_some())
        })
    }

    /// True where a request of a dialog will come through here again, by the rest of its Route.
    pub(super) fn passes_again(
        &self,
        inner: &Message,
        dialog: Option<&(DialogCookie, Party)>,
    ) -> bool {
        let Some(session) = dialog.and_then(|(cookie, _)| SessionRef::of(cookie)) else {
            return false;
        };
        self.own_cookies(inner.routes())
            .any(|cookie| SessionRef::of(&cookie) == Some(session))
    }

    /// True where an answer to a new INVITE has come through here on its way: the latest of our
    /// dialogs in its Record-Route has the same session, and another caller than this one.
    pub(super) fn passed_here(
        &self,
        server: ServerId,
        response: &Message,
        session: SessionRef,
    ) -> bool {
        let caller = self.transactions.server_flow(server);
        let latest = self
            .own_cookies(response.record_routes())
            .find(|cookie| SessionRef::of(cookie) == Some(session));
        latest.is_some_and(|cookie| caller.is_some_and(|caller| caller != cookie.caller))
    }

    /// The cookies of ours among Route or Record-Route values.
    fn own_cookies<'a>(
        &'a self,
        values: impl Iterator<Item = Result<NameAddr<'a>, ValueError>> + 'a,
    ) -> impl Iterator<Item = DialogCookie> + 'a {
        values
            .take(MAX_RECORD_ROUTES)
            .filter_map(|value| value.ok()?.parse_uri().ok())
            .filter(|uri| self.is_ours(uri))
            .filter_map(|uri| self.config.keys.open(uri.user?).ok())
    }
}

impl Branch {
    /// The session that is given back when this branch fails.
    pub(super) fn own_session(&self) -> Option<SessionRef> {
        self.session.filter(|_| !self.borrowed)
    }
}
