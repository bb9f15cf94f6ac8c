//! What a receiver knows about an RTP stream: packets lost, interarrival jitter, how good it sounds.
//!
//! [`crate::session::Session`] keeps one [`Reception`] a side and feeds it with every RTP packet
//! accepted there. A new SSRC starts a new stream whose losses add to those of the streams before;
//! jitter and how the losses lie are those of the current one. A stream of few packets after one of many,
//! such as the last word of a call after a re-INVITE, so has the last say about bursts.
//!
//! Known weak spot: the clock rate of a dynamic payload type is only in the SDP, which the relay
//! does not see. Such streams have no jitter figure.
//!
//! Standards: RFC 3550 appendix A.1 (sequence numbers), A.3 (packets lost), A.8 (jitter);
//! RFC 3551 tables 4 and 5 (clock rates).

use std::time::{Duration, Instant};

use wire::relay_control::Quality;

use crate::bursts::Bursts;
use crate::quality::{Facts, estimate};

/// A.1: a forward jump of this many is a restart of the sender, not a loss.
const MAX_DROPOUT: u16 = 3000;
/// A.1: a step back of this many is a reordered packet, not a restart.
const MAX_MISORDER: u16 = 100;
/// Sequence numbers before they wrap.
const SEQUENCES: u32 = 1 << 16;

/// The header fields of an RTP packet that reception statistics need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RtpFields {
    /// Synchronisation source.
    pub ssrc: u32,
    /// Sequence number.
    pub sequence: u16,
    /// Media timestamp, in units of the payload type's clock.
    pub timestamp: u32,
    /// Payload type, 0..=127.
    pub payload_type: u8,
}

/// Statistics of the packets one side has sent to us.
#[derive(Debug, Default)]
pub struct Reception {
    stream: Option<Stream>,
    /// Of streams that a new SSRC or a restart has ended.
    lost_before: u64,
    expected_before: u64,
}

#[derive(Debug)]
struct Stream {
    ssrc: u32,
    base: u16,
    highest: u16,
    cycles: u32,
    received: u64,
    /// A.1: the sequence number that, if it comes next, proves a restart.
    restart_at: Option<u16>,
    began: Instant,
    last: Arrival,
    bursts: Bursts,
    /// A.8: scaled by 16, in timestamp units.
    jitter_x16: u32,
    clock_hz: Option<u32>,
}

/// How far a stream has come, for who counts its next packets elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Of the stream.
    pub ssrc: u32,
    /// The highest sequence number.
    pub highest: u16,
    /// How often that has wrapped.
    pub cycles: u32,
    /// Packets.
    pub received: u64,
    /// How the losses lie.
    pub bursts: Bursts,
    /// A.8: scaled by 16, in timestamp units.
    pub jitter_x16: u32,
    /// Where it is known.
    pub clock_hz: Option<u32>,
    /// When the last packet came,
    pub last: Instant,
    /// with this timestamp
    pub timestamp: u32,
    /// and this payload type.
    pub payload_type: u8,
}

/// When a packet came and what its timestamp said, for the difference to the next one.
#[derive(Debug, Clone, Copy)]
struct Arrival {
    at: Instant,
    timestamp: u32,
    payload_type: u8,
}

impl Reception {
    /// Counts an accepted packet.
    pub fn record(&mut self, packet: RtpFields, now: Instant) {
        match &mut self.stream {
            Some(stream) if stream.ssrc == packet.ssrc => {
                if stream.update_sequence(packet.sequence) {
                    stream.update_jitter(packet, now);
                } else {
                    self.begin(packet, now);
                }
            }
            Some(_) | None => self.begin(packet, now),
        }
    }

    /// The current stream.
    pub fn progress(&self) -> Option<Progress> {
        let stream = self.stream.as_ref()?;
        Some(Progress {
            ssrc: stream.ssrc,
            highest: stream.highest,
            cycles: stream.cycles,
            received: stream.received,
            bursts: stream.bursts,
            jitter_x16: stream.jitter_x16,
            clock_hz: stream.clock_hz,
            last: stream.last.at,
            timestamp: stream.last.timestamp,
            payload_type: stream.last.payload_type,
        })
    }

