//! What the program must do with a frame, worked out in another way: by the forwarder of the TUN path, and
//! by the list of what is left to the kernel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ingress::classify::DropReason;
use tunnel_io::xdp::tables::Outcome;
use wire::encapsulation::Encapsulation;
use wire::ip::Packet;

use crate::network::{EDGE_MAC, Rig};

/// The outcome, and the frame that leaves where one does.
pub(crate) type Expected = (Outcome, Option<Vec<u8>>);

/// Of a frame that comes to `edge0`, where no VLAN is known.
pub(crate) fn expect(rig: &mut Rig, frame: &[u8]) -> Expected {
    let outcome = |outcome| (outcome, None);
    let Some((tags, ether_type, packet)) = read_ethernet(frame) else {
        return outcome(Outcome::NotIp);
    };
    let is_ipv4 = match ether_type {
        0x0800 => true,
        0x86dd => false,
        _ => return outcome(Outcome::NotIp),
    };
    if tags > 0 || frame[..6] != EDGE_MAC {
        return outcome(Outcome::NotForUs);
    }
    let known = if is_ipv4 {
        read_ipv4(packet)
    } else {
        read_ipv6(packet)
    };
    let Some(known) = known else {
        return outcome(Outcome::Malformed);
    };
    let service: [IpAddr; 2] = ["198.51.100.1", "2001:db8:5060::1"].map(|a| a.parse().unwrap());
    if !service.contains(&known.destination) {
        return outcome(Outcome::NotServiceAddress);
    }
    let (own, mtu) = (rig.settings.sources[0], rig.settings.mtu.into());
    if let Some(why) = oddity(&known, &packet[..known.length], own, mtu) {
        return outcome(why);
    }
    forwarded(rig, packet[..known.length].to_vec())
}

/// As the kernel and then the forwarder have it, with the outer header that the kernel would add.
fn forwarded(rig: &mut Rig, mut packet: Vec<u8>) -> Expected {
    let is_ipv4 = packet[0] >> 4 == 4;
    let user_agent = Packet::parse(&packet).unwrap().src();
    // The kernel's forwarding.
    if is_ipv4 {
        packet[8] -= 1;
        packet[10..12].fill(0);
        let checksum = wire::checksum::internet(&packet[..20]).to_be_bytes();
        packet[10..12].copy_from_slice(&checksum);
    } else {
        packet[7] -= 1;
    }
    let encapsulation = match rig.forwarder.forward(&mut packet, 1) {
        Ok(encapsulation) => encapsulation,
        Err(DropReason::Denied) => return (Outcome::Denied, None),
        Err(other) => panic!("the TUN path drops what the fast path takes: {other:?}"),
    };
    let to = encapsulation.concentrator;
    let payload = [encapsulation.header.bytes(), &packet].concat();
    let outer = match rig.settings.sources[encapsulation.source] {
        IpAddr::V4(from) => outer_ipv4(rig, from, to, &payload),
        IpAddr::V6(from) => outer_ipv6(rig, from, to, &payload, user_agent),
    };
    let (device, ours, next_hop) = rig.way_to(to);
    let ether_type: [u8; 2] = if to.is_ipv4() { [8, 0] } else { [0x86, 0xdd] };
    let frame = [&next_hop[..], &ours, &ether_type, &outer].concat();
    let outcome = if device == rig.edge {
        Outcome::ForwardBack
    } else {
        Outcome::ForwardAcross
    };
    (outcome, Some(frame))
}

fn outer_ipv4(rig: &Rig, from: Ipv4Addr, to: IpAddr, payload: &[u8]) -> Vec<u8> {
    let IpAddr::V4(to) = to else {
        panic!("mixed");
    };
    let protocol = match rig.settings.encapsulation {
        Encapsulation::Gre => 47,
        Encapsulation::GreUdp => 17,
    };
    let length = (20 + payload.len() as u16).to_be_bytes();
    let tos = rig.settings.outer_dscp << 2;
    let mut header = vec![0x45, tos, length[0], length[1], 0, 0, 0x40, 0];
    header.extend([rig.settings.outer_hop_limit, protocol, 0, 0]);
    header.extend(from.octets());
    header.extend(to.octets());
    let checksum = wire::checksum::internet(&header).to_be_bytes();
    header[10..12].copy_from_slice(&checksum);
    header.extend(payload);
    header
}

