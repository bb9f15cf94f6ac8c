//! Requests that are not sent on for their media: what their sender is told.

use sip::message::HeaderName;
use sip::proxy::media::Refusal;
use sip::sdp::SdpError;

use crate::world::{ALICE, BOB, World, answer, find, in_dialog, invite, parse, summary};

const REFUSALS: [(Refusal, &str, &str); 4] = [
    (
        Refusal::Incompatible,
        "488 -> alice",
        "301 sipcast \"Incompatible network address formats\"",
    ),
    (
        Refusal::Unreadable(SdpError::BadMedia(1)),
        "400 -> alice",
        "399 sipcast \"Session description: m-line 1 has no kind, port and protocol\"",
    ),
    (
        Refusal::Unreadable(SdpError::TooManyMedia),
        "488 -> alice",
        "399 sipcast \"Session description: more than 64 m-lines\"",
    ),
    (
        Refusal::TooManyLines { most: 8 },
        "488 -> alice",
        "399 sipcast \"More than 8 media lines\"",
    ),
];

#[test]
fn a_call_that_is_refused_for_its_media_leaves_nothing_behind() {
    for (refusal, status, warning) in REFUSALS {
        let mut world = World::with_bob();
        world.media.refuses = Some(refusal);
        let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
        assert_eq!(summary(&sent), ["100 -> alice", status]);
        let told = parse(&sent[1]);
        assert_eq!(told.header(HeaderName::Warning), Some(warning.as_bytes()));
        assert_eq!(world.proxy.branches_and_timers(), (0, 0));
        world.assert_all_forgotten();
    }
}

/// "the session parameters MUST remain unchanged" (RFC 3261 section 14.1): the callee is not asked.
#[test]
fn a_request_in_a_call_is_refused_and_the_call_goes_on() {
    for (refusal, status, _) in REFUSALS {
        for method in ["INVITE", "UPDATE"] {
            let mut world = World::with_bob();
            let (ok, _) = world.call();
            world.media.refuses = Some(refusal);
            let sent = world.receive(ALICE, &in_dialog(method, 2, &ok, true));
            assert_eq!(summary(&sent).last().expect("an answer"), status);
            assert!(!summary(&sent).iter().any(|line| line.ends_with("bob")));
            assert_eq!(world.media.count("ended"), 0);
            world.media.refuses = None;
            let sent = world.receive(ALICE, &in_dialog("BYE", 3, &ok, true));
            let bye = find(&sent, BOB);
            let sent = world.receive(BOB, &answer(&bye, 200, "OK", "b1"));
            assert_eq!(summary(&sent), ["200 -> alice"]);
        }
    }
}
