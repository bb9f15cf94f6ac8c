//! A network namespace with the interfaces of a relay, and the program with entries for some streams.
//!
//! `edge0` leads to most phones, `core0` to some, `vlan0` to others; what is at their other ends nobody asks.
//! Not every kernel has VLANs, so `vlan0` is a device that the program takes for VLAN 100 of `edge0`.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use rtp_agent::fastpath::{PROGRAM, to_stream};
use rtp_agent::reception::{Reception, RtpFields};
use tunnel_io::links::{self, Vlan};
use tunnel_io::xdp::XdpError;
use tunnel_io::xdp::relay::{Plan, RelayXdp, allow_lookups};
use tunnel_io::xdp::relay_tables::{Entry, Key};

/// The Ethernet address of `edge0` and its VLAN.
pub(crate) const EDGE_MAC: [u8; 6] = [2, 0, 0, 0, 1, 2];
pub(crate) const PORTS: (u16, u16) = (30_000, 30_099);
pub(crate) const LARGEST: usize = 1_450;
pub(crate) const TTL: u8 = 64;

const SET_UP: &str = "
    link add edge0 type veth peer name peer0
    link add core0 type veth peer name peer1
    link set edge0 address 02:00:00:00:01:02 up
    link set core0 address 02:00:00:00:02:02 up
    link set peer0 up
    link set peer1 up
    link add vlan0 type veth peer name peer2
    link set vlan0 address 02:00:00:00:01:02 up
    link set peer2 up
    addr add 10.0.1.2/24 dev edge0
    addr add 10.0.2.2/24 dev core0
    addr add 10.0.3.2/24 dev vlan0
    addr add fd00:1::2/64 dev edge0 nodad
    addr add fd00:2::2/64 dev core0 nodad
    neigh replace 10.0.1.1 lladdr 02:00:00:00:01:01 dev edge0 nud permanent
    neigh replace 10.0.2.1 lladdr 02:00:00:00:02:01 dev core0 nud permanent
    neigh replace 10.0.3.1 lladdr 02:00:00:00:03:01 dev vlan0 nud permanent
    neigh replace fd00:1::1 lladdr 02:00:00:00:01:01 dev edge0 nud permanent
    neigh replace fd00:2::1 lladdr 02:00:00:00:02:01 dev core0 nud permanent
    route add 192.0.2.0/24 via 10.0.1.1
    route add 198.51.100.0/24 via 10.0.2.1
    route add 203.0.113.0/25 via 10.0.3.1
    route add 203.0.113.128/25 via 10.0.1.77
    route add 2001:db8:1::/48 via fd00:1::1
    route add 2001:db8:2::/48 via fd00:2::1
";

/// Where the way out of an entry leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// `edge0`, untagged.
    Edge,
    /// `core0`.
    Core,
    /// `vlan0`.
    Vlan,
    /// The next hop does not answer.
    NoNeighbour,
    /// There is no route.
    NoRoute,
}

impl Way {
    /// The Ethernet header of what leaves.
    pub(crate) fn header(self, ether_type: u16) -> Vec<u8> {
        let (to, from, tag): ([u8; 6], [u8; 6], &[u8]) = match self {
            Self::Core => ([2, 0, 0, 0, 2, 1], [2, 0, 0, 0, 2, 2], &[]),
            Self::Vlan => ([2, 0, 0, 0, 3, 1], EDGE_MAC, &[0x81, 0, 0, 100]),
            Self::Edge | Self::NoNeighbour | Self::NoRoute => ([2, 0, 0, 0, 1, 1], EDGE_MAC, &[]),
        };
        [&to[..], &from, tag, &ether_type.to_be_bytes()].concat()
    }
}

/// Whence, the port of ours, out of which, where to, by what way.
pub(crate) const STREAMS: [(&str, &str, &str, &str, Way); 9] = [
    (
        "192.0.2.10:4000",
        "10.0.1.2:30000",
        "10.0.1.2:30002",
        "192.0.2.20:5000",
        Way::Edge,
    ),
    (
        "192.0.2.20:5000",
        "10.0.1.2:30002",
        "10.0.1.2:30000",
        "198.51.100.9:65535",
        Way::Core,
    ),
    (
        "[2001:db8:1::a]:4000",
        "[fd00:1::2]:30004",
        "[fd00:1::2]:30006",
        "[2001:db8:2::b]:1",
        Way::Core,
    ),
    (
        "[2001:db8:2::b]:4000",
        "[fd00:1::2]:30006",
        "[fd00:1::2]:30004",
        "[2001:db8:1::ffff]:9",
        Way::Edge,
    ),
    (
        "192.0.2.11:4000",
        "10.0.1.2:30008",
        "[fd00:1::2]:30010",
        "[2001:db8:1::c]:7",
        Way::Edge,
    ),
    (
        "[2001:db8:1::c]:7",
        "[fd00:1::2]:30010",
        "10.0.1.2:30008",
        "192.0.2.11:4000",
        Way::Edge,
    ),
    (
        "203.0.113.5:4000",
        "10.0.1.2:30012",
        "10.0.1.2:30014",
        "203.0.113.6:4000",
        Way::Vlan,
    ),
    (
        "192.0.2.12:4000",
        "10.0.1.2:30016",
        "10.0.1.2:30018",
        "203.0.113.200:4000",
        Way::NoNeighbour,
    ),
    (
        "192.0.2.12:4000",
        "10.0.1.2:30018",
        "10.0.1.2:30016",
        "100.64.0.1:4000",
        Way::NoRoute,
    ),
];

