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
            .map(|lease| lease.session)
    }

    /// True while a call has a session.
    pub fn is_relayed(&self, call: SessionRef) -> bool {
        self.calls.contains_key(&call)
    }
}
