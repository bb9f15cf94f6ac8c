//! RFC 3261 by its sections: each test quotes the sentence that it checks.
//!
//! The transactions of section 17 have a test crate of their own, `transaction`; messages (7, 20,
//! 25) are in `message`. What does not apply to this proxy is listed in `docs/sip.md`.

mod pass_through;
#[path = "../common/phones.rs"]
mod phones;
mod section_10_3;
mod section_11;
mod section_16_10;
mod section_16_12;
mod section_16_3;
mod section_16_4;
mod section_16_5;
mod section_16_6;
mod section_16_7;
mod section_16_8;
mod section_16_9;
mod section_18;
mod section_18_1_1;
mod section_22;
mod section_8_2;
mod section_9;
#[path = "../common/text.rs"]
mod text;
#[path = "../common/world.rs"]
mod world;
