//! How the losses of a stream lie: in bursts, or alone in the gaps between them.
//!
//! RFC 3611 section 4.7.2: a burst begins and ends with a lost packet, and nowhere within it are 16
//! packets in a row received; all else is gap. As in appendix A.2 a few counters tell them apart,
//! without a memory of single packets; other than there a loss is classified when the next one is
//! seen (the appendix takes the first loss of a stream for a burst), and a run of losses is one
//! step, since a sender may jump over thousands of numbers.
//!
//! A packet that comes late was lost here: a receiver's jitter buffer would have missed it too.

/// Received packets in a row that end a burst (Gmin, RFC 3611 section 4.7.2).
const GMIN: u64 = 16;

/// The losses of a stream so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bursts {
    /// Received since the last loss.
    pub(crate) received: u64,
    /// Lost since the last gap.
    pub(crate) lost: u64,
    /// Received in gaps, of those that are over.
    pub(crate) gap_received: u64,
    /// Lost alone in a gap.
    pub(crate) alone: u64,
    /// Bursts, and what was received in them.
    pub(crate) bursts: u64,
    pub(crate) burst_received: u64,
    /// Lost in all, and in how many runs.
    pub(crate) losses: u64,
    pub(crate) runs: u64,
}

/// What [`Bursts`] has found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Found {
    /// The part of a burst's packets that is lost, in 256ths.
    pub burst_density: u8,
    /// The same between bursts.
    pub gap_density: u8,
    /// The mean length of a burst in packets; 0 without one.
    pub burst_packets: u64,
    /// The mean length of a gap in packets.
    pub gap_packets: u64,
}

impl Bursts {
    /// A packet has come after this many that have not.
    pub fn record(&mut self, missing: u64) {
        if missing > 0 {
            self.lose(missing);
        }
        self.received += 1;
    }

    fn lose(&mut self, run: u64) {
        if self.received >= GMIN || self.lost == 0 {
            self.close();
            self.lost = run;
        } else {
            self.burst_received += self.received;
            self.lost += run;
        }
        self.losses += run;
        self.runs += 1;
        self.received = 0;
    }

    /// What was lost last is behind us: alone, or the end of a burst.
    const fn close(&mut self) {
        match self.lost {
            0 => {}
            1 => self.alone += 1,
            _ => self.bursts += 1,
        }
        self.gap_received += self.received;
    }

    /// How the losses lie so far.
    pub fn found(&self) -> Found {
        let mut all = *self;
        all.close();
        let gap = all.gap_received + all.alone;
        let lost_in_bursts = all.losses - all.alone;
        let burst = lost_in_bursts + all.burst_received;
        Found {
            burst_density: share(lost_in_bursts, burst),
            gap_density: share(all.alone, gap),
            burst_packets: burst.checked_div(all.bursts).unwrap_or(0),
            gap_packets: gap.checked_div(all.bursts).unwrap_or(gap),
        }
    }

    /// How much longer than in a random stream the runs of losses are, where this part of all
    /// packets is lost: BurstR of ITU-T G.107, 1 or more.
    pub fn ratio(&self, part_lost: f64) -> f64 {
        if self.runs == 0 {
            return 1.0;
        }
        let mean = self.losses as f64 / self.runs as f64;
        (mean * (1.0 - part_lost)).max(1.0)
    }
}

/// In 256ths, at most 255.
fn share(part: u64, whole: u64) -> u8 {
    let of_256 = part.saturating_mul(256).checked_div(whole).unwrap_or(0);
    u8::try_from(of_256).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complete_stream_is_one_gap_without_losses() {
        let found = bursts("....................").found();
        assert_eq!(
            found,
            Found {
                gap_packets: 20,
                ..Found::default()
            }
        );
    }

    #[test]
    fn losses_with_sixteen_packets_between_them_are_alone() {
        let text = "................x................x................";
        let found = bursts(text).found();
        assert_eq!((found.burst_packets, found.burst_density), (0, 0));
        // 2 of 50.
        assert_eq!((found.gap_density, found.gap_packets), (10, 50));
    }

    #[test]
    fn losses_with_fewer_between_them_are_one_burst() {
        // 4 lost of 7: x..x.xx, with 20 received on each side.
        let found = bursts("....................x..x.xx....................").found();
        assert_eq!(found.burst_packets, 7);
        assert_eq!(found.burst_density, (4 * 256 / 7) as u8);
        assert_eq!((found.gap_density, found.gap_packets), (0, 40));
    }

    #[test]
    fn the_length_of_bursts_and_gaps_is_a_mean() {
        let text = "....................xx....................x.xx....................";
        let found = bursts(text).found();
        // 2 and 4 packets; 60 received between and around.
        assert_eq!((found.burst_packets, found.gap_packets), (3, 30));
    }

    #[test]
    fn a_jump_over_thousands_is_one_run() {
        let mut bursts = bursts("....................");
        bursts.record(2999);
        assert_eq!(bursts.found().burst_packets, 2999);
        assert_eq!(bursts.found().burst_density, 255);
        assert!((bursts.ratio(0.0) - 2999.0).abs() < 1e-6);
    }

    #[test]
    fn single_losses_have_a_ratio_of_one() {
        assert!((bursts("..x..x..x..").ratio(0.25) - 1.0).abs() < 1e-9);
    }

    /// `.` came, `x` did not.
    fn bursts(text: &str) -> Bursts {
        let mut bursts = Bursts::default();
        let mut missing = 0;
        for packet in text.chars() {
            if packet == 'x' {
                missing += 1;
            } else {
                bursts.record(missing);
                missing = 0;
            }
        }
        assert_eq!(missing, 0, "a text ends with a received packet");
        bursts
    }
}
