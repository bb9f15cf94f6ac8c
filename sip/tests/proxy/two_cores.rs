//! Two cores with the same keys and the same bindings, and a network that hands each message of a
//! call to either of them: the call goes on whatever core got what, and the phones see nothing
//! that RFC 3261 would not show them.

#![expect(clippy::expect_used, reason = "a test may panic")]

use std::time::Duration;

use sip::cookie::{Keys, Owner};
use sip::hop::{ConnectionId, Transmit, Transport};
use sip::message::{HeaderName, Message, Method};
use sip::proxy::Counters;

use crate::world::{
    ALICE, BOB, BOB_DESK, World, answer, find, in_dialog, invite, parse, request, summary,
};

/// Two cores, and which of them gets each message.
struct Pair {
    cores: [World; 2],
    /// Bit n: the core that gets message n.
    mask: u32,
    received: u32,
}

impl Pair {
    /// Both cores know Bob and his keys; the n-th message goes to the core that bit n of `mask`
    /// names.
    fn new(mask: u32) -> Self {
        Self::with_keys(mask, [(); 2].map(|()| Keys::new([7; 32], None)))
    }

    /// Both live and have a link with each other.
    fn linked(mask: u32) -> Self {
        let mut pair = Self::with_keys(mask, [(); 2].map(|()| Keys::new([7; 32], None)));
        let now = pair.cores[0].now;
        pair.cores[0].proxy.set_peers([Owner(2)], now);
        pair.cores[1].proxy.set_peers([Owner(1)], now);
        pair
    }

    fn with_keys(mask: u32, keys: [Keys; 2]) -> Self {
        let mut owner = 0;
        let cores = keys.map(|keys| {
            owner += 1;
            let mut core = World::configured(|config| {
                config.keys = keys;
                config.owner = Owner(owner);
                config.clustered = true;
            });
            core.register(BOB, "sip:bob@192.168.1.2:5060", "bob");
            core.media.shared = true;
            core
        });
        Self {
            cores,
            mask,
            received: 0,
        }
    }

    fn receive(&mut self, from: &str, bytes: &[u8]) -> Vec<Transmit> {
        let core = (self.mask >> self.received & 1) as usize;
        self.received += 1;
        self.receive_at(core, from, bytes)
    }

    /// The media are the same for both: one holds them at a time.
    fn receive_at(&mut self, core: usize, from: &str, bytes: &[u8]) -> Vec<Transmit> {
        let media = self.take_media();
        self.cores[core].media = media;
        let mut sent = self.cores[core].receive(from, bytes);
        while let Some(handover) = self.cores[core].proxy.poll_handover() {
            let (media, other) = (self.take_media(), 1 - core);
            assert_eq!(handover.to, Owner(other as u16 + 1));
            self.cores[other].media = media;
            sent.extend(self.cores[other].handed_over(&handover));
            assert_eq!(self.cores[other].proxy.poll_handover(), None, "one hop");
        }
        sent
    }

    fn take_media(&mut self) -> crate::world::RecordingMedia {
        let holder = self.cores.iter().position(|core| core.media.in_use());
        std::mem::take(&mut self.cores[holder.unwrap_or(0)].media)
    }

    fn open_sessions(&mut self) -> Vec<u64> {
        let media = self.take_media();
        let open = media.open.iter().copied().collect();
        self.cores[0].media = media;
        open
    }

    /// The message reaches the other party, and it is the only one that does.
    fn delivered(&mut self, from: &str, bytes: &[u8], expected: &str) -> Message {
        let sent = self.receive(from, bytes);
        let trying = |line: &String| line.starts_with("100 ");
        let lines: Vec<String> = summary(&sent).into_iter().filter(|l| !trying(l)).collect();
        assert_eq!(lines, [expected], "mask {:b}", self.mask);
        let last = sent.iter().rfind(|sent| parse(sent).status() != Some(100));
        let message = parse(last.expect("one was sent"));
        message.check().expect("well-formed");
        if message.is_request() {
            assert_eq!(
                message.count(HeaderName::Route),
                0,
                "no Route of ours is left"
            );
            assert_eq!(message.max_forwards(), Ok(Some(69)));
        } else {
            let via = message.top_via().expect("the receiver's own Via");
            assert_eq!(via.host.to_string(), "192.168.1.2");
        }
        message
    }

