//! The calls of the proxies: who offers what to whom, and on which of our ports.
//!
//! A [`Call`] is everything with one Call-ID. It has a [`Pair`] for each two parties, which the branches of a
//! fork share unless the proxy tells them apart by via-branch; each m-line of a pair is a session of
//! the relay. Side A faces who made the first offer. From-tag names the sender of an offer and to-tag the
//! sender of an answer; Kamailio swaps them where an answer comes in a request.
//!
//! A session is opened by an offer and bound by the first answer: until then nobody knows the other party,
//! and its first packets are held. While an offer is open the gate of its sender lets in what was agreed
//! before, too (RFC 3264 section 8). A later answer with another to-tag, from another fork, re-points side B.
//!
//! `delete` ends a call after a delay, in which an offer or answer revives it: a proxy that forks serially
//! deletes after each branch that fails.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use sip::sdp::Sdp;
use wire::relay_control::Side;

use super::description::{converts, rewrite};
use super::gates::Sources;
use super::request::Request;
use super::settings::{Settings, UnknownSource};
use crate::relay::{Relay, SessionId};
pub use pair::{Line, Pair};

mod pair;

/// Media lines of a description that are relayed; one with more is refused.
pub const MAX_LINES: usize = 16;
/// Pairs of one call: branches that the proxy tells apart.
pub const MAX_PAIRS: usize = 16;

/// Why a request is not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another relay may have room; the text is rtpengine's, which proxies look for.
    #[error("{0}")]
    Busy(&'static str),
    /// There is no such call.
    #[error("Unknown call-id")]
    UnknownCall,
    /// Something that the command needs is not there.
    #[error("{0}")]
    Missing(&'static str),
    /// What is asked is not built.
    #[error("{0}")]
    NotSupported(String),
    /// The description cannot be read.
    #[error("Could not parse SDP: {0}")]
    Sdp(String),
}

/// Calls at a time.
pub const SESSION_LIMIT: Refusal = Refusal::Busy("Parallel session limit reached");
/// Ports.
pub const NO_PORTS: Refusal = Refusal::Busy("Ran out of ports");
/// The kernel.
pub const BIND_FAILED: Refusal = Refusal::Busy("Cannot open media ports");

/// What happened so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Calls begun.
    pub calls: u64,
    /// Gates that let in any source, because signalling named none.
    pub open_gates: u64,
    /// Descriptions with an address that no media can come from.
    pub hostile_addresses: u64,
    /// Pairs that nobody answered or deleted.
    pub unanswered: u64,
}

/// Everything with one Call-ID.
#[derive(Debug)]
pub struct Call {
    /// When its first offer came.
    pub created: Instant,
    /// When signalling last said something.
    pub last_signal: Instant,
    /// Parties.
    pub pairs: Vec<Pair>,
}

/// A description for the other party, and the sessions whose ports are opened for it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rewritten {
    /// The description.
    pub sdp: Vec<u8>,
    /// Gone again where the ports could not be opened.
    pub opened: Vec<SessionId>,
}

/// All calls.
#[derive(Debug)]
pub struct Calls {
    calls: HashMap<Vec<u8>, Call>,
    max_calls: usize,
    delete_delay: Duration,
    half_open: Duration,
    unknown_source: UnknownSource,
    counters: Counters,
}

impl Calls {
    /// None yet; `half_open` is how long an offer may wait for its answer.
    pub fn new(settings: &Settings, half_open: Duration) -> Self {
        Self {
            calls: HashMap::new(),
            max_calls: settings.max_sessions,
            delete_delay: settings.delete_delay,
            half_open,
            unknown_source: settings.unknown_source,
            counters: Counters::default(),
        }
    }

    /// What happened so far.
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Calls now.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// True where there is none.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// The call of this Call-ID.
    pub fn get(&self, call_id: &[u8]) -> Option<&Call> {
        self.calls.get(call_id)
    }

    /// Call-IDs, in no particular order.
    pub fn ids(&self) -> impl Iterator<Item = &[u8]> {
        self.calls.keys().map(Vec::as_slice)
    }

    /// Takes ports for what is offered, and points it here.
    pub fn offer(
        &mut self,
        request: &Request,
        relay: &mut Relay,
        now: Instant,
    ) -> Result<Rewritten, Refusal> {
        let call_id = call_id(request)?;
        let from_tag = from_tag(request)?;
        let bytes = description(request)?;
        let sdp = parse(bytes, request)?;
        if !self.calls.contains_key(call_id) {
            if self.calls.len() >= self.max_calls {
                return Err(SESSION_LIMIT);
            }
            self.calls.insert(call_id.to_vec(), Call::new(now));
            self.counters.calls += 1;
        }
        let rewritten = self.offer_in_call(call_id, from_tag, &sdp, request, relay, now);
        if rewritten.is_err() {
            self.forget_if_bare(call_id);
        }
        rewritten
    }

