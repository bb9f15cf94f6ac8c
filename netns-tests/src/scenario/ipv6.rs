//! Phones on IPv6, without a NAT: their packets cross the tunnel as IPv6 in GRE over IPv4. Calls over
//! UDP and over TCP, with a route flip in the middle, and between IPv6 and a phone on IPv4 behind a
//! NAT, where the relay joins the two.

use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::baresip::bindings;
use crate::capture::Capture;
use crate::command;
use crate::frame::{GRE, Packet, TCP, UDP};
use crate::namespace::Namespace;
use crate::phone::{self, Place, Transport};
use crate::service::{KEY1, KEY2, RELAY_PORTS, Service};
use crate::topology::dual_stack::{self, SERVICE6, UA1, UA2};
use crate::topology::two_edges::{EDGE1, EDGE2, SERVICE, TwoEdges};
use crate::wait;

/// Of audio, each way.
const SECONDS: u32 = 4;
/// RTP packets that the relays have sent, when the caller's route flips.
const HALF: u64 = 150;
const PATIENCE: Duration = Duration::from_secs(20);
/// Without a NAT nobody would need a relay.
const CONFIG: &str = "[media]\nrelay = \"always\"\n";

/// A phone that calls or is called.
#[derive(Debug, Clone, Copy)]
struct Party {
    place: Place,
    over: Transport,
}

const fn v6(own: Ipv6Addr, over: Transport) -> Party {
    let place = Place {
        own: IpAddr::V6(own),
        service: IpAddr::V6(SERVICE6),
    };
    Party { place, over }
}

const fn v4(over: Transport) -> Party {
    let place = Place::IPV4;
    Party { place, over }
}

pub(super) fn run(folder: &Path) -> Result<String> {
    ensure!(
        command::found("tshark"),
        "tshark is missing (Debian package tshark); scripts/setup.sh installs it"
    );
    let net = TwoEdges::build()?;
    dual_stack::add(&net)?;
    let mut figures = Vec::new();
    for (name, caller, callee) in [
        (
            "udp6-udp6",
            v6(UA1, Transport::Udp),
            v6(UA2, Transport::Udp),
        ),
        (
            "tcp6-tcp6",
            v6(UA1, Transport::Tcp),
            v6(UA2, Transport::Tcp),
        ),
        ("udp6-udp4", v6(UA1, Transport::Udp), v4(Transport::Udp)),
        ("tcp4-udp6", v4(Transport::Tcp), v6(UA2, Transport::Udp)),
    ] {
        let folder = folder.join(name);
        fs::create_dir_all(&folder)?;
        // Another one for each: a phone that has gone would still be registered.
        let mut service = Service::start_edited(&net, &folder, CONFIG, both)?;
        let heard = call(&net, &service, caller, callee, &folder).context(name)?;
        service.check_alive()?;
        figures.push(format!("{name}: RTP {} and {}", heard[0], heard[1]));
    }
    Ok(figures.join("; "))
}

/// The programs' configs with an IPv6 address beside each IPv4 one that phones see.
pub(super) fn both(config: String) -> String {
    // An agent needs an open file for every port on each address; users may have 20,000.
    config
        .replace("30000-39999", "30000-31999")
        .replace(
            &format!("service_addresses = [\"{SERVICE}\"]"),
            &format!("service_addresses = [\"{SERVICE}\", \"{SERVICE6}\"]"),
        )
        .replace(
            &format!("addresses = [\"{EDGE1}\"]"),
            &format!("addresses = [\"{EDGE1}\", \"{}\"]", dual_stack::EDGE1),
        )
        .replace(
            &format!("addresses = [\"{EDGE2}\"]"),
            &format!("addresses = [\"{EDGE2}\", \"{}\"]", dual_stack::EDGE2),
        )
}

