//! Keepalive pings to phones behind NATs: to whom, how often, and what their answers or their
//! silence do.
#![expect(
    clippy::unwrap_used,
    reason = "a test may panic, in its own functions as well"
)]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sip::cookie::Keys;
use sip::hop::{ConnectionId, Flow, Hop, Transmit, Transport};
use sip::message::{Message, Method};
use sip::registrar::{AddressOfRecord, Event, Limits, Registrar};
use wire::gre::TunnelKey;
use wire::mark::{Mark, RelayId};

const INTERVAL: Duration = Duration::from_secs(30);

#[test]
fn a_phone_behind_a_nat_is_asked_once_in_an_interval_from_the_address_it_knows() {
    let mut rig = Rig::new();
    rig.register("bob", udp(1), "<sip:bob@192.168.1.2:5060?Subject=x>", "");
    let pings = rig.advance(INTERVAL);
    let [ping] = &pings[..] else {
        panic!("one ping, not {}", pings.len())
    };
    assert_eq!(ping.flow, udp(1));
    let request = Message::parse(ping.bytes.clone()).unwrap();
    assert_eq!(request.method(), Method::Options);
    assert_eq!(request.check(), Ok(()));
    assert_eq!(request.request_uri(), b"sip:bob@192.168.1.2:5060");
    assert_eq!(request.from().unwrap().uri, b"sip:example.com");
    assert_eq!(request.to().unwrap().tag(), None);
    let mut answered = 0;
    for _ in 0..10 {
        for ping in rig.advance(INTERVAL) {
            rig.answer(&ping, udp(1), Some(relay(7)));
            answered += 1;
        }
    }
    assert_eq!(answered, 10);
    assert_eq!(rig.registrar.counts().bindings, 1);
    assert_eq!(rig.registrar.counts().pings_answered, 10);
    let (_, binding) = rig.registrar.iter().next().unwrap();
    assert_eq!(
        binding.relay,
        Some(relay(7)),
        "its answers refresh the mark"
    );
    let seen = rig.registrar.sighting(&udp(1)).unwrap();
    assert_eq!(seen.changes(), 1, "and tell of the drift");
}

#[test]
fn three_pings_without_any_answer_end_the_bindings_of_the_flow() {
    let mut rig = Rig::new();
    rig.register("bob", udp(1), "<sip:bob@192.168.1.2>", "");
    rig.register("carol", udp(1), "<sip:carol@192.168.1.2>", "");
    let pings = rig.advance(3 * INTERVAL);
    assert_eq!((pings.len(), rig.registrar.counts().bindings), (3, 2));
    let pings = rig.advance(INTERVAL);
    assert_eq!((pings.len(), rig.registrar.counts().bindings), (0, 0));
    assert_eq!(rig.registrar.counts().unreachable, 2);
    let events = std::iter::from_fn(|| rig.registrar.poll_event());
    let lost = events.filter(|event| matches!(event, Event::BindingUnreachable(..)));
    assert_eq!(lost.count(), 2);
    // The wheel has nothing left to turn for.
    rig.advance(2 * INTERVAL);
    assert_eq!(rig.registrar.poll_timeout(), None);
}

#[test]
fn anything_that_the_phone_sends_says_that_it_is_there() {
    let mut rig = Rig::new();
    rig.register("bob", udp(1), "<sip:bob@192.168.1.2>", "");
    for _ in 0..5 {
        rig.advance(2 * INTERVAL);
        rig.registrar.seen(&udp(1), Some(relay(1)), rig.now);
    }
    assert_eq!(rig.registrar.counts().bindings, 1);
}

#[test]
fn an_answer_that_is_forged_or_comes_from_elsewhere_is_none() {
    let mut rig = Rig::new();
    rig.register("bob", udp(1), "<sip:bob@192.168.1.2>", "");
    for _ in 0..4 {
        for ping in rig.advance(INTERVAL) {
            rig.answer(&ping, udp(2), None);
            let hop = Hop {
                flow: udp(1),
                relay: None,
            };
            rig.registrar
                .handle_ping_answer(b"z9hG4bKping.0.00000000", &hop, rig.now);
        }
    }
    let counts = rig.registrar.counts();
    assert_eq!((counts.bindings, counts.pings_answered), (0, 0));
    assert_eq!(counts.pings_strange, 6);
}

#[test]
fn who_can_be_reached_otherwise_is_not_asked() {
    let mut rig = Rig::new();
    rig.register("direct", udp(1), "<sip:direct@192.0.2.1:40000>", "");
    let flow = Flow {
        transport: Transport::Tcp,
        connection: Some(ConnectionId(1)),
        ..udp(2)
    };
    rig.register("tcp", flow, "<sip:tcp@192.168.1.2;transport=tcp>", "");
    let path = "Supported: path\r\nPath: <sip:192.0.2.3;lr>\r\n";
    rig.register("behind", udp(3), "<sip:behind@192.168.1.2>", path);
    assert_eq!(rig.registrar.counts().bindings, 3);
    assert_eq!(rig.advance(4 * INTERVAL).len(), 0);
    assert_eq!(rig.registrar.counts().bindings, 3);
}

