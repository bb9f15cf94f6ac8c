//! Offers, answers, forks, deletes.

use super::*;

#[test]
fn an_offer_and_its_answer_get_the_two_sides_of_one_session() {
    let mut rig = Rig::new();
    let (address, to_callee) = media_of(&rig.offer("c", "a", &sdp(CALLER)));
    let (_, to_caller) = media_of(&rig.answer("c", "a", "b", &sdp(CALLEE)));
    assert_eq!((address.as_str(), rig.opened), (RELAY, 1));
    assert_ne!(to_callee, to_caller);
    assert_eq!(
        rig.rtp(Side::A, "192.0.2.10:4000", 1),
        None,
        "held for the callee"
    );
    assert_eq!(
        rig.rtp(Side::B, "198.51.100.20:4000", 2),
        Some("192.0.2.10:4000".parse().unwrap())
    );
    assert_eq!(rig.transmitted, ["198.51.100.20:4000".parse().unwrap()]);
    let query = rig.ask(&json!({"command": "query", "call-id": "c"}));
    assert_eq!(
        query["totals"]["RTP"],
        json!({"packets": 2, "bytes": 344, "errors": 0})
    );
    let stream = &query["tags"]["a"]["medias"][0]["streams"][0];
    assert_eq!(stream["endpoint"]["address"], CALLER, "{query}");
    assert_eq!(query["tags"]["b"]["in dialogue with"], "a");
}

#[test]
fn the_callees_packets_before_the_answer_are_held_and_then_heard() {
    let mut rig = Rig::new();
    rig.offer("c", "a", &sdp(CALLER));
    assert_eq!(rig.rtp(Side::B, "198.51.100.20:4000", 2), None);
    rig.answer("c", "a", "b", &sdp(CALLEE));
    rig.rtp(Side::A, "192.0.2.10:4000", 1);
    assert!(
        rig.transmitted
            .contains(&"192.0.2.10:4000".parse().unwrap()),
        "{:?}",
        rig.transmitted
    );
}

#[test]
fn a_new_offer_of_either_party_keeps_the_ports() {
    let mut rig = Rig::new();
    let to_callee = media_of(&rig.offer("c", "a", &sdp(CALLER)));
    let to_caller = media_of(&rig.answer("c", "a", "b", &sdp(CALLEE)));
    let tagged = |command: &str, from: &str, to: &str, sdp: &str| json!({"command": command, "call-id": "c", "from-tag": from, "to-tag": to, "sdp": sdp});
    let again = rig.ask(&tagged("offer", "a", "b", &sdp_at(CALLER, 4002)));
    assert_eq!(media_of(&again), to_callee);
    let again = rig.ask(&tagged("offer", "b", "a", &sdp_at(CALLEE, 4002)));
    assert_eq!(media_of(&again), to_caller);
    let again = rig.ask(&tagged("answer", "b", "a", &sdp(CALLER)));
    assert_eq!(media_of(&again), to_callee);
    assert_eq!(rig.opened, 1);
}

#[test]
fn a_late_offer_is_answered_with_swapped_tags() {
    let mut rig = Rig::new();
    // Offer in the 200, answer in the ACK: Kamailio swaps the tags of both.
    let offer = rig.ask(&json!({
        "command": "offer", "call-id": "c", "from-tag": "callee", "to-tag": "caller", "sdp": sdp(CALLEE),
    }));
    let answer = rig.answer("c", "callee", "caller", &sdp(CALLER));
    assert_ne!(media_of(&offer), media_of(&answer));
    assert_eq!(rig.opened, 1);
    rig.rtp(Side::A, "198.51.100.20:4000", 1);
    assert!(rig.rtp(Side::B, "192.0.2.10:4000", 2).is_some());
}

#[test]
fn row_5_delete_by_call_id_alone_by_either_tag_and_twice() {
    for tags in [
        json!({}),
        json!({"from-tag": "a"}),
        json!({"from-tag": "b"}),
        json!({"from-tag": "b", "to-tag": "a"}),
        json!({"from-tag": "a", "via-branch": "none"}),
    ] {
        let mut rig = Rig::new();
        rig.offer("c", "a", &sdp(CALLER));
        rig.answer("c", "a", "b", &sdp(CALLEE));
        let mut delete = json!({"command": "delete", "call-id": "c", "delete-delay": 0});
        for (key, value) in tags.as_object().expect("an object") {
            delete[key] = value.clone();
        }
        let reply = rig.ask(&delete);
        assert_eq!(reply, json!({"result": "ok"}), "{delete}");
        rig.advance(Duration::from_millis(1));
        assert_eq!(
            (rig.server.calls().len(), rig.open.len()),
            (0, 0),
            "{delete}"
        );
        let again = rig.ask(&delete);
        assert_eq!(again["result"], "ok");
        assert!(again["warning"].is_string());
        delete["flags"] = json!(["fatal"]);
        assert_eq!(rig.ask(&delete)["error-reason"], "Unknown call-id");
    }
}

#[test]
fn row_5_a_delete_with_foreign_tags_ends_nothing() {
    let mut rig = Rig::new();
    rig.offer("c", "a", &sdp(CALLER));
    let delete = json!({"command": "delete", "call-id": "c", "from-tag": "x", "delete-delay": 0});
    assert!(rig.ask(&delete)["warning"].is_string());
    assert_eq!(rig.server.calls().len(), 1);
}

