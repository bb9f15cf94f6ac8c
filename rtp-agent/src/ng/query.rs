//! What a call has done, in the layout of rtpengine's `query`.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use wire::relay_control::{Counted, Rejected, Side, SideStatistics};

use super::calls::{Call, Line, Pair};
use super::reply::{Dictionary, Item};
use crate::relay::{Relay, SessionId};

/// Pairs whose streams are listed; the totals are those of all.
const MAX_LISTED: usize = 4;

/// Times that the reply shows in seconds since 1970.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// When the program started.
    pub started: Instant,
    /// The same in seconds since 1970.
    pub started_unix: u64,
}

impl Clock {
    fn unix(&self, at: Instant) -> Item {
        let since = at.saturating_duration_since(self.started).as_secs();
        Item::count(self.started_unix.saturating_add(since))
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    packets: u64,
    bytes: u64,
    errors: u64,
}

/// The whole reply.
pub fn describe(call: &Call, relay: &Relay, clock: Clock, now: Instant) -> Dictionary {
    let mut rtp = Sum::default();
    let mut rtcp = Sum::default();
    let lines = call.pairs.iter().flat_map(|pair| &pair.lines).flatten();
    for line in lines {
        let Some(stats) = relay.statistics_of(SessionId(line.lease.session), now) else {
            continue;
        };
        for side in [&stats.a, &stats.b] {
            rtp.add(&side.rtp);
            rtcp.add(&side.rtcp);
            rtp.errors += errors(&side.rejected);
        }
    }
    let mut tags = Dictionary::default();
    for pair in call.pairs.iter().take(MAX_LISTED) {
        tags = tags.with(
            name(&pair.tag_a),
            tag(pair, Side::A, relay, clock, call, now),
        );
        if let Some(tag_b) = &pair.tag_b {
            tags = tags.with(name(tag_b), tag(pair, Side::B, relay, clock, call, now));
        }
    }
    let totals = Dictionary::default()
        .with("RTP", rtp.item())
        .with("RTCP", rtcp.item());
    Dictionary::result("ok")
        .with("created", clock.unix(call.created))
        .with("last signal", clock.unix(call.last_signal))
        .with("SSRC", Item::Map(Dictionary::default()))
        .with("tags", Item::Map(tags))
        .with("totals", Item::Map(totals))
}

fn tag(pair: &Pair, side: Side, relay: &Relay, clock: Clock, call: &Call, now: Instant) -> Item {
    let (own, other) = match side {
        Side::A => (Some(&pair.tag_a), pair.tag_b.as_ref()),
        Side::B => (pair.tag_b.as_ref(), Some(&pair.tag_a)),
    };
    let medias = pair.lines.iter().enumerate();
    let medias = medias
        .filter_map(|(number, line)| Some(media(number, line.as_ref()?, side, relay, now)))
        .collect();
    let mut tag = Dictionary::default()
        .with("tag", Item::text(own.map_or(&[][..], Vec::as_slice)))
        .with("created", clock.unix(call.created));
    if let Some(other) = other {
        tag = tag.with("in dialogue with", Item::text(other));
    }
    Item::Map(tag.with("medias", Item::List(medias)))
}

fn media(number: usize, line: &Line, side: Side, relay: &Relay, now: Instant) -> Item {
    let stats = relay.statistics_of(SessionId(line.lease.session), now);
    let stats = stats.map(|stats| match side {
        Side::A => stats.a,
        Side::B => stats.b,
    });
    let ports = line.lease.side(side);
    let stream = |port: u16, peer: Option<SocketAddr>, sum: Sum| {
        let mut stream = Dictionary::default()
            .with("local port", Item::Integer(i64::from(port)))
            .with("local address", Item::text(ports.addr.to_string()));
        if let Some(peer) = peer {
            stream = stream.with("endpoint", endpoint(peer));
        }
        Item::Map(stream.with("stats", sum.item()))
    };
    let stats = stats.as_ref();
    let rtp = Sum::received(stats.map(|stats| &stats.rtp), stats);
    let rtcp = Sum::received(stats.map(|stats| &stats.rtcp), None);
    let streams = vec![
        stream(ports.rtp, stats.and_then(|stats| stats.latched_rtp), rtp),
        stream(ports.rtcp, stats.and_then(|stats| stats.latched_rtcp), rtcp),
    ];
    Item::Map(
        Dictionary::default()
            .with("index", Item::count(number as u64 + 1))
            .with("type", Item::text(&line.kind))
            .with("protocol", Item::text(&line.protocol))
            .with("streams", Item::List(streams)),
    )
}

fn endpoint(peer: SocketAddr) -> Item {
    let family = match peer.ip() {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    };
    Item::Map(
        Dictionary::default()
            .with("family", Item::text(family))
            .with("address", Item::text(peer.ip().to_string()))
            .with("port", Item::Integer(i64::from(peer.port()))),
    )
}

impl Sum {
    fn received(counted: Option<&Counted>, side: Option<&SideStatistics>) -> Self {
        let mut sum = Self::default();
        if let Some(counted) = counted {
            sum.add(counted);
        }
        sum.errors = side.map_or(0, |side| errors(&side.rejected));
        sum
    }

    const fn add(&mut self, counted: &Counted) {
        self.packets += counted.packets_in;
        self.bytes += counted.bytes_in;
    }

    fn item(self) -> Item {
        Item::Map(
            Dictionary::default()
                .with("packets", Item::count(self.packets))
                .with("bytes", Item::count(self.bytes))
                .with("errors", Item::count(self.errors)),
        )
    }
}

const fn errors(rejected: &Rejected) -> u64 {
    rejected.gate
        + rejected.latched
        + rejected.malformed
        + rejected.no_peer
        + rejected.ssrc
        + rejected.send_failed
}

fn name(tag: &[u8]) -> String {
    String::from_utf8_lossy(tag).into_owned()
}
