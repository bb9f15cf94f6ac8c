//! A call's media, from the INVITE to the end: what the SDP says and what the relays are told.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test picks out the messages that it is about"
)]

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use bytes::Bytes;
use sip::hop::{Flow, Hop, Transport};
use wire::gre::TunnelKey;
use wire::mark::Mark;
use wire::relay_control::{FromAgent, Gate, Lease, ToAgent, VERSION};

use super::*;
use crate::relays::pool::{Command, LinkId, Settings};

mod choice;
mod mutants;
mod offers;
mod refusals;

const CALLER: &str = "203.0.113.2";
const CALLEE: &str = "192.0.2.2";

#[test]
fn the_offer_names_the_callers_relay_and_the_answer_its_other_side() {
    let mut world = World::new(RelayPolicy::Always);
    let placed = world.place(&offer(&["audio 6000 RTP/AVP 0"]));
    let session = placed.session.expect("a session");
    assert_eq!(session.relay, relay(1));
    let body = text(placed.body.expect("a new body"));
    assert!(body.contains("c=IN IP4 10.0.1.2"), "{body}");
    assert!(
        body.contains("m=audio 30002 RTP/AVP 0"),
        "the callee sends to side B: {body}"
    );

    let answer = world.rewrite(session, Party::Callee, &offer(&["audio 7000 RTP/AVP 0"]));
    assert!(
        text(answer.expect("a new body")).contains("m=audio 30000 "),
        "the caller to side A"
    );
}

#[test]
fn each_side_learns_only_from_its_own_party() {
    let mut world = World::new(RelayPolicy::Always);
    let session = world
        .place(&offer(&["audio 6000 RTP/AVP 0"]))
        .session
        .expect("a session");
    let gates: Vec<(Side, Vec<IpAddr>)> = world
        .said()
        .into_iter()
        .flat_map(|message| match message {
            ToAgent::Bind { a, b, .. } => vec![(Side::A, a.expected), (Side::B, b.expected)],
            ToAgent::Update { side, gate, .. } => vec![(side, gate.expected)],
            _ => Vec::new(),
        })
        .collect();
    let (caller, callee) = (ip(CALLER), ip(CALLEE));
    let described = ip("192.168.1.10");
    assert_eq!(
        gates,
        [(Side::A, vec![caller, described]), (Side::B, vec![callee]),],
        "one message says it all"
    );
    world.rewrite(session, Party::Callee, &offer(&["audio 7000 RTP/AVP 0"]));
    let Some(ToAgent::Update {
        side: Side::B,
        gate,
        ..
    }) = world.said().pop()
    else {
        panic!("the answer opens side B");
    };
    assert_eq!(gate.expected, [callee, described]);
}

#[test]
fn every_line_that_can_be_relayed_has_a_lease_and_no_other() {
    let mut world = World::new(RelayPolicy::Always);
    let lines = [
        "audio 6000 RTP/AVP 0",
        "video 0 RTP/AVP 96",
        "message 9 TCP/MSRP *",
    ];
    let placed = world.place(&offer(&lines));
    let body = text(placed.body.expect("a new body"));
    assert!(body.contains("m=audio 30002 "), "{body}");
    assert!(
        body.contains("m=video 0 ") && body.contains("m=message 9 "),
        "{body}"
    );
    assert_eq!(world.calls.relays.counters().leases_taken, 1);

    let session = placed.session.expect("a session");
    let more = [
        "audio 6000 RTP/AVP 0",
        "video 6002 RTP/AVP 96",
        "message 9 TCP/MSRP *",
    ];
    let body = text(
        world
            .rewrite(session, Party::Caller, &offer(&more))
            .expect("a new body"),
    );
    assert!(
        body.contains("m=video 30006 "),
        "a line that wakes up gets its lease: {body}"
    );
    assert_eq!(world.calls.relays.counters().leases_taken, 2);
}

