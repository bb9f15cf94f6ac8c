//! What is told of calls to whoever keeps records: each beginning has one end.

#[path = "common/world.rs"]
mod world;

use std::time::Duration;

use sip::hop::ConnectionId;
use sip::proxy::calls::{CallKey, CallProgress};
use sip::proxy::media::Party;
use world::{ALICE, BOB, World, answer, find, in_dialog, invite, request};

#[test]
fn an_answered_call_is_told_from_its_invite_to_its_bye() {
    let mut world = reporting();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let to_bob = find(&sent, BOB);
    world.receive(BOB, &answer(&to_bob, 180, "Ringing", "b1"));
    world.mark = 2;
    let sent = world.receive(BOB, &answer(&to_bob, 200, "OK", "b1"));
    let ok = world::parse(&sent[0]);
    // A copy says nothing new.
    world.receive(BOB, &answer(&to_bob, 200, "OK", "b1"));
    let told = all(&mut world);
    assert_eq!(
        lines(&told),
        ["begun mark 1", "ringing", "answered mark 2 session 1"]
    );
    world.receive(ALICE, &in_dialog("ACK", 1, &ok, true));
    let sent = world.receive(BOB, &in_dialog("BYE", 1, &ok, false));
    let bye = find(&sent, ALICE);
    let told_then = all(&mut world);
    assert_eq!(lines(&told_then), ["hung up by Callee"]);
    world.receive(ALICE, &answer(&bye, 200, "OK", ""));
    assert_eq!(lines(&all(&mut world)), [""; 0]);
    let keys: Vec<CallKey> = told.iter().chain(&told_then).map(|(key, _)| *key).collect();
    assert!(
        keys.iter().all(|key| *key == keys[0]),
        "one call, whoever speaks"
    );
}

#[test]
fn a_refused_call_has_its_status() {
    let mut world = reporting();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    world.receive(BOB, &answer(&find(&sent, BOB), 486, "Busy Here", "b1"));
    assert_eq!(lines(&all(&mut world)), ["begun mark 1", "failed 486"]);
}

#[test]
fn a_call_to_nobody_is_told_too() {
    let mut world = reporting();
    world.receive(ALICE, &invite("sip:carol@example.com"));
    assert_eq!(lines(&all(&mut world)), ["begun mark 1", "failed 404"]);
}

#[test]
fn so_is_a_registered_phones_call_to_nobody() {
    let mut world = reporting();
    world.receive(BOB, &invite("sip:carol@example.com"));
    let told = lines(&all(&mut world));
    assert_eq!(told.last().map(|line| &line[..]), Some("failed 404"));
    assert_eq!(world.proxy.reported(), 0);
}

#[test]
fn a_cancelled_call_says_so() {
    let mut world = reporting();
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    let to_bob = find(&sent, BOB);
    world.receive(BOB, &answer(&to_bob, 180, "Ringing", "b1"));
    world.receive(
        ALICE,
        &request("CANCEL", "sip:bob@example.com", "z9hG4bKalice1", ""),
    );
    world.receive(BOB, &answer(&to_bob, 487, "Request Terminated", "b1"));
    assert_eq!(
        lines(&all(&mut world)),
        ["begun mark 1", "ringing", "failed 487 cancelled"]
    );
}

#[test]
fn a_callee_that_says_nothing_ends_as_a_timeout() {
    let mut world = reporting();
    world.receive(ALICE, &invite("sip:bob@example.com"));
    world.advance(Duration::from_secs(300));
    assert_eq!(lines(&all(&mut world)), ["begun mark 1", "failed 408"]);
    assert_eq!(world.proxy.reported(), 0);
}

#[test]
fn a_caller_whose_connection_ends_while_it_rings_is_gone() {
    let mut world = reporting();
    world.tcp = true;
    world.receive(ALICE, &invite("sip:bob@example.com"));
    world.connection_closed(ConnectionId(9));
    assert_eq!(lines(&all(&mut world)), ["begun mark 1", "caller gone"]);
    assert_eq!(world.proxy.reported(), 0);
}

#[test]
fn what_is_no_call_is_not_told() {
    let mut world = reporting();
    let (ok, _) = world.call();
    all(&mut world);
    for request in [
        request("MESSAGE", "sip:bob@example.com", "z9hG4bKm", ""),
        request("OPTIONS", "sip:example.com", "z9hG4bKo", ""),
        in_dialog("INVITE", 2, &ok, true),
        in_dialog("INFO", 3, &ok, true),
    ] {
        world.receive(ALICE, &request);
    }
    world.advance(Duration::from_secs(300));
    assert_eq!(lines(&all(&mut world)), [""; 0]);
    assert_eq!(world.proxy.reported(), 0);
}

#[test]
fn nothing_is_told_where_nobody_has_asked() {
    let mut world = World::with_bob();
    world.call();
    assert!(world.proxy.poll_call().is_none());
}

fn reporting() -> World {
    let mut world = World::with_bob();
    world.proxy.report_calls();
    world
}

type Told = Vec<(CallKey, CallProgress)>;

fn all(world: &mut World) -> Told {
    std::iter::from_fn(|| world.proxy.poll_call())
        .map(|event| (event.key, event.what))
        .collect()
}

fn lines(told: &Told) -> Vec<String> {
    let mark = |hop: &sip::hop::Hop| hop.relay.map_or(0, |relay| relay.mark.number());
    told.iter()
        .map(|(_, what)| match what {
            CallProgress::Begun { from, .. } => format!("begun mark {}", mark(from)),
            CallProgress::Ringing => "ringing".to_owned(),
            CallProgress::Answered { by, session, .. } => format!(
                "answered mark {} session {}",
                by.as_ref().map_or(0, mark),
                session.map_or(0, |session| session.session)
            ),
            CallProgress::Failed { status, cancelled } => {
                format!(
                    "failed {status}{}",
                    if *cancelled { " cancelled" } else { "" }
                )
            }
            CallProgress::CallerGone => "caller gone".to_owned(),
            CallProgress::RelayLost => "relay lost".to_owned(),
            CallProgress::HungUp { by, .. } => {
                assert!(matches!(by, Party::Caller | Party::Callee));
                format!("hung up by {by:?}")
            }
        })
        .collect()
}