    /// An hour later neither core knows anything, whoever saw what.
    fn assert_all_forgotten(&mut self) {
        for core in 0..2 {
            let media = self.take_media();
            self.cores[core].media = media;
            self.cores[core].advance(Duration::from_secs(3600));
        }
        for core in 0..2 {
            let media = self.take_media();
            self.cores[core].media = media;
            self.cores[core].assert_all_forgotten();
        }
    }

    fn counted(&self, count: impl Fn(Counters) -> u64) -> u64 {
        self.cores
            .iter()
            .map(|core| count(core.proxy.counters()))
            .sum()
    }
}

fn bob_answers(request: &Message, status: u16) -> Vec<u8> {
    answer(request, status, "Any", "b1")
}

/// Reliable provisional response (RFC 3262), as far as a proxy sees one.
fn ringing(request: &Message) -> Vec<u8> {
    bob_answers(request, 180)
}

#[test]
fn a_whole_call_completes_for_every_way_to_deal_its_messages_to_two_cores() {
    const MESSAGES: u32 = 13;
    // The INVITE goes to the first core; which one is called so does not matter.
    for mask in (0..1 << MESSAGES).step_by(2) {
        let mut pair = Pair::new(mask);
        let to_bob = pair.delivered(ALICE, &invite("sip:bob@example.com"), "INVITE -> bob");
        let early = pair.delivered(BOB, &ringing(&to_bob), "180 -> alice");
        let prack = pair.delivered(ALICE, &in_dialog("PRACK", 2, &early, true), "PRACK -> bob");
        pair.delivered(BOB, &bob_answers(&prack, 200), "200 -> alice");
        let update = pair.delivered(
            ALICE,
            &in_dialog("UPDATE", 3, &early, true),
            "UPDATE -> bob",
        );
        pair.delivered(BOB, &bob_answers(&update, 200), "200 -> alice");
        let ok = pair.delivered(BOB, &bob_answers(&to_bob, 200), "200 -> alice");
        pair.delivered(ALICE, &in_dialog("ACK", 1, &ok, true), "ACK -> bob");
        let again = pair.delivered(BOB, &in_dialog("INVITE", 1, &ok, false), "INVITE -> alice");
        pair.delivered(ALICE, &answer(&again, 200, "OK", "a1"), "200 -> bob");
        pair.delivered(BOB, &in_dialog("ACK", 1, &ok, false), "ACK -> alice");
        assert_eq!(pair.open_sessions().len(), 1, "mask {mask:b}");
        let bye = pair.delivered(ALICE, &in_dialog("BYE", 4, &ok, true), "BYE -> bob");
        pair.delivered(BOB, &bob_answers(&bye, 200), "200 -> alice");
        assert_eq!(pair.received, MESSAGES);
        assert!(pair.open_sessions().is_empty(), "mask {mask:b}");
        assert_eq!(pair.counted(|counters| counters.forged_responses), 0);
        // Walking through an hour of both cores' timers for each of them takes too long.
        if mask % 128 == 0 {
            pair.assert_all_forgotten();
        }
    }
}

#[test]
fn while_both_live_the_one_that_began_a_call_has_all_of_it() {
    const MESSAGES: u32 = 11;
    for mask in (0..1 << MESSAGES).step_by(2) {
        let mut pair = Pair::linked(mask);
        let to_bob = pair.delivered(ALICE, &invite("sip:bob@example.com"), "INVITE -> bob");
        let early = pair.delivered(BOB, &ringing(&to_bob), "180 -> alice");
        let prack = pair.delivered(ALICE, &in_dialog("PRACK", 2, &early, true), "PRACK -> bob");
        pair.delivered(BOB, &bob_answers(&prack, 200), "200 -> alice");
        let ok = pair.delivered(BOB, &bob_answers(&to_bob, 200), "200 -> alice");
        pair.delivered(ALICE, &in_dialog("ACK", 1, &ok, true), "ACK -> bob");
        let again = pair.delivered(BOB, &in_dialog("INVITE", 1, &ok, false), "INVITE -> alice");
        pair.delivered(ALICE, &answer(&again, 200, "OK", "a1"), "200 -> bob");
        pair.delivered(BOB, &in_dialog("ACK", 1, &ok, false), "ACK -> alice");
        let bye = pair.delivered(ALICE, &in_dialog("BYE", 4, &ok, true), "BYE -> bob");
        pair.delivered(BOB, &bob_answers(&bye, 200), "200 -> alice");
        assert_eq!(pair.received, MESSAGES);
        assert!(pair.open_sessions().is_empty(), "mask {mask:b}");
        assert_eq!(pair.cores[1].proxy.contexts(), 0, "mask {mask:b}");
        let at_the_other = u64::from(mask.count_ones());
        assert_eq!(
            pair.counted(|counters| counters.handed_over),
            at_the_other,
            "mask {mask:b}"
        );
        assert_eq!(
            pair.counted(|counters| counters.handed_over_to_us),
            at_the_other
        );
        assert_eq!(pair.counted(|counters| counters.stateless_responses), 0);
    }
}

