//! The whole proxy under bad input: torture messages, what broke other implementations, mutated
//! messages, injected header fields, strangers.

#![expect(clippy::expect_used, reason = "a test may panic")]

#[path = "../common/corpus.rs"]
mod corpus;
mod injection;
mod judge;
mod known_defects;
mod mutation;
mod rules;
#[path = "../common/text.rs"]
mod text;
mod torture;
#[path = "../common/world.rs"]
mod world;