    /// The current stream has come as far as this elsewhere; of another stream it is of no use.
    pub fn go_on(&mut self, progress: &Progress) {
        let stream = self.stream.as_mut();
        let Some(stream) = stream.filter(|stream| stream.ssrc == progress.ssrc) else {
            return;
        };
        stream.highest = progress.highest;
        stream.cycles = progress.cycles;
        stream.received = progress.received;
        stream.bursts = progress.bursts;
        stream.jitter_x16 = progress.jitter_x16;
        stream.clock_hz = progress.clock_hz;
        stream.restart_at = None;
        stream.last = Arrival {
            at: progress.last,
            timestamp: progress.timestamp,
            payload_type: progress.payload_type,
        };
    }

    /// Goes on after another agent, with the losses that it has counted of so many packets.
    pub fn after(lost: u64, expected: u64) -> Self {
        Self {
            stream: None,
            lost_before: lost,
            expected_before: expected,
        }
    }

    fn begin(&mut self, packet: RtpFields, now: Instant) {
        let before = self.stream.replace(Stream::new(packet, now));
        self.lost_before += before.as_ref().map_or(0, Stream::lost);
        self.expected_before += before.as_ref().map_or(0, Stream::expected);
    }

    /// How good it sounds so far; nothing without a packet.
    pub fn quality(&self) -> Option<Quality> {
        let stream = self.stream.as_ref()?;
        let expected = self.expected_before + stream.expected();
        let lost = self.lost();
        Some(estimate(&Facts {
            expected,
            lost,
            burst_ratio: stream.bursts.ratio(lost as f64 / expected.max(1) as f64),
            found: stream.bursts.found(),
            jitter: self.jitter(),
            payload_type: stream.last.payload_type,
            interval: stream.interval(),
        }))
    }

    /// The SSRC of the current stream.
    pub fn ssrc(&self) -> Option<u32> {
        self.stream.as_ref().map(|stream| stream.ssrc)
    }

    /// Packets expected and not received, an estimate (A.3); duplicates can hide losses.
    pub fn lost(&self) -> u64 {
        self.lost_before + self.stream.as_ref().map_or(0, Stream::lost)
    }

    /// Interarrival jitter of the current stream in timestamp units (RFC 3550 section 6.4.1).
    pub fn jitter_units(&self) -> u32 {
        self.stream
            .as_ref()
            .map_or(0, |stream| stream.jitter_x16 >> 4)
    }

    /// Interarrival jitter of the current stream; zero while the clock rate is unknown.
    pub fn jitter(&self) -> Duration {
        let Some(stream) = &self.stream else {
            return Duration::ZERO;
        };
        let units = u64::from(stream.jitter_x16 >> 4);
        stream.clock_hz.map_or(Duration::ZERO, |hz| {
            Duration::from_micros(units * 1_000_000 / u64::from(hz))
        })
    }
}

impl Stream {
    fn new(packet: RtpFields, now: Instant) -> Self {
        Self {
            ssrc: packet.ssrc,
            base: packet.sequence,
            highest: packet.sequence,
            cycles: 0,
            received: 1,
            restart_at: None,
            began: now,
            last: Arrival::new(packet, now),
            bursts: Bursts::default(),
            jitter_x16: 0,
            clock_hz: clock_rate(packet.payload_type),
        }
    }

    /// A.1 without the probation, which the source gate replaces. False: the sender restarted.
    fn update_sequence(&mut self, sequence: u16) -> bool {
        let ahead = sequence.wrapping_sub(self.highest);
        if ahead < MAX_DROPOUT {
            if sequence < self.highest {
                self.cycles += 1;
            }
            self.highest = sequence;
            if ahead > 0 {
                self.bursts.record(u64::from(ahead) - 1);
            }
        } else if ahead <= u16::MAX - MAX_MISORDER {
            if self.restart_at == Some(sequence) {
                return false;
            }
            self.restart_at = Some(sequence.wrapping_add(1));
            return true;
        }
        self.restart_at = None;
        self.received += 1;
        true
    }