#[test]
fn of_a_peer_that_is_gone_every_message_is_handled_here() {
    let mut pair = Pair::linked(0);
    let to_bob = pair.delivered(ALICE, &invite("sip:bob@example.com"), "INVITE -> bob");
    let now = pair.cores[1].now;
    pair.cores[1].proxy.set_peers([], now);
    pair.mask = u32::MAX;
    let ok = pair.delivered(BOB, &bob_answers(&to_bob, 200), "200 -> alice");
    pair.delivered(ALICE, &in_dialog("ACK", 1, &ok, true), "ACK -> bob");
    let bye = pair.delivered(BOB, &in_dialog("BYE", 1, &ok, false), "BYE -> alice");
    pair.delivered(ALICE, &answer(&bye, 200, "OK", "a1"), "200 -> bob");
    assert_eq!(pair.counted(|counters| counters.handed_over), 0);
    assert_eq!(pair.counted(|counters| counters.stateless_responses), 1);
}

/// Both live and cannot reach each other: the answer goes by the one that has no transaction.
#[test]
fn an_answer_that_went_by_another_core_is_learnt_from_its_ack() {
    for rings in [false, true] {
        let mut pair = Pair::new(0);
        let to_bob = pair.delivered(ALICE, &invite("sip:bob@example.com"), "INVITE -> bob");
        if rings {
            pair.delivered(BOB, &ringing(&to_bob), "180 -> alice");
        }
        pair.mask = 1 << pair.received;
        let ok = pair.delivered(BOB, &bob_answers(&to_bob, 200), "200 -> alice");
        pair.delivered(ALICE, &in_dialog("ACK", 1, &ok, true), "ACK -> bob");
        let media = pair.take_media();
        pair.cores[0].media = media;
        // Over Timer B and Timer C: neither is the INVITE repeated nor the call given up.
        let sent = pair.cores[0].advance(Duration::from_secs(300));
        assert_eq!(summary(&sent), Vec::<String>::new(), "rings: {rings}");
        assert_eq!(pair.open_sessions().len(), 1, "rings: {rings}");
        assert_eq!(pair.counted(|counters| counters.answered_elsewhere), 1);
        let bye = pair.delivered(ALICE, &in_dialog("BYE", 2, &ok, true), "BYE -> bob");
        pair.delivered(BOB, &bob_answers(&bye, 200), "200 -> alice");
        assert!(pair.open_sessions().is_empty(), "rings: {rings}");
        pair.assert_all_forgotten();
    }
}

/// It stood still until the call was up, and has not even seen its ACK.
#[test]
fn an_answer_that_went_by_another_core_is_learnt_from_the_callers_bye() {
    let mut pair = Pair::new(0);
    let to_bob = pair.delivered(ALICE, &invite("sip:bob@example.com"), "INVITE -> bob");
    pair.delivered(BOB, &ringing(&to_bob), "180 -> alice");
    pair.mask = 0b11 << pair.received;
    let ok = pair.delivered(BOB, &bob_answers(&to_bob, 200), "200 -> alice");
    pair.delivered(ALICE, &in_dialog("ACK", 1, &ok, true), "ACK -> bob");
    let media = pair.take_media();
    pair.cores[0].media = media;
    let bye = pair.delivered(ALICE, &in_dialog("BYE", 2, &ok, true), "BYE -> bob");
    assert_eq!(pair.counted(|counters| counters.answered_elsewhere), 1);
    pair.delivered(BOB, &bob_answers(&bye, 200), "200 -> alice");
    let sent = pair.cores[0].advance(Duration::from_secs(300));
    assert_eq!(summary(&sent), Vec::<String>::new());
    assert!(pair.open_sessions().is_empty());
    pair.assert_all_forgotten();
}

