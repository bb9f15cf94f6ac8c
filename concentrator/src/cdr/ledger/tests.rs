//! What happens to calls goes in, lines come out, in virtual time.

use bytes::Bytes;
use serde_json::Value;
use sip::cookie::DialogCookie;
use sip::hop::{Flow, Hop, Transport};
use sip::message::Message;
use wire::gre::TunnelKey;
use wire::mark::{Mark, RelayId};
use wire::relay_control::{Counted, Quality, SideStatistics};

use super::super::record::Names;
use super::*;

/// 2026-11-28T19:05:00Z.
const START: u64 = 1_795_892_700;

#[test]
fn an_answered_call_is_one_line_once_its_relay_has_told_what_it_did() {
    let mut rig = Rig::new();
    rig.begin(1);
    rig.after(2000);
    rig.tell(1, CallProgress::Ringing);
    rig.after(3000);
    rig.ledger
        .media_started(session(7), Some(session(7)), Side::B, rig.now);
    rig.answer(1, Some(session(7)));
    rig.after(500);
    rig.ledger
        .media_started(session(7), Some(session(7)), Side::A, rig.now);
    rig.after(60_000);
    rig.hang_up(1, Party::Callee, START);
    assert_eq!(rig.lines(), [Value::Null; 0], "the relay has not told yet");
    rig.after(2000);
    rig.session_ended(session(7));
    let [line] = &rig.lines()[..] else {
        panic!("expected one line");
    };
    for (key, expected) in [
        ("concentrator", "c1"),
        ("call_id", "call-1"),
        ("from_tag", "a1"),
        ("to_tag", "b1"),
        ("caller", "sip:alice@example.com"),
        ("callee", "sip:bob@example.com"),
        ("start", "2026-11-28T19:05:00.000Z"),
        ("ring", "2026-11-28T19:05:02.000Z"),
        ("answer", "2026-11-28T19:05:05.000Z"),
        ("end", "2026-11-28T19:06:05.500Z"),
        ("ended_by", "callee"),
    ] {
        assert_eq!(line[key], expected, "{key}");
    }
    assert_eq!(
        (&line["duration_ms"], &line["status"]),
        (&60_500.into(), &200.into())
    );
    let caller = &line["caller_place"];
    assert_eq!(
        (&caller["edge"], &caller["mark"]),
        (&"edge1".into(), &1.into())
    );
    assert_eq!(
        (&caller["address"], &caller["transport"]),
        (&"203.0.113.10:40000".into(), &"UDP".into())
    );
    assert_eq!(line["callee_place"]["edge"], "edge2");
    let media = &line["media"][0];
    assert_eq!(
        (&media["relay"], &media["session"]),
        (&"relay1".into(), &7.into())
    );
    let (caller, callee) = (&media["caller"], &media["callee"]);
    assert_eq!(
        callee["first_packet"], "2026-11-28T19:05:05.000Z",
        "before the answer was seen"
    );
    assert_eq!(caller["first_packet"], "2026-11-28T19:05:05.500Z");
    for (key, expected) in [
        ("packets", 3000.0),
        ("bytes", 516_000.0),
        ("lost", 30.0),
        ("jitter_ms", 1.5),
        ("mos", 4.2),
    ] {
        assert_eq!(caller[key].as_f64(), Some(expected), "{key}");
    }
    assert_eq!(callee["mos"], Value::Null, "it sent nothing");
    assert_eq!(line.get("partial"), None);
    assert_eq!(rig.ledger.len(), 0);
    rig.assert_empty();
}

#[test]
fn a_call_without_a_relay_is_a_line_as_soon_as_it_cannot_end_twice() {
    let mut rig = Rig::new();
    rig.begin(1);
    rig.answer(1, None);
    rig.after(1000);
    rig.hang_up(1, Party::Caller, START);
    rig.hang_up(1, Party::Callee, START);
    rig.after(999);
    assert_eq!(rig.lines(), [Value::Null; 0]);
    rig.after(1);
    let lines = rig.lines();
    assert_eq!((lines.len(), &lines[0]["ended_by"]), (1, &"caller".into()));
    assert_eq!(lines[0]["media"], Value::Array(Vec::new()));
    rig.assert_empty();
}

#[test]
fn a_relay_that_tells_nothing_is_waited_for_no_longer_than_its_patience() {
    let mut rig = Rig::new();
    rig.begin(1);
    rig.answer(1, Some(session(7)));
    rig.hang_up(1, Party::Caller, START);
    rig.after(44_999);
    assert_eq!(rig.lines(), [Value::Null; 0]);
    rig.after(1);
    let lines = rig.lines();
    assert_eq!(lines[0]["media"][0]["caller"], Value::Null);
    rig.assert_empty();
}

