//! Offers and answers in every order that the standards allow, and what is left when one fails.

use super::*;

const AUDIO: &str = "audio 6000 RTP/AVP 0";
/// No session.
const NONE: [u64; 0] = [];

/// An SDP at this address.
fn at(address: &str, lines: &[&str]) -> Vec<u8> {
    text(offer(lines))
        .replace("192.168.1.10", address)
        .into_bytes()
}

/// The message of a party in the call, such as `INVITE` or `200 UPDATE`.
fn said(what: &str, body: &[u8]) -> Message {
    match what.split_once(' ') {
        Some((status, method)) => sip_message(&format!("SIP/2.0 {status} X"), method, body),
        None => sip_message(&format!("{what} sip:x@example.com SIP/2.0"), what, body),
    }
}

impl World {
    fn says(&mut self, session: SessionRef, party: Party, what: &str, body: &[u8]) -> String {
        let message = said(what, body);
        let new = self.pass(session, party, &message);
        text(new.unwrap_or_else(|| body.to_vec()))
    }

    fn refuses(&mut self, session: SessionRef, party: Party, what: &str) {
        let request = said(what, b"");
        self.calls.refused(&request, party, session, self.now);
    }

    /// A call that has been answered, both at 192.168.1.10.
    fn call(&mut self, lines: &[&str]) -> SessionRef {
        let session = self.place(&offer(lines)).session.expect("a session");
        self.says(session, Party::Callee, "200 INVITE", &offer(lines));
        self.calls.answered(session, self.now);
        self.says(session, Party::Caller, "ACK", b"");
        self.said();
        session
    }

    /// The last gate that each side of a session was told, with the addresses of its party's SDP
    /// only.
    fn gates(&mut self, session: u64) -> [Option<Vec<String>>; 2] {
        let mut gates = [None, None];
        let described = |gate: Gate| {
            let known = [ip(CALLER), ip(CALLEE)];
            let addresses = gate.expected.into_iter();
            Some(
                addresses
                    .filter(|address| !known.contains(address))
                    .map(|address| address.to_string())
                    .collect(),
            )
        };
        for message in self.said() {
            match message {
                ToAgent::Bind {
                    session: of, a, b, ..
                } if of == session => gates = [described(a), described(b)],
                ToAgent::Update {
                    session: of,
                    side,
                    gate,
                    ..
                } if of == session => gates[usize::from(side == Side::B)] = described(gate),
                _ => {}
            }
        }
        gates
    }
}

fn some(addresses: &[&str]) -> Option<Vec<String>> {
    Some(
        addresses
            .iter()
            .map(|address| (*address).to_owned())
            .collect(),
    )
}

/// "If a UA receives a non-2xx final response to a re-INVITE, the session parameters MUST remain
/// unchanged, as if no re-INVITE had been issued" (RFC 3261 section 14.1).
#[test]
fn a_re_invite_that_fails_leaves_the_old_media() {
    for glare in [false, true] {
        let mut world = World::new(RelayPolicy::Always);
        let session = world.call(&[AUDIO]);
        let moved = at("192.168.1.77", &[AUDIO]);
        world.says(session, Party::Caller, "INVITE", &moved);
        assert_eq!(
            world.gates(100)[0],
            some(&["192.168.1.77", "192.168.1.10"]),
            "the old address may go on while the new one is on offer"
        );
        if glare {
            let other = at("192.168.1.88", &[AUDIO]);
            world.says(session, Party::Callee, "INVITE", &other);
            world.refuses(session, Party::Callee, "INVITE");
        }
        world.refuses(session, Party::Caller, "INVITE");
        assert_eq!(
            world.gates(100)[0],
            some(&["192.168.1.10"]),
            "glare {glare}"
        );
        assert_eq!(world.released(), NONE);
    }
}

