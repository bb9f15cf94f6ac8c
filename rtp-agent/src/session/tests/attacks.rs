//! Attacks on a session's media, played by strangers of four kinds: one who only knows the relay's
//! ports, one in the phone's subnet, one behind the phone's NAT, and one who forges the phone's
//! address. What each can do and cannot; every refusal has a reason.

use super::*;

/// Knows the ports, and nothing else.
const STRANGER: &str = "203.0.113.66:9000";
/// Behind the same NAT as the caller.
const NEIGHBOUR: &str = "192.0.2.10:6000";
/// Of the caller's stream, as [`rtp`] has it.
const SSRC: u8 = 1;
const FOREIGN: u8 = 0x66;

#[test]
fn rtp_sprayed_at_all_ports_before_the_phones_send_latches_nothing_and_hears_nothing() {
    let mut rig = Rig::bound();
    for port in 1..=1000 {
        let from = format!("203.0.113.66:{port}");
        for side in [Side::A, Side::B] {
            for component in [Component::Rtp, Component::Rtcp] {
                let spray = foreign(port as u8);
                assert_eq!(rig.packet(side, component, &from, &spray), (None, vec![]));
            }
        }
    }
    for side in [Side::A, Side::B] {
        assert_eq!(rig.session.latched(side, Component::Rtp), None);
        assert_eq!(rig.session.latched(side, Component::Rtcp), None);
        let counters = rig.session.counters(side);
        // RTP on the RTCP port is refused before anybody looks where it is from.
        assert_eq!(
            (counters.rejected_gate, counters.rejected_not_rtp),
            (1000, 1000)
        );
    }
    // The phones are heard as if nothing had been.
    rig.rtp(Side::A, CALLER, 1);
    assert_eq!(rig.rtp(Side::B, CALLEE, 1).0, Some(at(CALLER)));
}

#[test]
fn rtp_sprayed_into_a_lease_before_its_bind_does_not_take_the_call() {
    let mut rig = Rig::lease();
    for sequence in 0..200 {
        rig.packet(Side::A, Component::Rtp, STRANGER, &foreign(sequence));
    }
    assert_eq!(rig.hold.used(), crate::hold::MAX_PACKETS);
    assert_eq!(rig.bind(), []);
    assert_eq!(rig.session.latched(Side::A, Component::Rtp), None);
    let counters = rig.session.counters(Side::A);
    assert_eq!((counters.rejected_gate, counters.hold_overflow), (32, 168));
    rig.rtp(Side::A, CALLER, 1);
    assert_eq!(
        rig.session.latched(Side::A, Component::Rtp),
        Some(at(CALLER))
    );
}

#[test]
fn rtp_sprayed_into_a_call_is_heard_by_nobody_and_turns_nothing_away() {
    let mut rig = talking();
    for step in 0..1000 {
        rig.advance(20);
        assert_eq!(rig.rtp(Side::B, CALLEE, step as u8).0, Some(at(CALLER)));
        let spray = foreign(step as u8);
        assert_eq!(
            rig.packet(Side::A, Component::Rtp, STRANGER, &spray).0,
            None
        );
        assert_eq!(
            rig.packet(Side::A, Component::Rtp, NEIGHBOUR, &spray).0,
            None
        );
    }
    let counters = rig.session.counters(Side::A);
    assert_eq!(counters.rejected_gate, 1000);
    // The caller has said nothing in all that time: for its first second the neighbour was refused
    // because of it, and then because of its own SSRC.
    assert_eq!(
        (counters.rejected_stranger, counters.rejected_ssrc),
        (49, 951)
    );
}

#[test]
fn a_stranger_on_the_same_nat_address_is_refused_while_the_phone_sends() {
    let mut rig = talking();
    // It has even learnt the SSRC.
    assert_eq!(rig.rtp(Side::A, NEIGHBOUR, 7).0, None);
    assert_eq!(rig.session.counters(Side::A).rejected_stranger, 1);
    assert_eq!(rig.rtp(Side::B, CALLEE, 2).0, Some(at(CALLER)));
}

