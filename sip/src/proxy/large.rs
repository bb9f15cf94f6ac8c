//! Requests that are too large for a datagram: over TCP to next hops, where those take it, else
//! over UDP (RFC 3261 section 18.1.1).
//!
//! The transport is chosen for each copy by its length, and only for that copy: what Record-Route
//! and the dialog cookie say stays UDP, so that a short BYE of the same dialog goes as it always
//! did. Both ways have the branch of the UDP one. So a copy that is sent again over UDP, because
//! nothing came of the connection, is a retransmission to whoever has read it from the connection
//! after all, and a CANCEL finds its INVITE by either way.
//!
//! [`TcpPeers`] remembers who took TCP and who did not, so that not every call waits for a
//! connection that nobody accepts. Nobody connects to a phone: behind its NAT nobody answers, and
//! a large request to one is a datagram in fragments.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Branch, Progress, Proxy, Target};
use crate::hop::{Flow, Transport};
use crate::message::{HeaderName, Message, Method};
use crate::transaction::ClientId;

/// How long what is known of a next hop is believed.
const BELIEVED: Duration = Duration::from_secs(600);
/// Next hops that something is known of. Beyond that each attempt is as the first one.
const MAX_PEERS: usize = 1024;

/// Which next hops take TCP.
#[derive(Debug, Default)]
pub(super) struct TcpPeers {
    known: HashMap<SocketAddr, (bool, Instant)>,
}

impl TcpPeers {
    /// `None` where it is not known.
    fn takes(&self, peer: SocketAddr, now: Instant) -> Option<bool> {
        let (takes, until) = self.known.get(&peer)?;
        (*until > now).then_some(*takes)
    }

    fn note(&mut self, peer: SocketAddr, takes: bool, now: Instant) {
        if self.known.len() >= MAX_PEERS && !self.known.contains_key(&peer) {
            self.known.retain(|_, (_, until)| *until > now);
            if self.known.len() >= MAX_PEERS {
                return;
            }
        }
        self.known.insert(peer, (takes, now + BELIEVED));
    }
}

impl Proxy {
    /// A copy for this target as it is sent, and the flow that it is sent to.
    pub(super) fn by_length(
        &mut self,
        copy: Message,
        target: &Target,
        now: Instant,
    ) -> (Message, Flow) {
        let flow = target.flow;
        let max = self.config.routing.max_udp_request;
        let fits = max.is_none_or(|max| copy.bytes().len() <= max);
        if fits || flow.transport != Transport::Udp {
            return (copy, flow);
        }
        let known = self.tcp_peers.takes(flow.peer, now);
        // An ACK that does not arrive is not known to be lost: it goes where others have arrived.
        let is_ack = copy.method() == Method::Ack;
        let takes = known.unwrap_or(!is_ack);
        if !takes || !self.can_connect_to(target) {
            self.counters.routing.large_over_udp += 1;
            return (copy, flow);
        }
        self.counters.routing.large_over_tcp += 1;
        (over(&copy, Transport::Tcp), tcp(flow))
    }

    /// True for next hops: those that a route names, and the peers of dialogs that are at an address
    /// of ours where no phones are, or at one that the operator has named.
    fn can_connect_to(&self, target: &Target) -> bool {
        let (flow, routing) = (&target.flow, &self.config.routing);
        if !routing.transports.contains(&Transport::Tcp) {
            return false;
        }
        let is_peer = || {
            let ours = routing.unicast.contains(&flow.local);
            (ours || routing.is_trunk(flow.peer.ip())) && !self.registrar.has_flow(flow)
        };
        target.next_hop.is_some() || is_peer()
    }

    /// Something came back by the connection.
    pub(super) fn note_tcp_works(&mut self, peer: SocketAddr, now: Instant) {
        self.tcp_peers.note(peer, true, now);
    }

    /// "if the attempt to establish the connection generates either an ICMP Protocol Not Supported,
    /// or results in a TCP reset, the element SHOULD retry the request, using UDP" (section 18.1.1);
    /// so do we where it is silent. False where there is nothing to try again.
    pub(super) fn retry_over_udp(&mut self, client: ClientId, now: Instant) -> bool {
        let Some(&(server, index)) = self.by_client.get(&client) else {
            return false;
        };
        let context = self.contexts.get(&server);
        let branch = context.and_then(|context| context.branches.get(index));
        let unheard = |branch: &&Branch| {
            branch.instead_of_udp && branch.progress == Progress::Calling { cancel: false }
        };
        let Some(branch) = branch.filter(unheard) else {
            return false;
        };
        let flow = Flow {
            transport: Transport::Udp,
            ..branch.flow
        };
        let request = over(&branch.request, Transport::Udp);
        let patience = branch.patience;
        self.tcp_peers.note(flow.peer, false, now);
        let Some(again) = self.transactions.send_request(&request, flow, now) else {
            return false;
        };
        self.counters.routing.large_fell_back += 1;
        self.start_patience(again, &request, patience, now);
        self.by_client.insert(again, (server, index));
        let context = self.contexts.get_mut(&server);
        if let Some(branch) = context.and_then(|context| context.branches.get_mut(index)) {
            branch.client = again;
            branch.request = request;
            branch.flow = flow;
            branch.instead_of_udp = false;
        }
        true
    }
}

const fn tcp(flow: Flow) -> Flow {
    Flow {
        transport: Transport::Tcp,
        ..flow
    }
}

/// "If this causes a change in the transport protocol from the one indicated in the top Via, the
/// value in the top Via MUST be changed" (section 18.1.1).
fn over(copy: &Message, transport: Transport) -> Message {
    let via = copy.header(HeaderName::Via).unwrap_or_default();
    // Ours is a field of its own, and begins with "SIP/2.0/UDP " or "SIP/2.0/TCP ".
    let rest = via.iter().position(|byte| *byte == b' ');
    let rest = rest.and_then(|at| via.get(at..)).unwrap_or_default();
    let value = [b"SIP/2.0/", transport.via_name().as_bytes(), rest].concat();
    let mut edit = copy.edit();
    edit.replace_first_value(HeaderName::Via, value);
    if copy.count(HeaderName::ContentLength) == 0 {
        edit.set(HeaderName::ContentLength, copy.body().len().to_string());
    }
    edit.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_believed_for_ten_minutes_and_bounded() {
        #[expect(clippy::disallowed_methods, reason = "any instant will do")]
        let now = Instant::now();
        let peer = |number: u32| SocketAddr::from((number.to_be_bytes(), 5060));
        let mut peers = TcpPeers::default();
        for number in 0..2000 {
            peers.note(peer(number), number % 2 == 0, now);
        }
        assert_eq!(peers.known.len(), MAX_PEERS);
        assert_eq!(peers.takes(peer(0), now), Some(true));
        assert_eq!(peers.takes(peer(1), now), Some(false));
        assert_eq!(peers.takes(peer(1999), now), None);
        // One that is known changes its mind, however full the table is.
        peers.note(peer(1), true, now);
        assert_eq!(peers.takes(peer(1), now), Some(true));
        let later = now + BELIEVED;
        assert_eq!(peers.takes(peer(0), later), None);
        peers.note(peer(1999), false, later);
        assert_eq!(peers.takes(peer(1999), later), Some(false));
        assert_eq!(peers.known.len(), 1, "what is old has gone");
    }
}
