//! The stateful proxy of RFC 3261 section 16, with the registrar of section 10 beside it.
//!
//! [`Proxy`] is fed with what came in (`handle_*`) and drained of what must go out (`poll_*`).
//! After every `handle_*` the caller drains [`Proxy::poll_transmit`] until it is empty and then
//! sleeps until [`Proxy::poll_timeout`].
//!
//! A request that is not a retransmission gets a [`Context`]: the request as it came, one
//! [`Branch`] per target, and the best final response so far. Contexts are keyed by their server
//! transaction; a client transaction leads back to its context and branch. The path of a request:
//!
//! * `validate`: may it be forwarded at all (16.3)
//! * `authenticate`: who sent it, and may they (22, 26.3.2)
//! * `route`: our own Route values off, the dialog cookie opened, targets chosen (16.4, 16.5)
//! * `loops`: whether it was here before (RFC 5393)
//! * `routing`, `groups`, `next_hop`: where requests go that no phone of ours is asked for, and the
//!   wait for the DNS (RFC 3263); `probes`: whether a next hop is there
//! * `edge`: Path, where the registrar stands behind us (RFC 3327)
//! * `answer`: what the sender of a request is told (8.2.6)
//! * `fork`: which targets at once and which later, and how long a context lives (16.6, 16.8)
//! * `forward`: the copy for each target, Record-Route, Via, media (16.6)
//! * `large`: which copies go over TCP because of their length (18.1.1)
//! * `response`: back to the caller, best of several (16.7)
//! * `cancel`: CANCEL and Timer C (16.8, 16.10)
//! * `sips`: what must go over TLS (26.2.2, RFC 5630)
//! * `overload`: which requests are refused so that others succeed (21.5.4)
//! * `lost`: calls whose relay fails before they are answered
//! * `hang_up`: what a call's end needs that nobody asks for (15)
//! * `calls`: what happened, for records of calls
//! * `peers`: messages that are another core's, which is alive
//! * `returning`: what is for a user agent whose connection went with its concentrator
//! * `sharing`: registrations that other concentrators have too
//! * `stateless`: messages of transactions that another core had (16.11)
//! * `uas`: what is answered here (8.2); `reveal`: by which edge it came, for those who may know
//!
//! Requests of a dialog are routed by the signed cookie in our Record-Route URI, never by what a
//! Contact behind a NAT claims; nothing about a dialog is kept here, but where relayed calls are to
//! be ended from here (`hang_up`). Our Via holds a signed cookie
//! too, so that a core that never saw a request can pass its responses on.
//!
//! Standards: RFC 3261 sections 10, 16 and 18.2; RFC 3581 (rport); RFC 4320 (no 408 to
//! non-INVITE); RFC 5626 section 5 (flow tokens); RFC 5658 (double Record-Route); RFC 6026.

mod answer;
pub mod authenticate;
pub mod calls;
mod cancel;
mod counters;
mod edge;
mod fork;
mod forward;
pub mod groups;
mod hang_up;
mod large;
mod loops;
mod lost;
pub mod media;
mod next_hop;
mod overload;
mod peers;
mod probes;
mod response;
mod returning;
pub mod reveal;
mod route;
pub mod routing;
pub mod sharing;
mod sips;
mod stateless;
mod uas;
mod validate;
mod waiting;

pub use counters::Counters;
pub use peers::Handover;

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::cookie::{DialogCookie, Keys, Owner};
use crate::hop::{ConnectionId, Flow, Hop, Transmit};
use crate::message::Message;
use crate::own_id::OwnIdMap;
use crate::registrar::record::Record;
use crate::registrar::{self, Registrar};
use crate::timer::Timers;
use crate::transaction::{self, ClientId, Incoming, ServerId, Transactions};
use forward::Outbound;
use groups::Groups;
use large::TcpPeers;
use media::{Media, Party, SessionRef};
pub use next_hop::QueryId;
use next_hop::{NextHopRules, Onward, Resolving};
use probes::Probes;
use returning::Returning;
use waiting::WaitingForMedia;

