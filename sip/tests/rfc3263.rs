//! RFC 3263 section 4: from a URI to targets, fed with the answers of a DNS.

#![expect(clippy::expect_used, reason = "a test may panic")]

use std::net::IpAddr;

use sip::hop::Transport;
use sip::message::Uri;
use sip::resolve::{Answer, Kind, Lookup, Means, Naptr, Srv, weighted_order};

fn lookup(uri: &str, v6: bool) -> Lookup {
    let means = Means {
        transports: vec![Transport::Udp, Transport::Tcp, Transport::Tls],
        v4: true,
        v6,
    };
    Lookup::new(&Uri::parse(uri.as_bytes()).expect("a URI"), means, 7, 256)
}

fn targets(lookup: &Lookup) -> Vec<String> {
    assert!(lookup.is_done());
    let hops = lookup.targets().iter();
    hops.map(|hop| format!("{} {}", hop.transport.via_name(), hop.address))
        .collect()
}

/// Answers every question from a zone; gives the questions.
fn run(lookup: &mut Lookup, zone: &[(&str, Answer)]) -> Vec<String> {
    let mut asked = Vec::new();
    while let Some((id, query)) = lookup.poll_query() {
        let kind = match query.kind {
            Kind::Naptr => "NAPTR",
            Kind::Srv => "SRV",
            Kind::A => "A",
            Kind::Aaaa => "AAAA",
        };
        let question = format!("{kind} {}", query.name);
        let answer = zone.iter().find(|(name, _)| *name == question);
        lookup.handle_answer(
            id,
            answer.map_or(Answer::Nothing, |(_, answer)| answer.clone()),
        );
        asked.push(question);
    }
    asked
}

fn naptr(order: u16, preference: u16, service: &str, replacement: &str) -> Naptr {
    Naptr {
        order,
        preference,
        flags: "s".into(),
        service: service.into(),
        replacement: replacement.into(),
    }
}

fn srv(priority: u16, weight: u16, port: u16, target: &str) -> Srv {
    Srv {
        priority,
        weight,
        port,
        target: target.into(),
    }
}

fn a(address: &str) -> Answer {
    Answer::Addresses(vec![address.parse::<IpAddr>().expect("an address")])
}

/// 4.1: "if the TARGET is a numeric IP address, the client SHOULD use UDP for a SIP URI, and TCP
/// for a SIPS URI" (TLS over it).
#[test]
fn a_numeric_target_needs_no_question() {
    for (uri, target) in [
        ("sip:192.0.2.9", "UDP 192.0.2.9:5060"),
        ("sip:192.0.2.9:5070", "UDP 192.0.2.9:5070"),
        ("sip:192.0.2.9;transport=tcp", "TCP 192.0.2.9:5060"),
        ("sips:192.0.2.9", "TLS 192.0.2.9:5061"),
        ("sips:192.0.2.9;transport=tcp", "TLS 192.0.2.9:5061"),
        ("sip:example.com;maddr=192.0.2.7", "UDP 192.0.2.7:5060"),
    ] {
        let mut lookup = lookup(uri, false);
        assert_eq!(run(&mut lookup, &[]), [""; 0], "{uri}");
        assert_eq!(targets(&lookup), [target], "{uri}");
    }
}

#[test]
fn what_we_cannot_send_by_is_no_target() {
    for uri in [
        "sip:[2001:db8::1]",
        "sip:192.0.2.9;transport=sctp",
        "sip:192.0.2.9;transport=ws",
        "sips:192.0.2.9;transport=udp",
    ] {
        assert_eq!(targets(&lookup(uri, false)), [""; 0], "{uri}");
    }
}

/// 4.2: "If the TARGET was not a numeric IP address, but a port is present in the URI, the client
/// performs an A or AAAA record lookup of the domain name."
#[test]
fn a_name_with_a_port_is_an_address_lookup() {
    let mut lookup = lookup("sip:Server.Example.com:5080", true);
    let asked = run(
        &mut lookup,
        &[
            ("A server.example.com", a("192.0.2.4")),
            ("AAAA server.example.com", a("2001:db8::4")),
        ],
    );
    assert_eq!(asked, ["A server.example.com", "AAAA server.example.com"]);
    assert_eq!(
        targets(&lookup),
        ["UDP 192.0.2.4:5080", "UDP [2001:db8::4]:5080"]
    );
}

/// 4.1: "First, a NAPTR query for the domain in the URI"; the records in the order of their order
/// and preference, those of services that we do not have discarded.
#[test]
fn naptr_chooses_the_transport_and_srv_the_servers() {
    let mut lookup = lookup("sip:bob@example.com", false);
    let asked = run(
        &mut lookup,
        &[
            (
                "NAPTR example.com",
                Answer::Naptr(vec![
                    naptr(90, 50, "SIP+D2U", "_sip._udp.example.com."),
                    naptr(50, 60, "SIP+D2T", "_sip._tcp.other.example.com."),
                    naptr(50, 50, "SIP+D2S", "_sip._sctp.example.com."),
                    naptr(10, 50, "E2U+sip", "example.com."),
                ]),
            ),
            (
                "SRV _sip._tcp.other.example.com",
                Answer::Srv(vec![
                    srv(20, 1, 5060, "b.example.com."),
                    srv(10, 1, 5062, "a.example.com."),
                ]),
            ),
            ("A a.example.com", a("192.0.2.1")),
            ("A b.example.com", a("192.0.2.2")),
        ],
    );
    assert_eq!(
        asked,
        [
            "NAPTR example.com",
            "SRV _sip._tcp.other.example.com",
            "SRV _sip._udp.example.com",
            "A a.example.com",
            "A b.example.com"
        ]
    );
    assert_eq!(
        targets(&lookup),
        ["TCP 192.0.2.1:5062", "TCP 192.0.2.2:5060"]
    );
}

