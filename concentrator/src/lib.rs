//! sipcast-concentrator: decapsulate, SIP proxy and registrar, relay control.

pub mod acceptance;
pub mod cdr;
pub mod cluster;
pub mod config;
pub mod core_link;
pub mod decapsulator;
pub mod dns;
pub mod edge_keys;
pub mod flows;
pub mod location;
pub mod media;
pub mod metrics;
pub mod probes;
pub mod relays;
pub mod reload;
pub mod return_path;
pub mod run;
pub(crate) mod shortcut;
pub mod status;
pub mod transport;
pub mod worker;
