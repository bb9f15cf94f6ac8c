//! What the relay can tell about itself: figures of a side, totals for metrics, the status page.

use std::time::Instant;

use serde::Serialize;
use wire::relay_control::{
    Counted, Quality, Rejected, SessionStatistics, Side, SideStatistics, Silence,
};

use super::{Relay, Troubles};
use crate::session::{Component, Session, Traffic};

/// Sessions that the status page lists.
const MAX_LISTED: usize = 200;

/// Figures of all sessions of this run together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// RTP, both sides.
    pub rtp: Counted,
    /// RTCP, both sides.
    pub rtcp: Counted,
    /// Refused, by reason.
    pub rejected: Rejected,
    /// Packets that waited for the other side's peer.
    pub waited: u64,
    /// RTP packets missing on their way to us.
    pub lost: u64,
    /// Times another source took over.
    pub relatched: u64,
}

/// Sessions that have ended for want of media, by the limit that they reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Silences {
    /// Nothing either way.
    pub idle: u64,
    /// A side never sent.
    pub half_open: u64,
    /// A side stopped.
    pub one_way: u64,
    /// On hold for too long.
    pub held: u64,
}

impl Silences {
    pub(super) const fn count(&mut self, silence: Silence) {
        match silence {
            Silence::Idle | Silence::Other(_) => self.idle += 1,
            Silence::HalfOpen => self.half_open += 1,
            Silence::OneWay => self.one_way += 1,
            Silence::Held => self.held += 1,
        }
    }
}

/// How things stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Concentrators that have welcomed us.
    pub concentrators_up: u64,
    /// Sessions without a call.
    pub leases: u64,
    /// Sessions with a call.
    pub sessions: u64,
    /// Port pairs that could be taken.
    pub ports_free: u64,
    /// Port pairs resting after use.
    pub ports_quarantined: u64,
    /// Packets held now.
    pub held: u64,
    /// Events that found no room while a concentrator was away.
    pub events_lost: u64,
}

/// The status page.
#[derive(Debug, Serialize)]
pub struct Status {
    name: String,
    epoch: u64,
    media_addresses: Vec<String>,
    draining: bool,
    concentrators: Vec<ConcentratorStatus>,
    ports_free: usize,
    ports_in_use: usize,
    ports_quarantined: usize,
    /// Sessions at a time, leases included; none where only the ports are a limit.
    max_sessions: Option<usize>,
    /// Sessions that were wanted and not prepared.
    not_prepared: NotPrepared,
    leases: u64,
    /// Sessions with a call that has not ended.
    sessions_bound: usize,
    sessions: Vec<SessionStatus>,
    /// Sessions that the list leaves out.
    sessions_omitted: u64,
}

#[derive(Debug, Serialize)]
struct NotPrepared {
    no_ports: u64,
    bind_failed: u64,
    limit_reached: u64,
}

#[derive(Debug, Serialize)]
struct ConcentratorStatus {
    name: String,
    connected: bool,
    unused_leases: u32,
}

#[derive(Debug, Serialize)]
struct SessionStatus {
    session: u64,
    call: String,
    state: &'static str,
    duration_ms: u64,
    a: SideStatus,
    b: SideStatus,
}

#[derive(Debug, Serialize)]
struct SideStatus {
    rtp_port: u16,
    latched_rtp: Option<String>,
    latched_rtcp: Option<String>,
    rtp_packets_in: u64,
    rtp_bytes_in: u64,
    /// Of the packets, those that XDP has relayed.
    rtp_packets_xdp: u64,
    /// XDP relays what this side sends.
    xdp: bool,
    rtp_packets_out: u64,
    rtp_bytes_out: u64,
    rtcp_packets_in: u64,
    rtcp_packets_out: u64,
    lost: u64,
    jitter_ms: f64,
    waited: u64,
    relatched: u32,
    rejected_gate: u64,
    rejected_stranger: u64,
    rejected_ssrc: u64,
    rejected_late: u64,
    rejected_not_rtp: u64,
    hold_overflow: u64,
    send_failed: u64,
    /// Signalling has said that this side sends nothing.
    held: bool,
    /// Of what this side has sent; none where no RTP came.
    r_factor: Option<u8>,
    mos: Option<f64>,
    burst_density: Option<u8>,
    burst_ms: Option<u16>,
    gap_density: Option<u8>,
    gap_ms: Option<u16>,
}

