//! Bytes to types and back for everything that crosses a machine border; pure.
#![forbid(unsafe_code)]

pub mod checksum;
pub mod error;
pub mod gre;
pub mod ip;
pub mod mark;
pub mod relay_control;
