//! A proxy in virtual time, with Alice and Bob as scripted messages.

#![allow(
    dead_code,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "each test crate uses a part of it; a test may panic, and any instant will do to begin with"
)]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sip::cookie::{Keys, Owner};
use sip::hop::{ConnectionId, Flow, Hop, Transmit, Transport};
use sip::message::{FrameError, Framer, HeaderName, MAX_MESSAGE, Message, StreamItem};
use sip::proxy::media::{CallMessage, Media, NewCall, Party, Placement, Refusal, SessionRef};
use sip::proxy::{Config, Proxy, TIMER_C};
use wire::gre::TunnelKey;
use wire::mark::{Mark, RelayId};

pub(crate) const SERVICE: &str = "198.51.100.1:5060";
pub(crate) const ALICE: &str = "203.0.113.10:40000";
pub(crate) const BOB: &str = "203.0.113.20:41000";
pub(crate) const BOB_DESK: &str = "203.0.113.21:42000";

/// Remembers what it was asked, in order.
#[derive(Debug, Default)]
pub(crate) struct RecordingMedia {
    pub(crate) log: Vec<String>,
    /// Sessions of calls that are neither answered nor over.
    pub(crate) unanswered: BTreeSet<u64>,
    /// Sessions that are in use.
    pub(crate) open: BTreeSet<u64>,
    /// The session of each message that was rewritten.
    pub(crate) rewritten: Vec<u64>,
    /// Sessions of calls that were answered, or may have been.
    pub(crate) in_doubt: BTreeSet<u64>,
    /// Several cores tell of one call, and of copies of its messages.
    pub(crate) shared: bool,
    next: u64,
    /// New calls wait for this relay, for so long.
    pub(crate) short: Option<(Duration, RelayId)>,
    /// The second relay of new calls.
    pub(crate) far: Option<RelayId>,
    /// The relay of new calls, where it is not their caller's.
    pub(crate) elsewhere: Option<RelayId>,
    /// Every request is refused for this.
    pub(crate) refuses: Option<Refusal>,
}

impl RecordingMedia {
    /// True once anything was asked of it.
    pub(crate) fn in_use(&self) -> bool {
        !self.log.is_empty()
    }

    pub(crate) fn count(&self, entry: &str) -> usize {
        self.log.iter().filter(|logged| *logged == entry).count()
    }
}

impl Media for RecordingMedia {
    fn may_wait(&self) -> bool {
        true
    }

    fn wait_until(
        &mut self,
        _: &NewCall<'_>,
        branches: usize,
        again: bool,
        now: Instant,
    ) -> Option<(Instant, RelayId)> {
        let (patience, relay) = self.short?;
        self.log.push(format!("wait {branches} {again}"));
        Some((now + patience, relay))
    }

    fn place(&mut self, call: &NewCall<'_>, _: Instant) -> Placement {
        self.log.push(String::from("place"));
        if self.refuses.is_some() {
            return Placement {
                refusal: self.refuses,
                ..Placement::default()
            };
        }
        if call.from.flow.peer.is_ipv4() != call.to.peer.is_ipv4() {
            return Placement {
                refusal: Some(Refusal::Incompatible),
                ..Placement::default()
            };
        }
        self.next += 1;
        if call.from.relay.is_some() {
            self.unanswered.insert(self.next);
            self.open.insert(self.next);
        }
        let session = call.from.relay.map(|relay| SessionRef {
            relay: self.elsewhere.unwrap_or(relay),
            session: self.next,
        });
        let far = self.far.map(|relay| SessionRef {
            relay,
            session: 1000 + self.next,
        });
        Placement {
            session,
            far,
            ..Placement::default()
        }
    }

    fn rewrite(
        &mut self,
        message: &CallMessage<'_>,
        _: Instant,
    ) -> Result<Option<Vec<u8>>, Refusal> {
        self.log.push(format!("rewrite by {:?}", message.party));
        self.rewritten.push(message.session.session);
        match self.refuses {
            Some(refusal) if message.message.is_request() => Err(refusal),
            Some(_) | None => Ok(None),
        }
    }

