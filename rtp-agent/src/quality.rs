//! How good a stream sounds: the E-model's estimate from what came and what did not.
//!
//! ITU-T G.107 with all its parameters at their defaults but those that a relay can see:
//!
//! ```text
//! R      = 93.2 - Id - Ie,eff
//! Id     = 0.024 d + 0.11 max(0, d - 177.3)              d: mouth-to-ear delay in ms
//! Ie,eff = Ie + (95 - Ie) Ppl / (Ppl / BurstR + Bpl)     Ppl: packets lost in percent
//! MOS    = 1 + 0.035 R + R (R - 60) (100 - R) 7e-6       1 for R <= 0, 4.5 for R >= 100
//! ```
//!
//! The delay is what a receiver adds: a packet of 20 ms and a jitter buffer of twice the jitter. The
//! way from the phone to the relay is not known and counts as none. Ie and Bpl are those of the
//! codec that a static payload type names (ITU-T G.113 appendix I), and those of G.711 with packet
//! loss concealment for every other. So the figure compares calls with each other; it is no
//! measurement of one.
//!
//! [`crate::reception::Reception`] has the packets; this file is arithmetic.

use std::time::Duration;

use wire::relay_control::Quality;

use crate::bursts::Found;

/// R without any impairment but those of the defaults.
const R_DEFAULT: f64 = 93.2;
/// What a packet holds, where nothing else is known.
const PACKET: Duration = Duration::from_millis(20);

/// What is known of a stream.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Facts {
    /// Packets that should have come; at least 1.
    pub expected: u64,
    /// Those that did not come.
    pub lost: u64,
    /// [`crate::bursts::Bursts::ratio`].
    pub burst_ratio: f64,
    /// How the losses lie.
    pub found: Found,
    /// Interarrival jitter; zero where the clock rate is not known.
    pub jitter: Duration,
    /// Of the last packet.
    pub payload_type: u8,
    /// The mean time from one packet to the next.
    pub interval: Duration,
}

/// What a receiver would make of the stream.
pub fn estimate(facts: &Facts) -> Quality {
    let r = r_factor(facts);
    let length = |packets: u64| {
        let millis = u128::from(packets) * facts.interval.as_micros() / 1000;
        u16::try_from(millis).unwrap_or(u16::MAX)
    };
    Quality {
        expected: facts.expected,
        // Both are within 0..=450 by their formulas.
        r_factor: r.clamp(0.0, 100.0).round() as u8,
        mos_x100: (mos(r) * 100.0).round() as u16,
        jitter_us: u32::try_from(facts.jitter.as_micros()).unwrap_or(u32::MAX),
        burst_density: facts.found.burst_density,
        gap_density: facts.found.gap_density,
        burst_ms: length(facts.found.burst_packets),
        gap_ms: length(facts.found.gap_packets),
    }
}

fn r_factor(facts: &Facts) -> f64 {
    let delay_ms = (PACKET + facts.jitter * 2).as_secs_f64() * 1000.0;
    let delay = 0.024 * delay_ms + 0.11 * (delay_ms - 177.3).max(0.0);
    let percent = 100.0 * facts.lost as f64 / facts.expected.max(1) as f64;
    let (ie, bpl) = codec(facts.payload_type);
    let loss = ie + (95.0 - ie) * percent / (percent / facts.burst_ratio.max(1.0) + bpl);
    R_DEFAULT - delay - loss
}

/// Ie and Bpl (ITU-T G.113 appendix I): G.723.1 at 6.3 kbit/s, G.729A, each with VAD, and G.711 with
/// packet loss concealment.
const fn codec(payload_type: u8) -> (f64, f64) {
    match payload_type {
        4 => (15.0, 16.1),
        18 => (11.0, 19.0),
        _ => (0.0, 25.1),
    }
}

/// ITU-T G.107 annex B.
fn mos(r: f64) -> f64 {
    if r <= 0.0 {
        1.0
    } else if r >= 100.0 {
        4.5
    } else {
        // Just above 0 the polynomial falls below 1.
        (1.0 + 0.035 * r + r * (r - 60.0) * (100.0 - r) * 7e-6).max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scores_are_those_of_the_standard_for_its_values_of_r() {
        // G.107 annex B, table B.1: R 90, 80, 70, 60, 50 are the borders of user satisfaction.
        for (r, expected) in [
            (90.0, 4.34),
            (80.0, 4.03),
            (70.0, 3.60),
            (60.0, 3.10),
            (50.0, 2.58),
        ] {
            assert!((mos(r) - expected).abs() < 0.01, "{r}: {}", mos(r));
        }
        assert!((mos(-5.0) - 1.0).abs() < f64::EPSILON);
        assert!((mos(100.0) - 4.5).abs() < f64::EPSILON);
        assert!((mos(1.0) - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn a_perfect_stream_has_the_best_score_that_a_telephone_call_can_have() {
        let quality = estimate(&perfect());
        // 93.2 - 0.024 * 20.
        assert_eq!((quality.r_factor, quality.mos_x100), (93, 440));
    }

    #[test]
    fn loss_costs_what_the_formula_says_and_more_in_bursts() {
        let lossy = Facts {
            expected: 1000,
            lost: 50,
            ..perfect()
        };
        // 92.72 - 95 * 5 / (5 + 25.1) = 76.94
        assert_eq!(estimate(&lossy).r_factor, 77);
        let bursty = Facts {
            burst_ratio: 5.0,
            ..lossy
        };
        // 92.72 - 95 * 5 / (1 + 25.1) = 74.52
        assert_eq!(estimate(&bursty).r_factor, 75);
    }

    #[test]
    fn jitter_costs_little_until_the_buffer_makes_a_conversation_hard() {
        let late = |millis| Facts {
            jitter: Duration::from_millis(millis),
            ..perfect()
        };
        // 93.2 - 0.024 * 60; 93.2 - 0.024 * 420 - 0.11 * (420 - 177.3)
        assert_eq!(estimate(&late(20)).r_factor, 92);
        assert_eq!(estimate(&late(200)).r_factor, 56);
    }

    #[test]
    fn a_codec_that_a_static_payload_type_names_has_its_own_values() {
        let g729 = Facts {
            payload_type: 18,
            ..perfect()
        };
        assert_eq!(estimate(&g729).r_factor, 82);
    }

    #[test]
    fn a_stream_of_which_nothing_is_left_has_the_worst_score() {
        let gone = Facts {
            expected: 1_000_000,
            lost: 999_999,
            burst_ratio: 1e6,
            ..perfect()
        };
        let quality = estimate(&gone);
        assert_eq!((quality.r_factor, quality.mos_x100), (0, 100));
    }

    #[test]
    fn lengths_of_bursts_are_told_in_milliseconds() {
        let bursty = Facts {
            found: Found {
                burst_packets: 7,
                gap_packets: 1_000_000,
                ..Found::default()
            },
            ..perfect()
        };
        let quality = estimate(&bursty);
        assert_eq!((quality.burst_ms, quality.gap_ms), (140, u16::MAX));
    }

    fn perfect() -> Facts {
        Facts {
            expected: 500,
            lost: 0,
            burst_ratio: 1.0,
            found: Found::default(),
            jitter: Duration::ZERO,
            payload_type: 8,
            interval: PACKET,
        }
    }
}
