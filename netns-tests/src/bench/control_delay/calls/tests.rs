use super::*;
use crate::raw;

const PHONES: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const RELAY: Ipv4Addr = Ipv4Addr::new(10, 0, 6, 2);
const TO_CALLEE: u16 = 30_000;
const TO_CALLER: u16 = 30_002;

fn packet(at: u64, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Packet {
    let datagram = raw::udp(from.1, to.1, payload);
    Packet::parse(at, &raw::ipv4(from.0, to.0, 0, 17, &datagram)).expect("an IPv4 packet")
}

fn sip(line: &str, media: Option<(Ipv4Addr, u16)>) -> Vec<u8> {
    let body = media.map_or(String::new(), |(address, port)| {
        format!("v=0\r\nc=IN IP4 {address}\r\nt=0 0\r\nm=audio {port} RTP/AVP 0\r\n")
    });
    format!("{line}\r\nCSeq: 1 INVITE\r\nCall-ID: x\r\n\r\n{body}").into_bytes()
}

const INVITE: &str = "INVITE sip:callee@example.com SIP/2.0";
const AUDIO: [u8; 12] = [0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1];

/// A call through `relay`, whose 180 came a millisecond and whose 200 two after the INVITE.
fn call(relay: Ipv4Addr) -> Vec<Packet> {
    let caller = (PHONES, CALLER_PORT);
    let callee = (PHONES, CALLEE_PORT);
    let server = (SERVER, 5060);
    let offer = sip(INVITE, Some((PHONES, 20_000)));
    let relayed = sip(INVITE, Some((relay, TO_CALLEE)));
    let ringing = sip("SIP/2.0 180 Ringing", None);
    let answer = sip("SIP/2.0 200 OK", Some((relay, TO_CALLER)));
    vec![
        packet(1_000, caller, server, &offer),
        packet(1_500, server, callee, &relayed),
        packet(1_600, callee, server, &ringing),
        packet(2_000, server, caller, &ringing),
        packet(3_000, server, caller, &answer),
        packet(4_000, (relay, TO_CALLEE), (PHONES, 20_002), &AUDIO),
        packet(4_000, (relay, TO_CALLER), (PHONES, 20_000), &AUDIO),
    ]
}

#[test]
fn times_are_those_of_the_callers_packets() {
    let calls = of(&call(RELAY), PHONES, RELAY).expect("a good call");
    let [call] = calls.as_slice() else {
        panic!("{calls:?}");
    };
    assert_eq!((call.ringing_ms, call.answered_ms), (1.0, 2.0));
    assert_eq!(call.heard, [1, 1]);
}

#[test]
fn media_past_the_relay_are_an_error() {
    let error = of(&call(PHONES), PHONES, RELAY).expect_err("not the relay's address");
    assert!(format!("{error:#}").contains("not the relay"), "{error:#}");
}

#[test]
fn a_packet_that_is_missing_is_an_error() {
    for (missing, why) in [
        (0, "no INVITE"),
        (1, "no session description"),
        (3, "no 180"),
        (4, "no session description"),
        (5, "the callee got no media"),
        (6, "the caller got no media"),
    ] {
        let mut packets = call(RELAY);
        packets.remove(missing);
        let error = of(&packets, PHONES, RELAY).expect_err(why);
        assert!(format!("{error:#}").contains(why), "{why}: {error:#}");
    }
}
