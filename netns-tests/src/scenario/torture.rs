//! The torture messages of RFC 4475 and RFC 5118 at the real concentrator, over UDP and over TCP, through
//! the tunnel: each meets with what its row of the corpus' index allows, and behind each an OPTIONS is
//! answered.
//!
//! The corpus lies beside the project: `SIPCAST_TORTURE` names its folder, by default
//! `../shared/torture` seen from the workspace. Where it is missing the scenario is skipped, visibly.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::service::Service;
use crate::topology::two_edges::{SERVICE, TwoEdges};

const TO_SIP: SocketAddr = SocketAddr::new(IpAddr::V4(SERVICE), 5060);

/// Longer than any answer takes; only what is not answered at all waits for it.
const PATIENCE: Duration = Duration::from_secs(2);

/// So long is a user awaited whose connection has ended.
const AWAITED: Duration = Duration::from_secs(12);

/// Over a stream these are not complete, or end it: their length lies or is missing. A connection
/// that is closed for what came behind a message may be gone before that is answered.
const ENDS_A_STREAM: [&str; 10] = [
    "clerr",
    "ncl",
    "mcl01",
    "baddn",
    "dblreq",
    "inv2543",
    "test",
    "ipv6-in-sdp",
    "mult-ip-in-sdp",
    "ipv4-mapped-ipv6",
];

/// Answers to a well-formed request for somebody who is not here.
const NOT_HERE: [u16; 8] = [401, 403, 404, 407, 480, 481, 482, 483];

/// A message and what its row of the index says.
struct Row {
    name: String,
    bytes: Vec<u8>,
    response: bool,
    allowed: Vec<u16>,
    may_be_forwarded: bool,
    may_be_dropped: bool,
}

/// What a message met with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Met {
    Nothing,
    Answer(u16),
    /// It came back to us: a REGISTER before it has made us its callee.
    Forwarded,
}

pub(super) fn run(folder: &Path) -> Result<String> {
    let corpus = corpus();
    let Ok(index) = std::fs::read_to_string(corpus.join("index.tsv")) else {
        return Ok(format!(
            "skipped: no torture messages in {}; set SIPCAST_TORTURE",
            corpus.display()
        ));
    };
    let rows: Result<Vec<Row>> = index
        .lines()
        .skip(1)
        .map(|row| Row::read(row, &corpus))
        .collect();
    let rows = rows?;
    let net = TwoEdges::build()?;
    let mut service = Service::start(&net, folder)?;
    // Streams first: what is registered over one goes with it, and is nobody's callee later.
    let on_streams = net.ua1.inside(|| over_tcp(&rows).context("over TCP"))?;
    service.check_alive()?;
    thread::sleep(AWAITED);
    let answered = net.ua1.inside(|| over_udp(&rows).context("over UDP"))?;
    service.check_alive()?;
    Ok(format!(
        "{} messages, {answered} answered over UDP, {on_streams} over TCP, the service alive after each",
        rows.len()
    ))
}

fn corpus() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let named = std::env::var_os("SIPCAST_TORTURE");
    workspace.join(named.map_or_else(|| "../shared/torture".into(), PathBuf::from))
}

impl Row {
    fn read(row: &str, corpus: &Path) -> Result<Self> {
        let columns: Vec<&str> = row.split('\t').collect();
        let [
            _,
            _,
            name,
            file,
            _,
            _,
            method,
            _,
            class,
            _,
            expected,
            also,
            must,
            ..,
        ] = columns[..]
        else {
            bail!("a row with too few columns: {row}");
        };
        let text = format!("{expected} {also}").replace("400 never", "");
        let words = text.split(|other: char| !other.is_ascii_alphanumeric());
        let mut allowed: Vec<u16> = words
            .filter(|word| word.len() == 3)
            .filter_map(|word| word.parse().ok())
            .collect();
        let passes = ["forward", "parse", "REGISTER"]
            .iter()
            .any(|word| text.contains(word));
        let may_be_forwarded = passes && class != "invalid" || expected.starts_with("forward");
        if may_be_forwarded || matches!(class, "valid" | "tolerate") {
            allowed.extend(NOT_HERE);
        }
        if text.contains("OPTIONS") {
            allowed.push(200);
        }
        if must.contains("not 400") && !also.contains("Content-Length") {
            allowed.retain(|status| *status != 400);
        }
        let bytes = std::fs::read(corpus.join(file)).with_context(|| file.to_owned())?;
        Ok(Self {
            name: name.to_owned(),
            bytes,
            response: method == "response",
            allowed,
            may_be_forwarded,
            may_be_dropped: text.contains("drop") || must == "anything but a crash",
        })
    }

    /// The message with a branch of its own: several have the same, and would be copies of each other.
    fn unique(&self, number: usize) -> Vec<u8> {
        let cookie = b"branch=z9hG4bK";
        let Some(at) = self
            .bytes
            .windows(cookie.len())
            .position(|window| window == cookie)
        else {
            return self.bytes.clone();
        };
        let end = at + cookie.len();
        let mut bytes = self.bytes.clone();
        // The bare cookie is what one of them is about.
        if bytes.get(end).is_some_and(u8::is_ascii_graphic) {
            bytes.splice(end..end, format!("lab{number}").bytes());
        }
        bytes
    }

