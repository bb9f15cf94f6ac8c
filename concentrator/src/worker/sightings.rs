//! Bindings as `/status` lists them, and their sums by edge: where phones are seen, and how that drifts.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sip::registrar::sighting::{OfEdge, PathChange, Sighting};
use sip::registrar::{AddressOfRecord, Binding, Registrar};
use wire::gre::TunnelKey;
use wire::mark::RelayId;

use super::report::{LISTED, millis};
use crate::cdr::rfc3339;
use crate::metrics::{Metrics, edge};

/// For what came without a tunnel, or without a mark.
const NO_EDGE: &str = "none";
/// For a binding from the file that an edge carried which is not configured any more.
const UNKNOWN: &str = "unknown";

/// What the edges are called.
#[derive(Debug)]
pub(super) struct EdgeNames(HashMap<TunnelKey, String>);

impl EdgeNames {
    pub(super) const fn new(names: HashMap<TunnelKey, String>) -> Self {
        Self(names)
    }

    /// An edge has one more key.
    pub(super) fn know_as(&mut self, key: TunnelKey, name: &str) {
        self.0.entry(key).or_insert_with(|| name.to_owned());
    }

    fn of(&self, key: Option<TunnelKey>) -> &str {
        key.map_or(NO_EDGE, |key| {
            self.0.get(&key).map_or(UNKNOWN, String::as_str)
        })
    }

    /// `null` for what no edge with a mark has carried.
    fn path(&self, relay: Option<RelayId>) -> Value {
        relay.map_or(
            Value::Null,
            |relay| json!({ "edge": self.of(Some(relay.key)), "mark": relay.mark.number() }),
        )
    }
}

/// Brings the metrics by edge up to date.
pub(super) fn publish(registrar: &Registrar, names: &EdgeNames, metrics: &Metrics) {
    let none = [NO_EDGE].into_iter();
    let mut sums: BTreeMap<&str, OfEdge> = none
        .chain(names.0.values().map(String::as_str))
        .map(|name| (name, OfEdge::default()))
        .collect();
    for (key, of) in registrar.edges() {
        let sum = sums.entry(names.of(key)).or_default();
        sum.bindings += of.bindings;
        sum.arrivals += of.arrivals;
    }
    for (name, sum) in sums {
        let bindings = i64::try_from(sum.bindings).unwrap_or(i64::MAX);
        let label = edge(name);
        metrics.edge_bindings.get_or_create(&label).set(bindings);
        let changes = metrics.binding_path_changes.get_or_create(&label);
        changes.inc_by(sum.arrivals.saturating_sub(changes.get()));
    }
}

/// The first of the bindings; the counts elsewhere are complete.
pub(super) fn list(registrar: &Registrar, names: &EdgeNames, clock: (Instant, Duration)) -> Value {
    let bindings = registrar.iter().take(LISTED);
    bindings
        .map(|(aor, binding)| {
            let sighting = registrar.sighting(&binding.flow);
            show(aor, &binding, sighting, names, clock)
        })
        .collect()
}

/// All bindings of one user.
pub(super) fn list_of(
    user: &AddressOfRecord,
    registrar: &Registrar,
    names: &EdgeNames,
    clock: (Instant, Duration),
) -> Value {
    let bindings = registrar.lookup(user, clock.0).into_iter();
    bindings
        .map(|binding| {
            let sighting = registrar.sighting(&binding.flow);
            show(user, &binding, sighting, names, clock)
        })
        .collect()
}

fn show(
    aor: &AddressOfRecord,
    binding: &Binding,
    sighting: Option<&Sighting>,
    names: &EdgeNames,
    (now, unix): (Instant, Duration),
) -> Value {
    let time = |at: Instant| rfc3339(unix.saturating_sub(now.saturating_duration_since(at)));
    let change = |change: PathChange| {
        json!({
            "at": time(change.at),
            "from": names.path(change.from),
            "to": names.path(change.to),
        })
    };
    let relay = binding.relay;
    json!({
        "user": aor.to_string(),
        "contact": String::from_utf8_lossy(&binding.contact_uri),
        "flow": binding.flow.to_string(),
        "edge": relay.map(|relay| names.of(Some(relay.key))),
        "mark": relay.map(|relay| relay.mark.number()),
        "tunnel_key": relay.map(|relay| relay.key.to_string()),
        "since": sighting.map(|seen| time(seen.since())),
        "last_seen": sighting.map(|seen| time(seen.last())),
        "path_changes": sighting.map_or(0, Sighting::changes),
        "last_path_changes": sighting
            .map(|seen| seen.recent().map(change).collect::<Vec<_>>())
            .unwrap_or_default(),
        "expires_in_ms": millis(binding.expires_at, now),
        "path": binding.path.values().len(),
        "reg_id": binding.reg_id,
    })
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "tests need some instant to count from"
)]
mod tests {
    use std::net::SocketAddr;

