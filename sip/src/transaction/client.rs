//! The two client machines behind one face, for the layer.

use std::time::Instant;

use bytes::Bytes;

use crate::message::{Message, Method};
use crate::timer::{Fired, Timers};
use crate::transaction::client_invite::{ClientInvite, Received};
use crate::transaction::client_non_invite::ClientNonInvite;
use crate::transaction::table::Machine;

#[derive(Debug)]
pub(crate) enum Client {
    Invite {
        machine: ClientInvite,
        /// What the ACK is made from; empty once there was a final response. Kept as bytes, as
        /// most calls succeed and need none.
        request: Bytes,
    },
    NonInvite(ClientNonInvite),
}

impl Client {
    /// The transaction for a request that is sent now.
    pub(crate) fn new(request: &Message, reliable: bool, timers: Timers, now: Instant) -> Self {
        let bytes = request.bytes().clone();
        if request.method() == Method::Invite {
            Self::Invite {
                machine: ClientInvite::new(bytes.clone(), reliable, timers, now),
                request: bytes,
            }
        } else {
            Self::NonInvite(ClientNonInvite::new(bytes, reliable, timers, now))
        }
    }

    pub(crate) fn handle_response(
        &mut self,
        response: &Message,
        status: u16,
        now: Instant,
    ) -> Received {
        match self {
            Self::Invite { machine, request } => {
                // The bytes were a message when they were sent, so this finds one again.
                let ack = || {
                    Message::parse(request.clone())
                        .map(|request| request.ack_for(response).bytes().clone())
                        .unwrap_or_default()
                };
                let received = machine.handle_response(status, ack, now);
                if !machine.is_pending() {
                    *request = Bytes::new();
                }
                received
            }
            Self::NonInvite(other) => {
                if other.handle_response(status, now) {
                    Received::Pass
                } else {
                    Received::Absorb
                }
            }
        }
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Fired {
        match self {
            Self::Invite { machine, .. } => machine.handle_timeout(now),
            Self::NonInvite(other) => other.handle_timeout(now),
        }
    }

    /// True when the user still waits for a final response.
    pub(crate) fn is_pending(&self) -> bool {
        match self {
            Self::Invite { machine, .. } => machine.is_pending(),
            Self::NonInvite(other) => other.is_pending(),
        }
    }
}

impl Machine for Client {
    fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        match self {
            Self::Invite { machine, .. } => machine.poll_timeout(),
            Self::NonInvite(other) => other.poll_timeout(),
        }
    }

    fn is_terminated(&self) -> bool {
        match self {
            Self::Invite { machine, .. } => machine.is_terminated(),
            Self::NonInvite(other) => other.is_terminated(),
        }
    }
}
