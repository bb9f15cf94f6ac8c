//! A stock Kamailio, in the foreground and with its files in one folder.

use std::path::Path;

use anyhow::Result;

use crate::namespace::Namespace;
use crate::process::Process;

/// How much memory it may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// Of all its processes together, in MiB.
    pub(crate) shared_mib: u32,
    /// Of each of them, in MiB.
    pub(crate) private_mib: u32,
}

/// Enough for a few calls.
pub(crate) const SMALL: Memory = Memory {
    shared_mib: 64,
    private_mib: 8,
};

/// Starts it with `folder/kamailio.cfg`, listening on `listen` (`udp:ADDRESS:PORT`); `define` names
/// what the config may ask for by `#!ifdef`.
pub(crate) fn start(
    namespace: &Namespace,
    listen: &str,
    memory: Memory,
    define: Option<&str>,
    folder: &Path,
) -> Result<Process> {
    let here = folder.to_string_lossy();
    let (shared, private) = (
        memory.shared_mib.to_string(),
        memory.private_mib.to_string(),
    );
    let mut arguments = vec!["-f", "kamailio.cfg", "-DD", "-E", "-l", listen];
    arguments.extend(["-m", &shared, "-M", &private]);
    arguments.extend(["-w", &here, "-Y", &here, "-P", "kamailio.pid"]);
    arguments.extend(define.iter().flat_map(|define| ["-A", define]));
    Process::start(namespace, "kamailio", "kamailio", &arguments, folder)
}
