//! Calls that a phone makes.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use super::{Ended, GIVE_UP, NO_ANSWER, Phone, description, text};
use crate::topology::two_edges::PHONE;

/// Whom it calls, and how often.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) peer: String,
    pub(super) every: Duration,
    pub(super) next: Instant,
    pub(super) talk: Duration,
}

/// A call in progress.
#[derive(Debug)]
pub(super) struct Call {
    began: SystemTime,
    begun: Instant,
    post_dial: Option<Duration>,
    state: State,
    /// The INVITE; later the BYE.
    request: String,
    /// Repeated with each 200.
    ack: String,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Inviting { heard: bool },
    Talking { until: Instant },
    HangingUp { since: Instant },
}

impl Phone {
    pub(super) fn begin_calls(&mut self, now: Instant) {
        let full = self.shared.full.load(Ordering::Relaxed);
        while let Some(plan) = &mut self.plan
            && !full
            && now >= plan.next
        {
            plan.next += plan.every;
            let peer = plan.peer.clone();
            self.begin_call(&peer, now);
        }
    }

    fn begin_call(&mut self, peer: &str, now: Instant) {
        self.count += 1;
        let (user, number) = (&self.user, self.count);
        let id = format!("{number}-{user}");
        let body = description(PHONE);
        let request = format!(
            "INVITE sip:{peer}@example.com SIP/2.0\r\n\
             Via: {}\r\n\
             Max-Forwards: 70\r\n\
             From: <sip:{user}@example.com>;tag=c{number}\r\n\
             To: <sip:{peer}@example.com>\r\n\
             Call-ID: {id}\r\n\
             CSeq: 1 INVITE\r\n\
             Contact: {}\r\n\
             Content-Type: application/sdp\r\n\
             Content-Length: {}\r\n\r\n{body}",
            self.via(&format!("i{number}")),
            self.contact(),
            body.len()
        );
        self.send(&request);
        self.shared.offered.fetch_add(1, Ordering::Relaxed);
        let call = Call {
            began: SystemTime::now(),
            begun: now,
            post_dial: None,
            state: State::Inviting { heard: false },
            request,
            ack: String::new(),
        };
        self.calls.insert(id, call);
    }

    /// Requests without a final answer.
    pub(super) fn pending_requests(&self) -> Vec<String> {
        let pending = self
            .calls
            .values()
            .filter(|call| !matches!(call.state, State::Talking { .. }));
        pending.map(|call| call.request.clone()).collect()
    }

    pub(super) fn handle_answer(&mut self, status: u16, message: &str, now: Instant) {
        let (Some(id), Some((_, method))) = (text::field(message, "Call-ID"), text::cseq(message))
        else {
            return;
        };
        let Some(call) = self.calls.get_mut(id) else {
            return;
        };
        match (method, status) {
            ("INVITE", 100..=199) => {
                if status > 100 {
                    call.post_dial.get_or_insert(now - call.begun);
                }
                if let State::Inviting { heard } = &mut call.state {
                    *heard = true;
                }
            }
            ("INVITE", 200..=299) => self.accepted(id, message, now),
            ("INVITE", _) => {
                if matches!(call.state, State::Inviting { .. }) {
                    let ack = self.ack_of_failure(message);
                    self.send(&ack);
                    self.end(id, Some(format!("INVITE: {status}")));
                }
            }
            ("BYE", 200..=299) => self.end(id, None),
            ("BYE", 300..) => self.end(id, Some(format!("BYE: {status}"))),
            (_, _) => {}
        }
    }

    fn accepted(&mut self, id: &str, message: &str, now: Instant) {
        let talk = self.plan.as_ref().map_or(Duration::ZERO, |plan| plan.talk);
        let ack = self.in_dialog("ACK", 1, "a", message);
        let Some(call) = self.calls.get_mut(id) else {
            return;
        };
        if matches!(call.state, State::Inviting { .. }) {
            call.post_dial.get_or_insert(now - call.begun);
            call.state = State::Talking { until: now + talk };
            call.ack = ack;
            let bye = self.in_dialog("BYE", 2, "b", message);
            if let Some(call) = self.calls.get_mut(id) {
                // What is sent when the talk is over.
                call.request = bye;
            }
        }
        let ack = self.calls.get(id).map(|call| call.ack.clone());
        self.send(&ack.unwrap_or_default());
    }

    /// A request by the route of the answer that began the dialog (RFC 3261 section 12.2.1.1).
    fn in_dialog(&self, method: &str, cseq: u32, kind: &str, answer: &str) -> String {
        let field = |name| text::field(answer, name).unwrap_or_default();
        let target = text::uri(field("Contact")).unwrap_or("sip:nobody@invalid");
        let mut routes: Vec<&str> = text::fields(answer, "Record-Route").collect();
        routes.reverse();
        let routes: String = routes
            .iter()
            .map(|value| format!("Route: {value}\r\n"))
            .collect();
        let id = field("Call-ID");
        format!(
            "{method} {target} SIP/2.0\r\n\
             Via: {}\r\n\
             Max-Forwards: 70\r\n{routes}\
             From: {}\r\nTo: {}\r\nCall-ID: {id}\r\nCSeq: {cseq} {method}\r\n\
             Content-Length: 0\r\n\r\n",
            self.via(&format!("{kind}{id}")),
            field("From"),
            field("To"),
        )
    }

    /// In the transaction of its INVITE (RFC 3261 section 17.1.1.3).
    fn ack_of_failure(&self, answer: &str) -> String {
        let field = |name| text::field(answer, name).unwrap_or_default();
        let (id, peer) = (field("Call-ID"), text::uri(field("To")).unwrap_or_default());
        let number = id.split('-').next().unwrap_or_default();
        format!(
            "ACK {peer} SIP/2.0\r\nVia: {}\r\nMax-Forwards: 70\r\nFrom: {}\r\nTo: {}\r\n\
             Call-ID: {id}\r\nCSeq: 1 ACK\r\nContent-Length: 0\r\n\r\n",
            self.via(&format!("i{number}")),
            field("From"),
            field("To"),
        )
    }

    pub(super) fn pass_time_of_calls(&mut self, now: Instant) {
        let mut over = Vec::new();
        let mut say = Vec::new();
        for (id, call) in &mut self.calls {
            match call.state {
                State::Inviting { heard } => {
                    let patience = if heard { NO_ANSWER } else { GIVE_UP };
                    if now >= call.begun + patience {
                        over.push((id.clone(), "INVITE: no final answer"));
                    }
                }
                State::Talking { until } if now >= until => {
                    call.state = State::HangingUp { since: now };
                    say.push(call.request.clone());
                }
                State::Talking { .. } => {}
                State::HangingUp { since } => {
                    if now >= since + GIVE_UP {
                        over.push((id.clone(), "BYE: no answer"));
                    }
                }
            }
        }
        for bye in say {
            self.send(&bye);
        }
        for (id, why) in over {
            self.end(&id, Some(why.to_owned()));
        }
    }

    fn end(&mut self, id: &str, failed: Option<String>) {
        if let Some(call) = self.calls.remove(id) {
            self.shared.ended().push(Ended {
                begun: call.began,
                ended: SystemTime::now(),
                post_dial: call.post_dial,
                failed,
            });
        }
    }

    /// The other end has hung up.
    pub(super) fn hung_up_by_peer(&mut self, id: &str) -> bool {
        let known = self.calls.contains_key(id);
        self.end(id, Some("BYE from the other end".to_owned()));
        known
    }
}
