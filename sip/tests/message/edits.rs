//! Edits: what they are about changes, every other octet stays.

use bytes::Bytes;
use sip::message::{HeaderName, Message};

use super::torture::messages;
use super::{INVITE, invite_with, parse, refusal};

/// The edited INVITE must be the INVITE with `from` replaced by `to`.
fn assert_only(edited: &Message, from: &str, to: &str) {
    assert!(INVITE.contains(from));
    let text = std::str::from_utf8(edited.bytes()).unwrap();
    assert_eq!(text, INVITE.replacen(from, to, 1));
    assert_eq!(refusal(edited), None);
}

#[test]
fn a_new_request_uri_replaces_only_the_old_one() {
    let edited = parse(INVITE)
        .edit()
        .set_request_uri("sip:b@192.0.2.7:5062;ob")
        .finish();
    assert_only(
        &edited,
        "INVITE sip:bob@biloxi.example.com",
        "INVITE sip:b@192.0.2.7:5062;ob",
    );
    assert_eq!(edited.request_uri(), b"sip:b@192.0.2.7:5062;ob");
}

#[test]
fn a_pushed_field_stands_before_the_first_of_its_name() {
    let edited = parse(INVITE)
        .edit()
        .push_front(HeaderName::Via, "SIP/2.0/UDP p;branch=z9hG4bKp")
        .finish();
    assert_only(
        &edited,
        "Via: SIP/2.0/TCP",
        "Via: SIP/2.0/UDP p;branch=z9hG4bKp\r\nVia: SIP/2.0/TCP",
    );
    assert_eq!(edited.vias().count(), 4);
    assert_eq!(
        edited.top_via().unwrap().branch(),
        Some(b"z9hG4bKp".as_slice())
    );
}

#[test]
fn a_pushed_field_without_a_fellow_stands_on_top() {
    let edited = parse(INVITE)
        .edit()
        .push_front(HeaderName::RecordRoute, "<sip:p;lr>")
        .finish();
    assert_only(
        &edited,
        "Via: SIP/2.0/TCP",
        "Record-Route: <sip:p;lr>\r\nVia: SIP/2.0/TCP",
    );
}

#[test]
fn the_last_pushed_is_the_first() {
    let message = parse(INVITE);
    let mut edit = message.edit();
    edit.push_front(HeaderName::RecordRoute, "<sip:in;lr>")
        .push_front(HeaderName::RecordRoute, "<sip:out;lr>");
    let uris: Vec<_> = edit
        .finish()
        .record_routes()
        .map(|r| r.unwrap().uri.to_vec())
        .collect();
    assert_eq!(uris, [b"sip:out;lr".to_vec(), b"sip:in;lr".to_vec()]);
}

#[test]
fn an_appended_field_stands_last() {
    let edited = parse(INVITE)
        .edit()
        .append(HeaderName::Supported, "path")
        .finish();
    assert_only(
        &edited,
        "Content-Length: 5\r\n",
        "Content-Length: 5\r\nSupported: path\r\n",
    );
}

#[test]
fn removing_the_first_value_removes_its_field_or_only_the_value() {
    let message = parse(INVITE);
    let mut edit = message.edit();
    assert_only(
        &edit.remove_first_value(HeaderName::Via).finish(),
        "Via: SIP/2.0/TCP client.atlanta.example.com:5060;branch=z9hG4bK74bf9\r\n",
        "",
    );
    let second = edit.remove_first_value(HeaderName::Via).finish();
    assert_eq!(second.vias().count(), 1);
    let text = std::str::from_utf8(second.bytes()).unwrap();
    assert!(text.contains("\r\nv: SIP/2.0/UDP [2001:db8::1]:5070;rport\r\n"));
    assert_eq!(
        edit.remove_first_value(HeaderName::Via)
            .finish()
            .count(HeaderName::Via),
        0
    );
    assert_eq!(
        edit.remove_first_value(HeaderName::Via)
            .finish()
            .count(HeaderName::Via),
        0
    );
    let route = message
        .edit()
        .remove_first_value(HeaderName::Route)
        .finish();
    assert_only(
        &route,
        "Route: <sip:p1.example.com;lr>,\r\n <sip:p2.example.com;lr>",
        "Route: <sip:p2.example.com;lr>",
    );
}