/// The BYE went by another core, and its answer comes by the one that has the call.
#[test]
fn a_call_whose_bye_was_answered_here_is_not_ended_from_here_any_more() {
    for by_caller in [true, false] {
        let mut pair = Pair::new(0);
        pair.cores[0].proxy.remember_dialogs(10);
        let to_bob = pair.delivered(ALICE, &invite("sip:bob@example.com"), "INVITE -> bob");
        let ok = pair.delivered(BOB, &bob_answers(&to_bob, 200), "200 -> alice");
        pair.delivered(ALICE, &in_dialog("ACK", 1, &ok, true), "ACK -> bob");
        assert_eq!(pair.cores[0].proxy.remembered(), 1);
        pair.mask = 1 << pair.received;
        if by_caller {
            let bye = pair.delivered(ALICE, &in_dialog("BYE", 2, &ok, true), "BYE -> bob");
            pair.delivered(BOB, &bob_answers(&bye, 200), "200 -> alice");
        } else {
            let bye = pair.delivered(BOB, &in_dialog("BYE", 1, &ok, false), "BYE -> alice");
            pair.delivered(ALICE, &answer(&bye, 200, "OK", "a1"), "200 -> bob");
        }
        assert_eq!(pair.cores[0].proxy.remembered(), 0);
    }
}

/// Bob has his connection at a core that is gone: what is for him waits until he has registered again, and what
/// was under way to him follows, in its transaction.
#[test]
fn what_is_for_a_phone_whose_core_is_gone_waits_until_it_is_back() {
    let registration = |cseq: u32| {
        format!(
            "REGISTER sip:example.com SIP/2.0\r\nVia: SIP/2.0/TCP 192.168.1.2;branch=z9hG4bKr{cseq}\r\n\
             From: <sip:bob@example.com>;tag=r\r\nTo: <sip:bob@example.com>\r\nCall-ID: reg\r\n\
             CSeq: {cseq} REGISTER\r\nMax-Forwards: 70\r\nContact: <sip:bob@192.168.1.2;transport=tcp>\r\n\
             Expires: 600\r\nContent-Length: 0\r\n\r\n"
        )
    };
    for returns in [true, false] {
        let mut core = World::configured(|config| {
            config.owner = Owner(1);
            config.clustered = true;
        });
        core.proxy.set_peers([Owner(2)], core.now);
        let mut hop = core.hop(BOB);
        hop.flow.transport = Transport::Tcp;
        hop.flow.connection = Some(ConnectionId::first(2, Owner(2)));
        core.receive_from(&hop, registration(1).as_bytes());
        let under_way = core.receive(ALICE, &invite("sip:bob@example.com"));
        let first = find(&under_way, BOB);
        core.proxy.set_peers([], core.now);
        let second = String::from_utf8(invite("sip:bob@example.com")).expect("text");
        let second = second
            .replace("Call-ID: ", "Call-ID: other-")
            .replace("branch=z9hG4bK", "branch=z9hG4bKother");
        let sent = core.receive(ALICE, second.as_bytes());
        assert_eq!(summary(&sent), ["100 -> alice"]);
        assert_eq!(core.proxy.waiting_for_return(), 1);
        assert!(core.advance(Duration::from_secs(1)).is_empty());
        if !returns {
            let sent = core.advance(Duration::from_secs(12));
            assert!(summary(&sent).contains(&"480 -> alice".to_owned()));
            assert_eq!(core.proxy.counters().not_returned, 1);
            continue;
        }
        // From another port, over a connection of the core that lives.
        hop.flow.peer.set_port(hop.flow.peer.port() + 1);
        hop.flow.connection = Some(ConnectionId::first(1, Owner(1)));
        core.receive_from(&hop, registration(2).as_bytes());
        let sent = core.advance(Duration::from_millis(200));
        let there = |sent: &&Transmit| sent.flow == hop.flow;
        let invites: Vec<Message> = sent.iter().filter(there).map(parse).collect();
        assert_eq!(invites.len(), 2, "{:?}", summary(&sent));
        let branch = |message: &Message| {
            let via = message.top_via().expect("Via");
            via.branch().map(<[u8]>::to_vec)
        };
        assert!(invites.iter().any(|again| branch(again) == branch(&first)));
        assert_eq!(core.proxy.counters().sent_after_return, 1);
        assert_eq!(core.proxy.waiting_for_return(), 0);
    }
}

