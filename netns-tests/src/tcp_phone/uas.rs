//! Calls that a phone answers.

use std::time::{Duration, Instant, SystemTime};

use super::{Ended, GIVE_UP, Phone, T1, T2, description, text};
use crate::topology::two_edges::PHONE;

/// A call that came.
#[derive(Debug)]
pub(super) struct Answer {
    branch: String,
    began: SystemTime,
    /// What was said last, for an INVITE that comes again.
    last: String,
    accept: String,
    state: State,
    /// When it is forgotten.
    until: Instant,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Ringing {
        until: Instant,
    },
    /// The 200 is repeated until the ACK comes (RFC 3261 section 13.3.1.4).
    Accepted {
        again: Instant,
        pause: Duration,
    },
    Acknowledged,
}

impl Phone {
    pub(super) fn handle_request(&mut self, request: &str, now: Instant) {
        let (Some(id), Some((_, method))) = (text::field(request, "Call-ID"), text::cseq(request))
        else {
            return;
        };
        match method {
            "INVITE" => self.invited(id, request, now),
            "ACK" => {
                if let Some(answer) = self.answers.get_mut(id) {
                    answer.state = State::Acknowledged;
                }
            }
            "BYE" => {
                let known = self.answers.contains_key(id) || self.hung_up_by_peer(id);
                let status = if known { OK } else { UNKNOWN };
                // It may come again.
                if let Some(answer) = self.answers.get_mut(id) {
                    answer.state = State::Acknowledged;
                    answer.until = now + GIVE_UP;
                }
                self.answer(status, request);
            }
            _ => self.answer(OK, request),
        }
    }

    fn answer(&mut self, status: &str, request: &str) {
        let lines = text::echoed(request, "e");
        self.send(&format!(
            "SIP/2.0 {status}\r\n{lines}Content-Length: 0\r\n\r\n"
        ));
    }

    fn invited(&mut self, id: &str, request: &str, now: Instant) {
        let branch = text::branch(request).unwrap_or_default();
        if let Some(answer) = self.answers.get(id) {
            if answer.branch == branch {
                let last = answer.last.clone();
                self.send(&last);
            } else {
                self.answer(MERGED, request);
            }
            return;
        }
        let lines = text::echoed(request, &format!("u{}", self.count));
        self.count += 1;
        let (contact, body) = (self.contact(), description(PHONE));
        let ringing = format!(
            "SIP/2.0 180 Ringing\r\n{lines}Contact: {contact}\r\nContent-Length: 0\r\n\r\n"
        );
        let accept = format!(
            "SIP/2.0 200 OK\r\n{lines}Contact: {contact}\r\nContent-Type: application/sdp\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.send(&ringing);
        let answer = Answer {
            branch: branch.to_owned(),
            began: SystemTime::now(),
            last: ringing,
            accept,
            state: State::Ringing {
                until: now + self.ring,
            },
            until: now + GIVE_UP * 4,
        };
        self.answers.insert(id.to_owned(), answer);
    }

    pub(super) fn pass_time_of_answers(&mut self, now: Instant) {
        let mut say = Vec::new();
        let mut unacknowledged = Vec::new();
        for answer in self.answers.values_mut() {
            match answer.state {
                State::Ringing { until } if now >= until => {
                    answer.last.clone_from(&answer.accept);
                    answer.until = now + GIVE_UP * 4;
                    answer.state = State::Accepted {
                        again: now + T1,
                        pause: T1,
                    };
                    say.push(answer.last.clone());
                }
                State::Accepted { again, pause } if now >= again => {
                    let pause = (pause * 2).min(T2);
                    answer.state = State::Accepted {
                        again: now + pause,
                        pause,
                    };
                    say.push(answer.last.clone());
                }
                State::Ringing { .. } | State::Accepted { .. } | State::Acknowledged => {}
            }
            if matches!(answer.state, State::Accepted { .. }) && now >= answer.until - GIVE_UP * 3 {
                answer.state = State::Acknowledged;
                unacknowledged.push(answer.began);
            }
        }
        self.answers.retain(|_, answer| now < answer.until);
        for message in say {
            self.send(&message);
        }
        for began in unacknowledged {
            self.note_unacknowledged(began);
        }
    }

    /// The caller tells of its own calls; one that it counts as good was not good here.
    fn note_unacknowledged(&self, began: SystemTime) {
        self.shared
            .offered
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.shared.ended().push(Ended {
            begun: began,
            ended: SystemTime::now(),
            post_dial: None,
            failed: Some("no ACK came to the called phone".to_owned()),
        });
    }
}

const OK: &str = "200 OK";
const UNKNOWN: &str = "481 Call/Transaction Does Not Exist";
const MERGED: &str = "482 Loop Detected";
