//! From bytes to the index: one pass over the lines.

use std::net::IpAddr;

use memchr::memchr;
use smallvec::SmallVec;

use super::{Direction, Line, MAX_LEN, MAX_MEDIA, Media, RtcpAttribute, Sdp, SdpError, Section};

pub(super) fn parse(bytes: &[u8]) -> Result<Sdp<'_>, SdpError> {
    if bytes.len() > MAX_LEN {
        return Err(SdpError::TooLong);
    }
    if !bytes.starts_with(b"v=") {
        return Err(SdpError::NoVersion);
    }
    let mut indexer = Indexer::new(bytes);
    let mut at = 0;
    while let Some(line) = next_line(bytes, at) {
        indexer.line(line)?;
        at = line.end;
    }
    Ok(indexer.finish())
}

fn next_line(bytes: &[u8], start: usize) -> Option<Line> {
    let rest = bytes.get(start..).filter(|rest| !rest.is_empty())?;
    let Some(length) = memchr(b'\n', rest) else {
        return Some(Line {
            start,
            content_end: bytes.len(),
            end: bytes.len(),
        });
    };
    let content = rest[..length]
        .strip_suffix(b"\r")
        .unwrap_or(&rest[..length]);
    Some(Line {
        start,
        content_end: start + content.len(),
        end: start + length + 1,
    })
}

struct Indexer<'a> {
    sdp: Sdp<'a>,
    session_direction: Direction,
    /// Per m-line, what it says itself; the session's fills the gaps at the end.
    own: Vec<Own>,
}

#[derive(Clone, Copy, Default)]
struct Own {
    /// The address of the first `c=`; `Some(None)` where that names a host.
    address: Option<Option<IpAddr>>,
    direction: Option<Direction>,
}

impl<'a> Indexer<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let nothing = Line {
            start: 0,
            content_end: 0,
            end: 0,
        };
        Self {
            sdp: Sdp {
                bytes,
                origin: None,
                session: Section::after(nothing, 0..0),
                session_address: None,
                bundles: SmallVec::new(),
                media: Vec::new(),
                sections: Vec::new(),
            },
            session_direction: Direction::default(),
            own: Vec::new(),
        }
    }

    fn line(&mut self, line: Line) -> Result<(), SdpError> {
        let bytes = self.sdp.bytes;
        let content = &bytes[line.start..line.content_end];
        let Some((&[kind, b'='], value)) = content.split_first_chunk::<2>() else {
            return Ok(());
        };
        match kind {
            b'm' => return self.media(line, value),
            b'a' => self.attribute(line, value),
            b'c' => self.connection(line, value),
            b'o' if self.own.is_empty() => self.sdp.origin = self.sdp.origin.or(Some(line)),
            _ => {}
        }
        let section = self.section();
        if kind == b'i' && section.before_connection.end == line.start {
            section.before_connection = line;
        }
        if kind != b'a' && section.before_attributes.end == line.start {
            section.before_attributes = line;
        }
        Ok(())
    }

    fn media(&mut self, line: Line, value: &'a [u8]) -> Result<(), SdpError> {
        let number = self.sdp.media.len();
        if number == MAX_MEDIA {
            return Err(SdpError::TooManyMedia);
        }
        let bad = SdpError::BadMedia(number);
        let (kind, rest) = word(value).ok_or(bad)?;
        let (ports, rest) = word(rest).ok_or(bad)?;
        let (protocol, formats) = word(rest).ok_or(bad)?;
        let (port, count) = match memchr(b'/', ports) {
            Some(slash) => (&ports[..slash], Some(&ports[slash + 1..])),
            None => (ports, None),
        };
        let port = number_of(port)
            .and_then(|port| u16::try_from(port).ok())
            .ok_or(bad)?;
        let port_count = match count {
            Some(count) => u16::try_from(number_of(count).ok_or(bad)?).unwrap_or(u16::MAX),
            None => 1,
        };
        let ports_start = line.content_end - offset_from_end(value, ports);
        self.sdp
            .sections
            .push(Section::after(line, ports_start..ports_start + ports.len()));
        self.sdp.media.push(Media {
            kind,
            port,
            port_count,
            protocol,
            formats: formats.trim_ascii(),
            address: None,
            rtcp: None,
            rtcp_mux: false,
            direction: Direction::default(),
        });
        self.own.push(Own::default());
        Ok(())
    }

    fn connection(&mut self, line: Line, value: &[u8]) {
        let address = connection_address(value);
        self.section().connections.push(line);
        match self.own.last_mut() {
            Some(own) => own.address = own.address.or(Some(address)),
            None => self.sdp.session_address = self.sdp.session_address.or(address),
        }
    }

    fn attribute(&mut self, line: Line, value: &[u8]) {
        let (name, argument) = match memchr(b':', value) {
            Some(colon) => (value[..colon].trim_ascii(), value[colon + 1..].trim_ascii()),
            None => (value.trim_ascii(), &value[value.len()..]),
        };
        if is_ice(name) {
            self.section().ice.push(line);
        } else if name == b"group" && self.own.is_empty() {
            if word(argument).is_some_and(|(semantics, _)| semantics == b"BUNDLE") {
                self.sdp.bundles.push(line);
            }
        } else if let Some(direction) = direction_of(name) {
            match self.own.last_mut() {
                Some(own) => own.direction = Some(direction),
                None => self.session_direction = direction,
            }
        } else if let Some(media) = self.sdp.media.last_mut() {
            match name {
                b"rtcp-mux" => media.rtcp_mux = true,
                b"rtcp" => {
                    media.rtcp = media.rtcp.or_else(|| rtcp_attribute(argument));
                    self.section().rtcp.push(line);
                }
                _ => {}
            }
        }
    }

    fn section(&mut self) -> &mut Section {
        self.sdp
            .sections
            .last_mut()
            .unwrap_or(&mut self.sdp.session)
    }

    fn finish(mut self) -> Sdp<'a> {
        for (media, own) in self.sdp.media.iter_mut().zip(&self.own) {
            media.address = own.address.unwrap_or(self.sdp.session_address);
            media.direction = own.direction.unwrap_or(self.session_direction);
        }
        self.sdp
    }
}

