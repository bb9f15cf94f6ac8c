//! Offers that no relay can be put into are refused and leave nothing behind; answers cannot be.

use std::time::Duration;

use sip::cookie::{Keys, Owner};
use sip::proxy::{Config, Proxy, TIMER_C};
use sip::sdp::SdpError;

use super::*;

const AUDIO: &str = "audio 6000 RTP/AVP 0";
/// No session.
const NONE: [u64; 0] = [];
/// Bodies of type SDP that cannot be read, and the status of their refusal.
const UNREADABLE: [(&str, u16); 5] = [
    ("m=audio\r\nnonsense", 400),
    ("v=0\r\nm=audio 65536 RTP/AVP 0\r\n", 400),
    ("v=0\r\nm=audio 4294967296 RTP/AVP 0\r\n", 400),
    ("v=0\r\nm=audio -1 RTP/AVP 0\r\n", 400),
    ("v=0\r\nm=audio 6000\r\n", 400),
];

fn lines(count: usize) -> Vec<u8> {
    let lines: Vec<String> = (0..count)
        .map(|line| format!("audio {} RTP/AVP 0", 6000 + 2 * line))
        .collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    offer(&lines)
}

/// Every body that is refused where its media would be relayed.
fn refused() -> Vec<(Vec<u8>, u16)> {
    let unreadable = UNREADABLE.map(|(body, status)| (body.as_bytes().to_vec(), status));
    let many = [9, 64, 65, 100].map(|count| (lines(count), 488));
    unreadable.into_iter().chain(many).collect()
}

