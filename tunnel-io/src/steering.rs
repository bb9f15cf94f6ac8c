//! A BPF program of the kind `sk_lookup` that puts the datagrams of many UDP ports into a few sockets.
//!
//! The object is built from `rtp-agent/bpf/ports.bpf.c`; its maps and variables are named here. It is
//! attached to the network namespace of the calling thread by a link that the kernel takes away with this
//! process, however it ends. Other programs of this kind may be attached beside it.
//!
//! Needs Linux 5.9, CAP_BPF and CAP_NET_ADMIN (or CAP_SYS_ADMIN) of the initial user namespace.

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};

/// Embeds an object, aligned as [`Steering::attach`] needs it.
pub use aya::include_bytes_aligned;
use aya::maps::{Array, MapData, MapError, PerCpuArray, SockMap};
use aya::programs::{ProgramError, SkLookup};
use aya::{Ebpf, EbpfError, EbpfLoader, Pod};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use tracing::debug;

use crate::shared_ports::{Family, SharedReceiver};

/// Owners that the program's map of sockets has room for.
pub const MAX_OWNERS: usize = 64;
/// The program counts datagrams in windows of 2^27 ns.
const WINDOW_NS: u64 = 1 << 27;

/// Why datagrams cannot be steered here.
#[derive(Debug, thiserror::Error)]
pub enum SteeringError {
    /// The object is empty.
    #[error("this program was built without clang, so it has no BPF program")]
    NotBuilt,
    /// The kernel does not take the program, or its user may not ask for it.
    #[error(
        "the kernel does not take the BPF program; it needs Linux 5.9 and CAP_BPF with CAP_NET_ADMIN"
    )]
    Load(#[source] Box<EbpfError>),
    /// The same, when it is verified or attached.
    #[error(
        "the kernel does not run the BPF program; it needs Linux 5.9 and CAP_BPF with CAP_NET_ADMIN"
    )]
    Attach(#[source] io::Error),
    /// The object has other maps than this file knows.
    #[error("the BPF program and this one do not fit together: {0}")]
    Mismatch(&'static str),
    /// A map refused a value.
    #[error("a BPF map refuses a value")]
    Map(#[from] MapError),
    /// The sockets behind the program.
    #[error("cannot open a socket to steer to")]
    Socket(#[from] io::Error),
}

impl From<EbpfError> for SteeringError {
    fn from(error: EbpfError) -> Self {
        Self::Load(Box::new(error))
    }
}

impl From<ProgramError> for SteeringError {
    fn from(error: ProgramError) -> Self {
        if let ProgramError::LoadError {
            io_error,
            verifier_log,
        } = error
        {
            debug!(%verifier_log, "the BPF program is refused");
            return Self::Attach(io_error);
        }
        if let ProgramError::SyscallError(error) = error {
            return Self::Attach(error.io_error);
        }
        Self::Attach(io::Error::other(error))
    }
}

/// Which datagrams are steered.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Those to one of these addresses, at most one of each family; they need not be on this host.
    pub addresses: Vec<IpAddr>,
    /// And to a port from the first to the second.
    pub ports: (u16, u16),
    /// Datagrams a second that the two ports of a pair may get together; what is above is dropped.
    pub pair_limit: u32,
}

/// What the program has dropped since it was attached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SteeringDrops {
    /// For ports that nobody has open.
    pub unopened: u64,
    /// Above the limit of a pair.
    pub flood: u64,
}

/// `struct pair` of the program.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Pair {
    owner: u32,
    count: u32,
    window: u64,
}

// SAFETY: plain integers without padding, laid out as in C.
unsafe impl Pod for Pair {}

/// The attached program; detached when this is dropped.
pub struct Steering {
    pairs: Array<MapData, Pair>,
    dropped: PerCpuArray<MapData, u64>,
    _program: Ebpf,
    _sinks: Vec<SharedReceiver>,
}

impl std::fmt::Debug for Steering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Steering").finish_non_exhaustive()
    }
}