    /// A.3: what the sequence numbers have run through.
    fn expected(&self) -> u64 {
        let extended = u64::from(self.cycles) * u64::from(SEQUENCES) + u64::from(self.highest);
        (extended + 1).saturating_sub(u64::from(self.base))
    }

    /// A.3: expected minus received, never negative.
    fn lost(&self) -> u64 {
        self.expected().saturating_sub(self.received)
    }

    /// From one packet to the next, on average; pauses of the sender make it longer.
    fn interval(&self) -> Duration {
        let steps = u32::try_from(self.expected().saturating_sub(1)).unwrap_or(u32::MAX);
        let whole = self.last.at.saturating_duration_since(self.began);
        whole.checked_div(steps).unwrap_or_default()
    }

    /// A.8: J += |D| - (J + 8 >> 4), on the difference of the transit times.
    fn update_jitter(&mut self, packet: RtpFields, now: Instant) {
        let last = std::mem::replace(&mut self.last, Arrival::new(packet, now));
        // Events such as telephone-event (RFC 4733) repeat one timestamp: no transit time to learn.
        if last.payload_type != packet.payload_type || last.timestamp == packet.timestamp {
            return;
        }
        let Some(hz) = clock_rate(packet.payload_type) else {
            return;
        };
        self.clock_hz = Some(hz);
        let elapsed = now.saturating_duration_since(last.at).as_micros();
        let elapsed = i64::try_from(elapsed * u128::from(hz) / 1_000_000).unwrap_or(i64::MAX);
        let media = i64::from(packet.timestamp.wrapping_sub(last.timestamp).cast_signed());
        let difference = u32::try_from(elapsed.saturating_sub(media).unsigned_abs());
        // Longer than a second is a pause of the sender, not jitter.
        if let Some(difference) = difference.ok().filter(|&difference| difference < hz) {
            self.jitter_x16 += difference;
            self.jitter_x16 -= (self.jitter_x16 - difference + 8) >> 4;
        }
    }
}

impl Arrival {
    const fn new(packet: RtpFields, now: Instant) -> Self {
        Self {
            at: now,
            timestamp: packet.timestamp,
            payload_type: packet.payload_type,
        }
    }
}

