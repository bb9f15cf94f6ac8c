//! A network namespace with the interfaces of an edge, and the program with its tables filled.
//!
//! `edge0` leads to the user agents and to the first two concentrators, `core0` to the third one; what is at
//! their other ends nobody asks.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use admin::run::Config as _;
use ingress::config::Config;
use ingress::fastpath::{PROGRAM, settings};
use ingress::forwarder::Forwarder;
use tunnel_io::links::{self, Link};
use tunnel_io::xdp::tables::Settings;
use tunnel_io::xdp::{Xdp, XdpError};

/// The Ethernet addresses.
pub(crate) const EDGE_MAC: [u8; 6] = [2, 0, 0, 0, 1, 2];
pub(crate) const CORE_MAC: [u8; 6] = [2, 0, 0, 0, 2, 2];
pub(crate) const EDGE_ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
pub(crate) const CORE_ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 2, 1];

const SET_UP: &str = "
    link add edge0 type veth peer name peer0
    link add core0 type veth peer name peer1
    link set edge0 address 02:00:00:00:01:02 up
    link set core0 address 02:00:00:00:02:02 up
    link set peer0 up
    link set peer1 up
    addr add 10.0.1.2/24 dev edge0
    addr add 10.0.2.2/24 dev core0
    addr add fd00:1::2/64 dev edge0 nodad
    addr add fd00:2::2/64 dev core0 nodad
    neigh replace 10.0.1.1 lladdr 02:00:00:00:01:01 dev edge0 nud permanent
    neigh replace 10.0.2.1 lladdr 02:00:00:00:02:01 dev core0 nud permanent
    neigh replace fd00:1::1 lladdr 02:00:00:00:01:01 dev edge0 nud permanent
    neigh replace fd00:2::1 lladdr 02:00:00:00:02:01 dev core0 nud permanent
    route add 10.0.9.0/24 via 10.0.1.1
    route add 10.0.8.0/24 via 10.0.2.1
    route add fd00:9::/64 via fd00:1::1
    route add fd00:8::/64 via fd00:2::1
    route add 10.0.7.0/24 via 10.0.1.77
";

/// A config file with these values in it.
pub(crate) fn config(name: &str, source: &str, concentrators: &str, more: &str) -> Config {
    let text = format!(
        r#"
service_addresses = ["198.51.100.1", "2001:db8:5060::1"]
mark = 37
[tunnel]
key = 0xa1b2c3d4
source = "{source}"
concentrators = [{concentrators}]
hash_key = "00112233445566778899aabbccddeeff"
mtu = 1400
outer_dscp = 26
{more}
"#
    );
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.toml"));
    fs::write(&file, text).unwrap();
    Config::load(&file).unwrap()
}

/// Everything that a test needs.
pub(crate) struct Rig {
    pub(crate) xdp: Xdp,
    pub(crate) forwarder: Forwarder,
    pub(crate) settings: Settings,
    pub(crate) links: Vec<Link>,
    pub(crate) edge: u32,
    pub(crate) core: u32,
}

impl Rig {
    pub(crate) fn new(config: &Config) -> Self {
        let mut xdp = Xdp::load(PROGRAM).unwrap();
        let mut forwarder = Forwarder::new(config, 1);
        let settings = settings(config, forwarder.choice()).unwrap();
        xdp.set_services(&config.service_addresses).unwrap();
        xdp.set_rules(config.limits.rules.iter().copied()).unwrap();
        xdp.set_settings(&settings).unwrap();
        let links = links::list().unwrap();
        let index = |name: &str| links.iter().find(|link| link.name == name).unwrap().index;
        let (edge, core) = (index("edge0"), index("core0"));
        let interfaces = ["edge0", "core0"].map(str::to_owned);
        xdp.set_links(&links, &interfaces).unwrap();
        Self {
            xdp,
            forwarder,
            settings,
            links,
            edge,
            core,
        }
    }

    /// Which interface leads to this concentrator: its number, our and the next hop's Ethernet address.
    pub(crate) fn way_to(&self, concentrator: IpAddr) -> (u32, [u8; 6], [u8; 6]) {
        let text = concentrator.to_string();
        if text.starts_with("10.0.8.") || text.starts_with("fd00:8:") {
            (self.core, CORE_MAC, CORE_ROUTER_MAC)
        } else {
            (self.edge, EDGE_MAC, EDGE_ROUTER_MAC)
        }
    }
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
        for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            fs::write(format!("/proc/sys/net/{setting}"), "1").unwrap();
        }
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
    match Xdp::load(PROGRAM) {
        Ok(_) => None,
        // A kernel that may be asked and does not like the program is no reason to skip anything.
        Err(XdpError::Refused(error)) if error.raw_os_error() != Some(nix::libc::EPERM) => {
            panic!("the kernel refuses the program: {error}")
        }
        Err(error) => Some(error.to_string()),
    }
}