#[test]
fn a_failed_call_is_a_line_at_once() {
    let mut rig = Rig::new();
    for (number, status, cancelled, by) in [
        (1, 486, false, "failed"),
        (2, 487, true, "cancelled"),
        (3, 404, false, "failed"),
    ] {
        rig.begin(number);
        rig.after(100);
        rig.tell(number, CallProgress::Failed { status, cancelled });
        let lines = rig.lines();
        assert_eq!(
            (&lines[0]["status"], &lines[0]["ended_by"]),
            (&status.into(), &by.into())
        );
        assert_eq!(
            (&lines[0]["answer"], &lines[0]["duration_ms"]),
            (&Value::Null, &0.into())
        );
    }
    rig.begin(4);
    rig.tell(4, CallProgress::CallerGone);
    assert_eq!(rig.lines()[0]["ended_by"], "caller_gone");
    rig.assert_empty();
}

#[test]
fn a_challenged_call_is_one_line_with_its_second_attempt() {
    let mut rig = Rig::new();
    rig.begin(1);
    let challenged = CallProgress::Failed {
        status: 407,
        cancelled: false,
    };
    rig.tell(1, challenged);
    rig.begin(1);
    rig.answer(1, None);
    rig.hang_up(1, Party::Caller, START);
    rig.after(1000);
    assert_eq!(rig.lines().len(), 1);
    assert_eq!(rig.ledger.counters().challenged, 1);
}

/// Through a registrar behind us.
#[test]
fn a_call_that_passes_twice_is_one_line() {
    let mut rig = Rig::new();
    for _ in 0..2 {
        rig.begin(1);
    }
    for _ in 0..2 {
        let busy = CallProgress::Failed {
            status: 486,
            cancelled: false,
        };
        rig.tell(1, busy);
    }
    assert_eq!(rig.lines().len(), 1);
    for _ in 0..2 {
        rig.begin(2);
    }
    for _ in 0..2 {
        rig.answer(2, Some(session(9)));
    }
    for _ in 0..2 {
        rig.hang_up(2, Party::Caller, START);
    }
    rig.session_ended(session(9));
    rig.after(1000);
    assert_eq!(rig.lines().len(), 1);
    rig.assert_empty();
}

#[test]
fn a_call_without_media_says_which_limit_it_reached() {
    let mut rig = Rig::new();
    rig.begin(1);
    rig.answer(1, Some(session(7)));
    rig.after(60_000);
    rig.ledger.fall_silent(session(7), Silence::OneWay, rig.now);
    rig.session_ended(session(7));
    // The parties hang up too, and are too late.
    rig.hang_up(1, Party::Callee, START);
    rig.after(1000);
    let lines = rig.lines();
    assert_eq!(
        (&lines[0]["ended_by"], &lines[0]["silence"]),
        (&"media_timeout".into(), &"one-way".into())
    );
    rig.assert_empty();
}

#[test]
fn a_call_that_another_concentrator_has_seen_end_says_so() {
    for stats in [true, false] {
        let mut rig = Rig::new();
        rig.begin(1);
        rig.answer(1, Some(session(7)));
        rig.after(60_000);
        rig.ledger.ended_elsewhere(session(7), rig.now);
        if stats {
            rig.session_ended(session(7));
        } else {
            rig.ledger.session_ended(session(7), None, rig.now);
        }
        rig.after(1000);
        let lines = rig.lines();
        assert_eq!(lines[0]["ended_by"], "elsewhere");
        assert_eq!(lines[0]["duration_ms"], 60_000);
        rig.assert_empty();
    }
}

#[test]
fn a_call_that_has_lost_its_relay_says_so() {
    let mut rig = Rig::new();
    rig.begin(1);
    rig.answer(1, Some(session(7)));
    rig.ledger.session_ended(session(7), None, rig.now);
    rig.tell(1, CallProgress::RelayLost);
    rig.after(1000);
    let lines = rig.lines();
    assert_eq!(lines[0]["ended_by"], "relay_lost");
    rig.assert_empty();
}