#[test]
fn many_flows_are_spread_evenly_and_each_is_asked_once() {
    const FLOWS: usize = 5000;
    let mut rig = Rig::new();
    for number in 0..FLOWS {
        let port = u16::try_from(1024 + number).unwrap();
        let mut flow = udp(1);
        flow.peer.set_port(port);
        let user = format!("u{number}");
        rig.register(&user, flow, &format!("<sip:{user}@192.168.1.2>"), "");
        // A refresh does not make it two.
        rig.register(&user, flow, &format!("<sip:{user}@192.168.1.2>"), "");
    }
    let until = rig.now + INTERVAL;
    let mut asked: HashMap<Flow, usize> = HashMap::new();
    while let Some((at, _)) = rig.registrar.poll_timeout()
        && at <= until
    {
        rig.now = at;
        rig.registrar.handle_timeout(at);
        let mut burst = 0;
        while let Some(ping) = rig.registrar.poll_transmit() {
            *asked.entry(ping.flow).or_default() += 1;
            burst += 1;
        }
        assert!(burst <= FLOWS.div_ceil(256), "{burst} at once");
    }
    assert_eq!(asked.len(), FLOWS);
    assert!(asked.values().all(|count| *count == 1));
}

#[test]
fn a_phone_that_goes_and_comes_back_is_still_asked_once() {
    let mut rig = Rig::new();
    for _ in 0..600 {
        rig.register("bob", udp(1), "<sip:bob@192.168.1.2>", "");
        rig.register("bob", udp(1), "<sip:bob@192.168.1.2>;expires=0", "");
    }
    rig.register("bob", udp(1), "<sip:bob@192.168.1.2>", "");
    rig.advance(INTERVAL);
    assert_eq!(rig.advance(INTERVAL).len(), 1);
}

struct Rig {
    registrar: Registrar,
    now: Instant,
    cseq: u32,
}

impl Rig {
    #[expect(clippy::disallowed_methods, reason = "virtual time starts somewhere")]
    fn new() -> Self {
        let limits = Limits {
            ping_interval_s: 30,
            ..Limits::default()
        };
        Self {
            registrar: Registrar::new(limits, Keys::new([7; 32], None)),
            now: Instant::now(),
            cseq: 0,
        }
    }

    fn register(&mut self, user: &str, flow: Flow, contact: &str, headers: &str) {
        self.cseq += 1;
        let cseq = self.cseq;
        let text = format!(
            "REGISTER sip:example.com SIP/2.0\r\nVia: SIP/2.0/UDP 10.0.0.5;branch=z9hG4bK{cseq}\r\n\
             From: <sip:{user}@example.com>;tag=1\r\nTo: <sip:{user}@example.com>\r\n\
             Call-ID: {user}\r\nCSeq: {cseq} REGISTER\r\nContact: {contact}\r\n{headers}\
             Content-Length: 0\r\n\r\n"
        );
        let request = Message::parse(Bytes::from(text)).unwrap();
        let user = AddressOfRecord::from_uri(request.to().unwrap().uri).unwrap();
        let hop = Hop {
            flow,
            relay: Some(relay(1)),
        };
        let answer = self
            .registrar
            .handle_register(&request, &user, &hop, self.now);
        assert_eq!(answer.status(), Some(200));
    }

    /// The pings of this time.
    fn advance(&mut self, by: Duration) -> Vec<Transmit> {
        let until = self.now + by;
        let mut sent = Vec::new();
        while let Some((at, _)) = self.registrar.poll_timeout()
            && at <= until
        {
            self.now = self.now.max(at);
            self.registrar.handle_timeout(self.now);
            sent.extend(std::iter::from_fn(|| self.registrar.poll_transmit()));
        }
        self.now = until;
        sent
    }

    fn answer(&mut self, ping: &Transmit, flow: Flow, relay: Option<RelayId>) {
        let ping = Message::parse(ping.bytes.clone()).unwrap();
        let via = ping.top_via().unwrap();
        let hop = Hop { flow, relay };
        self.registrar
            .handle_ping_answer(via.branch().unwrap(), &hop, self.now);
    }
}

fn udp(peer: u8) -> Flow {
    Flow {
        transport: Transport::Udp,
        peer: SocketAddr::from(([192, 0, 2, peer], 40_000)),
        local: SocketAddr::from(([198, 51, 100, 1], 5060)),
        connection: None,
    }
}

fn relay(mark: u8) -> RelayId {
    RelayId {
        key: TunnelKey(0x1001),
        mark: Mark::new(mark).unwrap(),
    }
}