/// A caller on a connection of the core that has its call, and an answer that comes to the other.
#[test]
fn a_response_to_a_connection_is_for_the_core_that_has_it() {
    let connection = ConnectionId::first(2, Owner(2));
    for (alive, passed) in [(true, 1), (false, 0)] {
        let mut pair = Pair::linked(0);
        let mut hop = pair.cores[0].hop(ALICE);
        hop.flow.transport = Transport::Tcp;
        hop.flow.connection = Some(connection);
        // The first core has the call, and is gone before the answer; the second has the connection.
        let sent = pair.cores[0].receive_from(&hop, &invite("sip:bob@example.com"));
        let to_bob = find(&sent, BOB);
        let mut third = World::configured(|config| {
            config.owner = Owner(3);
            config.clustered = true;
        });
        third.media = pair.take_media();
        let now = third.now;
        third
            .proxy
            .set_peers(alive.then_some(Owner(2)).into_iter().chain([Owner(4)]), now);
        let sent = third.receive(BOB, &bob_answers(&to_bob, 200));
        let to_connection = |sent: &&Transmit| sent.flow.connection == Some(connection);
        assert_eq!(sent.iter().filter(to_connection).count(), passed);
    }
}

#[test]
fn a_failed_call_is_acknowledged_for_every_way_to_deal_its_messages() {
    const MESSAGES: u32 = 4;
    for mask in 0..1 << MESSAGES {
        let mut pair = Pair::new(mask);
        let to_bob = pair.delivered(ALICE, &invite("sip:bob@example.com"), "INVITE -> bob");
        pair.delivered(BOB, &ringing(&to_bob), "180 -> alice");
        let sent = pair.receive(BOB, &bob_answers(&to_bob, 486));
        let busy = find(&sent, ALICE);
        assert_eq!(busy.status(), Some(486), "mask {mask:b}");
        let mut acks = acks_to_bob(&sent, &to_bob);
        let sent = pair.receive(ALICE, &ack_of_failure(&busy));
        acks += acks_to_bob(&sent, &to_bob);
        assert!(acks > 0, "Bob stops to repeat his 486: mask {mask:b}");
        assert!(pair.open_sessions().is_empty(), "mask {mask:b}");
        pair.assert_all_forgotten();
    }
}

/// "If the request is an INVITE … the ACK MUST contain a single Via header field, and this MUST be
/// equal to the top Via header field of the original request" (RFC 3261 section 17.1.1.3).
fn ack_of_failure(response: &Message) -> Vec<u8> {
    let to = response.header(HeaderName::To).expect("To");
    let invite = Message::parse(invite("sip:bob@example.com").into()).expect("a message");
    let mut edit = invite.edit();
    edit.set(HeaderName::To, to);
    edit.remove_all(HeaderName::Contact);
    let text = String::from_utf8(edit.finish().bytes().to_vec()).expect("text");
    text.replace("INVITE ", "ACK ")
        .replace("1 INVITE", "1 ACK")
        .into_bytes()
}

/// ACKs that the transaction of an INVITE at Bob takes for its own (section 17.2.3).
fn acks_to_bob(sent: &[Transmit], to_bob: &Message) -> usize {
    let invite = to_bob.top_via().expect("Via");
    let acks = sent.iter().map(parse).filter(|message| {
        let via = message.top_via().expect("Via");
        message.is_request()
            && message.method() == Method::Ack
            && (via.branch(), via.sent_by) == (invite.branch(), invite.sent_by)
    });
    acks.count()
}

