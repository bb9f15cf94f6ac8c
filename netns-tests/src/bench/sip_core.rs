//! What a call and a REGISTER (`register.rs`) cost inside the SIP core alone: no socket, no tunnel, no kernel.
//!
//! A caller and a callee made of strings drive one `sip::proxy::Proxy` in virtual time through
//! INVITE, 180, 200, ACK, BYE, 200. Only the time inside the core is counted, not theirs.

mod register;

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use serde_json::{Map, json};
use sip::cookie::Keys;
use sip::hop::{Flow, Hop, Transmit, Transport};
use sip::proxy::media::{CallMessage, Media, NewCall, Placement, Refusal, SessionRef};
use sip::proxy::{Config, Proxy, TIMER_C};

use super::{Conditions, Outcome};

const CALLS: u32 = 100_000;
/// Between two calls, so that as many transactions are open as at 1,000 calls a second.
const GAP: Duration = Duration::from_millis(1);
const SERVICE: &str = "198.51.100.1:5060";
const CALLER: &str = "203.0.113.10:5070";
const CALLEE: &str = "203.0.113.20:5080";
const SDP: &str = "v=0\r\no=- 1 1 IN IP4 203.0.113.10\r\ns=-\r\nc=IN IP4 203.0.113.10\r\nt=0 0\r\n\
                   m=audio 20000 RTP/AVP 0 101\r\na=rtpmap:0 PCMU/8000\r\n\
                   a=rtpmap:101 telephone-event/8000\r\na=ptime:20\r\n";

/// No media are relayed.
struct NoMedia;

impl Media for NoMedia {
    fn place(&mut self, _: &NewCall<'_>, _: Instant) -> Placement {
        Placement::default()
    }

    fn rewrite(&mut self, _: &CallMessage<'_>, _: Instant) -> Result<Option<Vec<u8>>, Refusal> {
        Ok(None)
    }

    fn answered(&mut self, _: SessionRef, _: Instant) {}

    fn ended(&mut self, _: SessionRef, _: Instant) {}

    fn unsettled(&mut self, _: SessionRef, _: Instant) {}
}

/// The core and its clock.
struct Rig {
    proxy: Proxy,
    now: Instant,
    inside: Duration,
}

pub(super) fn run(folder: &Path) -> Result<Vec<Outcome>> {
    let mut outcomes = run_calls(folder)?;
    outcomes.extend(run_registrations(folder)?);
    Ok(outcomes)
}

pub(super) fn run_registrations(_: &Path) -> Result<Vec<Outcome>> {
    Ok(vec![register::run()?])
}

pub(super) fn run_calls(_: &Path) -> Result<Vec<Outcome>> {
    let mut rig = Rig::new();
    rig.register()?;
    let start = Instant::now();
    for number in 0..CALLS {
        rig.call(number).with_context(|| format!("call {number}"))?;
        rig.pass(GAP);
    }
    let took = start.elapsed();
    let answered = rig.proxy.counters().answered;
    ensure!(answered == u64::from(CALLS), "{answered} calls answered");
    let mut conditions = Conditions::of(u64::from(CALLS), answered, took, SDP.len());
    conditions.more = json!({ "virtual_calls_per_s": 1.0 / GAP.as_secs_f64() });
    Ok(vec![Outcome {
        bench: "sip-core",
        unit: "us_per_call",
        ours: rig.inside.as_secs_f64() * 1e6 / f64::from(CALLS),
        peer: None,
        peer_name: None,
        ratio: None,
        beside: Map::new(),
        conditions,
    }])
}

impl Rig {
    fn new() -> Self {
        let now = Instant::now();
        let config = Config {
            service: SERVICE.parse().into_iter().collect(),
            domains: vec!["example.com".into()],
            keys: Keys::new([7; 32], None),
            owner: sip::cookie::Owner(1),
            timers: sip::timer::Timers::default(),
            timer_c: TIMER_C,
            limits: sip::transaction::Limits {
                max_server: 400_000,
                max_client: 400_000,
                max_of_source: 800_000,
            },
            registrar: sip::registrar::Limits::default(),
            routing: sip::proxy::routing::Config::default(),
            epoch: (now, 1_800_000_000),
            clustered: false,
        };
        Self {
            proxy: Proxy::new(config),
            now,
            inside: Duration::ZERO,
        }
    }

