//! Frames, codecs, cookies, commands, spellings.

use super::*;

#[test]
fn row_1_the_reply_has_the_cookie_and_the_codec_of_its_request() {
    let mut rig = Rig::new();
    let ping = rig.datagram(b"ab1_7 d7:command4:pinge", PROXY);
    assert_eq!(ping.as_deref(), Some(&b"ab1_7 d6:result4:ponge"[..]));
    let ping = rig.datagram(br#"ab1_8 {"command":"ping"}"#, PROXY);
    assert_eq!(ping.as_deref(), Some(&br#"ab1_8 {"result":"pong"}"#[..]));
}

#[test]
fn row_1_a_copy_gets_the_same_reply_for_at_least_30_seconds_and_takes_no_ports() {
    let mut rig = Rig::new();
    let offer = bencoded(
        "7",
        &[
            ("command", "offer"),
            ("call-id", "c"),
            ("from-tag", "a"),
            ("sdp", sdp(CALLER).as_str()),
        ],
    );
    let first = rig.datagram(&offer, PROXY);
    rig.now += Duration::from_secs(30);
    assert_eq!(rig.datagram(&offer, PROXY), first);
    assert_eq!((rig.opened, rig.server.counters().duplicates), (1, 1));
}

#[test]
fn row_1_the_cookie_of_another_proxy_is_another_request() {
    let mut rig = Rig::new();
    rig.datagram(&bencoded("7", &[("command", "ping")]), PROXY);
    for other in ["10.0.9.3:40000", "10.0.9.2:40001", "[2001:db8:9::1]:40000"] {
        let reply = rig.datagram(&bencoded("7", &[("command", "list")]), other);
        assert_eq!(
            text_of(&reply.expect("a reply"), "result").as_deref(),
            Some("ok")
        );
    }
    assert_eq!(rig.server.counters().duplicates, 0);
}

#[test]
fn kept_replies_are_bounded_in_octets_and_in_time() {
    let mut rig = Rig::new();
    let now = rig.now;
    let from: SocketAddr = PROXY.parse().expect("an address");
    let mut cookies = crate::ng::cookies::Cookies::new(now);
    let reply: std::sync::Arc<[u8]> = vec![0; 60_000].into();
    for number in 0..2000_u32 {
        cookies.keep(
            from,
            &number.to_be_bytes(),
            std::sync::Arc::clone(&reply),
            now,
        );
    }
    assert!(
        cookies.len() * 60_000 <= crate::ng::cookies::MAX_BYTES,
        "{}",
        cookies.len()
    );
    assert!(cookies.evicted() > 0);
    rig.now += Duration::from_secs(61);
    assert_eq!(cookies.find(from, &1999_u32.to_be_bytes(), rig.now), None);
    assert!(cookies.is_empty());
}

#[test]
fn row_2_every_command_is_answered_and_what_is_not_built_is_an_error() {
    let mut rig = Rig::new();
    rig.offer("c", "a", &sdp(CALLER));
    for (command, result) in [("ping", "pong"), ("list", "ok"), ("statistics", "ok")] {
        assert_eq!(rig.ask(&json!({"command": command}))["result"], result);
    }
    let query = rig.ask(&json!({"command": "query", "call-id": "c"}));
    assert_eq!(query["totals"]["RTP"]["packets"], 0, "{query}");
    assert_eq!(rig.ask(&json!({"command": "list"}))["calls"], json!(["c"]));
    for command in [
        "start recording",
        "block DTMF",
        "play media",
        "subscribe request",
        "connect",
    ] {
        let reply = rig.ask(&json!({"command": command}));
        assert_eq!(
            reply["error-reason"], "Command is not supported by this relay",
            "{command}"
        );
    }
    for request in [json!({"command": "dance"}), json!({})] {
        assert_eq!(rig.ask(&request)["error-reason"], "Unrecognized command");
    }
}

#[test]
fn row_3_unknown_keys_flags_and_replace_items_are_passed_over() {
    let mut rig = Rig::new();
    let reply = rig.ask(&json!({
        "command": "offer", "call-id": "c", "from-tag": "a", "sdp": sdp(CALLER),
        "supports": ["load limit", "flying"], "replace": ["session-connection", "hat"],
        "flags": ["port-latching", "never-heard-of"], "wings": {"left": [1, {}]},
        "sip-message-type": "sip_request", "direction": ["internal", "external"],
        "rtcp-mux": ["demux"], "SDES": ["off"], "ICE": "remove", "DTLS": "passive",
    }));
    assert_eq!(media_of(&reply).0, RELAY);
    assert_eq!(reply.get("warning"), None, "{reply}");
}

#[test]
fn row_4_keys_in_three_spellings_and_numbers_in_two() {
    for (call_id, from_tag, delay) in [
        ("call-id", "from-tag", json!({"delete-delay": 0})),
        ("call id", "from tag", json!({"delete delay": "0"})),
        ("call_id", "from_tag", json!({"delete_delay": 0})),
    ] {
        let mut rig = Rig::new();
        rig.ask(&json!({"command": "offer", call_id: "c", from_tag: "a", "sdp": sdp(CALLER)}));
        assert_eq!(rig.server.calls().len(), 1, "{call_id}");
        let mut delete = json!({"command": "delete", call_id: "c"});
        for (key, value) in delay.as_object().expect("an object") {
            delete[key] = value.clone();
        }
        assert_eq!(rig.ask(&delete)["result"], "ok");
        assert_eq!(rig.server.calls().len(), 0, "{delete}");
    }
}

#[test]
fn the_flags_of_the_daemon_parsed_mode_are_read_from_one_string() {
    let mut rig = Rig::new();
    let reply = rig.ask(&json!({
        "command": "offer", "call-id": "c", "from-tag": "a", "sdp": sdp("192.168.1.10"),
        "rtpp-flags": "SIP-source-address replace-origin address-family=IP6 \
                       received-from=[IP4 192.0.2.77] codec=[transcode=[PCMA G729] strip=[opus]]",
    }));
    assert_eq!(media_of(&reply).0, RELAY6);
    assert!(
        reply["sdp"]
            .as_str()
            .expect("text")
            .contains(&format!("o=ua 1 1 IN IP6 {RELAY6}\r\n"))
    );
    assert!(
        reply["warning"]
            .as_str()
            .expect("text")
            .contains("transcoding"),
        "{reply}"
    );
    assert_eq!(rig.server.calls().counters().open_gates, 0);
}

#[test]
fn row_7_the_limits_have_the_texts_that_make_a_proxy_try_another_relay() {
    let mut rig = Rig::with(|relay, settings| {
        settings.max_sessions = 2;
        relay.ports = PortRange::new(30_000, 30_003).expect("two pairs");
    });
    rig.offer("c1", "a", &sdp(CALLER));
    let no_ports = rig.offer("c2", "a", &sdp(CALLER));
    assert_eq!(no_ports["error-reason"], "Ran out of ports");
    assert_eq!(rig.server.calls().len(), 1, "nothing is left of it");

    let mut rig = Rig::with(|_, settings| settings.max_sessions = 1);
    rig.offer("c1", "a", &sdp(CALLER));
    let full = rig.offer("c2", "a", &sdp(CALLER));
    assert_eq!(full["error-reason"], "Parallel session limit reached");
    let full = rig.ask(&json!({
        "command": "offer", "call-id": "c2", "from-tag": "a", "sdp": sdp(CALLER),
        "supports": ["load limit"],
    }));
    assert_eq!(full["result"], "load limit");
    assert_eq!(full["message"], "Parallel session limit reached");
    rig.relay.handle_drain();
    assert_eq!(
        rig.offer("c1", "a", &sdp(CALLER))["result"],
        "ok",
        "calls in progress go on"
    );
    assert_eq!(rig.server.counters().busy, 2);
}

#[test]
fn row_7_a_draining_relay_takes_no_new_calls() {
    let mut rig = Rig::new();
    rig.relay.handle_drain();
    let reply = rig.offer("c", "a", &sdp(CALLER));
    assert_eq!(reply["error-reason"], "Parallel session limit reached");
    assert_eq!(rig.server.calls().len(), 0);
}

#[test]
fn ports_that_the_kernel_refuses_are_an_error_of_their_own_and_leave_nothing() {
    let mut rig = Rig::new();
    rig.refuse = true;
    let reply = rig.offer("c", "a", &sdp(CALLER));
    assert_eq!(reply["error-reason"], "Cannot open media ports");
    assert_eq!(
        (rig.server.calls().len(), rig.relay.gauges().leases),
        (0, 0)
    );
}

#[test]
fn row_8_replies_to_everything_but_query_fit_into_one_packet() {
    let mut rig = Rig::new();
    let requests = [
        json!({"command": "offer", "call-id": "c", "from-tag": "a", "sdp": sdp(CALLER)}),
        json!({"command": "answer", "call-id": "c", "from-tag": "a", "to-tag": "b", "sdp": sdp(CALLEE)}),
        json!({"command": "delete", "call-id": "c", "from-tag": "a"}),
        json!({"command": "statistics"}),
    ];
    for request in requests {
        assert!(rig.ask(&request).to_string().len() < 1200, "{request}");
    }
}

#[test]
fn row_9_other_networks_get_no_answer_and_are_counted() {
    let mut rig = Rig::new();
    for stranger in [
        "10.0.8.2:40000",
        "[2001:db8:8::1]:40000",
        "[::ffff:10.0.8.2]:1",
    ] {
        assert_eq!(rig.datagram(b"1 d7:command4:pinge", stranger), None);
    }
    assert!(
        rig.datagram(b"1 d7:command4:pinge", "[::ffff:10.0.9.2]:1")
            .is_some()
    );
    assert_eq!(rig.server.counters().not_allowed, 3);
}