impl Steering {
    /// Loads and attaches the program. `owners` are the sockets of each owner, at most [`MAX_OWNERS`];
    /// no pair of ports has an owner yet.
    pub fn attach(
        object: &[u8],
        plan: &Plan,
        owners: &[Vec<SharedReceiver>],
    ) -> Result<Self, SteeringError> {
        if object.is_empty() {
            return Err(SteeringError::NotBuilt);
        }
        if owners.len() > MAX_OWNERS {
            return Err(SteeringError::Mismatch("too many owners"));
        }
        // Before Linux 5.11 maps count as locked memory. Where that cannot be raised, loading may fail.
        let _refused = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
        let mut program = load(object, plan)?;
        let pairs = take(&mut program, "pairs")?;
        let dropped = take(&mut program, "dropped")?;
        let mut sockets = SockMap::try_from(
            program
                .map_mut("sockets")
                .ok_or(SteeringError::Mismatch("no map `sockets`"))?,
        )?;
        let mut sinks = Vec::new();
        for &address in &plan.addresses {
            sinks.push(SharedReceiver::open_sink(Family::of(address))?);
        }
        let all = sinks.iter().map(|sink| (0, sink));
        let owned = owners
            .iter()
            .zip(1..)
            .flat_map(|(sockets, owner)| sockets.iter().map(move |socket| (owner, socket)));
        for (owner, socket) in all.chain(owned) {
            let index = owner * 2 + u32::from(socket.family() == Family::V6);
            sockets.set(index, &RawFdOf(socket), 0)?;
        }
        let steer = program.program_mut("steer");
        let steer = steer.ok_or(SteeringError::Mismatch("no program `steer`"))?;
        let steer: &mut SkLookup = steer.try_into()?;
        steer.load()?;
        steer.attach(File::open("/proc/thread-self/ns/net")?)?;
        Ok(Self {
            pairs,
            dropped,
            _program: program,
            _sinks: sinks,
        })
    }

    /// From now on this owner gets what comes to the pair of ports that `port` is of.
    pub fn give(&mut self, port: u16, owner: usize) -> io::Result<()> {
        let owner = u32::try_from(owner + 1).map_err(io::Error::other)?;
        let pair = Pair {
            owner,
            ..Pair::default()
        };
        self.set(port, pair)
    }

    /// From now on what comes to that pair is dropped.
    pub fn take_back(&mut self, port: u16) -> io::Result<()> {
        self.set(port, Pair::default())
    }

    fn set(&mut self, port: u16, pair: Pair) -> io::Result<()> {
        let index = u32::from(port / 2);
        self.pairs.set(index, pair, 0).map_err(io::Error::other)
    }

    /// What it has dropped.
    pub fn drops(&self) -> io::Result<SteeringDrops> {
        let count = |index| -> io::Result<u64> {
            let counters = self.dropped.get(&index, 0).map_err(io::Error::other)?;
            Ok(counters.iter().sum())
        };
        Ok(SteeringDrops {
            unopened: count(0)?,
            flood: count(1)?,
        })
    }
}

/// Loads the object with its variables set.
fn load(object: &[u8], plan: &Plan) -> Result<Ebpf, SteeringError> {
    let (mut ipv4, mut ipv6) = (0_u32, [0_u32; 4]);
    for address in &plan.addresses {
        match address {
            IpAddr::V4(v4) => ipv4 = u32::from_ne_bytes(v4.octets()),
            IpAddr::V6(v6) => {
                for (word, octets) in ipv6.iter_mut().zip(v6.octets().as_chunks::<4>().0) {
                    *word = u32::from_ne_bytes(*octets);
                }
            }
        }
    }
    let (first, last) = (u32::from(plan.ports.0), u32::from(plan.ports.1));
    let limit = u64::from(plan.pair_limit) * WINDOW_NS / 1_000_000_000;
    let limit = u32::try_from(limit).unwrap_or(u32::MAX).max(1);
    let program = EbpfLoader::new()
        // Nothing in it depends on the kernel's own structures.
        .btf(None)
        .override_global("media_ipv4", &ipv4, true)
        .override_global("media_ipv6", &ipv6[..], true)
        .override_global("first_port", &first, true)
        .override_global("last_port", &last, true)
        .override_global("window_limit", &limit, true)
        .load(object)?;
    Ok(program)
}

fn take<M: TryFrom<aya::maps::Map, Error = MapError>>(
    program: &mut Ebpf,
    name: &'static str,
) -> Result<M, SteeringError> {
    let map = program.take_map(name);
    Ok(map.ok_or(SteeringError::Mismatch(name))?.try_into()?)
}

