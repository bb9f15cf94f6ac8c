//! PURE. Whether the service addresses are announced.
//!
//! ```text
//!              a concentrator serves            none does          `withdraw_after`
//!   Waiting ──────────────────────► Announced ◄───────────► Doubtful ─────► Withdrawn
//!                                       ▲                                      │ ▲
//!                                       │ hold-down over    one serves again   ▼ │ none does
//!                                       └───────────────────────────────── Held
//! ```
//!
//! The hold-down doubles each time that the announcement did not last, so an edge that flaps is
//! announced ever more rarely. With `fail_open` a concentrator always seems to serve.
//!
//! Draining lies above this: the route first changes its metric, which tells the BGP speaker to add
//! GRACEFUL_SHUTDOWN (RFC 8326), and then goes. What arrives is forwarded in every state.

use std::time::{Duration, Instant};

/// From the config.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How long no concentrator may serve before the routes go.
    pub withdraw_after: Duration,
    /// How long one must serve before they come back.
    pub hold_down: Duration,
    /// The longest that it grows to; an announcement that lasts as long makes it short again.
    pub hold_down_max: Duration,
    /// How long the routes stand with the draining metric.
    pub graceful: Duration,
    /// Announced whether a concentrator serves or not.
    pub fail_open: bool,
}

/// The routes as they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// None.
    Absent,
    /// Announced.
    Normal,
    /// Announced as a last resort.
    Draining,
}

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting,
    Announced { since: Instant },
    Doubtful { announced: Instant, since: Instant },
    Withdrawn,
    Held { until: Instant },
}

/// See the module.
#[derive(Debug)]
pub struct Announcement {
    settings: Settings,
    phase: Phase,
    hold_down: Duration,
    draining: Option<Drain>,
}

#[derive(Debug, Clone, Copy)]
struct Drain {
    /// The routes stand with the draining metric until then.
    until: Instant,
}