/// Two offers at once (RFC 3261 section 14.2): the 491 of one does not undo the other.
#[test]
fn in_a_glare_the_first_491_leaves_the_other_offer_open() {
    let mut world = World::new(RelayPolicy::Always);
    let session = world.call(&[AUDIO]);
    world.says(
        session,
        Party::Caller,
        "INVITE",
        &at("192.168.1.77", &[AUDIO]),
    );
    world.says(
        session,
        Party::Callee,
        "INVITE",
        &at("192.168.1.88", &[AUDIO]),
    );
    world.said();
    world.refuses(session, Party::Caller, "INVITE");
    let [a, b] = world.gates(100);
    assert_eq!(a, some(&["192.168.1.10"]));
    assert_eq!(b, None, "nothing new about the callee");
    world.says(session, Party::Caller, "200 INVITE", &offer(&[AUDIO]));
    assert_eq!(world.gates(100)[1], some(&["192.168.1.88"]));
}

#[test]
fn a_re_invite_that_succeeds_closes_the_gate_for_the_old_address() {
    let mut world = World::new(RelayPolicy::Always);
    let session = world.call(&[AUDIO]);
    world.says(
        session,
        Party::Caller,
        "INVITE",
        &at("192.168.1.77", &[AUDIO]),
    );
    world.said();
    world.says(session, Party::Callee, "200 INVITE", &offer(&[AUDIO]));
    assert_eq!(world.gates(100)[0], some(&["192.168.1.77"]));
    world.says(session, Party::Caller, "ACK", b"");
    world.refuses(session, Party::Caller, "UPDATE");
    assert_eq!(
        world.gates(100)[0],
        None,
        "a later failure undoes only its own"
    );
}

/// A re-INVITE that fails undoes what PRACK and UPDATE have agreed meanwhile as well (RFC 6337
/// section 3.4, RFC 6141 section 3).
#[test]
fn an_update_within_a_re_invite_shares_its_fate() {
    for refused in [true, false] {
        let mut world = World::new(RelayPolicy::Always);
        let session = world.call(&[AUDIO]);
        world.says(
            session,
            Party::Caller,
            "INVITE",
            &at("192.168.1.77", &[AUDIO]),
        );
        world.says(session, Party::Callee, "183 INVITE", &offer(&[AUDIO]));
        world.says(session, Party::Caller, "PRACK", b"");
        world.says(session, Party::Callee, "200 PRACK", b"");
        world.says(
            session,
            Party::Caller,
            "UPDATE",
            &at("192.168.1.78", &[AUDIO]),
        );
        world.says(session, Party::Callee, "200 UPDATE", &offer(&[AUDIO]));
        world.says(
            session,
            Party::Caller,
            "UPDATE",
            &at("192.168.1.79", &[AUDIO]),
        );
        world.said();
        world.refuses(session, Party::Caller, "UPDATE");
        assert_eq!(
            world.gates(100)[0],
            some(&["192.168.1.78", "192.168.1.10"]),
            "a failed UPDATE goes back to the one before it"
        );
        if refused {
            world.refuses(session, Party::Caller, "INVITE");
            assert_eq!(world.gates(100)[0], some(&["192.168.1.10"]));
        } else {
            world.says(session, Party::Callee, "200 INVITE", b"");
            assert_eq!(world.gates(100)[0], some(&["192.168.1.78"]));
        }
    }
}

/// "If the initial offer is in the first reliable non-failure message from the UAS back to UAC, the
/// answer MUST be in the acknowledgement for that message" (RFC 3261 section 13.2.1).
#[test]
fn a_late_offer_is_answered_in_the_ack() {
    let mut world = World::new(RelayPolicy::Always);
    let session = world.place(b"").session.expect("a session");
    let offered = world.says(session, Party::Callee, "200 INVITE", &offer(&[AUDIO]));
    assert!(offered.contains("m=audio 30000 "), "{offered}");
    let again = world.says(session, Party::Callee, "200 INVITE", &offer(&[AUDIO]));
    assert_eq!(offered, again, "a retransmission carries the same body");
    let answer = world.says(session, Party::Caller, "ACK", &offer(&[AUDIO]));
    assert!(answer.contains("m=audio 30002 "), "{answer}");
    assert_eq!(world.calls.relays.counters().leases_taken, 1);
}

