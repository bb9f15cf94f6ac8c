//! What is too long a silence: a different time for each kind of it.

use super::*;

#[test]
fn a_side_that_stops_while_the_other_goes_on_ends_the_session_after_its_own_time() {
    let mut rig = talking();
    for _ in 0..299 {
        rig.advance(1000);
        rig.rtp(Side::A, CALLER, 2);
    }
    rig.advance(999);
    assert_eq!(rig.timeout(), None);
    rig.advance(1);
    assert_eq!(rig.timeout(), Some(Expiry::OneWay));
}

#[test]
fn a_side_without_voice_that_sends_rtcp_is_not_silent() {
    let mut rig = talking();
    for _ in 0..200 {
        rig.advance(5000);
        rig.rtp(Side::A, CALLER, 2);
        rig.rtcp(Side::B, Component::Rtcp, "198.51.100.20:5001", 1);
        assert_eq!(rig.timeout(), None);
    }
}

#[test]
fn without_a_limit_one_side_may_talk_alone_and_both_may_still_not_be_silent() {
    let mut rig = Rig::lease();
    rig.session = Session::new(Limits {
        one_way: None,
        ..LIMITS
    });
    rig.bind();
    rig.rtp(Side::B, CALLEE, 1);
    for _ in 0..1000 {
        rig.advance(1000);
        rig.rtp(Side::A, CALLER, 2);
        assert_eq!(rig.timeout(), None);
    }
    rig.advance(60_000);
    assert_eq!(rig.timeout(), Some(Expiry::Idle));
}

#[test]
fn a_call_on_hold_outlives_every_limit_but_that_for_calls_on_hold() {
    let mut rig = talking();
    rig.update(Side::B, held("198.51.100.20"));
    assert!(rig.session.is_held(Side::B));
    rig.advance(3_599_999);
    assert_eq!(rig.timeout(), None);
    rig.advance(1);
    assert_eq!(rig.timeout(), Some(Expiry::Held));
}

#[test]
fn what_comes_while_a_call_is_on_hold_begins_its_time_anew() {
    let mut rig = talking();
    rig.update(Side::B, held("198.51.100.20"));
    rig.advance(3_000_000);
    // Music.
    rig.rtp(Side::A, CALLER, 2);
    rig.advance(3_599_999);
    assert_eq!(rig.timeout(), None);
    rig.advance(1);
    assert_eq!(rig.timeout(), Some(Expiry::Held));
}

#[test]
fn after_the_resume_the_other_limits_hold_again_from_then_on() {
    let mut rig = talking();
    rig.update(Side::B, held("198.51.100.20"));
    rig.advance(3_000_000);
    rig.update(Side::B, exact("198.51.100.20"));
    rig.advance(59_999);
    assert_eq!(rig.timeout(), None);
    rig.advance(1);
    assert_eq!(rig.timeout(), Some(Expiry::Idle));
}

/// An announcement to a party that is not to send.
#[test]
fn a_side_that_signalling_has_silenced_from_the_start_makes_no_session_half_open() {
    let mut rig = Rig::lease();
    rig.bind_to(exact("192.0.2.10"), held("198.51.100.20"));
    for _ in 0..1000 {
        rig.advance(1000);
        rig.rtp(Side::A, CALLER, 1);
        assert_eq!(rig.timeout(), None);
    }
}

fn talking() -> Rig {
    let mut rig = Rig::bound();
    rig.rtp(Side::A, CALLER, 1);
    rig.rtp(Side::B, CALLEE, 1);
    rig
}

fn held(address: &str) -> Gate {
    Gate {
        held: true,
        ..exact(address)
    }
}
