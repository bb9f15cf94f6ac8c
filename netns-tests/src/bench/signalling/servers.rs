//! The two servers, and the CPU that they use.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::network::{DIRECT, Network};
use crate::process::Process;
use crate::service::{
    AUTHENTICATION, KEY1, MARK1, Program, concentrator_config, ingress_config, start_program,
    write_users,
};
use crate::topology::two_edges::{EDGE1, SERVICE};
use crate::{certs, kamailio};

const KAMAILIO_CONFIG: &str = include_str!("kamailio.cfg");

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Sipcast,
    Kamailio,
}

pub(super) const SIPCAST: Kind = Kind::Sipcast;
pub(super) const KAMAILIO: Kind = Kind::Kamailio;

impl Kind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Sipcast => "sipcast",
            Self::Kamailio => "kamailio",
        }
    }
}

/// One of them, running.
pub(super) struct Server {
    running: Running,
    folder: PathBuf,
}

enum Running {
    Sipcast {
        concentrator: Program,
        ingress: Program,
    },
    Kamailio(Process),
}

/// CPU used so far, in seconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cpu {
    pub(super) server_s: f64,
    pub(super) ingress_s: f64,
}

impl Cpu {
    pub(super) fn since(self, before: Self) -> Self {
        Self {
            server_s: self.server_s - before.server_s,
            ingress_s: self.ingress_s - before.ingress_s,
        }
    }
}

impl Server {
    /// Starts it and waits until it serves.
    pub(super) fn start(net: &Network, kind: Kind, folder: &Path) -> Result<Self> {
        Self::start_for(net, kind, &[], folder)
    }

    /// The same; where there are users, each must give its password to register.
    pub(super) fn start_for(
        net: &Network,
        kind: Kind,
        users: &[(&str, &str)],
        folder: &Path,
    ) -> Result<Self> {
        let folder = folder.join(kind.name());
        fs::create_dir_all(&folder)?;
        let running = match kind {
            Kind::Sipcast => sipcast(net, users, &folder)?,
            Kind::Kamailio => start_kamailio(net, !users.is_empty(), &folder)?,
        };
        Ok(Self { running, folder })
    }

    /// Where the phones send to.
    pub(super) fn address(&self) -> Ipv4Addr {
        match self.running {
            Running::Sipcast { .. } => SERVICE,
            Running::Kamailio(_) => DIRECT,
        }
    }

    /// Where its files are.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Of the server itself.
    pub(super) fn resident_bytes(&self) -> Result<u64> {
        match &self.running {
            Running::Sipcast { concentrator, .. } => concentrator.process.resident_bytes(),
            Running::Kamailio(process) => process.resident_bytes(),
        }
    }

    /// Calls that the concentrator has seen answered.
    pub(super) fn answered_calls(&self, net: &Network) -> Result<u64> {
        let Running::Sipcast { concentrator, .. } = &self.running else {
            return Ok(0);
        };
        let metrics = concentrator.metrics(&net.proxy)?;
        let answered = metrics
            .iter()
            .find(|(name, _)| name.contains("call_answered"));
        Ok(answered.map_or(0, |(_, value)| *value as u64))
    }

    pub(super) fn cpu_time(&self) -> Result<Cpu> {
        let (server, ingress) = match &self.running {
            Running::Sipcast {
                concentrator,
                ingress,
            } => (
                concentrator.process.cpu_time_of_tree()?,
                ingress.process.cpu_time()?,
            ),
            Running::Kamailio(process) => (process.cpu_time_of_tree()?, Default::default()),
        };
        Ok(Cpu {
            server_s: server.as_secs_f64(),
            ingress_s: ingress.as_secs_f64(),
        })
    }
}

/// All load comes from one address, for which there is a bound otherwise.
const ALL_FROM_ONE: &str = "[sip]\nmax_transactions_per_source = 1000000\n";

fn sipcast(net: &Network, users: &[(&str, &str)], folder: &Path) -> Result<Running> {
    certs::write(folder, &["c1".into()])?;
    let mut config = concentrator_config() + ALL_FROM_ONE + "[media]\nrelay = \"never\"\n";
    if !users.is_empty() {
        write_users(folder, users)?;
        config += AUTHENTICATION;
    }
    let mut concentrator = start_program(
        &net.proxy,
        "concentrator",
        "sipcast-concentrator",
        9102,
        &config,
        folder,
    )?;
    concentrator.wait_until_healthy(&net.proxy)?;
    let config = ingress_config(KEY1, MARK1, EDGE1);
    let mut ingress = start_program(
        &net.edge,
        "ingress1",
        "sipcast-ingress",
        9101,
        &config,
        folder,
    )?;
    ingress.wait_until_healthy(&net.edge)?;
    Ok(Running::Sipcast {
        concentrator,
        ingress,
    })
}

fn start_kamailio(net: &Network, authenticate: bool, folder: &Path) -> Result<Running> {
    fs::write(folder.join("kamailio.cfg"), KAMAILIO_CONFIG)?;
    let listen = format!("udp:{DIRECT}:5060");
    // Shared memory for some seconds of transactions at the highest rate.
    let memory = kamailio::Memory {
        shared_mib: 1024,
        private_mib: 16,
    };
    let define = authenticate.then_some("WITH_AUTH");
    let process = kamailio::start(&net.proxy, &listen, memory, define, folder)?;
    Ok(Running::Kamailio(process))
}
