//! When each timer fires, to the millisecond. `watch` asks at every millisecond, so that a list
//! of what happened also says that nothing happened in between.

use bytes::Bytes;
use sip::timer::{Fired, Timers};
use sip::transaction::client_invite::ClientInvite;
use sip::transaction::client_non_invite::ClientNonInvite;
use sip::transaction::server_invite::ServerInvite;
use sip::transaction::server_non_invite::ServerNonInvite;

use crate::clock::{at, send, watch};

const RELIABLE: bool = true;
const DATAGRAMS: bool = false;
const REQUEST: Bytes = Bytes::from_static(b"request");
const RESPONSE: Bytes = Bytes::from_static(b"response");
const ACK: fn() -> Bytes = || Bytes::from_static(b"ack");
/// Longer than any transaction lives.
const LONG: u64 = 100_000;

fn client_invite(reliable: bool) -> ClientInvite {
    ClientInvite::new(REQUEST, reliable, Timers::default(), at(0))
}

fn client_non_invite(reliable: bool) -> ClientNonInvite {
    ClientNonInvite::new(REQUEST, reliable, Timers::default(), at(0))
}

fn server_invite(reliable: bool) -> ServerInvite {
    ServerInvite::new(reliable, Timers::default())
}

fn server_non_invite(reliable: bool) -> ServerNonInvite {
    ServerNonInvite::new(reliable, Timers::default(), at(0))
}

fn sends(
    timer: &'static str,
    text: &'static str,
    times: &[u64],
) -> Vec<(u64, &'static str, Fired)> {
    times
        .iter()
        .map(|&time| (time, timer, send(text)))
        .collect()
}

/// "This process MUST continue so that the request is retransmitted with intervals that double after each
/// transmission. … If the client transaction is still in the "Calling" state when timer B fires, the client
/// transaction SHOULD inform the TU that a timeout has occurred." (17.1.1.2)
#[test]
fn timer_a_doubles_without_a_cap_and_timer_b_ends_the_invite_at_32_s() {
    let mut expected = sends(
        "timer A",
        "request",
        &[500, 1_500, 3_500, 7_500, 15_500, 31_500],
    );
    expected.push((32_000, "timer B", Fired::TimedOut));
    let mut client = client_invite(DATAGRAMS);
    assert_eq!(watch(&mut client, 0..LONG), expected);
    assert!(client.is_terminated());
}

/// "If a reliable transport is being used, the client transaction SHOULD NOT start timer A (Timer A
/// controls request retransmissions). For any transport, the client transaction MUST start timer B with a
/// value of 64*T1 seconds" (17.1.1.2)
#[test]
fn timer_a_is_off_over_a_reliable_transport_and_timer_b_is_not() {
    let mut client = client_invite(RELIABLE);
    assert_eq!(
        watch(&mut client, 0..LONG),
        [(32_000, "timer B", Fired::TimedOut)]
    );
}

/// "In the "Proceeding" state, the client transaction SHOULD NOT retransmit the request any longer."
/// (17.1.1.2)
#[test]
fn a_provisional_response_stops_timers_a_and_b_for_good() {
    for reliable in [DATAGRAMS, RELIABLE] {
        let mut client = client_invite(reliable);
        watch(&mut client, 0..400);
        client.handle_response(100, ACK, at(400));
        assert_eq!(watch(&mut client, 400..LONG), []);
        assert!(!client.is_terminated(), "Timer C is the proxy's");
    }
}

/// "The client transaction SHOULD start timer D when it enters the "Completed" state, with a value of at
/// least 32 seconds for unreliable transports, and a value of zero seconds for reliable transports."
/// (17.1.1.2)
#[test]
fn timer_d_keeps_a_failed_invite_for_32_s_over_datagrams() {
    let mut client = client_invite(DATAGRAMS);
    client.handle_response(486, ACK, at(700));
    assert_eq!(
        watch(&mut client, 700..LONG),
        [(32_700, "timer D", Fired::Ended)]
    );
}

#[test]
fn timer_d_is_not_restarted_by_a_failure_that_comes_again() {
    let mut client = client_invite(DATAGRAMS);
    client.handle_response(486, ACK, at(0));
    client.handle_response(486, ACK, at(20_000));
    assert_eq!(
        watch(&mut client, 20_000..LONG),
        [(32_000, "timer D", Fired::Ended)]
    );
}

