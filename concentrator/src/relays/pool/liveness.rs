//! Time passes: who is asked for a sign of life, who is quiet, silent or gone, which requests are given up.

use std::time::Instant;

use wire::relay_control::ToAgent;

use super::{Command, QUIET_AFTER, RelayEvent, RelayPool};

/// Heartbeats that may go unanswered.
const MISSED_HEARTBEATS: u32 = 3;

impl RelayPool {
    /// Sends heartbeats, closes silent links, gives up old requests.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.clock = Some(now);
        self.adapt_stocks(now);
        let silence = self.settings.heartbeat * (MISSED_HEARTBEATS + 1);
        let hush = self.settings.heartbeat * QUIET_AFTER;
        let mut unanswered = Vec::new();
        for (name, agent) in &mut self.agents {
            if agent.gone_at.take_if(|at| *at <= now).is_some() {
                self.counters.gone += 1;
                self.events.push_back(RelayEvent::AgentGone(name.clone()));
            }
            let before = agent.requests.len();
            agent.requests.retain(|_, request| {
                let is_old = request.deadline <= now;
                unanswered.extend((is_old && request.is_question()).then(|| name.clone()));
                !is_old
            });
            self.counters.expired += (before - agent.requests.len()) as u64;
            let Some(link) = agent.link.as_mut() else {
                continue;
            };
            if !agent.quiet && link.greeted && link.last_heard + hush <= now {
                agent.quiet = true;
                self.counters.quiet += 1;
            }
            if link.last_heard + silence <= now {
                self.counters.silent += 1;
                agent.given_up = true;
                link.last_heard = now;
                self.commands.push_back(Command::Close(link.id, "silent"));
            } else if link.greeted && link.next_heartbeat <= now {
                link.next_heartbeat = now + self.settings.heartbeat;
                let seq = self.next_request;
                self.next_request += 1;
                self.commands
                    .push_back(Command::Send(link.id, ToAgent::Heartbeat { seq }));
            }
        }
        for name in unanswered {
            self.question_over(&name, now);
        }
    }

    /// When to call [`RelayPool::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let silence = self.settings.heartbeat * (MISSED_HEARTBEATS + 1);
        let hush = self.settings.heartbeat * QUIET_AFTER;
        let deadlines = self.agents.values().flat_map(|agent| {
            let link = agent.link.as_ref();
            let heartbeat = link
                .filter(|link| link.greeted)
                .map(|link| link.next_heartbeat);
            let silent = link.map(|link| link.last_heard + silence);
            let quiet = link.filter(|link| link.greeted && !agent.quiet);
            let quiet = quiet.map(|link| link.last_heard + hush);
            let request = agent
                .requests
                .values()
                .next()
                .map(|request| request.deadline);
            [heartbeat, silent, quiet, request, agent.gone_at]
                .into_iter()
                .flatten()
        });
        deadlines.min().map(|at| (at, "relay control"))
    }
}
