#![expect(
    clippy::disallowed_methods,
    reason = "tests need some instant to count from"
)]

use proptest::prelude::*;

use super::*;

const KEY: TunnelKey = TunnelKey(0x1001);
const SETTINGS: Settings = Settings {
    interval: Duration::from_millis(100),
    misses: 3,
    answers: 5,
    pad_every: 10,
};

/// A path and the wire behind it, with a clock of its own.
struct Rig {
    path: Path,
    start: Instant,
    ms: u64,
    /// Answers under way: when they arrive.
    wire: Vec<(u64, Repr)>,
    events: Vec<(u64, Event)>,
}

impl Rig {
    fn new() -> Self {
        let start = Instant::now();
        Self {
            path: Path::new(KEY, SETTINGS, u32::MAX - 3, start),
            start,
            ms: 0,
            wire: Vec::new(),
            events: Vec::new(),
        }
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.ms)
    }

    /// Lets time pass. `wire` says when a probe's answer arrives, if at all.
    fn run(&mut self, ms: u64, mut wire: impl FnMut(&Probe) -> Option<u64>) {
        for _ in 0..ms {
            self.ms += 1;
            let (arrived, under_way) = self.wire.iter().partition(|(at, _)| *at <= self.ms);
            self.wire = under_way;
            let arrived: Vec<(u64, Repr)> = arrived;
            for (_, answer) in arrived {
                let _ = self.path.handle_answer(&answer, self.now());
            }
            if self.path.poll_timeout() <= self.now()
                && let Some(probe) = self.path.handle_timeout(self.now(), self.ms * 1000)
                && let Some(delay) = wire(&probe)
            {
                self.wire.push((self.ms + delay, answer_to(&probe)));
            }
            while let Some(event) = self.path.poll_event() {
                self.events.push((self.ms, event));
            }
        }
    }

    fn state(&self) -> State {
        self.path.report().state
    }
}

fn answer_to(probe: &Probe) -> Repr {
    probe.repr.answer(Standing::Serving, 7).unwrap()
}

#[test]
fn one_answer_is_enough_at_the_start_and_three_intervals_of_silence_to_go_down() {
    let mut rig = Rig::new();
    rig.run(1_000, |_| Some(20));
    assert_eq!(rig.events, [(21, Event::Up)]);
    rig.run(1_000, |_| None);
    let (at, event) = rig.events[1];
    assert_eq!(event, Event::Down);
    // The last answer, which was under way, came at 1,020.
    assert_eq!(at, 1_320);
}

#[test]
fn a_far_concentrator_is_up_although_each_answer_takes_longer_than_the_patience() {
    let mut rig = Rig::new();
    rig.run(10_000, |_| Some(600));
    let ups = rig.events.iter().filter(|(_, event)| *event == Event::Up);
    assert_eq!(ups.count(), 1);
    assert_eq!(rig.state(), State::Up);
    let report = rig.path.report();
    assert_eq!(report.round_trip, Some(Duration::from_millis(600)));
    rig.events.clear();
    rig.run(2_000, |_| None);
    assert_eq!(rig.state(), State::Down);
    assert_eq!(rig.events.len(), 1);
}

#[test]
fn up_again_takes_five_answers_without_a_silence() {
    let mut rig = Rig::new();
    rig.run(500, |_| None);
    assert_eq!(rig.state(), State::Down);
    let mut count = 0;
    // Four answers, then silence, again and again.
    rig.run(10_000, |_| {
        count += 1;
        (count % 8 < 4).then_some(1)
    });
    assert_eq!(rig.events, [(300, Event::Down)]);
    rig.run(500, |_| Some(1));
    assert_eq!(rig.state(), State::Up);
}

#[test]
fn a_path_that_loses_only_long_packets_is_up_with_too_small_an_mtu() {
    let mut rig = Rig::new();
    rig.run(5_000, |probe| (!probe.padded).then_some(20));
    assert_eq!(rig.state(), State::Up);
    assert_eq!(rig.path.report().mtu_fits, Some(false));
    assert_eq!(rig.events.len(), 2);
    assert_eq!(rig.events[1].1, Event::MtuTooSmall);
    rig.run(1_100, |_| Some(20));
    assert_eq!(rig.path.report().mtu_fits, Some(true));
    assert_eq!(rig.events[2].1, Event::MtuFits);
}

#[test]
fn an_outage_says_nothing_about_the_mtu() {
    let mut rig = Rig::new();
    rig.run(1_500, |_| Some(20));
    rig.run(10_000, |_| None);
    assert_eq!(rig.path.report().mtu_fits, Some(true));
    assert!(rig.path.report().counts.padded_missed >= 8);
}

#[test]
fn a_concentrator_that_is_not_ready_is_up_and_does_not_serve() {
    let mut rig = Rig::new();
    rig.run(300, |_| Some(1));
    assert!(rig.path.report().serves());
    let probe = rig.path.handle_timeout(rig.now() + SETTINGS.interval, 5);
    let answer = probe.unwrap().repr.answer(Standing::NotReady, 65_535);
    let now = rig.now() + SETTINGS.interval;
    assert_eq!(rig.path.handle_answer(&answer.unwrap(), now), Ok(()));
    assert_eq!(rig.path.report().said, Some((Standing::NotReady, 65_535)));
    assert!(!rig.path.report().serves());
    let event = rig.path.poll_event();
    assert_eq!(event, Some(Event::Standing(Standing::NotReady)));
}