    fn offer_in_call(
        &mut self,
        call_id: &[u8],
        from_tag: &[u8],
        sdp: &Sdp<'_>,
        request: &Request,
        relay: &mut Relay,
        now: Instant,
    ) -> Result<Rewritten, Refusal> {
        let call = self.calls.get_mut(call_id).ok_or(Refusal::UnknownCall)?;
        let mut pair = match call.of_offer(request, from_tag) {
            Some(at) => call.pairs.swap_remove(at),
            None if call.pairs.len() >= MAX_PAIRS => return Err(SESSION_LIMIT),
            None => Pair::new(request, from_tag, now),
        };
        let side = pair.side_of(from_tag);
        let opened = pair.open(sdp, side, request, call_id, relay, now);
        let new_pair = pair.lines.iter().all(Option::is_none);
        let opened = match opened {
            Ok(opened) => opened,
            Err(refusal) => {
                if !new_pair {
                    call.pairs.push(pair);
                }
                return Err(refusal);
            }
        };
        let own = relay.addresses().to_vec();
        pair.hear(
            sdp,
            side,
            request,
            (&own, self.unknown_source),
            |line, sources| {
                self.counters.count(&sources);
                line.offer(side, sources, relay, now);
            },
        );
        call.touch(&mut pair, now);
        let sdp = rewrite(sdp, &pair.replacements(sdp, side, request), request);
        call.pairs.push(pair);
        let sdp = sdp.ok_or_else(|| Refusal::Sdp("it cannot be rewritten".to_owned()))?;
        Ok(Rewritten { sdp, opened })
    }

    /// Binds the sessions of the offer that this answers, and points the answer here.
    pub fn answer(
        &mut self,
        request: &Request,
        relay: &mut Relay,
        now: Instant,
    ) -> Result<Rewritten, Refusal> {
        let call_id = call_id(request)?;
        let from_tag = from_tag(request)?;
        let to_tag = request.to_tag.as_deref();
        let to_tag = to_tag.ok_or(Refusal::Missing("No to-tag in message"))?;
        let bytes = description(request)?;
        let sdp = parse(bytes, request)?;
        let call = self.calls.get_mut(call_id).ok_or(Refusal::UnknownCall)?;
        let at = call.of_answer(request, from_tag, to_tag);
        let mut pair = call.pairs.swap_remove(at.ok_or(Refusal::UnknownCall)?);
        let side = pair.side_of(to_tag);
        let fork = side == Side::B && pair.tag_b.as_deref() != Some(to_tag);
        if fork {
            pair.tag_b = Some(to_tag.to_vec());
        }
        let own = relay.addresses().to_vec();
        pair.hear(
            &sdp,
            side,
            request,
            (&own, self.unknown_source),
            |line, sources| {
                self.counters.count(&sources);
                line.conclude(side, sources, fork, call_id, relay, now);
            },
        );
        pair.answered = true;
        call.touch(&mut pair, now);
        let sdp_out = rewrite(&sdp, &pair.replacements(&sdp, side, request), request);
        call.pairs.push(pair);
        let sdp = sdp_out.ok_or_else(|| Refusal::Sdp("it cannot be rewritten".to_owned()))?;
        Ok(Rewritten {
            sdp,
            opened: Vec::new(),
        })
    }

    /// Ends what the tags and the branch name, after the delay; true where there was something.
    pub fn delete(
        &mut self,
        request: &Request,
        relay: &mut Relay,
        now: Instant,
    ) -> Result<bool, Refusal> {
        let call_id = call_id(request)?;
        let Some(call) = self.calls.get_mut(call_id) else {
            return Ok(false);
        };
        let delay = request.delete_delay.unwrap_or(self.delete_delay);
        let ends_at = now + delay.min(Duration::from_secs(3600));
        let chosen = call.of_delete(request);
        for at in &chosen {
            if let Some(pair) = call.pairs.get_mut(*at) {
                pair.ends_at = Some(ends_at);
            }
        }
        call.last_signal = now;
        if delay.is_zero() {
            self.sweep(relay, now);
        }
        Ok(!chosen.is_empty())
    }

    /// Ends what is due, and forgets what the relay has ended. To be called every second or so.
    pub fn sweep(&mut self, relay: &mut Relay, now: Instant) {
        let (half_open, counters) = (self.half_open, &mut self.counters);
        for call in self.calls.values_mut() {
            call.pairs.retain_mut(|pair| {
                let deleted = pair.ends_at.is_some_and(|at| at <= now);
                let unanswered = !pair.answered && pair.last_signal + half_open <= now;
                counters.unanswered += u64::from(unanswered && !deleted);
                if deleted || unanswered {
                    pair.release(relay, now);
                    return false;
                }
                pair.forget_ended(relay);
                !pair.answered || pair.lines.iter().any(Option::is_some)
            });
        }
        self.calls.retain(|_, call| !call.pairs.is_empty());
    }

