//! Requests on their way to a next hop: the members of a group or what the DNS says, the wait for
//! its answers, and the list of targets that comes of it (RFC 3261 section 16.6 step 7, RFC 3263).
//!
//! A [`Lookup`] for each member, all at once; those of numeric members are done before they begin.
//! When all are done the request is forwarded to the first target, and `fork` goes on to the next
//! one when that is silent or answers with one of the group's `fail_on`. A request waits for
//! [`PATIENCE`] at most; what is known by then is used. A CANCEL, or the end of the caller's
//! connection, ends the wait.
//!
//! The transport layer is told where to, by a [`Flow`] without a connection.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::forward::Outbound;
use super::groups::{DialogAddress, MemberId};
use super::media::Media;
use super::{Proxy, Target};
use crate::hop::{Flow, Hop};
use crate::message::{Message, Method, Uri};
use crate::resolve::{Answer, Lookup, Means, NextHop, Query};
use crate::transaction::ServerId;

/// Requests and probes that may wait for the DNS.
const MAX_WAITING: usize = 2000;
/// How long one waits.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long a next hop that no group names may be silent before the next address is tried.
const TIMEOUT: Duration = Duration::from_secs(6);
/// Numbers of questions that one lookup may use: 1 for NAPTR, some for SRV, two for each server.
const IDS_PER_LOOKUP: u64 = 1 << 8;

/// Names a question to the DNS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct QueryId(pub u64);

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Group(usize),
    Dns,
}

/// How a next hop is treated other than a phone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NextHopRules {
    /// The group that it belongs to.
    pub(super) group: Option<usize>,
    /// How long it may be silent.
    pub(super) timeout: Duration,
    pub(super) dialog_address: DialogAddress,
}

/// A request that knows its way and not yet its targets.
#[derive(Debug)]
pub(super) struct Onward {
    pub(super) original: Message,
    pub(super) inner: Message,
    pub(super) hop: Hop,
    pub(super) way: Way,
    /// The new Request-URI, if the route makes one.
    pub(super) uri: Option<Bytes>,
}

/// Who waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Waiter {
    Request(ServerId),
    Probe(MemberId),
}

#[derive(Debug)]
struct Wait {
    lookups: Vec<Lookup>,
    deadline: Instant,
    /// `None` for a probe.
    request: Option<Box<Onward>>,
}

/// Everybody who waits for the DNS.
#[derive(Debug, Default)]
pub(super) struct Resolving {
    waits: HashMap<Waiter, Wait>,
    deadlines: BTreeSet<(Instant, Waiter)>,
    /// Lookup number -> who waits for it, and which of its lookups it is.
    lookups: HashMap<u64, (Waiter, usize)>,
    queries: VecDeque<(QueryId, Query)>,
    last_lookup: u64,
}

impl Resolving {
    pub(super) fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let (at, _) = self.deadlines.first()?;
        Some((*at, "DNS"))
    }

    fn first_id(&mut self) -> u64 {
        self.last_lookup += 1;
        self.last_lookup * IDS_PER_LOOKUP
    }

    fn insert(&mut self, waiter: Waiter, mut wait: Wait, numbers: &[u64]) {
        for (index, (lookup, number)) in wait.lookups.iter_mut().zip(numbers).enumerate() {
            self.lookups
                .insert(number / IDS_PER_LOOKUP, (waiter, index));
            while let Some((id, query)) = lookup.poll_query() {
                self.queries.push_back((QueryId(id), query));
            }
        }
        self.deadlines.insert((wait.deadline, waiter));
        self.waits.insert(waiter, wait);
    }

    fn remove(&mut self, waiter: Waiter) -> Option<Wait> {
        let wait = self.waits.remove(&waiter)?;
        self.deadlines.remove(&(wait.deadline, waiter));
        self.lookups.retain(|_, (other, _)| *other != waiter);
        Some(wait)
    }
}

impl Proxy {
    /// The next question for the DNS; the answer goes to [`Proxy::handle_answer`].
    pub fn poll_query(&mut self) -> Option<(QueryId, Query)> {
        self.resolving.queries.pop_front()
    }

