//! Streams of sockets through our relay by XDP (native) and through rtpengine in user space, with all work of
//! the machine counted, and the delay of their packets. [`super::xdp`] has frames as from a driver.
//!
//! CPU is that of all cores ([`IdleTime`]). From each run the work of a run with the load generator alone is
//! taken, in which the same phones send the same packets over the same wire, the callers at one end and the
//! callees at the other, so that each packet is sent, crosses the wire and is received once. With a relay it
//! crosses the wire twice; the second time is the relay's. A veth that XDP sends to needs an XDP program at
//! both ends, and what a socket sends is then copied into a page at the other one, as no network card has to.
//! So our runs are held against the load generator alone on a wire with such programs, which let everything
//! pass, and rtpengine's against it on a plain wire. The figure without that is reported beside it.

use anyhow::{Result, ensure};
use serde_json::{Map, json};

use super::servers::{Kind, RelaySession, Server};
use super::streams::{PACKET, Phones, Seen};
use super::xdp::{CALLS, LOOK};
use super::{Bench, PEER, TALK, median, sorted};
use crate::bench::idle_time::{IdleTime, at_rest};
use crate::bench::{Conditions, Outcome};
use crate::{rtpengine, xdp};

const ROUNDS: usize = 3;
/// Of the machine's time: with more something else is at work, or the phones cannot keep their rate.
const MOST_BUSY: f64 = 0.9;

/// Work of the whole machine for each packet that arrived.
struct Run {
    ns: f64,
    seen: Seen,
}

impl Run {
    fn new(name: &str, seen: Seen, before: &IdleTime, after: &IdleTime) -> Result<Self> {
        ensure!(seen.received > 0, "{name}: nothing arrived");
        let busy = after.busy_since(before) as f64;
        let share = after.share_since(before);
        ensure!(
            share < MOST_BUSY,
            "{name}: {:.0} % of the machine's time was in use; this needs a quiet machine",
            share * 100.0
        );
        let run = Self {
            ns: busy / seen.received as f64,
            seen,
        };
        eprintln!(
            "bench relay: {CALLS} calls, {name}: {:.0} ns of all cores a packet, {} of {} lost, delay {:.0}, \
             {:.0}, {:.0} us (50, 99, 99.9 %)",
            run.ns,
            run.seen.lost(),
            run.seen.sent,
            run.seen.delay_us(0.5),
            run.seen.delay_us(0.99),
            run.seen.delay_us(0.999),
        );
        Ok(run)
    }
}

impl Bench<'_> {
    /// The column of the fast path.
    pub(super) fn fast_path_by_socket(&self) -> Result<Vec<Outcome>> {
        let (idle, _) = at_rest(LOOK)?;
        let (mut plain, mut programs) = (Vec::new(), Vec::new());
        let (mut ours, mut peer) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            plain.push(self.generator_alone("the generator alone")?);
            peer.push(self.with(Kind::Rtpengine)?);
            programs.push(self.generator_and_programs()?);
            ours.push(self.by_xdp()?);
        }
        let beyond = |runs: &[Run], alone: &[Run]| -> Vec<f64> {
            let pairs = runs.iter().zip(alone);
            pairs.map(|(run, alone)| run.ns - alone.ns).collect()
        };
        let (our_ns, peer_ns) = (beyond(&ours, &programs), beyond(&peer, &plain));
        let ratios = our_ns.iter().zip(&peer_ns).map(|(ours, peer)| ours / peer);
        let ratios = sorted(ratios.collect());
        let sum = |runs: &[Run], of: fn(&Seen) -> u64| -> u64 {
            runs.iter().map(|run| of(&run.seen)).sum()
        };
        let mut conditions = Conditions::of(
            sum(&ours, |seen| seen.sent),
            sum(&ours, |seen| seen.received),
            TALK.measured * ROUNDS as u32,
            PACKET,
        );
        let all = |runs: &[Run]| sorted(runs.iter().map(|run| run.ns).collect());
        conditions.more = json!({
            "calls": CALLS,
            "ours_rounds": sorted(our_ns.clone()),
            "peer_rounds": sorted(peer_ns.clone()),
            "ratios": ratios,
            "generator_ns": all(&plain),
            "generator_ns_with_programs": all(&programs),
            "ours_beyond_plain_wire": sorted(beyond(&ours, &plain)),
            "idle_cores": idle,
            "lost": { "ours": sum(&ours, Seen::lost), "peer": sum(&peer, Seen::lost) },
            "sent": { "ours": sum(&ours, |seen| seen.sent), "peer": sum(&peer, |seen| seen.sent) },
            "delay_us_p99": {
                "ours": median(&sorted(ours.iter().map(|run| run.seen.delay_us(0.99)).collect())),
                "peer": median(&sorted(peer.iter().map(|run| run.seen.delay_us(0.99)).collect())),
            },
            "peer_version": rtpengine::version(),
        });
        Ok(vec![Outcome {
            bench: "relay/xdp-socket",
            unit: "ns_cpu_per_packet_xdp",
            ours: median(&sorted(our_ns)),
            peer: Some(median(&sorted(peer_ns))),
            peer_name: Some(PEER),
            ratio: Some(median(&ratios)),
            beside: Map::new(),
            conditions,
        }])
    }

    fn generator_and_programs(&self) -> Result<Run> {
        let ends = [(&self.net.phones, "relay"), (&self.net.relay, "phones")];
        for (namespace, device) in ends {
            xdp::let_pass(namespace, device)?;
        }
        let run = self.generator_alone("the generator alone, XDP programs on the wire");
        for (namespace, device) in ends {
            namespace.run(&format!("ip link set dev {device} xdp off"))?;
        }
        run
    }

    fn generator_alone(&self, name: &str) -> Result<Run> {
        let phones = Phones::open_apart(&self.net)?;
        let ports = phones.ports();
        let sessions = (0..CALLS).map(|number| RelaySession {
            a: ports.b(number),
            b: ports.a(number),
        });
        let sessions: Vec<_> = sessions.collect();
        let (seen, before, after) = phones.run(&sessions, TALK, IdleTime::now)?;
        Run::new(name, seen, &before, &after)
    }

    fn by_xdp(&self) -> Result<Run> {
        // A veth end takes what XDP sends only while it has a program too; without one it is cheaper, so
        // the other runs have none.
        xdp::let_pass(&self.net.phones, "relay")?;
        let run = self.with(Kind::SipcastXdp);
        self.net.phones.run("ip link set dev relay xdp off")?;
        run
    }

    fn with(&self, kind: Kind) -> Result<Run> {
        let mut server = Server::start(&self.net, kind, self.folder)?;
        let (sessions, _) = server.set_up(CALLS, self.phones.ports())?;
        let (seen, before, after) = self.phones.run(&sessions, TALK, IdleTime::now)?;
        server.check_alive()?;
        if kind == Kind::SipcastXdp {
            let relayed = self.relayed_by_xdp()?;
            ensure!(
                relayed as f64 >= 0.99 * seen.received as f64,
                "XDP has relayed {relayed} packets of {}",
                seen.received
            );
        }
        Run::new(kind.name(), seen, &before, &after)
    }
}
