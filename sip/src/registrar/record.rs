//! A binding as bytes: what a store keeps of it, and what one concentrator tells another.
//!
//! A [`Record`] stands alone: user and contact, time as seconds since 1970 that mean the same on
//! every machine, the flow and the path. It is a CBOR array (RFC 8949) whose first field is the
//! version. A later build appends fields; this one skips those it does not know, and takes those
//! that are missing as empty. [`key`] names the binding, so that the next record of it takes the
//! place of this one; which of two is right among concentrators, `shared.rs` says.
//!
//! Times are in milliseconds since 1970; a [`Clock`] leads to and from [`Instant`]s. In a store of one
//! machine they are that machine's; concentrators that share records have a clock in common.

use std::time::{Duration, Instant};

use bytes::Bytes;
use minicbor::{Decode, Encode};
use thiserror::Error;
use wire::gre::TunnelKey;
use wire::mark::{Mark, RelayId};

use super::{AddressOfRecord, Binding, Origin, Path};
use crate::hop::{ConnectionId, Flow, Transport};

const VERSION: u8 = 1;

/// A moment on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// On the monotonic clock.
    pub at: Instant,
    /// The same in milliseconds since 1970.
    pub unix_ms: u64,
}

impl Clock {
    /// What an instant is in milliseconds since 1970.
    pub fn unix_ms(&self, instant: Instant) -> u64 {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        match instant.checked_duration_since(self.at) {
            Some(later) => self.unix_ms.saturating_add(millis(later)),
            None => self
                .unix_ms
                .saturating_sub(millis(self.at.saturating_duration_since(instant))),
        }
    }

    /// What is too far back for the monotonic clock happened at its beginning.
    pub fn instant(&self, unix_ms: u64) -> Instant {
        if unix_ms >= self.unix_ms {
            let later = Duration::from_millis(unix_ms - self.unix_ms);
            self.at.checked_add(later).unwrap_or(self.at)
        } else {
            let earlier = Duration::from_millis(self.unix_ms - unix_ms);
            self.at.checked_sub(earlier).unwrap_or(self.at)
        }
    }
}

/// Bytes that are no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RecordError {
    /// Not CBOR of this shape.
    #[error("not a binding record")]
    Malformed,
    /// Made by a build that is newer than this one.
    #[error("binding record of version {0}, which this build does not know")]
    Version(u8),
}

/// A binding of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The user.
    pub user: AddressOfRecord,
    /// The binding.
    pub binding: Binding,
    /// It is no more: this is its last version.
    pub removed: bool,
}

#[derive(Encode, Decode)]
struct Layout<'a> {
    #[n(0)]
    version: u8,
    #[cbor(b(1), with = "minicbor::bytes")]
    user: &'a [u8],
    #[cbor(b(2), with = "minicbor::bytes")]
    contact_uri: &'a [u8],
    #[cbor(b(3), with = "minicbor::bytes")]
    parameters: &'a [u8],
    #[cbor(b(4), with = "minicbor::bytes")]
    instance: &'a [u8],
    #[n(5)]
    reg_id: u32,
    #[n(6)]
    q_thousandths: u16,
    #[n(7)]
    registered_ms: u64,
    #[n(8)]
    expires_ms: u64,
    #[cbor(b(9), with = "minicbor::bytes")]
    call_id: &'a [u8],
    #[n(10)]
    cseq: u32,
    /// Transport, peer, local, connection.
    #[n(11)]
    flow: (String, String, String, Option<u64>),
    /// Tunnel key and mark.
    #[n(12)]
    relay: Option<(u32, u8)>,
    /// Each value ended by a line feed, which none can hold.
    #[cbor(n(13), with = "minicbor::bytes")]
    path: Vec<u8>,
    /// Stamp, handler and epoch.
    #[n(14)]
    origin: Option<(u64, u16, u16)>,
    #[n(15)]
    removed: Option<bool>,
}

/// The record of a binding.
pub fn encode(user: &AddressOfRecord, binding: &Binding, clock: &Clock) -> Vec<u8> {
    encode_version(user, binding, false, clock)
}

