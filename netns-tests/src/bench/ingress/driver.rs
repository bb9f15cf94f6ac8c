//! Frames as a network card's driver has them: in pages of a pool, in batches, without a socket.
//!
//! The kernel runs the program of `bpf/driver.bpf.c` on pages (BPF_PROG_TEST_RUN with live frames) and sends them out
//! of r1's end of the wire, so they arrive at edge 1 as they are. There XDP has them without a copy, and
//! where there is no program the end's NAPI (`gro on`) makes an skb around the page, as a driver does.

use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::maps::PerCpuArray;
use aya::programs::{TestRun as _, TestRunAttrs, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader, TestRunOptions, include_bytes_aligned};
use serde_json::Value;

use super::{FIRST_SOURCE, RATE};
use crate::namespace::Namespace;
use crate::raw;
use crate::topology::two_edges::{SERVICE, TwoEdges};

static PROGRAMS: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/driver.bpf.o"));

/// Frames that are handed over at once: as many as a driver takes from its ring in one poll.
const BATCH: u32 = 64;
/// Frames of one call, for which the kernel makes a pool of pages.
const BURST: u32 = 4 * BATCH;
/// A device without packets that has the generator. The kernel patches each program that runs somewhere into its own
/// code and waits until no CPU is in the old one; for a program that is nowhere, at each call.
const IDLE: &str = "generator";
const ETHERNET: usize = 14;
/// Octets of Ethernet and IPv4 header.
const HEADERS: usize = ETHERNET + 20;

/// One of the programs at an interface, until this is dropped.
pub(super) struct Attached(Ebpf);

impl Attached {
    /// `sink` counts and drops what belongs to the flood, `drop` only drops it.
    pub(super) fn new(name: &str, namespace: &Namespace, device: &str) -> Result<Self> {
        let service = u32::from_ne_bytes(SERVICE.octets());
        let mut loader = EbpfLoader::new();
        let mut programs = load(loader.override_global("service", &service, true))?;
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

/// Sends datagrams of one length to the service address.
pub(super) struct Generator<'a> {
    net: &'a TwoEdges,
    programs: Ebpf,
    frame: Vec<u8>,
}

impl<'a> Generator<'a> {
    pub(super) fn new(net: &'a TwoEdges, size: usize, sources: u32) -> Result<Self> {
        let (_, to) = device(&net.edge1, "eth0")?;
        let (interface, from) = device(&net.r1, "edge")?;
        let payload = raw::udp(5060, 5060, &vec![b'x'; size - 28]);
        let mut packet = raw::ipv4(Ipv4Addr::UNSPECIFIED, SERVICE, 0, raw::UDP, &payload);
        // The program puts in the checksum, too.
        packet[10..12].fill(0);
        let frame = [&to[..], &from[..], &[8, 0], &packet].concat();
        let headers: [u8; HEADERS] = *frame.first_chunk().context("a frame without headers")?;
        let mut loader = EbpfLoader::new();
        loader
            .override_global("interface", &interface, true)
            .override_global("first_source", &FIRST_SOURCE, true)
            .override_global("sources", &sources, true)
            .override_global("headers", &headers, true);
        let mut programs = load(&mut loader)?;
        net.r1.run(&format!("ip link add {IDLE} type veth"))?;
        net.r1.inside(|| {
            let program = named(&mut programs, "generate")?;
            program.load()?;
            program.attach(IDLE, XdpMode::Skb)?;
            Ok(())
        })?;
        Ok(Self {
            net,
            programs,
            frame,
        })
    }

    /// Says how long it took.
    pub(super) fn flood(&mut self, packets: u32) -> Result<Duration> {
        let program = named(&mut self.programs, "generate")?;
        self.net.r1.inside(|| {
            let start = Instant::now();
            for burst in 0..packets / BURST {
                let mut options = TestRunOptions::new();
                options.data_in = Some(&self.frame);
                options.repeat = BURST;
                options.attrs = TestRunAttrs::new().xdp_live_frames(BATCH);
                program.test_run(options)?;
                let due = start + Duration::from_secs(1) * (burst + 1) * BURST / RATE;
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            Ok(start.elapsed())
        })
    }

    pub(super) fn end(self) -> Result<()> {
        self.net.r1.run(&format!("ip link del {IDLE}")).map(drop)
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
fn device(namespace: &Namespace, name: &str) -> Result<(u32, [u8; 6])> {
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
