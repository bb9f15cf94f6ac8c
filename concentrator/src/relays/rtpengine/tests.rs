use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use wire::bencode::{self, Dictionary, Value};
use wire::relay_control::{ErrorCode, FromAgent, Gate, GateMode, Lease, Side, ToAgent};

use super::client::{CHECK, Client, Identity, Output, RENEW};

const FIRST: u64 = 0x1000;
const STOCK: u32 = 6;
const UA: &str = "203.0.113.2";

#[test]
fn rtpengine_is_an_agent_once_it_answers_and_fills_the_stock() {
    let mut world = World::new();
    world.turn();
    assert_eq!(world.outputs.first(), Some(&Output::Connected));
    let Some(Output::Say(FromAgent::Hello { name, epoch: 7, .. })) = world.outputs.get(1) else {
        panic!("{:?}", world.outputs);
    };
    assert_eq!(name, "rtpengine@10.0.1.9:22222");
    let leases = world.welcome();
    assert_eq!(leases.len(), STOCK as usize);
    let calls = &world.rtpengine.calls;
    for lease in &leases {
        let call = &calls[&format!("sipcast-{:016x}", lease.session)];
        assert_eq!(
            [lease.b.rtp, lease.a.rtp],
            call.ports,
            "B is in the offer's answer"
        );
        assert_eq!(lease.a.rtcp, lease.a.rtp + 1);
        assert!(
            !call.active,
            "a lease is inactive, so that silent-timeout is its limit"
        );
    }
}

#[test]
fn an_rtpengine_with_both_families_stocks_every_combination_of_them() {
    let mut world = World::new();
    world.rtpengine.ipv6 = true;
    world.turn();
    let leases = world.welcome();
    let count = |a: bool, b: bool| {
        let of = |lease: &&Lease| lease.a.addr.is_ipv4() == a && lease.b.addr.is_ipv4() == b;
        leases.iter().filter(of).count()
    };
    let counts = [
        count(true, true),
        count(true, false),
        count(false, true),
        count(false, false),
    ];
    assert_eq!(counts, [3, 1, 1, 1]);
}

#[test]
fn families_that_rtpengine_does_not_have_are_tried_once_and_left() {
    let mut world = World::up();
    let tried = world.counted("wrong_family");
    assert_eq!(tried, 3);
    world.pass(Duration::from_secs(60));
    assert_eq!(world.counted("wrong_family"), tried);
    assert!(world.leases().is_empty(), "the stock was full");
    assert_eq!(
        world.rtpengine.calls.len(),
        STOCK as usize,
        "none is left over"
    );
}

#[test]
fn a_bind_tells_rtpengine_the_parties_and_keeps_the_ports() {
    let mut world = World::new();
    let lease = world.lease();
    world.say(bind(1, lease.session, &[UA, "192.168.1.10"]));
    assert_eq!(world.outputs(), [say(FromAgent::Done { request: 1 })]);
    let call = world.call(lease.session);
    assert!(call.active);
    assert_eq!(call.told, [UA, "192.0.2.9"].map(ToOwned::to_owned));
    assert_eq!(call.flags, ["port-latching", "strict-source"]);
    assert_eq!([lease.b.rtp, lease.a.rtp], call.ports);
    let others = world.leases();
    assert_eq!(others.len(), 1, "the stock is filled again");
}

#[test]
fn an_update_keeps_the_address_that_is_still_expected() {
    let mut world = World::new();
    let lease = world.lease();
    world.say(bind(1, lease.session, &[UA]));
    for (expected, told) in [
        (vec!["192.168.1.10", UA], UA),
        (vec!["192.168.1.10"], "192.168.1.10"),
        (vec!["2001:db8::7", "198.51.100.7"], "198.51.100.7"),
        (vec![], "192.0.0.8"),
    ] {
        world.say(ToAgent::Update {
            request: 2,
            session: lease.session,
            side: Side::A,
            gate: gate(&expected),
        });
        assert_eq!(world.call(lease.session).told[0], told);
        assert_eq!(world.call(lease.session).told[1], "192.0.2.9");
    }
}

