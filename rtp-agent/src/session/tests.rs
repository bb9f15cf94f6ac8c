//! Packets in, exact outputs out, in virtual time.

use wire::relay_control::{GateMode, Payload};

use super::*;
use crate::clock;

mod attacks;
mod silence;

const LIMITS: Limits = Limits {
    idle: Duration::from_secs(60),
    half_open: Duration::from_secs(240),
    one_way: Some(Duration::from_secs(300)),
    held: Duration::from_secs(3600),
    learning: Duration::from_secs(60),
    lease: Duration::from_secs(30),
    linger: Duration::from_secs(2),
};
const CALLER: &str = "192.0.2.10:4000";
const CALLEE: &str = "198.51.100.20:5000";

#[test]
fn media_pass_both_ways_once_both_sides_have_sent() {
    let mut rig = Rig::bound();
    assert_eq!(rig.rtp(Side::A, CALLER, 1), (None, vec![started(Side::A)]));
    // The callee's first packet goes straight on, and frees the caller's.
    assert_eq!(
        rig.rtp(Side::B, CALLEE, 9),
        (
            Some(at(CALLER)),
            vec![started(Side::B), flushed(Side::B, CALLEE, 1)]
        )
    );
    assert_eq!(rig.rtp(Side::A, CALLER, 2), (Some(at(CALLEE)), vec![]));
    let (a, b) = (
        *rig.session.counters(Side::A),
        *rig.session.counters(Side::B),
    );
    assert_eq!((a.rtp_in.packets, a.rtp_out.packets, a.held), (2, 1, 1));
    assert_eq!((b.rtp_in.packets, b.rtp_out.packets, b.held), (1, 2, 0));
    assert_eq!(rig.hold.used(), 0);
}

#[test]
fn nothing_is_sent_to_an_address_that_has_not_sent() {
    let mut rig = Rig::bound();
    for sequence in 0..100 {
        assert_eq!(rig.rtp(Side::A, CALLER, sequence).0, None);
    }
    assert_eq!(rig.session.latched(Side::B, Component::Rtp), None);
}

#[test]
fn packets_before_the_bind_wait_for_the_gate_and_keep_their_order() {
    let mut rig = Rig::lease();
    let stranger = "203.0.113.66:1";
    assert_eq!(rig.rtp(Side::B, CALLEE, 1), (None, vec![]));
    assert_eq!(rig.rtp(Side::B, stranger, 66), (None, vec![]));
    assert_eq!(rig.rtp(Side::B, CALLEE, 2), (None, vec![]));
    rig.advance(1);
    assert_eq!(rig.rtp(Side::A, CALLER, 7), (None, vec![]));

    let outputs = rig.bind();

    assert_eq!(
        outputs,
        [
            started(Side::B),
            started(Side::A),
            flushed(Side::A, CALLER, 1),
            flushed(Side::A, CALLER, 2),
            flushed(Side::B, CALLEE, 7),
        ]
    );
    let b = rig.session.counters(Side::B);
    assert_eq!((b.rejected_gate, b.rtp_in.packets), (1, 2));
    assert_eq!(rig.hold.used(), 0);
}

#[test]
fn held_packets_expire_after_one_second_and_are_counted() {
    let mut rig = Rig::bound();
    rig.rtp(Side::A, CALLER, 1);
    assert_eq!(rig.session.poll_timeout(), Some(rig.after(1000)));
    rig.advance(999);
    assert_eq!(rig.timeout(), None);
    assert_eq!(rig.hold.used(), 1);
    rig.advance(1);
    assert_eq!(rig.timeout(), None);
    assert_eq!(rig.hold.used(), 0);
    assert_eq!(rig.session.counters(Side::A).hold_overflow, 1);
    assert_eq!(rig.rtp(Side::B, CALLEE, 9).1, [started(Side::B)]);
}

#[test]
fn a_stranger_is_refused_before_and_after_latching_and_counted_by_reason() {
    let mut rig = Rig::bound();
    assert_eq!(rig.rtp(Side::A, "203.0.113.66:1", 1), (None, vec![]));
    rig.rtp(Side::A, CALLER, 1);
    assert_eq!(rig.rtp(Side::A, "203.0.113.66:1", 1), (None, vec![]));
    assert_eq!(rig.rtp(Side::A, "192.0.2.10:4004", 1), (None, vec![]));
    let a = rig.session.counters(Side::A);
    assert_eq!((a.rejected_gate, a.rejected_stranger), (2, 1));
}

