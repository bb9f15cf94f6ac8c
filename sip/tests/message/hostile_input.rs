//! What broke other implementations, one test for each kind of defect.

use std::fmt::Write;

use bytes::Bytes;
use sip::message::{ContentLengthFault, HeaderName, MAX_FIELDS, MAX_MESSAGE, Message, ParseError};

use super::{INVITE, invite_with, parse, read_all, refusal};

const SINGLE: [&str; 6] = [
    "From: \"Alice, \\\"A\\\"\" <sip:alice@atlanta.example.com>;tag=9fxced76sl",
    "To: Bob <sip:bob@biloxi.example.com>",
    "Call-ID: 3848276298220188511@atlanta.example.com",
    "CSeq: 1 INVITE",
    "Max-Forwards: 70",
    "Content-Length: 5",
];

/// Everything that is done with a request, whatever is wrong with it.
fn use_fully(message: &Message) {
    read_all(message);
    let answer = message.respond(400, "Bad Request").to_tag("t").build();
    assert_eq!(answer.status(), Some(400));
    let (cancel, ack) = (message.cancel_for(), message.ack_for(&answer));
    read_all(&answer);
    read_all(&cancel);
    read_all(&ack);
    let mut edit = message.edit();
    for name in [
        HeaderName::Via,
        HeaderName::To,
        HeaderName::From,
        HeaderName::Route,
        HeaderName::CSeq,
    ] {
        edit.replace_first_value(name, "x")
            .remove_first_value(name)
            .push_front(name, "y")
            .set(name, "z");
    }
    edit.set_request_uri("sip:u")
        .set_body("b")
        .remove_all(HeaderName::Via);
    read_all(&edit.finish());
    read_all(
        &message
            .edit()
            .stamp_top_via("192.0.2.1:5060".parse().unwrap())
            .finish(),
    );
}

#[test]
fn a_cseq_method_of_ten_thousand_octets_is_only_a_mismatch() {
    let message = invite_with("CSeq: 1 INVITE", &format!("CSeq: 1 {}", "A".repeat(10_000)));
    assert_eq!(refusal(&message), Some((400, "CSeq Method Mismatch")));
    use_fully(&message);
}

#[test]
fn tags_and_branches_of_every_length_are_whole() {
    for length in (1..400).chain([4_000, 20_000]) {
        let long = "t".repeat(length);
        let text = INVITE
            .replace("9fxced76sl", &long)
            .replace("z9hG4bK74bf9", &format!("z9hG4bK{long}"));
        let message = parse(text);
        assert_eq!(message.from().unwrap().tag(), Some(long.as_bytes()));
        assert_eq!(
            message.top_via().unwrap().branch().unwrap().len(),
            length + 7
        );
        assert_eq!(refusal(&message), None);
        assert_eq!(message.cancel_for().top_via(), message.top_via());
    }
}

#[test]
fn doubles_of_single_headers_are_refused_and_answered_once() {
    for line in SINGLE {
        let message = invite_with(line, &format!("{line}\r\n{line}"));
        let (status, reason) = refusal(&message).unwrap();
        assert!(
            status == 400 && reason.starts_with("Several "),
            "{line}: {reason}"
        );
        use_fully(&message);
        let answer = message.respond(400, reason).build();
        for name in [
            HeaderName::From,
            HeaderName::To,
            HeaderName::CallId,
            HeaderName::CSeq,
        ] {
            assert_eq!(answer.count(name), 1, "{line}");
            assert_eq!(message.cancel_for().count(name), 1, "{line}");
        }
    }
    let first_is_empty = invite_with(SINGLE[1], "To: <sip:b@h>;tag=\r\nt: <sip:b@h>;tag=x");
    assert_eq!(refusal(&first_is_empty), Some((400, "Several To")));
    use_fully(&first_is_empty);
}

#[test]
fn empty_and_double_tags_are_refused() {
    for to in [
        "To: <sip:b@h>;tag=",
        "To: <sip:b@h>;tag",
        "To: <sip:b@h>;tag=a;TAG=b",
        "To: <sip:b@h>; tag =",
    ] {
        let message = invite_with(SINGLE[1], to);
        assert_eq!(refusal(&message), Some((400, "Bad To")), "{to}");
        use_fully(&message);
    }
}

