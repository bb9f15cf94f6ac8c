//! PURE. The way to one concentrator: up, down, and what is known of it.
//!
//! ```text
//!              an answer                      silence
//!   Starting ─────────────► Up ◄───────────────────────────────────┐
//!      │                    │  `misses` intervals without an answer  │ `answers` in a row
//!      └────────────────────┴───────────────► Down ─────────────────┘
//! ```
//!
//! What counts is when answers arrive and not how long they took: a far concentrator's answers come
//! as regularly as a near one's. Only answers to probes of the last [`LATE`] count, each once.
//!
//! Every `pad_every`th probe is as long as the longest packet. One that gets lost between two short
//! ones that are answered says that the path's MTU is too small, which is not the same as down.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use wire::gre::TunnelKey;
use wire::probe::{Kind, Repr, State as Standing};

/// An answer that takes longer counts no more.
pub const LATE: Duration = Duration::from_secs(1);
/// Probes that are remembered: those of [`LATE`] at the shortest interval, and some neighbours.
const REMEMBERED: u32 = 64;
/// Padded probes in a row that must get lost before the MTU is held to be too small.
const PADDED_MISSES: u32 = 3;

/// When and how often; from the config.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Between two probes.
    pub interval: Duration,
    /// Down after this many intervals without an answer.
    pub misses: u32,
    /// Up again after this many answers in a row.
    pub answers: u32,
    /// Every so manieth probe is padded.
    pub pad_every: u32,
}

impl Settings {
    /// How long it may be silent.
    fn patience(&self) -> Duration {
        self.interval * self.misses
    }
}

/// Whether answers come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// None has come yet, and it is too early to worry.
    Starting,
    /// They come.
    Up,
    /// They do not.
    Down,
}

/// What has changed; each is worth a line in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Answers come.
    Up,
    /// No answers come any more.
    Down,
    /// The concentrator says that it is serving, draining or not ready.
    Standing(Standing),
    /// Packets of full length do not arrive.
    MtuTooSmall,
    /// They do.
    MtuFits,
}

/// Why an answer does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    /// Not a probe's layout.
    Malformed,
    /// From an address that is not probed.
    Stranger,
    /// A probe, not an answer.
    NotAnAnswer,
    /// For another edge.
    WrongKey,
    /// No probe of ours, or one of long ago.
    UnknownSequence,
    /// Its time is not that of the probe.
    WrongTime,
    /// The probe has been answered.
    Duplicate,
    /// After [`LATE`].
    Late,
}

impl Rejection {
    /// All of them, in the order of the enum.
    pub const ALL: [Self; 8] = [
        Self::Malformed,
        Self::Stranger,
        Self::NotAnAnswer,
        Self::WrongKey,
        Self::UnknownSequence,
        Self::WrongTime,
        Self::Duplicate,
        Self::Late,
    ];

    /// The name in metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Stranger => "stranger",
            Self::NotAnAnswer => "not_an_answer",
            Self::WrongKey => "wrong_key",
            Self::UnknownSequence => "unknown_sequence",
            Self::WrongTime => "wrong_time",
            Self::Duplicate => "duplicate",
            Self::Late => "late",
        }
    }
}

/// A probe to be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Its content.
    pub repr: Repr,
    /// As long as the longest packet.
    pub padded: bool,
}

/// Totals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Probes sent.
    pub sent: u64,
    /// Probes answered in time.
    pub answered: u64,
    /// Short probes that were not.
    pub missed: u64,
    /// Padded probes that were not.
    pub padded_missed: u64,
}

/// What is known of the path.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Report {
    /// Whether answers come.
    pub state: State,
    /// Since when.
    pub since: Instant,
    /// What the concentrator said last: its standing, and its load from 0 to 65535.
    pub said: Option<(Standing, u16)>,
    /// Smoothed round trip.
    pub round_trip: Option<Duration>,
    /// Whether packets of full length arrive; not known before the first padded probe.
    pub mtu_fits: Option<bool>,
    /// Totals.
    pub counts: Counts,
}

/// What a concentrator is fit for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fitness {
    /// It takes what comes.
    Serving,
    /// It takes what comes, and asks to be left alone.
    Draining,
    /// It does not answer, or is not ready.
    Unfit,
}

