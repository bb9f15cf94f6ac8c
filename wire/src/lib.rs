//! Bytes to types and back for everything that crosses a machine border; pure.
//!
//! One module a protocol. Each has a view, `Packet` or its like, that checks a header once and then reads
//! it where it lies, and a plain `Repr` of the header's values that can build it again. Views never
//! allocate and never panic, whatever the bytes; what they refuse has its reason in
//! [`error::DecodeError`].
//!
//! A packet on its way: [`ip`] reads the user agent's packet, [`icmp`] knows the errors worth
//! tunnelling, [`mark`] stamps the relay into it and [`gre`] wraps it, in UDP where
//! [`encapsulation`] says so; [`probe`] tests the same tunnel.
//! [`rtp`] looks into media, and [`relay_control`] is how the concentrator tells relays what to do;
//! [`core_link`] is what concentrators say to each other, and [`bencode`] is what rtpengine and its users speak instead.
#![forbid(unsafe_code)]

pub mod bencode;
pub mod checksum;
pub mod core_link;
pub mod encapsulation;
pub mod error;
pub mod gre;
pub mod icmp;
pub mod ip;
pub mod mark;
pub mod probe;
pub mod relay_control;
pub mod rtp;