#[test]
fn requests_that_come_while_rtpengine_is_asked_end_with_one_answer() {
    let mut world = World::new();
    let lease = world.lease();
    world.rtpengine.silent = true;
    world.say(bind(1, lease.session, &[UA]));
    for request in 2..5 {
        world.say(ToAgent::Update {
            request,
            session: lease.session,
            side: Side::A,
            gate: gate(&["198.51.100.7"]),
        });
    }
    assert_eq!(world.outputs(), [], "no answer yet");
    world.rtpengine.silent = false;
    world.pass(Duration::from_secs(1));
    let done: Vec<u64> = world.dones();
    assert_eq!(done, [1, 2, 3, 4]);
    assert_eq!(
        world.call(lease.session).told[0],
        "198.51.100.7",
        "the newest"
    );
}

#[test]
fn a_release_becomes_a_delete_and_its_statistics() {
    let mut world = World::new();
    let lease = world.lease();
    world.say(bind(1, lease.session, &[UA]));
    world.outputs();
    world.pass(Duration::from_secs(5));
    let started = FromAgent::MediaStarted {
        session: lease.session,
        side: Side::A,
    };
    assert_eq!(world.outputs(), [say(started)], "only the caller has sent");
    world.say(ToAgent::Release {
        request: 2,
        session: lease.session,
    });
    let [
        Output::Say(FromAgent::Done { request: 2 }),
        Output::Say(FromAgent::Ended { session, stats }),
    ] = &world.outputs()[..]
    else {
        panic!("Done and Ended");
    };
    assert_eq!(*session, lease.session);
    assert_eq!(stats.a.rtp.packets_in, 250);
    assert_eq!(stats.a.rtp.bytes_in, 43_000);
    assert_eq!(stats.a.rtcp.packets_in, 2);
    assert_eq!(
        stats.a.latched_rtp,
        Some("203.0.113.2:4000".parse().expect("an address"))
    );
    assert_eq!(stats.b.rtp.packets_in, 0);
    assert_eq!(stats.b.latched_rtp, None);
    assert!(
        (5_000..6_000).contains(&stats.duration_ms),
        "{}",
        stats.duration_ms
    );
    assert!(!world.rtpengine.calls.contains_key(&call_id(lease.session)));
}

#[test]
fn a_lease_given_back_unused_has_no_end_to_report() {
    let mut world = World::new();
    let lease = world.lease();
    world.say(ToAgent::Release {
        request: 2,
        session: lease.session,
    });
    let ended = |output: &Output| matches!(output, Output::Say(FromAgent::Ended { .. }));
    assert!(!world.outputs().iter().any(ended));
    assert!(!world.rtpengine.calls.contains_key(&call_id(lease.session)));
}

#[test]
fn a_session_of_our_predecessor_is_deleted_by_its_number() {
    let mut world = World::up();
    world.rtpengine.calls.insert(call_id(0x77), Call::default());
    world.say(ToAgent::Release {
        request: 9,
        session: 0x77,
    });
    assert_eq!(world.outputs(), [say(FromAgent::Done { request: 9 })]);
    assert!(!world.rtpengine.calls.contains_key(&call_id(0x77)));
}

#[test]
fn leases_are_renewed_before_rtpengine_forgets_them() {
    let mut world = World::up();
    let before = world.rtpengine.offers;
    world.pass(RENEW + Duration::from_secs(1));
    assert_eq!(world.rtpengine.offers - before, STOCK as usize);
    assert_eq!(world.outputs(), [], "the pool has them already");
}

#[test]
fn a_call_that_rtpengine_has_ended_is_reported() {
    let mut world = World::new();
    let lease = world.lease();
    world.say(bind(1, lease.session, &[UA]));
    world.pass(Duration::from_secs(5));
    world.outputs();
    world.rtpengine.calls.remove(&call_id(lease.session));
    world.pass(CHECK + Duration::from_secs(1));
    let [Output::Say(FromAgent::Ended { session, stats })] = &world.outputs()[..] else {
        panic!("Ended and nothing else");
    };
    assert_eq!(*session, lease.session);
    assert_eq!(stats.a.rtp.packets_in, 250, "as of the last look");
}