#[test]
fn the_end_of_a_call_releases_each_lease_once() {
    let mut world = World::new(RelayPolicy::Always);
    let lines = ["audio 6000 RTP/AVP 0", "video 6002 RTP/AVP 96"];
    let session = world.place(&offer(&lines)).session.expect("a session");
    world.said();
    world.calls.ended(session, world.now);
    world.calls.ended(session, world.now);
    assert_eq!(world.released(), [100, 101]);
    assert_eq!(world.calls.iter().count(), 0);
    assert!(world.calls.call_of.is_empty());
}

#[test]
fn a_call_whose_first_session_is_gone_keeps_the_others() {
    let mut world = World::new(RelayPolicy::Always);
    let lines = ["audio 6000 RTP/AVP 0", "video 6002 RTP/AVP 96"];
    let session = world.place(&offer(&lines)).session.expect("a session");
    world.said();
    world.calls.session_gone(session);
    assert!(world.released().is_empty());
    world.calls.ended(session, world.now);
    assert_eq!(world.released(), [101]);
    assert_eq!(world.calls.iter().count(), 0);
    assert!(world.calls.call_of.is_empty());
}

#[test]
fn a_line_whose_session_is_gone_goes_direct_and_the_call_lives() {
    let mut world = World::new(RelayPolicy::Always);
    let lines = ["audio 6000 RTP/AVP 0", "video 6002 RTP/AVP 96"];
    let session = world.place(&offer(&lines)).session.expect("a session");
    let video = SessionRef {
        relay: relay(1),
        session: 101,
    };
    world.calls.session_gone(video);
    let body = text(
        world
            .rewrite(session, Party::Callee, &offer(&lines))
            .expect("a body"),
    );
    assert!(
        body.contains("m=audio 30000 ") && body.contains("m=video 6002 "),
        "{body}"
    );
}

#[test]
fn a_line_without_a_lease_stays_direct_in_both_directions() {
    let mut world = World::with_leases(RelayPolicy::Always, 1);
    let lines = ["audio 6000 RTP/AVP 0", "video 6002 RTP/AVP 96"];
    let session = world.place(&offer(&lines)).session.expect("a session");
    assert_eq!(world.calls.counters().lines_unplaced, 1);
    world.offer_leases(LinkId(1), 200..201);
    let body = text(
        world
            .rewrite(session, Party::Callee, &offer(&lines))
            .expect("a body"),
    );
    assert!(
        body.contains("m=video 6002 "),
        "a lease that came later changes nothing: {body}"
    );
}

#[test]
fn a_call_goes_to_the_other_partys_relay_when_the_anchors_has_no_lease() {
    let mut world = World::with_leases(RelayPolicy::Always, 0);
    world.link(LinkId(2), "relay2");
    world.offer_leases(LinkId(2), 500..501);
    let placed = world.place(&offer(&["audio 6000 RTP/AVP 0"]));
    assert_eq!(
        placed.session,
        Some(SessionRef {
            relay: relay(2),
            session: 500
        })
    );
    assert_eq!(world.calls.counters().fallback, 1);
}

/// Between IPv4 and IPv6 (RFC 6157 section 4) a relay has an address of each.
#[test]
fn each_party_gets_an_address_of_its_family_or_the_branch_fails() {
    const CALLEE_V6: &str = "2001:db8::2";
    let body = offer(&["audio 6000 RTP/AVP 0"]);
    let mut world = World::new(RelayPolicy::Auto);
    let refused = world.place_between([CALLER, CALLEE_V6], &body, "sip:bob@[2001:db8::2]");
    assert_eq!(refused.refusal, Some(Refusal::Incompatible));
    assert_eq!(refused.session, None);
    assert_eq!(world.calls.counters().unbridged, 1);
    assert_eq!(world.calls.relays.counters().wrong_family, 1);

    world.offer_bridge(300, ["2001:db8:1::2", "10.0.1.2"]);
    world.offer_bridge(301, ["10.0.1.2", "2001:db8:1::2"]);
    let placed = world.place_between([CALLER, CALLEE_V6], &body, "sip:bob@[2001:db8::2]");
    let session = placed.session.expect("a session");
    assert_eq!(session.session, 301);
    let offered = text(placed.body.expect("a new body"));
    assert!(
        offered.contains("c=IN IP6 2001:db8:1::2\r\n") && offered.contains("m=audio 40000 "),
        "{offered}"
    );
    let answer = text(offer(&["audio 7000 RTP/AVP 0"]));
    let answer = answer.replace("c=IN IP4 192.168.1.10", "c=IN IP6 2001:db8::2");
    let answer = world.rewrite(session, Party::Callee, answer.as_bytes());
    let answer = text(answer.expect("a new body"));
    assert!(answer.contains("c=IN IP4 10.0.1.2\r\n"), "{answer}");
    let never = World::new(RelayPolicy::Never).place_between([CALLER, CALLEE_V6], &body, "");
    assert_eq!(never, Placement::default());
}