    /// What the DNS said. One that nobody waits for any more is ignored.
    pub fn handle_answer(
        &mut self,
        id: QueryId,
        answer: Answer,
        media: &mut dyn Media,
        now: Instant,
    ) {
        let resolving = &mut self.resolving;
        let Some(&(waiter, index)) = resolving.lookups.get(&(id.0 / IDS_PER_LOOKUP)) else {
            return;
        };
        let Some(wait) = resolving.waits.get_mut(&waiter) else {
            return;
        };
        if let Some(lookup) = wait.lookups.get_mut(index) {
            lookup.handle_answer(id.0, answer);
            while let Some((id, query)) = lookup.poll_query() {
                resolving.queries.push_back((QueryId(id), query));
            }
        }
        if wait.lookups.iter().all(Lookup::is_done) {
            self.resolved(waiter, media, now);
        }
        self.drain(media, now);
    }

    /// Requests and probes that wait for the DNS.
    pub fn waiting(&self) -> usize {
        self.resolving.waits.len()
    }

    /// Those who have waited long enough go on with what there is.
    pub(super) fn fire_dns_deadlines(&mut self, media: &mut dyn Media, now: Instant) {
        while let Some(&(at, waiter)) = self.resolving.deadlines.first() {
            if at > now {
                return;
            }
            if let Some(wait) = self.resolving.waits.get_mut(&waiter) {
                self.counters.routing.dns_timeouts += 1;
                wait.lookups.iter_mut().for_each(Lookup::give_up);
            }
            self.resolved(waiter, media, now);
        }
    }

    /// Sends a request on its way, at once or when the DNS has answered.
    pub(super) fn go_on(
        &mut self,
        id: ServerId,
        onward: Onward,
        media: &mut dyn Media,
        now: Instant,
    ) {
        let random = u64::from(
            self.config
                .keys
                .tag_hash(onward.original.call_id().unwrap_or_default()),
        );
        let uris: Vec<Bytes> = match onward.way {
            Way::Dns => {
                let uri = onward.uri.clone();
                vec![uri.unwrap_or_else(|| Bytes::copy_from_slice(onward.inner.request_uri()))]
            }
            Way::Group(group) => self
                .groups
                .order(group, random)
                .into_iter()
                .filter_map(|member| Some(self.groups.member(member)?.uri.clone()))
                .collect(),
        };
        let (lookups, numbers) = self.lookups(&uris, random);
        if lookups.iter().all(Lookup::is_done) {
            return self.launch(id, onward, &lookups, false, media, now);
        }
        if self.resolving.waits.len() >= MAX_WAITING {
            self.counters.overload += 1;
            self.respond(id, &onward.original, 503, "Service Unavailable", now);
            return;
        }
        if onward.original.method() == Method::Invite {
            self.respond(id, &onward.original, 100, "Trying", now);
        }
        let wait = Wait {
            lookups,
            deadline: now + PATIENCE,
            request: Some(Box::new(onward)),
        };
        self.resolving.insert(Waiter::Request(id), wait, &numbers);
    }

    /// Begins to resolve the address of a member that is to be probed.
    pub(super) fn resolve_member(&mut self, id: MemberId, now: Instant) {
        let waiter = Waiter::Probe(id);
        let Some(uri) = self.groups.member(id).map(|member| member.uri.clone()) else {
            return;
        };
        if self.resolving.waits.contains_key(&waiter) || self.resolving.waits.len() >= MAX_WAITING {
            return self.probed(id, false);
        }
        let (lookups, numbers) = self.lookups(&[uri], 0);
        if lookups.iter().all(Lookup::is_done) {
            return self.send_probe(id, first_target(&lookups), now);
        }
        let wait = Wait {
            lookups,
            deadline: now + PATIENCE,
            request: None,
        };
        self.resolving.insert(waiter, wait, &numbers);
    }

    /// True where a request waited, which it does no longer.
    pub(super) fn stop_waiting(&mut self, id: ServerId) -> Option<Message> {
        if let Some(original) = self.stop_waiting_for_media(id) {
            return Some(original);
        }
        if let Some(original) = self.stop_waiting_for_return(id) {
            return Some(original);
        }
        if self.resolving.waits.is_empty() {
            return None;
        }
        let wait = self.resolving.remove(Waiter::Request(id))?;
        wait.request.map(|onward| onward.original)
    }