impl Totals {
    pub(super) fn add(&mut self, stats: &SessionStatistics) {
        for side in [&stats.a, &stats.b] {
            add_counted(&mut self.rtp, &side.rtp);
            add_counted(&mut self.rtcp, &side.rtcp);
            let (sum, more) = (&mut self.rejected, &side.rejected);
            sum.gate += more.gate;
            sum.latched += more.latched;
            sum.malformed += more.malformed;
            sum.no_peer += more.no_peer;
            sum.limit += more.limit;
            sum.unbound += more.unbound;
            sum.send_failed += more.send_failed;
            sum.ssrc += more.ssrc;
            sum.late += more.late;
            self.waited += side.waited;
            self.lost += side.lost;
            self.relatched += u64::from(side.relatched);
        }
    }
}

impl Relay {
    /// Figures of all sessions, those that have ended included.
    pub fn totals(&self, now: Instant) -> Totals {
        let mut totals = self.ended;
        for entry in self.sessions.values() {
            totals.add(&entry.statistics(now));
        }
        totals
    }

    /// How things stand.
    pub fn gauges(&self) -> Gauges {
        let leases = self
            .sessions
            .values()
            .filter(|entry| entry.session.is_lease())
            .count();
        let links = || self.links.iter().map(|stocked| &stocked.link);
        Gauges {
            concentrators_up: links().filter(|link| link.is_up()).count() as u64,
            leases: leases as u64,
            sessions: (self.sessions.len() - leases) as u64,
            ports_free: self.ports.free() as u64,
            ports_quarantined: self.ports.quarantined() as u64,
            held: self.hold.used() as u64,
            events_lost: links().map(|link| link.backlog_lost()).sum(),
        }
    }

    /// Sessions that have ended for want of media.
    pub const fn silences(&self) -> Silences {
        self.ended_silent
    }

    /// What went wrong so far.
    pub const fn troubles(&self) -> Troubles {
        self.troubles
    }

    /// For the status page: the sessions with a call, the oldest first.
    pub fn status(&self, now: Instant) -> Status {
        let gauges = self.gauges();
        let mut bound: Vec<_> = self
            .sessions
            .iter()
            .filter(|(_, entry)| !entry.session.is_lease())
            .collect();
        bound.sort_unstable_by_key(|(session, _)| **session);
        let sessions = bound.iter().take(MAX_LISTED).map(|(session, entry)| {
            let stats = entry.statistics(now);
            let side = |side, figures, port| {
                let is_offloaded = entry.offloaded(**session).any(|port| port.side == side);
                side_status(&entry.session, side, figures, port, is_offloaded)
            };
            SessionStatus {
                session: session.0,
                call: entry.call.clone(),
                state: if entry.session.is_lingering() {
                    "lingering"
                } else {
                    "bound"
                },
                duration_ms: stats.duration_ms,
                a: side(Side::A, &stats.a, entry.lease.a.rtp),
                b: side(Side::B, &stats.b, entry.lease.b.rtp),
            }
        });
        Status {
            name: self.config.name.clone(),
            epoch: self.config.epoch,
            media_addresses: self
                .config
                .addresses
                .iter()
                .map(ToString::to_string)
                .collect(),
            draining: self.draining,
            concentrators: self
                .links
                .iter()
                .map(|stocked| ConcentratorStatus {
                    name: stocked.link.name().to_owned(),
                    connected: stocked.link.is_up(),
                    unused_leases: stocked.unused.iter().sum(),
                })
                .collect(),
            ports_free: self.ports.free(),
            ports_in_use: self.ports.in_use(),
            ports_quarantined: self.ports.quarantined(),
            max_sessions: Some(self.config.max_sessions).filter(|most| *most < usize::MAX),
            not_prepared: NotPrepared {
                no_ports: self.troubles.no_ports,
                bind_failed: self.troubles.open_failed,
                limit_reached: self.troubles.limit_reached,
            },
            leases: gauges.leases,
            sessions_bound: bound
                .iter()
                .filter(|(_, entry)| !entry.session.is_lingering())
                .count(),
            sessions: sessions.collect(),
            sessions_omitted: bound.len().saturating_sub(MAX_LISTED) as u64,
        }
    }
}

