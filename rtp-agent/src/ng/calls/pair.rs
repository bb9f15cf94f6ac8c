//! Two parties of a call, and the sessions of the relay between them: one for each m-line.

use std::net::IpAddr;
use std::time::Instant;

use sip::sdp::{Direction, MediaAddress, Sdp};
use wire::relay_control::{ErrorCode, Gate, Lease, Side};

use super::{BIND_FAILED, NO_PORTS, Refusal, SESSION_LIMIT};
use crate::ng::description::{facing, families, relayable};
use crate::ng::gates::Sources;
use crate::ng::request::{Family, Request};
use crate::ng::settings::UnknownSource;
use crate::relay::{Relay, SessionId};

/// Two parties.
#[derive(Debug)]
pub struct Pair {
    /// Of the branch, where the proxy tells.
    pub via_branch: Option<Vec<u8>>,
    /// Of the first offerer.
    pub tag_a: Vec<u8>,
    /// Of who answered last.
    pub tag_b: Option<Vec<u8>>,
    /// The m-lines in order; `None` for what is not relayed.
    pub lines: Vec<Option<Line>>,
    pub(super) answered: bool,
    pub(super) last_signal: Instant,
    pub(super) ends_at: Option<Instant>,
}

/// One m-line.
#[derive(Debug)]
pub struct Line {
    /// Its ports.
    pub lease: Lease,
    /// `audio`, ...
    pub kind: Vec<u8>,
    /// `RTP/AVP`, ...
    pub protocol: Vec<u8>,
    sides: [Said; 2],
    bound: bool,
}

/// From where one side's media may come.
#[derive(Debug, Default)]
struct Said {
    agreed: Option<Sources>,
    offered: Option<Sources>,
}

impl Pair {
    pub(super) fn new(request: &Request, from_tag: &[u8], now: Instant) -> Self {
        Self {
            via_branch: request.via_branch.clone(),
            tag_a: from_tag.to_vec(),
            tag_b: None,
            lines: Vec::new(),
            answered: false,
            last_signal: now,
            ends_at: None,
        }
    }

    pub(super) fn has(&self, tag: &[u8]) -> bool {
        self.tag_a == tag || self.tag_b.as_deref() == Some(tag)
    }

    pub(super) fn side_of(&self, tag: &[u8]) -> Side {
        if self.tag_a == tag { Side::A } else { Side::B }
    }

    /// Opens a session for each live line that has none. On failure none is opened.
    pub(super) fn open(
        &mut self,
        sdp: &Sdp<'_>,
        sender: Side,
        request: &Request,
        call_id: &[u8],
        relay: &mut Relay,
        now: Instant,
    ) -> Result<Vec<SessionId>, Refusal> {
        let mut opened = Vec::new();
        let mut sides = families(sdp, request);
        if sender == Side::B {
            sides.reverse();
        }
        let addresses = addresses(relay, sides)?;
        let call_id = String::from_utf8_lossy(call_id);
        for (number, media) in sdp.media().iter().enumerate() {
            if self.lines.len() <= number {
                self.lines.push(None);
            }
            let line = &mut self.lines[number];
            if line.is_some() || !relayable(media) {
                continue;
            }
            match relay.open_local(addresses, &call_id, now) {
                Ok(lease) => {
                    opened.push(SessionId(lease.session));
                    *line = Some(Line {
                        lease,
                        kind: name(media.kind),
                        protocol: name(media.protocol),
                        sides: [Said::default(), Said::default()],
                        bound: false,
                    });
                }
                Err(code) => {
                    self.give_back(&opened, relay, now);
                    return Err(busy(code));
                }
            }
        }
        Ok(opened)
    }

    fn give_back(&mut self, sessions: &[SessionId], relay: &mut Relay, now: Instant) {
        for line in &mut self.lines {
            let session = line.as_ref().map(|line| SessionId(line.lease.session));
            if let Some(session) = session.filter(|session| sessions.contains(session)) {
                // An error means that it has ended by itself.
                let _ = relay.release_local(session, now);
                *line = None;
            }
        }
    }

    pub(super) fn release(&mut self, relay: &mut Relay, now: Instant) {
        for line in self.lines.iter_mut().filter_map(Option::take) {
            let _ = relay.release_local(SessionId(line.lease.session), now);
        }
    }

    pub(super) fn forget_ended(&mut self, relay: &Relay) {
        for line in &mut self.lines {
            if line
                .as_ref()
                .is_some_and(|line| !relay.has_session(SessionId(line.lease.session)))
            {
                *line = None;
            }
        }
    }

    /// What `side` says of each line that is relayed; `own` are our addresses.
    pub(super) fn hear(
        &mut self,
        sdp: &Sdp<'_>,
        side: Side,
        request: &Request,
        (own, unknown): (&[IpAddr], UnknownSource),
        mut take: impl FnMut(&mut Line, Sources),
    ) {
        for (line, media) in self.lines.iter_mut().zip(sdp.media()) {
            let Some(line) = line.as_mut().filter(|_| relayable(media)) else {
                continue;
            };
            let sources = Sources::of(media, request, own, unknown);
            let sources = line.sides[index(side)].or_as_before(sources, media.is_held());
            take(line, sources);
        }
    }

