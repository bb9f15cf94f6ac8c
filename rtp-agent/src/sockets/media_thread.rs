//! The loop of a media thread: what has come, ask the relay, send.
//!
//! One round serves what there is: one wake-up, one lock for all judgements, and then the datagrams go
//! out without the lock. The order within a stream is that of arrival. How packets are received and sent
//! is the [`Intake`]'s: a socket a port (`per_port`) or few sockets for all (`shared`).
//!
//! While packets come in quick succession the thread sleeps for the gathering time after its rounds:
//! a wake-up for each packet costs as much as half of the packet's way through the kernel. A single
//! call is relayed at once.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{SharedEngine, now};
use crate::relay::RelayPort;

/// A longer packet is dropped and counted; RTP keeps below the path's MTU (RFC 3550 section 11).
pub(crate) const MAX_PACKET: usize = 2048;
/// Packets in one gathering time from which on it pays to wait for more.
const QUICK_SUCCESSION: usize = 4;
/// After a failed receive, so that a lack of memory does not become a busy loop.
pub(super) const RECEIVE_PAUSE: Duration = Duration::from_millis(5);

/// How a media thread gets packets and sends them.
pub(super) trait Intake {
    /// Where a packet's bytes are, and where it goes out.
    type Place;

    /// Waits until there is something, or with `at_once` not at all; whether there is. `None` when the
    /// thread is to end.
    fn wait(&mut self, at_once: bool) -> io::Result<Option<bool>>;

    /// Receives a round; how many packets were too long.
    fn receive(&mut self, packets: &mut Vec<Packet<Self::Place>>) -> u64;

    /// The packet's bytes, until the next [`Intake::receive`].
    fn bytes(&self, place: &Self::Place) -> &[u8];

    /// Sends the packets that have somewhere to go, which they have no longer afterwards. Adds to `failed`
    /// the ports that could not send.
    fn transmit(&mut self, packets: &mut [Packet<Self::Place>], failed: &mut Vec<RelayPort>);
}

/// A packet on its way through a round.
pub(super) struct Packet<P> {
    /// Where it came in.
    pub(super) port: RelayPort,
    pub(super) from: SocketAddr,
    /// Where it goes.
    pub(super) to: Option<SocketAddr>,
    pub(super) place: P,
}

/// Relays what the intake gives, until it ends or fails.
pub(super) fn run<I: Intake>(engine: &SharedEngine, intake: I) -> io::Result<()> {
    let mut round = Round {
        engine,
        intake,
        packets: Vec::new(),
        failed: Vec::new(),
    };
    let mut pace = Pace::new(engine.gather, now());
    while round.intake.wait(false)?.is_some() {
        let packets = round.serve();
        if pace.is_quick(packets, now()) {
            while round.intake.wait(true)? == Some(true) {
                round.serve();
            }
            std::thread::sleep(engine.gather);
        }
    }
    Ok(())
}

/// The buffers of one round.
struct Round<'a, I: Intake> {
    engine: &'a SharedEngine,
    intake: I,
    packets: Vec<Packet<I::Place>>,
    failed: Vec<RelayPort>,
}

impl<I: Intake> Round<'_, I> {
    /// Serves what there is; how many packets that were.
    fn serve(&mut self) -> usize {
        let oversize = self.intake.receive(&mut self.packets);
        self.judge(oversize);
        self.send();
        let served = self.packets.len();
        self.packets.clear();
        served
    }

    /// Asks the relay about every packet. What was held goes out before the packet after it, and
    /// after those before it.
    fn judge(&mut self, oversize: u64) {
        if self.packets.is_empty() && oversize == 0 {
            return;
        }
        let mut core = self.engine.lock();
        core.drops.oversize += oversize;
        let now = now();
        let mut sent = 0;
        for index in 0..self.packets.len() {
            let packet = &self.packets[index];
            let bytes = self.intake.bytes(&packet.place);
            if core.relay.prepare(packet.port, packet.from, bytes, now) {
                core.perform();
            }
            let verdict = core.relay.forward(packet.port, packet.from, bytes, now);
            if core.relay.has_commands() {
                let before = &mut self.packets[sent..index];
                self.intake.transmit(before, &mut self.failed);
                sent = index;
                core.perform();
            }
            self.packets[index].to = verdict.map(|(_, to)| to);
        }
        self.engine.wake_tasks(&mut core);
    }

    fn send(&mut self) {
        self.intake.transmit(&mut self.packets, &mut self.failed);
        if self.failed.is_empty() {
            return;
        }
        let mut core = self.engine.lock();
        for port in self.failed.drain(..) {
            core.count_failed(port);
        }
    }
}

/// Whether packets come in quick succession, by how many came in the gathering time before.
struct Pace {
    gather: Duration,
    since: Instant,
    packets: usize,
    quick: bool,
}

impl Pace {
    fn new(gather: Duration, now: Instant) -> Self {
        Self {
            gather,
            since: now,
            packets: 0,
            quick: false,
        }
    }

    fn is_quick(&mut self, packets: usize, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) >= self.gather {
            self.quick = self.packets >= QUICK_SUCCESSION && !self.gather.is_zero();
            self.since = now;
            self.packets = 0;
        }
        self.packets += packets;
        self.quick
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const GATHER: Duration = Duration::from_millis(1);

    #[test]
    fn one_call_is_relayed_at_once_and_many_gather() {
        let mut now = clock::start();
        let mut pace = Pace::new(GATHER, now);
        for _ in 0..100 {
            now += Duration::from_millis(10);
            assert!(!pace.is_quick(1, now));
        }
        let quick = (0..100).filter(|_| {
            now += Duration::from_micros(100);
            pace.is_quick(1, now)
        });
        assert!(quick.count() > 70);
        now += Duration::from_millis(10);
        pace.is_quick(1, now);
        now += Duration::from_millis(10);
        assert!(!pace.is_quick(1, now));
    }

    #[test]
    fn without_a_gathering_time_nothing_waits() {
        let now = clock::start();
        let mut pace = Pace::new(Duration::ZERO, now);
        assert!((0..100).all(|_| !pace.is_quick(50, now)));
    }
}
