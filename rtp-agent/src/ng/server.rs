//! Datagrams in, replies out.
//!
//! [`Server::handle`] judges a datagram and carries it out on the calls; the ports of an offer are opened
//! when the relay's commands have been, so its reply is made by [`Server::finish`], after that. Both are
//! called under one lock: a copy of a request that is still worked on waits there and then finds its reply.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::debug;
use wire::bencode::Value;

use super::calls::{self, Calls, Refusal};
use super::cookies::Cookies;
use super::envelope::{BodyError, Codec, Envelope};
use super::query::{self, Clock};
use super::reply::{Dictionary, Item};
use super::request::{Command, Request};
use super::settings::Settings;
use crate::relay::{Relay, SessionId};

/// Calls in a list when no limit is given, as in rtpengine.
const LIST_LIMIT: usize = 32;
/// A longer reply does not fit into one datagram.
const MAX_REPLY: usize = 60_000;

/// What happened so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests by command, in the order of [`COMMANDS`].
    pub requests: [u64; COMMANDS.len()],
    /// Answered with an error.
    pub errors: u64,
    /// Answered so that the proxy tries another relay.
    pub busy: u64,
    /// Copies of a request, answered with the same reply.
    pub duplicates: u64,
    /// Dropped: from a network that is not allowed.
    pub not_allowed: u64,
    /// Dropped: no cookie.
    pub no_cookie: u64,
    /// Answered with an error: no dictionary.
    pub undecodable: u64,
}

/// Labels of [`Counters::requests`].
pub const COMMANDS: [&str; 9] = [
    "ping",
    "offer",
    "answer",
    "delete",
    "query",
    "list",
    "statistics",
    "unsupported",
    "unknown",
];

/// What a datagram led to.
#[derive(Debug)]
pub enum Step {
    /// Nothing: no reply.
    Dropped,
    /// The reply that it has had before.
    Again(Arc<[u8]>),
    /// Call [`Server::finish`] when the relay's commands have been carried out.
    Fresh(Box<Fresh>),
}

/// A reply that may still turn into an error.
#[derive(Debug)]
pub struct Fresh {
    from: SocketAddr,
    cookie: Vec<u8>,
    codec: Codec,
    reply: Dictionary,
    request: Request,
    opened: Vec<SessionId>,
}

/// All of the protocol's state.
#[derive(Debug)]
pub struct Server {
    settings: Settings,
    calls: Calls,
    cookies: Cookies,
    counters: Counters,
    clock: Clock,
}

impl Server {
    /// No calls. `half_open` is how long an offer may wait for its answer.
    pub fn new(settings: Settings, half_open: Duration, clock: Clock) -> Self {
        Self {
            calls: Calls::new(&settings, half_open),
            cookies: Cookies::new(clock.started),
            counters: Counters::default(),
            clock,
            settings,
        }
    }

    /// What happened so far.
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// The calls.
    pub const fn calls(&self) -> &Calls {
        &self.calls
    }

    /// The kept replies.
    pub const fn cookies(&self) -> &Cookies {
        &self.cookies
    }

    /// A datagram came.
    pub fn handle(
        &mut self,
        datagram: &[u8],
        from: SocketAddr,
        relay: &mut Relay,
        now: Instant,
    ) -> Step {
        if !self.settings.allows(from.ip()) {
            self.counters.not_allowed += 1;
            return Step::Dropped;
        }
        let Some(envelope) = Envelope::open(datagram) else {
            self.counters.no_cookie += 1;
            return Step::Dropped;
        };
        if let Some(reply) = self.cookies.find(from, envelope.cookie, now) {
            self.counters.duplicates += 1;
            return Step::Again(reply);
        }
        let read = read(&envelope);
        let (request, outcome) = match read {
            Ok(request) => {
                let outcome = self.carry_out(&request, relay, now);
                (request, outcome)
            }
            Err(error) => {
                self.counters.undecodable += 1;
                let reply = Dictionary::error(error.to_string());
                (Request::default(), Ok((reply, Vec::new())))
            }
        };
        let (reply, opened) = outcome
            .unwrap_or_else(|refusal| (refused(&refusal, request.knows_load_limit), Vec::new()));
        Step::Fresh(Box::new(Fresh {
            from,
            cookie: envelope.cookie.to_vec(),
            codec: envelope.codec,
            reply,
            request,
            opened,
        }))
    }

    /// The reply, now that the relay has opened the ports, or could not.
    pub fn finish(&mut self, fresh: Fresh, relay: &mut Relay, now: Instant) -> Arc<[u8]> {
        let Fresh {
            from,
            cookie,
            codec,
            mut reply,
            request,
            opened,
        } = fresh;
        if opened.iter().any(|session| !relay.has_session(*session)) {
            let call_id = request.call_id.as_deref().unwrap_or_default();
            self.calls.opening_failed(call_id, relay, now);
            reply = refused(&calls::BIND_FAILED, request.knows_load_limit);
        }
        if reply.is("error") {
            self.counters.errors += 1;
        }
        if reply.is("load limit") || is_busy_text(&reply) {
            self.counters.busy += 1;
        }
        let mut bytes = reply.encode(&cookie, codec);
        if bytes.len() > MAX_REPLY {
            bytes = Dictionary::error("The reply is too long").encode(&cookie, codec);
        }
        let bytes: Arc<[u8]> = bytes.into();
        self.cookies.keep(from, &cookie, Arc::clone(&bytes), now);
        bytes
    }

