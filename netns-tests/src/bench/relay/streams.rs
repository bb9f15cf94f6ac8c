//! Calls of G.711 through a relay: both phones of each send 172 octets of RTP in every period.
//!
//! One thread sends. A period has slots of 250 us, and the streams are spread over them, so that
//! packets come as evenly as those of many phones do. Each packet says which stream it is of, its
//! number and when it was sent. The other thread reads what the relay has sent on; when that came is
//! the kernel's time stamp, so this thread can be lazy. A run ends by itself.

use std::io::IoSliceMut;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, setsockopt, sockopt,
};
use nix::sys::time::TimeSpec;

use super::network::{Network, PHONES, RELAY};
use super::servers::{PhonePorts, RelaySession};

/// RTP header and 20 ms of G.711.
pub(super) const PACKET: usize = 172;
const SLOT: Duration = Duration::from_micros(250);
const BATCH: usize = 64;
/// Of the receiving sockets: half a second of the highest rate.
const BUFFER_BYTES: usize = 64 << 20;
const LAZY: Duration = Duration::from_micros(500);
/// What is under way when the sender has ended.
const AFTERWARDS: Duration = Duration::from_millis(300);
/// Sockets a side; a session uses one of each side.
const SOCKETS: usize = 2;

/// The phones' sockets.
pub(super) struct Phones {
    /// Those of side A, then those of side B.
    sockets: [[UdpSocket; SOCKETS]; 2],
    ports: PhonePorts,
    /// Where each side sends to.
    targets: [Ipv4Addr; 2],
}

/// How long a run lasts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    /// Each phone sends one packet in this time.
    pub(super) period: Duration,
    /// Before anything is counted.
    pub(super) warm_up: Duration,
    /// While packets are counted.
    pub(super) measured: Duration,
}

/// What has become of the packets that were sent while it was measured.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) sent: u64,
    pub(super) received: u64,
    /// Behind a later one of their stream.
    pub(super) out_of_order: u64,
    /// At the wrong phone, or not ours.
    pub(super) strays: u64,
    /// Sorted, in microseconds.
    delays_us: Vec<f32>,
}

impl Seen {
    pub(super) fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.received)
    }

    /// This quantile of the time from a phone's send to the arrival at the other.
    pub(super) fn delay_us(&self, quantile: f64) -> f64 {
        let last = self.delays_us.len().saturating_sub(1);
        let index = (last as f64 * quantile).round() as usize;
        self.delays_us.get(index).copied().map_or(0.0, f64::from)
    }
}

impl Phones {
    /// Opens the sockets in the calling thread's namespace.
    pub(super) fn open() -> Result<Self> {
        Self::of([open_side(PHONES)?, open_side(PHONES)?], [RELAY; 2])
    }

    /// Side A at the phones' end of the wire and side B at the relay's, without a relay.
    pub(super) fn open_apart(net: &Network) -> Result<Self> {
        let callers = net.phones.inside(|| open_side(PHONES))?;
        let callees = net.relay.inside(|| open_side(RELAY))?;
        Self::of([callers, callees], [RELAY, PHONES])
    }

    fn of(sockets: [[UdpSocket; SOCKETS]; 2], targets: [Ipv4Addr; 2]) -> Result<Self> {
        let mut ports = [[0; SOCKETS]; 2];
        for (side, ports) in ports.iter_mut().enumerate() {
            for (number, port) in ports.iter_mut().enumerate() {
                *port = sockets[side][number].local_addr()?.port();
            }
        }
        Ok(Self {
            sockets,
            ports: PhonePorts(ports),
            targets,
        })
    }

    /// Their ports.
    pub(super) const fn ports(&self) -> PhonePorts {
        self.ports
    }