/// The figures of one side as the protocol carries them.
pub(super) fn side_statistics(session: &Session, side: Side, send_failed: u64) -> SideStatistics {
    let counters = session.counters(side);
    let reception = session.reception(side);
    SideStatistics {
        rtp: counted(counters.rtp_in, counters.rtp_out),
        rtcp: counted(counters.rtcp_in, counters.rtcp_out),
        lost: reception.lost(),
        jitter: reception.jitter_units(),
        rejected: Rejected {
            gate: counters.rejected_gate,
            latched: counters.rejected_stranger,
            malformed: counters.rejected_not_rtp,
            no_peer: counters.hold_overflow,
            ssrc: counters.rejected_ssrc,
            late: counters.rejected_late,
            send_failed,
            ..Rejected::default()
        },
        latched_rtp: session.latched(side, Component::Rtp),
        latched_rtcp: session.latched(side, Component::Rtcp),
        relatched: u32::try_from(counters.moved).unwrap_or(u32::MAX),
        held: session.is_held(side),
        waited: counters.held,
        quality: reception.quality(),
    }
}

fn side_status(
    session: &Session,
    side: Side,
    stats: &SideStatistics,
    rtp_port: u16,
    is_offloaded: bool,
) -> SideStatus {
    let of = |part: fn(Quality) -> u8| stats.quality.map(part);
    SideStatus {
        rtp_port,
        latched_rtp: stats.latched_rtp.map(|address| address.to_string()),
        latched_rtcp: stats.latched_rtcp.map(|address| address.to_string()),
        rtp_packets_in: stats.rtp.packets_in,
        rtp_bytes_in: stats.rtp.bytes_in,
        rtp_packets_xdp: session.counters(side).rtp_by_xdp,
        xdp: is_offloaded,
        rtp_packets_out: stats.rtp.packets_out,
        rtp_bytes_out: stats.rtp.bytes_out,
        rtcp_packets_in: stats.rtcp.packets_in,
        rtcp_packets_out: stats.rtcp.packets_out,
        lost: stats.lost,
        jitter_ms: session.reception(side).jitter().as_secs_f64() * 1000.0,
        waited: stats.waited,
        relatched: stats.relatched,
        rejected_gate: stats.rejected.gate,
        rejected_stranger: stats.rejected.latched,
        rejected_ssrc: stats.rejected.ssrc,
        rejected_late: stats.rejected.late,
        rejected_not_rtp: stats.rejected.malformed,
        hold_overflow: stats.rejected.no_peer,
        send_failed: stats.rejected.send_failed,
        held: stats.held,
        r_factor: of(|quality| quality.r_factor),
        mos: stats
            .quality
            .map(|quality| f64::from(quality.mos_x100) / 100.0),
        burst_density: of(|quality| quality.burst_density),
        burst_ms: stats.quality.map(|quality| quality.burst_ms),
        gap_density: of(|quality| quality.gap_density),
        gap_ms: stats.quality.map(|quality| quality.gap_ms),
    }
}

const fn counted(received: Traffic, sent: Traffic) -> Counted {
    Counted {
        packets_in: received.packets,
        bytes_in: received.bytes,
        packets_out: sent.packets,
        bytes_out: sent.bytes,
    }
}

fn add_counted(sum: &mut Counted, more: &Counted) {
    sum.packets_in += more.packets_in;
    sum.bytes_in += more.bytes_in;
    sum.packets_out += more.packets_out;
    sum.bytes_out += more.bytes_out;
}
