//! Keepalive pings: an OPTIONS from the service address to each UDP flow behind a NAT, so that the
//! NAT keeps its mapping and we learn when nobody is there any more.
//!
//! A flow is pinged once in every interval however many users it has, whose contact says that it
//! is somewhere else than we see it. The interval is cut into [`SLOTS`] ticks and each flow has its
//! slot in this wheel, given in turn, so that 200,000 flows make 6,700 pings a second and never
//! more at once. A ping has no transaction: it is not retransmitted, and its answer, whatever the
//! status, is known by a branch that is a keyed hash of the flow and the round. Any other message
//! from the flow says as well that it is alive. A flow that has said nothing through some rounds
//! loses its bindings.
//!
//! Who is behind a proxy (Path) is kept alive by that proxy, who is on a connection by its own
//! pings (RFC 5626 section 4.4.1).

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{AddressOfRecord, Binding};
use crate::cookie::Keys;
use crate::hop::{Flow, Transmit, Transport};
use crate::message::Uri;

/// Parts of an interval.
const SLOTS: u16 = 256;
/// Pings of one tick; what is too much for one goes to the next, and stays there.
const MAX_PER_TICK: usize = 2000;
/// What the branch of a ping begins with.
const BRANCH: &str = "z9hG4bKping.";

/// What is known of one flow.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Health {
    /// Its slot and one; 0: it is not pinged.
    slot: u16,
    /// The round of the ping that nothing has come after.
    waiting: Option<u32>,
    missed: u8,
}

impl Health {
    /// Something came from the flow.
    pub(super) fn alive(&mut self) {
        self.waiting = None;
        self.missed = 0;
    }

    pub(super) const fn is_pinged(&self) -> bool {
        self.slot != 0
    }
}

/// What to do with a flow whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// It is not here any more, or in another slot.
    Forget,
    /// Ask whether it is alive.
    Ping,
    /// It has not said anything through as many rounds as it may.
    GiveUp,
}

/// The wheel.
#[derive(Debug)]
pub(super) struct Wheel {
    tick: Duration,
    misses: u8,
    slots: Vec<Vec<Flow>>,
    at: u16,
    /// Counts turns of the wheel.
    round: u32,
    next_slot: u16,
    next_tick: Option<Instant>,
}

impl Wheel {
    /// `None` where nobody is to be pinged.
    pub(super) fn new(interval_s: u32, misses: u8) -> Option<Self> {
        (interval_s > 0).then(|| Self {
            tick: Duration::from_secs(interval_s.into()) / u32::from(SLOTS),
            misses,
            slots: vec![Vec::new(); usize::from(SLOTS)],
            at: 0,
            round: 0,
            next_slot: 0,
            next_tick: None,
        })
    }

    pub(super) const fn next_tick(&self) -> Option<Instant> {
        self.next_tick
    }

    pub(super) const fn round(&self) -> u32 {
        self.round
    }

    /// However often a flow does not answer.
    pub(super) fn never_give_up(&mut self) {
        self.misses = 0;
    }

    /// Gives a flow its slot.
    pub(super) fn add(&mut self, flow: Flow, health: &mut Health, now: Instant) {
        health.slot = self.next_slot + 1;
        self.slots[usize::from(self.next_slot)].push(flow);
        // Backwards: the first to come wait nearly a whole interval, as long as a NAT is sure to.
        self.next_slot = (self.next_slot + SLOTS - 1) % SLOTS;
        self.next_tick.get_or_insert(now + self.tick);
    }

    /// The flows whose turn it is now, of one tick; the caller gives back those that stay.
    pub(super) fn turn(&mut self, now: Instant) -> Option<(u16, Vec<Flow>)> {
        let due = self.next_tick.filter(|at| *at <= now)?;
        // A loop that was held up does not make up for what it has missed.
        self.next_tick = Some((due + self.tick).max(now));
        self.at = (self.at + 1) % SLOTS;
        if self.at == 0 {
            self.round = self.round.wrapping_add(1);
        }
        Some((
            self.at,
            std::mem::take(&mut self.slots[usize::from(self.at)]),
        ))
    }

