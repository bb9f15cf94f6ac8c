//! Where a SIP URI leads (RFC 3263): from a domain to a list of addresses, the best first.
//!
//! A [`Lookup`] is fed with the answers of a DNS resolver and says what to ask next: NAPTR, then
//! SRV, then A and AAAA, as far as the URI needs them. A numeric address, or one with a port and a
//! transport, needs little or nothing. The result is the whole sorted list, because "if a failure
//! occurs … the client SHOULD try the next element of the ordered list" (section 4.3).
//!
//! Weights are drawn with a random number given as argument. No clock: who drives a lookup ends
//! it by [`Lookup::give_up`], and what has been answered by then is the result.
//!
//! A name server that fails counts as one without records of that kind: a broken NAPTR must not
//! keep a call from the addresses that the domain has.
//!
//! Bounds: [`MAX_SERVERS`] servers of a domain are asked for, [`MAX_TARGETS`] targets returned.
//!
//! Standards: RFC 3263 section 4, RFC 2782 (order of SRV records), RFC 3403 (NAPTR), RFC 3596.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use crate::hop::Transport;
use crate::message::{Host, Uri};

mod order;

pub use order::weighted_order;

/// Servers of one domain whose addresses are looked up.
pub const MAX_SERVERS: usize = 10;
/// Targets of one lookup.
pub const MAX_TARGETS: usize = 16;

/// The port of SIP over UDP and TCP (RFC 3261 section 19.1.2).
const PORT: u16 = 5060;
/// The port of SIP over TLS.
const TLS_PORT: u16 = 5061;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Which transports a domain wants to be reached by (RFC 3403).
    Naptr,
    /// Which servers it has for one transport (RFC 2782).
    Srv,
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
}

/// A question for the DNS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// The domain name, without a dot at its end.
    pub name: String,
    /// The kind of record.
    pub kind: Kind,
}

/// A NAPTR record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Naptr {
    /// Lower comes first.
    pub order: u16,
    /// Among equal order, lower comes first.
    pub preference: u16,
    /// `s` where the replacement has SRV records.
    pub flags: String,
    /// `SIP+D2U`, `SIP+D2T`, `SIPS+D2T`, or a service that is not SIP.
    pub service: String,
    /// Where to look next.
    pub replacement: String,
}

/// An SRV record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Srv {
    /// Lower comes first.
    pub priority: u16,
    /// The share among equal priority.
    pub weight: u16,
    /// The port.
    pub port: u16,
    /// The host; empty or `.` where the service is not offered.
    pub target: String,
}

/// What the DNS said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// NAPTR records, in any order.
    Naptr(Vec<Naptr>),
    /// SRV records, in any order.
    Srv(Vec<Srv>),
    /// Addresses, in the order in which they came.
    Addresses(Vec<IpAddr>),
    /// There is no such name, or it has no such record.
    Nothing,
    /// Nobody could be asked, or nobody answered in time.
    Failed,
}

/// What we can send by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Means {
    /// Transports, the preferred first.
    pub transports: Vec<Transport>,
    /// IPv4 can be sent.
    pub v4: bool,
    /// IPv6 can be sent.
    pub v6: bool,
}

/// One place to send a request to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NextHop {
    /// By which transport.
    pub transport: Transport,
    /// Where.
    pub address: SocketAddr,
}

/// A host that has yet to become addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Server {
    transport: Transport,
    host: String,
    port: u16,
}

/// What the open questions are about.
#[derive(Debug)]
enum Step {
    Naptr,
    /// The transport of each question, in the order of preference, and whether the names come from
    /// NAPTR records.
    Srv(Vec<Transport>),
    /// The servers; each question belongs to one of them.
    Address(Vec<Server>),
    Done(Vec<NextHop>),
}

#[derive(Debug)]
struct Ask {
    query: Query,
    /// The server that it is about.
    server: usize,
    answer: Option<Answer>,
}

/// The resolution of one URI.
#[derive(Debug)]
pub struct Lookup {
    host: String,
    sips: bool,
    means: Means,
    random: u64,
    step: Step,
    /// The number of the first question of this step.
    base: u64,
    asks: Vec<Ask>,
    unsent: VecDeque<usize>,
}

impl Lookup {
    /// Begins to resolve a sip or sips URI. `random` decides among equals; `first_id` is the number
    /// of the first question, and each further one has the next.
    pub fn new(uri: &Uri<'_>, means: Means, random: u64, first_id: u64) -> Self {
        let mut lookup = Self {
            host: String::new(),
            sips: uri.is_sips(),
            means,
            random,
            step: Step::Done(Vec::new()),
            base: first_id,
            asks: Vec::new(),
            unsent: VecDeque::new(),
        };
        lookup.begin(uri);
        lookup
    }