#[test]
fn replacing_the_first_value_leaves_the_others_of_its_line() {
    let message = parse(INVITE);
    let edited = message
        .edit()
        .replace_first_value(HeaderName::Route, "<sip:new;lr>")
        .finish();
    assert_only(&edited, "<sip:p1.example.com;lr>", "<sip:new;lr>");
    let missing = message
        .edit()
        .replace_first_value(HeaderName::Supported, "path")
        .finish();
    assert_only(
        &missing,
        "Via: SIP/2.0/TCP",
        "Supported: path\r\nVia: SIP/2.0/TCP",
    );
}

#[test]
fn removing_all_takes_every_form_of_the_name() {
    let edited = parse(INVITE).edit().remove_all(HeaderName::Via).finish();
    assert_eq!(
        (edited.count(HeaderName::Via), edited.headers().count()),
        (0, 10)
    );
}

#[test]
fn setting_keeps_the_place_and_the_spelling_and_removes_doubles() {
    let message = parse(INVITE);
    assert_only(
        &message.edit().set(HeaderName::MaxForwards, "69").finish(),
        "Forwards: 70",
        "Forwards: 69",
    );
    assert_only(
        &message.edit().set(HeaderName::Contact, "<sip:n>").finish(),
        "m: <sip:alice@client.atlanta.example.com;transport=tcp>",
        "m: <sip:n>",
    );
    let one = message
        .edit()
        .set(HeaderName::Via, "SIP/2.0/UDP o")
        .finish();
    assert_eq!(one.count(HeaderName::Via), 1);
    let missing = message.edit().set(HeaderName::Expires, "60").finish();
    assert_eq!(missing.expires(), Some(60));
}

#[test]
fn a_new_body_corrects_content_length_or_adds_it() {
    let message = parse(INVITE);
    let edited = message.edit().set_body("v=0\r\no=x\r\n").finish();
    assert_only(
        &edited,
        "Content-Length: 5\r\n\r\nv=0\r\n",
        "Content-Length: 10\r\n\r\nv=0\r\no=x\r\n",
    );
    let without = invite_with("Content-Length: 5\r\n", "");
    let edited = without.edit().set_body("v=1").finish();
    assert_eq!(
        (edited.header(HeaderName::ContentLength), edited.body()),
        (Some(b"3".as_slice()), b"v=1".as_slice())
    );
    let empty = invite_with("Content-Length: 5", "Content-Length:\r\n ");
    let edited = empty.edit().set_body("v=1").finish();
    assert_eq!(
        (edited.body(), edited.content_length_fault()),
        (b"v=1".as_slice(), false)
    );
    assert_eq!(message.edit().set_body("").finish().body(), b"");
}

#[test]
fn an_empty_value_can_be_given_one() {
    let message = invite_with("Max-Forwards: 70", "Supported:\r\nMax-Forwards :");
    let edited = message
        .edit()
        .set(HeaderName::Supported, "path")
        .set(HeaderName::MaxForwards, "9")
        .finish();
    assert_eq!(
        edited.header(HeaderName::Supported),
        Some(b"path".as_slice())
    );
    assert_eq!(edited.max_forwards(), Ok(Some(9)));
    assert_eq!(refusal(&edited), None);
}

#[test]
fn no_value_can_end_its_line() {
    let message = parse(INVITE);
    let evil = "x\r\nRoute: <sip:evil>\r\n\r\n\0";
    let edited = message
        .edit()
        .push_front(HeaderName::Supported, evil)
        .append(HeaderName::Require, evil)
        .set(HeaderName::Contact, evil)
        .replace_first_value(HeaderName::Via, evil)
        .set_request_uri(evil)
        .finish();
    assert_eq!(edited.count(HeaderName::Route), 1);
    assert_eq!(
        edited.headers().count(),
        parse(INVITE).headers().count() + 2
    );
    assert_eq!(edited.body(), message.body());
    let answer = message
        .respond(400, "Bad\r\nRoute: x")
        .to_tag(evil)
        .header("X", evil)
        .build();
    assert_eq!(answer.count(HeaderName::Route), 0);
}