/// RFC 3261 section 14.1 for an offer in the 2xx: nothing is agreed before the ACK.
#[test]
fn a_late_offer_in_a_re_invite_moves_the_callee_when_it_is_answered() {
    let mut world = World::new(RelayPolicy::Always);
    let session = world.call(&[AUDIO]);
    world.says(session, Party::Caller, "INVITE", b"");
    world.says(
        session,
        Party::Callee,
        "200 INVITE",
        &at("192.168.1.88", &[AUDIO]),
    );
    assert_eq!(world.gates(100)[1], some(&["192.168.1.88", "192.168.1.10"]));
    world.says(session, Party::Caller, "ACK", &offer(&[AUDIO]));
    assert_eq!(world.gates(100)[1], some(&["192.168.1.88"]));
}

/// "If the UAC receives a reliable provisional response with an offer … it MUST generate an
/// answer in the PRACK" (RFC 3262 section 5).
#[test]
fn a_late_offer_in_a_reliable_response_is_answered_in_the_prack() {
    let mut world = World::new(RelayPolicy::Always);
    let session = world.place(b"").session.expect("a session");
    let offered = world.says(session, Party::Callee, "183 INVITE", &offer(&[AUDIO]));
    assert!(offered.contains("m=audio 30000 "), "{offered}");
    let answer = world.says(session, Party::Caller, "PRACK", &offer(&[AUDIO]));
    assert!(answer.contains("m=audio 30002 "), "{answer}");
    world.says(session, Party::Callee, "200 PRACK", b"");
    world.says(session, Party::Callee, "200 INVITE", b"");
    world.calls.answered(session, world.now);
    world.says(session, Party::Caller, "ACK", b"");
    assert_eq!(world.calls.relays.counters().leases_taken, 1);
    world.said();

    world.says(
        session,
        Party::Caller,
        "INVITE",
        &at("192.168.1.77", &[AUDIO]),
    );
    world.says(session, Party::Callee, "200 INVITE", &offer(&[AUDIO]));
    assert_eq!(
        world.gates(100)[0],
        some(&["192.168.1.77"]),
        "the next exchange is a plain one"
    );
}

/// "it MAY generate an additional offer in the PRACK" (RFC 3262 section 5), and UPDATE in either
/// direction before the call is answered (RFC 3311 section 5.1).
#[test]
fn offers_in_prack_and_update_take_and_name_leases() {
    let mut world = World::new(RelayPolicy::Always);
    let session = world.place(&offer(&[AUDIO])).session.expect("a session");
    world.says(session, Party::Callee, "183 INVITE", &offer(&[AUDIO]));
    let both = [AUDIO, "video 6002 RTP/AVP 96"];
    let offered = world.says(session, Party::Caller, "PRACK", &offer(&both));
    assert!(offered.contains("m=video 30006 "), "{offered}");
    let answer = world.says(session, Party::Callee, "200 PRACK", &offer(&both));
    assert!(answer.contains("m=video 30004 "), "{answer}");
    let offered = world.says(session, Party::Callee, "UPDATE", &offer(&both));
    assert!(offered.contains("m=video 30004 "), "{offered}");
    let answer = world.says(session, Party::Caller, "200 UPDATE", &offer(&both));
    assert!(answer.contains("m=video 30006 "), "{answer}");
}

