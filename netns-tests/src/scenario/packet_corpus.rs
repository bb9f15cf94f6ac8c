//! Packets that no honest sender makes, into an edge whose only link we are: on the TUN path, and with XDP.
//!
//! Each one ends in the tunnel, or in an ICMP error, or nowhere; both ways must have the same end, and the
//! same octets in the tunnel. We are the wire: a TAP device of the edge, into which frames are written and
//! out of which frames are read. Behind each packet goes a good one with an IP option, which takes
//! the TUN path on either way: when that is out, what was before it is out, too, or never will be.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tun_tap::{Iface, Mode};

use crate::namespace::Namespace;
use crate::service::{KEY1, MARK1, Program, start_program};
use crate::topology::dual_stack::SERVICE6;
use crate::topology::two_edges::{EDGE1, SERVICE};
use crate::{wait, xdp};

use frames::{Expected, Frame, corpus, sentinel};

mod frames;

const PATIENCE: Duration = Duration::from_secs(5);
const ROUTER_MAC: &str = "02:00:00:00:09:09";

/// What became of a packet: its inner packets in the tunnel, and the type and code of errors about it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct End {
    tunnelled: Vec<Vec<u8>>,
    errors: Vec<[u8; 2]>,
}

impl End {
    /// Type and code stand at this octet.
    fn note_error(&mut self, seen: &[u8], at: usize) {
        self.errors.push([seen[at], seen[at + 1]]);
    }

    fn is(&self, expected: Expected) -> bool {
        match expected {
            Expected::Tunnelled(pieces) => self.tunnelled.len() == pieces && self.errors.is_empty(),
            Expected::Answered => self.tunnelled.is_empty() && self.errors.len() == 1,
            Expected::Dropped => self.tunnelled.is_empty() && self.errors.is_empty(),
            Expected::TheSame => true,
        }
    }
}