    /// Sends and receives as planned. `mark` is called at both ends of the time that is measured, and
    /// what it gives comes back.
    pub(super) fn run<T: Send>(
        &self,
        sessions: &[RelaySession],
        plan: Plan,
        mark: impl Fn() -> Result<T>,
    ) -> Result<(Seen, T, T)> {
        self.drain()?;
        let start = Instant::now() + Duration::from_millis(50);
        let window = Window::of(start, plan);
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            let receiver = scope.spawn(|| self.receive(sessions.len() * 2, window, &ended));
            let sender = scope.spawn(|| {
                let sent = self.send(sessions, plan, start, window);
                thread::sleep(AFTERWARDS);
                ended.store(true, Ordering::Relaxed);
                sent
            });
            sleep_until(start + plan.warm_up);
            let before = mark();
            sleep_until(start + plan.warm_up + plan.measured);
            let after = mark();
            let panicked = |_| anyhow!("a thread of the load generator panicked");
            let sent = sender.join().map_err(panicked)??;
            let mut seen = receiver.join().map_err(panicked)??;
            seen.sent = sent;
            seen.delays_us.sort_unstable_by(f32::total_cmp);
            Ok((seen, before?, after?))
        })
    }

    /// Sends until the plan's end; how many packets in the time that is measured.
    fn send(
        &self,
        sessions: &[RelaySession],
        plan: Plan,
        start: Instant,
        window: Window,
    ) -> Result<u64> {
        prctl::set_timerslack(1000)?;
        let slots = (plan.period.as_micros() / SLOT.as_micros()) as u64;
        let to: Vec<SocketAddr> = sessions
            .iter()
            .flat_map(|session| [session.a, session.b])
            .zip(self.targets.iter().cycle())
            .map(|(port, target)| SocketAddr::from((*target, port)))
            .collect();
        let length = plan.warm_up + plan.measured + Duration::from_millis(200);
        let mut counted = 0;
        for tick in 0..(length.as_micros() / SLOT.as_micros()) as u64 {
            sleep_until(start + SLOT * tick as u32);
            let round = (tick / slots) as u32;
            for stream in ((tick % slots) as usize..to.len()).step_by(slots as usize) {
                let now = wall_clock_ns();
                let socket = &self.sockets[stream % 2][stream / 2 % SOCKETS];
                socket.send_to(&packet(stream, round, now), to[stream])?;
                counted += u64::from(window.holds(now));
            }
        }
        Ok(counted)
    }

    fn receive(&self, streams: usize, window: Window, ended: &AtomicBool) -> Result<Seen> {
        let mut seen = Seen::default();
        let mut last = vec![None; streams];
        let mut buffers = vec![[0_u8; 256]; BATCH];
        let space = cmsg_space!(TimeSpec);
        let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, Some(space));
        loop {
            let over = ended.load(Ordering::Relaxed);
            for (side, socket) in self.sides() {
                loop {
                    let mut slices: Vec<[IoSliceMut<'_>; 1]> = buffers
                        .iter_mut()
                        .map(|buffer| [IoSliceMut::new(buffer)])
                        .collect();
                    let flags = MsgFlags::MSG_DONTWAIT;
                    let fd = socket.as_raw_fd();
                    let messages = match recvmmsg(fd, &mut headers, slices.iter_mut(), flags, None)
                    {
                        Ok(messages) => messages,
                        Err(Errno::EAGAIN) => break,
                        Err(errno) => return Err(errno).context("receiving from the relay"),
                    };
                    for message in messages {
                        let bytes = message.iovs().next().unwrap_or_default();
                        let came = message.cmsgs()?.find_map(time_stamp);
                        let came = came.context("no time stamp")?;
                        seen.note(side, bytes, came, window, &mut last);
                    }
                }
            }
            if over {
                return Ok(seen);
            }
            thread::sleep(LAZY);
        }
    }

    /// Throws away what a run before has left.
    fn drain(&self) -> Result<()> {
        for (_, socket) in self.sides() {
            socket.set_nonblocking(true)?;
            while socket.recv(&mut [0; PACKET]).is_ok() {}
            socket.set_nonblocking(false)?;
        }
        Ok(())
    }

    fn sides(&self) -> impl Iterator<Item = (usize, &UdpSocket)> {
        self.sockets
            .iter()
            .enumerate()
            .flat_map(|(side, sockets)| sockets.iter().map(move |socket| (side, socket)))
    }
}

fn open_side(address: Ipv4Addr) -> Result<[UdpSocket; SOCKETS]> {
    let open = || -> Result<UdpSocket> {
        let socket = UdpSocket::bind((address, 0))?;
        if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_BYTES).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &BUFFER_BYTES)?;
        }
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        Ok(socket)
    };
    Ok([open()?, open()?])
}

