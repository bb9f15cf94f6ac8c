//! Datagrams in, datagrams out, over a relay whose ports are only numbers. The rows of the conformance
//! checklist of `docs/ng.md` are tests by their names.

mod calls;
mod hostile;
mod media;
mod protocol;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use wire::bencode::{self, Value};

use super::query::Clock;
use super::server::{Server, Step};
use super::settings::{Settings, UnknownSource};
use crate::clock;
use crate::ports::PortRange;
use crate::relay::{Command, Relay, RelayConfig, RelayPort, SessionId};
use crate::session::{Component, Limits};
use wire::relay_control::Side;

/// A proxy in the allowed network.
const PROXY: &str = "10.0.9.2:40000";
/// Ours.
const RELAY: &str = "203.0.113.9";
const RELAY6: &str = "2001:db8::9";
const CALLER: &str = "192.0.2.10";
const CALLEE: &str = "198.51.100.20";

struct Rig {
    relay: Relay,
    server: Server,
    now: Instant,
    cookies: u32,
    /// Open sessions.
    open: Vec<SessionId>,
    opened: usize,
    /// The kernel refuses ports.
    refuse: bool,
    transmitted: Vec<SocketAddr>,
}

impl Rig {
    fn new() -> Self {
        Self::with(|_, _| {})
    }

    fn with(change: impl FnOnce(&mut RelayConfig, &mut Settings)) -> Self {
        let now = clock::start();
        let seconds = Duration::from_secs;
        let mut relay = RelayConfig {
            name: "relay1".to_owned(),
            epoch: 1_000_000,
            addresses: vec![ip(RELAY), ip(RELAY6)],
            ports: PortRange::new(30_000, 30_999).expect("a range"),
            quarantine: seconds(5),
            limits: Limits {
                idle: seconds(60),
                half_open: seconds(240),
                one_way: None,
                held: seconds(3600),
                learning: seconds(4),
                lease: seconds(30),
                linger: seconds(0),
            },
            max_stock: 8,
            max_sessions: 100_000,
            max_held: 64,
            seed: 1,
            concentrators: Vec::new(),
        };
        let mut settings = Settings {
            listen: vec!["10.0.1.2:2223".parse().expect("an address")],
            allow: vec![
                "10.0.9.0/24".parse().expect("a network"),
                "2001:db8:9::/48".parse().expect("a network"),
            ],
            max_sessions: 100,
            delete_delay: seconds(30),
            unknown_source: UnknownSource::Any,
        };
        change(&mut relay, &mut settings);
        let clock = Clock {
            started: now,
            started_unix: 1_700_000_000,
        };
        let half_open = relay.limits.half_open;
        Self {
            relay: Relay::new(relay),
            server: Server::new(settings, half_open, clock),
            now,
            cookies: 0,
            open: Vec::new(),
            opened: 0,
            refuse: false,
            transmitted: Vec::new(),
        }
    }

    /// What the listener does with a datagram.
    fn datagram(&mut self, bytes: &[u8], from: &str) -> Option<Vec<u8>> {
        let from = from.parse().expect("an address");
        let step = self.server.handle(bytes, from, &mut self.relay, self.now);
        self.perform();
        let reply = match step {
            Step::Dropped => return None,
            Step::Again(reply) => reply.to_vec(),
            Step::Fresh(fresh) => self
                .server
                .finish(*fresh, &mut self.relay, self.now)
                .to_vec(),
        };
        self.perform();
        Some(reply)
    }

    /// A request with a new cookie, and the reply's dictionary.
    fn ask(&mut self, request: &Json) -> Json {
        self.cookies += 1;
        let cookie = format!("1_{}", self.cookies);
        let reply = self
            .datagram(format!("{cookie} {request}").as_bytes(), PROXY)
            .expect("a reply");
        let text = String::from_utf8(reply).expect("text");
        let body = text
            .strip_prefix(&format!("{cookie} "))
            .expect("the cookie");
        serde_json::from_str(body).expect("JSON")
    }

    fn offer(&mut self, call: &str, from: &str, sdp: &str) -> Json {
        self.ask(&json!({"command": "offer", "call-id": call, "from-tag": from, "sdp": sdp}))
    }

    fn answer(&mut self, call: &str, from: &str, to: &str, sdp: &str) -> Json {
        self.ask(&json!({"command": "answer", "call-id": call, "from-tag": from, "to-tag": to, "sdp": sdp}))
    }

    fn advance(&mut self, duration: Duration) {
        self.now += duration;
        self.relay.handle_timeout(self.now);
        self.server.sweep(&mut self.relay, self.now);
        self.perform();
        self.relay.handle_timeout(self.now);
        self.perform();
    }

    fn perform(&mut self) {
        while let Some(command) = self.relay.poll_command() {
            match command {
                Command::Open { session, .. } if self.refuse => {
                    self.relay.handle_open_failed(session, self.now);
                }
                Command::Open { session, .. } => {
                    self.opened += 1;
                    self.open.push(session);
                    self.relay.handle_opened(session, self.now);
                }
                Command::Close { session } => self.open.retain(|open| *open != session),
                Command::Transmit { to, .. } => self.transmitted.push(to),
                Command::Send { .. }
                | Command::CloseLink { .. }
                | Command::Offload { .. }
                | Command::Recall { .. } => {}
            }
        }
    }

    /// An RTP packet to one side of the newest session; where it goes to.
    fn rtp(&mut self, side: Side, from: &str, ssrc: u8) -> Option<SocketAddr> {
        let session = *self.open.last().expect("a session");
        let port = RelayPort {
            session,
            side,
            component: Component::Rtp,
        };
        let mut packet = [0; 172];
        packet[0] = 0x80;
        packet[11] = ssrc;
        let from = from.parse().expect("an address");
        let to = self.relay.forward(port, from, &packet, self.now);
        self.perform();
        to.map(|(_, to)| to)
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A description of one audio line.
fn sdp(address: &str) -> String {
    sdp_at(address, 4000)
}

fn sdp_at(address: &str, port: u16) -> String {
    let family = if address.contains(':') { "IP6" } else { "IP4" };
    format!(
        "v=0\r\no=ua 1 1 IN {family} {address}\r\ns=-\r\nc=IN {family} {address}\r\nt=0 0\r\n\
         m=audio {port} RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\n"
    )
}

/// Address and port of the first m-line of a reply's description.
fn media_of(reply: &Json) -> (String, u16) {
    assert_eq!(reply["result"], "ok", "{reply}");
    let text = reply["sdp"].as_str().expect("a description");
    let after = |prefix: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(prefix));
        line.unwrap_or_default().to_owned()
    };
    let address = after("c=IN IP4 ") + &after("c=IN IP6 ");
    let port = after("m=audio ");
    let port = port.split(' ').next().unwrap_or_default();
    (address, port.parse().expect("a port"))
}

/// A request in bencode.
fn bencoded(cookie: &str, entries: &[(&str, &str)]) -> Vec<u8> {
    let mut out = format!("{cookie} ").into_bytes();
    bencode::write_dictionary(&mut out, |dictionary| {
        for (key, value) in entries {
            dictionary.bytes(key, value);
        }
    });
    out
}

/// The text of a key of a reply in bencode.
fn text_of(reply: &[u8], key: &str) -> Option<String> {
    let space = reply.iter().position(|byte| *byte == b' ')?;
    let dictionary = Value::parse(&reply[space + 1..]).ok()?.dictionary()?;
    Some(dictionary.text(key)?.to_owned())
}
