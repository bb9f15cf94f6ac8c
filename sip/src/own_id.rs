//! A hasher for keys that no sender has a say in: numbers that we gave out ourselves, and secretly
//! keyed hashes that nobody is told.
//!
//! All other keys stay with keyed hashers, the standard library's where anybody may fill a map, hashbrown's
//! quicker one where only our users may: who may choose keys would choose
//! those that meet.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A map with such keys.
pub(crate) type OwnIdMap<K, V> = HashMap<K, V, BuildHasherDefault<OwnIdHasher>>;

/// An odd number without a pattern: 2^64 divided by the golden ratio.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct OwnIdHasher(u64);

impl OwnIdHasher {
    const fn add(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(32) ^ number).wrapping_mul(FACTOR);
    }
}

impl Hasher for OwnIdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut number = [0; 8];
            number[..chunk.len()].copy_from_slice(chunk);
            self.add(u64::from_le_bytes(number));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.add(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        self.add(number);
    }

    fn finish(&self) -> u64 {
        // The table takes its place from the low bits, and multiplying has mixed the high ones.
        self.0.rotate_left(26)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::{BuildHasher as _, BuildHasherDefault};

    use super::*;

    #[test]
    fn consecutive_numbers_are_spread_over_the_places_of_a_table() {
        let hasher = BuildHasherDefault::<OwnIdHasher>::default();
        let low = |number: u64| hasher.hash_one(number) & 0xffff;
        let places: HashSet<u64> = (0..0x1_0000).map(low).collect();
        assert!(places.len() > 0x1_0000 / 2, "{} places", places.len());
    }

    #[test]
    fn both_halves_of_an_id_count() {
        let hasher = BuildHasherDefault::<OwnIdHasher>::default();
        let ids = (0..256_u32).flat_map(|slot| (0..256_u32).map(move |turn| (slot, turn)));
        let hashes: HashSet<u64> = ids.map(|id| hasher.hash_one(id)).collect();
        assert_eq!(hashes.len(), 0x1_0000);
    }
}