#[test]
fn a_silent_phone_is_not_replaced_by_its_neighbour_however_long_it_is_silent() {
    let mut rig = talking();
    for _ in 0..299 {
        rig.advance(1000);
        rig.packet(Side::A, Component::Rtp, NEIGHBOUR, &foreign(1));
        assert_eq!(rig.rtp(Side::B, CALLEE, 2).0, Some(at(CALLER)));
    }
    assert_eq!(rig.session.counters(Side::A).rejected_ssrc, 299);
    assert_eq!(rig.session.counters(Side::A).moved, 0);
}

/// The SSRC is what a stranger who does not see the stream has to guess: 2^32 of them, each of
/// which must arrive while the phone is silent.
#[test]
fn guessing_ssrcs_does_not_steal_a_silent_call() {
    let mut rig = talking();
    rig.advance(1000);
    for guess in 2..=u8::MAX {
        let mut packet = rtp(guess);
        packet[11] = guess;
        assert_eq!(
            rig.packet(Side::A, Component::Rtp, NEIGHBOUR, &packet).0,
            None
        );
    }
    assert_eq!(rig.session.counters(Side::A).rejected_ssrc, 254);
}

/// A re-INVITE lets a phone begin a new stream; a thief who waits for that has only a window, and
/// none while the phone sends.
#[test]
fn the_window_after_a_reinvite_closes() {
    let mut rig = talking();
    rig.update(Side::A, exact("192.0.2.10"));
    rig.advance(500);
    rig.packet(Side::A, Component::Rtp, NEIGHBOUR, &foreign(1));
    assert_eq!(rig.session.counters(Side::A).rejected_stranger, 1);
    rig.advance(60_000);
    rig.packet(Side::A, Component::Rtp, NEIGHBOUR, &foreign(1));
    assert_eq!(rig.session.counters(Side::A).rejected_ssrc, 1);
    assert_eq!(
        rig.session.latched(Side::A, Component::Rtp),
        Some(at(CALLER))
    );
    // The phone itself comes back from another port, with its stream.
    assert_eq!(rig.rtp(Side::A, "192.0.2.10:4444", 2).0, Some(at(CALLEE)));
}

#[test]
fn a_port_that_nobody_used_in_time_waits_for_nobody() {
    let mut rig = Rig::bound();
    rig.rtp(Side::A, CALLER, 1);
    rig.rtp(Side::B, CALLEE, 1);
    for _ in 0..241 {
        rig.advance(1000);
        rig.rtp(Side::A, CALLER, 2);
        rig.rtp(Side::B, CALLEE, 2);
    }
    // With the right SSRC, from the right address; no RTCP has ever come from there.
    rig.rtcp(Side::A, Component::Rtcp, "192.0.2.10:4001", SSRC);
    assert_eq!(rig.session.latched(Side::A, Component::Rtcp), None);
    assert_eq!(rig.session.counters(Side::A).rejected_late, 1);
}

#[test]
fn rtcp_from_a_stranger_is_injected_nowhere() {
    let mut rig = talking();
    rig.rtcp(Side::A, Component::Rtcp, "192.0.2.10:4001", SSRC);
    rig.rtcp(Side::B, Component::Rtcp, "198.51.100.20:5001", SSRC);
    for component in [Component::Rtp, Component::Rtcp] {
        for from in [STRANGER, NEIGHBOUR] {
            let bye = [0x81, 203, 0, 1, 0, 0, 0, SSRC];
            assert_eq!(rig.packet(Side::A, component, from, &bye), (None, vec![]));
        }
    }
    let counters = rig.session.counters(Side::A);
    assert_eq!((counters.rejected_gate, counters.rejected_stranger), (2, 2));
    assert_eq!(counters.rtcp_in.packets, 1);
}

#[test]
fn a_neighbours_rtcp_that_comes_before_the_phones_is_not_taken_for_it() {
    let mut rig = talking();
    let (to, _) = rig.rtcp(Side::A, Component::Rtcp, NEIGHBOUR, FOREIGN);
    assert_eq!(to, None);
    assert_eq!(rig.session.latched(Side::A, Component::Rtcp), None);
    assert_eq!(rig.session.counters(Side::A).rejected_ssrc, 1);
    rig.rtcp(Side::A, Component::Rtcp, "192.0.2.10:4001", SSRC);
    let latched = rig.session.latched(Side::A, Component::Rtcp);
    assert_eq!(latched, Some(at("192.0.2.10:4001")));
}

