//! The BPF program (XDP) that is the fast path of the ingress, on the interfaces that it is given.
//!
//! The object is built from `ingress/bpf/ingress.bpf.c`; [`tables`] has its maps. This side fills them and
//! reads the counters. The program is attached by links that the kernel takes away with this process,
//! however it ends; `bpftool link detach` takes one away earlier, and [`Xdp::is_attached`] shows it.
//!
//! Needs Linux 5.18, CAP_BPF and CAP_NET_ADMIN (or CAP_SYS_ADMIN) of the initial user namespace.

pub mod tables;

use std::collections::HashMap as StdHashMap;
use std::hash::Hash;
use std::io;
use std::net::IpAddr;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray};
use aya::programs::{ProgramError, TestRun as _, XdpMode};
use aya::{Ebpf, EbpfError, EbpfLoader, Pod, TestRunOptions};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use tracing::debug;

use crate::links::Link;
use tables::{
    Arrival, Count, Departure, Device, MAX_CANDIDATES, MAX_SOURCES, Outcome, RawSettings, RawTag,
    Rule, Settings, octets,
};

/// Bytes that a packet may grow by, and more, for [`Xdp::run`].
const GROWTH: usize = 256;

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

/// The loaded program; detached when this is dropped.
pub struct Xdp {
    program: Ebpf,
    settings: Array<MapData, RawSettings>,
    active: Array<MapData, u32>,
    /// Which of the two settings is good.
    slot: u32,
    rules_ipv4: LpmTrie<MapData, [u8; 4], u32>,
    rules_ipv6: LpmTrie<MapData, [u8; 16], u32>,
    services: HashMap<MapData, [u8; 16], u32>,
    arrivals: Mirror<Arrival, Device>,
    departures: Mirror<u32, Departure>,
    counts: PerCpuArray<MapData, Count>,
    sent: PerCpuArray<MapData, u64>,
    id: u32,
}

impl std::fmt::Debug for Xdp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Xdp").field("id", &self.id).finish()
    }
}

impl Xdp {
    /// Loads the program. It leaves all packets to the kernel until it has settings and links.
    pub fn load(object: &[u8]) -> Result<Self, XdpError> {
        if object.is_empty() {
            return Err(XdpError::NotBuilt);
        }
        // Before Linux 5.11 maps count as locked memory. Where that cannot be raised, loading may fail.
        let _refused = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
        // Nothing in it depends on the kernel's own structures.
        let mut program = EbpfLoader::new().btf(None).load(object)?;
        let ingress = ingress(&mut program)?;
        ingress.load()?;
        let id = ingress.info()?.id();
        Ok(Self {
            settings: take(&mut program, "settings")?,
            active: take(&mut program, "active")?,
            slot: 0,
            rules_ipv4: take(&mut program, "rules_ipv4")?,
            rules_ipv6: take(&mut program, "rules_ipv6")?,
            services: take(&mut program, "services")?,
            arrivals: Mirror::new(take(&mut program, "arrivals")?),
            departures: Mirror::new(take(&mut program, "departures")?),
            counts: take(&mut program, "counts")?,
            sent: take(&mut program, "sent")?,
            program,
            id,
        })
    }

    /// Attaches it to this interface.
    pub fn attach(&mut self, interface: &str, mode: Mode) -> Result<(), XdpError> {
        // No name has a zero in it; aya would panic.
        if interface.contains('\0') {
            return Err(XdpError::NoInterface);
        }
        let mode = match mode {
            Mode::Native => XdpMode::Driver,
            Mode::Generic => XdpMode::Skb,
        };
        ingress(&mut self.program)?.attach(interface, mode)?;
        Ok(())
    }

    /// True when this program is on this device.
    pub fn is_attached(&self, link: &Link) -> bool {
        link.xdp_program == Some(self.id)
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
        let slot = 1 - self.slot;
        self.settings.set(slot, RawSettings::from(settings), 0)?;
        self.active.set(0, slot, 0)?;
        self.slot = slot;
        Ok(())
    }

    /// The devices of this machine as they are now. Packets come and go by the interfaces that are named,
    /// tagged for a VLAN (or one in another) or not.
    pub fn set_links(&mut self, links: &[Link], interfaces: &[String]) -> Result<(), XdpError> {
        let (mut arrivals, mut departures) = (StdHashMap::new(), StdHashMap::new());
        for link in links {
            let Some((interface, tags)) = tags_of(link, links) else {
                continue;
            };
            let (Some(mac), true) = (link.mac, interfaces.contains(&interface.name)) else {
                continue;
            };
            let tag_count = tags.iter().filter(|tag| **tag != RawTag::default()).count();
            let interface = interface.index;
            let device = Device {
                index: link.index,
                mac,
                unused: 0,
            };
            arrivals.insert(Arrival { interface, tags }, device);
            let departure = Departure {
                interface,
                tag_count: if tag_count > 1 { 2 } else { tag_count as u32 },
                tags,
            };
            departures.insert(link.index, departure);
        }
        self.arrivals.set(arrivals)?;
        self.departures.set(departures)
    }

