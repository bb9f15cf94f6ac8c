//! OPTIONS to the service at a steady rate, and what becomes of each: answered by which edge, or lost.
//!
//! One thread, one socket, no privileges. Over TCP the connection is kept as long as it works, and
//! opened anew when the next question is due after its end; edges change below it.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use sip::message::{Framer, MAX_MESSAGE, Message, StreamItem};
use sip::proxy::reveal;

/// How to ask.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Question {
    pub(crate) service: SocketAddr,
    pub(crate) transport: Transport,
    /// The address to ask from; the system chooses when `None`.
    pub(crate) from: Option<SocketAddr>,
    pub(crate) interval: Duration,
    /// What is not answered by then is lost.
    pub(crate) timeout: Duration,
}

/// Over what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        })
    }
}

/// The edge that a question came by, as the service says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Edge {
    pub(crate) name: String,
    pub(crate) mark: u8,
}

impl fmt::Display for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (mark {})", self.name, self.mark)
    }
}

/// What the service says of the way that a question took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    By(Edge),
    /// It came without a tunnel or without a mark.
    NoEdge,
    /// We are not among those who may know.
    Nothing,
}

/// What became of a question.
#[derive(Debug)]
pub(crate) enum Outcome {
    Answered {
        round_trip: Duration,
        told: Told,
        /// Where the service sees us.
        seen_as: Option<SocketAddr>,
    },
    Lost,
}

/// A question and what became of it.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) sent: Instant,
    pub(crate) outcome: Outcome,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Prober {
    question: Question,
    channel: Option<Channel>,
    identity: u64,
    sent: u32,
    waiting: BTreeMap<u32, Instant>,
    /// What the system said last against it.
    pub(crate) trouble: Option<io::Error>,
}

#[derive(Debug)]
enum Channel {
    Udp(UdpSocket),
    Tcp(TcpStream, Box<Framer>),
}

impl Prober {
    pub(crate) fn new(question: Question) -> Result<Self> {
        ensure!(!question.interval.is_zero(), "an interval of 0 is a flood");
        let mut identity = [0; 8];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut identity)?;
        Ok(Self {
            question,
            channel: None,
            identity: u64::from_be_bytes(identity),
            sent: 0,
            waiting: BTreeMap::new(),
            trouble: None,
        })
    }

    /// Asks while `go_on` says so of the number of questions so far, and waits for the last answer.
    pub(crate) fn run(
        &mut self,
        mut go_on: impl FnMut(u32) -> bool,
        mut tell: impl FnMut(Asked) -> Result<()>,
    ) -> Result<()> {
        let mut due = Instant::now();
        let mut more = true;
        loop {
            let now = Instant::now();
            self.give_up(now, &mut tell)?;
            if more && now >= due {
                more = go_on(self.sent);
                if more {
                    self.ask(now);
                    // A program that was held up does not make up for what it has missed.
                    due = (due + self.question.interval).max(now);
                }
            }
            let first = self.waiting.values().next();
            let lost_at = first.map(|sent| *sent + self.question.timeout);
            let Some(until) = [more.then_some(due), lost_at].into_iter().flatten().min() else {
                return Ok(());
            };
            if let Some(answer) = self.receive(until)
                && let Some(asked) = self.judge(&answer)
            {
                tell(asked)?;
            }
        }
    }

    fn give_up(&mut self, now: Instant, tell: &mut impl FnMut(Asked) -> Result<()>) -> Result<()> {
        while let Some(first) = self.waiting.first_entry() {
            let sent = *first.get();
            if now < sent + self.question.timeout {
                break;
            }
            first.remove();
            let outcome = Outcome::Lost;
            tell(Asked { sent, outcome })?;
        }
        Ok(())
    }

    fn ask(&mut self, now: Instant) {
        self.sent += 1;
        self.waiting.insert(self.sent, now);
        if self.channel.is_none() {
            match Channel::open(&self.question) {
                Ok(channel) => self.channel = Some(channel),
                Err(error) => self.trouble = Some(error),
            }
        }
        let Some(channel) = &mut self.channel else {
            return;
        };
        let sent = channel.local().and_then(|own| {
            let text = request(&self.question, own, self.identity, self.sent);
            channel.send(text.as_bytes())
        });
        if let Err(error) = sent {
            self.broken(error);
        }
    }

    /// Waits for one message; `None` when the time is over, or nothing can be received.
    fn receive(&mut self, until: Instant) -> Option<Message> {
        let patience = until.saturating_duration_since(Instant::now());
        let Some(channel) = &mut self.channel else {
            std::thread::sleep(patience);
            return None;
        };
        match channel.receive(patience.max(Duration::from_micros(100))) {
            Ok(message) => message,
            Err(error) => {
                self.broken(error);
                None
            }
        }
    }

    /// Errors of a datagram socket are those of a single packet: it is still good.
    fn broken(&mut self, error: io::Error) {
        self.trouble = Some(error);
        if matches!(self.channel, Some(Channel::Tcp(..))) {
            self.channel = None;
        }
    }

    fn judge(&mut self, answer: &Message) -> Option<Asked> {
        let via = answer.top_via().ok()?;
        let branch = std::str::from_utf8(via.branch()?).ok()?;
        let number = branch.strip_prefix(&format!("z9hG4bK{:016x}.", self.identity))?;
        let sent = self.waiting.remove(&number.parse().ok()?)?;
        let text = |bytes| std::str::from_utf8(bytes).ok();
        let address: Option<IpAddr> = match via.received() {
            Some(received) => text(received).and_then(|ip| ip.parse().ok()),
            None => via.host.ip(),
        };
        let port = via
            .rport()
            .and_then(text)
            .and_then(|port| port.parse().ok());
        let header = answer.header_spelled(reveal::HEADER);
        let told = header.map_or(Told::Nothing, read_header);
        Some(Asked {
            sent,
            outcome: Outcome::Answered {
                round_trip: sent.elapsed(),
                told,
                seen_as: address
                    .zip(port.or(via.port))
                    .map(|(ip, port)| SocketAddr::new(ip, port)),
            },
        })
    }
}

