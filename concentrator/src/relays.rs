//! The concentrator's side of relay control.
//!
//! `pool` decides and remembers: which rtp-agent serves which relay, the leases in stock, the
//! requests under way. `server` is the listener that the rtp-agents dial. `rtpengine` stands in for
//! the rtp-agent where an edge's relay is a stock rtpengine.

pub mod pool;
pub mod rtpengine;
pub mod server;