    fn check(&self, met: Met, stream: bool) -> Result<()> {
        let ends_stream = stream && ENDS_A_STREAM.contains(&self.name.as_str());
        let allowed = match met {
            Met::Nothing => self.response || self.may_be_dropped || ends_stream,
            Met::Answer(status) => !self.response && self.allowed.contains(&status),
            Met::Forwarded => self.may_be_forwarded,
        };
        let (name, answers) = (&self.name, &self.allowed);
        ensure!(
            allowed,
            "{name}: {met:?}, and the answers allowed are {answers:?}"
        );
        Ok(())
    }
}

/// Returns how many were answered.
fn over_udp(rows: &[Row]) -> Result<usize> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut seen: Vec<Vec<u8>> = Vec::new();
    let mut answered = 0;
    for (number, row) in rows.iter().enumerate() {
        socket.send_to(&row.unique(number), TO_SIP)?;
        socket.send_to(&probe(number), TO_SIP)?;
        let mut met = Met::Nothing;
        // The concentrator works on messages in the order in which they come.
        loop {
            let mut buffer = [0; 65_536];
            let (length, _) = socket
                .recv_from(&mut buffer)
                .with_context(|| format!("no answer to the OPTIONS behind {}", row.name))?;
            let answer = buffer[..length].to_vec();
            if is_answer_to_probe(&answer, number) {
                break;
            }
            // A failure that nobody acknowledges comes again.
            if !seen.contains(&answer) {
                if met == Met::Nothing {
                    met = what_is(&answer);
                }
                seen.push(answer);
            }
        }
        answered += usize::from(met != Met::Nothing);
        row.check(met, false)?;
    }
    Ok(answered)
}

/// Returns how many were answered. Each has a connection of its own, with an OPTIONS behind it.
fn over_tcp(rows: &[Row]) -> Result<usize> {
    let mut answered = 0;
    for (index, row) in rows.iter().enumerate() {
        let number = rows.len() + index;
        let mut stream = TcpStream::connect_timeout(&TO_SIP, Duration::from_secs(5))
            .with_context(|| format!("nobody listens before {}", row.name))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut bytes = as_another_call(&row.unique(number));
        bytes.extend(probe(number));
        // The other end may close before it has read everything.
        let _sent = stream.write_all(&bytes);
        let mut received = Vec::new();
        let mut buffer = [0; 65_536];
        while !is_answer_to_probe(&received, number) {
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => received.extend_from_slice(&buffer[..length]),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    break;
                }
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
                Err(error) => return Err(error).with_context(|| row.name.clone()),
            }
        }
        let mut all = statuses(&received);
        if is_answer_to_probe(&received, number) {
            all.pop();
        }
        if all.is_empty() && received.starts_with(b"SIP/2.0 100 ") {
            // One of the messages before it has registered that user, whose connection has just ended.
            stream.set_read_timeout(Some(AWAITED + PATIENCE))?;
            let length = stream.read(&mut buffer);
            all = statuses(&buffer[..length.with_context(|| row.name.clone())?]);
        }
        let met = all
            .first()
            .map_or(Met::Nothing, |status| Met::Answer(*status));
        answered += usize::from(met != Met::Nothing);
        row.check(met, true)?;
    }
    // Whatever the last of them did, it answers on.
    let mut stream = TcpStream::connect_timeout(&TO_SIP, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(&probe(usize::MAX))?;
    let mut buffer = [0; 4096];
    let length = stream.read(&mut buffer).context("the last OPTIONS")?;
    ensure!(
        is_answer_to_probe(&buffer[..length], usize::MAX),
        "the last OPTIONS"
    );
    Ok(answered)
}

/// With other Call-IDs, so that a REGISTER is not the one that came over UDP by another way.
fn as_another_call(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 16);
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let name_end = line.iter().position(|byte| *byte == b':');
        let name = name_end.map(|end| line[..end].trim_ascii().to_ascii_lowercase());
        let is_call_id = name.is_some_and(|name| matches!(&*name, b"call-id" | b"i"));
        match name_end.filter(|_| is_call_id) {
            Some(end) => {
                out.extend_from_slice(&line[..=end]);
                out.extend_from_slice(b" tcp-");
                out.extend_from_slice(line[end + 1..].trim_ascii_start());
            }
            None => out.extend_from_slice(line),
        }
    }
    out
}

fn probe(number: usize) -> Vec<u8> {
    format!(
        "OPTIONS sip:example.com SIP/2.0\r\nVia: SIP/2.0/UDP 192.168.1.10:4000;rport;branch=z9hG4bKprobe{number}\r\n\
         Max-Forwards: 70\r\nFrom: <sip:x@example.com>;tag=1\r\nTo: <sip:example.com>\r\n\
         Call-ID: probe-{number}-\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n"
    )
    .into_bytes()
}

fn is_answer_to_probe(bytes: &[u8], number: usize) -> bool {
    String::from_utf8_lossy(bytes).contains(&format!("Call-ID: probe-{number}-"))
}

/// What a datagram says of the message before it; a 100 says nothing.
fn what_is(datagram: &[u8]) -> Met {
    match statuses(datagram).first() {
        Some(status) => Met::Answer(*status),
        None if datagram.starts_with(b"SIP/2.0 ") => Met::Nothing,
        None => Met::Forwarded,
    }
}

/// The final status codes of the responses in it, in order.
fn statuses(bytes: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let lines = text
        .lines()
        .filter_map(|line| line.strip_prefix("SIP/2.0 "));
    let codes = lines.filter_map(|rest| rest.get(..3)?.parse().ok());
    codes.filter(|status| *status >= 200).collect()
}
