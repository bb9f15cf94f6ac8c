//! The account of a soak: what was offered, what came of it, what is left behind.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use anyhow::{Result, bail, ensure};
use serde::Serialize;

use super::inventory::Inventory;
use super::load::Calls;
use super::{Happened, Plan, explained};

/// Of the calls of one transport.
#[derive(Debug, Default, Serialize)]
pub(super) struct CallsOf {
    offered: u64,
    completed: u64,
    failed: u64,
    /// Failed calls by accident and reason.
    why: BTreeMap<String, u64>,
    /// Those that no accident explains, which are failures of the service.
    unexplained: u64,
}

/// All of it; one line as JSON.
#[derive(Debug, Serialize)]
pub(super) struct Account {
    soak: &'static str,
    seconds: u32,
    seed: u64,
    build: &'static str,
    accidents: BTreeMap<String, u32>,
    /// The longest time until all was well again.
    longest_recovery_s: f64,
    udp: CallsOf,
    tcp: CallsOf,
    tcp_reconnected: u64,
    tcp_repeated_requests: u64,
    tcp_longest_post_dial_ms: u64,
    bindings_acknowledged: usize,
    bindings_lost: usize,
    lost: Vec<String>,
    leaks: Vec<String>,
    before: Inventory,
    after: Inventory,
}

impl Account {
    pub(super) fn of(
        plan: &Plan,
        happened: &[Happened],
        calls: Calls,
        lost: Vec<String>,
        (before, after): (&Inventory, &Inventory),
    ) -> Self {
        let mut accidents = BTreeMap::new();
        for one in happened {
            *accidents.entry(one.what.to_string()).or_default() += 1;
        }
        let recoveries = happened.iter().map(|one| apart(one.at, one.well));
        let longest = recoveries.max().unwrap_or_default();
        let mut udp = CallsOf {
            offered: calls.udp_offered,
            completed: calls.udp_completed,
            failed: calls.udp_offered.saturating_sub(calls.udp_completed),
            ..CallsOf::default()
        };
        for failure in &calls.udp_failures {
            udp.blame(happened, (failure.begun, failure.ended), &failure.why);
        }
        // What SIPp has not said a word about.
        let told: u64 = udp.why.values().sum();
        udp.unexplained += udp.failed.saturating_sub(told);
        let mut tcp = CallsOf {
            offered: calls.tcp.offered,
            ..CallsOf::default()
        };
        for call in &calls.tcp.ended {
            match &call.failed {
                None => tcp.completed += 1,
                Some(why) => {
                    tcp.failed += 1;
                    tcp.blame(happened, (call.begun, call.ended), why);
                }
            }
        }
        let slowest = calls.tcp.ended.iter().filter_map(|call| call.post_dial);
        Self {
            soak: "soak",
            seconds: plan.seconds,
            seed: plan.seed,
            build: if cfg!(debug_assertions) {
                "debug"
            } else {
                "release"
            },
            accidents,
            longest_recovery_s: longest.as_secs_f64(),
            udp,
            tcp,
            tcp_reconnected: calls.tcp.reconnected,
            tcp_repeated_requests: calls.tcp.repeated,
            tcp_longest_post_dial_ms: slowest.max().unwrap_or_default().as_millis() as u64,
            bindings_acknowledged: calls.acknowledged.len(),
            bindings_lost: lost.len(),
            lost,
            leaks: after.leaks(before),
            before: before.clone(),
            after: after.clone(),
        }
    }

    /// An error where a binding is lost, or anything is left behind.
    pub(super) fn nothing_is_lost(&self) -> Result<()> {
        ensure!(
            self.bindings_lost == 0 && self.leaks.is_empty(),
            "seed {}: bindings lost: {:?}; leaks: {:?}",
            self.seed,
            self.lost,
            self.leaks
        );
        Ok(())
    }

