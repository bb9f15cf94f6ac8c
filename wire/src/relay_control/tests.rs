use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;

fn ip() -> impl Strategy<Value = IpAddr> {
    any::<IpAddr>()
}

fn side() -> impl Strategy<Value = Side> {
    prop_oneof![Just(Side::A), Just(Side::B)]
}

prop_compose! {
    fn side_addr()(addr in ip(), rtp in any::<u16>(), rtcp in any::<u16>()) -> SideAddr {
        SideAddr { addr, rtp, rtcp }
    }
}

prop_compose! {
    fn gate()(
        expected in prop::collection::vec(ip(), 0..4),
        port in any::<Option<u16>>(),
        mode in prop_oneof![Just(GateMode::Exact), Just(GateMode::Subnet), Just(GateMode::Any)],
        payload in prop_oneof![
            Just(Payload::Rtp), Just(Payload::RtpAndDtls), Just(Payload::Datagrams),
        ],
        held in any::<bool>(),
    ) -> Gate {
        Gate { expected, port, mode, payload, held }
    }
}

prop_compose! {
    fn counted()(v in any::<[u64; 4]>()) -> Counted {
        Counted { packets_in: v[0], bytes_in: v[1], packets_out: v[2], bytes_out: v[3] }
    }
}

prop_compose! {
    fn quality()(
        expected in any::<u64>(), r_factor in any::<u8>(), mos_x100 in any::<u16>(),
        jitter_us in any::<u32>(), densities in any::<[u8; 2]>(), lengths in any::<[u16; 2]>(),
    ) -> Quality {
        let ([burst_density, gap_density], [burst_ms, gap_ms]) = (densities, lengths);
        Quality {
            expected, r_factor, mos_x100, jitter_us, burst_density, gap_density, burst_ms, gap_ms,
        }
    }
}

prop_compose! {
    fn side_statistics()(
        rtp in counted(), rtcp in counted(), lost in any::<u64>(), jitter in any::<u32>(),
        rejected in any::<[u64; 10]>(), latched_rtp in any::<Option<SocketAddr>>(),
        latched_rtcp in any::<Option<SocketAddr>>(), relatched in any::<u32>(), held in any::<bool>(),
        quality in prop::option::of(quality()),
    ) -> SideStatistics {
        let [gate, latched, malformed, no_peer, limit, unbound, send_failed, ssrc, late, waited] =
            rejected;
        SideStatistics {
            rtp, rtcp, lost, jitter,
            rejected: Rejected {
                gate, latched, malformed, no_peer, limit, unbound, send_failed, ssrc, late,
            },
            latched_rtp: latched_rtp.map(plain),
            latched_rtcp: latched_rtcp.map(plain),
            relatched, held, waited, quality,
        }
    }
}

/// Without IPv6 flow label and scope, which are not carried.
fn plain(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip(), addr.port())
}

prop_compose! {
    fn stats()(duration_ms in any::<u64>(), a in side_statistics(), b in side_statistics())
        -> SessionStatistics {
        SessionStatistics { duration_ms, a, b }
    }
}

fn from_agent() -> impl Strategy<Value = FromAgent> {
    let lease = (any::<u64>(), side_addr(), side_addr()).prop_map(|(session, a, b)| Lease {
        session,
        a,
        b,
    });
    prop_oneof![
        (
            any::<u16>(),
            ".*",
            any::<u64>(),
            prop::collection::vec(ip(), 0..4),
            ".*"
        )
            .prop_map(|(version, name, epoch, media_addresses, software)| {
                FromAgent::Hello {
                    version,
                    name,
                    epoch,
                    media_addresses,
                    software,
                }
            }),
        prop::collection::vec(lease, 0..20).prop_map(|leases| FromAgent::Leases { leases }),
        any::<u64>().prop_map(|request| FromAgent::Done { request }),
        (any::<u64>(), any::<u32>(), ".*").prop_map(|(request, code, text)| FromAgent::Failed {
            request,
            code: ErrorCode::from_number(code),
            text
        }),
        (any::<u64>(), side())
            .prop_map(|(session, side)| FromAgent::MediaStarted { session, side }),
        (any::<u64>(), any::<u32>()).prop_map(|(session, number)| FromAgent::MediaTimeout {
            session,
            silence: Silence::from_number(number),
        }),
        (any::<u64>(), stats()).prop_map(|(session, stats)| FromAgent::Ended { session, stats }),
        (any::<u64>(), any::<u64>(), stats()).prop_map(|(request, session, stats)| {
            FromAgent::Statistics {
                request,
                session,
                stats,
            }
        }),
        any::<u64>().prop_map(|seq| FromAgent::Heartbeat { seq }),
        any::<u64>().prop_map(|seq| FromAgent::HeartbeatAck { seq }),
        Just(FromAgent::Draining),
    ]
}

