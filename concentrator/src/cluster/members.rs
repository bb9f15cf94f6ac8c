//! Who is there, and the clock that all have in common: both by heartbeats in the bucket.
//!
//! Each concentrator writes one every [`INTERVAL`], and everybody hears all of them. The leader of the stream
//! says when it took each, and that is the common clock: of our own heartbeat we know when we sent it and when
//! we heard of it, so the leader's time belongs to the middle, give or take half of the time between. The best of
//! the last minute counts. So it does not matter what the clocks of the concentrators say; those of the NATS
//! servers should agree, because another of them may lead tomorrow.
//!
//! A heartbeat also says by short hashes which cookie keys its concentrator has ([`key_marks`]). One that has none
//! of ours cannot read our cookies, nor we its: that is said once, and shown for as long as it is so.
//!
//! A concentrator that has not been heard of for [`GONE`] is gone. While the bucket cannot be written, nobody is
//! heard of; then those that were there last count as there, since nothing says that they are not.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::Digest as _;
use sip::registrar::record::Clock;

/// How often each writes a heartbeat.
pub(super) const INTERVAL: Duration = Duration::from_secs(2);
/// One that was not heard of for longer is gone.
pub(super) const GONE: Duration = Duration::from_secs(15);
/// A reading of the clock is as good as new for so long.
const FRESH: Duration = Duration::from_secs(60);
/// A reading that took longer is none.
const LONGEST: Duration = Duration::from_secs(2);

/// What heartbeats tell.
#[derive(Debug)]
pub(super) struct Members {
    id: u16,
    life: u16,
    /// Of our cookie keys.
    keys: Vec<String>,
    heard: BTreeMap<u16, Heard>,
    sent: Option<(u64, Instant)>,
    last_number: u64,
    reading: Option<Reading>,
    /// Somebody else writes heartbeats with our number.
    twin: bool,
}

#[derive(Debug)]
struct Heard {
    at: Instant,
    name: String,
    /// None of its cookie keys is one of ours.
    other_key: bool,
}

/// Octets of a hash that stand for a cookie key.
const MARK: usize = 4;

/// What a heartbeat says of cookie keys: enough to see that two are the same, and nothing of the key.
pub(super) fn key_marks<'k>(keys: impl Iterator<Item = &'k [u8]>) -> Vec<String> {
    let mark = |key: &[u8]| {
        let hash = sha2::Sha256::new_with_prefix(b"sipcast cookie key mark\0");
        let hash = hash.chain_update(key).finalize();
        hash.iter()
            .take(MARK)
            .fold(String::new(), |mark, byte| format!("{mark}{byte:02x}"))
    };
    keys.map(mark).collect()
}

#[derive(Debug, Clone, Copy)]
struct Reading {
    clock: Clock,
    took: Duration,
}

/// What a heartbeat changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Nothing,
    /// The clock is known, or known better.
    Clock(Clock),
    /// Another process has our number.
    Twin,
    /// This one has no cookie key of ours; told once.
    OtherKey,
}

impl Members {
    pub(super) fn new(id: u16, life: u16, keys: Vec<String>) -> Self {
        Self {
            id,
            life,
            keys,
            heard: BTreeMap::new(),
            sent: None,
            last_number: 0,
            reading: None,
            twin: false,
        }
    }

    /// The body of the next heartbeat.
    pub(super) fn heartbeat(&mut self, name: &str, now: Instant) -> Vec<u8> {
        self.last_number += 1;
        self.sent = Some((self.last_number, now));
        let (life, number) = (self.life, self.last_number);
        let keys = &self.keys;
        json!({ "version": 1, "name": name, "life": life, "number": number, "keys": keys })
            .to_string()
            .into_bytes()
    }

