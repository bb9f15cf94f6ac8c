//! rtpengine's `ng` protocol as far as this bench needs it: offer and answer in bencode over UDP.

use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::network::PHONES;
use super::servers::{IN_FLIGHT, PhonePorts, RelaySession};

/// After this long without an answer all that is open is asked again.
const PATIENCE: Duration = Duration::from_secs(1);
const TRIES: u32 = 5;

/// Who asks rtpengine.
pub(super) struct Client {
    socket: UdpSocket,
}

/// How far a session is.
#[derive(Debug, Clone, Copy)]
enum Step {
    Offered,
    Answered { b: u16 },
    Ready { a: u16, b: u16 },
}

impl Client {
    /// Asks there, from a socket of the calling thread's namespace.
    pub(super) fn new(rtpengine: SocketAddrV4) -> Result<Self> {
        let socket = UdpSocket::bind((PHONES, 0))?;
        socket.connect(SocketAddr::from(rtpengine))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { socket })
    }

    /// True when it answers.
    pub(super) fn ping(&self) -> bool {
        self.ask("ping", &[("command", "ping")]).is_ok() && self.answer().is_ok()
    }

    /// Sets up this many sessions, some at a time.
    pub(super) fn set_up(&self, count: usize, phones: PhonePorts) -> Result<Vec<RelaySession>> {
        let mut steps: Vec<Step> = Vec::with_capacity(count);
        let mut ready = 0;
        let mut tries = 0;
        while ready < count {
            while steps.len() < count && steps.len() - ready < IN_FLIGHT {
                steps.push(Step::Offered);
                self.ask_for(steps.len() - 1, Step::Offered, phones)?;
            }
            let Ok((cookie, port)) = self.answer() else {
                tries += 1;
                ensure!(
                    tries < TRIES,
                    "rtpengine answers {ready} of {count} sessions"
                );
                for (session, step) in steps.iter().enumerate() {
                    self.ask_for(session, *step, phones)?;
                }
                continue;
            };
            let Some((session, was)) = parse_cookie(&cookie) else {
                continue;
            };
            let port = port.with_context(|| format!("no port for session {session}"))?;
            let step = steps.get_mut(session).context("a cookie of nobody")?;
            match *step {
                Step::Offered if was == 'o' => *step = Step::Answered { b: port },
                Step::Answered { b } if was == 'a' => {
                    *step = Step::Ready { a: port, b };
                    ready += 1;
                }
                // An answer to a question that was asked twice.
                Step::Offered | Step::Answered { .. } | Step::Ready { .. } => continue,
            }
            let step = *step;
            self.ask_for(session, step, phones)?;
        }
        let sessions = steps.into_iter().filter_map(|step| match step {
            Step::Ready { a, b } => Some(RelaySession { a, b }),
            Step::Offered | Step::Answered { .. } => None,
        });
        Ok(sessions.collect())
    }

    fn ask_for(&self, session: usize, step: Step, phones: PhonePorts) -> Result<()> {
        let call = format!("call-{session}@bench");
        match step {
            Step::Offered => self.ask(
                &format!("o{session}"),
                &[
                    ("command", "offer"),
                    ("call-id", &call),
                    ("from-tag", "caller"),
                    ("ICE", "remove"),
                    ("sdp", &sdp(phones.a(session))),
                ],
            ),
            Step::Answered { .. } => self.ask(
                &format!("a{session}"),
                &[
                    ("command", "answer"),
                    ("call-id", &call),
                    ("from-tag", "caller"),
                    ("to-tag", "callee"),
                    ("ICE", "remove"),
                    ("sdp", &sdp(phones.b(session))),
                ],
            ),
            Step::Ready { .. } => Ok(()),
        }
    }

    fn ask(&self, cookie: &str, dictionary: &[(&str, &str)]) -> Result<()> {
        let mut message = format!("{cookie} d");
        for (key, value) in dictionary {
            for text in [key, value] {
                message.push_str(&format!("{}:{text}", text.len()));
            }
        }
        message.push('e');
        self.socket.send(message.as_bytes())?;
        Ok(())
    }

    /// The cookie of an answer, and the port in its SDP.
    fn answer(&self) -> Result<(String, Option<u16>)> {
        let mut buffer = [0; 8192];
        let length = self.socket.recv(&mut buffer)?;
        let message = buffer.get(..length).unwrap_or_default();
        let space = message.iter().position(|octet| *octet == b' ');
        let (cookie, dictionary) = message.split_at(space.context("no cookie")?);
        let dictionary = &dictionary[1..];
        if let Some(reason) = string_of(dictionary, b"error-reason") {
            bail!("rtpengine: {}", String::from_utf8_lossy(reason));
        }
        let port = string_of(dictionary, b"sdp").and_then(media_port);
        Ok((String::from_utf8_lossy(cookie).into_owned(), port))
    }
}

fn parse_cookie(cookie: &str) -> Option<(usize, char)> {
    let was = cookie.chars().next()?;
    Some((cookie.get(1..)?.parse().ok()?, was))
}

fn sdp(port: u16) -> String {
    format!(
        "v=0\r\no=- 1 1 IN IP4 {PHONES}\r\ns=-\r\nc=IN IP4 {PHONES}\r\nt=0 0\r\n\
         m=audio {port} RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\na=sendrecv\r\n"
    )
}

fn media_port(sdp: &[u8]) -> Option<u16> {
    let sdp = std::str::from_utf8(sdp).ok()?;
    let line = sdp.lines().find_map(|line| line.strip_prefix("m=audio "))?;
    line.split(' ').next()?.parse().ok()
}

/// The string under this key of a dictionary.
fn string_of<'a>(dictionary: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    let mut rest = dictionary.strip_prefix(b"d")?;
    while rest.first()? != &b'e' {
        let (key, after) = string(rest)?;
        if key == wanted {
            return Some(string(after)?.0);
        }
        rest = skip(after)?;
    }
    None
}

fn string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = bytes.iter().position(|octet| *octet == b':')?;
    let length: usize = std::str::from_utf8(&bytes[..colon]).ok()?.parse().ok()?;
    bytes.get(colon + 1..)?.split_at_checked(length)
}

/// What comes after the value at the beginning.
fn skip(bytes: &[u8]) -> Option<&[u8]> {
    match bytes.first()? {
        b'i' => {
            let end = bytes.iter().position(|octet| *octet == b'e')?;
            bytes.get(end + 1..)
        }
        b'l' | b'd' => {
            let mut rest = bytes.get(1..)?;
            while rest.first()? != &b'e' {
                rest = skip(rest)?;
            }
            rest.get(1..)
        }
        _ => Some(string(bytes)?.1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_is_found_behind_values_of_all_kinds() {
        let reply = b"d3:onei7e4:listl1:ai-2ed1:x1:yee6:result2:ok3:sdp5:helloe";
        assert_eq!(string_of(reply, b"result"), Some(&b"ok"[..]));
        assert_eq!(string_of(reply, b"sdp"), Some(&b"hello"[..]));
        assert_eq!(string_of(reply, b"x"), None);
        for end in 0..reply.len() {
            let _no_panic = string_of(&reply[..end], b"sdp");
        }
    }

    #[test]
    fn the_media_port_is_read_from_the_sdp() {
        assert_eq!(media_port(sdp(30_004).as_bytes()), Some(30_004));
    }
}
