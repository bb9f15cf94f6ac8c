//! A million phones, each at an address of its own: their records, and their REGISTERs.
//!
//! One thread sends, out of a raw socket, so that each phone has its address; the other reads the answers, which
//! all come to one socket. A phone that is not answered does not repeat itself.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, setsockopt,
    socket, sockopt,
};
use sip::cookie::Keys;
use sip::hop::{Flow, Hop, Transport};
use sip::message::Message;
use sip::registrar::record::{Clock, encode_version};
use sip::registrar::{AddressOfRecord, Event, Limits, Registrar};
use wire::gre::TunnelKey;
use wire::mark::{Mark, RelayId};

use crate::namespace::Namespace;
use crate::raw;
use crate::service::{KEY1, MARK1};
use crate::topology::two_edges::SERVICE;

/// Each phone's port.
const PORT: u16 = 20_000;
/// Of the receiving socket.
const BUFFER_BYTES: usize = 64 << 20;
/// After the last REGISTER.
const AFTERWARDS: Duration = Duration::from_secs(2);
/// Records made by one registrar, which is small then.
const CHUNK: u32 = 10_000;

/// When the phones of a fill have registered, and for how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Registered {
    pub(super) ago: Duration,
    pub(super) expires_s: u32,
}

/// Subject and record of each phone, as the concentrator with that number would have written them.
pub(super) fn records(
    numbers: std::ops::Range<u32>,
    when: Registered,
) -> impl Iterator<Item = (String, Vec<u8>)> + Send {
    let starts = numbers.clone().step_by(CHUNK as usize);
    starts.flat_map(move |start| {
        let chunk = start..numbers.end.min(start + CHUNK);
        chunk_of_records(chunk, when).unwrap_or_default()
    })
}

fn chunk_of_records(
    numbers: std::ops::Range<u32>,
    when: Registered,
) -> Result<Vec<(String, Vec<u8>)>> {
    let handler = u16::try_from(numbers.start / CHUNK % 3)? + 1;
    let now = Instant::now();
    let unix = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let clock = Clock {
        at: now,
        unix_ms: u64::try_from(unix.saturating_sub(when.ago).as_millis())?,
    };
    let mut registrar = Registrar::new(Limits::default(), Keys::new([7; 32], None));
    registrar.share(handler, clock);
    let mut records = Vec::new();
    for number in numbers {
        let request = register(number, 1, when.expires_s);
        let request = Message::parse(request.into())?;
        let user = format!("sip:user{number}@example.com");
        let user = AddressOfRecord::from_uri(user.as_bytes()).context("a user")?;
        let answer = registrar.handle_register(&request, &user, &hop(number), now);
        ensure!(answer.status() == Some(200), "a REGISTER was refused");
        while let Some(event) = registrar.poll_event() {
            let Event::BindingAdded(user, binding) = event else {
                continue;
            };
            let subject = concentrator::cluster::subject_of("sipcast", &user, &binding);
            records.push((subject, encode_version(&user, &binding, false, &clock)));
        }
    }
    Ok(records)
}

fn hop(number: u32) -> Hop {
    let mark = Mark::new(MARK1).unwrap_or_default();
    Hop {
        flow: Flow {
            transport: Transport::Udp,
            peer: (address(number), PORT).into(),
            local: (SERVICE, 5060).into(),
            connection: None,
        },
        relay: Some(RelayId {
            key: TunnelKey(KEY1),
            mark,
        }),
    }
}

fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 0)) + number)
}

/// A phone behind a NAT, as a common one registers.
pub(super) fn register(number: u32, cseq: u32, expires_s: u32) -> Vec<u8> {
    format!(
        "REGISTER sip:example.com SIP/2.0\r\n\
         Via: SIP/2.0/UDP 192.168.1.17:5060;branch=z9hG4bK{number:08x}.{cseq};rport\r\n\
         Max-Forwards: 70\r\n\
         From: <sip:user{number}@example.com>;tag={number:08x}\r\n\
         To: <sip:user{number}@example.com>\r\n\
         Call-ID: {number:08x}-5f1a-4f9e-9d0e-27a1c0ffee00\r\n\
         CSeq: {cseq} REGISTER\r\n\
         Contact: <sip:user{number}@192.168.1.17:5060>;+sip.instance=\"<urn:uuid:{number:08x}-0000-1000-8000-000a95a0e128>\"\r\n\
         Expires: {expires_s}\r\n\
         Content-Length: 0\r\n\r\n"
    )
    .into_bytes()
}

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
    use super::{number_of, records};
    use crate::bench::cluster::phones::Registered;
    use std::time::Duration;

    #[test]
    fn an_answer_leads_back_to_its_phone() {
        let answer =
            "SIP/2.0 200 OK\r\nCall-ID: 000000ff-5f1a-4f9e-9d0e-27a1c0ffee00\r\n\r\n".as_bytes();
        assert_eq!(number_of(answer), Some(255));
        assert_eq!(number_of(b"SIP/2.0 503 Full\r\n\r\n"), None);
    }

    #[test]
    fn each_phone_has_a_record_under_a_subject_of_its_own() {
        let when = Registered {
            ago: Duration::ZERO,
            expires_s: 3600,
        };
        let all: Vec<_> = records(9_990..10_010, when).collect();
        let subjects: std::collections::BTreeSet<_> =
            all.iter().map(|(subject, _)| subject).collect();
        assert_eq!((all.len(), subjects.len()), (20, 20));
        assert!(all.iter().all(|(subject, record)| {
            subject.starts_with("$KV.sipcast.b.") && record.len() > 200
        }));
    }
}
