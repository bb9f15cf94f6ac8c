//! PURE. How well a concentrator suits a user agent, in whole numbers only.
//!
//! With h, a keyed hash of both addresses as a part of 2^64, each has the cost -log2(h) / weight, and the
//! smallest cost wins: then the share of each is its weight over the sum of all. `bpf/ingress.bpf.c` does
//! the same; it has no floating point, so neither has this, and no two machines can round differently.

use std::hash::Hasher as _;
use std::net::IpAddr;

use siphasher::sip::SipHasher13;

use crate::config::HashKey;

/// log2(1 + n/256) times 2^30, for n from 0 to 256.
pub const LOGARITHMS: [u32; 257] = logarithms();

const fn logarithms() -> [u32; 257] {
    let mut table = [0; 257];
    let mut n = 0;
    while n < 256 {
        table[n] = logarithm(256 + n as u64);
        n += 1;
    }
    table[256] = 1 << 30;
    table
}

/// Of x/256, which is from 1 to below 2. Squaring doubles a logarithm: what gets to 2 had its next bit set.
const fn logarithm(x: u64) -> u32 {
    let mut scaled = x << 23;
    let (mut bits, mut bit) = (0, 0);
    while bit < 30 {
        scaled = (scaled * scaled) >> 31;
        bits <<= 1;
        if scaled >> 32 != 0 {
            scaled >>= 1;
            bits |= 1;
        }
        bit += 1;
    }
    bits
}

/// A concentrator in the eyes of a user agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Score {
    hash: u64,
    cost: u64,
    weight: u64,
}

impl Score {
    /// Of this concentrator, whose weight is not 0.
    pub fn new(key: HashKey, user_agent: IpAddr, concentrator: IpAddr, weight: u16) -> Self {
        let mut hasher = SipHasher13::new_with_key(&key.0);
        write(&mut hasher, user_agent);
        write(&mut hasher, concentrator);
        let hash = hasher.finish();
        Self {
            hash,
            cost: cost(hash),
            weight: weight.into(),
        }
    }

    /// The smaller cost for its weight; of two that cost the same, the one with the larger hash.
    pub const fn beats(&self, other: &Self) -> bool {
        let (ours, theirs) = (self.cost * other.weight, other.cost * self.weight);
        ours < theirs || ours == theirs && self.hash > other.hash
    }
}

/// -log2(hash / 2^64) times 2^30: at least 1, below 2^37. Between two entries of the table it is a line.
const fn cost(hash: u64) -> u64 {
    let hash = hash | 1;
    let zeros = hash.leading_zeros();
    let normal = hash << zeros;
    let index = ((normal >> 55) & 0xff) as usize;
    let rest = (normal >> 23) & 0xffff_ffff;
    let (low, high) = (LOGARITHMS[index] as u64, LOGARITHMS[index + 1] as u64);
    ((1 + zeros as u64) << 30) - (low + (((high - low) * rest) >> 32))
}

fn write(hasher: &mut SipHasher13, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => hasher.write(&v4.octets()),
        IpAddr::V6(v6) => hasher.write(&v6.octets()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_the_logarithm() {
        for (n, entry) in LOGARITHMS.iter().enumerate() {
            let exact = (1.0 + n as f64 / 256.0).log2() * f64::from(1 << 30);
            assert!((f64::from(*entry) - exact).abs() < 32.0, "{n}: {entry}");
        }
        assert!(LOGARITHMS.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn the_cost_falls_with_the_hash_from_first_to_last() {
        assert_eq!(cost(u64::MAX), 1);
        assert_eq!(cost(0), 64 << 30);
        assert_eq!(cost(1 << 63), 1 << 30);
        let mut hash = u64::MAX;
        while hash > 1 << 40 {
            let smaller = hash / 257 * 256;
            assert!(cost(hash) < cost(smaller), "{hash:#x}");
            let exact = -(hash as f64 / 18_446_744_073_709_551_616.0).log2();
            let difference = cost(hash) as f64 / f64::from(1 << 30) - exact;
            assert!(difference.abs() < 1e-5, "{hash:#x}: {difference}");
            hash = smaller;
        }
    }
}
