//! Where media may come from, and what the descriptions say.

use super::*;

#[test]
fn with_sip_source_address_only_where_signalling_came_from_is_heard() {
    let mut rig = Rig::new();
    stock_call(&mut rig);
    assert_eq!(rig.rtp(Side::A, "192.168.1.10:4000", 9), None);
    assert_eq!(rig.rtp(Side::A, "192.0.2.11:4000", 9), None);
    assert!(rig.transmitted.is_empty());
    rig.rtp(Side::A, "192.0.2.10:61000", 1);
    let to = rig.rtp(Side::B, "198.51.100.20:62000", 2);
    assert_eq!(to, Some("192.0.2.10:61000".parse().unwrap()));
    assert_eq!(rig.server.calls().counters().open_gates, 0);
}

/// As Kamailio's own configuration does it: both phones behind NATs.
fn stock_call(rig: &mut Rig) {
    let stock = |command: &str, from: &str| {
        json!({
            "supports": ["load limit"], "sdp": sdp("192.168.1.10"),
            "replace": ["origin", "session-connection"], "received-from": ["IP4", from],
            "call-id": "c", "from-tag": "a", "to-tag": "b", "command": command,
            "sip-message-type": "sip_request", "flags": ["SIP-source-address"],
        })
    };
    let mut offer = stock("offer", CALLER);
    offer.as_object_mut().expect("an object").remove("to-tag");
    let reply = rig.ask(&offer);
    let text = reply["sdp"].as_str().expect("a description").to_owned();
    assert!(
        text.contains(&format!("o=ua 1 1 IN IP4 {RELAY}\r\n")),
        "{text}"
    );
    assert!(!text.contains("192.168"), "{text}");
    rig.ask(&stock("answer", CALLEE));
}

#[test]
fn without_received_from_a_phone_behind_a_nat_is_learnt_and_then_kept_to() {
    let mut rig = Rig::new();
    rig.offer("c", "a", &sdp("192.168.1.10"));
    rig.answer("c", "a", "b", &sdp(CALLEE));
    assert_eq!(rig.server.calls().counters().open_gates, 1);
    rig.rtp(Side::A, "192.0.2.10:61000", 1);
    assert!(rig.rtp(Side::B, "198.51.100.20:4000", 2).is_some());
    assert_eq!(
        rig.rtp(Side::A, "192.0.2.66:666", 1),
        None,
        "a stranger, although any may begin"
    );
    assert_eq!(
        rig.rtp(Side::B, "198.51.100.66:666", 2),
        None,
        "its SDP was public"
    );
}

#[test]
fn unknown_source_exact_opens_no_gate() {
    let mut rig = Rig::with(|_, settings| settings.unknown_source = UnknownSource::Exact);
    rig.offer("c", "a", &sdp("192.168.1.10"));
    rig.answer("c", "a", "b", &sdp(CALLEE));
    rig.rtp(Side::B, "198.51.100.20:4000", 2);
    assert_eq!(rig.rtp(Side::A, "192.0.2.10:61000", 1), None);
    assert!(
        rig.rtp(Side::A, "192.168.1.10:4000", 1).is_some(),
        "a real private address"
    );
}

#[test]
fn an_sdp_with_an_address_that_no_media_can_come_from_opens_nothing() {
    for hostile in [
        "127.0.0.1",
        "224.0.0.1",
        "255.255.255.255",
        RELAY,
        "::1",
        "ff02::1",
        RELAY6,
    ] {
        let mut rig = Rig::new();
        rig.offer("c", "a", &sdp(hostile));
        rig.answer("c", "a", "b", &sdp(CALLEE));
        let counters = rig.server.calls().counters();
        assert_eq!(
            (counters.hostile_addresses, counters.open_gates),
            (1, 0),
            "{hostile}"
        );
        rig.rtp(Side::B, "198.51.100.20:4000", 2);
        let from = SocketAddr::new(ip(hostile), 4000).to_string();
        for from in [from.as_str(), "192.0.2.66:666"] {
            assert_eq!(rig.rtp(Side::A, from, 1), None, "{hostile}");
        }
        assert!(rig.transmitted.is_empty());
    }
}

#[test]
fn a_party_on_hold_is_where_it_was() {
    let mut rig = Rig::new();
    rig.offer("c", "a", &sdp(CALLER));
    rig.answer("c", "a", "b", &sdp(CALLEE));
    let hold = json!({"command": "offer", "call-id": "c", "from-tag": "a", "to-tag": "b", "sdp": sdp("0.0.0.0")});
    let reply = rig.ask(&hold);
    assert!(
        reply["sdp"]
            .as_str()
            .expect("text")
            .contains("c=IN IP4 0.0.0.0"),
        "still on hold"
    );
    rig.answer("c", "a", "b", &sdp(CALLEE));
    rig.rtp(Side::A, "192.0.2.10:4000", 1);
    assert!(rig.rtp(Side::B, "198.51.100.20:4000", 2).is_some());
    assert_eq!(rig.server.calls().counters().open_gates, 0);
}

