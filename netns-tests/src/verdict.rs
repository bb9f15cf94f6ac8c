//! What the captures of a call prove: the figures, and the criteria that they are held against.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use crate::audio;
use crate::call::CallRecord;
use crate::frame::{Packet, Rtp};
use crate::phone::Transport;
use crate::service::{KEY1, KEY2, MARK1, MARK2};
use crate::topology::two_edges::{EDGE1, EDGE2, NAT_A, NAT_B, PHONE, SERVICE};

/// The share of RTP packets that must arrive.
const ARRIVED: f64 = 0.999;

/// RTP of one direction, every packet counted once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Direction {
    pub(crate) sent: usize,
    /// By the relays of edge 1 and edge 2.
    pub(crate) relayed: [usize; 2],
    /// The same, after the flip.
    pub(crate) relayed_after_flip: [usize; 2],
    pub(crate) received: usize,
    /// Received from an address that is not the relay of the caller's edge.
    pub(crate) strayed: usize,
}

impl Direction {
    /// The share that was lost.
    pub(crate) fn loss(&self) -> f64 {
        1.0 - self.received as f64 / self.sent.max(1) as f64
    }
}

/// A SIP message of a phone in the tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tunnelled {
    pub(crate) at: u64,
    pub(crate) key: u32,
    pub(crate) mark: u8,
    pub(crate) from: Ipv4Addr,
    pub(crate) line: String,
}

/// Everything that is counted.
#[derive(Debug)]
pub(crate) struct Figures {
    /// INVITE sent to 180 received, at the caller.
    pub(crate) post_dial_ms: Option<f64>,
    pub(crate) to_callee: Direction,
    pub(crate) to_caller: Direction,
    pub(crate) tunnelled: Vec<Tunnelled>,
    /// Connections that the caller opened.
    pub(crate) connections: usize,
}

/// One thing that must be so.
#[derive(Debug)]
pub(crate) struct Criterion {
    pub(crate) what: String,
    pub(crate) met: bool,
    pub(crate) seen: String,
}

/// Counts.
pub(crate) fn figures(record: &CallRecord) -> Figures {
    Figures {
        post_dial_ms: post_dial(&record.seen.ua1),
        to_callee: direction(record, &record.seen.ua1, &record.seen.ua2, NAT_B),
        to_caller: direction(record, &record.seen.ua2, &record.seen.ua1, NAT_A),
        tunnelled: tunnelled(&record.seen.concentrator),
        connections: record
            .seen
            .ua1
            .iter()
            .filter(|packet| packet.destination == SERVICE)
            .filter(|packet| {
                packet
                    .tcp()
                    .is_some_and(|segment| segment.opens_connection())
            })
            .count(),
    }
}

/// Judges.
pub(crate) fn criteria(record: &CallRecord, figures: &Figures) -> Vec<Criterion> {
    let mut list = vec![
        criterion(
            "the caller's scenario succeeded",
            record.caller.success(),
            record.caller,
        ),
        criterion(
            "one session existed during the call, on the relay of edge 1",
            (
                record.during.calls,
                record.during.sessions1,
                record.during.sessions2,
            ) == (1, 1, 0),
            record.during,
        ),
        criterion(
            "after the BYE neither call nor session is left",
            (
                record.after.calls,
                record.after.sessions1,
                record.after.sessions2,
            ) == (0, 0, 0),
            record.after,
        ),
    ];
    let expected = (record.plan.seconds * audio::PACKETS_PER_SECOND) as usize;
    for (name, way) in [
        ("ua1 to ua2", &figures.to_callee),
        ("ua2 to ua1", &figures.to_caller),
    ] {
        list.extend(media_criteria(
            name,
            way,
            expected,
            record.flipped_at.is_some(),
        ));
    }
    list.extend(signalling_criteria(record, figures));
    list
}

