//! One session at rtpengine, from its preparation to its end.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use wire::relay_control::{Gate, GateMode, Lease, SessionStatistics, Side, SideAddr};

use super::message::Description;

/// Nobody has these: the dummy address of RFC 7600 section 4.8 and one of the prefix to throw away to,
/// RFC 6666.
const NOBODY: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 8)),
    IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1)),
];

/// The port of the discard protocol: a NAT has chosen the real one, and rtpengine learns it.
const UNKNOWN_PORT: u16 = 9;

/// Where a session is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// rtpengine has been asked for its ports.
    Preparing,
    /// A lease of the pool, or a call's already without our knowing.
    Stocked,
    /// A call's.
    Bound,
    /// To be deleted, or being deleted.
    Ending,
}

#[derive(Debug)]
pub(super) struct Session {
    /// The families of its sides, an index into [`super::client`]'s combinations.
    pub(super) combination: usize,
    pub(super) phase: Phase,
    /// The ports, by the answers of rtpengine so far.
    pub(super) sides: [Option<SideAddr>; 2],
    gates: [Gate; 2],
    told: [IpAddr; 2],
    /// A request about it is under way.
    pub(super) asking: bool,
    /// rtpengine does not know the newest gates.
    pub(super) changed: bool,
    /// Requests of the pool that end with the next answer of rtpengine.
    pub(super) waiting: Vec<u64>,
    /// When to do what is next.
    pub(super) due: Instant,
    pub(super) deletes: u8,
    pub(super) bound_at: Option<Instant>,
    /// The sides whose first packet has been reported.
    pub(super) started: [bool; 2],
    /// By the newest answer that had any.
    pub(super) statistics: SessionStatistics,
}

/// The families of side A and side B, the first of which most calls want.
pub(super) const COMBINATIONS: [[bool; 2]; 4] =
    [[true, true], [true, false], [false, true], [false, false]];

/// An address of a family that nobody has.
pub(super) const fn nobody(v4: bool) -> IpAddr {
    if v4 { NOBODY[0] } else { NOBODY[1] }
}

pub(super) const fn index(side: Side) -> usize {
    match side {
        Side::A => 0,
        Side::B => 1,
    }
}

impl Session {
    pub(super) fn new(combination: usize, now: Instant) -> Self {
        Self {
            combination,
            phase: Phase::Preparing,
            sides: [None; 2],
            gates: [Gate::default(), Gate::default()],
            told: COMBINATIONS[combination].map(nobody),
            asking: false,
            changed: false,
            waiting: Vec::new(),
            due: now,
            deletes: 0,
            bound_at: None,
            started: [false; 2],
            statistics: SessionStatistics::default(),
        }
    }

    /// Both sides, when both are known.
    pub(super) fn lease(&self, session: u64) -> Option<Lease> {
        let [a, b] = self.sides;
        Some(Lease {
            session,
            a: a?,
            b: b?,
        })
    }

    pub(super) fn set_gate(&mut self, side: Side, gate: Gate) {
        self.gates[index(side)] = gate;
        self.changed = true;
    }

    /// What rtpengine is told about a side.
    ///
    /// The address stays the one told before while it is still expected: another one would make
    /// rtpengine forget the source that it has learned.
    pub(super) fn description(&mut self, side: Side) -> Description {
        let at = index(side);
        let v4 = COMBINATIONS[self.combination][at];
        let gate = &self.gates[at];
        let mut expected = gate.expected.iter().map(IpAddr::to_canonical);
        if !expected.clone().any(|address| address == self.told[at]) {
            let first = expected.find(|address| address.is_ipv4() == v4);
            self.told[at] = first.unwrap_or(nobody(v4));
        }
        Description {
            address: SocketAddr::new(self.told[at], gate.port.unwrap_or(UNKNOWN_PORT)),
            active: self.phase == Phase::Bound,
            strict: gate.mode != GateMode::Any && self.told[at] != nobody(v4),
        }
    }

    /// An address of the family that the other side has.
    pub(super) fn towards(&self, side: Side) -> IpAddr {
        nobody(COMBINATIONS[self.combination][index(side.other())])
    }

    pub(super) fn final_statistics(&self, now: Instant) -> SessionStatistics {
        let since = |at: Instant| now.saturating_duration_since(at).as_millis();
        SessionStatistics {
            duration_ms: u64::try_from(self.bound_at.map_or(0, since)).unwrap_or(u64::MAX),
            ..self.statistics.clone()
        }
    }
}
