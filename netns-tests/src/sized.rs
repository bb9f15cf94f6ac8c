//! A scripted phone that asks for the service's options, with requests and answers of an exact size.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::namespace::Namespace;

/// RFC 3261 section 17.1.1.1.
const T1: Duration = Duration::from_millis(500);
/// 64 * T1.
const PATIENCE: Duration = Duration::from_secs(32);
/// Of one padding field.
const FIELD: usize = 800;

/// What is asked.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// The phone and the service.
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    /// Its Call-ID, which no other has.
    pub(crate) call_id: String,
    /// Octets of the request, or more where it cannot be so short.
    pub(crate) size: usize,
    /// Octets that the answer repeats.
    pub(crate) echo: usize,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Times that the request was sent.
    pub(crate) sent: u32,
    /// Octets of the request and of the answer.
    pub(crate) request: usize,
    pub(crate) answer: usize,
}

impl Request {
    fn build(&self, transport: &str, port: u16, number: usize) -> Vec<u8> {
        let host = match self.from {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => format!("[{v6}]"),
        };
        let call_id = &self.call_id;
        let echoed = match self.echo {
            0 => String::new(),
            echo => format!(";e={}", "e".repeat(echo)),
        };
        // In compact form (RFC 3261 section 7.3.3), so that 200 octets are enough.
        let start = format!(
            "OPTIONS sip:example.com SIP/2.0\r\n\
             v:SIP/2.0/{transport} {host}:{port};rport;branch=z9hG4bK{call_id}{number}{echoed}\r\n\
             Max-Forwards:70\r\nf:<sip:a@b.c>;tag=1\r\nt:<sip:example.com>\r\n\
             i:{call_id}\r\nCSeq:{number} OPTIONS\r\n"
        );
        let end = "l:0\r\n\r\n";
        let mut message = start.into_bytes();
        let least = "P:\r\n".len();
        loop {
            let missing = self.size.saturating_sub(message.len() + end.len());
            if missing < least {
                break;
            }
            // What is left for the next one must be enough for one, or nothing.
            let length = match missing {
                _ if missing <= FIELD => missing,
                _ if missing < FIELD + least => FIELD - least,
                _ => FIELD,
            };
            let padding = "p".repeat(length - least);
            message.extend_from_slice(format!("P:{padding}\r\n").as_bytes());
        }
        // Too little for a field.
        let missing = self.size.saturating_sub(message.len() + end.len());
        let spaces = " ".repeat(missing);
        message.extend_from_slice(end.replace(':', &format!(":{spaces}")).as_bytes());
        message
    }
}

/// Asks over UDP, again until the answer comes.
pub(crate) fn over_udp(namespace: &Namespace, request: &Request) -> Result<Asked> {
    namespace.inside(|| {
        let socket = UdpSocket::bind(SocketAddr::new(request.from, 0))?;
        socket.connect(SocketAddr::new(request.to, 5060))?;
        let message = request.build("UDP", socket.local_addr()?.port(), 1);
        ensure!(
            message.len() == request.size,
            "{} octets instead of {}",
            message.len(),
            request.size
        );
        let (start, mut sent, mut interval) = (Instant::now(), 0, T1);
        let mut answer = vec![0; 65_535];
        while start.elapsed() < PATIENCE {
            // An error is about the one before: too long, says a router.
            let _refused = socket.send(&message);
            sent += 1;
            let until = Instant::now() + interval;
            while let Some(left) = until.checked_duration_since(Instant::now()) {
                socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
                let Ok(length) = socket.recv(&mut answer) else {
                    continue;
                };
                if is_answer(&answer[..length], &request.call_id)? {
                    let request = message.len();
                    let answer = length;
                    return Ok(Asked {
                        sent,
                        request,
                        answer,
                    });
                }
            }
            interval = (interval * 2).min(Duration::from_secs(4));
        }
        anyhow::bail!(
            "{} octets were sent {sent} times, and not answered",
            message.len()
        )
    })
}

fn is_answer(bytes: &[u8], call_id: &str) -> Result<bool> {
    let text = String::from_utf8_lossy(bytes);
    if !text.contains(call_id) || text.starts_with("SIP/2.0 1") {
        return Ok(false);
    }
    ensure!(
        text.starts_with("SIP/2.0 200 "),
        "answered with {:?}",
        text.lines().next()
    );
    Ok(true)
}

/// Sends so many requests over one TCP connection, without waiting, and reads an answer to each: octets
/// both ways.
pub(crate) fn over_tcp(
    namespace: &Namespace,
    request: &Request,
    count: usize,
) -> Result<[usize; 2]> {
    namespace.inside(|| {
        let to = SocketAddr::new(request.to, 5060);
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
        let port = stream.local_addr()?.port();
        let mut writer = stream.try_clone()?;
        let messages: Vec<u8> = (1..=count)
            .flat_map(|number| request.build("TCP", port, number))
            .collect();
        let sent = messages.len();
        let writing = std::thread::spawn(move || writer.write_all(&messages));
        stream.set_read_timeout(Some(PATIENCE))?;
        let (mut read, mut buffer) = (Vec::new(), vec![0; 65_536]);
        let mut answers = 0;
        while answers < count {
            let length = stream
                .read(&mut buffer)
                .with_context(|| format!("{answers} of {count} answers"))?;
            ensure!(length > 0, "closed after {answers} of {count} answers");
            read.extend_from_slice(&buffer[..length]);
            answers = count_of(&read, b"SIP/2.0 200 ");
        }
        let written = writing.join();
        written.map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        Ok([sent, read.len()])
    })
}

fn count_of(haystack: &[u8], needle: &[u8]) -> usize {
    let windows = haystack.windows(needle.len());
    windows.filter(|window| *window == needle).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_size_that_is_asked_for() {
        for size in (200..3_000).chain([4_000, 9_000]) {
            let request = Request {
                from: "2001:db8:1::10".parse().unwrap(),
                to: "2001:db8:5::1".parse().unwrap(),
                call_id: "udp-0-200".to_owned(),
                size,
                echo: 0,
            };
            assert_eq!(request.build("UDP", 40_000, 1).len(), size);
        }
    }
}