/// What the proxy must know of its surroundings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Addresses and ports that UAs send to; Route and Request-URIs that name one are ours.
    pub service: Vec<SocketAddr>,
    /// Domains that the registrar serves, lower case.
    pub domains: Vec<String>,
    /// Keys of the cookies and branches.
    pub keys: Keys,
    /// This running core, among those with the same keys.
    pub owner: Owner,
    /// There are others, and they may take over our dialogs or hand them back.
    pub clustered: bool,
    /// The transaction timers.
    pub timers: Timers,
    /// Timer C: how long an INVITE may ring (RFC 3261 section 16.6 step 11; more than 3 minutes).
    pub timer_c: Duration,
    /// Bounds of the transaction tables.
    pub limits: transaction::Limits,
    /// Bounds and lifetimes of the registrar.
    pub registrar: registrar::Limits,
    /// Where requests go that the registrar does not serve.
    pub routing: routing::Config,
    /// A moment on both clocks: the monotonic one and seconds since 1970, for cookies.
    pub epoch: (Instant, u64),
}

/// Timer C's default: over the three minutes that RFC 3261 section 16.6 step 11 asks for.
pub const TIMER_C: Duration = Duration::from_secs(185);

/// A request in progress.
#[derive(Debug)]
struct Context {
    /// Let go of once nothing can be made of it any more: a context outlives its answer by 32 s.
    request: Message,
    /// True for an INVITE.
    invite: bool,
    branches: Vec<Branch>,
    /// The best failure so far, and the branch it came from.
    best: Option<(usize, Message)>,
    /// Challenges of the branches, for a 401 or 407 that is sent in the end (16.7 step 7).
    challenges: Vec<response::Challenge>,
    /// A final response was chosen: no further failure is sent.
    decided: bool,
    /// The server transaction is over: nobody is left to answer to.
    orphan: bool,
    /// Targets to try when those so far have failed.
    rest: Option<fork::Rest>,
    /// The dialog that the request belongs to, and who sent it.
    dialog: Option<(DialogCookie, Party)>,
}

/// One copy of a request at one target.
#[derive(Debug)]
struct Branch {
    client: ClientId,
    request: Message,
    flow: Flow,
    /// What names the user agent there; 0 without.
    name: u64,
    progress: Progress,
    session: Option<SessionRef>,
    /// As in its target.
    instance: Bytes,
    /// The user agent itself has answered, so another flow to it would tell no more.
    reached: bool,
    /// The session is that of an earlier pass of the same request through here.
    borrowed: bool,
    /// The request comes through here once more, and so do the answers to it, before they come here.
    passes_again: bool,
    /// It went to a next hop, which must say something within this time.
    patience: Option<Duration>,
    /// It goes over TCP for its length alone.
    instead_of_udp: bool,
    /// It went to the flow that a Path names.
    by_path: bool,
    /// It was cancelled because its relay has failed.
    media_lost: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// No response yet; `cancel` asks for a CANCEL as soon as one comes (RFC 3261 section 9.1).
    Calling { cancel: bool },
    /// A provisional response came.
    Proceeding { cancelled: bool },
    /// A final response came or the branch was given up.
    Done,
}

/// A target of a request (RFC 3261 section 16.5).
#[derive(Debug, Clone)]
struct Target {
    /// The new Request-URI; `None` keeps the one that came.
    uri: Option<Bytes>,
    flow: Flow,
    relay: Option<wire::mark::RelayId>,
    /// Its preference; equal ones are tried at once.
    q_thousandths: u16,
    /// The proxies on the way, as Route values (RFC 3327).
    path: registrar::Path,
    /// The instance that has several flows (RFC 5626); empty where this is the only way.
    instance: Bytes,
    /// Which of them this is: each is tried when those with less have failed.
    alternative: usize,
    /// What names the user agent there; 0 without.
    name: u64,
    /// It is no phone.
    next_hop: Option<NextHopRules>,
    /// A Path of ours named it.
    by_path: bool,
}

