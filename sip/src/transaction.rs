//! The transactions of RFC 3261 section 17 with RFC 6026, one machine a file.

pub mod client_invite;
pub mod client_non_invite;
pub mod server_invite;
pub mod server_non_invite;
