//! Messages out of a byte stream (RFC 3261 section 18.3, RFC 5626 section 3.5.1).

use proptest::prelude::*;
use sip::message::{FrameError, Framer, MAX_MESSAGE, Message, ParseError, StreamItem};

use super::corpus;
use super::torture::messages;
use super::{INVITE, parse};

/// All items, and the error that ends them.
fn items(stream: &[u8], chunk: usize) -> (Vec<StreamItem>, Option<FrameError>) {
    let mut framer = Framer::new(MAX_MESSAGE);
    let mut items = Vec::new();
    for piece in stream.chunks(chunk.max(1)) {
        framer.push(piece);
        loop {
            match framer.next() {
                Ok(Some(item)) => items.push(item),
                Ok(None) => break,
                Err(error) => return (items, Some(error)),
            }
        }
    }
    (items, None)
}

fn message(text: &str) -> StreamItem {
    StreamItem::Message(parse(text))
}

const ACK: &str = "ACK sip:b@h SIP/2.0\r\nVia: SIP/2.0/TCP h\r\n\r\n";

#[test]
fn messages_follow_each_other_without_a_gap() {
    let stream = format!("{INVITE}{ACK}\r\n{INVITE}");
    for chunk in [1, 2, 3, 7, 100, 10_000] {
        let (items, error) = items(stream.as_bytes(), chunk);
        assert_eq!(
            (items, error),
            (vec![message(INVITE), message(ACK), message(INVITE)], None)
        );
    }
}

#[test]
fn a_double_line_end_is_a_ping_and_a_single_one_is_nothing() {
    let count = |stream: &str, chunk| {
        let (items, error) = items(stream.as_bytes(), chunk);
        assert_eq!(error, None);
        items
            .iter()
            .filter(|item| **item == StreamItem::Ping)
            .count()
    };
    for chunk in [1, 2, 3, 5, 64] {
        assert_eq!(count("\r\n", chunk), 0);
        assert_eq!(count("\r\n\r\n", chunk), 1);
        assert_eq!(count("\r\n\r\n\r\n\r\n", chunk), 2);
        assert_eq!(count(&format!("\r\n\r\n{INVITE}\r\n\r\n"), chunk), 2);
        assert_eq!(count(&format!("\r\n{INVITE}\r\n{ACK}\r\n"), chunk), 0);
    }
}

#[test]
fn two_requests_in_one_torture_file_are_two_messages() {
    let Some(stream) = corpus::read("rfc4475/dblreq") else {
        return;
    };
    let (items, _) = items(&stream, 10);
    assert_eq!(
        items
            .iter()
            .filter(|item| matches!(item, StreamItem::Message(_)))
            .count(),
        2
    );
}

#[test]
fn without_content_length_the_message_ends_with_its_head() {
    let (items, error) = items((ACK.to_owned() + ACK).as_bytes(), 9);
    assert_eq!((items.len(), error), (2, None));
}

#[test]
fn a_body_of_unknown_length_ends_the_stream() {
    // "The Content-Length header field MUST be used with stream oriented transports" (RFC 3261
    // section 18.3): what is behind this head may be its body or the next message.
    let without = INVITE.replace("Content-Length: 5\r\n", "");
    let (items, error) = items((without + ACK).as_bytes(), 9);
    assert_eq!((items.len(), error), (0, Some(FrameError::ContentLength)));
}

#[test]
fn an_unusable_length_gives_the_message_for_its_answer_and_then_the_end() {
    for bad in [
        "-1",
        "5 5",
        "+5",
        "0x5",
        "",
        "2147483648",
        "4294967296",
        "4294967328",
        "18446744073709551621",
        "5\r\nl: 6",
    ] {
        let stream = INVITE.replace("Length: 5", &format!("Length: {bad}")) + ACK;
        for chunk in [1, 1000] {
            let (items, error) = items(stream.as_bytes(), chunk);
            assert_eq!(
                (items.len(), error),
                (1, Some(FrameError::ContentLength)),
                "{bad}"
            );
            let StreamItem::Message(last) = &items[0] else {
                panic!("a ping")
            };
            assert!(last.content_length_fault(), "{bad}");
            assert_eq!(last.check().unwrap_err().status, 400, "{bad}");
        }
    }
}

#[test]
fn the_end_of_a_stream_is_final() {
    let mut framer = Framer::new(MAX_MESSAGE);
    framer.push(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    for _ in 0..3 {
        assert_eq!(framer.next(), Err(FrameError::Parse(ParseError::StartLine)));
        framer.push(INVITE.as_bytes());
    }
}

#[test]
fn a_message_too_long_ends_the_stream_before_it_is_stored() {
    let long = INVITE.replace("Length: 5", "Length: 70000");
    let (found, error) = items(long.as_bytes(), 50);
    assert_eq!((found.len(), error), (1, Some(FrameError::TooLong)));
    let endless = format!("INVITE {}", "a".repeat(200_000));
    let mut framer = Framer::new(1000);
    framer.push(&endless.as_bytes()[..900]);
    assert_eq!(framer.next(), Ok(None));
    framer.push(&endless.as_bytes()[900..1100]);
    assert_eq!(framer.next(), Err(FrameError::TooLong));
    assert!(framer.next().is_err());
}

#[test]
fn a_long_message_in_single_octets_is_not_scanned_again_and_again() {
    // Quadratic work over these octets would be 4e9 steps.
    let long = format!(
        "INVITE sip:a SIP/2.0\r\nX: {}\r\n\r\n",
        "\r\n ".repeat(21_000)
    );
    assert!(long.len() < MAX_MESSAGE);
    let (items, error) = items(long.as_bytes(), 1);
    assert_eq!((items.len(), error), (1, None));
}

#[test]
fn sip_over_a_stream_waits_for_its_body() {
    let mut framer = Framer::new(MAX_MESSAGE);
    let Some(stream) = corpus::read("rfc4475/clerr") else {
        return;
    };
    framer.push(&stream);
    assert_eq!((framer.next(), framer.is_partial()), (Ok(None), true));
}

fn stream() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(INVITE.as_bytes().to_vec()),
        Just(ACK.as_bytes().to_vec()),
        Just(b"\r\n".to_vec()),
        Just(b"\r\n\r\n".to_vec()),
        Just(b"\n".to_vec()),
        Just(b"\r".to_vec()),
        proptest::collection::vec(any::<u8>(), 0..8),
        (0..64_usize).prop_map(|index| {
            let message: Option<(_, Message)> = messages().nth(index);
            message.map_or_else(Vec::new, |(_, message)| message.bytes().to_vec())
        }),
    ];
    proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn how_a_stream_is_cut_makes_no_difference(stream in stream(), chunk in 1..200_usize) {
        prop_assert_eq!(items(&stream, chunk), items(&stream, stream.len()));
    }
}