    /// A heartbeat, and when the leader took it.
    pub(super) fn handle(&mut self, id: u16, body: &[u8], taken_ms: u64, now: Instant) -> Change {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let number = |key: &str| body.get(key).and_then(Value::as_u64);
        let name = body.get("name").and_then(Value::as_str).unwrap_or_default();
        let name: String = name.chars().take(64).collect();
        // Those of the past come too, when one begins to listen.
        let at = self.clock().map_or(now, |clock| clock.instant(taken_ms));
        if id != self.id {
            let other_key = self.is_without_our_keys(&body);
            let at = at.min(now);
            let heard = Heard {
                at,
                name,
                other_key,
            };
            let before = self.heard.insert(id, heard);
            let is_there = now.saturating_duration_since(at) < GONE;
            let is_new = before.is_none_or(|before| !before.other_key);
            return match other_key && is_new && is_there {
                true => Change::OtherKey,
                false => Change::Nothing,
            };
        }
        if number("life") != Some(self.life.into()) {
            // One of our own last life, if we have not spoken yet.
            let after_ours = self.reading.is_some();
            return match after_ours && !std::mem::replace(&mut self.twin, after_ours) {
                true => Change::Twin,
                false => Change::Nothing,
            };
        }
        let Some((_, sent_at)) = self
            .sent
            .filter(|(last, _)| number("number") == Some(*last))
        else {
            return Change::Nothing;
        };
        let took = now.saturating_duration_since(sent_at);
        let clock = Clock {
            at: sent_at + took / 2,
            unix_ms: taken_ms,
        };
        let better = self.reading.is_none_or(|best| {
            let age = now.saturating_duration_since(best.clock.at);
            took <= best.took || age > FRESH
        });
        if took > LONGEST || !better {
            return Change::Nothing;
        }
        self.reading = Some(Reading { clock, took });
        Change::Clock(clock)
    }

    /// Of a build that says nothing of keys nothing is known.
    fn is_without_our_keys(&self, heartbeat: &Value) -> bool {
        let theirs = heartbeat.get("keys").and_then(Value::as_array);
        theirs.is_some_and(|theirs| {
            let mut theirs = theirs.iter().filter_map(Value::as_str);
            !theirs.any(|theirs| self.keys.iter().any(|ours| ours == theirs))
        })
    }

    /// How many of those that are there have no cookie key of ours.
    pub(super) fn with_other_keys(&self, now: Instant) -> usize {
        let there = |heard: &&Heard| now.saturating_duration_since(heard.at) < GONE;
        let heard = self.heard.values().filter(there);
        heard.filter(|heard| heard.other_key).count()
    }

    /// The common clock, once it is known.
    pub(super) fn clock(&self) -> Option<Clock> {
        self.reading.map(|reading| reading.clock)
    }

    /// Who is there, we among them. `writable`: heartbeats get through.
    pub(super) fn alive(&mut self, writable: bool, now: Instant) -> Vec<u16> {
        if !writable {
            for heard in self.heard.values_mut() {
                if now.saturating_duration_since(heard.at) < GONE {
                    heard.at = now;
                }
            }
        }
        let others = self.heard.iter();
        let others = others.filter(|(_, heard)| now.saturating_duration_since(heard.at) < GONE);
        let mut ids: Vec<u16> = others.map(|(id, _)| *id).chain([self.id]).collect();
        ids.sort_unstable();
        ids
    }

    /// For `/status`.
    pub(super) fn status(&self, now: Instant) -> Value {
        let others = self.heard.iter().map(|(id, heard)| {
            let ago = now.saturating_duration_since(heard.at);
            json!({
                "id": id,
                "name": heard.name,
                "alive": ago < GONE,
                "heard_s_ago": ago.as_secs(),
                "other_cookie_key": heard.other_key,
            })
        });
        Value::Array(others.collect())
    }
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "tests need some instant to count from"
)]
mod tests {
    use super::*;

    const LEADER_MS: u64 = 1_800_000_000_000;

