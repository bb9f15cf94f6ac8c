//! What is said to rtpengine, and what its answers mean.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use sip::sdp::Sdp;
use wire::bencode::{Dictionary, DictionaryWriter, Value};
use wire::ip::is_another_host;
use wire::relay_control::{Counted, SessionStatistics, Side, SideAddr, SideStatistics};

/// The tags of the two sides in every call of ours.
pub(super) const fn tag(side: Side) -> &'static str {
    match side {
        Side::A => "caller",
        Side::B => "callee",
    }
}

/// Derived from the session's number alone, so that whoever holds a call's cookie can end it.
pub(super) fn call_id(session: u64) -> String {
    format!("sipcast-{session:016x}")
}

/// One side as an SDP of ours tells it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Description {
    /// Where packets are expected from.
    pub(super) address: SocketAddr,
    /// Media flow; else rtpengine applies its longer `silent-timeout`.
    pub(super) active: bool,
    /// Once learned, no other source is listened to.
    pub(super) strict: bool,
}

impl Description {
    fn sdp(&self, session: u64) -> String {
        let (ip, port) = (self.address.ip(), self.address.port());
        let family = family(ip);
        let direction = if self.active { "sendrecv" } else { "inactive" };
        let mut sdp = String::new();
        // Writing to a String does not fail.
        let _ = write!(
            sdp,
            "v=0\r\no=- {session} 1 IN {family} {ip}\r\ns=-\r\nc=IN {family} {ip}\r\nt=0 0\r\n\
             m=audio {port} RTP/AVP 0\r\na={direction}\r\n"
        );
        sdp
    }
}

const fn family(address: IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => "IP4",
        IpAddr::V6(_) => "IP6",
    }
}

/// `offer` for side A, `answer` for side B. `towards` is an address of the family that the other side
/// has.
pub(super) fn describe(
    request: &mut DictionaryWriter<'_>,
    session: u64,
    side: Side,
    description: Description,
    towards: IpAddr,
    interface: Option<&str>,
) {
    request.bytes("command", if side == Side::A { "offer" } else { "answer" });
    request.bytes("call-id", call_id(session));
    request.bytes("from-tag", tag(Side::A));
    if side == Side::B {
        request.bytes("to-tag", tag(Side::B));
    }
    request.bytes("sdp", description.sdp(session));
    request.bytes("address family", family(towards));
    request.bytes("ICE", "remove");
    // Of sources that send to a port, the one at the address of the SDP is preferred.
    request.bytes("endpoint learning", "heuristic");
    request.list("flags", |flags| {
        // Without it another address in the SDP means other ports.
        flags.bytes("port-latching");
        if description.strict {
            flags.bytes("strict-source");
        }
    });
    if let Some(interface) = interface {
        request.list("direction", |direction| {
            direction.bytes(interface).bytes(interface);
        });
    }
}

pub(super) fn ping(request: &mut DictionaryWriter<'_>) {
    request.bytes("command", "ping");
}

pub(super) fn query(request: &mut DictionaryWriter<'_>, session: u64) {
    request.bytes("command", "query");
    request.bytes("call-id", call_id(session));
}

pub(super) fn delete(request: &mut DictionaryWriter<'_>, session: u64) {
    request.bytes("command", "delete");
    request.bytes("call-id", call_id(session));
    // Without a tag rtpengine 10.5 leaves the statistics out.
    request.bytes("from-tag", tag(Side::A));
    request.integer("delete delay", 0);
}

/// What an answer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was done.
    Done,
    /// rtpengine does not know the call.
    Unknown,
    /// It has no room for more: ports, sessions, load.
    Full,
    /// Anything else.
    Refused,
}

