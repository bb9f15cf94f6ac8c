//! The BPF programs (XDP) that are the fast paths of the ingress ([`Xdp`]) and of the relay
//! ([`relay::RelayXdp`]), on the interfaces that they are given.
//!
//! The ingress' object is built from `ingress/bpf/ingress.bpf.c`; [`tables`] has its maps. This side fills
//! them and reads the counters. The program is attached by links that the kernel takes away with this process,
//! however it ends; `bpftool link detach` takes one away earlier, and [`Xdp::is_attached`] shows it.
//! What both have in common is in `loaded.rs`, `devices.rs`, [`interfaces`] and `tunnel-io/bpf/`.
//!
//! Needs Linux 5.18, CAP_BPF and CAP_NET_ADMIN (or CAP_SYS_ADMIN) of the initial user namespace.

mod devices;
pub mod interfaces;
mod loaded;
pub mod relay;
pub mod relay_tables;
pub mod tables;

use std::io;
use std::net::IpAddr;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use aya::programs::ProgramError;
use aya::{Ebpf, EbpfError, EbpfLoader};
use tracing::debug;

use crate::links::Link;
use loaded::Loaded;
use tables::{Count, MAX_CANDIDATES, MAX_SOURCES, Outcome, RawSettings, Rule, Settings, octets};

/// Why the program does not run here.
#[derive(Debug, thiserror::Error)]
pub enum XdpError {
    /// The object is empty.
    #[error("this program was built without clang, so it has no BPF program")]
    NotBuilt,
    /// The kernel does not take the maps, or its user may not ask for them.
    #[error(
        "the kernel does not take the BPF program; it needs Linux 5.18 and CAP_BPF with CAP_NET_ADMIN"
    )]
    Load(#[source] Box<EbpfError>),
    /// The same, when the program is verified.
    #[error(
        "the kernel does not run the BPF program; it needs Linux 5.18 and CAP_BPF with CAP_NET_ADMIN"
    )]
    Refused(#[source] io::Error),
    /// The object has other maps than this file knows.
    #[error("the BPF program and this one do not fit together: {0}")]
    Mismatch(&'static str),
    /// A map refused a value.
    #[error("a BPF map refuses a value")]
    Map(#[from] MapError),
    /// There is no such interface.
    #[error("there is no interface of this name")]
    NoInterface,
}

impl From<EbpfError> for XdpError {
    fn from(error: EbpfError) -> Self {
        Self::Load(Box::new(error))
    }
}

impl From<ProgramError> for XdpError {
    fn from(error: ProgramError) -> Self {
        if let ProgramError::LoadError {
            io_error,
            verifier_log,
        } = error
        {
            debug!(%verifier_log, "the BPF program is refused");
            return Self::Refused(io_error);
        }
        if let ProgramError::SyscallError(error) = error {
            return Self::Refused(error.io_error);
        }
        if let ProgramError::UnknownInterface { .. } = error {
            return Self::NoInterface;
        }
        Self::Refused(io::Error::other(error))
    }
}

/// Where in the kernel the program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// In the driver.
    Native,
    /// Behind it, at the cost of what the driver has done by then.
    Generic,
}

impl Mode {
    /// As in configurations.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// The loaded program of the ingress; detached when this is dropped.
pub struct Xdp {
    loaded: Loaded,
    settings: Array<MapData, RawSettings>,
    active: Array<MapData, u32>,
    /// Which of the two settings is good, and what it has.
    slot: u32,
    current: Option<Settings>,
    /// Of the settings and the devices.
    generation: u32,
    rules_ipv4: LpmTrie<MapData, [u8; 4], u32>,
    rules_ipv6: LpmTrie<MapData, [u8; 16], u32>,
    services: HashMap<MapData, [u8; 16], u32>,
    sent: PerCpuArray<MapData, u64>,
}

impl std::fmt::Debug for Xdp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Xdp").field(&self.loaded).finish()
    }
}

impl Xdp {
    /// Loads the program. It leaves all packets to the kernel until it has settings and links.
    pub fn load(object: &[u8]) -> Result<Self, XdpError> {
        let mut loaded = Loaded::load(&mut EbpfLoader::new(), object, "ingress")?;
        Ok(Self {
            settings: loaded.map("settings")?,
            active: loaded.map("active")?,
            slot: 0,
            current: None,
            generation: 0,
            rules_ipv4: loaded.map("rules_ipv4")?,
            rules_ipv6: loaded.map("rules_ipv6")?,
            services: loaded.map("services")?,
            sent: loaded.map("sent")?,
            loaded,
        })
    }