/// "with a value of at least 32 seconds for unreliable transports, and a value of zero seconds for reliable
/// transports." (17.1.1.2)
#[test]
fn timer_d_is_zero_over_a_reliable_transport() {
    let mut client = client_invite(RELIABLE);
    client.handle_response(486, ACK, at(700));
    assert!(client.is_terminated());
    assert_eq!(watch(&mut client, 700..LONG), []);
}

/// "it MUST transition to the "Accepted" state, pass the 2xx response to the TU, and set Timer M to 64*T1."
/// (RFC 6026 section 7.2)
#[test]
fn timer_m_keeps_an_accepted_invite_for_32_s_over_any_transport() {
    for reliable in [DATAGRAMS, RELIABLE] {
        let mut client = client_invite(reliable);
        client.handle_response(200, ACK, at(1));
        client.handle_response(200, ACK, at(10_000));
        assert_eq!(
            watch(&mut client, 10_000..LONG),
            [(32_001, "timer M", Fired::Ended)]
        );
    }
}

/// "For the default values of T1 and T2, this results in intervals of 500 ms, 1 s, 2 s, 4 s, 4 s, 4 s, etc.
/// If Timer F fires while the client transaction is still in the "Trying" state, the client transaction
/// SHOULD inform the TU about the timeout" (17.1.2.2)
#[test]
fn timer_e_doubles_to_4_s_and_timer_f_ends_the_request_at_32_s() {
    let mut expected = sends(
        "timer E",
        "request",
        &[
            500, 1_500, 3_500, 7_500, 11_500, 15_500, 19_500, 23_500, 27_500, 31_500,
        ],
    );
    expected.push((32_000, "timer F", Fired::TimedOut));
    let mut client = client_non_invite(DATAGRAMS);
    assert_eq!(watch(&mut client, 0..LONG), expected);
    assert!(client.is_terminated());
}

/// "the client transaction SHOULD set timer F to fire in 64*T1 seconds. … If an unreliable transport is in
/// use, the client transaction MUST set timer E to fire in T1 seconds." (17.1.2.2)
#[test]
fn timer_e_is_off_over_a_reliable_transport_and_timer_f_is_not() {
    for provisional in [false, true] {
        let mut client = client_non_invite(RELIABLE);
        if provisional {
            client.handle_response(100, at(0));
        }
        assert_eq!(
            watch(&mut client, 0..LONG),
            [(32_000, "timer F", Fired::TimedOut)]
        );
    }
}

/// "If Timer E fires while in the "Proceeding" state, the request MUST be passed to the transport layer for
/// retransmission, and Timer E MUST be reset with a value of T2 seconds." (17.1.2.2)
#[test]
fn after_a_provisional_response_timer_e_runs_on_once_and_then_every_4_s() {
    // The 100 comes at 600 ms; the retransmission of 1,500 ms was scheduled already.
    let mut client = client_non_invite(DATAGRAMS);
    assert_eq!(
        watch(&mut client, 0..600),
        sends("timer E", "request", &[500])
    );
    client.handle_response(100, at(600));
    client.handle_response(100, at(900));
    let mut expected = sends(
        "timer E",
        "request",
        &[1_500, 5_500, 9_500, 13_500, 17_500, 21_500, 25_500, 29_500],
    );
    expected.push((32_000, "timer F", Fired::TimedOut));
    assert_eq!(watch(&mut client, 600..LONG), expected);
}

/// "Once the client transaction enters the "Completed" state, it MUST set Timer K to fire in T4 seconds for
/// unreliable transports, and zero seconds for reliable transports." (17.1.2.2)
#[test]
fn timer_k_absorbs_late_responses_for_5_s_over_datagrams() {
    for provisional in [false, true] {
        let mut client = client_non_invite(DATAGRAMS);
        if provisional {
            client.handle_response(100, at(100));
        }
        client.handle_response(200, at(300));
        client.handle_response(200, at(4_000));
        assert_eq!(
            watch(&mut client, 4_000..LONG),
            [(5_300, "timer K", Fired::Ended)]
        );
    }
}

/// "it MUST set Timer K to fire in T4 seconds for unreliable transports, and zero seconds for reliable
/// transports." (17.1.2.2)
#[test]
fn timer_k_is_zero_over_a_reliable_transport() {
    let mut client = client_non_invite(RELIABLE);
    client.handle_response(200, at(300));
    assert!(client.is_terminated());
    assert_eq!(watch(&mut client, 300..LONG), []);
}

