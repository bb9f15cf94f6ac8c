//! A pair of agents with one name, one set of media addresses and one table of sessions.
//!
//! The media addresses are moved between the two hosts by keepalived (VRRP) or by BGP. The agent whose
//! host has them is *active*: it speaks with the concentrators, under the name of the pair. The other
//! one *stands by*: it has the same sessions with their sockets open in advance (IP_FREEBIND), so that
//! it relays from the first packet that reaches its host. What signalling says and what is learnt from
//! packets is told to it as it changes.
//!
//! Pure: [`journal`] (what is still to be told), [`duty`] (who is active), [`pair`] (the protocol with
//! the other agent, `docs/standby.md`). IO: [`link`] (TLS connection to the other agent and the watch for
//! the addresses), which [`crate::eventloop`] starts where the section `[standby]` is configured.

pub mod duty;
pub mod journal;
pub mod link;
pub mod pair;
