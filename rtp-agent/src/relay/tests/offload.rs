//! Which streams a fast path gets, and when it must give them back.

use super::*;
use wire::relay_control::Payload;

const ELSEWHERE: &str = "192.0.2.10:9999";

/// A call with both streams offloaded.
fn talking() -> (Rig, u64) {
    let mut rig = Rig::new();
    rig.relay.set_fast_path(true);
    let session = rig.connect(C1, 1)[0].session;
    rig.control(C1, bind(1, session));
    rig.packet(session, Side::A, CALLER, 1);
    rig.packet(session, Side::B, CALLEE, 1);
    rig.packet(session, Side::A, CALLER, 2);
    assert_eq!(rig.offloaded.len(), 2);
    (rig, session)
}

/// More packets of the stream that was offloaded to this port, the last one now.
fn carried(rig: &Rig, port: RelayPort, packets: u64) -> Carried {
    let mut offloaded = rig.offloaded.iter().rev();
    let (.., route) = offloaded.find(|(of, ..)| *of == port).expect("offloaded");
    let mut progress = route.progress;
    progress.received += packets;
    progress.highest += packets as u16;
    progress.last = rig.now;
    Carried {
        packets,
        bytes: packets * 172,
        progress,
    }
}

fn statistics(rig: &Rig, session: u64) -> SessionStatistics {
    let statistics = rig.relay.statistics_of(SessionId(session), rig.now);
    statistics.expect("a session")
}

#[test]
fn a_stream_is_offloaded_when_both_sides_have_latched() {
    let mut rig = Rig::new();
    rig.relay.set_fast_path(true);
    let lease = rig.connect(C1, 1)[0];
    rig.control(C1, bind(1, lease.session));
    rig.packet(lease.session, Side::A, CALLER, 1);
    assert!(rig.offloaded.is_empty());
    // The callee's first packet can go; the caller's stream goes with its next one.
    rig.packet(lease.session, Side::B, CALLEE, 7);
    rig.packet(lease.session, Side::A, CALLER, 2);
    let [b, a] = &rig.offloaded[..] else {
        panic!("{:?}", rig.offloaded);
    };
    let local = |side: SideAddr| SocketAddr::new(side.addr, side.rtp);
    assert_eq!((a.1, a.2), (local(lease.a), local(lease.b)));
    assert_eq!((b.1, b.2), (local(lease.b), local(lease.a)));
    assert_eq!((a.3.from, a.3.to), (at(CALLER), at(CALLEE)));
    assert_eq!((b.3.from, b.3.to), (at(CALLEE), at(CALLER)));
    assert_eq!((a.3.progress.highest, a.3.progress.received), (2, 2));
    assert_eq!(rig.recalled, []);
}

#[test]
fn without_a_fast_path_and_while_another_agent_is_in_charge_nothing_is_offloaded() {
    for stands_by in [false, true] {
        let mut rig = Rig::new();
        let session = rig.connect(C1, 1)[0].session;
        rig.control(C1, bind(1, session));
        if stands_by {
            rig.relay.set_fast_path(true);
            rig.relay.stand_by();
        }
        for sequence in 1..5 {
            rig.packet(session, Side::A, CALLER, sequence);
            rig.packet(session, Side::B, CALLEE, sequence);
        }
        assert!(rig.offloaded.is_empty(), "{stands_by}");
    }
}

#[test]
fn what_ends_the_agreement_recalls_both_streams_at_once() {
    let gate = |held, payload| Gate {
        expected: vec![at(CALLER).ip()],
        held,
        payload,
        ..Gate::default()
    };
    let update = |session, gate| ToAgent::Update {
        request: 2,
        session,
        side: Side::A,
        gate,
    };
    type Change = fn(&mut Rig, u64, ToAgent);
    let control: Change = |rig, _, message| drop(rig.control(C1, message));
    let stand_by: Change = |rig, _, _| rig.relay.stand_by();
    let lose_it: Change = |rig, _, _| rig.relay.set_fast_path(false);
    for (change, message) in [
        (control, update as fn(u64, Gate) -> ToAgent),
        (control, |session, _| ToAgent::Release {
            request: 2,
            session,
        }),
        (stand_by, update),
        (lose_it, update),
    ] {
        let (mut rig, session) = talking();
        change(
            &mut rig,
            session,
            message(session, gate(true, Payload::Rtp)),
        );
        rig.drain();
        assert_eq!(
            rig.recalled,
            [port(session, Side::A), port(session, Side::B)]
        );
        let before = rig.offloaded.len();
        rig.packet(session, Side::A, CALLER, 3);
        assert_eq!(rig.offloaded.len(), before);
    }
    // Datagrams of any kind from A: only that stream must be looked at.
    let (mut rig, session) = talking();
    rig.control(C1, update(session, gate(false, Payload::Datagrams)));
    assert_eq!(rig.recalled, [port(session, Side::A)]);
}

#[test]
fn a_changed_gate_that_the_source_passes_recalls_nothing() {
    let (mut rig, session) = talking();
    rig.control(C1, bind(2, session));
    assert_eq!(rig.recalled, []);
}

#[test]
fn figures_of_the_fast_path_count_for_both_sides_and_break_the_silence() {
    let (mut rig, session) = talking();
    let a = port(session, Side::A);
    rig.advance(59_000);
    let more = carried(&rig, a, 2950);
    rig.relay.handle_carried(a, &more);
    // The limit for two idle sides is 60 s, and nothing came by the sockets.
    rig.advance(2_000);
    let stats = statistics(&rig, session);
    assert_eq!(
        (stats.a.rtp.packets_in, stats.b.rtp.packets_out),
        (2952, 2952)
    );
    assert_eq!(stats.a.rtp.bytes_in, 2 * 12 + 2950 * 172);
    assert_eq!((stats.b.rtp.packets_in, stats.a.lost), (1, 0));
    let said = rig.advance(59_000);
    assert!(ended(&said, session), "{said:?}");
}