    /// What became of all packets so far, in the order of [`Outcome::ALL`].
    pub fn counts(&self) -> Result<[Count; Outcome::ALL.len()], XdpError> {
        let mut sums = [Count::default(); Outcome::ALL.len()];
        for (index, sum) in (0..).zip(&mut sums) {
            for count in self.counts.get(&index, 0)?.iter() {
                sum.packets += count.packets;
                sum.bytes += count.bytes;
            }
        }
        Ok(sums)
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
        let program = self.program.program("ingress");
        let program = program.ok_or(XdpError::Mismatch("no program `ingress`"))?;
        let program: &aya::programs::Xdp = program.try_into()?;
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [0, frame.len() as u32, 0, device, 0, 0];
        let context: Vec<u8> = context.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut out = vec![0; frame.len() + GROWTH];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        options.ctx_in = Some(&context);
        let result = program.test_run(options)?;
        out.truncate(result.data_size_out as usize);
        let nanoseconds = result.duration.as_nanos() as u64;
        Ok((result.return_value, out, nanoseconds))
    }
}

/// The interface under a device, and the tags, the outermost first. `None` where there are more than two.
fn tags_of<'a>(link: &'a Link, links: &'a [Link]) -> Option<(&'a Link, [RawTag; 2])> {
    let (mut at, mut tags) = (link, Vec::new());
    while let Some(vlan) = at.vlan {
        if tags.len() == 2 {
            return None;
        }
        tags.insert(0, [vlan.protocol.to_be_bytes(), vlan.id.to_be_bytes()]);
        at = links.iter().find(|other| other.index == vlan.parent)?;
    }
    tags.resize(2, RawTag::default());
    Some((at, tags.try_into().ok()?))
}

/// A map of which this side knows the content.
struct Mirror<K, V> {
    map: HashMap<MapData, K, V>,
    content: StdHashMap<K, V>,
}

impl<K: Pod + Eq + Hash, V: Pod + PartialEq> Mirror<K, V> {
    fn new(map: HashMap<MapData, K, V>) -> Self {
        Self {
            map,
            content: StdHashMap::new(),
        }
    }

    fn set(&mut self, wanted: StdHashMap<K, V>) -> Result<(), XdpError> {
        for key in self.content.keys() {
            if !wanted.contains_key(key) {
                self.map.remove(key)?;
            }
        }
        for (key, value) in &wanted {
            if self.content.get(key) != Some(value) {
                self.map.insert(key, value, 0)?;
            }
        }
        self.content = wanted;
        Ok(())
    }
}

fn ingress(program: &mut Ebpf) -> Result<&mut aya::programs::Xdp, XdpError> {
    let ingress = program.program_mut("ingress");
    let ingress = ingress.ok_or(XdpError::Mismatch("no program `ingress`"))?;
    Ok(ingress.try_into()?)
}

fn take<M: TryFrom<aya::maps::Map, Error = MapError>>(
    program: &mut Ebpf,
    name: &'static str,
) -> Result<M, XdpError> {
    let map = program.take_map(name);
    Ok(map.ok_or(XdpError::Mismatch(name))?.try_into()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::links::Vlan;

    fn link(index: u32, vlan: Option<(u32, u16)>) -> Link {
        Link {
            index,
            name: format!("eth{index}"),
            mac: Some([2, 0, 0, 0, 0, index as u8]),
            vlan: vlan.map(|(parent, id)| Vlan {
                parent,
                protocol: 0x8100,
                id,
            }),
            xdp_program: None,
        }
    }

    #[test]
    fn a_vlan_in_a_vlan_has_two_tags_and_one_more_is_not_ours() {
        let links = [
            link(1, None),
            link(2, Some((1, 100))),
            link(3, Some((2, 7))),
            link(4, Some((3, 8))),
            link(5, Some((99, 1))),
        ];
        let tags = |index: usize| tags_of(&links[index], &links).map(|(at, tags)| (at.index, tags));
        let (none, outer, inner) = ([[0; 2]; 2], [[0x81, 0], [0, 100]], [[0x81, 0], [0, 7]]);
        assert_eq!(tags(0), Some((1, [none, none])));
        assert_eq!(tags(1), Some((1, [outer, none])));
        assert_eq!(tags(2), Some((1, [outer, inner])));
        assert_eq!((tags(3), tags(4)), (None, None));
    }

    #[test]
    fn a_program_built_without_clang_says_so() {
        let error = Xdp::load(&[]).unwrap_err();
        assert!(error.to_string().contains("clang"), "{error}");
    }
}
