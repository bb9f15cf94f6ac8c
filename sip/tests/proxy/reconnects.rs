//! Phones on connections that break while a call is under way: they open another, register again and repeat what
//! has no final answer, and the call goes on.

#![expect(clippy::expect_used, reason = "a test may panic")]

use std::time::Duration;

use sip::cookie::Owner;
use sip::hop::{ConnectionId, Hop, Transmit, Transport};
use sip::message::Message;
use sip::proxy::media::SessionRef;

use crate::world::{ALICE, BOB, World, answer, find, in_dialog, invite, parse, summary};

const NOTHING: [&str; 0] = [];

/// One of several concentrators.
fn core() -> World {
    let mut core = World::configured(|config| {
        config.owner = Owner(1);
        config.clustered = true;
    });
    core.proxy.set_peers([Owner(2)], core.now);
    core
}

/// By the n-th connection of that phone, which this core has.
fn by_connection(core: &World, of: &str, number: u16) -> Hop {
    let mut hop = core.hop(of);
    hop.flow.transport = Transport::Tcp;
    let first = ConnectionId::first(1, Owner(1));
    hop.flow.connection = Some(ConnectionId(first.0 + u64::from(number)));
    let port = hop.flow.peer.port() + number;
    hop.flow.peer.set_port(port);
    hop
}

fn register(core: &mut World, user: &str, hop: &Hop, cseq: u32) {
    register_for(core, user, hop, cseq, 600);
}

fn register_for(core: &mut World, user: &str, hop: &Hop, cseq: u32, expires_s: u32) {
    let text = format!(
        "REGISTER sip:example.com SIP/2.0\r\nVia: SIP/2.0/TCP 192.168.1.2;branch=z9hG4bKr{user}{cseq}\r\n\
         From: <sip:{user}@example.com>;tag=r\r\nTo: <sip:{user}@example.com>\r\nCall-ID: reg-{user}\r\n\
         CSeq: {cseq} REGISTER\r\nMax-Forwards: 70\r\nContact: <sip:{user}@192.168.1.2:5060;transport=tcp>\r\n\
         Expires: {expires_s}\r\nContent-Length: 0\r\n\r\n"
    );
    let sent = core.receive_from(hop, text.as_bytes());
    assert_eq!(parse(&sent[0]).status(), Some(200));
}

fn connection(hop: &Hop) -> ConnectionId {
    hop.flow.connection.expect("a connection")
}

fn to(sent: &[Transmit], hop: &Hop) -> Vec<Message> {
    let there = sent.iter().filter(|sent| sent.flow == hop.flow);
    there.map(parse).collect()
}

fn branch(message: &Message) -> Vec<u8> {
    let via = message.top_via().expect("Via");
    via.branch().expect("a branch").to_vec()
}

fn bob_answers(request: &Message, status: u16) -> Vec<u8> {
    answer(request, status, "Any", "b1")
}

/// He answers it by this hop, and Alice acknowledges.
fn bob_takes_the_call(core: &mut World, hop: &Hop, invite: &Message) {
    let sent = core.receive_from(hop, &bob_answers(invite, 200));
    assert_eq!(summary(&sent), ["200 -> alice"]);
    let ok = parse(&sent[0]);
    let sent = core.receive(ALICE, &in_dialog("ACK", 1, &ok, true));
    assert_eq!(to(&sent, hop).len(), 1);
    core.assert_all_forgotten();
}

#[test]
fn what_is_under_way_to_a_connection_that_breaks_follows_the_phone() {
    for (returns, closed) in [(true, true), (true, false), (false, true)] {
        let mut core = core();
        let [old, new] = [1, 2].map(|number| by_connection(&core, BOB, number));
        register(&mut core, "bob", &old, 1);
        let sent = core.receive(ALICE, &invite("sip:bob@example.com"));
        let first = to(&sent, &old).remove(0);
        let sent = if closed {
            core.connection_closed(connection(&old))
        } else {
            core.transport_error(&old.flow)
        };
        assert_eq!(summary(&sent), NOTHING, "the caller need not know");
        if !returns {
            let sent = core.advance(Duration::from_millis(12_200));
            assert_eq!(summary(&sent), ["480 -> alice"]);
            assert_eq!(core.proxy.counters().not_returned, 1);
            continue;
        }
        register(&mut core, "bob", &new, 2);
        let sent = core.advance(Duration::from_millis(200));
        let again = to(&sent, &new);
        assert_eq!(again.len(), 1, "closed: {closed}");
        assert_eq!(branch(&again[0]), branch(&first));
        // What ends the old one ends nothing else.
        assert_eq!(summary(&core.connection_closed(connection(&old))), NOTHING);
        bob_takes_the_call(&mut core, &new, &again[0]);
    }
}

