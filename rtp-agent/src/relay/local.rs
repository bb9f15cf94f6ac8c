//! Sessions that no concentrator has leased: the `ng` server opens them one by one.
//!
//! Such a session begins like a lease, so that what arrives before it is bound is held. It has no timer
//! until then: whoever opened it releases it when no answer comes.

use std::net::IpAddr;
use std::time::Instant;

use wire::relay_control::{ErrorCode, Gate, Lease, SessionStatistics, Side};

use super::{ConcentratorId, Relay, SessionId};

/// Owns these sessions; no link has this number.
pub(super) const LOCAL: ConcentratorId = ConcentratorId(usize::MAX);

impl Relay {
    /// The media addresses.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.config.addresses
    }

    /// Begins to open a session whose sides have these of the media addresses. Its ports are open when the
    /// commands have been carried out, or it is gone again ([`Relay::has_session`]).
    pub fn open_local(
        &mut self,
        addresses: [IpAddr; 2],
        call: &str,
        now: Instant,
    ) -> Result<Lease, ErrorCode> {
        if self.draining {
            return Err(ErrorCode::Draining);
        }
        let pairs = self.take_room(now)?;
        let entry = self.begin(LOCAL, addresses, 0, pairs);
        call.clone_into(&mut entry.call);
        Ok(entry.lease)
    }

    /// From whom both sides may learn; what has been held is judged now.
    pub fn bind_local(
        &mut self,
        session: SessionId,
        gates: [Gate; 2],
        call: String,
        now: Instant,
    ) -> Result<(), ErrorCode> {
        self.bind(LOCAL, session, gates, call, now)
    }

    /// One side's gate changes.
    pub fn update_local(
        &mut self,
        session: SessionId,
        side: Side,
        gate: Gate,
        now: Instant,
    ) -> Result<(), ErrorCode> {
        self.update(LOCAL, session, side, gate, now)
    }

    /// The session is over.
    pub fn release_local(&mut self, session: SessionId, now: Instant) -> Result<(), ErrorCode> {
        self.release(LOCAL, session, now)
    }

    /// What a session has done so far; `None` when it is gone.
    pub fn statistics_of(&self, session: SessionId, now: Instant) -> Option<SessionStatistics> {
        Some(self.sessions.get(&session)?.statistics(now))
    }

    /// True while the session has its ports, or is about to have them.
    pub fn has_session(&self, session: SessionId) -> bool {
        self.sessions.contains_key(&session)
    }
}
