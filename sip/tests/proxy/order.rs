//! Messages of one call leave in the order in which they came, however many are taken in before
//! anything is sent. (Between worker processes of others a 200 overtakes its 180.)

#![expect(clippy::expect_used, reason = "a test may panic")]

use std::collections::BTreeMap;

use bytes::Bytes;
use sip::hop::Transmit;
use sip::message::Message;

use crate::world::{ALICE, BOB, World, answer, find, in_dialog, invite, parse};

const CALLS: usize = 50;

/// A message of the call with this number.
fn numbered(message: &[u8], number: usize) -> Vec<u8> {
    let text = String::from_utf8_lossy(message);
    text.replace("call-1", &format!("call-{number}"))
        .replace("z9hG4bK", &format!("z9hG4bK{number}x"))
        .into_bytes()
}

fn take_in(world: &mut World, from: &str, message: &[u8]) {
    let hop = world.hop(from);
    let bytes = Bytes::copy_from_slice(message);
    world
        .proxy
        .handle_message(bytes, &hop, &mut world.media, world.now);
}

/// What was sent to this phone, call by call.
fn by_call(sent: &[Transmit], to: &str) -> BTreeMap<String, Vec<String>> {
    let mut calls: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for transmit in sent.iter().filter(|t| t.flow.peer.to_string() == to) {
        let message = parse(transmit);
        let call = String::from_utf8_lossy(message.call_id().expect("Call-ID")).into_owned();
        let what = match message.status() {
            Some(status) => status.to_string(),
            None => format!("{:?}", message.method()),
        };
        calls.entry(call).or_default().push(what);
    }
    calls
}

#[test]
fn messages_of_one_call_leave_in_the_order_in_which_they_came() {
    let mut world = World::with_bob();
    let to_bob: Vec<Message> = (0..CALLS)
        .map(|number| {
            let invite = numbered(&invite("sip:bob@example.com"), number);
            find(&world.receive(ALICE, &invite), BOB)
        })
        .collect();
    for invite in &to_bob {
        for (status, reason) in [(180, "Ringing"), (183, "Session Progress"), (200, "OK")] {
            take_in(&mut world, BOB, &answer(invite, status, reason, "b1"));
        }
    }
    let sent = world.drain();
    let calls = by_call(&sent, ALICE);
    assert_eq!(calls.len(), CALLS);
    for (call, seen) in calls {
        assert_eq!(seen, ["180", "183", "200"], "{call}");
    }

    let answers = sent.iter().map(parse);
    let ok = answers.filter(|message| message.status() == Some(200));
    for ok in ok.collect::<Vec<_>>() {
        let call = String::from_utf8_lossy(ok.call_id().expect("Call-ID")).into_owned();
        let number = call.trim_start_matches("call-").parse().expect("a number");
        for (method, cseq) in [("ACK", 1), ("INFO", 2), ("BYE", 3)] {
            let request = numbered(&in_dialog(method, cseq, &ok, true), number);
            take_in(&mut world, ALICE, &request);
        }
    }
    let calls = by_call(&world.drain(), BOB);
    assert_eq!(calls.len(), CALLS);
    for (call, seen) in calls {
        assert_eq!(seen, ["Ack", "Info", "Bye"], "{call}");
    }
}
