//! Changes of messages as text, so that the tests do not rest on the code that is under test.

#![allow(
    dead_code,
    clippy::expect_used,
    reason = "each test crate uses a part of it; a test may panic"
)]

use sip::message::{HeaderName, Message};

/// The message with one piece of it replaced, which must be there.
pub(crate) fn with(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    let text = String::from_utf8_lossy(bytes).into_owned();
    assert!(text.contains(from), "no {from:?} in {text}");
    text.replacen(from, to, 1).into_bytes()
}

/// The message with lines ahead of its Content-Length.
pub(crate) fn with_lines(bytes: &[u8], lines: &str) -> Vec<u8> {
    with(bytes, "Content-Length:", &format!("{lines}Content-Length:"))
}

/// All values of a header, as they stand.
pub(crate) fn values(message: &Message, name: HeaderName) -> Vec<String> {
    let values = message.values(name);
    values
        .map(|value| String::from_utf8_lossy(&value).into_owned())
        .collect()
}

/// The branch of the top Via.
pub(crate) fn branch(message: &Message) -> String {
    let via = message.top_via().expect("a Via");
    String::from_utf8_lossy(via.branch().expect("a branch")).into_owned()
}