/// "the UAC MUST treat the first session description it receives as the answer" of each dialog
/// (RFC 3261 section 13.2.1): a phone behind us that forks gives several, and the 2xx decides.
#[test]
fn of_several_early_answers_the_latest_may_send_until_the_2xx_decides() {
    let mut world = World::new(RelayPolicy::Always);
    let session = world.place(&offer(&[AUDIO])).session.expect("a session");
    let one = world.says(
        session,
        Party::Callee,
        "183 INVITE",
        &at("192.168.1.31", &[AUDIO]),
    );
    assert_eq!(world.gates(100)[1], some(&["192.168.1.31"]));
    let two = world.says(
        session,
        Party::Callee,
        "183 INVITE",
        &at("192.168.1.32", &[AUDIO]),
    );
    for early in [one, two] {
        assert!(early.contains("m=audio 30000 "), "{early}");
    }
    world.said();
    world.says(
        session,
        Party::Callee,
        "200 INVITE",
        &at("192.168.1.31", &[AUDIO]),
    );
    assert_eq!(world.gates(100)[1], some(&["192.168.1.31"]));
}

/// "a=sendonly" and "c=0.0.0.0" both hold a stream (RFC 3264 section 8.4); neither ends it.
#[test]
fn hold_in_both_forms_keeps_the_lease_and_resumes() {
    for (hold, kept) in [
        ("a=sendonly", "a=sendonly"),
        ("a=inactive", "a=inactive"),
        ("c=IN IP4 0.0.0.0", "c=IN IP4 0.0.0.0"),
    ] {
        let mut world = World::new(RelayPolicy::Always);
        let session = world.call(&[AUDIO]);
        let held = format!("{AUDIO}\r\n{hold}");
        let offered = world.says(session, Party::Caller, "INVITE", &offer(&[&held]));
        assert!(
            offered.contains("m=audio 30002 ") && offered.contains(kept),
            "{offered}"
        );
        world.says(session, Party::Callee, "200 INVITE", &offer(&[AUDIO]));
        world.says(session, Party::Caller, "ACK", b"");
        assert_eq!(world.released(), NONE);
        let offered = world.says(session, Party::Caller, "INVITE", &offer(&[AUDIO]));
        assert!(offered.contains("m=audio 30002 "), "{offered}");
        world.says(session, Party::Callee, "200 INVITE", &offer(&[AUDIO]));
        assert_eq!(world.gates(100)[0], some(&["192.168.1.10"]));
        assert_eq!(world.calls.counters().hostile_addresses, 0);
    }
}

/// "An offered stream MAY be rejected in the answer … the port number … MUST be set to zero"
/// (RFC 3264 section 6): its lease goes back.
#[test]
fn a_line_that_the_answer_rejects_gives_its_lease_back() {
    let mut world = World::new(RelayPolicy::Always);
    let lines = [AUDIO, "video 6002 RTP/AVP 96"];
    let session = world.place(&offer(&lines)).session.expect("a session");
    world.says(
        session,
        Party::Callee,
        "183 INVITE",
        &offer(&[AUDIO, "video 0 RTP/AVP 96"]),
    );
    assert_eq!(world.released(), NONE, "another fork may take it");
    world.says(
        session,
        Party::Callee,
        "200 INVITE",
        &offer(&[AUDIO, "video 0 RTP/AVP 96"]),
    );
    assert_eq!(world.released(), [101]);
}

/// "Existing media streams are removed by creating a new SDP with the port number for that stream
/// set to zero" (RFC 3264 section 8.2), and come back in the same place or another (8.1).
#[test]
fn lines_are_removed_and_added_whichever_keys_the_call() {
    let mut world = World::new(RelayPolicy::Always);
    let session = world.call(&[AUDIO]);
    let fax = ["audio 0 RTP/AVP 0", "image 6010 udptl t38"];
    let offered = world.says(session, Party::Caller, "INVITE", &offer(&fax));
    assert!(
        offered.contains("m=audio 0 ") && offered.contains("m=image 30006 udptl t38"),
        "{offered}"
    );
    world.says(session, Party::Callee, "200 INVITE", &offer(&fax));
    assert_eq!(world.released(), [100], "the session that names the call");
    let both = [AUDIO, "image 6010 udptl t38"];
    let offered = world.says(session, Party::Callee, "INVITE", &offer(&both));
    assert!(
        offered.contains("m=audio 30008 ") && offered.contains("m=image 30004 "),
        "{offered}"
    );
    world.says(session, Party::Caller, "200 INVITE", &offer(&both));
    world.said();
    world.calls.ended(session, world.now);
    assert_eq!(world.released(), [101, 102]);
    assert!(world.calls.calls.is_empty() && world.calls.call_of.is_empty());
}