/// Between the end of a phone's connection and its next REGISTER there is no binding, and still it is not gone.
#[test]
fn a_new_call_waits_for_a_phone_that_has_just_lost_its_connection() {
    for alone in [false, true] {
        for returns in [true, false] {
            let mut core = if alone { World::new() } else { core() };
            let [old, new] = [1, 2].map(|number| by_connection(&core, BOB, number));
            register(&mut core, "bob", &old, 1);
            core.connection_closed(connection(&old));
            core.advance(Duration::from_secs(2));
            let sent = core.receive(ALICE, &invite("sip:bob@example.com"));
            assert_eq!(summary(&sent), ["100 -> alice"]);
            assert_eq!(core.proxy.waiting_for_return(), 1);
            if !returns {
                let sent = core.advance(Duration::from_millis(10_200));
                assert_eq!(summary(&sent), ["480 -> alice"], "12 s after it was lost");
                assert_eq!(core.proxy.counters().not_returned, 1);
                continue;
            }
            register(&mut core, "bob", &new, 2);
            let sent = core.advance(Duration::from_millis(200));
            let there = to(&sent, &new);
            assert_eq!(there.len(), 1, "alone: {alone}");
            bob_takes_the_call(&mut core, &new, &there[0]);
        }
    }
}

#[test]
fn nobody_waits_for_a_phone_that_has_said_good_bye_or_was_away_for_too_long() {
    for good_bye in [true, false] {
        let mut core = core();
        let old = by_connection(&core, BOB, 1);
        register(&mut core, "bob", &old, 1);
        if good_bye {
            register_for(&mut core, "bob", &old, 2, 0);
        }
        core.connection_closed(connection(&old));
        core.advance(Duration::from_secs(if good_bye { 0 } else { 13 }));
        let sent = core.receive(ALICE, &invite("sip:bob@example.com"));
        assert_eq!(summary(&sent), ["404 -> alice"], "good bye: {good_bye}");
    }
}

#[test]
fn a_call_that_waits_for_a_phone_can_be_given_up() {
    let mut core = core();
    let old = by_connection(&core, BOB, 1);
    register(&mut core, "bob", &old, 1);
    core.connection_closed(connection(&old));
    let call = invite("sip:bob@example.com");
    core.receive(ALICE, &call);
    let cancel = String::from_utf8(call)
        .expect("text")
        .replace("INVITE", "CANCEL");
    let sent = core.receive(ALICE, cancel.as_bytes());
    assert_eq!(summary(&sent), ["200 -> alice", "487 -> alice"]);
    assert_eq!(core.proxy.waiting_for_return(), 0);
}

/// What was under way over the link is lost with it, and the connection is not.
#[test]
fn what_is_under_way_to_a_core_that_is_back_goes_there_again() {
    for times in [1, 2] {
        let mut core = core();
        let mut there = by_connection(&core, BOB, 1);
        there.flow.connection = Some(ConnectionId::first(2, Owner(2)));
        register(&mut core, "bob", &there, 1);
        let sent = core.receive(ALICE, &invite("sip:bob@example.com"));
        let first = to(&sent, &there).remove(0);
        for _ in 0..times {
            core.proxy.set_peers([], core.now);
            assert_eq!(summary(&core.advance(Duration::from_secs(3))), NOTHING);
            core.proxy.set_peers([Owner(2)], core.now);
            let again = to(&core.advance(Duration::from_millis(200)), &there);
            assert_eq!(again.len(), 1, "each time that it is back, once");
            assert_eq!(branch(&again[0]), branch(&first));
            assert_eq!(to(&core.advance(Duration::from_secs(1)), &there).len(), 0);
        }
        let sent = core.receive_from(&there, &bob_answers(&first, 200));
        assert_eq!(summary(&sent), ["200 -> alice"]);
    }
}

