//! The links with the other concentrators: what is theirs goes there in one hop over the core.
//!
//! Each concentrator dials every other one over TLS 1.3, both ends with a certificate, and speaks on its
//! own connection ([`wire::core_link`]). Four things go over it:
//!
//! * SIP messages whose cookie names the other one ([`sip::proxy::Handover`]);
//! * SIP messages for a user agent whose connection the other one has, as the number of the connection
//!   says;
//! * which TCP connections there are. An edge may send the segments of a connection here although its
//!   other end is in another concentrator's kernel; [`connections::ConnectionMap`] knows where, and the
//!   decapsulator sends them there through the tunnel;
//! * registrations, beside the cluster that keeps them and may be away ([`crate::cluster`]).
//!
//! Where the direct way to a peer is gone, its link goes over NATS ([`detour`]). A link whose other end is silent
//! for [`link::LOST`] is down, and unless another one follows at once its peer is gone until it is up again: then
//! everybody does without it what can be done.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use serde_json::{Value, json};
use sip::cookie::Owner;
use sip::hop::{Flow, Transmit};
use sip::proxy::Handover;
use tokio::sync::{Notify, mpsc};
use wire::core_link::CoreMessage;

use crate::metrics::{Label, event};

pub mod connections;
pub mod detour;
pub mod link;
mod record;
mod told;
mod unheard;

use told::Told;

/// Messages that may wait for a peer that reads slowly; those past it are dropped and counted.
const QUEUE: usize = 8_192;

/// What the worker hears of its peers.
#[derive(Debug)]
pub enum PeerInput {
    /// The link to a peer is up.
    Up {
        /// Its place in the configuration.
        peer: usize,
        /// What its cookies and connections have.
        owner: Owner,
        /// To speak with it.
        outlet: Outlet,
    },
    /// It is down.
    Down {
        /// Its place in the configuration.
        peer: usize,
    },
    /// A peer has said something.
    Message {
        /// Its place in the configuration.
        peer: usize,
        /// What it said.
        message: CoreMessage,
    },
}

/// The way to one peer.
#[derive(Debug, Clone)]
pub struct Outlet {
    sender: mpsc::Sender<CoreMessage>,
    /// What must not be missed was: the link begins anew.
    overrun: Arc<Notify>,
    /// The way of the link that there is goes over NATS.
    detoured: Arc<AtomicBool>,
}

/// Which way a link goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// Over TCP, from one to the other.
    Direct,
    /// Over the NATS servers.
    Nats,
}

impl By {
    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Nats => "nats",
        }
    }
}

impl Outlet {
    fn new() -> (Self, mpsc::Receiver<CoreMessage>) {
        let (sender, outgoing) = mpsc::channel(QUEUE);
        let outlet = Self {
            sender,
            overrun: Arc::default(),
            detoured: Arc::default(),
        };
        (outlet, outgoing)
    }

    fn set_way(&self, by: By) {
        self.detoured.store(by == By::Nats, Ordering::Relaxed);
    }

    fn way(&self) -> By {
        match self.detoured.load(Ordering::Relaxed) {
            false => By::Direct,
            true => By::Nats,
        }
    }

    /// False where there is no room for it.
    fn say(&self, message: CoreMessage) -> bool {
        self.sender.try_send(message).is_ok()
    }

    /// The same for what must not be in the way of others: false where much waits.
    fn say_beside(&self, message: CoreMessage) -> bool {
        self.sender.capacity() > QUEUE / 2 && self.say(message)
    }

    /// Where there is no room for it, the link ends.
    fn say_surely(&self, message: CoreMessage) {
        if !self.say(message) {
            self.overrun.notify_one();
        }
    }
}

/// The worker's end of all links.
#[derive(Debug)]
pub struct Peers {
    own: Owner,
    names: Vec<String>,
    links: Vec<Option<(Owner, Outlet)>>,
    told: Told,
    counters: Counters,
}

/// What is counted.
#[derive(Debug, Clone)]
struct Counters {
    handed_over: Counter,
    received: Counter,
    sent_for_us: Counter,
    sent_for_them: Counter,
    records_sent: Counter,
    records_received: Counter,
    full: Counter,
    full_for_records: Counter,
    malformed: Counter,
}

impl Counters {
    fn tell(&self, outlet: &Outlet, record: &[u8]) {
        let record = record.to_vec();
        if outlet.say_beside(CoreMessage::Record { record }) {
            self.records_sent.inc();
        } else {
            self.full_for_records.inc();
        }
    }
}

/// What a message of a peer asks the worker to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    /// Nothing.
    Nothing,
    /// To handle a message that has come in there.
    Handle(Handover),
    /// To send a message on a connection that is here.
    Send(Transmit),
    /// To know that a message was not sent.
    Failed(Flow),
    /// To take a registration.
    Merge(Vec<u8>),
}

impl Peers {
    /// None of them is there yet. `own` is what our cookies and connections have.
    pub fn new(own: Owner, names: Vec<String>, events: &Family<Label, Counter>) -> Self {
        let of = |name| events.get_or_create_owned(&event(name));
        Self {
            own,
            links: vec![None; names.len()],
            names,
            told: Told::default(),
            counters: Counters {
                handed_over: of("handed_over"),
                received: of("handed_over_to_us"),
                sent_for_us: of("sent_by_peer"),
                sent_for_them: of("sent_for_peer"),
                records_sent: of("registration_told"),
                records_received: of("registration_heard"),
                full: of("dropped_queue_full"),
                full_for_records: of("dropped_registration_queue_full"),
                malformed: of("dropped_malformed"),
            },
        }
    }

