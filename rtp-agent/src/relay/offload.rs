//! Which streams a fast path relays.
//!
//! A stream is offloaded after the first RTP packet that comes here while its session would let it go
//! ([`crate::session::offload`]), and recalled when that has changed: another source, a hold, the end, another
//! agent in charge. It is recalled, too, when a packet of it comes here, since the fast path had a reason to
//! let it pass, or is not there any more; it then gets the stream back after a pause, which is the longer the
//! sooner that was. So where the fast path is of no use, it costs next to nothing to find out.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use wire::relay_control::Side;

use super::{Command, Entry, Relay, RelayPort, SessionId, side_index};
use crate::session::Component;
use crate::session::offload::Carried;

/// From the first recall to the next attempt; each further pause is twice as long, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// One side's RTP.
#[derive(Debug, Default)]
pub(super) struct Offload {
    /// The source, the destination and the SSRC that the fast path has been told.
    on: Option<(SocketAddr, SocketAddr, u32)>,
    /// When it was told last.
    since: Option<Instant>,
    /// Not before this.
    again_at: Option<Instant>,
    pause: Duration,
}

impl Offload {
    /// A packet of the stream has come here nevertheless.
    fn handle_passed(&mut self, now: Instant) {
        let lasted = self
            .since
            .map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.pause = if lasted >= LONGEST_PAUSE {
            FIRST_PAUSE
        } else {
            (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE)
        };
        self.again_at = Some(now + self.pause);
    }
}

impl Entry {
    /// What is to be recalled as things stand.
    pub(super) fn recall_stale(&mut self, is_wanted: bool, id: SessionId) -> [Option<Command>; 2] {
        [Side::A, Side::B].map(|side| {
            let offload = &mut self.offload[side_index(side)];
            let on = offload.on?;
            let route = self.session.route(side).filter(|_| is_wanted);
            if route.is_some_and(|route| (route.from, route.to, route.progress.ssrc) == on) {
                return None;
            }
            offload.on = None;
            let port = rtp_port(id, side);
            Some(Command::Recall { port })
        })
    }
}

impl Relay {
    /// There is a fast path from now on, or none any more.
    pub fn set_fast_path(&mut self, is_there: bool) {
        self.has_fast_path = is_there;
        self.recall_all();
    }

    /// Looks at all that is offloaded, after a change that concerns all sessions.
    pub(super) fn recall_all(&mut self) {
        let is_wanted = self.has_fast_path && !self.standing_by;
        for (&id, entry) in &mut self.sessions {
            let recalls = entry.recall_stale(is_wanted, id);
            self.commands.extend(recalls.into_iter().flatten());
        }
    }

    /// To be called before [`Relay::forward`]; true when commands must be carried out before that, because
    /// it needs the figures of an offloaded stream.
    pub fn prepare(
        &mut self,
        port: RelayPort,
        from: SocketAddr,
        bytes: &[u8],
        now: Instant,
    ) -> bool {
        if !self.has_fast_path || port.component == Component::Rtcp {
            return false;
        }
        let Some(entry) = self.sessions.get_mut(&port.session) else {
            return false;
        };
        let offload = &mut entry.offload[side_index(port.side)];
        let Some((source, ..)) = offload.on else {
            return false;
        };
        if !entry
            .session
            .concerns_offloaded(port.side, from, bytes, now)
        {
            return false;
        }
        offload.on = None;
        if source == from {
            offload.handle_passed(now);
        }
        self.commands.push_back(Command::Recall { port });
        true
    }

    /// Offloads the stream that a packet has just come of, if it may be.
    pub(super) fn offload(&mut self, port: RelayPort, now: Instant) {
        if !self.has_fast_path || self.standing_by || port.component == Component::Rtcp {
            return;
        }
        let Some(entry) = self.sessions.get_mut(&port.session) else {
            return;
        };
        let offload = &mut entry.offload[side_index(port.side)];
        if offload.on.is_some() || offload.again_at.is_some_and(|at| now < at) {
            return;
        }
        let Some(route) = entry.session.route(port.side) else {
            return;
        };
        offload.on = Some((route.from, route.to, route.progress.ssrc));
        offload.since = Some(now);
        let (local, exit) = match port.side {
            Side::A => (entry.lease.a, entry.lease.b),
            Side::B => (entry.lease.b, entry.lease.a),
        };
        self.commands.push_back(Command::Offload {
            port,
            local: SocketAddr::new(local.addr, local.rtp),
            exit: SocketAddr::new(exit.addr, exit.rtp),
            route: Box::new(route),
        });
    }

    /// The fast path has relayed this of an offloaded stream, or of one that it was told to give back.
    pub fn handle_carried(&mut self, port: RelayPort, carried: &Carried) {
        if let Some(entry) = self.sessions.get_mut(&port.session) {
            entry.session.handle_carried(port.side, carried);
        }
    }

    /// The fast path does not take the stream.
    pub fn handle_not_offloaded(&mut self, port: RelayPort, now: Instant) {
        if let Some(entry) = self.sessions.get_mut(&port.session) {
            let offload = &mut entry.offload[side_index(port.side)];
            offload.on = None;
            offload.pause = LONGEST_PAUSE;
            offload.again_at = Some(now + LONGEST_PAUSE);
        }
    }

    /// Offloaded streams of the sessions whose deadlines have come: [`Relay::handle_timeout`] must know
    /// when they were last heard.
    pub fn offloaded_and_due(&self, now: Instant) -> Vec<RelayPort> {
        let due = self.timers.iter().take_while(|(at, _)| *at <= now);
        due.filter_map(|(_, id)| Some((*id, self.sessions.get(id)?)))
            .flat_map(|(id, entry)| entry.offloaded(id))
            .collect()
    }
}

impl Entry {
    /// Its ports whose RTP is offloaded.
    pub(super) fn offloaded(&self, id: SessionId) -> impl Iterator<Item = RelayPort> {
        let offloaded = [Side::A, Side::B].map(|side| {
            let on = self.offload[side_index(side)].on;
            on.map(|_| rtp_port(id, side))
        });
        offloaded.into_iter().flatten()
    }

    /// The session ends: its streams come back.
    pub(super) fn recalls(&self, id: SessionId) -> impl Iterator<Item = Command> {
        self.offloaded(id).map(|port| Command::Recall { port })
    }
}

const fn rtp_port(session: SessionId, side: Side) -> RelayPort {
    RelayPort {
        session,
        side,
        component: Component::Rtp,
    }
}
