//! A session as another agent needs it: out into a record, and back.
//!
//! Everything that decides what becomes of the next packet is in the record: gates, latched sources with
//! their SSRCs, for how long others may be learnt, what may pass. Other times are not: silence and idleness
//! count anew from the take-over. Nor are packets that wait, and the state of the loss and jitter estimates; what those have counted is.

use std::time::Instant;

use wire::relay_control::SideStatistics;
use wire::relay_control::standby::{Phase, SideRecord};

use super::{Counters, Limits, Party, Session, Side, State, Traffic};
use crate::hold::HoldBudget;
use crate::latch::Latch;
use crate::reception::Reception;

impl Session {
    /// What it is for.
    pub const fn phase(&self) -> Phase {
        match self.state {
            State::Lease { .. } => Phase::Lease,
            State::Bound { .. } => Phase::Bound,
            State::Lingering { .. } => Phase::Lingering,
        }
    }

    /// One side; `statistics` are what [`crate::relay::report`] makes of its counters.
    pub fn export(&self, side: Side, statistics: SideStatistics, now: Instant) -> SideRecord {
        let party = self.party(side);
        SideRecord {
            gate: party.gates.as_ref().map(|gates| gates.rtp.clone()),
            rtp: party.rtp.export(now),
            rtcp: party.rtcp.export(now),
            started: party.started,
            statistics,
        }
    }

    /// A session that another agent has exported. Until [`Session::handle_take_over`] its deadlines mean
    /// nothing.
    pub fn restore(
        phase: Phase,
        a: &SideRecord,
        b: &SideRecord,
        limits: Limits,
        now: Instant,
    ) -> Self {
        Self {
            state: match phase {
                Phase::Lease => State::Lease { expires_at: None },
                Phase::Bound => State::Bound { since: now },
                Phase::Lingering => State::Lingering {
                    until: now + limits.linger,
                },
            },
            limits,
            a: Party::restore(a, now, &limits),
            b: Party::restore(b, now, &limits),
            changed: false,
        }
    }

    /// What came here while another agent was in charge waits for nobody any more.
    pub fn handle_replaced(&mut self, hold: &mut HoldBudget) {
        self.a.hold.take_all(hold);
        self.b.hold.take_all(hold);
    }

    /// From now on this agent is in charge of the session: all its times begin.
    pub fn handle_take_over(&mut self, now: Instant) {
        for party in [&mut self.a, &mut self.b] {
            party.heard = party.heard.map(|_| now);
            party.rtp.handle_take_over(now);
            party.rtcp.handle_take_over(now);
        }
        self.state = match self.state {
            State::Lease { .. } => State::Lease {
                expires_at: Some(now + self.limits.lease),
            },
            State::Bound { .. } => State::Bound { since: now },
            State::Lingering { .. } => State::Lingering {
                until: now + self.limits.linger,
            },
        };
    }

    /// When it ends by itself.
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    /// True when something has changed that the other agent of a pair should know.
    pub const fn has_changed(&self) -> bool {
        self.changed
    }

    /// The same, once.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }
}

impl Party {
    fn restore(record: &SideRecord, now: Instant, limits: &Limits) -> Self {
        let statistics = &record.statistics;
        let mut party = Self::default();
        if let Some(gate) = &record.gate {
            party.set_gate(gate.clone(), now, limits);
        }
        let longest = limits.half_open.max(limits.learning);
        party.rtp = Latch::restore(&record.rtp, now, longest);
        party.rtcp = Latch::restore(&record.rtcp, now, longest);
        party.started = record.started;
        party.counters = counters(statistics);
        let expected = statistics.quality.map_or(0, |quality| quality.expected);
        party.reception = Reception::after(statistics.lost, expected);
        let has_sent = statistics.rtp.packets_in > 0
            || record.rtp.peer.is_some()
            || record.rtcp.peer.is_some();
        party.heard = has_sent.then_some(now);
        party
    }
}

const fn counters(statistics: &SideStatistics) -> Counters {
    let (rtp, rtcp) = (&statistics.rtp, &statistics.rtcp);
    let rejected = &statistics.rejected;
    Counters {
        rtp_in: traffic(rtp.packets_in, rtp.bytes_in),
        rtp_by_xdp: 0,
        rtcp_in: traffic(rtcp.packets_in, rtcp.bytes_in),
        rtp_out: traffic(rtp.packets_out, rtp.bytes_out),
        rtcp_out: traffic(rtcp.packets_out, rtcp.bytes_out),
        held: statistics.waited,
        hold_overflow: rejected.no_peer,
        moved: statistics.relatched as u64,
        rejected_gate: rejected.gate,
        rejected_stranger: rejected.latched,
        rejected_ssrc: rejected.ssrc,
        rejected_late: rejected.late,
        rejected_not_rtp: rejected.malformed,
    }
}

const fn traffic(packets: u64, bytes: u64) -> Traffic {
    Traffic { packets, bytes }
}
