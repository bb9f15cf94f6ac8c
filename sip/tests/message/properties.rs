//! Properties over arbitrary octets and over mutations of real messages.

use bytes::Bytes;
use proptest::prelude::*;
use sip::message::{HeaderName, Host, Message, NameAddr, Uri, Via};

use super::torture::messages;
use super::{INVITE, read_all};

/// A torture message or our own with pieces removed, doubled, swapped or overwritten.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let mutation = (
        any::<prop::sample::Index>(),
        0..40_usize,
        0..5_u8,
        any::<u8>(),
    );
    let interesting = prop::sample::select(b"\r\n \t:;,<>\"\\@=?/[]*%\0".to_vec());
    (
        0..70_usize,
        prop::collection::vec((mutation, interesting), 0..6),
    )
        .prop_map(|(which, mutations)| {
            let picked = messages()
                .nth(which)
                .map(|(_, message)| message.bytes().to_vec());
            let mut bytes = picked.unwrap_or_else(|| INVITE.as_bytes().to_vec());
            for ((at, length, kind, byte), special) in mutations {
                let start = at.index(bytes.len().max(1)).min(bytes.len());
                let end = (start + length).min(bytes.len());
                let piece = bytes[start..end].to_vec();
                match kind {
                    0 => drop(bytes.drain(start..end)),
                    1 => drop(bytes.splice(start..start, piece)),
                    2 => drop(bytes.splice(start..start, [special])),
                    3 => drop(bytes.splice(start..end, [special])),
                    _ => drop(bytes.splice(start..start, [byte])),
                }
            }
            bytes
        })
}

fn use_fully(message: &Message) -> Result<(), TestCaseError> {
    read_all(message);
    let unedited = message.edit().finish();
    prop_assert_eq!(unedited.bytes(), message.bytes());
    let again = Message::parse(message.bytes().clone()).unwrap();
    prop_assert_eq!(again.bytes(), message.bytes());
    prop_assert_eq!(again.check(), message.check());
    let answer = message.respond(400, "Bad Request").to_tag("t").build();
    prop_assert_eq!(answer.status(), Some(400));
    prop_assert!(!answer.content_length_fault());
    if message.check().is_ok() {
        prop_assert!(
            message
                .respond(200, "OK")
                .to_tag("t")
                .build()
                .check()
                .is_ok()
        );
    }
    read_all(&message.cancel_for());
    read_all(&message.ack_for(&answer));
    Ok(())
}

/// Name, raw name and value of all fields but those of one name.
fn without(message: &Message, name: HeaderName) -> Vec<(Vec<u8>, Vec<u8>)> {
    let fields = message.headers().filter(|field| field.name != name);
    fields
        .map(|field| (field.raw_name.to_vec(), field.value.to_vec()))
        .collect()
}

const EDITED: [HeaderName; 6] = [
    HeaderName::Via,
    HeaderName::Route,
    HeaderName::MaxForwards,
    HeaderName::Contact,
    HeaderName::ContentLength,
    HeaderName::Supported,
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_octets_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(message) = Message::parse(Bytes::from(bytes.clone())) {
            use_fully(&message)?;
        }
        let _ = (Via::parse(&bytes), NameAddr::parse(&bytes), Uri::parse(&bytes), Host::parse(&bytes));
    }

    #[test]
    fn values_of_special_characters_are_read_or_refused(text in "[a;,<>\"\\\\@=?/:\\[\\] \r\n*.0-9sipSIP]{0,40}") {
        let bytes = text.as_bytes();
        let _ = (Via::parse(bytes), NameAddr::parse(bytes), Uri::parse(bytes), Host::parse(bytes));
        let via = format!("SIP/2.0/UDP h{text}");
        if let Ok(via) = Via::parse(via.as_bytes()) {
            via.params.iter().for_each(|(name, _)| assert!(!name.is_empty()));
        }
        let _ = NameAddr::parse(format!("<sip:{text}>;{text}").as_bytes());
        let _ = Uri::parse(format!("sip:{text}").as_bytes());
    }

    #[test]
    fn mutated_messages_are_read_or_refused(bytes in mutated()) {
        if let Ok(message) = Message::parse(Bytes::from(bytes)) {
            use_fully(&message)?;
        }
    }

    #[test]
    fn an_edit_changes_its_header_and_nothing_else(
        bytes in mutated(), which in 0..EDITED.len(), kind in 0..6_u8, value in "[ -~]{0,20}",
    ) {
        let Ok(message) = Message::parse(Bytes::from(bytes)) else { return Ok(()) };
        let name = EDITED[which];
        let mut edit = message.edit();
        match kind {
            0 => edit.push_front(name, value.as_str()),
            1 => edit.append(name, value.as_str()),
            2 => edit.remove_first_value(name),
            3 => edit.replace_first_value(name, &value),
            4 => edit.remove_all(name),
            _ => edit.set(name, value.as_str()),
        };
        let edited = edit.finish();
        let left_alone = message.headers().any(|field| field.name != name);
        if left_alone {
            prop_assert_eq!(without(&edited, name), without(&message, name));
            if name != HeaderName::ContentLength && message.content_length_error().is_none() {
                prop_assert_eq!(edited.body(), message.body());
            }
        }
        prop_assert_eq!(edited.request_uri(), message.request_uri());
        prop_assert_eq!(edited.status(), message.status());
    }

    #[test]
    fn a_new_body_is_the_body(bytes in mutated(), body in prop::collection::vec(any::<u8>(), 0..40)) {
        let Ok(message) = Message::parse(Bytes::from(bytes)) else { return Ok(()) };
        let edited = message.edit().set_body(body.clone()).finish();
        prop_assert_eq!(edited.body(), &body[..]);
        prop_assert!(!edited.content_length_fault());
    }
}