fn outer_ipv6(
    rig: &Rig,
    from: Ipv6Addr,
    to: IpAddr,
    payload: &[u8],
    user_agent: IpAddr,
) -> Vec<u8> {
    let IpAddr::V6(to) = to else {
        panic!("mixed");
    };
    let mut payload = payload.to_vec();
    let protocol = match rig.settings.encapsulation {
        Encapsulation::Gre => 47,
        Encapsulation::GreUdp => {
            let (udp, rest) = payload.split_first_chunk::<8>().unwrap();
            let sum = wire::checksum::udp_in_parts(from.into(), to.into(), *udp, rest);
            payload[6..8].copy_from_slice(&sum.to_be_bytes());
            17
        }
    };
    let octets = match user_agent {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let words = octets.as_chunks::<4>().0.iter();
    let folded = words.fold(0, |sum, word| sum ^ u32::from_ne_bytes(*word));
    let label = folded.wrapping_mul(0x9e37_79b1) >> 12;
    let first = 6 << 28 | u32::from(rig.settings.outer_dscp) << 22 | label;
    let mut header = first.to_be_bytes().to_vec();
    header.extend((payload.len() as u16).to_be_bytes());
    header.extend([protocol, rig.settings.outer_hop_limit]);
    header.extend(from.octets());
    header.extend(to.octets());
    header.extend(&payload);
    header
}

/// Tags, EtherType and what follows; `None` where there is no such thing.
fn read_ethernet(frame: &[u8]) -> Option<(usize, u16, &[u8])> {
    let mut at = 12;
    for tags in 0.. {
        let ether_type = u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]);
        if tags == 2 || !matches!(ether_type, 0x8100 | 0x88a8) {
            return Some((tags, ether_type, &frame[at + 2..]));
        }
        at += 4;
    }
    None
}

struct Known {
    source: IpAddr,
    destination: IpAddr,
    length: usize,
    has_options: bool,
    protocol: u8,
    hop_limit: u8,
}

fn read_ipv4(bytes: &[u8]) -> Option<Known> {
    if bytes.first()? >> 4 != 4 {
        return None;
    }
    let packet = Packet::parse(bytes).ok()?;
    Some(Known {
        source: packet.src(),
        destination: packet.dst(),
        length: packet.total_len(),
        has_options: packet.header_len() > 20,
        protocol: packet.protocol(),
        hop_limit: packet.ttl(),
    })
}

/// The fixed header, and a fragment's if it is the next one: what lies deeper is not looked at.
fn read_ipv6(bytes: &[u8]) -> Option<Known> {
    let fixed = bytes.first_chunk::<40>()?;
    let length = 40 + usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
    if fixed[0] >> 4 != 6 || length > bytes.len() {
        return None;
    }
    let mut protocol = fixed[6];
    if protocol == 44 {
        let fragment = bytes[40..length].first_chunk::<8>()?;
        let offset = usize::from(u16::from_be_bytes([fragment[2], fragment[3]]) & 0xfff8);
        if offset + length - 48 > 65_535 {
            return None;
        }
        protocol = fragment[0];
    }
    let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&bytes[at..at + 16]).unwrap());
    Some(Known {
        source: address(8),
        destination: address(24),
        length,
        has_options: false,
        protocol,
        hop_limit: fixed[7],
    })
}

/// Why the kernel gets it, in the order in which the program looks.
fn oddity(known: &Known, packet: &[u8], own: IpAddr, mtu: usize) -> Option<Outcome> {
    let is_another_host = match known.source {
        IpAddr::V4(v4) => wire::ip::is_another_host(v4.into()),
        IpAddr::V6(v6) => {
            let segments = v6.segments();
            !v6.is_multicast() && !v6.is_unicast_link_local() && segments[..4] != [0; 4]
        }
    };
    let is_plain = matches!(known.protocol, 6 | 17);
    [
        (
            Outcome::Checksum,
            packet[0] >> 4 == 4
                && !known.has_options
                && wire::checksum::internet(&packet[..20]) != 0,
        ),
        // Before what follows, the program asks the limits: a source that is denied is dropped.
        (Outcome::Denied, is_denied(known.source)),
        (Outcome::Options, known.has_options),
        (Outcome::Protocol, !is_plain),
        (Outcome::HopLimit, known.hop_limit <= 1),
        (Outcome::Source, !is_another_host || known.source == own),
        (Outcome::TooBig, known.length > mtu),
    ]
    .into_iter()
    .find_map(|(outcome, is_so)| is_so.then_some(outcome))
}

/// 203.0.113.0/24 but for 203.0.113.128/25, and 2001:db8:dead::/48.
fn is_denied(source: IpAddr) -> bool {
    match source {
        IpAddr::V4(v4) => v4.octets()[..3] == [203, 0, 113] && v4.octets()[3] < 128,
        IpAddr::V6(v6) => v6.segments()[..3] == [0x2001, 0xdb8, 0xdead],
    }
}

/// The rules that [`is_denied`] knows.
pub(crate) const RULES: &str = "[limits]\ndeny = [\"203.0.113.0/24\", \"2001:db8:dead::/48\"]\n\
    allow = [\"203.0.113.128/25\"]";
