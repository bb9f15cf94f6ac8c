//! The torture messages of RFC 4475 and RFC 5118 through the whole proxy. What each may meet with
//! is its row of the corpus' index; where that leaves a choice, ours is here.

use sip::message::{HeaderName, Message, Method};

use crate::corpus;
use crate::judge::{Row, Seen, finish, judge, world_for};
use crate::world::{ALICE, BOB, find, parse, summary};

const fn row(name: &'static str, udp: &'static str, tcp: &'static str) -> Row {
    Row { name, udp, tcp }
}

const fn both(name: &'static str, outcome: &'static str) -> Row {
    row(name, outcome, outcome)
}

/// A Route to somebody else: whether it is followed is a matter of the routing policy.
const BY_POLICY: &str = "forward|403|404|478|502|503";

pub(crate) const ROWS: [Row; 66] = [
    both("rfc4475/wsinv", BY_POLICY),
    both("rfc4475/intmeth", "forward"),
    both("rfc4475/esc01", "forward"),
    both("rfc4475/escnull", "200"),
    both("rfc4475/esc02", "404"),
    both("rfc4475/lwsdisp", "forward"),
    both("rfc4475/longreq", "forward"),
    // Over TCP the INVITE behind the REGISTER is a message of its own, and its body, which its
    // Content-Length leaves out, is none.
    row("rfc4475/dblreq", "200", "200 404 closed"),
    both("rfc4475/semiuri", "forward"),
    both("rfc4475/transports", "forward"),
    both("rfc4475/mpart01", BY_POLICY),
    both("rfc4475/unreason", "nothing"),
    both("rfc4475/noreason", "nothing"),
    both("rfc4475/badinv01", "400"),
    row("rfc4475/clerr", "400", "nothing waits"),
    row("rfc4475/ncl", "400", "400 closed"),
    both("rfc4475/scalar02", "400"),
    both("rfc4475/scalarlg", "nothing"),
    both("rfc4475/quotbal", "400"),
    both("rfc4475/ltgtruri", "400"),
    both("rfc4475/lwsruri", "400"),
    both("rfc4475/lwsstart", "400"),
    both("rfc4475/trws", "400"),
    both("rfc4475/escruri", "400"),
    both("rfc4475/baddate", "forward"),
    both("rfc4475/regbadct", "400"),
    both("rfc4475/badaspec", "400"),
    row("rfc4475/baddn", "400", "nothing waits"),
    both("derived/baddn-terminated", "400"),
    both("rfc4475/badvers", "505"),
    both("rfc4475/mismatch01", "400"),
    both("rfc4475/mismatch02", "501"),
    row("rfc4475/bigcode", "nothing", "nothing closed"),
    both("rfc4475/badbranch", "400"),
    both("rfc4475/insuf", "400"),
    both("rfc4475/unkscm", "416"),
    both("rfc4475/novelsc", "416"),
    both("rfc4475/unksm2", "400"),
    both("rfc4475/bext01", "420"),
    both("rfc4475/invut", "forward"),
    both("rfc4475/regaut01", "200"),
    both("rfc4475/multi01", "400"),
    row("rfc4475/mcl01", "400", "400 closed"),
    both("rfc4475/bcast", "nothing"),
    both("rfc4475/zeromf", "200|483"),
    both("rfc4475/cparam01", "200"),
    both("rfc4475/cparam02", "200"),
    both("rfc4475/regescrt", "200"),
    both("rfc4475/sdp01", "forward"),
    // It has a body and no length: over a stream nobody knows where it ends.
    row("rfc4475/inv2543", "forward", "nothing closed"),
    row("rfc4475/test", "nothing", "nothing closed"),
    both("rfc5118/ipv6-good", "200"),
    both("rfc5118/ipv6-bad", "400"),
    both("rfc5118/port-ambiguous", "200"),
    both("rfc5118/port-unambiguous", "403"),
    both("rfc5118/via-received-param-with-delim", "404|481"),
    both("rfc5118/via-received-param-no-delim", "200"),
    row("rfc5118/ipv6-in-sdp", "400", "nothing waits"),
    both("rfc5118/mult-ip-in-header", "forward"),
    // Their Content-Length is too small by eight and nine, which over TCP begin another message.
    row("rfc5118/mult-ip-in-sdp", "forward", "forward waits"),
    row("rfc5118/ipv4-mapped-ipv6", "forward", "forward waits"),
    both("rfc5118/ipv6-bug-abnf-3-colons", "forward"),
    both("rfc5118/ipv6-correct-abnf-2-colons", "forward"),
    both("rfc5118-fixed-cl/ipv6-in-sdp", "forward"),
    both("rfc5118-fixed-cl/mult-ip-in-sdp", "forward"),
    both("rfc5118-fixed-cl/ipv4-mapped-ipv6", "forward"),
];

