//! A network namespace as a guard.

use std::fs::{self, File};
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::command;

/// A network namespace, gone when this is dropped (and with the sandbox in any case).
#[derive(Debug)]
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one: loopback up, no IPv6 noise, no reverse-path filter.
    pub(crate) fn new(name: &str) -> Result<Self> {
        command::run(&format!("ip netns add {name}"))?;
        let namespace = Self {
            name: name.to_owned(),
        };
        namespace.run("ip link set lo up")?;
        namespace.sysctl("net.ipv6.conf.all.disable_ipv6", "1")?;
        namespace.sysctl("net.ipv6.conf.default.disable_ipv6", "1")?;
        namespace.sysctl("net.ipv4.conf.all.rp_filter", "0")?;
        namespace.sysctl("net.ipv4.conf.default.rp_filter", "0")?;
        Ok(namespace)
    }

    /// One that forwards packets.
    pub(crate) fn router(name: &str) -> Result<Self> {
        let namespace = Self::new(name)?;
        namespace.sysctl("net.ipv4.ip_forward", "1")?;
        // A router here never tells a host of a better path: the paths are the experiment.
        namespace.sysctl("net.ipv4.conf.all.send_redirects", "0")?;
        namespace.sysctl("net.ipv4.conf.default.send_redirects", "0")?;
        Ok(namespace)
    }

    /// Its name, as `ip netns` shows it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Runs a command line in it; the words are separated by spaces.
    pub(crate) fn run(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command")?;
        let mut command = self.command(program);
        command.args(words);
        command::finish(&self.name, line, command, "")
    }

    /// Loads an nftables script in it.
    pub(crate) fn nft(&self, script: &str) -> Result<()> {
        let mut command = self.command("nft");
        command.args(["-f", "-"]);
        command::finish(
            &self.name,
            &format!("nft -f - <<< '{script}'"),
            command,
            script,
        )
        .map(drop)
    }

    /// A command that will run in it. `nsenter` becomes the program, so its process id is the
    /// program's; `ip netns exec` would also want to mount a /sys, which a user may not.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.name))
            .arg("--")
            .arg(program);
        command
    }

    /// Moves the calling thread into it.
    pub(crate) fn enter(&self) -> Result<()> {
        let path = format!("/run/netns/{}", self.name);
        let file = File::open(&path).with_context(|| path.clone())?;
        setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("setns {path}"))
    }

    /// Runs a piece of the lab itself in it, in a thread of its own.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter()?;
                    work()
                })
                .join()
                .map_err(|_| anyhow!("a thread in namespace {} panicked", self.name))?
        })
    }

    /// Sets a kernel parameter of it.
    pub(crate) fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        command::echo(&self.name, &format!("sysctl -w {key}={value}"));
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        self.inside(|| fs::write(&path, value).with_context(|| format!("{key}={value}")))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = command::run(&format!("ip netns del {}", self.name)) {
            command::echo(&self.name, &format!("not removed: {error:#}"));
        }
    }
}
