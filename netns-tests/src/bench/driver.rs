//! Frames as a network card's driver has them: in pages of a pool, in batches, without a socket.
//!
//! The kernel runs a program of `bpf/driver.bpf.c` on pages (BPF_PROG_TEST_RUN with live frames) and sends them out
//! of one end of a veth, so they arrive at the other as they are. There XDP has them without a copy, and
//! where there is no program the end's NAPI (`gro on`) makes an skb around the page, as a driver does.

use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::maps::PerCpuArray;
use aya::programs::{TestRun as _, TestRunAttrs, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader, TestRunOptions, include_bytes_aligned};
use serde_json::Value;

use crate::namespace::Namespace;

static PROGRAMS: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/driver.bpf.o"));

/// Frames of one call, for which the kernel makes a pool of pages.
pub(super) const BURST: u32 = 256;
/// A device without packets that has the generator. The kernel patches each program that runs somewhere into its own
/// code and waits until no CPU is in the old one; for a program that is nowhere, at each call.
const IDLE: &str = "generator";

/// One of the programs at an interface, until this is dropped.
pub(super) struct Attached(Ebpf);

impl Attached {
    /// `sink` counts and drops what is for `destination` or in a tunnel, `drop` only drops it.
    pub(super) fn new(
        name: &str,
        namespace: &Namespace,
        device: &str,
        destination: Ipv4Addr,
    ) -> Result<Self> {
        let destination = u32::from_ne_bytes(destination.octets());
        let mut loader = EbpfLoader::new();
        let mut programs = load(loader.override_global("destination", &destination, true))?;
        namespace.inside(|| {
            let program = named(&mut programs, name)?;
            program.load()?;
            program.attach(device, XdpMode::Driver)?;
            Ok(())
        })?;
        Ok(Self(programs))
    }

    /// Frames that `sink` has taken so far.
    pub(super) fn taken(&self) -> Result<u64> {
        let map = self.0.map("taken").context("no map of this name")?;
        let taken = PerCpuArray::<_, u64>::try_from(map)?;
        Ok(taken.get(&0, 0)?.iter().sum())
    }
}

/// How frames come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Frames that are handed over at once: as many as a driver takes from its ring in one poll.
    pub(super) batch: u32,
    /// Frames a second.
    pub(super) rate: u32,
}

/// Sends frames of one kind.
pub(super) struct Generator<'a> {
    namespace: &'a Namespace,
    programs: Ebpf,
    program: &'static str,
    frame: Vec<u8>,
    pace: Pace,
}

impl<'a> Generator<'a> {
    /// The frames that `program` makes of `frame`. The loader has set its `interface`.
    pub(super) fn new(
        namespace: &'a Namespace,
        (program, loader): (&'static str, &mut EbpfLoader<'_>),
        frame: Vec<u8>,
        pace: Pace,
    ) -> Result<Self> {
        let mut programs = load(loader)?;
        namespace.run(&format!("ip link add {IDLE} type veth"))?;
        namespace.inside(|| {
            let program = named(&mut programs, program)?;
            program.load()?;
            program.attach(IDLE, XdpMode::Skb)?;
            Ok(())
        })?;
        Ok(Self {
            namespace,
            programs,
            program,
            frame,
            pace,
        })
    }

    /// To write into its maps.
    pub(super) const fn programs(&mut self) -> &mut Ebpf {
        &mut self.programs
    }

    /// Sends this many at its rate, in whole bursts; says how long it took.
    pub(super) fn send(&mut self, packets: u32) -> Result<Duration> {
        let program = named(&mut self.programs, self.program)?;
        let Pace { batch, rate } = self.pace;
        self.namespace.inside(|| {
            let start = Instant::now();
            for burst in 0..packets / BURST {
                let mut options = TestRunOptions::new();
                options.data_in = Some(&self.frame);
                options.repeat = BURST;
                options.attrs = TestRunAttrs::new().xdp_live_frames(batch);
                program.test_run(options)?;
                let due = start + Duration::from_secs(1) * (burst + 1) * BURST / rate;
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            Ok(start.elapsed())
        })
    }

    /// Takes its device away.
    pub(super) fn end(self) -> Result<()> {
        self.namespace.run(&format!("ip link del {IDLE}")).map(drop)
    }
}

fn load(loader: &mut EbpfLoader<'_>) -> Result<Ebpf> {
    ensure!(
        !PROGRAMS.is_empty(),
        "this program was built without clang, so it has no generator"
    );
    Ok(loader.btf(None).load(PROGRAMS)?)
}

fn named<'a>(programs: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = programs.program_mut(name);
    Ok(program.context("no program of this name")?.try_into()?)
}

/// Its number and Ethernet address.
pub(super) fn device(namespace: &Namespace, name: &str) -> Result<(u32, [u8; 6])> {
    let shown = namespace.run(&format!("ip -j link show dev {name}"))?;
    let shown: Value = serde_json::from_str(&shown)?;
    let index = shown.pointer("/0/ifindex").and_then(Value::as_u64);
    let address = shown.pointer("/0/address").and_then(Value::as_str);
    let (index, address) = index.zip(address).context("a device without an address")?;
    let octets = address
        .split(':')
        .map(|octet| u8::from_str_radix(octet, 16));
    let octets: Vec<u8> = octets.collect::<Result<_, _>>()?;
    let octets = octets.try_into().ok().context("an odd Ethernet address")?;
    Ok((u32::try_from(index)?, octets))
}
