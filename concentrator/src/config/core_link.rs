//! `[core_link]`: the other concentrators of this service.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use admin::credentials::Files;
use serde::Deserialize;

use super::checks::is_host_name;
use super::{Edge, Problem, problem};

/// `[core_link]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoreLinkFile {
    /// The address and TCP port that the others dial.
    pub listen: SocketAddr,
    /// PEM, this concentrator's certificate and its chain, with its `name` in it.
    pub certificate: PathBuf,
    /// PEM, its private key.
    pub private_key: PathBuf,
    /// PEM, the authorities whose concentrators are believed.
    pub ca: PathBuf,
    /// Over the NATS servers of `[cluster]` where the others cannot be reached directly.
    #[serde(default = "yes")]
    pub detour: bool,
    /// The others.
    pub peers: Vec<PeerFile>,
}

const fn yes() -> bool {
    true
}

/// `[[core_link.peers]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerFile {
    /// Its `name`, which is in its certificate.
    pub name: String,
    /// Its `core_link.listen`.
    pub address: SocketAddr,
    /// Its `tunnel.listen`.
    pub tunnel: IpAddr,
}

/// The other concentrators of this service, and how to speak with them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoreLink {
    /// Where the others dial.
    pub listen: SocketAddr,
    /// PEM, this concentrator's certificate and its chain.
    pub certificate: PathBuf,
    /// PEM, its private key.
    pub private_key: PathBuf,
    /// PEM, the authorities whose concentrators are believed.
    pub ca: PathBuf,
    /// Whether NATS carries a link whose direct way is gone.
    pub detour: bool,
    /// The others.
    pub peers: Vec<Peer>,
}

/// Another concentrator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The name in its certificate.
    pub name: String,
    /// Where it is dialled.
    pub address: SocketAddr,
    /// The tunnel address of it, which packets of its connections are sent to.
    pub tunnel: IpAddr,
}

impl CoreLink {
    /// The PEM files.
    pub fn files(&self) -> Files<'_> {
        Files {
            certificate: &self.certificate,
            private_key: &self.private_key,
            ca: &self.ca,
        }
    }
}

/// `name` and `tunnel` are this concentrator's.
pub(super) fn check_core_link(
    file: Option<&CoreLinkFile>,
    name: &str,
    tunnel: IpAddr,
    edges: &[Edge],
    folder: &Path,
) -> Result<Option<CoreLink>, Problem> {
    let Some(file) = file else {
        return Ok(None);
    };
    if file.peers.is_empty() {
        return problem(
            "core_link.peers",
            "is empty; name the other concentrators, or leave the section out",
        );
    }
    if !is_host_name(name) {
        let message = format!(
            "{name:?} is not a name as in a certificate (a DNS name), which [core_link] needs"
        );
        return problem("name", message);
    }
    let mut seen = HashSet::from([name]);
    for (place, peer) in file.peers.iter().enumerate() {
        let at = |key: &str| format!("core_link.peers[{place}].{key}");
        if !is_host_name(&peer.name) {
            let name = &peer.name;
            let message = format!("{name:?} is not a name as in a certificate (a DNS name)");
            return problem(at("name"), message);
        }
        if !seen.insert(&peer.name) {
            let name = &peer.name;
            let message =
                format!("{name:?} is this concentrator or named twice; name each other one once");
            return problem(at("name"), message);
        }
        if peer.address.port() == 0 || peer.address.ip().is_unspecified() {
            return problem(
                at("address"),
                "is no address and port of one host; use the other's core_link.listen",
            );
        }
        if peer.tunnel.is_ipv4() != tunnel.is_ipv4() {
            let message = format!(
                "{} is not of the IP version of tunnel.listen; the tunnels of all concentrators have one",
                peer.tunnel
            );
            return problem(at("tunnel"), message);
        }
        let is_edge = |edge: &Edge| edge.sources.iter().any(|net| net.contains(peer.tunnel));
        if peer.tunnel == tunnel || edges.iter().any(is_edge) {
            let message = format!(
                "{} is this concentrator's or an edge's; use the other's tunnel.listen",
                peer.tunnel
            );
            return problem(at("tunnel"), message);
        }
    }
    Ok(Some(CoreLink {
        listen: file.listen,
        certificate: folder.join(&file.certificate),
        private_key: folder.join(&file.private_key),
        ca: folder.join(&file.ca),
        detour: file.detour,
        peers: file
            .peers
            .iter()
            .map(|peer| Peer {
                name: peer.name.clone(),
                address: peer.address,
                tunnel: peer.tunnel,
            })
            .collect(),
    }))
}
