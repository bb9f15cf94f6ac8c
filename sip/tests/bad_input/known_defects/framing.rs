//! Lengths: where a message ends must be the same for everybody.

use bytes::Bytes;

use super::FULL;
use crate::judge::world_for;
use crate::world::{ALICE, World, parse, request, summary};

/// Values that an implementation might read as 5, or as nothing.
const LIES: [&str; 20] = [
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "4294967301",
    "4294967328",
    "9223372036854775808",
    "18446744073709551616",
    "18446744073709551621",
    "99999999999999999999999999999999",
    "-1",
    "+5",
    "5 5",
    "5,5",
    "0x5",
    "5.0",
    "5e0",
    "5;",
    "\"5\"",
    "five",
];

fn with_length(length: &str) -> String {
    FULL.replace("Content-Length: 5", &format!("Content-Length: {length}"))
}

/// No such Content-Length makes a message over UDP (GHSA-c6j5, CVE-2023-28097).
#[test]
fn a_length_that_lies_is_a_400_over_udp() {
    for length in LIES {
        let bytes = Bytes::from(with_length(length));
        let mut world = world_for(&bytes);
        let sent = world.receive(ALICE, &bytes);
        assert_eq!(summary(&sent), ["400 -> alice"], "{length}");
        world.assert_all_forgotten();
    }
}

/// Over a stream it ends the stream, and what stands behind is never taken for a message
/// (CVE-2026-23457: the length cut to 32 bits made a second message of the body).
#[test]
fn a_length_that_lies_smuggles_no_second_message() {
    let smuggled = request("MESSAGE", "sip:callee@example.com", "z9hG4bKsmuggled", "");
    for length in LIES {
        let bytes = Bytes::from([with_length(length).into_bytes(), smuggled.clone()].concat());
        let mut world = world_for(&bytes);
        world.tcp = true;
        let (sent, closed, partial) = world.receive_stream(ALICE, &bytes);
        for transmit in &sent {
            assert!(
                !parse(transmit).is_request(),
                "{length}: {:?}",
                summary(&sent)
            );
        }
        assert!(closed.is_some() || partial, "{length}");
        assert!(sent.len() <= 1, "{length}: {:?}", summary(&sent));
        world.assert_all_forgotten();
    }
}

/// Zeros ahead of a length change nothing, on either side of 32 bits' worth of digits.
#[test]
fn leading_zeros_are_no_lie() {
    for length in ["05", "0000000005", "00000000000000000000000000000000000005"] {
        let second = request("MESSAGE", "sip:callee@example.com", "z9hG4bKsecond", "");
        let bytes = Bytes::from([with_length(length).into_bytes(), second].concat());
        let mut world = world_for(&bytes);
        world.tcp = true;
        let (sent, closed, partial) = world.receive_stream(ALICE, &bytes);
        assert_eq!(
            summary(&sent),
            ["100 -> alice", "INVITE -> bob", "MESSAGE -> bob"],
            "{length}"
        );
        assert_eq!((closed, partial), (None, false));
    }
}

/// Two lengths, or one hidden behind another spelling, end the stream (RFC 4475 section 3.3.9).
#[test]
fn two_lengths_smuggle_no_second_message() {
    let smuggled = request("MESSAGE", "sip:callee@example.com", "z9hG4bKsmuggled", "");
    for lines in [
        "Content-Length: 5\r\nContent-Length: 0",
        "Content-Length: 0\r\nl: 5",
        "l:5\r\nCONTENT-LENGTH : 0",
        "Content-Length: 0\r\n 5",
    ] {
        let first = FULL.replace("Content-Length: 5", lines);
        let bytes = Bytes::from([first.into_bytes(), smuggled.clone()].concat());
        let mut world = world_for(&bytes);
        world.tcp = true;
        let (sent, closed, _) = world.receive_stream(ALICE, &bytes);
        assert!(closed.is_some(), "{lines}");
        assert_eq!(summary(&sent), ["400 -> alice"], "{lines}");
    }
}

/// Start lines and header fields of tens of kilobytes over a stream (CVE-2016-2385), and beyond the
/// limit: the stream ends, nothing is kept.
#[test]
fn long_lines_are_whole_or_end_the_stream() {
    for (length, taken) in [
        (200, true),
        (255, true),
        (256, true),
        (60_000, true),
        (70_000, false),
    ] {
        let long = "u".repeat(length);
        for (from, to) in [
            ("sip:callee@", format!("sip:{long}@")),
            ("Expires: 120", format!("X: {long}")),
            ("100rel", long.clone()),
        ] {
            let bytes = Bytes::from(FULL.replace(from, &to));
            let mut world = World::new();
            world.tcp = true;
            let (sent, closed, partial) = world.receive_stream(ALICE, &bytes);
            if taken {
                assert_eq!(summary(&sent), ["404 -> alice"], "{length}");
            } else {
                assert_eq!((sent.len(), partial), (0, false), "{length}");
                assert!(closed.is_some());
            }
            world.assert_all_forgotten();
        }
    }
}
