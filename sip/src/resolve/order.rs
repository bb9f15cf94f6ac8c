//! The order of things that have a priority and a weight (RFC 2782), with chance as an argument.

/// The order in which to try items of (priority, weight): the lowest priority first, and among
/// equals each first with the chance that its weight has in the sum.
///
/// The same `random` gives the same order, which keeps what belongs together on one server.
pub fn weighted_order(items: &[(u16, u16)], random: u64) -> Vec<usize> {
    let mut rest: Vec<usize> = (0..items.len()).collect();
    // "first … all those with weight 0 are placed at the beginning of the list."
    rest.sort_by_key(|&index| {
        let (priority, weight) = items[index];
        (priority, weight > 0)
    });
    let mut order = Vec::with_capacity(items.len());
    let mut chance = Chance(random);
    while let Some(&first) = rest.first() {
        let priority = items[first].0;
        let equals = rest
            .iter()
            .take_while(|&&index| items[index].0 == priority)
            .count();
        let sum: u64 = rest[..equals]
            .iter()
            .map(|&index| u64::from(items[index].1))
            .sum();
        // "choose a uniform random number between 0 and the sum computed (inclusive)": the 0 is
        // for the items of weight 0; without any it would favour the first of the others.
        let least = u64::from(items[first].1 > 0);
        let chosen = least + chance.up_to(sum - least);
        let mut running = 0;
        let place = rest[..equals].iter().position(|&index| {
            running += u64::from(items[index].1);
            running >= chosen
        });
        order.push(rest.remove(place.unwrap_or(0)));
    }
    order
}

/// Numbers from one seed (SplitMix64); chance enough to spread load, and for nothing else.
struct Chance(u64);

impl Chance {
    fn up_to(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % (most + 1)
    }
}