fn to_agent() -> impl Strategy<Value = ToAgent> {
    let ids = (any::<u64>(), any::<u64>());
    prop_oneof![
        (any::<u16>(), ".*", any::<u32>(), any::<u32>()).prop_map(
            |(version, name, stock, heartbeat_ms)| ToAgent::Welcome {
                version,
                name,
                stock,
                heartbeat_ms
            }
        ),
        (ids, gate(), gate(), ".*").prop_map(|((request, session), a, b, call)| {
            ToAgent::Bind {
                request,
                session,
                a,
                b,
                call,
            }
        }),
        (ids, side(), gate()).prop_map(|((request, session), side, gate)| {
            ToAgent::Update {
                request,
                session,
                side,
                gate,
            }
        }),
        ids.prop_map(|(request, session)| ToAgent::Release { request, session }),
        ids.prop_map(|(request, session)| ToAgent::Query { request, session }),
        any::<u64>().prop_map(|seq| ToAgent::Heartbeat { seq }),
        any::<u64>().prop_map(|seq| ToAgent::HeartbeatAck { seq }),
    ]
}

fn payload<M: Message>(message: &M) -> Vec<u8> {
    encode_frame(message).unwrap()[FRAME_HEADER_LEN..].to_vec()
}

proptest! {
    #[test]
    fn what_an_agent_says_comes_back_as_it_was(message in from_agent()) {
        prop_assert_eq!(decode::<FromAgent>(&payload(&message)), Ok(message));
    }

    #[test]
    fn what_a_concentrator_says_comes_back_as_it_was(message in to_agent()) {
        prop_assert_eq!(decode::<ToAgent>(&payload(&message)), Ok(message));
    }

    #[test]
    fn every_truncation_is_an_error(message in from_agent()) {
        let bytes = payload(&message);
        for len in 0..bytes.len() {
            prop_assert!(decode::<FromAgent>(&bytes[..len]).is_err());
        }
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode::<FromAgent>(&bytes);
        let _ = decode::<ToAgent>(&bytes);
        let _ = request_of(&bytes);
    }

    #[test]
    fn frames_survive_any_cut(
        messages in prop::collection::vec(to_agent(), 1..5), cut in 1_usize..50
    ) {
        let stream: Vec<u8> =
            messages.iter().flat_map(|message| encode_frame(message).unwrap()).collect();
        let mut framer = Framer::default();
        let mut seen = Vec::new();
        for piece in stream.chunks(cut) {
            framer.push(piece).unwrap();
            while let Some(frame) = framer.next_frame().unwrap() {
                seen.push(decode::<ToAgent>(frame).unwrap());
            }
        }
        prop_assert_eq!(seen, messages);
    }
}

#[test]
fn the_bytes_of_a_lease_are_those_of_the_document() {
    let side = |rtp| SideAddr {
        addr: IpAddr::from([10, 0, 1, 2]),
        rtp,
        rtcp: rtp + 1,
    };
    let leases = vec![Lease {
        session: 7,
        a: side(30000),
        b: side(30002),
    }];
    let expected = [
        0, 0, 0, 30, 0x82, 0x01, 0x81, 0x81, 0x83, 0x07, //
        0x83, 0x44, 10, 0, 1, 2, 0x19, 0x75, 0x30, 0x19, 0x75, 0x31, //
        0x83, 0x44, 10, 0, 1, 2, 0x19, 0x75, 0x32, 0x19, 0x75, 0x33,
    ];
    let frame = encode_frame(&FromAgent::Leases { leases }).unwrap();
    assert_eq!(frame, expected);
}

