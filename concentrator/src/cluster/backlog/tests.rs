//! What is written when, without a clock and a connection.

use bytes::Bytes;
use sip::hop::{Flow, Transport};
use sip::registrar::{AddressOfRecord, Binding, Origin, Path};

use super::*;

#[test]
fn a_change_is_written_once_and_who_waits_is_told() {
    let mut rig = Rig::new();
    assert!(!rig.add("a", 1, false, 7));
    let first = rig.take().unwrap();
    assert_eq!(rig.take(), None);
    assert_eq!(rig.backlog.len(), 1);
    assert_eq!(rig.backlog.acknowledged(first.token, rig.now), [7]);
    assert_eq!(rig.backlog.acknowledged(first.token, rig.now), [0_u64; 0]);
    assert_eq!((rig.backlog.len(), rig.backlog.oldest()), (0, None));
}

#[test]
fn while_a_record_is_under_way_the_last_of_the_following_waits_for_its_end() {
    let mut rig = Rig::new();
    rig.add("a", 1, false, 1);
    let first = rig.take().unwrap();
    rig.add("a", 2, false, 2);
    rig.add("a", 3, false, 3);
    assert_eq!(rig.take(), None);
    rig.backlog.acknowledged(first.token, rig.now);
    let second = rig.take().unwrap();
    assert_eq!(rig.read(&second).binding.cseq, 3);
    assert_eq!(rig.backlog.acknowledged(second.token, rig.now), [2, 3]);
    assert_eq!(rig.take(), None);
}

#[test]
fn a_refresh_that_moved_only_the_time_waits_until_a_tenth_of_it_is_over() {
    let mut rig = Rig::new();
    rig.add("a", 1, false, 1);
    rig.acknowledge_all();
    rig.wait(100);
    assert!(rig.add("a", 2, true, 2), "nobody waits");
    rig.wait(100);
    assert!(rig.add("a", 3, true, 3));
    assert_eq!(rig.take(), None);
    assert_eq!((rig.backlog.len(), rig.backlog.deferred()), (0, 1));
    rig.wait(159);
    assert_eq!(rig.take(), None);
    rig.wait(1);
    let outgoing = rig.take().unwrap();
    assert_eq!(rig.read(&outgoing).binding.cseq, 3);
    rig.backlog.acknowledged(outgoing.token, rig.now);
    // What changes more than the time takes one along that waits.
    rig.add("a", 4, true, 4);
    assert!(!rig.add("a", 5, false, 5));
    assert!(!rig.add("a", 6, true, 6), "it goes with what is urgent");
    let outgoing = rig.take().unwrap();
    assert_eq!(rig.backlog.acknowledged(outgoing.token, rig.now), [5, 6]);
    assert_eq!((rig.backlog.deferred(), rig.take()), (0, None));
}

#[test]
fn what_is_refused_or_lost_goes_again_and_whoever_waits_still_waits() {
    let mut rig = Rig::new();
    rig.add("a", 1, false, 1);
    let first = rig.take().unwrap();
    rig.backlog.refused(first.token, rig.now);
    assert_eq!(rig.take(), None, "not at once");
    rig.now += RETRY;
    let second = rig.take().unwrap();
    rig.now += PATIENCE;
    rig.backlog.handle_timeout(rig.now);
    let third = rig.take().unwrap();
    rig.backlog.disconnected();
    let fourth = rig.take().unwrap();
    assert_eq!(rig.backlog.acknowledged(second.token, rig.now), [0_u64; 0]);
    assert_eq!(rig.backlog.acknowledged(third.token, rig.now), [0_u64; 0]);
    assert_eq!(rig.backlog.acknowledged(fourth.token, rig.now), [1]);
    assert_eq!(rig.backlog.counters().retried, 2);
}

