//! What a capture at the phones says of the calls: when a phone rang, and through what media went.
//!
//! Times are those of the kernel as a packet leaves or reaches the phones' interface. SIPp's own have
//! steps of some milliseconds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context as _, Result, ensure};

use super::super::load::{CALLEE_PORT, CALLER_PORT};
use crate::frame::Packet;

/// What one call was like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    /// From the caller's INVITE to its first 180, in milliseconds.
    pub(super) ringing_ms: f64,
    /// The same to its first 200.
    pub(super) answered_ms: f64,
    /// RTP packets that the callee and the caller got from the relay.
    pub(super) heard: [usize; 2],
}

/// What has been seen of one so far.
#[derive(Debug, Default)]
struct Seen {
    invited: Option<u64>,
    rang: Option<u64>,
    answered: Option<u64>,
    /// Where the callee and the caller were told to send media to.
    told: [Option<SocketAddrV4>; 2],
}

/// All calls of a capture, in no order. Fails where one is not complete, or its media do not go through
/// `relay` in both directions.
pub(super) fn of(packets: &[Packet], phones: Ipv4Addr, relay: Ipv4Addr) -> Result<Vec<Call>> {
    let mut calls: BTreeMap<String, Seen> = BTreeMap::new();
    for packet in packets {
        note(packet, phones, &mut calls);
    }
    let heard = heard(packets, phones);
    let mut used = BTreeSet::new();
    calls
        .iter()
        .map(|(id, seen)| judge(seen, relay, &heard, &mut used).with_context(|| id.clone()))
        .collect()
}

fn note(packet: &Packet, phones: Ipv4Addr, calls: &mut BTreeMap<String, Seen>) {
    let Some(segment) = packet.udp() else { return };
    let (Some(line), Some(sequence), Some(id)) = (
        segment.sip_start_line(),
        segment.sip_header("CSeq"),
        segment.sip_header("Call-ID"),
    ) else {
        return;
    };
    if !sequence.ends_with(" INVITE") {
        return;
    }
    let seen = calls.entry(id).or_default();
    let port = (packet.destination == phones).then(|| segment.destination.port());
    let told = || segment.audio_address();
    if line.starts_with("INVITE ") {
        match port {
            Some(CALLEE_PORT) => seen.told[0] = seen.told[0].or_else(told),
            _ if packet.source == phones => {
                seen.invited.get_or_insert(packet.at);
            }
            _ => {}
        }
    } else if port == Some(CALLER_PORT) && line.starts_with("SIP/2.0 180 ") {
        seen.rang.get_or_insert(packet.at);
    } else if port == Some(CALLER_PORT) && line.starts_with("SIP/2.0 200 ") {
        seen.answered.get_or_insert(packet.at);
        seen.told[1] = seen.told[1].or_else(told);
    }
}

/// RTP packets that the phones got, by who sent them.
fn heard(packets: &[Packet], phones: Ipv4Addr) -> BTreeMap<SocketAddrV4, usize> {
    let mut heard = BTreeMap::new();
    for packet in packets.iter().filter(|packet| packet.destination == phones) {
        let rtp = packet.udp().and_then(|segment| segment.rtp());
        if let (Some(_), [high, low, ..]) = (rtp, packet.payload.as_slice()) {
            let port = u16::from_be_bytes([*high, *low]);
            *heard
                .entry(SocketAddrV4::new(packet.source, port))
                .or_default() += 1;
        }
    }
    heard
}

fn judge(
    seen: &Seen,
    relay: Ipv4Addr,
    heard: &BTreeMap<SocketAddrV4, usize>,
    used: &mut BTreeSet<SocketAddrV4>,
) -> Result<Call> {
    let invited = seen.invited.context("no INVITE left the caller")?;
    let after = |at: Option<u64>, what: &str| -> Result<f64> {
        let at = at.with_context(|| format!("the caller got no {what}"))?;
        Ok(at.saturating_sub(invited) as f64 / 1e3)
    };
    let mut counts = [0; 2];
    for ((told, count), who) in seen.told.iter().zip(&mut counts).zip(["callee", "caller"]) {
        let told = told.with_context(|| format!("the {who} got no session description"))?;
        ensure!(
            *told.ip() == relay,
            "the {who} was told to send media to {told}, which is not the relay"
        );
        ensure!(
            used.insert(told),
            "{told} was given to two phones, so nobody can say whose media it carried"
        );
        *count = heard.get(&told).copied().unwrap_or_default();
        ensure!(*count > 0, "the {who} got no media from {told}");
    }
    Ok(Call {
        ringing_ms: after(seen.rang, "180")?,
        answered_ms: after(seen.answered, "200")?,
        heard: counts,
    })
}

#[cfg(test)]
mod tests;