impl Seen {
    fn note(
        &mut self,
        side: usize,
        bytes: &[u8],
        came: u64,
        window: Window,
        last: &mut [Option<u32>],
    ) {
        let Some((stream, number, sent)) = read(bytes) else {
            self.strays += 1;
            return;
        };
        let Some(last) = last.get_mut(stream).filter(|_| stream % 2 != side) else {
            self.strays += 1;
            return;
        };
        if !window.holds(sent) {
            *last = Some(number);
            return;
        }
        self.received += 1;
        self.out_of_order += u64::from(last.is_some_and(|last| number <= last));
        *last = Some(number);
        let delay = came.saturating_sub(sent);
        self.delays_us.push(delay as f32 / 1000.0);
    }
}

/// The time that is measured, in nanoseconds of the wall clock.
#[derive(Debug, Clone, Copy)]
struct Window {
    from: u64,
    to: u64,
}

impl Window {
    fn of(start: Instant, plan: Plan) -> Self {
        let until = start.saturating_duration_since(Instant::now()) + plan.warm_up;
        let from = wall_clock_ns() + until.as_nanos() as u64;
        Self {
            from,
            to: from + plan.measured.as_nanos() as u64,
        }
    }

    const fn holds(self, sent: u64) -> bool {
        self.from <= sent && sent < self.to
    }
}

fn packet(stream: usize, number: u32, now: u64) -> [u8; PACKET] {
    let mut packet = [0xd5; PACKET];
    let [.., high, low] = number.to_be_bytes();
    packet[..4].copy_from_slice(&[0x80, 0, high, low]);
    packet[4..8].copy_from_slice(&number.wrapping_mul(160).to_be_bytes());
    packet[8..12].copy_from_slice(&(stream as u32 + 1).to_be_bytes());
    packet[12..16].copy_from_slice(&(stream as u32).to_be_bytes());
    packet[16..20].copy_from_slice(&number.to_be_bytes());
    packet[20..28].copy_from_slice(&now.to_be_bytes());
    packet
}

fn read(bytes: &[u8]) -> Option<(usize, u32, u64)> {
    let bytes: &[u8; PACKET] = bytes.first_chunk()?;
    let (stream, rest) = bytes[12..].split_first_chunk()?;
    let (number, rest) = rest.split_first_chunk()?;
    let sent = rest.first_chunk()?;
    Some((
        u32::from_be_bytes(*stream) as usize,
        u32::from_be_bytes(*number),
        u64::from_be_bytes(*sent),
    ))
}

fn wall_clock_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}

/// When the kernel received it, in nanoseconds of the wall clock.
fn time_stamp(message: ControlMessageOwned) -> Option<u64> {
    if let ControlMessageOwned::ScmTimestampns(at) = message {
        return Some(at.tv_sec() as u64 * 1_000_000_000 + at.tv_nsec() as u64);
    }
    None
}

fn sleep_until(at: Instant) {
    let left = at.saturating_duration_since(Instant::now());
    if !left.is_zero() {
        thread::sleep(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_says_which_it_is_and_when_it_was_sent() {
        let bytes = packet(7, 70_000, 1_234_567_890_123);
        assert_eq!(read(&bytes), Some((7, 70_000, 1_234_567_890_123)));
        assert_eq!(read(&bytes[..PACKET - 1]), None);
    }

    #[test]
    fn what_comes_late_in_its_stream_or_to_the_wrong_phone_is_noticed() {
        let window = Window { from: 100, to: 200 };
        let (mut seen, mut last) = (Seen::default(), [None; 2]);
        for (side, number, sent) in [(1, 1, 110), (1, 3, 130), (1, 2, 120), (0, 4, 140)] {
            seen.note(
                side,
                &packet(0, number, sent),
                sent + 1000,
                window,
                &mut last,
            );
        }
        // Sent before the time that is measured.
        seen.note(1, &packet(0, 5, 99), 1000, window, &mut last);
        assert_eq!((seen.received, seen.out_of_order, seen.strays), (3, 1, 1));
        assert!((seen.delay_us(0.5) - 1.0).abs() < 1e-6);
    }
}