/// aya asks for the older trait.
struct RawFdOf<'a>(&'a SharedReceiver);

impl std::os::fd::AsRawFd for RawFdOf<'_> {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        use std::os::fd::AsFd as _;
        self.0.as_fd().as_raw_fd()
    }
}

/// UDP sockets of any program that are bound to a port of the plan at one of its addresses, or at all
/// addresses: once the program is attached they hear nothing any more.
pub fn listeners(plan: &Plan) -> io::Result<Vec<SocketAddr>> {
    let mut found = Vec::new();
    for (file, parse) in [
        ("udp", parse_v4 as fn(&str) -> Option<IpAddr>),
        ("udp6", parse_v6),
    ] {
        // Without IPv6 the second one is not there.
        let Ok(table) = std::fs::read_to_string(format!("/proc/thread-self/net/{file}")) else {
            continue;
        };
        found.extend(in_table(&table, parse, plan));
    }
    Ok(found)
}

fn in_table<'a>(
    table: &'a str,
    parse: fn(&str) -> Option<IpAddr>,
    plan: &'a Plan,
) -> impl Iterator<Item = SocketAddr> + 'a {
    table.lines().skip(1).filter_map(move |line| {
        let mut fields = line.split_whitespace();
        let (address, port) = fields.nth(1)?.split_once(':')?;
        let state = fields.nth(1)?;
        let local = SocketAddr::new(parse(address)?, u16::from_str_radix(port, 16).ok()?);
        let is_steered = (plan.ports.0..=plan.ports.1).contains(&local.port())
            && (local.ip().is_unspecified() || plan.addresses.contains(&local.ip()));
        // 7: not connected. A connected socket keeps what its peer sends.
        (is_steered && state == "07").then_some(local)
    })
}

/// Words of 32 bits in the byte order of the machine, in hexadecimal.
fn parse_v4(text: &str) -> Option<IpAddr> {
    let word = u32::from_str_radix(text, 16).ok()?;
    Some(IpAddr::from(word.to_ne_bytes()))
}

fn parse_v6(text: &str) -> Option<IpAddr> {
    let mut octets = [0; 16];
    for (index, chunk) in octets.chunks_exact_mut(4).enumerate() {
        let word = u32::from_str_radix(text.get(index * 8..index * 8 + 8)?, 16).ok()?;
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    Some(IpAddr::from(octets))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            addresses: vec!["10.99.0.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            ports: (30_000, 39_999),
            pair_limit: 1_000,
        }
    }

    #[test]
    fn only_unconnected_sockets_on_our_addresses_and_ports_are_in_the_way() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue
    1: 0100630A:7530 00000000:0000 07 00000000:00000000 00:00000000 00000000
    2: 00000000:7531 00000000:0000 07 00000000:00000000 00:00000000 00000000
    3: 0200630A:7530 00000000:0000 07 00000000:00000000 00:00000000 00000000
    4: 0100630A:9C40 00000000:0000 07 00000000:00000000 00:00000000 00000000
    5: 0100630A:7532 0200630A:0035 01 00000000:00000000 00:00000000 00000000
    6: nonsense
";
        let plan = plan();
        let found: Vec<_> = in_table(table, parse_v4, &plan).collect();
        let expected = ["10.99.0.1:30000", "0.0.0.0:30001"];
        assert_eq!(found, expected.map(|text| text.parse().unwrap()));
        let table = "
    1: B80D0120000000000000000001000000:7530 00000000000000000000000000000000:0000 07
    2: 0000000000000000FFFF00000100007F:7530 00000000000000000000000000000000:0000 07";
        let found: Vec<_> = in_table(table, parse_v6, &plan).collect();
        assert_eq!(found, ["[2001:db8::1]:30000".parse().unwrap()]);
    }

    #[test]
    fn a_socket_of_this_process_is_found() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let local = socket.local_addr().unwrap();
        let plan = Plan {
            addresses: vec![local.ip()],
            ports: (local.port(), local.port()),
            ..plan()
        };
        assert_eq!(listeners(&plan).unwrap(), [local]);
    }

    #[test]
    fn a_program_built_without_clang_says_so() {
        let error = Steering::attach(&[], &plan(), &[]).unwrap_err();
        assert!(error.to_string().contains("clang"), "{error}");
    }
}
