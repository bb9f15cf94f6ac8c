//! The XDP program by BPF_PROG_TEST_RUN: against the relay's own code with thousands of random frames, and
//! against fixtures: bytes in, verdict, bytes out, counter.
//!
//! Needs root; otherwise it says SKIP, which is a failure where CI=true.

#![expect(clippy::unwrap_used, reason = "a failed set-up fails the test")]
#![expect(
    clippy::disallowed_methods,
    reason = "the kernel's clock is laid beside that of the relay"
)]

mod fixtures;
mod frames;
mod network;
mod reference;
mod ways;

use std::cell::RefCell;
use std::collections::HashMap;

use proptest::test_runner::{Config as RunnerConfig, TestRunner};
use rtp_agent::fastpath::to_progress;
use tunnel_io::xdp::relay_tables::Outcome;
use tunnel_io::xdp::tables::Count;

use network::{Rig, in_own_namespace, since_start};

/// Of XDP (linux/bpf.h).
pub(crate) const XDP_DROP: u32 = 1;
pub(crate) const XDP_PASS: u32 = 2;
pub(crate) const XDP_TX: u32 = 3;
pub(crate) const XDP_REDIRECT: u32 = 4;

const CASES: u32 = 20_000;

/// What the program returns for an outcome.
pub(crate) fn verdict_of(outcome: Outcome) -> u32 {
    match (outcome, outcome.labels().0) {
        (Outcome::ForwardBack, _) => XDP_TX,
        (Outcome::ForwardAcross, _) => XDP_REDIRECT,
        (_, "drop") => XDP_DROP,
        _ => XDP_PASS,
    }
}

/// The one outcome that was counted since.
pub(crate) fn counted(rig: &Rig, before: &[Count]) -> Outcome {
    let now = rig.xdp.counts().unwrap();
    let changed = Outcome::ALL.into_iter().zip(before.iter().zip(&now));
    let mut changed = changed.filter(|(_, (before, now))| before != now);
    let (outcome, (before, now)) = changed.next().unwrap();
    assert!(changed.next().is_none(), "two outcomes");
    assert_eq!(now.packets, before.packets + 1);
    outcome
}

/// One frame through both; the program's figures of the stream must be the relay's.
fn compare(rig: &mut Rig, draft: &frames::Draft) -> Outcome {
    let stream = &rig.streams[draft.stream];
    let progress = stream.reception.progress().unwrap();
    let frame = draft.build(stream.entry.ssrc, progress.highest, progress.timestamp);
    let before = rig.xdp.counts().unwrap();
    let expected = reference::expect(rig, &frame);
    let relayed: Vec<u64> = relayed(rig);
    let (verdict, out, _) = rig.xdp.run(&frame, rig.edge).unwrap();
    assert_eq!(counted(rig, &before), expected.outcome, "{frame:02x?}");
    assert_eq!(verdict, verdict_of(expected.outcome));
    assert_eq!(
        out,
        expected.frame.unwrap_or(frame),
        "{:?}",
        expected.outcome
    );
    let mut counts = relayed;
    if let Some((number, fields, length)) = expected.stream {
        let stream = &mut rig.streams[number];
        let seen = rig.xdp.stream(&stream.key).unwrap();
        stream.reception.record(fields, since_start(seen.last_ns));
        let mut known = stream.reception.progress().unwrap();
        let told = to_progress(fields.ssrc, &seen);
        known.last = told.last;
        assert_eq!(told, known);
        counts[number * 2] += 1;
        counts[number * 2 + 1] += length as u64;
    }
    assert_eq!(self::relayed(rig), counts);
    expected.outcome
}

/// Packets and octets of each stream.
fn relayed(rig: &Rig) -> Vec<u64> {
    let streams = rig.streams.iter();
    let counts = streams.flat_map(|stream| {
        let seen = rig.xdp.stream(&stream.key).unwrap();
        [seen.packets, seen.bytes]
    });
    counts.collect()
}

#[test]
fn it_does_what_the_relay_does() {
    in_own_namespace(|| {
        let (rig, seen) = (
            RefCell::new(Rig::new(10_000_000)),
            RefCell::new(HashMap::new()),
        );
        let mut runner = TestRunner::new(RunnerConfig {
            cases: CASES,
            failure_persistence: None,
            // Streams go on from one case to the next.
            max_shrink_iters: 0,
            ..RunnerConfig::default()
        });
        let test = |draft: frames::Draft| {
            let outcome = compare(&mut rig.borrow_mut(), &draft);
            *seen.borrow_mut().entry(outcome).or_insert(0) += 1;
            Ok(())
        };
        if let Err(error) = runner.run(&frames::any_draft(), test) {
            panic!("{error}");
        }
        let seen = seen.into_inner();
        for outcome in Outcome::ALL {
            let is_here = !matches!(outcome, Outcome::Flood | Outcome::Broken | Outcome::NoRoom);
            assert_eq!(
                seen.contains_key(&outcome),
                is_here,
                "{outcome:?}: {seen:?}"
            );
        }
        // All figures of a stream were compared: losses in bursts and alone, and jitter.
        let rig = rig.into_inner();
        let reception = &rig.streams[0].reception;
        assert!(reception.lost() > 0 && !reception.jitter().is_zero());
        let progress = reception.progress().unwrap();
        let found = progress.bursts.found();
        assert!(
            found.burst_packets > 0 && found.gap_packets > 0,
            "{found:?}"
        );
        assert!(progress.cycles > 0);
    });
}
