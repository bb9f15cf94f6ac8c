//! What the relays' agents say, what they are told, and what that means for calls.

use sip::proxy::media::SessionRef;
use tracing::{info, warn};
use wire::relay_control::SessionStatistics;

use super::{MAX_RELAYED_CALLS, Worker, now};
use crate::relays::pool::{Command, RelayEvent};
use crate::relays::rtpengine;
use crate::relays::server::RelayInput;

/// How a session has ended.
enum End {
    /// With what it did.
    Told(Box<SessionStatistics>),
    /// Its relay has failed.
    Lost,
    /// While we were away.
    Unheard,
}

impl Worker {
    pub(super) fn handle_relay(&mut self, input: RelayInput) {
        match input {
            RelayInput::Connected {
                link,
                agent,
                sender,
            } => {
                self.links.insert(link, sender);
                self.calls.relays.handle_connected(link, &agent, now());
            }
            RelayInput::Message { link, message } => {
                self.calls.relays.handle_message(link, message, now());
            }
            RelayInput::Closed { link } => {
                self.links.remove(&link);
                self.calls.relays.handle_closed(link);
            }
        }
        self.proxy.handle_media_ready(&mut self.calls, now());
    }

    pub(super) fn perform(&mut self, command: Command) {
        match command {
            Command::Send(link, message) => {
                let sent = self.links.get(&link).map(|sender| sender.try_send(message));
                if let Some(Err(error)) = sent {
                    warn!(?link, %error, "relay control: an agent does not read; link closed");
                    self.links.remove(&link);
                }
            }
            Command::Close(link, why) => {
                warn!(?link, why, "relay control: link closed");
                self.links.remove(&link);
            }
        }
    }

    /// True where a call was ended, so that something is to be sent.
    pub(super) fn handle_relay_event(&mut self, event: RelayEvent) -> bool {
        match event {
            RelayEvent::AgentUp(agent) => info!(agent, "relay is up"),
            RelayEvent::AgentDown(agent) => warn!(agent, "relay is down"),
            RelayEvent::MediaStarted(session, side) => {
                tracing::debug!(relay = %session.relay, session = session.session, ?side, "media started");
                self.calls.media_started(session);
                if let Some(cdr) = &mut self.cdr {
                    cdr.media_started(session, side, &self.calls, now());
                }
            }
            RelayEvent::MediaTimeout(session, silence) => {
                warn!(relay = %session.relay, session = session.session, %silence, "no media: session ends");
                // Its end is the next word about it.
                if self.silent.len() < MAX_RELAYED_CALLS {
                    self.silent.insert(session, silence);
                }
            }
            RelayEvent::Ended(session, stats) => {
                info!(relay = %session.relay, session = session.session, ?stats, "session ended");
                return self.session_over(session, End::Told(stats));
            }
            RelayEvent::SessionLost(session) => {
                warn!(relay = %session.relay, session = session.session, "session lost");
                return self.session_over(session, End::Lost);
            }
            RelayEvent::EndedUnheard(session) => {
                info!(relay = %session.relay, session = session.session, "session ended while its relay was not linked");
                return self.session_over(session, End::Unheard);
            }
            RelayEvent::AgentGone(agent) => {
                let unused = self.calls.unused_of(&agent);
                warn!(
                    agent,
                    calls = unused.len(),
                    "relay has ended: calls without media are given up"
                );
                for session in unused {
                    self.session_over(session, End::Lost);
                }
            }
        }
        false
    }

    /// A relay has done with a session. Where it was the last one of its call and fell silent, the
    /// call is over. Where nobody here has asked for its end, another concentrator had the BYE.
    fn session_over(&mut self, session: SessionRef, how: End) -> bool {
        let now = now();
        let call = self.calls.call_of(session);
        let no_media = call.is_some_and(|call| self.calls.has_no_media(call));
        self.calls.session_gone(session);
        let silence = self.silent.remove(&session);
        let over = call.filter(|call| !self.calls.is_relayed(*call));
        let mut ended = false;
        match (over, silence) {
            (Some(call), Some(silence)) => {
                ended = self.proxy.end_call(call, &mut self.calls, now);
                if let Some(cdr) = self.cdr.as_mut().filter(|_| ended) {
                    cdr.fall_silent(call, silence, now);
                }
            }
            (Some(call), None) => match how {
                End::Lost if no_media => drop(self.lost.insert(call)),
                // Its relay has forgotten it: the parties may go on, with the next offer or without media.
                End::Lost => self.proxy.forget_call(call),
                End::Told(_) if !self.tells_why(session) => {}
                End::Told(_) | End::Unheard => {
                    self.proxy
                        .handle_ended_elsewhere(call, &mut self.calls, now);
                    if let Some(cdr) = &mut self.cdr {
                        cdr.ended_elsewhere(call, now);
                    }
                }
            },
            (None, _) => {}
        }
        if let Some(cdr) = &mut self.cdr {
            let stats = match how {
                End::Told(stats) => Some(stats),
                End::Lost | End::Unheard => None,
            };
            cdr.session_ended(session, stats, now);
        }
        ended
    }

    fn tells_why(&self, session: SessionRef) -> bool {
        let agent = self.calls.relays.agent_of(session.relay);
        agent.is_some_and(rtpengine::tells_why)
    }
}