#[test]
fn after_three_heartbeats_without_an_answer_the_link_is_closed() {
    let mut world = World::up();
    world.rtpengine.silent = true;
    let start = world.now;
    while !world.outputs.iter().any(is_closed) {
        world.pass(Duration::from_millis(50));
        assert!(world.now < start + Duration::from_secs(10), "never closed");
    }
    let took = world.now - start;
    assert!(took <= Duration::from_millis(2600), "{took:?}");
    assert!(world.counted("unanswered_ping") >= 3);
    world.outputs();
    world.say(ToAgent::Heartbeat { seq: 1 });
    assert_eq!(world.outputs(), [], "nothing is said on a closed link");
    world.rtpengine.silent = false;
    world.pass(Duration::from_secs(1));
    assert_eq!(world.outputs().first(), Some(&Output::Connected));
    let leases = world.welcome();
    assert_eq!(leases.len(), STOCK as usize);
    let calls = world.rtpengine.calls.len();
    assert_eq!(calls, STOCK as usize, "the leases from before are deleted");
}

#[test]
fn where_nobody_listens_the_link_is_closed_at_once() {
    let mut world = World::up();
    for _ in 0..3 {
        world.client.handle_unreachable(world.now);
    }
    world.collect();
    assert!(world.outputs.iter().any(is_closed));
}

#[test]
fn an_rtpengine_that_has_restarted_voids_the_leases_within_two_heartbeats() {
    let mut world = World::new();
    let lease = world.lease();
    world.say(bind(1, lease.session, &[UA]));
    world.outputs();
    world.rtpengine.calls.clear();
    world.pass(Duration::from_millis(1100));
    let outputs = world.outputs();
    assert!(is_closed(&outputs[0]), "{outputs:?}");
    assert_eq!(outputs[1], Output::Connected);
    let is_end = |output: &Output| matches!(output, Output::Say(FromAgent::Ended { session, .. }) if *session == lease.session);
    assert!(
        outputs.iter().any(is_end),
        "the call's session is gone, too"
    );
    let new = world.welcome();
    assert!(
        new.iter()
            .all(|lease| lease.session > FIRST + u64::from(STOCK))
    );
}

#[test]
fn a_bind_of_a_session_that_rtpengine_has_forgotten_fails_and_leaves_nothing() {
    let mut world = World::new();
    let lease = world.lease();
    world.rtpengine.calls.remove(&call_id(lease.session));
    world.say(bind(1, lease.session, &[UA]));
    let [
        Output::Say(FromAgent::Failed {
            request: 1, code, ..
        }),
        ..,
    ] = &world.outputs()[..]
    else {
        panic!("Failed");
    };
    assert_eq!(*code, ErrorCode::UnknownSession);
    assert_eq!(world.counted("other_ports"), 1);
    assert!(!world.rtpengine.calls.contains_key(&call_id(lease.session)));
}

#[test]
fn a_full_rtpengine_is_asked_again_later_and_not_at_once() {
    let mut world = World::new();
    world.rtpengine.refusal = Some("Ran out of ports");
    world.turn();
    assert!(world.welcome().is_empty());
    let asked = world.rtpengine.offers;
    world.pass(Duration::from_millis(400));
    assert_eq!(world.rtpengine.offers, asked);
    world.pass(Duration::from_secs(1));
    assert!(world.rtpengine.offers > asked);
    assert!(world.counted("full") > 0);
    world.rtpengine.refusal = None;
    world.pass(Duration::from_secs(2));
    assert_eq!(world.leases().len(), STOCK as usize);
}

#[test]
fn requests_without_an_answer_are_repeated_with_their_cookie_and_given_up() {
    let mut world = World::new();
    let lease = world.lease();
    world.rtpengine.deaf_to = Some("offer");
    world.rtpengine.seen.clear();
    world.say(bind(1, lease.session, &[UA]));
    world.pass(Duration::from_millis(2900));
    let offer = |bytes: &&Vec<u8>| {
        let id = call_id(lease.session);
        bytes
            .windows(id.len())
            .any(|window| window == id.as_bytes())
    };
    let offers: Vec<&Vec<u8>> = world.rtpengine.seen.iter().filter(offer).collect();
    assert_eq!(offers.len(), 4, "at 0, 0.3, 0.9 and 2.1 s");
    assert!(
        offers.windows(2).all(|pair| pair[0] == pair[1]),
        "the same bytes"
    );
    world.pass(Duration::from_millis(200));
    assert!(world.counted("unanswered_offer_or_answer") >= 1);
    world.rtpengine.deaf_to = None;
    world.pass(Duration::from_secs(3));
    assert!(world.call(lease.session).active, "it is told all the same");
}