    /// The ports of an offer could not be opened.
    pub fn opening_failed(&mut self, call_id: &[u8], relay: &mut Relay, now: Instant) {
        if let Some(call) = self.calls.get_mut(call_id) {
            for pair in &mut call.pairs {
                pair.forget_ended(relay);
                if !pair.answered {
                    pair.release(relay, now);
                }
            }
            call.pairs
                .retain(|pair| pair.lines.iter().any(Option::is_some));
        }
        self.forget_if_bare(call_id);
    }

    fn forget_if_bare(&mut self, call_id: &[u8]) {
        if self
            .calls
            .get(call_id)
            .is_some_and(|call| call.pairs.is_empty())
        {
            self.calls.remove(call_id);
        }
    }
}

impl Counters {
    fn count(&mut self, sources: &Sources) {
        self.open_gates += u64::from(sources.open);
        self.hostile_addresses += u64::from(sources.hostile);
    }
}

impl Call {
    const fn new(now: Instant) -> Self {
        Self {
            created: now,
            last_signal: now,
            pairs: Vec::new(),
        }
    }

    const fn touch(&mut self, pair: &mut Pair, now: Instant) {
        self.last_signal = now;
        pair.last_signal = now;
        pair.ends_at = None;
    }

    /// The pair that goes on with this offer.
    fn of_offer(&self, request: &Request, from: &[u8]) -> Option<usize> {
        let branch = &request.via_branch;
        let by_tags = request.to_tag.as_deref().and_then(|to| {
            self.find(|pair| pair.has(from) && pair.has(to))
                .or_else(|| self.find(|pair| pair.has(from) || pair.has(to)))
        });
        by_tags.or_else(|| self.find(|pair| pair.tag_a == from && pair.via_branch == *branch))
    }

    /// The pair whose offer is answered.
    fn of_answer(&self, request: &Request, from: &[u8], to: &[u8]) -> Option<usize> {
        let branch = request.via_branch.as_ref();
        let by_branch = branch.and_then(|branch| {
            self.find(|pair| pair.via_branch.as_ref() == Some(branch) && pair.has(from))
        });
        by_branch
            .or_else(|| self.find(|pair| pair.has(from) && pair.has(to)))
            .or_else(|| self.find(|pair| pair.tag_a == from && pair.tag_b.is_none()))
            .or_else(|| self.find(|pair| pair.has(from) || pair.tag_a == to))
    }

    /// The pairs that end: all of the call, of the branch, of both tags, or of one.
    fn of_delete(&self, request: &Request) -> Vec<usize> {
        let all = |matches: &dyn Fn(&Pair) -> bool| -> Vec<usize> {
            let pairs = self.pairs.iter().enumerate();
            pairs
                .filter(|(_, pair)| matches(pair))
                .map(|(at, _)| at)
                .collect()
        };
        let tags: Vec<&[u8]> = [&request.from_tag, &request.to_tag]
            .into_iter()
            .filter_map(|tag| tag.as_deref())
            .collect();
        if let Some(branch) = &request.via_branch {
            let of_branch = all(&|pair| pair.via_branch.as_ref() == Some(branch));
            if !of_branch.is_empty() {
                return of_branch;
            }
        }
        if tags.is_empty() {
            return all(&|_| true);
        }
        let both = all(&|pair| tags.iter().all(|tag| pair.has(tag)));
        if both.is_empty() {
            return all(&|pair| tags.iter().any(|tag| pair.has(tag)));
        }
        both
    }

    fn find(&self, matches: impl Fn(&Pair) -> bool) -> Option<usize> {
        // The newest: older ones are of branches that have failed.
        (0..self.pairs.len())
            .filter(|at| self.pairs.get(*at).is_some_and(&matches))
            .max_by_key(|at| self.pairs.get(*at).map(|pair| pair.last_signal))
    }
}

fn parse<'a>(bytes: &'a [u8], request: &Request) -> Result<Sdp<'a>, Refusal> {
    if let Some(refused) = request.refused {
        return Err(Refusal::NotSupported(refused.to_string()));
    }
    let sdp = Sdp::parse(bytes).map_err(|error| Refusal::Sdp(error.to_string()))?;
    if sdp.media().len() > MAX_LINES {
        let text = format!("more than {MAX_LINES} media lines");
        return Err(Refusal::NotSupported(text));
    }
    let wanted = request.transport_protocol.as_deref();
    if wanted.is_some_and(|wanted| converts(&sdp, wanted)) {
        let text = "Transport protocol conversion is not supported";
        return Err(Refusal::NotSupported(text.to_owned()));
    }
    Ok(sdp)
}

fn call_id(request: &Request) -> Result<&[u8], Refusal> {
    let call_id = request.call_id.as_deref();
    call_id.ok_or(Refusal::Missing("No call-id in message"))
}

fn from_tag(request: &Request) -> Result<&[u8], Refusal> {
    let from_tag = request.from_tag.as_deref();
    from_tag.ok_or(Refusal::Missing("No from-tag in message"))
}

fn description(request: &Request) -> Result<&[u8], Refusal> {
    let sdp = request.sdp.as_deref();
    sdp.ok_or(Refusal::Missing("No SDP body in message"))
}
