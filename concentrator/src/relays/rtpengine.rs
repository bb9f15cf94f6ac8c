//! A stock rtpengine as an edge's relay, over its `ng` protocol.
//!
//! Towards the pool this is one more agent: it says Hello, keeps the stock of leases filled, carries
//! out Bind, Update and Release and reports the end of sessions. Towards rtpengine it prepares each
//! lease with an `offer` and an `answer` whose SDP it makes up, under a call-id of its own; rtpengine
//! names a pair of ports for each side, and they stay the session's for as long as it lives. So a call
//! takes a lease from memory and no SIP worker ever waits for rtpengine; a Bind becomes a second offer
//! and answer with what is known of the parties.
//!
//! * [`client`] decides; pure.
//! * `exchange` is requests over UDP: cookies, retransmission, deadlines.
//! * `message` makes requests and reads answers.
//! * [`task`] is the socket.
//!
//! `docs/rtpengine.md` says what of rtpengine 10.5 this relies on.

use std::fmt;
use std::net::SocketAddr;

pub mod client;
mod exchange;
mod message;
mod session;
pub mod task;

/// Where an rtpengine listens for `ng`, and which of its interfaces media use.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// Its `listen-ng`.
    pub address: SocketAddr,
    /// One of the names in its `interface`; its first where absent.
    pub interface: Option<String>,
}

/// The name of its agent in logs, metrics and `/status`; no certificate can have it.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rtpengine@{}", self.address)?;
        match &self.interface {
            Some(interface) => write!(f, "/{interface}"),
            None => Ok(()),
        }
    }
}

/// True where `Ended` without a silence and without a request of ours means that another concentrator has
/// released the session; an rtpengine may have forgotten it.
pub fn tells_why(agent: &str) -> bool {
    kind_of(agent) != "rtpengine"
}

/// What kind of relay an agent of this name is.
pub fn kind_of(agent: &str) -> &'static str {
    match agent.split_once('@') {
        Some(("rtpengine", _)) => "rtpengine",
        Some(_) | None => "rtp-agent",
    }
}

#[cfg(test)]
mod tests;
