//! What no proxy sends: every prefix of a message, depth, lengths, noise.

use proptest::prelude::*;

use super::*;

#[test]
fn a_message_that_ends_anywhere_is_dropped_or_refused_and_takes_nothing() {
    let whole = bencoded(
        "1_1",
        &[
            ("command", "offer"),
            ("call-id", "c"),
            ("from-tag", "a"),
            ("sdp", sdp(CALLER).as_str()),
        ],
    );
    let json = json!({"command": "offer", "call-id": "c", "from-tag": "a", "sdp": sdp(CALLER)});
    let json = format!("1_1 {json}").into_bytes();
    for whole in [whole, json] {
        for length in 0..whole.len() {
            let mut rig = Rig::new();
            if let Some(reply) = rig.datagram(&whole[..length], PROXY) {
                let text = String::from_utf8_lossy(&reply).into_owned();
                assert!(text.contains("Could not decode"), "{length}: {text}");
            }
            assert_eq!((rig.opened, rig.server.calls().len()), (0, 0), "{length}");
            let counters = rig.server.counters();
            assert_eq!(counters.no_cookie + counters.undecodable, 1, "{length}");
        }
    }
}

#[test]
fn depth_lengths_and_other_codecs_are_refused_with_an_answer() {
    let deep = |open: &str, close: &str, count: usize| open.repeat(count) + &close.repeat(count);
    let bodies = [
        format!("d1:a{}e", deep("l", "e", 10_000)),
        format!(r#"{{"a":{}}}"#, deep("[", "]", 10_000)),
        format!(r#"{{"a":{}}}"#, deep("[", "]", 100)),
        "d1:a99999999999999999999:xe".to_owned(),
        "d1:a2147483647:xe".to_owned(),
        "di1ei2ee".to_owned(),
        "d1:ae".to_owned(),
        "[1]".to_owned(),
        "<xml/>".to_owned(),
        String::new(),
    ];
    let mut rig = Rig::new();
    for (number, body) in bodies.iter().enumerate() {
        let reply = rig.datagram(format!("{number} {body}").as_bytes(), PROXY);
        let text = String::from_utf8(reply.expect("an answer")).expect("text");
        assert!(text.contains("Could not decode"), "{body:.40}: {text}");
    }
    assert_eq!(rig.server.counters().undecodable, bodies.len() as u64);
    for datagram in [&b" d7:command4:pinge"[..], b"", b"nospace", &[b'x'; 300]] {
        assert_eq!(rig.datagram(datagram, PROXY), None);
    }
    assert_eq!(rig.server.counters().no_cookie, 4);
}

#[test]
fn long_tags_words_and_lists_are_not_kept() {
    let mut rig = Rig::new();
    let long = "x".repeat(20_000);
    let reply = rig.offer(&long, "a", &sdp(CALLER));
    assert_eq!(reply["error-reason"], "No call-id in message");
    let flags: Vec<String> = (0..3000).map(|number| format!("flag{number}")).collect();
    let reply = rig.ask(&json!({
        "command": "offer", "call-id": "c", "from-tag": "a", "sdp": sdp(CALLER), "flags": flags,
        "rtpp-flags": "[".repeat(5000),
    }));
    assert_eq!(reply["result"], "ok");
}

#[test]
fn a_list_of_long_call_ids_fits_into_one_datagram() {
    let mut rig = Rig::with(|_, settings| settings.max_sessions = 1000);
    for number in 0..200 {
        rig.offer(&format!("{number:0>500}"), "a", &sdp(CALLER));
    }
    let reply = rig.ask(&json!({"command": "list", "limit": 1000}));
    let listed = reply["calls"].as_array().expect("a list").len();
    assert!((40..100).contains(&listed), "{listed}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever comes: no panic, a reply keeps the cookie, and the calls stay within their bound.
    #[test]
    fn noise_does_no_harm(datagrams in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..20)) {
        let mut rig = Rig::new();
        for datagram in datagrams {
            if let Some(reply) = rig.datagram(&datagram, PROXY) {
                let space = datagram.iter().position(|byte| *byte == b' ').expect("a cookie");
                prop_assert!(reply.starts_with(&datagram[..=space]));
            }
        }
    }

    /// Commands of a few calls and tags in any order: every port is a call's, and all come back.
    #[test]
    fn commands_in_any_order_leak_no_port(
        steps in prop::collection::vec((0..4_u8, 0..3_u8, 0..3_u8, 0..3_u8, 0..3_u8, 0..40_u64), 1..60),
    ) {
        let mut rig = Rig::new();
        for (command, call, from, to, branch, seconds) in steps {
            let command = ["offer", "answer", "delete", "query"][usize::from(command)];
            let mut request = json!({
                "command": command,
                "call-id": format!("c{call}"), "from-tag": format!("t{from}"),
                "sdp": sdp([CALLER, "192.168.1.10", "0.0.0.0"][usize::from(branch)]),
            });
            if to > 0 {
                request["to-tag"] = json!(format!("t{to}"));
            }
            if branch > 0 {
                request["via-branch"] = json!(format!("z{branch}"));
            }
            rig.ask(&request);
            rig.advance(Duration::from_secs(seconds));
            prop_assert!(rig.open.len() >= rig.server.calls().len());
        }
        // The longest limit is that of a call on hold.
        rig.advance(Duration::from_secs(3601));
        rig.advance(Duration::from_secs(300));
        prop_assert_eq!((rig.server.calls().len(), rig.open.len()), (0, 0));
    }

    /// The same request in both codecs has the same effect.
    #[test]
    fn bencode_and_json_are_read_alike(
        entries in prop::collection::vec(("[a-z]{1,12}([ _-][a-z]{1,8})?", "[ -~]{0,40}"), 0..12),
    ) {
        let map: serde_json::Map<String, Json> = entries
            .iter()
            .map(|(key, value)| (key.clone(), json!(value)))
            .collect();
        let pairs: Vec<(&str, &str)> = map
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str().unwrap_or_default()))
            .collect();
        let read = |datagram: &[u8]| {
            let envelope = crate::ng::envelope::Envelope::open(datagram).expect("a cookie");
            let body = envelope.bencode().expect("a dictionary");
            let dictionary = Value::parse(&body).expect("bencode").dictionary().expect("one");
            crate::ng::request::Request::read(dictionary)
        };
        let bencode = read(&bencoded("1", &pairs));
        let json = read(format!("1 {}", Json::Object(map.clone())).as_bytes());
        prop_assert_eq!(bencode, json);
    }
}