    /// Gives the core a message and takes what it sends.
    fn feed(&mut self, from: &str, message: String) -> Result<Vec<Transmit>> {
        let flow = Flow {
            transport: Transport::Udp,
            peer: from.parse::<SocketAddr>()?,
            local: SERVICE.parse()?,
            connection: None,
        };
        let hop = Hop { flow, relay: None };
        let bytes = Bytes::from(message);
        let mut sent = Vec::with_capacity(4);
        let start = Instant::now();
        self.proxy
            .handle_message(bytes, &hop, &mut NoMedia, self.now);
        while let Some(transmit) = self.proxy.poll_transmit() {
            sent.push(transmit);
        }
        self.inside += start.elapsed();
        Ok(sent)
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        let start = Instant::now();
        if self
            .proxy
            .poll_timeout()
            .is_some_and(|(at, _)| at <= self.now)
        {
            self.proxy.handle_timeout(&mut NoMedia, self.now);
            while self.proxy.poll_transmit().is_some() {}
        }
        self.inside += start.elapsed();
    }

    fn register(&mut self) -> Result<()> {
        let request = format!(
            "REGISTER sip:example.com SIP/2.0\r\nVia: SIP/2.0/UDP {CALLEE};rport;branch=z9hG4bKr\r\n\
             Max-Forwards: 70\r\nFrom: <sip:callee@example.com>;tag=r\r\nTo: <sip:callee@example.com>\r\n\
             Call-ID: register\r\nCSeq: 1 REGISTER\r\nContact: <sip:callee@{CALLEE}>\r\n\
             Expires: 7200\r\nContent-Length: 0\r\n\r\n"
        );
        let sent = self.feed(CALLEE, request)?;
        ensure!(text(&sent, 0)?.starts_with("SIP/2.0 200"), "not registered");
        Ok(())
    }

    fn call(&mut self, number: u32) -> Result<()> {
        let sent = self.feed(CALLER, invite(number))?;
        let invite = text(&sent, 1)?;
        self.feed(CALLEE, answer(invite, "180 Ringing", number, ""))?;
        let sent = self.feed(CALLEE, answer(invite, "200 OK", number, SDP))?;
        let route = field(text(&sent, 0)?, "Record-Route")?.to_owned();
        self.feed(CALLER, within("ACK", 1, number, &route))?;
        let sent = self.feed(CALLER, within("BYE", 2, number, &route))?;
        let bye = text(&sent, 0)?;
        let sent = self.feed(CALLEE, answer(bye, "200 OK", number, ""))?;
        ensure!(text(&sent, 0)?.starts_with("SIP/2.0 200"), "BYE failed");
        Ok(())
    }
}

fn text(sent: &[Transmit], index: usize) -> Result<&str> {
    let transmit = sent.get(index).context("the core sent too little")?;
    Ok(std::str::from_utf8(&transmit.bytes)?)
}

fn field<'a>(message: &'a str, name: &str) -> Result<&'a str> {
    message
        .split("\r\n")
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        .with_context(|| format!("no {name}"))
}

fn invite(number: u32) -> String {
    format!(
        "INVITE sip:callee@example.com SIP/2.0\r\nVia: SIP/2.0/UDP {CALLER};rport;branch=z9hG4bK-{number}-1\r\n\
         Max-Forwards: 70\r\nFrom: <sip:caller@example.com>;tag=a{number}\r\nTo: <sip:callee@example.com>\r\n\
         Call-ID: {number}@203.0.113.10\r\nCSeq: 1 INVITE\r\nContact: <sip:caller@{CALLER}>\r\n\
         Content-Type: application/sdp\r\nContent-Length: {}\r\n\r\n{SDP}",
        SDP.len()
    )
}

fn within(method: &str, cseq: u32, number: u32, route: &str) -> String {
    format!(
        "{method} sip:callee@{CALLEE} SIP/2.0\r\nVia: SIP/2.0/UDP {CALLER};rport;branch=z9hG4bK-{number}-{method}\r\n\
         Max-Forwards: 70\r\nRoute: {route}\r\nFrom: <sip:caller@example.com>;tag=a{number}\r\n\
         To: <sip:callee@example.com>;tag=b{number}\r\nCall-ID: {number}@203.0.113.10\r\n\
         CSeq: {cseq} {method}\r\nContent-Length: 0\r\n\r\n"
    )
}

fn answer(request: &str, status: &str, number: u32, body: &str) -> String {
    let echoed = ["Via", "Record-Route", "From", "To", "Call-ID", "CSeq"];
    let mut answer = format!("SIP/2.0 {status}\r\n");
    for line in request.split("\r\n").take_while(|line| !line.is_empty()) {
        let name = line.split(':').next().unwrap_or_default();
        if echoed.contains(&name) {
            answer.push_str(line);
            if name == "To" && !line.contains(";tag=") {
                answer.push_str(&format!(";tag=b{number}"));
            }
            answer.push_str("\r\n");
        }
    }
    answer.push_str(&format!("Contact: <sip:callee@{CALLEE}>\r\n"));
    if !body.is_empty() {
        answer.push_str("Content-Type: application/sdp\r\n");
    }
    answer.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
    answer
}
