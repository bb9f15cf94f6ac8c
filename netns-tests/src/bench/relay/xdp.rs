//! The same streams through our relay by XDP (native) and through rtpengine in user space, with all work of
//! the machine counted: what the kernel does in soft interrupts is charged to no process of theirs.
//!
//! Packets come as from a network card's driver ([`crate::bench::driver`]), in pages: [`AT_ONCE`] that have gathered, as cards
//! let them, and in a second series each by itself. At the phones' end of the wire what the relay sends is counted and dropped, at the first place where that can be.
//!
//! CPU is all that the machine's CPUs were not idle ([`IdleTime`]), less what they use at rest with the same programs.
//! From that is taken what it costs, by the same account, that the relay's end drops all packets as they come
//! in: generator and link. The figures with these left in are bounds from above, and are reported beside.

use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::EbpfLoader;
use aya::maps::Array;
use serde_json::{Map, Value, json};

use super::network::{PHONES, RELAY};
use super::servers::{Kind, PhonePorts, RelaySession, Server};
use super::streams::PACKET;
use super::{Bench, PEER, median, sorted};
use crate::bench::driver::{Attached, BURST, Generator, Pace, device};
use crate::bench::idle_time::{IdleTime, at_rest};
use crate::bench::{Conditions, Outcome};
use crate::{http, raw, rtpengine, wait};

/// Calls in progress: with more, rtpengine needs more than a slow machine has.
pub(super) const CALLS: usize = 300;
const ROUNDS: usize = 5;
/// How long the machine is looked at without packets, before each run: 0.001 cores are 33 ns a packet.
pub(super) const LOOK: Duration = Duration::from_secs(2);
/// 50 packets a second of both phones of each call.
const RATE: u32 = CALLS as u32 * 100;
/// Packets that a driver finds at once; 8 are those of 267 us.
const AT_ONCE: [u32; 2] = [8, 1];
const WARM_UP: u32 = 2 * RATE;
/// About 5 s of them, in whole bursts.
const PACKETS: u32 = 5 * RATE / BURST * BURST;
/// The agent reads the counters of XDP once a second.
const STATUS: Duration = Duration::from_millis(1_500);
/// Where packets go that are dropped before.
const NOWHERE: RelaySession = RelaySession {
    a: 20_000,
    b: 20_002,
};
/// Of the machine's time: with more something else is at work, or packets are late.
const MOST_BUSY: f64 = 0.9;
/// Octets of Ethernet, IPv4, UDP and RTP header.
const HEADERS: usize = 14 + 20 + 8 + 12;

/// At the phones' end, where nothing comes by XDP.
const SINK: &str = r#"
table netdev sink {
    chain back {
        type filter hook ingress device "relay" priority 0
        ip daddr 10.0.1.1 udp dport >= 1024 udp length 180 counter drop
    }
}
"#;

/// What the relay's end does with the packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Drops,
    Rtpengine,
    Xdp,
}

impl Way {
    const ALL: [Self; 3] = [Self::Drops, Self::Rtpengine, Self::Xdp];
}

/// Work of the whole machine for each packet that was sent, and how many came back.
#[derive(Debug, Clone, Copy)]
struct Cost {
    ns: f64,
    came_back: u64,
}

