//! RTP both ways through many sessions from two sockets, and when each packet arrived.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use wire::relay_control::Lease;

use crate::namespace::Namespace;

const PAYLOAD: usize = 160;
/// Packets go out in this many parts of their interval.
const PARTS: usize = 20;
const BUFFER: usize = 16 << 20;

/// A packet of this session arrived so long after the begin.
type Arrival = (u32, Duration);

/// Both directions of all sessions, running.
pub(super) struct Streams {
    begin: Instant,
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    senders: Vec<JoinHandle<()>>,
    receivers: Vec<JoinHandle<Vec<Arrival>>>,
}

/// What arrived.
pub(super) struct Heard {
    pub(super) sent: u64,
    /// By direction.
    arrivals: [Vec<Arrival>; 2],
    sessions: usize,
}

/// How long it was quiet around a moment.
pub(super) struct Gaps {
    /// Between the last packet of all before and the first of all after.
    pub(super) relay: Duration,
    /// Of each stream that goes on, the shortest first.
    pub(super) streams: Vec<Duration>,
    /// Sessions of which one direction or both did not go on.
    pub(super) silent_sessions: usize,
}

impl Streams {
    /// Starts sending and receiving.
    pub(super) fn start(
        namespace: &Namespace,
        phones: Ipv4Addr,
        leases: &[Lease],
        interval: Duration,
    ) -> Result<Self> {
        let sides = [
            leases.iter().map(|lease| lease.a).collect::<Vec<_>>(),
            leases.iter().map(|lease| lease.b).collect(),
        ];
        let mut streams = Self {
            begin: Instant::now(),
            stop: Arc::default(),
            sent: Arc::default(),
            senders: Vec::new(),
            receivers: Vec::new(),
        };
        for (port, side) in [4_000, 5_000].into_iter().zip(sides) {
            let socket = namespace.inside(|| Ok(UdpSocket::bind((phones, port))?))?;
            enlarge(&socket)?;
            socket.set_read_timeout(Some(Duration::from_millis(100)))?;
            let to = side.iter().map(|side| SocketAddr::new(side.addr, side.rtp));
            let to: Vec<SocketAddr> = to.collect();
            let (sender, stop) = (socket.try_clone()?, Arc::clone(&streams.stop));
            let sent = Arc::clone(&streams.sent);
            streams.senders.push(thread::spawn(move || {
                send(&sender, &to, interval, &stop, &sent)
            }));
            let (begin, stop) = (streams.begin, Arc::clone(&streams.stop));
            streams
                .receivers
                .push(thread::spawn(move || receive(&socket, begin, &stop)));
        }
        Ok(streams)
    }

    /// Since the start.
    pub(super) fn now(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Ends both ways.
    pub(super) fn stop(self, sessions: usize) -> Result<Heard> {
        self.stop.store(true, Ordering::Relaxed);
        let panicked = |_| anyhow!("a thread of the bench panicked");
        for sender in self.senders {
            sender.join().map_err(panicked)?;
        }
        let mut arrivals = [Vec::new(), Vec::new()];
        for (arrivals, receiver) in arrivals.iter_mut().zip(self.receivers) {
            *arrivals = receiver.join().map_err(panicked)?;
        }
        Ok(Heard {
            sent: self.sent.load(Ordering::Relaxed),
            arrivals,
            sessions,
        })
    }
}

impl Heard {
    /// Packets.
    pub(super) fn received(&self) -> u64 {
        self.arrivals.iter().map(|way| way.len() as u64).sum()
    }

    /// The longest silences from half a second before `moment` on; a stream without a packet in the last
    /// half second before `end` has not gone on.
    pub(super) fn gaps(&self, moment: Duration, end: Duration) -> Gaps {
        let half = Duration::from_millis(500);
        let from = moment.saturating_sub(half);
        let mut all: Vec<Duration> = Vec::new();
        let mut streams = Vec::new();
        let mut silent = vec![false; self.sessions];
        for way in &self.arrivals {
            let mut last: Vec<Option<Duration>> = vec![None; self.sessions];
            let mut longest = vec![Duration::ZERO; self.sessions];
            for &(session, at) in way.iter().filter(|(_, at)| (from..end).contains(at)) {
                let session = session as usize;
                let before = last[session].replace(at).unwrap_or(from);
                longest[session] = longest[session].max(at.saturating_sub(before));
                all.push(at);
            }
            for (session, last) in last.iter().enumerate() {
                match last {
                    Some(last) if *last + half >= end => streams.push(longest[session]),
                    Some(_) | None => silent[session] = true,
                }
            }
        }
        all.sort_unstable();
        streams.sort_unstable();
        let relay = all.windows(2).map(|pair| pair[1].saturating_sub(pair[0]));
        Gaps {
            relay: relay.max().unwrap_or(end.saturating_sub(from)),
            streams,
            silent_sessions: silent.into_iter().filter(|silent| *silent).count(),
        }
    }
}

fn send(
    socket: &UdpSocket,
    to: &[SocketAddr],
    interval: Duration,
    stop: &AtomicBool,
    sent: &AtomicU64,
) {
    let mut packet = [0_u8; 12 + PAYLOAD];
    packet[0] = 0x80;
    let part = interval / PARTS as u32;
    let mut due = Instant::now();
    let mut round = 0_u32;
    while !stop.load(Ordering::Relaxed) {
        packet[2..4].copy_from_slice(&(round as u16).to_be_bytes());
        packet[4..8].copy_from_slice(&round.wrapping_mul(160).to_be_bytes());
        for place in 0..PARTS {
            for (session, to) in to.iter().enumerate().skip(place).step_by(PARTS) {
                packet[8..12].copy_from_slice(&(session as u32).to_be_bytes());
                // While the host is gone nobody answers for its address, and the kernel says so.
                let ok = socket.send_to(&packet, to).is_ok();
                sent.fetch_add(u64::from(ok), Ordering::Relaxed);
            }
            due += part;
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        round = round.wrapping_add(1);
    }
}

fn receive(socket: &UdpSocket, begin: Instant, stop: &AtomicBool) -> Vec<Arrival> {
    let mut arrivals = Vec::new();
    let mut buffer = [0; 2_048];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, _)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        if let Some(ssrc) = buffer[..length].get(8..12) {
            let ssrc = ssrc.first_chunk().copied().map_or(0, u32::from_be_bytes);
            arrivals.push((ssrc, begin.elapsed()));
        }
    }
    arrivals
}

fn enlarge(socket: &UdpSocket) -> Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};
    // The bench may run without root.
    if setsockopt(socket, sockopt::RcvBufForce, &BUFFER).is_err() {
        setsockopt(socket, sockopt::RcvBuf, &BUFFER)?;
    }
    Ok(())
}
