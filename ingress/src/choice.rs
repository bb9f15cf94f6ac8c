//! PURE. Which concentrator a packet goes to.
//!
//! Rendezvous hashing over the user agent's address: every concentrator has a score for the address,
//! and the highest one of those that serve takes the packet. So all packets of a user agent, whatever
//! their protocol and fragment, go to one concentrator, from every edge the same; and when one is
//! lost or comes back, only the user agents that it has the highest score for move. Ports are no part
//! of it, since fragments have none.
//!
//! Who is asked, in this order: those that serve and have a weight; those that serve and have none,
//! which are standbys; those that drain. Where there is none of these, packets go on going where they
//! went last: what does not answer probes may still hear.

use std::net::IpAddr;

use crate::config::{Concentrator, HashKey};
use crate::probes::path::Fitness;
use score::Score;

pub mod score;

/// See the module.
#[derive(Debug)]
pub struct Choice {
    all: Vec<Concentrator>,
    fitness: Vec<Fitness>,
    /// Packets sent to each.
    packets: Vec<u64>,
    /// Places in `all`; never empty.
    among: Vec<usize>,
    key: HashKey,
}

/// What a concentrator gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Which one.
    pub concentrator: Concentrator,
    /// Packets go to it now.
    pub is_chosen: bool,
    /// Packets that have gone to it so far.
    pub packets: u64,
}

impl Choice {
    /// Among these, of which one at least has a weight. Until one serves, those with a weight get all.
    pub fn new(concentrators: &[Concentrator], key: HashKey) -> Self {
        let weighted = concentrators.iter().enumerate();
        let weighted = weighted.filter(|(_, one)| one.weight > 0);
        Self {
            all: concentrators.to_vec(),
            fitness: vec![Fitness::Unfit; concentrators.len()],
            packets: vec![0; concentrators.len()],
            among: weighted.map(|(place, _)| place).collect(),
            key,
        }
    }

    /// What is known of a concentrator.
    pub fn set(&mut self, concentrator: IpAddr, fitness: Fitness) {
        let place = self.all.iter().position(|one| one.address == concentrator);
        if let Some(place) = place
            && self.fitness[place] != fitness
        {
            self.fitness[place] = fitness;
            self.choose();
        }
    }