/// A NAT that forgets: the phone's next REGISTER comes from another port.
#[test]
fn what_is_under_way_over_udp_follows_a_phone_whose_nat_has_forgotten_it() {
    for heard in [false, true] {
        let mut core = World::new();
        let old = core.hop(BOB);
        let mut new = core.hop(BOB);
        new.flow.peer.set_port(old.flow.peer.port() + 7);
        register(&mut core, "bob", &old, 1);
        let sent = core.receive(ALICE, &invite("sip:bob@example.com"));
        let first = to(&sent, &old).remove(0);
        if heard {
            let sent = core.receive_from(&old, &bob_answers(&first, 180));
            assert_eq!(summary(&sent), ["180 -> alice"]);
        }
        register(&mut core, "bob", &new, 2);
        let sent = core.advance(Duration::from_millis(200));
        let again = to(&sent, &new);
        assert_eq!(again.len(), 1, "heard: {heard}");
        assert_eq!(branch(&again[0]), branch(&first));
        assert_eq!(core.proxy.counters().sent_after_return, 1);
        // A refresh is no move.
        register(&mut core, "bob", &new, 3);
        let sent = core.advance(Duration::from_millis(200));
        assert_eq!(core.proxy.counters().sent_after_return, 1);
        assert_eq!(to(&sent, &old).len(), 0);
        let sent = core.receive_from(&new, &bob_answers(&again[0], 200));
        assert_eq!(summary(&sent), ["200 -> alice"]);
        let ok = parse(&sent[0]);
        let sent = core.receive(ALICE, &in_dialog("ACK", 1, &ok, true));
        assert_eq!(to(&sent, &new).len(), 1);
        // The same for a BYE.
        let sent = core.receive(ALICE, &in_dialog("BYE", 2, &ok, true));
        assert_eq!(to(&sent, &new).len(), 1);
        register(&mut core, "bob", &old, 4);
        let sent = core.advance(Duration::from_millis(200));
        let bye = to(&sent, &old).remove(0);
        let sent = core.receive_from(&old, &bob_answers(&bye, 200));
        assert_eq!(summary(&sent), ["200 -> alice"]);
        core.assert_all_forgotten();
    }
}

/// One that was cut off has not heard that its connections are dead.
#[test]
fn a_request_that_nobody_answers_follows_a_phone_that_has_registered_elsewhere() {
    let mut core = core();
    let [old, new] = [1, 2].map(|number| by_connection(&core, BOB, number));
    register(&mut core, "bob", &old, 1);
    let sent = core.receive(ALICE, &invite("sip:bob@example.com"));
    let first = to(&sent, &old).remove(0);
    assert_eq!(summary(&core.advance(Duration::from_secs(2))), NOTHING);
    register(&mut core, "bob", &new, 2);
    let sent = core.advance(Duration::from_millis(200));
    let again = to(&sent, &new);
    assert_eq!(again.len(), 1);
    assert_eq!(branch(&again[0]), branch(&first));
    assert_eq!(core.proxy.counters().sent_after_return, 1);
    // One that has answered is left alone.
    core.receive_from(&new, &bob_answers(&again[0], 180));
    assert_eq!(summary(&core.advance(Duration::from_secs(15))), NOTHING);
}

#[test]
fn a_bye_to_a_connection_that_is_dead_waits_for_the_phone() {
    let mut core = core();
    let [old, new] = [1, 2].map(|number| by_connection(&core, BOB, number));
    register(&mut core, "bob", &old, 1);
    let sent = core.receive(ALICE, &invite("sip:bob@example.com"));
    let to_bob = to(&sent, &old).remove(0);
    let sent = core.receive_from(&old, &bob_answers(&to_bob, 200));
    let ok = find(&sent, ALICE);
    core.receive(ALICE, &in_dialog("ACK", 1, &ok, true));
    core.connection_closed(connection(&old));
    let sent = core.receive(ALICE, &in_dialog("BYE", 2, &ok, true));
    assert_eq!(to(&sent, &old).len(), 1);
    assert_eq!(summary(&core.transport_error(&old.flow)), NOTHING);
    register(&mut core, "bob", &new, 2);
    let sent = core.advance(Duration::from_millis(200));
    let bye = to(&sent, &new).remove(0);
    let sent = core.receive_from(&new, &bob_answers(&bye, 200));
    assert_eq!(summary(&sent), ["200 -> alice"]);
    core.assert_all_forgotten();
}

#[test]
fn a_caller_that_repeats_its_invite_by_another_connection_gets_the_answer_there() {
    for accepted_before in [false, true] {
        let mut core = core();
        core.register(BOB, "sip:bob@192.168.1.2:5060", "bob");
        let [old, new] = [1, 2].map(|number| by_connection(&core, ALICE, number));
        let sent = core.receive_from(&old, &invite("sip:bob@example.com"));
        let to_bob = find(&sent, BOB);
        core.receive(BOB, &bob_answers(&to_bob, 180));
        if accepted_before {
            core.receive(BOB, &bob_answers(&to_bob, 200));
        }
        let sent = core.connection_closed(connection(&old));
        assert_eq!(summary(&sent), NOTHING, "Bob's phone rings on");
        let sent = core.receive_from(&new, &invite("sip:bob@example.com"));
        let said = to(&sent, &new);
        assert!(said.iter().all(|message| message.status() < Some(300)));
        assert_eq!(said.len(), sent.len());
        // Bob repeats it until the ACK comes.
        let sent = core.receive(BOB, &bob_answers(&to_bob, 200));
        assert_eq!(to(&sent, &new).len(), 1, "before: {accepted_before}");
        core.assert_all_forgotten();
    }
}

