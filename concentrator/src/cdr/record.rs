//! One call's record: what is known of it while it lasts, and the line that it becomes.
//!
//! Text comes from phones, so it is cut to [`MAX_TEXT`] octets, and what is no UTF-8 is replaced.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde::Serialize;
use sip::hop::{Hop, Transport};
use sip::message::{Message, NameAddr};
use sip::proxy::media::{Party, SessionRef};
use wire::mark::RelayId;
use wire::relay_control::{SessionStatistics, Side, SideStatistics, Silence};

use super::time::rfc3339;

/// Octets kept of a URI, a tag or a Call-ID.
const MAX_TEXT: usize = 256;
/// Sessions of one call that are kept; a call has one for each media line.
const MAX_SESSIONS: usize = 16;

/// Who or what ended a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum EndedBy {
    /// The caller has hung up.
    Caller,
    /// The callee has hung up.
    Callee,
    /// There were no media any more, so it was ended from here.
    MediaTimeout,
    /// Its relay has failed before there were any media, so it was ended from here.
    RelayLost,
    /// Somebody has hung up, and another concentrator has seen it.
    Elsewhere,
    /// It was not answered: refused, unreachable, or nobody.
    Failed,
    /// It was not answered, and the caller has cancelled it.
    Cancelled,
    /// It was not answered, and the caller's connection has ended.
    CallerGone,
    /// Nothing was heard of its end.
    Lost,
}

/// A call.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) started: Instant,
    pub(super) ringing: Option<Instant>,
    pub(super) answered: Option<Instant>,
    pub(super) ended: Option<(Instant, EndedBy)>,
    call_id: Box<str>,
    from_tag: Box<str>,
    to_tag: Box<str>,
    caller_uri: Box<str>,
    callee_uri: Box<str>,
    caller: Option<Place>,
    callee: Option<Place>,
    status: u16,
    silence: Option<Silence>,
    pub(super) sessions: Vec<Media>,
    /// INVITEs of it that are under way here: two where it passes twice.
    pub(super) passes: u8,
    /// Begun before this program was.
    partial: bool,
}

/// Where a party's signalling comes from.
#[derive(Debug, Clone, Copy)]
struct Place {
    peer: SocketAddr,
    transport: Transport,
    relay: Option<RelayId>,
}

/// When the first packet of each side came.
pub(super) type FirstPackets = [Option<Instant>; 2];

/// One session of a call.
#[derive(Debug)]
pub(super) struct Media {
    pub(super) session: SessionRef,
    first: FirstPackets,
    pub(super) statistics: Option<Box<SessionStatistics>>,
}

impl Record {
    /// Of the INVITE.
    pub(super) fn begun(invite: &Message, from: &Hop, now: Instant) -> Self {
        let (caller, callee) = (invite.from(), invite.to());
        Self {
            started: now,
            ringing: None,
            answered: None,
            ended: None,
            call_id: text(invite.call_id().unwrap_or_default()),
            from_tag: tag(caller.as_ref().ok()),
            to_tag: Box::default(),
            caller_uri: uri(caller.as_ref().ok()),
            callee_uri: uri(callee.as_ref().ok()),
            caller: Some(Place::of(from)),
            callee: None,
            status: 0,
            silence: None,
            sessions: Vec::new(),
            passes: 1,
            partial: false,
        }
    }

    /// Of the BYE of a call that began before this program did; `age` by its cookie.
    pub(super) fn of_bye(bye: &Message, by: Party, age: Duration, now: Instant) -> Self {
        let (sender, receiver) = (bye.from(), bye.to());
        let (caller, callee) = match by {
            Party::Caller => (sender.as_ref().ok(), receiver.as_ref().ok()),
            Party::Callee => (receiver.as_ref().ok(), sender.as_ref().ok()),
        };
        Self {
            // A machine that has started since has no such instant.
            started: now.checked_sub(age).unwrap_or(now),
            ringing: None,
            answered: None,
            ended: None,
            call_id: text(bye.call_id().unwrap_or_default()),
            from_tag: tag(caller),
            to_tag: tag(callee),
            caller_uri: uri(caller),
            callee_uri: uri(callee),
            caller: None,
            callee: None,
            status: 200,
            silence: None,
            sessions: Vec::new(),
            passes: 0,
            partial: true,
        }
    }