#[test]
fn hostile_answers_are_counted_by_name_and_the_good_one_still_counts() {
    let mut world = World::new();
    let lease = world.lease();
    world.rtpengine.silent = true;
    world.rtpengine.seen.clear();
    world.say(bind(1, lease.session, &[UA]));
    let request = world.rtpengine.seen.last().expect("an offer").clone();
    let space = request
        .iter()
        .position(|octet| *octet == b' ')
        .expect("a cookie");
    let cookie = String::from_utf8_lossy(&request[..space]).into_owned();
    let huge = format!("{cookie} d3:sdp65000:{}", "x".repeat(64_000));
    let deep = format!("{cookie} {}", "l".repeat(60_000));
    let (prefix, number) = cookie.split_once('_').expect("a number");
    let number: u64 = number.parse().expect("a number");
    for (datagram, counter) in [
        (String::new(), "strange_cookie"),
        (
            "no cookie of ours d6:result2:oke".to_owned(),
            "strange_cookie",
        ),
        (format!("x{cookie} d6:result2:oke"), "strange_cookie"),
        (cookie.clone(), "strange_cookie"),
        (format!("{cookie}d6:result2:oke"), "strange_cookie"),
        (
            format!("{prefix}_+{number} d6:result2:oke"),
            "strange_cookie",
        ),
        (
            format!("{prefix}_{} d6:result2:oke", number + 1),
            "strange_cookie",
        ),
        (
            format!("{prefix}_{} d6:result2:oke", u64::MAX),
            "strange_cookie",
        ),
        (format!("{prefix}_1 d6:result4:ponge"), "late_answer"),
        (format!("{cookie} "), "malformed_answer"),
        (format!("{cookie} d6:result2:ok"), "malformed_answer"),
        (format!("{cookie} d6:result2:okee"), "malformed_answer"),
        (format!("{cookie} l6:result2:oke"), "malformed_answer"),
        (
            format!("{cookie} {{\"result\":\"ok\"}}"),
            "malformed_answer",
        ),
        (huge, "malformed_answer"),
        (deep, "malformed_answer"),
    ] {
        let before = world.counted(counter);
        world.client.handle_datagram(datagram.as_bytes(), world.now);
        let start: String = datagram.chars().take(40).collect();
        assert_eq!(world.counted(counter), before + 1, "{start}");
    }
    world.collect();
    assert_eq!(world.outputs, []);
    world.rtpengine.silent = false;
    world.pass(Duration::from_millis(400));
    assert_eq!(world.dones(), [1]);
    // The same answer once more is late.
    let late = world.counted("late_answer");
    let again = world.rtpengine.answer(&request).expect("an answer");
    world.client.handle_datagram(&again, world.now);
    assert_eq!(world.counted("late_answer"), late + 1);
}

#[test]
fn an_answer_without_usable_ports_makes_no_lease() {
    for (sdp, counter) in [
        (None, "bad_sdp"),
        (Some("garbage"), "bad_sdp"),
        (
            Some("v=0\r\no=- 1 1 IN IP4 10.0.1.9\r\ns=-\r\nt=0 0\r\n"),
            "bad_sdp",
        ),
        (
            Some(
                "v=0\r\no=- 1 1 IN IP4 1.1.1.1\r\ns=-\r\nc=IN IP4 10.0.1.9\r\nt=0 0\r\nm=audio 0 RTP/AVP 0\r\n",
            ),
            "bad_sdp",
        ),
        (
            Some(
                "v=0\r\no=- 1 1 IN IP4 1.1.1.1\r\ns=-\r\nc=IN IP4 10.0.1.9\r\nt=0 0\r\nm=audio 65535 RTP/AVP 0\r\n",
            ),
            "bad_sdp",
        ),
        (
            Some(
                "v=0\r\no=- 1 1 IN IP4 1.1.1.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 4000 RTP/AVP 0\r\n",
            ),
            "bad_address",
        ),
        (
            Some(
                "v=0\r\no=- 1 1 IN IP4 1.1.1.1\r\ns=-\r\nc=IN IP4 224.0.0.1\r\nt=0 0\r\nm=audio 4000 RTP/AVP 0\r\n",
            ),
            "bad_address",
        ),
        (
            Some(
                "v=0\r\no=- 1 1 IN IP4 1.1.1.1\r\ns=-\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\nm=audio 4000 RTP/AVP 0\r\n",
            ),
            "bad_address",
        ),
    ] {
        let mut world = World::new();
        world.rtpengine.forged_sdp = Some(sdp);
        world.turn();
        assert!(world.welcome().is_empty(), "{sdp:?}");
        assert!(world.counted(counter) > 0, "{sdp:?}: {counter}");
        assert!(
            world.rtpengine.calls.is_empty(),
            "{sdp:?}: nothing is left at rtpengine"
        );
    }
}

