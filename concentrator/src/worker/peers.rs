//! What other concentrators say, and the worker's answer.

use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{BATCH, Worker, now};
use crate::core_link::{Asked, PeerInput};
use crate::decapsulator::TunnelEnd;

impl Worker {
    /// One input, and what has gathered behind it, before the next flush. The next ones gather as packets in
    /// the tunnel do.
    pub(super) fn handle_peers(
        &mut self,
        first: PeerInput,
        inputs: &mut mpsc::Receiver<PeerInput>,
    ) {
        self.handle_peer(first);
        let handled = 1 + self.handle_peers_waiting(inputs);
        self.pause = self.gathering.observe(handled, handled > BATCH, now());
    }

    /// What has gathered: in the tunnel, and of what others say.
    pub(super) fn handle_gathered(
        &mut self,
        received: usize,
        tunnel: &mut TunnelEnd,
        inputs: &mut mpsc::Receiver<PeerInput>,
    ) {
        self.handle_tunnel(received, tunnel);
        self.handle_peers_waiting(inputs);
    }

    /// What has come; how many there were.
    fn handle_peers_waiting(&mut self, inputs: &mut mpsc::Receiver<PeerInput>) -> usize {
        for handled in 0..BATCH {
            let Ok(input) = inputs.try_recv() else {
                return handled;
            };
            self.handle_peer(input);
        }
        BATCH
    }

    fn handle_peer(&mut self, input: PeerInput) {
        match input {
            PeerInput::Up {
                peer,
                owner,
                outlet,
            } => {
                info!(peer, owner = owner.0, "another concentrator can be reached");
                self.peers.handle_up(peer, owner, outlet, now());
                self.proxy.set_peers(self.peers.alive(), now());
            }
            PeerInput::Down { peer } => {
                warn!(peer, "another concentrator is gone");
                self.peers.handle_down(peer);
                self.proxy.set_peers(self.peers.alive(), now());
            }
            PeerInput::Message { message, .. } => match self.peers.handle_message(message) {
                Asked::Nothing => {}
                Asked::Handle(handover) => {
                    let (bytes, hop) = (handover.bytes, handover.hop);
                    let calls = &mut self.calls;
                    self.proxy.handle_handed_over(bytes, &hop, calls, now());
                }
                Asked::Send(transmit) => self.transports.send(transmit),
                Asked::Merge(record) => {
                    if let Some(cluster) = &mut self.cluster {
                        cluster.handle_told(&record, &mut self.proxy, now());
                    }
                }
                Asked::Failed(flow) => {
                    let calls = &mut self.calls;
                    self.proxy.handle_transport_error(&flow, calls, now());
                }
            },
        }
    }
}
