//! Real session descriptions, mutated by a seeded generator, as the offers and answers of calls: no panic,
//! nobody's address that must never be one, no lease that is not given back once, and bodies that
//! grow by little.
//!
//! The seed is fixed, so that a failure can be repeated; `SIPCAST_SEED` sets another one.

use std::collections::BTreeMap;

use super::*;

const SEED: u64 = 0x5eed_0f51;
/// Calls, each of an offer and some messages after it.
const CALLS: usize = 3_000;
const LEASES: u64 = 40;
/// Media lines that may be relayed of one call.
const MAX_RELAYED: usize = 8;
/// What a relayed line may add: a `c=` and an `a=rtcp` of its own, longer addresses, more digits.
const GROWTH_OF_A_LINE: usize = 120;
/// Media lines that are read.
const MAX_LINES: usize = 64;

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let named = std::env::var("SIPCAST_SEED").ok();
        Self(named.map_or(SEED, |text| text.parse().expect("SIPCAST_SEED is a number")))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).expect("it fits")
    }

    fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }
}

const HEAD: &str =
    "v=0\r\no=- 1 1 IN IP4 192.168.1.10\r\ns=-\r\nc=IN IP4 192.168.1.10\r\nt=0 0\r\n";

const MEDIA: [&str; 8] = [
    "m=audio 6000 RTP/AVP 0 8 101\r\na=rtpmap:101 telephone-event/8000\r\na=fmtp:101 0-15\r\na=sendrecv\r\n",
    "m=video 6002 RTP/AVPF 96\r\nc=IN IP4 192.168.1.11\r\na=rtcp:6009 IN IP4 192.168.1.11\r\na=rtcp-mux\r\n",
    "m=audio 6004/2 RTP/SAVP 0\r\na=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:d0RmdmcmVCspeEc3QGZiNWpVLFJhQX1c\r\n",
    "m=audio 6006 UDP/TLS/RTP/SAVPF 111\r\na=fingerprint:sha-256 AA:BB\r\na=setup:actpass\r\na=mid:0\r\n\
     a=ice-ufrag:x\r\na=ice-pwd:y\r\na=candidate:1 1 UDP 1 192.168.1.10 6006 typ host\r\n",
    "m=image 6008 udptl t38\r\na=T38FaxVersion:0\r\n",
    "m=video 0 RTP/AVP 31\r\n",
    "m=message 9 TCP/MSRP *\r\n",
    "m=audio 6010 RTP/AVP 0\r\nc=IN IP6 2001:db8::10\r\na=inactive\r\n",
];

const PIECES: [&str; 24] = [
    "\r\n",
    "\n",
    "\r",
    "\0",
    " ",
    "\t",
    "=",
    "m=",
    "a=",
    "c=IN IP4 0.0.0.0\r\n",
    "/",
    ":",
    "-1",
    "0",
    "65536",
    "4294967296",
    "18446744073709551616",
    "127.0.0.1",
    "224.2.1.1/127/4294967295",
    "198.51.100.1",
    "::ffff:127.0.0.1",
    "a=group:BUNDLE 0\r\n",
    "m=audio 7000 RTP/AVP 0\r\n",
    "\u{fffd}",
];

fn description(dice: &mut Dice) -> Vec<u8> {
    let mut text = String::from(HEAD);
    for _ in 0..=dice.below(3) {
        text += dice.pick(&MEDIA);
    }
    text.into_bytes()
}

fn mutant(dice: &mut Dice) -> Vec<u8> {
    let mut bytes = description(dice);
    for _ in 0..dice.below(5) {
        mutate(&mut bytes, dice);
    }
    bytes
}

fn mutate(bytes: &mut Vec<u8>, dice: &mut Dice) {
    let at = dice.below(bytes.len() + 1);
    match dice.below(8) {
        0 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << dice.below(8);
            }
        }
        1 => drop(bytes.splice(at..at, dice.pick(&PIECES).bytes())),
        2 => {
            let end = (at + dice.below(40)).min(bytes.len());
            bytes.drain(at..end);
        }
        3 => bytes.truncate(at),
        4 => {
            let many = dice.pick(&PIECES).repeat(1 << dice.below(10));
            bytes.splice(at..at, many.bytes());
        }
        _ => lines(bytes, dice),
    }
}

/// A line doubled, removed or moved, or one of another description.
fn lines(bytes: &mut Vec<u8>, dice: &mut Dice) {
    let split = |bytes: &[u8]| -> Vec<Vec<u8>> {
        let lines = bytes.split_inclusive(|byte| *byte == b'\n');
        lines.map(<[u8]>::to_vec).collect()
    };
    let mut all = split(bytes);
    if all.is_empty() {
        return;
    }
    let (which, to) = (dice.below(all.len()), dice.below(all.len()));
    match dice.below(4) {
        0 => all.insert(to, all[which].clone()),
        1 => drop(all.remove(which)),
        2 => all.swap(which, to),
        _ => {
            let other = split(&description(dice));
            all.insert(to, other[dice.below(other.len())].clone());
        }
    }
    *bytes = all.concat();
}

