//! Which sessions a call has, for those who hear of sessions and keep records of calls.

use sip::proxy::media::SessionRef;

use super::Calls;

impl Calls {
    /// The call that a session is of, by its first session.
    pub fn call_of(&self, session: SessionRef) -> Option<SessionRef> {
        self.call_of.get(&session).copied()
    }

    /// The sessions of a call.
    pub fn sessions_of(&self, call: SessionRef) -> impl Iterator<Item = SessionRef> {
        let call = self.calls.get(&call);
        call.into_iter()
            .flat_map(|call| call.leases())
            .flat_map(|lease| lease.sessions())
    }

    /// A relay hears a side of a session.
    pub fn media_started(&mut self, session: SessionRef) {
        let call = self.call_of(session);
        if let Some(call) = call.and_then(|call| self.calls.get_mut(&call)) {
            call.media_started = true;
        }
    }

    /// True where a call has had no media since its answer, or has none yet: without its relay it
    /// has nothing.
    pub fn has_no_media(&self, call: SessionRef) -> bool {
        let call = self.calls.get(&call);
        call.is_some_and(|call| !(call.answered && call.media_started))
    }

    /// The sessions that an agent has of calls without media.
    pub fn unused_of(&self, agent: &str) -> Vec<SessionRef> {
        let calls = self.calls.keys().filter(|call| self.has_no_media(**call));
        let sessions = calls.flat_map(|call| self.sessions_of(*call));
        sessions
            .filter(|session| self.relays.serves(agent, session.relay))
            .collect()
    }

    /// True while a call has a session.
    pub fn is_relayed(&self, call: SessionRef) -> bool {
        self.calls.contains_key(&call)
    }
}
