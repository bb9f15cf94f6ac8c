//! Real messages, mutated by a seeded generator, through the framer and the whole proxy: no panic,
//! bounded tables, no more out than a stated amount for what came in, everything forgotten in time.
//!
//! The seed is fixed, so that a failure can be repeated; `SIPCAST_SEED` sets another one.

use sip::cookie::Keys;
use sip::hop::Transmit;
use sip::message::Message;

use crate::corpus;
use crate::world::{ALICE, BOB, World, answer, find, in_dialog, invite, parse, request};

const SEED: u64 = 0x5eed_0f51;
/// Mutants per run; each goes through the proxy over UDP and over TCP.
const MUTANTS: usize = 4_000;
/// Transactions on each side, few enough to be reached.
const LIMIT: usize = 64;
/// What one request from a stranger may bring back to its source beyond its own length: the
/// answer's `received` and `rport`, its To tag, its status line and header names in full.
const ANSWER_EXTRA: usize = 400;

/// SplitMix64: the next state is the last one plus a constant.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound.max(1)).expect("it fits");
        usize::try_from(self.next() % bound).expect("it fits")
    }

    fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }
}

fn dice() -> Dice {
    let named = std::env::var("SIPCAST_SEED").ok();
    let seed = named.map_or(SEED, |text| text.parse().expect("SIPCAST_SEED is a number"));
    Dice(seed)
}

