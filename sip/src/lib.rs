//! SIP as state machines: messages, transactions, proxy, registrar; pure.
#![forbid(unsafe_code)]

pub mod cookie;
pub mod digest;
pub mod hop;
pub mod key;
pub mod message;
mod own_id;
pub mod proxy;
pub mod registrar;
pub mod resolve;
pub mod sdp;
mod text;
pub mod timer;
pub mod transaction;