/// `edge1;mark=1`; a header that makes no sense tells nothing.
fn read_header(value: &[u8]) -> Told {
    let value = String::from_utf8_lossy(value);
    if value == reveal::NO_EDGE {
        return Told::NoEdge;
    }
    let parts = value.split_once(";mark=");
    let edge = parts.and_then(|(name, mark)| {
        let (name, mark) = (name.to_owned(), mark.parse().ok()?);
        Some(Edge { name, mark })
    });
    edge.map_or(Told::Nothing, Told::By)
}

impl Channel {
    fn open(question: &Question) -> io::Result<Self> {
        let Question {
            service,
            transport,
            from,
            timeout,
            ..
        } = *question;
        let any = SocketAddr::new(
            if service.is_ipv4() {
                IpAddr::from([0_u8; 4])
            } else {
                IpAddr::from([0_u8; 16])
            },
            0,
        );
        match transport {
            Transport::Udp => {
                let socket = UdpSocket::bind(from.unwrap_or(any))?;
                // Only so does the system tell of ICMP errors, and of our own address.
                socket.connect(service)?;
                Ok(Self::Udp(socket))
            }
            Transport::Tcp => {
                let stream = connect_from(from, service, timeout)?;
                stream.set_nodelay(true)?;
                stream.set_write_timeout(Some(timeout))?;
                Ok(Self::Tcp(stream, Box::new(Framer::new(MAX_MESSAGE))))
            }
        }
    }

    fn local(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Udp(socket) => socket.local_addr(),
            Self::Tcp(stream, _) => stream.local_addr(),
        }
    }

    fn send(&mut self, message: &[u8]) -> io::Result<()> {
        match self {
            Self::Udp(socket) => socket.send(message).map(drop),
            Self::Tcp(stream, _) => stream.write_all(message),
        }
    }

    fn receive(&mut self, patience: Duration) -> io::Result<Option<Message>> {
        let mut buffer = [0; 4096];
        match self {
            Self::Udp(socket) => {
                socket.set_read_timeout(Some(patience))?;
                let Some(length) = quiet(socket.recv(&mut buffer))? else {
                    return Ok(None);
                };
                Ok(Message::parse(buffer[..length].to_vec().into()).ok())
            }
            Self::Tcp(stream, framer) => {
                if let Some(message) = next_of(framer)? {
                    return Ok(Some(message));
                }
                stream.set_read_timeout(Some(patience))?;
                match quiet(stream.read(&mut buffer))? {
                    None => return Ok(None),
                    Some(0) => return Err(io::ErrorKind::ConnectionAborted.into()),
                    Some(length) => framer.push(&buffer[..length]),
                }
                next_of(framer)
            }
        }
    }
}

fn next_of(framer: &mut Framer) -> io::Result<Option<Message>> {
    loop {
        match framer.next().map_err(io::Error::other)? {
            Some(StreamItem::Message(message)) => return Ok(Some(message)),
            Some(StreamItem::Ping) => {}
            None => return Ok(None),
        }
    }
}