    /// "TARGET is the value of the maddr parameter … if present, otherwise the host value"; then
    /// the transport (section 4.1) and the port (section 4.2).
    fn begin(&mut self, uri: &Uri<'_>) {
        let maddr = uri.maddr().and_then(|maddr| Host::parse(maddr).ok());
        let host = maddr.unwrap_or(uri.host);
        let Ok(stated) = self.stated_transport(uri) else {
            return;
        };
        let default = if self.sips {
            Transport::Tls
        } else {
            Transport::Udp
        };
        let transport = stated.unwrap_or(default);
        let port = uri.port.unwrap_or_else(|| default_port(transport));
        let name = match host {
            Host::Name(name) => String::from_utf8_lossy(name).into_owned(),
            Host::V4(_) | Host::V6(_) => {
                let address = host.ip().map(|ip| SocketAddr::new(ip, port));
                let hop = address.map(|address| NextHop { transport, address });
                self.finish(hop.into_iter().collect());
                return;
            }
        };
        self.host = absolute(&name);
        match (stated, uri.port) {
            // "If the TARGET was not a numeric IP address, but a port is present in the URI, the
            // client performs an A or AAAA record lookup of the domain name."
            (_, Some(port)) => {
                let host = self.host.clone();
                self.ask_addresses(vec![Server {
                    transport,
                    host,
                    port,
                }]);
            }
            (Some(transport), None) => self.ask_srv(vec![(transport, self.srv_name(transport))]),
            (None, None) => {
                self.step = Step::Naptr;
                self.ask(self.host.clone(), Kind::Naptr, 0);
            }
        }
    }

    /// The transport that the URI names; an error for one that we do not have.
    fn stated_transport(&self, uri: &Uri<'_>) -> Result<Option<Transport>, ()> {
        let Some(name) = uri.transport() else {
            return Ok(None);
        };
        let mut transport = Transport::from_name(name).ok_or(())?;
        // "sips … transport=tcp" is TLS over TCP (RFC 3261 section 26.2.2).
        if self.sips && transport == Transport::Tcp {
            transport = Transport::Tls;
        }
        if self.sips && transport == Transport::Udp {
            return Err(());
        }
        Ok(Some(transport))
    }

    /// The next question, with its number.
    pub fn poll_query(&mut self) -> Option<(u64, Query)> {
        let index = self.unsent.pop_front()?;
        let query = self.asks.get(index)?.query.clone();
        Some((self.base + index as u64, query))
    }

    /// What the DNS said to a question; one that is not open is ignored.
    pub fn handle_answer(&mut self, id: u64, answer: Answer) {
        let index = id
            .checked_sub(self.base)
            .and_then(|n| usize::try_from(n).ok());
        let Some(ask) = index.and_then(|index| self.asks.get_mut(index)) else {
            return;
        };
        ask.answer.get_or_insert(answer);
        self.advance();
    }

    /// Ends the lookup with what has been answered so far.
    pub fn give_up(&mut self) {
        while !self.is_done() {
            self.unsent.clear();
            for ask in &mut self.asks {
                ask.answer.get_or_insert(Answer::Failed);
            }
            self.advance();
        }
    }

    /// True when there is a result.
    pub fn is_done(&self) -> bool {
        matches!(self.step, Step::Done(_))
    }

    /// The result: where to send, in the order in which it is tried. Empty where the URI leads
    /// nowhere, or before the lookup is done.
    pub fn targets(&self) -> &[NextHop] {
        match &self.step {
            Step::Done(targets) => targets,
            Step::Naptr | Step::Srv(_) | Step::Address(_) => &[],
        }
    }

    /// The number after the last question.
    pub fn next_id(&self) -> u64 {
        self.base + self.asks.len() as u64
    }

    fn ask(&mut self, name: String, kind: Kind, server: usize) {
        self.unsent.push_back(self.asks.len());
        self.asks.push(Ask {
            query: Query { name, kind },
            server,
            answer: None,
        });
    }

    /// Goes on as soon as every question of a step has its answer.
    fn advance(&mut self) {
        if self.is_done() || self.asks.iter().any(|ask| ask.answer.is_none()) {
            return;
        }
        self.base = self.next_id();
        let asks = std::mem::take(&mut self.asks);
        match std::mem::replace(&mut self.step, Step::Done(Vec::new())) {
            Step::Naptr => self.after_naptr(asks),
            Step::Srv(transports) => self.after_srv(&transports, asks),
            Step::Address(servers) => self.after_addresses(&servers, asks),
            Step::Done(targets) => self.step = Step::Done(targets),
        }
    }

    /// "The client … discards any records whose services fields" it does not support; without any
    /// left it asks for the SRV records of each transport that it has (section 4.1).
    fn after_naptr(&mut self, asks: Vec<Ask>) {
        let mut records = match asks.into_iter().next().and_then(|ask| ask.answer) {
            Some(Answer::Naptr(records)) => records,
            Some(Answer::Srv(_) | Answer::Addresses(_) | Answer::Nothing | Answer::Failed)
            | None => Vec::new(),
        };
        records.sort_by_key(|record| (record.order, record.preference));
        let usable = records.into_iter().filter_map(|record| {
            let transport = transport_of_service(&record.service)?;
            let wanted = self.may_use(transport) && record.flags.eq_ignore_ascii_case("s");
            wanted.then(|| (transport, absolute(&record.replacement)))
        });
        let mut names: Vec<(Transport, String)> = usable.take(MAX_SERVERS).collect();
        if names.is_empty() {
            let transports = self.means.transports.iter().copied();
            names = transports
                .filter(|transport| self.may_use(*transport))
                .filter(|transport| srv_prefix(*transport).is_some())
                .map(|transport| (transport, self.srv_name(transport)))
                .collect();
        }
        self.ask_srv(names);
    }