    fn lookups(&mut self, uris: &[Bytes], random: u64) -> (Vec<Lookup>, Vec<u64>) {
        let means = Means {
            transports: self.config.routing.transports.clone(),
            v4: self.local_for(IpAddr::from([0, 0, 0, 0])).is_some(),
            v6: self.local_for(IpAddr::from([0_u16; 8])).is_some(),
        };
        let parsed = uris.iter().filter_map(|uri| Uri::parse(uri).ok());
        parsed
            .map(|uri| {
                let number = self.resolving.first_id();
                (Lookup::new(&uri, means.clone(), random, number), number)
            })
            .unzip()
    }

    /// The address that a next hop of this IP version is written to from.
    pub(super) fn local_for(&self, peer: IpAddr) -> Option<SocketAddr> {
        self.config.routing.unicast_of(peer).or_else(|| {
            let mut service = self.config.service.iter();
            service.find(|own| own.is_ipv4() == peer.is_ipv4()).copied()
        })
    }

    fn resolved(&mut self, waiter: Waiter, media: &mut dyn Media, now: Instant) {
        let Some(wait) = self.resolving.remove(waiter) else {
            return;
        };
        match (waiter, wait.request) {
            (Waiter::Request(id), Some(onward)) => {
                self.launch(id, *onward, &wait.lookups, true, media, now);
            }
            (Waiter::Probe(member), _) => self.send_probe(member, first_target(&wait.lookups), now),
            (Waiter::Request(_), None) => {}
        }
    }

    /// Forwards a request to the first of what its lookups have found.
    fn launch(
        &mut self,
        id: ServerId,
        onward: Onward,
        lookups: &[Lookup],
        said_trying: bool,
        media: &mut dyn Media,
        now: Instant,
    ) {
        let Onward {
            original,
            inner,
            hop,
            way,
            uri,
        } = onward;
        let index = match way {
            Way::Group(group) => Some(group),
            Way::Dns => None,
        };
        let group = index.and_then(|group| self.groups.config(group));
        let rules = NextHopRules {
            group: index,
            timeout: group.map_or(TIMEOUT, |group| group.timeout),
            dialog_address: group.map_or(DialogAddress::Anycast, |group| group.dialog_address),
        };
        let fail_on = group.map_or_else(|| vec![408, 503], |group| group.fail_on.clone());
        let hops = lookups.iter().flat_map(Lookup::targets);
        let targets: Vec<Target> = hops
            .filter_map(|next| {
                let flow = self.flow_to(next)?;
                Some((flow, uri.clone()))
            })
            // One after the other: each is worth less than the one before it.
            .zip((0..=1000).rev())
            .map(|((flow, uri), q_thousandths)| Target {
                uri,
                q_thousandths,
                next_hop: Some(rules),
                ..Target::of(flow)
            })
            .collect();
        if targets.is_empty() {
            self.counters.routing.unresolved += 1;
            self.respond(id, &original, 500, "No Next Hop", now);
            return;
        }
        self.counters.routing.routed += 1;
        let outbound = Outbound {
            original,
            inner,
            hop: &hop,
            targets,
            dialog: None,
            fail_on: Some(fail_on),
            said_trying,
            waited: false,
        };
        self.start(id, outbound, media, now);
    }

    pub(super) fn flow_to(&self, next: &NextHop) -> Option<Flow> {
        Some(Flow {
            transport: next.transport,
            peer: next.address,
            local: self.local_for(next.address.ip())?,
            connection: None,
        })
    }
}

impl Target {
    /// A flow, with the Request-URI as it came.
    pub(super) fn of(flow: Flow) -> Self {
        Self {
            uri: None,
            flow,
            relay: None,
            q_thousandths: 1000,
            next_hop: None,
            by_path: false,
            path: crate::registrar::Path::default(),
            instance: Bytes::new(),
            alternative: 0,
            name: 0,
        }
    }
}

fn first_target(lookups: &[Lookup]) -> Option<NextHop> {
    lookups.iter().flat_map(Lookup::targets).next().copied()
}