/// The stateful proxy and registrar.
#[derive(Debug)]
pub struct Proxy {
    config: Config,
    registrar: Registrar,
    /// Where there is none everybody may do everything.
    authentication: Option<authenticate::State>,
    transactions: Transactions,
    /// Boxed, so that a hundred thousand of them are not moved when the table grows.
    contexts: OwnIdMap<ServerId, Box<Context>>,
    by_client: OwnIdMap<ClientId, (ServerId, usize)>,
    timer_c: BTreeSet<(Instant, ClientId)>,
    timer_c_of: OwnIdMap<ClientId, Instant>,
    uas: uas::Requests,
    transmits: VecDeque<Transmit>,
    counters: Counters,
    /// The surroundings cannot keep up.
    overloaded: bool,
    groups: Groups,
    resolving: Resolving,
    waiting_for_media: WaitingForMedia,
    probes: Probes,
    tcp_peers: TcpPeers,
    dialogs: hang_up::Dialogs,
    journal: calls::Journal,
    reveal: reveal::Reveal,
    peers: peers::Peers,
    held: sharing::Held,
    returning: Returning,
}

impl Proxy {
    /// A proxy with no bindings and no transactions.
    pub fn new(config: Config) -> Self {
        Self {
            registrar: Registrar::new(config.registrar, config.keys.clone()),
            authentication: None,
            transactions: Transactions::new(config.limits, config.timers),
            groups: Groups::new(config.routing.groups.clone(), config.epoch.0),
            resolving: Resolving::default(),
            waiting_for_media: WaitingForMedia::default(),
            probes: Probes::default(),
            tcp_peers: TcpPeers::default(),
            config,
            contexts: OwnIdMap::default(),
            by_client: OwnIdMap::default(),
            timer_c: BTreeSet::new(),
            timer_c_of: OwnIdMap::default(),
            uas: uas::Requests::default(),
            transmits: VecDeque::new(),
            counters: Counters::default(),
            overloaded: false,
            dialogs: hang_up::Dialogs::default(),
            journal: calls::Journal::default(),
            reveal: reveal::Reveal::default(),
            peers: peers::Peers::default(),
            held: sharing::Held::default(),
            returning: Returning::default(),
        }
    }

    /// The shell says whether it cannot keep up: while it cannot, new requests are refused.
    pub fn set_overloaded(&mut self, overloaded: bool) {
        self.overloaded = overloaded;
    }

    /// Takes one message from a transport.
    pub fn handle_message(&mut self, bytes: Bytes, hop: &Hop, media: &mut dyn Media, now: Instant) {
        match Message::parse(bytes) {
            Ok(message) => self.handle_parsed(message, hop, media, now),
            Err(_) => self.counters.unparsable += 1,
        }
    }

    /// Takes one message that a stream transport has already parsed.
    pub fn handle_parsed(
        &mut self,
        message: Message,
        hop: &Hop,
        media: &mut dyn Media,
        now: Instant,
    ) {
        if message.is_request() {
            self.handle_request(message, hop, media, now);
        } else {
            self.handle_response(&message, hop, media, now);
        }
        self.drain(media, now);
    }

    /// Fires every timer that is due.
    pub fn handle_timeout(&mut self, media: &mut dyn Media, now: Instant) {
        self.registrar.handle_timeout(now);
        self.release_held(now);
        self.transactions.handle_timeout(now);
        self.fire_timer_c(media, now);
        self.fire_dns_deadlines(media, now);
        self.fire_media_deadlines(media, now);
        self.fire_returning(media, now);
        self.follow_rebound(now);
        self.end_without_ack(now);
        self.fire_probes(now);
        self.drain(media, now);
    }

    /// A transport could not deliver to this flow.
    pub fn handle_transport_error(&mut self, flow: &Flow, media: &mut dyn Media, now: Instant) {
        if let Some(connection) = flow.connection {
            self.connection_lost(connection, now);
        }
        self.transactions.handle_transport_error(flow, now);
        self.drain(media, now);
    }

    /// A connection is gone, and with it the bindings that only it could reach and the
    /// transactions that waited for it.
    pub fn handle_connection_closed(
        &mut self,
        connection: ConnectionId,
        media: &mut dyn Media,
        now: Instant,
    ) {
        self.connection_lost(connection, now);
        self.registrar.connection_closed(connection, now);
        if let Some(state) = &mut self.authentication {
            state.connection_closed(connection);
        }
        self.transactions.handle_connection_closed(connection);
        self.drain(media, now);
    }