    /// What each of them gets.
    pub fn shares(&self) -> impl Iterator<Item = Share> + '_ {
        let all = self.all.iter().zip(&self.packets).enumerate();
        all.map(|(place, (one, packets))| Share {
            concentrator: *one,
            is_chosen: self.among.contains(&place),
            packets: *packets,
        })
    }

    /// The concentrator for a packet of this user agent, which is counted.
    pub fn take(&mut self, user_agent: IpAddr) -> IpAddr {
        let place = self.place_of(user_agent);
        self.packets[place] += 1;
        self.all[place].address
    }

    /// Those that packets go to now, by their place in the configuration.
    pub fn chosen(&self) -> impl Iterator<Item = (usize, Concentrator)> + '_ {
        self.among.iter().map(|place| (*place, self.all[*place]))
    }

    /// Counts packets that were sent to a concentrator, by its place, on another way.
    pub fn count(&mut self, place: usize, packets: u64) {
        if let Some(count) = self.packets.get_mut(place) {
            *count += packets;
        }
    }

    fn place_of(&self, user_agent: IpAddr) -> usize {
        match self.among[..] {
            [only] => only,
            _ => self.highest(user_agent),
        }
    }

    fn choose(&mut self) {
        let places = |wanted: &dyn Fn(Fitness, u16) -> bool| -> Vec<usize> {
            let all = self.all.iter().zip(&self.fitness).enumerate();
            all.filter(|(_, (one, fitness))| wanted(**fitness, one.weight))
                .map(|(place, _)| place)
                .collect()
        };
        let ranks = [
            places(&|fitness, weight| fitness == Fitness::Serving && weight > 0),
            places(&|fitness, _| fitness == Fitness::Serving),
            places(&|fitness, _| fitness == Fitness::Draining),
        ];
        if let Some(best) = ranks.into_iter().find(|rank| !rank.is_empty()) {
            self.among = best;
        }
    }

    /// Weighted: the share of a concentrator is its weight over the sum of all.
    fn highest(&self, user_agent: IpAddr) -> usize {
        let score = |place: usize| {
            let one = &self.all[place];
            Score::new(self.key, user_agent, one.address, one.weight.max(1))
        };
        let scored = self.among.iter().map(|place| (score(*place), *place));
        let best = scored.reduce(
            |best, other| {
                if other.0.beats(&best.0) { other } else { best }
            },
        );
        best.map_or(0, |(_, place)| place)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::Ipv4Addr;

    use super::*;

    const KEY: HashKey = HashKey([7; 16]);

    fn concentrator(number: u8, weight: u16) -> Concentrator {
        let address = IpAddr::V4(Ipv4Addr::new(10, 0, 9, number));
        Concentrator { address, weight }
    }

    fn of_weights(weights: &[u16]) -> Choice {
        let all: Vec<Concentrator> = (1..)
            .zip(weights)
            .map(|(number, weight)| concentrator(number, *weight))
            .collect();
        serving(&all, KEY)
    }

    fn serving(all: &[Concentrator], key: HashKey) -> Choice {
        let mut choice = Choice::new(all, key);
        for one in all {
            choice.set(one.address, Fitness::Serving);
        }
        choice
    }

    fn user_agents() -> impl Iterator<Item = IpAddr> {
        (0..10_000_u32).map(|number| IpAddr::V4(Ipv4Addr::from_bits(0x6440_0000 + number)))
    }

    fn of(choice: &Choice, user_agent: IpAddr) -> IpAddr {
        choice.all[choice.place_of(user_agent)].address
    }

    fn chosen_by(choice: &Choice) -> Vec<IpAddr> {
        let chosen = choice.shares().filter(|share| share.is_chosen);
        chosen.map(|share| share.concentrator.address).collect()
    }

    fn counts(choice: &mut Choice) -> HashMap<IpAddr, u64> {
        for user_agent in user_agents() {
            choice.take(user_agent);
        }
        let shares = choice.shares();
        shares
            .map(|share| (share.concentrator.address, share.packets))
            .collect()
    }

    #[test]
    fn shares_are_as_the_weights() {
        let shares = counts(&mut of_weights(&[100, 100, 200]));
        for (number, expected) in [(1, 2_500), (2, 2_500), (3, 5_000)] {
            let share = shares[&concentrator(number, 0).address];
            assert!(share.abs_diff(expected) < 250, "{number}: {share}");
        }
    }

    #[test]
    fn who_is_lost_moves_its_own_user_agents_only_and_gets_them_back() {
        let mut choice = of_weights(&[100, 100, 100]);
        let before: Vec<IpAddr> = user_agents().map(|ua| of(&choice, ua)).collect();
        let lost = concentrator(2, 0).address;
        for fitness in [Fitness::Unfit, Fitness::Draining] {
            choice.set(lost, fitness);
            for (user_agent, before) in user_agents().zip(&before) {
                let now = of(&choice, user_agent);
                assert_ne!(now, lost);
                assert!(*before == lost || now == *before, "{user_agent}");
            }
        }
        choice.set(lost, Fitness::Serving);
        let after: Vec<IpAddr> = user_agents().map(|ua| of(&choice, ua)).collect();
        assert_eq!(before, after);
    }

    #[test]
    fn standbys_and_the_draining_come_last_and_somebody_is_always_left() {
        let mut choice = of_weights(&[100, 0]);
        let [first, standby] = [1, 2].map(|number| concentrator(number, 0).address);
        let user_agent = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));
        assert_eq!(of(&choice, user_agent), first);
        choice.set(first, Fitness::Draining);
        assert_eq!(of(&choice, user_agent), standby);
        choice.set(standby, Fitness::Unfit);
        assert_eq!(of(&choice, user_agent), first);
        choice.set(first, Fitness::Unfit);
        assert_eq!(
            of(&choice, user_agent),
            first,
            "the last one is never given up"
        );
        choice.set(standby, Fitness::Serving);
        assert_eq!(chosen_by(&choice), [standby]);
    }

    #[test]
    fn before_any_has_answered_those_with_a_weight_get_all() {
        let all = [
            concentrator(1, 0),
            concentrator(2, 100),
            concentrator(3, 100),
        ];
        let mut choice = Choice::new(&all, KEY);
        assert_eq!(chosen_by(&choice), [all[1].address, all[2].address]);
        choice.set(all[0].address, Fitness::Unfit);
        assert_eq!(chosen_by(&choice).len(), 2);
        choice.set(all[2].address, Fitness::Serving);
        assert_eq!(chosen_by(&choice), [all[2].address]);
    }

    #[test]
    fn every_edge_chooses_the_same_whatever_the_order_in_its_file() {
        let all = [1, 2, 3].map(|number| concentrator(number, 100));
        let reversed: Vec<Concentrator> = all.iter().rev().copied().collect();
        let (here, there) = (serving(&all, KEY), serving(&reversed, KEY));
        assert!(user_agents().all(|ua| of(&here, ua) == of(&there, ua)));
        let other = serving(&all, HashKey([8; 16]));
        let moved = user_agents().filter(|ua| of(&here, *ua) != of(&other, *ua));
        assert!(moved.count() > 5_000, "the key has a say");
    }
}
