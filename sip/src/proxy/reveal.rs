//! Which edge a request came by, told in the answer to an OPTIONS to those who may know.
//!
//! The operator's own vantage points ask with an OPTIONS to the service. Who is not on the list is
//! told nothing, and cannot see that there is something to be told. The answer goes to the address that
//! the request came from, so a forged source learns nothing either.

use std::collections::HashMap;

use wire::gre::TunnelKey;

use super::Proxy;
use super::routing::{Network, is_in};
use crate::hop::Hop;

/// The header field: the edge's name and the mark, `edge1;mark=1`.
pub const HEADER: &str = "X-Sipcast-Edge";
/// What it holds for a request that came without a tunnel, or without a mark.
pub const NO_EDGE: &str = "-";

/// Who may know, and what the edges are called.
#[derive(Debug, Clone, Default)]
pub struct Reveal {
    /// Addresses that are told; without any nobody is.
    pub to: Vec<Network>,
    /// The names of the edges, by their keys.
    pub names: HashMap<TunnelKey, String>,
}

impl Proxy {
    /// From now on these are told by which edge they came.
    pub fn reveal_edges(&mut self, reveal: Reveal) {
        self.reveal = reveal;
    }

    /// The value of the header field, where this sender may know it.
    pub(super) fn revealed(&self, hop: &Hop) -> Option<String> {
        let Reveal { to, names } = &self.reveal;
        if !is_in(to, hop.flow.peer.ip()) {
            return None;
        }
        let Some(relay) = hop.relay else {
            return Some(NO_EDGE.to_owned());
        };
        let name = names.get(&relay.key);
        let name = name.map_or_else(|| relay.key.to_string(), |name| token(name));
        Some(format!("{name};mark={}", relay.mark))
    }
}

/// A name as a token of SIP (RFC 3261 section 25.1): what cannot be in one becomes `_`.
fn token(name: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-.!%*_+`'~".contains(c);
    name.chars()
        .map(|c| if fits(c) { c } else { '_' })
        .collect()
}
