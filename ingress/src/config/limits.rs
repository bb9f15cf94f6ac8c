//! `[limits]`: who may send packets to the service, and how many.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::Deserialize;
use tunnel_io::xdp::tables::{Rate, Rule};

/// Faster than any edge; more would be a number of nanoseconds that says nothing.
const MAX_PER_SECOND: u32 = 100_000_000;
/// Prefixes of one IP version that the XDP program has room for.
const MAX_PREFIXES: usize = 4_096;

/// The checked section.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// For each source; `None` without a limit.
    pub source: Option<Rate>,
    /// For all sources together.
    pub total: Option<Rate>,
    /// Prefix, its length, and what becomes of packets from there.
    pub rules: Vec<(IpAddr, u8, Rule)>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LimitsSection {
    source_packets_per_s: u32,
    source_burst: Option<u32>,
    total_packets_per_s: u32,
    total_burst: Option<u32>,
    allow: Vec<IpNetwork>,
    deny: Vec<IpNetwork>,
}

impl LimitsSection {
    pub(super) fn check(&self) -> Result<Limits, (&'static str, String)> {
        let keys = ("limits.source_packets_per_s", "limits.source_burst");
        let source = rate(self.source_packets_per_s, self.source_burst, keys)?;
        let keys = ("limits.total_packets_per_s", "limits.total_burst");
        let total = rate(self.total_packets_per_s, self.total_burst, keys)?;
        let mut rules: Vec<(IpAddr, u8, Rule)> = Vec::new();
        for (key, prefixes, rule) in [
            ("limits.allow", &self.allow, Rule::Allow),
            ("limits.deny", &self.deny, Rule::Deny),
        ] {
            for prefix in prefixes {
                let (network, length) = (prefix.network(), prefix.prefix());
                let before =
                    |(other, of, _): &(IpAddr, u8, Rule)| (*other, *of) == (network, length);
                if rules.iter().any(before) {
                    return Err((key, format!("{prefix} is named twice; remove one")));
                }
                rules.push((network, length, rule));
            }
        }
        for is_ipv4 in [true, false] {
            let count = rules.iter().filter(|rule| rule.0.is_ipv4() == is_ipv4);
            if count.count() > MAX_PREFIXES {
                let message = format!(
                    "allow and deny have more than {MAX_PREFIXES} prefixes of one IP version; \
                     join some"
                );
                return Err(("limits", message));
            }
        }
        Ok(Limits {
            source,
            total,
            rules,
        })
    }
}

/// Without a burst of its own a limit lets through at once what it does in a second.
fn rate(
    per_second: u32,
    burst: Option<u32>,
    keys: (&'static str, &'static str),
) -> Result<Option<Rate>, (&'static str, String)> {
    if per_second > MAX_PER_SECOND {
        let message = format!("{per_second} is more than {MAX_PER_SECOND}; use 0 for no limit");
        return Err((keys.0, message));
    }
    match (per_second, burst) {
        (0, None) => Ok(None),
        (0, Some(_)) => {
            let message = format!("a burst without a limit; set {} too", keys.0);
            Err((keys.1, message))
        }
        (_, Some(0)) => Err((
            keys.1,
            "0 would let nothing through; use 1 at least".to_owned(),
        )),
        (_, burst) => {
            let interval_ns = 1_000_000_000 / u64::from(per_second);
            let burst = u64::from(burst.unwrap_or(per_second));
            Ok(Some(Rate {
                interval_ns,
                tolerance_ns: (burst - 1) * interval_ns,
            }))
        }
    }
}
