//! rtpengine's `ng` control protocol, so that a stock Kamailio or OpenSIPS drives this relay.
//!
//! ```text
//! datagram ─► envelope ─► request ─► server ─► calls ─► Relay
//!                                      │         └ gates, description
//!             reply   ◄────────────────┴ cookies: a copy of a request gets the same reply
//! ```
//!
//! Pure but for [`listener`]: bytes, source and time in, bytes out. [`server::Server`] judges the source and
//! the cookie, [`request`] turns whatever spelling into one [`request::Request`], [`calls`] follows the offers
//! and answers of each call and takes its ports from [`crate::relay::Relay`]. What goes out to a party is
//! the description that came in, pointed here by [`sip::sdp::Sdp::rewrite`].
//!
//! The protocol has no authentication: only sources of configured networks are heard, all others get no
//! answer. Media stay as strict as under a concentrator: nothing is sent to an address because an SDP names
//! it, and [`gates`] decides from where a party's media may come.
//!
//! `docs/ng.md` says what is done and what is not.

pub mod calls;
pub mod cookies;
pub mod description;
pub mod envelope;
pub mod gates;
pub mod listener;
pub mod metrics;
pub mod query;
pub mod reply;
pub mod request;
pub mod server;
pub mod settings;

#[cfg(test)]
mod tests;