    /// Ends what is due. To be called every second or so.
    pub fn sweep(&mut self, relay: &mut Relay, now: Instant) {
        self.calls.sweep(relay, now);
    }

    fn carry_out(
        &mut self,
        request: &Request,
        relay: &mut Relay,
        now: Instant,
    ) -> Result<(Dictionary, Vec<SessionId>), Refusal> {
        self.counters.requests[command_index(request.command)] += 1;
        if !request.ignored.is_empty() {
            debug!(ignored = ?request.ignored, "ng: unknown keys or flags");
        }
        let reply = match request.command {
            Command::Ping => Dictionary::result("pong"),
            Command::Offer => {
                let rewritten = self.calls.offer(request, relay, now)?;
                return Ok((with_sdp(rewritten.sdp, request), rewritten.opened));
            }
            Command::Answer => {
                let rewritten = self.calls.answer(request, relay, now)?;
                with_sdp(rewritten.sdp, request)
            }
            Command::Delete => self.delete(request, relay, now)?,
            Command::Query => {
                let call_id = request.call_id.as_deref();
                let call_id = call_id.ok_or(Refusal::Missing("No call-id in message"))?;
                let call = self.calls.get(call_id).ok_or(Refusal::UnknownCall)?;
                query::describe(call, relay, self.clock, now)
            }
            Command::List => self.list(request),
            Command::Statistics => self.statistics(relay, now),
            Command::Unsupported => Dictionary::error("Command is not supported by this relay"),
            Command::Unknown => Dictionary::error("Unrecognized command"),
        };
        Ok((reply, Vec::new()))
    }

    fn delete(
        &mut self,
        request: &Request,
        relay: &mut Relay,
        now: Instant,
    ) -> Result<Dictionary, Refusal> {
        if self.calls.delete(request, relay, now)? {
            return Ok(Dictionary::result("ok"));
        }
        if request.fatal {
            return Err(Refusal::UnknownCall);
        }
        let warning = "Call-ID not found or tags didn't match";
        Ok(Dictionary::result("ok").with("warning", Item::text(warning)))
    }

    fn list(&self, request: &Request) -> Dictionary {
        let limit = request.limit.unwrap_or(LIST_LIMIT);
        let mut room = MAX_REPLY / 2;
        let ids = self.calls.ids().take(limit);
        let ids = ids.take_while(|id| {
            room = room.saturating_sub(id.len() + 8);
            room > 0
        });
        Dictionary::result("ok").with("calls", Item::List(ids.map(Item::text).collect()))
    }

    fn statistics(&self, relay: &Relay, now: Instant) -> Dictionary {
        let totals = relay.totals(now);
        let uptime = now.saturating_duration_since(self.clock.started).as_secs();
        let calls = self.calls.len() as u64;
        let current = Dictionary::default()
            .with("sessionsown", Item::count(calls))
            .with("sessionstotal", Item::count(calls));
        let total = Dictionary::default()
            .with("uptime", Item::count(uptime))
            .with("managedsessions", Item::count(self.calls.counters().calls))
            .with(
                "relayedpackets",
                Item::count(totals.rtp.packets_out + totals.rtcp.packets_out),
            )
            .with(
                "relayedbytes",
                Item::count(totals.rtp.bytes_out + totals.rtcp.bytes_out),
            );
        let statistics = Dictionary::default()
            .with("currentstatistics", Item::Map(current))
            .with("totalstatistics", Item::Map(total));
        Dictionary::result("ok").with("statistics", Item::Map(statistics))
    }
}

fn read(envelope: &Envelope<'_>) -> Result<Request, BodyError> {
    let body = envelope.bencode()?;
    let value = Value::parse(&body).map_err(BodyError::Bencode)?;
    let dictionary = value.dictionary().ok_or(BodyError::Unknown)?;
    Ok(Request::read(dictionary))
}

fn with_sdp(sdp: Vec<u8>, request: &Request) -> Dictionary {
    let reply = Dictionary::result("ok").with("sdp", Item::Text(sdp));
    if request.warnings.is_empty() {
        return reply;
    }
    let warning = request.warnings.join("; ");
    debug!(warning, "ng");
    reply.with("warning", Item::text(warning))
}

/// What makes a proxy try another relay has two forms: Kamailio says whether it knows the newer one.
fn refused(refusal: &Refusal, knows_load_limit: bool) -> Dictionary {
    match refusal {
        Refusal::Busy(text) if knows_load_limit => {
            Dictionary::result("load limit").with("message", Item::text(text))
        }
        Refusal::Busy(_)
        | Refusal::UnknownCall
        | Refusal::Missing(_)
        | Refusal::NotSupported(_)
        | Refusal::Sdp(_) => Dictionary::error(refusal.to_string()),
    }
}

fn is_busy_text(reply: &Dictionary) -> bool {
    let busy = [calls::SESSION_LIMIT, calls::NO_PORTS, calls::BIND_FAILED];
    match reply.get("error-reason") {
        Some(Item::Text(text)) => busy
            .iter()
            .any(|refusal| refusal.to_string().as_bytes() == text),
        _ => false,
    }
}

const fn command_index(command: Command) -> usize {
    match command {
        Command::Ping => 0,
        Command::Offer => 1,
        Command::Answer => 2,
        Command::Delete => 3,
        Command::Query => 4,
        Command::List => 5,
        Command::Statistics => 6,
        Command::Unsupported => 7,
        Command::Unknown => 8,
    }
}