/// A world in the middle of things, and the messages that keep it going: requests and responses that
/// match what it waits for.
fn world_with_messages() -> (World, Vec<(&'static str, Vec<u8>)>) {
    let mut world = World::configured(|config| {
        config.limits.max_server = LIMIT;
        config.limits.max_client = LIMIT;
        config.registrar.max_bindings = LIMIT;
    });
    world.register(BOB, "sip:bob@192.168.1.2:5060", "bob");
    let (ok, _) = world.call();
    let second = request(
        "INVITE",
        "sip:bob@example.com",
        "z9hG4bKalice2",
        "X-Folded: a\r\n b\r\n",
    );
    let to_bob = find(&world.receive(ALICE, &second), BOB);
    let mut messages = vec![
        (ALICE, invite("sip:bob@example.com")),
        (ALICE, second),
        (
            ALICE,
            request("CANCEL", "sip:bob@example.com", "z9hG4bKalice2", ""),
        ),
        (BOB, answer(&to_bob, 100, "Trying", "")),
        (BOB, answer(&to_bob, 180, "Ringing", "b1")),
        (BOB, answer(&to_bob, 200, "OK", "b1")),
        (BOB, answer(&to_bob, 486, "Busy Here", "b1")),
        (BOB, answer(&to_bob, 603, "Decline", "b1")),
        (ALICE, request("OPTIONS", "sip:example.com", "z9hG4bKo", "")),
        (
            ALICE,
            request(
                "REGISTER",
                "sip:example.com",
                "z9hG4bKr",
                "Expires: 600\r\n",
            ),
        ),
        (
            ALICE,
            request(
                "MESSAGE",
                "sip:bob@example.com",
                "z9hG4bKm",
                "Route: <sip:example.com;lr>\r\n",
            ),
        ),
        (
            ALICE,
            request(
                "SUBSCRIBE",
                "sip:bob@example.com",
                "z9hG4bKs",
                "Max-Breadth: 7\r\n",
            ),
        ),
    ];
    for (method, by_caller) in [
        ("ACK", true),
        ("BYE", false),
        ("INVITE", true),
        ("UPDATE", false),
    ] {
        let from = if by_caller { ALICE } else { BOB };
        messages.push((from, in_dialog(method, 3, &ok, by_caller)));
    }
    (world, messages)
}

/// The torture messages too, where they are.
fn seeds() -> (World, Vec<(&'static str, Vec<u8>)>) {
    let (world, mut messages) = world_with_messages();
    for name in corpus::indexed().unwrap_or_default() {
        let bytes = corpus::read(&name);
        messages.extend(bytes.map(|bytes| (ALICE, bytes.to_vec())));
    }
    (world, messages)
}

const NUMBERS: [&str; 12] = [
    "0",
    "-1",
    "1",
    "255",
    "256",
    "65535",
    "65536",
    "2147483648",
    "4294967296",
    "4294967301",
    "18446744073709551616",
    "99999999999999999999999999999999999999",
];

const PIECES: [&str; 26] = [
    "\r\n", "\n", "\r", "\0", " ", "\t", ":", ";", ",", "<", ">", "\"", "\\", "@", "=", "?", "%00",
    "[", "]", "*", ";tag=", ";lr", "\r\n\r\n", "SIP/2.0", "z9hG4bK", "\u{fffd}",
];

/// One change of the message.
fn mutate(bytes: &mut Vec<u8>, other: &[u8], dice: &mut Dice) {
    let at = dice.below(bytes.len() + 1);
    match dice.below(12) {
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
        4 => number(bytes, dice),
        5..=8 => lines(bytes, other, dice),
        9 => values(bytes, dice),
        10 => {
            let long = dice.pick(&PIECES).repeat(1 << dice.below(13));
            bytes.splice(at..at, long.bytes());
        }
        _ => {
            let end = (at + dice.below(60)).min(bytes.len());
            let piece = bytes[at..end].to_vec();
            let to = dice.below(bytes.len() + 1);
            bytes.splice(to..to, piece);
        }
    }
}

/// Another number in the place of one.
fn number(bytes: &mut Vec<u8>, dice: &mut Dice) {
    let starts: Vec<usize> = (0..bytes.len())
        .filter(|&at| bytes[at].is_ascii_digit() && (at == 0 || !bytes[at - 1].is_ascii_digit()))
        .collect();
    if starts.is_empty() {
        return;
    }
    let start = starts[dice.below(starts.len())];
    let digits = bytes[start..]
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    bytes.splice(start..start + digits, dice.pick(&NUMBERS).bytes());
}

/// A line doubled, removed, moved, or taken from another message.
fn lines(bytes: &mut Vec<u8>, other: &[u8], dice: &mut Dice) {
    let mut all: Vec<Vec<u8>> = split_lines(bytes);
    let which = dice.below(all.len());
    let to = dice.below(all.len());
    match dice.below(4) {
        0 => all.insert(to, all[which].clone()),
        1 => drop(all.remove(which)),
        2 => all.swap(which, to),
        _ => {
            let others = split_lines(other);
            all.insert(to, others[dice.below(others.len())].clone());
        }
    }
    *bytes = all.concat();
}

/// Two values, of whatever headers, in each other's place.
fn values(bytes: &mut Vec<u8>, dice: &mut Dice) {
    let mut all = split_lines(bytes);
    let (one, two) = (dice.below(all.len()), dice.below(all.len()));
    let colon = |line: &[u8]| {
        line.iter()
            .position(|byte| *byte == b':')
            .map_or(0, |at| at + 1)
    };
    let (first, second) = (colon(&all[one]), colon(&all[two]));
    let (head, tail) = (all[one][..first].to_vec(), all[one][first..].to_vec());
    let (other_head, other_tail) = (all[two][..second].to_vec(), all[two][second..].to_vec());
    all[one] = [head, other_tail].concat();
    all[two] = [other_head, tail].concat();
    *bytes = all.concat();
}

fn split_lines(bytes: &[u8]) -> Vec<Vec<u8>> {
    let lines: Vec<Vec<u8>> = bytes
        .split_inclusive(|byte| *byte == b'\n')
        .map(<[u8]>::to_vec)
        .collect();
    if lines.is_empty() {
        vec![Vec::new()]
    } else {
        lines
    }
}

fn mutant(seeds: &[(&'static str, Vec<u8>)], dice: &mut Dice) -> (&'static str, Vec<u8>) {
    let (from, seed) = &seeds[dice.below(seeds.len())];
    let other = &seeds[dice.below(seeds.len())].1;
    let mut bytes = seed.clone();
    for _ in 0..=dice.below(4) {
        mutate(&mut bytes, other, dice);
    }
    (from, bytes)
}

/// What must hold of everything that we send, whatever it is an answer to.
fn must_be_sound(sent: &[Transmit]) {
    for transmit in sent {
        let message = Message::parse(transmit.bytes.clone()).expect("what we send is a message");
        assert!(!message.content_length_fault(), "{message:?}");
        assert_eq!(message.head_fault(), None, "{message:?}");
        if message.is_request() {
            assert_eq!(message.check(), Ok(()), "{message:?}");
        }
    }
}

#[test]
fn mutants_do_no_harm() {
    let mut dice = dice();
    let (mut world, seeds) = seeds();
    let mut sent_in_all = 0;
    for _ in 0..MUTANTS {
        let (from, bytes) = mutant(&seeds, &mut dice);
        world.tcp = false;
        let mut sent = world.receive(from, &bytes);
        world.tcp = true;
        sent.extend(world.receive_stream(from, &bytes).0);
        if dice.below(8) == 0 {
            let step = std::time::Duration::from_millis(dice.next() % 3_000);
            sent.extend(world.advance(step));
        }
        must_be_sound(&sent);
        sent_in_all += sent.len();
        let counts = world.proxy.transactions().counts();
        assert!(
            counts.server <= LIMIT && counts.client <= LIMIT,
            "{counts:?}"
        );
        assert!(world.proxy.contexts() <= LIMIT);
        assert!(world.proxy.registrar().counts().bindings <= LIMIT);
    }
    assert!(
        sent_in_all > MUTANTS / 4,
        "they reach more than the parser: {sent_in_all}"
    );
    world.assert_all_forgotten();
    assert_eq!(world.proxy.registrar().counts().bindings, 0);
    world.tcp = false;
    world.register(BOB, "sip:bob@192.168.1.2:5060", "after");
    world.call();
}

/// Nobody is registered here, so nothing is forwarded: whatever comes from a stranger's address brings
/// at most one answer back to it, of about its own length, and nothing to anybody else. An INVITE
/// is no exception: its refusal has no transaction that would repeat it.
#[test]
fn mutants_of_strangers_reflect_no_more_than_they_brought() {
    let mut dice = dice();
    let (_, seeds) = seeds();
    for _ in 0..MUTANTS / 4 {
        let (_, bytes) = mutant(&seeds, &mut dice);
        let mut world = World::configured(|config| {
            config.registrar.max_bindings = 0;
            // The dialogs of the seeds are not ours.
            config.keys = Keys::new([8; 32], None);
        });
        let mut sent = world.receive(ALICE, &bytes);
        sent.extend(world.advance(std::time::Duration::from_secs(64)));
        assert!(sent.len() <= 1, "{}: {sent:?}", bytes.escape_ascii());
        for transmit in &sent {
            let octets = transmit.bytes.len();
            assert!(
                octets <= bytes.len() + ANSWER_EXTRA,
                "{octets}: {}",
                bytes.escape_ascii()
            );
            assert_eq!(transmit.flow.peer.to_string(), ALICE);
            assert!(!parse(transmit).is_request());
        }
        world.assert_all_forgotten();
    }
}