#[test]
fn an_invite_waits_for_its_user_without_a_deadline() {
    for reliable in [DATAGRAMS, RELIABLE] {
        let mut server = server_invite(reliable);
        assert_eq!(watch(&mut server, 0..LONG), []);
        server.respond(&RESPONSE, 180, at(LONG));
        assert_eq!(watch(&mut server, LONG..2 * LONG), []);
    }
}

/// "If timer G fires, the response is passed to the transport layer once more for retransmission, and timer
/// G is set to fire in MIN(2*T1, T2) seconds. … If timer H fires while in the "Completed" state, it implies
/// that the ACK was never received." (17.2.1)
#[test]
fn timer_g_doubles_to_4_s_and_timer_h_ends_the_invite_at_32_s() {
    let mut expected = sends(
        "timer G",
        "response",
        &[
            500, 1_500, 3_500, 7_500, 11_500, 15_500, 19_500, 23_500, 27_500, 31_500,
        ],
    );
    expected.push((32_000, "timer H", Fired::TimedOut));
    let mut server = server_invite(DATAGRAMS);
    server.respond(&RESPONSE, 486, at(0));
    assert_eq!(watch(&mut server, 0..LONG), expected);
    assert!(server.is_terminated());
}

/// "For unreliable transports, timer G is set to fire in T1 seconds, and is not set to fire for reliable
/// transports. … When the "Completed" state is entered, timer H MUST be set to fire in 64*T1 seconds for
/// all transports." (17.2.1)
#[test]
fn timer_g_is_off_over_a_reliable_transport_and_timer_h_is_not() {
    let mut server = server_invite(RELIABLE);
    server.respond(&RESPONSE, 486, at(10));
    assert_eq!(
        watch(&mut server, 10..LONG),
        [(32_010, "timer H", Fired::TimedOut)]
    );
}

#[test]
fn a_retransmitted_invite_does_not_move_timer_g() {
    let mut server = server_invite(DATAGRAMS);
    server.respond(&RESPONSE, 486, at(0));
    assert_eq!(server.handle_request(), Some(RESPONSE));
    assert_eq!(
        watch(&mut server, 0..2_000),
        sends("timer G", "response", &[500, 1_500])
    );
}

/// "As Timer G is ignored in this state, any retransmissions of the response will cease. … When this state
/// is entered, timer I is set to fire in T4 seconds for unreliable transports, and zero seconds for
/// reliable transports." (17.2.1)
#[test]
fn the_ack_stops_timer_g_and_timer_i_absorbs_more_acks_for_5_s() {
    let mut server = server_invite(DATAGRAMS);
    server.respond(&RESPONSE, 486, at(0));
    watch(&mut server, 0..700);
    server.handle_ack(at(700));
    server.handle_ack(at(3_000));
    assert_eq!(
        watch(&mut server, 700..LONG),
        [(5_700, "timer I", Fired::Ended)]
    );
}

/// "timer I is set to fire in T4 seconds for unreliable transports, and zero seconds for reliable
/// transports." (17.2.1)
#[test]
fn timer_i_is_zero_over_a_reliable_transport() {
    let mut server = server_invite(RELIABLE);
    server.respond(&RESPONSE, 486, at(0));
    server.handle_ack(at(700));
    assert!(server.is_terminated());
    assert_eq!(watch(&mut server, 700..LONG), []);
}

/// "the state machine MUST transition to the "Accepted" state and set Timer L to 64*T1 … The server
/// transaction MUST NOT generate 2xx retransmissions on its own." (RFC 6026 section 7.1)
#[test]
fn timer_l_keeps_an_accepted_invite_for_32_s_over_any_transport_and_repeats_nothing() {
    for reliable in [DATAGRAMS, RELIABLE] {
        let mut server = server_invite(reliable);
        server.respond(&RESPONSE, 200, at(5));
        server.respond(&RESPONSE, 200, at(20_000));
        assert_eq!(
            watch(&mut server, 5..LONG),
            [(32_005, "timer L", Fired::Ended)]
        );
    }
}

#[test]
fn a_request_that_nobody_answers_is_forgotten_when_the_client_has_given_up() {
    for (reliable, provisional) in [(DATAGRAMS, false), (DATAGRAMS, true), (RELIABLE, true)] {
        let mut server = server_non_invite(reliable);
        if provisional {
            server.respond(&RESPONSE, 100, at(0));
        }
        let mut expected = vec![(32_000, "unanswered", Fired::TimedOut)];
        if !provisional {
            expected.insert(0, (3_500, "slow", Fired::Slow));
        }
        assert_eq!(watch(&mut server, 0..LONG), expected);
    }
}

