//! What shall become of a frame: the rules once more, by the relay's own code where it has some. What a
//! packet tells is read by `wire`, its new headers are those that the media threads send
//! ([`UdpHeaders`]), its stream's figures those of [`rtp_agent::reception`].

use std::net::{IpAddr, SocketAddr};

use rtp_agent::reception::RtpFields;
use tunnel_io::xdp::relay_tables::Outcome;
use wire::ip::UdpHeaders;
use wire::rtp::{self, Kind, classify};

use crate::network::{EDGE_MAC, LARGEST, PORTS, Rig, Stream, Way};

/// What becomes of a frame, and of which stream it is.
pub(crate) struct Expected {
    pub(crate) outcome: Outcome,
    pub(crate) frame: Option<Vec<u8>>,
    pub(crate) stream: Option<(usize, RtpFields, usize)>,
}

impl From<Outcome> for Expected {
    fn from(outcome: Outcome) -> Self {
        Self {
            outcome,
            frame: None,
            stream: None,
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The EtherType and what comes behind it.
fn ethernet(frame: &[u8]) -> Result<(u16, &[u8]), Outcome> {
    let (mut at, mut tags) = (12, Vec::new());
    while matches!(word(frame, at), 0x8100 | 0x88a8) && tags.len() < 2 {
        if frame.len() < at + 6 {
            return Err(Outcome::NotIp);
        }
        tags.push((word(frame, at), word(frame, at + 2) & 0x0fff));
        at += 4;
    }
    let ether_type = word(frame, at);
    if !matches!(ether_type, 0x0800 | 0x86dd) {
        return Err(Outcome::NotIp);
    }
    // `edge0` and its VLAN 100.
    let is_ours = matches!(tags[..], [] | [(0x8100, 100)]);
    if !is_ours || frame[..6] != EDGE_MAC {
        return Err(Outcome::NotForUs);
    }
    Ok((ether_type, &frame[at + 2..]))
}

struct Datagram<'a> {
    remote: SocketAddr,
    local: SocketAddr,
    checksum: u16,
    payload: &'a [u8],
}

fn ip(ether_type: u16, bytes: &[u8]) -> Result<Datagram<'_>, Outcome> {
    let (length, header, remote, local): (_, _, IpAddr, IpAddr) = if ether_type == 0x0800 {
        if bytes.len() < 20 || bytes[0] >> 4 != 4 || usize::from(word(bytes, 2)) > bytes.len() {
            return Err(Outcome::Malformed);
        }
        if bytes[9] != 17 {
            return Err(Outcome::NotMedia);
        }
        if bytes[0] != 0x45 {
            return Err(Outcome::Options);
        }
        if word(bytes, 6) & 0x3fff != 0 {
            return Err(Outcome::Fragment);
        }
        if wire::checksum::internet(&bytes[..20]) != 0 {
            return Err(Outcome::Checksum);
        }
        let address = |at: usize| <[u8; 4]>::try_from(&bytes[at..at + 4]).unwrap();
        let length = usize::from(word(bytes, 2));
        (length, 20, address(12).into(), address(16).into())
    } else {
        if bytes.len() < 40 || bytes[0] >> 4 != 6 || usize::from(word(bytes, 4)) + 40 > bytes.len()
        {
            return Err(Outcome::Malformed);
        }
        match bytes[6] {
            17 => {}
            44 => return Err(Outcome::Fragment),
            0 | 43 | 60 => return Err(Outcome::Options),
            _ => return Err(Outcome::NotMedia),
        }
        let address = |at: usize| <[u8; 16]>::try_from(&bytes[at..at + 16]).unwrap();
        let length = usize::from(word(bytes, 4)) + 40;
        (length, 40, address(8).into(), address(24).into())
    };
    if bytes.len() < header + 8 {
        return Err(Outcome::Malformed);
    }
    let udp = &bytes[header..];
    let port = word(udp, 2);
    if !(PORTS.0..=PORTS.1).contains(&port) {
        return Err(Outcome::NotMedia);
    }
    if length < header + 8 || usize::from(word(udp, 4)) != length - header {
        return Err(Outcome::Malformed);
    }
    Ok(Datagram {
        remote: SocketAddr::new(remote, word(udp, 0)),
        local: SocketAddr::new(local, port),
        checksum: word(udp, 6),
        payload: &bytes[header + 8..length],
    })
}

/// RTP as the relay would take it.
fn rtp(payload: &[u8]) -> Result<RtpFields, Outcome> {
    match classify(payload) {
        Kind::Rtp => {}
        Kind::Rtcp => return Err(Outcome::Rtcp),
        Kind::Stun | Kind::Zrtp | Kind::Dtls | Kind::TurnChannel | Kind::Unknown => {
            return Err(Outcome::NotRtp);
        }
    }
    let packet = rtp::Packet::parse_encrypted(payload).map_err(|_| Outcome::NotRtp)?;
    Ok(RtpFields {
        ssrc: packet.ssrc(),
        sequence: packet.sequence(),
        timestamp: packet.timestamp(),
        payload_type: packet.payload_type(),
    })
}

fn oddity(stream: &Stream, datagram: &Datagram<'_>, fields: RtpFields) -> Option<Outcome> {
    let progress = stream.reception.progress().unwrap();
    let ahead = fields.sequence.wrapping_sub(progress.highest);
    let size = datagram.payload.len()
        + 8
        + if stream.entry.source.is_ipv6() {
            40
        } else {
            20
        };
    let is_ipv6 = datagram.local.is_ipv6() || stream.entry.source.is_ipv6();
    if fields.ssrc != stream.entry.ssrc {
        Some(Outcome::Ssrc)
    } else if (3_000..=65_435).contains(&ahead) {
        Some(Outcome::Sequence)
    } else if datagram.checksum == 0 && is_ipv6 {
        Some(Outcome::Checksum)
    } else if datagram.payload.len() > LARGEST {
        Some(Outcome::TooBig)
    } else if stream.way == Way::NoRoute {
        Some(Outcome::NoRoute)
    } else if size > 1_500 {
        Some(Outcome::TooBig)
    } else if stream.way == Way::NoNeighbour {
        Some(Outcome::NoNeighbour)
    } else {
        None
    }
}

/// The octets that a media thread would send, but for the checksum, which is the old one's successor: none
/// stays none, and a wrong one stays wrong.
fn relayed(stream: &Stream, datagram: &Datagram<'_>) -> Vec<u8> {
    let (entry, key) = (&stream.entry, &stream.key);
    let headers = UdpHeaders::new(entry.source, entry.destination, datagram.payload).unwrap();
    let ether_type = if entry.source.is_ipv4() {
        0x0800
    } else {
        0x86dd
    };
    let mut packet = headers.bytes().to_vec();
    let at = packet.len() - 2;
    let before = UdpHeaders::new(key.remote, key.local, datagram.payload).unwrap();
    let right = word(before.bytes(), before.bytes().len() - 2);
    let sum = match datagram.checksum {
        0 => 0,
        same if same == right => word(&packet, at),
        wrong => {
            // As far from the right one as it was.
            match wire::checksum::update(wrong, !right, !word(&packet, at)) {
                0 => 0xffff,
                sum => sum,
            }
        }
    };
    packet[at..].copy_from_slice(&sum.to_be_bytes());
    [
        &stream.way.header(ether_type)[..],
        &packet,
        datagram.payload,
    ]
    .concat()
}

fn judge(rig: &Rig, frame: &[u8]) -> Result<Expected, Outcome> {
    let (ether_type, rest) = ethernet(frame)?;
    let datagram = ip(ether_type, rest)?;
    let fits = |stream: &Stream| {
        stream.key.remote == datagram.remote && stream.key.local == datagram.local
    };
    let number = rig.streams.iter().position(fits).ok_or(Outcome::Unknown)?;
    let stream = &rig.streams[number];
    let fields = rtp(datagram.payload)?;
    if let Some(oddity) = oddity(stream, &datagram, fields) {
        return Err(oddity);
    }
    Ok(Expected {
        outcome: match stream.way {
            Way::Core => Outcome::ForwardAcross,
            Way::Edge | Way::Vlan | Way::NoNeighbour | Way::NoRoute => Outcome::ForwardBack,
        },
        frame: Some(relayed(stream, &datagram)),
        stream: Some((number, fields, datagram.payload.len())),
    })
}

/// What shall become of a frame that comes to `edge0`.
pub(crate) fn expect(rig: &Rig, frame: &[u8]) -> Expected {
    judge(rig, frame).unwrap_or_else(Expected::from)
}
