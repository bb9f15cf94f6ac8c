//! Reading header values: lists, addresses, Via, URIs, numbers.

use std::borrow::Cow;

use sip::message::{HeaderName, Host, Method, NameAddr, Uri, ValueError, Via};

use super::{INVITE, invite_with, parse};

#[test]
fn the_values_of_a_list_come_in_order_across_lines_and_commas() {
    let message = parse(INVITE);
    let vias: Vec<_> = message.vias().map(Result::unwrap).collect();
    assert_eq!(vias.len(), 3);
    assert_eq!(message.count(HeaderName::Via), 2);
    assert_eq!(
        (vias[0].transport, vias[0].port),
        (b"TCP".as_slice(), Some(5060))
    );
    assert_eq!(vias[1].branch(), Some(b"z9hG4bK1".as_slice()));
    assert_eq!(vias[2].host.to_string(), "[2001:db8::1]");
    assert_eq!(
        (vias[2].port, vias[2].rport()),
        (Some(5070), Some(b"".as_slice()))
    );
    assert_eq!(
        message
            .routes()
            .map(|route| route.unwrap().uri.len())
            .sum::<usize>(),
        42
    );
}

#[test]
fn a_comma_in_quotes_or_brackets_separates_nothing() {
    let contacts = "m: \"a,b\\\",c\" <sip:x,y@h>;p=\"1,2\" , <sip:z@h>";
    let line = "m: <sip:alice@client.atlanta.example.com;transport=tcp>";
    let message = invite_with(line, contacts);
    let uris: Vec<_> = message
        .contacts()
        .map(|contact| contact.unwrap().uri)
        .collect();
    assert_eq!(uris, [b"sip:x,y@h".as_slice(), b"sip:z@h"]);
}

#[test]
fn folded_values_are_unfolded_and_others_borrowed() {
    let message = parse(INVITE);
    let field = message
        .headers()
        .find(|field| field.raw_name == b"X-Unknown")
        .unwrap();
    assert_eq!(
        (field.name, field.value),
        (HeaderName::Other, b"kept   as it\r\n\t is".as_slice())
    );
    assert!(
        message
            .values(HeaderName::Via)
            .all(|value| matches!(value, Cow::Borrowed(_)))
    );
    let folded = invite_with("CSeq: 1 INVITE", "CSeq:\r\n 1\r\n\tINVITE");
    assert_eq!(folded.cseq(), Ok((1, Method::Invite)));
    assert_eq!(
        folded.values(HeaderName::CSeq).next().unwrap().as_ref(),
        b"1 INVITE"
    );
}

#[test]
fn a_line_of_spaces_continues_and_does_not_end_the_head() {
    let message = invite_with("CSeq: 1 INVITE", "CSeq: 1 INVITE\r\n  ");
    assert_eq!(message.cseq(), Ok((1, Method::Invite)));
    assert_eq!(message.check(), Ok(()));
    assert_eq!(message.body(), b"v=0\r\n");
}

#[test]
fn line_feeds_alone_end_lines() {
    let message = parse(
        INVITE
            .replace("\r\n", "\n")
            .replace("Length: 5", "Length: 4"),
    );
    assert_eq!(message.check(), Ok(()));
    assert_eq!(message.body(), b"v=0\n");
    assert_eq!(message.routes().count(), 2);
}

#[test]
fn addresses_come_in_three_forms() {
    let read = |text: &'static str| NameAddr::parse(text.as_bytes()).unwrap();
    let quoted = read("\"A <sip:no@no> \\\" B\" <sip:a@h;p=1?h=v>;tag=x;q=0.5");
    assert_eq!(quoted.uri, b"sip:a@h;p=1?h=v");
    assert_eq!(quoted.tag(), Some(b"x".as_slice()));
    let tokens = read("Bob van Bé <sip:b@h>");
    assert_eq!(tokens.uri, b"sip:b@h");
    let glued = read("caller<sip:c@h>;tag=323");
    assert_eq!(
        (glued.display, glued.tag()),
        (b"caller".as_slice(), Some(b"323".as_slice()))
    );
    let bare = read("sip:d@h;tag=y ; flag");
    assert_eq!(
        (bare.uri, bare.tag()),
        (b"sip:d@h".as_slice(), Some(b"y".as_slice()))
    );
    assert!(bare.params.has("FLAG"));
}

#[test]
fn addresses_that_could_be_read_in_two_ways_are_errors() {
    let table = [
        ("", ValueError::Empty),
        ("*", ValueError::Star),
        ("\"A <sip:a@h>", ValueError::Unbalanced),
        ("<sip:a@h", ValueError::Unbalanced),
        ("Bell, A <sip:a@h>", ValueError::Token),
        ("\"A\" sip:a@h", ValueError::Token),
        ("< sip:a@h >", ValueError::Uri),
        ("<sip:a@h\r\n >", ValueError::Uri),
        ("<>", ValueError::Uri),
        ("sip:a@h?Route=x", ValueError::Uri),
        ("sip:a,b@h", ValueError::Uri),
        ("no-scheme", ValueError::Uri),
        ("<sip:a@h>\"", ValueError::Parameter),
        ("<sip:a@h>;", ValueError::Parameter),
        ("<sip:a@h>;;tag=1", ValueError::Parameter),
        ("<sip:a@h>;tag=1 2", ValueError::Parameter),
        ("<sip:a@h>;tag=1, <sip:b@h>", ValueError::Parameter),
        ("<sip:a@h>;x=\"y", ValueError::Unbalanced),
    ];
    for (text, error) in table {
        assert_eq!(
            NameAddr::parse(text.as_bytes()).unwrap_err(),
            error,
            "{text}"
        );
    }
}