    #[test]
    fn the_common_clock_is_the_leaders_in_the_middle_of_the_best_round_trip() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut members = Members::new(1, 7, Vec::new());
        let body = members.heartbeat("c1", at(0));
        let change = members.handle(1, &body, LEADER_MS, at(100));
        let clock = Clock {
            at: at(50),
            unix_ms: LEADER_MS,
        };
        assert_eq!(change, Change::Clock(clock));
        let slower = members.heartbeat("c1", at(2000));
        assert_eq!(
            members.handle(1, &slower, LEADER_MS + 9000, at(2900)),
            Change::Nothing
        );
        let quicker = members.heartbeat("c1", at(4000));
        let change = members.handle(1, &quicker, LEADER_MS + 4000, at(4010));
        assert_eq!(
            change,
            Change::Clock(Clock {
                at: at(4005),
                unix_ms: LEADER_MS + 4000
            })
        );
    }

    #[test]
    fn who_is_not_heard_of_is_gone_unless_nobody_can_be_heard() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut members = Members::new(2, 7, Vec::new());
        let body = Members::new(1, 3, Vec::new()).heartbeat("c1", at(0));
        members.handle(1, &body, LEADER_MS, at(0));
        assert_eq!(members.alive(true, at(14)), [1, 2]);
        assert_eq!(members.alive(false, at(14)), [1, 2]);
        assert_eq!(members.alive(false, at(28)), [1, 2]);
        assert_eq!(members.alive(true, at(28 + 15)), [2]);
        assert_eq!(
            members.alive(false, at(50)),
            [2],
            "it does not come back by that"
        );
    }

    #[test]
    fn another_process_with_our_number_is_told_once_and_our_own_past_is_none() {
        let start = Instant::now();
        let mut members = Members::new(1, 7, Vec::new());
        let past = Members::new(1, 6, Vec::new()).heartbeat("c1", start);
        assert_eq!(members.handle(1, &past, LEADER_MS, start), Change::Nothing);
        let own = members.heartbeat("c1", start);
        assert!(matches!(
            members.handle(1, &own, LEADER_MS, start),
            Change::Clock(_)
        ));
        assert_eq!(members.handle(1, &past, LEADER_MS, start), Change::Twin);
        assert_eq!(members.handle(1, &past, LEADER_MS, start), Change::Nothing);
    }

    #[test]
    fn one_without_a_cookie_key_of_ours_is_told_once_and_counted_while_it_is_there() {
        let start = Instant::now();
        let marks = |keys: &[&[u8]]| key_marks(keys.iter().copied());
        let mut members = Members::new(1, 7, marks(&[b"new", b"old"]));
        let mut hear = |keys: Vec<String>, now| {
            let body = Members::new(2, 3, keys).heartbeat("c2", now);
            let change = members.handle(2, &body, LEADER_MS, now);
            (change, members.with_other_keys(now))
        };
        // In the midst of a change of keys.
        assert_eq!(hear(marks(&[b"old"]), start), (Change::Nothing, 0));
        assert_eq!(hear(marks(&[b"wrong"]), start), (Change::OtherKey, 1));
        assert_eq!(hear(marks(&[b"wrong"]), start), (Change::Nothing, 1));
        assert_eq!(hear(Vec::new(), start), (Change::Nothing, 1));
        assert_eq!(hear(marks(&[b"new"]), start), (Change::Nothing, 0));
        assert_eq!(hear(marks(&[b"wrong"]), start), (Change::OtherKey, 1));
        assert_eq!(members.with_other_keys(start + GONE), 0);
        let older = json!({ "version": 1, "name": "c2", "life": 3, "number": 9 }).to_string();
        let change = members.handle(2, older.as_bytes(), LEADER_MS, start);
        assert_eq!(
            (change, members.with_other_keys(start)),
            (Change::Nothing, 0)
        );
    }

    #[test]
    fn nonsense_changes_nothing() {
        let start = Instant::now();
        let mut members = Members::new(1, 7, Vec::new());
        for body in [&b""[..], b"{}", b"[1]", b"{\"life\":7,\"number\":\"x\"}"] {
            assert_eq!(members.handle(1, body, LEADER_MS, start), Change::Nothing);
        }
        assert_eq!(members.clock(), None);
    }
}
