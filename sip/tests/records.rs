//! Bindings as bytes: what is written comes back, whoever wrote it and whatever is left of it.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and any instant will do to begin with"
)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sip::hop::{ConnectionId, Flow, Transport};
use sip::registrar::record::{Clock, Record, RecordError, encode, encode_version, key};
use sip::registrar::{AddressOfRecord, Binding, Origin, Path};
use wire::gre::TunnelKey;
use wire::mark::{Mark, RelayId};

#[test]
fn what_was_written_is_read_again_on_another_machine() {
    let here = clock();
    // Its monotonic clock started at another time.
    let there = Clock {
        at: here.at + Duration::from_secs(1000),
        ..here
    };
    for binding in [full(&here), plain(&here)] {
        let bytes = encode(&user(), &binding, &here);
        let record = Record::decode(&bytes, &there).unwrap();
        assert_eq!(record.user, user());
        let shift = Duration::from_secs(1000);
        assert_eq!(record.binding.expires_at, binding.expires_at + shift);
        assert_eq!(record.binding.registered_at, binding.registered_at + shift);
        let same = Binding {
            expires_at: binding.expires_at,
            registered_at: binding.registered_at,
            ..record.binding
        };
        assert_eq!(same, binding);
    }
}

#[test]
fn a_cut_record_is_none_at_every_length_and_no_changed_octet_makes_us_panic() {
    let clock = clock();
    let bytes = encode(&user(), &full(&clock), &clock);
    for length in 0..bytes.len() {
        assert_eq!(
            Record::decode(&bytes[..length], &clock),
            Err(RecordError::Malformed)
        );
    }
    for at in 0..bytes.len() {
        for octet in 0..=255 {
            let mut changed = bytes.clone();
            changed[at] = octet;
            // Most are another record: there is no signature, the file is ours.
            let _ = Record::decode(&changed, &clock);
        }
    }
}

#[test]
fn a_newer_build_may_append_fields_and_a_newer_version_is_named() {
    let clock = clock();
    let bytes = encode(&user(), &plain(&clock), &clock);
    let fields = bytes[0] & 0x1f;
    assert_eq!(bytes[0] & 0xe0, 0x80, "a CBOR array of less than 24 fields");
    let mut longer = bytes.clone();
    longer[0] = 0x80 | (fields + 1);
    longer.extend_from_slice(&[0x63, b'n', b'e', b'w']);
    let read = Record::decode(&longer, &clock).unwrap();
    assert_eq!(read, Record::decode(&bytes, &clock).unwrap());
    let mut version_2 = bytes;
    assert_eq!(std::mem::replace(&mut version_2[1], 2), 1);
    assert_eq!(
        Record::decode(&version_2, &clock),
        Err(RecordError::Version(2))
    );
}

#[test]
fn what_orders_versions_is_kept_and_may_be_missing() {
    let clock = clock();
    let mut shared = plain(&clock);
    shared.origin = Origin {
        stamp_ms: 1_800_000_000_001,
        handler: 3,
        epoch: 1,
    };
    let bytes = encode_version(&user(), &shared, true, &clock);
    let read = Record::decode(&bytes, &clock).unwrap();
    assert!(read.removed);
    assert_eq!(read.binding.origin, shared.origin);
    // As an older build wrote it.
    let mut older = encode(&user(), &plain(&clock), &clock);
    assert_eq!(older.split_off(older.len() - 2), [0xf6, 0xf4]);
    older[0] -= 2;
    let read = Record::decode(&older, &clock).unwrap();
    assert!(!read.removed);
    assert_eq!(read.binding, plain(&clock));
}

#[test]
fn with_outbound_the_instance_and_the_reg_id_are_the_key_else_the_contact() {
    let clock = clock();
    let (mut one, mut other) = (full(&clock), full(&clock));
    other.contact_uri = Bytes::from_static(b"sip:bob@10.0.0.9");
    assert_eq!(key(&user(), &one), key(&user(), &other));
    other.reg_id = 2;
    assert_ne!(key(&user(), &one), key(&user(), &other));
    one.reg_id = 0;
    other.reg_id = 0;
    assert_ne!(key(&user(), &one), key(&user(), &other));
}

fn clock() -> Clock {
    Clock {
        at: Instant::now() + Duration::from_secs(100_000),
        unix_ms: 1_800_000_000_000,
    }
}

fn user() -> AddressOfRecord {
    AddressOfRecord::from_uri(b"sip:b%00b@example.com").unwrap()
}

fn plain(clock: &Clock) -> Binding {
    Binding {
        contact_uri: Bytes::from_static(b"sip:bob@192.168.1.2"),
        parameters: Bytes::new(),
        instance: Bytes::new(),
        reg_id: 0,
        q_thousandths: 1000,
        registered_at: clock.at - Duration::from_secs(60),
        expires_at: clock.at + Duration::from_secs(3540),
        call_id: Bytes::from_static(b"a@b"),
        cseq: 1,
        flow: Flow {
            transport: Transport::Udp,
            peer: SocketAddr::from(([192, 0, 2, 1], 40_000)),
            local: SocketAddr::from(([198, 51, 100, 1], 5060)),
            connection: None,
        },
        relay: None,
        path: Path::default(),
        origin: Origin::default(),
    }
}

/// Every field in use.
fn full(clock: &Clock) -> Binding {
    let parameters = Bytes::from_static(b";+sip.instance=\"<urn:x>\";reg-id=1");
    Binding {
        instance: parameters.slice(15..24),
        parameters,
        reg_id: 1,
        q_thousandths: 700,
        flow: Flow {
            transport: Transport::Wss,
            peer: "[2001:db8::1]:40000".parse().unwrap(),
            local: "[2001:db8::5060]:5061".parse().unwrap(),
            connection: Some(ConnectionId(u64::MAX)),
        },
        relay: Some(RelayId {
            key: TunnelKey(0xffff_ffff),
            mark: Mark::new(63).unwrap(),
        }),
        path: Path::new(vec![
            Bytes::from_static(b"<sip:a@192.0.2.9;lr>"),
            Bytes::from_static(b"<sip:p.example.net;lr;ob>"),
        ]),
        ..plain(clock)
    }
}