    fn answered(&mut self, session: SessionRef, _: Instant) {
        let waited = self.unanswered.remove(&session.session);
        let again = self.shared && self.open.contains(&session.session);
        assert!(waited || again, "answered once, and not after its end");
        self.in_doubt.insert(session.session);
        self.log.push(String::from("answered"));
    }

    fn refused(&mut self, request: &Message, party: Party, _: SessionRef, _: Instant) {
        self.log
            .push(format!("refused {:?} of {party:?}", request.method()));
    }

    fn ended(&mut self, session: SessionRef, _: Instant) {
        self.unanswered.remove(&session.session);
        let open = self.open.remove(&session.session);
        let again = self.shared || self.in_doubt.contains(&session.session);
        assert!(open || again, "the session of an unanswered call ends once");
        self.log.push(String::from("ended"));
    }

    fn hung_up_far(&mut self, session: SessionRef, _: Instant) {
        self.log.push(format!("far {}", session.session));
    }

    fn holds(&self, session: SessionRef) -> bool {
        self.open.contains(&session.session)
    }

    fn unsettled(&mut self, session: SessionRef, _: Instant) {
        self.unanswered.remove(&session.session);
        self.in_doubt.insert(session.session);
        self.log.push(String::from("unsettled"));
    }
}

pub(crate) struct World {
    pub(crate) proxy: Proxy,
    pub(crate) media: RecordingMedia,
    pub(crate) now: Instant,
    pub(crate) mark: u8,
    /// What comes in uses TCP.
    pub(crate) tcp: bool,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::configured(|_| {})
    }

    /// A proxy with a change of the usual configuration.
    pub(crate) fn configured(change: impl FnOnce(&mut Config)) -> Self {
        let now = Instant::now();
        let mut config = Config {
            service: vec![SERVICE.parse().expect("address")],
            domains: vec![String::from("example.com")],
            keys: Keys::new([7; 32], None),
            timers: sip::timer::Timers::default(),
            timer_c: TIMER_C,
            limits: sip::transaction::Limits {
                max_server: 1000,
                max_client: 1000,
                max_of_source: 2000,
            },
            registrar: sip::registrar::Limits::default(),
            owner: Owner(1),
            routing: sip::proxy::routing::Config::default(),
            epoch: (now, 1_800_000_000),
            clustered: false,
        };
        change(&mut config);
        let media = RecordingMedia::default();
        Self {
            proxy: Proxy::new(config),
            media,
            now,
            mark: 1,
            tcp: false,
        }
    }

    pub(crate) fn with_bob() -> Self {
        let mut world = Self::new();
        world.register(BOB, "sip:bob@192.168.1.2:5060", "bob");
        world
    }

    pub(crate) fn register(&mut self, from: &str, contact: &str, id: &str) {
        self.register_with_q(from, contact, id, "1");
    }

    pub(crate) fn register_with_q(&mut self, from: &str, contact: &str, id: &str, q: &str) {
        let text = format!(
            "REGISTER sip:example.com SIP/2.0\r\nVia: SIP/2.0/UDP 192.168.1.2;branch=z9hG4bKr{id}\r\n\
             From: <sip:bob@example.com>;tag=r{id}\r\nTo: <sip:bob@example.com>\r\nCall-ID: reg-{id}\r\n\
             CSeq: 1 REGISTER\r\nMax-Forwards: 70\r\nContact: <{contact}>;q={q}\r\nExpires: 600\r\n\
             Content-Length: 0\r\n\r\n"
        );
        let sent = self.receive(from, text.as_bytes());
        assert_eq!(sent.len(), 1);
        assert_eq!(parse(&sent[0]).status(), Some(200));
    }

    /// A whole call from Alice to Bob: the 200 as Alice sees it and the INVITE as Bob does.
    pub(crate) fn call(&mut self) -> (Message, Message) {
        let sent = self.receive(ALICE, &invite("sip:bob@example.com"));
        let to_bob = find(&sent, BOB);
        let sent = self.receive(BOB, &answer(&to_bob, 200, "OK", "b1"));
        let ok = parse(&sent[0]);
        self.receive(ALICE, &in_dialog("ACK", 1, &ok, true));
        (ok, to_bob)
    }

    pub(crate) fn receive(&mut self, from: &str, bytes: &[u8]) -> Vec<Transmit> {
        let hop = self.hop(from);
        self.receive_from(&hop, bytes)
    }

    /// Octets of a stream, cut into messages as a connection does it; why it was closed, and
    /// whether it is in the middle of a message.
    pub(crate) fn receive_stream(
        &mut self,
        from: &str,
        bytes: &[u8],
    ) -> (Vec<Transmit>, Option<FrameError>, bool) {
        let hop = self.hop(from);
        let mut framer = Framer::new(MAX_MESSAGE);
        framer.push(bytes);
        let mut sent = Vec::new();
        loop {
            match framer.next() {
                Ok(Some(StreamItem::Message(message))) => {
                    self.proxy
                        .handle_parsed(message, &hop, &mut self.media, self.now);
                    sent.extend(self.drain());
                }
                Ok(Some(StreamItem::Ping)) => {}
                Ok(None) => return (sent, None, framer.is_partial()),
                Err(error) => return (sent, Some(error), false),
            }
        }
    }

    /// Where a message from this address comes from now.
    pub(crate) fn hop(&self, from: &str) -> Hop {
        let (transport, connection) = if self.tcp {
            (Transport::Tcp, Some(ConnectionId(9)))
        } else {
            (Transport::Udp, None)
        };
        let peer: SocketAddr = from.parse().expect("address");
        let local: SocketAddr = SERVICE.parse().expect("address");
        let mark = Mark::new(self.mark).expect("mark");
        let relay = Some(RelayId {
            key: TunnelKey(1),
            mark,
        });
        Hop {
            flow: Flow {
                transport,
                peer,
                local,
                connection,
            },
            relay,
        }
    }

    /// What the DNS says to the question that is due.
    pub(crate) fn answer_query(&mut self, answer: sip::resolve::Answer) -> (String, Vec<Transmit>) {
        let (id, query) = self.proxy.poll_query().expect("a question");
        self.proxy
            .handle_answer(id, answer, &mut self.media, self.now);
        (format!("{:?} {}", query.kind, query.name), self.drain())
    }

    pub(crate) fn receive_from(&mut self, hop: &Hop, bytes: &[u8]) -> Vec<Transmit> {
        let bytes = Bytes::copy_from_slice(bytes);
        self.proxy
            .handle_message(bytes, hop, &mut self.media, self.now);
        self.drain()
    }

    /// Another core has received it and hands it over.
    pub(crate) fn handed_over(&mut self, handover: &sip::proxy::Handover) -> Vec<Transmit> {
        self.proxy.handle_handed_over(
            handover.bytes.clone(),
            &handover.hop,
            &mut self.media,
            self.now,
        );
        self.drain()
    }

    pub(crate) fn connection_closed(&mut self, connection: ConnectionId) -> Vec<Transmit> {
        self.proxy
            .handle_connection_closed(connection, &mut self.media, self.now);
        self.drain()
    }

    /// Lets everything time out and asserts that nothing of it is left.
    pub(crate) fn assert_all_forgotten(&mut self) {
        self.advance(Duration::from_secs(3600));
        assert_eq!(self.proxy.contexts(), 0, "contexts");
        assert_eq!(
            self.proxy.branches_and_timers(),
            (0, 0),
            "branches and Timer C entries"
        );
        let counts = self.proxy.transactions().counts();
        assert_eq!((counts.server, counts.client), (0, 0), "transactions");
        assert_eq!(self.proxy.transactions().sources(), 0, "sources");
        assert!(
            self.media.unanswered.is_empty(),
            "sessions {:?} of calls that were never answered",
            self.media.unanswered
        );
    }

    pub(crate) fn transport_error(&mut self, flow: &Flow) -> Vec<Transmit> {
        self.proxy
            .handle_transport_error(flow, &mut self.media, self.now);
        self.drain()
    }

    /// The marks that the bindings were last seen with.
    pub(crate) fn marks(&self) -> Vec<u8> {
        let bindings = self.proxy.registrar().iter();
        bindings
            .filter_map(|(_, binding)| binding.relay)
            .map(|relay| relay.mark.number())
            .collect()
    }

    /// Lets time pass, firing each deadline at its moment.
    pub(crate) fn advance(&mut self, by: Duration) -> Vec<Transmit> {
        let until = self.now + by;
        let mut sent = Vec::new();
        while let Some((at, _)) = self.proxy.poll_timeout()
            && at <= until
        {
            self.now = self.now.max(at);
            self.proxy.handle_timeout(&mut self.media, self.now);
            sent.extend(self.drain());
        }
        self.now = until;
        sent
    }

    pub(crate) fn drain(&mut self) -> Vec<Transmit> {
        std::iter::from_fn(|| self.proxy.poll_transmit()).collect()
    }
}