    use sip::cookie::Keys;
    use sip::hop::{Flow, Hop, Transport};
    use sip::message::Message;
    use sip::registrar::Limits;
    use wire::mark::Mark;

    use super::*;

    #[test]
    fn a_binding_shows_its_edge_since_when_and_where_it_was_before() {
        let (mut registrar, start) = registrar_with_bob();
        let flow = hop(1).flow;
        registrar.seen(&flow, hop(2).relay, start + Duration::from_secs(60));
        registrar.seen(&flow, hop(2).relay, start + Duration::from_secs(90));
        let clock = (
            start + Duration::from_secs(100),
            Duration::from_secs(1_800_000_100),
        );
        let page = list(&registrar, &names(), clock);
        let binding = &page[0];
        assert_eq!(binding["edge"], "edge2");
        assert_eq!(binding["since"], "2027-01-15T08:01:00.000Z");
        assert_eq!(binding["last_seen"], "2027-01-15T08:01:30.000Z");
        assert_eq!(binding["path_changes"], 1);
        let change = json!({
            "at": "2027-01-15T08:01:00.000Z",
            "from": { "edge": "edge1", "mark": 1 },
            "to": { "edge": "edge2", "mark": 2 },
        });
        assert_eq!(binding["last_path_changes"], json!([change]));
    }

    #[test]
    fn the_sums_name_every_edge_and_those_that_nobody_knows() {
        let (mut registrar, start) = registrar_with_bob();
        let metrics = Metrics::default();
        let look = |registrar: &Registrar, name: &str| {
            publish(registrar, &names(), &metrics);
            let label = edge(name);
            (
                metrics.edge_bindings.get_or_create(&label).get(),
                metrics.binding_path_changes.get_or_create(&label).get(),
            )
        };
        assert_eq!(look(&registrar, "edge1"), (1, 0));
        assert_eq!(look(&registrar, "edge2"), (0, 0));
        registrar.seen(&hop(1).flow, hop(7).relay, start);
        assert_eq!(look(&registrar, "edge1"), (0, 0));
        assert_eq!(look(&registrar, UNKNOWN), (1, 1));
        registrar.seen(&hop(1).flow, None, start);
        assert_eq!(look(&registrar, NO_EDGE), (1, 1));
    }

    fn names() -> EdgeNames {
        let named = |number: u32| (TunnelKey(0x1000 + number), format!("edge{number}"));
        EdgeNames::new([1, 2].map(named).into())
    }

    fn registrar_with_bob() -> (Registrar, Instant) {
        let start = Instant::now();
        let mut registrar = Registrar::new(Limits::default(), Keys::new([7; 32], None));
        let text = "REGISTER sip:example.com SIP/2.0\r\nVia: SIP/2.0/UDP 192.168.1.2;branch=z9hG4bK1\r\n\
             From: <sip:bob@example.com>;tag=1\r\nTo: <sip:bob@example.com>\r\nCall-ID: 1\r\n\
             CSeq: 1 REGISTER\r\nContact: <sip:bob@192.168.1.2>\r\nContent-Length: 0\r\n\r\n";
        let request = Message::parse(text.as_bytes().to_vec().into()).unwrap();
        let bob = AddressOfRecord::from_uri(b"sip:bob@example.com").unwrap();
        let answer = registrar.handle_register(&request, &bob, &hop(1), start);
        assert_eq!(answer.status(), Some(200));
        (registrar, start)
    }

    fn hop(edge: u8) -> Hop {
        Hop {
            flow: Flow {
                transport: Transport::Udp,
                peer: SocketAddr::from(([192, 0, 2, 1], 5060)),
                local: SocketAddr::from(([198, 51, 100, 1], 5060)),
                connection: None,
            },
            relay: Some(RelayId {
                key: TunnelKey(0x1000 + u32::from(edge)),
                mark: Mark::new(edge).unwrap(),
            }),
        }
    }
}
