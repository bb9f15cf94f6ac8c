//! The loop of a media thread: which ports have something, receive, ask the relay, send.
//!
//! One round serves every port that has something: one wake-up, one datagram from each, one lock for
//! all their judgements, and then the datagrams go out without the lock. A port that has more comes
//! again in the next round, so the order within a stream is that of arrival and a flooded port waits
//! like all others.
//!
//! While packets come in quick succession the thread sleeps for the gathering time after its rounds:
//! a wake-up for each packet costs as much as half of the packet's way through the kernel. A single
//! call is relayed at once.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::warn;
use tunnel_io::media_port::{PortPoller, ReadyPorts};

use super::open_ports::{PortNumber, SessionPorts};
use super::{SharedEngine, now};

/// A longer packet is dropped and counted; RTP keeps below the path's MTU (RFC 3550 section 11).
const MAX_PACKET: usize = 2048;
/// Ports served in one round.
const MAX_ROUND: usize = 128;
/// Packets in one gathering time from which on it pays to wait for more.
const QUICK_SUCCESSION: usize = 4;
/// Packets begin at such an offset in the buffer, that of a cache line.
const ALIGNMENT: usize = 64;
/// After a failed receive, so that a lack of memory does not become a busy loop.
const RECEIVE_PAUSE: Duration = Duration::from_millis(5);

/// Relays what the poller tells, until the poller is closed or fails.
pub(super) fn run(engine: &SharedEngine, poller: &PortPoller) -> io::Result<()> {
    let mut round = Round::new(engine);
    let mut pace = Pace::new(engine.gather, now());
    while poller.wait(&mut round.ready, None)?.is_some() {
        let packets = round.serve();
        if pace.is_quick(packets, now()) {
            while poller.wait(&mut round.ready, Some(Duration::ZERO))? > Some(0) {
                round.serve();
            }
            std::thread::sleep(engine.gather);
        }
    }
    Ok(())
}

/// The buffers of one round.
struct Round<'a> {
    engine: &'a SharedEngine,
    ready: ReadyPorts,
    packets: Vec<Packet>,
    bytes: Box<[u8]>,
    oversize: u64,
    failed: Vec<(Arc<SessionPorts>, PortNumber)>,
}

/// A packet on its way through a round.
struct Packet {
    ports: Arc<SessionPorts>,
    /// Where it came in.
    number: PortNumber,
    from: SocketAddr,
    bytes: Range<usize>,
    /// Where it goes.
    to: Option<SocketAddr>,
}

impl<'a> Round<'a> {
    fn new(engine: &'a SharedEngine) -> Self {
        Self {
            engine,
            ready: ReadyPorts::new(MAX_ROUND),
            packets: Vec::with_capacity(MAX_ROUND),
            bytes: vec![0; MAX_ROUND * (MAX_PACKET + ALIGNMENT)].into(),
            oversize: 0,
            failed: Vec::new(),
        }
    }

    /// Serves the ports that are ready; how many packets that were.
    fn serve(&mut self) -> usize {
        self.find_ports();
        self.receive();
        self.judge();
        self.send();
        let served = self.packets.len();
        self.packets.clear();
        served
    }

    fn find_ports(&mut self) {
        let core = self.engine.lock();
        for told in self.ready.iter() {
            // A session may have ended since.
            let Some((ports, number)) = core.ports.told(told) else {
                continue;
            };
            self.packets.push(Packet {
                ports: Arc::clone(ports),
                number,
                from: SocketAddr::from(([0; 4], 0)),
                bytes: 0..0,
                to: None,
            });
        }
    }

    /// One datagram from each port, one behind the other in the buffer.
    fn receive(&mut self) {
        let Self {
            packets,
            bytes,
            oversize,
            ..
        } = self;
        let mut start = 0;
        let mut failure = None;
        packets.retain_mut(|packet| {
            let room = &mut bytes[start..start + MAX_PACKET];
            match packet.ports.socket(packet.number).receive(room) {
                Ok(None) => false,
                Ok(Some(arrival)) if arrival.length > MAX_PACKET => {
                    *oversize += 1;
                    false
                }
                Ok(Some(arrival)) => {
                    packet.from = arrival.from;
                    packet.bytes = start..start + arrival.length;
                    start = packet.bytes.end.next_multiple_of(ALIGNMENT);
                    true
                }
                Err(error) => {
                    failure = Some(error);
                    false
                }
            }
        });
        if let Some(error) = failure {
            warn!(%error, "a media socket failed");
            std::thread::sleep(RECEIVE_PAUSE);
        }
    }

    /// Asks the relay about every packet. What was held goes out before the packet after it, and
    /// after those before it.
    fn judge(&mut self) {
        if self.packets.is_empty() && self.oversize == 0 {
            return;
        }
        let mut core = self.engine.lock();
        core.drops.oversize += std::mem::take(&mut self.oversize);
        let now = now();
        let mut sent = 0;
        for index in 0..self.packets.len() {
            let packet = &mut self.packets[index];
            let port = packet.ports.name(packet.number);
            let bytes = &self.bytes[packet.bytes.clone()];
            let verdict = core.relay.forward(port, packet.from, bytes, now);
            if core.relay.has_commands() {
                transmit(
                    &mut self.packets[sent..index],
                    &self.bytes,
                    &mut self.failed,
                );
                sent = index;
                core.perform();
            }
            self.packets[index].to = verdict.map(|(_, to)| to);
        }
        self.engine.wake_tasks(&mut core);
    }

    fn send(&mut self) {
        transmit(&mut self.packets, &self.bytes, &mut self.failed);
        if self.failed.is_empty() {
            return;
        }
        let mut core = self.engine.lock();
        for (ports, number) in self.failed.drain(..) {
            core.count_failed(ports.name(number));
        }
    }
}

/// Sends the packets that have somewhere to go and have not gone yet.
fn transmit(
    packets: &mut [Packet],
    bytes: &[u8],
    failed: &mut Vec<(Arc<SessionPorts>, PortNumber)>,
) {
    for packet in packets {
        let Some(to) = packet.to.take() else {
            continue;
        };
        let socket = packet.ports.socket_across(packet.number);
        if socket.send(to, &bytes[packet.bytes.clone()]).is_err() {
            failed.push((
                Arc::clone(&packet.ports),
                SessionPorts::across(packet.number),
            ));
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