    /// Attaches it to this interface.
    pub fn attach(&mut self, interface: &str, mode: Mode) -> Result<(), XdpError> {
        self.loaded.attach(interface, mode)
    }

    /// True when this program is on this device.
    pub fn is_attached(&self, link: &Link) -> bool {
        self.loaded.is_attached(link)
    }

    /// The addresses whose packets are tunnelled; no more than 256, once.
    pub fn set_services(&mut self, addresses: &[IpAddr]) -> Result<(), XdpError> {
        for address in addresses {
            self.services.insert(octets(*address), 1, 0)?;
        }
        Ok(())
    }

    /// What becomes of sources, by prefix; the longest one counts. Once, and no more than 4096 of each
    /// IP version.
    pub fn set_rules(
        &mut self,
        rules: impl IntoIterator<Item = (IpAddr, u8, Rule)>,
    ) -> Result<(), XdpError> {
        for (address, length, rule) in rules {
            let value = match rule {
                Rule::Allow => 1,
                Rule::Deny => 2,
            };
            let length = u32::from(length);
            match address {
                IpAddr::V4(v4) => {
                    let key = Key::new(length, v4.octets());
                    self.rules_ipv4.insert(&key, value, 0)?;
                }
                IpAddr::V6(v6) => {
                    let key = Key::new(length, v6.octets());
                    self.rules_ipv6.insert(&key, value, 0)?;
                }
            }
        }
        Ok(())
    }

    /// From now on this counts. No packet sees half of it.
    pub fn set_settings(&mut self, settings: &Settings) -> Result<(), XdpError> {
        if settings.candidates.len() > MAX_CANDIDATES {
            return Err(XdpError::Mismatch("too many concentrators"));
        }
        if !(1..=MAX_SOURCES).contains(&settings.sources.len()) {
            return Err(XdpError::Mismatch("no outer source, or too many"));
        }
        self.generation = self.generation.wrapping_add(1);
        let slot = 1 - self.slot;
        let raw = RawSettings::new(settings, self.generation);
        self.settings.set(slot, raw, 0)?;
        self.active.set(0, slot, 0)?;
        self.slot = slot;
        self.current = Some(settings.clone());
        Ok(())
    }

    /// The devices of this machine as they are now. Packets come and go by the interfaces that are named,
    /// tagged for a VLAN (or one in another) or not.
    pub fn set_links(&mut self, links: &[Link], interfaces: &[String]) -> Result<(), XdpError> {
        let is_new = self.loaded.set_links(links, interfaces)?;
        // Ways that the program has found lead to the devices of before.
        match self.current.take() {
            Some(settings) if is_new => self.set_settings(&settings),
            current => {
                self.current = current;
                Ok(())
            }
        }
    }

    /// What became of all packets so far, in the order of [`Outcome::ALL`].
    pub fn counts(&self) -> Result<[Count; Outcome::ALL.len()], XdpError> {
        self.loaded.counts()
    }

    /// Packets to each concentrator so far, by the candidate's place.
    pub fn sent(&self) -> Result<[u64; MAX_CANDIDATES], XdpError> {
        let mut sums = [0; MAX_CANDIDATES];
        for (index, sum) in (0..).zip(&mut sums) {
            *sum = self.sent.get(&index, 0)?.iter().sum();
        }
        Ok(sums)
    }

    /// Runs the program once on a frame as if it had come to the device of this number, for tests and
    /// measurements: its return value, the frame afterwards, and how many nanoseconds it took.
    pub fn run(&self, frame: &[u8], device: u32) -> Result<(u32, Vec<u8>, u64), XdpError> {
        self.loaded.run(frame, device)
    }
}

fn take<M: TryFrom<Map, Error = MapError>>(
    program: &mut Ebpf,
    name: &'static str,
) -> Result<M, XdpError> {
    let map = program.take_map(name);
    Ok(map.ok_or(XdpError::Mismatch(name))?.try_into()?)
}

/// The names in the `enum outcome` of a program's header.
#[cfg(test)]
fn outcome_names(header: &str) -> Vec<&str> {
    let body = header.split("enum outcome {").nth(1).unwrap();
    let lines = body.split('}').next().unwrap().lines();
    lines
        .filter_map(|line| line.trim().strip_suffix(','))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_built_without_clang_says_so() {
        let error = Xdp::load(&[]).unwrap_err();
        assert!(error.to_string().contains("clang"), "{error}");
    }
}
