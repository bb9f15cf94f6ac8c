//! After a link was lost: which of the sessions in use have ended meanwhile.
//!
//! Another concentrator may have got a call's BYE and released its session, and what the agent has said of it
//! may have been under way when the link was cut. So an agent that comes back with the epoch that it had is
//! asked about each session, few at a time, since the queue of a link is short. Who asks about a session is also
//! told when it ends.

use std::time::Instant;

use wire::relay_control::ToAgent;

use super::{Agent, RelayPool, Request};

/// Questions that wait for an answer at a time.
const AT_A_TIME: usize = 64;

impl Request {
    pub(super) const fn is_question(&self) -> bool {
        matches!(self.message, ToAgent::Query { .. })
    }
}

impl Agent {
    /// Its link is lost, and with it what was asked.
    pub(super) fn forget_questions(&mut self) {
        self.requests.retain(|_, request| !request.is_question());
        self.unsure.clear();
        self.questions = 0;
    }
}

impl RelayPool {
    /// An agent is back and may have done with any session.
    pub(super) fn ask_about_all(&mut self, name: &str, now: Instant) {
        if let Some(agent) = self.agents.get_mut(name) {
            agent.unsure = agent.sessions.keys().copied().collect();
        }
        self.ask_about_more(name, now);
    }

    /// An agent has the session that it was asked about.
    pub(super) fn handle_known(&mut self, name: &str, request: u64, now: Instant) {
        let agent = self.agents.get_mut(name);
        match agent.map(|agent| agent.requests.remove(&request)) {
            Some(Some(_)) => self.question_over(name, now),
            Some(None) | None => self.counters.stray += 1,
        }
    }

    pub(super) fn question_over(&mut self, name: &str, now: Instant) {
        if let Some(agent) = self.agents.get_mut(name) {
            agent.questions = agent.questions.saturating_sub(1);
        }
        self.ask_about_more(name, now);
    }

    /// As many questions as there is room for.
    fn ask_about_more(&mut self, name: &str, now: Instant) {
        while let Some(session) = self.next_unsure(name) {
            self.ask(name, session, now, |request| ToAgent::Query {
                request,
                session,
            });
        }
    }

    fn next_unsure(&mut self, name: &str) -> Option<u64> {
        let agent = self.agents.get_mut(name)?;
        while agent.questions < AT_A_TIME {
            let session = agent.unsure.pop()?;
            if agent.sessions.contains_key(&session) {
                agent.questions += 1;
                return Some(session);
            }
        }
        None
    }
}