impl Announcement {
    /// Nothing is announced.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            phase: Phase::Waiting,
            hold_down: settings.hold_down,
            draining: None,
        }
    }

    /// Brings it up to date; to be called when a deadline is reached or `serving` has changed.
    pub fn update(&mut self, serving: bool, now: Instant) {
        let serving = serving || self.settings.fail_open;
        self.phase = match (self.phase, serving) {
            (Phase::Waiting, true) => Phase::Announced { since: now },
            (Phase::Announced { since }, false) => Phase::Doubtful {
                announced: since,
                since: now,
            },
            (Phase::Doubtful { announced, .. }, true) => Phase::Announced { since: announced },
            (Phase::Withdrawn, true) => Phase::Held {
                until: now + self.hold_down,
            },
            (Phase::Held { .. }, false) => Phase::Withdrawn,
            (same, _) => same,
        };
        match self.phase {
            Phase::Doubtful { announced, since } if now >= since + self.settings.withdraw_after => {
                self.note_withdrawal(since.saturating_duration_since(announced));
                self.phase = Phase::Withdrawn;
            }
            Phase::Held { until } if now >= until => {
                self.phase = Phase::Announced { since: now };
                // For the next time; what lasts makes it short again.
                self.hold_down = (self.hold_down * 2).min(self.settings.hold_down_max);
            }
            Phase::Waiting
            | Phase::Announced { .. }
            | Phase::Doubtful { .. }
            | Phase::Withdrawn
            | Phase::Held { .. } => {}
        }
    }

    fn note_withdrawal(&mut self, lasted: Duration) {
        if lasted >= self.settings.hold_down_max {
            self.hold_down = self.settings.hold_down;
        }
    }

    /// Drains, or serves again at once.
    pub fn set_draining(&mut self, draining: bool, now: Instant) {
        if draining == self.draining.is_some() {
            return;
        }
        self.draining = draining.then(|| Drain {
            until: now + self.settings.graceful,
        });
    }

    /// What should stand in the table.
    pub fn route(&self, now: Instant) -> Route {
        match (self.phase, self.draining) {
            (Phase::Waiting | Phase::Withdrawn | Phase::Held { .. }, _) => Route::Absent,
            (Phase::Announced { .. } | Phase::Doubtful { .. }, None) => Route::Normal,
            (_, Some(drain)) if now < drain.until => Route::Draining,
            (_, Some(_)) => Route::Absent,
        }
    }

    /// When [`Announcement::update`] or [`Announcement::route`] has something new.
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let phase = match self.phase {
            Phase::Doubtful { since, .. } => Some(since + self.settings.withdraw_after),
            Phase::Held { until } => Some(until),
            Phase::Waiting | Phase::Announced { .. } | Phase::Withdrawn => None,
        };
        let drain = self.draining.map(|drain| drain.until);
        let drain = drain.filter(|until| *until > now);
        phase.into_iter().chain(drain).min()
    }

    /// One word for people.
    pub fn state(&self, now: Instant) -> &'static str {
        match (self.phase, self.draining) {
            (_, Some(drain)) if now < drain.until => "draining",
            (_, Some(_)) => "drained",
            (Phase::Waiting, None) => "waiting for a concentrator",
            (Phase::Announced { .. }, None) => "announced",
            (Phase::Doubtful { .. }, None) => "announced, no concentrator serves",
            (Phase::Withdrawn, None) => "withdrawn, no concentrator serves",
            (Phase::Held { .. }, None) => "withdrawn, held down",
        }
    }
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "tests need some instant to count from"
)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SETTINGS: Settings = Settings {
        withdraw_after: Duration::from_millis(1_000),
        hold_down: Duration::from_secs(10),
        hold_down_max: Duration::from_secs(40),
        graceful: Duration::from_secs(5),
        fail_open: false,
    };

    struct Rig {
        announcement: Announcement,
        start: Instant,
        ms: u64,
    }

    impl Rig {
        fn new(settings: Settings) -> Self {
            Self {
                announcement: Announcement::new(settings),
                start: Instant::now(),
                ms: 0,
            }
        }

        fn now(&self) -> Instant {
            self.start + Duration::from_millis(self.ms)
        }

        /// Lets time pass in steps; how long until the route is another one.
        fn until_change(&mut self, serving: bool, limit_ms: u64) -> Option<u64> {
            let (before, begin) = (self.announcement.route(self.now()), self.ms);
            while self.ms - begin <= limit_ms {
                self.announcement.update(serving, self.now());
                if self.announcement.route(self.now()) != before {
                    return Some(self.ms - begin);
                }
                self.ms += 100;
            }
            None
        }
    }

    #[test]
    fn announced_at_once_withdrawn_when_nobody_serves_for_a_while() {
        let mut rig = Rig::new(SETTINGS);
        assert_eq!(rig.until_change(false, 60_000), None);
        assert_eq!(rig.until_change(true, 0), Some(0));
        // A short silence is none.
        assert_eq!(rig.until_change(false, 800), None);
        assert_eq!(rig.until_change(true, 60_000), None);
        assert_eq!(rig.until_change(false, 60_000), Some(1_000));
        assert_eq!(rig.until_change(true, 60_000), Some(10_000));
    }

    #[test]
    fn the_hold_down_doubles_while_it_flaps_and_is_short_again_after_a_quiet_time() {
        let mut rig = Rig::new(SETTINGS);
        rig.until_change(true, 0);
        for held in [10_000, 20_000, 40_000, 40_000] {
            rig.until_change(false, 60_000);
            assert_eq!(rig.until_change(true, 60_000), Some(held));
        }
        assert_eq!(rig.until_change(true, 40_000), None);
        rig.until_change(false, 60_000);
        assert_eq!(rig.until_change(true, 60_000), Some(10_000));
    }

    #[test]
    fn a_silence_in_the_hold_down_begins_it_anew() {
        let mut rig = Rig::new(SETTINGS);
        rig.until_change(true, 0);
        rig.until_change(false, 60_000);
        assert_eq!(rig.until_change(true, 9_000), None);
        assert_eq!(rig.until_change(false, 100), None);
        assert_eq!(rig.until_change(true, 60_000), Some(10_000));
    }

    #[test]
    fn an_edge_that_fails_open_is_announced_in_any_case() {
        let mut rig = Rig::new(Settings {
            fail_open: true,
            ..SETTINGS
        });
        assert_eq!(rig.until_change(false, 0), Some(0));
        assert_eq!(rig.until_change(false, 600_000), None);
    }

    #[test]
    fn draining_says_goodbye_before_it_withdraws_and_can_be_taken_back() {
        let mut rig = Rig::new(SETTINGS);
        rig.until_change(true, 0);
        rig.announcement.set_draining(true, rig.now());
        assert_eq!(rig.announcement.route(rig.now()), Route::Draining);
        let due = rig.announcement.poll_timeout(rig.now()).unwrap();
        assert_eq!(due, rig.now() + Duration::from_secs(5));
        rig.announcement
            .set_draining(true, rig.now() + Duration::from_secs(1));
        assert_eq!(rig.announcement.route(due), Route::Absent);
        assert_eq!(rig.announcement.poll_timeout(due), None);
        rig.announcement.set_draining(false, due);
        assert_eq!(rig.announcement.route(due), Route::Normal);
    }

    #[test]
    fn nothing_is_announced_by_draining() {
        let mut rig = Rig::new(SETTINGS);
        rig.announcement.set_draining(true, rig.now());
        assert_eq!(rig.announcement.route(rig.now()), Route::Absent);
    }

    proptest! {
        /// However it flaps: between a withdrawal and the next announcement lies the hold-down, and
        /// all of it somebody served.
        #[test]
        fn a_flapping_concentrator_does_not_make_the_routes_flap(
            turns in proptest::collection::vec((any::<bool>(), 1_u64..30_000), 1..60),
        ) {
            let mut rig = Rig::new(SETTINGS);
            let (mut withdrawn_at, mut serving_since) = (None, None);
            for (serving, ms) in turns {
                let end = rig.ms + ms;
                while rig.ms < end {
                    let before = rig.announcement.route(rig.now());
                    rig.announcement.update(serving, rig.now());
                    if serving { serving_since.get_or_insert(rig.ms); } else { serving_since = None; }
                    match (before, rig.announcement.route(rig.now())) {
                        (Route::Normal, Route::Absent) => withdrawn_at = Some(rig.ms),
                        (Route::Absent, Route::Normal) => {
                            prop_assert!(serving);
                            if let Some(at) = withdrawn_at {
                                prop_assert!(rig.ms - at >= 10_000);
                                prop_assert!(rig.ms - serving_since.unwrap() >= 10_000);
                            }
                        }
                        (before, after) => prop_assert_eq!(before, after),
                    }
                    rig.ms += 100;
                }
            }
        }
    }
}
