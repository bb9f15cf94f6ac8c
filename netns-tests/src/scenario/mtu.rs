//! Packets of every size through a path of 1,500 bytes, both ways, IPv4 and IPv6.
//!
//! The tunnel carries 1,472 bytes. What is longer is fragmented before it where the sender allows that, and
//! else the sender is told (RFC 7588, RFC 7676); a TCP connection fits by its MSS. Then the access link is
//! made narrower than the core knows: the router's errors about direct replies come to the edge, through the
//! tunnel and into the concentrator's kernel, which then sends what fits.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::ipv6::both;
use crate::capture::Capture;
use crate::frame::Packet;
use crate::service::Service;
use crate::sized::{self, Request};
use crate::topology::dual_stack::{self, SERVICE6, UA1};
use crate::topology::two_edges::{EDGE1, NAT_A, PHONE, SERVICE, TwoEdges};
use crate::{tshark, wait, xdp};

const SIZES: [usize; 6] = [200, 1_400, 1_472, 1_500, 4_000, 9_000];
/// Of the tunnel.
const MTU: &str = "1472";
/// Requests of one TCP connection, each of [`LARGE`] octets.
const BULK: usize = 150;
const LARGE: usize = 9_000;
/// Of the access link in the end.
const NARROW: &str = "1400";
/// What answers repeat, so that they do not fit it and would not be fragmented elsewhere.
const ECHO: usize = 1_100;
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    const ALL: [Self; 2] = [Self::V4, Self::V6];

    fn request(self, call_id: &str, size: usize) -> Request {
        let (from, to) = match self {
            Self::V4 => (IpAddr::V4(PHONE), IpAddr::V4(SERVICE)),
            Self::V6 => (IpAddr::V6(UA1), IpAddr::V6(SERVICE6)),
        };
        Request {
            from,
            to,
            call_id: call_id.to_owned(),
            size,
            echo: 0,
        }
    }

    /// The router's word that a packet is too long, and its field for what is not.
    const fn too_big(self) -> (&'static str, &'static str) {
        match self {
            Self::V4 => ("icmp.type==3&&icmp.code==4", "icmp.mtu"),
            Self::V6 => ("icmpv6.type==2", "icmpv6.mtu"),
        }
    }
}

pub(super) fn run(folder: &Path) -> Result<String> {
    tshark::require()?;
    let net = TwoEdges::build()?;
    dual_stack::add(&net)?;
    let mut service = Service::start_edited(&net, folder, "", both)?;
    let mut files = Vec::new();
    let bulk = stream(&net, &folder.join("tcp"), &mut files)?;
    let datagrams = datagrams(&net, &folder.join("udp"), &mut files)?;
    let narrow = narrow(&net, &folder.join("narrow"), &mut files)?;
    service.check_alive()?;
    let checked = tshark::check_checksums(&files)?;
    Ok(format!(
        "{bulk}; {datagrams}; {narrow}; {checked} frames with right checksums"
    ))
}

/// At the phone, before the edge and at the concentrator.
#[derive(Debug)]
struct Captures {
    phone: Capture,
    edge: Capture,
    concentrator: Capture,
}

impl Captures {
    fn start(net: &TwoEdges, folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        Ok(Self {
            phone: Capture::start(&net.ua1, "eth0", folder)?,
            edge: Capture::start(&net.edge1, "eth0", folder)?,
            concentrator: Capture::start(&net.concentrator, "eth0", folder)?,
        })
    }

    /// What was seen last reaches the files last: waits for this answer in all of them.
    fn wait_for(&self, call_id: &str) -> Result<()> {
        let filter = format!("sip.Call-ID==\"{call_id}\"");
        let answer = format!("{filter}&&sip.Status-Code==200");
        let mut places = vec![(&self.phone, &answer), (&self.concentrator, &answer)];
        // What XDP forwards is not seen there.
        if xdp::wanted().is_none() {
            places.push((&self.edge, &filter));
        }
        for (capture, filter) in places {
            wait::until("the last answer in a capture", PATIENCE, || {
                // A file that is being written ends in the middle of a packet.
                let found = tshark::rows(capture.file(), filter, &["frame.number"]);
                Ok(found.ok().filter(|rows| !rows.is_empty()))
            })?;
        }
        Ok(())
    }

