//! Where requests go that the registrar does not serve: the operator's routes, first match wins.
//!
//! A [`Route`] matches by the domain of the Request-URI, by the beginning of its user part and by
//! the address that the request came from, and names a [`Destination`]. Pure: [`Config::decide`]
//! looks at a request's [`Facts`] and at nothing else.
//!
//! Not an open relay. A route serves those whom it is [for](Audience): users who are known to us
//! and trunks, or anyone. Trunks are known by their address alone, which over UDP can be forged by
//! whoever can send packets with that source; filter it at the border.

use std::net::{IpAddr, SocketAddr};

use crate::hop::Transport;

use super::groups::GroupConfig;

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// Its first address.
    pub address: IpAddr,
    /// How many leading bits are the same in all of its addresses.
    pub prefix: u8,
}

impl Network {
    /// True where the address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let bits = network.to_bits() ^ address.to_bits();
                bits.checked_shr(32_u32.saturating_sub(u32::from(self.prefix)))
                    .is_none_or(|differing| differing == 0)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let bits = network.to_bits() ^ address.to_bits();
                bits.checked_shr(128_u32.saturating_sub(u32::from(self.prefix)))
                    .is_none_or(|differing| differing == 0)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

/// Whom a route serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Audience {
    /// Users who are registered or authenticated here, and trunks.
    #[default]
    Known,
    /// Whoever asks: for an own domain whose registrar stands behind us and decides itself.
    Anyone,
}

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// A group of next hops, by its index.
    Group(usize),
    /// Our own registrar.
    Registrar,
    /// Wherever the DNS says that the Request-URI leads (RFC 3263).
    Dns,
}

/// One rule; what is `None` or empty matches everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The domain of the Request-URI, lower case.
    pub domain: Option<String>,
    /// How the user part of the Request-URI begins.
    pub prefix: Option<String>,
    /// Where the request comes from; whoever matches is a trunk.
    pub sources: Vec<Network>,
    /// Whom it serves.
    pub audience: Audience,
    /// Where it leads.
    pub to: Destination,
    /// Characters taken off the beginning of the user part.
    pub strip: usize,
    /// Put before the user part afterwards.
    pub prepend: String,
}

/// Everything that routing was told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// In the order in which they are tried.
    pub routes: Vec<Route>,
    /// The groups that routes lead to.
    pub groups: Vec<GroupConfig>,
    /// Our own addresses that are not anycast, one for each IP version: what next hops are
    /// written to from. Without one it is the service address.
    pub unicast: Vec<SocketAddr>,
    /// The transports that reach a next hop, the preferred first.
    pub transports: Vec<Transport>,
    /// Longer requests go to next hops over TCP where that is one of the transports, in octets;
    /// `None`: none do.
    pub max_udp_request: Option<usize>,
}

/// What happened to requests beyond our own phones, each count under its own name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests that matched a route and came from somebody whom it does not serve.
    pub relay_denied: u64,
    /// Requests sent to a next hop.
    pub routed: u64,
    /// Requests sent to another next hop because the one before failed.
    pub fail_overs: u64,
    /// Requests sent to a next hop over TCP for their length (RFC 3261 section 18.1.1).
    pub large_over_tcp: u64,
    /// Those of them that were sent again over UDP, because nothing came of the connection.
    pub large_fell_back: u64,
    /// Requests of that length sent over UDP at once: to phones, and where TCP is not taken.
    pub large_over_udp: u64,
    /// Requests whose next hop has no address.
    pub unresolved: u64,
    /// Waits for the DNS that took too long.
    pub dns_timeouts: u64,
    /// OPTIONS sent to members of groups.
    pub probes: u64,
    /// Those without a good answer.
    pub probes_failed: u64,
    /// Members that went down or came back.
    pub health_changes: u64,
    /// REGISTERs sent on with our Path.
    pub paths: u64,
    /// Path tokens that we did not sign.
    pub forged_paths: u64,
    /// Requests by Path to a flow that is gone.
    pub dead_flows: u64,
}

/// What is known of who sent a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// Nothing.
    Stranger,
    /// A registered flow, or credentials that were checked.
    User,
    /// An address that the operator has named.
    Trunk,
}

/// What a decision is made from.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The host of the Request-URI as written.
    pub domain: &'a str,
    /// The user part of the Request-URI.
    pub user: &'a [u8],
    /// True where the domain is one that we serve.
    pub own: bool,
    /// Where the request came from.
    pub source: IpAddr,
    /// Who sent it.
    pub sender: Sender,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision<'a> {
    /// No route matches.
    NoRoute,
    /// The first that matches does not serve this sender.
    Refused,
    /// It goes there.
    Go(&'a Route),
}

impl Route {
    fn matches(&self, facts: &Facts<'_>) -> bool {
        let domain = self
            .domain
            .as_ref()
            .is_none_or(|domain| domain.eq_ignore_ascii_case(facts.domain));
        let prefix = self
            .prefix
            .as_ref()
            .is_none_or(|prefix| facts.user.starts_with(prefix.as_bytes()));
        domain && prefix && (self.sources.is_empty() || is_in(&self.sources, facts.source))
    }

    /// "A route to a domain that is not ours" needs somebody whom we know; an own one may be for
    /// everybody.
    fn serves(&self, facts: &Facts<'_>) -> bool {
        match self.audience {
            Audience::Anyone if facts.own => true,
            Audience::Anyone | Audience::Known => {
                self.to == Destination::Registrar && facts.own || facts.sender != Sender::Stranger
            }
        }
    }

    /// The user part that it makes of one: `strip` characters less, `prepend` before it.
    pub fn new_user(&self, user: &[u8]) -> Option<Vec<u8>> {
        if self.strip == 0 && self.prepend.is_empty() {
            return None;
        }
        let rest = user.get(self.strip..).unwrap_or_default();
        Some([self.prepend.as_bytes(), rest].concat())
    }
}

impl Config {
    /// The first route that matches, and whether it serves the sender.
    pub fn decide(&self, facts: &Facts<'_>) -> Decision<'_> {
        match self.routes.iter().find(|route| route.matches(facts)) {
            None => Decision::NoRoute,
            Some(route) if route.serves(facts) => Decision::Go(route),
            Some(_) => Decision::Refused,
        }
    }

    /// True where the operator has named this address as a source.
    pub fn is_trunk(&self, source: IpAddr) -> bool {
        self.group_of_source(source).is_some()
            || self
                .routes
                .iter()
                .any(|route| is_in(&route.sources, source))
    }

    /// The group whose trunk this address is.
    pub fn group_of_source(&self, source: IpAddr) -> Option<usize> {
        self.groups
            .iter()
            .position(|group| is_in(&group.sources, source))
    }

    /// Our unicast address of an IP version.
    pub fn unicast_of(&self, peer: IpAddr) -> Option<SocketAddr> {
        let mut addresses = self.unicast.iter();
        addresses
            .find(|own| own.is_ipv4() == peer.is_ipv4())
            .copied()
    }
}

pub(super) fn is_in(networks: &[Network], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(address))
}
