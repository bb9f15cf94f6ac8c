//! What `/metrics` and `/status` say about the protocol.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use serde::Serialize;

use super::listener::SharedServer;
use super::server::{COMMANDS, Server};

/// Adds the protocol's metrics.
pub fn register(registry: &mut Registry, server: SharedServer) {
    registry.register_collector(Box::new(NgCollector { server }));
}

/// The part `ng` of the status page.
#[derive(Debug, Serialize)]
pub struct Status {
    calls: usize,
    calls_begun: u64,
    /// Gates that let in any source.
    open_gates: u64,
    duplicates: u64,
    errors: u64,
    busy: u64,
    not_allowed: u64,
}

impl Status {
    /// Of this server.
    pub fn of(server: &Server) -> Self {
        let (counters, calls) = (server.counters(), server.calls().counters());
        Self {
            calls: server.calls().len(),
            calls_begun: calls.calls,
            open_gates: calls.open_gates,
            duplicates: counters.duplicates,
            errors: counters.errors,
            busy: counters.busy,
            not_allowed: counters.not_allowed,
        }
    }
}

#[derive(Debug)]
struct NgCollector {
    server: SharedServer,
}

impl Collector for NgCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (counters, calls, active, cookies, evicted) = self.server.with(|server| {
            (
                server.counters(),
                server.calls().counters(),
                server.calls().len(),
                server.cookies().len(),
                server.cookies().evicted(),
            )
        });
        for (name, help, value) in [
            ("sipcast_ng_calls", "Calls controlled over ng", active),
            (
                "sipcast_ng_replies_kept",
                "Replies kept for copies of their request",
                cookies,
            ),
        ] {
            let metric = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)?;
        }
        for (name, help, value) in [
            ("sipcast_ng_calls_begun", "Calls begun over ng", calls.calls),
            (
                "sipcast_ng_unanswered",
                "Offers that nobody answered or deleted",
                calls.unanswered,
            ),
            (
                "sipcast_ng_open_gates",
                "Gates that let in any source, since ng named none",
                calls.open_gates,
            ),
            (
                "sipcast_ng_hostile_addresses",
                "Descriptions with an address that no media can come from",
                calls.hostile_addresses,
            ),
            (
                "sipcast_ng_duplicates",
                "Copies of requests, answered again",
                counters.duplicates,
            ),
            (
                "sipcast_ng_replies_evicted",
                "Replies that went before their time",
                evicted,
            ),
            (
                "sipcast_ng_errors",
                "Requests answered with an error",
                counters.errors,
            ),
            (
                "sipcast_ng_busy",
                "Requests answered so that the proxy tries another relay",
                counters.busy,
            ),
        ] {
            let metric = ConstCounter::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)?;
        }
        let kind = ConstCounter::new(0_u64).metric_type();
        let help = "ng requests by command";
        let mut family = encoder.encode_descriptor("sipcast_ng_requests", help, None, kind)?;
        for (command, value) in COMMANDS.into_iter().zip(counters.requests) {
            ConstCounter::new(value).encode(family.encode_family(&[("command", command)])?)?;
        }
        let help = "ng datagrams that were no request";
        let mut family = encoder.encode_descriptor("sipcast_ng_dropped", help, None, kind)?;
        for (reason, value) in [
            ("not_allowed", counters.not_allowed),
            ("no_cookie", counters.no_cookie),
            ("undecodable", counters.undecodable),
        ] {
            ConstCounter::new(value).encode(family.encode_family(&[("reason", reason)])?)?;
        }
        Ok(())
    }
}