/// 4.1: "If no NAPTR records are found, the client constructs SRV queries for those transport
/// protocols it supports, and does a query for each."
#[test]
fn without_naptr_each_transport_is_asked_for() {
    let mut lookup = lookup("sip:example.com", false);
    let asked = run(&mut lookup, &[("A example.com", a("192.0.2.1"))]);
    assert_eq!(
        asked,
        [
            "NAPTR example.com",
            "SRV _sip._udp.example.com",
            "SRV _sip._tcp.example.com",
            "SRV _sips._tcp.example.com",
            "A example.com"
        ]
    );
    // "If no SRV records were found, the client SHOULD use … UDP for a SIP URI."
    assert_eq!(targets(&lookup), ["UDP 192.0.2.1:5060"]);
}

/// "for a SIPS URI … the client discards any records that do not contain SIPS".
#[test]
fn a_sips_uri_is_never_sent_in_the_clear() {
    let mut lookup = lookup("sips:example.com", false);
    let zone = [
        (
            "NAPTR example.com",
            Answer::Naptr(vec![naptr(1, 1, "SIP+D2U", "_sip._udp.example.com")]),
        ),
        ("A example.com", a("192.0.2.1")),
    ];
    let asked = run(&mut lookup, &zone);
    assert_eq!(
        asked,
        [
            "NAPTR example.com",
            "SRV _sips._tcp.example.com",
            "A example.com"
        ]
    );
    assert_eq!(targets(&lookup), ["TLS 192.0.2.1:5061"]);
}

/// 4.1: "If a transport is specified, that transport protocol is used"; without a port its SRV
/// records are asked for (4.2).
#[test]
fn a_stated_transport_asks_for_its_srv_only() {
    let mut lookup = lookup("sip:example.com;transport=tcp", false);
    let asked = run(&mut lookup, &[("A example.com", a("192.0.2.1"))]);
    assert_eq!(asked, ["SRV _sip._tcp.example.com", "A example.com"]);
    assert_eq!(targets(&lookup), ["TCP 192.0.2.1:5060"]);
}

/// RFC 2782: "A Target of "." means that the service is decidedly not available at this domain."
#[test]
fn a_service_that_is_not_offered_is_not_called() {
    let mut lookup = lookup("sip:example.com;transport=udp", false);
    let zone = [
        (
            "SRV _sip._udp.example.com",
            Answer::Srv(vec![srv(0, 0, 0, ".")]),
        ),
        ("A example.com", a("192.0.2.1")),
    ];
    run(&mut lookup, &zone);
    assert_eq!(targets(&lookup), [""; 0]);
}

#[test]
fn a_failing_server_is_as_good_as_no_record_and_a_wait_ends_with_what_there_is() {
    let mut first = lookup("sip:example.com;transport=udp", false);
    let zone = [
        ("SRV _sip._udp.example.com", Answer::Failed),
        ("A example.com", a("192.0.2.1")),
    ];
    run(&mut first, &zone);
    assert_eq!(targets(&first), ["UDP 192.0.2.1:5060"]);

    let mut second = lookup("sip:example.com:5060", true);
    let (id, _) = second.poll_query().expect("the A question");
    second.handle_answer(id, a("192.0.2.1"));
    assert!(!second.is_done());
    second.give_up();
    assert_eq!(targets(&second), ["UDP 192.0.2.1:5060"]);

    let mut third = lookup("sip:example.com", true);
    third.give_up();
    assert_eq!(targets(&third), [""; 0]);
}

/// An answer that lists ten thousand servers costs no more than one that lists a few.
#[test]
fn a_zone_of_any_size_is_bounded() {
    let mut lookup = lookup("sip:example.com;transport=udp", true);
    let many = (0..10_000).map(|n| srv(0, 1, 5060, &format!("s{n}.example.com")));
    let (id, _) = lookup.poll_query().expect("the SRV question");
    lookup.handle_answer(id, Answer::Srv(many.collect()));
    let mut questions = 0;
    while let Some((id, _)) = lookup.poll_query() {
        questions += 1;
        let addresses = (0..100)
            .map(|n| IpAddr::from([10, 0, questions, n]))
            .collect();
        lookup.handle_answer(id, Answer::Addresses(addresses));
    }
    assert_eq!(questions, 20);
    assert_eq!(lookup.targets().len(), 16);
}

/// RFC 2782: "Larger weights SHOULD be given a proportionately higher probability of being
/// selected."
#[test]
fn weights_are_shares_and_priorities_come_first() {
    let items = [(1, 3), (0, 1), (0, 3), (0, 0)];
    let mut first = [0; 4];
    for random in 0..8000 {
        let order = weighted_order(&items, random);
        assert_eq!(order.len(), 4);
        assert_eq!(order[3], 0, "the higher priority number is last");
        first[order[0]] += 1;
    }
    // The item of weight 0 gets one of the five numbers 0 to 4.
    assert!((4300..5300).contains(&first[2]), "{first:?}");
    assert!((1200..2000).contains(&first[1]), "{first:?}");
    let mut even = [0; 2];
    for random in 0..8000 {
        even[weighted_order(&[(0, 1), (0, 1)], random)[0]] += 1;
    }
    assert!((3700..4300).contains(&even[0]), "{even:?}");
}