#[test]
fn a_via_cut_anywhere_is_answered() {
    let via = "SIP/2.0/TCP client.atlanta.example.com:5060;branch=z9hG4bK74bf9";
    for end in 0..via.len() {
        for text in [
            via[..end].to_owned(),
            format!("{}, SIP/2.0/UDP h", &via[..end]),
            format!("SIP/2.0/UDP h, {}", &via[..end]),
        ] {
            use_fully(&invite_with(via, &text));
        }
    }
}

#[test]
fn a_to_cut_anywhere_is_answered() {
    let to = "To: \"B \\\" ob\" <sip:bob:pw@[2001:db8::1]:5060;p=v?h=v>;tag=\"x\";y=z";
    for end in 3..to.len() {
        use_fully(&invite_with(SINGLE[1], &to[..end]));
        use_fully(&invite_with(SINGLE[1], &format!("To:{}", &to[end..])));
    }
}

#[test]
fn every_line_and_part_can_be_missing() {
    for line in INVITE.split_inclusive("\r\n").skip(1) {
        let without = INVITE.replacen(line, "", 1);
        if let Ok(message) = Message::parse(Bytes::from(without)) {
            use_fully(&message);
        }
    }
    for part in [
        ";branch=z9hG4bK74bf9",
        ";tag=9fxced76sl",
        ":5060",
        "1 ",
        " INVITE\r\nX",
        "70",
        "sip:bob@biloxi.example.com",
    ] {
        use_fully(&parse(INVITE.replacen(part, "", 1)));
    }
    let mandatory = ["Call-ID", "CSeq", "From", "To"];
    for name in mandatory {
        let line = INVITE.lines().find(|line| line.starts_with(name)).unwrap();
        let reason = refusal(&parse(INVITE.replace(&format!("{line}\r\n"), "")))
            .unwrap()
            .1;
        assert_eq!(reason, format!("Missing {name}"));
    }
}

#[test]
fn long_start_lines_and_headers_are_whole() {
    let uri = format!("sip:{}@h", "u".repeat(30_000));
    let message = parse(INVITE.replace("sip:bob@biloxi.example.com SIP", &format!("{uri} SIP")));
    assert_eq!(
        (message.request_uri(), refusal(&message)),
        (uri.as_bytes(), None)
    );
    let long = "v".repeat(40_000);
    let message = invite_with("X-Unknown  :  kept   as it", &format!("X: {long}"));
    assert_eq!(
        message
            .headers()
            .find(|field| field.raw_name == b"X")
            .unwrap()
            .value
            .len(),
        40_006
    );
    let method = "M".repeat(30_000);
    use_fully(&parse(INVITE.replacen("INVITE", &method, 1)));
}

#[test]
fn white_space_before_the_colon_hides_no_header() {
    for spelling in [
        "Route :",
        "Route\t:",
        "ROUTE \t :",
        "rOuTe:",
        "Route\t \t:\r\n ",
    ] {
        let message = invite_with("Max-Forwards: 70", &format!("{spelling} <sip:x>"));
        assert_eq!(message.count(HeaderName::Route), 2, "{spelling}");
        assert_eq!(
            message
                .edit()
                .remove_all(HeaderName::Route)
                .finish()
                .count(HeaderName::Route),
            0
        );
        assert_eq!(refusal(&message), None);
    }
    let compact = invite_with("Max-Forwards: 70", "l \t: 5\r\nV : SIP/2.0/UDP h");
    assert_eq!(
        (
            compact.count(HeaderName::ContentLength),
            compact.vias().count()
        ),
        (2, 4)
    );
}