proptest! {
    /// Whatever rtpengine says and does, nothing panics and nothing grows without bound.
    #[test]
    fn no_datagram_and_no_order_of_events_breaks_it(
        events in proptest::collection::vec((0_u8..9, any::<u16>(), proptest::collection::vec(any::<u8>(), 0..60)), 0..80)
    ) {
        let mut world = World::up();
        for (kind, at, bytes) in events {
            let session = FIRST + u64::from(at % 16);
            match kind {
                0 => world.client.handle_datagram(&bytes, world.now),
                1 => {
                    let seen = world.rtpengine.seen.len();
                    if let Some(request) = world.rtpengine.seen.get(usize::from(at) % seen.max(1)) {
                        let space = request.iter().position(|octet| *octet == b' ').unwrap_or(0);
                        let forged = [&request[..=space], &bytes].concat();
                        world.client.handle_datagram(&forged, world.now);
                    }
                }
                2 => world.say(bind(u64::from(at), session, &[UA])),
                3 => world.say(ToAgent::Release { request: u64::from(at), session }),
                4 => world.rtpengine.silent = !world.rtpengine.silent,
                5 => world.rtpengine.calls.clear(),
                6 => world.pass(Duration::from_millis(u64::from(at % 8000))),
                7 => world.client.handle_unreachable(world.now),
                _ => world.say(welcome(u32::from(at % 20))),
            }
            world.collect();
        }
        world.rtpengine.silent = false;
        world.pass(Duration::from_secs(10));
        world.outputs();
        world.say(welcome(STOCK));
        world.pass(Duration::from_secs(5));
        let calls = world.rtpengine.calls.len();
        prop_assert!(calls < 120, "{} calls at rtpengine", calls);
    }
}

/// What rtpengine remembers of a call.
#[derive(Debug, Default, Clone)]
struct Call {
    /// As in the answers to offer and answer: what faces B, what faces A.
    ports: [u16; 2],
    told: [String; 2],
    flags: Vec<String>,
    active: bool,
}

/// As much of rtpengine 10.5 as we use; without IPv6 it answers with IPv4 whatever it was asked for.
#[derive(Debug, Default)]
struct Rtpengine {
    calls: HashMap<String, Call>,
    next_port: u16,
    ipv6: bool,
    silent: bool,
    deaf_to: Option<&'static str>,
    refusal: Option<&'static str>,
    forged_sdp: Option<Option<&'static str>>,
    offers: usize,
    seen: Vec<Vec<u8>>,
}

impl Rtpengine {
    fn answer(&mut self, datagram: &[u8]) -> Option<Vec<u8>> {
        let space = datagram.iter().position(|octet| *octet == b' ')?;
        let (cookie, body) = datagram.split_at(space + 1);
        let request = Value::parse(body).ok()?.dictionary()?;
        let command = request.text("command")?;
        if self.silent || self.deaf_to == Some(command) {
            return None;
        }
        let mut answer = cookie.to_vec();
        match command {
            "ping" => result(&mut answer, "pong", None),
            "offer" | "answer" => self.describe(&mut answer, command == "offer", request),
            "query" | "delete" => self.look(&mut answer, command == "delete", request),
            other => panic!("rtpengine does not know {other}"),
        }
        Some(answer)
    }