    /// The files, in the order of the fields, and what the concentrator has seen over IPv4.
    fn stop(self, files: &mut Vec<PathBuf>) -> Result<([PathBuf; 3], Vec<Packet>)> {
        let captures = [&self.phone, &self.edge, &self.concentrator];
        let of_this = captures.map(|capture| capture.file().to_owned());
        files.extend(of_this.iter().cloned());
        self.phone.stop()?;
        self.edge.stop()?;
        let seen = self.concentrator.stop()?;
        check_outer(&seen)?;
        Ok((of_this, seen))
    }
}

/// No packet of the tunnel is a fragment, and none may become one.
fn check_outer(seen: &[Packet]) -> Result<()> {
    let outer = seen.iter().filter(|packet| packet.source == EDGE1);
    let outer: Vec<&Packet> = outer
        .filter(|packet| packet.tunnelled().is_some())
        .collect();
    ensure!(!outer.is_empty(), "nothing came through the tunnel");
    for packet in outer {
        let length = packet.payload.len() + 20;
        ensure!(
            packet.dont_fragment && !packet.is_fragment() && length <= 1_500,
            "an outer packet of {length} bytes: {packet:?}"
        );
    }
    Ok(())
}

/// TCP first: nobody knows of any MTU yet, and nobody needs to.
fn stream(net: &TwoEdges, folder: &Path, files: &mut Vec<PathBuf>) -> Result<String> {
    let captures = Captures::start(net, folder)?;
    let mut shown = Vec::new();
    for family in Family::ALL {
        let request = family.request(&format!("tcp-{family:?}"), LARGE);
        let octets = sized::over_tcp(&net.ua1, &request, BULK);
        let [sent, _] = octets.with_context(|| format!("TCP over {family:?}"))?;
        shown.push(format!("{sent} bytes over TCP {family:?}"));
    }
    let ([phone, ..], _) = captures.stop(files)?;
    for (family, mss) in [("ip", "1432"), ("ipv6", "1412")] {
        let filter = format!("{family}&&tcp.flags.syn==1&&tcp.flags.ack==1");
        let mut advertised = tshark::rows(&phone, &filter, &["tcp.options.mss_val"])?.concat();
        // One that was sent again is no other one.
        advertised.dedup();
        ensure!(
            advertised == [mss],
            "the concentrator advertised an MSS of {advertised:?} over {family}, not {mss}"
        );
    }
    for family in Family::ALL {
        let errors = tshark::rows(&phone, family.too_big().0, &["frame.number"])?;
        ensure!(errors.is_empty(), "{family:?}: TCP did not fit: {errors:?}");
    }
    Ok(shown.join(", "))
}

/// One datagram of each size: over IPv4 with DF and without, over IPv6, where DF is always.
fn datagrams(net: &TwoEdges, folder: &Path, files: &mut Vec<PathBuf>) -> Result<String> {
    let mut told = Vec::new();
    for (name, family, df) in [
        ("fragment", Family::V4, false),
        ("df", Family::V4, true),
        ("v6", Family::V6, true),
    ] {
        // Of all sockets that ask for nothing else; ip(7).
        let no_discovery = if df { "0" } else { "1" };
        net.ua1.sysctl("net.ipv4.ip_no_pmtu_disc", no_discovery)?;
        let captures = Captures::start(net, &folder.join(name))?;
        for size in SIZES {
            let request = family.request(&format!("{name}{size}"), size);
            sized::over_udp(&net.ua1, &request).with_context(|| format!("{name}, {size} bytes"))?;
        }
        captures.wait_for(&format!("{name}{}", SIZES[5]))?;
        let ([phone, _, concentrator], seen) = captures.stop(files)?;
        check_arrived(&concentrator, name)?;
        if family == Family::V4 {
            check_df(&seen, df)?;
        }
        let (filter, field) = family.too_big();
        let mtus: Vec<String> = tshark::rows(&phone, filter, &[field])?.concat();
        let told_right = mtus.iter().all(|mtu| mtu == MTU);
        ensure!(
            told_right && mtus.is_empty() != df,
            "{name}: the phone was told of MTUs {mtus:?}, not of {MTU}, which it needs to be: {df}"
        );
        told.push(format!("{name}: told {} times", mtus.len()));
    }
    net.ua1.sysctl("net.ipv4.ip_no_pmtu_disc", "0")?;
    let sizes = SIZES.map(|size| size.to_string()).join(", ");
    Ok(format!("datagrams of {sizes} bytes; {}", told.join(", ")))
}