impl Report {
    /// What it is fit for, as far as it has said.
    pub fn fitness(&self) -> Fitness {
        match (self.state, self.said) {
            (State::Up, None | Some((Standing::Serving, _))) => Fitness::Serving,
            (State::Up, Some((Standing::Draining, _))) => Fitness::Draining,
            (State::Up, Some((Standing::NotReady, _))) | (State::Starting | State::Down, _) => {
                Fitness::Unfit
            }
        }
    }

    /// Packets sent there are served.
    pub fn serves(&self) -> bool {
        let refuses = matches!(self.said, Some((Standing::NotReady, _)));
        self.state == State::Up && !refuses
    }
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    sequence: u32,
    key: TunnelKey,
    at: Instant,
    sent_us: u64,
    padded: bool,
    answered: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Path {
    key: TunnelKey,
    settings: Settings,
    report: Report,
    next_sequence: u32,
    next_probe: Instant,
    /// Oldest first.
    sent: VecDeque<Sent>,
    /// The oldest that may still be answered in time.
    open_from: u32,
    last_answer: Instant,
    sent_since_answer: u32,
    answers_in_a_row: u32,
    padded_missed_in_a_row: u32,
    events: VecDeque<Event>,
}

impl Path {
    /// Begins at once. `first_sequence` should not be guessable: with it nobody who does not see the
    /// probes can make an answer.
    pub fn new(key: TunnelKey, settings: Settings, first_sequence: u32, now: Instant) -> Self {
        Self {
            key,
            settings,
            report: Report {
                state: State::Starting,
                since: now,
                said: None,
                round_trip: None,
                mtu_fits: None,
                counts: Counts::default(),
            },
            next_sequence: first_sequence,
            next_probe: now,
            sent: VecDeque::new(),
            open_from: first_sequence,
            last_answer: now,
            sent_since_answer: 0,
            answers_in_a_row: 0,
            padded_missed_in_a_row: 0,
            events: VecDeque::new(),
        }
    }

    /// Later probes carry this key.
    pub fn set_key(&mut self, key: TunnelKey) {
        self.key = key;
    }

    /// What is known.
    pub fn report(&self) -> Report {
        self.report
    }

    /// What has changed since the last call.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Path::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Instant {
        let waits = self.sent_since_answer >= self.settings.misses;
        if self.report.state == State::Down || !waits {
            return self.next_probe;
        }
        let silent = self.last_answer + self.settings.patience();
        silent.min(self.next_probe)
    }

    /// Looks for silence, and gives the probe that is due. Answers that have arrived come first: what
    /// is waiting to be read is not silence. `clock_us` is our own clock, which the answer returns.
    pub fn handle_timeout(&mut self, now: Instant, clock_us: u64) -> Option<Probe> {
        self.expire(now);
        let silent = now.saturating_duration_since(self.last_answer) >= self.settings.patience();
        if silent && self.sent_since_answer >= self.settings.misses {
            self.answers_in_a_row = 0;
            if self.report.state != State::Down {
                self.enter(State::Down, now);
                self.events.push_back(Event::Down);
            }
        }
        if now < self.next_probe {
            return None;
        }
        // Time that was missed is not made up for.
        self.next_probe += self.settings.interval;
        if self.next_probe <= now {
            self.next_probe = now + self.settings.interval;
        }
        Some(self.send(now, clock_us))
    }

    fn send(&mut self, now: Instant, clock_us: u64) -> Probe {
        let sequence = self.next_sequence;
        self.next_sequence = sequence.wrapping_add(1);
        let number = self.report.counts.sent + 1;
        let padded = number.is_multiple_of(u64::from(self.settings.pad_every));
        self.sent.push_back(Sent {
            sequence,
            key: self.key,
            at: now,
            sent_us: clock_us,
            padded,
            answered: false,
        });
        if self.sent.len() > REMEMBERED as usize {
            self.sent.pop_front();
        }
        self.report.counts.sent = number;
        self.sent_since_answer = self.sent_since_answer.saturating_add(1);
        Probe {
            repr: Repr {
                kind: Kind::Probe,
                key: self.key,
                sequence,
                sent_us: clock_us,
            },
            padded,
        }
    }