    /// The caller has got a 2xx.
    pub(super) fn answer(&mut self, response: &Message, by: Option<&Hop>, now: Instant) {
        if self.answered.is_some() {
            return;
        }
        self.answered = Some(now);
        self.status = response.status().unwrap_or(200);
        self.to_tag = tag(response.to().as_ref().ok());
        self.callee = by.map(Place::of);
    }

    pub(super) fn fail(&mut self, status: u16, by: EndedBy, now: Instant) {
        self.status = status;
        self.ended = Some((now, by));
    }

    /// The first word about the end counts.
    pub(super) fn end(&mut self, by: EndedBy, now: Instant) {
        self.ended.get_or_insert((now, by));
    }

    pub(super) fn fall_silent(&mut self, silence: Silence, now: Instant) {
        self.end(EndedBy::MediaTimeout, now);
        self.silence.get_or_insert(silence);
    }

    /// False where there are too many.
    pub(super) fn add_session(&mut self, session: SessionRef) -> bool {
        let known = self.sessions.iter().any(|media| media.session == session);
        if !known && self.sessions.len() < MAX_SESSIONS {
            self.sessions.push(Media {
                session,
                first: [None; 2],
                statistics: None,
            });
        }
        known || self.media(session).is_some()
    }

    fn media(&mut self, session: SessionRef) -> Option<&mut Media> {
        self.sessions
            .iter_mut()
            .find(|media| media.session == session)
    }

    pub(super) fn media_started(&mut self, session: SessionRef, first: FirstPackets) {
        if let Some(media) = self.media(session) {
            for (known, new) in media.first.iter_mut().zip(first) {
                *known = known.or(new);
            }
        }
    }

    /// What a session did; `None` where nobody knows any more.
    pub(super) fn session_ended(
        &mut self,
        session: SessionRef,
        stats: Option<Box<SessionStatistics>>,
    ) {
        match stats {
            Some(stats) => {
                if let Some(media) = self.media(session) {
                    media.statistics = Some(stats);
                }
            }
            None => self.sessions.retain(|media| media.session != session),
        }
    }

    /// True where a session has not told yet what it did.
    pub(super) fn waits(&self) -> bool {
        self.sessions.iter().any(|media| media.statistics.is_none())
    }
}

impl Place {
    const fn of(hop: &Hop) -> Self {
        Self {
            peer: hop.flow.peer,
            transport: hop.flow.transport,
            relay: hop.relay,
        }
    }
}

/// What relays and edges are called.
pub(super) trait Names {
    /// The edge of a relay.
    fn edge(&self, relay: RelayId) -> Option<&str>;
    /// The agent of a relay.
    fn agent(&self, relay: RelayId) -> Option<&str>;
}

#[derive(Serialize)]
struct Line<'a> {
    concentrator: &'a str,
    call_id: &'a str,
    from_tag: &'a str,
    to_tag: &'a str,
    caller: &'a str,
    callee: &'a str,
    start: String,
    ring: Option<String>,
    answer: Option<String>,
    end: String,
    duration_ms: u64,
    status: u16,
    ended_by: EndedBy,
    #[serde(skip_serializing_if = "Option::is_none")]
    silence: Option<String>,
    caller_place: Option<PlaceOf<'a>>,
    callee_place: Option<PlaceOf<'a>>,
    media: Vec<MediaOf<'a>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    partial: bool,
}

#[derive(Serialize)]
struct PlaceOf<'a> {
    address: String,
    transport: &'static str,
    edge: Option<&'a str>,
    mark: Option<u8>,
}

#[derive(Serialize)]
struct MediaOf<'a> {
    relay: Option<&'a str>,
    edge: Option<&'a str>,
    mark: u8,
    session: u64,
    duration_ms: Option<u64>,
    caller: Option<SideOf>,
    callee: Option<SideOf>,
}