#[test]
fn a_cancelled_call_ends_for_every_way_to_deal_its_messages() {
    const MESSAGES: u32 = 6;
    // The INVITE goes to the first core; which one is called so does not matter.
    for mask in (0..1 << MESSAGES).step_by(2) {
        let mut pair = Pair::new(mask);
        let to_bob = pair.delivered(ALICE, &invite("sip:bob@example.com"), "INVITE -> bob");
        pair.delivered(BOB, &ringing(&to_bob), "180 -> alice");
        let cancel = request("CANCEL", "sip:bob@example.com", "z9hG4bKalice1", "");
        let mut sent = pair.receive(ALICE, &cancel);
        assert_eq!(find(&sent, ALICE).status(), Some(200), "mask {mask:b}");
        if sent.len() == 1 {
            // "If no provisional response has been received, the CANCEL request MUST NOT be sent"
            // (section 9.1): this core repeats the INVITE, and Bob his 180.
            assert_eq!(
                summary(&pair.cores[0].advance(Duration::from_millis(500))),
                ["INVITE -> bob"]
            );
            sent = pair.receive_at(0, BOB, &ringing(&to_bob));
        }
        let at_bob = find(&sent, BOB);
        assert_eq!(at_bob.method(), Method::Cancel);
        assert_eq!(
            at_bob.top_via().expect("Via").branch(),
            to_bob.top_via().expect("Via").branch(),
            "mask {mask:b}"
        );
        assert_eq!(at_bob.request_uri(), to_bob.request_uri());
        let sent = pair.receive(BOB, &bob_answers(&at_bob, 200));
        assert_eq!(summary(&sent), Vec::<String>::new(), "answered already");
        let sent = pair.receive(BOB, &bob_answers(&to_bob, 487));
        let terminated = find(&sent, ALICE);
        assert_eq!(terminated.status(), Some(487), "mask {mask:b}");
        let mut acks = acks_to_bob(&sent, &to_bob);
        let sent = pair.receive(ALICE, &ack_of_failure(&terminated));
        acks += acks_to_bob(&sent, &to_bob);
        assert!(acks > 0, "mask {mask:b}");
        assert!(pair.open_sessions().is_empty(), "mask {mask:b}");
        pair.assert_all_forgotten();
    }
}

#[test]
fn a_re_invite_that_fails_is_acknowledged_for_every_way_to_deal_its_messages() {
    for mask in 0..1 << 3 {
        let mut pair = Pair::new(mask << 3);
        let to_bob = pair.delivered(ALICE, &invite("sip:bob@example.com"), "INVITE -> bob");
        let ok = pair.delivered(BOB, &bob_answers(&to_bob, 200), "200 -> alice");
        pair.delivered(ALICE, &in_dialog("ACK", 1, &ok, true), "ACK -> bob");
        let bytes = in_dialog("INVITE", 2, &ok, true);
        let again = pair.delivered(ALICE, &bytes, "INVITE -> bob");
        let sent = pair.receive(BOB, &bob_answers(&again, 488));
        assert_eq!(find(&sent, ALICE).status(), Some(488));
        let mut acks = acks_to_bob(&sent, &again);
        let ack = String::from_utf8(bytes).expect("text");
        let ack = ack
            .replace("INVITE sip", "ACK sip")
            .replace("2 INVITE", "2 ACK");
        let sent = pair.receive(ALICE, ack.as_bytes());
        acks += acks_to_bob(&sent, &again);
        assert!(acks > 0, "mask {mask:b}");
        assert_eq!(pair.open_sessions().len(), 1, "a re-INVITE ends no call");
        pair.assert_all_forgotten();
    }
}

#[test]
fn an_invite_repeated_to_the_other_core_is_a_retransmission_to_the_phone() {
    let mut pair = Pair::new(0);
    let bytes = invite("sip:bob@example.com");
    let first = find(&pair.receive_at(0, ALICE, &bytes), BOB);
    let second = find(&pair.receive_at(1, ALICE, &bytes), BOB);
    // RFC 3261 section 17.2.3: branch, sent-by and method.
    let key = |message: &Message| {
        let via = message.top_via().expect("Via");
        (via.branch().map(<[u8]>::to_vec), via.sent_by.to_vec())
    };
    assert_eq!(key(&first), key(&second));
    assert_eq!(first.request_uri(), second.request_uri());
    assert_eq!(pair.open_sessions(), [1, 2], "each core has placed it");

    // Bob answers the copy that he saw first, to whichever core: its session counts.
    let ok = find(&pair.receive_at(1, BOB, &bob_answers(&first, 200)), ALICE);
    assert_eq!(pair.open_sessions(), [1]);
    let media = pair.take_media();
    assert_eq!(media.rewritten.last(), Some(&1));
    pair.cores[1].media = media;
    pair.receive_at(0, ALICE, &in_dialog("ACK", 1, &ok, true));
    let bye = find(
        &pair.receive_at(0, ALICE, &in_dialog("BYE", 2, &ok, true)),
        BOB,
    );
    pair.receive_at(1, BOB, &bob_answers(&bye, 200));
    assert!(pair.open_sessions().is_empty());
    pair.assert_all_forgotten();
}