#[test]
fn a_control_character_before_the_colon_makes_no_header() {
    for byte in (0..=32).chain([b'"', b'(', b'@', b'/', b'[', b'=', 0x7f, 0x80, 0xa0, 0xff]) {
        if matches!(byte, b'\t' | b'\n' | b' ') {
            continue;
        }
        for name in [&b"To"[..], b"t", b"Content-Length"] {
            let line = [name, &[byte], b": <sip:evil@h>;tag=1\r\nCSeq"].concat();
            let at = INVITE.find("CSeq").unwrap();
            let text = [
                &INVITE.as_bytes()[..at],
                &line,
                &INVITE.as_bytes()[at + 4..],
            ]
            .concat();
            let message = parse(text);
            assert_eq!(refusal(&message).unwrap().0, 400, "{byte}");
            assert_eq!(message.to().unwrap().tag(), None, "{byte}");
            assert_eq!(message.count(HeaderName::ContentLength), 1, "{byte}");
        }
    }
    for line in ["To\u{1}: x", ": x", "To x", " : x", "To x: y", "\u{b}To: x"] {
        let message = invite_with("Max-Forwards: 70\r\n", &format!("Subject: s\r\n{line}\r\n"));
        let folded = line.starts_with(' ');
        assert_eq!(refusal(&message).is_some(), !folded, "{line}");
        assert_eq!(message.count(HeaderName::To), 1, "{line}");
    }
}

#[test]
fn a_carriage_return_alone_is_refused() {
    for text in [
        "Subject: a\rRoute: <sip:evil>",
        "Subject: a\r",
        "Subject\r: a",
        "Subject: a\r\r",
    ] {
        let message = invite_with("Max-Forwards: 70", text);
        assert_eq!(refusal(&message).unwrap().0, 400, "{text:?}");
        assert_eq!(message.count(HeaderName::Route), 1);
        assert!(
            !message
                .respond(400, "x")
                .build()
                .bytes()
                .windows(2)
                .any(|w| w[0] == b'\r' && w[1] != b'\n')
        );
    }
}

#[test]
fn content_length_is_believed_only_where_it_is_a_number_that_fits() {
    use ContentLengthFault::{Conflicting, TooLarge, Truncated, Unusable};
    let table = [
        ("5", None),
        ("0005", None),
        ("00000000000000000000000000005", None),
        ("0", None),
        ("6", Some(Truncated)),
        ("2147483647", Some(Truncated)),
        ("2147483648", Some(TooLarge)),
        ("4294967295", Some(TooLarge)),
        ("4294967296", Some(TooLarge)),
        ("4294967301", Some(TooLarge)),
        ("4294967328", Some(TooLarge)),
        ("9223372036854775807", Some(TooLarge)),
        ("18446744073709551616", Some(TooLarge)),
        ("18446744073709551621", Some(TooLarge)),
        ("99999999999999999999999999", Some(TooLarge)),
        ("-1", Some(Unusable)),
        ("+5", Some(Unusable)),
        ("5 5", Some(Unusable)),
        ("5,5", Some(Unusable)),
        ("0x5", Some(Unusable)),
        ("5;", Some(Unusable)),
        ("", Some(Unusable)),
        ("5\r\n 5", Some(Unusable)),
        ("5.0", Some(Unusable)),
        ("5\r\nl: 4", Some(Conflicting)),
        ("5\r\nContent-Length : 05", None),
    ];
    for (value, fault) in table {
        let message = invite_with("Content-Length: 5", &format!("Content-Length: {value}"));
        assert_eq!(message.content_length_error(), fault, "{value}");
        let expected = if value == "0" {
            b"".as_slice()
        } else {
            b"v=0\r\n"
        };
        assert_eq!(message.body(), expected, "{value}");
        assert!(
            fault.is_none() || refusal(&message).unwrap().0 == 400,
            "{value}"
        );
        use_fully(&message);
    }
}

#[test]
fn credentials_of_any_shape_pass_unread() {
    let long = format!("Digest nonce=\"{}", "n".repeat(50_000));
    for value in [
        "Digest ",
        "Digest u",
        "Digest u=\"",
        "Digest",
        "",
        ",,,",
        "\"",
        &long,
    ] {
        let message = invite_with("Max-Forwards: 70", &format!("Authorization: {value}"));
        assert_eq!(refusal(&message), None);
        use_fully(&message);
    }
}

