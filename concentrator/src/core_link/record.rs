//! Flows and hops as they go over a link, and back.

use sip::cookie::Owner;
use sip::hop::{ConnectionId, Flow, Hop, Transport};
use sip::proxy::Handover;
use wire::core_link::{FlowRecord, RelayRecord};
use wire::gre::TunnelKey;
use wire::mark::{Mark, RelayId};

pub(super) fn of_flow(flow: &Flow) -> FlowRecord {
    FlowRecord {
        transport: flow.transport.number(),
        peer: flow.peer,
        local: flow.local,
        connection: flow.connection.map(|ConnectionId(id)| id),
    }
}

/// Nothing for a transport that this build does not know.
pub(super) fn flow_of(record: FlowRecord) -> Option<Flow> {
    Some(Flow {
        transport: Transport::from_number(record.transport)?,
        peer: record.peer,
        local: record.local,
        connection: record.connection.map(ConnectionId),
    })
}

pub(super) const fn of_relay(relay: RelayId) -> RelayRecord {
    RelayRecord {
        key: relay.key.0,
        mark: relay.mark.number(),
    }
}

/// A message that came in at a peer; nothing where a field says what cannot be.
pub(super) fn handover(
    own: Owner,
    flow: FlowRecord,
    relay: Option<RelayRecord>,
    message: Vec<u8>,
) -> Option<Handover> {
    let flow = flow_of(flow)?;
    let relay = match relay {
        Some(relay) => Some(RelayId {
            key: TunnelKey(relay.key),
            mark: Mark::new(relay.mark)?,
        }),
        None => None,
    };
    Some(Handover {
        to: own,
        hop: Hop { flow, relay },
        bytes: message.into(),
    })
}