#[test]
fn a_caller_that_does_not_come_back_has_hung_up_unless_it_is_elsewhere() {
    for elsewhere in [false, true] {
        let mut core = core();
        core.register(BOB, "sip:bob@192.168.1.2:5060", "bob");
        let old = by_connection(&core, ALICE, 1);
        register(&mut core, "alice", &old, 1);
        let sent = core.receive_from(&old, &invite("sip:bob@example.com"));
        let to_bob = find(&sent, BOB);
        core.receive(BOB, &bob_answers(&to_bob, 180));
        core.connection_closed(connection(&old));
        if elsewhere {
            let mut there = by_connection(&core, ALICE, 2);
            there.flow.connection = Some(ConnectionId::first(1, Owner(2)));
            register(&mut core, "alice", &there, 2);
        }
        let sent = core.advance(Duration::from_millis(12_200));
        let expected: &[&str] = if elsewhere { &[] } else { &["CANCEL -> bob"] };
        assert_eq!(summary(&sent), expected, "elsewhere: {elsewhere}");
        core.assert_all_forgotten();
    }
}

/// The answer was lost with the connection; over UDP Bob's transaction is remembered for Timer K.
#[test]
fn a_bye_that_comes_again_after_its_answer_goes_on_again() {
    let mut core = core();
    core.register(BOB, "sip:bob@192.168.1.2:5060", "bob");
    let [old, new] = [1, 2].map(|number| by_connection(&core, ALICE, number));
    let sent = core.receive_from(&old, &invite("sip:bob@example.com"));
    let to_bob = find(&sent, BOB);
    let sent = core.receive(BOB, &bob_answers(&to_bob, 200));
    let ok = parse(&sent[0]);
    core.receive_from(&old, &in_dialog("ACK", 1, &ok, true));
    let bye = in_dialog("BYE", 2, &ok, true);
    let sent = core.receive_from(&old, &bye);
    core.receive(BOB, &bob_answers(&find(&sent, BOB), 200));
    core.connection_closed(connection(&old));
    let sent = core.receive_from(&new, &bye);
    assert_eq!(summary(&sent), ["BYE -> bob"]);
    let sent = core.receive(BOB, &bob_answers(&parse(&sent[0]), 200));
    assert_eq!(to(&sent, &new).len(), 1);
    core.assert_all_forgotten();
}

/// This core was cut off, and another has had the rest of the call; the relay tells the end of its session.
#[test]
fn an_invite_whose_call_has_ended_elsewhere_waits_no_longer() {
    let mut core = core();
    core.register(BOB, "sip:bob@192.168.1.2:5060", "bob");
    let sent = core.receive(ALICE, &invite("sip:bob@example.com"));
    core.receive(BOB, &bob_answers(&find(&sent, BOB), 180));
    let relay = core.hop(BOB).relay.expect("a relay");
    let session = *core.media.open.iter().next().expect("a session");
    core.media.unanswered.clear();
    let session = SessionRef { relay, session };
    let (media, now) = (&mut core.media, core.now);
    core.proxy.handle_ended_elsewhere(session, media, now);
    assert_eq!(summary(&core.drain()), NOTHING, "nobody is told");
    assert_eq!(core.proxy.contexts(), 0);
    assert_eq!(core.proxy.counters().ended_elsewhere, 1);
    core.assert_all_forgotten();
}

#[test]
fn a_200_that_comes_again_after_the_bye_makes_no_call_to_be_ended() {
    let mut core = core();
    core.proxy.remember_dialogs(10);
    core.register(BOB, "sip:bob@192.168.1.2:5060", "bob");
    let (ok, to_bob) = core.call();
    assert_eq!(core.proxy.remembered(), 1);
    let sent = core.receive(ALICE, &in_dialog("BYE", 2, &ok, true));
    core.receive(BOB, &bob_answers(&find(&sent, BOB), 200));
    assert_eq!(core.proxy.remembered(), 0);
    core.receive(BOB, &bob_answers(&to_bob, 200));
    assert_eq!(core.proxy.remembered(), 0);
}
