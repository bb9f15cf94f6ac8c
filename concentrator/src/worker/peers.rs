//! What other concentrators say, and the worker's answer.

use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{BATCH, Worker, now};
use crate::core_link::{Asked, PeerInput};

impl Worker {
    /// One input, and what has gathered behind it, before the next flush.
    pub(super) fn handle_peers(
        &mut self,
        first: PeerInput,
        inputs: &mut mpsc::Receiver<PeerInput>,
    ) {
        self.handle_peer(first);
        for _ in 0..BATCH {
            let Ok(input) = inputs.try_recv() else {
                return;
            };
            self.handle_peer(input);
        }
    }

    fn handle_peer(&mut self, input: PeerInput) {
        match input {
            PeerInput::Up {
                peer,
                owner,
                outlet,
            } => {
                info!(peer, owner = owner.0, "another concentrator can be reached");
                self.peers.handle_up(peer, owner, outlet);
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
                Asked::Failed(flow) => {
                    let calls = &mut self.calls;
                    self.proxy.handle_transport_error(&flow, calls, now());
                }
            },
        }
    }
}