#[test]
fn via_allows_space_around_slashes_and_colon() {
    for text in [
        "SIP/2.0/UDP h.example:5061;branch=z9hG4bKa",
        "SIP / 2.0 / UDP\th.example : 5061 ; branch = z9hG4bKa",
        "SIP\r\n /2.0/ UDP h.example: 5061\r\n ;branch=\r\n z9hG4bKa",
        "sip/2.0/UDP h.example :5061;branch=z9hG4bKa",
    ] {
        let via = Via::parse(text.as_bytes()).unwrap();
        assert_eq!(
            (via.transport, via.host),
            (b"UDP".as_slice(), Host::Name(b"h.example")),
            "{text}"
        );
        assert_eq!(
            (via.port, via.branch()),
            (Some(5061), Some(b"z9hG4bKa".as_slice())),
            "{text}"
        );
        assert!(via.has_magic_branch());
    }
}

#[test]
fn broken_vias_are_errors() {
    for text in [
        "",
        "SIP",
        "SIP/",
        "SIP/2.0",
        "SIP/2.0/",
        "SIP/2.0/UDP",
        "SIP/2.0/UDP ",
        "SIP/2.0/UDP;x",
        "SIP/2.0/UDP h:",
        "SIP/2.0/UDP h:0",
        "SIP/2.0/UDP h:65536",
        "SIP/2.0/UDP h:5:6",
        "SIP/2.0/UDP :5060",
        "SIP/2.0/UDP [::1",
        "SIP/2.0/UDP ::1]",
        "SIP/2.0/UDP h h",
        "SIP/2.0/UDP h;;",
        "SIP/2.0/UDP h;branch=a b",
        "SIP/2.0/UDP 256.1.1.1",
        "HTTP/2.0/UDP h",
        "SIP/2.0/UDP h;a=\"",
        "SIP/2.0/UDP h;=",
        "SIP/2.0/UDP h\0",
    ] {
        assert!(Via::parse(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn a_sip_uri_has_all_its_parts() {
    let uri = Uri::parse(b"SIPS:u;x=1:p%40w@[2001:db8::1]:5061;LR;transport=tcp?a=b&c=d").unwrap();
    assert!(uri.is_sip() && uri.is_sips());
    assert_eq!(
        (uri.user, uri.password),
        (Some(b"u;x=1".as_slice()), Some(b"p%40w".as_slice()))
    );
    assert_eq!(
        (uri.host.to_string(), uri.port),
        ("[2001:db8::1]".to_owned(), Some(5061))
    );
    assert_eq!(
        (uri.param("lr"), uri.transport()),
        (Some(b"".as_slice()), Some(b"tcp".as_slice()))
    );
    assert_eq!(
        (uri.maddr(), uri.headers),
        (None, Some(b"a=b&c=d".as_slice()))
    );
}

#[test]
fn other_schemes_keep_their_scheme() {
    let tel = Uri::parse(b"tel:+1-201;phone-context=x").unwrap();
    assert!(!tel.is_sip());
    assert_eq!(
        (tel.user, tel.param("phone-context")),
        (Some(b"+1-201".as_slice()), Some(b"x".as_slice()))
    );
    assert_eq!(
        Uri::parse(b"soap.beep://192.0.2.103:3002").unwrap().scheme,
        b"soap.beep"
    );
}

#[test]
fn broken_uris_are_errors() {
    for text in [
        "",
        "sip",
        "sip:",
        ":a",
        "1sip:a",
        "sip:@h",
        "sip:a@",
        "sip:a@b@c",
        "sip:a@h:",
        "sip:a@h:x",
        "sip:a@h:99999",
        "sip:a@[::1",
        "sip:a@[::1]x",
        "sip:a@[1.2.3.4]",
        "sip:2001:db8::10",
        "sip:a@1.2.3",
        "sip:a@h h",
        "sip:a b@h",
        "<sip:a@h>",
        "sip:a@h\x7f",
        "sip:a@-\x01",
        "sip:a@.h",
        "sip:a@hé",
        "sip:a@;lr",
        "sip:?x=y",
    ] {
        assert!(Uri::parse(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn numbers_out_of_range_are_errors() {
    let cseq = |value: &str| {
        let message = invite_with("CSeq: 1 INVITE", &format!("CSeq: {value}"));
        message.cseq().map(|(number, _)| number)
    };
    assert_eq!(cseq("2147483647 INVITE"), Ok(2_147_483_647));
    assert_eq!(cseq("0000000000000000000000009 INVITE"), Ok(9));
    for bad in [
        "2147483648 INVITE",
        "4294967296 INVITE",
        "-1 INVITE",
        "+1 INVITE",
        "1",
        "INVITE 1",
        "",
        "1 ",
        "1 IN VITE",
        "1INVITE",
    ] {
        assert!(cseq(bad).is_err(), "{bad}");
    }
    let hops =
        |value: &str| invite_with("Forwards: 70", &format!("Forwards: {value}")).max_forwards();
    assert_eq!((hops("255"), hops("0")), (Ok(Some(255)), Ok(Some(0))));
    for bad in ["256", "-1", "", "7 0", "4294967366"] {
        assert!(hops(bad).is_err(), "{bad}");
    }
    let expires =
        |value: &str| invite_with("Max-Forwards: 70", &format!("Expires: {value}")).expires();
    assert_eq!(
        (expires("60"), expires("4294967296"), expires("soon")),
        (Some(60), None, None)
    );
}