#[test]
fn a_call_answered_through_the_other_core_outlives_timer_c_at_the_first() {
    let mut pair = Pair::new(0);
    let to_bob = find(
        &pair.receive_at(0, ALICE, &invite("sip:bob@example.com")),
        BOB,
    );
    pair.receive_at(0, BOB, &ringing(&to_bob));
    let ok = find(&pair.receive_at(1, BOB, &bob_answers(&to_bob, 200)), ALICE);
    pair.receive_at(1, ALICE, &in_dialog("ACK", 1, &ok, true));
    pair.assert_all_forgotten();
    assert_eq!(pair.open_sessions(), [1]);
}

#[test]
fn copies_of_an_answer_pass_and_copies_of_a_failure_too() {
    for status in [200, 486] {
        let mut pair = Pair::new(0);
        let to_bob = find(
            &pair.receive_at(0, ALICE, &invite("sip:bob@example.com")),
            BOB,
        );
        for _ in 0..3 {
            let sent = pair.receive_at(1, BOB, &bob_answers(&to_bob, status));
            assert_eq!(summary(&sent), [format!("{status} -> alice")]);
        }
        assert_eq!(pair.counted(|counters| counters.stateless_responses), 3);
    }
}

/// "A stateful proxy … MUST NOT send any provisional response with a Status-Code other than 100
/// to a non-INVITE" and no 408 either (RFC 4320 sections 4.1 and 4.2).
#[test]
fn what_ends_at_each_hop_ends_at_a_core_without_state_too() {
    let mut pair = Pair::new(0);
    let to_bob = find(
        &pair.receive_at(0, ALICE, &invite("sip:bob@example.com")),
        BOB,
    );
    let message = request("MESSAGE", "sip:bob@example.com", "z9hG4bKm1", "");
    let message = find(&pair.receive_at(0, ALICE, &message), BOB);
    for answer in [
        bob_answers(&to_bob, 100),
        bob_answers(&message, 100),
        bob_answers(&message, 183),
        bob_answers(&message, 408),
    ] {
        let sent = pair.receive_at(1, BOB, &answer);
        assert_eq!(summary(&sent), Vec::<String>::new());
    }
    let sent = pair.receive_at(1, BOB, &bob_answers(&message, 200));
    assert_eq!(summary(&sent), ["200 -> alice"]);
}

#[test]
fn one_failure_of_a_fork_waits_for_its_core_and_an_answer_or_a_6xx_does_not() {
    let mut pair = Pair::new(0);
    pair.cores[0].register(BOB_DESK, "sip:bob@192.168.1.3:5060", "desk");
    let sent = pair.receive_at(0, ALICE, &invite("sip:bob@example.com"));
    let (to_bob, to_desk) = (find(&sent, BOB), find(&sent, BOB_DESK));
    let sent = pair.receive_at(1, BOB, &bob_answers(&to_bob, 486));
    assert_eq!(summary(&sent), Vec::<String>::new());
    assert_eq!(pair.counted(|counters| counters.stateless_dropped), 1);
    let sent = pair.receive_at(1, BOB_DESK, &answer(&to_desk, 200, "OK", "b2"));
    assert_eq!(summary(&sent), ["200 -> alice"]);
    let sent = pair.receive_at(1, BOB_DESK, &answer(&to_desk, 603, "No", "b2"));
    assert_eq!(summary(&sent), ["603 -> alice"]);
}