#[test]
fn the_bye_of_a_call_from_before_the_start_makes_a_partial_line_and_no_later_one_does() {
    let mut rig = Rig::new();
    rig.hang_up(1, Party::Callee, START - 100);
    rig.hang_up(2, Party::Callee, START);
    rig.after(1000);
    let lines = rig.lines();
    assert_eq!(
        lines.len(),
        1,
        "nobody makes a line by sending a BYE once more"
    );
    assert_eq!(rig.ledger.counters().unknown, 1);
    assert_eq!(
        (&lines[0]["partial"], &lines[0]["ended_by"]),
        (&true.into(), &"callee".into())
    );
    assert_eq!(lines[0]["start"], "2026-11-28T19:03:20.000Z");
    assert_eq!(
        (&lines[0]["answer"], &lines[0]["duration_ms"]),
        (&Value::Null, &0.into())
    );
    assert_eq!(
        (&lines[0]["caller"], &lines[0]["from_tag"]),
        (&"sip:alice@example.com".into(), &"a1".into())
    );
    rig.assert_empty();
}

#[test]
fn a_call_of_which_no_end_is_heard_is_lost_after_a_day() {
    let mut rig = Rig::new();
    rig.begin(1);
    rig.answer(1, None);
    rig.after(86_399_999);
    assert_eq!(rig.lines(), [Value::Null; 0]);
    rig.after(1);
    assert_eq!(rig.lines()[0]["ended_by"], "lost");
    rig.assert_empty();
}

#[test]
fn more_calls_than_there_is_room_for_go_without_a_line_and_leave_nothing() {
    let mut rig = Rig::new();
    for number in 0..150 {
        rig.begin(number);
    }
    assert_eq!(
        (rig.ledger.len(), rig.ledger.counters().untracked),
        (100, 50)
    );
    for number in 0..150 {
        rig.answer(number, Some(session(number)));
        rig.hang_up(number, Party::Caller, START);
        rig.session_ended(session(number));
    }
    rig.after(1000);
    assert_eq!(rig.lines().len(), 100);
    rig.assert_empty();
}

#[test]
fn places_of_calls_that_are_over_are_not_kept() {
    let mut rig = Rig::new();
    rig.begin(0);
    for number in 1..10_000 {
        rig.begin(number);
        let busy = CallProgress::Failed {
            status: 486,
            cancelled: false,
        };
        rig.tell(number, busy);
        rig.lines();
    }
    assert!(rig.ledger.oldest.len() < 100, "{}", rig.ledger.oldest.len());
}

#[test]
fn text_of_phones_is_cut_and_cannot_leave_its_line() {
    let mut rig = Rig::new();
    let long = "x".repeat(5000);
    let invite = format!(
        "INVITE sip:bob@example.com SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK1\r\n\
         From: <sip:{long}@example.com>;tag=a1\r\nTo: \"\\\"\" <sip:b%0A@example.com>\r\n\
         Call-ID: c\"\\{{}}\r\nCSeq: 1 INVITE\r\n\r\n"
    );
    let invite = Message::parse(Bytes::from(invite)).expect("a message");
    let from = hop(1);
    rig.tell(1, CallProgress::Begun { invite, from });
    let busy = CallProgress::Failed {
        status: 486,
        cancelled: false,
    };
    rig.tell(1, busy);
    let record = rig.ledger.poll_record().expect("a record");
    let line = record.line("c1", &Lab, rig.now, rig.unix());
    assert!(line.len() < 1500 && !line.contains('\n'), "{line}");
    let line: Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(line["call_id"], "c\"\\{}");
    assert_eq!(line["caller"].as_str().map(str::len), Some(256));
}

#[test]
fn the_end_of_the_program_records_what_has_ended() {
    let mut rig = Rig::new();
    rig.begin(1);
    rig.begin(2);
    rig.answer(1, Some(session(7)));
    rig.hang_up(1, Party::Caller, START);
    rig.ledger.handle_end();
    assert_eq!(rig.records().len(), 1, "the other one goes on without us");
}

struct Rig {
    ledger: Ledger,
    start: Instant,
    now: Instant,
}

