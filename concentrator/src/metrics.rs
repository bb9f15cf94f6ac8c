//! What the concentrator counts, by name. Every name starts with `sipcast_concentrator_`.
//!
//! The hot paths take their counters out of the families once, at the start. What the worker's
//! cores count goes to [`Metrics::events`] and [`Metrics::state`], one label value for each field
//! of theirs.

use std::borrow::Cow;
use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use sip::hop::Transport;

/// All counters and gauges.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Packets taken out of a tunnel, by edge.
    pub tunnel_packets: Family<Label, Counter>,
    /// Packets refused at the tunnel's end, by the test that failed.
    pub tunnel_refused: Family<Label, Counter>,
    /// Accepted packets that the kernel did not take from us, by reason.
    pub tunnel_undelivered: Family<Label, Counter>,
    /// Replies sent back through a tunnel, by edge.
    pub tunnel_returned: Family<Label, Counter>,
    /// Replies that were to go back through a tunnel and did not, by reason.
    pub tunnel_unreturned: Family<Label, Counter>,
    /// Probes of edges, by what became of them.
    pub probes: Family<Label, Counter>,
    /// What went over the links with other concentrators, or did not, by what it was.
    pub core_link: Family<Label, Counter>,
    /// Segments of connections that another concentrator has, sent there.
    pub second_chances: Counter,
    /// Flows in the table.
    pub flows: Gauge,
    /// Path changes of live flows: route flips.
    pub path_drift: Counter,
    /// Bindings, by the edge that they were seen with last.
    pub edge_bindings: Family<Label, Gauge>,
    /// Bindings that came to an edge from another path.
    pub binding_path_changes: Family<Label, Counter>,
    /// Flows that gave way to newer ones because the table is full.
    pub flows_evicted: Counter,
    /// SIP messages received, by transport.
    pub sip_received: Family<Label, Counter>,
    /// SIP messages sent, by transport.
    pub sip_sent: Family<Label, Counter>,
    /// Keepalives received, by transport.
    pub sip_keepalives: Family<Label, Counter>,
    /// STUN Binding requests answered.
    pub stun_answered: Counter,
    /// Messages dropped before anybody read them, by reason.
    pub sip_dropped: Family<Label, Counter>,
    /// Messages not sent, by reason.
    pub sip_unsent: Family<Label, Counter>,
    /// Open connections, by transport.
    pub connections: Family<Label, Gauge>,
    /// Connections not taken, by reason.
    pub connections_refused: Family<Label, Counter>,
    /// Connections that ended, by reason.
    pub connections_closed: Family<Label, Counter>,
    /// Certificates read again: `taken` or `refused`.
    pub tls_reloads: Family<Label, Counter>,
    /// Relay-control connections and messages not taken, by reason.
    pub relay_control_refused: Family<Label, Counter>,
    /// What passed between us and each rtpengine, by event.
    pub rtpengine: Family<[(&'static str, Cow<'static, str>); 2], Counter>,
    /// What the worker's cores did, by event.
    pub events: Family<Label, Counter>,
    /// What the worker's cores hold, by kind.
    pub state: Family<Label, Gauge>,
}

impl Metrics {
    /// Makes them and adds them to the registry.
    pub fn register(registry: &mut Registry) -> Arc<Self> {
        let metrics = Arc::new(Self::default());
        let registry = registry.sub_registry_with_prefix("sipcast_concentrator");
        metrics.register_tunnel(registry);
        metrics.register_transports(registry);
        registry.register(
            "relay_control_refused",
            "Relay-control connections and messages not taken",
            metrics.relay_control_refused.clone(),
        );
        registry.register(
            "rtpengine",
            "What passed between us and the relays that are an rtpengine",
            metrics.rtpengine.clone(),
        );
        registry.register("events", "What the SIP core did", metrics.events.clone());
        registry.register("state", "What the SIP core holds", metrics.state.clone());
        metrics
    }

