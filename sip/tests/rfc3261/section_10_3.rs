//! Processing REGISTER requests. The rules step by step, with their bounds and a model, are also in
//! `registrar.rs` beside this crate; here is what the text of the section asks for by MUST.

use std::time::Duration;

use sip::message::{HeaderName, Message};

use crate::world::{ALICE, BOB, BOB_DESK, World, invite, parse, summary};

/// "The registrar extracts the address-of-record from the To header field of the request. … The URI
/// MUST then be converted to a canonical form. To do that, all URI parameters MUST be removed
/// (including the user-param), and any escaped characters MUST be converted to their unescaped form."
/// (step 5)
#[test]
fn the_user_is_the_one_in_to_in_canonical_form() {
    let mut world = World::new();
    let to = "<sip:%62ob@EXAMPLE.com;user=phone;x=y>";
    let ok = register(&mut world, &Register { to, ..FIRST });
    assert_eq!(ok.status(), Some(200));
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    assert_eq!(summary(&sent), ["100 -> alice", "INVITE -> bob"]);
}

/// "If the request has additional Contact fields or an expiration time other than zero, the request
/// is invalid, and the server MUST return a 400 (Invalid Request) and skip the remaining steps."
/// (step 6)
#[test]
fn a_wildcard_with_anything_else_changes_nothing() {
    let mut world = World::new();
    register(&mut world, &FIRST);
    for (contact, headers) in [
        ("*", ""),
        ("*", "Expires: 1\r\n"),
        ("*, <sip:x@192.168.1.9>", "Expires: 0\r\n"),
    ] {
        let bad = Register {
            cseq: 2,
            contact,
            headers,
            ..FIRST
        };
        assert_eq!(register(&mut world, &bad).status(), Some(400));
        assert_eq!(world.proxy.registrar().counts().bindings, 1);
    }
}

/// "If not, the registrar checks whether the Call-ID agrees with the value stored for each binding.
/// If not, it MUST remove the binding. If it does agree, it MUST remove the binding only if the CSeq
/// in the request is higher than the value stored for that binding. Otherwise, the update MUST be
/// aborted and the request fails." (step 6)
#[test]
fn a_wildcard_keeps_the_order_of_each_call_id() {
    for (call_id, cseq, status, left) in [("r", 1, 500, 1), ("r", 2, 200, 0), ("other", 1, 200, 0)]
    {
        let mut world = World::new();
        register(&mut world, &FIRST);
        let all = Register {
            call_id,
            cseq,
            contact: "*",
            headers: "Expires: 0\r\n",
            ..FIRST
        };
        assert_eq!(register(&mut world, &all).status(), Some(status));
        assert_eq!(world.proxy.registrar().counts().bindings, left);
    }
}

/// "If and only if the requested expiration interval is greater than zero AND smaller than one hour
/// AND less than a registrar-configured minimum, the registrar MAY reject the registration with a
/// response of 423 (Interval Too Brief). This response MUST contain a Min-Expires header field"
/// (step 7)
#[test]
fn only_a_short_interval_is_too_brief() {
    for (expires, status) in [("59", 423), ("60", 200), ("0", 200)] {
        let mut world = World::new();
        let headers = &format!("Expires: {expires}\r\n");
        let answer = register(&mut world, &Register { headers, ..FIRST });
        assert_eq!(answer.status(), Some(status), "{expires}");
        let least = answer.header(HeaderName::MinExpires);
        assert_eq!(least, (status == 423).then_some(&b"60"[..]));
    }
}

/// "The registrar MUST … the binding updates MUST be committed (that is, made visible to the proxy or
/// redirect server) if and only if all binding updates and additions succeed. If any one of them
/// fails …, the request MUST fail with a 500 (Server Error) response and all tentative binding updates
/// MUST be removed." (step 7)
#[test]
fn one_contact_out_of_order_undoes_the_others() {
    let mut world = World::new();
    register(&mut world, &Register { cseq: 7, ..FIRST });
    let both = Register {
        cseq: 6,
        contact: "<sip:new@192.168.1.3>, <sip:bob@192.168.1.2>",
        ..FIRST
    };
    assert_eq!(register(&mut world, &both).status(), Some(500));
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    assert_eq!(summary(&sent), ["100 -> alice", "INVITE -> bob"]);
}

/// "The registrar returns a 200 (OK) response. The response MUST contain Contact header field values
/// enumerating all current bindings. Each Contact value MUST feature an "expires" parameter indicating
/// its expiration interval chosen by the registrar." (step 8)
#[test]
fn the_answer_lists_every_binding_with_its_time() {
    let mut world = World::new();
    register(&mut world, &FIRST);
    world.now += Duration::from_secs(100);
    let second = Register {
        from: BOB_DESK,
        call_id: "desk",
        contact: "<sip:bob@192.168.1.3>;q=0.5;expires=99999",
        ..FIRST
    };
    let ok = register(&mut world, &second);
    let contacts: Vec<String> = ok
        .values(HeaderName::Contact)
        .map(|value| String::from_utf8_lossy(&value).into_owned())
        .collect();
    assert_eq!(
        contacts,
        [
            "<sip:bob@192.168.1.2>;expires=3500",
            "<sip:bob@192.168.1.3>;q=0.5;expires=7200"
        ]
    );
}

/// "Registrars MUST ignore the Record-Route header field if it is included in a REGISTER request.
/// Registrars MUST NOT include a Record-Route header field in any response to a REGISTER request."
#[test]
fn record_route_is_ignored() {
    let mut world = World::new();
    let headers = "Record-Route: <sip:192.0.2.9;lr>\r\n";
    let ok = register(&mut world, &Register { headers, ..FIRST });
    assert_eq!(ok.status(), Some(200));
    assert_eq!(ok.count(HeaderName::RecordRoute), 0);
    let sent = world.receive(ALICE, &invite("sip:bob@example.com"));
    assert_eq!(parse(&sent[1]).count(HeaderName::Route), 0);
}

struct Register<'a> {
    from: &'a str,
    to: &'a str,
    call_id: &'a str,
    cseq: u32,
    contact: &'a str,
    headers: &'a str,
}

const FIRST: Register<'_> = Register {
    from: BOB,
    to: "<sip:bob@example.com>",
    call_id: "r",
    cseq: 1,
    contact: "<sip:bob@192.168.1.2>",
    headers: "",
};

fn register(world: &mut World, register: &Register<'_>) -> Message {
    let Register {
        from,
        to,
        call_id,
        cseq,
        contact,
        headers,
    } = register;
    // A new branch and tag each time: a retransmission would get the old answer, a merged request
    // a 482.
    let counts = world.proxy.registrar().counts();
    let branch = counts.added + counts.refreshed + counts.removed + counts.refused;
    let text = format!(
        "REGISTER sip:example.com SIP/2.0\r\nVia: SIP/2.0/UDP 192.168.1.2;branch=z9hG4bK{call_id}{branch}\r\n\
         From: <sip:bob@example.com>;tag=r{branch}\r\nTo: {to}\r\nCall-ID: {call_id}\r\n\
         CSeq: {cseq} REGISTER\r\nMax-Forwards: 70\r\nContact: {contact}\r\n{headers}\
         Content-Length: 0\r\n\r\n"
    );
    let sent = world.receive(from, text.as_bytes());
    parse(&sent[0])
}
