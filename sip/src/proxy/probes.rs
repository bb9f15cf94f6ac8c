//! Are the next hops there? OPTIONS to each member of a group that wants it, in transactions of
//! their own (RFC 3261 section 11).
//!
//! Any answer below 500, or of 600 and more, shows that somebody is there and thinks. A probe that
//! is not answered when the next one is due has failed, so a member is down after
//! [`super::groups::MAX_MISSED`] intervals of silence and not after as many times 32 s.

use std::collections::HashMap;
use std::time::Instant;

use bytes::Bytes;

use super::Proxy;
use super::groups::{Groups, MemberId};
use crate::cookie::BranchOf;
use crate::message::Message;
use crate::resolve::NextHop;
use crate::transaction::ClientId;

/// The probes that are under way: one for each member at most.
#[derive(Debug, Default)]
pub(super) struct Probes {
    running: HashMap<MemberId, ClientId>,
    member: HashMap<ClientId, MemberId>,
    made: u64,
}

impl Proxy {
    /// The health of the groups, to look at.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Sends every probe that is due.
    pub(super) fn fire_probes(&mut self, now: Instant) {
        while let Some(id) = self.groups.due(now) {
            if let Some(client) = self.probes.running.remove(&id) {
                self.probes.member.remove(&client);
                self.transactions.abandon(client);
                self.probed(id, false);
            }
            self.resolve_member(id, now);
        }
    }

    /// A member's address is known, or it has none.
    pub(super) fn send_probe(&mut self, id: MemberId, next: Option<NextHop>, now: Instant) {
        let flow = next.and_then(|next| self.flow_to(&next));
        let sent = flow.and_then(|flow| {
            let options = self.options(id, &flow.local.to_string(), flow.transport.via_name())?;
            self.transactions.send_request(&options, flow, now)
        });
        match sent {
            Some(client) => {
                self.counters.routing.probes += 1;
                self.probes.running.insert(id, client);
                self.probes.member.insert(client, id);
            }
            None => self.probed(id, false),
        }
    }

    fn options(&mut self, id: MemberId, local: &str, transport: &str) -> Option<Message> {
        self.probes.made += 1;
        let uri = self.groups.member(id)?.uri.clone();
        let uri = String::from_utf8_lossy(&uri);
        let seed = [self.config.epoch.1, self.probes.made].map(u64::to_be_bytes);
        let keys = &self.config.keys;
        let branch = keys.branch(&BranchOf {
            incoming: b"probe".to_vec(),
            target: seed.concat(),
            route: Vec::new(),
        });
        let tag = keys.tag_hash(&seed.concat());
        let text = format!(
            "OPTIONS {uri} SIP/2.0\r\nVia: SIP/2.0/{transport} {local};branch={branch};rport\r\n\
             Max-Forwards: 70\r\nFrom: <sip:{local}>;tag={tag:08x}\r\nTo: <{uri}>\r\n\
             Call-ID: probe-{tag:08x}-{}@{local}\r\nCSeq: 1 OPTIONS\r\nAccept: application/sdp\r\n\
             Content-Length: 0\r\n\r\n",
            self.probes.made
        );
        Message::parse(Bytes::from(text)).ok()
    }

    /// A probe was answered; a provisional answer says nothing yet.
    pub(super) fn probe_answered(&mut self, client: ClientId, status: u16) {
        if status >= 200 {
            self.probe_ended(client, !(500..600).contains(&status));
        }
    }

    /// A client transaction is over; if it was a probe, so is that.
    pub(super) fn probe_ended(&mut self, client: ClientId, good: bool) {
        if let Some(id) = self.probes.member.remove(&client) {
            self.probes.running.remove(&id);
            self.probed(id, good);
        }
    }

    pub(super) fn probed(&mut self, id: MemberId, good: bool) {
        self.counters.routing.probes_failed += u64::from(!good);
        if self.groups.probed(id, good) {
            self.counters.routing.health_changes += 1;
        }
    }
}