pub(super) fn outcome(answer: Dictionary<'_>) -> Outcome {
    const FULL: [&str; 5] = [
        "Ran out of ports",
        "Parallel session limit reached",
        "CPU usage limit exceeded",
        "Load limit exceeded",
        "Bandwidth limit exceeded",
    ];
    let reason = answer.text("error-reason").unwrap_or_default();
    match answer.text("result") {
        Some("ok" | "pong") => Outcome::Done,
        Some("load limit") => Outcome::Full,
        Some("error") if reason == "Unknown call-id" => Outcome::Unknown,
        Some("error") if FULL.contains(&reason) => Outcome::Full,
        _ => Outcome::Refused,
    }
}

/// Why the SDP of an answer gives no side of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadSide {
    /// There is no SDP, or none with a line of media, or one without ports.
    Sdp,
    /// Its address is one that nobody can send to from elsewhere.
    Address,
}

/// Where rtpengine receives what the reader of this SDP sends.
pub(super) fn side(answer: Dictionary<'_>) -> Result<SideAddr, BadSide> {
    let sdp = answer.bytes("sdp").ok_or(BadSide::Sdp)?;
    let sdp = Sdp::parse(sdp).map_err(|_| BadSide::Sdp)?;
    let media = sdp.media().first().ok_or(BadSide::Sdp)?;
    let rtp = media.rtp_address().ok_or(BadSide::Sdp)?;
    let rtcp = media.rtcp_address().ok_or(BadSide::Sdp)?;
    if rtp.port() == 0 || rtcp.port() == 0 || rtcp.ip() != rtp.ip() {
        return Err(BadSide::Sdp);
    }
    let addr = rtp.ip().to_canonical();
    if !is_another_host(addr) {
        return Err(BadSide::Address);
    }
    Ok(SideAddr {
        addr,
        rtp: rtp.port(),
        rtcp: rtcp.port(),
    })
}

/// What both sides did. rtpengine 10.5 counts what it receives, not what it sends, and finds neither
/// loss nor jitter: those stay 0.
pub(super) fn statistics(answer: Dictionary<'_>) -> SessionStatistics {
    let tags = answer.dictionary("tags");
    let side = |side| {
        let media = tags?.dictionary(tag(side))?.list("medias")?.iter().next();
        Some(side_statistics(media?.dictionary()?))
    };
    SessionStatistics {
        duration_ms: 0,
        a: side(Side::A).unwrap_or_default(),
        b: side(Side::B).unwrap_or_default(),
    }
}

fn side_statistics(media: Dictionary<'_>) -> SideStatistics {
    let mut statistics = SideStatistics::default();
    let streams = media.list("streams").into_iter();
    for stream in streams.flat_map(|streams| streams.iter()) {
        let Some(stream) = stream.dictionary() else {
            continue;
        };
        let flags = stream.list("flags").into_iter();
        let rtcp_only = flags
            .flat_map(|flags| flags.iter())
            .any(|flag| flag == Value::Bytes(b"RTCP"));
        let (counted, latched) = (received(stream), learned(stream));
        if rtcp_only {
            (statistics.rtcp, statistics.latched_rtcp) = (counted, latched);
        } else {
            (statistics.rtp, statistics.latched_rtp) = (counted, latched);
        }
    }
    statistics
}

fn received(stream: Dictionary<'_>) -> Counted {
    let count = |key| {
        let count = stream.dictionary("stats")?.integer(key)?;
        u64::try_from(count).ok()
    };
    Counted {
        packets_in: count("packets").unwrap_or_default(),
        bytes_in: count("bytes").unwrap_or_default(),
        ..Counted::default()
    }
}

/// Where packets come from, which nobody has told rtpengine.
fn learned(stream: Dictionary<'_>) -> Option<SocketAddr> {
    let endpoint = |key| {
        let endpoint = stream.dictionary(key)?;
        let port = u16::try_from(endpoint.integer("port")?).ok()?;
        let address: IpAddr = endpoint.text("address")?.parse().ok()?;
        Some(SocketAddr::new(address, port))
    };
    let learned = endpoint("endpoint")?;
    (endpoint("advertised endpoint") != Some(learned)).then_some(learned)
}