#[test]
fn what_is_not_rtp_is_refused_even_from_the_latched_source() {
    let mut rig = Rig::bound();
    rig.rtp(Side::A, CALLER, 1);
    let stun = [0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 0, 0, 0, 0];
    assert_eq!(rig.packet(Side::A, Component::Rtp, CALLER, &stun).0, None);
    // RTP on the RTCP port.
    let media = rtp(2);
    assert_eq!(rig.packet(Side::A, Component::Rtcp, CALLER, &media).0, None);
    assert_eq!(rig.session.counters(Side::A).rejected_not_rtp, 2);
}

/// T.38 section 9.1: the payload of UDPTL is not RTP. Declared in SDP it passes, with the same checks
/// of its source; the RTP of another session is as strict as ever.
#[test]
fn declared_datagrams_pass_with_the_same_source_checks() {
    const UDPTL: [u8; 6] = [0, 1, 2, 1, 6, 0];
    let mut rig = Rig::bound();
    assert_eq!(rig.packet(Side::A, Component::Rtp, CALLER, &UDPTL).0, None);
    assert_eq!(rig.session.counters(Side::A).rejected_not_rtp, 1);
    let fax = |address| Gate {
        payload: Payload::Datagrams,
        ..exact(address)
    };
    rig.session
        .handle_update(Side::A, fax("192.0.2.10"), rig.now);
    rig.session
        .handle_update(Side::B, fax("198.51.100.20"), rig.now);
    rig.packet(Side::A, Component::Rtp, "203.0.113.66:4000", &UDPTL);
    assert_eq!(rig.session.counters(Side::A).rejected_gate, 1);

    rig.packet(Side::A, Component::Rtp, CALLER, &UDPTL);
    assert_eq!(rig.session.counters(Side::A).held, 1);
    let (to, outputs) = rig.packet(Side::B, Component::Rtp, CALLEE, &UDPTL);
    assert_eq!(to, Some(at(CALLER)));
    assert!(
        outputs.iter().any(|output| matches!(
            output,
            Output::Transmit { side: Side::B, bytes, .. } if **bytes == UDPTL
        )),
        "what the caller had sent: {outputs:?}"
    );
    let neighbour = "192.0.2.10:9999";
    rig.packet(Side::A, Component::Rtp, neighbour, &UDPTL);
    assert_eq!(rig.session.counters(Side::A).rejected_stranger, 1);
    rig.packet(Side::A, Component::Rtcp, CALLER, &UDPTL);
    assert_eq!(rig.session.counters(Side::A).rejected_not_rtp, 2);
    assert_eq!(rig.session.counters(Side::B).rtp_out.packets, 1);
}

/// A re-INVITE from audio to fax and back (T.38 annex D) keeps the source that is latched.
#[test]
fn a_line_that_turns_from_audio_to_fax_and_back_keeps_its_parties() {
    let mut rig = Rig::bound();
    rig.rtp(Side::A, CALLER, 1);
    rig.rtp(Side::B, CALLEE, 1);
    for (payload, bytes) in [
        (Payload::Datagrams, [0, 0, 1, 0].as_slice()),
        (Payload::Rtp, &rtp(2)),
    ] {
        for (side, address) in [(Side::A, "192.0.2.10"), (Side::B, "198.51.100.20")] {
            let gate = Gate {
                payload,
                ..exact(address)
            };
            rig.session.handle_update(side, gate, rig.now);
        }
        let (to, _) = rig.packet(Side::A, Component::Rtp, CALLER, bytes);
        assert_eq!(to, Some(at(CALLEE)), "{payload:?}");
    }
    let (to, _) = rig.packet(Side::A, Component::Rtp, CALLER, &[0, 0, 1, 0]);
    assert_eq!(to, None, "RTP lines are strict");
}

#[test]
fn rtcp_on_its_own_port_latches_there_and_injected_rtcp_does_not() {
    let mut rig = Rig::bound();
    rig.rtp(Side::A, CALLER, 1);
    rig.rtp(Side::B, CALLEE, 1);
    rig.rtcp(Side::B, Component::Rtcp, "198.51.100.20:5001", 1);
    let injected = rig.rtcp(Side::A, Component::Rtcp, "203.0.113.66:4001", 1);
    assert_eq!(injected, (None, vec![]));
    let (to, outputs) = rig.rtcp(Side::A, Component::Rtcp, "192.0.2.10:4001", 1);
    assert_eq!(to, Some(at("198.51.100.20:5001")));
    // The callee's report waited for this.
    assert!(matches!(
        outputs.as_slice(),
        [Output::Transmit {
            side: Side::A,
            component: Component::Rtcp,
            ..
        }]
    ));
    assert_eq!(rig.session.counters(Side::A).rtcp_in.packets, 1);
}