#[test]
fn other_names_no_header_and_edits_nothing() {
    let message = parse(INVITE);
    let mut edit = message.edit();
    edit.set(HeaderName::Other, "x")
        .append(HeaderName::Other, "x")
        .push_front(HeaderName::Other, "x");
    edit.remove_all(HeaderName::Other)
        .remove_first_value(HeaderName::Other);
    assert_eq!(
        edit.replace_first_value(HeaderName::Other, "x")
            .finish()
            .bytes(),
        message.bytes()
    );
}

#[test]
fn the_source_is_written_into_the_top_via() {
    let stamped = |via: &str, peer: &str| {
        let message = invite_with(
            "SIP/2.0/TCP client.atlanta.example.com:5060;branch=z9hG4bK74bf9",
            via,
        );
        let edited = message.edit().stamp_top_via(peer.parse().unwrap()).finish();
        let value = edited.values(HeaderName::Via).next().unwrap().into_owned();
        assert_eq!(edited.vias().count(), message.vias().count());
        String::from_utf8(value).unwrap()
    };
    let peer = "192.0.2.9:1234";
    assert_eq!(
        stamped("SIP/2.0/UDP 192.0.2.9;branch=z9hG4bKa", peer),
        "SIP/2.0/UDP 192.0.2.9;branch=z9hG4bKa"
    );
    assert_eq!(
        stamped("SIP/2.0/UDP h;branch=z9hG4bKa", peer),
        "SIP/2.0/UDP h;branch=z9hG4bKa;received=192.0.2.9"
    );
    assert_eq!(
        stamped(
            "SIP/2.0/UDP 192.0.2.9 : 5061;RPORT;x=\"a;b\", SIP/2.0/UDP z",
            peer
        ),
        "SIP/2.0/UDP 192.0.2.9:5061;x=\"a;b\";received=192.0.2.9;rport=1234"
    );
    assert_eq!(
        stamped("SIP/2.0/UDP 192.0.2.9;received=6.6.6.6", peer),
        "SIP/2.0/UDP 192.0.2.9"
    );
    assert_eq!(
        stamped("SIP/2.0/UDP [2001:db8::1];rport=9", "[2001:db8::9]:7"),
        "SIP/2.0/UDP [2001:db8::1];received=2001:db8::9;rport=7"
    );
    assert_eq!(
        stamped("SIP/2.0/UDP h", "[::ffff:192.0.2.9]:7"),
        "SIP/2.0/UDP h;received=192.0.2.9"
    );
}

#[test]
fn what_a_proxy_does_leaves_every_other_line_of_the_torture_messages_alone() {
    for (name, message) in messages().filter(|(_, message)| message.check().is_ok()) {
        let mut edit = message.edit();
        edit.set(HeaderName::MaxForwards, "69")
            .push_front(HeaderName::RecordRoute, "<sip:p;lr>");
        edit.push_front(HeaderName::Via, "SIP/2.0/UDP p;branch=z9hG4bKp");
        let sent = edit.finish();
        assert_eq!(refusal(&sent), None, "{name}");
        let back = sent
            .edit()
            .remove_first_value(HeaderName::Via)
            .remove_first_value(HeaderName::RecordRoute)
            .finish();
        let ours = |field: &sip::message::Field<'_>| field.name != HeaderName::MaxForwards;
        assert!(
            back.headers()
                .filter(ours)
                .eq(message.headers().filter(ours)),
            "{name}"
        );
        assert_eq!(back.body(), message.body(), "{name}");
        assert_eq!(
            Message::parse(Bytes::clone(sent.bytes())).unwrap().bytes(),
            sent.bytes(),
            "{name}"
        );
    }
}