/// An independent decoder sees every request whole in the tunnel, with the mark of the edge on it.
fn check_arrived(capture: &Path, name: &str) -> Result<()> {
    let fields = [
        "sip.Call-ID",
        "udp.length",
        "ip.dsfield.dscp",
        "ipv6.tclass.dscp",
    ];
    let filter = "gre.key==0x1001&&sip.Method==\"OPTIONS\"";
    let arrived = tshark::rows(capture, filter, &fields)?;
    for size in SIZES {
        let (call_id, length) = (format!("{name}{size}"), (size + 8).to_string());
        let is_it = |row: &&Vec<String>| {
            let last = |column: usize| row.get(column)?.rsplit(',').next();
            last(0) == Some(call_id.as_str()) && last(1) == Some(length.as_str())
        };
        let row = arrived.iter().find(is_it);
        let row = row.with_context(|| format!("{call_id} is not in the tunnel: {arrived:?}"))?;
        let marks: Vec<&str> = row[2..].iter().flat_map(|text| text.split(',')).collect();
        ensure!(marks.contains(&"1"), "{call_id} has no mark 1: {row:?}");
    }
    Ok(())
}

/// The phone's packets are what the row of the test says.
fn check_df(seen: &[Packet], df: bool) -> Result<()> {
    let inner = seen.iter().filter_map(Packet::gre).map(|(_, inner)| inner);
    let inner: Vec<Packet> = inner.filter(|inner| inner.source == NAT_A).collect();
    let with_df = inner.iter().filter(|inner| inner.dont_fragment).count();
    let fragments = inner.iter().filter(|inner| inner.is_fragment()).count();
    ensure!(
        (with_df > 0) == df && fragments > 0,
        "{with_df} of {} packets with DF, {fragments} fragments",
        inner.len()
    );
    Ok(())
}

/// Path MTU discovery of direct replies: TCP, then UDP, each without what the other has found out.
fn narrow(net: &TwoEdges, folder: &Path, files: &mut Vec<PathBuf>) -> Result<String> {
    net.r1.run(&format!("ip link set access mtu {NARROW}"))?;
    let captures = Captures::start(net, folder)?;
    for family in Family::ALL {
        for over in ["tcp", "udp"] {
            for command in ["ip -4 route flush cache", "ip -6 route flush cache"] {
                net.concentrator.run(command)?;
            }
            let name = format!("narrow-{over}-{family:?}");
            let request = Request {
                echo: ECHO,
                ..family.request(&name, 3_000)
            };
            if over == "tcp" {
                sized::over_tcp(&net.ua1, &request, 20).with_context(|| name.clone())?;
            } else {
                let asked = sized::over_udp(&net.ua1, &request).with_context(|| name.clone())?;
                let fits = (1_373..=1_452).contains(&asked.answer);
                ensure!(fits, "an answer of {} bytes shows nothing", asked.answer);
            }
            wait_for_mtu(net, family).context(name)?;
        }
    }
    captures.wait_for(&format!("narrow-udp-{:?}", Family::V6))?;
    let ([_, _, concentrator], _) = captures.stop(files)?;
    let mut errors = Vec::new();
    for family in Family::ALL {
        let (filter, field) = family.too_big();
        let filter = format!("gre.key==0x1001&&{filter}");
        let told: Vec<String> = tshark::rows(&concentrator, &filter, &[field])?.concat();
        ensure!(
            told.len() >= 2 && told.iter().all(|mtu| mtu == NARROW),
            "{family:?}: errors of MTUs {told:?} came through the tunnel"
        );
        errors.push(told.len().to_string());
    }
    net.r1.run("ip link set access mtu 1500")?;
    Ok(format!(
        "replies to a link of {NARROW} after {} errors through the tunnel",
        errors.join(" and ")
    ))
}

/// The concentrator's kernel has taken the router's word.
fn wait_for_mtu(net: &TwoEdges, family: Family) -> Result<()> {
    let (to, from) = match family {
        Family::V4 => (NAT_A.to_string(), SERVICE.to_string()),
        Family::V6 => (UA1.to_string(), SERVICE6.to_string()),
    };
    let mut last = String::new();
    wait::until("the path's MTU", PATIENCE, || {
        last = net
            .concentrator
            .run(&format!("ip route get {to} from {from}"))?;
        Ok(last.contains(&format!("mtu {NARROW}")).then_some(()))
    })
    .with_context(|| last.clone())
}