/// A stream that the program relays, and the same in the relay's own code.
pub(crate) struct Stream {
    pub(crate) key: Key,
    pub(crate) entry: Entry,
    pub(crate) way: Way,
    pub(crate) reception: Reception,
}

/// Everything that a test needs.
pub(crate) struct Rig {
    pub(crate) xdp: RelayXdp,
    pub(crate) streams: Vec<Stream>,
    pub(crate) edge: u32,
}

impl Rig {
    pub(crate) fn new(stream_limit: u32) -> Self {
        let mut xdp = RelayXdp::load(PROGRAM, &plan(stream_limit)).unwrap();
        allow_lookups(&["10.0.1.2".parse().unwrap(), "fd00:1::2".parse().unwrap()]).unwrap();
        let mut links = links::list().unwrap();
        let edge = links
            .iter()
            .find(|link| link.name == "edge0")
            .unwrap()
            .index;
        let vlan = links.iter_mut().find(|link| link.name == "vlan0").unwrap();
        vlan.vlan = Some(Vlan {
            parent: edge,
            protocol: 0x8100,
            id: 100,
        });
        let interfaces = ["edge0", "core0"].map(str::to_owned);
        xdp.set_links(&links, &interfaces).unwrap();
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let mut streams = Vec::new();
        for ((remote, local, source, destination, way), number) in STREAMS.into_iter().zip(1u32..) {
            let key = Key {
                local: at(local),
                remote: at(remote),
            };
            let entry = Entry {
                source: at(source),
                destination: at(destination),
                ssrc: 0x1000_0000 + number,
                hop_limit: TTL,
            };
            let mut reception = Reception::default();
            let first = RtpFields {
                ssrc: entry.ssrc,
                sequence: 65_500,
                timestamp: 1_000,
                payload_type: 0,
            };
            reception.record(first, since_start(0));
            let progress = reception.progress().unwrap();
            let mut stream = to_stream(&progress);
            stream.last_ns = 0;
            xdp.insert(&key, &entry, &stream).unwrap();
            streams.push(Stream {
                key,
                entry,
                way,
                reception,
            });
        }
        Self { xdp, streams, edge }
    }
}

fn plan(stream_limit: u32) -> Plan {
    Plan {
        ports: PORTS,
        stream_limit,
        largest_payload: LARGEST as u32,
    }
}

/// The kernel's monotonic clock as the relay's code wants it. Only differences mean anything.
pub(crate) fn since_start(nanoseconds: u64) -> std::time::Instant {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    *START.get_or_init(std::time::Instant::now) + Duration::from_nanos(nanoseconds)
}

/// Runs the test on a thread that is alone in a new network namespace, which vanishes with it. Where the
/// program cannot be loaded it says SKIP, which is a failure where CI=true.
#[expect(clippy::print_stderr, reason = "a skipped test must be seen")]
pub(crate) fn in_own_namespace(test: impl FnOnce() + Send + 'static) {
    if let Some(why) = obstacle() {
        assert_ne!(
            std::env::var("CI").as_deref(),
            Ok("true"),
            "SKIP is an error in CI: {why}"
        );
        eprintln!("SKIP: {why}");
        return;
    }
    let body = move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        for line in SET_UP.lines().filter(|line| !line.trim().is_empty()) {
            let status = Command::new("ip").args(line.split_whitespace()).status();
            assert!(status.unwrap().success(), "ip {line}");
        }
        test();
    };
    std::thread::spawn(body).join().unwrap();
}

fn obstacle() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root for a network namespace and BPF".to_owned());
    }
    match RelayXdp::load(PROGRAM, &plan(1)) {
        Ok(_) => None,
        // A kernel that may be asked and does not like the program is no reason to skip anything.
        Err(XdpError::Refused(error)) if error.raw_os_error() != Some(nix::libc::EPERM) => {
            panic!("the kernel refuses the program: {error}")
        }
        Err(error) => Some(error.to_string()),
    }
}