#[test]
fn a_deleted_call_goes_on_when_the_next_branch_makes_an_offer_in_time() {
    let mut rig = Rig::new();
    let first = media_of(&rig.offer("c", "a", &sdp(CALLER)));
    rig.ask(&json!({"command": "delete", "call-id": "c", "from-tag": "a"}));
    rig.advance(Duration::from_secs(29));
    assert_eq!(media_of(&rig.offer("c", "a", &sdp(CALLER))), first);
    rig.advance(Duration::from_secs(29));
    assert_eq!(rig.server.calls().len(), 1);
    rig.ask(&json!({"command": "delete", "call-id": "c", "from-tag": "a"}));
    rig.advance(Duration::from_millis(29_999));
    assert_eq!(rig.server.calls().len(), 1);
    rig.advance(Duration::from_millis(1));
    assert_eq!((rig.server.calls().len(), rig.open.len()), (0, 0));
}

#[test]
fn row_6_a_late_answer_of_another_fork_points_the_media_there() {
    let mut rig = Rig::new();
    rig.offer("c", "a", &sdp(CALLER));
    rig.offer("c", "a", &sdp(CALLER));
    assert_eq!(rig.opened, 1, "both branches have the same ports");
    let early = media_of(&rig.answer("c", "a", "b1", &sdp(CALLEE)));
    rig.rtp(Side::A, "192.0.2.10:4000", 1);
    rig.rtp(Side::B, "198.51.100.20:4000", 2);
    let late = media_of(&rig.answer("c", "a", "b2", &sdp("198.51.100.30")));
    assert_eq!(early, late);
    assert_eq!(
        rig.rtp(Side::B, "198.51.100.20:4000", 2),
        None,
        "not the other fork any more"
    );
    assert!(rig.rtp(Side::B, "198.51.100.30:4000", 3).is_some());
    assert_eq!(
        rig.rtp(Side::A, "192.0.2.10:4000", 1),
        Some("198.51.100.30:4000".parse().unwrap())
    );
}

#[test]
fn row_6_branches_that_the_proxy_tells_apart_have_ports_of_their_own() {
    let mut rig = Rig::new();
    let offer = |branch: &str| json!({"command": "offer", "call-id": "c", "from-tag": "a", "via-branch": branch, "sdp": sdp(CALLER)});
    let (first, second) = (rig.ask(&offer("z1")), rig.ask(&offer("z2")));
    assert_ne!(media_of(&first), media_of(&second));
    assert_eq!(media_of(&rig.ask(&offer("z1"))), media_of(&first), "again");
    let delete = json!({"command": "delete", "call-id": "c", "from-tag": "a", "via-branch": "z1", "delete-delay": 0});
    rig.ask(&delete);
    rig.advance(Duration::from_millis(1));
    assert_eq!((rig.open.len(), rig.server.calls().len()), (1, 1));
    for number in 0..40 {
        rig.ask(&offer(&format!("more{number}")));
    }
    assert_eq!(
        rig.open.len(),
        crate::ng::calls::MAX_PAIRS,
        "branches are bounded"
    );
}

#[test]
fn an_offer_that_nobody_answers_or_deletes_ends_by_itself() {
    let mut rig = Rig::new();
    rig.offer("c", "a", &sdp(CALLER));
    rig.advance(Duration::from_millis(239_999));
    assert_eq!(rig.server.calls().len(), 1);
    rig.advance(Duration::from_millis(1));
    assert_eq!((rig.server.calls().len(), rig.open.len()), (0, 0));
    assert_eq!(rig.server.calls().counters().unanswered, 1);
}

#[test]
fn a_call_without_media_is_forgotten_when_the_relay_ends_it() {
    let mut rig = Rig::new();
    rig.offer("c", "a", &sdp(CALLER));
    rig.answer("c", "a", "b", &sdp(CALLEE));
    rig.rtp(Side::A, "192.0.2.10:4000", 1);
    rig.rtp(Side::B, "198.51.100.20:4000", 2);
    rig.advance(Duration::from_secs(61));
    assert_eq!((rig.server.calls().len(), rig.open.len()), (0, 0));
}

#[test]
fn what_a_command_needs_and_does_not_get_is_named() {
    let mut rig = Rig::new();
    for (request, reason) in [
        (
            json!({"command": "offer", "from-tag": "a", "sdp": "v=0"}),
            "No call-id in message",
        ),
        (
            json!({"command": "offer", "call-id": "c", "sdp": "v=0"}),
            "No from-tag in message",
        ),
        (
            json!({"command": "offer", "call-id": "c", "from-tag": "a"}),
            "No SDP body in message",
        ),
        (
            json!({"command": "answer", "call-id": "c", "from-tag": "a", "sdp": "v=0"}),
            "No to-tag in message",
        ),
        (
            json!({"command": "answer", "call-id": "c", "from-tag": "a", "to-tag": "b", "sdp": "v=0"}),
            "Unknown call-id",
        ),
        (
            json!({"command": "query", "call-id": "c"}),
            "Unknown call-id",
        ),
        (json!({"command": "delete"}), "No call-id in message"),
        (
            json!({"command": "offer", "call-id": "c", "from-tag": "a", "sdp": "hello"}),
            "Could not parse SDP: does not begin with v=",
        ),
    ] {
        let reply = rig.ask(&request);
        assert_eq!(reply["result"], "error");
        assert_eq!(reply["error-reason"], reason, "{request}");
    }
    assert_eq!(rig.server.calls().len(), 0);
}