pub(super) fn run(folder: &Path) -> Result<String> {
    let slow = ends("off", &folder.join("tun"))?.context("without XDP there is no obstacle")?;
    let fast = ends("native", &folder.join("xdp"))?;
    for (frame, end) in corpus().iter().zip(&slow) {
        ensure!(
            end.is(frame.expected),
            "{}: {:?} was expected, on the TUN path it was {end:?}",
            frame.name,
            frame.expected
        );
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for end in &slow {
        let kind = match (end.tunnelled.is_empty(), end.errors.is_empty()) {
            (false, _) => "tunnelled",
            (true, false) => "answered",
            (true, true) => "dropped",
        };
        *counts.entry(kind).or_default() += 1;
    }
    let Some(fast) = fast else {
        let in_ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
        ensure!(!in_ci, "no native XDP here, which is an error in CI");
        return Ok(format!(
            "{counts:?} on the TUN path; no native XDP here to compare with"
        ));
    };
    for (frame, (slow, fast)) in corpus().iter().zip(slow.iter().zip(&fast)) {
        ensure!(
            slow == fast,
            "{}: on the TUN path {slow:?}, with XDP {fast:?}",
            frame.name
        );
    }
    Ok(format!(
        "{} packets, {counts:?}, the same by XDP",
        slow.len()
    ))
}

/// What becomes of each packet of the corpus; `None` where XDP cannot be had.
fn ends(mode: &str, folder: &Path) -> Result<Option<Vec<End>>> {
    std::fs::create_dir_all(folder)?;
    let edge = Namespace::router("edge1")?;
    let wire = open(&edge)?;
    let mut ingress = start(&edge, mode, folder)?;
    let status = ingress.status(&edge)?;
    if mode != "off" && status.pointer("/xdp/running") != Some(&Value::Bool(true)) {
        return Ok(None);
    }
    let ends = corpus()
        .iter()
        .enumerate()
        .map(|(number, frame)| one(&wire, number, frame).context(frame.name.clone()))
        .collect::<Result<Vec<End>>>()?;
    ingress.process.check_alive()?;
    if mode != "off" {
        wait::until("XDP to have forwarded some", PATIENCE, || {
            let status = ingress.status(&edge)?;
            let fast = status.pointer("/xdp/counters/forward_back");
            Ok(fast.and_then(Value::as_u64).filter(|fast| *fast > 10))
        })?;
    }
    ingress.process.stop()?;
    Ok(Some(ends))
}

fn open(edge: &Namespace) -> Result<Iface> {
    let wire = edge.inside(|| {
        Iface::without_packet_info("eth0", Mode::Tap).context("cannot make a TAP device")
    })?;
    wire.set_non_blocking()?;
    for which in ["all", "default", "eth0"] {
        edge.sysctl(&format!("net.ipv6.conf.{which}.disable_ipv6"), "0")?;
    }
    edge.sysctl("net.ipv6.conf.all.forwarding", "1")?;
    // Every error is to be seen.
    for limit in ["net.ipv4.icmp_ratelimit", "net.ipv6.icmp.ratelimit"] {
        edge.sysctl(limit, "0")?;
    }
    for line in [
        "ip link set eth0 address 02:00:00:00:01:02 up".to_owned(),
        format!("ip addr add {EDGE1}/24 dev eth0"),
        "ip addr add 2001:db8:e1::2/64 dev eth0 nodad".to_owned(),
        format!("ip neigh replace 10.0.1.1 lladdr {ROUTER_MAC} dev eth0 nud permanent"),
        format!("ip neigh replace 2001:db8:e1::1 lladdr {ROUTER_MAC} dev eth0 nud permanent"),
        "ip route add default via 10.0.1.1".to_owned(),
        "ip -6 route add default via 2001:db8:e1::1".to_owned(),
    ] {
        edge.run(&line)?;
    }
    Ok(wire)
}

fn start(edge: &Namespace, mode: &str, folder: &Path) -> Result<Program> {
    let section = if mode == "off" {
        String::new()
    } else {
        xdp::section("auto")
    };
    let config = format!(
        r#"
service_addresses = ["{SERVICE}", "{SERVICE6}"]
mark = {MARK1}
[tunnel]
key = {KEY1:#x}
source = "{EDGE1}"
concentrators = ["10.0.9.2"]
mtu = 1472
[announcement]
linger_s = 0
graceful_s = 0
{section}"#
    );
    let mut ingress = start_program(edge, "ingress1", "sipcast-ingress", 9101, &config, folder)?;
    // There is no concentrator, so it is not healthy.
    ingress.wait_until_started(edge)?;
    Ok(ingress)
}

/// Writes a frame and the sentinel, and reads until that is out.
fn one(wire: &Iface, number: usize, frame: &Frame) -> Result<End> {
    // The kernel refuses what is no Ethernet frame at all.
    let _refused = wire.send(&frame.bytes);
    let behind = format!("behind-{number:04}");
    wire.send(&sentinel(&behind))?;
    let (mut end, mut buffer) = (End::default(), vec![0; 65_536]);
    wait::until("the good packet behind it", PATIENCE, || {
        while let Ok(length) = wire.recv(&mut buffer) {
            let seen = &buffer[..length];
            if has(seen, behind.as_bytes()) {
                return Ok(Some(()));
            }
            note(seen, frame, &mut end);
        }
        Ok(None)
    })?;
    Ok(end)
}

fn has(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// What a frame that leaves the edge says of the packet.
fn note(seen: &[u8], frame: &Frame, end: &mut End) {
    let is_of_it = has(seen, frame.tag.as_bytes());
    match (seen.get(12..14), seen.get(23), seen.get(20)) {
        // GRE from the edge; a later fragment of a packet that the kernel cut has no tag.
        (Some([8, 0]), Some(47), _) => {
            let inner = seen.get(42..).unwrap_or_default();
            let is_probe = has(inner, &[10, 0, 1, 2, 10, 0, 9, 2]);
            if !is_probe {
                end.tunnelled.push(inner.to_vec());
            }
        }
        (Some([8, 0]), Some(1), _) if is_of_it => end.note_error(seen, 34),
        (Some([0x86, 0xdd]), _, Some(58)) if is_of_it => end.note_error(seen, 54),
        _ => {}
    }
}