#[test]
fn of_what_is_compared_only_what_the_bucket_lacks_is_written() {
    let mut rig = Rig::new();
    let known = rig.record("a", 1);
    let key = Key::of(&known.user, &known.binding);
    assert!(rig.backlog.heard(key, &known, rig.now));
    assert!(!rig.backlog.heard(key, &known, rig.now));
    assert!(!rig.backlog.compare(known, rig.now));
    let (newer, other) = (rig.record("a", 2), rig.record("b", 1));
    assert!(rig.backlog.compare(newer, rig.now));
    assert!(rig.backlog.compare(other, rig.now));
    assert_eq!(rig.acknowledge_all(), 2);
    let newer = rig.record("a", 2);
    assert!(!rig.backlog.compare(newer.clone(), rig.now));
    assert!(rig.backlog.forget(key), "somebody has overwritten it");
    assert!(!rig.backlog.forget(key));
    assert!(rig.backlog.compare(newer, rig.now));
}

#[test]
fn where_too_many_refreshes_wait_the_next_are_written_at_once_and_none_is_lost() {
    let mut rig = Rig::new();
    let count = MAX_DEFERRED + 3;
    for cseq in [1, 2] {
        for user in 0..count {
            let user = format!("u{user}");
            let record = rig.record(&user, cseq);
            let key = Key::of(&record.user, &record.binding);
            if cseq == 1 {
                rig.backlog.heard(key, &record, rig.now);
            } else {
                rig.add(&user, cseq, true, 1);
            }
        }
        rig.wait(1);
    }
    assert_eq!(
        (rig.backlog.deferred(), rig.backlog.len()),
        (MAX_DEFERRED, 3)
    );
    assert_eq!(rig.backlog.counters().not_deferred, 3);
    assert!(!rig.backlog.take_lost());
    assert!(rig.add("u0", 3, true, 1), "one that waits goes on waiting");
    assert_eq!(rig.acknowledge_all(), 3);
}

#[test]
fn the_backlog_is_bounded_and_says_when_something_was_dropped() {
    let mut rig = Rig::new();
    for user in 0..MAX_WAITING + 3 {
        rig.add(&format!("u{user}"), 1, false, 1);
    }
    assert_eq!(rig.backlog.len(), MAX_WAITING);
    assert_eq!(rig.backlog.counters().dropped, 3);
    assert!(!rig.backlog.has_room());
    assert!(rig.backlog.take_lost());
    assert!(!rig.backlog.take_lost());
    rig.backlog.clear();
    assert_eq!((rig.backlog.len(), rig.take()), (0, None));
}

#[test]
fn what_is_not_acknowledged_in_time_is_given_out_once_under_way_or_not() {
    let mut rig = Rig::new();
    rig.add("a", 1, false, 1);
    let under_way = rig.take().unwrap();
    rig.add("b", 1, false, 2);
    assert_eq!(rig.overdue(), []);
    rig.now += OVERDUE;
    assert_eq!(rig.overdue(), [("a", 1), ("b", 1)]);
    assert_eq!(rig.overdue(), [], "once");
    rig.backlog.disconnected();
    rig.now += OVERDUE;
    assert_eq!(rig.overdue(), [], "still the same version");
    // What follows is another one, of which the last is enough.
    rig.add("b", 2, false, 3);
    rig.add("b", 3, false, 4);
    rig.now += OVERDUE;
    assert_eq!(rig.overdue(), [("b", 3)]);
    rig.backlog.acknowledged(under_way.token, rig.now);
    assert_eq!(
        rig.acknowledge_all(),
        2,
        "they are to be written all the same"
    );
}

#[test]
fn what_is_acknowledged_in_time_or_only_written_again_is_not_overdue() {
    let mut rig = Rig::new();
    rig.add("a", 1, false, 1);
    rig.acknowledge_all();
    let other = rig.record("b", 1);
    assert!(rig.backlog.compare(other, rig.now));
    rig.now += OVERDUE;
    assert_eq!(rig.overdue(), []);
}