#[test]
fn a_call_goes_on_without_a_relay_when_none_has_a_lease() {
    let mut world = World::with_leases(RelayPolicy::Always, 0);
    assert_eq!(
        world.place(&offer(&["audio 6000 RTP/AVP 0"])),
        Placement::default()
    );
    assert_eq!(world.calls.counters().unplaced, 1);
}

#[test]
fn policy_decides_whether_a_relay_is_wanted() {
    let behind_nat = offer(&["audio 6000 RTP/AVP 0"]);
    let reachable = text(behind_nat.clone())
        .replace("192.168.1.10", CALLER)
        .into_bytes();
    let contact = format!("sip:bob@{CALLEE}:5060");
    let cases = [
        (
            RelayPolicy::Auto,
            &behind_nat,
            "sip:bob@192.168.1.10:5060",
            true,
        ),
        (
            RelayPolicy::Auto,
            &reachable,
            "sip:bob@192.168.1.10:5060",
            true,
        ),
        (RelayPolicy::Auto, &reachable, contact.as_str(), false),
        (RelayPolicy::Always, &reachable, contact.as_str(), true),
        (
            RelayPolicy::Never,
            &behind_nat,
            "sip:bob@192.168.1.10:5060",
            false,
        ),
    ];
    for (policy, body, contact, relayed) in cases {
        let mut world = World::new(policy);
        let placed = world.place_with(body, contact);
        assert_eq!(placed.session.is_some(), relayed, "{policy:?} {contact}");
    }
}

#[test]
fn a_call_without_an_offer_has_its_relay_when_the_offer_comes() {
    let mut world = World::new(RelayPolicy::Always);
    let placed = world.place(b"");
    assert_eq!(placed.body, None);
    let session = placed.session.expect("a session");
    let body = world.rewrite(session, Party::Callee, &offer(&["audio 7000 RTP/AVP 0"]));
    assert!(text(body.expect("a body")).contains("m=audio 30000 "));
    assert_eq!(world.calls.relays.counters().leases_taken, 1);
}

#[test]
fn a_call_has_no_media_until_a_relay_has_heard_it_and_after_an_answer_in_its_absence() {
    let mut world = World::new(RelayPolicy::Always);
    let session = world
        .place(&offer(&["audio 6000 RTP/AVP 0"]))
        .session
        .expect("a session");
    assert_eq!(world.calls.unused_of("relay1"), [session]);
    assert!(world.calls.unused_of("relay2").is_empty());
    world.calls.media_started(session);
    assert!(world.calls.has_no_media(session), "it only rings");
    world.calls.answered(session, world.now);
    assert!(!world.calls.has_no_media(session));
    assert!(world.calls.unused_of("relay1").is_empty());

    let mut away = World::new(RelayPolicy::Always);
    let session = away
        .place(&offer(&["audio 6000 RTP/AVP 0"]))
        .session
        .expect("a session");
    away.calls.media_started(session);
    away.calls.relays.handle_closed(LinkId(1));
    away.calls.answered(session, away.now);
    assert_eq!(away.calls.unused_of("relay1"), [session]);
}

