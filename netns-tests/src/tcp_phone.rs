//! Phones on TCP whose connection may break at any time, and that go on all the same.
//!
//! SIPp ends with its connection, or gives its calls up (`-reconnect_close`), and repeats nothing. A user
//! agent that one would sell does this:
//!
//! * it asks whether its connection lives: CRLF CRLF every [`PING`], and when it hears nothing for [`DEAF`]
//!   the connection is gone (RFC 5626 sections 4.4.1 and 3.5.1);
//! * it opens another one to the same address, and registers again over it, with the same Contact and
//!   Call-ID (RFC 5626 section 4.4.1, RFC 3261 section 10.2.4);
//! * it repeats over it, octet for octet, each request that has no final answer: for the server that got it
//!   already it is a retransmission (RFC 3261 section 17.2.3). Its transactions end by the timers of RFC 3261
//!   sections 17.1.1.2 (B) and 17.1.2.2 (F);
//! * called, it answers over the connection that it has now (section 18.2.2), and repeats its 200 until the
//!   ACK comes, "regardless of the transport" (section 13.3.1.4). An INVITE that comes again in the same
//!   transaction gets the last answer again, one in another transaction is merged: 482 (section 8.2.2.2).
//!
//! Each phone is a thread. What became of each call is kept, with the time.

use std::collections::HashMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, setns};

use crate::namespace::Namespace;
use crate::topology::two_edges::{PHONE, SERVICE};

mod text;
mod uac;
mod uas;

/// T1 and T2 of RFC 3261.
const T1: Duration = Duration::from_millis(500);
const T2: Duration = Duration::from_secs(4);
/// Timers B, F and H.
const GIVE_UP: Duration = Duration::from_secs(32);
/// A call that rings for longer has failed.
const NO_ANSWER: Duration = Duration::from_secs(60);
const PING: Duration = Duration::from_secs(3);
const DEAF: Duration = Duration::from_secs(10);
/// A SYN that nobody answers is sent again on another socket.
const CONNECT: Duration = Duration::from_millis(700);
/// Before a REGISTER that was refused is tried again.
const REGISTER_AGAIN: Duration = Duration::from_secs(1);
/// How long a phone waits for something to read.
const TICK: Duration = Duration::from_millis(5);

/// What became of a call.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    pub(crate) begun: SystemTime,
    pub(crate) ended: SystemTime,
    /// From the INVITE to the first 180 or 200.
    pub(crate) post_dial: Option<Duration>,
    /// Why it has failed, if it has.
    pub(crate) failed: Option<String>,
}

/// What all phones of one load share.
#[derive(Debug, Default)]
struct Shared {
    /// No more calls are begun.
    full: AtomicBool,
    /// The phones end.
    stop: AtomicBool,
    offered: AtomicU64,
    reconnected: AtomicU64,
    /// INVITEs and BYEs that were repeated over a new connection.
    repeated: AtomicU64,
    ended: Mutex<Vec<Ended>>,
}

/// How the phones call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Habits {
    /// The number of the first pair: phones that come after others have other numbers.
    pub(crate) first: u32,
    /// Pairs of phones.
    pub(crate) pairs: u32,
    /// Of all pairs together.
    pub(crate) calls_per_s: u32,
    pub(crate) ring: Duration,
    pub(crate) talk: Duration,
}

/// The phones, and their calls.
#[derive(Debug)]
pub(crate) struct Phones {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    habits: Habits,
    callers: std::fs::File,
}

/// What the phones have counted.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) ended: Vec<Ended>,
    pub(crate) offered: u64,
    pub(crate) reconnected: u64,
    pub(crate) repeated: u64,
}

/// The user of the called phone of a pair.
pub(crate) fn callee_name(pair: u32) -> String {
    format!("tcp-callee{pair}")
}

impl Habits {
    /// The numbers of the pairs.
    pub(crate) fn numbers(&self) -> Range<u32> {
        self.first..self.first + self.pairs
    }
}

