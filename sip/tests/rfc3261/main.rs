//! RFC 3261 by its sections: each test quotes the sentence that it checks.

mod section_10_3;
#[path = "../common/world.rs"]
mod world;
