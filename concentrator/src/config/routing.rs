//! `[[routes]]`, `[[groups]]`, `[dns]` and `sip.unicast_address`: as they are written, and checked.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use ipnetwork::IpNetwork;
use serde::Deserialize;
use sip::hop::Transport;
use sip::message::Uri;
use sip::proxy::groups::{DialogAddress, GroupConfig, MemberConfig};
use sip::proxy::routing::{Audience, Config as Routing, Destination, Network, Route};

use super::checks::check_networks;
use super::file::File;
use super::{Problem, problem};

/// The port of the DNS.
const DNS_PORT: u16 = 53;
/// More members are a mistake; each is probed and each may be tried for one call.
const MAX_MEMBERS: usize = 64;
/// What every host must take (RFC 1122 section 3.3.2).
const SMALLEST_DATAGRAM: usize = 576;

/// `[[routes]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteFile {
    /// The domain of the Request-URI.
    pub domain: Option<String>,
    /// How its user part begins.
    pub prefix: Option<String>,
    /// Where the request comes from.
    #[serde(default)]
    pub source: Vec<IpNetwork>,
    /// `users` or `anyone`.
    #[serde(default = "users")]
    pub from: String,
    /// A group, a URI, `registrar` or `dns`.
    pub to: String,
    /// Characters taken off the user part.
    #[serde(default)]
    pub strip: usize,
    /// Put before it.
    #[serde(default)]
    pub prepend: String,
}

fn users() -> String {
    "users".to_owned()
}

/// `[[groups]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupFile {
    /// The name.
    pub name: String,
    /// The next hops.
    pub members: Vec<MemberFile>,
    /// Requests from here come from this trunk.
    #[serde(default)]
    pub source: Vec<IpNetwork>,
    /// `options`, or nothing.
    pub probe: Option<String>,
    /// How often.
    #[serde(default = "ten")]
    pub probe_interval_s: u32,
    /// After these the next member is tried.
    #[serde(default = "timeout_and_unavailable")]
    pub fail_on: Vec<u16>,
    /// A member that is silent for so long has failed.
    #[serde(default = "six_seconds")]
    pub timeout_ms: u32,
    /// `anycast` or `unicast`.
    #[serde(default = "anycast")]
    pub dialog_address: String,
}

fn ten() -> u32 {
    10
}

fn timeout_and_unavailable() -> Vec<u16> {
    vec![408, 503]
}

fn six_seconds() -> u32 {
    6000
}

fn anycast() -> String {
    "anycast".to_owned()
}

/// A member of a group.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberFile {
    /// A sip or sips URI.
    pub uri: String,
    /// Its share among equal priority.
    #[serde(default = "one")]
    pub weight: u16,
    /// Lower is tried first.
    #[serde(default)]
    pub priority: u16,
}

fn one() -> u16 {
    1
}

/// `[dns]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DnsFile {
    /// Addresses, or addresses and ports, of resolvers.
    pub servers: Vec<String>,
}

/// Who is asked; empty: whom /etc/resolv.conf names.
pub(super) fn check_dns(dns: &DnsFile) -> Result<Vec<SocketAddr>, Problem> {
    let servers = dns.servers.iter().enumerate();
    servers
        .map(|(index, text)| {
            let address = text.parse::<IpAddr>().map(|ip| (ip, DNS_PORT).into());
            address.or_else(|_| text.parse()).or_else(|_| {
                problem(
                    format!("dns.servers[{index}]"),
                    format!("{text:?} is not an address, nor one with a port; write 10.0.9.53 or [2001:db8::53]:53"),
                )
            })
        })
        .collect()
}

/// The unicast address, with the port of SIP.
pub(super) fn check_unicast(file: &File) -> Result<Option<SocketAddr>, Problem> {
    let key = "sip.unicast_address";
    let Some(address) = file.sip.unicast_address else {
        return Ok(None);
    };
    if file.service_addresses.contains(&address) {
        return problem(
            key,
            format!("{address} is a service address; name the address that only this machine has"),
        );
    }
    if address.is_unspecified() || address.is_multicast() {
        return problem(key, format!("{address} is not one address"));
    }
    Ok(Some((address, file.sip.port).into()))
}

