//! The transactions of RFC 3261 section 17 and RFC 6026, in virtual time.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod clock;
mod layer;
mod lossy_pair;
mod messages;
mod timetables;
mod transitions;