/// RFC 3551 tables 4 and 5; `None` for dynamic and unassigned payload types.
const fn clock_rate(payload_type: u8) -> Option<u32> {
    match payload_type {
        // G.722 samples at 16 kHz, but its RTP clock is 8,000 (RFC 3551 section 4.5.2).
        0 | 3 | 4 | 5 | 7 | 8 | 9 | 12 | 13 | 15 | 18 => Some(8_000),
        6 => Some(16_000),
        10 | 11 => Some(44_100),
        14 | 25 | 26 | 28 | 31..=34 => Some(90_000),
        16 => Some(11_025),
        17 => Some(22_050),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const PTIME: Duration = Duration::from_millis(20);

    #[test]
    fn a_complete_stream_has_no_loss_and_no_jitter() {
        let reception = received(&[10, 11, 12, 13]);
        assert_eq!((reception.lost(), reception.jitter()), (0, Duration::ZERO));
    }

    #[test]
    fn missing_numbers_are_lost_and_late_ones_are_not() {
        assert_eq!(received(&[10, 11, 14]).lost(), 2);
        assert_eq!(received(&[10, 11, 14, 13, 12]).lost(), 0);
    }

    #[test]
    fn duplicates_never_make_the_loss_negative() {
        assert_eq!(received(&[10, 10, 10, 11]).lost(), 0);
    }

    #[test]
    fn the_sequence_number_wraps_without_loss() {
        assert_eq!(received(&[65_534, 65_535, 0, 1]).lost(), 0);
        assert_eq!(received(&[65_534, 1]).lost(), 2);
        // One from before the wrap, late.
        assert_eq!(received(&[65_534, 0, 65_535, 1]).lost(), 0);
    }

    #[test]
    fn two_packets_in_a_row_far_away_are_a_restart_and_one_is_a_stray() {
        assert_eq!(received(&[10, 11, 30_000, 12]).lost(), 0);
        assert_eq!(received(&[10, 13, 30_000, 30_001, 30_002]).lost(), 2);
    }

    #[test]
    fn a_new_ssrc_keeps_the_losses_of_the_one_before() {
        let mut reception = received(&[10, 12]);
        let next = RtpFields {
            ssrc: 2,
            ..packet(500)
        };
        reception.record(next, clock::start());
        assert_eq!((reception.lost(), reception.ssrc()), (1, Some(2)));
    }

    #[test]
    fn the_score_of_a_stream_counts_the_losses_of_those_before_it() {
        assert_eq!(Reception::default().quality(), None);
        let whole = received(&[10, 11, 12, 13]).quality().expect("packets came");
        assert_eq!((whole.expected, whole.mos_x100), (4, 440));
        // 2 of 5 lost, then a new stream without loss.
        let mut reception = received(&[10, 13, 14]);
        let before = reception.quality().expect("packets came");
        assert_eq!((before.expected, before.burst_ms), (5, 40));
        let next = RtpFields {
            ssrc: 2,
            ..packet(500)
        };
        reception.record(next, clock::start());
        let after = reception.quality().expect("packets came");
        assert_eq!((after.expected, after.burst_ms), (6, 0));
        assert!(before.mos_x100 < after.mos_x100 && after.mos_x100 < whole.mos_x100);
    }

    #[test]
    fn jitter_follows_the_formula_of_appendix_a_8() {
        let now = clock::start();
        let mut reception = Reception::default();
        reception.record(packet(1), now);
        // 10 ms late: D = 80 units; J = 80/16 = 5 units = 625 us.
        reception.record(packet(2), now + PTIME + Duration::from_millis(10));
        assert_eq!(reception.jitter(), Duration::from_micros(625));
        // On its slot again: |D| = 80; J x16 = 80 + 80 - (80 + 8 >> 4) = 155; 9 units.
        reception.record(packet(3), now + 2 * PTIME);
        assert_eq!(reception.jitter(), Duration::from_micros(1125));
    }

    #[test]
    fn a_dynamic_payload_type_has_no_jitter_figure() {
        let now = clock::start();
        let mut reception = Reception::default();
        for sequence in 0..5 {
            let opus = RtpFields {
                payload_type: 111,
                ..packet(sequence)
            };
            reception.record(opus, now + PTIME * u32::from(sequence) * 3);
        }
        assert_eq!(reception.jitter(), Duration::ZERO);
    }

    #[test]
    fn no_sequence_of_header_fields_makes_it_panic() {
        let now = clock::start();
        let mut reception = Reception::default();
        let mut state = 1_u64;
        for step in 0..100_000_u32 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let [_, _, a, b, c, d, e, f] = state.to_be_bytes();
            let hostile = RtpFields {
                ssrc: u32::from(a & 1),
                sequence: u16::from_be_bytes([a, b]),
                timestamp: u32::from_be_bytes([c, d, e, f]),
                payload_type: b & 0x7f,
            };
            reception.record(hostile, now + Duration::from_micros(u64::from(step)));
            let score = reception.quality().map(|quality| quality.mos_x100);
            assert!(score.is_some_and(|score| (100..=450).contains(&score)));
        }
        assert!(reception.jitter() <= Duration::from_secs(1));
    }

    fn received(sequences: &[u16]) -> Reception {
        let now = clock::start();
        let mut reception = Reception::default();
        let first = sequences[0];
        for &sequence in sequences {
            let slot = u32::from(sequence.wrapping_sub(first));
            reception.record(packet(sequence), now + PTIME * slot);
        }
        reception
    }

    fn packet(sequence: u16) -> RtpFields {
        RtpFields {
            ssrc: 1,
            sequence,
            timestamp: u32::from(sequence) * 160,
            payload_type: 0,
        }
    }
}