impl Bench<'_> {
    /// The column of the fast path.
    pub(super) fn fast_path(&self) -> Result<Vec<Outcome>> {
        at_rest(LOOK).context("before anything was started")?;
        AT_ONCE
            .map(|at_once| self.series(at_once))
            .into_iter()
            .collect()
    }

    fn series(&self, at_once: u32) -> Result<Outcome> {
        let mut rounds = Vec::new();
        for round in 1..=ROUNDS {
            let measure = |way| {
                let cost = self.measure(way, at_once)?;
                eprintln!(
                    "bench relay/xdp: round {round} of {ROUNDS}, {CALLS} calls, {at_once} at once, {way:?}: {:.0} ns of all cores a packet, \
                     {} of {PACKETS} came back",
                    cost.ns, cost.came_back
                );
                anyhow::Ok(cost)
            };
            let [alone, peer, ours] = Way::ALL.map(measure);
            rounds.push([alone?, peer?, ours?]);
        }
        Ok(outcome(&rounds, at_once))
    }

    fn measure(&self, way: Way, at_once: u32) -> Result<Cost> {
        let ends = Ends::new(self, way)?;
        let mut server = match way {
            Way::Drops => None,
            Way::Xdp => Some(Server::start(&self.net, Kind::SipcastXdp, self.folder)?),
            Way::Rtpengine => Some(Server::start(&self.net, Kind::Rtpengine, self.folder)?),
        };
        let ports = self.phones.ports();
        let sessions = match &mut server {
            Some(server) => server.set_up(CALLS, ports)?.0,
            None => vec![NOWHERE; CALLS],
        };
        let mut generator = self.calls(&sessions, ports, at_once)?;
        // Streams latch, caches get warm.
        generator.send(WARM_UP)?;
        let before = (ends.settled()?, ends.relayed_by_xdp()?);
        let (at_rest, start) = at_rest(LOOK)?;
        generator.send(PACKETS)?;
        let end = IdleTime::now()?;
        let after = (ends.settled()?, ends.relayed_by_xdp()?);
        generator.end()?;
        if let Some(server) = &mut server {
            server.check_alive()?;
        }
        drop(server);
        ends.take_away()?;
        let share = end.share_since(&start);
        ensure!(
            share < MOST_BUSY,
            "{way:?}: {:.0} % of the machine's time was in use; this needs a quiet machine",
            share * 100.0
        );
        let (came_back, by_xdp) = (after.0 - before.0, after.1 - before.1);
        let is_most = |count: u64| count * 100 >= u64::from(PACKETS) * 99;
        ensure!(
            way == Way::Drops || is_most(came_back),
            "{way:?}: only {came_back} of {PACKETS} packets came back"
        );
        ensure!(
            way != Way::Xdp || is_most(by_xdp),
            "only {by_xdp} of {PACKETS} packets were relayed by XDP"
        );
        let all = end.busy_since(&start) as f64 - at_rest * end.since(&start) as f64;
        Ok(Cost {
            ns: all / f64::from(PACKETS),
            came_back,
        })
    }

    /// Packets of all phones of these sessions, out of the phones' end.
    fn calls(
        &self,
        sessions: &[RelaySession],
        ports: PhonePorts,
        at_once: u32,
    ) -> Result<Generator<'_>> {
        let (_, to) = device(&self.net.relay, "phones")?;
        let (interface, from) = device(&self.net.phones, "relay")?;
        // The program puts in what differs, and the checksum.
        let rtp = [&[0x80, 0][..], &[0; 10], &[0xd5; PACKET - 12]].concat();
        let packet = raw::ipv4(PHONES, RELAY, 0, raw::UDP, &raw::udp(0, 0, &rtp));
        let frame = [&to[..], &from[..], &[8, 0], &packet].concat();
        let headers: [u8; HEADERS] = *frame.first_chunk().context("a frame without headers")?;
        let streams = u32::try_from(sessions.len() * 2)?;
        let sum = constant_sum(&packet);
        let mut loader = EbpfLoader::new();
        loader
            .override_global("interface", &interface, true)
            .override_global("call_headers", &headers, true)
            .override_global("call_sum", &sum, true)
            .override_global("sources", &streams, true);
        let program = ("generate_calls", &mut loader);
        let pace = Pace {
            batch: at_once,
            rate: RATE,
        };
        let mut generator = Generator::new(&self.net.phones, program, frame, pace)?;
        let map = generator.programs().map_mut("streams");
        let mut map = Array::<_, [u8; 12]>::try_from(map.context("no map of this name")?)?;
        for (number, session) in sessions.iter().enumerate() {
            let sides = [(ports.a(number), session.a), (ports.b(number), session.b)];
            for (side, (source, destination)) in sides.into_iter().enumerate() {
                let stream = u32::try_from(2 * number + side)?;
                map.set(stream, record(source, destination, stream), 0)?;
            }
        }
        Ok(generator)
    }

    /// Packets that the agent has relayed by XDP so far, by its status.
    pub(super) fn relayed_by_xdp(&self) -> Result<u64> {
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, 9103));
        let status = http::get(&self.net.relay, admin, "/status")?;
        let status: Value = serde_json::from_str(&status)?;
        let count = status.pointer("/xdp/counters/forward_back");
        count
            .and_then(Value::as_u64)
            .with_context(|| format!("no XDP: {:?}", status.get("xdp")))
    }
}

/// Both ends of the wire, for one way.
struct Ends<'a> {
    bench: &'a Bench<'a>,
    way: Way,
    /// What is at an end while this is.
    program: Option<Attached>,
}

impl<'a> Ends<'a> {
    fn new(bench: &'a Bench<'a>, way: Way) -> Result<Self> {
        let (phones, relay) = (&bench.net.phones, &bench.net.relay);
        let program = match way {
            Way::Drops => Some(Attached::new("drop", relay, "phones", RELAY)?),
            // Before the program of the relay, without which it would not send anything.
            Way::Xdp => Some(Attached::new("sink", phones, "relay", PHONES)?),
            Way::Rtpengine => {
                // Without a program, this is what makes the end take frames in pages.
                relay.run("ethtool -K phones gro on")?;
                phones.nft(SINK)?;
                None
            }
        };
        Ok(Self {
            bench,
            way,
            program,
        })
    }