#[test]
fn a_refresh_that_may_wait_is_overdue_when_its_time_has_come_and_nobody_takes_it() {
    let mut rig = Rig::new();
    rig.add("a", 1, false, 1);
    rig.acknowledge_all();
    rig.wait(100);
    assert!(rig.add("a", 2, true, 2));
    rig.wait(259);
    assert_eq!(rig.overdue(), []);
    rig.wait(1);
    assert_eq!(rig.overdue(), []);
    rig.now += OVERDUE;
    assert_eq!(rig.overdue(), [("a", 2)]);
}

#[test]
fn of_what_is_overdue_so_many_at_a_time_and_none_without_a_clock() {
    let mut rig = Rig::new();
    for user in 0..OVERDUE_AT_A_TIME + 3 {
        rig.add(&format!("u{user}"), 1, false, 1);
    }
    rig.now += OVERDUE;
    let mut give = || rig.backlog.overdue(Some(&rig.clock), rig.now).len();
    assert_eq!([give(), give(), give()], [OVERDUE_AT_A_TIME, 3, 0]);
    rig.add("late", 1, false, 1);
    rig.now += OVERDUE;
    assert_eq!(rig.backlog.overdue(None, rig.now).len(), 0);
    assert_eq!(rig.backlog.begun.len(), 0);
}

struct Rig {
    backlog: Backlog,
    clock: Clock,
    now: Instant,
}

impl Rig {
    fn new() -> Self {
        let now = Instant::now() + Duration::from_secs(100_000);
        let unix_ms = 1_800_000_000_000;
        Self {
            backlog: Backlog::new(10),
            clock: Clock { at: now, unix_ms },
            now,
        }
    }

    fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    fn add(&mut self, user: &str, cseq: u32, prolonged: bool, number: u64) -> bool {
        let record = self.record(user, cseq);
        self.backlog.add(record, prolonged, Some(number), self.now)
    }

    fn take(&mut self) -> Option<Outgoing> {
        self.backlog.take(&self.clock, self.now)
    }

    /// Users and numbers of what is overdue.
    fn overdue(&mut self) -> Vec<(&'static str, u32)> {
        let records = self.backlog.overdue(Some(&self.clock), self.now);
        let records = records.iter().map(|bytes| {
            let Record { user, binding, .. } = Record::decode(bytes, &self.clock).unwrap();
            let names = ["a", "b"];
            let name = names
                .into_iter()
                .find(|name| user.to_string().contains(&format!("{name}@")));
            (name.unwrap(), binding.cseq)
        });
        records.collect()
    }

    fn acknowledge_all(&mut self) -> usize {
        let mut count = 0;
        while let Some(outgoing) = self.take() {
            self.backlog.acknowledged(outgoing.token, self.now);
            count += 1;
        }
        count
    }

    fn read(&self, outgoing: &Outgoing) -> Record {
        Record::decode(&outgoing.bytes, &self.clock).unwrap()
    }

    fn record(&self, user: &str, cseq: u32) -> Record {
        let uri = format!("sip:{user}@example.com");
        let binding = Binding {
            contact_uri: Bytes::from_static(b"sip:bob@192.168.1.2"),
            parameters: Bytes::new(),
            instance: Bytes::new(),
            reg_id: 0,
            q_thousandths: 1000,
            registered_at: self.now,
            expires_at: self.now + Duration::from_secs(3600),
            call_id: Bytes::from_static(b"a@b"),
            cseq,
            flow: Flow {
                transport: Transport::Udp,
                peer: "192.0.2.1:40000".parse().unwrap(),
                local: "198.51.100.1:5060".parse().unwrap(),
                connection: None,
            },
            relay: None,
            path: Path::default(),
            origin: Origin {
                stamp_ms: 1_800_000_000_000,
                handler: 1,
                epoch: 0,
            },
        };
        Record {
            user: AddressOfRecord::from_uri(uri.as_bytes()).unwrap(),
            binding,
            removed: false,
        }
    }
}