    /// An error where something must be 0 and is not.
    pub(super) fn verdict(&self) -> Result<()> {
        let unexplained = self.udp.unexplained + self.tcp.unexplained;
        if unexplained + self.bindings_lost as u64 + self.leaks.len() as u64 == 0 {
            return Ok(());
        }
        bail!(
            "seed {}: {unexplained} failed calls that no accident explains (UDP {:?}, TCP {:?}); bindings \
             lost: {:?}; leaks: {:?}",
            self.seed,
            self.udp.why,
            self.tcp.why,
            self.lost,
            self.leaks
        )
    }

    /// In one line.
    pub(super) fn summary(&self) -> String {
        format!(
            "seed {}: {} accidents in {} s, the longest well after {:.0} s; UDP {} calls, {} failed; TCP {} calls, \
             {} failed, {} new connections; {} of the failed explained by no accident; {} bindings, {} lost; leaks: {:?}",
            self.seed,
            self.accidents.values().sum::<u32>(),
            self.seconds,
            self.longest_recovery_s,
            self.udp.offered,
            self.udp.failed,
            self.tcp.offered,
            self.tcp.failed,
            self.tcp_reconnected,
            self.udp.unexplained + self.tcp.unexplained,
            self.bindings_acknowledged,
            self.bindings_lost,
            self.leaks
        )
    }
}

impl CallsOf {
    /// Finds the accident that explains a failed call: one that its life has touched.
    fn blame(
        &mut self,
        happened: &[Happened],
        (begun, ended): (SystemTime, SystemTime),
        why: &str,
    ) {
        let touched = happened
            .iter()
            .filter(|one| one.at <= ended && begun <= one.well);
        let (mut cause, mut good) = (None, false);
        for one in touched {
            if explained(one.what) {
                (cause, good) = (Some(one.what), true);
                break;
            }
            cause = Some(one.what);
        }
        let cause = cause.map_or_else(|| "nothing".to_owned(), |what| what.to_string());
        *self.why.entry(format!("{cause}: {why}")).or_default() += 1;
        self.unexplained += u64::from(!good);
    }
}

fn apart(from: SystemTime, to: SystemTime) -> Duration {
    to.duration_since(from).unwrap_or_default()
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.summary())?;
        for (accident, count) in &self.accidents {
            writeln!(f, "  {count} x {accident}")?;
        }
        for (name, calls) in [("UDP", &self.udp), ("TCP", &self.tcp)] {
            writeln!(
                f,
                "{name}: {} calls offered, {} completed, {} failed, {} of these explained by no accident",
                calls.offered, calls.completed, calls.failed, calls.unexplained
            )?;
            for (why, count) in &calls.why {
                writeln!(f, "  {count} x {why}")?;
            }
        }
        writeln!(f, "bindings lost: {} {:?}", self.bindings_lost, self.lost)?;
        writeln!(f, "leaks: {} {:?}", self.leaks.len(), self.leaks)?;
        for (name, after) in &self.after.0 {
            let before = self.before.0.get(name);
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            writeln!(
                f,
                "{name}: {:.1} MiB resident before, {:.1} MiB after; {} open files, {} after",
                before.map_or(0.0, |before| mib(before.resident_bytes)),
                mib(after.resident_bytes),
                before.map_or(0, |before| before.files),
                after.files
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failures::Accident;
    use crate::two_concentrators::Which;

    #[test]
    fn a_call_is_explained_by_an_accident_that_may_make_it_fail() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let happened = [
            Happened {
                what: Accident::KillConcentrator(Which::First),
                at: at(10),
                well: at(20),
            },
            Happened {
                what: Accident::KillRelay(Which::First),
                at: at(30),
                well: at(40),
            },
        ];
        let mut calls = CallsOf::default();
        calls.blame(&happened, (at(12), at(13)), "x");
        assert_eq!(calls.unexplained, 1);
        calls.blame(&happened, (at(15), at(35)), "x");
        calls.blame(&happened, (at(35), at(45)), "x");
        assert_eq!(calls.unexplained, 1);
        calls.blame(&happened, (at(22), at(23)), "x");
        assert_eq!(calls.unexplained, 2);
        assert_eq!(calls.why["nothing: x"], 1);
        assert_eq!(calls.why["kill-relay1: x"], 2);
    }
}