#[test]
fn a_line_that_a_refused_offer_added_gives_its_lease_back() {
    let mut world = World::new(RelayPolicy::Always);
    let session = world.call(&[AUDIO]);
    let both = [AUDIO, "video 6002 RTP/AVP 96"];
    world.says(session, Party::Caller, "INVITE", &offer(&both));
    world.said();
    world.refuses(session, Party::Caller, "INVITE");
    assert_eq!(world.released(), [101]);
    assert_eq!(world.calls.counters().rolled_back, 1);
}

/// A relay that has restarted, or ended a session that saw no media.
#[test]
fn a_call_whose_sessions_are_gone_is_relayed_again_from_its_next_offer() {
    let mut world = World::new(RelayPolicy::Always);
    let session = world.call(&[AUDIO]);
    world.calls.session_gone(session);
    assert!(world.calls.calls.is_empty(), "nothing is kept of it");
    let info = world.says(session, Party::Caller, "INFO", b"");
    assert_eq!(info, "");
    let offered = world.says(session, Party::Callee, "INVITE", &offer(&[AUDIO]));
    assert!(offered.contains("m=audio 30004 "), "{offered}");
    let answer = world.says(session, Party::Caller, "200 INVITE", &offer(&[AUDIO]));
    assert!(answer.contains("m=audio 30006 "), "{answer}");
    assert_eq!(
        world.gates(101),
        [some(&["192.168.1.10"]), some(&["192.168.1.10"])]
    );
    assert_eq!(world.calls.counters().adopted, 1);

    let bye = said("BYE", b"");
    world.calls.hung_up(&bye, Party::Caller, session, world.now);
    assert_eq!(world.released(), [101]);
    assert!(world.calls.calls.is_empty() && world.calls.call_of.is_empty());
}

#[test]
fn a_forgotten_call_whose_offer_is_refused_is_forgotten_again() {
    let mut world = World::new(RelayPolicy::Always);
    let session = world.call(&[AUDIO]);
    world.calls.session_gone(session);
    world.says(session, Party::Caller, "INVITE", &offer(&[AUDIO]));
    world.said();
    world.refuses(session, Party::Caller, "INVITE");
    assert_eq!(world.released(), [101]);
    assert!(world.calls.calls.is_empty() && world.calls.call_of.is_empty());
}

/// "Multiple 2xx responses may arrive at the UAC for a single INVITE request due to a forking proxy"
/// (RFC 3261 section 13.2.2.4): each makes a dialog, and the BYE of one leaves the others.
#[test]
fn the_session_of_a_forked_call_ends_with_its_last_dialog() {
    let mut world = World::new(RelayPolicy::Always);
    let session = world.call(&[AUDIO]);
    let tagged = |line: &str, method: &str| {
        let message = sip_message(line, method, &offer(&[AUDIO]));
        let other = text(message.bytes().to_vec()).replace("tag=b", "tag=c");
        Message::parse(Bytes::from(other.into_bytes())).expect("a message")
    };
    world.pass(session, Party::Callee, &tagged("SIP/2.0 200 OK", "INVITE"));
    let (first, second) = (said("BYE", b""), tagged("BYE sip:x SIP/2.0", "BYE"));
    for _ in 0..2 {
        world
            .calls
            .hung_up(&first, Party::Caller, session, world.now);
    }
    assert_eq!(world.released(), NONE, "the second dialog goes on");
    world
        .calls
        .hung_up(&second, Party::Caller, session, world.now);
    assert_eq!(world.released(), [100]);
}