/// A time that is over is no error.
fn quiet(read: io::Result<usize>) -> io::Result<Option<usize>> {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    match read {
        Ok(length) => Ok(Some(length)),
        Err(error) if [TimedOut, WouldBlock, Interrupted].contains(&error.kind()) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The standard library cannot bind a stream before it connects it.
fn connect_from(
    from: Option<SocketAddr>,
    to: SocketAddr,
    timeout: Duration,
) -> io::Result<TcpStream> {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    if let Some(from) = from {
        socket.bind(&from.into())?;
    }
    socket.connect_timeout(&to.into(), timeout)?;
    Ok(socket.into())
}

/// From a host without a name, to a user that nobody has.
fn request(question: &Question, own: SocketAddr, identity: u64, number: u32) -> String {
    let service = match question.service.ip() {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    };
    let port = question.service.port();
    let via = match question.transport {
        Transport::Udp => "UDP",
        Transport::Tcp => "TCP",
    };
    format!(
        "OPTIONS sip:{service}:{port} SIP/2.0\r\n\
         Via: SIP/2.0/{via} {own};rport;branch=z9hG4bK{identity:016x}.{number}\r\n\
         Max-Forwards: 70\r\n\
         From: <sip:catchment@{service}>;tag={identity:x}\r\n\
         To: <sip:{service}:{port}>\r\n\
         Call-ID: {identity:016x}.{number}\r\n\
         CSeq: {number} OPTIONS\r\n\
         User-Agent: sipcast-lab catchment\r\n\
         Content-Length: 0\r\n\r\n"
    )
}

#[cfg(test)]
mod tests {
    use std::io::BufRead as _;
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    #[test]
    fn the_edge_the_address_and_losses_are_told_over_udp() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let server = UdpSocket::bind(host).unwrap();
            let address = server.local_addr().unwrap();
            let answering = thread::spawn(move || {
                for number in 1..=3 {
                    let mut buffer = [0; 2048];
                    let (length, peer) = server.recv_from(&mut buffer).unwrap();
                    let answer = answer(&buffer[..length], peer, "edge1;mark=7");
                    if number != 2 {
                        server.send_to(answer.as_bytes(), peer).unwrap();
                    }
                }
            });
            let outcomes = ask(address, Transport::Udp, 3);
            answering.join().unwrap();
            let lost = |asked: &&Asked| matches!(asked.outcome, Outcome::Lost);
            assert_eq!(
                (outcomes.len(), outcomes.iter().filter(lost).count()),
                (3, 1)
            );
            let Outcome::Answered { told, seen_as, .. } = &outcomes[0].outcome else {
                panic!("{outcomes:?}");
            };
            let name = "edge1".to_owned();
            assert_eq!(*told, Told::By(Edge { name, mark: 7 }));
            assert_eq!(seen_as.unwrap().ip(), address.ip());
        }
    }

    #[test]
    fn a_connection_that_ends_is_opened_anew() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let answering = thread::spawn(move || {
            for header in ["edge1;mark=1", "-"] {
                let (mut stream, peer) = listener.accept().unwrap();
                let mut request = Vec::new();
                let mut reader = io::BufReader::new(stream.try_clone().unwrap());
                while !request.ends_with(b"\r\n\r\n") {
                    reader.read_until(b'\n', &mut request).unwrap();
                }
                let answer = answer(&request, peer, header);
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        let outcomes = ask(address, Transport::Tcp, 2);
        answering.join().unwrap();
        let told: Vec<&Told> = outcomes
            .iter()
            .filter_map(|asked| match &asked.outcome {
                Outcome::Answered { told, .. } => Some(told),
                Outcome::Lost => None,
            })
            .collect();
        let first = Edge {
            name: "edge1".to_owned(),
            mark: 1,
        };
        assert_eq!(told, [&Told::By(first), &Told::NoEdge]);
    }

    #[test]
    fn a_header_that_makes_no_sense_tells_nothing() {
        for value in ["", "edge1", "edge1;mark=", "edge1;mark=300"] {
            assert_eq!(read_header(value.as_bytes()), Told::Nothing);
        }
    }

    fn ask(service: SocketAddr, transport: Transport, count: u32) -> Vec<Asked> {
        let question = Question {
            service,
            transport,
            from: None,
            interval: Duration::from_millis(50),
            timeout: Duration::from_secs(2),
        };
        let mut outcomes = Vec::new();
        let mut prober = Prober::new(question).unwrap();
        prober
            .run(
                |sent| sent < count,
                |asked| {
                    outcomes.push(asked);
                    Ok(())
                },
            )
            .unwrap();
        outcomes
    }

    fn answer(request: &[u8], peer: SocketAddr, edge: &str) -> String {
        let request = String::from_utf8_lossy(request).into_owned();
        let mut copied = String::new();
        for line in request.lines().skip(1) {
            if let Some(via) = line.strip_prefix("Via: ") {
                let stamp = format!(";rport={};received={}", peer.port(), peer.ip());
                copied += &format!("Via: {}\r\n", via.replace(";rport", &stamp));
            } else if ["From", "To", "Call-ID", "CSeq"].contains(&line.split(':').next().unwrap()) {
                copied += &format!("{line}\r\n");
            }
        }
        format!("SIP/2.0 200 OK\r\n{copied}X-Sipcast-Edge: {edge}\r\nContent-Length: 0\r\n\r\n")
    }
}
