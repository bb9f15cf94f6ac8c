//! PURE. Who may send, and how fast: the sources that are let in or denied, and the limits of packets a
//! second for each source and for all.
//!
//! A limit is the generic cell rate algorithm (ITU-T I.371), which is a token bucket with one number of
//! state: when its sender would be on time again. `bpf/ingress.bpf.c` does the same; each way counts for
//! itself, and what the XDP program leaves to this one has passed its limits before.
//!
//! An IPv6 source is its /64, since a host has all of that. Sources are remembered in a table of fixed
//! size: where it is full, who has been silent for longest is forgotten, and begins anew. So whoever sends
//! with ever new addresses is held by the limit for all only.

use std::collections::HashMap;
use std::hash::Hasher as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use siphasher::sip::SipHasher13;
pub use tunnel_io::xdp::tables::{Rate, Rule};

use crate::classify::DropReason;
use crate::config::Limits as Config;

/// Sources that are remembered.
pub const MAX_SOURCES: usize = 65_536;
/// Of those, how many can have one hash.
const WAYS: usize = 8;

/// See the module.
#[derive(Debug)]
pub struct Limits {
    rules: Rules,
    source: Option<(Rate, Sources)>,
    total: Option<(Rate, u64)>,
}

impl Limits {
    /// `random` keeps strangers from choosing addresses that have one hash.
    pub fn new(config: &Config, random: u64) -> Self {
        Self {
            rules: Rules::new(&config.rules),
            source: config.source.map(|rate| (rate, Sources::new(random))),
            total: config.total.map(|rate| (rate, 0)),
        }
    }

    /// May a packet of this source pass? If so it is counted.
    pub fn admit(&mut self, source: IpAddr, now_ns: u64) -> Result<(), DropReason> {
        match self.rules.of(source) {
            Some(Rule::Deny) => return Err(DropReason::Denied),
            Some(Rule::Allow) => return Ok(()),
            None => {}
        }
        if let Some((rate, sources)) = &mut self.source
            && !passes(sources.of(source, now_ns), now_ns, *rate)
        {
            return Err(DropReason::SourceLimit);
        }
        if let Some((rate, next)) = &mut self.total
            && !passes(next, now_ns, *rate)
        {
            return Err(DropReason::TotalLimit);
        }
        Ok(())
    }
}

const fn passes(next: &mut u64, now_ns: u64, rate: Rate) -> bool {
    let at = if *next > now_ns { *next } else { now_ns };
    if at - now_ns > rate.tolerance_ns {
        return false;
    }
    *next = at.saturating_add(rate.interval_ns);
    true
}

/// What is said of prefixes; the longest one counts.
#[derive(Debug)]
struct Rules {
    /// By length, the longest first.
    by_length: Vec<(u8, HashMap<IpAddr, Rule>)>,
}

impl Rules {
    fn new(rules: &[(IpAddr, u8, Rule)]) -> Self {
        let mut by_length: Vec<(u8, HashMap<IpAddr, Rule>)> = Vec::new();
        for (prefix, length, rule) in rules {
            let at = by_length.iter().position(|(other, _)| other == length);
            let at = at.unwrap_or_else(|| {
                by_length.push((*length, HashMap::new()));
                by_length.len() - 1
            });
            by_length[at].1.insert(masked(*prefix, *length), *rule);
        }
        by_length.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        Self { by_length }
    }

    fn of(&self, source: IpAddr) -> Option<Rule> {
        let found = |(length, rules): &(u8, HashMap<IpAddr, Rule>)| {
            rules.get(&masked(source, *length)).copied()
        };
        self.by_length.iter().find_map(found)
    }
}

/// The first bits of an address; of an IPv4 address there are 32 at most.
fn masked(address: IpAddr, length: u8) -> IpAddr {
    let length = u32::from(length);
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(length));
            Ipv4Addr::from_bits(v4.to_bits() & mask.unwrap_or(0)).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(length));
            Ipv6Addr::from_bits(v6.to_bits() & mask.unwrap_or(0)).into()
        }
    }
}

/// When each source would be on time again.
#[derive(Debug)]
struct Sources {
    /// [`WAYS`] of one hash side by side.
    table: Vec<Entry>,
    random: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    prefix: u64,
    is_ipv6: bool,
    /// 0: nobody is here.
    next_ns: u64,
}

impl Sources {
    fn new(random: u64) -> Self {
        Self {
            table: vec![Entry::default(); MAX_SOURCES],
            random,
        }
    }

