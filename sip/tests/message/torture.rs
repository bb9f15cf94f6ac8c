//! RFC 4475 and RFC 5118: for each message whether it is taken, refused or dropped.
//!
//! `rfc5118` has the Content-Lengths of the RFC, three of which are wrong; `rfc5118-fixed-cl` has
//! those three corrected; `derived` closes the head of RFC 4475's `baddn`.

use bytes::Bytes;
use sip::message::{HeaderName, Host, Message, Method, ParseError, Uri};

use super::{corpus, parse, read_all, refusal};

enum Verdict {
    Taken,
    Refused(u16, &'static str),
    Dropped(ParseError),
}
use Verdict::{Dropped, Refused, Taken};

const TABLE: [(&str, Verdict); 66] = [
    ("rfc4475/wsinv", Taken),
    ("rfc4475/intmeth", Taken),
    ("rfc4475/esc01", Taken),
    ("rfc4475/escnull", Taken),
    ("rfc4475/esc02", Taken),
    ("rfc4475/lwsdisp", Taken),
    ("rfc4475/longreq", Taken),
    ("rfc4475/dblreq", Taken),
    ("rfc4475/semiuri", Taken),
    ("rfc4475/transports", Taken),
    ("rfc4475/mpart01", Taken),
    ("rfc4475/unreason", Taken),
    ("rfc4475/noreason", Taken),
    ("rfc4475/badinv01", Refused(400, "Bad Via")),
    ("rfc4475/clerr", Refused(400, "Content-Length Exceeds Body")),
    ("rfc4475/ncl", Refused(400, "Bad Content-Length")),
    ("rfc4475/scalar02", Refused(400, "Bad CSeq")),
    ("rfc4475/scalarlg", Refused(400, "Bad CSeq")),
    ("rfc4475/quotbal", Refused(400, "Bad To")),
    ("rfc4475/ltgtruri", Refused(400, "Bad Request-URI")),
    (
        "rfc4475/lwsruri",
        Refused(400, "Bad Spacing In Request Line"),
    ),
    (
        "rfc4475/lwsstart",
        Refused(400, "Bad Spacing In Request Line"),
    ),
    ("rfc4475/trws", Refused(400, "Bad Spacing In Request Line")),
    (
        "rfc4475/escruri",
        Refused(400, "Header Fields In Request-URI"),
    ),
    // Date is not a proxy's business.
    ("rfc4475/baddate", Taken),
    ("rfc4475/regbadct", Refused(400, "Bad Contact")),
    ("rfc4475/badaspec", Refused(400, "Bad To")),
    ("rfc4475/baddn", Refused(400, "Header Section Not Ended")),
    ("derived/baddn-terminated", Refused(400, "Bad From")),
    ("rfc4475/badvers", Refused(505, "Version Not Supported")),
    ("rfc4475/mismatch01", Refused(400, "CSeq Method Mismatch")),
    ("rfc4475/mismatch02", Refused(501, "Not Implemented")),
    ("rfc4475/bigcode", Dropped(ParseError::StatusCode)),
    ("rfc4475/badbranch", Refused(400, "Empty Via Branch")),
    ("rfc4475/insuf", Refused(400, "Missing From")),
    // Unknown schemes are 416, and the proxy's business.
    ("rfc4475/unkscm", Taken),
    ("rfc4475/novelsc", Taken),
    ("rfc4475/unksm2", Taken),
    ("rfc4475/bext01", Taken),
    ("rfc4475/invut", Taken),
    ("rfc4475/regaut01", Taken),
    ("rfc4475/multi01", Refused(400, "Several From")),
    ("rfc4475/mcl01", Refused(400, "Several Content-Length")),
    ("rfc4475/bcast", Taken),
    ("rfc4475/zeromf", Taken),
    ("rfc4475/cparam01", Taken),
    ("rfc4475/cparam02", Taken),
    ("rfc4475/regescrt", Taken),
    ("rfc4475/sdp01", Taken),
    ("rfc4475/inv2543", Taken),
    // A request line without a version.
    ("rfc4475/test", Dropped(ParseError::StartLine)),
    ("rfc5118/ipv6-good", Taken),
    ("rfc5118/ipv6-bad", Refused(400, "Bad Request-URI")),
    ("rfc5118/port-ambiguous", Taken),
    ("rfc5118/port-unambiguous", Taken),
    ("rfc5118/via-received-param-with-delim", Taken),
    ("rfc5118/via-received-param-no-delim", Taken),
    (
        "rfc5118/ipv6-in-sdp",
        Refused(400, "Content-Length Exceeds Body"),
    ),
    ("rfc5118/mult-ip-in-header", Taken),
    ("rfc5118/mult-ip-in-sdp", Taken),
    ("rfc5118/ipv4-mapped-ipv6", Taken),
    ("rfc5118/ipv6-bug-abnf-3-colons", Taken),
    ("rfc5118/ipv6-correct-abnf-2-colons", Taken),
    ("rfc5118-fixed-cl/ipv6-in-sdp", Taken),
    ("rfc5118-fixed-cl/mult-ip-in-sdp", Taken),
    ("rfc5118-fixed-cl/ipv4-mapped-ipv6", Taken),
];

#[test]
fn every_torture_message_gets_its_verdict() {
    let mut wrong = Vec::new();
    for (name, expected) in &TABLE {
        let Some(bytes) = corpus::read(name) else {
            return;
        };
        let got = Message::parse(bytes);
        let as_expected = match (&got, expected) {
            (Ok(message), Taken) => message.check().is_ok(),
            (Ok(message), Refused(status, reason)) => refusal(message) == Some((*status, *reason)),
            (Err(error), Dropped(expected)) => error == expected,
            (Ok(_), Dropped(_)) | (Err(_), Taken | Refused(..)) => false,
        };
        if !as_expected {
            wrong.push(format!("{name}: {:?}", got.map(|message| message.check())));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_table_names_every_message_of_the_index() {
    let Some(indexed) = corpus::indexed() else {
        return;
    };
    for name in indexed {
        assert!(TABLE.iter().any(|(known, _)| *known == name), "{name}");
    }
}

#[test]
fn an_edit_that_edits_nothing_is_the_message_octet_for_octet() {
    for (name, message) in messages() {
        assert_eq!(message.edit().finish().bytes(), message.bytes(), "{name}");
        assert!(bytes_of(name).starts_with(message.bytes()), "{name}");
        read_all(&message);
    }
}

#[test]
fn folding_odd_case_and_compact_forms_are_read() {
    let Some(message) = torture("rfc4475/wsinv") else {
        return;
    };
    assert_eq!(message.max_forwards(), Ok(Some(68)));
    assert_eq!(message.cseq(), Ok((9, Method::Invite)));
    assert_eq!(message.to().unwrap().tag(), Some(b"1918181833n".as_slice()));
    assert_eq!(message.from().unwrap().tag(), Some(b"98asjd8".as_slice()));
    assert_eq!(message.from().unwrap().display, br#""J Rosenberg \\\"""#);
    let branches: Vec<_> = message.vias().map(|via| via.unwrap().branch()).collect();
    assert_eq!(
        branches,
        [b"390skdjuw".as_slice(), b"z9hG4bK9ikj8", b"z9hG4bK30239"].map(Some)
    );
    let contact = message.contacts().next().unwrap().unwrap();
    assert_eq!(contact.uri, b"sip:jdrosen@example.com");
    assert_eq!(contact.params.get("newparam"), Some(b"newvalue".as_slice()));
    assert_eq!(contact.params.get("Q"), Some(b"0.33".as_slice()));
    assert_eq!(message.body().len(), 150);
}

#[test]
fn the_odd_method_and_the_null_in_quotes_survive() {
    let Some(message) = torture("rfc4475/intmeth") else {
        return;
    };
    assert_eq!(
        message.method(),
        Method::Other(b"!interesting-Method0123456789_*+`.%indeed'~")
    );
    assert_eq!(
        message.call_id().unwrap(),
        br#"intmeth.word%ZK-!.*_+'@word`~)(><:\/"][?}{"#
    );
    assert!(message.to().unwrap().display.contains(&0));
    let Some(message) = torture("rfc4475/esc02") else {
        return;
    };
    assert_eq!(message.method(), Method::Other(b"RE%47IST%45R"));
    assert_eq!(message.count(HeaderName::Contact), 2);
}

#[test]
fn thirty_four_vias_keep_their_order() {
    let Some(message) = torture("rfc4475/longreq") else {
        return;
    };
    let hosts: Vec<_> = message
        .vias()
        .map(|via| via.unwrap().host.to_string())
        .collect();
    assert_eq!(hosts.len(), 34);
    assert_eq!(hosts[0], "sip33.example.com");
    assert_eq!(hosts[33], "host.example.com");
}

#[test]
fn a_second_request_in_the_datagram_is_ignored() {
    let Some(message) = torture("rfc4475/dblreq") else {
        return;
    };
    assert_eq!(message.method(), Method::Register);
    assert!(message.body().is_empty());
    assert!(message.bytes().ends_with(b"\r\n\r\n"));
    assert!(!message.bytes().windows(6).any(|window| window == b"INVITE"));
}

#[test]
fn a_binary_body_is_whole() {
    let Some(message) = torture("rfc4475/mpart01") else {
        return;
    };
    assert_eq!(message.body().len(), 553);
    assert!(message.body().contains(&0));
}

#[test]
fn a_semicolon_before_the_at_belongs_to_the_user() {
    let Some(message) = torture("rfc4475/semiuri") else {
        return;
    };
    let uri = Uri::parse(message.request_uri()).unwrap();
    assert_eq!(uri.user, Some(b"user;par=u%40example.net".as_slice()));
    assert_eq!(uri.host, Host::Name(b"example.com"));
}

#[test]
fn a_contact_parameter_is_inside_or_outside_the_brackets() {
    let Some(outside) = torture("rfc4475/cparam01") else {
        return;
    };
    let outside = outside.contacts().next().unwrap().unwrap();
    assert!(outside.params.has("unknownparam"));
    let Some(inside) = torture("rfc4475/cparam02") else {
        return;
    };
    let inside = inside.contacts().next().unwrap().unwrap();
    assert!(!inside.params.has("unknownparam"));
    assert!(inside.parse_uri().unwrap().param("unknownparam").is_some());
}

#[test]
fn an_ambiguous_port_is_part_of_the_address() {
    let host_and_port = |name: &str| {
        let message = torture(name)?;
        let uri = Uri::parse(message.request_uri()).unwrap();
        Some((uri.host.to_string(), uri.port))
    };
    if corpus::folder().is_none() {
        return;
    }
    assert_eq!(
        host_and_port("rfc5118/port-ambiguous"),
        Some(("[2001:db8::10:5070]".to_owned(), None))
    );
    assert_eq!(
        host_and_port("rfc5118/port-unambiguous"),
        Some(("[2001:db8::10]".to_owned(), Some(5070)))
    );
}

#[test]
fn received_has_brackets_or_none() {
    for name in ["with-delim", "no-delim"] {
        let Some(message) = torture(&format!("rfc5118/via-received-param-{name}")) else {
            return;
        };
        let received = message
            .vias()
            .find_map(|via| via.unwrap().received())
            .unwrap();
        assert_eq!(
            Host::parse(received).unwrap().to_string(),
            "[2001:db8::9:255]",
            "{name}"
        );
    }
}

#[test]
fn three_colons_are_two() {
    let Some(three) = torture("rfc5118/ipv6-bug-abnf-3-colons") else {
        return;
    };
    let Some(two) = torture("rfc5118/ipv6-correct-abnf-2-colons") else {
        return;
    };
    let host = |message: &Message| Uri::parse(message.from().unwrap().uri).unwrap().host.ip();
    assert_eq!(host(&three), host(&two));
    assert_eq!(three.vias().filter(Result::is_err).count(), 0);
}

#[test]
fn every_message_with_a_head_can_be_answered() {
    for (name, message) in messages().filter(|(_, message)| message.is_request()) {
        let answer = message.respond(400, "Bad Request").to_tag("t1").build();
        assert_eq!(answer.status(), Some(400), "{name}");
        assert_eq!(
            answer.count(HeaderName::Via),
            message.count(HeaderName::Via),
            "{name}"
        );
        assert_eq!(parse(answer.bytes()).bytes(), answer.bytes(), "{name}");
    }
}

#[test]
fn every_request_uri_can_be_replaced() {
    for (name, message) in messages().filter(|(_, message)| message.is_request()) {
        let edited = message.edit().set_request_uri("sip:new@192.0.2.9").finish();
        assert_eq!(edited.request_uri(), b"sip:new@192.0.2.9", "{name}");
        assert_eq!(edited.body(), message.body(), "{name}");
    }
}

/// All messages that parse; none where the corpus is missing.
pub(crate) fn messages() -> impl Iterator<Item = (&'static str, Message)> {
    let present = corpus::folder().is_some();
    let names = TABLE.iter().map(|(name, _)| *name);
    names
        .filter(move |_| present)
        .filter_map(|name| Some((name, torture(name)?)))
}

/// One message; `None` where the corpus is missing or the message does not parse.
pub(crate) fn torture(name: &str) -> Option<Message> {
    Message::parse(corpus::read(name)?).ok()
}

/// The octets of one message; empty where the corpus is missing.
fn bytes_of(name: &str) -> Bytes {
    corpus::read(name).unwrap_or_default()
}
