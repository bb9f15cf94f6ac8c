//! What crosses an interface: dumpcap in a namespace. (tcpdump would change its user, which it may
//! not where the lab runs without root.)

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::frame::{Packet, read_pcap};
use crate::namespace::Namespace;
use crate::process::Process;
use crate::wait;

/// A capture that is running.
#[derive(Debug)]
pub(crate) struct Capture {
    process: Process,
    file: PathBuf,
}

impl Capture {
    /// Starts one on `device` and waits until it sees packets.
    pub(crate) fn start(namespace: &Namespace, device: &str, folder: &Path) -> Result<Self> {
        let file = folder.join(format!("{}.pcap", namespace.name()));
        let path = file.to_string_lossy();
        let arguments = [
            "-q",
            "-P",
            "-B",
            "8",
            "-i",
            device,
            "-f",
            "ip or ip6",
            "-w",
            &path,
        ];
        let name = format!("dumpcap-{}", namespace.name());
        let mut process = Process::start(namespace, &name, "dumpcap", &arguments, folder)?;
        wait::until(
            &format!("{name} to listen"),
            Duration::from_secs(10),
            || {
                process.check_alive()?;
                Ok(process.log().contains("File: ").then_some(()))
            },
        )?;
        Ok(Self { process, file })
    }

    /// What it has seen so far.
    pub(crate) fn so_far(&self) -> Result<Vec<Packet>> {
        let bytes = fs::read(&self.file).with_context(|| self.file.display().to_string())?;
        read_pcap(&bytes)
    }

    /// Ends it; fails when the kernel could not keep up, because then nothing can be counted.
    pub(crate) fn stop(mut self) -> Result<Vec<Packet>> {
        self.process.stop()?;
        let log = self.process.log();
        ensure!(
            log.contains("/0 (pcap:0/dumpcap:0/"),
            "the capture {} is not complete: {log}",
            self.file.display()
        );
        self.so_far()
    }

    /// The file.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }
}
