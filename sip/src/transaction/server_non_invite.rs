//! The non-INVITE server transaction: RFC 3261 section 17.2.2.
//!
//! ```text
//!            1xx                200-699
//!   Trying ───────► Proceeding ─────────► Completed ──J──► Terminated
//!    │     200-699   │ ▲ │ request:        ▲ │ request: response again
//!    ├───────────────┼─┼─┼────────────────►└─┘
//!    │ request:      │ └─┘ last 1xx
//!    │ absorb        │
//!    └───────────────┴── Terminated: nobody answered
//! ```
//!
//! One deadline is ours: RFC 3261 lets Trying and Proceeding wait for ever, but RFC 4320 section
//! 4.2 forbids a 408, so a request that nobody answers gets no final response. The transaction
//! ends after 64*T1, when the client's Timer F has fired and an answer would reach nobody.
//! Before that, once the client's Timer E has grown to T2, the user is asked for a 100.

use std::time::Instant;

use bytes::Bytes;

use crate::timer::{Fired, Timers};

/// One request other than INVITE and ACK that we received.
#[derive(Debug)]
pub struct ServerNonInvite {
    timers: Timers,
    reliable: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    Trying {
        /// When the sender must be told that we work on it (RFC 4320 section 4.1).
        slow_at: Option<Instant>,
        expires_at: Instant,
    },
    Proceeding {
        last: Bytes,
        expires_at: Instant,
    },
    Completed {
        response: Bytes,
        /// Timer J.
        expires_at: Instant,
    },
    Terminated,
}

impl ServerNonInvite {
    /// A transaction for a request that has just come.
    pub fn new(reliable: bool, timers: Timers, now: Instant) -> Self {
        Self {
            timers,
            reliable,
            state: State::Trying {
                slow_at: Some(now + timers.until_t2()),
                expires_at: now + timers.lifetime(),
            },
        }
    }

    /// The request has come again; what to send for it.
    pub fn handle_request(&self) -> Option<Bytes> {
        match &self.state {
            State::Trying { .. } | State::Terminated => None,
            State::Proceeding { last, .. } => Some(last.clone()),
            State::Completed { response, .. } => Some(response.clone()),
        }
    }

    /// The user of the transaction answers; true when the response is to be sent.
    pub fn respond(&mut self, response: &Bytes, status: u16, now: Instant) -> bool {
        match (&self.state, status) {
            (State::Trying { expires_at, .. } | State::Proceeding { expires_at, .. }, 0..200) => {
                self.state = State::Proceeding {
                    last: response.clone(),
                    expires_at: *expires_at,
                };
                true
            }
            (State::Trying { .. } | State::Proceeding { .. }, 200..) => {
                // Timer J is zero over a reliable transport.
                self.state = if self.reliable {
                    State::Terminated
                } else {
                    State::Completed {
                        response: response.clone(),
                        expires_at: now + self.timers.lifetime(),
                    }
                };
                true
            }
            // "Any other final responses passed by the TU to the server transaction MUST be
            // discarded while in the Completed state."
            (State::Completed { .. } | State::Terminated, _) => false,
        }
    }

    /// Acts on a deadline that has come.
    pub fn handle_timeout(&mut self, now: Instant) -> Fired {
        if let State::Trying {
            slow_at,
            expires_at,
        } = &mut self.state
            && now < *expires_at
            && slow_at.is_some_and(|at| at <= now)
        {
            *slow_at = None;
            return Fired::Slow;
        }
        let (expires_at, fired) = match self.state {
            State::Trying { expires_at, .. } | State::Proceeding { expires_at, .. } => {
                (expires_at, Fired::TimedOut)
            }
            State::Completed { expires_at, .. } => (expires_at, Fired::Ended),
            State::Terminated => return Fired::Nothing,
        };
        if now < expires_at {
            return Fired::Nothing;
        }
        self.state = State::Terminated;
        fired
    }

    /// The next deadline and the timer that it belongs to.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        match self.state {
            State::Trying {
                slow_at: Some(at),
                expires_at,
            } if at < expires_at => Some((at, "slow")),
            State::Trying { expires_at, .. } | State::Proceeding { expires_at, .. } => {
                Some((expires_at, "unanswered"))
            }
            State::Completed { expires_at, .. } => Some((expires_at, "timer J")),
            State::Terminated => None,
        }
    }

    /// True when the transaction can be forgotten.
    pub fn is_terminated(&self) -> bool {
        matches!(self.state, State::Terminated)
    }
}