    /// The next message to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// What happened to a binding, for whoever keeps them; of those that nobody takes the oldest
    /// are dropped.
    pub fn poll_registration(&mut self) -> Option<registrar::Event> {
        self.registrar.poll_event()
    }

    /// Nobody keeps bindings: what happens to them need not be told.
    pub fn ignore_registrations(&mut self) {
        self.registrar.tell_nobody();
    }

    /// Takes a binding back that was kept over a restart; false where it has no place.
    pub fn restore(&mut self, record: Record, now: Instant) -> bool {
        !record.removed && self.registrar.restore(&record.user, record.binding, now)
    }

    /// When to call [`Proxy::handle_timeout`], and for whom.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let timer_c = self.timer_c.first().map(|(at, _)| (*at, "timer C"));
        [
            self.transactions.poll_timeout(),
            self.registrar.poll_timeout(),
            timer_c,
            self.resolving.poll_timeout(),
            self.waiting_for_media.poll_timeout(),
            self.groups.poll_timeout().map(|at| (at, "probe")),
            self.next_held(),
            self.returning.poll_timeout(),
            self.next_rebound(),
            self.next_ending(),
        ]
        .into_iter()
        .flatten()
        .min_by_key(|(at, _)| *at)
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// True where a request that came by this connection, or went out by it, has no final answer yet.
    pub fn waits_on(&self, connection: ConnectionId) -> bool {
        self.transactions.waits_on(connection)
    }

    /// The registrar, to look at.
    pub fn registrar(&self) -> &Registrar {
        &self.registrar
    }

    /// The transaction layer, to look at.
    pub fn transactions(&self) -> &Transactions {
        &self.transactions
    }

    /// Requests in progress.
    pub fn contexts(&self) -> usize {
        self.contexts.len()
    }

    /// Branches that are still found by their client transaction, and Timer C entries.
    pub fn branches_and_timers(&self) -> (usize, usize) {
        (
            self.by_client.len(),
            self.timer_c.len().max(self.timer_c_of.len()),
        )
    }

    /// Requests that are remembered to tell merged ones.
    pub fn merges(&self) -> usize {
        self.uas.len()
    }

    fn handle_request(&mut self, request: Message, hop: &Hop, media: &mut dyn Media, now: Instant) {
        self.registrar.seen(&hop.flow, hop.relay, now);
        // It is judged as it came: the stamped Via may be without a fault that it had.
        let judged = request.check();
        if judged.is_ok() && self.hand_over_dialog(&request, hop) {
            return;
        }
        let request = validate::with_source(request, hop);
        if let Err(fault) = judged {
            self.counters.rejected += 1;
            self.refuse_statelessly(&request, hop, fault.status, fault.reason);
            return;
        }
        if self.challenge_at_once(&request, hop, now) {
            return;
        }
        match self.transactions.handle_request(&request, hop, now) {
            Incoming::New(id) | Incoming::Cancel { cancel: id, .. }
                if self.must_shed(&request, hop) =>
            {
                self.transactions.abandon_server(id);
                self.refuse_for_now(&request, hop);
            }
            Incoming::New(id) => self.begin(id, request, hop, media, now),
            Incoming::Retransmission | Incoming::AckAbsorbed => {}
            Incoming::AckEndToEnd => self.forward_ack(&request, hop, media, now),
            Incoming::AckUnanswered(invite) => {
                self.failed_elsewhere(&request, hop, invite, media, now);
            }
            Incoming::Cancel { cancel, invite } => {
                self.handle_cancel(&request, hop, cancel, invite, now);
            }
            // It passed the check, so this is a request without a key: nothing can be answered to it.
            Incoming::Unusable => self.counters.rejected += 1,
            Incoming::Full => {
                self.counters.overload += 1;
                self.refuse_for_now(&request, hop);
            }
        }
    }