/// Routes and groups for the SIP core.
pub(super) fn check_routing(file: &File, domains: &[String]) -> Result<Routing, Problem> {
    let unicast: Vec<SocketAddr> = check_unicast(file)?.into_iter().collect();
    let mut groups: Vec<GroupConfig> = Vec::new();
    for (index, group) in file.groups.iter().enumerate() {
        let at = format!("groups[{index}]");
        if groups.iter().any(|other| other.name == group.name) {
            return problem(
                format!("{at}.name"),
                format!("{:?} is there twice; change one", group.name),
            );
        }
        groups.push(check_group(group, &at, !unicast.is_empty())?);
    }
    let mut routes = Vec::new();
    for (index, route) in file.routes.iter().enumerate() {
        routes.push(check_route(
            route,
            &format!("routes[{index}]"),
            domains,
            &mut groups,
        )?);
    }
    let transports = [
        (file.sip.udp, Transport::Udp),
        (file.sip.tcp, Transport::Tcp),
    ];
    Ok(Routing {
        routes,
        groups,
        unicast,
        transports: transports
            .into_iter()
            .filter_map(|(open, transport)| open.then_some(transport))
            .collect(),
        max_udp_request: Some(check_udp_request_max(file)?),
    })
}

fn check_udp_request_max(file: &File) -> Result<usize, Problem> {
    let max = file.sip.udp_request_max_bytes;
    if (SMALLEST_DATAGRAM..=usize::from(u16::MAX)).contains(&max) {
        return Ok(max);
    }
    problem(
        "sip.udp_request_max_bytes",
        format!(
            "{max} is not from {SMALLEST_DATAGRAM} to 65535; use 1300 (RFC 3261 section 18.1.1), or 65535 for UDP always"
        ),
    )
}

fn check_group(group: &GroupFile, at: &str, has_unicast: bool) -> Result<GroupConfig, Problem> {
    if group.name.is_empty() || matches!(group.name.as_str(), "registrar" | "dns") {
        return problem(
            format!("{at}.name"),
            format!("{:?} cannot name a group; choose another", group.name),
        );
    }
    if group.members.is_empty() || group.members.len() > MAX_MEMBERS {
        return problem(
            format!("{at}.members"),
            format!(
                "has {} entries; use 1 to {MAX_MEMBERS}",
                group.members.len()
            ),
        );
    }
    check_networks(&group.source, &format!("{at}.source"))?;
    let interval = Duration::from_secs(u64::from(group.probe_interval_s));
    let probe = match group.probe.as_deref() {
        None => None,
        Some("options") if group.probe_interval_s > 0 => Some(interval),
        Some("options") => return problem(format!("{at}.probe_interval_s"), "is 0; use 10"),
        Some(other) => {
            return problem(
                format!("{at}.probe"),
                format!("{other:?} is not known; use \"options\", or leave it out"),
            );
        }
    };
    if let Some(status) = group.fail_on.iter().find(|s| !(300..=699).contains(*s)) {
        return problem(
            format!("{at}.fail_on"),
            format!("{status} is not a failure; use codes from 300 to 699"),
        );
    }
    if group.timeout_ms == 0 {
        return problem(format!("{at}.timeout_ms"), "is 0; use 6000");
    }
    let dialog_address = match group.dialog_address.as_str() {
        "anycast" => DialogAddress::Anycast,
        "unicast" if has_unicast => DialogAddress::Unicast,
        "unicast" => {
            return problem(
                format!("{at}.dialog_address"),
                "is \"unicast\", and sip.unicast_address is missing; name it there",
            );
        }
        other => {
            return problem(
                format!("{at}.dialog_address"),
                format!("{other:?} is not known; use \"anycast\" or \"unicast\""),
            );
        }
    };
    let members = group.members.iter().enumerate();
    Ok(GroupConfig {
        name: group.name.clone(),
        members: members
            .map(|(index, member)| {
                let key = format!("{at}.members[{index}].uri");
                Ok(MemberConfig {
                    uri: check_uri(&member.uri, &key)?,
                    weight: member.weight,
                    priority: member.priority,
                })
            })
            .collect::<Result<_, Problem>>()?,
        sources: group.source.iter().map(network).collect(),
        probe,
        fail_on: group.fail_on.clone(),
        timeout: Duration::from_millis(u64::from(group.timeout_ms)),
        dialog_address,
    })
}