#[test]
fn a_bye_of_another_call_ends_nothing() {
    let mut world = World::new(RelayPolicy::Always);
    let session = world.call(&[AUDIO]);
    let other = text(said("BYE", b"").bytes().to_vec()).replace("call-1", "call-2");
    let other = Message::parse(Bytes::from(other.into_bytes())).expect("a message");
    world
        .calls
        .hung_up(&other, Party::Caller, session, world.now);
    world.pass(session, Party::Caller, &other);
    assert_eq!(world.released(), NONE);
}

/// A fax takes the line of the audio (T.38 annex D), or is refused and the audio goes on: the relay
/// lets its datagrams through as long as they may come, and no longer.
#[test]
fn a_line_that_turns_to_fax_lets_datagrams_through_on_both_sides() {
    let payloads = |world: &mut World| -> Vec<(Side, Payload)> {
        let said = world.said().into_iter();
        said.filter_map(|message| match message {
            ToAgent::Update { side, gate, .. } => Some((side, gate.payload)),
            _ => None,
        })
        .collect()
    };
    let both = |payload| vec![(Side::A, payload), (Side::B, payload)];
    let mut world = World::new(RelayPolicy::Always);
    let session = world.call(&[AUDIO]);
    let fax = offer(&["image 6000 udptl t38\r\na=T38FaxVersion:0"]);
    let offered = world.says(session, Party::Callee, "INVITE", &fax);
    assert!(
        offered.contains("m=image 30000 udptl t38\r\na=T38FaxVersion:0\r\n"),
        "{offered}"
    );
    assert_eq!(payloads(&mut world), both(Payload::Datagrams));
    world.refuses(session, Party::Callee, "INVITE");
    assert_eq!(payloads(&mut world), both(Payload::Rtp));

    world.says(session, Party::Callee, "INVITE", &fax);
    world.says(session, Party::Caller, "200 INVITE", &fax);
    world.says(session, Party::Caller, "INVITE", &offer(&[AUDIO]));
    world.said();
    world.says(session, Party::Callee, "200 INVITE", &offer(&[AUDIO]));
    assert_eq!(payloads(&mut world), both(Payload::Rtp));
}

/// CVE-2020-26262 and its kin: what an SDP names must never become a destination.
#[test]
fn addresses_that_nothing_can_come_from_open_no_gate() {
    for address in [
        "127.0.0.1",
        "127.9.9.9",
        "0.1.2.3",
        "224.2.1.1/127/4294967295",
        "255.255.255.255",
        "240.0.0.1",
        "198.51.100.1",
    ] {
        let mut world = World::new(RelayPolicy::Always);
        world.place(&at(address, &[AUDIO]));
        assert_eq!(world.gates(100)[0], some(&[]), "{address}");
        assert_eq!(world.calls.counters().hostile_addresses, 1, "{address}");
    }
    for address in ["::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:198.51.100.1"] {
        let mut world = World::new(RelayPolicy::Always);
        let sdp = text(at(address, &[AUDIO])).replace("IP4", "IP6");
        world.place(sdp.as_bytes());
        assert_eq!(world.gates(100)[0], some(&[]), "{address}");
    }
}