/// The record of a version of a binding, which may be its last.
pub fn encode_version(
    user: &AddressOfRecord,
    binding: &Binding,
    removed: bool,
    clock: &Clock,
) -> Vec<u8> {
    let mut path = Vec::new();
    for value in binding.path.values() {
        path.extend_from_slice(value);
        path.push(b'\n');
    }
    let origin = &binding.origin;
    let layout = Layout {
        version: VERSION,
        user: user.as_bytes(),
        contact_uri: &binding.contact_uri,
        parameters: &binding.parameters,
        instance: &binding.instance,
        reg_id: binding.reg_id,
        q_thousandths: binding.q_thousandths,
        registered_ms: clock.unix_ms(binding.registered_at),
        expires_ms: clock.unix_ms(binding.expires_at),
        call_id: &binding.call_id,
        cseq: binding.cseq,
        flow: (
            binding.flow.transport.via_name().to_owned(),
            binding.flow.peer.to_string(),
            binding.flow.local.to_string(),
            binding.flow.connection.map(|connection| connection.0),
        ),
        relay: binding
            .relay
            .map(|relay| (relay.key.0, relay.mark.number())),
        path,
        origin: Some(origin.stamp_ms)
            .filter(|stamp_ms| *stamp_ms > 0)
            .map(|stamp_ms| (stamp_ms, origin.handler, origin.epoch)),
        removed: Some(removed),
    };
    let mut out = Vec::with_capacity(384);
    // A vector takes whatever is written to it.
    let _ = minicbor::encode(&layout, &mut out);
    out
}

/// What names a binding of a user: its instance and reg-id with outbound, else its contact.
pub fn key(user: &AddressOfRecord, binding: &Binding) -> Vec<u8> {
    let user = user.as_bytes();
    let mut key = Vec::with_capacity(user.len() + binding.contact_uri.len() + 8);
    key.extend_from_slice(user);
    key.push(0);
    if binding.reg_id == 0 {
        key.extend_from_slice(&binding.contact_uri);
    } else {
        key.push(0);
        key.extend_from_slice(&binding.reg_id.to_be_bytes());
        key.extend_from_slice(&binding.instance);
    }
    key
}

impl Record {
    /// Reads a record.
    pub fn decode(bytes: &[u8], clock: &Clock) -> Result<Self, RecordError> {
        // The version first: what follows is another build's affair if it is not ours.
        let version = first_field(bytes).ok_or(RecordError::Malformed)?;
        if version != VERSION {
            return Err(RecordError::Version(version));
        }
        let layout: Layout<'_> = minicbor::decode(bytes).map_err(|_| RecordError::Malformed)?;
        Self::of(&layout, clock).ok_or(RecordError::Malformed)
    }

    fn of(layout: &Layout<'_>, clock: &Clock) -> Option<Self> {
        let texts = [layout.contact_uri, layout.parameters, layout.call_id];
        let instance_at = find(layout.parameters, layout.instance)?;
        let mut all = Bytes::from(texts.concat());
        let [contact_uri, parameters, call_id] = texts.map(|text| all.split_to(text.len()));
        let relay = match layout.relay {
            None => None,
            Some((key, mark)) => Some(RelayId {
                key: TunnelKey(key),
                mark: Mark::new(mark)?,
            }),
        };
        let (transport, peer, local, connection) = &layout.flow;
        let flow = Flow {
            transport: Transport::from_name(transport.as_bytes())?,
            peer: peer.parse().ok()?,
            local: local.parse().ok()?,
            connection: connection.map(ConnectionId),
        };
        let path = layout.path.split(|byte| *byte == b'\n');
        let path = path.filter(|value| !value.is_empty());
        let binding = Binding {
            instance: parameters.slice(instance_at..instance_at + layout.instance.len()),
            reg_id: layout.reg_id,
            contact_uri,
            parameters,
            q_thousandths: layout.q_thousandths,
            registered_at: clock.instant(layout.registered_ms),
            expires_at: clock.instant(layout.expires_ms),
            call_id,
            cseq: layout.cseq,
            flow,
            relay,
            path: Path::new(path.map(Bytes::copy_from_slice).collect()),
            origin: layout
                .origin
                .map_or_else(Origin::default, |(stamp_ms, handler, epoch)| Origin {
                    stamp_ms,
                    handler,
                    epoch,
                }),
        };
        Some(Self {
            user: AddressOfRecord::from_canonical(layout.user),
            binding,
            removed: layout.removed.unwrap_or_default(),
        })
    }
}

fn first_field(bytes: &[u8]) -> Option<u8> {
    let mut decoder = minicbor::Decoder::new(bytes);
    decoder.array().ok()?;
    decoder.u8().ok()
}

/// Where `part` is in `whole`; an empty one is at the start.
fn find(whole: &[u8], part: &[u8]) -> Option<usize> {
    if part.is_empty() {
        return Some(0);
    }
    memchr::memmem::find(whole, part)
}