    /// Packets that have come back so far, when no more come.
    fn settled(&self) -> Result<u64> {
        let mut last = self.counted()?;
        wait::until("the last packets", Duration::from_secs(5), || {
            thread::sleep(Duration::from_millis(20));
            let now = self.counted()?;
            let is_quiet = now == last;
            last = now;
            Ok(is_quiet.then_some(now))
        })
    }

    fn counted(&self) -> Result<u64> {
        match (self.way, &self.program) {
            (Way::Drops, _) => Ok(0),
            (Way::Xdp, Some(sink)) => sink.taken(),
            (Way::Xdp | Way::Rtpengine, _) => {
                let listing = self.bench.net.phones.run("nft list table netdev sink")?;
                let mut words = listing.split_whitespace();
                let _name = words.find(|word| *word == "packets");
                let count = words.next().and_then(|count| count.parse().ok());
                count.with_context(|| format!("no counter in {listing}"))
            }
        }
    }

    fn relayed_by_xdp(&self) -> Result<u64> {
        if self.way != Way::Xdp {
            return Ok(0);
        }
        thread::sleep(STATUS);
        self.bench.relayed_by_xdp()
    }

    fn take_away(self) -> Result<()> {
        if self.way == Way::Rtpengine {
            self.bench.net.phones.run("nft delete table netdev sink")?;
            self.bench.net.relay.run("ethtool -K phones gro off")?;
        }
        Ok(())
    }
}

fn outcome(rounds: &[[Cost; 3]], at_once: u32) -> Outcome {
    let of = |way: Way| {
        rounds
            .iter()
            .map(move |costs| costs[way as usize].ns)
            .collect::<Vec<_>>()
    };
    let alone = of(Way::Drops);
    let beyond = |way: Way| -> Vec<f64> {
        let pairs = of(way).into_iter().zip(&alone);
        pairs.map(|(all, alone)| all - alone).collect()
    };
    let ratios = |ours: &[f64], peer: &[f64]| -> Vec<f64> {
        sorted(
            ours.iter()
                .zip(peer)
                .map(|(ours, peer)| ours / peer)
                .collect(),
        )
    };
    let (ours, peer) = (beyond(Way::Xdp), beyond(Way::Rtpengine));
    let figures = ratios(&ours, &peer);
    let whole = ratios(&of(Way::Xdp), &of(Way::Rtpengine));
    let sent = u64::from(PACKETS) * rounds.len() as u64;
    let came_back = |way: Way| -> u64 {
        rounds
            .iter()
            .map(|costs| costs[way as usize].came_back)
            .sum()
    };
    let mut conditions = Conditions::of(
        sent,
        came_back(Way::Xdp),
        Duration::from_secs_f64(f64::from(PACKETS) / f64::from(RATE)) * rounds.len() as u32,
        PACKET,
    );
    conditions.more = json!({
        "calls": CALLS,
        "packets_at_once": at_once,
        "ours_rounds": sorted(ours.clone()),
        "peer_rounds": sorted(peer.clone()),
        "ratios": figures,
        "generator_ns": sorted(alone),
        "with_generator": {
            "ours": sorted(of(Way::Xdp)),
            "peer": sorted(of(Way::Rtpengine)),
            "ratios": whole,
        },
        "lost": {
            "ours": sent.saturating_sub(came_back(Way::Xdp)),
            "peer": sent.saturating_sub(came_back(Way::Rtpengine)),
        },
        "peer_version": rtpengine::version(),
    });
    Outcome {
        bench: "relay",
        unit: "ns_cpu_per_packet_xdp",
        ours: median(&sorted(ours)),
        peer: Some(median(&sorted(peer))),
        peer_name: Some(PEER),
        ratio: Some(median(&figures)),
        beside: Map::new(),
        conditions,
    }
}

/// Of the UDP checksum, in the order of the wire: the addresses, the protocol, the length twice, and the payload.
fn constant_sum(packet: &[u8]) -> u32 {
    let word = |pair: &[u8]| u32::from(u16::from_ne_bytes([pair[0], pair[1]]));
    let addresses = &packet[12..20];
    let length = &packet[24..26];
    let protocol = [0, raw::UDP];
    let parts = [addresses, &protocol[..], length, length, &packet[28..]];
    parts
        .iter()
        .flat_map(|part| part.chunks_exact(2))
        .map(word)
        .sum()
}

/// One of the map: ports and SSRC in the order of the wire, nothing sent.
fn record(source: u16, destination: u16, stream: u32) -> [u8; 12] {
    let mut record = [0; 12];
    record[..2].copy_from_slice(&source.to_be_bytes());
    record[2..4].copy_from_slice(&destination.to_be_bytes());
    record[4..8].copy_from_slice(&(stream + 1).to_be_bytes());
    record
}
