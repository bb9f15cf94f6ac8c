//! Connections that close at every moment of a call (CVE-2018-7286, CVE-2020-28327): nothing outlives
//! what it needs, nothing is used after its end.

use sip::hop::{ConnectionId, Flow, Hop, Transport};

use crate::world::{ALICE, BOB, SERVICE, World, answer, find, in_dialog, invite, parse, request};

const CALLER: u64 = 1;
const CALLEE: u64 = 2;

fn hop(peer: &str, connection: u64) -> Hop {
    Hop {
        flow: Flow {
            transport: Transport::Tcp,
            peer: peer.parse().expect("address"),
            local: SERVICE.parse().expect("address"),
            connection: Some(ConnectionId(connection)),
        },
        relay: None,
    }
}

/// A call over two connections, as far as `steps`; then `closed` is.
fn call(steps: usize, cancelled: bool, closed: &[u64]) {
    let mut world = World::new();
    let (caller, callee) = (hop(ALICE, CALLER), hop(BOB, CALLEE));
    let register = request("REGISTER", "sip:example.com", "z9hG4bKr", "");
    world.receive_from(&callee, &register);
    let mut run = || -> Option<()> {
        let mut left = steps;
        let mut step = || {
            left = left.checked_sub(1)?;
            Some(())
        };
        step()?;
        let sent = world.receive_from(&caller, &invite("sip:bob@example.com"));
        let to_bob = find(&sent, BOB);
        step()?;
        world.receive_from(&callee, &answer(&to_bob, 100, "Trying", ""));
        step()?;
        world.receive_from(&callee, &answer(&to_bob, 180, "Ringing", "b1"));
        step()?;
        if cancelled {
            let cancel = request("CANCEL", "sip:bob@example.com", "z9hG4bKalice1", "");
            let sent = world.receive_from(&caller, &cancel);
            step()?;
            world.receive_from(&callee, &answer(&find(&sent, BOB), 200, "OK", "b1"));
            step()?;
            world.receive_from(&callee, &answer(&to_bob, 487, "Terminated", "b1"));
            return step();
        }
        let sent = world.receive_from(&callee, &answer(&to_bob, 200, "OK", "b1"));
        let ok = parse(&sent[0]);
        step()?;
        world.receive_from(&caller, &in_dialog("ACK", 1, &ok, true));
        step()?;
        let sent = world.receive_from(&callee, &in_dialog("BYE", 1, &ok, false));
        step()?;
        world.receive_from(&caller, &answer(&find(&sent, ALICE), 200, "OK", "a1"));
        step()
    };
    run();
    for connection in closed {
        world.connection_closed(ConnectionId(*connection));
    }
    // What comes late on a closed connection was read before it closed.
    world.receive_from(&caller, &invite("sip:bob@example.com"));
    for connection in closed {
        world.connection_closed(ConnectionId(*connection));
    }
    world.assert_all_forgotten();
}

#[test]
fn a_connection_may_close_at_any_step_of_a_call() {
    for steps in 0..9 {
        for cancelled in [false, true] {
            for closed in [
                &[CALLER][..],
                &[CALLEE],
                &[CALLER, CALLEE],
                &[CALLEE, CALLER],
            ] {
                call(steps, cancelled, closed);
            }
        }
    }
}

#[test]
fn many_invites_on_a_connection_that_closes_are_all_forgotten() {
    let mut world = World::with_bob();
    let caller = hop(ALICE, CALLER);
    for number in 0..500 {
        let branch = format!("z9hG4bKmany{number}");
        world.receive_from(
            &caller,
            &request("INVITE", "sip:bob@example.com", &branch, ""),
        );
    }
    world.connection_closed(ConnectionId(CALLER));
    let left = world.proxy.transactions().counts().server;
    assert_eq!(left, 1, "the REGISTER's, over UDP");
    world.assert_all_forgotten();
    assert!(world.media.open.is_empty(), "every session is given back");
}