    /// sips means TLS all the way.
    fn may_use(&self, transport: Transport) -> bool {
        self.means.transports.contains(&transport) && (!self.sips || transport == Transport::Tls)
    }

    fn srv_name(&self, transport: Transport) -> String {
        format!(
            "{}.{}",
            srv_prefix(transport).unwrap_or("_sip._tcp"),
            self.host
        )
    }

    fn ask_srv(&mut self, names: Vec<(Transport, String)>) {
        if names.is_empty() {
            return self.finish(Vec::new());
        }
        self.step = Step::Srv(names.iter().map(|(transport, _)| *transport).collect());
        for (index, (_, name)) in names.into_iter().enumerate() {
            self.ask(name, Kind::Srv, index);
        }
    }

    fn after_srv(&mut self, transports: &[Transport], asks: Vec<Ask>) {
        let mut servers = Vec::new();
        let mut refused = false;
        for ask in asks {
            let (Some(Answer::Srv(records)), Some(transport)) =
                (ask.answer, transports.get(ask.server))
            else {
                continue;
            };
            let weights: Vec<(u16, u16)> = records
                .iter()
                .map(|record| (record.priority, record.weight))
                .collect();
            for index in weighted_order(&weights, self.random) {
                let record = &records[index];
                let host = absolute(&record.target);
                // "A Target of "." means that the service is decidedly not available."
                refused |= host.is_empty();
                if !host.is_empty() {
                    servers.push(Server {
                        transport: *transport,
                        host,
                        port: record.port,
                    });
                }
            }
        }
        if servers.is_empty() && !refused {
            // "If no SRV records were found, the client performs an A or AAAA record lookup of the
            // domain name" with the default port; UDP, or TLS for sips (section 4.1).
            let transport = match transports {
                [only] => *only,
                _ if self.sips => Transport::Tls,
                _ => Transport::Udp,
            };
            servers.push(Server {
                transport,
                host: self.host.clone(),
                port: default_port(transport),
            });
        }
        servers.truncate(MAX_SERVERS);
        self.ask_addresses(servers);
    }

    fn ask_addresses(&mut self, servers: Vec<Server>) {
        for (index, server) in servers.iter().enumerate() {
            // An SRV target ought to be a name, yet addresses are seen.
            for (wanted, kind) in [(self.means.v4, Kind::A), (self.means.v6, Kind::Aaaa)] {
                if wanted {
                    self.ask(server.host.clone(), kind, index);
                }
            }
        }
        if self.asks.is_empty() {
            return self.finish(Vec::new());
        }
        self.step = Step::Address(servers);
    }

    fn after_addresses(&mut self, servers: &[Server], asks: Vec<Ask>) {
        let mut targets: Vec<NextHop> = Vec::new();
        for ask in asks {
            let (Some(Answer::Addresses(addresses)), Some(server)) =
                (ask.answer, servers.get(ask.server))
            else {
                continue;
            };
            for ip in addresses {
                let hop = NextHop {
                    transport: server.transport,
                    address: SocketAddr::new(ip, server.port),
                };
                if !targets.contains(&hop) {
                    targets.push(hop);
                }
            }
        }
        self.finish(targets);
    }

    fn finish(&mut self, mut targets: Vec<NextHop>) {
        let means = &self.means;
        targets.retain(|hop| {
            let family = if hop.address.is_ipv4() {
                means.v4
            } else {
                means.v6
            };
            family && means.transports.contains(&hop.transport)
        });
        targets.truncate(MAX_TARGETS);
        self.step = Step::Done(targets);
    }
}

const fn default_port(transport: Transport) -> u16 {
    match transport {
        Transport::Udp | Transport::Tcp => PORT,
        Transport::Tls => TLS_PORT,
        Transport::Ws => 80,
        Transport::Wss => 443,
    }
}

/// The services of RFC 3263 section 4.1.
fn transport_of_service(service: &str) -> Option<Transport> {
    [
        ("SIP+D2U", Transport::Udp),
        ("SIP+D2T", Transport::Tcp),
        ("SIPS+D2T", Transport::Tls),
    ]
    .into_iter()
    .find(|(name, _)| name.eq_ignore_ascii_case(service))
    .map(|(_, transport)| transport)
}

const fn srv_prefix(transport: Transport) -> Option<&'static str> {
    match transport {
        Transport::Udp => Some("_sip._udp"),
        Transport::Tcp => Some("_sip._tcp"),
        Transport::Tls => Some("_sips._tcp"),
        // Nobody is called over WebSocket: the client connects (RFC 7118 section 5).
        Transport::Ws | Transport::Wss => None,
    }
}

/// In lower case, without the dot at its end.
fn absolute(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}