#[test]
fn every_torture_message_is_treated_as_its_row_says() {
    for row in &ROWS {
        let Some(bytes) = corpus::read(row.name) else {
            return;
        };
        let seen = judge(row, &bytes);
        look_closer(row.name, &seen);
        finish(seen, &bytes, row.name);
    }
}

#[test]
fn every_row_of_the_index_is_here() {
    for name in corpus::indexed().unwrap_or_default() {
        assert!(ROWS.iter().any(|row| row.name == name), "{name}");
    }
}

/// The index' last column but two: what must hold whatever the answer.
fn look_closer(name: &str, seen: &Seen) {
    let contacts = seen.contacts();
    match name {
        "rfc4475/escnull" => assert_eq!(contacts.len(), 2, "the AoR is not cut at the NUL"),
        "rfc4475/esc02" | "rfc4475/scalar02" | "rfc4475/unksm2" | "rfc4475/regbadct" => {
            assert_eq!(contacts, [""; 0], "{name} binds nothing");
        }
        "rfc4475/longreq" => assert_eq!(seen.forwarded().vias().count(), 35),
        "rfc4475/dblreq" => {
            let counts = seen.world.proxy.transactions().counts();
            assert_eq!((counts.server, counts.client), (1, 0), "no INVITE over UDP");
        }
        "rfc4475/intmeth" => {
            assert!(seen.forwarded().to().expect("To").display.contains(&0));
        }
        "rfc4475/mpart01" if seen.sent.len() == 1 && seen.sent[0].flow.peer.to_string() == BOB => {
            assert_eq!(seen.forwarded().body().len(), 553);
        }
        "rfc4475/bext01" => assert_eq!(
            seen.answer().header_spelled("Unsupported"),
            Some(b"noProxiesSupportThis, norDoAnyProxiesSupportThis".as_slice())
        ),
        "rfc4475/cparam01" => assert!(
            told(seen).ends_with("<sip:+19725552222@gw1.example.net>;unknownparam;expires=3600"),
            "{}",
            told(seen)
        ),
        "rfc4475/cparam02" => assert!(
            told(seen).ends_with("<sip:+19725552222@gw1.example.net;unknownparam>;expires=3600"),
            "{}",
            told(seen)
        ),
        "rfc4475/regescrt" => assert!(told(seen).contains("?Route=%3Csip:sip.example.com%3E>")),
        _ => {}
    }
}

fn told(seen: &Seen) -> String {
    let answer = seen.answer();
    let contact = answer.header(HeaderName::Contact).expect("Contact");
    String::from_utf8_lossy(contact).into_owned()
}

#[test]
fn two_requests_whose_branch_is_the_bare_cookie_are_not_one_transaction() {
    let Some(bytes) = corpus::read("rfc4475/badbranch") else {
        return;
    };
    let mut world = world_for(&bytes);
    for _ in 0..2 {
        assert_eq!(summary(&world.receive(ALICE, &bytes)), ["400 -> alice"]);
    }
    assert_eq!(world.proxy.counters().rejected, 2, "the second is no copy");
}

#[test]
fn an_ack_and_a_cancel_of_rfc_2543_find_their_invite() {
    let Some(bytes) = corpus::read("rfc4475/inv2543") else {
        return;
    };
    let mut world = world_for(&bytes);
    let sent = world.receive(ALICE, &bytes);
    let to_callee = find(&sent, BOB);
    let again = world.receive(ALICE, &bytes);
    assert_eq!(summary(&again), ["100 -> alice"], "a retransmission");
    let busy = to_callee.respond(486, "Busy Here").to_tag("b1").build();
    let sent = world.receive(BOB, busy.bytes());
    let busy = parse(&sent[1]);
    let invite = Message::parse(bytes.clone()).expect("a message");
    let ack = invite.ack_for(&busy);
    assert_eq!(ack.method(), Method::Ack);
    assert_eq!(summary(&world.receive(ALICE, ack.bytes())), [""; 0]);
    assert_eq!(world.proxy.counters().stray_acks, 0, "it ended here");

    let mut world = world_for(&bytes);
    world.receive(ALICE, &bytes);
    let cancel = invite.cancel_for();
    assert_eq!(
        summary(&world.receive(ALICE, cancel.bytes())),
        ["200 -> alice"]
    );
    world.assert_all_forgotten();
}

#[test]
fn a_contact_with_header_fields_is_called_without_them() {
    let Some(bytes) = corpus::read("rfc4475/regescrt") else {
        return;
    };
    let mut world = world_for(&bytes);
    world.receive(BOB, &bytes);
    let register = Message::parse(bytes).expect("a message");
    let user = register.to().expect("To").uri;
    let call = crate::world::request("MESSAGE", &String::from_utf8_lossy(user), "z9hG4bKm", "");
    let sent = world.receive(ALICE, &call);
    let forwarded = find(&sent, BOB);
    assert!(!forwarded.request_uri().contains(&b'?'));
    assert_eq!(forwarded.count(HeaderName::Route), 0);
}