/// "Without regard to transport, an element MUST respond to a non-INVITE request with a Status-Code
/// of 100 if it has not otherwise responded after the amount of time it takes a client
/// transaction's Timer E to be reset to T2" (RFC 4320 section 4.1).
#[test]
fn timer_e_is_reset_to_t2_after_its_third_firing() {
    let timers = Timers::default();
    let mut client = client_non_invite(DATAGRAMS);
    let fired: Vec<_> = watch(&mut client, 0..5_000)
        .into_iter()
        .map(|(ms, name, _)| (ms, name))
        .collect();
    assert_eq!(
        fired,
        [(500, "timer E"), (1_500, "timer E"), (3_500, "timer E")]
    );
    assert_eq!(timers.until_t2().as_millis(), 3_500);
    let odd = Timers {
        t1: timers.t2,
        ..timers
    };
    assert_eq!(odd.until_t2().as_millis(), 0);
}

/// "When the server transaction enters the "Completed" state, it MUST set Timer J to fire in 64*T1 seconds
/// for unreliable transports, and zero seconds for reliable transports." (17.2.2)
#[test]
fn timer_j_keeps_the_answer_for_32_s_over_datagrams() {
    let mut server = server_non_invite(DATAGRAMS);
    server.respond(&RESPONSE, 200, at(2_000));
    server.handle_request();
    assert_eq!(
        watch(&mut server, 2_000..LONG),
        [(34_000, "timer J", Fired::Ended)]
    );
}

/// "it MUST set Timer J to fire in 64*T1 seconds for unreliable transports, and zero seconds for reliable
/// transports." (17.2.2)
#[test]
fn timer_j_is_zero_over_a_reliable_transport() {
    let mut server = server_non_invite(RELIABLE);
    server.respond(&RESPONSE, 200, at(2_000));
    assert!(server.is_terminated());
    assert_eq!(watch(&mut server, 2_000..LONG), []);
}

#[test]
fn a_late_event_loop_sends_once_and_not_a_burst() {
    let mut client = client_invite(DATAGRAMS);
    assert_eq!(client.handle_timeout(at(10_000)), send("request"));
    assert_eq!(client.handle_timeout(at(10_000)), Fired::Nothing);
    assert_eq!(
        watch(&mut client, 10_000..20_000),
        sends("timer A", "request", &[11_000, 13_000, 17_000])
    );
}

#[test]
fn an_event_loop_that_slept_past_the_end_retransmits_nothing() {
    let mut client = client_invite(DATAGRAMS);
    assert_eq!(client.handle_timeout(at(40_000)), Fired::TimedOut);
    let mut server = server_invite(DATAGRAMS);
    server.respond(&RESPONSE, 500, at(0));
    assert_eq!(server.handle_timeout(at(40_000)), Fired::TimedOut);
}

/// "the client transaction does not know the value of T1 in use by the server transaction, so an absolute
/// minimum of 32s is used instead of basing Timer D on T1." (17.1.1.2)
#[test]
fn the_timetable_scales_with_t1_and_timer_d_does_not() {
    let timers = Timers {
        t1: std::time::Duration::from_millis(100),
        ..Timers::default()
    };
    let mut client = ClientInvite::new(REQUEST, DATAGRAMS, timers, at(0));
    let mut expected = sends("timer A", "request", &[100, 300, 700, 1_500, 3_100, 6_300]);
    expected.push((6_400, "timer B", Fired::TimedOut));
    assert_eq!(watch(&mut client, 0..LONG), expected);

    let mut client = ClientInvite::new(REQUEST, DATAGRAMS, timers, at(0));
    client.handle_response(404, ACK, at(0));
    assert_eq!(
        watch(&mut client, 0..LONG),
        [(32_000, "timer D", Fired::Ended)]
    );
}

#[test]
fn a_t1_of_zero_does_not_hang() {
    let timers = Timers {
        t1: std::time::Duration::ZERO,
        ..Timers::default()
    };
    let mut client = ClientNonInvite::new(REQUEST, DATAGRAMS, timers, at(0));
    assert_eq!(client.handle_timeout(at(0)), Fired::TimedOut);
}
