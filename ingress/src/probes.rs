//! Probes: is there a concentrator at the far end of the tunnel, and how is it?
//!
//! A probe is a packet in the tunnel like any other, with our key and our mark, so that an answer
//! says that the tunnel works, acceptance table and all; the answer comes back outside of it, to our
//! own address. [`path`] is the state machine of the way to one concentrator, [`paths`] has one for
//! each and makes the packets, [`socket`] is where answers arrive, [`watch`] drives it all.

pub mod path;
pub mod paths;
pub mod socket;
pub mod watch;
