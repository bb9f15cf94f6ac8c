//! The non-INVITE client transaction: RFC 3261 section 17.1.2.
//!
//! ```text
//!            1xx                200-699
//!   Trying ───────► Proceeding ─────────► Completed ──K──► Terminated
//!    │ │ └ 200-699 ──┼─┼──────────────────►
//!    │ E: resend,    │ E: resend every T2
//!    │ T1 doubling   │
//!    │ to T2         │
//!    └──F────────────┴── timed out
//! ```
//!
//! The first message is sent by whoever makes the transaction.

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::timer::{Fired, Repeat, Timers};

/// One request other than INVITE and ACK that we sent.
#[derive(Debug)]
pub struct ClientNonInvite {
    timers: Timers,
    reliable: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    Trying(Waiting),
    Proceeding(Waiting),
    Completed {
        /// Timer K.
        expires_at: Instant,
    },
    Terminated,
}

/// What Trying and Proceeding have in common.
#[derive(Debug, Clone)]
struct Waiting {
    request: Bytes,
    /// Timer E.
    resend: Repeat,
    /// Timer F.
    expires_at: Instant,
}

impl ClientNonInvite {
    /// A transaction whose request is sent at `now`.
    pub fn new(request: Bytes, reliable: bool, timers: Timers, now: Instant) -> Self {
        Self {
            timers,
            reliable,
            state: State::Trying(Waiting {
                request,
                resend: Repeat::starting(reliable, timers.t1, now),
                expires_at: now + timers.lifetime(),
            }),
        }
    }

    /// A response has come; true when it goes to the user of the transaction.
    pub fn handle_response(&mut self, status: u16, now: Instant) -> bool {
        match (&self.state, status) {
            // Timers E and F run on as they are.
            (State::Trying(waiting), 0..200) => {
                self.state = State::Proceeding(waiting.clone());
                true
            }
            (State::Proceeding(_), 0..200) => true,
            (State::Trying(_) | State::Proceeding(_), 200..) => {
                // Timer K is zero over a reliable transport.
                self.state = if self.reliable {
                    State::Terminated
                } else {
                    State::Completed {
                        expires_at: now + self.timers.t4,
                    }
                };
                true
            }
            (State::Completed { .. } | State::Terminated, _) => false,
        }
    }

    /// Acts on a deadline that has come.
    pub fn handle_timeout(&mut self, now: Instant) -> Fired {
        let t2 = self.timers.t2;
        match &mut self.state {
            State::Trying(waiting) | State::Proceeding(waiting) if waiting.expires_at <= now => {
                self.state = State::Terminated;
                Fired::TimedOut
            }
            State::Trying(waiting) => waiting.fire(now, |interval| (interval * 2).min(t2)),
            State::Proceeding(waiting) => waiting.fire(now, |_| t2),
            State::Completed { expires_at } if *expires_at <= now => {
                self.state = State::Terminated;
                Fired::Ended
            }
            State::Completed { .. } | State::Terminated => Fired::Nothing,
        }
    }

    /// The next deadline and the timer that it belongs to.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        match &self.state {
            State::Trying(waiting) | State::Proceeding(waiting) => {
                let end = waiting.expires_at;
                Some(waiting.resend.or_end("timer E", end, "timer F"))
            }
            State::Completed { expires_at } => Some((*expires_at, "timer K")),
            State::Terminated => None,
        }
    }

    /// True when the user of the transaction still waits for a final response.
    pub fn is_pending(&self) -> bool {
        match self.state {
            State::Trying(_) | State::Proceeding(_) => true,
            State::Completed { .. } | State::Terminated => false,
        }
    }

    /// True when the transaction can be forgotten.
    pub fn is_terminated(&self) -> bool {
        matches!(self.state, State::Terminated)
    }
}

impl Waiting {
    fn fire(&mut self, now: Instant, next: impl FnOnce(Duration) -> Duration) -> Fired {
        if self.resend.fire(now, next) {
            Fired::Send(self.request.clone())
        } else {
            Fired::Nothing
        }
    }
}