/// The limit of what a relay can see: before the phone has sent anything, its address is all that
/// tells it from its neighbours.
#[test]
fn before_the_first_packet_a_neighbour_can_be_taken_for_the_phone_and_a_reinvite_undoes_it() {
    let mut rig = Rig::bound();
    rig.packet(Side::A, Component::Rtp, NEIGHBOUR, &foreign(1));
    assert_eq!(
        rig.session.latched(Side::A, Component::Rtp),
        Some(at(NEIGHBOUR))
    );
    // The phone is refused, and counted where an operator sees it.
    rig.rtp(Side::A, CALLER, 1);
    assert_eq!(rig.session.counters(Side::A).rejected_stranger, 1);
    rig.update(Side::A, exact("192.0.2.10"));
    rig.advance(1000);
    rig.rtp(Side::A, CALLER, 2);
    assert_eq!(
        rig.session.latched(Side::A, Component::Rtp),
        Some(at(CALLER))
    );
}

/// RFC 7983 section 7: the first octet says what a packet is. Nothing but RTP and RTCP gets
/// through, whoever sends it.
#[test]
fn of_all_first_octets_only_those_of_rtp_and_rtcp_pass() {
    let mut rig = talking();
    for first in 0..=u8::MAX {
        let mut packet = [0_u8; 40];
        packet[0] = first;
        packet[11] = SSRC;
        let (to, _) = rig.packet(Side::A, Component::Rtp, CALLER, &packet);
        // Version 2; with padding, an extension or CSRCs there must be room for them.
        assert_eq!(
            to.is_some(),
            (128..=191).contains(&first) && fits(first),
            "{first}"
        );
    }
    let refused = rig.session.counters(Side::A).rejected_not_rtp;
    let passed = rig.session.counters(Side::A).rtp_in.packets - 1;
    assert_eq!(refused + passed, 256);
}

/// True where 28 octets after the fixed header are enough for what the first octet announces.
fn fits(first: u8) -> bool {
    let csrcs = usize::from(first & 0x0f) * 4;
    let extension = if first & 0x10 == 0 { 0 } else { 4 };
    csrcs + extension <= 28
}

/// Others took a DTLS ClientHello of anybody for the phone's (CVE-2023-51275), as each can be the first of a
/// handshake. On a line that allows DTLS one passes the same gate as everything else, and has no SSRC to
/// take anything over with.
#[test]
fn a_client_hello_of_a_stranger_begins_nothing() {
    let mut rig = Rig::lease();
    let dtls = |address| Gate {
        payload: Payload::RtpAndDtls,
        ..exact(address)
    };
    rig.bind_to(dtls("192.0.2.10"), dtls("198.51.100.20"));
    for side in [Side::A, Side::B] {
        let heard = rig.packet(side, Component::Rtp, STRANGER, &CLIENT_HELLO);
        assert_eq!(heard, (None, vec![]));
        assert_eq!(rig.session.latched(side, Component::Rtp), None);
    }
    // The phone's own goes to the callee, once that has been heard.
    rig.rtp(Side::B, CALLEE, 1);
    let (to, _) = rig.packet(Side::A, Component::Rtp, CALLER, &CLIENT_HELLO);
    assert_eq!(to, Some(at(CALLEE)));
    rig.rtp(Side::A, CALLER, 1);
    for wait_ms in [0, 60_000] {
        rig.advance(wait_ms);
        rig.rtp(Side::B, CALLEE, 2);
        for from in [STRANGER, NEIGHBOUR] {
            let heard = rig.packet(Side::A, Component::Rtp, from, &CLIENT_HELLO);
            assert_eq!(heard, (None, vec![]), "{from} after {wait_ms} ms");
        }
        assert_eq!(rig.rtp(Side::B, CALLEE, 3).0, Some(at(CALLER)));
    }
    let counters = rig.session.counters(Side::A);
    assert_eq!(counters.rejected_gate, 3);
    assert_eq!((counters.rejected_stranger, counters.rejected_ssrc), (1, 1));
    assert_eq!(counters.moved, 0);
}

