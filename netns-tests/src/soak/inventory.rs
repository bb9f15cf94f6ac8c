//! What the programs hold when nothing is going on: open files, memory, sessions, calls.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::namespace::Namespace;
use crate::service::Program;
use crate::two_concentrators::{TwoConcentrators, Which};
use crate::wait;

/// For timers of ended calls, of which C with what follows it is the longest (185 s, then 32 s for the CANCEL and 32 s for
/// the ACK), and for connections of phones that are no more.
const PATIENCE: Duration = Duration::from_secs(300);

/// Of one program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Holding {
    pub(super) files: u64,
    pub(super) resident_bytes: u64,
    /// Requests, transactions and calls of a concentrator, sessions of a relay: what of it is not 0.
    pub(super) in_progress: BTreeMap<&'static str, u64>,
}

/// Of all programs.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub(super) struct Inventory(pub(super) BTreeMap<&'static str, Holding>);

impl Inventory {
    /// Waits until nothing is in progress and the open files do not change any more.
    pub(super) fn of_idle(rig: &mut TwoConcentrators) -> Result<Self> {
        let mut last = Self::take(rig)?;
        let mut same = 0;
        wait::until("nothing to be in progress", PATIENCE, || {
            std::thread::sleep(Duration::from_millis(500));
            let now = Self::take(rig)?;
            let idle = now.0.values().all(|held| held.in_progress.is_empty());
            same = if idle && now.files() == last.files() {
                same + 1
            } else {
                0
            };
            last = now;
            Ok((same == 4).then(|| last.clone()))
        })
    }

    /// The same after a load: what is there after [`PATIENCE`] stays, and is a leak.
    pub(super) fn when_idle(rig: &mut TwoConcentrators, before: &Self) -> Result<Self> {
        let mut last = None;
        let waited = wait::until("everything to be given back", PATIENCE, || {
            std::thread::sleep(Duration::from_millis(500));
            let now = Self::take(rig)?;
            let back = now.leaks(before).is_empty();
            last = Some(now.clone());
            Ok(back.then_some(now))
        });
        waited.or_else(|late| last.context(late))
    }

    /// What each program has more than before.
    pub(super) fn leaks(&self, before: &Self) -> Vec<String> {
        let mut leaks = Vec::new();
        for (name, now) in &self.0 {
            let Some(then) = before.0.get(name) else {
                continue;
            };
            for (what, count) in &now.in_progress {
                if *count > then.in_progress.get(what).copied().unwrap_or(0) {
                    leaks.push(format!("{name}: {count} {what}"));
                }
            }
            if now.files > then.files {
                leaks.push(format!(
                    "{name}: {} open files, {} before",
                    now.files, then.files
                ));
            }
        }
        leaks
    }

    fn files(&self) -> Vec<u64> {
        self.0.values().map(|held| held.files).collect()
    }

    fn take(rig: &TwoConcentrators) -> Result<Self> {
        let service = &rig.service;
        let (first, second) = (Which::First, Which::Second);
        let concentrator =
            |program, which| Holding::of(program, rig.namespace(which), CONCENTRATOR);
        let ingress = |program, edge| Holding::of(program, rig.edge(edge), &[]);
        let relay = |program, edge| Holding::of(program, rig.edge(edge), RELAY);
        Ok(Self(BTreeMap::from([
            ("concentrator1", concentrator(&service.concentrator, first)?),
            ("concentrator2", concentrator(&rig.other, second)?),
            ("ingress1", ingress(&service.ingress1, first)?),
            ("ingress2", ingress(&service.ingress2, second)?),
            ("relay1", relay(&service.relay1, first)?),
            ("relay2", relay(&service.relay2, second)?),
        ])))
    }
}

/// The gauges that must be 0 when nothing is going on.
const CONCENTRATOR: &[&str] = &[
    "requests_in_progress",
    "relayed_calls",
    "remembered_calls",
    "waiting_for_relay",
    "waiting_for_return",
    "registers_held",
];
const RELAY: &[&str] = &["sipcast_relay_sessions"];

impl Holding {
    fn of(
        program: &Program,
        namespace: &Namespace,
        gauges: &'static [&'static str],
    ) -> Result<Self> {
        let metrics = program.metrics(namespace)?;
        let mut in_progress = BTreeMap::new();
        for gauge in gauges {
            let kind = format!("sipcast_concentrator_state{{kind=\"{gauge}\"}}");
            let sample = metrics
                .iter()
                .find(|(name, _)| name == gauge || **name == kind);
            let count = sample.with_context(|| format!("there is no {gauge}"))?.1 as u64;
            if count > 0 {
                in_progress.insert(*gauge, count);
            }
        }
        // The connection of that question is over, too.
        std::thread::sleep(Duration::from_millis(50));
        let files = format!("/proc/{}/fd", program.process.id());
        Ok(Self {
            files: fs::read_dir(files)?.count() as u64,
            resident_bytes: program.process.resident_bytes()?,
            in_progress,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leak_is_what_there_is_more_than_before() {
        let holding = |files, calls| Holding {
            files,
            resident_bytes: 1,
            in_progress: (calls > 0)
                .then_some(("calls", calls))
                .into_iter()
                .collect(),
        };
        let before = Inventory(BTreeMap::from([
            ("a", holding(10, 0)),
            ("b", holding(10, 0)),
        ]));
        let after = Inventory(BTreeMap::from([
            ("a", holding(11, 0)),
            ("b", holding(9, 2)),
        ]));
        assert_eq!(
            after.leaks(&before),
            ["a: 11 open files, 10 before", "b: 2 calls"]
        );
        assert!(before.leaks(&before).is_empty());
    }
}