fn check_uri(text: &str, key: &str) -> Result<Bytes, Problem> {
    let good = Uri::parse(text.as_bytes()).is_ok_and(|uri| {
        let transport = uri.transport().map(Transport::from_name);
        uri.is_sip() && uri.user.is_none() && uri.headers.is_none() && transport != Some(None)
    });
    if good {
        return Ok(Bytes::copy_from_slice(text.as_bytes()));
    }
    problem(
        key,
        format!("{text:?} is not a next hop; write it as \"sip:10.0.9.20:5060;transport=udp\""),
    )
}

fn check_route(
    route: &RouteFile,
    at: &str,
    domains: &[String],
    groups: &mut Vec<GroupConfig>,
) -> Result<Route, Problem> {
    check_networks(&route.source, &format!("{at}.source"))?;
    let domain = route
        .domain
        .as_ref()
        .map(|domain| domain.to_ascii_lowercase());
    let own = domain
        .as_ref()
        .is_some_and(|domain| domains.contains(domain));
    let audience = match route.from.as_str() {
        "users" => Audience::Known,
        "anyone" if own => Audience::Anyone,
        "anyone" => {
            return problem(
                format!("{at}.from"),
                "is \"anyone\", and domain is not one of `domains`: that would be an open relay",
            );
        }
        other => {
            return problem(
                format!("{at}.from"),
                format!("{other:?} is not known; use \"users\" or \"anyone\""),
            );
        }
    };
    let is_user = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.!~*'()&=+$,;?/".contains(&byte);
    for (name, text) in [
        ("prefix", route.prefix.as_deref()),
        ("prepend", Some(&*route.prepend)),
    ] {
        if let Some(text) = text.filter(|text| !text.bytes().all(is_user)) {
            return problem(
                format!("{at}.{name}"),
                format!("{text:?} cannot stand in the user part of a URI"),
            );
        }
    }
    Ok(Route {
        domain,
        prefix: route.prefix.clone(),
        sources: route.source.iter().map(network).collect(),
        audience,
        to: check_destination(&route.to, &format!("{at}.to"), groups)?,
        strip: route.strip,
        prepend: route.prepend.clone(),
    })
}

/// A URI becomes a group of one, which nobody probes.
fn check_destination(
    to: &str,
    key: &str,
    groups: &mut Vec<GroupConfig>,
) -> Result<Destination, Problem> {
    if to == "registrar" {
        return Ok(Destination::Registrar);
    }
    if to == "dns" {
        return Ok(Destination::Dns);
    }
    if let Some(group) = groups.iter().position(|group| group.name == to) {
        return Ok(Destination::Group(group));
    }
    if !to.starts_with("sip:") && !to.starts_with("sips:") {
        return problem(
            key,
            format!(
                "{to:?} is not a group; name one of [[groups]], a sip: URI, \"registrar\" or \"dns\""
            ),
        );
    }
    groups.push(GroupConfig {
        name: to.to_owned(),
        members: vec![MemberConfig {
            uri: check_uri(to, key)?,
            weight: 1,
            priority: 0,
        }],
        sources: Vec::new(),
        probe: None,
        fail_on: timeout_and_unavailable(),
        timeout: Duration::from_millis(u64::from(six_seconds())),
        dialog_address: DialogAddress::Anycast,
    });
    Ok(Destination::Group(groups.len() - 1))
}

pub(super) fn network(network: &IpNetwork) -> Network {
    Network {
        address: network.network(),
        prefix: network.prefix(),
    }
}