    /// Where each m-line of the sender shall point to.
    pub(super) fn replacements(
        &self,
        sdp: &Sdp<'_>,
        sender: Side,
        request: &Request,
    ) -> Vec<Option<MediaAddress>> {
        let lines = self.lines.iter().map(Option::as_ref);
        let lines = lines.chain(std::iter::repeat(None));
        sdp.media()
            .iter()
            .zip(lines)
            .map(|(media, line)| {
                let line = line.filter(|_| relayable(media))?;
                Some(facing(line.lease.side(sender.other()), request))
            })
            .collect()
    }
}

impl Line {
    fn gate(&self, side: Side) -> Gate {
        let mut gate = self.sides[index(side)].gate();
        gate.held = self.is_silent(side);
        gate
    }

    /// True where it is agreed that this side does not send: it only listens, or the other one does not
    /// want to hear it. An offer that is refused changes nothing.
    fn is_silent(&self, side: Side) -> bool {
        let agreed = |side| {
            let said: &Said = &self.sides[index(side)];
            said.agreed.as_ref().map(|sources| sources.direction)
        };
        matches!(
            agreed(side),
            Some(Direction::RecvOnly | Direction::Inactive)
        ) || matches!(
            agreed(side.other()),
            Some(Direction::SendOnly | Direction::Inactive)
        )
    }

    /// The sources of one side as far as they are known.
    fn tell(&self, side: Side, relay: &mut Relay, now: Instant) {
        let session = SessionId(self.lease.session);
        let _ = relay.update_local(session, side, self.gate(side), now);
    }

    /// An offer: it holds beside what is agreed.
    pub(super) fn offer(&mut self, side: Side, sources: Sources, relay: &mut Relay, now: Instant) {
        self.sides[index(side)].offered = Some(sources);
        if self.bound {
            self.tell(side, relay, now);
        }
    }

    /// An answer: what was offered and what it says are agreed.
    pub(super) fn conclude(
        &mut self,
        side: Side,
        sources: Sources,
        fork: bool,
        call_id: &[u8],
        relay: &mut Relay,
        now: Instant,
    ) {
        let other = side.other();
        let offered = self.sides[index(other)].offered.take();
        let concludes = offered.is_some();
        if concludes {
            self.sides[index(other)].agreed = offered;
        }
        let answerer = &mut self.sides[index(side)];
        // A retransmitted answer changes nothing; a new gate would let a new stream take over.
        let changed = answerer.agreed.as_ref() != Some(&sources);
        let agreed = answerer.agreed.as_ref();
        let turned = agreed.is_some_and(|agreed| agreed.direction != sources.direction);
        answerer.agreed = Some(sources);
        if !self.bound {
            let gates = [self.gate(Side::A), self.gate(Side::B)];
            let call = String::from_utf8_lossy(call_id).into_owned();
            let session = SessionId(self.lease.session);
            self.bound = relay.bind_local(session, gates, call, now).is_ok();
            return;
        }
        if concludes || turned {
            self.tell(other, relay, now);
        }
        if concludes || changed || fork {
            self.tell(side, relay, now);
        }
    }
}

impl Said {
    fn gate(&self) -> Gate {
        match (&self.offered, &self.agreed) {
            (Some(offered), agreed) => offered.gate(agreed.as_ref()),
            (None, Some(agreed)) => agreed.gate(None),
            (None, None) => Gate::default(),
        }
    }

    /// A party on hold in the old way (`c=0.0.0.0`) is where it was.
    fn or_as_before(&self, sources: Sources, held: bool) -> Sources {
        match &self.agreed {
            Some(agreed) if held => Sources {
                direction: sources.direction,
                ..agreed.clone()
            },
            _ => sources,
        }
    }
}

/// As much of a word of an SDP as any that means something has.
fn name(word: &[u8]) -> Vec<u8> {
    word.iter().copied().take(32).collect()
}

/// Our addresses of these families.
fn addresses(relay: &Relay, families: [Family; 2]) -> Result<[IpAddr; 2], Refusal> {
    let of = |family: Family| {
        let mut ours = relay.addresses().iter().copied();
        ours.find(|address| address.is_ipv4() == (family == Family::V4))
            .ok_or_else(|| {
                let name = if family == Family::V4 { "IPv4" } else { "IPv6" };
                Refusal::NotSupported(format!("No media address of the family {name}"))
            })
    };
    Ok([of(families[0])?, of(families[1])?])
}

const fn busy(code: ErrorCode) -> Refusal {
    match code {
        ErrorCode::NoPorts => NO_PORTS,
        ErrorCode::BindFailed => BIND_FAILED,
        ErrorCode::LimitReached
        | ErrorCode::Draining
        | ErrorCode::UnknownSession
        | ErrorCode::NotYourSession
        | ErrorCode::BadRequest
        | ErrorCode::Other(_) => SESSION_LIMIT,
    }
}

const fn index(side: Side) -> usize {
    match side {
        Side::A => 0,
        Side::B => 1,
    }
}