impl World {
    /// A call of a caller whose Contact has this address.
    fn place_from(&mut self, caller: &str, body: &[u8], contact: &str) -> Placement {
        let headers =
            format!("Contact: <sip:alice@{caller}:5060>\r\nContent-Type: application/sdp\r\n");
        let line = "INVITE sip:bob@example.com SIP/2.0";
        let request = sip_message_with(line, "INVITE", &headers, body);
        let (from, to) = (hop(CALLER, 1), hop(CALLEE, 2));
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

    fn try_to(&mut self, session: SessionRef, what: &str, body: &[u8]) -> Result<(), Refusal> {
        let line = format!("{what} sip:x@example.com SIP/2.0");
        let (message, from) = (sip_message(&line, what, body), hop(CALLER, 1));
        let message = CallMessage {
            message: &message,
            from: &from,
            party: Party::Caller,
            session,
            caller_side: None,
        };
        self.calls.rewrite(&message, self.now).map(drop)
    }
}

#[test]
fn an_offer_that_no_relay_can_carry_takes_no_lease() {
    for (body, status) in refused() {
        let mut world = World::new(RelayPolicy::Always);
        let placed = world.place(&body);
        let refusal = placed.refusal.expect("a reason");
        assert_eq!(refusal.status().0, status, "{refusal:?}");
        assert_eq!((placed.session, placed.body), (None, None));
        assert_eq!(world.calls.relays.counters().leases_taken, 0);
        assert!(world.said().is_empty(), "{refusal:?}");
        assert!(world.calls.calls.is_empty() && world.calls.call_of.is_empty());
        let counters = world.calls.counters();
        assert_eq!(counters.offers_refused, 1);
        assert_eq!(counters.bad_sdp + counters.too_many_lines, 1);
    }
}

#[test]
fn where_media_are_not_relayed_the_same_offers_pass_untouched() {
    for (body, _) in refused() {
        let mut never = World::new(RelayPolicy::Never);
        assert_eq!(never.place(&body), Placement::default());
        assert_eq!(never.calls.counters().offers_refused, 0);
    }
    // Nobody is behind a NAT, as far as can be told.
    let contact = format!("sip:bob@{CALLEE}:5060");
    let public = |body: Vec<u8>| text(body).replace("192.168.1.10", CALLER).into_bytes();
    for (body, _) in refused() {
        let mut auto = World::new(RelayPolicy::Auto);
        let placed = auto.place_from(CALLER, &public(body.clone()), &contact);
        assert_eq!(placed, Placement::default());
        assert_eq!(auto.calls.counters().direct, 1);
        let placed = auto.place_from("192.168.1.10", &body, &contact);
        assert!(placed.refusal.is_some(), "the caller is behind a NAT");
    }
}

#[test]
fn eight_lines_are_relayed_whatever_their_places_and_no_ninth() {
    let mut world = World::with_leases(RelayPolicy::Always, 20);
    let many: Vec<String> = (0..20)
        .map(|line| {
            let port = if line < 12 { 0 } else { 7000 + 2 * line };
            format!("audio {port} RTP/AVP 0")
        })
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let placed = world.place(&offer(&many));
    let session = placed.session.expect("a session");
    let body = text(placed.body.expect("a new body"));
    let relayed = body.lines().filter(|line| line.starts_with("m=audio 300"));
    assert_eq!(relayed.count(), MAX_STREAMS, "{body}");
    assert!(!body.contains("m=audio 70"), "{body}");
    assert_eq!(world.calls.relays.counters().leases_taken, 8);
    world.said();

    let refusal = world.try_to(session, "UPDATE", &lines(9));
    assert_eq!(refusal, Err(Refusal::TooManyLines { most: 8 }));
    assert_eq!(world.calls.relays.counters().leases_taken, 8);
    world.calls.ended(session, world.now);
    assert_eq!(world.released(), (100..108).collect::<Vec<_>>());
    assert!(world.calls.call_of.is_empty());
}

#[test]
fn offers_that_replace_each_others_lines_take_a_bounded_number_of_leases() {
    let mut world = World::with_leases(RelayPolicy::Always, 60);
    let session = world.place(&lines(8)).session.expect("a session");
    for round in 1..7 {
        let all: Vec<String> = (0..8 * (round + 1))
            .map(|line| {
                let port = if line < 8 * round { 0 } else { 6000 + 2 * line };
                format!("audio {port} RTP/AVP 0")
            })
            .collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        world
            .try_to(session, "UPDATE", &offer(&all))
            .expect("it has eight live lines");
    }
    assert_eq!(
        world.calls.relays.counters().leases_taken,
        MAX_LEASES as u64
    );
    assert_eq!(world.calls.counters().lines_unplaced, 40);
    world.said();
    world.calls.ended(session, world.now);
    assert_eq!(world.released().len(), MAX_LEASES);
}

/// "the session parameters MUST remain unchanged" (RFC 3261 section 14.1).
#[test]
fn a_later_offer_that_is_refused_changes_nothing() {
    for (body, status) in refused() {
        for method in ["INVITE", "UPDATE", "PRACK"] {
            let mut world = World::new(RelayPolicy::Always);
            let session = world.place(&offer(&[AUDIO])).session.expect("a session");
            world.rewrite(session, Party::Callee, &offer(&["audio 7000 RTP/AVP 0"]));
            world.said();
            let refusal = world.try_to(session, method, &body).expect_err("refused");
            assert_eq!(refusal.status().0, status);
            assert!(world.said().is_empty(), "the relay hears nothing of it");
            let again = world.rewrite(session, Party::Caller, &offer(&[AUDIO]));
            assert!(text(again.expect("a body")).contains("m=audio 30002 "));
        }
    }
}

#[test]
fn a_bad_offer_in_a_call_that_is_not_known_any_more_adopts_nothing() {
    let mut world = World::new(RelayPolicy::Always);
    let forgotten = SessionRef {
        relay: relay(1),
        session: 77,
    };
    let refusal = world.try_to(forgotten, "INVITE", b"v=0\r\nm=audio 70000 RTP/AVP 0\r\n");
    assert_eq!(refusal, Err(Refusal::Unreadable(SdpError::BadMedia(0))));
    assert_eq!(world.calls.counters().adopted, 0);
    assert!(world.calls.calls.is_empty());
}

#[test]
fn a_bad_answer_passes_and_its_session_is_given_back() {
    for (body, _) in refused() {
        let mut world = World::new(RelayPolicy::Always);
        let session = world.place(&offer(&[AUDIO])).session.expect("a session");
        world.said();
        let early = sip_message("SIP/2.0 183 X", "INVITE", &body);
        assert_eq!(world.pass(session, Party::Callee, &early), None);
        assert_eq!(world.released(), NONE, "there may be a better one");
        assert_eq!(world.rewrite(session, Party::Callee, &body), None);
        assert_eq!(world.released(), [100]);
        assert!(world.calls.calls.is_empty() && world.calls.call_of.is_empty());
        assert_eq!(world.calls.counters().answers_unchanged, 2);
        assert_eq!(world.calls.counters().offers_refused, 0);
        assert_eq!(world.rewrite(session, Party::Callee, &body), None);
        assert_eq!(world.released(), NONE, "once");
    }
}

#[test]
fn a_bad_answer_after_a_good_one_leaves_the_session_as_it_was() {
    for early in [true, false] {
        let mut world = World::new(RelayPolicy::Always);
        let session = world.place(&offer(&[AUDIO])).session.expect("a session");
        let good = offer(&["audio 7000 RTP/AVP 0"]);
        if early {
            let ringing = sip_message("SIP/2.0 183 X", "INVITE", &good);
            world.pass(session, Party::Callee, &ringing);
        } else {
            world.rewrite(session, Party::Callee, &good);
            world.rewrite(session, Party::Caller, &offer(&[AUDIO]));
        }
        world.said();
        let bad = b"v=0\r\nm=audio 70000 RTP/AVP 0\r\n";
        assert_eq!(world.rewrite(session, Party::Callee, bad), None);
        assert_eq!(world.released(), NONE);
        assert_eq!(world.calls.calls.len(), 1);
    }
}

#[test]
fn a_bad_late_offer_or_its_bad_answer_gives_the_session_back() {
    let bad = b"v=0\r\nm=audio 70000 RTP/AVP 0\r\n";
    let mut world = World::new(RelayPolicy::Always);
    let session = world.place(b"").session.expect("a session");
    world.said();
    assert_eq!(world.rewrite(session, Party::Callee, &lines(9)), None);
    assert_eq!(world.released(), [100]);

    let mut world = World::new(RelayPolicy::Always);
    let session = world.place(b"").session.expect("a session");
    world.rewrite(session, Party::Callee, &offer(&[AUDIO]));
    world.said();
    let ack = sip_message("ACK sip:x@example.com SIP/2.0", "ACK", bad);
    assert_eq!(world.pass(session, Party::Caller, &ack), None);
    assert_eq!(world.released(), [100]);
}

#[test]
fn nobody_waits_with_an_offer_that_will_be_refused() {
    let mut world = World::with_leases(RelayPolicy::Always, 0);
    world.calls.set_patience(Duration::from_millis(300));
    for (body, waits) in [(lines(9), false), (lines(8), true)] {
        let (request, from, to) = (message(&body), hop(CALLER, 1), hop(CALLEE, 2));
        let call = NewCall {
            request: &request,
            from: &from,
            to: &to.flow,
            to_relay: to.relay,
            contact: b"",
            trunks: [None; 2],
        };
        let until = world.calls.wait_until(&call, 1, false, world.now);
        assert_eq!(until.is_some(), waits);
    }
}

/// What the caller sees, and what the callee does not.
#[test]
fn the_caller_is_told_why_and_the_callee_hears_nothing() {
    for (body, status) in refused() {
        let mut world = World::with_leases(RelayPolicy::Always, 20);
        let mut proxy = proxy(world.now);
        let register = "REGISTER sip:example.com SIP/2.0\r\n\
             Via: SIP/2.0/UDP 192.168.1.2;branch=z9hG4bKr\r\nFrom: <sip:bob@example.com>;tag=r\r\n\
             To: <sip:bob@example.com>\r\nCall-ID: reg\r\nCSeq: 1 REGISTER\r\nMax-Forwards: 70\r\n\
             Contact: <sip:bob@192.168.1.2:5060>\r\nExpires: 600\r\nContent-Length: 0\r\n\r\n";
        let sent = feed(&mut proxy, &mut world, CALLEE, register.as_bytes());
        assert_eq!(sent[0].status(), Some(200));
        let invite = [
            b"INVITE sip:bob@example.com SIP/2.0\r\n\
              Via: SIP/2.0/UDP 192.168.1.2;branch=z9hG4bKi\r\nFrom: <sip:alice@example.com>;tag=a\r\n\
              To: <sip:bob@example.com>\r\nCall-ID: one\r\nCSeq: 1 INVITE\r\nMax-Forwards: 70\r\n\
              Contact: <sip:alice@192.168.1.2:5060>\r\nContent-Type: application/sdp\r\n"
                .as_slice(),
            format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes(),
            &body,
        ]
        .concat();
        let sent = feed(&mut proxy, &mut world, CALLER, &invite);
        let statuses: Vec<_> = sent.iter().map(Message::status).collect();
        assert_eq!(statuses, [Some(100), Some(status)], "{}", text(body));
        let warning = sent[1].header(sip::message::HeaderName::Warning);
        let warning = text(warning.expect("a Warning").to_vec());
        assert!(warning.starts_with("399 sipcast \""), "{warning}");
        assert_eq!(proxy.counters().calls, 1);
        assert_eq!(world.calls.relays.counters().leases_taken, 0);
        assert_eq!(proxy.branches_and_timers(), (0, 0));
    }
}

fn feed(proxy: &mut Proxy, world: &mut World, from: &str, bytes: &[u8]) -> Vec<Message> {
    let bytes = Bytes::copy_from_slice(bytes);
    proxy.handle_message(bytes, &hop(from, 1), &mut world.calls, world.now);
    std::iter::from_fn(|| proxy.poll_transmit())
        .map(|sent| Message::parse(sent.bytes).expect("a message"))
        .collect()
}

fn proxy(now: Instant) -> Proxy {
    Proxy::new(Config {
        service: vec!["198.51.100.1:5060".parse().expect("an address")],
        domains: vec!["example.com".to_owned()],
        keys: Keys::new([7; 32], None),
        owner: Owner(1),
        timers: sip::timer::Timers::default(),
        timer_c: TIMER_C,
        limits: sip::transaction::Limits {
            max_server: 100,
            max_client: 100,
            max_of_source: 100,
        },
        registrar: sip::registrar::Limits::default(),
        routing: sip::proxy::routing::Config::default(),
        epoch: (now, 1_800_000_000),
        clustered: false,
    })
}