/// RFC 3261 section 7.4.1 and RFC 2046: only the description changes, the rest keeps its bytes.
#[test]
fn the_description_in_a_multipart_is_rewritten_and_nothing_else() {
    let sdp = text(offer(&[AUDIO]));
    let part = |disposition: &str| {
        format!(
            "--b1\r\nContent-Type: application/sdp\r\n{disposition}\r\n{sdp}\r\n\
             --b1\r\nContent-Type: text/plain\r\n\r\nm=audio 6000\r\n--b1--\r\nepilogue"
        )
    };
    let headers = "Content-Type: multipart/mixed;boundary=b1\r\n";
    let send = |headers: &str, body: &str| {
        let mut world = World::new(RelayPolicy::Always);
        let session = world.call(&[AUDIO]);
        let message = sip_message_with("INVITE sip:x SIP/2.0", "INVITE", headers, body.as_bytes());
        world.pass(session, Party::Caller, &message).map(text)
    };
    for disposition in ["", "Content-Disposition: session;handling=required\r\n"] {
        let expected = part(disposition)
            .replace("c=IN IP4 192.168.1.10", "c=IN IP4 10.0.1.2")
            .replace("m=audio 6000 RTP", "m=audio 30002 RTP");
        assert_eq!(send(headers, &part(disposition)), Some(expected));
    }
    for other in [
        "Content-Disposition: early-session\r\n",
        "Content-Encoding: gzip\r\n",
    ] {
        assert_eq!(send(headers, &part(other)), None, "{other}");
        let whole = format!("Content-Type: application/sdp\r\n{other}");
        assert_eq!(send(&whole, &sdp), None, "{other}");
    }
}

/// RFC 3264 section 8.4, and `0.0.0.0` as RFC 2543 had it: who is not to send is held, so that the
/// relay does not take its silence for the end of the call.
#[test]
fn the_relay_is_told_who_is_not_to_send() {
    for (hold, held) in [
        ("sendonly", [false, true]),
        ("recvonly", [true, false]),
        ("inactive", [true, true]),
        ("sendrecv", [false, false]),
    ] {
        let mut world = World::new(RelayPolicy::Always);
        let session = world.call(&[AUDIO]);
        let offer = offer(&[&format!("{AUDIO}\r\na={hold}")]);
        world.says(session, Party::Caller, "INVITE", &offer);
        assert_eq!(world.held(100, [false, false]), held, "{hold}");
        // The answer says the same from the other end.
        let answer = match hold {
            "sendonly" => "recvonly",
            "recvonly" => "sendonly",
            other => other,
        };
        let answer = self::offer(&[&format!("{AUDIO}\r\na={answer}")]);
        world.says(session, Party::Callee, "200 INVITE", &answer);
        assert_eq!(world.held(100, held), held, "{hold}, answered");
    }
}

#[test]
fn a_call_that_is_resumed_or_whose_hold_is_refused_is_held_no_longer() {
    let mut world = World::new(RelayPolicy::Always);
    let session = world.call(&[AUDIO]);
    let hold = text(offer(&[AUDIO])).replace("c=IN IP4 192.168.1.10", "c=IN IP4 0.0.0.0");
    world.says(session, Party::Callee, "INVITE", hold.as_bytes());
    assert_eq!(world.held(100, [false, false]), [true, false]);
    world.refuses(session, Party::Callee, "INVITE");
    assert_eq!(world.held(100, [true, false]), [false, false], "refused");
    world.says(session, Party::Callee, "INVITE", hold.as_bytes());
    world.says(session, Party::Caller, "200 INVITE", &offer(&[AUDIO]));
    assert_eq!(world.held(100, [false, false]), [true, false], "agreed");
    world.says(session, Party::Callee, "INVITE", &offer(&[AUDIO]));
    world.says(session, Party::Caller, "200 INVITE", &offer(&[AUDIO]));
    assert_eq!(world.held(100, [true, false]), [false, false], "resumed");
}

impl World {
    /// Who is held by the last word that a session was told about each side; before it, `known`.
    fn held(&mut self, session: u64, known: [bool; 2]) -> [bool; 2] {
        let mut held = known;
        for message in self.said() {
            if let ToAgent::Update {
                session: of,
                side,
                gate,
                ..
            } = message
                && of == session
            {
                held[usize::from(side == Side::B)] = gate.held;
            }
        }
        held
    }
}