    /// A new transaction: answered here, or forwarded.
    fn begin(
        &mut self,
        id: ServerId,
        request: Message,
        hop: &Hop,
        media: &mut dyn Media,
        now: Instant,
    ) {
        if let Err(rejection) = validate::forwardable(&request) {
            self.counters.rejected += 1;
            let response = rejection.response(&request, self.to_tag(&request));
            if self.authentication.is_some() || self.may_be_forged(hop) {
                self.answer_stranger(id, &request, hop, response.0);
            } else {
                self.transactions.respond(id, response.0, response.1, now);
            }
            return;
        }
        if validate::is_traceroute(&request) {
            return self.answer_options(id, &request, hop, now);
        }
        let (inner, named) = self.take_own_routes(&request);
        let in_dialog = matches!(named, Some(route::Named::Dialog(_)));
        if !self.let_in(id, &request, &inner, in_dialog, hop, now) {
            return;
        }
        self.journal_begin(id, &request, hop, in_dialog);
        let routed = self.route(inner, named, hop, now);
        if matches!(routed, route::Routed::Register(_) | route::Routed::Options)
            && let Some(refusal) = self.refused_as_uas(id, &request)
        {
            return self.answer(id, &refusal, now);
        }
        match routed {
            route::Routed::Register(aor) => {
                let before = self.registrar.told();
                let response = self.registrar.register(&request, &aor, hop, now);
                let numbers = (before, self.registrar.told());
                self.answer_register(id, &response, numbers, now);
            }
            route::Routed::Options => self.answer_options(id, &request, hop, now),
            route::Routed::WrongScheme => self.refuse_scheme(id, &request, hop, now),
            route::Routed::Refused { status, reason } if self.may_be_forged(hop) => {
                let response = self.refusal(&request, status, reason);
                self.journal_refusal(id, status);
                self.answer_stranger(id, &request, hop, response);
            }
            route::Routed::Refused { status, reason } => {
                self.respond(id, &request, status, reason, now);
            }
            route::Routed::Awaited {
                request: inner,
                until,
            } => {
                let outbound = Outbound::new(request, inner, hop, Vec::new());
                self.await_return(id, outbound, until, now);
            }
            route::Routed::Onward {
                request: inner,
                way,
                uri,
            } => {
                let (original, hop) = (request, *hop);
                let onward = Onward {
                    original,
                    inner,
                    hop,
                    way,
                    uri,
                };
                self.go_on(id, onward, media, now);
            }
            route::Routed::Forward {
                request: inner,
                targets,
                dialog,
            } => {
                let outbound = Outbound {
                    dialog,
                    ..Outbound::new(request, inner, hop, targets)
                };
                self.start(id, outbound, media, now);
            }
        }
    }

    /// Moves what the inner machines have produced to our own queues.
    fn drain(&mut self, media: &mut dyn Media, now: Instant) {
        while let Some(event) = self.transactions.poll_event() {
            match event {
                transaction::Event::Timeout(client) => {
                    self.branch_failed(client, 408, "Request Timeout", media, now);
                    self.forget_client(client);
                }
                transaction::Event::TransportError(client) => {
                    if !self.retry_over_udp(client, now) {
                        let (status, reason) = self.flow_failed(client);
                        self.branch_failed(client, status, reason, media, now);
                    }
                    self.forget_client(client);
                }
                transaction::Event::Slow(server) => self.say_trying(server, now),
                transaction::Event::ClientEnded(client) => self.forget_client(client),
                transaction::Event::ServerEnded(server) => self.server_ended(server, now),
            }
        }
        while let Some(transmit) = self.transactions.poll_transmit() {
            self.transmits.push_back(transmit);
        }
        while let Some(ping) = self.registrar.poll_transmit() {
            self.transmits.push_back(ping);
        }
    }

    /// "an element MUST respond to a non-INVITE request with a Status-Code of 100 if it has not
    /// otherwise responded after the amount of time it takes a client transaction's Timer E to be
    /// reset to T2" (RFC 4320 section 4.1).
    fn say_trying(&mut self, server: ServerId, now: Instant) {
        if let Some(context) = self.contexts.get(&server) {
            let request = context.request.clone();
            self.respond(server, &request, 100, "Trying", now);
        }
    }

    fn forget_client(&mut self, client: ClientId) {
        self.by_client.remove(&client);
        self.stop_timer_c(client);
        self.probe_ended(client, false);
    }
}