impl Phones {
    /// Starts those that are called, which register.
    pub(crate) fn called(callers: &Namespace, callees: &Namespace, habits: Habits) -> Result<Self> {
        let open = |namespace: &Namespace| {
            let path = format!("/run/netns/{}", namespace.name());
            std::fs::File::open(&path).context(path)
        };
        let mut phones = Self {
            shared: Arc::default(),
            threads: Vec::new(),
            habits,
            callers: open(callers)?,
        };
        let callees = open(callees)?;
        for pair in habits.numbers() {
            phones.start(pair, callee_name(pair), None, callees.try_clone()?);
        }
        Ok(phones)
    }

    /// Lets the others begin to call.
    pub(crate) fn call(&mut self) -> Result<()> {
        let every = Duration::from_secs(1) * self.habits.pairs / self.habits.calls_per_s.max(1);
        for (number, pair) in (0..).zip(self.habits.numbers()) {
            let plan = uac::Plan {
                peer: callee_name(pair),
                every,
                next: Instant::now() + every * number / self.habits.pairs,
                talk: self.habits.talk,
            };
            let home = self.callers.try_clone()?;
            self.start(pair, format!("tcp-caller{pair}"), Some(plan), home);
        }
        Ok(())
    }

    fn start(&mut self, pair: u32, user: String, plan: Option<uac::Plan>, home: std::fs::File) {
        let (shared, ring) = (Arc::clone(&self.shared), self.habits.ring);
        self.threads.push(thread::spawn(move || {
            if let Err(error) = setns(home, CloneFlags::CLONE_NEWNET) {
                eprintln!("a phone cannot enter its namespace: {error}");
                return;
            }
            Phone::new(user, pair, plan, ring, shared).run();
        }));
    }

    /// Calls that were begun, and those of them that have ended badly, so far.
    pub(crate) fn so_far(&self) -> (u64, usize) {
        let ended = self.shared.ended();
        let failed = ended.iter().filter(|call| call.failed.is_some()).count();
        (self.shared.offered.load(Ordering::Relaxed), failed)
    }

    /// Begins no more calls, waits for those there are, and ends.
    pub(crate) fn finish(mut self) -> Result<Heard> {
        self.shared.full.store(true, Ordering::Relaxed);
        let end = Instant::now() + NO_ANSWER + GIVE_UP * 2;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        while (self.shared.ended().len() as u64) < load(&self.shared.offered) {
            ensure!(Instant::now() < end, "calls over TCP do not end");
            thread::sleep(Duration::from_millis(50));
        }
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            ensure!(thread.join().is_ok(), "a phone panicked");
        }
        let ended = std::mem::take(&mut *self.shared.ended());
        Ok(Heard {
            ended,
            offered: load(&self.shared.offered),
            reconnected: load(&self.shared.reconnected),
            repeated: load(&self.shared.repeated),
        })
    }
}

impl Drop for Phones {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn ended(&self) -> std::sync::MutexGuard<'_, Vec<Ended>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One phone.
struct Phone {
    user: String,
    port: u16,
    shared: Arc<Shared>,
    stream: Option<TcpStream>,
    inbox: Vec<u8>,
    /// When something was last heard, and last asked.
    heard: Instant,
    asked: Instant,
    /// The number of the next REGISTER, and when it is sent.
    register_number: u32,
    register_at: Option<Instant>,
    /// Numbers what it makes.
    count: u64,
    plan: Option<uac::Plan>,
    calls: HashMap<String, uac::Call>,
    ring: Duration,
    answers: HashMap<String, uas::Answer>,
}

impl Phone {
    fn new(
        user: String,
        pair: u32,
        plan: Option<uac::Plan>,
        ring: Duration,
        shared: Arc<Shared>,
    ) -> Self {
        let now = Instant::now();
        Self {
            // What it says of itself stays the same, whatever its sockets have.
            port: 20_000 + u16::try_from(pair).unwrap_or_default(),
            user,
            shared,
            stream: None,
            inbox: Vec::new(),
            heard: now,
            asked: now,
            register_number: 0,
            register_at: None,
            count: 0,
            plan,
            calls: HashMap::new(),
            ring,
            answers: HashMap::new(),
        }
    }

    fn run(mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            if self.stream.is_none() {
                self.connect();
            }
            self.read();
            let now = Instant::now();
            self.keep_alive(now);
            self.begin_calls(now);
            self.pass_time_of_calls(now);
            self.pass_time_of_answers(now);
        }
    }