    /// Takes an answer that came from this path's concentrator.
    pub fn handle_answer(&mut self, answer: &Repr, now: Instant) -> Result<(), Rejection> {
        let Kind::Answer { state, load } = answer.kind else {
            return Err(Rejection::NotAnAnswer);
        };
        let place = self.place_of(answer.sequence);
        let sent = place.and_then(|place| self.sent.get_mut(place));
        // The key is that of the probe, which may have been another one than it is now.
        let key = sent.as_ref().map_or(self.key, |sent| sent.key);
        if answer.key != key {
            return Err(Rejection::WrongKey);
        }
        let sent = sent.ok_or(Rejection::UnknownSequence)?;
        if sent.sent_us != answer.sent_us {
            return Err(Rejection::WrongTime);
        }
        if sent.answered {
            return Err(Rejection::Duplicate);
        }
        let took = now.saturating_duration_since(sent.at);
        if took > LATE {
            return Err(Rejection::Late);
        }
        sent.answered = true;
        let padded = sent.padded;
        self.note_answer(took, padded, now);
        self.note_said(state, load);
        Ok(())
    }

    fn note_answer(&mut self, took: Duration, padded: bool, now: Instant) {
        self.report.counts.answered += 1;
        let smoothed = |before: Duration| (before * 7 + took) / 8;
        self.report.round_trip = Some(self.report.round_trip.map_or(took, smoothed));
        if padded {
            self.padded_missed_in_a_row = 0;
            if self.report.mtu_fits == Some(false) {
                self.events.push_back(Event::MtuFits);
            }
            self.report.mtu_fits = Some(true);
        }
        let gap = now.saturating_duration_since(self.last_answer);
        if gap >= self.settings.patience() {
            self.answers_in_a_row = 0;
        }
        self.answers_in_a_row = self.answers_in_a_row.saturating_add(1);
        self.last_answer = now;
        self.sent_since_answer = 0;
        let wanted = match self.report.state {
            State::Starting => 1,
            State::Down => self.settings.answers,
            State::Up => return,
        };
        if self.answers_in_a_row >= wanted {
            self.enter(State::Up, now);
            self.events.push_back(Event::Up);
        }
    }

    fn note_said(&mut self, standing: Standing, load: u16) {
        let before = self.report.said.replace((standing, load));
        if before.map_or(Standing::Serving, |(before, _)| before) != standing {
            self.events.push_back(Event::Standing(standing));
        }
    }

    fn enter(&mut self, state: State, now: Instant) {
        self.report.state = state;
        self.report.since = now;
    }

    /// Counts what can no longer be answered in time.
    fn expire(&mut self, now: Instant) {
        while let Some(place) = self.place_of(self.open_from) {
            let sent = self.sent[place];
            if now.saturating_duration_since(sent.at) <= LATE {
                return;
            }
            self.open_from = self.open_from.wrapping_add(1);
            match (sent.answered, sent.padded) {
                (true, _) => {}
                (false, false) => self.report.counts.missed += 1,
                (false, true) => self.note_padded_miss(place),
            }
        }
    }

    fn place_of(&self, sequence: u32) -> Option<usize> {
        let first = self.sent.front()?.sequence;
        let place = sequence.wrapping_sub(first) as usize;
        (place < self.sent.len()).then_some(place)
    }

    fn note_padded_miss(&mut self, place: usize) {
        self.report.counts.padded_missed += 1;
        let is_answered = |place: usize| self.sent.get(place).is_some_and(|sent| sent.answered);
        let neighbours = place.checked_sub(1).is_some_and(is_answered) && is_answered(place + 1);
        if !neighbours {
            return;
        }
        self.padded_missed_in_a_row = self.padded_missed_in_a_row.saturating_add(1);
        if self.padded_missed_in_a_row >= PADDED_MISSES && self.report.mtu_fits != Some(false) {
            self.report.mtu_fits = Some(false);
            self.events.push_back(Event::MtuTooSmall);
        }
    }
}

#[cfg(test)]
mod tests;