#[test]
fn a_call_on_hold_outlives_the_silence_that_ends_others() {
    let held = sdp(CALLER) + "a=sendonly\r\n";
    for (sdp_a, sdp_b, lives) in [
        (held, sdp(CALLEE) + "a=recvonly\r\n", true),
        (sdp("0.0.0.0"), sdp(CALLEE), true),
        (sdp(CALLER), sdp(CALLEE), false),
    ] {
        let mut rig = Rig::new();
        rig.offer("c", "a", &sdp(CALLER));
        rig.answer("c", "a", "b", &sdp(CALLEE));
        rig.rtp(Side::A, "192.0.2.10:4000", 1);
        rig.rtp(Side::B, "198.51.100.20:4000", 2);
        rig.ask(&json!({"command": "offer", "call-id": "c", "from-tag": "a", "to-tag": "b", "sdp": sdp_a}));
        rig.answer("c", "a", "b", &sdp_b);
        rig.advance(Duration::from_secs(61));
        assert_eq!(rig.open.len(), usize::from(lives), "{sdp_a}");
        rig.advance(Duration::from_secs(3600));
        assert!(rig.open.is_empty(), "{sdp_a}");
    }
}

#[test]
fn address_family_joins_ipv4_and_ipv6() {
    let mut rig = Rig::new();
    let offer = rig.ask(&json!({
        "command": "offer", "call-id": "c", "from-tag": "a", "sdp": sdp(CALLER), "address family": "IP6",
    }));
    assert_eq!(media_of(&offer).0, RELAY6);
    let answer = rig.answer("c", "a", "b", &sdp("2001:db8:1::20"));
    assert_eq!(media_of(&answer).0, RELAY);
    rig.rtp(Side::A, "192.0.2.10:4000", 1);
    assert!(rig.rtp(Side::B, "[2001:db8:1::20]:4000", 2).is_some());
}

#[test]
fn a_family_that_the_relay_lacks_is_an_error_and_no_wrong_description() {
    let mut rig = Rig::with(|relay, _| relay.addresses = vec![ip(RELAY)]);
    let reply = rig.ask(&json!({
        "command": "offer", "call-id": "c", "from-tag": "a", "sdp": sdp(CALLER), "address-family": "IP6",
    }));
    assert_eq!(reply["error-reason"], "No media address of the family IPv6");
    assert_eq!(rig.server.calls().len(), 0);
}

#[test]
fn what_would_give_a_wrong_description_is_an_error() {
    let mut rig = Rig::new();
    for (key, value, reason) in [
        (
            "transport-protocol",
            json!("RTP/SAVP"),
            "Transport protocol conversion is not supported",
        ),
        (
            "ICE",
            json!("force"),
            "ICE is not supported: it is always removed",
        ),
        ("flags", json!(["fragment"]), "Trickle ICE is not supported"),
    ] {
        let mut offer =
            json!({"command": "offer", "call-id": "c", "from-tag": "a", "sdp": sdp(CALLER)});
        offer[key] = value;
        assert_eq!(rig.ask(&offer)["error-reason"], reason);
    }
    let secure = sdp(CALLER).replace("RTP/AVP", "RTP/SAVP");
    let reply = rig.ask(&json!({
        "command": "offer", "call-id": "c", "from-tag": "a", "sdp": secure, "transport-protocol": "RTP/SAVP",
    }));
    assert_eq!(reply["result"], "ok", "the same protocol passes");
}

#[test]
fn media_address_is_what_the_receiver_sees() {
    let mut rig = Rig::new();
    let reply = rig.ask(&json!({
        "command": "offer", "call-id": "c", "from-tag": "a", "sdp": sdp(CALLER), "media-address": "192.0.2.200",
    }));
    assert_eq!(media_of(&reply).0, "192.0.2.200");
}

#[test]
fn a_rejected_line_stays_rejected_and_a_hundred_lines_are_refused() {
    let mut rig = Rig::new();
    let video = format!("{}m=video 0 RTP/AVP 31\r\n", sdp(CALLER));
    let reply = rig.offer("c", "a", &video);
    assert!(
        reply["sdp"]
            .as_str()
            .expect("text")
            .contains("m=video 0 RTP/AVP 31")
    );
    assert_eq!(rig.opened, 1);
    let many = sdp(CALLER) + &"m=audio 4000 RTP/AVP 0\r\n".repeat(99);
    assert_eq!(rig.offer("d", "a", &many)["result"], "error");
    let many = sdp(CALLER) + &"m=audio 4000 RTP/AVP 0\r\n".repeat(20);
    assert_eq!(
        rig.offer("d", "a", &many)["error-reason"],
        "more than 16 media lines"
    );
    assert_eq!((rig.opened, rig.server.calls().len()), (1, 1));
}