/// Another concentrator has sent the INVITE on with its lease 100, and is gone: what we know is in its
/// cookie.
#[test]
fn the_answer_to_an_invite_of_another_concentrator_leads_to_the_relay_of_its_cookie() {
    let placement = World::new(RelayPolicy::Always).place(&offer(&["audio 6000 RTP/AVP 0"]));
    let side = placement.caller_side.expect("one relay carries it");
    let session = placement.session.expect("a session");
    let mut there = World::new(RelayPolicy::Always);
    let mut answered = |caller_side, party, line: &str| {
        let (message, from) = (
            sip_message(line, "INVITE", &offer(&["audio 7000 RTP/AVP 0"])),
            hop(CALLEE, 2),
        );
        let message = CallMessage {
            message: &message,
            from: &from,
            party,
            session,
            caller_side,
        };
        let body = there.calls.rewrite(&message, there.now);
        let body = body.expect("it is not refused");
        body.map(|body| String::from_utf8(body).expect("text"))
    };
    let ok = "SIP/2.0 200 OK";
    assert_eq!(answered(None, Party::Callee, ok), None);
    assert_eq!(answered(Some(side), Party::Caller, ok), None);
    let body = answered(Some(side), Party::Callee, ok).expect("rewritten");
    assert!(body.contains(&format!("m=audio {} ", side.rtp)), "{body}");
    assert!(body.contains(&side.addr.to_string()), "{body}");
    assert_eq!(there.calls.counters().answered_by_cookie, 1);
    let told = there.said();
    assert!(
        told.iter().any(|message| matches!(
            message,
            ToAgent::Update {
                session: 100,
                side: Side::B,
                ..
            }
        )),
        "{told:?}"
    );
}

struct World {
    calls: Calls,
    now: Instant,
}

impl World {
    /// The caller's relay has four leases.
    fn new(policy: RelayPolicy) -> Self {
        Self::with_leases(policy, 4)
    }

    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    fn with_leases(policy: RelayPolicy, leases: u64) -> Self {
        let relays = [
            (relay(1), String::from("relay1")),
            (relay(2), String::from("relay2")),
            (relay(3), String::from("relay3")),
        ];
        let pool = RelayPool::new("c1", relays, Settings::default());
        let own = vec![IpNetwork::from(ip("198.51.100.1"))];
        let calls = Calls::new(Anchor::Caller, policy, own, pool);
        let mut world = Self {
            calls,
            now: Instant::now(),
        };
        world.link(LinkId(1), "relay1");
        world.offer_leases(LinkId(1), 100..100 + leases);
        world.said();
        world
    }

    fn link(&mut self, link: LinkId, name: &str) {
        self.calls.relays.handle_connected(link, name, self.now);
        let hello = FromAgent::Hello {
            version: VERSION,
            name: name.to_owned(),
            epoch: 1,
            media_addresses: Vec::new(),
            software: String::new(),
        };
        self.calls.relays.handle_message(link, hello, self.now);
    }

    /// A lease with this address on side A and that one on side B.
    fn offer_bridge(&mut self, session: u64, addresses: [&str; 2]) {
        let rtp = 39_398 + 2 * u16::try_from(session).expect("a small number");
        let [a, b] = addresses.map(|address| SideAddr {
            addr: ip(address),
            rtp,
            rtcp: rtp + 1,
        });
        let leases = vec![Lease { session, a, b }];
        self.calls
            .relays
            .handle_message(LinkId(1), FromAgent::Leases { leases }, self.now);
    }

    /// Lease 100 has ports 30000 to 30003, 101 the next four, and so on.
    fn offer_leases(&mut self, link: LinkId, sessions: Range<u64>) {
        let leases = sessions
            .map(|session| {
                let port = 30_000 + u16::try_from(session - 100).expect("a small number") * 4;
                let side = |rtp| SideAddr {
                    addr: ip("10.0.1.2"),
                    rtp,
                    rtcp: rtp + 1,
                };
                Lease {
                    session,
                    a: side(port),
                    b: side(port + 2),
                }
            })
            .collect();
        self.calls
            .relays
            .handle_message(link, FromAgent::Leases { leases }, self.now);
    }

    fn place(&mut self, body: &[u8]) -> Placement {
        self.place_with(body, "sip:bob@192.168.1.10:5060")
    }

    fn place_with(&mut self, body: &[u8], contact: &str) -> Placement {
        self.place_between([CALLER, CALLEE], body, contact)
    }

