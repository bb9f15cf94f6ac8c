//! A stock Kamailio, in the foreground and with its files in one folder.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::namespace::Namespace;
use crate::process::Process;
use crate::{command, wait};

/// Debian's package installs it.
const STOCK: &str = "/etc/kamailio/kamailio.cfg";
const STOCK_RELAY: &str = "udp:127.0.0.1:2223";
/// The file that the stock configuration imports for what is a site's own.
const LOCAL: &str = "#!define WITH_NAT\n#!define WITH_RTPENGINE\nalias=\"example.com\"\n";
/// What the stock configuration hands over, in both of its cases.
const STOCK_FLAGS: [&str; 2] = [
    "rtpengine_manage(\"SIP-source-address replace-origin replace-session-connection\")",
    "rtpengine_manage(\"replace-origin replace-session-connection\")",
];

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

/// Starts it with the configuration of its package, NAT and rtpengine switched on, and waits until it
/// has found the relay that hears `ng` there. Without `flags`, `rtpengine_manage()` has none.
pub(crate) fn start_stock(
    namespace: &Namespace,
    address: Ipv4Addr,
    relay: SocketAddrV4,
    flags: bool,
    folder: &Path,
) -> Result<Process> {
    ensure!(
        command::found("kamailio") && Path::new(STOCK).is_file(),
        "kamailio or its {STOCK} is missing (Debian package kamailio); scripts/setup.sh installs it"
    );
    // The package makes it for its service.
    fs::create_dir_all("/run/kamailio")?;
    let mut config = fs::read_to_string(STOCK)?;
    ensure!(config.contains(STOCK_RELAY), "{STOCK} is not the stock one");
    config = config.replace(STOCK_RELAY, &format!("udp:{relay}"));
    for stock in STOCK_FLAGS {
        ensure!(config.contains(stock), "{STOCK} has no {stock}");
        if !flags {
            config = config.replace(stock, "rtpengine_manage()");
        }
    }
    fs::write(folder.join("kamailio.cfg"), config)?;
    fs::write(folder.join("kamailio-local.cfg"), LOCAL)?;
    let listen = format!("udp:{address}:5060");
    let process = start(namespace, &listen, SMALL, None, folder)?;
    // Before its first answer to a phone it asks the relay.
    wait::until(
        "Kamailio to find the relay",
        Duration::from_secs(20),
        || {
            let log = process.log();
            Ok(log.contains("found, support for it enabled").then_some(()))
        },
    )
    .with_context(|| process.last_lines(15))?;
    Ok(process)
}

/// What it says of itself.
pub(crate) fn version() -> String {
    let version = command::run("kamailio -v").unwrap_or_default();
    version.lines().next().unwrap_or_default().to_owned()
}
