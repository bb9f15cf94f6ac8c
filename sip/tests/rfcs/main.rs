//! The standards beside RFC 3261, a file each; each test quotes the sentence that it checks.

#![expect(clippy::expect_used, reason = "a test may panic")]

mod rfc3581;
mod rfc4320;
mod rfc5393;
mod rfc5630;
mod rfc5658;
mod rfc6026;
#[path = "../common/text.rs"]
mod text;
#[path = "../common/world.rs"]
mod world;