#[test]
fn each_answer_that_does_not_count_has_its_reason() {
    let mut rig = Rig::new();
    let now = rig.now();
    let probe = rig.path.handle_timeout(now, 77).unwrap();
    let good = answer_to(&probe);
    let key = Repr {
        key: TunnelKey(1),
        ..good
    };
    let sequence = Repr {
        sequence: good.sequence.wrapping_add(1),
        ..good
    };
    let time = Repr {
        sent_us: 78,
        ..good
    };
    for (answer, reason) in [
        (probe.repr, Rejection::NotAnAnswer),
        (key, Rejection::WrongKey),
        (sequence, Rejection::UnknownSequence),
        (time, Rejection::WrongTime),
    ] {
        assert_eq!(rig.path.handle_answer(&answer, now), Err(reason));
        assert_eq!(rig.state(), State::Starting);
    }
    let late = now + LATE + Duration::from_millis(1);
    assert_eq!(rig.path.handle_answer(&good, late), Err(Rejection::Late));
    assert_eq!(rig.path.handle_answer(&good, now), Ok(()));
    let again = rig.path.handle_answer(&good, now);
    assert_eq!(again, Err(Rejection::Duplicate));
    assert_eq!(rig.path.report().counts.answered, 1);
}

#[test]
fn a_loop_that_has_slept_does_not_take_its_own_sleep_for_silence() {
    let mut rig = Rig::new();
    rig.run(1_000, |_| Some(20));
    rig.ms += 5_000;
    // What was waiting in the socket is read first; it is too late to count.
    rig.run(1_000, |_| Some(20));
    assert_eq!(rig.events, [(21, Event::Up)]);
}

proptest! {
    /// Whatever gets lost and however late answers are: each change of state has its reason.
    #[test]
    fn no_change_of_state_without_a_silence_or_a_row_of_answers(
        fates in proptest::collection::vec(proptest::option::weighted(0.7, 0_u64..1_500), 1..200),
    ) {
        let mut rig = Rig::new();
        let mut arrivals: Vec<u64> = vec![0];
        let mut fates = fates.into_iter();
        let (mut state, mut changed_at) = (State::Starting, 0);
        for _ in 0..20_000 {
            let before = rig.path.report().counts.answered;
            rig.run(1, |_| fates.next().flatten());
            let answered = rig.path.report().counts.answered - before;
            arrivals.extend((0..answered).map(|_| rig.ms));
            let now = rig.state();
            if now == state {
                continue;
            }
            let last = *arrivals.last().unwrap();
            match now {
                State::Down => prop_assert!(rig.ms - last >= 300, "silent for {}", rig.ms - last),
                State::Up => {
                    let wanted = if state == State::Starting { 1 } else { 5 };
                    let row = &arrivals[arrivals.len() - wanted..];
                    prop_assert!(row.windows(2).all(|pair| pair[1] - pair[0] < 300));
                }
                State::Starting => prop_assert!(false, "it starts once"),
            }
            prop_assert!(rig.ms > changed_at);
            (state, changed_at) = (now, rig.ms);
        }
        let counts = rig.path.report().counts;
        prop_assert!(counts.answered + counts.missed + counts.padded_missed <= counts.sent);
    }

    /// A forger who guesses keys, sequences and times brings nothing up and keeps nothing up.
    #[test]
    fn forged_answers_change_nothing(
        forged in proptest::collection::vec((any::<u32>(), any::<u32>(), any::<u64>()), 1..100),
    ) {
        let mut rig = Rig::new();
        rig.run(1_000, |_| None);
        prop_assert_eq!(rig.state(), State::Down);
        let report = rig.path.report();
        for (key, sequence, sent_us) in forged {
            let kind = Kind::Answer { state: Standing::Serving, load: 0 };
            let now = rig.now();
            for key in [TunnelKey(key), KEY] {
                // Times of the probes are whole milliseconds.
                let answer = Repr { kind, key, sequence, sent_us: sent_us | 1 };
                prop_assert!(rig.path.handle_answer(&answer, now).is_err());
            }
        }
        prop_assert_eq!(rig.path.report(), report);
    }

    /// Repeated answers are one answer.
    #[test]
    fn duplicates_do_not_make_a_row(copies in 2_usize..50) {
        let mut rig = Rig::new();
        rig.run(1_000, |_| None);
        let mut last = None;
        rig.run(100, |probe| { last = Some(*probe); None });
        let answer = answer_to(&last.unwrap());
        let now = rig.now();
        let counted = (0..copies).filter(|_| rig.path.handle_answer(&answer, now).is_ok());
        prop_assert_eq!(counted.count(), 1);
        prop_assert_eq!(rig.state(), State::Down);
    }

    /// A wire that flaps faster than the hysteresis changes the state once at most.
    #[test]
    fn flapping_within_the_hysteresis_is_one_change(up in 1_u64..4, down in 3_u64..6) {
        let mut rig = Rig::new();
        rig.run(400, |_| None);
        let mut count = 0;
        rig.run(60_000, |_| {
            count += 1;
            (count % (up + down) < up).then_some(3)
        });
        prop_assert_eq!(rig.events.len(), 1);
    }
}
