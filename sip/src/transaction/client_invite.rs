//! The INVITE client transaction: RFC 3261 section 17.1.1 with the Accepted state of RFC 6026
//! section 7.2.
//!
//! ```text
//!              1xx            2xx
//!   Calling ────────► Proceeding ────► Accepted ──M──► Terminated
//!    │  │ │ 2xx ───────────┼────────────►  ▲  │ 2xx: pass
//!    │  │ └ 300-699: ACK ──┴──► Completed  └──┘
//!    │  A: resend                 │  ▲ │ 300-699: ACK again
//!    └──B: timed out              D  └─┘
//! ```
//!
//! The first message is sent by whoever makes the transaction. Proceeding has no deadline: the
//! proxy above runs Timer C (section 16.8) and abandons the transaction.

use std::time::Instant;

use bytes::Bytes;

use crate::timer::{Fired, Repeat, Timers};

/// What to do with a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// Give it to the user of the transaction.
    Pass,
    /// Give it to the user and send this ACK.
    PassAndSend(Bytes),
    /// A failure that came again: only send the ACK again.
    Send(Bytes),
    /// Drop it.
    Absorb,
}

/// One INVITE that we sent.
#[derive(Debug)]
pub struct ClientInvite {
    timers: Timers,
    reliable: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    Calling {
        request: Bytes,
        /// Timer A.
        resend: Repeat,
        /// Timer B.
        expires_at: Instant,
    },
    Proceeding,
    Completed {
        ack: Bytes,
        /// Timer D.
        expires_at: Instant,
    },
    Accepted {
        /// Timer M (RFC 6026).
        expires_at: Instant,
    },
    Terminated,
}

impl ClientInvite {
    /// A transaction whose request is sent at `now`.
    pub fn new(request: Bytes, reliable: bool, timers: Timers, now: Instant) -> Self {
        Self {
            timers,
            reliable,
            state: State::Calling {
                request,
                resend: Repeat::starting(reliable, timers.t1, now),
                expires_at: now + timers.lifetime(),
            },
        }
    }

    /// A response has come. `ack` makes the ACK for it, and is called for the first failure only.
    pub fn handle_response(
        &mut self,
        status: u16,
        ack: impl FnOnce() -> Bytes,
        now: Instant,
    ) -> Received {
        match &self.state {
            State::Calling { .. } | State::Proceeding => self.handle_first(status, ack, now),
            // "Any retransmissions of the final response that are received while in the
            // Completed state MUST cause the ACK to be re-passed to the transport layer."
            State::Completed { ack, .. } if status >= 300 => Received::Send(ack.clone()),
            // RFC 6026 section 7.2: each 2xx goes up, whichever branch of a fork it is from.
            State::Accepted { .. } if (200..300).contains(&status) => Received::Pass,
            State::Completed { .. } | State::Accepted { .. } | State::Terminated => {
                Received::Absorb
            }
        }
    }

    fn handle_first(&mut self, status: u16, ack: impl FnOnce() -> Bytes, now: Instant) -> Received {
        match status {
            0..200 => {
                self.state = State::Proceeding;
                Received::Pass
            }
            200..300 => {
                self.state = State::Accepted {
                    expires_at: now + self.timers.lifetime(),
                };
                Received::Pass
            }
            300.. => {
                let ack = ack();
                // Timer D is zero over a reliable transport.
                self.state = if self.reliable {
                    State::Terminated
                } else {
                    State::Completed {
                        ack: ack.clone(),
                        expires_at: now + self.timers.d,
                    }
                };
                Received::PassAndSend(ack)
            }
        }
    }

    /// Acts on a deadline that has come.
    pub fn handle_timeout(&mut self, now: Instant) -> Fired {
        match &mut self.state {
            State::Calling { expires_at, .. } if *expires_at <= now => {
                self.state = State::Terminated;
                Fired::TimedOut
            }
            State::Calling {
                request, resend, ..
            } => {
                if resend.fire(now, |interval| interval * 2) {
                    Fired::Send(request.clone())
                } else {
                    Fired::Nothing
                }
            }
            State::Completed { expires_at, .. } | State::Accepted { expires_at }
                if *expires_at <= now =>
            {
                self.state = State::Terminated;
                Fired::Ended
            }
            State::Proceeding
            | State::Completed { .. }
            | State::Accepted { .. }
            | State::Terminated => Fired::Nothing,
        }
    }

    /// The next deadline and the timer that it belongs to.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        match &self.state {
            State::Calling {
                resend, expires_at, ..
            } => Some(resend.or_end("timer A", *expires_at, "timer B")),
            State::Completed { expires_at, .. } => Some((*expires_at, "timer D")),
            State::Accepted { expires_at } => Some((*expires_at, "timer M")),
            State::Proceeding | State::Terminated => None,
        }
    }

    /// True when the user of the transaction still waits for a final response.
    pub fn is_pending(&self) -> bool {
        match self.state {
            State::Calling { .. } | State::Proceeding => true,
            State::Completed { .. } | State::Accepted { .. } | State::Terminated => false,
        }
    }

    /// True when the transaction can be forgotten.
    pub fn is_terminated(&self) -> bool {
        matches!(self.state, State::Terminated)
    }
}
