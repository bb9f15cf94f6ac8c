//! What all XDP programs here have in common: loaded, attached to interfaces, told of the devices, counted.

use aya::maps::{Map, MapData, MapError, PerCpuArray};
use aya::programs::{TestRun as _, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader, TestRunOptions};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

use super::devices::Devices;
use super::tables::Count;
use super::{Mode, XdpError, take};
use crate::links::Link;

/// Bytes that a packet may grow by, and more, for [`Loaded::run`].
const GROWTH: usize = 256;

/// A loaded program; detached when this is dropped.
pub(super) struct Loaded {
    program: Ebpf,
    name: &'static str,
    devices: Devices,
    counts: PerCpuArray<MapData, Count>,
    id: u32,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded")
            .field("name", &self.name)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Loaded {
    /// Loads the program of this name, with what the loader has been told.
    pub(super) fn load(
        loader: &mut EbpfLoader<'_>,
        object: &[u8],
        name: &'static str,
    ) -> Result<Self, XdpError> {
        if object.is_empty() {
            return Err(XdpError::NotBuilt);
        }
        // Before Linux 5.11 maps count as locked memory. Where that cannot be raised, loading may fail.
        let _refused = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
        // Nothing in it depends on the kernel's own structures.
        let mut program = loader.btf(None).load(object)?;
        let xdp = named(&mut program, name)?;
        xdp.load()?;
        let id = xdp.info()?.id();
        Ok(Self {
            devices: Devices::take(&mut program)?,
            counts: take(&mut program, "counts")?,
            program,
            name,
            id,
        })
    }

    /// A map of the program.
    pub(super) fn map<M: TryFrom<Map, Error = MapError>>(
        &mut self,
        name: &'static str,
    ) -> Result<M, XdpError> {
        take(&mut self.program, name)
    }

    /// Attaches it to this interface.
    pub(super) fn attach(&mut self, interface: &str, mode: Mode) -> Result<(), XdpError> {
        // No name has a zero in it; aya would panic.
        if interface.contains('\0') {
            return Err(XdpError::NoInterface);
        }
        let mode = match mode {
            Mode::Native => XdpMode::Driver,
            Mode::Generic => XdpMode::Skb,
        };
        named(&mut self.program, self.name)?.attach(interface, mode)?;
        Ok(())
    }

    /// True when this program is on this device.
    pub(super) fn is_attached(&self, link: &Link) -> bool {
        link.xdp_program == Some(self.id)
    }

    /// The devices of this machine as they are now; true when they were others before.
    pub(super) fn set_links(
        &mut self,
        links: &[Link],
        interfaces: &[String],
    ) -> Result<bool, XdpError> {
        self.devices.set(links, interfaces)
    }

    /// What became of all packets so far, in the order of the program's outcomes.
    pub(super) fn counts<const OUTCOMES: usize>(&self) -> Result<[Count; OUTCOMES], XdpError> {
        let mut sums = [Count::default(); OUTCOMES];
        for (index, sum) in (0..).zip(&mut sums) {
            for count in self.counts.get(&index, 0)?.iter() {
                sum.packets += count.packets;
                sum.bytes += count.bytes;
            }
        }
        Ok(sums)
    }

    /// Runs the program once on a frame as if it had come to the device of this number, for tests and
    /// measurements: its return value, the frame afterwards, and how many nanoseconds it took.
    pub(super) fn run(&self, frame: &[u8], device: u32) -> Result<(u32, Vec<u8>, u64), XdpError> {
        let program = self.program.program(self.name);
        let program = program.ok_or(XdpError::Mismatch(self.name))?;
        let program: &Xdp = program.try_into()?;
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

fn named<'a>(program: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, XdpError> {
    let found = program.program_mut(name).ok_or(XdpError::Mismatch(name))?;
    Ok(found.try_into()?)
}