    fn describe(&mut self, answer: &mut Vec<u8>, offer: bool, request: Dictionary<'_>) {
        self.offers += usize::from(offer);
        let id = request.text("call-id").expect("a call-id").to_owned();
        if let Some(refusal) = self.refusal {
            return result(answer, "error", Some(refusal));
        }
        if !offer && !self.calls.contains_key(&id) {
            return result(answer, "error", Some("Unknown call-id"));
        }
        let next_port = &mut self.next_port;
        let call = self.calls.entry(id).or_insert_with(|| {
            *next_port += 4;
            Call {
                ports: [30_000 + *next_port, 30_002 + *next_port],
                ..Call::default()
            }
        });
        let sdp = request.text("sdp").expect("an SDP");
        let line = |start: &str| sdp.lines().find_map(|line| line.strip_prefix(start));
        let address = line("c=IN ")
            .and_then(|c| c.split(' ').nth(1))
            .expect("an address");
        call.told[usize::from(!offer)] = address.to_owned();
        call.active = sdp.contains("a=sendrecv");
        let flags = request.list("flags").expect("flags").iter();
        call.flags = flags
            .filter_map(|flag| Some(String::from_utf8_lossy(flag.bytes()?).into_owned()))
            .collect();
        let v6 = self.ipv6 && request.text("address family") == Some("IP6");
        let (family, own) = if v6 {
            ("IP6", "2001:db8::9")
        } else {
            ("IP4", "10.0.1.9")
        };
        let port = call.ports[usize::from(!offer)];
        let good = format!(
            "v=0\r\no=- 1 1 IN {family} {own}\r\ns=-\r\nc=IN {family} {own}\r\nt=0 0\r\n\
             m=audio {port} RTP/AVP 0\r\na=rtcp:{}\r\n",
            port + 1
        );
        bencode::write_dictionary(answer, |answer| {
            match self.forged_sdp {
                None => {
                    answer.bytes("sdp", good);
                }
                Some(forged) => {
                    if let Some(forged) = forged {
                        answer.bytes("sdp", forged);
                    }
                }
            }
            answer.bytes("result", "ok");
        });
    }

    fn look(&mut self, answer: &mut Vec<u8>, delete: bool, request: Dictionary<'_>) {
        let id = request.text("call-id").expect("a call-id");
        let call = if delete {
            self.calls.remove(id)
        } else {
            self.calls.get(id).cloned()
        };
        let Some(call) = call else {
            return if delete {
                result(answer, "ok", None)
            } else {
                result(answer, "error", Some("Unknown call-id"))
            };
        };
        bencode::write_dictionary(answer, |answer| {
            answer.integer("created", 1).dictionary("tags", |tags| {
                side(tags, "callee", &call.told[1], None);
                side(tags, "caller", &call.told[0], call.active.then_some(250));
            });
            answer.bytes("result", "ok");
        });
    }
}

/// One tag of the statistics, as rtpengine 10.5 writes it.
fn side(tags: &mut bencode::DictionaryWriter<'_>, tag: &str, told: &str, packets: Option<i64>) {
    let stream = |list: &mut bencode::ListWriter<'_>, flag: &str, packets: i64, port: i64| {
        list.dictionary(|stream| {
            stream.dictionary("endpoint", |endpoint| {
                let port = if packets > 0 { port } else { 9 };
                endpoint
                    .bytes("family", "IPv4")
                    .bytes("address", told)
                    .integer("port", port);
            });
            stream.dictionary("advertised endpoint", |endpoint| {
                endpoint
                    .bytes("family", "IPv4")
                    .bytes("address", told)
                    .integer("port", 9);
            });
            stream.list("flags", |flags| {
                flags.bytes(flag).bytes("filled");
            });
            stream.dictionary("stats", |stats| {
                stats
                    .integer("packets", packets)
                    .integer("bytes", packets * 172)
                    .integer("errors", 0);
            });
        });
    };
    tags.dictionary(tag, |of| {
        of.bytes("tag", tag).list("medias", |medias| {
            medias.dictionary(|media| {
                media.integer("index", 1).list("streams", |streams| {
                    stream(streams, "RTP", packets.unwrap_or(0), 4000);
                    stream(streams, "RTCP", packets.map_or(0, |_| 2), 4001);
                });
            });
        });
    });
}

fn result(answer: &mut Vec<u8>, result: &str, reason: Option<&str>) {
    bencode::write_dictionary(answer, |answer| {
        answer.bytes("result", result);
        if let Some(reason) = reason {
            answer.bytes("error-reason", reason);
        }
    });
}

/// A client, its rtpengine and a clock.
struct World {
    client: Client,
    rtpengine: Rtpengine,
    outputs: Vec<Output>,
    now: Instant,
}

