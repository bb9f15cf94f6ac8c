//! The two servers, each with its relay.

use std::fs;
use std::net::SocketAddrV4;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::network::{CONTROL, MEDIA, Network, Service};
use crate::process::Process;
use crate::service::{
    KEY1, MARK1, Program, RELAY_PORTS, concentrator_config, ingress_config, relay_config,
    start_program,
};
use crate::topology::two_edges::{EDGE1, SERVICE};
use crate::{certs, kamailio, rtpengine, wait};

const NG_PORT: u16 = 2223;
/// Longer than some round trips to the relay.
const READY: Duration = Duration::from_secs(15);

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Sipcast,
    Kamailio,
}

impl Kind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Sipcast => "sipcast",
            Self::Kamailio => "kamailio",
        }
    }

    /// How its packets reach it.
    pub(super) const fn service(self) -> Service {
        match self {
            Self::Sipcast => Service::BehindTheEdge,
            Self::Kamailio => Service::AtTheServer,
        }
    }
}

/// One of them, running, with its relay; they end when this is dropped.
pub(super) struct Server(Vec<Process>);

impl Server {
    /// Starts both and waits until they serve.
    pub(super) fn start(net: &Network, kind: Kind, folder: &Path) -> Result<Self> {
        match kind {
            Kind::Sipcast => sipcast(net, folder),
            Kind::Kamailio => with_rtpengine(net, folder),
        }
        .context(kind.name())
    }

    pub(super) fn check_alive(&mut self) -> Result<()> {
        self.0.iter_mut().try_for_each(Process::check_alive)
    }
}

fn sipcast(net: &Network, folder: &Path) -> Result<Server> {
    let own = |name: &'static str| (name, vec![name.to_owned()]);
    certs::write_all(folder, &[own("c1"), own("relay1")])?;
    let start = |namespace, name, program, admin, config: String| -> Result<Program> {
        let mut program = start_program(namespace, name, program, admin, &config, folder)?;
        program.wait_until_healthy(namespace)?;
        Ok(program)
    };
    let concentrator = start(
        &net.server,
        "concentrator",
        "sipcast-concentrator",
        9102,
        concentrator_config() + "[media]\nrelay = \"always\"\n",
    )?;
    let ingress = start(
        &net.edge,
        "ingress1",
        "sipcast-ingress",
        9101,
        ingress_config(KEY1, MARK1, EDGE1),
    )?;
    let relay = start(
        &net.relay,
        "relay1",
        "sipcast-rtp-agent",
        9103,
        relay_config("relay1", MEDIA),
    )?;
    wait::until("the relay to have prepared leases", READY, || {
        let status = concentrator.status(&net.server)?;
        let relays = status["relays"].as_array();
        let ready = relays.is_some_and(|relays| {
            let mut leases = relays.iter().filter_map(|relay| relay["leases"].as_u64());
            leases.any(|leases| leases > 0)
        });
        Ok(ready.then_some(()))
    })
    .with_context(|| relay.process.last_lines(5))?;
    let programs = [concentrator, ingress, relay];
    Ok(Server(programs.map(|program| program.process).into()))
}

/// With the configuration of its package.
fn with_rtpengine(net: &Network, folder: &Path) -> Result<Server> {
    let ng = SocketAddrV4::new(CONTROL, NG_PORT);
    let settings = rtpengine::Settings {
        media: MEDIA,
        ng,
        ports: RELAY_PORTS,
        log_level: 3,
    };
    fs::create_dir_all(folder)?;
    let relay = rtpengine::start(&net.relay, &settings, folder)?;
    let kamailio = kamailio::start_stock(&net.server, SERVICE, ng, true, folder)
        .with_context(|| relay.last_lines(5))?;
    Ok(Server(vec![kamailio, relay]))
}