    fn register_tunnel(&self, registry: &mut Registry) {
        registry.register(
            "tunnel_packets",
            "Packets taken out of the tunnel",
            self.tunnel_packets.clone(),
        );
        registry.register(
            "tunnel_refused",
            "Packets refused at the tunnel's end, by the test that failed",
            self.tunnel_refused.clone(),
        );
        registry.register(
            "tunnel_undelivered",
            "Accepted packets that the kernel did not take",
            self.tunnel_undelivered.clone(),
        );
        registry.register(
            "tunnel_returned",
            "Packets to user agents sent back through the tunnel",
            self.tunnel_returned.clone(),
        );
        registry.register(
            "tunnel_unreturned",
            "Packets to user agents that were to go back through the tunnel and did not",
            self.tunnel_unreturned.clone(),
        );
        registry.register(
            "probes",
            "Probes of edges, by what became of them",
            self.probes.clone(),
        );
        registry.register(
            "core_link",
            "Messages over the links with other concentrators, and what was refused there",
            self.core_link.clone(),
        );
        registry.register(
            "second_chances",
            "Packets of connections that another concentrator has, sent there",
            self.second_chances.clone(),
        );
        registry.register("flows", "Flows in the flow table", self.flows.clone());
        registry.register(
            "path_drift",
            "Live flows whose edge or mark changed",
            self.path_drift.clone(),
        );
        registry.register(
            "edge_bindings",
            "Bindings, by the edge that they were seen with last",
            self.edge_bindings.clone(),
        );
        registry.register(
            "binding_path_changes",
            "Bindings that came to this edge from another edge or mark",
            self.binding_path_changes.clone(),
        );
        registry.register(
            "flows_evicted",
            "Flows that gave way to newer ones",
            self.flows_evicted.clone(),
        );
    }

    fn register_transports(&self, registry: &mut Registry) {
        registry.register(
            "sip_received",
            "SIP messages received",
            self.sip_received.clone(),
        );
        registry.register("sip_sent", "SIP messages sent", self.sip_sent.clone());
        registry.register(
            "sip_keepalives",
            "Keepalives received",
            self.sip_keepalives.clone(),
        );
        registry.register(
            "stun_answered",
            "STUN Binding requests answered",
            self.stun_answered.clone(),
        );
        registry.register(
            "sip_dropped",
            "Messages dropped before anybody read them",
            self.sip_dropped.clone(),
        );
        registry.register(
            "sip_unsent",
            "Messages that could not be sent",
            self.sip_unsent.clone(),
        );
        registry.register(
            "connections",
            "Open connections of stream transports",
            self.connections.clone(),
        );
        registry.register(
            "connections_refused",
            "Connections not taken",
            self.connections_refused.clone(),
        );
        registry.register(
            "connections_closed",
            "Connections that ended",
            self.connections_closed.clone(),
        );
        registry.register(
            "tls_reloads",
            "Certificates read again at SIGHUP, by what became of them",
            self.tls_reloads.clone(),
        );
    }

    /// Counts a message that nobody read.
    pub fn dropped(&self, why: &'static str) {
        self.sip_dropped.get_or_create(&reason(why)).inc();
    }

    /// Counts a relay-control connection or message that was not taken.
    pub fn relay_refused(&self, why: &'static str) {
        self.relay_control_refused.get_or_create(&reason(why)).inc();
    }

    /// Counts messages that were not sent.
    pub fn unsent(&self, why: &'static str, messages: u64) {
        let counter = self.sip_unsent.get_or_create(&reason(why));
        counter.inc_by(messages);
    }
}

/// One label: its name and its value.
pub type Label = [(&'static str, Cow<'static, str>); 1];

/// Why something did not happen.
pub const fn reason(value: &'static str) -> Label {
    [("reason", Cow::Borrowed(value))]
}

/// What a core did.
pub const fn event(value: &'static str) -> Label {
    [("event", Cow::Borrowed(value))]
}

/// What a core holds.
pub const fn kind(value: &'static str) -> Label {
    [("kind", Cow::Borrowed(value))]
}

/// An edge, by its configured name.
pub fn edge(name: &str) -> Label {
    [("edge", Cow::Owned(name.to_owned()))]
}

/// A transport, in lower case.
pub const fn transport(transport: Transport) -> Label {
    let name = match transport {
        Transport::Udp => "udp",
        Transport::Tcp => "tcp",
        Transport::Tls => "tls",
        Transport::Ws => "ws",
        Transport::Wss => "wss",
    };
    [("transport", Cow::Borrowed(name))]
}