impl World {
    #[expect(clippy::disallowed_methods, reason = "any start will do")]
    fn new() -> Self {
        let now = Instant::now();
        let identity = Identity {
            name: "rtpengine@10.0.1.9:22222".to_owned(),
            interface: None,
            epoch: 7,
            first_session: FIRST,
        };
        Self {
            client: Client::new(identity, now),
            rtpengine: Rtpengine::default(),
            outputs: Vec::new(),
            now,
        }
    }

    /// Linked, with a full stock.
    fn up() -> Self {
        let mut world = Self::new();
        world.turn();
        world.welcome();
        world
    }

    /// A lease out of a full stock, of IPv4.
    fn lease(&mut self) -> Lease {
        self.turn();
        *self.welcome().first().expect("a lease")
    }

    fn welcome(&mut self) -> Vec<Lease> {
        self.outputs.clear();
        self.say(welcome(STOCK));
        self.leases()
    }

    fn say(&mut self, message: ToAgent) {
        self.client.handle_message(message, self.now);
        self.turn();
    }

    fn turn(&mut self) {
        self.client.handle_timeout(self.now);
        self.collect();
    }

    /// Lets client and rtpengine talk until both have said all.
    fn collect(&mut self) {
        while let Some(datagram) = self.client.poll_transmit() {
            self.rtpengine.seen.push(datagram.clone());
            if let Some(answer) = self.rtpengine.answer(&datagram) {
                self.client.handle_datagram(&answer, self.now);
            }
        }
        while let Some(output) = self.client.poll_output() {
            self.outputs.push(output);
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.client.poll_timeout() <= end {
            self.now = self.now.max(self.client.poll_timeout());
            self.turn();
        }
        self.now = end;
    }

    fn outputs(&mut self) -> Vec<Output> {
        let leases = |output: &Output| matches!(output, Output::Say(FromAgent::Leases { .. }));
        let (kept, rest) = std::mem::take(&mut self.outputs)
            .into_iter()
            .partition(leases);
        self.outputs = kept;
        rest
    }

    fn leases(&mut self) -> Vec<Lease> {
        let outputs = std::mem::take(&mut self.outputs);
        let mut leases = Vec::new();
        for output in outputs {
            if let Output::Say(FromAgent::Leases { leases: more }) = output {
                leases.extend(more);
            } else {
                self.outputs.push(output);
            }
        }
        leases
    }

    fn dones(&mut self) -> Vec<u64> {
        let outputs = self.outputs();
        let done = outputs.into_iter().filter_map(|output| {
            let Output::Say(FromAgent::Done { request }) = output else {
                return None;
            };
            Some(request)
        });
        done.collect()
    }

    fn call(&self, session: u64) -> &Call {
        &self.rtpengine.calls[&call_id(session)]
    }

    fn counted(&self, name: &str) -> u64 {
        let mut counted = self.client.counted();
        counted.find(|(event, _)| *event == name).expect(name).1
    }
}

fn welcome(stock: u32) -> ToAgent {
    ToAgent::Welcome {
        version: 1,
        name: "c1".to_owned(),
        stock,
        heartbeat_ms: 500,
    }
}

fn bind(request: u64, session: u64, caller: &[&str]) -> ToAgent {
    ToAgent::Bind {
        request,
        session,
        a: gate(caller),
        b: gate(&["192.0.2.9"]),
        call: "call-1".to_owned(),
    }
}

fn gate(expected: &[&str]) -> Gate {
    let parse = |address: &&str| address.parse::<IpAddr>().expect("an address");
    Gate {
        expected: expected.iter().map(parse).collect(),
        mode: GateMode::Exact,
        ..Gate::default()
    }
}

fn say(message: FromAgent) -> Output {
    Output::Say(message)
}

fn is_closed(output: &Output) -> bool {
    matches!(output, Output::Closed(_))
}

fn call_id(session: u64) -> String {
    super::message::call_id(session)
}

#[test]
fn no_certificate_can_have_the_name_of_an_rtpengine() {
    let target = super::Target {
        address: SocketAddr::from(([10, 0, 1, 9], 22222)),
        interface: Some("pub".to_owned()),
    };
    assert_eq!(target.to_string(), "rtpengine@10.0.1.9:22222/pub");
    assert_eq!(super::kind_of(&target.to_string()), "rtpengine");
    assert_eq!(super::kind_of("relay1"), "rtp-agent");
}
