//! The INVITE server transaction: RFC 3261 section 17.2.1 with the Accepted state of RFC 6026
//! section 7.1.
//!
//! ```text
//!                2xx
//!   Proceeding ───────► Accepted ──L──► Terminated
//!    │   ▲ │ INVITE:      ▲ │ 2xx: send; INVITE: absorb; ACK: pass
//!    │   └─┘ last 1xx     └─┘
//!    │ 300-699            ACK
//!    └───────► Completed ─────► Confirmed ──I──► Terminated
//!               │   ▲ │ G, INVITE: response again
//!               H   └─┘
//!               └── Terminated: no ACK came
//! ```
//!
//! The user of the transaction sends the 100 itself. A 2xx is never repeated here: the user
//! agent server repeats it end to end until the ACK, and each copy passes in Accepted.

use std::time::Instant;

use bytes::Bytes;

use crate::timer::{Fired, Repeat, Timers};

/// What an ACK is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acknowledged {
    /// For our own failure response, or for nothing: it ends here.
    Here,
    /// For a 2xx: it goes on to the user agent server.
    EndToEnd,
}

/// One INVITE that we received.
#[derive(Debug)]
pub struct ServerInvite {
    timers: Timers,
    reliable: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    Proceeding {
        last: Option<Bytes>,
    },
    Completed {
        response: Bytes,
        /// Timer G.
        resend: Repeat,
        /// Timer H.
        expires_at: Instant,
    },
    Confirmed {
        /// Timer I.
        expires_at: Instant,
    },
    Accepted {
        /// Timer L (RFC 6026).
        expires_at: Instant,
    },
    Terminated,
}

impl ServerInvite {
    /// A transaction for an INVITE that has just come.
    pub fn new(reliable: bool, timers: Timers) -> Self {
        Self {
            timers,
            reliable,
            state: State::Proceeding { last: None },
        }
    }

    /// The INVITE has come again; what to send for it.
    pub fn handle_request(&self) -> Option<Bytes> {
        match &self.state {
            State::Proceeding { last } => last.clone(),
            State::Completed { response, .. } => Some(response.clone()),
            State::Confirmed { .. } | State::Accepted { .. } | State::Terminated => None,
        }
    }

    /// An ACK has come.
    pub fn handle_ack(&mut self, now: Instant) -> Acknowledged {
        match self.state {
            State::Completed { .. } => {
                // Timer I is zero over a reliable transport.
                self.state = if self.reliable {
                    State::Terminated
                } else {
                    State::Confirmed {
                        expires_at: now + self.timers.t4,
                    }
                };
                Acknowledged::Here
            }
            State::Proceeding { .. } | State::Confirmed { .. } | State::Terminated => {
                Acknowledged::Here
            }
            State::Accepted { .. } => Acknowledged::EndToEnd,
        }
    }

    /// True until the first final response.
    pub fn is_unanswered(&self) -> bool {
        matches!(self.state, State::Proceeding { .. })
    }

    /// The user of the transaction answers; true when the response is to be sent.
    pub fn respond(&mut self, response: &Bytes, status: u16, now: Instant) -> bool {
        match (&mut self.state, status) {
            (State::Proceeding { last }, 0..200) => {
                *last = Some(response.clone());
                true
            }
            (State::Proceeding { .. }, 200..300) => {
                self.state = State::Accepted {
                    expires_at: now + self.timers.lifetime(),
                };
                true
            }
            (State::Proceeding { .. }, 300..) => {
                self.state = State::Completed {
                    response: response.clone(),
                    resend: Repeat::starting(self.reliable, self.timers.t1, now),
                    expires_at: now + self.timers.lifetime(),
                };
                true
            }
            // RFC 6026 section 7.1: further 2xx pass, and do not restart Timer L.
            (State::Accepted { .. }, 200..300) => true,
            (
                State::Completed { .. }
                | State::Confirmed { .. }
                | State::Accepted { .. }
                | State::Terminated,
                _,
            ) => false,
        }
    }

    /// Acts on a deadline that has come.
    pub fn handle_timeout(&mut self, now: Instant) -> Fired {
        let t2 = self.timers.t2;
        match &mut self.state {
            State::Completed { expires_at, .. } if *expires_at <= now => {
                self.state = State::Terminated;
                Fired::TimedOut
            }
            State::Completed {
                response, resend, ..
            } => {
                if resend.fire(now, |interval| (interval * 2).min(t2)) {
                    Fired::Send(response.clone())
                } else {
                    Fired::Nothing
                }
            }
            State::Confirmed { expires_at } | State::Accepted { expires_at }
                if *expires_at <= now =>
            {
                self.state = State::Terminated;
                Fired::Ended
            }
            State::Proceeding { .. }
            | State::Confirmed { .. }
            | State::Accepted { .. }
            | State::Terminated => Fired::Nothing,
        }
    }

    /// The next deadline and the timer that it belongs to.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        match &self.state {
            State::Completed {
                resend, expires_at, ..
            } => Some(resend.or_end("timer G", *expires_at, "timer H")),
            State::Confirmed { expires_at } => Some((*expires_at, "timer I")),
            State::Accepted { expires_at } => Some((*expires_at, "timer L")),
            State::Proceeding { .. } | State::Terminated => None,
        }
    }

    /// True when the transaction can be forgotten.
    pub fn is_terminated(&self) -> bool {
        matches!(self.state, State::Terminated)
    }
}
