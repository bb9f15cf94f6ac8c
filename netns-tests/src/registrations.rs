//! Many phones, each at an address of its own: what each says to register, and the record that a concentrator
//! makes of it.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use sip::cookie::Keys;
use sip::hop::{Flow, Hop, Transport};
use sip::message::Message;
use sip::registrar::record::{Clock, encode_version};
use sip::registrar::{AddressOfRecord, Event, Limits, Registrar};
use wire::gre::TunnelKey;
use wire::mark::{Mark, RelayId};

use crate::service::{KEY1, MARK1};
use crate::topology::two_edges::{PHONE, SERVICE};

/// Each phone's port.
pub(crate) const PORT: u16 = 20_000;
/// Records made by one registrar, which is small then.
const CHUNK: u32 = 10_000;

/// When the phones of a fill have registered, and for how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Registered {
    pub(crate) ago: Duration,
    pub(crate) expires_s: u32,
}

/// A REGISTER of one of many users at the one phone, for so many seconds.
pub(crate) fn of_user(user: &str, expires_s: u32) -> String {
    format!(
        "REGISTER sip:example.com SIP/2.0\r\n\
         Via: SIP/2.0/UDP {PHONE}:5070;rport;branch=z9hG4bK{user}\r\n\
         Max-Forwards: 70\r\n\
         From: <sip:{user}@example.com>;tag=1\r\n\
         To: <sip:{user}@example.com>\r\n\
         Call-ID: {user}\r\n\
         CSeq: 1 REGISTER\r\n\
         Contact: <sip:{user}@{PHONE}:5070>\r\n\
         Expires: {expires_s}\r\n\
         Content-Length: 0\r\n\r\n"
    )
}

/// Subject and record of each phone, as the concentrator with that number would have written them.
pub(crate) fn records(
    numbers: std::ops::Range<u32>,
    when: Registered,
) -> impl Iterator<Item = (String, Vec<u8>)> + Send {
    let starts = numbers.clone().step_by(CHUNK as usize);
    starts.flat_map(move |start| {
        let chunk = start..numbers.end.min(start + CHUNK);
        chunk_of_records(chunk, when).unwrap_or_default()
    })
}

fn chunk_of_records(
    numbers: std::ops::Range<u32>,
    when: Registered,
) -> Result<Vec<(String, Vec<u8>)>> {
    let handler = u16::try_from(numbers.start / CHUNK % 3)? + 1;
    let now = Instant::now();
    let unix = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let clock = Clock {
        at: now,
        unix_ms: u64::try_from(unix.saturating_sub(when.ago).as_millis())?,
    };
    let mut registrar = Registrar::new(Limits::default(), Keys::new([7; 32], None));
    registrar.share(handler, clock);
    let mut records = Vec::new();
    for number in numbers {
        let request = register(number, 1, when.expires_s);
        let request = Message::parse(request.into())?;
        let user = format!("sip:user{number}@example.com");
        let user = AddressOfRecord::from_uri(user.as_bytes()).context("a user")?;
        let answer = registrar.handle_register(&request, &user, &hop(number), now);
        ensure!(answer.status() == Some(200), "a REGISTER was refused");
        while let Some(event) = registrar.poll_event() {
            let Event::BindingAdded(user, binding) = event else {
                continue;
            };
            let subject = concentrator::cluster::subject_of("sipcast", &user, &binding);
            records.push((subject, encode_version(&user, &binding, false, &clock)));
        }
    }
    Ok(records)
}

fn hop(number: u32) -> Hop {
    let mark = Mark::new(MARK1).unwrap_or_default();
    Hop {
        flow: Flow {
            transport: Transport::Udp,
            peer: (address(number), PORT).into(),
            local: (SERVICE, 5060).into(),
            connection: None,
        },
        relay: Some(RelayId {
            key: TunnelKey(KEY1),
            mark,
        }),
    }
}

pub(crate) fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 0)) + number)
}

/// A phone behind a NAT, as a common one registers.
pub(crate) fn register(number: u32, cseq: u32, expires_s: u32) -> Vec<u8> {
    format!(
        "REGISTER sip:example.com SIP/2.0\r\n\
         Via: SIP/2.0/UDP 192.168.1.17:5060;branch=z9hG4bK{number:08x}.{cseq};rport\r\n\
         Max-Forwards: 70\r\n\
         From: <sip:user{number}@example.com>;tag={number:08x}\r\n\
         To: <sip:user{number}@example.com>\r\n\
         Call-ID: {number:08x}-5f1a-4f9e-9d0e-27a1c0ffee00\r\n\
         CSeq: {cseq} REGISTER\r\n\
         Contact: <sip:user{number}@192.168.1.17:5060>;+sip.instance=\"<urn:uuid:{number:08x}-0000-1000-8000-000a95a0e128>\"\r\n\
         Expires: {expires_s}\r\n\
         Content-Length: 0\r\n\r\n"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_phone_has_a_record_under_a_subject_of_its_own() {
        let when = Registered {
            ago: Duration::ZERO,
            expires_s: 3600,
        };
        let all: Vec<_> = records(9_990..10_010, when).collect();
        let subjects: BTreeSet<_> = all.iter().map(|(subject, _)| subject).collect();
        assert_eq!((all.len(), subjects.len()), (20, 20));
        assert!(all.iter().all(|(subject, record)| {
            subject.starts_with("$KV.sipcast.b.") && record.len() > 200
        }));
    }
}
