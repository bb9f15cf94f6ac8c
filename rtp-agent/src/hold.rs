//! Packets that came before they could be sent on, in the order of their arrival.
//!
//! Media may come before the session's gate is known (the Bind is still under way) and before the
//! other party has sent anything (so that nobody knows where to send). A session holds such packets
//! in one [`Hold`] a direction. Three limits bound what a stranger can make us store: packets a
//! direction, their age, and the packets of all sessions together ([`HoldBudget`]).

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::session::Component;

/// Packets held for one direction of one session.
pub const MAX_PACKETS: usize = 32;
/// How long a packet is worth sending on.
pub const MAX_AGE: Duration = Duration::from_secs(1);

/// A packet and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldPacket {
    /// On which of the side's two ports.
    pub component: Component,
    /// Its source.
    pub from: SocketAddr,
    /// When it came.
    pub arrived: Instant,
    /// The UDP payload.
    pub bytes: Box<[u8]>,
}

/// How many packets all sessions together hold, and how many they may.
#[derive(Debug)]
pub struct HoldBudget {
    used: usize,
    max: usize,
}

impl HoldBudget {
    /// At most `max` packets.
    pub const fn new(max: usize) -> Self {
        Self { used: 0, max }
    }

    /// Packets held now.
    pub const fn used(&self) -> usize {
        self.used
    }
}

/// The held packets of one direction.
#[derive(Debug, Default)]
pub struct Hold {
    packets: VecDeque<HeldPacket>,
}

impl Hold {
    /// Stores a packet. When the direction is full the oldest makes room; when all sessions
    /// together are, the new one is not stored. Returns how many packets were lost by that.
    pub fn push(&mut self, packet: HeldPacket, budget: &mut HoldBudget) -> u64 {
        let mut lost = 0;
        if self.packets.len() >= MAX_PACKETS && self.packets.pop_front().is_some() {
            budget.used -= 1;
            lost = 1;
        }
        if budget.used >= budget.max {
            return lost + 1;
        }
        budget.used += 1;
        self.packets.push_back(packet);
        lost
    }

    /// Drops what is too old; returns how many those were.
    pub fn expire(&mut self, now: Instant, budget: &mut HoldBudget) -> u64 {
        let mut expired = 0;
        while self.poll_timeout().is_some_and(|at| at <= now) {
            self.packets.pop_front();
            budget.used -= 1;
            expired += 1;
        }
        expired
    }

    /// Takes out what came on this component, oldest first.
    pub fn take(&mut self, component: Component, budget: &mut HoldBudget) -> Vec<HeldPacket> {
        let (taken, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.packets)
            .into_iter()
            .partition(|packet| packet.component == component);
        self.packets = kept.into();
        budget.used -= taken.len();
        taken
    }

    /// Takes out everything, oldest first.
    pub fn take_all(&mut self, budget: &mut HoldBudget) -> Vec<HeldPacket> {
        budget.used -= self.packets.len();
        std::mem::take(&mut self.packets).into()
    }

    /// When the oldest packet becomes too old.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.packets.front().map(|oldest| oldest.arrived + MAX_AGE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn packets_come_out_in_order_and_by_component() {
        let now = clock::start();
        let mut budget = HoldBudget::new(100);
        let mut hold = Hold::default();
        for (number, component) in [
            (1, Component::Rtp),
            (2, Component::Rtcp),
            (3, Component::Rtp),
        ] {
            assert_eq!(hold.push(packet(number, component, now), &mut budget), 0);
        }
        assert_eq!(numbers(&hold.take(Component::Rtp, &mut budget)), [1, 3]);
        assert_eq!(budget.used(), 1);
        assert_eq!(numbers(&hold.take_all(&mut budget)), [2]);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn the_thirty_third_packet_pushes_out_the_first() {
        let now = clock::start();
        let mut budget = HoldBudget::new(100);
        let mut hold = Hold::default();
        for number in 0..32 {
            assert_eq!(
                hold.push(packet(number, Component::Rtp, now), &mut budget),
                0
            );
        }
        assert_eq!(hold.push(packet(32, Component::Rtp, now), &mut budget), 1);
        assert_eq!(budget.used(), MAX_PACKETS);
        assert_eq!(numbers(&hold.take_all(&mut budget))[0], 1);
    }

    #[test]
    fn an_exhausted_budget_refuses_the_new_packet() {
        let now = clock::start();
        let mut budget = HoldBudget::new(1);
        let (mut first, mut second) = (Hold::default(), Hold::default());
        assert_eq!(first.push(packet(1, Component::Rtp, now), &mut budget), 0);
        assert_eq!(second.push(packet(2, Component::Rtp, now), &mut budget), 1);
        first.take_all(&mut budget);
        assert_eq!(second.push(packet(3, Component::Rtp, now), &mut budget), 0);
    }

    #[test]
    fn a_packet_expires_one_second_after_its_arrival_to_the_millisecond() {
        let now = clock::start();
        let mut budget = HoldBudget::new(100);
        let mut hold = Hold::default();
        hold.push(packet(1, Component::Rtp, now), &mut budget);
        assert_eq!(hold.poll_timeout(), Some(now + MAX_AGE));
        assert_eq!(
            hold.expire(now + Duration::from_millis(999), &mut budget),
            0
        );
        assert_eq!(
            hold.expire(now + Duration::from_millis(1000), &mut budget),
            1
        );
        assert_eq!((hold.poll_timeout(), budget.used()), (None, 0));
    }

    fn packet(number: u8, component: Component, arrived: Instant) -> HeldPacket {
        HeldPacket {
            component,
            from: SocketAddr::from(([192, 0, 2, 1], 4000)),
            arrived,
            bytes: Box::new([number]),
        }
    }

    fn numbers(packets: &[HeldPacket]) -> Vec<u8> {
        packets.iter().map(|packet| packet.bytes[0]).collect()
    }
}