    /// What to do with a flow of this slot.
    pub(super) fn judge(&self, slot: u16, health: Option<&mut Health>) -> Turn {
        let Some(health) = health.filter(|health| health.slot == slot + 1) else {
            return Turn::Forget;
        };
        match health.waiting {
            // Its place was given twice: it went and came back.
            Some(round) if round == self.round => return Turn::Forget,
            Some(_) => health.missed = health.missed.saturating_add(1),
            None => {}
        }
        if self.misses > 0 && health.missed >= self.misses {
            return Turn::GiveUp;
        }
        health.waiting = Some(self.round);
        Turn::Ping
    }

    /// True while this tick may ping one more.
    pub(super) const fn has_room(pings: usize) -> bool {
        pings < MAX_PER_TICK
    }

    /// Moves a flow for whom this tick has no room into the next slot.
    pub(super) fn postpone(&mut self, flow: Flow, slot: u16, health: &mut Health) {
        let next = (slot + 1) % SLOTS;
        health.slot = next + 1;
        self.slots[usize::from(next)].push(flow);
    }

    /// Puts the flows back that stay in a slot, and stops the clock where none is left in any.
    pub(super) fn keep(&mut self, slot: u16, flows: Vec<Flow>) {
        let place = &mut self.slots[usize::from(slot)];
        // What was added meanwhile stays behind them.
        let added = std::mem::replace(place, flows);
        place.extend(added);
        if place.is_empty() && self.slots.iter().all(Vec::is_empty) {
            self.next_tick = None;
        }
    }
}

/// True where a NAT is between us and the user agent: its contact names another place than the one
/// it sends from. A contact with a name tells nothing, so it counts as one.
pub(super) fn needs_ping(binding: &Binding) -> bool {
    if binding.flow.transport != Transport::Udp || !binding.path.is_empty() {
        return false;
    }
    let Ok(uri) = Uri::parse(&binding.contact_uri) else {
        return false;
    };
    let peer = binding.flow.peer;
    uri.host.ip() != Some(peer.ip()) || uri.port.unwrap_or(5060) != peer.port()
}

/// True for the branch of a ping, by anybody.
pub(crate) fn is_ping(branch: &[u8]) -> bool {
    branch.starts_with(BRANCH.as_bytes())
}

/// The branch of the ping of a flow in a round.
pub(super) fn branch(keys: &Keys, flow: &Flow, round: u32) -> String {
    // No tag holds a 0, so no hash of a tag is one of these.
    let of = format!("\0ping {} {} {round}", flow.peer, flow.local);
    format!("{BRANCH}{round:x}.{:08x}", keys.tag_hash(of.as_bytes()))
}

/// True where this is the branch of a ping of ours to this flow, in this round or the last.
pub(super) fn is_own(keys: &Keys, text: &[u8], flow: &Flow, round: u32) -> bool {
    [round, round.wrapping_sub(1)]
        .iter()
        .any(|round| branch(keys, flow, *round).as_bytes() == text)
}

/// The OPTIONS for one of the users of a flow (RFC 3261 section 11).
pub(super) fn options(
    keys: &Keys,
    user: &AddressOfRecord,
    binding: &Binding,
    round: u32,
) -> Transmit {
    let Flow { local, .. } = binding.flow;
    let branch = branch(keys, &binding.flow, round);
    let id = branch.rsplit('.').next().unwrap_or_default();
    let uri = binding.contact_uri.split(|byte| *byte == b'?').next();
    let uri = String::from_utf8_lossy(uri.unwrap_or_default());
    let user = user.to_string();
    let domain = user.rsplit('@').next().unwrap_or_default();
    let text = format!(
        "OPTIONS {uri} SIP/2.0\r\n\
         Via: SIP/2.0/UDP {local};branch={branch}\r\n\
         Max-Forwards: 70\r\n\
         From: <sip:{domain}>;tag={id}\r\n\
         To: <{uri}>\r\n\
         Call-ID: ping-{id}\r\n\
         CSeq: 1 OPTIONS\r\n\
         Accept: application/sdp\r\n\
         Content-Length: 0\r\n\r\n"
    );
    Transmit {
        flow: binding.flow,
        bytes: Bytes::from(text),
    }
}