    /// The owners that can be reached now.
    pub fn alive(&self) -> impl Iterator<Item = Owner> {
        self.links.iter().flatten().map(|(owner, _)| *owner)
    }

    /// A link is up, with this peer.
    pub fn handle_up(&mut self, peer: usize, owner: Owner, outlet: Outlet, now: Instant) {
        if let Some(link) = self.links.get_mut(peer) {
            for record in self.told.lately(now) {
                self.counters.tell(&outlet, record);
            }
            *link = Some((owner, outlet));
        }
    }

    /// A link is down.
    pub fn handle_down(&mut self, peer: usize) {
        if let Some(link) = self.links.get_mut(peer) {
            *link = None;
        }
    }

    /// What a peer's message is about.
    pub fn handle_message(&mut self, message: CoreMessage) -> Asked {
        let asked = match message {
            CoreMessage::Received {
                flow,
                relay,
                message,
            } => record::handover(self.own, flow, relay, message).map(Asked::Handle),
            CoreMessage::Send { flow, message } => {
                let flow = record::flow_of(flow).filter(|flow| self.is_here(flow));
                flow.map(|flow| {
                    let bytes = message.into();
                    Asked::Send(Transmit { flow, bytes })
                })
            }
            CoreMessage::Unsent { flow } => record::flow_of(flow).map(Asked::Failed),
            CoreMessage::Record { record } => Some(Asked::Merge(record)),
            // The link's own.
            CoreMessage::Hello { .. }
            | CoreMessage::Heartbeat
            | CoreMessage::Opened { .. }
            | CoreMessage::Closed { .. }
            | CoreMessage::Complete
            | CoreMessage::Heard { .. } => Some(Asked::Nothing),
        };
        match &asked {
            Some(Asked::Handle(_)) => self.counters.received.inc(),
            Some(Asked::Send(_)) => self.counters.sent_for_them.inc(),
            Some(Asked::Merge(_)) => self.counters.records_received.inc(),
            Some(Asked::Nothing | Asked::Failed(_)) => 0,
            None => self.counters.malformed.inc(),
        };
        asked.unwrap_or(Asked::Nothing)
    }

    /// Sends a message to whose it is.
    pub fn hand_over(&mut self, handover: &Handover) {
        let message = CoreMessage::Received {
            flow: record::of_flow(&handover.hop.flow),
            relay: handover.hop.relay.map(record::of_relay),
            message: handover.bytes.to_vec(),
        };
        if self.say(handover.to, message) {
            self.counters.handed_over.inc();
        }
    }

    /// Sends a message by the peer that has its connection; gives it back where that is not a peer.
    pub fn carry(&mut self, transmit: Transmit) -> Option<Transmit> {
        let owner = transmit.flow.connection.map(|id| id.owner());
        let elsewhere = owner.filter(|owner| *owner != self.own);
        let Some(owner) = elsewhere.filter(|owner| self.link(*owner).is_some()) else {
            return Some(transmit);
        };
        let message = CoreMessage::Send {
            flow: record::of_flow(&transmit.flow),
            message: transmit.bytes.to_vec(),
        };
        if self.say(owner, message) {
            self.counters.sent_for_us.inc();
        }
        None
    }

    /// A message to this flow was not sent: whoever has asked us to send it should know.
    pub fn tell_failed(&self, flow: &Flow) {
        if flow.connection.is_some() && self.is_here(flow) {
            for (_, outlet) in self.links.iter().flatten() {
                // If it is lost, a timer tells it later.
                let _ = outlet.say(CoreMessage::Unsent {
                    flow: record::of_flow(flow),
                });
            }
        }
    }

    /// Tells everybody of a registration, and whoever is back within a minute. Who misses that hears it from the
    /// cluster.
    pub fn tell_record(&mut self, record: &[u8], now: Instant) {
        if self.links.is_empty() {
            return;
        }
        self.told.note(record, now);
        for (_, outlet) in self.links.iter().flatten() {
            self.counters.tell(outlet, record);
        }
    }

    /// For `/status`.
    pub fn status(&self) -> Value {
        let peers = self.names.iter().zip(&self.links).map(|(name, link)| {
            json!({
                "name": name,
                "up": link.is_some(),
                "owner": link.as_ref().map(|(owner, _)| owner.0),
                "by": link.as_ref().map(|(_, outlet)| outlet.way().name()),
            })
        });
        json!({ "owner": self.own.0, "peers": peers.collect::<Vec<_>>() })
    }

    fn is_here(&self, flow: &Flow) -> bool {
        flow.connection.is_some_and(|id| id.owner() == self.own)
    }

    fn link(&self, owner: Owner) -> Option<&Outlet> {
        let mut links = self.links.iter().flatten();
        links.find(|(of, _)| *of == owner).map(|(_, outlet)| outlet)
    }

    fn say(&self, owner: Owner, message: CoreMessage) -> bool {
        let said = self.link(owner).is_some_and(|outlet| outlet.say(message));
        if !said {
            self.counters.full.inc();
        }
        said
    }
}

#[cfg(test)]
mod tests;