#[test]
fn sessions_that_are_due_are_named_so_that_their_figures_can_be_read() {
    let (mut rig, session) = talking();
    assert!(rig.relay.offloaded_and_due(rig.now).is_empty());
    rig.now += Duration::from_secs(61);
    let due = rig.relay.offloaded_and_due(rig.now);
    assert_eq!(due, [port(session, Side::A), port(session, Side::B)]);
}

#[test]
fn a_packet_of_an_offloaded_stream_recalls_it_and_each_attempt_waits_longer() {
    let (mut rig, session) = talking();
    let a = port(session, Side::A);
    let more = carried(&rig, a, 3);
    rig.carried.insert(a, more);
    // The fast path has let number 6 pass: it comes after the 3 packets that went before.
    let (sent, _) = rig.packet(session, Side::A, CALLER, 6);
    assert_eq!(sent, Some((port(session, Side::B), at(CALLEE))));
    assert_eq!(rig.recalled, [a]);
    let stats = statistics(&rig, session);
    assert_eq!((stats.a.rtp.packets_in, stats.a.lost), (6, 0));
    let mut sequence = 7;
    let mut pauses = Vec::new();
    for _ in 0..3 {
        let (before, since) = (rig.offloaded.len(), rig.now);
        while rig.offloaded.len() == before {
            rig.advance(10);
            rig.packet(session, Side::A, CALLER, sequence);
            sequence += 1;
        }
        pauses.push((rig.now - since).as_millis());
        rig.packet(session, Side::A, CALLER, sequence);
        sequence += 1;
    }
    assert_eq!(pauses, [20, 40, 80]);
    assert_eq!(statistics(&rig, session).a.lost, 0);
}

#[test]
fn rtcp_on_the_rtp_port_and_strangers_recall_nothing() {
    let (mut rig, session) = talking();
    let a = port(session, Side::A);
    let report = [0x80, 201, 0, 1, 0, 0, 0, 1];
    assert!(!rig.relay.prepare(a, at(CALLER), &report, rig.now));
    let rtp = [0x80, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 1];
    assert!(!rig.relay.prepare(a, at(ELSEWHERE), &rtp, rig.now));
    let later = rig.now + Duration::from_secs(2);
    assert!(!rig.relay.prepare(a, at("203.0.113.9:4000"), &rtp, later));
}

#[test]
fn who_would_take_over_is_judged_by_when_the_fast_path_heard_the_source() {
    let (mut rig, session) = talking();
    let a = port(session, Side::A);
    rig.advance(5_000);
    let more = carried(&rig, a, 250);
    rig.carried.insert(a, more);
    let (sent, _) = rig.packet(session, Side::A, ELSEWHERE, 253);
    assert_eq!((sent, &rig.recalled[..]), (None, &[a][..]));
    assert_eq!(statistics(&rig, session).a.rejected.latched, 1);
    // The stream is offloaded again with the next packet of its source,
    rig.packet(session, Side::A, CALLER, 253);
    assert_eq!(rig.offloaded.len(), 3);
    // and taken over when that is silent.
    rig.advance(1_000);
    let (sent, _) = rig.packet(session, Side::A, ELSEWHERE, 254);
    assert_eq!(sent, Some((port(session, Side::B), at(CALLEE))));
    let (.., a, b) = (0, &rig.offloaded[3..], &rig.recalled[1..]);
    assert_eq!(b, [port(session, Side::A), port(session, Side::B)]);
    assert_eq!(a[0].3.from, at(ELSEWHERE));
    // What goes to A must find its new address.
    rig.packet(session, Side::B, CALLEE, 2);
    assert_eq!(
        rig.offloaded.last().map(|last| last.3.to),
        Some(at(ELSEWHERE))
    );
}

#[test]
fn another_relay_is_offloaded_to_only_when_its_stream_has_come() {
    let mut rig = Rig::new();
    rig.relay.set_fast_path(true);
    let session = rig.connect(C1, 1)[0].session;
    let other = "198.51.100.30:6000";
    rig.control(C1, chained(1, session, other));
    rig.packet(session, Side::A, CALLER, 1);
    let offloaded: Vec<_> = rig.offloaded.iter().map(|(port, ..)| *port).collect();
    assert_eq!(offloaded, [port(session, Side::A)]);
    rig.packet(session, Side::B, other, 1);
    assert_eq!(rig.offloaded.len(), 2);
}

#[test]
fn a_stream_that_the_fast_path_does_not_take_waits() {
    let (mut rig, session) = talking();
    let a = port(session, Side::A);
    rig.relay.handle_not_offloaded(a, rig.now);
    rig.advance(9_990);
    rig.packet(session, Side::A, CALLER, 3);
    assert_eq!(rig.offloaded.len(), 2);
    rig.advance(10);
    rig.packet(session, Side::A, CALLER, 4);
    assert_eq!(rig.offloaded.len(), 3);
}

#[test]
fn a_session_that_ends_by_itself_takes_its_streams_with_it() {
    let (mut rig, session) = talking();
    rig.advance(60_000);
    assert_eq!(rig.closed, [SessionId(session)]);
    assert_eq!(rig.recalled.len(), 2);
}
