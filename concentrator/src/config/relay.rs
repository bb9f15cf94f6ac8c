//! One relay of an edge: the name of an rtp-agent, or the address of an rtpengine.

use std::net::SocketAddr;

use wire::mark::Mark;

use super::checks::is_host_name;
use super::file::RelayFile;
use super::{EdgeRelay, Problem, problem};
use crate::relays::rtpengine::Target;

/// Either an rtp-agent or an rtpengine.
pub(super) fn check_relay(at: &str, mark: Mark, relay: &RelayFile) -> Result<EdgeRelay, Problem> {
    match (&relay.agent, &relay.rtpengine) {
        (Some(agent), None) => {
            if relay.interface.is_some() {
                return problem(
                    format!("{at}.interface"),
                    "is for an rtpengine; an rtp-agent has its own media.addresses",
                );
            }
            if !is_host_name(agent) {
                return problem(
                    format!("{at}.agent"),
                    format!("{agent:?} is not a name as in a certificate (a DNS name)"),
                );
            }
            Ok(EdgeRelay {
                mark,
                agent: agent.clone(),
                rtpengine: None,
            })
        }
        (None, Some(address)) => {
            let interface = check_interface(at, relay.interface.as_deref())?;
            let address = check_rtpengine(&format!("{at}.rtpengine"), address)?;
            let target = Target { address, interface };
            Ok(EdgeRelay {
                mark,
                agent: target.to_string(),
                rtpengine: Some(target),
            })
        }
        (Some(_), Some(_)) => problem(
            format!("{at}.rtpengine"),
            "a relay is an agent or an rtpengine, not both; take one of the two out",
        ),
        (None, None) => problem(
            at,
            "names no relay; add agent = \"NAME\" or rtpengine = \"ADDRESS:PORT\"",
        ),
    }
}

fn check_rtpengine(key: &str, address: &str) -> Result<SocketAddr, Problem> {
    let Ok(parsed) = address.parse::<SocketAddr>() else {
        return problem(
            key,
            format!(
                "{address:?} is not an address and port; use for example \"10.0.1.9:22222\" or \
                 \"[2001:db8::9]:22222\", as in the rtpengine's listen-ng"
            ),
        );
    };
    let ip = parsed.ip();
    if parsed.port() == 0 {
        return problem(
            key,
            "0 is not a port; use the one of the rtpengine's listen-ng",
        );
    }
    if ip.is_unspecified() || ip.is_multicast() {
        return problem(key, format!("{ip} is not the address of one host"));
    }
    Ok(parsed)
}

/// As rtpengine takes it: up to the first slash of `interface=NAME/ADDRESS`.
fn check_interface(at: &str, interface: Option<&str>) -> Result<Option<String>, Problem> {
    let good = |name: &str| {
        (1..=63).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/')
    };
    match interface {
        Some(name) if !good(name) => problem(
            format!("{at}.interface"),
            format!("{name:?} is not a name as in the rtpengine's interface = NAME/ADDRESS"),
        ),
        interface => Ok(interface.map(ToOwned::to_owned)),
    }
}