pub(crate) fn parse(transmit: &Transmit) -> Message {
    Message::parse(transmit.bytes.clone()).expect("what we send is a message")
}

pub(crate) fn find(sent: &[Transmit], to: &str) -> Message {
    let transmit = sent
        .iter()
        .find(|transmit| transmit.flow.peer.to_string() == to);
    parse(transmit.expect("a message for that phone"))
}

pub(crate) fn summary(sent: &[Transmit]) -> Vec<String> {
    sent.iter()
        .map(|transmit| {
            let message = parse(transmit);
            let peer = transmit.flow.peer.to_string();
            let to = match peer.as_str() {
                ALICE => "alice",
                BOB => "bob",
                BOB_DESK => "desk",
                other => other,
            };
            match message.status() {
                Some(status) => format!("{status} -> {to}"),
                None => {
                    let line = String::from_utf8_lossy(message.bytes()).into_owned();
                    format!("{} -> {to}", line.split(' ').next().unwrap_or_default())
                }
            }
        })
        .collect()
}

pub(crate) fn invite(uri: &str) -> Vec<u8> {
    request("INVITE", uri, "z9hG4bKalice1", "")
}

/// A request of Alice's outside of a dialog, CSeq 1.
pub(crate) fn request(method: &str, uri: &str, branch: &str, extra: &str) -> Vec<u8> {
    format!(
        "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP 192.168.1.2:5060;branch={branch};rport\r\n\
         From: <sip:alice@example.com>;tag=a1\r\nTo: <sip:bob@example.com>\r\nCall-ID: call-1\r\n\
         CSeq: 1 {method}\r\nMax-Forwards: 70\r\nContact: <sip:alice@192.168.1.2:5060>\r\n{extra}\
         Content-Length: 0\r\n\r\n"
    )
    .into_bytes()
}