    fn place_between(&mut self, parties: [&str; 2], body: &[u8], contact: &str) -> Placement {
        let [caller, callee] = parties;
        let (request, from, to) = (message(body), hop(caller, 1), hop(callee, 2));
        let call = NewCall {
            request: &request,
            from: &from,
            to: &to.flow,
            to_relay: to.relay,
            contact: contact.as_bytes(),
            trunks: [None; 2],
        };
        self.calls.place(&call, self.now)
    }

    /// An INVITE of the caller, or the 200 for it.
    fn rewrite(&mut self, session: SessionRef, party: Party, body: &[u8]) -> Option<Vec<u8>> {
        let line = match party {
            Party::Caller => "INVITE sip:bob@example.com SIP/2.0",
            Party::Callee => "SIP/2.0 200 OK",
        };
        self.pass(session, party, &sip_message(line, "INVITE", body))
    }

    fn pass(&mut self, session: SessionRef, party: Party, message: &Message) -> Option<Vec<u8>> {
        self.try_pass(session, party, message)
            .expect("it is not refused")
    }

    fn try_pass(
        &mut self,
        session: SessionRef,
        party: Party,
        message: &Message,
    ) -> Result<Option<Vec<u8>>, Refusal> {
        let from = match party {
            Party::Caller => hop(CALLER, 1),
            Party::Callee => hop(CALLEE, 2),
        };
        let message = CallMessage {
            message,
            from: &from,
            party,
            session,
            caller_side: None,
        };
        self.calls.rewrite(&message, self.now)
    }

    /// What the relays were told since the last time.
    fn said(&mut self) -> Vec<ToAgent> {
        std::iter::from_fn(|| self.calls.relays.poll_command())
            .filter_map(|command| match command {
                Command::Send(_, message) => Some(message),
                Command::Close(..) => None,
            })
            .collect()
    }

    fn released(&mut self) -> Vec<u64> {
        let mut released: Vec<u64> = self
            .said()
            .into_iter()
            .filter_map(|message| match message {
                ToAgent::Release { session, .. } => Some(session),
                _ => None,
            })
            .collect();
        released.sort_unstable();
        released
    }
}

fn offer(lines: &[&str]) -> Vec<u8> {
    let media: String = lines.iter().map(|line| format!("m={line}\r\n")).collect();
    format!(
        "v=0\r\no=- 1 1 IN IP4 192.168.1.10\r\ns=-\r\nc=IN IP4 192.168.1.10\r\nt=0 0\r\n{media}"
    )
    .into_bytes()
}

fn message(body: &[u8]) -> Message {
    sip_message("INVITE sip:bob@example.com SIP/2.0", "INVITE", body)
}

/// A message of the call between Alice's tag `a` and Bob's `b`, with an SDP if `body` has one.
fn sip_message(line: &str, method: &str, body: &[u8]) -> Message {
    sip_message_with(line, method, "Content-Type: application/sdp\r\n", body)
}

fn sip_message_with(line: &str, method: &str, headers: &str, body: &[u8]) -> Message {
    let headers = if body.is_empty() { "" } else { headers };
    let head = format!(
        "{line}\r\nVia: SIP/2.0/UDP 192.168.1.10;branch=z9hG4bK1\r\n\
         From: <sip:alice@example.com>;tag=a\r\nTo: <sip:bob@example.com>;tag=b\r\n\
         Call-ID: call-1\r\nCSeq: 1 {method}\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    );
    let bytes = [head.as_bytes(), body].concat();
    Message::parse(Bytes::from(bytes)).expect("a message")
}

fn hop(address: &str, mark: u8) -> Hop {
    let peer = SocketAddr::new(ip(address), 40_000);
    let local = SocketAddr::new(ip("198.51.100.1"), 5060);
    let flow = Flow {
        transport: Transport::Udp,
        peer,
        local,
        connection: None,
    };
    Hop {
        flow,
        relay: Some(relay(mark)),
    }
}

fn relay(mark: u8) -> RelayId {
    RelayId {
        key: TunnelKey(1),
        mark: Mark::new(mark).expect("a mark"),
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("text")
}
