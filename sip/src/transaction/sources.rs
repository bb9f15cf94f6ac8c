//! How many transactions the requests of each source have made.
//!
//! A source is what one subscriber is likely to have: an IPv4 address or an IPv6 /64. It is known
//! only as long as it has a transaction, so there are never more of them than transactions.

use std::collections::HashMap;
use std::net::IpAddr;

#[derive(Debug, Default)]
pub(crate) struct Sources {
    counts: HashMap<u128, usize>,
}

impl Sources {
    pub(crate) fn count(&self, address: IpAddr) -> usize {
        self.counts.get(&source(address)).copied().unwrap_or(0)
    }

    pub(crate) fn add(&mut self, address: IpAddr) {
        *self.counts.entry(source(address)).or_default() += 1;
    }

    pub(crate) fn remove(&mut self, address: IpAddr) {
        let source = source(address);
        if let Some(count) = self.counts.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&source);
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.counts.len()
    }
}

/// One of IPv4 as it is written in IPv6, so that it has something in the lower half.
fn source(address: IpAddr) -> u128 {
    match address.to_canonical() {
        IpAddr::V6(v6) => v6.to_bits() & !u128::from(u64::MAX),
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscriber_is_one_source_and_is_forgotten_with_its_last_transaction() {
        let mut sources = Sources::default();
        let [v4, other] = ["203.0.113.1", "203.0.113.2"].map(address);
        let [v6, same, next] = ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"].map(address);
        for address in [v4, v4, v6, same] {
            sources.add(address);
        }
        assert_eq!([v4, other].map(|address| sources.count(address)), [2, 0]);
        assert_eq!(
            [v6, same, next].map(|address| sources.count(address)),
            [2, 2, 0]
        );
        assert_eq!(sources.count(address("::ffff:203.0.113.1")), 2);
        for address in [v4, v4, same, v6, other] {
            sources.remove(address);
        }
        assert_eq!(sources.len(), 0);
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }
}
