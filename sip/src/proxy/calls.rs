//! What happens to calls, told to whoever keeps records of them.
//!
//! A call is an INVITE that belongs to no dialog, from when it was let in to its last word: a failure,
//! or a 2xx and later a BYE. What is told is what the caller is told: every answer leaves by one of
//! the functions of `answer`. Nothing is kept here of a call but while it rings; of the whole
//! of it the reader of the events has a memory, by the [`CallKey`] in each.
//!
//! An INVITE that passes here twice begins a call twice, and both passes have the same key, and so
//! have the INVITE that is challenged and the one that comes again with credentials.
//!
//! Not told: what is refused because we cannot keep up or do not know who asks, and responses that
//! are passed on for another core.

use std::collections::{HashMap, VecDeque};

use super::Proxy;
use super::forward::has_to_tag;
use super::media::{Party, SessionRef};
use crate::cookie::DialogCookie;
use crate::hop::Hop;
use crate::message::{Message, Method, NameAddr};
use crate::transaction::ServerId;

/// Names a call: a keyed hash of its Call-ID and the caller's tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallKey(pub u64);

/// What happened, and to which call.
#[derive(Debug, Clone)]
pub struct CallEvent {
    /// The call.
    pub key: CallKey,
    /// What happened to it.
    pub what: CallProgress,
}

/// What happened to a call.
#[derive(Debug, Clone)]
pub enum CallProgress {
    /// Its INVITE has come.
    Begun {
        /// As it came.
        invite: Message,
        /// Where it came from.
        from: Hop,
    },
    /// The caller has been told that somebody is alerted, or more than that, up to 199.
    Ringing,
    /// The caller has been told that it is answered.
    Answered {
        /// The 2xx.
        response: Message,
        /// Where the 2xx came from.
        by: Option<Hop>,
        /// Its media.
        session: Option<SessionRef>,
    },
    /// The caller has been told that it has failed.
    Failed {
        /// The response's status.
        status: u16,
        /// The caller has cancelled it.
        cancelled: bool,
    },
    /// Nobody is left who could be told anything.
    CallerGone,
    /// A party hangs up.
    HungUp {
        /// The request, as it came.
        bye: Message,
        /// Who sent it.
        by: Party,
        /// What the dialog's cookie says.
        cookie: DialogCookie,
    },
    /// Its relay has failed before there were any media, and it is ended for that.
    RelayLost,
}

/// The calls that ring, and what has not been told yet.
#[derive(Debug, Default)]
pub(super) struct Journal {
    kept: bool,
    ringing: HashMap<ServerId, Ringing>,
    events: VecDeque<CallEvent>,
}

#[derive(Debug)]
struct Ringing {
    key: CallKey,
    by: Option<(Hop, Option<SessionRef>)>,
    cancelled: bool,
}

impl Journal {
    fn tell(&mut self, key: CallKey, what: CallProgress) {
        self.events.push_back(CallEvent { key, what });
    }
}

impl Proxy {
    /// From now on [`Proxy::poll_call`] has to be asked after every `handle_*`.
    pub fn report_calls(&mut self) {
        self.journal.kept = true;
    }

    /// What happened to a call.
    pub fn poll_call(&mut self) -> Option<CallEvent> {
        self.journal.events.pop_front()
    }

    /// Calls that ring and are reported.
    pub fn reported(&self) -> usize {
        self.journal.ringing.len()
    }

    /// A request was let in; `in_dialog` says whether it belongs to one.
    pub(super) fn journal_begin(
        &mut self,
        id: ServerId,
        request: &Message,
        hop: &Hop,
        in_dialog: bool,
    ) {
        let is_call = request.method() == Method::Invite && !in_dialog && !has_to_tag(request);
        if !self.journal.kept || !is_call {
            return;
        }
        let key = self.call_key(request, Party::Caller);
        let ringing = Ringing {
            key,
            by: None,
            cancelled: false,
        };
        self.journal.ringing.insert(id, ringing);
        let (invite, from) = (request.clone(), *hop);
        self.journal.tell(key, CallProgress::Begun { invite, from });
    }

    /// A 2xx has come from there.
    pub(super) fn journal_answerer(
        &mut self,
        id: ServerId,
        hop: &Hop,
        session: Option<SessionRef>,
    ) {
        if let Some(ringing) = self.journal.ringing.get_mut(&id) {
            ringing.by = Some((*hop, session));
        }
    }

    /// The caller has sent a CANCEL.
    pub(super) fn journal_cancel(&mut self, id: ServerId) {
        if let Some(ringing) = self.journal.ringing.get_mut(&id) {
            ringing.cancelled = true;
        }
    }

    /// An answer leaves for the sender of a request.
    pub(super) fn journal_response(&mut self, id: ServerId, response: &Message) {
        let status = response.status().unwrap_or_default();
        if status <= 100 {
            return;
        }
        if status < 200 {
            if let Some(ringing) = self.journal.ringing.get(&id) {
                let key = ringing.key;
                self.journal.tell(key, CallProgress::Ringing);
            }
            return;
        }
        if status >= 300 {
            return self.journal_refusal(id, status);
        }
        if let Some(Ringing { key, by, .. }) = self.journal.ringing.remove(&id) {
            let what = CallProgress::Answered {
                response: response.clone(),
                by: by.map(|(hop, _)| hop),
                session: by.and_then(|(_, session)| session),
            };
            self.journal.tell(key, what);
        }
    }

    /// The caller is told that it has failed.
    pub(super) fn journal_refusal(&mut self, id: ServerId, status: u16) {
        if let Some(Ringing { key, cancelled, .. }) = self.journal.ringing.remove(&id) {
            let what = CallProgress::Failed { status, cancelled };
            self.journal.tell(key, what);
        }
    }

    /// A server transaction is over.
    pub(super) fn journal_ended(&mut self, id: ServerId) {
        if let Some(ringing) = self.journal.ringing.remove(&id) {
            self.journal.tell(ringing.key, CallProgress::CallerGone);
        }
    }

    /// A request of a dialog passes.
    pub(super) fn journal_in_dialog(
        &mut self,
        request: &Message,
        cookie: &DialogCookie,
        by: Party,
    ) {
        if !self.journal.kept || request.method() != Method::Bye {
            return;
        }
        let key = self.call_key(request, by);
        let what = CallProgress::HungUp {
            bye: request.clone(),
            by,
            cookie: *cookie,
        };
        self.journal.tell(key, what);
    }

    /// A call is ended because its relay has failed; `from` is the caller's From.
    pub(super) fn journal_relay_lost(&mut self, call_id: &[u8], from: &[u8]) {
        if self.journal.kept {
            let from = NameAddr::parse(from).ok();
            let tag = from.as_ref().and_then(|from| from.tag());
            let key = self.key_of(call_id, tag.unwrap_or_default());
            self.journal.tell(key, CallProgress::RelayLost);
        }
    }

    fn call_key(&self, request: &Message, sender: Party) -> CallKey {
        let caller = match sender {
            Party::Caller => request.from(),
            Party::Callee => request.to(),
        };
        let tag = caller.as_ref().ok().and_then(|caller| caller.tag());
        self.key_of(
            request.call_id().unwrap_or_default(),
            tag.unwrap_or_default(),
        )
    }

    fn key_of(&self, call_id: &[u8], tag: &[u8]) -> CallKey {
        let keys = &self.config.keys;
        let (call_id, tag) = (keys.tag_hash(call_id), keys.tag_hash(tag));
        CallKey(u64::from(call_id) << 32 | u64::from(tag))
    }
}