#[test]
fn a_message_of_a_later_version_has_a_name_of_its_own() {
    // [99, [1, 2]]
    let later = [0x82, 0x18, 99, 0x82, 1, 2];
    assert_eq!(
        decode::<FromAgent>(&later),
        Err(MessageError::UnknownMessage(99))
    );
    assert_eq!(
        decode::<ToAgent>(&later),
        Err(MessageError::UnknownMessage(99))
    );
    assert_eq!(request_of(&later), Some(1));
}

#[test]
fn fields_of_a_later_version_are_skipped() {
    // Done { request: 5 } with two more fields, the second a map.
    let later = [0x82, 0x02, 0x83, 0x05, 0x61, b'x', 0xa1, 0x01, 0x02];
    assert_eq!(
        decode::<FromAgent>(&later),
        Ok(FromAgent::Done { request: 5 })
    );
}

#[test]
fn a_gate_mode_of_a_later_version_makes_the_message_malformed_but_answerable() {
    let gate = Gate {
        mode: GateMode::Any,
        ..Gate::default()
    };
    let mut bytes = payload(&ToAgent::Update {
        request: 9,
        session: 1,
        side: Side::A,
        gate,
    });
    // The mode, and after it the payload and that nobody is held.
    assert_eq!(bytes.split_off(bytes.len() - 3), [2, 0, 0xf4]);
    bytes.extend([17, 0, 0xf4]);
    assert_eq!(decode::<ToAgent>(&bytes), Err(MessageError::Malformed(2)));
    assert_eq!(request_of(&bytes), Some(9));
}

#[test]
fn a_gate_of_an_older_concentrator_lets_rtp_through() {
    // No expected address, any port, mode 2, and no payload.
    let bytes = [0x83, 0x80, 0xf6, 2];
    let gate = Gate {
        mode: GateMode::Any,
        payload: Payload::Rtp,
        ..Gate::default()
    };
    assert_eq!(minicbor::decode::<Gate>(&bytes).unwrap(), gate);
}

#[test]
fn an_older_agent_does_not_say_which_limit_a_session_has_reached() {
    // [5, [7]]
    let older = [0x82, 0x05, 0x81, 0x07];
    let expected = FromAgent::MediaTimeout {
        session: 7,
        silence: Silence::Idle,
    };
    assert_eq!(decode::<FromAgent>(&older), Ok(expected));
}

#[test]
fn the_last_message_numbers_are_those_of_the_traits() {
    assert_eq!(payload(&FromAgent::Draining)[1], FromAgent::LAST as u8);
    assert_eq!(
        payload(&ToAgent::HeartbeatAck { seq: 0 })[1],
        ToAgent::LAST as u8
    );
}

#[test]
fn statistics_that_an_older_agent_leaves_out_are_zero() {
    // [[0,0,0,0],[0,0,0,0]] only: rtp and rtcp.
    let bytes = [0x82, 0x84, 0, 0, 0, 0, 0x84, 0, 0, 0, 0];
    assert_eq!(
        minicbor::decode::<SideStatistics>(&bytes).unwrap(),
        SideStatistics::default()
    );
}

#[test]
fn a_claimed_length_over_the_limit_is_refused_before_the_bytes_come() {
    let mut framer = Framer::default();
    framer.push(&65_537_u32.to_be_bytes()).unwrap();
    assert_eq!(framer.next_frame(), Err(FrameError::TooLong(65_537)));
}

#[test]
fn a_claimed_array_length_allocates_nothing() {
    // Leases with an array that claims 2^60 elements.
    let bytes = [0x82, 0x01, 0x81, 0x9b, 0x10, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(decode::<FromAgent>(&bytes), Err(MessageError::Malformed(1)));
}

#[test]
fn frames_that_nobody_takes_are_refused() {
    let mut framer = Framer::default();
    framer.push(&vec![0; MAX_FRAME_LEN]).unwrap();
    framer.push(&vec![0; MAX_FRAME_LEN]).unwrap();
    assert_eq!(framer.push(&[0; 5]), Err(FrameError::NotDrained));
}

#[test]
fn a_message_over_the_limit_is_not_encoded() {
    let text = "x".repeat(MAX_FRAME_LEN);
    let message = FromAgent::Failed {
        request: 1,
        code: ErrorCode::BadRequest,
        text,
    };
    assert!(matches!(
        encode_frame(&message),
        Err(FrameError::TooLong(_))
    ));
}
