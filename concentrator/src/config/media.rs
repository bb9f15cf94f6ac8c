//! What the file says about relays: which one carries a call, who stands in, how many leases.

use std::collections::{HashMap, HashSet};

use wire::mark::RelayId;
use wire::relay_control::GateMode;

use super::file::{File, MediaFile, PinFile, RelayControlFile};
use super::{Anchor, Edge, EdgeRelay, Media, Problem, RelayPolicy, problem};
use crate::edge_keys::EdgeKeys;
use crate::media::choice::{Pin, Pinned};

/// Leases in one stock: each is four open ports on the relay.
const MAX_STOCK: u32 = 16_384;
/// A caller that waits longer takes the service for dead.
const MAX_LEASE_WAIT_MS: u64 = 4_000;

pub(super) fn check_media(media: &MediaFile) -> Result<Media, Problem> {
    Ok(Media {
        anchor: check_anchor("media.anchor", &media.anchor)?,
        relay: check_policy("media.relay", &media.relay)?,
        source: check_source(&media.source)?,
        end_on_timeout: media.end_on_timeout,
    })
}

fn check_source(text: &str) -> Result<GateMode, Problem> {
    match text {
        "exact" => Ok(GateMode::Exact),
        "subnet" => Ok(GateMode::Subnet),
        "any" => Ok(GateMode::Any),
        other => problem(
            "media.source",
            format!("{other:?} is not known; use \"exact\", \"subnet\" or \"any\""),
        ),
    }
}

fn check_anchor(key: &str, text: &str) -> Result<Anchor, Problem> {
    match text {
        "caller" => Ok(Anchor::Caller),
        "callee" => Ok(Anchor::Callee),
        "both" => Ok(Anchor::Both),
        other => problem(
            key,
            format!("{other:?} is not known; use \"caller\", \"callee\" or \"both\""),
        ),
    }
}

fn check_policy(key: &str, text: &str) -> Result<RelayPolicy, Problem> {
    match text {
        "auto" => Ok(RelayPolicy::Auto),
        "always" => Ok(RelayPolicy::Always),
        "never" => Ok(RelayPolicy::Never),
        other => problem(
            key,
            format!("{other:?} is not known; use \"auto\", \"always\" or \"never\""),
        ),
    }
}

/// The agents that stand in must be there.
pub(super) fn check_fallbacks(edges: &[Edge]) -> Result<(), Problem> {
    for (index, edge) in edges.iter().enumerate() {
        check_agents(edges, &edge.fallback, &format!("edges[{index}].fallback"))?;
        for (position, relay) in edge.relays.iter().enumerate() {
            let key = format!("edges[{index}].relays[{position}].fallback");
            let fallback = relay.fallback.as_deref().unwrap_or_default();
            check_agents(edges, fallback, &key)?;
        }
    }
    Ok(())
}

fn check_agents(edges: &[Edge], agents: &[String], key: &str) -> Result<(), Problem> {
    let mut known = HashSet::new();
    for (position, agent) in agents.iter().enumerate() {
        let key = format!("{key}[{position}]");
        if relay_of(edges, agent).is_none() {
            return problem(
                key,
                format!("{agent:?} is the agent of no relay of any edge"),
            );
        }
        if !known.insert(agent) {
            return problem(key, format!("{agent:?} is there twice; remove one"));
        }
    }
    Ok(())
}

/// The first relay that an agent serves.
fn relay_of(edges: &[Edge], agent: &str) -> Option<RelayId> {
    edges.iter().find_map(|edge| {
        let relay = edge.relays.iter().find(|relay| relay.agent == agent)?;
        Some(edge.relay_id(relay))
    })
}

/// The relays that stand in for each: its own `fallback`, or else the others of its edge and then
/// the edge's `fallback`.
pub(super) fn stand_ins(edges: &[Edge]) -> HashMap<RelayId, Vec<RelayId>> {
    let mut stand_ins = HashMap::new();
    for edge in edges {
        for relay in &edge.relays {
            let id = edge.relay_id(relay);
            let mut order: Vec<RelayId> = Vec::new();
            for stand_in in order_of(edges, edge, relay) {
                if stand_in != id && !order.contains(&stand_in) {
                    order.push(stand_in);
                }
            }
            for key in EdgeKeys::of(edge).all() {
                stand_ins.insert(RelayId { key, ..id }, order.clone());
            }
        }
    }
    stand_ins
}