    fn connect(&mut self) {
        let service = SocketAddr::from((SERVICE, 5060));
        let Ok(stream) = TcpStream::connect_timeout(&service, CONNECT) else {
            // Refused at once, perhaps.
            thread::sleep(TICK);
            return;
        };
        let timed = stream.set_read_timeout(Some(TICK));
        let timed = timed.and_then(|()| stream.set_write_timeout(Some(DEAF)));
        if timed.and_then(|()| stream.set_nodelay(true)).is_err() {
            return;
        }
        let now = Instant::now();
        let first = self.register_number == 0;
        self.stream = Some(stream);
        self.inbox.clear();
        (self.heard, self.asked) = (now, now);
        self.register();
        if !first {
            self.shared.reconnected.fetch_add(1, Ordering::Relaxed);
            let pending = self.pending_requests();
            let count = pending.len() as u64;
            self.shared.repeated.fetch_add(count, Ordering::Relaxed);
            for request in pending {
                self.send(&request);
            }
        }
    }

    fn register(&mut self) {
        self.register_number += 1;
        self.register_at = None;
        let (user, port, number) = (&self.user, self.port, self.register_number);
        let request = format!(
            "REGISTER sip:example.com SIP/2.0\r\n\
             Via: {}\r\n\
             Max-Forwards: 70\r\n\
             From: <sip:{user}@example.com>;tag=r\r\n\
             To: <sip:{user}@example.com>\r\n\
             Call-ID: register-{user}\r\n\
             CSeq: {number} REGISTER\r\n\
             Contact: <sip:{user}@{PHONE}:{port};transport=tcp>\r\n\
             Expires: 600\r\n\
             Content-Length: 0\r\n\r\n",
            self.via(&format!("r{number}"))
        );
        self.send(&request);
    }

    /// A Via with a branch that only this phone has.
    fn via(&self, branch: &str) -> String {
        let (user, port) = (&self.user, self.port);
        format!("SIP/2.0/TCP {PHONE}:{port};rport;branch=z9hG4bK-{user}-{branch}")
    }

    /// What cannot be written ends the connection.
    fn send(&mut self, message: &str) {
        if let Some(stream) = &mut self.stream
            && stream.write_all(message.as_bytes()).is_err()
        {
            self.stream = None;
        }
    }

    fn read(&mut self) {
        let Some(stream) = &mut self.stream else {
            return;
        };
        let mut buffer = [0; 16_384];
        match stream.read(&mut buffer) {
            Ok(0) => self.stream = None,
            Ok(length) => {
                self.heard = Instant::now();
                self.inbox.extend_from_slice(&buffer[..length]);
                while let Some(message) = text::next(&mut self.inbox) {
                    self.handle(&message);
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => self.stream = None,
        }
    }

    fn handle(&mut self, message: &str) {
        let now = Instant::now();
        let Some((_, method)) = text::cseq(message) else {
            return;
        };
        match (text::status(message), method) {
            (Some(200..=299), "REGISTER") => {}
            (Some(200..), "REGISTER") => self.register_at = Some(now + REGISTER_AGAIN),
            (Some(status), _) => self.handle_answer(status, message, now),
            (None, _) => self.handle_request(message, now),
        }
    }

    fn keep_alive(&mut self, now: Instant) {
        if now >= self.heard + DEAF {
            self.stream = None;
            return;
        }
        if now >= self.asked + PING {
            self.asked = now;
            self.send("\r\n\r\n");
        }
        if self.register_at.is_some_and(|at| now >= at) {
            self.register();
        }
    }

    fn contact(&self) -> String {
        let (user, port) = (&self.user, self.port);
        format!("<sip:{user}@{PHONE}:{port};transport=tcp>")
    }
}

/// A session description of a phone at this address.
fn description(own: Ipv4Addr) -> String {
    format!(
        "v=0\r\no=- 1 1 IN IP4 {own}\r\ns=-\r\nc=IN IP4 {own}\r\nt=0 0\r\n\
         m=audio 20000 RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\n"
    )
}
