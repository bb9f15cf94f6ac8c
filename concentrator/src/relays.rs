//! The concentrator's side of relay control.
//!
//! `pool` decides and remembers: which rtp-agent serves which relay, the leases in stock, the
//! requests under way. `server` is the listener that the rtp-agents dial.

pub mod pool;
pub mod server;