impl Rig {
    #[expect(
        clippy::disallowed_methods,
        reason = "any instant will do to begin with"
    )]
    fn new() -> Self {
        let now = Instant::now() + Duration::from_secs(200_000);
        Self {
            ledger: Ledger::new(100, Duration::from_secs(86_400), START),
            start: now,
            now,
        }
    }

    fn unix(&self) -> Duration {
        Duration::from_secs(START) + (self.now - self.start)
    }

    fn after(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
    }

    fn tell(&mut self, number: u64, what: CallProgress) {
        let event = CallEvent {
            key: CallKey(number),
            what,
        };
        let unix = self.unix();
        self.ledger
            .handle_call(event, std::iter::once, unix, self.now);
    }

    fn begin(&mut self, number: u64) {
        let invite = message("INVITE sip:bob@example.com SIP/2.0", "");
        self.tell(
            number,
            CallProgress::Begun {
                invite,
                from: hop(1),
            },
        );
    }

    fn answer(&mut self, number: u64, session: Option<SessionRef>) {
        let response = message("SIP/2.0 200 OK", ";tag=b1");
        let by = Some(hop(2));
        self.tell(
            number,
            CallProgress::Answered {
                response,
                by,
                session,
            },
        );
    }

    fn hang_up(&mut self, number: u64, by: Party, started: u64) {
        let cookie = DialogCookie {
            caller: hop(1).flow,
            callee: hop(2).flow,
            caller_tag: 0,
            session: None,
            far: None,
            owner: None,
            caller_relay: None,
            started: u32::try_from(started).expect("before 2106"),
            names: [0; 2],
        };
        let mut bye = message("BYE sip:bob@192.0.2.1 SIP/2.0", ";tag=b1");
        if by == Party::Callee {
            let text = String::from_utf8_lossy(bye.bytes()).into_owned();
            let text = text
                .replace("From:", "X:")
                .replace("To:", "From:")
                .replace("X:", "To:");
            bye = Message::parse(Bytes::from(text)).expect("a message");
        }
        self.tell(number, CallProgress::HungUp { bye, by, cookie });
    }

    fn session_ended(&mut self, session: SessionRef) {
        let a = SideStatistics {
            rtp: Counted {
                packets_in: 3000,
                bytes_in: 516_000,
                ..Counted::default()
            },
            lost: 30,
            quality: Some(Quality {
                expected: 3030,
                mos_x100: 420,
                r_factor: 88,
                jitter_us: 1500,
                ..Quality::default()
            }),
            ..SideStatistics::default()
        };
        let stats = SessionStatistics {
            duration_ms: 60_000,
            a,
            b: SideStatistics::default(),
        };
        self.ledger
            .session_ended(session, Some(Box::new(stats)), self.now);
    }

    fn records(&mut self) -> Vec<Record> {
        std::iter::from_fn(|| self.ledger.poll_record()).collect()
    }

    fn lines(&mut self) -> Vec<Value> {
        self.ledger.handle_timeout(self.now);
        let (now, unix) = (self.now, self.unix());
        let records = self.records();
        let lines = records
            .iter()
            .map(|record| record.line("c1", &Lab, now, unix));
        lines
            .map(|line| serde_json::from_str(&line).expect("JSON"))
            .collect()
    }

    fn assert_empty(&mut self) {
        let Ledger {
            calls,
            of_session,
            closing,
            closes,
            early,
            ..
        } = &self.ledger;
        assert_eq!((calls.len(), of_session.len(), early.len()), (0, 0, 0));
        assert_eq!((closing.len(), closes.len()), (0, 0));
    }
}

struct Lab;

impl Names for Lab {
    fn edge(&self, relay: RelayId) -> Option<&str> {
        Some(if relay.mark.number() == 1 {
            "edge1"
        } else {
            "edge2"
        })
    }

    fn agent(&self, relay: RelayId) -> Option<&str> {
        Some(if relay.mark.number() == 1 {
            "relay1"
        } else {
            "relay2"
        })
    }
}

fn session(number: u64) -> SessionRef {
    SessionRef {
        relay: relay(1),
        session: number,
    }
}

fn relay(mark: u8) -> RelayId {
    RelayId {
        key: TunnelKey(1),
        mark: Mark::new(mark).expect("a mark"),
    }
}

fn hop(mark: u8) -> Hop {
    let flow = Flow {
        transport: Transport::Udp,
        peer: "203.0.113.10:40000".parse().expect("an address"),
        local: "198.51.100.1:5060".parse().expect("an address"),
        connection: None,
    };
    let relay = Some(relay(mark));
    Hop { flow, relay }
}

fn message(first: &str, to_tag: &str) -> Message {
    let cseq = if first.starts_with("BYE") {
        "2 BYE"
    } else {
        "1 INVITE"
    };
    let text = format!(
        "{first}\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK1\r\nFrom: <sip:alice@example.com>;tag=a1\r\n\
         To: <sip:bob@example.com>{to_tag}\r\nCall-ID: call-1\r\nCSeq: {cseq}\r\n\r\n"
    );
    Message::parse(Bytes::from(text)).expect("a message")
}