#[test]
fn a_star_is_a_contact_only_in_a_register_and_alone() {
    let contact = "m: <sip:alice@client.atlanta.example.com;transport=tcp>";
    let register = INVITE.replace("INVITE", "REGISTER");
    assert_eq!(
        refusal(&parse(register.replace(contact, "Contact: *"))),
        None
    );
    for (text, with) in [
        (INVITE, "m: *"),
        (&register, "m: *, <sip:a@h>"),
        (&register, "m: <sip:a@h>\r\nContact: *"),
        (&register, "m: *;q=1"),
    ] {
        let message = parse(text.replace(contact, with));
        assert_eq!(refusal(&message), Some((400, "Bad Contact")), "{with}");
        use_fully(&message);
    }
    let response = "SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP h\r\nf: <sip:a@h>\r\nt: <sip:b@h>\r\ni: 1\r\nCSeq: 1 INVITE\r\nm: *\r\n\r\n";
    assert_eq!(refusal(&parse(response)), Some((400, "Bad Contact")));
}

#[test]
fn a_quote_behind_a_contact_is_refused() {
    let contact = "m: <sip:alice@client.atlanta.example.com;transport=tcp>";
    for text in [
        "m: <sip:a@h>\"",
        "m: \"",
        "m: \"<sip:a@h>",
        "m: <sip:a@h>;x=\"",
        "m: <\"sip:a@h>",
        "m: ,",
        "m: <sip:a@h>,",
    ] {
        let message = invite_with(contact, text);
        assert_eq!(refusal(&message), Some((400, "Bad Contact")), "{text}");
        use_fully(&message);
    }
}

#[test]
fn what_is_no_message_says_why() {
    let error = |bytes: &[u8]| Message::parse(Bytes::copy_from_slice(bytes)).unwrap_err();
    assert_eq!(
        (error(b""), error(b"\r\n\r\n"), error(b"\n")),
        (ParseError::Empty, ParseError::Empty, ParseError::Empty)
    );
    for garbage in [
        &b"\0\0\0\0"[..],
        b"GET / HTTP/1.1\r\n\r\n",
        b"INVITE\r\n\r\n",
        b"INVITE sip:a\r\n\r\n",
        b" INVITE sip:a SIP/2.0\r\n\r\n",
        b"\x16\x03\x01 SIP/2.0 SIP/2.0\r\n\r\n",
        b"SIP 2.0\r\n",
    ] {
        assert_eq!(error(garbage), ParseError::StartLine, "{garbage:?}");
    }
    for status in [
        "099",
        "700",
        "20",
        "2000",
        "2x0",
        "",
        "4294967301",
        "-20",
        "+20",
    ] {
        let text = format!("SIP/2.0 {status} OK\r\nVia: x\r\n\r\n");
        assert_eq!(error(text.as_bytes()), ParseError::StatusCode, "{status}");
    }
    assert_eq!(
        error(b"OPTIONS sip:a SIP/2.0\r\n\r\n"),
        ParseError::NoFields
    );
    assert_eq!(error(&[b'A'; MAX_MESSAGE + 1]), ParseError::TooLong);
}

#[test]
fn the_number_of_fields_is_bounded() {
    let mut text = "OPTIONS sip:a SIP/2.0\r\n".to_owned();
    for number in 0..MAX_FIELDS {
        write!(text, "X-{number}: x\r\n").unwrap();
    }
    assert_eq!(parse(format!("{text}\r\n")).headers().count(), MAX_FIELDS);
    let error = Message::parse(Bytes::from(format!("{text}Y: y\r\n\r\n"))).unwrap_err();
    assert_eq!(error, ParseError::TooManyFields);
}

#[test]
fn the_longest_messages_of_any_kind_take_no_long_time() {
    // Quadratic work over 60,000 octets would be seen; no time is asserted.
    for part in [
        "\"", "<", ",", ";", ";a", "\r\n ", "\\\"", "\"\\", ",<", ";a=\"", "=", " ", "\t", ":",
        "@", "%", "a=b,",
    ] {
        let many = part.repeat(60_000 / part.len());
        for name in [
            "Via: SIP/2.0/UDP h",
            "To: ",
            "Contact: <sip:a>",
            "CSeq: 1",
            "Content-Length: 5",
            "X: y",
        ] {
            use_fully(&invite_with("Max-Forwards: 70", &format!("{name}{many}")));
        }
    }
}

#[test]
fn a_head_without_end_is_refused_and_answered() {
    for end in 60..INVITE.len() - 8 {
        let Ok(message) = Message::parse(Bytes::copy_from_slice(&INVITE.as_bytes()[..end])) else {
            continue;
        };
        assert!(refusal(&message).is_some(), "{end}");
        use_fully(&message);
    }
}