/// What came from one party, and what went to it.
#[derive(Serialize)]
struct SideOf {
    first_packet: Option<String>,
    packets: u64,
    bytes: u64,
    packets_sent: u64,
    bytes_sent: u64,
    lost: u64,
    jitter_ms: Option<f64>,
    r_factor: Option<u8>,
    mos: Option<f64>,
    burst_density: Option<f64>,
    burst_ms: Option<u16>,
    gap_density: Option<f64>,
    gap_ms: Option<u16>,
    rejected: u64,
    relatched: u32,
}

impl Record {
    /// The line, without its end; `unix` is the time since 1970 at `now`.
    pub(super) fn line(
        &self,
        name: &str,
        names: &dyn Names,
        now: Instant,
        unix: Duration,
    ) -> String {
        let (ended, ended_by) = self.ended.unwrap_or((now, EndedBy::Lost));
        let at = |instant: Instant| {
            let ago = now.saturating_duration_since(instant);
            rfc3339(unix.saturating_sub(ago))
        };
        let talked = self
            .answered
            .map(|answered| ended.saturating_duration_since(answered));
        let place = |place: &Option<Place>| {
            place.map(|place| PlaceOf {
                address: place.peer.to_string(),
                transport: place.transport.via_name(),
                edge: place.relay.and_then(|relay| names.edge(relay)),
                mark: place.relay.map(|relay| relay.mark.number()),
            })
        };
        let media = self.sessions.iter().map(|media| {
            let stats = media.statistics.as_deref();
            let side = |side: Side| {
                let first = media.first[usize::from(side == Side::B)].map(at);
                stats.map(|stats| SideOf::new(stats.side(side), first))
            };
            let relay = media.session.relay;
            MediaOf {
                relay: names.agent(relay),
                edge: names.edge(relay),
                mark: relay.mark.number(),
                session: media.session.session,
                duration_ms: stats.map(|stats| stats.duration_ms),
                caller: side(Side::A),
                callee: side(Side::B),
            }
        });
        let line = Line {
            concentrator: name,
            call_id: &self.call_id,
            from_tag: &self.from_tag,
            to_tag: &self.to_tag,
            caller: &self.caller_uri,
            callee: &self.callee_uri,
            start: at(self.started),
            ring: self.ringing.map(at),
            answer: self.answered.map(at),
            end: at(ended),
            duration_ms: talked.map_or(0, millis),
            status: self.status,
            ended_by,
            silence: self.silence.map(|silence| silence.to_string()),
            caller_place: place(&self.caller),
            callee_place: place(&self.callee),
            media: media.collect(),
            partial: self.partial,
        };
        // Numbers and text in structures: there is nothing in it that JSON could not say.
        serde_json::to_string(&line).unwrap_or_default()
    }
}

impl SideOf {
    fn new(stats: &SideStatistics, first_packet: Option<String>) -> Self {
        let quality = stats.quality.as_ref();
        let part = |of_256: u8| f64::from(of_256) / 256.0;
        Self {
            first_packet,
            packets: stats.rtp.packets_in,
            bytes: stats.rtp.bytes_in,
            packets_sent: stats.rtp.packets_out,
            bytes_sent: stats.rtp.bytes_out,
            lost: stats.lost,
            jitter_ms: quality.map(|quality| f64::from(quality.jitter_us) / 1000.0),
            r_factor: quality.map(|quality| quality.r_factor),
            mos: quality.map(|quality| f64::from(quality.mos_x100) / 100.0),
            burst_density: quality.map(|quality| part(quality.burst_density)),
            burst_ms: quality.map(|quality| quality.burst_ms),
            gap_density: quality.map(|quality| part(quality.gap_density)),
            gap_ms: quality.map(|quality| quality.gap_ms),
            rejected: stats.rejected.total(),
            relatched: stats.relatched,
        }
    }
}

fn text(bytes: &[u8]) -> Box<str> {
    let cut = &bytes[..bytes.len().min(MAX_TEXT)];
    String::from_utf8_lossy(cut).into()
}

fn tag(party: Option<&NameAddr<'_>>) -> Box<str> {
    text(party.and_then(NameAddr::tag).unwrap_or_default())
}

fn uri(party: Option<&NameAddr<'_>>) -> Box<str> {
    text(party.map(|party| party.uri).unwrap_or_default())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