impl Section {
    fn after(line: Line, port: std::ops::Range<usize>) -> Self {
        Self {
            port,
            before_connection: line,
            before_attributes: line,
            connections: SmallVec::new(),
            rtcp: SmallVec::new(),
            ice: Vec::new(),
        }
    }
}

/// `IN IP4 192.0.2.1`, `IN IP4 224.2.1.1/127/3`, `IN IP6 ff15::101/3`.
fn connection_address(value: &[u8]) -> Option<IpAddr> {
    let (_network, rest) = word(value)?;
    let (_family, rest) = word(rest)?;
    let (address, _) = word(rest)?;
    let address = address.split(|byte| *byte == b'/').next()?;
    std::str::from_utf8(address).ok()?.parse().ok()
}

/// `53020` or `53020 IN IP4 192.0.2.1` (RFC 3605 section 2.1).
fn rtcp_attribute(argument: &[u8]) -> Option<RtcpAttribute> {
    let (port, rest) = word(argument)?;
    let port = number_of(port).and_then(|port| u16::try_from(port).ok())?;
    Some(RtcpAttribute {
        port,
        address: connection_address(rest),
    })
}

fn is_ice(name: &[u8]) -> bool {
    name.starts_with(b"ice-")
        || matches!(
            name,
            b"candidate" | b"remote-candidates" | b"end-of-candidates"
        )
}

fn direction_of(name: &[u8]) -> Option<Direction> {
    match name {
        b"sendrecv" => Some(Direction::SendRecv),
        b"sendonly" => Some(Direction::SendOnly),
        b"recvonly" => Some(Direction::RecvOnly),
        b"inactive" => Some(Direction::Inactive),
        _ => None,
    }
}

/// The first word and what follows it.
fn word(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let text = text.trim_ascii_start();
    let end = text
        .iter()
        .position(u8::is_ascii_whitespace)
        .unwrap_or(text.len());
    if end == 0 {
        None
    } else {
        Some(text.split_at(end))
    }
}

/// How far before the end of `whole` its part `part` begins.
fn offset_from_end(whole: &[u8], part: &[u8]) -> usize {
    whole.as_ptr_range().end as usize - part.as_ptr() as usize
}

/// A decimal number; one that does not fit is the largest.
fn number_of(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0_u32, |number, digit| {
        number
            .saturating_mul(10)
            .saturating_add(u32::from(digit - b'0'))
    }))
}