fn order_of(edges: &[Edge], edge: &Edge, relay: &EdgeRelay) -> Vec<RelayId> {
    let of_agents = |agents: &[String]| -> Vec<RelayId> {
        let agents = agents.iter();
        agents.filter_map(|agent| relay_of(edges, agent)).collect()
    };
    match &relay.fallback {
        Some(agents) => of_agents(agents),
        None => {
            let others = edge.relays.iter().map(|other| edge.relay_id(other));
            others.chain(of_agents(&edge.fallback)).collect()
        }
    }
}

pub(super) fn check_pins(file: &File, edges: &[Edge]) -> Result<HashMap<Pinned, Pin>, Problem> {
    let mut pins = HashMap::new();
    for (index, pin) in file.media.pins.iter().enumerate() {
        let at = format!("media.pins[{index}]");
        let of = check_pinned(file, pin, &at)?;
        if pin.agent.is_none() && pin.anchor.is_none() && pin.relay.is_none() {
            return problem(at, "says nothing; give it an agent, an anchor or a relay");
        }
        let relay = pin.agent.as_ref().map(|agent| {
            relay_of(edges, agent).ok_or_else(|| Problem {
                key: format!("{at}.agent"),
                message: format!("{agent:?} is the agent of no relay of any edge"),
            })
        });
        let anchor = pin.anchor.as_deref();
        let anchor = anchor.map(|anchor| check_anchor(&format!("{at}.anchor"), anchor));
        let policy = pin.relay.as_deref();
        let policy = policy.map(|policy| check_policy(&format!("{at}.relay"), policy));
        let value = Pin {
            relay: relay.transpose()?,
            anchor: anchor.transpose()?,
            policy: policy.transpose()?,
        };
        if pins.insert(of, value).is_some() {
            return problem(
                at,
                "is the second pin of one account or trunk; make one of them",
            );
        }
    }
    Ok(pins)
}

fn check_pinned(file: &File, pin: &PinFile, at: &str) -> Result<Pinned, Problem> {
    match (&pin.account, &pin.trunk) {
        (Some(account), None) => match account.split_once('@') {
            Some((user, domain)) if !user.is_empty() && !domain.is_empty() => Ok(Pinned::Account(
                format!("{user}@{}", domain.to_ascii_lowercase()),
            )),
            _ => problem(
                format!("{at}.account"),
                format!("{account:?} is not user@domain, without a scheme"),
            ),
        },
        (None, Some(trunk)) => {
            let trusted = file.authentication.as_ref();
            let mut names = file.groups.iter().map(|group| &group.name).chain(
                trusted
                    .into_iter()
                    .flat_map(|section| &section.trusted)
                    .map(|trusted| &trusted.name),
            );
            if names.any(|name| name == trunk) {
                return Ok(Pinned::Trunk(trunk.clone()));
            }
            problem(
                format!("{at}.trunk"),
                format!("{trunk:?} is the name of no group and of no trusted trunk"),
            )
        }
        (Some(_), Some(_)) | (None, None) => problem(at, "must have either an account or a trunk"),
    }
}

pub(super) fn check_relay_control(
    control: Option<&RelayControlFile>,
    edges: &[Edge],
) -> Result<(), Problem> {
    let Some(control) = control else {
        let mut relays = edges.iter().flat_map(|edge| &edge.relays);
        if relays.all(|relay| relay.rtpengine.is_some()) {
            return Ok(());
        }
        return problem(
            "relay_control",
            "is missing, but edges have relays that are an rtp-agent; add [relay_control] with listen, certificate, private_key and ca",
        );
    };
    if control.listen.port() == 0 {
        return problem("relay_control.listen", "0 is not a port; use 7060");
    }
    check_stock(control)
}

fn check_stock(control: &RelayControlFile) -> Result<(), Problem> {
    let RelayControlFile {
        min_stock,
        max_stock,
        lease_wait_ms,
        ..
    } = *control;
    if min_stock == 0 {
        return problem(
            "relay_control.min_stock",
            "is 0; the first call needs a lease",
        );
    }
    if max_stock < min_stock {
        return problem(
            "relay_control.max_stock",
            format!("{max_stock} is below min_stock, {min_stock}"),
        );
    }
    if max_stock > MAX_STOCK {
        return problem(
            "relay_control.max_stock",
            format!("{max_stock} is above {MAX_STOCK}; each lease is four open ports"),
        );
    }
    if lease_wait_ms > MAX_LEASE_WAIT_MS {
        return problem(
            "relay_control.lease_wait_ms",
            format!("{lease_wait_ms} is above {MAX_LEASE_WAIT_MS}; 0 is never"),
        );
    }
    Ok(())
}
