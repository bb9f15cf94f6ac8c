//! The two server machines behind one face, for the layer.

use std::time::Instant;

use bytes::Bytes;

use crate::key::ServerKey;
use crate::timer::{Fired, Timers};
use crate::transaction::server_invite::{Acknowledged, ServerInvite};
use crate::transaction::server_non_invite::ServerNonInvite;
use crate::transaction::table::Machine;

#[derive(Debug)]
pub(crate) enum Server {
    Invite(ServerInvite),
    NonInvite(ServerNonInvite),
}

impl Server {
    pub(crate) fn new(key: &ServerKey, reliable: bool, timers: Timers, now: Instant) -> Self {
        if key.is_invite() {
            Self::Invite(ServerInvite::new(reliable, timers))
        } else {
            Self::NonInvite(ServerNonInvite::new(reliable, timers, now))
        }
    }

    pub(crate) fn handle_request(&self) -> Option<Bytes> {
        match self {
            Self::Invite(invite) => invite.handle_request(),
            Self::NonInvite(other) => other.handle_request(),
        }
    }

    pub(crate) fn handle_ack(&mut self, now: Instant) -> Acknowledged {
        match self {
            Self::Invite(invite) => invite.handle_ack(now),
            // The key of an ACK finds INVITEs only.
            Self::NonInvite(_) => Acknowledged::Here,
        }
    }

    /// True for an INVITE that had no final response yet.
    pub(crate) fn is_unanswered(&self) -> bool {
        match self {
            Self::Invite(invite) => invite.is_unanswered(),
            Self::NonInvite(_) => false,
        }
    }

    pub(crate) fn respond(&mut self, response: &Bytes, status: u16, now: Instant) -> bool {
        match self {
            Self::Invite(invite) => invite.respond(response, status, now),
            Self::NonInvite(other) => other.respond(response, status, now),
        }
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Fired {
        match self {
            Self::Invite(invite) => invite.handle_timeout(now),
            Self::NonInvite(other) => other.handle_timeout(now),
        }
    }
}

impl Machine for Server {
    fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        match self {
            Self::Invite(invite) => invite.poll_timeout(),
            Self::NonInvite(other) => other.poll_timeout(),
        }
    }

    fn is_terminated(&self) -> bool {
        match self {
            Self::Invite(invite) => invite.is_terminated(),
            Self::NonInvite(other) => other.is_terminated(),
        }
    }
}