/// RTP packets from a relay that caller and callee have heard.
fn call(
    net: &TwoEdges,
    service: &Service,
    caller: Party,
    callee: Party,
    folder: &Path,
) -> Result<[usize; 2]> {
    let captures = [
        Capture::start(&net.ua1, "eth0", folder)?,
        Capture::start(&net.ua2, "eth0", folder)?,
    ];
    let core = Capture::start(&net.concentrator, "eth0", folder)?;
    let complaints = || {
        let of = |ua: &str| {
            let errors = folder.join(ua).join("errors.txt");
            fs::read_to_string(errors).unwrap_or_default()
        };
        format!("ua1: {}\nua2: {}", of("ua1"), of("ua2"))
    };
    let (place, over) = (callee.place, callee.over);
    let mut called = phone::callee_at(&net.ua2, place, over, SECONDS, folder)?;
    wait_for_binding(net, service, "ua2", callee).with_context(complaints)?;
    let sent_before = relayed(net, service)?;
    let (place, over) = (caller.place, caller.over);
    let mut calling = phone::caller_at(&net.ua1, place, over, SECONDS, folder)?;
    wait::until("RTP through the relays", PATIENCE, || {
        calling.check_alive()?;
        Ok((relayed(net, service)? >= sent_before + HALF).then_some(()))
    })
    .with_context(complaints)?;
    flip(net, caller)?;
    let status = calling.wait(PATIENCE).with_context(complaints)?;
    ensure!(status.success(), "the call failed: {}", complaints());
    wait::until("the session to end", PATIENCE, || {
        Ok((service.sessions(net)? == [0, 0]).then_some(()))
    })?;
    called.stop()?;
    unflip(net)?;
    let files = captures.map(|capture| {
        let file = capture.file().to_owned();
        capture.stop().map(|_| file)
    });
    let [ua1, ua2] = files;
    let heard = [
        rtp_heard(&net.ua1, &ua1?, caller.place.own)?,
        rtp_heard(&net.ua2, &ua2?, callee.place.own)?,
    ];
    let expected = SECONDS as usize * 50 * 9 / 10;
    ensure!(
        heard.iter().all(|packets| *packets >= expected),
        "{heard:?} RTP packets were heard, not {expected} or more"
    );
    judge_tunnel(&core.stop()?, caller)?;
    Ok(heard)
}

fn flip(net: &TwoEdges, caller: Party) -> Result<()> {
    match caller.place.own {
        IpAddr::V4(_) => net.flip(),
        IpAddr::V6(_) => dual_stack::flip(net),
    }
}

fn unflip(net: &TwoEdges) -> Result<()> {
    net.unflip()?;
    dual_stack::unflip(net)
}

fn relayed(net: &TwoEdges, service: &Service) -> Result<u64> {
    let name = "sipcast_relay_rtp_packets_sent_total";
    Ok(service.relay1.gauge(&net.edge1, name)? + service.relay2.gauge(&net.edge2, name)?)
}

fn wait_for_binding(net: &TwoEdges, service: &Service, user: &str, who: Party) -> Result<()> {
    let over = who.over.to_string().to_ascii_uppercase();
    wait::until("the callee to register", PATIENCE, || {
        let bindings = bindings(net, service)?;
        let there = |(aor, flow): &(String, String)| {
            let v6 = flow.contains('[');
            aor.contains(user) && flow.starts_with(&over) && v6 == who.place.own.is_ipv6()
        };
        Ok(bindings.iter().any(there).then_some(()))
    })
}

/// As an independent decoder counts them.
fn rtp_heard(namespace: &Namespace, capture: &Path, phone: IpAddr) -> Result<usize> {
    let (version, filter) = match phone {
        IpAddr::V4(_) => ("ip", phone.to_string()),
        IpAddr::V6(_) => ("ipv6", phone.to_string()),
    };
    let filter = format!(
        "{version}.dst=={filter}&&udp.srcport>={}&&udp.srcport<={}&&rtp",
        RELAY_PORTS.start(),
        RELAY_PORTS.end()
    );
    let decode = format!(
        "udp.port=={}-{},rtp",
        RELAY_PORTS.start(),
        RELAY_PORTS.end()
    );
    let file = capture.to_string_lossy();
    let lines = namespace.run(&format!("tshark -n -r {file} -d {decode} -Y {filter}"))?;
    Ok(lines.lines().count())
}

/// The caller's requests came through the tunnel of edge 1, and after the flip through that of edge 2,
/// as packets of its IP version.
fn judge_tunnel(seen: &[Packet], caller: Party) -> Result<()> {
    if caller.place.own.is_ipv4() {
        return Ok(());
    }
    let protocol = match caller.over {
        Transport::Udp => UDP,
        Transport::Tcp | Transport::Tls => TCP,
    };
    let through = |key: u32| {
        let inner = seen.iter().filter_map(inner_v6);
        inner
            .filter(|found| found.key == key && found.source == caller.place.own)
            .filter(|found| found.protocol == protocol)
            .count()
    };
    let (before, after) = (through(KEY1), through(KEY2));
    ensure!(
        before > 0 && after > 0,
        "{before} IPv6 packets of the caller through edge 1, {after} through edge 2"
    );
    Ok(())
}

/// An IPv6 packet in the tunnel.
struct Inner {
    key: u32,
    protocol: u8,
    source: Ipv6Addr,
}

fn inner_v6(packet: &Packet) -> Option<Inner> {
    let bytes = &packet.payload;
    // GRE with a key, of EtherType 0x86dd (RFC 2890).
    if packet.protocol != GRE || bytes.get(..4)? != [0x20, 0, 0x86, 0xdd] {
        return None;
    }
    let source: [u8; 16] = bytes.get(16..32)?.try_into().ok()?;
    Some(Inner {
        key: u32::from_be_bytes(bytes.get(4..8)?.try_into().ok()?),
        protocol: *bytes.get(14)?,
        source: source.into(),
    })
}
