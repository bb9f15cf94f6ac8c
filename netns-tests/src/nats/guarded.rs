//! Servers with the file of `configs/`, of which only addresses, paths and the password are replaced: TLS,
//! certificates on both sides, and a user who may do no more than a concentrator must.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::Result;

use super::{Host, SERVERS};
use crate::bgp::changed;
use crate::certs;

const RECIPE: &str = include_str!("../../../configs/nats.conf");
const PASSWORD: &str = "right";
/// What concentrators show, in `[cluster]`; their folder is beside that of the servers.
pub(super) const KEYS: &str = "user = \"sipcast\"\npassword_file = \"../nats/password\"\n\
    nats_ca = \"../nats/ca.pem\"\nnats_certificate = \"../nats/client.pem\"\n\
    nats_private_key = \"../nats/client.key\"\n";

/// Certificates of the servers and of a concentrator, and passwords: the right one and a wrong one.
pub(super) fn write_secrets(folder: &Path, addresses: [Ipv4Addr; SERVERS as usize]) -> Result<()> {
    let mut names: Vec<String> = addresses.iter().map(Ipv4Addr::to_string).collect();
    names.dedup();
    let certificates = [("server", names), ("client", vec!["sipcast".to_owned()])];
    certs::write_all(folder, &certificates)?;
    for (file, password) in [("password", PASSWORD), ("wrong-password", "wrong")] {
        let file = folder.join(file);
        fs::write(&file, password)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
    }
    Ok(())
}

impl Host {
    pub(super) fn guarded(&self, folder: &Path) -> Result<String> {
        let folder = folder.canonicalize()?.display().to_string();
        let store = format!("{folder}/{}", self.name);
        let name = format!("server_name: {}", self.name);
        let routes = self
            .routes
            .iter()
            .map(|route| format!("\"nats://{route}\""));
        let routes = routes.collect::<Vec<_>>().join(", ");
        let all_routes =
            "\"nats://10.0.9.11:6222\", \"nats://10.0.9.12:6222\", \"nats://10.0.9.13:6222\"";
        let recipe = changed(
            RECIPE.to_owned(),
            &[
                (all_routes, &routes),
                ("server_name: nats1", &name),
                ("10.0.9.11:4222", &self.clients),
                ("127.0.0.1:8222", &self.pages),
                ("10.0.9.11:6222", &self.routes[self.number]),
                ("/var/lib/nats", &store),
                ("change me", PASSWORD),
            ],
        )?;
        Ok(recipe.replace("/etc/nats", &folder))
    }
}