/// A UA's answer to a request that it got.
pub(crate) fn answer(request: &Message, status: u16, reason: &str, tag: &str) -> Vec<u8> {
    let mut response = request.respond(status, reason);
    if !tag.is_empty() {
        response = response.to_tag(tag);
    }
    for value in request.values(HeaderName::RecordRoute) {
        response = response.header("Record-Route", &String::from_utf8_lossy(&value));
    }
    response
        .header("Contact", "<sip:bob@192.168.1.2:5060>")
        .build()
        .bytes()
        .to_vec()
}

/// A request of a dialog, by the caller or by the callee, from the 2xx that made it.
pub(crate) fn in_dialog(method: &str, cseq: u32, ok: &Message, by_caller: bool) -> Vec<u8> {
    let mut routes: Vec<String> = ok
        .values(HeaderName::RecordRoute)
        .map(|value| format!("Route: {}\r\n", String::from_utf8_lossy(&value)))
        .collect();
    if by_caller {
        routes.reverse();
    }
    let text = |name| String::from_utf8_lossy(ok.header(name).expect("header")).into_owned();
    let (from, to, contact) = if by_caller {
        (
            text(HeaderName::From),
            text(HeaderName::To),
            "sip:bob@192.168.1.2:5060",
        )
    } else {
        (
            text(HeaderName::To),
            text(HeaderName::From),
            "sip:alice@192.168.1.2:5060",
        )
    };
    format!(
        "{method} {contact} SIP/2.0\r\nVia: SIP/2.0/UDP 192.168.1.2:5060;branch=z9hG4bK{method}{cseq}{by_caller}\r\n\
         From: {from}\r\nTo: {to}\r\nCall-ID: call-1\r\nCSeq: {cseq} {method}\r\n\
         Max-Forwards: 70\r\n{}Content-Length: 0\r\n\r\n",
        routes.concat()
    )
    .into_bytes()
}