    fn of(&mut self, source: IpAddr, now_ns: u64) -> &mut u64 {
        let (prefix, is_ipv6) = match source {
            IpAddr::V4(v4) => (v4.to_bits().into(), false),
            IpAddr::V6(v6) => ((v6.to_bits() >> 64) as u64, true),
        };
        let mut hasher = SipHasher13::new_with_keys(self.random, 0);
        hasher.write_u64(prefix);
        hasher.write_u8(is_ipv6.into());
        let first = hasher.finish() as usize % (MAX_SOURCES / WAYS) * WAYS;
        let ways = &mut self.table[first..first + WAYS];
        let is_it = |entry: &Entry| {
            entry.next_ns != 0 && (entry.prefix, entry.is_ipv6) == (prefix, is_ipv6)
        };
        let known = ways.iter().position(is_it);
        let place = known.unwrap_or_else(|| {
            let oldest = ways
                .iter()
                .enumerate()
                .min_by_key(|(_, entry)| entry.next_ns);
            oldest.map_or(0, |(place, _)| place)
        });
        let entry = &mut ways[place];
        if known.is_none() {
            *entry = Entry {
                prefix,
                is_ipv6,
                next_ns: now_ns,
            };
        }
        &mut entry.next_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn limits(source: Option<Rate>, total: Option<Rate>, rules: &[(&str, u8, Rule)]) -> Limits {
        let rules = rules.iter();
        let rules = rules.map(|(prefix, length, rule)| (prefix.parse().unwrap(), *length, *rule));
        let config = Config {
            source,
            total,
            rules: rules.collect(),
        };
        Limits::new(&config, 7)
    }

    /// Ten a second, five at once.
    fn ten_a_second() -> Rate {
        Rate {
            interval_ns: SECOND / 10,
            tolerance_ns: 4 * SECOND / 10,
        }
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn admitted(limits: &mut Limits, source: &str, now_ns: u64, packets: usize) -> usize {
        let admit = |_: &usize| limits.admit(address(source), now_ns).is_ok();
        (0..packets).filter(admit).count()
    }

    #[test]
    fn a_burst_and_then_the_rate_and_nobody_else_loses_anything() {
        let mut limits = limits(Some(ten_a_second()), None, &[]);
        let now = 5 * SECOND;
        assert_eq!(admitted(&mut limits, "192.0.2.1", now, 100), 5);
        assert_eq!(
            limits.admit(address("192.0.2.1"), now),
            Err(DropReason::SourceLimit)
        );
        assert_eq!(admitted(&mut limits, "192.0.2.2", now, 3), 3);
        assert_eq!(admitted(&mut limits, "192.0.2.1", now + SECOND / 10, 9), 1);
        assert_eq!(admitted(&mut limits, "192.0.2.1", now + 9 * SECOND, 9), 5);
    }

    #[test]
    fn a_64_is_one_source() {
        let mut limits = limits(Some(ten_a_second()), None, &[]);
        assert_eq!(admitted(&mut limits, "2001:db8::1", SECOND, 3), 3);
        assert_eq!(admitted(&mut limits, "2001:db8::2", SECOND, 9), 2);
        assert_eq!(admitted(&mut limits, "2001:db8:0:1::1", SECOND, 9), 5);
    }

    #[test]
    fn the_longest_prefix_says_whether_a_source_is_denied_or_free() {
        let rules = [
            ("0.0.0.0", 0, Rule::Deny),
            ("100.64.0.0", 10, Rule::Allow),
            ("100.64.7.0", 24, Rule::Deny),
            ("2001:db8::", 32, Rule::Deny),
        ];
        let none = Rate {
            interval_ns: u64::MAX,
            tolerance_ns: 0,
        };
        let mut limits = limits(None, Some(none), &rules);
        for (source, expected) in [
            ("192.0.2.1", Err(DropReason::Denied)),
            ("100.64.7.1", Err(DropReason::Denied)),
            ("2001:db8::1", Err(DropReason::Denied)),
            ("2001:db9::1", Ok(())),
            ("2001:db9::1", Err(DropReason::TotalLimit)),
            ("100.127.0.1", Ok(())),
        ] {
            assert_eq!(limits.admit(address(source), SECOND), expected, "{source}");
        }
    }

    #[test]
    fn a_full_table_forgets_who_was_silent_for_longest() {
        let mut limits = limits(Some(ten_a_second()), None, &[]);
        assert_eq!(admitted(&mut limits, "192.0.2.1", SECOND, 9), 5);
        for number in 0..2 * MAX_SOURCES as u32 {
            let source = Ipv4Addr::from_bits(0x0a00_0000 + number).into();
            assert_eq!(limits.admit(source, 2 * SECOND), Ok(()));
        }
        assert_eq!(admitted(&mut limits, "192.0.2.1", 2 * SECOND, 9), 5);
        let (_, sources) = limits.source.as_ref().unwrap();
        assert_eq!(sources.table.len(), MAX_SOURCES);
    }
}
