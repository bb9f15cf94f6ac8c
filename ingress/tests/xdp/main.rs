//! The XDP program by BPF_PROG_TEST_RUN: against the forwarder of the TUN path with thousands of random
//! frames, and against fixtures: bytes in, verdict, bytes out, counter.
//!
//! Needs root; otherwise it says SKIP, which is a failure where CI=true.

#![expect(clippy::unwrap_used, reason = "a failed set-up fails the test")]

mod fixtures;
mod frames;
mod network;
mod reference;

use std::cell::RefCell;
use std::collections::HashMap;

use proptest::test_runner::{Config as RunnerConfig, TestRunner};
use tunnel_io::xdp::tables::{Count, Outcome};

use network::{Rig, config, in_own_namespace};

/// Of XDP (linux/bpf.h).
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;

const CASES: u32 = 6_000;

/// What the program returns for an outcome.
fn verdict_of(outcome: Outcome) -> u32 {
    match (outcome, outcome.labels().0) {
        (Outcome::ForwardBack, _) => XDP_TX,
        (Outcome::ForwardAcross, _) => XDP_REDIRECT,
        (_, "drop") => XDP_DROP,
        _ => XDP_PASS,
    }
}

/// The one outcome that was counted since, with its octets.
fn counted(rig: &Rig, before: &[Count]) -> (Outcome, u64) {
    let now = rig.xdp.counts().unwrap();
    let changed = Outcome::ALL.into_iter().zip(before.iter().zip(&now));
    let mut changed = changed.filter(|(_, (before, now))| before != now);
    let (outcome, (before, now)) = changed.next().unwrap();
    assert!(changed.next().is_none(), "two outcomes");
    assert_eq!(now.packets, before.packets + 1);
    (outcome, now.bytes - before.bytes)
}

/// `more` goes into the section `tunnel`.
fn differ(
    name: &'static str,
    source: &'static str,
    concentrators: &'static str,
    more: &'static str,
) {
    in_own_namespace(move || {
        let more = format!("{more}\n{}", reference::RULES);
        let rig = Rig::new(&config(name, source, concentrators, &more));
        let (rig, seen) = (RefCell::new(rig), RefCell::new(HashMap::new()));
        let mut runner = TestRunner::new(RunnerConfig {
            cases: CASES,
            failure_persistence: None,
            ..RunnerConfig::default()
        });
        let test = |frame: Vec<u8>| {
            let rig = &mut rig.borrow_mut();
            let before = rig.xdp.counts().unwrap();
            let (verdict, out, _) = rig.xdp.run(&frame, rig.edge).unwrap();
            let (expected, bytes) = reference::expect(rig, &frame);
            assert_eq!(counted(rig, &before).0, expected);
            assert_eq!(verdict, verdict_of(expected));
            assert_eq!(out, bytes.unwrap_or(frame), "{expected:?}");
            *seen.borrow_mut().entry(expected).or_insert(0) += 1;
            Ok(())
        };
        if let Err(error) = runner.run(&frames::any_frame(), test) {
            panic!("{error}");
        }
        let (seen, rig) = (seen.into_inner(), rig.into_inner());
        for outcome in Outcome::ALL {
            let is_here = !matches!(
                outcome,
                Outcome::SourceLimit
                    | Outcome::TotalLimit
                    | Outcome::Broken
                    | Outcome::NotReady
                    | Outcome::NoRoute
                    | Outcome::NoNeighbour
                    | Outcome::NoRoom
                    | Outcome::UdpChecksum
            );
            assert_eq!(
                seen.contains_key(&outcome),
                is_here,
                "{outcome:?}: {seen:?}"
            );
        }
        let sent = rig.xdp.sent().unwrap();
        let forwarded = seen[&Outcome::ForwardBack] + seen[&Outcome::ForwardAcross];
        assert_eq!(sent.iter().sum::<u64>(), forwarded);
        assert!(sent[..3].iter().all(|packets| *packets > 0), "{sent:?}");
    });
}

/// The first two are behind `edge0`, the third one behind `core0`.
const OVER_IPV4: &str = "\"10.0.9.2\", { address = \"10.0.9.3\", weight = 50 }, \
    { address = \"10.0.8.2\", weight = 217 }";

const OVER_IPV6: &str = "\"fd00:9::2\", { address = \"fd00:9::3\", weight = 50 }, \
    { address = \"fd00:8::2\", weight = 217 }";

#[test]
fn it_does_what_the_forwarder_does_over_ipv4() {
    differ("ipv4", "10.0.1.2", OVER_IPV4, "");
}

#[test]
fn it_does_what_the_forwarder_does_over_ipv6() {
    differ("ipv6", "fd00:1::2", OVER_IPV6, "");
}

#[test]
fn it_does_what_the_forwarder_does_with_gre_in_udp() {
    differ(
        "gre-udp",
        "10.0.1.2",
        OVER_IPV4,
        "encapsulation = \"gre-udp\"",
    );
}

#[test]
fn it_does_what_the_forwarder_does_with_gre_in_udp_over_ipv6() {
    differ(
        "gre-udp6",
        "fd00:1::2",
        OVER_IPV6,
        "encapsulation = \"gre-udp\"",
    );
}

#[test]
fn it_leaves_by_the_outer_source_that_the_forwarder_leaves_by() {
    differ(
        "sources",
        "10.0.1.2",
        OVER_IPV4,
        "extra_sources = [\"10.0.1.3\", \"10.0.1.4\"]",
    );
}
