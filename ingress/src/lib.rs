//! sipcast-ingress: captures the packets to the service address, marks them and tunnels them.
//!
//! A packet's way: the kernel routes it into the TUN device; [`eventloop`] reads it;
//! [`classify`] looks at its header; [`forwarder`] stamps the mark and adds the tunnel header, and
//! [`choice`] says which concentrator gets it;
//! [`limits`] say who may send, and how fast. [`eventloop`] sends both. [`fastpath`] has an XDP program do
//! all this in the driver for plain packets. [`probes`] know whether somebody is at the other end, and
//! [`announcer`] has the route there that the BGP speaker redistributes. There is no state about calls, connections or
//! senders. Replies do not come back this way, unless [`return_path`] is the way that they have: the
//! concentrator sends them directly, from the service address. [`reload`] changes the tunnel's key.
#![forbid(unsafe_code)]

pub mod announcement;
pub mod announcer;
pub mod choice;
pub mod classify;
pub mod config;
pub mod eventloop;
pub mod fastpath;
pub mod forwarder;
pub mod limits;
pub mod metrics;
pub mod probes;
pub mod reload;
pub mod return_path;
