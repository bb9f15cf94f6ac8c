//! What the worker's cores have done, as metrics and as sections of `/status`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde_json::{Value, json};
use sip::digest::{Algorithm, Digest};
use sip::proxy::Proxy;

use crate::cdr::Cdr;
use crate::cluster::Cluster;
use crate::location::Location;
use crate::media::Calls;
use crate::metrics::{Metrics, event, kind};
use crate::relays::rtpengine;
use crate::status::Status;

/// Calls and bindings listed in `/status`; the counts are always complete.
pub(super) const LISTED: usize = 1000;

/// Brings the counters up to date.
pub(super) fn publish(proxy: &Proxy, calls: &Calls, metrics: &Metrics) {
    for (name, total) in totals(proxy, calls) {
        let counter = metrics.events.get_or_create(&event(name));
        counter.inc_by(total.saturating_sub(counter.get()));
    }
    for (name, level) in levels(proxy, calls) {
        metrics.state.get_or_create(&kind(name)).set(level);
    }
}

/// Brings the page up to date.
pub(super) fn show(proxy: &Proxy, calls: &Calls, status: &Status, now: Instant) {
    status.set("calls", list_calls(calls, now));
    status.set("relays", list_relays(calls));
    status.set("authentication", show_authentication(proxy));
    status.set("groups", list_groups(proxy));
}

/// The same for the file that bindings are kept in.
pub(super) fn publish_location(location: &Location, metrics: &Metrics) {
    let counters = location.counters();
    for (name, total) in [
        ("location_written", &counters.written),
        ("location_forgotten", &counters.forgotten),
        ("location_coalesced", &counters.coalesced),
        ("location_commit", &counters.commits),
        ("location_commit_failed", &counters.failed),
        ("location_dropped", &counters.dropped),
        ("location_rewrite", &counters.rewrites),
    ] {
        let counter = metrics.events.get_or_create(&event(name));
        let total = total.load(Ordering::Relaxed);
        counter.inc_by(total.saturating_sub(counter.get()));
    }
    let waiting = i64::try_from(location.waiting()).unwrap_or(i64::MAX);
    let gauge = metrics.state.get_or_create(&kind("location_waiting"));
    gauge.set(waiting);
}

/// The same for what concentrators share.
pub(super) fn publish_cluster(cluster: &Cluster, proxy: &Proxy, metrics: &Metrics) {
    let counters = cluster.counters();
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (held, shared) = (proxy.held_counters(), proxy.registrar().counts().shared);
    for (name, total) in [
        ("cluster_written", load(&counters.written)),
        ("cluster_coalesced", load(&counters.coalesced)),
        ("cluster_not_deferred", load(&counters.not_deferred)),
        ("cluster_refused", load(&counters.refused)),
        ("cluster_retried", load(&counters.retried)),
        ("cluster_dropped", load(&counters.dropped)),
        ("cluster_heard", load(&counters.heard)),
        ("cluster_unreadable", load(&counters.unreadable)),
        ("cluster_newer_version", load(&counters.newer_version)),
        ("cluster_strange", load(&counters.strange)),
        ("cluster_stale", load(&counters.stale)),
        ("cluster_resumed", load(&counters.resumed)),
        ("cluster_compared", load(&counters.compared)),
        ("cluster_disconnected", load(&counters.disconnected)),
        ("cluster_connect_failed", load(&counters.connect_failed)),
        ("cluster_overwritten", load(&counters.overwritten)),
        ("register_acknowledged", held.acknowledged),
        ("register_unacknowledged", held.unacknowledged),
        ("register_unkept", held.unkept),
        ("register_crowded", held.crowded),
        ("binding_merged", shared.merged),
        ("binding_merge_known", shared.known),
        ("binding_merge_older", shared.older),
        ("binding_merge_no_room", shared.no_room),
        ("binding_past_forgotten", shared.forgotten),
    ] {
        let counter = metrics.events.get_or_create(&event(name));
        counter.inc_by(total.saturating_sub(counter.get()));
    }
    let level = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let more = [
        ("registers_held", level(proxy.held())),
        ("bindings_past", level(shared.past)),
    ];
    for (name, level) in cluster.levels().into_iter().chain(more) {
        metrics.state.get_or_create(&kind(name)).set(level);
    }
}

/// The same for records of calls.
pub(super) fn publish_records(cdr: &Cdr, metrics: &Metrics) {
    let (counters, ledger) = (cdr.counters(), cdr.ledger_counters());
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    for (name, total) in [
        ("cdr_written", load(&counters.written)),
        ("cdr_dropped", load(&counters.dropped)),
        ("cdr_failed", load(&counters.failed)),
        ("cdr_untracked", ledger.untracked),
        ("cdr_challenged", ledger.challenged),
        ("cdr_unknown_call", ledger.unknown),
        ("cdr_lost", ledger.lost),
    ] {
        let counter = metrics.events.get_or_create(&event(name));
        counter.inc_by(total.saturating_sub(counter.get()));
    }
    let calls = i64::try_from(cdr.calls()).unwrap_or(i64::MAX);
    metrics.state.get_or_create(&kind("cdr_calls")).set(calls);
}