#[test]
fn a_response_with_a_forged_a_moved_or_no_cookie_goes_nowhere() {
    let mut pair = Pair::new(0);
    let to_bob = find(
        &pair.receive_at(0, ALICE, &invite("sip:bob@example.com")),
        BOB,
    );
    let honest = String::from_utf8(bob_answers(&to_bob, 200)).expect("text");
    let cookie = honest
        .split(";sc=")
        .nth(1)
        .and_then(|rest| rest.split(['\r', ';']).next());
    let cookie = cookie.expect("our Via has a cookie");
    let altered = format!("B{}", &cookie[1..]);
    assert_ne!(altered, cookie);
    let moved = honest.replace("branch=z9hG4bK", "branch=z9hG4bKx");
    let strangers = "203.0.113.66:5060";
    for (number, forged) in [honest.replace(cookie, &altered), moved].iter().enumerate() {
        let sent = pair.receive_at(1, strangers, forged.as_bytes());
        assert_eq!(summary(&sent), Vec::<String>::new());
        let counted = pair.counted(|counters| counters.forged_responses);
        assert_eq!(counted, number as u64 + 1);
    }
    let without = honest.replace(&format!(";sc={cookie}"), "");
    let sent = pair.receive_at(1, strangers, without.as_bytes());
    assert_eq!(summary(&sent), Vec::<String>::new());
    assert_eq!(pair.counted(|counters| counters.unmatched_responses), 1);
}

/// "If the element … has no matching transaction, it MUST NOT forward" (RFC 6026 section 7.3): what
/// this very core has done with stays dropped, and so does what nobody can wait for any more.
#[test]
fn a_late_response_to_our_own_request_and_an_old_one_are_dropped() {
    let mut pair = Pair::new(0);
    let to_bob = find(
        &pair.receive_at(0, ALICE, &invite("sip:bob@example.com")),
        BOB,
    );
    pair.assert_all_forgotten();
    let ok = bob_answers(&to_bob, 200);
    assert_eq!(summary(&pair.receive_at(0, BOB, &ok)), Vec::<String>::new());
    pair.cores[1].advance(Duration::from_secs(3 * 3600));
    assert_eq!(summary(&pair.receive_at(1, BOB, &ok)), Vec::<String>::new());
    assert_eq!(pair.counted(|counters| counters.unmatched_responses), 2);
}

#[test]
fn a_core_does_not_tell_by_its_answer_to_a_cancel_who_is_registered() {
    let mut world = World::with_bob();
    for user in ["bob", "nobody"] {
        let uri = format!("sip:{user}@example.com");
        let cancel = request("CANCEL", &uri, &format!("z9hG4bK{user}"), "");
        let sent = world.receive(ALICE, &cancel);
        assert_eq!(summary(&sent)[0], "200 -> alice");
    }
    let cancel = request("CANCEL", "sip:x@elsewhere.example", "z9hG4bKelse", "");
    assert_eq!(summary(&world.receive(ALICE, &cancel)), ["481 -> alice"]);
}

#[test]
fn keys_rotate_under_a_ringing_call_and_it_can_be_cancelled_at_the_other_core() {
    let rotated = Keys::new([8; 32], Some([7; 32]));
    let mut pair = Pair::with_keys(0, [Keys::new([7; 32], None), rotated]);
    let to_bob = find(
        &pair.receive_at(0, ALICE, &invite("sip:bob@example.com")),
        BOB,
    );
    let sent = pair.receive_at(1, BOB, &ringing(&to_bob));
    assert_eq!(summary(&sent), ["180 -> alice"]);
    let cancel = request("CANCEL", "sip:bob@example.com", "z9hG4bKalice1", "");
    let sent = pair.receive_at(1, ALICE, &cancel);
    let branch = to_bob
        .top_via()
        .expect("Via")
        .branch()
        .expect("branch")
        .to_vec();
    let matching = sent.iter().map(parse).filter(|message| {
        message.is_request() && message.top_via().expect("Via").branch() == Some(&branch)
    });
    assert_eq!(
        matching.count(),
        1,
        "one of those sent: {:?}",
        summary(&sent)
    );
    let busy = find(&pair.receive_at(1, BOB, &bob_answers(&to_bob, 487)), ALICE);
    let sent = pair.receive_at(1, ALICE, &ack_of_failure(&busy));
    assert_eq!(acks_to_bob(&sent, &to_bob), 1);
}
