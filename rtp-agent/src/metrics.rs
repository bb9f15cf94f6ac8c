//! What `/metrics` says, computed from the relay at each scrape.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tunnel_io::xdp::relay_tables::Outcome;

use crate::fastpath::Figures;
use crate::relay::Troubles;
use crate::relay::report::{Gauges, Silences, Totals};
use crate::sockets::{SharedDrops, SharedEngine, SocketCounts, SocketDrops, now};
use crate::standby::link::SharedPair;
use crate::standby::pair::Pair;

/// A registry that asks the relay.
pub fn registry(engine: SharedEngine, pair: Option<SharedPair>) -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(RelayCollector { engine, pair }));
    registry
}

#[derive(Debug)]
struct RelayCollector {
    engine: SharedEngine,
    pair: Option<SharedPair>,
}

/// Name, help text, value.
type Row = (&'static str, &'static str, u64);

impl Collector for RelayCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (totals, gauges, troubles) = self
            .engine
            .with_figures(|relay| (relay.totals(now()), relay.gauges(), relay.troubles()));
        let drops = self.engine.drops();
        let ports = self.engine.ports();
        let sockets = ports.counts();
        let shared = ports.drops();
        let pair = self.pair.as_ref();
        let (pair_gauges, pair_counters) = pair
            .map(|pair| pair.look(|pair| (pair_gauge_rows(pair), pair_counter_rows(pair))))
            .unzip();
        let rows = gauge_rows(&gauges)
            .into_iter()
            .chain(socket_rows(sockets, shared.is_some()));
        for (name, help, value) in rows.chain(pair_gauges.into_iter().flatten()) {
            let metric = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)?;
        }
        let counters = counter_rows(&totals, &gauges, &troubles).into_iter();
        for (name, help, value) in counters.chain(pair_counters.into_iter().flatten()) {
            let metric = ConstCounter::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)?;
        }
        let name = "sipcast_relay_packets_rejected";
        let kind = ConstCounter::new(0_u64).metric_type();
        let mut family = encoder.encode_descriptor(name, "Packets dropped", None, kind)?;
        let rows = rejected_rows(&totals, &troubles, drops).into_iter();
        for (reason, value) in rows.chain(shared.map(shared_rows).into_iter().flatten()) {
            let labels = [("reason", reason)];
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        if let Some(figures) = self.engine.fast_path_figures() {
            encode_fast_path(&mut encoder, &figures)?;
        }
        let name = "sipcast_relay_sessions_timed_out";
        let help = "Sessions ended for want of media";
        let mut family = encoder.encode_descriptor(name, help, None, kind)?;
        for (limit, value) in silence_rows(&self.engine.with(|relay| relay.silences())) {
            let labels = [("limit", limit)];
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// Only where XDP runs.
fn encode_fast_path(
    encoder: &mut DescriptorEncoder<'_>,
    figures: &Figures,
) -> Result<(), std::fmt::Error> {
    let counter = ConstCounter::new(0_u64).metric_type();
    let name = "sipcast_relay_xdp_packets";
    let help = "Packets that the XDP program has seen, by verdict and reason";
    let mut family = encoder.encode_descriptor(name, help, None, counter)?;
    let mut bytes = 0;
    for (outcome, count) in Outcome::ALL.into_iter().zip(&figures.counts) {
        let (verdict, reason) = outcome.labels();
        let labels = [("verdict", verdict), ("reason", reason)];
        ConstCounter::new(count.packets).encode(family.encode_family(&labels)?)?;
        if outcome.is_forwarded() {
            bytes += count.bytes;
        }
    }
    let name = "sipcast_relay_xdp_bytes";
    let help = "Bytes of the IP packets that the XDP program has relayed, as they came";
    let family = encoder.encode_descriptor(name, help, None, counter)?;
    ConstCounter::new(bytes).encode(family)?;
    let metric = ConstGauge::new(i64::try_from(figures.entries).unwrap_or(i64::MAX));
    let name = "sipcast_relay_xdp_streams";
    let help = "Streams that the XDP program relays";
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)?;
    let name = "sipcast_relay_xdp_attached";
    let help = "1 while the XDP program is on this interface";
    let mut family = encoder.encode_descriptor(name, help, None, metric.metric_type())?;
    for (interface, is_attached) in &figures.attached {
        let labels = [("interface", interface.as_str())];
        ConstGauge::new(i64::from(*is_attached)).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

#[rustfmt::skip]
fn gauge_rows(gauges: &Gauges) -> [Row; 6] {
    [
        ("sipcast_relay_concentrators_connected", "Concentrators that have welcomed us", gauges.concentrators_up),
        ("sipcast_relay_leases", "Sessions ready for calls", gauges.leases),
        ("sipcast_relay_sessions", "Sessions of calls", gauges.sessions),
        ("sipcast_relay_port_pairs_free", "Port pairs that could be used", gauges.ports_free),
        ("sipcast_relay_port_pairs_quarantined", "Port pairs resting after use", gauges.ports_quarantined),
        ("sipcast_relay_packets_waiting", "Packets held for the other party", gauges.held),
    ]
}

fn socket_rows(sockets: SocketCounts, are_shared: bool) -> [Row; 3] {
    [
        (
            "sipcast_relay_sockets_shared",
            "1 where all media ports share few sockets",
            u64::from(are_shared),
        ),
        (
            "sipcast_relay_sockets_open",
            "Media sockets of sessions and leases, or those that they share",
            sockets.open,
        ),
        (
            "sipcast_relay_sockets_resting",
            "Media sockets kept for the next session with the same port",
            sockets.resting,
        ),
    ]
}

#[rustfmt::skip]
fn counter_rows(totals: &Totals, gauges: &Gauges, troubles: &Troubles) -> [Row; 15] {
    [
        ("sipcast_relay_rtp_packets_received", "RTP packets accepted", totals.rtp.packets_in),
        ("sipcast_relay_rtp_packets_sent", "RTP packets sent", totals.rtp.packets_out),
        ("sipcast_relay_rtp_bytes_received", "Bytes of RTP packets accepted", totals.rtp.bytes_in),
        ("sipcast_relay_rtp_bytes_sent", "Bytes of RTP packets sent", totals.rtp.bytes_out),
        ("sipcast_relay_rtcp_packets_received", "RTCP packets accepted", totals.rtcp.packets_in),
        ("sipcast_relay_rtcp_packets_sent", "RTCP packets sent", totals.rtcp.packets_out),
        ("sipcast_relay_packets_held", "Packets that waited for the other party", totals.waited),
        ("sipcast_relay_sources_moved", "Times that a new source took over a side", totals.relatched),
        ("sipcast_relay_no_ports", "Leases not prepared for want of ports", troubles.no_ports),
        ("sipcast_relay_open_failed", "Leases whose ports the system refused", troubles.open_failed),
        ("sipcast_relay_limit_reached", "Leases not prepared because of max_sessions", troubles.limit_reached),
        ("sipcast_relay_control_links_closed", "Control links closed for a fault", troubles.links_closed),
        ("sipcast_relay_requests_failed", "Control requests not carried out", troubles.requests_failed),
        ("sipcast_relay_messages_not_understood", "Control messages of a later version, or damaged", troubles.not_understood),
        ("sipcast_relay_events_lost", "Events dropped while a concentrator was away", gauges.events_lost),
    ]
}

#[rustfmt::skip]
fn pair_gauge_rows(pair: &Pair) -> [Row; 4] {
    [
        ("sipcast_relay_standby_active", "1 while this agent of a pair is in charge", u64::from(pair.is_active())),
        ("sipcast_relay_standby_connected", "1 while the other agent is connected", u64::from(pair.is_connected())),
        ("sipcast_relay_standby_in_step", "1 while both agents have the same sessions", u64::from(pair.is_in_step())),
        ("sipcast_relay_standby_term", "Term of the table of sessions, which grows with each take-over", pair.term()),
    ]
}

#[rustfmt::skip]
fn pair_counter_rows(pair: &Pair) -> [Row; 10] {
    let counters = pair.counters();
    [
        ("sipcast_relay_standby_take_overs", "Times this agent became active", counters.take_overs),
        ("sipcast_relay_standby_snapshots_sent", "Snapshots of the table begun", counters.snapshots_sent),
        ("sipcast_relay_standby_snapshots_received", "Snapshots received to their end", counters.snapshots_received),
        ("sipcast_relay_standby_journal_overflows", "Snapshots for want of room in the journal", counters.journal_overflows),
        ("sipcast_relay_standby_sessions_sent", "Sessions told, repetitions included", counters.sessions_sent),
        ("sipcast_relay_standby_sessions_received", "Sessions heard and kept", counters.sessions_received),
        ("sipcast_relay_standby_sessions_refused", "Sessions heard that could not be kept", counters.sessions_refused),
        ("sipcast_relay_standby_fenced", "Messages with sessions of an agent that is not in charge", counters.fenced),
        ("sipcast_relay_standby_messages_not_understood", "Messages of a later version, or damaged", counters.not_understood),
        ("sipcast_relay_standby_links_closed", "Connections of the pair closed for a fault", counters.links_closed),
    ]
}

const fn rejected_rows(
    totals: &Totals,
    troubles: &Troubles,
    drops: SocketDrops,
) -> [(&'static str, u64); 9] {
    [
        ("gate", totals.rejected.gate),
        ("stranger", totals.rejected.latched),
        ("ssrc", totals.rejected.ssrc),
        ("late", totals.rejected.late),
        ("not_rtp", totals.rejected.malformed),
        ("hold_overflow", totals.rejected.no_peer),
        ("oversize", drops.oversize),
        ("send_failed", drops.send_failed),
        ("no_session", troubles.no_session),
    ]
}

/// Only where ports share sockets: otherwise the kernel counts these socket by socket.
const fn shared_rows(drops: SharedDrops) -> [(&'static str, u64); 3] {
    [
        ("unopened_port", drops.unopened),
        ("flood", drops.flood),
        ("receive_queue", drops.queue),
    ]
}

const fn silence_rows(silences: &Silences) -> [(&'static str, u64); 4] {
    [
        ("idle", silences.idle),
        ("half_open", silences.half_open),
        ("one_way", silences.one_way),
        ("held", silences.held),
    ]
}