/// A hundred packets that no key fits hung up elsewhere (CVE-2021-41105). Here nobody has a key: they
/// pass from the phone, end nothing, and from others go nowhere.
#[test]
fn a_hundred_bad_srtp_packets_change_nothing() {
    let mut rig = talking();
    for number in 0..100 {
        let mut bad = [0xa5; 60];
        bad[..12].copy_from_slice(&rtp(number));
        let (to, outputs) = rig.packet(Side::A, Component::Rtp, CALLER, &bad);
        assert_eq!((to, outputs), (Some(at(CALLEE)), vec![]));
        for from in [STRANGER, NEIGHBOUR] {
            let heard = rig.packet(Side::A, Component::Rtp, from, &bad);
            assert_eq!(heard, (None, vec![]));
        }
    }
    assert_eq!(rig.timeout(), None);
    assert_eq!(rig.rtp(Side::B, CALLEE, 2).0, Some(at(CALLER)));
    assert_eq!(rig.rtp(Side::A, CALLER, 101).0, Some(at(CALLEE)));
}

/// STUN whose lengths underflow (CVE-2021-37706, CVE-2022-31003, CVE-2023-22741): on a media port it is
/// not RTP, whatever is in it.
#[test]
fn stun_with_lying_lengths_is_no_media() {
    let mut rig = talking();
    let head = [0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
    for length in [0_u16, 1, 3, 4, 0x7fff, 0xffff] {
        for size in [8, 19, 20, 21, 24, 100] {
            let mut stun = vec![0; size];
            stun[..8].copy_from_slice(&head);
            stun[2..4].copy_from_slice(&length.to_be_bytes());
            if let Some(attribute) = stun.get_mut(20..24) {
                attribute.copy_from_slice(&[0x80, 0x22, 0xff, 0xff]);
            }
            for component in [Component::Rtp, Component::Rtcp] {
                let heard = rig.packet(Side::A, component, CALLER, &stun);
                assert_eq!(heard, (None, vec![]));
            }
        }
    }
    assert_eq!(rig.session.counters(Side::A).rejected_not_rtp, 72);
}

/// The first octets of one of DTLS 1.2 (RFC 6347 section 4.2.2).
const CLIENT_HELLO: [u8; 25] = [
    22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

#[test]
fn a_forged_source_that_could_not_be_answered_is_no_source() {
    let mut rig = Rig::lease();
    let open = Gate {
        mode: GateMode::Any,
        ..Gate::default()
    };
    rig.bind_to(open.clone(), open);
    for from in [
        "0.0.0.0:5000",
        "224.0.0.1:5000",
        "192.0.2.10:0",
        "[ff02::1]:5000",
    ] {
        assert_eq!(rig.rtp(Side::A, from, 1), (None, vec![]), "{from}");
    }
    assert_eq!(rig.session.counters(Side::A).rejected_gate, 4);
}

#[test]
fn a_wider_gate_lets_in_what_it_says_and_no_more() {
    let mut rig = Rig::lease();
    let subnet = Gate {
        mode: GateMode::Subnet,
        ..exact("192.0.2.10")
    };
    rig.bind_to(subnet, exact("198.51.100.20"));
    assert_eq!(rig.rtp(Side::A, "192.0.3.1:4000", 1).0, None);
    assert_eq!(rig.session.latched(Side::A, Component::Rtp), None);
    rig.rtp(Side::A, "192.0.2.99:4000", 1);
    assert_eq!(
        rig.session.latched(Side::A, Component::Rtp),
        Some(at("192.0.2.99:4000"))
    );
    // Latched is latched, in a wide gate too.
    rig.advance(5000);
    rig.packet(Side::A, Component::Rtp, "192.0.2.10:4000", &foreign(1));
    assert_eq!(rig.session.counters(Side::A).rejected_ssrc, 1);
}

fn talking() -> Rig {
    let mut rig = Rig::bound();
    rig.rtp(Side::A, CALLER, 1);
    rig.rtp(Side::B, CALLEE, 1);
    rig
}

/// RTP of another stream.
fn foreign(sequence: u8) -> [u8; 12] {
    let mut packet = rtp(sequence);
    packet[11] = FOREIGN;
    packet
}