/// What the relays were told of each session: how often it was bound and released.
#[derive(Default)]
struct Told(BTreeMap<u64, (usize, usize)>);

impl Told {
    fn note(&mut self, world: &mut World) {
        for message in world.said() {
            match message {
                ToAgent::Bind { session, a, b, .. } => {
                    self.0.entry(session).or_default().0 += 1;
                    assert_honest(&a);
                    assert_honest(&b);
                }
                ToAgent::Update { gate, .. } => assert_honest(&gate),
                ToAgent::Release { session, .. } => self.0.entry(session).or_default().1 += 1,
                _ => {}
            }
        }
    }
}

/// Of the addresses that SDP names only those that media can come from are believed.
fn assert_honest(gate: &Gate) {
    for address in &gate.expected {
        let address = address.to_canonical();
        let hostile = address.is_loopback()
            || address.is_multicast()
            || address.is_unspecified()
            || address == ip("198.51.100.1");
        assert!(!hostile, "{gate:?}");
    }
}

fn assert_small(body: &[u8], new: Option<&Vec<u8>>) {
    if let Some(new) = new {
        let most = body.len() + MAX_LINES * GROWTH_OF_A_LINE;
        assert!(new.len() <= most, "{} of {}", new.len(), body.len());
    }
}

/// A call that begins with this offer and goes on with mutants; true when the offer was rewritten.
fn call(offer: &[u8], dice: &mut Dice) -> bool {
    let mut world = World::with_leases(RelayPolicy::Always, LEASES);
    let mut told = Told::default();
    let placed = world.place(offer);
    assert_small(offer, placed.body.as_ref());
    let rewritten = placed.body.is_some();
    told.note(&mut world);
    let Some(session) = placed.session else {
        assert!(
            told.0.is_empty(),
            "nothing is taken for a call without a session"
        );
        return false;
    };
    for _ in 0..dice.below(5) {
        let body = mutant(dice);
        let (party, line) = STEPS[dice.below(STEPS.len())];
        let message = sip_message(line, "INVITE", &body);
        // A request may be refused, and has then changed nothing.
        let passed = world.try_pass(session, party, &message);
        assert_small(&body, passed.ok().flatten().as_ref());
        if dice.below(4) == 0 {
            let request = sip_message("INVITE sip:x@example.com SIP/2.0", "INVITE", b"");
            world.calls.refused(&request, party, session, world.now);
        }
        told.note(&mut world);
        let open = told.0.values().filter(|(_, released)| *released == 0);
        assert!(open.count() <= MAX_RELAYED);
    }
    if dice.below(2) == 0 {
        world.calls.answered(session, world.now);
    }
    world.calls.ended(session, world.now);
    told.note(&mut world);
    // One that waits for the offer is bound before it has a line, and again for it.
    for (session, (bound, released)) in &told.0 {
        assert!(
            (1..=2).contains(bound),
            "session {session}: bound {bound} times"
        );
        // A call whose only answer cannot be read has given it back before its end, which names it again.
        assert!(
            (1..=2).contains(released),
            "session {session}: released {released} times"
        );
    }
    assert_eq!(world.calls.iter().count(), 0);
    assert!(world.calls.call_of.is_empty());
    rewritten
}

const STEPS: [(Party, &str); 4] = [
    (Party::Callee, "SIP/2.0 200 OK"),
    (Party::Callee, "SIP/2.0 183 Session Progress"),
    (Party::Caller, "INVITE sip:x@example.com SIP/2.0"),
    (Party::Callee, "INVITE sip:x@example.com SIP/2.0"),
];

#[test]
fn mutants_of_descriptions_do_no_harm() {
    let mut dice = Dice::new();
    let mut rewritten = 0;
    for _ in 0..CALLS {
        let offer = mutant(&mut dice);
        rewritten += usize::from(call(&offer, &mut dice));
    }
    assert!(
        rewritten > CALLS / 4 && rewritten < CALLS,
        "they reach more than the parser, and not all of them are whole: {rewritten}"
    );
}

/// The same in a part of a multipart, whose other bytes stay.
#[test]
fn mutants_in_a_multipart_do_no_harm() {
    let mut dice = Dice::new();
    let headers = "Content-Type: multipart/mixed;boundary=b1\r\n";
    for _ in 0..CALLS / 4 {
        let mut body = b"--b1\r\nContent-Type: application/sdp\r\n\r\n".to_vec();
        body.extend(mutant(&mut dice));
        body.extend_from_slice(b"\r\n--b1\r\nContent-Type: text/plain\r\n\r\nx\r\n--b1--\r\n");
        for _ in 0..dice.below(3) {
            mutate(&mut body, &mut dice);
        }
        let mut world = World::with_leases(RelayPolicy::Always, LEASES);
        let session = world
            .place(&offer(&["audio 6000 RTP/AVP 0"]))
            .session
            .expect("a session");
        let line = "SIP/2.0 200 OK";
        let message = sip_message_with(line, "INVITE", headers, &body);
        let new = world.pass(session, Party::Callee, &message);
        assert_small(&body, new.as_ref());
        world.calls.ended(session, world.now);
        assert_eq!(world.calls.iter().count(), 0);
    }
}
