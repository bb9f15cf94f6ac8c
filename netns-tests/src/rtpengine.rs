//! A stock rtpengine, in the foreground; its packets stay in user space (no kernel module).

use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::command;
use crate::namespace::Namespace;
use crate::process::Process;
use crate::wait;

const READY: Duration = Duration::from_secs(10);

/// How it is to run.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The address of the media.
    pub(crate) media: Ipv4Addr,
    /// Where it hears `ng`.
    pub(crate) ng: SocketAddrV4,
    /// Of the media.
    pub(crate) ports: RangeInclusive<u16>,
    /// 3 is errors, 6 is information.
    pub(crate) log_level: u8,
}

/// Starts it and waits until it hears `ng`.
pub(crate) fn start(namespace: &Namespace, settings: &Settings, folder: &Path) -> Result<Process> {
    ensure!(
        command::found("rtpengine"),
        "rtpengine is missing (Debian package rtpengine-daemon); scripts/setup.sh installs it"
    );
    let Settings {
        media,
        ng,
        ports,
        log_level,
    } = settings;
    let arguments = format!(
        "--config-file=none --foreground --log-stderr --log-level={log_level} --table=-1 \
         --interface={media} --listen-ng={ng} --port-min={} --port-max={}",
        ports.start(),
        ports.end()
    );
    let arguments: Vec<&str> = arguments.split_whitespace().collect();
    let mut process = Process::start(namespace, "rtpengine", "rtpengine", &arguments, folder)?;
    wait::until("rtpengine to listen", READY, || {
        process.check_alive()?;
        let sockets = namespace.run("ss -Hlun")?;
        Ok(sockets.contains(&format!("{ng} ")).then_some(()))
    })
    .with_context(|| process.last_lines(15))?;
    Ok(process)
}

/// What it says of itself, which it does on standard error.
pub(crate) fn version() -> String {
    let output = Command::new("rtpengine").arg("--version").output();
    let said = output.map(|output| output.stderr).unwrap_or_default();
    String::from_utf8_lossy(&said).trim().to_owned()
}