type Totals = Vec<(&'static str, u64)>;

fn totals(proxy: &Proxy, calls: &Calls) -> Totals {
    [
        registrar_totals(proxy),
        sip_totals(proxy),
        authentication_totals(proxy),
        media_totals(calls),
    ]
    .concat()
}

fn registrar_totals(proxy: &Proxy) -> Totals {
    let bindings = proxy.registrar().counts();
    vec![
        ("binding_added", bindings.added),
        ("binding_refreshed", bindings.refreshed),
        ("binding_removed", bindings.removed),
        ("binding_expired", bindings.expired),
        ("binding_restored", bindings.restored),
        ("binding_unreachable", bindings.unreachable),
        ("ping", bindings.pings),
        ("ping_answered", bindings.pings_answered),
        ("ping_strange", bindings.pings_strange),
        ("register_refused", bindings.refused),
    ]
}

fn sip_totals(proxy: &Proxy) -> Totals {
    let sip = proxy.counters();
    vec![
        ("unparsable_message", sip.unparsable),
        ("request_rejected", sip.rejected),
        ("malformed_response", sip.malformed_responses),
        ("unmatched_response", sip.unmatched_responses),
        ("forged_response", sip.forged_responses),
        ("stateless_response", sip.stateless_responses),
        ("stateless_dropped", sip.stateless_dropped),
        ("stateless_cancel", sip.stateless_cancels),
        ("stateless_ack", sip.stateless_acks),
        ("answered_elsewhere", sip.answered_elsewhere),
        ("ended_elsewhere", sip.ended_elsewhere),
        ("waited_for_return", sip.waited_for_return),
        ("not_returned", sip.not_returned),
        ("sent_after_return", sip.sent_after_return),
        ("foreign_cancel", sip.foreign_cancels),
        ("foreign_domain", sip.foreign),
        ("user_not_found", sip.not_found),
        ("wrong_scheme", sip.wrong_scheme),
        ("overload", sip.overload),
        ("shed", sip.shed),
        ("source_shed", sip.source_shed),
        ("bad_cookie", sip.bad_cookies),
        ("merged_request", sip.merged),
        ("stray_ack", sip.stray_acks),
        ("call_path_drift", sip.path_drift),
        ("call_relay_lost", sip.media_lost),
        ("flow_followed", sip.followed_flows),
        ("relay_denied", sip.routing.relay_denied),
        ("routed", sip.routing.routed),
        ("fail_over", sip.routing.fail_overs),
        ("large_request_over_tcp", sip.routing.large_over_tcp),
        ("large_request_fell_back", sip.routing.large_fell_back),
        ("large_request_over_udp", sip.routing.large_over_udp),
        ("next_hop_unresolved", sip.routing.unresolved),
        ("dns_timeout", sip.routing.dns_timeouts),
        ("probe", sip.routing.probes),
        ("probe_failed", sip.routing.probes_failed),
        ("member_health_changed", sip.routing.health_changes),
        ("path_added", sip.routing.paths),
        ("path_forged", sip.routing.forged_paths),
        ("path_flow_dead", sip.routing.dead_flows),
        ("call", sip.calls),
        ("call_answered", sip.answered),
        ("call_hung_up", sip.hung_up),
        ("call_not_remembered", sip.not_remembered),
        ("media_wait", sip.media_waits),
        ("media_wait_expired", sip.media_waits_expired),
    ]
}

fn authentication_totals(proxy: &Proxy) -> Totals {
    let authentication = proxy.counters().authentication;
    vec![
        ("authentication_ok", authentication.ok),
        ("authentication_trusted", authentication.trusted),
        ("authentication_foreign", authentication.foreign),
        ("authentication_challenged", authentication.challenged),
        ("authentication_stale", authentication.stale),
        ("authentication_wrong", authentication.wrong),
        ("authentication_replayed", authentication.replayed),
        ("authentication_malformed", authentication.malformed),
        ("authentication_wrong_uri", authentication.wrong_uri),
        ("refused_identity", authentication.refused_identity),
        ("refused_foreign_caller", authentication.refused_foreign),
        ("unanswered_stranger", authentication.unanswered),
    ]
}

fn media_totals(calls: &Calls) -> Totals {
    let (media, relays) = (calls.counters(), calls.relays.counters());
    vec![
        ("media_relayed", media.relayed),
        ("media_direct", media.direct),
        ("media_unplaced", media.unplaced),
        ("media_unbridged", media.unbridged),
        ("media_fallback", media.fallback),
        ("media_chained", media.chained),
        ("media_unchained", media.unchained),
        ("media_pinned", media.pinned),
        ("media_released_by_cookie", media.released_by_cookie),
        ("media_line_unplaced", media.lines_unplaced),
        ("media_hostile_address", media.hostile_addresses),
        ("media_offer_rolled_back", media.rolled_back),
        ("media_call_adopted", media.adopted),
        ("media_answered_by_cookie", media.answered_by_cookie),
        ("bad_sdp", media.bad_sdp),
        ("media_too_many_lines", media.too_many_lines),
        ("media_offer_refused", media.offers_refused),
        ("media_answer_unchanged", media.answers_unchanged),
        ("lease_taken", relays.leases_taken),
        ("lease_relay_not_connected", relays.not_connected),
        ("lease_relay_quiet", relays.quiet_relay),
        ("lease_stock_empty", relays.stock_empty),
        ("lease_wrong_family", relays.wrong_family),
        ("lease_relay_draining", relays.draining),
        ("lease_unknown_relay", relays.unknown_relay),
        ("relay_unknown_agent", relays.unknown_agent),
        ("relay_violation", relays.violations),
        ("relay_silent", relays.silent),
        ("relay_quiet", relays.quiet),
        ("relay_bad_address", relays.bad_addresses),
        ("relay_bad_port", relays.bad_ports),
        ("lease_surplus", relays.surplus_leases),
        ("lease_returned", relays.leases_returned),
        ("lease_chain_taken", relays.chains),
        ("stock_change", relays.stock_changes),
        ("stock_refused", relays.stock_refused),
        ("stock_refused_no_ports", relays.no_ports),
        ("stock_refused_bind_failed", relays.bind_failed),
        ("stock_refused_limit_reached", relays.limit_reached),
        ("relay_request_failed", relays.failed),
        ("relay_request_expired", relays.expired),
        ("relay_stray_answer", relays.stray),
        ("relay_session_lost", relays.sessions_lost),
        ("relay_session_ended_unheard", relays.unheard),
        ("relay_gone", relays.gone),
    ]
}

fn levels(proxy: &Proxy, calls: &Calls) -> Vec<(&'static str, i64)> {
    let level = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let leases = calls.relays.agents().map(|agent| agent.leases).sum();
    let digest = proxy.digest();
    vec![
        (
            "users",
            level(digest.map_or(0, |digest| digest.users().len())),
        ),
        (
            "nonces_in_use",
            level(digest.map_or(0, Digest::nonces_in_use)),
        ),
        ("requests_in_progress", level(proxy.contexts())),
        ("waiting_for_dns", level(proxy.waiting())),
        ("waiting_for_relay", level(proxy.waiting_for_media())),
        ("waiting_for_return", level(proxy.waiting_for_return())),
        (
            "members_down",
            level(
                proxy
                    .groups()
                    .health()
                    .filter(|(.., health)| health.down)
                    .count(),
            ),
        ),
        ("bindings", level(proxy.registrar().counts().bindings)),
        ("relayed_calls", level(calls.iter().count())),
        ("remembered_calls", level(proxy.remembered())),
        ("leases", level(leases)),
    ]
}

/// `null` where everybody may do everything.
fn show_authentication(proxy: &Proxy) -> Value {
    let Some(digest) = proxy.digest() else {
        return Value::Null;
    };
    let algorithms = digest.users().offered().map(Algorithm::name);
    json!({
        "realm": digest.realm(),
        "users": digest.users().len(),
        "algorithms": algorithms.collect::<Vec<_>>(),
        "nonces_in_use": digest.nonces_in_use(),
    })
}

fn list_calls(calls: &Calls, now: Instant) -> Value {
    calls
        .iter()
        .take(LISTED)
        .map(|(session, call)| {
            json!({
                "call_id": call.call_id,
                "tunnel_key": session.relay.key.to_string(),
                "mark": session.relay.mark.number(),
                "session": session.session,
                "far_mark": call.far_relay().map(|relay| relay.mark.number()),
                "far_tunnel_key": call.far_relay().map(|relay| relay.key.to_string()),
                "answered": call.answered,
                "age_ms": millis(now, call.started),
            })
        })
        .collect()
}

fn list_groups(proxy: &Proxy) -> Value {
    proxy
        .groups()
        .health()
        .map(|(group, member, health)| {
            json!({
                "group": group.name,
                "member": String::from_utf8_lossy(&member.uri),
                "up": !health.down,
                "missed": health.missed,
                "probes_answered": health.answered,
                "probes_failed": health.failed,
            })
        })
        .collect()
}

fn list_relays(calls: &Calls) -> Value {
    calls
        .relays
        .agents()
        .map(|agent| {
            json!({
                "agent": agent.name,
                "kind": rtpengine::kind_of(agent.name),
                "up": agent.up,
                "draining": agent.draining,
                "quiet": agent.quiet,
                "lacks": agent.lacks.map(|code| code.to_string()),
                "leases": agent.leases,
                "stock": agent.wanted,
                "sessions": agent.sessions,
            })
        })
        .collect()
}

pub(super) fn millis(later: Instant, earlier: Instant) -> u64 {
    let between = later.saturating_duration_since(earlier).as_millis();
    u64::try_from(between).unwrap_or(u64::MAX)
}
