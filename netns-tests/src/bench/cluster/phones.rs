//! REGISTERs of many phones at a constant rate.
//!
//! One thread sends, out of a raw socket, so that each phone has its address; the other reads the answers, which
//! all come to one socket. A phone that is not answered does not repeat itself.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, setsockopt,
    socket, sockopt,
};

use crate::namespace::Namespace;
use crate::raw;
use crate::registrations::{PORT, address, register};
use crate::topology::two_edges::SERVICE;

/// Of the receiving socket.
const BUFFER_BYTES: usize = 64 << 20;
/// After the last REGISTER.
const AFTERWARDS: Duration = Duration::from_secs(2);

/// What became of REGISTERs.
#[derive(Debug, Default, Clone)]
pub(super) struct Answers {
    pub(super) sent: usize,
    /// From REGISTER to 200 of those that were answered, sorted.
    pub(super) delays_ms: Vec<f64>,
    /// How long sending took.
    pub(super) took: Duration,
}

impl Answers {
    pub(super) fn unanswered(&self) -> usize {
        self.sent - self.delays_ms.len()
    }

    /// A percentile.
    pub(super) fn delay_ms(&self, percent: usize) -> f64 {
        let last = self.delays_ms.len().saturating_sub(1);
        let at = (self.delays_ms.len() * percent / 100).min(last);
        self.delays_ms.get(at).copied().unwrap_or(f64::NAN)
    }
}

/// REGISTERs at a rate.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// Phones, each of which registers once, beginning with this.
    pub(super) first: u32,
    pub(super) cseq: u32,
    pub(super) expires_s: u32,
    pub(super) per_s: u32,
}

/// Sends them until `more` says no; it is asked before each with how many have been sent.
pub(super) fn registers(
    namespace: &Namespace,
    load: Load,
    more: impl FnMut(usize) -> bool + Send,
) -> Result<Answers> {
    namespace.inside(|| {
        let sender = raw_socket()?;
        let answers = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
        setsockopt(&answers, sockopt::RcvBufForce, &BUFFER_BYTES)?;
        answers.set_read_timeout(Some(Duration::from_millis(100)))?;
        let start = Instant::now();
        // When each was sent, in microseconds; there are enough for the longest run.
        let sent_at: Vec<AtomicU32> = (0..1 << 20).map(|_| AtomicU32::new(0)).collect();
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            let reader = scope.spawn(|| read(&answers, load.first, &sent_at, &ended, start));
            let sent = send(&sender, load, &sent_at, start, more);
            let took = start.elapsed();
            thread::sleep(AFTERWARDS);
            ended.store(true, Ordering::Relaxed);
            let mut delays_ms = reader.join().ok().context("the reader panicked")??;
            delays_ms.sort_by(f64::total_cmp);
            Ok(Answers {
                sent: sent?,
                delays_ms,
                took,
            })
        })
    })
}

fn raw_socket() -> Result<OwnedFd> {
    socket(
        AddressFamily::Inet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Raw,
    )
    .context("raw socket")
}

fn send(
    socket: &OwnedFd,
    load: Load,
    sent_at: &[AtomicU32],
    start: Instant,
    mut more: impl FnMut(usize) -> bool,
) -> Result<usize> {
    let to = SockaddrIn::from(SocketAddrV4::new(SERVICE, 0));
    let mut sent = 0;
    while sent < sent_at.len() && more(sent) {
        let due = start + Duration::from_secs_f64(sent as f64 / f64::from(load.per_s));
        let wait = due.saturating_duration_since(Instant::now());
        if wait > Duration::from_micros(500) {
            thread::sleep(wait);
        }
        let number = load.first + sent as u32;
        let message = register(number, load.cseq, load.expires_s);
        let datagram = raw::udp(PORT, 5060, &message);
        let packet = raw::ipv4(address(number), SERVICE, 0, raw::UDP, &datagram);
        let now = u32::try_from(start.elapsed().as_micros())?;
        sent_at[sent].store(now.max(1), Ordering::Relaxed);
        sendto(socket.as_raw_fd(), &packet, &to, MsgFlags::empty()).context("sendto")?;
        sent += 1;
    }
    Ok(sent)
}

fn read(
    socket: &UdpSocket,
    first: u32,
    sent_at: &[AtomicU32],
    ended: &AtomicBool,
    start: Instant,
) -> Result<Vec<f64>> {
    let mut delays_ms = Vec::new();
    let mut buffer = [0; 2048];
    loop {
        let Ok(length) = socket.recv(&mut buffer) else {
            if ended.load(Ordering::Relaxed) {
                return Ok(delays_ms);
            }
            continue;
        };
        let now = start.elapsed().as_micros() as u32;
        let answer = &buffer[..length];
        let Some(number) = number_of(answer) else {
            continue;
        };
        let slot = number
            .checked_sub(first)
            .and_then(|at| sent_at.get(at as usize));
        // Once: it is taken out.
        match slot.map_or(0, |slot| slot.swap(0, Ordering::Relaxed)) {
            0 => {}
            sent => delays_ms.push(f64::from(now.saturating_sub(sent)) / 1e3),
        }
    }
}

/// The phone that a 200 is for.
fn number_of(answer: &[u8]) -> Option<u32> {
    let answer = std::str::from_utf8(answer).ok()?;
    if !answer.starts_with("SIP/2.0 200 ") {
        return None;
    }
    let id = answer.split("Call-ID: ").nth(1)?;
    u32::from_str_radix(id.get(..8)?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::number_of;

    #[test]
    fn an_answer_leads_back_to_its_phone() {
        let answer =
            "SIP/2.0 200 OK\r\nCall-ID: 000000ff-5f1a-4f9e-9d0e-27a1c0ffee00\r\n\r\n".as_bytes();
        assert_eq!(number_of(answer), Some(255));
        assert_eq!(number_of(b"SIP/2.0 503 Full\r\n\r\n"), None);
    }
}