#[test]
fn rtcp_from_another_host_than_the_rtp_is_refused_even_through_an_open_gate() {
    let mut rig = Rig::lease();
    let open = Gate {
        expected: Vec::new(),
        mode: GateMode::Any,
        ..Gate::default()
    };
    rig.bind_to(open.clone(), open);
    rig.rtcp(Side::A, Component::Rtcp, "203.0.113.66:4001", 1);
    assert!(rig.session.latched(Side::A, Component::Rtcp).is_some());
    // RTP is the better witness: the RTCP source is forgotten.
    rig.rtp(Side::A, CALLER, 1);
    assert_eq!(rig.session.latched(Side::A, Component::Rtcp), None);
    rig.rtcp(Side::A, Component::Rtcp, "203.0.113.66:4001", 1);
    assert_eq!(rig.session.latched(Side::A, Component::Rtcp), None);
    assert_eq!(rig.session.counters(Side::A).rejected_stranger, 1);
}

#[test]
fn rtcp_on_the_rtp_port_passes_from_the_latched_source_only() {
    let mut rig = Rig::bound();
    rig.rtp(Side::A, CALLER, 1);
    rig.rtp(Side::B, CALLEE, 1);
    let (to, _) = rig.rtcp(Side::A, Component::Rtp, CALLER, 1);
    assert_eq!(to, Some(at(CALLEE)));
    let (to, _) = rig.rtcp(Side::A, Component::Rtp, "192.0.2.10:4001", 1);
    assert_eq!(to, None);
}

#[test]
fn a_rebound_source_gets_the_media_from_its_first_packet_on() {
    let mut rig = Rig::bound();
    rig.rtp(Side::A, CALLER, 1);
    rig.rtp(Side::B, CALLEE, 1);
    rig.advance(1000);
    let rebound = "192.0.2.10:7777";
    assert_eq!(rig.rtp(Side::A, rebound, 2), (Some(at(CALLEE)), vec![]));
    assert_eq!(rig.rtp(Side::B, CALLEE, 2), (Some(at(rebound)), vec![]));
    assert_eq!(rig.session.counters(Side::A).moved, 1);
}

#[test]
fn a_session_without_media_ends_after_the_idle_time_to_the_millisecond() {
    let mut rig = Rig::bound();
    rig.rtp(Side::A, CALLER, 1);
    rig.rtp(Side::B, CALLEE, 1);
    rig.advance(10_000);
    rig.rtp(Side::A, CALLER, 2);
    rig.advance(59_999);
    assert_eq!(rig.timeout(), None);
    rig.advance(1);
    assert_eq!(rig.timeout(), Some(Expiry::Idle));
}

#[test]
fn a_half_open_session_ends_after_its_own_time_even_while_one_side_sends() {
    let mut rig = Rig::bound();
    for _ in 0..239 {
        rig.advance(1000);
        rig.rtp(Side::A, CALLER, 1);
    }
    rig.advance(999);
    assert_eq!(rig.timeout(), None);
    rig.advance(1);
    assert_eq!(rig.timeout(), Some(Expiry::HalfOpen));
}

#[test]
fn a_new_gate_in_mid_call_starts_the_half_open_time_again() {
    let mut rig = Rig::bound();
    rig.rtp(Side::A, CALLER, 1);
    rig.rtp(Side::B, CALLEE, 1);
    rig.advance(59_000);
    let moved = exact("203.0.113.9");
    rig.session.handle_update(Side::A, moved, rig.now);
    assert_eq!(rig.session.latched(Side::A, Component::Rtp), None);
    rig.advance(239_999);
    assert_eq!(rig.timeout(), None);
    rig.advance(1);
    assert_eq!(rig.timeout(), Some(Expiry::HalfOpen));
}

#[test]
fn a_released_session_lingers_and_still_passes_packets() {
    let mut rig = Rig::bound();
    rig.rtp(Side::A, CALLER, 1);
    rig.rtp(Side::B, CALLEE, 1);
    rig.session.handle_release(rig.now);
    rig.advance(1999);
    assert_eq!(rig.timeout(), None);
    assert_eq!(rig.rtp(Side::A, CALLER, 2).0, Some(at(CALLEE)));
    rig.advance(1);
    assert_eq!(rig.timeout(), Some(Expiry::Linger));
}