fn media_criteria(name: &str, way: &Direction, expected: usize, flipped: bool) -> Vec<Criterion> {
    let mut list = vec![
        criterion(
            format!("{name}: all audio was sent"),
            way.sent == expected,
            format!("{} of {expected} packets", way.sent),
        ),
        criterion(
            format!("{name}: at least 99.9 % of the RTP packets arrived"),
            way.sent > 0 && way.received as f64 >= ARRIVED * way.sent as f64,
            format!("{} of {}", way.received, way.sent),
        ),
        criterion(
            format!("{name}: all of them through the relay of edge 1"),
            way.relayed[0] >= way.received && way.relayed[1] == 0 && way.strayed == 0,
            format!(
                "edge 1: {}, edge 2: {}, past them: {}",
                way.relayed[0], way.relayed[1], way.strayed
            ),
        ),
    ];
    if flipped {
        list.push(criterion(
            format!("{name}: after the flip still through the relay of edge 1"),
            way.relayed_after_flip[0] > 0 && way.relayed_after_flip[1] == 0,
            format!(
                "edge 1: {}, edge 2: {}",
                way.relayed_after_flip[0], way.relayed_after_flip[1]
            ),
        ));
    }
    list
}

fn signalling_criteria(record: &CallRecord, figures: &Figures) -> Vec<Criterion> {
    let first = |method: &str| {
        figures
            .tunnelled
            .iter()
            .find(|message| message.from == NAT_A && message.line.starts_with(method))
            .map(|message| (message.key, message.mark))
    };
    let mut list = vec![criterion(
        "the INVITE came through edge 1 with its mark",
        first("INVITE") == Some((KEY1, MARK1)),
        show(first("INVITE")),
    )];
    if record.flipped_at.is_some() {
        list.push(criterion(
            "the BYE came through edge 2 with its mark",
            first("BYE") == Some((KEY2, MARK2)),
            show(first("BYE")),
        ));
    }
    if record.plan.transport != Transport::Udp {
        list.push(criterion(
            "the caller kept its one TCP connection",
            figures.connections == 1,
            format!("{} opened", figures.connections),
        ));
    }
    list
}

/// Key and mark for people.
pub(crate) fn show(hop: Option<(u32, u8)>) -> String {
    hop.map_or_else(
        || "never seen".into(),
        |(key, mark)| format!("key {key:#x}, mark {mark}"),
    )
}

fn criterion(what: impl Into<String>, met: bool, seen: impl ToString) -> Criterion {
    Criterion {
        what: what.into(),
        met,
        seen: seen.to_string(),
    }
}

fn post_dial(packets: &[Packet]) -> Option<f64> {
    let at = |from: Ipv4Addr, start: &str| {
        packets.iter().find(|packet| {
            packet.source == from
                && packet
                    .transport()
                    .and_then(|segment| segment.sip_start_line())
                    .is_some_and(|line| line.starts_with(start))
        })
    };
    let invite = at(PHONE, "INVITE")?.at;
    let ringing = at(SERVICE, "SIP/2.0 180")?.at;
    Some(ringing.checked_sub(invite)? as f64 / 1000.0)
}

/// One direction: from the phone whose capture is `from`, over the relays to the NAT `to`.
fn direction(record: &CallRecord, from: &[Packet], into: &[Packet], to: Ipv4Addr) -> Direction {
    let sent = rtp(from, |packet| packet.source == PHONE);
    let known = |set: BTreeSet<Rtp>| set.intersection(&sent).count();
    let flip = record.flipped_at.unwrap_or(u64::MAX);
    let relayed = |packets: &[Packet], relay: Ipv4Addr, since: u64| {
        known(rtp(packets, |packet| {
            packet.source == relay && packet.destination == to && packet.at >= since
        }))
    };
    let (edge1, edge2) = (&record.seen.edge1, &record.seen.edge2);
    Direction {
        relayed: [relayed(edge1, EDGE1, 0), relayed(edge2, EDGE2, 0)],
        relayed_after_flip: [relayed(edge1, EDGE1, flip), relayed(edge2, EDGE2, flip)],
        received: known(rtp(into, |packet| packet.destination == PHONE)),
        strayed: known(rtp(into, |packet| {
            packet.destination == PHONE && packet.source != EDGE1
        })),
        sent: sent.len(),
    }
}

fn rtp(packets: &[Packet], which: impl Fn(&Packet) -> bool) -> BTreeSet<Rtp> {
    packets
        .iter()
        .filter(|packet| which(packet))
        .filter_map(|packet| packet.udp()?.rtp())
        .collect()
}

/// The phones' messages as they reach the concentrator.
fn tunnelled(packets: &[Packet]) -> Vec<Tunnelled> {
    packets
        .iter()
        .filter_map(|packet| {
            let (key, inner) = packet.gre()?;
            let line = inner.transport()?.sip_start_line()?;
            Some(Tunnelled {
                at: packet.at,
                key,
                mark: inner.mark(),
                from: inner.source,
                line,
            })
        })
        .collect()
}