#[test]
fn a_lease_expires_only_while_its_concentrator_is_away() {
    let mut rig = Rig::lease();
    assert_eq!(rig.session.poll_timeout(), None);
    rig.session.handle_owner_lost(rig.now);
    rig.advance(29_999);
    assert_eq!(rig.timeout(), None);
    rig.session.handle_owner_back();
    rig.advance(100_000);
    assert_eq!(rig.timeout(), None);
    rig.session.handle_owner_lost(rig.now);
    rig.advance(30_000);
    assert_eq!(rig.timeout(), Some(Expiry::Lease));
}

#[test]
fn a_lost_concentrator_does_not_end_a_bound_session() {
    let mut rig = Rig::bound();
    rig.rtp(Side::A, CALLER, 1);
    rig.rtp(Side::B, CALLEE, 1);
    rig.session.handle_owner_lost(rig.now);
    rig.advance(59_000);
    assert_eq!(rig.timeout(), None);
    assert_eq!(rig.rtp(Side::A, CALLER, 2).0, Some(at(CALLEE)));
}

#[test]
fn closing_gives_back_the_share_of_the_hold_budget() {
    let mut rig = Rig::bound();
    rig.rtp(Side::A, CALLER, 1);
    rig.session.handle_close(&mut rig.hold);
    assert_eq!(rig.hold.used(), 0);
}

/// A session, its clock and the shared budget.
struct Rig {
    session: Session,
    now: Instant,
    hold: HoldBudget,
}

impl Rig {
    fn lease() -> Self {
        Self {
            session: Session::new(LIMITS),
            now: clock::start(),
            hold: HoldBudget::new(1000),
        }
    }

    fn bound() -> Self {
        let mut rig = Self::lease();
        assert_eq!(rig.bind(), []);
        rig
    }

    fn bind(&mut self) -> Vec<Output> {
        self.bind_to(exact("192.0.2.10"), exact("198.51.100.20"))
    }

    fn bind_to(&mut self, a: Gate, b: Gate) -> Vec<Output> {
        let mut out = Vec::new();
        let mut context = Context {
            hold: &mut self.hold,
            out: &mut out,
        };
        self.session.handle_bind(a, b, self.now, &mut context);
        out
    }

    fn update(&mut self, side: Side, gate: Gate) {
        self.session.handle_update(side, gate, self.now);
    }

    fn rtp(&mut self, side: Side, from: &str, sequence: u8) -> (Option<SocketAddr>, Vec<Output>) {
        self.packet(side, Component::Rtp, from, &rtp(sequence))
    }

    fn rtcp(
        &mut self,
        side: Side,
        component: Component,
        from: &str,
        ssrc: u8,
    ) -> (Option<SocketAddr>, Vec<Output>) {
        self.packet(side, component, from, &[0x80, 201, 0, 1, 0, 0, 0, ssrc])
    }

    fn packet(
        &mut self,
        side: Side,
        component: Component,
        from: &str,
        bytes: &[u8],
    ) -> (Option<SocketAddr>, Vec<Output>) {
        let mut out = Vec::new();
        let mut context = Context {
            hold: &mut self.hold,
            out: &mut out,
        };
        let packet = Packet {
            side,
            component,
            from: at(from),
            bytes,
        };
        let to = self.session.handle_packet(packet, self.now, &mut context);
        (to, out)
    }

    fn timeout(&mut self) -> Option<Expiry> {
        let mut context = Context {
            hold: &mut self.hold,
            out: &mut Vec::new(),
        };
        self.session.handle_timeout(self.now, &mut context)
    }

    fn advance(&mut self, milliseconds: u64) {
        self.now = self.after(milliseconds);
    }

    fn after(&self, milliseconds: u64) -> Instant {
        self.now + Duration::from_millis(milliseconds)
    }
}

fn started(side: Side) -> Output {
    Output::MediaStarted { side }
}

fn flushed(side: Side, to: &str, sequence: u8) -> Output {
    Output::Transmit {
        side,
        component: Component::Rtp,
        to: at(to),
        bytes: rtp(sequence).into(),
    }
}

fn rtp(sequence: u8) -> [u8; 12] {
    [0x80, 0, 0, sequence, 0, 0, 0, 0, 0, 0, 0, 1]
}

fn exact(address: &str) -> Gate {
    Gate {
        expected: vec![address.parse().expect("an address")],
        mode: GateMode::Exact,
        ..Gate::default()
    }
}

fn at(address: &str) -> SocketAddr {
    address.parse().expect("an address")
}
